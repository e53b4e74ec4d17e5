//! The switch protocol: which medium carries which byte of a direction.
//!
//! ```text
//! stream position   0 ......... X ............................ X+Y ........
//! carried by        lifeline    ring (ring position 0 .. Y)    lifeline
//! ```
//! The sender alone decides X (`Side::up`) and Y (`Side::down`), each once. A receiver that must leave
//! stops reading the ring at H for good by moving `Side::rewind` from 0 to H + 1; the sender then sends the
//! bytes from H on over the lifeline, so Y becomes H. A sender that goes down first moves the same word
//! from 0 to `CLOSED`: of the two exactly one succeeds, so that no byte of the ring is sent twice or lost.
//! A receiver that has not let the sender up says `REFUSED`.
//!
//! Two refinements. A receiver that can go on reading the ring for a while may move `rewind` to a position
//! beyond its own (the *cut*). And a sender that goes down repeats over the lifeline what lies unread on the ring
//! (the *echo*, `Side::echo`): if the receiver must leave after all, it finds it there; else it drops it.
//!
//! Everything here is pure: views go in, decisions come out. `shim` executes them; the model in
//! `tests/switch_model.rs` runs the same functions through every interleaving.

use crate::layout::{CLOSED, ECHOED, READY, REFUSED};
use crate::ring::Corrupt;
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
    fn code(self) -> u32 {
        self as u32
    }
    fn of(code: u32) -> RxPhase {
        RxPhase::from_u32(code)
    }
}

impl Code for TxPhase {
    fn code(self) -> u32 {
        self as u32
    }
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
    pub up: u64,
    /// `Side::down` of the sender.
    pub down: u64,
    /// Own head.
    pub head: u64,
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
        /// Stream position at which the ring begins.
        x: u64,
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
pub fn rx(v: RxView) -> RxStep {
    match v.phase {
        RxPhase::Native if v.up == 0 => RxStep::Lifeline,
        RxPhase::Native | RxPhase::Transit => match v.up {
            0 => RxStep::Corrupt,
            up => RxStep::Transit { x: up - 1 },
        },
        RxPhase::Ring if v.down != 0 => {
            let left = (v.down - 1).wrapping_sub(v.head);
            if left == 0 {
                RxStep::Ended
            } else if left <= v.available {
                RxStep::Ring(left)
            } else {
                RxStep::Corrupt
            }
        }
        RxPhase::Ring if v.available == 0 => RxStep::Empty,
        RxPhase::Ring => RxStep::Ring(v.available),
        RxPhase::Down => RxStep::Lifeline,
    }
}

/// Decides what a receiver in transit does, knowing how many bytes of the lifeline were `consumed` by
/// whoever read it (kernel's count) and how many lie there `queued`.
pub fn transit(x: u64, consumed: u64, queued: u64) -> Transit {
    if consumed < x {
        if queued == 0 { Transit::Wait } else { Transit::Lifeline }
    } else if consumed == x {
        Transit::Ring
    } else {
        Transit::Corrupt
    }
}

/// See [`transit`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Transit {
    /// Bytes before X lie on the lifeline: read them.
    Lifeline,
    /// Bytes before X are still on their way.
    Wait,
    /// All bytes before X are consumed: move to [`RxPhase::Ring`].
    Ring,
    /// More was consumed than the sender says it sent.
    Corrupt,
}

/// Ring position + 1 at which the receiver stops reading the ring; 0 = not known yet. `cut`: where it has decided
/// to; `rewind`: the arbiter; `down`: where the sender says that it went down. Loaded in this order.
pub fn end(cut: u64, rewind: u64, down: u64) -> u64 {
    match (cut, rewind) {
        (0, 0 | CLOSED) => down,
        // A holder that died while it was leaving may have got no further than the arbiter.
        (0, left) => left,
        (cut, _) => cut,
    }
}

/// Bytes that the receiver has to read on the ring, of those `available` after `head`.
pub fn left(available: u64, head: u64, end: u64) -> u64 {
    match end {
        0 => available,
        end => available.min((end - 1).wrapping_sub(head)),
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
pub fn doubled(phase: RxPhase, rewind: u64, echo: u64) -> bool {
    phase == RxPhase::Ring && rewind == CLOSED && echo != 0
}

/// Whether all that lies unread on the ring is the kernel's, too, as the sender says. See [`arrived`].
pub fn all_echoed(phase: RxPhase, rewind: u64, echo: u64) -> bool {
    doubled(phase, rewind, echo) && echo & ECHOED != 0
}

/// Whether a complete echo has come to its end: the ring need not be read to its own. What its sender's socket still has
/// of it, a RST drops. `up`, `down`, `echo`: the sender's claims; `received`: bytes that ever came over the lifeline.
pub fn arrived(up: u64, down: u64, echo: u64, received: u64) -> bool {
    received >= (up.wrapping_sub(1)).saturating_add(down.wrapping_sub(echo & !ECHOED))
}

/// Lifeline position before which a receiver that comes down at `head` finds what it has read on the ring; 0 = it
/// finds nothing of that. `up`: X; `size`: the ring's.
pub fn skip(rewind: u64, echo: u64, up: u64, head: u64, size: u64) -> u64 {
    let echo = echo & !ECHOED;
    if rewind != CLOSED || echo == 0 {
        return 0;
    }
    let read = head.wrapping_sub(echo - 1);
    // More than a ring cannot have been unread: the peer's claim is nonsense, and its stream with it.
    if read == 0 || read > size { 0 } else { up.wrapping_add(read) }
}

/// Decides what a receiver does that must leave, once it has tried to move the arbiter from 0 to `head + kept + 1`,
/// and `found` this there (0: it has moved it). `kept`: bytes that may stay on the ring; `left`: bytes on the ring by
/// now, up to where it ends if that was settled before; `cut`: where this side had decided to stop by then.
pub fn leave(found: u64, head: u64, kept: u64, left: u64, cut: u64) -> Leave {
    match found {
        CLOSED => Leave::Closed,
        _ if left == 0 => Leave::Down,
        0 if left == kept => Leave::Cut(head.wrapping_add(kept) + 1),
        0 => Leave::Rewound,
        // Left before, perhaps by a holder that died over it.
        found => Leave::Cut(if cut == 0 { found } else { cut }),
    }
}

/// See [`leave`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Leave {
    /// Nothing is left to read on the ring: come down.
    Down,
    /// Note this as the end of the ring; what lies before it is still to be read there.
    Cut(u64),
    /// The sender is to send the rest over the lifeline. Wait a little to see whether it lives: bytes that were
    /// published by one that was killed before are still to be read on the ring.
    Rewound,
    /// The sender has gone down. Wait until it has said where (then it has also said what it echoes), or is no
    /// more. Come down if nothing is left on the ring, or all of it is echoed.
    Closed,
}

/// A sender that was to take back what was unread has ended without saying that it did. Whether it has sent
/// anything since it went up at X = `up` - 1: it was killed over it. `received`: bytes that ever came over the
/// lifeline.
pub fn killed_over_it(up: u64, received: u64) -> bool {
    received >= up
}

/// How an exec hands on a ring that begins at stream position `up` - 1: `up` and `echo` of a fresh ring that holds
/// what lies after `head`.
pub fn hand_on(rewind: u64, up: u64, echo: u64, head: u64, size: u64) -> (u64, u64) {
    let echo = echo & !ECHOED;
    if rewind != CLOSED || echo == 0 {
        return (up, 0);
    }
    // An echo that the sender did not complete: it begins before what is handed on.
    (up.wrapping_add(head.wrapping_sub(echo - 1).min(size)), 1)
}

/// Whether what is on the lifeline now and on the ring is all that will ever come, so that an exec can hand it on as
/// a file: the bytes before X, then the ring's. `ended`: the FIN or a RST has come. `received`: bytes that ever came over
/// the lifeline.
pub fn is_all(rewind: u64, up: u64, echo: u64, ended: bool, received: u64) -> bool {
    // What has not come of the bytes before X, a RST has dropped.
    let Some(behind) = received.checked_sub(up.wrapping_sub(1)) else { return false };
    // Behind a complete echo comes more, or a RST has dropped that; behind an incomplete one is nothing.
    ended && echo & ECHOED == 0 && (behind == 0 || rewind == CLOSED && echo != 0)
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
    Echo(u64),
    /// The receiver left first: the sender takes back what lies behind this ring position.
    Rewind(u64),
}

impl Again {
    /// As one word, in which 0 is `Undecided`.
    pub fn to_word(self) -> u64 {
        match self {
            Again::Undecided => 0,
            Again::Nothing => 1,
            Again::Echo(from) => from << 2 | 2,
            Again::Rewind(from) => from << 2 | 3,
        }
    }

    /// The decision that `word` encodes.
    pub fn from_word(word: u64) -> Again {
        match word & 3 {
            0 => Again::Undecided,
            1 => Again::Nothing,
            2 => Again::Echo(word >> 2),
            _ => Again::Rewind(word >> 2),
        }
    }

    /// The first ring position that is sent again, if any is.
    pub fn from(self) -> Option<u64> {
        match self {
            Again::Undecided | Again::Nothing => None,
            Again::Echo(from) | Again::Rewind(from) => Some(from),
        }
    }

    /// The ring position to go on from, where `sent` bytes have gone over the lifeline since the sender went up. `Err`: more
    /// than lies between the first position and `tail`.
    pub fn resume(self, tail: u64, sent: u64) -> Result<u64, Corrupt> {
        let from = self.from().unwrap_or(tail);
        if sent > tail.wrapping_sub(from) { Err(Corrupt) } else { Ok(from.wrapping_add(sent)) }
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
    pub rewind: u64,
    /// Receiver's head, as far as believed.
    pub head: u64,
    /// Own tail.
    pub tail: u64,
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
        /// First ring position the receiver did not read.
        from: u64,
    },
    /// The claims contradict each other.
    Corrupt,
}

/// Decides the sender's next step.
pub fn tx(v: TxView) -> TxStep {
    match v.phase {
        TxPhase::Native if v.rx == READY && v.rewind == 0 && !v.fin => TxStep::GoUp,
        TxPhase::Native | TxPhase::Down => TxStep::Lifeline,
        // A holder of the same connection died on its way down.
        TxPhase::Ring if v.rewind == CLOSED => TxStep::GoDown,
        TxPhase::Ring | TxPhase::Rewind if v.rewind != 0 => {
            let from = v.rewind - 1;
            if v.rewind != CLOSED && from.wrapping_sub(v.head) <= v.tail.wrapping_sub(v.head) {
                TxStep::Rewind { from }
            } else {
                TxStep::Corrupt
            }
        }
        TxPhase::Rewind => TxStep::Corrupt,
        TxPhase::Ring if v.rx == REFUSED && v.tail == 0 => TxStep::GoDown,
        TxPhase::Ring if v.fin => TxStep::GoDown,
        TxPhase::Ring => TxStep::Ring,
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
