//! Who holds a lock or a direction of a connection that several processes of a family use.
//!
//! A process id says nothing for sure about an owner: it means another process in another pid namespace, it is given
//! to a new process after its own has ended, and it goes on to exist while its process is a zombie. So an owner is
//! named by its place among the members of the family ([`crate::family::FamilyHeader::members`]) and by that place's
//! generation. Whether that member lives is what the lock on its place says (`shim`, `members.rs`).
//!
//! ```text
//! 63     62 .. 57   56 .. 33     32 .. 24    23 .. 0
//! LENT   0          generation   place       thread id; 0: nobody holds it, and the rest names who held it last
//! ```

use crate::word::Code;

/// Processes of one family that can hold connections of culvert's at a time; others use the kernel.
pub const MEMBERS: usize = 256;
const TID_BITS: u32 = 24;
const PLACE_BITS: u32 = 9;
/// Bits of a place's generation.
pub const GENERATION_BITS: u32 = 24;
const TID: u64 = (1 << TID_BITS) - 1;

/// In the word of a token: its owner does something that changes nothing until it has taken this bit off, such as a copy that
/// is not published. It may be stopped meanwhile, for good. Another process may take the token from it, by an exchange against
/// this very word; the owner finds that it cannot take the bit off, and that what it did does not count.
pub const LENT: u64 = 1 << 63;

/// The owner word of thread `tid` of the member in `place`, of its `generation`-th use; of no thread: `tid` = 0.
///
/// A thread id has 22 bits at most (PID_MAX_LIMIT, linux/threads.h).
pub fn word(place: u32, generation: u32, tid: u32) -> u64 {
    let generation = u64::from(generation) & ((1 << GENERATION_BITS) - 1);
    generation << (TID_BITS + PLACE_BITS) | u64::from(Some(place).code()) << TID_BITS | u64::from(tid) & TID
}

/// The thread that holds it; 0 = nobody.
#[inline(always)]
pub fn tid(word: u64) -> u32 {
    (word & TID) as u32
}

/// The member of an owner word, as a word that nobody holds. 0 = none.
#[inline(always)]
pub fn member(word: u64) -> u64 {
    word & !TID & !LENT
}

/// Whether another process may take it from its owner.
#[inline(always)]
pub fn is_lent(word: u64) -> bool {
    word & LENT != 0
}

/// Place and generation of a word's member; `None`: it has none.
pub fn place(word: u64) -> Option<(usize, u32)> {
    let place = Option::<u32>::of((word >> TID_BITS) as u32 & ((1 << PLACE_BITS) - 1))?;
    Some((place as usize, (word >> (TID_BITS + PLACE_BITS)) as u32 & ((1 << GENERATION_BITS) - 1)))
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_word_names_thread_member_and_generation() {
        for p in [0, 1, MEMBERS as u32 - 1] {
            for g in [0, 1, (1 << GENERATION_BITS) - 1] {
                for t in [1, 4_194_304] {
                    let w = word(p, g, t);
                    assert_eq!((tid(w), place(w)), (t, Some((p as usize, g))));
                    assert_eq!(member(w), word(p, g, 0));
                    assert_eq!((tid(member(w)), place(member(w))), (0, place(w)));
                }
            }
        }
    }

    #[test]
    fn a_word_that_is_lent_names_the_same_owner() {
        let w = word(255, (1 << GENERATION_BITS) - 1, 4_194_304);
        let lent = w | LENT;
        assert!(is_lent(lent) && !is_lent(w));
        assert_eq!((tid(lent), member(lent), place(lent)), (tid(w), member(w), place(w)));
    }

    #[test]
    fn nobody_has_no_member() {
        assert_eq!((tid(0), member(0), place(0)), (0, 0, None));
    }

    #[test]
    fn no_two_members_share_a_word() {
        let mut seen = std::collections::HashSet::new();
        for p in 0..MEMBERS as u32 {
            for g in 0..8 {
                assert!(seen.insert(word(p, g, 77)));
            }
        }
    }

    #[test]
    fn a_generation_wraps_and_spills_nowhere() {
        assert_eq!(word(3, 1 << GENERATION_BITS, 9), word(3, 0, 9));
    }
}
