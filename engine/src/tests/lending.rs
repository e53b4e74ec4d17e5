//! Who lends to whom: pools that end and begin, edges, places at a desk that are lost, and processes that may make no calls any more.

use super::chunks::{Chunks, LEN, introduce, meet, met};
use super::*;
use crate::inplace::chunk::{Chunk, end_pool};
use crate::kernel::Kernel as _;
use crate::sim::process;
use crate::{chunks, members, own};
use core::sync::atomic::Ordering::Relaxed;
use libc::{EAGAIN, EINVAL};
use std::cell::RefCell;
use std::rc::Rc;

/// A channel knows of so many at a time.
const AT_A_TIME: usize = shmring::layout::POOLS;

#[test]
fn a_place_for_a_pool_in_a_channel_is_used_again_when_that_has_ended() {
    let world = World::new();
    let pair = warmed(&world);
    introduce(&pair);
    for _ in 0..2 * AT_A_TIME + 1 {
        let pool = Chunks::new(2);
        meet(pair.a, pair.b, &pool);
        pool.end();
    }
    // As many as there may be, and one that is copied.
    let all: Vec<Chunks> = (0..AT_A_TIME).map(|_| Chunks::new(2)).collect();
    all.iter().for_each(|pool| meet(pair.a, pair.b, pool));
    let more = Chunks::new(2);
    for _ in 0..4 {
        assert!(!more.send(pair.a, 0, LEN));
        assert_eq!(pair.b.look(1).map(|mut view| pair.b.release(&mut view, LEN)), Ok(Ok(())));
    }
    all.into_iter().for_each(Chunks::end);
    meet(pair.a, pair.b, &more);
    more.end();
    pair.close();
}

#[test]
fn a_receiver_lets_a_pool_go_that_has_ended_when_it_looks() {
    let world = World::new();
    let pair = warmed(&world);
    introduce(&pair);
    let before = Simulated::count();
    let pool = Chunks::new(2);
    meet(pair.a, pair.b, &pool);
    assert!(Simulated::count().1 > before.1);
    pool.end();
    assert_eq!(pair.b.look(1).err(), Some(EAGAIN));
    assert_eq!(Simulated::count(), before);
    pair.close();
}

/// What a peer answers is where it can write anything.
#[test]
fn an_edge_of_another_receiver_is_none_of_a_peer_that_names_it() {
    let world = World::new();
    let (one, pool) = met(&world, 4);
    let other = warmed(&world);
    introduce(&other);
    meet(other.a, other.b, &pool);
    let answer = |pair: &Pair| {
        let chan = pair.a.ep.chan().unwrap();
        &chan.pools(chan.role())[0].answer
    };
    let (own, theirs) = (answer(&one).load(Relaxed), answer(&other).load(Relaxed));
    assert_ne!(own, theirs);
    answer(&one).store(theirs, Relaxed);
    assert!(!pool.send(one.a, 0, LEN));
    assert_eq!(one.b.recv(LEN), Ok(bytes(0, LEN)));
    assert!(pool.send(other.a, 1, LEN));
    assert_eq!(other.b.recv(LEN), Ok(bytes(1, LEN)));
    answer(&one).store(own, Relaxed);
    assert!(pool.send(one.a, 2, LEN));
    assert_eq!(one.b.recv(LEN), Ok(bytes(2, LEN)));
    one.close();
    other.close();
    pool.end();
}

/// At each call of the one, the other thread makes a pool: that is none of what ends.
#[test]
fn a_pool_that_is_made_while_another_ends_is_not_taken_away() {
    let world = World::new();
    let mut calls = 0;
    loop {
        let pool = Chunks::new(2);
        let (made, there) = (Rc::new(RefCell::new(None)), pool.pool);
        let makes = {
            let made = made.clone();
            move || *made.borrow_mut() = Some(Chunks::new(2))
        };
        let came = process::interleaved(calls, move || assert_eq!(end_pool(there), 0), makes);
        let Some(made) = made.take() else {
            assert!(!came);
            break;
        };
        let chunk = made.take();
        chunk.fill(&bytes(5, LEN));
        assert_eq!(chunk.bytes(), bytes(5, LEN));
        assert_eq!(chunk.drop(), Ok(()));
        made.end();
        calls += 1;
    }
    assert!(calls >= 3);
    drop(world);
}

/// Under a system-call filter: nobody is asked whether he lives, and nobody waits for what cannot come.
#[test]
fn a_process_that_may_make_no_calls_lends_nothing_and_waits_for_nothing() {
    let world = World::new();
    let (pair, pool) = met(&world, 1);
    // It is lent, and who has it does not give it back.
    assert!(pool.send(pair.a, 0, LEN));
    members::filtered();
    assert_eq!(Chunk::take_with(pool.pool, 0).err(), Some(EAGAIN));
    assert_eq!(end_pool(pool.pool), -1);
    members::unfiltered();
    assert_eq!(pair.b.recv(LEN), Ok(bytes(0, LEN)));
    assert!(pool.send(pair.a, 3, LEN));
    members::filtered();
    // What lies there is read; the bytes of what comes next are copied.
    assert_eq!(pair.b.recv(LEN), Ok(bytes(3, LEN)));
    assert!(!pool.send(pair.a, 4, LEN));
    assert_eq!(pair.b.recv(LEN), Ok(bytes(4, LEN)));
    members::unfiltered();
    pair.close();
    pool.end();
}

/// A system call of the program's own has closed the descriptor by which the owner knows that a borrower lives.
#[test]
fn a_borrower_that_has_lost_its_place_at_the_desk_passes_nothing_on_and_copies() {
    let world = World::new();
    let (pair, pool) = met(&world, 3);
    assert!(pool.send(pair.a, 0, LEN));
    let mut view = pair.b.look(LEN).unwrap();
    let mut kept = pair.b.keep_chunk(&mut view).unwrap();
    assert!(pool.send(pair.a, 1, LEN));
    let (_, edge) = chunks::offers::theirs(pair.b.ep.chan().unwrap(), 0).expect("an edge");
    let desk = edge.desk_descriptor();
    Simulated::close(desk);
    own::lost(desk);
    assert!(edge.is_lost());
    // The owner has not looked yet: the bytes are there, and are copied.
    let filled = chunks::stretch::FILLED.load(Relaxed);
    assert_eq!(
        pair.b.look(LEN).map(|mut view| (view.bytes(), pair.b.release(&mut view, LEN))),
        Ok((bytes(1, LEN), Ok(())))
    );
    assert_eq!(chunks::stretch::FILLED.load(Relaxed) - filled, LEN as u64);
    // Now it has: what is kept may be another message's.
    Simulated::pass(10_000_000);
    let next = [pool.take(), pool.take(), pool.take()];
    next.iter().for_each(|chunk| chunk.fill(&[0xAA; LEN]));
    assert_eq!(pair.a.send_chunk(&mut kept, LEN), Err(EINVAL));
    assert_eq!(kept.drop(), Ok(()));
    next.into_iter().for_each(|chunk| assert_eq!(chunk.drop(), Ok(())));
    pair.close();
    pool.end();
}

#[test]
fn a_view_that_cannot_be_kept_keeps_no_chunk() {
    let world = World::new();
    let (pair, pool) = met(&world, 1);
    assert!(pool.send(pair.a, 7, LEN));
    let mut view = pair.b.look(LEN).unwrap();
    // Of another connection.
    let other = warmed(&world);
    assert!(other.b.keep_chunk(&mut view).is_err());
    assert_eq!(pair.b.recv(LEN), Ok(bytes(7, LEN)));
    assert_eq!(pool.take().drop(), Ok(()));
    other.close();
    pair.close();
    pool.end();
}
