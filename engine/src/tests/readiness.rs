//! What a wait reports of a connection, and what it sleeps on, in every phase of its two directions.

use super::*;
use crate::closing;
use crate::kernel::Kernel as _;
use crate::leave::{self, Unread};
use crate::readiness::lifeline_events;
use crate::sim::process::Process;
use crate::sim::world::Side;
use crate::tx;
use core::sync::atomic::Ordering::Relaxed;
use libc::{POLLERR, POLLHUP, POLLIN, POLLOUT, POLLRDHUP, SHUT_RD, SO_LINGER, SO_RCVLOWAT, SOL_SOCKET, linger};
use shmring::family::Reason;

const ALL: i16 = POLLIN | POLLOUT | POLLRDHUP;

/// What is slept on for each of POLLIN, POLLOUT, POLLRDHUP and nothing.
fn slept_on(side: Side) -> [i16; 4] {
    let chan = side.ep.chan().unwrap();
    [POLLIN, POLLOUT, POLLRDHUP, 0].map(|wanted| lifeline_events(side.ep, chan, wanted))
}

#[test]
fn a_sleeper_is_woken_by_what_it_wants_and_the_ring_does_not_tell() {
    let world = World::new();
    // Writing is the kernel's business only while the sending direction is there.
    let [native, ring] = [POLLOUT | POLLRDHUP, POLLRDHUP];
    let pair = world.attached();
    assert_eq!(pair.a.ep.tx_phase.get(), TxPhase::Native);
    assert_eq!(slept_on(pair.a), [POLLIN | POLLRDHUP, native, POLLRDHUP, POLLRDHUP]);
    warm(&pair);
    assert_eq!(slept_on(pair.a), [POLLIN | POLLRDHUP, ring, POLLRDHUP, POLLRDHUP]);
    // A sender that has something to send again is woken by room for it, whatever it wants.
    Simulated::tcp(pair.a.fd, |tcp, end| (tcp.end(end).sndbuf, tcp.end(1 - end).room) = (900, 700));
    assert_eq!(pair.a.send(&bytes(0, 4_000)), Ok(4_000));
    crate::tx::leave(pair.a.ep, pair.a.ep.chan().unwrap(), pair.a.fd);
    assert_eq!(pair.a.ep.tx_phase.get(), TxPhase::Rewind);
    assert_eq!(slept_on(pair.a), [POLLIN | native, native, native, native]);
    // What the lifeline repeats is nothing to read there.
    assert_eq!(slept_on(pair.b), [POLLRDHUP, ring, POLLRDHUP, POLLRDHUP]);
    assert!(!leave::has_left(pair.b.ep) && !leave::has_left(pair.a.ep));
    for _ in 0..100 {
        _ = pair.b.recv(999);
        _ = pair.a.poll(POLLOUT);
    }
    assert_eq!(pair.a.ep.tx_phase.get(), TxPhase::Down);
    assert_eq!(slept_on(pair.a), [POLLIN | POLLRDHUP, native, POLLRDHUP, POLLRDHUP]);
    assert_eq!(slept_on(pair.b)[0], POLLIN | POLLRDHUP);
    // An end that is known wakes nobody who does not ask for it.
    assert_eq!(pair.b.shutdown(SHUT_RD), Ok(()));
    assert_eq!(slept_on(pair.b), [POLLIN | POLLRDHUP, 0, POLLRDHUP, 0]);
    pair.close();
    let pair = warmed(&world);
    pair.a.close();
    assert_eq!(pair.b.poll(ALL) & (POLLIN | POLLRDHUP), POLLIN | POLLRDHUP);
    assert_eq!(slept_on(pair.b)[3], 0);
    pair.b.close();
}

#[test]
fn what_a_set_was_told_of_a_lifeline_is_as_good_as_a_look() {
    let world = World::new();
    let pair = warmed(&world);
    let chan = pair.a.ep.chan().unwrap();
    let due = || tx::look_due(pair.a.ep, chan, tx::LOOK_EVERY_US);
    let look = || tx::look(pair.a.ep, chan, pair.a.fd, POLLRDHUP);
    look();
    assert!(!due());
    Simulated::pass(5_000_000);
    assert!(due());
    // What was told before says nothing of now.
    tx::spare_look(pair.a.ep, chan, 1);
    assert!(due());
    tx::spare_look(pair.a.ep, chan, Simulated::cycles());
    assert!(!due());
    // A look that was asked for is made.
    pair.a.ep.tx_checked.store(0, Relaxed);
    tx::spare_look(pair.a.ep, chan, Simulated::cycles());
    assert!(due());
    // Nor does anybody take an end that was noted for a life.
    look();
    pair.b.close();
    look();
    Simulated::pass(5_000_000);
    tx::spare_look(pair.a.ep, chan, Simulated::cycles());
    assert!(due());
    pair.a.close();
}

#[test]
fn a_low_water_mark_counts_what_lies_behind_the_ring() {
    let world = World::new();
    let pair = warmed(&world);
    Simulated::set_option(pair.b.fd, SOL_SOCKET, SO_RCVLOWAT, 100);
    pair.b.ep.rcvlowat.store(100, Relaxed);
    assert_eq!(pair.a.send(&bytes(0, 40)), Ok(40));
    assert_eq!(pair.b.poll(ALL), POLLOUT);
    // The rest goes by the kernel.
    leave::retire(pair.b.fd, Reason::Option);
    assert_eq!(pair.a.send(&bytes(40, 59)), Ok(59));
    assert_eq!(pair.b.poll(ALL), POLLOUT);
    assert_eq!(pair.a.send(&bytes(99, 1)), Ok(1));
    assert_eq!(pair.b.poll(ALL), POLLIN | POLLOUT);
    assert_eq!(pair.b.recv(999), Ok(bytes(0, 100)));
    assert_eq!(pair.b.poll(ALL), POLLOUT);
    pair.close();
}

#[test]
fn each_event_alone() {
    let world = World::new();
    let pair = warmed(&world);
    for wanted in [POLLIN, POLLOUT, POLLRDHUP, ALL, 0] {
        assert_eq!(pair.b.poll(wanted), wanted & POLLOUT);
    }
    assert_eq!(pair.a.send(b"x"), Ok(1));
    for wanted in [POLLIN, POLLOUT, POLLRDHUP, ALL, 0] {
        assert_eq!(pair.b.poll(wanted), wanted & (POLLIN | POLLOUT));
    }
    // No room.
    while pair.b.send(&[7; 999]).is_ok() {}
    assert_eq!(pair.b.poll(ALL), POLLIN);
    pair.a.close();
    // Closed with bytes unread: reset. Those that came before are there still.
    let ended = POLLIN | POLLOUT | POLLRDHUP | POLLHUP | POLLERR;
    assert_eq!(pair.b.poll(ALL), ended);
    assert_eq!(pair.b.poll(0), POLLHUP | POLLERR);
    assert_eq!(pair.b.recv(9), Ok(b"x".to_vec()));
    assert_eq!(pair.b.recv(9), Err(libc::ECONNRESET));
    assert_eq!(pair.b.poll(ALL), ended & !POLLERR);
    pair.b.close();
}

#[test]
fn an_end_that_the_peer_has_said_is_told_at_once_whatever_is_asked_for() {
    let world = World::new();
    let ended = POLLIN | POLLOUT | POLLRDHUP | POLLHUP | POLLERR;
    for wanted in [0, POLLIN, POLLOUT, POLLRDHUP] {
        let lane = world.lane(crate::sim::world::RING, crate::sim::world::Neighbour::Own).unwrap();
        let [pair, other] = [world.pair(), world.pair()];
        for pair in [pair, other] {
            assert!(pair.attach_in(lane));
            warm(&pair);
        }
        for side in [pair.a, pair.b] {
            assert_eq!(side.send(b"unread"), Ok(6));
        }
        // Both were looked at a moment ago: no look is due.
        Simulated::pass(5_000_000);
        assert_eq!([pair.b.poll(0), other.b.poll(0)], [0, 0]);
        pair.a.close();
        assert_eq!(pair.b.poll(wanted), ended & (wanted | POLLHUP | POLLERR), "{wanted}");
        pair.b.close();
        other.close();
    }
}

/// The end of a process: what it has not read by then is a RST, unless it reads it after all.
#[test]
#[cfg_attr(miri, ignore = "to change the process takes too long")]
fn one_who_reads_while_it_ends_has_not_reset() {
    let world = World::new();
    for (on, seconds) in [(0, 0), (0, 9), (1, 7)] {
        for reads in [0, 500, 1_000] {
            let pair = warmed(&world);
            let child = Process::fork();
            child.run(|| pair.a.close());
            pair.b.close();
            child.run(|| {
                let fd = pair.b.fd;
                Simulated::set_option(fd, SOL_SOCKET, SO_LINGER, linger { l_onoff: on, l_linger: seconds });
            });
            assert_eq!(pair.a.send(&bytes(0, 1_000)), Ok(1_000));
            child.run(|| {
                let now = || {
                    let mut v = linger { l_onoff: -1, l_linger: -1 };
                    Simulated::get_option(pair.b.fd, SOL_SOCKET, SO_LINGER, &mut v);
                    (v.l_onoff, v.l_linger)
                };
                crate::family::begin_leaving();
                closing::end_connection(pair.b.ep, pair.b.ep.chan().unwrap(), pair.b.fd);
                assert_eq!(now(), (1, 0));
                assert_eq!(pair.b.recv(reads).map(|got| got.len()), Ok(reads));
                assert_eq!(now(), if reads == 1_000 { (on, seconds) } else { (1, 0) });
            });
            child.kill();
            let end = pair.a.recv(9);
            assert_eq!(end, if reads == 1_000 { Ok(vec![]) } else { Err(libc::ECONNRESET) });
            pair.a.close();
        }
    }
}

#[test]
fn a_connection_that_leaves_is_looked_after_until_both_directions_have() {
    let world = World::new();
    let pair = warmed(&world);
    assert!(!leave::has_left(pair.a.ep));
    assert_eq!(pair.a.send(&bytes(0, 3_000)), Ok(3_000));
    crate::tx::leave(pair.b.ep, pair.b.ep.chan().unwrap(), pair.b.fd);
    assert!(!leave::has_left(pair.b.ep), "it still receives on the ring");
    assert!(leave::quit(pair.b.fd, Reason::Exec, Unread::Rewind));
    assert!(leave::has_left(pair.b.ep) && !leave::has_left(pair.a.ep));
    assert_eq!(pair.b.recv(9_999), Ok(bytes(0, 3_000)));
    assert_eq!(pair.a.recv(9), Err(libc::EAGAIN));
    assert!(leave::has_left(pair.a.ep));
    pair.close();
}
