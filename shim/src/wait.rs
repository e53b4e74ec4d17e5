//! Waiting: spin while that has been paying off, then arm, look again, and sleep in one system call over
//! the kernel descriptors and a doorbell (`sleep`, `poll`, `epoll`).
//!
//! A *poller* is a thing that waits: a thread in a blocking call, or an epoll set. It owns a doorbell (an
//! eventfd) that the peers of its connections ring. Pollers are numbered; the number is the bit by which
//! peers know it. A process that runs out of pollers or descriptors sleeps in short bounded steps instead.

use crate::channel::Chan;
use crate::family::Ep;
use crate::{attach, config, fds};
use core::sync::atomic::Ordering::{AcqRel, Relaxed, SeqCst};
use core::sync::atomic::{AtomicI32, AtomicU32, AtomicU64, AtomicUsize};
use shmring::layout::{DOZING, POLLERS};
use shmring::{sys, syscall};

struct Poller {
    bell: AtomicI32,
    used: AtomicU32,
    generation: AtomicU32,
}

static TABLE: [Poller; POLLERS] =
    [const { Poller { bell: AtomicI32::new(-1), used: AtomicU32::new(0), generation: AtomicU32::new(0) } }; POLLERS];

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
        // SAFETY: creates a descriptor.
        let fd = unsafe { syscall!(libc::SYS_eventfd2, 0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) } as i32;
        TABLE[p].bell.store(fd, Relaxed);
        if fd < 0 || !fds::adopt(&TABLE[p].bell) {
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
        fds::discard(&p.bell);
        p.used.store(0, Relaxed);
    }
    for s in &SLEEPERS {
        s.tid.store(0, Relaxed);
        s.ep.store(0, Relaxed);
    }
}

/// A new sleep generation of a poller; never 0.
pub fn generation(p: usize) -> u32 {
    (TABLE[p].generation.fetch_add(1, Relaxed).wrapping_add(1) & !DOZING).max(1)
}

/// Empties a doorbell that was heard.
pub fn drain(p: usize) {
    let mut n = 0u64;
    // SAFETY: reads 8 bytes into a local; non-blocking.
    unsafe { syscall!(libc::SYS_read, bell(p), &raw mut n, 8) };
}

/// Rings one of our own doorbells, if there is one.
pub fn ring_own(p: usize) {
    let fd = bell(p);
    if fd >= 0 {
        let one = 1u64;
        // SAFETY: writes 8 bytes from a local; non-blocking.
        unsafe { syscall!(libc::SYS_write, fd, &raw const one, 8) };
    }
}

/// Rings all our own doorbells.
pub fn ring_all() {
    (0..POLLERS).for_each(ring_own);
}

/// Monotonic time, nanoseconds.
pub fn now() -> u64 {
    let mut t = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes one timespec; served by the vDSO.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut t) };
    t.tv_sec as u64 * 1_000_000_000 + t.tv_nsec as u64
}

// --- spinning

static CPUS: AtomicU32 = AtomicU32::new(1);
static START: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];
static CYCLES_PER_US: AtomicU64 = AtomicU64::new(0);
/// How spinning has been paying off, 0..=SCORE_MAX, and waits until it is tried again.
static SCORE: AtomicU32 = AtomicU32::new(SCORE_MAX / 2);
static PROBE: AtomicU32 = AtomicU32::new(0);
/// The last yield had somebody to yield to.
static CROWDED: AtomicU32 = AtomicU32::new(0);

const SCORE_MAX: u32 = 16;
/// Longest spin in `auto`. Going to sleep and being woken costs about as much CPU on both ends together.
const SPIN_US: u64 = 20;
/// A spinner lets others have the CPU this often.
const YIELD_US: u64 = 2;
/// A gap in the spin loop longer than this means that somebody else took our CPU: none is to spare.
const PREEMPTED_US: u64 = 15;
/// The same of a gap in which we had let others have it.
const LENT_US: u64 = 500;
/// A yield that takes this long had somebody to yield to. The next spin yields before all else: the one that we
/// wait for is likely to be waiting for this CPU, and then every microsecond of ours is one of its.
const TAKEN_UP_US: u64 = 2;

/// Notes the number of CPUs and the time.
pub fn init() {
    let mut set = [0u64; 128];
    // SAFETY: writes at most the size given.
    let n = unsafe { syscall!(libc::SYS_sched_getaffinity, 0, size_of_val(&set), set.as_mut_ptr()) };
    if n > 0 {
        CPUS.store(set[..n as usize / 8].iter().map(|w| w.count_ones()).sum(), Relaxed);
    }
    START[0].store(sys::cycles(), Relaxed);
    START[1].store(now(), Relaxed);
}

/// Time-stamp counter cycles in a microsecond; measured once a millisecond has passed since the start.
pub fn cycles_per_us() -> u64 {
    match CYCLES_PER_US.load(Relaxed) {
        0 => {
            let us = now().saturating_sub(START[1].load(Relaxed)) / 1000;
            let rate =
                sys::cycles().wrapping_sub(START[0].load(Relaxed)).checked_div(us).unwrap_or(0).clamp(100, 10_000);
            if us >= 1000 {
                CYCLES_PER_US.store(rate, Relaxed);
            }
            if us >= 100 { rate } else { 2500 }
        }
        n => n,
    }
}

/// Spins until `ready` or until it is no longer worth it. True if `ready`.
pub fn spin(mut ready: impl FnMut() -> bool) -> Spun {
    let auto = config::spin() == config::SPIN_AUTO;
    let us = if auto {
        if CPUS.load(Relaxed) < 2 {
            return Spun::Not;
        }
        if SCORE.load(Relaxed) == 0 {
            let left = PROBE.load(Relaxed);
            if left > 0 {
                PROBE.store(left - 1, Relaxed);
                return Spun::Not;
            }
            PROBE.store(32, Relaxed);
        }
        SPIN_US
    } else {
        config::spin()
    };
    if us == 0 {
        return Spun::Not;
    }
    let rate = cycles_per_us();
    let mut last = sys::cycles();
    let mut yielded = last;
    // Time of our own, without what others had.
    let mut spent = 0;
    let mut patience = if CROWDED.load(Relaxed) != 0 { 0 } else { YIELD_US * rate };
    let lost = |score: u32, probe: u32| {
        if auto {
            SCORE.store(score, Relaxed);
            PROBE.store(probe, Relaxed);
        }
        Spun::Lost
    };
    loop {
        for _ in 0..8 {
            if ready() {
                if auto {
                    SCORE.store((SCORE.load(Relaxed) + 2).min(SCORE_MAX), Relaxed);
                }
                return Spun::Won;
            }
            core::hint::spin_loop();
        }
        let t = sys::cycles();
        spent += t.wrapping_sub(last);
        if auto && t.wrapping_sub(last) > PREEMPTED_US * rate {
            return lost(0, 64);
        }
        if spent > us * rate {
            return lost(SCORE.load(Relaxed).saturating_sub(1), PROBE.load(Relaxed));
        }
        last = t;
        if t.wrapping_sub(yielded) >= patience {
            // The one we wait for may be waiting for this very CPU. If it is, the scheduler also sees two
            // that want to run, and moves one to a CPU that is idle.
            // SAFETY: no memory is touched.
            unsafe { syscall!(libc::SYS_sched_yield) };
            yielded = sys::cycles();
            let lent = yielded.wrapping_sub(t);
            let crowded = lent > TAKEN_UP_US * rate;
            CROWDED.store(u32::from(crowded), Relaxed);
            if auto && lent > LENT_US * rate && !ready() {
                return lost(0, 64);
            }
            patience = YIELD_US * rate;
            // A yield to nobody is our own time.
            last = if crowded { yielded } else { t };
        }
    }
}

/// Spins for a moment, if spinning has been paying off.
pub fn glance(ready: impl Fn() -> bool) {
    const US: u64 = 3;
    if config::spin() == 0 || CPUS.load(Relaxed) < 2 || SCORE.load(Relaxed) == 0 {
        return;
    }
    let (start, limit) = (sys::cycles(), US * cycles_per_us());
    while !ready() && sys::cycles().wrapping_sub(start) < limit {
        core::hint::spin_loop();
    }
}

/// Outcome of [`spin`].
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Spun {
    /// What was waited for came.
    Won,
    /// It did not.
    Lost,
    /// Was not tried.
    Not,
}

// --- who sleeps on what

/// A thread in a blocking call on a connection, for those who close its descriptor meanwhile. A thread that left
/// the call by cancellation or longjmp is still named: see [`slept_on`].
struct Sleeper {
    tid: AtomicU32,
    /// Endpoint index + 1, 0 if none.
    ep: AtomicU32,
    /// Address of the word that it dozes on, 0 if it does not.
    word: AtomicUsize,
}

static SLEEPERS: [Sleeper; 256] =
    [const { Sleeper { tid: AtomicU32::new(0), ep: AtomicU32::new(0), word: AtomicUsize::new(0) } }; 256];

/// Notes that this thread is about to sleep on `ep`, until [`wake_up`].
pub fn lie_down(ep: Ep) {
    let t = crate::tls::tls();
    let (mine, place) = (t.tid(), &t.habits.place);
    let owned = |i: usize| SLEEPERS.get(i).is_some_and(|s| s.tid.load(Relaxed) == mine);
    let mut i = (place.get() as usize).wrapping_sub(1);
    if !owned(i) {
        let take = |s: &Sleeper, from| s.tid.compare_exchange(from, mine, AcqRel, Relaxed).is_ok();
        let free = SLEEPERS.iter().position(|s| take(s, 0)).or_else(|| {
            SLEEPERS.iter().position(|s| {
                let old = s.tid.load(Relaxed);
                !s.asleep() && take(s, old)
            })
        });
        // More threads than places: this one's sleep is not known to others.
        let Some(free) = free else { return };
        i = free;
        place.set(i as u32 + 1);
    }
    SLEEPERS[i].word.store(0, Relaxed);
    SLEEPERS[i].ep.store(ep.index() + 1, SeqCst);
}

/// This thread's place among those who sleep.
fn place() -> Option<&'static Sleeper> {
    let t = crate::tls::tls();
    SLEEPERS.get((t.habits.place.get() as usize).wrapping_sub(1)).filter(|s| s.tid.load(Relaxed) == t.tid())
}

/// Notes the word on which this thread is about to doze.
pub fn lie_on(word: Option<&AtomicU32>) {
    if let Some(s) = place() {
        s.word.store(word.map_or(0, |w| core::ptr::from_ref(w) as usize), SeqCst);
    }
}

/// This thread's blocking call is over.
pub fn wake_up() {
    if let Some(s) = place() {
        s.ep.store(0, SeqCst);
    }
}

/// Whether another thread of this process is in a blocking call on `ep`.
pub fn slept_on(ep: Ep) -> bool {
    let me = crate::tls::tid();
    SLEEPERS.iter().any(|s| s.ep.load(SeqCst) == ep.index() + 1 && s.tid.load(Relaxed) != me && s.asleep())
}

impl Sleeper {
    /// Whether the thread sleeps in `ppoll`, or on its word, as our waits do, or runs.
    fn asleep(&self) -> bool {
        let mut path = *b"/proc/self/task/0000000000/syscall\0";
        let mut v = self.tid.load(Relaxed);
        for d in path[16..26].iter_mut().rev() {
            *d = b'0' + (v % 10) as u8;
            v /= 10;
        }
        // The kernel knows no leading zeros (name_to_int).
        let zeros = path[16..25].iter().take_while(|d| **d == b'0').count();
        path.copy_within(16 + zeros.., 16);
        // SAFETY: a NUL-terminated path.
        let f = unsafe { syscall!(libc::SYS_openat, libc::AT_FDCWD, path.as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC) }
            as i32;
        if f < 0 {
            return false;
        }
        let mut b = [0u8; 32];
        // SAFETY: reads into a local.
        unsafe { syscall!(libc::SYS_read, f, b.as_mut_ptr(), b.len()) };
        sys::close(f);
        // proc(5): "running", or the number of the call and its arguments.
        match b.strip_prefix(b"202 0x") {
            Some(argument) => hexadecimal(argument) == self.word.load(SeqCst),
            None => b.starts_with(b"running") || b.starts_with(b"271 "),
        }
    }
}

fn hexadecimal(digits: &[u8]) -> usize {
    let digits = digits.iter().map_while(|b| (*b as char).to_digit(16));
    digits.fold(0, |n, d| n << 4 | d as usize)
}

// --- sleeping

/// Makes sure that the peer has the doorbell of poller `p`. False: it does not, sleep in bounded steps.
pub fn tell(chan: &Chan, p: usize) -> bool {
    if chan.told.load(Relaxed) & (1 << p) != 0 {
        return true;
    }
    let sent = attach::send_bell(chan, p);
    if sent {
        chan.told.fetch_or(1 << p, Relaxed);
    }
    sent
}

/// Asks for notifications about `slot` to poller `p`.
pub fn watch_slot(chan: &Chan, slot: usize, p: usize) {
    let mine = &chan.slot(slot).side[chan.role() as usize].pollers;
    if mine.load(Relaxed) & (1 << p) == 0 {
        mine.fetch_or(1 << p, AcqRel);
    }
}

/// Longest step of a bounded sleep, nanoseconds.
pub const STEP: u64 = 5_000_000;
