//! Bytes that an exec handed on, and that several program images hold: one that is handed them forks, and its children become
//! other programs in turn. All of them map the channel in which those bytes lie (`handoff`), and there they have one head: whoever
//! moves it over bytes has these, and nobody else. Each image's own `rx_head` follows it.
#![forbid(unsafe_code)]

use crate::channel::Chan;
use crate::endpoint::Ep;
use crate::lifeline;
use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, SeqCst};
use shmring::position::RingPos;

/// How many bytes were read: in a word that is free here, since nobody sends on this channel.
fn head(chan: &Chan, slot: usize) -> &AtomicU64 {
    chan.slot(slot).consumer[chan.role().tx()].head.word()
}

/// SO_LINGER, packed, as it was before a holder closed with bytes unread; else 0.
fn lingers(chan: &Chan, slot: usize) -> &AtomicU64 {
    &chan.slot(slot).producer[chan.role().tx()].told
}

fn behind_start(at: RingPos) -> u64 {
    at.claim().behind(RingPos::START)
}

/// All bytes that there are.
fn all(chan: &Chan, slot: usize) -> u64 {
    chan.slot(slot).producer[chan.role().rx()].tail.load(Relaxed).behind(RingPos::START)
}

/// Takes over what others have read.
#[inline(always)]
pub fn follow(ep: Ep, chan: &Chan) {
    if chan.is_handed_on() {
        catch_up(ep, chan);
    }
}

#[cold]
fn catch_up(ep: Ep, chan: &Chan) {
    let slot = ep.slot.load(Relaxed) as usize;
    let read = head(chan, slot).load(Acquire);
    let mine = ep.rx_head.load(Relaxed);
    if read > behind_start(mine) && read <= all(chan, slot) {
        // If it fails, this process has read on meanwhile, or follows already.
        let _ = ep.rx_head.compare_exchange(mine, RingPos::START.plus(read), Relaxed, Relaxed);
    }
}

/// The `n` bytes at `at` are this image's. False: others have read from there meanwhile.
pub fn claim(chan: &Chan, slot: usize, at: RingPos, n: u64) -> bool {
    let from = behind_start(at);
    head(chan, slot).compare_exchange(from, from.wrapping_add(n), AcqRel, Relaxed).is_ok()
}

/// ... but only the first `got` of them could be taken.
pub fn give_back(chan: &Chan, slot: usize, at: RingPos, n: u64, got: u64) {
    let from = behind_start(at);
    let _ = head(chan, slot).compare_exchange(from.wrapping_add(n), from.wrapping_add(got), AcqRel, Relaxed);
}

/// A holder closes, with bytes unread: if that is the last one, the kernel is to send RST. `was`: SO_LINGER, packed.
pub fn closing(chan: &Chan, slot: usize, fd: i32, was: u64) {
    let _ = lingers(chan, slot).compare_exchange(0, was, SeqCst, SeqCst);
    lifeline::linger(fd, lifeline::RESETS);
    read_on(chan, slot, fd);
}

/// Makes a call about SO_LINGER with what the program has set there.
pub fn with_own_linger(chan: &Chan, slot: usize, fd: i32, native: impl FnOnce() -> i32) -> i32 {
    let kept = lingers(chan, slot);
    let was = kept.load(SeqCst);
    if was == 0 {
        return native();
    }
    // Otherwise nobody has closed yet who has handed them on.
    let resets = lifeline::pack(lifeline::lingers(fd)) == lifeline::pack(lifeline::RESETS);
    if resets {
        lifeline::linger(fd, lifeline::unpack(was));
    }
    let r = native();
    let now = lifeline::pack(lifeline::lingers(fd));
    if resets {
        lifeline::linger(fd, lifeline::RESETS);
    }
    if kept.compare_exchange(was, now, SeqCst, SeqCst).is_err() {
        // Another image has read all of it meanwhile.
        lifeline::linger(fd, lifeline::unpack(now));
    }
    r
}

/// Bytes are handed on in `slot`, and whoever hands them on may close before they are read there. `was`: SO_LINGER by now, packed.
pub fn expect_closing(chan: &Chan, slot: usize, was: u64) {
    lingers(chan, slot).store(was, SeqCst);
}

/// If all is read, the end of the connection is a FIN again, although a holder has closed before.
pub fn read_on(chan: &Chan, slot: usize, fd: i32) {
    if head(chan, slot).load(SeqCst) >= all(chan, slot) {
        let was = lingers(chan, slot).swap(0, SeqCst);
        if was != 0 {
            lifeline::linger(fd, lifeline::unpack(was));
        }
    }
}
