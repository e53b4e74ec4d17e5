//! Connections in TIME-WAIT: 64 bytes each, all in. They need no timer: all wait equally long, so that the order in which they
//! came tells which of them are over.

use crate::sip::Key;
use crate::tcp::{TIME_WAIT, TimeWait};
use crate::time::Time;
use crate::tuple::Tuple;
use std::collections::VecDeque;
use zstack_wire::Seq;

/// The bits of a [`Entry::chain`] that are a place; the highest one says that the entry was given up.
const PLACE: u32 = !GONE;
const GONE: u32 = 1 << 31;

/// The most that may wait.
const MOST: u32 = 1 << 24;

struct Entry {
    tuple: Tuple,
    rest: TimeWait,
    /// The place of the next older one in the same bucket, plus one; 0: there is none.
    chain: u32,
}

impl Entry {
    fn is_gone(&self) -> bool {
        self.chain & GONE != 0
    }
}

/// An entry with its bucket: there are as many buckets as entries fit.
const _: () = assert!(size_of::<Entry>() + size_of::<u32>() == 64);

/// All connections in TIME-WAIT.
pub struct Waiting {
    key: Key,
    /// A ring, in the order in which they came: an entry's number, modulo the ring's size, is its place.
    entries: Vec<Entry>,
    /// For each bucket the place of its latest entry, plus one; 0: there is none.
    heads: Vec<u32>,
    limit: u32,
    /// The number of the oldest entry, and of the one that comes next.
    first: u32,
    next: u32,
    /// Which number came first in which second; at most one more than TIME-WAIT has seconds, and the ones that are over.
    seconds: VecDeque<(u32, u32)>,
    /// Entries that were not given up.
    len: u32,
}

impl std::fmt::Debug for Waiting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Waiting").field("len", &self.len).field("limit", &self.limit).finish()
    }
}

impl Waiting {
    /// For at most `limit` of them, and never more than 2^24; 0 keeps none.
    pub fn new(key: Key, limit: u32) -> Waiting {
        let seconds = VecDeque::new();
        let limit = limit.min(MOST);
        Waiting { key, entries: Vec::new(), heads: Vec::new(), limit, first: 0, next: 0, seconds, len: 0 }
    }

    /// How many there are, those included whose time is over and that nothing has come for since.
    pub fn len(&self) -> u32 {
        self.len
    }

    fn mask(&self) -> u32 {
        self.limit.next_power_of_two() - 1
    }

    fn place(&self, number: u32) -> u32 {
        number & self.mask()
    }

    /// The number of the entry that has a place.
    fn number(&self, place: usize) -> u32 {
        self.first.wrapping_add((place as u32).wrapping_sub(self.place(self.first)) & self.mask())
    }

    fn bucket(&self, tuple: &Tuple) -> usize {
        (tuple.hash(&self.key) as u32 & self.mask()) as usize
    }

    /// Adds one. True: the oldest had to go for it before its time, or there is no place for it.
    pub fn insert(&mut self, now: Time, tuple: &Tuple, rest: &TimeWait) -> bool {
        if self.limit == 0 {
            return true;
        }
        if self.heads.is_empty() {
            let buckets = self.mask() as usize + 1;
            self.heads = vec![0; buckets];
            self.entries.reserve_exact(buckets);
        }
        self.expire(now);
        self.remove(tuple);
        let full = self.next.wrapping_sub(self.first) == self.limit;
        let evicted = full && !self.entries[self.place(self.first) as usize].is_gone();
        if full {
            self.drop_first();
        }
        let (bucket, at) = (self.bucket(tuple), self.place(self.next));
        let entry = Entry { tuple: *tuple, rest: *rest, chain: self.heads[bucket] };
        if at as usize == self.entries.len() {
            self.entries.push(entry);
        } else {
            self.entries[at as usize] = entry;
        }
        self.heads[bucket] = at + 1;
        let second = second(now);
        if self.seconds.back().is_none_or(|&(last, _)| last != second) {
            self.seconds.push_back((second, self.next));
        }
        self.next = self.next.wrapping_add(1);
        self.len += 1;
        evicted
    }

    /// Gives up those whose time is over. Each is given up once: over time this costs no more than their insertion.
    pub fn expire(&mut self, now: Time) {
        let wait = TIME_WAIT.0 / 1_000_000;
        // The last second that is over holds those before the next one's first.
        while self.seconds.front().is_some_and(|&(began, _)| second(now).wrapping_sub(began) > wait) {
            self.seconds.pop_front();
            let alive = self.seconds.front().map_or(self.next, |&(_, first)| first);
            // Some of them may have been dropped for others already.
            while (alive.wrapping_sub(self.first) as i32) > 0 {
                self.drop_first();
            }
        }
    }

    /// Takes the oldest out of its chain, of which it is the last, and out of the ring.
    fn drop_first(&mut self) {
        let first = self.place(self.first);
        let entry = &self.entries[first as usize];
        self.len -= u32::from(!entry.is_gone());
        let bucket = self.bucket(&entry.tuple);
        let mut at = self.heads[bucket];
        if at == first + 1 {
            self.heads[bucket] = 0;
        } else {
            loop {
                let entry = &mut self.entries[at as usize - 1];
                at = entry.chain & PLACE;
                if at == first + 1 {
                    entry.chain &= GONE;
                    break;
                }
            }
        }
        self.first = self.first.wrapping_add(1);
    }

    /// The place of a tuple that still waits.
    fn find(&self, tuple: &Tuple) -> Option<usize> {
        if self.len == 0 {
            return None;
        }
        let mut at = self.heads[self.bucket(tuple)];
        while at != 0 {
            let entry = &self.entries[at as usize - 1];
            if entry.tuple == *tuple && !entry.is_gone() {
                return Some(at as usize - 1);
            }
            at = entry.chain & PLACE;
        }
        None
    }

    /// What is left of a connection, if its time is not over.
    pub fn get(&mut self, now: Time, tuple: &Tuple) -> Option<&mut TimeWait> {
        self.expire(now);
        let at = self.find(tuple)?;
        Some(&mut self.entries[at].rest)
    }

    /// Whether we may open a connection of the same tuple already, and behind which initial sequence number: timestamps tell the
    /// peer the new one's segments from the old one's once they have grown, which takes until the next second (RFC 6191; tcp_tw_reuse of
    /// Linux, `tcp_twsk_unique`). `None`: it does not wait, or it is too early, or there are no timestamps and there must be (`stamped`).
    pub fn behind(&mut self, now: Time, tuple: &Tuple, stamped: bool) -> Option<Seq> {
        self.expire(now);
        let at = self.find(tuple)?;
        let age = |number: u32| number.wrapping_sub(self.first);
        let number = self.number(at);
        let began = self.seconds.partition_point(|&(_, first)| {
            // What came first in a second may be gone already: then it lies before `first`.
            (first.wrapping_sub(self.first) as i32) <= 0 || age(first) <= age(number)
        });
        let (came, _) = *self.seconds.get(began.checked_sub(1)?)?;
        if (second(now).wrapping_sub(came) as i32) <= 0 {
            return None;
        }
        self.entries[at].rest.behind(stamped)
    }

    /// Its time begins anew, but not more than once a second: each time takes a place, and a peer that repeats one segment
    /// would push out all others and make the chain of its bucket as long as the ring.
    pub fn restart(&mut self, now: Time, tuple: &Tuple) {
        let Some(at) = self.find(tuple) else { return };
        let number = self.number(at);
        let fresh = self
            .seconds
            .back()
            .is_some_and(|&(began, first)| began == second(now) && (number.wrapping_sub(first) as i32) >= 0);
        if !fresh {
            let rest = self.entries[at].rest;
            self.insert(now, tuple, &rest);
        }
    }

    /// Gives one up.
    pub fn remove(&mut self, tuple: &Tuple) {
        if let Some(at) = self.find(tuple) {
            self.entries[at].chain |= GONE;
            self.len -= 1;
        }
    }
}

fn second(now: Time) -> u32 {
    (now.0 / 1_000_000) as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tcp::Verdict;
    use proptest::prelude::*;
    use zstack_wire::tcp::{Flags, Header};

    fn tuple(n: u16) -> Tuple {
        Tuple::new("10.0.0.1:80".parse().unwrap(), (std::net::Ipv4Addr::new(10, 1, 0, 1), n).into())
    }

    fn rest(n: u32) -> TimeWait {
        serde_json::from_value(serde_json::json!({
            "nxt": n, "rcv_nxt": n + 1000, "recent": 0, "stamp_offset": 0, "window": 5, "answered": 0, "stamps": false,
        }))
        .unwrap()
    }

    fn waiting(limit: u32) -> Waiting {
        Waiting::new(Key::new(&[3; 16]), limit)
    }

    proptest! {
        /// Against a list: those that should be there are, except for the oldest where there were too many.
        #[test]
        fn behaves_like_a_queue(limit in 1u32..20, ops in prop::collection::vec((0u8..6, 0u16..30, 0u64..9_000_000), 1..400)) {
            let mut waiting = waiting(limit);
            // Tuple, what is left, since when; those that were given up stay, as `None`, in the places that they take.
            let mut model: Vec<(u16, Option<u32>, u64)> = Vec::new();
            let mut now = 0;
            for (i, (op, n, pass)) in ops.into_iter().enumerate() {
                now += pass;
                model.retain(|&(_, _, since)| now / 1_000_000 - since / 1_000_000 <= 60);
                let old = model.iter_mut().find(|(other, rest, _)| *other == n && rest.is_some());
                let stays = |since: u64| op == 1 || op == 2 && since / 1_000_000 == now / 1_000_000;
                let was = old.and_then(|(_, rest, since)| if stays(*since) { *rest } else { rest.take() });
                let restarted = model.iter().all(|&(other, rest, _)| other != n || rest.is_none());
                let insert = match op {
                    0 => {
                        waiting.remove(&tuple(n));
                        None
                    }
                    1 => {
                        prop_assert_eq!(waiting.get(Time(now), &tuple(n)).copied(), was.map(rest));
                        None
                    }
                    2 => {
                        // Expiry is the caller's business here: `get` is what it calls first.
                        waiting.get(Time(now), &tuple(n));
                        waiting.restart(Time(now), &tuple(n));
                        was.filter(|_| restarted)
                    }
                    _ => {
                        let evicted = waiting.insert(Time(now), &tuple(n), &rest(i as u32));
                        prop_assert_eq!(evicted, model.len() == limit as usize && model[0].1.is_some());
                        Some(i as u32)
                    }
                };
                if let Some(i) = insert {
                    if model.len() == limit as usize {
                        model.remove(0);
                    }
                    model.push((n, Some(i), now));
                }
                for n in 0..30 {
                    let expected = model.iter().find_map(|&(other, i, _)| i.filter(|_| other == n));
                    prop_assert_eq!(waiting.get(Time(now), &tuple(n)).copied(), expected.map(rest));
                }
                prop_assert_eq!(waiting.len() as usize, model.iter().filter(|(_, rest, _)| rest.is_some()).count());
                prop_assert!(waiting.seconds.len() <= 62);
            }
        }
    }

    #[test]
    fn a_tuple_may_be_opened_again_from_the_next_second_on_with_timestamps_alone() {
        let mut waiting = waiting(4);
        let stamped = |n| {
            let mut json = serde_json::to_value(rest(n)).unwrap();
            json["stamps"] = true.into();
            serde_json::from_value(json).unwrap()
        };
        // The ring has gone round, and the first second's first entry is not there any more.
        for n in 0..6 {
            waiting.insert(Time(500_000 + u64::from(n) * 200_000), &tuple(n), &stamped(u32::from(n)));
        }
        waiting.insert(Time(1_600_000), &tuple(9), &rest(9));
        assert_eq!(waiting.behind(Time(1_900_000), &tuple(4), true), None, "the second in which it came");
        assert_eq!(waiting.behind(Time(2_000_000), &tuple(4), true), Some(Seq(4 + 65_537)));
        assert_eq!(waiting.behind(Time(2_000_000), &tuple(9), true), None, "no timestamps");
        assert_eq!(waiting.behind(Time(2_000_000), &tuple(9), false), Some(Seq(9 + 65_537)));
        assert_eq!(waiting.behind(Time(1_900_000), &tuple(9), false), None, "too early without, too");
        assert_eq!(waiting.behind(Time(2_000_000), &tuple(0), true), None, "it is gone");
        waiting.restart(Time(2_100_000), &tuple(4));
        assert_eq!(waiting.behind(Time(2_999_999), &tuple(4), true), None);
        assert_eq!(waiting.behind(Time(3_000_000), &tuple(4), true), Some(Seq(4 + 65_537)));
    }

    #[test]
    fn sixty_seconds_and_no_more_than_a_second_longer() {
        let mut waiting = waiting(8);
        waiting.insert(Time(999_999), &tuple(1), &rest(1));
        assert!(waiting.get(Time(60_999_999), &tuple(1)).is_some());
        assert!(waiting.get(Time(62_000_000), &tuple(1)).is_none());
        assert!(waiting.len() == 0);
    }

    #[test]
    fn one_that_restarts_without_end_pushes_nobody_out() {
        let mut waiting = waiting(8);
        waiting.insert(Time(0), &tuple(1), &rest(1));
        waiting.insert(Time(0), &tuple(2), &rest(2));
        for micros in 0..1000 {
            waiting.restart(Time(3_000_000 + micros), &tuple(2));
        }
        assert!(waiting.get(Time(4_000_000), &tuple(1)).is_some());
        assert!(waiting.get(Time(63_000_000), &tuple(2)).is_some());
    }

    #[test]
    fn what_is_found_answers() {
        let mut waiting = waiting(8);
        waiting.insert(Time(0), &tuple(1), &rest(100));
        let syn = Header { seq: Seq(2000), flags: Flags::SYN, ..Header::default() };
        let found = waiting.get(Time(5_000_000), &tuple(1)).unwrap();
        assert_eq!(found.segment(Time(5_000_000), &syn, 0), Verdict::Reuse(Seq(100 + 65_537)));
    }

    #[test]
    fn none_are_kept_where_none_may_be() {
        let mut waiting = waiting(0);
        assert!(waiting.insert(Time(0), &tuple(1), &rest(1)));
        assert!(waiting.get(Time(0), &tuple(1)).is_none());
    }
}
