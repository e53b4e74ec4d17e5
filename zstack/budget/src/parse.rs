//! Headers of data segments, read and written; no checksum is looked at.

use crate::Scenario;
use std::hint::black_box;
use zstack_wire::tcp::{Flags, Header, Segment, Timestamps};
use zstack_wire::{Seq, ipv4, ipv6, protocol};

const SEGMENTS: u32 = 64;
const PAYLOAD: usize = 1448;

fn header(number: u32, timestamps: bool) -> Header {
    Header {
        source: 50000,
        destination: 80,
        seq: Seq(number * PAYLOAD as u32),
        ack: Seq(1),
        flags: Flags::ACK,
        window: 512,
        timestamps: timestamps.then_some(Timestamps { value: number, echo: 7 }),
        ..Header::default()
    }
}

fn v4(payload: usize) -> ipv4::Header {
    ipv4::Header {
        source: [192, 0, 2, 1].into(),
        destination: [192, 0, 2, 2].into(),
        protocol: protocol::TCP,
        ttl: 64,
        tos: 0,
        id: 0,
        dont_fragment: true,
        payload: payload as u16,
    }
}

fn packets(of: impl Fn(&Header) -> Vec<u8>, timestamps: bool) -> Vec<Vec<u8>> {
    (0..SEGMENTS)
        .map(|n| {
            let header = header(n, timestamps);
            let mut packet = of(&header);
            let ip = packet.len();
            packet.resize(ip + header.len() + PAYLOAD, 0);
            header.emit(&mut packet[ip..]);
            packet
        })
        .collect()
}

fn packets_v4(timestamps: bool) -> Vec<Vec<u8>> {
    let ip = |header: &Header| {
        let mut bytes = vec![0; ipv4::HEADER];
        v4(header.len() + PAYLOAD).emit(&mut bytes);
        bytes
    };
    packets(ip, timestamps)
}

struct Parse<F> {
    packets: Vec<Vec<u8>>,
    parse: F,
}

impl<F: Fn(&[u8])> Scenario for Parse<F> {
    fn segments(&self) -> u32 {
        SEGMENTS
    }

    fn work(&mut self) {
        for packet in &self.packets {
            (self.parse)(black_box(packet));
        }
    }
}

fn read_v4(bytes: &[u8]) {
    let Ok(packet) = ipv4::Packet::parse(bytes) else { panic!("not a packet") };
    if packet.is_fragment() || packet.protocol() != protocol::TCP {
        panic!("not a segment");
    }
    let Ok(segment) = Segment::parse(packet.payload()) else { panic!("not a segment") };
    black_box((packet.source(), packet.destination(), segment.header_len()));
    black_box(&segment.plain());
}

fn read_v6(bytes: &[u8]) {
    let Ok(packet) = ipv6::Packet::parse(bytes) else { panic!("not a packet") };
    if packet.is_fragment() || packet.protocol() != protocol::TCP {
        panic!("not a segment");
    }
    let Ok(segment) = Segment::parse(packet.payload()) else { panic!("not a segment") };
    black_box((packet.source(), packet.destination(), segment.header_len()));
    black_box(&segment.plain());
}

/// IPv4, and TCP with timestamps.
pub fn timestamps() -> Box<dyn Scenario> {
    Box::new(Parse { packets: packets_v4(true), parse: read_v4 })
}

/// IPv4, and TCP without options.
pub fn plain() -> Box<dyn Scenario> {
    Box::new(Parse { packets: packets_v4(false), parse: read_v4 })
}

/// IPv6, and TCP with timestamps.
pub fn v6() -> Box<dyn Scenario> {
    let ip = |header: &Header| {
        let mut bytes = vec![0; ipv6::HEADER];
        let address = |n| [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, n].into();
        ipv6::Header {
            source: address(1),
            destination: address(2),
            protocol: protocol::TCP,
            hop_limit: 64,
            traffic_class: 0,
            flow_label: 0,
            payload: (header.len() + PAYLOAD) as u16,
        }
        .emit(&mut bytes);
        bytes
    };
    Box::new(Parse { packets: packets(ip, true), parse: read_v6 })
}

struct Emit {
    headers: Vec<Header>,
    into: [u8; 80],
}

impl Scenario for Emit {
    fn segments(&self) -> u32 {
        SEGMENTS
    }

    fn work(&mut self) {
        for header in &self.headers {
            let header = black_box(header);
            let into = black_box(&mut self.into);
            let len = header.emit(&mut into[ipv4::HEADER..]);
            v4(len + PAYLOAD).emit(into);
            black_box(&*into);
        }
    }
}

/// The headers of IPv4 and of TCP with timestamps, written; with the checksum of the first, without that of the second.
pub fn emit() -> Box<dyn Scenario> {
    Box::new(Emit { headers: (0..SEGMENTS).map(|n| header(n, true)).collect(), into: [0; 80] })
}
