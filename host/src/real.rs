//! The functions behind our own, found once with `dlsym(RTLD_NEXT)`: libc's, or those of another library that stands
//! between us and libc (a sanitizer does).
//!
//! A function is resolved at its first call, not in a constructor: another library's constructor may call
//! us before ours has run. A function that this libc lacks answers as the kernel does for an unknown call:
//! -1 with `ENOSYS`.
// Unsafe here: libc's functions are called by their addresses.
#![allow(unsafe_code)]

use crate::objects;
use core::ffi::{CStr, c_char, c_int, c_long, c_uint, c_void};
use core::sync::atomic::{AtomicUsize, Ordering};

/// Sets the calling thread's `errno`.
pub fn set_errno(e: c_int) {
    // SAFETY: `__errno_location` returns the calling thread's own errno, always valid.
    unsafe { *libc::__errno_location() = e }
}

/// The calling thread's `errno`.
pub fn errno() -> c_int {
    // SAFETY: as above.
    unsafe { *libc::__errno_location() }
}

/// Turns the kernel's convention (`-errno`) into libc's (-1 and `errno`).
#[inline(always)]
pub fn ret(r: isize) -> isize {
    if r < 0 {
        set_errno(-r as c_int);
        -1
    } else {
        r
    }
}

#[cold]
fn resolve(slot: &AtomicUsize, name: &CStr) -> usize {
    // SAFETY: with a valid C string; it may allocate or lock, which only the first call of each function does.
    let p = unsafe { dlsym(libc::RTLD_NEXT, name.as_ptr()) } as usize;
    let p = if p == 0 { 1 } else { p };
    slot.store(p, Ordering::Relaxed);
    p
}

/// The functions that look names up: ours stand in front of them, too, so they are found in another way.
pub fn lookup(slot: &AtomicUsize, name: &CStr) -> usize {
    match slot.load(Ordering::Relaxed) {
        0 => {
            let p = objects::after_us().find_map(|o| o.find(name)).unwrap_or(0);
            slot.store(p, Ordering::Relaxed);
            p
        }
        p => p,
    }
}

/// The `dlsym` behind ours.
///
/// # Safety
/// As libc's.
#[inline(always)]
pub unsafe fn dlsym(handle: *mut c_void, name: *const c_char) -> *mut c_void {
    static SLOT: AtomicUsize = AtomicUsize::new(0);
    let p = lookup(&SLOT, c"dlsym");
    if p == 0 {
        return core::ptr::null_mut();
    }
    // SAFETY: the function of this name has this type.
    let f: unsafe extern "C" fn(*mut c_void, *const c_char) -> *mut c_void = unsafe { core::mem::transmute(p) };
    // SAFETY: the caller's obligation.
    unsafe { f(handle, name) }
}

/// The address of libc's function `name`, 0 if it has none. For functions that are jumped to.
pub fn address(name: &CStr) -> usize {
    let slot = AtomicUsize::new(0);
    match resolve(&slot, name) {
        1 => 0,
        p => p,
    }
}

macro_rules! real {
    ($($(#[$m:meta])* fn $name:ident($($a:ident: $t:ty),* $(,)?) -> $r:ty;)*) => {$(
        $(#[$m])*
        /// libc's function of this name.
        ///
        /// # Safety
        /// As libc's.
        #[allow(clippy::too_many_arguments)]
        #[inline]
        pub unsafe fn $name($($a: $t),*) -> $r {
            static SLOT: AtomicUsize = AtomicUsize::new(0);
            let mut p = SLOT.load(Ordering::Relaxed);
            if p == 0 {
                p = resolve(&SLOT,
                    // SAFETY: stringify! has no NUL inside and one is appended.
                    unsafe { CStr::from_bytes_with_nul_unchecked(concat!(stringify!($name), "\0").as_bytes()) });
            }
            if p == 1 {
                set_errno(libc::ENOSYS);
                return missing();
            }
            // SAFETY: the symbol of this name in libc has this type.
            let f: unsafe extern "C-unwind" fn($($t),*) -> $r = unsafe { core::mem::transmute(p) };
            // SAFETY: the caller's obligation.
            unsafe { f($($a),*) }
        }
    )*};
}

/// What a function returns when libc does not have it.
trait Missing {
    fn missing() -> Self;
}
macro_rules! missing_int { ($($t:ty),*) => { $(impl Missing for $t { fn missing() -> Self { -1 } })* } }
missing_int!(c_int, c_long, isize);
impl<T> Missing for *mut T {
    fn missing() -> Self {
        core::ptr::null_mut()
    }
}
impl Missing for () {
    fn missing() -> Self {}
}
impl Missing for libc::sighandler_t {
    fn missing() -> Self {
        libc::SIG_ERR
    }
}
fn missing<T: Missing>() -> T {
    T::missing()
}

use libc::{
    DIR, FILE, aiocb, epoll_event, fd_set, iovec, mmsghdr, mode_t, mq_attr, msghdr, nfds_t, off_t, pid_t, pollfd,
    posix_spawn_file_actions_t, posix_spawnattr_t, sigaction as sigaction_t, sigevent, sigset_t, size_t, sockaddr,
    socklen_t, ssize_t, termios, timespec, timeval, winsize,
};

real! {
    // create, name
    fn socket(domain: c_int, ty: c_int, proto: c_int) -> c_int;
    fn socketpair(domain: c_int, ty: c_int, proto: c_int, sv: *mut c_int) -> c_int;
    fn accept(fd: c_int, a: *mut sockaddr, l: *mut socklen_t) -> c_int;
    fn accept4(fd: c_int, a: *mut sockaddr, l: *mut socklen_t, flags: c_int) -> c_int;
    fn connect(fd: c_int, a: *const sockaddr, l: socklen_t) -> c_int;
    fn listen(fd: c_int, backlog: c_int) -> c_int;
    fn getpeername(fd: c_int, a: *mut sockaddr, l: *mut socklen_t) -> c_int;
    fn shutdown(fd: c_int, how: c_int) -> c_int;
    // bytes
    fn read(fd: c_int, b: *mut c_void, n: size_t) -> ssize_t;
    fn write(fd: c_int, b: *const c_void, n: size_t) -> ssize_t;
    fn readv(fd: c_int, v: *const iovec, n: c_int) -> ssize_t;
    fn writev(fd: c_int, v: *const iovec, n: c_int) -> ssize_t;
    fn preadv2(fd: c_int, v: *const iovec, n: c_int, off: off_t, flags: c_int) -> ssize_t;
    fn pwritev2(fd: c_int, v: *const iovec, n: c_int, off: off_t, flags: c_int) -> ssize_t;
    fn recv(fd: c_int, b: *mut c_void, n: size_t, flags: c_int) -> ssize_t;
    fn send(fd: c_int, b: *const c_void, n: size_t, flags: c_int) -> ssize_t;
    fn recvfrom(fd: c_int, b: *mut c_void, n: size_t, flags: c_int, a: *mut sockaddr, l: *mut socklen_t) -> ssize_t;
    fn sendto(fd: c_int, b: *const c_void, n: size_t, flags: c_int, a: *const sockaddr, l: socklen_t) -> ssize_t;
    fn recvmsg(fd: c_int, m: *mut msghdr, flags: c_int) -> ssize_t;
    fn sendmsg(fd: c_int, m: *const msghdr, flags: c_int) -> ssize_t;
    fn recvmmsg(fd: c_int, v: *mut mmsghdr, n: c_uint, flags: c_int, t: *mut timespec) -> c_int;
    fn sendmmsg(fd: c_int, v: *mut mmsghdr, n: c_uint, flags: c_int) -> c_int;
    fn sendfile(out: c_int, inp: c_int, off: *mut off_t, n: size_t) -> ssize_t;
    fn splice(i: c_int, io: *mut off_t, o: c_int, oo: *mut off_t, n: size_t, flags: c_uint) -> ssize_t;
    fn __read_chk(fd: c_int, b: *mut c_void, n: size_t, room: size_t) -> ssize_t;
    fn __recv_chk(fd: c_int, b: *mut c_void, n: size_t, room: size_t, flags: c_int) -> ssize_t;
    fn __recvfrom_chk(fd: c_int, b: *mut c_void, n: size_t, room: size_t, flags: c_int, a: *mut sockaddr, l: *mut socklen_t) -> ssize_t;
    fn aio_read(cb: *mut aiocb) -> c_int;
    fn aio_write(cb: *mut aiocb) -> c_int;
    fn lio_listio(mode: c_int, list: *const *mut aiocb, n: c_int, ev: *mut sigevent) -> c_int;
    // options, state
    fn setsockopt(fd: c_int, level: c_int, name: c_int, v: *const c_void, l: socklen_t) -> c_int;
    fn getsockopt(fd: c_int, level: c_int, name: c_int, v: *mut c_void, l: *mut socklen_t) -> c_int;
    /// The variadic third argument travels as one register on x86-64 SysV.
    fn ioctl(fd: c_int, req: libc::c_ulong, arg: usize) -> c_int;
    /// As for `ioctl`.
    fn fcntl(fd: c_int, cmd: c_int, arg: usize) -> c_int;
    fn sockatmark(fd: c_int) -> c_int;
    // descriptors
    fn close(fd: c_int) -> c_int;
    fn dup(fd: c_int) -> c_int;
    fn dup2(old: c_int, new: c_int) -> c_int;
    fn dup3(old: c_int, new: c_int, flags: c_int) -> c_int;
    fn close_range(first: c_uint, last: c_uint, flags: c_int) -> c_int;
    fn fdopen(fd: c_int, mode: *const c_char) -> *mut FILE;
    fn fclose(f: *mut FILE) -> c_int;
    fn vdprintf(fd: c_int, format: *const c_char, args: *mut c_void) -> c_int;
    fn __vdprintf_chk(fd: c_int, flag: c_int, format: *const c_char, args: *mut c_void) -> c_int;
    fn pidfd_getfd(pidfd: c_int, fd: c_int, flags: c_uint) -> c_int;
    // waiting
    fn epoll_create(n: c_int) -> c_int;
    fn epoll_create1(flags: c_int) -> c_int;
    fn epoll_ctl(ep: c_int, op: c_int, fd: c_int, ev: *mut epoll_event) -> c_int;
    fn epoll_wait(ep: c_int, ev: *mut epoll_event, n: c_int, timeout: c_int) -> c_int;
    fn epoll_pwait(ep: c_int, ev: *mut epoll_event, n: c_int, timeout: c_int, m: *const sigset_t) -> c_int;
    fn epoll_pwait2(ep: c_int, ev: *mut epoll_event, n: c_int, t: *const timespec, m: *const sigset_t) -> c_int;
    fn poll(f: *mut pollfd, n: nfds_t, timeout: c_int) -> c_int;
    fn ppoll(f: *mut pollfd, n: nfds_t, t: *const timespec, m: *const sigset_t) -> c_int;
    fn select(n: c_int, r: *mut fd_set, w: *mut fd_set, e: *mut fd_set, t: *mut timeval) -> c_int;
    fn pselect(n: c_int, r: *mut fd_set, w: *mut fd_set, e: *mut fd_set, t: *const timespec, m: *const sigset_t) -> c_int;
    fn __poll_chk(f: *mut pollfd, n: nfds_t, timeout: c_int, room: size_t) -> c_int;
    fn __ppoll_chk(f: *mut pollfd, n: nfds_t, t: *const timespec, m: *const sigset_t, room: size_t) -> c_int;
    // processes
    #[allow(non_snake_case)]
    fn _Fork() -> pid_t;
    fn execve(p: *const c_char, a: *const *const c_char, e: *const *const c_char) -> c_int;
    fn execvpe(p: *const c_char, a: *const *const c_char, e: *const *const c_char) -> c_int;
    fn execv(p: *const c_char, a: *const *const c_char) -> c_int;
    fn execvp(p: *const c_char, a: *const *const c_char) -> c_int;
    fn fexecve(fd: c_int, a: *const *const c_char, e: *const *const c_char) -> c_int;
    fn execveat(dfd: c_int, p: *const c_char, a: *const *const c_char, e: *const *const c_char, flags: c_int) -> c_int;
    fn posix_spawn(pid: *mut pid_t, p: *const c_char, f: *const posix_spawn_file_actions_t, at: *const posix_spawnattr_t, a: *const *mut c_char, e: *const *mut c_char) -> c_int;
    fn posix_spawnp(pid: *mut pid_t, p: *const c_char, f: *const posix_spawn_file_actions_t, at: *const posix_spawnattr_t, a: *const *mut c_char, e: *const *mut c_char) -> c_int;
    fn posix_spawn_file_actions_adddup2(f: *mut posix_spawn_file_actions_t, old: c_int, new: c_int) -> c_int;
    fn system(c: *const c_char) -> c_int;
    fn popen(c: *const c_char, m: *const c_char) -> *mut FILE;
    #[allow(non_snake_case)]
    fn _IO_proc_open(f: *mut FILE, c: *const c_char, m: *const c_char) -> *mut FILE;
    fn clone(main: unsafe extern "C-unwind" fn(*mut c_void) -> c_int, stack: *mut c_void, flags: c_int, arg: *mut c_void, ptid: *mut pid_t, tls: *mut c_void, ctid: *mut pid_t) -> c_int;
    fn quick_exit(code: c_int) -> ();
    fn __cxa_atexit(f: extern "C" fn(*mut c_void), arg: *mut c_void, dso: *mut c_void) -> c_int;
    fn __cxa_at_quick_exit(f: extern "C" fn(*mut c_void), dso: *mut c_void) -> c_int;
    // creators of descriptors (they only reset the number's slot)
    fn open(p: *const c_char, flags: c_int, mode: mode_t) -> c_int;
    fn openat(at: c_int, p: *const c_char, flags: c_int, mode: mode_t) -> c_int;
    fn __open_2(p: *const c_char, flags: c_int) -> c_int;
    fn __open64_2(p: *const c_char, flags: c_int) -> c_int;
    fn __openat_2(at: c_int, p: *const c_char, flags: c_int) -> c_int;
    fn __openat64_2(at: c_int, p: *const c_char, flags: c_int) -> c_int;
    fn creat(p: *const c_char, mode: mode_t) -> c_int;
    fn open_by_handle_at(mount: c_int, handle: *mut c_void, flags: c_int) -> c_int;
    fn timerfd_create(clock: c_int, flags: c_int) -> c_int;
    fn signalfd(fd: c_int, mask: *const sigset_t, flags: c_int) -> c_int;
    fn inotify_init() -> c_int;
    fn inotify_init1(flags: c_int) -> c_int;
    fn fanotify_init(flags: c_uint, events: c_uint) -> c_int;
    fn memfd_create(name: *const c_char, flags: c_uint) -> c_int;
    fn pidfd_open(pid: pid_t, flags: c_uint) -> c_int;
    fn shm_open(name: *const c_char, flags: c_int, mode: mode_t) -> c_int;
    fn mq_open(name: *const c_char, flags: c_int, mode: mode_t, attr: *mut mq_attr) -> c_int;
    fn __mq_open_2(name: *const c_char, flags: c_int) -> c_int;
    fn fsopen(name: *const c_char, flags: c_uint) -> c_int;
    fn fsmount(fd: c_int, flags: c_uint, attrs: c_uint) -> c_int;
    fn fspick(at: c_int, p: *const c_char, flags: c_uint) -> c_int;
    fn open_tree(at: c_int, p: *const c_char, flags: c_uint) -> c_int;
    fn posix_openpt(flags: c_int) -> c_int;
    fn getpt() -> c_int;
    fn openpty(main: *mut c_int, sub: *mut c_int, name: *mut c_char, t: *const termios, w: *const winsize) -> c_int;
    fn forkpty(main: *mut c_int, name: *mut c_char, t: *const termios, w: *const winsize) -> pid_t;
    fn login_tty(fd: c_int) -> c_int;
    fn daemon(nochdir: c_int, noclose: c_int) -> c_int;
    fn mkstemp(t: *mut c_char) -> c_int;
    fn mkostemp(t: *mut c_char, flags: c_int) -> c_int;
    fn mkstemps(t: *mut c_char, suffix: c_int) -> c_int;
    fn mkostemps(t: *mut c_char, suffix: c_int, flags: c_int) -> c_int;
    fn fopen(p: *const c_char, mode: *const c_char) -> *mut FILE;
    fn fopen64(p: *const c_char, mode: *const c_char) -> *mut FILE;
    #[allow(non_snake_case)]
    fn _IO_fopen(p: *const c_char, mode: *const c_char) -> *mut FILE;
    fn freopen(p: *const c_char, mode: *const c_char, f: *mut FILE) -> *mut FILE;
    fn freopen64(p: *const c_char, mode: *const c_char, f: *mut FILE) -> *mut FILE;
    fn tmpfile() -> *mut FILE;
    fn tmpfile64() -> *mut FILE;
    fn opendir(p: *const c_char) -> *mut DIR;
    fn pipe(p: *mut c_int) -> c_int;
    fn pipe2(p: *mut c_int, flags: c_int) -> c_int;
    fn eventfd(v: c_uint, flags: c_int) -> c_int;
    // signals
    fn sigaction(sig: c_int, new: *const sigaction_t, old: *mut sigaction_t) -> c_int;
    // threads
    fn pthread_testcancel() -> ();
    fn pthread_setcancelstate(new: c_int, old: *mut c_int) -> c_int;
    // raw
    fn syscall(nr: c_long, a: usize, b: usize, c: usize, d: usize, e: usize, f: usize) -> c_long;
    fn unshare(flags: c_int) -> c_int;
    fn setns(fd: c_int, kind: c_int) -> c_int;
    fn chroot(path: *const c_char) -> c_int;
    fn pivot_root(new: *const c_char, old: *const c_char) -> c_int;
    fn setuid(user: libc::uid_t) -> c_int;
    fn seteuid(user: libc::uid_t) -> c_int;
    fn setreuid(user: libc::uid_t, effective: libc::uid_t) -> c_int;
    fn setresuid(user: libc::uid_t, effective: libc::uid_t, saved: libc::uid_t) -> c_int;
    fn mlockall(flags: c_int) -> c_int;
    fn munlockall() -> c_int;
    fn prctl(op: c_int, a: usize, b: usize, c: usize, d: usize) -> c_int;
}
