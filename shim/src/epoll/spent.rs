//! Oneshots that have fired here, in a set that the kernel gets: it knows such a registration only once it has told of it
//! itself (`ep_send_events`, fs/eventpoll.c); one that was changed reports errors and hangups always.
#![forbid(unsafe_code)]

use super::again::Known;
use super::bell::drain;
use super::desk::NO_EVENT;
use super::set::{FIRED, PARKED, Set, TAGGED, watch_id, watchable};
use super::{DOORBELL, kernel_ctl, ours, tag};
use core::sync::atomic::Ordering::Relaxed;
use libc::{EPOLL_CTL_MOD, EPOLLIN, EPOLLONESHOT, EPOLLOUT, EPOLLPRI, EPOLLRDHUP, c_int};
use shmring::lnx;

/// Lets the kernel tell of the set's oneshots that have fired, under our own data, wherever it has anything to tell. What else it tells
/// then, it is made to tell again (`known`: room for what that is). With the set's lock held.
pub(super) fn spend(s: &Set, epfd: c_int, known: &mut Known) {
    const ANY: u32 = (EPOLLIN | EPOLLOUT | EPOLLPRI | EPOLLRDHUP | EPOLLONESHOT) as u32;
    let fired = || {
        s.watches()
            .filter(|(fd, w, _)| w.flags.load(Relaxed) & (TAGGED | FIRED | PARKED) == TAGGED | FIRED && watchable(*fd))
    };
    if fired().next().is_none() || !known.read_told_once(epfd) {
        return;
    }
    for (fd, ..) in fired() {
        kernel_ctl(epfd, EPOLL_CTL_MOD, fd, ANY, tag() | u64::from(watch_id(s.index(), fd)));
    }
    // Any that do not fit stay armed, and are not taken for spent.
    let mut told = [NO_EVENT; 128];
    let n = lnx::epoll_events(epfd, &mut told).max(0) as usize;
    for e in told.iter().take(n) {
        match ours(e.u64) {
            None => known.tell_again(epfd, e),
            Some(DOORBELL) => drain(s),
            // All of these are registered anew.
            Some(_) => {}
        }
    }
}
