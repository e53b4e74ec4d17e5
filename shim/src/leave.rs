//! Leaving the ring: a connection goes back to the kernel for good.

use crate::endpoint::take_living;
use crate::rx::{READY, TakenBack};
use crate::{fds, lifeline, rx, slots, tx};
use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release, SeqCst};
use core::sync::atomic::fence;
use libc::c_int;
use shmring::family::{Reason, State};
use shmring::layout::REFUSED;
use shmring::switch::{self, Leave, RxPhase};

/// Moves a connection to the kernel for good. No-op for what is not tracked.
///
/// Our sending side goes down at once. Our receiving side stops reading the ring; the peer sends what is
/// unread over the lifeline as soon as it runs in our library again (it is woken if it sleeps there).
/// If the peer was killed, nobody can do that any more. Where the next reader is one that we do not serve, the
/// connection is then reset rather than cut short, unless nothing was left unread.
pub fn retire(fd: c_int, why: Reason) {
    let served = matches!(why, Reason::Oob | Reason::Async | Reason::EpollShared | Reason::NoFd | Reason::NoMemory);
    if !quit(fd, why, Unread::Rewind) && !served {
        lifeline::reset(fd, why);
    }
}

/// How the bytes that lie unread on the ring reach whoever reads the descriptor next.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Unread {
    /// The peer takes them back and sends them over the lifeline.
    Rewind,
    /// They stay on the ring, to be read through our calls or handed on at exec; what follows them comes over
    /// the lifeline. Needs nothing of the peer but that it looks before it sends again.
    Keep,
}

/// Moves a connection to the kernel for good, as far as it goes. False: bytes are left on the ring.
pub fn quit(fd: c_int, why: Reason, unread: Unread) -> bool {
    let Some(ep) = fds::endpoint(fd) else { return true };
    let life = ep.life();
    if fds::endpoint(fd) != Some(ep) {
        return true;
    }
    slots::give_up(ep, why);
    if ep.state() != State::Attached {
        return true;
    }
    let Some(chan) = ep.chan() else { return true };
    tx::finish(ep, chan, fd);
    ep.because(why);
    let slot = ep.slot.load(Relaxed) as usize;
    let h = chan.slot(slot);
    let (me, peer) = (&h.side[chan.role() as usize], &h.side[chan.role().peer() as usize]);
    let Some(held) = take_living(ep, &ep.rx_token, life) else { return true };
    let mut complete = true;
    let cut = |to: u64| {
        ep.rx_cut.store(to, Release);
        false
    };
    if RxPhase::from_u32(ep.rx_phase.load(Relaxed)) != RxPhase::Down {
        me.rx.store(REFUSED, Release);
        fence(SeqCst);
        if peer.up.load(Acquire) != 0 {
            let head = ep.rx_head.load(Relaxed);
            let there =
                || shmring::ring::available(&h.producer[chan.role().rx()], head, chan.ring() as u64).unwrap_or(0);
            let kept = if unread == Unread::Keep { there() } else { 0 };
            let at = head + kept;
            // Whoever moves the arbiter first decides: a peer that shuts down or closes goes down before.
            let found = me.rewind.compare_exchange(0, at + 1, AcqRel, Acquire).err().unwrap_or(0);
            // At once: if we die here, the peer must know.
            chan.notify(slot);
            let left = if found == 0 { there() } else { rx::left(ep, chan, h) };
            complete = match switch::leave(found, head, kept, left, ep.rx_cut.load(Relaxed)) {
                Leave::Down => true,
                Leave::Cut(to) => cut(to),
                Leave::Rewound => match rx::taken_back(ep, chan, fd, at) {
                    TakenBack::Yes => kept == 0 || cut(at + 1),
                    // The peer was killed before: nobody takes them back.
                    TakenBack::No => cut(head + there() + 1),
                    TakenBack::Partly => {
                        lifeline::reset(fd, why);
                        true
                    }
                },
                Leave::Closed => match rx::closed(ep, chan, fd) {
                    true => there() == 0 || rx::echoed(ep, chan, fd),
                    false => {
                        lifeline::reset(fd, why);
                        true
                    }
                },
            };
        }
        if complete {
            rx::come_down(ep, chan);
            // Nobody waits for ring bytes any more.
            ep.rx_word.fetch_and(!READY, AcqRel);
        }
    }
    if complete && !rx::dropped(ep, fd) {
        lifeline::reset(fd, why);
    }
    held.release();
    chan.notify(slot);
    complete
}

/// Retires every connection of this process that a program outside our reach could come to use.
pub fn retire_all(why: Reason, unread: Unread, only: impl Fn(c_int) -> bool) {
    for fd in 0..fds::high() {
        if fds::tracked(fd) && only(fd) {
            quit(fd, why, unread);
        }
    }
}
