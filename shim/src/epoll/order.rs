//! What the kernel has and what the rings have, as one list in the order of events.
//!
//! The kernel's ready list is in the order of arrival (ep_poll_callback), without times. News on rings have times. Between
//! the two stand the native acts that a peer's family notes (`shmring::journal`): with its news on a ring come those
//! that it did before. So of a connection's news it is known which of the kernel's events were before them: those that such
//! an act explains, and all that stand before these in the kernel's list. All others are reported after them.
//!
//! For that the kernel must be asked *after* the news were seen, or it may not have been asked since the act.
//! It costs a system call, made only where a peer's journal says that there was an act since the last one
//! ([`Set::looked`]). And the rings must be looked at after the kernel was asked, since what happened on a ring before an
//! event that the kernel has is reported before it. News that came with an act that the kernel had not told by then wait
//! for the next time: they cannot have come before anything that it told, or it would have told of that act, too.

use super::bell::hear;
use super::chains::{each, ignore};
use super::desk::{KERNEL_EVENTS, News, Reported, UNKNOWN};
use super::edge::note_edge;
use super::set::{FIRED, Listener, PARKED, Set, TAGGED, Watch, watch_id};
use super::{ours, tag};
use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::Relaxed;
use engine::acts;
use engine::channel::{self, Chan};
use engine::endpoint::Ep;
use engine::lifeline;
use host::clock;
use libc::{c_int, epoll_event};
use shmring::family::State;
use shmring::journal::Act;
use shmring::ring::{self, About};
use shmring::{lnx, sys};

/// When the news were told for which a bit is set.
fn told(c: &Chan, slot: usize, about: About) -> &AtomicU64 {
    let h = c.slot(slot);
    match about {
        About::Stream => &h.producer[c.role().rx()].told,
        About::Aside => &h.consumer[c.role().tx()].told,
    }
}

/// Takes the news of the set's connections, those that came first if there are many. With the set's lock held.
///
/// While one channel is looked at, news may come to another that was looked at before, and then later ones to this one.
/// So what was told after we began stays where it is, if there is more than one channel: whatever was told before it
/// was told before we began, or stays as well.
pub(super) fn gather(s: &Set, news: &mut News) {
    /// A peer's time may be any. News are not left lying for more than this.
    const HELD_US: u64 = 200;
    let Some(p) = s.poller() else { return };
    let until = if channel::own().nth(1).is_some() { sys::cycles_in_order() } else { u64::MAX };
    for c in channel::own() {
        let q = &c.queues(c.role())[p];
        if !ring::stirred(q) {
            continue;
        }
        for about in [About::Stream, About::Aside] {
            let mut bits = ring::marks(q, about);
            let mut taken = 0;
            while bits != 0 {
                let slot = bits.trailing_zeros() as usize;
                bits &= bits - 1;
                let Some(ep) = c.endpoint(slot) else {
                    c.slot(slot).side[c.role() as usize].pollers.fetch_and(!(1 << p), Relaxed);
                    taken |= 1 << slot;
                    continue;
                };
                let at = news.first_of(told(c, slot, about).load(Relaxed), ep, about);
                if at > until && at - until < HELD_US * clock::cycles_per_us() {
                    continue;
                }
                taken |= 1 << slot;
                if let Some((_, left, of)) = news.add((at, ep, about)) {
                    put_back(p, left, of, (c, about), &mut taken);
                }
            }
            if taken != 0 {
                ring::take(q, about, taken);
            }
        }
    }
    news.forget_left();
}

/// News of `ep` that are left for the next time. Those of channel and kind `here` are in `taken`, and not taken yet.
fn put_back(p: usize, ep: Ep, of: About, here: (&Chan, About), taken: &mut u64) {
    let Some(c) = ep.chan() else { return };
    let bit = 1 << (ep.slot.load(Relaxed) % 64);
    if core::ptr::eq(c, here.0) && of == here.1 {
        *taken &= !bit;
    } else {
        ring::leave(&c.queues(c.role())[p], of, bit);
    }
}

/// Whether a peer that has news has acted natively since the kernel was last asked.
pub(super) fn unseen(s: &Set, news: &News) -> bool {
    let looked = s.looked.load(Relaxed);
    news.all().iter().any(|(_, ep, _)| ep.chan().is_some_and(|c| acted(c, looked)))
}

/// Whether the peer of `c` has acted natively since time stamp `looked`, as far as it had when it last told us something.
pub(super) fn acted(c: &Chan, looked: u64) -> bool {
    let latest = c.journal(c.role().peer()).latest();
    latest >= looked && latest <= horizon()
}

/// The latest time stamp that an act can have: some are noted a little before they are done. A later one is not believed.
fn horizon() -> u64 {
    sys::cycles() + 2 * acts::SOON_US * clock::cycles_per_us()
}

/// Notes of another user's that are looked at, of one channel at a time, and of all in one call. What a peer notes costs
/// whoever waits a look at each; one who notes more than that has its acts taken for older than they are.
const OF_CHANNEL: u32 = 64;
const OF_CALL: u32 = 512;

/// A call begins to wait, or has slept.
pub(super) fn begin(s: &Set) {
    s.patience.store(OF_CALL, Relaxed);
}

/// Calls `f` with what the peer of `c` has done natively since time stamp `since`, the newest first.
fn each_act(s: &Set, c: &Chan, since: u64, f: impl FnMut(Act)) {
    let patience = s.patience.load(Relaxed);
    let most = if c.is_foreign() { u64::from(patience.min(OF_CHANNEL)) } else { u64::MAX };
    let looked = c.journal(c.role().peer()).each_since(since, horizon(), most, f);
    if c.is_foreign() {
        spend(s, looked as u32);
    }
}

fn spend(s: &Set, looks: u32) {
    s.patience.store(s.patience.load(Relaxed).saturating_sub(looks), Relaxed);
}

/// Whether an event that the peer of `c` has caused natively since time stamp `looked` may not have been told yet.
pub(super) fn behind(s: &Set, c: &Chan, looked: u64) -> bool {
    let (mut any, mut idle) = (false, Idle::new());
    if acted(c, looked) {
        each_act(s, c, looked, |act| any = any || is_due(s, &act, &mut idle));
    }
    any
}

/// Whether the kernel has an event to tell, which it keeps.
pub(super) fn has_events(s: &Set, epfd: c_int) -> bool {
    let begun = sys::cycles_in_order();
    let any = lifeline::look(epfd, libc::POLLIN) != 0;
    if !any {
        s.looked.store(begun, Relaxed);
        let now = sys::cycles();
        s.answered.store(now, Relaxed);
        s.kernel_at.store(now, Relaxed);
        s.has_since.store(0, Relaxed);
    } else if s.has_since.load(Relaxed) == 0 {
        s.has_since.store(sys::cycles_in_order(), Relaxed);
    }
    any
}

impl Reported {
    /// Asks the kernel for `room` events, without waiting.
    pub fn look(&mut self, s: &Set, epfd: c_int, room: usize) -> Result<(), i32> {
        let room = room.min(KERNEL_EVENTS);
        let begun = sys::cycles_in_order();
        let r = lnx::epoll_events(epfd, &mut self.got[..room]);
        s.kernel_at.store(sys::cycles(), Relaxed);
        if r < 0 {
            return Err(-r as i32);
        }
        self.add(s, r as usize, room, begun);
        Ok(())
    }

    /// The same for events that the kernel has told to one who slept.
    pub fn bring(&mut self, s: &Set, told: &[epoll_event], room: usize, begun: u64) -> Option<usize> {
        let n = told.len().min(KERNEL_EVENTS);
        self.got[..n].copy_from_slice(&told[..n]);
        self.add(s, n, room, begun)
    }

    /// The kernel has told `n` events, of at most `room`; it was asked at time stamp `begun`.
    fn add(&mut self, s: &Set, n: usize, room: usize, begun: u64) -> Option<usize> {
        self.more = n == room;
        self.begun = begun;
        self.at[..n].fill(UNKNOWN);
        if !self.more {
            s.looked.store(begun, Relaxed);
            s.answered.store(sys::cycles(), Relaxed);
        }
        let (kept, rung) = hear(s, &mut self.got[..n]);
        self.n = kept;
        rung
    }

    /// Finds out when the events were caused, from the native acts that peers noted since time stamp `since`. Returns
    /// the time from which on news on rings must wait for events that the kernel has and has not reported yet.
    pub fn date(&mut self, s: &Set, since: u64, news: &News) -> u64 {
        let Some(&(newest, ..)) = news.all().last() else { return UNKNOWN };
        let (mut wait, mut idle) = (UNKNOWN, Idle::new());
        for c in channel::own() {
            if !acted(c, since) {
                continue;
            }
            each_act(s, c, since, |act| {
                if act.begun < newest
                    && let Some(data) = concerned(s, &act)
                {
                    match (0..self.n).find(|&i| self.got[i].u64 == data) {
                        Some(i) => self.at[i] = self.at[i].min(act.begun),
                        // What was done before the kernel was asked is told by now, or is no event here.
                        None if self.more && is_due(s, &act, &mut idle) || act.ended >= self.begun => {
                            wait = wait.min(act.begun);
                        }
                        None => {}
                    }
                }
            });
        }
        wait
    }

    /// Puts the connections that have news, and those of whose lifelines the kernel reports, into the ready list in
    /// the order of events. What is left of the kernel's events are the program's own. With the set's lock held.
    pub fn place(&mut self, s: &Set, news: &mut News, wait: u64) {
        s.calls.store(s.calls.load(Relaxed).wrapping_add(1) & (u32::MAX >> 8), Relaxed);
        let (mut done, mut kept, mut to) = (0, 0, self.base.min(self.n));
        for i in 0..news.len() {
            let Some(&(at, ep, about)) = news.all().get(i) else { break };
            if at > wait {
                news.leave(i);
                if let (Some(p), Some(c)) = (s.poller(), ep.chan()) {
                    ring::leave(&c.queues(c.role())[p], about, 1 << (ep.slot.load(Relaxed) % 64));
                }
                continue;
            }
            if let Some(i) = (to..self.n).rev().find(|&i| self.at[i] < at) {
                to = i + 1;
            }
            self.pass(s, &mut done, &mut kept, to);
            take_news(s, ep, at, about, kept);
        }
        self.pass(s, &mut done, &mut kept, self.n);
        self.n = kept;
    }

    /// Goes over the kernel's events from number `done` to `to`; keeps the program's.
    fn pass(&mut self, s: &Set, done: &mut usize, kept: &mut usize, to: usize) {
        while *done < to {
            let e = self.got[*done];
            *done += 1;
            match ours(e.u64) {
                None => {
                    self.got[*kept] = e;
                    *kept += 1;
                }
                Some(id) => super::edge::lifeline_event(s, id, e.events, self.begun, *kept),
            }
        }
    }
}

/// Puts connections that have news into the ready list, where none of the kernel's events is to be reported with them.
/// With the set's lock held.
pub(super) fn take_all(s: &Set, news: &News) {
    for &(at, ep, about) in news.all() {
        take_news(s, ep, at, about, 0);
    }
}

/// A peer has news of `ep` since time stamp `at`, which come after the first `place` of the kernel's events.
fn take_news(s: &Set, ep: Ep, at: u64, about: About, place: usize) {
    let me = s.index();
    let (mut parked, mut watched) = (false, false);
    each(ep, |set, fd, w| {
        let flags = w.flags.load(Relaxed);
        if set == me && flags & PARKED != 0 {
            parked = true;
            if let Some(chan) = ep.chan() {
                super::edge::serve_peer(ep, chan, fd);
            }
        } else if set == me && flags & TAGGED != 0 {
            watched = true;
            let of_stream = about == About::Stream;
            note_edge(ep, w);
            s.push_at(fd, if of_stream { at } else { 0 }, place);
        }
    });
    // Put back soon or left out for long: now it is known to be the latter. And whoever had the poller's number before
    // may have asked for news that nobody here wants.
    if parked || !watched {
        ignore(me, ep);
    }
}

/// Events that show what was done on the connection.
const IN: u32 = (libc::EPOLLIN | libc::EPOLLRDNORM | libc::EPOLLRDHUP | libc::EPOLLPRI) as u32;

/// How the kernel names, in this set, the descriptor on which a peer's native act is an event; `None` if it is none here,
/// or has been seen.
fn concerned(s: &Set, act: &Act) -> Option<u64> {
    let me = s.index();
    let known = acts::find(act);
    let name = |fd: c_int, w: &Watch| match w.flags.load(Relaxed) {
        f if f & (PARKED | FIRED) != 0 || w.events.load(Relaxed) & IN == 0 => None,
        f if f & TAGGED != 0 => Some(tag() | u64::from(watch_id(me, fd))),
        _ => Some(w.data.load(Relaxed)),
    };
    if act.opens {
        if known.is_some() || acts::was_met(act) {
            // Accepted.
            return None;
        }
        return listener(s, act.ports[1]).and_then(|(fd, w)| name(fd, w));
    }
    let ep = known.filter(|ep| acts::unread(act, *ep))?;
    let mut found = None;
    each(ep, |set, fd, w| {
        if set == me {
            found = found.or(name(fd, w));
        }
    });
    found
}

/// The listening socket that was last found to have no connection waiting, in one look at the notes.
struct Idle(c_int);

impl Idle {
    fn new() -> Idle {
        Idle(-1)
    }
}

/// Whether the event that a peer's act is here may not have been told yet. The note of an opening is no proof: the connection
/// may have been accepted and closed since, while calls with room for few events have not come to the end of the kernel's.
fn is_due(s: &Set, act: &Act, idle: &mut Idle) -> bool {
    if concerned(s, act).is_none() {
        return false;
    }
    let Some((fd, _)) = (if act.opens { listener(s, act.ports[1]) } else { None }) else { return true };
    if fd == idle.0 {
        return false;
    }
    let waits = lifeline::look(fd, libc::POLLIN) & libc::POLLIN != 0;
    if !waits {
        *idle = Idle(fd);
    }
    waits
}

/// The port on which a watched socket listens, or is bound to; `None`: it does not listen.
fn listens_on(w: &Watch) -> Option<u16> {
    let ep = w.ep.load(Relaxed)?;
    let may = matches!(ep.state(), State::Idle | State::Pinned) && ep.role().is_none();
    may.then(|| acts::listens_on(ep))
}

/// The watch of a socket that listens on `port`. A search is made once, until the set has changed, unless more sockets listen
/// than are remembered or some are not bound yet.
fn listener(s: &Set, port: u16) -> Option<(c_int, &'static Watch)> {
    /// Watches that are looked at in the time of a note.
    const QUICK: u32 = 8;
    let known = || {
        s.listeners.iter().find_map(|l| {
            let fd = l.load(Relaxed).filter(|l| l.port == port)?.fd;
            s.get(fd).filter(|w| listens_on(w) == Some(port)).map(|w| (fd, w))
        })
    };
    let state = s.state();
    if let Some(found) = known() {
        return Some(found);
    }
    if s.listed.load(Relaxed) == state {
        return None;
    }
    let (mut found, mut all, mut looks, mut places) = (None, true, 0, s.listeners.iter());
    s.listeners.iter().for_each(|l| l.store(None, Relaxed));
    for (fd, w, _) in s.watches() {
        looks += 1;
        let Some(p) = listens_on(w) else { continue };
        if p == port {
            found = found.or(Some((fd, w)));
        }
        match places.next().filter(|_| p != 0) {
            Some(place) => place.store(Some(Listener { port: p, fd }), Relaxed),
            None => all = false,
        }
    }
    s.listed.store(if all { state } else { 0 }, Relaxed);
    spend(s, looks / QUICK);
    found
}

/// When the first of what waits to be reported, and was not yet, was told; and when the first event was caused that the
/// kernel has.
pub(super) fn first(s: &Set, news: &News) -> (Option<u64>, Option<u64>) {
    let ring = s.oldest().or(news.all().first().map(|(at, ..)| *at));
    let (mut kernel, mut idle) = (None::<u64>, Idle::new());
    let since = s.looked.load(Relaxed);
    for c in channel::own().filter(|c| acted(c, since)) {
        each_act(s, c, since, |act| {
            if kernel.is_none_or(|at| act.begun < at) && is_due(s, &act, &mut idle) {
                kernel = Some(act.begun);
            }
        });
    }
    (ring, kernel)
}
