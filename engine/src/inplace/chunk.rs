//! Chunks: memory of a pool that is sent by reference, kept beyond the stream that brought it, and passed on.
//!
//! A chunk is a program's from its taking, or from its keeping, until it is sent or dropped. Where it cannot go by reference its bytes are
//! copied into the stream, as by `send`; and where what was received is no chunk, to keep it is to copy it.
// Unsafe here: what the program passes are pointers; calls are cancellation points.
#![allow(unsafe_code)]

use super::ring::{self, Came};
use super::{COUNTS, Copying, Spans, fails, release};
use crate::chunks::borrowed::{self, KEPT};
use crate::chunks::offers::{self, Source};
use crate::chunks::owned::Taken;
use crate::chunks::{self, Shape, owned};
use crate::kernel::{K, Kernel as _};
use crate::tx::Lends;
use crate::{fds, members, real, signals};
use core::sync::atomic::Ordering::Relaxed;
use libc::{c_int, c_void, iovec};
use shmring::chunks::ledger::{HOPS, Loan};
use shmring::chunks::name::Name;

/// Memory of a chunk. As `culvert.h` has it.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Chunk {
    /// Where it is.
    pub at: *mut c_void,
    /// Bytes.
    pub len: usize,
    /// A [`Kind`].
    kind: u32,
    /// Of which process (`chunks::era`).
    era: u32,
    /// Of which pool, or by which edge, by its number here.
    source: u32,
    /// The chunk's place there.
    index: u32,
    /// Of one that was taken: how often it had been ([`owned::Taken::number`]). Of one that was kept: its generation ...
    generation: u32,
    /// ... and how often it has crossed an edge since.
    hop: u32,
    /// Where the memory begins in the chunk.
    offset: u32,
    /// Of one that was taken: which pool ([`owned::Taken::mark`]).
    mark: u32,
    /// Memory that is freed with it.
    own: *mut c_void,
}

/// [`Chunk::kind`]: there is none.
const NONE: u32 = 0;
/// Of a pool of this process.
const OWNED: u32 = 0x6375_6c11;
/// Kept, where its sender has written it.
const HELD: u32 = 0x6375_6c12;
/// Kept, as a copy.
const COPY: u32 = 0x6375_6c13;

/// Shorter messages are copied: it costs less.
const LEAST: usize = 4096;

/// A chunk that this process has by an edge.
#[derive(Clone, Copy)]
pub struct Held {
    /// The edge, by its number here.
    pub edge: u32,
    /// The chunk's place in its pool.
    pub index: u32,
    /// The crossing by which it came.
    pub loan: Loan,
}

impl Held {
    fn name(self, offset: u32, len: u32) -> Name {
        let id = borrowed::at(self.edge).map_or(0, borrowed::Borrowed::id);
        Name { pool: id, index: self.index, loan: self.loan, offset, len }
    }

    /// One reason to have it is over.
    pub fn no_more(self, why: u8) {
        if let Some(edge) = borrowed::at(self.edge).filter(|edge| edge.is_ours()) {
            edge.no_more(&self.name(0, 0), why);
        }
    }
}

impl Chunk {
    /// None.
    pub const fn none() -> Chunk {
        Chunk {
            at: core::ptr::null_mut(),
            len: 0,
            kind: NONE,
            era: 0,
            source: 0,
            index: 0,
            generation: 0,
            hop: 0,
            offset: 0,
            mark: 0,
            own: core::ptr::null_mut(),
        }
    }

    fn held(&self) -> Held {
        let loan = Loan { generation: self.generation, hop: self.hop as u8 & HOPS };
        Held { edge: self.source, index: self.index, loan }
    }

    fn taken(&self) -> Taken {
        Taken { n: self.source, mark: self.mark, index: self.index, number: self.generation }
    }

    /// Whether there is one, and it is this process's. Not one that was sent or dropped, of which the program has another copy.
    fn is_ours(&self) -> bool {
        match self.kind {
            OWNED => self.era == chunks::era() && owned::is_used(&self.taken()),
            HELD => self.era == chunks::era() && borrowed::at(self.source).is_some_and(|edge| edge.is_kept(self.index)),
            kind => kind == COPY,
        }
    }

    /// Whether its memory may be another message's: its owner may have thought that this process is no more
    /// ([`Borrowed::is_lost`](borrowed::Borrowed::is_lost)), and has taken it back.
    fn is_lost(&self) -> bool {
        let gone = |edge: &borrowed::Borrowed| edge.is_lost() && !edge.is_at(self.index, self.generation);
        self.kind == HELD && borrowed::at(self.source).is_some_and(gone)
    }

    fn source(&self) -> Option<Source> {
        match self.kind {
            OWNED => Some(Source::Owned(self.source)),
            HELD => Some(Source::Borrowed(self.source)),
            _ => None,
        }
    }

    /// The first `n` bytes are sent.
    fn advance(&mut self, n: usize) {
        self.at = self.at.wrapping_byte_add(n);
        self.len -= n;
        self.offset += n as u32;
    }

    fn end<C: Copying>(&mut self) {
        match self.kind {
            OWNED => owned::give_up(&self.taken()),
            HELD => self.held().no_more(KEPT),
            // SAFETY: allocated by this module for this chunk; the program's use of it is over.
            _ => unsafe { C::free(self.own) },
        }
        *self = Chunk::none();
    }
}

/// Lends what a program sends.
struct Lender<'a>(&'a Chunk, usize);

impl Lends for Lender<'_> {
    fn lend(&mut self, edge: u32) -> Option<Name> {
        let Lender(chunk, n) = self;
        match chunk.kind {
            OWNED => owned::lend(&chunk.taken(), edge, chunk.offset, *n as u32),
            HELD => borrowed::at(chunk.source)?.pass(&chunk.held().name(chunk.offset, *n as u32), edge),
            _ => None,
        }
    }

    fn take_back(&mut self, name: &Name, edge: u32) {
        let Lender(chunk, _) = self;
        match chunk.kind {
            OWNED => owned::take_back(chunk.source, name),
            HELD => {
                if let Some(from) = borrowed::at(chunk.source) {
                    from.hold(&chunk.held().name(chunk.offset, 0), edge);
                }
            }
            _ => {}
        }
    }
}

/// Makes a pool of `count` chunks of `len` bytes each, of which one receiver may have `quota` (0: all but one, or the only one). Its
/// number, or -1 and `errno`.
pub fn pool(len: usize, count: usize, quota: usize) -> isize {
    let Some(shape) = Shape::of(len as u64, count as u64).filter(|_| quota <= count) else {
        return fails(libc::EINVAL);
    };
    chunks::use_them();
    let quota = if quota == 0 { (count - 1).max(1) } else { quota };
    real::ret(owned::new(shape, quota as u32))
}

/// Takes a pool away. 0, or -1 and `errno`: EBUSY, while a chunk of it is used or not back.
pub fn end_pool(pool: c_int) -> isize {
    let r = owned::end(pool as u32);
    if r == 0 {
        offers::withdraw();
    }
    real::ret(r as isize)
}

/// Takes a free chunk of a pool of this process; waits for one. 0, or -1 and `errno`.
///
/// # Safety
/// A cancellation point where it waits: no lock is held.
pub unsafe fn take(pool: c_int, flags: c_int, chunk: &mut Chunk) -> isize {
    *chunk = Chunk::none();
    if flags & !libc::MSG_DONTWAIT != 0 {
        return fails(libc::EINVAL);
    }
    let since = signals::runs();
    let mut looks = 0;
    loop {
        // One that has waited goes on with several for a while, unless a receiver keeps the others.
        match owned::take(pool as u32, looks == 1) {
            Ok((taken, at, len)) => {
                *chunk = Chunk { at: at.cast(), len: len as usize, kind: OWNED, era: chunks::era(), ..Chunk::none() };
                (chunk.source, chunk.index) = (taken.n, taken.index);
                (chunk.mark, chunk.generation) = (taken.mark, taken.number);
                return 0;
            }
            // Under a filter it cannot sleep, nor learn of receivers that have ended.
            Err(libc::EAGAIN) if flags == 0 && !members::is_filtered() => {}
            Err(e) => return fails(e),
        }
        let heard = signals::runs();
        if signals::interrupted(since, true) {
            return fails(libc::EINTR);
        }
        looks += 1;
        // SAFETY: the caller's obligation; nothing is taken yet.
        unsafe { K::cancellation_point() };
        owned::sleep(pool as u32, heard);
    }
}

/// Sends the first `n` bytes of a chunk; with all of them sent the chunk is no longer the program's. libc's convention; how many. Those that
/// were not taken stay in the chunk, as it is if the call fails.
///
/// # Safety
/// A cancellation point. The chunk's memory is still there.
pub unsafe fn send<C: Copying>(fd: c_int, chunk: &mut Chunk, n: usize, flags: c_int) -> isize {
    const FLAGS: c_int = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL | libc::MSG_MORE;
    if !chunk.is_ours() || chunk.is_lost() || n == 0 || n > chunk.len || flags & !FLAGS != 0 {
        return fails(libc::EINVAL);
    }
    if n >= LEAST
        && let Some(source) = chunk.source()
        && let Some(ep) = fds::carried(fd)
    {
        // SAFETY: the caller's obligation.
        match unsafe { ring::refer(ep, fd, source, n, flags, &mut Lender(chunk, n)) } {
            Came::Done(()) => {
                COUNTS.referred.fetch_add(n as u64, Relaxed);
                // It is its receiver's by now.
                chunk.end::<C>();
                return n as isize;
            }
            Came::Failed => return -1,
            Came::Elsewhere => {}
        }
    } else if !C::is_stream(fd) {
        return -1;
    }
    let piece = iovec { iov_base: chunk.at, iov_len: n };
    // SAFETY: the caller's obligation.
    let r = unsafe { C::send(fd, &[piece], flags) };
    if let Ok(sent) = usize::try_from(r) {
        COUNTS.referred_copied.fetch_add(sent as u64, Relaxed);
        if sent >= n {
            chunk.end::<C>();
        } else {
            chunk.advance(sent);
        }
    }
    r
}

/// Ends a look and reads all of its bytes, which stay the program's, as a chunk. libc's convention; how many. If it fails there is no chunk,
/// and the view is as after a release that fails.
///
/// # Safety
/// A cancellation point. The view's memory is still there.
pub unsafe fn keep<C: Copying>(fd: c_int, view: &mut Spans, chunk: &mut Chunk) -> isize {
    *chunk = Chunk::none();
    chunks::use_them();
    let n = view.len;
    if n == 0 || view.kind == super::NONE {
        return fails(libc::EINVAL);
    }
    let mut kept = Chunk::none();
    if let Some(held) = view.lent().filter(|_| view.whose().is_some()) {
        let Some(edge) = borrowed::at(held.edge) else { return fails(libc::EINVAL) };
        edge.keep(held.index);
        let Some(offset) = edge.offset(held.index, view.span[0].iov_base.addr()) else {
            held.no_more(KEPT);
            return fails(libc::EINVAL);
        };
        kept = Chunk { at: view.span[0].iov_base, len: n, kind: HELD, era: chunks::era(), offset, ..kept };
        (kept.source, kept.index) = (held.edge, held.index);
        (kept.generation, kept.hop) = (held.loan.generation, held.loan.hop.into());
    } else {
        let at = C::allocate(n);
        if at.is_null() {
            return fails(libc::ENOMEM);
        }
        kept = Chunk { at: at.cast(), len: n, kind: COPY, own: at.cast(), ..kept };
        let mut to = at;
        for piece in &view.span {
            // SAFETY: the view's memory, which the peer may write meanwhile: bytes, whatever they are; as many were allocated.
            unsafe { K::copy(to, piece.iov_base.cast_const().cast(), piece.iov_len) }.ok();
            to = to.wrapping_add(piece.iov_len);
        }
    }
    // SAFETY: the caller's obligation.
    if unsafe { release::<C>(fd, view, n) } != 0 {
        let errno = real::errno();
        kept.end::<C>();
        real::set_errno(errno);
        return -1;
    }
    *chunk = kept;
    n as isize
}

/// Drops a chunk: what was taken is free again, and what was kept goes back. 0, or -1 and `errno`.
pub fn drop<C: Copying>(chunk: &mut Chunk) -> isize {
    if !chunk.is_ours() {
        return fails(libc::EINVAL);
    }
    chunk.end::<C>();
    0
}
