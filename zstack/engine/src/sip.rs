//! SipHash-1-3 with a 128-bit key over a few 64-bit words: the one keyed hash of the engine. Whoever does not know the key
//! cannot choose tuples that collide, nor guess what is derived from it.

use siphasher::sip::SipHasher13;

/// A key.
#[derive(Clone, Copy)]
pub struct Key([u8; 16]);

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Key(..)")
    }
}

impl Key {
    /// The key of 16 bytes.
    pub fn new(bytes: &[u8; 16]) -> Key {
        Key(*bytes)
    }

    /// A key for another purpose, from this one: what is known of its hashes says nothing about those of this one.
    pub fn derive(&self, purpose: u64) -> Key {
        let [low, high] = [0, 1].map(|half| self.hash(&[purpose, half]).to_le_bytes());
        Key(std::array::from_fn(|i| if i < 8 { low[i] } else { high[i - 8] }))
    }

    /// The hash of the words in little-endian order.
    #[inline]
    pub fn hash<const N: usize>(&self, words: &[u64; N]) -> u64 {
        SipHasher13::new_with_key(&self.0).hash(words.map(u64::to_le_bytes).as_flattened())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn derived_keys_differ() {
        let key = Key::new(&[7; 16]);
        assert_ne!(key.derive(1).hash(&[5]), key.derive(2).hash(&[5]));
        assert_ne!(key.derive(1).hash(&[5]), key.hash(&[5]));
    }
}
