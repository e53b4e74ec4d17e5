//! The calls of a program that writes and reads its bytes where they lie, on the simulated kernel.
// Unsafe here: it calls what a program calls, and touches the memory that it is given.
#![allow(unsafe_code)]

use super::Simulated;
use super::world::Side;
use crate::inplace::chunk::{self, Chunk};
use crate::inplace::keep::{self, Kept};
use crate::inplace::{self, Copying, Spans};
use crate::kernel::Kernel;
use crate::{fds, io};
use libc::{MSG_DONTWAIT, MSG_NOSIGNAL, c_int, c_void, iovec};
use std::alloc::Layout;

struct Calls;

const OWN: Layout = match Layout::from_size_align(inplace::OWN, 16) {
    Ok(layout) => layout,
    Err(_) => unreachable!(),
};

impl Copying for Calls {
    unsafe fn send(fd: c_int, pieces: &[iovec], flags: c_int) -> isize {
        let all: usize = pieces.iter().map(|v| v.iov_len).sum();
        let send = |done: usize| {
            let mut before = 0;
            for v in pieces {
                if done < before + v.iov_len {
                    let (at, n) = (v.iov_base.cast::<u8>().wrapping_add(done - before), v.iov_len - (done - before));
                    // SAFETY: within the piece.
                    return unsafe { Simulated::send(fd, at, n, flags) };
                }
                before += v.iov_len;
            }
            0
        };
        let real = || host::real::ret(Simulated::wait_for(fd, flags, libc::SO_SNDTIMEO, all, send));
        match fds::carried(fd) {
            // SAFETY: the caller's obligation.
            Some(ep) => unsafe { io::send(ep, fd, pieces.as_ptr(), pieces.len(), flags, real) },
            None => real(),
        }
    }

    unsafe fn receive(fd: c_int, to: *mut u8, n: usize, flags: c_int) -> isize {
        let v = iovec { iov_base: to.cast(), iov_len: n };
        // SAFETY: the caller's obligation.
        let receive = |_| unsafe { Simulated::receive(fd, &mut [v], flags) };
        let real = || host::real::ret(Simulated::wait_for(fd, flags, libc::SO_RCVTIMEO, 1, receive));
        match fds::carried(fd) {
            // SAFETY: one iovec; the caller's obligation.
            Some(ep) => unsafe { io::recv(ep, fd, &raw const v, 1, flags, real) },
            None => real(),
        }
    }

    fn is_stream(_: c_int) -> bool {
        true
    }

    fn allocate(n: usize) -> *mut u8 {
        assert!(n <= inplace::OWN);
        // SAFETY: of some size.
        unsafe { std::alloc::alloc(OWN) }
    }

    unsafe fn free(at: *mut c_void) {
        // SAFETY: from `allocate`.
        unsafe { std::alloc::dealloc(at.cast(), OWN) }
    }
}

// SAFETY: its memory is any thread's.
unsafe impl Send for Spans {}
// SAFETY: as above.
unsafe impl Send for Kept {}
// SAFETY: as above.
unsafe impl Send for Chunk {}

fn result(r: isize) -> Result<usize, i32> {
    usize::try_from(r).map_err(|_| host::real::errno())
}

impl Spans {
    /// Writes to the beginning of it.
    pub fn fill(&mut self, bytes: &[u8]) {
        assert!(bytes.len() <= self.len);
        let (first, second) = bytes.split_at(bytes.len().min(self.span[0].iov_len));
        for (piece, part) in self.span.iter().zip([first, second]) {
            // SAFETY: within the piece, which is this program's for now.
            unsafe { core::ptr::copy_nonoverlapping(part.as_ptr(), piece.iov_base.cast(), part.len()) };
        }
    }

    /// What lies there.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for piece in self.span.iter().filter(|piece| piece.iov_len > 0) {
            // SAFETY: within the piece, which nobody writes now.
            bytes.extend_from_slice(unsafe { core::slice::from_raw_parts(piece.iov_base.cast(), piece.iov_len) });
        }
        assert_eq!(bytes.len(), self.len);
        bytes
    }
}

impl Kept {
    /// What lies in a piece.
    pub fn bytes_at(piece: &iovec) -> Vec<u8> {
        // SAFETY: the tests keep it mapped, and nobody writes there now.
        unsafe { core::slice::from_raw_parts(piece.iov_base.cast_const().cast(), piece.iov_len) }.to_vec()
    }
}

impl Chunk {
    /// Writes to the beginning of it.
    pub fn fill(&self, bytes: &[u8]) {
        assert!(bytes.len() <= self.len);
        // SAFETY: within the chunk, which is this program's for now.
        unsafe { core::ptr::copy_nonoverlapping(bytes.as_ptr(), self.at.cast(), bytes.len()) };
    }

    /// What lies there.
    pub fn bytes(&self) -> Vec<u8> {
        // SAFETY: within the chunk, which nobody writes now.
        unsafe { core::slice::from_raw_parts(self.at.cast_const().cast(), self.len) }.to_vec()
    }

    /// Takes a free one.
    pub fn take_with(pool: i32, flags: i32) -> Result<Chunk, i32> {
        let mut taken = Chunk::none();
        // SAFETY: no lock is held.
        result(unsafe { chunk::take(pool, flags, &mut taken) })?;
        Ok(taken)
    }

    /// Takes one, without waiting.
    pub fn take(pool: i32) -> Result<Chunk, i32> {
        Self::take_with(pool, MSG_DONTWAIT)
    }

    /// Drops it.
    pub fn drop(mut self) -> Result<(), i32> {
        result(chunk::drop::<Calls>(&mut self)).map(|_| ())
    }
}

impl Side {
    /// Sends a chunk's first `n` bytes, without waiting.
    pub fn send_chunk(&self, chunk: &mut Chunk, n: usize) -> Result<usize, i32> {
        // SAFETY: no lock is held; the tests keep their memory.
        result(unsafe { chunk::send::<Calls>(self.fd, chunk, n, MSG_DONTWAIT | MSG_NOSIGNAL) })
    }

    /// Ends a look, and keeps what was seen.
    pub fn keep_chunk(&self, view: &mut Spans) -> Result<Chunk, i32> {
        let mut kept = Chunk::none();
        // SAFETY: as above.
        result(unsafe { chunk::keep::<Calls>(self.fd, view, &mut kept) })?;
        Ok(kept)
    }

    /// Reads what is on the ring, and keeps it there.
    pub fn keep(&self, least: usize, most: usize, kept: &mut Kept) -> Option<usize> {
        // SAFETY: no lock is held.
        let n = unsafe { keep::keep(self.fd, least, most, kept) };
        (n > 0).then_some(n)
    }

    /// Gives it back.
    pub fn give_back(&self, n: Option<u64>, kept: &mut Kept) -> bool {
        keep::give_back(self.fd, kept, n)
    }

    pub fn reserve_with(&self, n: usize, flags: i32) -> Result<Spans, i32> {
        let mut room = Spans::none();
        // SAFETY: no lock is held.
        let r = result(unsafe { inplace::reserve::<Calls>(self.fd, n, flags, &mut room) })?;
        assert!(r > 0 && r <= n && room.len == r);
        Ok(room)
    }

    /// Room, without waiting.
    pub fn reserve(&self, n: usize) -> Result<Spans, i32> {
        self.reserve_with(n, MSG_DONTWAIT)
    }

    pub fn commit_with(&self, room: &mut Spans, n: usize, flags: i32) -> Result<usize, i32> {
        // SAFETY: no lock is held; the tests keep their memory.
        result(unsafe { inplace::commit::<Calls>(self.fd, room, n, flags) })
    }

    /// Commits, without waiting.
    pub fn commit(&self, room: &mut Spans, n: usize) -> Result<usize, i32> {
        self.commit_with(room, n, MSG_DONTWAIT | MSG_NOSIGNAL)
    }

    pub fn look_with(&self, min: usize, flags: i32) -> Result<Spans, i32> {
        let mut view = Spans::none();
        // SAFETY: no lock is held.
        let r = result(unsafe { inplace::look::<Calls>(self.fd, min, flags, &mut view) })?;
        assert_eq!(view.len, r);
        Ok(view)
    }

    /// Looks, without waiting. Nothing: the end of the stream.
    pub fn look(&self, min: usize) -> Result<Spans, i32> {
        self.look_with(min, MSG_DONTWAIT)
    }

    pub fn release(&self, view: &mut Spans, n: usize) -> Result<(), i32> {
        // SAFETY: no lock is held.
        result(unsafe { inplace::release::<Calls>(self.fd, view, n) }).map(|_| ())
    }
}
