//! Sleeping on one connection.
//!
//! A sleep is a doze first: on the word that the peer clears when it has news, which is the cheapest sleep and the quickest
//! waking there is. It hears of nothing else, so it is short; after it, or where the lifeline has a say, the thread sleeps
//! in one system call over lifeline and doorbell.
//!
//! How long a doze may be follows from how long this thread slept before. Where hundreds of threads keep the CPUs busy, an
//! answer takes longer than [`STEP`]: each of them would doze in vain, and then pay for the dearer sleep as well.
// Unsafe here: a sleep is a cancellation point: it is `unsafe` to make one with something to drop, or a lock held.
#![allow(unsafe_code)]

use crate::channel::Chan;
use crate::conn;
use crate::endpoint::Ep;
use crate::family::noted_alone;
use crate::kernel::{K, Kernel as _};
use crate::own;
use crate::poller::{
    Alone, STEP, acquire, bell, disclaim, drain, free, generation, generation_alone, is_mine, tell, watch_slot,
};
use crate::signals::Runs;
use crate::sleepers::lie_on;
use crate::tls::tls;
use core::sync::atomic::Ordering::Relaxed;
use shmring::layout::{ALONE, DOZING, Queue, SLOTS};
use shmring::ring;
use shmring::switch::{RxPhase, TxPhase};

/// Longest doze, nanoseconds, of a thread whose sleeps have been longer than [`STEP`]: how late it can hear of a peer that was
/// killed.
const LONGEST: u64 = 40_000_000;

/// Whether a thread may doze on `ep`: everything that can end its sleep is announced by the peer in shared memory, or
/// can wait for [`STEP`]. Not so while the lifeline carries bytes of the receiving direction, or a rewind waits for
/// room on it.
fn dozes(ep: Ep) -> bool {
    ep.rx_phase.get() == RxPhase::Ring && ep.tx_phase.get() != TxPhase::Rewind
}

/// Whether the sender has gone up and this side has not followed, or another one leaves the ring. Another process may read
/// the last bytes before X and leave the ring's, or have left; it cannot tell those who sleep, so they sleep in steps. Nor can one that was
/// killed while it looked at what lies on the ring (`rx::is_looked_at`), or in a receive (`conn::is_left_undone`).
pub fn in_transit(ep: Ep, chan: &Chan) -> bool {
    let p = &chan.slot(ep.slot.load(Relaxed) as usize).side[chan.role().peer() as usize];
    ep.rx_phase.get() < RxPhase::Ring && p.up.load(Relaxed).is_some()
        || ep.rx_leaving.load(Relaxed) != 0
        || conn::is_viewed_elsewhere(ep.record())
        || conn::is_left_undone(ep, chan)
}

/// How peers find this sleep.
enum Place {
    /// By the connection's own queue for a thread that sleeps on it alone.
    Alone(Alone),
    /// By a poller: another thread has that queue.
    Poller(usize),
    /// They do not: the process inherited the connection, or is out of pollers.
    Nowhere,
}

/// One sleep.
struct Sleep {
    chan: &'static Chan,
    slot: usize,
    place: Place,
    /// The word of its queue, as this sleep armed it last.
    armed: u32,
    /// News may come without a wake-up: the sleep lasts [`STEP`] at most.
    bounded: bool,
}

impl Sleep {
    fn new(ep: Ep, chan: &'static Chan) -> Sleep {
        let place = match Alone::take(ep) {
            Some(alone) => Place::Alone(alone),
            None if ep.local().inherited.load(Relaxed) != 0 => Place::Nowhere,
            None => acquire().map_or(Place::Nowhere, Place::Poller),
        };
        let slot = ep.slot.load(Relaxed) as usize;
        match place {
            Place::Alone(_) => watch_slot(chan, slot, ALONE),
            Place::Poller(p) => {
                watch_slot(chan, slot, p);
                tell(chan, p);
            }
            Place::Nowhere => {}
        }
        let bounded = matches!(place, Place::Nowhere);
        Sleep { chan, slot, place, armed: 0, bounded }
    }

    fn queue(&self) -> Option<&'static Queue> {
        match &self.place {
            Place::Alone(a) => Some(a.queue(self.chan)),
            Place::Poller(p) => Some(&self.chan.queues(self.chan.role())[*p]),
            Place::Nowhere => None,
        }
    }

    fn arm(&mut self, how: u32) {
        if let Some(q) = self.queue() {
            self.armed = how
                | match self.place {
                    Place::Poller(p) => generation(p),
                    _ => generation_alone(),
                };
            ring::arm(q, self.armed);
        }
        ring::armed();
    }

    /// The doorbell to sleep on; `None`: there is none to be had.
    fn hang(&mut self) -> Option<i32> {
        match &mut self.place {
            Place::Alone(a) => {
                let queue = a.queue(self.chan);
                a.hang(queue)
            }
            Place::Poller(p) => Some(bell(*p)),
            Place::Nowhere => None,
        }
    }

    fn drain(&self) {
        match &self.place {
            Place::Alone(a) => a.drain(),
            Place::Poller(p) if is_mine(*p) => drain(*p),
            Place::Poller(_) | Place::Nowhere => {}
        }
    }

    /// Only the word of this sleep is cleared: a handler may have forked inside it, and in the child the word is the
    /// parent's.
    fn end(self) {
        if let Some(q) = self.queue() {
            let _ = q.armed.compare_exchange(self.armed, 0, Relaxed, Relaxed);
        }
        match self.place {
            Place::Alone(a) => a.free(),
            Place::Poller(p) => {
                if is_mine(p) {
                    disclaim(self.chan, p, |slot| slot == self.slot % SLOTS);
                    ring::take_ready(&self.chan.queues(self.chan.role())[p]);
                }
                free(p);
            }
            Place::Nowhere => {}
        }
    }
}

/// Sleeps until `ready`, an event on the lifeline, the `deadline` (monotonic ns), or a signal.
/// `Err(EINTR)` as `signals::ppoll`; `Err(EAGAIN)` at the deadline. May return early without reason.
///
/// # Safety
/// Must be called without locks; a cancellation point.
pub unsafe fn sleep(
    ep: Ep,
    fd: i32,
    events: i16,
    deadline: Option<u64>,
    since: Runs,
    ready: impl Fn() -> bool,
) -> Result<(), i32> {
    let Some(chan) = ep.chan() else { return Ok(()) };
    // A doze is no cancellation point; nothing is held yet.
    // SAFETY: the caller's obligation.
    unsafe { K::cancellation_point() };
    let mut s = Sleep::new(ep, chan);
    let r = match doze(&mut s, ep, deadline, since, &ready) {
        Some(r) => r,
        // SAFETY: the caller's obligation.
        None => unsafe { sleep_deep(&mut s, ep, fd, events, deadline, since, &ready) },
    };
    s.end();
    r
}

/// Time left, nanoseconds.
fn time_left(deadline: Option<u64>) -> Result<Option<u64>, i32> {
    match deadline.map(|d| d.checked_sub(K::now())) {
        None => Ok(None),
        Some(None | Some(0)) => Err(libc::EAGAIN),
        Some(left) => Ok(left),
    }
}

/// The last look before the sleep, after arming: `Ok` with the time left if the thread is to sleep, `Err` with the
/// result if not.
fn last_look(
    s: &mut Sleep,
    ep: Ep,
    deadline: Option<u64>,
    ready: &impl Fn() -> bool,
) -> Result<Option<u64>, Result<(), i32>> {
    // Asked before `ready`: if the transit ends in between, `ready` sees the bytes on the ring.
    s.bounded |= in_transit(ep, s.chan);
    if ready() { Err(Ok(())) } else { time_left(deadline).map_err(Err) }
}

/// Sleeps on the armed word. `None`: not possible here, or the last dozes were in vain; the caller sleeps over the
/// lifeline as well.
fn doze(
    s: &mut Sleep,
    ep: Ep,
    deadline: Option<u64>,
    since: Runs,
    ready: &impl Fn() -> bool,
) -> Option<Result<(), i32>> {
    let deep = &tls().habits.deep;
    let queue = s.queue().filter(|_| !s.bounded && deep.get() == 0 && dozes(ep))?;
    s.arm(DOZING);
    let left = match last_look(s, ep, deadline, ready) {
        Ok(left) => left,
        Err(over) => return Some(over),
    };
    let word = &queue.armed;
    // Another holder could take the connection to the kernel, which this thread would hear of when its doze is over.
    let beyond = if noted_alone(ep) { u64::from(tls().habits.patience.get()) * 1000 } else { 0 };
    let longest = STEP + beyond;
    lie_on(Some(word));
    let r = K::sleep_on(word, s.armed, left.map_or(longest, |l| l.min(longest)), since);
    lie_on(None);
    if r == -(libc::EINTR as isize) {
        return Some(Err(libc::EINTR));
    }
    if r == -(libc::ETIMEDOUT as isize) {
        // The doze was in vain. The caller looks at its descriptor, which another thread may have closed, and sleeps
        // again, not dozing.
        deep.set(1);
    }
    Some(Ok(()))
}

/// Sleeps over lifeline and doorbell.
///
/// # Safety
/// As for [`sleep`].
unsafe fn sleep_deep(
    s: &mut Sleep,
    ep: Ep,
    fd: i32,
    events: i16,
    deadline: Option<u64>,
    since: Runs,
    ready: &impl Fn() -> bool,
) -> Result<(), i32> {
    let doorbell = s.hang();
    // Without one, news come without a wake-up.
    s.bounded |= doorbell.is_none();
    s.arm(0);
    let mut left = match last_look(s, ep, deadline, ready) {
        Ok(left) => left,
        Err(over) => return over,
    };
    if s.bounded {
        left = Some(left.unwrap_or(STEP).min(STEP));
    }
    let mut events = events;
    if ep.tx_phase.get() == TxPhase::Rewind {
        // A rewind is unfinished: the peer waits for bytes that the lifeline did not take. Wake when it takes more, and
        // send them, whatever this sleep is for.
        events |= libc::POLLOUT;
    }
    let mut p = [
        libc::pollfd { fd, events, revents: 0 },
        libc::pollfd { fd: doorbell.unwrap_or(-1), events: libc::POLLIN, revents: 0 },
    ];
    let begun = K::now();
    // SAFETY: two valid pollfds; no lock is held; this frame has nothing to drop.
    let r = unsafe { K::sleep(&mut p, left, core::ptr::null(), since) };
    let took = K::now() - begun;
    if took < LONGEST {
        // The sleep was shorter than a doze may be: the next one is a doze again, long enough for a sleep such as this one.
        let habits = &tls().habits;
        habits.patience.set((2 * took).min(LONGEST - STEP) as u32 / 1000);
        habits.deep.set(0);
    }
    if p[1].revents & libc::POLLNVAL != 0 {
        doorbell.into_iter().for_each(own::lost);
    } else if p[1].revents != 0 {
        s.drain();
    }
    if r == -libc::EINTR as isize { Err(libc::EINTR) } else { Ok(()) }
}
