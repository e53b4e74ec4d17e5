//! What the two sides of a channel say in its header of pools of chunks (`chunks::offers`).
#![forbid(unsafe_code)]

use super::Chan;
use core::sync::atomic::AtomicU32;
use core::sync::atomic::Ordering::Acquire;
use shmring::layout::{POOLS, PoolOffer, Role};

impl Chan {
    /// Whether a process of either side was forked while it had the channel.
    pub fn any_fork(&self) -> bool {
        self.header().forked.iter().any(|forked| forked.load(Acquire) != 0)
    }

    /// How many pools a side has offered.
    pub fn offered(&self, side: Role) -> &AtomicU32 {
        &self.header().offered[side as usize]
    }

    /// Which.
    pub fn pools(&self, side: Role) -> &[PoolOffer; POOLS] {
        &self.header().pools[side as usize]
    }
}
