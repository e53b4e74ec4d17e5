//! The receiving side's way between lifeline and ring: readiness, up, down, and the echo that comes after.

use super::look::{end, me, peer};
use crate::channel::Chan;
use crate::endpoint::Ep;
use crate::endpoint::latch;
use crate::{endpoint, lifeline};
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use shmring::family::{FIN, RST};
use shmring::layout::{self, CLOSED};
use shmring::switch::{self, RxPhase};
use shmring::syscall;

/// `rx_word`: the ring may be used; threads of the family no longer block natively.
pub const READY: u32 = 1 << 31;

/// Declares this side ready to receive on the ring, if no thread of the family waits natively.
pub fn make_ready(ep: Ep, chan: &Chan) -> bool {
    let w = ep.rx_word.load(Relaxed);
    if w == READY {
        return true;
    }
    if w == 0 && ep.rx_word.compare_exchange(0, READY, Acquire, Relaxed).is_ok() {
        let slot = ep.slot.load(Relaxed) as usize;
        let me = &chan.slot(slot).side[chan.role() as usize];
        // A refusal by another holder stands.
        if me.rx.compare_exchange(0, layout::READY, Release, Relaxed).is_ok() {
            chan.notify(slot);
        }
        return true;
    }
    false
}

/// Bytes of the lifeline consumed so far, and bytes lying there. The direction is owned.
pub fn received(ep: Ep, fd: i32) -> Option<(u64, u64)> {
    if ep.rx_fin.load(Relaxed) < FIN && lifeline::look(fd, 0) & libc::POLLERR != 0 {
        // Only its error tells whether a RST came behind a FIN: EPIPE (tcp_reset in CLOSE_WAIT). To ask takes it.
        if let Ok(e) = lifeline::option(fd, libc::SOL_SOCKET, libc::SO_ERROR)
            && e != 0
        {
            latch(ep, e);
            ep.rx_fin.store(if e == libc::EPIPE { FIN } else { RST }, Relaxed);
        }
    }
    if let Some(at) = ep.rx_at.load(Relaxed).checked_sub(1) {
        // A FIN is what the kernel has counted and we have not. An error does not tell: a RST behind a FIN is
        // ECONNRESET as well, in LAST_ACK.
        let counted = lifeline::received(fd, Some(false));
        return counted.map(|(consumed, queued)| (consumed - u64::from(consumed == at + 1), queued));
    }
    let fin = match ep.rx_fin.load(Relaxed) {
        FIN => Some(true),
        RST => Some(false),
        _ => ep.chan().and_then(|chan| {
            let p = peer(chan, chan.slot(ep.slot.load(Relaxed) as usize));
            match ep.wr_shut.load(Relaxed) {
                // A connection that this side has not shut down is closed by a RST only, whoever has had its error:
                // perhaps behind the FIN of a peer that has shut down.
                0 => Some(p.wr_shut.load(Relaxed) != 0),
                // A peer that has finished says so, unless another program image of its did.
                _ => (p.wr_shut.load(Relaxed) | p.gone.load(Relaxed) != 0).then_some(true),
            }
        }),
    };
    lifeline::received(fd, fin)
}

/// Moves a receiver on towards the ring as far as the lifeline allows, without reading. Returns its phase.
pub fn advance(ep: Ep, chan: &Chan, fd: i32) -> RxPhase {
    let life = ep.life();
    let h = chan.slot(ep.slot.load(Relaxed) as usize);
    let p = peer(chan, h);
    let up = p.up.load(Acquire);
    let drained = || end(ep, me(chan, h), p) == ep.rx_head.load(Relaxed) + 1;
    // A low-water mark is for the kernel to judge, once it has all.
    let judged = || ep.rcvlowat.load(Relaxed) > 1 && doubled(ep, chan);
    if RxPhase::from_u32(ep.rx_phase.load(Relaxed)) == RxPhase::Ring {
        if drained() || judged() {
            let Some(held) = endpoint::take_living(ep, &ep.rx_token, life) else { return RxPhase::Down };
            if drained() || judged() && all_echoed(ep, chan, fd) {
                come_down(ep, chan);
            }
            held.release();
        }
    } else if up != 0 {
        let Some(held) = endpoint::take_living(ep, &ep.rx_token, life) else { return RxPhase::Down };
        let phase = RxPhase::from_u32(ep.rx_phase.load(Relaxed));
        if matches!(phase, RxPhase::Native | RxPhase::Transit)
            && let Some((consumed, _)) = received(ep, fd)
        {
            if consumed == up - 1 {
                go_up(ep, chan, up - 1);
            } else {
                ep.rx_phase.store(RxPhase::Transit as u32, Relaxed);
            }
        }
        held.release();
    }
    if ep.rx_skip.load(Relaxed) != 0 {
        let Some(held) = endpoint::take_living(ep, &ep.rx_token, life) else { return RxPhase::Down };
        skip(ep, fd);
        held.release();
    }
    RxPhase::from_u32(ep.rx_phase.load(Relaxed))
}

/// Moves the receiver to the ring. The direction is owned.
pub(super) fn go_up(ep: Ep, chan: &Chan, x: u64) {
    ep.rx_up.store(x, Relaxed);
    ep.rx_phase.store(RxPhase::Ring as u32, Release);
    // The sender has told of what lies there when it came; others have gone to sleep since, on the lifeline.
    chan.tell_own(ep.slot.load(Relaxed) as usize);
    crate::log!(Debug, "endpoint {}: receiving on the ring from byte {x}", ep.index());
}

/// Moves the receiver to the lifeline for good, from where it has read the ring to. The direction is owned.
pub fn come_down(ep: Ep, chan: &Chan) {
    let h = chan.slot(ep.slot.load(Relaxed) as usize);
    let (rewind, echo) = (me(chan, h).rewind.load(Acquire), peer(chan, h).echo.load(Acquire));
    if !matches!(rewind, 0 | CLOSED) {
        // A holder that died when it had moved the arbiter may have told nobody.
        chan.notify(ep.slot.load(Relaxed) as usize);
    }
    let to = switch::skip(rewind, echo, ep.rx_up.load(Relaxed), ep.rx_head.load(Relaxed), chan.ring() as u64);
    if to != 0 {
        // Nothing was read there since the ring began; of what an image before this one has read, only the kernel knows.
        ep.rx_at.store(if chan.id.load(Relaxed) == 0 { 0 } else { ep.rx_up.load(Relaxed).wrapping_add(1) }, Relaxed);
        ep.rx_skip.store(to, Relaxed);
    }
    ep.rx_phase.store(RxPhase::Down as u32, Release);
    crate::log!(Debug, "endpoint {}: receiving on the lifeline again", ep.index());
}

/// Phase, arbiter and echo.
fn echoing(ep: Ep, chan: &Chan) -> (RxPhase, u64, u64) {
    let h = chan.slot(ep.slot.load(Relaxed) as usize);
    let phase = RxPhase::from_u32(ep.rx_phase.load(Relaxed));
    (phase, me(chan, h).rewind.load(Acquire), peer(chan, h).echo.load(Acquire))
}

/// See [`switch::doubled`].
pub fn doubled(ep: Ep, chan: &Chan) -> bool {
    let (phase, rewind, echo) = echoing(ep, chan);
    switch::doubled(phase, rewind, echo)
}

/// Whether all that lies unread on the ring is on the lifeline, too. The direction is owned.
pub(super) fn all_echoed(ep: Ep, chan: &Chan, fd: i32) -> bool {
    let (phase, rewind, echo) = echoing(ep, chan);
    switch::all_echoed(phase, rewind, echo) && arrived(ep, chan, fd)
}

/// See [`switch::arrived`]. The direction is owned.
pub(super) fn arrived(ep: Ep, chan: &Chan, fd: i32) -> bool {
    let p = peer(chan, chan.slot(ep.slot.load(Relaxed) as usize));
    let (up, down, echo) = (p.up.load(Acquire), p.down.load(Acquire), p.echo.load(Acquire));
    received(ep, fd).is_some_and(|(consumed, queued)| switch::arrived(up, down, echo, consumed + queued))
}

/// Drops what the lifeline repeats of bytes that were read from the ring, as far as it has come. True if all
/// of it has. The direction is owned.
pub(super) fn skip(ep: Ep, fd: i32) -> bool {
    let to = ep.rx_skip.load(Relaxed);
    if to == 0 {
        return true;
    }
    loop {
        let ended = lifeline::peer_ended(fd);
        let (left, queued) = match received(ep, fd) {
            Some((consumed, queued)) => (to.saturating_sub(consumed), queued),
            // Not a connection any more: the kernel says what it is.
            None => (0, 0),
        };
        // A sender that finished, or was killed, may not have repeated all of it.
        if left == 0 || (queued == 0 && ended) {
            ep.rx_at.store(0, Relaxed);
            ep.rx_skip.store(0, Relaxed);
            return true;
        }
        if queued == 0 {
            return false;
        }
        // tcp(7): MSG_TRUNC discards.
        // SAFETY: nothing is written.
        let r = unsafe {
            syscall!(libc::SYS_recvfrom, fd, 0, left.min(queued), libc::MSG_TRUNC | libc::MSG_DONTWAIT, 0, 0)
        };
        if r <= 0 {
            return false;
        }
        if ep.rx_at.load(Relaxed) != 0 {
            ep.rx_at.fetch_add(r as u64, Relaxed);
        }
    }
}
