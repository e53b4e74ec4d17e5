//! CUBIC (RFC 9438), in integers. Time is in milliseconds, windows are in bytes.
//!
//! The curve is looked up every few milliseconds; between, the window grows as far as it pointed, and an ACK costs two multiplications: the growth for each acknowledged byte is kept as a fraction of 2^32.

use super::{Growth, LARGEST};
use serde::{Deserialize, Serialize};

/// How long a look-up of the curve serves, in milliseconds.
const FRESH: u16 = 4;

/// What it remembers.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Cubic {
    /// W_max; 0: there was no congestion event yet.
    highest: u32,
    /// cwnd_prior.
    prior: u32,
    /// When the curve reaches W_max: t_epoch + K.
    peak: u32,
    /// W_est.
    reno: u32,
    /// Growth of cwnd, and of W_est, for each acknowledged byte.
    gain: u32,
    reno_gain: u32,
    /// What was looked up holds up to this window.
    limit: u32,
    /// What is left of growth below one byte, in parts of 2^16.
    rest: u16,
    reno_rest: u16,
    /// When the curve was looked up: the low bits.
    fresh: u16,
    /// An epoch has begun: the fields above are set.
    epoch: bool,
}

impl Cubic {
    /// Slow start was left at `highest` without a congestion event (section 4.10: K is 0, W_max the window); 0: by one that comes at once.
    pub fn after(highest: u32) -> Cubic {
        Cubic { highest, prior: highest, ..Cubic::default() }
    }

    #[inline]
    pub fn grow(&mut self, cwnd: &mut u32, acked: u32, growth: &Growth) {
        if !self.epoch {
            self.begin(*cwnd, growth);
        }
        let stale = (growth.now as u16).wrapping_sub(self.fresh) >= FRESH;
        if stale || *cwnd > self.limit {
            self.refresh(stale, *cwnd, growth);
        }
        let acked = u64::from(acked);
        let reno = acked * u64::from(self.reno_gain) + (u64::from(self.reno_rest) << 16);
        self.reno_rest = (reno >> 16) as u16;
        self.reno = self.reno.saturating_add((reno >> 32) as u32);
        let grown = acked * u64::from(self.gain) + (u64::from(self.rest) << 16);
        self.rest = (grown >> 16) as u16;
        // Section 4.3: never less than Reno would have.
        *cwnd = cwnd.saturating_add((grown >> 32) as u32).max(self.reno);
    }

    /// An epoch begins (section 4.2): at the first growth in congestion avoidance after a congestion event or a slow start.
    fn begin(&mut self, cwnd: u32, growth: &Growth) {
        self.epoch = true;
        self.reno = cwnd;
        (self.rest, self.reno_rest) = (0, 0);
        let mut k = 0;
        if cwnd < self.highest {
            // K = cbrt((W_max - cwnd_epoch) / C), C = 0.4 segments/s^3; in milliseconds.
            k = cube_root(u64::from(self.highest - cwnd) * 2_500_000_000 / u64::from(growth.mss.max(1)));
        } else {
            self.highest = cwnd;
        }
        self.peak = growth.now.wrapping_add(k);
        self.look(cwnd, growth);
    }

    /// What was looked up has served its time, or the window has left its range.
    #[inline(never)]
    fn refresh(&mut self, stale: bool, cwnd: u32, growth: &Growth) {
        if !stale && self.gain > 0 {
            // The window is where the curve was to take it, or Reno has outrun the curve: until it moves on, Reno alone counts.
            self.gain = 0;
            self.limit = cwnd + cwnd / 32;
            return;
        }
        self.look(cwnd, growth);
    }

    /// Where the curve will be a round trip from now (section 4.4), and how fast Reno would grow (section 4.3).
    fn look(&mut self, cwnd: u32, growth: &Growth) {
        self.fresh = growth.now as u16;
        let mss = u64::from(growth.mss);
        let cwnd = cwnd.max(1);
        let ahead = growth.now.wrapping_add(growth.srtt / 1000).wrapping_sub(self.peak) as i32;
        // 150 s are more than K of the largest window.
        let distance = u64::from(ahead.unsigned_abs().min(150_000));
        let offset = distance * distance * distance / 1000 * mss / 2_500_000;
        let offset = u32::try_from(offset).unwrap_or(LARGEST).min(LARGEST);
        let curve = if ahead < 0 { self.highest.saturating_sub(offset) } else { self.highest.saturating_add(offset) };
        let target = curve.clamp(cwnd, cwnd + cwnd / 2);
        self.gain = ((u64::from(target - cwnd) << 32) / u64::from(cwnd)) as u32;
        // alpha = 3 (1 - beta) / (1 + beta) = 9/17, and 1 from where the window was.
        let reno = if self.reno >= self.prior { mss << 32 } else { (mss << 32) / 17 * 9 };
        self.reno_gain = u32::try_from(reno / u64::from(cwnd)).unwrap_or(u32::MAX);
        self.limit = if self.gain > 0 { target } else { cwnd + cwnd / 32 };
    }

    /// A congestion event (sections 4.6, 4.7). Returns the threshold: beta is 0.7.
    pub fn reduce(&mut self, cwnd: u32) -> u32 {
        // Fast convergence: a flow that did not get back to where it was makes room for others.
        self.highest = if cwnd < self.highest { cwnd / 20 * 17 } else { cwnd };
        self.prior = cwnd;
        self.epoch = false;
        cwnd - cwnd / 10 * 3
    }

    /// Time in which the window was not used up does not count (section 4.2).
    #[inline]
    pub fn unused(&mut self, now: u32) {
        if self.epoch {
            self.peak = self.peak.wrapping_add(u32::from((now as u16).wrapping_sub(self.fresh)));
        }
        self.fresh = now as u16;
    }

    /// Nor does time in which nothing was sent (Linux `cubictcp_cwnd_event`).
    pub fn idle(&mut self, now: u32, idle: u32) {
        self.peak = self.peak.wrapping_add(idle);
        self.fresh = now as u16;
    }
}

/// The largest whole number whose cube is not above `of`.
pub(super) fn cube_root(of: u64) -> u32 {
    let mut root = 0u64;
    for bit in (0..21).rev() {
        let more = root | 1 << bit;
        if more * more * more <= of {
            root = more;
        }
    }
    root as u32
}
