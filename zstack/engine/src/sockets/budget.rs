//! How much memory rings may take: all together, and those of one account.
//!
//! Each connection is sure of a little in each direction ([`Config::assured`](super::Config::assured)), which counts from its beginning to
//! its end, used or not: so one that stands can always go on. What it takes beyond comes and goes. One account alone may have half of all,
//! and less where others have some, so that there is room for one who comes later.

use std::collections::HashMap;

/// What rings have taken.
#[derive(Debug)]
pub struct Budget {
    most: u64,
    /// What one connection counts that has only what it is sure of.
    assured: u64,
    taken: u64,
    /// Of each account, by its place.
    of: Vec<u64>,
    places: HashMap<u32, u32>,
    denied: u64,
}

impl Budget {
    pub(super) fn new(most: u64, assured: u64) -> Budget {
        Budget { most, assured, taken: 0, of: vec![0], places: HashMap::from([(0, 0)]), denied: 0 }
    }

    /// Whether there is memory for one more connection of an account.
    pub fn admits(&self, account: u32) -> bool {
        let own = self.places.get(&account).map_or(0, |place| self.of[*place as usize]);
        self.has(own, self.assured)
    }

    /// Whether there is memory for one more connection, whosever it is.
    pub fn admits_any(&self) -> bool {
        self.taken.saturating_add(self.assured) <= self.most
    }

    /// Bytes that are taken, or promised.
    pub fn taken(&self) -> u64 {
        self.taken
    }

    /// How often a ring had to stay small.
    pub fn denied(&self) -> u64 {
        self.denied
    }

    fn has(&self, own: u64, more: u64) -> bool {
        own.saturating_add(more) <= self.most.saturating_sub(self.taken)
    }

    /// The place of an account.
    pub(super) fn place(&mut self, account: u32) -> u32 {
        let next = self.of.len() as u32;
        let place = *self.places.entry(account).or_insert(next);
        if place == next {
            self.of.push(0);
        }
        place
    }

    /// Whether the account at `place` may take so much more.
    #[inline]
    pub(super) fn allows(&self, place: u32, bytes: u64) -> bool {
        self.has(self.of[place as usize], bytes)
    }

    /// Whether the account at `place` should give back what it does not need.
    pub(super) fn is_tight(&self, place: u32) -> bool {
        !self.allows(place, self.most / 8)
    }

    /// Takes so much, if the account may.
    #[inline]
    pub(super) fn take(&mut self, place: u32, bytes: u64) -> bool {
        let may = self.allows(place, bytes);
        if may {
            self.charge(place, bytes);
        } else {
            self.denied += 1;
        }
        may
    }

    /// Takes so much.
    #[inline]
    pub(super) fn charge(&mut self, place: u32, bytes: u64) {
        self.taken += bytes;
        self.of[place as usize] += bytes;
    }

    /// Gives so much back.
    #[inline]
    pub(super) fn give(&mut self, place: u32, bytes: u64) {
        debug_assert!(self.of[place as usize] >= bytes);
        self.taken -= bytes;
        self.of[place as usize] -= bytes;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_account_leaves_room_for_others() {
        let mut budget = Budget::new(100, 10);
        let [a, b] = [7, 9].map(|account| budget.place(account));
        assert_eq!([a, b], [budget.place(7), budget.place(9)]);
        let mut take_all = |place| (0..).take_while(|_| budget.take(place, 10)).count();
        assert_eq!([take_all(a), take_all(b), take_all(a)], [5, 3, 0]);
        assert!(!budget.admits(7) && !budget.admits(9) && budget.admits(8) && budget.admits_any());
        assert!(budget.is_tight(a) && budget.denied() == 3);
        budget.give(a, 50);
        assert!(budget.admits(7) && !budget.is_tight(a) && budget.taken() == 30);
    }

    #[test]
    fn without_a_bound_all_is_granted() {
        let mut budget = Budget::new(u64::MAX, 512 << 10);
        for _ in 0..9 {
            assert!(budget.take(0, 1 << 40) && !budget.is_tight(0) && budget.admits(5));
        }
    }
}
