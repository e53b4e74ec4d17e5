//! The time: monotonic nanoseconds, and the rate of the time-stamp counter.

use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::Relaxed;
use shmring::sys;

static START: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];

static CYCLES_PER_US: AtomicU64 = AtomicU64::new(0);

/// Notes the time at which the library was loaded.
pub fn init() {
    START[0].store(sys::cycles(), Relaxed);
    START[1].store(now(), Relaxed);
}

/// Monotonic time, nanoseconds.
pub fn now() -> u64 {
    let mut t = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes one timespec; served by the vDSO.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut t) };
    t.tv_sec as u64 * 1_000_000_000 + t.tv_nsec as u64
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
