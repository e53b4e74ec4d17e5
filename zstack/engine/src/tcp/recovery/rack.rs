//! Losses found by time (RACK: RFC 8985, section 6): what was sent a reordering window before something that has arrived is lost.
//!
//! The RFC walks all segments in the order of their transmission. Here they stand in two orders that need no sorting: first
//! transmissions in the order of their numbers, and retransmissions in a queue. Each is looked at until it is lost, or sent again; none twice.

use super::records::{Marks, Record};
use super::spare::empty;
use crate::time::Time;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use zstack_wire::Seq;

/// A retransmission on its way.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct Again {
    pub seq: Seq,
    pub len: u32,
    pub sent: u32,
}

/// The latest segment that is known to have arrived, and what follows from it.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub(super) struct Rack {
    /// RACK.xmit_ts, RACK.end_seq, RACK.rtt.
    pub sent: u32,
    pub end: Seq,
    pub rtt: u32,
    pub known: bool,
    /// RACK.fack.
    pub fack: Seq,
    /// RACK.dsack_round.
    pub round: Option<Seq>,
    /// First transmissions below are acknowledged, marked, lost, or were sent again.
    pub first: Seq,
    pub again: VecDeque<Again>,
}

/// What a connection has learned of the path's reordering.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct Reordering {
    /// RACK.reordering_seen.
    pub seen: bool,
    /// RACK.reo_wnd_mult.
    multiplier: u8,
    /// RACK.reo_wnd_persist.
    persist: u8,
}

impl Default for Reordering {
    fn default() -> Reordering {
        Reordering { seen: false, multiplier: 1, persist: 16 }
    }
}

/// Recoveries after which a wider window narrows again (section 6.2, step 4).
const PERSIST: u8 = 16;

impl Reordering {
    /// A D-SACK: once for each round trip, the window widens (section 6.2, step 4).
    pub fn duplicate(&mut self, rack: &mut Rack, nxt: Seq) {
        if rack.round.is_none() {
            rack.round = Some(nxt);
            self.multiplier = self.multiplier.saturating_add(1);
            self.persist = PERSIST;
        }
    }

    /// A recovery is over.
    pub fn recovered(&mut self) {
        self.persist = self.persist.saturating_sub(1);
        if self.persist == 0 {
            self.multiplier = 1;
        }
    }

    /// RACK.reo_wnd (section 6.2, step 4). `sure`: in recovery, or three segments beyond a gap have arrived.
    pub fn window(&self, sure: bool, least: u32, srtt: u32) -> u32 {
        if !self.seen && sure {
            return 0;
        }
        let window = u64::from(least) * u64::from(self.multiplier) / 4;
        u32::try_from(window).unwrap_or(u32::MAX).min(srtt)
    }
}

/// RACK_sent_after.
#[inline]
pub(super) fn after(sent: u32, end: Seq, than: u32, than_end: Seq) -> bool {
    let later = sent.wrapping_sub(than) as i32;
    later > 0 || later == 0 && than_end.before(end)
}

/// What an ACK says has arrived: the segment of it that was sent last.
#[derive(Clone, Copy, Default)]
pub(super) struct Arrived {
    sent: u32,
    end: Seq,
    any: bool,
}

impl Arrived {
    /// A record has arrived (section 6.2, step 2). A retransmission counts only if it must be what arrived.
    #[inline]
    pub fn add(&mut self, record: &Record, now: Time, echo: Option<u32>, least: u32) {
        if record.marks.any(Marks::AGAIN) {
            let elapsed = (now.0 as u32).wrapping_sub(record.sent);
            let tick = super::tick(Time(now.0.saturating_sub(u64::from(elapsed))));
            if echo.is_some_and(|echo| (echo.wrapping_sub(tick) as i32) < 0) || elapsed < least {
                return;
            }
        }
        if !self.any || after(record.sent, record.end(), self.sent, self.end) {
            (self.sent, self.end, self.any) = (record.sent, record.end(), true);
        }
    }
}

impl Rack {
    /// A flight begins at `una`.
    #[inline]
    pub fn begin(&mut self, una: Seq) {
        (self.fack, self.first) = (una, una);
    }

    /// As good as new.
    pub fn clear(&mut self) {
        let mut again = std::mem::take(&mut self.again);
        empty(&mut again, 256);
        *self = Rack { again, ..Rack::default() };
    }

    /// What has arrived did so too long ago to be compared.
    #[cold]
    pub fn forget(&mut self) {
        self.known = false;
    }

    /// An ACK has told of arrivals.
    #[inline]
    pub fn advance(&mut self, arrived: &Arrived, now: Time) {
        if !arrived.any {
            return;
        }
        self.rtt = (now.0 as u32).wrapping_sub(arrived.sent);
        if !self.known || after(arrived.sent, arrived.end, self.sent, self.end) {
            (self.sent, self.end, self.known) = (arrived.sent, arrived.end, true);
        }
    }

    /// Nothing beyond `una` is known to have arrived.
    #[inline]
    pub fn level(&self, una: Seq) -> bool {
        self.fack.up_to(una)
    }

    /// First transmissions have arrived in their order, the last of them up to `end` and sent at `sent`, and nothing that was sent later has.
    #[inline(always)]
    pub fn follow(&mut self, sent: u32, end: Seq, now: Time) {
        (self.sent, self.end, self.known) = (sent, end, true);
        self.rtt = (now.0 as u32).wrapping_sub(sent);
        self.fack = self.fack.later(end);
        self.acknowledge(end);
    }

    /// All below `una` is acknowledged. What is kept moves on with it: numbers turn around, and an old one would come to lie ahead of una.
    #[inline]
    pub fn acknowledge(&mut self, una: Seq) {
        self.first = self.first.later(una);
        if self.round.is_some_and(|round| round.up_to(una)) {
            self.round = None;
        }
    }

    /// Whether the arrival of a record, in the order of numbers, shows that the path reorders (section 6.2, step 3).
    #[inline]
    pub fn reordered(&mut self, record: &Record) -> bool {
        let end = record.end();
        if self.fack.before(end) {
            self.fack = end;
            return false;
        }
        end.before(self.fack) && !record.marks.any(Marks::AGAIN)
    }

    /// A record was sent again.
    pub fn retransmitted(&mut self, seq: Seq, len: u32, sent: u32) {
        self.again.push_back(Again { seq, len, sent });
    }

    /// Whether something sent at `sent` would be lost if what has arrived had been sent after it.
    pub fn overdue(&self, sent: u32, now: Time, window: u32) -> bool {
        self.remaining(sent, now, window) <= 0
    }

    /// Microseconds until something sent at `sent` is lost; not above 0: it is.
    pub fn remaining(&self, sent: u32, now: Time, window: u32) -> i64 {
        i64::from(self.rtt) + i64::from(window) - i64::from((now.0 as u32).wrapping_sub(sent))
    }
}
