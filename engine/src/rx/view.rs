//! Bytes of the ring that the program looks at where they lie: [`view`], and [`release`]; or has read, and keeps there: [`keep`], and
//! [`give_back`].
//!
//! They stay where they are until it has released them, or given them back, whatever is received meanwhile: nothing from there on is given
//! back to the sender before (`shmring::driver::view`).
// Unsafe here: a vector that names no memory.
#![allow(unsafe_code)]

use super::advance::leaving;
use super::arrived::received;
use super::common;
use super::look::{left, on_ring};
use super::receiving::{Got, Receiving};
use crate::buffers::Buffers;
use crate::channel::Chan;
use crate::chunks::stretch::{self, Lent, Next};
use crate::endpoint::{Ep, put_back};
use crate::kernel::{K, Kernel as _};
use crate::{chunks, conn, family, lock, members};
use core::sync::atomic::Ordering::{Acquire, Relaxed};
use libc::iovec;
use shmring::family::State;
use shmring::layout::{self, HOME};
use shmring::position::RingPos;
use shmring::ring;
use shmring::switch::RxPhase;

/// A piece of nothing.
const PIECE: iovec = iovec { iov_base: core::ptr::null_mut(), iov_len: 0 };

/// What the program looks at.
#[derive(Clone, Copy)]
pub struct View {
    /// Where it is: one piece, or two.
    pub span: [iovec; 2],
    /// Bytes in both.
    pub len: usize,
    /// Which look at its connection it is.
    pub number: u64,
    /// Where on the ring it begins.
    pub at: RingPos,
    /// Where else it is: in a chunk.
    pub lent: Option<Lent>,
}

/// What lies on the ring next, at least `min` bytes: `seen` gets it. False: there is less, or it cannot be looked at where it lies.
#[inline(always)]
pub fn view(ep: Ep, chan: &Chan, fd: i32, life: u32, min: usize, seen: impl FnOnce(&View)) -> bool {
    if common::is_common(ep, chan) {
        return false;
    }
    let Some(mut receiving) = Receiving::take(ep, chan, fd, life) else { return false };
    let mut view = View::none();
    let is_seen = ep.local().refs.load(Relaxed) != 0 && look(ep, chan, &mut receiving, min, &mut view).is_some();
    if is_seen {
        // Handlers of signals that were put off run in the next line, and one may leave the call for good: by then the program has what it
        // is to release.
        seen(&view);
    }
    receiving.release();
    is_seen
}

#[inline(always)]
fn look(ep: Ep, chan: &Chan, receiving: &mut Receiving, min: usize, view: &mut View) -> Option<()> {
    let record = ep.record();
    let (slot, dir) = (record.slot.load(Relaxed) as usize, chan.role().rx());
    // All of the bulk is mapped before the program has an address in it: a mapping that grows later may move.
    let all = layout::bulk_len(chan.ring());
    // Not under a system-call filter, which may end the process for a mapping.
    if members::is_filtered() || all > 0 && chan.at(slot, dir, HOME, all).is_none() {
        return None;
    }
    let n = receiving.view()?;
    let at = record.rx_head.load(Relaxed);
    let n = match receiving.next(n, min.max(1) as u64) {
        Some(Next::Bytes(n)) => n,
        Some(Next::Chunk(lent)) => {
            *view = View::of_chunk(lent, at);
            view.number = begins(ep);
            return Some(());
        }
        None => {
            receiving.end_view();
            return None;
        }
    };
    let home = ring::base(&chan.slot(slot).producer[dir]);
    if let Some(off) = chan.geometry().at_home(home, at, n) {
        let p = chan.home(slot, dir).wrapping_add(off);
        view.span[0] = iovec { iov_base: p.cast(), iov_len: n as usize };
        view.len = n as usize;
    } else {
        (view.span, view.len) = pieces(chan, slot, at, n);
    }
    if view.len < min.max(1) {
        receiving.end_view();
        return None;
    }
    (view.at, view.number) = (at, begins(ep));
    Some(())
}

/// Where the `n` bytes from `at` on are, and how many of them are in two pieces. Something is on the ring, all of which is mapped.
fn pieces(chan: &Chan, slot: usize, at: RingPos, n: u64) -> ([iovec; 2], usize) {
    let dir = chan.role().rx();
    let mut span = [iovec { iov_base: core::ptr::null_mut(), iov_len: 0 }; 2];
    let (mut i, mut len) = (0, 0);
    for (off, piece) in chan.geometry().spans(ring::base(&chan.slot(slot).producer[dir]), at, n) {
        if piece == 0 || i == span.len() {
            continue;
        }
        let Some(p) = chan.at(slot, dir, off, piece) else { break };
        span[i] = iovec { iov_base: p.cast(), iov_len: piece };
        (i, len) = (i + 1, len + piece);
    }
    (span, len)
}

/// This process begins to look: which look at the connection it is.
fn begins(ep: Ep) -> u64 {
    family::looks_at(ep);
    let record = ep.record();
    let number = record.rx_view.load(Relaxed).wrapping_add(1);
    record.rx_view.store(number, Relaxed);
    number
}

impl View {
    /// Of nothing.
    pub const fn none() -> View {
        View { span: [PIECE; 2], len: 0, number: 0, at: RingPos::START, lent: None }
    }

    /// See [`view`].
    #[cfg(test)]
    pub fn of(ep: Ep, chan: &Chan, fd: i32, min: usize) -> Option<View> {
        let mut seen = None;
        view(ep, chan, fd, ep.life(), min, |view| seen = Some(*view));
        seen
    }

    fn of_chunk(lent: Lent, at: RingPos) -> View {
        let len = lent.name.len as usize;
        let piece = iovec { iov_base: lent.at.cast_mut().cast(), iov_len: len };
        View { span: [piece, PIECE], len, number: 0, at, lent: Some(lent) }
    }
}

/// What was read, and stays on the ring.
#[derive(Clone, Copy)]
pub struct Keep {
    /// Where it is: one piece, or two.
    pub span: [iovec; 2],
    /// Bytes in both.
    pub len: usize,
    /// Nothing lay behind them, and the ring goes on: what comes is news.
    pub all: bool,
    /// Which look it is.
    pub number: u64,
    /// Where on the ring it begins.
    pub at: RingPos,
    /// Bytes that the ring may hold.
    pub limit: u64,
}

/// Reads up to `most` bytes of the ring, if there are `least`, and keeps them there. `number`: the look in which some are kept already.
/// `None`: there are not so many, or they are to be received.
pub fn keep(
    ep: Ep,
    chan: &Chan,
    fd: i32,
    life: u32,
    number: Option<u64>,
    (least, most): (usize, usize),
) -> Option<Keep> {
    if common::is_common(ep, chan) || members::is_filtered() {
        return None;
    }
    let mut receiving = Receiving::take(ep, chan, fd, life)?;
    let kept = if ep.local().refs.load(Relaxed) == 0 {
        None
    } else {
        keep_now(ep, chan, &mut receiving, number, (least, most))
    };
    receiving.release();
    kept
}

fn keep_now(
    ep: Ep,
    chan: &Chan,
    receiving: &mut Receiving,
    number: Option<u64>,
    (least, most): (usize, usize),
) -> Option<Keep> {
    let record = ep.record();
    let (slot, dir) = (record.slot.load(Relaxed) as usize, chan.role().rx());
    let at = record.rx_head.load(Relaxed);
    // While something is there the place of what comes behind it does not change. What the peer claims is looked at once more by the step.
    let there = left(ep, chan, chan.slot(slot));
    if record.rx_phase.get() != RxPhase::Ring || there < least.max(1) as u64 {
        return None;
    }
    let c = conn::conn(ep, chan);
    // What was received is sent, and its sender has asked that the rest be little (TCP_NOTSENT_LOWAT): it has the room at once.
    if ring::bounds_unsent(c.peer()) {
        return None;
    }
    // What lies in chunks is brought to the ring by a receive.
    if chan.slot(slot).producer[dir].may_have_holes(at, chan.ring() as u64) {
        return None;
    }
    let all = layout::bulk_len(chan.ring());
    if all > 0 && chan.at(slot, dir, HOME, all).is_none() {
        return None;
    }
    let (span, len) = pieces(chan, slot, at, there.min(most as u64));
    let before = number.filter(|number| is_kept(ep, *number));
    let kept = receiving.keep(before.is_some(), (least as u64, len as u64))?;
    let span = first(span, kept.n as usize);
    let limit = ring::limit(c.peer(), c.me(), c.size);
    Some(Keep {
        span,
        len: kept.n as usize,
        all: kept.all,
        number: before.unwrap_or_else(|| begins(ep)),
        at: kept.at,
        limit,
    })
}

/// The first `n` bytes of two pieces.
fn first(mut span: [iovec; 2], n: usize) -> [iovec; 2] {
    span[0].iov_len = span[0].iov_len.min(n);
    span[1].iov_len = span[1].iov_len.min(n - span[0].iov_len);
    span
}

/// Whether this process keeps something in look `number`.
fn is_kept(ep: Ep, number: u64) -> bool {
    let record = ep.record();
    record.rx_viewed.load(Relaxed) == members::myself() && record.rx_view.load(Relaxed) == number
}

/// What is kept in look `number` before `to` is the sender's again; `None`: all that was read. `given`: what was before. Whether something is
/// kept still.
pub fn give_back(ep: Ep, chan: &Chan, fd: i32, life: u32, number: u64, given: RingPos, to: Option<RingPos>) -> bool {
    // Another process has the direction: later.
    let Some(mut receiving) = Receiving::take(ep, chan, fd, life) else { return ep.lives(life) };
    if is_kept(ep, number) {
        match to {
            Some(to) => receiving.give_back(given, to),
            None => receiving.end_view(),
        }
    }
    let kept = is_kept(ep, number);
    receiving.release();
    kept
}

/// Whether another process looks at what lies on the ring. If it was killed, or does not hold the connection any more, it does not, and the
/// room is given back. Nobody is told of that, so who waits on such a connection asks now and then.
pub fn is_looked_at(ep: Ep, chan: &Chan) -> bool {
    let viewer = ep.rx_viewed.load(Relaxed);
    if viewer == 0 || viewer == members::myself() {
        return false;
    }
    let gone = |viewer| !family::uses(viewer, ep);
    if gone(viewer) {
        conn::end_view(ep, chan, gone);
    }
    ep.rx_viewed.load(Relaxed) != 0
}

/// The same of all connections of this process.
pub fn others_look() -> bool {
    let looked_at = |ep: Ep| ep.state() == State::Attached && ep.chan().is_some_and(|chan| is_looked_at(ep, chan));
    // Each of them is asked.
    family::may_look() && family::held().filter(|ep| looked_at(*ep)).count() > 0
}

/// Brings what lies in chunks to the ring, for who reads it there without knowing of them. False: it cannot be had; so it is also if the
/// direction is not `owned`, and there is something.
pub fn fill(ep: Ep, chan: &Chan, owned: bool) -> bool {
    let (c, at) = (conn::conn(ep, chan), ep.rx_head.load(Relaxed));
    if owned { stretch::fill_all(&c, chan, at).is_ok() } else { !stretch::may_have_holes(&c, at) }
}

/// This process is about to be forked: who reads then may not know the pools.
pub fn before_fork() {
    if !chunks::are_used() {
        return;
    }
    for ep in family::held().filter(|ep| ep.state() == State::Attached) {
        if let Some(chan) = ep.chan()
            && conn::conn(ep, chan).published().may_have_holes(ep.rx_head.load(Relaxed), chan.ring() as u64)
            && let Some(held) = lock::take(&ep.rx_token, None)
        {
            // What cannot be had now the next receive finds out.
            fill(ep, chan, true);
            held.release();
        }
    }
}

/// The connection is closed, and nobody reads what lies unread: chunks of it go back. The direction is owned.
pub fn drop_chunks(ep: Ep, chan: &Chan) {
    let c = conn::conn(ep, chan);
    if common::is_common(ep, chan) {
        // Other images may read on, from where no chunks are.
        return;
    }
    // Of one that has left, its sender may yet send them to the kernel.
    let has_left = c.me().rewind.load(Relaxed).left().is_some();
    stretch::drop_unread(&c, chan, ep.rx_head.load(Relaxed), has_left);
}

/// What came of the end of a look.
pub enum Released {
    /// That.
    Done,
    /// Another thread leaves the ring: only when it has is it known where the bytes are.
    NotYet,
    /// The direction is to be taken anew, or the record is another connection's by now.
    Again,
    /// This process has closed the connection.
    Closed,
}

/// Ends look `number` of the connection as it was in that `life`, which began at `at`, and takes its first `n` bytes from the stream,
/// unless they have been taken meanwhile. Those that the peer has yet to send anew are dropped when they come.
pub fn release(ep: Ep, chan: &Chan, fd: i32, life: u32, number: u64, at: RingPos, n: usize) -> Released {
    let Some(mut receiving) = Receiving::take(ep, chan, fd, life) else { return Released::Again };
    let record = ep.record();
    if ep.local().refs.load(Relaxed) == 0 {
        // See `tx::with_turn`.
        receiving.release();
        return Released::Closed;
    }
    let came = take(ep, &mut receiving, at, n as u64);
    // Not before: until then nobody receives without the token (`is_kernels`).
    if matches!(came, Released::Done)
        && record.rx_viewed.load(Relaxed) == members::myself()
        && record.rx_view.load(Relaxed) == number
    {
        receiving.end_view();
    }
    receiving.release();
    came
}

fn take(ep: Ep, receiving: &mut Receiving, at: RingPos, n: u64) -> Released {
    loop {
        let left = receiving.unread_of(at, n);
        if receiving.was_taken() {
            return Released::Again;
        }
        if left == 0 {
            return Released::Done;
        }
        if ep.rx_phase.get() != RxPhase::Ring {
            receiving.pass_over(left);
            return if receiving.was_taken() { Released::Again } else { Released::Done };
        }
        // Nothing is copied.
        let nowhere = iovec { iov_base: core::ptr::without_provenance_mut(1), iov_len: left as usize };
        // SAFETY: one local element.
        let Some(mut b) = (unsafe { Buffers::new(&raw const nowhere, 1) }) else { return Released::Done };
        let got = receiving.attempt(&mut b, left as usize, libc::MSG_TRUNC, false);
        match got {
            _ if receiving.was_taken() => return Released::Again,
            Got::Bytes(n) if n > 0 => {}
            Got::Nothing if leaving(ep) => return Released::NotYet,
            Got::Error(e) if e != libc::EFAULT => {
                // The next call reports it.
                put_back(ep, e);
                return Released::Done;
            }
            _ => return Released::Done,
        }
    }
}

/// Reads the next `n` bytes, which a peek has seen on the ring, and which a receive does not find: drops them when they come.
pub fn pass_over(ep: Ep, chan: &Chan, fd: i32, life: u32, n: usize) -> Released {
    let Some(mut receiving) = Receiving::take(ep, chan, fd, life) else { return Released::Again };
    if ep.local().refs.load(Relaxed) == 0 {
        receiving.release();
        return Released::Closed;
    }
    let came = match ep.rx_phase.get() {
        RxPhase::Down => {
            let n = receiving.outstanding().min(n as u64);
            if n > 0 {
                receiving.pass_over(n);
            }
            if receiving.was_taken() { Released::Again } else { Released::Done }
        }
        _ if leaving(ep) => Released::NotYet,
        // The one that left has stayed.
        RxPhase::Ring if on_ring(ep, chan) > 0 => Released::Again,
        _ => Released::Done,
    };
    receiving.release();
    came
}

/// [`release`] in a process that has given up the channel, so that the connection is the kernel's: of the bytes those that have come.
pub fn release_natively(ep: Ep, fd: i32, at: RingPos, n: usize) {
    let left = (n as u64).saturating_sub(ep.rx_head.load(Relaxed).since(at));
    if let Some(down_at) = ep.rx_down_at.load(Relaxed)
        && left > 0
        && let Some((consumed, queued)) = received(ep, fd)
    {
        K::discard(fd, down_at.plus(left).since(consumed).min(queued));
    }
}

/// Whether calls that receive are the kernel's: the receiver is down, nothing that comes there is to be dropped, and nobody has bytes in
/// hand that may have to be.
pub fn is_kernels(ep: Ep) -> bool {
    // In this order: no look begins on a receiver that is down, and one ends behind what it leaves to be dropped.
    ep.rx_phase.get() == RxPhase::Down && ep.rx_viewed.load(Acquire) == 0 && ep.rx_skip.get().is_none()
}
