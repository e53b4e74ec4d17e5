//! Locks that live inside one process (or one family) and are held for a few hundred nanoseconds, never
//! across a sleep. While one is held the thread is *critical*: signal handlers of the program are deferred
//! (they could call us again), see `signals`.

use crate::signals;
use crate::tls::tls;
use core::sync::atomic::AtomicU32;
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};
use shmring::{sys, syscall};

/// A lock word: 0, or the owner's thread id.
pub struct Lock(pub AtomicU32);

/// Releases the lock when told to; no `Drop`, so that frames stay plain for thread cancellation.
#[must_use]
pub struct Held<'a>(&'a AtomicU32);

impl Held<'_> {
    /// Unlocks.
    #[inline]
    pub fn release(self) {
        self.0.store(0, Release);
        signals::critical_leave();
    }
}

impl Lock {
    /// Unlocked.
    pub const fn new() -> Lock {
        Lock(AtomicU32::new(0))
    }

    /// Takes the lock; waits for its owner, who holds it briefly, and takes it over if the owner is dead.
    #[inline]
    pub fn lock(&self) -> Held<'_> {
        take(&self.0)
    }

    /// Takes the lock unless somebody has it.
    pub fn try_lock(&self) -> Option<Held<'_>> {
        signals::critical_enter();
        if self.0.compare_exchange(0, tls().tid(), SeqCst, Relaxed).is_ok() {
            return Some(Held(&self.0));
        }
        signals::critical_leave();
        None
    }

    /// Whether somebody holds it. Ordered as `try_lock` is (`SeqCst`).
    pub fn is_held(&self) -> bool {
        self.0.load(SeqCst) != 0
    }

    /// Forgets an owner that did not survive `fork`.
    pub fn reset(&self) {
        self.0.store(0, Relaxed);
    }
}

/// Takes a lock word, wherever it lies.
#[inline]
pub fn take(word: &AtomicU32) -> Held<'_> {
    signals::critical_enter();
    if word.compare_exchange(0, tls().tid(), Acquire, Relaxed).is_err() {
        contended(word);
    }
    Held(word)
}

#[cold]
fn contended(word: &AtomicU32) {
    let me = tls().tid();
    let mut tries = 0u32;
    loop {
        let owner = word.load(Relaxed);
        if owner == 0 && word.compare_exchange(0, me, Acquire, Relaxed).is_ok() {
            return;
        }
        tries += 1;
        if tries < 200 {
            core::hint::spin_loop();
            continue;
        }
        // An owner that was killed leaves at worst an unpublished record: what it guarded is consistent.
        // Our own id can only be a left-over of a thread whose id was reused.
        if owner != 0 && (owner == me || dead(owner)) && word.compare_exchange(owner, me, Acquire, Relaxed).is_ok() {
            return;
        }
        nap(if tries < 220 { 0 } else { 200_000 });
    }
}

/// Waits until no other thread of this process owns a lock word.
pub fn wait_for_own(word: &AtomicU32) {
    let owned = || {
        let owner = word.load(Acquire);
        // SAFETY: signal 0 only asks.
        owner != 0 && owner != tls().tid() && unsafe { syscall!(libc::SYS_tgkill, sys::getpid(), owner, 0) } == 0
    };
    while owned() {
        nap(50_000);
    }
}

pub fn dead(tid: u32) -> bool {
    // SAFETY: signal 0 only asks.
    unsafe { syscall!(libc::SYS_kill, tid, 0) == -libc::ESRCH as isize }
}

fn nap(ns: i64) {
    let t = libc::timespec { tv_sec: 0, tv_nsec: ns };
    // SAFETY: a valid timespec.
    unsafe { syscall!(libc::SYS_nanosleep, &raw const t, 0) };
}
