//! Memory and descriptors run out, at any call that needs some: no byte is lost or doubled, nothing is left behind, and what the
//! rings cannot carry goes by the kernel.

use super::*;
use crate::kernel::Kernel as _;
use crate::sim::faults::Want;
use crate::sim::world::{Neighbour, Side};
use libc::EAGAIN;

/// Runs `story` with the first call failing that needs `want`, then with the second, and so on, until none is left to fail.
fn at_every_call(want: Want, story: impl Fn(&World, Neighbour)) {
    for neighbour in [Neighbour::Own, Neighbour::Stranger] {
        for lasting in [false, true] {
            let mut n = 0;
            loop {
                let world = World::new();
                Simulated::refuse(want, n, lasting);
                story(&world, neighbour);
                if Simulated::refused() == 0 {
                    break;
                }
                n += if cfg!(miri) { 9 } else { 1 };
            }
            assert!(n > 3, "{n} calls that need {want:?} (lasting: {lasting}, {neighbour:?})");
        }
    }
}

/// Moves bytes as long as any are taken, and returns what arrived.
fn pump(from: Side, to: Side, message: &[u8]) -> Vec<u8> {
    let (mut sent, mut got) = (0, Vec::new());
    for _ in 0..10_000 {
        if sent < message.len() {
            match from.send(&message[sent..]) {
                Ok(n) => sent += n,
                Err(e) => assert_eq!(e, EAGAIN, "after {sent} bytes"),
            }
        }
        match to.recv(RING / 3) {
            Ok(some) => got.extend(some),
            Err(e) => assert_eq!(e, EAGAIN, "after {} bytes", got.len()),
        }
        if got.len() >= message.len() {
            return got;
        }
    }
    panic!("{} of {} bytes arrived", got.len(), message.len());
}

/// Two connections in one channel, with more bytes than a ring holds, both ways.
fn two_connections(world: &World, neighbour: Neighbour) {
    let lane = world.lane(RING, neighbour);
    for _ in 0..2 {
        let pair = world.pair();
        assert_eq!(pair.a.send(&bytes(0, 100)), Ok(100));
        if let Some(lane) = lane.filter(|lane| lane.is_open()) {
            pair.attach_in(lane);
        }
        let message = bytes(100, RING + RING / 4);
        assert_eq!(pump(pair.b, pair.a, &message), message);
        let all = [bytes(0, 100), message.clone()].concat();
        let mut got = pair.b.recv(100).unwrap();
        got.extend(pump(pair.a, pair.b, &message));
        assert!(got == all);
        assert_eq!(pair.a.recv(9), Err(EAGAIN));
        assert_eq!(pair.b.recv(9), Err(EAGAIN));
        pair.a.close();
        assert_eq!(pair.b.recv(9), Ok(vec![]));
        pair.b.close();
    }
}

#[test]
fn memory_that_runs_out_at_any_call_costs_no_byte() {
    at_every_call(Want::Memory, two_connections);
}

/// Blocking calls, which want doorbells.
fn sleepers(world: &World, neighbour: Neighbour) {
    let pair = world.pair();
    if let Some(lane) = world.lane(RING, neighbour) {
        pair.attach_in(lane);
    }
    for deep in [true, false] {
        host::tls::tls().habits.deep.set(u32::from(deep));
        Simulated::meanwhile(move || assert_eq!(pair.a.send(b"news"), Ok(4)));
        assert_eq!(pair.b.recv_with(9, 0), Ok(b"news".to_vec()));
        Simulated::meanwhile(move || assert_eq!(pair.b.send(b"back"), Ok(4)));
        assert_eq!(pair.a.recv_with(9, 0), Ok(b"back".to_vec()));
    }
    pair.close();
}

#[test]
fn descriptors_that_run_out_at_any_call_wake_all_the_same() {
    at_every_call(Want::Descriptors, sleepers);
}

/// What a channel with another user's process keeps for its rings is counted once for each of them, and until the channel ends.
#[test]
fn what_strangers_channels_keep_is_counted() {
    use crate::channel;
    let world = World::new();
    let lane = world.lane(RING, Neighbour::Stranger).expect("a channel");
    let (stays, mut most) = (world.pair(), 0);
    assert!(stays.attach_in(lane));
    for _ in 0..3 {
        let pair = world.pair();
        assert!(pair.attach_in(lane));
        assert_eq!(pair.a.send(&bytes(0, RING / 2)), Ok(RING / 2));
        assert_eq!(pair.b.recv(RING).map(|some| some.len()), Ok(RING / 2));
        pair.close();
        assert!(channel::kept() >= (RING / 2 - shmring::layout::HOME) as u64, "it is there yet");
        assert!(most == 0 || channel::kept() == most, "the next connection in that slot has it");
        most = channel::kept();
    }
    stays.close();
    assert_eq!(channel::kept(), 0);
}

/// A stranger says that its connections are closed, and keeps the memory: that counts until it is given up, which is found when another
/// connection is closed.
#[test]
fn a_channel_that_a_stranger_keeps_counts_until_he_gives_it_up() {
    use crate::channel;
    let world = World::new();
    let lane = world.lane(RING, Neighbour::Stranger).expect("a channel");
    let keeps = Simulated::reopen(lane.accepts.memfd.load(core::sync::atomic::Ordering::Relaxed));
    let pair = world.pair();
    assert!(pair.attach_in(lane));
    assert_eq!(pair.b.send(&bytes(0, RING / 2)), Ok(RING / 2));
    assert_eq!(pair.a.recv(RING).map(|some| some.len()), Ok(RING / 2));
    pair.close();
    let kept = channel::kept();
    assert!(kept >= (RING / 2 - shmring::layout::HOME) as u64);
    world.attached().close();
    assert_eq!((channel::all().count(), channel::kept()), (1, kept));
    Simulated::close(keeps);
    world.attached().close();
    assert_eq!((channel::all().count(), channel::kept()), (0, 0));
}

/// More of them than are asked for at a time: no one's keeping hides that another has given up his.
#[test]
fn channels_that_strangers_have_given_up_are_found_by_turns() {
    use crate::channel;
    let world = World::new();
    let mut kept = Vec::new();
    for _ in 0..6 {
        let lane = world.lane(RING, Neighbour::Stranger).expect("a channel");
        kept.push(Simulated::reopen(lane.accepts.memfd.load(core::sync::atomic::Ordering::Relaxed)));
        let pair = world.pair();
        assert!(pair.attach_in(lane));
        pair.close();
    }
    let closes = |n| (0..n).for_each(|_| world.attached().close());
    closes(3);
    assert_eq!(channel::all().count(), 6);
    for (i, memory) in kept.into_iter().rev().enumerate() {
        Simulated::close(memory);
        if i < 2 {
            closes(2);
            assert_eq!(channel::all().count(), 5 - i);
        }
    }
    closes(1);
    assert_eq!(channel::all().count(), 0);
}

/// A channel that no connection was put into ends when no connection of this process may be meant, and the other side has left.
#[test]
fn a_channel_that_nobody_used_is_given_up() {
    use crate::channel;
    use core::sync::atomic::Ordering::Relaxed;
    let world = World::new();
    for (neighbour, closes) in [(Neighbour::Own, 1), (Neighbour::Stranger, 2)] {
        assert!(world.lane(RING, neighbour).is_some());
        let waits = world.pair();
        waits.b.ep.local().stage.store(1, Relaxed);
        (0..3).for_each(|_| world.attached().close());
        assert_eq!(channel::all().count(), 2);
        waits.b.ep.local().stage.store(0, Relaxed);
        (0..closes).for_each(|_| world.attached().close());
        assert_eq!(channel::all().count(), 0);
        waits.close();
    }
}
