//! Functions that cannot be written in Rust: variadic ones, which must hand every argument register and
//! the stack on to libc untouched, and `vfork`, whose caller runs twice on one stack.

use super::process;
use crate::{bypass, processes};
use core::arch::naked_asm;
use core::ffi::{CStr, c_char, c_int};
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use engine::{config, handoff, leave};
use host::real;
use shmring::family::Reason;

/// Exports `$name`, which calls `$before` with its first argument and then jumps to the address that it
/// returned, with all registers that can carry arguments, and the number of vector registers in `al`, as
/// they were (System V ABI for AMD64, 3.2.3 and 3.5.7). The stack is as the caller left it, so arguments
/// beyond the registers are in place, and libc returns straight to the caller.
macro_rules! jump {
    ($($name:ident => $before:ident;)*) => {$(
        #[doc = concat!("`", stringify!($name), "`, as its manual page has it.")]
        ///
        /// # Safety
        /// As libc's.
        #[unsafe(naked)]
        #[unsafe(no_mangle)]
        pub unsafe extern "C-unwind" fn $name() {
            naked_asm!(
                "push rbp",
                "mov rbp, rsp",
                "sub rsp, 192",
                "mov [rsp], rdi",
                "mov [rsp + 8], rsi",
                "mov [rsp + 16], rdx",
                "mov [rsp + 24], rcx",
                "mov [rsp + 32], r8",
                "mov [rsp + 40], r9",
                "mov [rsp + 48], rax",
                "movaps [rsp + 64], xmm0",
                "movaps [rsp + 80], xmm1",
                "movaps [rsp + 96], xmm2",
                "movaps [rsp + 112], xmm3",
                "movaps [rsp + 128], xmm4",
                "movaps [rsp + 144], xmm5",
                "movaps [rsp + 160], xmm6",
                "movaps [rsp + 176], xmm7",
                "call {before}",
                "mov r11, rax",
                "mov rdi, [rsp]",
                "mov rsi, [rsp + 8]",
                "mov rdx, [rsp + 16]",
                "mov rcx, [rsp + 24]",
                "mov r8, [rsp + 32]",
                "mov r9, [rsp + 40]",
                "mov rax, [rsp + 48]",
                "movaps xmm0, [rsp + 64]",
                "movaps xmm1, [rsp + 80]",
                "movaps xmm2, [rsp + 96]",
                "movaps xmm3, [rsp + 112]",
                "movaps xmm4, [rsp + 128]",
                "movaps xmm5, [rsp + 144]",
                "movaps xmm6, [rsp + 160]",
                "movaps xmm7, [rsp + 176]",
                "leave",
                "jmp r11",
                before = sym $before,
            )
        }
    )*};
}

jump! {
    dprintf => before_dprintf;
    __dprintf_chk => before_dprintf_chk;
}

/// The address of libc's function `name`, or of one that fails as a missing function does.
fn target(slot: &AtomicUsize, name: &CStr) -> usize {
    match slot.load(Ordering::Relaxed) {
        0 => {}
        p => return p,
    }
    let p = match real::address(name) {
        0 => missing as extern "C" fn() -> c_int as usize,
        p => p,
    };
    slot.store(p, Ordering::Relaxed);
    p
}

extern "C" fn missing() -> c_int {
    real::set_errno(libc::ENOSYS);
    -1
}

extern "C" fn before_dprintf(fd: c_int) -> usize {
    static SLOT: AtomicUsize = AtomicUsize::new(0);
    leave::sending_side(fd, Reason::Stdio);
    target(&SLOT, c"dprintf")
}

extern "C" fn before_dprintf_chk(fd: c_int) -> usize {
    static SLOT: AtomicUsize = AtomicUsize::new(0);
    leave::sending_side(fd, Reason::Stdio);
    target(&SLOT, c"__dprintf_chk")
}

/// Exports `$name`, which calls `$exec` with its first argument and the others as an array: those from the registers are
/// put on the stack below those that lie there.
macro_rules! lists {
    ($($name:ident => $exec:ident;)*) => {$(
        #[doc = concat!("`", stringify!($name), "`, as its manual page has it.")]
        ///
        /// # Safety
        /// As libc's.
        #[unsafe(naked)]
        #[unsafe(no_mangle)]
        pub unsafe extern "C-unwind" fn $name() {
            naked_asm!(
                "pop rax",
                "push r9",
                "push r8",
                "push rcx",
                "push rdx",
                "push rsi",
                "mov rsi, rsp",
                // The return address. The stack is aligned now.
                "push rax",
                "call {exec}",
                "pop rcx",
                "add rsp, 40",
                "push rcx",
                "ret",
                exec = sym $exec,
            )
        }
    )*};
}

lists! {
    execl => exec_list;
    execle => exec_list_env;
    execlp => exec_list_path;
}

unsafe extern "C-unwind" fn exec_list(path: *const c_char, list: *const *const c_char) -> c_int {
    // SAFETY: the program's arguments, which end with a null pointer.
    unsafe { process::execv(path, list) }
}

unsafe extern "C-unwind" fn exec_list_path(file: *const c_char, list: *const *const c_char) -> c_int {
    // SAFETY: as above.
    unsafe { process::execvp(file, list) }
}

/// The environment comes behind the null pointer that ends the list.
unsafe extern "C-unwind" fn exec_list_env(path: *const c_char, list: *const *const c_char) -> c_int {
    let mut end = list;
    // SAFETY: as above; the environment is the next argument.
    unsafe {
        while !(*end).is_null() {
            end = end.add(1);
        }
        process::execve(path, list, *end.add(1).cast())
    }
}

/// Exports `$name`, whose flags are in `$flags`, without `RTLD_DEEPBIND`: an object loaded with it looks in libc before it
/// looks here, so that its `poll` or `recv` would not know that bytes of a connection are on the ring (PHP loads all
/// extensions like this). A jump, because libc takes the RUNPATH and the namespace from its return address.
macro_rules! loaders {
    ($($name:ident($flags:literal) => $before:ident;)*) => {$(
        #[doc = concat!("`", stringify!($name), "`, as its manual page has it.")]
        ///
        /// # Safety
        /// As libc's.
        #[unsafe(naked)]
        #[unsafe(no_mangle)]
        pub unsafe extern "C-unwind" fn $name() {
            naked_asm!(
                "push rdi",
                "push rsi",
                "push rdx",
                "call {before}",
                "mov ecx, edx",
                "pop rdx",
                "pop rsi",
                "pop rdi",
                concat!("and ", $flags, ", ecx"),
                "jmp rax",
                before = sym $before,
            )
        }
    )*};
}

loaders! {
    dlopen("esi") => before_dlopen;
    dlmopen("edx") => before_dlmopen;
}

/// Where to jump, and the flags to keep.
#[repr(C)]
struct Loader {
    target: usize,
    keep: usize,
}

fn loader(target: usize) -> Loader {
    let keep = if config::enabled() { !libc::RTLD_DEEPBIND } else { !0 };
    Loader { target, keep: keep as usize }
}

/// An exec has handed on bytes of descriptor 0, and nothing that is loaded reads that by stdio.
static MINDS_STDIN: AtomicBool = AtomicBool::new(false);

/// See `MINDS_STDIN`.
pub fn mind_stdin() {
    MINDS_STDIN.store(true, Ordering::Relaxed);
}

extern "C" fn before_dlopen() -> Loader {
    static SLOT: AtomicUsize = AtomicUsize::new(0);
    if MINDS_STDIN.load(Ordering::Relaxed) && handoff::stdin_is_handed_on() {
        // What is loaded may read it by stdio.
        handoff::forbid_stdin();
    }
    loader(target(&SLOT, c"dlopen"))
}

/// A library in another namespace calls a libc of its own, with any descriptor of the process.
extern "C" fn before_dlmopen(namespace: libc::Lmid_t) -> Loader {
    static SLOT: AtomicUsize = AtomicUsize::new(0);
    if namespace != libc::LM_ID_BASE {
        bypass::by(Reason::Namespace);
    }
    loader(target(&SLOT, c"dlmopen"))
}

/// Exports a name of `vfork`. The child runs on the caller's stack and returns from here first, so that
/// the return address on the stack will be overwritten before the parent comes back: it waits in `rdx`,
/// which the kernel preserves in both (a register of ours is no memory of the child's).
macro_rules! vforks {
    ($($name:ident)*) => {$(
        #[doc = concat!("`", stringify!($name), "`, as vfork(2) has it.")]
        ///
        /// # Safety
        /// As libc's.
        #[unsafe(naked)]
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name() -> c_int {
            naked_asm!(
                "sub rsp, 8",
                "call {before}",
                "add rsp, 8",
                "pop rdx",
                "mov eax, {nr}",
                "syscall",
                "push rdx",
                "test rax, rax",
                "jz 2f",
                // The parent, or nobody was born. Pushing also aligns the stack for the call.
                "push rax",
                "call {after}",
                "pop rax",
                "test rax, rax",
                "js 3f",
                "2: ret",
                "3: mov rdi, rax",
                "jmp {failed}",
                before = sym before_vfork,
                after = sym after_vfork,
                failed = sym vfork_failed,
                nr = const libc::SYS_vfork,
            )
        }
    )*};
}

vforks! { vfork __vfork }

extern "C" fn before_vfork() {
    processes::before_vfork();
}

extern "C" fn after_vfork() {
    processes::after_vfork_parent();
}

extern "C" fn vfork_failed(r: isize) -> c_int {
    real::ret(r) as c_int
}
