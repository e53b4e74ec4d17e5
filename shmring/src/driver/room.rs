//! Room behind the tail that a program fills itself, before it is sent.
//!
//! [`room`](super::room) finds it, under the token; the token is not held while the program fills it. `Endpoint::tx_reserved` says whose
//! it is: nobody else writes behind the tail until that one has committed it, or given it back, for which it needs no token. One that
//! was killed fills nothing any more.
//!
//! Ordering. The word is taken back by a store or an exchange that releases, and seen by a load that acquires: what was laid into
//! room and not sent is written before anybody else writes there.

use super::send::publish;
use super::{Access, Conn, Guard, Outgoing, Port};
use crate::family::Endpoint;
use crate::position::RingPos;

/// Whether somebody's program fills the room behind the tail.
#[inline(always)]
pub fn is_reserved<P: Outgoing>(p: &mut P, c: &Conn) -> Result<bool, P::Stop> {
    match p.see(&c.ep.tx_reserved)? {
        0 => Ok(false),
        owner => still_reserved(p, c, owner),
    }
}

#[cold]
fn still_reserved<P: Outgoing>(p: &mut P, c: &Conn, owner: u64) -> Result<bool, P::Stop> {
    if p.lacks(Guard::KeepReserved) {
        return Ok(false);
    }
    if p.fills(owner) {
        return Ok(true);
    }
    give_back(p, c.ep, owner).map(|()| false)
}

/// The room that was found behind the tail is `owner`'s. Nobody has reserved it ([`is_reserved`]).
pub fn reserve<P: Port>(p: &mut P, c: &Conn, owner: u64) -> Result<(), P::Stop> {
    p.say(&c.ep.tx_reserved, owner)
}

/// The first `n` bytes of room that is the caller's are the receiver's, and the rest is nobody's any more.
#[inline(always)]
pub fn commit<P: Port>(p: &mut P, c: &Conn, n: u64) -> Result<(), P::Stop> {
    // The home has not moved: nobody sends on the ring while there is a reservation.
    let base: RingPos = p.own(&c.ep.tx_base);
    publish(p, c, base, n)?;
    p.say(&c.ep.tx_reserved, 0)
}

/// The room is `owner`'s no longer, if it was. Needs no token.
pub fn give_back<P: Port>(p: &mut P, ep: &Endpoint, owner: u64) -> Result<(), P::Stop> {
    p.settle(&ep.tx_reserved, owner, 0).map(|_| ())
}
