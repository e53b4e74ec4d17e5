//! Sockets: made, connected, listening, accepted, shut down. Names stay the kernel's: `bind` and `getsockname` are libc's own, and
//! `getpeername` only knows better where there is no connection any more.

use super::bad;
use crate::{descriptors, options};
use core::ffi::c_int;
use engine::{custody, fds, io};
use host::real;
use libc::{sockaddr, socklen_t};

#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn socket(domain: c_int, ty: c_int, proto: c_int) -> c_int {
    // SAFETY: no memory is involved.
    unsafe {
        let fd = real::socket(domain, ty, proto);
        if fd >= 0 {
            descriptors::socket(fd, domain, ty, proto);
        }
        fd
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn socketpair(domain: c_int, ty: c_int, proto: c_int, sv: *mut c_int) -> c_int {
    // SAFETY: libc gets the program's own arguments, and has written both descriptors if it returned 0.
    unsafe {
        let r = real::socketpair(domain, ty, proto, sv);
        if r == 0 {
            descriptors::created(*sv);
            descriptors::created(*sv.add(1));
            if domain == libc::AF_UNIX {
                custody::paired(*sv, *sv.add(1));
            }
        }
        r
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn accept(fd: c_int, a: *mut sockaddr, l: *mut socklen_t) -> c_int {
    // SAFETY: libc gets the program's own arguments.
    unsafe {
        let new = real::accept(fd, a, l);
        if new >= 0 {
            descriptors::accepted(fd, new);
        }
        new
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn accept4(fd: c_int, a: *mut sockaddr, l: *mut socklen_t, flags: c_int) -> c_int {
    // SAFETY: libc gets the program's own arguments.
    unsafe {
        let new = real::accept4(fd, a, l, flags);
        if new >= 0 {
            descriptors::accepted(fd, new);
        }
        new
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn listen(fd: c_int, backlog: c_int) -> c_int {
    // SAFETY: no memory is involved.
    unsafe { descriptors::listen(fd, backlog) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn connect(fd: c_int, a: *const sockaddr, l: socklen_t) -> c_int {
    // SAFETY: libc gets the program's own arguments, here or in `descriptors::connect`.
    unsafe {
        if !fds::tracked(fd) || bad(a) || l as usize > size_of::<libc::sockaddr_storage>() {
            return real::connect(fd, a, l);
        }
        descriptors::connect(fd, a, l)
    }
}

/// glibc's second name for `connect`.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn __connect(fd: c_int, a: *const sockaddr, l: socklen_t) -> c_int {
    // SAFETY: the same function under another name.
    unsafe { connect(fd, a, l) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn getpeername(fd: c_int, a: *mut sockaddr, l: *mut socklen_t) -> c_int {
    // SAFETY: libc gets the program's own arguments.
    unsafe {
        if !fds::tracked(fd) {
            return real::getpeername(fd, a, l);
        }
        options::getpeername(fd, a, l)
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn shutdown(fd: c_int, how: c_int) -> c_int {
    // SAFETY: no memory is involved.
    unsafe {
        if !fds::tracked(fd) {
            return real::shutdown(fd, how);
        }
        io::shutdown(fd, how, || real::shutdown(fd, how))
    }
}
