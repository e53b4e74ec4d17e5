//! How much may be in flight: one of the algorithms, behind one face. Windows are in bytes.

mod cubic;
mod hystart;
mod reno;
#[cfg(test)]
mod tests;

use cubic::Cubic;
use hystart::{HyStart, Verdict};
use reno::Reno;
use serde::{Deserialize, Serialize};
use zstack_wire::Seq;

/// The algorithms.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub enum Algorithm {
    /// CUBIC (RFC 9438).
    #[default]
    Cubic,
    /// Reno (RFC 5681).
    Reno,
}

/// No window is larger (RFC 7323, section 2.3: the largest that a peer can offer).
pub(super) const LARGEST: u32 = 1 << 30;

/// What arrived, for growth.
pub(super) struct Growth {
    /// Bytes that have newly arrived at the peer.
    pub acked: u32,
    /// Now, in milliseconds.
    pub now: u32,
    /// The segment size.
    pub mss: u32,
    /// The smoothed round trip, in microseconds.
    pub srtt: u32,
    /// The round trip of this ACK's newest segment, in microseconds; 0: none.
    pub rtt: u32,
    pub una: Seq,
    pub nxt: Seq,
}

/// What the window does.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) enum Phase {
    /// The initial slow start, under HyStart++ (RFC 9406 4.3: in later ones it has no part); what follows.
    Start(HyStart, Algorithm),
    Cubic(Cubic),
    Reno(Reno),
}

/// The window and what moves it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct Congestion {
    pub cwnd: u32,
    pub ssthresh: u32,
    pub phase: Phase,
}

impl Congestion {
    pub fn new(cwnd: u32, algorithm: Algorithm) -> Congestion {
        Congestion { cwnd, ssthresh: u32::MAX, phase: Phase::Start(HyStart::default(), algorithm) }
    }

    #[inline]
    pub fn slow_start(&self) -> bool {
        self.cwnd < self.ssthresh
    }

    /// Which one it is.
    pub fn algorithm(&self) -> Algorithm {
        match self.phase {
            Phase::Start(_, then) => then,
            Phase::Cubic(_) => Algorithm::Cubic,
            Phase::Reno(_) => Algorithm::Reno,
        }
    }

    /// Bytes have arrived while the window was used up, and nothing is being recovered.
    #[inline]
    pub fn grow(&mut self, growth: &Growth) {
        let mut acked = growth.acked;
        if self.slow_start() {
            acked = self.start(growth);
            if acked == 0 {
                return;
            }
        }
        match &mut self.phase {
            Phase::Cubic(cubic) => cubic.grow(&mut self.cwnd, acked, growth),
            Phase::Reno(reno) => reno.grow(&mut self.cwnd, acked, growth.mss),
            Phase::Start(..) => {}
        }
        self.cwnd = self.cwnd.min(LARGEST);
    }

    /// Slow start (RFC 5681, section 3.1; the whole of what was acknowledged counts, as in Linux `tcp_slow_start`). Returns what is left for congestion avoidance.
    fn start(&mut self, growth: &Growth) -> u32 {
        let mut gain = growth.acked;
        if let Phase::Start(hystart, then) = &mut self.phase {
            match hystart.acked(growth) {
                Verdict::Double => {}
                Verdict::Quarter => gain = growth.acked / hystart::GROWTH_DIVISOR,
                Verdict::Leave => {
                    let then = *then;
                    self.ssthresh = self.cwnd;
                    self.avoid(then, self.cwnd);
                    return growth.acked;
                }
            }
        }
        let cwnd = self.cwnd.saturating_add(gain).min(self.ssthresh).min(LARGEST);
        let left = gain - (cwnd - self.cwnd);
        self.cwnd = cwnd;
        if self.slow_start() { 0 } else { left }
    }

    /// From slow start to congestion avoidance, with `highest` as the window that the path is known to bear.
    fn avoid(&mut self, then: Algorithm, highest: u32) {
        self.phase = match then {
            Algorithm::Cubic => Phase::Cubic(Cubic::after(highest)),
            Algorithm::Reno => Phase::Reno(Reno::default()),
        };
    }

    /// A congestion event: the threshold comes down; the window is the caller's to set (PRR, or one segment).
    pub fn reduce(&mut self, mss: u32) {
        if let Phase::Start(_, then) = self.phase {
            self.avoid(then, 0);
        }
        let ssthresh = match &mut self.phase {
            Phase::Cubic(cubic) => cubic.reduce(self.cwnd),
            // RFC 5681, equation (4). FlightSize is cwnd where the window is validated.
            Phase::Reno(reno) => reno.reduce(self.cwnd),
            Phase::Start(..) => self.cwnd,
        };
        self.ssthresh = ssthresh.max(2 * mss);
    }

    /// The threshold that a fall of the window which is no congestion leaves (Linux `tcp_current_ssthresh`).
    pub fn current_ssthresh(&self) -> u32 {
        self.ssthresh.max(self.cwnd / 4 * 3)
    }

    /// Bytes arrived while the window was not used up: time stands still for CUBIC (RFC 9438, section 4.2 and 5.8).
    #[inline]
    pub fn unused(&mut self, now: u32) {
        if let Phase::Cubic(cubic) = &mut self.phase {
            cubic.unused(now);
        }
    }

    /// Nothing was sent for `idle` milliseconds, and something is about to be. After more than an RTO of `rto` milliseconds the window halves for each, down to the initial one
    /// (RFC 5681, section 4.1; RFC 2861 as in Linux `tcp_cwnd_restart`).
    pub fn idle(&mut self, now: u32, idle: u32, rto: u32, initial: u32) {
        if let Phase::Cubic(cubic) = &mut self.phase {
            cubic.idle(now, idle);
        }
        if idle <= rto {
            return;
        }
        self.ssthresh = self.current_ssthresh();
        let mut left = idle;
        let restart = initial.min(self.cwnd);
        while left > rto && self.cwnd > restart {
            self.cwnd /= 2;
            left -= rto.max(1);
        }
        self.cwnd = self.cwnd.max(restart);
    }
}
