//! Critical sections and copies, driven through the probe library.

use crate::Case;
use crate::os::*;
use libc::*;
use std::ptr::null_mut;
use std::sync::Mutex;
use std::sync::atomic::Ordering::SeqCst;

/// All of them.
pub const CASES: &[Case] = &[
    ("defer", defer),
    ("defer-info", defer_info),
    ("defer-resethand", defer_resethand),
    ("defer-overflow", defer_overflow),
    ("defer-stacked", defer_stacked),
    ("defer-fork-inside", defer_fork_inside),
    ("defer-jump", defer_jump),
    ("defer-fault", defer_fault),
    ("defer-fork", defer_fork),
    ("copy", copy),
    ("copy-fault", copy_fault),
    ("copy-bus", copy_bus),
];

const H: fn() -> usize = || count as *const () as usize;

fn defer() {
    let p = probe();
    install(SIGUSR1, H(), SA_SIGINFO, 0);
    let from = (p.runs)();
    (p.enter)();
    (p.enter)();
    hit(SIGUSR1);
    (p.leave)();
    assert_eq!(counted(), 0);
    assert_eq!((p.interrupted)(from, 0), 0);
    set_errno(EDOM);
    (p.leave)();
    assert_eq!((counted(), errno()), (1, EDOM));
    assert_eq!(((p.interrupted)(from, 0), (p.interrupted)(from, 1)), (1, 1));
    // SA_RESTART: not counted for restartable calls
    install(SIGUSR1, H(), SA_SIGINFO | SA_RESTART, 0);
    let from = (p.runs)();
    hit(SIGUSR1);
    assert_eq!(((p.interrupted)(from, 0), (p.interrupted)(from, 1)), (1, 0));
    assert_eq!(mask(), 0);
}

static LOG: Mutex<Vec<(c_int, c_int, usize)>> = Mutex::new(Vec::new());

/// Records; the tests that use it send from the same thread, outside the lock.
extern "C" fn log(sig: c_int, info: *mut siginfo_t, _: *mut c_void) {
    // SAFETY: installed with SA_SIGINFO.
    let v = unsafe { ((*info).si_code, (*info).si_value().sival_ptr as usize) };
    LOG.lock().unwrap().push((sig, v.0, v.1));
}

fn defer_info() {
    let p = probe();
    let rt = SIGRTMIN() + 3;
    for sig in [SIGUSR1, SIGUSR2, rt] {
        install(sig, log as *const () as usize, SA_SIGINFO, u64::MAX);
    }
    (p.enter)();
    queue(SIGUSR2, 22);
    queue(SIGUSR1, 11);
    for v in 1..=4 {
        queue(rt, v);
    }
    assert!(LOG.lock().unwrap().is_empty());
    (p.leave)();
    let mut got = LOG.lock().unwrap().clone();
    // delivery order of different pending signals is the kernel's; of one real-time signal it is first in, first out
    assert_eq!(got.iter().filter(|g| g.0 == rt).map(|g| g.2).collect::<Vec<_>>(), [1, 2, 3, 4]);
    got.sort();
    assert_eq!(got[..2], [(SIGUSR1, SI_QUEUE, 11), (SIGUSR2, SI_QUEUE, 22)]);
    assert!(got.iter().all(|g| g.1 == SI_QUEUE) && got.len() == 6);
}

fn defer_resethand() {
    let p = probe();
    install(SIGUSR1, H(), SA_SIGINFO | SA_RESETHAND, bit(SIGHUP));
    (p.enter)();
    hit(SIGUSR1);
    let q = query(SIGUSR1);
    assert_eq!((q.sa_sigaction, bits(&q.sa_mask)), (H(), bit(SIGHUP)));
    (p.leave)();
    assert_eq!((counted(), query(SIGUSR1).sa_sigaction), (1, SIG_DFL));
}

/// However many come, none is handled in the section, none is lost, and those of one signal keep their order.
fn defer_overflow() {
    let p = probe();
    let rt = SIGRTMIN();
    install(rt, log as *const () as usize, SA_SIGINFO, 0);
    (p.enter)();
    for v in 0..15 {
        queue(rt, v);
        assert!(LOG.lock().unwrap().is_empty(), "the handler has run inside the section");
    }
    (p.leave)();
    let got: Vec<usize> = LOG.lock().unwrap().iter().map(|g| g.2).collect();
    assert_eq!(got, (0..15).collect::<Vec<usize>>());
    assert_eq!(mask(), 0);
}

/// More signals at once than there is room for: the kernel delivers each into the handler of the one before.
fn defer_stacked() {
    let p = probe();
    let all: Vec<c_int> = (SIGRTMIN()..SIGRTMIN() + 12).chain([SIGUSR1, SIGUSR2, SIGHUP, SIGALRM, SIGSEGV]).collect();
    for &sig in &all {
        install(sig, H(), SA_SIGINFO | SA_NODEFER, 0);
    }
    for kept in [0, bit(SIGTERM)] {
        COUNT.store(0, SeqCst);
        let set = all.iter().fold(kept, |set, &sig| set | bit(sig));
        set_mask(set);
        all.iter().for_each(|&sig| hit(sig));
        (p.enter)();
        set_mask(kept);
        assert_eq!(counted(), 0, "a handler has run inside the section");
        // Blocked with the rest, or put off as well.
        hit(SIGUSR1);
        hit(SIGSEGV);
        assert_eq!(counted(), 0);
        (p.leave)();
        // Of one that is pending the kernel keeps no second.
        assert_eq!((counted(), mask()), (all.len() as c_int, kept));
    }
    // The section is over.
    hit(SIGUSR1);
    assert_eq!(counted(), all.len() as c_int + 1);
}

/// A child that is forked inside a section in which a signal was put off blocks nothing more than its parent did.
fn defer_fork_inside() {
    let p = probe();
    install(SIGUSR1, H(), SA_SIGINFO, 0);
    (p.enter)();
    hit(SIGUSR1);
    // SAFETY: single-threaded.
    let pid = unsafe { fork() };
    if pid == 0 {
        (p.forked)();
        hit(SIGUSR1);
        std::process::exit(if mask() == 0 { counted() } else { 99 });
    }
    (p.leave)();
    let mut status = 0;
    // SAFETY: a valid local.
    unsafe { waitpid(pid, &mut status, 0) };
    assert_eq!((counted(), mask(), WEXITSTATUS(status)), (1, 0, 1));
}

fn defer_jump() {
    extern "C" fn leap(sig: c_int) {
        COUNT.fetch_add(1, SeqCst);
        jump_out(sig)
    }
    extern "C" fn body() {
        let p = probe();
        (p.enter)();
        hit(SIGUSR1);
        hit(SIGUSR2);
        (p.leave)();
        unreachable!();
    }
    // Of two pending signals the kernel stacks the higher number on top: it runs first, and returns into the other
    // handler, which jumps out.
    install(SIGUSR1, leap as *const () as usize, SA_NODEFER, 0);
    install(SIGUSR2, H(), SA_SIGINFO, 0);
    assert_eq!(jump_catch(body), SIGUSR1);
    assert_eq!((counted(), mask()), (2, 0));
    // the section is over
    hit(SIGUSR2);
    assert_eq!(counted(), 3);
}

fn defer_fault() {
    extern "C" fn caught(sig: c_int) {
        jump_out(sig)
    }
    extern "C" fn body() {
        (probe().enter)();
        // SAFETY: none: the fault is what is tested.
        unsafe { std::arch::asm!("mov byte ptr [{}], 1", in(reg) 8usize) };
    }
    install(SIGSEGV, caught as *const () as usize, SA_NODEFER, 0);
    assert_eq!(jump_catch(body), SIGSEGV);
}

fn defer_fork() {
    let p = probe();
    install(SIGUSR1, H(), SA_SIGINFO, 0);
    // SAFETY: single-threaded.
    let pid = unsafe { fork() };
    (p.enter)();
    hit(SIGUSR1);
    (p.leave)();
    if pid == 0 {
        std::process::exit(counted());
    }
    let mut status = 0;
    // SAFETY: a valid local.
    unsafe { waitpid(pid, &mut status, 0) };
    assert_eq!((counted(), WEXITSTATUS(status)), (1, 1));
}

fn copy() {
    let p = probe();
    let src: Vec<u8> = (0..100_000u32).map(|i| (i * 7 + i / 251) as u8).collect();
    let lengths = (0..1100).chain([2047, 2048, 2049, 4095, 4096, 9999, 65536, 90_001]);
    for len in lengths {
        for (s, d) in [(0, 0), (1, 0), (0, 3), (13, 7)] {
            let mut dst = vec![0xeeu8; len + 32];
            // SAFETY: both have room.
            assert_eq!(unsafe { (p.copy)(dst[d..].as_mut_ptr(), src[s..].as_ptr(), len) }, 0);
            assert_eq!(dst[d..d + len], src[s..s + len], "{len}");
            assert!(dst[..d].iter().chain(&dst[d + len..]).all(|&b| b == 0xee), "{len}");
        }
    }
}

/// Two pages, the second without access.
fn edge() -> *mut u8 {
    // SAFETY: a fresh mapping.
    unsafe {
        let m = mmap(null_mut(), 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0).cast::<u8>();
        mprotect(m.add(4096).cast(), 4096, PROT_NONE);
        m.add(4096)
    }
}

fn copy_fault() {
    let p = probe();
    let end = edge();
    let mut other = vec![0u8; 1 << 20];
    let try_all = || {
        for len in (1..400usize).chain([2047, 2048, 3000, 1 << 20]) {
            for inside in [0, 1, 7, 15, 16, 33, 64, 100, 127, 128, 300, 2048] {
                let bad = end.wrapping_sub(inside.min(len - 1));
                // SAFETY: the copy may fault, on one side; the other side has room.
                unsafe {
                    assert_eq!((p.copy)(other.as_ptr().cast_mut(), bad, len), -1);
                    assert_eq!((p.copy)(bad, other.as_ptr(), len), -1);
                }
            }
            for bad in [0usize, 4095, 0x8000_0000_0000_0000, usize::MAX - 5000, 0xffff_8000_0000_0000] {
                // SAFETY: as above.
                unsafe {
                    assert_eq!((p.copy)(other.as_ptr().cast_mut(), bad as *const u8, len), -1);
                    assert_eq!((p.copy)(bad as *mut u8, other.as_ptr(), len), -1);
                }
            }
            // SAFETY: exactly up to the edge.
            assert_eq!(unsafe { (p.copy)(end.wrapping_sub(len.min(4096)), other.as_ptr(), len.min(4096)) }, 0);
        }
    };
    // The program has no handler, then one, then one for a single fault: none of them is asked.
    install(SIGSEGV, SIG_DFL, 0, 0);
    arm();
    try_all();
    assert_eq!(query(SIGSEGV).sa_sigaction, SIG_DFL);
    for flags in [SA_SIGINFO, SA_SIGINFO | SA_RESETHAND] {
        install(SIGSEGV, H(), flags, bit(SIGHUP));
        try_all();
        let q = query(SIGSEGV);
        assert_eq!((q.sa_sigaction, q.sa_flags & !0x0400_0000, bits(&q.sa_mask)), (H(), flags, bit(SIGHUP)));
        assert_eq!(counted(), 0);
    }
    assert_eq!(mask(), 0);
    other[0] = 1;
}

fn copy_bus() {
    let p = probe();
    arm();
    let mut to = [0u8; 4096];
    // SAFETY: a mapping beyond the end of its file; the copy may fault there.
    unsafe {
        let fd = memfd_create(c"empty".as_ptr(), 0);
        let m = mmap(null_mut(), 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0).cast::<u8>();
        for len in [1, 40, 4096] {
            assert_eq!((p.copy)(to.as_mut_ptr(), m, len), -1);
            assert_eq!((p.copy)(m, to.as_ptr(), len), -1);
        }
        ftruncate(fd, 4096);
        assert_eq!((p.copy)(m, to.as_ptr(), 4096), 0);
    }
}
