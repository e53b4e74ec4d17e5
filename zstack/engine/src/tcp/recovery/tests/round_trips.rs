//! What is a round trip where ACKs are lost, what a peer's delay does to probes, and flights that are longer than numbers reach.

use super::*;

/// Six segments, the first lost: what was sent with it arrived, and all that told of it was lost. The first is sent again by the timer.
fn silent(echo: bool) -> Line {
    let mut line = Line::new().warm(20_000);
    line.completed = u64::MAX;
    line.send(6);
    assert_eq!(line.fire(), Fire::Probe);
    for _ in 0..3 {
        assert!(matches!(line.fire(), Fire::Timeout(_)));
        assert_eq!(line.mend().len(), 1);
    }
    if echo {
        line.echo = Some(tick(line.now));
    }
    line
}

#[test]
fn rfc6298_3_what_arrived_behind_a_gap_long_ago_is_no_round_trip() {
    let mut line = silent(false);
    let rtt = line.recovery.srtt();
    line.wait(20_000);
    let acked = line.arrive(line.nxt, &[]);
    assert_eq!((acked.rtt, line.recovery.srtt()), (None, rtt));
}

#[test]
fn rfc7323_4_timestamps_tell_its_round_trip() {
    let mut line = silent(true);
    line.wait(20_000);
    let acked = line.arrive(line.nxt, &[]);
    assert_eq!(acked.rtt, Some(Micros(20_000)));
    assert!(line.recovery.rto().0 < 250_000, "{:?}", line.recovery.rto());
}

/// The segment arrived and its ACK was lost; the one that answers the timer's retransmission reports a duplicate, and echoes the
/// original.
#[test]
fn rfc7323_4_3_an_echo_from_before_a_lost_ack_is_no_round_trip() {
    let mut line = Line::new().warm(20_000);
    line.completed = u64::MAX;
    let rtt = (line.recovery.srtt(), line.recovery.rttvar());
    line.echo = Some(tick(line.now));
    let una = line.nxt;
    line.send(1);
    assert_eq!(line.fire(), Fire::Probe);
    for _ in 0..4 {
        assert!(matches!(line.fire(), Fire::Timeout(_)));
        assert_eq!(line.mend(), [una]);
    }
    line.wait(20_000);
    let acked = line.arrive(line.nxt, &[(una, line.nxt)]);
    assert_eq!((acked.rtt, line.recovery.srtt(), line.recovery.rttvar()), (None, rtt.0, rtt.1));
    // These were losses: what is sent next is not timed by the RTO as it was backed off, and measures.
    assert!(line.recovery.rto().0 < 250_000, "{:?}", line.recovery.rto());
    line.send(1);
    line.wait(20_000);
    assert_eq!(line.arrive(line.nxt, &[]).rtt, Some(Micros(20_000)));
}

/// One segment after the other is lost, and of each the ACK of the timer's retransmission reports a duplicate: the path takes all of them, and
/// none waits longer than the one before.
#[test]
fn a_path_that_loses_much_is_not_waited_for_longer_and_longer() {
    for echo in [true, false] {
        let mut line = Line::new().warm(20_000);
        line.completed = u64::MAX;
        if echo {
            line.echo = Some(tick(line.now));
        }
        let base = line.base();
        line.send(6);
        while !matches!(line.fire(), Fire::Timeout(3)) {
            line.mend();
        }
        let backed_off = line.recovery.rto();
        for n in 1..4 {
            line.wait(20_000);
            let una = (base + n) * MSS;
            assert_eq!(line.arrive(una, &[(una - MSS, una)]).rtt, None);
            if !echo {
                assert!(line.recovery.rto() >= backed_off, "Karn");
                break;
            }
            assert!(line.recovery.rto().0 < 250_000, "{n}: {:?}", line.recovery.rto());
            while !matches!(line.fire(), Fire::Timeout(_)) {
                line.mend();
            }
            line.mend();
        }
    }
}

/// The original was late, and not lost: its ACK tells of no duplicate, and how long it took. Without SACK nobody can tell the two apart.
#[test]
fn rfc7323_4_an_echo_of_the_original_measures_a_path_that_became_slow() {
    for sack in [true, false] {
        let mut line = Line::with(sack, Algorithm::Cubic).warm(20_000);
        line.completed = u64::MAX;
        line.echo = Some(tick(line.now));
        let una = line.nxt;
        line.send(1);
        while !matches!(line.fire(), Fire::Timeout(2)) {
            line.mend();
        }
        assert_eq!(line.mend(), [una]);
        let sent = line.echo.unwrap();
        let acked = line.arrive(line.nxt, &[]);
        assert_eq!(acked.rtt, sack.then(|| Micros((tick(line.now) - sent) * 1000)));
    }
}

#[test]
fn what_a_retransmission_makes_the_peer_tell_late_is_no_round_trip() {
    let mut line = Line::new().warm(20_000);
    line.completed = u64::MAX;
    let base = line.base();
    line.send(8);
    // The second is lost, too; SACK tells of the last only, and nothing more of what arrived for two seconds.
    line.wait(20_000);
    line.ack(base, &[(base + 6, base + 8)]);
    let srtt = line.recovery.srtt();
    line.wait(10_000);
    line.fire();
    while let Some(lost) = line.recovery.next_lost() {
        line.again(lost.seq.0, lost.len);
    }
    line.wait(2_000_000);
    let acked = line.ack(base, &[(base + 1, base + 3), (base + 6, base + 8)]);
    assert_eq!((acked.rtt, line.recovery.srtt()), (None, srtt), "the second was sent again");
}

#[test]
fn a_gap_is_told_of_at_once_by_what_was_sent_last() {
    let mut line = Line::new().warm(20_000);
    line.completed = u64::MAX;
    let base = line.base();
    line.send(3);
    line.wait(1_000_000);
    line.send(1);
    line.wait(20_000);
    // What told of the second and third was lost.
    assert_eq!(line.ack(base, &[(base + 1, base + 4)]).rtt, Some(Micros(20_000)));
}

#[test]
fn a_duplicate_that_the_peer_reports_measures_nothing() {
    let mut line = Line::new().warm(20_000);
    line.completed = u64::MAX;
    let base = line.base();
    line.send(4);
    line.wait(3_000_000);
    let acked = line.arrive((base + 1) * MSS, &[((base - 1) * MSS, base * MSS)]);
    assert_eq!((acked.covered, acked.rtt), (MSS, None));
}

#[test]
fn timestamps_bound_what_is_measured_while_losses_are_mended() {
    let mut line = Line::new().warm(20_000);
    line.completed = u64::MAX;
    let base = line.base();
    line.send(6);
    line.wait(20_000);
    line.ack(base, &[(base + 3, base + 6)]);
    line.wait(1_000_000);
    line.echo = Some(tick(line.now) - 30);
    let acked = line.ack(base + 1, &[(base + 3, base + 6)]);
    assert_eq!(acked.rtt, Some(Micros(31_000)));
}

#[test]
fn rfc8985_7_2_a_peer_that_may_delay_its_ack_has_its_time() {
    // A short round trip: the peer answers with its next request.
    let mut line = Line::new().warm(20);
    line.completed = u64::MAX;
    // Two small segments are less than what a peer must acknowledge at once.
    line.frame(200);
    line.frame(300);
    line.wait(40_000);
    assert!(line.now < line.recovery.deadline(), "a delayed ACK of 40 ms comes before the probe");
    assert!(line.recovery.deadline().0 >= line.now.0 + 160_000);
    line.arrive(line.nxt, &[]);
    assert_eq!(line.recovery.deadline(), Time::NEVER);
    // SRTT has learned of the delay. More than a segment: twice SRTT and what a busy peer takes.
    let srtt = line.recovery.srtt().unwrap().0;
    assert!((5_000..5_100).contains(&srtt), "{srtt}");
    line.send(3);
    let wait = line.recovery.deadline().since(line.now).0;
    assert!((2 * srtt + 8_000..=2 * srtt + 8_001).contains(&wait), "{wait}");
    // What is left after an ACK is one segment again.
    line.wait(1000);
    line.arrive(line.nxt - MSS, &[]);
    assert!(line.recovery.deadline().0 >= line.now.0 + 200_000);
}

#[test]
fn rfc8985_7_3_one_probe_for_a_flight() {
    let mut line = Line::new().warm(20_000);
    line.completed = u64::MAX;
    line.send(3);
    assert_eq!(line.fire(), Fire::Probe);
    let probe = line.recovery.probe().unwrap();
    line.again(probe.seq.0, probe.len);
    line.recovery.probed(line.now, true);
    // New data and ACKs of the old do not arm another one.
    line.send(2);
    line.wait(20_000);
    line.arrive(line.una + MSS, &[]);
    assert_eq!(line.recovery.deadline(), line.flight().expiry);
    assert!(matches!(line.fire(), Fire::Timeout(1)));
}

/// A flight that never ends goes round the numbers.
fn go_on(line: &mut Line, bytes: u64) {
    line.recovery.congestion.cwnd = 1 << 30;
    for _ in 0..bytes >> 28 {
        line.frame(1 << 28);
        line.wait(20_000);
        line.una = line.nxt.wrapping_sub(1 << 28);
        line.arrive(line.una, &[]);
    }
    line.frame(4 * MSS);
    line.wait(20_000);
    line.una = line.nxt.wrapping_sub(4 * MSS);
    line.arrive(line.una, &[]);
}

#[test]
fn losses_are_found_and_mended_however_long_a_flight_is() {
    for rounds in 0..16u64 {
        let mut line = Line::new().warm(20_000);
        line.completed = u64::MAX;
        let base = line.base();
        // A loss, mended.
        line.send(6);
        line.wait(20_000);
        line.ack(base, &[(base + 1, base + 5)]);
        assert_eq!(line.mend().len(), 1);
        line.wait(20_000);
        line.ack(base + 5, &[]);
        assert!(line.recovery.busy());
        // Long after, in the same flight, another.
        go_on(&mut line, rounds << 28);
        let una = line.una;
        assert!(line.recovery.busy() && line.state() == State::Open);
        line.arrive(una, &[(una + MSS, una + 4 * MSS)]);
        assert_eq!(line.state(), State::Recovery, "{rounds}");
        assert_eq!(line.mend(), [una], "{rounds}");
    }
}
