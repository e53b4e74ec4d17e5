//! Programs that use descriptors without libc: what they do there is not seen here, so they stay on the kernel.
//!
//! Some runtimes take their sockets from libc and wait for them in an epoll set that they make with system calls of
//! their own (rustix, and with it smol and async-std), or hand them to an io_uring (liburing). A byte on a ring would
//! never wake them. Before a connection is attached the process is therefore searched for such a set. One that was
//! made before culvert could see it, inherited or received, looks the same and counts as well.

use crate::fds::{self, Kind};
use crate::{attach, config, epoll, family, io};
use core::mem::offset_of;
use core::sync::atomic::Ordering::Relaxed;
use core::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, AtomicU64};
use libc::dirent64;
use shmring::family::Reason;
use shmring::{sys, syscall};

/// From now on any descriptor may be used by calls that do not pass here.
pub fn by(why: Reason) {
    if config::enabled() && family::ensure() {
        family::disable(why);
        epoll::hand_all_over();
        for fd in (0..fds::high()).filter(|&fd| io::tracked(fd)) {
            io::retire(fd, why);
        }
    }
}

/// libc has made an epoll set that culvert has no room for: it cannot be told from others any more.
pub fn lose_track() {
    LOST.store(true, Relaxed);
}

static LOST: AtomicBool = AtomicBool::new(false);
/// The [`Reason`] found and not yet acted upon; 0 = none.
static FOUND: AtomicU32 = AtomicU32::new(0);
/// The descriptor that the last search stopped at, and how many have in a row. Guarded by the lock of `attach`.
static STOPPED_AT: AtomicI32 = AtomicI32::new(-1);
static TIMES: AtomicU32 = AtomicU32::new(0);
/// When to search again, in cycles.
static NEXT: AtomicU64 = AtomicU64::new(0);

/// Whether no connection should be attached now, because something was found: to be followed by [`settle`], without
/// locks. A process with many descriptors spends a small part of its time at most on being searched, and may be believed
/// for as long as the rest.
pub fn suspected() -> bool {
    const REST: u64 = 50;
    /// A set that another thread is making or closing through libc looks the same, for less than a microsecond.
    const SURE: u32 = 8;
    if LOST.load(Relaxed) {
        return false;
    }
    let start = sys::cycles();
    if FOUND.load(Relaxed) == 0 && start >= NEXT.load(Relaxed) {
        let (at, why) = search().unwrap_or((-1, Reason::None));
        let times = if at == STOPPED_AT.swap(at, Relaxed) { TIMES.load(Relaxed) + 1 } else { 1 };
        TIMES.store(times, Relaxed);
        if at >= 0 && times >= SURE {
            FOUND.store(why as u32, Relaxed);
        }
        let end = sys::cycles();
        NEXT.store(end + REST * end.saturating_sub(start), Relaxed);
    }
    STOPPED_AT.load(Relaxed) >= 0
}

/// Acts upon what was found.
pub fn settle() {
    if FOUND.load(Relaxed) != 0
        && let Some(why) = Reason::from_u32(FOUND.swap(0, Relaxed))
    {
        crate::log!(Info, "{}; its connections stay on the kernel", why.text());
        by(why);
    }
}

/// Looks at every descriptor of this process. Without /proc at those with low numbers.
fn search() -> Option<(i32, Reason)> {
    const BLIND: i32 = 1024;
    let how = libc::O_RDONLY | libc::O_DIRECTORY | libc::O_CLOEXEC;
    // SAFETY: a NUL-terminated path.
    let dir = unsafe { syscall!(libc::SYS_openat, libc::AT_FDCWD, c"/proc/self/fd".as_ptr(), how) } as i32;
    if dir < 0 {
        return (0..BLIND).find_map(judge);
    }
    let mut found = None;
    let mut buf = [0u64; 256];
    while found.is_none() {
        // SAFETY: reads into a local, aligned as the entries are.
        let n = unsafe { syscall!(libc::SYS_getdents64, dir, buf.as_mut_ptr(), size_of_val(&buf)) };
        if n <= 0 {
            break;
        }
        // SAFETY: the kernel has filled this many bytes of it.
        let entries = unsafe { core::slice::from_raw_parts(buf.as_ptr().cast::<u8>(), n as usize) };
        found = numbers(entries).filter(|&fd| fd != dir).find_map(judge);
    }
    sys::close(dir);
    found
}

/// The names of directory entries (getdents64(2)) that are numbers.
fn numbers(entries: &[u8]) -> impl Iterator<Item = i32> {
    let mut rest = entries;
    core::iter::from_fn(move || {
        let len = rest.get(offset_of!(dirent64, d_reclen)..)?.first_chunk::<2>()?;
        let len = u16::from_ne_bytes(*len) as usize;
        let (entry, behind) = (len > 0).then(|| rest.split_at_checked(len))??;
        rest = behind;
        let name = entry.get(offset_of!(dirent64, d_name)..)?;
        let digits = name.iter().take_while(|b| b.is_ascii_digit());
        Some(digits.fold(0i32, |n, b| n.wrapping_mul(10).wrapping_add(i32::from(b - b'0'))))
    })
}

/// Whether a descriptor says that the program makes calls of its own.
fn judge(fd: i32) -> Option<(i32, Reason)> {
    if fds::get(fd) != Kind::Other {
        return None;
    }
    // Of a set that does not watch our mailbox this removes nothing; what is no set refuses it (do_epoll_ctl).
    // SAFETY: no memory is touched.
    match unsafe { syscall!(libc::SYS_epoll_ctl, fd, libc::EPOLL_CTL_DEL, attach::mailbox(), 0) } as i32 {
        e if e == -libc::ENOENT => Some((fd, Reason::Raw)),
        e if e == -libc::EINVAL && is_uring(fd) => Some((fd, Reason::IoUring)),
        _ => None,
    }
}

fn is_uring(fd: i32) -> bool {
    const NAME: &[u8] = b"anon_inode:[io_uring]";
    // Its inode is of no type (anon_inode_getfile).
    if fds::file_type(fd) != Some(0) {
        return false;
    }
    let mut target = [0u8; NAME.len() + 1];
    let path = fds::proc_path(b"/proc/self/fd/", fd);
    // SAFETY: a NUL-terminated path, and a buffer of the given length.
    let n = unsafe { syscall!(libc::SYS_readlinkat, libc::AT_FDCWD, path.as_ptr(), target.as_mut_ptr(), target.len()) };
    target.get(..n.max(0) as usize) == Some(NAME)
}
