//! Losses found by time (RACK: RFC 8985, section 6): what was sent a reordering window before something that has arrived is lost.
//!
//! The RFC walks all segments in the order of their transmission. Here they stand in two orders that need no sorting: first
//! transmissions in the order of their numbers, and retransmissions in a queue. Each is looked at until it is lost, or sent again; none twice.

use super::flight::{Flight, Marks, Record};
use crate::time::{Micros, Time};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use zstack_wire::Seq;

/// A retransmission on its way.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct Again {
    seq: Seq,
    len: u32,
    sent: u32,
}

/// The latest segment that is known to have arrived, and what follows from it.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub(super) struct Rack {
    /// RACK.xmit_ts, RACK.end_seq, RACK.rtt.
    sent: u32,
    end: Seq,
    rtt: u32,
    known: bool,
    /// RACK.fack.
    fack: Seq,
    /// RACK.dsack_round.
    round: Option<Seq>,
    /// First transmissions below are acknowledged, marked, lost, or were sent again.
    first: Seq,
    again: VecDeque<Again>,
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
fn after(sent: u32, end: Seq, than: u32, than_end: Seq) -> bool {
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
        if again.capacity() > 256 {
            again = VecDeque::new()
        } else {
            again.clear()
        }
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
    #[inline]
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
    fn remaining(&self, sent: u32, now: Time, window: u32) -> i64 {
        i64::from(self.rtt) + i64::from(window) - i64::from((now.0 as u32).wrapping_sub(sent))
    }
}

impl Flight {
    /// Whether something has arrived that was sent after the oldest of what has not.
    #[inline]
    pub(super) fn overtaken(&self) -> bool {
        let oldest = self.records.oldest();
        self.rack.known && oldest.is_some_and(|oldest| after(self.rack.sent, self.rack.end, oldest.sent, oldest.end()))
    }

    /// RACK_detect_loss (section 6.2, step 5). Returns whether something was found, whether a retransmission was among it, and when to look again.
    ///
    /// The RFC looks again when the last candidate is due; this does at the latest moment that one can be.
    pub(super) fn detect(&mut self, now: Time, window: u32) -> (bool, bool, Option<Time>) {
        let (mut found, mut again, mut pending) = (false, false, false);
        if !self.rack.known {
            return (false, false, None);
        }
        let start = self.rack.first.later(self.una);
        let mut index = self.records.find(start).unwrap_or(self.records.len());
        self.rack.first = start;
        while let Some(record) = self.records.get(index).copied() {
            if !record.marks.any(Marks(Marks::SACKED.0 | Marks::LOST.0 | Marks::AGAIN.0)) {
                if !after(self.rack.sent, self.rack.end, record.sent, record.end()) {
                    break;
                }
                if self.rack.remaining(record.sent, now, window) > 0 {
                    pending = true;
                    break;
                }
                self.mark_lost(index);
                found = true;
            }
            self.rack.first = record.end();
            index += 1;
        }
        while let Some(&next) = self.rack.again.front() {
            let candidate = after(self.rack.sent, self.rack.end, next.sent, next.seq + next.len);
            if !candidate || self.rack.remaining(next.sent, now, window) > 0 {
                // What has arrived keeps nothing behind it from being looked at.
                if (candidate || next.sent == self.rack.sent) && !self.flying(next, |_, _| {}) {
                    self.rack.again.pop_front();
                    continue;
                }
                pending |= candidate;
                break;
            }
            self.rack.again.pop_front();
            let lost = self.flying(next, |flight, index| flight.mark_lost(index));
            (found, again) = (found | lost, again | lost);
        }
        let wait = self.rack.remaining(self.rack.sent, now, window).max(1);
        let due = pending.then(|| now + Micros(u32::try_from(wait).unwrap_or(u32::MAX)));
        (found, again, due)
    }

    /// Calls `each` for every part of a retransmission that is still on its way; returns whether there is any.
    fn flying(&mut self, which: Again, mut each: impl FnMut(&mut Flight, usize)) -> bool {
        let end = which.seq + which.len;
        if end.up_to(self.una) {
            return false;
        }
        let Some(mut index) = self.records.find(which.seq.later(self.una)) else { return false };
        let mut any = false;
        while let Some(record) = self.records.get(index).copied() {
            if !record.seq.before(end) {
                break;
            }
            if record.flying_again() && record.sent == which.sent {
                any = true;
                each(self, index);
            }
            index += 1;
        }
        any
    }

    /// Losses were none: everything that is not marked is on its way again, and may be found lost again.
    pub(super) fn unlose(&mut self) {
        self.lost = 0;
        self.queue.clear();
        self.rack.first = self.una;
        self.rack.again.clear();
        self.again = 0;
        let mut again = Vec::new();
        for record in self.records.outstanding_mut() {
            record.marks = record.marks.without(Marks::LOST);
            if record.flying_again() {
                self.again += record.len;
                again.push(Again { seq: record.seq, len: record.len, sent: record.sent });
            }
        }
        let latest = self.latest.0 as u32;
        again.sort_by_key(|flying| std::cmp::Reverse(latest.wrapping_sub(flying.sent)));
        self.rack.again.extend(again);
    }
}
