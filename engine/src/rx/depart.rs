//! Leaving the ring for good, and waiting for the peer's part of that: with no token and no lock of ours held, so that
//! signals and other calls go on. A call that moves many connections asks all their peers before it waits for any, and waits
//! for all of them together: see `leave`.

use super::port::see;
use super::receiving::Receiving;
use crate::channel::Chan;
use crate::endpoint::{Ep, Local};
use crate::kernel::{K, Kernel as _};
use crate::{lifeline, lock, watchers};
use core::sync::atomic::Ordering::{Relaxed, SeqCst};
use core::sync::atomic::{AtomicU32, AtomicU64};
use shmring::driver::{Began, Outcome, Sees, Unread, Wait};
use shmring::family::{PEER_STANDS_IN, Reason};
use shmring::position::RingPos;
use shmring::switch::RxPhase;

/// How long one who leaves waits for the peers to do their part. Usually a peer is awake in our library, or is
/// woken there; then this takes microseconds. Otherwise it does it at its next call.
const PATIENCE_NS: u64 = 50_000_000;

/// The same where a peer is at it already, inside our library, or its bytes are on their way; and where it stands in for other hosts:
/// such a process does nothing but look after connections, so on a busy machine it comes to this one late, and soon.
const LONG_PATIENCE_NS: u64 = 2_000_000_000;

/// All that one who leaves waits for, and some more: whoever is away for longer is no longer waited for by others.
const LEAVING_NS: u64 = 2 * LONG_PATIENCE_NS + 20 * PATIENCE_NS;

/// What one call waits for all the peers of the connections that it moves: it begins with the call, not with each of them.
#[derive(Clone, Copy)]
pub struct Patience {
    since: u64,
    /// Names the call.
    call: u32,
}

impl Patience {
    /// Begins now.
    pub fn begin() -> Patience {
        static CALLS: AtomicU32 = AtomicU32::new(1);
        Patience { since: K::now(), call: CALLS.fetch_add(1, Relaxed) }
    }

    /// Whether the call has lasted for longer than so many nanoseconds.
    pub fn is_over(self, ns: u64) -> bool {
        K::now().saturating_sub(self.since) > ns
    }

    fn ends(self, wait: Wait, ep: Ep, chan: &Chan) -> bool {
        let stands_in = ep.stands_in.load(Relaxed) == PEER_STANDS_IN;
        let long = stands_in || matches!(wait, Wait::Closed | Wait::Echo);
        let ends = self.is_over(if long && !is_tardy(chan) { LONG_PATIENCE_NS } else { PATIENCE_NS });
        if ends && long && is_foreign(chan) {
            TARDY_UNTIL.store(K::now() + TARDY_NS, Relaxed);
        }
        ends
    }
}

/// A peer of another user that says it is at it, or stands in for other hosts, and does nothing, does not get as long again before this
/// time: it could keep
/// us for as long at each call. One that is at it needs microseconds.
static TARDY_UNTIL: AtomicU64 = AtomicU64::new(0);
const TARDY_NS: u64 = 60_000_000_000;

fn is_foreign(chan: &Chan) -> bool {
    chan.peer_uid.load(Relaxed) != rendezvous::uid::own()
}

fn is_tardy(chan: &Chan) -> bool {
    let until = TARDY_UNTIL.load(Relaxed);
    until != 0 && K::now() < until && is_foreign(chan)
}

/// Notes what this thread waits for. It leaves, so nobody else does.
fn note(l: &Local, patience: Patience, life: u32, wait: Wait) {
    let (kind, at, kept) = match wait {
        Wait::TakenBack(at, kept) => (1, at, kept),
        Wait::Closed => (2, RingPos::START, 0),
        Wait::Echo => (3, RingPos::START, 0),
        Wait::Arrival => (4, RingPos::START, 0),
    };
    l.awaited.store(kind, Relaxed);
    l.awaited_at.store(at, Relaxed);
    l.awaited_kept.store(kept, Relaxed);
    l.awaited_life.store(life, Relaxed);
    l.awaited_by.store(patience.call, Relaxed);
}

/// What this call waits for at a connection that this thread leaves.
fn noted(ep: Ep, patience: Patience) -> Option<Wait> {
    let l = ep.local();
    if ep.rx_leaving.load(Relaxed) != lock::myself()
        || l.awaited_by.load(Relaxed) != patience.call
        || l.awaited_life.load(Relaxed) != ep.life()
    {
        return None;
    }
    Some(match l.awaited.load(Relaxed) {
        1 => Wait::TakenBack(l.awaited_at.load(Relaxed), l.awaited_kept.load(Relaxed)),
        2 => Wait::Closed,
        3 => Wait::Echo,
        _ => Wait::Arrival,
    })
}

/// Whether nothing is left to be waited for: the receiver is on the lifeline, and what that repeats is dropped, or it has
/// left with bytes on the ring.
pub fn departed(ep: Ep) -> bool {
    ep.rx_leaving.load(Relaxed) == 0 && (ep.rx_phase.get() != RxPhase::Down || ep.rx_skip.load(Relaxed).is_none())
}

/// Begins to leave the ring: asks the sender to do its part. `life`: of the record, when the caller found the connection.
pub fn ask(ep: Ep, chan: &Chan, fd: i32, life: u32, unread: Unread, why: Reason, patience: Patience) {
    if noted(ep, patience).is_some() {
        // Asked for by another descriptor of it.
        return;
    }
    let Some(mut receiving) = Receiving::take(ep, chan, fd, life) else {
        if ep.lives(life) {
            // Another process keeps the direction, stopped in the middle of a step that nobody can complete. Whoever reads next
            // would miss what is on the ring.
            lifeline::reset(fd, why);
        }
        return;
    };
    let me = receiving.leaver(LEAVING_NS);
    match receiving.begin(unread, me) {
        Began::Down | Began::Busy => {}
        Began::Over(outcome) => _ = receiving.conclude(0, outcome, why),
        Began::Wait(wait) => note(ep.local(), patience, life, wait),
    }
    receiving.release();
}

/// Goes on with what [`ask`] began, as far as the sender has done its part. True if there is nothing more to wait for.
pub fn look_after(ep: Ep, chan: &Chan, fd: i32, life: u32, unread: Unread, why: Reason, patience: Patience) -> bool {
    if ep.rx_leaving.load(Relaxed) != 0 {
        match noted(ep, patience) {
            Some(wait) => {
                let Some(outcome) = look(ep, chan, fd, life, wait, patience) else { return false };
                let Some(mut receiving) = Receiving::take(ep, chan, fd, life) else { return true };
                // Unless another one has taken it over: a handler that ran meanwhile, or one that lost patience with us.
                let done = receiving.conclude(lock::myself(), outcome, why);
                receiving.release();
                if done.is_none() {
                    return false;
                }
                if ep.local().turned_away.swap(0, SeqCst) != 0 {
                    watchers::turned_away(ep);
                }
            }
            // Another one leaves: not for longer than that one said.
            None => ask(ep, chan, fd, life, unread, why, patience),
        }
        if ep.rx_leaving.load(Relaxed) != 0 {
            return false;
        }
    }
    if ep.rx_phase.get() == RxPhase::Down && ep.rx_skip.load(Relaxed).is_some() {
        // All that is left of an echo is dropped, so that the next reader of the descriptor does not see it.
        let Some(mut receiving) = Receiving::take(ep, chan, fd, life) else { return true };
        let all = receiving.skip();
        receiving.release();
        if is_served(why) {
            return true;
        }
        if !all && !patience.is_over(LONG_PATIENCE_NS) {
            return false;
        }
        if !all {
            lifeline::reset(fd, why);
        }
    }
    true
}

/// Whether whoever reads next does so by this library, which drops the rest of an echo when it comes: nobody waits for that. It may
/// be what a release has read, which a peer that is busy has not even begun to send anew.
fn is_served(why: Reason) -> bool {
    matches!(why, Reason::Shared | Reason::Recalled)
}

/// What has come of a wait; `None`: nothing yet.
fn look(ep: Ep, chan: &Chan, fd: i32, life: u32, first: Wait, patience: Patience) -> Option<Outcome> {
    let mut wait = first;
    loop {
        let mut sees = see(ep, chan, fd, wait);
        if sees == Sees::NotYet {
            if !patience.ends(wait, ep, chan) {
                return None;
            }
            sees = wait.impatient();
        }
        match sees {
            Sees::Over(outcome) => return Some(outcome),
            Sees::Then(next) => {
                note(ep.local(), patience, life, next);
                wait = next;
            }
            Sees::NotYet => {}
        }
    }
}
