//! Streams on a descriptor: stdio reads and writes it inside libc, where nobody sees it, so its socket goes
//! to the kernel first. `dprintf` is variadic and may be given floating-point values, which
//! [`super::trampoline`] hands on in their registers.

use crate::descriptors;
use core::ffi::{c_char, c_int, c_void};
use engine::leave::{self, Moves};
use host::real;
use libc::FILE;
use shmring::family::Reason;

#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn fdopen(fd: c_int, mode: *const c_char) -> *mut FILE {
    // SAFETY: libc gets the program's own arguments.
    unsafe {
        leave::surrender(fd, Reason::Stdio);
        real::fdopen(fd, mode)
    }
}

/// The name that old headers gave `fdopen`.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn _IO_fdopen(fd: c_int, mode: *const c_char) -> *mut FILE {
    // SAFETY: the same function under another name.
    unsafe { fdopen(fd, mode) }
}

/// Closes the descriptor inside libc.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn fclose(f: *mut FILE) -> c_int {
    // SAFETY: `f` is the program's stream, which it gives up with this call.
    unsafe {
        if !f.is_null() {
            let saved = real::errno();
            // A closed or memory stream answers -1, which is nobody's.
            descriptors::created(libc::fileno(f));
            real::set_errno(saved);
        }
        real::fclose(f)
    }
}

/// The name that old headers gave `fclose`.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn _IO_fclose(f: *mut FILE) -> c_int {
    // SAFETY: the same function under another name.
    unsafe { fclose(f) }
}

/// A `va_list` is passed as a pointer on x86-64.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn vdprintf(fd: c_int, format: *const c_char, args: *mut c_void) -> c_int {
    // SAFETY: libc gets the program's own arguments.
    unsafe {
        leave::sending_side(fd, Reason::Stdio);
        leave::natively(fd, Moves::Out(0), || real::vdprintf(fd, format, args) as isize) as c_int
    }
}

/// `vdprintf` with `_FORTIFY_SOURCE`.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn __vdprintf_chk(
    fd: c_int,
    flag: c_int,
    format: *const c_char,
    args: *mut c_void,
) -> c_int {
    // SAFETY: libc gets the program's own arguments.
    unsafe {
        leave::sending_side(fd, Reason::Stdio);
        leave::natively(fd, Moves::Out(0), || real::__vdprintf_chk(fd, flag, format, args) as isize) as c_int
    }
}
