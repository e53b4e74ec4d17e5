//! Many of everything: bounds, fairness, floods, time that jumps.

use super::*;
use zstack_wire::Seq;
use zstack_wire::tcp::{Flags, Header};

#[test]
fn ten_thousand_connections() {
    let mut world = World::with(caps(Medium::Ip), |config| config.limits.half_open = 20_000);
    let listener = world.listen(1, Listen { backlog: 20_000, ..Listen::new(80, 1000) });
    let conns: Vec<_> = (0..10_000).map(|_| world.connect(0, Connect::new(at(V4[1], 80), 1000))).collect();
    world.settle();
    let peers = world.sides[1].programs.of(listener);
    assert_eq!(peers.len(), 10_000);
    assert_eq!(world.count(1, Counter::CookieSent), 0);
    for (side, names) in [(0, &conns), (1, &peers)] {
        for (i, &conn) in names.iter().enumerate() {
            let Side { stack, programs, .. } = &mut world.sides[side];
            let stream = programs.stream(conn);
            stream.out = format!("{side} {i}").into_bytes();
            stream.written = stream.out.len();
            stack.commit(conn, stream.written as u64, true);
        }
    }
    world.pass(1000);
    for (i, &conn) in conns.iter().enumerate() {
        let local = world.sides[0].stack.info(conn).unwrap().local;
        let received = world.stream(0, conn).received().to_vec();
        let peer: usize = std::str::from_utf8(&received).unwrap().strip_prefix("1 ").unwrap().parse().unwrap();
        // The answer came from the connection that has our end as its peer, and it got what we sent.
        assert_eq!(world.sides[1].stack.info(peers[peer]).unwrap().remote, local);
        assert_eq!(world.stream(1, peers[peer]).received(), format!("0 {i}").as_bytes());
    }
    // Nobody has anything to do, and says so.
    world.pass(60_000);
    assert_eq!(world.sides[0].last, Turn::default());
    for (side, names) in [(0, &conns), (1, &peers)] {
        for &conn in names {
            world.sides[side].stack.close(conn, false);
        }
        world.settle();
    }
    world.pass(1000);
    for side in &world.sides {
        assert_eq!(side.stack.connections().count(), 0);
        assert!(side.programs.told.iter().filter(|(_, event)| *event == Event::Free).count() == 10_000);
    }
    assert_eq!(world.sides[0].stack.time_wait(), 10_000);
    assert!(world.sides.iter().all(|side| side.last.deadline.is_none()));
}

/// The least MTU: all options find room beside some payload, what is lost is told by SACK, and nothing is longer than the port takes.
#[test]
fn the_least_mtu_carries_a_stream() {
    let least = crate::net::LEAST_PORT;
    let mut world = World::with(Capabilities { mtu: least, ..caps(Medium::Ip) }, |config| config.addresses.truncate(1));
    let (conn, peer) = world.open(80);
    let longest = std::rc::Rc::new(std::cell::Cell::new(0));
    let (mut sent, seen) = (0, longest.clone());
    world.passes = Box::new(move |_, frame| {
        seen.set(seen.get().max(frame.len()));
        sent += 1;
        sent % 23 != 0
    });
    let bytes = pattern(20_000, 3);
    world.send(0, conn, &bytes);
    world.send(1, peer, &bytes);
    world.pass(60_000);
    assert_eq!(world.stream(1, peer).received(), bytes);
    assert_eq!(world.stream(0, conn).received(), bytes);
    assert_eq!(longest.get(), usize::from(least));
}

fn syn(i: u32, stamps: bool) -> Vec<u8> {
    syn_to(80, i, stamps)
}

fn syn_to(port: u16, i: u32, stamps: bool) -> Vec<u8> {
    let from = SocketAddr::new(std::net::Ipv4Addr::from(0x0a00_0100 + i % 200).into(), (i / 200) as u16 + 1024);
    let timestamps = stamps.then_some(zstack_wire::tcp::Timestamps { value: i, echo: 0 });
    let header =
        Header { seq: Seq(i), flags: Flags::SYN, window: 1000, mss: Some(1460), timestamps, ..Header::default() };
    segment(from, at(V4[1], port), header, &[])
}

#[test]
fn a_flood_of_syns_and_somebody_who_means_it() {
    let mut world = World::with(caps(Medium::Ip), |config| {
        config.addresses[0].prefix = 16;
        config.limits.half_open = 100;
    });
    let listener = world.listen(1, Listen { backlog: 1000, ..Listen::new(80, 60_000) });
    // Those whom the flood names do not answer.
    world.passes = Box::new(|from, frame| from == 0 || frame[16..20] == [10, 0, 0, 1]);
    for i in 0..5_000 {
        world.sides[1].card.inbox.push_back(syn(i, i % 2 == 0));
    }
    world.settle();
    assert_eq!(world.sides[1].stack.connections().count(), 100);
    assert_eq!(world.count(1, Counter::CookieSent), 4_900);
    assert!(world.sides[1].programs.told.is_empty());
    // With timestamps nothing of what was agreed upon is lost, without them only an MSS is known.
    for (stamps, full) in [(true, true), (false, false)] {
        let options = crate::tcp::Options { timestamps: stamps, ..Default::default() };
        let conn = world.connect(0, Connect { options: Some(options), ..Connect::new(at(V4[1], 80), 200_000) });
        world.settle();
        assert!(world.stream(0, conn).has(Event::Established));
        let peer = *world.sides[1].programs.of(listener).last().unwrap();
        let info = world.sides[1].stack.info(peer).unwrap().tcp;
        assert_eq!((info.scales.is_some(), info.sack, info.timestamps), (full, full, stamps));
        let (there, back) = (pattern(50_000, 1), pattern(20_000, 2));
        world.send(0, conn, &there);
        world.send(1, peer, &back);
        world.pass(1000);
        assert!(world.stream(1, peer).received() == there && world.stream(0, conn).received() == back);
    }
    assert_eq!(world.count(1, Counter::CookieAccepted), 2);
    // Guesses.
    for i in 0..2000u32 {
        let header =
            Header { seq: Seq(i), ack: Seq(i.wrapping_mul(0x9e37_79b9)), flags: Flags::ACK, ..Header::default() };
        world.sides[1].card.inbox.push_back(segment(at("10.0.1.9", 999), at(V4[1], 80), header, &[]));
    }
    world.settle();
    assert_eq!(world.count(1, Counter::CookieInvalid), 2000);
    // They may be of connections whose first segment is late.
    assert_eq!(world.count(1, Counter::TcpUnknownReset) + world.count(1, Counter::TcpUnknownLimited), 0);
    // The half-open ones give up, and there is room again.
    world.pass(200_000);
    assert_eq!(world.sides[1].stack.half_open, 0);
    assert_eq!(world.sides[1].stack.connections().count(), 2);
}

#[test]
fn a_deferred_listener_bounds_who_waits() {
    let mut world = World::with(caps(Medium::Ip), |config| config.addresses[0].prefix = 16);
    let listener = world.listen(1, Listen { deferred: true, backlog: 10, ..Listen::new(80, 1000) });
    for i in 0..50 {
        world.inject(1, syn(i, true));
    }
    let asked = world.sides[1].programs.of(listener);
    assert_eq!((asked.len(), world.count(1, Counter::SynDeferredFull)), (10, 40));
    assert_eq!(world.sides[1].card.sends, 0);
    for &conn in &asked[..5] {
        world.sides[1].stack.refuse(conn);
    }
    world.settle();
    for i in 50..100 {
        world.inject(1, syn(i, true));
    }
    assert_eq!(world.sides[1].programs.of(listener).len(), 15);
}

/// All listeners share a limit, and yet a flood at one, deferred or not, leaves the others some of it.
#[test]
fn a_flood_at_one_listener_does_not_shut_the_others() {
    for (flooded, deferred) in [(80, true), (80, false), (81, true), (81, false)] {
        let mut world = World::with(caps(Medium::Ip), |config| {
            config.addresses[0].prefix = 16;
            config.limits.half_open = 100;
        });
        let flood = world.listen(1, Listen { deferred, backlog: 1000, ..Listen::new(80, 60_000) });
        let asks = world.listen(1, Listen { deferred: true, ..Listen::new(81, 60_000) });
        let plain = world.listen(1, Listen::new(82, 60_000));
        world.passes = Box::new(|from, frame| from == 0 || frame[16..20] == [10, 0, 0, 1]);
        for i in 0..5_000 {
            world.sides[1].card.inbox.push_back(syn_to(flooded, i, true));
        }
        world.settle();
        assert!(world.sides[1].stack.half_open >= 100, "{flooded} {deferred}");
        // Those that somebody opens who means it: each listener but the flooded one keeps them whole, without cookies.
        let cookies = world.count(1, Counter::CookieAccepted);
        for (port, listener) in [(80, flood), (81, asks), (82, plain)] {
            if port == flooded {
                continue;
            }
            let before = world.sides[1].programs.of(listener).len();
            let options = crate::tcp::Options { timestamps: false, ..Default::default() };
            let conn = world.connect(0, Connect { options: Some(options), ..Connect::new(at(V4[1], port), 200_000) });
            world.settle();
            if port == 81 || port == 80 && deferred {
                let asked = world.sides[1].programs.of(listener);
                assert_eq!(asked.len(), before + 1);
                world.sides[1].stack.accept(asked[before]);
                world.settle();
            }
            assert!(world.stream(0, conn).has(Event::Established), "{port} beside {flooded}");
        }
        assert_eq!(world.count(1, Counter::CookieAccepted), cookies);
    }
}

/// A host whose program does not accept gets no more connections: the peer's SYN is not answered, and comes again.
#[test]
fn who_waits_to_be_accepted_is_bounded() {
    for cookies in [false, true] {
        let mut world = World::new();
        world.listen(1, Listen { backlog: if cookies { 1 } else { 100 }, ..Listen::new(80, 1000) });
        if cookies {
            // It never answers, and has the one place.
            world.inject(
                1,
                segment(at("10.0.0.77", 9), at(V4[1], 80), Header { flags: Flags::SYN, ..Header::default() }, &[]),
            );
        }
        let early = world.connect(0, Connect::new(at(V4[1], 80), 1000));
        world.turn(0);
        let syn = world.sides[0].card.outbox.pop_front().unwrap();
        world.sides[1].card.inbox.push_back(syn);
        world.turn(1);
        // Its cookie, or its half-open connection, is out.
        world.sides[1].programs.crowded = true;
        let late = world.connect(0, Connect::new(at(V4[1], 80), 1000));
        world.settle();
        assert_eq!(world.sides[1].programs.told.len(), if cookies { 0 } else { 2 });
        assert_eq!(world.count(1, Counter::SynHostFull), if cookies { 2 } else { 1 });
        world.sides[1].programs.crowded = false;
        world.pass(2000);
        assert!(world.stream(0, late).has(Event::Established));
        assert!(world.stream(0, early).has(Event::Established));
    }
}

#[test]
fn no_more_connections_than_there_may_be() {
    let mut world = World::with(caps(Medium::Ip), |config| config.limits.connections = 3);
    world.listen(1, Listen::new(80, 1000));
    for _ in 0..3 {
        world.connect(0, Connect::new(at(V4[1], 80), 1000));
    }
    let refused = world.sides[0].stack.connect(world.now, Connect::new(at(V4[1], 80), 1000));
    assert_eq!(refused, Err(ConnectError::Full(3)));
    world.settle();
    let header = Header { seq: Seq(1), flags: Flags::SYN, ..Header::default() };
    assert!(world.inject(1, segment(at(V4[0], 1), at(V4[1], 80), header, &[])).is_empty());
    assert_eq!(world.count(1, Counter::SynConnectionsFull), 1);
}

#[test]
fn a_port_with_little_room() {
    let mut world = World::new();
    for side in &mut world.sides {
        side.card.room = 3;
    }
    let (conn, peer) = world.open(80);
    let (there, back) = (pattern(200_000, 1), pattern(100_000, 2));
    world.send(0, conn, &there);
    world.send(1, peer, &back);
    for _ in 0..10 {
        world.pass(500);
        world.read(0, conn);
        world.read(1, peer);
    }
    assert!(world.stream(1, peer).received() == there && world.stream(0, conn).received() == back);
    assert!(world.count(0, Counter::PortFull) > 0);
    // A port that is full is no loss.
    assert_eq!(world.count(0, Counter::TcpRetransmit), 0);
    // It is asked again once a turn, not for ever.
    world.sides[0].card.room = 0;
    world.sides[0].card.left = 0;
    world.send(0, conn, b"more");
    let before = world.sides[0].card.sends;
    let turn = world.turn(0);
    assert!(turn.full && !turn.more && turn.deadline.is_some_and(|at| at > world.now));
    assert_eq!(world.sides[0].card.sends, before + 1);
}

/// One that has much to send does not keep others from sending little.
#[test]
fn everybody_has_a_turn() {
    let mut world = World::new();
    let (long, _) = world.open(80);
    let (short, peer) = world.open(81);
    // An open window, so that it could send for long.
    for _ in 0..6 {
        world.send(0, long, &pattern(20_000, 1));
        world.settle();
        let other = world.sides[1].programs.told[0].0;
        world.read(1, other);
        world.settle();
    }
    world.send(0, long, &pattern(50_000, 1));
    world.send(0, short, b"hello");
    let turn = world.turn(0);
    assert!(turn.more);
    assert_eq!(turn.sent, 17, "sixteen of the long one, and the short one");
    world.settle();
    assert_eq!(world.stream(1, peer).received(), b"hello");
}

/// Segments that arrive together are acknowledged together.
#[test]
fn one_acknowledgement_for_a_burst() {
    let mut world = World::new();
    let (conn, _) = world.open(80);
    world.send(0, conn, &pattern(14_000, 1));
    world.turn(0);
    world.carry();
    let before = world.sides[1].card.sends;
    assert_eq!(world.sides[1].card.inbox.len(), 10);
    let turn = world.turn(1);
    assert_eq!((turn.received, world.sides[1].card.sends - before), (10, 1));
}

#[test]
fn idle_is_idle() {
    let mut world = World::new();
    let (conn, _) = world.open(80);
    world.send(0, conn, b"hello");
    world.pass(10_000);
    let before = (world.sides[0].card.sends, world.sides[0].card.flushes);
    for _ in 0..10 {
        assert_eq!(world.turn(0), Turn::default());
    }
    assert_eq!((world.sides[0].card.sends, world.sides[0].card.flushes), before);
}

#[test]
fn time_that_jumps_fires_late_and_no_storm() {
    let mut world = World::with(caps(Medium::Ip), |config| config.limits.timers = 50);
    world.passes = Box::new(|_, _| false);
    for _ in 0..1000 {
        world.connect(0, Connect::new(at(V4[1], 80), 1000));
    }
    world.settle();
    let sends = world.sides[0].card.sends;
    assert_eq!(sends, 1000);
    // A day later.
    world.now = world.now.after_millis(86_400_000);
    let (mut turns, mut most) = (0, 0);
    loop {
        let before = world.sides[0].card.sends;
        let turn = world.turn(0);
        most = most.max(world.sides[0].card.sends - before);
        turns += 1;
        if !turn.more {
            break;
        }
    }
    // Each fired once, however many times it would have in that day.
    assert_eq!(world.sides[0].card.sends, sends + 1000);
    assert!(most <= 50, "{most} in one turn");
    assert!((20..=100).contains(&turns), "{turns}");
}

#[test]
fn time_wait_is_bounded() {
    let mut world = World::with(caps(Medium::Ip), |config| config.limits.time_wait = 4);
    let listener = world.listen(1, Listen::new(80, 1000));
    for _ in 0..10 {
        let conn = world.connect(0, Connect::new(at(V4[1], 80), 1000));
        world.settle();
        world.sides[0].stack.close(conn, false);
        world.settle();
        let peer = *world.sides[1].programs.of(listener).last().unwrap();
        world.sides[1].stack.close(peer, false);
        world.settle();
    }
    assert_eq!(world.sides[0].stack.time_wait(), 4);
    assert_eq!(world.count(0, Counter::TimeWaitEvicted), 6);
    assert_eq!(world.count(0, Counter::TimeWait), 10);
}

#[test]
fn timers_wait_for_what_has_arrived_but_not_for_ever() {
    let mut world = World::with(caps(Medium::Ip), |config| config.limits.receive = 4);
    let (conn, _) = world.open(80);
    let nobody = Header { flags: Flags::RST, ..Header::default() };
    let nobody = segment(at(V4[1], 9), at(V4[0], 9), nobody, &[]);
    let fired = |world: &World| world.count(0, Counter::TcpTimeout) + world.count(0, Counter::TcpTailProbe);
    // The ACK lies behind others at the port when the process, which was stopped, goes on.
    world.send(0, conn, &pattern(4000, 1));
    world.turn(0);
    world.carry();
    while world.turn(1).more {}
    world.sides[0].card.inbox.extend(vec![nobody.clone(); 30]);
    world.carry();
    world.now = world.now.after_millis(10_000);
    while world.turn(0).more {}
    assert_eq!(fired(&world), 0);
    assert_eq!(world.stream(0, conn).released, 4000);
    // There is no ACK, and no end of others.
    world.send(0, conn, &pattern(1000, 2));
    world.turn(0);
    world.now = world.now.after_millis(10_000);
    let flood = |world: &mut World| {
        world.sides[0].card.inbox.extend(vec![nobody.clone(); 4]);
        assert!(world.turn(0).more);
    };
    (0..16).for_each(|_| flood(&mut world));
    assert_eq!(fired(&world), 0);
    flood(&mut world);
    assert_eq!(fired(&world), 1);
}
