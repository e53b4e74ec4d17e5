//! Single parts: windows, sizes, TIME-WAIT, connections as data.

use super::super::open::scale_for;
use super::*;
use proptest::prelude::*;

#[test]
fn the_scale_offers_the_whole_room() {
    assert_eq!([0, 65_535, 65_536, 131_071, 131_072, 1 << 22].map(scale_for), [0, 0, 1, 1, 2, 7]);
    assert_eq!(scale_for(u64::MAX), 14);
}

#[test]
fn a_connection_as_data() {
    let mut t = Test::established(&Options::default());
    t.tcb.commit(1500, true);
    t.output();
    t.send(seg("A", 5001, 1001).len(100).ts(100, 0));
    t.cx.sent.clear();
    let state = t.tcb.state().unwrap();
    let text = serde_json::to_string(&state).unwrap();
    assert_eq!(serde_json::from_str::<State>(&text).unwrap(), state);

    let mut cx = Mock::new();
    cx.frames = 1;
    cx.published = 100;
    let tcb = Tcb::adopt(&mut cx, &Options::default(), 1000, &state).unwrap();
    let mut adopted = Test { tcb, cx, irs: Seq(5000) };
    assert_eq!(adopted.tcb.state().unwrap(), state);
    adopted.output();
    adopted.nothing();
    // What somebody else sent is in flight, and sent again when no ACK comes.
    adopted.fire();
    let again = adopted.cx.sent.pop_front().unwrap();
    assert!(again.len > 0 && again.header.seq.since(Seq(1001)) < 1500);
    adopted.send(seg("A", 5101, 2501).len(50).ts(100, 0));
    assert_eq!((adopted.cx.released, adopted.cx.published), (1500, 150));

    // The block itself is data too.
    let text = serde_json::to_string(&t.tcb).unwrap();
    let again: Tcb = serde_json::from_str(&text).unwrap();
    assert_eq!(again.info(), t.tcb.info());
}

#[test]
fn what_the_peer_was_not_told_it_is_told_by_who_adopts() {
    let adopt = |t: &Test, more: u64| {
        let mut state = t.tcb.state().unwrap();
        state.room += more;
        let mut cx = Mock::new();
        let tcb = Tcb::adopt(&mut cx, &plain(), 1000, &state).unwrap();
        let mut adopted = Test { tcb, cx, irs: Seq(5000) };
        adopted.output();
        adopted
    };
    let mut t = Test::established(&plain());
    let mut at = 5001;
    while t.tcb.ack_at == Time::NEVER {
        t.cx.sent.clear();
        t.send(seg("A", at, 1001).len(10));
        at += 10;
    }
    t.nothing();
    adopt(&t, 0).expect("A", 1001, at, 0);

    let mut t = Test::established(&plain());
    let room = start().room as u32;
    for i in 0..room / 1000 {
        t.send(seg("A", 5001 + 1000 * i, 1001).len(1000));
    }
    assert_eq!(t.cx.sent.pop_back().unwrap().header.window, 0);
    adopt(&t, 0).nothing();
    assert_eq!(adopt(&t, 20_000).expect("A", 1001, 5001 + room, 0).header.window, 20_000);
}

#[test]
fn a_syn_offers_the_room_that_there_is_when_it_is_sent() {
    let far = start().room as u32 + 30_000;
    let mut t = Test::incoming(&plain(), &seg("S", 5000, 0), true);
    t.output();
    t.tcb.room(60_000);
    t.tcb.accept();
    t.output();
    assert_eq!(t.expect("SA", 1000, 5001, 0).header.window, 60_000);
    t.send(seg("A", 5001, 1001));
    t.send(seg("A", 5001 + far, 1001).len(100));
    assert_eq!((t.count(Counter::TcpOutside), t.count(Counter::TcpAhead)), (0, 1));

    let mut t = Test::open(&plain());
    t.tcb.room(60_000);
    t.output();
    assert_eq!(t.expect("S", 1000, 0, 0).header.window, 60_000);
    t.send(seg("SA", 5000, 1001));
    t.send(seg("A", 5001 + far, 1001).len(100));
    assert_eq!((t.count(Counter::TcpOutside), t.count(Counter::TcpAhead)), (0, 1));
}

#[test]
fn every_synchronised_state_can_be_adopted() {
    for phase in
        [Phase::Established, Phase::CloseWait, Phase::FinWait1, Phase::FinWait2, Phase::Closing, Phase::LastAck]
    {
        let state = Test::in_phase(phase).tcb.state().unwrap();
        let mut cx = Mock::new();
        let tcb = Tcb::adopt(&mut cx, &Options::default(), 1000, &state).unwrap_or_else(|e| panic!("{state:?}: {e}"));
        assert_eq!(tcb.state().unwrap(), state);
    }
}

/// Calls that have not been acted on yet go with the connection, or keep it.
#[test]
fn a_call_before_the_connection_is_given_away_is_not_lost() {
    let mut t = Test::established(&plain());
    t.tcb.abort();
    assert_eq!(t.tcb.state(), None);
    for phase in [Phase::Established, Phase::CloseWait, Phase::FinWait1, Phase::FinWait2] {
        let mut t = Test::in_phase(phase);
        t.tcb.close(true);
        assert_eq!(t.tcb.state(), None, "{phase:?}");

        let mut t = Test::in_phase(phase);
        t.tcb.close(false);
        let state = t.tcb.state().unwrap();
        assert!(state.fin && state.closed, "{phase:?}");
        let mut cx = Mock::new();
        cx.now = cx.now.after_millis(10);
        let tcb = Tcb::adopt(&mut cx, &Options { fin_wait: 5000, ..plain() }, 1000, &state).unwrap();
        let mut adopted = Test { tcb, cx, irs: Seq(5000) };
        adopted.output();
        let theirs = 5001 + u32::from(phase == Phase::CloseWait);
        if matches!(phase, Phase::Established | Phase::CloseWait) {
            adopted.expect("FA", 1001, theirs, 0);
        }
        if phase == Phase::CloseWait {
            continue;
        }
        adopted.send(seg("A", theirs, 1002));
        adopted.nothing();
        assert_eq!(adopted.tcb.phase(), Phase::FinWait2);
        // Nobody reads what still comes, and nobody waits for ever.
        let mut waits = Test { tcb: adopted.tcb.clone(), cx: Mock::new(), irs: Seq(5000) };
        assert_eq!(waits.fire(), 5010);
        waits.told(&[Event::Ended(Cause::TimedOut), Event::Free]);
        adopted.send(seg("A", theirs, 1002).len(5));
        assert!(adopted.cx.sent.pop_front().unwrap().header.flags.has(Flags::RST));
        adopted.told(&[Event::Ended(Cause::Aborted), Event::Free]);
    }
}

/// The peer's FIN may come while ours waits for the port: CLOSING without a FIN in flight.
#[test]
fn a_fin_that_waits_changes_hands() {
    let mut t = Test::established(&plain());
    t.cx.room = 0;
    t.tcb.shutdown();
    t.output();
    t.send(seg("FA", 5001, 1001));
    let state = t.tcb.state().unwrap();
    assert_eq!((state.phase, state.nxt), (Phase::Closing, Seq(1001)));
    let mut cx = Mock::new();
    let tcb = Tcb::adopt(&mut cx, &plain(), 1000, &state).unwrap();
    let mut adopted = Test { tcb, cx, irs: Seq(5000) };
    adopted.output();
    adopted.expect("FA", 1001, 5002, 0);
    adopted.send(seg("A", 5002, 1002));
    adopted.told(&[Event::Ended(Cause::Done), Event::Free]);
}

/// Each is told with the value that is wrong.
#[test]
fn contradictions_are_not_adopted() {
    let state = Test::in_phase(Phase::Established).tcb.state().unwrap();
    let room = state.room;
    let mut cx = Mock::new();
    let mut refused = |change: &dyn Fn(&mut State), value: &str| {
        let mut state = state.clone();
        change(&mut state);
        let error = Tcb::adopt(&mut cx, &Options::default(), 1000, &state).expect_err(value);
        assert!(error.to_string().contains(value), "{error}: {value}");
        error
    };
    let mut phase = |phase| refused(&|s| s.phase = phase, &format!("phase {phase:?}"));
    assert_eq!(phase(Phase::SynSent), Contradiction::Phase(Phase::SynSent));
    assert_eq!(phase(Phase::TimeWait), Contradiction::Phase(Phase::TimeWait));
    assert_eq!(phase(Phase::FinWait1), Contradiction::Fin(Phase::FinWait1));
    refused(&|s| s.fin = true, "Established");
    refused(&|s| s.closed = true, "phase Established: closed by its holder");
    refused(&|s| s.nxt = s.una + 1, "1 sequence numbers are in flight from position 0 on, and end is 0");
    refused(&|s| s.nxt = s.una - 1, "4294967295");
    refused(&|s| s.una_position = 1, "position 1");
    refused(&|s| s.una_position = u64::MAX, &u64::MAX.to_string());
    refused(&|s| s.rcv_position = s.room + 1, &format!("{} bytes were published", room + 1));
    refused(&|s| s.room -= 1, &format!("room for {}", room - 1));
    refused(&|s| s.acked = s.rcv_nxt + 1, "4294967295 ahead");
    refused(&|s| s.scales = Some((15, 0)), "scale 15");
    let small = |s: &mut State| {
        (s.room, s.rcv_edge, s.rcv_max, s.scales) = (s.rcv_position + 4096, s.rcv_nxt, 0, Some((0, 12)))
    };
    refused(&small, "scale 12 names multiples of 4096 bytes, and there was never room for more than 4096");
    // A ring that is full now had room before.
    for change in
        [&|s: &mut State| s.rcv_max = 8191, &|s: &mut State| s.room += 4095, &|s: &mut State| s.scales = Some((0, 11))]
            as [&dyn Fn(&mut State); 3]
    {
        let mut state = state.clone();
        small(&mut state);
        change(&mut state);
        Tcb::adopt(&mut cx, &Options::default(), 1000, &state).unwrap();
    }
}

/// A peer with segments of any size, up to a half of the window and more, sends as much as its own avoidance of silly windows allows
/// (RFC 9293, section 3.8.6.2.1). Whenever that is nothing, a reader who has read everything, or all but an eighth of the ring, tells it
/// of a window that it can use.
#[test]
fn who_has_read_everything_is_not_waited_for() {
    for room in (1200..8000u32).step_by(97) {
        for unread in [0, room / 16, room / 8 - 1] {
            let mut t = Test::open(&plain());
            t.tcb = Tcb::open(t.cx.now, &plain(), &Start { room: u64::from(room), ..start() });
            t.output();
            t.send(seg("SA", 5000, 1001).mss(1000));
            t.cx.sent.clear();
            let (mut at, mut edge, mut told) = (5001, 5001 + room, room);
            for _ in 0..40 {
                let usable = edge - at;
                let worth = usable.min(1000);
                if worth == 1000 || worth >= told / 2 {
                    t.send(seg("A", at, 1001).len(worth));
                    at += worth;
                } else {
                    // It is stuck unless it was told. All ACKs that were to come have come.
                    if t.tcb.ack_at != Time::NEVER {
                        t.fire();
                    }
                    t.tcb.room(t.cx.published.saturating_sub(u64::from(unread)) + u64::from(room));
                    t.output();
                    assert!(!t.cx.sent.is_empty(), "room {room}, unread {unread}: the peer waits with {usable}");
                }
                for out in t.cx.sent.drain(..) {
                    edge = edge.max(out.header.ack.0 + u32::from(out.header.window));
                    told = told.max(u32::from(out.header.window));
                }
            }
            assert!(t.cx.published > u64::from(room) * 4, "room {room}, unread {unread}: {}", t.cx.published);
        }
    }
}

/// What its largest window was decides which windows are worth telling: a connection that is adopted while its ring is full does not
/// offer a few bytes afterwards.
#[test]
fn a_full_ring_changes_hands_without_silly_windows() {
    let mut t = Test::established(&Options::default());
    let mut state = t.tcb.state().unwrap();
    assert!(state.rcv_max > 10_000, "{}", state.rcv_max);
    (state.rcv_edge, state.room) = (state.rcv_nxt, state.rcv_position);
    t.tcb = Tcb::adopt(&mut t.cx, &Options::default(), 1000, &state).unwrap();
    t.tcb.room(state.rcv_position + 100);
    assert_eq!(t.tcb.window(), 0);
    t.tcb.room(state.rcv_position + 5000);
    assert!(t.tcb.window() >= 4000, "{}", t.tcb.window());
}

#[test]
fn time_wait_tells_a_new_connection_from_an_old_segment() {
    let options = Options { scaling: false, ..Options::default() };
    for stamps in [false, true] {
        let mut t = Test::established(&Options { timestamps: stamps, ..options });
        let with = |seg: Seg, value| if stamps { seg.ts(value, 0) } else { seg };
        t.tcb.shutdown();
        t.output();
        t.send(with(seg("FA", 5001, 1002), 100));
        let rest = t.tcb.time_wait().unwrap();
        let now = t.cx.now.after_millis(900);
        let judge = |seg: Seg| rest.clone().segment(now, &seg.header, seg.len);
        // The FIN again: its ACK was lost.
        let Verdict::Answer(ack) = judge(with(seg("FA", 5001, 1002), 100)) else { panic!() };
        assert_eq!((ack.seq, ack.ack, ack.flags), (Seq(1002), Seq(5002), Flags::ACK));
        assert_eq!(ack.timestamps.is_some(), stamps);
        assert_eq!(judge(seg("R", 5002, 0)), Verdict::Forget);
        assert_eq!(judge(seg("R", 5003, 0)), Verdict::Drop);
        assert_eq!(judge(with(seg("A", 5002, 1002), 100)), Verdict::Restart);
        // RFC 1122, section 4.2.2.13, and RFC 6191.
        assert_eq!(judge(with(seg("S", 5003, 0), 100)), Verdict::Reuse(Seq(1002 + 65_537)));
        assert!(matches!(judge(with(seg("S", 4000, 0), 100)), Verdict::Only(_)));
        if stamps {
            assert_eq!(judge(seg("S", 4000, 0).ts(101, 0)), Verdict::Reuse(Seq(1002 + 65_537)));
            assert!(matches!(judge(seg("S", 5003, 0).ts(99, 0)), Verdict::Answer(_)));
        }
        // Answers are limited.
        let mut rest = rest;
        assert!(matches!(rest.segment(now, &with(seg("FA", 5001, 1002), 100).header, 0), Verdict::Answer(_)));
        assert_eq!(rest.segment(now, &with(seg("FA", 5001, 1002), 100).header, 0), Verdict::Restart);
    }
}

#[test]
fn resets_for_what_belongs_to_nothing() {
    assert_eq!(reset(&seg("RA", 1, 2).header, 0), None);
    let answer = reset(&seg("FA", 10, 20).header, 5).unwrap();
    assert_eq!((answer.seq, answer.flags), (Seq(20), Flags::RST));
    let answer = reset(&seg("SF", 10, 0).header, 5).unwrap();
    assert_eq!((answer.seq, answer.ack, answer.flags), (Seq(0), Seq(17), flags("RA")));
}

#[test]
fn an_idle_connection_is_small() {
    assert!(size_of::<Tcb>() <= 400, "{}", size_of::<Tcb>());
    assert!(size_of::<TimeWait>() <= 28);
    let t = Test::in_phase(Phase::Established);
    assert!(t.tcb.gaps.is_none());
    assert!(!t.tcb.recovery.busy());
}

proptest! {
    /// The window lies inside the room, its right edge never moves back by more than scaling makes it, and it opens in steps
    /// that are worth a segment.
    #[test]
    fn windows(room in 1u64..300_000, steps in prop::collection::vec((0u32..3000, 0u64..5000, any::<bool>()), 1..100)) {
        let options = Options { timestamps: false, sack: false, ..Options::default() };
        let cx = Mock::new();
        let syn = seg("S", 5000, 0).scale(2).mss(1000);
        let tcb = Tcb::incoming(cx.now, &options, &Start { room, ..start() }, &syn.header, false);
        let mut t = Test { tcb, cx, irs: Seq(5000) };
        t.output();
        t.send(seg("A", 5001, 1001));
        let scale = t.tcb.rcv_scale;
        let mut room = room;
        let mut edge = Seq(5001);
        let mut nxt = 5001u32;
        for (len, more, sends) in steps {
            let before = t.tcb.offered();
            let len = len.min(before);
            if len > 0 {
                t.send(seg("A", nxt, 1001).len(len));
                nxt += len;
            }
            room += more;
            t.tcb.room(room);
            t.output();
            if sends {
                // The peer asks: an answer in any case.
                t.cx.now = t.cx.now.after_millis(1000);
                t.send(seg("A", nxt - 1, 1001));
            }
            for out in t.cx.sent.drain(..) {
                let header = out.header;
                if header.flags.has(Flags::SYN) { continue; }
                let window = u32::from(header.window) << scale;
                let right = header.ack + window;
                prop_assert!(u64::from(right.since(Seq(5001))) <= room);
                prop_assert!(right + (1 << scale) - 1 == edge || edge.up_to(right + ((1 << scale) - 1)), "{:?} {:?}", edge, right);
                edge = edge.later(right);
            }
            let offered = t.tcb.offered();
            prop_assert!(t.tcb.rcv_at + u64::from(offered) <= room.max(65_535));
        }
    }
}
