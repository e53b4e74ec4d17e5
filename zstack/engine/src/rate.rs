//! Limits on how often something is done.

use crate::sip::Key;
use crate::time::Time;
use crate::tuple::{Mapped, words};

/// Tokens that come at a steady rate, and of which at most a burst is kept. It starts full.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bucket {
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

/// How many destinations are told apart; those whose hashes agree share a limit.
const DESTINATIONS: usize = 256;
/// A destination gets this part of all answers.
const SHARE: u32 = 8;

/// A limit on answers to strangers that does not tell one stranger what another one was answered.
///
/// An attacker who sends in a victim's name does not see whether he was answered, but if answers came from one bucket, he could
/// count afterwards how many are left for himself, and would know whether the victim has a connection (as in CVE-2016-5696). So each
/// destination has a limit of its own, and how many answers there are for all of them in a second is drawn anew each second, from
/// half of the rate to one and a half (Linux `tcp_send_challenge_ack`).
#[derive(Debug)]
pub(crate) struct Strangers {
    /// Answers a second, in the mean.
    rate: u32,
    key: Key,
    each: Box<[Bucket]>,
    /// What the second that is being counted has left.
    second: u64,
    left: u32,
}

impl Strangers {
    /// `rate` answers a second; 0: none at all.
    pub fn new(rate: u32, key: Key) -> Strangers {
        let share = u64::from((rate / SHARE).clamp(1, 1_000_000));
        let each = vec![Bucket::new(share, share); DESTINATIONS].into();
        Strangers { rate, key, each, second: u64::MAX, left: 0 }
    }

    /// Whether `to` may be answered now.
    pub fn take(&mut self, now: Time, to: &Mapped) -> bool {
        if self.rate == 0 {
            return false;
        }
        let place = self.key.hash(&words(to)) as usize % DESTINATIONS;
        if !self.each[place].take(now) {
            return false;
        }
        let second = now.0 / 1_000_000;
        if second != self.second {
            self.second = second;
            let drawn = self.key.hash(&[second]) % u64::from(self.rate);
            self.left = self.rate.div_ceil(2).saturating_add(drawn as u32);
        }
        let taken = self.left > 0;
        self.left -= u32::from(taken);
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tuple::map_v4;

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

    fn strangers(rate: u32) -> Strangers {
        Strangers::new(rate, Key::new(b"a key of 16 byte"))
    }

    fn host(number: u32) -> Mapped {
        map_v4(number.to_be_bytes())
    }

    /// What is left for one does not depend on what another one was answered, as far as their limits go.
    #[test]
    fn answers_to_one_host_are_not_missed_by_another() {
        let (attacker, victim) = (host(0x0a00_0001), host(0x0a00_0002));
        let mut counted = Vec::new();
        for spoofed in [0, 1, 50, 1000] {
            let mut all = strangers(1000);
            assert!((0..spoofed).filter(|_| all.take(Time(0), &victim)).count() <= 125);
            counted.push((0..1000).filter(|_| all.take(Time(0), &attacker)).count());
        }
        assert_eq!(counted, [125; 4]);
    }

    /// An attacker with as many addresses as he likes counts what is left for all: a number that he cannot foresee.
    #[test]
    fn what_all_get_in_a_second_is_drawn() {
        let mut all = strangers(1000);
        let mut counts: Vec<_> = (0..200u64)
            .map(|second| (0..20_000).filter(|&n| all.take(Time(second * 1_000_000), &host(n))).count())
            .collect();
        let sum: usize = counts.iter().sum();
        assert!((900..1100).contains(&(sum / counts.len())), "{}", sum / counts.len());
        counts.sort_unstable();
        assert!(counts[0] >= 500 && counts[199] < 1500, "{counts:?}");
        assert!(counts[199] - counts[0] > 800, "{counts:?}");
        counts.dedup();
        assert!(counts.len() > 150, "{counts:?}");
    }

    #[test]
    fn no_rate_and_small_rates() {
        assert!(!strangers(0).take(Time(1 << 40), &host(1)));
        let mut one = strangers(1);
        let taken = (0..100u64).filter(|second| one.take(Time(second * 1_000_000), &host(1))).count();
        assert!((90..=100).contains(&taken), "{taken}");
        assert!(!one.take(Time(99_000_000), &host(1)));
    }
}
