//! POSIX asynchronous I/O: glibc's helper threads read and write the descriptor behind our back, so its
//! socket goes to the kernel first.

use super::{idle, peek};
use crate::epoll;
use core::ffi::c_int;
use engine::fds::{self, Kind};
use engine::leave;
use host::real;
use libc::{aiocb, sigevent};
use shmring::family::Reason;

/// # Safety
/// `cb` is a pointer that the program passed in.
unsafe fn retire(cb: *const aiocb) {
    if idle() {
        return;
    }
    // SAFETY: the program's structure, or a fault.
    if let Ok(fd) = unsafe { peek(&raw const (*cb).aio_fildes) } {
        leave::surrender(fd, Reason::Stdio);
    }
}

/// `struct iocb`, as far as we look (include/uapi/linux/aio_abi.h).
#[repr(C)]
#[derive(Clone, Copy)]
struct Iocb {
    data: u64,
    key: [u32; 2],
    opcode: u16,
    priority: u16,
    fd: u32,
}

/// Before `io_submit(2)`, made by number: the kernel will read, write or poll where nobody sees it.
///
/// # Safety
/// The pointers are those of the program's call.
pub unsafe fn submitting(n: isize, list: *const *const core::ffi::c_void) {
    let n = if idle() { 0 } else { n };
    for i in 0..usize::try_from(n).unwrap_or(0) {
        // SAFETY: the program's structures, or a fault.
        let Ok(Ok(cb)) = (unsafe { peek(list.wrapping_add(i)).map(|p| peek(p.cast::<Iocb>())) }) else { break };
        let fd = cb.fd as c_int;
        match fds::get(fd) {
            Kind::Epoll(set) => epoll::nest(set),
            _ => leave::retire(fd, Reason::Async),
        }
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn aio_read(cb: *mut aiocb) -> c_int {
    // SAFETY: libc gets the program's own argument, from which only `peek` reads.
    unsafe {
        retire(cb);
        real::aio_read(cb)
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn aio_read64(cb: *mut aiocb) -> c_int {
    // SAFETY: the same function under another name.
    unsafe { aio_read(cb) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn aio_write(cb: *mut aiocb) -> c_int {
    // SAFETY: libc gets the program's own argument, from which only `peek` reads.
    unsafe {
        retire(cb);
        real::aio_write(cb)
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn aio_write64(cb: *mut aiocb) -> c_int {
    // SAFETY: the same function under another name.
    unsafe { aio_write(cb) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn lio_listio(mode: c_int, list: *const *mut aiocb, n: c_int, ev: *mut sigevent) -> c_int {
    // SAFETY: libc gets the program's own arguments, from which only `peek` reads.
    unsafe {
        for i in 0..if idle() { 0 } else { usize::try_from(n).unwrap_or(0) } {
            match peek(list.wrapping_add(i)) {
                Ok(cb) => retire(cb),
                Err(_) => break,
            }
        }
        real::lio_listio(mode, list, n, ev)
    }
}

/// Differs from `lio_listio` only in the threads that deliver a `SIGEV_THREAD` notification.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn lio_listio64(
    mode: c_int,
    list: *const *mut aiocb,
    n: c_int,
    ev: *mut sigevent,
) -> c_int {
    // SAFETY: the same function under another name.
    unsafe { lio_listio(mode, list, n, ev) }
}
