//! The switch protocol: which medium carries which byte of a direction.
//!
//! ```text
//! stream position   0 ......... X ............................ X+Y ........
//! carried by        lifeline    ring (ring position 0 .. Y)    lifeline
//! ```
//! The sender alone decides X (`Side::up`) and Y (`Side::down`), each once. A receiver that must leave
//! stops reading the ring at H for good by moving `Side::rewind` from open to H; the sender then sends the
//! bytes from H on over the lifeline, so Y becomes H. A sender that goes down first moves the same word
//! from open to closed: of the two exactly one succeeds, so that no byte of the ring is sent twice or lost.
//! A receiver that has not let the sender up says `REFUSED`.
//!
//! Two refinements. A receiver that can go on reading the ring for a while may move `rewind` to a position
//! beyond its own (the *cut*), and, if more has come meanwhile, to one behind that, until the sender says by the same word that it takes
//! back what follows: so a receiver that cannot wake its sender needs nothing of it. And a sender that goes down repeats over the lifeline what lies unread on the ring
//! (the *echo*, `Side::echo`): if the receiver must leave after all, it finds it there; else it drops it.
//!
//! Everything here is pure: views go in, decisions come out. [`driver`](crate::driver) executes them.

use crate::layout::{Arbiter, Echo, READY, REFUSED};
use crate::position::Corrupt;
use crate::position::{Claim, RingPos, StreamPos};
use crate::word::Code;

/// The receiver's place in a direction.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
#[repr(u32)]
pub enum RxPhase {
    /// The sender has not gone up.
    Native = 0,
    /// It has; the lifeline may still hold bytes before X.
    Transit = 1,
    /// Reading the ring.
    Ring = 2,
    /// On the lifeline for good.
    Down = 3,
}

/// The sender's place in a direction.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[repr(u32)]
pub enum TxPhase {
    /// Not gone up.
    Native = 0,
    /// Sending on the ring.
    Ring = 1,
    /// On the lifeline for good.
    Down = 2,
    /// The ring's unread tail is being sent over the lifeline, because the receiver left or as an echo; then `Down`.
    Rewind = 3,
}

impl RxPhase {
    /// The phase `v` encodes.
    pub fn from_u32(v: u32) -> RxPhase {
        match v {
            0 => RxPhase::Native,
            1 => RxPhase::Transit,
            2 => RxPhase::Ring,
            _ => RxPhase::Down,
        }
    }
}

impl TxPhase {
    /// The phase `v` encodes.
    pub fn from_u32(v: u32) -> TxPhase {
        match v {
            0 => TxPhase::Native,
            1 => TxPhase::Ring,
            3 => TxPhase::Rewind,
            _ => TxPhase::Down,
        }
    }
}

impl Code for RxPhase {
    type Bits = u32;
    #[inline(always)]
    fn code(self) -> u32 {
        self as u32
    }
    #[inline(always)]
    fn of(code: u32) -> RxPhase {
        RxPhase::from_u32(code)
    }
}

impl Code for TxPhase {
    type Bits = u32;
    #[inline(always)]
    fn code(self) -> u32 {
        self as u32
    }
    #[inline(always)]
    fn of(code: u32) -> TxPhase {
        TxPhase::from_u32(code)
    }
}

/// What the receiver sees: its own phase and head, and the sender's claims, loaded once each *in this
/// order*: `down` before `tail` (a published `down` is final, so the tail read after it is too).
#[derive(Clone, Copy, Debug)]
pub struct RxView {
    /// Own phase.
    pub phase: RxPhase,
    /// `Side::up` of the sender.
    pub up: Option<Claim<StreamPos>>,
    /// `Side::down` of the sender.
    pub down: Option<Claim<RingPos>>,
    /// Own head.
    pub head: RingPos,
    /// Bytes the sender claims beyond `head` (already checked against the ring's size).
    pub available: u64,
}

/// What the receiver does next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RxStep {
    /// Read the lifeline; nothing of the ring concerns it (yet, or any more).
    Lifeline,
    /// Ask the kernel how far the lifeline has been consumed, then [`transit`].
    Transit {
        /// Where the ring begins, as the sender says.
        x: Claim<StreamPos>,
    },
    /// Take up to this many bytes (> 0) from the ring.
    Ring(u64),
    /// The ring is empty and has not ended: wait, or look for the end of the stream on the lifeline.
    Empty,
    /// The ring ended here: move to [`RxPhase::Down`] and read the lifeline.
    Ended,
    /// The claims contradict each other.
    Corrupt,
}

/// Decides the receiver's next step.
#[inline(always)]
pub fn rx(v: RxView) -> RxStep {
    match (v.phase, v.up, v.down) {
        (RxPhase::Native, None, _) => RxStep::Lifeline,
        (RxPhase::Native | RxPhase::Transit, Some(x), _) => RxStep::Transit { x },
        (RxPhase::Transit, None, _) => RxStep::Corrupt,
        (RxPhase::Ring, _, Some(end)) => match end.within(v.head, v.head.plus(v.available)) {
            Ok(end) if end == v.head => RxStep::Ended,
            Ok(end) => RxStep::Ring(end.since(v.head)),
            Err(Corrupt) => RxStep::Corrupt,
        },
        (RxPhase::Ring, _, None) if v.available == 0 => RxStep::Empty,
        (RxPhase::Ring, _, None) => RxStep::Ring(v.available),
        (RxPhase::Down, ..) => RxStep::Lifeline,
    }
}

/// Decides what a receiver in transit does, knowing how far the lifeline was `consumed` by whoever read it (kernel's count)
/// and how many bytes lie there `queued`.
pub fn transit(x: Claim<StreamPos>, consumed: StreamPos, queued: u64) -> Transit {
    match (x.behind(consumed), x.up_to(consumed)) {
        (0, Ok(x)) if x == consumed => Transit::Ring(x),
        (0, _) => Transit::Corrupt,
        (left, _) if queued == 0 => Transit::Wait(left),
        (left, _) => Transit::Lifeline(left),
    }
}

/// See [`transit`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Transit {
    /// So many bytes before X are not read, and some of them lie on the lifeline: read them.
    Lifeline(u64),
    /// They are still on their way.
    Wait(u64),
    /// All bytes before X are consumed, which is here: move to [`RxPhase::Ring`].
    Ring(StreamPos),
    /// More was consumed than the sender says it sent.
    Corrupt,
}

/// Where the receiver stops reading the ring; `None`: that is not known yet. `cut`: where it has decided to; `rewind`: the
/// arbiter; `down`: where the sender says that it went down. Loaded in this order.
#[inline(always)]
pub fn end(cut: Option<Claim<RingPos>>, rewind: Arbiter, down: Option<Claim<RingPos>>) -> Option<Claim<RingPos>> {
    match (cut, rewind) {
        (None, Arbiter::Open | Arbiter::Closed) => down,
        // A holder that was killed while it was leaving may have changed the arbiter and not yet noted the cut.
        (None, Arbiter::Left(at) | Arbiter::Taken(at)) => Some(at),
        (cut, _) => cut,
    }
}

/// Bytes that the receiver has to read on the ring, of those `available` after `head`.
pub fn left(available: u64, head: RingPos, end: Option<Claim<RingPos>>) -> u64 {
    match end {
        None => available,
        Some(end) => available.min(end.behind(head)),
    }
}

/// Bytes that can be read now. `queued`: on the lifeline, `before`: of those that the sender wrote before X, how many are
/// still to be read; `echo`: how many it has repeated, or is about to; `left`: on the ring.
pub fn unread(queued: u64, before: u64, echo: u64, left: u64) -> u64 {
    match queued.checked_sub(before) {
        // The rest of them is on its way: the ring's turn has not come.
        None => queued,
        Some(behind) => queued - behind.min(echo) + left,
    }
}

/// Whether the lifeline repeats bytes that lie on the ring yet: what it shows is not what there is to read. Not
/// in transit: what is left before X comes ahead of the echo, which waits behind it.
pub fn doubled(phase: RxPhase, rewind: Arbiter, echo: Option<Echo>) -> bool {
    phase == RxPhase::Ring && rewind == Arbiter::Closed && echo.is_some()
}

/// Whether all that lies unread on the ring is the kernel's, too, as the sender says. See [`arrived`].
pub fn all_echoed(phase: RxPhase, rewind: Arbiter, echo: Option<Echo>) -> bool {
    doubled(phase, rewind, echo) && is_complete(echo)
}

/// Whether all that the sender repeats is the kernel's, as it says.
pub fn is_complete(echo: Option<Echo>) -> bool {
    echo.is_some_and(|echo| echo.complete)
}

/// Whether a complete echo has come to its end: the ring need not be read to its own. What its sender's socket still has
/// of it, a RST drops. `up`, `down`, `echo`: the sender's claims; `received`: how far the lifeline ever came.
pub fn arrived(
    up: Option<Claim<StreamPos>>,
    down: Option<Claim<RingPos>>,
    echo: Option<Echo>,
    received: StreamPos,
) -> bool {
    let (Some(up), Some(down), Some(echo)) = (up, down, echo) else { return false };
    up.plus(down.behind_claim(echo.from)).up_to(received).is_ok()
}

/// Where on the lifeline a receiver that comes down at `head` finds the end of what it has read on the ring; `None`: it finds
/// nothing of that. `up`: X; `size`: the ring's.
pub fn skip(rewind: Arbiter, echo: Option<Echo>, up: StreamPos, head: RingPos, size: u64) -> Option<StreamPos> {
    let echo = echo.filter(|_| rewind == Arbiter::Closed)?;
    // More than a ring cannot have been unread: the peer's claim is nonsense, and its stream with it.
    let from = echo.from.within(head.minus(size), head).ok()?;
    (from != head).then(|| up.plus(head.since(from)))
}

/// Decides what a receiver does that must leave, once it has tried to move the arbiter from open to `head` + `kept`, and
/// `found` this there (open: it has moved it). `kept`: bytes that may stay on the ring; `left`: bytes on the ring by
/// now, up to where it ends if that was settled before; `cut`: where this side had decided to stop by then.
pub fn leave(found: Arbiter, head: RingPos, kept: u64, left: u64, cut: Option<Claim<RingPos>>) -> Leave {
    match found {
        Arbiter::Closed => Leave::Closed,
        _ if left == 0 => Leave::Down,
        Arbiter::Open if left == kept => Leave::Cut(head.plus(kept).claim()),
        Arbiter::Open => Leave::Rewound,
        // Left before, perhaps by a holder that died over it.
        Arbiter::Left(at) | Arbiter::Taken(at) => Leave::Cut(cut.unwrap_or(at)),
    }
}

/// See [`leave`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Leave {
    /// Nothing is left to read on the ring: come down.
    Down,
    /// Note this as the end of the ring; what lies before it is still to be read there.
    Cut(Claim<RingPos>),
    /// The sender is to send the rest over the lifeline. Wait a little to see whether it lives: bytes that were
    /// published by one that was killed before are still to be read on the ring.
    Rewound,
    /// The sender has gone down. Wait until it has said where (then it has also said what it echoes), or is no
    /// more. Come down if nothing is left on the ring, or all of it is echoed.
    Closed,
}

/// A sender that was to take back what was unread has ended without saying that it did. Whether it has sent
/// anything since it went up at `up`: it was killed over it. `received`: how far the lifeline ever came.
pub fn killed_over_it(up: Option<Claim<StreamPos>>, received: StreamPos) -> bool {
    up.is_none_or(|x| x.up_to(received).is_ok_and(|x| x != received))
}

/// How an exec hands on a ring that begins at `up`: `up` and `echo` of a fresh ring that holds what lies after `head`.
pub fn hand_on(
    rewind: Arbiter,
    up: Option<Claim<StreamPos>>,
    echo: Option<Echo>,
    head: RingPos,
    size: u64,
) -> (Option<Claim<StreamPos>>, Option<Echo>) {
    let Some(echo) = echo.filter(|_| rewind == Arbiter::Closed) else { return (up, None) };
    // An echo that the sender did not complete: it begins before what is handed on.
    let read = echo.from.before(head).min(size);
    (up.map(|x| x.plus(read)), Some(Echo { from: RingPos::START.claim(), complete: false }))
}

/// Whether what is on the lifeline now and on the ring is all that will ever come, so that an exec can hand it on as
/// a file: the bytes before X, then the ring's. `ended`: the FIN or a RST has come. `received`: how far the lifeline ever
/// came.
pub fn is_all(
    rewind: Arbiter,
    up: Option<Claim<StreamPos>>,
    echo: Option<Echo>,
    ended: bool,
    received: StreamPos,
) -> bool {
    // What has not come of the bytes before X, a RST has dropped.
    let Some(Ok(x)) = up.map(|x| x.up_to(received)) else { return false };
    // Behind a complete echo comes more, or a RST has dropped that; behind an incomplete one is nothing.
    ended && !is_complete(echo) && (x == received || rewind == Arbiter::Closed && echo.is_some())
}

/// What a sender sends over the lifeline although it has published it on the ring. It decides once, from claims of the
/// receiver that it has checked, and keeps the decision in its family's memory (`Endpoint::tx_again`): the words that the
/// claims were read from, and those in which the sender tells the peer of the decision, lie where the peer can write.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Again {
    /// Nothing is decided: the sender has not left the ring.
    Undecided,
    /// Nothing is sent again.
    Nothing,
    /// The sender went down first: it repeats what lay unread, from this ring position on.
    Echo(RingPos),
    /// The receiver left first: the sender takes back what lies behind this ring position.
    Rewind(RingPos),
}

impl Code for Again {
    type Bits = u64;
    fn code(self) -> u64 {
        match self {
            Again::Undecided => 0,
            Again::Nothing => 1,
            Again::Echo(from) => from.number() << 2 | 2,
            Again::Rewind(from) => from.number() << 2 | 3,
        }
    }
    fn of(word: u64) -> Again {
        match word & 3 {
            0 => Again::Undecided,
            1 => Again::Nothing,
            2 => Again::Echo(RingPos::new(word >> 2)),
            _ => Again::Rewind(RingPos::new(word >> 2)),
        }
    }
}

impl Again {
    /// From where on the ring is sent again, if it is.
    pub fn from(self) -> Option<RingPos> {
        match self {
            Again::Undecided | Again::Nothing => None,
            Again::Echo(from) | Again::Rewind(from) => Some(from),
        }
    }

    /// The ring position to go on from, where `sent` bytes have gone over the lifeline since the sender went up. `Err`: more
    /// than lies between the first position and `tail`.
    pub fn resume(self, tail: RingPos, sent: u64) -> Result<RingPos, Corrupt> {
        let from = self.from().unwrap_or(tail);
        if sent > tail.since(from) { Err(Corrupt) } else { Ok(from.plus(sent)) }
    }
}

/// What the sender sees. `rewind` and `rx` are the receiver's claims.
#[derive(Clone, Copy, Debug)]
pub struct TxView {
    /// Own phase.
    pub phase: TxPhase,
    /// `Side::rx` of the receiver.
    pub rx: u32,
    /// `Side::rewind` of the receiver.
    pub rewind: Arbiter,
    /// Receiver's head, as far as believed.
    pub head: RingPos,
    /// Own tail.
    pub tail: RingPos,
    /// The lifeline shows FIN, RST or an error.
    pub fin: bool,
}

/// What the sender does next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TxStep {
    /// Send natively.
    Lifeline,
    /// May go up: publish X, then look once more ([`TxView::rewind`], [`TxView::rx`]).
    GoUp,
    /// Send on the ring.
    Ring,
    /// Move the arbiter from 0 to `CLOSED`, or find it there; then publish tail and Y = tail and go on
    /// natively. Otherwise the receiver left first: look again.
    GoDown,
    /// Send ring positions `from..tail` natively first, then publish Y = `from` and go on natively.
    Rewind {
        /// What the receiver did not read begins there.
        from: RingPos,
    },
    /// The claims contradict each other.
    Corrupt,
}

/// Decides the sender's next step.
#[inline(always)]
pub fn tx(v: TxView) -> TxStep {
    match (v.phase, v.rewind) {
        (TxPhase::Native, Arbiter::Open) if v.rx == READY && !v.fin => TxStep::GoUp,
        (TxPhase::Native | TxPhase::Down, _) => TxStep::Lifeline,
        (TxPhase::Ring | TxPhase::Rewind, Arbiter::Left(at) | Arbiter::Taken(at)) => match at.within(v.head, v.tail) {
            Ok(from) => TxStep::Rewind { from },
            Err(Corrupt) => TxStep::Corrupt,
        },
        (TxPhase::Rewind, _) => TxStep::Corrupt,
        // A holder of the same connection died on its way down.
        (TxPhase::Ring, Arbiter::Closed) => TxStep::GoDown,
        (TxPhase::Ring, Arbiter::Open) if v.rx == REFUSED && v.tail == RingPos::START || v.fin => TxStep::GoDown,
        (TxPhase::Ring, Arbiter::Open) => TxStep::Ring,
    }
}

#[cfg(test)]
mod tests {
    use super::unread;

    #[test]
    fn unread_counts_each_byte_once() {
        // Nothing is repeated: the ring follows what came before it.
        assert_eq!(unread(0, 0, 0, 7), 7);
        assert_eq!(unread(3, 3, 0, 7), 10);
        // What is repeated lies on the ring as well.
        assert_eq!(unread(5, 3, 7, 7), 10);
        assert_eq!(unread(12, 3, 7, 7), 12);
    }

    #[test]
    fn the_ring_waits_for_what_came_before() {
        assert_eq!(unread(0, 1, 0, 7), 0);
        assert_eq!(unread(2, 3, 7, 7), 2);
    }
}
