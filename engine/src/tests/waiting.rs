//! Calls that wait: who wakes them, and that nobody sleeps for ever (the simulated kernel panics where nobody would wake a
//! sleeper).

use super::*;
use crate::poller;
use crate::sim::world::Neighbour;
use libc::{EAGAIN, SO_RCVLOWAT, SO_RCVTIMEO, SO_SNDTIMEO, SOL_SOCKET};
use shmring::ring::{self, About};

fn set_timeout(fd: i32, option: i32, ms: i64) {
    use crate::kernel::Kernel;
    Simulated::set_option(fd, SOL_SOCKET, option, libc::timeval { tv_sec: 0, tv_usec: ms * 1000 });
}

/// The next blocking calls of this thread doze, or sleep on the lifeline as well.
pub(super) fn sleep_deep(deep: bool) {
    host::tls::tls().habits.deep.set(deep.into());
}

#[test]
fn a_receiver_is_woken_by_a_send() {
    let world = World::new();
    for deep in [false, true] {
        let pair = warmed(&world);
        sleep_deep(deep);
        Simulated::meanwhile(move || assert_eq!(pair.a.send(b"news"), Ok(4)));
        assert_eq!(pair.b.recv_with(9, 0), Ok(b"news".to_vec()));
        assert_eq!(Simulated::timeouts(), 0, "deep: {deep}");
        pair.close();
    }
}

#[test]
fn a_receiver_that_has_dozed_in_vain_is_woken_all_the_same() {
    let world = World::new();
    let pair = warmed(&world);
    sleep_deep(false);
    Simulated::nothing_meanwhile();
    Simulated::meanwhile(move || assert_eq!(pair.a.send(b"late"), Ok(4)));
    assert_eq!(pair.b.recv_with(9, 0), Ok(b"late".to_vec()));
    assert_eq!(Simulated::timeouts(), 1, "the doze");
    pair.close();
}

#[test]
fn a_sender_is_woken_by_room() {
    let world = World::new();
    for deep in [false, true] {
        let pair = warmed(&world);
        let all = bytes(0, RING + RING / 2);
        sleep_deep(deep);
        let (b, half) = (pair.b, all[..RING / 2].to_vec());
        Simulated::meanwhile(move || assert_eq!(b.recv(half.len()).as_ref(), Ok(&half)));
        assert_eq!(pair.a.send_with(&all, 0), Ok(all.len()));
        assert_eq!(Simulated::timeouts(), 0, "deep: {deep}");
        let mut got = all[..RING / 2].to_vec();
        while let Ok(some) = pair.b.recv(RING) {
            got.extend(some);
        }
        assert!(got == all);
        pair.close();
    }
}

#[test]
fn a_sender_is_woken_by_a_shutdown_of_its_own_side() {
    let world = World::new();
    for deep in [false, true] {
        let pair = warmed(&world);
        let all = bytes(0, RING + RING / 2);
        sleep_deep(deep);
        Simulated::meanwhile(move || assert_eq!(pair.a.shutdown(libc::SHUT_WR), Ok(())));
        assert_eq!(pair.a.send_with(&all, 0), Ok(RING));
        assert_eq!(Simulated::timeouts(), 0, "deep: {deep}");
        assert_eq!(pair.a.send(b"more"), Err(libc::EPIPE));
        while pair.b.recv(RING).is_ok_and(|some| !some.is_empty()) {}
        pair.close();
    }
}

#[test]
fn a_receiver_hears_of_the_end() {
    let world = World::new();
    for deep in [false, true] {
        let pair = warmed(&world);
        sleep_deep(deep);
        Simulated::meanwhile(move || pair.a.close());
        assert_eq!(pair.b.recv_with(9, 0), Ok(vec![]));
        assert_eq!(Simulated::timeouts(), 0, "deep: {deep}");
        pair.b.close();
    }
}

#[test]
fn a_receiver_hears_of_a_killed_peer_within_a_step() {
    let world = World::new();
    for deep in [false, true] {
        let pair = warmed(&world);
        sleep_deep(deep);
        Simulated::meanwhile(move || pair.a.die());
        assert_eq!(pair.b.recv_with(9, 0), Ok(vec![]));
        assert_eq!(Simulated::timeouts(), u32::from(!deep), "deep: {deep}");
        pair.b.close();
    }
}

#[test]
fn a_receiver_follows_a_sender_that_goes_back_to_the_lifeline() {
    let world = World::new();
    for deep in [false, true] {
        let pair = warmed(&world);
        sleep_deep(deep);
        Simulated::meanwhile(move || {
            crate::leave::retire(pair.a.fd, shmring::family::Reason::Oob);
            assert_eq!(pair.a.send(b"native"), Ok(6));
        });
        assert_eq!(pair.b.recv_with(9, 0), Ok(b"native".to_vec()));
        pair.close();
    }
}

#[test]
fn deadlines_are_kept() {
    let world = World::new();
    let pair = warmed(&world);
    use crate::kernel::Kernel;
    set_timeout(pair.b.fd, SO_RCVTIMEO, 70);
    let begun = Simulated::now();
    assert_eq!(pair.b.recv_with(9, 0), Err(EAGAIN));
    let waited = Simulated::now() - begun;
    assert!((70_000_000..80_000_000).contains(&waited), "{waited} ns");
    set_timeout(pair.a.fd, SO_SNDTIMEO, 70);
    let begun = Simulated::now();
    assert_eq!(pair.a.send_with(&bytes(0, RING + 9), 0), Ok(RING));
    let waited = Simulated::now() - begun;
    assert!((70_000_000..80_000_000).contains(&waited), "{waited} ns");
    assert_eq!(pair.b.recv(RING), Ok(bytes(0, RING)));
    pair.close();
}

#[test]
fn a_low_water_mark_holds_a_sleeper_back() {
    let world = World::new();
    let pair = warmed(&world);
    use crate::kernel::Kernel;
    Simulated::set_option(pair.b.fd, SOL_SOCKET, SO_RCVLOWAT, 100);
    pair.b.ep.rcvlowat.store(100, core::sync::atomic::Ordering::Relaxed);
    sleep_deep(true);
    for _ in 0..3 {
        Simulated::meanwhile(move || assert_eq!(pair.a.send(&[7; 40]), Ok(40)));
    }
    assert_eq!(pair.b.recv_with(999, 0), Ok(vec![7; 120]));
    pair.close();
}

#[test]
fn a_nonblocking_descriptor_does_not_wait() {
    let world = World::new();
    let pair = warmed(&world);
    Simulated::set_nonblocking(pair.b.fd);
    assert_eq!(pair.b.recv_with(9, 0), Err(EAGAIN));
    pair.close();
}

/// A connection with another user's process, which has gone up in both directions.
fn with_stranger(world: &World) -> Pair {
    use crate::sim::world::Neighbour;
    let pair = world.pair();
    assert!(pair.attach_in(world.lane(RING, Neighbour::Stranger).expect("a channel")));
    warm(&pair);
    pair
}

/// Sends until there is no room; how many bytes.
fn fill(pair: &Pair) -> usize {
    let mut sent = 0;
    loop {
        match pair.a.send(&bytes(sent, 999)) {
            Ok(n) => sent += n,
            Err(EAGAIN) => return sent,
            Err(e) => panic!("errno {e}"),
        }
    }
}

#[test]
fn who_tries_again_and_again_gets_the_kernels_room() {
    let world = World::new();
    let pair = with_stranger(&world);
    let sent = fill(&pair);
    Simulated::pass(90_000_000);
    assert_eq!(pair.a.send(b"late"), Err(EAGAIN), "the peer has its time");
    Simulated::pass(20_000_000);
    assert_eq!(pair.a.send(b"late"), Ok(4));
    assert_eq!(pair.a.ep.tx_phase.get(), TxPhase::Down);
    let mut got = vec![];
    while let Ok(some) = pair.b.recv(RING) {
        got.extend(some);
    }
    assert!(got == [&bytes(0, sent)[..], b"late"].concat());
    pair.close();
    world.let_strangers_go();
}

#[test]
fn a_peer_that_reads_now_and_then_keeps_the_ring() {
    let world = World::new();
    let pair = with_stranger(&world);
    for _ in 0..3 {
        fill(&pair);
        Simulated::pass(90_000_000);
        assert_eq!(pair.b.recv(50).map(|some| some.len()), Ok(50));
    }
    Simulated::pass(90_000_000);
    fill(&pair);
    assert_eq!((on_kernel(&pair), pair.a.ep.tx_phase.get()), (0, TxPhase::Ring));
    while pair.b.recv(RING).is_ok() {}
    pair.close();
    world.let_strangers_go();
}

#[test]
fn a_deadline_does_not_come_before_the_kernels_room() {
    let world = World::new();
    for ms in [20, 70, 400] {
        let pair = with_stranger(&world);
        set_timeout(pair.a.fd, SO_SNDTIMEO, ms);
        let all = bytes(0, RING + 9);
        assert_eq!(pair.a.send_with(&all, 0), Ok(all.len()), "{ms} ms");
        let mut got = vec![];
        while let Ok(some) = pair.b.recv(RING) {
            got.extend(some);
        }
        assert!(got == all);
        pair.close();
        world.let_strangers_go();
    }
}

/// A thread that sleeps with the connection among what it watches does not know by itself that it is to look at it some time.
#[test]
fn who_watches_a_full_ring_is_told_to_look_at_it() {
    use core::sync::atomic::Ordering::Relaxed;
    let world = World::new();
    let pair = with_stranger(&world);
    let (chan, slot) = (pair.a.ep.chan().expect("a channel"), pair.slot());
    let watcher = &chan.queues(chan.role())[5];
    chan.slot(slot).side[chan.role() as usize].pollers.fetch_or(1 << 5, Relaxed);
    fill(&pair);
    assert_eq!(watcher.aside.load(Relaxed), 1 << slot);
    while pair.b.recv(RING).is_ok() {}
    pair.close();
    world.let_strangers_go();
}

/// Connections that whoever had a poller's number before had asked for are not the next one's news, and their peers do not tell it of
/// them any more.
#[test]
fn a_poller_does_not_take_on_the_news_of_whoever_had_its_number() {
    let world = World::new();
    let lane = world.lane(RING, Neighbour::Own).unwrap();
    let pairs = [world.pair(), world.pair()];
    let [former, own] = &pairs;
    let p = poller::acquire().unwrap();
    for pair in &pairs {
        assert!(pair.attach_in(lane));
        warm(pair);
        poller::watch_slot(lane.accepts, pair.slot(), p);
    }
    let news = || {
        let q = &lane.accepts.queues(lane.accepts.role())[p];
        pairs.each_ref().map(|pair| ring::marks(q, About::Stream) & (1 << pair.slot()) != 0)
    };
    let send = || pairs.iter().for_each(|pair| assert_eq!(pair.a.send(b"news"), Ok(4)));
    send();
    assert_eq!(news(), [true, true]);
    poller::disclaim(lane.accepts, p, |slot| slot == own.slot());
    assert_eq!(news(), [false, true]);
    assert_eq!(former.b.recv(9), Ok(b"news".to_vec()));
    send();
    assert_eq!(news(), [false, true]);
    poller::free(p);
    pairs.into_iter().for_each(Pair::close);
}

#[test]
fn a_thread_that_stands_in_rings_once_for_all_that_it_sends_between_two_waits() {
    use crate::kernel::Kernel;
    use crate::{config, lifeline, notify};
    use core::sync::atomic::Ordering::Relaxed;
    let world = World::new();
    let lane = world.lane(RING, Neighbour::Own).unwrap();
    let pairs = [world.pair(), world.pair()];
    let p = poller::acquire_for_set().unwrap();
    let q = &lane.accepts.queues(lane.accepts.role())[p];
    for pair in &pairs {
        assert!(pair.attach_in(lane));
        warm(pair);
        poller::watch_slot(lane.accepts, pair.slot(), p);
    }
    poller::tell(lane.accepts, p);
    let sleep = || {
        ring::take_ready(q);
        ring::arm(q, poller::generation(p));
        ring::armed();
    };
    // Whether the sleeper was woken, who is awake then.
    let woken = || {
        let rung = lifeline::look(poller::bell(p), libc::POLLIN) != 0;
        Simulated::drain(poller::bell(p));
        rung && q.armed.load(Relaxed) == 0
    };
    let send = |i: usize| assert_eq!(pairs[i].a.send(b"news"), Ok(4));
    let marked = || ring::marks(q, About::Stream).count_ones();
    for stands_in in [false, true] {
        config::stand_in(stands_in);
        sleep();
        send(0);
        assert!(woken(), "it has not waited yet, and perhaps never does: stands in: {stands_in}");
    }
    notify::settle();
    for round in 0..3 {
        sleep();
        send(0);
        send(1);
        send(0);
        assert!(!woken() && q.armed.load(Relaxed) != 0, "round {round}");
        assert_eq!(marked(), 2, "who looks by himself finds it");
        notify::settle();
        assert!(woken(), "round {round}");
        notify::settle();
        sleep();
        assert!(!woken(), "round {round}: for news that it had seen");
        // One that wakes by itself is not rung for.
        send(1);
        q.armed.store(0, Relaxed);
        notify::settle();
        assert!(!woken(), "round {round}");
    }
    // Of what is no bytes it hears at once, and once.
    sleep();
    send(0);
    assert_eq!(pairs[1].a.shutdown(SHUT_WR), Ok(()));
    assert!(woken());
    notify::settle();
    assert!(!woken());
    config::stand_in(false);
    host::tls::tls().owed.puts_off.set(0);
    poller::free_of_set(p);
    pairs.into_iter().for_each(Pair::close);
}

#[test]
fn a_spin_whose_length_is_set_ends_though_others_take_the_cpu_in_each_yield() {
    use crate::kernel::Kernel;
    use crate::spin::{self, Spun};
    use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
    static YIELDS: AtomicU32 = AtomicU32::new(0);
    fn others_run() {
        Simulated::pass(3_000_000);
        if YIELDS.fetch_add(1, SeqCst) < 20 {
            Simulated::meanwhile(others_run);
        }
    }
    let _world = World::new();
    Simulated::meanwhile(others_run);
    assert!(spin::spin_for(50, false, || false) == Spun::Lost);
    assert_eq!(YIELDS.swap(20, SeqCst), 1, "3 ms are more than 50 us");
    Simulated::yield_cpu();
}
