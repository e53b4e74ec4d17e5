//! The sets and their watches.

use crate::family::Ep;
use crate::fds;
use crate::lock::Lock;
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use core::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, fence};
use shmring::family::State;
use shmring::syscall;

const SETS: usize = 256;
const CHUNK: usize = 256;
const CHUNKS: usize = fds::MAX / CHUNK;
/// Descriptors from here on are not watched: their places are for the watches of numbers that were closed
/// while their file lives on in a duplicate.
const SPARE: i32 = (fds::MAX - CHUNK) as i32;

/// One descriptor in one set. All zero = none. Guarded by the set's lock.
pub(super) struct Watch {
    /// Endpoint index + 1.
    pub ep: AtomicU32,
    pub events: AtomicU32,
    pub data: AtomicU64,
    pub flags: AtomicU32,
    /// Next watch of the same endpoint, id + 1.
    pub next: AtomicU32,
    /// Next in the set's ready list, fd + 1; `END` for the last.
    pub ready: AtomicU32,
    /// Ring tail at the last report, for edges.
    pub seen: AtomicU64,
    /// `tx_blocked` at the last edge for space.
    pub blocked: AtomicU32,
}

/// The kernel's registration carries our tag.
pub(super) const TAGGED: u32 = 1;
/// A oneshot that has fired.
pub(super) const FIRED: u32 = 2;
/// An edge waits to be reported.
pub(super) const EDGE: u32 = 4;
/// The program has taken it out of the set. It stays in the kernel's, tagged: programs take descriptors out and
/// put them back for every message, and need not go to the kernel for it.
pub(super) const PARKED: u32 = 8;
const END: u32 = u32::MAX;

pub(super) struct Set {
    pub lock: Lock,
    pub used: AtomicU32,
    pub refs: AtomicU32,
    /// Poller number + 1.
    pub poller: AtomicU32,
    pub attached: AtomicU32,
    pub sleepers: AtomicU32,
    /// Watched through another set or `poll`: kept armed.
    pub nested: AtomicU32,
    /// Belongs to a fork family's parent: bounded sleeps.
    pub inherited: AtomicU32,
    /// Watches a connection whose peer does not have our doorbells: bounded sleeps.
    pub foreign: AtomicU32,
    pub first: AtomicU32,
    pub last: AtomicU32,
    pub kernel_at: AtomicU64,
    pub turn: AtomicU32,
    pub chunks: [AtomicPtr<Watch>; CHUNKS],
}

pub(super) static TABLE: [Set; SETS] = [const {
    Set {
        lock: Lock::new(),
        used: AtomicU32::new(0),
        refs: AtomicU32::new(0),
        poller: AtomicU32::new(0),
        attached: AtomicU32::new(0),
        sleepers: AtomicU32::new(0),
        nested: AtomicU32::new(0),
        inherited: AtomicU32::new(0),
        foreign: AtomicU32::new(0),
        first: AtomicU32::new(0),
        last: AtomicU32::new(0),
        kernel_at: AtomicU64::new(0),
        turn: AtomicU32::new(0),
        chunks: [const { AtomicPtr::new(core::ptr::null_mut()) }; CHUNKS],
    }
}; SETS];
/// Guards the chains of watches; taken inside a set's lock.
static CHAINS: Lock = Lock::new();
/// Changes of the chains; odd while one is made. Readers take no lock: they look again.
static CHANGES: AtomicU32 = AtomicU32::new(0);

/// Whether `fd` may be watched.
pub(super) fn watchable(fd: i32) -> bool {
    (0..SPARE).contains(&fd)
}

/// Name of a watch: its set and its descriptor.
pub(super) fn watch_id(set: usize, fd: i32) -> u32 {
    (set as u32) << 20 | fd as u32
}

pub(super) fn watch(id: u32) -> Option<&'static Watch> {
    TABLE.get((id >> 20) as usize)?.get((id & 0xf_ffff) as i32)
}

impl Set {
    /// The place for a descriptor's watch, if it was ever used.
    pub fn get(&self, fd: i32) -> Option<&'static Watch> {
        let c = self.chunks.get(fd as u32 as usize / CHUNK)?.load(Acquire);
        // SAFETY: a chunk is CHUNK watches, mapped for ever once stored.
        (!c.is_null()).then(|| unsafe { &*c.add(fd as usize % CHUNK) })
    }

    /// The place for a descriptor's watch; `None`: no memory. With the set's lock held.
    pub fn make(&self, fd: i32) -> Option<&'static Watch> {
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

    /// Its poller, if it has one.
    pub fn poller(&self) -> Option<usize> {
        (self.poller.load(Relaxed) as usize).checked_sub(1)
    }

    /// Puts a watch at the end of the ready list, if it is not in it.
    pub fn push(&self, fd: i32, w: &Watch) {
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

    /// Takes the first watch of the ready list.
    pub fn pop(&self) -> Option<(i32, &'static Watch)> {
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

    /// Every watch of the set.
    pub fn watches(&self) -> impl Iterator<Item = (i32, &'static Watch)> {
        let used = self.chunks.iter().enumerate().filter(|(_, place)| !place.load(Relaxed).is_null());
        let fds = used.flat_map(|(c, _)| (c * CHUNK..(c + 1) * CHUNK).map(|fd| fd as i32));
        fds.filter_map(|fd| Some((fd, self.get(fd)?))).filter(|(_, w)| w.ep.load(Relaxed) != 0)
    }

    /// A free place for a watch whose number was closed. With the set's lock held.
    pub fn spare(&self) -> Option<(i32, &'static Watch)> {
        self.make(SPARE)?;
        let mut places = (SPARE..fds::MAX as i32).filter_map(|at| Some((at, self.get(at)?)));
        places.find(|(_, w)| w.ep.load(Relaxed) == 0 && w.ready.load(Relaxed) == 0)
    }

    /// A descriptor of this process for it.
    pub fn epfd(&self) -> Option<i32> {
        let me = self.index();
        (0..fds::high()).find(|&f| fds::get(f) == fds::Kind::Epoll(me))
    }

    /// Its index in the table.
    pub fn index(&self) -> usize {
        (core::ptr::from_ref(self) as usize - TABLE.as_ptr() as usize) / size_of::<Set>()
    }
}

/// Changes the chains.
fn chains(change: impl FnOnce()) {
    let held = CHAINS.lock();
    CHANGES.fetch_add(1, Relaxed);
    fence(Release);
    change();
    CHANGES.fetch_add(1, Release);
    held.release();
}

/// Makes `w` a watch of `ep`. With the set's lock held.
pub(super) fn link(set: usize, fd: i32, w: &Watch, ep: Ep) {
    chains(|| {
        w.ep.store(ep.index() + 1, Relaxed);
        w.next.store(ep.local().watches.load(Relaxed), Relaxed);
        ep.local().watches.store(watch_id(set, fd) + 1, Release);
    });
}

/// Ends a watch. With the set's lock held.
pub(super) fn unlink(set: usize, fd: i32, w: &Watch) {
    let ep = w.ep.load(Relaxed);
    if ep == 0 {
        return;
    }
    let ep = Ep::from_index(ep - 1);
    chains(|| {
        w.ep.store(0, Relaxed);
        let id = watch_id(set, fd) + 1;
        let mut place = &ep.local().watches;
        for _ in 0..CHAIN_MAX {
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
    });
    if w.flags.swap(0, Relaxed) & TAGGED == 0 {
        return;
    }
    TABLE[set].attached.fetch_sub(1, Relaxed);
    ignore(set, ep);
}

/// The set no longer needs news of `ep`, unless another watch of it does.
pub(super) fn ignore(set: usize, ep: Ep) {
    let s = &TABLE[set];
    let mut others = false;
    each(ep, |other, _, w| others |= other == set && w.flags.load(Relaxed) & PARKED == 0);
    if let (false, Some(p), Some(chan)) = (others, s.poller(), ep.chan())
        && ep.state() == State::Attached
        && chan.inherited.load(Relaxed) == 0
    {
        // Its news are no longer this set's.
        chan.slot(ep.slot.load(Relaxed) as usize).side[chan.role() as usize].pollers.fetch_and(!(1 << p), Relaxed);
    }
}

/// Watches of one endpoint that are looked at; more are never made but by a chain that changes meanwhile.
const CHAIN_MAX: usize = 1024;

/// Calls `f` with each watch of an endpoint in this process: set, descriptor, watch. While another thread
/// changes the chains, with some of them twice.
pub(super) fn each(ep: Ep, mut f: impl FnMut(usize, i32, &'static Watch)) {
    loop {
        let before = CHANGES.load(Acquire);
        let mut at = ep.local().watches.load(Acquire);
        for _ in 0..CHAIN_MAX {
            let Some(w) = (if at == 0 { None } else { watch(at - 1) }) else { break };
            let next = w.next.load(Relaxed);
            if w.ep.load(Relaxed) == ep.index() + 1 {
                f(((at - 1) >> 20) as usize, ((at - 1) & 0xf_ffff) as i32, w);
            }
            at = next;
        }
        fence(Acquire);
        if before & 1 == 0 && CHANGES.load(Relaxed) == before {
            return;
        }
        core::hint::spin_loop();
    }
}

/// Child of a fork: nobody else is in here.
pub(super) fn after_fork_child() {
    CHAINS.reset();
    CHANGES.store(0, Relaxed);
    for s in &TABLE {
        s.lock.reset();
        s.sleepers.store(0, Relaxed);
        if s.used.load(Relaxed) != 0 {
            s.inherited.store(1, Relaxed);
            s.poller.store(0, Relaxed);
        }
    }
}
