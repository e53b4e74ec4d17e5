//! `poll` and `select` over sets that hold connections of ours.

use crate::channel::Chan;
use crate::endpoint::Ep;
use crate::fds::{self, Kind};
use crate::lifeline::ENDED;
use crate::rx::READY;
use crate::spin::{self, Spun};
use crate::{clock, config, epoll, mail, poller, readiness, real, rx, signals, sleep};
use core::sync::atomic::Ordering::{AcqRel, Relaxed};
use libc::{POLLERR, POLLHUP, POLLIN, POLLNVAL, POLLOUT, POLLPRI, POLLRDBAND, POLLRDNORM, POLLWRBAND, POLLWRNORM};
use libc::{c_int, fd_set, nfds_t, pollfd, sigset_t};
use shmring::family::State;
use shmring::{ring, syscall};

/// Entries kept on the stack; longer arrays get a mapping for the time of the call.
const SMALL: usize = 128;

fn on_ring(fd: i32) -> Option<(Ep, &'static Chan)> {
    let ep = fds::endpoint(fd)?;
    if ep.state() == State::Attached { Some((ep, ep.chan()?)) } else { None }
}

/// Connections counted as natively waited for: endpoint and life.
struct Counted {
    n: usize,
    list: [(u32, u32); SMALL],
}

/// Counts a native wait on `ep`. False, undone: the ring is in use.
fn count(ep: Ep) -> bool {
    let native = ep.rx_word.fetch_add(1, AcqRel) & READY == 0;
    if !native {
        uncount(ep);
    }
    native
}

fn uncount(ep: Ep) {
    let _ = ep.rx_word.fetch_update(AcqRel, Relaxed, |w| if w & !READY != 0 { Some(w - 1) } else { None });
}

/// Marks every connection that is not attached as natively waited for, so that none goes up while we
/// sleep in the kernel. `None`, and undone, if one is or has become attached, or if they are too many to remember.
fn enter_native(f: &[pollfd]) -> Option<Counted> {
    let mut c = Counted { n: 0, list: [(0, 0); SMALL] };
    for p in f {
        let Some(ep) = fds::endpoint(p.fd) else { continue };
        let native = match ep.state() {
            State::Attached => false,
            State::Eligible if c.n == SMALL => false,
            State::Eligible => {
                c.list[c.n] = (ep.index(), ep.life());
                let counted = count(ep);
                c.n += usize::from(counted);
                counted
            }
            _ => true,
        };
        if !native {
            leave_native(&c);
            return None;
        }
    }
    Some(c)
}

fn leave_native(c: &Counted) {
    for &(ep, life) in &c.list[..c.n] {
        let ep = Ep::from_index(ep);
        if ep.life() == life {
            uncount(ep);
        }
    }
}

/// Whether the set concerns us at all, and takes the next step for connections in it.
fn concerns(f: &[pollfd]) -> bool {
    let mut any = false;
    for p in f {
        match fds::get(p.fd) {
            Kind::Endpoint(ep) => match ep.state() {
                State::Attached => any = true,
                State::Eligible => any = true,
                _ => {}
            },
            Kind::Epoll(i) => epoll::nest(i),
            _ => {}
        }
    }
    any
}

/// `poll` and `ppoll`. `timeout` in nanoseconds, `None` = for ever; `mask` as ppoll's.
///
/// # Safety
/// As libc's; a cancellation point.
pub unsafe fn poll(
    f: *mut pollfd,
    n: nfds_t,
    timeout: Option<u64>,
    mask: *const sigset_t,
    mut real: impl FnMut() -> c_int,
) -> c_int {
    if n == 0 || f.is_null() || n > fds::MAX as nfds_t || !config::enabled() {
        return real();
    }
    // SAFETY: the program says that it has `n` entries; a bad array faults here as in any code of its own
    // (poll(2) would say EFAULT; no program passes one on purpose but to test the kernel).
    let set = unsafe { core::slice::from_raw_parts_mut(f, n as usize) };
    if !concerns(set) {
        return real();
    }
    if let Some(counted) = enter_native(set) {
        let r = real();
        leave_native(&counted);
        return r;
    }
    // SAFETY: the caller's obligation.
    real::ret(unsafe { serve(set, timeout, mask, false) }) as c_int
}

fn mapped(bytes: usize) -> Option<*mut u8> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: a fresh anonymous mapping.
    let p = unsafe { syscall!(libc::SYS_mmap, 0, bytes, libc::PROT_READ | libc::PROT_WRITE, flags, usize::MAX, 0) };
    if (-4095..0).contains(&p) { None } else { Some(p as *mut u8) }
}

/// `strict`: a descriptor that is not open at the start is `EBADF`.
unsafe fn serve(set: &mut [pollfd], timeout: Option<u64>, mask: *const sigset_t, strict: bool) -> isize {
    let mut small = [pollfd { fd: -1, events: 0, revents: 0 }; SMALL];
    if set.len() + 2 <= SMALL {
        // SAFETY: the caller's obligation.
        return unsafe { serve_in(set, &mut small[..set.len() + 2], timeout, mask, strict) };
    }
    let bytes = (set.len() + 2) * size_of::<pollfd>();
    let Some(p) = mapped(bytes) else { return -libc::ENOMEM as isize };
    // SAFETY: a fresh mapping of that size, zeroed.
    let big = unsafe { core::slice::from_raw_parts_mut(p.cast::<pollfd>(), set.len() + 2) };
    // SAFETY: the caller's obligation.
    let r = unsafe { serve_in(set, big, timeout, mask, strict) };
    // SAFETY: our own mapping.
    unsafe { syscall!(libc::SYS_munmap, p, bytes) };
    r
}

/// In `revents` while the call sleeps: see [`count`]. No event has this bit.
const COUNTED: i16 = 0x4000;

/// `work` has room for the set, a doorbell and the mailbox.
unsafe fn serve_in(
    set: &mut [pollfd],
    work: &mut [pollfd],
    timeout: Option<u64>,
    mask: *const sigset_t,
    mut strict: bool,
) -> isize {
    let since = signals::runs();
    let deadline = timeout.map(|t| if t == 0 { 0 } else { clock::now().saturating_add(t) });
    let zero = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    let bell = set.len();
    loop {
        let mut ready = 0isize;
        let mut others = false;
        for (p, w) in set.iter_mut().zip(work.iter_mut()) {
            *w = *p;
            w.revents = 0;
            match on_ring(p.fd) {
                Some((ep, chan)) => {
                    if !rx::make_ready(ep, chan) {
                        // Another thread waits natively: the lifeline still carries this direction.
                        others = true;
                    }
                    p.revents = readiness::now(ep, chan, p.fd, p.events) & (p.events | POLLERR | POLLHUP);
                    ready += isize::from(p.revents != 0);
                    w.fd = -1;
                }
                None => {
                    p.revents = 0;
                    others |= p.fd >= 0;
                }
            }
        }
        if others {
            // SAFETY: the array is ours and as long as said; a zero timeout.
            let r = unsafe { syscall!(libc::SYS_ppoll, work.as_mut_ptr(), set.len(), &raw const zero, 0, 8) };
            if r < 0 && r != -libc::EINTR as isize {
                return r;
            }
            for (p, w) in set.iter_mut().zip(work.iter()) {
                if w.fd >= 0 {
                    p.revents = w.revents;
                    ready += isize::from(w.revents != 0);
                }
            }
        }
        if strict && set.iter().any(|p| p.revents & POLLNVAL != 0) {
            return -libc::EBADF as isize;
        }
        strict = false;
        if ready > 0 || timeout == Some(0) {
            return ready;
        }
        let spun = spin::spin(|| any_stirred(set));
        if spun == Spun::Won {
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
                bounded |= !mail::tell(chan, n);
                chan.queues(chan.role())[n].armed.store(poller::generation(n), Relaxed);
            }
        }
        core::sync::atomic::fence(core::sync::atomic::Ordering::SeqCst);
        bounded |= set.iter().any(|p| on_ring(p.fd).is_some_and(|(ep, chan)| sleep::in_transit(ep, chan)));
        work[bell] = pollfd { fd: poller.map_or(-1, poller::bell), events: POLLIN, revents: 0 };
        work[bell + 1] = pollfd { fd: mail::mailbox(), events: POLLIN, revents: 0 };
        if bounded {
            left = Some(left.unwrap_or(poller::STEP).min(poller::STEP));
        }
        let r = if late || any_stirred(set) {
            0
        } else {
            // SAFETY: the array is ours; no lock is held.
            unsafe { signals::ppoll(work.as_mut_ptr(), bell + 2, left, mask, since) }
        };
        for p in set.iter_mut() {
            if p.revents == COUNTED
                && let Some(ep) = fds::endpoint(p.fd)
            {
                uncount(ep);
            }
            p.revents = 0;
        }
        if let Some(n) = poller {
            for p in set.iter() {
                if let Some((_, chan)) = on_ring(p.fd)
                    && chan.inherited.load(Relaxed) == 0
                {
                    chan.queues(chan.role())[n].armed.store(0, Relaxed);
                    ring::take_ready(&chan.queues(chan.role())[n]);
                }
            }
            if work[bell].revents != 0 {
                poller::drain(n);
            }
            poller::release(n);
        }
        if work[bell + 1].revents != 0 {
            mail::collect();
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
                || p.events & (POLLOUT | POLLWRNORM) != 0 && crate::tx::may_write(ep, chan)
        }
        None => false,
    })
}

/// POLLNVAL: closed by another thread while the call waited (fs/select.c).
const IN_SET: i16 = POLLRDNORM | POLLRDBAND | POLLIN | POLLHUP | POLLERR | POLLNVAL;
const OUT_SET: i16 = POLLWRBAND | POLLWRNORM | POLLOUT | POLLERR | POLLNVAL;

/// `select` and `pselect`. `left` receives the time that was not slept, if the program wants it.
///
/// # Safety
/// As libc's; a cancellation point.
#[allow(clippy::too_many_arguments)]
pub unsafe fn select(
    n: c_int,
    r: *mut fd_set,
    w: *mut fd_set,
    e: *mut fd_set,
    timeout: Option<u64>,
    mask: *const sigset_t,
    left: Option<&mut u64>,
    mut real: impl FnMut() -> c_int,
) -> c_int {
    if n <= 0 || !config::enabled() {
        return real();
    }
    let n = n as usize;
    // fd_set may be longer than FD_SETSIZE: programs allocate their own. It is an array of longs.
    let bit = |s: *mut fd_set, fd: usize| {
        // SAFETY: the program says that each set has at least `n` bits.
        !s.is_null() && unsafe { *s.cast::<u64>().add(fd / 64) } & (1 << (fd % 64)) != 0
    };
    let wanted = |fd: usize| {
        let mut ev = 0;
        if bit(r, fd) {
            ev |= POLLRDNORM | POLLRDBAND | POLLIN;
        }
        if bit(w, fd) {
            ev |= POLLWRBAND | POLLWRNORM | POLLOUT;
        }
        if bit(e, fd) {
            ev |= POLLPRI;
        }
        ev
    };
    let mut count = 0;
    let mut ours = false;
    for fd in 0..n {
        if wanted(fd) != 0 {
            count += 1;
            match fds::get(fd as i32) {
                Kind::Endpoint(ep) => ours |= matches!(ep.state(), State::Attached | State::Eligible),
                Kind::Epoll(i) => epoll::nest(i),
                _ => {}
            }
        }
    }
    if !ours {
        return real();
    }
    let bytes = count * size_of::<pollfd>();
    let mut small = [pollfd { fd: -1, events: 0, revents: 0 }; SMALL];
    let big = if count > SMALL { mapped(bytes) } else { None };
    if count > SMALL && big.is_none() {
        real::set_errno(libc::ENOMEM);
        return -1;
    }
    let set: &mut [pollfd] = match big {
        // SAFETY: a fresh mapping of that size.
        Some(p) => unsafe { core::slice::from_raw_parts_mut(p.cast(), count) },
        None => &mut small[..count],
    };
    let mut k = 0;
    for fd in 0..n {
        let ev = wanted(fd);
        if ev != 0 {
            set[k] = pollfd { fd: fd as i32, events: ev, revents: 0 };
            k += 1;
        }
    }
    let started = clock::now();
    let result = if let Some(counted) = enter_native(set) {
        let x = real();
        leave_native(&counted);
        x
    } else {
        // SAFETY: the caller's obligation.
        let x = unsafe { serve(set, timeout, mask, true) };
        if let (Some(left), Some(t)) = (left, timeout) {
            *left = t.saturating_sub(clock::now() - started);
        }
        if x < 0 {
            real::ret(x) as c_int
        } else {
            let mut hits = 0;
            for s in [r, w, e] {
                if !s.is_null() {
                    for i in 0..n.div_ceil(64) {
                        let keep = if (i + 1) * 64 <= n { 0 } else { !0u64 << (n % 64) };
                        // SAFETY: as in `bit`.
                        unsafe { *s.cast::<u64>().add(i) &= keep };
                    }
                }
            }
            for p in set.iter() {
                for (s, events, hit) in [(r, POLLIN, IN_SET), (w, POLLOUT, OUT_SET), (e, POLLPRI, POLLPRI | POLLNVAL)] {
                    if p.events & events != 0 && p.revents & hit != 0 {
                        // SAFETY: as in `bit`.
                        unsafe { *s.cast::<u64>().add(p.fd as usize / 64) |= 1 << (p.fd as usize % 64) };
                        hits += 1;
                    }
                }
            }
            hits
        }
    };
    if let Some(p) = big {
        // SAFETY: our own mapping.
        unsafe { syscall!(libc::SYS_munmap, p, bytes) };
    }
    result
}
