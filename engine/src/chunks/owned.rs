//! Pools of this process.
// Unsafe here: what is kept of a pool lies in memory that is mapped for it.
#![allow(unsafe_code)]

use super::era;
use super::memory::{ANSWERED, ASKED, FREE, Mapped, Shape, make};
use crate::kernel::{K, Kernel as _};
use crate::lock::Lock;
use crate::signals::Runs;
use crate::{headroom, members, own};
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use core::sync::atomic::{AtomicI32, AtomicPtr, AtomicU32, AtomicU64};
use shmring::chunks::ledger::{EDGES, EdgeName};
use shmring::chunks::name::Name;
use shmring::chunks::pool::{NotLent, Note, Party, Pool};

/// Pools that one process can have.
const POOLS: usize = 16;

/// How often borrowers are looked at that may have ended, nanoseconds.
const LOOK_NS: u64 = 2_000_000;

struct Owned {
    lock: Lock,
    /// Of which process (see [`era`]); 0: there is no pool.
    era: AtomicU32,
    state: AtomicPtr<State>,
    files: [AtomicI32; 2],
    id: AtomicU64,
    /// Where its memory is, and what shape it has, for who reads what was lent.
    pool: AtomicPtr<u8>,
    desk: AtomicPtr<u8>,
    chunk_len: AtomicU32,
    count: AtomicU32,
}

static OWNED: [Owned; POOLS] = [const {
    Owned {
        lock: Lock::new(),
        era: AtomicU32::new(0),
        state: AtomicPtr::new(core::ptr::null_mut()),
        files: [const { AtomicI32::new(-1) }; 2],
        id: AtomicU64::new(0),
        pool: AtomicPtr::new(core::ptr::null_mut()),
        desk: AtomicPtr::new(core::ptr::null_mut()),
        chunk_len: AtomicU32::new(0),
        count: AtomicU32::new(0),
    }
}; POOLS];

/// Held by who makes a pool.
static MAKING: Lock = Lock::new();

/// Held by who reads bytes of chunks that were lent, which may come back meanwhile: until then no pool is taken away.
pub static READING: Lock = Lock::new();

/// What this process keeps of a pool, under its lock.
struct State {
    /// The pool's number here.
    n: usize,
    /// See [`Taken::mark`].
    mark: u32,
    pool: Pool<'static>,
    memory: Mapped,
    /// The edges that were answered, by their place at the desk.
    joined: [Option<Joined>; EDGES],
    /// How often somebody had asked for an edge when that was looked at last.
    served: u32,
    /// When borrowers were last looked at.
    looked: u64,
    /// Chunks that one edge may have.
    quota: u32,
    /// Bytes of the memory that this lies in.
    len: usize,
}

/// An edge that was answered.
#[derive(Clone, Copy)]
struct Joined {
    name: EdgeName,
    /// Who asked said that chunks come to it in this channel.
    channel: u64,
}

/// A chunk that was taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Taken {
    /// The pool, by its number here.
    pub n: u32,
    /// Which of those that have had that number.
    pub mark: u32,
    /// The chunk's place there.
    pub index: u32,
    /// How often it had been taken.
    pub number: u32,
}

/// A pool where others find it.
#[derive(Clone, Copy)]
pub struct Where {
    /// Its number.
    pub id: u64,
    /// Its descriptors in this process.
    pub files: [u32; 2],
}

/// In the child of a fork.
pub fn after_fork_child() {
    MAKING.reset();
    READING.reset();
    for owned in &OWNED {
        owned.lock.reset();
        // The parent's. The memory stays: bytes of it may have to be sent to the kernel.
        for file in &owned.files {
            own::discard(file);
        }
    }
}

/// Makes a pool, of which one edge may have `quota` chunks. Its number here, or `-errno`.
pub fn new(shape: Shape, quota: u32) -> isize {
    let held = MAKING.lock();
    let made = new_one(shape, quota);
    held.release();
    made.map_or_else(|e| -e as isize, |n| n as isize)
}

fn new_one(shape: Shape, quota: u32) -> Result<usize, i32> {
    // What a process had before it was forked is never used again: see `after_fork_child`.
    let n = OWNED.iter().position(|owned| owned.era.load(Acquire) == 0).ok_or(libc::EMFILE)?;
    let owned = &OWNED[n];
    if own::are_few() {
        return Err(libc::EMFILE);
    }
    if members::is_filtered() {
        return Err(libc::ENOMEM);
    }
    let len = size_of::<State>() + shape.count as usize * size_of::<Note>();
    if !headroom::allows(shape.pool_len() + len) {
        return Err(libc::ENOMEM);
    }
    let at = K::zeros(len).ok_or(libc::ENOMEM)?;
    let id = K::random().max(1);
    let Some((memory, files)) = make(shape, id) else {
        // SAFETY: nobody knows of it.
        unsafe { K::unmap(at, len) };
        return Err(libc::ENOMEM);
    };
    let mut adopted = true;
    for (place, fd) in owned.files.iter().zip(files) {
        place.store(fd, Relaxed);
        adopted &= own::adopt(place);
    }
    if !adopted {
        owned.files.iter().for_each(own::discard);
        memory.unmap();
        // SAFETY: as above.
        unsafe { K::unmap(at, len) };
        return Err(libc::EMFILE);
    }
    // SAFETY: behind the state; zeros are notes, and they are this pool's alone.
    let notes: &'static mut [Note] =
        unsafe { core::slice::from_raw_parts_mut(at.add(size_of::<State>()).cast(), shape.count as usize) };
    let pool = Pool::new(id, shape.chunk_len, memory.generations(), notes);
    let state = State { n, mark: id as u32, pool, memory, joined: [None; EDGES], served: 0, looked: 0, quota, len };
    // SAFETY: fresh memory of that size, page-aligned.
    unsafe { at.cast::<State>().write(state) };
    owned.state.store(at.cast(), Relaxed);
    owned.id.store(id, Relaxed);
    owned.desk.store(memory.desk, Relaxed);
    owned.chunk_len.store(shape.chunk_len, Relaxed);
    owned.count.store(shape.count, Relaxed);
    owned.pool.store(memory.pool, Release);
    owned.era.store(era(), Release);
    Ok(n)
}

/// Runs `f` with a pool of this process. `None`: there is none of this number.
fn with<R>(n: u32, f: impl FnOnce(&mut State) -> R) -> Option<R> {
    let owned = OWNED.get(n as usize)?;
    if owned.era.load(Acquire) != era() {
        return None;
    }
    let held = owned.lock.lock();
    // SAFETY: made by `new_one`, and taken away under this lock.
    let state = unsafe { owned.state.load(Relaxed).as_mut() };
    let r = state.filter(|_| owned.era.load(Relaxed) == era()).map(f);
    held.release();
    r
}

/// Takes a pool away. `-EBUSY`: chunks of it are used, or not back; or no call may be made that is not the program's.
pub fn end(n: u32) -> i32 {
    let reading = READING.lock();
    let ended = end_now(n);
    reading.release();
    ended
}

fn end_now(n: u32) -> i32 {
    let gone = with(n, |state| {
        state.reap(true);
        if members::is_filtered() || state.pool.free_count() < state.memory.shape.count as usize {
            return None;
        }
        let owned = &OWNED[n as usize];
        owned.state.store(core::ptr::null_mut(), Relaxed);
        owned.pool.store(core::ptr::null_mut(), Relaxed);
        owned.files.iter().for_each(own::discard);
        // Last: from then on another thread may make a pool there.
        owned.era.store(0, Release);
        Some((state.memory, core::ptr::from_mut(state).cast::<u8>(), state.len))
    });
    match gone {
        None => -libc::EINVAL,
        Some(None) => -libc::EBUSY,
        Some(Some((memory, at, len))) => {
            memory.unmap();
            // SAFETY: the memory that `new_one` has made; nobody finds it any more.
            unsafe { K::unmap(at, len) };
            0
        }
    }
}

/// A free chunk, and where it lies; not if fewer than a third are free (`several`). `Err`: EAGAIN, none is free; EINVAL, there is no such pool.
pub fn take(n: u32, several: bool) -> Result<(Taken, *mut u8, u32), i32> {
    let taken = with(n, |state| {
        state.serve();
        if several && !state.has_several() {
            return None;
        }
        let index = state.pool.take().or_else(|| {
            state.reap(false);
            state.pool.take()
        })?;
        let number = state.pool.takes(index)?;
        let taken = Taken { n, mark: state.mark, index, number };
        Some((taken, state.memory.chunk(index), state.memory.shape.chunk_len))
    });
    taken.ok_or(libc::EINVAL)?.ok_or(libc::EAGAIN)
}

/// Sleeps until a third of a pool's chunks may be free, for a moment at most: who has one may have ended.
pub fn sleep(n: u32, since: Runs) {
    let desk = with(n, |state| {
        let desk = state.memory.desk();
        desk.wait_for(state.memory.shape.count.div_ceil(3));
        (!state.has_several()).then_some(desk)
    });
    if let Some(desk) = desk.flatten() {
        desk.sleep(LOOK_NS, since);
    }
}

/// Runs `f` with the pool of a chunk that the program uses. `None`: it does not any more.
fn with_used<R>(chunk: &Taken, f: impl FnOnce(&mut State) -> R) -> Option<R> {
    let is_it = |state: &State| state.mark == chunk.mark && state.pool.takes(chunk.index) == Some(chunk.number);
    with(chunk.n, |state| is_it(state).then(|| f(state))).flatten()
}

/// The program does not use a chunk any more.
pub fn give_up(chunk: &Taken) {
    with_used(chunk, |state| state.pool.give_up(chunk.index));
}

/// Whether it uses it still.
pub fn is_used(chunk: &Taken) -> bool {
    with_used(chunk, |_| ()).is_some()
}

/// Lends bytes of a chunk by the edge that this word names.
pub fn lend(chunk: &Taken, edge: u32, offset: u32, len: u32) -> Option<Name> {
    let (index, edge) = (chunk.index, EdgeName::of(edge));
    with_used(chunk, |state| {
        state.serve();
        match state.pool.lend(index, edge, offset, len) {
            Err(NotLent::Quota) => {
                state.reap(false);
                state.pool.lend(index, edge, offset, len).ok()
            }
            lent => lent.ok(),
        }
    })
    .flatten()
}

/// Undoes that.
pub fn take_back(n: u32, name: &Name) {
    with(n, |state| state.pool.take_back(name));
}

/// Answers those who have asked for edges of this pool.
pub fn serve(n: u32) {
    with(n, State::serve);
}

/// Whether the edge that this word names is one by which chunks go in this channel.
pub fn is_edge_of(n: u32, edge: u32, channel: u64) -> bool {
    let name = EdgeName::of(edge);
    let is_it = |joined: &Joined| joined.name == name && joined.channel == channel;
    with(n, |state| state.joined.iter().flatten().any(is_it)).unwrap_or(false)
}

/// Whether this process has this pool still, by this number.
pub fn is_there(n: u32, id: u64) -> bool {
    let owned = OWNED.get(n as usize);
    owned.is_some_and(|owned| owned.era.load(Acquire) == era() && owned.id.load(Relaxed) == id)
}

/// Which pool has this number, or had it last.
pub fn id(n: u32) -> u64 {
    OWNED.get(n as usize).map_or(0, |owned| owned.id.load(Acquire))
}

/// Where others find a pool.
pub fn place(n: u32) -> Option<Where> {
    let owned = OWNED.get(n as usize).filter(|owned| owned.era.load(Acquire) == era())?;
    let [pool, desk] = owned.files.each_ref().map(|file| u32::try_from(file.load(Relaxed)).ok());
    Some(Where { id: owned.id.load(Relaxed), files: [pool?, desk?] })
}

/// The memory of a pool of which a chunk is lent, also in the child of a fork.
fn memory(n: u32) -> Option<Mapped> {
    let owned = OWNED.get(n as usize)?;
    let pool = owned.pool.load(Acquire);
    let shape = Shape { chunk_len: owned.chunk_len.load(Relaxed), count: owned.count.load(Relaxed) };
    (!pool.is_null()).then(|| Mapped { pool, desk: owned.desk.load(Relaxed), shape })
}

/// Where bytes of a chunk lie, for who has lent it. With [`READING`].
pub fn bytes(n: u32, index: u32, offset: u32, len: u32) -> Option<*const u8> {
    memory(n)?.part(index, offset, len)
}

/// Whether a chunk that was lent has not come back since. With [`READING`].
pub fn is_current(n: u32, index: u32, generation: u32) -> bool {
    memory(n).is_some_and(|memory| memory.is_current(index, generation))
}

impl State {
    #[inline]
    fn serve(&mut self) {
        let asked = self.memory.desk().asked.load(Acquire);
        // Whether somebody lives cannot be asked under a filter.
        if asked != self.served && !members::is_filtered() {
            self.served = asked;
            self.answer();
        }
    }

    /// Whether a third of the chunks that the program does not use are free.
    fn has_several(&mut self) -> bool {
        self.reap(false);
        self.pool.collect();
        3 * self.pool.free_count() >= self.memory.shape.count as usize - self.pool.used_count()
    }

    /// Whether somebody lives, and keeps this place at the desk.
    fn is_kept(&self, place: usize) -> bool {
        K::is_byte_locked(OWNED[self.n].files[1].load(Relaxed), place)
    }

    #[cold]
    fn answer(&mut self) {
        // Those that have ended make room. Who finds none asks again.
        self.reap(false);
        let desk = self.memory.desk();
        for (place, edge) in desk.edges.iter().enumerate() {
            if edge.state.load(Acquire) != ASKED || self.joined[place].is_some() {
                continue;
            }
            if !self.is_kept(place) {
                edge.state.store(FREE, Release);
                continue;
            }
            self.memory.wipe(place);
            let [lender, borrower] = [&edge.lender, &edge.borrower].map(|word| Party(word.load(Relaxed)));
            if let Some(name) = self.pool.join(self.memory.ledger(place), self.quota, lender, borrower) {
                self.joined[place] = Some(Joined { name, channel: edge.channel.load(Relaxed) });
                edge.edge.store(name.word(), Relaxed);
                edge.state.store(ANSWERED, Release);
            } else {
                // The next time.
                self.served = self.served.wrapping_sub(1);
            }
        }
    }

    /// Takes back what those had who have ended. `now`: also if that was looked at a moment ago.
    fn reap(&mut self, now: bool) {
        let time = K::now();
        if members::is_filtered() || !now && time.wrapping_sub(self.looked) < LOOK_NS {
            return;
        }
        self.looked = time;
        for place in 0..EDGES {
            if let Some(edge) = self.joined[place]
                && !self.is_kept(place)
            {
                self.pool.has_gone(edge.name);
            }
        }
        self.pool.collect();
        for place in 0..EDGES {
            if self.joined[place].is_some_and(|edge| !self.pool.is_there(edge.name)) {
                self.joined[place] = None;
                self.memory.wipe(place);
                self.memory.desk().edges[place].state.store(FREE, Release);
            }
        }
    }
}
