//! Sockets: made, connected, accepted, shut down. Names stay the kernel's: `bind`, `getsockname` and
//! `getpeername` are libc's own.

use super::bad;
use crate::{descriptors, fds, io, real};
use core::ffi::c_int;
use libc::{sockaddr, socklen_t};

hooks! {
    fn socket(domain: c_int, ty: c_int, proto: c_int) -> c_int {
        let fd = real::socket(domain, ty, proto);
        if fd >= 0 {
            descriptors::socket(fd, domain, ty, proto);
        }
        fd
    }
    fn socketpair(domain: c_int, ty: c_int, proto: c_int, sv: *mut c_int) -> c_int {
        let r = real::socketpair(domain, ty, proto, sv);
        if r == 0 {
            descriptors::created(*sv);
            descriptors::created(*sv.add(1));
        }
        r
    }
    fn accept(fd: c_int, a: *mut sockaddr, l: *mut socklen_t) -> c_int {
        let new = real::accept(fd, a, l);
        if new >= 0 {
            descriptors::accepted(fd, new);
        }
        new
    }
    fn accept4(fd: c_int, a: *mut sockaddr, l: *mut socklen_t, flags: c_int) -> c_int {
        let new = real::accept4(fd, a, l, flags);
        if new >= 0 {
            descriptors::accepted(fd, new);
        }
        new
    }
    fn connect(fd: c_int, a: *const sockaddr, l: socklen_t) -> c_int {
        if !fds::tracked(fd) || bad(a) || l as usize > size_of::<libc::sockaddr_storage>() {
            return real::connect(fd, a, l);
        }
        descriptors::connect(fd, a, l)
    }
    /// glibc's second name for `connect`.
    fn __connect(fd: c_int, a: *const sockaddr, l: socklen_t) -> c_int { connect(fd, a, l) }
    fn shutdown(fd: c_int, how: c_int) -> c_int {
        if !fds::tracked(fd) {
            return real::shutdown(fd, how);
        }
        io::shutdown(fd, how, || real::shutdown(fd, how))
    }
}
