//! The ready list of a set: which of its watches have news, in the order in which they are reported.
#![forbid(unsafe_code)]

use super::set::{Link, Listed, Set, Watch};
use core::sync::atomic::Ordering::Relaxed;

impl Set {
    /// Puts a watch at the end of the ready list, if it is not in it.
    pub fn push(&self, fd: i32) {
        if self.is_out(fd) {
            self.take_turn(fd);
            self.append(fd);
        }
    }

    /// The same for one that had news at time stamp `since`, which come behind `place` of the kernel's events.
    pub fn push_at(&self, fd: i32, since: u64, place: usize) {
        if let Some(l) = self.link(fd).filter(|_| self.is_out(fd)) {
            l.since.store(since, Relaxed);
            l.place.store(self.calls.load(Relaxed) << 8 | place.min(0xff) as u32, Relaxed);
            self.take_turn(fd);
            self.put(fd, self.last.load(Relaxed));
        } else if let Some(l) = self.link(fd).filter(|l| l.since.load(Relaxed) == 0) {
            // It stands in the list since an earlier report, in the place that the kernel would give it.
            l.since.store(since, Relaxed);
        }
    }

    /// The oldest news of the ready list that have not been reported; of the first 64 that are in it.
    pub fn oldest(&self) -> Option<u64> {
        let mut next = self.first.load(Relaxed);
        let mut oldest = None::<u64>;
        for _ in 0..64 {
            let Some(l) = next.and_then(|fd| self.link(fd)) else { break };
            let since = l.since.load(Relaxed);
            if since != 0 {
                oldest = Some(oldest.map_or(since, |o| o.min(since)));
            }
            next = l.ready.load(Relaxed).next();
        }
        oldest
    }

    /// The first of the ready list, when it had news, and how many of the kernel's events come before it.
    pub fn next(&self) -> Option<(i32, u64, usize)> {
        let fd = self.first.load(Relaxed)?;
        let (since, place) = self.place_of(self.link(fd)?);
        Some((fd, since, place))
    }

    /// When one of the ready list had news, and how many of the kernel's events come before it.
    pub fn place_of(&self, l: &Link) -> (u64, usize) {
        let place = l.place.load(Relaxed);
        let place = if place >> 8 == self.calls.load(Relaxed) { place & 0xff } else { 0 };
        (l.since.load(Relaxed), place as usize)
    }

    /// The first `told` of the kernel's events have been reported, and the kernel will tell the others again: what comes behind some of those
    /// comes behind them in the next call, too.
    pub fn move_up(&self, told: usize) {
        let calls = self.calls.load(Relaxed).wrapping_add(1) & (u32::MAX >> 8);
        let mut next = self.first.load(Relaxed);
        while let Some(l) = next.and_then(|fd| self.link(fd)) {
            let (_, place) = self.place_of(l);
            if place > told {
                l.place.store(calls << 8 | (place - told) as u32, Relaxed);
            }
            next = l.ready.load(Relaxed).next();
        }
    }

    /// Counts decisions between what the kernel has and what the rings have; each `n`th is the other way round.
    pub fn is_nth_turn(&self, n: u32) -> bool {
        self.turn.fetch_add(1, Relaxed).wrapping_add(1).is_multiple_of(n)
    }

    /// How many are in the ready list, up to `max`.
    pub fn waiting(&self, max: usize) -> usize {
        let mut next = self.first.load(Relaxed);
        let mut n = 0;
        while let Some(fd) = next.filter(|_| n < max) {
            n += 1;
            next = self.link(fd).and_then(|l| l.ready.load(Relaxed).next());
        }
        n
    }

    /// The watch takes its turn behind every other watch that may be ready.
    pub fn take_turn(&self, fd: i32) {
        if let Some(l) = self.link(fd) {
            l.turn.store(self.turns.fetch_add(1, Relaxed) + 1, Relaxed);
        }
    }

    /// Puts a watch that is reported at the end of the ready list, as ep_send_events does: all of it keeps its order.
    pub fn append(&self, fd: i32) {
        self.undate(fd);
        self.put(fd, self.last.load(Relaxed));
    }

    fn undate(&self, fd: i32) {
        if let Some(l) = self.link(fd) {
            l.since.store(0, Relaxed);
            l.place.store(u32::MAX << 8, Relaxed);
        }
    }

    /// Puts a watch that comes from the kernel's ready list, where its place is not known, before those with later turns.
    pub fn insert(&self, fd: i32) {
        let Some(turn) = self.link(fd).map(|l| l.turn.load(Relaxed)) else { return };
        let (mut before, mut next) = (None, self.first.load(Relaxed));
        while let Some(at) = next {
            let Some(l) = self.link(at).filter(|l| l.turn.load(Relaxed) < turn) else { break };
            (before, next) = (next, l.ready.load(Relaxed).next());
        }
        self.undate(fd);
        self.put(fd, before);
    }

    /// Puts a watch behind the one of `before` in the ready list, or before all, if it is not in it.
    fn put(&self, fd: i32, before: Option<i32>) {
        let Some(l) = self.link(fd).filter(|_| self.is_out(fd)) else { return };
        let next = match before.and_then(|fd| self.link(fd)) {
            Some(before) => before.ready.swap(Listed::Before(fd), Relaxed).next(),
            None => self.first.swap(Some(fd), Relaxed),
        };
        if next.is_none() {
            self.last.store(Some(fd), Relaxed);
        }
        l.ready.store(next.map_or(Listed::Last, Listed::Before), Relaxed);
    }

    /// Takes a watch out of the ready list, which stands there behind the one of `before`, or first.
    pub fn take_out(&self, before: Option<i32>, fd: i32) {
        let Some(l) = self.link(fd) else { return };
        let next = l.ready.swap(Listed::Out, Relaxed).next();
        match before.and_then(|fd| self.link(fd)) {
            Some(before) => before.ready.store(next.map_or(Listed::Last, Listed::Before), Relaxed),
            None => self.first.store(next, Relaxed),
        }
        if next.is_none() {
            self.last.store(before, Relaxed);
        }
    }

    /// Forgets what was in the ready list.
    pub fn empty(&self) {
        self.first.store(None, Relaxed);
        self.last.store(None, Relaxed);
    }

    /// Takes the first watch of the ready list.
    pub fn pop(&self) -> Option<(i32, &'static Watch)> {
        let fd = self.first.load(Relaxed)?;
        let w = self.get(fd)?;
        let next = self.link(fd)?.ready.swap(Listed::Out, Relaxed).next();
        self.first.store(next, Relaxed);
        if next.is_none() {
            self.last.store(None, Relaxed);
        }
        Some((fd, w))
    }
}
