//! Bytes of a ring that a receiver looks at where they lie ([`view`]), or has read and [keeps](keep) there.
//!
//! While it does, the ring's head in shared memory stays behind them, whatever is received meanwhile: the sender does not write
//! there. `Endpoint::rx_viewed` names who looks; one that was killed does not look any more.
//!
//! The bytes that were looked at are read by their place in the stream, not by their number: the receiver may have gone down since, and
//! others may have read some of them, there or here. What has not come over the lifeline is dropped when it comes ([`skip`]), as an echo
//! is, so nobody waits for it.

use super::receive::{Incoming, Skipped, end, heal, is_viewed, serve_wish, skip, turned_away};
use super::{Access, Conn, Guard, Port};
use crate::position::{RingPos, StreamPos};
use crate::ring;
use crate::switch::{self, RxPhase, RxStep, RxView};
use crate::sync::Ordering;

/// Lets `viewer` look at what lies on the ring behind its head: how many bytes. `None`: there is nothing on the ring, another one
/// looks already, or the receiver has to do something else first.
pub fn view<P: Incoming>(p: &mut P, c: &Conn, viewer: u64) -> Result<Option<u64>, P::Stop> {
    if turned_away(p, c)? || p.own(&c.ep.rx_phase) != RxPhase::Ring || is_viewed(p, c)? {
        return Ok(None);
    }
    let head = p.own(&c.ep.rx_head);
    let down = end(p, c)?;
    let Ok(available) = p.atom(|| ring::available(c.published(), head, c.size))? else { return Ok(None) };
    match switch::rx(RxView { phase: RxPhase::Ring, up: None, down, head, available }) {
        RxStep::Ring(n) => {
            p.say(&c.ep.rx_viewed, viewer)?;
            Ok(Some(n))
        }
        // Who polls by looks makes no other call.
        RxStep::Empty => heal(p, c, head).map(|()| None),
        _ => Ok(None),
    }
}

/// Nobody looks any more: what was received meanwhile is given back, and a sender that waits for room is told.
pub fn end_view<P: Port>(p: &mut P, c: &Conn, limit: u64) -> Result<(), P::Stop> {
    p.say(&c.ep.rx_viewed, 0)?;
    let head = p.own(&c.ep.rx_head);
    if p.own(&c.consumed().head) == head.claim() {
        return Ok(());
    }
    p.atom(|| ring::consume(c.consumed(), head))?;
    p.note(&c.ep.rx_shown, head);
    serve_wish(p, c, head, limit, P::notify)
}

/// Bytes that were read, and stay where they are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Kept {
    /// Where on the ring they begin.
    pub at: RingPos,
    /// How many.
    pub n: u64,
    /// Nothing lay behind them, and the ring goes on.
    pub all: bool,
}

/// Reads up to `most` bytes of the ring, if there are `least`, for `keeper`, without a copy: they and all that is received behind them stay
/// where they are until they are given back ([`return_kept`]). `goes_on`: the keeper has kept some before, and has not given all back. `None`:
/// there are not so many, somebody else looks at the ring, or the receiver has to do something else first.
pub fn keep<P: Incoming>(
    p: &mut P,
    c: &Conn,
    keeper: u64,
    goes_on: bool,
    (least, most): (u64, u64),
) -> Result<Option<Kept>, P::Stop> {
    if turned_away(p, c)? || p.own(&c.ep.rx_phase) != RxPhase::Ring || is_viewed(p, c)? != goes_on {
        return Ok(None);
    }
    let at = p.own(&c.ep.rx_head);
    let down = end(p, c)?;
    let Ok(available) = p.atom(|| ring::available(c.published(), at, c.size))? else { return Ok(None) };
    let n = match switch::rx(RxView { phase: RxPhase::Ring, up: None, down, head: at, available }) {
        RxStep::Ring(n) if n >= least => n.min(most),
        _ => return Ok(None),
    };
    if !goes_on {
        p.say(&c.ep.rx_viewed, keeper)?;
    }
    let head = at.plus(n);
    p.say(&c.ep.rx_head, head)?;
    p.atom(|| ring::read_on(c.consumed(), head))?;
    p.quiet(|| {
        let (bytes, messages) = (&c.ep.rx_bytes, &c.ep.rx_msgs);
        bytes.store(bytes.load(Ordering::Relaxed) + n, Ordering::Relaxed);
        messages.store(messages.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    });
    if down == Some(head.claim()) {
        p.drained();
    }
    Ok(Some(Kept { at, n, all: down.is_none() && n == available }))
}

/// What was kept of the ring before `to` is given back, and a sender that waits for room is told. If that is all that was read, nothing is
/// kept any more. `given`: what was given back before.
pub fn return_kept<P: Port>(p: &mut P, c: &Conn, given: RingPos, to: RingPos, limit: u64) -> Result<(), P::Stop> {
    let head = p.own(&c.ep.rx_head);
    if head.since(to) == 0 {
        return end_view(p, c, limit);
    }
    if head.since(to) >= head.since(given) {
        // Not between the two.
        return Ok(());
    }
    p.atom(|| ring::consume(c.consumed(), to))?;
    p.note(&c.ep.rx_shown, to);
    serve_wish(p, c, to, limit, P::notify)
}

/// Where the lifeline goes on with what lay on the ring, and up to where it is read, or will be dropped. Of a receiver that is down.
/// `None`: there was no ring, or the connection is no more.
fn down<P: Incoming>(p: &mut P, c: &Conn) -> Result<Option<(StreamPos, StreamPos)>, P::Stop> {
    let Some((consumed, _)) = p.received()? else { return Ok(None) };
    let read = p.own(&c.ep.rx_skip).map_or(consumed, |to| to.max(consumed));
    let from = match p.own(&c.ep.rx_down_at) {
        Some(at) => Some(at),
        // It came down before it had come to the ring: there that would have begun.
        None => p.see(&c.peer().up)?.map(|x| x.up_to(consumed).unwrap_or(consumed.plus(x.behind(consumed)))),
    };
    Ok(from.map(|from| (from, read)))
}

/// How many of the `n` bytes that lay on the ring from `at` on are not read.
pub fn unread_of<P: Incoming>(p: &mut P, c: &Conn, at: RingPos, n: u64) -> Result<u64, P::Stop> {
    let on_ring = p.own(&c.ep.rx_head).since(at);
    let behind = match p.own(&c.ep.rx_phase) {
        _ if p.lacks(Guard::CountBehind) => 0,
        RxPhase::Down => match down(p, c)? {
            Some((from, read)) => read.since(from),
            // Nothing comes any more.
            None => n,
        },
        _ => 0,
    };
    Ok(n.saturating_sub(on_ring.saturating_add(behind)))
}

/// How many bytes that lay on the ring are still to be read on the lifeline, or to come there.
pub fn to_come<P: Incoming>(p: &mut P, c: &Conn) -> Result<u64, P::Stop> {
    if p.own(&c.ep.rx_phase) != RxPhase::Down {
        return Ok(0);
    }
    let head = p.own(&c.ep.rx_head);
    // What the sender has published stays so, also what it takes back.
    let lay = p.atom(|| ring::available(c.published(), head, c.size))?.unwrap_or(0);
    Ok(down(p, c)?.map_or(0, |(from, read)| from.plus(lay).since(read)))
}

/// Reads the next `n` bytes of a receiver that is down, also those that have not come, and drops them.
pub fn pass_over<P: Incoming>(p: &mut P, c: &Conn, n: u64) -> Result<(), P::Stop> {
    let Some((consumed, _)) = p.received()? else { return Ok(()) };
    let read = p.own(&c.ep.rx_skip).map_or(consumed, |to| to.max(consumed));
    p.say(&c.ep.rx_skip, Some(read.plus(n)))?;
    if p.own(&c.ep.rx_at).is_none() && !p.handed_on() {
        p.note(&c.ep.rx_at, Some(consumed));
    }
    while skip(p, c)? == Skipped::Some {}
    Ok(())
}
