//! The parsers, for the fuzzer in `tests/fuzz`: each reads what anybody on the network may have sent. They panic where what was
//! read contradicts the bytes, or is read otherwise when it was written again.

use crate::checksum::Sum;
use crate::{arp, ethernet, icmpv4, icmpv6, ipv4, ipv6, ndp, tcp, udp};
use std::net::Ipv6Addr;
use std::path::Path;

/// An Ethernet header: written again, it is the same bytes.
pub fn ethernet(data: &[u8]) {
    let Ok(header) = ethernet::Header::parse(data) else { return };
    let mut bytes = [0; ethernet::TAGGED];
    let len = header.emit(&mut bytes);
    assert!(len == header.len() && bytes[..len] == data[..len]);
}

/// An ARP packet: written again, it is the same bytes.
pub fn arp(data: &[u8]) {
    let Ok(packet) = arp::Packet::parse(data) else { return };
    let mut bytes = [0; arp::PACKET];
    packet.emit(&mut bytes);
    assert!(bytes == data[..arp::PACKET]);
}

/// An IPv4 packet: its parts are the bytes, each once, and a header without options is written again as it was, but for its
/// reserved bits.
pub fn ipv4(data: &[u8]) {
    if let Ok(quoted) = ipv4::Packet::quoted(data) {
        let (len, payload) = (quoted.header_len(), quoted.payload().len());
        assert!(len + payload <= usize::from(quoted.total_len()).min(data.len()));
        assert!(quoted.payload() == &data[len..len + payload]);
    }
    let Ok(packet) = ipv4::Packet::parse(data) else { return };
    let (len, total) = (packet.header_len(), usize::from(packet.total_len()));
    assert!(packet.options() == &data[ipv4::HEADER..len] && packet.payload() == &data[len..total]);
    let quoted = ipv4::Packet::quoted(data).expect("a whole packet can be quoted");
    assert!(quoted.payload() == packet.payload() && quoted.options() == packet.options());
    assert!(packet.checksum_valid() == Sum::ZERO.bytes(&data[..len]).valid());
    if packet.is_fragment() || len > ipv4::HEADER {
        return;
    }
    let header = ipv4::Header {
        source: packet.source(),
        destination: packet.destination(),
        protocol: packet.protocol(),
        ttl: packet.ttl(),
        tos: packet.tos(),
        id: packet.id(),
        dont_fragment: packet.dont_fragment(),
        payload: packet.payload().len() as u16,
    };
    let mut bytes = [0; ipv4::HEADER];
    header.emit(&mut bytes);
    assert!(bytes[..6] == data[..6] && bytes[6] == data[6] & 0x7f && bytes[7..10] == data[7..10]);
    assert!(bytes[12..] == data[12..ipv4::HEADER]);
    assert!(ipv4::Packet::quoted(&bytes).expect("what we wrote").checksum_valid());
    assert!(header.pseudo() == packet.pseudo());
}

/// An IPv6 packet: its payload is the end of the packet, and a header without extensions is written again as it was.
pub fn ipv6(data: &[u8]) {
    let quoted = ipv6::Packet::quoted(data);
    if let Ok(quoted) = quoted {
        let (len, payload) = (quoted.header_len(), quoted.payload().len());
        assert!(len + payload <= (ipv6::HEADER + usize::from(quoted.payload_len())).min(data.len()));
        assert!(quoted.payload() == &data[len..len + payload]);
    }
    let Ok(packet) = ipv6::Packet::parse(data) else { return };
    let (len, total) = (packet.header_len(), ipv6::HEADER + usize::from(packet.payload_len()));
    assert!(packet.payload() == &data[len..total]);
    let quoted = quoted.expect("a whole packet can be quoted");
    assert!(quoted.payload() == packet.payload() && quoted.protocol() == packet.protocol());
    if len > ipv6::HEADER {
        return;
    }
    assert!(!packet.is_fragment());
    let header = ipv6::Header {
        source: packet.source(),
        destination: packet.destination(),
        protocol: packet.protocol(),
        hop_limit: packet.hop_limit(),
        traffic_class: packet.traffic_class(),
        flow_label: packet.flow_label(),
        payload: packet.payload_len(),
    };
    let mut bytes = [0; ipv6::HEADER];
    header.emit(&mut bytes);
    assert!(bytes == data[..ipv6::HEADER] && header.pseudo() == packet.pseudo());
}

/// A TCP segment: written again and read again, the header says the same, and has only become shorter.
pub fn tcp(data: &[u8]) {
    let quoted = tcp::Quoted::parse(data);
    let Ok((header, len)) = tcp::Header::parse(data) else { return };
    let quoted = quoted.expect("a whole header can be quoted");
    assert!((quoted.source, quoted.destination, quoted.seq) == (header.source, header.destination, header.seq));
    assert!((tcp::HEADER..=tcp::MAX_HEADER).contains(&len) && len <= data.len());
    let mut bytes = [0; tcp::MAX_HEADER];
    let written = header.emit(&mut bytes);
    assert!(written == header.len());
    let (again, end) = tcp::Header::parse(&bytes[..written]).expect("what we wrote");
    assert!(end == written);
    // SACK blocks beside options that fill the header, which only a forged segment has room for, are left out.
    let (blocks, left) = (header.sack.blocks(), again.sack.blocks());
    assert!(blocks.starts_with(left) && (blocks.len() == left.len() || written > tcp::MAX_HEADER - 8));
    assert!(tcp::Header { sack: again.sack, ..header } == again);
}

/// A UDP datagram: its payload is where its length says, and the header is written again as it was.
pub fn udp(data: &[u8]) {
    let Ok(datagram) = udp::Datagram::parse(data) else { return };
    let payload = datagram.payload();
    assert!(payload == &data[udp::HEADER..udp::HEADER + payload.len()]);
    let header =
        udp::Header { source: datagram.source(), destination: datagram.destination(), payload: payload.len() as u16 };
    let mut bytes = [0; udp::HEADER];
    header.emit(&mut bytes);
    assert!(bytes[..udp::CHECKSUM] == data[..udp::CHECKSUM]);
    let (a, b) = ([192, 0, 2, 1].into(), [192, 0, 2, 2].into());
    let sum =
        Sum::pseudo(a, b, crate::protocol::UDP, (udp::HEADER + payload.len()) as u16).bytes(&bytes).bytes(payload);
    let mut whole = [&bytes[..], payload].concat();
    whole[udp::CHECKSUM..udp::HEADER].copy_from_slice(&udp::field(sum).to_be_bytes());
    assert!(udp::Datagram::parse(&whole).expect("what we wrote").checksum_valid(a, b));
}

/// An ICMP message: written again and read again, it says the same; of an error's packet the header is looked at.
pub fn icmpv4(data: &[u8]) {
    let Ok(message) = icmpv4::Message::parse(data) else { return };
    let mut bytes = vec![0; message.len()];
    assert!(message.emit(&mut bytes) == data.len());
    assert!(icmpv4::checksum_valid(&bytes));
    assert!(bytes[..2] == data[..2] && bytes[icmpv4::HEADER..] == data[icmpv4::HEADER..]);
    assert!(icmpv4::Message::parse(&bytes) == Ok(message));
    if let icmpv4::Message::Error { quote, .. } = message {
        ipv4(quote);
        if let Ok(packet) = ipv4::Packet::quoted(quote) {
            let _ = tcp::Quoted::parse(packet.payload());
        }
    }
}

/// An ICMPv6 message, neighbour discovery's among them: written again and read again, it says the same.
pub fn icmpv6(data: &[u8]) {
    let Ok(message) = icmpv6::Message::parse(data) else { return };
    let (a, b) = (Ipv6Addr::LOCALHOST, Ipv6Addr::UNSPECIFIED);
    let mut bytes = vec![0; message.len()];
    assert!(message.emit(&a, &b, &mut bytes) == data.len());
    assert!(Sum::pseudo_v6(&a, &b, crate::protocol::ICMPV6, bytes.len() as u32).bytes(&bytes).valid());
    assert!(bytes[0] == data[0] && icmpv6::Message::parse(&bytes) == Ok(message));
    match message {
        icmpv6::Message::Error { quote, .. } => {
            ipv6(quote);
            if let Ok(packet) = ipv6::Packet::quoted(quote) {
                let _ = tcp::Quoted::parse(packet.payload());
            }
        }
        icmpv6::Message::Ndp(message) => {
            let options: Vec<_> = message.options().iter().collect();
            let mut space = vec![0; data.len()];
            let again = ndp::Options::write(&options, &mut space);
            assert!(again.iter().eq(options));
            for (hops, source) in [(255, a), (64, b)] {
                assert!(hops == 255 || !message.acceptable(hops, &source, &a));
            }
        }
        _ => {}
    }
}

/// A frame, from the outside to the inside, as a stack goes through it.
pub fn frame(data: &[u8]) {
    let Ok(header) = ethernet::Header::parse(data) else { return };
    let rest = &data[header.len()..];
    match header.ethertype {
        ethernet::ethertype::ARP => arp(rest),
        ethernet::ethertype::IPV4 => {
            let Ok(packet) = ipv4::Packet::parse(rest) else { return };
            match packet.protocol() {
                crate::protocol::TCP => tcp(packet.payload()),
                crate::protocol::UDP => udp(packet.payload()),
                crate::protocol::ICMP => icmpv4(packet.payload()),
                _ => {}
            }
        }
        ethernet::ethertype::IPV6 => {
            let Ok(packet) = ipv6::Packet::parse(rest) else { return };
            match packet.protocol() {
                crate::protocol::TCP => tcp(packet.payload()),
                crate::protocol::UDP => udp(packet.payload()),
                crate::protocol::ICMPV6 => icmpv6(packet.payload()),
                _ => {}
            }
        }
        _ => {}
    }
}

/// Sums in pieces: `data` is cut at the places that its first bytes name.
pub fn checksum(data: &[u8]) {
    let Some((&[a, b], bytes)) = data.split_first_chunk() else { return };
    let (low, high) = (usize::from(a.min(b)).min(bytes.len()), usize::from(a.max(b)).min(bytes.len()));
    let pieces = Sum::ZERO.bytes(&bytes[..low]).bytes(&bytes[low..high]).bytes(&bytes[high..]);
    let mut plain = 0u32;
    for pair in bytes.chunks(2) {
        plain += u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
        plain = (plain & 0xffff) + (plain >> 16);
    }
    assert!(u32::from(pieces.folded()) == plain);
}

/// A function that the fuzzer calls.
pub type Target = fn(&[u8]);

/// How far from its seeds a target is tried.
pub struct Near {
    /// Variants of each seed.
    pub tries: usize,
    /// Changes in a variant, at most.
    pub changes: usize,
    /// No change leaves fewer bytes than these, where there were as many.
    pub least: usize,
}

/// What the fuzzer does, without knowing which way a target goes: it finds less, and needs no instrumented build. Calls each target
/// with its seeds in `tests/fuzz/seeds`, and with variants of them that are the same ones each time.
///
/// # Panics
/// A target has no seeds.
pub fn near_seeds(targets: &[(&str, Target)], near: &Near) {
    let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fuzz/seeds");
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut random = |below: usize| {
        // xorshift64
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 16) as usize % below.max(1)
    };
    for (name, target) in targets {
        let files: Vec<_> = std::fs::read_dir(seeds.join(name)).expect(name).map(|f| f.unwrap().path()).collect();
        assert!(!files.is_empty(), "{name} has no seeds");
        for file in files {
            let seed = std::fs::read(&file).unwrap();
            target(&seed);
            for _ in 0..near.tries {
                let mut bytes = seed.clone();
                for _ in 0..=random(near.changes) {
                    let at = random(bytes.len());
                    match random(4) {
                        0 => bytes[at] ^= 1 << random(8),
                        1 => bytes[at] = random(256) as u8,
                        2 => bytes.truncate(at.max(near.least)),
                        _ => bytes.insert(at, random(256) as u8),
                    }
                }
                target(&bytes);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TARGETS: &[(&str, Target)] = &[
        ("wire-ethernet", ethernet),
        ("wire-arp", arp),
        ("wire-ipv4", ipv4),
        ("wire-ipv6", ipv6),
        ("wire-tcp", tcp),
        ("wire-udp", udp),
        ("wire-icmpv4", icmpv4),
        ("wire-icmpv6", icmpv6),
        ("wire-frame", frame),
        ("wire-checksum", checksum),
    ];

    #[test]
    fn seeds_and_what_is_near_them() {
        near_seeds(TARGETS, &Near { tries: 2000, changes: 3, least: 1 });
    }
}
