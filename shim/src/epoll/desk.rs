//! What a look at a set needs: some kilobytes, which lie in the set, since the stack of whoever waits may be short
//! (PTHREAD_STACK_MIN, a coroutine's).
#![forbid(unsafe_code)]

use super::again::{Known, Returned};
use engine::endpoint::Ep;
use libc::epoll_event;
use shmring::ring::About;

/// Events that the kernel is asked for at a time.
pub(super) const KERNEL_EVENTS: usize = 128;
/// Events that a thread sleeps for: they come to its stack.
pub(super) const SLEEPS_FOR: usize = 32;
pub(super) const NO_EVENT: epoll_event = epoll_event { events: 0, u64: 0 };
/// Connections whose news are taken at a time: the oldest.
const NEWS: usize = 64;

/// Connections that have news, and since when.
pub(super) struct News {
    list: [(u64, Ep, About); NEWS],
    n: usize,
    /// Those that were left on their rings, until the rings are looked at again.
    left: [(u64, Ep, About); NEWS],
    left_n: usize,
}

/// All zero before the first use.
pub(super) struct Desk {
    pub kernel: Reported,
    pub news: News,
    pub known: Known,
    pub returned: Returned,
}

impl Desk {
    pub const NEW: Desk =
        Desk { kernel: Reported::NONE, news: News::NONE, known: Known::NONE, returned: Returned::NONE };
}

impl News {
    const NO_NEWS: [(u64, Ep, About); NEWS] = [(0, Ep::from_index(0), About::Stream); NEWS];
    const NONE: News = News { list: News::NO_NEWS, n: 0, left: News::NO_NEWS, left_n: 0 };

    pub fn clear(&mut self) {
        self.n = 0;
    }

    pub fn len(&self) -> usize {
        self.n
    }

    pub fn all(&self) -> &[(u64, Ep, About)] {
        &self.list[..self.n]
    }

    /// Adds one; if there is no room, the latest is returned.
    pub fn add(&mut self, new: (u64, Ep, About)) -> Option<(u64, Ep, About)> {
        if let Some(place) = self.list.get_mut(self.n) {
            *place = new;
            self.n += 1;
            return None;
        }
        let latest = self.list.iter_mut().max_by_key(|(at, ..)| *at)?;
        Some(if latest.0 > new.0 { core::mem::replace(latest, new) } else { new })
    }

    /// Number `i` is left for a later look. Its bit was taken, so that the peer, if it has had more news since, has given them a time of
    /// their own: the first ones keep theirs.
    pub fn leave(&mut self, i: usize) {
        if let (Some(news), Some(place)) = (self.list.get(i), self.left.get_mut(self.left_n)) {
            (*place, self.left_n) = (*news, self.left_n + 1);
        }
    }

    /// When the first of the news of `ep` came, the latest of which came at `at`.
    pub fn first_of(&self, at: u64, ep: Ep, about: About) -> u64 {
        let left = self.left[..self.left_n].iter().filter(|(_, e, a)| (*e, *a) == (ep, about));
        left.map(|(at, ..)| *at).fold(at, u64::min)
    }

    /// The rings have been looked at.
    pub fn forget_left(&mut self) {
        self.left_n = 0;
    }

    /// In the order of their coming. One that something was sent to counts from then on, whatever else was told of it.
    pub fn sort(&mut self) {
        // They are few, and mostly in order; the standard library's sort takes a kilobyte of stack.
        for i in 1..self.n {
            let new = self.list[i];
            let to = self.list[..i].iter().rposition(|(at, ..)| *at <= new.0).map_or(0, |i| i + 1);
            self.list.copy_within(to..i, to + 1);
            self.list[to] = new;
        }
        for i in (0..self.n).rev() {
            let (_, ep, about) = self.list[i];
            if about == About::Aside && self.all().iter().any(|(_, e, a)| *e == ep && *a == About::Stream) {
                self.list.copy_within(i + 1..self.n, i);
                self.n -= 1;
            }
        }
    }
}

/// What the kernel reported, in its order.
pub(super) struct Reported {
    pub got: [epoll_event; KERNEL_EVENTS],
    /// When each was caused, as far as it is known; else [`UNKNOWN`].
    pub at: [u64; KERNEL_EVENTS],
    pub n: usize,
    /// The kernel may have more.
    pub more: bool,
    /// When it was asked.
    pub begun: u64,
    /// News on rings came not before the event of this number.
    pub base: usize,
}

pub(super) const UNKNOWN: u64 = u64::MAX;

impl Reported {
    const NONE: Reported =
        Reported { got: [NO_EVENT; KERNEL_EVENTS], at: [0; KERNEL_EVENTS], n: 0, more: false, begun: 0, base: 0 };

    /// Nothing has been reported yet.
    pub fn clear(&mut self) {
        (self.n, self.more, self.begun, self.base) = (0, false, 0, 0);
    }
}
