//! culvert's own descriptors.
//!
//! They sit at high numbers, are close-on-exec, and are protected: a program's `close` of one fails with EBADF (to the
//! program it does not exist), and a `dup2` onto one moves ours out of the way.
// Unsafe here: where a descriptor is kept is kept as a pointer.
#![allow(unsafe_code)]

use crate::kernel::{K, Kernel as _};
use crate::table::{MAX, OURS, put, raw};
use core::sync::atomic::Ordering::Relaxed;
use core::sync::atomic::{AtomicI32, AtomicPtr};
use shmring::family::FEW_DESCRIPTORS;

/// As many descriptors culvert holds at most.
const MOST: usize = if cfg!(miri) { 64 } else { 4096 };

/// Where each of our descriptors is kept, so that it can be moved.
static KEPT: [AtomicPtr<AtomicI32>; MOST] = [const { AtomicPtr::new(core::ptr::null_mut()) }; MOST];

/// The first number culvert uses for itself.
pub fn floor() -> i32 {
    let limit = K::limit(libc::RLIMIT_NOFILE).unwrap_or(0);
    // High enough to leave the low numbers alone, low enough to keep the kernel's table small.
    (limit / 4 * 3).min(8192) as i32
}

/// Whether the program may have so few descriptors that it would miss those that culvert takes. It may lower its limit at any time: so
/// this is asked before a family is made, before a connection takes a step towards a ring, and before a doorbell is made. What a connection
/// needs that leaves a ring is not refused for that.
pub fn are_few() -> bool {
    K::limit(libc::RLIMIT_NOFILE).is_none_or(|limit| limit < FEW_DESCRIPTORS)
}

/// How many descriptors culvert may hold: a quarter of the limit. A program short of descriptors keeps them.
fn budget(floor: i32) -> usize {
    (floor / 3).min(MOST as i32) as usize
}

/// Whether a memfd may have `len` bytes: beyond RLIMIT_FSIZE, ftruncate raises SIGXFSZ in the program.
pub fn may_size(len: usize) -> bool {
    K::limit(libc::RLIMIT_FSIZE).is_some_and(|limit| len as u64 <= limit)
}

/// Moves the descriptor in `place` to a high number, close-on-exec, and protects it. `place` follows it
/// when it must be moved. On failure the descriptor is closed and `place` becomes -1.
pub fn adopt(place: &'static AtomicI32) -> bool {
    let fd = place.load(Relaxed);
    let floor = floor();
    let high = K::duplicate(fd, floor);
    K::close(fd);
    place.store(-1, Relaxed);
    if high < 0 {
        return false;
    }
    if raw(high) == OURS {
        // The number was free: what was ours under it is closed.
        lost(high);
    }
    let free = KEPT.iter().take(budget(floor)).find(|k| {
        k.compare_exchange(core::ptr::null_mut(), core::ptr::from_ref(place).cast_mut(), Relaxed, Relaxed).is_ok()
    });
    if free.is_none() || high as usize >= MAX {
        K::close(high);
        if let Some(k) = free {
            k.store(core::ptr::null_mut(), Relaxed);
        }
        return false;
    }
    place.store(high, Relaxed);
    put(high, OURS);
    true
}

/// Leaves a descriptor of ours open for good, protected, and nobody's any more: to close it could wait for somebody else.
pub fn abandon(place: &'static AtomicI32) {
    place.store(-1, Relaxed);
    for k in &KEPT {
        if k.load(Relaxed).cast_const() == core::ptr::from_ref(place) {
            k.store(core::ptr::null_mut(), Relaxed);
        }
    }
}

/// Number `fd` was ours; a system call of the program's own has closed it, and it may be another file's now. Who kept a
/// descriptor there has none.
pub fn lost(fd: i32) {
    for k in &KEPT {
        let p = k.load(Relaxed);
        // SAFETY: only `adopt` stores here, and only 'static references.
        if !p.is_null() && unsafe { &*p }.compare_exchange(fd, -1, Relaxed, Relaxed).is_ok() {
            k.store(core::ptr::null_mut(), Relaxed);
        }
    }
}

/// Closes a descriptor of ours.
pub fn discard(place: &'static AtomicI32) {
    let fd = place.swap(-1, Relaxed);
    if fd >= 0 {
        put(fd, 0);
        for k in &KEPT {
            if k.load(Relaxed).cast_const() == core::ptr::from_ref(place) {
                k.store(core::ptr::null_mut(), Relaxed);
            }
        }
        K::close(fd);
    }
}

/// A program wants number `fd`, which is ours: moves ours to another number. False if there is none.
pub fn move_away(fd: i32) -> bool {
    for k in &KEPT {
        let p = k.load(Relaxed);
        if p.is_null() {
            continue;
        }
        // SAFETY: only `adopt` stores here, and only 'static references.
        let place = unsafe { &*p };
        if place.load(Relaxed) == fd {
            let new = K::duplicate(fd, fd + 1);
            if new < 0 || new as usize >= MAX {
                return false;
            }
            put(new, OURS);
            place.store(new, Relaxed);
            put(fd, 0);
            return true;
        }
    }
    put(fd, 0);
    true
}

/// Moves a descriptor of ours to a high number and protects it, for owners that recognise it by inode.
/// Returns the number it has now.
pub fn place(fd: i32) -> i32 {
    let high = K::duplicate(fd, floor());
    if high < 0 {
        return fd;
    }
    K::close(fd);
    put(high, OURS);
    high
}

/// What each process has for itself, as far as tests go.
#[cfg(test)]
pub fn words(each: &mut dyn FnMut(crate::sim::process::Word)) {
    // Their numbers are with those whose they are; that they are kept is the same word.
    for kept in &KEPT[..64] {
        // SAFETY: a pointer as a pointer to something else, which nobody reads by it.
        let word: &'static AtomicPtr<u8> = unsafe { &*core::ptr::from_ref(kept).cast() };
        each(word.into());
    }
}
