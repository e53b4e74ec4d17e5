use super::super::testing::*;
use super::*;
use crate::net::Config;
use crate::net::fuzzing::about_addresses;
use crate::port::Medium;
use zstack_wire::checksum::Sum;

const A: &str = "10.0.0.9";
const US: &str = "10.0.0.1";
const A6: &str = "fd00::9";
const US6: &str = "fd00::1";

#[test]
fn a_segment_passes_with_its_place() {
    let mut bench = Bench::tun();
    let mut packet = segment(A, US);
    packet[1] = 0xff;
    resum(&mut packet);
    // Padding of the link belongs to nobody.
    packet.extend([0; 6]);
    let expected = |source: &str, destination: &str, range| {
        Verdict::Tcp(Segment { source: map(ip(source)), destination: map(ip(destination)), range })
    };
    assert_eq!(bench.receive(&packet), expected(A, US, 20..40));
    assert_eq!(bench.receive(&segment(A6, US6)), expected(A6, US6, 40..60));
    let mut bench = Bench::tap();
    assert_eq!(bench.receive(&frame(&segment(A, US))), expected(A, US, 34..54));
    assert_eq!(bench.receive(&frame(&segment(A6, US6))), expected(A6, US6, 54..74));
    assert_eq!(bench.counters.iter().map(|(_, value)| value).sum::<u64>(), 0);
}

#[test]
fn the_pseudo_header_of_either_family() {
    for (source, destination) in [(A, US), ("223.255.255.255", "10.255.255.255"), (A6, US6)] {
        let (source, destination) = (ip(source), ip(destination));
        let segment = Segment { source: map(source), destination: map(destination), range: 20..40 };
        let expected = Sum::pseudo(source, destination, zstack_wire::protocol::TCP, 20);
        assert_eq!(segment.pseudo().folded(), expected.folded());
    }
}

#[test]
fn the_quick_look_leaves_addresses_alone_but_keeps_the_families_apart() {
    let mut bench = Bench::tun();
    for (source, destination) in [("127.0.0.1", US), (US, US), (A, "10.0.0.2"), ("ff02::1", US6), (A6, "fd00::77")] {
        let packet = segment(source, destination);
        let quick = bench
            .interface
            .quick_packet(&packet)
            .and_then(|packet| packet.segment())
            .expect("a segment by its form")
            .segment();
        assert_eq!((quick.source, quick.destination), (map(ip(source)), map(ip(destination))));
        assert!(matches!(bench.receive(&packet), Verdict::Dropped(_)));
    }
    assert!(
        bench
            .interface
            .quick_packet(&segment("::ffff:10.0.0.9", "::ffff:10.0.0.1"))
            .and_then(|packet| packet.segment())
            .is_none()
    );
}

#[test]
fn ipv4_headers_are_checked() {
    let mut bench = Bench::tun();
    let good = segment(A, US);
    bench.drops(&[], Counter::IpMalformed);
    bench.drops(&[0x55; 40], Counter::IpMalformed);
    for len in 1..40 {
        bench.drops(&good[..len], Counter::IpMalformed);
    }
    let cases: [(usize, u8, Counter); 8] = [
        (0, 0x44, Counter::IpMalformed),
        (0, 0x4f, Counter::IpMalformed),
        (3, 19, Counter::IpMalformed),
        (3, 41, Counter::IpMalformed),
        (6, 0x20, Counter::IpFragment),
        (7, 0x01, Counter::IpFragment),
        (9, 99, Counter::IpUnknownProtocol),
        // A TTL of 0 does not matter any more: see below.
        (16, 11, Counter::IpNotOurs),
    ];
    for (at, value, reason) in cases {
        let mut bad = good.clone();
        bad[at] = value;
        resum(&mut bad[..]);
        bench.drops(&bad, reason);
    }
    for bit in 0..160 {
        let mut bad = good.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        let verdict = bench.receive(&bad);
        assert!(
            matches!(verdict, Verdict::Dropped(Counter::IpChecksum | Counter::IpMalformed)),
            "bit {bit}: {verdict:?}"
        );
    }
    let mut last_hop = good.clone();
    last_hop[8] = 0;
    resum(&mut last_hop);
    bench.passes(&last_hop);
}

#[test]
fn ipv4_options_are_skipped() {
    let mut bench = Bench::tun();
    let plain = segment(A, US);
    let mut packet = [&plain[..20], &[7, 7, 4, 0, 0, 0, 0, 0], &plain[20..]].concat();
    (packet[0], packet[3]) = (0x47, 48);
    resum(&mut packet);
    let Verdict::Tcp(found) = bench.receive(&packet) else { panic!() };
    assert_eq!(found.range, 28..48);
}

#[test]
fn martians_are_dropped() {
    let mut bench = Bench::tun();
    for (source, reason) in [
        ("0.0.0.0", Counter::IpSourceInvalid),
        ("0.1.2.3", Counter::IpSourceInvalid),
        ("127.0.0.1", Counter::IpSourceInvalid),
        ("240.0.0.1", Counter::IpSourceInvalid),
        ("224.0.0.5", Counter::IpSourceMulticast),
        ("255.255.255.255", Counter::IpSourceBroadcast),
        ("10.0.0.255", Counter::IpSourceBroadcast),
        ("10.0.0.0", Counter::IpSourceBroadcast),
        (US, Counter::IpSourceOurs),
    ] {
        bench.drops(&segment(source, US), reason);
    }
    for (source, reason) in [
        ("::", Counter::IpSourceInvalid),
        ("::1", Counter::IpSourceInvalid),
        ("::ffff:10.0.0.9", Counter::IpSourceInvalid),
        ("ff02::1", Counter::IpSourceMulticast),
        (US6, Counter::IpSourceOurs),
    ] {
        bench.drops(&segment(source, US6), reason);
    }
}

#[test]
fn only_what_is_for_us_alone_is_taken() {
    let mut bench = Bench::tun();
    for to in ["10.0.0.255", "255.255.255.255", "224.0.0.1", "10.0.0.0"] {
        bench.drops(&segment(A, to), Counter::IpDestinationMany);
    }
    for to in ["10.0.0.2", "8.8.8.8"] {
        bench.drops(&segment(A, to), Counter::IpNotOurs);
    }
    for to in ["ff02::1", "ff02::1:ff00:1"] {
        bench.drops(&segment(A6, to), Counter::IpDestinationMany);
    }
    bench.drops(&segment(A6, "fd00::2"), Counter::IpNotOurs);

    let mut any = Bench::new(Config { any_address: true, ..config() }, Medium::Ip);
    for (from, to) in [(A, "8.8.8.8"), (A, US), (A6, "2001:db8::1"), (A6, US6)] {
        any.passes(&segment(from, to));
    }
    for (from, to, reason) in [
        (A, "10.0.0.255", Counter::IpDestinationMany),
        (A, "127.0.0.1", Counter::IpNotOurs),
        (A, "0.0.0.0", Counter::IpNotOurs),
        (A6, "ff02::1", Counter::IpDestinationMany),
        (A6, "::1", Counter::IpNotOurs),
        (US, "8.8.8.8", Counter::IpSourceOurs),
    ] {
        any.drops(&segment(from, to), reason);
    }
}

#[test]
fn ipv6_headers_and_extensions_are_checked() {
    let mut bench = Bench::tun();
    let good = segment(A6, US6);
    for len in 1..60 {
        bench.drops(&good[..len], Counter::IpMalformed);
    }
    let with = |next: u8, extension: &[u8]| {
        let mut packet = packet(A6, US6, next, &[extension, &[0x55; 20]].concat());
        packet[40] = 6;
        packet
    };
    bench.passes(&with(0, &[0, 0, 1, 4, 0, 0, 0, 0]));
    bench.passes(&with(60, &[0, 0, 1, 4, 0, 0, 0, 0]));
    bench.passes(&with(43, &[0, 0, 4, 0, 0, 0, 0, 0]));
    // A fragment that is the whole (RFC 6946).
    bench.passes(&with(44, &[0, 0, 0, 0, 0, 0, 0, 9]));
    bench.drops(&with(44, &[0, 0, 0, 1, 0, 0, 0, 9]), Counter::IpFragment);
    bench.drops(&with(44, &[0, 0, 1, 0, 0, 0, 0, 9]), Counter::IpFragment);
    bench.drops(&with(43, &[0, 0, 0, 1, 0, 0, 0, 0]), Counter::IpExtension);
    bench.drops(&with(60, &[0, 0, 0x80, 4, 0, 0, 0, 0]), Counter::IpExtension);
    bench.drops(&with(60, &[0, 200, 1, 4, 0, 0, 0, 0]), Counter::IpExtension);
    bench.drops(&with(99, &[]), Counter::IpUnknownProtocol);
}

#[test]
fn frames_of_others_are_dropped() {
    let mut bench = Bench::tap();
    let packet = segment(A, US);
    for len in 0..14 {
        bench.drops(&frame(&packet)[..len], Counter::LinkShort);
    }
    for (to, from) in [(EVIL, THEIRS), (OURS, OURS), (OURS, [3, 0, 0, 0, 0, 1]), (OURS, [0xff; 6])] {
        bench.drops(&frame_tagged(to, from, None, ethertype::IPV4, &packet), Counter::LinkOtherStation);
    }
    for (kind, reason) in [
        (0x0842, Counter::LinkUnknownType),
        (60, Counter::LinkUnknownType),
        (ethertype::IPV6, Counter::IpMalformed),
        (ethertype::ARP, Counter::NeighbourMalformed),
    ] {
        bench.drops(&frame_tagged(OURS, THEIRS, None, kind, &packet), reason);
    }
    for group in [[0xff; 6], [1, 0, 0x5e, 0, 0, 1]] {
        bench.drops(&frame_tagged(group, THEIRS, None, ethertype::IPV4, &packet), Counter::IpDestinationMany);
        bench.drops(&frame_tagged(group, THEIRS, None, ethertype::IPV6, &segment(A6, US6)), Counter::IpDestinationMany);
    }
}

#[test]
fn only_our_vlan_is_taken() {
    let packet = segment(A, US);
    let tagged = |tag: Option<u16>| frame_tagged(OURS, THEIRS, tag, ethertype::IPV4, &packet);
    let mut plain = Bench::tap();
    plain.passes(&tagged(None));
    // VLAN 0 is none: the tag carries a priority.
    plain.passes(&tagged(Some(0xe000)));
    plain.drops(&tagged(Some(5)), Counter::LinkOtherVlan);
    let mut five = Bench::new(Config { vlan: Some(5), ..config() }, Medium::Ethernet);
    five.passes(&tagged(Some(5)));
    five.passes(&tagged(Some(0xa005)));
    for other in [None, Some(6), Some(0)] {
        five.drops(&tagged(other), Counter::LinkOtherVlan);
    }
    let twice = frame_tagged(OURS, THEIRS, Some(5), ethertype::VLAN, &[&[0, 5, 8, 0][..], &packet].concat());
    five.drops(&twice, Counter::LinkUnknownType);
    five.drops(&tagged(Some(5))[..17], Counter::LinkShort);
}

/// What the short way takes, the long way takes as well, and understands alike.
#[test]
fn the_short_way_is_the_long_way() {
    let mut state = 1u64;
    let mut random = move |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below
    };
    let segments = [segment(A, US), segment(A6, US6)];
    let mut taken = 0;
    for config in [config(), Config { vlan: Some(5), ..config() }, Config { any_address: true, ..config() }] {
        for medium in [Medium::Ip, Medium::Ethernet] {
            if medium == Medium::Ip && config.vlan.is_some() {
                continue;
            }
            let mut bench = Bench::new(config.clone(), medium);
            let frames: Vec<_> = segments
                .iter()
                .map(|packet| match medium {
                    Medium::Ip => packet.clone(),
                    Medium::Ethernet => {
                        let kind = if packet[0] == 0x45 { ethertype::IPV4 } else { ethertype::IPV6 };
                        frame_tagged(OURS, THEIRS, config.vlan, kind, packet)
                    }
                })
                .collect();
            frames.iter().for_each(|frame| bench.passes(frame));
            let mut reply = vec![0; 1518];
            for _ in 0..200_000 {
                let mut frame = frames[random(2)].clone();
                for _ in 0..random(4) {
                    let at = random(frame.len());
                    match random(4) {
                        0 => frame.truncate(at.max(1)),
                        1 => frame[at] = [0, 1, 4, 6, 0x45, 0x60, 0xe0, 0xff, 127, 10][random(10)],
                        2 => frame[at] ^= 1 << random(8),
                        _ => frame.push(0),
                    }
                }
                if random(2) == 0 && frame.len() > bench.interface.neighbours.link_len() + 20 {
                    let start = bench.interface.neighbours.link_len();
                    resum(&mut frame[start..]);
                }
                let Some(carried) = bench.interface.quick_packet(&frame).and_then(|packet| packet.segment()) else {
                    continue;
                };
                let segment = carried.segment();
                assert_eq!(carried.bytes, &frame[segment.range.clone()]);
                match bench.interface.receive(Time(0), &frame, true, &mut reply, &mut bench.counters) {
                    Verdict::Tcp(slow) => {
                        taken += 1;
                        assert_eq!(slow, segment);
                    }
                    Verdict::Dropped(reason) => assert!(about_addresses(reason), "{reason:?}: {frame:02x?}"),
                    verdict => panic!("{verdict:?}: {frame:02x?}"),
                }
            }
        }
    }
    assert!(taken > 200_000, "{taken}");
}
