//! Pollers: things that wait. A thread in a blocking call is one, and so is an epoll set.
//!
//! A poller owns a doorbell that the peers of its connections ring (`rendezvous::bell`). Pollers are numbered; the number is
//! the bit by which peers know it, and the place in the shared memory where they find what to ring. A process that runs out
//! of pollers or descriptors sleeps in short bounded steps instead.
#![forbid(unsafe_code)]

use crate::channel::Chan;
use crate::own;
use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use core::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, AtomicU64, fence};
use rendezvous::bell;
use shmring::layout::{DOZING, POLLERS};
use shmring::ring::{self, About};
use shmring::sys;

struct Poller {
    bell: AtomicI32,
    /// What rings it.
    name: AtomicU64,
    key: AtomicU64,
    used: AtomicU32,
    generation: AtomicU32,
}

static ALL: [Poller; POLLERS] = [const {
    Poller {
        bell: AtomicI32::new(-1),
        name: AtomicU64::new(0),
        key: AtomicU64::new(0),
        used: AtomicU32::new(0),
        generation: AtomicU32::new(0),
    }
}; POLLERS];

/// The socket that rings. A forked child uses its parent's.
static RINGER: AtomicI32 = AtomicI32::new(-1);

/// Makes sure that this process can ring. False: it cannot.
pub fn can_ring() -> bool {
    if RINGER.load(Relaxed) < 0
        && let Ok(fd) = bell::ringer(own::place)
        && RINGER.compare_exchange(-1, fd, AcqRel, Relaxed).is_err()
    {
        sys::close(fd);
    }
    RINGER.load(Relaxed) >= 0
}

/// Rings a doorbell, our own or another process's. False: nobody can have heard it.
fn ring(name: u64, key: u64) -> bool {
    !SILENT.load(Relaxed) && bell::ring(RINGER.load(Relaxed), name, key).is_ok()
}

/// This process has gone to the kernel, and may make no call any more that is not its own.
static SILENT: AtomicBool = AtomicBool::new(false);

/// Rings nobody from now on: a system-call filter may kill us for it.
pub fn silence() {
    SILENT.store(true, Relaxed);
}

/// Longest step of a bounded sleep, nanoseconds.
pub const STEP: u64 = 5_000_000;

/// Takes a poller with a doorbell: the one this thread had last, which its peers know; else one that has a
/// doorbell; else a new one.
pub fn acquire() -> Option<usize> {
    let take = |i: usize| ALL[i].used.compare_exchange(0, 1, AcqRel, Relaxed).is_ok();
    let last = crate::tls::tls().habits.poller.get() as usize;
    let p = last
        .checked_sub(1)
        .filter(|&i| i < POLLERS && take(i))
        .or_else(|| (0..POLLERS).find(|&i| ALL[i].bell.load(Relaxed) >= 0 && take(i)))
        .or_else(|| (0..POLLERS).find(|&i| take(i)))?;
    crate::tls::tls().habits.poller.set(p as u32 + 1);
    if ALL[p].bell.load(Relaxed) < 0 && !hang_bell(p) {
        release(p);
        return None;
    }
    Some(p)
}

fn hang_bell(p: usize) -> bool {
    if !can_ring() {
        return false;
    }
    let Ok(b) = bell::open(|fd| fd) else { return false };
    let t = &ALL[p];
    t.name.store(b.name, Relaxed);
    t.key.store(b.key, Relaxed);
    // A thread in another network namespace than the ringer's would hang it where nobody finds it.
    let heard = ring(b.name, b.key);
    bell::drain(b.fd);
    t.bell.store(b.fd, Relaxed);
    if !heard {
        sys::close(t.bell.swap(-1, Relaxed));
    }
    heard && own::adopt(&t.bell)
}

/// Gives a poller back; its doorbell is kept for the next.
pub fn release(p: usize) {
    ALL[p].used.store(0, Relaxed);
}

/// A poller's doorbell.
pub fn bell(p: usize) -> i32 {
    ALL[p].bell.load(Relaxed)
}

/// The child of a fork shares its parent's doorbells: it must have its own.
pub fn after_fork_child() {
    for p in &ALL {
        own::discard(&p.bell);
        p.used.store(0, Relaxed);
    }
}

/// A new sleep generation of a poller; never 0.
pub fn generation(p: usize) -> u32 {
    (ALL[p].generation.fetch_add(1, Relaxed).wrapping_add(1) & !DOZING).max(1)
}

/// Empties a doorbell that was heard.
pub fn drain(p: usize) {
    bell::drain(bell(p));
}

/// Rings one of our own doorbells, if there is one.
pub fn ring_own(p: usize) {
    let t = &ALL[p];
    if t.bell.load(Relaxed) >= 0 {
        ring(t.name.load(Relaxed), t.key.load(Relaxed));
    }
}

/// Rings the doorbell of poller `p` of the other side of `chan`, as that side says. Before the poller was armed, it said so.
pub fn ring_peer(chan: &Chan, p: usize) {
    // B: pairs with the fence in `tell`; the poller is known to be armed.
    fence(Acquire);
    let q = &chan.queues(chan.role().peer())[p];
    let name = q.bell.load(Relaxed);
    if name != 0 {
        ring(name, q.key.load(Relaxed));
    }
}

/// Tells the other side of `chan` what rings poller `p`. Call before the poller is armed there.
#[inline]
pub fn tell(chan: &Chan, p: usize) {
    let (t, q) = (&ALL[p], &chan.queues(chan.role())[p]);
    let (name, key) = (t.name.load(Relaxed), t.key.load(Relaxed));
    if q.bell.load(Relaxed) != name || q.key.load(Relaxed) != key {
        q.bell.store(name, Relaxed);
        q.key.store(key, Relaxed);
        // B
        fence(Release);
    }
}

/// Asks the peer to tell poller `p` of news of the connection in `slot`.
pub fn watch_slot(chan: &Chan, slot: usize, p: usize) {
    let mine = &chan.slot(slot).side[chan.role() as usize].pollers;
    if mine.load(Relaxed) & (1 << p) == 0 {
        mine.fetch_or(1 << p, AcqRel);
    }
}

/// Poller `p` was told of news of connections of `chan`. Those for which `wanted` says no were asked for by whoever had the
/// number before: their peers do not tell it any more. To be called by whoever has the number.
pub fn disclaim(chan: &Chan, p: usize, wanted: impl Fn(usize) -> bool) {
    let q = &chan.queues(chan.role())[p];
    for about in [About::Stream, About::Aside] {
        let mut bits = ring::marks(q, about);
        while bits != 0 {
            let slot = bits.trailing_zeros() as usize;
            bits &= bits - 1;
            if !wanted(slot) {
                chan.slot(slot).side[chan.role() as usize].pollers.fetch_and(!(1 << p), AcqRel);
                ring::take(q, about, 1 << slot);
            }
        }
    }
}
