//! The descriptor table: what each descriptor number means to culvert. One relaxed load on the data path.
//!
//! The table is private to the process, as the kernel's is, and copied by fork with it.
#![forbid(unsafe_code)]

use crate::endpoint::Ep;
use crate::table::{KIND, OURS, WORDS, put, raw};
pub use crate::table::{MAX, high};
use core::sync::atomic::AtomicBool;
use core::sync::atomic::Ordering::{Relaxed, SeqCst};
use shmring::family::{ENDPOINTS, State};

/// With [`EP`]: the connection is the kernel's for good, and so are all calls that move its bytes.
const NATIVE: u32 = 0x8000_0000;
/// The endpoint. Between this and the kind lies some of its life, so that [`leave_alone`] cannot take the number's
/// next connection for this one.
const INDEX: u32 = ENDPOINTS as u32 - 1;
const LIFE: u32 = !(KIND | NATIVE | INDEX);
const EP: u32 = 0x1000_0000;
const EPOLL: u32 = 0x2000_0000;

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
            let _ = WORDS[fd as usize].compare_exchange(v, v | NATIVE, Relaxed, Relaxed);
        }
    }
}

/// Threads of this process, or processes that run on its memory, have tables of descriptors of their own: the same number
/// can be another file to each of them.
static DIVIDED: AtomicBool = AtomicBool::new(false);

/// See `DIVIDED`.
pub fn are_divided() -> bool {
    DIVIDED.load(Relaxed)
}

/// From now on this table says nothing but which descriptors are ours. False: it did not before.
pub fn divide() -> bool {
    let first = !DIVIDED.swap(true, SeqCst);
    forget_all();
    first
}

/// Sets what `fd` is. Numbers beyond the table are ignored.
pub fn set(fd: i32, kind: Kind) {
    if are_divided() && !matches!(kind, Kind::Ours | Kind::Other) {
        return;
    }
    let v = match kind {
        Kind::Other => 0,
        Kind::Endpoint(e) => word(e),
        Kind::Epoll(i) => EPOLL | i as u32,
        Kind::Ours => OURS,
    };
    put(fd, v);
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

/// Descriptors that were known are not any more.
static FORGOTTEN: AtomicBool = AtomicBool::new(false);

/// Whether `fd`, which was an endpoint, would be one still unless it was closed.
pub fn knows(fd: i32) -> bool {
    fd < MAX as i32 && !FORGOTTEN.load(Relaxed)
}

/// From now on everything but our own descriptors is the kernel's alone.
pub fn forget_all() {
    FORGOTTEN.store(true, Relaxed);
    for fd in 0..high() {
        if !matches!(get(fd), Kind::Ours | Kind::Other) {
            set(fd, Kind::Other);
        }
    }
}
