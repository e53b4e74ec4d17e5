//! POSIX asynchronous I/O: glibc's helper threads read and write the descriptor behind our back, so its
//! socket goes to the kernel first.

use super::peek;
use crate::{io, real};
use core::ffi::c_int;
use libc::{aiocb, sigevent};
use shmring::family::Reason;

/// # Safety
/// `cb` is a pointer that the program passed in.
unsafe fn retire(cb: *const aiocb) {
    // SAFETY: the program's structure, or a fault.
    if let Ok(fd) = unsafe { peek(&raw const (*cb).aio_fildes) } {
        io::retire(fd, Reason::Stdio);
    }
}

hooks! {
    fn aio_read(cb: *mut aiocb) -> c_int {
        retire(cb);
        real::aio_read(cb)
    }
    fn aio_read64(cb: *mut aiocb) -> c_int { aio_read(cb) }
    fn aio_write(cb: *mut aiocb) -> c_int {
        retire(cb);
        real::aio_write(cb)
    }
    fn aio_write64(cb: *mut aiocb) -> c_int { aio_write(cb) }
    fn lio_listio(mode: c_int, list: *const *mut aiocb, n: c_int, ev: *mut sigevent) -> c_int {
        for i in 0..usize::try_from(n).unwrap_or(0) {
            match peek(list.wrapping_add(i)) {
                Ok(cb) => retire(cb),
                Err(_) => break,
            }
        }
        real::lio_listio(mode, list, n, ev)
    }
    /// Differs from `lio_listio` only in the threads that deliver a `SIGEV_THREAD` notification.
    fn lio_listio64(mode: c_int, list: *const *mut aiocb, n: c_int, ev: *mut sigevent) -> c_int {
        lio_listio(mode, list, n, ev)
    }
}
