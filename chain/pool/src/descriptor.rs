//! The name of bytes in a chunk, as it goes from one function to the next.

/// 16 bytes. Whoever receives one has a claim before him: see [`Owners::hand`](crate::Owners::hand).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Descriptor {
    /// Which chunk of the pool.
    pub chunk: u32,
    /// How often the chunk had changed hands when this was written: a name from before is void.
    pub generation: u16,
    /// Where in the chunk the bytes begin.
    pub offset: u16,
    /// How many there are.
    pub len: u16,
    /// The port at which a packet came.
    pub port: u8,
    /// What a function says is to become of it; what the numbers mean is the chain's.
    pub verdict: u8,
    /// What functions tell each other of it.
    pub mark: u32,
}

impl Descriptor {
    /// As it lies on a ring.
    pub fn words(self) -> [u64; 2] {
        [
            u64::from(self.chunk) | u64::from(self.generation) << 32 | u64::from(self.offset) << 48,
            u64::from(self.len)
                | u64::from(self.port) << 16
                | u64::from(self.verdict) << 24
                | u64::from(self.mark) << 32,
        ]
    }

    /// What lay on a ring. Any two words are some descriptor.
    pub fn of(words: [u64; 2]) -> Descriptor {
        let [a, b] = words;
        Descriptor {
            chunk: a as u32,
            generation: (a >> 32) as u16,
            offset: (a >> 48) as u16,
            len: b as u16,
            port: (b >> 16) as u8,
            verdict: (b >> 24) as u8,
            mark: (b >> 32) as u32,
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::Descriptor;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn it_lies_on_a_ring_as_it_is(words in any::<[u64; 2]>()) {
            prop_assert_eq!(Descriptor::of(words).words(), words);
        }
    }
}
