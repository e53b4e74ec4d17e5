//! Bytes in and out, by flat buffer or vector.

use super::{MAX_RW_COUNT, Vector, can_read, peek, poke};
use core::ffi::{c_int, c_uint, c_void};
use engine::leave::{self, Moves, Unread};
use engine::{family, fds, io, lifeline};
use host::{real, signals, usercopy};
use libc::{iovec, off_t, size_t, sockaddr, socklen_t, ssize_t};
use shmring::family::Reason;
use shmring::lnx;

/// One buffer as a vector, no longer than the kernel would take it.
fn one(b: *const c_void, n: size_t) -> iovec {
    iovec { iov_base: b.cast_mut(), iov_len: n.min(MAX_RW_COUNT) }
}

/// Whether `read` and `write` refuse the buffer before they look at the descriptor's state (`vfs_read`, which judges the
/// length as it was passed).
fn unusable(b: *const c_void, n: size_t) -> bool {
    n > isize::MAX as usize || usercopy::outside(b, n)
}

/// The same for `recv` and `send` (`import_ubuf`, which cuts the length first).
fn out_of_reach(b: *const c_void, n: size_t) -> bool {
    usercopy::outside(b, n.min(MAX_RW_COUNT))
}

/// Whether an address argument of `sendto` is one that the kernel refuses before it looks at the data
/// (`move_addr_to_kernel`).
fn refused(a: *const sockaddr, l: socklen_t) -> bool {
    // SAFETY: the program's address, or a fault.
    !a.is_null() && (l as usize > size_of::<libc::sockaddr_storage>() || !unsafe { can_read(a.cast(), l as usize) })
}

/// Stores the address of a datagram's sender after a receive that the kernel did not do: a stream has
/// none, so the length becomes 0 and the address stays as it was (`move_addr_to_user`, which also looks at
/// the old length; by then the bytes are gone, on the kernel too).
///
/// # Safety
/// The pointers are those of the program's `recvfrom`.
unsafe fn no_sender(got: ssize_t, a: *mut sockaddr, l: *mut socklen_t) -> ssize_t {
    if got < 0 || a.is_null() {
        return got;
    }
    // SAFETY: the program's own variable, or a fault.
    match unsafe { peek(l) } {
        Ok(old) if (old as c_int) < 0 => {
            real::set_errno(libc::EINVAL);
            -1
        }
        // SAFETY: as above.
        Ok(_) if unsafe { poke(l, 0) }.is_ok() => got,
        _ => {
            real::set_errno(libc::EFAULT);
            -1
        }
    }
}

/// Reading nothing returns at once without a look at the socket, unlike `recv` (`sock_read_iter`).
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn read(fd: c_int, b: *mut c_void, n: size_t) -> ssize_t {
    // SAFETY: libc gets the program's own arguments. `v` lives until the call returns; the buffer that it names is the
    // program's, and a bad one is an EFAULT (`usercopy`).
    unsafe {
        let Some(ep) = io::carried(fd).filter(|_| n != 0 && !unusable(b, n)) else {
            return real::read(fd, b, n);
        };
        let v = one(b, n);
        io::recv(ep, fd, &v, 1, 0, || real::read(fd, b, n))
    }
}

/// glibc's second name for `read`.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn __read(fd: c_int, b: *mut c_void, n: size_t) -> ssize_t {
    // SAFETY: the same function under another name.
    unsafe { read(fd, b, n) }
}

/// `read` with `_FORTIFY_SOURCE`: libc ends the program if the buffer is too small.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn __read_chk(fd: c_int, b: *mut c_void, n: size_t, room: size_t) -> ssize_t {
    // SAFETY: libc gets the program's own arguments.
    unsafe { if n > room { real::__read_chk(fd, b, n, room) } else { read(fd, b, n) } }
}

#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn write(fd: c_int, b: *const c_void, n: size_t) -> ssize_t {
    // SAFETY: libc gets the program's own arguments. `v` lives until the call returns; the buffer that it names is the
    // program's, and a bad one is an EFAULT (`usercopy`).
    unsafe {
        let Some(ep) = io::carried(fd).filter(|_| !unusable(b, n)) else {
            return real::write(fd, b, n);
        };
        let v = one(b, n);
        io::send(ep, fd, &v, 1, 0, || real::write(fd, b, n))
    }
}

/// glibc's second name for `write`.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn __write(fd: c_int, b: *const c_void, n: size_t) -> ssize_t {
    // SAFETY: the same function under another name.
    unsafe { write(fd, b, n) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn readv(fd: c_int, v: *const iovec, n: c_int) -> ssize_t {
    // SAFETY: libc gets the program's own arguments; `own` lives until the call returns, and a bad vector or buffer is an EFAULT
    // (`usercopy`).
    unsafe {
        let Some(ep) = io::carried(fd) else {
            return real::readv(fd, v, n);
        };
        // A negative count is a huge one here, and refused as such.
        match Vector::new(v, n as usize) {
            Some(own) if own.len > 0 => io::recv(ep, fd, own.elements(), own.n, 0, || real::readv(fd, v, n)),
            _ => real::readv(fd, v, n),
        }
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn writev(fd: c_int, v: *const iovec, n: c_int) -> ssize_t {
    // SAFETY: libc gets the program's own arguments; `own` lives until the call returns, and a bad vector or buffer is an EFAULT
    // (`usercopy`).
    unsafe {
        let Some(ep) = io::carried(fd) else {
            return real::writev(fd, v, n);
        };
        match Vector::new(v, n as usize) {
            Some(own) if own.len > 0 => io::send(ep, fd, own.elements(), own.n, 0, || real::writev(fd, v, n)),
            // An empty vector returns 0 without a look at the socket (`do_iter_readv_writev`).
            _ => real::writev(fd, v, n),
        }
    }
}

/// Moves a connection to the kernel, for a call of which what is unread on the ring can be read by one of ours: so it need not wait for
/// the peer. True: there is nothing of that.
fn leave_by_reading(fd: c_int, why: Reason) -> bool {
    // Another process that has it may be about to use the lifeline alone.
    let alone = fds::endpoint(fd).is_none_or(family::sole_holder);
    leave::quit(fd, why, if alone { Unread::Keep } else { Unread::Rewind })
}

/// Flags of `preadv2` that a socket takes.
const PLAIN: c_int = libc::RWF_HIPRI | libc::RWF_DSYNC | libc::RWF_SYNC | libc::RWF_NOWAIT | libc::RWF_APPEND;

/// Offset -1 means "the current position", which a socket accepts; any other is `ESPIPE`. What the
/// flags mean to a socket depends on the kernel's version, so with flags the kernel gets the socket.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn preadv2(fd: c_int, v: *const iovec, n: c_int, off: off_t, flags: c_int) -> ssize_t {
    // SAFETY: `readv` and libc get the program's own arguments.
    unsafe {
        if off == -1 && io::carried(fd).is_some() {
            if flags == 0 {
                return readv(fd, v, n);
            }
            if flags & !PLAIN != 0 {
                leave::surrender(fd, Reason::Option);
            } else if !leave_by_reading(fd, Reason::Option) {
                // Such flags mean nothing where bytes are there.
                return readv(fd, v, n);
            }
            if Vector::new(v, n as usize).is_some_and(|v| v.len > 0) {
                return leave::natively(fd, Moves::In, || real::preadv2(fd, v, n, off, flags));
            }
        }
        real::preadv2(fd, v, n, off, flags)
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn preadv64v2(fd: c_int, v: *const iovec, n: c_int, off: off_t, flags: c_int) -> ssize_t {
    // SAFETY: the same function under another name.
    unsafe { preadv2(fd, v, n, off, flags) }
}

/// As `preadv2`.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn pwritev2(fd: c_int, v: *const iovec, n: c_int, off: off_t, flags: c_int) -> ssize_t {
    // SAFETY: `writev` and libc get the program's own arguments.
    unsafe {
        if off == -1 && io::carried(fd).is_some() {
            if flags == 0 {
                return writev(fd, v, n);
            }
            leave::sending_side(fd, Reason::Option);
            if Vector::new(v, n as usize).is_some_and(|v| v.len > 0) {
                return leave::natively(fd, Moves::Out(0), || real::pwritev2(fd, v, n, off, flags));
            }
        }
        real::pwritev2(fd, v, n, off, flags)
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn pwritev64v2(fd: c_int, v: *const iovec, n: c_int, off: off_t, flags: c_int) -> ssize_t {
    // SAFETY: the same function under another name.
    unsafe { pwritev2(fd, v, n, off, flags) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn recv(fd: c_int, b: *mut c_void, n: size_t, flags: c_int) -> ssize_t {
    // SAFETY: libc gets the program's own arguments. `v` lives until the call returns; the buffer that it names is the
    // program's, and a bad one is an EFAULT (`usercopy`).
    unsafe {
        let Some(ep) = io::carried(fd).filter(|_| !out_of_reach(b, n)) else {
            return real::recv(fd, b, n, flags);
        };
        let v = one(b, n);
        io::recv(ep, fd, &v, 1, flags & !io::BREAKS, || real::recv(fd, b, n, flags))
    }
}

/// `recv` with `_FORTIFY_SOURCE`.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn __recv_chk(
    fd: c_int,
    b: *mut c_void,
    n: size_t,
    room: size_t,
    flags: c_int,
) -> ssize_t {
    // SAFETY: libc gets the program's own arguments.
    unsafe { if n > room { real::__recv_chk(fd, b, n, room, flags) } else { recv(fd, b, n, flags) } }
}

#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn send(fd: c_int, b: *const c_void, n: size_t, flags: c_int) -> ssize_t {
    // SAFETY: libc gets the program's own arguments. `v` lives until the call returns; the buffer that it names is the
    // program's, and a bad one is an EFAULT (`usercopy`).
    unsafe {
        let Some(ep) = io::carried(fd).filter(|_| !out_of_reach(b, n)) else {
            return real::send(fd, b, n, flags);
        };
        let v = one(b, n);
        io::send(ep, fd, &v, 1, flags, || real::send(fd, b, n, flags))
    }
}

/// glibc's second name for `send`.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn __send(fd: c_int, b: *const c_void, n: size_t, flags: c_int) -> ssize_t {
    // SAFETY: the same function under another name.
    unsafe { send(fd, b, n, flags) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn recvfrom(
    fd: c_int,
    b: *mut c_void,
    n: size_t,
    flags: c_int,
    a: *mut sockaddr,
    l: *mut socklen_t,
) -> ssize_t {
    // SAFETY: libc gets the program's own arguments. `v` lives until the call returns; the buffer that it names is the
    // program's, and a bad one is an EFAULT (`usercopy`),
    // as is a bad address (`no_sender`).
    unsafe {
        let Some(ep) = io::carried(fd).filter(|_| !out_of_reach(b, n)) else {
            return real::recvfrom(fd, b, n, flags, a, l);
        };
        let v = one(b, n);
        let mut by_kernel = false;
        let r = io::recv(ep, fd, &v, 1, flags & !io::BREAKS, || {
            let r = real::recvfrom(fd, b, n, flags, a, l);
            by_kernel = r >= 0;
            r
        });
        if by_kernel { r } else { no_sender(r, a, l) }
    }
}

/// `recvfrom` with `_FORTIFY_SOURCE`.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn __recvfrom_chk(
    fd: c_int,
    b: *mut c_void,
    n: size_t,
    room: size_t,
    flags: c_int,
    a: *mut sockaddr,
    l: *mut socklen_t,
) -> ssize_t {
    // SAFETY: libc gets the program's own arguments.
    unsafe {
        if n > room { real::__recvfrom_chk(fd, b, n, room, flags, a, l) } else { recvfrom(fd, b, n, flags, a, l) }
    }
}

/// A connected stream ignores the address, once the kernel has been able to read it.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn sendto(
    fd: c_int,
    b: *const c_void,
    n: size_t,
    flags: c_int,
    a: *const sockaddr,
    l: socklen_t,
) -> ssize_t {
    // SAFETY: libc gets the program's own arguments. `v` lives until the call returns; the buffer that it names is the
    // program's, and a bad one is an EFAULT (`usercopy`).
    unsafe {
        let Some(ep) = io::carried(fd).filter(|_| !out_of_reach(b, n) && !refused(a, l)) else {
            return real::sendto(fd, b, n, flags, a, l);
        };
        let v = one(b, n);
        io::send(ep, fd, &v, 1, flags, || real::sendto(fd, b, n, flags, a, l))
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn sendfile(out: c_int, inp: c_int, off: *mut off_t, n: size_t) -> ssize_t {
    // SAFETY: libc gets the program's own arguments; a bad `off` is an EFAULT (`usercopy`).
    unsafe {
        let Some(ep) = io::carried(out) else {
            // A socket cannot be the source (sendfile(2)): libc reports that.
            return real::sendfile(out, inp, off, n);
        };
        io::sendfile(ep, out, inp, off, n, || real::sendfile(out, inp, off, n))
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn sendfile64(out: c_int, inp: c_int, off: *mut off_t, n: size_t) -> ssize_t {
    // SAFETY: the same function under another name.
    unsafe { sendfile(out, inp, off, n) }
}

/// Moves pages between the kernel's socket and a pipe: a socket that bytes come from goes to the kernel, and the sending side of
/// one that they go to.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn splice(
    i: c_int,
    io_: *mut off_t,
    o: c_int,
    oo: *mut off_t,
    n: size_t,
    flags: c_uint,
) -> ssize_t {
    // SAFETY: libc gets the program's own arguments.
    unsafe {
        let real = || real::splice(i, io_, o, oo, n, flags);
        if n == 0 {
            // The kernel looks at nothing (splice(2)).
            return real();
        }
        if fds::tracked(o) {
            leave::sending_side(o, Reason::Splice);
        }
        if io_.is_null() && oo.is_null() && flags & !SPLICE_F_ALL == 0 && is_pipe(o) {
            let since = signals::runs();
            if !leave_by_reading(i, Reason::Splice) {
                return copied(i, o, n, flags, since);
            }
        } else {
            leave::surrender(i, Reason::Splice);
        }
        if !fds::tracked(i) && lifeline::unread(i) == 0 {
            // The kernel has nothing to send, and does not look at the socket.
            return real();
        }
        leave::natively(i, Moves::In, || leave::natively(o, Moves::Out(0), real))
    }
}

/// All flags of `splice` (linux/splice.h).
const SPLICE_F_ALL: c_uint = libc::SPLICE_F_MOVE | libc::SPLICE_F_NONBLOCK | libc::SPLICE_F_MORE | libc::SPLICE_F_GIFT;

fn is_pipe(fd: c_int) -> bool {
    lnx::stat(fd).is_some_and(|st| st.st_mode & libc::S_IFMT == libc::S_IFIFO)
}

/// `splice` into pipe `o` of what lies on a ring that `i` has left: by a copy of so much that a pipe that has room takes it whole
/// (pipe(7), PIPE_BUF).
///
/// # Safety
/// A cancellation point; no lock held.
unsafe fn copied(i: c_int, o: c_int, n: size_t, flags: c_uint, since: signals::Runs) -> ssize_t {
    let mut some = [0u8; 1024];
    let at: *mut c_void = some.as_mut_ptr().cast();
    let room = || lifeline::look(o, libc::POLLOUT);
    // SAFETY: libc gets locals of the lengths that are said.
    unsafe {
        // As the kernel does: room first, then the bytes (splice_file_to_pipe).
        while room() == 0 {
            if flags & libc::SPLICE_F_NONBLOCK != 0 || lifeline::nonblocking(o) {
                real::set_errno(libc::EAGAIN);
                return -1;
            }
            if await_room(o) < 0 && signals::interrupted(since, true) {
                return -1;
            }
        }
        if room() & libc::POLLERR != 0 {
            // Nobody reads there (wait_for_space).
            lnx::raise(libc::SIGPIPE);
            real::set_errno(libc::EPIPE);
            return -1;
        }
        let there = recv(i, at, n.min(some.len()), 0);
        if there <= 0 {
            return there;
        }
        let (mut done, saved) = (0, real::errno());
        while done < there {
            // They are nowhere else by now: others who write to the pipe are waited for.
            match real::write(o, at.wrapping_byte_add(done as usize), (there - done) as usize) {
                n if n > 0 => done += n,
                _ if matches!(real::errno(), libc::EAGAIN | libc::EINTR) => _ = await_room(o),
                _ if done > 0 => break,
                r => return r,
            }
        }
        real::set_errno(saved);
        done
    }
}

/// Waits until pipe `o` has room.
///
/// # Safety
/// A cancellation point; no lock held.
unsafe fn await_room(o: c_int) -> c_int {
    let mut wait = libc::pollfd { fd: o, events: libc::POLLOUT, revents: 0 };
    // SAFETY: a local.
    unsafe { real::poll(&raw mut wait, 1, -1) }
}
