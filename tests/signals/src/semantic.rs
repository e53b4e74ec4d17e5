//! Cases whose output must not depend on whether a library is preloaded.

use crate::Case;
use crate::os::*;
use libc::*;
use std::ptr::{null, null_mut};
use std::sync::atomic::{AtomicI32, Ordering::SeqCst};

/// All of them.
pub const CASES: &[Case] = &[
    ("query", query_case),
    ("invalid", invalid),
    ("families", families),
    ("siginfo", siginfo),
    ("masks", masks),
    ("onstack", onstack),
    ("errno", errno_case),
    ("resethand", resethand),
    ("jump", jump),
    ("many", many),
    ("restart", restart),
    ("fork", fork_case),
    ("vfork", vfork_case),
    ("exec", exec_case),
    ("exec-child", exec_child),
    ("fault-handled", fault_handled),
    ("fault-resethand", fault_resethand),
    ("fault-default", fault_default),
    ("fault-ignored", fault_ignored),
    ("fault-bus", fault_bus),
    ("kill-default", kill_default),
    ("kill-ignored", kill_ignored),
    ("kill-blocked", kill_blocked),
    ("overflow", overflow),
    ("concurrent", concurrent),
];

const H: fn() -> usize = || count as *const () as usize;

extern "C" fn plain(sig: c_int) {
    COUNT.fetch_add(sig, SeqCst);
}

fn show(what: &str, a: &sigaction) {
    let handler: String = match a.sa_sigaction {
        SIG_DFL => "default".into(),
        SIG_IGN => "ignore".into(),
        h if h == H() => "count".into(),
        h if h == plain as *const () as usize => "plain".into(),
        _ => "other".into(),
    };
    println!(
        "{what}: {handler} flags {:#x} mask {:#x} restorer {}",
        a.sa_flags,
        bits(&a.sa_mask),
        a.sa_restorer.is_some()
    );
}

fn query_case() {
    for sig in [SIGHUP, SIGUSR1, SIGSEGV, SIGBUS, SIGCHLD, SIGRTMIN(), 64] {
        for handler in [SIG_DFL, SIG_IGN, H(), plain as *const () as usize] {
            for flags in [
                0,
                SA_SIGINFO,
                SA_RESTART,
                SA_RESETHAND | SA_NODEFER,
                SA_ONSTACK | SA_SIGINFO,
                SA_NOCLDSTOP | SA_NOCLDWAIT,
                0x2000_0400,
            ] {
                let new = action(handler, flags, 0xffff_0000_1234_5678);
                let mut old = action(7, 7, 7);
                // SAFETY: valid pointers.
                let r = unsafe { sigaction(sig, &new, &mut old) };
                println!("{sig} {r} {}", old.sa_sigaction == query(sig).sa_sigaction);
                show("  old", &old);
                show("  now", &query(sig));
            }
        }
    }
    // one object for both
    let mut both = action(plain as *const () as usize, SA_RESTART, 1);
    let p = &raw mut both;
    // SAFETY: valid pointers.
    unsafe { sigaction(SIGUSR1, p, p) };
    show("both", &both);
    show("both now", &query(SIGUSR1));
}

fn invalid() {
    for sig in [-1, 0, 32, 33, 65, 1000, SIGKILL, SIGSTOP] {
        for (new, old) in [(true, true), (true, false), (false, true), (false, false)] {
            let a = action(H(), 0, 0);
            let mut o = action(5, 5, 5);
            set_errno(0);
            // SAFETY: valid pointers or null.
            let r = unsafe { sigaction(sig, if new { &a } else { null() }, if old { &mut o } else { null_mut() }) };
            println!("{sig} {new} {old}: {r} {} {:#x}", errno(), o.sa_sigaction);
        }
    }
}

unsafe extern "C" {
    fn bsd_signal(sig: c_int, h: usize) -> usize;
    fn ssignal(sig: c_int, h: usize) -> usize;
    fn sysv_signal(sig: c_int, h: usize) -> usize;
    fn __sysv_signal(sig: c_int, h: usize) -> usize;
    fn sigset(sig: c_int, h: usize) -> usize;
    fn siginterrupt(sig: c_int, i: c_int) -> c_int;
    fn sigignore(sig: c_int) -> c_int;
    fn sighold(sig: c_int) -> c_int;
    fn sigrelse(sig: c_int) -> c_int;
    fn __sigaction(sig: c_int, n: *const sigaction, o: *mut sigaction) -> c_int;
}

fn name(h: usize) -> String {
    // what Rust's runtime has installed lies somewhere else in every run
    if h == plain as *const () as usize {
        "plain".into()
    } else if (3..usize::MAX).contains(&h) {
        "other".into()
    } else {
        format!("{}", h as isize)
    }
}

fn families() {
    let p = plain as *const () as usize;
    // SAFETY: plain calls of libc with valid handlers.
    unsafe {
        for (what, f) in [
            ("signal", signal as unsafe extern "C" fn(c_int, usize) -> usize),
            ("bsd_signal", bsd_signal),
            ("ssignal", ssignal),
            ("sysv_signal", sysv_signal),
            ("__sysv_signal", __sysv_signal),
            ("sigset", sigset),
        ] {
            for sig in [SIGUSR1, SIGSEGV, SIGRTMAX(), SIGKILL, 0, 32, 65, -4] {
                for h in [p, p, SIG_IGN, SIG_DFL, SIG_ERR, 2, 2, p, SIG_DFL] {
                    if h == 2 && f as usize != sigset as *const () as usize {
                        continue;
                    }
                    set_errno(0);
                    let r = f(sig, h);
                    println!("{what} {sig} {}: {} errno {} mask {:#x}", name(h), name(r), errno(), mask());
                    if (1..32).contains(&sig) {
                        show("   ", &query(sig));
                    }
                }
            }
        }
        for on in [1, 0, 1] {
            for sig in [SIGUSR1, SIGUSR2, 0, SIGKILL, 33] {
                set_errno(0);
                let r = siginterrupt(sig, on);
                println!("siginterrupt {sig} {on}: {r} {}", errno());
            }
            show("after", &query(SIGUSR1));
            signal(SIGUSR1, p);
            show("signal", &query(SIGUSR1));
        }
        println!("{} {} {}", sighold(SIGUSR2), sigrelse(SIGUSR2), sigignore(SIGUSR2));
        show("sigignore", &query(SIGUSR2));
        let mut o = action(0, 0, 0);
        println!("{}", __sigaction(SIGUSR1, null(), &mut o));
        show("__sigaction", &o);
    }
    hit(SIGUSR1);
    println!("ran {}", counted());
}

fn siginfo() {
    install(SIGUSR1, H(), SA_SIGINFO, 0);
    install(SIGRTMIN(), H(), SA_SIGINFO, 0);
    install(SIGALRM, H(), SA_SIGINFO, 0);
    let report = |what| {
        println!(
            "{what}: {} code {} value {}",
            counted(),
            CODE.load(SeqCst),
            VALUE.load(SeqCst) & 0xffff_ffff_0000_0000
        )
    };
    hit(SIGUSR1);
    report("raise");
    // SAFETY: no memory.
    unsafe { kill(getpid(), SIGUSR1) };
    report("kill");
    queue(SIGRTMIN(), 0x1234_0000_0000);
    report("queue");
    // SAFETY: ordinary timer calls on valid locals.
    unsafe {
        let mut timer: timer_t = null_mut();
        let mut e: sigevent = std::mem::zeroed();
        e.sigev_notify = SIGEV_SIGNAL;
        e.sigev_signo = SIGRTMIN();
        e.sigev_value.sival_ptr = 0x77_0000_0000usize as *mut c_void;
        assert_eq!(timer_create(CLOCK_MONOTONIC, &mut e, &mut timer), 0);
        let mut s: itimerspec = std::mem::zeroed();
        s.it_value.tv_nsec = 1_000_000;
        let before = counted();
        timer_settime(timer, 0, &s, null_mut());
        while counted() == before {
            pause_until(SIGRTMIN());
        }
    }
    report("timer");
}

/// Waits for one delivery of `sig`, which is not lost if it has come already.
fn pause_until(sig: c_int) {
    let before = mask();
    let n = counted();
    set_mask(before | bit(sig));
    if counted() == n {
        // SAFETY: a valid set.
        unsafe { sigsuspend(&set(before & !bit(sig))) };
    }
    set_mask(before);
}

static SEEN: [AtomicI32; 4] = [const { AtomicI32::new(0) }; 4];

extern "C" fn look(_: c_int) {
    let i = COUNT.fetch_add(1, SeqCst) as usize % 4;
    SEEN[i].store(mask() as u32 as i32, SeqCst);
    if i == 0 {
        // nests where SA_NODEFER is set, else follows
        hit(SIGUSR1);
        SEEN[3].fetch_add(100 + counted(), SeqCst);
    }
}

fn masks() {
    for flags in [0, SA_NODEFER, SA_RESETHAND | SA_NODEFER] {
        COUNT.store(0, SeqCst);
        SEEN[3].store(0, SeqCst);
        install(SIGUSR1, look as *const () as usize, flags, bit(SIGTERM) | bit(SIGHUP));
        if flags & SA_RESETHAND != 0 {
            // SAFETY: a fresh process with nothing but this thread.
            let pid = unsafe { fork() };
            if pid == 0 {
                hit(SIGUSR1);
                std::process::exit(0);
            }
            println!("second run kills: {:#x}", wait_for(pid));
            continue;
        }
        hit(SIGUSR1);
        println!("{flags:#x}: {} {:?}", counted(), SEEN.iter().map(|s| s.load(SeqCst)).collect::<Vec<_>>());
        println!("after {:#x}", mask());
    }
    install(SIGUSR1, H(), SA_SIGINFO, 0);
    set_mask(bit(SIGUSR1) | bit(SIGUSR2));
    hit(SIGUSR1);
    println!("blocked {}", counted());
    set_mask(bit(SIGUSR2));
    println!("unblocked {} returns to {:#x}", counted(), RETURN_MASK.load(SeqCst));
}

extern "C" fn where_am_i(_: c_int) {
    let here = 0u8;
    // SAFETY: valid local.
    let mut s: stack_t = unsafe { std::mem::zeroed() };
    // SAFETY: a query.
    unsafe { sigaltstack(null(), &mut s) };
    let at = &raw const here as usize;
    let base = s.ss_sp as usize;
    println!("on alternate stack: {} flags {}", (base..base + s.ss_size).contains(&at), s.ss_flags);
}

fn onstack() {
    let mut memory = vec![0u8; 65536];
    let s = stack_t { ss_sp: memory.as_mut_ptr().cast(), ss_flags: 0, ss_size: memory.len() };
    // SAFETY: the memory outlives its use.
    unsafe { sigaltstack(&s, null_mut()) };
    for flags in [0, SA_ONSTACK] {
        install(SIGUSR1, where_am_i as *const () as usize, flags, 0);
        hit(SIGUSR1);
    }
    // SAFETY: turns it off before the memory goes.
    unsafe { sigaltstack(&stack_t { ss_sp: null_mut(), ss_flags: SS_DISABLE, ss_size: 0 }, null_mut()) };
}

extern "C" fn spoil(_: c_int) {
    set_errno(EXDEV);
}

fn errno_case() {
    install(SIGUSR1, plain as *const () as usize, 0, 0);
    set_errno(EDOM);
    hit(SIGUSR1);
    println!("kept {}", errno());
    install(SIGUSR1, spoil as *const () as usize, 0, 0);
    set_errno(EDOM);
    hit(SIGUSR1);
    println!("spoilt {}", errno());
    set_errno(EDOM);
    query(SIGUSR1);
    println!("query {}", errno());
}

fn resethand() {
    install(SIGUSR1, plain as *const () as usize, SA_RESETHAND | SA_RESTART, bit(SIGHUP));
    show("before", &query(SIGUSR1));
    hit(SIGUSR1);
    println!("ran {}", counted());
    show("after", &query(SIGUSR1));
    hit(SIGUSR1);
}

extern "C" fn leap(sig: c_int) {
    jump_out(sig)
}

extern "C" fn jump_body() {
    hit(SIGUSR1);
    println!("not reached");
}

fn jump() {
    for flags in [0, SA_NODEFER] {
        install(SIGUSR1, leap as *const () as usize, flags, 0);
        println!("{} mask {:#x}", jump_catch(jump_body), mask());
        set_mask(0);
    }
}

/// More distinct dispositions than a small table can hold.
fn many() {
    install(SIGUSR2, plain as *const () as usize, 0, 0);
    for i in 0..3000u64 {
        install(SIGUSR1, plain as *const () as usize, SA_RESETHAND, i << 33);
        let now = query(SIGUSR1);
        assert!(now.sa_sigaction == plain as *const () as usize && now.sa_flags & SA_RESETHAND != 0);
        hit(SIGUSR1);
        assert_eq!(query(SIGUSR1).sa_sigaction, SIG_DFL);
    }
    hit(SIGUSR2);
    show("other", &query(SIGUSR2));
    println!("ran {}", counted());
}

/// The alarm() idiom on a call of libc: EINTR, or restarted until data comes.
fn restart() {
    let mut p = [0; 2];
    // SAFETY: ordinary calls on valid locals.
    unsafe {
        assert_eq!(pipe(p.as_mut_ptr()), 0);
        let mut b = [0u8; 1];
        install(SIGALRM, plain as *const () as usize, 0, 0);
        alarm(1);
        let r = read(p[0], b.as_mut_ptr().cast(), 1);
        println!("{r} errno {}", errno());
        static END: AtomicI32 = AtomicI32::new(0);
        extern "C" fn feed(_: c_int) {
            // SAFETY: one byte to a pipe.
            unsafe { write(END.load(SeqCst), c"x".as_ptr().cast(), 1) };
        }
        END.store(p[1], SeqCst);
        install(SIGALRM, feed as *const () as usize, SA_RESTART, 0);
        alarm(1);
        let r = read(p[0], b.as_mut_ptr().cast(), 1);
        println!("{r} {}", b[0]);
        siginterrupt(SIGALRM, 1);
        alarm(1);
        let r = read(p[0], b.as_mut_ptr().cast(), 1);
        println!("{r} errno {}", errno());
    }
}

fn wait_for(pid: pid_t) -> c_int {
    let mut status = 0;
    // SAFETY: a valid local.
    unsafe { waitpid(pid, &mut status, 0) };
    // whether a core was written depends on limits
    status & !0x80
}

fn fork_case() {
    install(SIGUSR1, H(), SA_SIGINFO, 0);
    // SAFETY: single-threaded.
    let pid = unsafe { fork() };
    hit(SIGUSR1);
    show("here", &query(SIGUSR1));
    if pid == 0 {
        install(SIGUSR1, plain as *const () as usize, 0, 0);
        std::process::exit(counted());
    }
    println!("child {:#x}", wait_for(pid));
    show("parent", &query(SIGUSR1));
    println!("ran {}", counted());
}

fn vfork_case() {
    install(SIGUSR1, H(), SA_SIGINFO, bit(SIGHUP));
    // A child on our memory with its own dispositions, as vfork makes it. A stack of its own keeps Rust's frames apart.
    extern "C" fn child(_: *mut c_void) -> c_int {
        install(SIGUSR1, plain as *const () as usize, SA_RESTART, 0);
        hit(SIGUSR1);
        install(SIGUSR1, SIG_DFL, 0, 0);
        0
    }
    let mut stack = vec![0u64; 32768];
    // SAFETY: the stack outlives the child, for which CLONE_VFORK waits.
    let pid =
        unsafe { clone(child, stack.as_mut_ptr().add(32768).cast(), CLONE_VM | CLONE_VFORK | SIGCHLD, null_mut()) };
    println!("child {:#x} ran {}", wait_for(pid), counted());
    show("parent", &query(SIGUSR1));
    hit(SIGUSR1);
    println!("ran {}", counted());
}

fn exec_case() {
    for sig in [SIGUSR1, SIGSEGV, SIGBUS] {
        install(sig, H(), SA_SIGINFO, 0);
    }
    for sig in [SIGUSR2, SIGFPE, SIGPIPE] {
        install(sig, SIG_IGN, 0, 0);
    }
    use std::os::unix::process::CommandExt;
    let e = std::process::Command::new("/proc/self/exe").arg("exec-child").exec();
    println!("{e}");
}

/// Rust's runtime has put its own handlers on SIGSEGV and SIGBUS by now, if they were default.
fn exec_child() {
    for sig in [SIGUSR1, SIGUSR2, SIGFPE, SIGPIPE] {
        show("inherited", &query(sig));
    }
    let a = query(SIGSEGV);
    println!("{} {:#x}", a.sa_sigaction > 1, a.sa_flags);
}

extern "C" fn touch() {
    // SAFETY: none: this is the fault that the case is about. The address is never mapped.
    unsafe { std::arch::asm!("mov byte ptr [{}], 1", in(reg) 8usize) };
}

extern "C" fn caught(sig: c_int, info: *mut siginfo_t, _: *mut c_void) {
    // SAFETY: installed with SA_SIGINFO.
    unsafe { println!("caught {sig} code {} at {:?}", (*info).si_code, (*info).si_addr()) };
    jump_out(sig)
}

fn fault_handled() {
    for flags in [SA_SIGINFO, SA_SIGINFO | SA_NODEFER] {
        install(SIGSEGV, caught as *const () as usize, flags, 0);
        println!("{}", jump_catch(touch));
        set_mask(0);
        println!("{}", jump_catch(touch));
        set_mask(0);
        show("now", &action(SIG_DFL, query(SIGSEGV).sa_flags, 0));
    }
}

fn fault_resethand() {
    install(SIGSEGV, caught as *const () as usize, SA_SIGINFO | SA_RESETHAND | SA_NODEFER, bit(SIGHUP));
    println!("{:#x}", query(SIGSEGV).sa_flags);
    println!("{}", jump_catch(touch));
    show("now", &query(SIGSEGV));
    touch();
}

fn fault_default() {
    install(SIGSEGV, SIG_DFL, SA_NODEFER | SA_RESETHAND, bit(SIGHUP));
    show("now", &query(SIGSEGV));
    touch();
}

fn fault_ignored() {
    install(SIGSEGV, SIG_IGN, 0, 0);
    show("now", &query(SIGSEGV));
    touch();
}

fn fault_bus() {
    install(SIGBUS, SIG_DFL, 0, 0);
    // SAFETY: maps a file of length 0 and touches it, which is the fault that the case is about.
    unsafe {
        let fd = memfd_create(c"empty".as_ptr(), 0);
        let p = mmap(null_mut(), 4096, PROT_READ, MAP_SHARED, fd, 0).cast::<u8>();
        println!("{}", p.read_volatile());
    }
}

fn kill_default() {
    install(SIGSEGV, SIG_DFL, 0, 0);
    hit(SIGSEGV);
    println!("not reached");
}

fn kill_ignored() {
    for sig in [SIGSEGV, SIGBUS] {
        install(sig, SIG_IGN, 0, 0);
        hit(sig);
        show("alive", &query(sig));
    }
}

fn kill_blocked() {
    install(SIGSEGV, SIG_DFL, 0, 0);
    set_mask(bit(SIGSEGV));
    hit(SIGSEGV);
    println!("alive");
    set_mask(0);
    println!("not reached");
}

/// A stack overflow, which Rust's runtime recognises on its alternate stack and reports before it aborts.
fn overflow() {
    fn deep(n: u64) -> u64 {
        let a = std::hint::black_box([n; 512]);
        if n == u64::MAX { a[7] } else { deep(n + 1) + a[3] }
    }
    println!("{}", deep(std::hint::black_box(0)));
}

/// Dispositions swapped by one thread while another one gets the signals: always one of the two.
fn concurrent() {
    static STOP: AtomicI32 = AtomicI32::new(0);
    static BAD: AtomicI32 = AtomicI32::new(0);
    extern "C" fn with_info(sig: c_int, info: *mut siginfo_t, _: *mut c_void) {
        // SAFETY: installed with SA_SIGINFO.
        if sig != SIGUSR1 || unsafe { (*info).si_signo } != SIGUSR1 {
            BAD.fetch_add(1, SeqCst);
        }
        COUNT.fetch_add(1, SeqCst);
    }
    extern "C" fn without(sig: c_int) {
        if sig != SIGUSR1 {
            BAD.fetch_add(1, SeqCst);
        }
        COUNT.fetch_add(1, SeqCst);
    }
    install(SIGUSR1, without as *const () as usize, 0, 0);
    let t = std::thread::spawn(|| {
        let allowed = [with_info as *const () as usize, without as *const () as usize];
        for i in 0..20000 {
            let new = action(allowed[i % 2], if i % 2 == 0 { SA_SIGINFO } else { 0 }, 0);
            let mut old = action(0, 0, 0);
            // SAFETY: valid pointers.
            unsafe { sigaction(SIGUSR1, &new, &mut old) };
            if !allowed.contains(&old.sa_sigaction)
                || (old.sa_flags & SA_SIGINFO != 0) != (old.sa_sigaction == allowed[0])
            {
                BAD.fetch_add(1, SeqCst);
            }
        }
        STOP.store(1, SeqCst);
    });
    let mut sent = 0;
    while STOP.load(SeqCst) == 0 || sent == 0 {
        hit(SIGUSR1);
        sent += 1;
    }
    t.join().unwrap();
    println!("all arrived: {}, bad: {}", counted() == sent, BAD.load(SeqCst));
}
