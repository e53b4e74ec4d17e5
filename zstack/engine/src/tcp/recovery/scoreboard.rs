//! What the peer holds beyond its ACK number (SACK: RFC 2018, RFC 6675), and what it got twice (D-SACK: RFC 2883).
//!
//! Blocks mark whole segments: an edge inside one is drawn inwards to the segment's edge, as in Linux `tcp_match_skb_to_sack`, so that a
//! peer that names single bytes cannot split what is in flight into single bytes. Each record is visited once when it is marked; a block that was seen before costs two binary searches.

use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use zstack_wire::Seq;
use zstack_wire::tcp::Range;

/// The ranges that are marked: in order, apart from each other, and each from a record's edge to a record's edge.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub(super) struct Scoreboard {
    islands: VecDeque<Range>,
}

/// Islands above this give their memory up when their flight ends.
const KEPT: usize = 256;

impl Scoreboard {
    /// Nothing is marked.
    #[inline]
    pub fn clear(&mut self) {
        if self.islands.capacity() > KEPT {
            self.islands = VecDeque::new();
        } else {
            self.islands.clear();
        }
    }

    /// The ranges that are marked.
    pub fn islands(&self) -> impl Iterator<Item = &Range> {
        self.islands.iter()
    }

    /// Everything below `una` is acknowledged.
    #[inline]
    pub fn acknowledge(&mut self, una: Seq) {
        while let Some(first) = self.islands.front_mut() {
            if una.before(first.right) {
                first.left = first.left.later(una);
                break;
            }
            self.islands.pop_front();
        }
    }

    /// Adds a range that begins and ends at records' edges, or inside islands, and calls `new` for each part that was not in it.
    pub(super) fn add(&mut self, una: Seq, block: Range, mut new: impl FnMut(Range)) {
        let at = |seq: Seq| seq.since(una);
        let first = self.islands.partition_point(|island| at(island.right) < at(block.left));
        let (mut whole, mut from, mut next) = (block, block.left, first);
        while let Some(&island) = self.islands.get(next) {
            if at(island.left) > at(block.right) {
                break;
            }
            if at(from) < at(island.left) {
                new(Range { left: from, right: island.left });
            }
            if at(island.right) > at(from) {
                from = island.right;
            }
            if at(island.left) < at(whole.left) {
                whole.left = island.left;
            }
            if at(island.right) > at(whole.right) {
                whole.right = island.right;
            }
            next += 1;
        }
        if at(from) < at(block.right) {
            new(Range { left: from, right: block.right });
        }
        match next - first {
            0 => self.islands.insert(first, whole),
            1 => self.islands[first] = whole,
            _ => {
                self.islands[first] = whole;
                self.islands.drain(first + 1..next);
            }
        }
    }
}

/// The range that the peer received twice, if its first block says so (RFC 2883, section 4: it lies below the ACK number, or inside the second block).
#[inline]
pub(super) fn duplicate(ack: Seq, blocks: &[Range]) -> Option<Range> {
    let first = *blocks.first()?;
    if !first.left.before(first.right) {
        return None;
    }
    let inside = |second: &Range| second.left.up_to(first.left) && first.right.up_to(second.right);
    (first.right.up_to(ack) || blocks.get(1).is_some_and(inside)).then_some(first)
}

/// Blocks of one option that are valid, in the order of their numbers.
pub(super) fn valid(una: Seq, nxt: Seq, blocks: &[Range]) -> ([Range; 4], usize) {
    let mut sorted = [Range::default(); 4];
    let mut count = 0;
    for block in blocks.iter().take(4) {
        // RFC 2018, section 3: beyond what is acknowledged, and not beyond what was sent (Linux `tcp_is_sackblock_valid`).
        if block.left.before(block.right) && una.before(block.left) && block.right.up_to(nxt) {
            sorted[count] = *block;
            count += 1;
        }
    }
    sorted[..count].sort_unstable_by_key(|block| block.left.since(una));
    (sorted, count)
}
