//! Processes: new images, children, the end.
//!
//! Not here, because they need no hook: `fork` runs the handlers of `pthread_atfork`, also from inside
//! `forkpty` and `daemon` (glibc's posix/fork.c runs them in every process, with threads or without);
//! `exit` runs the library's destructor. `_Fork` does not run the handlers (that is its purpose), `clone`
//! neither, and `_exit` and `quick_exit` run no destructor. `execl` and its like, and `vfork`, are in
//! the module `trampoline`.

use crate::{descriptors, images, mlock, processes, users};
use core::ffi::{c_char, c_int, c_ulong, c_void};
use core::ptr::null;
use engine::{custody, family, mail};
use host::given::Environment;
use host::real;
use host::tls::tls;
use libc::{FILE, pid_t, posix_spawn_file_actions_t, posix_spawnattr_t, uid_t};
use shmring::lnx;

type Strings = *const *const c_char;
type MutStrings = *const *mut c_char;
/// What a `clone` child runs.
type Main = unsafe extern "C-unwind" fn(*mut c_void) -> c_int;

/// What the child of a fork-like `clone` runs in the program's place, in its own copy of our stack.
struct Start {
    main: Main,
    arg: *mut c_void,
}

/// The same of one that shares its parent's descriptors.
unsafe extern "C-unwind" fn sharing_child(start: *mut c_void) -> c_int {
    tls().after_fork_child();
    // SAFETY: as for `child`.
    unsafe { run(start) }
}

unsafe extern "C-unwind" fn child(start: *mut c_void) -> c_int {
    processes::fork_child();
    // SAFETY: handed on.
    unsafe { run(start) }
}

unsafe fn run(start: *mut c_void) -> c_int {
    // SAFETY: `clone` below passes a `Start` that outlives the call, and of which this process has a copy.
    let s = unsafe { &*start.cast::<Start>() };
    // SAFETY: the program's own function and argument.
    unsafe { (s.main)(s.arg) }
}

/// Runs `exec` between what must be done before it and, if it fails, after it. `path`: the file to execute, null if nobody
/// knows. `missing`: it fails because there is none.
unsafe fn exec(path: *const c_char, missing: Option<c_int>, env: Environment, exec: impl FnOnce() -> c_int) -> c_int {
    if let Some(e) = missing {
        real::set_errno(e);
        return -1;
    }
    // SAFETY: the caller's obligation.
    let passed = unsafe { processes::before_exec(images::readable(path), env) };
    let r = exec();
    passed.take_back();
    custody::exec_failed();
    r
}

/// What `execvp` executes, if it does not search for it.
unsafe fn unsearched(file: *const c_char) -> *const c_char {
    // SAFETY: what is not null is a string of the program's, which is not changed meanwhile.
    match unsafe { images::readable(file) } {
        Some(s) if s.to_bytes().contains(&b'/') => file,
        _ => null(),
    }
}

/// [`images::missing`] where an exec needs to be prepared.
unsafe fn missing(at: c_int, path: *const c_char) -> Option<c_int> {
    // SAFETY: the caller's obligation.
    if family::exists() { unsafe { images::missing(at, path) } } else { None }
}

/// [`images::missing_in_path`] where an exec needs to be prepared.
unsafe fn missing_in_path(file: *const c_char) -> Option<c_int> {
    // SAFETY: the caller's obligation.
    if family::exists() { unsafe { images::missing_in_path(file) } } else { None }
}

#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn execve(p: *const c_char, a: Strings, e: Strings) -> c_int {
    // SAFETY: path, arguments and environment are the program's, as libc will read them.
    unsafe { exec(p, missing(libc::AT_FDCWD, p), Environment::Array(e), || real::execve(p, a, e)) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn execv(p: *const c_char, a: Strings) -> c_int {
    // SAFETY: path, arguments and environment are the program's, as libc will read them.
    unsafe { exec(p, missing(libc::AT_FDCWD, p), Environment::Own, || real::execv(p, a)) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn execvp(p: *const c_char, a: Strings) -> c_int {
    // SAFETY: path, arguments and environment are the program's, as libc will read them.
    unsafe { exec(unsearched(p), missing_in_path(p), Environment::Own, || real::execvp(p, a)) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn execvpe(p: *const c_char, a: Strings, e: Strings) -> c_int {
    // SAFETY: path, arguments and environment are the program's, as libc will read them.
    unsafe { exec(unsearched(p), missing_in_path(p), Environment::Array(e), || real::execvpe(p, a, e)) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn fexecve(fd: c_int, a: Strings, e: Strings) -> c_int {
    // SAFETY: path, arguments and environment are the program's, as libc will read them.
    unsafe { exec(null(), None, Environment::Array(e), || real::fexecve(fd, a, e)) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn execveat(at: c_int, p: *const c_char, a: Strings, e: Strings, flags: c_int) -> c_int {
    // SAFETY: path, arguments and environment are the program's, as libc will read them.
    unsafe {
        // With flags the path may mean another file (AT_EMPTY_PATH, AT_SYMLINK_NOFOLLOW): only the kernel can say whether it is
        // missing.
        let missing = if flags == 0 { missing(at, p) } else { None };
        exec(null(), missing, Environment::Array(e), || real::execveat(at, p, a, e, flags))
    }
}

/// Runs `spawn`, which makes a child that becomes another program, between what must be done before it and after it.
unsafe fn spawning<T>(env: Environment, spawn: impl FnOnce() -> T) -> T {
    // SAFETY: the caller's obligation.
    let passed = unsafe { processes::before_spawn(env) };
    let r = spawn();
    passed.take_back();
    r
}

#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn posix_spawn(
    pid: *mut pid_t,
    p: *const c_char,
    f: *const posix_spawn_file_actions_t,
    at: *const posix_spawnattr_t,
    a: MutStrings,
    e: MutStrings,
) -> c_int {
    // SAFETY: libc gets the program's own arguments, also where a child runs before this returns.
    unsafe { spawning(Environment::Array(e.cast()), || real::posix_spawn(pid, p, f, at, a, e)) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn posix_spawnp(
    pid: *mut pid_t,
    p: *const c_char,
    f: *const posix_spawn_file_actions_t,
    at: *const posix_spawnattr_t,
    a: MutStrings,
    e: MutStrings,
) -> c_int {
    // SAFETY: libc gets the program's own arguments, also where a child runs before this returns.
    unsafe { spawning(Environment::Array(e.cast()), || real::posix_spawnp(pid, p, f, at, a, e)) }
}

/// The child will hold `old` under another number, also if `old` itself closes on exec.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn posix_spawn_file_actions_adddup2(
    f: *mut posix_spawn_file_actions_t,
    old: c_int,
    new: c_int,
) -> c_int {
    // SAFETY: libc gets the program's own arguments.
    unsafe {
        descriptors::handing_on(old);
        real::posix_spawn_file_actions_adddup2(f, old, new)
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn system(command: *const c_char) -> c_int {
    // SAFETY: libc gets the program's own arguments, also where a child runs before this returns.
    unsafe {
        // A null pointer asks whether there is a shell.
        if command.is_null() { real::system(command) } else { spawning(Environment::Own, || real::system(command)) }
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn popen(command: *const c_char, mode: *const c_char) -> *mut FILE {
    // SAFETY: libc gets the program's own arguments; `f` is a stream if it is not null.
    unsafe {
        let f = spawning(Environment::Own, || real::popen(command, mode));
        if !f.is_null() {
            descriptors::created(libc::fileno(f));
        }
        f
    }
}

/// The name that old headers gave `popen`.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn _IO_popen(command: *const c_char, mode: *const c_char) -> *mut FILE {
    // SAFETY: the same function under another name.
    unsafe { popen(command, mode) }
}

/// `popen` into a stream that exists.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn _IO_proc_open(f: *mut FILE, command: *const c_char, mode: *const c_char) -> *mut FILE {
    // SAFETY: libc gets the program's own arguments, also where a child runs before this returns.
    unsafe { spawning(Environment::Own, || real::_IO_proc_open(f, command, mode)) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn _Fork() -> pid_t {
    // SAFETY: no memory is involved but the child's copy of it.
    unsafe {
        processes::fork_prepare();
        let pid = real::_Fork();
        if pid == 0 {
            processes::fork_child()
        } else {
            processes::fork_parent()
        }
        pid
    }
}

/// Variadic in C; the last three travel where fixed arguments do. Without `CLONE_VM` it is a fork. With
/// it and `CLONE_VFORK` it is `vfork` on another stack. With it and `CLONE_FILES` it is a thread or as good
/// as one.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn clone(
    main: Main,
    stack: *mut c_void,
    flags: c_int,
    arg: *mut c_void,
    ptid: *mut pid_t,
    tls: *mut c_void,
    ctid: *mut pid_t,
) -> c_int {
    // SAFETY: libc gets the program's own arguments; where it gets `start` instead, this frame waits for the call, and the
    // child has a copy of it.
    unsafe {
        if processes::divides(flags as u64) {
            processes::divide();
        }
        if flags & (libc::CLONE_VM | libc::CLONE_FILES) == libc::CLONE_FILES {
            // What it closes, its parent loses: it has no part in anything, and closes nothing of ours.
            let start = Start { main, arg };
            return real::clone(sharing_child, stack, flags, (&raw const start).cast_mut().cast(), ptid, tls, ctid);
        }
        if flags & libc::CLONE_VM == 0 {
            let start = Start { main, arg };
            processes::fork_prepare();
            let r = real::clone(child, stack, flags, (&raw const start).cast_mut().cast(), ptid, tls, ctid);
            processes::fork_parent();
            return r;
        }
        if flags & libc::CLONE_VFORK != 0 {
            processes::before_vfork();
            let r = real::clone(main, stack, flags, arg, ptid, tls, ctid);
            processes::after_vfork_parent();
            return r;
        }
        real::clone(main, stack, flags, arg, ptid, tls, ctid)
    }
}

/// glibc's second name for `clone`.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn __clone(
    main: Main,
    stack: *mut c_void,
    flags: c_int,
    arg: *mut c_void,
    ptid: *mut pid_t,
    tls: *mut c_void,
    ctid: *mut pid_t,
) -> c_int {
    // SAFETY: the same function under another name.
    unsafe { clone(main, stack, flags, arg, ptid, tls, ctid) }
}

/// A thread that unshares its descriptors has a table of its own.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn unshare(flags: c_int) -> c_int {
    if flags & libc::CLONE_FILES != 0 {
        processes::unsharing();
    }
    // SAFETY: libc gets the program's own argument.
    unsafe { real::unshare(flags) }
}

/// Tells the rendezvous of a call that may have changed the root directory.
fn root_changed(r: c_int) -> c_int {
    if r == 0 {
        mail::shut_in();
    }
    r
}

#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn chroot(path: *const c_char) -> c_int {
    // SAFETY: libc gets the program's own argument.
    root_changed(unsafe { real::chroot(path) })
}

#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn pivot_root(new: *const c_char, old: *const c_char) -> c_int {
    // SAFETY: libc gets the program's own arguments.
    root_changed(unsafe { real::pivot_root(new, old) })
}

/// Another mount namespace has another root (setns(2)). That of a connection's socket is looked at when it is attached.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn setns(fd: c_int, kind: c_int) -> c_int {
    // SAFETY: libc gets the program's own arguments.
    let r = unsafe { real::setns(fd, kind) };
    if kind == 0 || kind & libc::CLONE_NEWNS != 0 { root_changed(r) } else { r }
}

#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn _exit(code: c_int) -> ! {
    processes::leaving();
    lnx::exit(code)
}

#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn _Exit(code: c_int) -> ! {
    processes::leaving();
    lnx::exit(code)
}

/// The handlers of `at_quick_exit` may still use connections: one of ours is among them, behind the program's.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn quick_exit(code: c_int) -> ! {
    // SAFETY: no memory is involved; libc's function does not return.
    unsafe {
        processes::leaving_quickly();
        real::quick_exit(code);
        lnx::exit(code)
    }
}

/// See [`users::watch`].
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn setuid(user: uid_t) -> c_int {
    // SAFETY: libc gets the program's own argument.
    users::watch(|| unsafe { real::setuid(user) })
}

/// See [`users::watch`].
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn seteuid(user: uid_t) -> c_int {
    // SAFETY: libc gets the program's own argument.
    users::watch(|| unsafe { real::seteuid(user) })
}

/// See [`users::watch`].
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn setreuid(user: uid_t, effective: uid_t) -> c_int {
    // SAFETY: libc gets the program's own arguments.
    users::watch(|| unsafe { real::setreuid(user, effective) })
}

/// See [`users::watch`].
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn setresuid(user: uid_t, effective: uid_t, saved: uid_t) -> c_int {
    // SAFETY: libc gets the program's own arguments.
    users::watch(|| unsafe { real::setresuid(user, effective, saved) })
}

/// See [`mlock::mlockall`].
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn mlockall(flags: c_int) -> c_int {
    // SAFETY: as the program's.
    unsafe { mlock::mlockall(flags) }
}
/// See [`mlock::munlockall`].
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn munlockall() -> c_int {
    // SAFETY: as the program's.
    unsafe { mlock::munlockall() }
}

const PR_SET_SYSCALL_USER_DISPATCH: c_int = 59;

/// Variadic in C; five words in registers. A system-call filter may forbid what a connection needs; without an
/// address it is a question whether the kernel knows filters (EFAULT).
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn prctl(op: c_int, a: c_ulong, b: c_ulong, c: c_ulong, d: c_ulong) -> c_int {
    // SAFETY: the kernel gets the program's own arguments.
    unsafe {
        let filters = match op {
            libc::PR_SET_SECCOMP => a as u32 != libc::SECCOMP_MODE_FILTER || b != 0,
            // System calls from other code than the program names become SIGSYS
            // (Documentation/admin-guide/syscall-user-dispatch.rst): ours, but not libc's.
            PR_SET_SYSCALL_USER_DISPATCH => a != 0,
            _ => false,
        };
        if filters {
            processes::seccomp();
        }
        real::prctl(op, a as usize, b as usize, c as usize, d as usize)
    }
}
