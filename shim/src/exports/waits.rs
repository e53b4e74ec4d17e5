//! poll, select and epoll.

use super::{arm, bad, idle, millis, nanos, peek, poke};
use crate::{descriptors, epoll, poll, select};
use core::ffi::c_int;
use core::ptr::null;
use engine::fds::{self, Kind};
use host::{real, usercopy};
use libc::{epoll_event, fd_set, nfds_t, pollfd, sigset_t, size_t, timespec, timeval};

/// A `timeval` of `select` as glibc takes it (sysdeps/unix/sysv/linux/select.c): microseconds, cut to 32
/// bits, may exceed a second; either part negative is `EINVAL`. Nanoseconds, saturating.
fn select_nanos(t: &timeval) -> Option<u64> {
    let us = t.tv_usec as i32;
    let (s, us) = (u64::try_from(t.tv_sec).ok()?, u64::try_from(us).ok()?);
    Some(s.saturating_mul(1_000_000_000).saturating_add(us * 1000))
}

/// Whether the kernel can read the signal mask, which it does first (`set_user_sigmask`).
///
/// # Safety
/// `m` is a pointer that the program passed in.
pub(super) unsafe fn mask_readable(m: *const sigset_t) -> bool {
    // SAFETY: as much as the kernel reads; any bits are a number.
    m.is_null() || unsafe { peek(m.cast::<u64>()) }.is_ok()
}

/// Whether the call watches no descriptor at all, and is a sleep, or none of ours: then it is libc's business.
fn watches_none(n: c_int, r: *const fd_set, w: *const fd_set, e: *const fd_set) -> bool {
    n <= 0 || (r.is_null() && w.is_null() && e.is_null()) || idle()
}

/// Events one call can return (`EP_MAX_EVENTS` in fs/eventpoll.c).
const MAX_EVENTS: c_int = (i32::MAX as usize / size_of::<epoll_event>()) as c_int;

/// Before a wait on a set. Whether the call is libc's: on a descriptor that is no set of ours, or with an array that the kernel refuses before it
/// looks at the set.
fn not_ours(ep: c_int, ev: *mut epoll_event, max: c_int) -> bool {
    epoll::settle_read();
    !matches!(fds::get(ep), Kind::Epoll(_))
        || max <= 0
        || max > MAX_EVENTS
        || usercopy::outside(ev, max as usize * size_of::<epoll_event>())
}

#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn poll(f: *mut pollfd, n: nfds_t, timeout: c_int) -> c_int {
    // SAFETY: the array and the mask are the program's, for libc as for us.
    unsafe {
        if n == 0 || idle() {
            return real::poll(f, n, timeout);
        }
        arm();
        poll::poll(f, n, millis(timeout), null(), || real::poll(f, n, timeout))
    }
}

/// glibc's second name for `poll`.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn __poll(f: *mut pollfd, n: nfds_t, timeout: c_int) -> c_int {
    // SAFETY: the same function under another name.
    unsafe { poll(f, n, timeout) }
}

/// `poll` with `_FORTIFY_SOURCE`: libc ends the program if the array is too small.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn __poll_chk(f: *mut pollfd, n: nfds_t, timeout: c_int, room: size_t) -> c_int {
    // SAFETY: libc gets the program's own arguments.
    unsafe {
        if (room / size_of::<pollfd>()) < n as usize {
            return real::__poll_chk(f, n, timeout, room);
        }
        poll(f, n, timeout)
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn ppoll(f: *mut pollfd, n: nfds_t, t: *const timespec, m: *const sigset_t) -> c_int {
    // SAFETY: the array and the mask are the program's, for libc as for us.
    unsafe {
        if n == 0 || idle() {
            return real::ppoll(f, n, t, m);
        }
        arm();
        match nanos(t) {
            Ok(ns) if mask_readable(m) => poll::poll(f, n, ns, m, || real::ppoll(f, n, t, m)),
            _ => real::ppoll(f, n, t, m),
        }
    }
}

/// `ppoll` with `_FORTIFY_SOURCE`.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn __ppoll_chk(
    f: *mut pollfd,
    n: nfds_t,
    t: *const timespec,
    m: *const sigset_t,
    room: size_t,
) -> c_int {
    // SAFETY: libc gets the program's own arguments.
    unsafe {
        if (room / size_of::<pollfd>()) < n as usize {
            return real::__ppoll_chk(f, n, t, m, room);
        }
        ppoll(f, n, t, m)
    }
}

/// Leaves in `t` the time that was not slept, as Linux does, also when the call fails.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn select(
    n: c_int,
    r: *mut fd_set,
    w: *mut fd_set,
    e: *mut fd_set,
    t: *mut timeval,
) -> c_int {
    // SAFETY: the sets are the program's, for libc as for us; the time is read and written by `peek` and `poke`.
    unsafe {
        if watches_none(n, r, w, e) {
            return real::select(n, r, w, e, t);
        }
        arm();
        if t.is_null() {
            return select::select(n, r, w, e, None, null(), None, || real::select(n, r, w, e, t));
        }
        let Some(ns) = peek(t).ok().and_then(|t| select_nanos(&t)) else {
            return real::select(n, r, w, e, t);
        };
        let mut left = ns;
        let mut by_libc = false;
        let ready = select::select(n, r, w, e, Some(ns), null(), Some(&mut left), || {
            by_libc = true;
            real::select(n, r, w, e, t)
        });
        // libc has written the time itself if it did the call.
        if !by_libc && ns != u64::MAX {
            let left = timeval { tv_sec: (left / 1_000_000_000) as i64, tv_usec: (left % 1_000_000_000 / 1000) as i64 };
            // Through `syscall` the memory may be read-only, which the kernel does not mind.
            let _ = poke(t, left);
        }
        ready
    }
}

/// glibc's second name for `select`.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn __select(
    n: c_int,
    r: *mut fd_set,
    w: *mut fd_set,
    e: *mut fd_set,
    t: *mut timeval,
) -> c_int {
    // SAFETY: the same function under another name.
    unsafe { select(n, r, w, e, t) }
}

/// POSIX forbids it to change the timeout.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn pselect(
    n: c_int,
    r: *mut fd_set,
    w: *mut fd_set,
    e: *mut fd_set,
    t: *const timespec,
    m: *const sigset_t,
) -> c_int {
    // SAFETY: the sets and the mask are the program's, for libc as for us.
    unsafe {
        if watches_none(n, r, w, e) {
            return real::pselect(n, r, w, e, t, m);
        }
        arm();
        match nanos(t) {
            Ok(ns) if mask_readable(m) => select::select(n, r, w, e, ns, m, None, || real::pselect(n, r, w, e, t, m)),
            _ => real::pselect(n, r, w, e, t, m),
        }
    }
}

/// The size is a hint that must be positive (epoll_create(2)).
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn epoll_create(n: c_int) -> c_int {
    // SAFETY: no memory is involved; what becomes of the descriptors is the program's decision.
    unsafe { if n <= 0 { real::epoll_create(n) } else { descriptors::epoll_create1(0) } }
}

#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn epoll_create1(flags: c_int) -> c_int {
    // SAFETY: no memory is involved; what becomes of the descriptors is the program's decision.
    unsafe { descriptors::epoll_create1(flags) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn epoll_ctl(ep: c_int, op: c_int, fd: c_int, ev: *mut epoll_event) -> c_int {
    // SAFETY: the event is the program's, for libc as for us.
    unsafe {
        if op != libc::EPOLL_CTL_DEL && bad(ev) {
            return real::epoll_ctl(ep, op, fd, ev);
        }
        if fds::tracked(fd) {
            arm();
        }
        epoll::ctl(ep, op, fd, ev)
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn epoll_wait(ep: c_int, ev: *mut epoll_event, n: c_int, timeout: c_int) -> c_int {
    // SAFETY: the array and the mask are the program's, for libc as for us.
    unsafe {
        if not_ours(ep, ev, n) {
            return epoll::merged(ep, ev, real::epoll_wait(ep, ev, n, timeout));
        }
        epoll::wait(ep, ev, n, millis(timeout), null(), || real::epoll_wait(ep, ev, n, timeout))
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn epoll_pwait(
    ep: c_int,
    ev: *mut epoll_event,
    n: c_int,
    timeout: c_int,
    m: *const sigset_t,
) -> c_int {
    // SAFETY: the array and the mask are the program's, for libc as for us.
    unsafe {
        if not_ours(ep, ev, n) || !mask_readable(m) {
            return epoll::merged(ep, ev, real::epoll_pwait(ep, ev, n, timeout, m));
        }
        epoll::wait(ep, ev, n, millis(timeout), m, || real::epoll_pwait(ep, ev, n, timeout, m))
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn epoll_pwait2(
    ep: c_int,
    ev: *mut epoll_event,
    n: c_int,
    t: *const timespec,
    m: *const sigset_t,
) -> c_int {
    // SAFETY: the array and the mask are the program's, for libc as for us.
    unsafe {
        if not_ours(ep, ev, n) {
            return epoll::merged(ep, ev, real::epoll_pwait2(ep, ev, n, t, m));
        }
        match nanos(t) {
            Ok(ns) if mask_readable(m) => epoll::wait(ep, ev, n, ns, m, || real::epoll_pwait2(ep, ev, n, t, m)),
            _ => epoll::merged(ep, ev, real::epoll_pwait2(ep, ev, n, t, m)),
        }
    }
}
