//! What a run has shown: the hosts, and what became of each connection's frames. The verdict excuses an end by what really happened
//! to it, not by what might have.

use crate::card::Card;
use crate::programs::Programs;
use crate::scenario::Scenario;
use zstack::stack::Stack;

/// A host.
pub struct Side {
    /// Its engine.
    pub stack: Stack,
    /// Its device.
    pub card: Card,
    /// Its programs.
    pub programs: Programs,
    /// When its engine wants its next turn.
    pub deadline: Option<u64>,
    /// Its device has vanished.
    pub gone: bool,
    /// Connections whose SYNs have arrived since its last turn.
    pub syns: Vec<usize>,
}

/// What one host has sent of one connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Sent {
    /// Frames that did not arrive as they were sent: lost, too long, or corrupted.
    pub lost: u32,
    /// When the last of them was sent.
    pub lost_at: u64,
    /// RSTs.
    pub resets: u32,
    /// Its SYN was answered with a cookie, by the other host.
    pub cookie: bool,
    /// Its initial sequence number.
    pub base: Option<u32>,
    /// Its timestamps: the first, the last, and the latest that has arrived.
    pub stamps: Option<(u32, u32, u32)>,
    /// Somebody has lied to it so that it had to believe it: that the connection is over, or that bytes have arrived.
    pub deceived: bool,
}

/// Everything that a verdict is made from.
#[derive(Clone, Copy)]
pub struct View<'a> {
    /// What was to happen.
    pub scenario: &'a Scenario,
    /// The hosts.
    pub sides: &'a [Side; 2],
    /// What each host sent of each connection.
    pub sent: &'a [[Sent; 2]],
    /// Frames of any kind that did not arrive as they were sent.
    pub lost: u64,
    /// How many connections have begun.
    pub started: usize,
    /// The time.
    pub now: u64,
}
