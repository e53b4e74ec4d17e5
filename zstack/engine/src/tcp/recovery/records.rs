//! What was sent and has not left, record by record: who reads which bytes until when.

use super::spare::{Reuse, empty};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use zstack_wire::Seq;

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
pub(super) const KEPT: usize = 1024;

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
        empty(&mut self.all, KEPT);
    }
}
