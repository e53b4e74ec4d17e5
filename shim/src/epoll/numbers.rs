//! What becomes of the watches of a connection whose descriptor is closed: the kernel's registration lives on under the old
//! number while a duplicate of the file does, and that number may soon be another file's.
#![forbid(unsafe_code)]

use super::bell::rouse;
use super::chains::{disown, each, link, settle, unlink, unpark};
use super::edge::{lifeline_mask, note_edge};
use super::handover::{give_back, to_kernel};
use super::set::{PARKED, Set, TABLE, TAGGED, Watch, watch_id, watchable};
use super::{kernel_ctl, tag};
use core::sync::atomic::Ordering::{Relaxed, SeqCst};
use engine::endpoint::Ep;
use engine::{lifeline, poller, slots};
use libc::c_int;
use shmring::family::Reason;

/// Tells the kernel whatever it is owed about the watches of `ep`.
fn settled(ep: Ep) {
    each(ep, |set, at, w| {
        let s = &TABLE[set];
        if s.owes_for(at, w) {
            let held = s.lock();
            settle(s, s.epfd().unwrap_or(-1));
            held.release();
        }
    });
}

/// This process is about to close its last descriptor of `ep`. A set goes on to report a connection that a child of ours, or a
/// message on its way, holds (epoll(7), Q6), which we could not look at any more. A child closes what it inherited and does not use.
pub fn closing(ep: Ep) {
    // Others may keep the file open, and with it the kernel's watch.
    settled(ep);
    each(ep, |set, at, w| {
        let s = &TABLE[set];
        let passed = ep.reason.load(Relaxed) == Reason::Passed as u32;
        if s.inherited.load(Relaxed) == 0 && (passed || !engine::family::sole_holder(ep)) {
            to_kernel(ep);
            let held = s.lock();
            if w.ep.load(Relaxed) == Some(ep) {
                give_back(s, s.epfd().unwrap_or(-1), at, w);
                s.changed();
            }
            held.release();
        }
    });
}

/// The program is about to close `fd` while it keeps another descriptor of the same connection. The kernel's
/// registration lives on under the old number, which may soon be another file's.
pub fn number_closed(ep: Ep, fd: c_int) {
    loop {
        let mut found = None;
        each(ep, |set, at, _| {
            if at == fd {
                found = Some(set)
            }
        });
        let Some(set) = found else { return };
        let s = &TABLE[set];
        if s.shared() {
            to_kernel(ep);
        }
        let held = s.lock();
        if let Some(w) = s.get(fd)
            && w.ep.load(Relaxed) == Some(ep)
        {
            if s.shared() {
                // The number is still right in the other processes.
                give_back(s, s.epfd().unwrap_or(-1), fd, w);
                disown(set, fd, ep);
                s.changed();
            } else {
                renumber(s, set, fd, w, ep);
            }
        }
        held.release();
    }
}

/// Finds a place that is no descriptor's for a watch. With the set's lock held.
fn renumber(s: &Set, set: usize, fd: c_int, w: &Watch, ep: Ep) {
    let Some(epfd) = s.epfd() else { return unlink(set, fd, w) };
    if w.flags.load(Relaxed) & PARKED != 0 {
        return unpark(set, epfd, fd, w);
    }
    if w.flags.load(Relaxed) & TAGGED == 0 {
        settle(s, epfd);
        // A watch that is the kernel's alone stays so for good.
        slots::give_up(ep, Reason::EpollShared);
        return unlink(set, fd, w);
    }
    if !s.spare().is_some_and(|(at, new)| displace(s, epfd, fd, (fd, w), (at, new), ep)) {
        // There is no place for the watch. That is so seldom that the peer may be waited for here.
        to_kernel(ep);
        give_back(s, epfd, fd, w);
        unlink(set, fd, w);
    }
}

/// The number that watches were made for refers to their connection again: they can be changed and taken out by it.
pub fn number_back(ep: Ep, fd: c_int) {
    let mut from = 0;
    loop {
        // One watch of each set, by the sets' order: a watch that cannot be moved is not found again.
        let mut found: Option<(usize, c_int)> = None;
        each(ep, |set, at, w| {
            if set >= from
                && !watchable(at)
                && w.was.load(Relaxed) == fd as u32
                && found.is_none_or(|(first, _)| set < first)
            {
                found = Some((set, at));
            }
        });
        let Some((set, at)) = found else { return };
        from = set + 1;
        let s = &TABLE[set];
        let held = s.lock();
        if let (Some(w), Some(epfd)) = (s.get(at), s.epfd())
            && w.ep.load(Relaxed) == Some(ep)
            && w.was.load(Relaxed) == fd as u32
            && let Some(place) = s.make(fd)
        {
            // A watch that still stands in this place was of a file that is closed by now.
            unlink(set, fd, place);
            displace(s, epfd, fd, (at, w), (fd, place), ep);
            s.changed();
        }
        held.release();
    }
}

/// How the lifeline stands of a watch that is about to be moved: for that the kernel looks at it once more, and tells what it shows
/// (ep_modify), which is an edge only if it was not told before. 0: it may not have been told.
///
/// In this order: what comes after the look at the lifeline makes that stand otherwise by the time that the kernel tells of it. A thread that
/// waits may have been told, and not have come to the watch, which it does not find any more.
fn all_told(s: &Set, epfd: c_int, fd: c_int, w: &Watch) -> u64 {
    let events = w.events.load(Relaxed);
    if events & libc::EPOLLET as u32 == 0 || s.shared() {
        return 0;
    }
    let quiet = || s.waiters.load(SeqCst) == 0;
    let before = quiet();
    let stands = lifeline::state_of_news(fd, lifeline_mask(events) as i16).unwrap_or(0);
    // If the kernel has nothing to tell of the whole set, it has told of this one.
    let told = stands == w.heard.load(Relaxed) || before && lifeline::look(epfd, libc::POLLIN) == 0 && quiet();
    if told { stands } else { 0 }
}

/// Moves a watch of ours, which the kernel knows by `fd`, from one place to another. False: the kernel does not know it.
/// With the set's lock held.
fn displace(s: &Set, epfd: c_int, fd: c_int, (from, w): (c_int, &Watch), (to, new): (c_int, &Watch), ep: Ep) -> bool {
    let set = s.index();
    let (events, data, flags) = (w.events.load(Relaxed), w.data.load(Relaxed), w.flags.load(Relaxed));
    let (seen, blocked, heard) = (w.seen.load(Relaxed), w.blocked.load(Relaxed), w.heard.load(Relaxed));
    let id = tag() | u64::from(watch_id(set, to));
    let retold = all_told(s, epfd, fd, w);
    if kernel_ctl(epfd, libc::EPOLL_CTL_MOD, fd, lifeline_mask(events), id) < 0 {
        return false;
    }
    unlink(set, from, w);
    new.events.store(events, Relaxed);
    new.data.store(data, Relaxed);
    new.flags.store(flags, Relaxed);
    new.seen.store(seen, Relaxed);
    new.blocked.store(blocked, Relaxed);
    new.was.store(fd as u32, Relaxed);
    new.retold.store(retold, Relaxed);
    new.heard.store(heard, Relaxed);
    link(set, to, new, ep);
    s.attached.fetch_add(1, Relaxed);
    if let (Some(p), Some(chan)) = (s.poller(), ep.chan())
        && chan.inherited.load(Relaxed) == 0
    {
        poller::watch_slot(chan, ep.slot.load(Relaxed) as usize, p);
    }
    // News may have come while the watch had no place.
    note_edge(ep, new);
    s.push(to);
    if s.sleepers.load(SeqCst) > 0 {
        rouse(s);
    }
    true
}
