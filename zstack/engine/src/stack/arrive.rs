//! What arrives: checks, and whose it is.

use super::echo::Echoed;
use super::entry::{Entry, look_up};
use super::recent::Recent;
use super::transmit::{Core, Run};
use super::{ConnId, Stack};
use crate::counters::Counter;
use crate::net::{self, Carried, Kind, Packet, Quoted, Report, Segment};
use crate::payload::{Buffer, Host};
use crate::port::{Port, Received};
use crate::sip::Key;
use crate::slab::Slab;
use crate::table::Table;
use crate::tcp::{Unreachable, Verdict, reset};
use crate::tuple::Tuple;
use std::ops::Range;
use zstack_wire::Seq;
use zstack_wire::tcp::{self, Flags, Header};

/// A segment of no connection, with what it carries.
pub(super) struct Arrived<'a, B> {
    pub tuple: Tuple,
    pub header: &'a Header,
    pub buffer: B,
    /// Where in the buffer the payload lies.
    pub payload: Range<usize>,
}

impl Stack {
    /// A packet. A plain segment of a connection goes the short way: its addresses and ports are looked up before they are looked at,
    /// for those of a connection are good. All else goes the long one.
    #[inline(always)]
    pub(super) fn arrive<P: Port<Buffer = H::Buffer>, H: Host>(
        &mut self,
        run: &mut Run<'_, P, H>,
        packet: Received<H::Buffer>,
    ) {
        let Received { buffer, range, verified } = packet;
        let Some(frame) = buffer.bytes().get(range.clone()) else {
            self.core.counters.count(Counter::LinkShort);
            return;
        };
        let Stack { conns, recent, table, key, core, .. } = self;
        let search = Search { conns, recent, table, key, verified };
        if let Some(packet) = core.net.quick_packet(frame)
            && let Some(Found { id, entry, segment, start }) = search.find(packet)
        {
            let start = range.start + start;
            let payload = start + segment.header_len()..start + segment.len();
            match segment.plain() {
                Some(plain) if entry.tcb.expects(&plain, payload.len() as u32) => {
                    entry.call(run, &mut self.core, id, |tcb, cx| tcb.expected(cx, &plain, buffer, payload));
                }
                _ => unexpected(run, &mut self.core, id, entry, buffer, start..payload.end),
            }
            let wants = entry.wants(self.core.full);
            self.follow(run.now, id.index, wants);
            return;
        }
        self.arrive_slowly(run, Received { buffer, range, verified });
    }

    /// What is not a plain segment of a connection.
    #[cold]
    fn arrive_slowly<P: Port<Buffer = H::Buffer>, H: Host>(
        &mut self,
        run: &mut Run<'_, P, H>,
        packet: Received<H::Buffer>,
    ) {
        let Received { buffer, range, verified } = packet;
        let Some(frame) = buffer.bytes().get(range.clone()) else { return };
        let core = &mut self.core;
        match core.net.receive(run.now, frame, verified, &mut core.reply, &mut core.counters) {
            net::Verdict::Tcp(segment) => self.tcp(run, buffer, range.start, &segment, verified),
            net::Verdict::Reply(len) => {
                // Whoever asked asks again if there is no room.
                let _ = core.send_reply(run.port, len);
            }
            net::Verdict::Report(report) => {
                if !self.report(run, &report) && self.core.bridge {
                    self.pass(run, buffer, range.start);
                }
            }
            net::Verdict::Echo { from, id, sequence, hops, range: place } => {
                let ours = self.echoed(id, || {
                    let data = frame.get(place).unwrap_or_default().to_vec();
                    Echoed { from, sequence, hops, data }
                });
                if !ours && self.core.bridge {
                    self.pass(run, buffer, range.start);
                }
            }
            net::Verdict::Pass => self.pass(run, buffer, range.start),
            net::Verdict::Done | net::Verdict::Dropped(_) => {}
        }
    }

    /// A segment: `start` is where in the buffer the frame begins.
    fn tcp<P: Port<Buffer = H::Buffer>, H: Host>(
        &mut self,
        run: &mut Run<'_, P, H>,
        buffer: H::Buffer,
        start: usize,
        ip: &Segment,
        verified: bool,
    ) {
        let range = start + ip.range.start..start + ip.range.end;
        let Some(bytes) = buffer.bytes().get(range.clone()) else { return };
        if !verified && !ip.pseudo().bytes(bytes).valid() {
            return self.damaged(run, buffer, start, ip, Counter::TcpChecksum);
        }
        let segment = match tcp::Segment::parse(bytes) {
            Ok(segment) if segment.source() != 0 && segment.destination() != 0 => segment,
            _ => return self.damaged(run, buffer, start, ip, Counter::TcpMalformed),
        };
        let header = segment.header();
        let payload = range.start + segment.header_len()..range.end;
        let tuple = tuple_of(ip, &segment);
        match look_up(&self.conns, &self.table, &self.key, &tuple) {
            Some(index) => self.visit(run, index, false, |tcb, cx| tcb.segment(cx, &header, buffer, payload)),
            None if self.core.bridge => {
                self.guest(run, start, range, Arrived { tuple, header: &header, buffer, payload });
            }
            None => self.stranger(run, Arrived { tuple, header: &header, buffer, payload }),
        }
    }

    /// A segment of no connection: TIME-WAIT, a listener, or a mistake.
    #[inline(never)]
    fn stranger<P: Port<Buffer = H::Buffer>, H: Host>(
        &mut self,
        run: &mut Run<'_, P, H>,
        arrived: Arrived<'_, H::Buffer>,
    ) {
        let Arrived { tuple, header, ref payload, .. } = arrived;
        let Some(behind) = self.rests(run, &tuple, header, payload.len() as u32) else { return };
        if header.flags.has(Flags::RST) {
            self.core.counters.count(Counter::TcpUnknown);
            return;
        }
        match self.core.listeners.find(tuple.local().ip(), tuple.local_port) {
            Some(listener) => self.knock(run, listener, arrived, behind),
            None => self.reset(run, &tuple, header, payload.len() as u32),
        }
    }

    /// What TIME-WAIT, if the tuple is in it, says to a segment. `None`: it was for the connection that has ended. `Some`: whoever else may
    /// have it; a connection that comes of it begins behind that number, if there is one.
    #[inline(always)]
    pub(super) fn rests<P: Port<Buffer = H::Buffer>, H: Host>(
        &mut self,
        run: &mut Run<'_, P, H>,
        tuple: &Tuple,
        header: &Header,
        len: u32,
    ) -> Option<Option<Seq>> {
        let Some(rest) = self.waiting.get(run.now, tuple) else { return Some(None) };
        self.core.counters.count(Counter::TimeWaitSegment);
        match rest.segment(run.now, header, len) {
            Verdict::Drop => {}
            Verdict::Restart => self.waiting.restart(run.now, tuple),
            Verdict::Answer(answer) => {
                self.waiting.restart(run.now, tuple);
                self.core.send_segment(run.now, run.port, tuple, &answer);
            }
            Verdict::Only(answer) => {
                self.core.send_segment(run.now, run.port, tuple, &answer);
            }
            Verdict::Forget => self.waiting.remove(tuple),
            Verdict::Reuse(iss) => return Some(Some(iss)),
        }
        None
    }

    /// RST to a segment of no connection (RFC 9293, section 3.10.7.1).
    pub(super) fn reset<P: Port<Buffer = H::Buffer>, H: Host>(
        &mut self,
        run: &mut Run<'_, P, H>,
        tuple: &Tuple,
        header: &Header,
        len: u32,
    ) {
        self.core.counters.count(Counter::TcpUnknown);
        let Some(answer) = reset(header, len) else { return };
        if !self.core.resets.take(run.now, &tuple.remote) {
            self.core.counters.count(Counter::TcpUnknownLimited);
            return;
        }
        if self.core.send_segment(run.now, run.port, tuple, &answer) {
            self.core.counters.count(Counter::TcpUnknownReset);
        }
    }

    /// An ICMP error. It is believed if it quotes a segment that is in flight (RFC 5927, section 4.1).
    /// False: it is about nothing of ours.
    fn report<P: Port<Buffer = H::Buffer>, H: Host>(&mut self, run: &mut Run<'_, P, H>, report: &Report) -> bool {
        let Quoted::Tcp { local, remote, seq } = report.quoted else { return false };
        let tuple = Tuple::new(local, remote);
        let Some(index) = look_up(&self.conns, &self.table, &self.key, &tuple) else {
            let rests = self.waiting.get(run.now, &tuple).is_some();
            if rests || !self.core.bridge {
                self.core.counters.count(Counter::IcmpUnknown);
            }
            return rests;
        };
        let Some(entry) = self.conns.at(index) else { return true };
        if !entry.tcb.in_flight(seq) {
            self.core.counters.count(Counter::IcmpOutside);
            return true;
        }
        let error = match report.kind {
            Kind::TooBig(mtu) => {
                self.too_big(run, index, mtu);
                return true;
            }
            Kind::Network => Unreachable::Net,
            Kind::Host | Kind::TimeExceeded => Unreachable::Host,
            Kind::Port => Unreachable::Port,
            Kind::Protocol if report.from.is_ipv4() => Unreachable::Protocol,
            Kind::Prohibited if report.from.is_ipv4() => Unreachable::Prohibited,
            Kind::Prohibited => Unreachable::Denied,
            Kind::NetworkProhibited => Unreachable::NetProhibited,
            Kind::HostUnknown => Unreachable::HostUnknown,
            Kind::Isolated => Unreachable::Isolated,
            Kind::SourceRoute => Unreachable::SourceRoute,
            // What a host does not speak is a wrong header to IPv6.
            Kind::Protocol | Kind::Malformed => Unreachable::Malformed,
        };
        self.core.counters.count(Counter::IcmpError);
        self.visit(run, index, false, |tcb, cx| tcb.icmp(cx, error, seq));
        true
    }

    /// The path MTU is smaller than a segment that is in flight (RFC 1191, RFC 8201).
    fn too_big<P: Port<Buffer = H::Buffer>, H: Host>(&mut self, run: &mut Run<'_, P, H>, index: u32, mtu: u16) {
        let Some(entry) = self.conns.at_mut(index) else { return };
        let remote = entry.names.tuple.remote().ip();
        match self.core.net.too_big(run.now, &mut entry.names.path, remote, mtu) {
            Some(mtu) => {
                self.core.counters.count(Counter::IcmpError);
                entry.tcb.mtu(super::config::mss(mtu, remote.is_ipv4()));
                self.settle(run.now, index);
            }
            None => {
                // Another connection may have been told before; this one learns it now.
                let mtu = self.core.net.mtu(run.now, remote);
                entry.tcb.mtu(super::config::mss(mtu, remote.is_ipv4()));
                self.core.counters.count(Counter::IcmpMtu);
                self.settle(run.now, index);
            }
        }
    }
}

/// A segment that its connection did not expect: `range` of `buffer` is all of it.
#[cold]
fn unexpected<P: Port<Buffer = H::Buffer>, H: Host>(
    run: &mut Run<'_, P, H>,
    core: &mut Core,
    id: ConnId,
    entry: &mut Entry,
    buffer: H::Buffer,
    range: Range<usize>,
) {
    // It was read before.
    let Some(Ok((header, len))) = buffer.bytes().get(range.clone()).map(Header::parse) else { return };
    let payload = range.start + len..range.end;
    entry.call(run, core, id, |tcb, cx| tcb.segment(cx, &header, buffer, payload));
}

#[inline]
fn tuple_of(ip: &Segment, segment: &tcp::Segment<'_>) -> Tuple {
    Tuple { local: ip.destination, remote: ip.source, local_port: segment.destination(), remote_port: segment.source() }
}

/// Among whom the connection of a segment is looked for.
struct Search<'a> {
    conns: &'a mut Slab<Entry>,
    recent: &'a mut Recent,
    table: &'a Table,
    key: &'a Key,
    /// The segment's checksum is known to be right.
    verified: bool,
}

/// A segment whose connection was found.
struct Found<'a, 'f> {
    id: ConnId,
    entry: &'a mut Entry,
    segment: tcp::Segment<'f>,
    /// Where in the frame it begins.
    start: usize,
}

impl<'a> Search<'a> {
    /// Finds the connection of a packet's segment.
    #[inline(always)]
    fn find<'f>(self, packet: Packet<'f>) -> Option<Found<'a, 'f>> {
        // Each family has a copy of its own of what follows, which need not ask of which family the segment is.
        match packet.v4() {
            Some(carried) => self.among(carried),
            None => self.among(packet.v6()?),
        }
    }

    #[inline(always)]
    fn among<'f>(self, carried: Carried<'f>) -> Option<Found<'a, 'f>> {
        let segment = tcp::Segment::parse(carried.bytes).ok()?;
        if !self.verified && !carried.valid() {
            return None;
        }
        let (source, destination) = (segment.source(), segment.destination());
        let index = self.recent.guess(&carried.ends, source, destination);
        if self.conns.at(index).is_some_and(|entry| entry.names.are(&carried.ends, source, destination)) {
            let (generation, entry) = self.conns.entry_mut(index)?;
            return Some(Found { id: ConnId { index, generation }, entry, segment, start: carried.start });
        }
        let index = sought(self.conns, self.recent, self.table, self.key, carried, segment)?;
        let (generation, entry) = self.conns.entry_mut(index)?;
        Some(Found { id: ConnId { index, generation }, entry, segment, start: carried.start })
    }
}

/// The index of a segment's connection by the table. What is given by value need not lie in memory where this is not called.
#[cold]
fn sought(
    conns: &Slab<Entry>,
    recent: &mut Recent,
    table: &Table,
    key: &Key,
    carried: Carried<'_>,
    segment: tcp::Segment<'_>,
) -> Option<u32> {
    let index = look_up(conns, table, key, &tuple_of(&carried.segment(), &segment))?;
    recent.found(&carried.ends, segment.source(), segment.destination(), index);
    Some(index)
}
