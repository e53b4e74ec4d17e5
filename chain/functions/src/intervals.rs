//! Which of many rules a value is under: the values are cut where a rule's range begins or ends, and each piece has a bit for each rule.

/// Pieces of the values of one kind.
#[derive(Debug)]
pub(crate) struct Intervals<T> {
    /// Where each piece but the first begins.
    starts: Vec<T>,
    /// The rules of each piece, `words` words each.
    rules: Vec<u64>,
    words: usize,
}

impl<T: Copy + Ord> Intervals<T> {
    /// Of ranges, first and last value, by rule; `None`: the rule takes any value. `next` gives the value behind a value, if there is one.
    pub(crate) fn new(ranges: &[Option<(T, T)>], next: impl Fn(T) -> Option<T>) -> Intervals<T> {
        let words = ranges.len().div_ceil(64);
        let mut starts: Vec<T> = Vec::new();
        for (first, last) in ranges.iter().flatten() {
            starts.push(*first);
            starts.extend(next(*last));
        }
        starts.sort_unstable();
        starts.dedup();
        let mut rules = vec![0; (starts.len() + 1) * words];
        for (n, range) in ranges.iter().enumerate() {
            for piece in 0..=starts.len() {
                // The piece before the first start is under none of the ranges: it would begin there.
                let begins = piece.checked_sub(1).map(|p| starts[p]);
                let under = range.is_none_or(|(first, last)| begins.is_some_and(|b| first <= b && b <= last));
                rules[piece * words + n / 64] |= u64::from(under) << (n % 64);
            }
        }
        Intervals { starts, rules, words }
    }

    /// The rules that the value is under.
    #[inline]
    pub(crate) fn of(&self, value: T) -> &[u64] {
        let piece = self.starts.partition_point(|start| *start <= value);
        &self.rules[piece * self.words..][..self.words]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_value_is_under_the_ranges_that_contain_it(
            ranges in prop::collection::vec(prop::option::of((any::<u8>(), any::<u8>())), 0..140),
        ) {
            let ranges: Vec<_> = ranges.iter().map(|r| r.map(|(a, b)| (a.min(b), a.max(b)))).collect();
            let intervals = Intervals::new(&ranges, |v| v.checked_add(1));
            for value in 0..=u8::MAX {
                let under = intervals.of(value);
                for (n, range) in ranges.iter().enumerate() {
                    let expected = range.is_none_or(|(first, last)| first <= value && value <= last);
                    prop_assert_eq!(under[n / 64] >> (n % 64) & 1 == 1, expected);
                }
            }
        }
    }
}
