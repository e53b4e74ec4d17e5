//! A connection as the steps of the switch protocol see it (`shmring::driver`).
#![forbid(unsafe_code)]

use crate::channel::Chan;
use crate::endpoint::Ep;
use crate::{lock, members};
use core::sync::atomic::Ordering::Relaxed;
use shmring::driver::{self, Conn};
use shmring::family::{Endpoint, OPEN, SHARED};
use shmring::ring;
use shmring::switch::RxPhase;
use shmring::sync::{AtomicU32, AtomicU64};

/// The connection of `ep` in `chan`.
#[inline(always)]
pub fn conn(ep: Ep, chan: &Chan) -> Conn<'_> {
    let ep = ep.record();
    let slot = ep.slot.load(Relaxed) as usize;
    Conn { ep, slot: chan.slot(slot), role: chan.role(), size: chan.ring() as u64 }
}

/// Whether a process that was killed in a receive has left something to be done that the sender waits for, or one is in the middle of it.
pub fn is_left_undone(ep: Ep, chan: &Chan) -> bool {
    ep.rx_phase.get() == RxPhase::Ring && driver::is_left_undone(&conn(ep, chan))
}

/// Whether another process of the family looks at what lies on the ring where it is, or was killed over it.
#[inline(always)]
pub fn is_viewed_elsewhere(ep: &Endpoint) -> bool {
    let viewer = ep.rx_viewed.load(Relaxed);
    viewer != 0 && viewer != members::myself()
}

/// What a step of the protocol comes to where nothing stops one.
#[inline(always)]
pub fn sure<T>(r: Result<T, core::convert::Infallible>) -> T {
    let Ok(v) = r;
    v
}

/// A step of the protocol has ended between two effects, as if its process had been killed there: another process has taken
/// the direction, which this one had lent (`shmring::owner::LENT`).
pub struct Taken;

/// Runs `f`, which changes nothing that anybody else goes by. In a connection that other processes hold, too, its token is lent
/// meanwhile: this process may be stopped in the middle, for good.
#[inline(always)]
pub fn openly<T>(ep: &Endpoint, token: &AtomicU64, f: impl FnOnce() -> T) -> Result<T, Taken> {
    let lent = lend(ep, token)?;
    let done = f();
    back(lent)?;
    Ok(done)
}

/// The beginning of [`openly`], for who must not make a call of what comes between: its end is [`back`].
#[inline(always)]
pub fn lend<'a>(ep: &Endpoint, token: &'a AtomicU64) -> Result<Option<lock::Lent<'a>>, Taken> {
    if ep.handed.load(Relaxed) & SHARED != 0 { lock::lend(token).map_err(|lock::Lost| Taken) } else { Ok(None) }
}

/// The end of [`openly`].
#[inline(always)]
pub fn back(lent: Option<lock::Lent>) -> Result<(), Taken> {
    match lent.map(lock::Lent::back) {
        Some(false) => Err(Taken),
        _ => Ok(()),
    }
}

/// How the library's ports reach memory and the pollers: a type with `chan` and `c`, the connection in it; its methods that tell
/// the peer, and that tell it as the last effect of a step; and what stops a step.
macro_rules! port {
    ($port:ident, $notify:ident, $last:ident, $stop:ty) => {
        impl shmring::driver::Port for $port<'_> {
            type Stop = $stop;

            #[inline(always)]
            fn atom<T: shmring::driver::Seen>(&mut self, access: impl FnOnce() -> T) -> Result<T, Self::Stop> {
                Ok(access())
            }
            #[inline(always)]
            fn quiet<T: shmring::driver::Seen>(&mut self, access: impl FnOnce() -> T) -> T {
                access()
            }
            #[inline(always)]
            fn notify(&mut self) -> Result<(), Self::Stop> {
                self.$notify()
            }
            #[inline(always)]
            fn notify_last(&mut self) -> Result<(), Self::Stop> {
                self.$last();
                Ok(())
            }
            fn tell_own(&mut self) {
                self.chan.tell_own(self.c.ep.slot.load(core::sync::atomic::Ordering::Relaxed) as usize);
            }
        }
    };
}
pub(crate) use port;

/// Tells the peer of news, and counts the doorbells.
#[inline(always)]
pub fn notify(c: &Conn, chan: &Chan) {
    count(c, chan.notify_of(c));
}

/// The same of what is not about the stream that this side sends.
pub fn notify_aside(c: &Conn, chan: &Chan) {
    count(c, chan.notify_aside(c.ep.slot.load(Relaxed) as usize));
}

#[inline(always)]
fn count(c: &Conn, rung: u32) {
    if rung > 0 {
        c.ep.bells.store(c.ep.bells.load(Relaxed) + u64::from(rung), Relaxed);
    }
}

/// For steps that ask nothing of the lifeline.
struct Words<'a> {
    chan: &'a Chan,
    c: Conn<'a>,
}

port!(Words, tell, tell_last, core::convert::Infallible);

impl Words<'_> {
    fn tell(&self) -> Result<(), core::convert::Infallible> {
        notify_aside(&self.c, self.chan);
        Ok(())
    }
    fn tell_last(&self) {
        let Ok(()) = self.tell();
    }
}

/// Nobody of whom `whose` is true looks any more at what lies on the ring (`shmring::driver::view`).
pub fn end_view(ep: Ep, chan: &Chan, whose: impl FnOnce(u64) -> bool) {
    if ep.rx_viewed.load(Relaxed) == 0 {
        return;
    }
    // From a process that keeps the direction, and is stopped there, nobody else receives now.
    let Some(held) = lock::take(&ep.record().rx_token, None) else { return };
    let c = conn(ep, chan);
    if whose(c.ep.rx_viewed.load(Relaxed)) {
        sure(driver::end_view(&mut Words { chan, c }, &c, ring::limit(c.peer(), c.me(), c.size)));
    }
    held.release();
}

/// For steps that tell nobody anything.
struct Alone;

impl driver::Port for Alone {
    type Stop = core::convert::Infallible;

    #[inline(always)]
    fn atom<T: driver::Seen>(&mut self, access: impl FnOnce() -> T) -> Result<T, Self::Stop> {
        Ok(access())
    }
    #[inline(always)]
    fn quiet<T: driver::Seen>(&mut self, access: impl FnOnce() -> T) -> T {
        access()
    }
    fn notify(&mut self) -> Result<(), Self::Stop> {
        Ok(())
    }
    fn tell_own(&mut self) {}
}

/// Room that `owner` has reserved on its ring is nobody's any more (`shmring::driver::give_back`).
pub fn give_back(ep: Ep, owner: u64) {
    sure(driver::give_back(&mut Alone, ep.record(), owner));
}

/// Begins a native call, counted in `word`; not if `bit` says that the ring is in use.
#[inline(always)]
pub fn enter_native(word: &AtomicU32, bit: u32) -> bool {
    sure(driver::enter_native(&mut Alone, word, bit))
}

/// Ends it.
#[inline(always)]
pub fn leave_native(word: &AtomicU32) {
    sure(driver::leave_native(&mut Alone, word));
}

/// Declares this side ready to receive on the ring, if no thread of the family waits natively. Needs no token.
#[inline(always)]
pub fn make_ready(ep: Ep, chan: &Chan) -> bool {
    ep.rx_word.load(Relaxed) == OPEN || becomes_ready(ep, chan)
}

#[cold]
fn becomes_ready(ep: Ep, chan: &Chan) -> bool {
    let c = conn(ep, chan);
    sure(driver::make_ready(&mut Words { chan, c }, &c))
}
