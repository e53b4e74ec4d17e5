//! Sleeping on many descriptors, to the microsecond.

mod raw;

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

/// By how much the kernel may prolong a sleep of this thread, in nanoseconds (PR_SET_TIMERSLACK; 50 microseconds if nobody says).
const SLACK: u64 = 1000;

/// A set of descriptors, each with a token.
pub struct Poller {
    epoll: Epoll,
    events: Vec<raw::Event>,
}

/// What is known of a descriptor.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Event {
    /// Which.
    pub token: u64,
    /// Something can be read, or there is an end or an error to be read.
    pub readable: bool,
    /// Something can be written, or there is an error.
    pub writable: bool,
    /// There are urgent bytes.
    pub urgent: bool,
    /// Behind what can be read now comes an end or an error: nothing else will be told.
    pub ended: bool,
    /// There is an error.
    pub error: bool,
}

impl Poller {
    /// An empty set, for the calling thread.
    ///
    /// # Errors
    /// Those of epoll_create1(2).
    pub fn new() -> io::Result<Poller> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        nix::sys::prctl::set_timerslack(SLACK)?;
        Ok(Poller { epoll, events: vec![raw::Event { events: 0, u64: 0 }; 256] })
    }

    /// Tells, as long as it is so, that a descriptor can be read.
    ///
    /// # Errors
    /// Those of epoll_ctl(2).
    pub fn watch(&self, fd: impl AsFd, token: u64) -> io::Result<()> {
        Ok(self.epoll.add(fd, EpollEvent::new(EpollFlags::EPOLLIN, token))?)
    }

    /// Tells each time when something has come that can be read.
    ///
    /// # Errors
    /// Those of epoll_ctl(2).
    pub fn watch_arrivals(&self, fd: impl AsFd, token: u64) -> io::Result<()> {
        Ok(self.epoll.add(fd, EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLET, token))?)
    }

    /// Tells each time when a descriptor can be read or written that could not be before.
    ///
    /// # Errors
    /// Those of epoll_ctl(2).
    pub fn watch_edges(&self, fd: impl AsFd, token: u64) -> io::Result<()> {
        let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLPRI | EpollFlags::EPOLLOUT | EpollFlags::EPOLLRDHUP;
        Ok(self.epoll.add(fd, EpollEvent::new(flags | EpollFlags::EPOLLET, token))?)
    }

    /// Tells no more of a descriptor, which stays open.
    ///
    /// # Errors
    /// Those of epoll_ctl(2).
    pub fn forget(&self, fd: impl AsFd) -> io::Result<()> {
        Ok(self.epoll.delete(fd)?)
    }

    /// Sleeps until a descriptor has something, at most `limit`, for ever without one; a signal ends it early. What there is goes behind
    /// `into`.
    ///
    /// # Errors
    /// Those of epoll_pwait2(2), apart from EINTR.
    pub fn wait(&mut self, limit: Option<Duration>, into: &mut Vec<Event>) -> io::Result<()> {
        let n = match raw::wait(self.epoll.0.as_fd(), &mut self.events, limit) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => 0,
            other => other?,
        };
        for event in &self.events[..n] {
            let flags = EpollFlags::from_bits_truncate(event.events as i32);
            let any = EpollFlags::EPOLLERR | EpollFlags::EPOLLHUP;
            into.push(Event {
                token: event.u64,
                readable: flags.intersects(EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP | any),
                writable: flags.intersects(EpollFlags::EPOLLOUT | any),
                urgent: flags.contains(EpollFlags::EPOLLPRI),
                ended: flags.intersects(EpollFlags::EPOLLRDHUP | any),
                error: flags.contains(EpollFlags::EPOLLERR),
            });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read as _, Write as _};
    use std::os::unix::net::UnixStream;
    use std::time::Instant;

    #[test]
    fn edges_are_told_once_and_levels_for_as_long_as_they_last() {
        let mut poller = Poller::new().unwrap();
        let (mut a, mut b) = UnixStream::pair().unwrap();
        let (mut c, d) = UnixStream::pair().unwrap();
        poller.watch_edges(&b, 1).unwrap();
        poller.watch(&d, 2).unwrap();
        a.write_all(b"x").unwrap();
        c.write_all(b"x").unwrap();
        let mut look = |limit| {
            let mut events = vec![];
            poller.wait(Some(limit), &mut events).unwrap();
            events.sort_by_key(|e: &Event| e.token);
            events
        };
        let both = Event { token: 1, readable: true, writable: true, ended: false, urgent: false, error: false };
        let level = Event { token: 2, readable: true, writable: false, ended: false, urgent: false, error: false };
        assert_eq!(look(Duration::from_secs(10)), [both, level]);
        assert_eq!(look(Duration::from_secs(10)), [level]);
        (&d).read_exact(&mut [0]).unwrap();
        assert_eq!(look(Duration::ZERO), []);
        drop(a);
        assert_eq!(look(Duration::from_secs(10)), [Event { ended: true, ..both }]);
        b.read_exact(&mut [0]).unwrap();
        assert_eq!(b.read(&mut [0]).unwrap(), 0);
    }

    #[test]
    fn a_sleep_is_not_shorter_than_asked_for() {
        let mut poller = Poller::new().unwrap();
        for limit in [50, 900, 5_000, 21_000].map(Duration::from_micros) {
            let start = Instant::now();
            // A signal may end one early.
            let mut events = vec![];
            while start.elapsed() < limit {
                poller.wait(Some(limit.saturating_sub(start.elapsed())), &mut events).unwrap();
            }
            assert!(events.is_empty());
        }
    }
}
