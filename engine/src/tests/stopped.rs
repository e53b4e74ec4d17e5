//! Processes that are stopped with room and views in their hands, at any call that they make of the kernel: the others go on where
//! they can, and nothing is lost and nothing comes twice, whether the process goes on then or is killed.

use super::forks::{NEIGHBOURS, forked};
use super::inplace::{filled, keep_apart};
use super::*;
use crate::inplace::Spans;
use crate::leave;
use crate::sim::process::Process;
use crate::sim::world::Side;
use libc::EAGAIN;
use shmring::family::Reason;
use std::sync::{Arc, Mutex};

/// Bytes that are sent, seen, and of those released.
const SENT: usize = 5_000;
const RELEASED: usize = 4_000;

/// Where the bytes are when the look ends.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Lie {
    OnRing,
    OnLifeline,
    /// The peer has yet to send them anew.
    Nowhere,
}

/// A connection whose accepted end a child holds as well, which looks at all of it.
fn looked_at(world: &World, lie: Lie) -> (Pair, Process, Spans) {
    let (pair, child) = forked(world, NEIGHBOURS[0]);
    keep_apart(&pair);
    Simulated::set_nonblocking(pair.b.fd);
    assert_eq!(pair.a.send(&bytes(0, SENT)), Ok(SENT));
    let view = child.run(|| {
        keep_apart(&pair);
        let view = pair.b.look(1).unwrap();
        assert!(view.is_on_ring() && view.len == SENT);
        if lie != Lie::OnRing {
            leave::retire(pair.b.fd, Reason::Async);
            assert_eq!(pair.b.ep.rx_phase.get(), RxPhase::Down);
        }
        view
    });
    if lie == Lie::OnLifeline {
        assert_eq!(pair.a.recv(9), Err(EAGAIN));
        assert_eq!(on_kernel(&pair), SENT as u64);
    }
    (pair, child, view)
}

/// What comes, as long as something does.
fn drain(side: Side) -> Vec<u8> {
    let mut got = Vec::new();
    loop {
        match side.recv(1_500) {
            Ok(more) => got.extend(more),
            Err(e) => {
                assert_eq!(e, EAGAIN);
                return got;
            }
        }
    }
}

/// All that comes, with the peer doing its part.
fn rest(pair: &Pair) -> Vec<u8> {
    let mut got = drain(pair.b);
    for _ in 0..2 {
        assert_eq!(pair.a.recv(9), Err(EAGAIN));
        got.extend(drain(pair.b));
    }
    got
}

const LIES: [Lie; 3] = [Lie::OnRing, Lie::OnLifeline, Lie::Nowhere];

/// Calls of a release at which it is stopped: all of them, and some more.
const CALLS: u32 = 24;

/// A release that is stopped for good has been made, or not, and that is settled when its process is killed.
#[test]
fn a_release_that_is_stopped_and_killed_was_made_or_was_not() {
    let world = World::new();
    for lie in LIES {
        let (mut made, mut not) = (0, 0);
        for calls in 0..CALLS {
            let (pair, child, view) = looked_at(&world, lie);
            let mut view = view;
            let released = child.run_for(calls, || pair.b.release(&mut view, RELEASED));
            let mut got = drain(pair.b);
            child.kill();
            got.extend(rest(&pair));
            let from = SENT - got.len();
            assert!(from == 0 || from == RELEASED, "{lie:?} {calls}: {from}");
            assert!(got == bytes(from, SENT - from), "{lie:?} {calls}");
            assert!(released.is_none() || from == RELEASED, "{lie:?} {calls}");
            if from == 0 {
                not += 1
            } else {
                made += 1
            }
            // The connection goes on, with all of its room.
            assert_eq!(pair.a.send(&bytes(7, RING / 2)), Ok(RING / 2));
            assert!(rest(&pair) == bytes(7, RING / 2), "{lie:?} {calls}");
            pair.close();
        }
        // On a ring with nobody who sleeps it makes no call.
        assert!(made > 0 && (not > 0 || lie == Lie::OnRing), "{lie:?}: {made} {not}");
    }
}

/// Another process of the family reads meanwhile, and then it goes on.
#[test]
fn a_release_that_is_stopped_and_goes_on_reads_what_others_have_not() {
    let world = World::new();
    for lie in LIES {
        let mut stopped = 0;
        for calls in 0..CALLS {
            let (pair, child, view) = looked_at(&world, lie);
            let mut view = view;
            let read = Arc::new(Mutex::new(Vec::new()));
            let others = read.clone();
            let across = child.run_across(
                calls,
                || {
                    loop {
                        match pair.b.release(&mut view, RELEASED) {
                            // Another process has the direction.
                            Err(EAGAIN) => {}
                            r => break assert_eq!(r, Ok(())),
                        }
                    }
                },
                move || others.lock().unwrap().extend(pair.b.recv(1_500).unwrap_or_default()),
            );
            stopped += u32::from(across);
            let got = core::mem::take(&mut *read.lock().unwrap());
            let rest = rest(&pair);
            // They have read from the beginning, or from behind what was released by then.
            let from = if got.is_empty() || got[..] == bytes(0, got.len())[..] { 0 } else { RELEASED };
            assert!(got == bytes(from, got.len()), "{lie:?} {calls}");
            let at = RELEASED.max(from + got.len());
            assert!(rest == bytes(at, SENT - at), "{lie:?} {calls}: {} {}", got.len(), rest.len());
            child.kill();
            pair.close();
        }
        assert!(stopped > 1 || lie == Lie::OnRing, "{lie:?}");
    }
}

/// One that is stopped before, in the middle of and behind its look keeps the room that it looks at, and no bytes.
#[test]
fn who_is_stopped_with_a_view_keeps_its_room_and_nothing_else() {
    let world = World::new();
    let mut looked = 0;
    for calls in 0..CALLS {
        let (pair, child) = forked(&world, NEIGHBOURS[0]);
        Simulated::set_nonblocking(pair.b.fd);
        let mut sent = 0;
        while let Ok(n) = pair.a.send(&bytes(sent, 4_000)) {
            sent += n;
        }
        let view = child.run_for(calls, || pair.b.look(1).unwrap());
        let mut got = drain(pair.b);
        if let Some(view) = view {
            looked += 1;
            assert!(view.is_on_ring() && got.len() == sent);
            // Its bytes stay.
            assert_eq!(pair.a.send(b"x"), Err(EAGAIN));
            assert!(view.bytes() == bytes(0, view.len));
        }
        // It goes on, and ends its look; or is killed.
        match view.filter(|_| calls % 2 == 0) {
            Some(mut view) => child.run(|| assert_eq!(pair.b.release(&mut view, 4_000), Ok(()))),
            None => child.kill(),
        }
        got.extend(drain(pair.b));
        assert!(got == bytes(0, sent), "{calls}: {} {sent}", got.len());
        assert_eq!(pair.a.send(&bytes(sent, RING / 2)), Ok(RING / 2));
        assert!(drain(pair.b) == bytes(sent, RING / 2), "{calls}");
        if Process::others().contains(&child) {
            child.kill();
        }
        pair.close();
    }
    assert!(looked > 1);
}

/// A reservation or commit that is stopped, and then killed: what was committed is sent whole or not at all, and others send.
#[test]
fn who_is_stopped_with_room_sends_all_of_it_or_nothing() {
    let world = World::new();
    let (mut all, mut nothing) = (0, 0);
    for calls in 0..CALLS {
        for commits in [false, true] {
            let (pair, child) = forked(&world, NEIGHBOURS[0]);
            Simulated::set_nonblocking(pair.b.fd);
            let done = if commits {
                let mut room = child.run(|| filled(pair.b, 0, 3_000));
                assert!(room.is_on_ring());
                child.run_for(calls, || assert_eq!(pair.b.commit(&mut room, 3_000), Ok(3_000)))
            } else {
                child.run_for(calls, || assert!(pair.b.reserve(3_000).is_ok()))
            };
            let behind = pair.b.send(b"behind");
            child.kill();
            let behind = if behind == Err(EAGAIN) { pair.b.send(b"behind") } else { behind };
            assert_eq!(behind, Ok(6), "{calls}");
            let got = drain(pair.a);
            let n = got.len() - 6;
            assert!(n == 0 || commits && n == 3_000, "{calls}: {n}");
            assert!(got == [bytes(0, n), b"behind".to_vec()].concat(), "{calls}");
            assert!(!commits || done.is_none() || n == 3_000, "{calls}");
            if n == 0 {
                nothing += 1
            } else {
                all += 1
            }
            pair.close();
        }
    }
    assert!(all > 0 && nothing > 0);
}
