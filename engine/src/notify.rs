//! Telling the other side of a channel, or others of this process, that a connection has news.

use crate::channel::Chan;
use crate::kernel::{K, Kernel as _, Rung};
use crate::{acts, poller, slow};
use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::Relaxed;
use shmring::driver::Conn;
use shmring::family::Reason;
use shmring::layout::{Role, SlotHeader};
use shmring::ring;
use shmring::ring::{About, Sleeper, Stamp};

impl Chan {
    /// Tells the other side to look at `slot`: the stream that this side sends goes on. Returns how many sleepers were
    /// woken.
    #[inline]
    pub fn notify(&self, slot: usize) -> u32 {
        acts::pass_on(self);
        let (role, h) = (self.role(), self.slot(slot));
        self.tell(slot, h, role, About::Stream, &h.producer[role.tx()].told)
    }

    /// The same for who has the connection at hand.
    #[inline(always)]
    pub fn notify_of(&self, c: &Conn) -> u32 {
        acts::pass_on(self);
        self.tell(c.ep.slot.load(Relaxed) as usize, c.slot, c.role, About::Stream, &c.sent().told)
    }

    /// The same of anything else.
    #[inline]
    pub fn notify_aside(&self, slot: usize) -> u32 {
        acts::pass_on(self);
        let (role, h) = (self.role(), self.slot(slot));
        self.tell(slot, h, role, About::Aside, &h.consumer[role.rx()].told)
    }

    #[inline(always)]
    fn tell(&self, slot: usize, h: &SlotHeader, role: Role, about: About, told: &AtomicU64) -> u32 {
        let peer = role.peer();
        let stamp = Some(Stamp { told, now: K::cycles_in_order });
        self.wake(peer, slot, h, about, stamp)
    }

    /// Wakes who sleeps on `slot` at `side`; how many.
    #[inline(always)]
    fn wake(&self, side: Role, slot: usize, h: &SlotHeader, about: About, stamp: Option<Stamp>) -> u32 {
        let (mut rung, mut since, mut forbidden) = (0, None, false);
        let (queues, alone) = (self.queues(side), &h.alone[side as usize]);
        ring::notify(&h.side[side as usize], queues, alone, slot, about, stamp, |sleeper| {
            if rung == 1 && self.is_foreign() {
                since = Some(K::thread_time());
            }
            rung += 1;
            match sleeper {
                Sleeper::Bell(_, q) => forbidden |= poller::ring_at(q) == Rung::Forbidden,
                Sleeper::Word(w) => K::wake(w),
            }
        });
        if forbidden {
            // Who sleeps hears of the lifeline.
            self.shun(Reason::Seccomp);
        }
        if let Some(since) = since {
            self.weigh(K::thread_time().saturating_sub(since));
        }
        rung
    }

    /// A doorbell is a socket of its owner's, whose filter runs at the cost of whoever rings: so does the kernel run a TCP socket's when
    /// somebody sends to it over the loopback. But a peer can have 64 doorbells for a connection. Of another user's, all but
    /// the first took `ns` of this thread's time: a peer whose doorbells are dear again and again goes to the kernel.
    #[cold]
    fn weigh(&self, ns: u64) {
        const DEAR_NS: u64 = 100_000;
        if ns > DEAR_NS && slow::note_dear(&self.dear, self.peer_uid.load(Relaxed)) {
            self.shun(Reason::Slow);
        }
    }

    /// Tells our own side: this thread has changed what others of this process wait for. The names of their doorbells lie in
    /// memory that the peer writes, too, and are weighed as its own.
    #[cold]
    pub fn tell_own(&self, slot: usize) {
        // The pollers' words of an inherited channel are those of the process that mapped it.
        if self.inherited.load(Relaxed) == 0 {
            self.tell_holders(slot);
        }
    }

    /// The same, also of what others of the family wait for: in an inherited channel the pollers' words are those of the process
    /// that mapped it, and those who inherited it sleep in steps.
    #[cold]
    pub fn tell_holders(&self, slot: usize) {
        self.wake(self.role(), slot, self.slot(slot), About::Aside, None);
    }
}
