//! Any mix of POSIX calls, those in place and those that keep, at any byte, with chunks, wherever the connection goes meanwhile, is one
//! stream.

use super::chunks::{Chunks, LEN, introduce, meet};
use super::inplace::keep_apart;
use super::kept::Keeper;
use super::*;
use crate::inplace::Spans;
use crate::inplace::chunk::Chunk;
use crate::leave;
use crate::sim::world::Side;
use core::sync::atomic::Ordering::Relaxed;
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
    /// A chunk, of which so much is sent; or what is left of the last one.
    Chunk(bool, usize),
    Look(bool, usize),
    Release(bool, usize),
    /// The view becomes a chunk.
    KeepView(bool),
    /// The first of those is dropped, or sent on.
    Drop(bool, bool),
    /// Reads and keeps at least and at most so much.
    Keep(bool, usize, usize),
    Give(bool, usize),
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
        6 => (end, LEN / 4..LEN + 1).prop_map(|(e, n)| Op::Chunk(e, n)),
        8 => (end, 1..200usize).prop_map(|(e, n)| Op::Look(e, n)),
        8 => (end, 0..257usize).prop_map(|(e, n)| Op::Release(e, n)),
        3 => end.prop_map(Op::KeepView),
        3 => (end, any::<bool>()).prop_map(|(e, on)| Op::Drop(e, on)),
        6 => (end, 1..300usize, 300..RING / 2).prop_map(|(e, l, m)| Op::Keep(e, l, m)),
        6 => (end, 1..RING / 2).prop_map(|(e, n)| Op::Give(e, n)),
        3 => Just(Op::Attach),
        1 => end.prop_map(Op::Rewind),
        1 => end.prop_map(Op::Cut),
        1 => end.prop_map(Op::Echo),
        1 => (0u16..100).prop_map(Op::Pass),
    ]
}

/// What a program looks at, what lay there, and how many bytes it has received since.
struct View {
    view: Spans,
    seen: Vec<u8>,
    read: usize,
}

/// One end.
#[derive(Default)]
struct End {
    /// What it has reserved, and what is in it.
    rooms: Vec<(Spans, Vec<u8>)>,
    view: Option<View>,
    keeper: Keeper,
    /// Bytes that it has received since it last kept some on the ring.
    received: usize,
    /// Where its chunks are from, one of which was not sent to the end, and what is in that.
    pool: Option<Chunks>,
    chunk: Option<(Chunk, Vec<u8>)>,
    /// Chunks that were views.
    held: VecDeque<(Chunk, Vec<u8>)>,
    /// Bytes that were sent to it, and not received.
    stream: VecDeque<u8>,
    made: usize,
}

impl End {
    /// Who receives beside a view that is a copy must know of it.
    fn may_receive(&self) -> bool {
        self.view.as_ref().is_none_or(|v| v.view.is_on_ring())
    }

    /// These bytes were received, by a call that has nothing to do with the view.
    fn got(&mut self, bytes: &[u8]) -> Result<(), TestCaseError> {
        if let Some(view) = &mut self.view {
            view.read += bytes.len();
        }
        prop_assert!(bytes.len() <= self.stream.len());
        prop_assert!(self.stream.drain(..bytes.len()).eq(bytes.iter().copied()));
        Ok(())
    }

    /// So many bytes of the view are received, but for those that were meanwhile.
    fn read(&mut self, n: usize, before: usize) {
        let n = n.saturating_sub(before);
        self.received += n;
        self.stream.drain(..n);
    }

    /// Nobody has written to what it has.
    fn check(&self) -> bool {
        self.keeper.check() && self.held.iter().all(|(chunk, content)| chunk.bytes() == *content)
    }
}

/// Sends what is in a chunk, or some of it. What is left of it.
fn send_chunk(
    side: Side,
    (mut chunk, mut content): (Chunk, Vec<u8>),
    peer: &mut End,
) -> Result<Option<(Chunk, Vec<u8>)>, TestCaseError> {
    match side.send_chunk(&mut chunk, content.len()) {
        Ok(sent) => {
            prop_assert!(sent <= content.len());
            peer.stream.extend(content.drain(..sent));
        }
        Err(e) => prop_assert_eq!(e, EAGAIN),
    }
    Ok(if content.is_empty() { None } else { Some((chunk, content)) })
}

/// `chunks`: the connection begins on the rings, and each end takes chunks of the other's.
fn run(slow: bool, chunks: bool, ops: &[Op], made: &mut u64) -> Result<(), TestCaseError> {
    let world = World::new();
    let pair = world.pair();
    if slow {
        keep_apart(&pair);
    }
    let mut ends = [End::default(), End::default()];
    if chunks {
        pair.attach(RING);
        introduce(&pair);
        warm(&pair);
        for (end, (from, to)) in ends.iter_mut().zip([(pair.b, pair.a), (pair.a, pair.b)]) {
            let pool = Chunks::new(5);
            meet(from, to, &pool);
            end.pool = Some(pool);
        }
    }
    let outcome = mix(&pair, slow, ops, &mut ends, made).and_then(|()| come_to_the_end(&pair, &mut ends));
    if outcome.is_ok() {
        pair.close();
        ends.into_iter().filter_map(|end| end.pool).for_each(Chunks::end);
    } else {
        // There are not many numbers for pools, and the sequence will be tried again.
        pair.close();
        for end in ends {
            end.chunk.into_iter().chain(end.held).for_each(|(chunk, _)| _ = chunk.drop());
            end.pool.into_iter().for_each(Chunks::give_up);
        }
        world.abandon();
    }
    outcome
}

/// Plays `ops` against two queues of bytes. `slow`: who leaves does not wait until the peer has done its part. `made` counts the calls
/// that move bytes, or are about memory for them.
fn mix(pair: &Pair, slow: bool, ops: &[Op], ends: &mut [End; 2], made: &mut u64) -> Result<(), TestCaseError> {
    let (mut attached, mut left) = (pair.both(|s| s.ep.state() == State::Attached), false);
    let side = move |a: bool| if a { pair.a } else { pair.b };
    for &op in ops {
        *made += 1;
        match op {
            Op::Send(a, n) => {
                let i = usize::from(a);
                let message = bytes(ends[i].made, n);
                ends[i].made += n;
                match side(a).send(&message) {
                    Ok(n) => ends[1 - i].stream.extend(&message[..n]),
                    Err(e) => prop_assert_eq!(e, EAGAIN),
                }
            }
            Op::Recv(a, n) if ends[usize::from(a)].may_receive() => {
                let end = &mut ends[usize::from(a)];
                match side(a).recv(n) {
                    Ok(got) => {
                        end.received += got.len();
                        end.got(&got)?;
                    }
                    Err(e) => prop_assert_eq!(e, EAGAIN),
                }
            }
            Op::Reserve(a, n) if ends[usize::from(a)].rooms.len() < 2 => {
                let end = &mut ends[usize::from(a)];
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
            Op::Commit(a, first, part) if !ends[usize::from(a)].rooms.is_empty() => {
                let i = usize::from(a);
                let at = if first { 0 } else { ends[i].rooms.len() - 1 };
                let (room, content) = &mut ends[i].rooms[at];
                // Nobody else has written there.
                prop_assert!(room.bytes() == *content);
                let n = room.len * part / 256;
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
            Op::Chunk(a, n) => {
                let [end, peer] = both(ends, a);
                let content = bytes(end.made ^ 0x3333, n);
                let taken = end.pool.as_ref().and_then(|pool| Chunk::take(pool.pool).ok());
                let fresh = if end.chunk.is_none() { taken } else { None };
                if let Some(taken) = taken.filter(|_| fresh.is_none()) {
                    prop_assert_eq!(taken.drop(), Ok(()));
                }
                let chunk = end.chunk.take().or_else(|| {
                    let chunk = fresh?;
                    chunk.fill(&content);
                    end.made += n;
                    Some((chunk, content))
                });
                end.chunk = match chunk {
                    Some(chunk) => send_chunk(side(a), chunk, peer)?,
                    None => None,
                };
            }
            Op::Look(a, min) if ends[usize::from(a)].view.is_none() => {
                let end = &mut ends[usize::from(a)];
                match side(a).look(min) {
                    Ok(view) => {
                        let seen = view.bytes();
                        prop_assert!(!seen.is_empty() && seen.len() <= end.stream.len());
                        prop_assert!(seen.iter().eq(end.stream.iter().take(seen.len())));
                        end.view = Some(View { view, seen, read: 0 });
                    }
                    Err(e) => prop_assert_eq!(e, EAGAIN),
                }
            }
            Op::Release(a, part) => {
                let end = &mut ends[usize::from(a)];
                let Some(View { mut view, seen, read }) = end.view.take() else { continue };
                prop_assert!(view.bytes() == seen);
                let n = view.len * part / 256;
                prop_assert_eq!(side(a).release(&mut view, n), Ok(()));
                end.read(n, read);
            }
            Op::KeepView(a) if ends[usize::from(a)].held.len() < 3 => {
                let end = &mut ends[usize::from(a)];
                let Some(View { mut view, seen, read }) = end.view.take() else { continue };
                match side(a).keep_chunk(&mut view) {
                    Ok(chunk) => {
                        prop_assert!(chunk.bytes() == seen);
                        end.read(seen.len(), read);
                        end.held.push_back((chunk, seen));
                    }
                    Err(e) => return Err(TestCaseError::fail(format!("a view that is not kept: {e}"))),
                }
            }
            Op::Drop(a, on) => {
                let [end, peer] = both(ends, a);
                let Some(chunk) = end.held.pop_front() else { continue };
                if on {
                    if let Some(rest) = send_chunk(side(a), chunk, peer)? {
                        end.held.push_front(rest);
                    }
                } else {
                    prop_assert_eq!(chunk.0.drop(), Ok(()));
                }
            }
            Op::Keep(a, least, most) if ends[usize::from(a)].may_receive() => {
                let end = &mut ends[usize::from(a)];
                if let Some(got) = end.keeper.keep(side(a), least, most, end.received) {
                    end.received = 0;
                    end.got(&got)?;
                }
            }
            Op::Give(a, n) => ends[usize::from(a)].keeper.give(side(a), n),
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
            _ => *made -= 1,
        }
        left |= attached && pair.both(|s| s.ep.tx_phase.get() == TxPhase::Down);
        prop_assert!(ends.iter().all(End::check));
    }
    Ok(())
}

/// The end that acts, and the other.
fn both(ends: &mut [End; 2], a: bool) -> [&mut End; 2] {
    let [b_end, a_end] = ends;
    if a { [a_end, b_end] } else { [b_end, a_end] }
}

/// All is given back, and everything comes that was sent.
fn come_to_the_end(pair: &Pair, ends: &mut [End; 2]) -> Result<(), TestCaseError> {
    let sides = [pair.b, pair.a];
    for (end, side) in ends.iter_mut().zip(sides) {
        for (room, _) in &mut end.rooms {
            let _ = side.commit(room, 0);
        }
        if let Some(View { mut view, .. }) = end.view.take() {
            prop_assert_eq!(side.release(&mut view, 0), Ok(()));
        }
        for (chunk, content) in end.chunk.take().into_iter().chain(end.held.drain(..)) {
            prop_assert!(chunk.bytes()[..content.len()] == content);
            prop_assert_eq!(chunk.drop(), Ok(()));
        }
    }
    // Nothing comes in one round where a peer does its part behind this one's receive.
    let mut quiet = 0;
    while quiet < 3 {
        let mut idle = true;
        for (end, side) in ends.iter_mut().zip(sides) {
            end.keeper.give(side, usize::MAX);
            if let Ok(got) = side.recv(RING) {
                idle &= got.is_empty();
                end.got(&got)?;
            }
        }
        quiet = if idle { quiet + 1 } else { 0 };
    }
    prop_assert_eq!(ends.each_ref().map(|end| end.stream.len()), [0, 0]);
    Ok(())
}

/// ENGINE_CALLS says how many calls are to be made at least; without it, as many as come of some hundred sequences.
#[test]
fn posix_calls_and_those_in_place_make_one_stream() {
    let wanted: u64 = std::env::var("ENGINE_CALLS").ok().and_then(|n| n.parse().ok()).unwrap_or(0);
    let made = Cell::new(0);
    let config = cases(3);
    let RngSeed::Fixed(first) = config.rng_seed else { unreachable!("it is chosen") };
    let sequence = (any::<bool>(), any::<bool>(), prop::collection::vec(op(), 0..150));
    let referred = || crate::inplace::COUNTS.referred.load(Relaxed);
    let referred_before = referred();
    // A runner runs once.
    for seed in (0..).map(|i| first.wrapping_add(i)) {
        let mut runner = TestRunner::new(ProptestConfig { rng_seed: RngSeed::Fixed(seed), ..config.clone() });
        let before = made.get();
        let outcome = runner.run(&sequence, |(slow, chunks, ops)| {
            let mut here = made.get();
            let outcome = run(slow, chunks, &ops, &mut here);
            made.set(here);
            outcome
        });
        match outcome {
            Ok(()) => {}
            Err(TestError::Fail(why, (slow, chunks, ops))) => {
                panic!("ENGINE_SEED={seed}: {why}\nslow: {slow}, chunks: {chunks}\n{ops:#?}")
            }
            Err(TestError::Abort(why)) => panic!("{why}"),
        }
        assert!(made.get() > before);
        if made.get() >= wanted {
            break;
        }
    }
    let referred = referred() - referred_before;
    println!("{} calls; {referred} bytes by reference", made.get());
    assert!(referred > 0);
}
