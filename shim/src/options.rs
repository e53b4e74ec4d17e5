//! Socket options, ioctl and fcntl on endpoints. What the ring is known to carry faithfully passes; any
//! other request about the socket moves it to the kernel first.

use crate::endpoint::Ep;
use crate::{descriptors, endpoint, fds, leave, lifeline, real, rx, tx, usercopy};
use core::sync::atomic::Ordering::Relaxed;
use libc::{c_int, c_ulong, c_void, socklen_t};
use shmring::family::{Reason, State};
use shmring::ring;

/// Options at SOL_SOCKET whose setting does not concern the bytes, or only at the connection's ends.
const HARMLESS_SOCKET: &[c_int] = &[
    libc::SO_REUSEADDR,
    libc::SO_REUSEPORT,
    libc::SO_KEEPALIVE,
    libc::SO_LINGER,
    libc::SO_SNDBUF,
    libc::SO_RCVBUF,
    libc::SO_SNDBUFFORCE,
    libc::SO_RCVBUFFORCE,
    libc::SO_RCVTIMEO,
    libc::SO_SNDTIMEO,
    libc::SO_RCVLOWAT,
    libc::SO_BROADCAST,
    libc::SO_PRIORITY,
    libc::SO_DONTROUTE,
    libc::SO_MARK,
    libc::SO_BUSY_POLL,
    libc::SO_INCOMING_CPU,
    libc::SO_NO_CHECK,
    libc::SO_OOBINLINE,
    libc::SO_ZEROCOPY,
    libc::SO_MAX_PACING_RATE,
    libc::SO_DEBUG,
    libc::SO_PREFER_BUSY_POLL,
    libc::SO_BUSY_POLL_BUDGET,
    libc::SO_RCVTIMEO_NEW,
    libc::SO_SNDTIMEO_NEW,
    libc::SO_BINDTODEVICE,
    libc::SO_TXTIME,
];
/// The same at IPPROTO_TCP.
const HARMLESS_TCP: &[c_int] = &[
    libc::TCP_NODELAY,
    libc::TCP_CORK,
    libc::TCP_QUICKACK,
    libc::TCP_KEEPIDLE,
    libc::TCP_KEEPINTVL,
    libc::TCP_KEEPCNT,
    libc::TCP_USER_TIMEOUT,
    libc::TCP_MAXSEG,
    libc::TCP_SYNCNT,
    libc::TCP_LINGER2,
    libc::TCP_DEFER_ACCEPT,
    libc::TCP_WINDOW_CLAMP,
    libc::TCP_CONGESTION,
    libc::TCP_NOTSENT_LOWAT,
    libc::TCP_FASTOPEN,
    libc::TCP_FASTOPEN_CONNECT,
    libc::TCP_THIN_LINEAR_TIMEOUTS,
    libc::TCP_THIN_DUPACK,
    libc::TCP_SAVE_SYN,
    libc::TCP_TIMESTAMP,
];

fn harmless(level: c_int, name: c_int) -> bool {
    match level {
        libc::SOL_SOCKET => HARMLESS_SOCKET.contains(&name),
        libc::IPPROTO_TCP => HARMLESS_TCP.contains(&name),
        // Addressing and packet header options: packets are the lifeline's affair.
        libc::IPPROTO_IP | libc::IPPROTO_IPV6 => true,
        _ => false,
    }
}

/// `setsockopt`.
///
/// # Safety
/// As libc's.
pub unsafe fn setsockopt(fd: c_int, level: c_int, name: c_int, v: *const c_void, l: socklen_t) -> c_int {
    if let Some(ep) = fds::endpoint(fd)
        && !harmless(level, name)
    {
        let why = if level == libc::IPPROTO_TCP && name == libc::TCP_ULP { Reason::Ktls } else { Reason::Option };
        if ep.state() != State::Idle || level == libc::IPPROTO_TCP {
            leave::retire(fd, why);
        } else {
            ep.pin(why);
        }
    }
    if level == libc::IPPROTO_TCP
        && name == libc::TCP_CORK
        && l as usize >= size_of::<c_int>()
        && let Some(ep) = fds::endpoint(fd)
        && ep.state() == State::Attached
        // SAFETY: reads the program's int as the kernel would.
        && let Ok(on) = unsafe { usercopy::load(v.cast::<c_int>()) }
    {
        // SAFETY: the caller's obligation.
        return tx::cork(ep, on != 0, || unsafe { real::setsockopt(fd, level, name, v, l) });
    }
    // SAFETY: the caller's obligation.
    let r = unsafe { real::setsockopt(fd, level, name, v, l) };
    if r == 0
        && level == libc::SOL_SOCKET
        && name == libc::SO_RCVLOWAT
        && let Some(ep) = fds::endpoint(fd)
    {
        let low = lifeline::option(fd, libc::SOL_SOCKET, libc::SO_RCVLOWAT).unwrap_or(1);
        ep.rcvlowat.store(low.max(0) as u32, Relaxed);
    }
    if r == 0
        && level == libc::SOL_SOCKET
        && matches!(name, libc::SO_SNDBUF | libc::SO_SNDBUFFORCE | libc::SO_RCVBUF | libc::SO_RCVBUFFORCE)
        && let Some(ep) = fds::endpoint(fd)
        && ep.state() == State::Attached
        && let Some(chan) = ep.chan()
    {
        match name {
            libc::SO_SNDBUF | libc::SO_SNDBUFFORCE => tx::buffer_set(ep, chan, fd),
            _ => rx::buffer_set(ep, chan, fd),
        }
    }
    r
}

/// `getsockopt`: an error that culvert latched is the socket's error.
///
/// # Safety
/// As libc's.
pub unsafe fn getsockopt(fd: c_int, level: c_int, name: c_int, v: *mut c_void, l: *mut socklen_t) -> c_int {
    if level == libc::SOL_SOCKET
        && name == libc::SO_ERROR
        && let Some(ep) = fds::endpoint(fd)
        && ep.state() == State::Attached
    {
        // What a peer that was killed has not read of the ring is an error that the kernel does not know of.
        if let Some(chan) = ep.chan()
            && ep.latched.load(Relaxed) == 0
            && tx::look(ep, chan, fd, lifeline::ENDED) & lifeline::ENDED != 0
        {
            tx::sink(ep, chan, fd);
        }
        // SAFETY: the kernel checks the buffers, and says 0 for a socket without an error of its own.
        let r = unsafe { real::getsockopt(fd, level, name, v, l) };
        // SAFETY: the kernel has just written to both.
        unsafe {
            if r == 0 && *l >= 4 {
                match *v.cast::<c_int>() {
                    0 => *v.cast::<c_int>() = endpoint::take_latched(ep).unwrap_or(0),
                    // The kernel tells it once.
                    e => ep.note_error(e),
                }
            }
        }
        return r;
    }
    if level == libc::IPPROTO_TCP
        && name == libc::TCP_CORK
        && let Some(ep) = fds::endpoint(fd)
    {
        tx::tell_cork(ep, fd);
    }
    // SAFETY: the caller's obligation.
    unsafe { real::getsockopt(fd, level, name, v, l) }
}

fn ring_unsent(ep: Ep) -> u64 {
    let Some(chan) = ep.chan() else { return 0 };
    let h = chan.slot(ep.slot.load(Relaxed) as usize);
    let tail = ep.tx_tail.load(Relaxed);
    ring::refresh(&h.consumer[chan.role().tx()], ep.tx_head.load(Relaxed), tail)
        .map_or(0, |head| tail.wrapping_sub(head))
}

/// `ioctl`.
///
/// # Safety
/// As libc's.
pub unsafe fn ioctl(fd: c_int, req: c_ulong, arg: usize) -> c_int {
    if let Some(ep) = fds::endpoint(fd) {
        match req {
            libc::FIONREAD | libc::TIOCOUTQ if ep.state() == State::Attached => {
                // SAFETY: the kernel checks the pointer.
                let r = unsafe { real::ioctl(fd, req, arg) };
                if r == 0
                    && let Some(chan) = ep.chan()
                {
                    tx::service(ep, chan, fd);
                    let p = arg as *mut c_int;
                    // SAFETY: the kernel has just written an int there.
                    let kernel = unsafe { *p }.max(0) as u64;
                    let n = if req == libc::FIONREAD { rx::unread(ep, chan, fd) } else { kernel + ring_unsent(ep) };
                    // SAFETY: as above.
                    unsafe { *p = n.min(i32::MAX as u64) as c_int };
                }
                return r;
            }
            libc::FIOASYNC => leave::retire(fd, Reason::Async),
            _ => {}
        }
    }
    // SAFETY: the caller's obligation.
    unsafe { real::ioctl(fd, req, arg) }
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
