//! The outgoing stream of a connection: a ring and pieces sent by reference, in any order.

use super::memory::{Block, Still};
use crate::payload::{Buffer, Pinned, Region, Span, Spans};
use std::collections::VecDeque;
use std::ops::Range;

/// Where the bytes of a piece are.
#[derive(Debug)]
enum Source<B> {
    /// In the ring, from this place on.
    Ring(u32),
    /// With somebody else; kept until all of them are released.
    Still(Still),
    /// In a buffer that was received, which counts so many bytes as referenced; it is [`Pinned`].
    Received(B, Range<usize>, usize),
}

/// A stretch of the stream.
#[derive(Debug)]
struct Piece<B> {
    /// Positions in the stream.
    start: u64,
    end: u64,
    source: Source<B>,
}

/// What was written and is not released yet.
#[derive(Debug)]
pub(super) struct Outgoing<B> {
    ring: Option<Block>,
    /// Where in the ring the next byte goes.
    write: usize,
    /// Bytes of the ring in use, counted from the write place back.
    used: usize,
    /// The caller may have filled free bytes that it has not committed: ring and write place stay.
    reserved: bool,
    /// Bytes in pieces of others.
    referenced: u64,
    /// It is to be told when the stream is released up to there.
    pub(super) watched: u64,
    /// Contiguous: each begins where the last ended.
    pieces: VecDeque<Piece<B>>,
    /// The piece in which bytes were found last, or one near it: what is sent next nearly always lies there, or behind it.
    found: usize,
}

impl<B> Default for Outgoing<B> {
    fn default() -> Outgoing<B> {
        Outgoing {
            ring: None,
            write: 0,
            used: 0,
            reserved: false,
            referenced: 0,
            watched: u64::MAX,
            pieces: VecDeque::new(),
            found: 0,
        }
    }
}

impl<B: Pinned> Outgoing<B> {
    /// Bytes of a received buffer follow.
    pub(super) fn forward(&mut self, end: u64, buffer: B, range: Range<usize>, cost: usize) {
        self.referenced += cost as u64;
        let len = range.len() as u64;
        self.pieces.push_back(Piece { start: end, end: end + len, source: Source::Received(buffer, range, cost) });
    }
}

impl<B: Buffer> Outgoing<B> {
    pub(super) fn is_empty(&self) -> bool {
        self.pieces.is_empty() && !self.reserved
    }

    /// Bytes of others that are kept.
    pub(super) fn referenced(&self) -> u64 {
        self.referenced
    }

    /// Bytes of the ring that are taken.
    pub(super) fn used(&self) -> usize {
        self.used
    }

    pub(super) fn has_ring(&self) -> bool {
        self.ring.is_some()
    }

    /// How long the ring is.
    pub(super) fn ring_len(&self) -> Option<usize> {
        self.ring.as_ref().map(Block::len)
    }

    pub(super) fn give_ring(&mut self, ring: Block) {
        debug_assert!(self.ring.is_none() && self.used == 0);
        self.write = 0;
        self.ring = Some(ring);
    }

    /// The ring, if nothing is in it.
    pub(super) fn take_idle_ring(&mut self) -> Option<Block> {
        if self.used == 0 && !self.reserved { self.ring.take() } else { None }
    }

    /// The ring's free bytes, as one or two stretches of memory, up to `most`; they stay where they are until the next
    /// [`Outgoing::commit`].
    pub(super) fn free(&mut self, most: usize) -> (&mut [u8], &mut [u8]) {
        let (write, used) = (self.write, self.used);
        let Some(ring) = &mut self.ring else { return (&mut [], &mut []) };
        let len = ring.len();
        let free = (len - used).min(most);
        self.reserved |= free > 0;
        let first = free.min(len - write);
        ring.split_mut(write..write + first, 0..free - first)
    }

    /// `n` bytes that were written to the free stretches, in their order, are the stream's from position `end` on.
    pub(super) fn commit(&mut self, end: u64, n: usize) {
        let len = self.ring.as_ref().map_or(0, Block::len);
        assert!(n <= len - self.used, "more was committed than reserved");
        self.reserved = false;
        if n == 0 {
            return;
        }
        match self.pieces.back_mut() {
            // The ring's bytes follow one another unless a piece of others lies between.
            Some(Piece { end: last, source: Source::Ring(_), .. }) => *last = end + n as u64,
            _ => self.pieces.push_back(Piece {
                start: end,
                end: end + n as u64,
                source: Source::Ring(self.write as u32),
            }),
        }
        self.write = (self.write + n) % len;
        self.used += n;
    }

    /// Copies what fits; returns how much that was.
    pub(super) fn write(&mut self, end: u64, bytes: &[u8]) -> usize {
        let (first, second) = self.free(bytes.len());
        let (a, b) = (first.len(), second.len());
        first.copy_from_slice(&bytes[..a]);
        second.copy_from_slice(&bytes[a..a + b]);
        self.commit(end, a + b);
        a + b
    }

    /// Whether a few bytes that follow should be copied behind what is here: at most two pieces go into a segment, so that many tiny
    /// ones in a row would make tiny segments. Of two neighbours one at least is then in the ring, where neighbours become one, or
    /// longer than `small`.
    pub(super) fn joins(&self, small: usize) -> bool {
        match self.pieces.back() {
            Some(Piece { source: Source::Ring(_), .. }) => true,
            Some(piece) => piece.end - piece.start <= small as u64,
            None => false,
        }
    }

    /// Bytes of somebody else follow.
    pub(super) fn push(&mut self, end: u64, still: Still) {
        if still.is_empty() {
            return;
        }
        self.referenced += still.len() as u64;
        self.pieces.push_back(Piece { start: end, end: end + still.len() as u64, source: Source::Still(still) });
    }

    /// Puts copies in the place of memory that others may write. That memory comes back: packets may point at it.
    pub(super) fn take_over(&mut self) -> Vec<Still> {
        let mut taken = vec![];
        for piece in &mut self.pieces {
            if let Source::Still(still) = &mut piece.source
                && still.bytes().is_none()
            {
                let copy = still.copied();
                taken.push(std::mem::replace(still, copy));
            }
        }
        taken
    }

    /// The memory of `len` bytes from `from` on: less where they lie in more than two stretches.
    pub(super) fn spans(&mut self, from: u64, len: u32) -> Spans {
        let has = |at: usize| self.pieces.get(at).is_some_and(|piece| piece.start <= from && from < piece.end);
        let first = match self.found {
            at if has(at) => at,
            at if has(at + 1) => at + 1,
            _ => self.pieces.partition_point(|piece| piece.end <= from),
        };
        self.found = first;
        // What was sent by reference is long: a segment lies in one piece, but for the last of a piece.
        if let Some(Piece { start, end, source: Source::Still(still) }) = self.pieces.get(first)
            && (*start..*end).contains(&from)
            && u64::from(len) <= end - from
        {
            return Spans([still.span((from - start) as usize, len as usize), Span::EMPTY]);
        }
        let mut found = [Span::EMPTY; 2];
        let (mut count, mut from, mut left) = (0, from, len as usize);
        for piece in self.pieces.range(first..) {
            if count == 2 || left == 0 {
                break;
            }
            debug_assert!(piece.start <= from && from < piece.end, "released already, or not committed");
            let take = left.min((piece.end - from) as usize);
            let offset = (from - piece.start) as usize;
            let mut add = |span: Span| {
                if count < 2 && span.len > 0 {
                    found[count] = span;
                    count += 1;
                    from += u64::from(span.len);
                    left -= span.len as usize;
                }
            };
            match (&piece.source, &self.ring) {
                (Source::Still(still), _) => add(still.span(offset, take)),
                (Source::Received(buffer, range, _), _) => {
                    let bytes = &buffer.bytes()[range.clone()][offset..offset + take];
                    add(Span { start: bytes.as_ptr(), len: take as u32, region: Region::default() });
                }
                (Source::Ring(place), Some(ring)) => {
                    let at = (*place as usize + offset) % ring.len();
                    let straight = take.min(ring.len() - at);
                    add(ring.span(at..at + straight));
                    add(ring.span(0..take - straight));
                }
                (Source::Ring(_), None) => debug_assert!(false, "a piece of a ring that is gone"),
            }
        }
        Spans(found)
    }

    /// Nobody reads what lies below `to` any more.
    pub(super) fn release(&mut self, to: u64) {
        while let Some(piece) = self.pieces.front_mut() {
            let done = piece.end <= to;
            match &mut piece.source {
                Source::Ring(place) => {
                    let n = piece.end.min(to).saturating_sub(piece.start);
                    self.used -= n as usize;
                    piece.start += n;
                    *place = ((*place as usize + n as usize) % self.ring.as_ref().map_or(1, Block::len)) as u32;
                }
                // All of it or nothing: its owner can do nothing with a part.
                Source::Still(still) if done => self.referenced -= still.len() as u64,
                Source::Received(_, _, cost) if done => self.referenced -= *cost as u64,
                Source::Still(_) | Source::Received(..) => {}
            }
            if !done {
                break;
            }
            self.pieces.pop_front();
            self.found = self.found.saturating_sub(1);
        }
        if self.used == 0 && !self.reserved {
            // The memory that was touched last is in the cache.
            self.write = 0;
        }
    }

    /// Forgets everything.
    pub(super) fn clear(&mut self) {
        self.pieces.clear();
        self.watched = u64::MAX;
        self.found = 0;
        (self.used, self.reserved, self.referenced, self.write) = (0, false, 0, 0);
    }
}
