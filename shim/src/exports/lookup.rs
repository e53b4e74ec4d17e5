//! `dlsym` and `dlvsym`: a program that asks libc itself for a function that we export (by a handle of `dlopen`, as
//! ctypes, JNA and .NET do, or from a library behind us with `RTLD_NEXT`) is given ours. libc's would read and write the
//! lifeline of a connection whose bytes are on the ring.
//!
//! Not so a library that stands between us and libc with a function of the same name, as sanitizers do: it looks for
//! what it calls in turn, our function would call it, and it us. Whether another library beside it does so on its behalf
//! nobody can tell: that one is given libc's function, and no connection is carried in this process any more.

use crate::bypass;
use core::arch::naked_asm;
use core::ffi::{CStr, c_char, c_void};
use core::ptr::null;
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use host::objects::{self, Object};
use host::real;
use shmring::family::Reason;

/// Exports `$name`, which calls `$before` with its arguments and its return address. It returns what that found, or
/// jumps to libc's function, which takes the namespace and what is next from the same return address.
macro_rules! lookups {
    ($($name:ident => $before:ident;)*) => {$(
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
                "mov rcx, [rsp + 24]",
                "call {before}",
                "test rax, rax",
                "jz 2f",
                "pop rdx",
                "pop rsi",
                "pop rdi",
                "jmp rax",
                "2: mov rax, rdx",
                "add rsp, 24",
                "ret",
                before = sym $before,
            )
        }
    )*};
}

lookups! {
    dlsym => before_dlsym;
    dlvsym => before_dlvsym;
}

/// Where to jump, or 0 and what to return.
#[repr(C)]
struct Answer {
    target: usize,
    found: usize,
}

/// Set when culvert is off in this process. Before the constructor has run nobody knows, and our functions only call libc's.
static OFF: AtomicBool = AtomicBool::new(false);

/// Names are looked up as if we were not there.
pub fn off() {
    OFF.store(true, Relaxed);
}

/// Set when somebody got a function of libc's by which descriptors can be used without us.
static DOUBT: AtomicBool = AtomicBool::new(false);

fn doubt() {
    DOUBT.store(true, Relaxed);
    bypass::by(Reason::Raw);
}

/// Whether that was so before the constructor ran, when nothing could be done about it.
pub fn is_doubtful() -> bool {
    DOUBT.load(Relaxed)
}

/// A name in what `dlsym` or `dlvsym` is asked for.
#[derive(Clone, Copy)]
struct Wanted {
    name: *const c_char,
    /// Null for `dlsym`.
    version: *const c_char,
    target: usize,
}

impl Wanted {
    /// Asks libc's function.
    fn ask(&self, handle: *mut c_void) -> usize {
        type Dlvsym = unsafe extern "C" fn(*mut c_void, *const c_char, *const c_char) -> usize;
        // SAFETY: libc's dlvsym, or its dlsym, which ignores the third argument.
        let f: Dlvsym = unsafe { core::mem::transmute(self.target) };
        // SAFETY: the caller's strings, and its handle or one of an object that is loaded.
        unsafe { f(handle, self.name, self.version) }
    }
}

extern "C" fn before_dlsym(handle: *mut c_void, name: *const c_char, _: usize, caller: usize) -> Answer {
    static SLOT: AtomicUsize = AtomicUsize::new(0);
    let target = real::lookup(&SLOT, c"dlsym");
    answer(handle, Wanted { name, version: null(), target }, caller)
}

extern "C" fn before_dlvsym(handle: *mut c_void, name: *const c_char, version: *const c_char, caller: usize) -> Answer {
    static SLOT: AtomicUsize = AtomicUsize::new(0);
    let target = real::lookup(&SLOT, c"dlvsym");
    answer(handle, Wanted { name, version, target }, caller)
}

extern "C" fn none() -> usize {
    0
}

fn answer(handle: *mut c_void, wanted: Wanted, caller: usize) -> Answer {
    if wanted.target == 0 {
        return Answer { target: none as extern "C" fn() -> usize as usize, found: 0 };
    }
    match find(handle, wanted, caller) {
        Some(found) => Answer { target: 0, found },
        None => Answer { target: wanted.target, found: 0 },
    }
}

/// What to answer; `None`: what libc answers.
fn find(handle: *mut c_void, wanted: Wanted, caller: usize) -> Option<usize> {
    if OFF.load(Relaxed) || wanted.name.is_null() {
        return None;
    }
    // SAFETY: the caller's string, as libc will read it.
    let name = unsafe { CStr::from_ptr(wanted.name) };
    let ours = objects::us()?.find(name)?;
    let libc = objects::after_us().find(Object::is_libc)?;
    let libcs = libc.find(name)?;
    let caller = objects::containing(caller);
    let between = |o: Object| objects::after_us().take_while(|o| !o.is_libc()).any(|other| other == o);
    let chained = |o: Object| {
        let doubtful = between(o) && o.find(name).is_none() && real::address(name) != libcs;
        if doubtful {
            doubt();
        }
        doubtful || between(o) && o.find(name).is_some()
    };
    let swap = |found: usize| if found == libcs && !caller.is_some_and(chained) { ours } else { found };
    // An older version of a function is not ours, and nobody's but libc's.
    // SAFETY: the caller's string, as libc will read it.
    let version = (!wanted.version.is_null()).then(|| unsafe { CStr::from_ptr(wanted.version) });
    let is_default = || version.is_none_or(|v| libc.version(name) == Some(v));
    let Some(by) = caller.filter(|_| handle == libc::RTLD_NEXT) else {
        if handle == libc::RTLD_NEXT || handle == libc::RTLD_DEFAULT && version.is_none() {
            // We come before libc.
            return None;
        }
        return Some(swap(wanted.ask(handle)));
    };
    if objects::up_to_us().any(|o| o == by) && version.is_none() {
        // We may be what is next. With a version we are not found: we define names without one.
        return None;
    }
    // Who was loaded later, or is needed by one that was, is not called by us.
    (!chained(by) && is_default()).then_some(ours)
}
