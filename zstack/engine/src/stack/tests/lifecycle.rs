//! Connections from their beginning to their end.

use super::*;
use crate::tcp::{Cause, Options};

/// Opens a connection over whatever the world is, sends both ways, closes, and looks that nothing is left.
fn whole_life(mut world: World, ip: &str, len: usize) -> World {
    let listener = world.listen(1, Listen::new(80, 60_000));
    let conn = world.connect(0, Connect::new(at(ip, 80), 60_000));
    world.settle();
    assert!(world.stream(0, conn).has(Event::Established));
    let peer = world.sides[1].programs.of(listener)[0];
    assert_eq!(world.stream(1, peer).events, [Event::Incoming(listener), Event::Established]);
    let (there, back) = (pattern(len, 1), pattern(len / 2, 2));
    world.send(0, conn, &there);
    world.send(1, peer, &back);
    for _ in 0..40 {
        world.pass(500);
        world.read(0, conn);
        world.read(1, peer);
    }
    assert!(world.stream(1, peer).received() == there, "other bytes arrived");
    assert!(world.stream(0, conn).received() == back, "other bytes arrived");
    assert_eq!(world.stream(0, conn).released, len as u64);
    world.sides[0].stack.close(conn, false);
    world.settle();
    assert!(world.stream(1, peer).has(Event::PeerClosed));
    world.sides[1].stack.close(peer, false);
    world.pass(1000);
    for (side, name) in [(0, conn), (1, peer)] {
        assert_eq!(world.stream(side, name).ended(), Some(Cause::Done));
        assert_eq!(world.stream(side, name).events.last(), Some(&Event::Free));
        assert_eq!(world.phase(side, name), None);
        assert_eq!(world.sides[side].stack.connections().count(), 0);
        assert_eq!(world.count(side, Counter::TcpChecksum), 0);
        assert_eq!(world.count(side, Counter::CopiedBytes), 0);
    }
    assert_eq!(world.sides[0].stack.time_wait(), 1);
    assert_eq!(world.sides[1].stack.time_wait(), 0);
    world
}

#[test]
fn ipv4_on_a_tun() {
    let world = whole_life(World::new(), V4[1], 200_000);
    // A clean wire: nobody sent a reset, or anything again.
    for side in 0..2 {
        assert_eq!(world.count(side, Counter::TcpUnknown), 0);
        assert_eq!(world.count(side, Counter::TcpRetransmit), 0);
    }
}

#[test]
fn ipv6_on_a_tun() {
    whole_life(World::new(), V6[1], 100_000);
}

#[test]
fn ethernet_finds_its_neighbour() {
    whole_life(World::with(caps(Medium::Ethernet), |_| {}), V4[1], 100_000);
    whole_life(World::with(caps(Medium::Ethernet), |_| {}), V6[1], 100_000);
    whole_life(World::with(caps(Medium::Ethernet), |config| config.vlan = Some(7)), V4[1], 10_000);
}

#[test]
fn the_port_computes_checksums() {
    let caps = Capabilities { checksum: true, ..caps(Medium::Ip) };
    whole_life(World::with(caps, |_| {}), V4[1], 50_000);
    whole_life(World::with(caps, |_| {}), V6[1], 50_000);
}

/// Released memory is never read: the card reads one frame's payload at a time, long after it took the frame, and what was
/// released holds other bytes by then.
#[test]
fn a_port_that_reads_late() {
    for reads in [1, 2, 50] {
        let mut world = World::with(Capabilities { late: true, ..caps(Medium::Ip) }, |_| {});
        for side in &mut world.sides {
            side.card.reads = reads;
        }
        whole_life(world, V4[1], 100_000);
    }
}

/// A reset while the port holds frames: the name lives on until they are read.
#[test]
fn a_port_that_reads_late_and_a_reset() {
    let mut world = World::with(Capabilities { late: true, ..caps(Medium::Ip) }, |_| {});
    let (conn, peer) = world.open(80);
    world.send(0, conn, &pattern(10_000, 1));
    world.sides[1].stack.abort(peer);
    world.sides[0].card.reads = 0;
    world.turn(0);
    let held = world.sides[0].card.queued.len();
    assert!(held > 2);
    world.turn(1);
    world.sides[1].card.drain();
    let reset = world.sides[1].card.outbox.pop_front().unwrap();
    world.sides[0].card.inbox.push_back(reset);
    world.turn(0);
    assert_eq!(world.stream(0, conn).ended(), Some(Cause::Reset));
    assert!(!world.stream(0, conn).has(Event::Free));
    // The tuple is free, though: another connection may have it.
    let local = world.sides[0].stack.info(conn).unwrap().local;
    let again = world.connect(0, Connect { local_port: Some(local.port()), ..Connect::new(at(V4[1], 80), 1000) });
    assert_ne!(again.index, conn.index);
    for _ in 0..held {
        assert!(!world.stream(0, conn).has(Event::Free));
        world.sides[0].card.read();
        world.now += crate::time::Micros(1000);
        world.turn(0);
    }
    assert!(world.stream(0, conn).has(Event::Free));
    let payload: Vec<u8> = world.sides[0].card.outbox.iter().flat_map(|f| parse(f).unwrap().2).collect();
    assert!(payload == pattern(payload.len(), 1), "released memory was read");
}

#[test]
fn nobody_listens() {
    let mut world = World::new();
    let conn = world.connect(0, Connect::new(at(V4[1], 81), 1000));
    world.settle();
    assert_eq!(world.stream(0, conn).events, [Event::Ended(Cause::Refused), Event::Free]);
    assert_eq!(world.count(1, Counter::TcpUnknownReset), 1);
}

#[test]
fn nobody_is_there() {
    let mut world = World::with(caps(Medium::Ethernet), |_| {});
    let conn = world.connect(0, Connect::new(at("10.0.0.9", 80), 1000));
    world.pass(10_000);
    assert_eq!(world.stream(0, conn).ended(), Some(Cause::HostUnreachable));
    // Without neighbours to ask for, silence is a time-out.
    let mut world = World::new();
    world.passes = Box::new(|_, _| false);
    let conn = world.connect(0, Connect::new(at(V4[1], 80), 1000));
    world.pass(300_000);
    assert_eq!(world.stream(0, conn).ended(), Some(Cause::TimedOut));
    assert_eq!(world.sides[0].last.deadline, None);
}

#[test]
fn a_decision_that_is_deferred() {
    let mut world = World::new();
    let listener = world.listen(1, Listen { deferred: true, ..Listen::new(80, 1000) });
    let [a, b] = [1, 2].map(|_| world.connect(0, Connect::new(at(V4[1], 80), 1000)));
    world.settle();
    let [x, y] = world.sides[1].programs.of(listener)[..] else { panic!("two ask") };
    assert_eq!(world.stream(1, x).events, [Event::Incoming(listener), Event::Asked]);
    assert_eq!(world.phase(0, a), Some(Phase::SynSent));
    // The SYN comes again meanwhile: it is the same question.
    world.pass(3500);
    assert_eq!(world.sides[1].programs.of(listener).len(), 2);
    assert_eq!(world.sides[1].card.sends, 0);
    let of = |world: &World, conn| world.sides[1].stack.info(conn).unwrap().remote.port();
    let first = world.sides[0].stack.info(a).unwrap().local.port();
    let (yes, no) = if of(&world, x) == first { (x, y) } else { (y, x) };
    world.sides[1].stack.accept(yes);
    world.sides[1].stack.refuse(no);
    world.settle();
    assert!(world.stream(0, a).has(Event::Established) && world.stream(1, yes).has(Event::Established));
    assert_eq!(world.stream(0, b).ended(), Some(Cause::Refused));
    assert_eq!(world.stream(1, no).events.last(), Some(&Event::Free));
    assert_eq!(world.stream(1, yes).events.iter().filter(|e| matches!(e, Event::Incoming(_))).count(), 1);
    assert_eq!(world.count(1, Counter::DeferredRefused), 1);
}

#[test]
fn any_address_and_any_port() {
    let network = Address { ip: "192.0.2.0".parse().unwrap(), prefix: 24 };
    let mut world = World::with(caps(Medium::Ip), |config| {
        config.any_address = true;
        config.routes = vec![net::Route { network, gateway: None }];
    });
    let any = world.listen(1, Listen { port: None, ..Listen::new(1, 1000) });
    let one = world.listen(1, Listen { address: Some("192.0.2.7".parse().unwrap()), ..Listen::new(443, 1000) });
    let wanted = |ip: &str, port| Connect { local: Some(V4[0].parse().unwrap()), ..Connect::new(at(ip, port), 1000) };
    let a = world.connect(0, wanted("192.0.2.7", 443));
    let b = world.connect(0, wanted("192.0.2.8", 443));
    let c = world.connect(0, wanted("192.0.2.7", 9));
    world.settle();
    for conn in [a, b, c] {
        assert!(world.stream(0, conn).has(Event::Established));
    }
    assert_eq!(world.sides[1].programs.of(one).len(), 1);
    assert_eq!(world.sides[1].programs.of(any).len(), 2);
}

/// A connection follows its peer's network behind a gateway, and out again.
#[test]
fn routes_change_under_connections() {
    let mut world = World::with(caps(Medium::Ethernet), |config| {
        if config.addresses[0].ip == V4[1].parse::<std::net::IpAddr>().unwrap() {
            config.addresses.push(Address { ip: "10.0.0.9".parse().unwrap(), prefix: 32 });
        }
    });
    let (conn, peer) = world.open(80);
    let network = Address { ip: V4[1].parse().unwrap(), prefix: 32 };
    let through = |gateway: &str| [net::Route { network, gateway: Some(gateway.parse().unwrap()) }];
    assert!(world.sides[0].stack.set_routes(&through(V4[0])).is_err(), "it is ours");
    world.sides[0].stack.set_routes(&through("10.0.0.9")).unwrap();
    world.send(0, conn, b"one");
    world.turn(0);
    world.sides[0].card.drain();
    let asked: Vec<_> = world.sides[0]
        .card
        .outbox
        .iter()
        .map(|frame| frame[12..14] == [8, 6] && frame[38..42] == [10, 0, 0, 9])
        .collect();
    assert_eq!(asked, [true], "who has 10.0.0.9");
    world.settle();
    assert_eq!(world.stream(1, peer).received(), b"one");
    world.sides[0].stack.set_routes(&[]).unwrap();
    world.send(0, conn, b", two");
    world.settle();
    assert_eq!(world.stream(1, peer).received(), b"one, two");
}

#[test]
fn a_listener_that_goes_takes_no_more() {
    let mut world = World::new();
    let listener = world.listen(1, Listen::new(80, 1000));
    let early = world.connect(0, Connect::new(at(V4[1], 80), 1000));
    world.settle();
    // Half open when the listener goes.
    let half = world.connect(0, Connect::new(at(V4[1], 80), 1000));
    world.turn(0);
    world.carry();
    world.turn(1);
    world.sides[1].stack.unlisten(listener);
    world.settle();
    let late = world.connect(0, Connect::new(at(V4[1], 80), 1000));
    world.settle();
    assert!(world.stream(0, early).has(Event::Established) && world.stream(0, early).ended().is_none());
    assert_eq!(world.stream(0, half).ended(), Some(Cause::Reset));
    assert_eq!(world.stream(0, late).ended(), Some(Cause::Refused));
    assert_eq!(world.sides[1].programs.of(listener).len(), 1);
    assert_eq!(world.sides[1].stack.connections().count(), 1);
}

#[test]
fn nobody_is_asked_again_for_a_listener_that_is_gone() {
    let mut world = World::new();
    let listener = world.listen(1, Listen::new(80, 1000));
    world.connect(0, Connect::new(at(V4[1], 80), 1000));
    world.turn(0);
    world.carry();
    world.turn(1);
    world.passes = Box::new(|_, _| false);
    world.sides[1].stack.unlisten(listener);
    let sent = world.count(1, Counter::Sent);
    world.pass(5000);
    assert_eq!(world.sides[1].stack.connections().count(), 0);
    assert_eq!((world.count(1, Counter::SynOrphaned), world.count(1, Counter::Sent)), (1, sent));
    // Its place among the half-open ones is free.
    world.passes = Box::new(|_, _| true);
    let conn = world.connect(0, Connect::new(at(V4[1], 81), 1000));
    world.listen(1, Listen { backlog: 1, ..Listen::new(81, 1000) });
    world.settle();
    assert!(world.stream(0, conn).has(Event::Established));
}

/// RFC 6191 the other way round (tcp_tw_reuse): where there is no other port, we open a tuple again that waits with us, once timestamps
/// tell the new connection from the old one.
#[test]
fn our_own_time_wait_is_taken_when_no_port_is_left() {
    let one_port = |config: &mut Config| (config.limits.first_port, config.limits.last_port) = (50_000, 50_000);
    let mut world = World::with(caps(Medium::Ip), one_port);
    let (conn, peer) = world.open(80);
    let old = world.sides[0].stack.info(conn).unwrap().tcp;
    world.send(0, conn, &pattern(100, 1));
    world.settle();
    world.sides[0].stack.close(conn, false);
    world.settle();
    world.sides[1].stack.close(peer, false);
    world.pass(50);
    assert_eq!((old.acknowledged, world.sides[0].stack.time_wait()), (0, 1));
    let remote = at(V4[1], 80);
    let now = world.now;
    assert_eq!(world.sides[0].stack.connect(now, Connect::new(remote, 1000)), Err(ConnectError::NoPort(remote)));
    world.pass(1000);
    let again = world.connect(0, Connect::new(remote, 1000));
    world.settle();
    assert!(world.stream(0, again).has(Event::Established));
    assert_eq!((world.sides[0].stack.time_wait(), world.count(0, Counter::TimeWaitReused)), (0, 1));
    world.sides[0].stack.abort(again);
    world.settle();
    assert_eq!(world.sides[0].stack.connections().count(), 0);
}

#[test]
fn closing_with_bytes_unread_or_without_linger_resets() {
    let lingers = |linger, unread, expected: Cause| {
        let mut world = World::new();
        let (conn, peer) = world.open(80);
        world.sides[1].stack.set_options(peer, Options { linger, ..Options::default() });
        world.send(1, peer, &pattern(100, 1));
        world.sides[1].stack.close(peer, unread);
        world.settle();
        if expected == Cause::Done {
            assert!(world.stream(0, conn).has(Event::PeerClosed));
            world.sides[0].stack.close(conn, false);
            world.settle();
        }
        assert_eq!(world.stream(0, conn).ended(), Some(expected), "linger {linger}, unread {unread}");
    };
    lingers(u32::MAX, false, Cause::Done);
    lingers(1000, false, Cause::Done);
    lingers(u32::MAX, true, Cause::Reset);
    lingers(0, false, Cause::Reset);
}

#[test]
fn a_flush_sends_and_leaves_what_has_arrived() {
    let mut world = World::new();
    let (conn, peer) = world.open(80);
    world.send(0, conn, b"question");
    world.turn(0);
    let question = world.sides[0].card.outbox.pop_front().expect("a segment");
    world.sides[1].card.inbox.push_back(question);
    world.send(1, peer, b"news");
    let Side { stack, card, programs, .. } = &mut world.sides[1];
    let turn = stack.flush(world.now, card, programs);
    assert_eq!((turn.received, turn.sent, turn.more), (0, 1, false));
    assert_eq!((card.inbox.len(), card.outbox.len()), (1, 1));
    world.settle();
    assert_eq!(world.stream(1, peer).received(), b"question");
    assert_eq!(world.stream(0, conn).received(), b"news");
}

/// RFC 4861, section 7.3.1, and of ARP the same: who acknowledges what is new need not be asked whether he is there.
#[test]
fn a_neighbour_that_acknowledges_is_not_probed() {
    let mut world = World::with(caps(Medium::Ethernet), |_| {});
    let (conn, peer) = world.open(80);
    let asked = std::rc::Rc::new(std::cell::Cell::new(0));
    let count = asked.clone();
    world.passes = Box::new(move |from, frame| {
        count.set(count.get() + u32::from(from == 0 && frame[12..14] == [8, 6] && frame[21] == 1));
        true
    });
    for _ in 0..100 {
        world.send(0, conn, &pattern(100, 1));
        world.pass(1500);
        world.read(1, peer);
    }
    assert_eq!(world.stream(0, conn).released, 10_000);
    assert_eq!(asked.get(), 0);
}

/// RFC 6191: the tuple of a connection in TIME-WAIT is taken again by a SYN with a later timestamp.
#[test]
fn a_tuple_is_taken_again() {
    let mut world = World::new();
    let (conn, peer) = world.open(80);
    let port = world.sides[0].stack.info(conn).unwrap().local.port();
    world.sides[1].stack.close(peer, false);
    world.settle();
    world.sides[0].stack.close(conn, false);
    world.pass(50);
    assert_eq!((world.sides[0].stack.time_wait(), world.sides[1].stack.time_wait()), (0, 1));
    world.pass(2000);
    let again = world.connect(0, Connect { local_port: Some(port), ..Connect::new(at(V4[1], 80), 1000) });
    world.pass(50);
    assert!(world.stream(0, again).has(Event::Established));
    assert_eq!(world.sides[1].stack.time_wait(), 0);
}

#[test]
fn a_connection_changes_hands() {
    let mut world = World::new();
    let (conn, peer) = world.open(80);
    world.send(0, conn, b"before");
    world.settle();
    let adopt = world.sides[1].stack.surrender(peer).unwrap();
    assert_eq!(world.phase(1, peer), None);
    let told = world.sides[1].programs.told.len();
    let adopt = Adopt { state: serde_json::from_str(&serde_json::to_string(&adopt.state).unwrap()).unwrap(), ..adopt };
    let name = world.sides[1].stack.adopt(world.now, adopt.clone()).unwrap();
    assert_eq!(
        world.sides[1].stack.adopt(world.now, adopt.clone()),
        Err(AdoptError::Connect(ConnectError::InUse(adopt.local, adopt.remote)))
    );
    let stream = world.sides[1].programs.streams.remove(&peer).unwrap();
    world.sides[1].programs.streams.insert(name, stream);
    world.send(0, conn, b" and after");
    world.send(1, name, b"answer");
    world.settle();
    assert_eq!(world.stream(1, name).received(), b"before and after");
    assert_eq!(world.stream(0, conn).received(), b"answer");
    assert_eq!(world.sides[1].programs.told.len(), told);
}

#[test]
fn the_port_vanishes() {
    let mut world = World::new();
    let (conn, peer) = world.open(80);
    let half = world.connect(1, Connect::new(at("10.0.0.77", 80), 1000));
    world.turn(1);
    world.sides[1].card.gone = true;
    let turn = world.turn(1);
    assert!(turn.gone && turn.deadline.is_none());
    assert_eq!(world.stream(1, peer).events[2..], [Event::Ended(Cause::PortGone), Event::Free]);
    assert_eq!(world.stream(1, half).events, [Event::Ended(Cause::PortGone), Event::Free]);
    assert_eq!(world.sides[1].stack.connections().count(), 0);
    assert_eq!(world.sides[1].stack.connect(world.now, Connect::new(at(V4[0], 1), 1)), Err(ConnectError::PortGone));
    assert!(world.turn(1).gone);
    assert!(world.stream(0, conn).ended().is_none());
}

/// Nobody turns the stack when an echo request finds that the port is gone: the next turn ends the connections.
#[test]
fn the_port_vanishes_between_turns() {
    let mut world = World::new();
    let (conn, _) = world.open(80);
    let Side { stack, card, .. } = &mut world.sides[0];
    card.gone = true;
    stack.echo(world.now, card, V4[1].parse().unwrap(), (1, 1), b"?").unwrap();
    assert!(world.turn(0).gone);
    assert_eq!(world.stream(0, conn).events[1..], [Event::Ended(Cause::PortGone), Event::Free]);
}

/// Segments that the port can never take have no frame of their own; the connection gives its name up all the same.
#[test]
fn a_connection_whose_segments_never_leave_ends() {
    for late in [false, true] {
        let mut world = World::with(Capabilities { late, ..caps(Medium::Ip) }, |_| {});
        let (conn, _) = world.open(80);
        world.sides[0].card.unfit = true;
        world.send(0, conn, &pattern(100, 1));
        world.pass(2_000_000);
        let events = &world.stream(0, conn).events;
        assert_eq!(events[events.len() - 2..], [Event::Ended(Cause::TimedOut), Event::Free]);
    }
}

/// The last frame before a segment that never leaves is another connection's, and the port reads it late.
#[test]
fn a_lost_segment_waits_for_the_last_frame_whosever_it_is() {
    let mut world = World::with(Capabilities { late: true, ..caps(Medium::Ip) }, |_| {});
    let (first, peer) = world.open(80);
    let (lost, _) = world.open(81);
    world.sides[0].card.reads = 0;
    world.send(0, first, &pattern(100, 1));
    world.turn(0);
    world.sides[0].card.unfit = true;
    world.send(0, lost, &pattern(100, 1));
    world.turn(0);
    world.sides[0].stack.abort(lost);
    while world.turn(0).more {}
    assert_eq!(world.stream(0, lost).events.last(), Some(&Event::Ended(Cause::Aborted)));
    world.sides[0].card.unfit = false;
    world.sides[0].card.reads = 1;
    world.pass(10);
    assert_eq!(world.stream(0, lost).events.last(), Some(&Event::Free));
    assert_eq!(world.stream(1, peer).received().len(), 100);
}

/// A port that can never send our SYN: the timers end the connection.
#[test]
fn frames_that_the_port_can_never_send() {
    let mut world = World::new();
    world.sides[0].card.unfit = true;
    let conn = world.connect(0, Connect::new(at(V4[1], 80), 1000));
    world.pass(300_000);
    assert_eq!(world.stream(0, conn).events, [Event::Ended(Cause::TimedOut), Event::Free]);
}

/// RFC 6298, section 5.7, and RFC 9293: SYN-ACKs are sent again after one second, three, seven ...
#[test]
fn a_lost_syn_ack_is_sent_again_after_a_second() {
    let mut world = World::new();
    world.listen(1, Listen::new(80, 1000));
    let start = world.now;
    let mut times = Vec::new();
    let header = zstack_wire::tcp::Header {
        seq: zstack_wire::Seq(1),
        flags: zstack_wire::tcp::Flags::SYN,
        window: 1000,
        sack_permitted: true,
        mss: Some(1460),
        ..Default::default()
    };
    world.inject(1, segment(at(V4[0], 5), at(V4[1], 80), header, &[]));
    for _ in 0..3 {
        let sent = world.count(1, Counter::Sent);
        while world.count(1, Counter::Sent) == sent {
            world.now = world.sides[1].last.deadline.unwrap();
            world.turn(1);
        }
        times.push(world.now.since(start).0 / 1000);
    }
    assert_eq!(times, [1000, 3000, 7000]);
}

#[test]
fn what_cannot_be_connected() {
    let mut world = World::new();
    let mut connect = |wanted| world.sides[0].stack.connect(world.now, wanted);
    let to = |ip: &str, port| Connect::new(at(ip, port), 1000);
    let local = |ip: &str| Connect { local: Some(ip.parse().unwrap()), ..to(V4[1], 80) };
    let remote = |ip: &str, port| Err(ConnectError::Remote(at(ip, port)));
    assert_eq!(connect(to(V4[1], 0)), remote(V4[1], 0));
    assert_eq!(connect(to("224.0.0.1", 80)), remote("224.0.0.1", 80));
    assert_eq!(connect(to("0.0.0.0", 80)), remote("0.0.0.0", 80));
    assert_eq!(connect(to(V4[0], 80)), remote(V4[0], 80));
    assert_eq!(connect(to("192.0.2.1", 80)), Err(ConnectError::NoRoute("192.0.2.1".parse().unwrap())));
    assert_eq!(connect(local("10.0.0.7")), Err(ConnectError::NotOurs("10.0.0.7".parse().unwrap())));
    let family = ConnectError::Family(V6[0].parse().unwrap(), V4[1].parse().unwrap());
    assert_eq!(connect(local(V6[0])), Err(family));
    let one = Connect { local_port: Some(7), ..to(V4[1], 80) };
    assert!(connect(one).is_ok());
    assert_eq!(connect(one), Err(ConnectError::InUse(at(V4[0], 7), at(V4[1], 80))));
}

/// 32 bits of microseconds turn around after 71 minutes, those of milliseconds after 49 days, and their sign after 24, as long as PAWS
/// trusts a timestamp.
#[test]
fn months_of_silence() {
    for (medium, keepalive) in [(Medium::Ip, false), (Medium::Ethernet, true)] {
        let mut world = World::with(caps(medium), |config| config.tcp.keepalive = keepalive);
        let (conn, peer) = world.open(80);
        let (mut there, mut back) = (Vec::new(), Vec::new());
        for (i, hours) in [1, 2, 20, 24 * 24, 25 * 24, 25 * 24, 37 * 24, 50 * 24, 100 * 24].into_iter().enumerate() {
            world.pass(hours * 3_600_000 + 1);
            let (a, b) = (pattern(20_000, i), pattern(9_000, i + 50));
            there.extend_from_slice(&a);
            back.extend_from_slice(&b);
            // Each side is the first that speaks at times.
            let order = if i % 2 == 0 { [0, 1] } else { [1, 0] };
            for side in order {
                if side == 0 {
                    world.send(0, conn, &a)
                } else {
                    world.send(1, peer, &b)
                }
                world.pass(100);
            }
            world.read(0, conn);
            world.read(1, peer);
            assert!(
                world.stream(1, peer).received() == there && world.stream(0, conn).received() == back,
                "{hours} hours"
            );
        }
        for side in 0..2 {
            for counter in [Counter::TcpRetransmit, Counter::TcpPaws, Counter::TcpTimedOut, Counter::TcpUndone] {
                assert_eq!(world.count(side, counter), 0, "{counter:?}");
            }
            assert_eq!(world.count(side, Counter::TcpKeepalive) > 1000, keepalive);
        }
        world.sides[0].stack.close(conn, false);
        world.settle();
        world.sides[1].stack.close(peer, false);
        world.pass(1000);
        assert_eq!((world.phase(0, conn), world.phase(1, peer)), (None, None));
    }
}

#[test]
fn a_window_that_is_shut_for_days() {
    let mut world = World::new();
    let (conn, peer) = world.open(80);
    let bytes = pattern(200_000, 3);
    world.send(0, conn, &bytes);
    world.pass(4 * 86_400_000);
    assert_eq!(world.stream(1, peer).published, 60_000);
    assert!((2800..3000).contains(&world.count(0, Counter::TcpWindowProbe)));
    for _ in 0..4 {
        world.read(1, peer);
        world.pass(1000);
    }
    assert!(world.stream(1, peer).received() == bytes);
    assert_eq!(world.count(0, Counter::TcpRetransmit), 0);
}
