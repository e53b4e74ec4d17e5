//! One descriptor kept between calls, used by one thread at a time.

use crate::os::{self, Stat};
use crate::tuple::mix;
use core::sync::atomic::{AtomicU64, Ordering};

/// 0: empty. Else descriptor + 1 in the low half, and in the high half a digest of its device and inode:
/// a number that the program closed and reused is recognised and left alone.
pub(crate) struct Keep(AtomicU64);

fn digest(st: &Stat) -> u64 {
    mix(st.ino ^ mix(st.dev)) >> 32
}

fn known(word: u64) -> Option<(i32, Stat)> {
    let fd = (word as u32).checked_sub(1)? as i32;
    let st = os::fstat(fd).ok()?;
    (digest(&st) == word >> 32).then_some((fd, st))
}

impl Keep {
    pub const fn new() -> Keep {
        Keep(AtomicU64::new(0))
    }

    /// Takes the descriptor out, if one is there and is still what was put in. The caller owns it then:
    /// it puts it back or closes it.
    pub fn take(&self) -> Option<(i32, Stat)> {
        // A number alone orders nothing; Acquire pairs with the Release in `put` so that an instrumented
        // build sees the hand-over.
        known(self.0.swap(0, Ordering::Acquire))
    }

    /// The descriptor, left where it is; for one that is only replaced while nobody uses it.
    pub fn share(&self) -> Option<i32> {
        Some(known(self.0.load(Ordering::Acquire))?.0)
    }

    /// Puts `fd` in; if another thread was faster, closes it.
    pub fn put(&self, fd: i32, st: &Stat) {
        let word = digest(st) << 32 | (fd as u64 + 1);
        if self.0.compare_exchange(0, word, Ordering::Release, Ordering::Relaxed).is_err() {
            os::close(fd);
        }
    }

    /// Whether a descriptor could be put in now.
    pub fn is_empty(&self) -> bool {
        self.0.load(Ordering::Relaxed) == 0
    }

    /// Closes what is kept.
    pub fn drop_kept(&self) {
        if let Some((fd, _)) = self.take() {
            os::close(fd);
        }
    }
}
