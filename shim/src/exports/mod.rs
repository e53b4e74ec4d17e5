//! The C symbols that libculvert.so puts in front of libc's, one file per family.
//!
//! Each function translates a libc call into an operation on an endpoint, or notes what the call means for
//! the table of descriptors, and does nothing else. A call on a descriptor that is not ours costs one load
//! and goes to libc. [`symbols`] is the list of all of them, checked by the `symbols` test against what the
//! library exports and what programs import.
//!
//! A function does, and asks of its caller, what its manual page says; comments say only what ours adds.
//!
//! Calls that POSIX makes cancellation points are `extern "C-unwind"`: cancelling a thread unwinds through
//! them. Nothing here allocates, locks or keeps state.

use crate::usercopy;
use core::ffi::{c_int, c_void};
use libc::{iovec, timespec};

pub mod addr;
pub mod aio;
pub mod bytes;
pub mod create;
pub mod fd;
pub mod msg;
pub mod process;
pub mod raw;
pub mod signal;
pub mod sockopt;
pub mod stdio;
// Data for people and for the test; the library itself has no use for it.
#[allow(dead_code)]
pub mod symbols;
mod trampoline;
pub mod waits;

/// What one call moves at most (`MAX_RW_COUNT` in linux/fs.h: INT_MAX rounded down to a page).
const MAX_RW_COUNT: usize = 0x7fff_f000;
/// Most elements of an I/O vector (`UIO_MAXIOV`).
const UIO_MAXIOV: usize = 1024;
/// Size of the kernel's signal set, which is what the raw calls must be told.
const KERNEL_SIGSET: usize = 8;

/// Whether no object can live at `p`: the first page, and all above the user half of the address space.
/// The kernel answers such a pointer with `EFAULT` before it looks at the socket's data, so the call can
/// simply be left to it. Only a first look: what passes may still fault.
fn bad<T: ?Sized>(p: *const T) -> bool {
    (p as *const c_void as usize) < 4096 || beyond(p)
}

/// Whether `p` lies in the kernel's half of the address space (`access_ok`).
fn beyond<T: ?Sized>(p: *const T) -> bool {
    p as *const c_void as usize >= 0x7fff_ffff_f000
}

/// Reads a structure that the program points to, or a fault.
///
/// # Safety
/// Any bits must be a `T`; `p` is a pointer that the program passed in.
unsafe fn peek<T: Copy>(p: *const T) -> Result<T, usercopy::Fault> {
    if bad(p) {
        return Err(usercopy::Fault);
    }
    // SAFETY: the caller's obligation.
    unsafe { usercopy::load(p) }
}

/// Writes to where the program points, or a fault.
///
/// # Safety
/// `p` is a pointer that the program passed in, to a `T`.
unsafe fn poke<T: Copy>(p: *mut T, v: T) -> Result<(), usercopy::Fault> {
    if bad(p) {
        return Err(usercopy::Fault);
    }
    // SAFETY: the caller's obligation.
    unsafe { usercopy::store(p, &v) }
}

/// Bytes that the vector asks for, or `None` where the kernel would refuse it (`import_iovec`: too many
/// elements, a negative length, a pointer into the kernel's half). Other bad pointers fault once there is something
/// to copy, on the ring as on the lifeline.
///
/// # Safety
/// `v` is a pointer that the program passed in.
unsafe fn vector_len(v: *const iovec, n: usize) -> Option<usize> {
    if n > UIO_MAXIOV {
        return None;
    }
    let mut total = 0usize;
    for i in 0..n {
        // SAFETY: the program's vector, or a fault; any bits are an iovec.
        let e = unsafe { peek(v.wrapping_add(i)) }.ok()?;
        if e.iov_len > isize::MAX as usize || (e.iov_len > 0 && beyond(e.iov_base)) {
            return None;
        }
        total = total.saturating_add(e.iov_len);
    }
    // The kernel shortens what is longer; nobody asks for 2 GiB in one call, so leave it to the kernel.
    (total <= MAX_RW_COUNT).then_some(total)
}

/// A timeout of `poll(2)` or `epoll_wait(2)`, in milliseconds, as nanoseconds; `None` waits for ever.
fn millis(ms: c_int) -> Option<u64> {
    u64::try_from(ms).ok().map(|ms| ms * 1_000_000)
}

/// A relative `timespec` as nanoseconds (saturating: 584 years), the inner `None` for a null pointer, which
/// waits for ever. `Err` for what the kernel refuses (`poll_select_set_timeout`: `EINVAL`; bad pointer:
/// `EFAULT`).
///
/// # Safety
/// `t` is a pointer that the program passed in.
unsafe fn nanos(t: *const timespec) -> Result<Option<u64>, ()> {
    if t.is_null() {
        return Ok(None);
    }
    // SAFETY: the program's timeout, or a fault; any bits are a timespec.
    let t = unsafe { peek(t) }.map_err(|_| ())?;
    match (u64::try_from(t.tv_sec), u64::try_from(t.tv_nsec)) {
        (Ok(s), Ok(ns)) if ns < 1_000_000_000 => Ok(Some(s.saturating_mul(1_000_000_000).saturating_add(ns))),
        _ => Err(()),
    }
}
