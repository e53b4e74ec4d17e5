//! A receiver leaves the ring for good.
//!
//! [`begin`] settles with the sender who was first, under the token. What then has to wait for the sender's part waits
//! without it: [`see`] looks, as often as the caller's patience allows, and [`conclude`] takes the receiver down, under the
//! token again. In between `Endpoint::rx_leaving` names the one who leaves, and turns away whoever else would receive: what
//! comes over the lifeline and what stays on the ring is not settled yet.

use super::receive::{Incoming, arrived, come_down, end, turned_away};
use super::{Access, Conn, Guard, Port};
use crate::family::OPEN;
use crate::layout::{Arbiter, REFUSED};
use crate::position::Corrupt;
use crate::position::{Claim, RingPos};
use crate::ring;
use crate::switch::{self, RxPhase};
use crate::sync::{Ordering, fence};

/// How the bytes that lie unread on the ring reach whoever reads the descriptor next.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Unread {
    /// The peer takes unread bytes back and sends them over the lifeline.
    Rewind,
    /// They stay on the ring, to be read through our calls or handed on at exec; what follows them comes over
    /// the lifeline. Needs nothing of the peer but that it looks before it sends again.
    Keep,
}

/// What the sender has to do before a receiver can leave.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Wait {
    /// It takes back what lies behind this place; so many bytes before it are kept.
    TakenBack(RingPos, u64),
    /// It has gone down: it says where, and with that what it echoes.
    Closed,
    /// It completes its echo.
    Echo,
    /// The echo comes.
    Arrival,
}

/// How a receiver that has left goes on.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Outcome {
    /// On the lifeline.
    Come,
    /// On the ring, which ends there, or where its sender says.
    Stay(Option<Claim<RingPos>>),
    /// Not at all: what is left of the stream cannot be told.
    Break,
}

/// What [`begin`] came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Began {
    /// Another one is leaving.
    Busy,
    /// It needs nothing of the sender: [`conclude`] at once, under the same token.
    Over(Outcome),
    /// The receiver was down already.
    Down,
    /// It has to wait.
    Wait(Wait),
}

/// What [`see`] saw.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sees {
    /// The sender has not done its part.
    NotYet,
    /// It has; the next one is this.
    Then(Wait),
    /// That was all.
    Over(Outcome),
}

impl Wait {
    /// What to make of a sender that does not do its part in time.
    pub fn impatient(self) -> Sees {
        match self {
            // It will, at its next call.
            Wait::TakenBack(at, kept) => Sees::Over(taken_back(at, kept)),
            // What it is about to echo cannot be known, not even that it is nothing.
            Wait::Closed => Sees::Over(Outcome::Break),
            Wait::Echo => Sees::Over(Outcome::Stay(None)),
            // The rest waits for the next reader to make room.
            Wait::Arrival => Sees::Over(Outcome::Come),
        }
    }
}

fn taken_back(at: RingPos, kept: u64) -> Outcome {
    if kept == 0 { Outcome::Come } else { Outcome::Stay(Some(at.claim())) }
}

/// Bytes that the sender has published behind `head`, as it claims.
fn there<P: Port>(p: &mut P, c: &Conn, head: RingPos) -> Result<Result<u64, Corrupt>, P::Stop> {
    p.atom(|| ring::available(c.published(), head, c.size))
}

/// The same, where a claim that cannot be ends the leave: nobody can tell what is left of the stream.
macro_rules! there {
    ($p:expr, $c:expr, $head:expr, $over:expr) => {
        match there($p, $c, $head)? {
            Ok(n) => n,
            Err(Corrupt) => return Ok($over(Outcome::Break)),
        }
    };
}

/// Begins to leave. If it has to wait, `leaver` keeps others from receiving until [`conclude`].
pub fn begin<P: Incoming>(p: &mut P, c: &Conn, unread: Unread, leaver: u64) -> Result<Began, P::Stop> {
    if turned_away(p, c)? {
        return Ok(Began::Busy);
    }
    let phase = p.own(&c.ep.rx_phase);
    if phase == RxPhase::Down {
        return Ok(Began::Down);
    }
    p.say(&c.me().rx, REFUSED)?;
    fence(Ordering::SeqCst);
    if p.see(&c.peer().up)?.is_none() {
        return Ok(Began::Over(Outcome::Come));
    }
    let head = p.own(&c.ep.rx_head);
    let kept = if unread == Unread::Keep { there!(p, c, head, Began::Over) } else { 0 };
    let at = head.plus(kept);
    let left_at = Arbiter::Left(at.claim());
    // The arbiter: if this exchange succeeds the receiver has left at `at`. If it fails, the sender went down before.
    let mut found = p.settle(&c.me().rewind, Arbiter::Open, left_at)?;
    if found == Arbiter::Closed && p.lacks(Guard::Arbiter) {
        p.say(&c.me().rewind, left_at)?;
        found = Arbiter::Open;
    }
    // Before anything else: if this process is killed here, the peer must have been told.
    p.notify()?;
    // A holder that was killed before it noted its cut may have left bytes behind that, whose sender does not know.
    let (found, kept) = match found {
        Arbiter::Left(at) if unread == Unread::Keep && p.own(&c.ep.rx_cut).is_none() => {
            (Arbiter::Open, at.behind(head))
        }
        _ => (found, kept),
    };
    let left = match found {
        Arbiter::Open if kept != 0 && p.lacks(Guard::BehindTheCut) => kept,
        Arbiter::Open => there!(p, c, head, Began::Over),
        _ if phase != RxPhase::Ring && p.lacks(Guard::CutInTransit) => 0,
        _ => {
            let end = end(p, c)?;
            switch::left(there!(p, c, head, Began::Over), head, end)
        }
    };
    let (kept, left) = match found {
        Arbiter::Open if unread == Unread::Keep && !p.lacks(Guard::MovesTheCut) => {
            match move_the_cut(p, c, head, kept, left)? {
                Ok(moved) => moved,
                Err(Corrupt) => return Ok(Began::Over(Outcome::Break)),
            }
        }
        _ => (kept, left),
    };
    let at = head.plus(kept);
    let wait = match switch::leave(found, head, kept, left, p.own(&c.ep.rx_cut)) {
        switch::Leave::Down => return Ok(Began::Over(Outcome::Come)),
        switch::Leave::Cut(to) => return Ok(Began::Over(Outcome::Stay(Some(to)))),
        switch::Leave::Rewound => Wait::TakenBack(at, kept),
        switch::Leave::Closed if p.lacks(Guard::DownBeforeLeaving) => Wait::Echo,
        switch::Leave::Closed => Wait::Closed,
    };
    p.say(&c.ep.rx_leaving, leaver)?;
    Ok(Began::Wait(wait))
}

/// More than the `kept` bytes behind `head` may have come before the sender could see that the receiver has left: `left`. The sender may sleep by
/// now, and whoever leaves may have no way to wake it: the cut moves behind them, unless the sender is taking them back. How many bytes
/// are kept, and how many there are.
fn move_the_cut<P: Incoming>(
    p: &mut P,
    c: &Conn,
    head: RingPos,
    mut kept: u64,
    mut left: u64,
) -> Result<Result<(u64, u64), Corrupt>, P::Stop> {
    /// An honest sender looks before it publishes anything more: it takes one. Each time at least a byte more is kept.
    const MOVES: u32 = 8;
    for _ in 0..MOVES {
        if left == kept {
            break;
        }
        let [from, to] = [kept, left].map(|n| Arbiter::Left(head.plus(n).claim()));
        if p.settle(&c.me().rewind, from, to)? != from {
            break;
        }
        kept = left;
        left = match there(p, c, head)? {
            Ok(n) => n,
            Err(Corrupt) => return Ok(Err(Corrupt)),
        };
    }
    Ok(Ok((kept, left)))
}

/// Looks whether the sender has done its part. Needs no token: nobody receives meanwhile.
pub fn see<P: Incoming>(p: &mut P, c: &Conn, wait: Wait) -> Result<Sees, P::Stop> {
    match wait {
        Wait::TakenBack(at, kept) => {
            let done = Some(at.claim());
            if p.see(&c.peer().down)? == done {
                return Ok(Sees::Over(taken_back(at, kept)));
            }
            if !p.peer_ended()? {
                return Ok(Sees::NotYet);
            }
            // In this order: a peer that finishes takes back before its FIN.
            if p.lacks(Guard::TakeBack) || !p.lacks(Guard::LookAfterRewind) && p.see(&c.peer().down)? == done {
                return Ok(Sees::Over(taken_back(at, kept)));
            }
            let up = p.see(&c.peer().up)?;
            let killed_over_it = match p.received()? {
                Some((consumed, queued)) => switch::killed_over_it(up, consumed.plus(queued)),
                None => true,
            };
            if killed_over_it && !p.lacks(Guard::KilledOverIt) {
                return Ok(Sees::Over(Outcome::Break));
            }
            // It was killed before: nobody takes them back.
            let head = p.own(&c.ep.rx_head);
            let end = head.plus(there!(p, c, head, Sees::Over));
            Ok(Sees::Over(Outcome::Stay(Some(end.claim()))))
        }
        Wait::Closed => {
            let down = p.see(&c.peer().down)?;
            if down.is_none() && !p.peer_ended()? {
                return Ok(Sees::NotYet);
            }
            let head = p.own(&c.ep.rx_head);
            if there!(p, c, head, Sees::Over) == 0 {
                return Ok(Sees::Over(Outcome::Come));
            }
            // The sender stores what it repeats (`echo`) before it stores that it has gone down.
            let none = down.is_some() && p.see(&c.peer().echo)?.is_none();
            Ok(if none && !p.lacks(Guard::EchoBeforeDown) {
                Sees::Over(Outcome::Stay(None))
            } else {
                Sees::Then(Wait::Echo)
            })
        }
        Wait::Echo => {
            let head = p.own(&c.ep.rx_head);
            if p.lacks(Guard::DownBeforeLeaving) && there!(p, c, head, Sees::Over) == 0 {
                return Ok(Sees::Over(Outcome::Come));
            }
            let ended = p.peer_ended()?;
            let echo = p.see(&c.peer().echo)?;
            if switch::is_complete(echo) || echo.is_some() && p.lacks(Guard::EchoComplete) {
                return Ok(Sees::Then(Wait::Arrival));
            }
            Ok(if ended { Sees::Over(Outcome::Stay(None)) } else { Sees::NotYet })
        }
        Wait::Arrival => {
            let ended = p.peer_ended()?;
            let (up, echo) = (p.see(&c.peer().up)?, p.see(&c.peer().echo)?);
            if arrived(p, c, up, echo)? {
                return Ok(Sees::Over(Outcome::Come));
            }
            Ok(if ended { Sees::Over(Outcome::Stay(None)) } else { Sees::NotYet })
        }
    }
}

/// Ends what [`begin`] began: `leaver` as there if it had to wait, else 0. `None`: another one has taken it over, since
/// `leaver` was away for too long.
/// `Some(true)`: the receiver is on the lifeline for good; else bytes are left on the ring.
pub fn conclude<P: Incoming>(p: &mut P, c: &Conn, leaver: u64, outcome: Outcome) -> Result<Option<bool>, P::Stop> {
    if p.own(&c.ep.rx_leaving) != leaver {
        return Ok(None);
    }
    let complete = match outcome {
        Outcome::Stay(to) => {
            if to.is_some() {
                p.say(&c.ep.rx_cut, to)?;
            }
            false
        }
        Outcome::Come | Outcome::Break => {
            if outcome == Outcome::Break {
                p.break_off()?;
            }
            if p.own(&c.ep.rx_phase) != RxPhase::Down {
                come_down(p, c)?;
            }
            // Nobody waits for ring bytes any more.
            p.atom(|| c.ep.rx_word.fetch_and(!OPEN, Ordering::AcqRel))?;
            true
        }
    };
    if leaver != 0 {
        p.say(&c.ep.rx_leaving, 0)?;
        // Who was turned away sleeps, or was told of nothing.
        p.tell_own();
    }
    Ok(Some(complete))
}
