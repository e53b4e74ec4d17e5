//! Looks at the lifeline on behalf of the sending side, and the errors found there that no call has reported yet.

use crate::channel::Chan;
use crate::endpoint::{Ep, Latched, put_back, take_latched};
use crate::kernel::{K, Kernel as _};
use crate::lifeline::{self, ENDED};
use core::sync::atomic::Ordering::Relaxed;
use shmring::family::Endpoint;

/// A sender that never reads looks at its lifeline this often, so that it learns of a peer's death no
/// later than a network would tell it. The lifeline of any connection with the same process will do.
pub const LOOK_EVERY_US: u64 = 20;

/// It looks at its own this often: a connection can end, unseen by culvert, while its process lives on (`ss -K`,
/// keep-alive, a system call made without libc).
const LOOK_SELDOM_US: u64 = 2_000;

/// Looks at the lifeline, and notes what it shows of the end.
pub fn look(ep: Ep, chan: &Chan, fd: i32, events: i16) -> i16 {
    let t = K::cycles();
    let seen = lifeline::look(fd, events);
    looked(ep, chan, t, seen);
    seen
}

/// Notes what a look that began at `t` has seen of the end.
pub fn looked(ep: Ep, chan: &Chan, t: u64, seen: i16) {
    ep.tx_checked.store(t, Relaxed);
    chan.note_alive(if seen & ENDED == 0 { t } else { 0 });
    ep.note_end(seen);
}

/// The kernel has said at time stamp `t` that the lifeline had not ended, or that was noted: as good as a look, unless one was asked for. So it
/// says to who watches the lifeline by an epoll set, each time that the set is asked.
#[inline]
pub fn spare_look(ep: Ep, chan: &Chan, t: u64) {
    let before = ep.tx_checked.load(Relaxed);
    if before != 0 && t > before && ep.rx_fin.load(Relaxed) == 0 {
        ep.tx_checked.store(t, Relaxed);
        chan.note_alive_since(t);
    }
}

/// Whether nobody has looked at a lifeline to this peer for `us` microseconds, or at this one for long. Then the
/// caller does.
pub fn look_due(ep: Ep, chan: &Chan, us: u64) -> bool {
    due(ep.record(), chan, us)
}

#[inline(always)]
pub(super) fn due(ep: &Endpoint, chan: &Chan, us: u64) -> bool {
    let t = K::cycles();
    let rate = K::cycles_per_us();
    let own = t.wrapping_sub(ep.tx_checked.load(Relaxed));
    own > us * rate && others_due(chan, t, own, us, rate)
}

#[inline(never)]
fn others_due(chan: &Chan, t: u64, own: u64, us: u64, rate: u64) -> bool {
    match chan.alive() {
        Some(at) => own > LOOK_SELDOM_US * rate || t.wrapping_sub(at) > us * rate,
        None => true,
    }
}

/// An error of the connection that this call cannot report: it took bytes before, or is none of the
/// program's. The kernel has told it once and would go on with an end of the stream; the next call reports it.
///
/// The caller has looked before that the lifeline had no error, and was not shut ([`lifeline::look`]). So EPIPE is the error of a
/// RST that came since (tcp_reset in CLOSE_WAIT), unless this side has shut down sending meanwhile: no error then (tcp_sendmsg_locked).
pub(super) fn untold(ep: Ep, e: i32) {
    ep.note_error(e);
    let kept = match e {
        libc::ECONNRESET | libc::ETIMEDOUT | libc::EHOSTUNREACH | libc::ENETUNREACH => true,
        libc::EPIPE => ep.wr_shut.load(Relaxed) == 0,
        _ => false,
    };
    if kept {
        put_back(ep, e);
    }
}

/// The latched error, as a call that sends reports it.
#[cold]
pub fn latched(ep: Ep) -> i32 {
    match take_latched(ep) {
        Some(Latched::Reported) | None => libc::EPIPE,
        Some(Latched::Now(e)) => e,
    }
}
