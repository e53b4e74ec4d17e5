//! Records of what was sent and has not left: who reads which bytes until when.

use super::congestion::Phase;
use super::prr::Prr;
use super::rack::Rack;
use super::scoreboard::Scoreboard;
use super::spare::{Reuse, Spare};
use crate::time::Time;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use zstack_wire::Seq;
use zstack_wire::tcp::Range;

/// Records keep 32 bits of the time: where it has jumped this far (a machine that was suspended), they tell nothing.
pub(super) const JUMP: u64 = 1 << 30;

/// What is known of a record.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub(super) struct Marks(pub u16);

impl Marks {
    /// Its first number is the SYN's.
    pub const SYN: Marks = Marks(1);
    /// Its last number is the FIN's.
    pub const FIN: Marks = Marks(2);
    /// The peer has it (SACK).
    pub const SACKED: Marks = Marks(4);
    /// It is taken for lost and has not been sent again since.
    pub const LOST: Marks = Marks(8);
    /// It was sent more than once.
    pub const AGAIN: Marks = Marks(16);

    #[inline]
    pub fn any(self, of: Marks) -> bool {
        self.0 & of.0 != 0
    }

    #[inline]
    pub fn with(self, more: Marks) -> Marks {
        Marks(self.0 | more.0)
    }

    #[inline]
    pub fn without(self, less: Marks) -> Marks {
        Marks(self.0 & !less.0)
    }
}

/// A stretch of sequence numbers that was last sent by one frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct Record {
    /// The port's number of the frame that sent it last.
    pub number: u64,
    /// The first sequence number.
    pub seq: Seq,
    /// How many there are, SYN and FIN included; never 0.
    pub len: u32,
    /// When it was sent last: the low bits of [`crate::time::Time`].
    pub sent: u32,
    /// The payload of each segment that the frame became on the wire.
    pub cut: u16,
    /// What is known of it.
    pub marks: Marks,
}

const _: () = assert!(size_of::<Record>() == 24);

impl Record {
    #[inline]
    pub fn end(&self) -> Seq {
        self.seq + self.len
    }

    /// The peer has it.
    #[inline]
    pub fn sacked(&self) -> bool {
        self.marks.any(Marks::SACKED)
    }

    /// It was sent again and is thought to be on its way.
    #[inline]
    pub fn flying_again(&self) -> bool {
        self.marks.0 & (Marks::SACKED.0 | Marks::LOST.0 | Marks::AGAIN.0) == Marks::AGAIN.0
    }

    /// How many segments it was on the wire.
    #[inline]
    pub fn segments(&self) -> u32 {
        let cut = u32::from(self.cut.max(1));
        if self.len <= cut { 1 } else { self.len.div_ceil(cut) }
    }
}

/// Records that were acknowledged together.
#[derive(Clone, Copy)]
pub(super) struct Taken {
    /// How many they are.
    pub count: usize,
    /// When the first and the last of them were sent.
    pub first: u32,
    pub last: u32,
    /// The marks of all.
    pub marks: Marks,
}

/// The records of a connection, oldest first and without gaps: first those that are acknowledged but whose frames the port may still
/// read (they linger), then those that are not acknowledged.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub(super) struct Records {
    all: VecDeque<Record>,
    lingering: usize,
}

/// A deque of more records than this gives its memory up when its flight ends.
const KEPT: usize = 1024;

impl Records {
    /// How many there are, lingering ones included.
    pub fn len(&self) -> usize {
        self.all.len()
    }

    /// Index of the first that is not acknowledged.
    #[inline]
    pub fn first(&self) -> usize {
        self.lingering
    }

    #[inline]
    pub fn get(&self, index: usize) -> Option<&Record> {
        self.all.get(index)
    }

    #[inline]
    pub fn get_mut(&mut self, index: usize) -> Option<&mut Record> {
        self.all.get_mut(index)
    }

    /// The first that is not acknowledged.
    #[inline]
    pub fn oldest(&self) -> Option<&Record> {
        self.all.get(self.lingering)
    }

    /// The last one, if it is not acknowledged.
    #[inline]
    pub fn newest(&self) -> Option<&Record> {
        if self.lingering < self.all.len() { self.all.back() } else { None }
    }

    #[inline]
    pub fn push(&mut self, record: Record) {
        debug_assert!(record.len > 0 && self.all.back().is_none_or(|last| last.end() == record.seq));
        self.all.push_back(record);
    }

    /// The records that are not acknowledged.
    pub fn outstanding(&self) -> impl Iterator<Item = &Record> {
        self.all.range(self.lingering..)
    }

    /// The same, to be changed.
    pub fn outstanding_mut(&mut self) -> impl Iterator<Item = &mut Record> {
        self.all.range_mut(self.lingering..)
    }

    /// Index of the record, not acknowledged, that holds `seq`.
    pub fn find(&self, seq: Seq) -> Option<usize> {
        let base = self.oldest()?.seq;
        let end = self.all.back()?.end();
        if !seq.within(base, end.since(base)) {
            return None;
        }
        let at = seq.since(base);
        // The first record that begins behind `seq`; the one before holds it.
        let (mut low, mut high) = (self.lingering, self.all.len());
        while low < high {
            let middle = (low + high) / 2;
            if self.all[middle].seq.since(base) <= at { low = middle + 1 } else { high = middle }
        }
        Some(low - 1)
    }

    /// Cuts a record so that a new one begins at `seq`, which lies inside; both parts keep what is known of the whole. Returns the index of the one that begins at `seq`.
    pub fn split(&mut self, index: usize, seq: Seq) -> usize {
        let Some(record) = self.all.get_mut(index) else { return index };
        let first = seq.since(record.seq);
        if first == 0 || first >= record.len {
            return index;
        }
        let mut second = *record;
        second.seq = seq;
        second.len -= first;
        second.marks = second.marks.without(Marks::SYN);
        record.len = first;
        record.marks = record.marks.without(Marks::FIN);
        self.all.insert(index + 1, second);
        index + 1
    }

    /// Takes the oldest record that is not acknowledged if it lies whole below `ack`, or its part that does: it lingers until its frame is completed.
    #[inline]
    pub fn acknowledge(&mut self, ack: Seq) -> Option<Record> {
        let record = *self.all.get(self.lingering)?;
        let covered = ack.since(record.seq);
        if covered >= record.len {
            if covered as i32 <= 0 {
                return None;
            }
            self.lingering += 1;
            return Some(record);
        }
        if covered == 0 {
            return None;
        }
        // A part: what is left keeps its place. Parts of one record that were taken one after the other stay one record, however small the steps.
        let mut part = record;
        part.len = covered;
        part.marks = part.marks.without(Marks::FIN);
        let rest = &mut self.all[self.lingering];
        rest.seq = ack;
        rest.len -= covered;
        rest.marks = rest.marks.without(Marks::SYN);
        match self.lingering.checked_sub(1).and_then(|last| self.all.get_mut(last)) {
            Some(last) if last.number == part.number => last.len += covered,
            _ => {
                self.all.insert(self.lingering, part);
                self.lingering += 1;
            }
        }
        Some(part)
    }

    /// What `ack` covers, if it is the edge of a record, no record lingers, and the frame of the last record below is completed: where all were sent
    /// once, their numbers rise, and all those frames are. They stay until they are [taken](Records::take).
    #[inline(always)]
    pub fn below(&self, ack: Seq, completed: u64) -> Option<Taken> {
        if self.lingering != 0 {
            return None;
        }
        let first = self.all.front()?;
        let mut taken = Taken { count: 1, first: first.sent, last: first.sent, marks: first.marks };
        let mut record = first;
        loop {
            let covered = ack.since(record.seq);
            if covered <= record.len {
                return if covered == record.len && record.number < completed { Some(taken) } else { None };
            }
            record = self.all.get(taken.count)?;
            taken.count += 1;
            taken.last = record.sent;
            taken.marks = taken.marks.with(record.marks);
        }
    }

    /// Lets go of the oldest `count` records.
    #[inline(always)]
    pub fn take(&mut self, count: usize) {
        for _ in 0..count {
            self.all.pop_front();
        }
    }

    /// Nobody waits for an acknowledgment any more: all linger.
    pub fn abandon(&mut self) {
        self.lingering = self.all.len();
    }

    /// Lets go of acknowledged records whose frames are completed: all frames below `completed` are. Returns the first sequence number that may not be overwritten; `None`: no record is left.
    #[inline]
    pub fn leave(&mut self, completed: u64) -> Option<Seq> {
        while self.lingering > 0 {
            match self.all.front() {
                Some(first) if first.number < completed => {
                    self.all.pop_front();
                    self.lingering -= 1;
                }
                _ => break,
            }
        }
        self.all.front().map(|first| first.seq)
    }
}

impl Reuse for Records {
    fn reuse(&mut self) {
        self.lingering = 0;
        if self.all.capacity() > KEPT {
            self.all = VecDeque::new();
        } else {
            self.all.clear();
        }
    }
}

/// What is lost and not sent again yet, as ranges in the order of their numbers. Ranges begin and end at records' edges, and may hold what has
/// arrived, or was sent again, since.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub(super) struct Lost {
    ranges: VecDeque<Range>,
}

impl Lost {
    #[inline]
    pub fn clear(&mut self) {
        if self.ranges.capacity() > KEPT { self.ranges = VecDeque::new() } else { self.ranges.clear() }
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
