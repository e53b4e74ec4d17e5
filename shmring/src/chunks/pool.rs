//! The owner's side: which chunks are free, and where the others are.

use super::ledger::{EDGES, EdgeName, Entry, Ledger, Loan, Said, next_use};
use super::name::Name;
use crate::sync::{AtomicU32, Ordering};

/// What the owner notes of a chunk, in memory of its own. Zeros: it is the owner's, who does not use it.
#[derive(Clone, Copy, Default)]
pub struct Note {
    /// The edge by which the owner has lent it, by its place plus 1, until it is back. It is in one place at a time.
    lent: u8,
    /// The next one in the list that it is in, of free ones or of lent ones, by its place plus 1.
    next: u32,
    is_used: bool,
    /// How often it was taken.
    takes: u32,
}

/// Chunks in a row.
#[derive(Default)]
struct List {
    first: u32,
    last: u32,
}

/// An end of edges: the owner, or a borrower by a number that its owner gives it, and gives to no other while an edge of it is there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Party(pub u64);

impl Party {
    /// The pool's owner.
    pub const OWNER: Party = Party(0);
}

/// An edge.
struct Edge<'a> {
    ledger: Ledger<'a>,
    lender: Party,
    borrower: Party,
    /// Chunks that the owner has lent by it, and that are not back.
    out: u32,
    /// How many those may be.
    quota: u32,
    /// Its borrower has ended.
    is_gone: bool,
}

impl Edge<'_> {
    /// What its borrower says of this crossing, or of a later one by the same edge. `None`: it has not taken the chunk yet.
    fn entry(&self, index: u32, loan: Loan) -> Option<Entry> {
        let is_of = |entry: &Entry| entry.loan.generation == loan.generation && entry.loan.hop >= loan.hop;
        self.ledger.get(index as usize).filter(|entry| is_of(entry) && entry.said != Said::Nothing)
    }
}

/// Why a chunk is not lent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NotLent {
    /// So many are out by this edge as may be: EAGAIN.
    Quota,
    /// It is lent already; its bytes have to be copied.
    Out,
    /// The edge has ended, or is not the owner's.
    Edge,
    /// It is not a chunk that the owner uses, or has not so many bytes.
    Chunk,
}

/// A pool, as its owner has it. One thread at a time.
pub struct Pool<'a> {
    id: u64,
    chunk_len: u32,
    /// How often each has come back; borrowers read them.
    generations: &'a [AtomicU32],
    notes: &'a mut [Note],
    free: List,
    lent: List,
    edges: [Option<Edge<'a>>; EDGES],
    /// How often each place for an edge has been used.
    uses: [u32; EDGES],
}

impl<'a> Pool<'a> {
    /// Of as many chunks as there are counts and notes, all of which are zeros.
    pub fn new(id: u64, chunk_len: u32, generations: &'a [AtomicU32], notes: &'a mut [Note]) -> Pool<'a> {
        let count = generations.len().min(notes.len()).min(u32::MAX as usize - 1);
        let mut pool = Pool {
            id,
            chunk_len,
            generations: &generations[..count],
            notes: &mut notes[..count],
            free: List::default(),
            lent: List::default(),
            edges: [const { None }; EDGES],
            uses: [0; EDGES],
        };
        for index in 0..count as u32 {
            pool.free.push(pool.notes, index);
        }
        pool
    }

    /// A free chunk, which the caller uses from now on. `None`: all are used or lent, whatever could be collected.
    pub fn take(&mut self) -> Option<u32> {
        if self.free.first == 0 {
            self.collect();
        }
        let index = self.free.pop(self.notes)?;
        let note = &mut self.notes[index as usize];
        note.is_used = true;
        note.takes = note.takes.wrapping_add(1);
        Some(index)
    }

    /// How often a chunk was taken, if the caller uses it.
    pub fn takes(&self, index: u32) -> Option<u32> {
        self.notes.get(index as usize).filter(|note| note.is_used).map(|note| note.takes)
    }

    /// The caller does not use a chunk any more. It is free as soon as it is back from all that it was lent to.
    pub fn give_up(&mut self, index: u32) {
        let Some(note) = self.notes.get_mut(index as usize).filter(|note| note.is_used) else { return };
        note.is_used = false;
        if note.lent == 0 {
            self.free.push(self.notes, index);
        }
    }

    /// Lends bytes of a chunk that the caller uses: the name that is to be sent by `edge`. The caller does not write them any more.
    pub fn lend(&mut self, index: u32, edge: EdgeName, offset: u32, len: u32) -> Result<Name, NotLent> {
        if offset.checked_add(len).is_none_or(|end| end > self.chunk_len) {
            return Err(NotLent::Chunk);
        }
        let note = self.notes.get(index as usize).filter(|note| note.is_used).ok_or(NotLent::Chunk)?;
        if note.lent != 0 || self.edge(edge).is_some_and(|edge| edge.out >= edge.quota) {
            self.collect();
        }
        let lends = |edge: &&Edge| edge.lender == Party::OWNER && !edge.is_gone && !edge.ledger.has_ended();
        let Some(there) = self.edge(edge).filter(lends) else { return Err(NotLent::Edge) };
        if there.out >= there.quota {
            return Err(NotLent::Quota);
        }
        let note = &mut self.notes[index as usize];
        if note.lent != 0 {
            return Err(NotLent::Out);
        }
        note.lent = edge.place + 1;
        if let Some(edge) = &mut self.edges[usize::from(edge.place)] {
            edge.out += 1;
        }
        self.lent.push(self.notes, index);
        Ok(Name { pool: self.id, index, loan: self.loan(index), offset, len })
    }

    /// Undoes a [`lend`](Self::lend) whose name could not be sent. Nothing, if the chunk is back from it already.
    pub fn take_back(&mut self, name: &Name) {
        let is_lent = self.notes.get(name.index as usize).is_some_and(|note| note.lent != 0);
        if name.pool == self.id && is_lent && self.loan(name.index) == name.loan {
            let before = self.lent.before(self.notes, name.index);
            self.returned(before, name.index);
        }
    }

    /// An edge begins, from the owner or between borrowers, with this ledger, by which the owner may have `quota` chunks out. A chunk
    /// that `lender` was lent may go on by it, and no other's. `None`: there are too many, or the ledger is not for this pool.
    pub fn join(&mut self, ledger: Ledger<'a>, quota: u32, lender: Party, borrower: Party) -> Option<EdgeName> {
        if ledger.count() != self.notes.len() {
            return None;
        }
        if self.edges.iter().all(Option::is_some) {
            self.collect();
        }
        let place = self.edges.iter().position(Option::is_none)?;
        self.edges[place] = Some(Edge { ledger, lender, borrower, out: 0, quota, is_gone: false });
        Some(EdgeName { place: place as u8, use_number: self.uses[place] })
    }

    /// The borrower of an edge has ended: what it held, and what was on the way to it, comes back.
    pub fn has_gone(&mut self, edge: EdgeName) {
        if self.edge(edge).is_some()
            && let Some(edge) = &mut self.edges[usize::from(edge.place)]
        {
            edge.is_gone = true;
        }
    }

    /// Whether an edge is one still. It is none once its borrower has ended, and nothing that crossed it is out.
    pub fn is_there(&self, edge: EdgeName) -> bool {
        self.edge(edge).is_some()
    }

    /// Chunks that the owner has lent by an edge, and that are not back.
    pub fn out(&self, edge: EdgeName) -> u32 {
        self.edge(edge).map_or(0, |edge| edge.out)
    }

    /// Chunks that are free.
    pub fn free_count(&self) -> usize {
        self.notes.iter().filter(|note| !note.is_used && note.lent == 0).count()
    }

    /// Chunks that the owner uses, lent or not.
    pub fn used_count(&self) -> usize {
        self.notes.iter().filter(|note| note.is_used).count()
    }

    /// Takes back all that nobody has any more.
    pub fn collect(&mut self) {
        let (mut before, mut at) = (0, self.lent.first);
        // The edges that something is lent by still, or was passed on by.
        let mut crossed = 0;
        while at != 0 {
            let index = at - 1;
            let next = self.notes[index as usize].next;
            match self.way(index) {
                None => self.returned(before, index),
                Some(way) => {
                    crossed |= way;
                    before = at;
                }
            }
            at = next;
        }
        // What is passed on by an edge that is none is back.
        for place in 0..EDGES {
            if crossed & 1 << place == 0 && self.edges[place].as_ref().is_some_and(|edge| edge.is_gone) {
                self.edges[place] = None;
                self.uses[place] = next_use(self.uses[place]);
            }
        }
    }

    fn edge(&self, edge: EdgeName) -> Option<&Edge<'a>> {
        let place = usize::from(edge.place);
        self.edges.get(place)?.as_ref().filter(|_| self.uses[place] == edge.use_number)
    }

    /// The owner's next loan of a chunk.
    fn loan(&self, index: u32) -> Loan {
        Loan { generation: self.generations[index as usize].load(Ordering::Relaxed), hop: 1 }
    }

    /// The edges, bit by bit, that a chunk which is lent has crossed to who has it now. `None`: nobody has it.
    fn way(&self, index: u32) -> Option<u64> {
        let place = self.notes[index as usize].lent - 1;
        let mut loan = self.loan(index);
        let mut at = EdgeName { place, use_number: self.uses[usize::from(place)] };
        let mut crossed = 0;
        // Each step is one crossing more at least, and those are bounded.
        loop {
            let edge = self.edge(at)?;
            crossed |= 1 << at.place;
            let mut entry = edge.entry(index, loan);
            if entry.is_none() && edge.ledger.has_ended() {
                // It may have been taken between the look at the one and at the other.
                entry = Some(edge.entry(index, loan)?);
            }
            match entry.map(|entry| entry.said) {
                Some(Said::Done) => return None,
                // By another's edge nobody can have sent it: it is given up.
                Some(Said::Passed(next)) => {
                    let lender = edge.borrower;
                    at = next;
                    self.edge(at).filter(|edge| edge.lender == lender)?;
                }
                // On its way to the borrower, or with it.
                Some(Said::Holds | Said::Nothing) | None => return (!edge.is_gone).then_some(crossed),
            }
            loan = entry?.loan.next()?;
        }
    }

    /// A chunk is back that stands behind `before` in the list of lent ones.
    fn returned(&mut self, before: u32, index: u32) {
        self.lent.unlink(self.notes, before, index);
        let note = &mut self.notes[index as usize];
        let place = note.lent - 1;
        note.lent = 0;
        if let Some(edge) = &mut self.edges[usize::from(place)] {
            edge.out -= 1;
        }
        let is_free = !note.is_used;
        // What was said of it is over.
        let generation = &self.generations[index as usize];
        generation.store(generation.load(Ordering::Relaxed).wrapping_add(1), Ordering::Release);
        if is_free {
            self.free.push(self.notes, index);
        }
    }
}

impl List {
    fn push(&mut self, notes: &mut [Note], index: u32) {
        notes[index as usize].next = 0;
        match self.last {
            0 => self.first = index + 1,
            last => notes[last as usize - 1].next = index + 1,
        }
        self.last = index + 1;
    }

    fn pop(&mut self, notes: &mut [Note]) -> Option<u32> {
        let index = self.first.checked_sub(1)?;
        self.unlink(notes, 0, index);
        Some(index)
    }

    /// Takes out `index`, before which `before` stands: a place plus 1, or 0.
    fn unlink(&mut self, notes: &mut [Note], before: u32, index: u32) {
        let next = notes[index as usize].next;
        match before {
            0 => self.first = next,
            before => notes[before as usize - 1].next = next,
        }
        if self.last == index + 1 {
            self.last = before;
        }
    }

    /// What stands before `index`.
    fn before(&self, notes: &[Note], index: u32) -> u32 {
        let (mut before, mut at) = (0, self.first);
        while at != 0 && at != index + 1 {
            (before, at) = (at, notes[at as usize - 1].next);
        }
        before
    }
}
