//! The memory two processes share: one sealed memfd per channel.
//!
//! ```text
//! offset 0        Header                     identity, geometry, offers
//! QUEUES_AT       Queue[2][POLLERS]          per side and poller: armed word, ready bits
//! SLOTS_AT        SLOTS x stride(ring)       one connection each
//!
//! a slot:  [ ring 0 .......... home 0 | SlotHeader | home 1 .......... ring 1 ]
//!                              \______ one 4 KiB page ______/
//! ```
//! A ring that has been drained starts again at its *home*, the part that shares a page with the slot's
//! header: a connection that exchanges small messages, or none, touches one page for both directions.

use crate::sync::{AtomicU32, AtomicU64};

/// `"culvert\x01"`, little endian: a channel of this layout.
pub const MAGIC: u64 = u64::from_le_bytes(*b"culvert\x01");
/// Changes with every incompatible change of this file. Peers of another version stay on the kernel.
///
/// Built with `CULVERT_OTHER_VERSION` set, a library is of another version than all others: for tests.
pub const VERSION: u32 = if option_env!("CULVERT_OTHER_VERSION").is_none() { 5 } else { u16::MAX as u32 };
/// Connections in one channel: one bit each in a [`Queue`]'s ready word.
pub const SLOTS: usize = 64;
/// Pollers of one process that can be named in a channel: one bit each in [`Side::pollers`].
pub const POLLERS: usize = 64;
/// Bytes of a ring that share a page with the slot's header.
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
    /// Per side: its process has forked since. Other processes may hold its connections: that it lives does not
    /// mean that the holder of a connection does.
    pub forked: [AtomicU32; 2],
}

/// An offer: "the connection whose two sockets have these cookies has this slot". Written by the
/// acceptor; `slot` is stored last. Read by the connector, who stores 0 to `slot` to take or refuse it.
#[repr(C, align(64))]
pub struct Offer {
    /// `SO_COOKIE` of the connector's socket.
    pub connector: AtomicU64,
    /// `SO_COOKIE` of the acceptor's socket.
    pub acceptor: AtomicU64,
    /// Slot index + 1; 0 when there is no offer.
    pub slot: AtomicU32,
}

/// [`Queue::armed`]: the poller sleeps on this word (`FUTEX_WAIT`), and not for long, instead of on its doorbell.
pub const DOZING: u32 = 1 << 31;

/// One poller of one side, as the other side sees it.
#[repr(C, align(64))]
#[derive(Default)]
pub struct Queue {
    /// Non-zero while the poller sleeps or is about to: its sleep generation, perhaps with [`DOZING`].
    pub armed: AtomicU32,
    _pad: u32,
    /// Bit per slot: "look at this connection".
    pub ready: AtomicU64,
}

/// What one side says about itself, rarely written: stays shared in the other side's cache.
#[repr(C, align(64))]
#[derive(Default)]
pub struct Side {
    /// Bit per poller of this side to notify when something happens on this slot.
    pub pollers: AtomicU64,
    /// Sender: stream position + 1 from which this side sends on the ring; 0 = still on the lifeline.
    pub up: AtomicU64,
    /// Sender: ring position + 1 at which this side's stream returned to the lifeline; 0 = it did not.
    pub down: AtomicU64,
    /// Arbiter of this side's incoming ring, moved from 0 once, by CAS: to ring position + 1 by this side
    /// when it stops reading the ring there for good (the peer then sends what follows over the
    /// lifeline), or to [`CLOSED`] by the peer when it goes down. Whoever comes first decides.
    pub rewind: AtomicU64,
    /// Receiver: [`READY`] or [`REFUSED`].
    pub rx: AtomicU32,
    /// Sender: waits for ring space; 0, or the number of the wish (see [`ring::want_space`](crate::ring::want_space)).
    pub want_space: AtomicU32,
    /// Sender: [`WR_SHUT`] once `shutdown` was called (so a FIN is no sign of death).
    pub wr_shut: AtomicU32,
    /// No process of this side holds the connection any more.
    pub gone: AtomicU32,
    /// Sender that went down: ring position + 1 from which on the unread bytes were *also* sent over the
    /// lifeline, from its position X on; 0 = none were. Published before `down`. [`ECHOED`] is added once all
    /// of them are the kernel's. A receiver that goes on with the ring drops them there; one that must leave
    /// reads them there.
    pub echo: AtomicU64,
    /// Sender: bytes of `SO_SNDBUF`, if the program has set it, else 0. It changes only while the ring is empty,
    /// so that the receiver knows it when it reads the tail of what was sent under it.
    pub sndbuf: AtomicU32,
    /// Receiver: the same of `SO_RCVBUF`. It does not change once [`Side::rx`] is set.
    pub rcvbuf: AtomicU32,
}

/// [`Side::rewind`]: the sender has gone down; the receiver must drain the ring to its end.
pub const CLOSED: u64 = u64::MAX;
/// [`Side::echo`]: all of it is the kernel's.
pub const ECHOED: u64 = 1 << 63;
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
    /// Ring position after the last published byte.
    pub tail: AtomicU64,
    /// Ring position that lies at offset [`home_offset`]; changes only while the ring is empty.
    pub base: AtomicU64,
    /// When the other side's pollers were told of the first news that they have not taken yet, in cycles of the
    /// time-stamp counter.
    pub told: AtomicU64,
}

/// Written by a ring's receiver whenever it consumes.
#[repr(C, align(64))]
#[derive(Default)]
pub struct Consumer {
    /// Ring position after the last consumed byte.
    pub head: AtomicU64,
}

/// In the middle of a slot.
#[repr(C, align(64))]
pub struct SlotHeader {
    /// Indexed by `Role as usize`.
    pub side: [Side; 2],
    /// Indexed by the sender's `Role`.
    pub producer: [Producer; 2],
    /// Indexed by the *sender's* `Role`.
    pub consumer: [Consumer; 2],
}

const HEADER_ROOM: usize = PAGE - 2 * HOME;
// loom's atomics are larger; nothing is mapped there.
#[cfg(not(loom))]
const _: () = {
    assert!(size_of::<SlotHeader>() <= HEADER_ROOM);
    assert!(size_of::<Queue>() == 64 && size_of::<Side>() == 64);
    assert!(size_of::<Producer>() == 64 && size_of::<Consumer>() == 64);
};

/// Where the offers begin.
pub const OFFERS_AT: usize = PAGE;
/// Where the queues begin: `[side][poller]`.
pub const QUEUES_AT: usize = OFFERS_AT + OFFERS * size_of::<Offer>();
/// Where the slots begin.
pub const SLOTS_AT: usize = QUEUES_AT + 2 * POLLERS * size_of::<Queue>();
#[cfg(not(loom))]
const _: () = assert!(QUEUES_AT.is_multiple_of(PAGE) && SLOTS_AT.is_multiple_of(PAGE));

/// Bytes from one slot to the next.
pub const fn stride(ring: usize) -> usize {
    // ring - HOME bytes before the home page, rounded up to pages, on either side of it.
    2 * (ring - HOME).next_multiple_of(PAGE) + PAGE
}

/// Length of a channel's memfd.
pub const fn channel_len(ring: usize) -> usize {
    SLOTS_AT + SLOTS * stride(ring)
}

/// Offset of slot `i`'s header in the channel.
pub const fn header_at(ring: usize, i: usize) -> usize {
    SLOTS_AT + i * stride(ring) + (ring - HOME).next_multiple_of(PAGE) + HOME
}

/// Offset of slot `i`'s ring `dir` (0 or 1) in the channel: `ring` contiguous bytes.
pub const fn ring_at(ring: usize, i: usize, dir: usize) -> usize {
    match dir {
        0 => header_at(ring, i) - ring,
        _ => header_at(ring, i) + HEADER_ROOM,
    }
}

/// Offset inside ring `dir` at which a drained ring starts again.
pub const fn home_offset(ring: usize, dir: usize) -> usize {
    match dir {
        0 => ring - HOME,
        _ => 0,
    }
}

/// Offset and length of the whole pages of ring `dir` that do not hold the slot's header: what can be given
/// back to the system while the ring is empty.
pub const fn bulk(ring: usize, i: usize, dir: usize) -> (usize, usize) {
    let page = header_at(ring, i) - HOME;
    let room = (ring - HOME).next_multiple_of(PAGE);
    match dir {
        0 => (page - room, room),
        _ => (page + PAGE, room),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_tile_the_channel_and_homes_share_the_headers_page() {
        for ring in [RING_MIN, 1 << 14, 1 << 21] {
            let mut end = SLOTS_AT;
            for i in 0..SLOTS {
                let (h, r0, r1) = (header_at(ring, i), ring_at(ring, i, 0), ring_at(ring, i, 1));
                assert!(r0 >= end);
                assert_eq!(r0 + ring, h);
                assert!(h + size_of::<SlotHeader>() <= r1);
                let page = h / PAGE;
                assert_eq!((r0 + home_offset(ring, 0)) / PAGE, page);
                assert_eq!((r1 + home_offset(ring, 1) + HOME - 1) / PAGE, page);
                assert_eq!(h % 64, 0);
                let ((b0, l0), (b1, l1)) = (bulk(ring, i, 0), bulk(ring, i, 1));
                assert!(b0 >= end && b0 + l0 <= r0 + home_offset(ring, 0));
                assert!(b1 == r1 + HOME && b1 + l1 <= channel_len(ring) && b1 % PAGE == 0 && b0 % PAGE == 0);
                end = r1 + ring;
                assert!(end <= channel_len(ring));
            }
        }
    }
}
