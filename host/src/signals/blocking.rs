//! Sleeping without losing a signal.
//!
//! A handler that runs after the caller looked at the counters and before the kernel puts the thread to sleep
//! must still end the sleep (the `alarm()` idiom). `ppoll`'s atomic mask serves that, at the price of two more
//! system calls to block signals before and after. Cheaper: the kernel copies the arguments that lie in memory at
//! the very start of the call. So those lie in thread-local storage, and every handler, before it runs,
//! rewrites them ([`end_wait`]) such that a call that has not begun yet returns at once: descriptor 0 becomes one
//! that cannot exist (`POLLNVAL`), the timeout becomes zero. A call that has begun returns `EINTR` by itself.
//! The memory is never on a stack that a `longjmp` or a cancellation may have left.
//!
//! More descriptors than fit there are waited for in the classic way. A process without handlers skips it all.
//!
//! The sleep is libc's own function, and a cancellation point: no function here has anything to drop.

use core::ffi::c_int;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed, Ordering::SeqCst, compiler_fence};
use libc::{epoll_event, nfds_t, pollfd, sigset_t, timespec, ucontext_t};

use super::mask::{ALL, mask_bits, set_mask};
use super::{HANDLERS, Runs, runs};
use crate::real;
use crate::tls::{Tls, WAIT_FDS, tls};
use shmring::syscall;

/// A descriptor above every limit (`fs.nr_open` is at most 2^30 or so): `POLLNVAL`.
const IMPOSSIBLE: c_int = c_int::MAX;
/// Seconds that stand for "no timeout" where a handler must have a timeout to clear.
const FOREVER: i64 = 1 << 40;
/// Bytes below a wait's frame in which libc's own frames of the call lie.
const LIBC_FRAMES: usize = 1024;
/// What blocking [`ALL`] looks like in a signal frame: the kernel never blocks these two.
const ALL_SEEN: u64 = ALL & !(1 << (libc::SIGKILL - 1) | 1 << (libc::SIGSTOP - 1));

/// The kernel or a system-call filter refuses `epoll_pwait2` (Linux 5.11).
static NO_PWAIT2: AtomicBool = AtomicBool::new(false);

/// Called for every program handler about to run, with the frame it will return to.
pub(super) fn end_wait(t: &Tls, ctx: &mut ucontext_t) {
    let w = &t.wait;
    w.fds[0].fd.store(IMPOSSIBLE, Relaxed);
    w.sec.store(0, Relaxed);
    w.nsec.store(0, Relaxed);
    let frame = w.frame.load(Relaxed);
    if frame != 0 {
        let rsp = ctx.uc_mcontext.gregs[libc::REG_RSP as usize] as usize;
        // SAFETY: the kernel has written the first word of the set; the rest of libc's type is not there.
        let saved = unsafe { &mut *(&raw mut ctx.uc_sigmask).cast::<u64>() };
        if rsp <= frame && frame - rsp < LIBC_FRAMES && *saved == ALL_SEEN {
            // The frame of a wait that blocks everything: the program must find its own mask there, to look at,
            // to change, or to return to.
            *saved = w.mask.load(Relaxed);
            w.unmasked.set(1);
        }
    }
}

fn to_timespec(ns: u64) -> timespec {
    timespec { tv_sec: (ns / 1_000_000_000) as i64, tv_nsec: (ns % 1_000_000_000) as i64 }
}

/// Turns libc's result into the kernel's, and leaves the program's `errno` as it was.
fn result(r: c_int, errno: c_int) -> isize {
    if r >= 0 {
        return r as isize;
    }
    let e = real::errno();
    real::set_errno(errno);
    -(e as isize)
}

/// Sleeps as `ppoll(2)`, for at most `timeout` nanoseconds (`None`: no limit), with the program's mask or `mask`.
///
/// Returns the number of ready descriptors, 0 at the deadline, or `-errno`; `-EINTR` at once if any handler has run since
/// `since`, whatever its `SA_RESTART`: the caller asks `interrupted`, and takes a new `since` if it waits again.
/// A cancellation point. `errno` is not touched.
///
/// # Safety
/// `fds` points to `n` elements that may be read and written; `mask` is null or valid.
pub unsafe fn ppoll(fds: *mut pollfd, n: usize, timeout: Option<u64>, mask: *const sigset_t, since: Runs) -> isize {
    let ts = to_timespec(timeout.unwrap_or(0));
    let ts: *const timespec = if timeout.is_some() { &ts } else { core::ptr::null() };
    if !HANDLERS.load(Relaxed) {
        let errno = real::errno();
        // SAFETY: the caller's obligation.
        return result(unsafe { real::ppoll(fds, n as nfds_t, ts, mask) }, errno);
    }
    if n <= WAIT_FDS {
        // SAFETY: the caller's obligation.
        let r = unsafe { ppoll_small(fds, n, ts, mask, since) };
        // One descriptor more than the caller's may be one more than RLIMIT_NOFILE allows.
        if r != -(libc::EINVAL as isize) {
            return r;
        }
    }
    // SAFETY: the caller's obligation.
    unsafe { blocked(mask, since, |m| real::ppoll(fds, n as nfds_t, ts, m)) }
}

/// # Safety
/// As for [`ppoll`]; `n <= WAIT_FDS`.
unsafe fn ppoll_small(fds: *mut pollfd, n: usize, ts: *const timespec, mask: *const sigset_t, since: Runs) -> isize {
    let t = tls();
    let w = &t.wait;
    for i in 0..n {
        // SAFETY: the caller's obligation.
        let f = unsafe { &*fds.add(i) };
        w.fds[i + 1].fd.store(f.fd, Relaxed);
        w.fds[i + 1].events.store(f.events as u16 as u32, Relaxed);
    }
    w.generation.add(1);
    let generation = w.generation.get();
    w.fds[0].fd.store(-1, Relaxed);
    w.fds[0].events.store(0, Relaxed);
    compiler_fence(SeqCst);
    // A handler before this point is seen here; one after it makes descriptor 0 impossible.
    if runs() != since {
        w.fds[0].fd.store(IMPOSSIBLE, Relaxed);
        return -(libc::EINTR as isize);
    }
    let errno = real::errno();
    // SAFETY: `PollSlot` is laid out as `pollfd`; the rest is the caller's obligation.
    let r = unsafe { real::ppoll(w.fds.as_ptr().cast_mut().cast(), n as nfds_t + 1, ts, mask) };
    let r = result(r, errno);
    compiler_fence(SeqCst);
    // This wait may run in a signal handler that interrupted another wait of this thread just before its system call.
    // That call must return EINTR: entry 0, which both use, stays impossible, and POLLNVAL ends it at once. Every wait
    // sets entry 0 for itself when it begins.
    w.fds[0].fd.store(IMPOSSIBLE, Relaxed);
    if r > 0 && w.fds[0].events.load(Relaxed) == 0 {
        for i in 0..n {
            // SAFETY: the caller's obligation.
            unsafe { (*fds.add(i)).revents = (w.fds[i + 1].events.load(Relaxed) >> 16) as i16 };
        }
        compiler_fence(SeqCst);
        // Unless a handler has waited meanwhile, and overwritten what was to be copied.
        if w.generation.get() == generation {
            return r;
        }
    }
    if r > 0 { -(libc::EINTR as isize) } else { r }
}

/// Makes `wait` with all signals blocked but during the call itself, where `mask`, or else the program's own, holds.
///
/// # Safety
/// `mask` is null or valid; `wait` installs its argument as `ppoll` does.
unsafe fn blocked(mask: *const sigset_t, since: Runs, wait: impl FnOnce(*const sigset_t) -> c_int) -> isize {
    // A thread already cancelled goes here, with its own mask.
    // SAFETY: nothing to drop on the way out.
    unsafe { real::pthread_testcancel() };
    let w = &tls().wait;
    let old = set_mask(ALL);
    if runs() != since {
        set_mask(old);
        return -(libc::EINTR as isize);
    }
    // SAFETY: all zero is a valid set.
    let mut own: sigset_t = unsafe { core::mem::zeroed() };
    // SAFETY: `sigset_t` is an array of at least one 64-bit word.
    unsafe { *(&raw mut own).cast::<u64>() = old };
    debug_assert!(mask_bits(&own) == old);
    // This may be a wait inside the handler that has interrupted another one: put its state back at the end.
    let outer = (w.frame.load(Relaxed), w.mask.load(Relaxed), w.unmasked.get());
    w.mask.store(old, Relaxed);
    w.unmasked.set(0);
    w.frame.store(&raw const own as usize, Relaxed);
    compiler_fence(SeqCst);
    let errno = real::errno();
    let r = result(wait(if mask.is_null() { &own } else { mask }), errno);
    compiler_fence(SeqCst);
    let unmasked = w.unmasked.get() != 0;
    w.frame.store(outer.0, Relaxed);
    w.mask.store(outer.1, Relaxed);
    w.unmasked.set(outer.2);
    // Else the handler has returned to a mask of its choice.
    if !unmasked {
        set_mask(old);
    }
    r
}

/// Sleeps as `FUTEX_WAIT` (futex(2)) while `word` is `value`, for at most `timeout` nanoseconds.
///
/// Returns 0 or `-errno`; `-EINTR` as [`ppoll`]. Not a cancellation point. `errno` is not touched.
pub fn futex(word: &AtomicU32, value: u32, timeout: u64, since: Runs) -> isize {
    let w = &tls().wait;
    let handlers = HANDLERS.load(Relaxed);
    let ts = to_timespec(timeout);
    w.sec.store(ts.tv_sec, Relaxed);
    w.nsec.store(ts.tv_nsec, Relaxed);
    compiler_fence(SeqCst);
    // A handler before this point is seen here; one after it clears the timeout.
    let r = if handlers && runs() != since {
        -(libc::EINTR as isize)
    } else {
        // SAFETY: the kernel reads the word, and the timeout, laid out as a timespec.
        unsafe { syscall!(libc::SYS_futex, core::ptr::from_ref(word), libc::FUTEX_WAIT, value, w.sec.as_ptr(), 0, 0) }
    };
    compiler_fence(SeqCst);
    w.sec.store(0, Relaxed);
    w.nsec.store(0, Relaxed);
    if r == -(libc::ETIMEDOUT as isize) && handlers && runs() != since { -(libc::EINTR as isize) } else { r }
}

/// Sleeps as `epoll_pwait2(2)`, for at most `timeout` nanoseconds (`None`: no limit; rounded up to milliseconds where
/// the kernel has no `epoll_pwait2`), with the program's mask or `mask`.
///
/// Returns and behaves as [`ppoll`]; events that were taken from the set are always returned.
///
/// # Safety
/// `ev` is where the program wants its events; `mask` is null or valid.
pub unsafe fn epoll_pwait(
    ep: c_int,
    ev: *mut epoll_event,
    max: c_int,
    timeout: Option<u64>,
    mask: *const sigset_t,
    since: Runs,
) -> isize {
    let handlers = HANDLERS.load(Relaxed);
    let whole = timeout.is_none_or(|ns| ns % 1_000_000 == 0);
    if !NO_PWAIT2.load(Relaxed) && (handlers || !whole) {
        let t = tls();
        let w = &t.wait;
        let ts = timeout.map_or(timespec { tv_sec: FOREVER, tv_nsec: 0 }, to_timespec);
        w.sec.store(ts.tv_sec, Relaxed);
        w.nsec.store(ts.tv_nsec, Relaxed);
        compiler_fence(SeqCst);
        if handlers && runs() != since {
            w.sec.store(0, Relaxed);
            w.nsec.store(0, Relaxed);
            return -(libc::EINTR as isize);
        }
        let errno = real::errno();
        // SAFETY: `sec` and `nsec` are laid out as a timespec; the rest is the caller's obligation.
        let r = unsafe { real::epoll_pwait2(ep, ev, max, w.sec.as_ptr().cast(), mask) };
        let r = result(r, errno);
        compiler_fence(SeqCst);
        w.sec.store(0, Relaxed);
        w.nsec.store(0, Relaxed);
        if r == 0 && handlers && runs() != since {
            return -(libc::EINTR as isize);
        }
        // EPERM comes from filters only; epoll itself knows no such error.
        if r != -(libc::ENOSYS as isize) && r != -(libc::EPERM as isize) {
            return r;
        }
        NO_PWAIT2.store(true, Relaxed);
    }
    let ms = timeout.map_or(-1, |ns| ns.div_ceil(1_000_000).min(c_int::MAX as u64) as c_int);
    if !handlers {
        let errno = real::errno();
        // SAFETY: the caller's obligation.
        return result(unsafe { real::epoll_pwait(ep, ev, max, ms, mask) }, errno);
    }
    // SAFETY: the caller's obligation.
    unsafe { blocked(mask, since, |m| real::epoll_pwait(ep, ev, max, ms, m)) }
}
