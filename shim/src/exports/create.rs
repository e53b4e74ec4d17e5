//! Whatever makes a descriptor that is not a socket. libc closes some descriptors where nobody sees it
//! (`fclose`, the resolver), so a number that comes back from here may still have an entry in the table of
//! descriptors: each creator resets it.

use crate::descriptors;
use core::ffi::{c_char, c_int, c_uint, c_void};
use engine::leave;
use host::real;
use libc::{DIR, FILE, mode_t, mq_attr, mqd_t, pid_t, sigset_t, termios, winsize};
use shmring::family::Reason;

/// Functions that return the new descriptor, or -1.
macro_rules! creators {
    ($($(#[$m:meta])* fn $name:ident = $libc:ident($($a:ident: $t:ty),* $(,)?);)*) => {$(
        $(#[$m])*
        #[unsafe(no_mangle)]
        pub unsafe extern "C-unwind" fn $name($($a: $t),*) -> c_int {
            // SAFETY: libc gets the program's own arguments.
            let fd = unsafe { real::$libc($($a),*) };
            descriptors::created(fd);
            fd
        }
    )*};
}

/// Functions that return a stream, or null.
macro_rules! streams {
    ($($(#[$m:meta])* fn $name:ident($($a:ident: $t:ty),* $(,)?);)*) => {$(
        $(#[$m])*
        #[unsafe(no_mangle)]
        pub unsafe extern "C-unwind" fn $name($($a: $t),*) -> *mut FILE {
            // SAFETY: libc gets the program's own arguments.
            let f = unsafe { real::$name($($a),*) };
            if !f.is_null() {
                // SAFETY: a stream that libc has just opened.
                descriptors::created(unsafe { libc::fileno(f) });
            }
            f
        }
    )*};
}

creators! {
    /// Variadic in C: the mode, where there is none, is a register that the kernel does not look at.
    fn open = open(p: *const c_char, flags: c_int, mode: mode_t);
    fn open64 = open(p: *const c_char, flags: c_int, mode: mode_t);
    fn __open = open(p: *const c_char, flags: c_int, mode: mode_t);
    fn __open64 = open(p: *const c_char, flags: c_int, mode: mode_t);
    fn openat = openat(at: c_int, p: *const c_char, flags: c_int, mode: mode_t);
    fn openat64 = openat(at: c_int, p: *const c_char, flags: c_int, mode: mode_t);
    fn __open_2 = __open_2(p: *const c_char, flags: c_int);
    fn __open64_2 = __open64_2(p: *const c_char, flags: c_int);
    fn __openat_2 = __openat_2(at: c_int, p: *const c_char, flags: c_int);
    fn __openat64_2 = __openat64_2(at: c_int, p: *const c_char, flags: c_int);
    fn creat = creat(p: *const c_char, mode: mode_t);
    fn creat64 = creat(p: *const c_char, mode: mode_t);
    fn open_by_handle_at = open_by_handle_at(mount: c_int, handle: *mut c_void, flags: c_int);
    fn eventfd = eventfd(v: c_uint, flags: c_int);
    fn timerfd_create = timerfd_create(clock: c_int, flags: c_int);
    fn inotify_init = inotify_init();
    fn inotify_init1 = inotify_init1(flags: c_int);
    fn fanotify_init = fanotify_init(flags: c_uint, events: c_uint);
    fn memfd_create = memfd_create(name: *const c_char, flags: c_uint);
    fn pidfd_open = pidfd_open(pid: pid_t, flags: c_uint);
    fn shm_open = shm_open(name: *const c_char, flags: c_int, mode: mode_t);
    /// Variadic in C, as `open`. Linux's message queues are descriptors (mq_overview(7)).
    fn mq_open = mq_open(name: *const c_char, flags: c_int, mode: mode_t, attr: *mut mq_attr);
    fn __mq_open_2 = __mq_open_2(name: *const c_char, flags: c_int);
    fn fsopen = fsopen(name: *const c_char, flags: c_uint);
    fn fsmount = fsmount(fd: c_int, flags: c_uint, attrs: c_uint);
    fn fspick = fspick(at: c_int, p: *const c_char, flags: c_uint);
    fn open_tree = open_tree(at: c_int, p: *const c_char, flags: c_uint);
    fn posix_openpt = posix_openpt(flags: c_int);
    fn getpt = getpt();
    fn mkstemp = mkstemp(t: *mut c_char);
    fn mkstemp64 = mkstemp(t: *mut c_char);
    fn mkostemp = mkostemp(t: *mut c_char, flags: c_int);
    fn mkostemp64 = mkostemp(t: *mut c_char, flags: c_int);
    fn mkstemps = mkstemps(t: *mut c_char, suffix: c_int);
    fn mkstemps64 = mkstemps(t: *mut c_char, suffix: c_int);
    fn mkostemps = mkostemps(t: *mut c_char, suffix: c_int, flags: c_int);
    fn mkostemps64 = mkostemps(t: *mut c_char, suffix: c_int, flags: c_int);
}

const _: () = assert!(size_of::<mqd_t>() == size_of::<c_int>());

streams! {
    fn fopen(p: *const c_char, mode: *const c_char);
    fn fopen64(p: *const c_char, mode: *const c_char);
    /// The name that old headers gave `fopen`.
    fn _IO_fopen(p: *const c_char, mode: *const c_char);
    fn tmpfile();
    fn tmpfile64();
}

/// Before `freopen`: the stream's descriptor will be another file, without a `close` that we would see.
///
/// # Safety
/// `f` must be null or a stream.
unsafe fn reopening(f: *mut FILE) {
    if !f.is_null() {
        let saved = real::errno();
        // SAFETY: a stream. A closed or memory stream answers -1, which is nobody's.
        leave::surrender(unsafe { libc::fileno(f) }, Reason::Stdio);
        real::set_errno(saved);
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn freopen(p: *const c_char, mode: *const c_char, f: *mut FILE) -> *mut FILE {
    // SAFETY: libc gets the program's own arguments; `f` is a stream if it is not null, before as after.
    unsafe {
        reopening(f);
        let f = real::freopen(p, mode, f);
        if !f.is_null() {
            descriptors::created(libc::fileno(f));
        }
        f
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn freopen64(p: *const c_char, mode: *const c_char, f: *mut FILE) -> *mut FILE {
    // SAFETY: libc gets the program's own arguments; `f` is a stream if it is not null, before as after.
    unsafe {
        reopening(f);
        let f = real::freopen64(p, mode, f);
        if !f.is_null() {
            descriptors::created(libc::fileno(f));
        }
        f
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn opendir(p: *const c_char) -> *mut DIR {
    // SAFETY: libc gets the program's own argument; `d` is a directory if it is not null.
    unsafe {
        let d = real::opendir(p);
        if !d.is_null() {
            descriptors::created(libc::dirfd(d));
        }
        d
    }
}

/// A new descriptor only if `fd` is -1; else the mask of an existing one changes.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn signalfd(fd: c_int, mask: *const sigset_t, flags: c_int) -> c_int {
    // SAFETY: libc gets the program's own arguments.
    unsafe {
        let r = real::signalfd(fd, mask, flags);
        if fd == -1 {
            descriptors::created(r);
        }
        r
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn pipe(p: *mut c_int) -> c_int {
    // SAFETY: libc gets the program's own argument, and has written both descriptors if it returned 0.
    unsafe {
        let r = real::pipe(p);
        if r == 0 {
            descriptors::created(*p);
            descriptors::created(*p.add(1));
        }
        r
    }
}

/// glibc's second name for `pipe`.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn __pipe(p: *mut c_int) -> c_int {
    // SAFETY: the same function under another name.
    unsafe { pipe(p) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn pipe2(p: *mut c_int, flags: c_int) -> c_int {
    // SAFETY: libc gets the program's own arguments, and has written both descriptors if it returned 0.
    unsafe {
        let r = real::pipe2(p, flags);
        if r == 0 {
            descriptors::created(*p);
            descriptors::created(*p.add(1));
        }
        r
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn openpty(
    main: *mut c_int,
    sub: *mut c_int,
    name: *mut c_char,
    t: *const termios,
    w: *const winsize,
) -> c_int {
    // SAFETY: libc gets the program's own arguments, and has written both descriptors if it returned 0.
    unsafe {
        let r = real::openpty(main, sub, name, t, w);
        if r == 0 {
            descriptors::created(*main);
            descriptors::created(*sub);
        }
        r
    }
}

/// Puts the terminal on descriptors 0 to 2, inside libc.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn login_tty(fd: c_int) -> c_int {
    // SAFETY: libc gets the program's own arguments.
    unsafe {
        let r = real::login_tty(fd);
        if r == 0 {
            standard_streams_replaced();
        }
        r
    }
}

/// Forks inside libc, which runs the fork handlers; the child then does what `login_tty` does.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn forkpty(
    main: *mut c_int,
    name: *mut c_char,
    t: *const termios,
    w: *const winsize,
) -> pid_t {
    // SAFETY: libc gets the program's own arguments but for `fd`, a local; the program's variable is written where libc
    // would write it.
    unsafe {
        let mut fd = -1;
        let pid = real::forkpty(&mut fd, name, t, w);
        if pid == 0 {
            standard_streams_replaced();
        } else if pid > 0 {
            descriptors::created(fd);
        }
        if pid >= 0 {
            *main = fd;
        }
        pid
    }
}

/// Forks inside libc, which runs the fork handlers; unless told not to, the child then has /dev/null
/// on descriptors 0 to 2. The parent leaves by libc's own `_exit`: for its family it has simply died.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn daemon(nochdir: c_int, noclose: c_int) -> c_int {
    // SAFETY: libc gets the program's own arguments.
    unsafe {
        let r = real::daemon(nochdir, noclose);
        if r == 0 && noclose == 0 {
            standard_streams_replaced();
        }
        r
    }
}

/// libc has put other files on descriptors 0 to 2.
fn standard_streams_replaced() {
    for fd in 0..3 {
        descriptors::created(fd);
    }
}
