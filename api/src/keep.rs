//! Bytes that were read and stay where they are: for a program that hands on by reference what it receives.

use crate::library::{KeptMemory, library};
use std::os::fd::{AsFd, AsRawFd};

/// What is kept of one connection: bytes of its ring that were read, and whose room its sender does not have again yet.
///
/// Nothing is lost if it is dropped; the room is given back when the socket is closed.
#[derive(Debug, Default)]
pub struct Keeper {
    memory: KeptMemory,
    holds: bool,
}

/// What a call has read.
#[derive(Clone, Copy, Debug)]
pub struct Kept {
    /// Where it is: one piece, or two. Mapped as long as the socket is open; what lies there is what was sent until it is given back, unless
    /// the peer overwrites it, which it can do at any time.
    pub spans: [(*const u8, usize); 2],
    /// Bytes in both.
    pub len: usize,
    /// Bytes that the sender may have on the ring, read or not, before it has to wait.
    pub limit: usize,
    /// Nothing was behind them: what comes next is news to `poll` and `epoll`.
    pub all: bool,
    /// Nothing that was read before is kept, whoever has ended that: what is [given back](Keeper::give_back) counts from these bytes on.
    pub anew: bool,
}

// SAFETY: addresses, and numbers that the library has given; nothing is bound to a thread.
unsafe impl Send for Keeper {}

impl Keeper {
    /// Nothing is kept.
    pub fn new() -> Keeper {
        Keeper::default()
    }

    /// Whether something is kept.
    pub fn holds(&self) -> bool {
        self.holds
    }

    /// Reads up to `most` bytes that lie on the ring, if there are `least`, and keeps them there. Never waits. `None`: they are to be received as
    /// ever; always so without the library. The socket is the same each time.
    ///
    /// What is received behind them in whatever way is kept from the sender, too.
    pub fn keep(&mut self, socket: &impl AsFd, least: usize, most: usize) -> Option<Kept> {
        let l = library()?;
        let n = l.keep(socket.as_fd().as_raw_fd(), least, most, &mut self.memory)?;
        self.holds = true;
        let spans = self.memory.span.map(|v| (v.iov_base.cast_const().cast(), v.iov_len));
        Some(Kept { spans, len: n, limit: self.memory.limit, all: self.memory.all != 0, anew: self.memory.anew != 0 })
    }

    /// The next `n` bytes of what was kept, or received behind it, are the sender's again.
    pub fn give_back(&mut self, socket: &impl AsFd, n: usize) {
        self.give(socket, n);
    }

    /// All that was received is the sender's again.
    pub fn give_all_back(&mut self, socket: &impl AsFd) {
        self.give(socket, usize::MAX);
    }

    fn give(&mut self, socket: &impl AsFd, n: usize) {
        if self.holds {
            self.holds = library().is_some_and(|l| l.give_back(socket.as_fd().as_raw_fd(), n, &mut self.memory));
        }
    }
}
