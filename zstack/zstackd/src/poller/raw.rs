//! What of the poller is unsafe: epoll_pwait2(2), whose sleeps end to the microsecond, and which nix does not have.

#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

/// An event of epoll's.
pub(super) type Event = libc::epoll_event;

/// Sleeps until the set has something, at most `limit`, for ever without one. How many of `events` there are.
pub(super) fn wait(epoll: BorrowedFd<'_>, events: &mut [Event], limit: Option<Duration>) -> io::Result<usize> {
    let time = limit.map(|limit| libc::timespec {
        tv_sec: libc::time_t::try_from(limit.as_secs()).unwrap_or(libc::time_t::MAX),
        tv_nsec: limit.subsec_nanos().into(),
    });
    let time = time.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    let most = i32::try_from(events.len()).unwrap_or(i32::MAX);
    // SAFETY: the descriptor is open; the kernel writes at most `most` events and reads a timespec, which live through the call.
    let n = unsafe { libc::epoll_pwait2(epoll.as_raw_fd(), events.as_mut_ptr(), most, time, std::ptr::null()) };
    if n < 0 { Err(io::Error::last_os_error()) } else { Ok(n as usize) }
}
