//! libculvert.so: carries the TCP bytes of unmodified programs around the kernel.
//!
//! ```text
//! exports/*      a libc call                 -> an operation on an endpoint (`engine::io`), and nothing else
//! epoll, poll    the program's own waits, with what `engine::readiness` says of a connection
//! descriptors    made and duplicated; processes: fork, exec, exit; options
//! bypass         programs that use descriptors without libc
//! ```
//! Safety of the whole: the library has no allocator, no threads, no unwinding. Its state is static atomics.
#![cfg_attr(not(test), no_std)]
#![deny(unsafe_code)]
#![allow(clippy::missing_safety_doc)]

mod arrays;
mod bypass;
mod descriptors;
mod epoll;
mod exports;
mod images;
mod jail;
mod mlock;
mod options;
mod poll;
mod processes;
mod select;
mod unwind;
mod users;

use core::ffi::c_void;
use engine::{config, custody, family, handoff, intents, memory, spin, watchers};
use host::{clock, environment, log, real, signals};

// The libc crate asks for libc only while no crate of the build turns its `std` feature on.
#[link(name = "c")]
#[allow(unsafe_code)]
unsafe extern "C" {}

/// Who watches connections: the program's epoll sets. Those that it might have made without libc count as well.
static WATCHERS: watchers::Watchers = watchers::Watchers {
    may_attach: |ep| epoll::may_attach(ep) && !bypass::suspected(ep),
    attached: epoll::attached,
    touched: epoll::touched,
    gave_way: epoll::gave_way,
    turned_away: epoll::turned_away,
    drained: epoll::drained,
    number_closed: epoll::number_closed,
    forget: epoll::forget,
};

/// glibc's `pthread_atfork`, for libraries that are never unloaded.
type RegisterAtfork = unsafe extern "C" fn(
    prepare: Option<extern "C" fn()>,
    parent: Option<extern "C" fn()>,
    child: Option<extern "C" fn()>,
    dso: *mut c_void,
) -> i32;

/// Run by the dynamic linker, possibly after other libraries' constructors have called us. Before it, culvert is off.
// Unsafe here: what the kernel and libc hand to a library at its start are pointers.
#[allow(unsafe_code)]
extern "C" fn start() {
    // SAFETY: reads a number that the kernel passed to this image.
    if unsafe { libc::getauxval(libc::AT_SECURE) } != 0 {
        // A program with more rights than its caller (ld.so(8), secure-execution mode): the environment is the caller's. None of
        // it is obeyed, nothing is said, and the path stays the kernel's, as it is until the configuration was read.
        return log::silence();
    }
    // Another libc (musl's dynamic linker obeys LD_PRELOAD, too) knows not all of the functions that we put in front of
    // its own. Looked up rather than imported: a dynamic linker that misses a name does not start the program.
    let register = real::address(c"__register_atfork");
    if register == 0 {
        exports::lookup::off();
        return;
    }
    if jail::forbids() {
        exports::lookup::off();
        return;
    }
    watchers::are(&WATCHERS);
    memory::init();
    log::init();
    // SAFETY: this is the constructor: the program does not run yet.
    config::init(|name| unsafe { environment::variable(name) });
    clock::init();
    spin::init();
    if !config::enabled() {
        exports::lookup::off();
        return;
    }
    signals::init();
    if exports::lookup::is_doubtful() {
        bypass::by(shmring::family::Reason::Raw);
    }
    if handoff::take_up() {
        epoll::stand_for_heirs();
    }
    if handoff::stdin_is_handed_on() {
        if images::uses_stdin() {
            handoff::forbid_stdin();
        } else {
            exports::trampoline::mind_stdin();
        }
    }
    // SAFETY: reads a number that the kernel passed to this image: 0, or the address of a C string that lasts as long as
    // the image (AT_EXECFN, getauxval(3)).
    let path = unsafe { libc::getauxval(libc::AT_EXECFN) } as *const core::ffi::c_char;
    // SAFETY: as above.
    custody::take_up((!path.is_null()).then(|| unsafe { core::ffi::CStr::from_ptr(path) }));
    intents::take_up(|| family::ensure() && family::member());
    // SAFETY: as for `exit`. What is registered first is run last.
    if unsafe { real::__cxa_at_quick_exit(last, core::ptr::null_mut()) } == 0 {
        processes::quick_exit_is_heard();
    }
    // SAFETY: glibc's function of this name has this type.
    let register: RegisterAtfork = unsafe { core::mem::transmute(register) };
    // SAFETY: registers functions of this library, which is never unloaded (-z nodelete in build.rs).
    unsafe {
        register(
            Some(processes::fork_prepare),
            Some(processes::fork_parent),
            Some(processes::fork_child),
            core::ptr::null_mut(),
        )
    };
}

/// Run at `exit`, among the destructors of all libraries. Those that come later may use connections as well: we are called
/// again when all are through (glibc's `__run_exit_handlers` runs what is registered meanwhile, too).
// Unsafe here: it registers a function with libc.
#[allow(unsafe_code)]
extern "C" fn at_exit() {
    // SAFETY: `last` ignores its argument; this library is never unloaded.
    if unsafe { real::__cxa_atexit(last, core::ptr::null_mut(), core::ptr::null_mut()) } != 0 {
        processes::leaving();
    }
}

/// The last handler of `exit`, and the last of `quick_exit`, unless others registered theirs before our constructor ran.
extern "C" fn last(_: *mut c_void) {
    processes::leaving();
}

// Unsafe here, and below: where a static lies.
#[used]
#[allow(unsafe_code)]
#[unsafe(link_section = ".init_array")]
static START: extern "C" fn() = start;

#[used]
#[allow(unsafe_code)]
#[unsafe(link_section = ".fini_array")]
static END: extern "C" fn() = at_exit;

/// A panic is a bug of ours. It cannot unwind into the program, and going on could corrupt its streams.
#[cfg(not(test))]
#[panic_handler]
// Unsafe here: `abort`.
#[allow(unsafe_code)]
fn panic(info: &core::panic::PanicInfo) -> ! {
    log!(Error, "internal error, aborting rather than losing a byte: {info}");
    // SAFETY: ends the process.
    unsafe { libc::abort() }
}
