//! The environment of this process.
// Unsafe here: it is an array of C strings of libc's.
#![allow(unsafe_code)]

use core::ffi::{CStr, c_char};

/// The strings of this process's own environment.
///
/// # Safety
/// It is not changed meanwhile; its strings live as long as used.
pub unsafe fn own() -> impl Iterator<Item = &'static [u8]> {
    unsafe extern "C" {
        static environ: *const *const c_char;
    }
    // SAFETY: libc's variable.
    let mut at = unsafe { environ };
    core::iter::from_fn(move || {
        // SAFETY: the caller's obligation; not beyond the end, which is null.
        let p = unsafe { at.as_ref() }.filter(|p| !p.is_null())?;
        at = at.wrapping_add(1);
        // SAFETY: the caller's obligation.
        Some(unsafe { CStr::from_ptr(*p) }.to_bytes())
    })
}

/// The value of a variable of this process. Not by `getenv`: shells and others have one of their own, which may not be ready
/// when a library's constructor runs.
///
/// # Safety
/// The program does not change its environment meanwhile: in the constructor, before it runs.
pub unsafe fn variable(name: &str) -> Option<&'static [u8]> {
    // SAFETY: libc's variable is null or points to the environment of this image; the caller's obligation.
    unsafe { own() }.find_map(|v| v.strip_prefix(name.as_bytes())?.strip_prefix(b"="))
}
