//! Telling the other side of a channel, or others of this process, that a connection has news.

use crate::channel::Chan;
use crate::poller;
use core::sync::atomic::AtomicU32;
use core::sync::atomic::Ordering::Relaxed;
use shmring::layout::Producer;
use shmring::ring::{Sleeper, Stamp};
use shmring::{ring, sys, syscall};

impl Chan {
    /// Tells the other side to look at `slot`. Returns how many sleepers were woken.
    #[inline]
    pub fn notify(&self, slot: usize) -> u32 {
        let peer = self.role().peer();
        let mut rung = 0;
        let h = self.slot(slot);
        let stamp = Stamp { producer: &h.producer[self.role().tx()], now: sys::cycles };
        ring::notify(&h.side[peer as usize], self.queues(peer), slot, stamp, |sleeper| {
            rung += 1;
            match sleeper {
                Sleeper::Bell(p) => poller::ring_peer(self, p),
                Sleeper::Word(w) => wake(w),
            }
        });
        rung
    }

    /// The same for our own side: this thread has changed what others of this process wait for.
    #[cold]
    pub fn tell_own(&self, slot: usize) {
        // The pollers' words of an inherited channel are those of the process that mapped it.
        if self.inherited.load(Relaxed) == 0 {
            let role = self.role();
            // The time of our own news is for the peer's pollers.
            let stamp = Stamp { producer: &Producer::default(), now: sys::cycles };
            ring::notify(
                &self.slot(slot).side[role as usize],
                self.queues(role),
                slot,
                stamp,
                |sleeper| match sleeper {
                    Sleeper::Bell(p) => poller::ring_own(p),
                    Sleeper::Word(w) => wake(w),
                },
            );
        }
    }
}

/// Wakes those who doze on `word`.
fn wake(word: &AtomicU32) {
    // SAFETY: the kernel takes the address of the word, no more.
    unsafe { syscall!(libc::SYS_futex, core::ptr::from_ref(word), libc::FUTEX_WAKE, i32::MAX) };
}
