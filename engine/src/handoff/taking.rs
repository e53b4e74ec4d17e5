//! What is taken up: in the next image.
// Unsafe here: a header is read into a local.
#![allow(unsafe_code)]

use super::crossing::{AGAIN, ALSO, has_bytes, numbers};
use crate::channel::{self, mapping};
use crate::endpoint::Ep;
use crate::fds::{self, Kind};
use crate::kernel::{K, Kernel as _};
use crate::{attach, family, lifeline, slots};
use core::sync::atomic::Ordering::Relaxed;
use shmring::family::State;
use shmring::layout::{self, Role};
use shmring::word::Code;
use shmring::{lnx, sys};

/// In the constructor: takes up what the previous image passed on. Whether this image [has](is_heir) unread bytes by it.
pub fn take_up() -> bool {
    let made = |fd: i32| ring_of(fd).map(|_| lnx::step(fd, 0));
    let last = numbers().filter_map(made).max().unwrap_or(0);
    for fd in numbers() {
        match ring_of(fd) {
            Some(ring) if last > 0 && made(fd) == Some(last) => take_up_from(fd, ring),
            // Another image's, or incomplete yet.
            Some(_) => sys::close(fd),
            None => {}
        }
    }
    family::held().any(is_heir)
}

/// How large the rings are in the memfd `fd`, if it is one that an image passes on.
fn ring_of(fd: i32) -> Option<usize> {
    if lnx::seals(fd) < 0 {
        return None;
    }
    let mut h = layout::Header {
        magic: 0,
        version: 0,
        ring: 0,
        id: 1,
        forked: Default::default(),
        left: Default::default(),
        offered: Default::default(),
        pools: Default::default(),
    };
    // SAFETY: reads into a local, for which any bytes are valid.
    let n = unsafe { lnx::read_at(fd, (&raw mut h).cast(), size_of_val(&h), 0) };
    let is = n == size_of_val(&h) as isize && h.magic == layout::MAGIC && h.version == layout::VERSION && h.id == 0;
    is.then_some(h.ring as usize)
}

/// Whether unread bytes of `ep` came by exec, for this image alone.
pub fn is_heir(ep: Ep) -> bool {
    let Some(chan) = ep.chan().filter(|chan| chan.is_handed_on()) else { return false };
    let cookie = ep.cookie.load(Relaxed);
    let is_its = |o: &&layout::Offer| {
        o.slot.load(Relaxed).is_some_and(|role| role != ALSO) && o.connector.load(Relaxed) == cookie
    };
    let offer = chan.offers().iter().find(is_its);
    offer.is_some_and(|o| o.heir.load(Relaxed) == K::pid()) && has_bytes(ep)
}

/// A connection that was passed on, and is no longer under its number, is looked for below this one.
const RENUMBERED: i32 = 1024;

/// Descriptor `fd` is of the connection in `slot`: of its record, which it makes if it is the first.
fn seat(fd: i32, cookie: u64, role: u32, chan: &'static channel::Chan, slot: usize) {
    if let Some(ep) = family::held().find(|ep| ep.cookie.load(Relaxed) == cookie) {
        if fds::endpoint(fd) != Some(ep) {
            fds::set(fd, Kind::Endpoint(ep));
            ep.local().refs.fetch_add(1, Relaxed);
        }
    } else if role != ALSO
        && let Some(ep) = family::alloc(fd, State::Idle, Option::of(role))
    {
        attach::resume(ep, chan, slot);
        fds::set(fd, Kind::Endpoint(ep));
    }
}

fn take_up_from(fd: i32, ring: usize) {
    if !family::ensure() {
        return;
    }
    let held = channel::MAPPING.lock();
    let chan = mapping::map(fd, Role::Acceptor, ring, 0);
    held.release();
    let Some(chan) = chan else { return };
    chan.keep();
    let offers = || chan.offers().iter().enumerate().filter_map(|(slot, o)| Some((slot, o, o.slot.load(Relaxed)?)));
    let at = |o: &layout::Offer| (o.acceptor.load(Relaxed) as i32, o.connector.load(Relaxed));
    let stayed = |o: &layout::Offer| {
        let (fd, cookie) = at(o);
        o.acceptor.load(Relaxed) & AGAIN == 0 && lifeline::cookie(fd) == Some(cookie)
    };
    // The actions of a posix_spawn, or an image that was handed it before, have given it other numbers, which nobody knew
    // when it was passed on.
    if offers().any(|(_, o, role)| role != ALSO && !stayed(o)) {
        for fd in 0..RENUMBERED {
            let Some(cookie) = lifeline::cookie(fd) else { continue };
            let of_it = offers().find(|(_, o, role)| *role != ALSO && at(o).1 == cookie && !stayed(o));
            if let Some((slot, _, role)) = of_it {
                seat(fd, cookie, role, chan, slot);
            }
        }
    }
    for (slot, o, role) in offers().filter(|(_, o, _)| stayed(o)) {
        let (fd, cookie) = at(o);
        seat(fd, cookie, role, chan, slot);
    }
    slots::close_if_empty(chan);
}
