//! Arrays for calls on many descriptors, which sleep with them: too large for the stack, which may be a few pages
//! (PTHREAD_STACK_MIN, a coroutine's).
//!
//! A thread may leave such a call without returning from it, by cancellation or by `longjmp` out of a handler. So each array
//! says whose it is: what a thread has left behind that has ended is taken for others, and so is the oldest of many that
//! one thread has. They are kept for the next call, which then needs no mapping.
// Unsafe here: the memory is mapped, and handed out as slices.
#![allow(unsafe_code)]

use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use core::sync::atomic::{AtomicPtr, AtomicU32, AtomicUsize};
use engine::{members, memory};
use host::tls::tls;
use shmring::lnx;

/// A piece of memory.
struct Place {
    /// The thread that has it; 0: nobody.
    owner: AtomicU32,
    /// The mapping; null: none yet.
    at: AtomicPtr<u8>,
    len: AtomicUsize,
    /// Counts what was taken: the least of one thread's is its oldest.
    turn: AtomicU32,
}

const PLACES: usize = 64;
static ALL: [Place; PLACES] = [const {
    Place {
        owner: AtomicU32::new(0),
        at: AtomicPtr::new(core::ptr::null_mut()),
        len: AtomicUsize::new(0),
        turn: AtomicU32::new(0),
    }
}; PLACES];
static TURNS: AtomicU32 = AtomicU32::new(0);

/// Arrays of one thread that may be in use at a time. A call has one, and so has each that a handler makes inside it.
const OF_THREAD: usize = 16;
/// Longer mappings than this are not kept.
const KEPT: usize = 1 << 16;

/// Memory for one call. No `Drop`: a sleep may be left without it.
#[must_use]
pub struct Array {
    place: Option<&'static Place>,
    at: *mut u8,
    len: usize,
}

impl Array {
    /// At least `len` bytes, zeroed. `None`: there is no memory.
    pub fn take(len: usize) -> Option<Array> {
        let place = place();
        let Some(p) = place else { return map(len).map(|at| Array { place: None, at, len }) };
        if p.len.load(Relaxed) < len {
            give_back(p);
            let Some(at) = map(len) else {
                p.owner.store(0, Release);
                return None;
            };
            p.at.store(at, Relaxed);
            p.len.store(len, Relaxed);
        } else {
            // SAFETY: the mapping is this thread's, and at least as long.
            unsafe { p.at.load(Relaxed).write_bytes(0, len) };
        }
        Some(Array { place, at: p.at.load(Relaxed), len })
    }

    /// All of it, as values of a type of which zeros are one. To be given back by [`Array::release`], after the last use.
    ///
    /// # Safety
    /// Zeros are a `T`. The slice is not used after `release`.
    pub unsafe fn of<T>(&self) -> &'static mut [T] {
        // SAFETY: a mapping of this length, aligned to a page, this thread's alone; the rest is the caller's obligation.
        unsafe { core::slice::from_raw_parts_mut(self.at.cast(), self.len / size_of::<T>()) }
    }

    /// Gives it back.
    pub fn release(self) {
        let Some(p) = self.place else {
            // SAFETY: our own mapping, used no more.
            unsafe { lnx::unmap(self.at, self.len) };
            return;
        };
        if self.len > KEPT {
            give_back(p);
        }
        let _ = p.owner.compare_exchange(tls().tid(), 0, Release, Relaxed);
    }
}

/// A place for this thread; `None`: there are no more.
fn place() -> Option<&'static Place> {
    let me = tls().tid();
    let mine = || ALL.iter().filter(|p| p.owner.load(Relaxed) == me);
    let take = |p: &Place, from: u32| p.owner.compare_exchange(from, me, AcqRel, Relaxed).is_ok();
    let turn = TURNS.fetch_add(1, Relaxed);
    let place = if mine().count() >= OF_THREAD {
        mine().min_by_key(|p| p.turn.load(Relaxed).wrapping_sub(turn))
    } else {
        // The child of a vfork is another process, and cannot ask for our threads.
        let may_ask = tls().vfork.get() == 0 && !members::is_filtered();
        let left = |p: &&Place| match p.owner.load(Acquire) {
            0 => false,
            tid => !lnx::has_thread(tid) && take(p, tid),
        };
        ALL.iter().find(|p| take(p, 0)).or_else(|| ALL.iter().filter(|_| may_ask).find(left))
    }?;
    place.turn.store(turn, Relaxed);
    Some(place)
}

/// Gives the memory of a place of this thread's back to the system.
fn give_back(p: &Place) {
    let at = p.at.swap(core::ptr::null_mut(), Relaxed);
    let len = p.len.swap(0, Relaxed);
    if !at.is_null() {
        // SAFETY: our own mapping, of this length; nobody uses it.
        unsafe { lnx::unmap(at, len) };
    }
}

fn map(len: usize) -> Option<*mut u8> {
    memory::map(0, len, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0)
}

/// In the child of a fork: the other threads are the parent's. `parent`: what this thread was called there. It may have forked in
/// a handler, inside a call that goes on.
pub fn after_fork_child(parent: u32) {
    for p in &ALL {
        let owner = p.owner.load(Relaxed);
        p.owner.store(if owner == parent && owner != 0 { tls().tid() } else { 0 }, Relaxed);
    }
}
