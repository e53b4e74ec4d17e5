//! Proportional rate reduction (RFC 9937): during fast recovery the window comes down to the threshold in step with what arrives.

use serde::{Deserialize, Serialize};

/// One fast recovery. All in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub(super) struct Prr {
    /// RecoverFS: what was in flight when it began.
    flight: u32,
    /// prr_delivered: what has arrived since.
    delivered: u32,
    /// prr_out: what was sent since.
    out: u32,
}

impl Prr {
    pub fn begin(flight: u32) -> Prr {
        Prr { flight: flight.max(1), delivered: 0, out: 0 }
    }

    #[inline]
    pub fn sent(&mut self, len: u32) {
        self.out = self.out.saturating_add(len);
    }

    /// Section 6.2: the window, after `delivered` bytes more have arrived. `safe`: una has advanced and no further loss was found.
    pub fn window(&mut self, delivered: u32, pipe: u32, ssthresh: u32, mss: u32, safe: bool) -> u32 {
        self.delivered = self.delivered.saturating_add(delivered);
        let mut more = if pipe > ssthresh {
            let share = (u64::from(self.delivered) * u64::from(ssthresh)).div_ceil(u64::from(self.flight));
            u32::try_from(share).unwrap_or(u32::MAX).saturating_sub(self.out)
        } else {
            // The conservative bound, and a segment more for each ACK of which all is well (slow start reduction bound).
            let bound = self.delivered.saturating_sub(self.out).max(delivered) + if safe { mss } else { 0 };
            bound.min(ssthresh - pipe)
        };
        if self.out == 0 {
            // The fast retransmission goes as recovery begins, whatever the share is yet (RFC 5681, section 3.2, step 3). Section
            // 6.2 forces it where the share is 0: it counts segments, or sends parts of them, and here less than a segment waits.
            more = more.max(mss);
        }
        pipe.saturating_add(more)
    }
}
