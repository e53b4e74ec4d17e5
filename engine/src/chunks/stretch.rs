//! Holes in a stretch of a ring (`shmring::hole`): of what a connection receives, and of what it has sent.
//!
//! The receiver fills them before anybody reads bytes of theirs who knows no chunks: POSIX calls, a receiver that leaves the ring, a fork.
//! The sender never writes there; what it sends to the kernel itself it copies from the chunk.
// Unsafe here: bytes are copied between chunks and rings.
#![allow(unsafe_code)]

use super::borrowed::Borrowed;
use super::offers::{self, Source};
use crate::channel::Chan;
use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::{Acquire, Relaxed};
use shmring::chunks::ledger::Loan;
use shmring::chunks::name::Name;
use shmring::driver::Conn;
use shmring::hole::{self, Entry, HOLES, Hole, Part};
use shmring::layout::SlotHeader;
use shmring::position::RingPos;
use shmring::ring;

/// Bytes of holes that were copied to their place in a ring.
pub static FILLED: AtomicU64 = AtomicU64::new(0);

/// What the peer says of its holes cannot be, or a chunk's bytes cannot be had: the stream is lost.
pub struct Lost;

/// Holes that a call meets, one after the other, at most: an honest sender has published fewer.
const PATIENCE: usize = HOLES + 1;

fn table<'a>(c: &Conn, chan: &'a Chan, dir: usize) -> &'a [Entry; HOLES] {
    &chan.holes(c.ep.slot.load(Relaxed) as usize)[dir]
}

fn name(id: u64, hole: &Hole, part: &Part) -> Name {
    let loan = Loan { generation: hole.generation, hop: hole.hop };
    // What does not fit is refused by who takes it.
    Name { pool: id, index: hole.index, loan, offset: hole.offset.saturating_add(part.over), len: part.len }
}

/// How much is published behind `at`. One look bounds a call: a sender fills entries anew as they are closed, and one that it has opened is
/// not published yet.
fn there(c: &Conn, at: RingPos) -> Result<u64, Lost> {
    if !c.published().may_have_holes(at, c.size) {
        return Ok(0);
    }
    ring::available(c.published(), at, c.size).map_err(|_| Lost)
}

/// The first hole that begins in the `n` bytes behind `at`; `there` are published.
fn next(c: &Conn, chan: &Chan, at: RingPos, n: u64, there: u64) -> Result<Option<(usize, Hole, Part)>, Lost> {
    if there == 0 {
        // The table is 2 KiB, and in nearly all streams there are no holes.
        return Ok(None);
    }
    let first = hole::first(table(c, chan, c.role.rx()), at, c.size).filter(|(_, _, part)| part.ahead < n.min(there));
    match first {
        Some((_, _, part)) if part.ahead + u64::from(part.len) > there => Err(Lost),
        first => Ok(first),
    }
}

/// Fills the holes in the `n` bytes behind `at` that this side is about to read. The receiving direction is owned.
#[cold]
pub fn fill(c: &Conn, chan: &Chan, at: RingPos, n: u64) -> Result<(), Lost> {
    let there = there(c, at)?;
    for _ in 0..PATIENCE {
        let Some((i, hole, part)) = next(c, chan, at, n, there)? else { return Ok(()) };
        fill_one(c, chan, i, &hole, &part).ok_or(Lost)?;
    }
    Err(Lost)
}

fn fill_one(c: &Conn, chan: &Chan, i: usize, hole: &Hole, part: &Part) -> Option<()> {
    let (_, edge) = offers::theirs(chan, hole.pool)?;
    let name = name(edge.id(), hole, part);
    let mut from = edge.take_to_copy(&name).ok()?;
    let (slot, dir) = (c.ep.slot.load(Relaxed) as usize, c.role.rx());
    let start = hole.at.plus(part.over.into());
    for (off, len) in chan.geometry().spans(ring::base(c.published()), start, part.len.into()) {
        if len > 0 {
            let to = chan.at(slot, dir, off, len)?;
            // SAFETY: inside the ring, where nobody but the owner of this direction writes or reads; inside the pool, whose bytes may
            // change if its owner is not honest: bytes, whatever they are.
            unsafe { core::ptr::copy_nonoverlapping(from, to, len) };
            from = from.wrapping_add(len);
        }
    }
    // Those of another message, if the owner had reason to think that this process is no more.
    if !edge.is_current(&name) {
        return None;
    }
    FILLED.fetch_add(part.len.into(), Relaxed);
    table(c, chan, c.role.rx())[i].close(hole.at);
    edge.passed_by(&name);
    Some(())
}

/// Fills all that there are behind `at`.
pub fn fill_all(c: &Conn, chan: &Chan, at: RingPos) -> Result<(), Lost> {
    if may_have_holes(c, at) { fill(c, chan, at, c.size) } else { Ok(()) }
}

/// Whether there may be any behind `at`.
pub fn may_have_holes(c: &Conn, at: RingPos) -> bool {
    c.published().may_have_holes(at, c.size)
}

/// The `n` bytes behind `at` were read, and nothing of the holes among them was copied. A hole of which more is left stays.
#[cold]
pub fn pass(c: &Conn, chan: &Chan, at: RingPos, n: u64) {
    let Ok(there) = there(c, at) else { return };
    for _ in 0..PATIENCE {
        let Ok(Some((i, hole, part))) = next(c, chan, at, n, there) else { return };
        let end = part.ahead + u64::from(part.len);
        if end <= n {
            give_back(c, chan, i, &hole, &part);
        }
        if end >= n {
            return;
        }
    }
}

/// Closes an entry whose bytes nobody here reads any more, and gives the chunk back.
fn give_back(c: &Conn, chan: &Chan, i: usize, hole: &Hole, part: &Part) {
    if table(c, chan, c.role.rx())[i].close(hole.at)
        && let Some((_, edge)) = offers::theirs(chan, hole.pool)
    {
        edge.passed_by(&name(edge.id(), hole, part));
    }
}

/// What lies next on a ring.
pub enum Next {
    /// So many bytes of the ring.
    Bytes(u64),
    /// Bytes of a chunk.
    Chunk(Lent),
}

/// Bytes of a chunk that the program looks at.
#[derive(Clone, Copy)]
pub struct Lent {
    /// The edge by which it came, by its number here.
    pub edge: u32,
    /// What they are.
    pub name: Name,
    /// Where they lie.
    pub at: *const u8,
}

/// What of the `n` bytes behind `at` can be looked at as one: bytes of the ring up to a hole, or those of a chunk; at least `min`, for which
/// holes are filled if need be. A chunk is the viewer's from then on ([`Borrowed::no_more`]). The receiving direction is owned.
pub fn look(c: &Conn, chan: &Chan, at: RingPos, n: u64, min: u64) -> Result<Next, Lost> {
    if n < min {
        // Not so many: nothing is looked at, and so nothing filled.
        return Ok(Next::Bytes(n));
    }
    let there = there(c, at)?;
    let Some((_, hole, part)) = next(c, chan, at, n, there)? else { return Ok(Next::Bytes(n)) };
    if part.ahead > 0 && part.ahead >= min {
        return Ok(Next::Bytes(part.ahead));
    }
    // The ring may end before the hole does, if the sender is not honest.
    let part = Part { len: u64::from(part.len).min(n) as u32, ..part };
    if part.ahead == 0 && u64::from(part.len) >= min {
        let (k, edge) = offers::theirs(chan, hole.pool).ok_or(Lost)?;
        if !edge.is_lost() {
            let name = name(edge.id(), &hole, &part);
            let at = edge.take(&name, super::borrowed::VIEWED).map_err(|_| Lost)?;
            return Ok(Next::Chunk(Lent { edge: k, name, at }));
        }
    }
    fill(c, chan, at, n)?;
    Ok(Next::Bytes(n))
}

/// This process closes the connection, which nobody reads any more: all chunks go back that were sent there, also those that the sender is
/// about to publish. Not if the sender may yet send their bytes to the kernel (`has_left`): those are filled. The receiving direction is
/// owned.
pub fn drop_unread(c: &Conn, chan: &Chan, at: RingPos, has_left: bool) {
    hole::closes(&c.slot.consumer[c.role.rx()].closed);
    if chan.offered(c.role.peer()).load(Relaxed) == 0 {
        return;
    }
    if has_left {
        // What cannot be had the sender has still.
        let _ = fill_all(c, chan, at);
        return;
    }
    for (i, entry) in table(c, chan, c.role.rx()).iter().enumerate() {
        if let Some(hole) = entry.get() {
            give_back(c, chan, i, &hole, &Part { ahead: 0, over: 0, len: hole.len });
        }
    }
}

/// Whether the receiver has closed the connection, and closes all entries. To be asked behind the opening of one.
pub fn is_closed(c: &Conn) -> bool {
    hole::is_closed(&c.slot.consumer[c.role.tx()].closed)
}

/// Sender: nobody reads the connection any more, at either end: takes back what was sent there and is not back.
pub fn take_back(slot: usize, chan: &Chan) {
    let dir = chan.role().tx();
    if !has_table(chan.slot(slot), dir) {
        return;
    }
    for entry in &chan.holes(slot)[dir] {
        if let Some(hole) = entry.get()
            && let Some((source, edge)) = offers::mine(chan, hole.pool).filter(|(source, _)| source.is_ours())
            && entry.close(hole.at)
        {
            source.take_back(&sent(source, &hole), edge);
        }
    }
}

fn sent(source: Source, hole: &Hole) -> Name {
    let loan = Loan { generation: hole.generation, hop: hole.hop };
    Name { pool: source.id(), index: hole.index, loan, offset: 0, len: 0 }
}

/// Sender: a hole that was opened behind the tail is none: who opened it was killed before it was published, and other bytes come there. The
/// sending direction is owned.
#[cold]
pub fn forget_unpublished(c: &Conn, chan: &Chan) {
    if !has_table(c.slot, c.role.tx()) {
        return;
    }
    let tail = RingPos::new(c.sent().tail.load(Acquire).number());
    for entry in table(c, chan, c.role.tx()) {
        if let Some(hole) = entry.get()
            && hole.behind(tail, c.size).is_some_and(|part| part.over == 0)
            && entry.close(hole.at)
            && let Some((source, edge)) = offers::mine(chan, hole.pool)
        {
            source.take_back(&sent(source, &hole), edge);
        }
    }
    let holes = &c.sent().holes;
    if c.sent().may_have_holes(tail, c.size) {
        holes.store(tail.claim(), Relaxed);
    }
}

/// Nobody uses a slot: its tables say nothing.
pub fn forget(slot: usize, chan: &Chan) {
    for dir in (0..2).filter(|dir| has_table(chan.slot(slot), *dir)) {
        chan.holes(slot)[dir].iter().for_each(Entry::clear);
    }
}

/// Whether the connection in a slot has had holes in a direction: else there is no table.
fn has_table(slot: &SlotHeader, dir: usize) -> bool {
    slot.producer[dir].holes.load(Relaxed) != RingPos::START.claim()
}

/// Where bytes lie that were sent.
pub enum Sent {
    /// So many of them were copied from a chunk.
    Copied(usize),
    /// So many lie on the ring.
    OnRing(u64),
}

/// Sender: of the `n` bytes of the ring behind `from`, copies the first ones if they lie in a chunk, as many as there is room for. The sending
/// direction is owned.
#[cold]
pub fn copy_sent(c: &Conn, chan: &Chan, from: RingPos, n: u64, into: &mut [u8]) -> Result<Sent, Lost> {
    let table = table(c, chan, c.role.tx());
    for _ in 0..PATIENCE {
        let Some((i, hole, part)) = hole::first(table, from, c.size) else { return Ok(Sent::OnRing(n)) };
        if part.ahead > 0 {
            return Ok(Sent::OnRing(part.ahead.min(n)));
        }
        let n = (part.len as usize).min(into.len()).min(n as usize);
        let source = offers::mine(chan, hole.pool).map(|(source, _)| source);
        let at = source.and_then(|source| source.bytes(hole.index, hole.offset.saturating_add(part.over), n as u32));
        if let Some(at) = at {
            // SAFETY: `n` bytes inside the pool, and as many of the buffer. They may change meanwhile, if the receiver has read them.
            unsafe { core::ptr::copy_nonoverlapping(at, into.as_mut_ptr(), n) };
        }
        // In this order: whoever gives the chunk back closes the entry before, unless the receiver has ended.
        let is_current = at.is_some() && source.is_some_and(|source| source.is_current(hole.index, hole.generation));
        if !table[i].is_open(hole.at) {
            // The receiver has filled it, or read past it.
            continue;
        }
        // The owner may have taken it from a receiver that has ended, and have written other bytes there: then the right ones are gone.
        return if is_current { Ok(Sent::Copied(n)) } else { Err(Lost) };
    }
    Err(Lost)
}

/// The edge of this number, for who has something of it.
pub fn edge(n: u32) -> Option<&'static Borrowed> {
    super::borrowed::at(n)
}
