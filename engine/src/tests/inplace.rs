//! A program writes where its peer reads, and reads where its peer has written: beside POSIX calls, wherever the connection goes
//! meanwhile.

use super::*;
use crate::inplace::Spans;
use crate::kernel::Kernel as _;
use crate::sim::process::Process;
use crate::sim::world::Side;
use crate::{leave, rx};
use core::sync::atomic::Ordering::Relaxed;
use libc::{EAGAIN, EBADF, ECONNRESET, EINVAL, EPIPE, MSG_DONTWAIT};
use shmring::common::Common;
use shmring::family::Reason;
use shmring::position::RingPos;

pub(super) fn filled(side: Side, from: usize, n: usize) -> Spans {
    let mut room = side.reserve(n).unwrap();
    assert_eq!(room.len, n);
    room.fill(&bytes(from, n));
    room
}

#[test]
fn bytes_go_from_hand_to_hand() {
    let world = World::new();
    let pair = warmed(&world);
    let mut at = 0;
    // Also around the end of the ring, where room has two pieces.
    for n in [1, 1_500, 9_000, 30_000, 40_000, 20_000].into_iter().cycle().take(40) {
        let n = n.min(RING / 2);
        let mut room = filled(pair.a, at, n);
        assert!(room.is_on_ring());
        // Nobody sees what is not committed.
        assert_eq!(pair.b.recv(9), Err(EAGAIN));
        let used = n - n / 3;
        assert_eq!(pair.a.commit(&mut room, used), Ok(used));
        assert_eq!(pair.a.commit(&mut room, 0), Err(EINVAL));
        let mut view = pair.b.look(1).unwrap();
        assert!(view.is_on_ring() && view.bytes() == bytes(at, used)[..view.len]);
        let seen = view.len;
        assert_eq!(pair.b.release(&mut view, seen - seen / 4), Ok(()));
        assert_eq!(pair.b.release(&mut view, 0), Err(EINVAL));
        at += used;
        // The rest is read as ever.
        let rest = used - (seen - seen / 4);
        assert_eq!(pair.b.recv(rest + 1), if rest == 0 { Err(EAGAIN) } else { Ok(bytes(at - rest, rest)) });
    }
    assert_eq!(on_kernel(&pair), 0);
    pair.close();
}

#[test]
fn what_is_looked_at_stays_whatever_others_read_and_the_peer_sends() {
    let world = World::new();
    let pair = warmed(&world);
    let mut sent = 0;
    let mut fill = |pair: &Pair| loop {
        match pair.a.send(&bytes(sent, 4_000)) {
            Ok(n) => sent += n,
            Err(e) => return assert_eq!(e, EAGAIN),
        }
    };
    fill(&pair);
    let mut view = pair.b.look(1).unwrap();
    let seen = view.bytes();
    assert!(view.is_on_ring() && view.len > RING / 4 && seen == bytes(0, view.len));
    // Another thread reads all of it, and the peer's sender finds no room for more.
    let mut read = 0;
    while let Ok(got) = pair.b.recv(5_000) {
        assert!(got == bytes(read, got.len()));
        read += got.len();
    }
    assert_eq!(pair.a.send(b"x"), Err(EAGAIN));
    assert_eq!(pair.a.poll(libc::POLLOUT), 0);
    assert!(view.bytes() == seen);
    // A second look is by a copy: there is nothing.
    assert!(matches!(pair.b.look(1), Err(EAGAIN)));
    // What was read already is not read again.
    let n = view.len;
    assert_eq!(pair.b.release(&mut view, n), Ok(()));
    assert_eq!(pair.a.poll(libc::POLLOUT), libc::POLLOUT);
    fill(&pair);
    let got = pair.b.recv(RING).unwrap();
    assert!(got == bytes(read, got.len()));
    assert_eq!(on_kernel(&pair), 0);
    pair.close();
}

#[test]
fn a_sender_that_sleeps_for_room_is_woken_when_the_look_ends() {
    let world = World::new();
    let pair = warmed(&world);
    while pair.a.send(&bytes(0, 1_000)).is_ok() {}
    let mut view = pair.b.look(1).unwrap();
    while pair.b.recv(RING).is_ok() {}
    Simulated::meanwhile(move || {
        let n = view.len;
        assert_eq!(pair.b.release(&mut view, n), Ok(()));
    });
    assert_eq!(pair.a.send_with(b"room", 0), Ok(4));
    while pair.b.recv(RING).is_ok_and(|got| !got.ends_with(b"room")) {}
    pair.close();
}

#[test]
fn a_posix_send_before_the_commit_goes_first_and_both_go_by_the_kernel() {
    let world = World::new();
    let pair = warmed(&world);
    let mut room = filled(pair.a, 100, 3_000);
    assert!(room.is_on_ring());
    assert_eq!(pair.a.send(b"first"), Ok(5));
    assert_eq!(pair.a.ep.reason.load(Relaxed), Reason::Reserved as u32);
    assert_eq!(pair.a.commit(&mut room, 3_000), Ok(3_000));
    assert!(!room.is_on_ring());
    assert_eq!(pair.b.recv(9_999), Ok([b"first".to_vec(), bytes(100, 3_000)].concat()));
    // The other direction stays where it is.
    assert_eq!(pair.b.send(b"back"), Ok(4));
    assert_eq!(pair.a.recv(9), Ok(b"back".to_vec()));
    assert_eq!(pair.b.ep.tx_phase.get(), TxPhase::Ring);
    pair.close();
}

#[test]
fn two_reservations_are_sent_in_the_order_of_their_commits() {
    let world = World::new();
    let pair = warmed(&world);
    let mut first = filled(pair.a, 0, 2_000);
    let mut second = filled(pair.a, 2_000, 2_000);
    assert!(first.is_on_ring() && !second.is_on_ring());
    assert_eq!(pair.a.commit(&mut second, 2_000), Ok(2_000));
    assert_eq!(pair.a.commit(&mut first, 2_000), Ok(2_000));
    assert_eq!(pair.b.recv(9_999), Ok([bytes(2_000, 2_000), bytes(0, 2_000)].concat()));
    pair.close();
}

#[test]
fn room_that_is_given_back_leaves_the_ring_to_others() {
    let world = World::new();
    let pair = warmed(&world);
    for _ in 0..3 {
        let mut room = filled(pair.a, 0, 2_000);
        assert_eq!(pair.a.commit(&mut room, 0), Ok(0));
        assert_eq!(pair.a.send(b"on the ring"), Ok(11));
        assert_eq!(pair.b.recv(99), Ok(b"on the ring".to_vec()));
    }
    assert_eq!(on_kernel(&pair), 0);
    pair.close();
}

/// Each end does its part of what the other waits for at its own next call only, as another process does that is busy.
pub(super) fn keep_apart(pair: &Pair) {
    for side in [pair.a, pair.b] {
        side.ep.local().peer_cookie.store(0, Relaxed);
    }
}

/// All that comes, after both ends have done their parts.
fn rest(pair: &Pair) -> Vec<u8> {
    let mut got = Vec::new();
    for _ in 0..2 {
        assert!(pair.a.recv(9).map_or_else(|e| e == EAGAIN, |got| got.is_empty()));
        while let Ok(more) = pair.b.recv(9_999) {
            got.extend(more);
        }
    }
    got
}

/// Whatever takes a direction away while room or bytes are in the program's hands, nothing is lost and nothing comes twice.
#[test]
fn a_connection_leaves_with_room_and_bytes_outstanding() {
    type Leaves = fn(&Pair);
    let leaves: [Leaves; 8] = [
        |p| leave::retire(p.a.fd, Reason::Async),
        |p| leave::retire(p.b.fd, Reason::Async),
        |p| leave::retire(p.a.fd, Reason::Option),
        |p| leave::retire(p.b.fd, Reason::Option),
        |p| leave::sending_side(p.a.fd, Reason::Splice),
        |p| leave::sending_side(p.b.fd, Reason::Splice),
        |p| assert_eq!(p.b.shutdown(SHUT_WR), Ok(())),
        |_| (),
    ];
    for leaving in leaves {
        // What is received meanwhile is read, and is not read once more by the release.
        for (received, slow) in [0, 40, 4_000, 4_500, 8_000].into_iter().flat_map(|n| [(n, false), (n, true)]) {
            let world = World::new();
            let pair = warmed(&world);
            if slow {
                keep_apart(&pair);
            }
            assert_eq!(pair.a.send(&bytes(0, 5_000)), Ok(5_000));
            let mut room = filled(pair.a, 5_000, 3_000);
            let mut view = pair.b.look(1).unwrap();
            assert!(room.is_on_ring() && view.is_on_ring() && view.len == 5_000);
            leaving(&pair);
            assert!(view.bytes() == bytes(0, 5_000));
            assert_eq!(pair.a.commit(&mut room, 3_000), Ok(3_000));
            assert!(view.bytes() == bytes(0, 5_000));
            let mut got = Vec::new();
            while got.len() < received {
                got.extend(pair.b.recv(received - got.len()).unwrap());
            }
            assert!(got == bytes(0, received));
            assert_eq!(pair.b.release(&mut view, 4_000), Ok(()));
            let from = received.max(4_000);
            assert!(rest(&pair) == bytes(from, 8_000 - from));
            pair.close();
        }
    }
}

/// The peer has yet to send over the lifeline what was seen on the ring: a release does not wait for that, and what it has read does not
/// come.
#[test]
fn a_release_before_the_peer_has_sent_anew_drops_what_comes() {
    for (on_ring, received) in [(true, false), (true, true), (false, false)] {
        let world = World::new();
        let pair = warmed(&world);
        keep_apart(&pair);
        assert_eq!(pair.a.send(&bytes(0, 500)), Ok(500));
        // Fewer than it asks for are shown by a copy.
        let mut view = pair.b.look(if on_ring { 1 } else { 640 }).unwrap();
        assert_eq!((view.is_on_ring(), view.len), (on_ring, 500));
        leave::retire(pair.b.fd, Reason::Async);
        assert_eq!((pair.b.ep.rx_phase.get(), pair.b.recv(99)), (RxPhase::Down, Err(EAGAIN)));
        if received {
            assert_eq!(pair.a.recv(9), Err(EAGAIN));
            assert_eq!(pair.b.recv(40), Ok(bytes(0, 40)));
        }
        assert_eq!(pair.b.release(&mut view, 400), Ok(()));
        assert_eq!(pair.a.send(&bytes(500, 300)), Ok(300));
        assert_eq!(pair.b.poll(libc::POLLIN), libc::POLLIN);
        assert!(rest(&pair) == bytes(400, 400));
        // Nothing is left to be dropped of what comes next.
        assert_eq!(pair.a.send(&bytes(0, 700)), Ok(700));
        assert_eq!(pair.b.recv(999), Ok(bytes(0, 700)));
        pair.close();
    }
}

/// Another thread waits meanwhile: it does not get what was read.
#[test]
fn who_waits_on_a_connection_that_has_left_does_not_get_what_a_release_has_read() {
    let world = World::new();
    let pair = warmed(&world);
    keep_apart(&pair);
    assert_eq!(pair.a.send(&bytes(0, 500)), Ok(500));
    let mut view = pair.b.look(1).unwrap();
    leave::retire(pair.b.fd, Reason::Async);
    assert_eq!(pair.b.ep.rx_phase.get(), RxPhase::Down);
    Simulated::meanwhile(move || {
        assert_eq!(pair.b.release(&mut view, 400), Ok(()));
        assert_eq!(pair.a.recv(9), Err(EAGAIN));
    });
    assert_eq!(pair.b.recv_with(999, 0), Ok(bytes(400, 100)));
    pair.close();
}

/// Another process has taken the direction, and is stopped: a release on a descriptor that does not wait fails, and is made again.
#[test]
fn a_release_waits_for_no_process_that_is_stopped() {
    let world = World::new();
    let mut failed = 0;
    for calls in 0..6 {
        let (pair, child) = super::forks::forked(&world, super::forks::NEIGHBOURS[0]);
        assert_eq!(pair.a.send(&bytes(0, 3_000)), Ok(3_000));
        let mut view = pair.b.look(1).unwrap();
        Simulated::set_nonblocking(pair.b.fd);
        let _ = child.run_for(calls, || pair.b.recv(10));
        let released = pair.b.release(&mut view, 1_000);
        child.kill();
        if released == Err(EAGAIN) {
            failed += 1;
            assert!(view.bytes() == bytes(0, 3_000));
            assert_eq!(pair.b.release(&mut view, 1_000), Ok(()));
        } else {
            assert_eq!(released, Ok(()));
        }
        assert!(pair.b.recv(9_999) == Ok(bytes(1_000, 2_000)));
        pair.close();
    }
    assert!(failed > 0);
}

/// One that had seen everything, and that everything was received since, takes nothing from what comes next, on the kernel.
#[test]
fn a_release_of_what_was_read_over_the_lifeline_takes_nothing_else() {
    let world = World::new();
    let pair = warmed(&world);
    assert_eq!(pair.a.send(&bytes(0, 5_000)), Ok(5_000));
    let mut view = pair.b.look(1).unwrap();
    leave::retire(pair.b.fd, Reason::Async);
    assert!(pair.b.recv(5_000) == Ok(bytes(0, 5_000)));
    assert_eq!(pair.a.send(&bytes(5_000, 5_000)), Ok(5_000));
    assert_eq!(pair.b.release(&mut view, 5_000), Ok(()));
    assert!(pair.b.recv(9_999) == Ok(bytes(5_000, 5_000)));
    pair.close();
}

/// A receiver comes down early, with bytes unread that the lifeline repeats.
#[test]
fn a_release_behind_an_early_end_of_the_ring_reads_by_the_place() {
    for (read, seen_twice) in [(0, false), (1_000, false), (1_000, true)] {
        let world = World::new();
        let pair = warmed(&world);
        assert_eq!(pair.a.send(&bytes(0, 5_000)), Ok(5_000));
        assert_eq!(pair.b.recv(100), Ok(bytes(0, 100)));
        let mut view = pair.b.look(1).unwrap();
        assert!(read == 0 || pair.b.recv(read) == Ok(bytes(100, read)));
        leave::sending_side(pair.a.fd, Reason::Splice);
        if seen_twice {
            assert!(pair.b.peek(50) == Ok(bytes(100 + read, 50)));
            assert_eq!(pair.b.ep.rx_phase.get(), RxPhase::Down);
        }
        assert_eq!(pair.b.recv(40), Ok(bytes(100 + read, 40)));
        assert_eq!(pair.b.release(&mut view, 2_000), Ok(()));
        assert!(rest(&pair) == bytes(2_100, 2_900));
        pair.close();
    }
}

#[test]
fn spans_are_the_process_s_that_made_them() {
    let world = World::new();
    let (pair, child) = super::forks::forked(&world, super::forks::NEIGHBOURS[0]);
    assert_eq!(pair.a.send(&bytes(0, 3_000)), Ok(3_000));
    let (mut room, mut view) = (filled(pair.b, 0, 2_000), pair.b.look(1).unwrap());
    assert!(room.is_on_ring() && view.is_on_ring());
    let (mut copied, mut seen) = (room, view);
    child.run(|| {
        assert_eq!(pair.b.commit(&mut copied, 2_000), Err(EINVAL));
        assert_eq!(pair.b.release(&mut seen, 3_000), Err(EINVAL));
    });
    assert_eq!(pair.b.release(&mut view, 1_000), Ok(()));
    assert_eq!(pair.b.commit(&mut room, 2_000), Ok(2_000));
    assert_eq!(pair.a.recv(9_999), Ok(bytes(0, 2_000)));
    pair.b.close();
    assert_eq!(child.run(|| pair.b.recv(9_999)), Ok(bytes(1_000, 2_000)));
    child.run(|| pair.b.close());
    pair.a.close();
    child.kill();
}

#[test]
fn who_is_killed_or_closes_with_spans_keeps_nothing_from_the_others() {
    let world = World::new();
    for killed in [true, false] {
        let (pair, child) = super::forks::forked(&world, super::forks::NEIGHBOURS[0]);
        let mut sent = 0;
        while let Ok(n) = pair.a.send(&bytes(sent, 4_000)) {
            sent += n;
        }
        child.run(|| {
            assert!(filled(pair.b, 0, 2_000).is_on_ring());
            assert!(pair.b.look(1).unwrap().is_on_ring());
            if !killed {
                pair.b.close();
            }
        });
        if killed {
            child.kill();
        }
        assert_eq!(pair.b.send(b"on the ring"), Ok(11));
        assert_eq!((pair.b.ep.tx_phase.get(), pair.a.recv(99)), (TxPhase::Ring, Ok(b"on the ring".to_vec())));
        let mut read = 0;
        while let Ok(got) = pair.b.recv(RING) {
            assert!(got == bytes(read, got.len()));
            read += got.len();
        }
        // The room is the sender's again.
        assert_eq!((read, pair.a.send(&bytes(0, RING / 2))), (sent, Ok(RING / 2)));
        assert_eq!(pair.b.recv(RING), Ok(bytes(0, RING / 2)));
        pair.close();
        if !killed {
            child.kill();
        }
    }
}

/// One thread closes a process's last descriptor of a connection while another one, which has found the connection, is about to end its look
/// there.
#[test]
fn a_release_behind_the_last_close_leaves_the_bytes_to_the_others() {
    let world = World::new();
    let lane = world.lane(RING, super::forks::NEIGHBOURS[0]).unwrap();
    // Another connection keeps the channel.
    let (other, pair) = (world.pair(), world.pair());
    assert!(other.attach_in(lane) && pair.attach_in(lane));
    warm(&other);
    warm(&pair);
    let child = Process::fork();
    child.run(|| {
        pair.a.close();
        other.close();
    });
    assert_eq!(pair.a.send(&bytes(0, 3_000)), Ok(3_000));
    let (ep, chan, life) = (pair.b.ep, pair.b.ep.chan().unwrap(), pair.b.ep.life());
    let view = rx::View::of(ep, chan, pair.b.fd, 1).unwrap();
    pair.b.close();
    let late = rx::release(ep, chan, pair.b.fd, life, view.number, view.at, 1_000);
    assert!(matches!(late, rx::Released::Closed));
    assert!(child.run(|| pair.b.recv(9_999)) == Ok(bytes(0, 3_000)));
    child.run(|| pair.b.close());
    pair.a.close();
    other.close();
    child.kill();
}

/// Whom a spawn has handed what is unread on the ring reads some of it.
#[test]
fn a_release_knows_what_other_images_have_read() {
    let world = World::new();
    let pair = warmed(&world);
    assert_eq!(pair.a.send(&bytes(0, 200)), Ok(200));
    let mut view = pair.b.look(1).unwrap();
    assert!(view.is_on_ring());
    let carries = world.lane(RING, super::forks::NEIGHBOURS[0]).unwrap();
    let (to, slot) = (carries.accepts, 0);
    to.slot(slot).producer[to.role().rx()].tail.store(RingPos::new(200).claim(), Relaxed);
    rx::share(pair.b.ep, to, slot);
    let image = Common::of(to.slot(slot), to.role(), RingPos::START);
    assert!(image.take(RingPos::START, 100));
    assert_eq!(pair.b.release(&mut view, 100), Ok(()));
    assert_eq!(pair.b.recv(999), Ok(bytes(100, 100)));
    assert!(image.is_read());
    pair.close();
    crate::slots::close_if_empty(carries.connects);
    crate::slots::close_if_empty(carries.accepts);
}

/// The one that looks is killed when another holder has read all, and polls by looks that do not wait, while the sender has no room.
#[test]
fn who_polls_gives_the_room_back_of_a_look_whose_process_was_killed() {
    let world = World::new();
    let (pair, child) = super::forks::forked(&world, super::forks::NEIGHBOURS[0]);
    while pair.a.send(&bytes(0, 4_000)).is_ok() {}
    child.run(|| assert!(pair.b.look(1).unwrap().is_on_ring()));
    while pair.b.recv(RING).is_ok() {}
    let polled = || pair.b.look_with(1, MSG_DONTWAIT).map(|view| view.len);
    assert_eq!((polled(), pair.a.send(b"x")), (Err(EAGAIN), Err(EAGAIN)));
    child.kill();
    assert_eq!(polled(), Err(EAGAIN));
    assert_eq!((pair.a.send(b"x"), polled()), (Ok(1), Ok(1)));
    assert_eq!(pair.b.recv(9), Ok(b"x".to_vec()));
    pair.close();
}

/// The one that looks is killed when the other holders have read all, and sleep, and so does the sender.
#[test]
fn who_sleeps_gives_the_room_back_of_a_look_whose_process_was_killed() {
    let world = World::new();
    for killed in [true, false] {
        let (pair, child) = super::forks::forked(&world, super::forks::NEIGHBOURS[0]);
        while pair.a.send(&bytes(0, 4_000)).is_ok() {}
        child.run(|| assert!(pair.b.look(1).unwrap().is_on_ring()));
        while pair.b.recv(RING).is_ok() {}
        let chan = pair.b.ep.chan().unwrap();
        assert_eq!(pair.a.send(b"x"), Err(EAGAIN));
        // Nobody tells it, so it looks now and then.
        assert!(crate::sleep::in_transit(pair.b.ep, chan) && rx::others_look());
        if killed {
            child.kill();
        }
        assert_eq!(pair.b.poll(libc::POLLIN), 0);
        assert_eq!(pair.a.send(b"x"), if killed { Ok(1) } else { Err(EAGAIN) });
        assert_eq!((crate::sleep::in_transit(pair.b.ep, chan), rx::others_look()), (!killed, !killed));
        if !killed {
            child.kill();
            // A set of descriptors asks for all.
            assert!(!rx::others_look());
            assert_eq!(pair.a.send(b"x"), Ok(1));
        }
        assert_eq!(pair.b.recv(9), Ok(b"x".to_vec()));
        pair.close();
    }
}

/// What a holder leaves that is killed in a receive: the new head is said in the family's memory, and the sender, which waits for room, does not see
/// it, or has not been woken. Another one looks, or polls.
#[test]
fn who_polls_does_for_the_sender_what_a_killed_receiver_has_left_undone() {
    let world = World::new();
    for (looks, sees) in [(true, true), (true, false), (false, true), (false, false)] {
        let (pair, child) = super::forks::forked(&world, super::forks::NEIGHBOURS[0]);
        let chan = pair.b.ep.chan().unwrap();
        let c = crate::conn::conn(pair.b.ep, chan);
        while pair.a.send(&bytes(0, 4_000)).is_ok() {}
        let (wish, head) = (c.peer().want_space.load(Relaxed), c.consumed().head.load(Relaxed));
        assert_ne!(wish, 0);
        while child.run(|| pair.b.recv(RING)).is_ok() {}
        child.kill();
        c.peer().want_space.store(wish, Relaxed);
        if !sees {
            c.consumed().head.store(head, Relaxed);
        }
        assert!(crate::conn::is_left_undone(pair.b.ep, chan) && crate::sleep::in_transit(pair.b.ep, chan));
        if looks {
            assert_eq!(pair.b.look_with(1, MSG_DONTWAIT).map(|view| view.len), Err(EAGAIN));
        } else {
            assert_eq!(pair.b.poll(libc::POLLIN), 0);
        }
        assert!(!crate::conn::is_left_undone(pair.b.ep, chan) && !crate::sleep::in_transit(pair.b.ep, chan));
        assert_eq!(c.peer().want_space.load(Relaxed), 0);
        assert_eq!((pair.a.send(b"x"), pair.b.recv(9)), (Ok(1), Ok(b"x".to_vec())));
        pair.close();
    }
}

#[test]
fn ends_and_errors_are_those_of_send_and_recv() {
    let world = World::new();
    let pair = warmed(&world);
    assert!(matches!(pair.a.look(1), Err(EAGAIN)));
    assert!(matches!(pair.a.reserve(0), Err(EINVAL)));
    // More of what, a commit says.
    assert!(matches!(pair.a.reserve_with(1, MSG_DONTWAIT | libc::MSG_MORE), Err(EINVAL)));
    assert!(matches!(pair.a.look_with(crate::inplace::MOST + 1, MSG_DONTWAIT), Err(libc::EMSGSIZE)));
    let mut room = filled(pair.a, 0, 10);
    assert_eq!(pair.a.commit(&mut room, 11), Err(EINVAL));
    // It is as it was.
    assert_eq!(pair.a.commit(&mut room, 10), Ok(10));
    assert_eq!(pair.b.recv(99), Ok(bytes(0, 10)));
    let mut room = filled(pair.b, 0, 10);
    assert_eq!(pair.a.shutdown(SHUT_WR), Ok(()));
    assert_eq!(pair.b.look(1).map(|view| view.len), Ok(0));
    let mut late = pair.a.reserve(10).unwrap();
    assert_eq!(pair.a.commit(&mut late, 10), Err(EPIPE));
    assert_eq!(pair.a.commit(&mut late, 0), Ok(0));
    assert_eq!(pair.b.commit(&mut room, 10), Ok(10));
    assert_eq!(pair.a.recv(99), Ok(bytes(0, 10)));
    let mut room = pair.b.reserve(10).unwrap();
    pair.a.close();
    let sent = [pair.b.commit(&mut room, 5), pair.b.commit(&mut room, 5), pair.b.send(b"x")];
    assert!(sent.iter().any(|r| matches!(r, Err(EPIPE | ECONNRESET))), "{sent:?}");
    let _ = pair.b.commit(&mut room, 0);
    pair.b.close();
}

#[test]
fn spans_of_a_connection_that_was_closed_are_nobodys() {
    let world = World::new();
    let pair = warmed(&world);
    assert_eq!(pair.a.send(b"unread"), Ok(6));
    let (mut room, mut view) = (filled(pair.b, 0, 9), pair.b.look(1).unwrap());
    pair.close();
    assert_eq!(pair.b.commit(&mut room, 9), Err(EBADF));
    assert_eq!(pair.b.release(&mut view, 6), Err(EBADF));
    // Another connection in the same record.
    let other = warmed(&world);
    let (mut room, mut view) = (filled(other.b, 0, 9), Spans::none());
    assert_eq!(other.b.release(&mut view, 0), Err(EINVAL));
    assert_eq!(other.b.commit(&mut room, 9), Ok(9));
    assert_eq!(other.a.recv(99), Ok(bytes(0, 9)));
    other.close();
}

#[test]
fn a_look_waits_for_as_many_as_it_asks_for() {
    let world = World::new();
    for on_ring in [false, true] {
        let pair = if on_ring { warmed(&world) } else { world.pair() };
        if on_ring {
            assert_eq!(pair.a.send(b"he"), Ok(2));
            Simulated::meanwhile(move || assert_eq!(pair.a.send(b"ad"), Ok(2)));
            Simulated::meanwhile(move || assert_eq!(pair.a.send(b"er and more"), Ok(11)));
        } else {
            assert_eq!(pair.a.send(b"header and more"), Ok(15));
        }
        let mut view = pair.b.look_with(6, 0).unwrap();
        assert_eq!((view.is_on_ring(), view.bytes()), (on_ring, b"header and more".to_vec()));
        assert_eq!(pair.b.release(&mut view, 11), Ok(()));
        assert_eq!(pair.b.recv(99), Ok(b"more".to_vec()));
        // The end comes first.
        assert_eq!(pair.a.send(b"ab"), Ok(2));
        pair.a.shutdown(SHUT_WR).unwrap();
        let mut view = pair.b.look_with(6, if on_ring { 0 } else { MSG_DONTWAIT }).unwrap();
        assert_eq!(view.bytes(), b"ab");
        assert_eq!(pair.b.release(&mut view, 2), Ok(()));
        assert_eq!(pair.b.look_with(1, 0).map(|view| view.len), Ok(0));
        pair.close();
    }
}

/// Who polls by looks is told that there is nothing without a call of the kernel's, and of what only the kernel knows as soon as a sender is.
#[test]
fn who_polls_hears_of_a_peer_that_was_killed() {
    let world = World::new();
    for unread in [false, true] {
        let (pair, child) = super::forks::forked(&world, super::forks::NEIGHBOURS[0]);
        pair.b.close();
        for i in 0..5 {
            assert!(matches!(pair.a.look(1), Err(EAGAIN)));
            assert_eq!(child.run(|| pair.b.send(&bytes(i, 9))), Ok(9));
            let mut view = pair.a.look(1).unwrap();
            assert!(view.is_on_ring() && view.bytes() == bytes(i, 9));
            assert_eq!(pair.a.release(&mut view, 9), Ok(()));
        }
        if unread {
            assert_eq!(pair.a.send(b"unread"), Ok(6));
        }
        let begun = Simulated::now();
        let mut looks = 0;
        let said = loop {
            match pair.a.look(1) {
                Err(EAGAIN) if looks == 0 => {
                    child.kill();
                    looks = 1;
                }
                Err(EAGAIN) => looks += 1,
                said => break said.map(|view| view.len),
            }
            Simulated::pass(1_000);
        };
        // As `recv` says it.
        assert_eq!(said, if unread { Err(ECONNRESET) } else { Ok(0) });
        assert!(looks > 0 && Simulated::now() - begun < 60_000, "{looks} {}", Simulated::now() - begun);
        pair.a.close();
    }
}
