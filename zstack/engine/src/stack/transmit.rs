//! From a segment to a frame: what a connection asks of its stack ([`Context`]), and the segments that the stack sends itself.

#![allow(unsafe_code)]

use super::listeners::Listeners;
use super::names::{Names, TOLD};
use super::{ConnId, Limits, ListenerId};
use crate::counters::{Counter, Counters};
use crate::net::{Interface, NeighbourId, Path, Unsent};
use crate::payload::{Host, Spans};
use crate::port::{Capabilities, Checksum, Frame, Port, Refused};
use crate::rate::Strangers;
use crate::tcp::recovery::{Flight, Spare};
use crate::tcp::{Assembler, Context, Event, Options, Sent, Tcb, Unreachable};
use crate::time::Time;
use crate::tuple::Tuple;
use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use zstack_wire::Seq;
use zstack_wire::tcp::{self, Flags, Header};

/// The longest head of a frame: link, IP and TCP header.
pub(super) const HEAD: usize = Interface::HEAD + tcp::MAX_HEADER;

/// All of a stack but its connections.
pub(super) struct Core {
    pub net: Interface,
    /// [`super::Config::bridge`].
    pub bridge: bool,
    pub listeners: Listeners,
    pub options: Options,
    pub limits: Limits,
    /// How many connections have their turn to send in one of the stack's, at most.
    pub visits: u32,
    pub port: Capabilities,
    pub counters: Counters,
    pub flights: Spare<Flight>,
    pub gaps: Spare<Assembler>,
    /// The number of the next frame that the port accepts. The first one has 1: what has number 0 was read before all.
    pub frames: u64,
    /// The port will not read the frames below this number again.
    pub completed: u64,
    /// Frames with payload that the port may read yet: their numbers and whose they are. Only of a port that reads late.
    pub unread: VecDeque<(u64, u32)>,
    /// Who waits for a neighbour's address. A connection that has gone since may be named, or one that took its place.
    pub waiters: BTreeMap<NeighbourId, Vec<u32>>,
    /// The way to a peer that has acknowledged something new in this turn, the last one: its neighbour is alive. That one a turn is
    /// kept costs a store for each ACK; where there are several neighbours each has its chance often enough.
    pub confirmed: Path,
    pub resets: Strangers,
    /// Where the headers of segments are built: the TCP header has its place, and those below end where it begins.
    pub head: [u8; HEAD],
    /// Where answers to what is no segment are built.
    pub reply: Box<[u8]>,
    /// Frames that were sent in this turn.
    pub sent: u32,
    /// Frames with payload that may be sent in this turn yet.
    pub budget: u32,
    /// The port had no room in this turn.
    pub full: bool,
    /// The port is gone.
    pub gone: bool,
    /// What seldom follows from a connection's call, of which `troubled` says whether there is any.
    pub trouble: Trouble,
    pub troubled: bool,
}

/// Why a connection that was called cannot simply go on.
#[derive(Default)]
pub(super) struct Trouble {
    /// The neighbour that it has to wait for.
    pub blocked: Option<NeighbourId>,
    /// A segment that could not leave, and why.
    pub lost: Option<(Unreachable, Seq)>,
    /// Its listener went before it was established: nobody wants it.
    pub orphan: bool,
}

/// The port and the host of a turn.
pub(super) struct Run<'a, P, H> {
    pub now: Time,
    pub port: &'a mut P,
    pub host: &'a mut H,
}

impl Core {
    /// What the port said to a frame; the frame's number.
    #[inline]
    fn taken(&mut self, result: Result<(), Refused>) -> Result<u64, Refused> {
        match result {
            Ok(()) => {
                let number = self.frames;
                self.frames += 1;
                if !self.port.late {
                    self.completed = self.frames;
                }
                self.sent += 1;
                self.counters.count(Counter::Sent);
                Ok(number)
            }
            Err(refused) => {
                self.refused(refused);
                Err(refused)
            }
        }
    }

    #[cold]
    fn refused(&mut self, refused: Refused) {
        match refused {
            Refused::Full => {
                self.counters.count(Counter::PortFull);
                self.full = true;
            }
            Refused::Unfit => self.counters.count(Counter::PortUnfit),
            Refused::Gone => self.gone = true,
        }
    }

    /// Sends a frame that has no payload of others.
    pub fn send_whole<P: Port>(&mut self, port: &mut P, frame: &[u8]) -> Result<u64, Refused> {
        let frame = Frame { head: frame, payload: Spans::EMPTY, checksum: Checksum::Complete, cut: 0 };
        // SAFETY: there is no payload.
        let result = unsafe { port.send(&frame) };
        self.taken(result)
    }

    /// Sends the first `len` bytes of [`Core::reply`].
    pub fn send_reply<P: Port>(&mut self, port: &mut P, len: usize) -> Result<u64, Refused> {
        let reply = std::mem::take(&mut self.reply);
        let sent = self.send_whole(port, &reply[..len]);
        self.reply = reply;
        sent
    }

    /// Sends a segment without payload that is no connection's. Nobody keeps it: if it cannot be sent now it is lost.
    pub fn send_segment<P: Port>(&mut self, now: Time, port: &mut P, tuple: &Tuple, header: &Header) -> bool {
        let segment = Segment { tuple, header, flags: header.flags, payload: Spans::EMPTY, cut: 0 };
        let Ok((place, checksum)) = self.build(now, &segment, &mut Path::default()) else { return false };
        let frame = Frame { head: &self.head[place], payload: Spans::EMPTY, checksum, cut: 0 };
        // SAFETY: there is no payload.
        let result = unsafe { port.send(&frame) };
        self.taken(result).is_ok()
    }

    /// Builds all headers of a segment in [`Core::head`]; where they stand, and what the port is to do about the checksum.
    #[inline(always)]
    fn build(&mut self, now: Time, segment: &Segment<'_>, path: &mut Path) -> Result<(Range<usize>, Checksum), Unsent> {
        let Segment { tuple, header, flags, payload, cut } = *segment;
        let (below, tcp) = self.head.split_first_chunk_mut::<{ Interface::HEAD }>().expect("room for the TCP header");
        let len = header.emit(tcp);
        tcp[0..2].copy_from_slice(&tuple.local_port.to_be_bytes());
        tcp[2..4].copy_from_slice(&tuple.remote_port.to_be_bytes());
        tcp[tcp::FLAGS] = flags.0;
        let whole = len as u32 + payload.len();
        let (begin, pseudo) = self.net.head(now, below, path, &tuple.local, &tuple.remote, whole, 0)?;
        let (field, checksum) = if self.port.checksum {
            let start = (Interface::HEAD - begin) as u16;
            (pseudo.folded(), Checksum::Partial { start, offset: tcp::CHECKSUM as u16 })
        } else {
            debug_assert_eq!(cut, 0, "a port that cuts computes checksums");
            let mut sum = pseudo.bytes(&tcp[..len]);
            for span in payload.0 {
                if span.len > 0 {
                    // SAFETY: the host promises that its spans are readable.
                    sum = unsafe { sum.memory(span.start, span.len as usize) };
                }
            }
            (sum.field(), Checksum::Complete)
        };
        tcp[tcp::CHECKSUM..tcp::CHECKSUM + 2].copy_from_slice(&field.to_be_bytes());
        Ok((begin..Interface::HEAD + len, checksum))
    }
}

/// A segment that is to be sent.
#[derive(Clone, Copy)]
struct Segment<'a> {
    tuple: &'a Tuple,
    /// All but its ports and flags.
    header: &'a Header,
    flags: Flags,
    payload: Spans,
    cut: u16,
}

/// At most `len` bytes of the spans.
#[inline]
fn first(mut spans: Spans, len: u32) -> Spans {
    let [a, b] = &mut spans.0;
    a.len = a.len.min(len);
    b.len = b.len.min(len - a.len);
    spans
}

/// A stack, as one of its connections sees it while it is called.
pub(super) struct Cx<'a, 'r, P, H> {
    pub run: &'a mut Run<'r, P, H>,
    pub core: &'a mut Core,
    pub id: ConnId,
    pub names: &'a mut Names,
    /// Frames with payload that the connection may send yet before others have their turn.
    pub quota: u32,
}

impl<P: Port<Buffer = H::Buffer>, H: Host> Context for Cx<'_, '_, P, H> {
    type Buffer = H::Buffer;

    #[inline]
    fn now(&self) -> Time {
        self.run.now
    }

    #[inline(always)]
    fn transmit(&mut self, header: &Header, from: u64, len: u32, cut: u16) -> Result<Sent, Refused> {
        if self.core.gone {
            return Err(Refused::Gone);
        }
        if self.core.full {
            return Err(Refused::Full);
        }
        let mut payload = Spans::EMPTY;
        if len > 0 {
            if self.quota == 0 || self.core.budget == 0 {
                return Err(Refused::Full);
            }
            payload = first(self.run.host.spans(self.id, from, len), len);
            if payload.is_empty() {
                // The host breaks its promise: what it cannot show cannot be sent.
                return Err(Refused::Unfit);
            }
        }
        let sent = payload.len();
        let cut = if u32::from(cut) < sent { cut } else { 0 };
        // PSH and FIN belong to the last byte.
        let flags = if sent < len { header.flags.without(Flags::PSH.with(Flags::FIN)) } else { header.flags };
        let segment = Segment { tuple: &self.names.tuple, header, flags, payload, cut };
        let (place, checksum) = match self.core.build(self.run.now, &segment, &mut self.names.path) {
            Ok(built) => built,
            Err(unsent) => return self.unsent(unsent, header.seq, sent),
        };
        let frame = Frame { head: &self.core.head[place], payload, checksum, cut };
        // SAFETY: the host promises that its spans stay readable until they are released, and the connection releases none
        // before the frame that names it is completed.
        let result = unsafe { self.run.port.send(&frame) };
        let number = match self.core.taken(result) {
            Ok(number) => number,
            Err(Refused::Unfit) => return Ok(self.vanished(sent)),
            Err(refused) => return Err(refused),
        };
        if sent > 0 {
            self.quota -= 1;
            self.core.budget -= 1;
            if self.core.port.late {
                self.core.unread.push_back((number, self.id.index));
            }
        }
        Ok(Sent { number, len: sent })
    }

    #[inline]
    fn tso(&self) -> u32 {
        self.core.tso()
    }

    #[inline]
    fn completed(&self) -> u64 {
        self.core.completed
    }

    #[inline]
    fn late(&self) -> bool {
        self.core.port.late
    }

    #[inline]
    fn release(&mut self, to: u64) {
        self.core.confirmed = self.names.path;
        if self.names.marks & TOLD != 0 {
            self.run.host.release(self.id, to);
        }
    }

    #[inline]
    fn place(&mut self, at: u64, buffer: H::Buffer, range: Range<usize>) -> bool {
        self.names.marks & TOLD != 0 && self.run.host.place(self.id, at, buffer, range)
    }

    #[inline]
    fn publish(&mut self, to: u64) {
        if self.names.marks & TOLD != 0 {
            self.run.host.publish(self.id, to);
        }
    }

    fn event(&mut self, event: Event) {
        if self.names.marks & TOLD == 0 {
            // A connection that its host does not know of ends unheard.
            if !matches!(event, Event::Asked | Event::Established) {
                return;
            }
            if !self.core.listeners.contains(self.names.listener) {
                self.core.trouble.orphan = true;
                self.core.troubled = true;
                return;
            }
            self.names.marks |= TOLD;
            self.run.host.event(self.id, Event::Incoming(ListenerId(self.names.listener)));
        }
        self.run.host.event(self.id, event);
    }

    #[inline]
    fn flights(&mut self) -> &mut Spare<Flight> {
        &mut self.core.flights
    }

    #[inline]
    fn gaps(&mut self) -> &mut Spare<Assembler> {
        &mut self.core.gaps
    }

    #[inline]
    fn count(&mut self, counter: Counter) {
        self.core.counters.count(counter);
    }
}

impl Core {
    /// The most payload of a segment that the port cuts.
    #[inline]
    pub fn tso(&self) -> u32 {
        self.port.tso
    }
}

impl<P: Port<Buffer = H::Buffer>, H: Host> Cx<'_, '_, P, H> {
    /// A segment that cannot leave: a neighbour's address is waited for; what has no way counts as lost, as it would be behind
    /// the next router.
    #[cold]
    fn unsent(&mut self, unsent: Unsent, seq: Seq, len: u32) -> Result<Sent, Refused> {
        let error = match unsent {
            Unsent::Unresolved(neighbour) => {
                self.core.trouble.blocked = Some(neighbour);
                self.core.troubled = true;
                return Err(Refused::Full);
            }
            Unsent::Long => {
                self.core.counters.count(Counter::PortUnfit);
                return Ok(self.vanished(len));
            }
            Unsent::NoRoute => {
                self.core.counters.count(Counter::IpNoRoute);
                Unreachable::Net
            }
            Unsent::Unreachable => Unreachable::Host,
        };
        self.core.trouble.lost = Some((error, seq));
        self.core.troubled = true;
        Ok(self.vanished(len))
    }

    /// A segment of which the port took no frame: for TCP it is lost on its way, and the timers see to it. It has the number of
    /// the last frame that was taken, whosever that is: an earlier transmission of the same bytes may be read until then, and
    /// the connection has to be told when it is completed.
    fn vanished(&mut self, len: u32) -> Sent {
        let number = self.core.frames.saturating_sub(1);
        let waits = (number, self.id.index);
        if len > 0 && number >= self.core.completed && self.core.unread.back() != Some(&waits) {
            self.core.unread.push_back(waits);
        }
        Sent { number, len }
    }
}

/// What seldom follows from a call: a segment that could not leave, a connection that nobody wants any more. Returns the neighbour
/// that it has to wait for.
#[cold]
pub(super) fn trouble<P: Port<Buffer = H::Buffer>, H: Host>(
    tcb: &mut Tcb,
    cx: &mut Cx<'_, '_, P, H>,
) -> Option<NeighbourId> {
    let Trouble { blocked, lost, orphan } = std::mem::take(&mut cx.core.trouble);
    if let Some((error, seq)) = lost {
        tcb.icmp(cx, error, seq);
    }
    if orphan {
        tcb.abort();
    }
    cx.core.trouble = Trouble::default();
    cx.core.troubled = false;
    blocked
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::payload::{Region, Span};

    #[test]
    fn no_more_than_was_asked_for() {
        let span = |len| Span { start: std::ptr::null(), len, region: Region(0) };
        let lens = |spans: Spans, len| first(spans, len).0.map(|span| span.len);
        assert_eq!(lens(Spans([span(5), span(7)]), 12), [5, 7]);
        assert_eq!(lens(Spans([span(5), span(7)]), 8), [5, 3]);
        assert_eq!(lens(Spans([span(5), span(7)]), 4), [4, 0]);
        assert_eq!(lens(Spans([span(5), Span::EMPTY]), 9), [5, 0]);
    }
}
