//! The whole engine, for the fuzzer in `tests/fuzz`: bytes become frames, calls and time for a stack with listeners and with
//! connections in every state. After each step everything that is bounded is within its bounds, and names, lists and timers
//! agree; at the end all connections go.
//!
//! [`frames`]: packets that are anything. [`segments`]: segments, and ICMP errors, whose numbers lie near those that count. [`bridge`]:
//! both, for a stack that is a bridge, and the packets of others that it is to send.

mod near;
mod wire;

use super::entry::Waits;
use super::names::{HALF, NAMED, TOLD};
use super::{Adopt, Config, ConnId, Connect, Limits, Listen, ListenerId, Stack};
use crate::net::Address;
use crate::port::{Capabilities, Medium};
use crate::tcp::recovery::Algorithm;
use crate::tcp::{Options, Phase, Stamps, State};
use crate::time::Time;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use wire::{MTU, RING, Stream, Streams, Wire};
use zstack_wire::checksum::Sum;
use zstack_wire::{Seq, ethernet, ipv4, ipv6, protocol};

/// Frames without payload that the stack sends at most in answer to one that arrives, while nothing else is to be done.
const ANSWERS: u32 = 2;

/// Turns at one moment, at most; a stack that has not had enough then never has.
const TURNS: u32 = 10_000;

const OURS: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
const THEIRS: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
const OURS_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1);
const THEIRS_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2);
const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const THEIR_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];

/// Packets that are anything, and calls.
pub fn frames(data: &[u8]) {
    any_frames(data, false);
}

/// Both, the first byte says which, for a bridge.
pub fn bridge(data: &[u8]) {
    match data.split_first() {
        Some((kind, rest)) if kind & 1 == 0 => any_frames(rest, true),
        Some((_, rest)) => near_segments(rest, true),
        None => {}
    }
}

fn any_frames(data: &[u8], bridge: bool) {
    let mut input = Input(data);
    let mut bed = Bed::new(&mut input, bridge);
    while !input.0.is_empty() {
        match input.u8() % 8 {
            0 => bed.raw(&mut input),
            1..=3 => bed.packet(&mut input),
            4 => bed.segment(&mut input),
            _ => bed.step(&mut input),
        }
        bed.turns();
    }
    bed.end();
}

/// Segments near the window, and calls.
pub fn segments(data: &[u8]) {
    near_segments(data, false);
}

fn near_segments(data: &[u8], bridge: bool) {
    let mut input = Input(data);
    let mut bed = Bed::new(&mut input, bridge);
    bed.handshake();
    while !input.0.is_empty() {
        match input.u8() % 8 {
            0..=4 => bed.segment(&mut input),
            5 => bed.icmp(&mut input),
            _ => bed.step(&mut input),
        }
        bed.turns();
    }
    bed.end();
}

/// Bytes that are used up; behind their end there are zeroes.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn take(&mut self, len: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        taken
    }

    fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        let taken = self.take(N);
        bytes[..taken.len()].copy_from_slice(taken);
        bytes
    }

    fn u8(&mut self) -> u8 {
        self.array::<1>()[0]
    }

    fn u16(&mut self) -> u16 {
        u16::from_be_bytes(self.array())
    }

    fn u32(&mut self) -> u32 {
        u32::from_be_bytes(self.array())
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> Option<T> {
        from.get(usize::from(self.u8()).checked_rem(from.len())?).copied()
    }
}

/// A stack, its port, its programs, and the time.
struct Bed {
    stack: Stack,
    limits: Limits,
    wire: Wire,
    streams: Streams,
    now: Time,
    /// Names that were given, stale ones among them.
    names: Vec<ConnId>,
    listeners: Vec<ListenerId>,
    /// How many there ever were.
    listened: u32,
    /// Nothing was to be done when the last turn ended, and nothing was called since.
    quiet: bool,
    vlan: Option<u16>,
}

impl Bed {
    fn new(input: &mut Input<'_>, bridge: bool) -> Bed {
        let shape = input.u16();
        let bit = |n: u32| shape >> n & 1 != 0;
        let medium = if bit(0) { Medium::Ethernet } else { Medium::Ip };
        let (checksum, late) = (bit(1), bit(2));
        let caps = Capabilities { medium, mtu: MTU, checksum, tso: if checksum && bit(3) { 20_000 } else { 0 }, late };
        let limits = Limits {
            connections: 12,
            half_open: if bit(4) { 2 } else { 6 },
            time_wait: if bit(5) { 1 } else { 4 },
            receive: if bit(6) { 3 } else { 64 },
            send: if bit(7) { 2 } else { 256 },
            timers: if bit(8) { 1 } else { 64 },
            resets: 50,
            first_port: 40_000,
            last_port: 40_003,
        };
        let mut config = Config::new(Address { ip: OURS.into(), prefix: 24 }, [7; 16]);
        config.addresses.push(Address { ip: OURS_V6.into(), prefix: 64 });
        config.any_address = bit(9);
        config.bridge = bridge;
        if medium == Medium::Ethernet {
            config.mac = Some(MAC);
            config.vlan = bit(10).then_some(5);
        }
        config.limits = limits;
        config.tcp = Options {
            timestamps: !bit(11),
            sack: !bit(12),
            congestion: if bit(13) { Algorithm::Reno } else { Algorithm::Cubic },
            keepalive: bit(14),
            keepalive_idle: 1000,
            user_timeout: if bit(15) { 5000 } else { 0 },
            ..Options::default()
        };
        let vlan = config.vlan;
        let now = Time(u64::from(input.u32()) << (input.u8() % 20));
        let stack = Stack::new(config, caps, now).expect("a configuration that can be");
        let wire = Wire::new(caps);
        let mut streams = Streams::new(40_000);
        streams.bridge = bridge;
        let mut bed = Bed {
            stack,
            limits,
            wire,
            streams,
            now,
            names: Vec::new(),
            listeners: Vec::new(),
            listened: 0,
            quiet: false,
            vlan,
        };
        bed.listen(80, false);
        bed.listen(81, true);
        for port in 1..=3 {
            bed.adopt(input, port);
        }
        bed.connect(SocketAddr::new(THEIRS.into(), 90));
        bed.turns();
        bed
    }

    fn listen(&mut self, port: u16, deferred: bool) {
        let deferred_cookies = self.streams.bridge;
        let wanted = Listen { deferred, deferred_cookies, backlog: 3, ..Listen::new(port, self.streams.room) };
        self.listeners.extend(self.stack.listen(wanted));
        self.listened += 1;
    }

    fn connect(&mut self, remote: SocketAddr) {
        let room = self.streams.room;
        if let Ok(conn) = self.stack.connect(self.now, Connect::new(remote, room)) {
            self.streams.streams.insert(conn, Stream::new(0, 0, room));
            self.names.push(conn);
        }
    }

    fn adopt(&mut self, input: &mut Input<'_>, port: u16) {
        let shape = input.u8();
        let phases = [
            Phase::Established,
            Phase::CloseWait,
            Phase::FinWait1,
            Phase::FinWait2,
            Phase::Closing,
            Phase::LastAck,
            Phase::Established,
            Phase::Established,
        ];
        let phase = phases[usize::from(shape & 7)];
        let fin = matches!(phase, Phase::FinWait1 | Phase::FinWait2 | Phase::Closing | Phase::LastAck);
        let acknowledged = phase == Phase::FinWait2;
        // Near where numbers wrap, or not.
        let (una, rcv_nxt) = (Seq(u32::from(shape & 8) << 28) - 700, Seq(u32::from(shape & 16) << 27) - 300);
        let flight = if acknowledged { 0 } else { u32::from(shape >> 5) * 1000 };
        let position = u64::from(input.u8()) << (input.u8() % 40);
        let end = position + u64::from(flight);
        let sent = u32::from(fin && !acknowledged);
        let rcv_position = 5;
        let state = State {
            phase,
            una,
            nxt: una + flight + sent,
            una_position: position + u64::from(acknowledged),
            end,
            fin,
            closed: fin && shape & 16 != 0,
            wnd: 60_000,
            max_wnd: 60_000,
            wl1: rcv_nxt,
            wl2: una,
            rcv_nxt,
            rcv_position,
            acked: rcv_nxt,
            rcv_edge: rcv_nxt + 30_000,
            room: 30_005,
            rcv_max: 30_000,
            mss: 1460,
            scales: Some((shape & 3, 2)),
            sack: shape & 4 == 0,
            stamps: (shape & 8 == 0).then_some(Stamps { recent: 1000, offset: 0x8000_0000 }),
        };
        let local = SocketAddr::new(OURS.into(), port);
        let wanted =
            Adopt { local, remote: SocketAddr::new(THEIRS.into(), port.wrapping_add(1000)), options: None, state };
        if let Ok(conn) = self.stack.adopt(self.now, wanted) {
            let mut stream = Stream::new(position, rcv_position, 30_005);
            stream.write(u64::from(flight));
            stream.was_sent();
            self.streams.streams.insert(conn, stream);
            self.names.push(conn);
        }
    }

    /// Bytes as they are.
    fn raw(&mut self, input: &mut Input<'_>) {
        let len = usize::from(input.u16()) % 1600;
        self.wire.inbox.push_back(input.take(len).to_vec());
    }

    /// A packet with a good header around bytes that are anything, and with a right checksum where it is the one thing that
    /// keeps them out.
    fn packet(&mut self, input: &mut Input<'_>) {
        let (shape, len) = (input.u8(), usize::from(input.u8()));
        let mut bytes = input.take(len).to_vec();
        let v6 = shape & 1 != 0;
        let protocol = match shape >> 1 & 3 {
            0 if v6 => protocol::ICMPV6,
            0 => protocol::ICMP,
            1 | 2 => protocol::TCP,
            _ => protocol::UDP,
        };
        let source: IpAddr = match (v6, shape >> 3 & 3) {
            (_, 3) => {
                let [a, b] = input.array();
                if v6 { Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, a.into(), b.into()).into() } else { [a, 0, 0, b].into() }
            }
            (true, _) => THEIRS_V6.into(),
            (false, _) => THEIRS.into(),
        };
        let destination: IpAddr = if v6 { OURS_V6.into() } else { OURS.into() };
        if protocol == protocol::TCP && shape & 0x20 != 0 && bytes.len() >= 20 {
            // To a port where somebody is.
            (bytes[2], bytes[3]) = (0, 80 + (bytes[3] & 1));
            bytes[12] = (bytes[12] % 10 + 5) << 4;
        }
        self.sum(source, destination, protocol, &mut bytes);
        self.deliver(source, destination, protocol, &bytes);
    }

    /// Puts the checksum in.
    fn sum(&self, source: IpAddr, destination: IpAddr, protocol: u8, bytes: &mut [u8]) {
        let at = match protocol {
            protocol::TCP => 16,
            protocol::UDP => 6,
            _ => 2,
        };
        if bytes.len() < at + 2 {
            return;
        }
        bytes[at..at + 2].fill(0);
        let pseudo = if protocol == protocol::ICMP {
            Sum::ZERO
        } else {
            Sum::pseudo(source, destination, protocol, bytes.len() as u16)
        };
        let field = pseudo.bytes(bytes).field();
        bytes[at..at + 2].copy_from_slice(&field.to_be_bytes());
    }

    /// A packet arrives.
    fn deliver(&mut self, source: IpAddr, destination: IpAddr, protocol: u8, payload: &[u8]) {
        let mut bytes = vec![0; 18 + 40];
        let mut at = 0;
        if self.wire.caps.medium == Medium::Ethernet {
            let ethertype = if source.is_ipv4() { ethernet::ethertype::IPV4 } else { ethernet::ethertype::IPV6 };
            let tag = self.vlan.map(ethernet::Tag);
            at = ethernet::Header { destination: MAC, source: THEIR_MAC, tag, ethertype }.emit(&mut bytes);
        }
        match (source, destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let header = ipv4::Header {
                    source,
                    destination,
                    protocol,
                    ttl: 64,
                    tos: 0,
                    id: 1,
                    dont_fragment: true,
                    payload: payload.len() as u16,
                };
                header.emit(&mut bytes[at..]);
                at += ipv4::HEADER;
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let header = ipv6::Header {
                    source,
                    destination,
                    protocol,
                    hop_limit: 255,
                    traffic_class: 0,
                    flow_label: 0,
                    payload: payload.len() as u16,
                };
                header.emit(&mut bytes[at..]);
                at += ipv6::HEADER;
            }
            _ => return,
        }
        bytes.truncate(at);
        bytes.extend_from_slice(payload);
        self.wire.inbox.push_back(bytes);
    }

    /// Somebody else's packet is to be sent.
    fn forward(&mut self, input: &mut Input<'_>, shape: u16) {
        let len = usize::from(input.u16()) % 1600;
        let mut packet = input.take(len).to_vec();
        if shape & 1 == 0 && packet.len() >= ipv6::HEADER {
            // One that is right as far as it matters here.
            let (v6, len) = (shape & 2 != 0, packet.len() as u16);
            packet[0] = if v6 { 0x60 } else { 0x45 };
            let [a, b] = if v6 { len - ipv6::HEADER as u16 } else { len }.to_be_bytes();
            let at = if v6 { 4 } else { 2 };
            packet[at..at + 2].copy_from_slice(&[a, b]);
            let destination: &[u8] = match (v6, shape >> 2 & 3) {
                (true, 0) => &THEIRS_V6.octets(),
                (true, 1) => &Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, shape >> 4).octets(),
                (true, _) => &[],
                (false, 0) => &THEIRS.octets(),
                (false, 1) => &[10, 0, 0, (shape >> 4) as u8],
                (false, 2) => &[224, 0, 0, 251],
                (false, _) => &[],
            };
            let at = if v6 { 24 } else { 16 };
            packet[at..at + destination.len()].copy_from_slice(destination);
        }
        self.wire.others.insert(packet.clone());
        let result = self.stack.forward(self.now, &mut self.wire, &packet);
        let too_big = packet.len() > usize::from(MTU);
        assert!(!too_big || result.is_err(), "{} bytes", packet.len());
        assert!(self.stack.queued.len() <= 256);
    }

    /// A call, time, or the port.
    fn step(&mut self, input: &mut Input<'_>) {
        self.quiet = false;
        let (what, value) = (input.u8(), input.u16());
        let conn = input.pick(&self.names);
        let name = || conn.unwrap_or(ConnId { index: value.into(), generation: 0 });
        let open = |bed: &Bed| conn.filter(|conn| bed.streams.streams.contains_key(conn));
        match what % 20 {
            0..=2 => {
                if let Some(conn) = open(self)
                    && let Some(stream) = self.streams.streams.get_mut(&conn)
                {
                    stream.write(value.into());
                    self.stack.commit(conn, stream.written, what & 32 != 0);
                }
            }
            3 => {
                if let Some(conn) = open(self)
                    && let Some(stream) = self.streams.streams.get_mut(&conn)
                {
                    stream.edge = stream.edge.max(stream.published + u64::from(value));
                    self.stack.room(conn, stream.edge);
                }
            }
            4 => self.stack.shutdown(name()),
            5 => self.stack.close(name(), value & 1 != 0),
            6 => self.stack.abort(name()),
            7 => self.stack.accept(name()),
            8 if value & 1 != 0 => self.stack.ignore(name()),
            8 => self.stack.refuse(name()),
            9 => {
                let options = Options {
                    nodelay: value & 1 != 0,
                    cork: value & 2 != 0,
                    keepalive: value & 4 != 0,
                    keepalive_idle: u32::from(value >> 4),
                    keepalive_interval: u32::from(value >> 3),
                    keepalive_count: value as u8,
                    user_timeout: if value & 8 != 0 { u32::from(value) } else { 0 },
                    linger: if value & 16 != 0 { u32::from(value) } else { u32::MAX },
                    fin_wait: u32::from(value >> 2),
                    mss: value >> 5,
                    ..Options::default()
                };
                self.stack.set_options(name(), options);
            }
            10 => {
                let remote = SocketAddr::new(if value & 1 != 0 { THEIRS_V6.into() } else { THEIRS.into() }, value);
                self.connect(remote);
            }
            11 => self.adopt(input, value),
            12 => {
                if let Some(conn) = open(self)
                    && self.stack.surrender(conn).is_some()
                {
                    self.streams.give_away(conn);
                }
            }
            13 => {
                if let Some(listener) = input.pick(&self.listeners) {
                    self.stack.unlisten(listener);
                    self.listeners.retain(|other| *other != listener);
                } else {
                    self.listen(80 + value % 2, value & 4 != 0);
                }
            }
            14 => {
                self.wire.left = if value & 1 == 0 { u32::MAX } else { u32::from(value >> 1) % 5 };
                self.wire.scarce = value & 0x100 != 0;
                self.streams.refuses = value & 0x200 != 0;
                self.streams.takes_none = value & 0x400 != 0;
            }
            15 if self.streams.bridge && what & 64 != 0 => self.forward(input, value),
            15 => self.wire.read(usize::from(value) % 8),
            16 => self.now = self.now.after_millis(u64::from(value)),
            17 => self.now.0 += u64::from(value),
            18 => {
                // As far as the next deadline, or a jump.
                if value & 3 == 0 {
                    self.now = self.now.after_millis(u64::from(value) << 14);
                } else {
                    let turn = self.stack.turn(self.now, &mut self.wire, &mut self.streams);
                    self.now = self.now.max(turn.deadline.unwrap_or(self.now));
                }
            }
            _ => {
                if let Some(conn) = open(self)
                    && let Some(stream) = self.streams.streams.get_mut(&conn)
                {
                    // A program that says what is not so: it harms itself alone.
                    stream.wild = true;
                    self.stack.commit(conn, u64::from(value) << (what % 48), false);
                }
            }
        }
    }

    /// Turns, until nothing is to be done now.
    fn turns(&mut self) {
        for _ in 0..TURNS {
            let (quiet, bare) = (self.quiet, self.wire.bare);
            let turn = self.stack.turn(self.now, &mut self.wire, &mut self.streams);
            self.names.append(&mut self.streams.came);
            self.check();
            assert!(turn.received <= self.limits.receive);
            let answers = self.wire.bare - bare;
            assert!(!quiet || answers <= ANSWERS * turn.received, "{answers} frames in answer to {}", turn.received);
            let waits = self.stack.conns.iter().any(|(_, _, entry)| entry.waits == Waits::Neighbour)
                || self.stack.queued.len() > 0;
            let now = turn.more || turn.deadline.is_some_and(|at| at <= self.now);
            self.quiet = !now && !turn.full && !waits;
            if !now {
                return;
            }
        }
        panic!("a turn follows a turn, for ever");
    }

    /// What is bounded is within its bounds, and everything agrees.
    fn check(&self) {
        let Stack { conns, table, key, wheel, waiting, due, half_open, core, .. } = &self.stack;
        assert!(conns.len() <= self.limits.connections && waiting.len() <= self.limits.time_wait);
        // Each listener is assured of one.
        assert!(*half_open <= self.limits.half_open + self.listened);
        let (mut half, mut listed, mut named, mut waits) = (0, 0, 0, 0);
        let mut next = Time::NEVER;
        for (index, generation, entry) in conns.iter() {
            half += u32::from(entry.names.marks & HALF != 0);
            listed += u32::from(entry.waits == Waits::Due);
            waits += usize::from(entry.waits == Waits::Neighbour);
            if entry.names.marks & NAMED != 0 {
                named += 1;
                let found = table.look(entry.names.tuple.hash(key) as u32, |other| other == index);
                assert_eq!(found, Some(index), "a connection that segments do not find");
            }
            assert!(!entry.tcb.due() || entry.waits != Waits::Not, "due, and in no list");
            entry.tcb.check();
            // Each frame is one record at most but for those that were cut by what was lost, and each byte in one at most.
            assert!(entry.tcb.records() <= RING as usize + 2);
            // Who is due has his turn first: it files his timer (`Stack::visit`).
            if entry.waits != Waits::Due {
                next = next.min(entry.tcb.deadline());
            }
            let known = self.streams.streams.contains_key(&ConnId { index, generation });
            assert_eq!(known, entry.names.marks & TOLD != 0, "the host and the stack disagree on a name");
        }
        assert_eq!((half, listed, named), (*half_open, due.len(), table.len()));
        // The wheel counts milliseconds.
        let latest = next.max(self.now).0.saturating_add(1000);
        assert!(next == Time::NEVER || wheel.next().0 <= latest, "a timer that never fires");
        // One for each frame, and one for each connection whose segments could not leave behind it.
        let most = (self.wire.unread() + 1) * (self.limits.connections as usize + 1);
        assert!(core.unread.len() <= most, "{} wait for the port to read", core.unread.len());
        let waiters: usize = core.waiters.values().map(Vec::len).sum();
        assert!(waiters >= waits, "a connection waits for a neighbour, and nobody knows");
        assert!(waiters <= 64 * self.limits.connections as usize, "{waiters} wait");
        for listener in &self.listeners {
            assert!(core.listeners.half_open_of(listener.0).is_some_and(|n| n <= 3));
        }
    }

    /// All connections are aborted, and go.
    fn end(&mut self) {
        self.quiet = false;
        self.wire.left = u32::MAX;
        let names: Vec<_> = self.stack.connections().map(|(conn, _)| conn).collect();
        for conn in names {
            self.stack.abort(conn);
        }
        for _ in 0..200 {
            self.wire.read(usize::MAX);
            self.turns();
            if self.stack.conns.is_empty() {
                break;
            }
            self.now = self.now.after_millis(1000);
            self.quiet = false;
        }
        assert!(self.stack.conns.is_empty(), "connections that do not end: {:?}", self.stack.connections().next());
        assert!(self.streams.streams.is_empty());
        self.wire.gone = true;
        assert!(self.stack.turn(self.now, &mut self.wire, &mut self.streams).gone);
    }
}

#[cfg(test)]
mod tests;
