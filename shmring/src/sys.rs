//! Raw Linux system calls.
//!
//! culvert's own calls must not touch `errno`, must not pass through the functions it interposes, must
//! work before the dynamic linker has resolved anything, and must be safe in a signal handler and after
//! `fork` in a threaded program. A bare system call is all of that; libc's wrappers are none of it.
//! Results are the kernel's: `>= 0`, or `-errno`.
// Unsafe here: it is where system calls and special instructions are made.
#![allow(unsafe_code)]

#[cfg(not(target_arch = "x86_64"))]
compile_error!("culvert supports x86-64 only: see ARCHITECTURE.md, \"Portability\"");

use core::arch::asm;

/// Makes system call `nr`.
///
/// # Safety
/// The arguments must satisfy the kernel's contract for `nr`; pointers must be valid for what the
/// kernel reads and writes through them (an invalid pointer from a *program* is reported as `-EFAULT`
/// by the kernel and is not undefined behaviour here).
#[inline(always)]
pub unsafe fn syscall6(nr: i64, a: usize, b: usize, c: usize, d: usize, e: usize, f: usize) -> isize {
    let ret: isize;
    // SAFETY: the x86-64 Linux system-call convention; rcx and r11 are clobbered by the instruction.
    unsafe {
        asm!("syscall", inlateout("rax") nr as isize => ret,
            in("rdi") a, in("rsi") b, in("rdx") c, in("r10") d, in("r8") e, in("r9") f,
            lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    ret
}

/// `syscall!(nr, args...)`: [`syscall6`] with missing arguments zero and each argument cast to `usize`.
#[macro_export]
macro_rules! syscall {
    ($nr:expr) => { $crate::sys::syscall6($nr, 0, 0, 0, 0, 0, 0) };
    ($nr:expr, $a:expr) => { $crate::sys::syscall6($nr, $a as usize, 0, 0, 0, 0, 0) };
    ($nr:expr, $a:expr, $b:expr) => { $crate::sys::syscall6($nr, $a as usize, $b as usize, 0, 0, 0, 0) };
    ($nr:expr, $a:expr, $b:expr, $c:expr) => {
        $crate::sys::syscall6($nr, $a as usize, $b as usize, $c as usize, 0, 0, 0)
    };
    ($nr:expr, $a:expr, $b:expr, $c:expr, $d:expr) => {
        $crate::sys::syscall6($nr, $a as usize, $b as usize, $c as usize, $d as usize, 0, 0)
    };
    ($nr:expr, $a:expr, $b:expr, $c:expr, $d:expr, $e:expr) => {
        $crate::sys::syscall6($nr, $a as usize, $b as usize, $c as usize, $d as usize, $e as usize, 0)
    };
    ($nr:expr, $a:expr, $b:expr, $c:expr, $d:expr, $e:expr, $f:expr) => {
        $crate::sys::syscall6($nr, $a as usize, $b as usize, $c as usize, $d as usize, $e as usize, $f as usize)
    };
}

/// The calling thread's kernel id.
pub fn gettid() -> u32 {
    if cfg!(miri) {
        // It makes no system call.
        return 1;
    }
    // SAFETY: takes no arguments and cannot fail.
    unsafe { syscall!(libc::SYS_gettid) as u32 }
}

/// The calling process's id as the kernel sees it now (never a cached value).
pub fn getpid() -> u32 {
    // SAFETY: takes no arguments and cannot fail.
    unsafe { syscall!(libc::SYS_getpid) as u32 }
}

/// Closes a descriptor of ours. Errors are of no use to the caller.
pub fn close(fd: i32) {
    // SAFETY: closing has no memory effects; the caller owns `fd`.
    unsafe { syscall!(libc::SYS_close, fd) };
}

/// Reads the time-stamp counter: cycles, invariant, about equal on all CPUs of one machine.
#[inline(always)]
pub fn cycles() -> u64 {
    // SAFETY: rdtsc is available on every x86-64 CPU and has no side effects.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// The same, not before anything that this thread did earlier is done, as far as this CPU knows (lfence; Intel's manual on
/// rdtsc), and not after anything later has begun.
#[inline(always)]
pub fn cycles_in_order() -> u64 {
    // SAFETY: as above; lfence is part of every x86-64.
    unsafe {
        core::arch::x86_64::_mm_lfence();
        let t = core::arch::x86_64::_rdtsc();
        core::arch::x86_64::_mm_lfence();
        t
    }
}

/// Fetches the cache line of `p` for writing: one transaction, where a load and a write behind it make two.
#[inline(always)]
pub fn prefetch_to_write<T>(p: *const T) {
    if cfg!(any(miri, loom)) {
        return;
    }
    // SAFETY: a hint, which faults at no address; CPUs without it take it for a NOP (all x86-64 ones decode it).
    unsafe { asm!("prefetchw [{}]", in(reg) p, options(nostack, preserves_flags, readonly)) };
}
