//! Descriptors: closed, duplicated, fetched from another process.

use crate::{descriptors, real};
use core::ffi::{c_int, c_uint};

hooks! {
    fn close(fd: c_int) -> c_int { descriptors::close(fd) }
    /// glibc's second name for `close`.
    fn __close(fd: c_int) -> c_int { close(fd) }
    fn close_range(first: c_uint, last: c_uint, flags: c_int) -> c_int {
        descriptors::close_range(first, last, flags)
    }
    fn closefrom(first: c_int) -> () { descriptors::closefrom(first) }
    fn dup(fd: c_int) -> c_int { descriptors::dup(fd) }
    fn dup2(old: c_int, new: c_int) -> c_int { descriptors::dup2(old, new) }
    /// glibc's second name for `dup2`.
    fn __dup2(old: c_int, new: c_int) -> c_int { dup2(old, new) }
    fn dup3(old: c_int, new: c_int, flags: c_int) -> c_int { descriptors::dup3(old, new, flags) }
    fn pidfd_getfd(pidfd: c_int, fd: c_int, flags: c_uint) -> c_int {
        let new = real::pidfd_getfd(pidfd, fd, flags);
        if new >= 0 {
            descriptors::received(new);
        }
        new
    }
}
