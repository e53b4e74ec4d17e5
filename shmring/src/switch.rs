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
//! Everything here is pure: views go in, decisions come out. `shim` executes them; the model in
//! `tests/switch_model.rs` runs the same functions through every interleaving.

/// The receiver's place in a direction.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
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
    /// The receiver left: the ring's unread tail is being sent over the lifeline, then `Down`.
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
    use crate::layout::{CLOSED, READY, REFUSED};
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
