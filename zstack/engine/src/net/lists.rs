//! Doubly linked lists over one set of slots: each slot is in one list at a time, and moves in constant time.

/// No slot.
pub(super) const NONE: u16 = u16::MAX;

#[derive(Clone, Copy, Debug)]
struct Link {
    before: u16,
    after: u16,
    list: u8,
}

#[derive(Clone, Copy, Debug)]
struct Ends {
    first: u16,
    last: u16,
    len: u16,
}

/// The lists; at first all slots are in list 0, in their order.
#[derive(Debug)]
pub(super) struct Lists<const N: usize> {
    links: Vec<Link>,
    ends: [Ends; N],
}

impl<const N: usize> Lists<N> {
    /// Lists of `slots` slots: fewer than [`NONE`].
    pub fn new(slots: u16) -> Lists<N> {
        let mut lists = Lists {
            links: Vec::with_capacity(usize::from(slots)),
            ends: [Ends { first: NONE, last: NONE, len: 0 }; N],
        };
        for slot in 0..slots {
            lists.links.push(Link { before: NONE, after: NONE, list: 0 });
            lists.append(slot, 0);
        }
        lists
    }

    /// The first slot of a list.
    pub fn first(&self, list: u8) -> Option<u16> {
        Some(self.ends[usize::from(list)].first).filter(|&slot| slot != NONE)
    }

    /// How many slots are in a list.
    pub fn len(&self, list: u8) -> usize {
        usize::from(self.ends[usize::from(list)].len)
    }

    /// The list that a slot is in.
    pub fn of(&self, slot: u16) -> u8 {
        self.links[usize::from(slot)].list
    }

    /// Moves a slot to the end of a list.
    pub fn append_to(&mut self, slot: u16, list: u8) {
        let Link { before, after, list: old } = self.links[usize::from(slot)];
        let ends = &mut self.ends[usize::from(old)];
        ends.len -= 1;
        match before {
            NONE => ends.first = after,
            _ => self.links[usize::from(before)].after = after,
        }
        match after {
            NONE => ends.last = before,
            _ => self.links[usize::from(after)].before = before,
        }
        self.append(slot, list);
    }

    fn append(&mut self, slot: u16, list: u8) {
        let ends = &mut self.ends[usize::from(list)];
        let before = std::mem::replace(&mut ends.last, slot);
        ends.len += 1;
        match before {
            NONE => ends.first = slot,
            _ => self.links[usize::from(before)].after = slot,
        }
        self.links[usize::from(slot)] = Link { before, after: NONE, list };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn contents(lists: &Lists<3>, list: u8) -> Vec<u16> {
        std::iter::successors(lists.first(list), |&slot| {
            Some(lists.links[usize::from(slot)].after).filter(|&slot| slot != NONE)
        })
        .collect()
    }

    proptest! {
        #[test]
        fn lists_are_as_vectors(moves in prop::collection::vec((0u16..8, 0u8..3), 0..200)) {
            let mut lists = Lists::<3>::new(8);
            let mut model = [(0..8).collect::<Vec<u16>>(), Vec::new(), Vec::new()];
            for (slot, list) in moves {
                lists.append_to(slot, list);
                model.iter_mut().for_each(|list| list.retain(|&other| other != slot));
                model[usize::from(list)].push(slot);
                for list in 0..3u8 {
                    prop_assert_eq!(&contents(&lists, list), &model[usize::from(list)]);
                    prop_assert_eq!(lists.len(list), model[usize::from(list)].len());
                }
                prop_assert_eq!(lists.of(slot), list);
            }
        }
    }
}
