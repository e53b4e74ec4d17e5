//! The descriptor table: what each descriptor number means to culvert. One relaxed load on the data path.
//!
//! The table is private to the process, as the kernel's is, and copied by fork with it. culvert's own
//! descriptors sit at high numbers, are close-on-exec, and are protected: a program's `close` of one fails
//! with EBADF (to the program it does not exist), and a `dup2` onto one moves ours out of the way.

use crate::endpoint::Ep;
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use core::sync::atomic::{AtomicI32, AtomicPtr, AtomicU32};
use shmring::family::{ENDPOINTS, State};
use shmring::syscall;

/// Descriptors above this are never tracked: they stay on the kernel.
pub const MAX: usize = 1 << 20;

static TABLE: [AtomicU32; MAX] = [const { AtomicU32::new(0) }; MAX];

const KIND: u32 = 0x7000_0000;
/// With [`EP`]: the connection is the kernel's for good, and so are all calls that move its bytes.
const NATIVE: u32 = 0x8000_0000;
/// The endpoint. Between this and the kind lies some of its life, so that [`leave_alone`] cannot take the number's
/// next connection for this one.
const INDEX: u32 = ENDPOINTS as u32 - 1;
const LIFE: u32 = !(KIND | NATIVE | INDEX);
const EP: u32 = 0x1000_0000;
const EPOLL: u32 = 0x2000_0000;
const OURS: u32 = 0x3000_0000;

const _: () = assert!(ENDPOINTS.is_power_of_two());

/// What a descriptor is to culvert.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Nothing: the kernel's alone.
    Other,
    /// A TCP socket.
    Endpoint(Ep),
    /// An epoll instance; index of the set.
    Epoll(usize),
    /// culvert's own.
    Ours,
}

#[inline(always)]
fn raw(fd: i32) -> u32 {
    if (fd as u32 as usize) < MAX { TABLE[fd as usize].load(Acquire) } else { 0 }
}

/// Looks a descriptor up.
#[inline]
pub fn get(fd: i32) -> Kind {
    let v = raw(fd);
    match v & KIND {
        EP => Kind::Endpoint(Ep::from_index(v & INDEX)),
        EPOLL => Kind::Epoll((v & !KIND) as usize),
        OURS => Kind::Ours,
        _ => Kind::Other,
    }
}

/// The endpoint behind a descriptor, if it is one of ours.
#[inline(always)]
pub fn endpoint(fd: i32) -> Option<Ep> {
    let v = raw(fd);
    if v & KIND == EP { Some(Ep::from_index(v & INDEX)) } else { None }
}

/// May this descriptor be an endpoint of ours? One load.
#[inline(always)]
pub fn tracked(fd: i32) -> bool {
    endpoint(fd).is_some()
}

/// The same for calls that move bytes: not if those are the kernel's for good. One load, and no other memory.
#[inline(always)]
pub fn carried(fd: i32) -> Option<Ep> {
    let v = raw(fd);
    if v & (KIND | NATIVE) == EP { Some(Ep::from_index(v & INDEX)) } else { None }
}

fn word(ep: Ep) -> u32 {
    EP | ep.life() << INDEX.count_ones() & LIFE | ep.index()
}

/// From now on calls that move the bytes of `fd` need not look at its endpoint, if that is pinned.
#[cold]
pub fn leave_alone(fd: i32) {
    let v = raw(fd);
    if v & (KIND | NATIVE) == EP {
        let ep = Ep::from_index(v & INDEX);
        // In this order: pinned is for life.
        if ep.state() == State::Pinned && word(ep) == v {
            let _ = TABLE[fd as usize].compare_exchange(v, v | NATIVE, Relaxed, Relaxed);
        }
    }
}

/// Sets what `fd` is. Numbers beyond the table are ignored.
pub fn set(fd: i32, kind: Kind) {
    if (fd as u32 as usize) < MAX {
        let v = match kind {
            Kind::Other => 0,
            Kind::Endpoint(e) => word(e),
            Kind::Epoll(i) => EPOLL | i as u32,
            Kind::Ours => OURS,
        };
        TABLE[fd as usize].store(v, Release);
        if v != 0 {
            HIGH.fetch_max(fd as u32 + 1, Relaxed);
        }
    }
}

/// The NUL-terminated path of what `/proc` has about a descriptor, which is not negative.
pub fn proc_path(dir: &[u8], fd: i32) -> [u8; 40] {
    let mut path = [0; 40];
    path[..dir.len()].copy_from_slice(dir);
    let digits = fd.checked_ilog10().unwrap_or(0) as usize;
    let mut v = fd;
    for b in path[dir.len()..=dir.len() + digits].iter_mut().rev() {
        *b = b'0' + (v % 10) as u8;
        v /= 10;
    }
    path
}

static HIGH: AtomicU32 = AtomicU32::new(0);

/// One more than the highest number that was ever tracked.
pub fn high() -> i32 {
    HIGH.load(Relaxed) as i32
}

// --- our own descriptors

const SLOTS: usize = 4096;
/// Where each of our descriptors is kept, so that it can be moved.
static KEPT: [AtomicPtr<AtomicI32>; SLOTS] = [const { AtomicPtr::new(core::ptr::null_mut()) }; SLOTS];

/// The first number culvert uses for itself.
pub fn floor() -> i32 {
    let mut r = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: prlimit on ourselves, reading only.
    unsafe { syscall!(libc::SYS_prlimit64, 0, libc::RLIMIT_NOFILE, 0, &raw mut r) };
    // High enough to leave the low numbers alone, low enough to keep the kernel's table small.
    (r.rlim_cur / 4 * 3).min(8192) as i32
}

/// How many descriptors culvert may hold: a quarter of the limit. A program short of descriptors keeps them.
fn budget() -> usize {
    (floor() / 3).min(SLOTS as i32) as usize
}

/// Whether a memfd may have `len` bytes: beyond RLIMIT_FSIZE, ftruncate raises SIGXFSZ in the program.
pub fn may_size(len: usize) -> bool {
    let mut r = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: prlimit on ourselves, reading only.
    let e = unsafe { syscall!(libc::SYS_prlimit64, 0, libc::RLIMIT_FSIZE, 0, &raw mut r) };
    e == 0 && len as u64 <= r.rlim_cur
}

/// Moves the descriptor in `place` to a high number, close-on-exec, and protects it. `place` follows it
/// when it must be moved. On failure the descriptor is closed and `place` becomes -1.
pub fn adopt(place: &'static AtomicI32) -> bool {
    let fd = place.load(Relaxed);
    // SAFETY: duplicates a descriptor we own.
    let high = unsafe { syscall!(libc::SYS_fcntl, fd, libc::F_DUPFD_CLOEXEC, floor()) } as i32;
    shmring::sys::close(fd);
    place.store(-1, Relaxed);
    if high < 0 {
        return false;
    }
    let free = KEPT.iter().take(budget()).find(|k| {
        k.compare_exchange(core::ptr::null_mut(), core::ptr::from_ref(place).cast_mut(), Relaxed, Relaxed).is_ok()
    });
    if free.is_none() || high as usize >= MAX {
        shmring::sys::close(high);
        if let Some(k) = free {
            k.store(core::ptr::null_mut(), Relaxed);
        }
        return false;
    }
    place.store(high, Relaxed);
    set(high, Kind::Ours);
    true
}

/// Closes a descriptor of ours.
pub fn discard(place: &'static AtomicI32) {
    let fd = place.swap(-1, Relaxed);
    if fd >= 0 {
        set(fd, Kind::Other);
        for k in &KEPT {
            if k.load(Relaxed).cast_const() == core::ptr::from_ref(place) {
                k.store(core::ptr::null_mut(), Relaxed);
            }
        }
        shmring::sys::close(fd);
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
            // SAFETY: duplicates a descriptor we own.
            let new = unsafe { syscall!(libc::SYS_fcntl, fd, libc::F_DUPFD_CLOEXEC, fd + 1) } as i32;
            if new < 0 || new as usize >= MAX {
                return false;
            }
            set(new, Kind::Ours);
            place.store(new, Relaxed);
            set(fd, Kind::Other);
            return true;
        }
    }
    set(fd, Kind::Other);
    true
}

/// Moves a descriptor of ours to a high number and protects it, for owners that recognise it by inode.
/// Returns the number it has now.
pub fn place(fd: i32) -> i32 {
    // SAFETY: duplicates a descriptor we own.
    let high = unsafe { syscall!(libc::SYS_fcntl, fd, libc::F_DUPFD_CLOEXEC, floor()) } as i32;
    if high < 0 {
        return fd;
    }
    shmring::sys::close(fd);
    set(high, Kind::Ours);
    high
}
