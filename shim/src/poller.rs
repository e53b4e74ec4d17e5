//! Pollers: things that wait. A thread in a blocking call is one, and so is an epoll set.
//!
//! A poller owns a doorbell (an eventfd) that the peers of its connections ring. Pollers are numbered; the number is
//! the bit by which peers know it. A process that runs out of pollers or descriptors sleeps in short bounded steps
//! instead.

use crate::channel::Chan;
use crate::own;
use core::sync::atomic::Ordering::{AcqRel, Relaxed};
use core::sync::atomic::{AtomicI32, AtomicU32};
use shmring::layout::{DOZING, POLLERS};
use shmring::lnx;

struct Poller {
    bell: AtomicI32,
    used: AtomicU32,
    generation: AtomicU32,
}

static TABLE: [Poller; POLLERS] =
    [const { Poller { bell: AtomicI32::new(-1), used: AtomicU32::new(0), generation: AtomicU32::new(0) } }; POLLERS];

/// Longest step of a bounded sleep, nanoseconds.
pub const STEP: u64 = 5_000_000;

/// Takes a poller with a doorbell: the one this thread had last, which its peers know; else one that has a
/// doorbell; else a new one.
pub fn acquire() -> Option<usize> {
    let take = |i: usize| TABLE[i].used.compare_exchange(0, 1, AcqRel, Relaxed).is_ok();
    let last = crate::tls::tls().habits.poller.get() as usize;
    let p = last
        .checked_sub(1)
        .filter(|&i| i < POLLERS && take(i))
        .or_else(|| (0..POLLERS).find(|&i| TABLE[i].bell.load(Relaxed) >= 0 && take(i)))
        .or_else(|| (0..POLLERS).find(|&i| take(i)))?;
    crate::tls::tls().habits.poller.set(p as u32 + 1);
    if TABLE[p].bell.load(Relaxed) < 0 {
        let fd = lnx::eventfd();
        TABLE[p].bell.store(fd, Relaxed);
        if fd < 0 || !own::adopt(&TABLE[p].bell) {
            TABLE[p].bell.store(-1, Relaxed);
            release(p);
            return None;
        }
    }
    Some(p)
}

/// Gives a poller back; its doorbell is kept for the next.
pub fn release(p: usize) {
    TABLE[p].used.store(0, Relaxed);
}

/// A poller's doorbell.
pub fn bell(p: usize) -> i32 {
    TABLE[p].bell.load(Relaxed)
}

/// Pollers that have a doorbell, as a mask, with their descriptors in order.
pub fn bells(out: &mut [i32; POLLERS]) -> (u64, usize) {
    let (mut mask, mut n) = (0, 0);
    for (i, p) in TABLE.iter().enumerate() {
        let fd = p.bell.load(Relaxed);
        if fd >= 0 {
            out[n] = fd;
            n += 1;
            mask |= 1 << i;
        }
    }
    (mask, n)
}

/// The child of a fork shares its parent's doorbells: it must have its own.
pub fn after_fork_child() {
    for p in &TABLE {
        own::discard(&p.bell);
        p.used.store(0, Relaxed);
    }
}

/// A new sleep generation of a poller; never 0.
pub fn generation(p: usize) -> u32 {
    (TABLE[p].generation.fetch_add(1, Relaxed).wrapping_add(1) & !DOZING).max(1)
}

/// Empties a doorbell that was heard.
pub fn drain(p: usize) {
    lnx::read(bell(p), &mut [0; 8]);
}

/// Rings one of our own doorbells, if there is one.
pub fn ring_own(p: usize) {
    let fd = bell(p);
    if fd >= 0 {
        lnx::write(fd, &1u64.to_ne_bytes());
    }
}

/// Rings all our own doorbells.
pub fn ring_all() {
    (0..POLLERS).for_each(ring_own);
}

/// Asks for notifications about `slot` to poller `p`.
pub fn watch_slot(chan: &Chan, slot: usize, p: usize) {
    let mine = &chan.slot(slot).side[chan.role() as usize].pollers;
    if mine.load(Relaxed) & (1 << p) == 0 {
        mine.fetch_or(1 << p, AcqRel);
    }
}
