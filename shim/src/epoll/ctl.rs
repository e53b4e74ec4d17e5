//! Registrations: what the program asks of a set, and who keeps it, the kernel or we.

use super::chains::{descriptor, each, is_here, link, settle, under_closed, unlink, unpark};
use super::edge::lifeline_mask;
use super::fdinfo::oneshot_fired;
use super::set::{EDGE, FIRED, PARKED, Set, TABLE, TAGGED, Watch, watch_id, watchable};
use super::spent::spend;
use super::wait::{rouse, stay_armed};
use super::{DOORBELL, kernel_ctl, standin, tag};
use core::sync::atomic::Ordering::{Relaxed, SeqCst};
use engine::channel::Chan;
use engine::endpoint::Ep;
use engine::fds::{self, Kind};
use engine::{handoff, leave, lifeline, members, poller, slots};
use host::tls::tls;
use host::{clock, real};
use libc::{EPOLLET, EPOLLEXCLUSIVE, EPOLLIN, EPOLLONESHOT, EPOLLOUT, EPOLLRDHUP, EPOLLWAKEUP};
use libc::{c_int, epoll_event};
use shmring::family::{Reason, State};
use shmring::{lnx, ring};

/// The set is watched from outside (another set, `poll`). Its descriptor must then be readable exactly when one
/// of its members is ready, at any moment, which only the kernel can tell: its connections go there.
pub fn nest(i: usize) {
    leave_to_kernel(i, &|fd| fds::endpoint(fd).map_or(leave::Unread::Rewind, unread_here));
}

/// `unread`: what becomes of what is unread on its connections.
fn leave_to_kernel(i: usize, unread: &dyn Fn(c_int) -> leave::Unread) {
    let s = &TABLE[i];
    if s.left.load(Relaxed) != 0 {
        return;
    }
    let Some(epfd) = s.epfd() else { return };
    let held = s.lock();
    settle(s, epfd);
    // From here on nothing is attached in it.
    s.common().nested.store(1, Relaxed);
    s.left.store(1, Relaxed);
    held.release();
    evacuate(s, unread);
    let held = s.lock();
    for (fd, w, _) in s.watches() {
        give_back(s, epfd, fd, w);
    }
    if s.may_be_others() {
        // Others may have given back watches, too.
        let tagged = s.watches().filter(|(_, w, _)| w.flags.load(Relaxed) & TAGGED != 0).count();
        s.attached.store(tagged as u32, Relaxed);
    }
    if s.attached.load(Relaxed) == 0 {
        unequip(s, epfd);
    }
    s.changed();
    held.release();
    if s.attached.load(Relaxed) != 0 {
        stay_armed(s);
    }
}

/// The set is about to leave our reach, with an exec or in a message: the kernel's registrations become the
/// program's own.
pub fn hand_over(i: usize) {
    hand_over_with(i, &|_| leave::Unread::Rewind);
}

/// The same where the next image is handed what is unread on some connections, and tells of it ([`standin::handed_on`]).
pub fn hand_over_with(i: usize, unread: &dyn Fn(c_int) -> leave::Unread) {
    let s = &TABLE[i];
    let others = s.may_be_others() && s.watches().any(|(_, w, _)| w.flags.load(Relaxed) & TAGGED != 0);
    leave_to_kernel(i, unread);
    let Some(epfd) = s.epfd() else { return };
    evacuate(s, unread);
    let held = s.lock();
    spend(s, epfd);
    for (fd, w, ep) in s.watches() {
        if w.flags.load(Relaxed) & TAGGED == 0 {
            continue;
        }
        let fired = w.flags.load(Relaxed) & FIRED != 0;
        // The nearest to a oneshot that has fired and is not spent: errors and hangups are always reported, once.
        let events = if fired { (EPOLLONESHOT | EPOLLET) as u32 } else { w.events.load(Relaxed) };
        let restored = match watchable(fd) {
            true => fired && oneshot_fired(epfd, fd) || restore(epfd, fd, events, w),
            false => restore_closed(epfd, events, w),
        };
        if restored {
            w.flags.store(0, Relaxed);
            s.attached.fetch_sub(1, Relaxed);
            if !fired {
                standin::stand(epfd, fd, ep, events, w.data.load(Relaxed));
            }
        }
    }
    unequip(s, epfd);
    s.changed();
    held.release();
    if others {
        others_leave(s);
    }
}

/// The other processes that have a set leave it to the kernel at their next call, or within a step if they wait on it. Until then
/// a doorbell may be in it, and what they alone hold is not the kernel's: a moment's patience, once for a set, unless whose it is has
/// died.
fn others_leave(s: &Set) {
    const PATIENCE: u64 = 20_000_000;
    let since = clock::now();
    let another_has_one = || {
        let whose = s.common().doorbell.load(Relaxed);
        whose != 0 && whose != members::myself() && !members::owner_is_dead(whose)
    };
    while s.shared() && another_has_one() && clock::now() - since < PATIENCE {
        lnx::nap(200_000);
    }
}

/// Does what [`nest`] does, if another process has made the set the kernel's.
pub(super) fn follow(s: &Set) {
    if s.shared.load(Relaxed) != 0 && s.is_to_be_left() && tls().vfork.get() == 0 {
        nest(s.index());
    }
}

/// Moves a connection to the kernel. It may wait for the peer: with no set's lock held, since whoever holds a lock defers
/// signals, and others wait for it.
pub(super) fn to_kernel(ep: Ep) {
    move_to_kernel(ep, leave::Unread::Rewind);
}

fn move_to_kernel(ep: Ep, unread: leave::Unread) {
    if ep.state() == State::Attached
        && let Some(fd) = descriptor(ep)
    {
        leave::quit(fd, Reason::EpollShared, unread);
    }
}

/// What becomes of what is unread on a connection that goes to the kernel while this process goes on to read it. It stays where it
/// is, so that nothing depends on the peer, which may be busy or be killed: [`standin`] tells of it. Not where another process
/// may read it, whom this process does not hear of.
fn unread_here(ep: Ep) -> leave::Unread {
    if engine::family::sole_holder(ep) { leave::Unread::Keep } else { leave::Unread::Rewind }
}

/// Moves all attached connections of a set to the kernel, before its lock is taken for good.
fn evacuate(s: &Set, unread: &dyn Fn(c_int) -> leave::Unread) {
    let me = s.index();
    leave::quit_all(Reason::EpollShared, unread, |fd| {
        fds::endpoint(fd).is_some_and(|ep| {
            let mut watched = false;
            each(ep, |set, _, w| watched |= set == me && w.flags.load(Relaxed) & TAGGED != 0);
            watched && ep.state() == State::Attached && is_here(ep, fd)
        })
    });
}

/// Whether the kernel's word about a connection holds, or will, without anybody's waiting for it.
fn is_kernels(ep: Ep) -> bool {
    let Some(fd) = descriptor(ep) else { return false };
    // Where the peer cannot take back what is unread, it has ended its side, which makes the lifeline readable
    // for good: until all has been read, and beyond.
    ep.state() != State::Attached || leave::has_left(ep) || lifeline::look(fd, libc::POLLIN | lifeline::ENDED) != 0
}

/// Makes the kernel's registration the program's own again.
fn restore(epfd: c_int, fd: c_int, events: u32, w: &Watch) -> bool {
    let op = if events & EPOLLEXCLUSIVE as u32 != 0 {
        // Such a one is added, never changed (epoll_ctl(2)).
        kernel_ctl(epfd, libc::EPOLL_CTL_DEL, fd, 0, 0);
        libc::EPOLL_CTL_ADD
    } else {
        libc::EPOLL_CTL_MOD
    };
    kernel_ctl(epfd, op, fd, events, w.data.load(Relaxed)) >= 0
}

/// The same for a watch whose number was closed while its file lives on.
fn restore_closed(epfd: c_int, events: u32, w: &Watch) -> bool {
    let was = w.was.load(Relaxed) as c_int;
    let Some(ep) = w.ep.load(Relaxed) else { return false };
    under_closed(ep, was, || restore(epfd, was, events, w)) == Some(true)
}

/// Returns a watch to the kernel's keeping, if that can be: its connection has been moved there ([`to_kernel`]). With the
/// set's lock held.
pub(super) fn give_back(s: &Set, epfd: c_int, fd: c_int, w: &Watch) {
    let Some(ep) = w.ep.load(Relaxed) else { return };
    let flags = w.flags.load(Relaxed);
    if flags & PARKED != 0 {
        return unpark(s.index(), epfd, fd, w);
    }
    if flags & TAGGED == 0 {
        return slots::give_up(ep, Reason::EpollShared);
    }
    // A oneshot that has fired stays with us until it is armed again: the kernel knows no such registration.
    let events = w.events.load(Relaxed);
    if (is_kernels(ep) || handoff::has_bytes(ep)) && flags & FIRED == 0 && restore(epfd, fd, events, w) {
        w.flags.store(0, Relaxed);
        s.attached.fetch_sub(1, Relaxed);
        standin::stand(epfd, fd, ep, events, w.data.load(Relaxed));
    }
}

/// Gives the set a poller and a doorbell. False: none to be had.
fn equip(s: &Set, epfd: c_int) -> bool {
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
        _ => return native(),
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
