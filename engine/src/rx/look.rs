//! What a receiver can tell from memory alone.

use super::common::follow;
use crate::channel::Chan;
use crate::config;
use crate::conn::{conn, is_viewed_elsewhere};
use crate::endpoint::Ep;
use core::sync::atomic::Ordering::{Acquire, Relaxed};
use shmring::driver::{self, Conn};
use shmring::family::Endpoint;
use shmring::layout::{self, Arbiter, SlotHeader};
use shmring::position::{Claim, RingPos};
use shmring::ring;
use shmring::switch::{self, RxPhase};

pub(super) fn peer<'a>(chan: &Chan, h: &'a SlotHeader) -> &'a layout::Side {
    &h.side[chan.role().peer() as usize]
}

pub(super) fn me<'a>(chan: &Chan, h: &'a SlotHeader) -> &'a layout::Side {
    &h.side[chan.role() as usize]
}

/// Bytes on the ring that may be read now.
pub fn on_ring(ep: Ep, chan: &Chan) -> u64 {
    // While another one leaves the ring, others do not receive.
    if ep.rx_phase.get() != RxPhase::Ring || ep.rx_leaving.load(Relaxed) != 0 {
        return 0;
    }
    let h = chan.slot(ep.slot.load(Relaxed) as usize);
    left(ep, chan, h)
}

/// What this side has read of the ring, and a claim of the peer's about its end that cannot be, if there is one: what a
/// receive would find. Memory only.
#[inline(always)]
pub(super) fn contradiction(c: &Conn) -> Option<(u64, u64)> {
    if c.ep.rx_phase.get() != RxPhase::Ring || c.ep.rx_leaving.load(Relaxed) != 0 {
        return None;
    }
    let head = c.ep.rx_head.load(Relaxed);
    // In this order: what is published before the end stays.
    let end = end(c.ep, c.me(), c.peer());
    match ring::available(c.published(), head, c.size) {
        Err(shmring::position::Corrupt) => Some((head.number(), c.published().tail.load(Relaxed).number())),
        // Another thread may have read on since.
        Ok(there) => end.filter(|end| end.behind(head) > there).map(|end| (head.number(), end.number())),
    }
}

/// Bytes that this side has to read on the ring, as far as they are published, whatever comes before them.
pub fn left(ep: Ep, chan: &Chan, h: &SlotHeader) -> u64 {
    follow(ep, chan);
    let head = ep.rx_head.load(Relaxed);
    let there = ring::available(&h.producer[chan.role().rx()], head, chan.ring() as u64).unwrap_or(0);
    switch::left(there, head, end(ep.record(), me(chan, h), peer(chan, h)))
}

/// The number of unread bytes at which a sleeping reader or a poller is woken: SO_RCVLOWAT, but no more than the ring
/// can hold, or the reader would never wake. A sender that waits for space has filled the ring: then 1.
pub fn low(ep: Ep, chan: &Chan) -> u64 {
    low_of(&conn(ep, chan))
}

#[inline(always)]
fn low_of(c: &Conn) -> u64 {
    match c.ep.rcvlowat.load(Relaxed) {
        0 | 1 => 1,
        _ if c.peer().want_space.load(Relaxed) != 0 => 1,
        low => u64::from(low).min(c.size / 3),
    }
}

/// Whether nothing has come, and nothing is to be done: both directions are on their rings, the incoming one is empty, and nobody
/// has said or heard anything of leaving, of an end or of an error. Memory only.
#[inline(always)]
pub fn is_quiet(ep: Ep, chan: &Chan) -> bool {
    let c = conn(ep, chan);
    let (ep, p) = (c.ep, c.peer());
    let head = ep.rx_head.load(Relaxed).claim();
    c.published().tail.load(Acquire) == head
        // What a dead process has left undone a receive does.
        && !is_viewed_elsewhere(ep)
        && !driver::is_undone_behind(&c, head)
        && ep.rx_phase.get() == RxPhase::Ring
        && ep.tx_phase.get() == switch::TxPhase::Ring
        && p.wr_shut.load(Relaxed) | p.gone.load(Relaxed) == 0
        && p.down.load(Relaxed).is_none()
        && p.rewind.load(Relaxed) == Arbiter::Open
        && c.me().rewind.load(Relaxed) == Arbiter::Open
        && ep.rx_cut.load(Relaxed).is_none()
        && ep.rx_leaving.load(Relaxed) == 0
        && ep.rx_fin.load(Relaxed) | ep.rd_shut.load(Relaxed) | ep.latched.load(Relaxed) | ep.kept.load(Relaxed) == 0
        // Bytes that an exec handed on, of which another process may have read.
        && !chan.is_handed_on()
}

/// Whether this process stands in for another host, and the sender has taken out a cork since that was told last ([`push_is_told`]): what
/// waits is to be sent there, though nothing more comes.
#[inline]
pub fn is_pushed(ep: Ep, chan: &Chan) -> bool {
    if !config::stands_in() {
        return false;
    }
    let c = conn(ep, chan);
    c.published().manner.load(Acquire) / layout::PUSH != c.slot.consumer[c.role.rx()].pushed.load(Relaxed)
}

/// That was told, by an epoll set.
pub fn push_is_told(ep: Ep, chan: &Chan) {
    let c = conn(ep, chan);
    let pushed = c.published().manner.load(Relaxed) / layout::PUSH;
    c.slot.consumer[c.role.rx()].pushed.store(pushed, Relaxed);
}

/// How the sender wants its bytes sent on the wire: `layout::WAITS` and others.
pub fn manner(ep: Ep, chan: &Chan) -> u32 {
    conn(ep, chan).published().manner.load(Acquire)
}

/// Whether a poller that asked for POLLIN, or did not, should look again. Memory only.
pub fn news(ep: Ep, chan: &Chan, wants_in: bool) -> bool {
    changed(ep, chan, |_| wants_in && on_ring(ep, chan) >= low(ep, chan))
}

/// Whether something has changed that a receiver should look at. Memory only; may say yes too often.
pub fn stirred(ep: Ep, chan: &Chan) -> bool {
    changed(ep, chan, |c| {
        let tail = c.published().tail.load(Relaxed);
        tail.behind(c.ep.rx_head.load(Relaxed)) >= low_of(c)
    })
}

/// `readable`: whether the ring, if that is where this side receives, holds enough.
#[inline(always)]
fn changed(ep: Ep, chan: &Chan, readable: impl FnOnce(&Conn) -> bool) -> bool {
    follow(ep, chan);
    let c = conn(ep, chan);
    let (ep, p) = (c.ep, c.peer());
    if ep.tx_phase.get() == switch::TxPhase::Ring && p.rewind.load(Relaxed) != Arbiter::Open {
        return true;
    }
    if ep.rx_leaving.load(Relaxed) != 0 {
        return false;
    }
    match ep.rx_phase.get() {
        RxPhase::Native => p.up.load(Relaxed).is_some(),
        RxPhase::Ring => readable(&c) || end(ep, c.me(), p) == Some(ep.rx_head.load(Relaxed).claim()),
        RxPhase::Transit | RxPhase::Down => false,
    }
}

/// Where the ring ends, if it does: where the sender went down, or where this side cut it.
pub(super) fn end(ep: &Endpoint, me: &layout::Side, peer: &layout::Side) -> Option<Claim<RingPos>> {
    let (cut, rewind) = (ep.rx_cut.load(Acquire), me.rewind.load(Acquire));
    switch::end(cut, rewind, peer.down.load(Acquire))
}

/// Whether the ring, empty now, has also ended.
pub fn at_end(ep: Ep, chan: &Chan) -> bool {
    let h = chan.slot(ep.slot.load(Relaxed) as usize);
    end(ep.record(), me(chan, h), peer(chan, h)).is_some()
}

/// Whether the ring has ended, and the stream with it, as the peer says.
pub fn is_last(ep: Ep, chan: &Chan) -> bool {
    let p = peer(chan, chan.slot(ep.slot.load(Relaxed) as usize));
    at_end(ep, chan) && p.wr_shut.load(Relaxed) | p.gone.load(Relaxed) != 0
}

/// Whether the peer has said that it sends no more, or no more on the ring.
pub fn ending(ep: Ep, chan: &Chan) -> bool {
    let h = chan.slot(ep.slot.load(Relaxed) as usize);
    let p = peer(chan, h);
    p.wr_shut.load(Relaxed) | p.gone.load(Relaxed) != 0 || p.down.load(Relaxed).is_some()
}

/// Up to where the sender has published, as it claims.
pub fn tail(ep: Ep, chan: &Chan) -> Claim<RingPos> {
    chan.slot(ep.slot.load(Relaxed) as usize).producer[chan.role().rx()].tail.load(Relaxed)
}
