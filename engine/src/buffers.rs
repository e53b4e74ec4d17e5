//! A program's buffers.
// Unsafe here: the program's iovecs are read through its pointers.
#![allow(unsafe_code)]

use crate::kernel::{K, Kernel as _};
use libc::iovec;

/// What one call moves at most (`MAX_RW_COUNT` in linux/fs.h: INT_MAX rounded down to a page).
const MAX_RW_COUNT: usize = 0x7fff_f000;

/// A program's buffers, and how far they are filled.
///
/// The elements lie in the program's memory, which another thread may change or unmap: each is copied before it is used, and
/// one that cannot be read any more is a buffer that faults.
pub struct Buffers {
    iov: *const iovec,
    n: usize,
    /// Bytes in all of them.
    pub len: usize,
    at: Place,
}

/// A place in a program's buffers.
#[derive(Clone, Copy)]
pub struct Place {
    /// Index of the element.
    at: usize,
    /// Bytes of it that are done.
    off: usize,
    /// The element itself.
    element: iovec,
}

const NONE: iovec = iovec { iov_base: core::ptr::null_mut(), iov_len: 0 };

impl Buffers {
    /// Takes a program's iovec array, and fewer bytes of it than it asks for if that is more than one call moves. `None`: a
    /// negative length.
    ///
    /// # Safety
    /// `iov` is what the program passed in, `n` elements long; a single one is a copy of ours. Faults are armed.
    pub unsafe fn new(iov: *const iovec, n: usize) -> Option<Buffers> {
        // SAFETY: a single element is ours to read.
        let first = if n == 1 { unsafe { *iov } } else { NONE };
        let mut b = Buffers { iov, n, len: first.iov_len, at: Place { at: 0, off: 0, element: first } };
        if n > 1 {
            b.at.element = b.element(0);
            for i in 0..n {
                b.len = b.len.saturating_add(b.element(i).iov_len);
            }
        }
        b.len = b.len.min(MAX_RW_COUNT);
        (b.at.element.iov_len <= isize::MAX as usize).then_some(b)
    }

    /// An element; one that cannot be read is all of the memory that faults.
    fn element(&self, i: usize) -> iovec {
        if self.n == 1 {
            // SAFETY: a single element is ours to read.
            return unsafe { *self.iov };
        }
        // SAFETY: the program's array, or a fault; any bits are an iovec.
        let v = unsafe { K::load(self.iov.wrapping_add(i)) };
        v.unwrap_or(iovec { iov_base: core::ptr::null_mut(), iov_len: MAX_RW_COUNT })
    }

    /// The next piece of at most `max` bytes.
    #[inline(always)]
    pub fn piece(&mut self, max: usize) -> Option<(*mut u8, usize)> {
        let v = self.at.element;
        // An element that is none has no bytes.
        if self.at.off < v.iov_len && max > 0 {
            let n = (v.iov_len - self.at.off).min(max);
            return Some((v.iov_base.cast::<u8>().wrapping_add(self.at.off), n));
        }
        self.next_piece(max)
    }

    #[inline(never)]
    fn next_piece(&mut self, max: usize) -> Option<(*mut u8, usize)> {
        while self.at.at < self.n {
            let v = self.at.element;
            if self.at.off >= v.iov_len {
                self.at = Place { at: self.at.at + 1, off: 0, element: NONE };
                if self.at.at < self.n {
                    self.at.element = self.element(self.at.at);
                }
                continue;
            }
            let n = (v.iov_len - self.at.off).min(max);
            return (n > 0).then_some((v.iov_base.cast::<u8>().wrapping_add(self.at.off), n));
        }
        None
    }

    /// The next pieces, together at most `max` bytes, without passing over them.
    pub fn pieces(&self, max: usize, out: &mut [iovec]) -> usize {
        let (mut at, mut off, mut left, mut n) = (self.at.at, self.at.off, max, 0);
        while at < self.n && n < out.len() && left > 0 {
            let v = if at == self.at.at { self.at.element } else { self.element(at) };
            let len = v.iov_len.saturating_sub(off).min(left);
            if len > 0 {
                out[n] = iovec { iov_base: v.iov_base.wrapping_byte_add(off), iov_len: len };
                n += 1;
                left -= len;
            }
            at += 1;
            off = 0;
        }
        n
    }

    /// Marks the next `n` bytes, in however many pieces, as done.
    pub fn skip(&mut self, mut n: usize) {
        while n > 0 {
            let Some((_, len)) = self.piece(n) else { return };
            self.advance(len);
            n -= len;
        }
    }

    /// Where the next piece begins.
    pub fn place(&self) -> Place {
        self.at
    }

    /// Goes back to a place, or on to one.
    pub fn go_to(&mut self, place: Place) {
        self.at = place;
    }

    /// Starts over.
    pub fn rewind(&mut self) {
        self.at = Place { at: 0, off: 0, element: if self.n > 0 { self.element(0) } else { NONE } };
    }

    /// Marks `n` bytes of the current piece as done.
    #[inline(always)]
    pub fn advance(&mut self, n: usize) {
        self.at.off += n;
    }
}
