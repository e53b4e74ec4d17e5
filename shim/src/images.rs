//! Whether an exec will find its file. One that will not needs nothing to be prepared: a search of PATH, in the program or
//! in `execvp`, fails for most directories, and what an exec prepares for the next image cannot be undone completely.
// Unsafe here: paths are the program's C strings.
#![allow(unsafe_code)]

use core::ffi::{CStr, c_char, c_int};
use engine::{custody, members};
use host::{environment, objects};
use shmring::syscall;

/// What reads libc's stream `stdin`, by system calls of libc's own, and the stream itself.
const STDIN: &[&CStr] = &[
    c"stdin",
    c"_IO_2_1_stdin_",
    c"getchar",
    c"getchar_unlocked",
    c"gets",
    c"__gets_chk",
    c"getpass",
    c"getwchar",
    c"getwchar_unlocked",
    c"scanf",
    c"vscanf",
    c"__isoc99_scanf",
    c"__isoc99_vscanf",
    c"__isoc23_scanf",
    c"__isoc23_vscanf",
    c"wscanf",
    c"vwscanf",
    c"__isoc99_wscanf",
    c"__isoc99_vwscanf",
    c"__isoc23_wscanf",
    c"__isoc23_vwscanf",
];

const AT_EACCESS: c_int = 0x200;
/// Since Linux 5.8.
const SYS_FACCESSAT2: i64 = 439;

/// The error with which an exec of `path` fails because there is no such file that may be executed (execve(2)).
///
/// # Safety
/// `path` is a pointer that the program passed in; the kernel reads it, or reports a fault.
pub unsafe fn missing(at: c_int, path: *const c_char) -> Option<c_int> {
    if members::is_filtered() {
        // Not a call that the program makes itself.
        return None;
    }
    // SAFETY: the caller's obligation.
    let r = unsafe { syscall!(SYS_FACCESSAT2, at, path, libc::X_OK, AT_EACCESS) } as c_int;
    // Anything else is the exec's to say.
    matches!(-r, libc::ENOENT | libc::ENOTDIR | libc::EACCES | libc::ELOOP | libc::ENAMETOOLONG | libc::EFAULT)
        .then_some(-r)
}

/// A path, where it concerns anybody ([`custody`]), and if it can be read.
///
/// # Safety
/// `path` is a pointer that the program passed in; what it points to is not changed meanwhile.
pub unsafe fn readable(path: *const c_char) -> Option<&'static CStr> {
    if path.is_null() || !custody::any() || members::is_filtered() {
        return None;
    }
    // SAFETY: the kernel reads the path, or reports a fault.
    let r = unsafe { syscall!(libc::SYS_faccessat, libc::AT_FDCWD, path, libc::F_OK) } as c_int;
    // SAFETY: the kernel has found the end of the string.
    (!matches!(-r, libc::EFAULT | libc::ENAMETOOLONG)).then(|| unsafe { CStr::from_ptr(path) })
}

/// The same for a file that is searched for in PATH (execvp(3)).
///
/// # Safety
/// `file` is null or a C string.
pub unsafe fn missing_in_path(file: *const c_char) -> Option<c_int> {
    if file.is_null() {
        return None;
    }
    // SAFETY: the caller's obligation.
    let name = unsafe { CStr::from_ptr(file) }.to_bytes();
    if name.contains(&b'/') {
        // SAFETY: as above.
        return unsafe { missing(libc::AT_FDCWD, file) };
    }
    if name.is_empty() {
        return Some(libc::ENOENT);
    }
    if name.len() > libc::FILENAME_MAX as usize || name.len() > 255 {
        return Some(libc::ENAMETOOLONG);
    }
    // SAFETY: the environment of this process.
    let path = unsafe { environment::own() }.find_map(|v| v.strip_prefix(b"PATH=")).unwrap_or(b"/bin:/usr/bin");
    let mut denied = false;
    let mut last = libc::ENOENT;
    for dir in path.split(|b| *b == b':') {
        let mut whole = [0u8; libc::PATH_MAX as usize + 256];
        if dir.len() >= libc::PATH_MAX as usize {
            // As libc does.
            continue;
        }
        let slash: &[u8] = if dir.is_empty() { b"" } else { b"/" };
        for (to, from) in whole.iter_mut().zip(dir.iter().chain(slash).chain(name)) {
            *to = *from;
        }
        // SAFETY: NUL-terminated: directory, slash and name are shorter.
        match unsafe { missing(libc::AT_FDCWD, whole.as_ptr().cast()) } {
            None => return None,
            Some(libc::EACCES) => denied = true,
            Some(e @ (libc::ENOENT | libc::ENOTDIR)) => last = e,
            Some(e) => return Some(e),
        }
    }
    Some(if denied { libc::EACCES } else { last })
}

/// Whether what is loaded of this program may read descriptor 0 by stdio.
pub fn uses_stdin() -> bool {
    objects::any_uses(STDIN)
}
