//! Locks that live inside one process (or one family), and are held briefly. While one is held the thread is *critical*:
//! signal handlers of the program are deferred (they could call us again), see `signals`.
#![forbid(unsafe_code)]

use crate::kernel::{K, Kernel as _};
use crate::tls::tls;
use crate::{members, signals};
use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};
use shmring::owner;

/// This thread as an owner (`shmring::owner`).
#[inline(always)]
pub fn myself() -> u64 {
    match tls().owner.load(Relaxed) {
        0 => become_owner(),
        me => me,
    }
}

#[cold]
fn become_owner() -> u64 {
    let t = tls();
    let me = members::myself() | u64::from(t.tid());
    t.owner.store(me, Relaxed);
    me
}

/// A lock word: 0, or its owner (`shmring::owner`).
pub struct Lock(AtomicU64);

/// Releases the lock when told to; no `Drop`, so that frames stay plain for thread cancellation.
#[must_use]
pub struct Held<'a> {
    word: &'a AtomicU64,
    /// What the word becomes.
    free: u64,
}

impl Held<'_> {
    /// Unlocks.
    #[inline]
    pub fn release(self) {
        self.word.store(self.free, Release);
        signals::critical_leave();
    }
}

impl Default for Lock {
    fn default() -> Lock {
        Lock::new()
    }
}

impl Lock {
    /// Unlocked.
    pub const fn new() -> Lock {
        Lock(AtomicU64::new(0))
    }

    /// Takes the lock; waits for its owner, who holds it briefly, and takes it over if the owner is dead.
    #[inline]
    pub fn lock(&self) -> Held<'_> {
        signals::critical_enter();
        if self.0.compare_exchange(0, myself(), Acquire, Relaxed).is_err() {
            contended(&self.0);
        }
        Held { word: &self.0, free: 0 }
    }

    /// Takes the lock unless somebody has it.
    pub fn try_lock(&self) -> Option<Held<'_>> {
        signals::critical_enter();
        if self.0.compare_exchange(0, myself(), SeqCst, Relaxed).is_ok() {
            return Some(Held { word: &self.0, free: 0 });
        }
        signals::critical_leave();
        None
    }

    /// Takes a lock in memory that processes share, and on which nothing depends that one of them could not bear: from an owner
    /// in another process that keeps it for `ns` nanoseconds, since it is stopped, perhaps for good, the lock is taken all the
    /// same. With another lock held that keeps this process's own threads from each other.
    #[inline]
    pub fn lock_among(&self, ns: u64) -> Among<'_> {
        if self.0.compare_exchange(0, myself(), Acquire, Relaxed).is_err() {
            wrest(&self.0, ns);
        }
        Among { word: &self.0 }
    }

    /// Whether somebody holds it. Ordered as `try_lock` is (`SeqCst`).
    pub fn is_held(&self) -> bool {
        self.0.load(SeqCst) != 0
    }

    /// Forgets an owner that did not survive `fork`.
    pub fn reset(&self) {
        self.0.store(0, Relaxed);
    }

    /// What each process has for itself.
    #[cfg(test)]
    pub fn words(&'static self, each: &mut dyn FnMut(crate::sim::process::Word)) {
        each((&self.0).into());
    }

    /// See [`free_after_vfork`].
    pub fn free_after_vfork(&self) {
        free(&self.0, 0);
    }
}

/// A lock taken by [`Lock::lock_among`].
#[must_use]
pub struct Among<'a> {
    word: &'a AtomicU64,
}

impl Among<'_> {
    /// Unlocks, unless another process has taken the lock meanwhile.
    #[inline]
    pub fn release(self) {
        free(self.word, 0);
    }
}

#[cold]
fn wrest(word: &AtomicU64, ns: u64) {
    let end = K::now() + ns;
    let mut tries = 0u32;
    loop {
        let held = word.load(Relaxed);
        tries += 1;
        let kept = held != 0 && tries > 200 && (members::owner_is_dead(held) || K::now() > end);
        if (held == 0 || kept) && word.compare_exchange(held, myself(), Acquire, Relaxed).is_ok() {
            return;
        }
        if tries < 200 {
            core::hint::spin_loop();
        } else {
            K::nap(if tries < 220 { 0 } else { 200_000 });
        }
    }
}

/// Frees a token from this thread's child of vfork, which ran as this thread, was killed while it held it, and is no more.
pub fn free_after_vfork(word: &AtomicU64) {
    free(word, owner::member(myself()));
}

fn free(word: &AtomicU64, to: u64) {
    let _ = word.compare_exchange(myself(), to, Release, Relaxed);
}

/// Takes a token: the word goes on to name who held it last.
#[inline]
pub fn take(word: &AtomicU64) -> Held<'_> {
    signals::critical_enter();
    let me = myself();
    let free = owner::member(me);
    if word.compare_exchange(free, me, Acquire, Relaxed).is_err() {
        contended(word);
    }
    Held { word, free }
}

/// Whether this thread has taken a token and not given it back.
pub fn is_mine(word: &AtomicU64) -> bool {
    // The same word of a thread that is in no section is that of one that was cancelled, whose number this one got.
    tls().critical.get() != 0 && word.load(Relaxed) == myself()
}

#[cold]
fn contended(word: &AtomicU64) {
    let me = myself();
    let mut tries = 0u32;
    loop {
        let held = word.load(Relaxed);
        let free = owner::tid(held) == 0;
        if free && word.compare_exchange(held, me, Acquire, Relaxed).is_ok() {
            return;
        }
        tries += 1;
        if tries < 200 {
            core::hint::spin_loop();
            continue;
        }
        // Who died leaves at worst an unpublished record: what it guarded is consistent. A thread that is in no other
        // section does not hold it: its id is that of a thread that was cancelled, or its child of vfork was killed.
        let left = if held == me { tls().critical.get() == 1 } else { members::owner_is_dead(held) };
        if !free && left && word.compare_exchange(held, me, Acquire, Relaxed).is_ok() {
            return;
        }
        // Its owner may be stopped: signals are not put off for as long as that, unless this thread holds another lock.
        let alone = tls().critical.get() == 1;
        if alone {
            signals::critical_leave();
        }
        K::nap(if tries < 220 { 0 } else { 200_000 });
        if alone {
            signals::critical_enter();
        }
    }
}

/// Takes a token, to give it back with [`signals::critical_leave`] and whatever the word is to be then. False, after so many
/// nanoseconds: another process has it, and keeps it. One of this process's threads gives it back.
pub fn take_within(word: &AtomicU64, ns: u64) -> bool {
    let end = K::now() + ns;
    loop {
        let held = word.load(Relaxed);
        let free = owner::tid(held) == 0 || members::owner_is_dead(held);
        signals::critical_enter();
        if free && word.compare_exchange(held, myself(), Acquire, Relaxed).is_ok() {
            return true;
        }
        signals::critical_leave();
        let foreign = owner::member(held) != members::myself();
        if !free && foreign && K::now() > end {
            return false;
        }
        K::nap(20_000);
    }
}

/// Waits until no other thread of this process owns a token.
pub fn wait_for_own(word: &AtomicU64) {
    let owned = || {
        let held = word.load(Acquire);
        let ours = owner::tid(held) != 0 && owner::member(held) == members::myself();
        ours && held != myself() && !members::owner_is_dead(held)
    };
    while owned() {
        K::nap(50_000);
    }
}
