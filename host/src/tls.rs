//! What each thread keeps for itself.
//!
//! A `no_std` library on stable Rust has no `#[thread_local]`, so the storage is declared in assembly and
//! reached by the initial-exec model: two instructions, no call, no allocation, valid in a signal handler and
//! from a thread's first instruction to its last. A preloaded library is loaded at start-up and is therefore
//! in the static TLS block (ELF Handling for Thread-Local Storage, section 4.3); the linker marks the library
//! `DF_STATIC_TLS`.
//!
//! Every field is used by its own thread and by the signal handlers that interrupt that thread, by nobody
//! else. Relaxed atomics say that to the compiler and cost a plain `mov`.
// Unsafe here: the storage is declared and found in assembly.
#![allow(unsafe_code)]

#[cfg(not(miri))]
use core::arch::{asm, global_asm};
use core::cell::UnsafeCell;
use core::mem::MaybeUninit;
use core::sync::atomic::{AtomicI32, AtomicI64, AtomicU32, AtomicU64, AtomicUsize, Ordering::Relaxed};
use shmring::word::Coded;

/// Signals that one critical section can put off: eight that come at once, and the six that an instruction can raise.
pub const DEFERRED: usize = 14;
/// Descriptors that [`crate::signals::ppoll`] can wait for without blocking signals around the wait.
pub const WAIT_FDS: usize = 31;

/// What the kernel has of a `siginfo_t` (`struct kernel_siginfo`, since Linux 4.20): what is behind it is zeros. The dynamic linker has
/// little room for thread-local storage of a preloaded library, and none for more than 1.5 KiB beside an auditing one.
pub type Info = [u64; 6];

/// A `u32` of this thread.
#[repr(transparent)]
pub struct Word(AtomicU32);

impl Word {
    /// The value.
    #[inline(always)]
    pub fn get(&self) -> u32 {
        self.0.load(Relaxed)
    }

    /// Replaces the value.
    #[inline(always)]
    pub fn set(&self, v: u32) {
        self.0.store(v, Relaxed);
    }

    /// Adds `n`, wrapping. A handler in between may lose its own addition, never hide that there was one.
    #[inline(always)]
    pub fn add(&self, n: u32) {
        self.set(self.get().wrapping_add(n));
    }
}

/// Signals put off until the critical section ends.
#[repr(C)]
pub struct Deferred {
    /// Slots taken. One read-modify-write instruction, so that a handler that interrupts another one gets
    /// the next slot.
    pub count: AtomicU32,
    /// Not 0: `mask` counts.
    pub blocked: Word,
    /// Those of them that are not queued.
    pub set: AtomicU64,
    /// The program's signal mask, while more is blocked.
    pub mask: AtomicU64,
    /// What the kernel said of each. Slots below `count` are filled when no handler is running.
    pub info: UnsafeCell<[MaybeUninit<Info>; DEFERRED]>,
}

/// One `pollfd` that a handler may rewrite while the system call that reads it has not begun.
#[repr(C)]
pub struct PollSlot {
    /// `pollfd::fd`.
    pub fd: AtomicI32,
    /// `pollfd::events` in the low half, `pollfd::revents` in the high half.
    pub events: AtomicU32,
}

/// State of a wait in progress (`signals::blocking`).
#[repr(C)]
pub struct Wait {
    /// Descriptors of the wait; number 0 is what a handler rewrites to end the wait at once.
    pub fds: [PollSlot; WAIT_FDS + 1],
    /// Seconds of the timeout that a handler clears to end the wait at once.
    pub sec: AtomicI64,
    /// Nanoseconds of it.
    pub nsec: AtomicI64,
    /// Waits begun; says whether a handler's own wait has overwritten `fds`.
    pub generation: Word,
    /// 1 if a handler has given this wait's frame the program's mask back.
    pub unmasked: Word,
    /// Stack address of the wait that blocks all signals, 0 if none.
    pub frame: AtomicUsize,
    /// The mask the program had before that wait.
    pub mask: AtomicU64,
}

/// How this thread waited last.
#[repr(C)]
pub struct Habits {
    /// The doorbell that it had when it slept alone (`poller::Alone`).
    pub bell: Coded<Option<u32>>,
    /// The poller that it had (`poller::acquire`).
    pub poller: Coded<Option<u32>>,
    /// Its place among those who sleep (`sleepers::lie_down`).
    pub place: Coded<Option<u32>>,
    /// Not 0: dozing was not enough (`sleep::sleep`).
    pub deep: Word,
    /// Microseconds that it may doze beyond `poller::STEP` (`sleep::sleep`).
    pub patience: Word,
}

/// Doorbells that this thread is to ring before it sleeps (`notify::settle`).
#[repr(C)]
pub struct Owed {
    /// Not 0: this thread puts doorbells off.
    pub puts_off: Word,
    /// Whose; 0: nobody's.
    pub bells: [Word; 5],
}

/// Thread-local state, all zero in a new thread.
#[repr(C, align(64))]
pub struct Tls {
    tid: Word,
    /// Depth of critical sections: above 0 no program handler runs ([`crate::signals::critical_enter`]).
    pub critical: Word,
    /// This thread as the owner of a lock; 0: not asked yet (`lock::myself`).
    pub owner: AtomicU64,
    /// Signals put off by the current critical section.
    pub deferred: Deferred,
    /// Program handlers run on this thread, wrapping.
    pub runs: Word,
    /// Those of them installed without `SA_RESTART`, wrapping.
    pub runs_norestart: Word,
    /// Above 0 between vfork and exec or exit of the child, which runs on this thread's memory.
    pub vfork: Word,
    /// Waits.
    pub wait: Wait,
    /// What the next wait goes by.
    pub habits: Habits,
    /// Who is to be woken.
    pub owed: Owed,
}

impl Tls {
    /// The kernel's id of this thread, asked once per thread and process.
    #[inline]
    pub fn tid(&self) -> u32 {
        match self.tid.get() {
            0 => {
                let tid = shmring::sys::gettid();
                self.tid.set(tid);
                tid
            }
            tid => tid,
        }
    }

    /// Forgets what a child of `fork` must not inherit: the thread id, signals put off, critical sections.
    pub fn after_fork_child(&self) {
        self.tid.set(0);
        self.owner.store(0, Relaxed);
        self.critical.set(0);
        self.deferred.count.store(0, Relaxed);
        self.vfork.set(0);
        self.owed.puts_off.set(0);
        self.owed.bells.iter().for_each(|bell| bell.set(0));
    }
}

const _: () = assert!(size_of::<Tls>() <= 1088);

#[cfg(not(miri))]
global_asm!(
    ".pushsection .tbss.culvert_tls,\"awT\",@nobits",
    ".balign 64",
    ".globl culvert_tls",
    ".hidden culvert_tls",
    ".type culvert_tls,@object",
    ".size culvert_tls,{size}",
    "culvert_tls:",
    ".zero {size}",
    ".popsection",
    size = const size_of::<Tls>(),
);

/// The calling thread's state. Async-signal-safe; a few instructions.
#[cfg(not(miri))]
#[inline(always)]
pub fn tls() -> &'static Tls {
    let p: *const Tls;
    // SAFETY: adds this library's offset in the static TLS block to the thread pointer; the x86-64 psABI
    // keeps the thread pointer itself at fs:0. Nothing is written.
    unsafe {
        asm!("mov {p}, qword ptr [rip + culvert_tls@GOTTPOFF]", "add {p}, qword ptr fs:[0]",
            p = out(reg) p, options(pure, nomem, nostack));
    }
    // SAFETY: `culvert_tls` has the size and alignment of `Tls`, all-zero bytes are a valid `Tls`, all its
    // fields are interior-mutable, and the storage lives as long as the thread. `Tls` is not `Send`-able as a
    // reference in any API of this crate, so 'static stands for "until this thread ends".
    unsafe { &*p }
}

/// The same for Miri.
#[cfg(miri)]
pub fn tls() -> &'static Tls {
    /// Those of threads that have ended stay, too.
    struct All(std::sync::Mutex<std::vec::Vec<&'static Tls>>);
    // SAFETY: what is in it is only kept.
    unsafe impl Sync for All {}
    static ALL: All = All(std::sync::Mutex::new(std::vec::Vec::new()));
    fn new() -> &'static Tls {
        // SAFETY: all-zero bytes are a valid `Tls`.
        let new: &'static Tls = std::boxed::Box::leak(std::boxed::Box::new(unsafe { core::mem::zeroed() }));
        ALL.0.lock().unwrap_or_else(|e| e.into_inner()).push(new);
        new
    }
    std::thread_local! {
        static TLS: &'static Tls = new();
    }
    TLS.with(|t| *t)
}

/// The kernel's id of the calling thread.
#[inline(always)]
pub fn tid() -> u32 {
    tls().tid()
}
