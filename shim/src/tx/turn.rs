//! The sending side's way between lifeline and ring: up, down, rewind, and the end.

use super::sending::{Sending, Turn};
use crate::channel::Chan;
use crate::conn::conn;
use crate::endpoint::Ep;
use crate::lifeline::{self, ENDED};
use crate::{clock, endpoint};
use core::sync::atomic::Ordering::Relaxed;
use shmring::family::Reason;
use shmring::switch::{Again, TxPhase};
use shmring::{sys, syscall};

/// A sender that never reads looks at its lifeline this often, so that it learns of a peer's death no
/// later than a network would tell it. The lifeline of any connection with the same process will do.
pub const LOOK_EVERY_US: u64 = 20;

/// It looks at its own this often: a connection can end, unseen by culvert, while its process lives on (`ss -K`,
/// keep-alive, a system call made without libc).
const LOOK_SELDOM_US: u64 = 2_000;

/// Whether nobody has looked at a lifeline to this peer for `us` microseconds, or at this one for long. Then the
/// caller does.
pub fn look_due(ep: Ep, chan: &Chan, us: u64) -> bool {
    let t = sys::cycles();
    let rate = clock::cycles_per_us();
    let own = t.wrapping_sub(ep.tx_checked.load(Relaxed));
    match chan.alive() {
        _ if own <= us * rate => false,
        Some(at) => own > LOOK_SELDOM_US * rate || t.wrapping_sub(at) > us * rate,
        None => true,
    }
}

/// Looks at the lifeline, and notes what it shows of the end.
pub fn look(ep: Ep, chan: &Chan, fd: i32, events: i16) -> i16 {
    let t = sys::cycles();
    let seen = lifeline::look(fd, events);
    ep.tx_checked.store(t, Relaxed);
    chan.note_alive(if seen & ENDED == 0 { t } else { 0 });
    ep.note_end(seen);
    seen
}

/// An error of the connection that this call cannot report: it took bytes before, or is none of the
/// program's. The kernel has told it once and would go on with an end of the stream; the next call reports it.
pub(super) fn untold(ep: Ep, e: i32) {
    ep.note_error(e);
    if matches!(e, libc::ECONNRESET | libc::ETIMEDOUT | libc::EHOSTUNREACH | libc::ENETUNREACH) {
        ep.latched.store(e as u32, Relaxed);
    }
}

/// Serves what the peer may have asked of our sending direction. Cheap when it asked nothing.
pub fn service(ep: Ep, chan: &Chan, fd: i32) {
    let life = ep.life();
    let asked = match ep.tx_phase.get() {
        TxPhase::Ring => conn(ep, chan).peer().rewind.load(Relaxed) != 0,
        TxPhase::Rewind => true,
        _ => false,
    };
    // A latched error is for the program's own calls to report.
    if asked && ep.latched.load(Relaxed) == 0 {
        serve(ep, chan, fd, life);
    }
}

#[cold]
fn serve(ep: Ep, chan: &Chan, fd: i32, life: u32) {
    let Some(mut sending) = Sending::take(ep, chan, fd, life) else { return };
    if let Turn::Error(e) = sending.turn() {
        untold(ep, e);
    }
    sending.release();
}

/// The lifeline has ended: takes our sending direction down, and latches the error that the kernel would have, had
/// it had the bytes.
pub fn sink(ep: Ep, chan: &Chan, fd: i32) {
    if ep.tx_phase.get() == TxPhase::Ring {
        leave(ep, chan, fd);
    }
}

/// The lifeline has ended and the incoming ring is drained: takes our sending direction down, so that the
/// kernel gives the native sequence of errors, and returns the latched error, if any (`Some(0)`: reported).
pub fn settle(ep: Ep, chan: &Chan, fd: i32) -> Option<i32> {
    sink(ep, chan, fd);
    // See `endpoint::unreported`.
    if ep.latched.load(Relaxed) == libc::EPIPE as u32 { Some(0) } else { endpoint::take_latched(ep) }
}

/// Takes the sending direction down for good, for a reason of this side's.
pub fn leave(ep: Ep, chan: &Chan, fd: i32) {
    let mut sending = Sending::take_now(ep, chan, fd);
    sending.leave();
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
    leave(ep, chan, fd);
    flush(ep, chan, fd, true);
}

/// After the FIN: what is left of an echo stays unsent.
pub fn finished(ep: Ep, chan: &Chan, fd: i32) {
    let mut sending = Sending::take_now(ep, chan, fd);
    sending.finished();
    sending.release();
}

/// Serves a rewind to its end. If the receiver does not read its lifeline for `FINISH_NS`, the connection is
/// reset: what it asked for would be missing from a stream that seems complete.
pub fn flush(ep: Ep, chan: &Chan, fd: i32, last: bool) {
    service(ep, chan, fd);
    let rewinding = || ep.tx_phase.get() == TxPhase::Rewind;
    if !rewinding() {
        return;
    }
    if last && matches!(Again::from_word(ep.tx_again.load(Relaxed)), Again::Echo(_)) {
        // Not down yet: what another thread or process sent before the FIN would be taken for the rest of the echo.
        return;
    }
    let until = clock::now() + FINISH_NS;
    while rewinding() && ep.latched.load(Relaxed) == 0 && clock::now() < until {
        let mut p = libc::pollfd { fd, events: libc::POLLOUT, revents: 0 };
        let t = libc::timespec { tv_sec: 0, tv_nsec: 50_000_000 };
        // SAFETY: one pollfd and a timeout, both locals.
        unsafe { syscall!(libc::SYS_ppoll, &raw mut p, 1, &raw const t, 0, 8) };
        service(ep, chan, fd);
    }
    if rewinding() {
        lifeline::reset(fd, Reason::Down);
    }
}

/// How long [`flush`] tries, nanoseconds.
const FINISH_NS: u64 = 5_000_000_000;
