use super::*;

#[test]
fn rfc6928_2_initial_window_is_ten_segments_within_14600_bytes() {
    assert_eq!(Recovery::new(1460, Algorithm::Cubic).cwnd(), 14_600);
    assert_eq!(Recovery::new(536, Algorithm::Cubic).cwnd(), 5_360);
    assert_eq!(Recovery::new(2000, Algorithm::Cubic).cwnd(), 14_600);
    assert_eq!(Recovery::new(8960, Algorithm::Cubic).cwnd(), 17_920);
}

fn syn(recovery: &mut Recovery, spare: &mut Spare<Flight>, now: Time) {
    recovery.sent(now, spare, &Transmission { seq: Seq(99), len: 1, cut: 1000, syn: true, fin: false, number: 0 });
}

#[test]
fn rfc6298_5_7_and_rfc5681_3_1_lost_syns_leave_a_window_of_one_and_three_seconds() {
    let (mut recovery, mut spare, mut now) = (Recovery::new(1000, Algorithm::Cubic), Spare::default(), Time(5_000_000));
    syn(&mut recovery, &mut spare, now);
    for (timeouts, seconds) in [(1, 1), (2, 2)] {
        assert_eq!(recovery.deadline(), now + Micros(seconds * 1_000_000));
        now = recovery.deadline();
        assert_eq!(recovery.fire(now), Fire::Timeout(timeouts));
        let lost = recovery.next_lost().unwrap();
        assert!(lost.syn && !lost.fin && lost.len == 1 && lost.seq == Seq(99));
        let what = Transmission { seq: Seq(99), len: 1, cut: 1000, syn: true, fin: false, number: u64::from(timeouts) };
        recovery.retransmitted(now, &what);
        assert_eq!(recovery.next_lost(), None);
    }
    now += Micros(50_000);
    let arrival = Arrival { ack: Seq(100), sack: &[], echo: None, bare: false, fresh: false };
    let acked = recovery.ack(now, &arrival, 3, &mut spare);
    assert!(acked.syn && acked.covered == 1 && acked.rtt.is_none() && acked.head.is_none());
    recovery.negotiated(1000, true);
    assert_eq!((recovery.cwnd(), recovery.rto()), (1000, Micros(3_000_000)));
}

#[test]
fn one_lost_syn_leaves_the_initial_window() {
    let (mut recovery, mut spare, now) = (Recovery::new(1000, Algorithm::Cubic), Spare::default(), Time(5_000_000));
    syn(&mut recovery, &mut spare, now);
    recovery.fire(now + Micros(1_000_000));
    recovery.retransmitted(
        now + Micros(1_000_000),
        &Transmission { seq: Seq(99), len: 1, cut: 1000, syn: true, fin: false, number: 1 },
    );
    recovery.negotiated(1000, true);
    assert_eq!(recovery.cwnd(), 10_000);
}

#[test]
fn rfc6298_5_5_back_off_doubles_to_two_minutes_and_a_sample_ends_it() {
    let mut line = Line::new().warm(50_000);
    line.send(1);
    assert_eq!(line.fire(), Fire::Probe);
    let base = line.recovery.rto().0;
    for n in 1..=12u8 {
        assert_eq!(line.fire(), Fire::Timeout(n));
        let expected = (u64::from(base) << n).min(120_000_000);
        assert_eq!(u64::from(line.recovery.rto().0), expected);
        assert_eq!(line.mend().len(), 1);
        assert_eq!(line.recovery.deadline(), line.now + line.recovery.rto());
    }
    // Karn: what was sent more than once and carries no timestamp tells nothing.
    line.wait(50_000);
    line.arrive(line.nxt, &[]);
    assert_eq!(line.recovery.timeouts(), 0);
    assert!(line.recovery.rto().0 == 120_000_000);
    line.send(1);
    line.wait(50_000);
    line.arrive(line.nxt, &[]);
    assert!(line.recovery.rto().0 < 300_000);
}

#[test]
fn rfc7323_4_a_timestamp_measures_a_retransmission() {
    let mut line = Line::new().warm(50_000);
    line.send(1);
    assert_eq!(line.fire(), Fire::Probe);
    assert!(matches!(line.fire(), Fire::Timeout(1)));
    line.mend();
    line.echo = Some(tick(line.now));
    line.wait(30_000);
    let acked = line.arrive(line.nxt, &[]);
    assert_eq!(acked.rtt, Some(Micros(30_000)));
    assert!(line.recovery.rto().0 < 300_000);
}

#[test]
fn rfc6298_5_3_an_ack_of_new_data_restarts_the_timer() {
    let mut line = Line::new().warm(50_000);
    line.send(3);
    line.wait(40_000);
    line.ack(line.base() + 1, &[]);
    assert_eq!(line.flight().expiry, line.now + line.recovery.rto());
    line.wait(1000);
    line.ack(line.base() + 2, &[]);
    assert_eq!(line.recovery.deadline(), Time::NEVER);
}

#[test]
fn rfc5681_3_1_slow_start_doubles_where_the_window_is_used_up() {
    for algorithm in [Algorithm::Cubic, Algorithm::Reno] {
        let mut line = Line::with(true, algorithm);
        for round in 0..4 {
            let window = line.recovery.cwnd();
            assert_eq!(window, 10_000 << round);
            line.send(window / MSS);
            assert_eq!(line.recovery.allowance(line.now), 0);
            line.recovery.limited(true);
            line.wait(20_000);
            for ack in line.base() + 1..=line.nxt / MSS {
                line.ack(ack, &[]);
            }
        }
    }
}

#[test]
fn rfc7661_a_window_that_is_not_used_up_does_not_grow() {
    let mut line = Line::new().warm(20_000);
    for _ in 0..20 {
        line.send(3);
        line.recovery.limited(false);
        line.wait(20_000);
        line.arrive(line.nxt, &[]);
    }
    assert_eq!(line.recovery.cwnd(), 10_000);
}

#[test]
fn linux_slow_start_grows_while_more_than_half_is_used() {
    let mut line = Line::new();
    line.send(6);
    line.recovery.limited(false);
    line.wait(20_000);
    line.arrive(line.nxt, &[]);
    assert_eq!(line.recovery.cwnd(), 16_000);
}

#[test]
fn rfc5681_4_1_an_idle_connection_restarts_from_the_initial_window() {
    let mut line = Line::new().warm(20_000);
    line.recovery.congestion.cwnd = 100_000;
    line.wait(u64::from(line.recovery.rto().0) - 20_000);
    assert_eq!(line.recovery.allowance(line.now), 100_000);
    line.wait(100_000);
    assert_eq!(line.recovery.allowance(line.now), 50_000);
    assert_eq!(line.recovery.allowance(line.now), 50_000, "asking again changed it");
    line.wait(60_000_000);
    assert_eq!(line.recovery.allowance(line.now), 10_000);
    assert_eq!(line.recovery.ssthresh(), u32::MAX);
}

#[test]
fn rfc5681_3_2_and_rfc3042_without_sack() {
    let mut line = Line::with(false, Algorithm::Reno).warm(20_000);
    let base = line.base();
    line.send(10);
    line.wait(20_000);
    // The first is lost; two duplicates allow a segment each (limited transmit).
    for n in 1..=2 {
        line.ack(base, &[]);
        assert_eq!(line.recovery.allowance(line.now), n * MSS);
    }
    line.send(2);
    assert_eq!(line.state(), State::Open);
    assert_eq!(line.ack(base, &[]).told, Told::Entered);
    assert_eq!(line.mend(), [base * MSS]);
    assert_eq!(line.recovery.ssthresh(), 5000);
    for _ in 0..8 {
        line.ack(base, &[]);
    }
    line.wait(20_000);
    assert_eq!(line.ack(base + 12, &[]).told, Told::Recovered);
    assert_eq!(line.recovery.cwnd(), 5000);
}

#[test]
fn rfc6582_3_2_a_partial_ack_sends_the_next_again() {
    let mut line = Line::with(false, Algorithm::Reno).warm(20_000);
    let base = line.base();
    line.send(10);
    line.wait(20_000);
    for _ in 0..3 {
        line.ack(base, &[]);
    }
    assert_eq!(line.mend(), [base * MSS]);
    line.wait(20_000);
    assert_eq!(line.ack(base + 4, &[]).told, Told::Nothing);
    assert_eq!(line.mend(), [(base + 4) * MSS]);
    assert_eq!(line.state(), State::Recovery);
    line.wait(20_000);
    assert_eq!(line.ack(base + 10, &[]).told, Told::Recovered);
}

#[test]
fn rfc6582_3_2_duplicates_after_a_recovery_do_not_begin_another() {
    let mut line = Line::with(false, Algorithm::Reno).warm(20_000);
    let base = line.base();
    line.send(4);
    line.wait(20_000);
    for _ in 0..3 {
        line.ack(base, &[]);
    }
    line.mend();
    line.wait(20_000);
    line.ack(base + 4, &[]);
    line.send(4);
    for _ in 0..3 {
        assert_eq!(line.ack(base + 4, &[]).told, Told::Nothing);
    }
    assert_eq!(line.state(), State::Open);
}

#[test]
fn rfc8985_6_2_three_segments_beyond_a_gap_begin_recovery() {
    let mut line = Line::new().warm(20_000);
    let base = line.base();
    line.send(10);
    line.wait(20_000);
    line.ack(base, &[(base + 1, base + 2)]);
    line.ack(base, &[(base + 1, base + 3)]);
    assert_eq!(line.state(), State::Open);
    assert_eq!(line.ack(base, &[(base + 1, base + 4)]).told, Told::Entered);
    assert_eq!(line.recovery.ssthresh(), 7000);
    assert_eq!(line.mend(), [base * MSS]);
    line.wait(20_000);
    assert_eq!(line.ack(base + 10, &[]).told, Told::Recovered);
    assert_eq!(line.recovery.cwnd(), 7000);
}

#[test]
fn rfc8985_6_3_fewer_begin_it_after_a_quarter_of_the_round_trip() {
    let mut line = Line::new().warm(20_000);
    let base = line.base();
    line.send(3);
    line.wait(20_000);
    line.ack(base, &[(base + 2, base + 3)]);
    assert_eq!(line.state(), State::Open);
    assert_eq!(line.recovery.deadline(), line.now + Micros(5000));
    assert_eq!(line.fire(), Fire::Lost);
    // Both are lost; the window lets one go.
    assert_eq!(line.mend(), [base * MSS]);
    assert_eq!(line.recovery.next_lost().map(|lost| lost.seq.0), Some((base + 1) * MSS));
}

#[test]
fn rfc8985_6_2_a_lost_retransmission_is_found_by_time() {
    let mut line = Line::new().warm(20_000);
    let base = line.base();
    line.send(10);
    line.wait(20_000);
    line.ack(base, &[(base + 1, base + 5)]);
    assert_eq!(line.mend(), [base * MSS]);
    line.wait(100);
    line.send(4);
    line.wait(20_000);
    // What was sent behind the retransmission arrives, the retransmission does not.
    line.ack(base, &[(base + 1, base + 11)]);
    assert_eq!(line.mend(), [base * MSS]);
}

#[test]
fn rfc8985_6_2_reordering_widens_the_window_and_dsack_widens_it_more() {
    let mut line = Line::new().warm(40_000);
    let base = line.base();
    line.send(4);
    line.wait(40_000);
    line.ack(base, &[(base + 1, base + 2)]);
    line.ack(base + 2, &[]);
    assert!(line.recovery.reordering.seen);
    line.arrive(line.nxt, &[]);
    let base = line.base();
    line.send(10);
    line.wait(40_000);
    line.ack(base, &[(base + 1, base + 6)]);
    assert_eq!(line.state(), State::Open, "reordering is known: three segments are no proof");
    assert_eq!(line.recovery.deadline(), line.now + Micros(10_000));
    assert_eq!(line.fire(), Fire::Lost);
    line.mend();
    // The original arrives late, then the copy.
    line.ack(base + 10, &[]);
    line.send(1);
    line.ack(base + 10, &[(base, base + 1)]);
    assert_eq!(line.recovery.reordering.window(true, 40_000, u32::MAX), 20_000);
    assert_eq!(line.recovery.reordering.window(true, 40_000, 15_000), 15_000, "never above SRTT");
    for _ in 0..16 {
        line.recovery.reordering.recovered();
    }
    assert_eq!(line.recovery.reordering.window(true, 40_000, u32::MAX), 10_000);
}

#[test]
fn rfc8985_7_2_a_probe_is_due_after_two_round_trips() {
    let mut line = Line::new().warm(50_000);
    line.send(2);
    assert_eq!(line.recovery.deadline(), line.now + Micros(2 * 50_000 + 8_000));
    let mut line = Line::new().warm(50_000);
    line.send(1);
    assert_eq!(line.recovery.deadline(), line.now + line.recovery.rto().min(Micros(2 * 50_000 + 200_000)));
}

#[test]
fn rfc8985_7_4_a_probe_that_mends_a_loss_reduces_the_window() {
    let mut line = Line::new().warm(50_000);
    line.send(2);
    assert_eq!(line.fire(), Fire::Probe);
    let probe = line.recovery.probe().unwrap();
    assert_eq!((probe.seq.0, probe.len), (line.nxt - MSS, MSS));
    line.again(probe.seq.0, probe.len);
    line.recovery.probed(line.now, true);
    assert_eq!(line.recovery.deadline(), line.now + line.recovery.rto());
    line.wait(50_000);
    assert_eq!(line.arrive(line.nxt, &[]).told, Told::Nothing);
    line.send(1);
    line.wait(50_000);
    assert_eq!(line.arrive(line.nxt, &[]).told, Told::ProbeMended);
    assert_eq!((line.recovery.cwnd(), line.recovery.ssthresh()), (7000, 7000));
}

fn probed_for_nothing() -> Line {
    let mut line = Line::new().warm(50_000);
    line.send(2);
    assert_eq!(line.fire(), Fire::Probe);
    let probe = line.recovery.probe().unwrap();
    line.again(probe.seq.0, probe.len);
    line.recovery.probed(line.now, true);
    line.wait(1000);
    line.arrive(line.nxt, &[]);
    line
}

#[test]
fn rfc8985_7_4_a_dsack_shows_that_a_probe_was_not_needed() {
    let mut line = probed_for_nothing();
    let end = line.nxt / MSS;
    line.ack(end, &[(end - 1, end)]);
    line.send(1);
    line.wait(50_000);
    assert_eq!(line.arrive(line.nxt, &[]).told, Told::Nothing);
    assert_eq!(line.recovery.ssthresh(), u32::MAX);
}

#[test]
fn rfc8985_7_4_so_does_a_duplicate_ack() {
    let mut line = probed_for_nothing();
    line.arrive(line.nxt, &[]);
    line.send(1);
    line.wait(50_000);
    assert_eq!(line.arrive(line.nxt, &[]).told, Told::Nothing);
    assert_eq!(line.recovery.ssthresh(), u32::MAX);
}

#[test]
fn rfc8985_7_3_a_probe_with_new_data_is_no_retransmission() {
    let mut line = Line::new().warm(50_000);
    line.send(2);
    assert_eq!(line.fire(), Fire::Probe);
    line.send(1);
    line.recovery.probed(line.now, false);
    assert_eq!(line.recovery.deadline(), line.now + line.recovery.rto(), "one probe at a time");
    line.wait(50_000);
    line.arrive(line.nxt, &[]);
    line.send(1);
    line.wait(50_000);
    assert_eq!(line.arrive(line.nxt, &[]).told, Told::Nothing);
}

#[test]
fn rfc5681_3_1_a_timeout_leaves_one_segment() {
    let mut line = Line::new().warm(50_000);
    let base = line.base();
    line.send(10);
    assert_eq!(line.fire(), Fire::Probe);
    assert_eq!(line.fire(), Fire::Timeout(1));
    assert_eq!((line.recovery.cwnd(), line.recovery.ssthresh()), (1000, 7000));
    assert_eq!(line.mend(), [base * MSS]);
    assert_eq!(line.fire(), Fire::Timeout(2));
    assert_eq!(line.recovery.ssthresh(), 7000, "the same congestion counts once");
    assert_eq!(line.mend(), [base * MSS]);
    line.wait(50_000);
    line.ack(base + 1, &[]);
    assert_eq!(line.mend(), [(base + 1) * MSS, (base + 2) * MSS]);
}

#[test]
fn rfc5682_3_1_a_timeout_is_undone_when_new_data_brings_acks_of_the_old() {
    let mut line = Line::new().warm(50_000);
    let base = line.base();
    line.send(10);
    line.fire();
    assert_eq!(line.fire(), Fire::Timeout(1));
    assert_eq!(line.mend(), [base * MSS]);
    line.fresh = true;
    line.wait(1000);
    line.ack(base + 1, &[]);
    // Step 2b: new data, and nothing again.
    assert_eq!(line.recovery.next_lost(), None);
    assert!(line.recovery.allowance(line.now) >= 2 * MSS);
    line.send(2);
    line.wait(1000);
    assert_eq!(line.ack(base + 2, &[]).told, Told::Undone);
    assert_eq!((line.recovery.cwnd(), line.recovery.ssthresh()), (10_000, u32::MAX));
    assert_eq!(line.recovery.next_lost(), None);
    assert_eq!(line.state(), State::Open);
}

#[test]
fn rfc5682_3_1_a_timeout_stands_when_new_data_brings_a_duplicate() {
    let mut line = Line::new().warm(50_000);
    let base = line.base();
    line.send(10);
    line.fire();
    line.fire();
    line.mend();
    line.fresh = true;
    line.wait(1000);
    line.ack(base + 1, &[]);
    line.send(2);
    line.wait(50_000);
    assert_eq!(line.ack(base + 1, &[(base + 10, base + 11)]).told, Told::Nothing);
    assert_eq!(line.state(), State::Loss);
    assert!(!line.mend().is_empty());
    // What was never sent again is acknowledged now: it proves nothing any more.
    line.ack(base + 3, &[(base + 10, base + 12)]);
    assert_eq!(line.state(), State::Loss);
}

#[test]
fn rfc3522_a_timeout_is_undone_by_a_timestamp_from_before_it() {
    let mut line = Line::new().warm(50_000);
    line.send(1);
    let before = tick(line.now);
    line.fire();
    line.fire();
    line.mend();
    line.wait(5000);
    line.echo = Some(before);
    assert_eq!(line.arrive(line.nxt, &[]).told, Told::Undone);
    assert_eq!((line.recovery.cwnd(), line.recovery.ssthresh()), (10_000, u32::MAX));
}

#[test]
fn rfc3522_a_fast_recovery_is_undone_by_a_timestamp_from_before_it() {
    let mut line = Line::new().warm(50_000);
    let base = line.base();
    line.send(10);
    let before = tick(line.now);
    line.wait(50_000);
    line.echo = Some(before);
    line.ack(base, &[(base + 1, base + 5)]);
    line.mend();
    assert_eq!(line.state(), State::Recovery);
    line.wait(2000);
    assert_eq!(line.ack(base + 5, &[]).told, Told::Undone);
    assert_eq!((line.recovery.cwnd(), line.recovery.ssthresh()), (10_000, u32::MAX));
    assert_eq!(line.state(), State::Open);
}

#[test]
fn rfc3522_a_timestamp_from_after_it_undoes_nothing() {
    let mut line = Line::new().warm(50_000);
    let base = line.base();
    line.send(10);
    line.wait(50_000);
    line.ack(base, &[(base + 1, base + 5)]);
    line.mend();
    line.echo = Some(tick(line.now));
    line.wait(50_000);
    assert_eq!(line.ack(base + 10, &[]).told, Told::Recovered);
    assert_eq!(line.recovery.cwnd(), 7000);
}

#[test]
fn rfc3708_a_fast_recovery_is_undone_by_dsack_even_later() {
    for empty in [false, true] {
        let mut line = Line::new().warm(50_000);
        let base = line.base();
        line.send(10);
        line.wait(50_000);
        line.ack(base, &[(base + 1, base + 5)]);
        assert_eq!(line.mend(), [base * MSS]);
        line.wait(3000);
        line.completed = u64::MAX;
        assert_eq!(line.ack(base + 10, &[]).told, Told::Recovered);
        assert!(!line.recovery.busy());
        if !empty {
            line.send(1);
        }
        assert_eq!(line.ack(base + 10, &[(base, base + 1)]).told, Told::Undone);
        assert_eq!((line.recovery.cwnd(), line.recovery.ssthresh()), (10_000, u32::MAX));
        // Once.
        line.recovery.congestion.cwnd = 5000;
        line.ack(base + 10, &[(base, base + 1)]);
        assert_eq!(line.recovery.cwnd(), 5000);
    }
}

#[test]
fn losses_are_taken_back_once_for_each_window() {
    let mut line = Line::new().warm(50_000);
    for _ in 0..2 {
        let base = line.base();
        line.send(10);
        line.wait(50_000);
        line.ack(base, &[(base + 8, base + 9)]);
        line.wait(500_000);
        line.fire();
        assert_eq!((line.state(), line.flight().lost), (State::Recovery, 8 * MSS));
        line.again(base * MSS, MSS);
        // They are taken back, and found again at once.
        assert_eq!(line.ack(base + 1, &[(base, base + 1), (base + 8, base + 9)]).told, Told::Entered);
        assert_eq!((line.state(), line.flight().lost), (State::Recovery, 7 * MSS));
        // But not a second time.
        line.again((base + 1) * MSS, MSS);
        assert_eq!(line.ack(base + 2, &[(base + 1, base + 2), (base + 8, base + 9)]).told, Told::Duplicate);
        assert_eq!((line.state(), line.flight().lost), (State::Recovery, 6 * MSS));
        assert_eq!(line.ack(base + 10, &[]).told, Told::Recovered);
    }
}

#[test]
fn rfc2018_8_a_peer_that_throws_away_what_it_held_is_sent_all_again() {
    let mut line = Line::new().warm(50_000);
    let base = line.base();
    line.send(10);
    line.wait(50_000);
    line.ack(base, &[(base + 1, base + 10)]);
    line.mend();
    line.wait(50_000);
    // It acknowledges the first and nothing of what it held.
    line.ack(base + 1, &[]);
    assert!(matches!(line.fire(), Fire::Timeout(1)));
    assert_eq!(line.flight().sacked, 0);
    let mut sent = line.mend();
    line.wait(50_000);
    for n in 2..=10 {
        line.wait(1000);
        line.ack(base + n, &[]);
        sent.extend(line.mend());
    }
    assert!(sent.len() >= 9, "{sent:?}");
    assert_eq!(line.una, line.nxt);
}

#[test]
fn rfc9937_6_the_window_comes_down_in_step_and_not_below_the_threshold() {
    let mut line = Line::new().warm(50_000);
    line.recovery.congestion.cwnd = 20_000;
    let base = line.base();
    line.send(20);
    line.wait(50_000);
    let mut out = 0;
    for n in 2..=20 {
        line.ack(base, &[(base + 1, base + n)]);
        out += line.mend().len() as u32;
        while line.recovery.allowance(line.now) >= MSS {
            line.send(1);
            out += 1;
        }
    }
    // 19 have arrived: 0.7 of them were sent.
    assert_eq!(line.recovery.ssthresh(), 14_000);
    assert!((13..=14).contains(&out), "{out}");
    assert_eq!(line.flight().pipe(), out * MSS);
    line.wait(50_000);
    line.ack(base + 20, &[]);
    assert_eq!(line.recovery.cwnd(), 14_000);
}

#[test]
fn rfc9937_6_after_heavy_loss_slow_start_bounds_the_climb() {
    let mut line = Line::new().warm(50_000);
    line.recovery.congestion.cwnd = 20_000;
    let base = line.base();
    line.send(20);
    line.wait(50_000);
    // Only the last three arrive.
    line.ack(base, &[(base + 17, base + 20)]);
    let first = line.mend().len();
    assert!((1..=4).contains(&first), "{first}");
    line.wait(50_000);
    line.ack(base + 1, &[(base + 17, base + 20)]);
    // una advances and nothing more is lost: a segment more than has arrived.
    assert_eq!(line.mend().len(), 2);
}

#[test]
fn rfc9937_6_1_the_first_retransmission_is_always_allowed() {
    let mut line = Line::new().warm(50_000);
    line.recovery.congestion.cwnd = 4000;
    let base = line.base();
    line.send(4);
    line.wait(50_000);
    line.ack(base, &[(base + 3, base + 4)]);
    line.recovery.congestion.cwnd = 2000;
    assert_eq!(line.fire(), Fire::Lost);
    assert!(line.mend().contains(&(base * MSS)));
}

#[test]
fn rfc9937_6_2_the_first_retransmission_goes_at_once_where_its_share_is_less_than_a_segment() {
    let mut line = Line::with(true, Algorithm::Reno).warm(50_000);
    line.recovery.congestion.cwnd = 10_000;
    let base = line.base();
    line.send(10);
    line.wait(50_000);
    for n in 2..=3 {
        line.ack(base, &[(base + 1, base + n)]);
        line.send(1);
    }
    line.ack(base, &[(base + 1, base + 4)]);
    assert_eq!((line.state(), line.recovery.ssthresh()), (State::Recovery, 5000));
    assert_eq!(line.mend(), [base * MSS]);
    // From then on half of what arrives.
    line.ack(base, &[(base + 1, base + 5)]);
    line.ack(base, &[(base + 1, base + 6)]);
    assert!(line.recovery.allowance(line.now) < MSS);
    line.ack(base, &[(base + 1, base + 7)]);
    assert_eq!(line.recovery.allowance(line.now), MSS);
}

#[test]
fn linux_simple_retransmit_resegments_without_congestion() {
    let mut line = Line::new().warm(50_000);
    let base = line.base();
    line.send(2);
    line.frame(300);
    line.recovery.mtu(500);
    let lost = line.recovery.next_lost().unwrap();
    assert_eq!((lost.seq.0, lost.len), (base * MSS, MSS));
    for at in (base * MSS..(base + 2) * MSS).step_by(500) {
        let lost = line.recovery.next_lost().unwrap();
        assert_eq!(lost.seq.0, at);
        line.again(at, 500);
    }
    assert_eq!(line.recovery.next_lost(), None);
    assert_eq!((line.recovery.cwnd(), line.recovery.ssthresh(), line.state()), (10_000, u32::MAX, State::Open));
    line.wait(50_000);
    line.arrive(line.nxt, &[]);
    assert_eq!(line.recovery.ssthresh(), u32::MAX);
}

#[test]
fn time_that_jumps_fires_once_and_is_no_round_trip() {
    let mut line = Line::new().warm(50_000);
    line.send(5);
    let srtt = line.recovery.srtt();
    line.wait(5_000_000_000);
    assert_eq!(line.recovery.fire(line.now), Fire::Probe);
    assert_eq!(line.recovery.fire(line.now), Fire::Nothing);
    line.arrive(line.nxt, &[]);
    assert_eq!(line.recovery.srtt(), srtt);
}

#[test]
fn an_ack_of_what_was_never_sent_changes_nothing_in_a_release_build() {
    if cfg!(debug_assertions) {
        return;
    }
    let mut line = Line::new().warm(50_000);
    line.send(5);
    let acked = line.arrive(line.nxt + 1, &[]);
    assert_eq!((acked.covered, line.recovery.outstanding()), (0, 5000));
}

#[test]
fn an_abandoned_connection_waits_for_the_port_alone() {
    let mut line = Line::new().warm(50_000);
    line.recovery.progress(u64::MAX, &mut line.spare);
    let (from, frames) = (line.nxt, line.frames);
    line.send(3);
    line.recovery.abandon();
    assert_eq!(line.recovery.deadline(), Time::NEVER);
    assert_eq!(line.recovery.next_lost(), None);
    assert_eq!(line.recovery.progress(frames, &mut line.spare), Some(Seq(from)));
    assert_eq!(line.recovery.progress(frames + 2, &mut line.spare), Some(Seq(from + 2000)));
    assert_eq!(line.recovery.progress(frames + 3, &mut line.spare), None);
    assert!(!line.recovery.busy());
}

#[test]
fn the_state_is_plain_data() {
    let mut line = Line::new().warm(50_000);
    let base = line.base();
    line.send(10);
    line.wait(50_000);
    line.ack(base, &[(base + 1, base + 5)]);
    line.mend();
    let text = serde_json::to_string(&line.recovery).unwrap();
    let copy: Recovery = serde_json::from_str(&text).unwrap();
    copy.check();
    assert_eq!(serde_json::to_string(&copy).unwrap(), text);
    assert_eq!(copy.info(), line.recovery.info());
}
