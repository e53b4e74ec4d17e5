//! The port and the host of a stack that is attacked. Both hold the engine to its contracts: every frame is well-formed, memory
//! is as it was when the frame was taken until the port has read it, nothing is published that was not placed, and nothing
//! released that was not handed to the port.

use crate::event::{ConnId, Event};
use crate::payload::{Buffer, Host, Region, Span, Spans};
use crate::port::{Capabilities, Checksum, Frame, Medium, Port, Received, Refused};
use std::collections::{HashMap, HashSet, VecDeque};
use std::net::SocketAddr;
use std::ops::Range;
use zstack_wire::checksum::Sum;
use zstack_wire::tcp::{Flags, Header};
use zstack_wire::{arp, ethernet, icmpv4, ipv4, ipv6, protocol, udp};

/// What memory holds once it was released.
const RELEASED: u8 = 0xee;

/// The ring that a connection sends from, in bytes.
pub const RING: u64 = 1 << 16;

/// The largest IP packet.
pub const MTU: u16 = 1500;

pub struct Packet(Vec<u8>, bool);

impl Buffer for Packet {
    fn bytes(&self) -> &[u8] {
        &self.0
    }

    fn scarce(&self) -> bool {
        self.1
    }
}

struct Pending {
    payload: Spans,
    copy: Vec<u8>,
}

/// The port.
pub struct Wire {
    pub caps: Capabilities,
    pub inbox: VecDeque<Vec<u8>>,
    pending: VecDeque<Pending>,
    accepted: u64,
    /// Frames that are taken until it is full.
    pub left: u32,
    pub gone: bool,
    pub scarce: bool,
    /// Frames without payload, and with.
    pub bare: u32,
    pub full: u32,
    /// The last segment to each peer: its header and the length of its payload.
    pub last: HashMap<(std::net::IpAddr, u16, u16), (Header, u32)>,
    /// Packets of others: they leave as they are, whatever they are.
    pub others: HashSet<Vec<u8>>,
}

impl Wire {
    pub fn new(caps: Capabilities) -> Wire {
        Wire {
            caps,
            inbox: VecDeque::new(),
            pending: VecDeque::new(),
            accepted: 0,
            left: u32::MAX,
            gone: false,
            scarce: false,
            bare: 0,
            full: 0,
            last: HashMap::new(),
            others: HashSet::new(),
        }
    }

    /// Reads the payload of `frames` frames that wait for it.
    pub fn read(&mut self, frames: usize) {
        for _ in 0..frames.min(self.pending.len()) {
            let Some(Pending { payload, copy }) = self.pending.pop_front() else { return };
            assert!(gather(&payload) == copy, "memory changed before the port had read it");
        }
    }

    pub fn unread(&self) -> usize {
        self.pending.len()
    }
}

fn gather(spans: &Spans) -> Vec<u8> {
    let mut bytes = Vec::new();
    for span in spans.0.iter().filter(|span| span.len > 0) {
        // SAFETY: a stream's ring is never given back while the test runs (`Streams::rings`).
        bytes.extend_from_slice(unsafe { std::slice::from_raw_parts(span.start, span.len as usize) });
    }
    bytes
}

impl Port for Wire {
    type Buffer = Packet;

    fn capabilities(&self) -> Capabilities {
        self.caps
    }

    fn receive(&mut self) -> Result<Option<Received<Packet>>, Refused> {
        if self.gone {
            return Err(Refused::Gone);
        }
        Ok(self.inbox.pop_front().map(|mut bytes| {
            // Room before the packet, so that nobody takes offsets in the buffer for those in the packet.
            bytes.splice(0..0, [0; 7]);
            let range = 7..bytes.len();
            Received { buffer: Packet(bytes, self.scarce), range, verified: false }
        }))
    }

    unsafe fn send(&mut self, frame: &Frame<'_>) -> Result<(), Refused> {
        if self.gone {
            return Err(Refused::Gone);
        }
        if self.left == 0 {
            return Err(Refused::Full);
        }
        self.left -= 1;
        let copy = gather(&frame.payload);
        let mut bytes = frame.head.to_vec();
        bytes.extend_from_slice(&copy);
        if let Checksum::Partial { start, offset } = frame.checksum {
            assert!(self.caps.checksum, "a port that computes no checksums");
            let (start, at) = (usize::from(start), usize::from(start + offset));
            let field = Sum::ZERO.bytes(&bytes[start..]).field();
            bytes[at..at + 2].copy_from_slice(&field.to_be_bytes());
        }
        let link = match self.caps.medium {
            Medium::Ip => 0,
            Medium::Ethernet => ethernet::Header::parse(&bytes).expect("a link header").len(),
        };
        let largest = if frame.cut == 0 {
            bytes.len() - link
        } else {
            assert!(copy.len() <= self.caps.tso as usize && usize::from(frame.cut) < copy.len());
            frame.head.len() - link + usize::from(frame.cut)
        };
        assert!(largest <= usize::from(MTU), "a packet of {largest} bytes");
        if !self.others.contains(&bytes[link..]) {
            self.well_formed(&bytes[link..], copy.len() as u32, bytes.get(link.wrapping_sub(2)..link));
        }
        if copy.is_empty() {
            self.bare += 1
        } else {
            self.full += 1
        }
        self.accepted += 1;
        self.pending.push_back(Pending { payload: frame.payload, copy });
        if !self.caps.late {
            self.read(1);
        }
        Ok(())
    }

    fn completed(&mut self) -> u64 {
        self.accepted - self.pending.len() as u64
    }
}

impl Wire {
    /// Panics if the packet is not what a host may send.
    fn well_formed(&mut self, packet: &[u8], payload: u32, ethertype: Option<&[u8]>) {
        if ethertype == Some(&ethernet::ethertype::ARP.to_be_bytes()) {
            arp::Packet::parse(packet).expect("an ARP packet");
            return;
        }
        if packet[0] >> 4 == 4 {
            let ip = ipv4::Packet::parse(packet).expect("an IPv4 packet");
            assert!(ip.checksum_valid() && usize::from(ip.total_len()) == packet.len() && !ip.is_fragment());
            self.inside(ip.protocol(), ip.pseudo(), ip.payload(), payload, ip.destination().into());
        } else {
            let ip = ipv6::Packet::parse(packet).expect("an IPv6 packet");
            assert!(ipv6::HEADER + usize::from(ip.payload_len()) == packet.len());
            self.inside(ip.protocol(), ip.pseudo(), ip.payload(), payload, ip.destination().into());
        }
    }

    fn inside(&mut self, what: u8, pseudo: Sum, bytes: &[u8], payload: u32, to: std::net::IpAddr) {
        match what {
            protocol::TCP => {
                assert!(pseudo.bytes(bytes).valid(), "a TCP checksum");
                let (header, len) = Header::parse(bytes).expect("a TCP header");
                assert!(header.source != 0 && header.destination != 0);
                assert_eq!(bytes.len() - len, payload as usize);
                let flags = header.flags.0 & 7;
                assert!(flags.count_ones() <= 1, "SYN, FIN and RST exclude each other: {header:?}");
                for block in header.sack.blocks() {
                    assert!(block.left.before(block.right), "an empty SACK block: {header:?}");
                }
                if self.last.len() > 64 {
                    self.last.clear();
                }
                self.last.insert((to, header.destination, header.source), (header, payload));
            }
            protocol::UDP => {
                udp::Datagram::parse(bytes).expect("a UDP datagram");
            }
            protocol::ICMP => assert!(icmpv4::checksum_valid(bytes), "an ICMP checksum"),
            protocol::ICMPV6 => assert!(pseudo.bytes(bytes).valid(), "an ICMPv6 checksum"),
            other => panic!("protocol {other}"),
        }
    }
}

/// A connection, as its program has it.
pub struct Stream {
    ring: Box<[u8]>,
    pub written: u64,
    pub released: u64,
    pub published: u64,
    /// Where there is room for what arrives.
    pub edge: u64,
    /// What was placed and not published: apart from each other, ascending.
    placed: Vec<Range<u64>>,
    /// The furthest byte that was shown to a port.
    shown: u64,
    pub ended: bool,
    /// Its program commits what it has not written.
    pub wild: bool,
}

/// A stream's byte at a position.
fn byte(at: u64) -> u8 {
    (at % 199) as u8 ^ (at >> 10) as u8 & 0x1f
}

impl Stream {
    pub fn new(written: u64, published: u64, edge: u64) -> Stream {
        let ring = vec![RELEASED; RING as usize].into();
        Stream {
            ring,
            written,
            released: written,
            published,
            edge,
            placed: Vec::new(),
            shown: written,
            ended: false,
            wild: false,
        }
    }

    /// Writes as much as there is room for, at most `len` bytes.
    pub fn write(&mut self, len: u64) {
        let len = len.min(RING.saturating_sub(self.written - self.released));
        for at in self.written..self.written + len {
            self.ring[(at % RING) as usize] = byte(at);
        }
        self.written += len;
    }

    /// What is written was sent already, by somebody else.
    pub fn was_sent(&mut self) {
        self.shown = self.written;
    }

    fn place(&mut self, range: Range<u64>) {
        let mut whole = range;
        self.placed.retain(|other| {
            let apart = other.end < whole.start || whole.end < other.start;
            if !apart {
                whole = whole.start.min(other.start)..whole.end.max(other.end);
            }
            apart
        });
        let at = self.placed.partition_point(|other| other.start < whole.start);
        self.placed.insert(at, whole);
    }
}

/// All connections' programs.
#[derive(Default)]
pub struct Streams {
    pub streams: HashMap<ConnId, Stream>,
    /// Rings of connections that are gone: a port may be found to read them.
    rings: Vec<Box<[u8]>>,
    /// The connections that came to listeners, as they came.
    pub came: Vec<ConnId>,
    /// The room that they begin with.
    pub room: u64,
    /// Nothing is placed now.
    pub refuses: bool,
    /// They belong to a bridge.
    pub bridge: bool,
    /// No connection is taken that a peer opens.
    pub takes_none: bool,
}

impl Streams {
    pub fn new(room: u64) -> Streams {
        Streams { room, ..Streams::default() }
    }

    /// Somebody else goes on with the connection.
    pub fn give_away(&mut self, conn: ConnId) {
        if let Some(stream) = self.streams.remove(&conn) {
            self.rings.push(stream.ring);
        }
    }

    fn stream(&mut self, conn: ConnId) -> &mut Stream {
        self.streams.get_mut(&conn).expect("a connection that was told of, and is not free")
    }
}

// SAFETY: rings are kept as long as `Streams` is.
unsafe impl Host for Streams {
    type Buffer = Packet;

    fn spans(&mut self, conn: ConnId, from: u64, len: u32) -> Spans {
        let stream = self.stream(conn);
        if stream.wild && from + u64::from(len) > stream.written {
            return Spans::EMPTY;
        }
        assert!(from >= stream.released && from + u64::from(len) <= stream.written, "{from} {len}");
        let at = (from % RING) as u32;
        let first = len.min(RING as u32 - at);
        let span = |at: u32, len: u32| Span { start: stream.ring[at as usize..].as_ptr(), len, region: Region(0) };
        stream.shown = stream.shown.max(from + u64::from(len));
        Spans([span(at, first), if first < len { span(0, len - first) } else { Span::EMPTY }])
    }

    fn release(&mut self, conn: ConnId, to: u64) {
        let stream = self.stream(conn);
        assert!(to > stream.released && to <= stream.shown, "release to {to}: {} shown", stream.shown);
        for at in stream.released..to {
            stream.ring[(at % RING) as usize] = RELEASED;
        }
        stream.released = to;
    }

    fn place(&mut self, conn: ConnId, at: u64, buffer: Packet, range: Range<usize>) -> bool {
        let refuses = self.refuses;
        let stream = self.stream(conn);
        assert!(!range.is_empty() && range.end <= buffer.0.len() && range.start >= 7);
        let end = at + range.len() as u64;
        assert!(at >= stream.published && end <= stream.edge, "{at} to {end}: {} to {}", stream.published, stream.edge);
        if !refuses {
            stream.place(at..end);
        }
        !refuses
    }

    fn publish(&mut self, conn: ConnId, to: u64) {
        let stream = self.stream(conn);
        assert!(to > stream.published, "published twice");
        let first = stream.placed.first_mut().expect("published and not placed");
        assert!(first.start == stream.published && to <= first.end, "published {to}, placed {first:?}");
        first.start = to;
        if first.start == first.end {
            stream.placed.remove(0);
        }
        stream.published = to;
    }

    fn takes(&mut self, _: SocketAddr, _: SocketAddr, segment: &[u8]) -> bool {
        assert!(self.bridge);
        let (header, _) = Header::parse(segment).expect("a segment");
        // A SYN, or an ACK that brings a cookie back.
        assert!(header.flags.has(Flags::SYN) != header.flags.has(Flags::ACK));
        !self.takes_none
    }

    fn pass(&mut self, buffer: Packet, range: Range<usize>) -> bool {
        assert!(self.bridge && range.start >= 7);
        let packet = &buffer.0[range];
        let len = match packet[0] >> 4 {
            4 => {
                let ip = ipv4::Packet::parse(packet).expect("an IPv4 packet");
                assert!(ip.checksum_valid());
                usize::from(ip.total_len())
            }
            _ => ipv6::HEADER + usize::from(u16::from_be_bytes([packet[4], packet[5]])),
        };
        assert_eq!(packet.len(), len);
        !self.refuses
    }

    fn undelivered(&mut self, packet: &[u8]) {
        assert!(!packet.is_empty());
    }

    fn event(&mut self, conn: ConnId, event: Event) {
        match event {
            Event::Incoming(_) => {
                let old = self.streams.insert(conn, Stream::new(0, 0, self.room));
                assert!(old.is_none(), "a name was given twice");
                self.came.push(conn);
            }
            Event::Free => {
                let stream = self.streams.remove(&conn).expect("free twice");
                assert!(stream.ended, "free and not ended");
                self.rings.push(stream.ring);
            }
            Event::Ended(_) => {
                assert!(!std::mem::replace(&mut self.stream(conn).ended, true), "ended twice");
            }
            Event::Asked | Event::Established | Event::PeerClosed => assert!(!self.stream(conn).ended),
        }
    }
}
