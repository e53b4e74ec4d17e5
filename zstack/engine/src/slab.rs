//! Entries by dense index, each index with a generation. Memory comes in chunks, so that growing moves nothing; the lowest
//! free index is taken first.

/// Entries of a chunk, as a power of two.
const CHUNK: u32 = 8;

/// Its length is known: a place in it needs no check.
type Chunk<T> = Box<[Slot<T>; 1 << CHUNK]>;

struct Slot<T> {
    generation: u32,
    value: Option<T>,
}

/// The entries.
pub struct Slab<T> {
    chunks: Vec<Chunk<T>>,
    free: Free,
    len: u32,
}

impl<T> Default for Slab<T> {
    fn default() -> Slab<T> {
        Slab { chunks: Vec::new(), free: Free::default(), len: 0 }
    }
}

impl<T> Slab<T> {
    /// Without entries, and without memory.
    pub fn new() -> Slab<T> {
        Slab::default()
    }

    /// How many entries there are.
    pub fn len(&self) -> u32 {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The number of indexes that were ever in use: all entries lie below it.
    pub fn end(&self) -> u32 {
        (self.chunks.len() as u32) << CHUNK
    }

    /// Adds an entry; its index and generation.
    pub fn insert(&mut self, value: T) -> (u32, u32) {
        let index = self.free.take().unwrap_or_else(|| self.grow());
        let slot = self.slot_mut(index).expect("a free index has a slot");
        slot.value = Some(value);
        let generation = slot.generation;
        self.len += 1;
        (index, generation)
    }

    #[cold]
    fn grow(&mut self) -> u32 {
        let first = self.end();
        let chunk: Box<[Slot<T>]> = (0..1 << CHUNK).map(|_| Slot { generation: 0, value: None }).collect();
        self.chunks.extend(Chunk::try_from(chunk));
        self.free.add(first, 1 << CHUNK);
        self.free.take().expect("a new chunk is free")
    }

    /// Takes an entry out; its name is stale from now on.
    pub fn remove(&mut self, index: u32) -> Option<T> {
        let slot = self.slot_mut(index)?;
        let value = slot.value.take()?;
        slot.generation = slot.generation.wrapping_add(1);
        self.free.give(index);
        self.len -= 1;
        Some(value)
    }

    #[inline]
    fn slot_mut(&mut self, index: u32) -> Option<&mut Slot<T>> {
        Some(&mut self.chunks.get_mut((index >> CHUNK) as usize)?[(index & ((1 << CHUNK) - 1)) as usize])
    }

    #[inline]
    fn slot(&self, index: u32) -> Option<&Slot<T>> {
        Some(&self.chunks.get((index >> CHUNK) as usize)?[(index & ((1 << CHUNK) - 1)) as usize])
    }

    /// The entry of an index, of whatever generation.
    #[inline]
    pub fn at(&self, index: u32) -> Option<&T> {
        self.slot(index)?.value.as_ref()
    }

    /// The entry of an index, of whatever generation.
    #[inline]
    pub fn at_mut(&mut self, index: u32) -> Option<&mut T> {
        self.slot_mut(index)?.value.as_mut()
    }

    /// The entry of a name.
    #[inline]
    pub fn get(&self, index: u32, generation: u32) -> Option<&T> {
        self.slot(index).filter(|slot| slot.generation == generation)?.value.as_ref()
    }

    /// The entry of a name.
    #[inline]
    pub fn get_mut(&mut self, index: u32, generation: u32) -> Option<&mut T> {
        self.slot_mut(index).filter(|slot| slot.generation == generation)?.value.as_mut()
    }

    /// The entry of an index with its generation.
    #[inline]
    pub fn entry_mut(&mut self, index: u32) -> Option<(u32, &mut T)> {
        let slot = self.slot_mut(index)?;
        Some((slot.generation, slot.value.as_mut()?))
    }

    /// The generation of an index that is in use.
    #[inline]
    pub fn generation(&self, index: u32) -> Option<u32> {
        self.slot(index).filter(|slot| slot.value.is_some()).map(|slot| slot.generation)
    }

    /// All entries: index, generation, entry.
    pub fn iter(&self) -> impl Iterator<Item = (u32, u32, &T)> + '_ {
        self.chunks
            .iter()
            .flat_map(|chunk| chunk.iter())
            .zip(0..)
            .filter_map(|(slot, i)| Some((i, slot.generation, slot.value.as_ref()?)))
    }
}

/// Free indexes: a bit each, and above each 64 bits one that says whether any of them is set.
#[derive(Default)]
struct Free {
    levels: Vec<Vec<u64>>,
}

impl Free {
    /// Takes the lowest.
    fn take(&mut self) -> Option<u32> {
        let top = *self.levels.last()?.first()?;
        if top == 0 {
            return None;
        }
        let mut at = 0usize;
        for level in self.levels.iter().rev() {
            at = at * 64 + level[at].trailing_zeros() as usize;
        }
        let index = at as u32;
        for level in &mut self.levels {
            let word = &mut level[at / 64];
            *word &= !(1 << (at % 64));
            if *word != 0 {
                break;
            }
            at /= 64;
        }
        Some(index)
    }

    fn give(&mut self, index: u32) {
        let mut at = index as usize;
        for level in &mut self.levels {
            let word = &mut level[at / 64];
            let had = *word != 0;
            *word |= 1 << (at % 64);
            if had {
                break;
            }
            at /= 64;
        }
    }

    /// Adds `n` indexes from `first` on.
    fn add(&mut self, first: u32, n: u32) {
        let mut words = (first + n).div_ceil(64) as usize;
        for depth in 0.. {
            if depth == self.levels.len() {
                // A new top: one bit for each word of the level below.
                let below = self.levels.last().map_or(&[][..], |level| &level[..]);
                let mut top = vec![0u64; words];
                for (i, _) in below.iter().enumerate().filter(|(_, word)| **word != 0) {
                    top[i / 64] |= 1 << (i % 64);
                }
                self.levels.push(top);
            }
            let len = self.levels[depth].len();
            self.levels[depth].resize(words.max(len), 0);
            if words == 1 && depth + 1 == self.levels.len() {
                break;
            }
            words = words.div_ceil(64);
        }
        for index in first..first + n {
            self.give(index);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    proptest! {
        #[test]
        fn behaves_like_a_map(operations in prop::collection::vec(any::<u16>(), 1..1200)) {
            let mut slab = Slab::new();
            let mut model: BTreeMap<u32, (u32, u16)> = BTreeMap::new();
            let mut stale = Vec::new();
            for value in operations {
                if value % 3 > 0 {
                    let lowest = model.keys().zip(0..).find(|(index, i)| *index != i).map_or(model.len() as u32, |(_, i)| i);
                    let (index, generation) = slab.insert(value);
                    prop_assert_eq!(index, lowest);
                    model.insert(index, (generation, value));
                } else if let Some((&index, &(generation, held))) = model.iter().nth(usize::from(value) % model.len().max(1)) {
                    prop_assert_eq!(slab.remove(index), Some(held));
                    model.remove(&index);
                    stale.push((index, generation));
                }
                prop_assert_eq!(slab.len() as usize, model.len());
            }
            for (&index, &(generation, value)) in &model {
                prop_assert_eq!(slab.get(index, generation), Some(&value));
            }
            for (index, generation) in stale {
                prop_assert_eq!(slab.get(index, generation), None);
            }
            let all: Vec<_> = slab.iter().map(|(index, generation, &value)| (index, (generation, value))).collect();
            prop_assert_eq!(all, model.into_iter().collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_hundred_thousand_and_back() {
        let mut slab = Slab::new();
        for i in 0..100_000u32 {
            assert_eq!(slab.insert(i), (i, 0));
        }
        for i in [70_000, 3, 99_999, 64, 4095, 4096] {
            assert_eq!(slab.remove(i), Some(i));
        }
        for i in [3, 64, 4095, 4096, 70_000, 99_999, 100_000] {
            assert_eq!(slab.insert(i).0, i);
        }
        assert_eq!(slab.get(3, 0), None);
        assert_eq!(slab.get_mut(3, 1), Some(&mut 3));
        assert_eq!(slab.generation(3), Some(1));
    }
}
