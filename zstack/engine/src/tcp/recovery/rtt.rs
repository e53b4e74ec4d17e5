//! Round trips (RFC 6298, section 2).

use crate::time::{Micros, Time};
use serde::{Deserialize, Serialize};

/// The least that RTO adds to the smoothed round trip (Linux `TCP_RTO_MIN`; RFC 6298 2.4 says 1 s in all).
pub const RTO_MIN: Micros = Micros::from_millis(200);
/// The longest RTO (Linux `TCP_RTO_MAX`; RFC 6298 2.5 allows 60 s or more).
pub const RTO_MAX: Micros = Micros::from_millis(120_000);
/// RTO before the first sample (RFC 6298 2.1).
pub const RTO_INITIAL: Micros = Micros::from_millis(1000);

/// RTO for the first data where the SYN was lost and no round trip was measured (RFC 6298 5.7).
const RTO_FALLBACK: Micros = Micros::from_millis(3000);

/// The estimate of the round trip.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub(super) struct Rtt {
    /// SRTT in eighths of a microsecond; 0: there was no sample.
    smoothed: u32,
    /// RTTVAR in quarters of a microsecond; before the first sample, the RTO in microseconds.
    variation: u32,
}

impl Rtt {
    /// Takes a sample (RFC 6298 2.2, 2.3).
    #[inline(always)]
    pub fn sample(&mut self, sample: Micros) {
        // Above 134 s a sample would not fit its scale.
        let sample = sample.0.clamp(1, 1 << 27);
        if self.smoothed == 0 {
            self.smoothed = sample << 3;
            self.variation = sample << 1;
            return;
        }
        let error = sample as i32 - (self.smoothed >> 3) as i32;
        self.variation = self.variation - (self.variation >> 2) + error.unsigned_abs();
        self.smoothed = self.smoothed.wrapping_add_signed(error).max(1);
    }

    /// SRTT; `None`: there was no sample.
    #[inline]
    pub fn smoothed(&self) -> Option<Micros> {
        if self.smoothed == 0 { None } else { Some(Micros(self.smoothed >> 3)) }
    }

    /// RTTVAR.
    pub fn variation(&self) -> Micros {
        if self.smoothed == 0 { Micros(0) } else { Micros(self.variation >> 2) }
    }

    /// The SYN had to be sent again and there is no sample: data begins with 3 s (RFC 6298, section 5.7).
    pub fn distrust(&mut self) {
        if self.smoothed == 0 {
            self.variation = RTO_FALLBACK.0;
        }
    }

    /// 2 SRTT, for the tail loss probe.
    #[inline]
    pub fn twice(&self) -> Option<Micros> {
        if self.smoothed == 0 { None } else { Some(Micros(self.smoothed >> 2)) }
    }

    /// RTO, not backed off: SRTT + max(200 ms, 4 RTTVAR), as Linux has it.
    #[inline]
    pub fn rto(&self) -> Micros {
        if self.smoothed == 0 {
            return Micros(self.variation.max(RTO_INITIAL.0));
        }
        Micros(((self.smoothed >> 3) + self.variation.max(RTO_MIN.0)).min(RTO_MAX.0))
    }

    /// RTO after `times` timeouts (RFC 6298 5.5).
    #[inline]
    pub fn backed_off(&self, times: u8) -> Micros {
        let rto = self.rto();
        if times == 0 {
            return rto;
        }
        let shift = u32::from(times.min(20));
        Micros(u32::try_from(u64::from(rto.0) << shift).unwrap_or(u32::MAX).min(RTO_MAX.0))
    }
}

/// The least round trip of the last 150 to 300 seconds: of this stretch of time and of the one before (Linux looks back 300 s, `tcp_min_rtt_wlen`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct Least {
    now: u32,
    before: u32,
    /// When this stretch began, in [`Least::unit`]s.
    began: u16,
}

/// The length of a stretch, in [`Least::unit`]s.
const STRETCH: u16 = 143;

impl Default for Least {
    fn default() -> Least {
        Least { now: u32::MAX, before: u32::MAX, began: 0 }
    }
}

impl Least {
    /// Time in units of 1.05 s.
    #[inline]
    fn unit(now: Time) -> u16 {
        (now.0 >> 20) as u16
    }

    /// Takes a sample.
    #[inline]
    pub fn sample(&mut self, now: Time, rtt: u32) {
        let age = Least::unit(now).wrapping_sub(self.began);
        if age >= STRETCH {
            self.before = if age >= 2 * STRETCH { u32::MAX } else { self.now };
            self.now = u32::MAX;
            self.began = Least::unit(now);
        }
        self.now = self.now.min(rtt);
    }

    /// The least, in microseconds; `u32::MAX`: there was no sample.
    #[inline]
    pub fn get(&self) -> u32 {
        self.now.min(self.before)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rfc6298_2_1_one_second_before_the_first_sample() {
        assert_eq!(Rtt::default().rto(), Micros(1_000_000));
    }

    #[test]
    fn rfc6298_2_2_first_sample() {
        let mut rtt = Rtt::default();
        rtt.sample(Micros(400_000));
        assert_eq!((rtt.smoothed(), rtt.variation()), (Some(Micros(400_000)), Micros(200_000)));
        assert_eq!(rtt.rto(), Micros(400_000 + 4 * 200_000));
    }

    #[test]
    fn rfc6298_2_3_later_samples_against_the_formula() {
        let mut rtt = Rtt::default();
        let (mut srtt, mut rttvar) = (80_000f64, 40_000f64);
        rtt.sample(Micros(80_000));
        for i in 0u32..500 {
            let sample = 60_000 + i.wrapping_mul(2_654_435_761) % 50_000;
            rtt.sample(Micros(sample));
            rttvar = 0.75 * rttvar + 0.25 * (srtt - f64::from(sample)).abs();
            srtt = 0.875 * srtt + 0.125 * f64::from(sample);
            assert!((f64::from(rtt.smoothed().unwrap().0) - srtt).abs() < 8.0, "{rtt:?} {srtt}");
            assert!((f64::from(rtt.variation().0) - rttvar).abs() < 8.0, "{rtt:?} {rttvar}");
        }
    }

    #[test]
    fn linux_rto_min_is_added_to_srtt() {
        let mut rtt = Rtt::default();
        for _ in 0..100 {
            rtt.sample(Micros(10_000));
        }
        assert_eq!(rtt.rto(), Micros(210_000));
    }

    #[test]
    fn absurd_samples_do_not_overflow() {
        let mut rtt = Rtt::default();
        for sample in [0, u32::MAX, 0, u32::MAX, u32::MAX, 0, 1, u32::MAX] {
            rtt.sample(Micros(sample));
            assert!(rtt.rto() <= RTO_MAX && rtt.smoothed().is_some());
        }
    }

    #[test]
    fn rfc6298_5_7_three_seconds_after_a_lost_syn() {
        let mut rtt = Rtt::default();
        rtt.distrust();
        assert_eq!(rtt.rto(), Micros(3_000_000));
        rtt.sample(Micros(1000));
        rtt.distrust();
        assert_eq!(rtt.rto(), Micros(201_000));
    }

    #[test]
    fn the_least_forgets_what_is_older_than_five_minutes() {
        let mut least = Least::default();
        let at = |second: u64| Time(second * 1_000_000);
        assert_eq!(least.get(), u32::MAX);
        least.sample(at(1000), 500);
        least.sample(at(1001), 900);
        least.sample(at(1100), 800);
        assert_eq!(least.get(), 500);
        least.sample(at(1151), 700);
        assert_eq!(least.get(), 500);
        least.sample(at(1302), 900);
        assert_eq!(least.get(), 700);
        least.sample(at(2302), 950);
        assert_eq!(least.get(), 950);
    }
}
