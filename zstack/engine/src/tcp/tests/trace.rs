//! Segment by segment: what the connection does, as on a wire.

use super::*;

#[test]
fn active_open_and_both_closes_in_order() {
    let mut t = Test::open(&Options::default());
    t.output();
    let syn = t.expect("S", 1000, 0, 0).header;
    assert_eq!((syn.mss, syn.scale, syn.sack_permitted, syn.window), (Some(1000), Some(0), true, 20_000));
    assert_eq!(syn.timestamps, Some(Timestamps { value: 1_000_077, echo: 0 }));
    t.send(seg("SA", 5000, 1001).mss(1200).scale(7).sackable().ts(9, 1_000_077).win(500));
    let ack = t.expect("A", 1001, 5001, 0).header;
    assert_eq!(ack.timestamps.map(|stamps| stamps.echo), Some(9));
    t.told(&[Event::Established]);
    let info = t.tcb.info();
    assert_eq!((info.mss, info.window, info.scales), (988, 500, Some((7, 0))));

    t.tcb.commit(10, true);
    t.tcb.shutdown();
    assert_eq!(t.tcb.phase(), Phase::FinWait1);
    t.output();
    assert_eq!(t.expect("FPA", 1001, 5001, 10).from, 0);
    t.send(seg("A", 5001, 1012).ts(9, 1_000_077).win(500));
    assert_eq!(t.tcb.phase(), Phase::FinWait2);
    assert_eq!(t.cx.released, 10);
    t.nothing();
    t.send(seg("FA", 5001, 1012).ts(9, 1_000_077).win(500));
    t.expect("A", 1012, 5002, 0);
    t.told(&[Event::PeerClosed, Event::Ended(Cause::Done), Event::Free]);
    assert!(t.tcb.time_wait().is_some());
}

#[test]
fn passive_open_and_the_peer_closes_first() {
    let mut t = Test::incoming(&plain(), &seg("S", 5000, 0).mss(900), false);
    t.output();
    t.expect("SA", 1000, 5001, 0);
    t.told(&[]);
    t.send(seg("PA", 5001, 1001).len(5));
    t.told(&[Event::Established]);
    assert_eq!(t.cx.published, 5);
    t.expect("A", 1001, 5006, 0);
    // Its ACK waits: what we send now carries it.
    t.send(seg("FA", 5006, 1001));
    t.nothing();
    t.told(&[Event::PeerClosed]);
    t.tcb.commit(3, true);
    t.output();
    t.expect("PA", 1001, 5007, 3);
    t.tcb.shutdown();
    t.output();
    t.expect("FA", 1004, 5007, 0);
    assert_eq!(t.tcb.phase(), Phase::LastAck);
    t.send(seg("A", 5007, 1005));
    t.told(&[Event::Ended(Cause::Done), Event::Free]);
    assert_eq!(t.tcb.time_wait(), None);
    assert_eq!(t.tcb.deadline(), Time::NEVER);
}

#[test]
fn simultaneous_open_with_crossing_syn_acks() {
    let mut t = Test::open(&plain());
    t.output();
    t.expect("S", 1000, 0, 0);
    t.send(seg("S", 5000, 0).mss(1000));
    assert_eq!(t.tcb.phase(), Phase::SynReceived);
    t.expect("SA", 1000, 5001, 0);
    t.send(seg("SA", 5000, 1001).mss(1000));
    t.told(&[Event::Established]);
    assert_eq!(t.tcb.phase(), Phase::Established);
}

#[test]
fn simultaneous_close() {
    let mut t = Test::established(&plain());
    t.tcb.shutdown();
    t.output();
    t.expect("FA", 1001, 5001, 0);
    t.send(seg("FA", 5001, 1001));
    assert_eq!(t.tcb.phase(), Phase::Closing);
    t.expect("A", 1002, 5002, 0);
    t.send(seg("A", 5002, 1002));
    assert_eq!(t.tcb.phase(), Phase::TimeWait);
    t.told(&[Event::PeerClosed, Event::Ended(Cause::Done), Event::Free]);
}

#[test]
fn half_closed_both_ways() {
    let mut t = Test::in_phase(Phase::FinWait2);
    t.send(seg("PA", 5001, 1002).len(300));
    assert_eq!(t.cx.published, 300);
    let mut t = Test::in_phase(Phase::CloseWait);
    t.tcb.commit(2500, true);
    t.output();
    t.expect("A", 1001, 5002, 1000);
    t.expect("A", 2001, 5002, 1000);
    t.expect("PA", 3001, 5002, 500);
}

#[test]
fn a_syn_is_sent_again_seven_times_in_all() {
    let mut t = Test::open(&plain());
    t.output();
    t.expect("S", 1000, 0, 0);
    for wait in [1000, 2000, 4000, 8000, 16_000, 32_000] {
        assert_eq!(t.fire(), wait);
        t.expect("S", 1000, 0, 0);
    }
    assert_eq!(t.fire(), 64_000);
    t.nothing();
    t.told(&[Event::Ended(Cause::TimedOut), Event::Free]);
}

#[test]
fn a_syn_ack_is_sent_again_and_once_more_when_asked() {
    let mut t = Test::incoming(&plain(), &seg("S", 5000, 0), false);
    t.output();
    t.expect("SA", 1000, 5001, 0);
    t.fire();
    t.expect("SA", 1000, 5001, 0);
    t.send(seg("S", 5000, 0));
    t.expect("SA", 1000, 5001, 0);
    for _ in 0..4 {
        t.fire();
        t.expect("SA", 1000, 5001, 0);
    }
    t.fire();
    t.nothing();
    t.told(&[Event::Ended(Cause::TimedOut), Event::Free]);
}

#[test]
fn a_deferred_answer_waits_and_the_syn_again_is_ignored() {
    let mut t = Test::incoming(&plain(), &seg("S", 5000, 0), true);
    t.output();
    t.nothing();
    t.told(&[Event::Asked]);
    t.send(seg("S", 5000, 0));
    t.wait(10_000);
    t.nothing();
    t.tcb.accept();
    t.output();
    t.expect("SA", 1000, 5001, 0);
    t.send(seg("A", 5001, 1001));
    t.told(&[Event::Established]);
}

#[test]
fn a_refusal_is_what_a_closed_port_says() {
    let mut t = Test::in_phase(Phase::Listen);
    t.tcb.refuse();
    t.output();
    t.expect("RA", 0, 5001, 0);
    t.told(&[Event::Ended(Cause::Aborted), Event::Free]);
}

#[test]
fn a_peer_that_gave_up_waiting_for_the_answer() {
    let mut t = Test::in_phase(Phase::Listen);
    t.send(seg("R", 5001, 0));
    t.told(&[Event::Ended(Cause::Reset), Event::Free]);
}

#[test]
fn a_cookie_becomes_a_connection() {
    let ack = seg("PA", 5001, 1001).len(7).ts(50, 60);
    let cookie = Cookie { mss: 900, scales: Some((3, 2)), sack: true, stamps: true };
    let cx = Mock::new();
    let tcb = Tcb::from_cookie(cx.now, &Options::default(), &start(), &ack.header, &cookie);
    let mut t = Test { tcb, cx, irs: Seq(5000) };
    t.send(ack);
    t.told(&[Event::Established]);
    let info = t.tcb.info();
    assert_eq!((info.mss, info.scales, info.window, info.received), (888, Some((3, 2)), 80_000, 7));
    assert!(t.cx.sent.pop_front().is_some_and(|out| out.header.ack == Seq(5008)));
    t.tcb.commit(100, true);
    t.output();
    t.expect("PA", 1001, 5008, 100);
}

#[test]
fn a_connection_is_refused() {
    let mut t = Test::in_phase(Phase::SynSent);
    t.send(seg("R", 0, 0));
    t.send(seg("RA", 0, 1002));
    assert_eq!(t.tcb.phase(), Phase::SynSent);
    t.send(seg("RA", 0, 1001));
    t.told(&[Event::Ended(Cause::Refused), Event::Free]);
    t.nothing();
}

#[test]
fn an_old_duplicate_syn_ack_is_reset() {
    // RFC 9293, section 3.5.1, figure 9: the wrong number is answered, and the connection goes on.
    let mut t = Test::in_phase(Phase::SynSent);
    t.send(seg("SA", 4000, 900));
    t.expect("R", 900, 0, 0);
    t.send(seg("SA", 5000, 1001));
    t.expect("A", 1001, 5001, 0);
}

#[test]
fn only_the_exact_rst_ends_a_connection() {
    let mut t = Test::established(&plain());
    t.send(seg("R", 5002, 0));
    t.expect("A", 1001, 5001, 0);
    t.send(seg("R", 4000, 0));
    t.send(seg("R", 50_000, 0));
    t.nothing();
    assert_eq!((t.count(Counter::TcpResetInside), t.count(Counter::TcpResetOutside)), (1, 2));
    t.send(seg("R", 5001, 0));
    t.told(&[Event::Ended(Cause::Reset), Event::Free]);
}

#[test]
fn a_reset_is_told_by_the_state_that_it_finds() {
    // As tcp_reset has it: EPIPE in CLOSE-WAIT and no longer once our FIN follows, nothing where it is over.
    for (phase, seq, cause) in [
        (Phase::Listen, 5001, Some(Cause::Reset)),
        (Phase::SynReceived, 5001, Some(Cause::Reset)),
        (Phase::Established, 5001, Some(Cause::Reset)),
        (Phase::CloseWait, 5002, Some(Cause::Broken)),
        (Phase::FinWait1, 5001, Some(Cause::Reset)),
        (Phase::FinWait2, 5001, Some(Cause::Reset)),
        (Phase::Closing, 5002, Some(Cause::Reset)),
        (Phase::LastAck, 5002, Some(Cause::Reset)),
        (Phase::TimeWait, 5002, None),
        (Phase::Closed, 5001, None),
    ] {
        let mut t = Test::in_phase(phase);
        t.send(seg("R", seq, 0));
        assert_eq!(t.tcb.phase(), Phase::Closed, "{phase:?}");
        let told = t.cx.events.iter().find_map(|event| match event {
            Event::Ended(cause) => Some(*cause),
            _ => None,
        });
        assert_eq!(told, cause, "{phase:?}");
    }
}

#[test]
fn a_window_is_not_filled_with_tiny_segments() {
    // The holder's memory is in pieces of a few bytes; or it sends small messages, none of which is to wait.
    for pieces in [true, false] {
        let mut t = Test::established(&Options { nodelay: true, ..plain() });
        t.cx.spans = if pieces { 17 } else { u32::MAX };
        let mut sent = 0;
        for message in 1..=400 {
            t.tcb.commit(message * 17, true);
            t.output();
        }
        while t.cx.released < 6800 {
            // Ten full segments are the first window, and an ACK of all of it lets it grow.
            let burst = t.cx.sent.len();
            assert!((1..=if sent == 0 { 160 } else { 320 }).contains(&burst), "{burst}");
            sent += t.cx.sent.drain(..).map(|out| out.len).sum::<u32>();
            t.send(seg("A", 5001, 1001 + sent));
        }
        assert_eq!(sent, 6800);
        t.nothing();
        // An ACK lets more go, whatever it acknowledges; without one the timer mends.
        t.cx.spans = 17;
        t.tcb.commit(6800 + 5000, true);
        t.output();
        let burst = t.cx.sent.len();
        t.cx.sent.clear();
        t.wait(5000);
        assert!((160..295).contains(&burst) && !t.cx.sent.is_empty(), "{burst}");
    }
}

#[test]
fn challenges_are_limited_for_each_connection() {
    let mut t = Test::established(&plain());
    t.wait(1000);
    for _ in 0..10 {
        t.send(seg("S", 5100, 0));
    }
    t.expect("A", 1001, 5001, 0);
    t.nothing();
    t.wait(499);
    t.send(seg("S", 5100, 0));
    t.nothing();
    t.wait(1);
    t.send(seg("S", 5100, 0));
    t.expect("A", 1001, 5001, 0);
    assert_eq!((t.count(Counter::TcpChallenge), t.count(Counter::TcpChallengeLimited)), (2, 10));
}

#[test]
fn a_reset_that_the_limit_forbids_to_challenge_is_challenged_later() {
    let mut t = Test::established(&plain());
    t.wait(1000);
    t.send(seg("S", 5100, 0));
    t.expect("A", 1001, 5001, 0);
    t.wait(100);
    // What lies before it was lost. The peer has forgotten the connection, and sends no more if nothing is sent to it.
    t.send(seg("R", 5100, 0));
    t.nothing();
    // Whoever adopts the connection meanwhile sees that an ACK is due.
    let state = t.tcb.state().unwrap();
    assert_ne!(state.acked, state.rcv_nxt);
    assert_eq!(t.fire(), 400);
    t.expect("A", 1001, 5001, 0);
    t.send(seg("R", 5001, 0));
    t.told(&[Event::Ended(Cause::Reset), Event::Free]);
}

#[test]
fn acks_of_what_was_never_sent_release_nothing() {
    let mut t = Test::established(&plain());
    t.tcb.commit(5000, true);
    t.cx.room = 2;
    t.output();
    assert_eq!(t.cx.sent.len(), 2);
    t.cx.sent.clear();
    t.deliver(seg("A", 5001, 4001));
    assert_eq!(t.cx.released, 0);
    assert_eq!(t.count(Counter::TcpAckInvalid), 1);
    t.deliver(seg("A", 5001, 3001));
    assert_eq!(t.cx.released, 2000);
}

#[test]
fn an_old_ack_brings_payload_and_a_very_old_one_does_not() {
    let mut t = Test::established(&plain());
    t.tcb.commit(1000, true);
    t.output();
    t.send(seg("A", 5001, 2001));
    t.cx.sent.clear();
    t.send(seg("A", 5001, 1001).len(10));
    assert_eq!(t.cx.published, 10);
    t.cx.sent.clear();
    t.send(seg("A", 5011, 2001u32.wrapping_sub(10_001)).len(10));
    assert_eq!(t.cx.published, 10);
    t.expect("A", 2001, 5011, 0);
}

#[test]
fn paws_until_the_stamp_is_too_old() {
    let options = Options { scaling: false, sack: false, ..Options::default() };
    let mut t = Test::established(&options);
    t.send(seg("A", 5001, 1001).len(10).ts(99, 0));
    assert_eq!((t.cx.published, t.count(Counter::TcpPaws)), (0, 1));
    t.expect("A", 1001, 5001, 0);
    t.send(seg("A", 5001, 1001).len(10).ts(100, 0));
    assert_eq!(t.cx.published, 10);
    t.cx.now = t.cx.now.after_millis(24 * 24 * 3_600_000 + 1000);
    t.send(seg("A", 5011, 1001).len(10).ts(5, 0));
    assert_eq!(t.cx.published, 20);
}

/// The ACK was lost, and the segment comes again: the answer tells when it was sent the second time. What only claims to come again,
/// with numbers far from ours, tells nothing.
#[test]
fn the_stamp_of_a_segment_that_comes_again_is_taken() {
    let mut t = Test::established(&Options { scaling: false, ..Options::default() });
    t.send(seg("A", 5001, 1001).len(400).ts(101, 0));
    t.send(seg("A", 5401, 1001).len(400).ts(102, 0));
    t.cx.sent.clear();
    let mut echo = |seg: Seg| {
        t.send(seg);
        t.cx.sent.pop_front().and_then(|out| out.header.timestamps).map(|stamps| stamps.echo)
    };
    assert_eq!(echo(seg("A", 5001, 1001).len(400).ts(9000, 0)), Some(9000));
    assert_eq!(echo(seg("A", 5001, 1001).len(400).ts(8999, 0)), Some(9000));
    assert_eq!(echo(seg("A", 5001, 1001u32.wrapping_sub(200_000)).len(400).ts(1 << 30, 0)), Some(9000));
    assert_eq!(echo(seg("A", 5001, 1002).len(400).ts(1 << 30, 0)), Some(9000));
    assert_eq!(echo(seg("", 5001, 0).len(400).ts(1 << 30, 0)), Some(9000));
    echo(seg("A", 5001u32.wrapping_sub(200_000), 1001).len(400).ts(1 << 30, 0));
    assert_eq!(t.tcb.recent, 9000);
}

#[test]
fn the_stamp_of_a_segment_behind_the_last_ack_is_not_taken() {
    // RFC 7323, section 4.3: the echo of a delayed ACK is the earliest segment's.
    let options = Options { scaling: false, sack: false, ..Options::default() };
    let mut t = Test::established(&options);
    t.tcb.quick = 0;
    t.send(seg("A", 5001, 1001).len(400).ts(101, 0));
    t.send(seg("A", 5401, 1001).len(400).ts(105, 0));
    let ack = t.expect("A", 1001, 5801, 0).header;
    assert_eq!(ack.timestamps.map(|stamps| stamps.echo), Some(101));
}

#[test]
fn every_second_segment_is_acknowledged_at_once_and_a_single_one_later() {
    let mut t = Test::established(&plain());
    t.tcb.quick = 0;
    t.tcb.rcv_mss = 1000;
    t.send(seg("A", 5001, 1001).len(1000));
    t.nothing();
    t.send(seg("A", 6001, 1001).len(1000));
    t.expect("A", 1001, 7001, 0);
    t.send(seg("A", 7001, 1001).len(1000));
    t.nothing();
    assert_eq!(t.fire(), 40);
    t.expect("A", 1001, 8001, 0);
}

#[test]
fn at_the_start_and_after_trouble_acks_hurry() {
    let mut t = Test::established(&plain());
    for i in 0..16 {
        t.send(seg("A", 5001 + 100 * i, 1001).len(100));
        t.expect("A", 1001, 5101 + 100 * i, 0);
    }
    t.send(seg("A", 6601, 1001).len(100));
    t.nothing();
}

#[test]
fn what_comes_ahead_is_reported_latest_first_and_what_comes_twice_before_it() {
    let options = Options { timestamps: false, scaling: false, ..Options::default() };
    let mut t = Test::established(&options);
    let blocks = |t: &mut Test| {
        let out = t.cx.sent.pop_front().unwrap();
        let blocks: Vec<_> = out.header.sack.blocks().iter().map(|b| (b.left.0, b.right.0)).collect();
        (out.header.ack.0, blocks)
    };
    t.send(seg("A", 6001, 1001).len(1000));
    assert_eq!(blocks(&mut t), (5001, vec![(6001, 7001)]));
    t.send(seg("A", 8001, 1001).len(1000));
    assert_eq!(blocks(&mut t), (5001, vec![(8001, 9001), (6001, 7001)]));
    t.send(seg("A", 6001, 1001).len(1000));
    assert_eq!(blocks(&mut t), (5001, vec![(6001, 7001), (6001, 7001), (8001, 9001)]));
    assert_eq!(t.cx.published, 0);
    t.send(seg("A", 5001, 1001).len(1000));
    assert_eq!(blocks(&mut t), (7001, vec![(8001, 9001)]));
    assert_eq!(t.cx.published, 2000);
    t.send(seg("A", 7001, 1001).len(1500));
    assert_eq!(blocks(&mut t), (9001, vec![(8001, 8501)]));
    assert_eq!((t.cx.published, t.cx.gaps.len()), (4000, 1));
    t.send(seg("A", 5501, 1001).len(300));
    assert_eq!(blocks(&mut t), (9001, vec![(5501, 5801)]));
    t.nothing();
}

#[test]
fn a_fin_ahead_of_order_counts_when_all_before_it_has_come() {
    let mut t = Test::established(&plain());
    t.send(seg("FA", 5501, 1001).len(500));
    t.expect("A", 1001, 5001, 0);
    t.told(&[]);
    t.send(seg("A", 5001, 1001).len(500));
    t.expect("A", 1001, 6002, 0);
    t.told(&[Event::PeerClosed]);
    assert_eq!((t.cx.published, t.tcb.phase()), (1000, Phase::CloseWait));
    // The bare FIN.
    let mut t = Test::established(&plain());
    t.send(seg("FA", 5101, 1001));
    t.expect("A", 1001, 5001, 0);
    t.send(seg("A", 5001, 1001).len(100));
    t.expect("A", 1001, 5102, 0);
    // What claims to lie behind it is not taken.
    t.send(seg("A", 5102, 1001).len(10));
    assert_eq!(t.cx.published, 100);
}

#[test]
fn payload_beyond_the_room_is_cut_and_its_fin_with_it() {
    let mut t = Test::established(&plain());
    t.send(seg("FA", 5001, 1001).len(20_001));
    let ack = t.expect("A", 1001, 25_001, 0).header;
    assert_eq!((t.cx.published, ack.window), (20_000, 0));
    assert_eq!(t.tcb.phase(), Phase::Established);
    // A probe of the closed window is answered, its byte not taken.
    t.send(seg("A", 25_001, 1001).len(1));
    t.expect("A", 1001, 25_001, 0);
    // Room for a byte is no window; room for much is told at once.
    t.tcb.room(20_001);
    t.nothing();
    t.tcb.room(30_000);
    t.output();
    assert_eq!(t.expect("A", 1001, 25_001, 0).header.window, 10_000);
    t.tcb.room(40_000);
    t.nothing();
    // A bare FIN is taken though the window is closed.
    t.send(seg("A", 25_001, 1001).len(10_000));
    t.cx.sent.clear();
    let mut t2 = Test::established(&plain());
    t2.send(seg("A", 5001, 1001).len(20_000));
    t2.cx.sent.clear();
    t2.send(seg("FA", 25_001, 1001));
    t2.expect("A", 1001, 25_002, 0);
    t2.told(&[Event::PeerClosed]);
}

#[test]
fn what_the_host_cannot_take_was_not_received() {
    let mut t = Test::established(&plain());
    t.cx.places = false;
    t.send(seg("FA", 5001, 1001).len(100));
    t.send(seg("A", 5201, 1001).len(100));
    assert_eq!((t.tcb.info().received, t.count(Counter::TcpNotPlaced)), (0, 2));
    t.expect("A", 1001, 5001, 0);
    t.cx.places = true;
    t.send(seg("FA", 5001, 1001).len(100));
    t.expect("A", 1001, 5102, 0);
    assert_eq!(t.cx.published, 100);
}

#[test]
fn nagle_holds_the_second_small_segment() {
    let mut t = Test::established(&plain());
    t.tcb.commit(10, true);
    t.output();
    t.expect("PA", 1001, 5001, 10);
    t.tcb.commit(20, true);
    t.output();
    t.nothing();
    t.tcb.commit(1510, true);
    t.output();
    t.expect("A", 1011, 5001, 1000);
    t.nothing();
    t.send(seg("A", 5001, 1011));
    // Minshall: the full segment in flight does not hold it.
    t.expect("PA", 2011, 5001, 500);
    let mut t = Test::established(&Options { nodelay: true, ..plain() });
    for i in 0..3 {
        t.tcb.commit(10 * (i + 1), true);
        t.output();
        t.expect("PA", 1001 + 10 * i as u32, 5001, 10);
    }
}

#[test]
fn a_cork_holds_what_is_not_full_for_a_while() {
    let mut t = Test::established(&Options { cork: true, ..plain() });
    t.tcb.commit(1500, true);
    t.output();
    t.expect("A", 1001, 5001, 1000);
    t.nothing();
    t.send(seg("A", 5001, 2001));
    t.nothing();
    assert!(t.fire() <= 1000);
    t.expect("PA", 2001, 5001, 500);
    t.send(seg("A", 5001, 2501));
    t.tcb.commit(1600, true);
    t.output();
    t.nothing();
    t.tcb.set_options(&plain());
    t.output();
    t.expect("PA", 2501, 5001, 100);
}

#[test]
fn what_lies_behind_the_push_boundary_waits_for_more() {
    let mut t = Test::established(&plain());
    t.tcb.commit(100, true);
    t.tcb.commit(150, false);
    t.output();
    t.expect("PA", 1001, 5001, 100);
    t.nothing();
    t.tcb.commit(160, true);
    t.output();
    // Nagle holds it now.
    t.nothing();
    t.tcb.commit(170, false);
    t.output();
    t.nothing();
    // The ACK lets all go, for MSG_MORE speaks of its call alone; what is not pushed does not say so.
    t.send(seg("A", 5001, 1101));
    t.expect("PA", 1101, 5001, 70);
    t.tcb.commit(180, false);
    t.output();
    t.nothing();
    t.send(seg("A", 5001, 1171));
    t.expect("A", 1171, 5001, 10);
}

#[test]
fn a_closed_window_is_probed_for_ever_while_the_peer_answers() {
    let mut t = Test::established(&plain());
    t.send(seg("A", 5001, 1001).win(0));
    t.tcb.commit(3000, true);
    t.output();
    t.nothing();
    let mut last = 0;
    for i in 0..40 {
        let wait = t.fire();
        assert!(wait >= last && wait <= 120_000 && (i == 0 || wait == 120_000 || wait == 2 * last), "{last} {wait}");
        last = wait;
        t.expect("A", 1000, 5001, 0);
        t.send(seg("A", 5001, 1001).win(0));
        t.nothing();
    }
    assert_eq!(last, 120_000);
    t.send(seg("A", 5001, 1001).win(2000));
    t.expect("A", 1001, 5001, 1000);
    t.expect("A", 2001, 5001, 1000);
    t.nothing();
}

#[test]
fn a_closed_window_behind_which_nobody_answers_ends() {
    let mut t = Test::established(&plain());
    t.send(seg("A", 5001, 1001).win(0));
    t.tcb.commit(3000, true);
    t.output();
    for _ in 0..15 {
        t.fire();
        t.expect("A", 1000, 5001, 0);
    }
    t.fire();
    t.told(&[Event::Ended(Cause::TimedOut), Event::Free]);
}

/// RFC 9293, section 3.8.6.1: bytes in flight that the peer has no room for any more, and acknowledges none of.
#[test]
fn a_window_shut_over_bytes_in_flight_does_not_end_while_the_peer_answers() {
    for answers in [true, false] {
        let mut t = Test::established(&plain());
        t.tcb.commit(1000, true);
        t.output();
        t.send(seg("A", 5001, 1001).win(0));
        for _ in 0..40 {
            if t.tcb.phase() != Phase::Established {
                break;
            }
            t.cx.sent.clear();
            t.fire();
            if answers {
                t.expect("AP", 1001, 5001, 1000);
                t.send(seg("A", 5001, 1001).win(0));
            }
        }
        if answers {
            t.send(seg("A", 5001, 2001));
            assert_eq!(t.cx.released, 1000);
        } else {
            t.told(&[Event::Ended(Cause::TimedOut), Event::Free]);
        }
    }
}

#[test]
fn a_small_window_is_not_filled_with_small_segments() {
    let mut t = Test::established(&plain());
    t.tcb.commit(5000, true);
    t.send(seg("A", 5001, 1001).win(400));
    t.nothing();
    t.fire();
    t.expect("A", 1001, 5001, 400);
    t.send(seg("A", 5001, 1401).win(1000));
    t.expect("A", 1401, 5001, 1000);
    // Half of the largest window it ever had is worth a segment.
    let mut t = Test::in_phase(Phase::SynSent);
    t.send(seg("SA", 5000, 1001).win(300).mss(1000));
    t.cx.sent.clear();
    t.tcb.commit(5000, true);
    t.output();
    t.expect("A", 1001, 5001, 300);
    t.send(seg("A", 5001, 1301).win(150));
    t.expect("A", 1301, 5001, 150);
}

#[test]
fn a_fin_needs_room_in_the_window() {
    let mut t = Test::established(&plain());
    t.send(seg("A", 5001, 1001).win(10));
    t.tcb.commit(10, true);
    t.tcb.shutdown();
    t.output();
    t.expect("PA", 1001, 5001, 10);
    t.send(seg("A", 5001, 1011).win(0));
    t.nothing();
    t.fire();
    t.expect("A", 1010, 5001, 0);
    t.send(seg("A", 5001, 1011).win(1));
    t.expect("FA", 1011, 5001, 0);
}

#[test]
fn keep_alive() {
    let options =
        Options { keepalive: true, keepalive_idle: 5000, keepalive_interval: 1000, keepalive_count: 3, ..plain() };
    let mut t = Test::established(&options);
    assert_eq!(t.fire(), 5000);
    t.expect("A", 1000, 5001, 0);
    t.send(seg("A", 5001, 1001));
    assert_eq!(t.fire(), 5000);
    t.expect("A", 1000, 5001, 0);
    for _ in 0..2 {
        assert_eq!(t.fire(), 1000);
        t.expect("A", 1000, 5001, 0);
    }
    assert_eq!(t.fire(), 1000);
    t.expect("RA", 1001, 5001, 0);
    t.told(&[Event::Ended(Cause::TimedOut), Event::Free]);
}

#[test]
fn a_process_that_was_stopped_does_not_send_keep_alives_in_a_storm() {
    let options =
        Options { keepalive: true, keepalive_idle: 5000, keepalive_interval: 1000, keepalive_count: 3, ..plain() };
    let mut t = Test::established(&options);
    t.cx.now = t.cx.now.after_millis(3_600_000);
    t.wait(999);
    t.expect("A", 1000, 5001, 0);
    t.nothing();
    t.send(seg("A", 5001, 1001));
    assert_eq!(t.fire(), 5000);
}

#[test]
fn a_keep_alive_is_answered() {
    let mut t = Test::established(&plain());
    t.wait(1000);
    t.send(seg("A", 5000, 1001));
    t.expect("A", 1001, 5001, 0);
    // With a byte, as old ones have.
    t.send(seg("A", 5000, 1001).len(1));
    t.expect("A", 1001, 5001, 0);
    assert_eq!(t.cx.published, 0);
    // Questions that follow each other quickly, and such as only an end that disagrees with us would ask.
    for _ in 0..5 {
        t.wait(60);
        t.send(seg("A", 5000, 1001));
        t.expect("A", 1001, 5001, 0);
        t.wait(40);
        t.send(seg("A", 5000, 1001));
        t.send(seg("A", 4999, 1001));
        t.nothing();
        t.wait(20);
        t.send(seg("A", 4999, 1001));
        t.nothing();
    }
}

#[test]
fn the_user_timeout_ends_what_is_not_acknowledged() {
    let mut t = Test::established(&Options { user_timeout: 7000, ..plain() });
    t.wait(60_000);
    t.tcb.commit(10, true);
    t.output();
    t.wait(6999);
    t.told(&[]);
    t.wait(1);
    t.told(&[Event::Ended(Cause::TimedOut), Event::Free]);
}

#[test]
fn a_peer_that_never_answers_is_given_up() {
    let mut t = Test::established(&plain());
    t.tcb.commit(10, true);
    t.output();
    let begun = t.cx.now;
    while !t.tcb.freed() {
        t.fire();
    }
    t.told(&[Event::Ended(Cause::TimedOut), Event::Free]);
    let took = t.cx.now.since(begun).0 / 1_000_000;
    assert!((600..2000).contains(&took), "{took} s");
}

#[test]
fn icmp_is_hard_before_the_connection_stands_and_a_hint_after() {
    let mut t = Test::in_phase(Phase::SynSent);
    t.tcb.icmp(&mut t.cx, Unreachable::Net, Seq(999));
    t.told(&[]);
    t.tcb.icmp(&mut t.cx, Unreachable::Net, Seq(1000));
    t.told(&[Event::Ended(Cause::NetUnreachable), Event::Free]);

    let mut t = Test::established(&plain());
    t.tcb.commit(10, true);
    t.output();
    t.tcb.icmp(&mut t.cx, Unreachable::Host, Seq(1001));
    t.told(&[]);
    while !t.tcb.freed() {
        t.fire();
    }
    t.told(&[Event::Ended(Cause::HostUnreachable), Event::Free]);
}

#[test]
fn abort_resets_where_the_peer_has_a_connection() {
    for (phase, resets) in [
        (Phase::SynSent, false),
        (Phase::SynReceived, true),
        (Phase::Established, true),
        (Phase::CloseWait, true),
        (Phase::FinWait1, true),
        (Phase::FinWait2, true),
        (Phase::Closing, false),
        (Phase::LastAck, false),
    ] {
        let mut t = Test::in_phase(phase);
        t.tcb.abort();
        t.output();
        assert_eq!(t.cx.sent.front().map(|out| out.header.flags), resets.then(|| flags("RA")), "{phase:?}");
        t.told(&[Event::Ended(Cause::Aborted), Event::Free]);
        t.cx.sent.clear();
        t.nothing();
    }
}

#[test]
fn an_abort_that_the_port_has_no_room_for_is_done_later() {
    let mut t = Test::established(&plain());
    t.cx.room = 0;
    t.tcb.abort();
    t.output();
    t.told(&[]);
    assert!(t.tcb.due());
    t.send(seg("A", 5001, 1001).len(100));
    assert_eq!(t.cx.published, 0);
    t.cx.room = 1;
    t.output();
    t.expect("RA", 1001, 5001, 0);
    t.told(&[Event::Ended(Cause::Aborted), Event::Free]);
}

#[test]
fn what_was_committed_before_an_abort_goes_before_the_reset() {
    let mut t = Test::established(&plain());
    t.tcb.commit(100, true);
    t.tcb.abort();
    t.output();
    t.expect("PA", 1001, 5001, 100);
    t.expect("RA", 1101, 5001, 0);
    t.told(&[Event::Ended(Cause::Aborted), Event::Free]);
    t.nothing();
    // Where the port has no room for both, both come later, in order.
    let mut t = Test::established(&plain());
    t.cx.room = 0;
    t.tcb.commit(100, true);
    t.tcb.close(true);
    t.output();
    assert!(t.tcb.due() && t.cx.sent.is_empty());
    t.cx.room = 2;
    t.output();
    t.expect("PA", 1001, 5001, 100);
    t.expect("RA", 1101, 5001, 0);
    // As far as the windows reach.
    let mut t = Test::established(&plain());
    t.send(seg("A", 5001, 1001).win(150));
    t.tcb.commit(1000, true);
    t.tcb.abort();
    t.output();
    let sent: u32 = t.cx.sent.iter().map(|out| out.len).sum();
    assert!(sent <= 150, "{sent}");
    assert_eq!(t.cx.sent.back().map(|out| out.header.flags), Some(flags("RA")));
}

#[test]
fn payload_after_close_and_unread_payload_reset() {
    let mut t = Test::established(&plain());
    t.tcb.close(false);
    t.output();
    t.expect("FA", 1001, 5001, 0);
    t.send(seg("A", 5001, 1002).len(10));
    t.expect("RA", 1002, 5001, 0);
    t.told(&[Event::Ended(Cause::Aborted), Event::Free]);
    let mut t = Test::established(&plain());
    t.tcb.close(true);
    t.output();
    t.expect("RA", 1001, 5001, 0);
}

#[test]
fn a_closed_connection_waits_for_the_peers_fin_only_so_long() {
    let mut t = Test::established(&Options { fin_wait: 3000, ..plain() });
    t.tcb.close(false);
    t.output();
    t.send(seg("A", 5001, 1002));
    assert_eq!(t.tcb.phase(), Phase::FinWait2);
    t.wait(2999);
    t.told(&[]);
    t.wait(1);
    t.told(&[Event::Ended(Cause::TimedOut), Event::Free]);
    // Half-closed, it waits for ever.
    let mut t = Test::in_phase(Phase::FinWait2);
    assert_eq!(t.tcb.deadline(), Time::NEVER);
    t.tcb.close(false);
    t.output();
    assert_eq!(t.fire(), 60_000);
}

#[test]
fn a_linger_ends_by_reset() {
    let mut t = Test::established(&Options { linger: 500, ..plain() });
    t.tcb.commit(10, true);
    t.tcb.close(false);
    t.output();
    t.expect("FPA", 1001, 5001, 10);
    t.wait(500);
    let last = t.cx.sent.back().unwrap();
    assert_eq!(last.header.flags, flags("RA"));
    t.told(&[Event::Ended(Cause::Aborted), Event::Free]);
}

#[test]
fn a_full_port_loses_nothing() {
    let mut t = Test::established(&plain());
    t.tcb.commit(3000, true);
    t.send(seg("A", 5001, 1001).len(10));
    t.cx.sent.clear();
    t.send(seg("A", 5001, 4001));
    let mut t = Test::established(&plain());
    t.cx.room = 1;
    t.tcb.commit(3000, true);
    t.output();
    t.expect("A", 1001, 5001, 1000);
    assert!(t.tcb.due());
    assert_eq!(t.tcb.info().in_flight, 1000);
    t.cx.room = 0;
    t.output();
    assert!(t.tcb.due());
    t.send(seg("A", 5001, 1001).len(10));
    assert!(t.tcb.due() && t.cx.sent.is_empty());
    t.cx.room = 9;
    t.output();
    t.expect("A", 2001, 5011, 1000);
    t.expect("PA", 3001, 5011, 1000);
    t.nothing();
    assert_eq!(t.tcb.info().retransmits, 0);
}

#[test]
fn a_frame_in_pieces_is_finished_by_the_next() {
    let mut t = Test::established(&plain());
    t.cx.spans = 300;
    t.tcb.commit(500, true);
    t.tcb.shutdown();
    t.output();
    assert_eq!(t.expect("A", 1001, 5001, 300).from, 0);
    assert_eq!(t.expect("FPA", 1301, 5001, 200).from, 300);
}

#[test]
fn a_port_that_cuts_gets_many_segments_at_once() {
    let mut t = Test::established(&plain());
    t.cx.tso = 4500;
    t.tcb.commit(6200, true);
    t.output();
    // Every frame that is cut is pushed.
    assert_eq!(t.expect("PA", 1001, 5001, 4000).cut, 1000);
    assert_eq!(t.expect("PA", 5001, 5001, 2200).cut, 1000);
}

#[test]
fn a_frame_takes_no_more_than_half_of_the_congestion_window() {
    let mut t = Test::established(&plain());
    t.cx.tso = 60_000;
    t.tcb.commit(21_000, true);
    t.output();
    t.expect("PA", 1001, 5001, 5000);
    t.expect("PA", 6001, 5001, 5000);
    t.send(seg("A", 5001, 11_001).win(30_000));
    t.expect("PA", 11_001, 5001, 10_000);
    t.expect("PA", 21_001, 5001, 1000);
}

#[test]
fn memory_that_a_late_port_reads_is_not_released_and_the_name_lives_on() {
    let mut t = Test::established(&plain());
    let begun = t.cx.frames;
    t.cx.completed = Some(begun);
    t.tcb.commit(2000, true);
    t.output();
    t.send(seg("A", 5001, 3001));
    assert_eq!(t.cx.released, 0);
    t.cx.completed = Some(begun + 1);
    t.tcb.port_progress(&mut t.cx);
    assert_eq!(t.cx.released, 1000);
    t.send(seg("R", 5001, 0));
    t.told(&[Event::Ended(Cause::Reset)]);
    t.tcb.port_progress(&mut t.cx);
    t.told(&[]);
    t.cx.completed = Some(begun + 2);
    t.tcb.port_progress(&mut t.cx);
    assert_eq!(t.cx.released, 2000);
    t.told(&[Event::Free]);
    assert!(t.tcb.freed());
}

#[test]
fn time_wait_answers_until_its_name_is_free() {
    let mut t = Test::in_phase(Phase::TimeWait);
    t.wait(1000);
    t.send(seg("FA", 5001, 1002));
    t.expect("A", 1002, 5002, 0);
    assert!(!t.tcb.freed());
    t.cx.completed = None;
    t.tcb.port_progress(&mut t.cx);
    t.told(&[Event::Free]);
    assert!(t.tcb.time_wait().is_some());
}

#[test]
fn a_window_that_shrinks_over_bytes_in_flight() {
    let mut t = Test::established(&plain());
    t.tcb.commit(4000, true);
    t.output();
    t.cx.sent.clear();
    t.send(seg("A", 5001, 2001).win(500));
    // A bare segment has a number that the peer accepts (tcp_acceptable_seq).
    t.send(seg("A", 5001, 2001).win(500).len(2000));
    assert!(t.cx.sent.iter().any(|out| out.header.seq == Seq(2501) && out.len == 0), "{:?}", t.cx.sent);
}

#[test]
fn the_path_becomes_narrower() {
    let mut t = Test::established(&plain());
    t.tcb.commit(3000, true);
    t.output();
    t.cx.sent.clear();
    t.tcb.mtu(500);
    t.output();
    assert_eq!(t.tcb.info().mss, 500);
    t.fire();
    assert!(!t.cx.sent.is_empty() && t.cx.sent.iter().all(|out| out.len <= 500), "{:?}", t.cx.sent);
}

#[test]
fn urgent_bytes_stay_in_line() {
    let mut t = Test::established(&plain());
    let mut urgent = seg("UPA", 5001, 1001).len(10);
    urgent.header.urgent = 5;
    t.send(urgent);
    assert_eq!((t.cx.published, t.count(Counter::TcpUrgent)), (10, 1));
}

#[test]
fn the_port_vanishes() {
    let mut t = Test::established(&plain());
    t.cx.completed = Some(0);
    t.tcb.commit(10, true);
    t.cx.room = 0;
    t.cx.refusal = Refused::Gone;
    t.output();
    t.told(&[Event::Ended(Cause::PortGone), Event::Free]);
}

#[test]
fn closing_before_the_handshake_is_over() {
    let mut t = Test::in_phase(Phase::SynSent);
    t.tcb.commit(10, true);
    t.tcb.shutdown();
    t.output();
    t.nothing();
    t.send(seg("SA", 5000, 1001).mss(1000));
    t.expect("FPA", 1001, 5001, 10);
    assert_eq!(t.tcb.phase(), Phase::FinWait1);
    let mut t = Test::in_phase(Phase::SynSent);
    t.tcb.close(false);
    t.output();
    t.told(&[Event::Ended(Cause::Aborted), Event::Free]);
    t.nothing();
    let mut t = Test::in_phase(Phase::SynReceived);
    t.tcb.close(false);
    t.output();
    t.send(seg("A", 5001, 1001));
    t.expect("FA", 1001, 5001, 0);
}
