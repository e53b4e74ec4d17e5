//! Operations of many calls: the warm-up exchange, and transfers larger than what the kernel buffers.

use super::{Args, call, errno};
use crate::rng::{HASH_START, Rng, hash, pattern};

/// How long a descriptor may stay silent before a transfer gives up, milliseconds.
const PATIENCE: i32 = 6000;

pub fn perform(op: &str, a: &mut Args) -> Option<String> {
    Some(match op {
        "pingpong" => {
            let (fd, rounds, seed, role, how) = (a.fd(), a.size(), a.int() as u64, a.word(), a.word());
            ping_pong(fd, rounds, seed, role == "c", how).unwrap_or_else(|e| e)
        }
        "duplex" => {
            let (fd, tx, rx, seed, how) = (a.fd(), a.size(), a.size(), a.int() as u64, a.word());
            duplex(fd, tx, rx, seed, how).unwrap_or_else(|e| e)
        }
        _ => return None,
    })
}

fn wait_for(fd: i32, events: i16) -> Result<i16, String> {
    let mut p = libc::pollfd { fd, events, revents: 0 };
    loop {
        match call!(poll(&raw mut p, 1, PATIENCE)) {
            0 => return Err(format!("STALLED waiting for {events:x}")),
            r if r > 0 => return Ok(p.revents),
            _ if errno() == libc::EINTR => {}
            _ => return Err(format!("poll errno{}", errno())),
        }
    }
}

/// Reads exactly `buf`, in the manner named `how`.
fn read_all(fd: i32, buf: &mut [u8], how: &str) -> Result<(), String> {
    let mut at = 0;
    while at < buf.len() {
        if how == "poll" {
            wait_for(fd, libc::POLLIN)?;
        }
        let (p, n) = (buf[at..].as_mut_ptr().cast(), buf.len() - at);
        let r = match how {
            "read" => call!(read(fd, p, n)),
            "waitall" => call!(recv(fd, p, n, libc::MSG_WAITALL)),
            "poll" => call!(recv(fd, p, n, libc::MSG_DONTWAIT)),
            _ => call!(recv(fd, p, n, 0)),
        };
        match r {
            0 => return Err(format!("end after {at} of {}", buf.len())),
            r if r > 0 => at += r as usize,
            _ if matches!(errno(), libc::EINTR) => {}
            _ if errno() == libc::EAGAIN => {
                wait_for(fd, libc::POLLIN)?;
            }
            _ => return Err(format!("read errno{} after {at}", errno())),
        }
    }
    Ok(())
}

fn write_all(fd: i32, buf: &[u8], how: &str) -> Result<(), String> {
    let mut at = 0;
    while at < buf.len() {
        let (p, n) = (buf[at..].as_ptr().cast(), buf.len() - at);
        let r = match how {
            "read" => call!(write(fd, p, n)),
            _ => call!(send(fd, p, n, libc::MSG_NOSIGNAL)),
        };
        match r {
            r if r >= 0 => at += r as usize,
            _ if errno() == libc::EINTR => {}
            _ if errno() == libc::EAGAIN => {
                wait_for(fd, libc::POLLOUT)?;
            }
            _ => return Err(format!("write errno{} after {at}", errno())),
        }
    }
    Ok(())
}

/// `rounds` requests and responses; both ends derive lengths and contents from `seed`.
fn ping_pong(fd: i32, rounds: usize, seed: u64, client: bool, how: &str) -> Result<String, String> {
    let mut rng = Rng::new(seed);
    let mut h = HASH_START;
    for round in 0..rounds {
        let sizes = [rng.length(600), rng.length(600)];
        for (turn, n) in sizes.into_iter().enumerate() {
            let name = seed + (round * 2 + turn) as u64;
            let expected = crate::rng::fill(name, n);
            if (turn == 0) == client {
                write_all(fd, &expected, how).map_err(|e| format!("round {round}: {e}"))?;
                continue;
            }
            let mut got = vec![0u8; n];
            read_all(fd, &mut got, how).map_err(|e| format!("round {round}: {e}"))?;
            if got != expected {
                return Err(format!("round {round}: CORRUPT"));
            }
            h = hash(h, &got);
        }
    }
    Ok(format!("rounds={rounds} h={:08x}", h as u32))
}

/// Sends `tx` and receives `rx` patterned bytes at the same time. `how` is the way of waiting.
fn duplex(fd: i32, tx: usize, rx: usize, seed: u64, how: &str) -> Result<String, String> {
    let old = call!(fcntl(fd, libc::F_GETFL));
    call!(fcntl(fd, libc::F_SETFL, old | libc::O_NONBLOCK));
    let ep = if how.starts_with("ep") { Some(Epoll::new(fd, how)?) } else { None };
    let done = exchange(fd, tx, rx, seed, how, ep.as_ref());
    if let Some(ep) = ep {
        call!(close(ep.fd));
    }
    call!(fcntl(fd, libc::F_SETFL, old));
    done
}

fn exchange(fd: i32, tx: usize, rx: usize, seed: u64, how: &str, ep: Option<&Epoll>) -> Result<String, String> {
    let mut rng = Rng::new(seed);
    let (mut sent, mut got, mut h) = (0, 0, HASH_START);
    let mut buf = vec![0u8; 70_000];
    while sent < tx || got < rx {
        let want = if sent < tx { libc::POLLOUT } else { 0 } | if got < rx { libc::POLLIN } else { 0 };
        // Both directions are tried until they would block: right for level and edge triggers alike.
        let mut moved = false;
        if sent < tx {
            let n = rng.length(60_000).min(tx - sent);
            for (i, b) in buf[..n].iter_mut().enumerate() {
                *b = pattern(0, (sent + i) as u64);
            }
            match call!(send(fd, buf.as_ptr().cast(), n, libc::MSG_NOSIGNAL)) {
                r if r >= 0 => (sent, moved) = (sent + r as usize, true),
                _ if errno() == libc::EAGAIN => {}
                _ => return Err(format!("send errno{}", errno())),
            }
        }
        if got < rx {
            let n = rng.length(60_000).min(rx - got);
            match call!(recv(fd, buf.as_mut_ptr().cast(), n, 0)) {
                0 => return Err("early end".into()),
                r if r > 0 => {
                    h = hash(h, &buf[..r as usize]);
                    (got, moved) = (got + r as usize, true);
                }
                _ if errno() == libc::EAGAIN => {}
                _ => return Err(format!("recv errno{}", errno())),
            }
        }
        if moved {
            continue;
        }
        match ep {
            Some(ep) => ep.wait(fd, want)?,
            None if how == "select" => select_for(fd, want)?,
            None => {
                wait_for(fd, want)?;
            }
        }
    }
    Ok(format!("sent={sent} got={got} h={:08x}", h as u32))
}

/// An epoll set with one connection in it: `eplt`, `epet` or `epone`.
struct Epoll {
    fd: i32,
    oneshot: bool,
    edge: bool,
}

impl Epoll {
    fn new(fd: i32, how: &str) -> Result<Epoll, String> {
        let ep = Epoll { fd: call!(epoll_create1(libc::EPOLL_CLOEXEC)), oneshot: how == "epone", edge: how == "epet" };
        let events = (libc::EPOLLIN | libc::EPOLLOUT) as u32 | if ep.edge { libc::EPOLLET as u32 } else { 0 };
        let events = if ep.oneshot { 0 } else { events };
        let mut e = libc::epoll_event { events, u64: 5 };
        match call!(epoll_ctl(ep.fd, libc::EPOLL_CTL_ADD, fd, &raw mut e)) {
            0 => Ok(ep),
            _ => Err(format!("epoll_ctl errno{}", errno())),
        }
    }

    fn wait(&self, fd: i32, want: i16) -> Result<(), String> {
        let mut e = libc::epoll_event { events: want as u32, u64: 5 };
        if self.oneshot {
            e.events |= libc::EPOLLONESHOT as u32;
        }
        if !self.edge && call!(epoll_ctl(self.fd, libc::EPOLL_CTL_MOD, fd, &raw mut e)) != 0 {
            return Err(format!("epoll_ctl mod errno{}", errno()));
        }
        loop {
            match call!(epoll_wait(self.fd, &raw mut e, 1, PATIENCE)) {
                0 => return Err(format!("STALLED in epoll_wait for {want:x}")),
                r if r > 0 => return Ok(()),
                _ if errno() == libc::EINTR => {}
                _ => return Err(format!("epoll_wait errno{}", errno())),
            }
        }
    }
}

fn select_for(fd: i32, want: i16) -> Result<(), String> {
    // SAFETY: zero is the empty set, and the descriptor is below FD_SETSIZE.
    let (mut rd, mut wr): (libc::fd_set, libc::fd_set) = unsafe {
        let mut sets = (std::mem::zeroed(), std::mem::zeroed());
        if want & libc::POLLIN != 0 {
            libc::FD_SET(fd, &raw mut sets.0);
        }
        if want & libc::POLLOUT != 0 {
            libc::FD_SET(fd, &raw mut sets.1);
        }
        sets
    };
    let mut time = libc::timeval { tv_sec: i64::from(PATIENCE / 1000), tv_usec: 0 };
    match call!(select(fd + 1, &raw mut rd, &raw mut wr, std::ptr::null_mut(), &raw mut time)) {
        0 => Err(format!("STALLED in select for {want:x}")),
        r if r > 0 || errno() == libc::EINTR => Ok(()),
        _ => Err(format!("select errno{}", errno())),
    }
}
