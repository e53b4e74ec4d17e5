//! A hierarchical timing wheel: four levels of 256 slots, ticks of a millisecond. Entries are named by index; the links of a
//! slot's list lie with the entries ([`Links`]), so that filing and taking out allocate nothing.
//!
//! An entry is filed under a tick that its deadline does not come before. Whoever moves a deadline later leaves the entry where
//! it is, and files it again when it comes up: timers that are always put off cost nothing.

use crate::time::{Micros, Time};

/// No entry, in a link.
const NONE: u32 = u32::MAX;
/// Marks a link that names a slot instead of an entry: this is the first of its list.
const SLOT: u32 = 1 << 31;
const LEVELS: usize = 4;
const SLOTS: usize = 256;
/// Deadlines that lie further ahead, in ticks, are filed this far and come up early: 24 days.
const FARTHEST: u64 = 1 << 31;

/// An entry's place in the wheel.
#[derive(Clone, Copy, Debug)]
pub struct Link {
    /// The moment that it is filed under, a whole tick; [`Time::NEVER`] outside of the wheel.
    at: Time,
    next: u32,
    /// The entry before, or the slot.
    previous: u32,
}

impl Default for Link {
    fn default() -> Link {
        Link { at: Time::NEVER, next: NONE, previous: NONE }
    }
}

impl Link {
    /// Whether the entry is in the wheel.
    #[inline]
    pub fn is_filed(&self) -> bool {
        self.at != Time::NEVER
    }

    /// Whether [`Wheel::arm`] has something to do for the entry: it is not in the wheel as early as `deadline`, which may be never.
    #[inline]
    pub fn wants(&self, deadline: Time) -> bool {
        // Rounded down, which is enough: an entry that is filed at the tick before comes up too early once.
        deadline + Micros(999) < self.at
    }

    #[inline]
    fn tick(&self) -> u64 {
        tick_of(self.at)
    }
}

/// Whoever keeps the entries. Indexes are below 2^31.
pub trait Links {
    /// The place of an entry that is in the wheel, or is to come into it.
    fn link(&mut self, index: u32) -> &mut Link;
}

/// The lists of a level, and which of them have entries.
struct Level {
    heads: [u32; SLOTS],
    used: [u64; SLOTS / 64],
}

impl Level {
    /// How many slots behind `from` the first used one comes, `from` itself last: 1 to 256.
    #[inline]
    fn ahead(&self, from: usize) -> Option<usize> {
        let start = (from + 1) % SLOTS;
        let (word, bit) = (start / 64, start % 64);
        let first = self.used[word] >> bit;
        if first != 0 {
            return Some(1 + first.trailing_zeros() as usize);
        }
        for i in 1..=SLOTS / 64 {
            let used = self.used[(word + i) % (SLOTS / 64)];
            if used != 0 {
                return Some(1 + i * 64 - bit + used.trailing_zeros() as usize);
            }
        }
        None
    }
}

/// The wheel.
pub struct Wheel {
    levels: Box<[Level; LEVELS]>,
    /// All entries are filed under this tick or later ones.
    current: u64,
    /// The last moment that was told. `current` follows it where an entry is filed: most turns need no tick.
    now: Time,
    /// Nothing is to be done before this moment, a whole tick; [`Time::NEVER`]: there are no entries.
    next: Time,
    len: u32,
}

impl std::fmt::Debug for Wheel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Wheel").field("current", &self.current).field("len", &self.len).finish()
    }
}

/// The last tick that is not behind a moment.
#[inline]
fn tick_of(time: Time) -> u64 {
    time.0 / 1000
}

/// The first tick that is not before a moment.
#[inline]
fn tick_at(time: Time) -> u64 {
    tick_of(time + Micros(999))
}

/// The moment of a tick.
#[inline]
fn time_of(tick: u64) -> Time {
    Time(tick * 1000)
}

impl Wheel {
    /// Without entries.
    pub fn new(now: Time) -> Wheel {
        let level = || Level { heads: [NONE; SLOTS], used: [0; SLOTS / 64] };
        let levels = Box::new([level(), level(), level(), level()]);
        Wheel { levels, current: tick_of(now), now, next: Time::NEVER, len: 0 }
    }

    /// How many entries there are.
    pub fn len(&self) -> u32 {
        self.len
    }

    /// Files an entry so that it comes up at `deadline`, rounded up to a millisecond, or before. One that is filed no later
    /// already stays where it is.
    #[inline]
    pub fn arm(&mut self, links: &mut impl Links, index: u32, deadline: Time) {
        self.reach(self.now);
        let tick = tick_at(deadline).clamp(self.current, self.current + FARTHEST);
        let link = *links.link(index);
        if link.at <= time_of(tick) {
            return;
        }
        if link.is_filed() {
            self.unlink(links, link);
        }
        self.file(links, index, tick);
    }

    /// Takes an entry out, if it is in the wheel.
    pub fn disarm(&mut self, links: &mut impl Links, index: u32) {
        if links.link(index).is_filed() {
            self.take(links, index);
        }
    }

    /// The moment at which [`Wheel::expire`] may have something to do, or never. It may turn out to be nothing: deadlines far ahead
    /// are known roughly.
    #[inline]
    pub fn next(&self) -> Time {
        self.next
    }

    /// Whether [`Wheel::expire`] has something to do. To be asked before entries are filed at a new moment.
    #[inline]
    pub fn is_due(&mut self, now: Time) -> bool {
        self.now = now;
        now >= self.next
    }

    /// Nothing has come up before `now`, or the next tick at which something is to be done.
    #[inline]
    fn reach(&mut self, now: Time) {
        let now = now.min(self.next);
        if now >= time_of(self.current + 1) {
            self.current = tick_of(now);
        }
    }

    /// The next entry that has come up; it is out of the wheel then. `None`: there is none, or `budget` is used up; each entry
    /// takes one of it, and so does each that moves from a coarser level to a finer one.
    #[inline]
    pub fn expire(&mut self, links: &mut impl Links, now: Time, budget: &mut u32) -> Option<u32> {
        if self.is_due(now) { self.advance(links, now, budget) } else { None }
    }

    fn advance(&mut self, links: &mut impl Links, now: Time, budget: &mut u32) -> Option<u32> {
        while *budget > 0 {
            // Coarser lists whose time begins now.
            for level in 1..LEVELS {
                if self.current & ((1 << (8 * level)) - 1) != 0 {
                    break;
                }
                while let head @ 0..SLOT = self.levels[level].heads[slot_of(self.current, level)] {
                    if *budget == 0 {
                        return None;
                    }
                    *budget -= 1;
                    let tick = links.link(head).tick();
                    self.take(links, head);
                    self.file(links, head, tick);
                }
            }
            if let head @ 0..SLOT = self.levels[0].heads[slot_of(self.current, 0)] {
                if *budget == 0 {
                    return None;
                }
                *budget -= 1;
                self.take(links, head);
                return Some(head);
            }
            self.next = self.ahead().map_or(Time::NEVER, time_of);
            self.reach(now);
            if now < self.next {
                return None;
            }
        }
        None
    }

    /// The next tick, behind the current one, at which a list expires or moves to a finer level.
    fn ahead(&self) -> Option<u64> {
        let next = |(k, level): (usize, &Level)| {
            let slots = level.ahead(slot_of(self.current, k))?;
            Some(((self.current >> (8 * k)) + slots as u64) << (8 * k))
        };
        self.levels.iter().enumerate().filter_map(next).min()
    }

    #[inline(always)]
    fn file(&mut self, links: &mut impl Links, index: u32, tick: u64) {
        let level = match tick - self.current {
            0..0x100 => 0,
            0x100..0x1_0000 => 1,
            0x1_0000..0x100_0000 => 2,
            _ => 3,
        };
        let slot = slot_of(tick, level);
        let Level { heads, used } = &mut self.levels[level];
        let next = std::mem::replace(&mut heads[slot], index);
        used[slot / 64] |= 1 << (slot % 64);
        *links.link(index) = Link { at: time_of(tick), next, previous: SLOT | (level << 8 | slot) as u32 };
        if next != NONE {
            links.link(next).previous = index;
        }
        self.next = self.next.min(time_of(tick >> (8 * level) << (8 * level)));
        self.len += 1;
    }

    fn take(&mut self, links: &mut impl Links, index: u32) {
        let link = std::mem::take(links.link(index));
        self.unlink(links, link);
    }

    /// Takes an entry out of its list, whose place this was.
    #[inline]
    fn unlink(&mut self, links: &mut impl Links, Link { next, previous, .. }: Link) {
        if next != NONE {
            links.link(next).previous = previous;
        }
        if previous & SLOT == 0 {
            links.link(previous).next = next;
        } else {
            let (level, slot) = ((previous & !SLOT) as usize >> 8, previous as usize & (SLOTS - 1));
            let Level { heads, used } = &mut self.levels[level];
            heads[slot] = next;
            if next == NONE {
                used[slot / 64] &= !(1 << (slot % 64));
            }
        }
        self.len -= 1;
    }
}

#[inline]
fn slot_of(tick: u64, level: usize) -> usize {
    (tick >> (8 * level)) as usize % SLOTS
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::cmp::Reverse;
    use std::collections::{BTreeMap, BinaryHeap};

    impl Links for Vec<Link> {
        fn link(&mut self, index: u32) -> &mut Link {
            &mut self[index as usize]
        }
    }

    #[derive(Clone, Debug)]
    enum Op {
        Arm(u32, u64),
        Disarm(u32),
        Pass(u64),
    }

    fn ops() -> impl Strategy<Value = Op> {
        let span =
            prop_oneof![0u64..3000, 0u64..400_000, 0u64..100_000_000, 0u64..60_000_000_000, 0u64..4_000_000_000_000];
        prop_oneof![
            (0u32..40, span.clone()).prop_map(|(index, after)| Op::Arm(index, after)),
            (0u32..40).prop_map(Op::Disarm),
            span.prop_map(Op::Pass),
        ]
    }

    proptest! {
        /// Against a heap: entries come up in time, never early, each once, with whatever budget.
        #[test]
        fn behaves_like_a_heap(start in 0u64..1 << 45, budget in 1u32..5, ops in prop::collection::vec(ops(), 1..200)) {
            let mut now = Time(start);
            let mut wheel = Wheel::new(now);
            let mut links = vec![Link::default(); 40];
            let mut heap = BinaryHeap::new();
            let mut armed: BTreeMap<u32, u64> = BTreeMap::new();
            for op in ops {
                match op {
                    Op::Arm(index, after) => {
                        let far = now.0 / 1000 + FARTHEST;
                        let tick = tick_at(Time(now.0 + after)).min(far);
                        if armed.get(&index).is_none_or(|&old| tick < old) {
                            armed.insert(index, tick);
                            heap.push(Reverse((tick, index)));
                        }
                        wheel.arm(&mut links, index, Time(now.0 + after));
                    }
                    Op::Disarm(index) => {
                        armed.remove(&index);
                        wheel.disarm(&mut links, index);
                    }
                    Op::Pass(after) => {
                        now.0 += after;
                        let mut expected = Vec::new();
                        while let Some(&Reverse((tick, index))) = heap.peek() && tick <= now.0 / 1000 {
                            heap.pop();
                            if armed.get(&index) == Some(&tick) {
                                armed.remove(&index);
                                expected.push(index);
                            }
                        }
                        let mut found = Vec::new();
                        let mut turns = 0;
                        loop {
                            let mut left = budget;
                            while let Some(index) = wheel.expire(&mut links, now, &mut left) {
                                found.push(index);
                            }
                            turns += 1;
                            prop_assert!(turns < 10_000, "no end");
                            if wheel.next() > now {
                                break;
                            }
                        }
                        expected.sort_unstable();
                        found.sort_unstable();
                        prop_assert_eq!(found, expected);
                    }
                }
                prop_assert_eq!(wheel.len() as usize, armed.len());
                // The moment that is named is never too late.
                if let Some(&first) = armed.values().min() {
                    prop_assert!(tick_of(wheel.next()) <= first);
                }
            }
        }
    }

    #[test]
    fn putting_off_costs_nothing() {
        let mut wheel = Wheel::new(Time(0));
        let mut links = vec![Link::default(); 1];
        wheel.arm(&mut links, 0, Time(5_000));
        let filed = links[0].at;
        wheel.arm(&mut links, 0, Time(900_000));
        assert_eq!(links[0].at, filed);
        wheel.arm(&mut links, 0, Time(2_001));
        assert_eq!(links[0].at, Time(3_000));
        let mut budget = 10;
        assert_eq!(wheel.expire(&mut links, Time(2_999), &mut budget), None);
        assert_eq!(wheel.expire(&mut links, Time(3_000), &mut budget), Some(0));
        assert_eq!(wheel.expire(&mut links, Time(3_000), &mut budget), None);
        assert_eq!((wheel.next(), budget), (Time::NEVER, 9));
    }

    #[test]
    fn a_jump_of_time_fires_in_portions_and_skips_what_is_empty() {
        let mut wheel = Wheel::new(Time(0));
        let mut links = vec![Link::default(); 10_000];
        for index in 0..10_000 {
            wheel.arm(&mut links, index, Time(u64::from(index) * 40_000));
        }
        // Two weeks later.
        let now = Time(14 * 86_400 * 1_000_000);
        let (mut fired, mut turns) = (0, 0);
        while wheel.len() > 0 {
            let mut budget = 100;
            while wheel.expire(&mut links, now, &mut budget).is_some() {
                fired += 1;
            }
            turns += 1;
            assert!(wheel.len() == 0 || wheel.next() <= now);
        }
        assert_eq!(fired, 10_000);
        // Each entry moves at most three times before it fires.
        assert!((100..=400).contains(&turns), "{turns}");
    }
}
