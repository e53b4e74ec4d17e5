//! Leaving the ring: a connection goes back to the kernel for good.
#![forbid(unsafe_code)]

use crate::channel::Chan;
use crate::endpoint::Ep;
use crate::{family, fds, lifeline, peer, rx, slots, tx};
use core::sync::atomic::Ordering::Relaxed;
use libc::c_int;
pub use shmring::driver::Unread;
use shmring::family::{Reason, State};
use shmring::switch::{RxPhase, TxPhase};

/// Moves a connection to the kernel for good; it is this library that goes on to read it. No-op for what is not tracked.
///
/// Our sending side goes down at once; what it still has to repeat on the lifeline goes there ahead of our next send. Our
/// receiving side reads what lies on the ring, which needs nothing of the peer: it may be busy, or asleep outside of the
/// library, for as long as it likes. Where somebody waits for the lifeline without us (a signal, an epoll set of another
/// process, urgent data), the bytes have to go there: the peer sends what is unread over the lifeline as soon as it runs in
/// our library again (it is woken if it sleeps there). Nothing here waits for the lifeline.
pub fn retire(fd: c_int, why: Reason) {
    let unread = match why {
        Reason::Option | Reason::Recalled => Unread::Keep,
        _ => Unread::Rewind,
    };
    go(fd, why, unread, tx::leave);
}

/// Moves the sending side to the kernel, so that what the kernel is given next, by a call of its own, comes behind what was
/// sent before.
pub fn sending_side(fd: c_int, why: Reason) {
    if let Some(ep) = fds::endpoint(fd)
        && ep.state() == State::Attached
        && let Some(chan) = ep.chan()
    {
        tx::finish(ep, chan, fd);
        ep.because(why);
    } else {
        retire(fd, why);
    }
}

/// The same where the next reader is one that we do not serve: another program image, another process, stdio, the kernel in
/// a call of its own.
///
/// If the peer was killed, or does not run in our library in time, nobody can give that reader what is unread on the ring.
/// The connection is then reset rather than cut short, unless nothing was left unread.
pub fn surrender(fd: c_int, why: Reason) {
    if !quit(fd, why, Unread::Rewind) {
        lifeline::reset(fd, why);
    }
}

/// Moves a connection to the kernel for good, as far as it goes. False: bytes are left on the ring.
pub fn quit(fd: c_int, why: Reason, unread: Unread) -> bool {
    go(fd, why, unread, tx::finish)
}

/// The same; `send` takes the sending side down.
fn go(fd: c_int, why: Reason, unread: Unread, send: fn(Ep, &Chan, c_int)) -> bool {
    let Some(ep) = fds::endpoint(fd) else { return true };
    let life = ep.life();
    if fds::endpoint(fd) != Some(ep) {
        return true;
    }
    slots::give_up(ep, why);
    if ep.state() != State::Attached || !peer::is_ours(ep, fd) {
        return true;
    }
    let Some(chan) = ep.chan() else { return true };
    send(ep, chan, fd);
    ep.because(why);
    let complete = rx::leave(ep, chan, fd, life, unread, why);
    chan.notify_aside(ep.slot.load(Relaxed) as usize);
    complete
}

/// Whether all of a connection is the kernel's, for good.
pub fn has_left(ep: Ep) -> bool {
    ep.rx_phase.get() == RxPhase::Down && ep.rx_skip.load(Relaxed) == 0 && ep.tx_phase.get() == TxPhase::Down
}

/// Retires every connection of this process that a program outside our reach could come to use.
pub fn retire_all(why: Reason, unread: Unread, only: impl Fn(c_int) -> bool) {
    for fd in 0..fds::high() {
        if fds::tracked(fd) && only(fd) {
            quit(fd, why, unread);
        }
    }
}

/// A connection that is used once `culvert kernel` was asked to bring it back.
#[cold]
pub fn recall(ep: Ep, fd: c_int) {
    if family::is_due(ep) {
        retire(fd, Reason::Recalled);
        // Whatever came of it.
        ep.because(Reason::Recalled);
    }
}
