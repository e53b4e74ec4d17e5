//! A connection whose peer wrote what cannot be. It is lost, in both directions and for all who hold it: the lifeline is reset,
//! and from then on every call's answer is the kernel's, which is that to a RST.
#![forbid(unsafe_code)]

use crate::channel::Chan;
use crate::endpoint::{Ep, latch, take_living};
use crate::lock::Held;
use crate::{lifeline, lock, members, peer};
use core::sync::atomic::Ordering::Relaxed;
use shmring::switch::{Again, RxPhase, TxPhase};

/// Ends it. `life`: of the record, when the contradiction was found. The caller may own the receiving direction, as one does
/// whose receive takes the sending direction down, but not the sending one.
#[cold]
pub fn ruin(ep: Ep, chan: &Chan, fd: i32, life: u32) {
    let mut held = [None, None];
    if !lock::is_mine(&ep.rx_token) {
        held[0] = take_living(ep, &ep.record().rx_token, None, life);
    }
    // In this order, as everybody who takes both.
    held[1] = take_living(ep, &ep.record().tx_token, Some(&ep.record().tx_taken), life);
    if held[1].is_some() {
        end(ep, fd);
    }
    held.into_iter().flatten().for_each(Held::release);
    // Whoever sleeps on the ring looks at the lifeline.
    chan.tell_own(ep.slot.load(Relaxed) as usize);
}

/// Both directions are owned.
fn end(ep: Ep, fd: i32) {
    if members::is_filtered() {
        // A filter may kill us for telling the kernel.
        latch(ep, libc::ECONNRESET);
    } else if peer::is_ours(ep, fd) {
        lifeline::end(fd);
    }
    ep.rx_skip.store(None, Relaxed);
    ep.rx_at.store(None, Relaxed);
    ep.rx_leaving.store(0, Relaxed);
    ep.tx_again.store(Again::Nothing, Relaxed);
    ep.rx_phase.set(RxPhase::Down);
    ep.tx_phase.set(TxPhase::Down);
}
