//! `poll` over lists that hold connections of ours.
// Unsafe here: pollfds are the program's memory.
#![allow(unsafe_code)]

use crate::arrays::Array;
use crate::epoll;
use core::sync::atomic::Ordering::{AcqRel, Relaxed};
use engine::channel::Chan;
use engine::endpoint::Ep;
use engine::fds::{self, Kind};
use engine::lifeline::ENDED;
use engine::restless::{self, Restless};
use engine::spin::{self, Spun};
use engine::{config, conn, poller, readiness, rx, sleep, upkeep};
use host::usercopy::{self, Fault};
use host::{clock, real, signals};
use libc::{POLLERR, POLLHUP, POLLIN, POLLNVAL, POLLOUT, POLLRDHUP, POLLRDNORM, POLLWRNORM};
use libc::{c_int, nfds_t, pollfd, sigset_t};
use shmring::family::{OPEN, State};
use shmring::{lnx, ring};

/// Entries kept on the stack.
pub(crate) const SMALL: usize = 32;

fn on_ring(fd: i32) -> Option<(Ep, &'static Chan)> {
    let ep = fds::endpoint(fd)?;
    if ep.state() == State::Attached { Some((ep, ep.chan()?)) } else { None }
}

/// Connections counted as natively waited for: endpoint and life.
pub(crate) struct Counted {
    n: usize,
    list: [(u32, u32); SMALL],
}

/// Counts a native wait on `ep`. False, undone: the ring is in use.
fn count(ep: Ep) -> bool {
    let native = ep.rx_word.fetch_add(1, AcqRel) & OPEN == 0;
    if !native {
        uncount(ep);
    }
    native
}

fn uncount(ep: Ep) {
    let _ = ep.rx_word.fetch_update(AcqRel, Relaxed, |w| if w & !OPEN != 0 { Some(w - 1) } else { None });
}

/// A program's array of pollfds. It is read and written as the kernel does it, in the program's memory, which another thread
/// may change: each entry is copied, and of an entry only the answer is written.
#[derive(Clone, Copy)]
struct Theirs {
    at: *mut pollfd,
    n: usize,
}

impl Theirs {
    /// Copies entries, from the `from`th.
    fn read(self, from: usize, to: &mut [pollfd]) -> Result<(), Fault> {
        let bytes = size_of_val(to);
        // SAFETY: no longer than the destination; the source is the program's array, or a fault. Any bits are a pollfd.
        unsafe { usercopy::copy(to.as_mut_ptr().cast(), self.at.wrapping_add(from).cast_const().cast(), bytes) }
    }

    /// Shows each entry to `f` until it says no. Whether it never did.
    fn all(self, mut f: impl FnMut(&pollfd) -> bool) -> Result<bool, Fault> {
        let mut some = [NOBODY; SMALL];
        let mut from = 0;
        while from < self.n {
            let some = &mut some[..(self.n - from).min(SMALL)];
            self.read(from, some)?;
            if !some.iter().all(&mut f) {
                return Ok(false);
            }
            from += some.len();
        }
        Ok(true)
    }

    /// Writes the answers.
    fn answer(self, set: &[pollfd]) -> Result<(), Fault> {
        for (i, p) in set.iter().enumerate() {
            // SAFETY: the program's array, or a fault.
            unsafe { usercopy::store(&raw mut (*self.at.wrapping_add(i)).revents, &p.revents)? };
        }
        Ok(())
    }
}

pub(crate) const NOBODY: pollfd = pollfd { fd: -1, events: 0, revents: 0 };

impl Counted {
    pub(crate) const NONE: Counted = Counted { n: 0, list: [(0, 0); SMALL] };

    /// Marks the connection as natively waited for if it is not attached, so that it does not go up while we sleep in the
    /// kernel. False if it is or has become attached, or if they are too many to remember.
    pub(crate) fn enter(&mut self, fd: i32) -> bool {
        let Some(ep) = fds::endpoint(fd) else { return true };
        match ep.state() {
            State::Attached => false,
            State::Eligible if self.n == SMALL => false,
            State::Eligible => {
                self.list[self.n] = (ep.index(), ep.life());
                let counted = count(ep);
                self.n += usize::from(counted);
                counted
            }
            _ => true,
        }
    }
}

pub(crate) fn leave_native(c: &Counted) {
    for &(ep, life) in &c.list[..c.n] {
        let ep = Ep::from_index(ep);
        if ep.life() == life {
            uncount(ep);
        }
    }
}

/// Whether a descriptor concerns us, in a set that is about to be waited for.
pub(crate) fn concerns(fd: i32) -> bool {
    match fds::get(fd) {
        Kind::Endpoint(ep) => return matches!(ep.state(), State::Attached | State::Eligible),
        Kind::Epoll(i) => epoll::nest(i),
        _ => {}
    }
    false
}

/// `poll` and `ppoll`. `timeout` in nanoseconds, `None` = for ever; `mask` as ppoll's.
///
/// # Safety
/// As libc's; a cancellation point. Faults are armed.
pub unsafe fn poll(
    f: *mut pollfd,
    n: nfds_t,
    timeout: Option<u64>,
    mask: *const sigset_t,
    mut real: impl FnMut() -> c_int,
) -> c_int {
    if n == 0 || n > fds::MAX as nfds_t || !config::enabled() {
        return real();
    }
    epoll::settle_read();
    let theirs = Theirs { at: f, n: n as usize };
    let mut any = false;
    let seen = theirs.all(|p| {
        any |= concerns(p.fd);
        true
    });
    // The kernel says what is wrong.
    if seen.is_err() || !any {
        return real();
    }
    let mut counted = Counted::NONE;
    let native = theirs.all(|p| counted.enter(p.fd));
    if native != Ok(false) {
        let r = real();
        leave_native(&counted);
        return r;
    }
    leave_native(&counted);
    let r = if theirs.n < SMALL {
        let mut set = [NOBODY; SMALL];
        // SAFETY: the caller's obligation.
        unsafe { serve_theirs(theirs, &mut set[..theirs.n], timeout, mask) }
    } else if over_limit(theirs.n) {
        -libc::EINVAL as isize
    } else {
        match Array::take(theirs.n * size_of::<pollfd>()) {
            None => -libc::ENOMEM as isize,
            Some(array) => {
                // SAFETY: zeros are a pollfd; used up to `release`, and the rest is the caller's obligation.
                let r = unsafe { serve_theirs(theirs, &mut array.of()[..theirs.n], timeout, mask) };
                array.release();
                r
            }
        }
    };
    real::ret(r) as c_int
}

/// Whether these are more entries than the kernel takes (do_sys_poll: RLIMIT_NOFILE).
fn over_limit(n: usize) -> bool {
    lnx::limit(libc::RLIMIT_NOFILE).is_some_and(|limit| n as u64 > limit)
}

/// Serves a program's array by way of `set`, which is as long.
///
/// # Safety
/// As for [`poll`].
unsafe fn serve_theirs(theirs: Theirs, set: &mut [pollfd], timeout: Option<u64>, mask: *const sigset_t) -> isize {
    if theirs.read(0, set).is_err() {
        return -libc::EFAULT as isize;
    }
    // SAFETY: the caller's obligation.
    let r = unsafe { serve(set, timeout, mask, false) };
    if r < 0 {
        // Nothing was found out (do_poll).
        set.iter_mut().for_each(|p| p.revents = 0);
    }
    if theirs.answer(set).is_err() { -libc::EFAULT as isize } else { r }
}

/// `strict`: a descriptor that is not open at the start is `EBADF`.
pub(crate) unsafe fn serve(set: &mut [pollfd], timeout: Option<u64>, mask: *const sigset_t, strict: bool) -> isize {
    let mut small = [NOBODY; SMALL];
    if set.len() < SMALL {
        // SAFETY: the caller's obligation.
        return unsafe { serve_in(set, &mut small[..set.len() + 1], timeout, mask, strict) };
    }
    let Some(array) = Array::take((set.len() + 1) * size_of::<pollfd>()) else { return -libc::ENOMEM as isize };
    // SAFETY: zeros are a pollfd; used up to `release`, and the rest is the caller's obligation.
    let r = unsafe { serve_in(set, &mut array.of()[..set.len() + 1], timeout, mask, strict) };
    array.release();
    r
}

/// In `events`: the connection is on the ring, and the kernel is asked for what only the lifeline shows. No event has this
/// bit.
const MARK: i16 = 0x4000;
/// In `events`, beside [`MARK`]: the lifeline must be asked for [`readiness::LOOK`], of which this is one.
const ASKED: i16 = libc::POLLRDHUP;
/// In `revents` while the call sleeps: see [`count`].
const COUNTED: i16 = MARK;

/// Finds out what each entry has. What was done first, on whichever connection, is told first, or with what came later: the rings
/// are looked at before the kernel is asked, and if anything is ready, once more. What a ring has since it was looked at
/// may be older than what was found behind it, on another ring or by the kernel, or younger than what came to the kernel
/// meanwhile: so both are asked again, until no ring has more than what is told.
fn look(set: &mut [pollfd], work: &mut [pollfd]) -> Result<(), isize> {
    /// Looks at the rings and the kernel in one call: peers that act all the time keep it no longer from returning what is ready.
    const TRIES: u32 = 8;
    for _ in 0..TRIES {
        let asks = look_at_rings(set, work);
        if asks {
            look_at_kernel(set, work)?;
        }
        if set.len() == 1
            || set.iter().all(|p| p.revents == 0)
            || !set.iter().zip(work.iter()).any(|(p, w)| has_more(p, w))
        {
            break;
        }
    }
    Ok(())
}

/// What the connection of an entry has on the ring, and whether its lifeline must be asked: that is done for all connections at
/// once.
fn holds(p: &pollfd, ep: Ep, chan: &Chan) -> (i16, bool) {
    upkeep::in_memory(ep, chan, p.fd, p.events & !readiness::UNSEEN)
}

/// Of `events`, those that the entry is told.
fn told(p: &pollfd, events: i16) -> i16 {
    events & (p.events | POLLERR | POLLHUP)
}

/// Whether a ring has what it had not when the entry was looked at, `w` being what the kernel was asked of it since.
fn has_more(p: &pollfd, w: &pollfd) -> bool {
    /// All that TCP tells (tcp_poll), but what only the lifeline shows.
    const TOLD: i16 = POLLIN | POLLRDNORM | POLLOUT | POLLWRNORM | POLLRDHUP;
    let untold = p.events & TOLD & !p.revents;
    if untold == 0 {
        return false;
    }
    let Some((ep, chan)) = on_ring(p.fd) else { return false };
    if untold & readiness::WRITE == 0 && rx::is_quiet(ep, chan) {
        return false;
    }
    let (events, look) = holds(p, ep, chan);
    look && w.fd < 0 || told(p, events) & !p.revents != 0
}

/// Puts into `set` what the rings have, and into `work` what the kernel is to be asked. Whether it is to be asked anything.
fn look_at_rings(set: &mut [pollfd], work: &mut [pollfd]) -> bool {
    let mut asks = false;
    for (p, w) in set.iter_mut().zip(work.iter_mut()) {
        // The program may ask for a bit that is no event.
        *w = pollfd { fd: p.fd, events: p.events & !MARK, revents: 0 };
        p.revents = 0;
        if let Some((ep, chan)) = on_ring(p.fd) {
            // Another thread waits in a native receive, so READY cannot be said yet: this direction stays on the lifeline.
            asks |= !conn::make_ready(ep, chan);
            let (events, look) = holds(p, ep, chan);
            p.revents = told(p, events);
            let unseen = p.events & readiness::UNSEEN;
            w.events = MARK | if look { readiness::LOOK } else { unseen };
            w.fd = if look || unseen != 0 { p.fd } else { -1 };
        }
        asks |= w.fd >= 0;
    }
    asks
}

/// Asks the kernel what `work` says, and adds that to `set`.
fn look_at_kernel(set: &mut [pollfd], work: &mut [pollfd]) -> Result<(), isize> {
    let begun = shmring::sys::cycles();
    let r = lnx::poll(&mut work[..set.len()], 0);
    if r < 0 && r != -libc::EINTR as isize {
        return Err(r);
    }
    for (p, w) in set.iter_mut().zip(work.iter()).filter(|(_, w)| w.fd >= 0) {
        p.revents |= match w.events {
            e if e & MARK == 0 => w.revents,
            e if e & ASKED == 0 => w.revents & readiness::UNSEEN,
            _ => match on_ring(p.fd) {
                Some((ep, chan)) if r >= 0 => {
                    engine::tx::looked(ep, chan, begun, w.revents);
                    let wanted = p.events & !readiness::UNSEEN;
                    told(p, upkeep::with(ep, chan, p.fd, wanted, p.revents, w.revents))
                }
                None if r >= 0 => natively(p),
                _ => 0,
            },
        };
    }
    Ok(())
}

/// What the kernel says of a connection that has left the ring since it was looked at there.
fn natively(p: &pollfd) -> i16 {
    let mut one = [pollfd { events: p.events & !MARK, revents: 0, ..*p }];
    if lnx::poll(&mut one, 0) < 0 { 0 } else { one[0].revents }
}

/// `work` has room for the set and a doorbell.
unsafe fn serve_in(
    set: &mut [pollfd],
    work: &mut [pollfd],
    timeout: Option<u64>,
    mask: *const sigset_t,
    mut strict: bool,
) -> isize {
    let since = signals::runs();
    let deadline = timeout.map(|t| if t == 0 { 0 } else { clock::now().saturating_add(t) });
    let bell = set.len();
    let mut restless = Restless::new();
    loop {
        engine::tx::look_after();
        if let Err(e) = look(set, work) {
            return e;
        }
        let ready = set.iter().filter(|p| p.revents != 0).count() as isize;
        if strict && set.iter().any(|p| p.revents & POLLNVAL != 0) {
            return -libc::EBADF as isize;
        }
        strict = false;
        if ready > 0 || timeout == Some(0) {
            return ready;
        }
        let rest = restless.round(clock::now);
        if rest.is_none() && spin::spin(|| any_stirred(set)) == Spun::Won {
            continue;
        }
        if signals::interrupted(since, false) {
            return -libc::EINTR as isize;
        }
        let mut left = None;
        if let Some(d) = deadline {
            match d.checked_sub(clock::now()) {
                None | Some(0) => {
                    return 0;
                }
                some => left = some,
            }
        }
        if let Some(time) = rest {
            // SAFETY: no lock is held; the mask is the caller's.
            if let Err(libc::EINTR) = unsafe { restless::rest(time, deadline, mask, since) } {
                return -libc::EINTR as isize;
            }
            continue;
        }
        // Only connections that are attached are slept for on the ring; the others are counted as native, which
        // `revents`, 0 for all now, remembers.
        let poller = poller::acquire();
        let mut bounded = poller.is_none();
        let mut late = false;
        for (p, w) in set.iter_mut().zip(work.iter_mut()) {
            w.fd = p.fd;
            w.events = p.events;
            w.revents = 0;
            let Some((ep, chan)) = on_ring(p.fd) else {
                match fds::endpoint(p.fd).map(|ep| (ep, ep.state())) {
                    Some((ep, State::Eligible)) if count(ep) => p.revents = COUNTED,
                    // Attached by another thread since we looked.
                    Some((_, State::Eligible | State::Attached)) => late = true,
                    _ => {}
                }
                continue;
            };
            w.events = readiness::lifeline_events(ep, chan, p.events);
            bounded |= rx::doubled(ep, chan);
            if chan.inherited.load(Relaxed) != 0 {
                // The pollers' words there are those of the process that mapped it.
                bounded = true;
            } else if let Some(n) = poller {
                poller::watch_slot(chan, ep.slot.load(Relaxed) as usize, n);
                poller::tell(chan, n);
                ring::arm(&chan.queues(chan.role())[n], poller::generation(n));
            }
        }
        ring::armed();
        bounded |= set.iter().any(|p| on_ring(p.fd).is_some_and(|(ep, chan)| sleep::in_transit(ep, chan)));
        work[bell] = pollfd { fd: poller.map_or(-1, poller::bell), events: POLLIN, revents: 0 };
        if bounded {
            left = Some(left.unwrap_or(poller::STEP).min(poller::STEP));
        }
        left = engine::tx::until_due(left);
        let r = if late || any_stirred(set) {
            0
        } else {
            // SAFETY: the array is ours; no lock is held.
            unsafe { signals::ppoll(work.as_mut_ptr(), bell + 1, left, mask, since) }
        };
        for p in set.iter_mut() {
            if p.revents == COUNTED
                && let Some(ep) = fds::endpoint(p.fd)
            {
                uncount(ep);
            }
            p.revents = 0;
        }
        if let Some(n) = poller.filter(|n| poller::is_mine(*n)) {
            for p in set.iter() {
                if let Some((_, chan)) = on_ring(p.fd)
                    && chan.inherited.load(Relaxed) == 0
                {
                    chan.queues(chan.role())[n].armed.store(0, Relaxed);
                    poller::disclaim(chan, n, |slot| {
                        let ep = chan.endpoint(slot);
                        set.iter().any(|p| ep.is_some() && on_ring(p.fd).map(|(e, _)| e) == ep)
                    });
                    // Each connection is looked at below; the marks would be looked at again after each sleep.
                    ring::take_ready(&chan.queues(chan.role())[n]);
                }
            }
            if work[bell].revents & POLLNVAL != 0 {
                poller::lost(work[bell].fd);
            } else if work[bell].revents != 0 {
                poller::drain(n);
            }
            poller::free(n);
        }
        for (p, w) in set.iter().zip(work.iter()) {
            if w.revents & ENDED != 0
                && let Some((ep, _)) = on_ring(p.fd)
            {
                ep.note_end(w.revents);
            }
        }
        if r < 0 {
            return r;
        }
    }
}

fn any_stirred(set: &[pollfd]) -> bool {
    set.iter().any(|p| match on_ring(p.fd) {
        Some((ep, chan)) => {
            rx::news(ep, chan, p.events & (POLLIN | POLLRDNORM) != 0)
                || p.events & (POLLOUT | POLLWRNORM) != 0 && engine::tx::may_write(ep, chan)
        }
        None => false,
    })
}
