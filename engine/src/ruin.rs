//! A connection whose peer wrote what cannot be. It is lost, in both directions and for all who hold it: the lifeline is reset,
//! and from then on every call's answer is the kernel's, which is that to a RST. And one that its program has disconnected.
#![forbid(unsafe_code)]

use crate::channel::Chan;
use crate::endpoint::{Ep, REPORTED, latch, take_living};
use crate::lock::Held;
use crate::{lifeline, lock, members, peer, watchers};
use core::sync::atomic::Ordering::Relaxed;
use shmring::switch::{Again, RxPhase, TxPhase};

/// Ends it. `life`: of the record, when the contradiction was found. The caller may own the receiving direction, as one does
/// whose receive takes the sending direction down, but not the sending one.
#[cold]
pub fn ruin(ep: Ep, chan: &Chan, fd: i32, life: u32) {
    owning_both(ep, life, || {
        reset(ep, fd);
        end(ep);
    });
    watchers::drained(ep);
    // Whoever sleeps on the ring looks at the lifeline.
    chan.tell_own(ep.slot.load(Relaxed) as usize);
}

/// The program is about to disconnect the lifeline: said before, as by the kernel (`sk_disconnects` in __inet_stream_connect), since
/// the kernel wakes who sleeps in a receive there, and that receive must know why.
#[cold]
pub fn disconnecting(ep: Ep) {
    ep.disconnects.fetch_add(1, Relaxed);
}

/// The kernel refused to disconnect it.
#[cold]
pub fn not_disconnected(ep: Ep) {
    ep.disconnects.fetch_sub(1, Relaxed);
}

/// The program has disconnected the lifeline (connect(2), AF_UNSPEC), and [`disconnecting`] was called before. What lay unread is
/// gone with the connection, and so is what either side had shut down (tcp_disconnect); an error that was not told is the socket's
/// still.
#[cold]
pub fn disconnected(ep: Ep, chan: &Chan) {
    owning_both(ep, ep.life(), || {
        end(ep);
        match ep.latched.swap(0, Relaxed) {
            0 => {}
            told if told & REPORTED != 0 => {}
            errno => ep.kept.store(errno, Relaxed),
        }
        [&ep.rx_fin, &ep.rd_shut, &ep.wr_shut].iter().for_each(|w| w.store(0, Relaxed));
    });
    watchers::drained(ep);
    // Whoever sleeps on the ring looks at the lifeline.
    chan.tell_holders(ep.slot.load(Relaxed) as usize);
}

/// The connection of `ep` has been reset, and nobody is to read what lay on the ring.
#[cold]
pub fn forget(ep: Ep, chan: &Chan) {
    owning_both(ep, ep.life(), || end(ep));
    chan.tell_own(ep.slot.load(Relaxed) as usize);
}

/// Does `f` with both directions, unless another process keeps one.
fn owning_both(ep: Ep, life: u32, f: impl FnOnce()) {
    let mut held = [None, None];
    if !lock::is_mine(&ep.rx_token) {
        held[0] = take_living(ep, &ep.record().rx_token, None, life);
    }
    // In this order, as everybody who takes both.
    held[1] = take_living(ep, &ep.record().tx_token, Some(&ep.record().tx_taken), life);
    if held[1].is_some() {
        f();
    }
    held.into_iter().flatten().for_each(Held::release);
}

fn reset(ep: Ep, fd: i32) {
    if members::is_filtered() {
        // A filter may kill us for telling the kernel.
        latch(ep, libc::ECONNRESET);
    } else if peer::is_ours(ep, fd) {
        lifeline::end(fd);
    }
}

/// Both directions are the kernel's, whatever lies on the rings.
fn end(ep: Ep) {
    ep.rx_skip.store(None, Relaxed);
    ep.rx_at.store(None, Relaxed);
    ep.rx_leaving.store(0, Relaxed);
    ep.tx_again.store(Again::Nothing, Relaxed);
    ep.rx_phase.set(RxPhase::Down);
    ep.tx_phase.set(TxPhase::Down);
}
