//! The receiving direction.

use super::{Access, Conn, Guard, Port};
use crate::family::OPEN;
use crate::layout::{Arbiter, Echo, READY};
use crate::position::Corrupt;
use crate::position::{Claim, RingPos, StreamPos};
use crate::ring;
use crate::switch::{self, RxPhase, RxStep, RxView, Transit};
use crate::sync::Ordering;

/// What a native receive came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Native {
    /// So many bytes, at least one.
    Bytes(u64),
    /// The end of the stream.
    End,
    /// Nothing is there.
    Nothing,
    /// This errno.
    Failed(i32),
}

/// What a receiver asks of the outside.
pub trait Incoming: Port {
    /// Why bytes of the ring could not be handed out.
    type Fault;
    /// How a stream ends whose other direction was taken down, if not as the kernel says.
    type Ending;

    /// How far the lifeline was consumed, and bytes lying there; `None`: it is no connection any more. Nobody may be
    /// reading at the same time.
    fn received(&mut self) -> Result<Option<(StreamPos, u64)>, Self::Stop>;
    /// Whether the lifeline has ended; and bytes lying there, looked at after that.
    fn lying(&mut self) -> Result<(bool, u64), Self::Stop>;
    /// Whether the lifeline shows bytes or an end. An end is noted.
    fn shows(&mut self) -> Result<bool, Self::Stop>;
    /// Whether the connection was reset, or has ended both ways.
    fn broken(&mut self) -> Result<bool, Self::Stop>;
    /// Whether the peer has finished, or the connection is no more.
    fn peer_ended(&mut self) -> Result<bool, Self::Stop>;
    /// Receives up to `max` bytes natively, without waiting.
    fn native(&mut self, max: u64) -> Result<Native, Self::Stop>;
    /// Looks at up to `max` bytes that lie on the lifeline behind the next `before`, which this peek has seen. Only a receiver
    /// that peeks is asked.
    fn peek_behind(&mut self, _before: u64, _max: u64) -> Result<Native, Self::Stop> {
        Ok(Native::Nothing)
    }
    /// Drops up to `n` bytes that lie on the lifeline; how many, 0 if it could not.
    fn discard(&mut self, n: u64) -> Result<u64, Self::Stop>;
    /// Hands out up to `n` bytes of the ring from position `at`; how many.
    fn copy(&mut self, at: RingPos, n: u64) -> Result<Result<u64, Self::Fault>, Self::Stop>;
    /// The lifeline has ended and the ring is empty: takes our sending direction down, so that the kernel gives its sequence
    /// of errors, and says how the stream ends if not as the kernel says.
    fn end_sending(&mut self) -> Result<Option<Self::Ending>, Self::Stop>;
    /// Whether this receiver only looks ahead (`MSG_PEEK`).
    fn peeks(&self) -> bool;
    /// Bytes that may lie on the ring.
    fn limit(&mut self) -> u64;
    /// Whether the one who said, in `rx_leaving`, that it leaves is still about to.
    fn leaves(&mut self, leaver: u64) -> bool;
    /// Whether the one who looks at bytes of the ring where they lie, as `rx_viewed` says, has them still.
    fn views(&mut self, _viewer: u64) -> bool {
        true
    }
    /// Whether the ring came from a program image before this one, which has read from the lifeline we do not know what.
    fn handed_on(&self) -> bool;
    /// Resets the connection: its bytes cannot be delivered where they must go.
    fn break_off(&mut self) -> Result<(), Self::Stop>;
    /// Where the ring begins (`"start"`) or ends contradicts what was read: that, and the peer's claim.
    fn contradicts(&mut self, _of: &'static str, _read: u64, _claimed: u64) {}
    /// The receiver went up, to the ring that begins there (`Some`), or down.
    fn moved(&mut self, _up: Option<StreamPos>) {}
    /// The ring has ended, and all that was on it has been read.
    fn drained(&mut self) {}
}

/// Where a receive stands. A peek goes on from here without consuming.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Place {
    /// The receiver's phase.
    pub phase: RxPhase,
    /// Its head.
    pub head: RingPos,
    /// The end of the lifeline was seen: what was published before it is visible.
    pub seen_end: bool,
    /// This receive has bytes.
    pub some: bool,
    /// Bytes of the lifeline that a peek has seen before those of the ring, and has left there.
    pub before: u64,
}

impl Place {
    /// Where the direction is.
    #[inline(always)]
    pub fn of<P: Port>(p: &mut P, c: &Conn) -> Place {
        Place { phase: p.own(&c.ep.rx_phase), head: p.own(&c.ep.rx_head), seen_end: false, some: false, before: 0 }
    }
}

/// What one step of a receive came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Brought<F, E> {
    /// Nothing yet: look again, from the new place.
    Again,
    /// So many bytes.
    Bytes(u64),
    /// So many bytes, and this receive must not go on.
    Last(u64),
    /// Nothing is there.
    Nothing,
    /// What the lifeline said, on which the direction is: a latched error goes before its end.
    Lifeline(Native),
    /// What the lifeline said behind an empty ring, or before one that a RST has cut off.
    Behind(Native),
    /// The stream ends so.
    Ended(E),
    /// There is no more for this receive: it has bytes, and the ring is empty; or it is a peek, and sees no further.
    NoMore,
    /// The program's memory cannot be written.
    Fault(F),
    /// The kernel does not say how far the lifeline was read.
    Unknown,
    /// The peer's claims contradict what was read: [`Incoming::contradicts`] has been told.
    Corrupt,
}

type Step<P> = Result<Brought<<P as Incoming>::Fault, <P as Incoming>::Ending>, <P as Port>::Stop>;

/// Whether the caller must not receive: another one leaves the ring, and waits for the peer's part. One that died over
/// it, or does not come back, is no longer waited for.
#[inline(always)]
pub(super) fn turned_away<P: Incoming>(p: &mut P, c: &Conn) -> Result<bool, P::Stop> {
    match p.own(&c.ep.rx_leaving) {
        0 => Ok(false),
        leaver if p.leaves(leaver) => Ok(true),
        _ => p.say(&c.ep.rx_leaving, 0).map(|()| false),
    }
}

/// Where the ring ends, if it does: where the sender went down, or where this side cut it.
#[inline(always)]
pub(super) fn end<P: Port>(p: &mut P, c: &Conn) -> Result<Option<Claim<RingPos>>, P::Stop> {
    let cut = p.own(&c.ep.rx_cut);
    let rewind = p.see(&c.me().rewind)?;
    let down = p.see(&c.peer().down)?;
    let rewind = if p.lacks(Guard::HealCut) && rewind != Arbiter::Closed { Arbiter::Open } else { rewind };
    Ok(switch::end(cut, rewind, down))
}

/// Brings up to `want` bytes from where they are, and moves `place` on. Never waits.
#[inline(always)]
pub fn bring<P: Incoming>(p: &mut P, c: &Conn, place: &mut Place, want: u64) -> Step<P> {
    if turned_away(p, c)? {
        return Ok(Brought::Nothing);
    }
    let brought = match place.phase {
        RxPhase::Ring => ring(p, c, place, want)?,
        _ => lifeline(p, c, place, want)?,
    };
    place.some |= matches!(brought, Brought::Bytes(_));
    Ok(brought)
}

#[inline(always)]
fn ring<P: Incoming>(p: &mut P, c: &Conn, place: &mut Place, want: u64) -> Step<P> {
    let Place { head, phase, .. } = *place;
    let down = end(p, c)?;
    let step = match p.atom(|| ring::available(c.published(), head, c.size))? {
        Ok(available) => switch::rx(RxView { phase, up: None, down, head, available }),
        Err(Corrupt) => RxStep::Corrupt,
    };
    let n = match step {
        RxStep::Ring(n) => n.min(want),
        RxStep::Empty if place.some => return Ok(Brought::NoMore),
        RxStep::Empty => return empty(p, c, place, want),
        RxStep::Ended if head == p.own(&c.ep.rx_head) && p.own(&c.ep.rx_phase) == RxPhase::Ring => {
            if takes_over(p, c, head)? {
                return Ok(Brought::Again);
            }
            come_down(p, c)?;
            place.phase = RxPhase::Down;
            return Ok(Brought::Again);
        }
        RxStep::Ended => return behind(p, c, place, want),
        _ => {
            p.contradicts("end", head.number(), down.map_or(0, Claim::number));
            return Ok(Brought::Corrupt);
        }
    };
    let room = if p.lacks(Guard::SpaceAfterConsume) { c.size - p.own(&c.published().tail).behind(head) } else { 0 };
    let n = match p.copy(head, n)? {
        Ok(n) => n,
        Err(fault) => return Ok(Brought::Fault(fault)),
    };
    place.head = head.plus(n);
    if !p.peeks() {
        p.say(&c.ep.rx_head, place.head)?;
        let given_back = !is_viewed(p, c)?;
        if given_back {
            p.atom(|| ring::consume(c.consumed(), place.head))?;
        } else {
            p.atom(|| ring::read_on(c.consumed(), place.head))?;
        }
        p.quiet(|| {
            let (bytes, messages) = (&c.ep.rx_bytes, &c.ep.rx_msgs);
            bytes.store(bytes.load(Ordering::Relaxed) + n, Ordering::Relaxed);
            messages.store(messages.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        });
        if given_back {
            space_freed(p, c, place.head, room, n)?;
        }
        if down == Some(place.head.claim()) {
            p.drained();
        }
    }
    Ok(Brought::Bytes(n))
}

/// Whether what is received is not to be given back now, since somebody looks at what lies before it.
#[inline(always)]
pub(super) fn is_viewed<P: Incoming>(p: &mut P, c: &Conn) -> Result<bool, P::Stop> {
    match p.own(&c.ep.rx_viewed) {
        0 => Ok(false),
        viewer => still_viewed(p, c, viewer),
    }
}

#[cold]
fn still_viewed<P: Incoming>(p: &mut P, c: &Conn, viewer: u64) -> Result<bool, P::Stop> {
    if p.lacks(Guard::KeepViewed) {
        return Ok(false);
    }
    if p.views(viewer) {
        return Ok(true);
    }
    p.say(&c.ep.rx_viewed, 0)?;
    Ok(false)
}

/// Wakes a writer that waits for space, once there is enough of it. `head` was just given back.
///
/// A writer waits only while more than two thirds of the ring are in use. So the fence that finds its wish
/// is needed only when the tail is that far from a head that an earlier fence has shown to it: with less,
/// the writer either saw that head and does not wait, or waited already when that fence looked.
#[inline(always)]
fn space_freed<P: Incoming>(p: &mut P, c: &Conn, head: RingPos, before: u64, n: u64) -> Result<(), P::Stop> {
    let limit = p.limit();
    let shown = p.own(&c.ep.rx_shown);
    if p.own(&c.published().tail).behind(shown) <= limit / 2 {
        return Ok(());
    }
    p.note(&c.ep.rx_shown, head);
    let third = (limit / 3).max(1);
    if p.lacks(Guard::SpaceAfterConsume) && (before >= third || before + n < third) {
        return Ok(());
    }
    serve_wish(p, c, head, limit, P::notify_last)
}

#[inline(never)]
pub(super) fn serve_wish<P: Port>(
    p: &mut P,
    c: &Conn,
    head: RingPos,
    limit: u64,
    notify: impl FnOnce(&mut P) -> Result<(), P::Stop>,
) -> Result<(), P::Stop> {
    let wish = p.atom(|| ring::wish(c.peer(), c.published(), head, limit).unwrap_or(0))?;
    if wish != 0 {
        notify(p)?;
        // The wish has a number of its own: another reader takes back no other.
        if !p.lacks(Guard::ServedByReader) {
            p.atom(|| ring::served(c.peer(), wish))?;
        }
    }
    Ok(())
}

/// Whether [`heal`] is wanted: the ring is empty, and its sender does not see that, or waits for room. So it is for a moment in each receive, and
/// for ever if a holder of this end was killed there. Memory only; who asks need not have the direction.
#[inline(always)]
pub fn is_left_undone(c: &Conn) -> bool {
    let head = c.ep.rx_head.load(Ordering::Relaxed).claim();
    c.published().tail.load(Ordering::Relaxed) == head && is_undone_behind(c, head)
}

/// The same of a ring that was found empty, with this head.
#[inline(always)]
pub fn is_undone_behind(c: &Conn, head: Claim<RingPos>) -> bool {
    let waits = || c.peer().want_space.load(Ordering::Relaxed) != 0;
    c.ep.rx_viewed.load(Ordering::Relaxed) == 0 && (c.consumed().head.load(Ordering::Relaxed) != head || waits())
}

/// Of an empty ring at which nobody looks: a holder of this end was killed after it had stored the new head in the family's memory, and before
/// it stored it where the sender sees it, or before it woke the sender that waits for room; or while it looked.
pub(super) fn heal<P: Incoming>(p: &mut P, c: &Conn, head: RingPos) -> Result<(), P::Stop> {
    if p.lacks(Guard::Heal) {
        return Ok(());
    }
    if p.own(&c.consumed().head) != head.claim() {
        p.atom(|| ring::consume(c.consumed(), head))?;
    }
    if p.own(&c.peer().want_space) != 0 {
        let limit = p.limit();
        serve_wish(p, c, head, limit, P::notify)?;
    }
    Ok(())
}

/// The ring is empty, and has not ended.
#[inline(never)]
fn empty<P: Incoming>(p: &mut P, c: &Conn, place: &mut Place, want: u64) -> Step<P> {
    if !place.seen_end {
        if !p.peeks() && !is_viewed(p, c)? {
            heal(p, c, place.head)?;
        }
        if !p.shows()? {
            return Ok(Brought::Nothing);
        }
        // What was published before the end is visible after it: look at the ring again.
        place.seen_end = true;
        if !p.lacks(Guard::LookAfterEnd) {
            return Ok(Brought::Again);
        }
    }
    if p.own(&c.ep.rx_fin) != 0
        && let Some(last) = p.end_sending()?
    {
        return Ok(Brought::Ended(last));
    }
    let got = p.native(want)?;
    Ok(bytes_or(p, got, Brought::Behind))
}

/// A peek has seen all of a ring that has ended, and looks at the lifeline: behind what it has seen there before the ring, and
/// behind what an echo repeats.
#[cold]
fn behind<P: Incoming>(p: &mut P, c: &Conn, place: &Place, want: u64) -> Step<P> {
    let Some((consumed, _)) = p.received()? else { return Ok(Brought::NoMore) };
    let up = match p.own(&c.ep.rx_phase) {
        RxPhase::Ring => p.own(&c.ep.rx_up),
        _ => consumed.plus(place.before),
    };
    let rewind = p.see(&c.me().rewind)?;
    let echo = p.see(&c.peer().echo)?;
    let repeated = switch::skip(rewind, echo, up, place.head, c.size);
    let got = p.peek_behind(repeated.map_or(place.before, |to| to.since(consumed)), want)?;
    Ok(bytes_or(p, got, Brought::Behind))
}

/// Bytes, behind which a peek does not look; or what else the lifeline said.
#[inline(always)]
fn bytes_or<P: Incoming>(
    p: &P,
    got: Native,
    other: impl FnOnce(Native) -> Brought<P::Fault, P::Ending>,
) -> Brought<P::Fault, P::Ending> {
    match got {
        // More buffers than one call took.
        Native::Bytes(n) if !p.peeks() => Brought::Bytes(n),
        Native::Bytes(n) => Brought::Last(n),
        got => other(got),
    }
}

/// On the lifeline: for good, or before the ring.
#[inline(never)]
fn lifeline<P: Incoming>(p: &mut P, c: &Conn, place: &mut Place, want: u64) -> Step<P> {
    let mut bound = want;
    if place.phase == RxPhase::Down {
        loop {
            match skip(p, c)? {
                Skipped::All => break,
                Skipped::Some => {}
                Skipped::NotYet => return Ok(Brought::Nothing),
            }
        }
    } else {
        let mut up = p.see(&c.peer().up)?;
        if place.phase == RxPhase::Native && up.is_none() && !p.lacks(Guard::BoundedNative) {
            // What lies there while the sender is still native is before X. Had we received without bound, it could have
            // gone up, come down and sent natively in between, and one call would return bytes from both sides of the ring.
            let (ended, queued) = p.lying()?;
            if !ended {
                bound = bound.min(queued);
            }
            up = p.see(&c.peer().up)?;
        }
        match switch::rx(RxView { phase: place.phase, up, down: None, head: place.head, available: 0 }) {
            RxStep::Transit { x } => return transit(p, c, place, want, x),
            RxStep::Lifeline => {}
            _ => {
                p.contradicts("start", place.head.number(), up.map_or(0, Claim::bytes));
                return Ok(Brought::Corrupt);
            }
        }
        if bound == 0 {
            return Ok(Brought::Nothing);
        }
    }
    let got = p.native(bound)?;
    Ok(bytes_or(p, got, Brought::Lifeline))
}

/// The sender is on the ring from `x` on; what lies before that comes first.
fn transit<P: Incoming>(p: &mut P, c: &Conn, place: &mut Place, want: u64, x: Claim<StreamPos>) -> Step<P> {
    if place.phase == RxPhase::Native {
        place.phase = RxPhase::Transit;
        p.say(&c.ep.rx_phase, place.phase)?;
    }
    let Some((consumed, queued)) = p.received()? else { return Ok(Brought::Unknown) };
    match switch::transit(x, consumed, queued) {
        Transit::Lifeline(left) => match p.native(left.min(want))? {
            Native::Bytes(n) if n == left => {
                place.phase = RxPhase::Ring;
                if p.peeks() {
                    place.before = n;
                } else {
                    go_up(p, c, consumed.plus(n))?;
                }
                Ok(Brought::Bytes(n))
            }
            // What follows lies on the ring only if this was all before it.
            Native::Bytes(n) if p.peeks() => Ok(Brought::Last(n)),
            Native::Bytes(n) => Ok(Brought::Bytes(n)),
            other => Ok(Brought::Behind(other)),
        },
        // A RST has dropped what was on its way, but for what has come since the kernel was asked. An echo may have come
        // behind that.
        Transit::Wait(left) if p.broken()? => {
            let got = p.native(left.min(want))?;
            Ok(bytes_or(p, got, Brought::Behind))
        }
        Transit::Wait(_) => Ok(Brought::Nothing),
        Transit::Ring(x) => {
            place.phase = RxPhase::Ring;
            go_up(p, c, x)?;
            Ok(Brought::Again)
        }
        Transit::Corrupt => {
            p.contradicts("start", consumed.bytes(), x.bytes());
            Ok(Brought::Corrupt)
        }
    }
}

/// The ring ends at `head`, since a holder has left there that was killed before it noted its cut. If more has come behind that, whose sender may
/// not know, as in `leave::move_the_cut`: whether it is this receiver's.
#[cold]
fn takes_over<P: Incoming>(p: &mut P, c: &Conn, head: RingPos) -> Result<bool, P::Stop> {
    let left = Arbiter::Left(head.claim());
    if p.own(&c.ep.rx_cut).is_some() || p.see(&c.me().rewind)? != left || p.lacks(Guard::MovesTheCut) {
        return Ok(false);
    }
    let Ok(n @ 1..) = p.atom(|| ring::available(c.published(), head, c.size))? else { return Ok(false) };
    let cut = head.plus(n).claim();
    let moved = p.settle(&c.me().rewind, left, Arbiter::Left(cut))? == left;
    if moved {
        p.say(&c.ep.rx_cut, Some(cut))?;
    }
    Ok(moved)
}

/// Moves the receiver to the ring.
fn go_up<P: Incoming>(p: &mut P, c: &Conn, x: StreamPos) -> Result<(), P::Stop> {
    p.note(&c.ep.rx_up, x);
    p.say(&c.ep.rx_phase, RxPhase::Ring)?;
    // The sender has told of what lies there when it came; others have gone to sleep since, on the lifeline.
    if !p.lacks(Guard::TellOnRing) {
        p.tell_own();
    }
    p.moved(Some(x));
    Ok(())
}

/// Moves the receiver to the lifeline for good, from where it has read the ring to.
#[cold]
pub fn come_down<P: Incoming>(p: &mut P, c: &Conn) -> Result<(), P::Stop> {
    let rewind = p.see(&c.me().rewind)?;
    let echo = p.see(&c.peer().echo)?;
    let up = p.own(&c.ep.rx_up);
    let to = switch::skip(rewind, echo, up, p.own(&c.ep.rx_head), c.size);
    if to.is_some() && !p.lacks(Guard::Skip) {
        // Nothing was read there since the ring began; of what an image before this one has read, only the kernel knows.
        let counted = if p.handed_on() { None } else { p.own(&c.ep.rx_at).or(Some(up)) };
        p.note(&c.ep.rx_at, counted);
        p.say(&c.ep.rx_skip, to)?;
    }
    // Who looks at the ring goes on to count from there.
    let on_ring = p.own(&c.ep.rx_phase) == RxPhase::Ring;
    p.note(&c.ep.rx_down_at, on_ring.then(|| to.unwrap_or(up)));
    p.say(&c.ep.rx_phase, RxPhase::Down)?;
    p.moved(None);
    Ok(())
}

/// How far an echo was dropped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Skipped {
    /// All that was to be dropped is, or nothing was.
    All,
    /// Some of it: go on.
    Some,
    /// The rest has not come.
    NotYet,
}

/// Drops what the lifeline repeats of bytes that were read from the ring, as far as it has come.
pub fn skip<P: Incoming>(p: &mut P, c: &Conn) -> Result<Skipped, P::Stop> {
    let Some(to) = p.own(&c.ep.rx_skip) else { return Ok(Skipped::All) };
    let ended = p.peer_ended()?;
    let (left, queued) = match p.received()? {
        Some((consumed, queued)) => (to.since(consumed), queued),
        // Not a connection any more: the kernel says what it is.
        None => (0, 0),
    };
    // A sender that finished, or was killed, may not have repeated all of it.
    if left == 0 || (queued == 0 && ended) {
        p.note(&c.ep.rx_at, None);
        p.say(&c.ep.rx_skip, None)?;
        return Ok(Skipped::All);
    }
    if queued == 0 {
        return Ok(Skipped::NotYet);
    }
    if drop_repeated(p, c, left.min(queued))? == 0 {
        return Ok(Skipped::NotYet);
    }
    Ok(Skipped::Some)
}

/// Drops what the lifeline repeats of bytes that were read, though the ring has more: what is repeated of that, and what comes
/// behind, may need the room. For who waits for that, and does not read on meanwhile.
pub fn make_way<P: Incoming>(p: &mut P, c: &Conn) -> Result<(), P::Stop> {
    if p.own(&c.ep.rx_phase) != RxPhase::Ring {
        return Ok(());
    }
    let rewind = p.see(&c.me().rewind)?;
    let echo = p.see(&c.peer().echo)?;
    let up = p.own(&c.ep.rx_up);
    let Some(to) = switch::skip(rewind, echo, up, p.own(&c.ep.rx_head), c.size) else { return Ok(()) };
    let Some((consumed, queued)) = p.received()? else { return Ok(()) };
    let n = to.since(consumed).min(queued);
    if n == 0 {
        return Ok(());
    }
    if p.own(&c.ep.rx_at).is_none() && !p.handed_on() {
        p.note(&c.ep.rx_at, Some(up));
    }
    drop_repeated(p, c, n).map(|_| ())
}

/// Drops up to `n` bytes that lie on the lifeline, and counts them. How many.
fn drop_repeated<P: Incoming>(p: &mut P, c: &Conn, n: u64) -> Result<u64, P::Stop> {
    let n = p.discard(n)?;
    p.quiet(|| {
        let at = c.ep.rx_at.load(Ordering::Relaxed);
        c.ep.rx_at.store(at.map(|at| at.plus(n)), Ordering::Relaxed);
    });
    Ok(n)
}

/// Whether all that lies unread on the ring is on the lifeline, too.
pub fn all_echoed<P: Incoming>(p: &mut P, c: &Conn) -> Result<bool, P::Stop> {
    let phase = p.own(&c.ep.rx_phase);
    if phase != RxPhase::Ring {
        return Ok(false);
    }
    let rewind = p.see(&c.me().rewind)?;
    let echo = p.see(&c.peer().echo)?;
    let up = p.own(&c.ep.rx_up).claim();
    Ok(switch::all_echoed(phase, rewind, echo) && arrived(p, c, Some(up), echo)?)
}

/// Whether a complete echo has come to its end. `up`: where the ring begins.
pub(super) fn arrived<P: Incoming>(
    p: &mut P,
    c: &Conn,
    up: Option<Claim<StreamPos>>,
    echo: Option<Echo>,
) -> Result<bool, P::Stop> {
    if p.lacks(Guard::Arrived) {
        return Ok(true);
    }
    let down = p.see(&c.peer().down)?;
    Ok(p.received()?.is_some_and(|(consumed, queued)| switch::arrived(up, down, echo, consumed.plus(queued))))
}

/// Moves a receiver on towards the ring, or down from it, as far as the lifeline allows, without reading. `early`: it comes
/// down as soon as all that lies on the ring is the lifeline's, too.
pub fn advance<P: Incoming>(p: &mut P, c: &Conn, early: bool) -> Result<(), P::Stop> {
    if turned_away(p, c)? {
        return Ok(());
    }
    match p.own(&c.ep.rx_phase) {
        RxPhase::Ring => {
            let head = p.own(&c.ep.rx_head);
            if end(p, c)? == Some(head.claim()) {
                if !takes_over(p, c, head)? {
                    come_down(p, c)?;
                }
            } else if early && all_echoed(p, c)? {
                come_down(p, c)?;
            } else if is_left_undone(c) && !is_viewed(p, c)? {
                heal(p, c, head)?;
            }
        }
        RxPhase::Native | RxPhase::Transit => {
            let up = p.see(&c.peer().up)?;
            if let Some(x) = up
                && let Some((consumed, _)) = p.received()?
            {
                if consumed.claim() == x {
                    go_up(p, c, consumed)?;
                } else {
                    p.say(&c.ep.rx_phase, RxPhase::Transit)?;
                }
            }
        }
        RxPhase::Down => {}
    }
    while skip(p, c)? == Skipped::Some {}
    Ok(())
}

/// Declares this side ready to receive on the ring, if no thread of the family waits natively. Needs no token.
#[inline(always)]
pub fn make_ready<P: Port>(p: &mut P, c: &Conn) -> Result<bool, P::Stop> {
    if p.own(&c.ep.rx_word) == OPEN {
        return Ok(true);
    }
    if p.lacks(Guard::CountReceivers) {
        p.atom(|| c.ep.rx_word.fetch_or(OPEN, Ordering::AcqRel))?;
    } else if p.settle(&c.ep.rx_word, 0, OPEN)? != 0 {
        return Ok(false);
    }
    // A refusal by another holder stands.
    let first = if p.lacks(Guard::ReadyByCas) {
        let first = p.see(&c.me().rx)? == 0;
        if first {
            p.say(&c.me().rx, READY)?;
        }
        first
    } else {
        p.settle(&c.me().rx, 0, READY)? == 0
    };
    if first {
        p.notify()?;
    }
    Ok(true)
}
