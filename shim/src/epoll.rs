//! epoll sets that hold connections of ours.
//!
//! The kernel's set stays the program's: every descriptor is registered in it, untouched as long as it is
//! not attached. When a connection is attached, its registration is changed to edge-triggered news about
//! the lifeline, marked with a tag, and what the program asked for (events, data; level, edge, oneshot) is
//! kept here and served from the ring. Each set with TCP sockets also holds a doorbell, so a thread that
//! sleeps in the kernel's `epoll_wait` hears of ring events in the same call.

use crate::channel::{self, Chan};
use crate::family::{self, Ep};
use crate::fds::{self, Kind};
use crate::lock::Lock;
use crate::wait::{self, Spun};
use crate::{io, readiness, real, rx, signals};
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use core::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64};
use libc::{EPOLLERR, EPOLLET, EPOLLEXCLUSIVE, EPOLLHUP, EPOLLIN, EPOLLONESHOT, EPOLLOUT, EPOLLPRI, EPOLLRDHUP, EPOLLWAKEUP};
use libc::{c_int, epoll_event, sigset_t};
use shmring::family::{Reason, State};
use shmring::layout::POLLERS;
use shmring::switch::{RxPhase, TxPhase};
use shmring::{ring, sys, syscall};

const SETS: usize = 256;
const CHUNK: usize = 256;
const CHUNKS: usize = fds::MAX / CHUNK;

/// One descriptor in one set. All zero = none. Guarded by the set's lock.
struct Watch {
    /// Endpoint index + 1.
    ep: AtomicU32,
    events: AtomicU32,
    data: AtomicU64,
    flags: AtomicU32,
    /// Next watch of the same endpoint, id + 1.
    next: AtomicU32,
    /// Next in the set's ready list, fd + 1; `END` for the last.
    ready: AtomicU32,
    /// Ring tail at the last report, for edges.
    seen: AtomicU64,
}

/// The kernel's registration carries our tag.
const TAGGED: u32 = 1;
/// A oneshot that has fired.
const FIRED: u32 = 2;
/// An edge waits to be reported.
const EDGE: u32 = 4;
const END: u32 = u32::MAX;

struct Set {
    lock: Lock,
    used: AtomicU32,
    refs: AtomicU32,
    /// Poller number + 1.
    poller: AtomicU32,
    attached: AtomicU32,
    sleepers: AtomicU32,
    /// Watched through another set or `poll`: kept armed.
    nested: AtomicU32,
    /// Belongs to a fork family's parent: bounded sleeps.
    inherited: AtomicU32,
    first: AtomicU32,
    last: AtomicU32,
    kernel_at: AtomicU64,
    turn: AtomicU32,
    chunks: [AtomicPtr<Watch>; CHUNKS],
}

static TABLE: [Set; SETS] = [const {
    Set {
        lock: Lock::new(),
        used: AtomicU32::new(0),
        refs: AtomicU32::new(0),
        poller: AtomicU32::new(0),
        attached: AtomicU32::new(0),
        sleepers: AtomicU32::new(0),
        nested: AtomicU32::new(0),
        inherited: AtomicU32::new(0),
        first: AtomicU32::new(0),
        last: AtomicU32::new(0),
        kernel_at: AtomicU64::new(0),
        turn: AtomicU32::new(0),
        chunks: [const { AtomicPtr::new(core::ptr::null_mut()) }; CHUNKS],
    }
}; SETS];
/// Guards the chains of watches; taken inside a set's lock.
static CHAINS: Lock = Lock::new();
/// Upper bits of our `data`, random, so that a program's own data is not mistaken for it.
static TAG: AtomicU64 = AtomicU64::new(0);
const ID_BITS: u32 = 28;
const DOORBELL: u64 = (1 << ID_BITS) - 1;
const MAILBOX: u64 = DOORBELL - 1;
/// The kernel's part of a busy set is looked at no less often than this.
const KERNEL_EVERY_US: u64 = 20;

fn tag() -> u64 {
    let t = TAG.load(Relaxed);
    if t != 0 {
        return t;
    }
    let mut v = 0u64;
    // SAFETY: writes 8 bytes into a local.
    unsafe { syscall!(libc::SYS_getrandom, &raw mut v, 8, 0) };
    let v = (v | 1 << 63 | 1 << 30) & !DOORBELL;
    let _ = TAG.compare_exchange(0, v, Relaxed, Relaxed);
    TAG.load(Relaxed)
}

fn ours(data: u64) -> Option<u64> {
    let t = TAG.load(Relaxed);
    (t != 0 && data & !DOORBELL == t).then_some(data & DOORBELL)
}

fn watch_id(set: usize, fd: i32) -> u32 {
    (set as u32) << 20 | fd as u32
}

fn watch(id: u32) -> Option<&'static Watch> {
    TABLE.get((id >> 20) as usize)?.get((id & 0xf_ffff) as i32)
}

impl Set {
    fn get(&self, fd: i32) -> Option<&'static Watch> {
        let c = self.chunks.get(fd as u32 as usize / CHUNK)?.load(Acquire);
        // SAFETY: a chunk is CHUNK watches, mapped for ever once stored.
        (!c.is_null()).then(|| unsafe { &*c.add(fd as usize % CHUNK) })
    }

    fn make(&self, fd: i32) -> Option<&'static Watch> {
        let place = self.chunks.get(fd as u32 as usize / CHUNK)?;
        if place.load(Acquire).is_null() {
            let len = CHUNK * size_of::<Watch>();
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
            // SAFETY: a fresh anonymous mapping.
            let p = unsafe { syscall!(libc::SYS_mmap, 0, len, libc::PROT_READ | libc::PROT_WRITE, flags, usize::MAX, 0) };
            if (-4095..0).contains(&p) {
                return None;
            }
            // With the set's lock held nobody else makes the same chunk.
            place.store(p as *mut Watch, Release);
        }
        self.get(fd)
    }

    fn poller(&self) -> Option<usize> {
        (self.poller.load(Relaxed) as usize).checked_sub(1)
    }

    /// Puts a watch at the end of the ready list, if it is not in it.
    fn push(&self, fd: i32, w: &Watch) {
        if w.ready.load(Relaxed) != 0 {
            return;
        }
        w.ready.store(END, Relaxed);
        let last = self.last.load(Relaxed);
        match if last == 0 { None } else { self.get(last as i32 - 1) } {
            Some(l) => l.ready.store(fd as u32 + 1, Relaxed),
            None => self.first.store(fd as u32 + 1, Relaxed),
        }
        self.last.store(fd as u32 + 1, Relaxed);
    }

    fn pop(&self) -> Option<(i32, &'static Watch)> {
        let fd = self.first.load(Relaxed).checked_sub(1)? as i32;
        let w = self.get(fd)?;
        let next = w.ready.swap(0, Relaxed);
        if next == END {
            self.first.store(0, Relaxed);
            self.last.store(0, Relaxed);
        } else {
            self.first.store(next, Relaxed);
        }
        Some((fd, w))
    }

    fn index(&self) -> usize {
        (core::ptr::from_ref(self) as usize - TABLE.as_ptr() as usize) / size_of::<Set>()
    }
}

fn link(set: usize, fd: i32, w: &Watch, ep: Ep) {
    let held = CHAINS.lock();
    w.ep.store(ep.index() + 1, Relaxed);
    w.next.store(ep.local().watches.load(Relaxed), Relaxed);
    ep.local().watches.store(watch_id(set, fd) + 1, Release);
    held.release();
}

fn unlink(set: usize, fd: i32, w: &Watch) {
    let held = CHAINS.lock();
    let ep = w.ep.swap(0, Relaxed);
    if ep != 0 {
        let id = watch_id(set, fd) + 1;
        let mut place = &Ep::from_index(ep - 1).local().watches;
        for _ in 0..1024 {
            let at = place.load(Relaxed);
            if at == id {
                place.store(w.next.load(Relaxed), Relaxed);
                break;
            }
            match if at == 0 { None } else { watch(at - 1) } {
                Some(n) => place = &n.next,
                None => break,
            }
        }
    }
    held.release();
    if w.flags.swap(0, Relaxed) & TAGGED != 0 {
        TABLE[set].attached.fetch_sub(1, Relaxed);
    }
}

/// Calls `f` with each watch of an endpoint in this process: set, descriptor, watch.
fn each(ep: Ep, mut f: impl FnMut(usize, i32, &'static Watch)) {
    let mut at = ep.local().watches.load(Acquire);
    for _ in 0..1024 {
        let Some(w) = (if at == 0 { None } else { watch(at - 1) }) else { return };
        let next = w.next.load(Relaxed);
        f(((at - 1) >> 20) as usize, ((at - 1) & 0xf_ffff) as i32, w);
        at = next;
    }
}

fn kernel_ctl(epfd: c_int, op: c_int, fd: c_int, events: u32, data: u64) -> isize {
    let ev = epoll_event { events, u64: data };
    // SAFETY: passes a local.
    unsafe { syscall!(libc::SYS_epoll_ctl, epfd, op, fd, &raw const ev) }
}

/// `epoll_create1` succeeded.
pub fn created(fd: c_int) {
    crate::lifecycle::created(fd);
    if fd < 0 || !crate::config::enabled() || crate::tls::tls().vfork.get() != 0 {
        return;
    }
    let set = TABLE.iter().position(|s| s.used.compare_exchange(0, 1, Acquire, Relaxed).is_ok());
    if let Some(i) = set {
        let s = &TABLE[i];
        s.refs.store(1, Relaxed);
        for w in [&s.poller, &s.attached, &s.sleepers, &s.nested, &s.inherited, &s.first, &s.last] {
            w.store(0, Relaxed);
        }
        fds::set(fd, Kind::Epoll(i));
    }
}

/// `epoll_create1`.
///
/// # Safety
/// As libc's.
pub unsafe fn create1(flags: c_int) -> c_int {
    // SAFETY: the caller's obligation.
    let fd = unsafe { real::epoll_create1(flags) };
    created(fd);
    fd
}

/// Another descriptor for set `i`.
pub fn duplicated(i: usize) {
    TABLE[i].refs.fetch_add(1, Relaxed);
}

/// One descriptor of set `i` is closed.
pub fn closed(i: usize, _fd: c_int) {
    let s = &TABLE[i];
    if s.refs.fetch_sub(1, Relaxed) != 1 {
        return;
    }
    let held = s.lock.lock();
    for (c, place) in s.chunks.iter().enumerate() {
        if place.load(Relaxed).is_null() {
            continue;
        }
        for k in 0..CHUNK {
            let fd = (c * CHUNK + k) as i32;
            if let Some(w) = s.get(fd) {
                if w.ep.load(Relaxed) != 0 {
                    unlink(i, fd, w);
                }
                w.ready.store(0, Relaxed);
            }
        }
    }
    if let Some(p) = s.poller() {
        wait::release(p);
    }
    s.poller.store(0, Relaxed);
    held.release();
    s.used.store(0, Release);
}

/// The process's last descriptor of `ep` is closed: the kernel has dropped it from its sets.
pub fn forget(ep: Ep) {
    for _ in 0..1024 {
        let mut first = None;
        each(ep, |set, fd, _| first = first.or(Some((set, fd))));
        let Some((set, fd)) = first else { return };
        let s = &TABLE[set];
        let held = s.lock.lock();
        match s.get(fd) {
            Some(w) if w.ep.load(Relaxed) == ep.index() + 1 => unlink(set, fd, w),
            _ => ep.local().watches.store(0, Relaxed),
        }
        held.release();
    }
}

/// Child of a fork: the kernel's sets are shared with the parent.
pub fn after_fork_child() {
    CHAINS.reset();
    for s in &TABLE {
        s.lock.reset();
        s.sleepers.store(0, Relaxed);
        if s.used.load(Relaxed) != 0 {
            s.inherited.store(1, Relaxed);
            s.poller.store(0, Relaxed);
        }
    }
}

/// The set is watched from outside (another set, `poll`): its descriptor must show ring events by itself.
pub fn nest(i: usize) {
    let s = &TABLE[i];
    if s.nested.swap(1, Relaxed) == 0 {
        stay_armed(s);
    }
}

/// Gives the set a poller and a doorbell. False: none to be had.
fn equip(s: &Set, epfd: c_int) -> bool {
    if s.poller.load(Relaxed) != 0 {
        return true;
    }
    if s.inherited.load(Relaxed) != 0 {
        return false;
    }
    let Some(p) = wait::acquire() else { return false };
    if kernel_ctl(epfd, libc::EPOLL_CTL_ADD, wait::bell(p), (EPOLLIN | EPOLLET) as u32, tag() | DOORBELL) < 0 {
        wait::release(p);
        return false;
    }
    s.poller.store(p as u32 + 1, Relaxed);
    true
}

/// News of the lifeline that an attached watch gets from the kernel.
fn lifeline_mask(events: u32) -> u32 {
    // EPOLLOUT: a direction that has not gone up, or has come down, is written natively. Edge-triggered, an
    // idle lifeline that could be written all the time stays silent.
    let always = (EPOLLRDHUP | EPOLLET) as u32 | events & EPOLLPRI as u32;
    // Of an edge nothing says later which kind it was.
    always | if events & EPOLLET as u32 != 0 { events & SOME } else { SOME }
}

/// See [`lifeline_mask`].
const SOME: u32 = (EPOLLIN | EPOLLOUT) as u32;

/// `epoll_ctl`.
///
/// # Safety
/// As libc's.
pub unsafe fn ctl(epfd: c_int, op: c_int, fd: c_int, ev: *mut epoll_event) -> c_int {
    // SAFETY: the caller's obligation.
    let native = || unsafe { real::epoll_ctl(epfd, op, fd, ev) };
    let Kind::Epoll(i) = fds::get(epfd) else { return native() };
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
    if ep.state() == State::Pinned && TABLE[i].get(fd).is_none_or(|w| w.ep.load(Relaxed) == 0) {
        return native();
    }
    let want = if op == libc::EPOLL_CTL_DEL {
        epoll_event { events: 0, u64: 0 }
    } else {
        // SAFETY: the program's pointer, read as the kernel would; a bad one is the kernel's to report.
        match unsafe { crate::usercopy::load(ev) } {
            Ok(v) => v,
            Err(_) => return native(),
        }
    };
    let s = &TABLE[i];
    // Wakes one waiter or more (epoll_ctl(2)): from the ring it wakes all.
    const WITH_EXCLUSIVE: u32 =
        (EPOLLIN | EPOLLOUT | EPOLLERR | EPOLLHUP | EPOLLWAKEUP | EPOLLET | EPOLLEXCLUSIVE) as u32;
    if want.events & EPOLLEXCLUSIVE as u32 != 0 && (op != libc::EPOLL_CTL_ADD || want.events & !WITH_EXCLUSIVE != 0) {
        return native();
    }
    let held = s.lock.lock();
    let r = change(s, i, epfd, op, fd, ep, want, native);
    let wake = s.attached.load(Relaxed) > 0 && s.first.load(Relaxed) != 0 && s.sleepers.load(Relaxed) > 0;
    held.release();
    if wake {
        knock(s);
    }
    if s.nested.load(Relaxed) != 0 {
        stay_armed(s);
    }
    r
}

#[allow(clippy::too_many_arguments)]
fn change(s: &Set, i: usize, epfd: c_int, op: c_int, fd: c_int, ep: Ep, want: epoll_event, native: impl Fn() -> c_int) -> c_int {
    let w = s.get(fd).filter(|w| w.ep.load(Relaxed) != 0);
    match (op, w) {
        (libc::EPOLL_CTL_MOD, Some(w)) if w.flags.load(Relaxed) & TAGGED != 0 => {
            if w.events.load(Relaxed) & EPOLLEXCLUSIVE as u32 != 0 {
                real::set_errno(libc::EINVAL);
                return -1;
            }
            let old = w.events.load(Relaxed);
            if lifeline_mask(want.events) != lifeline_mask(old) || (want.events ^ old) & EPOLLWAKEUP as u32 != 0 {
                let id = u64::from(watch_id(i, fd));
                kernel_ctl(epfd, op, fd, lifeline_mask(want.events), tag() | id);
            }
            w.events.store(want.events, Relaxed);
            w.data.store(want.u64, Relaxed);
            w.flags.store(TAGGED | EDGE, Relaxed);
            s.push(fd, w);
            0
        }
        (libc::EPOLL_CTL_MOD, Some(w)) => {
            let r = native();
            if r == 0 {
                w.events.store(want.events, Relaxed);
                w.data.store(want.u64, Relaxed);
            }
            r
        }
        (libc::EPOLL_CTL_DEL, Some(w)) => {
            let r = native();
            if r == 0 {
                unlink(i, fd, w);
            }
            r
        }
        (libc::EPOLL_CTL_ADD, _) => {
            if !equip(s, epfd) {
                // A connection that cannot be served here stays on the kernel; a listener is not affected.
                if ep.state() != State::Attached {
                    ep.pin(Reason::NoFd);
                } else {
                    io::retire(fd, Reason::NoFd);
                }
                return native();
            }
            let r = native();
            if r != 0 {
                return r;
            }
            let Some(w) = s.make(fd) else {
                io::retire(fd, Reason::NoMemory);
                return r;
            };
            if w.ep.load(Relaxed) != 0 {
                unlink(i, fd, w);
            }
            w.events.store(want.events, Relaxed);
            w.data.store(want.u64, Relaxed);
            w.flags.store(0, Relaxed);
            link(i, fd, w, ep);
            if ep.state() == State::Attached
                && let Some(chan) = ep.chan()
            {
                take_over(s, i, epfd, fd, w, ep, chan);
            }
            r
        }
        _ => native(),
    }
}

/// Moves a watch from the kernel's keeping to ours. With the set's lock held.
fn take_over(s: &Set, i: usize, epfd: c_int, fd: c_int, w: &Watch, ep: Ep, chan: &Chan) {
    if w.flags.load(Relaxed) & TAGGED != 0 {
        return;
    }
    let events = w.events.load(Relaxed);
    let fired = events & EPOLLONESHOT as u32 != 0 && oneshot_fired(epfd, fd);
    let id = u64::from(watch_id(i, fd));
    // An exclusive registration cannot be modified.
    let op = match events & EPOLLEXCLUSIVE as u32 {
        0 => libc::EPOLL_CTL_MOD,
        _ if kernel_ctl(epfd, libc::EPOLL_CTL_DEL, fd, 0, 0) < 0 => libc::EPOLL_CTL_MOD,
        _ => libc::EPOLL_CTL_ADD,
    };
    if kernel_ctl(epfd, op, fd, lifeline_mask(events), tag() | id) < 0 {
        // The number was closed while its file lives on in a dup: the kernel's registration stays as it is.
        io::retire(fd, Reason::EpollShared);
        return;
    }
    w.flags.store(TAGGED | EDGE | if fired { FIRED } else { 0 }, Relaxed);
    w.seen.store(0, Relaxed);
    s.attached.fetch_add(1, Relaxed);
    // Those who cannot ring the doorbell write to the mailbox. It may be in the set already.
    kernel_ctl(epfd, libc::EPOLL_CTL_ADD, crate::attach::mailbox(), EPOLLIN as u32, tag() | MAILBOX);
    if let Some(p) = s.poller() {
        wait::watch_slot(chan, ep.slot.load(Relaxed) as usize, p);
        wait::tell(chan, p);
        // A thread may sleep in this set already, unarmed in this channel.
        ring::arm(&chan.queues(chan.role())[p], wait::generation(p));
    }
    s.push(fd, w);
}

/// Whether the kernel has disabled a oneshot registration: its event mask in fdinfo is then bare.
fn oneshot_fired(epfd: c_int, fd: c_int) -> bool {
    let mut path = [0u8; 40];
    let mut n = 0;
    for b in b"/proc/self/fdinfo/" {
        path[n] = *b;
        n += 1;
    }
    let mut digits = [0u8; 10];
    let mut d = 0;
    let mut v = epfd as u32;
    while d == 0 || v > 0 {
        digits[d] = b'0' + (v % 10) as u8;
        v /= 10;
        d += 1;
    }
    for k in (0..d).rev() {
        path[n] = digits[k];
        n += 1;
    }
    // SAFETY: a NUL-terminated path.
    let f = unsafe { syscall!(libc::SYS_openat, libc::AT_FDCWD, path.as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC) } as i32;
    if f < 0 {
        return false;
    }
    let mut state = FdInfo::default();
    let mut buf = [0u8; 1024];
    let mut found = None;
    while found.is_none() {
        // SAFETY: reads into a local.
        let n = unsafe { syscall!(libc::SYS_read, f, buf.as_mut_ptr(), buf.len()) };
        if n <= 0 {
            break;
        }
        for &b in &buf[..n as usize] {
            if let Some((tfd, events)) = state.feed(b)
                && tfd == fd as u64
            {
                found = Some(events);
                break;
            }
        }
    }
    sys::close(f);
    const PRIVATE: u64 = (EPOLLONESHOT | EPOLLET | EPOLLWAKEUP | EPOLLEXCLUSIVE) as u32 as u64;
    found.is_some_and(|e| e & !PRIVATE == 0)
}

/// Reads "tfd: N events: X data: ..." (fs/eventpoll.c, ep_show_fdinfo) byte by byte.
#[derive(Default)]
struct FdInfo {
    word: u32,
    number: u64,
    digits: u32,
    tfd: u64,
    hex: bool,
    armed: bool,
}

impl FdInfo {
    fn feed(&mut self, b: u8) -> Option<(u64, u64)> {
        if b == b'\n' {
            let tfd = self.tfd;
            *self = FdInfo { tfd, ..FdInfo::default() };
            return None;
        }
        if b == b':' {
            self.armed = self.word == hash(b"tfd") || self.word == hash(b"events");
            self.hex = self.word == hash(b"events");
            self.number = 0;
            self.digits = 0;
            self.word = 0;
            return None;
        }
        if b == b' ' || b == b'\t' {
            self.word = 0;
            if self.armed && self.digits > 0 {
                self.armed = false;
                if self.hex {
                    return Some((self.tfd, self.number));
                }
                self.tfd = self.number;
            }
            return None;
        }
        if self.armed {
            let d = (b as char).to_digit(16).unwrap_or(0);
            self.number = self.number * if self.hex { 16 } else { 10 } + u64::from(d);
            self.digits += 1;
        } else {
            self.word = self.word.wrapping_mul(31).wrapping_add(u32::from(b));
        }
        None
    }
}

const fn hash(s: &[u8]) -> u32 {
    let mut h = 0u32;
    let mut i = 0;
    while i < s.len() {
        h = h.wrapping_mul(31).wrapping_add(s[i] as u32);
        i += 1;
    }
    h
}

/// An endpoint was attached: its watches become ours.
pub fn attached(ep: Ep, chan: &'static Chan, _slot: usize) {
    each(ep, |set, fd, w| {
        let s = &TABLE[set];
        let Some(epfd) = (0..fds::high()).find(|&f| fds::get(f) == Kind::Epoll(set)) else { return };
        let held = s.lock.lock();
        if w.ep.load(Relaxed) == ep.index() + 1 {
            take_over(s, set, epfd, fd, w, ep, chan);
        }
        let wake = s.sleepers.load(Relaxed) > 0;
        held.release();
        if wake {
            knock(s);
        }
    });
}

/// Something about the endpoint changed on this side (shutdown): look at it again.
pub fn touched(ep: Ep) {
    each(ep, |set, fd, w| {
        let s = &TABLE[set];
        let held = s.lock.lock();
        if w.flags.load(Relaxed) & TAGGED != 0 {
            s.push(fd, w);
        }
        let wake = s.sleepers.load(Relaxed) > 0;
        held.release();
        if wake {
            knock(s);
        }
    });
}

/// Rings the set's own doorbell.
fn knock(s: &Set) {
    if let Some(p) = s.poller() {
        let one = 1u64;
        // SAFETY: writes 8 bytes from a local.
        unsafe { syscall!(libc::SYS_write, wait::bell(p), &raw const one, 8) };
    }
}

/// Arms the set in every channel, for those who do not sleep in our own wait.
fn stay_armed(s: &Set) {
    arm(s);
    if s.first.load(Relaxed) != 0 || stirred(s) {
        knock(s);
    }
}

fn arm(s: &Set) {
    if let Some(p) = s.poller() {
        let g = wait::generation(p);
        for c in channel::all() {
            c.queues(c.role())[p].armed.store(g, Relaxed);
        }
    }
    core::sync::atomic::fence(core::sync::atomic::Ordering::SeqCst);
}

fn disarm(s: &Set) {
    if let Some(p) = s.poller() {
        for c in channel::all() {
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
    channel::all().any(|c| c.queues(c.role())[p].ready.load(Relaxed) != 0)
}

/// Moves ready bits into the ready lists. With the set's lock held.
fn demultiplex(s: &Set) {
    let me = s.index();
    if s.inherited.load(Relaxed) != 0 {
        for ep in family::held() {
            each(ep, |set, fd, w| {
                if set == me && w.flags.load(Relaxed) & TAGGED != 0 {
                    note_edge(ep, w);
                    s.push(fd, w);
                }
            });
        }
        return;
    }
    let Some(p) = s.poller() else { return };
    for c in channel::all() {
        let mut bits = ring::take_ready(&c.queues(c.role())[p]);
        while bits != 0 {
            let slot = bits.trailing_zeros() as usize;
            bits &= bits - 1;
            let Some(ep) = c.endpoint(slot) else { continue };
            each(ep, |set, fd, w| {
                if set == me && w.flags.load(Relaxed) & TAGGED != 0 {
                    note_edge(ep, w);
                    s.push(fd, w);
                }
            });
        }
    }
}

/// Data that came since the last report, or space after a refusal, is an edge; other news are not.
fn note_edge(ep: Ep, w: &Watch) {
    if w.events.load(Relaxed) & EPOLLET as u32 == 0 {
        return;
    }
    let Some(chan) = ep.chan() else { return };
    let tail = rx::tail(ep, chan);
    let space = ep.tx_blocked.load(Relaxed) != 0 && crate::tx::writable(ep, chan);
    if space {
        ep.tx_blocked.store(0, Relaxed);
    }
    let events = w.events.load(Relaxed);
    let (reads, writes) = ((EPOLLIN | libc::EPOLLRDNORM) as u32, (EPOLLOUT | libc::EPOLLWRNORM) as u32);
    if (tail != w.seen.load(Relaxed) && events & reads != 0) || (space && events & writes != 0) {
        w.flags.fetch_or(EDGE, Relaxed);
    }
}

/// Fills `out` from the ready list. With the set's lock held.
fn report(s: &Set, out: &mut [epoll_event]) -> usize {
    let mut n = 0;
    // Each watch is looked at once: those that stay ready go to the end.
    let stop = s.last.load(Relaxed);
    while n < out.len() {
        let Some((fd, w)) = s.pop() else { break };
        let last = fd as u32 + 1 == stop;
        let events = w.events.load(Relaxed);
        let flags = w.flags.load(Relaxed);
        let ep = w.ep.load(Relaxed);
        if ep != 0 && flags & TAGGED != 0 && flags & FIRED == 0 {
            let ep = Ep::from_index(ep - 1);
            let edge = events & EPOLLET as u32 != 0;
            if let Some(chan) = ep.chan()
                && (!edge || flags & EDGE != 0)
            {
                w.seen.store(rx::tail(ep, chan), Relaxed);
                let at = ep.local().fd.load(Relaxed);
                // poll's and epoll's bits have the same values up to EPOLLRDHUP on x86-64.
                let mask = events as i16 | libc::POLLERR | libc::POLLHUP;
                let r = readiness::now(ep, chan, if at >= 0 { at } else { fd }, mask) & mask;
                if edge {
                    w.flags.store(flags & !EDGE, Relaxed);
                }
                if r != 0 {
                    out[n] = epoll_event { events: r as u16 as u32, u64: w.data.load(Relaxed) };
                    n += 1;
                    if events & EPOLLONESHOT as u32 != 0 {
                        w.flags.store((flags & !EDGE) | FIRED, Relaxed);
                    } else if !edge {
                        s.push(fd, w);
                    }
                }
            }
        }
        if last {
            break;
        }
    }
    n
}

const _: () = assert!(EPOLLIN == libc::POLLIN as i32 && EPOLLOUT == libc::POLLOUT as i32 && EPOLLRDHUP == libc::POLLRDHUP as i32);
const _: () = assert!(EPOLLERR == libc::POLLERR as i32 && EPOLLHUP == libc::POLLHUP as i32);

/// The events of a lifeline that are the connection's: of a direction that is on its ring only the end counts.
fn of_use(ep: Ep, events: u32) -> u32 {
    let ended = (EPOLLRDHUP | EPOLLHUP | EPOLLERR) as u32;
    if events & ended != 0 {
        return events;
    }
    let rx = if ep.rx_phase.load(Relaxed) == RxPhase::Ring as u32 { EPOLLIN as u32 } else { 0 };
    let tx = if ep.tx_phase.load(Relaxed) == TxPhase::Ring as u32 { EPOLLOUT as u32 } else { 0 };
    events & !(rx | tx)
}

/// Takes our own events out of what the kernel returned; queues the connections they concern.
fn filter(s: &Set, ev: &mut [epoll_event]) -> usize {
    let mut n = 0;
    for i in 0..ev.len() {
        let e = ev[i];
        match ours(e.u64) {
            None => {
                ev[n] = e;
                n += 1;
            }
            Some(DOORBELL) => {}
            Some(MAILBOX) => crate::attach::collect(),
            Some(id) => {
                let held = s.lock.lock();
                if let Some(w) = watch(id as u32)
                    && w.ep.load(Relaxed) != 0
                    && w.flags.load(Relaxed) & TAGGED != 0
                {
                    let ep = Ep::from_index(w.ep.load(Relaxed) - 1);
                    if e.events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR) as u32 != 0 {
                        ep.rx_fin.store(1, Relaxed);
                    }
                    if of_use(ep, e.events) & (w.events.load(Relaxed) | (EPOLLERR | EPOLLHUP) as u32) != 0 {
                        w.flags.fetch_or(EDGE, Relaxed);
                    }
                    s.push((id & 0xf_ffff) as i32, w);
                }
                held.release();
            }
        }
    }
    n
}

/// Looks at the kernel's part without waiting.
fn kernel_now(s: &Set, epfd: c_int, out: &mut [epoll_event]) -> Result<usize, i32> {
    // SAFETY: the slice is valid for its length; a zero timeout.
    let r = unsafe { syscall!(libc::SYS_epoll_pwait, epfd, out.as_mut_ptr(), out.len(), 0, 0, 8) };
    s.kernel_at.store(sys::cycles(), Relaxed);
    if r < 0 {
        return Err(-r as i32);
    }
    Ok(filter(s, &mut out[..r as usize]))
}

/// `epoll_wait` and its kin. `timeout` in nanoseconds, `None` = for ever.
///
/// # Safety
/// As libc's; a cancellation point.
pub unsafe fn wait(epfd: c_int, ev: *mut epoll_event, max: c_int, timeout: Option<u64>, mask: *const sigset_t, mut real: impl FnMut() -> c_int) -> c_int {
    let Kind::Epoll(i) = fds::get(epfd) else { return real() };
    let s = &TABLE[i];
    if s.poller.load(Relaxed) == 0 && s.inherited.load(Relaxed) == 0 || max <= 0 || ev.is_null() {
        return real();
    }
    let since = signals::runs();
    let start = match timeout {
        Some(t) if t > 0 => Some(wait::now().saturating_add(t)),
        _ => None,
    };
    if s.attached.load(Relaxed) == 0 {
        let r = real();
        if r <= 0 {
            return r;
        }
        // SAFETY: the kernel has just filled this many.
        let n = filter(s, unsafe { core::slice::from_raw_parts_mut(ev, r as usize) });
        if n > 0 {
            return n as c_int;
        }
    }
    let max = (max as usize).min(4096);
    let out = {
        // The program's array; reported to in the same way the kernel would: a bad one is its fault only if
        // something is to be reported, which the kernel's own call, made first, decides.
        // SAFETY: the program says it has room for `max` events.
        unsafe { core::slice::from_raw_parts_mut(ev, max) }
    };
    loop {
        let mut n = 0;
        let due = sys::cycles().wrapping_sub(s.kernel_at.load(Relaxed)) > KERNEL_EVERY_US * wait::cycles_per_us();
        // Neither kind starves the other: half of the room is the kernel's when its turn has come.
        if due && (max > 1 || s.turn.fetch_xor(1, Relaxed) & 1 == 0) {
            let room = max.div_ceil(2);
            match kernel_now(s, epfd, &mut out[..room]) {
                Ok(k) => n = k,
                Err(e) => return real::ret(-e as isize) as c_int,
            }
        }
        let held = s.lock.lock();
        demultiplex(s);
        n += report(s, &mut out[n..]);
        held.release();
        if n == 0 && !due {
            match kernel_now(s, epfd, out) {
                Ok(k) => n = k,
                Err(e) => return real::ret(-e as isize) as c_int,
            }
            if n < max && s.first.load(Relaxed) != 0 {
                let held = s.lock.lock();
                n += report(s, &mut out[n..]);
                held.release();
            }
        }
        if n > 0 || timeout == Some(0) {
            return leave(s, n);
        }
        if s.inherited.load(Relaxed) == 0 {
            let mut looks = 0u32;
            let spun = wait::spin(|| {
                looks += 1;
                stirred(s) || looks % 64 == 0 && signals::interrupted(since, false)
            });
            if spun == Spun::Won && stirred(s) {
                continue;
            }
        }
        let mut left = None;
        if let Some(d) = start {
            left = Some(d.saturating_sub(wait::now()));
            if left == Some(0) {
                // One last look at the kernel's part happened above.
                return leave(s, 0);
            }
        }
        s.sleepers.fetch_add(1, Relaxed);
        arm(s);
        let mut bounded = s.inherited.load(Relaxed) != 0;
        if let Some(p) = s.poller() {
            for c in channel::all() {
                if c.used.load(Relaxed) != 0 && c.inherited.load(Relaxed) == 0 {
                    bounded |= !wait::tell(c, p);
                }
            }
        }
        if bounded {
            left = Some(left.unwrap_or(wait::STEP).min(wait::STEP));
        }
        let r = if stirred(s) || s.first.load(Relaxed) != 0 {
            0
        } else {
            // SAFETY: no lock is held; the slice is valid.
            unsafe { signals::epoll_pwait(epfd, out.as_mut_ptr(), max as c_int, left, mask, since) }
        };
        s.sleepers.fetch_sub(1, Relaxed);
        disarm(s);
        s.kernel_at.store(sys::cycles(), Relaxed);
        if r < 0 {
            leave(s, 0);
            return real::ret(r) as c_int;
        }
        n = filter(s, &mut out[..r as usize]);
        if n > 0 {
            if n < max {
                let held = s.lock.lock();
                demultiplex(s);
                n += report(s, &mut out[n..]);
                held.release();
            }
            return leave(s, n);
        }
    }
}

/// Before returning to the program: others who wait on this set must still be woken.
fn leave(s: &Set, n: usize) -> c_int {
    if s.nested.load(Relaxed) != 0 || s.sleepers.load(Relaxed) > 0 {
        stay_armed(s);
    }
    n as c_int
}

const _: () = assert!(POLLERS <= 64);
