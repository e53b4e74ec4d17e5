//! The two rings between the manager of a chain and one of its functions.
//!
//! ```text
//! 0     tail, to the function     256  tail, from the function
//! 64    head                      320  head
//! 128   armed                     384  armed
//! 512   slots, to the function    512 + 16 n  slots, from the function
//! ```
//! Each word has a cache line of its own: what one end writes all the time is not in the way of the other.

use crate::memory::{Error, Memory};
use crate::ring::Words;
use shmring::sync::AtomicU32;
use std::os::fd::{BorrowedFd, OwnedFd};

/// Who has this end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// The manager.
    Manager,
    /// The function.
    Function,
}

/// Memory of both rings.
#[derive(Debug)]
pub struct Edge {
    memory: Memory,
    slots: usize,
}

const LINE: usize = 64;
const RING: usize = 4 * LINE;
const SLOTS: usize = 2 * RING;
const SLOT: usize = 16;

impl Edge {
    /// Most descriptors that lie on one ring.
    pub const MOST: usize = 1 << 16;

    /// Makes one with room for `slots` descriptors each way.
    ///
    /// # Panics
    /// If that is no power of two, or more than [`Edge::MOST`].
    pub fn new(slots: usize) -> Result<Edge, Error> {
        assert!(slots.is_power_of_two() && slots <= Edge::MOST, "a ring of {slots} slots");
        Ok(Edge { memory: Memory::new(c"culvert-chain-edge", SLOTS + 2 * slots * SLOT)?, slots })
    }

    /// The edge that the manager has made, from the descriptor that it has sent.
    pub fn open(fd: OwnedFd) -> Result<Edge, Error> {
        let memory = Memory::open(fd, true)?;
        let slots = memory.len().saturating_sub(SLOTS) / (2 * SLOT);
        if !slots.is_power_of_two() || slots > Edge::MOST || SLOTS + 2 * slots * SLOT != memory.len() {
            return Err(Error::NotOurs("its size is not that of two rings"));
        }
        Ok(Edge { memory, slots })
    }

    /// What is sent to the function.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.memory.fd()
    }

    /// How many descriptors each ring has room for.
    pub fn slots(&self) -> usize {
        self.slots
    }

    /// The ring on which this end sends.
    pub fn outgoing(&self, end: End) -> Words<'_> {
        self.ring(usize::from(end == End::Function))
    }

    /// The ring from which this end receives.
    pub fn incoming(&self, end: End) -> Words<'_> {
        self.ring(usize::from(end == End::Manager))
    }

    fn ring(&self, which: usize) -> Words<'_> {
        let word = |n: usize| &self.memory.words::<AtomicU32>(which * RING + n * LINE, 1)[0];
        let slots = self.memory.words(SLOTS + which * self.slots * SLOT, self.slots);
        Words { tail: word(0), head: word(1), armed: word(2), slots }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::{Descriptor, Receiver, Sender};
    use std::fs::File;

    #[test]
    fn what_one_end_sends_the_other_receives() {
        let ours = Edge::new(4).unwrap();
        let theirs = Edge::open(ours.fd().try_clone_to_owned().unwrap()).unwrap();
        for (from, to, end, other) in
            [(&ours, &theirs, End::Manager, End::Function), (&theirs, &ours, End::Function, End::Manager)]
        {
            let mut sender = Sender::new(from.outgoing(end), 0);
            let mut receiver = Receiver::new(to.incoming(other), 0);
            let d = Descriptor { chunk: 3, generation: 1, offset: 128, len: 60, port: 1, verdict: 2, mark: 9 };
            assert_eq!(receiver.pop(), Ok(None));
            assert_eq!(sender.push(d), Ok(true));
            assert!(!sender.publish());
            assert_eq!(receiver.pop(), Ok(Some(d)));
            receiver.give_back();
            assert_eq!(sender.room(), Ok(4));
        }
    }

    #[test]
    fn memory_that_is_no_edge_is_refused() {
        let opened = |fd: OwnedFd| Edge::open(fd).map(|_| ()).map_err(|e| e.to_string());
        let file = File::open("/proc/self/exe").unwrap();
        assert!(opened(file.into()).unwrap_err().contains("no memfd"));
        let odd = Memory::new(c"odd", SLOTS + 5 * SLOT).unwrap();
        assert!(opened(odd.fd().try_clone_to_owned().unwrap()).unwrap_err().contains("size"));
        let loose = nix::sys::memfd::memfd_create(c"loose", nix::sys::memfd::MFdFlags::MFD_ALLOW_SEALING).unwrap();
        assert!(opened(loose).unwrap_err().contains("sealed"));
    }
}
