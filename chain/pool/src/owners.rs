//! Who has which chunk. The manager's own memory: no function can write here.

use crate::Descriptor;

/// One who can have chunks.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Party(pub u16);

/// The manager itself.
pub const MANAGER: Party = Party(0);

/// Nobody has the chunk.
const FREE: Party = Party(u16::MAX);

/// Why a descriptor is not taken from a function.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refused {
    /// The pool has no such chunk.
    NoSuchChunk,
    /// The function does not have it, or named it as it was before it changed hands.
    NotYours,
    /// It names bytes outside of the chunk.
    OutOfBounds,
}

#[derive(Clone, Copy)]
struct Entry {
    owner: Party,
    generation: u16,
}

/// The owner of each chunk of a pool.
pub struct Owners {
    entries: Vec<Entry>,
    free: Vec<u32>,
    held: Vec<u32>,
    chunk_len: usize,
}

impl Owners {
    /// Of a pool whose chunks nobody has. Parties are numbered below `parties`; the [`MANAGER`] is one of them.
    ///
    /// # Panics
    /// If there are no parties, or more than 65,534.
    pub fn new(chunks: u32, chunk_len: usize, parties: u16) -> Owners {
        assert!((1..FREE.0).contains(&parties), "{parties} parties");
        Owners {
            entries: vec![Entry { owner: FREE, generation: 0 }; chunks as usize],
            free: (0..chunks).rev().collect(),
            held: vec![0; parties.into()],
            chunk_len,
        }
    }

    /// A free chunk for the manager; `None`: there is none. The one that was freed last, whose bytes the CPU has at hand.
    pub fn take(&mut self) -> Option<Descriptor> {
        let chunk = self.free.pop()?;
        let generation = self.moves(chunk, MANAGER);
        Some(Descriptor { chunk, generation, ..Descriptor::default() })
    }

    /// `from` has sent this, and `to` has the chunk from now on. The descriptor as `to` is to name it.
    pub fn hand(&mut self, d: Descriptor, from: Party, to: Party) -> Result<Descriptor, Refused> {
        self.check(&d, from)?;
        Ok(Descriptor { generation: self.moves(d.chunk, to), ..d })
    }

    /// `from` has no more use for the chunk.
    pub fn give_back(&mut self, d: Descriptor, from: Party) -> Result<(), Refused> {
        self.check(&d, from)?;
        self.frees(d.chunk);
        Ok(())
    }

    /// `party` has ended: all that it had is free. How many chunks that were.
    pub fn has_ended(&mut self, party: Party) -> u32 {
        let had = self.held(party);
        let mut left = had;
        for chunk in 0..self.entries.len() as u32 {
            if left == 0 {
                break;
            }
            if self.entries[chunk as usize].owner == party {
                self.frees(chunk);
                left -= 1;
            }
        }
        had
    }

    /// How many chunks `party` has.
    pub fn held(&self, party: Party) -> u32 {
        self.held[usize::from(party.0)]
    }

    /// How many chunks nobody has.
    pub fn free(&self) -> u32 {
        self.free.len() as u32
    }

    fn check(&self, d: &Descriptor, from: Party) -> Result<(), Refused> {
        let entry = self.entries.get(d.chunk as usize).ok_or(Refused::NoSuchChunk)?;
        if entry.owner != from || entry.generation != d.generation {
            return Err(Refused::NotYours);
        }
        if usize::from(d.offset) + usize::from(d.len) > self.chunk_len {
            return Err(Refused::OutOfBounds);
        }
        Ok(())
    }

    fn moves(&mut self, chunk: u32, to: Party) -> u16 {
        let entry = &mut self.entries[chunk as usize];
        if entry.owner != FREE {
            self.held[usize::from(entry.owner.0)] -= 1;
        }
        self.held[usize::from(to.0)] += 1;
        entry.owner = to;
        entry.generation = entry.generation.wrapping_add(1);
        entry.generation
    }

    fn frees(&mut self, chunk: u32) {
        let entry = &mut self.entries[chunk as usize];
        self.held[usize::from(entry.owner.0)] -= 1;
        entry.owner = FREE;
        self.free.push(chunk);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    const CHUNKS: u32 = 6;
    const PARTIES: u16 = 4;

    #[derive(Clone, Debug)]
    enum Step {
        Take,
        /// Of what was ever named, this one, by this party, to that one.
        Hand(usize, u16, u16),
        GiveBack(usize, u16),
        Forged(u32, u16, u16, u16, u16),
        Ends(u16),
    }

    fn step() -> impl Strategy<Value = Step> {
        let party = 0..PARTIES;
        prop_oneof![
            3 => Just(Step::Take),
            5 => (any::<usize>(), party.clone(), party.clone()).prop_map(|(d, a, b)| Step::Hand(d, a, b)),
            2 => (any::<usize>(), party.clone()).prop_map(|(d, a)| Step::GiveBack(d, a)),
            2 => (0..CHUNKS + 2, any::<u16>(), any::<u16>(), any::<u16>(), party.clone())
                .prop_map(|(c, g, o, l, a)| Step::Forged(c, g, o, l, a)),
            1 => (1..PARTIES).prop_map(Step::Ends),
        ]
    }

    proptest! {
        /// Against a list of who has what: a chunk has one owner, none is lost or free twice, and nobody moves what he does not have, by a name
        /// that is old or forged.
        #[test]
        fn each_chunk_has_one_owner(steps in proptest::collection::vec(step(), 1..200)) {
            let mut owners = Owners::new(CHUNKS, 256, PARTIES);
            let mut truth: HashMap<u32, (u16, Descriptor)> = HashMap::new();
            let mut named: Vec<Descriptor> = Vec::new();
            for step in steps {
                match step {
                    Step::Take => {
                        let got = owners.take();
                        prop_assert_eq!(got.is_some(), truth.len() < CHUNKS as usize);
                        if let Some(d) = got {
                            let d = Descriptor { offset: 64, len: 100, ..d };
                            prop_assert!(truth.insert(d.chunk, (0, d)).is_none());
                            named.push(d);
                        }
                    }
                    Step::Hand(which, from, to) if !named.is_empty() => {
                        let d = named[which % named.len()];
                        let his = truth.get(&d.chunk) == Some(&(from, d));
                        let handed = owners.hand(d, Party(from), Party(to));
                        prop_assert_eq!(handed.is_ok(), his);
                        if let Ok(d) = handed {
                            truth.insert(d.chunk, (to, d));
                            named.push(d);
                        }
                    }
                    Step::GiveBack(which, from) if !named.is_empty() => {
                        let d = named[which % named.len()];
                        let his = truth.get(&d.chunk) == Some(&(from, d));
                        prop_assert_eq!(owners.give_back(d, Party(from)).is_ok(), his);
                        if his {
                            truth.remove(&d.chunk);
                        }
                    }
                    Step::Forged(chunk, generation, offset, len, from) => {
                        let d = Descriptor { chunk, generation, offset, len, ..Descriptor::default() };
                        let his = truth.get(&chunk).is_some_and(|(who, t)| (*who, t.generation) == (from, generation));
                        let fits = usize::from(offset) + usize::from(len) <= 256;
                        let expected = match () {
                            () if chunk >= CHUNKS => Err(Refused::NoSuchChunk),
                            () if !his => Err(Refused::NotYours),
                            () if !fits => Err(Refused::OutOfBounds),
                            () => Ok(()),
                        };
                        prop_assert_eq!(owners.give_back(d, Party(from)), expected);
                        if expected.is_ok() {
                            truth.remove(&chunk);
                        }
                    }
                    Step::Ends(who) => {
                        let had = truth.values().filter(|(owner, _)| *owner == who).count();
                        prop_assert_eq!(owners.has_ended(Party(who)) as usize, had);
                        truth.retain(|_, (owner, _)| *owner != who);
                    }
                    _ => {}
                }
                prop_assert_eq!(owners.free() as usize, CHUNKS as usize - truth.len());
                for who in 0..PARTIES {
                    let has = truth.values().filter(|(owner, _)| *owner == who).count();
                    prop_assert_eq!(owners.held(Party(who)) as usize, has);
                }
            }
        }
    }
}
