//! Chunks that are sent by reference: the pools of this process, those of others of which it takes chunks, and the holes in rings that
//! stand for them. The rules by which a chunk comes back are `shmring::chunks`'s.
//!
//! ```text
//! memory     the two files of a pool
//! owned      pools of this process                     borrowed   edges by which it takes chunks of others
//! offers     which pools the two sides of a channel have told each other of
//! stretch    holes in what a connection receives, and in what it has sent
//! ```
//! A process meets a pool when its peer offers it, in the channel that both have. It opens the pool, takes a place at its desk, and the owner
//! gives it an edge the next time that it does something with the pool. Until then, and wherever any of it cannot be, bytes are copied.
//!
//! A process that was forked has none of it: the memory stays mapped, so that what lies in rings can be read, and that is all.

pub mod borrowed;
mod memory;
pub mod offers;
pub mod owned;
pub mod stretch;

pub use memory::Shape;

use crate::kernel::{K, Kernel as _};
use core::sync::atomic::Ordering::Relaxed;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64};

/// Which process this is: a number for each fork that led to it.
static ERA: AtomicU32 = AtomicU32::new(1);
/// This process as an end of edges.
static PARTY: AtomicU64 = AtomicU64::new(0);
/// The program has used chunks: it takes them by reference.
static USED: AtomicBool = AtomicBool::new(false);

/// See [`ERA`].
pub fn era() -> u32 {
    ERA.load(Relaxed)
}

/// See [`PARTY`]. Never 0, which is the owner of any pool.
fn party() -> u64 {
    match PARTY.load(Relaxed) {
        0 => {
            let new = K::random().max(1);
            PARTY.compare_exchange(0, new, Relaxed, Relaxed).err().unwrap_or(new)
        }
        party => party,
    }
}

/// The program uses chunks.
pub fn use_them() {
    if !USED.load(Relaxed) {
        USED.store(true, Relaxed);
    }
}

/// Whether it has, in this process.
#[inline]
pub fn are_used() -> bool {
    USED.load(Relaxed)
}

/// In the child of a fork.
pub fn after_fork_child() {
    ERA.fetch_add(1, Relaxed);
    PARTY.store(0, Relaxed);
    USED.store(false, Relaxed);
    offers::after_fork_child();
    owned::after_fork_child();
    borrowed::after_fork_child();
}
