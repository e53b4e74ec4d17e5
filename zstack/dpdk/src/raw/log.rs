//! What DPDK says: kept for the text of an error instead of being written to standard output and syslog.

use std::ffi::{c_char, c_int, c_void};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use zstack_dpdk_sys as sys;

/// As much of it as is kept.
const MOST: usize = 16 << 10;

static SAID: Mutex<String> = Mutex::new(String::new());
static ECHO: AtomicBool = AtomicBool::new(false);

/// `cookie_io_functions_t` (fopencookie(3)).
#[repr(C)]
struct Functions {
    read: Option<extern "C" fn(*mut c_void, *mut c_char, usize) -> isize>,
    write: Option<extern "C" fn(*mut c_void, *const c_char, usize) -> isize>,
    seek: Option<extern "C" fn(*mut c_void, *mut i64, c_int) -> c_int>,
    close: Option<extern "C" fn(*mut c_void) -> c_int>,
}

unsafe extern "C" {
    fn fopencookie(cookie: *mut c_void, mode: *const c_char, functions: Functions) -> *mut sys::libc_file::FILE;
    fn setvbuf(stream: *mut sys::libc_file::FILE, buffer: *mut c_char, mode: c_int, size: usize) -> c_int;
}

extern "C" fn write(_: *mut c_void, bytes: *const c_char, n: usize) -> isize {
    // SAFETY: stdio hands over `n` bytes that live through the call.
    let bytes = unsafe { std::slice::from_raw_parts(bytes.cast::<u8>(), n) };
    let text = String::from_utf8_lossy(bytes);
    if ECHO.load(Ordering::Relaxed) {
        use std::io::Write;
        let _ = std::io::stderr().write_all(text.as_bytes());
    }
    let mut said = SAID.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    if said.len() + text.len() > MOST {
        said.clear();
    }
    said.push_str(&text);
    n as isize
}

/// From now on DPDK speaks to us.
pub(crate) fn begin() {
    let functions = Functions { read: None, write: Some(write), seek: None, close: None };
    // SAFETY: the mode is a string of C, and the functions live as long as the program; nobody closes the stream.
    let stream = unsafe { fopencookie(std::ptr::null_mut(), c"w".as_ptr(), functions) };
    if !stream.is_null() {
        // _IOLBF: by lines.
        // SAFETY: the stream is open, and stdio allocates the buffer itself.
        unsafe { setvbuf(stream, std::ptr::null_mut(), 1, 1024) };
        // SAFETY: the stream is open and stays so.
        unsafe { sys::rte_openlog_stream(stream) };
    }
}

/// Whether what it says goes to standard error too.
pub(crate) fn echo(on: bool) {
    ECHO.store(on, Ordering::Relaxed);
}

/// Forgets what it said.
pub(crate) fn clear() {
    SAID.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).clear();
}

/// What it has said since.
pub(crate) fn said() -> String {
    SAID.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).clone()
}
