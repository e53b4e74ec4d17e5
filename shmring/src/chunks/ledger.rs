//! What a borrower says of the chunks that were lent to it by one edge.

use crate::sync::{AtomicU32, Ordering};
use crate::word::{Code, Coded};

/// Edges of a pool at a time, those between borrowers included.
pub const EDGES: usize = 64;

/// Bits of a word that tell the hop, the edge, and the edge's use number.
const HOP_BITS: u32 = 6;
const EDGE_BITS: u32 = 6;
const USE_BITS: u32 = 18;
/// Crossings that a chunk may make before it has to come back: so many steps may lead to who has it, whoever writes the ledgers.
pub const HOPS: u8 = (1 << HOP_BITS) - 1;
/// A place's use number after `n`.
pub(super) fn next_use(n: u32) -> u32 {
    (n + 1) & ((1 << USE_BITS) - 1)
}

/// One crossing of an edge by a chunk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Loan {
    /// The chunk's generation.
    pub generation: u32,
    /// The crossing's number since the owner lent it: 1 for a chunk that comes from the owner itself.
    pub hop: u8,
}

impl Loan {
    /// The crossing of the one to whom this one's borrower passes the chunk on.
    pub fn next(self) -> Option<Loan> {
        (self.hop < HOPS).then(|| Loan { hop: self.hop + 1, ..self })
    }
}

/// An edge of a pool: its place among them, and how often that place had been used before.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EdgeName {
    pub(super) place: u8,
    pub(super) use_number: u32,
}

impl EdgeName {
    /// As a word, in which the owner tells the edge's ends.
    pub fn word(self) -> u32 {
        u32::from(self.place) | self.use_number << EDGE_BITS
    }

    /// What a word names.
    pub fn of(word: u32) -> EdgeName {
        EdgeName { place: (word as usize % EDGES) as u8, use_number: word >> EDGE_BITS & ((1 << USE_BITS) - 1) }
    }
}

/// What a borrower says of a chunk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Said {
    /// Nothing: the chunk has never come by this edge.
    Nothing,
    /// It uses it.
    Holds,
    /// It will not use it any more.
    Done,
    /// It has passed it on by this edge.
    Passed(EdgeName),
}

/// A ledger's word for a chunk: which crossing it speaks of, and what it says.
///
/// ```text
/// 63 .. 46            45 .. 40    39, 38    37 .. 32    31 .. 0
/// edge's use number   edge        said      hop         generation
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Entry {
    /// The crossing.
    pub loan: Loan,
    /// What is said of it.
    pub said: Said,
}

const SAID_AT: u32 = 32 + HOP_BITS;
const EDGE_AT: u32 = SAID_AT + 2;

impl Code for Entry {
    type Bits = u64;
    fn code(self) -> u64 {
        let (said, edge) = match self.said {
            Said::Nothing => (0, 0),
            Said::Holds => (1, 0),
            Said::Done => (2, 0),
            Said::Passed(edge) => (3, edge.word()),
        };
        let hop = u64::from(self.loan.hop & HOPS) << 32;
        u64::from(self.loan.generation) | hop | said << SAID_AT | u64::from(edge) << EDGE_AT
    }
    fn of(code: u64) -> Entry {
        let said = match code >> SAID_AT & 3 {
            0 => Said::Nothing,
            1 => Said::Holds,
            2 => Said::Done,
            _ => Said::Passed(EdgeName::of((code >> EDGE_AT) as u32)),
        };
        Entry { loan: Loan { generation: code as u32, hop: (code >> 32) as u8 & HOPS }, said }
    }
}

/// An edge's ledger. Zeros say nothing of any chunk.
#[derive(Clone, Copy)]
pub struct Ledger<'a> {
    has_ended: &'a AtomicU32,
    entries: &'a [Coded<Entry>],
}

impl<'a> Ledger<'a> {
    /// In this memory.
    pub fn new(has_ended: &'a AtomicU32, entries: &'a [Coded<Entry>]) -> Ledger<'a> {
        Ledger { has_ended, entries }
    }

    /// How many chunks it has words for.
    pub fn count(&self) -> usize {
        self.entries.len()
    }

    /// What is said of a chunk. What its holder read of the chunk before is done.
    pub(super) fn get(&self, index: usize) -> Option<Entry> {
        self.entries.get(index).map(Coded::get)
    }

    /// Says something of a chunk, behind all that was read of it before.
    pub(super) fn set(&self, index: usize, entry: Entry) {
        if let Some(word) = self.entries.get(index) {
            word.set(entry);
        }
    }

    /// Whether the borrower takes nothing more by this edge.
    pub(super) fn has_ended(&self) -> bool {
        self.has_ended.load(Ordering::Acquire) != 0
    }

    /// Says so; what was taken before is in the entries.
    pub(super) fn end(&self) {
        self.has_ended.store(1, Ordering::Release);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_word_stands_for_something_that_has_that_word(code: u64) {
            let entry = Entry::of(code);
            prop_assert_eq!(Entry::of(entry.code()), entry);
            if let Said::Passed(edge) = entry.said {
                prop_assert_eq!(entry.code(), code);
                prop_assert!(usize::from(edge.place) < EDGES);
                prop_assert_eq!(EdgeName::of(edge.word()), edge);
            }
        }
    }

    #[test]
    fn zeros_say_nothing() {
        let entry = Entry { loan: Loan { generation: 0, hop: 0 }, said: Said::Nothing };
        assert_eq!((Entry::of(0), entry.code()), (entry, 0));
    }

    #[test]
    fn a_chunk_crosses_so_often_and_no_more() {
        let last = Loan { generation: 3, hop: HOPS };
        assert_eq!(last.next(), None);
        assert_eq!(Loan { hop: HOPS - 1, ..last }.next(), Some(last));
    }
}
