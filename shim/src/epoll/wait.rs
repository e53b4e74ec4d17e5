//! Waiting on a set, and what it reports.

use super::set::{EDGE, FIRED, PARKED, Set, TABLE, TAGGED, Watch, each, ignore, settle, watch};
use super::{DOORBELL, ours};
use crate::endpoint::Ep;
use crate::fds::{self, Kind};
use crate::restless::{self, Restless};
use crate::spin::{self, Spun};
use crate::{channel, clock, family, lifeline, poller, real, rx, signals, tx, upkeep, usercopy};
use core::sync::atomic::Ordering::{Relaxed, SeqCst};
use core::sync::atomic::fence;
use libc::{EPOLLERR, EPOLLET, EPOLLHUP, EPOLLIN, EPOLLONESHOT, EPOLLOUT, EPOLLRDHUP};
use libc::{c_int, epoll_event, sigset_t};
use shmring::switch::TxPhase;
use shmring::{ring, sys, syscall};

/// The kernel's part of a busy set is looked at no less often than this.
const KERNEL_EVERY_US: u64 = 20;
/// Events that the kernel is asked for at a time.
const KERNEL_EVENTS: usize = 128;

/// Rings the set's own doorbell.
pub(super) fn knock(s: &Set) {
    if let Some(p) = s.poller() {
        poller::ring_own(p);
    }
}

/// Arms the set in every channel, for those who do not sleep in our own wait.
pub(super) fn stay_armed(s: &Set) {
    arm(s);
    if s.first.load(Relaxed) != 0 || stirred(s) {
        knock(s);
    }
}

fn arm(s: &Set) {
    if let Some(p) = s.poller() {
        let g = poller::generation(p);
        for c in channel::own() {
            poller::tell(c, p);
            c.queues(c.role())[p].armed.store(g, Relaxed);
        }
    }
    fence(SeqCst);
}

fn disarm(s: &Set) {
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
fn stirred(s: &Set) -> bool {
    let Some(p) = s.poller() else { return false };
    channel::own().any(|c| c.queues(c.role())[p].ready.load(Relaxed) != 0)
}

/// Whether news can come to this set without a doorbell.
fn bounded(s: &Set) -> bool {
    s.inherited.load(Relaxed) != 0 || s.foreign.load(Relaxed) != 0 || s.shared()
}

/// Moves ready bits into the ready lists. With the set's lock held.
fn demultiplex(s: &Set) {
    let me = s.index();
    if s.inherited.load(Relaxed) != 0 || s.shared() {
        let version = s.common().version.load(Relaxed);
        let all = s.inherited.load(Relaxed) != 0 || s.version.swap(version, Relaxed) != version;
        for (fd, w) in s.watches() {
            let ep = Ep::from_index(w.ep.load(Relaxed) - 1);
            if w.flags.load(Relaxed) & (TAGGED | PARKED) == TAGGED
                && ep.local().refs.load(Relaxed) > 0
                && (all || stirs(ep, w))
            {
                note_edge(ep, w, false);
                s.push(fd);
            }
        }
    } else if s.foreign.load(Relaxed) != 0 {
        for ep in family::held().filter(|e| e.local().inherited.load(Relaxed) != 0) {
            each(ep, |set, fd, w| {
                if set == me && w.flags.load(Relaxed) & TAGGED != 0 {
                    note_edge(ep, w, false);
                    s.push(fd);
                }
            });
        }
    }
    let Some(p) = s.poller() else { return };
    let mut news = None;
    for c in channel::own() {
        let mut bits = ring::take_ready(&c.queues(c.role())[p]);
        while bits != 0 {
            let slot = bits.trailing_zeros() as usize;
            bits &= bits - 1;
            let Some(ep) = c.endpoint(slot) else { continue };
            let news = news.get_or_insert_with(News::new);
            if news.full() {
                news.each(|ep| told(s, ep));
            }
            news.add(c.slot(slot).producer[c.role().rx()].told.load(Relaxed), ep);
        }
    }
    if let Some(mut news) = news {
        news.each(|ep| told(s, ep));
    }
}

/// A peer has news of `ep`.
fn told(s: &Set, ep: Ep) {
    let me = s.index();
    let mut parked = false;
    each(ep, |set, fd, w| {
        if set == me && w.flags.load(Relaxed) & PARKED != 0 {
            parked = true;
        } else if set == me && w.flags.load(Relaxed) & TAGGED != 0 {
            note_edge(ep, w, true);
            s.push(fd);
        }
    });
    if parked {
        // Put back soon or left out for long: now it is known to be the latter.
        ignore(me, ep);
    }
}

/// Connections that have news, and since when.
struct News {
    list: [(u64, Ep); 64],
    n: usize,
}

impl News {
    fn new() -> News {
        News { list: [(0, Ep::from_index(0)); 64], n: 0 }
    }

    fn full(&self) -> bool {
        self.n == self.list.len()
    }

    fn add(&mut self, at: u64, ep: Ep) {
        self.list[self.n] = (at, ep);
        self.n += 1;
    }

    /// Takes them in the order of their coming.
    fn each(&mut self, f: impl FnMut(Ep)) {
        let list = &mut self.list[..core::mem::take(&mut self.n)];
        list.sort_unstable_by_key(|(at, _)| *at);
        list.iter().map(|(_, ep)| *ep).for_each(f);
    }
}

/// Whether a watch in a set that another process has, too, should be looked at. Memory only.
fn stirs(ep: Ep, w: &Watch) -> bool {
    let Some(chan) = ep.chan() else { return false };
    w.flags.load(Relaxed) & EDGE != 0
        || rx::stirred(ep, chan)
        || tx::may_write(ep, chan)
        || ep.rx_fin.load(Relaxed) != 0
}

/// How far the sender has come on the ring, and whether it goes no farther: what makes an edge if it changes.
fn written(ep: Ep, chan: &channel::Chan) -> u64 {
    rx::tail(ep, chan) | u64::from(rx::at_end(ep, chan)) << 63
}

/// Data that came since the last report is an edge for who asked for data, space after a refusal for who asked
/// for space (ep_poll_callback looks at the kind of news); nothing else is.
///
/// `told`: by the sender; then the end of the ring is one each time. Who only looks sees it all the time.
pub(super) fn note_edge(ep: Ep, w: &Watch, told: bool) {
    let events = w.events.load(Relaxed);
    if events & EPOLLET as u32 == 0 {
        return;
    }
    let Some(chan) = ep.chan() else { return };
    let data = written(ep, chan) != w.seen.load(Relaxed) || told && rx::at_end(ep, chan);
    let blocked = ep.tx_blocked.load(Relaxed);
    let space = blocked != w.blocked.load(Relaxed) && tx::writable(ep, chan);
    if space {
        w.blocked.store(blocked, Relaxed);
    }
    if data && events & !WRITE & NEWS != 0 || space && events & WRITE != 0 {
        w.flags.fetch_or(EDGE, Relaxed);
    }
}

const WRITE: u32 = EPOLLOUT as u32 | libc::EPOLLWRNORM as u32 | libc::EPOLLWRBAND as u32;
const GONE: u32 = (EPOLLRDHUP | EPOLLHUP | EPOLLERR) as u32;
/// All that a program can ask to be told; the rest of its mask says how.
const NEWS: u32 = 0xffff;

/// Events going to the program's array, which the kernel would write: a bad one is EFAULT, unless something
/// was written already (ep_send_events).
struct Out {
    at: *mut epoll_event,
    max: usize,
    n: usize,
    fault: bool,
}

impl Out {
    fn full(&self) -> bool {
        self.n == self.max || self.fault
    }

    fn put(&mut self, e: epoll_event) {
        if self.fault {
            return;
        }
        // SAFETY: within the `max` events that the program says it has room for; faults are reported.
        let ok = unsafe { usercopy::store(self.at.add(self.n), &e) }.is_ok();
        self.n += usize::from(ok);
        self.fault = !ok;
    }
}

/// Fills `out` from the ready list. With the set's lock held.
fn report(s: &Set, out: &mut Out) {
    // Each watch is looked at once: those that stay ready go to the end.
    let stop = s.last.load(Relaxed);
    while !out.full() {
        let Some((fd, w)) = s.pop() else { break };
        report_one(s, fd, w, out);
        if fd as u32 + 1 == stop {
            break;
        }
    }
}

fn report_one(s: &Set, fd: c_int, w: &Watch, out: &mut Out) {
    let events = w.events.load(Relaxed);
    let flags = w.flags.load(Relaxed);
    let ep = w.ep.load(Relaxed);
    let edge = events & EPOLLET as u32 != 0;
    if ep == 0 || flags & TAGGED == 0 || flags & (FIRED | PARKED) != 0 || edge && flags & EDGE == 0 {
        return;
    }
    let ep = Ep::from_index(ep - 1);
    // Closed here; another process that has the set still holds it.
    if ep.local().refs.load(Relaxed) == 0 {
        return;
    }
    let Some(chan) = ep.chan() else { return };
    let seen = written(ep, chan);
    let at = ep.local().fd.load(Relaxed);
    // poll's and epoll's bits have the same values up to EPOLLRDHUP on x86-64.
    let mask = events as i16 | libc::POLLERR | libc::POLLHUP;
    let r = upkeep::now(ep, chan, if at >= 0 { at } else { fd }, mask) & mask;
    if r != 0 {
        out.put(epoll_event { events: r as u16 as u32, u64: w.data.load(Relaxed) });
        if out.fault {
            // Not reported: still to be.
            return s.append(fd);
        }
    }
    w.seen.store(seen, Relaxed);
    let fired = if r != 0 && events & EPOLLONESHOT as u32 != 0 { FIRED } else { 0 };
    w.flags.store(flags & !EDGE | fired, Relaxed);
    if r != 0 && !edge && fired == 0 {
        s.append(fd);
    }
}

const _: () =
    assert!(EPOLLIN == libc::POLLIN as i32 && EPOLLOUT == libc::POLLOUT as i32 && EPOLLRDHUP == libc::POLLRDHUP as i32);
const _: () = assert!(EPOLLERR == libc::POLLERR as i32 && EPOLLHUP == libc::POLLHUP as i32);

/// Whether `e` is the program's own. Ours are served: the connections that they concern are queued.
fn foreign(s: &Set, e: &epoll_event) -> bool {
    match ours(e.u64) {
        None => return true,
        Some(DOORBELL) => {
            if let Some(p) = s.poller() {
                poller::drain(p);
            }
        }
        Some(id) => {
            let held = s.lock();
            if let Some(w) = watch(id as u32)
                && w.ep.load(Relaxed) != 0
                && w.flags.load(Relaxed) & TAGGED != 0
                && Ep::from_index(w.ep.load(Relaxed) - 1).local().refs.load(Relaxed) > 0
            {
                lifeline_news(Ep::from_index(w.ep.load(Relaxed) - 1), w, e.events);
                s.push((id & 0xf_ffff) as i32);
            }
            held.release();
        }
    }
    false
}

/// The kernel says that `events` hold on the lifeline, one of them newly.
fn lifeline_news(ep: Ep, w: &Watch, events: u32) {
    let mut edge = events & (w.events.load(Relaxed) | GONE);
    if events & GONE != 0 {
        // Asked again: a closed file that lives on elsewhere may speak under a number that is another's now.
        let fd = ep.local().fd.load(Relaxed);
        if fd >= 0 {
            ep.note_end(lifeline::look(fd, lifeline::ENDED));
        }
    } else if ep.tx_phase.get() == TxPhase::Ring {
        // Room on an idle lifeline.
        edge &= !WRITE;
    }
    if edge != 0 {
        w.flags.fetch_or(EDGE, Relaxed);
    }
}

/// What the kernel reported, in its order.
struct Reported {
    got: [epoll_event; KERNEL_EVENTS],
    n: usize,
    /// How many of them are reported before the rings' news.
    before: usize,
}

impl Reported {
    const NONE: Reported = Reported { got: [epoll_event { events: 0, u64: 0 }; KERNEL_EVENTS], n: 0, before: 0 };

    /// Serves what is ours, and keeps the rest. The doorbell's place tells when the rings' news came; where it was not to
    /// be rung nothing does, and they are taken to be the elder.
    fn keep(&mut self, s: &Set, n: usize, slept: bool) {
        let (kept, rung) = sift(s, &mut self.got[..n]);
        self.n = kept;
        self.before = rung.unwrap_or(if slept { kept } else { 0 });
    }
}

/// Serves what is ours of the kernel's events, and moves the rest to the front: how many they are, and where among them
/// the first of ours was.
fn sift(s: &Set, events: &mut [epoll_event]) -> (usize, Option<usize>) {
    let mut kept = 0;
    let mut ours = None;
    for i in 0..events.len() {
        let e = events[i];
        if foreign(s, &e) {
            events[kept] = e;
            kept += 1;
        } else {
            ours.get_or_insert(kept);
        }
    }
    (kept, ours)
}

/// The kernel's part, for at most `max` events, and the ring's. Does not wait.
fn both_now(s: &Set, epfd: c_int, out: &mut Out, max: usize) -> Result<(), i32> {
    let max = max.min(KERNEL_EVENTS);
    let mut k = Reported::NONE;
    // As long as it is full of our own: they are edge-triggered, but more may come.
    for _ in 0..64 {
        // SAFETY: the array is valid for its length; a zero timeout.
        let r = unsafe { syscall!(libc::SYS_epoll_pwait, epfd, k.got.as_mut_ptr(), max, 0, 0, 8) };
        s.kernel_at.store(sys::cycles(), Relaxed);
        if r < 0 {
            return Err(-r as i32);
        }
        k.keep(s, r as usize, false);
        if k.n > 0 || (r as usize) < max {
            break;
        }
    }
    report_both(s, &k, out);
    Ok(())
}

/// Reports what the kernel has, for which there is room, and what the rings have.
fn report_both(s: &Set, k: &Reported, out: &mut Out) {
    let (before, after) = k.got[..k.n].split_at(k.before);
    before.iter().for_each(|e| out.put(*e));
    out.max -= after.len();
    ring_now(s, out);
    out.max += after.len();
    after.iter().for_each(|e| out.put(*e));
}

/// The ring's part.
fn ring_now(s: &Set, out: &mut Out) {
    let held = s.lock();
    demultiplex(s);
    report(s, out);
    held.release();
}

/// `epoll_wait` and its kin. `timeout` in nanoseconds, `None` = for ever.
///
/// # Safety
/// As libc's; a cancellation point.
pub unsafe fn wait(
    epfd: c_int,
    ev: *mut epoll_event,
    max: c_int,
    timeout: Option<u64>,
    mask: *const sigset_t,
    mut real: impl FnMut() -> c_int,
) -> c_int {
    let Kind::Epoll(i) = fds::get(epfd) else { return real() };
    let s = &TABLE[i];
    // From now on the kernel hears of every change at once.
    s.waiters.fetch_add(1, SeqCst);
    if s.owes() {
        let held = s.lock();
        settle(s, epfd);
        held.release();
    }
    // SAFETY: the caller's obligation.
    let r = unsafe { serve(s, epfd, ev, max, timeout, mask, real) };
    s.waiters.fetch_sub(1, Relaxed);
    r
}

/// Waits as [`wait`] does, counted as a waiter.
///
/// # Safety
/// As [`wait`]'s.
unsafe fn serve(
    s: &Set,
    epfd: c_int,
    ev: *mut epoll_event,
    max: c_int,
    timeout: Option<u64>,
    mask: *const sigset_t,
    mut real: impl FnMut() -> c_int,
) -> c_int {
    if max <= 0 {
        return real();
    }
    let since = signals::runs();
    let start = match timeout {
        Some(t) if t > 0 => Some(clock::now().saturating_add(t)),
        _ => None,
    };
    // Counted first: if a connection comes meanwhile, those who wait here must hear of it, and not of our marks.
    s.sleepers.fetch_add(1, SeqCst);
    let r = (s.attached.load(SeqCst) == 0).then(&mut real);
    s.sleepers.fetch_sub(1, Relaxed);
    if let Some(r) = r {
        if r <= 0 {
            return r;
        }
        // SAFETY: the kernel has just filled this many.
        let (n, _) = sift(s, unsafe { core::slice::from_raw_parts_mut(ev, r as usize) });
        if n > 0 {
            return leave(s, n);
        }
    }
    let max = max as usize;
    let mut restless = Restless::new();
    loop {
        let mut out = Out { at: ev, max, n: 0, fault: false };
        // Neither kind starves the other: half of the room is the kernel's when its turn has come. Who does not
        // wait wants to know what holds now.
        let asked = if timeout == Some(0) && max > 1 {
            true
        } else if max > 1 {
            sys::cycles().wrapping_sub(s.kernel_at.load(Relaxed)) > KERNEL_EVERY_US * clock::cycles_per_us()
        } else {
            s.turn.fetch_xor(1, Relaxed) & 1 != 0
        };
        let mut r = Ok(());
        if asked {
            r = both_now(s, epfd, &mut out, max.div_ceil(2));
        } else {
            ring_now(s, &mut out);
            if out.n == 0 && !out.fault {
                r = both_now(s, epfd, &mut out, max);
            }
        }
        if let Err(e) = r {
            return real::ret(-e as isize) as c_int;
        }
        if out.n == 0 && out.fault {
            leave(s, 0);
            return real::ret(-libc::EFAULT as isize) as c_int;
        }
        if out.n > 0 || timeout == Some(0) {
            return leave(s, out.n);
        }
        let rest = restless.round(clock::now);
        if rest.is_none() && !bounded(s) {
            let mut looks = 0u32;
            let spun = spin::spin(|| {
                looks += 1;
                stirred(s) || looks.is_multiple_of(64) && signals::interrupted(since, false)
            });
            if spun == Spun::Won && stirred(s) {
                continue;
            }
        }
        let mut left = None;
        if let Some(d) = start {
            left = Some(d.saturating_sub(clock::now()));
            if left == Some(0) {
                // One last look at the kernel's part happened above.
                return leave(s, 0);
            }
        }
        if let Some(time) = rest {
            // SAFETY: no lock is held; the mask is the caller's.
            if let Err(libc::EINTR) = unsafe { restless::rest(time, start, mask, since) } {
                leave(s, 0);
                return real::ret(-libc::EINTR as isize) as c_int;
            }
            continue;
        }
        s.sleepers.fetch_add(1, Relaxed);
        arm(s);
        if bounded(s) {
            left = Some(left.unwrap_or(poller::STEP).min(poller::STEP));
        }
        let mut k = Reported::NONE;
        let r = if stirred(s) || s.first.load(Relaxed) != 0 {
            0
        } else {
            // SAFETY: no lock is held; the array is valid for its length.
            unsafe {
                signals::epoll_pwait(epfd, k.got.as_mut_ptr(), max.min(KERNEL_EVENTS) as c_int, left, mask, since)
            }
        };
        s.sleepers.fetch_sub(1, Relaxed);
        disarm(s);
        s.kernel_at.store(sys::cycles(), Relaxed);
        if r < 0 {
            leave(s, 0);
            return real::ret(r) as c_int;
        }
        let mut out = Out { at: ev, max, n: 0, fault: false };
        k.keep(s, r as usize, true);
        if k.n == 0 {
            continue;
        }
        report_both(s, &k, &mut out);
        if out.n == 0 {
            leave(s, 0);
            return real::ret(-libc::EFAULT as isize) as c_int;
        }
        return leave(s, out.n);
    }
}

/// Before returning to the program: others who wait on this set must still be woken.
fn leave(s: &Set, n: usize) -> c_int {
    if s.nested() || s.sleepers.load(Relaxed) > 0 {
        stay_armed(s);
    }
    n as c_int
}
