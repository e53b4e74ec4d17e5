//! What happens between the kernel's entry into a thunk and the program's handler.
//!
//! All of this runs in a signal handler, on whatever stack and in whatever state the program is: raw system
//! calls only, except for libc's `sigaction`, which is async-signal-safe; `errno` is left alone.

use core::ffi::{c_int, c_void};
use core::sync::atomic::Ordering::{Relaxed, SeqCst};
use libc::{sigaction as sigaction_t, siginfo_t, ucontext_t};
use shmring::sys::{getpid, gettid};
use shmring::syscall;

use super::mask::{ALL, set_mask};
use super::{ARMED, blocking, is_fault, table};
use crate::tls::{DEFERRED, Tls, tls};
use crate::{real, usercopy};

/// Called by every thunk. Returns the program's handler to jump to, or 0 to return from the signal.
///
/// # Safety
/// Called by a thunk with what the kernel gave to it.
pub(super) unsafe extern "C" fn deliver(sig: c_int, info: *mut siginfo_t, ctx: *mut c_void, thunk: usize) -> usize {
    let ctx = ctx.cast::<ucontext_t>();
    // SAFETY: the kernel has written both (our thunks are installed with SA_SIGINFO).
    let (code, rip) = unsafe { ((*info).si_code, (*ctx).uc_mcontext.gregs[libc::REG_RIP as usize] as usize) };
    // A positive code comes from the kernel: an instruction of this thread has raised the signal.
    let raised_here = code > 0 && synchronous(sig);
    if raised_here
        && is_fault(sig)
        && let Some(resume) = usercopy::fix_up(rip)
    {
        // SAFETY: as above; the copy routine goes on at its error exit.
        unsafe { (*ctx).uc_mcontext.gregs[libc::REG_RIP as usize] = resume as i64 };
        return 0;
    }
    let Some(action) = table::action(thunk) else { return 0 };
    if action.handler == libc::SIG_DFL {
        // SAFETY: as above.
        unsafe { default_action(sig, info) };
        return 0;
    }
    let t = tls();
    // SAFETY: as above.
    if t.critical.get() != 0 && !raised_here && unsafe { defer(t, sig, info, thunk, action) } {
        return 0;
    }
    t.runs.add(1);
    if action.flags & libc::SA_RESTART == 0 {
        t.runs_norestart.add(1);
    }
    // SAFETY: as above.
    blocking::end_wait(t, unsafe { &mut *ctx });
    if action.flags & libc::SA_RESETHAND != 0 && is_fault(sig) && ARMED.load(SeqCst) {
        reset(sig, action);
    }
    action.handler
}

/// Signals that the CPU or a system-call filter raises at an instruction.
fn synchronous(sig: c_int) -> bool {
    matches!(sig, libc::SIGSEGV | libc::SIGBUS | libc::SIGFPE | libc::SIGILL | libc::SIGTRAP | libc::SIGSYS)
}

/// The program has no handler for this fault: end as it would have ended.
///
/// # Safety
/// Called from a handler of `sig` that blocks `sig`, with the kernel's siginfo.
unsafe fn default_action(sig: c_int, info: *mut siginfo_t) {
    // SAFETY: all zero is SIG_DFL with no flags.
    let default: sigaction_t = unsafe { core::mem::zeroed() };
    // SAFETY: valid arguments. The process is about to die by `sig`.
    unsafe { real::sigaction(sig, &default, core::ptr::null_mut()) };
    // Queued to ourselves with the same siginfo: it becomes deliverable, and kills, when this handler returns,
    // before the interrupted instruction runs again. That also serves a signal that no instruction has raised.
    // SAFETY: `info` is the kernel's.
    unsafe { requeue(sig, info) };
}

/// Sends `sig` to this very thread with `info` as it is. The kernel lets a thread forge its own siginfo
/// (rt_tgsigqueueinfo(2)).
///
/// # Safety
/// `info` is valid.
unsafe fn requeue(sig: c_int, info: *mut siginfo_t) {
    let (pid, tid) = (getpid(), gettid());
    // SAFETY: the caller's obligation.
    let r = unsafe { syscall!(libc::SYS_rt_tgsigqueueinfo, pid, tid, sig, info) };
    if r < 0 {
        // EAGAIN: no room for the siginfo of a real-time signal (RLIMIT_SIGPENDING). One that says `kill` is
        // delivered without room (kernel/signal.c, __send_signal_locked).
        // SAFETY: as above.
        unsafe {
            (*info).si_code = libc::SI_USER;
            syscall!(libc::SYS_rt_tgsigqueueinfo, pid, tid, sig, info);
        }
    }
}

/// What SA_RESETHAND does in the kernel: `SIG_DFL`, flags and mask unchanged.
fn reset(sig: c_int, a: table::Action) {
    let errno = real::errno();
    let mut k = with_mask(a);
    k.sa_sigaction = libc::SIG_DFL;
    // SAFETY: a valid action.
    unsafe { super::sigaction(sig, &k, core::ptr::null_mut()) };
    real::set_errno(errno);
}

fn with_mask(a: table::Action) -> sigaction_t {
    // SAFETY: all zero is a valid `sigaction`.
    let mut k: sigaction_t = unsafe { core::mem::zeroed() };
    k.sa_sigaction = a.handler;
    k.sa_flags = a.flags;
    // SAFETY: `sigset_t` is an array of at least one 64-bit word.
    unsafe { *(&raw mut k.sa_mask).cast::<u64>() = a.mask };
    k
}

/// Puts the signal off until the critical section ends. False if there is no room.
///
/// # Safety
/// Called from the handler of `sig` with the kernel's siginfo.
unsafe fn defer(t: &Tls, sig: c_int, info: *const siginfo_t, thunk: usize, a: table::Action) -> bool {
    let Ok(slot) = t.deferred.count.fetch_update(Relaxed, Relaxed, |n| (n < DEFERRED as u32).then_some(n + 1)) else {
        return false;
    };
    // SAFETY: the slot is ours alone since the addition: a handler that interrupts this one takes the next.
    unsafe { (*t.deferred.info.get())[slot as usize].as_mut_ptr().copy_from_nonoverlapping(info, 1) };
    if a.flags & libc::SA_RESETHAND != 0 && !(is_fault(sig) && ARMED.load(SeqCst)) {
        // The kernel has reset the disposition for this delivery, which did not take place.
        let errno = real::errno();
        let mut k = with_mask(a);
        k.sa_sigaction = thunk;
        k.sa_flags |= libc::SA_SIGINFO;
        // SAFETY: what was installed a moment ago.
        unsafe { real::sigaction(sig, &k, core::ptr::null_mut()) };
        real::set_errno(errno);
    }
    true
}

/// Lets the signals arrive that were put off. Their handlers run at the end, and may not return.
#[cold]
#[inline(never)]
pub(super) fn redeliver(t: &Tls) {
    // Blocked until all are queued: a handler that jumps out must not take the others with it, and a handler that
    // runs before must not queue the same ones.
    let old = set_mask(ALL);
    let n = t.deferred.count.load(Relaxed) as usize;
    for i in 0..n {
        // SAFETY: slots below the count are filled once the handlers that took them have returned, and all
        // handlers that interrupted this thread have.
        unsafe {
            let info = (*t.deferred.info.get())[i].as_mut_ptr();
            requeue((*info).si_signo, info);
        }
    }
    t.deferred.count.store(0, Relaxed);
    set_mask(old);
}
