//! Random numbers that a seed determines (SplitMix64): the same on every machine, for ever.

/// A generator.
#[derive(Clone, Debug)]
pub struct Rng(u64);

/// Spreads every bit of `x` over all bits of the result.
#[inline]
pub fn mix(x: u64) -> u64 {
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

impl Rng {
    /// The generator of a seed.
    pub fn new(seed: u64) -> Rng {
        Rng(mix(seed ^ 0x5851_f42d_4c95_7f2d))
    }

    /// The next 64 bits.
    #[inline]
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// A number from 0 up to, not including, `n`; 0 if `n` is 0.
    #[inline]
    pub fn below(&mut self, n: u64) -> u64 {
        if n == 0 { 0 } else { ((u128::from(self.draw()) * u128::from(n)) >> 64) as u64 }
    }

    /// A number from `low` to `high`, both included.
    #[inline]
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high.saturating_sub(low) + 1)
    }

    /// As `between`, but each doubling is as likely as the others: small numbers are not rare.
    pub fn scale(&mut self, low: u64, high: u64) -> u64 {
        let (a, b) = ((low.max(1) as f64).ln(), (high.max(1) as f64).ln());
        let unit = (self.draw() >> 11) as f64 / (1u64 << 53) as f64;
        ((a + (b - a) * unit).exp() as u64).clamp(low, high)
    }

    /// True `n` times of 10,000.
    #[inline]
    pub fn often(&mut self, n: u32) -> bool {
        n != 0 && self.below(10_000) < u64::from(n)
    }

    /// One of them.
    #[inline]
    pub fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len() as u64) as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_same_numbers_and_they_lie_within_bounds() {
        let (mut a, mut b) = (Rng::new(7), Rng::new(7));
        assert_eq!((0..100).map(|_| a.draw()).collect::<Vec<_>>(), (0..100).map(|_| b.draw()).collect::<Vec<_>>());
        assert_ne!(Rng::new(8).draw(), Rng::new(7).draw());
        for _ in 0..1000 {
            assert!((3..=9).contains(&a.between(3, 9)));
            assert!((3..=9_000).contains(&a.scale(3, 9_000)));
            assert!(a.below(5) < 5);
        }
        assert!((0..1000).filter(|_| a.scale(1, 1_000_000) < 1000).count() > 300);
        assert!(!a.often(0) && a.often(10_000));
    }
}
