//! Waiting for the peer's part, by one who leaves the ring for good.

use super::advance::{arrived, received, skip};
use super::look::peer;
use crate::channel::Chan;
use crate::endpoint::Ep;
use crate::{clock, lifeline, tx};
use core::sync::atomic::Ordering::{Acquire, Relaxed};
use shmring::layout::ECHOED;
use shmring::{switch, syscall};

/// How long one who leaves waits for the peer to do its part. Usually it is awake in our library, or is
/// woken there; then this takes microseconds. Otherwise it does it at its next call.
const PATIENCE_NS: u64 = 50_000_000;

/// The same where the peer is at it already: inside our library, or its bytes are on their way.
const LONG_PATIENCE_NS: u64 = 2_000_000_000;

/// Looks until `done`, for `ns` at most.
fn patiently(ns: u64, mut done: impl FnMut() -> bool) -> bool {
    let until = clock::now() + ns;
    loop {
        if done() {
            return true;
        }
        if clock::now() > until {
            return false;
        }
        let t = libc::timespec { tv_sec: 0, tv_nsec: 50_000 };
        // SAFETY: a valid timespec.
        unsafe { syscall!(libc::SYS_nanosleep, &raw const t, 0) };
    }
}

/// Drops all that is left of an echo, so that the next reader of the descriptor does not see it. False if it
/// does not come. The direction is owned.
pub fn dropped(ep: Ep, fd: i32) -> bool {
    ep.rx_skip.load(Relaxed) == 0 || patiently(LONG_PATIENCE_NS, || skip(ep, fd))
}

/// The sender has gone down: waits until it has said where, and with that what it echoes, or has ended. False if it
/// does neither: what it is about to echo cannot be known, not even that it is nothing.
pub fn closed(ep: Ep, chan: &Chan, fd: i32) -> bool {
    let h = chan.slot(ep.slot.load(Relaxed) as usize);
    let p = peer(chan, h);
    patiently(LONG_PATIENCE_NS, || {
        if p.down.load(Acquire) != 0 || lifeline::peer_ended(fd) {
            return true;
        }
        serve_other(ep);
        false
    })
}

/// The sender has finished: whether all that lies unread on the ring has been repeated on the lifeline. The direction is
/// owned.
pub fn echoed(ep: Ep, chan: &Chan, fd: i32) -> bool {
    let h = chan.slot(ep.slot.load(Relaxed) as usize);
    let p = peer(chan, h);
    let complete = || p.echo.load(Acquire) & ECHOED != 0;
    let mut ended = false;
    patiently(LONG_PATIENCE_NS, || {
        if complete() || ended {
            return true;
        }
        ended = lifeline::peer_ended(fd);
        serve_other(ep);
        false
    });
    if !complete() {
        return false;
    }
    // What has not come by then waits for the next reader to make room.
    let mut there = false;
    patiently(PATIENCE_NS, || {
        ended = lifeline::peer_ended(fd);
        there = arrived(ep, chan, fd);
        there || ended
    });
    there || !ended
}

/// Whether a peer took back what lay unread on the ring.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum TakenBack {
    /// It did, or will at its next call.
    Yes,
    /// It was killed before.
    No,
    /// It was killed over it.
    Partly,
}

/// After the arbiter was moved to ring position `at`: waits a little for the peer to take back what is unread.
pub fn taken_back(ep: Ep, chan: &Chan, fd: i32, at: u64) -> TakenBack {
    let slot = ep.slot.load(Relaxed) as usize;
    let p = peer(chan, chan.slot(slot));
    chan.notify(slot);
    let mut ended = false;
    patiently(PATIENCE_NS, || {
        // In this order: a peer that finishes serves the rewind before its FIN.
        if ended || p.down.load(Acquire) == at + 1 {
            return true;
        }
        ended = lifeline::peer_ended(fd);
        serve_other(ep);
        false
    });
    if !ended || p.down.load(Acquire) == at + 1 {
        return TakenBack::Yes;
    }
    match received(ep, fd) {
        Some((consumed, queued)) if !switch::killed_over_it(p.up.load(Relaxed), consumed + queued) => TakenBack::No,
        _ => TakenBack::Partly,
    }
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
