//! A name that a sanitizer asks for. AddressSanitizer's runtime refuses to start behind another preloaded library, because
//! that one might have replaced memory functions before it. This library replaces none.

use core::ffi::{CStr, c_char};

/// Options of AddressSanitizer, unless the program defines this function itself; those in ASAN_OPTIONS come behind them.
#[unsafe(no_mangle)]
pub extern "C" fn __asan_default_options() -> *const c_char {
    const OPTIONS: &CStr = c"verify_asan_link_order=0";
    OPTIONS.as_ptr()
}
