//! Signals: program handlers wrapped, put off inside critical sections, counted for `EINTR`.
//!
//! A handler that a program installs is entered through a thunk of ours ([`thunk`], [`table`]), which counts the run and
//! then *jumps* to the program's function with the registers and the stack as the kernel made them: the
//! function returns straight to the kernel's restorer, may `longjmp` or never return, and a backtrace shows
//! what it would show without us. Everything else (mask, `SA_ONSTACK`, `SA_NODEFER`, `SA_RESETHAND`,
//! restarting) stays with the kernel.
//!
//! Three things need the wrapping:
//! - A call that we block in another call than the program asked for must return `EINTR` exactly when the
//!   kernel's would have: [`runs`], [`interrupted`], and the waits of [`blocking`], which lose no signal.
//! - A handler must not run while its thread holds a direction of a connection, since it may use that
//!   connection or never come back: [`critical_enter`] puts it off for the few hundred nanoseconds.
//! - A fault in [`usercopy`] is an `EFAULT` ([`arm_faults`]).
// Unsafe here: it works on what the kernel hands to signal handlers, and on the program's dispositions.
#![allow(unsafe_code)]

mod blocking;
mod deliver;
mod mask;
mod table;
mod thunk;

use core::ffi::c_int;
use core::sync::atomic::{AtomicBool, Ordering::Relaxed, Ordering::SeqCst, compiler_fence};
use libc::sigaction as sigaction_t;

use crate::real;
use crate::tls::tls;

pub use blocking::{epoll_pwait, futex, ppoll};

/// Set by [`arm_faults`]: faults in `usercopy` are to be fixed up from now on.
static ARMED: AtomicBool = AtomicBool::new(false);
/// A program handler has been installed in this process at some time.
static HANDLERS: AtomicBool = AtomicBool::new(false);

/// How many program handlers have run on a thread. Counters wrap.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Runs {
    /// All handlers.
    pub total: u32,
    /// Handlers installed without `SA_RESTART`.
    pub norestart: u32,
}

/// Handlers run on this thread so far. Taken at the start of a call that may block.
#[inline(always)]
pub fn runs() -> Runs {
    let t = tls();
    Runs { total: t.runs.get(), norestart: t.runs_norestart.get() }
}

/// Whether a blocked call that began at `since` must return `EINTR` now. Of the calls in signal(7), those
/// that `SA_RESTART` restarts are `restartable`; a socket with `SO_RCVTIMEO` or `SO_SNDTIMEO` makes its calls
/// not restartable.
#[inline(always)]
pub fn interrupted(since: Runs, restartable: bool) -> bool {
    let now = runs();
    if restartable { now.norestart != since.norestart } else { now.total != since.total }
}

/// Begins a section in which no program handler runs on this thread: a signal that arrives is put off until
/// the matching [`critical_leave`], and the kernel keeps those that come after it. Nests. No system call that blocks may be made inside.
#[inline(always)]
pub fn critical_enter() {
    let t = tls();
    t.critical.set(t.critical.get() + 1);
    compiler_fence(SeqCst);
}

/// Ends a critical section. Handlers of signals that were put off run inside this call, and may not return.
#[inline(always)]
pub fn critical_leave() {
    compiler_fence(SeqCst);
    let t = tls();
    let depth = t.critical.get() - 1;
    t.critical.set(depth);
    compiler_fence(SeqCst);
    if depth == 0 && t.deferred.count.load(Relaxed) != 0 {
        deliver::redeliver(t);
    }
}

/// Resolves what handlers need, so that no handler has to call the dynamic linker. From the constructor.
pub fn init() {
    // SAFETY: a query without buffers, and waits that return at once: zero descriptors for no time, and
    // epoll calls on no descriptor (EBADF). No signal mask is given.
    unsafe {
        let errno = real::errno();
        let zero = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        real::sigaction(libc::SIGUSR1, core::ptr::null(), core::ptr::null_mut());
        real::ppoll(core::ptr::null_mut(), 0, &zero, core::ptr::null());
        real::pthread_testcancel();
        real::epoll_pwait(-1, core::ptr::null_mut(), 1, 0, core::ptr::null());
        real::epoll_pwait2(-1, core::ptr::null_mut(), 1, &zero, core::ptr::null());
        real::set_errno(errno);
    }
}

/// In the child of a fork: the thread has a new id, and signals put off belong to the parent.
/// Dispositions, the table of handlers and armed faults are inherited as they are.
pub fn after_fork_child() {
    tls().after_fork_child();
    deliver::forget(tls());
}

/// Signals that a bad memory access raises.
fn is_fault(sig: c_int) -> bool {
    sig == libc::SIGSEGV || sig == libc::SIGBUS
}

/// `sigaction(2)`: installs a program's handler behind a thunk, and answers queries with exactly what the
/// program installed.
///
/// Async-signal-safe, thread-safe, safe in a child of vfork: the kernel's own table is the only one that
/// changes, in the one system call that the program asked for.
///
/// # Safety
/// As libc's.
pub unsafe fn sigaction(sig: c_int, new: *const sigaction_t, old: *mut sigaction_t) -> c_int {
    // libc refuses its own two signals, and numbers that do not exist, before it looks at the pointers.
    if !(1..=64).contains(&sig) || sig == 32 || sig == 33 {
        // SAFETY: the caller's obligation.
        return unsafe { real::sigaction(sig, new, old) };
    }
    if new.is_null() {
        // SAFETY: the caller's obligation.
        let r = unsafe { real::sigaction(sig, new, old) };
        if r == 0 && !old.is_null() {
            // SAFETY: libc has just written there.
            table::to_program(sig, unsafe { &mut *old });
        }
        return r;
    }
    // A copy: `new` and `old` may be the same object.
    // SAFETY: the caller's obligation; libc reads it just so.
    let action = unsafe { *new };
    let mut first = true;
    loop {
        let armed = ARMED.load(SeqCst);
        let mut kernel = action;
        table::to_kernel(sig, &mut kernel, armed);
        // SAFETY: `kernel` is a local; `old` is the caller's obligation, and null the second time, when it
        // holds the answer already.
        let r = unsafe { real::sigaction(sig, &kernel, if first { old } else { core::ptr::null_mut() }) };
        if r != 0 {
            return r;
        }
        if first && !old.is_null() {
            // SAFETY: libc has just written there.
            table::to_program(sig, unsafe { &mut *old });
        }
        if !is_fault(sig) || ARMED.load(SeqCst) == armed {
            return 0;
        }
        first = false;
    }
}

/// From now on a fault in `usercopy` is an error of the copy, whatever the program's disposition of `SIGSEGV`
/// and `SIGBUS` is; all other faults end as they would without us. Idempotent; called before the first copy
/// from or to a program's buffer.
///
/// Not covered: a thread that *blocks* or a process that *ignores* these signals. The kernel kills for a fault
/// then, without asking any handler.
pub fn arm_faults() {
    if !ARMED.load(SeqCst) {
        arm();
    }
}

#[cold]
fn arm() {
    // The child of vfork shares the mark with its parent, but not the dispositions.
    if tls().vfork.get() != 0 || ARMED.swap(true, SeqCst) {
        return;
    }
    let errno = real::errno();
    for sig in [libc::SIGSEGV, libc::SIGBUS] {
        // SAFETY: all zero is a valid `sigaction`.
        let mut current: sigaction_t = unsafe { core::mem::zeroed() };
        // SAFETY: a query into a local.
        unsafe { sigaction(sig, core::ptr::null(), &mut current) };
        loop {
            // SAFETY: all zero is a valid `sigaction`.
            let mut before: sigaction_t = unsafe { core::mem::zeroed() };
            // SAFETY: installs what is installed already, in the form that knows about faults.
            unsafe { sigaction(sig, &current, &mut before) };
            // Another thread may have installed something between the two calls: it wins.
            if before.sa_sigaction == current.sa_sigaction && before.sa_flags == current.sa_flags {
                break;
            }
            current = before;
        }
    }
    real::set_errno(errno);
}
