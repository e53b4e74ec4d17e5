//! Calls that make, name, copy, configure and close descriptors.

use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use super::{Args, CONTROL, FDS, SLOTS, call, shown};
use crate::raw::CONTROL_FDS;

/// An address of family `4`, `6` or `m` (v4-mapped) on loopback.
struct Address {
    storage: libc::sockaddr_storage,
    len: u32,
}

impl Address {
    fn empty() -> Address {
        // SAFETY: zero is a valid sockaddr_storage.
        Address { storage: unsafe { std::mem::zeroed() }, len: size_of::<libc::sockaddr_storage>() as u32 }
    }

    fn new(family: &str, port: u16, any: bool) -> Address {
        let mut out = Address::empty();
        let loopback = if any { 0 } else { 0x7f00_0001u32 };
        if family == "4" {
            let sin = libc::sockaddr_in {
                sin_family: libc::AF_INET as u16,
                sin_port: port.to_be(),
                sin_addr: libc::in_addr { s_addr: loopback.to_be() },
                sin_zero: [0; 8],
            };
            // SAFETY: sockaddr_storage is large and aligned enough for every address.
            unsafe { (&raw mut out.storage).cast::<libc::sockaddr_in>().write(sin) };
            out.len = size_of::<libc::sockaddr_in>() as u32;
        } else {
            let mut ip = [0u8; 16];
            match (family, any) {
                (_, true) => {}
                ("6", _) => ip[15] = 1,
                _ => ip[10..].copy_from_slice(&[0xff, 0xff, 127, 0, 0, 1]),
            }
            let sin6 = libc::sockaddr_in6 {
                sin6_family: libc::AF_INET6 as u16,
                sin6_port: port.to_be(),
                sin6_flowinfo: 0,
                sin6_addr: libc::in6_addr { s6_addr: ip },
                sin6_scope_id: 0,
            };
            // SAFETY: as above.
            unsafe { (&raw mut out.storage).cast::<libc::sockaddr_in6>().write(sin6) };
            out.len = size_of::<libc::sockaddr_in6>() as u32;
        }
        out
    }

    fn ptr(&self) -> *const libc::sockaddr {
        (&raw const self.storage).cast()
    }

    fn port(&self) -> u16 {
        // SAFETY: the port is at the same place in sockaddr_in and sockaddr_in6.
        u16::from_be(unsafe { (*(&raw const self.storage).cast::<libc::sockaddr_in>()).sin_port })
    }

    /// Family and address without the port, which differs from run to run.
    fn shown(&self) -> String {
        let p = &raw const self.storage;
        let bytes: &[u8] = match i32::from(self.storage.ss_family) {
            // SAFETY: the family says which address the kernel wrote.
            libc::AF_INET => unsafe { &*(&raw const (*p.cast::<libc::sockaddr_in>()).sin_addr).cast::<[u8; 4]>() },
            // SAFETY: as above.
            libc::AF_INET6 => unsafe { &(*p.cast::<libc::sockaddr_in6>()).sin6_addr.s6_addr },
            other => return format!("family{other}"),
        };
        let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
        format!("{hex}/{}", self.len)
    }
}

/// Stores a new descriptor and shows its number: programs rely on the lowest free one.
fn keep(slot: usize, f: impl FnOnce() -> i32) -> String {
    let (r, text) = shown(|| i64::from(f()));
    if r >= 0 {
        FDS[slot].store(r as i32, SeqCst);
    }
    text
}

/// Waits for the peer's kernel to acknowledge a FIN. It takes its time with that (a delayed ACK, some 40 ms, or none), and the
/// acknowledgement wakes whoever watches this end (tcp_rcv_state_process: sk_state_change in FIN_WAIT1, "wake up lingering close()"): a
/// second edge, which a set that gets the connection later has or has not, by chance. Not if the FIN waits for the peer's window.
fn await_acknowledgement(fd: i32) {
    const PATIENCE: Duration = Duration::from_millis(300);
    // FIN_WAIT1, LAST_ACK, CLOSING (net/tcp_states.h).
    const SENT: [u8; 3] = [4, 9, 11];
    let begun = Instant::now();
    while begun.elapsed() < PATIENCE {
        if !crate::raw::tcp_state(fd).is_some_and(|state| SENT.contains(&state)) || crate::raw::has_unsent(fd) {
            return;
        }
        // Not asleep: the conductor would take the call for one that waits.
        std::thread::yield_now();
    }
}

pub fn perform(op: &str, a: &mut Args) -> Option<String> {
    Some(match op {
        "listen" => listen(a),
        "connect" => connect(a),
        "accept" => {
            let (l, w, flags) = (a.fd(), a.slot(), a.int() as i32);
            let mut from = Address::empty();
            let (to, len) = ((&raw mut from.storage).cast(), &raw mut from.len);
            let text = match flags {
                0 => keep(w, || call!(accept(l, to, len))),
                _ => keep(w, || call!(accept4(l, to, len, flags))),
            };
            format!("{text} from {}", from.shown())
        }
        "names" => names(a.fd()),
        "shutdown" => {
            let (fd, how) = (a.fd(), a.int() as i32);
            let (r, text) = shown(|| i64::from(call!(shutdown(fd, how))));
            if r == 0 && how != libc::SHUT_RD {
                await_acknowledgement(fd);
            }
            text
        }
        "close" => {
            let slot = a.slot();
            let fd = FDS[slot].swap(-1, SeqCst);
            shown(|| i64::from(call!(close(fd)))).1
        }
        "dup" => {
            let (fd, w) = (a.fd(), a.slot());
            keep(w, || call!(dup(fd)))
        }
        "dup2" | "dup3" => {
            // Onto a fixed number: a free one, or that of a descriptor in use, which is then replaced.
            let (fd, w, onto) = (a.fd(), a.slot(), a.word());
            let to = match onto.parse::<i32>() {
                Ok(n) => n,
                Err(_) => {
                    let slot = super::slot_named(onto);
                    FDS[slot].swap(-1, SeqCst)
                }
            };
            if op == "dup2" {
                keep(w, || call!(dup2(fd, to)))
            } else {
                keep(w, || call!(dup3(fd, to, libc::O_CLOEXEC)))
            }
        }
        "dupfd" => {
            let (fd, w, min, cloexec) = (a.fd(), a.slot(), a.int() as i32, a.int());
            let command = if cloexec == 1 { libc::F_DUPFD_CLOEXEC } else { libc::F_DUPFD };
            keep(w, || call!(fcntl(fd, command, min)))
        }
        "nonblock" => {
            let (fd, on, how) = (a.fd(), a.int() as i32, a.word());
            if how == "ioctl" {
                return Some(shown(|| i64::from(call!(ioctl(fd, libc::FIONBIO, &raw const on)))).1);
            }
            let old = call!(fcntl(fd, libc::F_GETFL));
            let new = if on == 1 { old | libc::O_NONBLOCK } else { old & !libc::O_NONBLOCK };
            shown(|| i64::from(call!(fcntl(fd, libc::F_SETFL, new)))).1
        }
        "getfl" => {
            let fd = a.fd();
            let (fl, text) = shown(|| i64::from(call!(fcntl(fd, libc::F_GETFL))));
            let cloexec = call!(fcntl(fd, libc::F_GETFD));
            let _ = text;
            format!("flags={fl:x} fdflags={cloexec}")
        }
        "setopt" => setopt(a),
        "getopt" => getopt(a),
        "badfd" => badfd(a),
        "stat" => {
            let fd = a.fd();
            // SAFETY: zero is a valid stat.
            let mut st: libc::stat = unsafe { std::mem::zeroed() };
            let (_, text) = shown(|| i64::from(call!(fstat(fd, &raw mut st))));
            let (_, seek) = shown(|| call!(lseek(fd, 0, libc::SEEK_CUR)));
            format!("{text} mode={:o} size={} lseek {seek}", st.st_mode, st.st_size)
        }
        "closeunknown" => close_unknown(),
        _ => return None,
    })
}

fn listen(a: &mut Args) -> String {
    let (slot, family) = (a.slot(), a.word());
    let domain = if family == "4" { libc::AF_INET } else { libc::AF_INET6 };
    let text = keep(slot, || call!(socket(domain, libc::SOCK_STREAM, 0)));
    let fd = FDS[slot].load(SeqCst);
    // A v4-mapped client needs a listener on the v6 wildcard.
    let sa = Address::new(family, 0, family == "m");
    let (_, bound) = shown(|| i64::from(call!(bind(fd, sa.ptr(), sa.len))));
    let (_, listening) = shown(|| i64::from(call!(listen(fd, 16))));
    let mut got = Address::empty();
    call!(getsockname(fd, (&raw mut got.storage).cast(), &raw mut got.len));
    format!("{text} bind {bound} listen {listening}\t{}", got.port())
}

fn connect(a: &mut Args) -> String {
    let (slot, family, port, mode) = (a.slot(), a.word(), a.int() as u16, a.word());
    let domain = if family == "4" { libc::AF_INET } else { libc::AF_INET6 };
    let kind = libc::SOCK_STREAM | if mode == "nb" { libc::SOCK_NONBLOCK } else { 0 };
    let text = keep(slot, || call!(socket(domain, kind, 0)));
    let fd = FDS[slot].load(SeqCst);
    let sa = Address::new(family, port, false);
    let (_, connected) = shown(|| i64::from(call!(connect(fd, sa.ptr(), sa.len))));
    if mode != "nb" {
        return format!("{text} connect {connected}");
    }
    let mut p = libc::pollfd { fd, events: libc::POLLOUT, revents: 0 };
    let (_, polled) = shown(|| i64::from(call!(poll(&raw mut p, 1, 5000))));
    let (_, again) = shown(|| i64::from(call!(connect(fd, sa.ptr(), sa.len))));
    let (_, third) = shown(|| i64::from(call!(connect(fd, sa.ptr(), sa.len))));
    call!(fcntl(fd, libc::F_SETFL, libc::O_RDWR));
    format!("{text} connect {connected} poll {polled} {:x} again {again} third {third}", p.revents)
}

fn names(fd: i32) -> String {
    let (mut here, mut there) = (Address::empty(), Address::empty());
    let (_, one) = shown(|| i64::from(call!(getsockname(fd, (&raw mut here.storage).cast(), &raw mut here.len))));
    let (_, two) = shown(|| i64::from(call!(getpeername(fd, (&raw mut there.storage).cast(), &raw mut there.len))));
    format!("{one} {} {two} {}", here.shown(), if two.starts_with("r=0") { there.shown() } else { String::new() })
}

fn setopt(a: &mut Args) -> String {
    let (fd, name, value) = (a.fd(), a.word(), a.int());
    let set = |level: i32, option: i32, value: *const libc::c_void, len: usize| {
        shown(|| i64::from(call!(setsockopt(fd, level, option, value, len as u32)))).1
    };
    let number = value as i32;
    let plain = |level, option| set(level, option, (&raw const number).cast(), 4);
    let time = libc::timeval { tv_sec: value / 1000, tv_usec: value % 1000 * 1000 };
    let timeout = |option| set(libc::SOL_SOCKET, option, (&raw const time).cast(), size_of_val(&time));
    match name {
        "nodelay" => plain(libc::IPPROTO_TCP, libc::TCP_NODELAY),
        "quickack" => plain(libc::IPPROTO_TCP, libc::TCP_QUICKACK),
        "keepalive" => plain(libc::SOL_SOCKET, libc::SO_KEEPALIVE),
        "lowat" => plain(libc::SOL_SOCKET, libc::SO_RCVLOWAT),
        "sndbuf" => plain(libc::SOL_SOCKET, libc::SO_SNDBUF),
        "rcvbuf" => plain(libc::SOL_SOCKET, libc::SO_RCVBUF),
        "usertimeout" => plain(libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT),
        "inq" => plain(libc::IPPROTO_TCP, libc::TCP_INQ),
        "rcvtimeo" => timeout(libc::SO_RCVTIMEO),
        "sndtimeo" => timeout(libc::SO_SNDTIMEO),
        "linger" => {
            let linger = libc::linger { l_onoff: i32::from(value >= 0), l_linger: number.max(0) };
            set(libc::SOL_SOCKET, libc::SO_LINGER, (&raw const linger).cast(), size_of_val(&linger))
        }
        other => panic!("unknown option {other}"),
    }
}

fn getopt(a: &mut Args) -> String {
    let (fd, name) = (a.fd(), a.word());
    let (level, option) = match name {
        "error" => (libc::SOL_SOCKET, libc::SO_ERROR),
        "nodelay" => (libc::IPPROTO_TCP, libc::TCP_NODELAY),
        "lowat" => (libc::SOL_SOCKET, libc::SO_RCVLOWAT),
        "type" => (libc::SOL_SOCKET, libc::SO_TYPE),
        "acceptconn" => (libc::SOL_SOCKET, libc::SO_ACCEPTCONN),
        "domain" => (libc::SOL_SOCKET, libc::SO_DOMAIN),
        "usertimeout" => (libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT),
        "inq" => (libc::IPPROTO_TCP, libc::TCP_INQ),
        other => panic!("unknown option {other}"),
    };
    let (mut value, mut len) = (-7i32, 4u32);
    let (_, text) = shown(|| i64::from(call!(getsockopt(fd, level, option, (&raw mut value).cast(), &raw mut len))));
    format!("{text} value={value} len={len}")
}

fn badfd(a: &mut Args) -> String {
    let (fd, kind) = (a.int() as i32, a.word());
    let mut b = [0u8; 4];
    let p: *mut libc::c_void = b.as_mut_ptr().cast();
    let (_, text) = match kind {
        "read" => shown(|| call!(read(fd, p, 4)) as i64),
        "recv" => shown(|| call!(recv(fd, p, 4, 0)) as i64),
        "send" => shown(|| call!(send(fd, p, 4, libc::MSG_NOSIGNAL)) as i64),
        "close" => shown(|| i64::from(call!(close(fd)))),
        "dup" => shown(|| i64::from(call!(dup(fd)))),
        "shutdown" => shown(|| i64::from(call!(shutdown(fd, 2)))),
        "poll" => {
            let mut f = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
            let (r, text) = shown(|| i64::from(call!(poll(&raw mut f, 1, 0))));
            (r, format!("{text} {:x}", f.revents))
        }
        other => panic!("unknown call {other}"),
    };
    text
}

/// What daemons do at start: close every descriptor that they did not open. A library's own must survive.
fn close_unknown() -> String {
    let known: Vec<i32> = (0..SLOTS).map(|s| FDS[s].load(SeqCst)).collect();
    let control: Vec<i32> = CONTROL.iter().map(|c| c.load(SeqCst)).collect();
    let mut closed = 0;
    for fd in 3..CONTROL_FDS.start {
        if !known.contains(&fd) && !control.contains(&fd) && call!(close(fd)) == 0 {
            closed += 1;
        }
    }
    let (_, range) = shown(|| i64::from(call!(close_range(CONTROL_FDS.end as u32, u32::MAX, 0))));
    format!("closed={closed} range {range}")
}

#[cfg(test)]
mod tests {
    use super::await_acknowledgement;
    use crate::raw::tcp_state;
    use std::io::{Read, Write};
    use std::net::{Shutdown, TcpListener, TcpStream};
    use std::os::fd::AsRawFd;

    #[test]
    fn a_fin_is_acknowledged_before_the_next_step() {
        const ESTABLISHED: u8 = 1;
        const FIN_WAIT2: u8 = 5;
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut a = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut b, _) = listener.accept().unwrap();
        // From the first answer on ACKs are delayed.
        for _ in 0..50 {
            a.write_all(b"x").unwrap();
            b.read_exact(&mut [0]).unwrap();
            b.write_all(b"y").unwrap();
            a.read_exact(&mut [0]).unwrap();
        }
        assert_eq!(tcp_state(a.as_raw_fd()), Some(ESTABLISHED));
        a.shutdown(Shutdown::Both).unwrap();
        await_acknowledgement(a.as_raw_fd());
        assert_eq!(tcp_state(a.as_raw_fd()), Some(FIN_WAIT2));
    }
}
