//! SipHash-1-3 with a 128-bit key over a few 64-bit words: the one keyed hash of the engine. Whoever does not know the key
//! cannot choose tuples that collide, nor guess what is derived from it.

/// A key.
#[derive(Clone, Copy)]
pub struct Key {
    k0: u64,
    k1: u64,
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Key(..)")
    }
}

impl Key {
    /// The key of 16 bytes.
    pub fn new(bytes: &[u8; 16]) -> Key {
        let [k0, k1] = [0, 8].map(|at| u64::from_le_bytes(std::array::from_fn(|i| bytes[at + i])));
        Key { k0, k1 }
    }

    /// A key for another purpose, from this one: what is known of its hashes says nothing about those of this one.
    pub fn derive(&self, purpose: u64) -> Key {
        Key { k0: self.hash(&[purpose, 0]), k1: self.hash(&[purpose, 1]) }
    }

    /// SipHash-1-3 of the words in little-endian order.
    #[inline]
    pub fn hash<const N: usize>(&self, words: &[u64; N]) -> u64 {
        let mut v = [
            self.k0 ^ 0x736f_6d65_7073_6575,
            self.k1 ^ 0x646f_7261_6e64_6f6d,
            self.k0 ^ 0x6c79_6765_6e65_7261,
            self.k1 ^ 0x7465_6462_7974_6573,
        ];
        for &word in words {
            v[3] ^= word;
            round(&mut v);
            v[0] ^= word;
        }
        let end = (N as u64 * 8) << 56;
        v[3] ^= end;
        round(&mut v);
        v[0] ^= end;
        v[2] ^= 0xff;
        round(&mut v);
        round(&mut v);
        round(&mut v);
        v[0] ^ v[1] ^ v[2] ^ v[3]
    }
}

#[inline(always)]
fn round(v: &mut [u64; 4]) {
    v[0] = v[0].wrapping_add(v[1]);
    v[1] = v[1].rotate_left(13) ^ v[0];
    v[0] = v[0].rotate_left(32);
    v[2] = v[2].wrapping_add(v[3]);
    v[3] = v[3].rotate_left(16) ^ v[2];
    v[0] = v[0].wrapping_add(v[3]);
    v[3] = v[3].rotate_left(21) ^ v[0];
    v[2] = v[2].wrapping_add(v[1]);
    v[1] = v[1].rotate_left(17) ^ v[2];
    v[2] = v[2].rotate_left(32);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use siphasher::sip::SipHasher13;

    fn oracle(key: &[u8; 16], words: &[u64]) -> u64 {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        SipHasher13::new_with_key(key).hash(&bytes)
    }

    proptest! {
        #[test]
        fn is_siphash_1_3(key: [u8; 16], a: [u64; 1], b: [u64; 2], c: [u64; 5]) {
            prop_assert_eq!(Key::new(&key).hash(&a), oracle(&key, &a));
            prop_assert_eq!(Key::new(&key).hash(&b), oracle(&key, &b));
            prop_assert_eq!(Key::new(&key).hash(&c), oracle(&key, &c));
        }
    }

    #[test]
    fn derived_keys_differ() {
        let key = Key::new(&[7; 16]);
        assert_ne!(key.derive(1).hash(&[5]), key.derive(2).hash(&[5]));
        assert_ne!(key.derive(1).hash(&[5]), key.hash(&[5]));
    }
}
