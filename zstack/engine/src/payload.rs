//! The buffer contract: who owns the bytes that the engine sends and those that it received.
//!
//! The engine keeps no payload. It asks its [`Host`] for the memory behind a range of a connection's outgoing stream
//! ([`Host::spans`]), lets the port read it, and says when a range may be used again ([`Host::release`]). What arrives it hands
//! over in the port's own buffer ([`Host::place`]), and says when it is in order ([`Host::publish`]).
//!
//! Positions count the bytes of one direction of one connection, from 0 for the first byte behind the SYN; they never wrap.

use crate::event::{ConnId, Event, ListenerId};
use std::net::SocketAddr;
use std::ops::Range;

/// What a port must know of the memory that a span lies in: a number that the owner of the memory and the port agreed upon
/// (a registration with the device); 0 is memory about which nothing is known but that this process can read it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Region(pub u32);

/// Bytes that somebody else owns, and may write meanwhile if he shares them with others: they are read by address, never by
/// a reference.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Span {
    /// The first byte.
    pub start: *const u8,
    /// How many bytes there are.
    pub len: u32,
    /// The memory that they lie in.
    pub region: Region,
}

impl Span {
    /// No bytes.
    pub const EMPTY: Span = Span { start: std::ptr::null(), len: 0, region: Region(0) };
}

/// A stretch of a stream in memory: two spans where a ring wraps or one buffer of a list ends; the second may be empty.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Spans(pub [Span; 2]);

impl Spans {
    /// No bytes.
    pub const EMPTY: Spans = Spans([Span::EMPTY; 2]);

    /// The bytes of both.
    #[inline]
    pub fn len(&self) -> u32 {
        self.0[0].len + self.0[1].len
    }

    /// Whether there are none.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A packet's memory, owned by whoever holds this; dropping it gives the memory back to its port.
pub trait Buffer: 'static {
    /// What was received, whole.
    fn bytes(&self) -> &[u8];

    /// Whether the port runs out of buffers: who would keep this one should copy what he needs and drop it.
    fn scarce(&self) -> bool;
}

/// A buffer whose bytes may be pointed at, so that what was received can be sent on from where it is.
///
/// # Safety
/// Until it is dropped, [`Buffer::bytes`] names the same memory each time, also when the buffer was moved, and nobody writes there.
#[allow(unsafe_code)]
pub unsafe trait Pinned: Buffer {}

/// Whoever owns the streams of a stack's connections: the memory that is sent from, and the place for what arrives.
///
/// The stack calls these from within its own calls, on the caller's thread; an implementation must not call the stack.
///
/// # Safety
/// Every span that `spans` returned must stay mapped and readable until `release` has passed its end, or the connection's
/// `Event::Free` was told. Other processes may write it meanwhile.
pub unsafe trait Host {
    /// The buffers of the port.
    type Buffer: Buffer;

    /// The memory behind `len` bytes of the outgoing stream from position `from` on. All of them were committed
    /// ([`crate::stack::Stack::commit`]) and none released. Fewer bytes than asked for, though never none, where they lie in more than two pieces.
    fn spans(&mut self, conn: ConnId, from: u64, len: u32) -> Spans;

    /// Everything below position `to` of the outgoing stream may be used for other things: the peer has acknowledged it and no
    /// packet that the port has not yet read points at it.
    fn release(&mut self, conn: ConnId, to: u64);

    /// Bytes `range` of `buffer` are those of the incoming stream from position `at` on. They lie below the edge that was last
    /// named to [`crate::stack::Stack::room`], and may lie ahead of what was published, with a gap; no byte that was published
    /// comes again, one that was placed and not published may, with other contents. The implementation copies, or keeps the buffer. False: it can do neither now, and
    /// the bytes count as not received.
    fn place(&mut self, conn: ConnId, at: u64, buffer: Self::Buffer, range: Range<usize>) -> bool;

    /// Everything below position `to` of the incoming stream has been placed: it can be read.
    fn publish(&mut self, conn: ConnId, to: u64);

    /// Something else has happened.
    fn event(&mut self, conn: ConnId, event: Event);

    /// Whether one more connection that comes to `listener` can be taken: asked when a SYN comes, and when a cookie comes back. If not,
    /// it is dropped without an answer, and the peer tries again, as with a full accept queue of Linux. Those that are half open by
    /// then come all the same: [`crate::stack::Listen::backlog`] bounds them.
    fn admits(&mut self, _listener: ListenerId) -> bool {
        true
    }

    /// Whether a connection from `remote` to `local` shall be the stack's: asked for each SYN of no connection that a listener would get, and
    /// each segment that brings a cookie back, of a bridge ([`crate::stack::Config::bridge`]) alone, before [`Host::admits`]. `segment` is
    /// its TCP header with options, and what it carries; its checksum is right. If not, the packet is passed on.
    fn takes(&mut self, _local: SocketAddr, _remote: SocketAddr, _segment: &[u8]) -> bool {
        true
    }

    /// An IP packet to one of our addresses that a bridge ([`crate::stack::Config::bridge`]) has no use for, `range` of `buffer`,
    /// without link header: other protocols than TCP, fragments, ICMP errors about others' packets, segments of no connection that no
    /// listener takes. Its IP header is good; what follows is not looked at. False: it was dropped.
    fn pass(&mut self, _buffer: Self::Buffer, _range: Range<usize>) -> bool {
        false
    }

    /// A packet that [`crate::stack::Stack::forward`] had taken is dropped: the neighbour on its way does not answer.
    fn undelivered(&mut self, _packet: &[u8]) {}
}
