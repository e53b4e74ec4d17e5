//! epoll.

use super::{bad, millis, nanos};
use crate::{descriptors, epoll, real};
use core::ffi::c_int;
use core::ptr::null;
use libc::{epoll_event, sigset_t, timespec};

/// Events one call can return (`EP_MAX_EVENTS` in fs/eventpoll.c).
const MAX_EVENTS: c_int = (i32::MAX as usize / size_of::<epoll_event>()) as c_int;

/// Whether the kernel refuses the array before it looks at the set.
fn refused(ev: *mut epoll_event, max: c_int) -> bool {
    max <= 0 || max > MAX_EVENTS || bad(ev)
}

hooks! {
    /// The size is a hint that must be positive (epoll_create(2)).
    fn epoll_create(n: c_int) -> c_int {
        if n <= 0 { real::epoll_create(n) } else { descriptors::epoll_create1(0) }
    }
    fn epoll_create1(flags: c_int) -> c_int { descriptors::epoll_create1(flags) }
    fn epoll_ctl(ep: c_int, op: c_int, fd: c_int, ev: *mut epoll_event) -> c_int {
        if op != libc::EPOLL_CTL_DEL && bad(ev) {
            return real::epoll_ctl(ep, op, fd, ev);
        }
        epoll::ctl(ep, op, fd, ev)
    }
    fn epoll_wait(ep: c_int, ev: *mut epoll_event, n: c_int, timeout: c_int) -> c_int {
        if refused(ev, n) {
            return real::epoll_wait(ep, ev, n, timeout);
        }
        epoll::wait(ep, ev, n, millis(timeout), null(), || real::epoll_wait(ep, ev, n, timeout))
    }
    fn epoll_pwait(ep: c_int, ev: *mut epoll_event, n: c_int, timeout: c_int, m: *const sigset_t) -> c_int {
        if refused(ev, n) || (!m.is_null() && bad(m)) {
            return real::epoll_pwait(ep, ev, n, timeout, m);
        }
        epoll::wait(ep, ev, n, millis(timeout), m, || real::epoll_pwait(ep, ev, n, timeout, m))
    }
    fn epoll_pwait2(ep: c_int, ev: *mut epoll_event, n: c_int, t: *const timespec, m: *const sigset_t) -> c_int {
        match nanos(t) {
            Ok(ns) if !refused(ev, n) && (m.is_null() || !bad(m)) => {
                epoll::wait(ep, ev, n, ns, m, || real::epoll_pwait2(ep, ev, n, t, m))
            }
            _ => real::epoll_pwait2(ep, ev, n, t, m),
        }
    }
}
