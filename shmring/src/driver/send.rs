//! The sending direction.

use super::{Access, Conn, Failure, Guard, Moved, Port};
use crate::family::UP;
use crate::layout::{ALL_SHUT, Arbiter, Echo};
use crate::position::{Corrupt, RingPos, StreamPos};
use crate::ring;
use crate::switch::{self, Again, TxPhase, TxStep, TxView};
use crate::sync::{Ordering, fence};

/// What became of bytes that were to be sent natively.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Given {
    /// So many were taken, at least one.
    Took(u64),
    /// The lifeline takes nothing now.
    Full,
    /// The lifeline has failed.
    Failed(i32),
}

/// What a sender asks of the outside.
pub trait Outgoing: Port {
    /// Up to where this side has sent natively. Nobody may be sending natively at the same time.
    fn natively_sent(&mut self) -> Result<Option<StreamPos>, Self::Stop>;
    /// Whether the lifeline shows the peer's FIN, RST or death, as far as somebody has looked. A look may be due.
    fn ended(&mut self) -> Result<bool, Self::Stop>;
    /// Whether so much lies unread on the lifeline that the peer's FIN may not get through to it.
    fn backlog(&mut self) -> Result<bool, Self::Stop>;
    /// Whether a RST has come.
    fn reset(&mut self) -> Result<bool, Self::Stop>;
    /// Whether the peer was killed, and has not only shut its side down by a way that we do not see.
    fn killed(&mut self) -> Result<bool, Self::Stop>;
    /// Sends bytes of the ring natively, as many as the lifeline takes: up to `len` from position `from`, where `base` is at
    /// home.
    fn give(&mut self, base: RingPos, from: RingPos, len: u64) -> Result<Given, Self::Stop>;
    /// Bytes that may lie on the ring.
    fn limit(&mut self) -> u64;
    /// The ring is empty at `tail`, and the next byte goes home; what was at home was position `base`.
    fn drained(&mut self, _tail: RingPos, _base: RingPos) {}
    /// Whether so many bytes that lie unread are to be repeated over the lifeline: not if it does not take them, whoever reads there.
    /// What comes next would wait behind them.
    fn repeats(&mut self, _unread: u64) -> bool {
        true
    }
    /// Whether the one whose program fills room on the ring, as `tx_reserved` says, does so still.
    fn fills(&mut self, _owner: u64) -> bool {
        true
    }
    /// Tells the kernel of a cork that it does not know of.
    fn tell_cork(&mut self);
    /// Latches an error that the kernel would have queued.
    fn latch(&mut self, failure: Failure);
    /// Says why the direction is where it is.
    fn because(&mut self, why: crate::family::Reason);
    /// The direction went up, or down.
    fn moved(&mut self, _: Moved) {}
}

/// What a caller wants of the sending direction.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Aim {
    /// To send, or to serve what the receiver asks.
    Send,
    /// To take it down for good.
    Leave,
}

/// Where the next byte goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Turn {
    /// To the kernel.
    Lifeline,
    /// To the ring.
    Ring,
    /// Nowhere now: the lifeline does not take what has to go there first.
    Blocked,
    /// Nowhere: an error is latched.
    Latched,
    /// Nowhere: this happened.
    Failed(Failure),
}

/// A piece of work between two looks.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Stage {
    /// See whose turn it is.
    Look,
    /// Go up.
    GoUp,
    /// Go down, unless the receiver has left first.
    GoDown,
    /// Begin to take back what the receiver, who has left, did not read: from there on.
    TakeBack(RingPos),
    /// Send the next piece of what is sent again.
    Resend,
}

/// What comes after a [`Stage`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Next {
    /// Another one.
    Then(Stage),
    /// Nothing: this is the answer.
    Done(Turn),
}

/// Looks that one turn takes at most. An honest peer needs four: up, down, all sent again, done.
const LOOKS: usize = 8;

/// Serves the protocol until it is clear where the next byte goes.
#[inline(always)]
pub fn turn<P: Outgoing>(p: &mut P, c: &Conn, aim: Aim) -> Result<Turn, P::Stop> {
    match look(p, c, aim)? {
        Next::Done(turn) => Ok(turn),
        Next::Then(stage) => work(p, c, aim, stage),
    }
}

#[cold]
#[inline(never)]
fn work<P: Outgoing>(p: &mut P, c: &Conn, aim: Aim, first: Stage) -> Result<Turn, P::Stop> {
    let mut at = first;
    let mut looks = 0;
    loop {
        if at == Stage::Look {
            looks += 1;
            if looks == LOOKS {
                return Ok(Turn::Failed(Failure::Corrupt));
            }
        }
        match stage(p, c, aim, at)? {
            Next::Done(turn) => return Ok(turn),
            Next::Then(next) => at = next,
        }
    }
}

/// Does one piece of work.
pub fn stage<P: Outgoing>(p: &mut P, c: &Conn, aim: Aim, at: Stage) -> Result<Next, P::Stop> {
    match at {
        Stage::Look => look(p, c, aim),
        Stage::GoUp => go_up(p, c),
        Stage::GoDown => go_down(p, c),
        Stage::TakeBack(from) => take_back(p, c, from),
        Stage::Resend => resend(p, c),
    }
}

/// Sees whose turn it is.
#[inline(always)]
pub fn look<P: Outgoing>(p: &mut P, c: &Conn, aim: Aim) -> Result<Next, P::Stop> {
    let phase = p.own(&c.ep.tx_phase);
    if p.own(&c.ep.latched) != 0 && (aim == Aim::Send || phase == TxPhase::Rewind) {
        return Ok(Next::Done(Turn::Latched));
    }
    match phase {
        TxPhase::Down => return Ok(Next::Done(Turn::Lifeline)),
        TxPhase::Rewind => return Ok(Next::Then(Stage::Resend)),
        // UP is set and the phase says Native: another holder was killed on its way up. It may have published X, and UP has
        // kept everybody from sending natively since: to go up now publishes the same X.
        TxPhase::Native if p.own(&c.ep.tx_word) & UP != 0 && !p.lacks(Guard::Heal) => {
            return Ok(Next::Then(Stage::GoUp));
        }
        TxPhase::Native | TxPhase::Ring => {}
    }
    let view = TxView {
        phase,
        rx: p.see(&c.peer().rx)?,
        rewind: p.see(&c.peer().rewind)?,
        head: p.own(&c.ep.tx_head),
        tail: p.own(&c.ep.tx_tail),
        fin: aim == Aim::Leave || p.own(&c.ep.tx_taken) != 0 || p.ended()?,
    };
    Ok(match switch::tx(view) {
        TxStep::Lifeline if aim == Aim::Leave => {
            // Native senders may be at work; nobody can go up any more.
            p.say(&c.ep.tx_phase, TxPhase::Down)?;
            Next::Done(Turn::Lifeline)
        }
        TxStep::Lifeline => Next::Done(Turn::Lifeline),
        TxStep::Ring => Next::Done(Turn::Ring),
        TxStep::GoUp => Next::Then(Stage::GoUp),
        TxStep::GoDown => Next::Then(Stage::GoDown),
        TxStep::Rewind { from } => Next::Then(Stage::TakeBack(from)),
        TxStep::Corrupt => Next::Done(Turn::Failed(Failure::Corrupt)),
    })
}

fn go_up<P: Outgoing>(p: &mut P, c: &Conn) -> Result<Next, P::Stop> {
    let give_up =
        |p: &mut P| p.atom(|| c.ep.tx_word.fetch_and(!UP, Ordering::AcqRel)).map(|_| Next::Done(Turn::Lifeline));
    if p.lacks(Guard::CountSenders) {
        p.atom(|| c.ep.tx_word.fetch_or(UP, Ordering::AcqRel))?;
    } else {
        match p.settle(&c.ep.tx_word, 0, UP)? {
            0 if p.own(&c.ep.wr_shut) != 0 || p.backlog()? => return give_up(p),
            0 => {}
            // Set by a holder that was killed.
            word if word & UP != 0 => {}
            // Native sends are under way.
            _ => return Ok(Next::Done(Turn::Lifeline)),
        }
    }
    let Some(x) = p.natively_sent()? else { return give_up(p) };
    p.note(&c.sent().base, RingPos::START);
    p.say(&c.me().up, Some(x.claim()))?;
    p.note(&c.ep.tx_up, x);
    p.say(&c.ep.tx_phase, TxPhase::Ring)?;
    p.because(crate::family::Reason::None);
    p.moved(Moved::Up(x));
    // A receiver that refuses meanwhile sees `up`, or the next look sees its refusal.
    fence(Ordering::SeqCst);
    p.notify()?;
    Ok(if p.lacks(Guard::LookAfterUp) { Next::Done(Turn::Ring) } else { Next::Then(Stage::Look) })
}

/// Returns the sending direction to the lifeline, unless the receiver left first.
///
/// What lies unread is *also* sent over the lifeline, as an echo: the receiver may yet have to leave, and by
/// then we may be gone, having finished. One that stays drops it.
fn go_down<P: Outgoing>(p: &mut P, c: &Conn) -> Result<Next, P::Stop> {
    p.tell_cork();
    let tail = p.own(&c.ep.tx_tail);
    if !p.lacks(Guard::Heal) {
        // A holder that died after its note of the tail may not have published it.
        p.say(&c.sent().tail, tail.claim())?;
    }
    // Closed already: a holder died on its way down, or the peer moved its own word; down either way.
    if p.settle(&c.peer().rewind, Arbiter::Open, Arbiter::Closed)?.left().is_some() {
        if !p.lacks(Guard::Arbiter) {
            return Ok(Next::Then(Stage::Look));
        }
        p.say(&c.peer().rewind, Arbiter::Closed)?;
    }
    let known = p.own(&c.ep.tx_head);
    // Up to where it was read, which may be farther than room was given back.
    let read =
        p.atom(|| ring::refresh(c.given_back(), known, tail).map(|head| ring::read_up_to(c.given_back(), head, tail)))?;
    let unread = read.ok().filter(|&read| read != tail);
    let (lost, repeats) = match unread {
        None => (None, false),
        Some(_) => fate(p, c)?,
    };
    let mut again = p.own(&c.ep.tx_again);
    // The decision of a holder that died on its way down stands: it may have published it.
    if !matches!(again, Again::Nothing | Again::Echo(_)) {
        again = match unread {
            Some(from) if repeats && p.repeats(tail.since(from)) && !p.lacks(Guard::Echo) => Again::Echo(from),
            _ => Again::Nothing,
        };
        p.say(&c.ep.tx_again, again)?;
    }
    let echo = again.from().map(|from| Echo { from: from.claim(), complete: false });
    if p.lacks(Guard::EchoBeforeDown) {
        p.say(&c.me().down, Some(tail.claim()))?;
        p.say(&c.me().echo, echo)?;
    } else {
        p.say(&c.me().echo, echo)?;
        p.say(&c.me().down, Some(tail.claim()))?;
    }
    let phase = if again == Again::Nothing { TxPhase::Down } else { TxPhase::Rewind };
    if let (true, Some(from)) = (p.lacks(Guard::Heal), again.from()) {
        p.note(&c.ep.tx_head, from);
    }
    p.say(&c.ep.tx_phase, phase)?;
    p.because(crate::family::Reason::Down);
    p.moved(Moved::Down(tail));
    if let Some(failure) = lost {
        p.latch(failure);
    }
    p.notify()?;
    Ok(Next::Then(Stage::Look))
}

/// What the end of the peer, if it has ended, means for bytes of ours that lie unread: the error that they come to, had they
/// been the kernel's; and whether they are repeated.
fn fate<P: Outgoing>(p: &mut P, c: &Conn) -> Result<(Option<Failure>, bool), P::Stop> {
    if p.own(&c.ep.rx_fin) != 0 {
        // The kernel has had its RST.
        if p.reset()? {
            return Ok((None, false));
        }
        // A close that found bytes unread would have sent a RST (tcp_close). They came after it, and the RST in answer
        // makes that EPIPE (tcp_reset in CLOSE_WAIT).
        if p.see(&c.peer().gone)? != 0 {
            return Ok((Some(Failure::Pipe), false));
        }
        // A FIN without shutdown. A peer that was killed could not say so: had our bytes been in its socket, there would
        // have been a RST. Unless the peer only shut its side by a way that we do not see.
        if p.see(&c.peer().wr_shut)? == 0 && p.killed()? {
            return Ok((Some(Failure::Reset), false));
        }
    }
    Ok((None, p.see(&c.peer().wr_shut)? & ALL_SHUT == 0))
}

/// The receiver left first, at `from`.
fn take_back<P: Outgoing>(p: &mut P, c: &Conn, from: RingPos) -> Result<Next, P::Stop> {
    // From here on the receiver moves the place no more. Taken already: another holder was killed here.
    let place = p.settle(&c.peer().rewind, Arbiter::Left(from.claim()), Arbiter::Taken(from.claim()))?;
    if place.left() != Some(from.claim()) {
        return Ok(Next::Then(Stage::Look));
    }
    p.tell_cork();
    p.note(&c.ep.tx_head, from);
    p.say(&c.ep.tx_again, Again::Rewind(from))?;
    p.say(&c.ep.tx_phase, TxPhase::Rewind)?;
    Ok(Next::Then(Stage::Resend))
}

/// Sends a piece of what the departed receiver left unread, or of the echo, over the lifeline.
fn resend<P: Outgoing>(p: &mut P, c: &Conn) -> Result<Next, P::Stop> {
    let again = p.own(&c.ep.tx_again);
    let (tail, up, base) = (p.own(&c.ep.tx_tail), p.own(&c.ep.tx_up), p.own(&c.ep.tx_base));
    let at = if p.lacks(Guard::Heal) {
        p.own(&c.ep.tx_head)
    } else {
        // The kernel knows how much has been sent since the direction went up, also by a holder that died.
        let sent = p.natively_sent()?.map_or(0, |n| n.since(up));
        match again.resume(tail, sent) {
            Ok(at) => at,
            Err(Corrupt) => {
                p.say(&c.ep.tx_phase, TxPhase::Down)?;
                return Ok(Next::Done(Turn::Failed(Failure::Reset)));
            }
        }
    };
    p.note(&c.ep.tx_head, at);
    if at != tail {
        if p.reset()? {
            // Nothing gets there any more. The kernel keeps its error, for the call or the poll that asks next.
            p.say(&c.ep.tx_phase, TxPhase::Down)?;
            return Ok(Next::Then(Stage::Look));
        }
        return Ok(match p.give(base, at, tail.since(at))? {
            Given::Took(n) => {
                p.note(&c.ep.tx_head, at.plus(n));
                Next::Then(Stage::Resend)
            }
            Given::Full => Next::Done(Turn::Blocked),
            Given::Failed(e) => {
                p.say(&c.ep.tx_phase, TxPhase::Down)?;
                Next::Done(Turn::Failed(Failure::Os(e)))
            }
        });
    }
    match again {
        Again::Echo(from) => p.say(&c.me().echo, Some(Echo { from: from.claim(), complete: true }))?,
        Again::Rewind(from) => {
            p.say(&c.me().down, Some(from.claim()))?;
            p.because(crate::family::Reason::Down);
        }
        Again::Undecided | Again::Nothing => {}
    }
    p.say(&c.ep.tx_phase, TxPhase::Down)?;
    p.notify()?;
    Ok(Next::Then(Stage::Look))
}

/// After the FIN: what is left of an echo stays unsent.
pub fn finished<P: Outgoing>(p: &mut P, c: &Conn) -> Result<(), P::Stop> {
    if p.own(&c.ep.tx_phase) == TxPhase::Rewind {
        p.say(&c.ep.tx_phase, TxPhase::Down)?;
    }
    Ok(())
}

/// What became of bytes that were to go on the ring.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Put<F> {
    /// So many are there, at least one.
    Took(u64),
    /// There is no room.
    Full,
    /// There was nothing to put there.
    Nothing,
    /// The bytes could not be had.
    Fault(F),
    /// The receiver's head is nonsense.
    Corrupt,
}

/// Sends up to `want` bytes on the ring, where it is this direction's turn. `fill` gets the position at home, the tail and
/// the room behind it, lays bytes there, and says how many.
#[inline(always)]
pub fn put<P: Outgoing, F>(
    p: &mut P,
    c: &Conn,
    want: u64,
    fill: impl FnOnce(&mut P, RingPos, RingPos, u64) -> Result<Result<u64, F>, P::Stop>,
) -> Result<Put<F>, P::Stop> {
    let Ok((base, room)) = room(p, c, want)? else { return Ok(Put::Corrupt) };
    if room == 0 {
        return Ok(Put::Full);
    }
    let tail = p.own(&c.ep.tx_tail);
    let n = match fill(p, base, tail, room)? {
        Ok(0) => return Ok(Put::Nothing),
        Ok(n) => n,
        Err(fault) => return Ok(Put::Fault(fault)),
    };
    publish(p, c, base, n)?;
    Ok(Put::Took(n))
}

/// The first half of [`put`]: the position at home, and how many of `want` bytes there is room for behind the tail.
#[inline(always)]
pub fn room<P: Outgoing>(p: &mut P, c: &Conn, want: u64) -> Result<Result<(RingPos, u64), Corrupt>, P::Stop> {
    let limit = p.limit();
    let tail = p.own(&c.ep.tx_tail);
    let mut head = p.own(&c.ep.tx_head);
    let mut base = p.own(&c.ep.tx_base);
    let in_home = tail.since(base).saturating_add(want) <= P::HOME;
    if limit.saturating_sub(tail.since(head)) < want || !in_home {
        head = match p.atom(|| ring::refresh(c.given_back(), head, tail))? {
            Ok(head) => head,
            Err(Corrupt) => return Ok(Err(Corrupt)),
        };
        p.note(&c.ep.tx_head, head);
        if head == tail && tail != base {
            // Drained: start again at home, where the cache and the page table are warm.
            p.drained(tail, base);
            base = tail;
            p.note(&c.ep.tx_base, base);
            p.atom(|| ring::rebase(c.sent(), base))?;
        }
    }
    Ok(Ok((base, limit.saturating_sub(tail.since(head)).min(want))))
}

/// The second half of [`put`]: `n` bytes that lie behind the tail, in [`room`] with `base` at home, are the receiver's.
#[inline(always)]
pub(super) fn publish<P: Port>(p: &mut P, c: &Conn, base: RingPos, n: u64) -> Result<(), P::Stop> {
    let new = p.own(&c.ep.tx_tail).plus(n);
    p.say(&c.ep.tx_tail, new)?;
    if !p.lacks(Guard::Heal) {
        // The base that goes with this tail, also if a holder died after its note of a new one.
        p.atom(|| ring::rebase(c.sent(), base))?;
    }
    p.atom(|| ring::publish(c.sent(), new))?;
    p.quiet(|| {
        let (bytes, messages) = (&c.ep.tx_bytes, &c.ep.tx_msgs);
        bytes.store(bytes.load(Ordering::Relaxed) + n, Ordering::Relaxed);
        messages.store(messages.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    });
    p.notify_last()
}
