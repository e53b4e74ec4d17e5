//! Socket options, ioctl and fcntl on endpoints. What the ring is known to carry faithfully passes; any
//! other request about the socket moves it to the kernel first.
// Unsafe here: option values are the program's memory.
#![allow(unsafe_code)]

use crate::descriptors;
use core::sync::atomic::Ordering::Relaxed;
use engine::endpoint::Ep;
use engine::{closing, endpoint, fds, intents, leave, lifeline, rx, tx};
use host::{real, usercopy};
use libc::{c_int, c_ulong, c_void, sockaddr, socklen_t};
use shmring::family::{PEER_STANDS_IN, RCVTIMEO, SNDTIMEO};
use shmring::family::{Reason, State};
use shmring::lnx::{SIOCATMARK, SIOCOUTQNSD};
use shmring::ring;

/// What setting an option does to a connection whose bytes are on a ring.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Effect {
    /// Nothing: it is about packets, addresses, the connection's beginning or its end, which are the lifeline's.
    None,
    /// It decides which packets go where: nothing before there is a connection; afterwards it can cut off a lifeline whose ring
    /// goes on, so the connection goes to the kernel.
    Route,
    /// The ring honours it, too: see [`applied`].
    Both,
    /// With some values only the kernel can honour it: see [`lifeline::only_kernel`].
    Kernel,
    /// The kernel must have the whole stream before it is set.
    First(Reason),
}

use Effect::{Both, First, Kernel, None as Nothing, Route};

/// Options at SOL_SOCKET (include/uapi/asm-generic/socket.h). What is not here moves a connection to the kernel once it is set.
const SOCKET: &[(c_int, Effect)] = &[
    // What waits longest, or is lost, when the connection is closed: the lifeline is closed, with these options.
    (libc::SO_LINGER, Nothing),
    // Probes of a silent connection (tcp_keepalive_timer). The kernel at the other end answers them, whether its program reads
    // or not, and the lifeline has them, silent as it is.
    (libc::SO_KEEPALIVE, Nothing),
    // About `bind`, `listen`, datagrams or nothing.
    (libc::SO_REUSEADDR, Nothing),
    (libc::SO_REUSEPORT, Nothing),
    (libc::SO_ATTACH_REUSEPORT_CBPF, Nothing),
    (libc::SO_ATTACH_REUSEPORT_EBPF, Nothing),
    (libc::SO_DETACH_REUSEPORT_BPF, Nothing),
    (libc::SO_INCOMING_CPU, Nothing),
    (libc::SO_BROADCAST, Nothing),
    (libc::SO_NO_CHECK, Nothing),
    (libc::SO_BSDCOMPAT, Nothing),
    (libc::SO_RXQ_OVFL, Nothing),
    (libc::SO_DEBUG, Nothing),
    // How packets are made, and the kernel waits for them.
    (libc::SO_PRIORITY, Nothing),
    (libc::SO_TXTIME, Nothing),
    (libc::SO_BUSY_POLL, Nothing),
    (libc::SO_PREFER_BUSY_POLL, Nothing),
    (libc::SO_BUSY_POLL_BUDGET, Nothing),
    (SO_RESERVE_MEM, Nothing),
    (SO_TXREHASH, Nothing),
    // Urgent data, and what is sent with notices, never travel on a ring: these say how they are read.
    (libc::SO_OOBINLINE, Nothing),
    (libc::SO_ZEROCOPY, Nothing),
    (libc::SO_SELECT_ERR_QUEUE, Nothing),
    // Where packets go.
    (libc::SO_DONTROUTE, Route),
    (libc::SO_MARK, Route),
    (libc::SO_BINDTODEVICE, Route),
    (libc::SO_BINDTOIFINDEX, Route),
    // Limits of what is buffered, and what is waited for.
    (libc::SO_SNDBUF, Both),
    (libc::SO_SNDBUFFORCE, Both),
    (libc::SO_RCVBUF, Both),
    (libc::SO_RCVBUFFORCE, Both),
    (lifeline::SO_BUF_LOCK, Both),
    (libc::SO_RCVLOWAT, Both),
    (libc::SO_RCVTIMEO, Both),
    (libc::SO_SNDTIMEO, Both),
    (libc::SO_RCVTIMEO_NEW, Both),
    (libc::SO_SNDTIMEO_NEW, Both),
    // A rate (sk_pacing_rate), control messages with each receive, an offset of peeks, and programs that look at segments.
    (libc::SO_MAX_PACING_RATE, Kernel),
    (libc::SO_TIMESTAMP, Kernel),
    (libc::SO_TIMESTAMPNS, Kernel),
    (libc::SO_TIMESTAMPING, Kernel),
    (libc::SO_TIMESTAMP_NEW, Kernel),
    (libc::SO_TIMESTAMPNS_NEW, Kernel),
    (libc::SO_TIMESTAMPING_NEW, Kernel),
    (libc::SO_PEEK_OFF, Kernel),
    (libc::SO_ATTACH_FILTER, Kernel),
    (libc::SO_ATTACH_BPF, Kernel),
    (libc::SO_DETACH_FILTER, Nothing),
];

const SO_RESERVE_MEM: c_int = 73;
const SO_TXREHASH: c_int = 74;

/// The same at IPPROTO_TCP (include/uapi/linux/tcp.h).
const TCP: &[(c_int, Effect)] = &[
    // When segments are sent, how large they are, and how they are acknowledged: the ring has none, and holds nothing back. Who stands in
    // for another host is told of the first.
    (libc::TCP_NODELAY, Both),
    (libc::TCP_CORK, Both),
    (libc::TCP_QUICKACK, Nothing),
    (libc::TCP_MAXSEG, Nothing),
    (libc::TCP_WINDOW_CLAMP, Nothing),
    (libc::TCP_CONGESTION, Nothing),
    (libc::TCP_THIN_LINEAR_TIMEOUTS, Nothing),
    (libc::TCP_THIN_DUPACK, Nothing),
    (TCP_RTO_MAX_MS, Nothing),
    (TCP_RTO_MIN_US, Nothing),
    (TCP_DELACK_MAX_US, Nothing),
    (libc::TCP_TIMESTAMP, Nothing),
    // The beginning of a connection.
    (libc::TCP_SYNCNT, Nothing),
    (libc::TCP_DEFER_ACCEPT, Nothing),
    (libc::TCP_SAVE_SYN, Nothing),
    (libc::TCP_FASTOPEN, Nothing),
    (libc::TCP_FASTOPEN_CONNECT, Nothing),
    (libc::TCP_FASTOPEN_KEY, Nothing),
    (libc::TCP_FASTOPEN_NO_COOKIE, Nothing),
    // Its end: FIN and RST are the lifeline's (tcp_close).
    (libc::TCP_LINGER2, Nothing),
    // See SO_KEEPALIVE.
    (libc::TCP_KEEPIDLE, Nothing),
    (libc::TCP_KEEPINTVL, Nothing),
    (libc::TCP_KEEPCNT, Nothing),
    // How many bytes may wait to be sent.
    (libc::TCP_NOTSENT_LOWAT, Both),
    // How long bytes may stay unacknowledged (tcp_probe_timer ends a connection whose peer does not read): see `tx::buffer_set`.
    (libc::TCP_USER_TIMEOUT, Both),
    // A control message with each receive.
    (lifeline::TCP_INQ, Both),
    // Delay of every segment.
    (lifeline::TCP_TX_DELAY, Kernel),
    // TLS and others take over the stream from here on; TCP_REPAIR changes positions in it.
    (libc::TCP_ULP, First(Reason::Ktls)),
    (libc::TCP_REPAIR, First(Reason::Option)),
];

const TCP_RTO_MAX_MS: c_int = 44;
const TCP_RTO_MIN_US: c_int = 45;
const TCP_DELACK_MAX_US: c_int = 46;

/// `None`: an option that culvert does not know.
fn effect(level: c_int, name: c_int) -> Option<Effect> {
    let table = match level {
        libc::SOL_SOCKET => SOCKET,
        libc::IPPROTO_TCP => TCP,
        // Packets that arrive with another one than the peer sends are dropped.
        libc::IPPROTO_IP if name == libc::IP_MINTTL => return Some(Route),
        libc::IPPROTO_IPV6 if name == IPV6_MINHOPCOUNT => return Some(Route),
        // Addressing and packet header options: packets are the lifeline's affair.
        libc::IPPROTO_IP | libc::IPPROTO_IPV6 => return Some(Nothing),
        _ => return None,
    };
    table.iter().find(|(n, _)| *n == name).map(|(_, effect)| *effect)
}

const IPV6_MINHOPCOUNT: c_int = 73;

/// `setsockopt`.
///
/// # Safety
/// As libc's.
pub unsafe fn setsockopt(fd: c_int, level: c_int, name: c_int, v: *const c_void, l: socklen_t) -> c_int {
    // SAFETY: the caller's obligation.
    let native = || unsafe { real::setsockopt(fd, level, name, v, l) };
    let Some(ep) = fds::endpoint(fd) else { return native() };
    let effect = effect(level, name);
    if let Some(First(why)) = effect {
        leave::retire(fd, why);
    }
    if (level, name) == (libc::IPPROTO_TCP, libc::TCP_CORK)
        && l as usize >= size_of::<c_int>()
        && ep.state() == State::Attached
        // SAFETY: reads the program's int as the kernel would.
        && let Ok(on) = unsafe { usercopy::load(v.cast::<c_int>()) }
    {
        return tx::cork(ep, on != 0, native);
    }
    let r = match (level, name) {
        (libc::SOL_SOCKET, libc::SO_LINGER) => closing::with_own_linger(ep, fd, native),
        _ if is_inline(level, name) => lifeline::as_set(native),
        _ => native(),
    };
    if r < 0 {
        return r;
    }
    let young = ep.state() == State::Idle;
    match effect {
        Some(Nothing | First(_)) => {}
        Some(Both) => {
            // SAFETY: the kernel has just read it there.
            unsafe { applied(ep, fd, level, name, v) }
        }
        // Looked at again before a connection is attached, also for what it has from its listener.
        Some(Route | Kernel) if young => {}
        Some(Route) => leave::retire(fd, Reason::Option),
        Some(Kernel) if lifeline::only_kernel(fd) => leave::retire(fd, Reason::Option),
        Some(Kernel) => {}
        None if young => ep.pin(Reason::Option),
        None => leave::retire(fd, Reason::Option),
    }
    r
}

/// The option that is changed for a moment to count what lies behind an urgent mark.
fn is_inline(level: c_int, name: c_int) -> bool {
    (level, name) == (libc::SOL_SOCKET, libc::SO_OOBINLINE)
}

/// An option that the ring honours, too, has been set.
///
/// # Safety
/// `v` is where the kernel has just read its value.
unsafe fn applied(ep: Ep, fd: c_int, level: c_int, name: c_int, v: *const c_void) {
    match (level, name) {
        (libc::SOL_SOCKET, libc::SO_RCVLOWAT) => {
            let low = lifeline::option(fd, libc::SOL_SOCKET, libc::SO_RCVLOWAT).unwrap_or(1);
            ep.rcvlowat.store(low.max(0) as u32, Relaxed);
            match ep.chan() {
                // A ring between two users is too small to hold it (`rx::low`).
                Some(chan) if chan.is_sealed() && low as usize > chan.ring() / 3 => leave::retire(fd, Reason::Option),
                Some(chan) => rx::low_set(ep, chan),
                None => {}
            }
        }
        (libc::IPPROTO_TCP, lifeline::TCP_INQ) => rx::inq_set(ep, fd),
        (libc::IPPROTO_TCP, libc::TCP_NODELAY) => {
            if let Some(chan) = ep.chan().filter(|_| ep.state() == State::Attached) {
                tx::manner_set(ep, chan, fd);
            }
        }
        (libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT) => intents::timed(fd),
        (libc::SOL_SOCKET, libc::SO_RCVTIMEO | libc::SO_RCVTIMEO_NEW | libc::SO_SNDTIMEO | libc::SO_SNDTIMEO_NEW) => {
            let which = match name {
                libc::SO_RCVTIMEO | libc::SO_RCVTIMEO_NEW => RCVTIMEO,
                _ => SNDTIMEO,
            };
            // A negative time is none at all, not one without end (sock_set_timeout).
            // SAFETY: the caller's obligation: both forms begin with seconds of 64 bits.
            if unsafe { usercopy::load(v.cast::<i64>()) }.is_ok_and(|seconds| seconds < 0) {
                ep.never_waits.fetch_or(which, Relaxed);
            } else {
                ep.never_waits.fetch_and(!which, Relaxed);
            }
        }
        _ => {}
    }
    let buffers = matches!(
        name,
        libc::SO_SNDBUF | libc::SO_SNDBUFFORCE | libc::SO_RCVBUF | libc::SO_RCVBUFFORCE | lifeline::SO_BUF_LOCK
    );
    let unsent = level == libc::IPPROTO_TCP && matches!(name, libc::TCP_NOTSENT_LOWAT | libc::TCP_USER_TIMEOUT);
    if (level == libc::SOL_SOCKET && buffers || unsent)
        && ep.state() == State::Attached
        && let Some(chan) = ep.chan()
    {
        if !matches!(name, libc::SO_RCVBUF | libc::SO_RCVBUFFORCE) {
            tx::buffer_set(ep, chan, fd);
        }
        if !unsent && !matches!(name, libc::SO_SNDBUF | libc::SO_SNDBUFFORCE) {
            rx::buffer_set(ep, chan, fd);
        }
    }
}

/// `getsockopt`: an error that culvert latched is the socket's error.
///
/// # Safety
/// As libc's.
pub unsafe fn getsockopt(fd: c_int, level: c_int, name: c_int, v: *mut c_void, l: *mut socklen_t) -> c_int {
    // SAFETY: the caller's obligation.
    let native = || unsafe { real::getsockopt(fd, level, name, v, l) };
    if let Some(ep) = fds::endpoint(fd) {
        match (level, name) {
            (libc::SOL_SOCKET, libc::SO_LINGER) => return closing::with_own_linger(ep, fd, native),
            (libc::SOL_SOCKET, libc::SO_ERROR) => {
                // SAFETY: the caller's obligation.
                return unsafe { error(ep, fd, v, l) };
            }
            (libc::IPPROTO_TCP, libc::TCP_CORK) => tx::tell_cork(ep, fd),
            // It receives.
            (libc::IPPROTO_TCP, TCP_ZEROCOPY_RECEIVE) => leave::surrender(fd, Reason::Option),
            (libc::IPPROTO_TCP, libc::TCP_INFO) => {
                let r = native();
                // SAFETY: the kernel has just written there, if there was room.
                if r == 0 && is_reset(ep, fd) && unsafe { usercopy::load(l) }.is_ok_and(|n| n > 0) {
                    // tcpi_state. A fault: the program has taken the memory away since.
                    // SAFETY: as above.
                    let _ = unsafe { usercopy::store(v.cast(), &lifeline::CLOSE) };
                }
                return r;
            }
            _ if is_inline(level, name) => return lifeline::as_set(native),
            _ => {}
        }
    }
    native()
}

/// Whether there is no connection any more although the kernel knows one.
fn is_reset(ep: Ep, fd: c_int) -> bool {
    ep.state() == State::Attached && ep.chan().is_some_and(|chan| tx::is_reset(ep, chan, fd))
}

/// `getpeername`.
///
/// # Safety
/// As libc's.
pub unsafe fn getpeername(fd: c_int, a: *mut sockaddr, l: *mut socklen_t) -> c_int {
    if fds::endpoint(fd).is_some_and(|ep| is_reset(ep, fd)) {
        // inet_getname, before anything is written.
        real::set_errno(libc::ENOTCONN);
        return -1;
    }
    // SAFETY: the caller's obligation.
    unsafe { real::getpeername(fd, a, l) }
}

const TCP_ZEROCOPY_RECEIVE: c_int = 35;

/// `SO_ERROR`, told as the kernel does it (sk_getsockopt): once, and also to a buffer that cannot be written.
///
/// # Safety
/// The pointers are those of the program's `getsockopt`.
unsafe fn error(ep: Ep, fd: c_int, v: *mut c_void, l: *mut socklen_t) -> c_int {
    // SAFETY: the program's variable, or a fault.
    let room = match unsafe { usercopy::load(l) } {
        Ok(room) if room as c_int >= 0 => room as usize,
        // The kernel says what is wrong.
        // SAFETY: the caller's obligation.
        _ => return unsafe { real::getsockopt(fd, libc::SOL_SOCKET, libc::SO_ERROR, v, l) },
    };
    // What a peer that was killed has not read of the ring is an error that the kernel does not know of.
    let attached = ep.state() == State::Attached;
    if attached && let Some(chan) = ep.chan() {
        tx::sink_if_ended(ep, chan, fd);
    }
    let e = match lifeline::option(fd, libc::SOL_SOCKET, libc::SO_ERROR) {
        Ok(0) if !attached => 0,
        Ok(0) => endpoint::take_kept(ep).or_else(|| endpoint::take_latched(ep)?.now()).unwrap_or(0),
        Ok(e) => {
            // The kernel tells it once.
            ep.note_error(e);
            e
        }
        Err(e) => return real::ret(-e as isize) as c_int,
    };
    let e = if e == 0 { 0 } else { intents::end_of(ep, fd, e) };
    let n = room.min(size_of_val(&e));
    // SAFETY: at most the local; the program's buffer, or a fault.
    let written = unsafe { usercopy::copy(v.cast(), (&raw const e).cast(), n) };
    // SAFETY: the program's variable, or a fault.
    let told = written.and_then(|()| unsafe { usercopy::store(l, &(n as socklen_t)) });
    real::ret(if told.is_err() { -libc::EFAULT as isize } else { 0 }) as c_int
}

/// Bytes on the ring that the peer has not read, or `None` where the kernel has the whole stream.
fn on_ring(ep: Ep) -> Option<u64> {
    let chan = ep.chan()?;
    let h = chan.slot(ep.slot.load(Relaxed) as usize);
    let tail = ep.tx_tail.load(Relaxed);
    let head = ring::refresh(&h.consumer[chan.role().tx()], ep.tx_head.load(Relaxed), tail);
    Some(head.map_or(0, |head| tail.since(head)))
}

/// `ioctl`.
///
/// # Safety
/// As libc's.
pub unsafe fn ioctl(fd: c_int, req: c_ulong, arg: usize) -> c_int {
    // SAFETY: the caller's obligation.
    let native = || unsafe { real::ioctl(fd, req, arg) };
    let Some(ep) = fds::endpoint(fd) else { return native() };
    let asked = match req {
        libc::FIONREAD | libc::TIOCOUTQ | SIOCOUTQNSD | SIOCATMARK if ep.state() == State::Attached => true,
        libc::FIOASYNC => {
            leave::retire(fd, Reason::Async);
            false
        }
        _ => false,
    };
    let Some(chan) = ep.chan().filter(|_| asked) else { return native() };
    tx::service(ep, chan, fd);
    if req == SIOCATMARK {
        // Drops an echo that lies before the mark.
        rx::advance(ep, chan, fd);
    }
    let kernel = match lifeline::queued(fd, req) {
        Some(n) => n,
        // The kernel says what is wrong.
        None => return native(),
    };
    let n = match req {
        libc::FIONREAD => rx::unread(ep, chan, fd),
        // Urgent data is never on a ring: what is there comes before it.
        SIOCATMARK => kernel * u64::from(rx::on_ring(ep, chan) == 0),
        // What is on the ring the remote host has not acknowledged: the one who stands in for it gives the room back when it has.
        libc::TIOCOUTQ if ep.stands_in.load(Relaxed) & PEER_STANDS_IN != 0 => kernel + tx::not_given_back(ep, chan),
        // What the receiving socket would hold, unread, has left the sender's, and is acknowledged.
        _ => kernel + on_ring(ep).unwrap_or(0).saturating_sub(tx::window(ep, chan)),
    };
    let n = n.min(i32::MAX as u64) as c_int;
    // SAFETY: the program's variable, or a fault.
    let r = unsafe { usercopy::store(arg as *mut c_int, &n) };
    real::ret(if r.is_err() { -libc::EFAULT as isize } else { 0 }) as c_int
}

/// `sockatmark`, which asks the same (sockatmark(3)).
///
/// # Safety
/// As libc's.
pub unsafe fn sockatmark(fd: c_int) -> c_int {
    let mut answer: c_int = 0;
    // SAFETY: a local for the answer.
    let r = unsafe { ioctl(fd, SIOCATMARK, (&raw mut answer) as usize) };
    if r < 0 { r } else { answer }
}

/// `fcntl`, including the descriptor-making commands.
///
/// # Safety
/// As libc's.
pub unsafe fn fcntl(fd: c_int, cmd: c_int, arg: usize) -> c_int {
    if fds::get(fd) == fds::Kind::Ours {
        real::set_errno(libc::EBADF);
        return -1;
    }
    if cmd == libc::F_SETFL && arg as c_int & libc::O_ASYNC != 0 {
        leave::retire(fd, Reason::Async);
    }
    // SAFETY: the caller's obligation.
    let r = unsafe { real::fcntl(fd, cmd, arg) };
    if r >= 0 && (cmd == libc::F_DUPFD || cmd == libc::F_DUPFD_CLOEXEC) {
        descriptors::duplicated(fd, r);
    }
    r
}
