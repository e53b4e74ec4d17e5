//! Bytes of the ring that the program looks at where they lie: [`view`], and [`release`].
//!
//! They stay where they are until it has released them, whatever is received meanwhile: nothing from there on is given back to
//! the sender (`shmring::driver::view`).
// Unsafe here: a vector that names no memory.
#![allow(unsafe_code)]

use super::common;
use super::receiving::{Got, Receiving};
use crate::buffers::Buffers;
use crate::channel::Chan;
use crate::endpoint::Ep;
use crate::members;
use core::sync::atomic::Ordering::Relaxed;
use libc::iovec;
use shmring::layout::{self, HOME};
use shmring::position::RingPos;
use shmring::ring;
use shmring::switch::RxPhase;

/// What the program looks at.
#[derive(Clone, Copy)]
pub struct View {
    /// Where it is: one piece, or two.
    pub span: [iovec; 2],
    /// Bytes in both.
    pub len: usize,
    /// Which look at its connection it is.
    pub number: u64,
    /// Where on the ring it begins.
    pub at: RingPos,
}

/// What lies on the ring next, at least `min` bytes. `None`: there is less, or it cannot be looked at where it lies.
pub fn view(ep: Ep, chan: &Chan, fd: i32, life: u32, min: usize) -> Option<View> {
    if common::is_common(ep, chan) {
        return None;
    }
    let mut receiving = Receiving::take(ep, chan, fd, life)?;
    let view = if ep.local().refs.load(Relaxed) == 0 { None } else { look(ep, chan, &mut receiving, min) };
    receiving.release();
    view
}

fn look(ep: Ep, chan: &Chan, receiving: &mut Receiving, min: usize) -> Option<View> {
    let record = ep.record();
    let (slot, dir) = (record.slot.load(Relaxed) as usize, chan.role().rx());
    // All of the bulk is mapped before the program has an address in it: a mapping that grows later may move.
    let all = layout::bulk_len(chan.ring());
    // Not under a system-call filter, which may end the process for a mapping.
    if members::is_filtered() || all > 0 && chan.at(slot, dir, HOME, all).is_none() {
        return None;
    }
    let n = receiving.view()?;
    let at = record.rx_head.load(Relaxed);
    let mut span = [iovec { iov_base: core::ptr::null_mut(), iov_len: 0 }; 2];
    let (mut i, mut len) = (0, 0);
    for (off, piece) in chan.geometry().spans(ring::base(&chan.slot(slot).producer[dir]), at, n) {
        if piece == 0 || i == span.len() {
            continue;
        }
        let Some(p) = chan.at(slot, dir, off, piece) else { break };
        span[i] = iovec { iov_base: p.cast(), iov_len: piece };
        (i, len) = (i + 1, len + piece);
    }
    if len < min.max(1) {
        receiving.end_view();
        return None;
    }
    let number = record.rx_view.load(Relaxed).wrapping_add(1);
    record.rx_view.store(number, Relaxed);
    Some(View { span, len, number, at })
}

/// Ends look `number` of the connection as it was in that `life`, which began at `at`, and takes its first `n` bytes from the stream,
/// unless they have been taken meanwhile. How many of them are still to be taken, since the connection has left the ring;
/// `None`: the record is another connection's by now.
pub fn release(ep: Ep, chan: &Chan, fd: i32, life: u32, number: u64, at: RingPos, n: usize) -> Option<usize> {
    let mut receiving = Receiving::take(ep, chan, fd, life)?;
    let record = ep.record();
    if record.rx_viewed.load(Relaxed) == members::myself() && record.rx_view.load(Relaxed) == number {
        receiving.end_view();
    }
    let taken = record.rx_head.load(Relaxed).since(at);
    let mut left = n.saturating_sub(usize::try_from(taken).unwrap_or(usize::MAX));
    while left > 0 && record.rx_phase.get() == RxPhase::Ring {
        // Nothing is copied.
        let nowhere = iovec { iov_base: core::ptr::without_provenance_mut(1), iov_len: left };
        // SAFETY: one local element.
        let Some(mut b) = (unsafe { Buffers::new(&raw const nowhere, 1) }) else { break };
        match receiving.attempt(&mut b, left, libc::MSG_TRUNC, false) {
            Got::Bytes(n) if n > 0 => left -= n.min(left),
            _ => break,
        }
    }
    receiving.release();
    Some(left)
}
