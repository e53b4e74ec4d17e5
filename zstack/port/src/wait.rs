//! Sleeping until a device has something, or a timer is due.

use crate::raw::calls;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::{Duration, Instant};
use zstack::time::Time;

/// The monotonic clock as the engine's [`Time`]: microseconds since this was made. It stands still while the machine is suspended.
#[derive(Clone, Copy, Debug)]
pub struct Clock(Instant);

impl Clock {
    /// A clock that shows 0 now.
    pub fn start() -> Clock {
        Clock(Instant::now())
    }

    /// What it shows.
    pub fn now(&self) -> Time {
        Time(self.0.elapsed().as_micros() as u64)
    }

    /// How long it is until `deadline`: nothing if that is past; `None` (for ever) for none and for [`Time::NEVER`].
    pub fn until(&self, deadline: Option<Time>) -> Option<Duration> {
        let deadline = deadline.filter(|at| *at != Time::NEVER)?;
        // To the nanosecond, so that a sleep never ends before the clock shows the deadline.
        Some(Duration::from_micros(deadline.0).saturating_sub(self.0.elapsed()))
    }
}

/// A descriptor, what it is watched for, and whether it has it.
#[derive(Clone, Copy, Debug)]
pub struct Interest<'a> {
    /// The descriptor.
    pub fd: BorrowedFd<'a>,
    /// Whether something to be read (or an end, or an error) wakes.
    pub read: bool,
    /// Whether room to write (or an error) wakes.
    pub write: bool,
    /// The answer of [`wait_any`]: one of those, or an error, which is never left out.
    pub ready: bool,
}

impl<'a> Interest<'a> {
    /// Watches `fd` for something to be read.
    pub fn read(fd: BorrowedFd<'a>) -> Interest<'a> {
        Interest { fd, read: true, write: false, ready: false }
    }
}

/// Sleeps until `fd` has something to be read, is at its end or has failed; at most `limit`, for ever without one. Whether it has.
/// A signal that the process handles ends the sleep with `false`.
///
/// # Errors
/// Those of ppoll(2), apart from EINTR.
pub fn wait(fd: BorrowedFd<'_>, limit: Option<Duration>) -> io::Result<bool> {
    let mut fds = [libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 }];
    poll(&mut fds, limit).map(|ready| ready > 0)
}

/// Sleeps until one of several descriptors has what it is watched for: see [`wait`]. How many have; without any descriptor it
/// only sleeps.
///
/// # Errors
/// Those of ppoll(2), apart from EINTR.
pub fn wait_any(interests: &mut [Interest<'_>], limit: Option<Duration>) -> io::Result<usize> {
    let events = |i: &Interest<'_>| if i.read { libc::POLLIN } else { 0 } | if i.write { libc::POLLOUT } else { 0 };
    let entry = |i: &Interest<'_>| libc::pollfd { fd: i.fd.as_raw_fd(), events: events(i), revents: 0 };
    let mut fds: Vec<_> = interests.iter().map(entry).collect();
    let ready = poll(&mut fds, limit)?;
    for (interest, fd) in interests.iter_mut().zip(&fds) {
        interest.ready = ready > 0 && fd.revents != 0;
    }
    Ok(ready)
}

fn poll(fds: &mut [libc::pollfd], limit: Option<Duration>) -> io::Result<usize> {
    match calls::poll(fds, limit) {
        Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(0),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::fd::AsFd;

    #[test]
    fn a_sleep_ends_with_the_deadline_and_not_before_it() {
        let (reader, _writer) = io::pipe().unwrap();
        let clock = Clock::start();
        let deadline = Time(20_000);
        assert!(!wait(reader.as_fd(), clock.until(Some(deadline))).unwrap());
        assert!(clock.now() >= deadline);
        assert_eq!(clock.until(Some(deadline)), Some(Duration::ZERO), "it is past");
        assert_eq!(clock.until(None), None);
        assert_eq!(clock.until(Some(Time::NEVER)), None);
    }

    #[test]
    fn a_sleep_ends_with_bytes_or_their_end() {
        let (reader, mut writer) = io::pipe().unwrap();
        writer.write_all(b"x").unwrap();
        assert!(wait(reader.as_fd(), None).unwrap());
        let (ended, writer) = io::pipe().unwrap();
        drop(writer);
        assert!(wait(ended.as_fd(), None).unwrap());
    }

    #[test]
    fn of_several_the_ready_ones_are_named() {
        let (quiet, _w) = io::pipe().unwrap();
        let (loud, mut writer) = io::pipe().unwrap();
        writer.write_all(b"x").unwrap();
        let room = Interest { fd: writer.as_fd(), read: false, write: true, ready: false };
        let mut all = [Interest::read(quiet.as_fd()), Interest::read(loud.as_fd()), room];
        assert_eq!(wait_any(&mut all, None).unwrap(), 2);
        assert_eq!(all.map(|i| i.ready), [false, true, true]);
        assert_eq!(wait_any(&mut all[..1], Some(Duration::ZERO)).unwrap(), 0);
        assert!(!all[0].ready);
        assert_eq!(wait_any(&mut [], Some(Duration::from_millis(1))).unwrap(), 0);
    }
}
