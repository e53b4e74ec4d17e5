//! Packets as the simulator sees them: parsed, built and printed by code of its own, so that a fault of the engine's formats
//! shows as a disagreement.

use std::fmt::{self, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// TCP's control bits.
#[allow(missing_docs)]
pub mod flag {
    pub const FIN: u8 = 1;
    pub const SYN: u8 = 2;
    pub const RST: u8 = 4;
    pub const PSH: u8 = 8;
    pub const ACK: u8 = 16;
    pub const URG: u8 = 32;
    pub const ECE: u8 = 64;
    pub const CWR: u8 = 128;
}

/// The protocol number of TCP.
pub const TCP: u8 = 6;
/// The protocol number of ICMP.
pub const ICMP: u8 = 1;
/// The protocol number of ICMPv6.
pub const ICMP6: u8 = 58;

/// An option of TCP's header, where it stands.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Opt {
    /// End of the list.
    End,
    /// One byte that fills.
    Nop,
    /// Maximum segment size.
    Mss(u16),
    /// Window scale.
    Scale(u8),
    /// SACK permitted.
    SackOk,
    /// SACK blocks.
    Sack(Vec<(u32, u32)>),
    /// TSval and TSecr.
    Ts(u32, u32),
    /// Any other: its kind and its bytes.
    Other(u8, Vec<u8>),
}

/// What a TCP header says.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
#[allow(missing_docs)]
pub struct Tcp {
    pub source: u16,
    pub destination: u16,
    pub seq: u32,
    pub ack: u32,
    pub flags: u8,
    pub window: u16,
    pub urgent: u16,
    pub options: Vec<Opt>,
}

/// Where the parts of a packet lie.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ip {
    /// Where the IP header begins.
    pub at: usize,
    /// Where the transport header begins.
    pub transport: usize,
    /// Where the packet ends.
    pub end: usize,
    /// Who sent it.
    pub source: IpAddr,
    /// To whom.
    pub destination: IpAddr,
    /// What it carries.
    pub protocol: u8,
    /// Whether a router may not cut it; always so in IPv6.
    pub whole: bool,
}

fn word(b: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([b[at], b[at + 1]])
}

fn long(b: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]])
}

/// The sum of RFC 1071 of `bytes`, added to `sum`, not folded.
pub fn sum(bytes: &[u8], mut sum: u64) -> u64 {
    let mut chunks = bytes.chunks_exact(4);
    for c in &mut chunks {
        sum += u64::from(u32::from_be_bytes([c[0], c[1], c[2], c[3]]));
    }
    let rest = chunks.remainder();
    let mut last = [0u8; 4];
    last[..rest.len()].copy_from_slice(rest);
    sum + u64::from(u32::from_be_bytes(last))
}

/// Folds a sum to 16 bits.
pub fn fold(mut sum: u64) -> u16 {
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// The sum of the pseudo header.
pub fn pseudo(source: IpAddr, destination: IpAddr, protocol: u8, len: usize) -> u64 {
    let start = u64::from(protocol) + len as u64;
    match (source, destination) {
        (IpAddr::V4(s), IpAddr::V4(d)) => sum(&d.octets(), sum(&s.octets(), start)),
        (IpAddr::V6(s), IpAddr::V6(d)) => sum(&d.octets(), sum(&s.octets(), start)),
        _ => panic!("addresses of two families in a packet"),
    }
}

/// Where the IP header of an Ethernet frame begins, if it carries one: behind a tag of 802.1Q, where there is one.
pub fn link(frame: &[u8]) -> Option<usize> {
    let mut at = 12;
    if frame.len() < 14 {
        return None;
    }
    if word(frame, at) == 0x8100 {
        at += 4;
        if frame.len() < at + 2 {
            return None;
        }
    }
    matches!(word(frame, at), 0x0800 | 0x86dd).then_some(at + 2)
}

/// The IP header at `at`, if it is one and the packet is as long as it says.
pub fn ip(frame: &[u8], at: usize) -> Option<Ip> {
    let b = frame.get(at..)?;
    match b.first()? >> 4 {
        4 if b.len() >= 20 => {
            let (header, total) = (usize::from(b[0] & 15) * 4, usize::from(word(b, 2)));
            if header < 20 || total < header || total > b.len() || fold(sum(&b[..header], 0)) != 0xffff {
                return None;
            }
            let (whole, part) = (b[6] & 0x40 != 0, word(b, 6) & 0x3fff != 0);
            if part {
                return None;
            }
            let address = |i: usize| IpAddr::V4(Ipv4Addr::new(b[i], b[i + 1], b[i + 2], b[i + 3]));
            Some(Ip {
                at,
                transport: at + header,
                end: at + total,
                source: address(12),
                destination: address(16),
                protocol: b[9],
                whole,
            })
        }
        6 if b.len() >= 40 => {
            let total = 40 + usize::from(word(b, 4));
            if total > b.len() {
                return None;
            }
            let address = |i: usize| IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(&b[i..i + 16]).expect("16 bytes")));
            Some(Ip {
                at,
                transport: at + 40,
                end: at + total,
                source: address(8),
                destination: address(24),
                protocol: b[6],
                whole: true,
            })
        }
        _ => None,
    }
}

/// Whether the transport checksum of a packet is right.
pub fn checksum_right(frame: &[u8], ip: &Ip) -> bool {
    let body = &frame[ip.transport..ip.end];
    let start = match ip.protocol {
        ICMP => 0,
        _ => pseudo(ip.source, ip.destination, ip.protocol, body.len()),
    };
    fold(sum(body, start)) == 0xffff
}

/// The TCP header of a packet and where its payload begins. The checksum is not looked at.
pub fn tcp(frame: &[u8], ip: &Ip) -> Option<(Tcp, usize)> {
    let b = &frame[ip.transport..ip.end];
    if ip.protocol != TCP || b.len() < 20 {
        return None;
    }
    let header = usize::from(b[12] >> 4) * 4;
    if header < 20 || header > b.len() {
        return None;
    }
    let mut options = Vec::new();
    let mut o = &b[20..header];
    while let Some(&kind) = o.first() {
        if kind <= 1 {
            options.push(if kind == 0 { Opt::End } else { Opt::Nop });
            o = &o[1..];
            continue;
        }
        let len = usize::from(*o.get(1)?);
        if len < 2 || len > o.len() {
            return None;
        }
        let body = &o[2..len];
        options.push(match (kind, body.len()) {
            (2, 2) => Opt::Mss(word(body, 0)),
            (3, 1) => Opt::Scale(body[0]),
            (4, 0) => Opt::SackOk,
            (5, n) if n % 8 == 0 => Opt::Sack(body.chunks(8).map(|c| (long(c, 0), long(c, 4))).collect()),
            (8, 8) => Opt::Ts(long(body, 0), long(body, 4)),
            _ => Opt::Other(kind, body.to_vec()),
        });
        o = &o[len..];
    }
    let tcp = Tcp {
        source: word(b, 0),
        destination: word(b, 2),
        seq: long(b, 4),
        ack: long(b, 8),
        flags: b[13],
        window: word(b, 14),
        urgent: word(b, 18),
        options,
    };
    Some((tcp, ip.transport + header))
}

impl Tcp {
    /// How many numbers a segment with `len` bytes of payload takes.
    pub fn length(&self, len: usize) -> u32 {
        len as u32 + u32::from(self.flags & flag::SYN != 0) + u32::from(self.flags & flag::FIN != 0)
    }

    /// The timestamp.
    pub fn stamp(&self) -> Option<u32> {
        self.options.iter().find_map(|o| if let Opt::Ts(value, _) = o { Some(*value) } else { None })
    }

    /// The header's bytes, its checksum zero.
    pub fn bytes(&self) -> Vec<u8> {
        let mut b = Vec::with_capacity(60);
        b.extend(self.source.to_be_bytes());
        b.extend(self.destination.to_be_bytes());
        b.extend(self.seq.to_be_bytes());
        b.extend(self.ack.to_be_bytes());
        b.extend([0x50, self.flags]);
        b.extend(self.window.to_be_bytes());
        b.extend([0, 0]);
        b.extend(self.urgent.to_be_bytes());
        for option in &self.options {
            match option {
                Opt::End => b.push(0),
                Opt::Nop => b.push(1),
                Opt::Mss(m) => b.extend([2, 4, (m >> 8) as u8, *m as u8]),
                Opt::Scale(s) => b.extend([3, 3, *s]),
                Opt::SackOk => b.extend([4, 2]),
                Opt::Sack(blocks) => {
                    b.extend([5, 2 + 8 * blocks.len() as u8]);
                    for (left, right) in blocks {
                        b.extend(left.to_be_bytes());
                        b.extend(right.to_be_bytes());
                    }
                }
                Opt::Ts(value, echo) => {
                    b.extend([8, 10]);
                    b.extend(value.to_be_bytes());
                    b.extend(echo.to_be_bytes());
                }
                Opt::Other(kind, body) => {
                    b.extend([*kind, 2 + body.len() as u8]);
                    b.extend(body);
                }
            }
        }
        while b.len() % 4 != 0 {
            b.push(0);
        }
        assert!(b.len() <= 60, "the options are longer than a header can be");
        b[12] = (b.len() as u8 / 4) << 4;
        b
    }
}

/// A packet: IP header, then `body` (its transport header and payload), whose checksum at `checksum_at` is computed.
pub fn packet(source: IpAddr, destination: IpAddr, protocol: u8, mut body: Vec<u8>, checksum_at: usize) -> Vec<u8> {
    let start = if protocol == ICMP { 0 } else { pseudo(source, destination, protocol, body.len()) };
    body[checksum_at..checksum_at + 2].fill(0);
    let check = !fold(sum(&body, start));
    body[checksum_at..checksum_at + 2].copy_from_slice(&check.to_be_bytes());
    let mut p = Vec::with_capacity(40 + body.len());
    match (source, destination) {
        (IpAddr::V4(s), IpAddr::V4(d)) => {
            p.extend([0x45, 0]);
            p.extend((20 + body.len() as u16).to_be_bytes());
            p.extend([0, 0, 0x40, 0, 64, protocol, 0, 0]);
            p.extend(s.octets());
            p.extend(d.octets());
            let check = !fold(sum(&p, 0));
            p[10..12].copy_from_slice(&check.to_be_bytes());
        }
        (IpAddr::V6(s), IpAddr::V6(d)) => {
            p.extend([0x60, 0, 0, 0]);
            p.extend((body.len() as u16).to_be_bytes());
            // Neighbour discovery is valid only from the same link (RFC 4861, section 7.1.1): 255 suits all.
            p.extend([protocol, 255]);
            p.extend(s.octets());
            p.extend(d.octets());
        }
        _ => panic!("addresses of two families in a packet"),
    }
    p.extend(body);
    p
}

/// A TCP segment as an IP packet.
pub fn segment(source: IpAddr, destination: IpAddr, tcp: &Tcp, payload: &[u8]) -> Vec<u8> {
    let mut body = tcp.bytes();
    body.extend_from_slice(payload);
    packet(source, destination, TCP, body, 16)
}

/// An ICMP error about `offending` (an IP packet): `kind` and `code` are those of its family, `value` the four bytes behind
/// the checksum (the next hop's MTU).
pub fn icmp(from: IpAddr, offending: &[u8], kind: u8, code: u8, value: u32) -> Option<Vec<u8>> {
    let ip = ip(offending, 0)?;
    let mut body = vec![kind, code, 0, 0];
    body.extend(value.to_be_bytes());
    // RFC 1812, section 4.3.2.3, lets a router send as much as 576 bytes; RFC 792 asks for eight of the transport header.
    let quote = if ip.source.is_ipv4() { ip.transport + 8 } else { offending.len().min(1280 - 48) };
    body.extend(&offending[..quote.min(offending.len())]);
    Some(packet(from, ip.source, if ip.source.is_ipv4() { ICMP } else { ICMP6 }, body, 2))
}

/// A packet too big, for a next hop of `mtu` (RFC 1191, section 4; RFC 8201).
pub fn too_big(from: IpAddr, offending: &[u8], mtu: u16) -> Option<Vec<u8>> {
    if from.is_ipv4() {
        icmp(from, offending, 3, 4, u32::from(mtu))
    } else {
        icmp(from, offending, 2, 0, u32::from(mtu))
    }
}

/// A line as tcpdump(8) writes it.
pub struct Line<'a> {
    /// The frame.
    pub frame: &'a [u8],
    /// Where its IP header begins; `None`: it has none.
    pub at: Option<usize>,
    /// Subtracted from sequence and acknowledgement numbers.
    pub base: (u32, u32),
}

impl fmt::Display for Line<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(at) = self.at else { return write!(f, "{}", other(self.frame)) };
        let Some(ip) = ip(self.frame, at) else { return write!(f, "not IP, {} bytes", self.frame.len()) };
        if let Some((tcp, payload)) = tcp(self.frame, &ip) {
            let to = SocketLike(ip.destination, tcp.destination);
            write!(f, "{} > {to}: ", SocketLike(ip.source, tcp.source))?;
            write!(f, "{}", describe(&tcp, ip.end - payload, self.base))?;
            if !checksum_right(self.frame, &ip) {
                f.write_str(" (bad checksum)")?;
            }
            return Ok(());
        }
        let b = &self.frame[ip.transport..ip.end];
        let name = match (ip.protocol, b.first(), b.get(1)) {
            (ICMP, Some(3), Some(4)) => format!("ICMP too big, mtu {}", long(b, 4)),
            (ICMP6, Some(2), _) => format!("ICMP too big, mtu {}", long(b, 4)),
            (ICMP6, Some(135), _) => "neighbour solicitation".to_owned(),
            (ICMP6, Some(136), _) => "neighbour advertisement".to_owned(),
            (protocol, kind, code) => format!("protocol {protocol} type {kind:?} code {code:?}"),
        };
        write!(f, "{} > {}: {name}, {} bytes", ip.source, ip.destination, ip.end - ip.at)
    }
}

fn other(frame: &[u8]) -> &'static str {
    match frame.get(12..14) {
        Some([0x08, 0x06]) => "ARP",
        Some([0x81, 0x00]) => "tagged, not IP",
        _ => "neither IP nor ARP",
    }
}

struct SocketLike(IpAddr, u16);

impl fmt::Display for SocketLike {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0, self.1)
    }
}

/// A segment as packetdrill writes it: `S. 0:0(0) ack 1 win 65535 <mss 1460>`.
pub fn describe(tcp: &Tcp, len: usize, base: (u32, u32)) -> String {
    let mut s = letters(tcp.flags);
    let from = tcp.seq.wrapping_sub(base.0);
    let _ = write!(s, " {}:{}({len})", from, from.wrapping_add(len as u32));
    if tcp.flags & flag::ACK != 0 {
        let _ = write!(s, " ack {}", tcp.ack.wrapping_sub(base.1));
    }
    let _ = write!(s, " win {}", tcp.window);
    if tcp.flags & flag::URG != 0 {
        let _ = write!(s, " urg {}", tcp.urgent);
    }
    if !tcp.options.is_empty() {
        let _ = write!(s, " <{}>", options(&tcp.options, base.1));
    }
    s
}

/// The control bits as packetdrill writes them.
pub fn letters(flags: u8) -> String {
    let known = [
        (flag::FIN, 'F'),
        (flag::SYN, 'S'),
        (flag::RST, 'R'),
        (flag::PSH, 'P'),
        (flag::URG, 'U'),
        (flag::ECE, 'E'),
        (flag::CWR, 'W'),
    ];
    let mut s: String = known.iter().filter(|(bit, _)| flags & bit != 0).map(|(_, c)| *c).collect();
    if flags & flag::ACK != 0 {
        s.push('.');
    }
    if s.is_empty() {
        s.push('-');
    }
    s
}

/// Options as packetdrill writes them; SACK blocks are shown less `base`.
pub fn options(options: &[Opt], base: u32) -> String {
    let names: Vec<String> = options
        .iter()
        .map(|o| match o {
            Opt::End => "eol".to_owned(),
            Opt::Nop => "nop".to_owned(),
            Opt::Mss(m) => format!("mss {m}"),
            Opt::Scale(s) => format!("wscale {s}"),
            Opt::SackOk => "sackOK".to_owned(),
            Opt::Sack(blocks) => {
                let b: Vec<String> =
                    blocks.iter().map(|(l, r)| format!("{}:{}", l.wrapping_sub(base), r.wrapping_sub(base))).collect();
                format!("sack {}", b.join(" "))
            }
            Opt::Ts(value, echo) => format!("TS val {value} ecr {echo}"),
            Opt::Other(kind, body) => format!("option {kind} of {} bytes", body.len()),
        })
        .collect();
    names.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses() -> [(IpAddr, IpAddr); 2] {
        [
            ("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap()),
            ("fd00::1".parse().unwrap(), "fd00::2".parse().unwrap()),
        ]
    }

    #[test]
    fn what_is_built_is_parsed_and_its_checksums_are_right() {
        for (s, d) in addresses() {
            let tcp_header = Tcp {
                source: 5,
                destination: 80,
                seq: 7,
                ack: 9,
                flags: flag::ACK | flag::PSH,
                window: 512,
                urgent: 0,
                options: vec![Opt::Nop, Opt::Nop, Opt::Ts(1, 2), Opt::Nop, Opt::Nop, Opt::Sack(vec![(20, 30)])],
            };
            let p = segment(s, d, &tcp_header, b"hello");
            let ip = ip(&p, 0).unwrap();
            assert!(checksum_right(&p, &ip));
            let (parsed, payload) = tcp(&p, &ip).unwrap();
            assert_eq!((&parsed, &p[payload..ip.end]), (&tcp_header, &b"hello"[..]));
            assert_eq!(
                describe(&parsed, 5, (6, 8)),
                "P. 1:6(5) ack 1 win 512 <nop,nop,TS val 1 ecr 2,nop,nop,sack 12:22>"
            );
            let error = too_big(s, &p, 600).unwrap();
            let about = super::ip(&error, 0).unwrap();
            assert!(checksum_right(&error, &about) && about.destination == s);
            let mut bad = p.clone();
            bad[ip.end - 1] ^= 1;
            assert!(!checksum_right(&bad, &ip));
        }
    }

    #[test]
    fn the_sum_is_that_of_16_bit_words() {
        // RFC 1071, section 3.
        assert_eq!(fold(sum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7], 0)), 0xddf2);
        assert_eq!(fold(sum(&[0xab], 0)), 0xab00);
    }
}
