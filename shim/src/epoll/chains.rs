//! Which watches an endpoint has: a chain through all sets of this process. How a watch begins and ends.
#![forbid(unsafe_code)]

use super::kernel_ctl;
use super::owed::settle_change;
use super::set::{Link, PARKED, Set, TABLE, TAGGED, Watch, watch, watch_id};
use core::ffi::c_int;
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use core::sync::atomic::{AtomicU32, fence};
use engine::endpoint::Ep;
use engine::lock::Lock;
use engine::{fds, lifeline};
use host::tls::tls;
use shmring::family::State;
use shmring::{lnx, sys};

/// Guards the chains of watches; taken inside a set's lock.
pub(super) static CHAINS: Lock = Lock::new();

/// Counts changes of the chains; odd while a change is being made. A reader takes no lock: it reads again if the count
/// was odd or has changed.
pub(super) static CHANGES: AtomicU32 = AtomicU32::new(0);

fn link_of(id: u32) -> Option<&'static Link> {
    TABLE.get((id >> 20) as usize)?.link((id & 0xf_ffff) as i32)
}

/// Changes the chains.
fn chains(change: impl FnOnce()) {
    let held = CHAINS.lock();
    CHANGES.fetch_add(1, Relaxed);
    fence(Release);
    change();
    CHANGES.fetch_add(1, Release);
    held.release();
}

/// Makes `w` a watch of `ep`. With the set's lock held.
pub(super) fn link(set: usize, fd: i32, w: &Watch, ep: Ep) {
    chains(|| {
        w.ep.store(Some(ep), Relaxed);
        chain(set, fd, ep);
    });
}

pub(super) fn chain(set: usize, fd: i32, ep: Ep) {
    if let Some(l) = TABLE[set].link(fd) {
        l.next.store(ep.local().watches.load(Relaxed), Relaxed);
        ep.local().watches.store(Some(watch_id(set, fd)), Release);
    }
}

/// Takes a watch out of its endpoint's chain.
fn unchain(set: usize, fd: i32, ep: Ep) {
    let id = watch_id(set, fd);
    let mut place = &ep.local().watches;
    for _ in 0..CHAIN_MAX {
        let Some(at) = place.load(Relaxed) else { break };
        let Some(l) = link_of(at) else { break };
        if at == id {
            place.store(l.next.load(Relaxed), Relaxed);
            break;
        }
        place = &l.next;
    }
}

/// This process no longer has the connection, or the set; others have. With the set's lock held.
pub(super) fn disown(set: usize, fd: i32, ep: Ep) {
    chains(|| unchain(set, fd, ep));
}

/// Ends a watch. With the set's lock held.
pub(super) fn unlink(set: usize, fd: i32, w: &Watch) {
    let Some(ep) = w.ep.load(Relaxed) else { return };
    chains(|| {
        w.ep.store(None, Relaxed);
        unchain(set, fd, ep);
    });
    let flags = w.flags.swap(0, Relaxed);
    w.retold.store(0, Relaxed);
    w.heard.store(0, Relaxed);
    TABLE[set].forgo(fd);
    if flags & TAGGED == 0 {
        if flags & PARKED != 0 {
            TABLE[set].owe_no_more(fd, w);
        }
        return;
    }
    TABLE[set].attached.fetch_sub(1, Relaxed);
    ignore(set, ep);
}

/// The set no longer needs news of `ep`, unless another watch of it does.
pub(super) fn ignore(set: usize, ep: Ep) {
    let s = &TABLE[set];
    let mut others = false;
    each(ep, |other, _, w| others |= other == set && w.flags.load(Relaxed) & PARKED == 0);
    if let (false, Some(p), Some(chan)) = (others, s.poller(), ep.chan())
        && ep.state() == State::Attached
        && chan.inherited.load(Relaxed) == 0
    {
        // Peers need not set this set's ready bit for the connection any more.
        chan.slot(ep.slot.load(Relaxed) as usize).side[chan.role() as usize].pollers.fetch_and(!(1 << p), Relaxed);
    }
}

/// Watches of one endpoint that are looked at; more are never made but by a chain that changes meanwhile.
const CHAIN_MAX: usize = 1024;

/// Calls `f` with each watch of an endpoint in this process: set, descriptor, watch. While another thread
/// changes the chains, with some of them twice.
pub(super) fn each(ep: Ep, mut f: impl FnMut(usize, i32, &'static Watch)) {
    loop {
        let before = CHANGES.load(Acquire);
        let mut at = ep.local().watches.load(Acquire);
        for _ in 0..CHAIN_MAX {
            let Some(id) = at else { break };
            let Some(w) = watch(id) else { break };
            let next = link_of(id).and_then(|l| l.next.load(Relaxed));
            if w.ep.load(Relaxed) == Some(ep) {
                f((id >> 20) as usize, (id & 0xf_ffff) as i32, w);
            }
            at = next;
        }
        fence(Acquire);
        if before & 1 == 0 && CHANGES.load(Relaxed) == before {
            return;
        }
        core::hint::spin_loop();
    }
}

/// Takes a parked watch out of the kernel's set. With the set's lock held.
pub(super) fn unpark(set: usize, epfd: c_int, fd: c_int, w: &Watch) {
    if w.ep.load(Relaxed).is_some() && w.flags.load(Relaxed) & PARKED != 0 {
        kernel_ctl(epfd, libc::EPOLL_CTL_DEL, fd, 0, 0);
        unlink(set, fd, w);
    }
}

/// Tells the kernel what it is owed. With the set's lock held.
pub(super) fn settle(s: &Set, epfd: c_int) {
    settle_change(s, epfd);
    for fd in s.owed.iter().filter_map(|o| o.load(Relaxed)) {
        if let Some(w) = s.get(fd) {
            unpark(s.index(), epfd, fd, w);
        }
    }
}

/// A descriptor of this process for `ep`.
pub(super) fn descriptor(ep: Ep) -> Option<c_int> {
    (0..fds::high()).find(|&f| fds::endpoint(f) == Some(ep) && is_here(ep, f))
}

/// Whether a descriptor is what the table says. A child of vfork has our memory, and other files.
pub(super) fn is_here(ep: Ep, fd: c_int) -> bool {
    tls().vfork.get() == 0 || lifeline::cookie(fd) == Some(ep.cookie.load(Relaxed))
}

/// Does `f` while `number`, under which the kernel knows a registration of `ep`, is a descriptor of it: if it was closed while another one
/// keeps the connection, that is duplicated for the moment. `None`: another file has the number by now, or nobody keeps it.
pub(super) fn under_closed<T>(ep: Ep, number: c_int, f: impl FnOnce() -> T) -> Option<T> {
    let again = lnx::duplicate(descriptor(ep)?, number);
    let done = (again == number).then(f);
    if again >= 0 {
        sys::close(again);
    }
    done
}
