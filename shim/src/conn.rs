//! A connection as the steps of the switch protocol see it (`shmring::driver`).

use crate::channel::Chan;
use crate::endpoint::Ep;
use core::sync::atomic::Ordering::Relaxed;
use shmring::driver::Conn;

/// The connection of `ep` in `chan`.
#[inline(always)]
pub fn conn(ep: Ep, chan: &Chan) -> Conn<'_> {
    let slot = ep.slot.load(Relaxed) as usize;
    Conn { ep: ep.record(), slot: chan.slot(slot), role: chan.role(), size: chan.ring() as u64 }
}

/// What a step of the protocol comes to in the library, where nothing stops one.
#[inline(always)]
pub fn sure<T>(r: Result<T, core::convert::Infallible>) -> T {
    let Ok(v) = r;
    v
}
