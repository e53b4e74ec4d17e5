//! Questions to the kernel about an endpoint's socket. Except where it is said, none of them changes the socket or consumes its
//! error.
#![forbid(unsafe_code)]

use crate::kernel::{HOME, K, Kernel as _};
use crate::lock::Lock;
use crate::{headroom, members, own};
use core::sync::atomic::Ordering::Relaxed;
use core::sync::atomic::{AtomicU32, AtomicU64};
use rendezvous::Tuple;
use rendezvous::diag::Cache;
use shmring::family::Reason;
use shmring::lnx::SIOCATMARK;
use shmring::position::StreamPos;

/// What the socket shows now: `poll` events, at once.
#[inline]
pub fn look(fd: i32, events: i16) -> i16 {
    let mut p = [libc::pollfd { fd, events, revents: 0 }];
    if K::poll(&mut p, 0) > 0 { p[0].revents } else { 0 }
}

/// The events of an end: the peer sends no more (`POLLRDHUP`), both directions have ended (`POLLHUP`), the connection has failed
/// (`POLLERR`).
pub const ENDED: i16 = libc::POLLRDHUP | libc::POLLHUP | libc::POLLERR;

/// What of it a FIN alone shows, unless this side has shut down reading.
pub const FIN_ALONE: i16 = libc::POLLRDHUP;

/// `O_NONBLOCK`, asked each time: it belongs to the open file, which others may change.
pub fn nonblocking(fd: i32) -> bool {
    let f = K::file_flags(fd);
    f >= 0 && f as i32 & libc::O_NONBLOCK != 0
}

/// `SO_RCVTIMEO` or `SO_SNDTIMEO` in nanoseconds; `None` = wait for ever.
pub fn timeout(fd: i32, option: i32) -> Option<u64> {
    let mut tv = libc::timeval { tv_sec: 0, tv_usec: 0 };
    let r = K::get_option(fd, libc::SOL_SOCKET, option, &mut tv);
    if r < 0 || (tv.tv_sec == 0 && tv.tv_usec == 0) {
        return None;
    }
    Some((tv.tv_sec as u64).saturating_mul(1_000_000_000).saturating_add(tv.tv_usec as u64 * 1000))
}

/// When a wait that begins now has lasted as long as `option` allows, on the monotonic clock; `None` = never.
pub fn deadline(fd: i32, option: i32) -> Option<u64> {
    timeout(fd, option).map(|t| K::now().saturating_add(t))
}

/// An `int` socket option, or `-errno`.
pub fn option(fd: i32, level: i32, name: i32) -> Result<i32, i32> {
    let mut v = 0i32;
    let r = K::get_option(fd, level, name, &mut v);
    if r < 0 { Err(-r as i32) } else { Ok(v) }
}

/// Which buffers the kernel does not adapt any more (Linux 5.14).
pub const SO_BUF_LOCK: i32 = 72;

/// `SO_SNDBUF` or `SO_RCVBUF` if the program has set it, and the kernel does not adapt it any more (Linux 5.14).
pub fn locked_buffer(fd: i32, name: i32) -> Option<u32> {
    const SNDBUF_LOCK: i32 = 1;
    const RCVBUF_LOCK: i32 = 2;
    let bit = if name == libc::SO_SNDBUF { SNDBUF_LOCK } else { RCVBUF_LOCK };
    let locks = option(fd, libc::SOL_SOCKET, SO_BUF_LOCK).ok()?;
    if locks & bit == 0 {
        return None;
    }
    option(fd, libc::SOL_SOCKET, name).ok().map(|n| n.max(0) as u32)
}

/// How many bytes may wait to be sent, if that is limited: by `TCP_NOTSENT_LOWAT`, or else for all sockets of the network
/// namespace (tcp_notsent_lowat).
pub fn unsent(fd: i32) -> Option<u32> {
    match option(fd, libc::IPPROTO_TCP, libc::TCP_NOTSENT_LOWAT) {
        Ok(0) => unsent_by_default(),
        Ok(low) => Some(low as u32),
        Err(_) => None,
    }
}

/// The sysctl, looked at once a second at most.
fn unsent_by_default() -> Option<u32> {
    static AT: AtomicU64 = AtomicU64::new(0);
    static VALUE: AtomicU32 = AtomicU32::new(u32::MAX);
    let now = K::now();
    let at = AT.load(Relaxed);
    if at == 0 || now.wrapping_sub(at) > 1_000_000_000 {
        AT.store(now, Relaxed);
        let value = headroom::figure(&[b"/proc/sys/net/ipv4/tcp_notsent_lowat"]);
        // Nothing to read: no limit.
        VALUE.store(value.unwrap_or(u64::MAX).min(u64::from(u32::MAX)) as u32, Relaxed);
    }
    Some(VALUE.load(Relaxed)).filter(|low| *low != u32::MAX)
}

/// Whether the socket has an option that only the kernel can honour, by itself or from its listener: a rate, a delay, an offset
/// of peeks, time stamps with each receive, or a program that looks at segments.
pub fn only_kernel(fd: i32) -> bool {
    let socket = |name| option(fd, libc::SOL_SOCKET, name);
    let stamps = [
        libc::SO_TIMESTAMP,
        libc::SO_TIMESTAMPNS,
        libc::SO_TIMESTAMPING,
        libc::SO_TIMESTAMP_NEW,
        libc::SO_TIMESTAMPNS_NEW,
        libc::SO_TIMESTAMPING_NEW,
    ];
    // Unlimited is all ones, of which an int has the low half; a kernel that does not know an option cannot have it set.
    !matches!(socket(libc::SO_MAX_PACING_RATE), Ok(-1) | Err(_))
        || !matches!(socket(libc::SO_PEEK_OFF), Ok(-1) | Err(_))
        || stamps.iter().any(|name| !matches!(socket(*name), Ok(0) | Err(_)))
        || !matches!(option(fd, libc::IPPROTO_TCP, TCP_TX_DELAY), Ok(0) | Err(_))
        || filtered(fd)
}

/// Whether a client has asked for another address than `at`, on which its connection was accepted (netfilter's `SO_ORIGINAL_DST`, for IPv6 and
/// IPv4 alike; no answer: there is no translation). Then another connection may have the addresses that its other end has here.
pub fn is_translated(fd: i32, at: &Tuple) -> bool {
    const SO_ORIGINAL_DST: i32 = 80;
    let level = if at.is_v4() { libc::IPPROTO_IP } else { libc::IPPROTO_IPV6 };
    let mut asked_for = [0u8; size_of::<libc::sockaddr_in6>()];
    let r = K::get_option(fd, level, SO_ORIGINAL_DST, &mut asked_for);
    r > 0 && at.leads_to(&asked_for) == Some(false)
}

/// Whether the socket is bound to a device, by the program, by its listener, or as all of a VRF's are.
pub fn is_bound_to_device(fd: i32) -> bool {
    // The kernel says how long the device's name is.
    K::get_option(fd, libc::SOL_SOCKET, libc::SO_BINDTODEVICE, &mut [0u8; libc::IFNAMSIZ]) > 0
}

/// A control message with each receive that says how much is left (Linux 4.18).
pub const TCP_INQ: i32 = 36;

/// Microseconds by which each segment is delayed (Linux 5.3).
pub const TCP_TX_DELAY: i32 = 37;

/// Whether a program is attached that looks at segments (sk_get_filter).
fn filtered(fd: i32) -> bool {
    // Room for nothing: the kernel only says how long it is.
    let r = K::get_option(fd, libc::SOL_SOCKET, libc::SO_GET_FILTER, &mut [0u8; 0]);
    // EACCES: one that cannot be shown.
    r > 0 || r == -libc::EACCES as isize
}

/// `SO_COOKIE`: the socket's name in this kernel, never reused.
pub fn cookie(fd: i32) -> Option<u64> {
    let mut v = 0u64;
    let r = K::get_option(fd, libc::SOL_SOCKET, libc::SO_COOKIE, &mut v);
    (r == 8).then_some(v)
}

/// An `SO_LINGER` with which the last close of a connection sends RST (tcp_close).
pub const RESETS: libc::linger = libc::linger { l_onoff: 1, l_linger: 0 };

/// Sets `SO_LINGER`.
pub fn linger(fd: i32, v: libc::linger) {
    if v.l_onoff == 0 && v.l_linger != 0 {
        // The kernel takes a time only with the option on, and shows it still when that is off again (sk_setsockopt).
        K::set_option(fd, libc::SOL_SOCKET, libc::SO_LINGER, libc::linger { l_onoff: 1, ..v });
    }
    K::set_option(fd, libc::SOL_SOCKET, libc::SO_LINGER, v);
}

/// The kernel's timer ends the connection no earlier than TCP does by itself (TCP_USER_TIMEOUT, tcp(7)).
pub fn untimed(fd: i32) {
    K::set_option(fd, libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT, 0i32);
}

/// `SO_LINGER`.
pub fn lingers(fd: i32) -> libc::linger {
    let mut v = libc::linger { l_onoff: 0, l_linger: 0 };
    K::get_option(fd, libc::SOL_SOCKET, libc::SO_LINGER, &mut v);
    v
}

struct Info {
    state: u8,
    bytes_acked: u64,
    bytes_received: u64,
}

fn info(fd: i32) -> Option<Info> {
    // struct tcp_info of linux/tcp.h: the state is its first byte, tcpi_bytes_acked lies at 120,
    // tcpi_bytes_received at 128 (both since Linux 4.1).
    let mut b = [0u8; 136];
    if K::get_option(fd, libc::IPPROTO_TCP, libc::TCP_INFO, &mut b) < b.len() as isize {
        return None;
    }
    let word = |at: usize| u64::from_ne_bytes(core::array::from_fn(|i| b[at + i]));
    Some(Info { state: b[0], bytes_acked: word(120), bytes_received: word(128) })
}

/// Whether the socket is in no connection: it has been disconnected, or reset.
pub fn is_closed(fd: i32) -> bool {
    info(fd).is_some_and(|i| i.state == CLOSE)
}

/// Whether both directions have ended, and no error waits for the next call.
pub fn has_ended_untold(fd: i32) -> bool {
    look(fd, 0) & (libc::POLLHUP | libc::POLLERR) == libc::POLLHUP
}

/// SO_LINGER in one word that is not 0.
pub fn pack(v: libc::linger) -> u64 {
    1 << 63 | u64::from(v.l_onoff != 0) << 32 | u64::from(v.l_linger as u32)
}

/// What [`pack`] has packed.
pub fn unpack(was: u64) -> libc::linger {
    libc::linger { l_onoff: (was >> 32 & 1) as i32, l_linger: was as u32 as i32 }
}

/// What an ioctl that asks for a number of bytes answers.
pub fn queued(fd: i32, request: u64) -> Option<u64> {
    K::queued(fd, request)
}

/// Bytes in the socket's receive queue.
pub fn unread(fd: i32) -> u64 {
    queued(fd, libc::FIONREAD).unwrap_or(0)
}

/// Whether what is read next stands at the urgent mark, before which a receive that has something ends (tcp_recvmsg_locked).
pub fn at_mark(fd: i32) -> bool {
    queued(fd, SIOCATMARK) == Some(1)
}

/// Bytes in the receive queue, also behind an urgent mark, where [`unread`] stops (tcp_inq). `urgent` is kept by the caller:
/// whether urgent data has come.
pub fn queued_all(fd: i32, urgent: &AtomicU32) -> u64 {
    counted_all(fd, urgent).unwrap_or_else(|| counted_inline(fd))
}

/// The same; `None` if that cannot be told without a change of the socket.
pub fn counted_all(fd: i32, urgent: &AtomicU32) -> Option<u64> {
    if urgent.load(Relaxed) == 0 {
        if look(fd, libc::POLLPRI) & libc::POLLPRI == 0 {
            return Some(unread(fd));
        }
        // Once it has been read the kernel shows it no more, and its mark still counts.
        urgent.store(1, Relaxed);
    }
    if members::is_filtered() {
        return None;
    }
    // Socket diagnostics know no mark.
    K::unread(&DIAG, &K::ends(fd, false).ok()?, cookie(fd)?)
}

/// The same of a socket that diagnostics do not tell of: its connection is no more. At no mark stops a socket that takes urgent data for
/// part of the stream, so it is made one for a moment.
#[cold]
fn counted_inline(fd: i32) -> u64 {
    let held = INLINE.lock();
    let inline = |on: i32| K::set_option(fd, libc::SOL_SOCKET, libc::SO_OOBINLINE, on);
    let changes = option(fd, libc::SOL_SOCKET, libc::SO_OOBINLINE) == Ok(0);
    if changes {
        inline(1);
    }
    let n = unread(fd);
    if changes {
        inline(0);
    }
    held.release();
    n
}

/// Held while `SO_OOBINLINE` of some socket is not what its program has set.
pub static INLINE: Lock = Lock::new();

/// Makes a call that sets or tells `SO_OOBINLINE` while it is what the program has set; `call` does not wait.
pub fn as_set<T>(call: impl FnOnce() -> T) -> T {
    let held = INLINE.lock();
    let r = call();
    held.release();
    r
}

/// The kernel's answers to socket diagnostics.
pub static DIAG: Cache = Cache::new(own::place, &HOME);

/// Up to where this side has sent natively: acknowledged plus unacknowledged, read until
/// they belong together. `opened`: this side sent the SYN, which bytes_acked counts. Nobody may be sending
/// at the same time.
pub fn sent(fd: i32, opened: bool) -> Option<StreamPos> {
    for _ in 0..64 {
        let before = info(fd)?;
        let out = queued(fd, libc::TIOCOUTQ)?;
        let after = info(fd)?;
        if before.bytes_acked == after.bytes_acked {
            return (before.bytes_acked + out).checked_sub(u64::from(opened)).map(StreamPos::new);
        }
    }
    None
}

/// Whether both sides can still send, and this one has not shut down reading.
pub fn is_established(fd: i32) -> bool {
    info(fd).is_some_and(|i| i.state == ESTABLISHED) && look(fd, ENDED) & ENDED == 0
}

/// Whether the peer has finished, or the connection is no more. [`look`] does not tell while this side has shut down
/// reading.
pub fn peer_ended(fd: i32) -> bool {
    info(fd).is_none_or(|i| matches!(i.state, TIME_WAIT | CLOSE | CLOSE_WAIT | LAST_ACK | CLOSING))
}

/// Whether a FIN has come, as the kernel remembers it (SOCK_DONE): `closed` says it of a connection that is no more.
pub fn fin_came(fd: i32, closed: impl FnOnce() -> bool) -> bool {
    match info(fd).map(|i| i.state) {
        Some(CLOSE_WAIT | LAST_ACK | CLOSING | TIME_WAIT) => true,
        Some(CLOSE) => closed(),
        _ => false,
    }
}

/// Whether this end has sent its FIN, whichever process shut it down.
pub fn is_shut(fd: i32) -> bool {
    info(fd).is_none_or(|i| !matches!(i.state, ESTABLISHED | CLOSE_WAIT))
}

const ESTABLISHED: u8 = 1;
const TIME_WAIT: u8 = 6;
/// The state of a socket that is in no connection (include/net/tcp_states.h).
pub const CLOSE: u8 = 7;
const CLOSE_WAIT: u8 = 8;
const LAST_ACK: u8 = 9;
const CLOSING: u8 = 11;

/// How far the lifeline was consumed, and bytes lying there. Nobody may be reading at the same time.
/// `fin`: what is known of a FIN on a connection that has been reset. `urgent`: whether urgent data is known to have come.
pub fn received(fd: i32, fin: Option<bool>, urgent: &AtomicU32) -> Option<(StreamPos, u64)> {
    for _ in 0..64 {
        let before = info(fd)?;
        let n = queued_all(fd, urgent);
        let after = info(fd)?;
        if before.bytes_received == after.bytes_received && before.state == after.state {
            // rcv_nxt, and bytes_received with it, counts a FIN as one byte (tcp_rcv_nxt_update); tcp_inq does
            // not. A socket is closed by FINs both ways, or by a RST, which counts nothing and is an error.
            let fin = match after.state {
                CLOSE_WAIT | LAST_ACK | CLOSING | TIME_WAIT => true,
                CLOSE => fin.unwrap_or_else(|| look(fd, 0) & libc::POLLERR == 0),
                _ => false,
            };
            // No FIN came if the bytes alone are all that was counted.
            let consumed = after.bytes_received.checked_sub(n)?;
            return Some((StreamPos::new(consumed.saturating_sub(u64::from(fin))), n));
        }
    }
    None
}

/// A number, never 0, that stands for the events which the socket shows and the bytes that have passed over it: as long as the
/// number is the same nothing new has happened. `None`: the socket shows none of the events in `mask`, which a set has asked for.
pub fn state_of_news(fd: i32, mask: i16) -> Option<u64> {
    let seen = look(fd, libc::POLLIN | libc::POLLOUT | libc::POLLPRI | ENDED);
    let shows = seen & (mask | libc::POLLERR | libc::POLLHUP) != 0;
    let Info { state, bytes_acked, bytes_received } = info(fd).filter(|_| shows)?;
    let sent = bytes_acked.wrapping_add(queued(fd, libc::TIOCOUTQ).unwrap_or(0));
    let parts = [seen as u16 as u64, u64::from(state), bytes_received, sent];
    // FNV-1a, of words.
    let mixed =
        parts.iter().fold(0xcbf2_9ce4_8422_2325_u64, |h, v| (h ^ v).wrapping_mul(0x0100_0000_01b3).rotate_left(29));
    Some(mixed | 1)
}

/// Bytes that the socket takes at once, though its peer read nothing: three quarters of its buffer (SO_SNDBUF, which counts the
/// kernel's own overhead, too), less what lies there.
pub fn takes(fd: i32) -> u64 {
    let size = option(fd, libc::SOL_SOCKET, libc::SO_SNDBUF).unwrap_or(0);
    (size.max(0) as u64 / 4 * 3).saturating_sub(K::queued(fd, libc::TIOCOUTQ).unwrap_or(0))
}

/// Resets a connection whose bytes cannot be delivered where they must go.
pub fn reset(fd: i32, why: Reason) {
    crate::log!(Error, "fd {fd}: left culvert ({}) with bytes that only culvert holds; connection reset", why.text());
    K::disconnect(fd);
    // If the connection had ended before, and its error was asked for, the socket has no error now (tcp_disconnect). A
    // program that reads it is told ENOTCONN, and does not take that for the end of the stream.
    if look(fd, 0) & libc::POLLERR != 0 {
        K::shutdown(fd, libc::SHUT_RDWR);
    }
}

/// Resets a connection for both ends. This one answers as if the RST had come from the other: ECONNRESET once, then the end
/// of the stream, and EPIPE to who sends.
pub fn end(fd: i32) {
    // The RST, and the error (tcp_disconnect). What the socket is then, it could be made into a connection anew, and says
    // ENOTCONN.
    K::disconnect(fd);
    // What tcp_reset does with it: both directions are shut (tcp_done). Says ENOTCONN, and does so (inet_shutdown).
    K::shutdown(fd, libc::SHUT_RDWR);
}

/// The port that the socket is bound to; 0 if it is not.
pub fn local_port(fd: i32) -> u16 {
    // struct sockaddr_in and sockaddr_in6 alike.
    K::local_address(fd).map_or(0, |a| u16::from_be_bytes([a[2], a[3]]))
}
