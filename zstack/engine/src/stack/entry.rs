//! What a stack keeps of each connection.

use super::{Info, ListenerId};
use crate::net::Path;
use crate::queue;
use crate::slab::Slab;
use crate::tcp::Tcb;
use crate::tuple::Tuple;
use crate::wheel;

/// Where a connection waits for its turn to send.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Waits {
    /// It has nothing to send.
    Not,
    /// In the list of those that are due.
    Due,
    /// For its neighbour's address.
    Neighbour,
}

/// The connection is in the table of tuples: segments of its tuple are its own.
pub(super) const NAMED: u8 = 1 << 0;
/// It counts among the half-open ones.
pub(super) const HALF: u8 = 1 << 1;
/// The host knows of it.
pub(super) const TOLD: u8 = 1 << 2;

/// A connection with its names and places.
pub(super) struct Entry {
    pub tcb: Tcb,
    pub tuple: Tuple,
    pub path: Path,
    pub timer: wheel::Link,
    pub place: queue::Link,
    /// The listener that it came to; 0: we opened it.
    pub listener: u32,
    pub waits: Waits,
    pub marks: u8,
}

impl Entry {
    pub fn info(&self) -> Info {
        Info {
            local: self.tuple.local(),
            remote: self.tuple.remote(),
            listener: (self.listener != 0).then_some(ListenerId(self.listener)),
            tcp: self.tcb.info(),
        }
    }
}

/// 512 bytes are the bound for all that an idle connection takes: this, 8 to 16 for its generation, and at most 31.5 for its slot
/// in the table while that grows.
const _: () = assert!(size_of::<Entry>() <= 472);

impl wheel::Links for Slab<Entry> {
    #[inline]
    fn link(&mut self, index: u32) -> &mut wheel::Link {
        &mut self.at_mut(index).expect("connections leave the wheel before they go").timer
    }
}

impl queue::Links for Slab<Entry> {
    #[inline]
    fn link(&mut self, index: u32) -> &mut queue::Link {
        &mut self.at_mut(index).expect("connections leave the list before they go").place
    }
}
