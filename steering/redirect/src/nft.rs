//! nftables' own library: what it has made for a table with the flag `owner` goes with its socket, which a process can hand on; `nft` itself
//! would end, and take it along. It is looked for when it is needed: who has no forwarded connections needs none.
// Unsafe here: a C library that is loaded by its name, and a flag of descriptors that it has opened.
#![allow(unsafe_code)]

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use std::collections::BTreeSet;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::fs;
use std::os::fd::{BorrowedFd, RawFd};
use std::path::PathBuf;

/// A context of the library, with its socket; the network namespace is that of the thread that makes it.
pub(crate) struct Nft {
    calls: Calls,
    context: *mut c_void,
    sockets: Vec<RawFd>,
}

/// libnftables(3).
#[derive(Clone, Copy)]
struct Calls {
    free: unsafe extern "C" fn(*mut c_void),
    run: unsafe extern "C" fn(*mut c_void, *const c_char) -> c_int,
    output: unsafe extern "C" fn(*mut c_void) -> *const c_char,
    error: unsafe extern "C" fn(*mut c_void) -> *const c_char,
}

/// A function of the library.
fn named(library: *mut c_void, name: &CStr) -> Result<*mut c_void, String> {
    // SAFETY: the library is open, and is never closed; the name ends with a zero.
    let found = unsafe { libc::dlsym(library, name.as_ptr()) };
    if found.is_null() { Err(format!("libnftables has no {}", name.to_string_lossy())) } else { Ok(found) }
}

/// The sockets of this process, by descriptor and inode.
fn sockets() -> BTreeSet<(RawFd, PathBuf)> {
    let entries = fs::read_dir("/proc/self/fd").into_iter().flatten().flatten();
    let all = entries.filter_map(|entry| {
        let fd = entry.file_name().to_str()?.parse().ok()?;
        Some((fd, fs::read_link(entry.path()).ok()?))
    });
    all.filter(|(_, what)| what.to_string_lossy().starts_with("socket:")).collect()
}

impl Nft {
    pub(crate) fn new() -> Result<Nft, String> {
        // SAFETY: the name ends with a zero; the library's start has no conditions.
        let library = unsafe { libc::dlopen(c"libnftables.so.1".as_ptr(), libc::RTLD_NOW) };
        if library.is_null() {
            return Err("there is no libnftables.so.1: apt-get install libnftables1".into());
        }
        let at = |name| named(library, name);
        // SAFETY: these are the types that nftables/libnftables.h gives them, in all versions of libnftables.so.1.
        let (new, buffer_output, buffer_error, calls) = unsafe {
            use std::mem::transmute;
            (
                transmute::<*mut c_void, unsafe extern "C" fn(u32) -> *mut c_void>(at(c"nft_ctx_new")?),
                transmute::<*mut c_void, unsafe extern "C" fn(*mut c_void) -> c_int>(at(c"nft_ctx_buffer_output")?),
                transmute::<*mut c_void, unsafe extern "C" fn(*mut c_void) -> c_int>(at(c"nft_ctx_buffer_error")?),
                Calls {
                    free: transmute::<*mut c_void, unsafe extern "C" fn(*mut c_void)>(at(c"nft_ctx_free")?),
                    run: transmute::<*mut c_void, unsafe extern "C" fn(*mut c_void, *const c_char) -> c_int>(at(
                        c"nft_run_cmd_from_buffer",
                    )?),
                    output: transmute::<*mut c_void, unsafe extern "C" fn(*mut c_void) -> *const c_char>(at(
                        c"nft_ctx_get_output_buffer",
                    )?),
                    error: transmute::<*mut c_void, unsafe extern "C" fn(*mut c_void) -> *const c_char>(at(
                        c"nft_ctx_get_error_buffer",
                    )?),
                },
            )
        };
        let before = sockets();
        // SAFETY: it takes flags: none. It ends the process where it gets no socket.
        let context = unsafe { new(0) };
        if context.is_null() {
            return Err("libnftables does not start".into());
        }
        let sockets = sockets().difference(&before).map(|(fd, _)| *fd).collect::<Vec<_>>();
        if sockets.is_empty() {
            return Err("libnftables' socket cannot be found: mount /proc".into());
        }
        let nft = Nft { calls, context, sockets };
        // SAFETY: the context is one of the library's, and is freed by `drop` alone.
        if unsafe { buffer_output(context) != 0 || buffer_error(context) != 0 } {
            return Err("libnftables has no memory".into());
        }
        Ok(nft)
    }

    /// Does what the text says, all of it or nothing. What it prints; or what it says is wrong.
    pub(crate) fn run(&mut self, text: &str) -> Result<String, String> {
        let text = CString::new(text).map_err(|e| e.to_string())?;
        // SAFETY: the context is the library's own and is used by one thread; the text ends with a zero, and so do the two buffers, which are read
        // before the next call.
        let (failed, out, error) = unsafe {
            let failed = (self.calls.run)(self.context, text.as_ptr()) != 0;
            (failed, words((self.calls.output)(self.context)), words((self.calls.error)(self.context)))
        };
        if failed { Err(error.lines().next().unwrap_or("it failed").to_owned()) } else { Ok(out) }
    }

    /// From here on its sockets are there until the last process that has them ends, also behind `exec`.
    pub(crate) fn hand_on(self) -> Result<(), String> {
        for fd in &self.sockets {
            // SAFETY: the library has opened it, and closes it only when its context is freed.
            let socket = unsafe { BorrowedFd::borrow_raw(*fd) };
            fcntl(socket, FcntlArg::F_SETFD(FdFlag::empty())).map_err(|e| format!("libnftables' socket: {e}"))?;
        }
        std::mem::forget(self);
        Ok(())
    }
}

/// # Safety
/// It is null, or points to a text that ends with a zero.
unsafe fn words(text: *const c_char) -> String {
    if text.is_null() {
        return String::new();
    }
    // SAFETY: the caller says so.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}

impl Drop for Nft {
    fn drop(&mut self) {
        // SAFETY: it is the library's, and nobody uses it any more.
        unsafe { (self.calls.free)(self.context) }
    }
}
