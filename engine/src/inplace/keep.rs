//! Bytes of a ring that were read and stay where they are, for a program that hands them on to a device by reference: what it received
//! and what room the sender has again are two things then.
// Unsafe here: calls are cancellation points.
#![allow(unsafe_code)]

use super::ring::Whose;
use crate::channel::Chan;
use crate::endpoint::Ep;
use crate::path::{self, Call};
use crate::rx::{self, Keep};
use crate::signals;
use crate::turns::{self, Direction, Turn, Wait};
use crate::{conn, fds, members, tx};
use core::cell::Cell;
use libc::{c_int, iovec};
use shmring::position::RingPos;
use shmring::switch::RxPhase;

/// What a program keeps of one connection. As `culvert.h` has it.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Kept {
    /// What the last call has read: one piece, or two. The others have no length.
    pub span: [iovec; 2],
    /// Bytes in both.
    pub len: usize,
    /// Bytes that the sender may have on the ring, read or not, before it has to wait.
    pub limit: usize,
    /// 1: there was nothing behind them.
    pub all: u32,
    /// 1: nothing that was read before is kept, whoever has ended that: what is given back counts from these bytes on.
    pub anew: u32,
    /// 1: something is kept ...
    holds: u32,
    /// ... of this record ...
    record: u32,
    /// ... in that life ...
    life: u32,
    /// ... by this process ...
    member: u64,
    /// ... as that look ...
    number: u64,
    /// ... and up to there it was given back.
    given: u64,
}

const _: () = assert!(size_of::<Kept>() == 96 && core::mem::offset_of!(Kept, anew) == 52, "culvert.h");

const NOTHING: iovec = iovec { iov_base: core::ptr::null_mut(), iov_len: 0 };

impl Kept {
    /// Nothing is kept.
    pub const fn none() -> Kept {
        Kept {
            span: [NOTHING; 2],
            len: 0,
            limit: 0,
            all: 0,
            anew: 0,
            holds: 0,
            record: 0,
            life: 0,
            member: 0,
            number: 0,
            given: 0,
        }
    }

    /// The connection of which something is kept.
    fn whose(&self) -> Option<Whose> {
        (self.holds == 1 && self.member == members::myself()).then(|| Whose::new(self.record, self.life))
    }

    fn holds(&mut self, whose: Whose, keep: &Keep) {
        self.anew = (self.holds == 0 || self.number != keep.number).into();
        if self.holds == 0 {
            (self.holds, self.record, self.life) = (1, whose.ep.index(), whose.life);
            (self.member, self.number, self.given) = (members::myself(), keep.number, keep.at.number());
        } else if self.number != keep.number {
            // What was kept before is the sender's again, since somebody else has ended that.
            (self.number, self.given) = (keep.number, keep.at.number());
        }
        (self.span, self.len, self.all) = (keep.span, keep.len, keep.all.into());
        self.limit = keep.limit as usize;
    }
}

/// Reads up to `most` bytes of `fd`'s ring, if at least `least` lie there, and keeps them: they stay where they are, and what is received
/// behind them by other calls gives no room back either, until they are [given back](give_back). Never waits. How many; 0: they are to be
/// received.
///
/// # Safety
/// A cancellation point: no lock is held.
pub unsafe fn keep(fd: c_int, least: usize, most: usize, kept: &mut Kept) -> usize {
    (kept.span, kept.len, kept.all) = ([NOTHING; 2], 0, 0);
    let Some(ep) = fds::carried(fd) else { return 0 };
    let before = kept.whose().filter(|whose| whose.is(ep));
    if before.is_none() {
        kept.holds = 0;
    }
    let number = before.map(|_| kept.number);
    let call = Keeping { fd, number, bounds: (least, most), found: &Cell::new(None) };
    // SAFETY: the caller's obligation.
    let r = unsafe { path::carry(ep, fd, &call, &mut || 0) };
    match call.found.get().filter(|_| r >= 0) {
        Some((whose, keep)) => kept.holds(whose, &keep),
        None => return 0,
    }
    kept.len
}

struct Keeping<'a> {
    fd: c_int,
    number: Option<u64>,
    bounds: (usize, usize),
    found: &'a Cell<Option<(Whose, Keep)>>,
}

impl Call for &Keeping<'_> {
    fn natively(&self, _: Ep, real: &mut impl FnMut() -> isize) -> isize {
        real()
    }

    fn counted(&self, _: Ep, real: &mut impl FnMut() -> isize) -> Option<isize> {
        Some(real())
    }

    unsafe fn by_ring(&self, ep: Ep, chan: &'static Chan, real: &mut impl FnMut() -> isize) -> Option<isize> {
        let &&Keeping { fd, number, bounds, found } = self;
        // A peer that has left waits for what it did not read.
        tx::service(ep, chan, fd);
        if ep.rx_phase.get() != RxPhase::Ring || !conn::make_ready(ep, chan) {
            return Some(real());
        }
        let since = signals::runs();
        match turns::turn(ep, fd, Direction::Incoming, || Wait { never: true, option: libc::SO_RCVTIMEO, since }) {
            Turn::Ours => {}
            Turn::Again => return None,
            // The receive that follows says what there is.
            Turn::Failed(_) => return Some(real()),
        }
        let life = ep.life();
        found.set(rx::keep(ep, chan, fd, life, number, bounds).map(|keep| (Whose { ep, life }, keep)));
        Some(real())
    }
}

/// The first `n` bytes of those that are kept, or were received behind them, are the sender's again; `None`: all of them. Whether something
/// is kept still.
pub fn give_back(fd: c_int, kept: &mut Kept, n: Option<u64>) -> bool {
    let still = match kept.whose().zip(fds::endpoint(fd)) {
        Some((whose, ep)) if whose.is(ep) => ep.chan().is_some_and(|chan| {
            let given = RingPos::new(kept.given);
            let to = n.map(|n| given.plus(n));
            let still = rx::give_back(ep, chan, fd, whose.life, kept.number, given, to);
            kept.given = to.unwrap_or(given).number();
            still
        }),
        // Closed, or the kernel's.
        _ => false,
    };
    kept.holds = still.into();
    still
}
