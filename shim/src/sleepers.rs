//! Which threads of this process are in a blocking call on which connection, for those who close its descriptor
//! meanwhile.
#![forbid(unsafe_code)]

use crate::endpoint::Ep;
use crate::fds;
use core::ffi::CStr;
use core::sync::atomic::Ordering::{AcqRel, Relaxed, SeqCst};
use core::sync::atomic::{AtomicU32, AtomicUsize};
use libc::c_int;
use shmring::{lnx, sys};

/// A thread in a blocking call on a connection, for those who close its descriptor meanwhile. A thread that left
/// the call by cancellation or longjmp is still named: see [`slept_on`].
struct Sleeper {
    tid: AtomicU32,
    /// Endpoint index + 1, 0 if none.
    ep: AtomicU32,
    /// Address of the word that it dozes on, 0 if it does not.
    word: AtomicUsize,
}

static SLEEPERS: [Sleeper; 256] =
    [const { Sleeper { tid: AtomicU32::new(0), ep: AtomicU32::new(0), word: AtomicUsize::new(0) } }; 256];

/// The threads that slept are those of the process that this one was forked from.
pub fn after_fork_child() {
    for s in &SLEEPERS {
        s.tid.store(0, Relaxed);
        s.ep.store(0, Relaxed);
    }
}

/// Notes that this thread is about to sleep on `ep`, until [`wake_up`].
pub fn lie_down(ep: Ep) {
    let t = crate::tls::tls();
    let (mine, place) = (t.tid(), &t.habits.place);
    let owned = |i: usize| SLEEPERS.get(i).is_some_and(|s| s.tid.load(Relaxed) == mine);
    let mut i = (place.get() as usize).wrapping_sub(1);
    if !owned(i) {
        let take = |s: &Sleeper, from| s.tid.compare_exchange(from, mine, AcqRel, Relaxed).is_ok();
        let free = SLEEPERS.iter().position(|s| take(s, 0)).or_else(|| {
            SLEEPERS.iter().position(|s| {
                let old = s.tid.load(Relaxed);
                !s.asleep() && take(s, old)
            })
        });
        // More threads than places: this one's sleep is not known to others.
        let Some(free) = free else { return };
        i = free;
        place.set(i as u32 + 1);
    }
    SLEEPERS[i].word.store(0, Relaxed);
    SLEEPERS[i].ep.store(ep.index() + 1, SeqCst);
}

/// This thread's place among those who sleep.
fn place() -> Option<&'static Sleeper> {
    let t = crate::tls::tls();
    SLEEPERS.get((t.habits.place.get() as usize).wrapping_sub(1)).filter(|s| s.tid.load(Relaxed) == t.tid())
}

/// Notes the word on which this thread is about to doze.
pub fn lie_on(word: Option<&AtomicU32>) {
    if let Some(s) = place() {
        s.word.store(word.map_or(0, |w| core::ptr::from_ref(w) as usize), SeqCst);
    }
}

/// This thread's blocking call is over.
pub fn wake_up() {
    if let Some(s) = place() {
        s.ep.store(0, SeqCst);
    }
}

/// Whether another thread of this process is in a blocking call on `ep`.
pub fn slept_on(ep: Ep) -> bool {
    let me = crate::tls::tid();
    SLEEPERS.iter().any(|s| s.ep.load(SeqCst) == ep.index() + 1 && s.tid.load(Relaxed) != me && s.asleep())
}

/// The number under which a thread that slept on `ep` as `fd` finds its file now.
pub fn number(ep: Ep, fd: c_int) -> c_int {
    match ep.local().kept.load(SeqCst) {
        0 if fds::endpoint(fd) == Some(ep) => fd,
        // Another thread has closed this number; the connection has others.
        0 => match ep.local().fd.load(Relaxed) {
            -1 => fd,
            other => other,
        },
        kept => kept - 1,
    }
}

impl Sleeper {
    /// Whether the thread sleeps in `ppoll`, or on its word, as our waits do, or runs.
    fn asleep(&self) -> bool {
        let mut path = *b"/proc/self/task/0000000000/syscall\0";
        let mut v = self.tid.load(Relaxed);
        for d in path[16..26].iter_mut().rev() {
            *d = b'0' + (v % 10) as u8;
            v /= 10;
        }
        // The kernel knows no leading zeros (name_to_int).
        let zeros = path[16..25].iter().take_while(|d| **d == b'0').count();
        path.copy_within(16 + zeros.., 16);
        let Ok(path) = CStr::from_bytes_until_nul(&path) else { return false };
        let f = lnx::open(path, libc::O_RDONLY, 0);
        if f < 0 {
            return false;
        }
        let mut b = [0u8; 32];
        lnx::read(f, &mut b);
        sys::close(f);
        // proc(5): "running", or the number of the call and its arguments.
        match b.strip_prefix(b"202 0x") {
            Some(argument) => hexadecimal(argument) == self.word.load(SeqCst),
            None => b.starts_with(b"running") || b.starts_with(b"271 "),
        }
    }
}

fn hexadecimal(digits: &[u8]) -> usize {
    let digits = digits.iter().map_while(|b| (*b as char).to_digit(16));
    digits.fold(0, |n, d| n << 4 | d as usize)
}
