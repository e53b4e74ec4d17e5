//! Memory that culvert maps for channels: given by the kernel before it is touched.

use crate::kernel::{K, Kernel as _};
use core::sync::atomic::{AtomicPtr, AtomicUsize};

/// The part of a ring's bulk, from its beginning, that this process has mapped.
pub struct Bulk {
    pub(crate) at: AtomicPtr<u8>,
    pub(crate) len: AtomicUsize,
}

/// Gets memory for `len` bytes from `at` on, whole pages of a mapping of ours: they can then be written without a
/// fault, and so without SIGBUS. False: there is none.
pub fn have(at: *mut u8, len: usize) -> bool {
    let r = K::populate(at, len);
    // Linux before 5.14 does not know the advice.
    r >= 0 || r == -libc::EINVAL as isize
}
