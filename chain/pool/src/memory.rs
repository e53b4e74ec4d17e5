//! Sealed memory that processes share.
// Unsafe here, and nowhere else in this crate: a mapping is read and written by pointers, and its words are borrowed.
#![allow(unsafe_code)]

use memmap2::{MmapOptions, MmapRaw};
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Why memory cannot be shared.
#[derive(Debug)]
pub enum Error {
    /// The kernel says so.
    Os(&'static str, io::Error),
    /// What was received is not memory of a chain: this is wrong with it.
    NotOurs(&'static str),
}

impl core::fmt::Display for Error {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Error::Os(what, e) => write!(f, "{what}: {e}"),
            Error::NotOurs(what) => write!(f, "memory that was received for a chain cannot be used: {what}"),
        }
    }
}

impl std::error::Error for Error {}

/// A whole memfd, which can neither shrink nor grow any more, and its mapping.
#[derive(Debug)]
pub(crate) struct Memory {
    file: File,
    map: MmapRaw,
    writable: bool,
}

/// A word that lies in memory of others: any of its values is one.
pub(crate) trait Word {}
impl Word for shmring::sync::AtomicU32 {}
impl Word for shmring::sync::AtomicU64 {}
impl Word for [shmring::sync::AtomicU64; 2] {}

const SEALS: SealFlag = SealFlag::F_SEAL_SHRINK.union(SealFlag::F_SEAL_GROW).union(SealFlag::F_SEAL_SEAL);

impl Memory {
    /// `len` bytes, zeroed.
    pub fn new(name: &CStr, len: usize) -> Result<Memory, Error> {
        let os = |what| move |e: nix::Error| Error::Os(what, e.into());
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        let file = File::from(memfd_create(name, flags).map_err(os("memfd_create"))?);
        file.set_len(len as u64).map_err(|e| Error::Os("ftruncate", e))?;
        fcntl(&file, FcntlArg::F_ADD_SEALS(SEALS)).map_err(os("F_ADD_SEALS"))?;
        Memory::map(file, len, true)
    }

    /// What another process has made, and sent. If this one is not to write there, it was sent a descriptor that does not allow it.
    pub fn open(fd: OwnedFd, writable: bool) -> Result<Memory, Error> {
        let file = File::from(fd);
        // Memory that can shrink kills whoever touches what is gone.
        let seals = fcntl(&file, FcntlArg::F_GET_SEALS).map_err(|_| Error::NotOurs("it is no memfd"))?;
        if !SealFlag::from_bits_retain(seals).contains(SealFlag::F_SEAL_SHRINK) {
            return Err(Error::NotOurs("it is not sealed against shrinking"));
        }
        let len = file.metadata().map_err(|e| Error::Os("fstat", e))?.len();
        let len = usize::try_from(len).ok().filter(|len| *len > 0).ok_or(Error::NotOurs("it is empty"))?;
        Memory::map(file, len, writable)
    }

    fn map(file: File, len: usize, writable: bool) -> Result<Memory, Error> {
        let mut options = MmapOptions::new();
        options.len(len);
        let map = if writable { options.map_raw(&file) } else { options.map_raw_read_only(&file) };
        Ok(Memory { map: map.map_err(|e| Error::Os("mmap", e))?, file, writable })
    }

    pub fn len(&self) -> usize {
        self.map.len()
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// A descriptor of the same memory through which nobody can write.
    pub fn read_only_fd(&self) -> Result<OwnedFd, Error> {
        use std::os::fd::AsRawFd;
        let path = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        File::open(path).map(OwnedFd::from).map_err(|e| Error::Os("opening the memory read-only through /proc", e))
    }

    fn holds(&self, at: usize, len: usize) -> bool {
        at.checked_add(len).is_some_and(|end| end <= self.len())
    }

    /// Copies bytes out. False, and nothing is done: they are not all there.
    #[inline]
    pub fn read(&self, at: usize, into: &mut [u8]) -> bool {
        let holds = self.holds(at, into.len());
        if holds {
            // SAFETY: inside the mapping, which is as long as this and cannot shrink. Another process may write there meanwhile: then the bytes are
            // whatever they are, as any bytes are.
            unsafe { self.map.as_ptr().add(at).copy_to_nonoverlapping(into.as_mut_ptr(), into.len()) };
        }
        holds
    }

    /// Copies bytes in. False, and nothing is done: there is not so much room, or this process may not write.
    #[inline]
    pub fn write(&self, at: usize, bytes: &[u8]) -> bool {
        let holds = self.writable && self.holds(at, bytes.len());
        if holds {
            // SAFETY: as above, and mapped to be written; no reference to plain memory leads there.
            unsafe { self.map.as_mut_ptr().add(at).copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
        }
        holds
    }

    /// `n` words, from `at` on.
    pub fn words<T: Word>(&self, at: usize, n: usize) -> &[T] {
        let fits = n.checked_mul(size_of::<T>()).is_some_and(|len| self.holds(at, len));
        assert!(self.writable && fits && at.is_multiple_of(align_of::<T>()), "words at {at} of {} bytes", self.len());
        // SAFETY: inside the mapping, which begins on a page, so they are aligned; it can be written, and is as long as `self`. All values of an
        // atomic word are valid, and everybody who writes there while there are such references does so by atomics, or by copies of other places.
        unsafe { core::slice::from_raw_parts(self.map.as_ptr().add(at).cast::<T>(), n) }
    }
}
