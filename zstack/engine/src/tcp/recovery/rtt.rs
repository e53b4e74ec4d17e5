//! Round trips (RFC 6298, section 2).

use crate::time::Micros;
use serde::{Deserialize, Serialize};

/// The least that RTO adds to the smoothed round trip (Linux `TCP_RTO_MIN`; RFC 6298 2.4 says 1 s in all).
pub const RTO_MIN: Micros = Micros::from_millis(200);
/// The longest RTO (Linux `TCP_RTO_MAX`; RFC 6298 2.5 allows 60 s or more).
pub const RTO_MAX: Micros = Micros::from_millis(120_000);
/// RTO before the first sample (RFC 6298 2.1).
pub const RTO_INITIAL: Micros = Micros::from_millis(1000);

/// The estimate of the round trip.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub(super) struct Rtt {
    /// SRTT in eighths of a microsecond; 0: there was no sample.
    smoothed: u32,
    /// RTTVAR in quarters of a microsecond.
    variation: u32,
}

impl Rtt {
    /// Takes a sample (RFC 6298 2.2, 2.3).
    #[inline]
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
    #[inline]
    pub fn variation(&self) -> Micros {
        Micros(self.variation >> 2)
    }

    /// RTO, not backed off: SRTT + max(200 ms, 4 RTTVAR), as Linux has it.
    #[inline]
    pub fn rto(&self) -> Micros {
        if self.smoothed == 0 {
            return RTO_INITIAL;
        }
        Micros(((self.smoothed >> 3) + self.variation.max(RTO_MIN.0)).min(RTO_MAX.0))
    }
}
