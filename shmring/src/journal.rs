//! What a family does on the kernel, written down for those who must tell its order.
//!
//! A program that waits on rings and kernel sockets alike must be told of events in the order in which its peer made
//! them. Events on rings carry a time (`Producer::told`); events on the kernel do not. So a family notes each of
//! its native acts on a connection (bytes sent, opened, closed) *after* the act, in its own [`Journal`]; and before it
//! tells a peer of news on a ring, it copies what is new there into that peer's channel. Hence
//!
//! - news on a ring that a peer sees come with every native act that their sender's family did before;
//! - an event that the kernel has, and that no note explains, was not made before them by that family.
//!
//! Everything here is a hint, written by another process: a false note can only garble the order of events.

use crate::sync::{AtomicU64, Ordering, fence};
use crate::word::Coded;

/// Notes that a journal holds; an older one is overwritten.
pub const NOTES: usize = 512;

/// A native act on a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Act {
    /// Time stamps before and after it, in cycles of the time-stamp counter.
    pub begun: u64,
    /// See `begun`.
    pub ended: u64,
    /// The two ports: the connector's and the acceptor's.
    pub ports: [u16; 2],
    /// The acceptor did it.
    pub by_acceptor: bool,
    /// The connection was opened; else, bytes were sent or the stream was ended.
    pub opens: bool,
    /// Low bits of the number of bytes that this side had sent natively before.
    pub at: u32,
}

/// Bits of [`Act::at`] that are kept.
pub const AT: u32 = (1 << 30) - 1;

impl Act {
    fn pack(&self) -> u64 {
        u64::from(self.ports[0]) << 48
            | u64::from(self.ports[1]) << 32
            | u64::from(self.by_acceptor) << 31
            | u64::from(self.opens) << 30
            | u64::from(self.at & AT)
    }
}

#[repr(C, align(32))]
#[derive(Default)]
struct Note {
    /// The note's number, while the rest belongs to it.
    seal: Coded<Option<u64>>,
    begun: AtomicU64,
    ended: AtomicU64,
    what: AtomicU64,
}

/// The notes of a family, or those of them that were copied for one peer.
#[repr(C, align(64))]
pub struct Journal {
    /// Notes begun so far.
    next: AtomicU64,
    /// The latest [`Act::ended`].
    latest: AtomicU64,
    _pad: [u64; 6],
    notes: [Note; NOTES],
}

impl Default for Journal {
    fn default() -> Journal {
        Journal {
            next: AtomicU64::new(0),
            latest: AtomicU64::new(0),
            _pad: [0; 6],
            notes: core::array::from_fn(|_| Note::default()),
        }
    }
}

impl Journal {
    /// Adds a note. Several threads and processes may do so at once.
    pub fn add(&self, act: &Act) {
        let n = self.next.fetch_add(1, Ordering::AcqRel);
        let note = &self.notes[n as usize % NOTES];
        note.seal.store(None, Ordering::Relaxed);
        fence(Ordering::Release);
        note.begun.store(act.begun, Ordering::Relaxed);
        note.ended.store(act.ended, Ordering::Relaxed);
        note.what.store(act.pack(), Ordering::Relaxed);
        note.seal.store(Some(n), Ordering::Release);
        self.latest.fetch_max(act.ended, Ordering::Release);
    }

    /// How many notes were begun: where the next [`copy`](Journal::copy) may have something new.
    #[inline(always)]
    pub fn next(&self) -> u64 {
        self.next.load(Ordering::Acquire)
    }

    /// When the last act ended, of those that are noted here.
    #[inline(always)]
    pub fn latest(&self) -> u64 {
        self.latest.load(Ordering::Acquire)
    }

    /// Note number `n`, if it is complete and was not overwritten.
    fn get(&self, n: u64) -> Option<Act> {
        let note = &self.notes[n as usize % NOTES];
        if note.seal.load(Ordering::Acquire) != Some(n) {
            return None;
        }
        let (begun, ended) = (note.begun.load(Ordering::Relaxed), note.ended.load(Ordering::Relaxed));
        let what = note.what.load(Ordering::Relaxed);
        fence(Ordering::Acquire);
        (note.seal.load(Ordering::Relaxed) == Some(n)).then_some(Act {
            begun,
            ended,
            ports: [(what >> 48) as u16, (what >> 32) as u16],
            by_acceptor: what & 1 << 31 != 0,
            opens: what & 1 << 30 != 0,
            at: what as u32 & AT,
        })
    }

    /// Copies the notes from number `from` on; returns the number of the first that was not copied.
    ///
    /// One that another thread has begun and not finished ends the copy: its act may be older than what this thread
    /// tells next time. Unless that thread has died: then later notes pass it.
    pub fn copy(&self, from: u64, to: &Journal) -> u64 {
        const PATIENCE: u64 = 64;
        let next = self.next();
        let mut n = from.max(next.saturating_sub(NOTES as u64));
        while n < next {
            match self.get(n) {
                Some(act) => to.add(&act),
                None if next - n <= PATIENCE => break,
                None => {}
            }
            n += 1;
        }
        n
    }

    /// Calls `f` with every act that ended from time stamp `since` to `until`, the newest first, of the last `most` notes.
    /// Returns how many it has looked at.
    pub fn each_since(&self, since: u64, until: u64, most: u64, mut f: impl FnMut(Act)) -> u64 {
        /// Acts are noted in about the order of their ends; a thread may be late with its note.
        const LATE: u32 = 32;
        let next = self.next();
        let mut older = 0;
        let first = next.saturating_sub(most.min(NOTES as u64));
        for n in (first..next).rev() {
            match self.get(n) {
                // What is yet to come nobody has done.
                Some(act) if act.ended > until => {}
                Some(act) if act.ended >= since => f(act),
                Some(_) => older += 1,
                None => {}
            }
            if older == LATE {
                return next - n;
            }
        }
        next - first
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn act(t: u64) -> Act {
        Act { begun: t, ended: t + 1, ports: [t as u16, 80], by_acceptor: t & 1 != 0, opens: t & 2 != 0, at: t as u32 }
    }

    fn since(j: &Journal, t: u64) -> Vec<Act> {
        let mut all = Vec::new();
        j.each_since(t, u64::MAX, u64::MAX, |a| all.push(a));
        all
    }

    #[test]
    fn neither_the_future_nor_more_than_was_asked_for_is_looked_at() {
        let j = Box::<Journal>::default();
        (0..100).for_each(|t| j.add(&act(t)));
        let mut all = Vec::new();
        // Acts end one time stamp after they begin.
        assert_eq!(j.each_since(80, 90, 1000, |a| all.push(a.ended)), 100 - 79 + 32);
        assert_eq!(all, (80..=90).rev().collect::<Vec<_>>());
        all.clear();
        assert_eq!(j.each_since(0, u64::MAX, 3, |a| all.push(a.ended)), 3);
        assert_eq!(all, [100, 99, 98]);
        // Whatever a peer says of how many there are.
        j.next.store(u64::MAX, Ordering::Relaxed);
        assert_eq!(j.each_since(0, u64::MAX, u64::MAX, |_| panic!("sealed by nobody")), NOTES as u64);
    }

    #[test]
    fn a_note_is_read_as_it_was_written() {
        let j = Box::<Journal>::default();
        let a = Act { begun: 7, ended: 9, ports: [65535, 1], by_acceptor: true, opens: false, at: AT };
        j.add(&a);
        assert_eq!(since(&j, 9), [a]);
        assert_eq!(since(&j, 10), []);
        assert_eq!(j.latest(), 9);
    }

    #[test]
    fn copies_go_on_where_the_last_one_ended_and_pass_what_was_overwritten() {
        let (j, k) = (Box::<Journal>::default(), Box::<Journal>::default());
        (0..3).for_each(|t| j.add(&act(t)));
        assert_eq!(j.copy(0, &k), 3);
        assert_eq!(j.copy(3, &k), 3);
        let all = NOTES as u64 + 10;
        (3..all).for_each(|t| j.add(&act(t)));
        assert_eq!(j.copy(3, &k), all);
        // The first three are gone from here and there; of the rest the oldest seven never came.
        assert_eq!(since(&k, 0).len(), NOTES);
        assert_eq!(since(&k, 0)[0], act(all - 1));
    }

    #[test]
    fn a_copy_stops_at_a_note_that_is_being_written_but_not_for_ever() {
        let (j, k) = (Box::<Journal>::default(), Box::<Journal>::default());
        j.add(&act(0));
        let hole = j.next.fetch_add(1, Ordering::AcqRel);
        j.add(&act(2));
        assert_eq!(j.copy(0, &k), hole);
        assert_eq!(since(&k, 0), [act(0)]);
        (3..100).for_each(|t| j.add(&act(t)));
        assert_eq!(j.copy(hole, &k), 100);
        assert_eq!(since(&k, 90).len(), 11);
    }
}
