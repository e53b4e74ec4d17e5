//! The system calls that culvert makes for itself, as functions that are safe to call.
//!
//! Safe means: a call touches no memory but its arguments and what the kernel hands out. What a descriptor is, and whether
//! it may be closed or changed, is for the caller to know. Results are the kernel's, `>= 0` or `-errno`, and `errno` stays
//! as it is: see [`sys`](crate::sys), whose bare call all of this is made of.
// Unsafe here: it makes the system calls.
#![allow(unsafe_code)]

use crate::sync::AtomicU32;
use crate::{sys, syscall};
use core::ffi::CStr;
use core::mem::MaybeUninit;
use core::ops::Range;
use libc::{iovec, pollfd, timespec};

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

/// Moves the place where a file stands by `n` bytes.
pub fn step(fd: i32, n: i64) -> isize {
    // SAFETY: no memory is touched.
    unsafe { syscall!(libc::SYS_lseek, fd, n, libc::SEEK_CUR) }
}

/// `pwrite(2)`.
pub fn write_at(fd: i32, bytes: &[u8], at: usize) -> isize {
    // SAFETY: the kernel reads `bytes.len()` bytes.
    unsafe { syscall!(libc::SYS_pwrite64, fd, bytes.as_ptr(), bytes.len(), at) }
}

/// `pread(2)`.
///
/// # Safety
/// `into` is memory of ours of `len` bytes, or an address that a program passed in, which the kernel checks.
pub unsafe fn read_at(fd: i32, into: *mut u8, len: usize, at: usize) -> isize {
    // SAFETY: the caller's obligation.
    unsafe { syscall!(libc::SYS_pread64, fd, into, len, at) }
}

/// Reads from a file into several places, at `at` or where it stands.
///
/// # Safety
/// The elements are memory of ours, or addresses that a program passed in.
pub unsafe fn read_vector(fd: i32, into: &[iovec], at: Option<i64>) -> isize {
    // SAFETY: the caller's obligation.
    unsafe {
        match at {
            None => syscall!(libc::SYS_readv, fd, into.as_ptr(), into.len()),
            Some(at) => syscall!(libc::SYS_preadv, fd, into.as_ptr(), into.len(), at, 0),
        }
    }
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

fn lock(kind: i32, at: u64, len: u64) -> libc::flock {
    // SAFETY: all-zero bytes are a valid flock.
    let mut l: libc::flock = unsafe { core::mem::zeroed() };
    l.l_type = kind as i16;
    l.l_whence = libc::SEEK_SET as i16;
    l.l_start = at as i64;
    l.l_len = len as i64;
    l
}

/// Locks bytes of an open file for itself (F_OFD_SETLK, fcntl(2)): whoever has a descriptor of it keeps the lock, and
/// nobody else. `kind`: `F_WRLCK` or `F_UNLCK`. Does not wait.
pub fn lock_file(fd: i32, kind: i32, at: u64, len: u64) -> isize {
    let l = lock(kind, at, len);
    // SAFETY: passes a local, which the kernel reads.
    unsafe { syscall!(libc::SYS_fcntl, fd, libc::F_OFD_SETLK, &raw const l) }
}

/// Where the first lock begins that is on any of these bytes of the file and not this process's own (F_GETLK): that of an
/// open file is nobody's own.
pub fn first_lock(fd: i32, at: u64, len: u64) -> Option<u64> {
    let mut l = lock(libc::F_WRLCK, at, len);
    // SAFETY: passes a local, which the kernel reads and writes.
    let r = unsafe { syscall!(libc::SYS_fcntl, fd, libc::F_GETLK, &raw mut l) };
    (r == 0 && l.l_type != libc::F_UNLCK as i16).then_some(l.l_start as u64)
}

/// Another number for the same open file, the lowest that is free from `least` on; close-on-exec.
pub fn duplicate(fd: i32, least: i32) -> i32 {
    // SAFETY: no memory is touched.
    unsafe { syscall!(libc::SYS_fcntl, fd, libc::F_DUPFD_CLOEXEC, least) as i32 }
}

/// The same under a number of the caller's choice.
pub fn duplicate_to(fd: i32, to: i32, flags: i32) -> isize {
    // SAFETY: no memory is touched.
    unsafe { syscall!(libc::SYS_dup3, fd, to, flags) }
}

/// As [`duplicate`], but not close-on-exec.
pub fn duplicate_to_inherit(fd: i32, least: i32) -> i32 {
    // SAFETY: no memory is touched.
    unsafe { syscall!(libc::SYS_fcntl, fd, libc::F_DUPFD, least) as i32 }
}

/// A pipe: its reading end and its writing end, close-on-exec.
pub fn pipe() -> Option<[i32; 2]> {
    let mut ends = [-1i32; 2];
    // SAFETY: the kernel writes two descriptors into a local.
    let r = unsafe { syscall!(libc::SYS_pipe2, ends.as_mut_ptr(), libc::O_CLOEXEC) };
    (r >= 0).then_some(ends)
}

fn byte_lock(at: usize) -> libc::flock {
    lock(libc::F_WRLCK, at as u64, 1)
}

/// Takes a POSIX record lock (fcntl(2)) on one byte of a file. False: another process has it, or the kernel knows no locks.
pub fn lock_byte(fd: i32, at: usize) -> bool {
    let l = byte_lock(at);
    // SAFETY: the kernel reads a local.
    unsafe { syscall!(libc::SYS_fcntl, fd, libc::F_SETLK, &raw const l) == 0 }
}

/// Whether another process has such a lock; also if nobody can tell.
pub fn is_byte_locked(fd: i32, at: usize) -> bool {
    let mut l = byte_lock(at);
    // SAFETY: the kernel reads and writes a local.
    let r = unsafe { syscall!(libc::SYS_fcntl, fd, libc::F_GETLK, &raw mut l) };
    r != 0 || l.l_type != libc::F_UNLCK as i16
}

/// A file without a name, in memory (memfd_create(2)), or `-errno`. `flags`: `MFD_ALLOW_SEALING`, or 0; close-on-exec.
pub fn memory_file(name: &CStr, flags: u32) -> i32 {
    // SAFETY: a NUL-terminated name, which the kernel reads.
    unsafe { syscall!(libc::SYS_memfd_create, name.as_ptr(), libc::MFD_CLOEXEC | flags) as i32 }
}

/// Sets the length of a file.
pub fn set_length(fd: i32, len: usize) -> isize {
    // SAFETY: no memory of ours is touched.
    unsafe { syscall!(libc::SYS_ftruncate, fd, len) }
}

/// Adds seals to a file in memory.
pub fn seal(fd: i32, seals: i32) -> isize {
    // SAFETY: no memory is touched.
    unsafe { syscall!(libc::SYS_fcntl, fd, libc::F_ADD_SEALS, seals) }
}

/// The seals of a file in memory, or `-errno`.
pub fn seals(fd: i32) -> isize {
    // SAFETY: no memory is touched.
    unsafe { syscall!(libc::SYS_fcntl, fd, libc::F_GET_SEALS) }
}

/// Opens the file behind a descriptor of ours anew, to read and write, close-on-exec, or `-errno`: needs /proc.
pub fn reopen(fd: i32) -> i32 {
    const DIR: &[u8] = b"/proc/self/fd/";
    let (mut path, mut digits) = ([0u8; 32], [0u8; 10]);
    path[..DIR.len()].copy_from_slice(DIR);
    let (mut left, mut n) = (fd.unsigned_abs(), 0);
    while n == 0 || left > 0 {
        digits[n] = b'0' + (left % 10) as u8;
        (left, n) = (left / 10, n + 1);
    }
    for (to, digit) in path[DIR.len()..].iter_mut().zip(digits[..n].iter().rev()) {
        *to = *digit;
    }
    match CStr::from_bytes_until_nul(&path) {
        Ok(path) if fd >= 0 => open(path, libc::O_RDWR, 0),
        _ => -libc::EBADF,
    }
}

/// Sets who may open a file (fchmod(2)).
pub fn set_mode(fd: i32, mode: u32) -> isize {
    // SAFETY: no memory is touched.
    unsafe { syscall!(libc::SYS_fchmod, fd, mode) }
}

/// Whether nobody else has the file behind `fd` open or mapped. The file is our own user's, and all who have it have opened it.
///
/// A lease for writing is given to the only one who has a file open (fcntl(2), F_SETLEASE; check_conflicting_open); it is given
/// back at once. Does not wait.
pub fn is_open_once(fd: i32) -> bool {
    // SAFETY: no memory is touched.
    let alone = unsafe { syscall!(libc::SYS_fcntl, fd, libc::F_SETLEASE, libc::F_WRLCK) } == 0;
    if alone {
        // SAFETY: as above.
        unsafe { syscall!(libc::SYS_fcntl, fd, libc::F_SETLEASE, libc::F_UNLCK) };
    }
    alone
}

/// Gives a part of a file in memory back to the system: it reads as zeros.
pub fn punch_hole(fd: i32, part: Range<usize>) -> isize {
    const PUNCH: i32 = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    // SAFETY: mappings of it stay as they are, and read zeros.
    unsafe { syscall!(libc::SYS_fallocate, fd, PUNCH, part.start, part.len()) }
}

/// What the calling thread has used of the CPU, nanoseconds, and how often it has waited for something.
pub fn thread_usage() -> (u64, u64) {
    // SAFETY: all-zero bytes are a valid rusage.
    let mut u: libc::rusage = unsafe { core::mem::zeroed() };
    // SAFETY: the kernel writes one rusage.
    unsafe { syscall!(libc::SYS_getrusage, libc::RUSAGE_THREAD, &raw mut u) };
    let ns = |t: libc::timeval| t.tv_sec as u64 * 1_000_000_000 + t.tv_usec as u64 * 1000;
    (ns(u.ru_utime) + ns(u.ru_stime), u.ru_nvcsw as u64)
}

/// What the calling thread has used of the CPU, nanoseconds, up to this moment (getrusage(2) counts to the last tick).
pub fn thread_time() -> u64 {
    let mut t = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the kernel writes one timespec.
    unsafe { syscall!(libc::SYS_clock_gettime, libc::CLOCK_THREAD_CPUTIME_ID, &raw mut t) };
    t.tv_sec as u64 * 1_000_000_000 + t.tv_nsec as u64
}

/// Real, effective and saved user id of the calling thread; `None` if the kernel does not say.
pub fn users() -> Option<[u32; 3]> {
    let mut ids = [0u32; 3];
    let [real, effective, saved] = &mut ids;
    // SAFETY: the kernel writes three locals.
    let r = unsafe { syscall!(libc::SYS_getresuid, &raw mut *real, &raw mut *effective, &raw mut *saved) };
    (r == 0).then_some(ids)
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

/// Opens the memory of this name that another process of our user has by this descriptor. It is looked at before it is opened: to open
/// another kind of file may do something; and if it becomes one in between, to open it does not wait.
pub fn open_memory_of(pid: u32, number: u32, name: &CStr, flags: i32) -> Option<i32> {
    let (mut path, mut at) = ([0u8; 48], 0);
    let mut put = |bytes: &[u8]| {
        path[at..at + bytes.len()].copy_from_slice(bytes);
        at += bytes.len();
    };
    let digits = |mut n: u32| {
        let (mut text, mut first) = ([b'0'; 10], 9);
        while n > 9 {
            (text[first], n, first) = (b'0' + (n % 10) as u8, n / 10, first - 1);
        }
        text[first] = b'0' + n as u8;
        (text, first)
    };
    put(b"/proc/");
    let (text, first) = digits(pid);
    put(&text[first..]);
    put(b"/fd/");
    let (text, first) = digits(number);
    put(&text[first..]);
    let path = CStr::from_bytes_until_nul(&path).ok()?;
    let mut link = [0u8; 64];
    let n = read_link(path, &mut link);
    let is_it = link.get(..n.max(0) as usize)?.strip_prefix(b"/memfd:")?.starts_with(name.to_bytes());
    let fd = if is_it { open(path, flags | libc::O_NONBLOCK | libc::O_NOCTTY, 0) } else { -1 };
    (fd >= 0).then_some(fd)
}

/// Takes a mapping away.
///
/// # Safety
/// The range is a mapping of the caller's that nobody refers to any more.
pub unsafe fn unmap(p: *mut u8, len: usize) {
    // SAFETY: the caller's obligation.
    unsafe { syscall!(libc::SYS_munmap, p, len) };
}

/// Makes a mapping longer, and moves it where there is room. Returns where it is.
///
/// # Safety
/// The range is a mapping of the caller's, and nobody uses its old addresses afterwards.
pub unsafe fn remap(p: *mut u8, len: usize, new: usize) -> Option<*mut u8> {
    // SAFETY: the caller's obligation.
    let p = unsafe { syscall!(libc::SYS_mremap, p, len, new, libc::MREMAP_MAYMOVE) };
    (!(-4095..0).contains(&p)).then_some(p as *mut u8)
}

/// Locks pages into memory (mlock(2)); `on_fault`: each once it is touched.
pub fn lock_pages(at: usize, len: usize, on_fault: bool) {
    // SAFETY: the contents of memory stay, whatever the range is.
    unsafe {
        match on_fault {
            true => syscall!(libc::SYS_mlock2, at, len, libc::MLOCK_ONFAULT),
            false => syscall!(libc::SYS_mlock, at, len),
        }
    };
}

/// Undoes it.
pub fn unlock_pages(at: usize, len: usize) {
    // SAFETY: as above.
    unsafe { syscall!(libc::SYS_munlock, at, len) };
}

/// Whether a program may have memory at an address.
pub fn is_of_user_space(at: usize) -> bool {
    // mincore(2) of nothing says ENOMEM for an address that is not a program's, and touches none.
    // SAFETY: no memory is touched.
    unsafe { syscall!(libc::SYS_mincore, at, 0, 0) >= 0 }
}

/// Moves a mapping, or a part of one, to `to`, in place of what is mapped there.
///
/// # Safety
/// The range is a mapping of the caller's, and nobody uses its old addresses afterwards. At `to` there are as many bytes of
/// memory of the caller's, on whose contents nobody relies.
pub unsafe fn relocate(p: *mut u8, len: usize, to: *mut u8) -> bool {
    const FLAGS: i32 = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
    // SAFETY: the caller's obligation.
    let p = unsafe { syscall!(libc::SYS_mremap, p, len, len, FLAGS, to) };
    !(-4095..0).contains(&p)
}

/// Says whether a child of fork has a mapping, too.
pub fn inherit(at: *mut u8, len: usize, yes: bool) -> isize {
    let advice = if yes { libc::MADV_DOFORK } else { libc::MADV_DONTFORK };
    // SAFETY: the advice changes nothing that anybody reads in this process.
    unsafe { syscall!(libc::SYS_madvise, at, len, advice) }
}

/// Gets memory for whole pages of a mapping: they can then be written without a fault, and so without SIGBUS. Their contents
/// stay. `-EINVAL`: Linux before 5.14 does not know the advice.
pub fn populate(p: *mut u8, len: usize) -> isize {
    // SAFETY: no contents are changed, whatever the range is.
    unsafe { syscall!(libc::SYS_madvise, p, len, libc::MADV_POPULATE_WRITE) }
}

/// Keeps memory out of core dumps.
pub fn not_dumped(at: usize, len: usize) {
    // SAFETY: the advice changes nothing that anybody reads.
    unsafe { syscall!(libc::SYS_madvise, at, len, libc::MADV_DONTDUMP) };
}

/// Sends a signal to the calling thread.
pub fn raise(signal: i32) {
    // SAFETY: no memory is touched; what the signal does is the program's.
    unsafe { syscall!(libc::SYS_tgkill, crate::sys::getpid(), crate::sys::gettid(), signal) };
}

/// Changes the calling thread's signal mask, of the kernel's size: `SIG_BLOCK`, `SIG_UNBLOCK`, `SIG_SETMASK`. The mask before.
pub fn signal_mask(how: i32, set: u64) -> u64 {
    let mut before = 0u64;
    // SAFETY: reads and writes two locals of the kernel's size. A signal that this unblocks finds the program's handler.
    unsafe { syscall!(libc::SYS_rt_sigprocmask, how, &raw const set, &raw mut before, 8) };
    before
}

/// The address of a signal's handler, as the kernel has it.
pub fn handler(signal: i32) -> usize {
    // The kernel's struct: handler, flags, restorer, mask (asm/signal.h).
    let mut action = [0usize; 4];
    // SAFETY: a query into a local of the kernel's size.
    unsafe { syscall!(libc::SYS_rt_sigaction, signal, 0, action.as_mut_ptr(), 8) };
    action[0]
}

/// The signals that wait for the calling thread, or for any of this process.
pub fn signals_that_wait() -> u64 {
    let mut set = 0u64;
    // SAFETY: a query into a local of the kernel's size.
    unsafe { syscall!(libc::SYS_rt_sigpending, &raw mut set, 8) };
    set
}

/// Takes a signal of `set` that waits for the calling thread, and what the kernel says of it. False: none does.
pub fn take_signal(set: u64, info: &mut MaybeUninit<libc::siginfo_t>) -> bool {
    let now = timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: reads locals of the kernel's size; `info` has room for one siginfo.
    unsafe { syscall!(libc::SYS_rt_sigtimedwait, &raw const set, info.as_mut_ptr(), &raw const now, 8) >= 0 }
}

/// Sends a signal to the calling thread with `info` as it is: of a signal to itself the kernel lets a thread forge that
/// (rt_tgsigqueueinfo(2)).
pub fn queue_signal(signal: i32, info: &libc::siginfo_t) -> isize {
    let (pid, tid) = (sys::getpid(), sys::gettid());
    // SAFETY: the kernel reads a siginfo.
    unsafe { syscall!(libc::SYS_rt_tgsigqueueinfo, pid, tid, signal, core::ptr::from_ref(info)) }
}

/// Ends the process at once, with all its threads.
pub fn exit(code: i32) -> ! {
    loop {
        // SAFETY: no memory is touched.
        unsafe { syscall!(libc::SYS_exit_group, code) };
    }
}

/// Whether this process has a thread of this id.
pub fn has_thread(tid: u32) -> bool {
    // SAFETY: signal 0 only asks.
    unsafe { syscall!(libc::SYS_tgkill, crate::sys::getpid(), tid, 0) != -libc::ESRCH as isize }
}

/// What any thread of the machine stored before is visible to this one, and the other way round (membarrier(2)). False: the
/// kernel does not offer that.
pub fn barrier_everywhere() -> bool {
    const GLOBAL: i32 = 1;
    // SAFETY: no memory is touched.
    unsafe { syscall!(libc::SYS_membarrier, GLOBAL, 0, 0) >= 0 }
}

/// A random number.
pub fn random() -> u64 {
    let mut v = 0u64;
    // SAFETY: the kernel writes 8 bytes into a local.
    unsafe { syscall!(libc::SYS_getrandom, &raw mut v, 8, 0) };
    v
}

/// The monotonic clock.
pub fn clock() -> timespec {
    let mut t = timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes one timespec.
    unsafe { syscall!(libc::SYS_clock_gettime, libc::CLOCK_MONOTONIC, &raw mut t) };
    t
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

/// Whether a system-call filter refuses what a program that waits needs, and may have never called: to wait for descriptors, and to
/// take many messages at a time. Without them it would be deaf, or be told errors that its own calls do not have.
pub fn refuses_waiting() -> bool {
    // SAFETY: there is no such descriptor, and there are no messages.
    let take = unsafe { syscall!(libc::SYS_recvmmsg, -1i32, core::ptr::null::<u8>(), 0, 0, 0) };
    poll(&mut [], 0) != 0 || take != -libc::EBADF as isize
}

/// Wakes the one who waits on `word` (futex(2)). A hostile peer may let thousands of threads wait there: whoever wakes them
/// would pay for each.
pub fn futex_wake(word: &AtomicU32) {
    // SAFETY: the kernel takes the address of the word, no more.
    unsafe { syscall!(libc::SYS_futex, core::ptr::from_ref(word), libc::FUTEX_WAKE, 1) };
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

/// `sendto(2)` without an address.
///
/// # Safety
/// `from` is memory of ours of `len` bytes, or an address that a program passed in.
pub unsafe fn send(fd: i32, from: *const u8, len: usize, flags: i32) -> isize {
    // SAFETY: the caller's obligation.
    unsafe { syscall!(libc::SYS_sendto, fd, from, len, flags, 0, 0) }
}

/// `recvmsg(2)` without an address and without control messages.
///
/// # Safety
/// The elements are memory of ours, or addresses that a program passed in.
pub unsafe fn receive(fd: i32, into: &mut [iovec], flags: i32) -> isize {
    // SAFETY: all-zero bytes are a valid msghdr.
    let mut m: libc::msghdr = unsafe { core::mem::zeroed() };
    m.msg_iov = into.as_mut_ptr();
    m.msg_iovlen = into.len();
    // SAFETY: a valid msghdr; the rest is the caller's obligation.
    unsafe { syscall!(libc::SYS_recvmsg, fd, &raw mut m, flags) }
}

/// Drops up to `n` bytes that a TCP socket has received, without waiting (tcp(7), MSG_TRUNC).
pub fn discard(fd: i32, n: u64) -> isize {
    // SAFETY: nothing is written.
    unsafe { syscall!(libc::SYS_recvfrom, fd, 0, n, libc::MSG_TRUNC | libc::MSG_DONTWAIT, 0, 0) }
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

/// `eventfd(2)`, readable until it is read from; close-on-exec. The descriptor, or `-errno`.
pub fn readable_event() -> i32 {
    // SAFETY: no memory is touched.
    unsafe { syscall!(libc::SYS_eventfd2, 1, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) as i32 }
}

/// `epoll_ctl(2)`.
pub fn epoll_ctl(epfd: i32, op: i32, fd: i32, events: u32, data: u64) -> isize {
    let ev = libc::epoll_event { events, u64: data };
    // SAFETY: the kernel reads a local.
    unsafe { syscall!(libc::SYS_epoll_ctl, epfd, op, fd, &raw const ev) }
}

/// `epoll_wait(2)` without waiting; how many events, or `-errno`.
pub fn epoll_events(epfd: i32, into: &mut [libc::epoll_event]) -> isize {
    // SAFETY: the kernel writes at most `into.len()` events there; no signal mask.
    unsafe { syscall!(libc::SYS_epoll_pwait, epfd, into.as_mut_ptr(), into.len(), 0, 0, 8) }
}

/// Whether the kernel refuses a flag of `recvmsg(2)` before it looks at anything else.
pub fn refuses_flag(flag: i32) -> bool {
    // SAFETY: no memory is touched: the flags are looked at before descriptor and header.
    unsafe { syscall!(libc::SYS_recvmsg, usize::MAX, 0, flag) == -libc::EINVAL as isize }
}
