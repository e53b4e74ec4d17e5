//! Which ranges of the incoming stream have arrived ahead of order, and which of them an ACK reports (RFC 2018).
//!
//! The bytes lie with the host ([`crate::payload::Host::place`]); here are numbers only. Bounded: a peer that sends every second
//! byte makes it full, and what would be one range more counts as not received.

use super::recovery::Reuse;
use serde::{Deserialize, Serialize};
use zstack_wire::Seq;
use zstack_wire::tcp::{Range, Sack};

/// How many ranges are kept. A window of 4 MiB that loses every thirtieth segment has a hundred.
pub(super) const RANGES: usize = 128;

/// How many of them an ACK can report.
const REPORTED: usize = 4;

/// The ranges, ascending and with a gap between each two; all lie behind RCV.NXT.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Assembler {
    ranges: Vec<Range>,
    /// Those that ACKs report, the latest first: each is one of `ranges`.
    latest: [Range; REPORTED],
    reported: u8,
}

/// What became of a range that was added.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Added {
    /// The first part of it that had been there before, for D-SACK (RFC 2883, section 4).
    pub duplicate: Option<Range>,
}

impl Assembler {
    /// How many ranges there are.
    pub fn len(&self) -> usize {
        self.ranges.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// Whether a range that begins and ends where `range` does can be added: it touches another, or there is room for one more.
    pub fn takes(&self, range: Range) -> bool {
        let (first, behind) = self.touched(range);
        first < behind || self.ranges.len() < RANGES
    }

    /// The ranges that overlap `range` or border on it: from the first of these up to, not including, the second.
    fn touched(&self, range: Range) -> (usize, usize) {
        let first = self.ranges.partition_point(|other| other.right.before(range.left));
        let behind = first + self.ranges[first..].partition_point(|other| other.left.up_to(range.right));
        (first, behind)
    }

    /// Adds what has arrived. [`Assembler::takes`] was asked before; nothing changes where it refuses.
    pub fn add(&mut self, range: Range) -> Added {
        let (first, behind) = self.touched(range);
        let Some(other) = self.ranges.get(first).filter(|_| first < behind) else {
            if self.ranges.len() < RANGES {
                self.ranges.insert(first, range);
                self.report(range);
            }
            return Added { duplicate: None };
        };
        let (left, right) = (range.left.later(other.left), range.right.earlier(other.right));
        let duplicate = left.before(right).then_some(Range { left, right }).or_else(|| {
            // It borders on the first and may overlap the next.
            let next = self.ranges[first + 1..behind].first()?;
            let (left, right) = (range.left.later(next.left), range.right.earlier(next.right));
            left.before(right).then_some(Range { left, right })
        });
        let whole =
            Range { left: range.left.earlier(other.left), right: range.right.later(self.ranges[behind - 1].right) };
        self.ranges[first] = whole;
        self.ranges.drain(first + 1..behind);
        self.report(whole);
        Added { duplicate }
    }

    /// RCV.NXT has come to `nxt`: what lies below is forgotten. Returns where it comes to with the ranges that border on it or
    /// reach over it, and the first part of them that lay below `nxt`: it had arrived twice.
    pub fn advance(&mut self, nxt: Seq) -> (Seq, Option<Range>) {
        let mut at = nxt;
        let mut duplicate = None;
        let mut gone = 0;
        for range in &self.ranges {
            if at.before(range.left) {
                break;
            }
            if duplicate.is_none() && range.left.before(nxt) {
                duplicate = Some(Range { left: range.left, right: range.right.earlier(nxt) });
            }
            at = at.later(range.right);
            gone += 1;
        }
        if gone > 0 {
            self.ranges.drain(..gone);
            let mut kept = 0;
            for i in 0..usize::from(self.reported) {
                if at.before(self.latest[i].left) {
                    self.latest[kept] = self.latest[i];
                    kept += 1;
                }
            }
            self.reported = kept as u8;
        }
        (at, duplicate)
    }

    /// Puts `range` first among those that are reported, instead of those that are part of it (RFC 2018, section 4).
    fn report(&mut self, range: Range) {
        let mut kept = [range; REPORTED];
        let mut count = 1;
        for other in &self.latest[..usize::from(self.reported)] {
            let inside = range.left.up_to(other.left) && other.right.up_to(range.right);
            if !inside && count < REPORTED {
                kept[count] = *other;
                count += 1;
            }
        }
        self.latest = kept;
        self.reported = count as u8;
    }

    /// Adds up to `limit` blocks to `sack`, the latest first.
    pub fn blocks(&self, sack: &mut Sack, limit: usize) {
        for range in self.latest[..usize::from(self.reported)].iter().take(limit) {
            sack.push(*range);
        }
    }

    /// Where the last range ends.
    pub fn last(&self) -> Option<Seq> {
        self.ranges.last().map(|range| range.right)
    }
}

impl Reuse for Assembler {
    fn reuse(&mut self) {
        self.ranges.clear();
        self.reported = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn range(left: u32, right: u32) -> Range {
        Range { left: Seq(left), right: Seq(right) }
    }

    fn blocks(assembler: &Assembler) -> Vec<Range> {
        let mut sack = Sack::default();
        assembler.blocks(&mut sack, 4);
        sack.blocks().to_vec()
    }

    #[test]
    fn the_latest_block_comes_first_and_grown_ones_replace_their_parts() {
        let mut a = Assembler::default();
        for (left, right) in [(10, 20), (30, 40), (50, 60), (70, 80), (90, 100)] {
            assert_eq!(a.add(range(left, right)).duplicate, None);
        }
        assert_eq!(blocks(&a), [range(90, 100), range(70, 80), range(50, 60), range(30, 40)]);
        assert_eq!(a.add(range(60, 70)).duplicate, None);
        assert_eq!(blocks(&a), [range(50, 80), range(90, 100), range(30, 40)]);
        assert_eq!(a.advance(Seq(10)), (Seq(20), None));
        assert_eq!(a.advance(Seq(35)), (Seq(40), Some(range(30, 35))));
        assert_eq!(blocks(&a), [range(50, 80), range(90, 100)]);
        assert_eq!(a.last(), Some(Seq(100)));
    }

    #[test]
    fn what_comes_twice_is_told() {
        let mut a = Assembler::default();
        a.add(range(10, 20));
        assert_eq!(a.add(range(10, 20)).duplicate, Some(range(10, 20)));
        assert_eq!(a.add(range(12, 25)).duplicate, Some(range(12, 20)));
        a.add(range(30, 40));
        assert_eq!(a.add(range(25, 35)).duplicate, Some(range(30, 35)));
        assert_eq!(a.len(), 1);
    }

    #[test]
    fn it_is_bounded_and_still_takes_what_touches() {
        let mut a = Assembler::default();
        for i in 0..RANGES as u32 {
            assert!(a.takes(range(10 * i + 5, 10 * i + 6)));
            a.add(range(10 * i + 5, 10 * i + 6));
        }
        assert!(!a.takes(range(9000, 9001)));
        a.add(range(9000, 9001));
        assert_eq!(a.len(), RANGES);
        assert!(a.takes(range(6, 15)));
        a.add(range(6, 15));
        assert_eq!(a.len(), RANGES - 1);
    }

    proptest! {
        /// Against a set of bytes, across the wrap of the numbers.
        #[test]
        fn as_a_set_of_bytes_does(steps in prop::collection::vec((0u32..200, 1u32..30, any::<bool>()), 1..60)) {
            let base = Seq(u32::MAX - 90);
            let mut a = Assembler::default();
            let mut have = [false; 256];
            let mut nxt = 0u32;
            for (at, len, ahead) in steps {
                if ahead {
                    let left = nxt + 1 + at;
                    let right = (left + len).min(255);
                    if left >= right { continue; }
                    let bytes = left as usize..right as usize;
                    let twice = bytes.clone().find(|&i| have[i]).map(|from| {
                        let to = (from..right as usize).find(|&i| !have[i]).unwrap_or(right as usize);
                        Range { left: base + from as u32, right: base + to as u32 }
                    });
                    prop_assert_eq!(a.add(Range { left: base + left, right: base + right }).duplicate, twice);
                    have[bytes].fill(true);
                } else {
                    nxt = (nxt + len).min(255);
                    let (to, _) = a.advance(base + nxt);
                    while nxt < 255 && have[nxt as usize] { nxt += 1; }
                    prop_assert_eq!(to, base + nxt);
                }
                let mut ranges = Vec::new();
                let mut i = nxt + 1;
                while i < 256 {
                    let from = i;
                    while i < 256 && have[i as usize] { i += 1; }
                    if from < i { ranges.push(Range { left: base + from, right: base + i }); }
                    i += 1;
                }
                prop_assert_eq!(&a.ranges, &ranges);
                for block in blocks(&a) { prop_assert!(ranges.contains(&block)); }
            }
        }
    }
}
