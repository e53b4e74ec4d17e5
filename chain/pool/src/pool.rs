//! The chunks of a chain.

use crate::Descriptor;
use crate::memory::{Error, Memory};
use std::os::fd::{BorrowedFd, OwnedFd};

/// What a process may do with a pool.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// Read and write: a function.
    Full,
    /// Read: a monitor.
    ReadOnly,
}

/// Chunks of one size, one behind the other.
#[derive(Debug)]
pub struct Pool {
    memory: Memory,
    chunk_len: usize,
}

impl Pool {
    /// The largest chunk: what a [`Descriptor`] can say.
    pub const CHUNK_MAX: usize = 1 << 16;

    /// Makes a pool of `chunks` of `chunk_len` bytes, a multiple of 64 and not more than [`Pool::CHUNK_MAX`].
    ///
    /// # Panics
    /// If `chunk_len` is not that, or there are no chunks.
    pub fn new(chunks: u32, chunk_len: usize) -> Result<Pool, Error> {
        assert!(chunk_len.is_multiple_of(64) && (64..=Pool::CHUNK_MAX).contains(&chunk_len), "chunks of {chunk_len}");
        assert!(chunks > 0, "a pool without chunks");
        let len = (chunks as usize).checked_mul(chunk_len).ok_or(Error::NotOurs("it is larger than memory can be"))?;
        Ok(Pool { memory: Memory::new(c"culvert-chain-pool", len)?, chunk_len })
    }

    /// The pool that another process has made, from the descriptor that it has sent.
    pub fn open(fd: OwnedFd, chunk_len: usize, access: Access) -> Result<Pool, Error> {
        if !chunk_len.is_multiple_of(64) || !(64..=Pool::CHUNK_MAX).contains(&chunk_len) {
            return Err(Error::NotOurs("its chunks are no multiple of 64 bytes up to 64 KiB"));
        }
        Ok(Pool { memory: Memory::open(fd, access == Access::Full)?, chunk_len })
    }

    /// What is sent to a process that is to [open](Pool::open) it.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.memory.fd()
    }

    /// The same for one that is not to write there, nor can. Needs /proc.
    pub fn read_only_fd(&self) -> Result<OwnedFd, Error> {
        self.memory.read_only_fd()
    }

    /// How many chunks there are.
    pub fn chunks(&self) -> u32 {
        (self.memory.len() / self.chunk_len) as u32
    }

    /// Bytes of a chunk.
    pub fn chunk_len(&self) -> usize {
        self.chunk_len
    }

    fn place(&self, d: &Descriptor, at: usize, len: usize) -> Option<usize> {
        let fits = d.chunk < self.chunks()
            && at.checked_add(len)? <= d.len.into()
            && usize::from(d.offset) + usize::from(d.len) <= self.chunk_len;
        fits.then(|| d.chunk as usize * self.chunk_len + usize::from(d.offset) + at)
    }

    /// Copies out what a descriptor names, from its byte `at` on. False, and nothing is done: there is not so much.
    #[inline]
    pub fn read(&self, d: &Descriptor, at: usize, into: &mut [u8]) -> bool {
        self.place(d, at, into.len()).is_some_and(|place| self.memory.read(place, into))
    }

    /// Copies in, as [`Pool::read`].
    #[inline]
    pub fn write(&self, d: &Descriptor, at: usize, bytes: &[u8]) -> bool {
        self.place(d, at, bytes.len()).is_some_and(|place| self.memory.write(place, bytes))
    }
}
