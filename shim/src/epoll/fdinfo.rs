//! What the kernel tells about a registration: `/proc/self/fdinfo/EPFD`.

use core::ffi::CStr;
use libc::{EPOLLET, EPOLLEXCLUSIVE, EPOLLONESHOT, EPOLLWAKEUP, c_int};
use shmring::{lnx, sys};

/// Whether the kernel has disabled a oneshot registration: its event mask in fdinfo is then bare.
pub(super) fn oneshot_fired(epfd: c_int, fd: c_int) -> bool {
    let path = engine::fds::proc_path(b"/proc/thread-self/fdinfo/", epfd);
    let Ok(path) = CStr::from_bytes_until_nul(&path) else { return false };
    let f = lnx::open(path, libc::O_RDONLY, 0);
    if f < 0 {
        return false;
    }
    let mut state = FdInfo::default();
    let mut buf = [0u8; 1024];
    let mut found = None;
    while found.is_none() {
        let n = lnx::read(f, &mut buf);
        if n <= 0 {
            break;
        }
        for &b in &buf[..n as usize] {
            if let Some((tfd, events)) = state.feed(b)
                && tfd == fd as u64
            {
                found = Some(events);
                break;
            }
        }
    }
    sys::close(f);
    const PRIVATE: u64 = (EPOLLONESHOT | EPOLLET | EPOLLWAKEUP | EPOLLEXCLUSIVE) as u32 as u64;
    found.is_some_and(|e| e & !PRIVATE == 0)
}

/// Reads "tfd: N events: X data: ..." (fs/eventpoll.c, ep_show_fdinfo) byte by byte.
#[derive(Default)]
struct FdInfo {
    word: u32,
    number: u64,
    digits: u32,
    tfd: u64,
    hex: bool,
    armed: bool,
}

impl FdInfo {
    fn feed(&mut self, b: u8) -> Option<(u64, u64)> {
        if b == b'\n' {
            let tfd = self.tfd;
            *self = FdInfo { tfd, ..FdInfo::default() };
            return None;
        }
        if b == b':' {
            self.armed = self.word == hash(b"tfd") || self.word == hash(b"events");
            self.hex = self.word == hash(b"events");
            self.number = 0;
            self.digits = 0;
            self.word = 0;
            return None;
        }
        if b == b' ' || b == b'\t' {
            self.word = 0;
            if self.armed && self.digits > 0 {
                self.armed = false;
                if self.hex {
                    return Some((self.tfd, self.number));
                }
                self.tfd = self.number;
            }
            return None;
        }
        if self.armed {
            let d = (b as char).to_digit(16).unwrap_or(0);
            self.number = self.number * if self.hex { 16 } else { 10 } + u64::from(d);
            self.digits += 1;
        } else {
            self.word = self.word.wrapping_mul(31).wrapping_add(u32::from(b));
        }
        None
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
