//! The handing-over of a set: it is watched from outside, or leaves our reach, and what is in it becomes the kernel's.

use super::bell::{stay_armed, unequip};
use super::chains::{descriptor, each, is_here, settle, under_closed, unpark};
use super::fdinfo::oneshot_fired;
use super::set::{FIRED, PARKED, Set, TABLE, TAGGED, Watch, watchable};
use super::spent::spend;
use super::{kernel_ctl, standin};
use core::sync::atomic::Ordering::Relaxed;
use engine::endpoint::Ep;
use engine::{fds, handoff, leave, lifeline, members, slots};
use host::clock;
use host::tls::tls;
use libc::{EPOLLET, EPOLLEXCLUSIVE, EPOLLONESHOT, c_int};
use shmring::family::{Reason, State};
use shmring::lnx;

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

/// The same where the next image is handed what is unread on some connections, and tells of it ([`standin::stand_for_heirs`]).
pub fn hand_over_with(i: usize, unread: &dyn Fn(c_int) -> leave::Unread) {
    let s = &TABLE[i];
    let others = s.may_be_others() && s.watches().any(|(_, w, _)| w.flags.load(Relaxed) & TAGGED != 0);
    leave_to_kernel(i, unread);
    let Some(epfd) = s.epfd() else { return };
    evacuate(s, unread);
    let mut held = s.lock();
    spend(s, epfd, &mut held.desk().known);
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

pub(super) fn move_to_kernel(ep: Ep, unread: leave::Unread) {
    if ep.state() == State::Attached
        && let Some(fd) = descriptor(ep)
    {
        leave::quit(fd, Reason::EpollShared, unread);
    }
}

/// What becomes of what is unread on a connection that goes to the kernel while this process goes on to read it. It stays where it
/// is, so that nothing depends on the peer, which may be busy or be killed: [`standin`] tells of it. Not where another process
/// may read it, whom this process does not hear of.
pub(super) fn unread_here(ep: Ep) -> leave::Unread {
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
pub(super) fn is_kernels(ep: Ep) -> bool {
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
