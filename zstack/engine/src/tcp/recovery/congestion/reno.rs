//! Reno's congestion avoidance (RFC 5681, section 3.1).

use serde::{Deserialize, Serialize};

/// What it remembers.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Reno {
    /// Bytes acknowledged since the window grew.
    acked: u32,
}

impl Reno {
    /// One segment for each window of bytes: equation (3) in the form that counts bytes (RFC 3465, section 2.1).
    #[inline]
    pub fn grow(&mut self, cwnd: &mut u32, acked: u32, mss: u32) {
        self.acked = self.acked.saturating_add(acked);
        if self.acked >= *cwnd {
            self.acked = (self.acked - *cwnd).min(*cwnd);
            *cwnd = cwnd.saturating_add(mss);
        }
    }

    /// The threshold after a congestion event.
    pub fn reduce(&mut self, cwnd: u32) -> u32 {
        self.acked = 0;
        cwnd / 2
    }
}
