//! Spinning before a sleep: adaptive, off on one CPU, given up when somebody else needs the CPU.
#![forbid(unsafe_code)]

use crate::config;
use crate::endpoint::Ep;
use crate::kernel::{K, Kernel as _};
use core::sync::atomic::Ordering::Relaxed;
use core::sync::atomic::{AtomicU32, AtomicU64};

static CPUS: AtomicU32 = AtomicU32::new(1);
/// How spinning has been paying off, 0..=SCORE_MAX, and waits until it is tried again.
static SCORE: AtomicU32 = AtomicU32::new(SCORE_MAX / 2);
static PROBE: AtomicU32 = AtomicU32::new(0);
/// Whether another thread ran during the last yield.
static CROWDED: AtomicU32 = AtomicU32::new(0);

const SCORE_MAX: u32 = 16;
/// Longest spin in `auto`. Going to sleep and being woken costs about as much CPU on both ends together.
const SPIN_US: u64 = 20;
/// A spinner lets others have the CPU this often.
const YIELD_US: u64 = 2;
/// A gap in the spin loop longer than this means that somebody else took our CPU: none is to spare.
const PREEMPTED_US: u64 = 15;
/// A gap as long as this is another program's time slice: more threads want to run than there are CPUs. A spinner then pays
/// for each microsecond of its spin with a slice (EEVDF: a thread that yields or has used up its slice waits for the
/// others', some 3 ms each), where a sleeper would be given the CPU as soon as it is woken.
const SLICE_US: u64 = 500;
/// A yield that takes this long had somebody to yield to. The next spin yields before all else: the one that we
/// wait for is likely to be waiting for this CPU, and then every microsecond of ours is one of its.
const TAKEN_UP_US: u64 = 2;

/// CPUs of the machine; 0 if that is not known.
static ONLINE: AtomicU32 = AtomicU32::new(0);
/// Nobody spins before this time (cycles): the CPUs were crowded a moment ago.
static QUIET_UNTIL: AtomicU64 = AtomicU64::new(0);
/// How long the last such pause was, microseconds; 0: no spinner was robbed of its CPU yet.
static QUIET_US: AtomicU64 = AtomicU64::new(0);
/// The first pause, and the longest: it doubles as long as a spin after it is robbed of a slice again.
const QUIET: [u64; 2] = [20_000, 1_000_000];

/// Notes the number of CPUs that this process may use.
pub fn init() {
    let mut set = [0u64; 128];
    let n = K::affinity(&mut set);
    if n > 0 {
        CPUS.store(set[..n as usize / 8].iter().map(|w| w.count_ones()).sum(), Relaxed);
    }
}

/// A spin that began at `since` was robbed of a time slice: nobody spins for a while.
#[cold]
fn robbed(since: u64, rate: u64) {
    let (before, now) = (QUIET_US.load(Relaxed), K::cycles());
    // A pause that was followed by a long time of good spins has nothing to do with this one.
    let recent = since.saturating_sub(QUIET_UNTIL.load(Relaxed)) < 4 * before * rate;
    let us = if recent { 2 * before } else { 0 }.clamp(QUIET[0], QUIET[1]);
    QUIET_US.store(us, Relaxed);
    QUIET_UNTIL.store(now + us * rate, Relaxed);
}

/// Whether nobody may spin at time `now`. Being robbed of the CPU does not show all of it: hundreds of threads that each run
/// for microseconds let a spinner have its CPU, and it even wins, but they could have used the time. So the kernel is asked
/// now and then how many threads want to run.
fn quiet(now: u64, rate: u64) -> bool {
    if now < QUIET_UNTIL.load(Relaxed) {
        return true;
    }
    let next = LOOK_AT.load(Relaxed);
    if now < next || LOOK_AT.compare_exchange(next, now + LOOK_US * rate, Relaxed, Relaxed).is_err() {
        return false;
    }
    if !crowded() {
        SUSPECT.store(0, Relaxed);
        return false;
    }
    // One look may have met a thread that ran for a moment only.
    if SUSPECT.swap(1, Relaxed) == 0 {
        LOOK_AT.store(now + LOOK_AGAIN_US * rate, Relaxed);
        return false;
    }
    QUIET_UNTIL.store(now + QUIET_US.load(Relaxed).max(QUIET[0]) * rate, Relaxed);
    true
}

/// When the kernel is asked next (cycles): before the first spin of all, after a pause, and this long after the last time.
static LOOK_AT: AtomicU64 = AtomicU64::new(0);
const LOOK_US: u64 = 2000;
/// How long after a first look that found the CPUs crowded the second one follows, which confirms it.
const LOOK_AGAIN_US: u64 = 200;
/// Not 0: the next look that finds the CPUs crowded is believed, without a second one. So is the first look of all.
static SUSPECT: AtomicU32 = AtomicU32::new(1);

/// Whether more threads want to run on the machine than it has CPUs. False where nothing tells.
#[cold]
fn crowded() -> bool {
    if crate::members::is_filtered() {
        return false;
    }
    if ONLINE.load(Relaxed) == 0 {
        // "0-63": the number of the last.
        let text = read(c"/sys/devices/system/cpu/online");
        let digits = text.iter().rposition(u8::is_ascii_digit).map_or(0, |i| i + 1);
        let begin = text[..digits].iter().rposition(|b| !b.is_ascii_digit()).map_or(0, |i| i + 1);
        ONLINE.store(number(&text[begin..digits]) + 1, Relaxed);
    }
    // proc(5), /proc/loadavg: "0.20 0.18 0.12 3/80 11206", 3 of 80 threads run or want to.
    let text = read(c"/proc/loadavg");
    let field = text.split(|b| *b == b' ').nth(3).unwrap_or(&[]);
    let online = ONLINE.load(Relaxed);
    online > 1 && number(field) > online
}

/// The first bytes of a small file; zeros if there is none.
fn read(path: &core::ffi::CStr) -> [u8; 64] {
    let mut b = [0; 64];
    let f = K::open(path, libc::O_RDONLY);
    if f >= 0 {
        K::read(f, &mut b);
        K::close(f);
    }
    b
}

/// The number that begins `text`; 0 if none does.
fn number(text: &[u8]) -> u32 {
    let digits = text.iter().take_while(|b| b.is_ascii_digit());
    digits.fold(0u32, |n, b| n.wrapping_mul(10).wrapping_add(u32::from(b - b'0')))
}

/// Whether [`spin`] would spin now, as far as is known without asking.
pub fn is_likely() -> bool {
    match config::spin() {
        config::SPIN_AUTO => {
            let pays = SCORE.load(Relaxed) > 0 || PROBE.load(Relaxed) == 0;
            CPUS.load(Relaxed) > 1 && pays && K::cycles() >= QUIET_UNTIL.load(Relaxed)
        }
        us => us > 0,
    }
}

/// Spins until `ready` or until it is no longer worth it.
pub fn spin(ready: impl FnMut() -> bool) -> Spun {
    let auto = config::spin() == config::SPIN_AUTO;
    let us = if auto {
        if CPUS.load(Relaxed) < 2 {
            return Spun::Not;
        }
        if quiet(K::cycles(), K::cycles_per_us()) {
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
    if us == 0 { Spun::Not } else { spin_for(us, auto, ready) }
}

/// Spins for up to `us` microseconds. `auto`: of this thread's own time, and less if that does not pay off; otherwise of all time, which the
/// program has set: beside busy loops each yield may last as long as their time slices.
pub(crate) fn spin_for(us: u64, auto: bool, mut ready: impl FnMut() -> bool) -> Spun {
    let rate = K::cycles_per_us();
    let mut last = K::cycles();
    let mut yielded = last;
    // Time that this thread has spun; in `auto` without the time that others ran in its yields.
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
        let t = K::cycles();
        spent += t.wrapping_sub(last);
        let gap = t.wrapping_sub(last);
        if auto && gap > PREEMPTED_US * rate {
            if gap > SLICE_US * rate {
                robbed(last, rate);
            }
            return lost(0, 64);
        }
        if spent > us * rate {
            return lost(SCORE.load(Relaxed).saturating_sub(1), PROBE.load(Relaxed));
        }
        last = t;
        if t.wrapping_sub(yielded) >= patience {
            // The one we wait for may be waiting for this very CPU. If it is, the scheduler also sees two
            // that want to run, and moves one to a CPU that is idle.
            K::yield_cpu();
            yielded = K::cycles();
            let lent = yielded.wrapping_sub(t);
            let crowded = lent > TAKEN_UP_US * rate;
            CROWDED.store(u32::from(crowded), Relaxed);
            if auto && lent > SLICE_US * rate {
                // Also if the awaited news have come meanwhile: they would have come to a sleeper as well.
                robbed(t, rate);
                lost(0, 0);
                return if ready() { Spun::Won } else { Spun::Lost };
            }
            patience = YIELD_US * rate;
            // A yield to nobody is our own time.
            last = if auto && crowded { yielded } else { t };
        }
    }
}

/// Spins for a moment, if spinning has been paying off.
pub fn glance(ready: impl Fn() -> bool) {
    const US: u64 = 3;
    if config::spin() == 0 || CPUS.load(Relaxed) < 2 || SCORE.load(Relaxed) == 0 {
        return;
    }
    let (start, limit) = (K::cycles(), US * K::cycles_per_us());
    while !ready() && K::cycles().wrapping_sub(start) < limit {
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
