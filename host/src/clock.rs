//! The time: monotonic nanoseconds, and the rate of the time-stamp counter.
// Unsafe here: the vDSO's function is called by its address.
#![allow(unsafe_code)]

use crate::objects;
use core::sync::atomic::Ordering::Relaxed;
use core::sync::atomic::{AtomicU64, AtomicUsize};
use libc::timespec;
use shmring::{lnx, sys};

static START: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];

static CYCLES_PER_US: AtomicU64 = AtomicU64::new(0);

/// Notes the time at which the library was loaded.
pub fn init() {
    START[0].store(sys::cycles(), Relaxed);
    START[1].store(now(), Relaxed);
}

/// Monotonic time, nanoseconds. From the kernel, not from libc: the program, or a library of its, may have put another
/// clock in front of that (one that stands still, for a test), which is not the clock that sleeps are measured by.
pub fn now() -> u64 {
    let clock = match CLOCK.load(Relaxed) {
        0 => find(),
        clock => clock,
    };
    let mut t = timespec { tv_sec: 0, tv_nsec: 0 };
    if clock == NONE {
        t = lnx::clock();
    } else {
        // SAFETY: `find` took the address from the vDSO's symbol table; vdso(7) has the type.
        let clock: extern "C" fn(libc::clockid_t, *mut timespec) -> i32 = unsafe { core::mem::transmute(clock) };
        clock(libc::CLOCK_MONOTONIC, &raw mut t);
    }
    t.tv_sec as u64 * 1_000_000_000 + t.tv_nsec as u64
}

/// The vDSO's `clock_gettime`, which makes no system call where the time-stamp counter can be trusted; [`NONE`]: there is
/// none; 0: not looked for yet.
static CLOCK: AtomicUsize = AtomicUsize::new(0);
const NONE: usize = 1;

#[cold]
fn find() -> usize {
    let clock = objects::vdso().and_then(|vdso| vdso.find(c"__vdso_clock_gettime")).unwrap_or(NONE);
    CLOCK.store(clock, Relaxed);
    clock
}

/// Time-stamp counter cycles in a microsecond; measured once a millisecond has passed since the start.
#[inline(always)]
pub fn cycles_per_us() -> u64 {
    match CYCLES_PER_US.load(Relaxed) {
        0 => measure(),
        n => n,
    }
}

#[cold]
fn measure() -> u64 {
    let us = now().saturating_sub(START[1].load(Relaxed)) / 1000;
    let rate = sys::cycles().wrapping_sub(START[0].load(Relaxed)).checked_div(us).unwrap_or(0).clamp(100, 10_000);
    if us >= 1000 {
        CYCLES_PER_US.store(rate, Relaxed);
    }
    if us >= 100 { rate } else { 2500 }
}
