//! What stands in a set for bytes that the kernel does not have.
//!
//! A set that only the kernel serves (it came by exec or in a message, it is watched by another set, it has been handed over)
//! does not tell of bytes that lie on a ring: the kernel knows nothing of them. Where nobody can bring them to the lifeline any
//! more, since the peer has finished or an exec handed them on, an eventfd that is readable stands in the kernel's set for
//! them, with the program's own data: so all that the kernel tells, it tells whoever waits on the set, in this process or
//! another, whether he sleeps already, waits on a set around it, or in `poll`. It is readable until the last of those bytes has
//! been read; no more will come to a ring that has ended.
//!
//! The connection itself stays registered beside it, and what the kernel tells of the two in one call is made one event
//! ([`merged`]), unless the program has given the same data to something else in the set, too: whose event is whose cannot be told then.
//! Not so for a oneshot, of which only one of the two may fire: it will, since there are bytes to read, so the
//! connection's own registration *rests* (it asks for nothing, and tells of errors and hangups alone) until the program arms it without any, or
//! they have been read before it fired. It is never taken out: other processes may have the set, and go on to use it if this one is killed.
// Unsafe here: events are the program's memory.
#![allow(unsafe_code)]

use super::chains::{descriptor, under_closed};
use super::edge::READ;
use super::fdinfo::{self, oneshot_fired};
use super::kernel_ctl;
use core::sync::atomic::Ordering::{Relaxed, SeqCst};
use core::sync::atomic::{AtomicI32, AtomicU32, AtomicU64, fence};
use engine::endpoint::Ep;
use engine::lock::Lock;
use engine::{family, fds, handoff, lifeline, own};
use host::real;
use host::tls::tls;
use host::usercopy::{self, Fault};
use libc::{EPOLL_CTL_ADD, EPOLL_CTL_DEL, EPOLL_CTL_MOD, EPOLLET, EPOLLEXCLUSIVE, EPOLLIN, EPOLLONESHOT};
use libc::{c_int, epoll_event};
use shmring::family::Reason;
use shmring::word::Coded;
use shmring::{lnx, sys};

struct StandIn {
    /// For whom it stands; none: it is free.
    ep: Coded<Option<Ep>>,
    /// By which number the program registered the connection.
    fd: AtomicI32,
    /// The eventfd.
    event: AtomicI32,
    /// Another descriptor for the set, if the connection's own registration rests.
    set: AtomicI32,
    /// What the program asked for.
    events: AtomicU32,
    data: AtomicU64,
}

/// What a registration that rests asks for.
const RESTING: u32 = (EPOLLONESHOT | EPOLLET) as u32;

/// What is told, asked for or not.
const ALWAYS: u32 = (libc::EPOLLERR | libc::EPOLLHUP) as u32;

const MOST: usize = 256;
static ALL: [StandIn; MOST] = [const {
    StandIn {
        ep: Coded::zero(),
        fd: AtomicI32::new(-1),
        event: AtomicI32::new(-1),
        set: AtomicI32::new(-1),
        events: AtomicU32::new(0),
        data: AtomicU64::new(0),
    }
}; MOST];
/// How many there are.
static COUNT: AtomicU32 = AtomicU32::new(0);
/// Guards them. Taken inside a set's lock, and with a connection's token held; no other lock is taken inside it.
static LOCK: Lock = Lock::new();

/// Whether anything stands in any set.
pub fn any() -> bool {
    COUNT.load(Relaxed) != 0
}

/// Whether a registration for `events` is to be told of bytes that the kernel does not have. A oneshot is told by the kernel if the peer
/// has finished: then the lifeline can be read for good (tcp_poll).
fn due(ep: Ep, events: u32) -> bool {
    let has_ended = || lifeline::look(ep.local().fd.load(Relaxed), lifeline::ENDED) & lifeline::ENDED != 0;
    events & READ != 0 && handoff::has_bytes(ep) && !(is_oneshot(events) && has_ended())
}

fn is_oneshot(events: u32) -> bool {
    events & EPOLLONESHOT as u32 != 0
}

/// All of a connection's.
fn of(ep: Ep) -> impl Iterator<Item = &'static StandIn> {
    ALL.iter().filter(move |s| s.ep.load(Relaxed) == Some(ep))
}

/// What stands for the connection, registered by this number, in the set behind `epfd`.
fn find(ep: Ep, fd: c_int, epfd: c_int) -> Option<&'static StandIn> {
    of(ep).find(|s| s.fd.load(Relaxed) == fd && s.is_in(epfd))
}

impl StandIn {
    /// Whether the connection's own registration rests.
    fn is_alone(&self) -> bool {
        self.set.load(Relaxed) >= 0
    }

    /// Whether it stands in the set behind `epfd`.
    fn is_in(&self, epfd: c_int) -> bool {
        let event = self.event.load(Relaxed);
        match kernel_ctl(epfd, EPOLL_CTL_ADD, event, 0, 0) {
            0.. => {
                kernel_ctl(epfd, EPOLL_CTL_DEL, event, 0, 0);
                false
            }
            e => e == -libc::EEXIST as isize,
        }
    }

    /// Registers it for what the program asked for. False: the kernel refuses.
    fn register(&self, epfd: c_int, op: c_int, events: u32, data: u64) -> bool {
        const HOW: u32 = (EPOLLET | EPOLLONESHOT | EPOLLEXCLUSIVE) as u32;
        self.events.store(events, Relaxed);
        self.data.store(data, Relaxed);
        kernel_ctl(epfd, op, self.event.load(Relaxed), EPOLLIN as u32 | events & HOW, data) >= 0
    }

    /// From now on the connection's own registration rests. False: no descriptor is to be had for the set.
    fn stay_alone(&'static self, epfd: c_int) -> bool {
        if self.is_alone() {
            return true;
        }
        self.set.store(lnx::duplicate(epfd, 0), Relaxed);
        self.is_alone() && own::adopt(&self.set)
    }

    fn end(&'static self) {
        own::discard(&self.event);
        own::discard(&self.set);
        self.ep.store(None, Relaxed);
        COUNT.fetch_sub(1, Relaxed);
    }

    /// There are no such bytes any more. A oneshot that has fired rests until the program arms it.
    fn settle(&'static self) {
        let mut count = [0; 8];
        lnx::read(self.event.load(Relaxed), &mut count);
        if self.is_alone() {
            let set = self.set.load(Relaxed);
            if oneshot_fired(set, self.event.load(Relaxed)) {
                return;
            }
            kernel_ctl(set, EPOLL_CTL_DEL, self.event.load(Relaxed), 0, 0);
            self.arm(set, self.events.load(Relaxed));
        }
        self.end();
    }

    /// Arms the connection's own registration, perhaps by a number that was closed. With the lock held.
    fn arm(&self, epfd: c_int, events: u32) {
        if let Some(ep) = self.ep.load(Relaxed) {
            change_registration(epfd, self.fd.load(Relaxed), ep, events, self.data.load(Relaxed));
        }
    }
}

/// Changes the registration of a connection, perhaps by a number that was closed.
fn change_registration(epfd: c_int, fd: c_int, ep: Ep, events: u32, data: u64) {
    let change = || kernel_ctl(epfd, EPOLL_CTL_MOD, fd, events, data);
    match fds::endpoint(fd) == Some(ep) {
        true => _ = change(),
        false => _ = under_closed(ep, fd, change),
    }
}

/// `epoll_ctl` for a connection, in a set that is the kernel's; `None`: the call is the kernel's alone.
pub fn ctl(epfd: c_int, op: c_int, fd: c_int, ep: Ep, want: epoll_event) -> Option<c_int> {
    // A removal asks for no events.
    let concerned = any() || due(ep, want.events);
    if !concerned || tls().vfork.get() != 0 || fds::are_divided() {
        return None;
    }
    let held = LOCK.lock();
    let r = change(epfd, op, fd, ep, want);
    if let Some(Err(Lost)) = r
        && is_oneshot(want.events)
    {
        // The set is to tell of the reset.
        kernel_ctl(epfd, EPOLL_CTL_MOD, fd, want.events, want.u64);
    }
    held.release();
    if let Some(Err(Lost)) = r {
        lifeline::reset(fd, Reason::EpollShared);
    }
    Some(real::ret(r?.unwrap_or(0)) as c_int)
}

/// Nothing can stand in the set for it.
struct Lost;

fn change(epfd: c_int, op: c_int, fd: c_int, ep: Ep, want: epoll_event) -> Option<Result<isize, Lost>> {
    let found = find(ep, fd, epfd);
    let (events, data) = (want.events, want.u64);
    let exclusive = events & EPOLLEXCLUSIVE as u32 != 0;
    match (op, found) {
        (EPOLL_CTL_DEL, Some(s)) => {
            let r = kernel_ctl(epfd, EPOLL_CTL_DEL, fd, 0, 0);
            if r >= 0 {
                kernel_ctl(epfd, EPOLL_CTL_DEL, s.event.load(Relaxed), 0, 0);
                s.end();
            }
            return Some(Ok(r));
        }
        (EPOLL_CTL_ADD, Some(_)) => return Some(Ok(-libc::EEXIST as isize)),
        (EPOLL_CTL_ADD, None) => {}
        // An exclusive watch cannot be changed, nor be made by a change (epoll_ctl(2)).
        (EPOLL_CTL_MOD, _) if !exclusive => {}
        _ => return None,
    }
    let due = due(ep, events);
    if found.is_none() && !due {
        return None;
    }
    let rests = due && is_oneshot(events);
    // Refused (EPOLLEXCLUSIVE_OK_BITS, fs/eventpoll.c).
    if rests && exclusive {
        return None;
    }
    let r = kernel_ctl(epfd, op, fd, if rests { RESTING } else { events }, data);
    if r < 0 {
        return Some(Ok(r));
    }
    if !due {
        if let Some(s) = found {
            kernel_ctl(epfd, EPOLL_CTL_DEL, s.event.load(Relaxed), 0, 0);
            s.end();
        }
        return Some(Ok(0));
    }
    Some(place(epfd, fd, ep, found, events, data).map(|()| 0))
}

/// Puts into the set what stands for the connection, whose own registration rests now if it is a oneshot.
fn place(epfd: c_int, fd: c_int, ep: Ep, found: Option<&'static StandIn>, events: u32, data: u64) -> Result<(), Lost> {
    let op = if found.is_some() { EPOLL_CTL_MOD } else { EPOLL_CTL_ADD };
    let Some(s) = found.or_else(|| make(ep, fd)) else { return Err(Lost) };
    let kept = if is_oneshot(events) {
        s.stay_alone(epfd)
    } else {
        own::discard(&s.set);
        true
    };
    if !kept || !s.register(epfd, op, events, data) {
        s.end();
        return Err(Lost);
    }
    // A reader moves its head, then looks for what stands ([`drained`]); here it is the other way round: one of the two sees the other.
    fence(SeqCst);
    if !handoff::has_bytes(ep) {
        // Another thread has read them meanwhile, and found nothing to settle.
        s.settle();
    }
    Ok(())
}

/// A new one, in no set yet.
fn make(ep: Ep, fd: c_int) -> Option<&'static StandIn> {
    let s = ALL.iter().find(|s| s.ep.load(Relaxed).is_none())?;
    s.event.store(lnx::readable_event(), Relaxed);
    if s.event.load(Relaxed) < 0 || !own::adopt(&s.event) {
        return None;
    }
    s.fd.store(fd, Relaxed);
    s.ep.store(Some(ep), Relaxed);
    COUNT.fetch_add(1, SeqCst);
    Some(s)
}

/// The kernel has just been given a registration of a connection, of which bytes may lie where it does not see them. An
/// exclusive one cannot be changed: it is told of them as the others are.
pub fn stand(epfd: c_int, fd: c_int, ep: Ep, events: u32, data: u64) {
    if !due(ep, events) || tls().vfork.get() != 0 {
        return;
    }
    let held = LOCK.lock();
    let mut lost = false;
    let stands = find(ep, fd, epfd).is_some();
    if !stands && (!is_oneshot(events) || !oneshot_fired(epfd, fd)) {
        if is_oneshot(events) {
            change_registration(epfd, fd, ep, RESTING, data);
        }
        lost = place(epfd, fd, ep, None, events, data).is_err();
        if lost && is_oneshot(events) {
            change_registration(epfd, fd, ep, events, data);
        }
    }
    held.release();
    // The number that was registered may be another file's by now.
    if let Some(fd) = lost.then(|| descriptor(ep)).flatten() {
        lifeline::reset(fd, Reason::EpollShared);
    }
}

/// This image was handed unread bytes, for itself alone: sets that came with them and have such connections tell of them.
pub fn stand_for_heirs() {
    // What is in no set.
    let stranger = lnx::readable_event();
    if stranger < 0 {
        return;
    }
    for epfd in 0..fds::high().max(1024) {
        // The kernel says so of sets only.
        let is_set = || kernel_ctl(epfd, EPOLL_CTL_DEL, stranger, 0, 0) == -libc::ENOENT as isize;
        if fds::get(epfd) == fds::Kind::Other && is_set() {
            fdinfo::each(epfd, |r| {
                if let Some(ep) = heir(r) {
                    stand(epfd, r.fd, ep, r.events, r.data);
                }
                false
            });
        }
    }
    sys::close(stranger);
}

/// The connection that is registered, if this image was handed bytes of it. Perhaps by a number that was closed.
fn heir(r: &fdinfo::Registration) -> Option<Ep> {
    if r.is_of(r.fd) {
        return fds::endpoint(r.fd).filter(|ep| handoff::is_heir(*ep));
    }
    family::held().find(|ep| handoff::is_heir(*ep) && r.is_of(ep.local().fd.load(Relaxed)))
}

/// All that `ep` had on its ring has been read.
pub fn drained(ep: Ep) {
    // See `place`.
    fence(SeqCst);
    if !any() {
        return;
    }
    let held = LOCK.lock();
    of(ep).for_each(StandIn::settle);
    held.release();
}

/// Before somebody waits: other program images, which tell nobody, may have read the last of some bytes.
pub fn settle_read() {
    if any() && tls().vfork.get() == 0 {
        settle_what_others_read();
    }
}

#[cold]
fn settle_what_others_read() {
    let held = LOCK.lock();
    for s in ALL.iter() {
        if s.ep.load(Relaxed).is_some_and(|ep| !handoff::has_bytes(ep)) {
            s.settle();
        }
    }
    held.release();
}

/// This process's last descriptor of `ep` is closed.
pub fn forget(ep: Ep) {
    if any() && tls().vfork.get() == 0 {
        let held = LOCK.lock();
        of(ep).for_each(StandIn::end);
        held.release();
    }
}

/// Before an exec: the next image finds in the sets what the program registered, and nothing else. If the exec fails both stay there,
/// lest the bytes be forgotten: then a oneshot may fire twice.
pub fn put_back() {
    if !any() || tls().vfork.get() != 0 {
        return;
    }
    let held = LOCK.lock();
    for s in ALL.iter().filter(|s| s.ep.load(Relaxed).is_some() && s.is_alone()) {
        let set = s.set.load(Relaxed);
        let fired = oneshot_fired(set, s.event.load(Relaxed));
        // The nearest to a oneshot that has fired: see `handover::hand_over`.
        s.arm(set, if fired { RESTING } else { s.events.load(Relaxed) });
        own::discard(&s.set);
    }
    held.release();
}

/// In the child of a fork: a thread of the parent may have held the lock.
pub fn after_fork_child() {
    LOCK.reset();
}

/// This thread's child of vfork was killed inside a critical section.
pub fn free_after_vfork() {
    LOCK.free_after_vfork();
}

/// What `epoll_wait` returned, with one event for each registration.
///
/// # Safety
/// The kernel has just filled `n` events at `ev`, if `n` is positive.
pub unsafe fn merged(epfd: c_int, ev: *mut epoll_event, n: c_int) -> c_int {
    if n < 1 || !any() || tls().vfork.get() != 0 {
        return n;
    }
    let mut told = Told { at: ev, n: n as usize };
    let held = LOCK.lock();
    // The program has taken its memory away meanwhile: then what it is told is lost to it in any case.
    let _ = merge(epfd, &mut told);
    held.release();
    told.n as c_int
}

/// Events in the program's memory, which another of its threads may unmap.
struct Told {
    at: *mut epoll_event,
    n: usize,
}

impl Told {
    fn get(&self, i: usize) -> Result<epoll_event, Fault> {
        // SAFETY: the program's pointer, where the kernel has put `n` events (`merged`); any bytes are an event.
        unsafe { usercopy::load(self.at.wrapping_add(i)) }
    }

    fn set(&mut self, i: usize, e: &epoll_event) -> Result<(), Fault> {
        // SAFETY: as in `get`; the program lets the kernel write there, and so us.
        unsafe { usercopy::store(self.at.wrapping_add(i), e) }
    }

    /// The first event with such data.
    fn position(&self, data: u64) -> Result<Option<usize>, Fault> {
        for i in 0..self.n {
            if self.get(i)?.u64 == data {
                return Ok(Some(i));
            }
        }
        Ok(None)
    }
}

/// With the lock held.
#[cold]
fn merge(epfd: c_int, told: &mut Told) -> Result<(), Fault> {
    // Of each that stands in this set and may be told of: whether it has been seen there, and something else with its data,
    // besides the connection.
    let mut found = [None::<(bool, bool)>; MOST];
    for (s, f) in ALL.iter().zip(&mut found) {
        if s.ep.load(Relaxed).is_some() && told.position(s.data.load(Relaxed))?.is_some() && s.is_in(epfd) {
            *f = Some((false, false));
        }
    }
    if found.iter().all(Option::is_none) {
        return Ok(());
    }
    fdinfo::each(epfd, |r| {
        for (s, f) in ALL.iter().zip(&mut found) {
            if let (Some((itself, other)), Some(ep)) = (f, s.ep.load(Relaxed))
                && s.data.load(Relaxed) == r.data
            {
                let is_itself = r.fd == s.event.load(Relaxed);
                let is_its = r.fd == s.fd.load(Relaxed) && r.is_of(ep.local().fd.load(Relaxed));
                *itself |= is_itself;
                *other |= !(is_itself || is_its);
            }
        }
        false
    });
    for (s, f) in ALL.iter().zip(&found) {
        if let (Some(ep), Some((true, false))) = (s.ep.load(Relaxed), f) {
            merge_one(s, ep, told)?;
        }
    }
    Ok(())
}

fn merge_one(s: &StandIn, ep: Ep, told: &mut Told) -> Result<(), Fault> {
    let (data, asked) = (s.data.load(Relaxed), s.events.load(Relaxed));
    let Some(first) = told.position(data)? else { return Ok(()) };
    let mut one = told.get(first)?;
    let mut kept = first + 1;
    for i in first + 1..told.n {
        let e = told.get(i)?;
        if e.u64 == data {
            one.events |= e.events;
        } else {
            told.set(kept, &e)?;
            kept += 1;
        }
    }
    told.n = kept;
    // All that holds is told with it (ep_send_events), and all the bits that say that a socket can be read.
    let readable = if due(ep, asked) || one.events & EPOLLIN as u32 != 0 { READ } else { 0 };
    let kernels = lifeline::look(ep.local().fd.load(Relaxed), asked as i16) as u16;
    one.events = (one.events & !READ | readable | u32::from(kernels)) & (asked | ALWAYS);
    told.set(first, &one)
}
