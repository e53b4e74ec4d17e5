//! What a set reports, in the order of events.

use super::again::{Known, Returned};
use super::bell::{drain, hear};
use super::chains::each;
use super::desk::{Desk, KERNEL_EVENTS, News, Reported};
use super::edge::{is_edge_by_that, lifeline_event, note_edge, number, serve_peer, written};
use super::fdinfo::Registration;
use super::order;
use super::set::{CALM, EDGE, FIRED, PARKED, Set, TAGGED, Watch};
use super::{DOORBELL, ours};
use core::sync::atomic::Ordering::Relaxed;
use engine::channel::Chan;
use engine::endpoint::Ep;
use engine::{family, fds, rx, tx, upkeep};
use host::usercopy;
use libc::{EPOLLERR, EPOLLET, EPOLLHUP, EPOLLIN, EPOLLONESHOT, EPOLLOUT, EPOLLRDHUP};
use libc::{c_int, epoll_event};
use shmring::{lnx, sys};

/// How often news on rings are reported, one after the other in calls that have no room for more, before the kernel has
/// its turn.
const PATIENCE: u32 = 32;
/// The same where what the kernel has is known to be younger.
const LONG_PATIENCE: u32 = 4096;
/// A call that has room for as many events leaves half of it for news on rings; one that has room for fewer is told all that is
/// ready and fits, as programs with small arrays expect.
const MANY: usize = 8;
/// Looks at the kernel in one call that bring nothing but what is not for the program.
const FULL: u32 = 64;
/// A peer that acts natively all the time, or says so, does not keep a call from what is ready for longer than this.
pub(super) const TRIES: u32 = 8;

const _: () =
    assert!(EPOLLIN == libc::POLLIN as i32 && EPOLLOUT == libc::POLLOUT as i32 && EPOLLRDHUP == libc::POLLRDHUP as i32);
const _: () = assert!(EPOLLERR == libc::POLLERR as i32 && EPOLLHUP == libc::POLLHUP as i32);

/// Puts into the ready list what may have news of which no bit tells. With the set's lock held.
fn scan(s: &Set) {
    let me = s.index();
    if s.inherited.load(Relaxed) != 0 || s.shared() {
        let version = s.common().version.load(Relaxed);
        let all = s.inherited.load(Relaxed) != 0 || s.version.swap(version, Relaxed) != version;
        for (fd, w, ep) in s.watches() {
            if w.flags.load(Relaxed) & (TAGGED | PARKED) == TAGGED
                && ep.local().refs.load(Relaxed) > 0
                && (all || stirs(ep, w))
            {
                note_edge(ep, w);
                s.push(fd);
            }
        }
    } else if s.foreign.load(Relaxed) != 0 {
        for ep in family::held().filter(|e| e.local().inherited.load(Relaxed) != 0) {
            each(ep, |set, fd, w| {
                if set == me && w.flags.load(Relaxed) & TAGGED != 0 {
                    note_edge(ep, w);
                    s.push(fd);
                }
            });
        }
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

/// Events going to the program's array, which the kernel would write: a bad one is EFAULT, unless something
/// was written already (ep_send_events).
pub(super) struct Out {
    pub at: *mut epoll_event,
    pub max: usize,
    pub n: usize,
    pub fault: bool,
    /// How often this call has found nothing that it could report without asking the kernel again.
    pub tries: u32,
    /// Watches became ours while the kernel told of some as the program's.
    pub moved: bool,
}

impl Out {
    fn put(&mut self, e: epoll_event) {
        if self.fault || self.n >= self.max {
            return;
        }
        // SAFETY: within the `max` events that the program says it has room for; faults are reported.
        let ok = unsafe { usercopy::store(self.at.add(self.n), &e) }.is_ok();
        self.n += usize::from(ok);
        self.fault = !ok;
    }
}

/// How many of the last of the kernel's events find no room: news on rings that were told before them, and were seen afterwards, come first.
/// What was given back before gives way to nothing that was told since: connections that are busy all the time would keep it from the program.
fn without_room(s: &Set, out: &Out, told: &[epoll_event], returned: &Returned) -> usize {
    let kernel = told.len();
    if kernel + s.waiting(out.max + 1 - kernel.min(out.max)) <= out.max {
        return 0;
    }
    let (mut back, mut ahead) = (0, 0);
    let mut next = s.first.load(Relaxed);
    while let Some(fd) = next.filter(|_| kernel > back) {
        let (Some(w), Some(l)) = (s.get(fd), s.link(fd)) else { break };
        next = l.ready.load(Relaxed).next();
        let (since, place) = s.place_of(l);
        if place >= kernel - back {
            break;
        }
        if holds(s, fd, w).is_none_or(|(.., r)| r == 0) {
            continue;
        }
        if ahead + kernel - back >= out.max {
            // What stands there since an earlier report takes turns with the kernel's (`room`).
            if since == 0 || returned.since(&told[kernel - back - 1]).is_some_and(|had| since > had) {
                break;
            }
            back += 1;
        }
        ahead += 1;
    }
    back
}

/// Gives back to the kernel what [`without_room`] says, and returns how many are left; what cannot be given back is told. A peer
/// that says when it had news may say what it likes: the kernel has its turn now and then.
fn make_room(s: &Set, epfd: c_int, out: &Out, k: &mut Reported, known: &mut Known, returned: &mut Returned) -> usize {
    let n = k.n;
    let back = if n == 0 { 0 } else { without_room(s, out, &k.got[..n], returned) };
    // An event of a watch that has become ours meanwhile is no registration's any more.
    let turned = back == 0 || out.moved || s.shared() || s.is_nth_turn(LONG_PATIENCE);
    // Of sockets that the kernel keeps.
    let asked = |r: &Registration| {
        let w = s.get(r.fd).filter(|w| w.flags.load(Relaxed) == 0 && w.data.load(Relaxed) == r.data)?;
        let ep = w.ep.load(Relaxed)?;
        (fds::endpoint(r.fd) == Some(ep)).then(|| w.events.load(Relaxed))
    };
    if turned || !known.read(epfd, asked) || !k.got[..n].iter().all(|e| known.has(e)) {
        return n;
    }
    // They leave the kernel's list for now: level-triggered ones went to its end, before what came meanwhile.
    if !k.got[n - back..n].iter().all(|e| known.take_out(epfd, e)) {
        k.got[n - back..n].iter().filter(|e| known.stays(e)).for_each(|e| _ = known.put_back(epfd, e));
        return n;
    }
    // Who slept asked long before: what came to the rings until now may be older.
    returned.replace(&k.got[n - back..n], sys::cycles());
    // What the kernel has besides is to stay behind them, in its order: one after the other they go to the end of its list.
    let all = take(s, epfd, k, n, KERNEL_EVENTS);
    let mut kept = n - back;
    for i in n - back..all {
        let e = k.got[i];
        if i >= n && k.got[n - back..n].iter().any(|old| old.u64 == e.u64) {
            continue;
        }
        let left = if i >= n && known.stays(&e) {
            // It is the first of the list.
            turn_over(s, epfd, k, known, all)
        } else {
            (!known.put_back(epfd, &e)).then_some(e)
        };
        if let Some(e) = left {
            // It comes now, behind those that do.
            match ours(e.u64) {
                Some(id) => lifeline_event(s, id, e.events, k.begun, kept),
                None => (k.got[kept], kept) = (e, kept + 1),
            }
        }
    }
    kept
}

/// Asks the kernel for more events, which come behind the `from` that are there: up to `to`. Returns how many there are then. News of
/// lifelines are among them, and are not told of here: they have their places among the others, which the kernel is to tell again.
fn take(s: &Set, epfd: c_int, k: &mut Reported, from: usize, to: usize) -> usize {
    let to = to.min(KERNEL_EVENTS);
    if from >= to {
        return from;
    }
    let told = lnx::epoll_events(epfd, &mut k.got[from..to]).max(0) as usize;
    from + hear(s, &mut k.got[from..from + told]).0
}

/// The first event that the kernel has goes to the end of its list. One that cannot be put back is returned: the kernel does not tell of it
/// again. The `from` that are there are kept.
fn turn_over(s: &Set, epfd: c_int, k: &mut Reported, known: &Known, from: usize) -> Option<epoll_event> {
    let to = take(s, epfd, k, from, from + 1);
    let first = *k.got[from..to].first()?;
    (!known.stays(&first) && !known.put_back(epfd, &first)).then_some(first)
}

/// Fills `out` from the ready list and with the kernel's events, each in its place. With the set's lock held.
fn report(s: &Set, out: &mut Out, kernel: &[epoll_event]) {
    let looked = if out.tries > TRIES { u64::MAX } else { s.looked.load(Relaxed) };
    // Each watch is looked at once: those that stay ready go to the end.
    let stop = s.last.load(Relaxed);
    let mut given = 0;
    while let Some((fd, since, place)) = s.next() {
        let to = place.clamp(given, kernel.len());
        kernel[given..to].iter().for_each(|e| out.put(*e));
        given = to;
        // There is room for what the kernel has told, which it does not tell again.
        if out.n + (kernel.len() - given) >= out.max || out.fault {
            break;
        }
        let Some((_, w)) = s.pop() else { break };
        if out.moved && kernel.iter().any(|e| e.u64 == w.data.load(Relaxed)) {
            // The kernel may have told of this very watch, and nobody can tell whether it did if others have the same data: once
            // in a call, and what holds after it in the next.
            s.append(fd);
        } else {
            report_one(s, fd, w, since, looked, out);
        }
        if Some(fd) == stop {
            break;
        }
    }
    kernel[given..].iter().for_each(|e| out.put(*e));
}

/// What a watch of the ready list has to report; `None`: it has no part in that. And how far its sender had come.
fn holds(s: &Set, fd: c_int, w: &Watch) -> Option<(&'static Chan, u64, i16)> {
    let events = w.events.load(Relaxed);
    let flags = w.flags.load(Relaxed);
    let ep = w.ep.load(Relaxed)?;
    // Closed here; another process that has the set still holds it.
    if flags & TAGGED == 0 || ep.local().refs.load(Relaxed) == 0 {
        return None;
    }
    let chan = ep.chan()?;
    let edge = events & EPOLLET as u32 != 0;
    let silent = flags & (FIRED | PARKED) != 0;
    if silent || edge && flags & EDGE == 0 {
        // The program is not told; what its peer has asked for, which may be all that the peer waits for, is done.
        serve_peer(ep, chan, fd);
        if silent || !is_edge_by_that(ep, chan, w) {
            return None;
        }
    }
    let seen = written(ep, chan);
    // poll's and epoll's bits have the same values up to EPOLLRDHUP on x86-64.
    let mut mask = events as i16 | libc::POLLERR | libc::POLLHUP;
    if !s.may_be_others() {
        // Its registration tells of an end, whatever the program wants: the kernel, when it was asked last, knew of none that was not noted.
        tx::spare_look(ep, chan, s.answered.load(Relaxed));
        // So it does of urgent data, if the program wants to know.
        if flags & CALM != 0 {
            mask &= !libc::POLLPRI;
        }
    }
    let mut r = upkeep::now(ep, chan, number(ep, fd), mask) & mask;
    if rx::is_pushed(ep, chan) {
        // Nothing may have come that can be read; but something can be done.
        r |= mask & (libc::POLLIN | libc::POLLRDNORM);
    }
    if mask & !r & libc::POLLPRI != 0 {
        w.flags.fetch_or(CALM, Relaxed);
    }
    Some((chan, seen, r))
}

/// `since`: when the news were told for which it is looked at, 0 if there were none. `looked`: when the kernel was asked.
fn report_one(s: &Set, fd: c_int, w: &Watch, since: u64, looked: u64, out: &mut Out) {
    let Some((chan, seen, r)) = holds(s, fd, w) else { return };
    let (events, flags) = (w.events.load(Relaxed), w.flags.load(Relaxed));
    let edge = events & EPOLLET as u32 != 0;
    if r != 0 && since == 0 && seen != w.seen.load(Relaxed) && order::behind(s, chan, looked) {
        // What came since the last report came after our look at the rings, and perhaps after something that the kernel has.
        s.must_look.store(1, Relaxed);
        return s.append(fd);
    }
    if r != 0 {
        out.put(epoll_event { events: r as u16 as u32, u64: w.data.load(Relaxed) });
        if out.fault {
            // Not reported: still to be.
            return s.append(fd);
        }
        if let Some(ep) = w.ep.load(Relaxed).filter(|ep| rx::is_pushed(*ep, chan)) {
            rx::push_is_told(ep, chan);
        }
    }
    w.seen.store(seen, Relaxed);
    let fired = if r != 0 && events & EPOLLONESHOT as u32 != 0 { FIRED } else { 0 };
    w.flags.store(flags & !EDGE | fired, Relaxed);
    if r != 0 && !edge && fired == 0 {
        s.append(fd);
    }
}

/// Takes what is ours out of the kernel's events, for a set in which nothing is attached.
pub(super) fn sift(s: &Set, events: &mut [epoll_event]) -> usize {
    let mut kept = 0;
    for i in 0..events.len() {
        let e = events[i];
        match ours(e.u64) {
            None => {
                events[kept] = e;
                kept += 1;
            }
            Some(DOORBELL) => drain(s),
            Some(id) => {
                let held = s.lock();
                lifeline_event(s, id, e.events, sys::cycles(), 0);
                held.release();
            }
        }
    }
    kept
}

/// Reports what holds now, without waiting. `asked`: the kernel is asked in any case.
pub(super) fn report_now(s: &Set, epfd: c_int, out: &mut Out, asked: bool) -> Result<(), i32> {
    let mut held = s.lock();
    let r = report_at(s, held.desk(), epfd, out, asked);
    held.release();
    r
}

/// The same with the set's lock held.
fn report_at(s: &Set, desk: &mut Desk, epfd: c_int, out: &mut Out, asked: bool) -> Result<(), i32> {
    order::begin(s);
    scan(s);
    desk.news.clear();
    order::gather(s, &mut desk.news);
    if !asked && s.must_look.load(Relaxed) == 0 && (desk.news.len() == 0 || !order::unseen(s, &desk.news)) {
        desk.news.sort();
        order::take_all(s, &desk.news);
        report(s, out, &[]);
        if out.n > 0 || out.fault {
            return Ok(());
        }
        desk.news.clear();
    }
    if is_single(s, out.max) {
        return report_single(s, desk, epfd, out);
    }
    let mut turned = false;
    // Again as long as the array came back full of our own events: those are edge-triggered and do not come again, but
    // behind them may be the program's.
    for _ in 0..FULL {
        let Desk { kernel: k, news, .. } = &mut *desk;
        k.clear();
        let since = s.looked.load(Relaxed);
        news.sort();
        let room = if turned { Some(out.max.div_ceil(2)) } else { room(s, news, out.max) };
        match room {
            // It is the turn of what the rings have, if they have anything.
            None => (out.tries, turned) = (TRIES + 1, true),
            Some(room) => {
                if let Err(e) = k.look(s, epfd, room) {
                    // They are for the next call.
                    order::take_all(s, news);
                    return Err(e);
                }
            }
        }
        merge(s, epfd, out, desk, since);
        if out.n > 0 || out.fault || room.is_some() && !desk.kernel.more {
            break;
        }
        desk.news.clear();
    }
    Ok(())
}

/// Room for what the kernel is asked for, of room for `max` events.
pub(super) fn share(max: usize) -> usize {
    if max >= MANY { max.div_ceil(2) } else { max }
}

/// Whether a call has room for one event only, and must find out whose turn it is. Not where others wait, too: what each of them is
/// told has no order, and whoever only looked at what the kernel has would leave it to them.
fn is_single(s: &Set, max: usize) -> bool {
    max == 1 && s.waiters.load(Relaxed) == 1 && !s.shared()
}

/// The same for a call that has room for one event. What the kernel tells it does not tell again, and news that came to a ring
/// earlier, but were seen after that, might find no room. So one event at a time is asked for, and only one that the
/// kernel had before the rings were looked at: whatever they have later came after it.
fn report_single(s: &Set, desk: &mut Desk, epfd: c_int, out: &mut Out) -> Result<(), i32> {
    let mut turned = false;
    drop_stale(s);
    for _ in 0..FULL {
        let any = order::has_events(s, epfd);
        let Desk { kernel: k, news, .. } = &mut *desk;
        k.clear();
        order::gather(s, news);
        news.sort();
        let since = s.looked.load(Relaxed);
        let asks = any && (turned || is_kernels_turn(s, news));
        if asks {
            if let Err(e) = k.look(s, epfd, 1) {
                order::take_all(s, news);
                return Err(e);
            }
            k.base = k.n;
            s.has_since.store(0, Relaxed);
        }
        merge(s, epfd, out, desk, since);
        // What the rings had was not ready: now the kernel's turn has come.
        turned = any && !asks;
        if out.n > 0 || out.fault || !turned && !desk.kernel.more {
            break;
        }
        desk.news.clear();
    }
    Ok(())
}

/// Takes out of the ready list what is not ready, as far as the kernel would look at its own: up to the first that is ready. Without
/// this, what stands there since an earlier report, and has been read since, would keep its place for later news.
fn drop_stale(s: &Set) {
    /// The list may be as long as the set.
    const LOOKS: usize = 16;
    let (mut before, mut next) = (None, s.first.load(Relaxed));
    for _ in 0..LOOKS {
        let Some(fd) = next else { return };
        let (Some(w), Some(l)) = (s.get(fd), s.link(fd)) else { return };
        next = l.ready.load(Relaxed).next();
        let dated = l.since.load(Relaxed) != 0;
        match holds(s, fd, w) {
            _ if dated => before = Some(fd),
            Some((.., r)) if r != 0 => return,
            held => {
                s.take_out(before, fd);
                if let Some((_, seen, _)) = held {
                    w.seen.store(seen, Relaxed);
                    w.flags.store(w.flags.load(Relaxed) & !EDGE, Relaxed);
                }
            }
        }
    }
}

/// Whether the first event that the kernel has, which it had by [`Set::has_since`], comes before what the rings have.
fn is_kernels_turn(s: &Set, news: &News) -> bool {
    if news.len() + s.waiting(1) == 0 || s.returned.load(Relaxed) > 0 {
        return true;
    }
    match order::first(s, news) {
        // A peer that says when it had news may say what it likes.
        (Some(ring), kernel) => {
            kernel.is_some_and(|kernel| kernel < ring)
                || ring > s.has_since.load(Relaxed)
                || s.is_nth_turn(LONG_PATIENCE)
        }
        (None, _) => s.is_nth_turn(2),
    }
}

/// Reports what the kernel has told and what the rings have. `since`: when the kernel had been asked before. With the set's
/// lock held.
fn merge(s: &Set, epfd: c_int, out: &mut Out, desk: &mut Desk, since: u64) {
    let Desk { kernel: k, news, known, returned } = desk;
    s.must_look.store(0, Relaxed);
    if s.returned.swap(0, Relaxed) == 0 {
        returned.clear();
    }
    order::gather(s, news);
    news.sort();
    let wait = k.date(s, since, news);
    k.place(s, news, wait);
    let told = make_room(s, epfd, out, k, known, returned);
    report(s, out, &k.got[..told]);
    if told < k.n {
        // The kernel has again what it had told, and is asked for it before the rest of what is ready is reported.
        s.looked.store(since, Relaxed);
        s.must_look.store(1, Relaxed);
        s.returned.store((k.n - told) as u32, Relaxed);
        s.move_up(told);
    }
}

/// How many events the kernel is asked for, if a call has room for `max`; `None`: it is not asked.
///
/// What it tells must fit, since it does not tell everything again; and so must what the rings have, if it came first: of
/// much room half is left for what comes to them before they are looked at once more.
fn room(s: &Set, news: &News, max: usize) -> Option<usize> {
    let waiting = news.len() + s.waiting(max.saturating_sub(news.len()));
    let returned = s.returned.load(Relaxed) as usize;
    if waiting < max {
        // What comes behind some of those that it has again (`move_up`) is told behind them only if they are all here.
        return Some(share(max - waiting).max(returned.min(max)));
    }
    if returned > 0 {
        return Some(returned.min(max));
    }
    match order::first(s, news) {
        // The first of all events is the kernel's, or it has an older one.
        (Some(ring), Some(kernel)) if kernel < ring => Some(1),
        // The first is a ring's. All that is older than what the kernel has will have been told soon: not for ever, though,
        // since a peer that says when it had news may say what it likes.
        (Some(_), Some(_)) if !s.is_nth_turn(LONG_PATIENCE) => None,
        // Neither kind starves the other. News go first, but not for ever.
        (Some(_), None) if !s.is_nth_turn(PATIENCE) => None,
        (Some(_), _) => Some(max.div_ceil(2)),
        (None, _) => s.is_nth_turn(2).then_some(max.div_ceil(2)),
    }
}

/// Reports what the kernel has `told`, of at most `room` events, to one who slept, and what the rings have. `before`, `begun`: when
/// the kernel had been asked before, and was asked now. `taken_over`: how many watches had become ours by then.
pub(super) fn report_told(
    s: &Set,
    epfd: c_int,
    told: &[epoll_event],
    room: usize,
    [before, begun]: [u64; 2],
    taken_over: u32,
    out: &mut Out,
) {
    let mut held = s.lock();
    out.moved = s.taken_over.load(Relaxed) != taken_over;
    let desk = held.desk();
    desk.kernel.clear();
    let rung = desk.kernel.bring(s, told, room, begun);
    if desk.kernel.n > 0 {
        // A ring that had news while we slept has rung: at its place, or after all that the kernel had by then.
        desk.kernel.base = rung.unwrap_or(desk.kernel.n);
        order::begin(s);
        scan(s);
        desk.news.clear();
        merge(s, epfd, out, desk, before);
    }
    held.release();
}
