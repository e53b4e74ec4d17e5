//! Chunks that are sent by reference, wherever the connection, the pool and the other side go meanwhile.

use super::*;
use crate::inplace::chunk::{Chunk, end_pool, pool};
use crate::sim::world::{Neighbour, Side};
use crate::{chunks, leave};
use core::sync::atomic::Ordering::Relaxed;
use libc::{EAGAIN, EBUSY, EINVAL};
use shmring::family::Reason;

/// Bytes of a chunk in these tests.
pub const LEN: usize = 8_192;

/// Chunks of which one receiver may have all; their pool goes with it.
pub struct Chunks {
    pub pool: i32,
    count: usize,
}

impl Chunks {
    pub fn new(count: usize) -> Chunks {
        let pool = pool(LEN, count, count) as i32;
        assert!(pool >= 0);
        Chunks { pool, count }
    }

    pub fn take(&self) -> Chunk {
        Chunk::take(self.pool).expect("a chunk that is free")
    }

    /// How many are free.
    pub fn free(&self) -> usize {
        let taken: Vec<Chunk> = core::iter::from_fn(|| Chunk::take(self.pool).ok()).collect();
        let n = taken.len();
        taken.into_iter().for_each(|chunk| assert_eq!(chunk.drop(), Ok(())));
        n
    }

    /// Sends a message of `n` bytes in a chunk. Whether it went by reference.
    pub fn send(&self, to: Side, from: usize, n: usize) -> bool {
        let mut chunk = self.take();
        chunk.fill(&bytes(from, n));
        let before = crate::inplace::COUNTS.referred.load(Relaxed);
        assert_eq!(to.send_chunk(&mut chunk, n), Ok(n));
        crate::inplace::COUNTS.referred.load(Relaxed) > before
    }

    /// A test has failed.
    pub fn give_up(self) {
        let _ = end_pool(self.pool);
    }

    /// All are back, and the pool ends.
    pub fn end(self) {
        assert_eq!(self.free(), self.count, "chunks are not back");
        assert_eq!(end_pool(self.pool), 0);
    }
}

/// The peer's user is this one, in whatever lab the tests run.
pub fn introduce(pair: &Pair) {
    for side in [pair.a, pair.b] {
        side.ep.chan().expect("a channel").peer_uid.store(rendezvous::uid::own(), Relaxed);
    }
}

/// The receiver has met the pool.
pub fn meet(from: Side, to: Side, pool: &Chunks) {
    for _ in 0..4 {
        let referred = pool.send(from, 0, LEN);
        let view = to.look(1).unwrap();
        assert_eq!(view.bytes(), bytes(0, view.len));
        assert_eq!(to.release(&mut { view }, view.len), Ok(()));
        assert_eq!(to.recv(LEN), if view.len == LEN { Err(EAGAIN) } else { Ok(bytes(view.len, LEN - view.len)) });
        if referred {
            return;
        }
    }
    panic!("the receiver takes no chunks");
}

pub fn met(world: &World, count: usize) -> (Pair, Chunks) {
    let pair = warmed(world);
    introduce(&pair);
    let pool = Chunks::new(count);
    meet(pair.a, pair.b, &pool);
    (pair, pool)
}

#[test]
fn a_chunk_is_looked_at_where_it_was_written_kept_and_passed_on() {
    let world = World::new();
    let (pair, pool) = met(&world, 4);
    assert!(pool.send(pair.a, 7, LEN));
    let mut view = pair.b.look(LEN).unwrap();
    assert_eq!(view.bytes(), bytes(7, LEN));
    let kept = pair.b.keep_chunk(&mut view).unwrap();
    assert_eq!((pool.free(), kept.bytes()), (3, bytes(7, LEN)));
    pair.close();
    assert_eq!(kept.drop(), Ok(()));
    pool.end();
}

/// Rows keep an identity that is never used again.
#[test]
fn a_pool_that_has_the_number_of_one_that_was_ended_is_another_one() {
    let world = World::new();
    let (one, pool) = met(&world, 4);
    let number = pool.pool;
    pool.end();
    let other = warmed(&world);
    introduce(&other);
    let pool = Chunks::new(4);
    assert_eq!(pool.pool, number);
    // Another receiver has the first edge of the new pool.
    meet(other.a, other.b, &pool);
    for i in 0..8 {
        pool.send(one.a, 1_000 * i, LEN);
        assert_eq!(one.b.recv(LEN), Ok(bytes(1_000 * i, LEN)));
    }
    assert!(pool.send(other.a, 5, LEN));
    assert_eq!(other.b.recv(LEN), Ok(bytes(5, LEN)));
    one.close();
    other.close();
    pool.end();
}

#[test]
fn a_chunk_that_was_sent_or_dropped_is_nobodys_whatever_copies_there_are_of_it() {
    let world = World::new();
    let (pair, pool) = met(&world, 1);
    let one = pool.take();
    let (mut copy, again) = (one, one);
    assert_eq!(one.drop(), Ok(()));
    let two = pool.take();
    assert_eq!(two.at, copy.at);
    assert_eq!(pair.a.send_chunk(&mut copy, LEN), Err(EINVAL));
    assert_eq!(again.drop(), Err(EINVAL));
    assert!(matches!(Chunk::take(pool.pool), Err(EAGAIN)));
    assert_eq!(end_pool(pool.pool), -1);
    assert_eq!(host::real::errno(), EBUSY);
    assert_eq!(two.drop(), Ok(()));
    pair.close();
    pool.end();
}

/// A look for more than is there shows nothing, and copies nothing.
#[test]
fn a_look_shows_no_less_than_it_was_asked_for() {
    let world = World::new();
    let (pair, pool) = met(&world, 4);
    let filled = chunks::stretch::FILLED.load(Relaxed);
    assert!(pool.send(pair.a, 0, 5_000));
    let ring = |min| crate::rx::View::of(pair.b.ep, pair.b.ep.chan().unwrap(), pair.b.fd, min);
    assert!(ring(8_000).is_none());
    assert_eq!(pair.a.send(b"head"), Ok(4));
    assert!(ring(5_005).is_none());
    assert_eq!(chunks::stretch::FILLED.load(Relaxed), filled);
    // Of both, as much as was asked for.
    let mut view = pair.b.look(5_002).unwrap();
    assert_eq!(view.bytes()[..5_000], bytes(0, 5_000));
    assert!(view.len >= 5_002);
    let n = view.len;
    assert_eq!(pair.b.release(&mut view, n), Ok(()));
    pair.close();
    pool.end();
}

/// What is open and not published is no lie, and what was published before is filled.
#[test]
fn a_receiver_fills_what_is_published_while_the_sender_is_about_to_publish_more() {
    for before in [0, 1, 3] {
        let world = World::new();
        let (pair, pool) = met(&world, 4);
        for i in 0..before {
            assert!(pool.send(pair.a, i * LEN, LEN));
        }
        let b = pair.b;
        let filled = chunks::stretch::FILLED.load(Relaxed);
        // As a receiver does that leaves.
        Simulated::when_open(Box::new(move || {
            let chan = b.ep.chan().unwrap();
            // Not without the direction: another thread may be copying there.
            assert_eq!(crate::rx::fill(b.ep, chan, false), before == 0);
            assert!(crate::rx::fill(b.ep, chan, true));
        }));
        assert!(pool.send(pair.a, before * LEN, LEN));
        assert_eq!(chunks::stretch::FILLED.load(Relaxed) - filled, (before * LEN) as u64);
        assert_eq!(pool.free(), 3);
        // Then it leaves, and so nothing is left to be filled.
        assert!(leave::quit(b.fd, Reason::Passed, leave::Unread::Rewind));
        assert_eq!(pair.a.send(b"more"), Ok(4));
        let mut got = Vec::new();
        while got.len() < (before + 1) * LEN + 4 {
            got.extend(pair.b.recv(99_999).expect("the stream goes on"));
        }
        assert!(got == [bytes(0, (before + 1) * LEN), b"more".to_vec()].concat());
        pair.close();
        pool.end();
    }
}

/// A sender sends again and again into what the receiver has closed: no call takes part in that.
#[test]
fn a_fill_does_not_chase_the_sender() {
    let world = World::new();
    let (pair, pool) = met(&world, 8);
    // Around the ring several times, with as many holes as there may be.
    let mut at = 0;
    for _ in 0..40 {
        for i in 0..4 {
            assert!(pool.send(pair.a, at + i * 5_000, 5_000));
        }
        assert!(crate::rx::fill(pair.b.ep, pair.b.ep.chan().unwrap(), true));
        for i in 4..8 {
            assert!(pool.send(pair.a, at + i * 5_000, 5_000));
        }
        assert_eq!(pair.b.recv(40_000), Ok(bytes(at, 40_000)));
        at += 40_000;
    }
    pair.close();
    pool.end();
}

/// Who closes the entry gives the chunk back.
#[test]
fn chunks_come_back_that_are_published_while_the_receiver_closes() {
    for at in [Simulated::before_open as fn(Closes), Simulated::when_open] {
        closes_while_one_is_sent(at);
    }
}

type Closes = Box<dyn FnOnce() + Send>;

fn closes_while_one_is_sent(at: fn(Closes)) {
    let world = World::new();
    // The channel stays.
    let lane = world.lane(RING, Neighbour::Own).unwrap();
    let (stays, pair) = (world.pair(), world.pair());
    assert!(stays.attach_in(lane) && pair.attach_in(lane));
    introduce(&stays);
    warm(&stays);
    warm(&pair);
    let pool = Chunks::new(4);
    meet(pair.a, pair.b, &pool);
    assert!(pool.send(pair.a, 0, LEN));
    let b = pair.b;
    at(Box::new(move || b.close()));
    let mut chunk = pool.take();
    let _ = pair.a.send_chunk(&mut chunk, LEN);
    let _ = chunk.drop();
    assert_eq!(pool.free(), 4);
    pair.a.close();
    // And so is what lies unread when the receiver closes.
    assert!(pool.send(stays.a, 0, LEN));
    stays.b.close();
    assert_eq!(pool.free(), 4);
    stays.a.close();
    pool.end();
}

/// An entry that is open does not say that the chunk is not back.
#[test]
fn a_sender_does_not_send_the_bytes_of_the_next_message_for_those_that_were_taken_from_a_receiver_that_ended() {
    let world = World::new();
    let (pair, pool) = met(&world, 2);
    assert!(pool.send(pair.a, 0, LEN));
    // The process that took chunks ends, and another one has the socket.
    let (_, edge) = chunks::offers::theirs(pair.b.ep.chan().unwrap(), 0).expect("an edge");
    edge.end();
    let next = [pool.take(), pool.take()];
    next.iter().for_each(|chunk| chunk.fill(&[0xAA; LEN]));
    let before = on_kernel(&pair);
    let _ = pair.a.shutdown(SHUT_WR);
    // It was to be repeated there.
    assert_eq!(on_kernel(&pair), before);
    assert_eq!(pair.a.ep.tx_phase.get(), TxPhase::Down);
    assert!(Simulated::recv(pair.b.fd, LEN, true).is_err());
    next.into_iter().for_each(|chunk| assert_eq!(chunk.drop(), Ok(())));
    pair.close();
    pool.end();
}

/// Who was killed between the two has sent nothing.
#[test]
fn a_hole_that_was_opened_and_not_published_is_none_for_what_comes_there() {
    let world = World::new();
    let (pair, pool) = met(&world, 1);
    let chan = pair.a.ep.chan().unwrap();
    let number = pair.a.ep.slot.load(Relaxed) as usize;
    let (slot, table, dir) = (chan.slot(number), chan.holes(number), chan.role().tx());
    let opened = std::sync::Arc::new(std::sync::Mutex::new(None));
    let seen = opened.clone();
    Simulated::when_open(Box::new(move || {
        let holes = table[dir].iter().filter_map(shmring::hole::Entry::get);
        *seen.lock().unwrap() = holes.last();
    }));
    assert!(pool.send(pair.a, 0, LEN));
    assert_eq!(pair.b.recv(LEN), Ok(bytes(0, LEN)));
    let hole = opened.lock().unwrap().take().expect("a hole");
    // The same chunk, as one that is lent now.
    let chunk = pool.take();
    chunk.fill(&[0xAA; LEN]);
    let tail = pair.a.ep.tx_tail.load(Relaxed);
    let open = shmring::hole::Hole { at: tail, generation: hole.generation.wrapping_add(1), ..hole };
    table[dir][0].open(&open);
    slot.producer[dir].holes.store(tail.plus(LEN as u64).claim(), Relaxed);
    assert_eq!(pair.a.send(&bytes(9, LEN)), Ok(LEN));
    assert_eq!(pair.b.recv(LEN), Ok(bytes(9, LEN)));
    assert_eq!(chunk.drop(), Ok(()));
    pair.close();
    pool.end();
}

/// Places become free again, and who finds none comes again.
#[test]
fn the_places_of_receivers_that_have_ended_are_given_to_others() {
    let world = World::new();
    let pool = Chunks::new(2);
    for _ in 0..70 {
        let pair = warmed(&world);
        introduce(&pair);
        Simulated::pass(10_000_000);
        let mut referred = false;
        for _ in 0..6 {
            Simulated::pass(10_000_000);
            referred |= pool.send(pair.a, 0, LEN);
            let mut view = pair.b.look(1).unwrap();
            let n = view.len;
            assert_eq!(pair.b.release(&mut view, n), Ok(()));
            while pair.b.recv(LEN).is_ok() {}
        }
        assert!(referred);
        pair.close();
    }
    pool.end();
}
