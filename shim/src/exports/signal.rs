//! Installing signal handlers: every way that glibc offers, on top of [`host::signals::sigaction`].
//!
//! libc's own `signal` and its kin call libc's `sigaction` directly, past ours, so each is made again here.
//! `sigvec` is not: glibc keeps it for old binaries only and none can link to it. `sigignore`, `sighold`, `sigrelse`,
//! `sigpause` install no handler.

use core::ffi::c_int;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use host::{real, signals};
use libc::{SIG_DFL, SIG_ERR, sigaction as sigaction_t, sighandler_t, sigset_t};
use shmring::lnx;

/// Signals that `siginterrupt` has told `signal` not to restart (glibc: `_sigintr`).
static INTERRUPTING: AtomicU64 = AtomicU64::new(0);
/// `SIG_HOLD` of signal.h: `sigset` blocks the signal.
const SIG_HOLD: sighandler_t = 2;
/// `SA_INTERRUPT` of bits/sigaction.h: a flag that Linux never had a use for, which glibc passes on.
const SA_INTERRUPT: c_int = 0x2000_0000;

fn bit(sig: c_int) -> u64 {
    1 << (sig - 1)
}

/// Whether a program may handle `sig`; 32 and 33 are libc's own.
fn valid(sig: c_int) -> bool {
    (1..=64).contains(&sig) && sig != 32 && sig != 33
}

fn set_of(bits: u64) -> sigset_t {
    // SAFETY: all zero is the empty set.
    let mut s: sigset_t = unsafe { core::mem::zeroed() };
    // SAFETY: `sigset_t` is an array of at least one 64-bit word.
    unsafe { *(&raw mut s).cast::<u64>() = bits };
    s
}

/// Installs `handler` and returns the one before, or `None` with `errno`.
fn install(sig: c_int, handler: sighandler_t, mask: u64, flags: c_int) -> Option<sighandler_t> {
    if !valid(sig) {
        real::set_errno(libc::EINVAL);
        return None;
    }
    let new = sigaction_t { sa_sigaction: handler, sa_mask: set_of(mask), sa_flags: flags, sa_restorer: None };
    exchange(sig, &new)
}

/// `sigaction`, null for a query: the handler before, or `None` with `errno`.
fn exchange(sig: c_int, new: *const sigaction_t) -> Option<sighandler_t> {
    let mut old = sigaction_t { sa_sigaction: SIG_DFL, sa_mask: set_of(0), sa_flags: 0, sa_restorer: None };
    // SAFETY: `new` is null or valid, `old` is a local; the handler is the program's business.
    (unsafe { signals::sigaction(sig, new, &mut old) } == 0).then_some(old.sa_sigaction)
}

/// What `signal` and `sysv_signal` have in common, unlike `sigset`: `SIG_ERR` is no handler.
fn replace(sig: c_int, handler: sighandler_t, mask: u64, flags: c_int) -> sighandler_t {
    if handler == SIG_ERR {
        real::set_errno(libc::EINVAL);
        return SIG_ERR;
    }
    install(sig, handler, mask, flags).unwrap_or(SIG_ERR)
}

/// `sigaction(2)`.
///
/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sigaction(sig: c_int, new: *const sigaction_t, old: *mut sigaction_t) -> c_int {
    // SAFETY: the caller's obligation.
    unsafe { signals::sigaction(sig, new, old) }
}

/// glibc's other name for [`sigaction`].
///
/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn __sigaction(sig: c_int, new: *const sigaction_t, old: *mut sigaction_t) -> c_int {
    // SAFETY: the caller's obligation.
    unsafe { signals::sigaction(sig, new, old) }
}

/// `signal(2)` with BSD semantics, glibc's default: the handler stays, and calls are restarted unless
/// `siginterrupt` has said otherwise.
#[unsafe(no_mangle)]
pub extern "C" fn signal(sig: c_int, handler: sighandler_t) -> sighandler_t {
    let interrupting = valid(sig) && INTERRUPTING.load(Relaxed) & bit(sig) != 0;
    let mask = if valid(sig) { bit(sig) } else { 0 };
    replace(sig, handler, mask, if interrupting { 0 } else { libc::SA_RESTART })
}

/// Another name of [`signal`].
#[unsafe(no_mangle)]
pub extern "C" fn bsd_signal(sig: c_int, handler: sighandler_t) -> sighandler_t {
    signal(sig, handler)
}

/// Another name of [`signal`].
#[unsafe(no_mangle)]
pub extern "C" fn ssignal(sig: c_int, handler: sighandler_t) -> sighandler_t {
    signal(sig, handler)
}

/// `sysv_signal(3)`: one shot, not blocked while it runs, interrupting.
#[unsafe(no_mangle)]
pub extern "C" fn __sysv_signal(sig: c_int, handler: sighandler_t) -> sighandler_t {
    replace(sig, handler, 0, libc::SA_RESETHAND | libc::SA_NODEFER | SA_INTERRUPT)
}

/// Another name of [`__sysv_signal`]; what `signal` means to a program built with `_XOPEN_SOURCE` alone.
#[unsafe(no_mangle)]
pub extern "C" fn sysv_signal(sig: c_int, handler: sighandler_t) -> sighandler_t {
    __sysv_signal(sig, handler)
}

/// `sigset(3)`.
#[unsafe(no_mangle)]
pub extern "C" fn sigset(sig: c_int, disposition: sighandler_t) -> sighandler_t {
    if !valid(sig) {
        real::set_errno(libc::EINVAL);
        return SIG_ERR;
    }
    let hold = disposition == SIG_HOLD;
    let Some(old) = (if hold { exchange(sig, core::ptr::null()) } else { install(sig, disposition, 0, 0) }) else {
        return SIG_ERR;
    };
    let how = if hold { libc::SIG_BLOCK } else { libc::SIG_UNBLOCK };
    // A pending signal that this unblocks is delivered to the new handler.
    let before = lnx::signal_mask(how, bit(sig));
    if before & bit(sig) != 0 { SIG_HOLD } else { old }
}

/// `siginterrupt(3)`.
#[unsafe(no_mangle)]
pub extern "C" fn siginterrupt(sig: c_int, interrupt: c_int) -> c_int {
    let mut a = sigaction_t { sa_sigaction: SIG_DFL, sa_mask: set_of(0), sa_flags: 0, sa_restorer: None };
    // SAFETY: a query into a local; it refuses what is no signal.
    if unsafe { signals::sigaction(sig, core::ptr::null(), &mut a) } < 0 {
        return -1;
    }
    if interrupt != 0 {
        INTERRUPTING.fetch_or(bit(sig), Relaxed);
        a.sa_flags &= !libc::SA_RESTART;
    } else {
        INTERRUPTING.fetch_and(!bit(sig), Relaxed);
        a.sa_flags |= libc::SA_RESTART;
    }
    // SAFETY: what is installed already, with one flag changed.
    unsafe { signals::sigaction(sig, &a, core::ptr::null_mut()) }
}
