//! Bytes that a receiver can check: of a seed, and of a phase that the stream itself tells.

use std::sync::Arc;
use zstack::sockets::Still;

/// How long the pattern is before it repeats. A prime: no size of a ring, a page or a segment divides it, so bytes in the wrong
/// place are wrong bytes.
const PERIOD: usize = 1_048_573;

/// The bytes in front that tell the phase, little-endian.
pub const HEAD: u64 = 8;

/// The pattern of a seed, in memory: it is sent by reference.
#[derive(Clone)]
pub struct Pattern(Arc<[u8]>);

impl Pattern {
    pub fn new(seed: u64) -> Pattern {
        let mut state = seed;
        let words = (0..PERIOD.div_ceil(8)).flat_map(|_| {
            // SplitMix64.
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = state;
            z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
            (z ^ z >> 31).to_le_bytes()
        });
        Pattern(words.take(PERIOD).collect())
    }

    /// The stream of `phase` from position `at` on, `most` bytes at most; never none.
    pub fn piece(&self, phase: u64, at: u64, most: u64) -> Still {
        if at < HEAD {
            let head = phase.to_le_bytes()[at as usize..].to_vec();
            let most = head.len().min(most as usize);
            return Still::from(head).slice(0..most);
        }
        let from = place(phase, at);
        let to = PERIOD.min(from.saturating_add(most.min(PERIOD as u64) as usize));
        Still::from(self.0.clone()).slice(from..to)
    }
}

fn place(phase: u64, at: u64) -> usize {
    ((phase % PERIOD as u64 + at % PERIOD as u64) % PERIOD as u64) as usize
}

/// Checks a stream piece by piece.
pub struct Checker {
    pattern: Pattern,
    head: [u8; HEAD as usize],
    at: u64,
}

impl Checker {
    pub fn new(pattern: Pattern) -> Checker {
        Checker { pattern, head: [0; HEAD as usize], at: 0 }
    }

    /// The next bytes of the stream.
    ///
    /// # Errors
    /// The position of the first byte that is wrong.
    pub fn check(&mut self, mut bytes: &[u8]) -> Result<(), u64> {
        while self.at < HEAD && !bytes.is_empty() {
            self.head[self.at as usize] = bytes[0];
            self.at += 1;
            bytes = &bytes[1..];
        }
        let phase = u64::from_le_bytes(self.head);
        while !bytes.is_empty() {
            let from = place(phase, self.at);
            let n = bytes.len().min(PERIOD - from);
            let expected = &self.pattern.0[from..from + n];
            if bytes[..n] != *expected {
                let wrong = bytes.iter().zip(expected).position(|(a, b)| a != b).unwrap_or(0);
                return Err(self.at + wrong as u64);
            }
            self.at += n as u64;
            bytes = &bytes[n..];
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream(pattern: &Pattern, phase: u64, len: u64) -> Vec<u8> {
        let mut all = Vec::new();
        while (all.len() as u64) < len {
            let piece = pattern.piece(phase, all.len() as u64, len - all.len() as u64);
            all.extend(piece.bytes().unwrap());
        }
        all
    }

    #[test]
    fn what_is_sent_is_what_is_expected_however_it_is_cut() {
        let pattern = Pattern::new(7);
        let len = PERIOD as u64 * 2 + 100;
        let all = stream(&pattern, PERIOD as u64 - 3, len);
        assert_eq!(all.len() as u64, len);
        let mut checker = Checker::new(pattern);
        for piece in all.chunks(9973) {
            assert_eq!(checker.check(piece), Ok(()));
        }
    }

    #[test]
    fn a_wrong_byte_a_lost_byte_and_another_seed_are_found() {
        let pattern = Pattern::new(1);
        let good = stream(&pattern, 5, 100_000);
        let mut wrong = good.clone();
        wrong[70_000] ^= 1;
        assert_eq!(Checker::new(pattern.clone()).check(&wrong), Err(70_000));
        let mut lost = good.clone();
        lost.remove(4096);
        assert!(Checker::new(pattern.clone()).check(&lost).is_err_and(|at| (4096..4200).contains(&at)));
        assert!(Checker::new(Pattern::new(2)).check(&good).is_err_and(|at| at < 30));
        // A ring's length too early.
        let mut shifted = good.clone();
        shifted.drain(8192..8192 + 65536);
        assert!(Checker::new(pattern).check(&shifted).is_err());
    }
}
