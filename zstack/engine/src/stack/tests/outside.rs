//! What comes from strangers: segments of no connection, ICMP errors, packets with wrong addresses.

use super::*;
use crate::tcp::Cause;
use zstack_wire::Seq;
use zstack_wire::tcp::{Flags, Header};

/// RFC 9293, section 3.10.7.1.
#[test]
fn resets_for_what_is_nobodys() {
    let mut world = World::new();
    let mut answer = |flags: Flags, len: usize| {
        let header = Header { seq: Seq(1000), ack: Seq(77), flags, ..Header::default() };
        world.inject(1, segment(at(V4[0], 5), at(V4[1], 9), header, &vec![0; len]))
    };
    let [reset] = answer(Flags::ACK, 0)[..] else { panic!("one answer") };
    assert_eq!((reset.flags, reset.seq, reset.source, reset.destination), (Flags::RST, Seq(77), 9, 5));
    let [reset] = answer(Flags::SYN, 0)[..] else { panic!("one answer") };
    assert_eq!((reset.flags, reset.seq, reset.ack), (Flags::RST.with(Flags::ACK), Seq(0), Seq(1001)));
    let [reset] = answer(Flags::FIN, 10)[..] else { panic!("one answer") };
    assert_eq!((reset.flags, reset.seq, reset.ack), (Flags::RST.with(Flags::ACK), Seq(0), Seq(1011)));
    assert!(answer(Flags::RST, 0).is_empty());
    assert!(answer(Flags::RST.with(Flags::ACK), 0).is_empty());
    assert_eq!(world.count(1, Counter::TcpUnknown), 5);
    assert_eq!(world.count(1, Counter::TcpUnknownReset), 3);
}

#[test]
fn resets_are_limited() {
    let mut world = World::with(caps(Medium::Ip), |config| config.limits.resets = 80);
    let header = Header { seq: Seq(1000), flags: Flags::ACK, ..Header::default() };
    let mut from = |address: &str| {
        let answers = (0..50).map(|_| world.inject(1, segment(at(address, 5), at(V4[1], 9), header, &[])).len());
        answers.sum::<usize>()
    };
    // A guess in another one's name takes nothing from what the guesser can count.
    assert_eq!((from(V4[0]), from("10.0.0.77"), from(V4[0])), (10, 10, 0));
    assert_eq!(world.count(1, Counter::TcpUnknownReset), 20);
    assert_eq!(world.count(1, Counter::TcpUnknownLimited), 130);
}

/// RFC 9293, section 3.10.7.2.
#[test]
fn what_a_listener_answers() {
    let mut world = World::new();
    world.listen(1, Listen::new(80, 1000));
    let mut answer = |flags: Flags| {
        let header = Header { seq: Seq(1000), ack: Seq(77), flags, window: 100, ..Header::default() };
        let answers = world.inject(1, segment(at(V4[0], 5), at(V4[1], 80), header, &[]));
        answers.iter().map(|answer| (answer.flags, answer.seq)).collect::<Vec<_>>()
    };
    assert_eq!(answer(Flags::RST), []);
    assert_eq!(answer(Flags::ACK), [(Flags::RST, Seq(77))]);
    assert_eq!(answer(Flags::SYN.with(Flags::ACK)), [(Flags::RST, Seq(77))]);
    assert_eq!(answer(Flags::SYN.with(Flags::FIN)), []);
    assert_eq!(answer(Flags::FIN), []);
    assert_eq!(answer(Flags(0)), []);
    assert_eq!(answer(Flags::SYN)[0].0, Flags::SYN.with(Flags::ACK));
}

#[test]
fn wrong_addresses_and_checksums_are_dropped_by_reason() {
    let mut world = World::new();
    world.listen(1, Listen::new(80, 1000));
    let header = Header { seq: Seq(1000), flags: Flags::SYN, window: 100, ..Header::default() };
    let from = |ip: &str| segment(at(ip, 5), at(V4[1], 80), header, &[]);
    let to = |ip: &str| segment(at(V4[0], 5), at(ip, 80), header, &[]);
    let mut torn = from(V4[0]);
    torn[37] ^= 1;
    let mut odd = from(V4[0]);
    odd.truncate(30);
    let cases = [
        (from("255.255.255.255"), Counter::IpSourceBroadcast),
        (from("10.0.0.255"), Counter::IpSourceBroadcast),
        (from("224.0.0.1"), Counter::IpSourceMulticast),
        (from("127.0.0.1"), Counter::IpSourceInvalid),
        (from("0.0.0.0"), Counter::IpSourceInvalid),
        (from(V4[1]), Counter::IpSourceOurs),
        (to("10.0.0.255"), Counter::IpDestinationMany),
        (to("224.0.0.1"), Counter::IpDestinationMany),
        (to("10.0.0.3"), Counter::IpNotOurs),
        (torn, Counter::TcpChecksum),
        (odd, Counter::IpMalformed),
        (segment(at(V4[0], 0), at(V4[1], 80), header, &[]), Counter::TcpMalformed),
    ];
    let mut expected = HashMap::new();
    for (frame, counter) in cases {
        assert!(world.inject(1, frame).is_empty());
        *expected.entry(counter).or_insert(0) += 1;
        assert_eq!(world.count(1, counter), expected[&counter], "{counter:?}");
    }
    assert_eq!(world.sides[1].stack.connections().count(), 0);
}

/// An ICMP error about a segment: type, code, the field behind the checksum, what is quoted.
pub fn icmp(kind: u8, code: u8, rest: u32, from: SocketAddr, to: SocketAddr, seq: u32) -> Vec<u8> {
    let header = Header { seq: Seq(seq), flags: Flags::ACK, ..Header::default() };
    let quoted = segment(from, to, header, &[0; 8]);
    let mut bytes = vec![kind, code, 0, 0];
    bytes.extend_from_slice(&rest.to_be_bytes());
    bytes.extend_from_slice(&quoted[..28]);
    let sum = Sum::ZERO.bytes(&bytes).field();
    bytes[2..4].copy_from_slice(&sum.to_be_bytes());
    packet("10.0.0.2", "10.0.0.1", zstack_wire::protocol::ICMP, &bytes)
}

/// RFC 5927: only a number that is in flight speaks for an error.
#[test]
fn icmp_errors_must_quote_what_is_in_flight() {
    let mut world = World::new();
    world.passes = Box::new(|_, _| false);
    let conn = world.connect(0, Connect::new(at(V4[1], 80), 1000));
    world.turn(0);
    let (_, syn, _) = parse(&world.sides[0].card.outbox[0]).unwrap();
    let local = at(V4[0], syn.source);
    let ours = syn.seq.0;
    for wrong in [ours + 1, ours.wrapping_sub(1), ours ^ 0x8000_0000] {
        world.inject(0, icmp(3, 3, 0, local, at(V4[1], 80), wrong));
    }
    assert_eq!(world.count(0, Counter::IcmpOutside), 3);
    world.inject(0, icmp(3, 3, 0, local, at(V4[1], 81), ours));
    assert_eq!(world.count(0, Counter::IcmpUnknown), 1);
    assert!(world.stream(0, conn).events.is_empty());
    world.inject(0, icmp(3, 3, 0, local, at(V4[1], 80), ours));
    assert_eq!(world.stream(0, conn).ended(), Some(Cause::Refused));
    assert_eq!(world.count(0, Counter::IcmpError), 1);
}

/// RFC 1191: what is in flight is cut smaller and sent again, and what follows is smaller from the start.
#[test]
fn a_smaller_path() {
    let mut world = World::new();
    let (conn, peer) = world.open(80);
    let bytes = pattern(50_000, 1);
    let other = world.connect(0, Connect::new(at(V4[1], 80), 60_000));
    world.settle();
    // A router that lets 1000 bytes pass, and says so.
    let reports = std::rc::Rc::new(std::cell::RefCell::new(Vec::new()));
    let told = reports.clone();
    world.passes = Box::new(move |from, frame| {
        if from == 0 && frame.len() > 1000 {
            let (_, header, _) = parse(frame).unwrap();
            told.borrow_mut().push(icmp(3, 4, 1000, at(V4[0], header.source), at(V4[1], 80), header.seq.0));
        }
        frame.len() <= 1000
    });
    world.send(0, conn, &bytes);
    for _ in 0..200 {
        world.settle();
        for report in reports.borrow_mut().drain(..) {
            world.sides[0].card.inbox.push_back(report);
        }
        world.read(1, peer);
        world.pass(20);
    }
    assert!(world.stream(1, peer).received() == bytes);
    assert!(world.sides[0].stack.info(conn).unwrap().tcp.mss <= 960);
    // The next connection knows it already.
    let next = world.connect(0, Connect::new(at(V4[1], 80), 1000));
    world.settle();
    assert!(world.sides[0].stack.info(next).unwrap().tcp.mss <= 960);
    // One that was open all the time learns it before its first segment is lost.
    world.send(0, other, &pattern(5000, 2));
    world.settle();
    assert_eq!(world.stream(0, other).released, 5000);
    assert_eq!(world.sides[0].stack.info(other).unwrap().tcp.retransmits, 0);
    // Ten minutes later the path is tried again (RFC 1191, section 6.3), by who sends.
    world.passes = Box::new(|_, _| true);
    world.pass(601_000);
    world.send(0, other, &pattern(5000, 3));
    world.settle();
    assert!(world.sides[0].stack.info(other).unwrap().tcp.mss > 1400);
    assert!(world.sides[0].stack.info(conn).unwrap().tcp.mss <= 960);
}

/// A forged report cannot make segments tiny (RFC 5927, section 7; CVE-2004-1060).
#[test]
fn a_path_cannot_become_tiny() {
    let mut world = World::new();
    let (conn, _) = world.open(80);
    world.passes = Box::new(|_, _| false);
    world.send(0, conn, &pattern(5000, 1));
    world.turn(0);
    let (_, header, _) = parse(&world.sides[0].card.outbox[0]).unwrap();
    world.inject(0, icmp(3, 4, 68, at(V4[0], header.source), at(V4[1], 80), header.seq.0));
    assert!(world.sides[0].stack.info(conn).unwrap().tcp.mss >= 500);
}

/// A tuple that a connection has left is a stranger's, and a name that is stale does nothing.
#[test]
fn stale_names_do_nothing() {
    let mut world = World::new();
    let (conn, peer) = world.open(80);
    world.sides[0].stack.abort(conn);
    world.settle();
    assert_eq!(world.stream(1, peer).ended(), Some(Cause::Reset));
    let other = world.connect(0, Connect::new(at(V4[1], 80), 1000));
    assert_eq!((other.index, other.generation), (conn.index, conn.generation + 1));
    let stack = &mut world.sides[0].stack;
    stack.abort(conn);
    stack.commit(conn, 5, true);
    stack.close(conn, false);
    assert!(stack.info(conn).is_none() && !stack.is_open(conn));
    world.settle();
    assert!(world.stream(0, other).has(Event::Established) && world.stream(0, other).ended().is_none());
}
