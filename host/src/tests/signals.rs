use crate::signals::{critical_enter, critical_leave, interrupted, runs, sigaction};
use core::ffi::{c_int, c_void};
use core::sync::atomic::AtomicUsize;
use core::sync::atomic::Ordering::Relaxed;
use libc::siginfo_t;
use shmring::lnx;

/// Each test has a signal of its own, and room for what its handler has seen.
const SIGNALS: usize = 65;
const MOST: usize = 128;
static VALUES: [[AtomicUsize; MOST]; SIGNALS] = [const { [const { AtomicUsize::new(0) }; MOST] }; SIGNALS];
static COUNT: [AtomicUsize; SIGNALS] = [const { AtomicUsize::new(0) }; SIGNALS];
/// The mask in the last run.
static MASK: [AtomicUsize; SIGNALS] = [const { AtomicUsize::new(0) }; SIGNALS];

extern "C" fn handler(sig: c_int, info: *mut siginfo_t, _: *mut c_void) {
    let i = sig as usize;
    MASK[i].store(mask() as usize, Relaxed);
    // SAFETY: the kernel's.
    let value = unsafe { (*info).si_value().sival_ptr.addr() };
    VALUES[i][COUNT[i].fetch_add(1, Relaxed) % MOST].store(value, Relaxed);
}

/// What came with each run of the handler, since this was asked last.
fn seen(sig: c_int) -> Vec<usize> {
    let n = COUNT[sig as usize].swap(0, Relaxed);
    VALUES[sig as usize][..n].iter().map(|v| v.load(Relaxed)).collect()
}

fn install(sig: c_int, flags: c_int) {
    // SAFETY: all zero is a valid `sigaction`.
    let mut a: libc::sigaction = unsafe { core::mem::zeroed() };
    a.sa_sigaction = handler as *const () as usize;
    a.sa_flags = libc::SA_SIGINFO | flags;
    // SAFETY: a valid action.
    assert_eq!(unsafe { sigaction(sig, &a, core::ptr::null_mut()) }, 0);
}

/// Queues a signal to this thread, with a value.
fn queue(sig: c_int, value: usize) {
    // SAFETY: all zero is a valid siginfo_t.
    let mut info: siginfo_t = unsafe { core::mem::zeroed() };
    info.si_signo = sig;
    info.si_code = libc::SI_QUEUE;
    // SAFETY: the value of a signal that was queued lies behind pid and uid (rt_sigqueueinfo(2)), at 24.
    unsafe { core::ptr::from_mut(&mut info).cast::<usize>().add(3).write(value) };
    assert_eq!(lnx::queue_signal(sig, &info), 0);
}

fn mask() -> u64 {
    lnx::signal_mask(libc::SIG_BLOCK, 0)
}

fn bit(sig: c_int) -> u64 {
    1 << (sig - 1)
}

#[test]
fn the_program_sees_its_own_action() {
    let sig = libc::SIGRTMIN();
    install(sig, libc::SA_RESTART);
    // SAFETY: a query into a local, which may be all zero.
    let a = unsafe {
        let mut a: libc::sigaction = core::mem::zeroed();
        assert_eq!(sigaction(sig, core::ptr::null(), &mut a), 0);
        a
    };
    assert_eq!(a.sa_sigaction, handler as *const () as usize);
    assert_eq!(a.sa_flags & (libc::SA_SIGINFO | libc::SA_RESTART), libc::SA_SIGINFO | libc::SA_RESTART);
    assert_ne!(lnx::handler(sig), a.sa_sigaction, "the kernel has a thunk");
    queue(sig, 5);
    assert_eq!(seen(sig), [5]);
}

#[test]
fn runs_are_counted_by_whether_they_restart_calls() {
    let (restarts, ends) = (libc::SIGRTMIN() + 1, libc::SIGRTMIN() + 2);
    install(restarts, libc::SA_RESTART);
    install(ends, 0);
    let begun = runs();
    assert!(!interrupted(begun, true) && !interrupted(begun, false));
    queue(restarts, 1);
    assert!(!interrupted(begun, true) && interrupted(begun, false));
    queue(ends, 1);
    assert!(interrupted(begun, true) && interrupted(begun, false));
    assert_eq!((runs().total - begun.total, runs().norestart - begun.norestart), (2, 1));
}

#[test]
fn a_signal_in_a_section_comes_at_its_end() {
    let sig = libc::SIGRTMIN() + 3;
    install(sig, 0);
    let (before, begun) = (mask(), runs());
    critical_enter();
    critical_enter();
    queue(sig, 7);
    assert_eq!((seen(sig), runs()), (vec![], begun));
    // What else comes is the kernel's to keep.
    assert_eq!(mask() & bit(libc::SIGUSR1), bit(libc::SIGUSR1));
    critical_leave();
    assert_eq!(seen(sig), []);
    critical_leave();
    assert_eq!(seen(sig), [7]);
    assert_eq!(runs().total, begun.total + 1);
    assert_eq!(mask(), before);
    let inside = MASK[sig as usize].load(Relaxed) as u64;
    assert_eq!(inside, before | bit(sig), "the mask of a handler that is called as the kernel would");
    queue(sig, 8);
    assert_eq!(seen(sig), [8]);
}

/// Also those that come at once, more than are kept here, and behind them those that the kernel keeps.
#[test]
fn all_come_in_order() {
    let sig = libc::SIGRTMIN() + 4;
    // Each into the handler of the one before.
    install(sig, libc::SA_NODEFER);
    for together in [1, 2, 7, 8, 9, 14, 15, 40] {
        let before = mask();
        lnx::signal_mask(libc::SIG_BLOCK, bit(sig));
        (0..together).for_each(|i| queue(sig, i));
        critical_enter();
        lnx::signal_mask(libc::SIG_UNBLOCK, bit(sig));
        (together..together + 5).for_each(|i| queue(sig, i));
        assert_eq!(seen(sig), []);
        critical_leave();
        let mut got = seen(sig);
        // Handlers that interrupt each other count in the order in which they begin, which is the reverse of that of their signals:
        // the kernel makes all frames before the first of them runs.
        got.sort_unstable();
        assert_eq!(got, (0..together + 5).collect::<Vec<_>>(), "{together} at once");
        assert_eq!(mask(), before);
    }
}

/// With the handler's signal blocked in it, as is usual, they come one after the other.
#[test]
fn those_that_wait_keep_their_order() {
    let sig = libc::SIGRTMIN() + 7;
    install(sig, 0);
    for n in [1, 2, 5, 17, 40] {
        let before = mask();
        critical_enter();
        (0..n).for_each(|i| queue(sig, i));
        critical_leave();
        assert_eq!(seen(sig), (0..n).collect::<Vec<_>>());
        assert_eq!(mask(), before);
    }
}

/// One of the first 31 is pending once, however often it was sent.
#[test]
fn an_old_signal_is_pending_once() {
    let sig = libc::SIGURG;
    install(sig, 0);
    critical_enter();
    (1..9).for_each(|i| queue(sig, i));
    critical_leave();
    // That which was put off, or the one that the kernel has kept since.
    let got = seen(sig);
    assert!(matches!(got[..], [1 | 2] | [1, 2]), "{got:?}");
}

#[test]
fn a_handler_that_resets_itself_runs_once() {
    let sig = libc::SIGRTMIN() + 5;
    install(sig, libc::SA_RESETHAND);
    critical_enter();
    queue(sig, 1);
    critical_leave();
    assert_eq!(seen(sig), [1]);
    assert_eq!(lnx::handler(sig), libc::SIG_DFL);
}

#[test]
fn a_thread_in_a_section_does_not_hold_up_another() {
    let sig = libc::SIGRTMIN() + 6;
    install(sig, 0);
    critical_enter();
    let got = std::thread::spawn(move || {
        queue(sig, 3);
        seen(sig)
    });
    assert_eq!(got.join().unwrap(), [3]);
    critical_leave();
}
