//! The checksum of memory that another process may write meanwhile. The only unsafe code of this crate.
//!
//! Each byte is read once, by a volatile read: the sum is that of bytes that stood there at some moment, and no reference to
//! them is formed.

#![allow(unsafe_code)]

use crate::checksum::{Sum, fold};

impl Sum {
    /// Adds the `len` bytes at `start`, which follow.
    ///
    /// # Safety
    /// They must be mapped and readable during the call. Others may write them meanwhile: the sum is then that of some mixture.
    #[inline]
    #[must_use]
    pub unsafe fn memory(self, start: *const u8, len: usize) -> Sum {
        // SAFETY: readable, as the caller promises.
        self.piece(unsafe { sum(start, len) }, len)
    }
}

/// The sum of native words.
#[inline]
pub(crate) fn sum_slice(bytes: &[u8]) -> u16 {
    // SAFETY: the slice is readable.
    unsafe { sum(bytes.as_ptr(), bytes.len()) }
}

/// What has not been read yet.
struct Rest {
    at: *const u8,
    len: usize,
}

impl Rest {
    /// The next value; `T` is an integer or a vector, so that all bits are good ones.
    ///
    /// # Safety
    /// The bytes must be readable and at least as many as `T` has, and `at` aligned for `T`.
    #[inline(always)]
    unsafe fn take<T: Copy>(&mut self) -> T {
        debug_assert!(self.len >= size_of::<T>());
        // SAFETY: as the caller promises.
        let value = unsafe { self.at.cast::<T>().read_volatile() };
        // SAFETY: the bytes that were read are part of the memory, whose end is the farthest that this comes to.
        self.at = unsafe { self.at.add(size_of::<T>()) };
        self.len -= size_of::<T>();
        value
    }

    #[inline(always)]
    fn aligned(&self, to: usize) -> bool {
        self.at.addr().is_multiple_of(to)
    }
}

/// The sum of `len` bytes as native words; an odd last byte is followed by 0.
///
/// # Safety
/// The bytes must be readable.
unsafe fn sum(start: *const u8, len: usize) -> u16 {
    let mut rest = Rest { at: start, len };
    let mut total = 0u64;
    // From an odd address on, the bytes are summed as if they stood one further, and their halves exchanged in the end.
    let odd = !rest.aligned(2) && rest.len >= 1;
    if odd {
        // SAFETY: there is a byte.
        total += u64::from(u16::from_ne_bytes([0, unsafe { rest.take::<u8>() }]));
    }
    if !rest.aligned(4) && rest.len >= 2 {
        // SAFETY: there are two bytes, at an even address.
        total += u64::from(unsafe { rest.take::<u16>() });
    }
    if !rest.aligned(8) && rest.len >= 4 {
        // SAFETY: there are four bytes, at a multiple of 4.
        total += u64::from(unsafe { rest.take::<u32>() });
    }
    if !rest.aligned(16) && rest.len >= 8 {
        // SAFETY: there are eight bytes, at a multiple of 8.
        total += halves(unsafe { rest.take::<u64>() });
    }
    // SAFETY: a multiple of 16, or fewer than 16 bytes are left: the steps above that were left out would have taken less than
    // was there to the next multiple.
    total += unsafe { blocks(&mut rest) };
    if rest.len >= 8 {
        // SAFETY: there are eight bytes; the address is a multiple of 8 or the step above would have made it one.
        total += halves(unsafe { rest.take::<u64>() });
    }
    if rest.len >= 4 {
        // SAFETY: likewise.
        total += u64::from(unsafe { rest.take::<u32>() });
    }
    if rest.len >= 2 {
        // SAFETY: likewise.
        total += u64::from(unsafe { rest.take::<u16>() });
    }
    if rest.len >= 1 {
        // SAFETY: there is a byte.
        total += u64::from(u16::from_ne_bytes([unsafe { rest.take::<u8>() }, 0]));
    }
    let sum = fold(total);
    if odd { sum.swap_bytes() } else { sum }
}

#[inline(always)]
fn halves(word: u64) -> u64 {
    (word & 0xffff_ffff) + (word >> 32)
}

/// The sum of the blocks of 16 bytes that `rest` begins with.
///
/// # Safety
/// The bytes must be readable, and their address a multiple of 16 if there are 16 of them.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn blocks(rest: &mut Rest) -> u64 {
    use std::arch::x86_64::*;
    // SAFETY: every x86-64 processor has SSE2, and the operations touch no memory.
    unsafe {
        let zero = _mm_setzero_si128();
        let (mut low, mut high) = (zero, zero);
        // Words of 32 bits are summed in lanes of 64: no carry is lost below 64 GiB.
        let mut add = |block: __m128i| {
            low = _mm_add_epi64(low, _mm_unpacklo_epi32(block, zero));
            high = _mm_add_epi64(high, _mm_unpackhi_epi32(block, zero));
        };
        while rest.len >= 64 {
            let (a, b, c, d) = (rest.take(), rest.take(), rest.take(), rest.take());
            add(a);
            add(b);
            add(c);
            add(d);
        }
        while rest.len >= 16 {
            add(rest.take());
        }
        let both = _mm_add_epi64(low, high);
        _mm_cvtsi128_si64(both) as u64 + _mm_cvtsi128_si64(_mm_unpackhi_epi64(both, both)) as u64
    }
}

/// The sum of the blocks of 16 bytes that `rest` begins with.
///
/// # Safety
/// The bytes must be readable, and their address a multiple of 16 if there are 16 of them.
#[cfg(not(target_arch = "x86_64"))]
#[inline(always)]
unsafe fn blocks(rest: &mut Rest) -> u64 {
    let (mut low, mut high) = (0, 0);
    while rest.len >= 16 {
        // SAFETY: there are sixteen bytes, at a multiple of 16.
        low += halves(unsafe { rest.take::<u64>() });
        // SAFETY: likewise.
        high += halves(unsafe { rest.take::<u64>() });
    }
    low + high
}
