//! A ring of descriptors with one sender and one receiver, which do not trust each other.
//!
//! The words are numbers of descriptors since the ring began, and wrap. The sender owns `tail`, the receiver `head`, and each keeps its own
//! for itself: what lies in shared memory is for the other one, who believes it as far as it can be.

use crate::Descriptor;
use shmring::sync::{AtomicU32, AtomicU64, Ordering, fence};

/// What lies in shared memory of one ring. `slots` are a power of two.
#[derive(Clone, Copy)]
pub struct Words<'a> {
    /// Up to where descriptors are there.
    pub tail: &'a AtomicU32,
    /// Up to where they were taken.
    pub head: &'a AtomicU32,
    /// Not 0: the receiver sleeps, or is about to.
    pub armed: &'a AtomicU32,
    /// The descriptors.
    pub slots: &'a [[AtomicU64; 2]],
}

/// The other end says what cannot be: it takes no further part in the chain.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Corrupt;

impl Words<'_> {
    fn slot(&self, at: u32) -> &[AtomicU64; 2] {
        &self.slots[at as usize & (self.slots.len() - 1)]
    }
}

/// The sending end.
pub struct Sender<'a> {
    words: Words<'a>,
    tail: u32,
    published: u32,
    head: u32,
}

impl<'a> Sender<'a> {
    /// The end of a fresh ring, or of one that was used up to `at` by a sender before.
    pub fn new(words: Words<'a>, at: u32) -> Sender<'a> {
        assert!(words.slots.len().is_power_of_two(), "a ring of {} slots", words.slots.len());
        Sender { words, tail: at, published: at, head: at }
    }

    /// How many descriptors there is room for: the receiver's credit.
    pub fn room(&mut self) -> Result<u32, Corrupt> {
        let size = self.words.slots.len() as u32;
        let head = self.words.head.load(Ordering::Acquire);
        let unread = self.tail.wrapping_sub(head);
        // It goes on from where it was, and not beyond what was published.
        if unread > size || self.published.wrapping_sub(head) > self.published.wrapping_sub(self.head) {
            return Err(Corrupt);
        }
        self.head = head;
        Ok(size - unread)
    }

    /// Lays a descriptor behind the last one; the receiver sees it when it is [published](Sender::publish). False: the ring is full.
    pub fn push(&mut self, descriptor: Descriptor) -> Result<bool, Corrupt> {
        if self.tail.wrapping_sub(self.head) == self.words.slots.len() as u32 && self.room()? == 0 {
            return Ok(false);
        }
        let words = descriptor.words();
        for (at, word) in self.words.slot(self.tail).iter().zip(words) {
            at.store(word, Ordering::Relaxed);
        }
        self.tail = self.tail.wrapping_add(1);
        Ok(true)
    }

    /// All that was pushed is the receiver's. True: the receiver sleeps, and the caller is to wake it.
    #[must_use = "the receiver may sleep"]
    pub fn publish(&mut self) -> bool {
        if self.published == self.tail {
            return false;
        }
        self.published = self.tail;
        self.words.tail.store(self.tail, Ordering::Release);
        // With the one in `Receiver::arm`: either the receiver sees the tail, or this end sees that it is armed.
        fence(Ordering::SeqCst);
        self.words.armed.load(Ordering::Relaxed) != 0 && self.words.armed.swap(0, Ordering::Relaxed) != 0
    }

    /// Descriptors that were published, and not taken as far as was seen last.
    pub fn unread(&self) -> u32 {
        self.published.wrapping_sub(self.head)
    }

    /// Where a sender that comes after this one goes on.
    pub fn at(&self) -> u32 {
        self.published
    }
}

/// The receiving end.
pub struct Receiver<'a> {
    words: Words<'a>,
    head: u32,
    tail: u32,
}

impl<'a> Receiver<'a> {
    /// As [`Sender::new`].
    pub fn new(words: Words<'a>, at: u32) -> Receiver<'a> {
        assert!(words.slots.len().is_power_of_two(), "a ring of {} slots", words.slots.len());
        Receiver { words, head: at, tail: at }
    }

    /// How many descriptors are there.
    pub fn waiting(&mut self) -> Result<u32, Corrupt> {
        let tail = self.words.tail.load(Ordering::Acquire);
        let there = tail.wrapping_sub(self.head);
        if there > self.words.slots.len() as u32 || there < self.tail.wrapping_sub(self.head) {
            return Err(Corrupt);
        }
        self.tail = tail;
        Ok(there)
    }

    /// Takes the next descriptor; its place is the sender's when it is [given back](Receiver::give_back).
    pub fn pop(&mut self) -> Result<Option<Descriptor>, Corrupt> {
        if self.tail == self.head && self.waiting()? == 0 {
            return Ok(None);
        }
        let [a, b] = self.words.slot(self.head);
        let words = [a.load(Ordering::Relaxed), b.load(Ordering::Relaxed)];
        self.head = self.head.wrapping_add(1);
        Ok(Some(Descriptor::of(words)))
    }

    /// The places of all that was taken are the sender's.
    pub fn give_back(&mut self) {
        if self.words.head.load(Ordering::Relaxed) != self.head {
            self.words.head.store(self.head, Ordering::Release);
        }
    }

    /// The receiver is about to sleep. True: it may; who publishes from now on wakes it. False: something is there.
    pub fn arm(&mut self) -> Result<bool, Corrupt> {
        self.words.armed.store(1, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        let idle = self.waiting()? == 0;
        if !idle {
            self.disarm();
        }
        Ok(idle)
    }

    /// The receiver is awake.
    pub fn disarm(&self) {
        self.words.armed.store(0, Ordering::Relaxed);
    }

    /// Where a receiver that comes after this one goes on.
    pub fn at(&self) -> u32 {
        self.head
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::VecDeque;

    struct Memory {
        words: [AtomicU32; 3],
        slots: Vec<[AtomicU64; 2]>,
    }

    impl Memory {
        fn new(slots: usize) -> Memory {
            Memory { words: Default::default(), slots: (0..slots).map(|_| Default::default()).collect() }
        }
        fn words(&self) -> Words<'_> {
            let [tail, head, armed] = &self.words;
            Words { tail, head, armed, slots: &self.slots }
        }
    }

    fn named(chunk: u32) -> Descriptor {
        Descriptor { chunk, len: 60, ..Descriptor::default() }
    }

    proptest! {
        /// Against a queue: in order, once, never more than fit; also where the numbers wrap.
        #[test]
        fn it_is_a_queue(start in prop_oneof![Just(0u32), Just(u32::MAX - 3), any::<u32>()], steps in proptest::collection::vec(0u8..5, 1..400)) {
            let memory = Memory::new(8);
            memory.words[0].store(start, Ordering::Relaxed);
            memory.words[1].store(start, Ordering::Relaxed);
            let (mut s, mut r) = (Sender::new(memory.words(), start), Receiver::new(memory.words(), start));
            let (mut pushed, mut there, mut taken, mut next) = (VecDeque::new(), VecDeque::new(), 0usize, 0);
            for step in steps {
                match step {
                    0 | 1 => {
                        let fits = pushed.len() + there.len() + taken < 8;
                        prop_assert_eq!(s.push(named(next)), Ok(fits));
                        if fits {
                            pushed.push_back(next);
                            next += 1;
                        }
                    }
                    2 => {
                        prop_assert!(!s.publish());
                        there.append(&mut pushed);
                    }
                    3 => {
                        let got = r.pop().unwrap();
                        prop_assert_eq!(got, there.pop_front().map(named));
                        taken += usize::from(got.is_some());
                    }
                    _ => {
                        r.give_back();
                        taken = 0;
                    }
                }
            }
        }

        /// The other end writes anything: it is corrupt, or goes on as if it had meant that; nothing panics.
        #[test]
        fn what_the_other_end_writes_is_a_claim(writes in proptest::collection::vec((0usize..3, any::<u32>(), 0u8..6), 1..100)) {
            let memory = Memory::new(8);
            let (mut s, mut r) = (Sender::new(memory.words(), 0), Receiver::new(memory.words(), 0));
            for (word, value, step) in writes {
                memory.words[word].store(if step % 2 == 0 { value } else { value % 16 }, Ordering::Relaxed);
                if let Ok(room) = s.room() {
                    prop_assert!(room <= 8);
                }
                let _ = s.push(named(value));
                let _ = s.publish();
                let before = r.at();
                if let Ok(n) = r.waiting() {
                    prop_assert!(n <= 8);
                }
                let popped = matches!(r.pop(), Ok(Some(_)));
                prop_assert_eq!(r.at(), before.wrapping_add(popped.into()));
                r.give_back();
                let _ = r.arm();
            }
        }
    }

    #[test]
    fn who_sleeps_is_woken_once() {
        let memory = Memory::new(4);
        let (mut s, mut r) = (Sender::new(memory.words(), 0), Receiver::new(memory.words(), 0));
        assert_eq!(r.arm(), Ok(true));
        assert!(!s.publish(), "there is nothing to wake it for");
        assert_eq!(s.push(named(1)), Ok(true));
        assert!(s.publish());
        assert_eq!(s.push(named(2)), Ok(true));
        assert!(!s.publish(), "it was woken");
        assert_eq!(r.arm(), Ok(false), "something is there");
    }

    #[test]
    fn a_head_that_goes_back_is_corrupt() {
        let memory = Memory::new(4);
        let (mut s, mut r) = (Sender::new(memory.words(), 0), Receiver::new(memory.words(), 0));
        assert_eq!(s.push(named(1)), Ok(true));
        let _ = s.publish();
        assert!(r.pop().unwrap().is_some());
        r.give_back();
        assert_eq!(s.room(), Ok(4));
        memory.words[1].store(0, Ordering::Relaxed);
        assert_eq!(s.room(), Err(Corrupt));
        memory.words[1].store(3, Ordering::Relaxed);
        assert_eq!(s.room(), Err(Corrupt), "it cannot have taken what was not published");
    }
}

#[cfg(all(test, loom))]
mod models {
    use super::*;
    use loom::sync::{Arc, Notify};
    use loom::thread;

    struct Shared {
        words: [AtomicU32; 3],
        slots: Vec<[AtomicU64; 2]>,
        bell: Notify,
    }

    impl Shared {
        fn new(slots: usize) -> Arc<Shared> {
            let slots = (0..slots).map(|_| Default::default()).collect();
            Arc::new(Shared { words: Default::default(), slots, bell: Notify::new() })
        }
        fn words(&self) -> Words<'_> {
            let [tail, head, armed] = &self.words;
            Words { tail, head, armed, slots: &self.slots }
        }
    }

    fn named(n: u32) -> Descriptor {
        Descriptor { chunk: n, mark: n, ..Descriptor::default() }
    }

    /// A receiver that sleeps is woken, and sees descriptors as they were published. If it is not, the model is stuck, which loom tells.
    #[test]
    fn nobody_sleeps_for_ever() {
        loom::model(|| {
            let shared = Shared::new(2);
            let theirs = shared.clone();
            let sender = thread::spawn(move || {
                let mut sender = Sender::new(theirs.words(), 0);
                for n in 1..=2 {
                    assert_eq!(sender.push(named(n)), Ok(true));
                    if sender.publish() {
                        theirs.bell.notify();
                    }
                }
            });
            let mut receiver = Receiver::new(shared.words(), 0);
            let mut next = 1;
            while next <= 2 {
                if let Some(got) = receiver.pop().unwrap() {
                    assert_eq!(got, named(next));
                    next += 1;
                    receiver.give_back();
                } else if receiver.arm().unwrap() {
                    shared.bell.wait();
                }
            }
            sender.join().unwrap();
        });
    }

    /// A place is written again only when it was given back: what is taken is what was published there.
    #[test]
    fn no_place_is_written_while_it_is_read() {
        loom::model(|| {
            let shared = Shared::new(1);
            let theirs = shared.clone();
            let sender = thread::spawn(move || {
                let mut sender = Sender::new(theirs.words(), 0);
                let mut next = 1;
                for _ in 0..3 {
                    if sender.push(named(next)).unwrap() {
                        next += 1;
                        let _ = sender.publish();
                    }
                }
            });
            let mut receiver = Receiver::new(shared.words(), 0);
            let mut next = 1;
            for _ in 0..3 {
                if let Some(got) = receiver.pop().unwrap() {
                    assert_eq!(got, named(next));
                    next += 1;
                    receiver.give_back();
                }
            }
            sender.join().unwrap();
        });
    }
}
