//! What the engine asks of the kernel, and of the process that it is in: its one way out. (How processes find each other is
//! `rendezvous`'s, which `peer`, `mail` and `attach` ask.)
//!
//! In the library [`K`] is [`Linux`]: system calls, libc's own functions, copies that may fault. In the tests of this crate it
//! is a simulated kernel (`sim`), in which nothing happens but what a test does. Which one is known when the crate is
//! compiled: a call through `K` costs what it does.
//!
//! Results are the kernel's, `>= 0` or `-errno`, and `errno` stays as it is, unless it says otherwise.
// Unsafe here: the kernel and libc take pointers: each call says what they must be.
#![allow(unsafe_code)]

use core::ffi::CStr;
use core::mem::MaybeUninit;
use core::ops::Range;
use core::sync::atomic::AtomicU32;
use host::signals::Runs;
use host::usercopy::Fault;
use libc::{iovec, pollfd, sigset_t};
use rendezvous::Tuple;
use rendezvous::bell::Bell;
use rendezvous::diag::Cache;
use rendezvous::home::Home;
use shmring::lnx::Plain;

/// The kernel that the engine runs on.
#[cfg(not(test))]
pub type K = Linux;
/// A simulated one.
#[cfg(test)]
pub type K = crate::sim::Simulated;

/// What has become of a doorbell that was rung.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Rung {
    /// Its owner hears it.
    Heard,
    /// Nobody can have heard it: there is no such doorbell.
    Unheard,
    /// This process may not ring it. Something that restricts processes, such as Landlock, forbids it (landlock(7),
    /// LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET).
    Forbidden,
}

/// See the module.
pub trait Kernel {
    // What a socket shows.

    /// `ppoll(2)` without a mask, for `ns` nanoseconds at most.
    fn poll(fds: &mut [pollfd], ns: u64) -> isize;
    /// `FIONREAD`, `TIOCOUTQ`, or another ioctl of tcp(7) that answers with a number.
    fn queued(fd: i32, request: u64) -> Option<u64>;
    /// Reads a socket option over `v`; how many bytes of it were written.
    fn get_option<T: Plain>(fd: i32, level: i32, name: i32, v: &mut T) -> isize;
    /// Sets a socket option.
    fn set_option<T: Plain>(fd: i32, level: i32, name: i32, v: T) -> isize;
    /// Its address on this side, as far as `struct sockaddr_in6` goes.
    fn local_address(fd: i32) -> Option<[u8; 28]>;
    /// The addresses of a connected socket: its own end first, or with `peer_first` the other end first. `Err`: it is not
    /// connected, or not any more.
    fn ends(fd: i32, peer_first: bool) -> Result<Tuple, i32>;
    /// Whether nobody holds the socket with these addresses (its own first) and this cookie any more.
    fn has_no_holder(cache: &Cache, socket: &Tuple, cookie: u64) -> bool;
    /// Whether it is known to be a socket that nobody holds.
    fn is_orphan(cache: &Cache, socket: &Tuple, cookie: u64) -> bool;
    /// Bytes that it has to read, behind an urgent mark, too. `None`: the kernel does not say.
    fn unread(cache: &Cache, socket: &Tuple, cookie: u64) -> Option<u64>;

    // What moves a socket's bytes, and ends it.

    /// `sendto(2)` without an address.
    ///
    /// # Safety
    /// `from` is memory of ours of `len` bytes, or an address that the program passed in.
    unsafe fn send(fd: i32, from: *const u8, len: usize, flags: i32) -> isize;
    /// `recvmsg(2)` without an address and without control messages.
    ///
    /// # Safety
    /// The elements are memory of ours, or addresses that the program passed in.
    unsafe fn receive(fd: i32, into: &mut [iovec], flags: i32) -> isize;
    /// Drops up to `n` bytes that were received, without waiting.
    fn discard(fd: i32, n: u64) -> isize;
    /// Disconnects: a RST is sent.
    fn disconnect(fd: i32) -> isize;
    /// `shutdown(2)`.
    fn shutdown(fd: i32, how: i32) -> isize;
    /// libc's `send`, as the program would call it: it waits, a cancellation point, and sets `errno`. Its convention.
    ///
    /// # Safety
    /// As for [`Kernel::send`].
    unsafe fn send_as_program(fd: i32, from: *const u8, len: usize, flags: i32) -> isize;
    /// libc's `sendfile`, made as the program's call: from `at` on, or, without it, from the file's own position on.
    fn sendfile_as_program(out: i32, inp: i32, at: Option<&mut i64>, len: usize) -> isize;

    // Descriptors and files.

    /// Flags of the descriptor (`F_GETFD`).
    fn descriptor_flags(fd: i32) -> isize;
    /// Flags of the open file (`F_GETFL`).
    fn file_flags(fd: i32) -> isize;
    /// Another number for the same open file, from `least` on, close-on-exec.
    fn duplicate(fd: i32, least: i32) -> i32;
    /// The number `to`, which is ours, becomes another one for the same open file as `fd`, close-on-exec.
    fn duplicate_to(fd: i32, to: i32) -> i32;
    /// Closes a descriptor of ours.
    fn close(fd: i32);
    /// Opens a file.
    fn open(path: &CStr, flags: i32) -> i32;
    /// Reads from a file.
    fn read(fd: i32, into: &mut [u8]) -> isize;
    /// Reads from a file into several places, at `at` or where it stands.
    ///
    /// # Safety
    /// The elements are memory of ours.
    unsafe fn read_vector(fd: i32, into: &[iovec], at: Option<i64>) -> isize;
    /// Moves the place where a file stands by `n` bytes.
    fn step(fd: i32, n: i64);
    /// What a descriptor is.
    fn stat(fd: i32) -> Option<libc::stat>;
    /// A pipe: its reading end and its writing end.
    fn pipe() -> Option<[i32; 2]>;
    /// Locks a byte of a file for this process.
    fn lock_byte(fd: i32, at: usize) -> bool;
    /// Whether another process has it locked.
    fn is_byte_locked(fd: i32, at: usize) -> bool;
    /// Locks bytes for the open file itself (`F_WRLCK`), or unlocks them (`F_UNLCK`).
    fn lock_file(fd: i32, kind: i32, at: u64, len: u64) -> isize;
    /// Where the first lock begins that an open file has on any of these bytes.
    fn first_lock(fd: i32, at: u64, len: u64) -> Option<u64>;
    /// The soft limit of a resource.
    fn limit(resource: u32) -> Option<u64>;

    // Memory.

    /// A file in memory of `len` zeros, or `None`.
    fn memory_file(name: &CStr, len: usize) -> Option<i32>;
    /// Adds seals to it.
    fn seal(fd: i32, seals: i32) -> isize;
    /// Its seals.
    fn seals(fd: i32) -> isize;
    /// Opens it anew; nobody but its owner and root can. The number, or `-errno`.
    fn reopen(fd: i32) -> i32;
    /// Keeps everybody but its owner and root from opening it.
    fn keep_private(fd: i32) -> isize;
    /// Opens the one of this name that another process of our user has by this descriptor.
    fn open_memory_of(pid: u32, number: u32, name: &CStr, flags: i32) -> Option<i32>;
    /// Whether nobody else has it, open or mapped. All who have it have opened it anew.
    fn is_open_once(fd: i32) -> bool;
    /// Whether there is no mailbox of that name at home any more. Asked through `from`, this process's own.
    fn is_mailbox_gone(from: i32, name: u64) -> bool;
    /// Writes to it.
    fn write_at(fd: i32, bytes: &[u8], at: usize) -> isize;
    /// Reads from it.
    ///
    /// # Safety
    /// `into` is memory of ours of `len` bytes, or an address that the program passed in.
    unsafe fn read_at(fd: i32, into: *mut u8, len: usize, at: usize) -> isize;
    /// Gives a part of it back to the system: it reads as zeros.
    fn punch_hole(fd: i32, part: Range<usize>);
    /// What this thread has used of the CPU, nanoseconds, and how often it has waited for something.
    fn thread_usage() -> (u64, u64);
    /// What this thread has used of the CPU up to this moment, nanoseconds.
    fn thread_time() -> u64;
    /// `len` zeros of this process's own, at an address of the kernel's choice.
    fn zeros(len: usize) -> Option<*mut u8>;
    /// A file's bytes from `offset` on, at an address of the kernel's choice.
    fn map(fd: i32, offset: usize, len: usize) -> Option<*mut u8>;
    /// A file's first `len` bytes, to read only.
    fn map_to_read(fd: i32, len: usize) -> Option<*mut u8>;
    /// The file's first `len` bytes, or zeros of this process's own (-1), in place of what is mapped at `at`. Where they are:
    /// at `at`, unless the kernel is a simulated one. The memory is accessible all the time.
    ///
    /// # Safety
    /// The range is mapped memory of ours, of which nobody relies on what it holds.
    unsafe fn replace(at: *mut u8, len: usize, fd: i32) -> Option<*mut u8>;
    /// Makes a mapping longer; where it is now.
    ///
    /// # Safety
    /// The range is a mapping of the caller's, and nobody uses its old addresses afterwards.
    unsafe fn remap(at: *mut u8, len: usize, new: usize) -> Option<*mut u8>;
    /// Moves a mapping, or a part of one, to `to`, in place of what is there. Where it is: at `to`, unless the kernel is a simulated
    /// one.
    ///
    /// # Safety
    /// The range is a mapping of the caller's, and nobody uses its old addresses afterwards. At `to` there are as many bytes of
    /// memory of ours, on whose contents nobody relies.
    unsafe fn relocate(at: *mut u8, len: usize, to: *mut u8) -> Option<*mut u8>;
    /// Says whether a child of fork has a mapping of ours, too.
    fn inherit(at: *mut u8, len: usize, yes: bool) -> isize;
    /// Takes a mapping away.
    ///
    /// # Safety
    /// The range is a mapping of the caller's that nobody refers to any more.
    unsafe fn unmap(at: *mut u8, len: usize);
    /// Gets memory for whole pages of a mapping of ours before they are touched.
    fn populate(at: *mut u8, len: usize) -> isize;

    // The program's memory.

    /// Copies `len` bytes. A fault on either side is an error and leaves a part of `dst` written.
    ///
    /// # Safety
    /// `dst` and `src` do not overlap, and each is either memory that may be written or read here, or an address that the
    /// program passed in. Bytes that another process writes at the same time are copied in some order.
    unsafe fn copy(dst: *mut u8, src: *const u8, len: usize) -> Result<(), Fault>;
    /// Reads one value from the program's memory.
    ///
    /// # Safety
    /// As for [`Kernel::copy`], and every bit pattern is a valid `T`.
    unsafe fn load<T: Copy>(src: *const T) -> Result<T, Fault> {
        let mut v = MaybeUninit::<T>::uninit();
        // SAFETY: the caller's obligation for `src`; `v` is a local of the right size.
        unsafe { Self::copy(v.as_mut_ptr().cast(), src.cast(), size_of::<T>())? };
        // SAFETY: the copy has written all of it, and every bit pattern is a `T`.
        Ok(unsafe { v.assume_init() })
    }
    /// Writes one value to the program's memory.
    ///
    /// # Safety
    /// As for [`Kernel::copy`].
    unsafe fn store<T: Copy>(dst: *mut T, v: &T) -> Result<(), Fault> {
        // SAFETY: the caller's obligation for `dst`; `v` is a valid reference.
        unsafe { Self::copy(dst.cast(), core::ptr::from_ref(v).cast(), size_of::<T>()) }
    }
    /// From now on such copies may fault.
    fn arm_faults();

    // Waiting.

    /// Sleeps as `ppoll(2)`, for at most `timeout` nanoseconds; `-EINTR` as soon as any handler has run since `since`. A
    /// cancellation point.
    ///
    /// # Safety
    /// `mask` is null or valid. No lock is held.
    unsafe fn sleep(fds: &mut [pollfd], timeout: Option<u64>, mask: *const sigset_t, since: Runs) -> isize;
    /// Sleeps while `word` is `value`, for `timeout` nanoseconds at most; `-EINTR` as above.
    fn sleep_on(word: &AtomicU32, value: u32, timeout: u64, since: Runs) -> isize;
    /// Wakes the one who sleeps on `word`.
    fn wake(word: &AtomicU32);
    /// A cancellation point that does nothing else.
    ///
    /// # Safety
    /// No lock is held, and no frame has anything to drop.
    unsafe fn cancellation_point();
    /// Sleeps; a signal may end it early.
    fn nap(ns: u64);
    /// Lets another thread have this CPU.
    fn yield_cpu();
    /// What any thread stored before is visible to this one, and the other way round. False: there is no such call.
    fn barrier_everywhere() -> bool;
    /// The CPUs that this thread may use, a bit each; how many bytes.
    fn affinity(into: &mut [u64]) -> isize;
    /// Makes a doorbell, at home.
    fn open_bell() -> Result<Bell, i32>;
    /// Makes a socket to ring with; `place` moves its descriptor.
    fn ringer(place: fn(i32) -> i32) -> Result<i32, i32>;
    /// Rings.
    fn ring(ringer: i32, name: u64, key: u64, spare: &mut dyn Iterator<Item = i32>) -> Rung;
    /// Takes away that a doorbell was rung.
    fn drain(fd: i32);

    // Processes and time.

    /// This process's id.
    fn pid() -> u32;
    /// Whether this process has a thread of this id.
    fn has_thread(tid: u32) -> bool;
    /// Sends a signal to the calling thread.
    fn raise(signal: i32);
    /// Makes a call of libc's for the program (-1 and `errno`). If it fails with EPIPE, the SIGPIPE that comes with that does not
    /// reach the thread.
    fn without_sigpipe(call: impl FnOnce() -> isize) -> isize;
    /// A random number.
    fn random() -> u64;
    /// Monotonic time, nanoseconds.
    fn now() -> u64;
    /// Time stamp, cycles.
    fn cycles() -> u64;
    /// The same, behind all that this thread did before and ahead of all that it does later.
    fn cycles_in_order() -> u64;
    /// Cycles in a microsecond.
    fn cycles_per_us() -> u64;
}

/// The network namespace in which this process's doorbells, its ringer, its mailbox and what it asks the kernel with live, and
/// all connections that it attaches.
pub static HOME: Home = Home::new();

/// Linux, and the libc of this process.
#[cfg(not(test))]
pub struct Linux;

#[cfg(not(test))]
mod linux {
    use super::*;
    use crate::memory;
    use host::{clock, real, signals, usercopy};
    use rendezvous::{bell, diag};
    use shmring::{lnx, sys};

    impl Kernel for Linux {
        #[inline]
        fn poll(fds: &mut [pollfd], ns: u64) -> isize {
            lnx::poll(fds, ns)
        }
        fn queued(fd: i32, request: u64) -> Option<u64> {
            lnx::queued(fd, request)
        }
        fn get_option<T: Plain>(fd: i32, level: i32, name: i32, v: &mut T) -> isize {
            lnx::get_option(fd, level, name, v)
        }
        fn set_option<T: Plain>(fd: i32, level: i32, name: i32, v: T) -> isize {
            lnx::set_option(fd, level, name, v)
        }
        fn local_address(fd: i32) -> Option<[u8; 28]> {
            lnx::local_address(fd)
        }
        fn ends(fd: i32, peer_first: bool) -> Result<Tuple, i32> {
            Tuple::of(fd, peer_first)
        }
        fn has_no_holder(cache: &Cache, socket: &Tuple, cookie: u64) -> bool {
            diag::gone(cache, socket, cookie)
        }
        fn is_orphan(cache: &Cache, socket: &Tuple, cookie: u64) -> bool {
            diag::is_orphan(cache, socket, cookie)
        }
        fn unread(cache: &Cache, socket: &Tuple, cookie: u64) -> Option<u64> {
            diag::unread(cache, socket, cookie)
        }
        unsafe fn send(fd: i32, from: *const u8, len: usize, flags: i32) -> isize {
            // SAFETY: the caller's obligation.
            unsafe { lnx::send(fd, from, len, flags) }
        }
        unsafe fn receive(fd: i32, into: &mut [iovec], flags: i32) -> isize {
            // SAFETY: the caller's obligation.
            unsafe { lnx::receive(fd, into, flags) }
        }
        fn discard(fd: i32, n: u64) -> isize {
            lnx::discard(fd, n)
        }
        fn disconnect(fd: i32) -> isize {
            lnx::disconnect(fd)
        }
        fn shutdown(fd: i32, how: i32) -> isize {
            lnx::shutdown(fd, how)
        }
        unsafe fn send_as_program(fd: i32, from: *const u8, len: usize, flags: i32) -> isize {
            // SAFETY: the caller's obligation.
            unsafe { real::send(fd, from.cast(), len, flags) }
        }
        fn sendfile_as_program(out: i32, inp: i32, at: Option<&mut i64>, len: usize) -> isize {
            let at = at.map_or(core::ptr::null_mut(), core::ptr::from_mut);
            // SAFETY: null, or a variable that lives as long as the call.
            unsafe { real::sendfile(out, inp, at, len) }
        }
        fn descriptor_flags(fd: i32) -> isize {
            lnx::descriptor_flags(fd)
        }
        fn file_flags(fd: i32) -> isize {
            lnx::file_flags(fd)
        }
        fn duplicate(fd: i32, least: i32) -> i32 {
            lnx::duplicate(fd, least)
        }
        fn duplicate_to(fd: i32, to: i32) -> i32 {
            lnx::duplicate_to(fd, to, libc::O_CLOEXEC) as i32
        }
        fn close(fd: i32) {
            sys::close(fd);
        }
        fn open(path: &CStr, flags: i32) -> i32 {
            lnx::open(path, flags, 0)
        }
        fn read(fd: i32, into: &mut [u8]) -> isize {
            lnx::read(fd, into)
        }
        unsafe fn read_vector(fd: i32, into: &[iovec], at: Option<i64>) -> isize {
            // SAFETY: the caller's obligation.
            unsafe { lnx::read_vector(fd, into, at) }
        }
        fn step(fd: i32, n: i64) {
            lnx::step(fd, n);
        }
        fn stat(fd: i32) -> Option<libc::stat> {
            lnx::stat(fd)
        }
        fn pipe() -> Option<[i32; 2]> {
            lnx::pipe()
        }
        fn lock_file(fd: i32, kind: i32, at: u64, len: u64) -> isize {
            lnx::lock_file(fd, kind, at, len)
        }
        fn first_lock(fd: i32, at: u64, len: u64) -> Option<u64> {
            lnx::first_lock(fd, at, len)
        }
        fn lock_byte(fd: i32, at: usize) -> bool {
            lnx::lock_byte(fd, at)
        }
        fn is_byte_locked(fd: i32, at: usize) -> bool {
            lnx::is_byte_locked(fd, at)
        }
        fn limit(resource: u32) -> Option<u64> {
            lnx::limit(resource)
        }
        fn memory_file(name: &CStr, len: usize) -> Option<i32> {
            let fd = lnx::memory_file(name, libc::MFD_ALLOW_SEALING);
            if fd >= 0 && lnx::set_length(fd, len) < 0 {
                sys::close(fd);
                return None;
            }
            (fd >= 0).then_some(fd)
        }
        fn seal(fd: i32, seals: i32) -> isize {
            lnx::seal(fd, seals)
        }
        fn seals(fd: i32) -> isize {
            lnx::seals(fd)
        }
        fn reopen(fd: i32) -> i32 {
            lnx::reopen(fd)
        }
        fn keep_private(fd: i32) -> isize {
            lnx::set_mode(fd, 0o600)
        }
        fn open_memory_of(pid: u32, number: u32, name: &CStr, flags: i32) -> Option<i32> {
            (pid != sys::getpid()).then(|| lnx::open_memory_of(pid, number, name, flags)).flatten()
        }
        fn is_open_once(fd: i32) -> bool {
            lnx::is_open_once(fd)
        }
        fn is_mailbox_gone(from: i32, name: u64) -> bool {
            !rendezvous::mailbox::exists(from, name)
        }
        fn write_at(fd: i32, bytes: &[u8], at: usize) -> isize {
            lnx::write_at(fd, bytes, at)
        }
        unsafe fn read_at(fd: i32, into: *mut u8, len: usize, at: usize) -> isize {
            // SAFETY: the caller's obligation.
            unsafe { lnx::read_at(fd, into, len, at) }
        }
        fn punch_hole(fd: i32, part: Range<usize>) {
            lnx::punch_hole(fd, part);
        }
        fn thread_usage() -> (u64, u64) {
            lnx::thread_usage()
        }
        fn thread_time() -> u64 {
            lnx::thread_time()
        }
        fn zeros(len: usize) -> Option<*mut u8> {
            memory::map(0, len, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE, -1, 0)
        }
        fn map(fd: i32, offset: usize, len: usize) -> Option<*mut u8> {
            memory::map(0, len, libc::MAP_SHARED | libc::MAP_NORESERVE, fd, offset)
        }
        fn map_to_read(fd: i32, len: usize) -> Option<*mut u8> {
            memory::map_to_read(len, fd)
        }
        unsafe fn replace(at: *mut u8, len: usize, fd: i32) -> Option<*mut u8> {
            let kind = if fd < 0 { libc::MAP_PRIVATE | libc::MAP_ANONYMOUS } else { libc::MAP_SHARED };
            memory::map(at.addr(), len, kind | libc::MAP_NORESERVE | libc::MAP_FIXED, fd, 0)
        }
        unsafe fn remap(at: *mut u8, len: usize, new: usize) -> Option<*mut u8> {
            // SAFETY: the caller's obligation.
            unsafe { lnx::remap(at, len, new) }
        }
        unsafe fn relocate(at: *mut u8, len: usize, to: *mut u8) -> Option<*mut u8> {
            // SAFETY: the caller's obligation.
            unsafe { lnx::relocate(at, len, to) }.then_some(to)
        }
        fn inherit(at: *mut u8, len: usize, yes: bool) -> isize {
            lnx::inherit(at, len, yes)
        }
        unsafe fn unmap(at: *mut u8, len: usize) {
            // SAFETY: the caller's obligation.
            unsafe { lnx::unmap(at, len) }
        }
        fn populate(at: *mut u8, len: usize) -> isize {
            lnx::populate(at, len)
        }
        #[inline(always)]
        unsafe fn copy(dst: *mut u8, src: *const u8, len: usize) -> Result<(), Fault> {
            // SAFETY: the caller's obligation.
            unsafe { usercopy::copy(dst, src, len) }
        }
        fn arm_faults() {
            signals::arm_faults();
        }
        #[inline]
        unsafe fn sleep(fds: &mut [pollfd], timeout: Option<u64>, mask: *const sigset_t, since: Runs) -> isize {
            // SAFETY: as many pollfds as it says; the rest is the caller's obligation.
            unsafe { signals::ppoll(fds.as_mut_ptr(), fds.len(), timeout, mask, since) }
        }
        #[inline]
        fn sleep_on(word: &AtomicU32, value: u32, timeout: u64, since: Runs) -> isize {
            signals::futex(word, value, timeout, since)
        }
        #[inline]
        fn wake(word: &AtomicU32) {
            lnx::futex_wake(word);
        }
        #[inline]
        unsafe fn cancellation_point() {
            // SAFETY: the caller's obligation.
            unsafe { real::pthread_testcancel() };
        }
        fn nap(ns: u64) {
            lnx::nap(ns);
        }
        fn yield_cpu() {
            lnx::yield_cpu();
        }
        fn barrier_everywhere() -> bool {
            lnx::barrier_everywhere()
        }
        fn affinity(into: &mut [u64]) -> isize {
            lnx::affinity(into)
        }
        fn open_bell() -> Result<Bell, i32> {
            bell::open(|fd| fd, &HOME)
        }
        fn ringer(place: fn(i32) -> i32) -> Result<i32, i32> {
            bell::ringer(place, &HOME)
        }
        #[inline]
        fn ring(ringer: i32, name: u64, key: u64, spare: &mut dyn Iterator<Item = i32>) -> Rung {
            match bell::ring(ringer, name, key, &HOME, spare) {
                Ok(()) => Rung::Heard,
                // Who is stopped by a send to a socket of ours that takes all senders: security_unix_may_send.
                Err(rendezvous::mailbox::SendError::Other(libc::EPERM | libc::EACCES)) => Rung::Forbidden,
                Err(_) => Rung::Unheard,
            }
        }
        fn drain(fd: i32) {
            bell::drain(fd);
        }
        fn pid() -> u32 {
            sys::getpid()
        }
        fn has_thread(tid: u32) -> bool {
            lnx::has_thread(tid)
        }
        fn raise(signal: i32) {
            lnx::raise(signal);
        }
        fn without_sigpipe(call: impl FnOnce() -> isize) -> isize {
            const PIPE: u64 = 1 << (libc::SIGPIPE - 1);
            let before = lnx::signal_mask(libc::SIG_BLOCK, PIPE);
            // One that waits already, of which a second one would not be told, is the program's.
            let waits = lnx::signals_that_wait() & PIPE != 0;
            let r = call();
            if r < 0 && crate::real::errno() == libc::EPIPE && !waits {
                lnx::take_signal(PIPE, &mut core::mem::MaybeUninit::uninit());
            }
            lnx::signal_mask(libc::SIG_SETMASK, before);
            r
        }
        fn random() -> u64 {
            lnx::random()
        }
        #[inline]
        fn now() -> u64 {
            clock::now()
        }
        #[inline(always)]
        fn cycles() -> u64 {
            sys::cycles()
        }
        #[inline(always)]
        fn cycles_in_order() -> u64 {
            sys::cycles_in_order()
        }
        #[inline(always)]
        fn cycles_per_us() -> u64 {
            clock::cycles_per_us()
        }
    }
}
