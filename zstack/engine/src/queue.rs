//! Lists of entries by index, whose links lie with the entries: first in, first out, and out of the middle.

/// No entry.
const NONE: u32 = u32::MAX;

/// An entry's place in one list.
#[derive(Clone, Copy, Debug)]
pub struct Link {
    next: u32,
    previous: u32,
}

impl Default for Link {
    fn default() -> Link {
        Link { next: NONE, previous: NONE }
    }
}

/// Whoever keeps the entries.
pub trait Links {
    /// The place of an entry.
    fn link(&mut self, index: u32) -> &mut Link;
}

/// A list.
#[derive(Clone, Copy, Debug)]
pub struct Queue {
    first: u32,
    last: u32,
    len: u32,
}

impl Default for Queue {
    fn default() -> Queue {
        Queue { first: NONE, last: NONE, len: 0 }
    }
}

impl Queue {
    /// How many entries there are.
    #[inline]
    pub fn len(&self) -> u32 {
        self.len
    }

    /// Whether there are none.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Adds an entry, which must be in no list, behind the others.
    #[inline]
    pub fn push(&mut self, links: &mut impl Links, index: u32) {
        *links.link(index) = Link { next: NONE, previous: self.last };
        match self.last {
            NONE => self.first = index,
            last => links.link(last).next = index,
        }
        self.last = index;
        self.len += 1;
    }

    /// Takes the first entry out.
    #[inline]
    pub fn pop(&mut self, links: &mut impl Links) -> Option<u32> {
        let first = self.first;
        if first == NONE {
            return None;
        }
        self.first = std::mem::take(links.link(first)).next;
        match self.first {
            NONE => self.last = NONE,
            next => links.link(next).previous = NONE,
        }
        self.len -= 1;
        Some(first)
    }

    /// Takes an entry out, which must be in this list.
    #[inline]
    pub fn remove(&mut self, links: &mut impl Links, index: u32) {
        let Link { next, previous } = std::mem::take(links.link(index));
        match previous {
            NONE => self.first = next,
            previous => links.link(previous).next = next,
        }
        match next {
            NONE => self.last = previous,
            next => links.link(next).previous = previous,
        }
        self.len -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::VecDeque;

    impl Links for Vec<Link> {
        fn link(&mut self, index: u32) -> &mut Link {
            &mut self[index as usize]
        }
    }

    proptest! {
        #[test]
        fn behaves_like_a_deque(ops in prop::collection::vec(prop::option::of(0u32..12), 1..200)) {
            let mut links = vec![Link::default(); 12];
            let mut queue = Queue::default();
            let mut model = VecDeque::new();
            for op in ops {
                match op {
                    None => prop_assert_eq!(queue.pop(&mut links), model.pop_front()),
                    Some(index) => match model.iter().position(|&other| other == index) {
                        Some(at) => {
                            queue.remove(&mut links, index);
                            model.remove(at);
                        }
                        None => {
                            queue.push(&mut links, index);
                            model.push_back(index);
                        }
                    },
                }
                prop_assert_eq!(queue.len() as usize, model.len());
                prop_assert_eq!(queue.is_empty(), model.is_empty());
            }
        }
    }
}
