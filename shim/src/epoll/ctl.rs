//! Registrations: what the program asks of a set, and who keeps it, the kernel or we.

use super::bell::{equip, rouse, stay_armed};
use super::chains::{each, link, unlink, unpark};
use super::edge::lifeline_mask;
use super::fdinfo::oneshot_fired;
use super::handover::{follow, is_kernels, move_to_kernel, nest, unread_here};
use super::set::{EDGE, FIRED, PARKED, Set, TABLE, TAGGED, Watch, watch_id, watchable};
use super::{kernel_ctl, standin, tag};
use core::sync::atomic::Ordering::{Relaxed, Release, SeqCst};
use engine::channel::Chan;
use engine::endpoint::Ep;
use engine::fds::{self, Kind};
use engine::{handoff, leave, lifeline, poller, slots};
use host::real;
use libc::{EPOLLET, EPOLLEXCLUSIVE, EPOLLIN, EPOLLONESHOT, EPOLLOUT, EPOLLRDHUP, EPOLLWAKEUP};
use libc::{c_int, epoll_event};
use shmring::family::{Reason, State};
use shmring::ring;

/// What the kernel lets go with EPOLLEXCLUSIVE (EPOLLEXCLUSIVE_OK_BITS, fs/eventpoll.c).
const WITH_EXCLUSIVE: u32 =
    (EPOLLIN | EPOLLOUT | libc::EPOLLERR | libc::EPOLLHUP | EPOLLWAKEUP | EPOLLET | EPOLLEXCLUSIVE) as u32;

/// Whether the kernel must be told of a change of a watch.
fn concerns_kernel(old: u32, new: u32) -> bool {
    lifeline_mask(old) != lifeline_mask(new) || (old ^ new) & EPOLLWAKEUP as u32 != 0
}

/// What a call of `epoll_ctl` asks for; `None`: it cannot be read, which is the kernel's to report.
///
/// # Safety
/// `ev` is the program's.
unsafe fn wanted(op: c_int, ev: *const epoll_event) -> Option<epoll_event> {
    if op == libc::EPOLL_CTL_DEL {
        return Some(epoll_event { events: 0, u64: 0 });
    }
    // SAFETY: the program's pointer, read as the kernel would.
    unsafe { host::usercopy::load(ev) }.ok()
}

/// `epoll_ctl`.
///
/// # Safety
/// As libc's.
pub unsafe fn ctl(epfd: c_int, op: c_int, fd: c_int, ev: *mut epoll_event) -> c_int {
    // SAFETY: the caller's obligation.
    let native = || unsafe { real::epoll_ctl(epfd, op, fd, ev) };
    let Kind::Epoll(i) = fds::get(epfd) else {
        // A set that we do not know: inherited, received, or one too many.
        let ep = fds::endpoint(fd);
        // SAFETY: the caller's obligation.
        let want = ep.and_then(|_| unsafe { wanted(op, ev) });
        if let (Some(ep), Some(want)) = (ep, want)
            && let Some(r) = standin::ctl(epfd, op, fd, ep, want)
        {
            return r;
        }
        let r = native();
        if r == 0 && op != libc::EPOLL_CTL_DEL {
            match fds::get(fd) {
                Kind::Epoll(inner) => nest(inner),
                Kind::Endpoint(ep) => leave::retire_with(fd, Reason::EpollShared, unread_here(ep)),
                _ => {}
            }
            if let (Some(ep), Some(want)) = (ep, want) {
                standin::stand(epfd, fd, ep, want.events, want.u64);
            }
        }
        return r;
    };
    let ep = match fds::get(fd) {
        Kind::Endpoint(ep) => ep,
        Kind::Epoll(inner) if op == libc::EPOLL_CTL_ADD => {
            let r = native();
            if r == 0 {
                nest(inner);
            }
            return r;
        }
        Kind::Ours => {
            real::set_errno(libc::EBADF);
            return -1;
        }
        _ => {
            // Not while a thread that waits on the set has the kernel look at it once more (`again.rs`).
            let held = TABLE[i].own.lock();
            let r = native();
            held.release();
            return r;
        }
    };
    // SAFETY: the caller's obligation.
    let Some(want) = (unsafe { wanted(op, ev) }) else { return native() };
    if want.events & EPOLLEXCLUSIVE as u32 != 0 && (op != libc::EPOLL_CTL_ADD || want.events & !WITH_EXCLUSIVE != 0) {
        // Refused.
        return native();
    }
    let s = &TABLE[i];
    follow(s);
    if op == libc::EPOLL_CTL_ADD
        && want.events & EPOLLEXCLUSIVE as u32 != 0
        && let Some(w) = s.get(fd)
    {
        let held = s.lock();
        unpark(i, epfd, fd, w);
        held.release();
    }
    // An exclusive watch wakes one waiter or more (epoll_ctl(2)): from the ring it wakes all.
    if op == libc::EPOLL_CTL_ADD && !watchable(fd) {
        leave::retire(fd, Reason::EpollShared);
        return native();
    }
    if ep.state() == State::Attached && moves_first(s, epfd, op, fd) {
        move_to_kernel(ep, unread_here(ep));
    }
    let held = s.lock();
    let r = match stands_in(s, epfd, op, fd, ep, want) {
        Some(r) => r,
        None => change(s, i, epfd, op, fd, ep, want, native),
    };
    s.changed();
    let wake = s.attached.load(Relaxed) > 0 && s.first.load(Relaxed).is_some() && s.sleepers.load(SeqCst) > 0;
    held.release();
    if wake {
        rouse(s);
    }
    if s.nested() {
        stay_armed(s);
    }
    r
}

/// The same where something stands in the set for the connection. With the set's lock held.
fn stands_in(s: &Set, epfd: c_int, op: c_int, fd: c_int, ep: Ep, want: epoll_event) -> Option<c_int> {
    if s.own() {
        return None;
    }
    let w = s.get(fd).filter(|_| linked(s.index(), fd, ep));
    if w.is_some_and(|w| w.flags.load(Relaxed) != 0) {
        return None;
    }
    let r = standin::ctl(epfd, op, fd, ep, want)?;
    match w {
        Some(w) if r == 0 && op == libc::EPOLL_CTL_DEL => unlink(s.index(), fd, w),
        Some(w) if r == 0 => {
            w.events.store(want.events, Relaxed);
            w.data.store(want.u64, Relaxed);
        }
        _ => {}
    }
    Some(r)
}

/// Changes a watch that the kernel keeps, or puts it back. With the set's lock held.
fn modify(s: &Set, epfd: c_int, fd: c_int, w: &Watch, want: epoll_event) -> isize {
    /// Level-triggered news: what holds, the kernel reports until it holds no longer, whether it is asked again or not
    /// (ep_modify, fs/eventpoll.c).
    const LEVEL: u32 = (EPOLLIN | EPOLLOUT | EPOLLRDHUP | libc::EPOLLERR | libc::EPOLLHUP) as u32;
    let same = w.events.load(Relaxed) == want.events && w.data.load(Relaxed) == want.u64;
    let level = want.events & !LEVEL == 0;
    if !(same && level && s.own()) {
        if !(level && s.owe_change(epfd, fd, w)) {
            let r = kernel_ctl(epfd, libc::EPOLL_CTL_MOD, fd, want.events, want.u64);
            if r < 0 {
                return r;
            }
            s.forgo(fd);
        }
        w.events.store(want.events, Relaxed);
        w.data.store(want.u64, Relaxed);
    }
    if w.flags.load(Relaxed) & PARKED != 0 {
        s.owe_no_more(fd, w);
        s.take_turn(fd);
    }
    0
}

/// Whether `fd` of this process is watched in a set as what it is now. What another process left behind in a set that
/// they shared is nobody's.
fn linked(set: usize, fd: c_int, ep: Ep) -> bool {
    let mut found = false;
    each(ep, |s, f, _| found |= s == set && f == fd);
    found
}

/// Whether the kernel gets the connection with this change.
fn moves_first(s: &Set, epfd: c_int, op: c_int, fd: c_int) -> bool {
    match op {
        libc::EPOLL_CTL_MOD => s.nested(),
        libc::EPOLL_CTL_ADD => {
            let held = s.lock();
            let served = equip(s, epfd) && s.make(fd).is_some();
            held.release();
            !served
        }
        _ => false,
    }
}

#[allow(clippy::too_many_arguments)]
fn change(
    s: &Set,
    i: usize,
    epfd: c_int,
    op: c_int,
    fd: c_int,
    ep: Ep,
    want: epoll_event,
    native: impl Fn() -> c_int,
) -> c_int {
    // A number may be one file's here and another's in a process that has the same set.
    let w = s.get(fd).filter(|_| linked(i, fd, ep));
    let parked = w.is_some_and(|w| w.flags.load(Relaxed) & PARKED != 0);
    match (op, w) {
        (libc::EPOLL_CTL_MOD | libc::EPOLL_CTL_DEL, Some(_)) if parked => {
            real::set_errno(libc::ENOENT);
            -1
        }
        (libc::EPOLL_CTL_ADD, Some(w)) if parked && w.flags.load(Relaxed) & TAGGED == 0 => {
            if modify(s, epfd, fd, w, want) >= 0 {
                return 0;
            }
            unpark(i, epfd, fd, w);
            add(s, i, epfd, fd, ep, want, native)
        }
        (libc::EPOLL_CTL_ADD, Some(w)) if parked => {
            if concerns_kernel(0, want.events) {
                kernel_ctl(
                    epfd,
                    libc::EPOLL_CTL_MOD,
                    fd,
                    lifeline_mask(want.events),
                    tag() | u64::from(watch_id(i, fd)),
                );
            }
            w.events.store(want.events, Relaxed);
            w.data.store(want.u64, Relaxed);
            w.seen.store(0, Relaxed);
            w.blocked.store(ep.tx_blocked.load(Relaxed), Relaxed);
            w.flags.store(TAGGED | EDGE, Relaxed);
            if let (Some(p), Some(chan)) = (s.poller(), ep.chan())
                && chan.inherited.load(Relaxed) == 0
            {
                // News that came while it was parked may have ended them.
                poller::watch_slot(chan, ep.slot.load(Relaxed) as usize, p);
            }
            s.push(fd);
            0
        }
        (libc::EPOLL_CTL_DEL, Some(w)) if w.flags.load(Relaxed) & TAGGED != 0 && !s.nested() => {
            if concerns_kernel(w.events.load(Relaxed), 0) {
                kernel_ctl(epfd, libc::EPOLL_CTL_MOD, fd, lifeline_mask(0), tag() | u64::from(watch_id(i, fd)));
            }
            w.events.store(0, Relaxed);
            w.flags.store(TAGGED | PARKED, Relaxed);
            0
        }
        (libc::EPOLL_CTL_MOD, Some(w)) if w.events.load(Relaxed) & EPOLLEXCLUSIVE as u32 != 0 => {
            // An exclusive watch cannot be changed (epoll_ctl(2)).
            real::set_errno(libc::EINVAL);
            -1
        }
        (libc::EPOLL_CTL_MOD, Some(w)) if w.flags.load(Relaxed) & TAGGED != 0 => {
            if s.nested() && (is_kernels(ep) || handoff::has_bytes(ep)) {
                let r = native();
                if r == 0 {
                    w.events.store(want.events, Relaxed);
                    w.data.store(want.u64, Relaxed);
                    w.flags.store(0, Relaxed);
                    s.attached.fetch_sub(1, Relaxed);
                    standin::stand(epfd, fd, ep, want.events, want.u64);
                }
                return r;
            }
            if concerns_kernel(w.events.load(Relaxed), want.events) {
                let id = u64::from(watch_id(i, fd));
                kernel_ctl(epfd, op, fd, lifeline_mask(want.events), tag() | id);
            }
            w.events.store(want.events, Relaxed);
            w.data.store(want.u64, Relaxed);
            w.flags.store(TAGGED | EDGE, Relaxed);
            s.push(fd);
            0
        }
        (libc::EPOLL_CTL_MOD, Some(w)) => real::ret(modify(s, epfd, fd, w, want)) as c_int,
        // An exclusive watch could not be changed into what the descriptor is put back with.
        (libc::EPOLL_CTL_DEL, Some(w)) if w.events.load(Relaxed) & EPOLLEXCLUSIVE as u32 == 0 && s.owe(fd, w) => 0,
        (libc::EPOLL_CTL_DEL, Some(w)) => {
            let r = native();
            if r == 0 {
                unlink(i, fd, w);
            }
            r
        }
        (libc::EPOLL_CTL_ADD, _) => add(s, i, epfd, fd, ep, want, native),
        _ => native(),
    }
}

fn add(s: &Set, i: usize, epfd: c_int, fd: c_int, ep: Ep, want: epoll_event, native: impl Fn() -> c_int) -> c_int {
    let attached = ep.state() == State::Attached;
    let place = if equip(s, epfd) { s.make(fd) } else { None };
    let Some(w) = place else {
        // A connection that cannot be served here stays on the kernel; a listener is not affected.
        let why =
            if s.nested() || s.shared() || s.inherited.load(Relaxed) != 0 { Reason::EpollShared } else { Reason::NoFd };
        if !attached {
            slots::give_up(ep, why);
        }
        if ep.state() == State::Attached && !is_kernels(ep) {
            // Another thread has attached it this moment; or bytes are left here.
            move_to_kernel(ep, unread_here(ep));
            if let Some(r) = standin::ctl(epfd, libc::EPOLL_CTL_ADD, fd, ep, want) {
                return r;
            }
            if !is_kernels(ep) && !handoff::has_bytes(ep) {
                lifeline::reset(fd, why);
            }
        }
        return native();
    };
    let taken = match ep.chan() {
        // Not first as the program wants it: the kernel could report at once what we would report again.
        Some(chan) if attached => {
            let r = kernel_ctl(
                epfd,
                libc::EPOLL_CTL_ADD,
                fd,
                lifeline_mask(want.events),
                tag() | u64::from(watch_id(i, fd)),
            );
            if r < 0 {
                return real::ret(r) as c_int;
            }
            Some(chan)
        }
        _ => {
            let r = native();
            if r != 0 {
                return r;
            }
            None
        }
    };
    // A watch that still stands in this place was of a file that is closed by now.
    unlink(i, fd, w);
    // The new watch may be of a listening socket: the list of those is to be made anew.
    s.listed.store(0, Relaxed);
    w.events.store(want.events, Relaxed);
    w.data.store(want.u64, Relaxed);
    w.flags.store(0, Relaxed);
    link(i, fd, w, ep);
    s.take_turn(fd);
    if let Some(chan) = taken {
        keep_here(s, fd, w, ep, chan, false);
    } else if ep.state() == State::Attached
        && let Some(chan) = ep.chan()
    {
        // Another thread attached it meanwhile.
        take_over(s, i, epfd, fd, w, ep, chan);
    }
    0
}

/// Whether the connection's watches allow it to be attached now.
///
/// A oneshot that is armed may fire in the kernel while its watch is taken over, and nobody could tell whether it did: not
/// then. One that has fired rests until the program arms it, and the thread that got its event usually makes the next call
/// on the connection: then it may.
pub fn may_attach(ep: Ep) -> bool {
    let mut may = true;
    each(ep, |set, fd, w| {
        let s = &TABLE[set];
        may &= !s.shared();
        if w.events.load(Relaxed) & EPOLLONESHOT as u32 != 0 && w.flags.load(Relaxed) & (TAGGED | PARKED) == 0 {
            may &= s.epfd().is_some_and(|epfd| oneshot_fired(epfd, fd));
        }
    });
    may
}

/// Moves a watch from the kernel's keeping to ours. With the set's lock held.
pub(super) fn take_over(s: &Set, i: usize, epfd: c_int, fd: c_int, w: &Watch, ep: Ep, chan: &Chan) {
    if w.flags.load(Relaxed) & TAGGED != 0 {
        return;
    }
    if w.flags.load(Relaxed) & PARKED != 0 {
        return unpark(i, epfd, fd, w);
    }
    if s.nested() {
        // The watch became one of this kind after the connection had been offered.
        return leave::retire(fd, Reason::EpollShared);
    }
    let events = w.events.load(Relaxed);
    let oneshot = events & EPOLLONESHOT as u32 != 0;
    let id = u64::from(watch_id(i, fd));
    s.forgo(fd);
    // An armed oneshot: see `may_attach`, after which it was armed again.
    // A refusal: the number was closed behind our back while its file lives on.
    let exclusive = events & EPOLLEXCLUSIVE as u32 != 0;
    let how = if exclusive {
        // It cannot be changed. What is ready now is an event of the new watch, too (ep_insert).
        kernel_ctl(epfd, libc::EPOLL_CTL_DEL, fd, 0, 0);
        libc::EPOLL_CTL_ADD
    } else {
        libc::EPOLL_CTL_MOD
    };
    if oneshot && !oneshot_fired(epfd, fd) || kernel_ctl(epfd, how, fd, lifeline_mask(events), tag() | id) < 0 {
        leave::retire(fd, Reason::EpollShared);
        return;
    }
    keep_here(s, fd, w, ep, chan, oneshot);
}

/// The kernel's registration carries our tag now: the rest of it is kept here. With the set's lock held.
fn keep_here(s: &Set, fd: c_int, w: &Watch, ep: Ep, chan: &Chan, fired: bool) {
    w.flags.store(TAGGED | EDGE | if fired { FIRED } else { 0 }, Relaxed);
    w.seen.store(0, Relaxed);
    // A waiter adds itself to `sleepers`, then looks at `attached`; here it is the other way round (both SeqCst): one
    // of the two sees the other.
    s.attached.fetch_add(1, SeqCst);
    s.taken_over.fetch_add(1, Release);
    w.blocked.store(ep.tx_blocked.load(Relaxed), Relaxed);
    if chan.inherited.load(Relaxed) != 0 {
        // The words of our pollers in this channel are those of the process that mapped it.
        s.foreign.store(1, Relaxed);
    } else if let Some(p) = s.poller() {
        poller::watch_slot(chan, ep.slot.load(Relaxed) as usize, p);
        poller::tell(chan, p);
        // A thread may sleep in this set already, unarmed in this channel.
        ring::arm(&chan.queues(chan.role())[p], poller::generation(p));
        ring::armed();
    }
    s.insert(fd);
}
