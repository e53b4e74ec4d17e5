//! So many a second.

use crate::time::Time;

/// A bucket of tokens that is full after a second.
#[derive(Debug)]
pub(super) struct Rate {
    /// Tokens a second.
    rate: u32,
    /// What is in the bucket, in millionths of a token.
    level: u64,
    filled: Time,
}

impl Rate {
    pub fn new(rate: u32, now: Time) -> Rate {
        Rate { rate, level: u64::from(rate) * 1_000_000, filled: now }
    }

    /// Takes a token, if there is one.
    pub fn take(&mut self, now: Time) -> bool {
        let passed = u64::from(now.since(self.filled).0).min(1_000_000);
        self.filled = self.filled.max(now);
        self.level = (self.level + passed * u64::from(self.rate)).min(u64::from(self.rate) * 1_000_000);
        let taken = self.level >= 1_000_000;
        if taken {
            self.level -= 1_000_000;
        }
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_as_a_second_holds() {
        let mut rate = Rate::new(100, Time(0));
        let burst = |rate: &mut Rate, now| (0..1000).filter(|_| rate.take(Time(now))).count();
        assert_eq!(burst(&mut rate, 0), 100);
        assert_eq!(burst(&mut rate, 50_000), 5);
        assert_eq!(burst(&mut rate, 1 << 50), 100);
        assert_eq!(burst(&mut rate, 1 << 50), 0);
        assert!(!Rate::new(0, Time(0)).take(Time(1 << 40)));
    }
}
