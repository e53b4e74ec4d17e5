//! The bytes of a stream: native, on a ring, across the switch between them, short and long, peeked at.
// `sendfile` takes the program's pointer.
#![allow(unsafe_code)]

use super::*;
use crate::io;
use crate::kernel::Kernel;
use core::sync::atomic::Ordering::Relaxed;
use libc::{EAGAIN, EFAULT, MSG_DONTWAIT, MSG_PEEK, MSG_TRUNC, MSG_WAITALL};

#[test]
fn a_connection_that_is_not_attached_is_the_kernels() {
    let world = World::new();
    let pair = world.pair();
    assert_eq!(pair.a.send(b"hello"), Ok(5));
    assert_eq!(on_kernel(&pair), 5);
    assert_eq!(pair.b.recv(3), Ok(b"hel".to_vec()));
    assert_eq!(pair.b.peek(9), Ok(b"lo".to_vec()));
    assert_eq!(pair.b.recv(9), Ok(b"lo".to_vec()));
    assert_eq!(pair.b.recv(9), Err(EAGAIN));
    pair.close();
}

#[test]
fn once_both_are_ready_bytes_go_by_the_ring() {
    let world = World::new();
    let pair = warmed(&world);
    assert_eq!(pair.a.send(b"ring"), Ok(4));
    assert_eq!(on_kernel(&pair), 0);
    assert_eq!(pair.b.peek(2), Ok(b"ri".to_vec()));
    assert_eq!(pair.b.recv(9), Ok(b"ring".to_vec()));
    assert_eq!(pair.b.recv(9), Err(EAGAIN));
    pair.close();
}

#[test]
fn what_was_sent_natively_comes_first() {
    let world = World::new();
    for slow in [false, true] {
        let pair = world.pair();
        Simulated::tcp(pair.a.fd, |tcp, _| tcp.slow = slow);
        assert_eq!(pair.a.send(&bytes(0, 300)), Ok(300));
        pair.attach(RING);
        // The receiver declares itself ready before it has read.
        assert_eq!(pair.b.send(b"x"), Ok(1));
        assert_eq!(pair.a.send(&bytes(300, 300)), Ok(300));
        assert_eq!(pair.a.ep.tx_phase.get(), TxPhase::Ring);
        let mut got = Vec::new();
        for _ in 0..1000 {
            match pair.b.recv(7) {
                Ok(some) => got.extend(some),
                Err(EAGAIN) => Simulated::tcp(pair.a.fd, |tcp, end| tcp.arrive(end, 11)),
                Err(e) => panic!("errno {e}"),
            }
            if got.len() == 600 {
                break;
            }
        }
        assert_eq!(got, bytes(0, 600), "slow: {slow}");
        Simulated::tcp(pair.a.fd, |tcp, _| tcp.slow = false);
        pair.close();
    }
}

#[test]
fn a_full_ring_takes_a_part_and_then_nothing() {
    let world = World::new();
    let pair = warmed(&world);
    let all = bytes(0, 3 * RING);
    assert_eq!(pair.a.send(&all), Ok(RING));
    assert_eq!(pair.a.send(&all[RING..]), Err(EAGAIN));
    assert_eq!(pair.b.recv(1000), Ok(all[..1000].to_vec()));
    assert_eq!(pair.a.send(&all[RING..]), Ok(1000));
    let mut got = all[..1000].to_vec();
    while let Ok(some) = pair.b.recv(4099) {
        got.extend(some);
    }
    assert_eq!(got, all[..RING + 1000]);
    pair.close();
}

#[test]
fn long_streams_go_round_the_ring() {
    let world = World::new();
    let pair = warmed(&world);
    let (mut sent, mut got) = (0, 0);
    let (total, steps) = if cfg!(miri) { (2 * RING, [3001, 5011]) } else { (50 * RING, [1777, 3001]) };
    while got < total {
        while let Ok(n) = pair.a.send(&bytes(sent, steps[0])) {
            sent += n;
        }
        for _ in 0..9 {
            let Ok(some) = pair.b.recv(steps[1]) else { break };
            assert_eq!(some, bytes(got, some.len()));
            got += some.len();
        }
    }
    assert_eq!(on_kernel(&pair), 0);
    while got < sent {
        got += pair.b.recv(RING).unwrap().len();
    }
    pair.close();
}

#[test]
fn flags_of_a_receive() {
    let world = World::new();
    let pair = warmed(&world);
    assert_eq!(pair.a.send(&bytes(0, 100)), Ok(100));
    assert_eq!(pair.b.recv_with(30, MSG_PEEK | MSG_WAITALL | MSG_DONTWAIT), Ok(bytes(0, 30)));
    // Discards without writing.
    assert_eq!(pair.b.recv_with(30, MSG_TRUNC | MSG_DONTWAIT), Ok(vec![0; 30]));
    assert_eq!(pair.b.recv_with(0, MSG_DONTWAIT), Ok(vec![]));
    assert_eq!(pair.b.recv_with(100, MSG_WAITALL | MSG_DONTWAIT), Ok(bytes(30, 70)));
    pair.close();
}

#[test]
fn a_bad_pointer_sends_nothing_and_takes_nothing() {
    let world = World::new();
    let pair = warmed(&world);
    let message = bytes(0, 64);
    Simulated::spoil(&message);
    assert_eq!(pair.a.send(&message), Err(EFAULT));
    assert_eq!(pair.a.send(b"good"), Ok(4));
    assert_eq!(pair.b.recv(64), Ok(b"good".to_vec()));
    pair.close();
}

#[test]
fn without_memory_for_the_ring_the_kernel_takes_the_bytes() {
    let world = World::new();
    let pair = warmed(&world);
    Simulated::limit_memory(Some(0));
    // What fits the home has its memory; the rest goes over the lifeline, and the direction stays there.
    let all = bytes(0, RING / 3);
    let mut sent = 0;
    while sent < all.len() {
        sent += pair.a.send(&all[sent..]).unwrap();
    }
    assert_eq!(pair.a.ep.tx_phase.get(), TxPhase::Down);
    let mut got = Vec::new();
    while let Ok(some) = pair.b.recv(999) {
        got.extend(some);
    }
    assert_eq!(got, all);
    pair.close();
}

#[test]
fn a_short_message_is_not_divided_where_the_ring_gets_no_memory() {
    let world = World::new();
    let pair = warmed(&world);
    Simulated::limit_memory(Some(0));
    let all = bytes(0, 2800);
    let before = pair.a.ep.tx_tail.load(Relaxed);
    assert_eq!(pair.a.send(&all), Ok(2800));
    // A receiver that sleeps on the ring would be woken for a part of it.
    assert_eq!(pair.a.ep.tx_tail.load(Relaxed), before);
    assert_eq!(pair.b.recv(9999), Ok(all));
    pair.close();
}

#[test]
#[cfg_attr(miri, ignore = "the ring is smaller than what is not divided, so nothing begins there")]
fn a_file_is_sent_whole_where_the_ring_gets_no_memory() {
    let world = World::new();
    let pair = warmed(&world);
    let all = bytes(0, 50_000);
    let file = Simulated::memory_file(c"file", all.len()).unwrap();
    Simulated::write_at(file, &all, 0);
    Simulated::limit_memory(Some(0));
    let mut at = 500;
    let (ep, fd) = (pair.a.ep, pair.a.fd);
    // SAFETY: a local variable.
    let sent = unsafe { io::sendfile(ep, fd, file, &raw mut at, 45_000, || unreachable!("it begins on the ring")) };
    assert_eq!((sent, at), (45_000, 45_500));
    let mut got = Vec::new();
    while let Ok(some) = pair.b.recv(999) {
        got.extend(some);
    }
    assert_eq!(got, all[500..45_500]);
    Simulated::close(file);
    pair.close();
}

/// What lies on the ring for another user's process is this one's memory: with one that does not read it goes to the kernel, which
/// charges its receiver.
#[test]
fn a_stranger_that_does_not_read_has_the_kernels_buffers() {
    use crate::sim::world::Neighbour;
    let world = World::new();
    for neighbour in [Neighbour::Own, Neighbour::Stranger] {
        for reads in [false, true] {
            let pair = world.pair();
            assert!(pair.attach_in(world.lane(RING, neighbour).unwrap()));
            warm(&pair);
            let all = bytes(0, 2 * RING);
            let mut sent = 0;
            let mut got = Vec::new();
            for _ in 0..20 {
                while let Ok(n @ 1..) = pair.a.send(&all[sent..]) {
                    sent += n;
                }
                Simulated::pass(30_000_000);
                if reads {
                    got.extend(pair.b.recv(RING / 64).unwrap());
                }
            }
            let left = neighbour == Neighbour::Stranger && !reads;
            assert_eq!(
                pair.a.ep.tx_phase.get(),
                if left { TxPhase::Down } else { TxPhase::Ring },
                "{neighbour:?}, {reads}"
            );
            while sent < all.len() || got.len() < sent {
                if let Ok(n) = pair.a.send(&all[sent..]) {
                    sent += n;
                }
                got.extend(pair.b.recv(RING).unwrap_or_default());
            }
            assert!(got == all);
            pair.close();
        }
    }
}

/// A sender finishes while more lies unread than the lifeline takes. What a peek waits behind of that must not keep the end from
/// coming: the receiver reads nothing meanwhile.
#[test]
fn a_peek_that_wants_more_than_there_is_sees_the_end_behind_a_long_echo() {
    let world = World::new();
    for left in [1, 76, 1_000] {
        let pair = warmed(&world);
        // The lifeline takes a few bytes at a time.
        Simulated::tcp(pair.b.fd, |tcp, end| tcp.end(end).room = RING / 8);
        let all = RING - 1_000;
        assert_eq!(pair.a.send(&bytes(0, all)), Ok(all));
        assert_eq!(pair.a.shutdown(SHUT_WR), Ok(()));
        assert_eq!(pair.b.recv(all - left), Ok(bytes(0, all - left)));
        assert_eq!(pair.b.recv_with(all, libc::MSG_PEEK | libc::MSG_WAITALL), Ok(bytes(all - left, left)));
        assert_eq!(pair.b.recv(all), Ok(bytes(all - left, left)));
        assert_eq!(pair.b.recv(9), Ok(vec![]));
        pair.close();
    }
}

/// Nothing is held back on the ring; who carries the bytes to another host does it there, and is told when it is over.
#[test]
fn who_stands_in_for_another_host_is_told_of_a_cork_and_of_its_end() {
    use crate::kernel::Kernel as _;
    use crate::{config, rx, tx};
    use core::sync::atomic::Ordering::Relaxed;
    use shmring::family::PEER_STANDS_IN;
    use shmring::layout::CORKED;
    let world = World::new();
    let pair = warmed(&world);
    let (a, b) = (pair.a.ep, pair.b.ep);
    let hears = || {
        let chan = b.chan().unwrap();
        (rx::manner(b, chan) & CORKED != 0, rx::is_pushed(b, chan))
    };
    let cork = |on| assert_eq!(tx::cork(a, on, || 0), 0);
    config::stand_in(true);
    // The other side is a program like this one.
    cork(true);
    assert_eq!(hears(), (false, false));
    cork(false);
    a.stands_in.store(PEER_STANDS_IN, Relaxed);
    cork(true);
    cork(true);
    assert_eq!((pair.a.send(b"part"), pair.b.recv(9), hears()), (Ok(4), Ok(b"part".to_vec()), (true, false)));
    for _ in 0..2 {
        cork(false);
        assert_eq!(hears(), (false, true));
    }
    rx::push_is_told(b, b.chan().unwrap());
    assert_eq!(hears(), (false, false));
    cork(false);
    assert_eq!(hears(), (false, false));
    // A process that stands in for nobody has nobody to send it to.
    cork(true);
    cork(false);
    config::stand_in(false);
    assert_eq!(hears(), (false, false));
    pair.close();
    // One that it has set before the connection came to a ring.
    let pair = world.pair();
    pair.a.ep.local().stands_in.store(PEER_STANDS_IN, Relaxed);
    assert_eq!(Simulated::set_option(pair.a.fd, libc::IPPROTO_TCP, libc::TCP_CORK, 1), 0);
    pair.attach(RING);
    let (b, chan) = (pair.b.ep, pair.b.ep.chan().unwrap());
    assert!(rx::manner(b, chan) & CORKED != 0);
    assert_eq!(Simulated::set_option(pair.a.fd, libc::IPPROTO_TCP, libc::TCP_NODELAY, 1), 0);
    tx::manner_set(pair.a.ep, pair.a.ep.chan().unwrap(), pair.a.fd);
    assert!(rx::manner(b, chan) & CORKED != 0);
    pair.close();
}
