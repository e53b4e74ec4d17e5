//! Doorbells: how a process wakes a thread of another that sleeps.
//!
//! A doorbell is a datagram socket of the sleeper's, with an abstract name, and nothing that two processes have in common:
//! its open file is the sleeper's alone. So nobody can make ringing it wait, as by clearing O_NONBLOCK on a shared eventfd
//! and filling its counter. Anybody may write to it, but a filter drops what does not have the doorbell's key, before it
//! takes a place in the queue and wakes anybody. The key is told to peers, in the memory that is shared with them.

use crate::Place;
use crate::home::Home;
use crate::mailbox::{SendError, address};
use crate::os::{self, Filter};

/// An open doorbell. Plain numbers: whoever holds it closes `fd`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Bell {
    /// The socket: readable once it was rung.
    pub fd: i32,
    /// What is rung; never 0.
    pub name: u64,
    /// What it must be rung with; never 0.
    pub key: u64,
}

/// Makes a doorbell, at home, and has `place` move its descriptor.
///
/// # Errors
/// `errno` of socket, setsockopt, bind or getrandom; those of [`Home`].
pub fn open(place: Place, home: &Home) -> Result<Bell, i32> {
    let fd = home.socket(libc::AF_UNIX, libc::SOCK_DGRAM, 0)?;
    match name_it(fd) {
        Ok((name, key)) => Ok(Bell { fd: place(fd), name, key }),
        Err(errno) => {
            os::close(fd);
            Err(errno)
        }
    }
}

fn name_it(fd: i32) -> Result<(u64, u64), i32> {
    let (name, key) = (os::random()?.max(1), os::random()?.max(1));
    let bytes = key.to_ne_bytes();
    let mut f = Filter::new();
    f.length(bytes.len() as u32);
    f.word(0, &bytes[..4]);
    f.word(4, &bytes[4..]);
    // Before it has a name, and anybody can write to it.
    f.attach(fd)?;
    os::refuse_descriptors(fd);
    os::bind(fd, &address(name))?;
    Ok((name, key))
}

/// A socket to ring doorbells with, at home: it finds them whatever namespace the thread is in that rings.
///
/// # Errors
/// `errno` of socket; those of [`Home`].
pub fn ringer(place: Place, home: &Home) -> Result<i32, i32> {
    home.socket(libc::AF_UNIX, libc::SOCK_DGRAM, 0).map(place)
}

/// Rings the doorbell `name`. Never blocks. `Ok` as well if it has been rung so often that no more fits. `spare`: other datagram
/// sockets of ours, at home.
///
/// # Errors
/// [`SendError`]: nobody was woken.
pub fn ring(
    ringer: i32,
    name: u64,
    key: u64,
    home: &Home,
    spare: &mut dyn Iterator<Item = i32>,
) -> Result<(), SendError> {
    let (key, to) = (key.to_ne_bytes(), address(name));
    match os::sendto(ringer, &key, &to).map_err(SendError::from) {
        Ok(_) => Ok(()),
        Err(SendError::Gone) => Err(SendError::Gone),
        // Full is the doorbell, or else this socket of ours: what was rung with it and is not heard yet counts against its
        // buffer, also if those who do not listen are others. A new one has an empty buffer. Any other error says that the
        // number is not our socket's: a program that closes what it does not know by system calls of its own has closed it.
        Err(SendError::Full | SendError::Other(_)) => {
            let sent = match home.socket(libc::AF_UNIX, libc::SOCK_DGRAM, 0) {
                Ok(fresh) => {
                    let sent = os::sendto(fresh, &key, &to);
                    os::close(fresh);
                    sent
                }
                // The thread is not at home, or there is no descriptor for it. The others have buffers of their own.
                Err(errno) => {
                    let mut sent = spare.map(|fd| os::sendto(fd, &key, &to));
                    sent.find(|s| *s != Err(libc::EAGAIN)).unwrap_or(Err(errno))
                }
            };
            match sent {
                Ok(_) | Err(libc::EAGAIN) => Ok(()),
                Err(errno) => Err(SendError::from(errno)),
            }
        }
    }
}

/// Takes away that a doorbell was rung, however often. What does not come to an end is left for the next time.
pub fn drain(fd: i32) {
    for _ in 0..64 {
        if os::discard(fd) < os::DISCARDED_AT_ONCE {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::*;
    use std::os::fd::{AsRawFd, OwnedFd};

    fn bell() -> (Bell, OwnedFd, OwnedFd) {
        let b = open(place, &HOME).unwrap();
        (b, own(b.fd), own(ringer(place, &HOME).unwrap()))
    }

    fn rings(r: &OwnedFd, name: u64, key: u64) -> Result<(), SendError> {
        ring(r.as_raw_fd(), name, key, &HOME, &mut std::iter::empty())
    }

    fn rung(b: &Bell) -> bool {
        let mut p = libc::pollfd { fd: b.fd, events: libc::POLLIN, revents: 0 };
        // SAFETY: one pollfd; no waiting.
        unsafe { libc::poll(&mut p, 1, 0) == 1 }
    }

    #[test]
    fn it_is_rung_with_its_key_alone() {
        let (b, _fd, r) = bell();
        assert!(!rung(&b));
        for wrong in [0, b.key ^ 1, b.key ^ 1 << 63, !b.key] {
            assert_eq!(rings(&r, b.name, wrong), Ok(()), "a stranger is not told either");
        }
        for bytes in [&[][..], &b.key.to_ne_bytes()[..7], &[&b.key.to_ne_bytes()[..], &[0]].concat()] {
            os::sendto(r.as_raw_fd(), bytes, &address(b.name)).unwrap();
        }
        assert!(!rung(&b));
        rings(&r, b.name, b.key).unwrap();
        assert!(rung(&b));
        drain(b.fd);
        assert!(!rung(&b));
    }

    #[test]
    fn a_full_doorbell_is_rung_and_strangers_cannot_fill_it() {
        let (b, _fd, r) = bell();
        for _ in 0..10_000 {
            rings(&r, b.name, b.key ^ 2).unwrap();
        }
        assert!(!rung(&b));
        for _ in 0..10_000 {
            rings(&r, b.name, b.key).unwrap();
        }
        assert!(rung(&b));
        drain(b.fd);
        assert!(!rung(&b), "however often it was rung");
    }

    /// What others have not heard yet fills the buffer of the socket that rang: this one is rung all the same.
    #[test]
    fn those_who_do_not_listen_do_not_silence_the_others() {
        let (b, _fd, r) = bell();
        let deaf: Vec<_> = (0..100).map(|_| bell()).collect();
        for (d, ..) in &deaf {
            for _ in 0..20 {
                rings(&r, d.name, d.key).unwrap();
            }
        }
        let full = os::sendto(r.as_raw_fd(), &b.key.to_ne_bytes(), &address(b.name)) == Err(libc::EAGAIN);
        assert!(full, "the socket's own buffer is exhausted, or nothing was tested");
        rings(&r, b.name, b.key).unwrap();
        assert!(rung(&b));
    }

    /// Also by a thread that has gone to another network namespace, where the names are others'.
    #[test]
    fn a_thread_that_is_not_at_home_rings_there_and_makes_no_doorbell() {
        let Some(away) = Away::new() else { return };
        let (b, _fd, r) = bell();
        let spare = [own(ringer(place, &HOME).unwrap()), own(open(place, &HOME).unwrap().fd)];
        let deaf: Vec<_> = (0..100).map(|_| bell()).collect();
        away.run(|| {
            rings(&r, b.name, b.key).unwrap();
            assert!(rung(&b));
            drain(b.fd);
            assert_eq!(open(place, &HOME).map(|b| b.fd), Err(crate::home::ELSEWHERE));
            assert_eq!(ringer(place, &HOME), Err(crate::home::ELSEWHERE));
            // The ringer's own buffer is exhausted, then the first spare one's; somebody has the same name where this thread is.
            let impostor = own(os::socket(libc::AF_UNIX, libc::SOCK_DGRAM, 0).unwrap());
            os::bind(impostor.as_raw_fd(), &address(b.name)).unwrap();
            for fd in [r.as_raw_fd(), spare[0].as_raw_fd()] {
                let fill = |d: &Bell| os::sendto(fd, &d.key.to_ne_bytes(), &address(d.name));
                deaf.iter().flat_map(|(d, ..)| [d; 20]).for_each(|d| _ = fill(d));
                assert_eq!(fill(&deaf[99].0), Err(libc::EAGAIN));
                assert!(!rung(&deaf[99].0), "the doorbell was full, not the buffer");
            }
            assert_eq!(rings(&r, b.name, b.key), Err(SendError::Other(crate::home::ELSEWHERE)));
            assert!(!rung(&b));
            ring(r.as_raw_fd(), b.name, b.key, &HOME, &mut spare.iter().map(|fd| fd.as_raw_fd())).unwrap();
            assert!(rung(&b));
            let mut none = [0; 8];
            assert!(os::recvmsg(impostor.as_raw_fd(), &mut none, &mut [], 0).is_err(), "the impostor was rung");
        });
    }

    #[test]
    fn it_is_rung_by_one_whose_socket_was_closed_or_is_another_file() {
        let (b, _fd, r) = bell();
        let null = std::fs::File::open("/dev/null").unwrap();
        for ringer in [-1, null.as_raw_fd(), own(os::socket(libc::AF_INET, libc::SOCK_DGRAM, 0).unwrap()).as_raw_fd()] {
            ring(ringer, b.name, b.key, &HOME, &mut std::iter::empty()).unwrap();
            assert!(rung(&b));
            drain(b.fd);
        }
        drop(r);
    }

    #[test]
    fn a_doorbell_that_is_gone_is_told() {
        let _guard = no_forks();
        let (b, fd, r) = bell();
        drop(fd);
        assert_eq!(rings(&r, b.name, b.key), Err(SendError::Gone));
    }
}
