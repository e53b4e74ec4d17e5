//! The sets and their watches.
//!
//! The kernel's set is one for all processes that a fork made, and so are our watches: they lie in memory that parent
//! and child share. Each process has its own ready list and its own chains of watches.

use super::desk::Desk;
use core::cell::UnsafeCell;
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use core::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64};
use engine::endpoint::Ep;
use engine::lock::{Among, Held, Lock};
use engine::{fds, memory};
use host::clock;
use host::tls::tls;
use shmring::lnx;
use shmring::word::{Code, Coded, Numbered};

const SETS: usize = 256;
pub(super) const CHUNK: usize = 256;
const CHUNKS: usize = fds::MAX / CHUNK;
/// Descriptors from here on are not watched: their places are for the watches of numbers that were closed
/// while their file lives on in a duplicate.
pub(super) const SPARE: i32 = (fds::MAX - CHUNK) as i32;

/// One descriptor in one set. All zero = none. Guarded by the set's lock. Shared with forked children.
pub(super) struct Watch {
    /// Its endpoint; none: nothing is watched here.
    pub ep: Coded<Option<Ep>>,
    pub events: AtomicU32,
    pub data: AtomicU64,
    pub flags: AtomicU32,
    /// Ring tail at the last report, for edges.
    pub seen: AtomicU64,
    /// `tx_blocked` at the last edge for space.
    pub blocked: AtomicU32,
    /// In a place that is no descriptor's: the number, since closed, that the kernel knows it by.
    pub was: AtomicU32,
    /// How the lifeline stood ([`engine::lifeline::state_of_news`]) when the kernel was made to tell of it once more, though nothing was new;
    /// 0: it was not.
    pub retold: AtomicU64,
    /// How it stood when the kernel last told of its end. What the program was told then came after that.
    pub heard: AtomicU64,
}

/// This process's part of a watch.
pub(super) struct Link {
    /// Name of the next watch of the same endpoint ([`watch_id`]).
    pub next: Coded<Option<u32>>,
    /// Where it stands in the set's ready list.
    pub ready: Coded<Listed>,
    /// Its place in the order of the ready list: the value of [`Set::turns`] when the watch was last put there, or
    /// given to the kernel.
    pub turn: AtomicU64,
    /// When the news were told for which it is in the ready list; 0: it was reported since, or nobody knows.
    pub since: AtomicU64,
    /// How many of the kernel's events come before it, and to which of [`Set::calls`] this belongs (upper 24 bits).
    pub place: AtomicU32,
}

/// Where a watch stands in the ready list of its set.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Listed {
    /// It is not in the list.
    Out,
    /// At the end.
    Last,
    /// Before the watch of this descriptor.
    Before(i32),
}

impl Listed {
    /// The next in the list.
    pub fn next(self) -> Option<i32> {
        match self {
            Listed::Out | Listed::Last => None,
            Listed::Before(fd) => Some(fd),
        }
    }
}

impl Code for Listed {
    type Bits = u32;
    fn code(self) -> u32 {
        match self {
            Listed::Out => 0,
            Listed::Last => u32::MAX,
            Listed::Before(fd) => Some(fd).code(),
        }
    }
    fn of(code: u32) -> Listed {
        match code {
            u32::MAX => Listed::Last,
            code => Option::of(code).map_or(Listed::Out, Listed::Before),
        }
    }
}

/// A listening socket of a set.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Listener {
    pub port: u16,
    pub fd: i32,
}

impl Numbered for Listener {
    type Bits = u64;
    fn number(self) -> u64 {
        u64::from(self.port) << 32 | u64::from(self.fd as u32)
    }
    fn numbered(number: u64) -> Listener {
        Listener { port: (number >> 32) as u16, fd: number as i32 }
    }
}

/// What all processes that have a set share, besides its watches.
pub(super) struct Common {
    pub lock: Lock,
    /// Counts changes, for the other processes.
    pub version: AtomicU32,
    /// Watched through another set or `poll`, or out of our reach: nothing is attached in it any more.
    pub nested: AtomicU32,
    /// Which process has a doorbell in it (`shmring::owner`); 0: none. One at most gets one ([`super::bell::equip`]): none while
    /// another that may have the set lives.
    pub doorbell: AtomicU64,
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
/// A look at the lifeline has found no urgent data, and the kernel, whom the set asks of it, has told of nothing since.
pub(super) const CALM: u32 = 16;

pub(super) struct Set {
    /// Held by a thread of this process.
    pub own: Lock,
    /// 1: in use; [`LEFT`].
    pub used: AtomicU32,
    pub refs: AtomicU32,
    /// Number of its poller.
    pub poller: Coded<Option<u32>>,
    pub attached: AtomicU32,
    /// Counts watches that became ours: what the kernel told of one before that, it told as the program's.
    pub taken_over: AtomicU32,
    pub sleepers: AtomicU32,
    /// Other processes of the family may have it, too.
    pub shared: AtomicU32,
    /// When that was last looked into, and `version` when it was last scanned.
    pub shared_at: AtomicU64,
    pub version: AtomicU32,
    /// Belongs to a fork family's parent: bounded sleeps.
    pub inherited: AtomicU32,
    /// It is the kernel's ([`Common::nested`]), and this process has left what it had in it to the kernel.
    pub left: AtomicU32,
    /// Watches a connection whose peer does not have our doorbells: bounded sleeps.
    pub foreign: AtomicU32,
    /// The ready list.
    pub first: Coded<Option<i32>>,
    pub last: Coded<Option<i32>>,
    pub turns: AtomicU64,
    pub kernel_at: AtomicU64,
    /// Before all that the kernel has had to report up to this time stamp was reported.
    pub looked: AtomicU64,
    /// When the kernel had answered that question.
    pub answered: AtomicU64,
    /// The first event that the kernel has was there by this time stamp; 0: nobody has asked.
    pub has_since: AtomicU64,
    /// How many more notes of other users' are looked at in this call (`order`).
    pub patience: AtomicU32,
    /// Sockets of the set that listen (`order`).
    pub listeners: [Coded<Option<Listener>>; LISTENERS],
    /// Those are all, of the set in this state (see [`Set::state`]); 0: they need not be.
    pub listed: AtomicU64,
    /// Something can only be reported after the kernel has been asked.
    pub must_look: AtomicU32,
    /// Events that the kernel has told, and was made to have again (`report::make_room`): they are the first of all.
    pub returned: AtomicU32,
    /// Counts what was put in order ([`Link::place`]).
    pub calls: AtomicU32,
    pub turn: AtomicU32,
    /// Threads of this process inside `epoll_wait` on it. One that was cancelled there counts for ever, and so do, in a
    /// child, those of its parent: a handler may have forked inside, whose child leaves the call as well.
    pub waiters: AtomicU32,
    /// How many calls of `epoll_ctl` the kernel has not been told of yet: removals (`owed`: their descriptors) and
    /// at most one change (`change`: its descriptor).
    pub owing: AtomicU32,
    pub owed: [Coded<Option<i32>>; OWED],
    pub change: Coded<Option<i32>>,
    /// Shared memory, as the watches are: see [`after_fork_child`] for whose.
    pub common: AtomicPtr<Common>,
    pub chunks: [AtomicPtr<Watch>; CHUNKS],
    pub links: [AtomicPtr<Link>; CHUNKS],
    /// Whoever holds the lock works on it.
    desk: Locked,
}

struct Locked(UnsafeCell<Desk>);

// SAFETY: reached through `SetHeld`, of which there is one in this process at a time.
unsafe impl Sync for Locked {}

/// A set's lock, held.
#[must_use]
pub(super) struct SetHeld<'a> {
    own: Held<'a>,
    others: Option<Among<'a>>,
    desk: &'a Locked,
}

impl SetHeld<'_> {
    /// The set's desk.
    pub fn desk(&mut self) -> &mut Desk {
        // SAFETY: `own` keeps this process's other threads out, and the borrow any other use by this one.
        unsafe { &mut *self.desk.0.get() }
    }

    /// Unlocks.
    pub fn release(self) {
        if let Some(others) = self.others {
            others.release();
        }
        self.own.release();
    }
}

/// [`Watch::events`] of a watch that the kernel has with events that were not noted: a change of it was owed and never
/// told.
pub(super) const UNKNOWN: u32 = u32::MAX;
/// Listening sockets of a set that are found without a search.
const LISTENERS: usize = 8;
/// Removals that a set owes at most. A program that takes descriptors out and puts them back has one or two at a time.
const OWED: usize = 8;
/// Threads that are forking, or whose child of vfork runs.
pub(super) static FORKING: AtomicU32 = AtomicU32::new(0);

/// [`Set::used`]: closed here; other processes may still have it.
pub(super) const LEFT: u32 = 2;

pub(super) static TABLE: [Set; SETS] = [const {
    Set {
        own: Lock::new(),
        used: AtomicU32::new(0),
        refs: AtomicU32::new(0),
        poller: Coded::zero(),
        attached: AtomicU32::new(0),
        taken_over: AtomicU32::new(0),
        sleepers: AtomicU32::new(0),
        shared: AtomicU32::new(0),
        shared_at: AtomicU64::new(0),
        version: AtomicU32::new(0),
        inherited: AtomicU32::new(0),
        left: AtomicU32::new(0),
        foreign: AtomicU32::new(0),
        first: Coded::zero(),
        last: Coded::zero(),
        turns: AtomicU64::new(0),
        kernel_at: AtomicU64::new(0),
        looked: AtomicU64::new(0),
        answered: AtomicU64::new(0),
        has_since: AtomicU64::new(0),
        patience: AtomicU32::new(0),
        listeners: [const { Coded::zero() }; LISTENERS],
        listed: AtomicU64::new(0),
        must_look: AtomicU32::new(0),
        returned: AtomicU32::new(0),
        calls: AtomicU32::new(0),
        turn: AtomicU32::new(0),
        waiters: AtomicU32::new(0),
        owing: AtomicU32::new(0),
        owed: [const { Coded::zero() }; OWED],
        change: Coded::zero(),
        common: AtomicPtr::new(core::ptr::null_mut()),
        chunks: [const { AtomicPtr::new(core::ptr::null_mut()) }; CHUNKS],
        links: [const { AtomicPtr::new(core::ptr::null_mut()) }; CHUNKS],
        desk: Locked(UnsafeCell::new(Desk::NEW)),
    }
}; SETS];
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
    pub fn made(&self) -> bool {
        self.used.load(Acquire) == 1 && !self.common.load(Acquire).is_null()
    }

    /// What its processes agree on.
    pub fn common(&self) -> &'static Common {
        // SAFETY: mapped before the set is used (`ensure`), and as long as it is; all atomics.
        unsafe { &*self.common.load(Acquire) }
    }

    /// Forgets the memory of a set that this process does not have: another process may use it.
    pub fn disown(&self) {
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

    /// Its lock: of this process's threads, and of all processes that may have the set.
    ///
    /// Among processes it is a courtesy. What they share are the words of watches, each of which is whole at any time; lists
    /// and chains are each process's own. So one that is stopped while it holds the lock is waited for a moment only: what it
    /// was about to change it changes when it goes on, as if it had called then.
    pub fn lock(&self) -> SetHeld<'_> {
        const PATIENCE: u64 = 50_000_000;
        let own = self.own.lock();
        let others = self.may_be_others().then(|| self.common().lock.lock_among(PATIENCE));
        SetHeld { own, others, desk: &self.desk }
    }

    /// Whether nothing is attached in it any more.
    pub fn nested(&self) -> bool {
        self.common().nested.load(Relaxed) != 0
    }

    /// Whether another process has made it the kernel's, and this one has not left to the kernel what it has there.
    pub fn is_to_be_left(&self) -> bool {
        self.left.load(Relaxed) == 0 && self.nested()
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
            if engine::family::alone() && !self.is_to_be_left() {
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
    pub fn share(&self) {
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

    /// This process's part of the watch in a place.
    pub fn link(&self, fd: i32) -> Option<&'static Link> {
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
        self.poller.load(Relaxed).map(|p| p as usize)
    }

    /// Every watch of the set, and what it watches.
    pub fn watches(&self) -> impl Iterator<Item = (i32, &'static Watch, Ep)> {
        let used = self.chunks.iter().enumerate().filter(|(_, place)| !place.load(Relaxed).is_null());
        let fds = used.flat_map(|(c, _)| (c * CHUNK..(c + 1) * CHUNK).map(|fd| fd as i32));
        fds.filter_map(|fd| self.get(fd).and_then(|w| Some((fd, w, w.ep.load(Relaxed)?))))
    }

    /// Whether a watch is not in the ready list, and could be.
    pub fn is_out(&self, fd: i32) -> bool {
        self.link(fd).is_some_and(|l| l.ready.load(Relaxed) == Listed::Out)
    }

    /// A free place for a watch whose number was closed. With the set's lock held.
    pub fn spare(&self) -> Option<(i32, &'static Watch)> {
        self.make(SPARE)?;
        let mut places = (SPARE..fds::MAX as i32).filter_map(|at| Some((at, self.get(at)?)));
        places.find(|(at, w)| w.ep.load(Relaxed).is_none() && self.is_out(*at))
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

/// Whether this process has a set.
pub(super) fn any() -> bool {
    TABLE.iter().any(Set::made)
}
