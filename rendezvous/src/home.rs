//! The network namespace that a process is at home in: the one that all of culvert's own sockets in it live in, and that
//! the connections live in that it may put onto shared memory.
//!
//! A socket lives in the namespace that its maker was in at that time, for good (an accepted one in its listener's), and the
//! thread that uses it may be in any other: it has gone there since (setns(2), unshare(2)), or has the socket from somebody
//! else. What the kernel says about addresses (`diag`), and who has an abstract name (`bell`, `mailbox`), is true of one
//! namespace alone. Asked in another one than the connection's, the kernel tells of whoever has made a connection with the
//! same addresses there.
//!
//! The first socket of ours says where home is. One that would live elsewhere is not made.

use crate::os;
use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::Relaxed;

/// Why a socket of ours was not made, as an `errno` value: the calling thread is not at home.
pub const ELSEWHERE: i32 = libc::EXDEV;

/// Where a process is at home; meant to be a `static`. The child of a fork has its parent's home, since it rings with its
/// parent's sockets.
pub struct Home {
    /// The namespace's number ([`Home::of`]); 0: none is known yet.
    id: AtomicU64,
    /// Which namespace a socket lives in, as the kernel says.
    ask: fn(i32) -> Result<u64, i32>,
}

/// Set in numbers that are inodes, which the kernel's own numbers are too small for.
const INODE: u64 = 1 << 63;

impl Home {
    /// None so far.
    #[allow(clippy::new_without_default)]
    pub const fn new() -> Home {
        Home { id: AtomicU64::new(0), ask: os::network_of }
    }

    /// As on a kernel that does not tell where a socket lives.
    #[cfg(test)]
    pub const fn on_an_old_kernel() -> Home {
        Home { id: AtomicU64::new(0), ask: |_| Err(libc::ENOPROTOOPT) }
    }

    /// A number for the namespace of a socket that the calling thread has just made.
    fn of(&self, fresh: i32) -> Result<u64, i32> {
        match (self.ask)(fresh) {
            // Linux before 5.14. The thread is where it was: what it makes lives there. While this process has a socket in that
            // namespace, the inode is no other's.
            Err(libc::ENOPROTOOPT) => os::stat(c"/proc/thread-self/ns/net").map(|st| st.ino | INODE),
            answer => answer,
        }
    }

    /// Takes a socket of ours that the calling thread has just made, and closes it if it does not live at home.
    ///
    /// # Errors
    /// [`ELSEWHERE`]; or `errno`: the kernel does not tell.
    pub(crate) fn accept(&self, fresh: i32) -> Result<i32, i32> {
        match self.of(fresh) {
            Ok(id) if self.settle(id) == id => Ok(fresh),
            other => {
                os::close(fresh);
                Err(other.err().unwrap_or(ELSEWHERE))
            }
        }
    }

    /// A socket of ours, which lives at home.
    ///
    /// # Errors
    /// `errno` of socket; those of [`Home::accept`].
    pub(crate) fn socket(&self, domain: i32, kind: i32, protocol: i32) -> Result<i32, i32> {
        self.accept(os::socket(domain, kind, protocol)?)
    }

    /// Home is where `id` says, unless that is known already.
    fn settle(&self, id: u64) -> u64 {
        self.id.compare_exchange(0, id, Relaxed, Relaxed).map_or_else(|known| known, |_| id)
    }

    /// Whether the calling thread is at home. Where none is known yet, this is it.
    ///
    /// # Errors
    /// `errno`: nobody can tell.
    pub fn is_here(&self) -> Result<bool, i32> {
        match self.socket(libc::AF_UNIX, libc::SOCK_DGRAM, 0) {
            Ok(fd) => {
                os::close(fd);
                Ok(true)
            }
            Err(ELSEWHERE) => Ok(false),
            Err(errno) => Err(errno),
        }
    }

    /// Whether socket `fd`, whoever has made it, lives at home. `None`: the kernel does not say so of a socket (Linux before
    /// 5.14).
    ///
    /// # Errors
    /// `errno`: nobody can tell.
    pub(crate) fn has(&self, fd: i32) -> Result<Option<bool>, i32> {
        if self.id.load(Relaxed) == 0 {
            self.is_here()?;
        }
        match (self.ask)(fd) {
            Ok(id) => Ok(Some(id == self.id.load(Relaxed))),
            Err(libc::ENOPROTOOPT) => Ok(None),
            Err(errno) => Err(errno),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::*;

    fn udp() -> std::os::fd::OwnedFd {
        own(os::socket(libc::AF_INET, libc::SOCK_DGRAM, 0).unwrap())
    }

    #[test]
    fn the_first_socket_says_where_home_is_and_none_is_made_elsewhere() {
        use std::os::fd::AsRawFd;
        let Some(away) = Away::new() else { return };
        for home in [Home::new(), Home::on_an_old_kernel()] {
            let old = home.has(udp().as_raw_fd()).unwrap().is_none();
            let there = away.run(|| {
                assert_eq!(home.socket(libc::AF_UNIX, libc::SOCK_DGRAM, 0), Err(ELSEWHERE));
                assert_eq!(home.is_here(), Ok(false));
                udp()
            });
            assert_eq!(home.is_here(), Ok(true));
            drop(own(home.socket(libc::AF_NETLINK, libc::SOCK_RAW, 4).unwrap()));
            let (here, told) = (udp(), |yes| if old { None } else { Some(yes) });
            assert_eq!(home.has(here.as_raw_fd()), Ok(told(true)));
            assert_eq!(home.has(there.as_raw_fd()), Ok(told(false)));
            away.run(|| assert_eq!(home.has(here.as_raw_fd()), Ok(told(true)), "whoever asks"));
            assert!(home.has(-1).is_err() || old);
        }
        // One that begins in the other namespace is at home there.
        for home in [Home::new(), Home::on_an_old_kernel()] {
            away.run(|| assert_eq!(home.is_here(), Ok(true)));
            assert_eq!(home.is_here(), Ok(false));
        }
    }

    #[test]
    fn what_is_not_made_leaves_no_descriptor() {
        let home = Home { id: AtomicU64::new(u64::MAX), ask: os::network_of };
        let _alone = no_forks();
        let lowest = || {
            let fd = os::openat(libc::AT_FDCWD, c"/dev/null", libc::O_RDONLY, 0).unwrap();
            os::close(fd);
            fd
        };
        // Other tests open and close descriptors meanwhile.
        let same = (0..1000).any(|_| {
            let before = lowest();
            assert_eq!(home.is_here(), Ok(false));
            lowest() == before
        });
        assert!(same);
    }
}
