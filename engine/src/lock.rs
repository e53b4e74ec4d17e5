//! Locks that live inside one process (or one family), and are held briefly. While one is held the thread is *critical*:
//! signal handlers of the program are deferred (they could call us again), see `signals`.
#![forbid(unsafe_code)]

use crate::kernel::{K, Kernel as _};
use crate::tls::tls;
use crate::{members, signals};
use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release, SeqCst};
use core::sync::atomic::{AtomicU32, AtomicU64};
use shmring::owner::{self, LENT};

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

    /// Ends the section of a token that another process has taken.
    #[cold]
    pub fn is_taken(self) {
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
            while !contended(&self.0, None) {
                signals::critical_enter();
            }
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

    /// Takes a lock that processes share. If its owner, in another process, keeps it for `ns` nanoseconds (it may be stopped for
    /// good), the lock is taken from that owner: so it may protect only what two processes can change at the same time without
    /// harm. The caller holds another lock, which keeps this process's own threads from each other.
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
    let me = myself();
    let mine = lending(word, owner::tid(me));
    for l in &LENDING {
        let _ = l.compare_exchange(mine, 0, Release, Relaxed);
    }
    let _ = word.compare_exchange(me | LENT, owner::member(me), Release, Relaxed);
    free(word, owner::member(me));
}

fn free(word: &AtomicU64, to: u64) {
    let _ = word.compare_exchange(myself(), to, Release, Relaxed);
}

/// How long a token is left to an owner that has lent it, nanoseconds. One that runs goes on long before.
pub const GRACE_NS: u64 = 10_000_000;

/// How long a token is left to an owner in another process that lives, and has not lent it.
const PATIENCE_NS: u64 = 2_000_000_000;

/// Takes a token: the word goes on to name who held it last. `None`: its owner, a thread of another process, keeps it, since it
/// is stopped, perhaps for good. From one that has lent it, it is taken, and `taken` set before.
#[inline]
pub fn take<'a>(word: &'a AtomicU64, taken: Option<&AtomicU32>) -> Option<Held<'a>> {
    signals::critical_enter();
    let me = myself();
    let free = owner::member(me);
    if word.compare_exchange(free, me, Acquire, Relaxed).is_err() && !contended(word, taken) {
        return None;
    }
    Some(Held { word, free })
}

/// Takes a token that no other process can keep, since none holds the connection any more.
pub fn take_last(word: &AtomicU64) -> Held<'_> {
    loop {
        if let Some(held) = take(word, None) {
            return held;
        }
    }
}

/// Whether this thread has taken a token and not given it back.
pub fn is_mine(word: &AtomicU64) -> bool {
    // The same word of a thread that is in no section is that of one that was cancelled, whose number this one got.
    tls().critical.get() != 0 && word.load(Relaxed) == myself()
}

/// True with the token taken; false, and in no critical section for it, if another process keeps it.
#[cold]
fn contended(word: &AtomicU64, taken: Option<&AtomicU32>) -> bool {
    let me = myself();
    let mut tries = 0u32;
    let mut since = 0;
    loop {
        let held = word.load(Acquire);
        let free = owner::tid(held) == 0;
        let foreign = owner::member(held) != owner::member(me);
        let lending = foreign && is_lending(word);
        if free && !lending && word.compare_exchange(held, me, Acquire, Relaxed).is_ok() {
            return true;
        }
        tries += 1;
        if tries < 200 {
            core::hint::spin_loop();
            continue;
        }
        // Who died leaves at worst an unpublished record: what it guarded is consistent. A thread that is in no other
        // section does not hold it: its id is that of a thread that was cancelled, or its child of vfork was killed.
        let left = if held & !LENT == me { tls().critical.get() == 1 } else { members::owner_is_dead(held) };
        if !free && left && !lending && word.compare_exchange(held, me, Acquire, Relaxed).is_ok() {
            return true;
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
        if free || !foreign || word.load(Relaxed) != held {
            since = 0;
            continue;
        }
        let now = K::now();
        if since == 0 {
            since = now;
        }
        if now - since > GRACE_NS && !lending && seize(word, held, me, taken) {
            return true;
        }
        // With another lock or token held, which keeps others waiting and signals from being handled, not for long.
        if now - since > if alone { PATIENCE_NS } else { 2 * GRACE_NS } {
            signals::critical_leave();
            return false;
        }
    }
}

/// Takes a token from an owner that has lent it, for `me`; not from another one. `taken` is set before, if the owner may go on
/// to do what the next one must know of.
pub fn seize(word: &AtomicU64, held: u64, me: u64, taken: Option<&AtomicU32>) -> bool {
    if !owner::is_lent(held) || is_lending(word) {
        return false;
    }
    if let Some(taken) = taken {
        taken.store(1, SeqCst);
    }
    word.compare_exchange(held, me, AcqRel, Relaxed).is_ok()
}

/// What this process's threads do under tokens that they have lent, a word each: the token (the low half of its address, which
/// no two tokens of a family share) and the thread; 0: nothing. Who takes such a token for another thread of this process waits
/// for that: it may be a copy from or to a mapping of this process's, which the next owner could move or take away.
static LENDING: [AtomicU64; 64] = [const { AtomicU64::new(0) }; 64];

fn lending(word: &AtomicU64, tid: u32) -> u64 {
    (core::ptr::from_ref(word).addr() as u64) << 32 | u64::from(tid)
}

/// Whether another thread of this process does something under the token, whoever has that by now.
pub fn is_lending(word: &AtomicU64) -> bool {
    let me = owner::tid(myself());
    LENDING.iter().any(|l| {
        let w = l.load(Acquire);
        let tid = w as u32;
        // One that was cancelled asynchronously does nothing any more.
        w != 0
            && w == lending(word, tid)
            && tid != me
            && (K::has_thread(tid) || l.compare_exchange(w, 0, AcqRel, Relaxed).is_err())
    })
}

/// In the child of a fork: those threads are the parent's.
pub fn after_fork_child() {
    LENDING.iter().for_each(|l| l.store(0, Relaxed));
}

/// Runs `f` as a thread of another process, `other`, that has the same memory of the family.
#[cfg(test)]
pub fn run_as<T>(other: u64, f: impl FnOnce() -> T) -> T {
    let t = tls();
    let (owner, critical) = (t.owner.load(Relaxed), t.critical.get());
    let member = members::change(owner::member(other));
    let lent: Vec<u64> = LENDING.iter().map(|l| l.swap(0, Relaxed)).collect();
    t.owner.store(other, Relaxed);
    t.critical.set(0);
    let r = f();
    LENDING.iter().zip(lent).for_each(|(l, was)| l.store(was, Relaxed));
    members::change(member);
    t.owner.store(owner, Relaxed);
    t.critical.set(critical);
    r
}

/// A token that its owner, this thread, has lent.
#[must_use]
pub struct Lent<'a> {
    word: &'a AtomicU64,
    place: &'static AtomicU64,
}

/// This thread has not the token that it was to lend: another process has taken it, at an earlier time that it was lent.
pub struct Lost;

/// Lends a token that this thread has: until it is taken [back](Lent::back), other processes may take it. `None`: it stays as it
/// is, since it is lent already, or too many threads of this process do that.
#[cold]
pub fn lend(word: &AtomicU64) -> Result<Option<Lent<'_>>, Lost> {
    let me = myself();
    let mine = lending(word, owner::tid(me));
    let free = |l: &&AtomicU64| l.load(Relaxed) == 0 && l.compare_exchange(0, mine, AcqRel, Relaxed).is_ok();
    let Some(place) = LENDING.iter().find(free) else {
        return if word.load(Relaxed) & !LENT == me { Ok(None) } else { Err(Lost) };
    };
    match word.compare_exchange(me, me | LENT, AcqRel, Relaxed) {
        Ok(_) => Ok(Some(Lent { word, place })),
        Err(held) => {
            place.store(0, Release);
            if held == me | LENT { Ok(None) } else { Err(Lost) }
        }
    }
}

impl Lent<'_> {
    /// Takes it back. False: another process has it. Then this thread has no right to it any more.
    #[cold]
    pub fn back(self) -> bool {
        let me = myself();
        let back = self.word.compare_exchange(me | LENT, me, AcqRel, Relaxed).is_ok();
        self.place.store(0, Release);
        back
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
        if free && !is_lending(word) && word.compare_exchange(held, myself(), Acquire, Relaxed).is_ok() {
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

/// Waits until no other thread of this process owns a token, or does something under one that it has lent.
pub fn wait_for_own(word: &AtomicU64) {
    let owned = || {
        let held = word.load(Acquire);
        let ours = owner::tid(held) != 0 && owner::member(held) == members::myself();
        ours && held != myself() && !members::owner_is_dead(held) || is_lending(word)
    };
    while owned() {
        K::nap(50_000);
    }
}
