//! A small seeded random generator, and the byte patterns that streams are filled with.

/// SplitMix64 (Steele, Lea, Flood 2014): tiny, and good enough to pick test cases.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// A generator whose whole sequence follows from `seed`.
    pub fn new(seed: u64) -> Rng {
        let mut rng = Rng(seed ^ 0x6375_6c76_6572_7421);
        rng.next();
        rng
    }

    /// The next 64 bits.
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number in `0..n`; 0 when `n` is 0.
    pub fn below(&mut self, n: usize) -> usize {
        if n == 0 { 0 } else { (self.next() % n as u64) as usize }
    }

    /// A number in `lo..=hi`.
    pub fn range(&mut self, lo: usize, hi: usize) -> usize {
        lo + self.below(hi + 1 - lo)
    }

    /// True in `percent` of 100 cases.
    pub fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    /// One of `items`, which must not be empty.
    pub fn pick<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len())]
    }

    /// A length that favours the edges: 1 byte, small, around a page, up to `max`.
    pub fn length(&mut self, max: usize) -> usize {
        let n = match self.below(10) {
            0..=1 => 1,
            2..=4 => self.range(2, 64),
            5..=6 => self.range(65, 1500),
            7 => self.range(1500, 5000),
            _ => self.range(1, max.max(1)),
        };
        n.min(max).max(1)
    }
}

/// Byte `at` of the pattern named `seed`.
pub fn pattern(seed: u64, at: u64) -> u8 {
    let x = at.wrapping_add(seed.wrapping_mul(0x2545_f491_4f6c_dd1d)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    // Mixed once more: the multiples alone look alike at many distances, and misplaced bytes must be found again.
    ((x ^ x >> 32).wrapping_mul(0xd6e8_feb8_6659_fd93) >> 56) as u8
}

/// The first `n` bytes of the pattern named `seed`.
pub fn fill(seed: u64, n: usize) -> Vec<u8> {
    (0..n as u64).map(|at| pattern(seed, at)).collect()
}

/// FNV-1a over `bytes`, continuing from `hash` (start with [`HASH_START`]).
pub fn hash(hash: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(hash, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x100_0000_01b3))
}

/// See [`hash`].
pub const HASH_START: u64 = 0xcbf2_9ce4_8422_2325;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_seeds_give_equal_sequences_and_different_seeds_do_not() {
        let take = |seed| {
            let mut r = Rng::new(seed);
            (0..32).map(|_| r.next()).collect::<Vec<_>>()
        };
        assert_eq!(take(7), take(7));
        assert_ne!(take(7), take(8));
    }

    #[test]
    fn lengths_stay_in_bounds() {
        let mut r = Rng::new(1);
        for max in [1, 2, 100, 70_000] {
            for _ in 0..1000 {
                let n = r.length(max);
                assert!((1..=max).contains(&n));
            }
        }
    }

    #[test]
    fn a_shifted_pattern_differs() {
        let a = fill(3, 300);
        assert_ne!(a[1..], a[..299]);
        assert_ne!(fill(3, 300), fill(4, 300));
    }
}
