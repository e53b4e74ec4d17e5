//! Which program handler stands behind which thunk.
//!
//! The kernel keeps one word per signal that tells handlers apart: the handler's address. So each distinct
//! handler of the program gets its own entry point (a *thunk*) of ours, and an immutable record that belongs to
//! it. Swapping dispositions is then the kernel's own atomic swap: no lock, no second table that could disagree
//! with the kernel's, nothing to repair in a child of fork or vfork, and a thunk already entered when the
//! program installs something else still knows whom it was called for.

use core::ffi::c_int;
use core::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering::*};
use libc::sigaction as sigaction_t;
use shmring::lnx;

use super::mask::mask_bits;
use super::{HANDLERS, is_fault};

/// Thunks. Programs install a handful of distinct handlers; beyond this many, those that no signal uses any
/// more are used again.
pub(super) const THUNKS: usize = 512;
/// Distance of two thunks in bytes.
pub(super) const STRIDE: usize = 16;
/// Flags that may differ between what the program asked for and what the kernel has.
const ALTERED: c_int = libc::SA_SIGINFO | libc::SA_RESETHAND | libc::SA_NODEFER | libc::SA_ONSTACK | libc::SA_RESTART;

unsafe extern "C" {
    /// The first thunk (`thunk.rs`).
    fn culvert_thunks();
}

/// [`Record::state`].
const EMPTY: u32 = 0;
/// Being filled by somebody who may be the frame that we have interrupted: never waited for.
const FILLING: u32 = 1;
const FILLED: u32 = 2;

/// A disposition as the program gave it. Does not change while any signal uses its thunk.
struct Record {
    state: AtomicU32,
    flags: AtomicU32,
    handler: AtomicUsize,
    /// `sa_mask`, kept only for what has to be installed again by us.
    mask: AtomicU64,
}

/// What a thunk stands for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Action {
    /// The program's function, or `SIG_DFL` for the thunk that only watches for faults.
    pub handler: usize,
    /// The program's `sa_flags`.
    pub flags: c_int,
    /// The program's `sa_mask` if the kernel forgets it (`SA_RESETHAND`), else 0.
    pub mask: u64,
}

static RECORDS: [Record; THUNKS] = [const {
    Record {
        state: AtomicU32::new(EMPTY),
        flags: AtomicU32::new(0),
        handler: AtomicUsize::new(0),
        mask: AtomicU64::new(0),
    }
}; THUNKS];
/// Signals whose last one-shot handler was installed without `SA_SIGINFO`. The kernel keeps the flags when it resets the
/// handler, so the `SA_SIGINFO` that a query finds then is ours.
static ONE_SHOT_PLAIN: AtomicU64 = AtomicU64::new(0);
/// Where the search for a thunk to use again goes on.
static CURSOR: AtomicUsize = AtomicUsize::new(0);

fn base() -> usize {
    culvert_thunks as *const () as usize
}

fn index(address: usize) -> Option<usize> {
    let i = address.wrapping_sub(base()) / STRIDE;
    (i < THUNKS).then_some(i)
}

/// What the thunk at `address` stands for; `None` if no thunk is there.
pub(super) fn action(address: usize) -> Option<Action> {
    let r = &RECORDS[index(address)?];
    Some(Action { handler: r.handler.load(Relaxed), flags: r.flags.load(Relaxed) as c_int, mask: r.mask.load(Relaxed) })
}

/// Turns what the kernel has into what the program installed.
pub(super) fn to_program(sig: c_int, k: &mut sigaction_t) {
    if k.sa_sigaction == libc::SIG_DFL && ONE_SHOT_PLAIN.load(Relaxed) >> (sig - 1) & 1 != 0 {
        k.sa_flags &= !libc::SA_SIGINFO;
    }
    if let Some(a) = action(k.sa_sigaction) {
        k.sa_sigaction = a.handler;
        k.sa_flags = (k.sa_flags & !ALTERED) | (a.flags & ALTERED);
    }
}

/// Turns what the program installs into what the kernel gets.
pub(super) fn to_kernel(sig: c_int, k: &mut sigaction_t, armed: bool) {
    let fault = armed && is_fault(sig);
    let one_shot = k.sa_flags & libc::SA_RESETHAND != 0;
    if one_shot && k.sa_flags & libc::SA_SIGINFO == 0 && !matches!(k.sa_sigaction, libc::SIG_DFL | libc::SIG_IGN) {
        ONE_SHOT_PLAIN.fetch_or(1 << (sig - 1), Relaxed);
    } else {
        ONE_SHOT_PLAIN.fetch_and(!(1 << (sig - 1)), Relaxed);
    }
    if index(k.sa_sigaction).is_some() || k.sa_sigaction == libc::SIG_IGN || (k.sa_sigaction == libc::SIG_DFL && !fault)
    {
        // A program that passes one of our thunks has read it from the kernel without libc: nothing is noted. SIG_IGN is given to
        // the kernel as it is, also for faults, since a program that is executed inherits it, unlike a handler.
        return;
    }
    let default = k.sa_sigaction == libc::SIG_DFL;
    let a =
        Action { handler: k.sa_sigaction, flags: k.sa_flags, mask: if one_shot { mask_bits(&k.sa_mask) } else { 0 } };
    let Some(thunk) = intern(a) else { return };
    k.sa_sigaction = thunk;
    k.sa_flags |= libc::SA_SIGINFO;
    if fault {
        // A fault that we fix up must not use up the program's one shot: `deliver` resets by itself.
        k.sa_flags &= !libc::SA_RESETHAND;
    }
    if default {
        // Blocked while it runs, since it re-raises; restarting, since a default action interrupts nothing.
        k.sa_flags = (k.sa_flags & !libc::SA_NODEFER) | libc::SA_ONSTACK | libc::SA_RESTART;
    } else {
        HANDLERS.store(true, SeqCst);
    }
}

fn fill(r: &Record, a: Action) {
    r.handler.store(a.handler, Relaxed);
    r.flags.store(a.flags as u32, Relaxed);
    r.mask.store(a.mask, Relaxed);
    r.state.store(FILLED, Release);
}

/// The thunk for `a`. `None` only if every thunk is in use by some signal, which 64 signals cannot do, or being
/// filled: the program's handler is then installed bare.
fn intern(a: Action) -> Option<usize> {
    for (i, r) in RECORDS.iter().enumerate() {
        let state = r.state.load(Acquire);
        let at = base() + i * STRIDE;
        if state == FILLED && action(at) == Some(a) {
            return Some(at);
        }
        // A record that another frame is filling with the same action is passed over: one thunk more does no harm.
        if state == EMPTY && r.state.compare_exchange(EMPTY, FILLING, Acquire, Relaxed).is_ok() {
            fill(r, a);
            return Some(at);
        }
    }
    reuse(a)
}

/// Takes over a thunk that no signal of this process has installed.
#[cold]
fn reuse(a: Action) -> Option<usize> {
    let mut used = [false; THUNKS];
    for sig in 1..=64 {
        if let Some(i) = index(lnx::handler(sig)) {
            used[i] = true;
        }
    }
    for _ in 0..THUNKS {
        // Round robin: the thunk taken is the one unused for longest, so that nobody is still on his way into it.
        let i = CURSOR.fetch_add(1, Relaxed) % THUNKS;
        let r = &RECORDS[i];
        if !used[i] && r.state.compare_exchange(FILLED, FILLING, Acquire, Relaxed).is_ok() {
            fill(r, a);
            return Some(base() + i * STRIDE);
        }
    }
    None
}
