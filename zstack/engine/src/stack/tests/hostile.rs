//! Somebody who wants to do harm: off the path, and guessing numbers; or a peer, and lying. And a transfer beside a flood.

use super::*;
use zstack_wire::Seq;
use zstack_wire::tcp::{Flags, Header, Sack};

/// Guesses of each kind, spread over all numbers. The engine is ten times slower when it is not optimised.
const GUESSES: u32 = if cfg!(debug_assertions) { 40_000 } else { 1_000_000 };

/// An established connection whose side 0 has bytes in flight, which the network has swallowed, and both ends' numbers.
struct Victim {
    world: World,
    conns: [ConnId; 2],
    /// Where side 0 sends from.
    local: SocketAddr,
    /// SND.UNA and SND.NXT of side 0; RCV.NXT of side 1 is its SND.UNA.
    una: Seq,
    nxt: Seq,
    /// RCV.NXT of side 0.
    theirs: Seq,
}

const IN_FLIGHT: usize = 9_000;

fn victim() -> Victim {
    let mut world = World::new();
    let (conn, peer) = world.open(80);
    world.send(0, conn, &pattern(3000, 1));
    world.send(1, peer, &pattern(3000, 2));
    world.pass(1000);
    world.send(0, conn, &pattern(IN_FLIGHT, 3));
    world.turn(0);
    let frames = std::mem::take(&mut world.sides[0].card.outbox);
    let segments: Vec<_> = frames.iter().filter_map(|frame| parse(frame)).collect();
    let (first, last) = (&segments[0], segments.last().unwrap());
    let (una, nxt) = (first.1.seq, last.1.seq + last.2.len() as u32);
    assert!(nxt.since(una) as usize > IN_FLIGHT / 2);
    let local = at(V4[0], first.1.source);
    Victim { conns: [conn, peer], local, una, nxt, theirs: first.1.ack, world }
}

/// What the test would miss if it changed: everything that a program, or the peer, could see of a connection.
fn seen(victim: &mut Victim, side: usize) -> String {
    let conn = victim.conns[side];
    let info = victim.world.sides[side].stack.info(conn);
    let stream = victim.world.stream(side, conn);
    format!("{info:?} {:?} {} {:?}", stream.events, stream.released, stream.received())
}

/// RST, SYN, data, FIN and ACK with every number but those that are right, in steps: nothing happens, and next to nothing is said.
#[test]
fn guesses_off_the_path_change_nothing() {
    let mut victim = victim();
    let step = u32::MAX / GUESSES;
    let mut random = 0x2545_f491u32;
    let kinds: [(Flags, usize); 7] = [
        (Flags::RST, 0),
        (Flags::RST.with(Flags::ACK), 0),
        (Flags::SYN, 0),
        (Flags::SYN.with(Flags::ACK), 0),
        (Flags::ACK, 0),
        (Flags::ACK, 10),
        (Flags::ACK.with(Flags::FIN), 1),
    ];
    for side in 0..2 {
        let before = seen(&mut victim, side);
        let (to, from) = if side == 0 { (victim.local, at(V4[1], 80)) } else { (at(V4[1], 80), victim.local) };
        let right = if side == 0 { victim.theirs } else { victim.una };
        let mut answers = 0;
        for (flags, len) in kinds {
            // Half a step away from the one number that would be right.
            let mut seq = right + step / 2;
            for guess in 0..GUESSES {
                random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                let header = Header { seq, ack: Seq(random), flags, window: 17, ..Header::default() };
                let card = &mut victim.world.sides[side].card;
                card.inbox.push_back(segment(from, to, header, &[0x66; 10][..len]));
                if guess % 64 == 0 {
                    while victim.world.turn(side).more {}
                    answers += victim.world.sides[side].card.outbox.drain(..).count();
                }
                seq += step;
            }
            while victim.world.turn(side).more {}
            answers += victim.world.sides[side].card.outbox.drain(..).count();
        }
        assert_eq!(seen(&mut victim, side), before);
        // Challenges are limited; old data that the peer could have sent is answered, which is one guess of 30,000.
        assert!(answers <= 4 + 2 * kinds.len() * (GUESSES as usize / 20_000 + 1), "{answers} answers");
    }
    // What was in flight arrives after all, and the connection ends in order.
    let Victim { mut world, conns, .. } = victim;
    world.pass(5000);
    assert_eq!(world.stream(1, conns[1]).received()[3000..], pattern(IN_FLIGHT, 3));
    for (side, conn) in conns.into_iter().enumerate() {
        world.sides[side].stack.close(conn, false);
    }
    world.pass(1000);
    assert_eq!(world.stream(1, conns[1]).ended(), Some(Cause::Done));
}

/// RFC 5927: ICMP errors about numbers that are not in flight.
#[test]
fn forged_icmp_errors_change_nothing() {
    let mut victim = victim();
    let before = seen(&mut victim, 0);
    let step = u32::MAX / GUESSES;
    for (kind, code, rest) in [(3, 1, 0), (3, 2, 0), (3, 3, 0), (3, 4, 68), (3, 4, 552), (11, 0, 0), (12, 0, 0)] {
        let mut seq = victim.nxt;
        for guess in 0..GUESSES / 4 {
            if !seq.within(victim.una, victim.nxt.since(victim.una)) {
                let error = super::outside::icmp(kind, code, rest, victim.local, at(V4[1], 80), seq.0);
                victim.world.sides[0].card.inbox.push_back(error);
            }
            if guess % 64 == 0 {
                while victim.world.turn(0).more {}
            }
            seq += step * 4;
        }
        while victim.world.turn(0).more {}
    }
    assert_eq!(victim.world.sides[0].card.outbox.len(), 0);
    assert_eq!(seen(&mut victim, 0), before);
    assert!(victim.world.count(0, Counter::IcmpOutside) > u64::from(GUESSES));
}

/// What arrives beside a transfer, `n` frames for each of its own.
fn beside(name: &str, n: u32, to_receiver: bool, mut frame: impl FnMut(u32, &Header) -> Vec<u8>) -> World {
    let mut world = World::with(caps(Medium::Ip), |config| {
        config.addresses[0].prefix = 8;
        config.limits.half_open = 64;
    });
    let listener = world.listen(1, Listen { backlog: 64, ..Listen::new(80, 60_000) });
    let conn = world.connect(0, Connect::new(at(V4[1], 80), 60_000));
    world.settle();
    let peer = world.sides[1].programs.of(listener)[0];
    let bytes = pattern(OUT, 1);
    // Those whom a flood names do not answer.
    world.passes = Box::new(|from, frame| from == 0 || frame[16..20] == [10, 0, 0, 1]);
    let (victim, mut count, mut sent) = (usize::from(to_receiver), 0, 0);
    let mut turns = 0;
    while world.stream(1, peer).published < OUT {
        let part = (OUT - sent).min(20_000);
        world.send(0, conn, &bytes[sent..sent + part]);
        sent += part;
        for _ in 0..40 {
            world.read(1, peer);
            for side in 0..2 {
                world.turn(side);
            }
            for from in 0..2 {
                world.sides[from].card.drain();
                while let Some(own) = world.sides[from].card.outbox.pop_front() {
                    if !(world.passes)(from, &own) {
                        continue;
                    }
                    let header = parse(&own).expect("TCP").1;
                    world.sides[1 - from].card.inbox.push_back(own);
                    if 1 - from == victim {
                        for _ in 0..n {
                            world.sides[victim].card.inbox.push_back(frame(count, &header));
                            count += 1;
                        }
                    }
                }
            }
        }
        world.now = world.now.after_millis(5);
        turns += 1;
        assert!(turns < 2000, "{name}: {} of {OUT} bytes", world.stream(1, peer).published);
    }
    assert!(world.stream(1, peer).received() == bytes, "{name}");
    assert!(count > 100 * n, "{name}");
    // Bounded: the two, and those that are half open.
    assert!(world.sides[1].stack.connections().count() <= 65, "{name}");
    assert!(world.sides[1].stack.half_open <= 64, "{name}");
    world
}

fn stranger(n: u32) -> SocketAddr {
    SocketAddr::new(std::net::Ipv4Addr::from(0x0a01_0000 + n % 50_000).into(), (n / 50_000) as u16 + 1024)
}

/// Floods of twenty frames for each of a transfer's own: it comes through whole, on time, and nothing of it is sent again.
#[test]
fn floods_beside_a_transfer() {
    let plain = |n: u32, seq: u32, ack: u32, flags: Flags| {
        let header = Header { seq: Seq(seq), ack: Seq(ack), flags, window: 1000, ..Header::default() };
        segment(stranger(n), at(V4[1], 80), header, &[])
    };
    let world = beside("SYNs", 20, true, |n, _| plain(n, n, 0, Flags::SYN));
    assert!(world.count(1, Counter::CookieSent) > 1000);
    assert_eq!(world.count(0, Counter::TcpRetransmit), 0);
    let world = beside("ACKs", 20, true, |n, _| {
        // Cookies have to be out for ACKs to be looked at.
        if n < 100 { plain(n, n, 0, Flags::SYN) } else { plain(n, n, n.wrapping_mul(0x9e37_79b9), Flags::ACK) }
    });
    assert!(world.count(1, Counter::CookieInvalid) > 1000);
    assert!(world.count(1, Counter::TcpUnknownReset) <= 2 * 1000);
    assert_eq!(world.count(0, Counter::TcpRetransmit), 0);
    let world = beside("RSTs", 20, true, |n, _| plain(n, n, n, Flags::RST));
    assert_eq!(world.count(0, Counter::TcpRetransmit), 0);
    // With the connection's own addresses: outside of the window.
    let world = beside("RSTs of the connection", 20, true, |n, own| {
        let header = Header { seq: own.seq - 70_000 - n, flags: Flags::RST, ..Header::default() };
        segment(at(V4[0], own.source), at(V4[1], 80), header, &[])
    });
    assert_eq!(world.count(0, Counter::TcpRetransmit), 0);
    assert!(world.count(1, Counter::TcpResetOutside) > 1000);
}

/// A peer that sends single bytes with holes between them: ranges are bounded, and others are not held up.
#[test]
fn single_bytes_with_holes() {
    let mut victim = victim();
    let from = victim.local;
    for n in 0..5_000u32 {
        let header = Header {
            seq: victim.una + 1 + n * 2,
            ack: victim.theirs,
            flags: Flags::ACK,
            window: 1000,
            ..Header::default()
        };
        let card = &mut victim.world.sides[1].card;
        card.inbox.push_back(segment(from, at(V4[1], 80), header, &[0x66]));
    }
    while victim.world.turn(1).more {}
    let info = victim.world.sides[1].stack.info(victim.conns[1]).unwrap();
    assert_eq!(info.tcp.gaps, 128);
    assert_eq!(victim.world.count(1, Counter::TcpGapsFull), 5_000 - 128);
    // One ACK a turn, not one a segment.
    assert!(victim.world.sides[1].card.outbox.len() <= 5_000 / 64 + 2);
}

/// A peer that acknowledges byte by byte opens no window faster than one that does not (RFC 3465; Savage's "ACK division"), and
/// one that acknowledges what it was not sent has nothing released.
#[test]
fn acknowledgements_that_lie() {
    let mut victim = victim();
    let (to, from) = (victim.local, at(V4[1], 80));
    let before = victim.world.sides[0].stack.info(victim.conns[0]).unwrap().tcp.cwnd;
    for n in 1..=1000 {
        let header =
            Header { seq: victim.theirs, ack: victim.una + n, flags: Flags::ACK, window: 5000, ..Header::default() };
        victim.world.inject(0, segment(from, to, header, &[]));
    }
    let after = victim.world.sides[0].stack.info(victim.conns[0]).unwrap().tcp.cwnd;
    assert!(after <= before + 1000, "{before} {after}");
    assert_eq!(victim.world.stream(0, victim.conns[0]).released, 4000);
    for beyond in [1, 1000, 1 << 20, 1 << 30] {
        let header = Header {
            seq: victim.theirs,
            ack: victim.nxt + beyond,
            flags: Flags::ACK,
            window: 5000,
            ..Header::default()
        };
        victim.world.inject(0, segment(from, to, header, &[]));
    }
    assert_eq!(victim.world.stream(0, victim.conns[0]).released, 4000);
    // SACK blocks of what was never sent, empty and turned around.
    let mut sack = Sack::default();
    for (left, right) in [(IN_FLIGHT as u32 + 1, IN_FLIGHT as u32 + 9), (2000, 2000), (3000, 2500), (1500, 1 << 30)] {
        sack.push(zstack_wire::tcp::Range { left: victim.una + left, right: victim.una + right });
    }
    let header = Header {
        seq: victim.theirs,
        ack: victim.una + 1000,
        flags: Flags::ACK,
        window: 5000,
        sack,
        ..Header::default()
    };
    victim.world.inject(0, segment(from, to, header, &[]));
    assert_eq!(victim.world.count(0, Counter::TcpRecovery), 0);
}

/// A peer that keeps its window shut holds no connection that its program has closed (CVE-2008-4609).
#[test]
fn a_window_that_stays_shut() {
    let mut world = World::new();
    let (conn, peer) = world.open(80);
    world.send(0, conn, &pattern(100_000, 1));
    world.pass(1000);
    assert_eq!(world.stream(1, peer).published, 60_000);
    world.sides[0].stack.close(conn, false);
    world.pass(3_600_000);
    assert_eq!(world.stream(0, conn).ended(), Some(Cause::TimedOut));
    assert!(world.stream(0, conn).has(Event::Free));
}
