//! The system calls that culvert makes for itself, as functions that are safe to call.
//!
//! Safe means: a call touches no memory but its arguments and what the kernel hands out. What a descriptor is, and whether
//! it may be closed or changed, is for the caller to know. Results are the kernel's, `>= 0` or `-errno`, and `errno` stays
//! as it is: see [`sys`](crate::sys), whose bare call all of this is made of.

use crate::sync::AtomicU32;
use crate::syscall;
use core::ffi::CStr;
use libc::{pollfd, timespec};

/// Opens a file. `mode` counts for a new one only.
pub fn open(path: &CStr, flags: i32, mode: u32) -> i32 {
    // SAFETY: a NUL-terminated path, which the kernel reads.
    unsafe { syscall!(libc::SYS_openat, libc::AT_FDCWD, path.as_ptr(), flags | libc::O_CLOEXEC, mode) as i32 }
}

/// `read(2)`.
pub fn read(fd: i32, into: &mut [u8]) -> isize {
    // SAFETY: the kernel writes at most `into.len()` bytes there.
    unsafe { syscall!(libc::SYS_read, fd, into.as_mut_ptr(), into.len()) }
}

/// `write(2)`.
pub fn write(fd: i32, bytes: &[u8]) -> isize {
    // SAFETY: the kernel reads `bytes.len()` bytes.
    unsafe { syscall!(libc::SYS_write, fd, bytes.as_ptr(), bytes.len()) }
}

/// Sets the position of a file.
pub fn seek(fd: i32, at: i64) -> isize {
    // SAFETY: no memory is touched.
    unsafe { syscall!(libc::SYS_lseek, fd, at, libc::SEEK_SET) }
}

/// Directory entries (getdents64(2)), which are aligned as `u64`s are. Returns the number of bytes.
pub fn directory_entries(fd: i32, into: &mut [u64]) -> isize {
    // SAFETY: the kernel writes at most as many bytes as there are.
    unsafe { syscall!(libc::SYS_getdents64, fd, into.as_mut_ptr(), size_of_val(into)) }
}

/// What a symbolic link holds.
pub fn read_link(path: &CStr, into: &mut [u8]) -> isize {
    // SAFETY: a NUL-terminated path; the kernel writes at most `into.len()` bytes.
    unsafe { syscall!(libc::SYS_readlinkat, libc::AT_FDCWD, path.as_ptr(), into.as_mut_ptr(), into.len()) }
}

/// `fstat(2)`.
pub fn stat(fd: i32) -> Option<libc::stat> {
    // SAFETY: all-zero bytes are a valid stat.
    let mut st: libc::stat = unsafe { core::mem::zeroed() };
    // SAFETY: the kernel writes one stat.
    let r = unsafe { syscall!(libc::SYS_fstat, fd, &raw mut st) };
    (r == 0).then_some(st)
}

/// `F_GETFD`: flags of the descriptor.
pub fn descriptor_flags(fd: i32) -> isize {
    // SAFETY: no memory is touched.
    unsafe { syscall!(libc::SYS_fcntl, fd, libc::F_GETFD) }
}

/// `F_GETFL`: flags of the open file.
pub fn file_flags(fd: i32) -> isize {
    // SAFETY: no memory is touched.
    unsafe { syscall!(libc::SYS_fcntl, fd, libc::F_GETFL) }
}

/// Another number for the same open file, the lowest that is free from `least` on; close-on-exec.
pub fn duplicate(fd: i32, least: i32) -> i32 {
    // SAFETY: no memory is touched.
    unsafe { syscall!(libc::SYS_fcntl, fd, libc::F_DUPFD_CLOEXEC, least) as i32 }
}

/// The soft limit of a resource; `None` if the kernel does not say.
pub fn limit(resource: u32) -> Option<u64> {
    let mut r = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the kernel writes one rlimit; our own limits, only read.
    let e = unsafe { syscall!(libc::SYS_prlimit64, 0, resource, 0, &raw mut r) };
    (e == 0).then_some(r.rlim_cur)
}

/// A fresh mapping that can be read and written: of `fd`, or of nothing for `MAP_ANONYMOUS`.
pub fn map(len: usize, flags: i32, fd: i32) -> Option<*mut u8> {
    // SAFETY: the kernel chooses where: memory that exists is not touched.
    let p = unsafe { syscall!(libc::SYS_mmap, 0, len, libc::PROT_READ | libc::PROT_WRITE, flags, fd, 0) };
    (!(-4095..0).contains(&p)).then_some(p as *mut u8)
}

/// Takes a mapping away.
///
/// # Safety
/// The range is a mapping of the caller's that nobody refers to any more.
pub unsafe fn unmap(p: *mut u8, len: usize) {
    // SAFETY: the caller's obligation.
    unsafe { syscall!(libc::SYS_munmap, p, len) };
}

/// A random number.
pub fn random() -> u64 {
    let mut v = 0u64;
    // SAFETY: the kernel writes 8 bytes into a local.
    unsafe { syscall!(libc::SYS_getrandom, &raw mut v, 8, 0) };
    v
}

/// Sleeps; a signal may end it early.
pub fn nap(ns: u64) {
    let t = to_timespec(ns);
    // SAFETY: a valid timespec; the rest of the time is not asked for.
    unsafe { syscall!(libc::SYS_nanosleep, &raw const t, 0) };
}

fn to_timespec(ns: u64) -> timespec {
    timespec { tv_sec: (ns / 1_000_000_000) as i64, tv_nsec: (ns % 1_000_000_000) as i64 }
}

/// `ppoll(2)` without a signal mask, for `ns` nanoseconds at most.
#[inline]
pub fn poll(fds: &mut [pollfd], ns: u64) -> isize {
    let t = to_timespec(ns);
    // SAFETY: as many pollfds as it says, and a valid timespec.
    unsafe { syscall!(libc::SYS_ppoll, fds.as_mut_ptr(), fds.len(), &raw const t, 0, 8) }
}

/// Wakes all who wait on `word` (futex(2)).
pub fn futex_wake(word: &AtomicU32) {
    // SAFETY: the kernel takes the address of the word, no more.
    unsafe { syscall!(libc::SYS_futex, core::ptr::from_ref(word), libc::FUTEX_WAKE, i32::MAX) };
}

/// Lets another thread have this CPU.
pub fn yield_cpu() {
    // SAFETY: no memory is touched.
    unsafe { syscall!(libc::SYS_sched_yield) };
}

/// The CPUs that this thread may use, a bit each. Returns the number of bytes.
pub fn affinity(into: &mut [u64]) -> isize {
    // SAFETY: the kernel writes at most as many bytes as there are.
    unsafe { syscall!(libc::SYS_sched_getaffinity, 0, size_of_val(into), into.as_mut_ptr()) }
}

/// A value of a socket option.
///
/// # Safety
/// Any bytes are a valid value of the type.
pub unsafe trait Plain: Copy {}

// SAFETY: integers.
unsafe impl Plain for i32 {}
// SAFETY: integers.
unsafe impl Plain for u64 {}
// SAFETY: structures of integers.
unsafe impl Plain for libc::timeval {}
// SAFETY: structures of integers.
unsafe impl Plain for libc::linger {}
// SAFETY: integers.
unsafe impl<const N: usize> Plain for [u8; N] {}

/// Reads a socket option over `v`, and says how many bytes of it the kernel has written, or `-errno`.
pub fn get_option<T: Plain>(fd: i32, level: i32, name: i32, v: &mut T) -> isize {
    let mut len = size_of::<T>() as u32;
    // SAFETY: the kernel writes at most `len` bytes, and any bytes are a `T`.
    let r = unsafe { syscall!(libc::SYS_getsockopt, fd, level, name, core::ptr::from_mut(v), &raw mut len) };
    if r < 0 { r } else { len as isize }
}

/// Sets a socket option.
pub fn set_option<T: Plain>(fd: i32, level: i32, name: i32, v: T) -> isize {
    // SAFETY: the kernel reads a local.
    unsafe { syscall!(libc::SYS_setsockopt, fd, level, name, &raw const v, size_of::<T>()) }
}

/// The address that a socket has on this side, as far as `struct sockaddr_in6` goes.
pub fn local_address(fd: i32) -> Option<[u8; 28]> {
    let mut address = [0u8; 28];
    let mut len = address.len() as u32;
    // SAFETY: writes at most `len` bytes.
    let r = unsafe { syscall!(libc::SYS_getsockname, fd, address.as_mut_ptr(), &raw mut len) };
    (r >= 0).then_some(address)
}

/// Bytes that a TCP socket has not sent yet (linux/sockios.h).
pub const SIOCOUTQNSD: u64 = 0x894b;
/// Whether what is read next stands at the urgent mark (asm-generic/sockios.h).
pub const SIOCATMARK: u64 = 0x8905;

/// The number that an ioctl of tcp(7) answers: `FIONREAD`, `TIOCOUTQ`, [`SIOCOUTQNSD`] or [`SIOCATMARK`].
pub fn queued(fd: i32, request: u64) -> Option<u64> {
    if !matches!(request, libc::FIONREAD | libc::TIOCOUTQ | SIOCOUTQNSD | SIOCATMARK) {
        return None;
    }
    let mut n = 0i32;
    // SAFETY: these requests write one int.
    let r = unsafe { syscall!(libc::SYS_ioctl, fd, request, &raw mut n) };
    (r >= 0).then_some(n.max(0) as u64)
}

/// Disconnects a TCP socket: a RST is sent (tcp_disconnect).
pub fn disconnect(fd: i32) -> isize {
    let a = libc::sockaddr { sa_family: libc::AF_UNSPEC as u16, sa_data: [0; 14] };
    // SAFETY: an address and its length.
    unsafe { syscall!(libc::SYS_connect, fd, &raw const a, size_of_val(&a)) }
}

/// `shutdown(2)`.
pub fn shutdown(fd: i32, how: i32) -> isize {
    // SAFETY: no memory is touched.
    unsafe { syscall!(libc::SYS_shutdown, fd, how) }
}

/// `epoll_ctl(2)`.
pub fn epoll_ctl(epfd: i32, op: i32, fd: i32, events: u32, data: u64) -> isize {
    let ev = libc::epoll_event { events, u64: data };
    // SAFETY: the kernel reads a local.
    unsafe { syscall!(libc::SYS_epoll_ctl, epfd, op, fd, &raw const ev) }
}
