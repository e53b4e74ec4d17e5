//! Bytes that an exec handed on, and that several program images hold: one that is handed them forks, and its children become
//! other programs in turn. All of them map the channel in which those bytes lie (`handoff`), and there the bytes have one head:
//! `shmring::common`. Each image's own `rx_head` follows it.
#![forbid(unsafe_code)]

use crate::channel::Chan;
use crate::endpoint::Ep;
use crate::lifeline;
use core::sync::atomic::Ordering::Relaxed;
use shmring::common::{Common, Followed};
use shmring::position::RingPos;

/// In `slot` of a channel that was handed on.
#[inline(always)]
pub fn words(chan: &Chan, slot: usize) -> Common<'_> {
    Common::of(chan.slot(slot), chan.role())
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
    let fd = ep.local().fd.load(Relaxed);
    if words(chan, slot).follow(&ep.rx_head) == Followed::Drained && fd >= 0 {
        // Whoever has read the last byte may have been killed since.
        read_on(chan, slot, fd);
    }
}

/// All that is left is this image's, from there on.
pub fn take_rest(chan: &Chan, slot: usize) -> RingPos {
    words(chan, slot).take_rest()
}

/// A holder closes, with bytes unread: if that is the last one, the kernel is to send RST.
pub fn closing(chan: &Chan, slot: usize, fd: i32) {
    let was = lifeline::pack(lifeline::lingers(fd));
    let was = Some(was).filter(|was| *was != lifeline::pack(lifeline::RESETS));
    let lingers = |was| lifeline::linger(fd, lifeline::unpack(was));
    words(chan, slot).closing(was, || lifeline::linger(fd, lifeline::RESETS), lingers);
}

/// Makes a call about SO_LINGER with what the program has set there.
pub fn with_own_linger(chan: &Chan, slot: usize, fd: i32, native: impl FnOnce() -> i32) -> i32 {
    let words = words(chan, slot);
    let was = words.lingers();
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
    if !words.lingers_now(was, now) {
        // Another image has read all of it meanwhile.
        lifeline::linger(fd, lifeline::unpack(now));
    }
    r
}

/// Bytes are handed on in `slot`, and whoever hands them on may close before they are read there. `was`: SO_LINGER by now, packed.
pub fn expect_closing(chan: &Chan, slot: usize, was: u64) {
    words(chan, slot).expect_closing(was);
}

/// If all is read, the end of the connection is a FIN again, although a holder has closed before.
pub fn read_on(chan: &Chan, slot: usize, fd: i32) {
    words(chan, slot).read_on(|was| lifeline::linger(fd, lifeline::unpack(was)));
}
