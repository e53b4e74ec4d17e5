//! Two stacks back to back over a wire in memory.

mod bounds;
mod bridge;
mod deferred;
mod hostile;
mod lifecycle;
mod outside;

use super::*;
use crate::counters::Counter;
use crate::net::Address;
use crate::payload::{Buffer, Host, Region, Span, Spans};
use crate::port::{Checksum, Frame, Port, Received, Refused};
use crate::tcp::{Cause, Event, Phase};
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use zstack_wire::checksum::Sum;

/// What memory holds once it was released: a frame with these bytes was read too late.
const RELEASED: u8 = 0xee;

/// How many bytes a connection of these tests may send in all.
const OUT: usize = 300_000;

pub struct Packet(Vec<u8>);

impl Buffer for Packet {
    fn bytes(&self) -> &[u8] {
        &self.0
    }

    fn scarce(&self) -> bool {
        false
    }
}

/// One end of the wire.
pub struct Card {
    pub caps: Capabilities,
    pub inbox: VecDeque<Vec<u8>>,
    pub outbox: VecDeque<Vec<u8>>,
    /// Frames whose payload is not read yet.
    queued: VecDeque<(Vec<u8>, Spans, Checksum)>,
    done: u64,
    /// Frames that are taken until [`Card::drain`]; then it is full.
    pub room: usize,
    pub left: usize,
    /// How many queued frames a drain reads; only of a card that is late.
    pub reads: usize,
    pub gone: bool,
    pub unfit: bool,
    pub flushes: u32,
    pub sends: u32,
}

impl Card {
    fn new(caps: Capabilities) -> Card {
        Card {
            caps,
            inbox: VecDeque::new(),
            outbox: VecDeque::new(),
            queued: VecDeque::new(),
            done: 0,
            room: usize::MAX,
            left: usize::MAX,
            reads: 1,
            gone: false,
            unfit: false,
            flushes: 0,
            sends: 0,
        }
    }

    /// Reads the payload of frames, and makes room.
    pub fn drain(&mut self) {
        self.left = self.room;
        for _ in 0..self.reads {
            self.read();
        }
    }

    #[allow(unsafe_code)]
    fn read(&mut self) {
        let Some((mut bytes, payload, checksum)) = self.queued.pop_front() else { return };
        for span in payload.0 {
            if span.len > 0 {
                // SAFETY: memory of a connection's stream is never given back while a test runs (`Programs::streams`).
                bytes.extend_from_slice(unsafe { std::slice::from_raw_parts(span.start, span.len as usize) });
            }
        }
        if let Checksum::Partial { start, offset } = checksum {
            let (start, at) = (usize::from(start), usize::from(start + offset));
            let field = Sum::ZERO.bytes(&bytes[start..]).field();
            bytes[at..at + 2].copy_from_slice(&field.to_be_bytes());
        }
        self.outbox.push_back(bytes);
        self.done += 1;
    }
}

impl Port for Card {
    type Buffer = Packet;

    fn capabilities(&self) -> Capabilities {
        self.caps
    }

    fn receive(&mut self) -> Result<Option<Received<Packet>>, Refused> {
        if self.gone {
            return Err(Refused::Gone);
        }
        Ok(self.inbox.pop_front().map(|bytes| {
            let range = 0..bytes.len();
            Received { buffer: Packet(bytes), range, verified: false }
        }))
    }

    #[allow(unsafe_code)]
    unsafe fn send(&mut self, frame: &Frame<'_>) -> Result<(), Refused> {
        self.sends += 1;
        if self.gone {
            return Err(Refused::Gone);
        }
        if self.unfit {
            return Err(Refused::Unfit);
        }
        if self.left == 0 {
            return Err(Refused::Full);
        }
        self.left -= 1;
        assert_eq!(frame.cut, 0, "this card cuts nothing");
        self.queued.push_back((frame.head.to_vec(), frame.payload, frame.checksum));
        if !self.caps.late {
            self.read();
        }
        Ok(())
    }

    fn completed(&mut self) -> u64 {
        self.done
    }

    fn flush(&mut self) {
        self.flushes += 1;
    }
}

/// A connection, as its program sees it.
#[derive(Default)]
pub struct Stream {
    out: Vec<u8>,
    written: usize,
    pub released: u64,
    pub incoming: Vec<u8>,
    pub published: usize,
    pub events: Vec<Event>,
    pub refuses: bool,
}

impl Stream {
    pub fn received(&self) -> &[u8] {
        &self.incoming[..self.published]
    }

    pub fn ended(&self) -> Option<Cause> {
        self.events.iter().find_map(|event| if let Event::Ended(cause) = event { Some(*cause) } else { None })
    }

    pub fn has(&self, event: Event) -> bool {
        self.events.contains(&event)
    }
}

#[derive(Default)]
pub struct Programs {
    pub streams: HashMap<ConnId, Stream>,
    /// Events in the order in which they came.
    pub told: Vec<(ConnId, Event)>,
    /// No more connections are taken.
    pub crowded: bool,
    /// What a bridge asked of SYNs, and whether it takes none.
    pub asked: Vec<(SocketAddr, SocketAddr, Vec<u8>)>,
    pub takes_none: bool,
    /// What a bridge passed on, and what it could not deliver.
    pub passed: Vec<Vec<u8>>,
    pub undelivered: Vec<Vec<u8>>,
}

impl Programs {
    pub fn stream(&mut self, conn: ConnId) -> &mut Stream {
        self.streams.get_mut(&conn).expect("a connection that was told of")
    }

    /// The connections of a listener, in the order in which they came.
    pub fn of(&self, listener: ListenerId) -> Vec<ConnId> {
        self.told.iter().filter(|(_, event)| *event == Event::Incoming(listener)).map(|(conn, _)| *conn).collect()
    }
}

// SAFETY: `out` is allocated once for a stream, and streams are never removed.
#[allow(unsafe_code)]
unsafe impl Host for Programs {
    type Buffer = Packet;

    fn spans(&mut self, conn: ConnId, from: u64, len: u32) -> Spans {
        let stream = self.stream(conn);
        let (from, len) = (from as usize, len as usize);
        assert!(from + len <= stream.written && from as u64 >= stream.released);
        // Two spans wherever there is a multiple of 1000: a ring that wraps often.
        let first = len.min(1000 - from % 1000);
        let second = (len - first).min(1000);
        let span = |from: usize, len: usize| Span {
            start: stream.out[from..from + len].as_ptr(),
            len: len as u32,
            region: Region(0),
        };
        Spans([span(from, first), span(from + first, second)])
    }

    fn release(&mut self, conn: ConnId, to: u64) {
        let stream = self.stream(conn);
        assert!(to > stream.released && to as usize <= stream.written);
        stream.out[stream.released as usize..to as usize].fill(RELEASED);
        stream.released = to;
    }

    fn place(&mut self, conn: ConnId, at: u64, buffer: Packet, range: Range<usize>) -> bool {
        let stream = self.stream(conn);
        if stream.refuses {
            return false;
        }
        let (at, bytes) = (at as usize, &buffer.bytes()[range]);
        assert!(at >= stream.published);
        let end = at + bytes.len();
        if stream.incoming.len() < end {
            stream.incoming.resize(end, 0);
        }
        stream.incoming[at..end].copy_from_slice(bytes);
        true
    }

    fn publish(&mut self, conn: ConnId, to: u64) {
        let stream = self.stream(conn);
        assert!(to as usize > stream.published && to as usize <= stream.incoming.len());
        stream.published = to as usize;
    }

    fn admits(&mut self, _: ListenerId) -> bool {
        !self.crowded
    }

    fn takes(&mut self, local: SocketAddr, remote: SocketAddr, segment: &[u8]) -> bool {
        self.asked.push((local, remote, segment.to_vec()));
        !self.takes_none
    }

    fn pass(&mut self, buffer: Packet, range: Range<usize>) -> bool {
        self.passed.push(buffer.bytes()[range].to_vec());
        true
    }

    fn undelivered(&mut self, packet: &[u8]) {
        self.undelivered.push(packet.to_vec());
    }

    fn event(&mut self, conn: ConnId, event: Event) {
        self.told.push((conn, event));
        match event {
            Event::Incoming(_) => {
                let old = self.streams.insert(conn, Stream::default());
                assert!(old.is_none_or(|old| old.has(Event::Free)));
            }
            _ => assert!(!self.stream(conn).has(Event::Free), "Free was the last event"),
        }
        self.stream(conn).events.push(event);
    }
}

pub struct Side {
    pub stack: Stack,
    pub card: Card,
    pub programs: Programs,
    pub last: Turn,
}

/// Two sides, 0 and 1, and the time.
pub struct World {
    pub sides: [Side; 2],
    pub now: Time,
    /// Whether a frame of this side arrives.
    #[allow(clippy::type_complexity)]
    pub passes: Box<dyn FnMut(usize, &[u8]) -> bool>,
}

pub const V4: [&str; 2] = ["10.0.0.1", "10.0.0.2"];
pub const V6: [&str; 2] = ["fd00::1", "fd00::2"];

pub fn caps(medium: Medium) -> Capabilities {
    Capabilities { medium, mtu: 1500, checksum: false, tso: 0, late: false }
}

pub fn config(side: usize) -> Config {
    let mut config = Config::new(Address { ip: V4[side].parse().unwrap(), prefix: 24 }, [side as u8 + 1; 16]);
    config.addresses.push(Address { ip: V6[side].parse().unwrap(), prefix: 64 });
    config.mac = Some([2, 0, 0, 0, 0, side as u8]);
    config
}

impl World {
    pub fn new() -> World {
        World::with(caps(Medium::Ip), |_| {})
    }

    pub fn with(caps: Capabilities, change: impl Fn(&mut Config)) -> World {
        let now = Time(1_000_000_000);
        let side = |i| {
            let mut config = config(i);
            if caps.medium == Medium::Ip {
                config.mac = None;
            }
            change(&mut config);
            Side {
                stack: Stack::new(config, caps, now).unwrap(),
                card: Card::new(caps),
                programs: Programs::default(),
                last: Turn::default(),
            }
        };
        World { sides: [side(0), side(1)], now, passes: Box::new(|_, _| true) }
    }

    pub fn turn(&mut self, side: usize) -> Turn {
        let Side { stack, card, programs, last } = &mut self.sides[side];
        *last = stack.turn(self.now, card, programs);
        *last
    }

    fn carry(&mut self) -> bool {
        let mut any = false;
        for from in 0..2 {
            self.sides[from].card.drain();
            while let Some(frame) = self.sides[from].card.outbox.pop_front() {
                any = true;
                if (self.passes)(from, &frame) {
                    self.sides[1 - from].card.inbox.push_back(frame);
                }
            }
        }
        any
    }

    /// Turns and frames until nothing is under way and nobody has anything to do now.
    pub fn settle(&mut self) {
        for _ in 0..200_000 {
            let mut busy = false;
            for side in 0..2 {
                let turn = self.turn(side);
                busy |= turn.more || turn.full || turn.received > 0 || turn.sent > 0;
            }
            busy |= self.carry();
            busy |= self.sides.iter().any(|side| !side.card.queued.is_empty());
            if !busy {
                return;
            }
        }
        panic!("no end");
    }

    /// Lets time pass, from deadline to deadline.
    pub fn pass(&mut self, millis: u64) {
        let end = self.now.after_millis(millis);
        loop {
            self.settle();
            let next = self.sides.iter().filter_map(|side| side.last.deadline).min();
            match next {
                Some(next) if next <= end => self.now = self.now.max(next),
                _ => break,
            }
        }
        self.now = end;
        self.settle();
    }

    pub fn listen(&mut self, side: usize, wanted: Listen) -> ListenerId {
        self.sides[side].stack.listen(wanted).unwrap()
    }

    pub fn connect(&mut self, side: usize, wanted: Connect) -> ConnId {
        let side = &mut self.sides[side];
        let conn = side.stack.connect(self.now, wanted).unwrap();
        side.programs.streams.insert(conn, Stream::default());
        conn
    }

    /// An established connection from side 0 to side 1: both names.
    pub fn open(&mut self, port: u16) -> (ConnId, ConnId) {
        let listener = self.listen(1, Listen::new(port, 60_000));
        let conn = self.connect(0, Connect::new(at(V4[1], port), 60_000));
        self.settle();
        (conn, self.sides[1].programs.of(listener)[0])
    }

    pub fn send(&mut self, side: usize, conn: ConnId, bytes: &[u8]) {
        let Side { stack, programs, .. } = &mut self.sides[side];
        let stream = programs.stream(conn);
        if stream.out.is_empty() {
            stream.out = vec![0; OUT];
        }
        let end = stream.written + bytes.len();
        stream.out[stream.written..end].copy_from_slice(bytes);
        stream.written = end;
        stack.commit(conn, end as u64, true);
    }

    /// Gives the peer as much room as it had at first.
    pub fn read(&mut self, side: usize, conn: ConnId) {
        let edge = self.stream(side, conn).published as u64 + 60_000;
        self.sides[side].stack.room(conn, edge);
    }

    pub fn stream(&mut self, side: usize, conn: ConnId) -> &mut Stream {
        self.sides[side].programs.stream(conn)
    }

    pub fn count(&self, side: usize, counter: Counter) -> u64 {
        self.sides[side].stack.counters()[counter]
    }

    pub fn phase(&self, side: usize, conn: ConnId) -> Option<Phase> {
        self.sides[side].stack.info(conn).map(|info| info.tcp.phase)
    }

    /// A frame arrives at a side, and what it answers at once, headers parsed.
    pub fn inject(&mut self, side: usize, frame: Vec<u8>) -> Vec<zstack_wire::tcp::Header> {
        self.sides[side].card.inbox.push_back(frame);
        while self.turn(side).more {}
        let frames = std::mem::take(&mut self.sides[side].card.outbox);
        frames.iter().filter_map(|frame| parse(frame)).map(|(_, header, _)| header).collect()
    }
}

pub fn at(ip: &str, port: u16) -> SocketAddr {
    SocketAddr::new(ip.parse().unwrap(), port)
}

/// The tuple, header and payload of an IPv4 frame without a link header that carries TCP.
pub fn parse(frame: &[u8]) -> Option<(IpAddr, zstack_wire::tcp::Header, Vec<u8>)> {
    let packet = zstack_wire::ipv4::Packet::parse(frame).ok()?;
    let bytes = packet.payload();
    if packet.protocol() != zstack_wire::protocol::TCP {
        return None;
    }
    assert!(packet.pseudo().bytes(bytes).valid(), "a wrong checksum was sent");
    let (header, len) = zstack_wire::tcp::Header::parse(bytes).ok()?;
    Some((packet.source().into(), header, bytes[len..].to_vec()))
}

/// An IPv4 packet.
pub fn packet(from: &str, to: &str, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let header = zstack_wire::ipv4::Header {
        source: from.parse().unwrap(),
        destination: to.parse().unwrap(),
        protocol,
        ttl: 64,
        tos: 0,
        id: 1,
        dont_fragment: true,
        payload: payload.len() as u16,
    };
    let mut bytes = vec![0; 20];
    header.emit(&mut bytes);
    bytes.extend_from_slice(payload);
    bytes
}

/// A TCP segment in an IPv4 packet.
pub fn segment(from: SocketAddr, to: SocketAddr, header: zstack_wire::tcp::Header, payload: &[u8]) -> Vec<u8> {
    let header = zstack_wire::tcp::Header { source: from.port(), destination: to.port(), ..header };
    let mut bytes = vec![0; header.len()];
    header.emit(&mut bytes);
    bytes.extend_from_slice(payload);
    let (IpAddr::V4(source), IpAddr::V4(destination)) = (from.ip(), to.ip()) else { panic!("IPv4 only") };
    let sum = Sum::pseudo_v4(source, destination, zstack_wire::protocol::TCP, bytes.len() as u16).bytes(&bytes).field();
    bytes[16..18].copy_from_slice(&sum.to_be_bytes());
    packet(&from.ip().to_string(), &to.ip().to_string(), zstack_wire::protocol::TCP, &bytes)
}

/// Bytes that are easily told from others.
pub fn pattern(len: usize, seed: usize) -> Vec<u8> {
    (0..len).map(|i| ((i * 7 + i / 251 + seed * 31) % 200) as u8).collect()
}
