//! The calls of a program that writes its bytes where the peer will read them, and reads them where they arrived.
//!
//! ```text
//! reserve   room behind what was sent          commit    sends the first bytes of it
//! look      what was received and not read     release   reads the first bytes of it
//! ```
//! Beside these, [`keep`]: reads what was received, and leaves it where it is until it is given back.
//!
//! On a ring, that is where both happen (`ring`). Everywhere else, on the kernel or where somebody else uses the ring in this way
//! already, each works by memory of its own and a copy. Which of the two it is may change between any two calls, also between a
//! reservation and its commit; a program sees no difference but the time that it takes.
//!
//! What a program holds is described by a [`Spans`], which is its own: the library keeps nothing beside.
// Unsafe here: what the program passes are pointers; calls are cancellation points.
#![allow(unsafe_code)]

pub mod chunk;
pub mod keep;
pub mod ring;

use crate::chunks::borrowed::VIEWED;
use crate::chunks::stretch::Lent;
use crate::{fds, members, real};
use chunk::Held;
use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::Relaxed;
use libc::{c_int, c_void, iovec};
use ring::{Came, Whose};
use shmring::chunks::ledger::{HOPS, Loan};
use shmring::position::RingPos;

/// Room that was reserved, or bytes that are looked at. As `culvert.h` has it.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Spans {
    /// Where it is: one piece, or two. The others have no length.
    pub span: [iovec; 2],
    /// Bytes in both.
    pub len: usize,
    /// A [`Kind`].
    kind: u32,
    /// Of its connection: the record ...
    record: u32,
    /// ... in that life ...
    life: u32,
    /// 0: the library keeps no record of it. Else those say which it is; and of a view of a chunk the rest is the edge by which
    /// that came, by its number, times 2, and 2.
    is_known: u32,
    /// ... and the process.
    member: u64,
    /// Which reservation or look it is.
    number: u64,
    /// Where on the ring it begins.
    at: u64,
    /// Memory that is freed with it; of a view of a chunk, which one.
    own: *mut c_void,
}

/// [`Spans::kind`]: there are none.
const NONE: u32 = 0;
/// Room on a ring.
const ROOM: u32 = 0x6375_6c01;
/// Room in memory of its own; or, without any, what is left of room on a ring that carries nothing any more.
const OWN_ROOM: u32 = 0x6375_6c02;
/// Bytes on a ring.
const VIEW: u32 = 0x6375_6c03;
/// A copy of bytes that lie elsewhere.
const OWN_VIEW: u32 = 0x6375_6c04;

/// Bytes of memory of its own that a call works with.
pub const OWN: usize = 64 << 10;

/// What [`look`] can be told to wait for, bytes.
pub const MOST: usize = OWN;

/// Bytes that went in and out by these calls.
pub struct Counts {
    /// Written by the program where the peer reads them.
    pub committed: AtomicU64,
    /// Copied once more.
    pub committed_copied: AtomicU64,
    /// Read by the program where the peer has written them.
    pub looked: AtomicU64,
    /// Copied before.
    pub looked_copied: AtomicU64,
    /// Sent by reference.
    pub referred: AtomicU64,
    /// Of chunks that were to be, and were copied.
    pub referred_copied: AtomicU64,
}

/// Those of this process.
pub static COUNTS: Counts = Counts {
    committed: AtomicU64::new(0),
    committed_copied: AtomicU64::new(0),
    looked: AtomicU64::new(0),
    looked_copied: AtomicU64::new(0),
    referred: AtomicU64::new(0),
    referred_copied: AtomicU64::new(0),
};

/// The calls that do it by a copy: the library's own, as a program would make them. libc's convention.
pub trait Copying {
    /// `sendmsg` of these pieces.
    ///
    /// # Safety
    /// They are readable. A cancellation point.
    unsafe fn send(fd: c_int, pieces: &[iovec], flags: c_int) -> isize;
    /// `recv`.
    ///
    /// # Safety
    /// `to` has room for `n` bytes. A cancellation point.
    unsafe fn receive(fd: c_int, to: *mut u8, n: usize, flags: c_int) -> isize;
    /// Whether `fd` is a stream socket; if not, `errno` says what it is.
    fn is_stream(fd: c_int) -> bool;
    /// Memory, or null.
    fn allocate(n: usize) -> *mut u8;
    /// Gives it back.
    ///
    /// # Safety
    /// It came from [`Copying::allocate`], and nobody uses it.
    unsafe fn free(at: *mut c_void);
}

impl Spans {
    /// There are none; in as few stores as that takes.
    #[inline(always)]
    fn forget(&mut self) {
        (self.kind, self.len) = (NONE, 0);
        self.span[0].iov_len = 0;
        self.span[1].iov_len = 0;
    }

    /// None.
    pub const fn none() -> Spans {
        const PIECE: iovec = iovec { iov_base: core::ptr::null_mut(), iov_len: 0 };
        Spans {
            span: [PIECE; 2],
            len: 0,
            kind: NONE,
            record: 0,
            life: 0,
            is_known: 0,
            member: 0,
            number: 0,
            at: 0,
            own: core::ptr::null_mut(),
        }
    }

    /// Becomes that; field by field, since to copy what was just made of smaller parts costs more than all of this.
    #[inline(always)]
    fn on_ring(&mut self, kind: u32, whose: Whose, span: &[iovec; 2], len: usize, number: u64, at: RingPos) {
        for (to, from) in self.span.iter_mut().zip(span) {
            (to.iov_base, to.iov_len) = (from.iov_base, from.iov_len);
        }
        (self.len, self.kind, self.number, self.at) = (len, kind, number, at.number());
        (self.record, self.life, self.is_known) = (whose.ep.index(), whose.life, 1);
        (self.member, self.own) = (members::myself(), core::ptr::null_mut());
    }

    /// Notes the connection.
    fn of(self, whose: Option<Whose>) -> Spans {
        let (record, life) = whose.map_or((0, 0), |whose| (whose.ep.index(), whose.life));
        Spans { record, life, is_known: whose.is_some().into(), member: members::myself(), ..self }
    }

    fn own(kind: u32, at: *mut u8, len: usize) -> Spans {
        let mut spans = Spans { len, kind, own: at.cast(), ..Spans::none() };
        spans.span[0] = iovec { iov_base: at.cast(), iov_len: len };
        spans
    }

    /// Whether the memory is a ring's.
    pub fn is_on_ring(&self) -> bool {
        matches!(self.kind, ROOM | VIEW)
    }

    /// The connection. `None`: another process's, which has forked this one.
    fn whose(&self) -> Option<Whose> {
        (self.member == members::myself()).then(|| Whose::new(self.record, self.life))
    }

    /// Whether `fd` is not the connection, since that was closed: it is none, or another's. What has memory of its own may be used where
    /// nothing is known of `fd`.
    fn is_of_another(&self, fd: c_int) -> bool {
        let whose = || Whose::new(self.record, self.life);
        self.is_known == 1 && if self.own.is_null() { !ring::is_now(fd, whose()) } else { ring::is_closed(fd, whose()) }
    }

    /// Notes the chunk that it is a view of.
    fn of_chunk(&mut self, Lent { edge, name, .. }: &Lent) {
        let word = u64::from(name.loan.generation) << 32 | u64::from(name.loan.hop) << 24 | u64::from(name.index);
        self.own = core::ptr::without_provenance_mut(word as usize);
        self.is_known = 1 | ((edge + 1) << 1);
    }

    /// The chunk that it is a view of.
    fn lent(&self) -> Option<Held> {
        let edge = (self.is_known >> 1).checked_sub(1).filter(|_| self.kind == VIEW)?;
        let word = self.own.addr() as u64;
        let loan = Loan { generation: (word >> 32) as u32, hop: (word >> 24) as u8 & HOPS };
        Some(Held { edge, index: word as u32 & 0xff_ffff, loan })
    }

    /// The first `n` bytes are gone.
    fn advance(&mut self, n: usize) {
        let mut left = n.min(self.len);
        self.len -= left;
        for piece in &mut self.span {
            let here = left.min(piece.iov_len);
            *piece = iovec { iov_base: piece.iov_base.wrapping_byte_add(here), iov_len: piece.iov_len - here };
            left -= here;
        }
        if self.span[0].iov_len == 0 {
            self.span.swap(0, 1);
        }
    }

    /// The pieces of the first `n` bytes, and how many they are.
    fn first(&self, n: usize) -> ([iovec; 2], usize) {
        let mut pieces = self.span;
        pieces[0].iov_len = pieces[0].iov_len.min(n);
        pieces[1].iov_len = pieces[1].iov_len.min(n - pieces[0].iov_len);
        (pieces, if pieces[1].iov_len > 0 { 2 } else { 1 })
    }

    fn end<C: Copying>(&mut self) {
        if let Some(chunk) = self.lent() {
            chunk.no_more(VIEWED);
        } else if !self.own.is_null() {
            // SAFETY: allocated by this module for these spans; the program's use of them is over.
            unsafe { C::free(self.own) };
        }
        *self = Spans::none();
    }
}

fn fails(e: c_int) -> isize {
    real::ret(-e as isize)
}

/// Reserves room for up to `want` bytes. libc's convention; how many.
///
/// # Safety
/// A cancellation point.
pub unsafe fn reserve<C: Copying>(fd: c_int, want: usize, flags: c_int, room: &mut Spans) -> isize {
    if want != 0
        && flags & !(libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) == 0
        && let Some(ep) = fds::carried(fd)
    {
        let whose = Whose::now(ep);
        let done = |whose, r: &crate::tx::Room| room.on_ring(ROOM, whose, &r.span, r.len, r.number, RingPos::START);
        // SAFETY: the caller's obligation.
        match unsafe { ring::reserve(ep, fd, want, flags, done) } {
            Came::Done(n) => return n as isize,
            Came::Failed => {
                *room = Spans::none();
                return -1;
            }
            Came::Elsewhere => return own_room::<C>(want, Some(whose), room),
        }
    }
    *room = Spans::none();
    if want == 0 || flags & !(libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) != 0 {
        return fails(libc::EINVAL);
    }
    let whose = ring::whose(fd);
    if !C::is_stream(fd) {
        return -1;
    }
    own_room::<C>(want, whose, room)
}

/// Room in memory of its own.
#[cold]
fn own_room<C: Copying>(want: usize, whose: Option<Whose>, room: &mut Spans) -> isize {
    *room = Spans::none();
    let n = want.min(OWN);
    let at = C::allocate(n);
    if at.is_null() {
        return fails(libc::ENOMEM);
    }
    *room = Spans::own(OWN_ROOM, at, n).of(whose);
    n as isize
}

/// Sends the first `n` bytes of `room`; with all of them sent, the rest of the room is given back. libc's convention; how many. Those
/// that were not taken stay in the room, as they are, and so do all if the call fails.
///
/// # Safety
/// A cancellation point. The room's memory is still there, unless it is a ring's.
pub unsafe fn commit<C: Copying>(fd: c_int, room: &mut Spans, n: usize, flags: c_int) -> isize {
    const FLAGS: c_int = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL | libc::MSG_MORE;
    if !matches!(room.kind, ROOM | OWN_ROOM) || n > room.len || flags & !FLAGS != 0 {
        return fails(libc::EINVAL);
    }
    if room.kind == ROOM {
        let Some(whose) = room.whose() else { return fails(libc::EINVAL) };
        if n == 0 {
            ring::give_back(whose, room.number);
            room.end::<C>();
            return 0;
        }
        // SAFETY: the caller's obligation.
        match unsafe { ring::commit(whose, fd, room.number, n, flags) } {
            Came::Done(()) => {
                room.end::<C>();
                COUNTS.committed.fetch_add(n as u64, Relaxed);
                return n as isize;
            }
            Came::Failed => return -1,
            Came::Elsewhere => {}
        }
        // Nobody writes there any more: the direction has left the ring.
        ring::give_back(whose, room.number);
        room.kind = OWN_ROOM;
    }
    if room.own.is_null() && room.whose().is_none() {
        return fails(libc::EINVAL);
    }
    if n == 0 {
        room.end::<C>();
        return 0;
    }
    if room.is_of_another(fd) {
        return fails(libc::EBADF);
    }
    let (pieces, count) = room.first(n);
    // SAFETY: the caller's obligation.
    let r = unsafe { C::send(fd, &pieces[..count], flags) };
    if r > 0 {
        COUNTS.committed_copied.fetch_add(r as u64, Relaxed);
    }
    match usize::try_from(r) {
        Ok(sent) if sent >= n => room.end::<C>(),
        Ok(sent) => room.advance(sent),
        Err(_) => {}
    }
    r
}

/// Looks at what was received and not read, `min` bytes at least; waits for them as a receive would. libc's convention; how many, all
/// that there are. 0: the stream has ended. The view's length is 0 until there is one.
///
/// # Safety
/// A cancellation point.
pub unsafe fn look<C: Copying>(fd: c_int, min: usize, flags: c_int, view: &mut Spans) -> isize {
    view.forget();
    // SAFETY: the caller's obligation.
    let r = unsafe { look_for::<C>(fd, min, flags, view) };
    if r <= 0 {
        view.forget();
    }
    r
}

/// # Safety
/// A cancellation point.
#[inline(always)]
unsafe fn look_for<C: Copying>(fd: c_int, min: usize, flags: c_int, view: &mut Spans) -> isize {
    if flags & !libc::MSG_DONTWAIT != 0 {
        return fails(libc::EINVAL);
    }
    if min > MOST {
        return fails(libc::EMSGSIZE);
    }
    let min = min.max(1);
    let whole = if min > 1 { libc::MSG_WAITALL } else { 0 };
    let whose = ring::whose(fd);
    // So many are there, as this call has found when it waited.
    let mut found = None;
    loop {
        let carried = fds::carried(fd);
        if let Some(ep) = carried {
            // SAFETY: the caller's obligation.
            let came = unsafe {
                ring::look(ep, fd, found.unwrap_or(min), flags & libc::MSG_DONTWAIT != 0, |whose, v| {
                    view.on_ring(VIEW, whose, &v.span, v.len, v.number, v.at);
                    if let Some(lent) = &v.lent {
                        view.of_chunk(lent);
                    }
                })
            };
            match came {
                Came::Done(n) => return n as isize,
                Came::Failed => return -1,
                Came::Elsewhere => {}
            }
        } else if !C::is_stream(fd) {
            return -1;
        }
        if flags == 0 && found.is_none() {
            // Waits, and copies nothing: they may come where they can be looked at. Nor is memory allocated, which a thread that is cancelled
            // here would not free.
            // SAFETY: the caller's obligation; the memory has as much room, whatever the descriptor is by now.
            let r = unsafe { C::receive(fd, scratch(), min, libc::MSG_PEEK | libc::MSG_TRUNC | whole) };
            if r <= 0 {
                return r;
            }
            found = Some(r as usize);
            continue;
        }
        // SAFETY: the caller's obligation.
        let r = unsafe { look_by_copy::<C>(fd, view) };
        if r < 0 && found.is_some() && real::errno() == libc::EAGAIN {
            // Another thread has received them meanwhile.
            found = None;
            continue;
        }
        if r > 0 {
            *view = view.of(whose);
        }
        return r;
    }
}

/// Looks at all that there is, by a copy.
unsafe fn look_by_copy<C: Copying>(fd: c_int, view: &mut Spans) -> isize {
    let at = C::allocate(OWN);
    if at.is_null() {
        return fails(libc::ENOMEM);
    }
    // SAFETY: the caller's obligation; the memory is ours.
    let r = unsafe { C::receive(fd, at, OWN, libc::MSG_PEEK | libc::MSG_DONTWAIT) };
    if r <= 0 {
        // SAFETY: nobody knows of it.
        unsafe { C::free(at.cast()) };
        return r;
    }
    *view = Spans::own(OWN_VIEW, at, r as usize);
    r
}

/// Memory that bytes go to which nobody wants.
fn scratch() -> *mut u8 {
    struct Scratch(core::cell::UnsafeCell<[u8; OWN]>);
    // SAFETY: nobody reads it, and only the kernel writes it.
    unsafe impl Sync for Scratch {}
    static SCRATCH: Scratch = Scratch(core::cell::UnsafeCell::new([0; OWN]));
    SCRATCH.0.get().cast()
}

/// Ends a look, and reads its first `n` bytes: the stream goes on behind them. libc's convention; 0. The view is over also if the call
/// fails, unless it is no view, or has fewer bytes (EINVAL), or another process has the direction (EAGAIN, EINTR).
///
/// # Safety
/// A cancellation point.
pub unsafe fn release<C: Copying>(fd: c_int, view: &mut Spans, n: usize) -> isize {
    if view.kind == OWN_VIEW && n <= view.len && view.is_of_another(fd) {
        view.end::<C>();
        return fails(libc::EBADF);
    }
    if !matches!(view.kind, VIEW | OWN_VIEW) || n > view.len {
        return fails(libc::EINVAL);
    }
    if view.kind == VIEW {
        let Some(whose) = view.whose() else { return fails(libc::EINVAL) };
        return match ring::release(whose, fd, view.number, RingPos::new(view.at), n) {
            Came::Done(()) => {
                COUNTS.looked.fetch_add(n as u64, Relaxed);
                view.end::<C>();
                0
            }
            // Another process has the direction: it is as it was.
            _ if matches!(real::errno(), libc::EAGAIN | libc::EINTR) => -1,
            _ => {
                view.end::<C>();
                -1
            }
        };
    }
    COUNTS.looked_copied.fetch_add(n as u64, Relaxed);
    view.end::<C>();
    let mut left = n;
    while left > 0 {
        // SAFETY: the memory has as much room.
        let r = unsafe { C::receive(fd, scratch(), left.min(OWN), libc::MSG_TRUNC | libc::MSG_DONTWAIT) };
        match r {
            // The end: it was reset, or another thread has received them.
            0 => break,
            -1 if real::errno() == libc::EINTR => {}
            // They lay on the ring, and the peer has yet to send them over the lifeline; or another thread has received them.
            -1 if real::errno() == libc::EAGAIN && ring::pass_over(fd, left) => {}
            -1 => break,
            r => left -= (r as usize).min(left),
        }
    }
    0
}
