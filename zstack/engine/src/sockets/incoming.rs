//! The incoming stream of a connection: a ring that is its own reassembly buffer, and buffers of the port that are kept.
//!
//! Every position between what was read and the edge of the window has its place in the ring, used or not. What is kept by
//! reference leaves its place unused; that is why any kept buffer can be copied to the ring at any time, and given back.

use super::memory::Block;
use crate::payload::Buffer;
use std::collections::VecDeque;
use std::ops::Range;

/// A buffer of the port, with bytes of the stream in it.
#[derive(Debug)]
struct Kept<B> {
    /// The position of the first byte that was not read.
    at: u64,
    buffer: B,
    /// The bytes that were not read.
    range: Range<usize>,
    /// What the buffer counts in the quota.
    cost: usize,
}

impl<B> Kept<B> {
    fn end(&self) -> u64 {
        self.at + self.range.len() as u64
    }
}

/// What has arrived and was not read.
#[derive(Debug)]
pub(super) struct Incoming<B> {
    ring: Option<Block>,
    /// The position whose place is the ring's first byte (modulo its length).
    base: u64,
    /// Behind the last byte that was copied to the ring.
    copied_to: u64,
    /// In order, and not overlapping.
    kept: VecDeque<Kept<B>>,
    /// The sum of their costs.
    pinned: usize,
}

impl<B: Buffer> Incoming<B> {
    pub(super) fn new() -> Incoming<B> {
        Incoming { ring: None, base: 0, copied_to: 0, kept: VecDeque::new(), pinned: 0 }
    }

    /// Whether nothing is here that lies at or behind `consumed`, in order or not.
    pub(super) fn is_empty(&self, consumed: u64) -> bool {
        self.kept.is_empty() && self.copied_to <= consumed
    }

    /// Bytes of the port's pool that are held.
    pub(super) fn pinned(&self) -> usize {
        self.pinned
    }

    pub(super) fn has_ring(&self) -> bool {
        self.ring.is_some()
    }

    /// How long the ring is.
    #[cfg(test)]
    pub(super) fn ring_len(&self) -> Option<usize> {
        self.ring.as_ref().map(Block::len)
    }

    pub(super) fn give_ring(&mut self, ring: Block, consumed: u64) {
        debug_assert!(self.ring.is_none());
        (self.base, self.copied_to) = (consumed, consumed);
        self.ring = Some(ring);
    }

    /// Goes over to a longer ring; returns the old one.
    pub(super) fn enlarge(&mut self, mut ring: Block, consumed: u64) -> Block {
        let old = self.ring.take().expect("given before");
        let mut at = consumed;
        while at < self.copied_to {
            let from = place(&old, self.base, at);
            let n = (old.len() - from).min((self.copied_to - at) as usize);
            copy(&mut ring, consumed, at, old.bytes(from..from + n));
            at += n as u64;
        }
        self.base = consumed;
        self.ring = Some(ring);
        old
    }

    /// The ring, if nothing is in it that lies at or behind `consumed`.
    pub(super) fn take_idle_ring(&mut self, consumed: u64) -> Option<Block> {
        if self.copied_to <= consumed { self.ring.take() } else { None }
    }

    /// Keeps the buffer. Only what follows everything that is here may be kept: returns it if something lies at or behind `at`.
    pub(super) fn keep(&mut self, at: u64, buffer: B, range: Range<usize>, cost: usize) -> Result<(), B> {
        if self.kept.back().is_some_and(|last| at < last.end()) {
            return Err(buffer);
        }
        self.pinned += cost;
        self.kept.push_back(Kept { at, buffer, range, cost });
        Ok(())
    }

    /// The buffer whose first unread byte lies at `at`, if one is kept for it that is published whole, up to `to`, and that the port does
    /// not need back; and what it cost.
    pub(super) fn take(&mut self, at: u64, to: u64) -> Option<(B, Range<usize>, usize)> {
        let first = self.kept.front()?;
        if first.at != at || first.end() > to || first.buffer.scarce() {
            return None;
        }
        let first = self.kept.pop_front()?;
        self.pinned -= first.cost;
        Some((first.buffer, first.range, first.cost))
    }

    /// Copies to the ring, which must be there.
    pub(super) fn copy(&mut self, at: u64, bytes: &[u8]) {
        copy(self.ring.as_mut().expect("given before"), self.base, at, bytes);
        self.copied_to = self.copied_to.max(at + bytes.len() as u64);
    }

    /// Copies all that is kept to the ring, which must be there, and drops the buffers. Returns how many bytes those were.
    pub(super) fn spill(&mut self) -> u64 {
        let ring = self.ring.as_mut().expect("given before");
        let mut n = 0;
        for kept in self.kept.drain(..) {
            copy(ring, self.base, kept.at, &kept.buffer.bytes()[kept.range.clone()]);
            n += kept.range.len() as u64;
            self.copied_to = self.copied_to.max(kept.end());
        }
        self.pinned = 0;
        n
    }

    /// The bytes from position `from` up to at most `to` that lie in one piece of memory; none only if `from == to`.
    pub(super) fn piece(&self, from: u64, to: u64) -> &[u8] {
        if from >= to {
            return &[];
        }
        // Nearly always the first.
        let kept = match self.kept.front() {
            Some(first) if from < first.end() => 0,
            _ => self.kept.partition_point(|k| k.end() <= from),
        };
        let stop = match self.kept.get(kept) {
            Some(kept) if kept.at <= from => {
                let skip = (from - kept.at) as usize;
                let bytes = &kept.buffer.bytes()[kept.range.start + skip..kept.range.end];
                return &bytes[..bytes.len().min((to - from) as usize)];
            }
            Some(next) => next.at.min(to),
            None => to,
        };
        let Some(ring) = &self.ring else { return &[] };
        let at = place(ring, self.base, from);
        ring.bytes(at..(at + (stop - from) as usize).min(ring.len()))
    }

    /// What lies below `to` was read.
    pub(super) fn consume(&mut self, to: u64) {
        while let Some(first) = self.kept.front_mut() {
            if to < first.end() {
                let n = to.saturating_sub(first.at);
                first.at += n;
                first.range.start += n as usize;
                break;
            }
            self.pinned -= first.cost;
            self.kept.pop_front();
        }
    }

    /// Forgets everything.
    pub(super) fn clear(&mut self) {
        self.kept.clear();
        (self.pinned, self.copied_to) = (0, 0);
    }
}

/// Where in the ring the byte of position `at` has its place.
fn place(ring: &Block, base: u64, at: u64) -> usize {
    // A ring's length is a power of two.
    ((at - base) & (ring.len() as u64 - 1)) as usize
}

fn copy(ring: &mut Block, base: u64, at: u64, bytes: &[u8]) {
    let start = place(ring, base, at);
    let first = bytes.len().min(ring.len() - start);
    ring.bytes_mut(start..start + first).copy_from_slice(&bytes[..first]);
    ring.bytes_mut(0..bytes.len() - first).copy_from_slice(&bytes[first..]);
}
