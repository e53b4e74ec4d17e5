//! Programs that use descriptors without libc: what they do there is not seen here, so they stay on the kernel.
//!
//! Some runtimes take their sockets from libc and wait for them in an epoll set that they make with system calls of
//! their own (rustix, and with it smol and async-std), or hand them to an io_uring (liburing). A byte on a ring would
//! never wake them. Before a connection is attached the process is therefore searched for such a set. One that was
//! made before culvert could see it, inherited or received, looks the same and counts as well.
// Unsafe here: directory entries are bytes that the kernel has written.
#![allow(unsafe_code)]

use crate::epoll;
use core::ffi::CStr;
use core::mem::offset_of;
use core::sync::atomic::Ordering::Relaxed;
use core::sync::atomic::{AtomicI32, AtomicU32, AtomicU64};
use engine::endpoint::Ep;
use engine::fds::{self, Kind};
use engine::{config, custody, family, leave};
use host::clock;
use libc::dirent64;
use shmring::family::Reason;
use shmring::{lnx, sys};

/// From now on calls that do not pass through culvert may use any descriptor: everything goes to the kernel, for good.
pub fn by(why: Reason) {
    custody::spoil_all();
    if config::enabled() && family::ensure() {
        family::disable(why);
        epoll::hand_all_over();
        for fd in (0..fds::high()).filter(|&fd| fds::tracked(fd)) {
            leave::surrender(fd, why);
        }
    }
}

/// Why this process attaches nothing any more ([`Reason`]); 0 = it does.
static FOUND: AtomicU32 = AtomicU32::new(0);

// The search. Guarded by the lock of `attach`.
/// The descriptor at which it goes on; [`DONE`]: nothing was found.
static AT: AtomicI32 = AtomicI32::new(0);
/// How often in a row the search has found something at that descriptor.
static STOPS: AtomicU32 = AtomicU32::new(0);
/// What the search has cost so far, in cycles, and the time (cycles) at which it goes on or begins anew.
static COST: AtomicU64 = AtomicU64::new(0);
static NEXT: AtomicU64 = AtomicU64::new(0);
const DONE: i32 = -1;

/// Whether `ep` should not be attached now: something was found, or the search has not ended. Each call makes a small part
/// of it. The process spends a small part of its time at most on being searched, and is believed for as long as the rest.
pub fn suspected(ep: Ep) -> bool {
    const REST: u64 = 50;
    /// A set that another thread is making or closing through libc looks the same, for less than a microsecond.
    const SURE: u32 = 8;
    const STOP_US: u64 = 1000;
    if epoll::lost_track() {
        return false;
    }
    if let Some(why) = Reason::from_u32(FOUND.load(Relaxed)).filter(|&why| why != Reason::None) {
        ep.because(why);
        return true;
    }
    let start = sys::cycles();
    if AT.load(Relaxed) == DONE {
        if start < NEXT.load(Relaxed) {
            return false;
        }
        AT.store(0, Relaxed);
        COST.store(0, Relaxed);
    } else if STOPS.load(Relaxed) != 0 && start < NEXT.load(Relaxed) {
        return true;
    }
    let from = AT.load(Relaxed);
    let (at, why) = search(from);
    let end = sys::cycles();
    let cost = COST.load(Relaxed) + end.saturating_sub(start);
    COST.store(cost, Relaxed);
    AT.store(at, Relaxed);
    let stops = match why {
        None => 0,
        Some(_) if at == from => STOPS.load(Relaxed) + 1,
        Some(_) => 1,
    };
    STOPS.store(stops, Relaxed);
    if at == DONE {
        NEXT.store(end + REST * cost, Relaxed);
    } else if why.is_some() {
        NEXT.store(end + STOP_US * clock::cycles_per_us(), Relaxed);
    }
    if let Some(why) = why.filter(|_| stops >= SURE) {
        host::log!(Info, "{}; its connections stay on the kernel", why.text());
        FOUND.store(why as u32, Relaxed);
        custody::spoil_all();
        family::disable_alone(why);
    }
    at != DONE
}

/// Looks at some descriptors of this process. Returns the descriptor at which the next search goes on; with a reason if
/// that one is suspicious and must be looked at again.
fn search(from: i32) -> (i32, Option<Reason>) {
    // By the thread: /proc shows no descriptors of a process whose first thread has ended.
    let dir = lnx::open(c"/proc/thread-self/fd", libc::O_RDONLY | libc::O_DIRECTORY, 0);
    if dir < 0 {
        // Without /proc nobody can tell.
        return (DONE, None);
    }
    let mut buf = [0u64; 256];
    // Behind "." and ".." the position is the number (proc_readfd_common, fs/proc/fd.c).
    lnx::seek(dir, if from > 0 { from as i64 + 2 } else { 0 });
    let n = lnx::directory_entries(dir, &mut buf);
    // SAFETY: the kernel has filled this many bytes of it.
    let entries = unsafe { core::slice::from_raw_parts(buf.as_ptr().cast::<u8>(), n.max(0) as usize) };
    let mut next = DONE;
    let mut found = None;
    for fd in numbers(entries).filter(|&fd| fd != dir) {
        next = fd + 1;
        found = judge(fd);
        if found.is_some() {
            next = fd;
            break;
        }
    }
    sys::close(dir);
    // There was room for more.
    let ended = entries.len() + size_of::<dirent64>() <= size_of_val(&buf);
    (if ended && found.is_none() { DONE } else { next }, found)
}

/// The names of directory entries (getdents64(2)) that are numbers.
fn numbers(entries: &[u8]) -> impl Iterator<Item = i32> {
    let mut rest = entries;
    core::iter::from_fn(move || {
        let len = rest.get(offset_of!(dirent64, d_reclen)..)?.first_chunk::<2>()?;
        let len = u16::from_ne_bytes(*len) as usize;
        let (entry, behind) = (len > 0).then(|| rest.split_at_checked(len))??;
        rest = behind;
        entry.get(offset_of!(dirent64, d_name)..)
    })
    .filter(|name| name.first().is_some_and(u8::is_ascii_digit))
    .map(|name| {
        let digits = name.iter().take_while(|b| b.is_ascii_digit());
        digits.fold(0i32, |n, b| n.wrapping_mul(10).wrapping_add(i32::from(b - b'0')))
    })
}

/// Whether a descriptor says that the program makes calls of its own. Its file system is not asked: that may take for ever.
fn judge(fd: i32) -> Option<Reason> {
    if fds::get(fd) != Kind::Other {
        return None;
    }
    let mut target = [0u8; 32];
    let path = fds::proc_path(b"/proc/thread-self/fd/", fd);
    let n = lnx::read_link(CStr::from_bytes_until_nul(&path).ok()?, &mut target);
    match target.get(..n.max(0) as usize)? {
        b"anon_inode:[eventpoll]" => Some(Reason::Raw),
        b"anon_inode:[io_uring]" => Some(Reason::IoUring),
        _ => None,
    }
}
