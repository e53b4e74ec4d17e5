//! A program's buffers.

use libc::iovec;

/// A program's buffers, and how far they are filled.
pub struct Buffers {
    iov: *const iovec,
    n: usize,
    /// Bytes in all of them.
    pub len: usize,
    at: usize,
    off: usize,
}

impl Buffers {
    /// Reads a program's iovec array. `None` if the lengths overflow `ssize_t` or there are too many.
    ///
    /// # Safety
    /// `iov` points to `n` iovecs (their targets may be bad).
    pub unsafe fn new(iov: *const iovec, n: usize) -> Option<Buffers> {
        let mut len = 0usize;
        for i in 0..n {
            // SAFETY: i < n.
            len = len.checked_add(unsafe { (*iov.add(i)).iov_len })?;
        }
        // The kernel cuts a transfer at MAX_RW_COUNT (include/linux/fs.h).
        (len <= isize::MAX as usize).then_some(Buffers { iov, n, len: len.min(0x7fff_f000), at: 0, off: 0 })
    }

    /// The next piece of at most `max` bytes.
    pub fn piece(&mut self, max: usize) -> Option<(*mut u8, usize)> {
        while self.at < self.n {
            // SAFETY: at < n.
            let v = unsafe { *self.iov.add(self.at) };
            let n = (v.iov_len - self.off).min(max);
            if v.iov_len == self.off {
                self.at += 1;
                self.off = 0;
                continue;
            }
            return (n > 0).then_some((v.iov_base.cast::<u8>().wrapping_add(self.off), n));
        }
        None
    }

    /// The next pieces, together at most `max` bytes, without passing over them.
    pub fn pieces(&self, max: usize, out: &mut [iovec]) -> usize {
        let (mut at, mut off, mut left, mut n) = (self.at, self.off, max, 0);
        while at < self.n && n < out.len() && left > 0 {
            // SAFETY: at < n.
            let v = unsafe { *self.iov.add(at) };
            let len = (v.iov_len - off).min(left);
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

    /// Starts over.
    pub fn rewind(&mut self) {
        (self.at, self.off) = (0, 0);
    }

    /// Marks `n` bytes of the current piece as done.
    pub fn advance(&mut self, n: usize) {
        self.off += n;
    }
}
