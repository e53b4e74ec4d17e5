//! Telling the other side of a channel, or others of this process, that a connection has news.

use crate::channel::Chan;
use crate::kernel::{K, Kernel as _, Rung};
use crate::tls::tls;
use crate::{acts, channel, config, poller, slow};
use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::Relaxed;
use shmring::driver::Conn;
use shmring::family::Reason;
use shmring::layout::{ALONE, Role, SlotHeader};
use shmring::ring;
use shmring::ring::{About, Sleeper, Stamp};

/// Rings the doorbells that this thread has put off, for those who sleep still. It is to call this whenever it waits for the events of a set,
/// earlier where it has other things to do before, and from the first time on puts off those that it would ring for bytes, if its process stands in for other hosts: so a program is woken once for
/// all that has come for it in a turn, and finds it all, instead of once for the first, beside whom it runs. Nobody else may put them off: what a
/// program does between two calls takes any time.
#[inline]
pub fn settle() {
    if config::stands_in() {
        ring_owed();
    }
}

#[inline(never)]
fn ring_owed() {
    let owed = &tls().owed;
    owed.puts_off.set(1);
    for bell in &owed.bells {
        let (place, p) = (bell.get() >> 8, bell.get() & 0xff);
        if p != 0 {
            bell.set(0);
            if let Some(chan) = channel::at(place) {
                chan.wake_late(p as usize - 1);
            }
        }
    }
}

/// Notes that poller `p` of the other side of `chan` is to be woken. False: it is to be woken at once. So is who sleeps on one connection, and so
/// are all but one poller of a channel, since their doorbells may be dear (`weigh`).
fn owe(chan: &Chan, p: usize) -> bool {
    let owed = &tls().owed;
    if owed.puts_off.get() == 0 || p >= ALONE {
        return false;
    }
    let name = chan.place() << 8 | (p as u32 + 1);
    let place = owed.bells.iter().find(|bell| bell.get() == 0 || bell.get() >> 8 == chan.place());
    place.is_some_and(|bell| {
        if bell.get() == 0 {
            bell.set(name);
        }
        bell.get() == name
    })
}

impl Chan {
    /// Wakes poller `p` of the other side, which was told of news, if it sleeps still.
    fn wake_late(&self, p: usize) {
        ring::wake_late(&self.queues(self.role().peer())[p], |q| {
            if poller::ring_at(q) == Rung::Forbidden {
                self.shun(Reason::Seccomp);
            }
        });
    }

    /// Tells the other side to look at `slot`: the stream that this side sends goes on. Returns how many sleepers were
    /// woken.
    #[inline]
    pub fn notify(&self, slot: usize) -> u32 {
        acts::pass_on(self);
        let (role, h) = (self.role(), self.slot(slot));
        self.tell(slot, h, role, About::Stream, &h.producer[role.tx()].told)
    }

    /// The same for who has the connection at hand, and has sent bytes. A doorbell may be put off: see [`settle`].
    #[inline(always)]
    pub fn notify_of(&self, c: &Conn) -> u32 {
        acts::pass_on(self);
        let (slot, stamp) = (c.ep.slot.load(Relaxed) as usize, Stamp { told: &c.sent().told, now: K::cycles_in_order });
        self.wake(c.role.peer(), slot, c.slot, About::Stream, Some(stamp), config::stands_in())
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
        self.wake(peer, slot, h, about, stamp, false)
    }

    /// Wakes who sleeps on `slot` at `side`; how many. `late`: or has this thread do so later.
    #[inline(always)]
    fn wake(&self, side: Role, slot: usize, h: &SlotHeader, about: About, stamp: Option<Stamp>, late: bool) -> u32 {
        let (mut rung, mut since) = (0, None);
        let (queues, alone) = (self.queues(side), &h.alone[side as usize]);
        ring::notify(&h.side[side as usize], queues, alone, slot, about, stamp, |sleeper| {
            if late
                && let Sleeper::Bell(p, _) = sleeper
                && owe(self, p)
            {
                return false;
            }
            if rung == 1 && self.is_foreign() {
                since = Some(K::thread_time());
            }
            rung += 1;
            match sleeper {
                // Who sleeps hears of the lifeline. Before the word is cleared: another thread that finds it so does not ring, and must know.
                Sleeper::Bell(_, q) if poller::ring_at(q) == Rung::Forbidden => self.shun(Reason::Seccomp),
                Sleeper::Bell(..) => {}
                Sleeper::Word(w) => K::wake(w),
            }
            true
        });
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
        self.wake(self.role(), slot, self.slot(slot), About::Aside, None, false);
    }
}
