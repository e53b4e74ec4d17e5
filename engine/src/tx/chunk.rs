//! Bytes that are sent by reference: a hole in the ring, and a chunk that it stands for (`shmring::hole`).
#![forbid(unsafe_code)]

use super::look::latched;
use super::reserve::{Patience, Reserved};
use super::{Attempt, Unsent, failed, fitting, with_turn};
use crate::channel::Chan;
use crate::chunks::offers::{self, Source};
use crate::chunks::stretch;
use crate::endpoint::Ep;
use core::sync::atomic::Ordering::{Relaxed, Release};
use shmring::chunks::name::Name;
use shmring::family::SHARED;
use shmring::hole::{self, Hole};
use shmring::position::RingPos;
use shmring::ring;

/// What lends bytes: by the edge that this word names, if it can; and takes that back.
pub trait Lends {
    /// The name that is to be sent.
    fn lend(&mut self, edge: u32) -> Option<Name>;
    /// It was not sent.
    fn take_back(&mut self, name: &Name, edge: u32);
}

/// Sends `n` bytes of `source` by reference. [`Reserved::Elsewhere`]: they have to be copied. Never waits.
pub fn refer(
    ep: Ep,
    chan: &Chan,
    fd: i32,
    (life, source): (u32, Source),
    n: usize,
    flags: i32,
    lends: &mut impl Lends,
) -> Reserved<()> {
    // Who carries bytes to another host looks at them as they lie on the ring.
    if !offers::may_refer(chan) || ep.stands_in.load(Relaxed) != 0 {
        return Reserved::Elsewhere;
    }
    let Some((pool, edge)) = offers::edge(chan, source) else { return Reserved::Elsewhere };
    let a = with_turn(ep, chan, fd, life, &Patience::new(), |sending| {
        let (c, n) = (sending.conn(), n as u64);
        let record = c.ep;
        if record.handed.load(Relaxed) & SHARED != 0 || sending.is_reserved() {
            return Err(Unsent::Elsewhere);
        }
        let (base, room) = sending.room(n)?;
        let tail = record.tx_tail.load(Relaxed);
        // The receiver may have to fill the hole, and gets no memory for that.
        if room < n || !fitting(ep, chan, tail.since(base), n).is_ok_and(|fits| fits >= n) {
            return Err(Unsent::Elsewhere);
        }
        let head = ring::refresh(c.given_back(), record.tx_head.load(Relaxed), tail).map_err(|_| Unsent::Elsewhere)?;
        let slot = record.slot.load(Relaxed) as usize;
        if c.sent().holes.load(Relaxed) == RingPos::START.claim() && !chan.begin_holes(slot, c.role.tx()) {
            return Err(Unsent::Elsewhere);
        }
        let entry = hole::place(&chan.holes(slot)[c.role.tx()], tail, head, c.size).ok_or(Unsent::Elsewhere)?;
        let name = lends.lend(edge).ok_or(Unsent::Elsewhere)?;
        let hole = Hole {
            at: tail,
            len: name.len,
            offset: name.offset,
            index: name.index,
            generation: name.loan.generation,
            hop: name.loan.hop,
            pool,
        };
        #[cfg(test)]
        crate::sim::Simulated::hole(false);
        entry.open(&hole);
        #[cfg(test)]
        crate::sim::Simulated::hole(true);
        if stretch::is_closed(&c) {
            if entry.close(tail) {
                lends.take_back(&name, edge);
            }
            return Err(Unsent::Elsewhere);
        }
        c.sent().holes.store(tail.plus(n).claim(), Release);
        // Room that nobody has reserved, and nobody fills.
        sending.commit(n)
    });
    match a {
        Attempt::Took(_) => Reserved::Done(()),
        Attempt::Full | Attempt::Native | Attempt::Reserved => Reserved::Elsewhere,
        Attempt::Taken => Reserved::Again,
        Attempt::Latched => Reserved::Failed(failed(latched(ep), flags)),
        Attempt::Error(e) => Reserved::Failed(failed(e, flags)),
    }
}
