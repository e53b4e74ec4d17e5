//! What is in flight, with what loss recovery knows of it.

use super::congestion::Phase;
use super::prr::Prr;
use super::rack::Rack;
use super::records::{JUMP, KEPT, Marks, Record, Records};
use super::scoreboard::Scoreboard;
use super::spare::{Reuse, Spare, empty};
use crate::time::Time;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use zstack_wire::Seq;
use zstack_wire::tcp::Range;

/// What is lost and not sent again yet, as ranges in the order of their numbers. Ranges begin and end at records' edges, and may hold what has
/// arrived, or was sent again, since.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub(super) struct Lost {
    ranges: VecDeque<Range>,
}

impl Lost {
    #[inline]
    pub fn clear(&mut self) {
        empty(&mut self.ranges, KEPT);
    }

    fn push(&mut self, una: Seq, range: Range) {
        let at = |seq: Seq| seq.since(una);
        // A range whose front was acknowledged begins at una.
        let begins = |of: &Range| at(of.left.later(una));
        let place = match self.ranges.back() {
            Some(last) if begins(last) <= at(range.left) => self.ranges.len(),
            _ => self.ranges.partition_point(|other| begins(other) <= at(range.left)),
        };
        if let Some(before) = place.checked_sub(1).and_then(|before| self.ranges.get_mut(before)) {
            if range.left.before(before.right) {
                return;
            }
            if before.right == range.left {
                before.right = range.right;
                return;
            }
        }
        self.ranges.insert(place, range);
    }
}

/// What loss recovery does.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub(super) enum State {
    #[default]
    Open,
    /// Fast recovery, until `recover` is acknowledged.
    Recovery,
    /// After a timeout, until `recover` is acknowledged.
    Loss,
}

/// What the earlier of the timers is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub(super) enum Early {
    #[default]
    None,
    Probe,
    Reorder,
}

/// What is needed only while something is in flight, or lingers.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Flight {
    pub(super) records: Records,
    pub(super) una: Seq,
    pub(super) nxt: Seq,
    /// Bytes that are marked SACKED. Without SACK: what duplicate ACKs stand for.
    pub(super) sacked: u32,
    /// How many segments they were.
    pub(super) segments: u32,
    /// Bytes that are marked LOST.
    pub(super) lost: u32,
    /// Bytes that were sent again and are on their way.
    pub(super) again: u32,
    pub(super) state: State,
    /// The timeout may be spurious (RFC 5682).
    pub(super) frto: bool,
    /// Nothing is sent again until new data was sent (RFC 5682, step 2b).
    pub(super) hold: bool,
    pub(super) early_kind: Early,
    /// The window, and not the data, was what limited sending (Linux `is_cwnd_limited`).
    pub(super) by_window: bool,
    /// The most that was in flight until `usage` is acknowledged (Linux `max_packets_out`, `cwnd_usage_seq`).
    pub(super) used: u32,
    pub(super) usage: Seq,
    /// Duplicate ACKs in a row, without SACK.
    pub(super) duplicates: u32,
    /// When the first retransmission since `Undo` was opened left, in ticks (Linux `retrans_stamp`).
    pub(super) stamp: Option<u32>,
    /// When the retransmission timer expires.
    pub(super) expiry: Time,
    /// When a probe or the end of the reordering window is due.
    pub(super) early: Time,
    /// When something was sent last.
    pub(super) latest: Time,
    pub(super) board: Scoreboard,
    pub(super) queue: Lost,
    pub(super) rack: Rack,
    pub(super) prr: Prr,
    /// Congestion control before the last reduction.
    pub(super) prior: Option<Phase>,
}

impl Default for Flight {
    fn default() -> Flight {
        Flight {
            records: Records::default(),
            una: Seq(0),
            nxt: Seq(0),
            sacked: 0,
            segments: 0,
            lost: 0,
            again: 0,
            state: State::Open,
            frto: false,
            hold: false,
            early_kind: Early::None,
            by_window: false,
            used: 0,
            usage: Seq(0),
            duplicates: 0,
            stamp: None,
            expiry: Time::NEVER,
            early: Time::NEVER,
            latest: Time(0),
            board: Scoreboard::default(),
            queue: Lost::default(),
            rack: Rack::default(),
            prr: Prr::default(),
            prior: None,
        }
    }
}

impl Reuse for Flight {
    fn reuse(&mut self) {
        self.records.reuse();
        self.board.clear();
        self.queue.clear();
        self.rack.clear();
        (self.sacked, self.segments, self.lost, self.again) = (0, 0, 0, 0);
        (self.state, self.frto, self.hold, self.by_window) = (State::Open, false, false, false);
        (self.used, self.duplicates, self.stamp, self.prior) = (0, 0, None, None);
        (self.expiry, self.early, self.early_kind) = (Time::NEVER, Time::NEVER, Early::None);
    }
}

impl Flight {
    /// Nothing is being recovered, lost, or known to lie beyond a gap.
    #[inline]
    pub(super) fn orderly(&self) -> bool {
        self.state == State::Open && self.sacked | self.lost == 0
    }

    /// The same, and nothing was sent again.
    #[inline]
    pub(super) fn calm(&self) -> bool {
        self.state == State::Open && self.sacked | self.lost | self.again == 0
    }

    /// A flight that begins at `una`.
    #[inline(never)]
    pub(super) fn begun(spare: &mut Spare<Flight>, una: Seq) -> Box<Flight> {
        let mut flight = spare.take();
        flight.begin(una);
        flight
    }

    /// Something is sent.
    #[inline]
    pub(super) fn touch(&mut self, now: Time) {
        if now.0.wrapping_sub(self.latest.0) > JUMP {
            self.rack.forget();
        }
        self.latest = now;
    }

    /// Where nothing is lost any more, no range is kept: numbers turn around, and an old range would come to lie ahead of una.
    #[inline]
    pub(super) fn tidy(&mut self) {
        if self.lost == 0 {
            self.queue.clear();
        }
    }

    /// A flight begins.
    #[inline]
    fn begin(&mut self, una: Seq) {
        (self.una, self.nxt, self.usage) = (una, una, una);
        self.rack.begin(una);
    }

    /// Sequence numbers that are not acknowledged.
    #[inline]
    pub(super) fn outstanding(&self) -> u32 {
        self.nxt.since(self.una)
    }

    /// What is thought to be on its way (RFC 6675 "pipe").
    #[inline]
    pub(super) fn pipe(&self) -> u32 {
        self.outstanding().saturating_sub(self.sacked).saturating_sub(self.lost)
    }

    /// What a record was counted as, it is no more.
    #[inline]
    pub(super) fn uncount(&mut self, record: &Record) {
        if record.sacked() {
            self.sacked -= record.len;
            self.segments = self.segments.saturating_sub(record.segments());
        } else if record.marks.any(Marks::LOST) {
            self.lost -= record.len;
        } else if record.marks.any(Marks::AGAIN) {
            self.again -= record.len;
        }
    }

    /// The peer has a record.
    pub(super) fn mark_sacked(&mut self, index: usize) {
        let Some(record) = self.records.get(index).copied() else { return };
        self.uncount(&record);
        self.sacked += record.len;
        self.segments += record.segments();
        if let Some(record) = self.records.get_mut(index) {
            record.marks = record.marks.without(Marks::LOST).with(Marks::SACKED);
        }
    }

    /// A record is lost. One that is marked already, either way, stays as it is.
    pub(super) fn mark_lost(&mut self, index: usize) {
        let Some(record) = self.records.get(index).copied() else { return };
        if record.marks.any(Marks(Marks::LOST.0 | Marks::SACKED.0)) {
            return;
        }
        self.uncount(&record);
        self.lost += record.len;
        if let Some(record) = self.records.get_mut(index) {
            record.marks = record.marks.with(Marks::LOST);
        }
        self.queue.push(self.una, Range { left: record.seq, right: record.end() });
    }

    /// Marks the first segment that is not acknowledged (RFC 6582). Returns whether it was not marked.
    pub(super) fn mark_oldest_lost(&mut self) -> bool {
        let Some(oldest) = self.records.oldest().copied() else { return false };
        let cut = u32::from(oldest.cut.max(1));
        if oldest.len > cut {
            self.records.split(self.records.first(), oldest.seq + cut);
        }
        let lost = self.lost;
        self.mark_lost(self.records.first());
        self.lost != lost
    }

    /// What the peer said it holds, it does not hold (RFC 2018, section 8).
    pub(super) fn renege(&mut self) {
        for record in self.records.outstanding_mut() {
            record.marks = record.marks.without(Marks::SACKED);
        }
        (self.sacked, self.segments) = (0, 0);
        self.board.clear();
        self.again = self.records.outstanding().filter(|record| record.flying_again()).map(|record| record.len).sum();
    }

    /// The first record that is lost and not sent again.
    pub(super) fn next_lost(&mut self) -> Option<Record> {
        while let Some(range) = self.queue.ranges.front().copied() {
            let mut at = range.left.later(self.una);
            if at.before(range.right) {
                let mut index = self.records.find(at)?;
                while let Some(record) = self.records.get(index)
                    && record.seq.before(range.right)
                {
                    if record.marks.any(Marks::LOST) {
                        let record = *record;
                        if let Some(front) = self.queue.ranges.front_mut() {
                            front.left = record.seq;
                        }
                        return Some(record);
                    }
                    at = record.end();
                    index += 1;
                }
            }
            self.queue.ranges.pop_front();
        }
        None
    }
}

impl Flight {
    /// Marks what `block`, which is valid, covers whole; calls `each` with the index of each record that was not marked before.
    pub(super) fn sack(&mut self, block: Range, mut each: impl FnMut(&mut Flight, usize)) {
        let Some(left) = self.edge(block.left, true) else { return };
        let Some(right) = self.edge(block.right, false) else { return };
        if !left.before(right) {
            return;
        }
        for edge in [left, right] {
            if let Some(index) = self.records.find(edge)
                && self.records.get(index).is_some_and(|record| !record.sacked())
            {
                self.records.split(index, edge);
            }
        }
        let mut board = std::mem::take(&mut self.board);
        board.add(self.una, Range { left, right }, |part| {
            let Some(mut index) = self.records.find(part.left) else { return };
            while let Some(record) = self.records.get(index).copied() {
                if !record.seq.before(part.right) {
                    break;
                }
                each(self, index);
                self.mark_sacked(index);
                index += 1;
            }
        });
        self.board = board;
    }

    /// The edge between segments that is next to `seq`, at or above it (`up`) or at or below. Inside what is marked it is `seq` itself.
    fn edge(&self, seq: Seq, up: bool) -> Option<Seq> {
        if seq == self.nxt {
            return Some(seq);
        }
        let record = self.records.get(self.records.find(seq)?)?;
        let inside = seq.since(record.seq);
        if inside == 0 || record.sacked() {
            return Some(seq);
        }
        let cut = u32::from(record.cut.max(1));
        let inside = if up { inside.div_ceil(cut).saturating_mul(cut).min(record.len) } else { inside / cut * cut };
        Some(record.seq + inside)
    }
}
