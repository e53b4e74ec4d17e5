//! epoll sets that hold connections of ours.
//!
//! The kernel's set stays the program's: every descriptor is registered in it, untouched as long as it is
//! not attached. When a connection is attached, its registration is changed to edge-triggered news about
//! the lifeline, marked with a tag, and what the program asked for (events, data; level, edge, oneshot) is
//! kept here and served from the ring. Each set with TCP sockets also holds a doorbell, so a thread that
//! sleeps in the kernel's `epoll_wait` hears of ring events in the same call.
//!
//! [`set`] holds the sets and their watches, [`chains`] which watches a connection has, [`ready`] which of a set's have news,
//! [`owed`] what the kernel has not been told yet, [`standin`] what stands in a set for bytes that the kernel does not have, [`bell`] what wakes who sleeps in one. [`ctl`] is what the program asks of a set,
//! [`numbers`] what closing a descriptor does to it, [`handover`] what makes it the kernel's, [`wait`] who waits on it, [`report`] what he is told, in the order of
//! [`order`], and [`again`] what the kernel is to tell once more; [`forks`] is what a fork does to all.
// Unsafe here: events are the program's memory; sets are shared with forks as references into a mapping.
#![allow(unsafe_code)]

mod again;
mod bell;
mod chains;
mod ctl;
mod desk;
mod edge;
mod fdinfo;
mod forks;
mod handover;
mod numbers;
mod order;
mod owed;
mod ready;
mod report;
mod set;
mod spent;
mod standin;
mod wait;

pub use ctl::{ctl, may_attach};
pub use handover::{hand_over, hand_over_with, nest};
pub use numbers::{closing, number_back, number_closed};
pub use standin::{drained, merged, put_back, settle_read, stand_for_heirs};

use bell::rouse;
use chains::{each, unlink};
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};
use core::sync::atomic::{AtomicBool, AtomicU64};
use engine::channel::Chan;
use engine::endpoint::Ep;
use engine::fds::{self, Kind};
use libc::{c_int, epoll_event, sigset_t};
use set::{EDGE, LEFT, TABLE, TAGGED};
use shmring::layout::POLLERS;
use shmring::lnx;

/// Upper bits of our `data`, random, so that a program's own data is not mistaken for it.
static TAG: AtomicU64 = AtomicU64::new(0);
const ID_BITS: u32 = 28;
const DOORBELL: u64 = (1 << ID_BITS) - 1;

fn tag() -> u64 {
    let t = TAG.load(Relaxed);
    if t != 0 {
        return t;
    }
    let v = (lnx::random() | 1 << 63 | 1 << 30) & !DOORBELL;
    let _ = TAG.compare_exchange(0, v, Relaxed, Relaxed);
    TAG.load(Relaxed)
}

fn ours(data: u64) -> Option<u64> {
    let t = TAG.load(Relaxed);
    (t != 0 && data & !DOORBELL == t).then_some(data & DOORBELL)
}

fn kernel_ctl(epfd: c_int, op: c_int, fd: c_int, events: u32, data: u64) -> isize {
    lnx::epoll_ctl(epfd, op, fd, events, data)
}

/// `epoll_create1` succeeded.
pub fn created(fd: c_int) {
    // Calls that do not pass through culvert may wait on the set: nothing is attached in it.
    let unseen = engine::family::is_bypassed();
    if fd < 0 || unseen || fds::are_divided() || !engine::config::enabled() || host::tls::tls().vfork.get() != 0 {
        return;
    }
    let take = |s: &set::Set, from| s.used.compare_exchange(from, 1, Acquire, Relaxed).is_ok();
    let fresh = TABLE.iter().position(|s| take(s, 0));
    // Or a set that this process had left to other processes, all of which are gone.
    let set = fresh.or_else(|| TABLE.iter().position(|s| s.used.load(Relaxed) == LEFT && !s.shared() && take(s, LEFT)));
    let Some(i) = set else { return lose_track() };
    let s = &TABLE[i];
    if !s.ensure() {
        s.used.store(0, Release);
        return lose_track();
    }
    if fresh.is_none() {
        s.watches().for_each(|(_, w, _)| w.ep.store(None, Relaxed));
    }
    s.refs.store(1, Relaxed);
    s.forgive();
    s.poller.store(None, Relaxed);
    s.empty();
    let all = [&s.attached, &s.sleepers, &s.shared, &s.inherited, &s.foreign, &s.left];
    s.looked.store(0, Relaxed);
    s.answered.store(0, Relaxed);
    s.has_since.store(0, Relaxed);
    s.common().doorbell.store(0, Relaxed);
    for w in all.into_iter().chain([&s.common().nested, &s.must_look, &s.returned]) {
        w.store(0, Relaxed);
    }
    fds::set(fd, Kind::Epoll(i));
}

/// libc has made an epoll set that there is no room for: it cannot be told from others any more.
static LOST: AtomicBool = AtomicBool::new(false);

fn lose_track() {
    LOST.store(true, Relaxed);
}

/// Whether libc has made an epoll set that is not known here.
pub fn lost_track() -> bool {
    LOST.load(Relaxed)
}

/// `epoll_wait` and its kin; see [`wait::wait`].
///
/// # Safety
/// As libc's; a cancellation point.
pub unsafe fn wait(
    epfd: c_int,
    ev: *mut epoll_event,
    max: c_int,
    timeout: Option<u64>,
    mask: *const sigset_t,
    real: impl FnMut() -> c_int,
) -> c_int {
    // SAFETY: the caller's obligation.
    unsafe { wait::wait(epfd, ev, max, timeout, mask, real) }
}

/// Another descriptor for set `i`.
pub fn duplicated(i: usize) {
    TABLE[i].refs.fetch_add(1, Relaxed);
}

/// One descriptor of set `i` is closed.
pub fn closed(i: usize, epfd: c_int) {
    let s = &TABLE[i];
    if s.refs.fetch_sub(1, Relaxed) != 1 {
        return;
    }
    let held = s.lock();
    let shared = s.shared();
    for (fd, w, ep) in s.watches() {
        if shared {
            chains::disown(i, fd, ep);
        } else {
            unlink(i, fd, w);
        }
    }
    // What was ready goes, too.
    while s.pop().is_some() {}
    bell::unequip(s, epfd);
    held.release();
    s.used.store(if shared { LEFT } else { 0 }, Release);
}

/// The process's last descriptor of `ep` is closed: the kernel has dropped it from its sets.
pub fn forget(ep: Ep) {
    standin::forget(ep);
    for _ in 0..1024 {
        let mut first = None;
        each(ep, |set, fd, _| first = first.or(Some((set, fd))));
        let Some((set, fd)) = first else { return };
        let s = &TABLE[set];
        let held = s.lock();
        match s.get(fd) {
            // The kernel has not: others hold the connection.
            Some(_) if s.shared() && !engine::family::sole_holder(ep) => chains::disown(set, fd, ep),
            Some(w) if w.ep.load(Relaxed) == Some(ep) => unlink(set, fd, w),
            _ => ep.local().watches.store(None, Relaxed),
        }
        held.release();
    }
}

/// Before a fork.
pub fn before_fork() {
    // Parent and child must use the same mark in a set that they share: chosen now if it was not yet.
    tag();
    forks::before_fork();
}

/// Before a vfork.
pub fn before_vfork() {
    forks::before_vfork();
}

/// After a vfork, in the parent.
pub fn after_vfork() {
    forks::after_vfork();
}

/// See [`set::free_after_vfork`].
pub fn free_after_vfork() {
    forks::free_after_vfork();
}

/// Whether this process has a set.
pub fn any() -> bool {
    set::any()
}

/// This process leaves its family: the sets that others have, too, are the kernel's.
pub fn part() {
    for fd in 0..fds::high() {
        if let Kind::Epoll(i) = fds::get(fd)
            && TABLE[i].may_be_others()
        {
            hand_over(i);
        }
    }
    forks::part();
    for fd in 0..fds::high() {
        // `forks::part` had no memory for it.
        if matches!(fds::get(fd), Kind::Epoll(i) if TABLE[i].used.load(Relaxed) == 0) {
            fds::set(fd, Kind::Other);
        }
    }
}

/// Every set of this process goes on without us.
pub fn hand_all_over() {
    for fd in 0..fds::high() {
        if let Kind::Epoll(i) = fds::get(fd) {
            hand_over(i);
        }
    }
}

/// After a fork, in the parent.
pub fn after_fork_parent() {
    forks::after_fork_parent();
}

/// Child of a fork: the kernel's sets are shared with the parent.
pub fn after_fork_child() {
    forks::after_fork_child();
}

/// An endpoint was attached: its watches become ours.
pub fn attached(ep: Ep, chan: &'static Chan) {
    each(ep, |set, fd, w| {
        let s = &TABLE[set];
        let Some(epfd) = s.epfd() else { return };
        let held = s.lock();
        if w.ep.load(Relaxed) == Some(ep) {
            ctl::take_over(s, set, epfd, fd, w, ep, chan);
        }
        let wake = s.sleepers.load(SeqCst) > 0;
        held.release();
        if wake {
            rouse(s);
        }
    });
}

/// Something about the endpoint changed on this side (shutdown): look at it again.
pub fn touched(ep: Ep) {
    look_again(ep, 0);
}

/// The connection's sending direction has gone to the kernel, when the ring had no room: whoever waits for room is to look
/// again, and so are edge-triggered watches.
pub fn gave_way(ep: Ep) {
    look_again(ep, edge::WRITE);
}

/// A call was told that nothing can be done, for another reason than that: whoever waits for an edge is to try again.
pub fn turned_away(ep: Ep) {
    look_again(ep, edge::READ | edge::WRITE);
}

/// `edge`: for a watch that asked for one of these events, this is an edge.
fn look_again(ep: Ep, edge: u32) {
    each(ep, |set, fd, w| {
        let s = &TABLE[set];
        let held = s.lock();
        if w.flags.load(Relaxed) & TAGGED != 0 {
            if w.events.load(Relaxed) & edge != 0 {
                w.flags.fetch_or(EDGE, Relaxed);
            }
            s.push(fd);
        }
        let wake = s.sleepers.load(Relaxed) > 0;
        held.release();
        if wake {
            rouse(s);
        }
    });
}

const _: () = assert!(POLLERS <= 64);
