//! HyStart++ (RFC 9406): slow start that ends before it has overrun the path.
//!
//! The bound on growth by one ACK (section 4.2, L) is left out, as in Linux: a receiver that merges segments before it
//! acknowledges them would keep the window from doubling.

use super::Growth;
use serde::{Deserialize, Serialize};
use zstack_wire::Seq;

const MIN_RTT_THRESH: u32 = 4_000;
const MAX_RTT_THRESH: u32 = 16_000;
const MIN_RTT_DIVISOR: u32 = 8;
const N_RTT_SAMPLE: u8 = 8;
const CSS_ROUNDS: u8 = 5;
/// CSS_GROWTH_DIVISOR.
pub(super) const GROWTH_DIVISOR: u32 = 4;

/// How the window may grow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Verdict {
    /// By all that was acknowledged.
    Double,
    /// By a quarter of it.
    Quarter,
    /// Slow start is over.
    Leave,
}

/// The rounds of the initial slow start. Round trips are in microseconds; `u32::MAX` is "none yet".
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(in super::super) struct HyStart {
    /// windowEnd: the round ends when this is acknowledged.
    end: Seq,
    /// lastRoundMinRTT and currentRoundMinRTT.
    last: u32,
    current: u32,
    /// cssBaselineMinRtt; `u32::MAX`: not in conservative slow start.
    baseline: u32,
    samples: u8,
    /// Rounds in conservative slow start.
    rounds: u8,
    started: bool,
}

impl Default for HyStart {
    fn default() -> HyStart {
        HyStart {
            end: Seq(0),
            last: u32::MAX,
            current: u32::MAX,
            baseline: u32::MAX,
            samples: 0,
            rounds: 0,
            started: false,
        }
    }
}

impl HyStart {
    /// Section 4.2, on each ACK of new data.
    pub(super) fn acked(&mut self, growth: &Growth) -> Verdict {
        if !self.started {
            self.started = true;
            self.end = growth.nxt;
        }
        if growth.rtt != 0 {
            self.current = self.current.min(growth.rtt);
            self.samples = self.samples.saturating_add(1);
        }
        let enough = self.samples >= N_RTT_SAMPLE;
        if self.baseline == u32::MAX {
            if enough && self.last != u32::MAX {
                let threshold = (self.last / MIN_RTT_DIVISOR).clamp(MIN_RTT_THRESH, MAX_RTT_THRESH);
                if self.current >= self.last.saturating_add(threshold) {
                    (self.baseline, self.rounds) = (self.current, 0);
                }
            }
        } else if enough && self.current < self.baseline {
            // The delay was none that stays: slow start goes on.
            self.baseline = u32::MAX;
        }
        if self.end.up_to(growth.una) {
            self.end = growth.nxt;
            (self.last, self.current, self.samples) = (self.current, u32::MAX, 0);
            if self.baseline != u32::MAX {
                self.rounds += 1;
                if self.rounds >= CSS_ROUNDS {
                    return Verdict::Leave;
                }
            }
        }
        if self.baseline == u32::MAX { Verdict::Double } else { Verdict::Quarter }
    }
}
