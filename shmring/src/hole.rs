//! Places of a ring whose bytes lie elsewhere.
//!
//! A message that is sent by reference takes as many positions of the ring as it has bytes, and those stay unwritten: a *hole*. A table for
//! each direction says which chunk of which pool ([`chunks`](crate::chunks)) stands for each. An entry is the sender's: it writes it before it
//! publishes the tail that covers the hole, and uses it for another one when the receiver has given back all of the hole.
//!
//! The receiver closes an entry when it needs the chunk no more: it has copied the bytes to their place in the ring, or has read all of them
//! where they lie. Only then does it give the chunk back. Where nobody will read them the sender may close it, and takes the chunk back. Who
//! of several closes it is one. So who has copied bytes of a chunk of the same generation, and finds the entry as it was, has copied the
//! right ones; and else they lie in the ring, or are read. That the entry is open does not say that the chunk is not back: its owner takes
//! it from a receiver that has ended.
//!
//! A receiver that closes the connection says so ([`Consumer::closed`](crate::layout::Consumer)), and then closes each entry, published or
//! not; the sender opens one, and then looks whether that was said. So one of them at least finds the entry.

use crate::position::{Claim, RingPos};
use crate::sync::{AtomicU32, AtomicU64, Ordering, fence};
use crate::word::Coded;

/// Holes of one direction at a time.
pub const HOLES: usize = 64;

/// A hole, as its sender says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Hole {
    /// Where it begins.
    pub at: RingPos,
    /// Bytes.
    pub len: u32,
    /// Where they begin in the chunk.
    pub offset: u32,
    /// The chunk's place in its pool.
    pub index: u32,
    /// Its generation ...
    pub generation: u32,
    /// ... and how often it has crossed an edge since.
    pub hop: u8,
    /// The pool, by its place among those that the sender has offered in this channel.
    pub pool: u8,
}

/// What of a hole lies behind a position.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Part {
    /// Bytes before it.
    pub ahead: u64,
    /// Bytes of the hole that the position has passed.
    pub over: u32,
    /// Bytes that are left.
    pub len: u32,
}

impl Hole {
    /// What of it lies behind `at`, in a ring of `size` bytes. `None`: nothing.
    pub fn behind(&self, at: RingPos, size: u64) -> Option<Part> {
        let (len, rest) = (u64::from(self.len), self.at.plus(u64::from(self.len)).since(at));
        if rest == 0 || rest > size || len > size {
            return None;
        }
        let left = len.min(rest);
        Some(Part { ahead: rest - left, over: (len - left) as u32, len: left as u32 })
    }
}

/// A place for one in the table.
#[repr(C)]
#[derive(Default)]
pub struct Entry {
    /// Where the hole begins; none: there is no hole.
    at: Coded<Option<Claim<RingPos>>>,
    /// The rest of it.
    what: [AtomicU64; 3],
}

impl Entry {
    /// What it says. Everything may be wrong.
    pub fn get(&self) -> Option<Hole> {
        let at = RingPos::new(self.at.get()?.number());
        let [chunk, part, way] = [0, 1, 2].map(|i| self.what[i].load(Ordering::Relaxed));
        // Those may be another hole's by now.
        if !self.is_open(at) {
            return None;
        }
        let high = |word: u64| (word >> 32) as u32;
        Some(Hole {
            at,
            index: chunk as u32,
            generation: high(chunk),
            offset: part as u32,
            len: high(part),
            hop: way as u8,
            pool: (way >> 8) as u8,
        })
    }

    /// Sender: whether there is none that lies behind `head`, which the receiver has given back.
    pub fn is_free(&self, head: RingPos, size: u64) -> bool {
        self.get().is_none_or(|hole| hole.behind(head, size).is_none())
    }

    /// Sender: says that there is this one, before it is published.
    pub fn open(&self, hole: &Hole) {
        let pair = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
        let way = u64::from(hole.hop) | u64::from(hole.pool) << 8;
        // Nobody takes the old words for those of the new place.
        self.at.set(None);
        fence(Ordering::Release);
        for (to, word) in self.what.iter().zip([pair(hole.index, hole.generation), pair(hole.offset, hole.len), way]) {
            to.store(word, Ordering::Relaxed);
        }
        self.at.set(Some(hole.at.claim()));
    }

    /// The hole at `at` is none any more; what was written into the ring before is there. False: it was none.
    pub fn close(&self, at: RingPos) -> bool {
        self.at.compare_exchange(Some(at.claim()), None, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    /// Whether the hole at `at` is one still, after bytes of its chunk were copied: they are the right ones.
    pub fn is_open(&self, at: RingPos) -> bool {
        fence(Ordering::Acquire);
        self.at.load(Ordering::Relaxed) == Some(at.claim())
    }

    /// Forgets it. Nobody uses the ring.
    pub fn clear(&self) {
        self.at.store(None, Ordering::Relaxed);
    }
}

/// Receiver: says that it closes the connection; behind that it closes each entry. Of a hole that is opened meanwhile it finds the entry, or the
/// sender finds what is said here ([`is_closed`]).
pub fn closes(closed: &AtomicU32) {
    closed.store(1, Ordering::Relaxed);
    fence(Ordering::SeqCst);
}

/// Sender: whether the receiver has said so. To be asked behind the opening of an entry.
pub fn is_closed(closed: &AtomicU32) -> bool {
    fence(Ordering::SeqCst);
    closed.load(Ordering::Relaxed) != 0
}

/// Where in the table a sender looks first for a place for a hole at `at`, and a receiver for the hole: neither looks at all of it for each message.
fn home(at: RingPos) -> usize {
    // Fibonacci hashing: messages of one length come to places that are apart.
    (at.number().wrapping_mul(0x9E37_79B9_7F4A_7C15) >> (64 - HOLES.ilog2())) as usize
}

/// All places of the table, from where a hole at `at` is looked for first.
fn places(at: RingPos) -> impl Iterator<Item = usize> {
    (0..HOLES).map(move |i| (home(at) + i) % HOLES)
}

/// Sender: a place for a hole at `at`, while the receiver has given back what lies before `head`. `None`: there is none.
pub fn place(table: &[Entry; HOLES], at: RingPos, head: RingPos, size: u64) -> Option<&Entry> {
    places(at).map(|i| &table[i]).find(|entry| entry.is_free(head, size))
}

/// The first hole behind `at`, and its place in the table. Where the table says of several that they lie at `at`, it is one of them.
pub fn first(table: &[Entry; HOLES], at: RingPos, size: u64) -> Option<(usize, Hole, Part)> {
    let mut first: Option<(usize, Hole, Part)> = None;
    for i in places(at) {
        let Some(hole) = table[i].get() else { continue };
        let Some(part) = hole.behind(at, size) else { continue };
        if first.is_none_or(|(_, _, other)| part.ahead < other.ahead) {
            first = Some((i, hole, part));
        }
        if part.ahead == 0 {
            break;
        }
    }
    first
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn hole(at: u64, len: u32) -> Hole {
        Hole { at: RingPos::new(at), len, offset: 7, index: 3, generation: u32::MAX, hop: 63, pool: 5 }
    }

    #[test]
    fn an_entry_says_what_was_said_until_it_is_closed() {
        let entry = Entry::default();
        assert_eq!(entry.get(), None);
        let one = hole(4096, 1000);
        entry.open(&one);
        assert_eq!(entry.get(), Some(one));
        assert!(entry.is_open(one.at) && !entry.is_open(RingPos::new(0)));
        assert!(!entry.is_free(RingPos::new(5095), 8192) && entry.is_free(RingPos::new(5096), 8192));
        assert!(!entry.close(RingPos::new(4095)));
        assert!(entry.close(one.at) && !entry.close(one.at));
        assert_eq!(entry.get(), None);
        assert!(!entry.is_open(one.at));
    }

    #[test]
    fn the_first_hole_is_the_one_that_comes_first() {
        let table: [Entry; HOLES] = std::array::from_fn(|_| Entry::default());
        for (i, at) in [3000, 1000, 2000].into_iter().enumerate() {
            table[i].open(&hole(at, 500));
        }
        let first = |at: u64| first(&table, RingPos::new(at), 1 << 16).map(|(i, _, part)| (i, part));
        assert_eq!(first(0), Some((1, Part { ahead: 1000, over: 0, len: 500 })));
        assert_eq!(first(1200), Some((1, Part { ahead: 0, over: 200, len: 300 })));
        assert_eq!(first(1500), Some((2, Part { ahead: 500, over: 0, len: 500 })));
        assert_eq!(first(3500), None);
    }

    #[test]
    fn a_hole_has_a_place_while_the_table_has_one_and_is_found_there() {
        let table: [Entry; HOLES] = std::array::from_fn(|_| Entry::default());
        let (len, size) = (4096, 1 << 20);
        let at = |n: usize| RingPos::new(n as u64 * u64::from(len));
        for n in 0..HOLES {
            let entry = place(&table, at(n), at(0), size).expect("a place");
            entry.open(&hole(at(n).number(), len));
        }
        assert!(place(&table, at(HOLES), at(0), size).is_none(), "all lie unread");
        for n in 0..HOLES {
            let (i, hole, part) = first(&table, at(n), size).expect("a hole");
            assert_eq!((hole.at, part), (at(n), Part { ahead: 0, over: 0, len }));
            assert!(table[i].close(hole.at));
            assert!(place(&table, at(HOLES + n), at(n + 1), size).is_some());
        }
        assert_eq!(first(&table, at(0), size), None);
    }

    proptest! {
        #[test]
        fn whatever_an_entry_says_a_part_lies_within_a_ring(words: [u64; 4], at: u64, bits in 12u32..26) {
            let (entry, size) = (Entry::default(), 1u64 << bits);
            entry.at.word().store(words[0], Ordering::Relaxed);
            for (to, word) in entry.what.iter().zip(&words[1..]) {
                to.store(*word, Ordering::Relaxed);
            }
            if let Some(hole) = entry.get()
                && let Some(part) = hole.behind(RingPos::new(at), size)
            {
                prop_assert!(part.len > 0 && part.ahead + u64::from(part.len) <= size);
                prop_assert_eq!(part.over + part.len, hole.len);
                prop_assert_eq!(hole.at.plus(u64::from(part.over)), RingPos::new(at).plus(part.ahead));
            }
        }
    }
}
