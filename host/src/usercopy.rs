//! Copies between a program's buffer and shared memory when the program's pointer may be bad.
//!
//! The kernel answers a bad pointer with `EFAULT`; a library that copies in user space would crash instead.
//! The copy is one assembly routine whose address range is known: the `SIGSEGV`/`SIGBUS` handler
//! (`signals`) recognises a fault inside it and resumes at a label that returns an error, as the kernel's
//! own exception table does for `copy_from_user`. It works from the moment `signals::arm_faults` has run.
//!
//! The routine keeps the stack pointer where it was, so that it can be left from any of its instructions, and
//! uses SSE only: no `vzeroupper`, and no AVX state to save in the frame of a signal that arrives.
// Unsafe here: the copy is assembly.
#![allow(unsafe_code)]

use core::arch::global_asm;
use shmring::lnx;

/// The memory was not accessible: `EFAULT`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fault;

global_asm!(
    ".pushsection .text.culvert_usercopy,\"ax\",@progbits",
    ".balign 64",
    ".globl culvert_usercopy",
    ".hidden culvert_usercopy",
    ".type culvert_usercopy,@function",
    "culvert_usercopy:",
    ".cfi_startproc",
    "cmp rdx, 16",
    "ja 32f",
    "cmp edx, 8",
    "jae 8f",
    "cmp edx, 4",
    "jae 4f",
    "cmp edx, 1",
    "jb 99f",
    "je 3f",
    // 2..=3: a word and the last byte
    "movzx eax, word ptr [rsi]",
    "movzx ecx, byte ptr [rsi + rdx - 1]",
    "mov word ptr [rdi], ax",
    "mov byte ptr [rdi + rdx - 1], cl",
    "xor eax, eax",
    "ret",
    "3:",
    "movzx eax, byte ptr [rsi]",
    "mov byte ptr [rdi], al",
    "99:",
    "xor eax, eax",
    "ret",
    "4:",
    "mov eax, dword ptr [rsi]",
    "mov ecx, dword ptr [rsi + rdx - 4]",
    "mov dword ptr [rdi], eax",
    "mov dword ptr [rdi + rdx - 4], ecx",
    "xor eax, eax",
    "ret",
    "8:",
    "mov rax, qword ptr [rsi]",
    "mov rcx, qword ptr [rsi + rdx - 8]",
    "mov qword ptr [rdi], rax",
    "mov qword ptr [rdi + rdx - 8], rcx",
    "xor eax, eax",
    "ret",
    "32:",
    "cmp rdx, 32",
    "ja 64f",
    "movups xmm0, xmmword ptr [rsi]",
    "movups xmm1, xmmword ptr [rsi + rdx - 16]",
    "movups xmmword ptr [rdi], xmm0",
    "movups xmmword ptr [rdi + rdx - 16], xmm1",
    "xor eax, eax",
    "ret",
    "64:",
    "movups xmm0, xmmword ptr [rsi]",
    "movups xmm1, xmmword ptr [rsi + 16]",
    "movups xmm2, xmmword ptr [rsi + rdx - 32]",
    "movups xmm3, xmmword ptr [rsi + rdx - 16]",
    "cmp rdx, 64",
    "ja 128f",
    "movups xmmword ptr [rdi], xmm0",
    "movups xmmword ptr [rdi + 16], xmm1",
    "movups xmmword ptr [rdi + rdx - 32], xmm2",
    "movups xmmword ptr [rdi + rdx - 16], xmm3",
    "xor eax, eax",
    "ret",
    "128:",
    "movups xmm4, xmmword ptr [rsi + 32]",
    "movups xmm5, xmmword ptr [rsi + 48]",
    "movups xmm6, xmmword ptr [rsi + rdx - 64]",
    "movups xmm7, xmmword ptr [rsi + rdx - 48]",
    "cmp rdx, 128",
    "ja 256f",
    "movups xmmword ptr [rdi], xmm0",
    "movups xmmword ptr [rdi + 16], xmm1",
    "movups xmmword ptr [rdi + 32], xmm4",
    "movups xmmword ptr [rdi + 48], xmm5",
    "movups xmmword ptr [rdi + rdx - 64], xmm6",
    "movups xmmword ptr [rdi + rdx - 48], xmm7",
    "movups xmmword ptr [rdi + rdx - 32], xmm2",
    "movups xmmword ptr [rdi + rdx - 16], xmm3",
    "xor eax, eax",
    "ret",
    // above 128: the string instruction where it has started up by now, else 64 bytes a round and the last
    // 64, already in registers, at the end
    "256:",
    "cmp rdx, {string}",
    "jae 512f",
    "lea rcx, [rdi + rdx - 64]",
    "sub rsi, rdi",
    "2:",
    "movups xmm0, xmmword ptr [rsi + rdi]",
    "movups xmm1, xmmword ptr [rsi + rdi + 16]",
    "movups xmm4, xmmword ptr [rsi + rdi + 32]",
    "movups xmm5, xmmword ptr [rsi + rdi + 48]",
    "movups xmmword ptr [rdi], xmm0",
    "movups xmmword ptr [rdi + 16], xmm1",
    "movups xmmword ptr [rdi + 32], xmm4",
    "movups xmmword ptr [rdi + 48], xmm5",
    "add rdi, 64",
    "cmp rdi, rcx",
    "jb 2b",
    "movups xmmword ptr [rcx], xmm6",
    "movups xmmword ptr [rcx + 16], xmm7",
    "movups xmmword ptr [rcx + 32], xmm2",
    "movups xmmword ptr [rcx + 48], xmm3",
    "xor eax, eax",
    "ret",
    // The psABI keeps the direction flag clear at every call.
    "512:",
    "mov rcx, rdx",
    "rep movsb",
    "xor eax, eax",
    "ret",
    ".globl culvert_usercopy_fault",
    ".hidden culvert_usercopy_fault",
    "culvert_usercopy_fault:",
    "mov eax, 1",
    "ret",
    ".cfi_endproc",
    ".size culvert_usercopy, . - culvert_usercopy",
    ".popsection",
    string = const STRING,
);

/// From this length on `rep movsb` beats the loop on CPUs with fast short strings (FSRM): measured on an AMD EPYC, 1 KiB takes
/// 39 cycles instead of 45, 2 KiB 62 instead of 92; below it the loop does by not starting microcode.
const STRING: usize = 768;

unsafe extern "C" {
    fn culvert_usercopy(dst: *mut u8, src: *const u8, len: usize) -> usize;
    /// A label: where a faulting copy goes on, and the end of the range that may fault.
    fn culvert_usercopy_fault();
}

/// Copies `len` bytes. A fault on either side is an error and leaves a part of `dst` written.
///
/// Does not block; async-signal-safe.
///
/// # Safety
/// `dst` and `src` do not overlap, and each is either memory that may be written or read here, or an address that a
/// program passed in: what the kernel would refuse is refused here. Bytes that another process writes at the
/// same time are copied in some order.
#[inline(always)]
pub unsafe fn copy(dst: *mut u8, src: *const u8, len: usize) -> Result<(), Fault> {
    // SAFETY: the caller's obligation; the routine follows the C calling convention.
    if unsafe { culvert_usercopy(dst, src, len) } == 0 { Ok(()) } else { Err(Fault) }
}

/// Reads one value from a program's memory.
///
/// # Safety
/// As for [`copy`], and every bit pattern is a valid `T`.
#[inline(always)]
pub unsafe fn load<T: Copy>(src: *const T) -> Result<T, Fault> {
    let mut v = core::mem::MaybeUninit::<T>::uninit();
    // SAFETY: the caller's obligation for `src`; `v` is a local of the right size.
    unsafe { copy(v.as_mut_ptr().cast(), src.cast(), size_of::<T>())? };
    // SAFETY: the copy has written all of it, and every bit pattern is a `T`.
    Ok(unsafe { v.assume_init() })
}

/// Writes one value to a program's memory.
///
/// # Safety
/// As for [`copy`].
#[inline(always)]
pub unsafe fn store<T: Copy>(dst: *mut T, v: &T) -> Result<(), Fault> {
    // SAFETY: the caller's obligation for `dst`; `v` is a valid reference.
    unsafe { copy(dst.cast(), (v as *const T).cast(), size_of::<T>()) }
}

/// The first address above what a program can map with four levels of page tables, less the page that the kernel keeps free
/// (`TASK_SIZE_MAX`).
const USER_END: usize = 0x7fff_ffff_f000;

/// Whether the kernel refuses `len` bytes at `p` without a look at the memory (`access_ok`): they reach out of the user half
/// of the address space.
#[inline(always)]
pub fn outside<T: ?Sized>(p: *const T, len: usize) -> bool {
    let end = (p.cast::<u8>() as usize).saturating_add(len);
    end > USER_END && far_outside(end)
}

/// The same for what lies above 47 bits: with five levels of page tables a program can have memory there, if it asks for it.
#[cold]
fn far_outside(end: usize) -> bool {
    const WIDE_END: usize = (1 << 56) - 4096;
    end > WIDE_END || !lnx::is_of_user_space(1 << 47)
}

/// If `rip`, where a fault happened, is in the copy routine: where to go on.
#[inline]
pub fn fix_up(rip: usize) -> Option<usize> {
    let start = culvert_usercopy as *const () as usize;
    let resume = culvert_usercopy_fault as *const () as usize;
    (start..resume).contains(&rip).then_some(resume)
}
