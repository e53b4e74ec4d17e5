//! Tail loss probes (RFC 8985, section 7): when the ACKs stay away, the last segment is sent again, or a new one, so that the peer tells what is missing.

use super::flight::{Early, Flight};
use super::records::Marks;
use super::rtt::Rtt;
use super::{Recovery, Retransmit};
use crate::time::{Micros, Time};

/// TLP.max_ack_delay: how long the peer may keep an ACK of a single segment (Linux `tcp_rto_min`).
const ACK_DELAY: Micros = Micros::from_millis(200);
/// The probe's delay before the first round trip was measured (section 7.2).
const WITHOUT_RTT: Micros = Micros::from_millis(1000);
/// What is added where more is in flight: a peer whose reader or whose processor is busy answers that late for no reason. Linux adds two jiffies to twice
/// SRTT, rounded up to a jiffy (`tcp_schedule_loss_probe`, `TCP_TIMEOUT_MIN`): 8 to 12 ms at 250 Hz.
const SLACK: Micros = Micros::from_millis(8);

/// What has become of a probe.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It is not known yet.
    Open,
    /// Nothing was lost.
    Harmless,
    /// The probe has mended a loss, which counts as congestion (section 7.4).
    Mended,
}

impl Flight {
    /// TLP_calc_PTO (section 7.2). It applies outside of recovery, where nothing lies beyond a gap and no other probe is on its way.
    #[inline]
    pub(super) fn arm_probe(&mut self, now: Time, rtt: Rtt, mss: u16) {
        // The peer may keep the ACK of what is no more than one segment, in however many pieces it comes.
        let wait = match rtt.twice() {
            Some(twice) if self.outstanding() > u32::from(mss) => twice + SLACK,
            Some(twice) => twice + ACK_DELAY,
            None => WITHOUT_RTT,
        };
        self.early = (now + wait).min(self.expiry);
        self.early_kind = Early::Probe;
    }
}

impl Recovery {
    /// The segment that a probe sends again: the last one (section 7.3).
    pub fn probe(&self) -> Option<Retransmit> {
        let last = self.flight.as_ref()?.records.newest()?;
        let len = last.len.min(u32::from(last.cut.min(self.mss).max(1)));
        let syn = last.marks.any(Marks::SYN) && len == last.len;
        Some(Retransmit { seq: last.end() - len, len, syn, fin: last.marks.any(Marks::FIN) })
    }

    /// A segment was sent because [`super::Fire::Probe`] asked for it, and was told to `sent` (`again` false) or to `retransmitted` (true).
    pub fn probed(&mut self, now: Time, again: bool) {
        let rto = self.rto();
        let Some(flight) = &mut self.flight else { return };
        self.probing = true;
        self.probe_again = again;
        self.probe_end = flight.nxt;
        flight.expiry = now + rto;
        (flight.early, flight.early_kind) = (Time::NEVER, Early::None);
    }

    /// TLP_process_ack (section 7.4). `ack` is the segment's number, `repeated`: it reports as a duplicate what ends where the probe did;
    /// `bare`: it says nothing new at all.
    pub(super) fn probe_outcome(&mut self, ack: zstack_wire::Seq, repeated: bool, bare: bool) -> Outcome {
        if !self.probing || ack.before(self.probe_end) {
            return Outcome::Open;
        }
        let beyond = self.probe_end.before(ack);
        let outcome = if !self.probe_again || repeated {
            Outcome::Harmless
        } else if beyond {
            Outcome::Mended
        } else if bare {
            // The original and the probe have both arrived.
            Outcome::Harmless
        } else {
            return Outcome::Open;
        };
        self.probing = false;
        outcome
    }
}
