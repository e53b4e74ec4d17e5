//! Rooms and views, and whoever else uses the connection: other threads that send, and others who get its number.

// `sendfile` takes the program's pointer.
#![allow(unsafe_code)]

use super::inplace::filled;
use super::*;
use crate::inplace::Spans;
use crate::kernel::Kernel as _;
use crate::sim::process::Process;
use crate::{io, leave, lock};
use libc::{EAGAIN, EBADF, EINVAL};
use shmring::family::Reason;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

type Rooms = Arc<Mutex<VecDeque<Spans>>>;

/// Who sends waits for the commits of others for 10 ms in all, and for that long nobody takes the direction from the ring.
#[test]
fn a_send_waits_for_whoever_has_reserved_when_its_turn_comes() {
    let world = World::new();
    let pair = warmed(&world);
    let other = lock::myself() ^ 1;
    let rooms = Arc::new(Mutex::new(VecDeque::new()));
    let keep = move |rooms: &Rooms, from| {
        lock::run_as(other, || rooms.lock().unwrap().push_back(filled(pair.b, from, 1_000)));
    };
    let commit = move |rooms: &Rooms| {
        let mut room = rooms.lock().unwrap().pop_front().unwrap();
        assert!(room.is_on_ring());
        lock::run_as(other, || assert_eq!(pair.b.commit(&mut room, 1_000), Ok(1_000)));
    };
    let on_ring = || assert_eq!(pair.b.ep.tx_phase.get(), TxPhase::Ring);

    // One commits, and another reserves before this one's turn.
    let by_turns = || {
        keep(&rooms, 0);
        let theirs = rooms.clone();
        Simulated::meanwhile(move || {
            commit(&theirs);
            keep(&theirs, 1_000);
        });
        let theirs = rooms.clone();
        Simulated::meanwhile(move || commit(&theirs));
    };
    by_turns();
    assert_eq!(pair.b.send(b"behind"), Ok(6));
    on_ring();
    assert_eq!(pair.a.recv(9_999), Ok([bytes(0, 2_000), b"behind".to_vec()].concat()));

    // In the middle of a long send, which waits for room.
    let seen = Arc::new(Mutex::new(Vec::new()));
    let (got, theirs) = (seen.clone(), rooms.clone());
    Simulated::meanwhile(move || {
        got.lock().unwrap().extend(pair.a.recv(RING).unwrap());
        keep(&theirs, 5);
    });
    let theirs = rooms.clone();
    Simulated::meanwhile(move || commit(&theirs));
    let long = RING + RING / 3;
    assert_eq!(pair.b.send_with(&bytes(0, long), 0), Ok(long));
    on_ring();
    assert!(rooms.lock().unwrap().is_empty());
    let mut got = core::mem::take(&mut *seen.lock().unwrap());
    let first = got.len();
    while let Ok(more) = pair.a.recv(RING) {
        got.extend(more);
    }
    assert!(got == [bytes(0, first), bytes(5, 1_000), bytes(first, long - first)].concat(), "{first} {}", got.len());

    // A file is sent in the same way.
    let file = Simulated::memory_file(c"file", 3_000).unwrap();
    Simulated::write_at(file, &bytes(7, 3_000), 0);
    by_turns();
    let (ep, fd) = (pair.b.ep, pair.b.fd);
    // SAFETY: without an offset.
    let sent = unsafe { io::sendfile(ep, fd, file, core::ptr::null_mut(), 3_000, || unreachable!("on the ring")) };
    assert_eq!(sent, 3_000);
    on_ring();
    assert_eq!(pair.a.recv(9_999), Ok([bytes(0, 2_000), bytes(7, 3_000)].concat()));
    Simulated::close(file);

    // One who keeps reserving does not keep it waiting.
    keep(&rooms, 0);
    for _ in 0..1_000 {
        let theirs = rooms.clone();
        Simulated::meanwhile(move || {
            Simulated::pass(100_000);
            commit(&theirs);
            assert_eq!(pair.a.recv(RING), Ok(bytes(0, 1_000)));
            keep(&theirs, 0);
        });
    }
    let begun = Simulated::now();
    assert_eq!(pair.b.send(b"late"), Ok(4));
    assert!((10_000_000..11_000_000).contains(&(Simulated::now() - begun)));
    Simulated::forget_meanwhile();
    assert_eq!(pair.b.ep.reason.load(core::sync::atomic::Ordering::Relaxed), Reason::Reserved as u32);
    pair.close();
}

/// A copy does not go to the connection that has the number since.
#[test]
fn copies_of_a_connection_that_was_closed_are_nobodys() {
    let world = World::new();
    for on_ring in [false, true] {
        let mut pair = if on_ring { warmed(&world) } else { world.pair() };
        if on_ring {
            // Room on the ring that is not sent there: it is full when the connection leaves it.
            while pair.b.send(&bytes(0, 1_000)).is_ok() {}
            assert!(pair.a.recv(3_000).is_ok());
        }
        assert_eq!(pair.a.send(b"unread"), Ok(6));
        let mut room = filled(pair.b, 0, 9);
        if on_ring {
            leave::retire(pair.b.fd, Reason::Option);
            while pair.b.send(&bytes(0, 1_000)).is_ok() {}
            assert_eq!(pair.b.commit(&mut room, 9), Err(EAGAIN));
        }
        let mut view = pair.b.look(1).unwrap();
        assert!(!room.is_on_ring() && view.len == 6);
        pair.close();
        // Closed, and nobody's yet.
        assert_eq!(pair.b.commit(&mut room, 9), Err(EBADF));
        let other = world.pair();
        assert_eq!(other.a.send(b"not read"), Ok(8));
        for side in [other.a, other.b] {
            pair.b.fd = side.fd;
            assert_eq!(pair.b.commit(&mut room, 9), Err(EBADF));
        }
        assert_eq!(other.b.release(&mut view, 6), Err(EBADF));
        // It is over with that, and the room with this.
        assert_eq!(other.b.release(&mut view, 0), Err(EINVAL));
        assert_eq!(other.b.commit(&mut room, 0), Ok(0));
        assert_eq!((other.a.recv(9), other.b.recv(9)), (Err(EAGAIN), Ok(b"not read".to_vec())));
        other.close();
    }
}

/// What has come of room on a ring still lies there: it is not a forked child's.
#[test]
fn a_copy_is_a_childs_too_and_room_that_was_on_the_ring_is_not() {
    let world = World::new();
    let pair = warmed(&world);
    let mut room = filled(pair.b, 0, 1_000);
    let mut copy = filled(pair.b, 1_000, 1_000);
    assert!(room.is_on_ring() && !copy.is_on_ring());
    leave::retire(pair.b.fd, Reason::Option);
    let mut filling = Vec::new();
    while let Ok(n) = pair.b.send(&[1; 1_000]) {
        filling.resize(filling.len() + n, 1);
    }
    assert_eq!(pair.b.commit(&mut room, 1_000), Err(EAGAIN));
    assert!(!room.is_on_ring());
    let child = Process::fork();
    child.run(|| pair.a.close());
    child
        .run(|| assert_eq!((pair.b.commit(&mut room, 1_000), pair.b.commit(&mut room, 0)), (Err(EINVAL), Err(EINVAL))));
    let mut got = Vec::new();
    while let Ok(more) = pair.a.recv(RING) {
        got.extend(more);
    }
    // The memory is one test's: the copy is sent once.
    child.run(|| assert_eq!(pair.b.commit(&mut copy, 1_000), Ok(1_000)));
    assert_eq!(pair.b.commit(&mut room, 1_000), Ok(1_000));
    while let Ok(more) = pair.a.recv(RING) {
        got.extend(more);
    }
    assert!(got == [filling, bytes(1_000, 1_000), bytes(0, 1_000)].concat());
    child.run(|| pair.b.close());
    child.kill();
    pair.close();
}
