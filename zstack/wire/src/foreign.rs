//! The checksum of memory that another process may write meanwhile. The only unsafe code of this crate.
//!
//! Each byte is read once, by a volatile read: the sum is that of bytes that stood there at some moment, and no reference to
//! them is formed.

#![allow(unsafe_code)]

/// The sum of native words.
#[inline]
pub(crate) fn sum_slice(bytes: &[u8]) -> u16 {
    // SAFETY: the slice is readable.
    unsafe { sum(bytes.as_ptr(), bytes.len()) }
}

/// 16 bits of the sum of 16-bit words.
#[inline]
pub(crate) fn fold(total: u64) -> u16 {
    // The sum of both halves stands in the upper one, to which the lower one, the same sum, has carried what ran over.
    let total = (total.wrapping_add(total.rotate_left(32)) >> 32) as u32;
    (total.wrapping_add(total.rotate_left(16)) >> 16) as u16
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
pub(crate) unsafe fn sum(start: *const u8, len: usize) -> u16 {
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
    /// The sums of so many blocks cannot leave 32 bits.
    const MOST: usize = 1 << 14;
    let mut total = 0;
    while rest.len >= 16 {
        let count = (rest.len / 16).min(MOST);
        let end = rest.len - 16 * count;
        // SAFETY: every x86-64 processor has SSE2, whose operations touch no memory; `rest` has the bytes that are taken.
        let lanes = unsafe {
            let (sign, ones) = (_mm_set1_epi16(i16::MIN), _mm_set1_epi16(1));
            // The multiplication, by 1, adds neighbours. It takes words for signed: each is made smaller by 0x8000 before.
            let pairs = |block: __m128i| _mm_madd_epi16(_mm_xor_si128(block, sign), ones);
            let (mut even, mut odd) = (_mm_setzero_si128(), _mm_setzero_si128());
            while rest.len >= end + 64 {
                let (a, b, c, d) = (rest.take(), rest.take(), rest.take(), rest.take());
                even = _mm_add_epi32(_mm_add_epi32(even, pairs(a)), pairs(b));
                odd = _mm_add_epi32(_mm_add_epi32(odd, pairs(c)), pairs(d));
            }
            while rest.len > end {
                even = _mm_add_epi32(even, pairs(rest.take()));
            }
            [even, odd].map(|v| std::mem::transmute::<__m128i, [i32; 4]>(v))
        };
        let sum: i64 = lanes.as_flattened().iter().map(|lane| i64::from(*lane)).sum();
        total += (sum + (count as i64) * 8 * 0x8000) as u64;
    }
    total
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
