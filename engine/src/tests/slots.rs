//! Slots of a channel that children of a fork have: when one is offered again, and who gives up the slot of a child that was killed.
// Unsafe here: a channel's memory is read as it is.
#![allow(unsafe_code)]

use super::forks::{NEIGHBOURS, forked};
use super::*;
use crate::kernel::Kernel as _;
use crate::sim::faults::Want;
use crate::sim::process::Process;
use crate::sim::world::{Lane, Neighbour, Side};
use crate::{family, slots};
use core::mem::offset_of;
use core::sync::atomic::Ordering::Relaxed;
use shmring::family::State;
use shmring::layout::{self, Header};

/// As many of `n` new connections as find a slot in the channel.
fn fill(world: &World, lane: Lane, n: usize) -> Vec<Pair> {
    let (attached, others) = (0..n).map(|_| world.pair()).partition(|pair: &Pair| pair.attach_in(lane));
    let others: Vec<Pair> = others;
    others.into_iter().for_each(Pair::close);
    attached
}

/// The connection that finds the last free slot of the channel: one more does not find any.
fn in_the_last_slot(world: &World, lane: Lane) -> Vec<Pair> {
    let last = fill(world, lane, 2);
    assert_eq!(last.len(), 1);
    last
}

/// What a child closes so that of all that it has inherited one end stays: the pair's other end.
fn keep_one_end(other_end: Side, others: &[Pair]) {
    other_end.close();
    for pair in others {
        pair.a.close();
        pair.b.close();
    }
}

#[test]
fn a_slot_is_not_offered_again_before_a_child_has_read_what_is_there() {
    let world = World::new();
    for (neighbour, killed) in NEIGHBOURS.into_iter().flat_map(|n| [(n, false), (n, true)]) {
        let lane = world.lane(RING, neighbour).unwrap();
        let mut others = fill(&world, lane, 1);
        let pair = world.pair();
        assert!(pair.attach_in(lane));
        warm(&pair);
        let child = Process::fork();
        child.run(|| keep_one_end(pair.a, &others));
        pair.b.close();
        assert_eq!(pair.a.send(b"unread"), Ok(6));
        pair.a.close();
        // The parent has nothing in the slot any more, and its connector is gone.
        others.extend(fill(&world, lane, 64));
        assert_eq!(others.len(), 63);
        for other in &others {
            warm(other);
            assert_eq!(other.a.send(&bytes(0, 900)), Ok(900));
        }
        if killed {
            child.kill();
        } else {
            assert_eq!(child.run(|| pair.b.recv(9_999)), Ok(b"unread".to_vec()));
            assert_eq!(child.run(|| pair.b.recv(9_999)), Ok(vec![]));
            child.run(|| pair.b.close());
            child.kill();
        }
        // Now it is.
        others.into_iter().chain(in_the_last_slot(&world, lane)).for_each(Pair::close);
    }
}

/// The last holder is killed at any call that it makes of the kernel while it closes: the record is free again, and so is the slot.
#[test]
fn a_last_holder_that_is_killed_in_its_close_leaves_no_record_and_no_slot() {
    let world = World::new();
    for neighbour in NEIGHBOURS {
        for calls in 0.. {
            let lane = world.lane(RING, neighbour).unwrap();
            let others = fill(&world, lane, 63);
            let pair = world.pair();
            assert!(pair.attach_in(lane));
            warm(&pair);
            let life = pair.b.ep.life();
            let child = Process::fork();
            child.run(|| keep_one_end(pair.a, &others));
            pair.b.close();
            pair.a.close();
            let finished = child.run_for(calls, || pair.b.close()).is_some();
            child.kill();
            let last = fill(&world, lane, 1);
            let context = format!("killed at call {calls}, {neighbour:?}");
            assert_eq!(last.len(), 1, "{context}");
            others.into_iter().chain(last).for_each(Pair::close);
            // Also where the slot was free before the record.
            assert!(family::is_over(pair.b.ep, life), "{context}");
            assert_eq!(pair.b.ep.state(), State::Free, "{context}");
            if finished {
                assert!(calls > 1, "{context}");
                break;
            }
        }
    }
}

/// A channel with one slot left that can be used, and in that a connection whose connecting end only a child has.
fn forked_connector(world: &World, neighbour: Neighbour) -> (Lane, Vec<Pair>, Pair, Process) {
    let lane = world.lane(RING, neighbour).unwrap();
    let others = fill(world, lane, 63);
    let pair = world.pair();
    assert!(pair.attach_in(lane));
    warm(&pair);
    let child = Process::fork();
    child.run(|| keep_one_end(pair.b, &others));
    pair.a.close();
    (lane, others, pair, child)
}

/// A process that was killed has not said that it left its slot: the one that connected says it, when the other asks for a channel.
#[test]
fn the_slot_of_a_connectors_killed_child_is_used_again() {
    let world = World::new();
    for neighbour in NEIGHBOURS {
        let (lane, mut others, pair, child) = forked_connector(&world, neighbour);
        assert_eq!(child.run(|| pair.a.send(b"bytes")), Ok(5));
        assert_eq!(pair.b.recv(9), Ok(b"bytes".to_vec()));
        // The child lives, and so it has the slot, whatever the acceptor does.
        assert!(!lane.connects.give_up_for_heirs());
        assert_eq!(child.run(|| pair.a.send(b"more")), Ok(4));
        assert_eq!(pair.b.recv(9), Ok(b"more".to_vec()));
        child.kill();
        pair.b.close();
        assert_eq!(fill(&world, lane, 1).len(), 0);
        assert!(lane.connects.give_up_for_heirs() && !lane.connects.give_up_for_heirs());
        let last = in_the_last_slot(&world, lane);
        last.iter().for_each(warm);
        others.extend(last);
        others.into_iter().for_each(Pair::close);
    }
}

/// The acceptor still has its end when the child's slot is given up: nobody is seated there beside it.
#[test]
fn the_slot_of_a_killed_child_stays_the_acceptors_until_that_has_closed() {
    let world = World::new();
    let (lane, others, pair, child) = forked_connector(&world, Neighbour::Own);
    assert_eq!(child.run(|| pair.a.send(b"bytes")), Ok(5));
    child.kill();
    assert!(lane.connects.give_up_for_heirs());
    assert_eq!(fill(&world, lane, 1).len(), 0);
    assert_eq!(pair.b.recv(9), Ok(b"bytes".to_vec()));
    assert_eq!(pair.b.recv(9), Ok(vec![]));
    pair.b.close();
    others.into_iter().chain(fill(&world, lane, 1)).for_each(Pair::close);
}

/// The child had closed the connection before it ended, and the slot was offered again: it is its next connection's.
#[test]
fn a_slot_that_is_on_offer_again_is_not_given_up_for_a_child_that_had_it() {
    let world = World::new();
    for neighbour in NEIGHBOURS {
        let (lane, others, pair, child) = forked_connector(&world, neighbour);
        child.run(|| pair.a.close());
        child.kill();
        pair.b.close();
        let next = world.pair();
        let held = slots::lock();
        let slot = slots::free_slot(lane.accepts).unwrap();
        assert!(slots::offer(next.b.ep, lane.accepts, slot));
        held.release();
        // What it says while the offer is there must not stay.
        lane.connects.give_up_for_heirs();
        let held = slots::lock();
        assert!(slots::take(lane.connects, slot));
        crate::attach::attach(next.a.ep, lane.connects, slot);
        crate::attach::attach(next.b.ep, lane.accepts, slot);
        held.release();
        assert!(!lane.connects.give_up_for_heirs());
        warm(&next);
        assert_eq!(next.b.send(b"unread"), Ok(6));
        next.b.close();
        assert_eq!(fill(&world, lane, 1).len(), 0);
        assert_eq!(next.a.recv(9), Ok(b"unread".to_vec()));
        assert_eq!(next.a.recv(9), Ok(vec![]));
        next.a.close();
        others.into_iter().chain(fill(&world, lane, 1)).for_each(Pair::close);
    }
}

/// The child is killed at any call that it makes of the kernel while it closes: its slot is used again.
#[test]
fn a_child_that_is_killed_in_its_close_keeps_no_slot_of_its_connectors() {
    let world = World::new();
    for neighbour in NEIGHBOURS {
        for calls in 0.. {
            let (lane, others, pair, child) = forked_connector(&world, neighbour);
            let finished = child.run_for(calls, || pair.a.close()).is_some();
            let context = format!("killed at call {calls}, {neighbour:?}");
            // Where it is stopped it may be about to use the slot.
            assert!(!lane.connects.give_up_for_heirs(), "{context}");
            child.kill();
            pair.b.close();
            let said = slots::free_slot(lane.accepts).is_some();
            assert_eq!(lane.connects.give_up_for_heirs(), !said, "{context}");
            let last = fill(&world, lane, 1);
            assert_eq!(last.len(), 1, "{context}");
            others.into_iter().chain(last).for_each(Pair::close);
            if finished {
                assert!(said && calls > 1, "{context}");
                break;
            }
        }
    }
}

/// Who has left the family with a connection is no member any more, and may have it all the same; nor does one that has left know
/// who has what it left to others before.
#[test]
fn what_a_process_of_another_family_may_have_is_not_given_up() {
    let world = World::new();
    for carried in [false, true] {
        let (lane, others, pair, child) = forked_connector(&world, Neighbour::Own);
        if carried {
            child.run(|| pair.a.ep.chan().unwrap().carry_off());
        } else {
            lane.connects.lose_heirs();
        }
        child.kill();
        pair.b.close();
        assert!(!lane.connects.give_up_for_heirs());
        assert_eq!(fill(&world, lane, 1).len(), 0);
        others.into_iter().for_each(Pair::close);
    }
}

/// The same of the side that accepted, whose connector has closed.
#[test]
fn what_a_process_of_another_family_may_have_is_not_offered_again() {
    let world = World::new();
    for carried in [false, true] {
        let lane = world.lane(RING, Neighbour::Own).unwrap();
        let others = fill(&world, lane, 63);
        let pair = world.pair();
        assert!(pair.attach_in(lane));
        warm(&pair);
        let child = Process::fork();
        child.run(|| keep_one_end(pair.a, &others));
        pair.b.close();
        pair.a.close();
        if carried {
            child.run(|| pair.b.ep.chan().unwrap().carry_off());
        } else {
            lane.accepts.lose_heirs();
        }
        child.kill();
        assert_eq!(fill(&world, lane, 1).len(), 0);
        others.into_iter().for_each(Pair::close);
    }
}

/// The connector has taken an offer, and has no memory for it: the slot is used again.
#[test]
fn a_slot_that_was_taken_in_vain_is_used_again() {
    let world = World::new();
    let lane = world.lane(RING, Neighbour::Own).unwrap();
    let others = fill(&world, lane, 63);
    let pair = world.pair();
    // The acceptor's page can be had, the connector's cannot.
    Simulated::refuse(Want::Memory, 1, false);
    assert!(!pair.attach_in(lane));
    assert_eq!(Simulated::refused(), 1);
    assert_eq!(pair.a.send(b"by the kernel"), Ok(13));
    assert_eq!(fill(&world, lane, 1).len(), 0);
    assert_eq!(pair.b.recv(99), Ok(b"by the kernel".to_vec()));
    pair.close();
    others.into_iter().chain(in_the_last_slot(&world, lane)).for_each(Pair::close);
}

/// A child has what is attached, not what its parent has offered; and it keeps no channel for what a stranger may still read.
#[test]
fn a_child_keeps_no_channel_longer_than_its_connections() {
    let world = World::new();
    let pair = world.pair();
    let lane = world.lane(RING, Neighbour::Own).unwrap();
    let held = slots::lock();
    assert!(slots::offer(pair.b.ep, lane.accepts, 5));
    held.release();
    let child = Process::fork();
    child.run(|| {
        assert_eq!(crate::channel::all().count(), 0);
        pair.close();
    });
    child.kill();
    pair.close();
    let (pair, child) = forked(&world, Neighbour::Stranger);
    pair.b.close();
    child.run(|| {
        assert_eq!(pair.b.send(&bytes(0, RING / 2)), Ok(RING / 2));
        pair.b.close();
        assert_eq!(crate::channel::all().count(), 0);
    });
    assert_eq!(pair.a.recv(RING), Ok(bytes(0, RING / 2)));
    pair.a.close();
    child.kill();
}

/// What another thread offers for a connection that is being closed is taken back.
#[test]
fn a_connection_that_is_closed_leaves_no_offer() {
    let world = World::new();
    let pair = world.pair();
    let lane = world.lane(RING, Neighbour::Own).unwrap();
    let stays = world.pair();
    assert!(stays.attach_in(lane));
    let held = slots::lock();
    assert!(slots::offer(pair.b.ep, lane.accepts, 5));
    held.release();
    slots::bar(pair.b.ep);
    assert_eq!(pair.b.ep.state(), State::Pinned);
    assert_eq!((lane.accepts.offers()[5].slot.load(Relaxed), lane.accepts.used.load(Relaxed)), (None, 1));
    assert!(lane.accepts.endpoint(5).is_none());
    pair.close();
    stays.close();
}

/// Another user reads what a new channel's memory holds: nothing that lay on this process's stack.
#[test]
fn a_new_channel_holds_its_header_and_zeros() {
    let _world = World::new();
    let memory = crate::channel::mapping::new_memory(RING, 0x1234_5678_9abc_def0, 0).unwrap();
    let mut page = [0xaau8; 4096];
    // SAFETY: as many bytes as there is room for.
    assert_eq!(unsafe { Simulated::read_at(memory, page.as_mut_ptr(), page.len(), 0) }, 4096);
    let h = |at: usize, len: usize| page[at..at + len].to_vec();
    assert_eq!(h(offset_of!(Header, magic), 8), layout::MAGIC.to_ne_bytes());
    assert_eq!(h(offset_of!(Header, version), 4), layout::VERSION.to_ne_bytes());
    assert_eq!(h(offset_of!(Header, ring), 4), (RING as u32).to_ne_bytes());
    assert_eq!(h(offset_of!(Header, id), 8), 0x1234_5678_9abc_def0u64.to_ne_bytes());
    let said = [
        (offset_of!(Header, magic), 8),
        (offset_of!(Header, version), 4),
        (offset_of!(Header, ring), 4),
        (offset_of!(Header, id), 8),
    ];
    let is_said = |i: usize| said.iter().any(|(at, len)| (*at..at + len).contains(&i));
    assert!(page.iter().enumerate().all(|(i, b)| *b == 0 || is_said(i)));
    Simulated::close(memory);
}
