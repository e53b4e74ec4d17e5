use crate::{check, mutated, some_bytes};
use proptest::prelude::*;
use smoltcp::wire::{Ipv4Packet, Ipv6Packet};
use std::net::{Ipv4Addr, Ipv6Addr};
use zstack_wire::checksum::Sum;
use zstack_wire::{ipv4, ipv6, protocol};

/// Addresses, protocol, hops, TOS; identification, DF, MF, offset in bytes; the payload.
type V4 = (Ipv4Addr, Ipv4Addr, u8, u8, u8, u16, bool, bool, u16, Vec<u8>);

fn ours_v4(bytes: &[u8]) -> Option<V4> {
    let p = ipv4::Packet::parse(bytes).ok()?;
    let offset = p.fragment_offset() as u16;
    // A fragment is one that has an offset, or more behind it.
    let more = bytes[6] & 0x20 != 0;
    assert_eq!(p.is_fragment(), more || offset != 0);
    let fragment = (p.id(), p.dont_fragment(), more, offset);
    let (id, dont, more, offset) = fragment;
    Some((p.source(), p.destination(), p.protocol(), p.ttl(), p.tos(), id, dont, more, offset, p.payload().to_vec()))
}

fn smoltcp_v4(bytes: &[u8]) -> Option<V4> {
    let p = Ipv4Packet::new_checked(bytes).ok().filter(|p| p.version() == 4)?;
    let tos = p.dscp() << 2 | p.ecn();
    let (source, destination) = (p.src_addr(), p.dst_addr());
    let (next, hops) = (p.next_header().into(), p.hop_limit());
    let (dont, more, offset) = (p.dont_frag(), p.more_frags(), p.frag_offset());
    Some((source, destination, next, hops, tos, p.ident(), dont, more, offset, p.payload().to_vec()))
}

fn etherparse_v4(bytes: &[u8]) -> Option<V4> {
    let p = etherparse::Ipv4Slice::from_slice(bytes).ok()?;
    let h = p.header();
    let tos = h.dcp().value() << 2 | h.ecn().value();
    let offset = h.fragments_offset().byte_offset();
    let payload = p.payload();
    let next = payload.ip_number.0;
    let fragment = (h.identification(), h.dont_fragment(), h.more_fragments(), offset);
    let (id, dont, more, offset) = fragment;
    let addresses = (h.source_addr(), h.destination_addr());
    Some((addresses.0, addresses.1, next, h.ttl(), tos, id, dont, more, offset, payload.payload.to_vec()))
}

fn v4() -> impl Strategy<Value = Vec<u8>> {
    let fields = any::<(u32, u32, u8, u8, u16, bool)>();
    let protocols = prop_oneof![Just(protocol::TCP), Just(protocol::UDP), Just(51), any::<u8>()];
    let fragment = prop_oneof![3 => Just(0u16), 1 => any::<u16>()];
    let options = prop_oneof![3 => Just(0usize), 1 => 0usize..11];
    (fields, protocols, fragment, options, some_bytes(60)).prop_map(|(f, protocol, fragment, options, payload)| {
        let (source, destination, ttl, tos, id, dont_fragment) = f;
        let mut bytes = vec![0; ipv4::HEADER];
        let header = ipv4::Header {
            source: source.into(),
            destination: destination.into(),
            protocol,
            ttl,
            tos,
            id,
            dont_fragment,
            payload: (4 * options + payload.len()) as u16,
        };
        header.emit(&mut bytes);
        bytes[0] += options as u8;
        bytes[6] |= (fragment >> 8) as u8 & 0xbf;
        bytes[7] = fragment as u8;
        bytes.extend(vec![1; 4 * options]);
        bytes.extend(payload);
        let len = ipv4::HEADER + 4 * options;
        bytes[10..12].fill(0);
        let field = Sum::ZERO.bytes(&bytes[..len]).field();
        bytes[10..12].copy_from_slice(&field.to_be_bytes());
        bytes
    })
}

#[test]
fn ipv4_like_smoltcp() {
    check(mutated(v4()), &[], |tally, bytes| {
        tally.compare(ours_v4(bytes), smoltcp_v4(bytes), None);
        if let Ok(p) = ipv4::Packet::parse(bytes) {
            let theirs = Ipv4Packet::new_unchecked(bytes).verify_checksum();
            tally.compare(p.checksum_valid(), theirs, None);
        }
    });
}

#[test]
fn ipv4_like_etherparse() {
    let authenticated = "an authentication header is a protocol to us, an extension to etherparse";
    check(mutated(v4()), &[authenticated], |tally, bytes| {
        let reason = (bytes.get(9) == Some(&51)).then_some(authenticated);
        tally.compare(ours_v4(bytes), etherparse_v4(bytes), reason);
    });
}

/// Addresses, what the payload is, hops; traffic class and flow label; whether a fragment; the payload.
type V6 = (Ipv6Addr, Ipv6Addr, u8, u8, (u8, u32), bool, Vec<u8>);

fn ours_v6(bytes: &[u8]) -> Result<V6, ipv6::Malformed> {
    let p = ipv6::Packet::parse(bytes)?;
    let flow = (p.traffic_class(), p.flow_label());
    Ok((p.source(), p.destination(), p.protocol(), p.hop_limit(), flow, p.is_fragment(), p.payload().to_vec()))
}

fn smoltcp_v6(bytes: &[u8]) -> Option<V6> {
    let p = Ipv6Packet::new_checked(bytes).ok().filter(|p| p.version() == 6)?;
    let flow = (p.traffic_class(), p.flow_label());
    Some((p.src_addr(), p.dst_addr(), p.next_header().into(), p.hop_limit(), flow, false, p.payload().to_vec()))
}

fn etherparse_v6(bytes: &[u8]) -> Option<V6> {
    let p = etherparse::Ipv6Slice::from_slice(bytes).ok()?;
    let (h, payload) = (p.header(), p.payload());
    let flow = (h.traffic_class(), h.flow_label().value());
    let (next, fragment) = (payload.ip_number.0, p.is_payload_fragmented());
    Some((h.source_addr(), h.destination_addr(), next, h.hop_limit(), flow, fragment, payload.payload.to_vec()))
}

/// Extension headers, each of which names the one that follows.
fn v6() -> impl Strategy<Value = Vec<u8>> {
    let padding = Just(vec![1u8, 4, 0, 0, 0, 0]);
    let long = some_bytes(4).prop_map(|tail| {
        let mut body = vec![0x1e, 10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        body[3..3 + tail.len()].copy_from_slice(&tail);
        body
    });
    let wild = prop::collection::vec(any::<u8>(), 6);
    let body = prop_oneof![4 => padding, 2 => long, 1 => wild];
    let kind = prop_oneof![4 => Just(60u8), 4 => Just(43), 2 => Just(44), 1 => Just(51), 1 => Just(0)];
    let extension = (kind, body).prop_map(|(kind, mut body)| {
        match kind {
            // Type 4 with none left, mostly.
            43 => body[1] &= 1,
            44 => {
                body.truncate(6);
                body[0] &= 1;
                body[1] &= 9;
            }
            _ => {}
        }
        (kind, body)
    });
    let chain = prop_oneof![2 => Just(vec![]), 3 => prop::collection::vec(extension, 0..4)];
    let last = prop_oneof![4 => Just(protocol::TCP), 1 => Just(protocol::NO_NEXT), 1 => Just(50u8)];
    let fields = any::<(u128, u128, u8, u8, u32)>();
    (fields, any::<bool>(), chain, last, some_bytes(40)).prop_map(|(f, hop, mut chain, last, data)| {
        if hop {
            chain.insert(0, (0, vec![1, 4, 0, 0, 0, 0]));
        }
        let mut payload = vec![];
        for (at, (_, body)) in chain.iter().enumerate() {
            let next = chain.get(at + 1).map_or(last, |c| c.0);
            payload.extend([next, ((body.len() + 2) / 8 - 1) as u8]);
            payload.extend(body);
        }
        payload.extend(data);
        let header = ipv6::Header {
            source: f.0.into(),
            destination: f.1.into(),
            protocol: chain.first().map_or(last, |c| c.0),
            hop_limit: f.2,
            traffic_class: f.3,
            flow_label: f.4,
            payload: payload.len() as u16,
        };
        let mut bytes = vec![0; ipv6::HEADER];
        header.emit(&mut bytes);
        bytes.extend(payload);
        bytes
    })
}

#[test]
fn ipv6_like_smoltcp() {
    let extended = "smoltcp's packet ends before the extension headers";
    check(mutated(v6()), &[extended], |tally, bytes| {
        let reason = matches!(bytes.get(6), Some(0 | 43 | 44 | 60)).then_some(extended);
        // Beside the extensions, the fixed header is the same.
        let theirs = smoltcp_v6(bytes);
        match (ours_v6(bytes), &theirs) {
            (Ok(ours), Some(theirs)) => {
                tally.compare((ours.0, ours.1, ours.3, ours.4), (theirs.0, theirs.1, theirs.3, theirs.4), None);
            }
            (Ok(_), None) => panic!("smoltcp refuses the fixed header"),
            _ => {}
        }
        tally.compare(ours_v6(bytes).ok(), theirs, reason);
    });
}

#[test]
fn ipv6_like_etherparse() {
    let empty = "etherparse takes a payload of length 0 as one of unknown length (a jumbogram's)";
    let authenticated = "an authentication header is a protocol to us, an extension to etherparse";
    let options = "etherparse does not look at options; we drop what RFC 8200, section 4.2, wants dropped";
    let broken = "etherparse does not look at options; ours reach beyond their header";
    let routed = "etherparse skips a routing header with segments left";
    let fragment = "behind the header of a fragment etherparse goes on; only the first fragment has extensions there";
    let reasons = [empty, authenticated, options, broken, routed, fragment];
    check(mutated(v6()), &reasons, |tally, bytes| {
        let (ours, theirs) = (ours_v6(bytes), etherparse_v6(bytes));
        let reason = match &ours {
            _ if bytes.len() > 40 && bytes[4..6] == [0, 0] => Some(empty),
            Ok(ours) if ours.2 == 51 => Some(authenticated),
            Ok(ours) if ours.5 => Some(fragment),
            Err(ipv6::Malformed::Option) => Some(options),
            Err(ipv6::Malformed::Routing) => Some(routed),
            Err(ipv6::Malformed::Extension) if theirs.is_some() => Some(broken),
            _ => None,
        };
        tally.compare(ours.ok(), theirs, reason);
    });
}

#[test]
fn what_we_write_they_read() {
    let header = ipv6::Header {
        source: "2001:db8::1".parse().unwrap(),
        destination: "2001:db8::2".parse().unwrap(),
        protocol: 17,
        hop_limit: 3,
        traffic_class: 0x5a,
        flow_label: 0x12345,
        payload: 0,
    };
    let mut bytes = [0; 40];
    header.emit(&mut bytes);
    let theirs = etherparse::Ipv6Header {
        traffic_class: 0x5a,
        flow_label: 0x12345.try_into().unwrap(),
        payload_length: 0,
        next_header: 17.into(),
        hop_limit: 3,
        source: header.source.octets(),
        destination: header.destination.octets(),
    };
    assert_eq!(bytes, theirs.to_bytes());
}
