//! Socket options and the other questions and settings of a descriptor.

use crate::options;
use core::ffi::{c_int, c_ulong, c_void};
use engine::fds;
use host::real;
use libc::socklen_t;

#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn setsockopt(
    fd: c_int,
    level: c_int,
    name: c_int,
    v: *const c_void,
    l: socklen_t,
) -> c_int {
    // SAFETY: libc gets the program's own arguments.
    unsafe {
        if !fds::tracked(fd) {
            return real::setsockopt(fd, level, name, v, l);
        }
        options::setsockopt(fd, level, name, v, l)
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn getsockopt(
    fd: c_int,
    level: c_int,
    name: c_int,
    v: *mut c_void,
    l: *mut socklen_t,
) -> c_int {
    // SAFETY: libc gets the program's own arguments.
    unsafe {
        if !fds::tracked(fd) {
            return real::getsockopt(fd, level, name, v, l);
        }
        options::getsockopt(fd, level, name, v, l)
    }
}

/// Variadic in C; the third argument, where there is one, is a word in a register.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn ioctl(fd: c_int, req: c_ulong, arg: usize) -> c_int {
    // SAFETY: libc gets the program's own arguments.
    unsafe {
        if !fds::tracked(fd) {
            return real::ioctl(fd, req, arg);
        }
        options::ioctl(fd, req, arg)
    }
}

/// Out-of-band data never travels on a ring, but comes behind what does.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn sockatmark(fd: c_int) -> c_int {
    // SAFETY: no memory of the program's is involved.
    unsafe { if fds::tracked(fd) { options::sockatmark(fd) } else { real::sockatmark(fd) } }
}

/// Variadic in C; as for `ioctl`. Duplicating always passes through the table of descriptors: an
/// epoll set or a pinned socket has an entry there too.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn fcntl(fd: c_int, cmd: c_int, arg: usize) -> c_int {
    // SAFETY: libc gets the program's own arguments.
    unsafe {
        if !fds::tracked(fd) && cmd != libc::F_DUPFD && cmd != libc::F_DUPFD_CLOEXEC {
            return real::fcntl(fd, cmd, arg);
        }
        options::fcntl(fd, cmd, arg)
    }
}

/// The name under which programs built with 64-bit file offsets import `fcntl`; the same on x86-64.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn fcntl64(fd: c_int, cmd: c_int, arg: usize) -> c_int {
    // SAFETY: the same function under another name.
    unsafe { fcntl(fd, cmd, arg) }
}

/// glibc's second name for `fcntl`.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn __fcntl(fd: c_int, cmd: c_int, arg: usize) -> c_int {
    // SAFETY: the same function under another name.
    unsafe { fcntl(fd, cmd, arg) }
}
