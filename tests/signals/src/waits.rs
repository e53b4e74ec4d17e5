//! Waits that lose no signal, and cancellation through them.

use crate::Case;
use crate::os::*;
use libc::*;
use std::ptr::{null, null_mut};
use std::sync::atomic::{AtomicI32, AtomicU32, AtomicUsize, Ordering::SeqCst};

/// All of them.
pub const CASES: &[Case] = &[
    ("wait-plain", plain),
    ("wait-before", before),
    ("wait-ready", ready),
    ("wait-mask", mask_case),
    ("wait-mask-seen", mask_seen),
    ("wait-nested", nested),
    ("wait-race", race),
    ("wait-limit", limit),
    ("cancel", cancel),
];

const H: fn() -> usize = || count as *const () as usize;
const EINTR_: c_long = -(EINTR as c_long);

/// Ways to wait: `ppoll` with so many descriptors, or an epoll set.
const WAYS: [usize; 5] = [0, 1, 31, 40, EPOLL];
const EPOLL: usize = usize::MAX;
/// Or on a word that nobody changes, where that can be told from the others.
const WORD: usize = usize::MAX - 1;

/// A waiter on the read end of a pipe (and fillers).
struct Waiter {
    fds: Vec<pollfd>,
    epoll: c_int,
    way: usize,
}

impl Waiter {
    fn new(way: usize, fd: c_int) -> Waiter {
        let mut fds = vec![];
        // SAFETY: ordinary calls on valid locals.
        let epoll = unsafe { epoll_create1(EPOLL_CLOEXEC) };
        if way == EPOLL {
            let mut e = epoll_event { events: EPOLLIN as u32, u64: 5 };
            // SAFETY: as above.
            unsafe { epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &mut e) };
        } else if way != WORD {
            fds.resize(way, pollfd { fd: -1, events: POLLIN, revents: 0 });
            if let Some(last) = fds.last_mut() {
                last.fd = fd;
            }
        }
        Waiter { fds, epoll, way }
    }

    fn wait(&mut self, ns: i64, m: *const sigset_t, since: u64) -> c_long {
        let p = probe();
        // SAFETY: valid buffers.
        unsafe {
            if self.way == EPOLL {
                let mut e = epoll_event { events: 0, u64: 0 };
                (p.epoll)(self.epoll, &mut e, 1, ns, m, since)
            } else if self.way == WORD {
                const LONG: i64 = 60_000_000_000;
                (p.futex)(&0, 0, if ns < 0 { LONG } else { ns }, since)
            } else {
                (p.ppoll)(self.fds.as_mut_ptr(), self.fds.len(), ns, m, since)
            }
        }
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        // SAFETY: our own descriptor.
        unsafe { close(self.epoll) };
    }
}

fn pipe_() -> [c_int; 2] {
    let mut p = [0; 2];
    // SAFETY: room for two.
    assert_eq!(unsafe { pipe(p.as_mut_ptr()) }, 0);
    p
}

/// Without any handler: times out, and sees data.
fn plain() {
    basics();
}

fn basics() {
    let fds = pipe_();
    for way in WAYS {
        let mut w = Waiter::new(way, fds[0]);
        let since = (probe().runs)();
        set_errno(EDOM);
        assert_eq!(w.wait(0, null(), since), 0);
        assert_eq!(w.wait(1_500_000, null(), since), 0);
        if way != 0 {
            // SAFETY: one byte.
            unsafe { write(fds[1], c"x".as_ptr().cast(), 1) };
            assert_eq!(w.wait(-1, null(), since), 1);
            assert!(way == EPOLL || w.fds[way - 1].revents == POLLIN);
            let mut b = 0u8;
            // SAFETY: one byte.
            unsafe { read(fds[0], (&raw mut b).cast(), 1) };
        }
        assert_eq!(errno(), EDOM);
        assert_eq!(mask(), 0);
    }
}

fn before() {
    install(SIGUSR1, H(), SA_SIGINFO | SA_RESTART, 0);
    basics();
    let fds = pipe_();
    for way in WAYS {
        let mut w = Waiter::new(way, fds[0]);
        let since = (probe().runs)();
        hit(SIGUSR1);
        assert_eq!(w.wait(-1, null(), since), EINTR_, "{way}");
        assert_eq!(mask(), 0);
        assert_eq!(w.wait(0, null(), (probe().runs)()), 0);
    }
}

/// Ready descriptors win over a signal that is pending behind the given mask, as in the kernel.
fn ready() {
    install(SIGUSR1, H(), SA_SIGINFO, 0);
    let fds = pipe_();
    // SAFETY: one byte.
    unsafe { write(fds[1], c"x".as_ptr().cast(), 1) };
    set_mask(bit(SIGUSR1));
    hit(SIGUSR1);
    let open = set(0);
    for way in [1, 31, 40, EPOLL] {
        assert_eq!(Waiter::new(way, fds[0]).wait(-1, &open, (probe().runs)()), 1, "{way}");
        assert_eq!((counted(), mask()), (0, bit(SIGUSR1)));
    }
}

fn mask_case() {
    install(SIGUSR1, H(), SA_SIGINFO, 0);
    let fds = pipe_();
    set_mask(bit(SIGUSR1) | bit(SIGHUP));
    let open = set(bit(SIGHUP));
    for (i, way) in WAYS.into_iter().enumerate() {
        hit(SIGUSR1);
        let mut w = Waiter::new(way, fds[0]);
        assert_eq!(w.wait(1_000_000, null(), (probe().runs)()), 0, "blocked {way}");
        assert_eq!(w.wait(-1, &open, (probe().runs)()), EINTR_, "{way}");
        assert_eq!((counted(), mask()), (i as i32 + 1, bit(SIGUSR1) | bit(SIGHUP)));
        // the handler returns to the mask of before, as ppoll(2) has it
        assert_eq!(RETURN_MASK.load(SeqCst), bit(SIGUSR1) | bit(SIGHUP), "{way}");
    }
}

/// A handler that changes the mask it returns to changes it for good.
fn mask_seen() {
    extern "C" fn block_hup(_: c_int, info: *mut siginfo_t, ctx: *mut c_void) {
        count(0, info, ctx);
        // SAFETY: installed with SA_SIGINFO.
        unsafe { *(&raw mut (*ctx.cast::<ucontext_t>()).uc_sigmask).cast::<u64>() |= bit(SIGHUP) };
    }
    install(SIGUSR1, block_hup as *const () as usize, SA_SIGINFO, 0);
    let fds = pipe_();
    for way in WAYS {
        set_mask(0);
        let pid = sender(SIGUSR1);
        let mut w = Waiter::new(way, fds[0]);
        assert_eq!(w.wait(-1, null(), (probe().runs)()), EINTR_, "{way}");
        assert_eq!((RETURN_MASK.load(SeqCst), mask()), (0, bit(SIGHUP)), "{way}");
        pid.join().unwrap();
    }
}

/// Whether a thread of ours sleeps in a call of the poll or epoll family.
fn sleeps(tid: pid_t) -> bool {
    // "running", or the number of the call that it is blocked in
    let call = std::fs::read_to_string(format!("/proc/self/task/{tid}/syscall")).unwrap_or_default();
    [SYS_ppoll, SYS_epoll_wait, SYS_epoll_pwait, SYS_epoll_pwait2].iter().any(|c| call.starts_with(&format!("{c} ")))
}

/// Sends `sig` to the calling thread once it sleeps.
fn sender(sig: c_int) -> std::thread::JoinHandle<()> {
    // SAFETY: no arguments.
    let (tid, me) = unsafe { (gettid(), pthread_self() as usize) };
    std::thread::spawn(move || {
        while !sleeps(tid) {
            std::thread::yield_now();
        }
        // SAFETY: the thread waits for this one's end.
        unsafe { pthread_kill(me as pthread_t, sig) };
    })
}

/// A handler that itself waits, in every way, inside every way.
fn nested() {
    static INNER: AtomicUsize = AtomicUsize::new(0);
    static FD: AtomicI32 = AtomicI32::new(0);
    extern "C" fn wait_inside(_: c_int) {
        COUNT.fetch_add(1, SeqCst);
        let mut w = Waiter::new(INNER.load(SeqCst), FD.load(SeqCst));
        assert_eq!(w.wait(1000, null(), (probe().runs)()), 0);
    }
    let fds = pipe_();
    FD.store(fds[0], SeqCst);
    install(SIGUSR1, wait_inside as *const () as usize, 0, 0);
    for outer in WAYS {
        for inner in WAYS {
            INNER.store(inner, SeqCst);
            let t = sender(SIGUSR1);
            let mut w = Waiter::new(outer, fds[0]);
            assert_eq!(w.wait(-1, null(), (probe().runs)()), EINTR_, "{outer} {inner}");
            assert_eq!(mask(), 0);
            t.join().unwrap();
            assert_eq!(w.wait(0, null(), (probe().runs)()), 0);
        }
    }
    assert_eq!(counted(), 25);
}

/// One signal per wait, sent at any moment after the counters were read: every wait must end. A lost signal hangs.
fn race() {
    static TURN: AtomicU32 = AtomicU32::new(0);
    const ROUNDS: u32 = 4000;
    install(SIGUSR1, H(), SA_SIGINFO | SA_RESTART, 0);
    let fds = pipe_();
    // SAFETY: no arguments.
    let me = unsafe { pthread_self() as usize };
    let ways = WAYS.into_iter().chain([WORD]);
    let total = ROUNDS * ways.clone().count() as u32;
    let t = std::thread::spawn(move || {
        let mut x = 88172645463325252u64;
        for turn in 1..=total {
            while TURN.load(SeqCst) != turn {
                std::thread::yield_now();
            }
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            for _ in 0..x % 600 {
                std::hint::spin_loop();
            }
            // SAFETY: the thread waits for this one's end.
            unsafe { pthread_kill(me as pthread_t, SIGUSR1) };
        }
    });
    let mut turn = 0;
    for way in ways {
        let mut w = Waiter::new(way, fds[0]);
        for _ in 0..ROUNDS {
            turn += 1;
            let since = (probe().runs)();
            TURN.store(turn, SeqCst);
            assert_eq!(w.wait(-1, null(), since), EINTR_, "{way}");
            assert_eq!(counted(), turn as i32);
        }
    }
    t.join().unwrap();
}

/// As many descriptors as RLIMIT_NOFILE allows.
fn limit() {
    install(SIGUSR1, H(), SA_SIGINFO, 0);
    let fds = pipe_();
    let l = rlimit { rlim_cur: 20, rlim_max: 20 };
    // SAFETY: a valid local.
    unsafe { setrlimit(RLIMIT_NOFILE, &l) };
    for n in [19, 20] {
        assert_eq!(Waiter::new(n, fds[0]).wait(0, null(), (probe().runs)()), 0);
    }
    assert_eq!(Waiter::new(21, fds[0]).wait(0, null(), (probe().runs)()), -(EINVAL as c_long));
}

// The start function of a thread that is to be cancelled: calls `Call::before(call)`, then the wait with its arguments.
// A cancellation unwinds through it, which a Rust function in a program built to abort on panic would not allow.
std::arch::global_asm!(
    ".pushsection .text",
    "sigcase_thread:",
    ".cfi_startproc",
    "push rbx",
    ".cfi_adjust_cfa_offset 8",
    ".cfi_rel_offset rbx, 0",
    "mov rbx, rdi",
    "call [rbx]",
    "mov rdi, [rbx + 16]",
    "mov rsi, [rbx + 24]",
    "mov rdx, [rbx + 32]",
    "mov rcx, [rbx + 40]",
    "mov r8, [rbx + 48]",
    "mov r9, [rbx + 56]",
    "call [rbx + 8]",
    "xor eax, eax",
    "pop rbx",
    ".cfi_adjust_cfa_offset -8",
    "ret",
    ".cfi_endproc",
    ".popsection",
);

/// What that thread does.
#[repr(C)]
struct Call {
    before: extern "C" fn(*mut Call),
    wait: usize,
    args: [usize; 6],
}

static CLEANED: AtomicI32 = AtomicI32::new(0);
static KEY: AtomicU32 = AtomicU32::new(0);
static TID: AtomicI32 = AtomicI32::new(0);

extern "C" fn cleanup(_: *mut c_void) {
    // libc cancels from inside its handler of signal 32
    CLEANED.fetch_add(1 + i32::from(mask() & !bit(32) != 0) * 1000, SeqCst);
}

extern "C" fn starting(c: *mut Call) {
    // SAFETY: the key exists; its value is never used.
    unsafe {
        pthread_setspecific(KEY.load(SeqCst), c.cast());
        TID.store(gettid(), SeqCst);
    }
}

/// A thread cancelled in a wait runs its key destructors with its own mask, and is joined as cancelled.
fn cancel() {
    unsafe extern "C" {
        fn pthread_cancel(t: pthread_t) -> c_int;
        fn sigcase_thread(call: *mut c_void) -> *mut c_void;
    }
    let start: extern "C" fn(*mut c_void) -> *mut c_void =
        // SAFETY: the same type but for `unsafe`.
        unsafe { std::mem::transmute(sigcase_thread as *const ()) };
    let p = probe();
    let fds = pipe_();
    let mut key = 0;
    // SAFETY: valid locals.
    unsafe { pthread_key_create(&mut key, Some(cleanup)) };
    KEY.store(key, SeqCst);
    let mut cancelled = 0;
    for handlers in [false, true] {
        if handlers {
            install(SIGUSR1, H(), SA_SIGINFO, 0);
        }
        for way in WAYS {
            for asleep in [false, true] {
                TID.store(0, SeqCst);
                let mut w = Waiter::new(way, fds[0]);
                let mut event = epoll_event { events: 0, u64: 0 };
                let forever = -1i64 as usize;
                // a new thread has run no handler
                let mut call = if way == EPOLL {
                    let args = [w.epoll as usize, (&raw mut event) as usize, 1, forever, 0, 0];
                    Call { before: starting, wait: p.epoll as *const () as usize, args }
                } else {
                    let args = [w.fds.as_mut_ptr() as usize, w.fds.len(), forever, 0, 0, 0];
                    Call { before: starting, wait: p.ppoll as *const () as usize, args }
                };
                let mut t = 0;
                // SAFETY: `call` and what it points to outlive the thread, which is joined below.
                assert_eq!(unsafe { pthread_create(&mut t, null(), start, (&raw mut call).cast()) }, 0);
                while TID.load(SeqCst) == 0 || asleep && !sleeps(TID.load(SeqCst)) {
                    std::thread::yield_now();
                }
                let mut r = null_mut();
                // SAFETY: the thread has not been joined.
                unsafe {
                    assert_eq!(pthread_cancel(t), 0);
                    assert_eq!(pthread_join(t, &mut r), 0);
                }
                assert_eq!(r as isize, -1, "PTHREAD_CANCELED");
                cancelled += 1;
                if asleep {
                    assert_eq!(CLEANED.load(SeqCst), cancelled, "{way}");
                } else {
                    // cancelled before it slept: maybe with signals blocked, but not without its destructors
                    assert_ne!(CLEANED.swap(cancelled, SeqCst), cancelled - 1);
                }
            }
        }
    }
}
