//! What goes by: packets that a bridge has no use for, and who decides what it takes.

use super::{Budget, Sockets};
use crate::payload::Buffer;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::ops::Range;

/// What a bridge does with a connection that a peer opens.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Taking {
    /// It is the stack's.
    Take,
    /// Its SYN is passed on.
    Pass,
    /// Its SYN is dropped: the peer asks again.
    Drop,
}

/// Who decides that: told our end, the peer's, the segment ([`Host::takes`](crate::payload::Host::takes)), and what memory there is.
pub type Takes = Box<dyn FnMut(SocketAddr, SocketAddr, &[u8], &Budget) -> Taking + Send>;

/// Packets kept of those that no neighbour took.
const UNDELIVERED: usize = 64;

/// Packets on their way.
pub(super) struct Passing<B> {
    takes: Option<Takes>,
    /// The packet that is passed on next is the SYN that was asked about last, and is dropped.
    drops: bool,
    passed: VecDeque<(B, Range<usize>)>,
    undelivered: VecDeque<Box<[u8]>>,
}

impl<B> Default for Passing<B> {
    fn default() -> Passing<B> {
        Passing { takes: None, drops: false, passed: VecDeque::new(), undelivered: VecDeque::new() }
    }
}

impl<B> std::fmt::Debug for Passing<B> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Passing { takes, drops, passed, undelivered } = self;
        f.debug_struct("Passing")
            .field("takes", &takes.is_some())
            .field("drops", drops)
            .field("passed", &passed.len())
            .field("undelivered", &undelivered.len())
            .finish()
    }
}

impl<B: Buffer> Passing<B> {
    pub fn takes(&mut self, local: SocketAddr, remote: SocketAddr, segment: &[u8], budget: &Budget) -> bool {
        let taking = self.takes.as_mut().map_or(Taking::Take, |takes| takes(local, remote, segment, budget));
        self.drops = taking == Taking::Drop;
        taking == Taking::Take
    }

    /// Of a port that runs out of buffers, fewer wait: connections need them more.
    pub fn push(&mut self, buffer: B, range: Range<usize>, most: usize) -> bool {
        let most = if buffer.scarce() { most / 8 } else { most };
        let drops = std::mem::take(&mut self.drops);
        let room = self.passed.len() < most && !drops;
        if room {
            self.passed.push_back((buffer, range));
        }
        room
    }

    pub fn undelivered(&mut self, packet: &[u8]) {
        if self.undelivered.len() < UNDELIVERED {
            self.undelivered.push_back(packet.into());
        }
    }
}

impl<B: Buffer> Sockets<B> {
    /// Who decides whether a bridge takes a connection that a peer opens; without it all are taken.
    pub fn set_takes(&mut self, takes: Takes) {
        self.passing.takes = Some(takes);
    }

    /// The next packet that a bridge has no use for, and where in the buffer it lies.
    pub fn next_passed(&mut self) -> Option<(B, Range<usize>)> {
        self.passing.passed.pop_front()
    }

    /// The next packet of others that was dropped, for the neighbour on its way does not answer.
    pub fn next_undelivered(&mut self) -> Option<Box<[u8]>> {
        self.passing.undelivered.pop_front()
    }
}
