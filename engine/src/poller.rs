//! Pollers: things that wait. A thread in a blocking call is one, and so is an epoll set.
//!
//! A poller owns a doorbell that the peers of its connections ring (`rendezvous::bell`). Pollers are numbered; the number is
//! the bit by which peers know it, and the place in the shared memory where they find what to ring. A process that runs out
//! of pollers or descriptors sleeps in short bounded steps instead.
#![forbid(unsafe_code)]

use crate::channel::Chan;
use crate::endpoint::Ep;
use crate::kernel::{K, Kernel as _, Rung};
use crate::own;
use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use core::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, AtomicU64, fence};
use shmring::layout::{ALONE, DOZING, POLLERS, Queue};
use shmring::ring::{self, About};

struct Bell {
    fd: AtomicI32,
    /// What rings it.
    name: AtomicU64,
    key: AtomicU64,
    /// 0, or what it is used by: [`SET`], or the thread with this id.
    used: AtomicU32,
}

/// [`Bell::used`]: an epoll set's. No thread has this id.
const SET: u32 = u32::MAX;

impl Bell {
    const fn new() -> Bell {
        Bell { fd: AtomicI32::new(-1), name: AtomicU64::new(0), key: AtomicU64::new(0), used: AtomicU32::new(0) }
    }

    fn take(&self, by: u32) -> bool {
        self.used.compare_exchange(0, by, AcqRel, Relaxed).is_ok()
    }

    /// The same for thread `me`, which may have it already: a handler has left its wait by longjmp, or waits inside it. Then the
    /// outer wait ends when the handler returns.
    fn take_again(&self, me: u32) -> bool {
        self.used.load(Relaxed) == me || self.take(me)
    }

    /// Takes it from a thread that has ended inside its wait (pthread_cancel). Asked for before a new doorbell is made.
    fn take_over(&self, me: u32) -> bool {
        match self.used.load(Relaxed) {
            0 | SET => false,
            tid => has_ended(tid) && self.used.compare_exchange(tid, me, AcqRel, Relaxed).is_ok(),
        }
    }

    /// Gives back what thread `me` has, unless it has done so already inside a handler.
    fn give_back(&self, me: u32) {
        let _ = self.used.compare_exchange(me, 0, Release, Relaxed);
    }

    /// Makes sure that it is there; else gives it back.
    fn ready(&'static self) -> bool {
        let there = self.fd.load(Relaxed) >= 0 || self.open();
        if !there {
            self.give_back(crate::tls::tid());
        }
        there
    }

    fn open(&'static self) -> bool {
        if !can_ring() || own::are_few() {
            return false;
        }
        let Ok(b) = K::open_bell() else { return false };
        self.name.store(b.name, Relaxed);
        self.key.store(b.key, Relaxed);
        let heard = ring(b.name, b.key) == Rung::Heard;
        K::drain(b.fd);
        self.fd.store(b.fd, Relaxed);
        if !heard {
            K::close(self.fd.swap(-1, Relaxed));
        }
        heard && own::adopt(&self.fd)
    }

    /// The child of a fork shares its parent's: it must have its own.
    fn forget(&'static self) {
        own::discard(&self.fd);
        self.used.store(0, Relaxed);
    }
}

/// Whether a thread of this process has ended. False if nobody can tell.
fn has_ended(tid: u32) -> bool {
    // The child of a vfork is another process, and cannot ask for our threads.
    crate::tls::tls().vfork.get() == 0 && !crate::members::is_filtered() && !K::has_thread(tid)
}

struct Poller {
    bell: Bell,
    generation: AtomicU32,
}

static ALL: [Poller; POLLERS] = [const { Poller { bell: Bell::new(), generation: AtomicU32::new(0) } }; POLLERS];

/// Doorbells of threads that sleep on one connection, and have no poller: see `ALONE`.
static THREADS: [Bell; 1024] = [const { Bell::new() }; 1024];

/// The socket that rings. A forked child uses its parent's, and so has its parent's home (`rendezvous::home`): wherever it goes,
/// its peers are where this rings.
static RINGER: AtomicI32 = AtomicI32::new(-1);

/// Makes sure that this process can ring. False: it cannot.
pub fn can_ring() -> bool {
    if RINGER.load(Relaxed) < 0
        && let Ok(fd) = K::ringer(own::place)
        && RINGER.compare_exchange(-1, fd, AcqRel, Relaxed).is_err()
    {
        K::close(fd);
    }
    RINGER.load(Relaxed) >= 0
}

/// Number `fd` was ours and is another file's now. Nobody waits for that file, and nothing is written to it: a connected socket
/// takes bytes for any address.
pub fn lost(fd: i32) {
    own::lost(fd);
    let _ = RINGER.compare_exchange(fd, -1, AcqRel, Relaxed);
}

/// This process has parted from those that ring with the same socket: they could shut it down. A thread that is not at home
/// leaves it at that.
pub fn renew_ringer() {
    let old = RINGER.load(Relaxed);
    if old >= 0
        && let Ok(fresh) = K::ringer(|fd| fd)
    {
        // Under the same number: a thread may be ringing with it.
        K::duplicate_to(fresh, old);
        K::close(fresh);
    }
}

/// Rings a doorbell, our own or another process's.
fn ring(name: u64, key: u64) -> Rung {
    let mut spare = ALL.iter().map(|p| p.bell.fd.load(Relaxed)).filter(|fd| *fd >= 0);
    if SILENT.load(Relaxed) { Rung::Unheard } else { K::ring(RINGER.load(Relaxed), name, key, &mut spare) }
}

/// This process has gone to the kernel, and may make no call any more that is not its own.
static SILENT: AtomicBool = AtomicBool::new(false);

/// Rings nobody from now on: a system-call filter may kill us for it.
pub fn silence() {
    SILENT.store(true, Relaxed);
}

/// Longest step of a bounded sleep, nanoseconds.
pub const STEP: u64 = 5_000_000;

/// Takes a poller with a doorbell for this thread: the one that it had last, which its peers know; else one that has a
/// doorbell; else a new one.
pub fn acquire() -> Option<usize> {
    let me = crate::tls::tid();
    let habit = &crate::tls::tls().habits.poller;
    let last = habit.load(Relaxed).map(|i| i as usize).filter(|&i| i < ALONE && ALL[i].bell.take_again(me));
    let p = match last {
        Some(p) => p,
        None => find(&ALL[..ALONE], |p| &p.bell, me)?,
    };
    habit.store(Some(p as u32), Relaxed);
    ALL[p].bell.ready().then_some(p)
}

/// The same for an epoll set.
pub fn acquire_for_set() -> Option<usize> {
    let p = acquire()?;
    ALL[p].bell.used.store(SET, Relaxed);
    Some(p)
}

/// Takes one that has a doorbell; else one of a thread that has ended; else one without.
fn find<T>(all: &'static [T], bell: impl Fn(&'static T) -> &'static Bell, me: u32) -> Option<usize> {
    /// A search for threads that have ended asks the kernel for each: one that was in vain is not made again so soon.
    const AGAIN_NS: u64 = 10_000_000;
    static NOT_BEFORE: AtomicU64 = AtomicU64::new(0);
    let hung = |b: &Bell| b.fd.load(Relaxed) >= 0;
    let position = |take: &dyn Fn(&Bell) -> bool| all.iter().position(|b| take(bell(b)));
    let left = || {
        let now = K::now();
        if now < NOT_BEFORE.load(Relaxed) {
            return None;
        }
        let found = position(&|b| hung(b) && b.take_over(me));
        if found.is_none() {
            NOT_BEFORE.store(now + AGAIN_NS, Relaxed);
        }
        found
    };
    position(&|b| hung(b) && b.take(me)).or_else(left).or_else(|| position(&|b| b.take(me)))
}

/// Frees this thread's poller for another; its doorbell is kept for that.
pub fn free(p: usize) {
    ALL[p].bell.give_back(crate::tls::tid());
}

/// The same for an epoll set's.
pub fn free_of_set(p: usize) {
    ALL[p].bell.give_back(SET);
}

/// Whether poller `p` is still this thread's: a handler that ran inside its wait may have waited, too, with the same one, and
/// given it back.
pub fn is_mine(p: usize) -> bool {
    ALL[p].bell.used.load(Relaxed) == crate::tls::tid()
}

/// A poller's doorbell.
pub fn bell(p: usize) -> i32 {
    ALL[p].bell.fd.load(Relaxed)
}

/// The child of a fork has doorbells of its own.
pub fn after_fork_child() {
    ALL.iter().map(|p| &p.bell).chain(&THREADS).for_each(Bell::forget);
}

/// A new sleep generation of a poller; never 0.
pub fn generation(p: usize) -> u32 {
    (ALL[p].generation.fetch_add(1, Relaxed).wrapping_add(1) & !DOZING).max(1)
}

/// Empties a doorbell that was heard.
pub fn drain(p: usize) {
    K::drain(bell(p));
}

/// Rings one of our own doorbells, if there is one.
pub fn ring_own(p: usize) {
    let b = &ALL[p].bell;
    if b.fd.load(Relaxed) >= 0 {
        ring(b.name.load(Relaxed), b.key.load(Relaxed));
    }
}

/// Rings the doorbell that a queue names, as its owner says. Before the poller was armed, it said so.
pub fn ring_at(q: &Queue) -> Rung {
    // B: pairs with the fence in `hang`; the poller is known to be armed.
    fence(Acquire);
    let name = q.bell.load(Relaxed);
    if name == 0 { Rung::Unheard } else { ring(name, q.key.load(Relaxed)) }
}

/// Tells the other side of `chan` what rings poller `p`. Call before the poller is armed there.
#[inline]
pub fn tell(chan: &Chan, p: usize) {
    hang(&ALL[p].bell, &chan.queues(chan.role())[p]);
}

/// Names a doorbell in a queue. Call before the queue is armed.
#[inline]
fn hang(b: &Bell, q: &Queue) {
    let (name, key) = (b.name.load(Relaxed), b.key.load(Relaxed));
    if q.bell.load(Relaxed) != name || q.key.load(Relaxed) != key {
        q.bell.store(name, Relaxed);
        q.key.store(key, Relaxed);
        // B
        fence(Release);
    }
}

/// Asks the peer to tell poller `p` of news of the connection in `slot`.
pub fn watch_slot(chan: &Chan, slot: usize, p: usize) {
    let mine = &chan.slot(slot).side[chan.role() as usize].pollers;
    if mine.load(Relaxed) & (1 << p) == 0 {
        mine.fetch_or(1 << p, AcqRel);
    }
}

/// Poller `p` was told of news of connections of `chan`. Those for which `wanted` says no were asked for by whoever had the
/// number before: their peers do not tell it any more. To be called by whoever has the number.
pub fn disclaim(chan: &Chan, p: usize, wanted: impl Fn(usize) -> bool) {
    let q = &chan.queues(chan.role())[p];
    for about in [About::Stream, About::Aside] {
        let mut bits = ring::marks(q, about);
        while bits != 0 {
            let slot = bits.trailing_zeros() as usize;
            bits &= bits - 1;
            if !wanted(slot) {
                chan.slot(slot).side[chan.role() as usize].pollers.fetch_and(!(1 << p), AcqRel);
                ring::take(q, about, 1 << slot);
            }
        }
    }
}

/// A thread that sleeps on one connection alone, with the connection's own queue for such a thread.
pub struct Alone {
    ep: Ep,
    /// Its doorbell, in [`THREADS`], once it has one.
    bell: Option<usize>,
}

impl Alone {
    /// Takes the queue. `None`: another thread of this process has it, or this process may not use it.
    pub fn take(ep: Ep) -> Option<Alone> {
        let (mine, word) = (crate::tls::tid(), &ep.local().alone);
        // Our own: a handler has left our sleep by longjmp, or sleeps inside it; the outer sleep looks again.
        let taken = match word.load(Relaxed) {
            tid if tid == mine => true,
            0 => word.compare_exchange(0, mine, AcqRel, Relaxed).is_ok(),
            // It has ended inside its sleep.
            tid => has_ended(tid) && word.compare_exchange(tid, mine, AcqRel, Relaxed).is_ok(),
        };
        (taken && ep.local().inherited.load(Relaxed) == 0).then_some(Alone { ep, bell: None })
    }

    /// Where peers find it.
    pub fn queue(&self, chan: &'static Chan) -> &'static Queue {
        &chan.slot(self.ep.slot.load(Relaxed) as usize).alone[chan.role() as usize]
    }

    /// Its doorbell, named in the queue. `None`: there is none to be had.
    pub fn hang(&mut self, q: &Queue) -> Option<i32> {
        let (mine, habit) = (crate::tls::tid(), &crate::tls::tls().habits.bell);
        let last =
            habit.load(Relaxed).map(|i| i as usize).filter(|&i| THREADS.get(i).is_some_and(|b| b.take_again(mine)));
        let i = match last {
            Some(last) => last,
            None => find(&THREADS, |b| b, mine)?,
        };
        habit.store(Some(i as u32), Relaxed);
        let b = &THREADS[i];
        if !b.ready() {
            return None;
        }
        self.bell = Some(i);
        hang(b, q);
        Some(b.fd.load(Relaxed))
    }

    /// Empties its doorbell.
    pub fn drain(&self) {
        if let Some(i) = self.bell
            && THREADS[i].used.load(Relaxed) == crate::tls::tid()
        {
            K::drain(THREADS[i].fd.load(Relaxed));
        }
    }

    /// Gives back what it has.
    pub fn free(self) {
        if let Some(i) = self.bell {
            THREADS[i].give_back(crate::tls::tid());
        }
        let _ = self.ep.local().alone.compare_exchange(crate::tls::tid(), 0, Release, Relaxed);
    }
}

/// A new sleep generation of a thread that sleeps alone; never 0.
pub fn generation_alone() -> u32 {
    static LAST: AtomicU32 = AtomicU32::new(0);
    (LAST.fetch_add(1, Relaxed).wrapping_add(1) & !DOZING).max(1)
}

/// What each process has for itself, as far as tests go.
#[cfg(test)]
pub fn words(each: &mut dyn FnMut(crate::sim::process::Word)) {
    each((&RINGER).into());
    each((&SILENT).into());
    for b in ALL.iter().map(|p| &p.bell).chain(&THREADS[..16]) {
        each((&b.fd).into());
        each((&b.name).into());
        each((&b.key).into());
        each((&b.used).into());
    }
}
