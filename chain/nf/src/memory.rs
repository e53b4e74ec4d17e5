//! Memory of packets, which other processes may write at any time: bytes are copied in and out. All `unsafe` of the crate is here.
#![allow(unsafe_code)]

use std::marker::PhantomData;
use std::sync::atomic::{Ordering, compiler_fence};

/// A piece of memory that can be read and written as long as `'a`.
#[derive(Debug)]
pub(crate) struct Room<'a> {
    start: *mut u8,
    len: usize,
    _memory: PhantomData<&'a mut u8>,
}

// SAFETY: the pointer is the only thing that is not Send by itself; the memory is nobody else's in this program (`Room::new`), so that
// it may be used by whichever thread has the room.
unsafe impl Send for Room<'_> {}

impl<'a> Room<'a> {
    /// No memory.
    pub(crate) const fn none() -> Room<'a> {
        Room { start: std::ptr::NonNull::dangling().as_ptr(), len: 0, _memory: PhantomData }
    }

    /// That of a slice.
    pub(crate) fn of(bytes: &'a mut [u8]) -> Room<'a> {
        Room { start: bytes.as_mut_ptr(), len: bytes.len(), _memory: PhantomData }
    }

    /// The `len` bytes at `start`.
    ///
    /// # Safety
    /// As long as `'a` they can be read and written, and this program's other code does not use them. Other processes may.
    pub(crate) const unsafe fn new(start: *mut u8, len: usize) -> Room<'a> {
        Room { start, len, _memory: PhantomData }
    }

    pub(crate) const fn len(&self) -> usize {
        self.len
    }

    /// Where the `n` bytes from `at` on are, if there are so many.
    #[inline]
    fn range(&self, at: usize, n: usize) -> Option<*mut u8> {
        (at <= self.len && n <= self.len - at).then(|| self.start.wrapping_add(at))
    }

    /// Copies the bytes from `at` on into all of `bytes`; false: there are fewer, and nothing was copied.
    #[inline]
    pub(crate) fn read(&self, at: usize, bytes: &mut [u8]) -> bool {
        let Some(from) = self.range(at, bytes.len()) else { return false };
        // SAFETY: that many bytes can be read (`new`, `range`), whatever they are while another process writes them; the slice is not
        // among them, for nobody else in this program uses them.
        unsafe { std::ptr::copy_nonoverlapping(from.cast_const(), bytes.as_mut_ptr(), bytes.len()) };
        // The compiler must not read them a second time instead of the copy: what was checked would not be what is used.
        compiler_fence(Ordering::SeqCst);
        true
    }

    /// Copies all of `bytes` to those from `at` on; false: there is less room, and nothing was written.
    #[inline]
    pub(crate) fn write(&mut self, at: usize, bytes: &[u8]) -> bool {
        let Some(to) = self.range(at, bytes.len()) else { return false };
        // SAFETY: that many bytes can be written (`new`, `range`); the slice is not among them, for nobody else in this program uses them.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) };
        true
    }

    /// Moves `n` bytes from `from` to `to`, which may overlap; false: they do not lie in the room, and nothing was moved.
    #[inline]
    pub(crate) fn shift(&mut self, from: usize, to: usize, n: usize) -> bool {
        let (Some(from), Some(to)) = (self.range(from, n), self.range(to, n)) else { return false };
        // SAFETY: `n` bytes of the room each (`range`), which can be read and written; `copy` allows them to overlap.
        unsafe { std::ptr::copy(from.cast_const(), to, n) };
        true
    }
}
