//! Latencies, counted in buckets whose width is 1/32 of their value at most.

use std::time::Duration;

const SUB: u32 = 5;

/// Nanoseconds.
pub struct Histogram {
    buckets: Vec<u64>,
    count: u64,
    sum: u128,
    max: u64,
}

impl Default for Histogram {
    fn default() -> Histogram {
        Histogram { buckets: vec![0; (64 - SUB as usize + 1) << SUB], count: 0, sum: 0, max: 0 }
    }
}

fn bucket(value: u64) -> usize {
    if value < 1 << SUB {
        return value as usize;
    }
    let power = 63 - value.leading_zeros() - SUB;
    (((power + 1) as usize) << SUB) + ((value >> power) as usize - (1 << SUB))
}

/// The largest value of a bucket.
fn value(bucket: usize) -> u64 {
    let (power, rest) = (bucket >> SUB, bucket & ((1 << SUB) - 1));
    if power == 0 {
        return rest as u64;
    }
    let low = (rest as u64 + (1 << SUB)) << (power - 1);
    low + ((1u64 << (power - 1)) - 1)
}

impl Histogram {
    pub fn add(&mut self, latency: Duration) {
        let nanos = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
        self.buckets[bucket(nanos)] += 1;
        self.count += 1;
        self.sum += u128::from(nanos);
        self.max = self.max.max(nanos);
    }

    pub fn count(&self) -> u64 {
        self.count
    }

    /// In microseconds: what `part` of all do not exceed.
    pub fn quantile(&self, part: f64) -> f64 {
        let wanted = (self.count as f64 * part).ceil() as u64;
        let mut seen = 0;
        for (i, n) in self.buckets.iter().enumerate() {
            seen += n;
            if seen >= wanted && *n > 0 {
                return value(i).min(self.max) as f64 / 1000.0;
            }
        }
        0.0
    }

    /// In microseconds, for a report.
    pub fn told(&self) -> serde_json::Value {
        serde_json::json!({
            "count": self.count, "p50": self.quantile(0.5), "p90": self.quantile(0.9), "p99": self.quantile(0.99),
            "max": self.max(), "mean": self.mean(),
        })
    }

    pub fn mean(&self) -> f64 {
        self.sum as f64 / self.count.max(1) as f64 / 1000.0
    }

    pub fn max(&self) -> f64 {
        self.max as f64 / 1000.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_lies_in_its_bucket() {
        for i in 0..64 {
            for value in [1u64 << i, (1u64 << i) - 1, (1u64 << i) + (1 << i) / 3] {
                let top = super::value(bucket(value));
                assert!(top >= value && (top - value) as f64 <= value as f64 / 32.0, "{value}: {top}");
            }
        }
        assert!(bucket(u64::MAX) < Histogram::default().buckets.len());
    }

    #[test]
    fn quantiles_of_a_known_series() {
        let mut histogram = Histogram::default();
        (1..=1000).for_each(|us| histogram.add(Duration::from_micros(us)));
        assert!((histogram.quantile(0.5) - 500.0).abs() < 20.0);
        assert!((histogram.quantile(0.99) - 990.0).abs() < 35.0);
        assert!((histogram.mean() - 500.5).abs() < 0.1);
        assert_eq!((histogram.quantile(1.0), histogram.max()), (1000.0, 1000.0));
    }
}
