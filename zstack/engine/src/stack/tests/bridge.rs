//! A bridge: what it takes, what goes by, and what others send.

use super::outside::icmp;
use super::*;
use crate::net::{Route, Unforwarded};
use zstack_wire::tcp::{Flags, Header};
use zstack_wire::{Seq, ethernet, protocol};

const OURS: [u8; 6] = [2, 0, 0, 0, 0, 1];
const THEIRS: [u8; 6] = [2, 0, 0, 0, 0, 0];

/// Two sides of which the second is a bridge.
fn world(medium: Medium, change: impl Fn(&mut Config)) -> World {
    World::with(caps(medium), |config| {
        config.bridge = config.key == [2; 16];
        change(config);
    })
}

/// The packet goes on, as it is, and nobody answers it.
#[track_caller]
fn passes(world: &mut World, packet: Vec<u8>) {
    let before = world.count(1, Counter::BridgePassedIn);
    world.sides[1].card.inbox.push_back(packet.clone());
    while world.turn(1).more {}
    let passed = std::mem::take(&mut world.sides[1].programs.passed);
    assert_eq!(passed, [packet]);
    assert!(world.sides[1].card.outbox.is_empty(), "it was answered");
    assert_eq!(world.count(1, Counter::BridgePassedIn), before + 1);
}

/// The packet is dropped for a reason.
#[track_caller]
fn drops(world: &mut World, packet: Vec<u8>, reason: Counter) {
    let before = world.count(1, reason);
    assert!(world.inject(1, packet).is_empty());
    assert!(world.sides[1].programs.passed.is_empty(), "it was passed on");
    assert_eq!(world.count(1, reason), before + 1);
}

fn syn(port: u16) -> Vec<u8> {
    let header = Header { seq: Seq(1000), flags: Flags::SYN, window: 100, mss: Some(1000), ..Header::default() };
    segment(at(V4[0], 5), at(V4[1], port), header, &[])
}

fn bare(port: u16, flags: Flags, ack: u32) -> Vec<u8> {
    let header = Header { seq: Seq(1001), ack: Seq(ack), flags, window: 100, ..Header::default() };
    segment(at(V4[0], 5), at(V4[1], port), header, &[])
}

/// An IPv6 packet.
fn packet_v6(next: u8, payload: &[u8]) -> Vec<u8> {
    let header = zstack_wire::ipv6::Header {
        source: V6[0].parse().unwrap(),
        destination: V6[1].parse().unwrap(),
        protocol: next,
        hop_limit: 64,
        traffic_class: 0,
        flow_label: 0,
        payload: payload.len() as u16,
    };
    let mut bytes = vec![0; 40];
    header.emit(&mut bytes);
    bytes.extend_from_slice(payload);
    bytes
}

/// Computes an IPv4 header's checksum anew.
fn resum(packet: &mut [u8]) {
    let len = usize::from(packet[0] & 0xf) * 4;
    packet[10..12].fill(0);
    let field = Sum::ZERO.bytes(&packet[..len]).field();
    packet[10..12].copy_from_slice(&field.to_be_bytes());
}

/// A frame from the first side's station to the second's, with the padding of a short one.
fn frame(packet: &[u8]) -> Vec<u8> {
    let ethertype = if packet[0] >> 4 == 4 { ethernet::ethertype::IPV4 } else { ethernet::ethertype::IPV6 };
    let mut bytes = vec![0; 14];
    ethernet::Header { destination: OURS, source: THEIRS, tag: None, ethertype }.emit(&mut bytes);
    bytes.extend_from_slice(packet);
    bytes.resize(bytes.len().max(60), 0);
    bytes
}

#[test]
fn what_is_no_tcp_goes_on() {
    let mut world = world(Medium::Ip, |_| {});
    world.listen(1, Listen::new(80, 1000));
    let mut fragment = packet(V4[0], V4[1], protocol::TCP, &[1; 24]);
    fragment[6] = 0x20;
    resum(&mut fragment);
    for bytes in [
        packet(V4[0], V4[1], protocol::UDP, &[0, 1, 0, 53, 0, 12, 0, 0, 1, 2, 3, 4]),
        // A wrong length and a wrong checksum are the receiver's matter.
        packet(V4[0], V4[1], protocol::UDP, &[0, 1, 0, 53, 9, 9, 1, 1]),
        packet(V4[0], V4[1], protocol::ICMP, &[8, 0, 0xf7, 0xff, 0, 0, 0, 0]),
        packet(V4[0], V4[1], protocol::ICMP, &[8, 0, 1, 1, 0, 0, 0, 0]),
        // An answer to a request that the stack has not sent, a redirect, an address mask.
        packet(V4[0], V4[1], protocol::ICMP, &[0, 0, 0xff, 0xff, 0, 0, 0, 0]),
        packet(V4[0], V4[1], protocol::ICMP, &[5, 1, 1, 1]),
        packet(V4[0], V4[1], protocol::ICMP, &[17, 0, 0xee, 0xff, 0, 0, 0, 0]),
        packet(V4[0], V4[1], protocol::ICMP, &[]),
        packet(V4[0], V4[1], 47, &[0, 0, 8, 0]),
        fragment,
        packet_v6(protocol::UDP, &[0, 1, 0, 53, 0, 8, 0, 0]),
        packet_v6(protocol::ICMPV6, &[128, 0, 0, 0, 0, 1, 0, 1]),
        // Without a link layer, neighbour discovery and the like too.
        packet_v6(protocol::ICMPV6, &[135, 0, 0, 0, 0, 0, 0, 0]),
        packet_v6(protocol::ICMPV6, &[]),
        packet_v6(47, &[0, 0, 0x86, 0xdd]),
        // A fragment, a routing header with segments left, an option that must be known.
        packet_v6(protocol::FRAGMENT, &[6, 0, 0, 1, 0, 0, 0, 7, 1, 2, 3, 4, 5, 6, 7, 8]),
        packet_v6(protocol::ROUTING, &[6, 0, 0, 1, 0, 0, 0, 0]),
        packet_v6(protocol::DESTINATION_OPTIONS, &[6, 0, 0xc0, 1, 0, 0, 0, 0]),
        packet_v6(protocol::HOP_BY_HOP, &[6, 200, 0, 0]),
    ] {
        passes(&mut world, bytes);
    }
    for (bytes, reason) in [
        (packet(V4[0], "10.0.0.3", protocol::UDP, &[0; 8]), Counter::IpNotOurs),
        (packet(V4[0], "10.0.0.255", protocol::UDP, &[0; 8]), Counter::IpDestinationMany),
        (packet("224.0.0.1", V4[1], 47, &[]), Counter::IpSourceMulticast),
    ] {
        drops(&mut world, bytes, reason);
    }
    let mut fragment = packet("10.0.0.255", V4[1], protocol::UDP, &[1; 24]);
    fragment[6] = 0x20;
    resum(&mut fragment);
    drops(&mut world, fragment.clone(), Counter::IpSourceBroadcast);
    fragment[8] = 7;
    drops(&mut world, fragment, Counter::IpChecksum);
    let mut odd = packet_v6(protocol::ROUTING, &[6, 0, 0, 1, 0, 0, 0, 0]);
    odd[39] = 9;
    drops(&mut world, odd.clone(), Counter::IpNotOurs);
    odd[39] = 2;
    odd[8..24].copy_from_slice(&"fd00::2".parse::<std::net::Ipv6Addr>().unwrap().octets());
    drops(&mut world, odd, Counter::IpSourceOurs);
}

#[test]
fn segments_of_no_connection_go_on_and_are_not_reset() {
    let mut world = world(Medium::Ip, |_| {});
    world.listen(1, Listen::new(80, 1000));
    let mut torn = syn(80);
    torn[37] ^= 1;
    let mut options = packet(V4[0], V4[1], protocol::TCP, &syn(80)[20..]);
    options.splice(20..20, [1, 1, 1, 0]);
    options[0] = 0x46;
    options[3] += 4;
    resum(&mut options);
    let mut malformed = syn(80);
    malformed[32] = 0xf0;
    for bytes in [
        syn(81),
        bare(81, Flags::ACK, 7),
        bare(81, Flags::FIN.with(Flags::ACK), 7),
        bare(81, Flags::RST, 0),
        bare(80, Flags::RST, 0),
        bare(80, Flags::RST.with(Flags::ACK), 7),
        bare(80, Flags::ACK, 7),
        bare(80, Flags::SYN.with(Flags::ACK), 7),
        bare(80, Flags::SYN.with(Flags::FIN), 0),
        bare(80, Flags::SYN.with(Flags::RST), 0),
        bare(80, Flags::FIN, 0),
        bare(80, Flags(0), 0),
        torn,
        options,
        malformed,
        packet(V4[0], V4[1], protocol::TCP, &[]),
    ] {
        passes(&mut world, bytes);
    }
    assert!(world.sides[1].programs.asked.is_empty());
    for counter in [Counter::TcpUnknown, Counter::TcpUnknownReset, Counter::TcpChecksum, Counter::SynReceived] {
        assert_eq!(world.count(1, counter), 0, "{counter:?}");
    }
    assert_eq!(world.sides[1].stack.connections().count(), 0);
}

#[test]
fn the_host_says_which_connections_are_the_stacks() {
    let mut world = world(Medium::Ip, |_| {});
    world.listen(1, Listen::new(80, 1000));
    world.sides[1].programs.takes_none = true;
    passes(&mut world, syn(80));
    let asked = std::mem::take(&mut world.sides[1].programs.asked);
    assert_eq!(asked, [(at(V4[1], 80), at(V4[0], 5), syn(80)[20..].to_vec())]);
    world.sides[1].programs.takes_none = false;
    let [answer] = world.inject(1, syn(80))[..] else { panic!("one answer") };
    assert_eq!(answer.flags, Flags::SYN.with(Flags::ACK));
    assert_eq!(world.sides[1].programs.asked.len(), 1);
    // What is the connection's own now is not asked for, whatever it is.
    world.inject(1, syn(80));
    let mut torn = bare(80, Flags::ACK, answer.seq.0.wrapping_add(1));
    torn[37] ^= 1;
    drops(&mut world, torn, Counter::TcpChecksum);
    world.inject(1, bare(80, Flags::ACK, answer.seq.0.wrapping_add(1)));
    assert_eq!(world.count(1, Counter::Established), 1);
    assert_eq!(world.sides[1].programs.asked.len(), 1);
    assert!(world.sides[1].programs.passed.is_empty());
}

/// Streams run through a bridge's port as through any other.
#[test]
fn connections_are_as_ever() {
    let mut world = world(Medium::Ethernet, |_| {});
    let (conn, theirs) = world.open(80);
    let bytes = pattern(100_000, 3);
    world.send(0, conn, &bytes[..50_000]);
    world.settle();
    world.read(1, theirs);
    world.send(0, conn, &bytes[50_000..]);
    world.settle();
    assert_eq!(world.stream(1, theirs).received(), bytes);
    world.sides[0].stack.shutdown(conn);
    world.sides[1].stack.shutdown(theirs);
    world.settle();
    assert_eq!(world.stream(1, theirs).ended(), Some(Cause::Done));
    assert_eq!(world.count(1, Counter::BridgePassedIn), 0);
    assert!(world.sides[0].programs.asked.is_empty(), "no bridge");
}

#[test]
fn time_wait_answers_for_itself() {
    let mut world = world(Medium::Ip, |_| {});
    world.listen(0, Listen::new(90, 1000));
    let conn = world.connect(1, Connect::new(at(V4[0], 90), 1000));
    world.settle();
    world.listen(1, Listen { address: None, port: None, ..Listen::new(1, 1000) });
    let local = world.sides[1].stack.info(conn).unwrap().local;
    world.sides[1].stack.shutdown(conn);
    world.settle();
    let theirs = world.sides[0].programs.told[0].0;
    world.sides[0].stack.shutdown(theirs);
    world.settle();
    assert_eq!(world.sides[1].stack.time_wait(), 1);
    // An old segment is answered by TIME-WAIT, an ICMP error about it is nobody else's.
    let header = Header { seq: Seq(5), ack: Seq(5), flags: Flags::FIN.with(Flags::ACK), ..Header::default() };
    let answers = world.inject(1, segment(at(V4[0], 90), local, header, &[]));
    assert!(answers.iter().all(|answer| answer.flags == Flags::ACK) && world.sides[1].programs.passed.is_empty());
    let mut error = icmp(3, 1, 0, local, at(V4[0], 90), 5);
    for (place, byte) in [(15, 1), (19, 2)] {
        error[place] = byte;
    }
    resum(&mut error);
    drops(&mut world, error, Counter::IcmpUnknown);
    // A new connection that the host does not want is somebody else's from now on, with all that follows: TIME-WAIT is over.
    world.pass(2000);
    world.sides[1].programs.takes_none = true;
    let stamps = zstack_wire::tcp::Timestamps { value: u32::MAX / 3, echo: 0 };
    let mut later = Header { seq: Seq(1), flags: Flags::SYN, timestamps: Some(stamps), ..Header::default() };
    for seq in [0, 0x4000_0000, 0x8000_0000, 0xc000_0000] {
        later.seq = Seq(seq);
        world.inject(1, segment(at(V4[0], 90), local, later, &[]));
    }
    assert!(!world.sides[1].programs.passed.is_empty());
    assert_eq!(world.sides[1].stack.time_wait(), 0);
    world.sides[1].programs.passed.clear();
    let ack = Header { seq: Seq(0xc000_0001), ack: Seq(77), flags: Flags::ACK, ..later };
    passes(&mut world, segment(at(V4[0], 90), local, ack, &[]));
    world.sides[1].programs.takes_none = false;
    world.inject(1, segment(at(V4[0], 90), local, later, &[]));
    assert_eq!((world.sides[1].stack.time_wait(), world.sides[1].stack.connections().count()), (0, 1));
}

#[test]
fn icmp_errors_are_for_whom_they_quote() {
    let mut world = world(Medium::Ip, |_| {});
    world.passes = Box::new(|_, _| false);
    let conn = world.connect(1, Connect::new(at(V4[0], 80), 1000));
    world.turn(1);
    let (_, syn, _) = parse(&world.sides[1].card.outbox.pop_back().unwrap()).unwrap();
    let local = at(V4[1], syn.source);
    let to_us = |mut error: Vec<u8>| {
        error[15] = 1;
        error[19] = 2;
        resum(&mut error);
        error
    };
    passes(&mut world, to_us(icmp(3, 1, 0, at(V4[1], 9), at(V4[0], 80), syn.seq.0)));
    passes(&mut world, to_us(icmp(3, 4, 1200 << 16, at(V4[1], 9), at(V4[0], 80), syn.seq.0)));
    // About an echo request of somebody's.
    let mut echo = vec![3, 1, 0, 0, 0, 0, 0, 0];
    echo.extend(packet(V4[1], V4[0], protocol::ICMP, &[8, 0, 0, 0, 0, 1, 0, 1]));
    let sum = Sum::ZERO.bytes(&echo).field();
    echo[2..4].copy_from_slice(&sum.to_be_bytes());
    passes(&mut world, packet(V4[0], V4[1], protocol::ICMP, &echo));
    drops(&mut world, to_us(icmp(3, 1, 0, local, at(V4[0], 80), syn.seq.0 ^ 1 << 30)), Counter::IcmpOutside);
    drops(&mut world, to_us(icmp(3, 1, 0, local, at(V4[0], 80), syn.seq.0)), Counter::IcmpError);
    assert_eq!(world.stream(1, conn).ended(), Some(Cause::HostUnreachable));
}

#[test]
fn answers_to_our_own_pings_stay_here() {
    let mut world = world(Medium::Ip, |_| {});
    let now = world.now;
    let Side { stack, card, .. } = &mut world.sides[1];
    stack.echo(now, card, V4[0].parse().unwrap(), (7, 1), b"data").unwrap();
    world.settle();
    assert_eq!(world.sides[1].stack.next_echo().unwrap().data, b"data");
    passes(&mut world, packet(V4[0], V4[1], protocol::ICMP, &[0, 0, 0xff, 0xf7, 0, 8, 0, 0]));
    assert_eq!(world.count(1, Counter::BridgePassedIn), 1);
}

/// The stations' own talk is the stack's alone; of what goes on the padding is cut off.
#[test]
fn on_ethernet_arp_and_ndp_are_answered_here() {
    let mut world = world(Medium::Ethernet, |_| {});
    let mut ping = vec![8, 0, 0, 0, 0, 1, 0, 1];
    let sum = Sum::ZERO.bytes(&ping).field();
    ping[2..4].copy_from_slice(&sum.to_be_bytes());
    let packet = packet(V4[0], V4[1], protocol::ICMP, &ping);
    world.sides[1].card.inbox.push_back(frame(&packet));
    world.turn(1);
    assert_eq!(std::mem::take(&mut world.sides[1].programs.passed), [packet]);
    let six = packet_v6(protocol::ICMPV6, &[129, 0, 0, 0, 0, 1, 0, 1]);
    world.sides[1].card.inbox.push_back(frame(&six));
    world.turn(1);
    assert_eq!(std::mem::take(&mut world.sides[1].programs.passed), [six]);
    for kind in [133, 134, 135, 136, 137] {
        world.sides[1].card.inbox.push_back(frame(&packet_v6(protocol::ICMPV6, &[kind, 0, 0, 0, 0, 0, 0, 0])));
        world.turn(1);
    }
    assert!(world.sides[1].programs.passed.is_empty());
    // The first packet of either side asks for the other's station; both answer.
    let now = world.now;
    for (side, other) in [(0, 1), (1, 0)] {
        let Side { stack, card, .. } = &mut world.sides[side];
        for to in [V4[other], V6[other]] {
            assert!(stack.echo(now, card, to.parse().unwrap(), (7, 1), b"").is_err());
        }
    }
    world.settle();
    for (side, other) in [(0, 1), (1, 0)] {
        let Side { stack, card, .. } = &mut world.sides[side];
        for to in [V4[other], V6[other]] {
            assert_eq!(stack.echo(now, card, to.parse().unwrap(), (7, 1), b""), Ok(()));
        }
    }
}

/// A packet of somebody's to `to`, of `len` bytes, with a mark.
fn theirs(to: &str, len: usize, mark: u8) -> Vec<u8> {
    let mut bytes = packet(V4[1], to, protocol::UDP, &vec![mark; len - 20]);
    // Its TTL and identification are not the stack's.
    (bytes[4], bytes[8]) = (mark, 3);
    resum(&mut bytes);
    bytes
}

fn forward(world: &mut World, packet: &[u8]) -> Result<(), Unforwarded> {
    let Side { stack, card, .. } = &mut world.sides[1];
    stack.forward(world.now, card, packet)
}

/// What has left the bridge, link headers cut off.
fn left(world: &mut World, link: usize) -> Vec<Vec<u8>> {
    world.sides[1].card.drain();
    let frames = std::mem::take(&mut world.sides[1].card.outbox);
    frames.iter().map(|frame| frame[link..].to_vec()).collect()
}

#[test]
fn what_others_send_leaves_as_it_is() {
    let mut world = world(Medium::Ip, |config| {
        config.routes.push(Route {
            network: Address { ip: "192.0.2.0".parse().unwrap(), prefix: 24 },
            gateway: Some("10.0.0.9".parse().unwrap()),
        });
    });
    let good = [theirs(V4[0], 1500, 1), theirs("192.0.2.1", 20, 2), packet_to_v6(V6[0]), theirs("224.0.0.251", 40, 4)];
    for packet in &good {
        assert_eq!(forward(&mut world, packet), Ok(()));
    }
    assert_eq!(left(&mut world, 0), good);
    let flushes = world.sides[1].card.flushes;
    let turn = world.turn(1);
    assert_eq!((turn.sent, world.sides[1].card.flushes), (4, flushes + 1), "the port is told that no more follows");
    assert_eq!(world.turn(1).sent, 0);
    let mut short = theirs(V4[0], 40, 1);
    short.pop();
    let long = theirs(V4[0], 40, 1).into_iter().chain([0]).collect();
    let mut no_header = theirs(V4[0], 40, 1);
    no_header[0] = 0x44;
    for (packet, error, counter) in [
        (theirs(V4[0], 1501, 1), Unforwarded::TooBig(1500), Counter::BridgeTooBig),
        (theirs(V4[1], 40, 1), Unforwarded::Ours, Counter::BridgeOurs),
        (packet_to_v6(V6[1]), Unforwarded::Ours, Counter::BridgeOurs),
        (theirs("8.8.8.8", 40, 1), Unforwarded::NoRoute, Counter::BridgeNoRoute),
        (theirs("127.0.0.1", 40, 1), Unforwarded::NoRoute, Counter::BridgeNoRoute),
        (short, Unforwarded::Malformed, Counter::BridgeMalformed),
        (long, Unforwarded::Malformed, Counter::BridgeMalformed),
        (no_header, Unforwarded::Malformed, Counter::BridgeMalformed),
        (vec![0x55; 40], Unforwarded::Malformed, Counter::BridgeMalformed),
        (vec![0x60; 10], Unforwarded::Malformed, Counter::BridgeMalformed),
        (vec![], Unforwarded::Malformed, Counter::BridgeMalformed),
    ] {
        let before = world.count(1, counter);
        assert_eq!(forward(&mut world, &packet), Err(error));
        assert_eq!(world.count(1, counter), before + 1, "{counter:?}");
    }
    world.sides[1].card.left = 0;
    assert_eq!(forward(&mut world, &good[0]), Err(Unforwarded::Full));
    world.sides[1].card.left = usize::MAX;
    world.sides[1].card.unfit = true;
    assert_eq!(forward(&mut world, &good[0]), Err(Unforwarded::Unfit));
    assert_eq!(world.count(1, Counter::BridgePort), 2);
    assert_eq!(world.count(1, Counter::BridgePassedOut), 4);
    world.sides[1].card.unfit = false;
    world.sides[1].card.gone = true;
    assert_eq!(forward(&mut world, &good[0]), Err(Unforwarded::Gone));
    assert_eq!(forward(&mut world, &good[0]), Err(Unforwarded::Gone));
    assert!(world.turn(1).gone);
}

fn packet_to_v6(to: &str) -> Vec<u8> {
    let mut bytes = packet_v6(protocol::UDP, &[0; 12]);
    bytes[24..40].copy_from_slice(&to.parse::<std::net::Ipv6Addr>().unwrap().octets());
    bytes
}

/// The first ping is not lost, nor are those right behind it; in their order.
#[test]
fn packets_wait_for_their_neighbour() {
    for vlan in [None, Some(7)] {
        let mut world = world(Medium::Ethernet, |config| config.vlan = vlan);
        let link = if vlan.is_some() { 18 } else { 14 };
        let (first, second) = (theirs(V4[0], 40, 1), theirs(V4[0], 1500, 2));
        assert_eq!(forward(&mut world, &first), Ok(()));
        assert_eq!(forward(&mut world, &packet_to_v6(V6[0])), Ok(()));
        assert_eq!(forward(&mut world, &second), Ok(()));
        assert!(world.sides[1].card.outbox.is_empty());
        assert_eq!(world.count(1, Counter::BridgePassedOut), 0);
        // The question and the answer.
        let turn = world.turn(1);
        assert_eq!(turn.sent, 2);
        world.carry();
        world.turn(0);
        world.carry();
        let turn = world.turn(1);
        assert_eq!(turn.sent, 3);
        world.sides[1].card.drain();
        let frames = std::mem::take(&mut world.sides[1].card.outbox);
        let header = ethernet::Header::parse(&frames[0]).unwrap();
        assert_eq!((header.destination, header.source, header.len()), (THEIRS, OURS, link));
        assert_eq!(header.tag.map(|tag| tag.vlan()), vlan);
        let mut sent: Vec<_> = frames.iter().map(|frame| frame[link..].to_vec()).collect();
        sent.sort_by_key(|packet| packet[0]);
        assert_eq!(sent, [first, second.clone(), packet_to_v6(V6[0])]);
        assert_eq!(forward(&mut world, &second), Ok(()));
        assert_eq!(left(&mut world, link), [second]);
        assert_eq!(world.count(1, Counter::BridgePassedOut), 4);
    }
}

#[test]
fn groups_and_all_need_no_neighbour() {
    let mut world = world(Medium::Ethernet, |_| {});
    for (to, station) in [
        ("10.0.0.255", [0xff; 6]),
        ("255.255.255.255", [0xff; 6]),
        ("224.129.2.3", [1, 0, 0x5e, 1, 2, 3]),
        ("ff02::1:ff00:7", [0x33, 0x33, 0xff, 0, 0, 7]),
    ] {
        let packet = if to.contains(':') { packet_to_v6(to) } else { theirs(to, 40, 9) };
        assert_eq!(forward(&mut world, &packet), Ok(()), "{to}");
        let frame = world.sides[1].card.outbox.pop_front().unwrap();
        assert_eq!((&frame[..6], &frame[14..]), (&station[..], &packet[..]), "{to}");
    }
}

#[test]
fn what_waits_is_bounded_and_its_owner_hears_of_it() {
    let mut world = world(Medium::Ethernet, |_| {});
    world.passes = Box::new(|_, _| false);
    for mark in 0..20 {
        assert_eq!(forward(&mut world, &theirs("10.0.0.77", 40, mark)), Ok(()));
    }
    assert_eq!(world.count(1, Counter::BridgeWaited), 4);
    // Three questions, a second apart.
    world.pass(2500);
    assert!(world.sides[1].programs.undelivered.is_empty());
    world.pass(1000);
    let expected: Vec<_> = (4..20).map(|mark| theirs("10.0.0.77", 40, mark)).collect();
    assert_eq!(world.sides[1].programs.undelivered, expected, "the oldest made room");
    assert_eq!(world.count(1, Counter::BridgeUnreachable), 16);
    assert_eq!(forward(&mut world, &theirs("10.0.0.77", 40, 1)), Err(Unforwarded::Unreachable));
    assert_eq!(world.count(1, Counter::BridgeUnreachable), 17);
    world.pass(1500);
    assert_eq!(forward(&mut world, &theirs("10.0.0.77", 40, 1)), Ok(()), "it is asked anew");
    // Whoever has his programs send to everybody holds no more memory than this.
    for host in 0..200u8 {
        for _ in 0..8 {
            let _ = forward(&mut world, &theirs(&format!("10.0.0.{}", host / 2 + 100), 40, 1));
        }
        assert!(world.sides[1].stack.queued.len() <= 256);
    }
    world.pass(10_000);
    assert_eq!(world.sides[1].stack.queued.len(), 0, "none waits for ever");
    let unanswered = world.count(1, Counter::BridgeUnreachable) + world.count(1, Counter::BridgeWaited);
    assert_eq!(unanswered, 20 + 1 + 1 + 1600);
}

/// While cookies are about, what brings one back is a connection, and what does not goes on.
#[test]
fn cookies_come_back() {
    let mut world = world(Medium::Ip, |_| {});
    world.listen(1, Listen { backlog: 1, ..Listen::new(80, 1000) });
    let other = |port: u16, header: Header| segment(at(V4[0], port), at(V4[1], 80), header, &[]);
    let syn = Header { seq: Seq(1000), flags: Flags::SYN, window: 100, ..Header::default() };
    world.inject(1, other(1, syn));
    let [answer] = world.inject(1, other(2, syn))[..] else { panic!("one answer") };
    assert_eq!(world.count(1, Counter::CookieSent), 1);
    let back = Header { seq: Seq(1001), ack: answer.seq + 1, flags: Flags::ACK, window: 9, ..Header::default() };
    passes(&mut world, other(2, Header { ack: answer.seq + 1000, ..back }));
    passes(&mut world, other(3, back));
    passes(&mut world, other(2, Header { flags: Flags::SYN.with(Flags::ACK), ..back }));
    assert!(world.inject(1, other(2, back)).is_empty());
    assert_eq!((world.count(1, Counter::CookieAccepted), world.count(1, Counter::Established)), (1, 1));
    let (conn, _) = world.sides[1].programs.told[0];
    assert_eq!(world.phase(1, conn), Some(Phase::Established));
    // It makes no second connection once the first one is over.
    world.inject(1, other(2, Header { flags: Flags::RST, ..back }));
    assert_eq!(world.stream(1, conn).ended(), Some(Cause::Reset));
    passes(&mut world, other(2, back));
    assert_eq!(world.count(1, Counter::CookieAccepted), 1);
}

fn from(port: u16) -> Connect {
    let local = Some(V4[0].parse().unwrap());
    Connect { local, local_port: Some(port), ..Connect::new(at(V4[1], 80), 1000) }
}

/// Who connects by the name of a program's socket has the port that its kernel chose, whichever.
#[test]
fn any_port_may_be_connected_from() {
    let mut world = World::with(caps(Medium::Ip), |config| config.bridge = true);
    world.listen(1, Listen::new(80, 1000));
    // A listener of the same port, and one of all, are no reason against it.
    world.listen(0, Listen::new(22, 1000));
    world.listen(0, Listen { port: None, ..Listen::new(1, 1000) });
    for port in [1, 22, 80, 1023, 1024, 32_767, 50_000, 61_000, 65_535] {
        let conn = world.connect(0, from(port));
        assert_eq!(world.sides[0].stack.info(conn).unwrap().local, at(V4[0], port));
        world.settle();
        assert!(world.stream(0, conn).has(Event::Established), "{port}");
        assert!(world.sides[0].stack.connect(world.now, from(port)).is_err());
    }
}

/// RFC 6191: from the second after on. The kernel that chose the port has seen no timestamps of the wire's, or other ones: they are not
/// asked for.
#[test]
fn our_time_wait_is_taken_by_name() {
    for (stamps, bridge) in [(true, true), (false, true), (true, false), (false, false)] {
        let mut world = World::with(caps(Medium::Ip), |config| {
            config.bridge = bridge;
            config.tcp.timestamps = stamps;
        });
        world.now = Time(1_005_200_000);
        let listener = world.listen(1, Listen::new(80, 1000));
        let conn = world.connect(0, from(7));
        world.settle();
        let peer = world.sides[1].programs.of(listener)[0];
        let busy = Err(ConnectError::InUse(at(V4[0], 7), at(V4[1], 80)));
        world.sides[0].stack.close(conn, false);
        world.settle();
        assert_eq!(world.sides[0].stack.connect(world.now, from(7)), busy, "FIN-WAIT-2");
        world.sides[1].stack.close(peer, false);
        world.settle();
        assert_eq!((world.sides[0].stack.time_wait(), world.sides[1].stack.connections().count()), (1, 0));
        assert_eq!(world.sides[0].stack.connect(world.now, from(7)), busy, "too early");
        world.pass(1000);
        if !stamps && !bridge {
            assert_eq!(world.sides[0].stack.connect(world.now, from(7)), busy);
            continue;
        }
        let again = world.connect(0, from(7));
        world.settle();
        assert!(world.stream(0, again).has(Event::Established));
        assert_eq!((world.sides[0].stack.time_wait(), world.count(0, Counter::TimeWaitReused)), (0, 1));
    }
}

/// The peer has not heard our last ACK, and we have been told to connect again: its answer to the SYN is an ACK, ours to that an RST.
#[test]
fn a_peer_that_still_waits_for_our_last_ack() {
    let mut world = World::with(caps(Medium::Ip), |config| {
        config.bridge = true;
        config.tcp.timestamps = false;
    });
    world.now = Time(1_005_200_000);
    let listener = world.listen(1, Listen::new(80, 1000));
    let conn = world.connect(0, from(7));
    world.settle();
    let peer = world.sides[1].programs.of(listener)[0];
    world.sides[0].stack.close(conn, false);
    world.settle();
    world.passes = Box::new(|from, _| from == 1);
    world.sides[1].stack.close(peer, false);
    world.settle();
    assert_eq!((world.sides[0].stack.time_wait(), world.phase(1, peer)), (1, Some(Phase::LastAck)));
    world.pass(150);
    world.now = Time(1_006_000_000);
    world.passes = Box::new(|_, _| true);
    let again = world.connect(0, from(7));
    world.pass(1500);
    assert!(world.stream(0, again).has(Event::Established));
    assert_eq!(world.stream(1, peer).ended(), Some(Cause::Reset));
}

/// What connect(2) says follows from what ICMP said, as Linux has it, and can be said to a program by an error of its own.
#[test]
fn the_cause_tells_what_icmp_said() {
    let cases = [
        (3, 0, Cause::NetUnreachable),
        (3, 1, Cause::HostUnreachable),
        (3, 2, Cause::NoProtocol),
        (3, 3, Cause::Refused),
        (3, 5, Cause::SourceRoute),
        (3, 6, Cause::NetUnreachable),
        (3, 7, Cause::HostUnknown),
        (3, 8, Cause::Isolated),
        (3, 9, Cause::NetUnreachable),
        (3, 10, Cause::HostUnreachable),
        (3, 11, Cause::NetUnreachable),
        (3, 12, Cause::HostUnreachable),
        (3, 13, Cause::HostUnreachable),
        (3, 14, Cause::HostUnreachable),
        (3, 15, Cause::HostUnreachable),
        (11, 0, Cause::HostUnreachable),
        (12, 0, Cause::Malformed),
    ];
    let mut world = World::new();
    world.passes = Box::new(|_, _| false);
    let mut ended = |kind, code, port| {
        let conn = world.connect(0, from(port));
        world.turn(0);
        let (_, syn, _) = parse(&world.sides[0].card.outbox.pop_back().unwrap()).unwrap();
        world.inject(0, icmp(kind, code, 0, at(V4[0], port), at(V4[1], 80), syn.seq.0));
        world.stream(0, conn).ended()
    };
    for (port, (kind, code, cause)) in (100..).zip(cases) {
        assert_eq!(ended(kind, code, port), Some(cause), "{kind} {code}");
        // The error that the program gets means the same.
        let (kind, code) = cause.icmp(false).unwrap();
        assert_eq!(ended(kind, code, port + 1000), Some(cause), "{kind} {code}");
    }
    assert_eq!((Cause::Reset.icmp(false), Cause::TimedOut.icmp(true)), (None, None));
}

/// The same of ICMPv6 (RFC 4443).
#[test]
fn the_cause_tells_what_icmp_v6_said() {
    let cases = [
        (1, 0, Cause::NetUnreachable),
        (1, 1, Cause::Prohibited),
        (1, 2, Cause::HostUnreachable),
        (1, 3, Cause::HostUnreachable),
        (1, 4, Cause::Refused),
        (1, 5, Cause::Prohibited),
        (1, 6, Cause::Prohibited),
        (3, 0, Cause::HostUnreachable),
        (4, 0, Cause::Malformed),
        (4, 1, Cause::Malformed),
    ];
    let mut world = World::new();
    let mut ended = |kind, code, port| {
        let conn = world.connect(0, Connect { local_port: Some(port), ..Connect::new(at(V6[1], 80), 1000) });
        world.turn(0);
        let syn = world.sides[0].card.outbox.pop_back().unwrap();
        let mut message = vec![kind, code, 0, 0, 0, 0, 0, 0];
        message.extend_from_slice(&syn);
        let ends: [std::net::Ipv6Addr; 2] = [V6[1].parse().unwrap(), V6[0].parse().unwrap()];
        let sum = Sum::pseudo_v6(&ends[0], &ends[1], protocol::ICMPV6, message.len() as u32).bytes(&message).field();
        message[2..4].copy_from_slice(&sum.to_be_bytes());
        let mut packet = packet_to_v6(V6[0]);
        packet.truncate(40);
        packet[4..6].copy_from_slice(&(message.len() as u16).to_be_bytes());
        packet[6] = protocol::ICMPV6;
        packet[8..24].copy_from_slice(&ends[0].octets());
        packet.extend(message);
        world.inject(0, packet);
        world.stream(0, conn).ended()
    };
    for (port, (kind, code, cause)) in (100..).zip(cases) {
        assert_eq!(ended(kind, code, port), Some(cause), "{kind} {code}");
        let (kind, code) = cause.icmp(true).unwrap();
        assert_eq!(ended(kind, code, port + 1000), Some(cause), "{kind} {code}");
    }
}
