//! The bytes of test streams: those at each position are known, and differ from those of other positions nearby.

use std::sync::OnceLock;

/// A prime, so that a shift by a power of two, a segment or a window shows.
const LEN: usize = 1_048_573;

/// The pattern, which repeats.
pub fn pattern() -> &'static [u8] {
    static BYTES: OnceLock<Vec<u8>> = OnceLock::new();
    BYTES.get_or_init(|| {
        let mut state = 0x9e37_79b9_7f4a_7c15u64;
        let mut next = || {
            // xorshift64
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 56) as u8
        };
        (0..LEN).map(|_| next()).collect()
    })
}

/// The longest piece of the pattern from stream position `at` on, `most` bytes at most.
pub fn piece(at: u64, most: u64) -> &'static [u8] {
    let start = (at % LEN as u64) as usize;
    let len = most.min((LEN - start) as u64) as usize;
    &pattern()[start..start + len]
}

/// The first position at which `bytes`, those of the stream from `at` on, are not the pattern's.
pub fn wrong(at: u64, bytes: &[u8]) -> Option<u64> {
    let mut done = 0;
    while done < bytes.len() {
        let here = at + done as u64;
        let right = piece(here, (bytes.len() - done) as u64);
        let got = &bytes[done..done + right.len()];
        if got != right {
            let first = got.iter().zip(right).position(|(a, b)| a != b).unwrap_or(0);
            return Some(here + first as u64);
        }
        done += right.len();
    }
    None
}
