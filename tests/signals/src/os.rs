//! What the cases share: raw signal calls, jumping out of handlers, the probe library's functions.

use std::ffi::{c_int, c_long, c_void};
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering::SeqCst};

/// Times [`count`] has run.
pub static COUNT: AtomicI32 = AtomicI32::new(0);
/// `si_code` of the last signal that [`count`] saw.
pub static CODE: AtomicI32 = AtomicI32::new(0);
/// `si_value` of the last signal that [`count`] saw.
pub static VALUE: AtomicU64 = AtomicU64::new(0);
/// The mask that the last run of [`count`] will return to.
pub static RETURN_MASK: AtomicU64 = AtomicU64::new(0);

/// A handler that counts.
pub extern "C" fn count(_: c_int, info: *mut libc::siginfo_t, ctx: *mut c_void) {
    // SAFETY: installed with SA_SIGINFO.
    unsafe {
        CODE.store((*info).si_code, SeqCst);
        VALUE.store((*info).si_value().sival_ptr as u64, SeqCst);
        RETURN_MASK.store(*(&raw const (*ctx.cast::<libc::ucontext_t>()).uc_sigmask).cast::<u64>(), SeqCst);
    }
    COUNT.fetch_add(1, SeqCst);
}

/// Runs of [`count`] so far.
pub fn counted() -> i32 {
    COUNT.load(SeqCst)
}

/// A zeroed action with `handler`, `flags` and the first word of `mask`.
pub fn action(handler: usize, flags: c_int, mask: u64) -> libc::sigaction {
    // SAFETY: all zero is valid; sigset_t is at least one word.
    unsafe {
        let mut a: libc::sigaction = std::mem::zeroed();
        a.sa_sigaction = handler;
        a.sa_flags = flags;
        *(&raw mut a.sa_mask).cast::<u64>() = mask;
        a
    }
}

/// First word of a set.
pub fn bits(set: &libc::sigset_t) -> u64 {
    // SAFETY: sigset_t is at least one word.
    unsafe { *(set as *const libc::sigset_t).cast::<u64>() }
}

/// A set of those bits.
pub fn set(b: u64) -> libc::sigset_t {
    action(0, 0, b).sa_mask
}

/// The bit of a signal in a mask.
pub fn bit(sig: c_int) -> u64 {
    1 << (sig - 1)
}

/// Installs; panics if it fails.
pub fn install(sig: c_int, handler: usize, flags: c_int, mask: u64) {
    // SAFETY: valid pointers.
    let r = unsafe { libc::sigaction(sig, &action(handler, flags, mask), std::ptr::null_mut()) };
    assert_eq!(r, 0);
}

/// What is installed.
pub fn query(sig: c_int) -> libc::sigaction {
    let mut a = action(0, 0, 0);
    // SAFETY: valid pointers.
    let r = unsafe { libc::sigaction(sig, std::ptr::null(), &mut a) };
    assert_eq!(r, 0);
    a
}

/// The thread's mask.
pub fn mask() -> u64 {
    let mut s = set(0);
    // SAFETY: valid pointers.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, std::ptr::null(), &mut s) };
    bits(&s)
}

/// Replaces the thread's mask.
pub fn set_mask(b: u64) {
    // SAFETY: valid pointers.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &set(b), std::ptr::null_mut()) };
}

/// Sends to the calling thread; delivered before this returns unless blocked.
pub fn hit(sig: c_int) {
    // SAFETY: no memory.
    unsafe { libc::raise(sig) };
}

/// Queues with a value to this process.
pub fn queue(sig: c_int, value: usize) {
    let v = libc::sigval { sival_ptr: value as *mut c_void };
    // SAFETY: no memory.
    assert_eq!(unsafe { libc::sigqueue(libc::getpid(), sig, v) }, 0);
}

/// `errno`.
pub fn errno() -> c_int {
    std::io::Error::last_os_error().raw_os_error().unwrap_or(0)
}

/// Sets `errno`.
pub fn set_errno(e: c_int) {
    // SAFETY: the thread's own errno.
    unsafe { *libc::__errno_location() = e }
}

// `jump_catch(f)` calls f and returns 0; `jump_out(v)` inside f, or in a handler that interrupted it, makes that
// call return v: setjmp and longjmp without a function that returns twice. One thread uses it at a time.
std::arch::global_asm!(
    ".pushsection .text",
    "sigcase_catch:",
    "push rbp",
    "push rbx",
    "push r12",
    "push r13",
    "push r14",
    "push r15",
    "push qword ptr [rip + sigcase_sp]",
    "mov [rip + sigcase_sp], rsp",
    "call rdi",
    "xor eax, eax",
    "7:",
    "pop qword ptr [rip + sigcase_sp]",
    "pop r15",
    "pop r14",
    "pop r13",
    "pop r12",
    "pop rbx",
    "pop rbp",
    "ret",
    "sigcase_out:",
    "mov eax, edi",
    "mov rsp, [rip + sigcase_sp]",
    "jmp 7b",
    ".popsection",
    ".pushsection .bss",
    ".balign 8",
    "sigcase_sp: .zero 8",
    ".popsection",
);

unsafe extern "C" {
    fn sigcase_catch(f: extern "C" fn()) -> c_int;
    fn sigcase_out(v: c_int) -> !;
}

/// See above.
pub fn jump_catch(f: extern "C" fn()) -> c_int {
    // SAFETY: saves and restores what the C calling convention asks for.
    unsafe { sigcase_catch(f) }
}

/// See above.
pub fn jump_out(v: c_int) -> ! {
    // SAFETY: only called below a jump_catch, over frames that have nothing to drop.
    unsafe { sigcase_out(v) }
}

/// A function of the probe library, if it is loaded.
fn symbol<T: Copy>(name: &std::ffi::CStr) -> Option<T> {
    // SAFETY: a C string.
    let p = unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) };
    // SAFETY: every caller names the function's own type, a plain function pointer.
    (!p.is_null()).then(|| unsafe { std::mem::transmute_copy(&p) })
}

/// `signals::arm_faults` where there is a probe.
pub fn arm() {
    if let Some(f) = symbol::<extern "C" fn()>(c"probe_arm") {
        f();
    }
}

/// The probe library's functions.
#[derive(Clone, Copy)]
pub struct Probe {
    /// Begins a critical section.
    pub enter: extern "C" fn(),
    /// Ends it.
    pub leave: extern "C" fn(),
    /// In the child of a fork.
    pub forked: extern "C" fn(),
    /// Copies; -1 is a fault.
    pub copy: unsafe extern "C" fn(*mut u8, *const u8, usize) -> c_int,
    /// Handlers run.
    pub runs: extern "C" fn() -> u64,
    /// Whether to return EINTR.
    pub interrupted: extern "C" fn(u64, c_int) -> c_int,
    /// Waits.
    pub ppoll: unsafe extern "C-unwind" fn(*mut libc::pollfd, usize, i64, *const libc::sigset_t, u64) -> c_long,
    /// Waits.
    pub epoll:
        unsafe extern "C-unwind" fn(c_int, *mut libc::epoll_event, c_int, i64, *const libc::sigset_t, u64) -> c_long,
    /// `signals::futex`.
    pub futex: unsafe extern "C-unwind" fn(*const u32, u32, i64, u64) -> c_long,
}

/// The probe library; the case ends with a message if it is not preloaded.
pub fn probe() -> Probe {
    let find = || {
        Some(Probe {
            enter: symbol(c"probe_enter")?,
            leave: symbol(c"probe_leave")?,
            forked: symbol(c"probe_forked")?,
            copy: symbol(c"probe_copy")?,
            runs: symbol(c"probe_runs")?,
            interrupted: symbol(c"probe_interrupted")?,
            ppoll: symbol(c"probe_ppoll")?,
            epoll: symbol(c"probe_epoll")?,
            futex: symbol(c"probe_futex")?,
        })
    };
    find().unwrap_or_else(|| {
        eprintln!("this case needs LD_PRELOAD=libculvert_signals_probe.so");
        std::process::exit(2)
    })
}
