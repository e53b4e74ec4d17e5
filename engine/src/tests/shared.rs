//! Another process of the family holds the connection, too, and one of the two is stopped, or killed, in the middle of a step.

use super::*;
use crate::endpoint::Ep;
use crate::{leave, lock, members};
use core::sync::atomic::Ordering::Relaxed;
use libc::EAGAIN;
use shmring::family::{Member, Reason, SHARED};
use shmring::owner::{self, LENT};

/// A process that a fork made, which holds a connection. Nobody can tell that it does not live until it is [`Other::killed`], nor
/// can it of this one.
#[derive(Clone, Copy)]
struct Other(Ep);

impl Other {
    const PLACE: usize = 1;

    fn of(ep: Ep) -> Other {
        let members = &members::header().expect("a family").members;
        let first = Member(members[0].load(Relaxed));
        if !first.is_unproved() {
            members[0].store(first.lock_moved().0, Relaxed);
        }
        members[Other::PLACE].store(Member(0).taken(4711).lock_moved().0, Relaxed);
        ep.holders.add(Other::PLACE);
        ep.handed.fetch_or(SHARED, Relaxed);
        Other(ep)
    }

    /// Its only thread.
    fn word(self) -> u64 {
        owner::word(Other::PLACE as u32, 0, 4711)
    }

    /// Does something.
    fn does<T>(self, f: impl FnOnce() -> T) -> T {
        lock::run_as(self.word(), f)
    }

    fn killed(self) {
        members::header().expect("a family").members[Other::PLACE].store(Member(0).freed().0, Relaxed);
    }

    fn ends(self) {
        self.killed();
        self.0.holders.forget(Other::PLACE);
    }
}

/// A connection on the rings, of whose end `b` another process is a holder.
fn shared(world: &World) -> (Pair, Other) {
    let pair = warmed(world);
    (pair, Other::of(pair.b.ep))
}

/// Receives until nothing is there.
fn drain(side: crate::sim::world::Side) -> Vec<u8> {
    let mut got = Vec::new();
    loop {
        match side.recv(1_000) {
            Ok(some) => got.extend(some),
            Err(EAGAIN) => return got,
            Err(e) => panic!("errno {e} after {} bytes", got.len()),
        }
    }
}

#[test]
fn a_receiver_that_copies_can_be_done_without() {
    let world = World::new();
    let (pair, other) = shared(&world);
    assert_eq!(pair.a.send(b"ring"), Ok(4));
    pair.b.ep.rx_token.store(other.word() | LENT, Relaxed);
    assert_eq!(pair.b.recv(9), Ok(b"ring".to_vec()));
    // It goes on, and cannot take the token back.
    assert_ne!(pair.b.ep.rx_token.load(Relaxed), other.word() | LENT);
    assert_eq!(pair.a.send(b"goes on"), Ok(7));
    assert_eq!(pair.b.recv(9), Ok(b"goes on".to_vec()));
    other.ends();
    pair.close();
}

#[test]
fn a_receiver_in_another_step_is_waited_for() {
    let world = World::new();
    let (pair, other) = shared(&world);
    assert_eq!(pair.a.send(b"ring"), Ok(4));
    pair.b.ep.rx_token.store(other.word(), Relaxed);
    assert_eq!(pair.b.recv(9), Err(EAGAIN));
    assert_eq!(pair.b.ep.rx_token.load(Relaxed), other.word());
    // It goes on.
    pair.b.ep.rx_token.store(owner::member(other.word()), Relaxed);
    assert_eq!(pair.b.recv(9), Ok(b"ring".to_vec()));
    other.ends();
    pair.close();
}

/// Stopped in the middle of its copy, a receiver finds, when it goes on, that another one has received those bytes, and
/// more: it returns what comes next.
#[test]
fn each_byte_is_received_once_by_whomever() {
    let world = World::new();
    for taken in [1, 300, 2_000, 5_000] {
        let (pair, other) = shared(&world);
        assert_eq!(pair.a.send(&bytes(0, 5_000)), Ok(5_000));
        let b = pair.b;
        Simulated::in_copy(move || {
            assert_eq!(other.does(|| b.recv(taken)), Ok(bytes(0, taken)));
        });
        let rest = match b.recv(9_000) {
            Ok(some) => some,
            Err(e) => {
                assert_eq!((e, taken), (EAGAIN, 5_000));
                Vec::new()
            }
        };
        assert_eq!(rest, bytes(taken, 5_000 - taken));
        assert_eq!(pair.a.send(&bytes(5_000, 100)), Ok(100));
        assert_eq!(drain(b), bytes(5_000, 100));
        other.ends();
        pair.close();
    }
}

/// What a sender copies when it is stopped is nobody's. Another one sends by the kernel, and so does the first when it goes on.
#[test]
fn a_sender_that_copies_can_be_done_without() {
    let world = World::new();
    for n in [1_000, 9_000] {
        let (pair, other) = shared(&world);
        let b = pair.b;
        assert_eq!(b.send(&bytes(0, 500)), Ok(500));
        assert_eq!(pair.a.recv(200), Ok(bytes(0, 200)));
        Simulated::in_copy(move || {
            assert_eq!(other.does(|| b.send(&bytes(500, 2_500))), Ok(2_500));
            assert_eq!(b.ep.tx_phase.get(), TxPhase::Down);
        });
        assert_eq!(b.send(&bytes(3_000, n)), Ok(n));
        let mut got = bytes(0, 200);
        got.extend(drain(pair.a));
        assert_eq!(got, bytes(0, 3_000 + n));
        assert_eq!(pair.a.send(b"back"), Ok(4));
        assert_eq!(b.recv(9), Ok(b"back".to_vec()));
        other.ends();
        pair.close();
    }
}

/// The same while the first one's whole copy lies ahead: the bytes that the other one has sent must not be written over.
#[test]
fn a_sender_that_is_stopped_for_good_keeps_nobody() {
    let world = World::new();
    let (pair, other) = shared(&world);
    pair.b.ep.tx_token.store(other.word() | LENT, Relaxed);
    assert_eq!(pair.b.send(&bytes(0, 700)), Ok(700));
    assert_eq!(pair.b.ep.tx_phase.get(), TxPhase::Down);
    assert_eq!(drain(pair.a), bytes(0, 700));
    other.ends();
    pair.close();
}

#[test]
fn a_holder_that_was_killed_in_a_copy_leaves_nothing() {
    let world = World::new();
    let (pair, other) = shared(&world);
    assert_eq!(pair.a.send(b"to b"), Ok(4));
    pair.b.ep.rx_token.store(other.word() | LENT, Relaxed);
    pair.b.ep.tx_token.store(other.word() | LENT, Relaxed);
    other.killed();
    assert_eq!(pair.b.recv(9), Ok(b"to b".to_vec()));
    assert_eq!(pair.b.send(b"to a"), Ok(4));
    // Nobody writes behind its back: the ring goes on.
    assert_eq!(pair.b.ep.tx_phase.get(), TxPhase::Ring);
    assert_eq!(pair.a.recv(9), Ok(b"to a".to_vec()));
    other.ends();
    pair.close();
}

/// A process that leaves (spawn, exec, a message) waits for nobody who copies ...
#[test]
fn a_leave_takes_the_directions_of_one_that_copies() {
    let world = World::new();
    let (pair, other) = shared(&world);
    assert_eq!(pair.a.send(&bytes(0, 300)), Ok(300));
    pair.b.ep.rx_token.store(other.word() | LENT, Relaxed);
    pair.b.ep.tx_token.store(other.word() | LENT, Relaxed);
    leave::surrender(pair.b.fd, Reason::Passed);
    assert!(leave::has_left(pair.b.ep));
    assert_eq!(Simulated::recv(pair.b.fd, 999, false), Ok(bytes(0, 300)));
    other.ends();
    pair.close();
}

/// ... and not for ever for one that is stopped in another step. What nobody can complete is reset.
#[test]
fn a_leave_behind_another_step_ends() {
    let world = World::new();
    for sending in [false, true] {
        let (pair, other) = shared(&world);
        assert_eq!(pair.a.send(&bytes(0, 300)), Ok(300));
        let token = if sending { &pair.b.ep.tx_token } else { &pair.b.ep.rx_token };
        token.store(other.word(), Relaxed);
        leave::surrender(pair.b.fd, Reason::Passed);
        // No end of a stream, nor bytes of one that goes on.
        assert!(matches!(Simulated::recv(pair.b.fd, 999, false), Err(libc::ECONNRESET | libc::ENOTCONN)));
        // It goes on.
        token.store(owner::member(other.word()), Relaxed);
        other.ends();
        pair.close();
    }
}

#[test]
fn who_has_lost_a_direction_does_not_lend_it() {
    let world = World::new();
    let (pair, other) = shared(&world);
    let ep = pair.b.ep;
    let token = &ep.record().tx_token;
    let held = lock::take(token, Some(&ep.record().tx_taken)).expect("a token that nobody has");
    let mine = token.load(Relaxed);
    let lent = lock::lend(token).ok().flatten().expect("a place for it");
    assert_eq!(token.load(Relaxed), mine | LENT);
    assert!(matches!(lock::lend(token), Ok(None)), "it is lent already");
    assert!(other.does(|| lock::seize(token, mine | LENT, other.word(), Some(&ep.record().tx_taken))));
    assert!(!lent.back());
    assert!(lock::lend(token).is_err());
    assert_eq!(token.load(Relaxed), other.word(), "the other one has it still");
    held.is_taken();
    token.store(owner::member(other.word()), Relaxed);
    other.ends();
    pair.close();
}
