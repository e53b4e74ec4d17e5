//! Calls that move bytes, and those that count them.

use std::ffi::c_void;
use std::ptr;

use super::{Args, FILE_LEN, SLOT_FILE, call, fd_in, shown};
use crate::rng::{HASH_START, fill, hash};

/// What buffers hold before a call, and what must still be there where it may not write.
const CANARY: u8 = 0xee;
/// Canary bytes behind each buffer.
const GUARD: usize = 16;

/// A receive buffer of several pieces, each followed by canaries.
struct Pieces {
    parts: Vec<Vec<u8>>,
}

impl Pieces {
    fn new(sizes: &[usize]) -> Pieces {
        Pieces { parts: sizes.iter().map(|n| vec![CANARY; n + GUARD]).collect() }
    }

    fn iov(&mut self) -> Vec<libc::iovec> {
        self.parts
            .iter_mut()
            .map(|p| libc::iovec { iov_base: p.as_mut_ptr().cast(), iov_len: p.len() - GUARD })
            .collect()
    }

    /// Hash of the first `n` bytes, and a word if anything behind them was touched.
    fn judge(&self, n: i64) -> String {
        let mut left = n.max(0) as usize;
        let (mut h, mut overrun) = (HASH_START, false);
        for p in &self.parts {
            let take = left.min(p.len() - GUARD);
            h = hash(h, &p[..take]);
            overrun |= p[take..].iter().any(|b| *b != CANARY);
            left -= take;
        }
        let note = if overrun { " OVERRUN" } else { "" };
        if n > 0 { format!(" h={:08x}{note}", h as u32) } else { note.into() }
    }
}

fn message(iov: &mut [libc::iovec]) -> libc::msghdr {
    // SAFETY: zero is a valid msghdr: no name, no control data, no vectors.
    let mut m: libc::msghdr = unsafe { std::mem::zeroed() };
    m.msg_iov = iov.as_mut_ptr();
    m.msg_iovlen = iov.len();
    m
}

pub fn perform(op: &str, a: &mut Args) -> Option<String> {
    Some(match op {
        "read" | "recv" | "recvfrom" | "readv" | "recvmsg" | "recvmmsg" => receive(op, a),
        "write" | "send" | "sendto" | "writev" | "sendmsg" | "sendmmsg" => transmit(op, a),
        "trunc" => {
            // MSG_TRUNC on TCP discards: the buffer must stay as it was (tcp(7)).
            let (fd, n) = (a.fd(), a.size());
            let mut buf = Pieces::new(&[n]);
            let iov = buf.iov();
            let flags = libc::MSG_TRUNC | libc::MSG_DONTWAIT;
            let (_, text) = shown(|| call!(recv(fd, iov[0].iov_base, n, flags)) as i64);
            text + &buf.judge(0)
        }
        "sendmore" => {
            let (fd, n, m, seed) = (a.fd(), a.size(), a.size(), a.int() as u64);
            let (one, two) = (fill(seed, n), fill(seed + 1, m));
            let flags = libc::MSG_MORE | libc::MSG_NOSIGNAL;
            let (_, first) = shown(|| call!(send(fd, one.as_ptr().cast(), n, flags)) as i64);
            let flags = libc::MSG_NOSIGNAL;
            let (_, second) = shown(|| call!(send(fd, two.as_ptr().cast(), m, flags)) as i64);
            format!("{first} then {second}")
        }
        "sendfile" => {
            let (fd, n, at) = (a.fd(), a.size(), a.int());
            let mut offset: libc::off_t = at;
            let (_, text) = shown(|| call!(sendfile(fd, fd_in(SLOT_FILE), &raw mut offset, n.min(FILE_LEN))) as i64);
            format!("{text} offset={offset}")
        }
        "drain" => drain(a.fd()),
        "fault" => fault(a),
        "fionread" => {
            let fd = a.fd();
            let mut n: i32 = -7;
            let (_, text) = shown(|| call!(ioctl(fd, libc::FIONREAD, &raw mut n)) as i64);
            format!("{text} n={n}")
        }
        "outq" => {
            // How soon acknowledgements arrive is the kernel's business: only the sign is comparable.
            let fd = a.fd();
            let mut n: i32 = -7;
            let (_, text) = shown(|| call!(ioctl(fd, libc::TIOCOUTQ, &raw mut n)) as i64);
            format!("{text} sane={}", (0..10 << 20).contains(&n))
        }
        _ => return None,
    })
}

fn receive(op: &str, a: &mut Args) -> String {
    let (fd, sizes, flags) = (a.fd(), a.list(), a.int() as i32);
    let mut buf = Pieces::new(&sizes);
    let mut iov = buf.iov();
    let (base, n, count) = (iov[0].iov_base, iov[0].iov_len, iov.len() as i32);
    let mut extra = String::new();
    let (r, text) = match op {
        "read" => shown(|| call!(read(fd, base, n)) as i64),
        "recv" => shown(|| call!(recv(fd, base, n, flags)) as i64),
        "readv" => shown(|| call!(readv(fd, iov.as_ptr(), count)) as i64),
        "recvfrom" => {
            // SAFETY: zero is a valid sockaddr_storage.
            let mut from: libc::sockaddr_storage = unsafe { std::mem::zeroed() };
            let mut len = size_of_val(&from) as u32;
            let done = shown(|| call!(recvfrom(fd, base, n, flags, (&raw mut from).cast(), &raw mut len)) as i64);
            // On failure the kernel leaves the length alone or not, depending on where it failed: compare it.
            extra = format!(" addrlen={len}");
            done
        }
        "recvmsg" => {
            let mut control = [0u64; 16];
            let mut m = message(&mut iov);
            m.msg_control = control.as_mut_ptr().cast();
            m.msg_controllen = size_of_val(&control);
            let done = shown(|| call!(recvmsg(fd, &raw mut m, flags)) as i64);
            if done.0 >= 0 {
                extra = format!(" flags={:x} control={} name={}", m.msg_flags, m.msg_controllen, m.msg_namelen);
                // cmsg(3): length, level and type, then what it says: TCP_INQ's number.
                if m.msg_controllen > 0 {
                    extra += &format!(" says={:x},{}", control[1], control[2] as u32);
                }
            }
            done
        }
        _ => {
            let mut m = libc::mmsghdr { msg_hdr: message(&mut iov), msg_len: 0 };
            let done = shown(|| i64::from(call!(recvmmsg(fd, &raw mut m, 1, flags as _, ptr::null_mut()))));
            let got = if done.0 == 1 { i64::from(m.msg_len) } else { 0 };
            (got, format!("{} len={got}", done.1))
        }
    };
    let peeked = r.max(0);
    text + &extra + &buf.judge(peeked)
}

fn transmit(op: &str, a: &mut Args) -> String {
    let (fd, sizes, seed, flags) = (a.fd(), a.list(), a.int() as u64, a.int() as i32);
    let data: Vec<Vec<u8>> = sizes.iter().enumerate().map(|(i, n)| fill(seed + i as u64, *n)).collect();
    let mut iov: Vec<libc::iovec> = data
        .iter()
        .map(|d| libc::iovec { iov_base: d.as_ptr().cast_mut().cast::<c_void>(), iov_len: d.len() })
        .collect();
    let (base, n, count) = (iov[0].iov_base.cast_const(), iov[0].iov_len, iov.len() as i32);
    let (_, text) = match op {
        "write" => shown(|| call!(write(fd, base, n)) as i64),
        "send" => shown(|| call!(send(fd, base, n, flags)) as i64),
        "sendto" => shown(|| call!(sendto(fd, base, n, flags, ptr::null(), 0)) as i64),
        "writev" => shown(|| call!(writev(fd, iov.as_ptr(), count)) as i64),
        "sendmsg" => {
            let m = message(&mut iov);
            shown(|| call!(sendmsg(fd, &raw const m, flags)) as i64)
        }
        _ => {
            let mut m = libc::mmsghdr { msg_hdr: message(&mut iov), msg_len: 0 };
            let (r, text) = shown(|| i64::from(call!(sendmmsg(fd, &raw mut m, 1, flags as _))));
            (r, if r == 1 { format!("{text} len={}", m.msg_len) } else { text })
        }
    };
    text
}

/// Reads all there is now: how many bytes, which, and what ended it.
fn drain(fd: i32) -> String {
    let (mut total, mut h) = (0i64, HASH_START);
    let mut buf = vec![0u8; 40_000];
    for _ in 0..200 {
        let (r, text) = shown(|| call!(recv(fd, buf.as_mut_ptr().cast(), buf.len(), libc::MSG_DONTWAIT)) as i64);
        if r <= 0 {
            return format!("total={total} h={:08x} end: {text}", h as u32);
        }
        total += r;
        h = hash(h, &buf[..r as usize]);
    }
    format!("total={total} without end")
}

/// Calls with pointers that the kernel must refuse.
fn fault(a: &mut Args) -> String {
    let (fd, kind) = (a.fd(), a.word());
    let bad = 16 as *mut c_void;
    let quiet = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT;
    let (_, text) = match kind {
        "recv" => shown(|| call!(recv(fd, bad, 8, libc::MSG_DONTWAIT)) as i64),
        "peek" => shown(|| call!(recv(fd, bad, 8, libc::MSG_DONTWAIT | libc::MSG_PEEK)) as i64),
        "send" => shown(|| call!(send(fd, bad, 8, quiet)) as i64),
        "recvmsg" => shown(|| call!(recvmsg(fd, bad.cast(), libc::MSG_DONTWAIT)) as i64),
        "sendmsg" => shown(|| call!(sendmsg(fd, bad.cast(), quiet)) as i64),
        "recviov" => {
            let mut iov = [libc::iovec { iov_base: bad, iov_len: 8 }];
            let mut m = message(&mut iov);
            shown(|| call!(recvmsg(fd, &raw mut m, libc::MSG_DONTWAIT)) as i64)
        }
        "sendiov" => {
            let mut iov = [libc::iovec { iov_base: bad, iov_len: 8 }];
            let m = message(&mut iov);
            shown(|| call!(sendmsg(fd, &raw const m, quiet)) as i64)
        }
        "writev" => shown(|| call!(writev(fd, bad.cast(), 1)) as i64),
        "iovcount" => shown(|| call!(readv(fd, bad.cast(), -1)) as i64),
        "fionread" => shown(|| i64::from(call!(ioctl(fd, libc::FIONREAD, bad)))),
        "poll" => shown(|| i64::from(call!(poll(bad.cast(), 1, 0)))),
        "getsockopt" => shown(|| i64::from(call!(getsockopt(fd, libc::SOL_SOCKET, libc::SO_ERROR, bad, bad.cast())))),
        other => panic!("unknown fault {other}"),
    };
    text
}
