//! The memory two processes share: one sealed memfd per channel.
//!
//! ```text
//! offset 0        Header                     identity, geometry
//! OFFERS_AT       Offer[OFFERS]              slots on offer
//! QUEUES_AT       Queue[2][POLLERS]          per side and poller: armed word, ready bits
//! JOURNALS_AT     Journal[2]                 per side: what it did on the kernel
//! HOMES_AT        SLOTS x 4 KiB              a page for each slot: [ home 0 | SlotHeader | home 1 ]
//! HOLES_AT        SLOTS x 4 KiB              a page for each slot, where chunks are sent: per ring, hole::Entry[HOLES]
//! FIXED_LEN       SLOTS x 2 x bulk           what of the slots' rings does not fit their homes
//! ```
//! A ring's first [`HOME`] bytes are its *home*, which shares a page with the slot's header and with the other
//! direction's home; the rest is its *bulk*. A ring that has been drained starts again at its home: a connection that
//! exchanges small messages, or none, touches one page for both directions.
//!
//! Everything up to [`FIXED_LEN`] is mapped as long as a process uses the channel, and pollers look at nothing else.
//! The bulk of a ring is mapped by a process that has bytes to write or to read there, and only until the connection ends.

use crate::hole::{self, HOLES};
use crate::journal::Journal;
use crate::position::{Claim, RingPos, StreamPos};
use crate::sync::{AtomicU32, AtomicU64, Ordering};
use crate::word::{Code, Coded, Numbered};

/// `"culvert\x01"`, little endian: a channel of this layout.
pub const MAGIC: u64 = u64::from_le_bytes(*b"culvert\x01");
/// Changes with every incompatible change of this file. Peers of another version stay on the kernel.
///
/// Built with `CULVERT_OTHER_VERSION` set, a library is of another version than all others: for tests.
pub const VERSION: u32 = if option_env!("CULVERT_OTHER_VERSION").is_none() { 17 } else { u16::MAX as u32 };
/// Connections in one channel: one bit each in a [`Queue`]'s ready word.
pub const SLOTS: usize = 64;
/// Pollers of one process that can be named in a channel: one bit each in [`Side::pollers`].
pub const POLLERS: usize = 64;
/// Bytes of a ring, its first, that share a page with the slot's header.
pub const HOME: usize = 1536;
/// Smallest and largest ring, bytes. A power of two.
pub const RING_MIN: usize = 4096;
/// See [`RING_MIN`].
pub const RING_MAX: usize = 64 << 20;
/// Offers in flight in one channel.
pub const OFFERS: usize = SLOTS;

const PAGE: usize = 4096;

/// Which process of the pair. The acceptor of a connection creates the channel and allocates its slots.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(usize)]
pub enum Role {
    /// The process that called `connect`.
    Connector = 0,
    /// The process that called `accept`.
    Acceptor = 1,
}

impl Role {
    /// The other side.
    pub const fn peer(self) -> Role {
        match self {
            Role::Connector => Role::Acceptor,
            Role::Acceptor => Role::Connector,
        }
    }
    /// Index of the ring this side sends on (the direction is named after its sender).
    pub const fn tx(self) -> usize {
        self as usize
    }
    /// Index of the ring this side receives from.
    pub const fn rx(self) -> usize {
        self.peer() as usize
    }
}

/// First page of a channel. Written by the acceptor before the descriptor is passed on, then constant but for
/// the last word.
#[repr(C, align(64))]
pub struct Header {
    /// [`MAGIC`].
    pub magic: u64,
    /// [`VERSION`].
    pub version: u32,
    /// Bytes of one ring: a power of two in `RING_MIN..=RING_MAX`.
    pub ring: u32,
    /// Random name of the channel, unique to the pair.
    pub id: u64,
    /// Per side: [`FORKED`], [`CARRIED_OFF`].
    pub forked: [AtomicU32; 2],
    /// Per side: its process has given the channel up, and puts no new connection into it. Those that are in it go on.
    pub left: [AtomicU32; 2],
    /// Per side: how many of its places in `pools` say something.
    pub offered: [AtomicU32; 2],
    /// Per side: the pools of whose chunks it may send some by reference, for good.
    pub pools: [[PoolOffer; POOLS]; 2],
}

/// Pools that one side of a channel can offer.
pub const POOLS: usize = 8;

/// A pool of chunks (`chunks`), as one that may send them says where it is. Where it lies in its owner's process every process of
/// that user can open it (/proc/PID/fd).
#[repr(C, align(64))]
#[derive(Default)]
pub struct PoolOffer {
    /// Its number.
    pub id: AtomicU64,
    /// Its sender, as an end of its edges; 0: its owner.
    pub lender: AtomicU64,
    /// Its owner's process ...
    pub pid: AtomicU32,
    /// ... and the descriptors there of its memory, and of its ledgers.
    pub files: [AtomicU32; 2],
    /// Written by the other side: [`ANSWERED`], and the edge by which it takes chunks; 0: it takes none.
    pub answer: AtomicU32,
}

/// In [`PoolOffer::answer`]: the rest names an edge.
pub const ANSWERED: u32 = 1 << 31;

/// [`Header::forked`]: the side's process has forked since. Other processes may hold its connections: that it lives does not
/// mean that the holder of a connection does.
pub const FORKED: u32 = 1;
/// [`Header::forked`]: a process that was forked has left the family with connections that are in the channel: the family does
/// not know who holds them.
pub const CARRIED_OFF: u32 = 2;

/// An offer: "the connection whose two sockets have these cookies has this slot". Written by the
/// acceptor; `slot` is stored last. Read by the connector, who stores 0 to `slot` to take or refuse it.
#[repr(C, align(64))]
pub struct Offer {
    /// `SO_COOKIE` of the connector's socket.
    pub connector: AtomicU64,
    /// `SO_COOKIE` of the acceptor's socket.
    pub acceptor: AtomicU64,
    /// Index of the slot; none when there is no offer.
    pub slot: Coded<Option<u32>>,
    /// Of bytes that an exec hands on: the process that becomes the image that alone is to read them; 0: others may, too.
    pub heir: AtomicU32,
}

/// [`Queue::armed`]: the poller sleeps on this word (`FUTEX_WAIT`), and not for long, instead of on its doorbell.
pub const DOZING: u32 = 1 << 31;

/// The last poller stands for a thread that sleeps on one connection alone. It has no queue among the others but one in the
/// connection's slot, [`SlotHeader::alone`], so that there may be as many such threads as connections.
pub const ALONE: usize = POLLERS - 1;

/// One poller of one side, as the other side sees it.
#[repr(C, align(64))]
#[derive(Default)]
pub struct Queue {
    /// Non-zero while the poller sleeps or is about to: its sleep generation, perhaps with [`DOZING`].
    pub armed: AtomicU32,
    _pad: u32,
    /// Bit per slot: "look at this connection, its stream goes on". The time is in [`Producer::told`].
    pub ready: AtomicU64,
    /// Name of the poller's doorbell, and what it must be rung with; 0 if it has none. Written by the poller's process,
    /// before it is armed.
    pub bell: AtomicU64,
    /// See [`Queue::bell`].
    pub key: AtomicU64,
    /// The same for anything else, with [`Consumer::told`]. A word of its own, so that the time of what comes on a
    /// stream is not that of something that came before and was no event.
    pub aside: AtomicU64,
}

/// What one side says about itself, rarely written: stays shared in the other side's cache.
#[repr(C, align(64))]
#[derive(Default)]
pub struct Side {
    /// Bit per poller of this side to notify when something happens on this slot.
    pub pollers: AtomicU64,
    /// Sender: from where on this side sends on the ring; none: still on the lifeline.
    pub up: Coded<Option<Claim<StreamPos>>>,
    /// Sender: where this side's stream returned to the lifeline; none: it did not.
    pub down: Coded<Option<Claim<RingPos>>>,
    /// Of this side's incoming ring.
    pub rewind: Coded<Arbiter>,
    /// Receiver: [`READY`] or [`REFUSED`].
    pub rx: AtomicU32,
    /// Sender: waits for ring space; 0, or the number of the wish (see [`ring::want_space`](crate::ring::want_space)).
    pub want_space: AtomicU32,
    /// Sender: [`WR_SHUT`] once `shutdown` was called (so a FIN is no sign of death).
    pub wr_shut: AtomicU32,
    /// No process of this side holds the connection any more.
    pub gone: AtomicU32,
    /// Sender that went down: what it *also* sent over the lifeline, from its position X on; none: nothing. Published before
    /// `down`. A receiver that goes on with the ring drops it there; one that must leave reads it there.
    pub echo: Coded<Option<Echo>>,
    /// Sender: bytes of `SO_SNDBUF`, if the program has set it, else 0; or, with `ring::UNSENT`, of `TCP_NOTSENT_LOWAT`. If it
    /// becomes less while bytes are on the ring, the sender waits until no receiver judges by what it was.
    pub sndbuf: AtomicU32,
    /// Receiver: the same of `SO_RCVBUF`.
    pub rcvbuf: AtomicU32,
}

/// [`Side::rewind`], moved from `Open` by CAS. Whoever comes first decides. From `Left` the receiver may move it on to a place behind that, until
/// the sender has moved it to `Taken`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Arbiter {
    /// The ring goes on.
    Open,
    /// The receiver stops reading the ring there for good; the sender is to send what follows over the lifeline.
    Left(Claim<RingPos>),
    /// The same, and the sender does so: the place stays.
    Taken(Claim<RingPos>),
    /// The sender has gone down; the receiver must drain the ring to its end.
    Closed,
}

/// [`Side::rewind`] as a word: [`Arbiter::Closed`].
pub const CLOSED: u64 = u64::MAX;
/// [`Side::rewind`] as a word: [`Arbiter::Taken`].
pub const TAKEN: u64 = 1 << 63;
/// [`Side::echo`] as a word: [`Echo::complete`].
pub const ECHOED: u64 = 1 << 63;

impl Code for Arbiter {
    type Bits = u64;
    #[inline(always)]
    fn code(self) -> u64 {
        match self {
            Arbiter::Open => 0,
            Arbiter::Left(at) => Some(at).code(),
            Arbiter::Taken(at) => Some(at).code() | TAKEN,
            Arbiter::Closed => CLOSED,
        }
    }
    #[inline(always)]
    fn of(code: u64) -> Arbiter {
        match (code, Option::<Claim<RingPos>>::of(code & !TAKEN)) {
            (0, _) => Arbiter::Open,
            (CLOSED, _) => Arbiter::Closed,
            (_, Some(at)) if code & TAKEN != 0 => Arbiter::Taken(at),
            (_, Some(at)) => Arbiter::Left(at),
            // Nobody honest writes that: a place that no ring has.
            (_, None) => Arbiter::Left(RingPos::new(TAKEN).claim()),
        }
    }
}

impl Arbiter {
    /// Where the receiver stops reading the ring, if it has left.
    #[inline(always)]
    pub fn left(self) -> Option<Claim<RingPos>> {
        match self {
            Arbiter::Left(at) | Arbiter::Taken(at) => Some(at),
            Arbiter::Open | Arbiter::Closed => None,
        }
    }
}

/// What a sender that went down has sent, or is about to send, over the lifeline although it lies on the ring.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Echo {
    /// From there on; up to where the ring ends.
    pub from: Claim<RingPos>,
    /// All of it is the kernel's.
    pub complete: bool,
}

impl Numbered for Echo {
    type Bits = u64;
    #[inline(always)]
    fn number(self) -> u64 {
        self.from.number() | if self.complete { ECHOED } else { 0 }
    }
    #[inline(always)]
    fn numbered(number: u64) -> Echo {
        Echo { from: Claim::numbered(number & !ECHOED), complete: number & ECHOED != 0 }
    }
}

/// [`Side::wr_shut`]: this side sends no more.
pub const WR_SHUT: u32 = 1;
/// [`Side::wr_shut`]: nor does it receive (`SHUT_RDWR`). The kernel answers what comes then with RST.
pub const ALL_SHUT: u32 = 2;
/// [`Side::rx`]: the peer may send on the ring.
pub const READY: u32 = 1;
/// [`Side::rx`]: the peer must never send on the ring.
pub const REFUSED: u32 = 2;

/// Written by a ring's sender at every message.
#[repr(C, align(64))]
#[derive(Default)]
pub struct Producer {
    /// Behind the last published byte.
    pub tail: Coded<Claim<RingPos>>,
    /// What lies at the ring's start; changes only while the ring is empty.
    pub base: Coded<RingPos>,
    /// Bytes of the ring's bulk, from its beginning, that have memory.
    pub there: AtomicU64,
    /// When the other side's pollers were told of the first news of the stream that they have not taken yet, in cycles of
    /// the time-stamp counter. One for all pollers: it is that of the one who took its bit last.
    pub told: AtomicU64,
    /// Behind the last hole that was published. Before the tail.
    pub holes: Coded<Claim<RingPos>>,
    /// To a receiver that stands in for another host: how the bytes are to be sent there, [`WAITS`], [`MORE`], [`CORKED`]; and how often
    /// what waited there was to be sent at once, in units of [`PUSH`].
    pub manner: AtomicU32,
}

/// [`Producer::manner`]: a small segment waits while another one is not acknowledged (no TCP_NODELAY).
pub const WAITS: u32 = 1;
/// [`Producer::manner`]: more follows the last bytes (MSG_MORE).
pub const MORE: u32 = 2;
/// [`Producer::manner`]: segments that are not full wait (TCP_CORK).
pub const CORKED: u32 = 4;
/// [`Producer::manner`]: a cork was taken out so often.
pub const PUSH: u32 = 1 << 8;

impl Producer {
    /// Whether there may be holes behind `at`, in a ring of `size` bytes.
    #[inline(always)]
    pub fn may_have_holes(&self, at: RingPos, size: u64) -> bool {
        let n = self.holes.load(Ordering::Relaxed).behind(at);
        n != 0 && n <= size
    }
}

/// Written by a ring's receiver whenever it consumes.
#[repr(C, align(64))]
#[derive(Default)]
pub struct Consumer {
    /// Behind the last consumed byte: before it, room is the sender's again.
    pub head: Coded<Claim<RingPos>>,
    /// As [`Producer::told`], of news that the receiver has.
    pub told: AtomicU64,
    /// Behind the last byte that was read while room was not given back for it; does not count where `head` is farther.
    pub read: Coded<Claim<RingPos>>,
    /// The receiver has closed the connection: no hole is read any more (see [`hole`]).
    pub closed: AtomicU32,
    /// How often it has heard that what waits is to be sent ([`PUSH`]).
    pub pushed: AtomicU32,
}

/// In the middle of a slot.
#[repr(C, align(64))]
#[cfg_attr(loom, derive(Default))]
pub struct SlotHeader {
    /// Indexed by `Role as usize`.
    pub side: [Side; 2],
    /// Indexed by the sender's `Role`.
    pub producer: [Producer; 2],
    /// Indexed by the *sender's* `Role`.
    pub consumer: [Consumer; 2],
    /// Indexed by `Role as usize`: see [`ALONE`].
    pub alone: [Queue; 2],
}

const HEADER_ROOM: usize = PAGE - 2 * HOME;
// loom's atomics are larger; nothing is mapped there.
#[cfg(not(loom))]
const _: () = {
    assert!(size_of::<SlotHeader>() <= HEADER_ROOM);
    assert!(size_of::<Queue>() == 64 && size_of::<Side>() == 64);
    assert!(size_of::<Producer>() == 64 && size_of::<Consumer>() == 64);
    assert!(size_of::<Header>() <= PAGE && size_of::<Holes>() <= PAGE);
};

/// Where the offers begin.
pub const OFFERS_AT: usize = PAGE;
/// Where the queues begin: `[side][poller]`.
pub const QUEUES_AT: usize = OFFERS_AT + OFFERS * size_of::<Offer>();
/// Where the journals begin: one of each side.
pub const JOURNALS_AT: usize = QUEUES_AT + 2 * POLLERS * size_of::<Queue>();
/// Where the slots' home pages begin.
pub const HOMES_AT: usize = (JOURNALS_AT + 2 * size_of::<Journal>()).next_multiple_of(PAGE);
/// Where the slots' holes begin.
pub const HOLES_AT: usize = HOMES_AT + SLOTS * PAGE;
/// Length of the part that is mapped as long as the channel is used.
pub const FIXED_LEN: usize = HOLES_AT + SLOTS * PAGE;
#[cfg(not(loom))]
const _: () = assert!(QUEUES_AT.is_multiple_of(PAGE) && HOMES_AT.is_multiple_of(PAGE));

/// Bytes of a ring's bulk: whole pages.
pub const fn bulk_len(ring: usize) -> usize {
    (ring - HOME).next_multiple_of(PAGE)
}

/// Length of a channel's memfd.
pub const fn channel_len(ring: usize) -> usize {
    FIXED_LEN + SLOTS * 2 * bulk_len(ring)
}

/// Offset of slot `i`'s header in the channel.
pub const fn header_at(i: usize) -> usize {
    page_at(i) + HOME
}

/// Offset of slot `i`'s page, in which its header lies.
pub const fn page_at(i: usize) -> usize {
    HOMES_AT + i * PAGE
}

/// The holes of a slot's rings, by the sender's `Role`: places of the ring whose bytes lie elsewhere.
pub type Holes = [[hole::Entry; HOLES]; 2];

/// Offset of the page in which slot `i`'s [`Holes`] are.
pub const fn holes_at(i: usize) -> usize {
    HOLES_AT + i * PAGE
}

/// Offset of the home of slot `i`'s ring `dir` (0 or 1) in the channel: the ring's first [`HOME`] bytes.
pub const fn home_at(i: usize, dir: usize) -> usize {
    match dir {
        0 => page_at(i),
        _ => header_at(i) + HEADER_ROOM,
    }
}

/// Offset of the bulk of slot `i`'s ring `dir` in the channel: the ring's bytes from [`HOME`] on.
pub const fn bulk_at(ring: usize, i: usize, dir: usize) -> usize {
    FIXED_LEN + (2 * i + dir) * bulk_len(ring)
}

/// Offset in the channel of the byte at offset `off` of slot `i`'s ring `dir`.
pub const fn byte_at(ring: usize, i: usize, dir: usize, off: usize) -> usize {
    if off < HOME { home_at(i, dir) + off } else { bulk_at(ring, i, dir) + (off - HOME) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn homes_share_the_headers_page_and_bulks_tile_the_rest() {
        for i in 0..SLOTS {
            let (h, h0, h1) = (header_at(i), home_at(i, 0), home_at(i, 1));
            assert_eq!(h % 64, 0);
            assert_eq!(h0 + HOME, h);
            assert!(h + size_of::<SlotHeader>() <= h1);
            assert_eq!((h0 / PAGE, (h1 + HOME - 1) / PAGE), (page_at(i) / PAGE, page_at(i) / PAGE));
            assert!(page_at(i) >= HOMES_AT && page_at(i) + PAGE <= HOLES_AT);
            assert!(holes_at(i) >= HOLES_AT && holes_at(i) + size_of::<Holes>() <= FIXED_LEN);
        }
        for ring in [RING_MIN, 1 << 14, 1 << 21, RING_MAX] {
            let mut end = FIXED_LEN;
            for i in 0..SLOTS {
                for dir in 0..2 {
                    assert_eq!(bulk_at(ring, i, dir), end);
                    assert!(HOME + bulk_len(ring) >= ring && bulk_len(ring).is_multiple_of(PAGE));
                    end += bulk_len(ring);
                }
            }
            assert_eq!(end, channel_len(ring));
        }
    }
}
