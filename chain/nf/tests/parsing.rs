//! The parse of heads against the stack's parsers, on whole, mangled and random frames; and changed addresses against sums over all
//! bytes.

use culvert_nf::{End, HEAD, Network, Packet, Parsed, Transport, frames, readdress};
use proptest::prelude::*;
use proptest::sample::Index;
use std::net::{IpAddr, SocketAddr};
use zstack_wire::ethernet::{self, ethertype};
use zstack_wire::tcp::Flags;
use zstack_wire::{icmpv4, icmpv6, ipv4, ipv6, protocol, tcp, udp};

fn parsed(frame: &mut [u8]) -> Parsed {
    let len = frame.len();
    Parsed::of(&Packet::over(frame, 0, len, 0).expect("inside").head())
}

fn pair() -> impl Strategy<Value = (SocketAddr, SocketAddr)> {
    prop_oneof![
        any::<([u8; 4], [u8; 4], u16, u16)>().prop_map(|(a, b, p, q)| ((a, p).into(), (b, q).into())),
        any::<([u8; 16], [u8; 16], u16, u16)>().prop_map(|(a, b, p, q)| ((a, p).into(), (b, q).into())),
    ]
}

fn frame() -> impl Strategy<Value = Vec<u8>> {
    let data = || prop::collection::vec(any::<u8>(), 0..200);
    prop_oneof![
        (pair(), any::<u8>(), data()).prop_map(|((a, b), flags, data)| frames::tcp(a, b, Flags(flags), &data)),
        (pair(), data()).prop_map(|((a, b), data)| frames::udp(a, b, &data)),
        (pair(), any::<(bool, u16)>(), data()).prop_map(|((a, b), (request, id), data)| frames::echo(
            a.ip(),
            b.ip(),
            request,
            id,
            &data
        )),
        (pair(), any::<u8>(), data()).prop_map(|((a, b), protocol, data)| frames::ip(a.ip(), b.ip(), protocol, &data)),
    ]
}

/// IPv6 with extension headers of all kinds.
fn extended() -> impl Strategy<Value = Vec<u8>> {
    let extension = prop_oneof![
        (0..3u8).prop_map(|words| (
            protocol::DESTINATION_OPTIONS,
            [vec![words, 1, words * 8 + 4], vec![0; 4 + usize::from(words) * 8]].concat()
        )),
        (0..2u8)
            .prop_map(|words| (protocol::ROUTING, [vec![words, 9, 0], vec![0; 4 + usize::from(words) * 8]].concat())),
        any::<(u16, u32)>().prop_map(|(place, id)| {
            let place = if place & 1 == 0 { place } else { 0 };
            (protocol::FRAGMENT, [vec![0], place.to_be_bytes().to_vec(), id.to_be_bytes().to_vec()].concat())
        }),
    ];
    let addresses = any::<([u8; 16], [u8; 16])>();
    (addresses, prop::collection::vec(extension, 1..5), any::<(u16, u16)>()).prop_map(|((a, b), extensions, ports)| {
        let (a, b): (SocketAddr, SocketAddr) = ((a, ports.0).into(), (b, ports.1).into());
        let segment = frames::udp(a, b, b"data").split_off(54);
        let first = extensions[0].0;
        let mut payload = Vec::new();
        for (n, (_, body)) in extensions.iter().enumerate() {
            payload.push(extensions.get(n + 1).map_or(protocol::UDP, |e| e.0));
            payload.extend(body);
        }
        payload.extend(segment);
        frames::ip(a.ip(), b.ip(), first, &payload)
    })
}

fn tagged(frame: Vec<u8>, tags: u8) -> Vec<u8> {
    let mut out = frame[..12].to_vec();
    (0..tags).for_each(|n| out.extend([0x81, 0, 0x20, n + 1]));
    out.extend(&frame[12..]);
    out
}

fn mangled() -> impl Strategy<Value = Vec<u8>> {
    let change = (any::<Index>(), any::<u8>(), any::<bool>());
    let cut = prop::option::weighted(0.3, any::<Index>());
    let one = prop_oneof![3 => frame(), 1 => extended()];
    (one, 0..4u8, prop::collection::vec(change, 0..4), cut).prop_map(|(frame, tags, changes, cut)| {
        let mut frame = tagged(frame, tags);
        for (at, value, near) in changes {
            // Half of them in the headers.
            let at = at.index(if near { frame.len().min(60) } else { frame.len() });
            frame[at] = value;
        }
        if let Some(cut) = cut {
            frame.truncate(cut.index(frame.len() + 1));
        }
        frame
    })
}

/// What the stack's parsers say of the same frame, as far as both look.
fn compare(frame: &[u8], parsed: &Parsed) {
    let Ok(outer) = ethernet::Header::parse(frame) else {
        assert_eq!((parsed.ethertype, parsed.network), (0, Network::Other));
        return;
    };
    assert_eq!((parsed.to, parsed.from), (outer.destination, outer.source));
    assert_eq!(outer.tag.map_or(0, |t| t.vlan()), if outer.tag.is_some() { parsed.vlan() } else { 0 });
    // The stack knows one tag, of one kind: the second is compared by taking the first out.
    let mut frame = frame.to_vec();
    for n in 0..parsed.tagged {
        assert_eq!(parsed.tags[usize::from(n)].to_be_bytes(), frame[14..16]);
        frame.drain(12..16);
    }
    let at = ethernet::HEADER;
    let shift = usize::from(parsed.tagged) * 4;
    if parsed.ethertype == 0 && frame[12..14] != [0, 0] {
        assert!(matches!(frame[12..14], [0x81, 0] | [0x88, 0xa8]) && frame.len() < 18, "{parsed:?}");
        return;
    }
    assert_eq!(parsed.ethertype.to_be_bytes(), frame[12..14]);
    let rest = &frame[at..];
    let (fragment, payload, header_len) = match parsed.ethertype {
        ethertype::IPV4 => match ipv4::Packet::parse(rest) {
            Err(_) => return assert_eq!(parsed.network, Network::Malformed),
            Ok(packet) => {
                assert_eq!(parsed.network, Network::Ipv4);
                assert_eq!((parsed.source, parsed.destination), (packet.source().into(), packet.destination().into()));
                assert_eq!((parsed.hops, parsed.traffic_class), (packet.ttl(), packet.tos()));
                assert_eq!(parsed.protocol, packet.protocol());
                assert_eq!(parsed.network_end as usize, shift + at + usize::from(packet.total_len()));
                assert_eq!(
                    (parsed.fragment, parsed.later_fragment),
                    (packet.is_fragment(), packet.fragment_offset() != 0)
                );
                (packet.is_fragment(), packet.payload(), packet.header_len())
            }
        },
        ethertype::IPV6 => match ipv6::Packet::parse(rest) {
            // A host refuses what a middlebox passes on: options it must know, routes it is not the end of, a second hop-by-hop header.
            Err(ipv6::Malformed::Option | ipv6::Malformed::Routing | ipv6::Malformed::HopByHop) => return,
            // Options are a host's business, and extensions beyond the head are not seen.
            Err(ipv6::Malformed::Extension) if parsed.network == Network::Ipv6 => return,
            Err(_) => return assert_eq!(parsed.network, Network::Malformed),
            Ok(packet) => {
                assert_eq!(parsed.network, Network::Ipv6);
                assert_eq!((parsed.source, parsed.destination), (packet.source().into(), packet.destination().into()));
                assert_eq!((parsed.hops, parsed.traffic_class), (packet.hop_limit(), packet.traffic_class()));
                assert_eq!(parsed.network_end as usize, shift + at + 40 + usize::from(packet.payload_len()));
                if parsed.protocol != packet.protocol() {
                    assert!(usize::from(parsed.transport_at) + 4 > HEAD, "{parsed:?}");
                    return;
                }
                assert_eq!(parsed.fragment, packet.is_fragment());
                (packet.is_fragment(), packet.payload(), packet.header_len())
            }
        },
        _ => return assert_eq!(parsed.network, Network::Other),
    };
    assert_eq!(usize::from(parsed.transport_at), shift + at + header_len);
    if parsed.later_fragment {
        return assert_eq!(parsed.transport, Transport::Other);
    }
    if fragment {
        // The stack puts no fragments together and does not look inside.
        return;
    }
    let seen = |fixed: usize| usize::from(parsed.transport_at) + fixed <= HEAD;
    let is = |right: Option<(Transport, [u16; 2])>, fixed: usize| match right {
        Some((transport, [a, b])) if seen(fixed) => {
            assert_eq!((parsed.transport, parsed.source_port, parsed.destination_port), (transport, a, b), "{parsed:?}")
        }
        _ => assert_eq!(parsed.transport, Transport::Malformed, "{parsed:?}"),
    };
    match (parsed.network, parsed.protocol) {
        (_, protocol::TCP) => {
            let segment = tcp::Segment::parse(payload).ok();
            if let Some(segment) = segment.filter(|_| seen(20)) {
                assert_eq!(parsed.flags, segment.fixed().flags.0);
            }
            is(segment.map(|s| (Transport::Tcp, [s.source(), s.destination()])), 20);
        }
        (_, protocol::UDP) => {
            is(udp::Datagram::parse(payload).ok().map(|d| (Transport::Udp, [d.source(), d.destination()])), 8)
        }
        (Network::Ipv4, protocol::ICMP) => {
            let message = icmpv4::Message::parse(payload).ok();
            let id = match message {
                // With a code that is no echo's, an echo is none to the stack.
                Some(icmpv4::Message::EchoRequest(e) | icmpv4::Message::EchoReply(e)) => e.id,
                _ if matches!(payload.first(), Some(0 | 8)) => parsed.destination_port,
                _ => 0,
            };
            is(message.map(|_| (Transport::Icmp, [u16::from_be_bytes([payload[0], payload[1]]), id])), 8);
        }
        (Network::Ipv6, protocol::ICMPV6) => {
            let message = icmpv6::Message::parse(payload);
            let id = match message {
                Ok(icmpv6::Message::EchoRequest(e) | icmpv6::Message::EchoReply(e)) => e.id,
                _ if matches!(payload.first(), Some(128 | 129)) => parsed.destination_port,
                _ => 0,
            };
            // What is behind the header of a message of neighbour discovery is a host's business.
            let whole = message != Err(icmpv6::Malformed::Truncated);
            is(whole.then(|| (Transport::Icmp, [u16::from_be_bytes([payload[0], payload[1]]), id])), 8);
        }
        _ => assert_eq!(parsed.transport, Transport::Other),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn mangled_frames(mut frame in mangled()) {
        let parsed = parsed(&mut frame);
        compare(&frame, &parsed);
    }

    #[test]
    fn random_bytes(mut frame in prop::collection::vec(any::<u8>(), 0..300), kind in 0..4usize) {
        if let Some(at) = frame.get_mut(12..14) {
            at.copy_from_slice(&[[8, 0], [0x86, 0xdd], [0x81, 0], [0x88, 0xa8]][kind]);
        }
        let parsed = parsed(&mut frame);
        compare(&frame, &parsed);
    }
}

fn other(address: IpAddr, by: u128) -> IpAddr {
    match address {
        IpAddr::V4(a) => IpAddr::V4((u32::from(a) ^ by as u32).into()),
        IpAddr::V6(a) => IpAddr::V6((u128::from(a) ^ by).into()),
    }
}

proptest! {
    #[test]
    fn other_addresses_and_ports_leave_the_sums_right(
        frame in prop_oneof![frame(), extended()], by: (u128, u128), ports: (u16, u16), ends in 1..4u8, tags in 0..3u8,
    ) {
        let mut frame = tagged(frame, tags);
        let before = frame.clone();
        let len = frame.len();
        let mut packet = Packet::over(&mut frame, 0, len, 0).expect("inside");
        let mut head = packet.head();
        let mut parsed = Parsed::of(&head);
        let was = parsed;
        let source = (ends & 1 != 0).then(|| End { address: other(parsed.source, by.0), port: ports.0 });
        let destination = (ends & 2 != 0).then(|| End { address: other(parsed.destination, by.1), port: ports.1 });
        let done = readdress(&mut packet, &mut head, &mut parsed, source, destination);
        let known = was.later_fragment || !matches!(was.transport, Transport::Other | Transport::Malformed);
        prop_assert_eq!(done, known);
        if !done {
            prop_assert_eq!(frame, before);
            return Ok(());
        }
        let again = Parsed::of(&Packet::over(&mut frame, 0, len, 0).expect("inside").head());
        prop_assert_eq!(again, parsed);
        prop_assert_eq!((again.source, again.destination), (
            source.map_or(was.source, |e| e.address), destination.map_or(was.destination, |e| e.address)));
        if was.has_ports() {
            prop_assert_eq!((again.source_port, again.destination_port), (
                source.map_or(was.source_port, |e| e.port), destination.map_or(was.destination_port, |e| e.port)));
        }
        // What was right stays right, and what was wrong is not made right: some frames carry bytes that are no TCP and say they are.
        if !was.fragment && was.protocol != protocol::FRAGMENT {
            let sums = |mut frame: Vec<u8>| {
                frame.drain(12..12 + 4 * usize::from(tags));
                frames::check(&frame)
            };
            prop_assert_eq!(sums(frame), sums(before));
        }
    }
}

#[test]
fn an_address_of_the_other_family_changes_nothing() {
    let (a, b) = ("192.0.2.1:1".parse().unwrap(), "192.0.2.2:2".parse().unwrap());
    let mut frame = frames::udp(a, b, b"x");
    let (before, len) = (frame.clone(), frame.len());
    let mut packet = Packet::over(&mut frame, 0, len, 0).expect("inside");
    let mut head = packet.head();
    let mut parsed = Parsed::of(&head);
    let end = End { address: "2001:db8::1".parse().unwrap(), port: 9 };
    assert!(!readdress(&mut packet, &mut head, &mut parsed, Some(end), None));
    assert_eq!(frame, before);
}
