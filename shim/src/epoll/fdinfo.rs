//! What the kernel tells about the registrations of a set: `/proc/self/fdinfo/EPFD`.

use core::ffi::CStr;
use libc::{EPOLLET, EPOLLEXCLUSIVE, EPOLLONESHOT, EPOLLWAKEUP, c_int};
use shmring::{lnx, sys};

/// A registration, as the kernel has it.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub(super) struct Registration {
    /// The number by which it was made.
    pub fd: c_int,
    pub events: u32,
    pub data: u64,
    /// Of the file. Sockets and pipes are counted together (get_next_ino, fs/inode.c).
    pub inode: u64,
}

impl Registration {
    pub const NONE: Registration = Registration { fd: 0, events: 0, data: 0, inode: 0 };

    /// Whether `fd` is the file: the kernel knows registrations of closed numbers, too. (What is no file of a file system, as an
    /// eventfd, cannot be told from others.)
    pub fn is_of(&self, fd: c_int) -> bool {
        lnx::stat(fd).is_some_and(|st| st.st_ino == self.inode)
    }

    /// Whether it is a oneshot that has fired: the mask is bare then.
    pub fn has_fired(&self) -> bool {
        const PRIVATE: u32 = (EPOLLONESHOT | EPOLLET | EPOLLWAKEUP | EPOLLEXCLUSIVE) as u32;
        self.events & !PRIVATE == 0
    }
}

/// Whether the kernel has disabled a oneshot registration.
pub(super) fn oneshot_fired(epfd: c_int, fd: c_int) -> bool {
    each(epfd, |r| r.fd == fd).is_some_and(|r| r.has_fired())
}

/// Calls `stop` with each registration, until it says yes; that one. None if `epfd` is no set.
pub(super) fn each(epfd: c_int, mut stop: impl FnMut(&Registration) -> bool) -> Option<Registration> {
    let path = engine::fds::proc_path(b"/proc/thread-self/fdinfo/", epfd);
    let f = lnx::open(CStr::from_bytes_until_nul(&path).ok()?, libc::O_RDONLY, 0);
    if f < 0 {
        return None;
    }
    let mut line = Line::default();
    let mut buf = [0u8; 1024];
    let mut found = None;
    while found.is_none() {
        let n = lnx::read(f, &mut buf);
        if n <= 0 {
            break;
        }
        found = buf[..n as usize].iter().find_map(|&b| line.feed(b).filter(&mut stop));
    }
    sys::close(f);
    found
}

/// Reads "tfd: N events: X data: X pos:N ino:X sdev:X" (fs/eventpoll.c, ep_show_fdinfo) byte by byte.
#[derive(Default)]
struct Line {
    name: u32,
    /// Behind the colon.
    value: bool,
    digits: u32,
    number: u64,
    is_set: bool,
    of: Registration,
}

impl Line {
    /// The registration, at the end of its line.
    fn feed(&mut self, b: u8) -> Option<Registration> {
        match (b, self.value) {
            (b'\n', _) => {
                self.end_of_value();
                let line = core::mem::take(self);
                return line.is_set.then_some(line.of);
            }
            (b':', false) => (self.value, self.digits, self.number) = (true, 0, 0),
            (b' ' | b'\t', true) if self.digits > 0 => self.end_of_value(),
            (b' ' | b'\t', _) => {}
            (b, true) => {
                let base = if self.name == hash(b"tfd") { 10 } else { 16 };
                let digit = (b as char).to_digit(16).unwrap_or(0);
                self.number = self.number.wrapping_mul(base).wrapping_add(u64::from(digit));
                self.digits += 1;
            }
            (b, false) => self.name = self.name.wrapping_mul(31).wrapping_add(u32::from(b)),
        }
        None
    }

    fn end_of_value(&mut self) {
        let n = self.number;
        if self.value && self.name == hash(b"tfd") {
            (self.of.fd, self.is_set) = (n as c_int, true);
        } else if self.value && self.name == hash(b"events") {
            self.of.events = n as u32;
        } else if self.value && self.name == hash(b"data") {
            self.of.data = n;
        } else if self.value && self.name == hash(b"ino") {
            self.of.inode = n;
        }
        (self.name, self.value) = (0, false);
    }
}

const fn hash(s: &[u8]) -> u32 {
    let mut h = 0u32;
    let mut i = 0;
    while i < s.len() {
        h = h.wrapping_mul(31).wrapping_add(s[i] as u32);
        i += 1;
    }
    h
}
