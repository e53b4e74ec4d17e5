//! Signal masks, as one word of the kernel's size.

use shmring::lnx;

/// All signals but libc's own two (32 cancels threads, 33 changes ids): blocking those would stop cancellation.
pub(super) const ALL: u64 = !(1 << 31 | 1 << 32);

/// Replaces the thread's signal mask, and returns the one before.
pub(super) fn set_mask(new: u64) -> u64 {
    lnx::signal_mask(libc::SIG_SETMASK, new)
}

/// First 64 bits of libc's set: the signals that exist.
pub(super) fn mask_bits(set: &libc::sigset_t) -> u64 {
    // SAFETY: `sigset_t` is an array of at least one 64-bit word (bits/types/__sigset_t.h).
    unsafe { *(set as *const libc::sigset_t).cast::<u64>() }
}
