//! A send that finds no room on the ring.
// Unsafe here: a wait is a cancellation point.
#![allow(unsafe_code)]

use super::{stirred, unread, want_space};
use crate::channel::Chan;
use crate::endpoint::Ep;
use crate::kernel::{K, Kernel as _};
use crate::restless::{self, Restless};
use crate::signals::{self, Runs};
use crate::spin::{self, Spun};
use crate::{lifeline, sleep, sleepers};
use core::sync::atomic::Ordering::Relaxed;
use shmring::family::SNDTIMEO;
use shmring::switch::TxPhase;

/// A call that sends, as far as it may have to wait.
pub(super) struct Sender<'a> {
    /// The connection's number: the program's own may become another file's while this call waits.
    pub fd: i32,
    /// The call waits for nothing, whatever the socket says (MSG_DONTWAIT).
    never_waits: bool,
    /// Handlers run when the call began ...
    since: Runs,
    /// ... and up to its last sleep that has heard of any.
    slept: Runs,
    /// When the call is over, if ever; not asked for before it has to wait.
    deadline: Option<Option<u64>>,
    restless: Restless,
    /// How long the next wait is at most, nanoseconds: see `unread::LOOK_NS`.
    looks_after: u64,
    /// Becomes true if the call sleeps.
    asleep: &'a mut bool,
}

impl Sender<'_> {
    #[inline]
    pub fn new(fd: i32, never_waits: bool, since: Runs, asleep: &mut bool) -> Sender<'_> {
        Sender {
            fd,
            never_waits,
            since,
            slept: since,
            deadline: None,
            restless: Restless::new(),
            looks_after: unread::LOOK_NS,
            asleep,
        }
    }

    /// Something was sent since the last wait.
    #[inline]
    pub fn has_sent(&mut self) {
        self.restless = Restless::new();
        self.looks_after = unread::LOOK_NS;
    }

    /// There was no room. `Ok`: the sender looks again, having waited if it may. `Err`: the call is over, with this errno if
    /// it has sent nothing. `partial`: it has sent something.
    ///
    /// # Safety
    /// Must be called without locks; a cancellation point.
    pub unsafe fn wait(&mut self, ep: Ep, chan: &Chan, partial: bool) -> Result<(), i32> {
        if chan.is_shunned() && ep.tx_phase.get() == TxPhase::Ring {
            // Perhaps since this call, which could not wake the peer.
            unread::go_because(ep, chan, self.fd, chan.shunned_for());
            return Ok(());
        }
        let asks = self.deadline.is_none();
        if self.never_waits || asks && (lifeline::nonblocking(self.fd) || ep.never_waits(SNDTIMEO)) {
            want_space(ep, chan);
            let again = stirred(ep, chan) && self.restless.round(K::now).is_none();
            // SAFETY: the caller's obligation.
            return if again || unsafe { unread::gives_way_now(ep, chan, &mut self.fd, &mut self.slept, self.asleep) } {
                Ok(())
            } else {
                Err(libc::EAGAIN)
            };
        }
        let fd = self.fd;
        let deadline = *self.deadline.get_or_insert_with(|| lifeline::deadline(fd, libc::SO_SNDTIMEO));
        *self.asleep = true;
        // SAFETY: the caller's obligation.
        unsafe { self.sleep(ep, chan, deadline, partial) }
    }

    /// Waits until the ring has room. `Err`: EINTR or EAGAIN (timeout).
    ///
    /// # Safety
    /// As for [`Sender::wait`].
    unsafe fn sleep(&mut self, ep: Ep, chan: &Chan, deadline: Option<u64>, partial: bool) -> Result<(), i32> {
        let rest = self.restless.round(K::now);
        if unread::give_way(ep, chan, self.fd) {
            return Ok(());
        }
        if rest.is_none() {
            let spun = spin::spin(|| stirred(ep, chan));
            spin::count(ep, spun);
            if spun == Spun::Won {
                return Ok(());
            }
        }
        let restartable = deadline.is_none();
        // A call that has sent something is never restarted.
        if signals::interrupted(self.since, restartable) || partial && signals::runs() != self.slept {
            return Err(libc::EINTR);
        }
        let rewinding = ep.tx_phase.get() == TxPhase::Rewind;
        let events = if rewinding { libc::POLLOUT } else { libc::POLLRDHUP };
        let life = ep.life();
        // A peer that does not read has until then.
        let patience = unread::patience(ep, chan);
        let early = patience.and_then(|p| unread::before_deadline(chan, p, deadline?));
        let patience = early.or(patience.filter(|p| deadline.is_none_or(|d| *p < d)));
        let deadline = patience.or(deadline);
        let step = K::now() + self.looks_after;
        self.looks_after = (2 * self.looks_after).min(unread::LOOK_MAX_NS);
        let steps = deadline.is_none_or(|d| step < d);
        let deadline = if steps { Some(step) } else { deadline };
        self.fd = sleepers::lie_down(ep, self.fd);
        // SAFETY: the caller's obligation.
        let woken = unsafe {
            match rest {
                Some(time) => restless::rest(time, deadline, core::ptr::null(), self.slept),
                None => sleep::sleep(ep, self.fd, events, deadline, self.slept, || {
                    want_space(ep, chan);
                    stirred(ep, chan) || (!rewinding && ep.tx_phase.get() == TxPhase::Rewind)
                }),
            }
        };
        if !ep.lives(life) {
            // As in `rx::recv`: the turn is the lifeline's.
            return if ep.life() == life { Ok(()) } else { Err(libc::EBADF) };
        }
        self.fd = sleepers::number(ep, self.fd);
        match woken {
            Err(libc::EINTR) if !partial && !signals::interrupted(self.since, restartable) => {
                self.slept = signals::runs()
            }
            Err(libc::EAGAIN) if steps => {}
            Err(libc::EAGAIN) if early.is_some() => unread::go(ep, chan, self.fd),
            Err(libc::EAGAIN) if patience.is_some() => {}
            Err(e) => return Err(e),
            Ok(()) => {}
        }
        ep.tx_checked.store(0, Relaxed);
        Ok(())
    }
}
