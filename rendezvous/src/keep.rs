//! One descriptor kept between calls, used by one thread at a time.

use crate::os::{self, Stat};
use crate::tuple::mix;
use core::sync::atomic::Ordering;
use shmring::word::{Coded, Numbered};

/// A descriptor, with a digest of its device and inode: a number that the program closed and reused is recognised and left
/// alone.
#[derive(Clone, Copy, PartialEq)]
struct Kept {
    fd: i32,
    digest: u32,
}

impl Numbered for Kept {
    type Bits = u64;
    fn number(self) -> u64 {
        u64::from(self.digest) << 32 | u64::from(self.fd as u32)
    }
    fn numbered(number: u64) -> Kept {
        Kept { fd: number as i32, digest: (number >> 32) as u32 }
    }
}

pub(crate) struct Keep(Coded<Option<Kept>>);

fn digest(st: &Stat) -> u32 {
    (mix(st.ino ^ mix(st.dev)) >> 32) as u32
}

fn known(kept: Option<Kept>) -> Option<(i32, Stat)> {
    let Kept { fd, digest: before } = kept?;
    let st = os::fstat(fd).ok()?;
    (digest(&st) == before).then_some((fd, st))
}

impl Keep {
    pub const fn new() -> Keep {
        Keep(Coded::zero())
    }

    /// Takes the descriptor out, if one is there and is still what was put in. The caller owns it then:
    /// it puts it back or closes it.
    pub fn take(&self) -> Option<(i32, Stat)> {
        // A number alone orders nothing; Acquire pairs with the Release in `put` so that an instrumented
        // build sees the hand-over.
        known(self.0.swap(None, Ordering::Acquire))
    }

    /// The descriptor, left where it is; for one that is only replaced while nobody uses it.
    pub fn share(&self) -> Option<i32> {
        Some(known(self.0.load(Ordering::Acquire))?.0)
    }

    /// Puts `fd` in; if another thread was faster, closes it.
    pub fn put(&self, fd: i32, st: &Stat) {
        let kept = Kept { fd, digest: digest(st) };
        if self.0.compare_exchange(None, Some(kept), Ordering::Release, Ordering::Relaxed).is_err() {
            os::close(fd);
        }
    }

    /// Whether a descriptor could be put in now.
    pub fn is_empty(&self) -> bool {
        self.0.load(Ordering::Relaxed).is_none()
    }

    /// Closes what is kept.
    pub fn drop_kept(&self) {
        if let Some((fd, _)) = self.take() {
            os::close(fd);
        }
    }
}
