//! The side of who is lent chunks by an edge.

use super::ledger::{EdgeName, Entry, HOPS, Ledger, Loan, Said};
use super::name::Name;
use crate::sync::{AtomicU32, Ordering};

/// Why a name is not taken. Its sender is not honest: it has to be treated as a peer that contradicts itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refused {
    /// It is of another pool.
    Pool,
    /// The pool has no such chunk, or the chunk not so many bytes.
    Bounds,
    /// The chunk is back at its owner.
    Stale,
    /// It has been taken already by this edge, and is still held.
    Held,
}

/// One end of an edge: what the borrower's process knows of the pool, and its ledger. Each chunk's word is written by the thread that
/// took the chunk, or that it was handed to.
pub struct Borrower<'a> {
    /// The pool's number.
    pool: u64,
    /// Bytes of a chunk.
    chunk_len: u32,
    /// The owner's counts.
    generations: &'a [AtomicU32],
    ledger: Ledger<'a>,
}

impl<'a> Borrower<'a> {
    /// Of a pool whose owner's counts and whose ledger are for equally many chunks; else `None`.
    pub fn new(pool: u64, chunk_len: u32, generations: &'a [AtomicU32], ledger: Ledger<'a>) -> Option<Borrower<'a>> {
        (generations.len() == ledger.count()).then_some(Borrower { pool, chunk_len, generations, ledger })
    }

    /// Takes what a name that came by this edge stands for: from now on its bytes stay what they are, until [`done`](Self::done) or
    /// [`pass`](Self::pass). The bytes are inside of the pool, whatever the name was.
    ///
    /// The name must not be taken off the edge before.
    pub fn take(&self, name: &Name) -> Result<(), Refused> {
        let index = name.index as usize;
        if name.pool != self.pool {
            return Err(Refused::Pool);
        }
        let generation = self.generations.get(index).ok_or(Refused::Bounds)?;
        if name.offset.checked_add(name.len).is_none_or(|end| end > self.chunk_len) {
            return Err(Refused::Bounds);
        }
        if generation.load(Ordering::Acquire) != name.loan.generation || !(1..=HOPS).contains(&name.loan.hop) {
            return Err(Refused::Stale);
        }
        let holds = |entry: Entry| entry.said == Said::Holds && entry.loan.generation == name.loan.generation;
        if self.ledger.get(index).is_none_or(holds) {
            return Err(Refused::Held);
        }
        self.ledger.set(index, Entry { loan: name.loan, said: Said::Holds });
        Ok(())
    }

    /// Gives a chunk back that was taken. False: this name is not held.
    pub fn done(&self, name: &Name) -> bool {
        self.change(name, Said::Holds, Said::Done)
    }

    /// Passes a chunk on, of which these bytes are meant: the name that is to be sent by `edge`. `None`: it is not held, or has
    /// crossed too many edges: the bytes have to be copied.
    ///
    /// To be sent only now: a chunk whose name was sent before would come back to its owner if this process ended in between.
    pub fn pass(&self, name: &Name, edge: EdgeName) -> Option<Name> {
        let loan = name.loan.next()?;
        self.change(name, Said::Holds, Said::Passed(edge)).then_some(Name { loan, ..*name })
    }

    /// Holds again what was passed, but whose name could not be sent.
    pub fn keep(&self, name: &Name, edge: EdgeName) -> bool {
        self.change(name, Said::Passed(edge), Said::Holds)
    }

    /// Says that nothing more will be taken by this edge: the stream is at its end, or given up.
    pub fn end(&self) {
        self.ledger.end();
    }

    /// How many of the chunks that this process has passed on by `edge` are still with those behind it, whose ledger is `theirs`.
    pub fn passed_and_out(&self, edge: EdgeName, theirs: &Ledger) -> usize {
        let is_out = |index: usize| {
            let Some(mine) = self.ledger.get(index).filter(|e| e.said == Said::Passed(edge)) else { return false };
            let life = self.generations[index].load(Ordering::Acquire);
            let came: Option<Loan> = mine.loan.next();
            let given_up = |e: Entry| Some(e.loan) == came && matches!(e.said, Said::Done | Said::Passed(_));
            life == mine.loan.generation && !theirs.get(index).is_some_and(given_up)
        };
        (0..self.ledger.count()).filter(|index| is_out(*index)).count()
    }

    fn change(&self, name: &Name, from: Said, to: Said) -> bool {
        let index = name.index as usize;
        let is_so = self.ledger.get(index) == Some(Entry { loan: name.loan, said: from });
        if is_so {
            self.ledger.set(index, Entry { loan: name.loan, said: to });
        }
        is_so
    }
}
