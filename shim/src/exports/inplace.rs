//! What the library exports under names of its own: the calls of `culvert.h`, for programs that know of it.
//!
//! Each name carries the version of its meaning (`culvert_1_...`), which the header gives to the plain one: a program that was
//! compiled with another header asks for another name. (Versions of the linker's cannot be had: the script that lists what this
//! library exports is the compiler's, and has none.)
//!
//! These calls allocate, by the program's `malloc`: they are no functions of libc, which a program may call anywhere.

use core::ffi::{c_int, c_uint, c_void};
use core::sync::atomic::Ordering::Relaxed;
use engine::inplace::chunk::{self, Chunk};
use engine::inplace::keep::{self, Kept};
use engine::inplace::{self, COUNTS, Copying, Spans};
use engine::{fds, io, rx};
use host::{real, usercopy};
use libc::{iovec, size_t, ssize_t};

/// The calls that do it by a copy.
struct Calls;

// SAFETY of the calls below: as for the functions of the same names in `bytes` and `msg`.
impl Copying for Calls {
    unsafe fn send(fd: c_int, pieces: &[iovec], flags: c_int) -> isize {
        // SAFETY: all zeros are a header; the rest is set.
        let mut h: libc::msghdr = unsafe { core::mem::zeroed() };
        h.msg_iov = pieces.as_ptr().cast_mut();
        h.msg_iovlen = pieces.len();
        // SAFETY: a header of ours, with the caller's pieces.
        let native = || unsafe { real::sendmsg(fd, &h, flags) };
        match io::carried(fd) {
            // SAFETY: as many pieces; no lock is held.
            Some(ep) => unsafe { io::send(ep, fd, pieces.as_ptr(), pieces.len(), flags, native) },
            None => native(),
        }
    }

    unsafe fn receive(fd: c_int, to: *mut u8, n: usize, flags: c_int) -> isize {
        // SAFETY: the caller's memory.
        let native = || unsafe { real::recv(fd, to.cast(), n, flags) };
        let v = iovec { iov_base: to.cast(), iov_len: n };
        match io::carried(fd) {
            // SAFETY: one element; no lock is held.
            Some(ep) => unsafe { io::recv(ep, fd, &v, 1, flags, native) },
            None => native(),
        }
    }

    fn is_stream(fd: c_int) -> bool {
        let (mut kind, mut len) = (0 as c_int, size_of::<c_int>() as libc::socklen_t);
        // SAFETY: a local int, and its length.
        let r = unsafe { real::getsockopt(fd, libc::SOL_SOCKET, libc::SO_TYPE, (&raw mut kind).cast(), &raw mut len) };
        if r == 0 && kind != libc::SOCK_STREAM {
            real::set_errno(libc::EOPNOTSUPP);
        }
        r == 0 && kind == libc::SOCK_STREAM
    }

    fn allocate(n: usize) -> *mut u8 {
        // SAFETY: any size.
        unsafe { libc::malloc(n) }.cast()
    }

    unsafe fn free(at: *mut c_void) {
        // SAFETY: the caller's obligation.
        unsafe { libc::free(at) }
    }
}

/// Runs a call on the program's description of what it holds, which is there, and can be written: what was found out before says so, if a
/// pointer is bad. The call works on it where it is. A copy would cost more than the rest of a call: it reads what was written a moment ago by
/// stores of other sizes, for which a processor waits until they, and all stores before them, have left it: also those to lines of memory
/// that the peer has.
///
/// # Safety
/// Any bits are a `T`; `p` is what the program passed in, which no other thread uses.
unsafe fn with<T: Copy>(p: *mut T, f: impl FnOnce(&mut T) -> isize) -> ssize_t {
    // A copy may fault in the calls that follow.
    super::arm();
    if super::bad(p) || !p.is_aligned() {
        return real::ret(-libc::EFAULT as isize);
    }
    // It is no longer than a page, so its ends are where it could fault.
    let (first, last) = (p.cast::<u64>(), p.cast::<u64>().wrapping_add(size_of::<T>() / size_of::<u64>() - 1));
    for word in [first, last] {
        // SAFETY: the program's own variable, or a fault; what is written is what was there.
        let probed = unsafe { usercopy::load(word).and_then(|w| usercopy::store(word, &w)) };
        if probed.is_err() {
            return real::ret(-libc::EFAULT as isize);
        }
    }
    // SAFETY: readable, writable and this call's alone, as far as the program keeps to what the header says.
    f(unsafe { &mut *p })
}

/// Makes a call with which a thread that were cancelled would lose what is half the program's.
fn uncancelled<T>(f: impl FnOnce() -> T) -> T {
    const DISABLE: c_int = 1;
    let mut was = 0;
    // SAFETY: a local int.
    unsafe { real::pthread_setcancelstate(DISABLE, &raw mut was) };
    let r = f();
    // SAFETY: the caller's own state.
    unsafe { real::pthread_setcancelstate(was, core::ptr::null_mut()) };
    r
}

/// `culvert_reserve`.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn culvert_1_reserve(fd: c_int, n: size_t, flags: c_int, room: *mut Spans) -> ssize_t {
    // SAFETY: the program's variable; no lock is held.
    unsafe { with(room, |room| inplace::reserve::<Calls>(fd, n, flags, room)) }
}

/// `culvert_commit`.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn culvert_1_commit(fd: c_int, room: *mut Spans, n: size_t, flags: c_int) -> ssize_t {
    // SAFETY: as above; the room is as the library has left it.
    unsafe { with(room, |room| inplace::commit::<Calls>(fd, room, n, flags)) }
}

/// `culvert_look`.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn culvert_1_look(fd: c_int, min: size_t, flags: c_int, view: *mut Spans) -> ssize_t {
    // SAFETY: as above.
    unsafe { with(view, |view| inplace::look::<Calls>(fd, min, flags, view)) }
}

/// `culvert_release`.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn culvert_1_release(fd: c_int, view: *mut Spans, n: size_t) -> c_int {
    // SAFETY: as above; the view is as the library has left it.
    unsafe { with(view, |view| inplace::release::<Calls>(fd, view, n)) as c_int }
}

/// `culvert_pool_make`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn culvert_1_pool_make(len: size_t, count: size_t, quota: size_t) -> c_int {
    chunk::pool(len, count, quota) as c_int
}

/// `culvert_pool_end`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn culvert_1_pool_end(pool: c_int) -> c_int {
    chunk::end_pool(pool) as c_int
}

/// `culvert_chunk_take`.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn culvert_1_chunk_take(pool: c_int, flags: c_int, chunk: *mut Chunk) -> c_int {
    // SAFETY: the program's variable; no lock is held.
    unsafe { with(chunk, |chunk| chunk::take(pool, flags, chunk)) as c_int }
}

/// `culvert_chunk_send`.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn culvert_1_chunk_send(fd: c_int, chunk: *mut Chunk, n: size_t, flags: c_int) -> ssize_t {
    // SAFETY: the program's variable, as the library has left it; no lock is held.
    unsafe { with(chunk, |chunk| chunk::send::<Calls>(fd, chunk, n, flags)) }
}

/// `culvert_chunk_keep`.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn culvert_1_chunk_keep(fd: c_int, view: *mut Spans, chunk: *mut Chunk) -> ssize_t {
    // SAFETY: the program's variables, the view as the library has left it; no lock is held.
    uncancelled(|| unsafe { with(view, |view| with(chunk, |chunk| chunk::keep::<Calls>(fd, view, chunk))) })
}

/// `culvert_chunk_drop`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn culvert_1_chunk_drop(chunk: *mut Chunk) -> c_int {
    // SAFETY: as above.
    unsafe { with(chunk, chunk::drop::<Calls>) as c_int }
}

/// `culvert_keep`.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn culvert_1_keep(fd: c_int, least: size_t, most: size_t, kept: *mut Kept) -> size_t {
    // SAFETY: the program's variable, as the library has left it, which no other thread uses; no lock is held.
    unsafe { keep::keep(fd, least, most, &mut *kept) }
}

/// `culvert_give_back`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn culvert_1_give_back(fd: c_int, kept: *mut Kept, n: size_t) -> c_int {
    // SAFETY: as above.
    let kept = unsafe { &mut *kept };
    keep::give_back(fd, kept, (n != size_t::MAX).then_some(n as u64)).into()
}

/// `culvert_settle`.
#[unsafe(no_mangle)]
pub extern "C-unwind" fn culvert_1_settle() {
    engine::notify::settle();
}

/// `struct culvert_counts`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Counts {
    committed: u64,
    committed_copied: u64,
    released: u64,
    released_copied: u64,
    referred: u64,
    referred_copied: u64,
}

/// `culvert_counts`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn culvert_1_counts(counts: *mut Counts, size: size_t) -> c_int {
    let (committed_copied, released_copied) =
        (COUNTS.committed_copied.load(Relaxed), COUNTS.looked_copied.load(Relaxed));
    let referred_copied = COUNTS.referred_copied.load(Relaxed);
    let now = Counts {
        committed: COUNTS.committed.load(Relaxed) + committed_copied,
        committed_copied,
        released: COUNTS.looked.load(Relaxed) + released_copied,
        released_copied,
        referred: COUNTS.referred.load(Relaxed) + referred_copied,
        referred_copied,
    };
    // SAFETY: the program's variable, or a fault; no more of it than it has.
    match unsafe { super::poke_bytes(counts.cast(), &now, size.min(size_of::<Counts>())) } {
        Ok(()) => 0,
        Err(_) => real::ret(-libc::EFAULT as isize) as c_int,
    }
}

/// `culvert_path`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn culvert_1_path(fd: c_int) -> c_uint {
    use shmring::layout;
    use shmring::switch::{RxPhase, TxPhase};
    const SENDING: c_uint = 1;
    const RECEIVING: c_uint = 2;
    let Some(ep) = fds::endpoint(fd).filter(|ep| ep.state() == shmring::family::State::Attached) else { return 0 };
    let mut path = 0;
    if ep.tx_phase.get() == TxPhase::Ring {
        path |= SENDING;
    }
    if ep.rx_phase.get() == RxPhase::Ring {
        path |= RECEIVING;
        if let Some(chan) = ep.chan() {
            // As the sender has it, for who stands in for its peer.
            path |= (rx::manner(ep, chan) & (layout::WAITS | layout::MORE | layout::CORKED)) << 2;
        }
    }
    path
}
