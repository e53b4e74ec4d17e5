//! Processes that share a connection after a fork: each direction is used by one at a time, holders that are killed or stopped keep
//! nothing from the others, and the last one to go ends the connection.

use super::*;
use crate::family;
use crate::kernel::Kernel as _;
use crate::sim::process::Process;
use crate::sim::world::{Neighbour, Side};
use core::sync::atomic::Ordering::Relaxed;
use libc::{EAGAIN, ECONNRESET, EPIPE, SHUT_WR};
use shmring::family::Member;
use std::sync::{Arc, Mutex};

/// A connection with both directions on the rings, whose accepted end a child holds, too.
pub(super) fn forked(world: &World, neighbour: Neighbour) -> (Pair, Process) {
    let pair = world.pair();
    assert!(pair.attach_in(world.lane(RING, neighbour).unwrap()));
    warm(&pair);
    let child = Process::fork();
    // What this process forks in both ends of the connection is in one process here: the child keeps the accepted one.
    child.run(|| pair.a.close());
    (pair, child)
}

pub(super) const NEIGHBOURS: [Neighbour; 2] = [Neighbour::Own, Neighbour::Stranger];

#[test]
fn a_child_serves_what_its_parent_accepted() {
    let world = World::new();
    for neighbour in NEIGHBOURS {
        let (pair, child) = forked(&world, neighbour);
        pair.b.close();
        for i in 0..5 {
            assert_eq!(pair.a.send(&bytes(i, 3_000)), Ok(3_000));
            child.run(|| {
                assert!(pair.b.recv(9_999) == Ok(bytes(i, 3_000)), "{i}");
                assert_eq!(pair.b.send(&bytes(7 * i, 5_000)), Ok(5_000));
            });
            assert!(pair.a.recv(9_999) == Ok(bytes(7 * i, 5_000)), "{i}");
        }
        assert_eq!(on_kernel_of(pair.a), 0);
        child.run(|| pair.b.close());
        assert_eq!(pair.a.recv(9), Ok(vec![]));
        pair.a.close();
        child.kill();
    }
}

fn on_kernel_of(side: Side) -> u64 {
    Simulated::tcp(side.fd, |tcp, end| tcp.unread(end) + tcp.unread(1 - end))
}

#[test]
fn a_connection_lives_until_its_last_holder_has_closed_it() {
    let world = World::new();
    for neighbour in NEIGHBOURS {
        for parent_first in [false, true] {
            for killed in [false, true] {
                let (pair, child) = forked(&world, neighbour);
                assert_eq!(pair.a.send(b"both"), Ok(4));
                if parent_first {
                    pair.b.close();
                    assert_eq!(pair.a.recv(9), Err(EAGAIN));
                    assert_eq!(child.run(|| pair.b.recv(9)), Ok(b"both".to_vec()));
                    assert_eq!(child.run(|| pair.b.send(b"last")), Ok(4));
                    if !killed {
                        child.run(|| pair.b.close());
                    }
                    child.kill();
                } else {
                    if !killed {
                        child.run(|| pair.b.close());
                    }
                    child.kill();
                    assert_eq!(pair.a.recv(9), Err(EAGAIN));
                    assert_eq!(pair.b.recv(9), Ok(b"both".to_vec()));
                    assert_eq!(pair.b.send(b"last"), Ok(4));
                    pair.b.close();
                }
                assert_eq!(pair.a.recv(9), Ok(b"last".to_vec()));
                assert_eq!(pair.a.recv(9), Ok(vec![]));
                pair.a.close();
            }
        }
    }
}

#[test]
fn two_that_use_a_connection_by_turns_lose_nothing() {
    let world = World::new();
    for neighbour in NEIGHBOURS {
        let (pair, child) = forked(&world, neighbour);
        let (mut sent, mut got) = (0, 0);
        for i in 0..20 {
            let n = 500 + 37 * i;
            assert_eq!(pair.a.send(&bytes(sent, n)), Ok(n));
            sent += n;
            let read = || pair.b.recv(n);
            let some = if i % 2 == 0 { child.run(read) } else { read() }.unwrap();
            assert_eq!(some, bytes(got, some.len()));
            got += some.len();
        }
        while got < sent {
            let some = pair.b.recv(9_999).unwrap();
            assert_eq!(some, bytes(got, some.len()));
            got += some.len();
        }
        // What lies on the ring is read by turns. Who only sends does not wait for that: it is the kernel's business soon.
        let mut sent = 0;
        let mut got = Vec::new();
        for i in 0..8 {
            let send = || pair.b.send(&bytes(sent, 700));
            assert_eq!(if i % 2 == 0 { child.run(send) } else { send() }, Ok(700));
            sent += 700;
            got.extend(pair.a.recv(500).unwrap());
        }
        assert!(crate::leave::has_left(pair.b.ep) && on_kernel(&pair) > 0);
        while let Ok(some) = pair.a.recv(9_999) {
            got.extend(some);
        }
        assert!(got == bytes(0, sent), "{} of {sent}", got.len());
        child.run(|| pair.b.close());
        child.kill();
        pair.close();
    }
}

#[test]
fn a_shutdown_by_one_holder_is_everybodys() {
    let world = World::new();
    let (pair, child) = forked(&world, Neighbour::Own);
    assert_eq!(pair.b.send(b"sent"), Ok(4));
    child.run(|| assert_eq!(pair.b.shutdown(SHUT_WR), Ok(())));
    assert_eq!(pair.b.send(b"x"), Err(EPIPE));
    assert_eq!(pair.a.recv(9), Ok(b"sent".to_vec()));
    assert_eq!(pair.a.recv(9), Ok(vec![]));
    assert_eq!(pair.a.send(b"other way"), Ok(9));
    assert_eq!(pair.b.recv(9), Ok(b"other way".to_vec()));
    child.kill();
    pair.close();
}

/// What a process was about to do when it was stopped.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Step {
    Send,
    Recv,
    Close,
}

fn take(b: Side, step: Step) {
    match step {
        Step::Send => _ = b.send(&bytes(0, 4_000)),
        Step::Recv => _ = b.recv(1_500),
        Step::Close => b.close(),
    }
}

/// The child is killed at any call that it makes of the kernel, with whatever tokens and locks it has then. The parent goes on;
/// what the child had not read comes once, in order, and what it had begun to send comes as far as it was published.
#[test]
fn a_holder_that_is_killed_in_any_step_keeps_nothing_from_the_others() {
    let world = World::new();
    for neighbour in NEIGHBOURS {
        for step in [Step::Send, Step::Recv, Step::Close] {
            for calls in (0..).step_by(if cfg!(miri) { 5 } else { 1 }) {
                let (pair, child) = forked(&world, neighbour);
                // The direction is handed to the child.
                assert_eq!(pair.a.send(&bytes(0, 1_000)), Ok(1_000));
                assert_eq!(child.run(|| pair.b.recv(400)), Ok(bytes(0, 400)));
                assert_eq!(pair.a.send(&bytes(1_000, 1_000)), Ok(1_000));
                let finished = child.run_for(calls, || take(pair.b, step)).is_some();
                child.kill();
                let context = format!("{step:?}, stopped at call {calls}, {neighbour:?}");
                survives(pair, step, &context);
                if finished {
                    assert!(calls > 1, "{context}");
                    break;
                }
            }
        }
    }
}

fn survives(pair: Pair, step: Step, context: &str) {
    // Nobody waits for the dead as for one that is stopped.
    let begun = Simulated::now();
    let mut rest = Vec::new();
    for _ in 0..10 {
        match pair.b.recv(9_999) {
            Ok(some) => rest.extend(some),
            Err(e) => assert_eq!(e, EAGAIN, "{context}"),
        }
    }
    assert!(Simulated::now() - begun < 5_000_000, "{context}");
    // What the dead one has taken is gone with it.
    let from = 2_000 - rest.len();
    assert!(rest == bytes(from, rest.len()), "{context}");
    assert!(from == 400 || step == Step::Recv && from == 1_900, "{context}: from {from}");
    assert_eq!(pair.b.send(b"parent"), Ok(6), "{context}");
    let mut got = Vec::new();
    while let Ok(some) = pair.a.recv(9_999) {
        got.extend(some);
    }
    let sent = got.strip_suffix(b"parent").unwrap_or_else(|| panic!("{context}: {} bytes", got.len()));
    assert!(*sent == bytes(0, sent.len()), "{context}");
    assert!(sent.is_empty() || step == Step::Send && sent.len() <= 4_000, "{context}");
    // Both go on.
    assert_eq!(pair.a.send(&bytes(5, 2_000)), Ok(2_000));
    assert_eq!(pair.b.recv(9_999), Ok(bytes(5, 2_000)), "{context}");
    pair.b.close();
    assert_eq!(pair.a.recv(9), Ok(vec![]), "{context}");
    pair.a.close();
}

/// The child is stopped at that call instead, and never goes on. The parent's calls do not hang: if they do not wait they say
/// EAGAIN at worst, and once the child is killed the parent goes on.
#[test]
fn a_holder_that_is_stopped_in_any_step_does_not_hang_the_others() {
    let world = World::new();
    for step in [Step::Send, Step::Recv] {
        for calls in (0..).step_by(if cfg!(miri) { 5 } else { 1 }) {
            let (pair, child) = forked(&world, Neighbour::Own);
            assert_eq!(pair.a.send(&bytes(0, 1_000)), Ok(1_000));
            assert_eq!(child.run(|| pair.b.recv(400)), Ok(bytes(0, 400)));
            assert_eq!(pair.a.send(&bytes(1_000, 1_000)), Ok(1_000));
            let finished = child.run_for(calls, || take(pair.b, step)).is_some();
            let context = format!("{step:?}, stopped at call {calls}");
            let received = pair.b.recv(200);
            assert!(
                matches!(&received, Ok(some) if !some.is_empty()) || received == Err(EAGAIN),
                "{context}: {received:?}"
            );
            let sent = pair.b.send(b"from the parent");
            assert!(matches!(sent, Ok(15) | Err(EAGAIN)), "{context}: {sent:?}");
            assert!(step != Step::Recv || sent == Ok(15), "{context}: a direction that nobody has");
            child.kill();
            let mut got = received.unwrap_or_default();
            while let Ok(some) = pair.b.recv(9_999) {
                got.extend(some);
            }
            let from = 2_000 - got.len();
            assert!(got == bytes(from, got.len()), "{context}");
            assert!(from == 400 || step == Step::Recv && from == 1_900, "{context}: from {from}");
            while pair.a.recv(9_999).is_ok() {}
            pair.b.close();
            pair.a.close();
            if finished {
                break;
            }
        }
    }
}

/// In the middle of any call of the child's its parent uses the connection, too. Both get whole pieces, in one order or the other.
#[test]
fn two_holders_cross_in_any_step() {
    let world = World::new();
    for neighbour in NEIGHBOURS {
        for step in [Step::Send, Step::Recv] {
            for calls in (0..).step_by(if cfg!(miri) { 7 } else { 1 }) {
                let (pair, child) = forked(&world, neighbour);
                assert_eq!(pair.a.send(&bytes(0, 1_000)), Ok(1_000));
                assert_eq!(child.run(|| pair.b.recv(400)), Ok(bytes(0, 400)));
                assert_eq!(pair.a.send(&bytes(1_000, 1_000)), Ok(1_000));
                let [childs, parents] = [(); 2].map(|()| Arc::new(Mutex::new((Vec::new(), 0))));
                let mine = parents.clone();
                let crossed = child.run_across(
                    calls,
                    || match step {
                        Step::Recv => childs.lock().unwrap().0 = pair.b.recv(700).unwrap_or_default(),
                        _ => childs.lock().unwrap().1 = pair.b.send(&bytes(0, 4_000)).unwrap_or(0),
                    },
                    move || {
                        let mut mine = mine.lock().unwrap();
                        mine.0 = pair.b.recv(200).unwrap_or_default();
                        mine.1 = pair.b.send(b"parent").unwrap_or(0);
                    },
                );
                let context = format!("{step:?}, crossed at call {calls}, {neighbour:?}");
                let (childs, parents) = (childs.lock().unwrap(), parents.lock().unwrap());
                let mut rest = Vec::new();
                while let Ok(some) = pair.b.recv(9_999) {
                    rest.extend(some);
                }
                let either = |a: &[u8], b: &[u8], rest: &[u8], all: &[u8]| {
                    [[a, b, rest].concat(), [b, a, rest].concat()].iter().any(|got| got == all)
                };
                assert!(either(&childs.0, &parents.0, &rest, &bytes(400, 1_600)), "{context}: received");
                let mut got = Vec::new();
                while let Ok(some) = pair.a.recv(9_999) {
                    got.extend(some);
                }
                let sent = [&bytes(0, childs.1)[..], &b"parent"[..parents.1]];
                assert!(either(sent[0], sent[1], &[], &got), "{context}: sent");
                assert!(step != Step::Send || childs.1 > 0, "{context}");
                child.kill();
                pair.close();
                if !crossed {
                    assert!(calls > 1, "{context}");
                    break;
                }
            }
        }
    }
}

#[test]
fn a_close_with_bytes_unread_by_the_last_holder_resets() {
    let world = World::new();
    let (pair, child) = forked(&world, Neighbour::Own);
    assert_eq!(pair.a.send(b"unread"), Ok(6));
    pair.b.close();
    assert_eq!(pair.a.send(b"x"), Ok(1));
    child.run(|| pair.b.close());
    assert_eq!(pair.a.recv(9), Err(ECONNRESET));
    pair.a.close();
    child.kill();
}

/// A process is killed at any call that it makes while it forks: no place stays kept for its child, nor does that hold anything. If the
/// child is there, and has not taken its place, it has it until it is dead, too.
#[test]
fn a_process_that_is_killed_while_it_forks_leaves_no_place_taken() {
    let world = World::new();
    let kept = || {
        let members = crate::members::header().unwrap().members.iter();
        members.filter(|m| Member(m.load(Relaxed)).is_being_forked()).count()
    };
    let mut orphans = 0;
    for calls in 0.. {
        let (pair, child) = forked(&world, Neighbour::Own);
        let had = child.run(Simulated::count);
        let finished = child.run_for(calls, || _ = Process::fork()).is_some();
        child.kill();
        let context = format!("killed at call {calls}");
        for orphan in Process::others() {
            assert!(!family::alone(), "{context}");
            orphans += u32::from(!finished);
            // What the birth was locked by is not kept.
            assert!(!finished || orphan.run(Simulated::count) == had, "{context}");
            orphan.kill();
        }
        assert!(family::alone() && family::sole_holder(pair.b.ep), "{context}");
        // A fork that fails.
        assert_eq!((kept(), family::keep_place().then(kept)), (0, Some(1)), "{context}");
        family::after_fork_parent();
        assert_eq!(kept(), 0, "{context}");
        assert_eq!(pair.a.send(b"goes on"), Ok(7));
        assert_eq!(pair.b.recv(9), Ok(b"goes on".to_vec()), "{context}");
        pair.close();
        if finished {
            assert!(calls > 5 && orphans > 1, "{context}");
            break;
        }
    }
}

/// A child that gets the place of one that had closed a connection, and has died, holds that connection as any other child does.
#[test]
fn a_child_in_the_place_of_a_dead_one_holds_what_its_parent_holds() {
    let world = World::new();
    let (pair, dead) = forked(&world, Neighbour::Own);
    let place = dead.run(crate::members::my_place);
    dead.run(|| pair.b.close());
    let other = warmed(&world);
    let second = Process::fork();
    second.run(|| (pair.a.close(), other.close()).1);
    dead.kill();
    // Whoever looks for holders of something gives the place back.
    assert!(!family::sole_holder(pair.b.ep));
    let child = Process::fork();
    assert_eq!(child.run(crate::members::my_place), place);
    child.run(|| (pair.a.close(), other.close()).1);
    second.run(|| pair.b.close());
    pair.b.close();
    assert_eq!(pair.a.send(b"to the child"), Ok(12));
    assert_eq!(child.run(|| pair.b.recv(99)), Ok(b"to the child".to_vec()));
    child.run(|| pair.b.close());
    assert_eq!(pair.a.recv(9), Ok(vec![]));
    pair.a.close();
    other.close();
    [second, child].into_iter().for_each(Process::kill);
}

/// Who clears up after a dead member does so alone, until it is dead itself.
#[test]
fn one_that_dies_while_it_clears_up_is_cleared_up_after() {
    let world = World::new();
    let members = &crate::members::header().unwrap().members;
    let place = |p: Process| p.run(|| crate::members::my_place().unwrap());
    for killed in [true, false] {
        let (pair, dead) = forked(&world, Neighbour::Own);
        let clears = Process::fork();
        clears.run(|| pair.close());
        let (died, by) = (place(dead), place(clears));
        dead.kill();
        let word = &members[died];
        let was = Member(word.load(Relaxed));
        let generation = |place: usize| Member(members[place].load(Relaxed)).generation();
        let begun_by = |place: usize, generation| {
            word.store(was.reaped(place, generation).0, Relaxed);
            family::sole_holder(pair.b.ep)
        };
        // Another thread of this process does it.
        let me = crate::members::my_place().unwrap();
        assert!(!begun_by(me, generation(me)));
        // A process that lives clears up; then that process is dead, or another process has its place.
        assert!(!begun_by(by, generation(by)));
        if killed {
            clears.kill();
            assert!(family::sole_holder(pair.b.ep));
        } else {
            assert!(begun_by(by, generation(by) + 1));
            clears.kill();
        }
        assert_eq!(pair.b.ep.holders.count(), 1);
        assert!(!pair.b.ep.holders.knows(died));
        pair.close();
    }
}
