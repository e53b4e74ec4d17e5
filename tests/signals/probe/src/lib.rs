//! What the library does with signals, in a preload library that does nothing else.
//! The `probe_*` functions let a test drive what no libc function shows: critical sections, waits, copies.
#![cfg_attr(not(test), no_std)]

#[path = "../../../../shim/src/exports/signal.rs"]
pub mod signal;
#[path = "../../../../shim/src/unwind.rs"]
mod unwind;

use core::ffi::{c_int, c_long};
use host::{signals, usercopy};

#[cfg(not(test))]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    // SAFETY: ends the process.
    unsafe { libc::abort() }
}

#[used]
#[unsafe(link_section = ".init_array")]
static INIT: extern "C" fn() = init;

extern "C" fn init() {
    signals::init();
}

/// `signals::critical_enter`.
#[unsafe(no_mangle)]
pub extern "C" fn probe_enter() {
    signals::critical_enter();
}

/// `signals::critical_leave`.
#[unsafe(no_mangle)]
pub extern "C" fn probe_leave() {
    signals::critical_leave();
}

/// `signals::after_fork_child`.
#[unsafe(no_mangle)]
pub extern "C" fn probe_forked() {
    signals::after_fork_child();
}

/// `signals::arm_faults`.
#[unsafe(no_mangle)]
pub extern "C" fn probe_arm() {
    signals::arm_faults();
}

/// `usercopy::copy`: 0, or -1 for a fault.
///
/// # Safety
/// As `usercopy::copy`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn probe_copy(dst: *mut u8, src: *const u8, len: usize) -> c_int {
    // SAFETY: the caller's obligation.
    if unsafe { usercopy::copy(dst, src, len) }.is_ok() { 0 } else { -1 }
}

/// Handlers run: all in the low half, those without `SA_RESTART` in the high half.
#[unsafe(no_mangle)]
pub extern "C" fn probe_runs() -> u64 {
    let r = signals::runs();
    u64::from(r.total) | u64::from(r.norestart) << 32
}

fn since(v: u64) -> signals::Runs {
    signals::Runs { total: v as u32, norestart: (v >> 32) as u32 }
}

/// `signals::interrupted`.
#[unsafe(no_mangle)]
pub extern "C" fn probe_interrupted(from: u64, restartable: c_int) -> c_int {
    signals::interrupted(since(from), restartable != 0).into()
}

/// `signals::ppoll`; `ns < 0`: no timeout.
///
/// # Safety
/// As `signals::ppoll`.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn probe_ppoll(
    f: *mut libc::pollfd,
    n: usize,
    ns: i64,
    m: *const libc::sigset_t,
    from: u64,
) -> c_long {
    // SAFETY: the caller's obligation.
    unsafe { signals::ppoll(f, n, u64::try_from(ns).ok(), m, since(from)) as c_long }
}

/// `signals::epoll_pwait`; `ns < 0`: no timeout.
///
/// # Safety
/// As `signals::epoll_pwait`.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn probe_epoll(
    ep: c_int,
    ev: *mut libc::epoll_event,
    max: c_int,
    ns: i64,
    m: *const libc::sigset_t,
    from: u64,
) -> c_long {
    // SAFETY: the caller's obligation.
    unsafe { signals::epoll_pwait(ep, ev, max, u64::try_from(ns).ok(), m, since(from)) as c_long }
}

/// `signals::futex`; `ns` must not be negative.
///
/// # Safety
/// `word` may be read.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn probe_futex(word: *const u32, value: u32, ns: i64, from: u64) -> c_long {
    // SAFETY: the caller's obligation.
    let word = unsafe { &*word.cast::<core::sync::atomic::AtomicU32>() };
    signals::futex(word, value, u64::try_from(ns).unwrap_or(0), since(from)) as c_long
}
