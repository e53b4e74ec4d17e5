//! Spinning before a sleep: adaptive, off on one CPU, given up when somebody else needs the CPU.

use crate::clock::cycles_per_us;
use crate::config;
use crate::endpoint::Ep;
use core::sync::atomic::AtomicU32;
use core::sync::atomic::Ordering::Relaxed;
use shmring::{sys, syscall};

static CPUS: AtomicU32 = AtomicU32::new(1);
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

/// Notes the number of CPUs.
pub fn init() {
    let mut set = [0u64; 128];
    // SAFETY: writes at most the size given.
    let n = unsafe { syscall!(libc::SYS_sched_getaffinity, 0, size_of_val(&set), set.as_mut_ptr()) };
    if n > 0 {
        CPUS.store(set[..n as usize / 8].iter().map(|w| w.count_ones()).sum(), Relaxed);
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

/// Notes how a wait went.
pub fn count(ep: Ep, spun: Spun) {
    match spun {
        Spun::Won => ep.spins_won.store(ep.spins_won.load(Relaxed) + 1, Relaxed),
        Spun::Lost => ep.spins_lost.store(ep.spins_lost.load(Relaxed) + 1, Relaxed),
        Spun::Not => {}
    }
}
