//! The thunks: where the kernel enters when a program's handler is due. See [`super::table`] for what each stands for.

use super::deliver;
use super::table::{STRIDE, THUNKS};
use core::arch::global_asm;

global_asm!(
    ".pushsection .text.culvert_thunks,\"ax\",@progbits",
    ".balign 16",
    ".globl culvert_thunks",
    ".hidden culvert_thunks",
    ".type culvert_thunks,@function",
    "culvert_thunks:",
    ".cfi_startproc",
    ".rept {thunks}",
    ".balign {stride}",
    // its own address, in the first argument register that a handler does not use
    "lea rcx, [rip - 7]",
    "jmp 5f",
    ".endr",
    ".balign 16",
    "5:",
    // The kernel enters with rdi, rsi, rdx = signal, siginfo, ucontext, and the restorer at [rsp].
    "push rdi",
    ".cfi_adjust_cfa_offset 8",
    "push rsi",
    ".cfi_adjust_cfa_offset 8",
    "push rdx",
    ".cfi_adjust_cfa_offset 8",
    "call {deliver}",
    "pop rdx",
    ".cfi_adjust_cfa_offset -8",
    "pop rsi",
    ".cfi_adjust_cfa_offset -8",
    "pop rdi",
    ".cfi_adjust_cfa_offset -8",
    "test rax, rax",
    "jz 6f",
    "mov r11, rax",
    // zero, as the kernel leaves it for a function without a prototype
    "xor eax, eax",
    "jmp r11",
    "6:",
    "ret",
    ".cfi_endproc",
    ".size culvert_thunks, . - culvert_thunks",
    ".popsection",
    thunks = const THUNKS,
    stride = const STRIDE,
    deliver = sym deliver::deliver,
);
