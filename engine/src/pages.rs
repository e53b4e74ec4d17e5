//! Memory that culvert maps for channels: given by the kernel before it is touched.

use core::sync::atomic::{AtomicPtr, AtomicUsize};
use shmring::syscall;

/// The part of a ring's bulk, from its beginning, that this process has mapped.
pub struct Bulk {
    pub(crate) at: AtomicPtr<u8>,
    pub(crate) len: AtomicUsize,
}

/// Gets memory for `len` bytes from `at` on, whole pages of a mapping of ours: they can then be written without a
/// fault, and so without SIGBUS. False: there is none.
pub fn have(at: *mut u8, len: usize) -> bool {
    // SAFETY: pages of our own; their contents stay.
    let r = unsafe { syscall!(libc::SYS_madvise, at, len, libc::MADV_POPULATE_WRITE) };
    // Linux before 5.14 does not know the advice.
    r >= 0 || r == -libc::EINVAL as isize
}
