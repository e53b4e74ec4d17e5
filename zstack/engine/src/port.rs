//! What the engine asks of a port: a device that sends and receives packets.

use crate::payload::{Buffer, Spans};
use std::ops::Range;

/// What a packet begins with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Medium {
    /// An IP header (a tun device).
    Ip,
    /// An Ethernet header.
    Ethernet,
}

/// What a port can do; fixed while it is open.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Capabilities {
    /// What its packets begin with.
    pub medium: Medium,
    /// The largest IP packet, in bytes.
    pub mtu: u16,
    /// Whether it completes TCP checksums ([`Checksum::Partial`]).
    pub checksum: bool,
    /// The most payload of a packet that it cuts into segments itself (TSO, [`Frame::cut`]); 0: it cuts none.
    pub tso: u32,
    /// Whether it may read a frame's payload after `send` has returned: see [`Port::completed`].
    pub late: bool,
}

/// The transport checksum of a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Checksum {
    /// It is in the frame.
    Complete,
    /// The port sums the frame's bytes from `start` on into the two bytes at `start + offset`, which hold the sum of the pseudo
    /// header.
    Partial {
        /// Where the transport header begins in the frame.
        start: u16,
        /// Where in that header the checksum stands.
        offset: u16,
    },
}

/// A packet to be sent: headers that the engine wrote, and payload in others' memory.
#[derive(Clone, Copy, Debug)]
pub struct Frame<'a> {
    /// Link, network and transport header.
    pub head: &'a [u8],
    /// What follows.
    pub payload: Spans,
    /// Who computes the transport checksum.
    pub checksum: Checksum,
    /// The payload of each segment if the port is to cut this one (its TCP header is the template); 0: it is sent as it is.
    pub cut: u16,
}

/// A packet that was received.
#[derive(Debug)]
pub struct Received<B> {
    /// Its memory.
    pub buffer: B,
    /// Where in it the packet lies, link header first.
    pub range: Range<usize>,
    /// Whether the transport checksum is known to be right: the device has checked it, or the sender is on the same machine
    /// and has not computed it.
    pub verified: bool,
}

/// Why a frame was not taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refused {
    /// No room now: the same frame will be taken later.
    Full,
    /// Never: it is too long, or malformed, for this device.
    Unfit,
    /// The device is gone.
    Gone,
}

/// A device that sends and receives packets. Used by one thread; no call blocks.
pub trait Port {
    /// The memory of its packets.
    type Buffer: Buffer;

    /// What it can do.
    fn capabilities(&self) -> Capabilities;

    /// The next packet that has arrived; `None`: there is none now.
    ///
    /// # Errors
    /// [`Refused::Gone`]: the device is gone.
    fn receive(&mut self) -> Result<Option<Received<Self::Buffer>>, Refused>;

    /// Takes a frame. Accepted frames are numbered from 0 on, in the order of the calls that accepted them.
    ///
    /// # Errors
    /// The frame was not taken.
    ///
    /// # Safety
    /// The spans of the payload must be readable until the frame is [completed](Port::completed).
    unsafe fn send(&mut self, frame: &Frame<'_>) -> Result<(), Refused>;

    /// How many of the accepted frames, the first ones, the port will not read again. A port that has read the payload when
    /// `send` returns has completed all that it accepted. It completes frames in their order: a port with several queues keeps
    /// the frames of all of them in that order.
    fn completed(&mut self) -> u64;

    /// Called when no more frames follow at once.
    fn flush(&mut self) {}
}
