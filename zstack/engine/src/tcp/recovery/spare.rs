//! Boxes that are used again: what a connection needs only at times is taken from here, and given back.

use std::collections::VecDeque;

/// What can be emptied for its next user.
pub trait Reuse: Default {
    /// Makes it as good as new; memory that it has allocated may stay, as far as the next user is likely to need it.
    fn reuse(&mut self);
}

/// Empties a queue, and gives its memory up if it is for more than `most`.
pub(super) fn empty<T>(queue: &mut VecDeque<T>, most: usize) {
    if queue.capacity() > most { *queue = VecDeque::new() } else { queue.clear() }
}

/// A free list. It owns what was given back, up to a number; more is freed.
#[derive(Debug)]
pub struct Spare<T> {
    free: Vec<Box<T>>,
    keep: usize,
}

impl<T: Reuse> Spare<T> {
    /// An empty list that keeps at most `keep` boxes.
    pub fn new(keep: usize) -> Spare<T> {
        Spare { free: Vec::new(), keep }
    }

    /// A box as good as new.
    #[inline]
    pub fn take(&mut self) -> Box<T> {
        self.free.pop().unwrap_or_default()
    }

    /// Takes a box back.
    #[inline]
    pub fn give(&mut self, mut used: Box<T>) {
        if self.free.len() < self.keep {
            used.reuse();
            self.free.push(used);
        }
    }

    /// How many boxes lie ready.
    pub fn len(&self) -> usize {
        self.free.len()
    }

    /// Whether none lies ready.
    pub fn is_empty(&self) -> bool {
        self.free.is_empty()
    }
}

impl<T: Reuse> Default for Spare<T> {
    fn default() -> Spare<T> {
        Spare::new(1024)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Thing(Vec<u8>);
    impl Reuse for Thing {
        fn reuse(&mut self) {
            self.0.clear();
        }
    }

    #[test]
    fn a_box_comes_back_empty_and_with_its_memory() {
        let mut spare: Spare<Thing> = Spare::new(1);
        let mut thing = spare.take();
        thing.0.extend([1, 2, 3]);
        let capacity = thing.0.capacity();
        spare.give(thing);
        assert_eq!(spare.len(), 1);
        let thing = spare.take();
        assert!(thing.0.is_empty() && thing.0.capacity() == capacity && spare.is_empty());
    }

    #[test]
    fn no_more_are_kept_than_was_said() {
        let mut spare: Spare<Thing> = Spare::new(1);
        let (one, two) = (spare.take(), spare.take());
        spare.give(one);
        spare.give(two);
        assert_eq!(spare.len(), 1);
    }
}
