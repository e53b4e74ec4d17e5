//! Medians, ratios, verdicts, and how they are printed.

use std::collections::BTreeMap;

use serde::Serialize;

use super::procs::Side;
use super::row::{Floor, Row, Sample};
use crate::stat::columns;

/// CPU that "no CPU" allows: a thousandth of one processor, microseconds per second. Below that lies what
/// the kernel itself charges for ticks and for reading /proc.
const NO_CPU: f64 = 1000.0;

/// One row of the result. Stable JSON; fields may be added.
#[derive(Serialize, Debug)]
pub struct Outcome {
    pub id: &'static str,
    pub title: &'static str,
    /// What is in the place of the kernel, if that is not it.
    pub beside: Option<&'static str>,
    pub unit: &'static str,
    pub operation: &'static str,
    pub kernel: Option<Summary>,
    pub culvert: Option<Summary>,
    /// How many times better culvert is (for `idle`: null).
    pub ratio: Option<f64>,
    /// In words.
    pub floor: String,
    /// `null` if nothing was measured. True also for what [`Verdict::WithinNoise`] says.
    pub met: Option<bool>,
    /// `null` if nothing was measured.
    pub verdict: Option<Verdict>,
    /// Why nothing was measured.
    pub skipped: Option<String>,
    /// Whether the details are shown to people as well.
    #[serde(skip)]
    detailed: bool,
}

/// Whether a row reached its floor.
#[derive(Serialize, Clone, Copy, PartialEq, Eq, Debug)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// It did.
    Met,
    /// The floor is parity with the kernel, and the row misses it by less than its rounds differ among themselves: this
    /// run cannot tell the two sides apart.
    WithinNoise,
    /// It did not.
    NotMet,
    /// There is none to be reached.
    Reported,
}

/// One side of a row: medians over the rounds.
#[derive(Serialize, Debug)]
pub struct Summary {
    pub value: f64,
    /// CPU of both ends per operation, microseconds.
    pub cpu_us_per_operation: f64,
    pub details: BTreeMap<&'static str, f64>,
    /// The values of the single rounds, in order.
    pub samples: Vec<f64>,
}

/// Middle of the sorted values; the mean of the two middle ones for an even number. 0 for none.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let n = values.len();
    match n {
        0 => 0.0,
        _ if n % 2 == 1 => values[n / 2],
        _ => (values[n / 2 - 1] + values[n / 2]) / 2.0,
    }
}

/// Half the distance between the quartiles of `values`: how much single rounds differ. 0 for fewer than four values,
/// which say nothing about it and so excuse no miss.
fn spread(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let n = values.len();
    if n < 4 {
        return 0.0;
    }
    let quantile = |q: f64| {
        let at = q * (n - 1) as f64;
        let below = values[at as usize];
        below + (values[(at as usize + 1).min(n - 1)] - below) * at.fract()
    };
    (quantile(0.75) - quantile(0.25)) / 2.0
}

/// How many times better `b` is than `a`, round by round: both sides of a round ran one after the other.
fn ratios(a: &[Sample], b: &[Sample], figure: impl Fn(&Sample) -> f64, higher_is_better: bool) -> Vec<f64> {
    let ratio = |(a, b): (&Sample, &Sample)| {
        let (a, b) = (figure(a), figure(b));
        if higher_is_better { b / a } else { a / b }
    };
    a.iter().zip(b).map(ratio).filter(|r| r.is_finite()).collect()
}

/// Order of the sides in a round: A B, B A, A B..., so that a drift of the machine hits both alike.
pub fn order(round: u32) -> [Side; 2] {
    match round % 2 {
        0 => [Side::Kernel, Side::Culvert],
        _ => [Side::Culvert, Side::Kernel],
    }
}

fn summary(samples: &[Sample]) -> Summary {
    let of = |f: &dyn Fn(&Sample) -> f64| median(samples.iter().map(f).collect());
    let names = samples.first().map(|s| s.details.keys().copied().collect::<Vec<_>>()).unwrap_or_default();
    Summary {
        value: of(&|s| s.value),
        cpu_us_per_operation: of(&|s| s.cpu),
        details: names.into_iter().map(|n| (n, of(&|s| s.details.get(n).copied().unwrap_or(0.0)))).collect(),
        samples: samples.iter().map(|s| s.value).collect(),
    }
}

impl Outcome {
    /// A row that could not be measured.
    pub fn skipped(row: &Row, why: String) -> Outcome {
        Outcome {
            id: row.id,
            title: row.title,
            beside: row.beside,
            unit: row.unit,
            operation: row.operation,
            kernel: None,
            culvert: None,
            ratio: None,
            floor: words(row.floor, row.unit),
            met: None,
            verdict: None,
            skipped: Some(why),
            detailed: row.detailed,
        }
    }

    /// A row with at least one sample of each side.
    pub fn measured(row: &Row, kernel: &[Sample], culvert: &[Sample]) -> Outcome {
        let (k, c) = (summary(kernel), summary(culvert));
        let ratio = if row.higher_is_better { c.value / k.value } else { k.value / c.value };
        let noise = spread(ratios(kernel, culvert, |s| s.value, row.higher_is_better));
        let cpu_noise = spread(ratios(kernel, culvert, |s| s.cpu, false));
        let cpu_ratio = k.cpu_us_per_operation / c.cpu_us_per_operation;
        let reached = |noise: f64, cpu_noise: f64| match row.floor {
            Floor::Times(n) => ratio + noise >= n,
            Floor::TimesAndCpu(n) => {
                ratio + noise >= n && (c.cpu_us_per_operation <= k.cpu_us_per_operation || cpu_ratio + cpu_noise >= 1.0)
            }
            Floor::Less => c.value < k.value,
            Floor::Extra(n) => c.value - k.value <= n && c.cpu_us_per_operation - k.cpu_us_per_operation <= NO_CPU,
            Floor::AtMost(value, cpu) => c.value <= value && c.cpu_us_per_operation <= cpu,
            Floor::AtMostOrTimes(value, times) => c.value <= value.max(times * k.value),
            Floor::Same(within) => c.value == k.value && same(&k.details, &c.details, within),
            Floor::Reported => true,
        };
        let parity = matches!(row.floor, Floor::Times(n) | Floor::TimesAndCpu(n) if n <= 1.0);
        let verdict = match () {
            () if !ratio.is_finite() => Verdict::NotMet,
            () if row.floor == Floor::Reported => Verdict::Reported,
            () if reached(0.0, 0.0) => Verdict::Met,
            () if parity && reached(noise, cpu_noise) => Verdict::WithinNoise,
            () => Verdict::NotMet,
        };
        let absolute =
            matches!(row.floor, Floor::Extra(_) | Floor::AtMost(..) | Floor::AtMostOrTimes(..) | Floor::Same(_));
        let ratio = (!absolute && ratio.is_finite()).then_some(ratio);
        Outcome {
            kernel: Some(k),
            culvert: Some(c),
            ratio,
            met: Some(verdict != Verdict::NotMet),
            verdict: Some(verdict),
            skipped: None,
            ..Outcome::skipped(row, String::new())
        }
    }
}

/// Whether all details are the kernel's: times, whose names end so, nearly, and others exactly.
fn same(kernel: &BTreeMap<&str, f64>, culvert: &BTreeMap<&str, f64>, within: f64) -> bool {
    let alike = |name: &str, k: f64, c: f64| match name.ends_with("_ms") {
        true => (c - k).abs() <= within + k / 20.0,
        false => c == k,
    };
    kernel.len() == culvert.len()
        && kernel.iter().all(|(name, k)| culvert.get(name).is_some_and(|c| alike(name, *k, *c)))
}

fn words(floor: Floor, unit: &str) -> String {
    match floor {
        Floor::Times(n) => format!(">= {}x", (n * 1000.0).round() / 1000.0),
        Floor::TimesAndCpu(n) => format!(">= {n}x, no more CPU"),
        Floor::Less => "below the kernel".into(),
        Floor::Extra(n) => format!("<= {n} {unit} more, no CPU"),
        Floor::AtMost(value, cpu) if cpu.is_finite() => format!("<= {value} {unit}, <= {cpu} us CPU"),
        Floor::AtMost(value, _) => format!("<= {value} {unit}"),
        Floor::AtMostOrTimes(value, times) => format!("<= {value} {unit}, or {times}x the kernel's"),
        Floor::Same(within) => format!("errno equal, time within {within} ms"),
        Floor::Reported => "none".into(),
    }
}

/// The table for people.
pub fn table(outcomes: &[Outcome]) -> String {
    let head =
        ["ROW", "WHAT", "KERNEL", "CULVERT", "RATIO", "FLOOR", "", "CPU/OP KERNEL", "CPU/OP CULVERT"].map(String::from);
    let mut rows = vec![head];
    let mut notes = String::new();
    for o in outcomes {
        let value = |s: &Option<Summary>| s.as_ref().map_or("-".into(), |s| format!("{} {}", figure(s.value), o.unit));
        let cpu = |s: &Option<Summary>| {
            s.as_ref().map_or("-".into(), |s| format!("{} us/{}", figure(s.cpu_us_per_operation), o.operation))
        };
        rows.push([
            o.id.into(),
            o.beside.map_or(o.title.into(), |beside| format!("{} (KERNEL: {beside})", o.title)),
            value(&o.kernel),
            value(&o.culvert),
            o.ratio.map_or("-".into(), |r| format!("{r:.2}x")),
            o.floor.clone(),
            match o.verdict {
                Some(Verdict::Met) => "met",
                Some(Verdict::WithinNoise) => "within noise",
                Some(Verdict::NotMet) => "NOT MET",
                Some(Verdict::Reported) => "reported",
                None => "skipped",
            }
            .into(),
            cpu(&o.kernel),
            cpu(&o.culvert),
        ]);
        for (side, summary) in [("kernel", &o.kernel), ("culvert", &o.culvert)] {
            if let Some(summary) = summary.as_ref().filter(|s| o.detailed && !s.details.is_empty()) {
                let all = summary.details.iter().map(|(name, v)| format!("{name} {}", figure(*v)));
                notes += &format!("  {} {side}: {}\n", o.id, all.collect::<Vec<_>>().join(", "));
            }
        }
        if let Some(why) = &o.skipped {
            notes += &format!("  {} skipped: {why}\n", o.id);
        }
    }
    columns(&rows) + &notes
}

/// Three significant digits or so.
fn figure(v: f64) -> String {
    match v {
        _ if v >= 100.0 => format!("{v:.0}"),
        _ if v >= 1.0 => format!("{v:.2}"),
        0.0 => "0".into(),
        _ => format!("{v:.3}"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{remote, rows};
    use super::*;

    fn row(id: &str) -> &'static Row {
        rows::ROWS.iter().chain(remote::ROWS).find(|r| r.id == id).unwrap()
    }

    fn samples(values: &[f64], cpu: f64) -> Vec<Sample> {
        values.iter().map(|v| Sample { value: *v, cpu, ..Sample::default() }).collect()
    }

    fn met(id: &str, kernel: (f64, f64), culvert: (f64, f64)) -> bool {
        Outcome::measured(row(id), &samples(&[kernel.0], kernel.1), &samples(&[culvert.0], culvert.1)).met.unwrap()
    }

    #[test]
    fn medians() {
        assert_eq!(median(vec![]), 0.0);
        assert_eq!(median(vec![3.0]), 3.0);
        assert_eq!(median(vec![9.0, 1.0, 5.0]), 5.0);
        assert_eq!(median(vec![4.0, 1.0, 2.0, 100.0]), 3.0);
    }

    #[test]
    fn sides_alternate() {
        let all: Vec<_> = (0..4).flat_map(order).collect();
        use Side::{Culvert as B, Kernel as A};
        assert_eq!(all, [A, B, B, A, A, B, B, A]);
    }

    #[test]
    fn floors_are_judged_in_the_right_direction() {
        assert!(met("rtt", (30.0, 1.0), (3.0, 1.0)) && !met("rtt", (30.0, 1.0), (3.1, 1.0)));
        assert!(met("redis-p1", (50e3, 1.0), (150e3, 1.0)) && !met("redis-p1", (150e3, 1.0), (50e3, 1.0)));
        assert!(met("nginx-close", (100.0, 5.0), (97.0, 5.0)) && !met("nginx-close", (100.0, 5.0), (120.0, 5.1)));
        assert!(met("cpu-echo", (5.0, 5.0), (4.9, 4.9)) && !met("cpu-echo", (5.0, 5.0), (5.0, 5.0)));
        assert!(met("idle", (1000.0, 0.0), (9192.0, 900.0)));
        assert!(!met("idle", (1000.0, 0.0), (9193.0, 0.0)) && !met("idle", (1000.0, 0.0), (2000.0, 1500.0)));
    }

    #[test]
    fn a_miss_of_parity_smaller_than_the_spread_of_the_rounds_is_noise() {
        let verdict = |id: &str, kernel: &[f64], culvert: &[f64]| {
            Outcome::measured(row(id), &samples(kernel, 1.0), &samples(culvert, 1.0)).verdict.unwrap()
        };
        let kernel = [100.0; 8];
        let noisy = [90.0, 92.0, 94.0, 97.0, 98.0, 102.0, 104.0, 105.0];
        assert_eq!(verdict("remote-server", &kernel, &noisy), Verdict::WithinNoise);
        assert_eq!(verdict("remote-server", &kernel, &[97.5; 8]), Verdict::NotMet);
        assert_eq!(verdict("remote-server", &kernel, &[99.5; 8]), Verdict::Met);
        // Three rounds say nothing about their spread; a floor above parity knows no excuse.
        assert_eq!(verdict("remote-server", &kernel[..3], &noisy[1..4]), Verdict::NotMet);
        assert_eq!(
            verdict("redis-p1", &kernel, &[200.0, 250.0, 290.0, 295.0, 296.0, 320.0, 390.0, 400.0]),
            Verdict::NotMet
        );
    }

    #[test]
    fn more_cpu_than_the_kernels_is_noise_only_within_the_spread() {
        let with = |cpu: &[f64]| cpu.iter().map(|c| Sample { value: 100.0, cpu: *c, ..Sample::default() }).collect();
        let verdict = |kernel: &[f64], culvert: &[f64]| {
            let (k, c): (Vec<_>, Vec<_>) = (with(kernel), with(culvert));
            Outcome::measured(row("nginx-close"), &k, &c).verdict.unwrap()
        };
        assert_eq!(verdict(&[80.0, 81.0, 79.0, 80.0], &[82.0, 79.0, 79.0, 82.0]), Verdict::WithinNoise);
        assert_eq!(verdict(&[80.0, 80.0, 80.0, 80.0], &[81.0, 81.0, 81.0, 81.0]), Verdict::NotMet);
    }

    #[test]
    fn absolute_floors_and_none() {
        assert!(met("zstack-idle", (900.0, 0.0), (16_384.0, 5_000.0)));
        assert!(
            !met("zstack-idle", (900.0, 0.0), (16_385.0, 0.0)) && !met("zstack-idle", (900.0, 0.0), (9.0, 5_001.0))
        );
        let redis = Outcome::measured(row("zstack-redis"), &samples(&[9.0], 1.0), &samples(&[1.0], 9.0));
        assert_eq!((redis.verdict, redis.met), (Some(Verdict::Reported), Some(true)));
    }

    #[test]
    fn the_same_errno_in_the_same_time() {
        let sample = |errno: f64, ms: f64| {
            let details = BTreeMap::from([("silent_errno", errno), ("silent_ms", ms)]);
            vec![Sample { value: 3.0, cpu: 1.0, details }]
        };
        let met =
            |errno, ms| Outcome::measured(row("zstack-truth"), &sample(110.0, 3000.0), &sample(errno, ms)).met.unwrap();
        assert!(met(110.0, 3150.0) && met(110.0, 2850.0));
        assert!(!met(111.0, 3000.0) && !met(110.0, 3200.0) && !met(110.0, 2800.0));
        let fewer = [Sample { value: 3.0, cpu: 1.0, ..Sample::default() }];
        assert_eq!(Outcome::measured(row("zstack-truth"), &sample(110.0, 3000.0), &fewer).met, Some(false));
    }

    #[test]
    fn nothing_measured_is_never_met() {
        assert!(!met("redis-p1", (0.0, 0.0), (0.0, 0.0)));
        let o = Outcome::skipped(row("nginx"), "nginx is not installed".into());
        assert_eq!(o.met, None);
        let text = table(&[o]);
        assert!(text.contains("skipped: nginx is not installed") && !text.contains("met"));
    }

    #[test]
    fn the_table_uses_medians() {
        let o =
            Outcome::measured(row("redis-p1"), &samples(&[10.0, 1000.0, 20.0], 3.0), &samples(&[60.0, 80.0, 0.0], 1.0));
        assert_eq!(o.ratio, Some(3.0));
        assert!(table(&[o]).contains("3.00x"));
    }
}
