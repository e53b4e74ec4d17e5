//! The receiving side's way between lifeline and ring: readiness, up, down, and the echo that comes after.

use super::look::{end, me, peer};
use super::receiving::Receiving;
use crate::channel::Chan;
use crate::conn::conn;
use crate::endpoint::{Ep, latch};
use crate::lifeline;
use core::sync::atomic::Ordering::{Acquire, Relaxed};
use shmring::family::{FIN, RST};
use shmring::switch::{self, RxPhase};

/// `rx_word`: the ring may be used; threads of the family no longer block natively.
pub const READY: u32 = shmring::family::OPEN;

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
    let phase = || ep.rx_phase.get();
    // A low-water mark is for the kernel to judge, once it has all.
    let early = ep.rcvlowat.load(Relaxed) > 1 && doubled(ep, chan);
    let c = conn(ep, chan);
    let moves = match phase() {
        RxPhase::Ring => early || end(ep, c.me(), c.peer()) == ep.rx_head.load(Relaxed) + 1,
        RxPhase::Native | RxPhase::Transit => c.peer().up.load(Acquire) != 0,
        RxPhase::Down => ep.rx_skip.load(Relaxed) != 0,
    };
    if moves || leaving(ep) {
        let Some(mut receiving) = Receiving::take(ep, chan, fd, life) else { return RxPhase::Down };
        receiving.advance(early);
        receiving.release();
    }
    phase()
}

/// Whether another one leaves the ring, and others do not receive meanwhile.
pub fn leaving(ep: Ep) -> bool {
    ep.rx_leaving.load(Relaxed) != 0
}

/// See [`switch::doubled`].
pub fn doubled(ep: Ep, chan: &Chan) -> bool {
    let h = chan.slot(ep.slot.load(Relaxed) as usize);
    let phase = ep.rx_phase.get();
    switch::doubled(phase, me(chan, h).rewind.load(Acquire), peer(chan, h).echo.load(Acquire))
}
