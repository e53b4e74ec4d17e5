//! Holes in a stretch of a ring (`shmring::hole`): of what a connection receives, and of what it has sent.
//!
//! The receiver fills them before anybody reads bytes of theirs who knows no chunks: POSIX calls, a receiver that leaves the ring, a fork.
//! The sender never writes there; what it sends to the kernel itself it copies from the chunk.
// Unsafe here: bytes are copied between chunks and rings.
#![allow(unsafe_code)]

use super::borrowed::Borrowed;
use super::offers;
use crate::channel::Chan;
use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::Relaxed;
use shmring::chunks::ledger::Loan;
use shmring::chunks::name::Name;
use shmring::driver::Conn;
use shmring::hole::{self, Entry, HOLES, Hole, Part};
use shmring::position::RingPos;
use shmring::ring;

/// Bytes of holes that were copied to their place in a ring.
pub static FILLED: AtomicU64 = AtomicU64::new(0);

/// What the peer says of its holes cannot be, or a chunk's bytes cannot be had: the stream is lost.
pub struct Lost;

/// Holes that the receiver meets, one after the other, at most: an honest sender has fewer.
const PATIENCE: usize = 4 * HOLES;

fn table<'a>(c: &Conn<'a>) -> &'a [Entry; HOLES] {
    &c.slot.holes[c.role.rx()]
}

fn name(id: u64, hole: &Hole, part: &Part) -> Name {
    let loan = Loan { generation: hole.generation, hop: hole.hop };
    // What does not fit is refused by who takes it.
    Name { pool: id, index: hole.index, loan, offset: hole.offset.saturating_add(part.over), len: part.len }
}

/// The first hole behind `at`, if it begins before `n` bytes; it is covered by what was published.
fn next(c: &Conn, at: RingPos, n: u64) -> Result<Option<(usize, Hole, Part)>, Lost> {
    if !c.published().may_have_holes(at, c.size) {
        return Ok(None);
    }
    let Some((i, hole, part)) = hole::first(table(c), at, c.size).filter(|(_, _, part)| part.ahead < n) else {
        return Ok(None);
    };
    let there = ring::available(c.published(), at, c.size).map_err(|_| Lost)?;
    if part.ahead + u64::from(part.len) > there { Err(Lost) } else { Ok(Some((i, hole, part))) }
}

/// Fills the holes in the `n` bytes behind `at` that this side is about to read. The receiving direction is owned.
#[cold]
pub fn fill(c: &Conn, chan: &Chan, at: RingPos, n: u64) -> Result<(), Lost> {
    for _ in 0..PATIENCE {
        let Some((i, hole, part)) = next(c, at, n)? else { return Ok(()) };
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
    table(c)[i].close(hole.at);
    edge.passed_by(&name);
    Some(())
}

/// Fills all that there are behind `at`.
pub fn fill_all(c: &Conn, chan: &Chan, at: RingPos) -> Result<(), Lost> {
    if c.published().may_have_holes(at, c.size) { fill(c, chan, at, c.size) } else { Ok(()) }
}

/// The `n` bytes behind `at` were read, and nothing of the holes among them was copied. A hole of which more is left stays.
#[cold]
pub fn pass(c: &Conn, chan: &Chan, at: RingPos, n: u64) {
    for _ in 0..PATIENCE {
        let Ok(Some((i, hole, part))) = next(c, at, n) else { return };
        if part.ahead + u64::from(part.len) > n {
            return;
        }
        table(c)[i].close(hole.at);
        if let Some((_, edge)) = offers::theirs(chan, hole.pool) {
            edge.passed_by(&name(edge.id(), &hole, &part));
        }
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
    let Some((_, hole, part)) = next(c, at, n)? else { return Ok(Next::Bytes(n)) };
    if part.ahead > 0 && part.ahead >= min.min(n) {
        return Ok(Next::Bytes(part.ahead));
    }
    if part.ahead == 0 && u64::from(part.len) >= min.min(n) {
        let (n, edge) = offers::theirs(chan, hole.pool).ok_or(Lost)?;
        let name = name(edge.id(), &hole, &part);
        let at = edge.take(&name, super::borrowed::VIEWED).map_err(|_| Lost)?;
        return Ok(Next::Chunk(Lent { edge: n, name, at }));
    }
    fill(c, chan, at, n)?;
    Ok(Next::Bytes(n))
}

/// This process gives up what it receives: chunks that lie unread go back, unless the sender may yet send their bytes to the kernel. The
/// receiving direction is owned.
pub fn drop_unread(c: &Conn, chan: &Chan, at: RingPos, is_over: bool) {
    if is_over && c.published().may_have_holes(at, c.size) {
        pass(c, chan, at, c.size);
    }
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
    let table = &c.slot.holes[c.role.tx()];
    for _ in 0..PATIENCE {
        let Some((i, hole, part)) = hole::first(table, from, c.size) else { return Ok(Sent::OnRing(n)) };
        if part.ahead > 0 {
            return Ok(Sent::OnRing(part.ahead.min(n)));
        }
        let n = (part.len as usize).min(into.len()).min(n as usize);
        let source = offers::mine(chan, hole.pool);
        let at = source.and_then(|source| source.bytes(hole.index, hole.offset.saturating_add(part.over), n as u32));
        if let Some(at) = at {
            // SAFETY: `n` bytes inside the pool, and as many of the buffer. They may change meanwhile, if the receiver has read them.
            unsafe { core::ptr::copy_nonoverlapping(at, into.as_mut_ptr(), n) };
        }
        match (table[i].is_open(hole.at), at) {
            (true, Some(_)) => return Ok(Sent::Copied(n)),
            (true, None) => return Err(Lost),
            // The receiver has filled it, or read past it.
            (false, _) => {}
        }
    }
    Err(Lost)
}

/// The edge of this number, for who has something of it.
pub fn edge(n: u32) -> Option<&'static Borrowed> {
    super::borrowed::at(n)
}
