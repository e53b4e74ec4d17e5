//! The sets and their watches.
//!
//! The kernel's set is one for all processes that a fork made, and so are our watches: they lie in memory that parent
//! and child share. Each process has its own ready list and its own chains of watches.
//!
//! Programs take descriptors out of a set and put them back for every message, and change what they wait for only to
//! take them out. While nobody waits on the set and no other process has it, the kernel need not hear of that: a removal,
//! or the last change, is *owed* to it, until the descriptor is put back, is closed, or somebody looks at the set
//! ([`settle`]).

use super::kernel_ctl;
use core::ffi::c_int;
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};
use core::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, fence};
use engine::endpoint::Ep;
use engine::lock::{Held, Lock};
use engine::{fds, memory};
use host::clock;
use host::tls::tls;
use shmring::family::State;
use shmring::lnx;

const SETS: usize = 256;
const CHUNK: usize = 256;
const CHUNKS: usize = fds::MAX / CHUNK;
/// Descriptors from here on are not watched: their places are for the watches of numbers that were closed
/// while their file lives on in a duplicate.
const SPARE: i32 = (fds::MAX - CHUNK) as i32;

/// One descriptor in one set. All zero = none. Guarded by the set's lock. Shared with forked children.
pub(super) struct Watch {
    /// Endpoint index + 1.
    pub ep: AtomicU32,
    pub events: AtomicU32,
    pub data: AtomicU64,
    pub flags: AtomicU32,
    /// Ring tail at the last report, for edges.
    pub seen: AtomicU64,
    /// `tx_blocked` at the last edge for space.
    pub blocked: AtomicU32,
    /// In a place that is no descriptor's: the number, since closed, that the kernel knows it by.
    pub was: AtomicU32,
}

/// This process's part of a watch.
pub(super) struct Link {
    /// Next watch of the same endpoint, id + 1.
    pub next: AtomicU32,
    /// Next in the set's ready list, fd + 1; `END` for the last.
    pub ready: AtomicU32,
    /// Its place in the order of the ready list: the value of [`Set::turns`] when the watch was last put there, or
    /// given to the kernel.
    pub turn: AtomicU64,
    /// When the news were told for which it is in the ready list; 0: it was reported since, or nobody knows.
    pub since: AtomicU64,
    /// How many of the kernel's events come before it, and to which of [`Set::calls`] this belongs (upper 24 bits).
    pub place: AtomicU32,
}

/// What all processes that have a set share, besides its watches.
pub(super) struct Common {
    lock: Lock,
    /// Counts changes, for the other processes.
    pub version: AtomicU32,
    /// Watched through another set or `poll`, or out of our reach: nothing is attached in it any more.
    pub nested: AtomicU32,
}

/// The kernel's registration carries our tag.
pub(super) const TAGGED: u32 = 1;
/// A oneshot that has fired.
pub(super) const FIRED: u32 = 2;
/// An edge waits to be reported.
pub(super) const EDGE: u32 = 4;
/// The program has taken it out of the set. It stays in the kernel's, tagged: programs take descriptors out and
/// put them back for every message, and need not go to the kernel for it. Without [`TAGGED`]: owed.
pub(super) const PARKED: u32 = 8;
const END: u32 = u32::MAX;

pub(super) struct Set {
    /// 1: in use; [`LEFT`].
    pub used: AtomicU32,
    pub refs: AtomicU32,
    /// Poller number + 1.
    pub poller: AtomicU32,
    pub attached: AtomicU32,
    pub sleepers: AtomicU32,
    /// Other processes of the family may have it, too.
    pub shared: AtomicU32,
    /// When that was last looked into, and `version` when it was last scanned.
    pub shared_at: AtomicU64,
    pub version: AtomicU32,
    /// Belongs to a fork family's parent: bounded sleeps.
    pub inherited: AtomicU32,
    /// Watches a connection whose peer does not have our doorbells: bounded sleeps.
    pub foreign: AtomicU32,
    pub first: AtomicU32,
    pub last: AtomicU32,
    pub turns: AtomicU64,
    pub kernel_at: AtomicU64,
    /// Before all that the kernel has had to report up to this time stamp was reported.
    pub looked: AtomicU64,
    /// How many more notes of other users' are looked at in this call (`order`).
    pub patience: AtomicU32,
    /// Ports on which sockets of the set listen, with the watch's descriptor + 1 in the lower half (`order`).
    pub listeners: [AtomicU64; LISTENERS],
    /// Those are all, of the set in this state (see [`Set::state`]); 0: they need not be.
    pub listed: AtomicU64,
    /// Something can only be reported after the kernel has been asked.
    pub must_look: AtomicU32,
    /// Counts what was put in order ([`Link::place`]).
    pub calls: AtomicU32,
    pub turn: AtomicU32,
    /// Threads of this process inside `epoll_wait` on it. One that was cancelled there counts for ever, and so do, in a
    /// child, those of its parent: a handler may have forked inside, whose child leaves the call as well.
    pub waiters: AtomicU32,
    /// How many calls of `epoll_ctl` the kernel has not been told of yet: removals (`owed`: their descriptors + 1) and
    /// at most one change (`change`: its descriptor + 1).
    owing: AtomicU32,
    owed: [AtomicU32; OWED],
    change: AtomicU32,
    /// Shared memory, as the watches are: see [`after_fork_child`] for whose.
    common: AtomicPtr<Common>,
    pub chunks: [AtomicPtr<Watch>; CHUNKS],
    pub links: [AtomicPtr<Link>; CHUNKS],
}

/// [`Watch::events`] of a watch that the kernel has with events that were not noted: a change of it was owed and never
/// told.
const UNKNOWN: u32 = u32::MAX;
/// Listening sockets of a set that are found without a search.
const LISTENERS: usize = 8;
/// Removals that a set owes at most. A program that takes descriptors out and puts them back has one or two at a time.
const OWED: usize = 8;
/// Threads that are forking, or whose child of vfork runs.
static FORKING: AtomicU32 = AtomicU32::new(0);

/// [`Set::used`]: closed here; other processes may still have it.
pub(super) const LEFT: u32 = 2;

pub(super) static TABLE: [Set; SETS] = [const {
    Set {
        used: AtomicU32::new(0),
        refs: AtomicU32::new(0),
        poller: AtomicU32::new(0),
        attached: AtomicU32::new(0),
        sleepers: AtomicU32::new(0),
        shared: AtomicU32::new(0),
        shared_at: AtomicU64::new(0),
        version: AtomicU32::new(0),
        inherited: AtomicU32::new(0),
        foreign: AtomicU32::new(0),
        first: AtomicU32::new(0),
        last: AtomicU32::new(0),
        turns: AtomicU64::new(0),
        kernel_at: AtomicU64::new(0),
        looked: AtomicU64::new(0),
        patience: AtomicU32::new(0),
        listeners: [const { AtomicU64::new(0) }; LISTENERS],
        listed: AtomicU64::new(0),
        must_look: AtomicU32::new(0),
        calls: AtomicU32::new(0),
        turn: AtomicU32::new(0),
        waiters: AtomicU32::new(0),
        owing: AtomicU32::new(0),
        owed: [const { AtomicU32::new(0) }; OWED],
        change: AtomicU32::new(0),
        common: AtomicPtr::new(core::ptr::null_mut()),
        chunks: [const { AtomicPtr::new(core::ptr::null_mut()) }; CHUNKS],
        links: [const { AtomicPtr::new(core::ptr::null_mut()) }; CHUNKS],
    }
}; SETS];
/// Guards the chains of watches; taken inside a set's lock.
static CHAINS: Lock = Lock::new();
/// Counts changes of the chains; odd while a change is being made. A reader takes no lock: it reads again if the count
/// was odd or has changed.
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

fn map(len: usize, how: i32) -> Option<*mut u8> {
    memory::map(0, len, how | libc::MAP_ANONYMOUS, -1, 0)
}

fn link_of(id: u32) -> Option<&'static Link> {
    TABLE.get((id >> 20) as usize)?.link((id & 0xf_ffff) as i32)
}

impl Set {
    /// Maps what its processes agree on, for one who has just taken it. False: no memory.
    pub fn ensure(&self) -> bool {
        if !self.common.load(Acquire).is_null() {
            return true;
        }
        let p = map(size_of::<Common>(), libc::MAP_SHARED);
        self.common.store(p.unwrap_or(core::ptr::null_mut()).cast(), Release);
        p.is_some()
    }

    /// Whether it is in use; not while another thread makes it.
    fn made(&self) -> bool {
        self.used.load(Acquire) == 1 && !self.common.load(Acquire).is_null()
    }

    /// What its processes agree on.
    pub fn common(&self) -> &'static Common {
        // SAFETY: mapped before the set is used (`ensure`), and as long as it is; all atomics.
        unsafe { &*self.common.load(Acquire) }
    }

    /// Forgets the memory of a set that this process does not have: another process may use it.
    fn disown(&self) {
        let unmap = |p: *mut u8, len: usize| {
            if !p.is_null() {
                // SAFETY: our own mapping, of this length; nobody in this process refers to it.
                unsafe { lnx::unmap(p, len) };
            }
        };
        self.used.store(0, Relaxed);
        let common = self.common.swap(core::ptr::null_mut(), Relaxed);
        if common.is_null() {
            return;
        }
        unmap(common.cast(), size_of::<Common>());
        for (w, l) in self.chunks.iter().zip(&self.links) {
            unmap(w.swap(core::ptr::null_mut(), Relaxed).cast(), CHUNK * size_of::<Watch>());
            unmap(l.swap(core::ptr::null_mut(), Relaxed).cast(), CHUNK * size_of::<Link>());
        }
    }

    /// Its lock.
    pub fn lock(&self) -> Held<'static> {
        self.common().lock.lock()
    }

    /// Whether nothing is attached in it any more.
    pub fn nested(&self) -> bool {
        self.common().nested.load(Relaxed) != 0
    }

    /// Whether another process of the family may have the set. One that is gone is noticed with time.
    pub fn shared(&self) -> bool {
        const EVERY: u64 = 5_000_000;
        if self.shared.load(Relaxed) == 0 {
            return false;
        }
        let now = clock::now();
        if now.saturating_sub(self.shared_at.load(Relaxed)) > EVERY {
            self.shared_at.store(now, Relaxed);
            if engine::family::alone() {
                // What was taken over before the fork stays with the doorbells of a process that is gone.
                self.foreign.fetch_or(self.inherited.swap(0, Relaxed), Relaxed);
                self.shared.store(0, Relaxed);
                return false;
            }
        }
        true
    }

    /// Whether another process has, or had, the memory of the set.
    pub fn may_be_others(&self) -> bool {
        let any = [&self.shared, &self.inherited].iter().any(|w| w.load(Relaxed) != 0);
        !self.common.load(Acquire).is_null() && (any || self.used.load(Relaxed) == LEFT)
    }

    /// From now on another process of the family may have the set: what it closes, this one may still use.
    fn share(&self) {
        self.shared.store(1, Relaxed);
        self.shared_at.store(clock::now(), Relaxed);
    }

    /// Tells the other processes that a watch has changed.
    pub fn changed(&self) {
        if self.shared.load(Relaxed) != 0 {
            self.common().version.fetch_add(1, Relaxed);
        }
    }

    /// Names the state of the set that other processes may change; never 0.
    pub fn state(&self) -> u64 {
        u64::from(self.common().version.load(Relaxed)) << 1 | 1
    }

    /// Whether this process alone decides what is in it, and everybody who looks at it passes here.
    pub fn own(&self) -> bool {
        self.shared.load(Relaxed) == 0 && self.inherited.load(Relaxed) == 0 && !self.nested() && tls().vfork.get() == 0
    }

    /// Owes the kernel the removal of a watch that it keeps. False: it must be told now. With the set's lock held.
    pub fn owe(&self, fd: i32, w: &Watch) -> bool {
        let Some(place) = self.owed.iter().find(|o| o.load(Relaxed) == 0).filter(|_| self.own()) else { return false };
        if self.forgo(fd) {
            // The kernel still has the events from before a change that was never told.
            w.events.store(UNKNOWN, Relaxed);
        }
        place.store(fd as u32 + 1, Relaxed);
        w.flags.store(PARKED, Relaxed);
        let later = self.defer();
        if !later {
            self.owe_no_more(fd, w);
        }
        later
    }

    /// Adds one to what the kernel is owed. False: a thread may wait or fork, so the kernel must be told now.
    fn defer(&self) -> bool {
        // We add to `owing`, then read `waiters`; `epoll_wait` adds to `waiters`, then reads `owing` (both SeqCst). So
        // either we see the waiter, and the kernel is told now, or the waiter sees the debt, and settles it before it
        // sleeps. The same holds for FORKING.
        self.owing.fetch_add(1, SeqCst);
        // FORKING goes back to 0 only after the fork has marked the set as shared: `own` is up to date if it is 0.
        self.waiters.load(SeqCst) == 0 && FORKING.load(SeqCst) == 0 && self.own()
    }

    /// Owes the kernel a change of a watch that it keeps, to what `w` says. False: it must be told now. With the set's
    /// lock held.
    pub fn owe_change(&self, epfd: c_int, fd: i32, w: &Watch) -> bool {
        if !self.own() || w.flags.load(Relaxed) != 0 {
            return false;
        }
        if self.change.load(Relaxed) == fd as u32 + 1 {
            return true;
        }
        settle_change(self, epfd);
        self.change.store(fd as u32 + 1, Relaxed);
        self.defer() || !self.forgo(fd)
    }

    /// The change of a watch need not be told any more. True if there was one. With the set's lock held.
    pub fn forgo(&self, fd: i32) -> bool {
        let owed = self.change.load(Relaxed) == fd as u32 + 1;
        if owed {
            self.change.store(0, Relaxed);
            self.owing.fetch_sub(1, Relaxed);
        }
        owed
    }

    /// The kernel has been told of a watch's removal, or the watch is back: it is owed no more. With the set's lock
    /// held.
    pub fn owe_no_more(&self, fd: i32, w: &Watch) {
        w.flags.store(0, Relaxed);
        if let Some(o) = self.owed.iter().find(|o| o.load(Relaxed) == fd as u32 + 1) {
            o.store(0, Relaxed);
            self.owing.fetch_sub(1, Relaxed);
        }
    }

    /// Forgets what is owed: the set is another process's to look after, or no longer exists.
    pub fn forgive(&self) {
        for w in self.owed.iter().chain([&self.change, &self.owing]) {
            w.store(0, Relaxed);
        }
    }

    /// Whether the kernel is owed anything.
    pub fn owes(&self) -> bool {
        self.owing.load(SeqCst) != 0
    }

    /// Whether the kernel is owed the removal or a change of this watch.
    pub fn owes_for(&self, fd: i32, w: &Watch) -> bool {
        self.owes() && (w.flags.load(Relaxed) & PARKED != 0 || self.change.load(Relaxed) == fd as u32 + 1)
    }

    /// This process's part of the watch in a place.
    fn link(&self, fd: i32) -> Option<&'static Link> {
        let c = self.links.get(fd as u32 as usize / CHUNK)?.load(Acquire);
        // SAFETY: as in `get`.
        (!c.is_null()).then(|| unsafe { &*c.add(fd as usize % CHUNK) })
    }

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
            // With the set's lock held nobody else makes the same chunk. What is mapped after a fork is known to one
            // process only, and holds only what concerns no other (`ctl::add`).
            let links = map(CHUNK * size_of::<Link>(), libc::MAP_PRIVATE)?;
            self.links[fd as usize / CHUNK].store(links.cast(), Release);
            let watches = map(CHUNK * size_of::<Watch>(), libc::MAP_SHARED)?;
            place.store(watches.cast(), Release);
        }
        self.get(fd)
    }

    /// Its poller, if it has one.
    pub fn poller(&self) -> Option<usize> {
        (self.poller.load(Relaxed) as usize).checked_sub(1)
    }

    /// Puts a watch at the end of the ready list, if it is not in it.
    pub fn push(&self, fd: i32) {
        if self.link(fd).is_some_and(|l| l.ready.load(Relaxed) == 0) {
            self.take_turn(fd);
            self.append(fd);
        }
    }

    /// The same for one that had news at time stamp `since`, which come behind `place` of the kernel's events.
    pub fn push_at(&self, fd: i32, since: u64, place: usize) {
        if let Some(l) = self.link(fd).filter(|l| l.ready.load(Relaxed) == 0) {
            l.since.store(since, Relaxed);
            l.place.store(self.calls.load(Relaxed) << 8 | place.min(0xff) as u32, Relaxed);
            self.take_turn(fd);
            self.put(fd, self.last.load(Relaxed));
        } else if let Some(l) = self.link(fd).filter(|l| l.since.load(Relaxed) == 0) {
            // In the list since an earlier report, at the place that the kernel would give it.
            l.since.store(since, Relaxed);
        }
    }

    /// The oldest news of the ready list that have not been reported; of the first 64 that are in it.
    pub fn oldest(&self) -> Option<u64> {
        let mut next = self.first.load(Relaxed);
        let mut oldest = None::<u64>;
        for _ in 0..64 {
            let Some(l) = (if next == 0 || next == END { None } else { self.link(next as i32 - 1) }) else { break };
            let since = l.since.load(Relaxed);
            if since != 0 {
                oldest = Some(oldest.map_or(since, |o| o.min(since)));
            }
            next = l.ready.load(Relaxed);
        }
        oldest
    }

    /// The first of the ready list, when it had news, and how many of the kernel's events come before it.
    pub fn next(&self) -> Option<(i32, u64, usize)> {
        let fd = self.first.load(Relaxed).checked_sub(1)? as i32;
        let l = self.link(fd)?;
        let place = l.place.load(Relaxed);
        let place = if place >> 8 == self.calls.load(Relaxed) { place & 0xff } else { 0 };
        Some((fd, l.since.load(Relaxed), place as usize))
    }

    /// How many are in the ready list, up to `max`.
    pub fn waiting(&self, max: usize) -> usize {
        let mut next = self.first.load(Relaxed);
        let mut n = 0;
        while next != 0 && next != END && n < max {
            n += 1;
            next = self.link(next as i32 - 1).map_or(0, |l| l.ready.load(Relaxed));
        }
        n
    }

    /// The watch takes its turn behind every other watch that may be ready.
    pub fn take_turn(&self, fd: i32) {
        if let Some(l) = self.link(fd) {
            l.turn.store(self.turns.fetch_add(1, Relaxed) + 1, Relaxed);
        }
    }

    /// Puts a watch that is reported at the end of the ready list, as ep_send_events does: all of it keeps its order.
    pub fn append(&self, fd: i32) {
        self.undate(fd);
        self.put(fd, self.last.load(Relaxed));
    }

    fn undate(&self, fd: i32) {
        if let Some(l) = self.link(fd) {
            l.since.store(0, Relaxed);
            l.place.store(u32::MAX << 8, Relaxed);
        }
    }

    /// Puts a watch that comes from the kernel's ready list, where its place is not known, before those with later turns.
    pub fn insert(&self, fd: i32) {
        let Some(turn) = self.link(fd).map(|l| l.turn.load(Relaxed)) else { return };
        let (mut before, mut next) = (0, self.first.load(Relaxed));
        while next != 0 && next != END {
            let Some(l) = self.link(next as i32 - 1).filter(|l| l.turn.load(Relaxed) < turn) else { break };
            (before, next) = (next, l.ready.load(Relaxed));
        }
        self.undate(fd);
        self.put(fd, before);
    }

    /// Puts a watch behind another one in the ready list, or before all (`before` = 0), if it is not in it.
    fn put(&self, fd: i32, before: u32) {
        let Some(l) = self.link(fd).filter(|l| l.ready.load(Relaxed) == 0) else { return };
        let place = match if before == 0 { None } else { self.link(before as i32 - 1) } {
            Some(l) => &l.ready,
            None => &self.first,
        };
        let next = place.swap(fd as u32 + 1, Relaxed);
        if next == 0 || next == END {
            self.last.store(fd as u32 + 1, Relaxed);
        }
        l.ready.store(if next == 0 { END } else { next }, Relaxed);
    }

    /// Takes the first watch of the ready list.
    pub fn pop(&self) -> Option<(i32, &'static Watch)> {
        let fd = self.first.load(Relaxed).checked_sub(1)? as i32;
        let w = self.get(fd)?;
        let next = self.link(fd)?.ready.swap(0, Relaxed);
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
        places.find(|(at, w)| w.ep.load(Relaxed) == 0 && self.link(*at).is_some_and(|l| l.ready.load(Relaxed) == 0))
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
        chain(set, fd, ep);
    });
}

fn chain(set: usize, fd: i32, ep: Ep) {
    if let Some(l) = TABLE[set].link(fd) {
        l.next.store(ep.local().watches.load(Relaxed), Relaxed);
        ep.local().watches.store(watch_id(set, fd) + 1, Release);
    }
}

/// Takes a watch out of its endpoint's chain.
fn unchain(set: usize, fd: i32, ep: Ep) {
    let id = watch_id(set, fd) + 1;
    let mut place = &ep.local().watches;
    for _ in 0..CHAIN_MAX {
        let at = place.load(Relaxed);
        let Some(l) = (if at == 0 { None } else { link_of(at - 1) }) else { break };
        if at == id {
            place.store(l.next.load(Relaxed), Relaxed);
            break;
        }
        place = &l.next;
    }
}

/// This process no longer has the connection, or the set; others have. With the set's lock held.
pub(super) fn disown(set: usize, fd: i32, ep: Ep) {
    chains(|| unchain(set, fd, ep));
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
        unchain(set, fd, ep);
    });
    let flags = w.flags.swap(0, Relaxed);
    TABLE[set].forgo(fd);
    if flags & TAGGED == 0 {
        if flags & PARKED != 0 {
            TABLE[set].owe_no_more(fd, w);
        }
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
        // Peers need not set this set's ready bit for the connection any more.
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
            let next = link_of(at - 1).map_or(0, |l| l.next.load(Relaxed));
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

/// Takes a parked watch out of the kernel's set. With the set's lock held.
pub(super) fn unpark(set: usize, epfd: c_int, fd: c_int, w: &Watch) {
    if w.ep.load(Relaxed) != 0 && w.flags.load(Relaxed) & PARKED != 0 {
        kernel_ctl(epfd, libc::EPOLL_CTL_DEL, fd, 0, 0);
        unlink(set, fd, w);
    }
}

fn settle_change(s: &Set, epfd: c_int) {
    if let Some(fd) = s.change.load(Relaxed).checked_sub(1)
        && s.forgo(fd as c_int)
        && let Some(w) = s.get(fd as c_int)
    {
        kernel_ctl(epfd, libc::EPOLL_CTL_MOD, fd as c_int, w.events.load(Relaxed), w.data.load(Relaxed));
    }
}

/// Tells the kernel what it is owed. With the set's lock held.
pub(super) fn settle(s: &Set, epfd: c_int) {
    settle_change(s, epfd);
    for fd in s.owed.iter().filter_map(|o| o.load(Relaxed).checked_sub(1)) {
        if let Some(w) = s.get(fd as c_int) {
            unpark(s.index(), epfd, fd as c_int, w);
        }
    }
}

/// Before a vfork: the child may look at a set, or hand it on, without the descriptors that are owed in it.
pub(super) fn before_vfork() {
    FORKING.fetch_add(1, SeqCst);
    for s in TABLE.iter().filter(|s| s.made() && s.owes()) {
        let held = s.lock();
        settle(s, s.epfd().unwrap_or(-1));
        held.release();
    }
}

/// The child of a vfork runs no more.
pub(super) fn after_vfork() {
    FORKING.fetch_sub(1, SeqCst);
}

/// This thread's child of vfork was killed inside a critical section.
pub(super) fn free_after_vfork() {
    CHAINS.free_after_vfork();
    if !CHAINS.is_held() && CHANGES.load(Relaxed) & 1 != 0 {
        CHANGES.fetch_add(1, Release);
    }
    TABLE.iter().filter(|s| s.made()).for_each(|s| s.common().lock.free_after_vfork());
}

/// Whether this process has a set.
pub(super) fn any() -> bool {
    TABLE.iter().any(Set::made)
}

/// Before a fork: the watches that parent and child will share have their places.
pub(super) fn before_fork() {
    FORKING.fetch_add(1, SeqCst);
    for s in TABLE.iter().filter(|s| s.made()) {
        let held = s.lock();
        if s.owes() {
            settle(s, s.epfd().unwrap_or(-1));
        }
        for fd in (0..fds::high()).step_by(CHUNK).chain([SPARE]) {
            s.make(fd);
        }
        s.share();
        held.release();
    }
}

/// This process leaves its family: it keeps no memory of sets that others have. They have been handed over. The kernel's sets
/// go on to be shared, and others' doorbells are in them: what they report is still sifted here.
pub(super) fn part() {
    for (i, s) in TABLE.iter().enumerate().filter(|(_, s)| s.may_be_others()) {
        for (fd, w) in s.watches() {
            disown(i, fd, Ep::from_index(w.ep.load(Relaxed) - 1));
        }
        while s.pop().is_some() {}
        s.attached.store(0, Relaxed);
        s.forgive();
        // A thread may be waiting on it: it finds an empty set.
        let anew = |p: *mut u8, len: usize| {
            let kind = libc::MAP_SHARED | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
            p.is_null() || memory::map(p.addr(), len, kind, -1, 0).is_some()
        };
        let mut had = anew(s.common.load(Relaxed).cast(), size_of::<Common>());
        for w in &s.chunks {
            had &= anew(w.load(Relaxed).cast(), CHUNK * size_of::<Watch>());
        }
        for w in [&s.shared, &s.inherited, &s.foreign] {
            w.store(0, Relaxed);
        }
        if !had || s.used.load(Relaxed) == LEFT {
            if !had {
                s.disown();
            }
            s.used.store(0, Release);
            continue;
        }
        s.common().nested.store(1, Relaxed);
    }
}

/// After a fork, in the parent: a set that another thread made since [`before_fork`] is shared, too.
pub(super) fn after_fork_parent() {
    TABLE.iter().filter(|s| s.made()).for_each(Set::share);
    FORKING.fetch_sub(1, SeqCst);
}

/// In the child of a fork, which has one thread. The locks lie in memory that the parent shares: one that is taken is
/// held by a thread of the parent, and will be released by it.
pub(super) fn after_fork_child() {
    CHAINS.reset();
    CHANGES.store(0, Relaxed);
    FORKING.store(0, Relaxed);
    for ep in engine::family::held() {
        ep.local().watches.store(0, Relaxed);
    }
    for (i, s) in TABLE.iter().enumerate() {
        // Never used, or forgotten. Written, they would cost every child a megabyte of its own.
        if s.used.load(Relaxed) == 0 && s.common.load(Relaxed).is_null() {
            continue;
        }
        s.sleepers.store(0, Relaxed);
        if !s.made() {
            // What the parent will use for a set of its own.
            s.disown();
            continue;
        }
        s.share();
        s.forgive();
        s.inherited.store(1, Relaxed);
        s.poller.store(0, Relaxed);
        // Lists and chains may have been in the middle of a change.
        s.first.store(0, Relaxed);
        s.last.store(0, Relaxed);
        for l in s.links.iter().enumerate().filter(|(_, c)| !c.load(Relaxed).is_null()) {
            for fd in l.0 * CHUNK..(l.0 + 1) * CHUNK {
                if let Some(l) = s.link(fd as i32) {
                    l.ready.store(0, Relaxed);
                }
            }
        }
        for (fd, w) in s.watches() {
            let ep = Ep::from_index(w.ep.load(Relaxed) - 1);
            if ep.local().refs.load(Relaxed) > 0 {
                chain(i, fd, ep);
            }
        }
    }
}
