use super::cubic::cube_root;
use super::*;

const MSS: u32 = 1460;

/// A path of a fixed round trip without loss: every two segments are acknowledged, evenly over the round trip.
struct Path {
    congestion: Congestion,
    /// Microseconds.
    now: f64,
    rtt: f64,
    una: u32,
}

impl Path {
    fn new(algorithm: Algorithm, cwnd: u32, rtt: f64) -> Path {
        let mut congestion = Congestion::new(cwnd, algorithm);
        congestion.ssthresh = cwnd;
        if let Phase::Start(_, then) = congestion.phase {
            congestion.avoid(then, cwnd);
        }
        Path { congestion, now: 50_000_000.0, rtt, una: 0 }
    }

    fn lose(&mut self) {
        self.congestion.reduce(MSS);
        self.congestion.cwnd = self.congestion.ssthresh;
    }

    /// One ACK of two segments.
    fn ack(&mut self) {
        let acked = 2 * MSS;
        self.now += self.rtt * f64::from(acked) / f64::from(self.congestion.cwnd);
        self.una = self.una.wrapping_add(acked);
        self.congestion.grow(&Growth {
            acked,
            now: (self.now / 1000.0) as u32,
            mss: MSS,
            srtt: self.rtt as u32,
            rtt: self.rtt as u32,
            una: Seq(self.una),
            nxt: Seq(self.una.wrapping_add(self.congestion.cwnd)),
        });
    }

    fn segments(&self) -> f64 {
        f64::from(self.congestion.cwnd) / f64::from(MSS)
    }
}

/// RFC 9438, sections 4.2 to 4.5, in f64 and in segments, fed by the same ACKs.
struct Formula {
    cwnd: f64,
    highest: f64,
    prior: f64,
    est: f64,
    epoch: f64,
    k: f64,
    rtt: f64,
}

impl Formula {
    const C: f64 = 0.4;
    const BETA: f64 = 0.7;

    fn after_loss(cwnd: f64, highest: f64, now: f64, rtt: f64) -> Formula {
        let k = ((highest - cwnd) / Formula::C).cbrt();
        Formula { cwnd, highest, prior: cwnd / Formula::BETA, est: cwnd, epoch: now, k, rtt: rtt / 1e6 }
    }

    fn curve(&self, t: f64) -> f64 {
        Formula::C * (t - self.k).powi(3) + self.highest
    }

    fn ack(&mut self, now: f64, segments: f64) {
        let t = (now - self.epoch) / 1e6;
        let alpha = if self.est >= self.prior { 1.0 } else { 3.0 * (1.0 - Formula::BETA) / (1.0 + Formula::BETA) };
        self.est += alpha * segments / self.cwnd;
        if self.curve(t) < self.est {
            self.cwnd = self.cwnd.max(self.est);
        } else {
            let target = self.curve(t + self.rtt).clamp(self.cwnd, 1.5 * self.cwnd);
            self.cwnd += segments * (target - self.cwnd) / self.cwnd;
        }
    }
}

/// The largest relative difference between the integers and the formula over so many seconds.
fn difference(window: u32, rtt: f64, seconds: f64) -> (f64, f64) {
    let mut path = Path::new(Algorithm::Cubic, window * MSS, rtt);
    path.lose();
    path.ack();
    let mut formula = Formula::after_loss(path.segments(), f64::from(window), path.now, rtt);
    let end = path.now + seconds * 1e6;
    let mut worst = 0f64;
    while path.now < end {
        path.ack();
        formula.ack(path.now, 2.0);
        worst = worst.max((path.segments() / formula.cwnd - 1.0).abs());
    }
    (worst, path.segments() / f64::from(window))
}

#[test]
fn rfc9438_4_4_and_4_5_concave_and_convex_as_the_formula() {
    for (window, rtt, seconds) in
        [(1000, 100_000.0, 20.0), (300, 50_000.0, 12.0), (5000, 200_000.0, 30.0), (20_000, 80_000.0, 50.0)]
    {
        let (worst, grown) = difference(window, rtt, seconds);
        assert!(worst < 0.01, "window {window}, round trip {rtt}: {worst}");
        assert!(grown > 1.1, "the convex part was not reached: {grown}");
    }
}

#[test]
fn rfc9438_4_3_as_reno_where_the_round_trip_is_short() {
    for (window, rtt, seconds) in [(20, 2_000.0, 2.0), (100, 5_000.0, 5.0), (50, 300.0, 0.5)] {
        let (worst, grown) = difference(window, rtt, seconds);
        assert!(worst < 0.02, "window {window}, round trip {rtt}: {worst}");
        assert!(grown > 1.5, "{grown}");
    }
}

#[test]
fn rfc9438_4_6_multiplicative_decrease_and_4_7_fast_convergence() {
    let mut path = Path::new(Algorithm::Cubic, 1000 * MSS, 100_000.0);
    path.lose();
    assert_eq!(path.congestion.cwnd, 700 * MSS);
    let Phase::Cubic(cubic) = path.congestion.phase else { panic!() };
    let before = cubic;
    // Lost again before it was back: W_max is set below where it was.
    path.lose();
    assert_eq!(path.congestion.cwnd, 490 * MSS);
    let Phase::Cubic(cubic) = path.congestion.phase else { panic!() };
    assert_ne!(cubic, before);
    let start = path.now;
    while path.segments() < 594.0 {
        path.ack();
    }
    // W_max is 700 * 0.85 = 595: K = cbrt((595 - 490) / 0.4) = 6.4 s.
    let took = (path.now - start) / 1e6;
    assert!((5.0..6.8).contains(&took), "{took}");
}

#[test]
fn rfc9438_5_8_time_without_use_does_not_count() {
    let mut path = Path::new(Algorithm::Cubic, 1000 * MSS, 100_000.0);
    path.lose();
    for _ in 0..400 {
        path.ack();
    }
    let before = path.congestion.cwnd;
    let mut used = path.congestion;
    for _ in 0..300 {
        path.now += 100_000.0;
        path.congestion.unused((path.now / 1000.0) as u32);
    }
    for _ in 0..50 {
        path.ack();
    }
    assert!(path.congestion.cwnd - before < 10 * MSS, "{} {before}", path.congestion.cwnd);
    // An idle time, too.
    let ms = |path: &Path| (path.now / 1000.0) as u32;
    used.idle(ms(&path), 30_000, u32::MAX, 10 * MSS);
    path.congestion = used;
    for _ in 0..50 {
        path.ack();
    }
    assert!(path.congestion.cwnd - before < 10 * MSS);
}

#[test]
fn rfc9438_4_10_slow_start_left_without_loss_begins_at_the_plateau() {
    let mut path = Path::new(Algorithm::Cubic, 500 * MSS, 100_000.0);
    for _ in 0..250 {
        path.ack();
    }
    // One round trip: the curve gives 0.4 * 0.2^3 segments, Reno one.
    assert!((500.5..502.0).contains(&path.segments()), "{}", path.segments());
}

#[test]
fn rfc5681_3_1_reno_grows_by_a_segment_a_round_trip() {
    let mut path = Path::new(Algorithm::Reno, 100 * MSS, 10_000.0);
    let start = path.now;
    while path.now < start + 100.0 * 10_000.0 {
        path.ack();
    }
    assert!((198.0..=201.0).contains(&path.segments()), "{}", path.segments());
    path.lose();
    assert!((99.0..=100.5).contains(&path.segments()));
}

#[test]
fn rfc5681_3_1_the_threshold_is_two_segments_at_least() {
    for algorithm in [Algorithm::Reno, Algorithm::Cubic] {
        let mut congestion = Congestion::new(MSS, algorithm);
        congestion.reduce(MSS);
        assert_eq!(congestion.ssthresh, 2 * MSS);
    }
}

#[test]
fn no_window_overflows() {
    for algorithm in [Algorithm::Reno, Algorithm::Cubic] {
        for mss in [1, 536, 65_535u32] {
            for cwnd in [mss, LARGEST - 1, LARGEST] {
                let mut congestion = Congestion::new(cwnd, algorithm);
                for n in 0..300u32 {
                    congestion.grow(&Growth {
                        acked: LARGEST,
                        now: n << 23,
                        mss,
                        srtt: u32::MAX,
                        rtt: n,
                        una: Seq(n),
                        nxt: Seq(n),
                    });
                    if n % 50 == 49 {
                        congestion.reduce(mss);
                    }
                    assert!(congestion.cwnd <= LARGEST && congestion.ssthresh >= 2 * mss);
                }
            }
        }
    }
}

#[test]
fn cube_roots() {
    for root in [0u64, 1, 2, 3, 100, 12_345, 1_000_000, 2_097_151] {
        let cube = root * root * root;
        assert_eq!(u64::from(cube_root(cube)), root);
        assert_eq!(u64::from(cube_root(cube + 3 * root * root)), root);
        if root > 0 {
            assert_eq!(u64::from(cube_root(cube - 1)), root - 1);
        }
    }
}

/// Rounds of slow start, each with the round trip that `rtt` says, in milliseconds; returns the window after each.
fn slow_start(rounds: u32, rtt: impl Fn(u32) -> u32) -> (Congestion, Vec<u32>) {
    let mut congestion = Congestion::new(10 * MSS, Algorithm::Cubic);
    let (mut una, mut now, mut windows) = (0u32, 0, Vec::new());
    for round in 0..rounds {
        let window = congestion.cwnd;
        let end = una + window / MSS * MSS;
        let mut nxt = end;
        while una < end {
            una += MSS;
            // An ACK lets out what it covers and what the window has grown by.
            let growth = Growth {
                acked: MSS,
                now,
                mss: MSS,
                srtt: 1000 * rtt(round),
                rtt: 1000 * rtt(round),
                una: Seq(una),
                nxt: Seq(nxt),
            };
            congestion.grow(&growth);
            nxt = una + congestion.cwnd;
        }
        now += rtt(round);
        windows.push(congestion.cwnd / MSS);
    }
    (congestion, windows)
}

#[test]
fn rfc9406_4_2_doubles_while_the_delay_is_steady() {
    let (congestion, windows) = slow_start(6, |_| 40);
    assert_eq!(windows, [20, 40, 80, 160, 320, 640]);
    assert_eq!(congestion.ssthresh, u32::MAX);
}

#[test]
fn rfc9406_4_2_leaves_slow_start_after_five_rounds_of_delay() {
    // The threshold is an eighth of 40 ms.
    let (congestion, windows) = slow_start(12, |round| if round < 3 { 40 } else { 46 });
    assert!(congestion.ssthresh < u32::MAX, "{windows:?}");
    // A quarter of the growth in each conservative round.
    assert!(windows[5] < windows[4] * 13 / 10, "{windows:?}");
    assert!(matches!(congestion.phase, Phase::Cubic(_)));
    assert!(windows[11] - windows[10] <= 2, "{windows:?}");
}

#[test]
fn rfc9406_4_2_goes_on_when_the_delay_was_none_that_stays() {
    let (congestion, windows) = slow_start(8, |round| if (3..5).contains(&round) { 46 } else { 40 });
    assert_eq!(congestion.ssthresh, u32::MAX);
    assert!(windows[7] > windows[6] * 19 / 10, "{windows:?}");
}

#[test]
fn rfc9406_4_2_less_than_four_milliseconds_are_no_delay() {
    let (_, windows) = slow_start(6, |round| if round < 3 { 2 } else { 5 });
    assert_eq!(windows.last(), Some(&640));
}
