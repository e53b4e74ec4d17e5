//! `mlockall` (mlock(2)) of the program's memory alone.
// Unsafe here: libc's mlockall.
#![allow(unsafe_code)]

use core::ffi::c_int;
use engine::{channel, members, memory};
use host::real;
use shmring::{lnx, sys};

/// `mlockall`: locks what the program has, and what the kernel has for it.
///
/// The kernel would fill our tables and rings with pages, and hold the program to its limit for them.
///
/// # Safety
/// As libc's.
pub unsafe fn mlockall(flags: c_int) -> c_int {
    const KNOWN: c_int = libc::MCL_CURRENT | libc::MCL_FUTURE | libc::MCL_ONFAULT;
    // SAFETY: no memory is named.
    let lock = |flags| unsafe { real::mlockall(flags) };
    if flags & libc::MCL_CURRENT == 0 || flags & !KNOWN != 0 || members::is_filtered() {
        let r = lock(flags);
        if r == 0 {
            memory::locks_future(flags & libc::MCL_FUTURE != 0);
        }
        return r;
    }
    // First without pages: ours must not get any.
    let mut r = lock(flags | libc::MCL_ONFAULT);
    if r != 0 {
        let limit = lnx::limit(libc::RLIMIT_MEMLOCK).unwrap_or(0);
        let mut all = 0;
        mappings(|at, len, ours| all += if ours || at > usize::MAX / 2 { 0 } else { len });
        if real::errno() != libc::ENOMEM || all as u64 > limit {
            return r;
        }
        // What the program has is within its limit.
        r = lock(libc::MCL_FUTURE);
        if r != 0 {
            return r;
        }
    }
    mappings(|at, len, ours| {
        // Errors are ignored, as the kernel does for single mappings (apply_mlockall_flags).
        match ours {
            true => lnx::unlock_pages(at, len),
            false => lnx::lock_pages(at, len, flags & libc::MCL_ONFAULT != 0),
        }
    });
    memory::locks_future(flags & libc::MCL_FUTURE != 0);
    // For what is mapped from now on, as the program has asked.
    if flags & libc::MCL_FUTURE != 0 {
        return lock(flags & !libc::MCL_CURRENT);
    }
    0
}

/// `munlockall`.
///
/// # Safety
/// As libc's.
pub unsafe fn munlockall() -> c_int {
    memory::locks_future(false);
    // SAFETY: no memory is named.
    unsafe { real::munlockall() }
}

/// Calls `f` with each mapping of this process: where, how long, and whether it is ours.
fn mappings(mut f: impl FnMut(usize, usize, bool)) {
    let fd = lnx::open(c"/proc/self/maps", libc::O_RDONLY | libc::O_CLOEXEC, 0);
    if fd < 0 {
        return;
    }
    let (start, end) = memory::image();
    // The kernel gives whole lines, from where the last ones ended; the longest has a path of PATH_MAX.
    let mut text = [0u8; 6144];
    loop {
        let n = lnx::read(fd, &mut text);
        if n <= 0 {
            break;
        }
        for line in text[..n as usize].split(|b| *b == b'\n') {
            let (at, rest) = hexadecimal(line);
            let (to, _) = hexadecimal(rest.get(1..).unwrap_or_default());
            if to > at {
                let named = line.windows(14).any(|w| w == b"/memfd:culvert");
                f(at, to - at, named || (start..end).contains(&at) || channel::holds(at));
            }
        }
    }
    sys::close(fd);
}

fn hexadecimal(text: &[u8]) -> (usize, &[u8]) {
    let n = text.iter().take_while(|b| b.is_ascii_hexdigit()).count();
    let (digits, rest) = text.split_at(n);
    (digits.iter().fold(0, |v, b| v << 4 | (*b as char).to_digit(16).unwrap_or(0) as usize), rest)
}
