//! What the kernel has not been told of a set yet.
//!
//! Programs take descriptors out of a set and put them back for every message, and change what they wait for only to
//! take them out. While nobody waits on the set and no other process has it, the kernel need not hear of that: a removal,
//! or the last change, is *owed* to it, until the descriptor is put back, is closed, or somebody looks at the set
//! (`chains::settle`).
#![forbid(unsafe_code)]

use super::kernel_ctl;
use super::set::{FORKING, PARKED, Set, UNKNOWN, Watch};
use core::ffi::c_int;
use core::sync::atomic::Ordering::{Relaxed, SeqCst};

impl Set {
    /// Owes the kernel the removal of a watch that it keeps. False: it must be told now. With the set's lock held.
    pub fn owe(&self, fd: i32, w: &Watch) -> bool {
        let Some(place) = self.owed.iter().find(|o| o.load(Relaxed).is_none()).filter(|_| self.own()) else {
            return false;
        };
        if self.forgo(fd) {
            // The kernel still has the events from before a change that was never told.
            w.events.store(UNKNOWN, Relaxed);
        }
        place.store(Some(fd), Relaxed);
        w.flags.store(PARKED, Relaxed);
        let later = self.defer();
        if !later {
            self.owe_no_more(fd, w);
        }
        later
    }

    /// Adds one to what the kernel is owed. False: a thread may wait or fork, so the kernel must be told now.
    fn defer(&self) -> bool {
        // We add to `owing`, then read `waiters`; `epoll_wait` adds to `waiters`, then reads `owing` (both SeqCst). So
        // either we see the waiter, and the kernel is told now, or the waiter sees the debt, and settles it before it
        // sleeps. The same holds for FORKING.
        self.owing.fetch_add(1, SeqCst);
        // FORKING goes back to 0 only after the fork has marked the set as shared: `own` is up to date if it is 0.
        self.waiters.load(SeqCst) == 0 && FORKING.load(SeqCst) == 0 && self.own()
    }

    /// Owes the kernel a change of a watch that it keeps, to what `w` says. False: it must be told now. With the set's
    /// lock held.
    pub fn owe_change(&self, epfd: c_int, fd: i32, w: &Watch) -> bool {
        if !self.own() || w.flags.load(Relaxed) != 0 {
            return false;
        }
        if self.change.load(Relaxed) == Some(fd) {
            return true;
        }
        settle_change(self, epfd);
        self.change.store(Some(fd), Relaxed);
        self.defer() || !self.forgo(fd)
    }

    /// The change of a watch need not be told any more. True if there was one. With the set's lock held.
    pub fn forgo(&self, fd: i32) -> bool {
        let owed = self.change.load(Relaxed) == Some(fd);
        if owed {
            self.change.store(None, Relaxed);
            self.owing.fetch_sub(1, Relaxed);
        }
        owed
    }

    /// The kernel has been told of a watch's removal, or the watch is back: it is owed no more. With the set's lock
    /// held.
    pub fn owe_no_more(&self, fd: i32, w: &Watch) {
        w.flags.store(0, Relaxed);
        if let Some(o) = self.owed.iter().find(|o| o.load(Relaxed) == Some(fd)) {
            o.store(None, Relaxed);
            self.owing.fetch_sub(1, Relaxed);
        }
    }

    /// Forgets what is owed: the set is another process's to look after, or no longer exists.
    pub fn forgive(&self) {
        self.owed.iter().chain([&self.change]).for_each(|o| o.store(None, Relaxed));
        self.owing.store(0, Relaxed);
    }

    /// Whether the kernel is owed anything.
    pub fn owes(&self) -> bool {
        self.owing.load(SeqCst) != 0
    }

    /// Whether the kernel is owed the removal or a change of this watch.
    pub fn owes_for(&self, fd: i32, w: &Watch) -> bool {
        self.owes() && (w.flags.load(Relaxed) & PARKED != 0 || self.change.load(Relaxed) == Some(fd))
    }
}

pub(super) fn settle_change(s: &Set, epfd: c_int) {
    if let Some(fd) = s.change.load(Relaxed)
        && s.forgo(fd)
        && let Some(w) = s.get(fd)
    {
        kernel_ctl(epfd, libc::EPOLL_CTL_MOD, fd, w.events.load(Relaxed), w.data.load(Relaxed));
    }
}
