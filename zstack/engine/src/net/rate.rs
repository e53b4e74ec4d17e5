//! A limit on how often something is done.

use crate::time::Time;

/// Tokens that come at a steady rate, and of which at most a burst is kept. It starts full.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bucket {
    /// Microseconds for a token.
    interval: u64,
    /// Microseconds for a burst.
    depth: u64,
    /// When the bucket is full again.
    full: u64,
}

impl Bucket {
    /// `rate` tokens a second, from 1 to 1,000,000.
    pub const fn new(rate: u64, burst: u64) -> Bucket {
        let interval = 1_000_000 / rate;
        Bucket { interval, depth: interval * burst, full: 0 }
    }

    /// Takes a token if there is one.
    pub fn take(&mut self, now: Time) -> bool {
        let full = self.full.max(now.0) + self.interval;
        let ready = full <= now.0 + self.depth;
        if ready {
            self.full = full;
        }
        ready
    }

    /// When there is one at the latest.
    pub fn at(&self) -> Time {
        Time((self.full + self.interval).saturating_sub(self.depth))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_then_the_rate() {
        let start = Time(50_000_000);
        let mut bucket = Bucket::new(1000, 10);
        assert_eq!((0..100).filter(|_| bucket.take(start)).count(), 10);
        assert_eq!(bucket.at(), Time(start.0 + 1000));
        assert!(!bucket.take(Time(start.0 + 999)));
        assert!(bucket.take(Time(start.0 + 1000)));
        let taken = (0..1_000_000u64).step_by(100).filter(|&us| bucket.take(Time(start.0 + 1000 + us))).count();
        assert!((999..=1000).contains(&taken), "{taken}");
        // A long pause fills it no higher than the burst.
        assert_eq!((0..100).filter(|_| bucket.take(Time(1 << 50))).count(), 10);
    }
}
