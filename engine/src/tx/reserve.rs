//! Room on the ring that the program fills itself: [`reserve`], and [`commit`].
//!
//! The direction's token is not held while the program fills its room, which may take any time. `Endpoint::tx_reserved` says
//! that nobody else may write there. Who sends meanwhile gives the program a moment ([`Patience`]), then takes the direction down: the
//! bytes go to the kernel, and so do those of the room when they are committed, by a copy. Whatever else is done to the direction
//! (`shutdown`, a fork, an exec, a receiver that leaves) does not touch what is not published.
// Unsafe here: a wait is a cancellation point.
#![allow(unsafe_code)]

use super::look::latched;
use super::room::Sender;
use super::sending::Sending;
use super::{Attempt, Unsent, failed, fitting, say_more, with_turn};
use crate::channel::Chan;
use crate::endpoint::Ep;
use crate::kernel::{K, Kernel as _};
use crate::signals::Runs;
use crate::{conn, lock, members};
use core::sync::atomic::Ordering::Relaxed;
use libc::iovec;
use shmring::layout::{self, HOME};
use shmring::{owner, ring};

/// Room that was reserved.
#[derive(Clone, Copy)]
pub struct Room {
    /// Where it is: one piece, or two.
    pub span: [iovec; 2],
    /// Bytes in both.
    pub len: usize,
    /// Which reservation of its connection it is.
    pub number: u64,
}

impl Room {
    /// None.
    pub const fn none() -> Room {
        const PIECE: iovec = iovec { iov_base: core::ptr::null_mut(), iov_len: 0 };
        Room { span: [PIECE; 2], len: 0, number: 0 }
    }
}

/// What came of a call about room.
pub enum Reserved<T> {
    /// This.
    Done(T),
    /// `-errno`.
    Failed(isize),
    /// The bytes go by the kernel, or by a copy.
    Elsewhere,
    /// Another process has the direction: the call is to be made anew.
    Again,
}

/// How long one call that sends gives other threads to commit their rooms, whoever of them reserves meanwhile: 10 ms in all.
pub(super) struct Patience {
    /// Asked for by the first wait.
    until: Option<u64>,
}

impl Patience {
    #[inline(always)]
    pub fn new() -> Patience {
        Patience { until: None }
    }

    /// Whether the call does not wait (any more) for the room that stands. The direction is owned. Its own thread will not commit it
    /// before the call returns.
    #[cold]
    pub fn is_over(&self, ep: Ep) -> bool {
        ep.record().tx_reserved.load(Relaxed) == lock::myself() || self.until.is_some_and(|until| K::now() >= until)
    }

    /// Gives the thread that fills its room time to commit it. Without the direction.
    #[cold]
    pub fn wait(&mut self, ep: Ep) {
        const STEP_NS: u64 = 50_000;
        let record = ep.record();
        let (word, number) = (record.tx_reserved.load(Relaxed), record.tx_reservation.load(Relaxed));
        let until = *self.until.get_or_insert_with(|| K::now() + lock::GRACE_NS);
        let stands = || record.tx_reserved.load(Relaxed) == word && record.tx_reservation.load(Relaxed) == number;
        while word != 0 && stands() && K::now() < until {
            K::nap(STEP_NS);
        }
    }
}

/// Reserves `room` for up to `want` bytes, at least one; waits for it as a send would. `asleep` as for [`super::send`].
///
/// # Safety
/// A cancellation point; no lock held.
#[allow(clippy::too_many_arguments)]
pub unsafe fn reserve(
    ep: Ep,
    chan: &Chan,
    fd: i32,
    want: usize,
    flags: i32,
    since: Runs,
    asleep: &mut bool,
    room: &mut Room,
) -> Reserved<()> {
    let mut sender = Sender::new(fd, flags & libc::MSG_DONTWAIT != 0, since, asleep);
    let life = ep.life();
    loop {
        let a = with_turn(ep, chan, sender.fd, life, &Patience::new(), |sending| take_room(chan, sending, want, room));
        match a {
            Attempt::Took(_) => return Reserved::Done(()),
            Attempt::Full => {}
            Attempt::Native | Attempt::Reserved => return Reserved::Elsewhere,
            Attempt::Taken => return Reserved::Again,
            Attempt::Latched => return Reserved::Failed(failed(latched(ep), flags)),
            Attempt::Error(e) => return Reserved::Failed(failed(e, flags)),
        }
        // SAFETY: no lock is held.
        if let Err(e) = unsafe { sender.wait(ep, chan, false) } {
            return Reserved::Failed(-e as isize);
        }
    }
}

/// How much; 0: the ring is full.
#[inline(always)]
fn take_room(chan: &Chan, sending: &mut Sending, want: usize, room: &mut Room) -> Result<usize, Unsent> {
    let c = sending.conn();
    let record = c.ep;
    if sending.is_reserved() {
        return Err(Unsent::Elsewhere);
    }
    let (slot, dir) = (record.slot.load(Relaxed) as usize, c.role.tx());
    let (base, n) = sending.room(want as u64)?;
    if n == 0 {
        return Ok(0);
    }
    let tail = record.tx_tail.load(Relaxed);
    let n = fitting(sending.ep(), chan, tail.since(base), n)?;
    // All of the bulk is mapped before the program has an address in it: a mapping that grows later may move.
    let all = layout::bulk_len(chan.ring());
    // Not under a system-call filter, which may end the process for a mapping.
    if members::is_filtered() || all > 0 && chan.at(slot, dir, HOME, all).is_none() {
        return Err(Unsent::Elsewhere);
    }
    let geo = chan.geometry();
    if let Some(off) = geo.at_home(base, tail, n) {
        let at = chan.home(slot, dir).wrapping_add(off);
        room.span[0] = iovec { iov_base: at.cast(), iov_len: n as usize };
        room.span[1] = iovec { iov_base: core::ptr::null_mut(), iov_len: 0 };
        room.len = n as usize;
    } else {
        pieces(chan, (slot, dir), geo.spans(base, tail, n), room)?;
    }
    let number = record.tx_reservation.load(Relaxed).wrapping_add(1);
    record.tx_reservation.store(number, Relaxed);
    sending.reserve();
    room.number = number;
    Ok(room.len)
}

/// Two of the pieces of a ring at most, in one slot and direction.
#[inline(never)]
fn pieces(chan: &Chan, (slot, dir): (usize, usize), spans: [ring::Span; 3], room: &mut Room) -> Result<(), Unsent> {
    *room = Room::none();
    let mut n = 0;
    for (off, piece) in spans {
        if piece == 0 || n == room.span.len() {
            continue;
        }
        let at = chan.at(slot, dir, off, piece).ok_or(Unsent::Elsewhere)?;
        room.span[n] = iovec { iov_base: at.cast(), iov_len: piece };
        (n, room.len) = (n + 1, room.len + piece);
    }
    Ok(())
}

/// Sends the first `n` bytes of reservation `number` of the connection as it was in that `life`, and gives back the rest; `n` is not
/// more than was reserved. [`Reserved::Elsewhere`]: they are not sent, and the caller has their memory still.
pub fn commit(ep: Ep, chan: &Chan, fd: i32, life: u32, number: u64, n: usize, flags: i32) -> Reserved<()> {
    let ours = |word: u64| word != 0 && owner::member(word) == members::myself();
    let a = with_turn(ep, chan, fd, life, &Patience::new(), |sending| {
        let record = sending.conn().ep;
        if !ours(record.tx_reserved.load(Relaxed)) || record.tx_reservation.load(Relaxed) != number {
            return Err(Unsent::Elsewhere);
        }
        say_more(&sending.conn(), flags);
        sending.commit(n as u64)
    });
    match a {
        Attempt::Took(_) => Reserved::Done(()),
        // The lifeline does not take what has to go there first.
        Attempt::Full | Attempt::Native | Attempt::Reserved => Reserved::Elsewhere,
        Attempt::Taken => Reserved::Again,
        Attempt::Latched => Reserved::Failed(failed(latched(ep), flags)),
        Attempt::Error(e) => Reserved::Failed(failed(e, flags)),
    }
}

/// Gives room back that was not used, or of which the bytes went another way. Whose program it is not does nothing.
pub fn give_back(ep: Ep, life: u32, number: u64) {
    let record = ep.record();
    let word = record.tx_reserved.load(Relaxed);
    if word == 0 || owner::member(word) != members::myself() || ep.life() != life {
        return;
    }
    // The number changes only while nobody has reserved.
    if record.tx_reservation.load(Relaxed) == number {
        conn::give_back(ep, word);
    }
}
