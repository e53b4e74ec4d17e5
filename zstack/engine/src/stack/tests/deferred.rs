//! Listeners whose host decides before a SYN is answered.

use super::*;
use zstack_wire::Seq;
use zstack_wire::tcp::{Flags, Header};

fn knock(port: u16, seq: u32, flags: Flags, ack: Seq) -> Vec<u8> {
    let header = Header { seq: Seq(seq), ack, flags, window: 100, ..Header::default() };
    segment(at(V4[0], port), at(V4[1], 80), header, &[])
}

fn syn(port: u16, seq: u32) -> Vec<u8> {
    knock(port, seq, Flags::SYN, Seq(0))
}

fn deferred(backlog: u32, deferred_cookies: bool) -> Listen {
    Listen { deferred: true, backlog, deferred_cookies, ..Listen::new(80, 1000) }
}

/// The last connection that came.
fn last(world: &World) -> ConnId {
    world.sides[1].programs.told.iter().rfind(|(_, event)| *event == Event::Asked).unwrap().0
}

#[test]
fn a_peer_that_gives_up_is_told_of() {
    let mut world = World::new();
    world.listen(1, deferred(10, false));
    assert!(world.inject(1, syn(5, 1000)).is_empty());
    let first = last(&world);
    // The same question, and RSTs of others.
    for same in [syn(5, 1000), knock(5, 1000, Flags::RST, Seq(0)), knock(5, 1002, Flags::RST, Seq(0))] {
        assert!(world.inject(1, same).is_empty());
        assert_eq!(world.stream(1, first).ended(), None);
    }
    assert!(world.inject(1, knock(5, 1001, Flags::RST, Seq(0))).is_empty());
    assert_eq!(world.stream(1, first).ended(), Some(Cause::Reset));
    assert_eq!(world.stream(1, first).events.last(), Some(&Event::Free));
    // Another SYN of the same addresses and ports.
    world.inject(1, syn(5, 5000));
    let second = last(&world);
    assert!(world.inject(1, syn(5, 9000)).is_empty());
    assert_eq!(world.stream(1, second).ended(), Some(Cause::Reset));
    assert_eq!(world.count(1, Counter::DeferredOverrun), 1);
    assert_eq!((world.sides[1].stack.half_open, world.sides[1].stack.connections().count()), (0, 0));
    world.inject(1, syn(5, 9000));
    let third = last(&world);
    assert!(third != second && world.stream(1, third).ended().is_none());
    // What the host says of those that have ended comes too late.
    for stale in [first, second] {
        world.sides[1].stack.accept(stale);
        world.sides[1].stack.refuse(stale);
        world.sides[1].stack.ignore(stale);
    }
    world.turn(1);
    assert_eq!((world.sides[1].card.sends, world.count(1, Counter::DeferredIgnored)), (0, 0));
    world.sides[1].stack.accept(third);
    world.turn(1);
    let (_, answer, _) = parse(&world.sides[1].card.outbox.pop_back().unwrap()).unwrap();
    assert_eq!((answer.flags, answer.ack), (Flags::SYN.with(Flags::ACK), Seq(9001)));
    // From here on another SYN is challenged, as one to any half-open connection.
    world.inject(1, syn(5, 9000));
    let [challenge] = world.inject(1, syn(5, 20_000))[..] else { panic!("one answer") };
    assert_eq!((challenge.flags, challenge.ack), (Flags::ACK, Seq(9001)));
    assert_eq!(world.stream(1, third).ended(), None);
}

#[test]
fn one_that_is_ignored_is_asked_again_with_the_next_syn() {
    let mut world = World::new();
    let listener = world.listen(1, deferred(10, false));
    let conn = world.connect(0, Connect::new(at(V4[1], 80), 1000));
    world.settle();
    let first = last(&world);
    world.sides[1].stack.ignore(first);
    world.settle();
    assert_eq!(world.stream(1, first).events[2..], [Event::Ended(Cause::Aborted), Event::Free]);
    assert_eq!((world.sides[1].card.sends, world.count(1, Counter::TcpResetSent)), (0, 0), "not a word");
    assert_eq!((world.sides[1].stack.half_open, world.count(1, Counter::DeferredIgnored)), (0, 1));
    assert_eq!(world.phase(0, conn), Some(Phase::SynSent));
    world.pass(1000);
    let second = last(&world);
    assert_eq!((world.sides[1].programs.of(listener).len(), second != first), (2, true));
    world.sides[1].stack.accept(second);
    // It is answered: to ignore it would leave the peer with a connection that nobody knows.
    world.sides[1].stack.ignore(second);
    world.settle();
    assert!(world.stream(0, conn).has(Event::Established) && world.stream(1, second).has(Event::Established));
    assert_eq!(world.count(1, Counter::DeferredIgnored), 1);
}

#[test]
fn beyond_its_bounds_a_deferred_listener_may_answer_with_cookies() {
    let mut world = World::new();
    let listener = world.listen(1, deferred(2, true));
    world.inject(1, syn(1, 1000));
    world.inject(1, syn(2, 1000));
    let [answer] = world.inject(1, syn(3, 1000))[..] else { panic!("one answer") };
    assert_eq!(answer.flags, Flags::SYN.with(Flags::ACK));
    assert_eq!((world.count(1, Counter::CookieSent), world.count(1, Counter::SynDeferredFull)), (1, 0));
    assert_eq!(world.sides[1].programs.of(listener).len(), 2, "nothing is kept of it");
    // No cookie, then the cookie.
    world.inject(1, knock(3, 1001, Flags::ACK, answer.seq + 77));
    assert_eq!(world.sides[1].programs.of(listener).len(), 2);
    world.inject(1, knock(3, 1001, Flags::ACK, answer.seq + 1));
    let conn = world.sides[1].programs.of(listener)[2];
    assert_eq!(world.stream(1, conn).events, [Event::Incoming(listener), Event::Established]);
    assert_eq!(world.sides[1].stack.half_open, 2);
    // Whoever does not want it aborts it: the peer sees a connection that is reset.
    world.sides[1].stack.abort(conn);
    world.turn(1);
    let (_, reset, _) = parse(&world.sides[1].card.outbox.pop_back().unwrap()).unwrap();
    assert!(reset.flags.has(Flags::RST) && reset.seq == answer.seq + 1);
    assert_eq!(world.stream(1, conn).ended(), Some(Cause::Aborted));
    // Those that wait are decided as ever.
    let asked = world.sides[1].programs.of(listener)[0];
    world.sides[1].stack.accept(asked);
    world.turn(1);
    let (_, answer, _) = parse(&world.sides[1].card.outbox.pop_back().unwrap()).unwrap();
    assert_eq!(answer.flags, Flags::SYN.with(Flags::ACK));
    // A host that takes no more says so for cookies, too.
    let [answer] = world.inject(1, syn(4, 1000))[..] else { panic!("one answer") };
    world.sides[1].programs.crowded = true;
    assert!(world.inject(1, syn(5, 1000)).is_empty());
    world.inject(1, knock(4, 1001, Flags::ACK, answer.seq + 1));
    assert_eq!(world.count(1, Counter::SynHostFull), 2);
    world.sides[1].programs.crowded = false;
    world.inject(1, knock(4, 1001, Flags::ACK, answer.seq + 1));
    assert_eq!(world.count(1, Counter::CookieAccepted), 2);
}
