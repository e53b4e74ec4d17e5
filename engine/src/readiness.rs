//! What `poll`, `select` and epoll say about an attached endpoint: ring and lifeline as one socket.
#![forbid(unsafe_code)]

use crate::channel::Chan;
use crate::endpoint::Ep;
use crate::lifeline::ENDED;
use crate::{endpoint, rx, tx};
use core::sync::atomic::Ordering::Relaxed;
use libc::{POLLERR, POLLHUP, POLLIN, POLLOUT, POLLPRI, POLLRDHUP, POLLRDNORM, POLLWRNORM};
use shmring::switch::{RxPhase, TxPhase};

const READ: i16 = POLLIN | POLLRDNORM;
/// Room to write, by either name.
pub const WRITE: i16 = POLLOUT | POLLWRNORM;
/// What only the lifeline can show: urgent data. tcp_poll has no other band.
pub const UNSEEN: i16 = POLLPRI;

/// What can be said of an endpoint, as `poll` events.
pub enum Said {
    /// This holds.
    Events(i16),
    /// This holds, and the lifeline has ended under a sending direction that is on the ring: taking that down may latch an
    /// error.
    Ended(i16),
}

/// Everything that holds now. `wanted` (also `poll` events) only says what need not be looked into; where the answer for
/// POLLOUT is no, the peer is asked to tell when it changes. Moves nothing: see `upkeep`.
pub fn ask(ep: Ep, chan: &Chan, fd: i32, wanted: i16) -> Said {
    let (events, look) = in_memory(ep, chan, fd, wanted);
    if look { add(ep, chan, events, tx::look(ep, chan, fd, LOOK)) } else { Said::Events(events) }
}

/// What is looked for on a lifeline that must be asked.
pub const LOOK: i16 = READ | WRITE | POLLPRI | POLLRDHUP;

/// What memory says, and whether only the lifeline says the rest: then [`LOOK`] is looked for there, and [`add`]ed. Now and then that takes
/// a look at the lifeline, too.
pub fn in_memory(ep: Ep, chan: &Chan, fd: i32, wanted: i16) -> (i16, bool) {
    let phase = ep.rx_phase.get();
    let available = rx::on_ring(ep, chan);
    let mut r = if ep.kept.load(Relaxed) != 0 { POLLERR } else { 0 };
    let low = rx::low(ep, chan);
    // A low-water mark counts what lies behind the end of the ring, too.
    if available >= low || (available > 0 && rx::at_end(ep, chan) && rx::unread(ep, chan, fd) >= low) {
        r |= READ;
    }
    let mut look = ep.rx_fin.load(Relaxed) != 0 || ep.rd_shut.load(Relaxed) != 0;
    match ep.tx_phase.get() {
        TxPhase::Ring if !look => {
            if wanted & WRITE != 0 {
                if tx::writable(ep, chan) {
                    r |= WRITE;
                } else {
                    tx::want_space(ep, chan);
                    if tx::writable(ep, chan) {
                        r |= WRITE;
                    }
                }
            }
        }
        TxPhase::Rewind => {}
        _ => look = true,
    }
    // Only the kernel knows whether the peer has ended, and what comes out of band.
    if phase != RxPhase::Ring || (available == 0 && rx::at_end(ep, chan)) || wanted & UNSEEN != 0 {
        look = true;
    }
    // Once the peer has said in shared memory that it ends, every question is asked of the kernel, too.
    if !look {
        look = rx::ending(ep, chan) || shows(ep, chan, fd);
    }
    let latched = ep.latched.load(Relaxed);
    if latched != 0 {
        let err = if latched & endpoint::REPORTED == 0 { POLLERR } else { 0 };
        return (r | READ | WRITE | POLLRDHUP | POLLHUP | err, false);
    }
    (r, look)
}

/// Whether the lifeline shows anything, if a look at it is due: a peer that was killed says nothing in memory. The look is made at once,
/// since that at one connection will do for all with this peer (`tx::LOOK_EVERY_US`).
pub fn shows(ep: Ep, chan: &Chan, fd: i32) -> bool {
    tx::look_due(ep, chan, tx::LOOK_EVERY_US) && tx::look(ep, chan, fd, LOOK & !WRITE) != 0
}

/// Adds what the lifeline shows to what memory says.
pub fn add(ep: Ep, chan: &Chan, mut r: i16, seen: i16) -> Said {
    let sending = ep.tx_phase.get();
    // An echo that has not been dropped is nothing to read; the end that this side has made of it is.
    let shut = ep.rd_shut.load(Relaxed) != 0;
    let readable = (shut || ep.rx_skip.load(Relaxed).is_none()) && !rx::leaving(ep);
    let read = if readable && (seen & ENDED != 0 || !rx::doubled(ep, chan)) { READ } else { 0 };
    r |= seen & (read | POLLPRI | ENDED);
    // The peer has ended: our sending side goes down at its next call, so the kernel's answer about writing holds.
    if sending == TxPhase::Native || sending == TxPhase::Down || seen & ENDED != 0 {
        r |= seen & WRITE;
    }
    if seen & ENDED != 0 && sending == TxPhase::Ring { Said::Ended(r) } else { Said::Events(r) }
}

/// Lifeline events to sleep on for somebody who wants `wanted`, so that nothing already known wakes it.
pub fn lifeline_events(ep: Ep, chan: &Chan, wanted: i16) -> i16 {
    let mut e = wanted & POLLPRI;
    if wanted & (READ | POLLRDHUP) != 0 || ep.rx_fin.load(Relaxed) == 0 && ep.rd_shut.load(Relaxed) == 0 {
        e |= POLLRDHUP;
    }
    if !rx::doubled(ep, chan) && !rx::leaving(ep) {
        e |= wanted & READ;
    }
    match ep.tx_phase.get() {
        TxPhase::Ring => {}
        // A rewind is unfinished: wake when the lifeline takes more, and send what the peer waits for, whatever the
        // program waits for.
        TxPhase::Rewind => e |= POLLOUT,
        _ => e |= wanted & WRITE,
    }
    e & !(POLLHUP | POLLERR)
}
