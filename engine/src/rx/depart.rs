//! Leaving the ring for good, and waiting for the peer's part of that: with no token and no lock of ours held, so that
//! signals and other calls go on.

use super::receiving::{Receiving, see};
use crate::channel::Chan;
use crate::endpoint::Ep;
use crate::{clock, lifeline, tx};
use core::sync::atomic::Ordering::Relaxed;
use shmring::driver::{Began, Outcome, Sees, Unread, Wait};
use shmring::family::Reason;
use shmring::syscall;

/// How long one who leaves waits for the peer to do its part. Usually it is awake in our library, or is
/// woken there; then this takes microseconds. Otherwise it does it at its next call.
const PATIENCE_NS: u64 = 50_000_000;

/// The same where the peer is at it already: inside our library, or its bytes are on their way.
const LONG_PATIENCE_NS: u64 = 2_000_000_000;

/// All that one who leaves waits for, and some more: whoever is away for longer is no longer waited for by others.
const LEAVING_NS: u64 = 2 * LONG_PATIENCE_NS + 20 * PATIENCE_NS;

fn patience(wait: Wait) -> u64 {
    match wait {
        Wait::TakenBack(..) | Wait::Arrival => PATIENCE_NS,
        Wait::Closed | Wait::Echo => LONG_PATIENCE_NS,
    }
}

/// Leaves the ring. False: bytes are left on it. `life`: of the record, when the caller found the connection.
pub fn leave(ep: Ep, chan: &Chan, fd: i32, life: u32, unread: Unread, why: Reason) -> bool {
    let complete = loop {
        let Some(mut receiving) = Receiving::take(ep, chan, fd, life) else { return true };
        let me = receiving.leaver(LEAVING_NS);
        let outcome = match receiving.begin(unread, me) {
            Began::Down => {
                receiving.release();
                break true;
            }
            Began::Busy => {
                // Not for longer than that one said.
                receiving.release();
                nap();
                continue;
            }
            Began::Over(outcome) => {
                let done = receiving.conclude(0, outcome, why);
                receiving.release();
                match done {
                    Some(complete) => break complete,
                    None => continue,
                }
            }
            Began::Wait(wait) => {
                receiving.release();
                wait_for(ep, chan, fd, wait)
            }
        };
        let Some(mut receiving) = Receiving::take(ep, chan, fd, life) else { return true };
        let done = receiving.conclude(me, outcome, why);
        receiving.release();
        // If another one has taken it over: a handler that ran meanwhile, or one that lost patience with us.
        if let Some(complete) = done {
            break complete;
        }
    };
    if complete && !dropped(ep, chan, fd, life) {
        lifeline::reset(fd, why);
    }
    complete
}

/// Waits for the sender to do its part.
fn wait_for(ep: Ep, chan: &Chan, fd: i32, first: Wait) -> Outcome {
    let mut wait = first;
    let mut until = clock::now() + patience(wait);
    loop {
        let mut sees = see(ep, chan, fd, wait);
        if sees == Sees::NotYet {
            if clock::now() <= until {
                serve_other(ep);
                nap();
                continue;
            }
            sees = wait.impatient();
        }
        match sees {
            Sees::Over(outcome) => return outcome,
            Sees::Then(next) => {
                wait = next;
                until = clock::now() + patience(wait);
            }
            Sees::NotYet => {}
        }
    }
}

/// Drops all that is left of an echo, so that the next reader of the descriptor does not see it. False if it
/// does not come.
fn dropped(ep: Ep, chan: &Chan, fd: i32, life: u32) -> bool {
    let until = clock::now() + LONG_PATIENCE_NS;
    while ep.rx_skip.load(Relaxed) != 0 {
        let Some(mut receiving) = Receiving::take(ep, chan, fd, life) else { return true };
        let all = receiving.skip();
        receiving.release();
        if all {
            return true;
        }
        if clock::now() > until {
            return false;
        }
        nap();
    }
    true
}

fn nap() {
    let t = libc::timespec { tv_sec: 0, tv_nsec: 50_000 };
    // SAFETY: a valid timespec.
    unsafe { syscall!(libc::SYS_nanosleep, &raw const t, 0) };
}

/// If this process holds the other end too, perhaps this very thread uses it: does its part.
fn serve_other(ep: Ep) {
    let cookie = ep.local().peer_cookie.load(Relaxed);
    let other = crate::family::held().find(|e| cookie != 0 && e.cookie.load(Relaxed) == cookie);
    if let Some(e) = other
        && e.state() == shmring::family::State::Attached
        && let Some(chan) = e.chan()
    {
        tx::service(e, chan, e.local().fd.load(Relaxed));
    }
}
