//! RACK's walk over what is in flight (RFC 8985, section 6.2, step 5).

use super::flight::Flight;
use super::rack::{Again, after};
use super::records::Marks;
use crate::time::{Micros, Time};

impl Flight {
    /// Whether something has arrived that was sent after the oldest of what has not.
    #[inline(always)]
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
