//! What several tests need.

use crate::home::Home;
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::{PoisonError, RwLock, RwLockReadGuard};

/// Held for writing while a forked child lives.
static FORKS: RwLock<()> = RwLock::new(());

/// While this is held no test has a forked child: such a child has copies of every test's descriptors, so
/// closing one of them would not close the socket.
pub fn no_forks() -> RwLockReadGuard<'static, ()> {
    FORKS.read().unwrap_or_else(PoisonError::into_inner)
}

/// A `Place` as the library has it: high, close-on-exec, old number closed.
pub fn place(fd: i32) -> i32 {
    // SAFETY: plain numbers.
    let high = unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, HIGH) };
    if high < 0 {
        return fd;
    }
    // SAFETY: `fd` was given to us.
    unsafe { libc::close(fd) };
    high
}

pub const HIGH: i32 = 300;

/// Takes ownership of a descriptor made by the code under test.
pub fn own(fd: i32) -> OwnedFd {
    // SAFETY: the code under test gave the descriptor away.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// Whether this machine has an IPv6 loopback (containers often lack it).
pub fn v6_loopback() -> bool {
    TcpListener::bind("[::1]:0").is_ok()
}

/// A connection to `listener` by way of `host`, and its accepted end.
pub fn accepted(listener: &TcpListener, host: &str) -> (TcpStream, TcpStream) {
    let client = TcpStream::connect((host, listener.local_addr().unwrap().port())).unwrap();
    let (server, _) = listener.accept().unwrap();
    (client, server)
}

/// `SO_COOKIE`.
pub fn cookie(socket: &impl AsRawFd) -> u64 {
    let mut value = 0u64;
    let mut len = 8u32;
    // SAFETY: 8 bytes of room, as `len` says.
    let ret = unsafe {
        libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_COOKIE, (&raw mut value).cast(), &mut len)
    };
    assert_eq!((ret, len), (0, 8));
    value
}

/// Runs `f` in a forked child and returns its result, 0..=255; 254 if the child died of a signal.
///
/// The test runner has threads, so `f` may only do what is safe after fork in a threaded program, which
/// is what this crate promises of itself.
pub fn in_child(f: impl FnOnce() -> u8) -> u8 {
    let _alone = FORKS.write().unwrap_or_else(PoisonError::into_inner);
    // SAFETY: the child calls nothing but `f` and `_exit`.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0);
    if pid == 0 {
        let code = f();
        // SAFETY: ends the child without running the parent's exit handlers.
        unsafe { libc::_exit(code as i32) };
    }
    let mut status = 0;
    // SAFETY: `pid` is our child and `status` has room.
    assert_eq!(unsafe { libc::waitpid(pid, &mut status, 0) }, pid);
    if libc::WIFEXITED(status) { libc::WEXITSTATUS(status) as u8 } else { 254 }
}

/// Whether the tests may change uids.
pub fn is_root() -> bool {
    // SAFETY: no arguments.
    unsafe { libc::geteuid() == 0 }
}

/// A pipe whose copies in this process can be counted.
pub struct Pipe {
    pub read: OwnedFd,
    pub write: OwnedFd,
}

impl Pipe {
    pub fn new() -> Pipe {
        let mut fds = [0; 2];
        // SAFETY: room for two descriptors.
        assert_eq!(unsafe { libc::pipe2(fds.as_mut_ptr(), libc::O_CLOEXEC) }, 0);
        Pipe { read: own(fds[0]), write: own(fds[1]) }
    }

    /// Descriptors of this process that are this pipe, either end.
    pub fn copies(&self) -> usize {
        let target = std::fs::read_link(format!("/proc/self/fd/{}", self.read.as_raw_fd())).unwrap();
        std::fs::read_dir("/proc/self/fd")
            .unwrap()
            .filter(|e| std::fs::read_link(e.as_ref().unwrap().path()).is_ok_and(|t| t == target))
            .count()
    }
}

/// Where the tests are at home.
pub static HOME: Home = Home::new();

/// Another network namespace, empty but for its loopback.
pub struct Away(OwnedFd);

impl Away {
    /// `None`: only root may make one.
    pub fn new() -> Option<Away> {
        if !is_root() {
            eprintln!("skipped: network namespaces need root");
            return None;
        }
        // Before a thread that is elsewhere could settle it.
        assert_eq!(HOME.is_here(), Ok(true));
        let made = std::thread::spawn(|| {
            // SAFETY: the thread's own namespace; the thread ends.
            assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNET) }, 0);
            let up = std::process::Command::new("ip").args(["link", "set", "lo", "up"]).status();
            assert!(up.is_ok_and(|s| s.success()));
            std::fs::File::open("/proc/thread-self/ns/net").unwrap().into()
        });
        Some(Away(made.join().unwrap()))
    }

    /// Runs `f` in a thread that is there.
    pub fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        let there = || {
            // SAFETY: plain numbers; the thread ends.
            assert_eq!(unsafe { libc::setns(self.0.as_raw_fd(), libc::CLONE_NEWNET) }, 0);
            f()
        };
        std::thread::scope(|s| s.spawn(there).join().unwrap_or_else(|e| std::panic::resume_unwind(e)))
    }
}
