//! What a program passes to a program that it starts.
// Unsafe here: environments are arrays of C strings.
#![allow(unsafe_code)]

use crate::{environment, usercopy};
use core::ffi::c_char;

/// The environment that a program is to get.
#[derive(Clone, Copy)]
pub enum Environment {
    /// This process's own.
    Own,
    /// An array of C strings that ends with a null pointer, as the program has passed it; the pointers may be bad. A null pointer in
    /// its place is an empty environment (execve(2), NOTES).
    Array(*const *const c_char),
}

impl Environment {
    /// Whether one of its strings is `wanted`. Where a pointer is bad the looking ends: the exec will fail by it.
    ///
    /// # Safety
    /// The environment is not changed meanwhile. `usercopy`'s faults are armed.
    pub unsafe fn any(self, mut wanted: impl FnMut(&[u8]) -> bool) -> bool {
        let Environment::Array(mut at) = self else {
            // SAFETY: the caller's obligation.
            return unsafe { environment::own() }.any(wanted);
        };
        // SAFETY: an array of the program's; a bad pointer is a fault.
        while let Ok(p) = unsafe { usercopy::load(at) }
            && !p.is_null()
            // SAFETY: a string of the program's.
            && let Some(string) = unsafe { string(p) }
        {
            if wanted(string) {
                return true;
            }
            at = at.wrapping_add(1);
        }
        false
    }
}

/// A string that the program passes on, if it can be read and an exec takes it (MAX_ARG_STRLEN).
///
/// # Safety
/// What is at `p` is not changed meanwhile; the string is used as long only.
unsafe fn string<'a>(p: *const c_char) -> Option<&'a [u8]> {
    const PAGE: usize = 4096;
    const LONGEST: usize = 32 * PAGE;
    let (p, mut len) = (p.cast::<u8>(), 0);
    while len < LONGEST {
        let at = p.wrapping_add(len);
        // What lies on one page can be read or not as a whole.
        let mut some = [0u8; 256];
        let size = some.len().min(PAGE - at.addr() % PAGE);
        // SAFETY: an address that the program passed in; a bad one is a fault.
        unsafe { usercopy::copy(some.as_mut_ptr(), at, size) }.ok()?;
        if let Some(end) = some.iter().take(size).position(|b| *b == 0) {
            // SAFETY: all of it has just been read.
            return Some(unsafe { core::slice::from_raw_parts(p, len + end) });
        }
        len += size;
    }
    None
}
