//! A set's doorbell: how a thread that sleeps in the kernel's set hears of news on rings.
#![forbid(unsafe_code)]

use super::set::Set;
use super::{DOORBELL, kernel_ctl, ours, tag};
use core::sync::atomic::Ordering::Relaxed;
use engine::{channel, members, poller, rx};
use libc::{EPOLLET, EPOLLIN, c_int, epoll_event};
use shmring::ring;

/// Gives the set a poller and a doorbell. False: none to be had.
pub(super) fn equip(s: &Set, epfd: c_int) -> bool {
    // What is added to a set that several processes have is the kernel's.
    if s.shared() || s.inherited.load(Relaxed) != 0 || s.nested() {
        return false;
    }
    if s.poller().is_some() {
        return true;
    }
    let Some(p) = poller::acquire_for_set() else { return false };
    if kernel_ctl(epfd, libc::EPOLL_CTL_ADD, poller::bell(p), (EPOLLIN | EPOLLET) as u32, tag() | DOORBELL) < 0 {
        poller::free_of_set(p);
        return false;
    }
    s.poller.store(Some(p as u32), Relaxed);
    s.common().doorbell.store(members::myself(), Relaxed);
    true
}

/// Takes its doorbell out of the kernel's set, and its poller back. With the set's lock held.
pub(super) fn unequip(s: &Set, epfd: c_int) {
    let Some(p) = s.poller() else { return };
    kernel_ctl(epfd, libc::EPOLL_CTL_DEL, poller::bell(p), 0, 0);
    s.poller.store(None, Relaxed);
    let _ = s.common().doorbell.compare_exchange(members::myself(), 0, Relaxed, Relaxed);
    poller::free_of_set(p);
}

/// Rings the set's own doorbell.
pub(super) fn rouse(s: &Set) {
    if let Some(p) = s.poller() {
        poller::ring_own(p);
    }
}

/// Arms the set in every channel, for those who do not sleep in our own wait.
pub(super) fn stay_armed(s: &Set) {
    arm(s);
    if s.first.load(Relaxed).is_some() || told_of_news(s) {
        rouse(s);
    }
}

pub(super) fn arm(s: &Set) {
    if let Some(p) = s.poller() {
        let g = poller::generation(p);
        for c in channel::own() {
            poller::tell(c, p);
            ring::arm(&c.queues(c.role())[p], g);
        }
    }
    ring::armed();
}

pub(super) fn disarm(s: &Set) {
    if let Some(p) = s.poller() {
        for c in channel::own() {
            let q = &c.queues(c.role())[p];
            if q.armed.load(Relaxed) != 0 {
                q.armed.store(0, Relaxed);
            }
        }
    }
}

/// Whether a peer has set a ready bit for this set.
pub(super) fn told_of_news(s: &Set) -> bool {
    let Some(p) = s.poller() else { return false };
    channel::own().any(|c| ring::stirred(&c.queues(c.role())[p]))
}

/// Whether news can come to this set without a doorbell.
pub(super) fn bounded(s: &Set) -> bool {
    // A program that closes by system calls of its own has closed the doorbell.
    let deaf = s.poller().is_some_and(|p| poller::bell(p) < 0);
    deaf || s.inherited.load(Relaxed) != 0 || s.foreign.load(Relaxed) != 0 || s.shared() || rx::others_look()
}

/// Takes the doorbell's own events out of those that the kernel has told. Returns how many are left, and, if the doorbell was rung, how
/// many of these come before that.
pub(super) fn hear(s: &Set, told: &mut [epoll_event]) -> (usize, Option<usize>) {
    let (mut kept, mut rung) = (0, None);
    for i in 0..told.len() {
        let e = told[i];
        if ours(e.u64) == Some(DOORBELL) {
            drain(s);
            rung.get_or_insert(kept);
        } else {
            told[kept] = e;
            kept += 1;
        }
    }
    (kept, rung)
}

/// The set's doorbell was heard.
pub(super) fn drain(s: &Set) {
    if let Some(p) = s.poller() {
        poller::drain(p);
    }
}
