//! How a connection ends: close, half-close, a peer that is killed, resets.

use super::waiting::sleep_deep;
use super::*;
use crate::kernel::{K, Kernel as _};
use crate::leave::{self, Unread};
use crate::sim::world::Side;
use crate::{closing, lifeline};
use core::sync::atomic::Ordering::Relaxed;
use libc::{EAGAIN, ECONNRESET, EPIPE, POLLHUP, POLLIN, POLLOUT, POLLRDHUP, SHUT_RD, SHUT_RDWR, SHUT_WR};
use shmring::family::{PEER_STANDS_IN, Reason};

#[test]
fn what_was_sent_before_a_close_is_read_and_then_the_end() {
    let world = World::new();
    let pair = warmed(&world);
    assert_eq!(pair.a.send(&bytes(0, 5_000)), Ok(5_000));
    pair.a.close();
    assert_eq!(pair.b.recv(3_000), Ok(bytes(0, 3_000)));
    assert_eq!(pair.b.recv(3_000), Ok(bytes(3_000, 2_000)));
    assert_eq!(pair.b.recv(6_000), Ok(vec![]));
    assert_eq!(pair.b.recv(6_000), Ok(vec![]));
    pair.b.close();
}

#[test]
fn a_half_closed_connection_goes_on_the_other_way() {
    let world = World::new();
    let pair = warmed(&world);
    assert_eq!(pair.a.send(b"last"), Ok(4));
    assert_eq!(pair.a.shutdown(SHUT_WR), Ok(()));
    assert_eq!(pair.a.send(b"more"), Err(EPIPE));
    assert_eq!(pair.b.poll(POLLIN | POLLOUT | POLLRDHUP), POLLIN | POLLOUT | POLLRDHUP);
    assert_eq!(pair.b.recv(9), Ok(b"last".to_vec()));
    assert_eq!(pair.b.recv(9), Ok(vec![]));
    for i in 0..20 {
        assert_eq!(pair.b.send(&bytes(i, 500)), Ok(500));
        assert_eq!(pair.a.recv(999), Ok(bytes(i, 500)));
    }
    assert_eq!(pair.a.recv(9), Err(EAGAIN));
    assert_eq!(pair.b.shutdown(SHUT_WR), Ok(()));
    assert_eq!(pair.a.recv(9), Ok(vec![]));
    assert_ne!(pair.a.poll(POLLIN) & POLLHUP, 0);
    pair.close();
}

#[test]
fn a_close_with_bytes_unread_resets() {
    let world = World::new();
    let pair = warmed(&world);
    assert_eq!(pair.a.send(b"unread"), Ok(6));
    pair.b.close();
    assert_eq!(pair.a.recv(9), Err(ECONNRESET));
    assert_eq!(pair.a.recv(9), Ok(vec![]));
    assert_eq!(pair.a.send(b"x"), Err(EPIPE));
    pair.a.close();
}

/// The end of a peer that filled the ring stands behind what was repeated of that on the lifeline: who sends hears of it all the same.
#[test]
fn who_sends_to_a_closed_peer_whose_end_has_no_room_hears_of_it() {
    let world = World::new();
    let pair = warmed(&world);
    Simulated::tcp(pair.b.fd, |tcp, end| tcp.end(end).room = RING / 8);
    let piece = bytes(0, 1_000);
    while pair.a.send(&piece).is_ok() {}
    pair.a.close();
    assert_eq!(lifeline::look(pair.b.fd, POLLRDHUP), 0, "the end was seen: this shows nothing");
    assert!(pair.b.recv(999).is_ok_and(|all| all == piece[..999]));
    let refused = (0..100_000).map(|_| pair.b.send(&piece)).find(|r| matches!(r, Err(ECONNRESET | EPIPE)));
    assert!(refused.is_some(), "nobody said that the peer has gone");
    pair.b.close();
}

#[test]
fn what_a_killed_peer_had_sent_is_read() {
    let world = World::new();
    let pair = warmed(&world);
    assert_eq!(pair.a.send(&bytes(0, 3_000)), Ok(3_000));
    pair.a.die();
    assert_eq!(pair.b.recv(1_000), Ok(bytes(0, 1_000)));
    assert_eq!(pair.b.recv(9_000), Ok(bytes(1_000, 2_000)));
    assert_eq!(pair.b.recv(9), Ok(vec![]));
    pair.b.close();
}

#[test]
fn a_sender_hears_of_a_killed_peer() {
    let world = World::new();
    let pair = warmed(&world);
    pair.b.die();
    let mut last = Ok(0);
    for _ in 0..100 {
        last = pair.a.send(b"x");
        Simulated::pass(10_000);
        if last.is_err() {
            break;
        }
    }
    assert!(matches!(last, Err(EPIPE | ECONNRESET)), "{last:?}");
    assert_eq!(pair.a.send(b"x"), Err(EPIPE));
    pair.a.close();
}

/// Behind a reset there is nothing left to read, and that is no end of the stream (tcp_inq_hint: SOCK_DONE), whatever this side
/// shuts down afterwards.
#[test]
fn a_shutdown_after_a_reset_makes_no_end_of_it() {
    let world = World::new();
    for how in [None, Some(SHUT_WR), Some(SHUT_RDWR)] {
        for again in [false, true] {
            let pair = warmed(&world);
            assert_eq!(pair.a.send(b"unread"), Ok(6));
            pair.b.die();
            if again {
                assert_eq!(pair.a.recv(9), Err(ECONNRESET));
            }
            for how in how.into_iter().chain(how.filter(|_| again)) {
                assert_eq!(pair.a.shutdown(how), Err(libc::ENOTCONN));
            }
            let left = || crate::rx::inq(pair.a.ep, pair.a.ep.chan().unwrap(), pair.a.fd);
            assert_eq!(left(), 0, "{how:?} {again}");
            assert_eq!(pair.a.recv(9), if again { Ok(vec![]) } else { Err(ECONNRESET) });
            assert_eq!(left(), 0, "{how:?} {again}");
            pair.a.close();
        }
    }
}

#[test]
fn a_reset_of_the_lifeline_is_told_after_the_bytes() {
    let world = World::new();
    let pair = warmed(&world);
    assert_eq!(pair.a.send(b"bytes"), Ok(5));
    Simulated::tcp(pair.a.fd, |tcp, end| tcp.close(end, true));
    assert_eq!(pair.b.recv(9), Ok(b"bytes".to_vec()));
    assert_eq!(pair.b.recv(9), Err(ECONNRESET));
    assert_eq!(pair.b.recv(9), Ok(vec![]));
    assert_eq!(pair.b.send(b"x"), Err(EPIPE));
    pair.close();
}

#[test]
fn a_killed_peer_that_has_not_read_has_reset_whichever_way_its_own_bytes_came() {
    let world = World::new();
    let told = |b: crate::sim::world::Side| {
        assert_eq!(b.recv(9), Err(ECONNRESET));
        assert_eq!(b.recv(9), Ok(vec![]));
        assert_eq!(b.send(b"x"), Err(EPIPE));
        b.close();
    };
    // It has never sent anything.
    let pair = world.attached();
    assert_eq!(pair.b.send(b"unread"), Ok(6));
    pair.a.die();
    told(pair.b);
    // It has sent, and went back to the kernel.
    let pair = warmed(&world);
    assert_eq!(pair.a.send(b"x"), Ok(1));
    crate::leave::sending_side(pair.a.fd, shmring::family::Reason::Splice);
    assert_eq!(pair.b.send(b"unread"), Ok(6));
    pair.a.die();
    assert_eq!(pair.b.recv(9), Ok(b"x".to_vec()));
    told(pair.b);
    // The reader waits in the kernel since before there was a ring.
    let pair = world.pair();
    Simulated::meanwhile(move || {
        pair.attach(RING);
        assert_eq!(pair.b.send(b"unread"), Ok(6));
        assert_eq!(on_kernel(&pair), 0);
        pair.a.die();
    });
    assert_eq!(pair.b.recv_with(9, 0), Err(ECONNRESET));
    assert_eq!(pair.b.recv(9), Ok(vec![]));
    pair.b.close();
    // It had read everything, or only this side has shut down.
    let pair = world.attached();
    assert_eq!(pair.b.send(b"read"), Ok(4));
    assert_eq!(pair.a.recv(9), Ok(b"read".to_vec()));
    pair.a.die();
    assert_eq!(pair.b.recv(9), Ok(vec![]));
    pair.b.close();
    let pair = world.attached();
    assert_eq!(pair.b.send(b"unread"), Ok(6));
    assert_eq!(pair.b.shutdown(libc::SHUT_RD), Ok(()));
    assert_eq!(pair.b.recv(9), Ok(vec![]));
    assert_eq!(pair.b.send(b", and more"), Ok(10));
    assert_eq!(pair.a.recv(99), Ok(b"unread, and more".to_vec()));
    pair.close();
}

#[test]
fn what_a_peer_sent_before_it_reset_is_read_also_by_one_who_shuts_down_behind_it() {
    let world = World::new();
    for before in [0, 30] {
        let pair = world.pair();
        assert_eq!(pair.a.send(&bytes(0, before)), Ok(before));
        assert_eq!(pair.b.recv(before).map_or(0, |got| got.len()), before);
        pair.attach(RING);
        // The one reason for a RST, then what is read behind it.
        assert_eq!(pair.b.send(b"unread"), Ok(6));
        assert_eq!(pair.a.send(&bytes(before, 40)), Ok(40));
        pair.a.close();
        assert_eq!(pair.b.shutdown(SHUT_WR), Err(libc::ENOTCONN));
        assert_eq!(pair.b.send(b"x"), Err(ECONNRESET));
        assert_eq!(pair.b.recv(99), Ok(bytes(before, 40)));
        assert_eq!(pair.b.recv(99), Ok(vec![]));
        pair.b.close();
    }
}

/// What it did not read is this process's memory.
#[test]
fn nothing_is_left_for_a_stranger_that_was_killed() {
    use crate::sim::world::Neighbour;
    let world = World::new();
    for shuts_first in [false, true] {
        let lane = world.lane(RING, Neighbour::Stranger).unwrap();
        let pair = world.pair();
        assert!(pair.attach_in(lane));
        assert_eq!(pair.a.send(&bytes(0, RING / 2)), Ok(RING / 2));
        if shuts_first {
            assert_eq!(pair.b.shutdown(SHUT_WR), Ok(()));
        }
        pair.b.die();
        pair.a.close();
        assert_eq!(crate::channel::all().count(), 0);
    }
}

/// The same where it lived when the connection was closed: its channel, and what lies there, stays until then. It ends with its
/// process's next connection, or this process's.
#[test]
fn nothing_stays_of_what_was_left_for_a_stranger_that_ended_later() {
    use crate::channel;
    use crate::sim::world::Neighbour;
    let world = World::new();
    for accepts in [false, true] {
        let lane = world.lane(RING, Neighbour::Stranger).unwrap();
        let pair = world.pair();
        assert!(pair.attach_in(lane));
        let (closes, dies, chan) =
            if accepts { (pair.b, pair.a, lane.accepts) } else { (pair.a, pair.b, lane.connects) };
        assert_eq!(closes.send(&bytes(0, RING / 2)), Ok(RING / 2));
        closes.close();
        assert!(channel::all().any(|c| c.place() == chan.place()) && channel::left_behind() != 0);
        dies.die();
        world.pair().close();
        // Who made the memory can ask whether another has it.
        let stays = channel::all().any(|c| c.place() == chan.place() && !c.left_by_peer());
        assert_eq!(stays, !accepts, "its process lives");
        world.let_strangers_go();
        assert_eq!((channel::all().count(), channel::left_behind(), channel::kept()), (0, 0, 0));
    }
}

/// The kernel answers data behind a shutdown of both directions with a RST (tcp_rcv_state_process): what lies unread on the ring by
/// then does not come again.
#[test]
fn what_lies_unread_when_both_directions_are_shut_down_is_read_wherever_the_connection_goes() {
    let world = World::new();
    for shuts in [&[SHUT_RDWR][..], &[SHUT_RD, SHUT_WR], &[SHUT_WR, SHUT_RD]] {
        for why in [Reason::EpollShared, Reason::Async, Reason::Option] {
            let pair = warmed(&world);
            assert_eq!(pair.a.send(&bytes(0, 5_000)), Ok(5_000));
            assert_eq!(pair.b.recv(1_000), Ok(bytes(0, 1_000)));
            for how in shuts {
                assert_eq!(pair.b.shutdown(*how), Ok(()));
            }
            leave::quit(pair.b.fd, why, Unread::Rewind);
            leave::retire(pair.b.fd, why);
            assert_eq!(pair.a.poll(POLLIN | POLLRDHUP), POLLIN | POLLRDHUP, "{why:?} {shuts:?}");
            assert_eq!(pair.a.recv(9), Ok(vec![]));
            assert_ne!(pair.b.poll(POLLIN) & POLLHUP, 0);
            assert_eq!(pair.b.recv(9_999), Ok(bytes(1_000, 4_000)));
            assert_eq!(pair.b.recv(9), Ok(vec![]));
            assert!(leave::has_left(pair.b.ep));
            // Nobody reads that, and the kernel says so.
            assert_eq!(pair.a.send(b"x"), Ok(1));
            assert_eq!(pair.a.send(b"x"), Err(EPIPE));
            pair.close();
        }
    }
}

#[test]
fn an_echo_on_its_way_is_nothing_that_one_who_has_shut_down_reading_waits_for() {
    let world = World::new();
    for shuts_first in [true, false] {
        let pair = warmed(&world);
        Simulated::tcp(pair.a.fd, |tcp, end| (tcp.end(end).sndbuf, tcp.end(1 - end).room) = (900, 700));
        assert_eq!(pair.a.send(&bytes(0, 4_000)), Ok(4_000));
        if shuts_first {
            assert_eq!(pair.b.shutdown(SHUT_RD), Ok(()));
        }
        // The lifeline does not take all of the echo.
        crate::tx::leave(pair.a.ep, pair.a.ep.chan().unwrap(), pair.a.fd);
        if !shuts_first {
            assert_eq!(pair.b.shutdown(SHUT_RD), Ok(()));
        }
        assert_eq!(pair.b.recv(9_999), Ok(bytes(0, 4_000)));
        assert_eq!(pair.a.ep.tx_phase.get(), TxPhase::Rewind);
        assert_eq!(pair.b.poll(POLLIN | POLLRDHUP), POLLIN | POLLRDHUP);
        assert_eq!(pair.b.recv(9), Ok(vec![]));
        assert_eq!(pair.b.recv_with(9, 0), Ok(vec![]), "nor does it wait");
        for _ in 0..10 {
            _ = pair.a.poll(POLLOUT);
            assert_eq!(pair.b.recv(9), Ok(vec![]));
        }
        // Nothing keeps others from sending, nor this end from reading that (tcp_recvmsg_locked).
        assert_eq!(pair.a.send(b"more"), Ok(4));
        assert_eq!(pair.b.recv(9), Ok(b"more".to_vec()));
        pair.close();
    }
}

/// What the kernel has reported of the end, which it reports once, is noted, and stays as it was seen first.
#[test]
fn how_a_connection_ended_is_noted_as_the_kernel_reports_it() {
    use crate::lifeline::FIN_ALONE;
    use core::sync::atomic::Ordering::Relaxed;
    use libc::{ETIMEDOUT, POLLERR};
    use shmring::family::{FIN, RST};
    let world = World::new();
    let pair = world.attached();
    let ep = pair.b.ep;
    // Ended, and not known how.
    const SOMEHOW: u32 = 1;
    for (before, shut, errno, after) in [
        // tcp_reset: in CLOSE_WAIT, that is behind a FIN.
        (0, 0, EPIPE, FIN),
        (SOMEHOW, 0, EPIPE, FIN),
        // sk_stream_error: this side has shut down.
        (0, 1, EPIPE, 0),
        (SOMEHOW, 1, EPIPE, SOMEHOW),
        (0, 0, ECONNRESET, RST),
        (SOMEHOW, 1, ECONNRESET, RST),
        (0, 0, ETIMEDOUT, RST),
        // What was seen first counts.
        (FIN, 0, ECONNRESET, FIN),
        (RST, 0, EPIPE, RST),
        (0, 0, EAGAIN, 0),
    ] {
        ep.rx_fin.store(before, Relaxed);
        ep.wr_shut.store(shut, Relaxed);
        ep.note_error(errno);
        assert_eq!(ep.rx_fin.load(Relaxed), after, "{before} {shut} {errno}");
    }
    for (before, shut, seen, after) in [
        (0, 0, POLLIN | POLLOUT, 0),
        (0, 0, FIN_ALONE | POLLIN, FIN),
        (SOMEHOW, 0, FIN_ALONE, FIN),
        // This side has shut down for reading: the kernel shows that alike.
        (0, 1, FIN_ALONE, SOMEHOW),
        (0, 0, POLLHUP | POLLERR | POLLRDHUP, SOMEHOW),
        (RST, 0, POLLHUP | POLLERR | POLLRDHUP, RST),
        (FIN, 0, POLLHUP | POLLERR | POLLRDHUP, FIN),
    ] {
        ep.rx_fin.store(before, Relaxed);
        ep.rd_shut.store(shut, Relaxed);
        ep.note_end(seen);
        assert_eq!(ep.rx_fin.load(Relaxed), after, "{before} {shut} {seen:x}");
    }
    for word in [&ep.rx_fin, &ep.wr_shut, &ep.rd_shut] {
        word.store(0, Relaxed);
    }
    pair.close();
    // One that is not attached has the kernel's own word.
    let pair = world.pair();
    let before = pair.b.ep.rx_fin.load(Relaxed);
    pair.b.ep.note_error(ECONNRESET);
    pair.b.ep.note_error(EPIPE);
    assert_eq!(pair.b.ep.rx_fin.load(Relaxed), before);
    pair.close();
}

/// Disconnects the lifeline, up to where the kernel wakes who sleeps there.
fn disconnect(side: Side) {
    use crate::kernel::Kernel;
    crate::ruin::disconnecting(side.ep);
    Simulated::disconnect(side.fd);
}

/// Who slept is told EPIPE, and the error is the next call's, also where the sleeper is woken by the kernel before the thread that
/// disconnects is back from it.
#[test]
fn who_sleeps_when_a_connection_is_disconnected_leaves_the_error() {
    let world = World::new();
    for dozes in [false, true] {
        let pair = warmed(&world);
        sleep_deep(!dozes);
        if dozes {
            Simulated::nothing_meanwhile();
        }
        Simulated::meanwhile(move || disconnect(pair.a));
        assert_eq!(pair.a.recv_with(9, 0), Err(EPIPE), "dozes: {dozes}");
        crate::ruin::disconnected(pair.a.ep, pair.a.ep.chan().expect("a channel"));
        assert_eq!(pair.a.recv(9), Err(ECONNRESET));
        pair.close();
    }
}

#[test]
fn what_is_unread_goes_with_a_connection_that_is_disconnected() {
    let world = World::new();
    let pair = warmed(&world);
    assert_eq!(pair.b.send(b"unread"), Ok(6));
    disconnect(pair.a);
    crate::ruin::disconnected(pair.a.ep, pair.a.ep.chan().expect("a channel"));
    assert_eq!(pair.a.recv(9), Err(ECONNRESET));
    assert_eq!(pair.a.recv(9), Err(libc::ENOTCONN));
    assert_eq!(pair.b.recv(9), Err(ECONNRESET));
    assert_eq!(pair.b.recv(9), Ok(vec![]));
    pair.close();
}

/// What a program leaves under TCP_USER_TIMEOUT goes to the one who stands in for the remote host as fast as that host takes it: the kernel's
/// timer does not count any more. With any other peer it does.
#[test]
fn what_is_left_with_one_who_stands_in_has_no_timer_of_the_kernels() {
    let world = World::new();
    for stands_in in [0, PEER_STANDS_IN] {
        let pair = warmed(&world);
        let (ep, fd) = (pair.a.ep, pair.a.fd);
        assert_eq!(K::set_option(fd, libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT, 3000i32), 0);
        ep.stands_in.store(stands_in, Relaxed);
        ep.timed.store(1, Relaxed);
        closing::end_connection(ep, ep.chan().unwrap(), fd);
        let left = lifeline::option(fd, libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT);
        assert_eq!(left, Ok(if stands_in == 0 { 3000 } else { 0 }));
        pair.close();
    }
}

/// Nor does it count as left by this process: it was read, and closing it is no reason for a reset.
#[test]
fn what_one_who_stands_in_has_read_is_not_left_behind() {
    use crate::inplace::keep::Kept;
    use crate::sim::world::Neighbour;
    let world = World::new();
    for stands_in in [0, PEER_STANDS_IN] {
        let pair = world.pair();
        assert!(pair.attach_in(world.lane(RING, Neighbour::Stranger).unwrap()));
        warm(&pair);
        let mut kept = Kept::none();
        assert_eq!(pair.a.send(&bytes(0, RING / 2)), Ok(RING / 2));
        assert_eq!(pair.b.keep(1, RING, &mut kept), Some(RING / 2));
        pair.a.ep.stands_in.store(stands_in, Relaxed);
        let left = closing::left_by_us(pair.a.ep, pair.a.ep.chan().unwrap());
        assert_eq!(left == 0, stands_in != 0, "{left}");
        pair.a.ep.stands_in.store(0, Relaxed);
        assert!(!pair.b.give_back(None, &mut kept));
        pair.close();
    }
}
