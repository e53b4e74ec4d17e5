//! What the kernel has told, and the program was not told, is told once more: a registration that is changed, if only into itself, is
//! looked at again, and goes behind all that the kernel has to report if it is ready (ep_modify, fs/eventpoll.c).
#![forbid(unsafe_code)]

use super::fdinfo::{self, Registration};
use super::{kernel_ctl, ours};
use core::ffi::c_int;
use libc::{EPOLL_CTL_MOD, EPOLLET, EPOLLEXCLUSIVE, EPOLLONESHOT, epoll_event};

/// The kernel, having told of such a registration, does not tell of it again by itself.
const ONCE: u32 = (EPOLLET | EPOLLONESHOT) as u32;

/// Whether it is one of those, and the program's.
fn told_once(r: &Registration) -> bool {
    r.events & ONCE != 0 && ours(r.data).is_none()
}

/// Whether this process can change it: by its number, and not an exclusive one (epoll_ctl(2)).
fn can_change(r: &Registration) -> bool {
    r.events & EPOLLEXCLUSIVE as u32 == 0 && r.is_of(r.fd)
}

/// Changes a registration, of which the kernel has told `told`, into itself.
fn change(epfd: c_int, r: &Registration, told: u32) -> bool {
    // A oneshot has lost its events by now: what was told holds still.
    let events = if r.has_fired() { r.events | told } else { r.events };
    kernel_ctl(epfd, EPOLL_CTL_MOD, r.fd, events, r.data) >= 0
}

/// The registrations of a set.
pub(super) struct Known {
    list: [Registration; KNOWN],
    n: usize,
}

/// Whoever has more in a set seldom has room for so few events that some are to be told again.
const KNOWN: usize = 64;

impl Known {
    pub const NONE: Known = Known { list: [Registration::NONE; KNOWN], n: 0 };

    /// Asks the kernel for them. False: there are some of which the kernel could not be made to tell again. With the set's lock held, for which
    /// the program's changes of the set wait. `asked`: what the program asked for, if that is known, which the kernel has forgotten of a oneshot
    /// that has fired.
    pub fn read(&mut self, epfd: c_int, asked: impl Fn(&Registration) -> Option<u32>) -> bool {
        self.n = 0;
        let fits = fdinfo::each(epfd, |r| {
            // Of two with the same data nobody knows which one was told of.
            let can = ours(r.data).is_some() || self.get(r.data).is_none() && (!told_once(r) || can_change(r));
            !(can && self.add(r))
        });
        for r in &mut self.list[..self.n] {
            r.events = asked(r).unwrap_or(r.events);
        }
        fits.is_none()
    }

    /// Asks the kernel for those of the program that it tells of once. False: there are some that cannot be changed, or too many.
    pub fn read_told_once(&mut self, epfd: c_int) -> bool {
        self.n = 0;
        let left_out = fdinfo::each(epfd, |r| told_once(r) && !(can_change(r) && self.add(r)));
        left_out.is_none()
    }

    fn add(&mut self, r: &Registration) -> bool {
        let place = self.list.get_mut(self.n);
        self.n += usize::from(place.is_some());
        place.map(|p| *p = *r).is_some()
    }

    /// Has the kernel tell of `e` once more, and of whatever else has its data: with all that the program asked for, which the kernel has
    /// forgotten of a oneshot by now. One that had fired before is not told of.
    pub fn tell_again(&self, epfd: c_int, e: &epoll_event) {
        for r in self.list[..self.n].iter().filter(|r| r.data == e.u64 && !r.has_fired()) {
            change(epfd, r, e.events);
        }
    }

    /// Whether `e` is of one of them, and all is known of that: a oneshot that is armed with what was told alone would not tell of what else the
    /// program waits for.
    pub fn has(&self, e: &epoll_event) -> bool {
        self.get(e.u64).is_some_and(|r| !r.has_fired())
    }

    fn get(&self, data: u64) -> Option<&Registration> {
        self.list[..self.n].iter().find(|r| r.data == data)
    }

    /// Whether the kernel has `e` in its list still, at the end, although it has told of it.
    pub fn stays(&self, e: &epoll_event) -> bool {
        self.get(e.u64).is_some_and(|r| r.events & ONCE == 0)
    }

    /// `e` has been told, and is to leave the kernel's list until it is put back: one that stays is told once more, and no further. False:
    /// it cannot be.
    pub fn take_out(&self, epfd: c_int, e: &epoll_event) -> bool {
        self.get(e.u64).is_some_and(|r| {
            r.events & ONCE != 0
                || can_change(r) && kernel_ctl(epfd, EPOLL_CTL_MOD, r.fd, r.events | EPOLLET as u32, r.data) >= 0
        })
    }

    /// Has the kernel tell of `e`, which is not in its list, again. False: it does not.
    pub fn put_back(&self, epfd: c_int, e: &epoll_event) -> bool {
        // `read` has asked of the program's registrations that are told once whether they can be changed.
        let can = |r: &Registration| told_once(r) || can_change(r);
        self.get(e.u64).is_some_and(|r| can(r) && change(epfd, r, e.events))
    }
}

/// Events that were given back in the last call that looked, and by when the kernel had each at the first look that told of it.
pub(super) struct Returned {
    list: [(u64, u64); KNOWN],
    n: usize,
}

impl Returned {
    pub const NONE: Returned = Returned { list: [(0, 0); KNOWN], n: 0 };

    pub fn clear(&mut self) {
        self.n = 0;
    }

    /// By when the kernel had `e`, if that was given back.
    pub fn since(&self, e: &epoll_event) -> Option<u64> {
        self.list[..self.n].iter().find(|(data, _)| *data == e.u64).map(|(_, since)| *since)
    }

    /// `back` are given back, of which the kernel has told by time stamp `at`; no others are.
    pub fn replace(&mut self, back: &[epoll_event], at: u64) {
        let mut kept = 0;
        for i in 0..self.n {
            if back.iter().any(|e| e.u64 == self.list[i].0) {
                self.list[kept] = self.list[i];
                kept += 1;
            }
        }
        self.n = kept;
        for e in back {
            if self.since(e).is_none()
                && let Some(place) = self.list.get_mut(self.n)
            {
                *place = (e.u64, at);
                self.n += 1;
            }
        }
    }
}
