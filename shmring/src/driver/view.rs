//! Bytes of a ring that a receiver looks at where they lie.
//!
//! While it does, the ring's head in shared memory stays behind them, whatever is received meanwhile: the sender does not write
//! there. `Endpoint::rx_viewed` names who looks; one that was killed does not look any more.

use super::receive::{Incoming, end, is_viewed, serve_wish, turned_away};
use super::{Access, Conn, Port};
use crate::ring;
use crate::switch::{self, RxPhase, RxStep, RxView};

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
