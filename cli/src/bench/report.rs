//! Medians, ratios, verdicts, and how they are printed.

use std::collections::BTreeMap;

use serde::Serialize;

use super::procs::Side;
use super::rows::{Floor, Row, Sample};
use crate::stat::columns;

/// CPU that "no CPU" allows: a thousandth of one processor, microseconds per second. Below that lies what
/// the kernel itself charges for ticks and for reading /proc.
const NO_CPU: f64 = 1000.0;

/// One row of the result. Stable JSON; fields may be added.
#[derive(Serialize, Debug)]
pub struct Outcome {
    pub id: &'static str,
    pub title: &'static str,
    pub unit: &'static str,
    pub operation: &'static str,
    pub kernel: Option<Summary>,
    pub culvert: Option<Summary>,
    /// How many times better culvert is (for `idle`: null).
    pub ratio: Option<f64>,
    /// In words.
    pub floor: String,
    /// `null` if nothing was measured.
    pub met: Option<bool>,
    /// Why nothing was measured.
    pub skipped: Option<String>,
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
            unit: row.unit,
            operation: row.operation,
            kernel: None,
            culvert: None,
            ratio: None,
            floor: words(row.floor, row.unit),
            met: None,
            skipped: Some(why),
        }
    }

    /// A row with at least one sample of each side.
    pub fn measured(row: &Row, kernel: &[Sample], culvert: &[Sample]) -> Outcome {
        let (k, c) = (summary(kernel), summary(culvert));
        let ratio = if row.higher_is_better { c.value / k.value } else { k.value / c.value };
        let met = ratio.is_finite()
            && match row.floor {
                Floor::Times(n) => ratio >= n,
                Floor::TimesAndCpu(n) => ratio >= n && c.cpu_us_per_operation <= k.cpu_us_per_operation,
                Floor::Less => c.value < k.value,
                Floor::Extra(n) => c.value - k.value <= n && c.cpu_us_per_operation - k.cpu_us_per_operation <= NO_CPU,
            };
        let ratio = (!matches!(row.floor, Floor::Extra(_)) && ratio.is_finite()).then_some(ratio);
        Outcome {
            kernel: Some(k),
            culvert: Some(c),
            ratio,
            met: Some(met),
            skipped: None,
            ..Outcome::skipped(row, String::new())
        }
    }
}

fn words(floor: Floor, unit: &str) -> String {
    match floor {
        Floor::Times(n) => format!(">= {n}x"),
        Floor::TimesAndCpu(n) => format!(">= {n}x, no more CPU"),
        Floor::Less => "below the kernel".into(),
        Floor::Extra(n) => format!("<= {n} {unit} more, no CPU"),
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
            o.title.into(),
            value(&o.kernel),
            value(&o.culvert),
            o.ratio.map_or("-".into(), |r| format!("{r:.2}x")),
            o.floor.clone(),
            match o.met {
                Some(true) => "met",
                Some(false) => "NOT MET",
                None => "skipped",
            }
            .into(),
            cpu(&o.kernel),
            cpu(&o.culvert),
        ]);
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
        _ => format!("{v:.3}"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::rows::ROWS;
    use super::*;

    fn row(id: &str) -> &'static Row {
        ROWS.iter().find(|r| r.id == id).unwrap()
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
