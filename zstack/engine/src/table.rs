//! A hash table from keys that lie elsewhere to u32 indexes: eight bytes a slot, open addressing with linear probing, at most
//! three quarters full, no tombstones. It grows in steps: each insertion moves a few entries, so that none pays for all.

/// How many slots of the table that is being left an insertion empties. The new table has room for as many further insertions
/// as the old one had entries; with four a step the move ends long before.
const STEP: usize = 8;

/// The least number of slots.
const LEAST: usize = 16;

/// A slot: the entry's hash and its index plus one; zero is an empty slot, so that fresh memory is an empty table and nobody
/// pays for clearing it.
#[derive(Clone, Copy, Default)]
struct Slot {
    hash: u32,
    entry: u32,
}

#[derive(Default)]
struct Slots {
    slots: Vec<Slot>,
    entries: usize,
}

impl Slots {
    fn new(len: usize) -> Slots {
        Slots { slots: vec![Slot::default(); len], entries: 0 }
    }

    #[inline]
    fn mask(&self) -> usize {
        self.slots.len() - 1
    }

    #[inline]
    fn find(&self, hash: u32, mut is: impl FnMut(u32) -> bool) -> Option<usize> {
        if self.entries == 0 {
            return None;
        }
        let mask = self.mask();
        let mut at = hash as usize & mask;
        loop {
            let slot = self.slots[at];
            if slot.entry == 0 {
                return None;
            }
            if slot.hash == hash && is(slot.entry - 1) {
                return Some(at);
            }
            at = (at + 1) & mask;
        }
    }

    fn insert(&mut self, slot: Slot) {
        let mask = self.mask();
        let mut at = slot.hash as usize & mask;
        while self.slots[at].entry != 0 {
            at = (at + 1) & mask;
        }
        self.slots[at] = slot;
        self.entries += 1;
    }

    /// Empties a slot and closes the gap: those behind it that would not be found any more move back.
    fn empty(&mut self, mut gap: usize) {
        let mask = self.mask();
        let mut at = gap;
        loop {
            at = (at + 1) & mask;
            let slot = self.slots[at];
            if slot.entry == 0 {
                break;
            }
            // It may move into the gap unless its home lies behind the gap.
            let home = slot.hash as usize & mask;
            if at.wrapping_sub(home) & mask >= at.wrapping_sub(gap) & mask {
                self.slots[gap] = slot;
                gap = at;
            }
        }
        self.slots[gap] = Slot::default();
        self.entries -= 1;
    }
}

/// The table. It keeps no keys: whoever looks up says which indexes have the key.
#[derive(Default)]
pub struct Table {
    new: Slots,
    /// The table that is being left; its slots below `moved` are empty.
    old: Slots,
    moved: usize,
}

impl std::fmt::Debug for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Table").field("entries", &self.len()).field("slots", &self.new.slots.len()).finish()
    }
}

impl Table {
    /// Without entries, and without memory.
    pub fn new() -> Table {
        Table::default()
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.new.entries + self.old.entries
    }

    /// The bytes that its slots take.
    #[cfg(test)]
    pub fn memory(&self) -> usize {
        (self.new.slots.len() + self.old.slots.len()) * std::mem::size_of::<Slot>()
    }

    /// The index with the key: `is` says whether an index has it, `hash` is the key's hash.
    #[inline]
    pub fn look(&self, hash: u32, mut is: impl FnMut(u32) -> bool) -> Option<u32> {
        if let Some(at) = self.new.find(hash, &mut is) {
            return Some(self.new.slots[at].entry - 1);
        }
        let at = self.old.find(hash, is)?;
        Some(self.old.slots[at].entry - 1)
    }

    /// Adds an index whose key has this hash, and is not in the table.
    pub fn insert(&mut self, hash: u32, index: u32) {
        self.step();
        if (self.len() + 1) * 4 > self.new.slots.len() * 3 {
            // The step above has emptied the old table long before the new one is full.
            while self.old.entries > 0 {
                self.step();
            }
            let len = (self.new.slots.len() * 2).max(LEAST);
            self.old = std::mem::replace(&mut self.new, Slots::new(len));
            self.moved = 0;
            self.step();
        }
        self.new.insert(Slot { hash, entry: index + 1 });
    }

    /// Takes out an index whose key has this hash. False: it was not in the table.
    pub fn remove(&mut self, hash: u32, index: u32) -> bool {
        for slots in [&mut self.new, &mut self.old] {
            if let Some(at) = slots.find(hash, |other| other == index) {
                slots.empty(at);
                return true;
            }
        }
        false
    }

    /// Moves a few entries out of the old table.
    fn step(&mut self) {
        if self.old.slots.is_empty() {
            return;
        }
        let mut steps = STEP;
        while self.old.entries > 0 {
            if steps == 0 {
                return;
            }
            steps -= 1;
            let slot = self.old.slots[self.moved];
            if slot.entry == 0 {
                self.moved += 1;
            } else {
                // Another one may move into the slot: it is looked at again.
                self.old.empty(self.moved);
                self.new.insert(slot);
            }
        }
        self.old = Slots::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    /// Few different hashes, so that probing, wrapping and closing gaps happen.
    fn hash(key: u16, spread: u32) -> u32 {
        (u32::from(key) % spread).wrapping_mul(0x9e37_79b9)
    }

    proptest! {
        #[test]
        fn behaves_like_a_map(
            spread in prop_oneof![Just(1u32), Just(3), Just(50), Just(100_000)],
            operations in prop::collection::vec((0u8..4, 0u16..300), 1..800),
        ) {
            let mut table = Table::new();
            let mut model = BTreeMap::new();
            let mut keys: Vec<u16> = Vec::new();
            for (operation, key) in operations {
                let hash = hash(key, spread);
                let found = table.look(hash, |index| keys[index as usize] == key);
                prop_assert_eq!(found, model.get(&key).copied());
                if operation > 0 && found.is_none() {
                    let index = keys.len() as u32;
                    keys.push(key);
                    table.insert(hash, index);
                    model.insert(key, index);
                } else if operation == 0 && let Some(index) = found {
                    prop_assert!(table.remove(hash, index));
                    keys[index as usize] = u16::MAX;
                    model.remove(&key);
                }
                prop_assert_eq!(table.len(), model.len());
            }
            for (&key, &index) in &model {
                prop_assert_eq!(table.look(super::tests::hash(key, spread), |i| keys[i as usize] == key), Some(index));
            }
        }
    }

    #[test]
    fn growth_moves_a_few_entries_at_a_time() {
        let mut table = Table::new();
        let mut most = 0;
        for index in 0..300_000u32 {
            let before = table.old.entries;
            table.insert(index.wrapping_mul(0x9e37_79b9), index);
            most = most.max(before.saturating_sub(table.old.entries));
            assert!(table.len() * 4 <= table.new.slots.len() * 3);
        }
        assert!(most <= 2 * STEP, "{most} entries moved in one insertion");
        for index in (0..300_000u32).step_by(997) {
            assert_eq!(table.look(index.wrapping_mul(0x9e37_79b9), |other| other == index), Some(index));
        }
        // Eight bytes a slot; after growing, the table is three eighths full.
        assert!(table.memory() <= 300_000 * 8 * 8 / 3, "{}", table.memory());
    }
}
