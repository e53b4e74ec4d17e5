//! What is sent instead of bytes.

use super::ledger::Loan;

/// Bytes in a chunk of a pool, in one of the chunk's lives.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Name {
    /// The pool.
    pub pool: u64,
    /// The chunk's place in the pool.
    pub index: u32,
    /// The crossing by which it came.
    pub loan: Loan,
    /// Where the bytes begin in the chunk.
    pub offset: u32,
    /// How many there are.
    pub len: u32,
}

impl Name {
    /// As it crosses an edge.
    pub fn words(self) -> [u64; 4] {
        let pair = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
        [self.pool, pair(self.index, self.loan.generation), pair(self.offset, self.len), u64::from(self.loan.hop)]
    }

    /// What these words name: every word names something, which is checked by who takes it ([`super::borrower::Borrower::take`]).
    pub fn of(words: [u64; 4]) -> Name {
        let [pool, chunk, part, hop] = words;
        let high = |word: u64| (word >> 32) as u32;
        Name {
            pool,
            index: chunk as u32,
            loan: Loan { generation: high(chunk), hop: hop as u8 },
            offset: part as u32,
            len: high(part),
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn it_crosses_an_edge_unchanged() {
        let loan = Loan { generation: u32::MAX - 1, hop: 63 };
        let name = Name { pool: u64::MAX - 2, index: 7, loan, offset: 0x1234_5678, len: u32::MAX };
        assert_eq!(Name::of(name.words()), name);
    }
}
