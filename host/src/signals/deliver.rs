//! What happens between the kernel's entry into a thunk and the program's handler.
//!
//! All of this runs in a signal handler, on whatever stack and in whatever state the program is: raw system
//! calls only, except for libc's `sigaction`, which is async-signal-safe; `errno` is left alone.

use core::ffi::{c_int, c_void};
use core::mem::MaybeUninit;
use core::sync::atomic::Ordering::{Relaxed, SeqCst};
use libc::{sigaction as sigaction_t, siginfo_t, ucontext_t};
use shmring::lnx;

use super::mask::{ALL, set_mask};
use super::{ARMED, blocking, is_fault, table};
use crate::tls::{DEFERRED, Info, Tls, tls};
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
    if t.critical.get() != 0 && !raised_here {
        // SAFETY: as above.
        unsafe { defer(t, sig, info, &mut *ctx, thunk, action) };
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

/// Sends `sig` to this very thread again.
///
/// # Safety
/// `info` is valid, and nobody else's.
unsafe fn requeue(sig: c_int, info: *mut siginfo_t) {
    // SAFETY: the caller's obligation.
    let info = unsafe { &mut *info };
    if lnx::queue_signal(sig, info) < 0 {
        // EAGAIN: no room for the siginfo of a real-time signal (RLIMIT_SIGPENDING). One that says `kill` is
        // delivered without room (kernel/signal.c, __send_signal_locked).
        info.si_code = libc::SI_USER;
        lnx::queue_signal(sig, info);
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

/// Signals that are blocked once one was put off: all but those that an instruction can raise, since the kernel kills for
/// a fault whose signal is blocked, and the two that it never blocks.
const LATER: u64 = ALL
    & !(bit(libc::SIGSEGV)
        | bit(libc::SIGBUS)
        | bit(libc::SIGFPE)
        | bit(libc::SIGILL)
        | bit(libc::SIGTRAP)
        | bit(libc::SIGSYS)
        | bit(libc::SIGKILL)
        | bit(libc::SIGSTOP));
/// How many of the others there are.
const SYNCHRONOUS: u32 = 6;
/// The first signal that is queued: of those before it one at a time is pending (signal(7)).
const FIRST_QUEUED: c_int = 34;

const fn bit(sig: c_int) -> u64 {
    1 << (sig - 1)
}

/// Puts the signal off until the critical section ends. What comes after it is the kernel's to keep until then: it is
/// blocked in what was interrupted. So few are put off that there is always room: several at once only if the kernel
/// delivers several at once, each into the handler of the one before.
///
/// # Safety
/// Called from the handler of `sig` with the kernel's siginfo and context.
unsafe fn defer(t: &Tls, sig: c_int, info: *mut siginfo_t, ctx: &mut ucontext_t, thunk: usize, a: table::Action) {
    let d = &t.deferred;
    // SAFETY: the kernel has written the first word of the set; the rest of libc's type is not there.
    let mask = unsafe { &mut *(&raw mut ctx.uc_sigmask).cast::<u64>() };
    if *mask & LATER != LATER {
        // The last of several at once belongs to the section itself.
        d.mask.store(*mask, Relaxed);
        d.blocked.set(1);
        *mask |= LATER;
    }
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
    if sig < FIRST_QUEUED && d.set.fetch_or(bit(sig), Relaxed) & bit(sig) != 0 {
        // One is pending already.
        return;
    }
    let room = if synchronous(sig) { DEFERRED as u32 } else { DEFERRED as u32 - SYNCHRONOUS };
    match d.count.fetch_update(Relaxed, Relaxed, |n| (n < room).then_some(n + 1)) {
        // SAFETY: the slot is ours alone since the addition: a handler that interrupts this one takes the next.
        Ok(slot) => unsafe { (*d.info.get())[slot as usize].as_mut_ptr().copy_from_nonoverlapping(info.cast(), 1) },
        Err(_) => {
            // It waits in the kernel, which may have left it unblocked for its handler (SA_NODEFER).
            set_mask(ALL);
            // SAFETY: the caller's obligation.
            unsafe { requeue(sig, info) };
        }
    }
}

/// The siginfo of which this much was kept.
fn whole(kept: Info) -> siginfo_t {
    // SAFETY: all zero is a valid siginfo.
    let mut info: siginfo_t = unsafe { core::mem::zeroed() };
    // SAFETY: it is longer than what was kept of it, and aligned alike.
    unsafe { (&raw mut info).cast::<Info>().write(kept) };
    info
}

/// A signal of this thread's own that only marks a place in the queue. No kernel sends such a code.
fn marker(sig: c_int) -> siginfo_t {
    // SAFETY: all zero is a valid siginfo.
    let mut info: siginfo_t = unsafe { core::mem::zeroed() };
    (info.si_signo, info.si_code) = (sig, MARKER);
    info
}

const MARKER: c_int = c_int::MIN + 0x63_75_6c;

/// What waits in the kernel of one signal that it queues, up to the marker, goes to the end of the queue, as it is.
fn move_behind(sig: c_int) {
    let mut info = MaybeUninit::uninit();
    while lnx::take_signal(bit(sig), &mut info) {
        // SAFETY: the call has filled it.
        if unsafe { info.assume_init_ref() }.si_code == MARKER {
            return;
        }
        // SAFETY: as above.
        unsafe { requeue(sig, info.as_mut_ptr()) };
    }
}

/// In the child of a fork that was made inside a section: nothing is put off here, nor blocked for it.
pub(super) fn forget(t: &Tls) {
    t.deferred.set.store(0, Relaxed);
    t.deferred.count.store(0, Relaxed);
    if t.deferred.blocked.get() != 0 {
        t.deferred.blocked.set(0);
        set_mask(t.deferred.mask.load(Relaxed));
    }
}

/// Lets the signals arrive that were put off. Their handlers run at the end, and may not return.
#[cold]
#[inline(never)]
pub(super) fn redeliver(t: &Tls) {
    // Blocked until all are queued: a handler that jumps out must not take the others with it, and a handler that
    // runs before must not queue the same ones.
    let old = set_mask(ALL);
    let d = &t.deferred;
    let n = (d.count.load(Relaxed) as usize).min(DEFERRED);
    // SAFETY: slots below the count are filled once the handlers that took them have returned, and all handlers that
    // interrupted this thread have.
    let put_off = |i: usize| whole(unsafe { (*d.info.get())[i].assume_init() });
    // What the kernel has queued since of a signal is to come behind the one that was put off. Up to the marker it is taken out of the
    // queue, and put behind.
    let mut marked = 0u64;
    for i in 0..n {
        let sig = put_off(i).si_signo;
        // Without room for a marker the order is lost, and no signal.
        if sig >= FIRST_QUEUED && marked & bit(sig) == 0 && lnx::queue_signal(sig, &marker(sig)) >= 0 {
            marked |= bit(sig);
        }
    }
    for i in 0..n {
        let mut info = put_off(i);
        // SAFETY: it is ours.
        unsafe { requeue(info.si_signo, &mut info) };
    }
    (FIRST_QUEUED..=64).filter(|sig| marked & bit(*sig) != 0).for_each(move_behind);
    let mask = if d.blocked.get() != 0 { d.mask.load(Relaxed) } else { old };
    d.blocked.set(0);
    d.set.store(0, Relaxed);
    d.count.store(0, Relaxed);
    set_mask(mask);
}
