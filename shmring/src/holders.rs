//! Which members of a family hold a connection, and who of them ends it: the last to give it up. A member may be killed anywhere.
//!
//! A member that has given a connection up stays noted as one that did, until the record is used again or whoever clears up after it has
//! taken the note away. So a member that is killed between giving up and finding that it was the last has left a trace: who clears up
//! goes through the same steps for it. Who ends the connection is written in the same word by which the record's life is over.

use crate::owner::MEMBERS;
use crate::sync::{AtomicU64, fence};
use crate::word::{Code, Coded};
use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, SeqCst};

/// Members in a word, two bits each.
const IN_WORD: usize = 32;
/// The model's members have places in two words.
const WORDS: usize = if cfg!(loom) { 2 } else { MEMBERS / IN_WORD };
/// The low bit of each: it holds the connection, or has held it.
const HELD: u64 = 0x5555_5555_5555_5555;
/// The high bit: it has given it up.
const GIVEN_UP: u64 = HELD << 1;

/// The life of a record: one use of it, or the time between that and the next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Life {
    /// Changes when a use begins, and when the last holder gives the connection up.
    pub number: u32,
    /// The place of the member that gave it up last, until the next use begins.
    pub ended_by: Option<u32>,
}

impl Life {
    /// A record is used again.
    pub fn next(self) -> Life {
        Life { number: self.number.wrapping_add(1), ended_by: None }
    }
}

impl Code for Life {
    type Bits = u64;
    fn code(self) -> u64 {
        u64::from(self.number) | u64::from(self.ended_by.code()) << 32
    }
    fn of(code: u64) -> Life {
        Life { number: code as u32, ended_by: Option::of((code >> 32) as u32) }
    }
}

/// The members that hold a connection.
#[repr(C, align(64))]
pub struct Holders([AtomicU64; WORDS]);

impl Default for Holders {
    fn default() -> Holders {
        Holders(core::array::from_fn(|_| AtomicU64::new(0)))
    }
}

fn bits(member: usize) -> (usize, u64) {
    (member / IN_WORD % WORDS, 1 << (2 * (member % IN_WORD)))
}

/// Those in a word that hold the connection.
fn holding(word: u64) -> u64 {
    word & HELD & !(word >> 1)
}

impl Holders {
    /// A connection begins in a record that nobody else uses, and `member` alone holds it.
    pub fn begin(&self, member: usize) {
        let (at, bit) = bits(member);
        self.0.iter().enumerate().for_each(|(i, w)| w.store(if i == at { bit } else { 0 }, Relaxed));
    }

    /// A member that did not live until now will hold it, as its parent does.
    pub fn add(&self, member: usize) {
        let (at, bit) = bits(member);
        self.0[at].fetch_or(bit, AcqRel);
    }

    /// Whether `member` holds it.
    pub fn has(&self, member: usize) -> bool {
        let (at, bit) = bits(member);
        holding(self.0[at].load(Acquire)) & bit != 0
    }

    /// Whether `member` holds it, or has held it and is perhaps not done with it.
    pub fn knows(&self, member: usize) -> bool {
        let (at, bit) = bits(member);
        self.0[at].load(Acquire) & bit != 0
    }

    /// Whether a member holds it, or has held it and is perhaps not done with it.
    pub fn knows_any(&self) -> bool {
        self.0.iter().any(|w| w.load(Acquire) & HELD != 0)
    }

    /// How many hold it.
    pub fn count(&self) -> u32 {
        self.0.iter().map(|w| holding(w.load(Acquire)).count_ones()).sum()
    }

    /// `member` holds it no longer. True for one member in each life, the last: the caller ends the connection and frees the record;
    /// and true again if that one was killed before it had freed the record, and somebody clears up after it.
    pub fn give_up(&self, life: &Coded<Life>, member: usize) -> bool {
        let now = life.load(Acquire);
        match now.ended_by {
            Some(by) => by as usize == member,
            None => self.leave(member) && self.end(life, now, member),
        }
    }

    /// The first step of [`give_up`](Holders::give_up). False: it has never held it.
    pub fn leave(&self, member: usize) -> bool {
        let (at, bit) = bits(member);
        // One step: who clears up after a dead member may be late, and find another connection in the record.
        self.0[at].fetch_update(AcqRel, Acquire, |w| (w & bit != 0).then_some(w | bit << 1)).is_ok()
    }

    /// The second: of several that leave, the last finds that nobody is left, since it looks after it has left; others may find that,
    /// too. One of them ends the connection.
    fn end(&self, life: &Coded<Life>, now: Life, member: usize) -> bool {
        // Between the note that this member leaves and the look at the others' notes.
        fence(SeqCst);
        self.0.iter().all(|w| holding(w.load(Acquire)) == 0)
            && life.compare_exchange(now, Life { ended_by: Some(member as u32), ..now.next() }, AcqRel, Acquire).is_ok()
    }

    /// `member` is dead, and what it held is given up: its place may be another's next.
    pub fn forget(&self, member: usize) {
        let (at, bit) = bits(member);
        let both = bit | bit << 1;
        // Nothing is stored where there is nothing to forget: the record may be another connection's by now.
        let _ = self.0[at].fetch_update(AcqRel, Acquire, |w| (w & both != 0).then_some(w & !both));
    }
}

const _: () = assert!(HELD | GIVEN_UP == u64::MAX && MEMBERS.is_multiple_of(IN_WORD));

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn the_last_to_give_up_ends_it_once() {
        let (holders, life) = (Holders::default(), Coded::<Life>::default());
        let places = [0, 31, 32, MEMBERS - 1];
        holders.begin(places[0]);
        places[1..].iter().for_each(|p| holders.add(*p));
        assert_eq!(holders.count(), 4);
        for (i, p) in places.into_iter().enumerate() {
            assert!(holders.has(p));
            assert_eq!(holders.give_up(&life, p), i == 3, "{p}");
            assert!(!holders.has(p) && holders.knows(p));
        }
        assert_eq!((holders.count(), life.load(Relaxed)), (0, Life { number: 1, ended_by: Some(255) }));
        // Killed before it has freed the record.
        assert!(holders.give_up(&life, places[3]) && !holders.give_up(&life, places[0]));
        assert_eq!(life.load(Relaxed).number, 1);
    }

    #[test]
    fn who_never_held_it_gives_nothing_up() {
        let (holders, life) = (Holders::default(), Coded::<Life>::default());
        holders.begin(7);
        assert!(!holders.give_up(&life, 8) && !holders.knows(8));
        assert!(holders.has(7) && holders.give_up(&life, 7));
    }

    #[test]
    fn a_place_that_is_used_again_holds_anew() {
        let (holders, life) = (Holders::default(), Coded::<Life>::default());
        holders.begin(7);
        holders.add(40);
        assert!(!holders.give_up(&life, 40));
        holders.forget(40);
        assert!(!holders.knows(40));
        holders.add(40);
        assert!(!holders.give_up(&life, 7) && holders.has(40) && holders.give_up(&life, 40));
    }

    #[test]
    fn the_next_life_has_no_end_and_no_holders_but_its_own() {
        let (holders, life) = (Holders::default(), Coded::<Life>::default());
        holders.begin(9);
        holders.add(200);
        assert!(!holders.give_up(&life, 200) && holders.give_up(&life, 9));
        life.store(life.load(Relaxed).next(), Relaxed);
        holders.begin(3);
        assert_eq!((holders.count(), holders.knows(200), life.load(Relaxed).ended_by), (1, false, None));
        assert!(holders.give_up(&life, 3));
        assert_eq!(life.load(Relaxed), Life { number: 3, ended_by: Some(3) });
    }
}
