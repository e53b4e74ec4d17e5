//! The sending side's way between lifeline and ring: up, down, rewind, and the end.

use super::look::look;
use super::sending::Sending;
use crate::channel::Chan;
use crate::conn::conn;
use crate::endpoint::{self, Ep, Latched, REPORTED};
use crate::kernel::{K, Kernel as _};
use crate::lifeline::{self, ENDED};
use core::sync::atomic::Ordering::Relaxed;
use shmring::family::Reason;
use shmring::layout::Arbiter;
use shmring::switch::{Again, TxPhase};

/// Serves what the peer may have asked of our sending direction. Cheap when it asked nothing.
#[inline(always)]
pub fn service(ep: Ep, chan: &Chan, fd: i32) {
    let life = ep.life();
    if is_asked(ep, chan) {
        serve(ep, chan, fd, life);
    }
}

/// Whether there is something to serve. Memory only.
#[inline(always)]
pub fn is_asked(ep: Ep, chan: &Chan) -> bool {
    let c = conn(ep, chan);
    match c.ep.tx_phase.get() {
        TxPhase::Ring => c.peer().rewind.load(Relaxed) != Arbiter::Open,
        TxPhase::Rewind => true,
        _ => false,
    }
}

#[cold]
fn serve(ep: Ep, chan: &Chan, fd: i32, life: u32) {
    // A latched error is for the program's own calls to report.
    if ep.latched.load(Relaxed) != 0 {
        return;
    }
    let Some(mut sending) = Sending::take(ep, chan, fd, life) else { return };
    sending.serve();
    sending.release();
}

/// The lifeline has ended: takes our sending direction down, and latches the error that the kernel would have, had
/// it had the bytes.
pub fn sink(ep: Ep, chan: &Chan, fd: i32) {
    if ep.tx_phase.get() == TxPhase::Ring {
        leave(ep, chan, fd);
    }
}

/// The same, if the lifeline has ended and no error is latched.
pub fn sink_if_ended(ep: Ep, chan: &Chan, fd: i32) {
    if ep.latched.load(Relaxed) == 0 && look(ep, chan, fd, ENDED) & ENDED != 0 {
        sink(ep, chan, fd);
    }
}

/// Whether there is no connection any more, had the kernel had the bytes of the rings: the socket of one whose peer was killed, or has
/// closed, before it has read them has only ended, and goes on to say so.
pub fn is_reset(ep: Ep, chan: &Chan, fd: i32) -> bool {
    sink_if_ended(ep, chan, fd);
    matches!((ep.latched.load(Relaxed) & !REPORTED) as i32, libc::ECONNRESET | libc::EPIPE)
}

/// The lifeline has ended and the incoming ring is drained: takes our sending direction down, so that the
/// kernel gives the native sequence of errors, and returns the latched error, if any.
pub fn settle(ep: Ep, chan: &Chan, fd: i32) -> Option<Latched> {
    sink(ep, chan, fd);
    // See `endpoint::unreported`.
    match ep.latched.load(Relaxed) == libc::EPIPE as u32 {
        true => Some(Latched::Reported),
        false => endpoint::take_latched(ep),
    }
}

/// A receive has come to the end of the stream on the lifeline, not by way of a ring. A peer that was killed may have left bytes of
/// ours unread on the other ring: then the error of which the kernel would have told instead of the end, unless it was told before.
#[inline]
pub fn settle_native(ep: Ep, chan: &Chan, fd: i32) -> Option<i32> {
    if ep.tx_phase.get() != TxPhase::Ring || !lifeline::peer_ended(fd) {
        return None;
    }
    ep.note_end(lifeline::look(fd, lifeline::ENDED));
    settle(ep, chan, fd).and_then(Latched::now)
}

/// Takes the sending direction down for good, for a reason of this side's.
pub fn leave(ep: Ep, chan: &Chan, fd: i32) {
    go_down(ep, chan, fd, |sending| sending.leave());
}

/// The same; what lies unread is repeated on the lifeline, however much that is.
pub fn leave_repeating(ep: Ep, chan: &Chan, fd: i32) {
    go_down(ep, chan, fd, |sending| sending.leave_repeating());
}

fn go_down(ep: Ep, chan: &Chan, fd: i32, go: impl FnOnce(&mut Sending)) {
    let Some(mut sending) = Sending::take_now(ep, chan, fd) else {
        // It is stopped in the middle of a step that nobody can complete: what is sent next would come at a wrong place.
        lifeline::reset(fd, Reason::Shared);
        return;
    };
    go(&mut sending);
    sending.release();
}

/// Goes down so that what this process or another sends natively from now on comes behind it: if the
/// receiver left first, behind what it did not read, else behind the echo. The kernel would take those bytes
/// at once if it had them already; here a receiver that does not read its lifeline makes us wait, but not
/// for ever.
pub fn finish(ep: Ep, chan: &Chan, fd: i32) {
    leave(ep, chan, fd);
    flush(ep, chan, fd, false);
}

/// The same before a FIN. An echo that the lifeline does not take may stay incomplete: nothing comes behind.
pub fn finish_last(ep: Ep, chan: &Chan, fd: i32) {
    leave_repeating(ep, chan, fd);
    flush(ep, chan, fd, true);
}

/// After the FIN: what is left of an echo stays unsent.
pub fn finished(ep: Ep, chan: &Chan, fd: i32) {
    if let Some(mut sending) = Sending::take_now(ep, chan, fd) {
        sending.finished();
        sending.release();
    }
}

/// Serves a rewind to its end. If the receiver does not read its lifeline for `FINISH_NS`, the connection is
/// reset: what it asked for would be missing from a stream that seems complete.
pub fn flush(ep: Ep, chan: &Chan, fd: i32, last: bool) {
    flush_until(ep, chan, fd, last, K::now() + FINISH_NS);
}

/// The same, with the time at which a call that does so for many connections gives up.
pub fn flush_until(ep: Ep, chan: &Chan, fd: i32, last: bool, until: u64) {
    service(ep, chan, fd);
    let rewinding = || rewinds(ep);
    if !rewinding() {
        return;
    }
    if last && matches!(ep.tx_again.load(Relaxed), Again::Echo(_)) {
        // Not down yet: what another thread or process sent before the FIN would be taken for the rest of the echo.
        return;
    }
    while rewinding() && ep.latched.load(Relaxed) == 0 && K::now() < until {
        K::poll(&mut [libc::pollfd { fd, events: libc::POLLOUT, revents: 0 }], 50_000_000);
        service(ep, chan, fd);
    }
    if rewinding() {
        lifeline::reset(fd, Reason::Down);
    }
}

/// Whether something is still to be sent again over the lifeline.
pub fn rewinds(ep: Ep) -> bool {
    ep.tx_phase.get() == TxPhase::Rewind
}

/// As much of [`flush`] as can be done now. True if it needs no more. `late`: it has been tried for [`FINISH_NS`].
pub fn flushed(ep: Ep, chan: &Chan, fd: i32, late: bool) -> bool {
    service(ep, chan, fd);
    if !rewinds(ep) || ep.latched.load(Relaxed) != 0 {
        return true;
    }
    if late {
        lifeline::reset(fd, Reason::Down);
    }
    late
}

/// How long [`flush`] tries, nanoseconds.
pub const FINISH_NS: u64 = 5_000_000_000;
