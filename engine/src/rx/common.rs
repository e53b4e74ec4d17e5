//! Bytes that an exec or a spawn handed on, and that several program images hold: one that is handed them forks, and its children
//! become other programs in turn; and who spawns a program goes on to read. All of them map the channel in which those bytes lie
//! (`handoff`), and there the bytes have one head: `shmring::common`. Each image's own `rx_head` follows it.
#![forbid(unsafe_code)]

use crate::channel::{self, Chan};
use crate::endpoint::Ep;
use crate::lifeline;
use core::sync::atomic::Ordering::Relaxed;
use shmring::common::{Common, Followed};
use shmring::position::RingPos;

/// In `slot` of a channel that is handed on.
fn words(chan: &Chan, slot: usize, base: RingPos) -> Common<'_> {
    Common::of(chan.slot(slot), chan.role(), base)
}

/// Whether other images hold what is unread on the ring, too.
#[inline(always)]
pub fn is_common(ep: Ep, chan: &Chan) -> bool {
    chan.is_handed_on() || ep.local().passed.load(Relaxed).is_some()
}

/// Where that lies for all of them: the channel that this image was handed, or in which it has handed them on; and the slot there.
pub fn carrier(ep: Ep, chan: &'static Chan) -> Option<(&'static Chan, usize)> {
    if chan.is_handed_on() {
        return Some((chan, ep.slot.load(Relaxed) as usize));
    }
    let l = ep.local();
    channel::at(l.passed.get()?).map(|passed| (passed, l.passed_slot.load(Relaxed) as usize))
}

/// See [`is_common`].
#[cold]
pub fn common(ep: Ep, chan: &Chan) -> Option<Common<'_>> {
    if chan.is_handed_on() {
        return Some(words(chan, ep.slot.load(Relaxed) as usize, RingPos::START));
    }
    let l = ep.local();
    let passed = channel::at(l.passed.get()?)?;
    Some(words(passed, l.passed_slot.load(Relaxed) as usize, l.passed_at.load(Relaxed)))
}

/// This process has copied what is unread on the ring into `slot` of `to`, for a program that it starts, and reads on from there
/// with all that are handed it. The direction is owned.
pub fn share(ep: Ep, to: &Chan, slot: usize) {
    let l = ep.local();
    l.passed_at.store(ep.rx_head.load(Relaxed), Relaxed);
    l.passed_slot.store(slot as u32, Relaxed);
    l.passed.set(Some(to.place()));
}

/// The connection is over for this process.
pub fn forget(ep: Ep) {
    if let Some(chan) = ep.local().passed.swap(None, Relaxed).and_then(channel::at)
        && !chan.is_shared()
    {
        let held = channel::MAPPING.lock();
        chan.close();
        held.release();
    }
}

/// Takes over what others have read.
#[inline(always)]
pub fn follow(ep: Ep, chan: &Chan) {
    if is_common(ep, chan) {
        catch_up(ep, chan);
    }
}

#[cold]
fn catch_up(ep: Ep, chan: &Chan) {
    let fd = ep.local().fd.load(Relaxed);
    if common(ep, chan).is_some_and(|c| c.follow(&ep.rx_head) == Followed::Drained) && fd >= 0 {
        // Whoever has read the last byte may have been killed since.
        read_on(ep, chan, fd);
    }
}

/// All that is left is this image's, from there on; `None`: nobody else has it.
pub fn take_rest(ep: Ep, chan: &Chan) -> Option<RingPos> {
    common(ep, chan).map(|c| c.take_rest())
}

/// A holder closes, with bytes unread: if that is the last one, the kernel is to send RST.
pub fn closing(ep: Ep, chan: &Chan, fd: i32) {
    let was = lifeline::pack(lifeline::lingers(fd));
    let was = Some(was).filter(|was| *was != lifeline::pack(lifeline::RESETS));
    let lingers = |was| lifeline::linger(fd, lifeline::unpack(was));
    if let Some(c) = common(ep, chan) {
        c.closing(was, || lifeline::linger(fd, lifeline::RESETS), lingers);
    }
}

/// Makes a call about SO_LINGER with what the program has set there.
pub fn with_own_linger(ep: Ep, chan: &Chan, fd: i32, native: impl FnOnce() -> i32) -> i32 {
    let Some((words, was)) = common(ep, chan).map(|c| (c, c.lingers())).filter(|(_, was)| *was != 0) else {
        return native();
    };
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
    words(chan, slot, RingPos::START).expect_closing(was);
}

/// If all is read, the end of the connection is a FIN again, although a holder has closed before.
pub fn read_on(ep: Ep, chan: &Chan, fd: i32) {
    if let Some(c) = common(ep, chan) {
        c.read_on(|was| lifeline::linger(fd, lifeline::unpack(was)));
    }
}
