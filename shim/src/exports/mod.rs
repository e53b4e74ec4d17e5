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
//! them. Nothing here allocates (but `inplace`), locks or keeps state.
// Unsafe here: they are C functions: what they are given is the program's.
#![allow(unsafe_code)]

use core::ffi::{c_int, c_void};
use engine::{fds, members};
use host::{signals, usercopy};
use libc::{iovec, timespec};

pub mod addr;
pub mod aio;
pub mod bytes;
pub mod create;
pub mod fd;
pub mod inplace;
pub mod lookup;
pub mod msg;
pub mod process;
pub mod raw;
pub mod sanitizer;
pub mod signal;
pub mod sockopt;
pub mod stdio;
// Data for people and for the test; the library itself has no use for it.
#[allow(dead_code)]
pub mod symbols;
pub mod trampoline;
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
    (p as *const c_void as usize) < 4096 || usercopy::outside(p, 1)
}

/// Whether this process has no descriptor that concerns culvert, and never had: its pointers are the kernel's to read.
fn idle() -> bool {
    fds::high() == 0
}

/// Before memory of the program is read or written. A process that has put itself under a system-call filter may not change
/// the disposition of a signal any more.
#[inline(always)]
fn arm() {
    if !members::is_filtered() {
        signals::arm_faults();
    }
}

/// Reads a structure that the program points to, or a fault.
///
/// # Safety
/// Any bits must be a `T`; `p` is a pointer that the program passed in.
unsafe fn peek<T: Copy>(p: *const T) -> Result<T, usercopy::Fault> {
    if bad(p) {
        return Err(usercopy::Fault);
    }
    arm();
    // SAFETY: the caller's obligation.
    unsafe { usercopy::load(p) }
}

/// Whether `len` bytes at `p` can be read: at most a `sockaddr_storage`.
///
/// # Safety
/// `p` is a pointer that the program passed in.
unsafe fn can_read(p: *const u8, len: usize) -> bool {
    let mut copy = [0u8; size_of::<libc::sockaddr_storage>()];
    arm();
    // SAFETY: no longer than the local; the program's memory, or a fault.
    len == 0 || unsafe { usercopy::copy(copy.as_mut_ptr(), p, len.min(copy.len())) }.is_ok()
}

/// Writes to where the program points, or a fault.
///
/// # Safety
/// `p` is a pointer that the program passed in, to a `T`.
unsafe fn poke<T: Copy>(p: *mut T, v: T) -> Result<(), usercopy::Fault> {
    if bad(p) {
        return Err(usercopy::Fault);
    }
    arm();
    // SAFETY: the caller's obligation.
    unsafe { usercopy::store(p, &v) }
}

/// The same of the first `len` bytes of `v`, which has as many.
///
/// # Safety
/// `p` is a pointer that the program passed in.
unsafe fn poke_bytes<T>(p: *mut u8, v: &T, len: usize) -> Result<(), usercopy::Fault> {
    if bad(p) {
        return Err(usercopy::Fault);
    }
    arm();
    // SAFETY: no longer than `v`; the program's memory, or a fault.
    unsafe { usercopy::copy(p, core::ptr::from_ref(v).cast(), len.min(size_of::<T>())) }
}

/// A program's I/O vector that the kernel would take.
struct Vector {
    first: *const iovec,
    /// A copy of the only element, if there is one only.
    only: iovec,
    n: usize,
    /// Bytes asked for: at most what one call moves.
    len: usize,
}

impl Vector {
    /// `None` where the kernel would refuse it (`__import_iovec`: too many elements, a negative length, a pointer out of
    /// the user half). Other bad pointers fault once there is something to copy, on the ring as on the lifeline.
    ///
    /// # Safety
    /// `first` is a pointer that the program passed in.
    unsafe fn new(first: *const iovec, n: usize) -> Option<Vector> {
        if n > UIO_MAXIOV {
            return None;
        }
        let mut v = Vector { first, only: iovec { iov_base: core::ptr::null_mut(), iov_len: 0 }, n, len: 0 };
        for i in 0..n {
            // SAFETY: the program's vector, or a fault; any bits are an iovec.
            v.only = unsafe { peek(first.wrapping_add(i)) }.ok()?;
            // A single element is cut before it is judged, the elements of a longer vector are not (`__import_iovec_ubuf`).
            let judged = if n == 1 { v.only.iov_len.min(MAX_RW_COUNT) } else { v.only.iov_len };
            if v.only.iov_len > isize::MAX as usize || usercopy::outside(v.only.iov_base, judged) {
                return None;
            }
            v.len = v.len.saturating_add(v.only.iov_len);
        }
        // The kernel shortens what is longer.
        v.len = v.len.min(MAX_RW_COUNT);
        Some(v)
    }

    /// As `Buffers` takes it.
    fn elements(&self) -> *const iovec {
        if self.n == 1 { &self.only } else { self.first }
    }
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
