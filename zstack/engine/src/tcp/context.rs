//! What a connection asks of whoever holds it.

use super::Event;
use super::assembler::Assembler;
use super::recovery::{Flight, Spare};
use crate::counters::Counter;
use crate::payload::Buffer;
use crate::port::Refused;
use crate::time::Time;
use std::ops::Range;
use zstack_wire::tcp::Header;

/// A segment that the port has taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Sent {
    /// The number of the frame: frames that the port accepts later have larger ones.
    pub number: u64,
    /// How many bytes of payload it carries.
    pub len: u32,
}

/// Whoever holds a connection: its stack, for the length of one call.
pub trait Context {
    /// The buffers of the port.
    type Buffer: Buffer;

    /// The moment of this call.
    fn now(&self) -> Time;

    /// Hands one segment to the port: `header`, whose ports the context fills in, and `len` bytes of the outgoing stream from
    /// position `from` on. `cut`: the payload of each segment if the port is to cut this one; 0: it is to be sent as it is.
    ///
    /// The context may send fewer bytes than it was asked for, where they lie in more than two pieces, and then leaves out PSH
    /// and FIN, which belong to the last byte.
    ///
    /// # Errors
    /// The port did not take it. [`Refused::Full`] may also be the context's own limit of one turn: the connection stays
    /// [due](super::Tcb::due), and sends the segment when its output is called again.
    fn transmit(&mut self, header: &Header, from: u64, len: u32, cut: u16) -> Result<Sent, Refused>;

    /// [`Context::transmit`] of a segment without payload: once for all who send one, where `transmit` becomes part of the two
    /// that send payload.
    ///
    /// # Errors
    /// The same.
    #[inline(never)]
    fn transmit_bare(&mut self, header: &Header) -> Result<Sent, Refused> {
        self.transmit(header, 0, 0, 0)
    }

    /// The most payload of a segment that the port cuts; 0: it cuts none.
    fn tso(&self) -> u32;

    /// How many of its frames the port will not read again ([`crate::port::Port::completed`]).
    fn completed(&self) -> u64;

    /// Whether the port may read a frame's payload after it took the frame.
    fn late(&self) -> bool;

    /// See [`crate::payload::Host::release`].
    fn release(&mut self, to: u64);

    /// See [`crate::payload::Host::place`].
    fn place(&mut self, at: u64, buffer: Self::Buffer, range: Range<usize>) -> bool;

    /// See [`crate::payload::Host::publish`].
    fn publish(&mut self, to: u64);

    /// See [`crate::payload::Host::event`].
    fn event(&mut self, event: Event);

    /// Boxes for what a connection needs only while bytes are in flight.
    fn flights(&mut self) -> &mut Spare<Flight>;

    /// Boxes for what a connection needs only while its incoming stream has gaps.
    fn gaps(&mut self) -> &mut Spare<Assembler>;

    /// Something happened that is counted.
    fn count(&mut self, counter: Counter);
}
