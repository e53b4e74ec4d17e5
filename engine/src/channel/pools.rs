//! What the two sides of a channel say in its header of pools of chunks (`chunks::offers`).
// Unsafe here: the words of a channel are references into its mapping.
#![allow(unsafe_code)]

use super::Chan;
use crate::pages;
use core::sync::atomic::AtomicU32;
use core::sync::atomic::Ordering::{Acquire, Relaxed};
use shmring::hole::Entry;
use shmring::layout::{self, Holes, POOLS, PoolOffer, Role, SLOTS};
use shmring::position::RingPos;

impl Chan {
    /// Whether a process of either side was forked while it had the channel.
    pub fn any_fork(&self) -> bool {
        self.header().forked.iter().any(|forked| forked.load(Acquire) != 0)
    }

    /// The holes of a slot's rings. Their page has memory where the sender says that there are some.
    pub fn holes(&self, slot: usize) -> &Holes {
        let at = layout::holes_at(slot % SLOTS);
        // SAFETY: inside the fixed part by layout's arithmetic; all atomics; always mapped.
        unsafe { &*self.base().add(at).cast() }
    }

    /// Before the first hole of a connection's direction: gets memory for the table, and forgets what it said of others. False: there is none.
    pub fn begin_holes(&self, slot: usize, dir: usize) -> bool {
        let had = pages::have(self.base().wrapping_add(layout::holes_at(slot % SLOTS)), size_of::<Holes>());
        if had {
            self.holes(slot)[dir].iter().for_each(Entry::clear);
        }
        had
    }

    /// Whether a hole that this side has sent, in some connection, is of the pool that it has offered in this place.
    pub fn names_pool(&self, k: usize) -> bool {
        let dir = self.role().tx();
        // A connection that had none has no table.
        let has_table = |slot: &usize| self.slot(*slot).producer[dir].holes.load(Relaxed) != RingPos::START.claim();
        let mut slots = (0..SLOTS).filter(has_table);
        slots.any(|slot| self.holes(slot)[dir].iter().filter_map(Entry::get).any(|hole| usize::from(hole.pool) == k))
    }

    /// What says how many pools a side has offered (`chunks::offers`).
    pub fn offered(&self, side: Role) -> &AtomicU32 {
        &self.header().offered[side as usize]
    }

    /// Which.
    pub fn pools(&self, side: Role) -> &[PoolOffer; POOLS] {
        &self.header().pools[side as usize]
    }
}
