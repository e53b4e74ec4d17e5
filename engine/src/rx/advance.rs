//! The receiving side's way between lifeline and ring: readiness, up, down, and the echo that comes after.

use super::arrived::fin_on_closed;
use super::common::follow;
use super::look::{contradiction, end, me, peer};
use super::receiving::Receiving;
use crate::channel::Chan;
use crate::conn::{conn, is_left_undone};
use crate::endpoint::Ep;
use crate::lifeline;
use core::sync::atomic::Ordering::{Acquire, Relaxed};
use shmring::position::StreamPos;
use shmring::switch::{self, RxPhase};

/// Moves a receiver on towards the ring as far as the lifeline allows, without reading. Returns its phase.
pub fn advance(ep: Ep, chan: &Chan, fd: i32) -> RxPhase {
    follow(ep, chan);
    let life = ep.life();
    let phase = || ep.rx_phase.get();
    // A low-water mark is for the kernel to judge, once it has all.
    let early = ep.rcvlowat.load(Relaxed) > 1 && doubled(ep, chan);
    let c = conn(ep, chan);
    let moves = match phase() {
        RxPhase::Ring => {
            early
                || end(c.ep, c.me(), c.peer()) == Some(ep.rx_head.load(Relaxed).claim())
                || contradiction(&c).is_some()
                || is_left_undone(ep, chan)
        }
        RxPhase::Native | RxPhase::Transit => c.peer().up.load(Acquire).is_some(),
        RxPhase::Down => ep.rx_skip.load(Relaxed).is_some(),
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

/// Whether what lies unread on the ring comes over the lifeline, too: some of it has come, and the kernel knows whether somebody
/// has read that; or it is still on its way, and is answered with a RST if it finds the socket closed (tcp_rcv_state_process).
/// False if its sender has ended before it could repeat anything.
pub fn comes_again(ep: Ep, chan: &Chan, fd: i32) -> bool {
    if !doubled(ep, chan) {
        return false;
    }
    let up = peer(chan, chan.slot(ep.slot.load(Relaxed) as usize)).up.load(Acquire);
    // In this order: what is repeated comes ahead of the end.
    let ended = lifeline::peer_ended(fd);
    // The socket's error is for those to hear who read on.
    let come = || lifeline::received(fd, fin_on_closed(ep), &ep.record().urgent);
    let more = |(consumed, queued): (StreamPos, u64)| {
        let all = consumed.plus(queued);
        up.is_some_and(|x| x.up_to(all).is_ok_and(|x| x != all))
    };
    !ended || come().is_some_and(more)
}

/// Whether all that the lifeline has to read repeats what lies on the ring.
pub fn only_repeats(ep: Ep, chan: &Chan, fd: i32) -> bool {
    let p = peer(chan, chan.slot(ep.slot.load(Relaxed) as usize));
    doubled(ep, chan)
        && p.echo.load(Acquire).zip(p.down.load(Acquire)).is_some_and(|(echo, down)| {
            // `down` is published behind the echo's beginning.
            let all = lifeline::counted_all(fd, &ep.record().urgent);
            all.is_some_and(|all| all <= down.behind_claim(echo.from))
        })
}
