//! Thread cancellation through our frames.
//!
//! glibc cancels a thread by a *forced unwind* (`_Unwind_ForcedUnwind`) from the cancellation point, through
//! our frames, to the program's cleanup handlers. The library is built with `panic = "abort"`: its frames have
//! unwind tables but nothing to run. Only where a plain Rust function calls something declared `extern
//! "C-unwind"` does rustc insert a landing pad, one that aborts the process, and names the *personality routine*
//! `rust_eh_personality` that would find it. In a program that is the standard library's; a `no_std` library must bring
//! its own, and ours finds nothing: every frame is passed over. No frame of ours has anything to drop, so nothing
//! is lost; code that a cancellation may unwind through must keep it so (no token, no guard across a sleep).
//!
//! The symbol is hidden, so that a program linked to a shared Rust standard library keeps its own.
// Unsafe here: it is assembly.
#![allow(unsafe_code)]

core::arch::global_asm!(
    ".pushsection .text.rust_eh_personality,\"ax\",@progbits",
    ".globl rust_eh_personality",
    ".hidden rust_eh_personality",
    ".type rust_eh_personality,@function",
    "rust_eh_personality:",
    ".cfi_startproc",
    // _URC_CONTINUE_UNWIND (Itanium C++ ABI: Exception Handling, 1.2), in both phases
    "mov eax, 8",
    "ret",
    ".cfi_endproc",
    ".size rust_eh_personality, . - rust_eh_personality",
    ".popsection",
);
