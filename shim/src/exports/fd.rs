//! Descriptors: closed, duplicated, fetched from another process.

use crate::descriptors;
use core::ffi::{c_int, c_uint};
use host::real;

#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn close(fd: c_int) -> c_int {
    // SAFETY: no memory is involved; what becomes of the descriptors is the program's decision.
    unsafe { descriptors::close(fd) }
}

/// glibc's second name for `close`.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn __close(fd: c_int) -> c_int {
    // SAFETY: the same function under another name.
    unsafe { close(fd) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn close_range(first: c_uint, last: c_uint, flags: c_int) -> c_int {
    // SAFETY: no memory is involved; what becomes of the descriptors is the program's decision.
    unsafe { descriptors::close_range(first, last, flags) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn closefrom(first: c_int) {
    // SAFETY: no memory is involved; what becomes of the descriptors is the program's decision.
    unsafe { descriptors::closefrom(first) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn dup(fd: c_int) -> c_int {
    // SAFETY: no memory is involved; what becomes of the descriptors is the program's decision.
    unsafe { descriptors::dup(fd) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn dup2(old: c_int, new: c_int) -> c_int {
    // SAFETY: no memory is involved; what becomes of the descriptors is the program's decision.
    unsafe { descriptors::dup2(old, new) }
}

/// glibc's second name for `dup2`.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn __dup2(old: c_int, new: c_int) -> c_int {
    // SAFETY: the same function under another name.
    unsafe { dup2(old, new) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn dup3(old: c_int, new: c_int, flags: c_int) -> c_int {
    // SAFETY: no memory is involved; what becomes of the descriptors is the program's decision.
    unsafe { descriptors::dup3(old, new, flags) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn pidfd_getfd(pidfd: c_int, fd: c_int, flags: c_uint) -> c_int {
    // SAFETY: no memory is involved; what becomes of the descriptors is the program's decision.
    unsafe {
        let new = real::pidfd_getfd(pidfd, fd, flags);
        if new >= 0 {
            descriptors::came_in_message(new, None);
        }
        new
    }
}
