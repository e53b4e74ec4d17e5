//! Chunks: memory that is sent by reference, kept beyond the stream that brought it, and sent on.

use crate::library::{Memory, library};
use crate::{View, plain};
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd, AsRawFd};

/// Memory in chunks of equal length.
///
/// Dropped while a chunk is used, or a receiver has one, its memory stays until the process ends.
#[derive(Debug)]
pub struct Pool(Kind);

#[derive(Debug)]
enum Kind {
    /// The library's, by its number.
    Library(i32),
    /// This crate's, without the library.
    Plain(plain::Pool),
}

impl Pool {
    /// Of `count` chunks of `len` bytes each. Errors: EINVAL (none, or more than 4,096 chunks, or 2^30 bytes in all), ENOMEM, EMFILE.
    pub fn new(len: usize, count: usize) -> io::Result<Pool> {
        Pool::with_quota(len, count, 0)
    }

    /// The same; all that goes to one receiver may have `quota` of them at a time (0: all but one). More are sent to it by copies.
    pub fn with_quota(len: usize, count: usize, quota: usize) -> io::Result<Pool> {
        let kind = match library() {
            Some(l) => Kind::Library(l.pool_make(len, count, quota)?),
            None => Kind::Plain(plain::Pool::new(len, count)?),
        };
        Ok(Pool(kind))
    }

    /// A free chunk, whose bytes are what they were; waits for one.
    pub fn take(&self) -> io::Result<Chunk> {
        self.take_with(0)
    }

    /// The same; never waits ([`WouldBlock`](io::ErrorKind::WouldBlock)).
    pub fn try_take(&self) -> io::Result<Chunk> {
        self.take_with(libc::MSG_DONTWAIT)
    }

    fn take_with(&self, flags: i32) -> io::Result<Chunk> {
        let (memory, place) = match &self.0 {
            Kind::Library(pool) => (library().ok_or(io::ErrorKind::NotFound)?.chunk_take(*pool, flags)?, None),
            Kind::Plain(pool) => {
                let place = pool.take(flags)?;
                (Memory::plain(vec![0; pool.len()]), Some(place))
            }
        };
        Ok(Chunk { memory, place, _not_shared: PhantomData })
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        if let (Kind::Library(pool), Some(l)) = (&self.0, library()) {
            // Or it stays, as long as somebody has a chunk.
            l.pool_end(*pool);
        }
    }
}

/// A chunk. Dropped, it is free again, or goes back to the process that it came from.
#[derive(Debug)]
pub struct Chunk {
    memory: Memory,
    /// Keeps its place in a pool of this crate's.
    place: Option<plain::Place>,
    _not_shared: PhantomData<*mut u8>,
}

// SAFETY: the memory is its own, whichever thread has it.
unsafe impl Send for Chunk {}

impl Chunk {
    /// Bytes.
    pub fn len(&self) -> usize {
        self.memory.len
    }

    /// Whether all of it has been sent.
    pub fn is_empty(&self) -> bool {
        self.memory.len == 0
    }

    /// Whether it is a copy of what was received.
    pub fn copies(&self) -> bool {
        self.memory.is_copy()
    }

    /// Whether this process may write to it. One that was kept where its sender has written it can only be read.
    pub fn is_writable(&self) -> bool {
        self.memory.is_writable()
    }

    /// Writes to it from byte `at` on, as many as there is room for: how many. None, if it is not [writable](Self::is_writable).
    pub fn write(&mut self, at: usize, bytes: &[u8]) -> usize {
        let n = if self.is_writable() { bytes.len().min(self.len().saturating_sub(at)) } else { 0 };
        if n > 0 {
            // SAFETY: `n` bytes of the chunk, which is this program's to write, and as many of the slice, which is not part of it.
            unsafe { core::ptr::copy_nonoverlapping(bytes.as_ptr(), self.memory.at.cast::<u8>().add(at), n) };
        }
        n
    }

    /// Copies from its byte `at` on, as many as there are and fit. How many.
    pub fn copy_to(&self, at: usize, bytes: &mut [u8]) -> usize {
        let n = bytes.len().min(self.len().saturating_sub(at));
        if n > 0 {
            // SAFETY: `n` bytes of the chunk, which its owner could write meanwhile: bytes, whatever they are; and as many of the slice.
            unsafe { core::ptr::copy_nonoverlapping(self.memory.at.cast::<u8>().add(at), bytes.as_mut_ptr(), n) };
        }
        n
    }

    /// Where it is.
    pub fn span(&self) -> (*const u8, usize) {
        (self.memory.at.cast_const().cast(), self.memory.len)
    }

    /// The bytes themselves.
    ///
    /// # Safety
    /// The chunk's owner, who can write there at any time, must not do so before this borrow is over: it is trusted.
    pub unsafe fn as_slice(&self) -> &[u8] {
        let (at, n) = self.span();
        let at = if n == 0 { core::ptr::NonNull::<u8>::dangling().as_ptr().cast_const() } else { at };
        // SAFETY: the chunk's memory, borrowed as it is; the caller's obligation.
        unsafe { core::slice::from_raw_parts(at, n) }
    }

    /// The bytes of one that is [writable](Self::is_writable).
    ///
    /// # Safety
    /// Those to whom it was sent before must not read there still: they are trusted to have given it back.
    pub unsafe fn as_mut_slice(&mut self) -> Option<&mut [u8]> {
        let (at, n) = self.span();
        if n == 0 || !self.is_writable() {
            return None;
        }
        // SAFETY: the chunk's memory, borrowed as it is, which nobody else writes; the caller's obligation.
        Some(unsafe { core::slice::from_raw_parts_mut(at.cast_mut(), n) })
    }

    /// Sends the first `n` bytes. How many were sent: all, and the chunk is no longer this program's; or fewer, if they had to be copied, and
    /// a socket that does not wait, a timeout or a signal lets it take no more: the rest is the chunk's now. After an error it is as it was.
    pub fn send<S: AsFd + ?Sized>(&mut self, socket: &S, n: usize) -> io::Result<usize> {
        self.send_with(socket.as_fd().as_raw_fd(), n, 0)
    }

    /// The same; never waits.
    pub fn try_send<S: AsFd + ?Sized>(&mut self, socket: &S, n: usize) -> io::Result<usize> {
        self.send_with(socket.as_fd().as_raw_fd(), n, libc::MSG_DONTWAIT)
    }

    fn send_with(&mut self, fd: i32, n: usize, flags: i32) -> io::Result<usize> {
        let flags = flags | libc::MSG_NOSIGNAL;
        let sent = match library() {
            Some(l) => l.chunk_send(fd, &mut self.memory, n, flags)?,
            None => plain::send_chunk(fd, &mut self.memory, n, flags)?,
        };
        if self.memory.is_none() {
            self.place = None;
        }
        Ok(sent)
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        match library() {
            Some(l) => l.chunk_drop(&mut self.memory),
            None => self.memory.end_plain(),
        }
    }
}

impl View<'_> {
    /// Whether it is of a chunk, which [`keep`](Self::keep) keeps without a copy.
    pub fn is_chunk(&self) -> bool {
        self.memory.is_chunk()
    }

    /// Reads all of its bytes from the stream; they stay this program's, as a chunk. After an error they are unread.
    pub fn keep(mut self) -> io::Result<Chunk> {
        let fd = self.socket.as_raw_fd();
        let memory = match library() {
            Some(l) => l.chunk_keep(fd, &mut self.memory)?,
            None => {
                let mut bytes = vec![0; self.len()];
                self.copy_to(0, &mut bytes);
                plain::release(fd, &mut self.memory, bytes.len())?;
                Memory::plain_copy(bytes)
            }
        };
        Ok(Chunk { memory, place: None, _not_shared: PhantomData })
    }
}
