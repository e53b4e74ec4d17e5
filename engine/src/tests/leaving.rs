//! The way back to the kernel: rewind, cut, echo, a peer that cannot do its part.

use super::*;
use crate::kernel::Kernel as _;
use crate::leave::{self, Unread};
use crate::sim::world::Side;
use crate::{rx, tx};
use core::sync::atomic::Ordering::Relaxed;
use libc::{
    EAGAIN, ECONNRESET, EPIPE, POLLERR, POLLHUP, POLLIN, POLLOUT, POLLRDHUP, SHUT_WR, SO_OOBINLINE, SOL_SOCKET,
};
use shmring::family::{PEER_STANDS_IN, Reason};

/// Reads what is there, in pieces.
fn drain(side: Side) -> Vec<u8> {
    let mut got = Vec::new();
    loop {
        match side.recv(701) {
            Ok(some) if some.is_empty() => return got,
            Ok(some) => got.extend(some),
            Err(EAGAIN) => return got,
            Err(e) => panic!("errno {e} after {} bytes", got.len()),
        }
    }
}

#[test]
fn a_receiver_that_leaves_gets_what_it_did_not_read_over_the_lifeline() {
    let world = World::new();
    let pair = warmed(&world);
    assert_eq!(pair.a.send(&bytes(0, 5_000)), Ok(5_000));
    assert_eq!(pair.b.recv(1_000), Ok(bytes(0, 1_000)));
    leave::retire(pair.b.fd, Reason::Async);
    assert_eq!(on_kernel(&pair), 4_000);
    assert_eq!((pair.b.ep.rx_phase.get(), pair.b.ep.tx_phase.get()), (RxPhase::Down, TxPhase::Down));
    assert_eq!(pair.a.send(&bytes(5_000, 1_000)), Ok(1_000));
    // By the kernel's own call, as somebody would who does not know of us.
    assert_eq!(Simulated::recv(pair.b.fd, 9_000, false), Ok(bytes(1_000, 5_000)));
    assert_eq!(pair.b.send(b"back"), Ok(4));
    assert_eq!(pair.a.recv(9), Ok(b"back".to_vec()));
    assert!(leave::has_left(pair.a.ep) && leave::has_left(pair.b.ep));
    pair.close();
}

#[test]
fn a_receiver_that_stays_reads_the_ring_to_its_end_and_then_the_lifeline() {
    let world = World::new();
    let pair = warmed(&world);
    assert_eq!(pair.a.send(&bytes(0, 3_000)), Ok(3_000));
    leave::retire(pair.b.fd, Reason::Option);
    assert_eq!(pair.a.send(&bytes(3_000, 1_000)), Ok(1_000));
    assert_eq!(drain(pair.b), bytes(0, 4_000));
    assert_eq!(pair.a.ep.tx_phase.get(), TxPhase::Down);
    pair.close();
}

#[test]
fn what_a_sender_repeats_over_the_lifeline_is_read_once() {
    let world = World::new();
    for peeked in [0, 1, 2_000] {
        let pair = warmed(&world);
        assert_eq!(pair.a.send(&bytes(0, 3_000)), Ok(3_000));
        tx::finish(pair.a.ep, pair.a.ep.chan().unwrap(), pair.a.fd);
        assert_eq!(on_kernel(&pair), 3_000, "an echo of all that lies unread");
        assert_eq!(pair.b.peek(peeked), Ok(bytes(0, peeked)));
        assert_eq!(rx::unread(pair.b.ep, pair.b.ep.chan().unwrap(), pair.b.fd), 3_000);
        assert_eq!(pair.a.send(&bytes(3_000, 500)), Ok(500));
        assert_eq!(rx::unread(pair.b.ep, pair.b.ep.chan().unwrap(), pair.b.fd), 3_500);
        assert_eq!(pair.b.recv(1_234), Ok(bytes(0, 1_234)));
        assert_eq!(drain(pair.b), bytes(1_234, 2_266));
        pair.close();
    }
}

/// Another thread may set or ask for the option by which the kernel counts behind an urgent mark, or read the urgent byte.
#[test]
fn what_lies_behind_urgent_data_is_counted_without_a_change_of_the_socket() {
    let world = World::new();
    for peeked in [0, 1, 2_000] {
        let pair = warmed(&world);
        pair.b.ep.record().urgent.store(1, Relaxed);
        assert_eq!(pair.a.send(&bytes(0, 3_000)), Ok(3_000));
        tx::finish(pair.a.ep, pair.a.ep.chan().unwrap(), pair.a.fd);
        assert_eq!(pair.b.peek(peeked), Ok(bytes(0, peeked)));
        assert_eq!(rx::unread(pair.b.ep, pair.b.ep.chan().unwrap(), pair.b.fd), 3_000);
        assert_eq!(pair.a.send(&bytes(3_000, 500)), Ok(500));
        assert_eq!(drain(pair.b), bytes(0, 3_500));
        assert!(!Simulated::was_set(pair.b.fd, SOL_SOCKET, SO_OOBINLINE));
        pair.close();
    }
}

#[test]
fn an_echo_that_the_lifeline_does_not_take_at_once_comes_later() {
    let world = World::new();
    let pair = warmed(&world);
    Simulated::tcp(pair.a.fd, |tcp, end| tcp.end(1 - end).room = 700);
    Simulated::tcp(pair.a.fd, |tcp, end| tcp.end(end).sndbuf = 900);
    assert_eq!(pair.a.send(&bytes(0, 4_000)), Ok(4_000));
    tx::leave(pair.a.ep, pair.a.ep.chan().unwrap(), pair.a.fd);
    // The echo blocks what comes behind it.
    assert_eq!(pair.a.send(b"behind"), Err(EAGAIN));
    let mut got = Vec::new();
    let mut sent = 0;
    for _ in 0..100 {
        got.extend(drain(pair.b));
        if sent == 0 {
            sent = pair.a.send(&bytes(4_000, 300)).unwrap_or(0);
        }
    }
    assert_eq!(sent, 300);
    assert_eq!(got, bytes(0, 4_300));
    pair.close();
}

/// A program image that culvert does not see has finished the stream, such as one that the connection was handed on to.
#[test]
fn what_lies_on_the_ring_stays_there_for_a_peer_that_has_finished_too() {
    let world = World::new();
    for (a_finishes, b_finishes) in [(false, false), (false, true), (true, false), (true, true)] {
        let pair = warmed(&world);
        assert_eq!(pair.a.send(&bytes(0, 6_000)), Ok(6_000));
        tx::leave(pair.a.ep, pair.a.ep.chan().unwrap(), pair.a.fd);
        if a_finishes {
            Simulated::shutdown(pair.a.fd, SHUT_WR);
        }
        if b_finishes {
            assert_eq!(pair.b.shutdown(SHUT_WR), Ok(()));
        }
        pair.a.close();
        assert!(drain(pair.b) == bytes(0, 6_000), "{a_finishes} {b_finishes}");
        pair.b.close();
    }
}

#[test]
fn both_sides_leave_at_once() {
    let world = World::new();
    let pair = warmed(&world);
    assert_eq!(pair.a.send(&bytes(0, 2_000)), Ok(2_000));
    assert_eq!(pair.b.send(&bytes(7, 2_000)), Ok(2_000));
    leave::retire(pair.a.fd, Reason::Splice);
    leave::retire(pair.b.fd, Reason::Splice);
    assert_eq!(drain(pair.a), bytes(7, 2_000));
    assert_eq!(drain(pair.b), bytes(0, 2_000));
    assert!(leave::has_left(pair.a.ep) && leave::has_left(pair.b.ep));
    pair.close();
}

#[test]
fn a_killed_peer_cannot_bring_what_it_had_sent_to_the_lifeline() {
    let world = World::new();
    // Whoever goes on reading in our library gets it from the ring ...
    let pair = warmed(&world);
    assert_eq!(pair.a.send(&bytes(0, 100)), Ok(100));
    pair.a.die();
    assert!(!leave::quit(pair.b.fd, Reason::Exec, Unread::Rewind));
    assert_eq!(drain(pair.b), bytes(0, 100));
    pair.b.close();
    // ... and another reader a reset rather than a stream that is cut short.
    let pair = warmed(&world);
    assert_eq!(pair.a.send(&bytes(0, 100)), Ok(100));
    pair.a.die();
    leave::surrender(pair.b.fd, Reason::Passed);
    assert_eq!(Simulated::recv(pair.b.fd, 9, false), Err(ECONNRESET));
    pair.b.close();
}

/// A killed peer had bytes unread on the ring. An epoll set of the kernel's is told of the reset that the kernel would have made
/// of that, had those bytes been in its queue.
#[test]
fn a_set_of_the_kernels_is_told_that_a_killed_peer_has_reset() {
    let world = World::new();
    let shown = |side: Side| crate::lifeline::look(side.fd, POLLIN | POLLRDHUP);
    let moves: [fn(i32); 3] = [
        |fd| leave::retire_with(fd, Reason::EpollShared, Unread::Keep),
        |fd| _ = leave::quit(fd, Reason::EpollShared, Unread::Rewind),
        |fd| leave::quit_all(Reason::EpollShared, |_| Unread::Rewind, |f| f == fd),
    ];
    for moves in moves {
        for told in [false, true] {
            let pair = warmed(&world);
            assert_eq!(pair.a.send(b"unread"), Ok(6));
            pair.b.die();
            if told {
                assert_eq!(pair.a.recv(9), Err(ECONNRESET));
            }
            moves(pair.a.fd);
            let error = if told { 0 } else { POLLERR };
            assert_eq!(shown(pair.a), POLLIN | POLLRDHUP | POLLHUP | error);
            if !told {
                assert_eq!(pair.a.send(b"x"), Err(ECONNRESET));
            }
            assert_eq!((pair.a.send(b"x"), pair.a.recv(9)), (Err(EPIPE), Ok(vec![])));
            pair.a.close();
        }
    }
}

/// Bytes before the switch point lie on the lifeline, the rest on a ring that was cut: a peek leaves both, and must not begin
/// again with the first.
#[test]
fn a_peek_across_a_ring_that_has_ended_sees_each_byte_once() {
    let world = World::new();
    for on_ring in [0, 1, 500] {
        let pair = world.pair();
        assert_eq!(pair.a.send(&bytes(0, 300)), Ok(300));
        pair.attach(RING);
        assert_eq!(pair.b.send(b"ready"), Ok(5));
        if on_ring > 0 {
            assert_eq!(pair.a.send(&bytes(300, on_ring)), Ok(on_ring));
        }
        leave::retire(pair.b.fd, Reason::Option);
        assert_eq!(pair.b.peek(999), Ok(bytes(0, 300 + on_ring)));
        // Behind the ring the lifeline goes on.
        assert_eq!(pair.a.send(&bytes(300 + on_ring, 70)), Ok(70));
        let all = bytes(0, 370 + on_ring);
        for peeked in [299, 300 + on_ring, 305 + on_ring, 999] {
            assert_eq!(pair.b.peek(peeked), Ok(all[..peeked.min(all.len())].to_vec()));
        }
        assert_eq!(drain(pair.b), all);
        pair.close();
    }
}

/// The sender has gone up and down before anything was read: its bytes lie before, on and behind the ring.
#[test]
fn a_peek_sees_before_on_and_behind_a_ring() {
    let world = World::new();
    for (before, on_ring) in [(0, 5), (3, 0), (3, 5), (40, 2_000)] {
        for seen_by_receiver in [false, true] {
            let pair = world.pair();
            assert_eq!(pair.a.send(&bytes(0, before)), Ok(before));
            pair.attach(RING);
            assert_eq!(pair.b.send(b"ready"), Ok(5));
            assert_eq!(pair.a.send(&bytes(before, on_ring)), Ok(on_ring));
            if seen_by_receiver {
                assert_eq!(pair.b.peek(1), Ok(bytes(0, 1)));
            }
            leave::retire(pair.a.fd, Reason::Option);
            let total = before + on_ring + 600;
            assert_eq!(pair.a.send(&bytes(before + on_ring, 600)), Ok(600));
            let all = bytes(0, total);
            for peeked in [before + on_ring + 1, total, total + 99] {
                assert_eq!(pair.b.peek(peeked), Ok(all[..peeked.min(total)].to_vec()), "{before} {on_ring} {peeked}");
            }
            assert_eq!(drain(pair.b), all);
            pair.close();
        }
    }
}

/// A peer that is elsewhere is waited for shortly, and its connection then reset; not so soon one that stands in for other hosts.
#[test]
fn a_peer_that_stands_in_is_waited_for_longer() {
    const MS: u64 = 1_000_000;
    let world = World::new();
    for stands_in in [0, PEER_STANDS_IN] {
        let pair = warmed(&world);
        assert_eq!(pair.a.send(&bytes(0, 5_000)), Ok(5_000));
        let (ep, fd) = (pair.b.ep, pair.b.fd);
        ep.stands_in.store(stands_in, Relaxed);
        let (chan, life, patience) = (ep.chan().unwrap(), ep.life(), rx::Patience::begin());
        rx::ask(ep, chan, fd, life, Unread::Rewind, Reason::Passed, patience);
        let done = || rx::look_after(ep, chan, fd, life, Unread::Rewind, Reason::Passed, patience);
        assert!(!done());
        Simulated::pass(100 * MS);
        assert_eq!(done(), stands_in == 0);
        Simulated::pass(2_000 * MS);
        assert!(done());
        pair.close();
    }
}

/// Under TCP_USER_TIMEOUT a sender whose peer does not read goes to the kernel, whose timer ends the connection; not where the peer stands in
/// for another host: what that acknowledges counts, and the kernel hears nothing of it.
#[test]
fn a_peer_that_stands_in_is_no_matter_for_the_kernels_timer() {
    let world = World::new();
    for stands_in in [0, PEER_STANDS_IN] {
        let pair = warmed(&world);
        while pair.a.send(&bytes(0, 5_000)).is_ok() {}
        let (ep, fd) = (pair.a.ep, pair.a.fd);
        ep.stands_in.store(stands_in, Relaxed);
        ep.timed.store(1, Relaxed);
        let chan = ep.chan().unwrap();
        assert!(!tx::give_way(ep, chan, fd));
        Simulated::pass(200_000_000);
        assert_eq!(tx::give_way(ep, chan, fd), stands_in == 0);
        assert_eq!(ep.tx_phase.get() == TxPhase::Ring, stands_in != 0);
        pair.close();
    }
}

/// What lies unread at an exec goes to the lifeline, where every image reads it, if the peer stands in for other hosts, whatever that does
/// now; another peer has to show first that it can be woken.
#[test]
fn a_peer_that_stands_in_takes_back_what_is_unread_at_an_exec() {
    let world = World::new();
    for stands_in in [0, PEER_STANDS_IN] {
        let pair = warmed(&world);
        assert_eq!(pair.a.send(&bytes(0, 5_000)), Ok(5_000));
        pair.b.ep.stands_in.store(stands_in, Relaxed);
        let answering = leave::Answering::of(|fd| fd == pair.b.fd);
        assert_eq!(answering.has(pair.b.ep), stands_in != 0);
        pair.close();
    }
}

/// A call that leaves many connections, whose peers do not read, lasts as long as for one of them.
#[test]
fn peers_that_do_not_read_are_waited_for_together() {
    let world = World::new();
    let pairs = [(); 3].map(|()| warmed(&world));
    for pair in &pairs {
        Simulated::tcp(pair.a.fd, |tcp, end| tcp.end(1 - end).room = 700);
        Simulated::tcp(pair.a.fd, |tcp, end| tcp.end(end).sndbuf = 900);
        assert_eq!(pair.a.send(&bytes(0, 4_000)), Ok(4_000));
        tx::leave(pair.a.ep, pair.a.ep.chan().unwrap(), pair.a.fd);
        assert!(tx::rewinds(pair.a.ep));
    }
    let until = Simulated::now() + tx::FINISH_NS;
    for pair in &pairs {
        tx::flush_until(pair.a.ep, pair.a.ep.chan().unwrap(), pair.a.fd, false, until);
    }
    assert!(Simulated::now() < until + tx::FINISH_NS / 2);
    // What was to be repeated is missing: no stream that seems complete.
    assert!(pairs.iter().all(|pair| pair.a.send(b"x").is_err()));
    pairs.into_iter().for_each(Pair::close);
}

/// The error of a connection that its peer has reset is for the program's own calls. What a sender repeats for a receiver that has
/// left, or for one that may yet leave, must not take it from them.
#[test]
fn an_error_outlasts_the_way_back() {
    type Leaves = fn(Side);
    let back: [Leaves; 4] = [
        |s| leave::sending_side(s.fd, Reason::Splice),
        |s| leave::retire(s.fd, Reason::Async),
        |s| leave::retire(s.fd, Reason::Option),
        |_| {},
    ];
    let all = POLLIN | POLLOUT | POLLRDHUP;
    let world = World::new();
    for ours in back {
        for theirs in back {
            for shuts in [true, false] {
                let (pair, reference) = (warmed(&world), world.pair());
                let both = [pair, reference];
                both.iter().for_each(|pair| assert_eq!(pair.b.send(b"unread"), Ok(6)));
                theirs(pair.a);
                if shuts {
                    both.iter().for_each(|pair| assert_eq!(pair.a.shutdown(SHUT_WR), Ok(())));
                }
                both.iter().for_each(|pair| pair.a.close());
                ours(pair.b);
                let error = if shuts { EPIPE } else { ECONNRESET };
                assert!(both.iter().all(|pair| pair.b.poll(all) & POLLERR != 0));
                assert!(both.iter().all(|pair| pair.b.send(b"more") == Err(error)));
                assert!(both.iter().all(|pair| pair.b.poll(all) & POLLERR == 0));
                assert!(both.iter().all(|pair| pair.b.recv(9) == Ok(vec![])));
                assert!(both.iter().all(|pair| pair.b.send(b"more") == Err(EPIPE)));
                both.iter().for_each(|pair| pair.b.close());
            }
        }
    }
}

/// A send that has sent something ends with that, and leaves the error to the next call; nor does it raise SIGPIPE.
#[test]
fn a_send_that_is_cut_short_keeps_the_error() {
    let world = World::new();
    for (shuts, error) in [(true, EPIPE), (false, ECONNRESET)] {
        let pair = warmed(&world);
        assert_eq!(pair.b.send(b"unread"), Ok(6));
        Simulated::in_copy(move || {
            if shuts {
                assert_eq!(pair.a.shutdown(SHUT_WR), Ok(()));
            }
            pair.a.close();
        });
        let done = pair.b.send_with(&bytes(0, 2 * RING), libc::MSG_DONTWAIT).unwrap();
        assert!(0 < done && done < 2 * RING, "{done}");
        assert_eq!(Simulated::tcp(pair.b.fd, |tcp, end| tcp.end(end).sigpipes), 0);
        assert_eq!(pair.b.poll(0) & POLLERR, POLLERR);
        assert_eq!(pair.b.send(b"more"), Err(error));
        assert_eq!(pair.b.poll(0) & POLLERR, 0);
        pair.b.close();
    }
}

/// A RST that comes without a FIN, to an end that has shut down: what its peer repeated over the lifeline is not read twice.
#[test]
fn a_reset_without_a_fin_is_not_counted_as_a_byte() {
    let world = World::new();
    let pair = world.pair();
    assert_eq!(pair.a.send(b"0"), Ok(1));
    pair.attach(RING);
    assert_eq!(pair.b.recv(1), Ok(b"0".to_vec()));
    assert_eq!(pair.a.send(b"1"), Ok(1));
    assert_eq!(pair.b.send(b"unread"), Ok(6));
    assert_eq!(pair.b.shutdown(SHUT_WR), Ok(()));
    pair.a.close();
    assert_eq!(pair.b.send(b"more"), Err(ECONNRESET));
    assert_eq!(pair.b.recv(9), Ok(b"1".to_vec()));
    assert_eq!(pair.b.recv(9), Ok(vec![]));
    pair.b.close();
}

/// What the kernel is asked to do by itself, such as a splice, finds no error there that this library has taken to know how the
/// connection ended.
#[test]
fn a_call_of_the_kernels_own_is_told_the_error_that_the_kernel_would_tell() {
    let world = World::new();
    let send = |side: Side| side.send_by_kernel(b"x");
    let recv = |side: Side| side.recv_by_kernel(99).map(|bytes| bytes.len());
    let sigpipes = |side: Side| Simulated::tcp(side.fd, |tcp, end| tcp.end(end).sigpipes);
    for reset in [0, 1, 2] {
        for receives in [false, true] {
            let pair = warmed(&world);
            assert_eq!(pair.a.send(b"unread"), Ok(6));
            match reset {
                0 => pair.b.close(),
                1 => pair.b.die(),
                // The error has been taken by the time.
                _ => {
                    pair.b.close();
                    assert_ne!(pair.a.poll(POLLIN) & POLLERR, 0);
                    crate::rx::note_failure(pair.a.ep, pair.a.fd);
                }
            }
            leave::surrender(pair.a.fd, Reason::Splice);
            assert_ne!(pair.a.poll(POLLIN) & POLLERR, 0);
            assert_eq!(if receives { recv(pair.a) } else { send(pair.a) }, Err(ECONNRESET), "{reset}");
            assert_eq!(pair.a.poll(POLLIN) & POLLERR, 0, "told once");
            assert_eq!(sigpipes(pair.a), 0);
            assert_eq!(recv(pair.a), Ok(0));
            assert_eq!(send(pair.a), Err(EPIPE));
            assert_eq!(sigpipes(pair.a), 1);
            pair.a.close();
        }
    }
    // Behind a FIN a reset is EPIPE, and of that a receiver is told nothing.
    let pair = warmed(&world);
    assert_eq!(pair.b.shutdown(SHUT_WR), Ok(()));
    assert_eq!(pair.a.send(b"unread"), Ok(6));
    pair.b.close();
    leave::surrender(pair.a.fd, Reason::Splice);
    assert_eq!((recv(pair.a), send(pair.a), sigpipes(pair.a)), (Ok(0), Err(EPIPE), 1));
    assert_eq!(pair.a.poll(POLLIN) & POLLERR, 0);
    pair.a.close();
}

/// A native receive goes over an urgent mark if it has no bytes itself, and the mark may come between a question and the receive.
#[test]
fn a_receive_that_has_bytes_asks_the_lifeline_only_for_what_has_come() {
    let world = World::new();
    let pair = warmed(&world);
    assert_eq!(pair.a.send(b"before"), Ok(6));
    Simulated::meanwhile(move || leave::surrender(pair.a.fd, Reason::Splice));
    // The receiver sleeps several times, now on the lifeline.
    for _ in 0..9 {
        Simulated::meanwhile(|| Simulated::pass(1_000_000));
    }
    Simulated::meanwhile(move || assert_eq!(pair.a.send_by_kernel(b"behind"), Ok(6)));
    Simulated::vain_receives();
    assert_eq!(pair.b.recv_with(12, libc::MSG_WAITALL), Ok(b"beforebehind".to_vec()));
    assert_eq!(Simulated::vain_receives(), 0);
    pair.a.close();
    pair.b.close();
}
