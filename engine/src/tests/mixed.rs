//! Any mix of POSIX calls and those in place, at any byte, wherever the connection goes meanwhile, is one stream.

use super::inplace::keep_apart;
use super::*;
use crate::inplace::Spans;
use crate::leave;
use libc::EAGAIN;
use proptest::prelude::*;
use proptest::test_runner::{TestError, TestRunner};
use shmring::family::{Reason, State};
use std::cell::Cell;
use std::collections::VecDeque;

/// What happens next. `true`: at the end that connected.
#[derive(Clone, Copy, Debug)]
enum Op {
    Send(bool, usize),
    Recv(bool, usize),
    /// Room, which is filled.
    Reserve(bool, usize),
    /// Of the first or the last of those that stand, so much of 256 parts.
    Commit(bool, bool, usize),
    Look(bool, usize),
    Release(bool, usize),
    Attach,
    Rewind(bool),
    Cut(bool),
    Echo(bool),
    Pass(u16),
}

fn op() -> impl Strategy<Value = Op> {
    let end = any::<bool>();
    prop_oneof![
        6 => (end, 1..RING / 8).prop_map(|(e, n)| Op::Send(e, n)),
        6 => (end, 1..RING / 6).prop_map(|(e, n)| Op::Recv(e, n)),
        8 => (end, 1..RING / 3).prop_map(|(e, n)| Op::Reserve(e, n)),
        10 => (end, any::<bool>(), 0..257usize).prop_map(|(e, first, n)| Op::Commit(e, first, n)),
        8 => (end, 1..200usize).prop_map(|(e, n)| Op::Look(e, n)),
        8 => (end, 0..257usize).prop_map(|(e, n)| Op::Release(e, n)),
        3 => Just(Op::Attach),
        1 => end.prop_map(Op::Rewind),
        1 => end.prop_map(Op::Cut),
        1 => end.prop_map(Op::Echo),
        1 => (0u16..100).prop_map(Op::Pass),
    ]
}

/// One end: what it has reserved, and what is in it; what it looks at, and how many bytes it has received since.
#[derive(Default)]
struct End {
    rooms: Vec<(Spans, Vec<u8>)>,
    view: Option<(Spans, Vec<u8>, usize)>,
    /// Bytes that were sent to it, and not received.
    stream: VecDeque<u8>,
    made: usize,
}

fn run(slow: bool, ops: &[Op], made: &mut u64) -> Result<(), TestCaseError> {
    let world = World::new();
    let outcome = mix(&world, slow, ops, made);
    if outcome.is_err() {
        world.abandon();
    }
    outcome
}

/// Plays `ops` against two queues of bytes. `slow`: who leaves does not wait until the peer has done its part. `made` counts the calls
/// that send, receive, reserve, commit, look and release.
fn mix(world: &World, slow: bool, ops: &[Op], made: &mut u64) -> Result<(), TestCaseError> {
    let pair = world.pair();
    if slow {
        keep_apart(&pair);
    }
    let mut ends = [End::default(), End::default()];
    let (mut attached, mut left) = (false, false);
    let side = move |a: bool| if a { pair.a } else { pair.b };
    for &op in ops {
        match op {
            Op::Send(a, n) => {
                let i = usize::from(a);
                let message = bytes(ends[i].made, n);
                *made += 1;
                ends[i].made += n;
                match side(a).send(&message) {
                    Ok(n) => ends[1 - i].stream.extend(&message[..n]),
                    Err(e) => prop_assert_eq!(e, EAGAIN),
                }
            }
            Op::Recv(a, n) => {
                let end = &mut ends[usize::from(a)];
                // Who receives beside a copy must know of it.
                if end.view.as_ref().is_some_and(|(view, ..)| !view.is_on_ring()) {
                    continue;
                }
                *made += 1;
                match side(a).recv(n) {
                    Ok(got) => {
                        prop_assert!(got.len() <= end.stream.len());
                        if let Some((_, _, read)) = &mut end.view {
                            *read += got.len();
                        }
                        let expected: Vec<u8> = end.stream.drain(..got.len()).collect();
                        prop_assert!(got == expected);
                    }
                    Err(e) => prop_assert_eq!(e, EAGAIN),
                }
            }
            Op::Reserve(a, n) => {
                let end = &mut ends[usize::from(a)];
                if end.rooms.len() == 2 {
                    continue;
                }
                *made += 1;
                match side(a).reserve(n) {
                    Ok(mut room) => {
                        let content = bytes(end.made ^ 0x5555, room.len);
                        end.made += room.len;
                        room.fill(&content);
                        end.rooms.push((room, content));
                    }
                    Err(e) => prop_assert_eq!(e, EAGAIN),
                }
            }
            Op::Commit(a, first, part) => {
                let i = usize::from(a);
                let at = if first { 0 } else { ends[i].rooms.len().wrapping_sub(1) };
                let Some((room, content)) = ends[i].rooms.get_mut(at) else { continue };
                // Nobody else has written there.
                prop_assert!(room.bytes() == *content);
                let n = room.len * part / 256;
                *made += 1;
                match side(a).commit(room, n) {
                    Ok(sent) => {
                        prop_assert!(sent <= n);
                        let rest = content.split_off(sent);
                        let sent_bytes = core::mem::replace(content, rest);
                        if sent == n {
                            ends[i].rooms.remove(at);
                        }
                        ends[1 - i].stream.extend(sent_bytes);
                    }
                    Err(e) => prop_assert_eq!(e, EAGAIN),
                }
            }
            Op::Look(a, min) => {
                let end = &mut ends[usize::from(a)];
                if end.view.is_some() {
                    continue;
                }
                *made += 1;
                match side(a).look(min) {
                    Ok(view) => {
                        let seen = view.bytes();
                        prop_assert!(!seen.is_empty() && seen.len() <= end.stream.len());
                        prop_assert!(seen.iter().eq(end.stream.iter().take(seen.len())));
                        end.view = Some((view, seen, 0));
                    }
                    Err(e) => prop_assert_eq!(e, EAGAIN),
                }
            }
            Op::Release(a, part) => {
                let end = &mut ends[usize::from(a)];
                let Some((mut view, seen, read)) = end.view.take() else { continue };
                prop_assert!(view.bytes() == seen);
                let n = view.len * part / 256;
                *made += 1;
                prop_assert_eq!(side(a).release(&mut view, n), Ok(()));
                end.stream.drain(..n.saturating_sub(read));
            }
            Op::Attach => {
                if !attached && pair.both(|s| s.ep.state() == State::Eligible) && !left {
                    pair.attach(RING);
                    attached = true;
                }
            }
            // Else hardly any connection comes to a ring.
            Op::Rewind(_) | Op::Echo(_) if !attached => {}
            // What a release has read and the peer has not sent anew has to come before the connection can leave once more: with a peer
            // that never does its part that ends in a reset.
            Op::Rewind(a) | Op::Cut(a) if slow && side(a).ep.rx_skip.get().is_some() => {}
            Op::Rewind(a) => {
                leave::retire(side(a).fd, Reason::Async);
                left = true;
            }
            Op::Cut(a) => {
                leave::retire(side(a).fd, Reason::Option);
                left = true;
            }
            Op::Echo(a) => {
                leave::sending_side(side(a).fd, Reason::Splice);
                left = true;
            }
            Op::Pass(us) => Simulated::pass(u64::from(us) * 1000),
        }
        left |= attached && pair.both(|s| s.ep.tx_phase.get() == TxPhase::Down);
    }
    for a in [true, false] {
        for (room, _) in &mut ends[usize::from(a)].rooms {
            let _ = side(a).commit(room, 0);
        }
        if let Some((mut view, _, _)) = ends[usize::from(a)].view.take() {
            prop_assert_eq!(side(a).release(&mut view, 0), Ok(()));
        }
    }
    // Nothing comes in one round where a peer does its part behind this one's receive.
    let mut quiet = 0;
    while quiet < 3 {
        let mut idle = true;
        for a in [true, false] {
            let end = &mut ends[usize::from(a)];
            if let Ok(got) = side(a).recv(RING) {
                prop_assert!(got.len() <= end.stream.len());
                idle &= got.is_empty();
                let expected: Vec<u8> = end.stream.drain(..got.len()).collect();
                prop_assert!(got == expected);
            }
        }
        quiet = if idle { quiet + 1 } else { 0 };
    }
    prop_assert_eq!([ends[0].stream.len(), ends[1].stream.len()], [0, 0]);
    pair.close();
    Ok(())
}

/// The simulated kernel keeps the memory of each connection, gigabytes for half a million calls: more are made by several processes.
/// ENGINE_CALLS says how many calls are to be made at least; without it, as many as come of some hundred sequences.
#[test]
fn posix_calls_and_those_in_place_make_one_stream() {
    let wanted: u64 = std::env::var("ENGINE_CALLS").ok().and_then(|n| n.parse().ok()).unwrap_or(0);
    let made = Cell::new(0);
    let config = cases(3);
    let RngSeed::Fixed(first) = config.rng_seed else { unreachable!("it is chosen") };
    let sequence = (any::<bool>(), prop::collection::vec(op(), 0..150));
    // A runner runs once.
    for seed in (0..).map(|i| first.wrapping_add(i)) {
        let mut runner = TestRunner::new(ProptestConfig { rng_seed: RngSeed::Fixed(seed), ..config.clone() });
        let before = made.get();
        let outcome = runner.run(&sequence, |(slow, ops)| {
            let mut here = made.get();
            let outcome = run(slow, &ops, &mut here);
            made.set(here);
            outcome
        });
        match outcome {
            Ok(()) => {}
            Err(TestError::Fail(why, (slow, ops))) => panic!("ENGINE_SEED={seed}: {why}\nslow: {slow}\n{ops:#?}"),
            Err(TestError::Abort(why)) => panic!("{why}"),
        }
        assert!(made.get() > before);
        if made.get() >= wanted {
            break;
        }
    }
    println!("{} calls", made.get());
}
