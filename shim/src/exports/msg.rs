//! Messages: vectors with control data, and the descriptors that travel in it.

use super::{UIO_MAXIOV, Vector, can_read, idle, nanos, peek, poke, poke_bytes};
use crate::{descriptors, epoll};
use core::ffi::{c_int, c_uint, c_void};
use engine::fds::{self, Kind};
use engine::leave::{self, Moves};
use engine::{custody, intents, io, lifeline};
use host::{clock, real};
use libc::{cmsghdr, mmsghdr, msghdr, socklen_t, ssize_t, timespec};
use shmring::family::Reason;
use shmring::lnx;

/// Control message that carries a process descriptor (`SCM_PIDFD`, linux/socket.h).
const SCM_PIDFD: c_int = 4;
const HEADER: usize = size_of::<cmsghdr>();

/// Calls `f` with the type and value of each descriptor in the control data.
///
/// # Safety
/// `control` is what the program or the kernel put into a message header.
unsafe fn each_fd(control: *const c_void, len: usize, mut f: impl FnMut(c_int, c_int)) {
    let mut at = 0;
    while len - at >= HEADER {
        // SAFETY: the program's buffer, or a fault; any bits are a header.
        let Ok(h) = (unsafe { peek(control.wrapping_byte_add(at).cast::<cmsghdr>()) }) else { return };
        if h.cmsg_len < HEADER || h.cmsg_len > len - at {
            return;
        }
        if h.cmsg_level == libc::SOL_SOCKET && (h.cmsg_type == libc::SCM_RIGHTS || h.cmsg_type == SCM_PIDFD) {
            for i in 0..(h.cmsg_len - HEADER) / size_of::<c_int>() {
                let p = control.wrapping_byte_add(at + HEADER).cast::<c_int>().wrapping_add(i);
                // SAFETY: as above.
                let Ok(fd) = (unsafe { peek(p) }) else { return };
                f(h.cmsg_type, fd);
            }
        }
        // Messages start at multiples of a word (cmsg(3)).
        at = match h.cmsg_len.checked_next_multiple_of(size_of::<usize>()) {
            Some(step) if step <= len - at => at + step,
            _ => return,
        };
    }
}

/// Descriptors about to leave in a message through `socket`: their sockets go to the kernel first.
///
/// # Safety
/// As `sendmsg`'s.
unsafe fn passing(socket: c_int, m: &msghdr) {
    // SAFETY: the caller's obligation.
    unsafe {
        each_fd(m.msg_control, m.msg_controllen, |kind, fd| {
            if kind == libc::SCM_RIGHTS {
                custody::sending(socket, fd);
                intents::sharing();
                match fds::get(fd) {
                    Kind::Epoll(i) => epoll::hand_over(i),
                    _ => leave::surrender(fd, Reason::Passed),
                }
            }
        });
    }
}

/// Descriptors that arrived with a message from `socket`.
///
/// # Safety
/// `m` must be as a successful `recvmsg` left it.
unsafe fn arrived(socket: c_int, m: &msghdr) {
    let mut end = None;
    // SAFETY: the kernel wrote this control data.
    unsafe {
        each_fd(m.msg_control, m.msg_controllen, |kind, fd| {
            if kind == libc::SCM_RIGHTS {
                let end = *end.get_or_insert_with(|| custody::arriving(socket));
                descriptors::came_in_message(fd, end);
            } else {
                descriptors::created(fd);
            }
        });
    }
}

/// Before messages of a socket that is not ours are looked at and left where they are.
fn peeking(socket: c_int, flags: c_int) {
    if flags & libc::MSG_PEEK != 0 {
        custody::peeking(socket);
    }
}

/// Whether this process never had a descriptor that a message could concern.
fn aloof() -> bool {
    idle() && !custody::any()
}

/// For 32-bit processes, whose calls set it themselves (linux/socket.h).
const MSG_CMSG_COMPAT: c_int = c_int::MIN;

/// Whether the kernel refuses this header before it looks at the socket's data (`__copy_msghdr`), or the flags
/// (`__sys_sendmsg`, unless the kernel was built without calls of 32 bits).
fn refused(m: &msghdr, flags: c_int) -> bool {
    m.msg_iovlen > UIO_MAXIOV || (!m.msg_name.is_null() && (m.msg_namelen as c_int) < 0) || refused_flags(flags)
}

fn refused_flags(flags: c_int) -> bool {
    flags & MSG_CMSG_COMPAT != 0 && lnx::refuses_flag(MSG_CMSG_COMPAT)
}

/// Whether the kernel can read the name of a message: as much of it as it takes (`__copy_msghdr`).
///
/// # Safety
/// `m` is what the program passed in.
unsafe fn name_readable(m: &msghdr) -> bool {
    // SAFETY: the program's name, or a fault.
    m.msg_name.is_null() || unsafe { can_read(m.msg_name.cast(), m.msg_namelen as usize) }
}

/// `sendmsg` on a socket that may be ours; `h` is what `m` holds. Also says how many bytes were asked for.
///
/// # Safety
/// As `sendmsg`'s.
unsafe fn send_one(fd: c_int, m: *const msghdr, h: &msghdr, flags: c_int) -> (ssize_t, usize) {
    let vector = match refused(h, flags) {
        true => None,
        // SAFETY: as `sendmsg`'s.
        false => unsafe { if name_readable(h) { Vector::new(h.msg_iov, h.msg_iovlen) } else { None } },
    };
    // SAFETY: as `sendmsg`'s.
    let native = || unsafe { real::sendmsg(fd, m, flags) };
    match vector {
        Some(v) if h.msg_controllen == 0 => match io::carried(fd) {
            // SAFETY: as `sendmsg`'s.
            Some(ep) => (unsafe { io::send(ep, fd, v.elements(), v.n, flags, native) }, v.len),
            None => (native(), v.len),
        },
        Some(v) => {
            // Control data of a TCP socket asks the kernel for something: time stamps, zero copy, TLS records.
            leave::sending_side(fd, Reason::Option);
            (leave::natively(fd, Moves::Out(flags), native), v.len)
        }
        None => (native(), 0),
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn sendmsg(fd: c_int, m: *const msghdr, flags: c_int) -> ssize_t {
    // SAFETY: libc gets the program's own arguments; `h` is a copy of the header, read so that a bad pointer is an error.
    unsafe {
        if aloof() {
            return real::sendmsg(fd, m, flags);
        }
        // The kernel reports a header that cannot be read.
        let Ok(h) = peek(m) else { return real::sendmsg(fd, m, flags) };
        if !fds::tracked(fd) {
            if h.msg_controllen != 0 {
                passing(fd, &h);
            }
            return real::sendmsg(fd, m, flags);
        }
        send_one(fd, m, &h, flags).0
    }
}

/// As the kernel does it: up to 1024 messages, stopping at the first that fails or goes out in part;
/// an error is reported only if it is the first message's (`__sys_sendmmsg`).
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn sendmmsg(fd: c_int, v: *mut mmsghdr, n: c_uint, flags: c_int) -> c_int {
    // SAFETY: libc gets the program's own arguments. The array is read and written by `peek` and `poke`, for which a bad
    // pointer is an error; nothing else here looks behind `v`.
    unsafe {
        let n = (n as usize).min(UIO_MAXIOV);
        if aloof() {
            return real::sendmmsg(fd, v, n as c_uint, flags);
        }
        if !fds::tracked(fd) {
            for i in 0..n {
                match peek(&raw const (*v.wrapping_add(i)).msg_hdr) {
                    Ok(h) if h.msg_controllen != 0 => passing(fd, &h),
                    Ok(_) => {}
                    Err(_) => break,
                }
            }
            return real::sendmmsg(fd, v, n as c_uint, flags);
        }
        // The flags are looked at before anything else, also where there is no message.
        if refused_flags(flags) {
            return real::sendmmsg(fd, v, n as c_uint, flags);
        }
        let saved = real::errno();
        for i in 0..n {
            let m = v.wrapping_add(i);
            let at = &raw const (*m).msg_hdr;
            let (sent, asked) = match peek(at) {
                Ok(h) => send_one(fd, at, &h, flags),
                Err(_) => (real::sendmsg(fd, at, flags), 0),
            };
            let failed = sent < 0 || {
                let stored = poke(&raw mut (*m).msg_len, sent as c_uint).is_ok();
                if !stored {
                    real::set_errno(libc::EFAULT);
                }
                !stored
            };
            if failed {
                if i > 0 {
                    real::set_errno(saved);
                    return i as c_int;
                }
                return -1;
            }
            if (sent as usize) < asked {
                return i as c_int + 1;
            }
        }
        n as c_int
    }
}

/// Writes the control message of `TCP_INQ` where the header says, as far as there is room (put_cmsg). Returns `MSG_CTRUNC`
/// or no flag, and how many bytes of the room are used. Where the kernel cannot write it says nothing, and uses none.
///
/// # Safety
/// `h` is a header that the program passed in.
unsafe fn put_inq(h: &msghdr, left: c_int) -> (c_int, usize) {
    #[repr(C)]
    struct Inq {
        header: cmsghdr,
        left: c_int,
    }
    const LEN: usize = HEADER + size_of::<c_int>();
    let room = h.msg_controllen;
    if h.msg_control.is_null() || room < HEADER {
        return (libc::MSG_CTRUNC, 0);
    }
    let len = room.min(LEN);
    let cut = if room < LEN { libc::MSG_CTRUNC } else { 0 };
    let header = cmsghdr { cmsg_len: len, cmsg_level: libc::IPPROTO_TCP, cmsg_type: lifeline::TCP_INQ };
    // SAFETY: as `recvmsg`'s: the program's buffer, or a fault.
    match unsafe { poke_bytes(h.msg_control.cast(), &Inq { header, left }, len) } {
        // The next message would begin at a multiple of a word (CMSG_SPACE).
        Ok(()) => (cut, room.min(LEN.next_multiple_of(size_of::<usize>()))),
        Err(_) => (cut, 0),
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn recvmsg(fd: c_int, m: *mut msghdr, flags: c_int) -> ssize_t {
    // SAFETY: the program's own arguments.
    unsafe { receive(fd, m, flags, 0) }
}

/// `recvmsg`; `how`: 0 or [`io::BREAKS`].
///
/// # Safety
/// As `recvmsg`'s.
unsafe fn receive(fd: c_int, m: *mut msghdr, flags: c_int, how: c_int) -> ssize_t {
    // SAFETY: libc gets the program's own arguments. The header is read and written by `peek` and `poke`, for which a bad
    // pointer is an error, but where the kernel has just written it.
    unsafe {
        if !fds::tracked(fd) {
            peeking(fd, flags);
            let r = real::recvmsg(fd, m, flags);
            // The kernel has just written the header.
            if r >= 0 && !aloof() && (*m).msg_controllen != 0 {
                arrived(fd, &*m);
            }
            return r;
        }
        // The kernel says what is wrong.
        let Ok(h) = peek(m) else { return real::recvmsg(fd, m, flags) };
        let vector = if refused(&h, flags) { None } else { Vector::new(h.msg_iov, h.msg_iovlen) };
        let Some(v) = vector else { return real::recvmsg(fd, m, flags) };
        let Some(ep) = io::carried(fd) else { return real::recvmsg(fd, m, flags) };
        let mut by_kernel = false;
        let mut r = io::recv(ep, fd, v.elements(), v.n, flags | how, || {
            let r = real::recvmsg(fd, m, flags);
            by_kernel = r >= 0;
            r
        });
        if r >= 0 && !by_kernel {
            // What the kernel leaves in the header for a stream (`____sys_recvmsg`): no sender, of the flags only the one that
            // it copies from the argument, and no control data but what `TCP_INQ` asks for.
            let (cut, used) = match io::inq(ep, fd) {
                Some(left) => put_inq(&h, left),
                None => (0, 0),
            };
            let name = h.msg_name.is_null() || poke(&raw mut (*m).msg_namelen, 0).is_ok();
            let rest = poke(&raw mut (*m).msg_flags, flags & libc::MSG_CMSG_CLOEXEC | cut).is_ok()
                && poke(&raw mut (*m).msg_controllen, used).is_ok();
            if !name || !rest {
                real::set_errno(libc::EFAULT);
                r = -1;
            }
        }
        r
    }
}

/// As the kernel does it (`do_recvmmsg`): an error of the socket comes first; then message after message; the
/// time is looked at only after each. An error behind the first message is kept for the next call.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn recvmmsg(
    fd: c_int,
    v: *mut mmsghdr,
    n: c_uint,
    flags: c_int,
    t: *mut timespec,
) -> c_int {
    // SAFETY: libc gets the program's own arguments. The array is written by `poke`, for which a bad pointer is an error;
    // the headers that are looked into the kernel has just written.
    unsafe {
        let native = || {
            peeking(fd, flags);
            let r = real::recvmmsg(fd, v, n, flags, t);
            for i in 0..usize::try_from(r).unwrap_or(0) {
                let h = &(*v.add(i)).msg_hdr;
                if !aloof() && h.msg_controllen != 0 {
                    arrived(fd, h);
                }
            }
            r as isize
        };
        if !fds::tracked(fd) {
            return native() as c_int;
        }
        let timeout = match nanos(t) {
            Ok(ns) if flags & libc::MSG_ERRQUEUE == 0 && !refused_flags(flags) => ns,
            // The kernel says what is wrong, before it looks at the socket's data.
            _ => return native() as c_int,
        };
        if let Some(r) = io::unless_carried(fd, native) {
            return r as c_int;
        }
        let mut e: c_int = 0;
        let mut len = size_of::<c_int>() as socklen_t;
        let saved = real::errno();
        if crate::options::getsockopt(fd, libc::SOL_SOCKET, libc::SO_ERROR, (&raw mut e).cast(), &raw mut len) == 0
            && e != 0
        {
            real::set_errno(e);
            return -1;
        }
        let until = timeout.map(|ns| clock::now().saturating_add(ns));
        let mut once = flags & !libc::MSG_WAITFORONE;
        let mut left = None;
        let mut i = 0;
        while i < n as usize {
            let m = v.wrapping_add(i);
            // Once a message was received the call is not started again.
            let how = if i > 0 { io::BREAKS } else { 0 };
            let got = receive(fd, &raw mut (*m).msg_hdr, once, how);
            if got >= 0 && poke(&raw mut (*m).msg_len, got as c_uint).is_err() {
                real::set_errno(libc::EFAULT);
            } else if got >= 0 {
                i += 1;
                if flags & libc::MSG_WAITFORONE != 0 {
                    once |= libc::MSG_DONTWAIT;
                }
                left = until.map(|u| u.saturating_sub(clock::now()));
                if left == Some(0) {
                    break;
                }
                continue;
            }
            if i == 0 {
                return -1;
            }
            io::keep_error(fd, real::errno());
            break;
        }
        real::set_errno(saved);
        if let Some(ns) = left
            && poke(t, timespec { tv_sec: (ns / 1_000_000_000) as i64, tv_nsec: (ns % 1_000_000_000) as i64 }).is_err()
        {
            real::set_errno(libc::EFAULT);
            return -1;
        }
        i as c_int
    }
}
