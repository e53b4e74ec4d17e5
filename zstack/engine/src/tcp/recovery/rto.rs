//! The retransmission timer (RFC 6298, section 5), what expires before it, and timeouts that were for nothing (F-RTO, RFC 5682).

use super::flight::{Early, Flight, State};
use super::records::Marks;
use super::{Fire, Recovery, Tally, Told};
use crate::time::{Micros, Time};

impl Recovery {
    /// RTO, backed off (RFC 6298 5.5).
    #[inline]
    pub fn rto(&self) -> Micros {
        self.rtt.backed_off(self.backoff)
    }

    /// When [`Recovery::fire`] is to be called; [`Time::NEVER`]: not at all.
    #[inline]
    pub fn deadline(&self) -> Time {
        match &self.flight {
            Some(flight) => flight.expiry.min(flight.early),
            None => Time::NEVER,
        }
    }

    /// A deadline has passed, or may have. Where two have (time has jumped), the gentler acts, and puts the other off.
    pub fn fire(&mut self, now: Time) -> Fire {
        let Some(mut flight) = self.flight.take() else { return Fire::Nothing };
        let fire = self.expired(now, &mut flight);
        self.flight = Some(flight);
        fire
    }

    fn expired(&mut self, now: Time, flight: &mut Flight) -> Fire {
        if flight.una == flight.nxt {
            return Fire::Nothing;
        }
        if flight.early <= now {
            let kind = std::mem::take(&mut flight.early_kind);
            flight.early = Time::NEVER;
            flight.expiry = flight.expiry.max(now + Micros(1));
            match kind {
                Early::Probe => {
                    flight.expiry = now + self.rto();
                    return Fire::Probe;
                }
                Early::Reorder => return if self.reorder(now, flight) { Fire::Lost } else { Fire::Nothing },
                Early::None => {}
            }
        }
        if flight.expiry <= now {
            self.timeout(now, flight);
            return Fire::Timeout(self.timeouts);
        }
        Fire::Nothing
    }

    /// The reordering window has passed (RFC 8985, section 6.3).
    fn reorder(&mut self, now: Time, flight: &mut Flight) -> bool {
        let window = self.reordering_window(flight);
        let (found, again, due) = flight.detect(now, window);
        self.wait(flight, due);
        if found && (flight.state == State::Open || flight.state == State::Loss && again) {
            self.enter(flight, 0);
            self.reduce_in_step(flight, 0, false);
        }
        found
    }

    /// The retransmission timer expired (RFC 6298 5.4 to 5.7; Linux `tcp_enter_loss`).
    fn timeout(&mut self, now: Time, flight: &mut Flight) {
        self.backoff = self.backoff.saturating_add(1);
        let first = flight.records.oldest().copied();
        if first.is_some_and(|record| record.marks.any(Marks::SYN)) {
            // There is no window to speak of yet.
            let index = flight.records.first();
            flight.mark_lost(index);
        } else {
            // A timeout in a recovery, or a repeated one, is the same congestion.
            let anew = match flight.state {
                State::Open => true,
                State::Recovery => self.recover.up_to(flight.una),
                State::Loss => self.timeouts == 0,
            };
            if anew {
                self.remember(flight);
                self.congestion.reduce(u32::from(self.mss));
            }
            if first.is_some_and(|record| record.sacked()) {
                // What the peer holds would be acknowledged, if it did: it has thrown it away (Linux `tcp_timeout_mark_lost`).
                flight.renege();
            }
            self.mark_on_timeout(now, flight);
            flight.state = State::Loss;
            flight.frto = anew || self.timeouts > 0;
            flight.hold = false;
            flight.duplicates = 0;
            self.recover = flight.nxt;
            self.congestion.cwnd = flight.pipe() + u32::from(self.mss);
        }
        self.probing = false;
        self.timeouts = self.timeouts.saturating_add(1);
        flight.expiry = now + self.rto();
        (flight.early, flight.early_kind) = (Time::NEVER, Early::None);
    }

    /// RACK_mark_losses_on_RTO (RFC 8985, section 6.3): the oldest, and what would be lost by now. Without SACK, all.
    fn mark_on_timeout(&mut self, now: Time, flight: &mut Flight) {
        if !self.sack {
            flight.sacked = 0;
        }
        let window = self.reordering_window(flight);
        let first = flight.records.first();
        for index in first..flight.records.len() {
            let Some(record) = flight.records.get(index) else { break };
            if index == first || !self.sack || flight.rack.overdue(record.sent, now, window) {
                flight.mark_lost(index);
            }
        }
    }

    /// An ACK after a timeout (RFC 5682, section 3.1; Linux `tcp_process_loss`).
    pub(super) fn after_timeout(&mut self, flight: &mut Flight, tally: &Tally, fresh: bool) -> Told {
        let recovered = self.recover.up_to(flight.una);
        let undo = self.undo.by_duplicates() || self.undo.by_time(tally.echo, flight.stamp);
        if tally.advanced && undo || flight.frto && tally.original {
            // Step 3b, or Eifel, or D-SACK: what has arrived was sent before the timeout.
            self.take_back(flight);
            self.leave(flight);
            self.timeouts = 0;
            return Told::Undone;
        }
        if flight.frto {
            if self.recover.before(flight.nxt) {
                // Step 3a: the new data arrived, but nothing of the old.
                if tally.sacked > 0 || tally.repeated {
                    flight.frto = false;
                    flight.hold = false;
                }
            } else if tally.advanced && !recovered {
                // Step 2b: new data first.
                self.recover = flight.nxt;
                if fresh {
                    flight.hold = true;
                    return Told::Nothing;
                }
                flight.frto = false;
            }
        }
        flight.hold = false;
        if recovered {
            self.leave(flight);
            return Told::Recovered;
        }
        Told::Nothing
    }
}
