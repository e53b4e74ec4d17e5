//! The family's memory and the endpoints in it. See `shmring::family` for what it holds.
// Unsafe here: the family's memory is laid out and referred to here.
#![allow(unsafe_code)]

use crate::endpoint::Ep;
use crate::kernel::{K, Kernel as _};
use crate::lock::Lock;
use crate::members::{BASE, FD, header, my_place};
use crate::tls::tls;
use crate::{config, members, peer};
use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release, SeqCst};
use core::sync::atomic::{AtomicBool, AtomicU32};
use shmring::family::{
    ENDPOINTS, FAMILY_LEN, FamilyHeader, JOURNAL_AT, LEAKED, MAGIC, Member, Reason, SHARED, State, VERSION,
};
use shmring::journal::Journal;
use shmring::layout::Role;
use shmring::word::Coded;

/// The family's journal.
#[inline(always)]
pub fn journal() -> Option<&'static Journal> {
    let base = BASE.load(Relaxed);
    // SAFETY: within the family's memory, mapped for the life of the process once set; all atomics.
    (!base.is_null()).then(|| unsafe { &*base.add(JOURNAL_AT).cast() })
}

/// Whether anybody of the family has had a channel.
#[inline]
pub fn has_channels() -> bool {
    header().is_some_and(|h| h.channels.load(Relaxed) != 0)
}

/// Connections that this process has begun to hold, modulo 2^32.
static ALLOCATED: AtomicU32 = AtomicU32::new(0);

/// See [`ALLOCATED`].
pub fn allocated() -> u32 {
    ALLOCATED.load(Acquire)
}

/// The records of the last 16 of them: that of number `n` in place `n % 16`.
static RECENT: [AtomicU32; 16] = [const { AtomicU32::new(0) }; 16];

/// The connections that this process has begun to hold since [`allocated`] was `since`: the last 16 of them, if there are
/// more.
pub fn recent(since: u32) -> impl Iterator<Item = Ep> {
    let now = allocated();
    let n = now.wrapping_sub(since).min(RECENT.len() as u32);
    let at = move |back: u32| RECENT[now.wrapping_sub(back) as usize % RECENT.len()].load(Relaxed);
    (1..=n).map(move |back| Ep::from_index(at(back))).filter(|e| e.local().refs.load(Relaxed) > 0)
}

static MAKING: Lock = Lock::new();
/// The family's memory is there, and the registry is open, or known not to be.
static MADE: AtomicBool = AtomicBool::new(false);
static FAILED: AtomicU32 = AtomicU32::new(0);

/// Makes the family's memory and opens the registry, once, when the process first makes a TCP socket: a
/// program without one does not even find descriptors of ours when it lists its own.
pub fn ensure() -> bool {
    // Not before the registry is open: a thread that connects meanwhile would find that nobody serves the network namespace, and all
    // others would believe it for a while.
    if MADE.load(Acquire) {
        return true;
    }
    if FAILED.load(Relaxed) != 0 {
        return false;
    }
    let held = MAKING.lock();
    if !exists() {
        if init() {
            if !peer::open() {
                disable(Reason::NoRegistry);
            }
        } else {
            FAILED.store(1, Relaxed);
            crate::log!(
                Warn,
                "no shared memory (memfd_create), or too few descriptors (ulimit -n); everything stays on the kernel"
            );
        }
    }
    MADE.store(exists(), Release);
    held.release();
    exists()
}

pub(crate) fn init() -> bool {
    if crate::own::are_few() || !crate::own::may_size(FAMILY_LEN) {
        return false;
    }
    let Some(fd) = K::memory_file(c"culvert-family", FAMILY_LEN) else { return false };
    // Nobody, not even a peer of the same user that opens it through /proc, can shrink it under us.
    K::seal(fd, libc::F_SEAL_SHRINK | libc::F_SEAL_GROW);
    let Some(base) = K::map(fd, 0, FAMILY_LEN) else {
        K::close(fd);
        return false;
    };
    let h = base.cast::<FamilyHeader>();
    // Field by field, into zeros: the padding of a whole struct would be what happens to lie on our stack.
    // SAFETY: the first page is ours alone so far.
    unsafe {
        (*h).magic = MAGIC;
        (*h).version = VERSION;
        (*h).pid = K::pid();
        (*h).path.store(config::path(), Relaxed);
        (*h).members[0].store(members::first(K::pid()).0, Relaxed);
    }
    FD.store(fd, Relaxed);
    // Without the descriptor, or the lock, nobody could tell whether this process lives.
    if !crate::own::adopt(&FD) || !members::found() {
        crate::own::discard(&FD);
        // SAFETY: the mapping made above, to which nobody refers.
        unsafe { K::unmap(base, FAMILY_LEN) };
        return false;
    }
    BASE.store(base, Release);
    true
}

/// Whether there is a family.
#[inline]
pub fn exists() -> bool {
    !BASE.load(Relaxed).is_null()
}

/// Notes for `culvert stat` why nothing new is accelerated.
pub fn disable(why: Reason) {
    if let Some(h) = header() {
        h.disabled.store(why as u32, Relaxed);
    }
}

/// Notes a system-call filter. The rest of the family, such as the server whose sandboxed child this is, goes on.
pub fn filtered() {
    members::filtered();
    disable_alone(Reason::Seccomp);
}

/// Notes why this process attaches nothing any more, which its parent and its siblings may.
pub fn disable_alone(why: Reason) {
    if header().is_some_and(|h| h.pid == K::pid()) {
        disable(why);
    }
}

/// This process is about to end, and has been told so; it may do more before it does.
static LEAVING: AtomicBool = AtomicBool::new(false);

/// See `LEAVING`.
pub fn begin_leaving() {
    LEAVING.store(true, Relaxed);
}

/// See `LEAVING`.
#[inline(always)]
pub fn is_leaving() -> bool {
    LEAVING.load(Relaxed)
}

/// This process moves to another family: no record is begun, and nothing attached, meanwhile.
static MOVING: AtomicBool = AtomicBool::new(false);
/// Threads that begin a record.
static BEGINNING: AtomicU32 = AtomicU32::new(0);

/// Until [`go_on`] no thread begins a record.
pub fn stand_still() {
    // Either the thread that begins one sees this (`alloc`), or its count is seen here.
    MOVING.store(true, SeqCst);
    while BEGINNING.load(SeqCst) != 0 {
        K::yield_cpu();
    }
}

/// See [`stand_still`].
pub fn go_on() {
    UNPLACED.store(0, Relaxed);
    CHILD.store(None, Relaxed);
    MOVING.store(false, SeqCst);
}

/// Whether nothing new is accelerated.
pub fn disabled() -> bool {
    members::is_filtered()
        || is_leaving()
        || MOVING.load(Relaxed)
        || header().is_none_or(|h| h.disabled.load(Relaxed) != 0)
}

/// Whether calls that do not pass here may use any descriptor.
pub fn is_bypassed() -> bool {
    header().is_some_and(|h| h.disabled.load(Relaxed) == Reason::Namespace as u32)
}

/// Whether `culvert kernel` has asked this family to bring its connections back to the kernel. Looked at by each call on a
/// ring: a word that nobody writes.
#[inline(always)]
pub fn is_recalled() -> bool {
    header().is_some_and(|h| h.disabled.load(Relaxed) == Reason::Recalled as u32)
}

/// Whether `ep`, which is to be brought back for a reason, has yet to be.
pub fn is_due(ep: Ep, why: Reason) -> bool {
    ep.reason.load(Relaxed) != why as u32 && tls().vfork.get() == 0
}

/// Counts a channel.
pub fn count_channel() {
    if let Some(h) = header() {
        h.channels.fetch_add(1, Relaxed);
    }
}

/// The place kept for the child that is being forked.
static CHILD: Coded<Option<u32>> = Coded::zero();
/// A child was forked for which there was no place: this process is not alone while that child may live.
static UNPLACED: AtomicU32 = AtomicU32::new(0);

/// Whether this process takes part.
pub fn member() -> bool {
    my_place().is_some()
}

/// Keeps a place for a child about to be forked. False: the family is full, and the child will have no part in it.
pub fn keep_place() -> bool {
    CHILD.store(None, Relaxed);
    if !exists() {
        return true;
    }
    let place = members::keep_place().or_else(|| {
        reap();
        members::keep_place()
    });
    CHILD.store(place.map(|p| p as u32), Relaxed);
    if place.is_none() {
        UNPLACED.store(1, Relaxed);
    }
    place.is_some()
}

fn child() -> Option<usize> {
    CHILD.load(Relaxed).map(|p| p as usize)
}

/// This process has looked at bytes of a connection where they lie.
static LOOKS: AtomicBool = AtomicBool::new(false);

/// It looks at those of `ep`.
pub fn looks_at(ep: Ep) {
    // In this order: a fork that happens meanwhile finds one of the two (`before_fork`).
    if !LOOKS.load(Relaxed) {
        LOOKS.swap(true, SeqCst);
    }
    if ep.handed.load(Acquire) & SHARED != 0 {
        note_looks();
    }
}

fn note_looks() {
    if let Some(h) = header() {
        h.looked.store(1, Relaxed);
    }
}

/// Whether a process of the family may look at what this one holds.
pub fn may_look() -> bool {
    header().is_some_and(|h| h.looked.load(Relaxed) != 0)
}

/// Lets the child about to be forked hold what this process holds.
pub fn before_fork() {
    for ep in held() {
        if ep.state() == State::Attached {
            ep.handed.fetch_or(SHARED, SeqCst);
        }
        match child() {
            Some(p) => {
                ep.holders.add(p);
            }
            // An unknown holder: the connection can never be anybody's alone again.
            None => {
                ep.custody.fetch_or(LEAKED, Relaxed);
                ep.pin(Reason::Shared);
            }
        }
    }
    if LOOKS.load(SeqCst) {
        note_looks();
    }
}

/// In the parent, after the fork or the attempt.
pub fn after_fork_parent() {
    members::after_fork_parent(clear);
}

/// In the child: takes the place.
pub fn after_fork_child() {
    LEAVING.store(false, Relaxed);
    crate::lock::after_fork_child();
    MAKING.reset();
    crate::lifeline::INLINE.reset();
    MOVING.store(false, Relaxed);
    BEGINNING.store(0, Relaxed);
    if exists() {
        members::after_fork_child(child());
    }
}

/// Whether no other process of the family is noted as a holder of `ep`. One that was killed may be noted still.
pub fn noted_alone(ep: Ep) -> bool {
    // None is this process, which has given it up and ends it.
    ep.holders.count() <= 1
}

/// Whether this process is the only one of the family that holds `ep`.
pub fn sole_holder(ep: Ep) -> bool {
    noted_alone(ep) || {
        reap_holders(ep);
        noted_alone(ep)
    }
}

/// Gives up what holders of `ep` held that died without saying so.
fn reap_holders(ep: Ep) {
    members::reap(|m| ep.holders.knows(m), clear);
}

/// Whether no process of the family holds `ep` any more as it was in that life, nor is about to be done with it.
pub fn is_over(ep: Ep, life: u32) -> bool {
    if ep.life().wrapping_sub(life) <= 1 && ep.state() != State::Free {
        reap_holders(ep);
    }
    // The last holder has begun the record's next life (`Holders::give_up`); after that it ends the connection and frees the
    // record.
    match ep.life().wrapping_sub(life) {
        0 => false,
        1 => ep.state() == State::Free,
        _ => true,
    }
}

/// Whether no other process of the family lives that could share what a fork shares.
pub fn alone() -> bool {
    if !exists() || !member() || UNPLACED.load(Relaxed) != 0 {
        // Without a place among the members this process's own forks are not known.
        return false;
    }
    members::stillborn(clear);
    !members::others_live()
}

/// Whether the process of a member's word ([`shmring::owner::member`]) uses what it has of `ep`: this one does, until it says otherwise.
pub fn uses(member: u64, ep: Ep) -> bool {
    // Of itself a process does not learn that it lives: it sees no lock of its own.
    member == members::myself() || holds(member, ep)
}

/// Whether the member that an owner word names lives and holds `ep`.
pub fn holds(word: u64, ep: Ep) -> bool {
    shmring::owner::place(word).is_some_and(|(place, _)| ep.holders.has(place)) && !members::owner_is_dead(word)
}

/// This process holds `ep` no longer. True if nobody in the family does: the caller ends it, and frees it.
pub fn give_up(ep: Ep) -> bool {
    my_place().is_some_and(|me| ep.holders.give_up(&ep.life, me))
}

/// Gives up what members held that died without saying so.
fn reap() {
    members::reap(|_| true, clear);
}

/// Gives up what the member in place `m` held, which has died.
fn clear(m: usize) {
    let Some(h) = header() else { return };
    for ep in (0..h.high.load(Acquire).min(ENDPOINTS as u32)).map(Ep::from_index) {
        if ep.state() == State::Free {
            continue;
        }
        if ep.holders.give_up(&ep.life, m) {
            free(ep);
        } else {
            ep.holders.forget(m);
        }
    }
}

/// A fresh endpoint held by this process through one descriptor, or `None` when the table is full.
pub fn alloc(fd: i32, state: State, role: Option<Role>) -> Option<Ep> {
    BEGINNING.fetch_add(1, SeqCst);
    let ep = if MOVING.load(SeqCst) { None } else { begin(fd, state, role) };
    BEGINNING.fetch_sub(1, Release);
    ep
}

fn begin(fd: i32, state: State, role: Option<Role>) -> Option<Ep> {
    let (h, me) = (header()?, my_place()?);
    let mut reaped = false;
    let ep = loop {
        let free = h.free.load(Acquire);
        let Some(i) = free.first else {
            let n = h.high.load(Relaxed);
            if n as usize >= ENDPOINTS {
                if reaped {
                    return None;
                }
                reaped = true;
                reap();
                continue;
            }
            if h.high.compare_exchange(n, n + 1, AcqRel, Relaxed).is_ok() {
                break Ep::from_index(n);
            }
            continue;
        };
        let ep = Ep::from_index(i);
        let next = free.then(ep.next_free.load(Relaxed));
        if h.free.compare_exchange(free, next, AcqRel, Relaxed).is_ok() {
            break ep;
        }
    };
    // In this order: a process that still clears up after a dead member of the life before sees that this member is no holder in
    // the new life.
    ep.holders.begin(me);
    ep.life.store(ep.life.load(Relaxed).next(), Release);
    ep.begin();
    ep.role.store(role, Relaxed);
    ep.pid.store(Member(h.members[me].load(Relaxed)).pid().unwrap_or(0), Relaxed);
    ep.fd.store(fd as u32, Relaxed);
    ep.because(Reason::Young);
    let l = ep.local();
    l.refs.store(1, Relaxed);
    l.chan.store(None, Relaxed);
    l.watches.store(None, Relaxed);
    l.passed.store(None, Relaxed);
    l.stage.store(0, Relaxed);
    l.offered.store(None, Relaxed);
    l.kept.store(None, Relaxed);
    l.inherited.store(0, Relaxed);
    l.alone.store(0, Relaxed);
    l.lingers.store(0, Relaxed);
    l.asked.store(0, Relaxed);
    l.answers.store(0, Relaxed);
    l.peer_cookie.store(0, Relaxed);
    l.stands_in.store(0, Relaxed);
    l.fd.store(fd, Relaxed);
    ep.state.store(state as u32, Release);
    // Two threads that allocate at the same time may write the same place: one of the two records is then found only by
    // those who look at all.
    RECENT[ALLOCATED.load(Relaxed) as usize % RECENT.len()].store(ep.index(), Relaxed);
    ALLOCATED.fetch_add(1, Release);
    Some(ep)
}

/// Gives an endpoint back. Nobody in the family holds it any more.
pub fn free(ep: Ep) {
    let Some(h) = header() else { return };
    // From here on whoever clears up after this process leaves the record alone. Who held it is noted until it is used again.
    ep.state.store(State::Free as u32, Release);
    loop {
        let free = h.free.load(Acquire);
        ep.next_free.store(free.first, Relaxed);
        let new = free.then(Some(ep.index()));
        if h.free.compare_exchange(free, new, AcqRel, Relaxed).is_ok() {
            return;
        }
    }
}

/// Every endpoint that this process holds.
pub fn held() -> impl Iterator<Item = Ep> {
    let n = header().map_or(0, |h| h.high.load(Acquire)).min(ENDPOINTS as u32);
    (0..n).map(Ep::from_index).filter(|e| e.local().refs.load(Relaxed) > 0)
}

/// What each process has for itself.
#[cfg(test)]
pub fn words(each: &mut dyn FnMut(crate::sim::process::Word)) {
    each((&CHILD).into());
    each((&UNPLACED).into());
    each((&LEAVING).into());
    each((&LOOKS).into());
}
