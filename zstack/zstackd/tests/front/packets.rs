//! Packets that the tests read from the tun and write to it.

use std::net::{IpAddr, SocketAddr};

pub const FIN: u8 = 1;
pub const SYN: u8 = 2;
pub const RST: u8 = 4;
pub const ACK: u8 = 16;

const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMP6: u8 = 58;

/// An IP packet without options: its protocol, ends and payload.
#[derive(Debug)]
pub struct Packet<'a> {
    pub protocol: u8,
    pub source: IpAddr,
    pub destination: IpAddr,
    pub payload: &'a [u8],
}

pub fn parse(bytes: &[u8]) -> Packet<'_> {
    if bytes[0] >> 4 == 4 {
        let address = |at: usize| IpAddr::from(<[u8; 4]>::try_from(&bytes[at..at + 4]).expect("4 bytes"));
        let at = usize::from(bytes[0] & 15) * 4;
        Packet { protocol: bytes[9], source: address(12), destination: address(16), payload: &bytes[at..] }
    } else {
        let address = |at: usize| IpAddr::from(<[u8; 16]>::try_from(&bytes[at..at + 16]).expect("16 bytes"));
        Packet { protocol: bytes[6], source: address(8), destination: address(24), payload: &bytes[40..] }
    }
}

/// A TCP segment: its ends, numbers, flags and the bytes that follow.
#[derive(Debug)]
pub struct Segment {
    pub from: SocketAddr,
    pub to: SocketAddr,
    pub seq: u32,
    pub flags: u8,
}

impl Packet<'_> {
    pub fn tcp(&self) -> Option<Segment> {
        if self.protocol != TCP {
            return None;
        }
        let p = self.payload;
        let port = |at: usize| u16::from_be_bytes([p[at], p[at + 1]]);
        Some(Segment {
            from: SocketAddr::new(self.source, port(0)),
            to: SocketAddr::new(self.destination, port(2)),
            seq: u32::from_be_bytes([p[4], p[5], p[6], p[7]]),
            flags: p[13],
        })
    }

    /// The ends and the data of a UDP datagram.
    pub fn udp(&self) -> Option<(SocketAddr, SocketAddr, &[u8])> {
        if self.protocol != UDP {
            return None;
        }
        let p = self.payload;
        let port = |at: usize| u16::from_be_bytes([p[at], p[at + 1]]);
        let (from, to) = (SocketAddr::new(self.source, port(0)), SocketAddr::new(self.destination, port(2)));
        Some((from, to, &p[8..]))
    }

    /// The answer to an echo request.
    pub fn pong(&self) -> Option<Vec<u8>> {
        let (request, reply) = match self.protocol {
            ICMP => (8, 0),
            ICMP6 => (128, 129),
            _ => return None,
        };
        (self.payload[0] == request).then(|| {
            let mut payload = self.payload.to_vec();
            payload[0] = reply;
            payload[2..4].fill(0);
            ip(self.protocol, self.destination, self.source, payload, Some(2))
        })
    }
}

/// Adds up 16-bit words (RFC 1071).
fn sum(bytes: &[u8], start: u32) -> u32 {
    bytes
        .chunks(2)
        .fold(start, |sum, pair| sum + u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)])))
}

fn fold(mut sum: u32) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// Whether the checksums of a packet are right.
pub fn sound(bytes: &[u8]) -> bool {
    let packet = parse(bytes);
    let header = packet.source.is_ipv6() || fold(sum(&bytes[..bytes.len() - packet.payload.len()], 0)) == 0;
    let pseudo = || {
        let len = packet.payload.len() as u32;
        sum(&octets(packet.destination), sum(&octets(packet.source), u32::from(packet.protocol) + len))
    };
    let start = if packet.protocol == ICMP { 0 } else { pseudo() };
    header && fold(sum(packet.payload, start)) == 0
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(a) => a.octets().to_vec(),
        IpAddr::V6(a) => a.octets().to_vec(),
    }
}

/// An IP packet whose payload has its checksum at `checksum`.
pub fn ip(protocol: u8, from: IpAddr, to: IpAddr, mut payload: Vec<u8>, checksum: Option<usize>) -> Vec<u8> {
    if let Some(at) = checksum {
        let pseudo = if protocol == ICMP {
            0
        } else {
            sum(&octets(to), sum(&octets(from), u32::from(protocol) + payload.len() as u32))
        };
        let value = fold(sum(&payload, pseudo));
        payload[at..at + 2].copy_from_slice(&value.to_be_bytes());
    }
    let len = payload.len() as u16;
    let mut packet = if from.is_ipv4() {
        let mut header = vec![0x45, 0];
        header.extend((len + 20).to_be_bytes());
        header.extend([0, 0, 0, 0, 64, protocol, 0, 0]);
        header.extend(octets(from));
        header.extend(octets(to));
        let value = fold(sum(&header, 0));
        header[10..12].copy_from_slice(&value.to_be_bytes());
        header
    } else {
        let mut header = vec![0x60, 0, 0, 0];
        header.extend(len.to_be_bytes());
        header.extend([protocol, 64]);
        header.extend(octets(from));
        header.extend(octets(to));
        header
    };
    packet.extend(payload);
    packet
}

/// A segment without options.
pub fn segment(from: SocketAddr, to: SocketAddr, seq: u32, ack: u32, flags: u8, data: &[u8]) -> Vec<u8> {
    let mut payload = from.port().to_be_bytes().to_vec();
    payload.extend(to.port().to_be_bytes());
    payload.extend(seq.to_be_bytes());
    payload.extend(ack.to_be_bytes());
    payload.extend([0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
    payload.extend(data);
    ip(TCP, from.ip(), to.ip(), payload, Some(16))
}

pub fn datagram(from: SocketAddr, to: SocketAddr, data: &[u8]) -> Vec<u8> {
    let mut payload = from.port().to_be_bytes().to_vec();
    payload.extend(to.port().to_be_bytes());
    payload.extend((data.len() as u16 + 8).to_be_bytes());
    payload.extend([0, 0]);
    payload.extend(data);
    ip(UDP, from.ip(), to.ip(), payload, Some(6))
}

/// An ICMP error about a packet, from its destination (RFC 792, RFC 4443).
pub fn unreachable(kind: u8, code: u8, about: &[u8]) -> Vec<u8> {
    let packet = parse(about);
    let mut payload = vec![kind, code, 0, 0, 0, 0, 0, 0];
    payload.extend(about);
    let protocol = if packet.source.is_ipv4() { ICMP } else { ICMP6 };
    ip(protocol, packet.destination, packet.source, payload, Some(2))
}

/// An echo request.
pub fn ping(from: IpAddr, to: IpAddr, id: u16) -> Vec<u8> {
    let (protocol, kind) = if from.is_ipv4() { (ICMP, 8) } else { (ICMP6, 128) };
    let mut payload = vec![kind, 0, 0, 0];
    payload.extend(id.to_be_bytes());
    payload.extend([0, 1]);
    payload.extend(b"are you there?");
    ip(protocol, from, to, payload, Some(2))
}
