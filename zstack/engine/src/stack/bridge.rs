//! A bridge ([`Config::bridge`](super::Config::bridge)): what it takes of the packets that arrive, what goes on to others here who have
//! the same addresses, and the packets that those send.
//!
//! In: `arrive` finds the connection as ever. What has none comes here: a SYN that a listener would get is its own if the
//! [host takes it](Host::takes), an ACK if it brings a cookie back; all else goes on by [`Host::pass`]. No RST is sent for it: whoever
//! gets it answers.
//!
//! Out: [`Stack::forward`] sends a packet as it is. While the neighbour on its way is asked for it waits in a [`Queue`], as the first ping or
//! datagram of Linux does (`unres_qlen`).

use super::Stack;
use super::arrive::Arrived;
use super::entry::look_up;
use super::transmit::Run;
use crate::counters::Counter;
use crate::net::{Event, NeighbourId, Onward, Segment, Unforwarded};
use crate::payload::{Buffer, Host};
use crate::port::{Port, Refused};
use crate::time::Time;
use crate::tuple::Tuple;
use std::collections::VecDeque;
use std::ops::Range;
use zstack_wire::tcp::Flags;

/// Packets that wait for one neighbour, and for all, at most; the oldest makes room.
const EACH: usize = 16;
const ALL: usize = 256;

/// Packets that wait for neighbours, in the order in which they came.
#[derive(Debug, Default)]
pub(super) struct Queue(VecDeque<(NeighbourId, Box<[u8]>)>);

impl Queue {
    /// Returns how many were dropped to make room.
    fn push(&mut self, neighbour: NeighbourId, packet: Box<[u8]>) -> u64 {
        let mut of_it = self.0.iter().enumerate().filter(|(_, (other, _))| *other == neighbour);
        let first = of_it.next().map(|(place, _)| place);
        let crowded = if of_it.count() + 1 >= EACH { first } else { None };
        let oldest = crowded.or((self.0.len() >= ALL).then_some(0));
        if let Some(oldest) = oldest {
            self.0.remove(oldest);
        }
        self.0.push_back((neighbour, packet));
        u64::from(oldest.is_some())
    }

    /// Those that wait for this neighbour, or all.
    fn take(&mut self, neighbour: Option<NeighbourId>) -> VecDeque<(NeighbourId, Box<[u8]>)> {
        let Some(neighbour) = neighbour else { return std::mem::take(&mut self.0) };
        let (taken, left) = std::mem::take(&mut self.0).into_iter().partition(|(other, _)| *other == neighbour);
        self.0 = left;
        taken
    }

    pub fn clear(&mut self) {
        self.0.clear();
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }
}

impl Stack {
    /// Sends an IP packet of somebody else's: whole, with its checksums. It goes to the wire as it is, its TTL too, by our routes: to the
    /// neighbour on the way, whose station is asked for if need be; to groups and to all as such. A copy waits meanwhile, and the
    /// owner hears by [`Host::undelivered`] if the neighbour does not answer.
    ///
    /// What is sent may lie at the port until the next turn's end ([`Port::flush`]); a neighbour is asked for in the next turn. So a
    /// turn, or [`Stack::flush`], has to follow one packet or several.
    ///
    /// # Errors
    /// It was not sent, and is counted by the reason.
    pub fn forward<P: Port>(&mut self, now: Time, port: &mut P, packet: &[u8]) -> Result<(), Unforwarded> {
        let sent = self.send_on(now, port, packet);
        let core = &mut self.core;
        core.counters.count(match sent {
            Ok(None) => Counter::BridgePassedOut,
            Ok(Some(neighbour)) => {
                core.counters[Counter::BridgeWaited] += self.queued.push(neighbour, packet.into());
                return Ok(());
            }
            Err(unsent) => reason(unsent),
        });
        sent.map(|_| ())
    }

    /// Sends it, or says for which neighbour it has to wait.
    fn send_on<P: Port>(&mut self, now: Time, port: &mut P, packet: &[u8]) -> Result<Option<NeighbourId>, Unforwarded> {
        let core = &mut self.core;
        if core.gone {
            return Err(Unforwarded::Gone);
        }
        let len = match core.net.forward(now, &mut core.reply, packet)? {
            Onward::Send(len) => len,
            Onward::Wait(neighbour) => return Ok(Some(neighbour)),
        };
        match core.send_reply(port, len) {
            Ok(_) => Ok(None),
            Err(Refused::Full) => Err(Unforwarded::Full),
            Err(Refused::Unfit) => Err(Unforwarded::Unfit),
            Err(Refused::Gone) => Err(Unforwarded::Gone),
        }
    }

    /// Something has happened to a neighbour that packets may wait for.
    pub(super) fn queued_ask<P: Port<Buffer = H::Buffer>, H: Host>(&mut self, run: &mut Run<'_, P, H>, event: Event) {
        if self.queued.len() == 0 {
            return;
        }
        let (neighbour, gone) = match event {
            Event::Ask(neighbour) => (Some(neighbour), false),
            // Who asked again would push out another neighbour, if this one was pushed out.
            Event::Unreachable(neighbour) => (Some(neighbour), true),
            Event::AskAll => (None, false),
        };
        for (_, packet) in self.queued.take(neighbour) {
            let sent = if gone { Err(Unforwarded::Unreachable) } else { self.forward(run.now, run.port, &packet) };
            if gone {
                self.core.counters.count(Counter::BridgeUnreachable);
            }
            if sent == Err(Unforwarded::Unreachable) {
                run.host.undelivered(&packet);
            }
        }
    }

    /// Passes on the packet whose frame begins at `start`.
    #[cold]
    pub(super) fn pass<P: Port<Buffer = H::Buffer>, H: Host>(
        &mut self,
        run: &mut Run<'_, P, H>,
        buffer: H::Buffer,
        start: usize,
    ) {
        let packet = buffer.bytes().get(start..).and_then(|frame| self.core.net.packet(frame));
        let passed = packet.is_some_and(|packet| run.host.pass(buffer, start + packet.start..start + packet.end));
        self.core.counters.count(if passed { Counter::BridgePassedIn } else { Counter::BridgeNobody });
    }

    /// A segment that is wrong. Whose it would be is only known if it is long enough to have ports: what is nobody's here goes on, and is
    /// counted where it ends.
    #[cold]
    pub(super) fn damaged<P: Port<Buffer = H::Buffer>, H: Host>(
        &mut self,
        run: &mut Run<'_, P, H>,
        buffer: H::Buffer,
        start: usize,
        ip: &Segment,
        reason: Counter,
    ) {
        let ours = |stack: &mut Stack| {
            let bytes = buffer.bytes().get(start + ip.range.start..start + ip.range.end)?;
            let [a, b, c, d] = *bytes.first_chunk()?;
            let (remote_port, local_port) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
            let tuple = Tuple { local: ip.destination, remote: ip.source, local_port, remote_port };
            let known = look_up(&stack.conns, &stack.table, &stack.key, &tuple).is_some();
            (known || stack.waiting.get(run.now, &tuple).is_some()).then_some(())
        };
        if !self.core.bridge || ours(self).is_some() {
            self.core.counters.count(reason);
            return;
        }
        self.pass(run, buffer, start);
    }

    /// A segment of no connection, in the frame that begins at `start`; `segment`: where it lies in the buffer.
    #[inline(never)]
    pub(super) fn guest<P: Port<Buffer = H::Buffer>, H: Host>(
        &mut self,
        run: &mut Run<'_, P, H>,
        start: usize,
        segment: Range<usize>,
        arrived: Arrived<'_, H::Buffer>,
    ) {
        let Arrived { tuple, header, ref buffer, ref payload } = arrived;
        let Some(behind) = self.rests(run, &tuple, header, payload.len() as u32) else { return };
        let flags = header.flags;
        if let Some(listener) = self.core.listeners.find(tuple.local().ip(), tuple.local_port)
            && !flags.has(Flags::RST)
        {
            let whole = buffer.bytes().get(segment.clone()).unwrap_or_default();
            if flags.has(Flags::ACK) {
                if !flags.has(Flags::SYN)
                    && self.brings_cookie(run.now, listener, &tuple, header)
                    && run.host.takes(tuple.local(), tuple.remote(), whole)
                {
                    return self.cookie_back(run, listener, arrived);
                }
            } else if flags.has(Flags::SYN)
                && !flags.has(Flags::FIN)
                && !self.has_options(buffer, start, &segment)
                && run.host.takes(tuple.local(), tuple.remote(), whole)
            {
                return self.syn(run, listener, &tuple, header, behind);
            }
        }
        if behind.is_some() {
            // A new connection with the addresses of one that rests here is somebody else's: what follows must not be answered here.
            self.waiting.remove(&tuple);
        }
        self.pass(run, arrived.buffer, start);
    }

    /// Whether the segment's IPv4 header has options: it does not lie right behind the shortest one.
    fn has_options(&self, buffer: &impl Buffer, start: usize, segment: &Range<usize>) -> bool {
        let Some(frame) = buffer.bytes().get(start..) else { return true };
        let Some(packet) = self.core.net.packet(frame) else { return true };
        frame[packet.start] >> 4 == 4 && segment.start != start + packet.start + zstack_wire::ipv4::HEADER
    }
}

fn reason(unsent: Unforwarded) -> Counter {
    match unsent {
        Unforwarded::Malformed => Counter::BridgeMalformed,
        Unforwarded::TooBig(_) => Counter::BridgeTooBig,
        Unforwarded::Ours => Counter::BridgeOurs,
        Unforwarded::NoRoute => Counter::BridgeNoRoute,
        Unforwarded::Unreachable => Counter::BridgeUnreachable,
        Unforwarded::Full | Unforwarded::Unfit | Unforwarded::Gone => Counter::BridgePort,
    }
}
