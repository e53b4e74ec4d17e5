//! The memory of a pool: its chunks, which its owner writes and others read; and its *desk*, where those who want to take chunks ask for an
//! edge, and keep their ledgers. Each is a memfd of the owner's, which other processes of its user open by /proc.
//!
//! ```text
//! pool   page 0                Head          what it is
//!        page 1                AtomicU32     how often each chunk has come back
//!        behind, whole pages   chunks, each at a multiple of 64 bytes
//! desk   page 0                Desk          the edges
//!        page 1                EDGES ledgers
//! ```
// Unsafe here: words of shared memory are references into its mapping.
#![allow(unsafe_code)]

use crate::kernel::{K, Kernel as _};
use crate::signals::Runs;
use crate::{own, pages};
use core::ffi::CStr;
use core::sync::atomic::AtomicU64;
use shmring::chunks::ledger::{EDGES, Entry, Ledger};
use shmring::sync::{AtomicU32, Ordering, fence};
use shmring::word::Coded;

const MAGIC: u64 = u64::from_le_bytes(*b"culvpool");
/// Changes with every incompatible change of this file.
const VERSION: u32 = 2;
const PAGE: usize = 4096;
/// Most chunks of a pool, and most bytes of all of them.
const MOST: u64 = 4096;
const MOST_BYTES: u64 = 1 << 30;

/// How many chunks, and how long they are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Shape {
    /// Bytes of a chunk.
    pub chunk_len: u32,
    /// Chunks.
    pub count: u32,
}

impl Shape {
    /// `None`: no pool is so large, or so small.
    pub fn of(chunk_len: u64, count: u64) -> Option<Shape> {
        let fits = (1..=MOST_BYTES).contains(&chunk_len)
            && (1..=MOST).contains(&count)
            && chunk_len.next_multiple_of(64) * count <= MOST_BYTES;
        fits.then_some(Shape { chunk_len: chunk_len as u32, count: count as u32 })
    }

    fn stride(self) -> usize {
        (self.chunk_len as usize).next_multiple_of(64)
    }

    fn chunks_at(self) -> usize {
        PAGE + (self.count as usize * size_of::<AtomicU32>()).next_multiple_of(PAGE)
    }

    /// Bytes of the pool.
    pub fn pool_len(self) -> usize {
        (self.chunks_at() + self.stride() * self.count as usize).next_multiple_of(PAGE)
    }

    fn ledger_len(self) -> usize {
        64 + (self.count as usize * size_of::<Coded<Entry>>()).next_multiple_of(64)
    }

    /// Bytes of the desk.
    pub fn desk_len(self) -> usize {
        (PAGE + EDGES * self.ledger_len()).next_multiple_of(PAGE)
    }
}

/// Where a pool's memory begins. Written before anybody else has it.
#[repr(C)]
struct Head {
    magic: AtomicU64,
    id: AtomicU64,
    version: AtomicU32,
    chunk_len: AtomicU32,
    count: AtomicU32,
}

/// Where a desk begins.
#[repr(C)]
pub struct Desk {
    id: AtomicU64,
    /// How often somebody has asked for an edge.
    pub asked: AtomicU32,
    _pad: AtomicU32,
    /// The edges that there may be.
    pub edges: [DeskEdge; EDGES],
    /// How often a chunk was given back.
    back: AtomicU32,
    /// How often that is to be before the owner is woken.
    until: AtomicU32,
    /// The owner sleeps on this word, or is about to: not 0.
    waits: AtomicU32,
}

impl Desk {
    /// A borrower has given a chunk back: wakes the owner, if it waits for no more.
    pub fn gave_back(&self) {
        let back = self.back.fetch_add(1, Ordering::SeqCst).wrapping_add(1);
        if self.waits.load(Ordering::SeqCst) != 0
            && back.wrapping_sub(self.until.load(Ordering::Relaxed)) as i32 >= 0
            && self.waits.swap(0, Ordering::SeqCst) != 0
        {
            K::wake(&self.waits);
        }
    }

    /// The owner is about to sleep until so many more are given back. Then it looks once more.
    pub fn wait_for(&self, more: u32) {
        self.until.store(self.back.load(Ordering::SeqCst).wrapping_add(more), Ordering::Relaxed);
        self.waits.store(1, Ordering::SeqCst);
        // Its look sees the ledger of whoever has not seen this word.
        fence(Ordering::SeqCst);
    }

    /// It sleeps, for `ns` at most.
    pub fn sleep(&self, ns: u64, since: Runs) {
        K::sleep_on(&self.waits, 1, ns, since);
    }
}

/// One of them. The byte of the desk's file that its place numbers is locked by who has asked for it, as long as that lives and takes chunks.
#[repr(C)]
pub struct DeskEdge {
    /// [`FREE`], [`ASKED`], [`ANSWERED`].
    pub state: AtomicU32,
    /// The owner's answer: the edge's name.
    pub edge: AtomicU32,
    /// Who lends by it; 0: the owner ...
    pub lender: AtomicU64,
    /// ... and in which channel, by its number.
    pub channel: AtomicU64,
    /// Who borrows by it.
    pub borrower: AtomicU64,
}

/// [`DeskEdge::state`]: nobody has asked.
pub const FREE: u32 = 0;
/// Somebody has.
pub const ASKED: u32 = 1;
/// The owner has answered.
pub const ANSWERED: u32 = 2;

const _: () = assert!(size_of::<Desk>() <= PAGE && size_of::<Head>() <= PAGE);

/// A pool's memory, as this process has mapped it. It stays so as long as anybody of this process refers to it.
#[derive(Clone, Copy)]
pub struct Mapped {
    pub pool: *mut u8,
    pub desk: *mut u8,
    pub shape: Shape,
}

impl Mapped {
    /// How often each chunk has come back.
    pub fn generations(&self) -> &'static [AtomicU32] {
        // SAFETY: inside the mapping by `Shape`'s arithmetic; atomics.
        unsafe { core::slice::from_raw_parts(self.pool.add(PAGE).cast(), self.shape.count as usize) }
    }

    /// Where a chunk lies: inside the mapping, whatever its number is.
    pub fn chunk(&self, index: u32) -> *mut u8 {
        let index = index.min(self.shape.count - 1) as usize;
        self.pool.wrapping_add(self.shape.chunks_at() + index * self.shape.stride())
    }

    /// Where bytes of a chunk lie. `None`: it has none there.
    pub fn part(&self, index: u32, offset: u32, len: u32) -> Option<*const u8> {
        let end = offset.checked_add(len).filter(|end| *end <= self.shape.chunk_len);
        end.filter(|_| index < self.shape.count).map(|_| self.chunk(index).wrapping_add(offset as usize).cast_const())
    }

    /// Whether a chunk has come back so often, now that bytes of it were read.
    pub fn is_current(&self, index: u32, generation: u32) -> bool {
        core::sync::atomic::fence(Ordering::Acquire);
        let count = self.generations().get(index as usize);
        count.is_some_and(|count| count.load(Ordering::Acquire) == generation)
    }

    /// The desk.
    pub fn desk(&self) -> &'static Desk {
        // SAFETY: the mapping begins with it; atomics.
        unsafe { &*self.desk.cast() }
    }

    fn ledger_at(&self, place: usize) -> *mut u8 {
        self.desk.wrapping_add(PAGE + place % EDGES * self.shape.ledger_len())
    }

    /// The ledger of the edge in this place of the desk.
    pub fn ledger(&self, place: usize) -> Ledger<'static> {
        let at = self.ledger_at(place);
        // SAFETY: inside the mapping; atomics.
        unsafe { Ledger::new(&*at.cast(), core::slice::from_raw_parts(at.add(64).cast(), self.shape.count as usize)) }
    }

    /// It says nothing any more.
    pub fn wipe(&self, place: usize) {
        let at = self.ledger_at(place).cast::<AtomicU32>();
        for i in 0..self.shape.ledger_len() / size_of::<AtomicU32>() {
            // SAFETY: as above.
            unsafe { (*at.add(i)).store(0, Ordering::Relaxed) };
        }
    }

    /// Gets memory for it. False: there is none.
    pub fn have_ledger(&self, place: usize) -> bool {
        let (at, len) = (self.ledger_at(place), self.shape.ledger_len());
        let skew = at.addr() % PAGE;
        pages::have(at.wrapping_sub(skew), (skew + len).next_multiple_of(PAGE))
    }

    /// Nobody of this process refers to it any more.
    pub fn unmap(&self) {
        // SAFETY: the two mappings that were made together; the caller's promise.
        unsafe {
            K::unmap(self.pool, self.shape.pool_len());
            K::unmap(self.desk, self.shape.desk_len());
        }
    }
}

const POOL_NAME: &CStr = c"culvert-pool";
const DESK_NAME: &CStr = c"culvert-desk";

/// Makes a pool's memory and its desk's: mapped, and their descriptors, whose number nobody knows yet. `None`: there is no memory.
pub fn make(shape: Shape, id: u64) -> Option<(Mapped, [i32; 2])> {
    let made = |name, len| {
        if !own::may_size(len) {
            return None;
        }
        let fd = K::memory_file(name, len)?;
        K::keep_private(fd);
        let at = K::map(fd, 0, len);
        if at.is_none() {
            K::close(fd);
        }
        at.map(|at| (fd, at))
    };
    let (pool_fd, pool) = made(POOL_NAME, shape.pool_len())?;
    let Some((desk_fd, desk)) = made(DESK_NAME, shape.desk_len()) else {
        K::close(pool_fd);
        // SAFETY: nobody knows of it.
        unsafe { K::unmap(pool, shape.pool_len()) };
        return None;
    };
    let mapped = Mapped { pool, desk, shape };
    // SAFETY: the beginning of each; atomics.
    let head: &Head = unsafe { &*pool.cast() };
    // Memory that is given now is not missing when the program writes there.
    let had = pages::have(pool, shape.pool_len()) && pages::have(desk, PAGE);
    if had {
        head.magic.store(MAGIC, Ordering::Relaxed);
        head.id.store(id, Ordering::Relaxed);
        head.version.store(VERSION, Ordering::Relaxed);
        head.chunk_len.store(shape.chunk_len, Ordering::Relaxed);
        head.count.store(shape.count, Ordering::Relaxed);
        mapped.desk().id.store(id, Ordering::Relaxed);
    }
    let fixed = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW;
    // Who maps the pool from now on cannot write there.
    let sealed = had
        && K::seal(pool_fd, fixed | libc::F_SEAL_FUTURE_WRITE | libc::F_SEAL_SEAL) >= 0
        && K::seal(desk_fd, fixed | libc::F_SEAL_SEAL) >= 0;
    if !sealed {
        mapped.unmap();
        K::close(pool_fd);
        K::close(desk_fd);
        return None;
    }
    Some((mapped, [pool_fd, desk_fd]))
}

/// Opens and maps the pool `id` of another process of this user, to read, and its desk, of which the descriptor is returned.
pub fn find(pid: u32, files: [u32; 2], id: u64) -> Option<(Mapped, i32)> {
    let pool_fd = K::open_memory_of(pid, files[0], POOL_NAME, libc::O_RDONLY)?;
    let found = map_pool(pool_fd, id);
    K::close(pool_fd);
    let (pool, shape) = found?;
    let desk = K::open_memory_of(pid, files[1], DESK_NAME, libc::O_RDWR).and_then(|fd| match map_desk(fd, id, shape) {
        None => {
            K::close(fd);
            None
        }
        Some(desk) => Some((fd, desk)),
    });
    let Some((desk_fd, desk)) = desk else {
        // SAFETY: nobody knows of it.
        unsafe { K::unmap(pool, shape.pool_len()) };
        return None;
    };
    Some((Mapped { pool, desk, shape }, desk_fd))
}

/// Whether a file is memory of our user's, of that length for ever.
fn is_fixed(fd: i32, len: usize) -> bool {
    let fixed = (libc::F_SEAL_SHRINK | libc::F_SEAL_GROW) as isize;
    let seals = K::seals(fd);
    seals >= 0
        && seals & fixed == fixed
        && K::stat(fd).is_some_and(|st| st.st_size == len as i64 && st.st_uid == rendezvous::uid::own())
}

fn map_pool(fd: i32, id: u64) -> Option<(*mut u8, Shape)> {
    let len = K::stat(fd)?.st_size;
    if len < PAGE as i64 || len > (MOST_BYTES as i64) * 2 || !is_fixed(fd, len as usize) {
        return None;
    }
    let at = K::map_to_read(fd, len as usize)?;
    // SAFETY: a page at least; atomics, each of which is read once.
    let head: &Head = unsafe { &*at.cast() };
    let load = |word: &AtomicU32| word.load(Ordering::Relaxed);
    let shape = Shape::of(load(&head.chunk_len).into(), load(&head.count).into());
    let is_it = head.magic.load(Ordering::Relaxed) == MAGIC
        && head.id.load(Ordering::Relaxed) == id
        && load(&head.version) == VERSION;
    match shape.filter(|shape| is_it && shape.pool_len() == len as usize) {
        Some(shape) => Some((at, shape)),
        None => {
            // SAFETY: nobody knows of it.
            unsafe { K::unmap(at, len as usize) };
            None
        }
    }
}

fn map_desk(fd: i32, id: u64, shape: Shape) -> Option<*mut u8> {
    let at = is_fixed(fd, shape.desk_len()).then(|| K::map(fd, 0, shape.desk_len())).flatten()?;
    // SAFETY: a page at least; atomics.
    let desk: &Desk = unsafe { &*at.cast() };
    if desk.id.load(Ordering::Relaxed) != id {
        // SAFETY: nobody knows of it.
        unsafe { K::unmap(at, shape.desk_len()) };
        return None;
    }
    Some(at)
}
