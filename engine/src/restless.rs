//! The rest of a wait that is woken again and again for nothing: see `shmring::restless`.
// Unsafe here: a rest is a cancellation point, with the program's signal mask.
#![allow(unsafe_code)]

use crate::kernel::{K, Kernel as _};
use crate::signals::Runs;
use libc::sigset_t;
pub use shmring::restless::Restless;

/// Rests for `time` nanoseconds, or until the deadline (monotonic ns): `Err(EAGAIN)`; or until a signal: `Err(EINTR)`, as
/// `signals::ppoll`.
///
/// # Safety
/// `mask` is null or valid. Must be called without locks; a cancellation point.
pub unsafe fn rest(time: u64, deadline: Option<u64>, mask: *const sigset_t, since: Runs) -> Result<(), i32> {
    let left = deadline.map_or(time, |d| d.saturating_sub(K::now()));
    // SAFETY: no descriptors; the rest is the caller's obligation.
    let r = unsafe { K::sleep(&mut [], Some(left.min(time)), mask, since) };
    match r {
        r if r < 0 => Err(-r as i32),
        _ if deadline.is_some_and(|d| d <= K::now()) => Err(libc::EAGAIN),
        _ => Ok(()),
    }
}
