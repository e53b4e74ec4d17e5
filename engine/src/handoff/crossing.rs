//! What crosses an exec, and under which numbers: for those who pass it on, and for those who take it up.
#![forbid(unsafe_code)]

use crate::channel;
use crate::endpoint::{self, Ep};
use crate::fds::{self, Kind};
use crate::lock::Held;
use crate::{lifeline, own, rx};
use core::sync::atomic::Ordering::Relaxed;
use shmring::family::State;
use shmring::layout::Arbiter;
use shmring::lnx;
use shmring::switch::RxPhase;

/// So many memfds cross an exec at most.
pub(super) const NUMBERS: usize = 8;

/// The numbers that memfds have across the exec: just below our own descriptors, unless the program uses them.
pub(super) fn numbers() -> core::ops::Range<i32> {
    (own::floor() - NUMBERS as i32).max(3)..own::floor()
}

/// In an offer's `slot`, where a role stands otherwise: this entry is another descriptor of a connection that has an entry
/// before it.
pub(super) const ALSO: u32 = u32::MAX - 1;

/// In an offer's `acceptor`, beside the descriptor: its holder has passed the channel on once more. By then the descriptors may have
/// other numbers, and be more.
pub(super) const AGAIN: u64 = 1 << 32;

/// Channel, slot and number of bytes, if this side has left the ring, or its sender has finished, while bytes lie
/// unread there.
pub(super) fn unread_ring(ep: Ep) -> Option<(&'static channel::Chan, usize, u64)> {
    if ep.state() != State::Attached || ep.rx_phase.get() == RxPhase::Down {
        return None;
    }
    let chan = ep.chan()?;
    let slot = ep.slot.load(Relaxed) as usize;
    let h = chan.slot(slot);
    if h.side[chan.role() as usize].rewind.load(Relaxed) != Arbiter::Closed && ep.rx_cut.load(Relaxed).is_none() {
        return None;
    }
    let n = rx::left(ep, chan, h);
    (n > 0).then_some((chan, slot, n))
}

/// Whether bytes of `ep` are to be read here that the kernel does not know, and will not: they lie on a ring that has ended, or
/// that this side has left. Memory only.
pub fn has_bytes(ep: Ep) -> bool {
    unread_ring(ep).is_some()
}

/// What the next image cannot have from the kernel: as [`unread_ring`]; or no bytes, but an error of the connection that this
/// library has taken to know how it ended, and that no call has reported. Without it a stream that was reset would end well.
pub(super) fn left_behind(ep: Ep) -> Option<(&'static channel::Chan, usize, u64)> {
    unread_ring(ep).or_else(|| {
        let due = ep.state() == State::Attached && endpoint::unreported(ep);
        due.then(|| ep.chan()).flatten().map(|chan| (chan, ep.slot.load(Relaxed) as usize, 0))
    })
}

/// Whether `fd` is open, and stays so across an exec.
fn is_inherited(fd: i32) -> bool {
    let flags = lnx::descriptor_flags(fd);
    flags >= 0 && flags as i32 & libc::FD_CLOEXEC == 0
}

/// Whether the program lets `fd` go across an exec. A child of vfork has descriptors that the table, its parent's, does not know.
fn is_handed_down(fd: &i32) -> bool {
    fds::get(*fd) != Kind::Ours && is_inherited(*fd)
}

/// Behind all such numbers.
pub(super) fn inheritable_end() -> i32 {
    (0..fds::high().max(1024)).rev().find(is_handed_down).map_or(0, |last| last + 1)
}

/// Every such descriptor below `end` that refers to the socket with this cookie.
pub(super) fn inheritable(cookie: u64, end: i32) -> impl Iterator<Item = i32> {
    (0..end).filter(is_handed_down).filter(move |&fd| lifeline::cookie(fd) == Some(cookie))
}

/// Whether the next image has a descriptor of `ep`.
pub fn survives(ep: Ep) -> bool {
    (0..fds::high()).any(|fd| fds::endpoint(fd) == Some(ep) && is_inherited(fd))
}

/// The receiving direction of `ep`, in this thread's hands: no other thread reads on, or moves a mapping, while bytes of the ring are
/// copied. `None`: another process keeps it.
pub(super) fn receiver(ep: Ep) -> Option<Held<'static>> {
    endpoint::take_living(ep, &ep.record().rx_token, None, ep.life())
}
