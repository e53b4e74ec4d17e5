//! Which threads of this process are in a blocking call on which connection: a thread that closes the connection's descriptor
//! meanwhile must know.
#![forbid(unsafe_code)]

use crate::endpoint::Ep;
use crate::fds;
use crate::kernel::{K, Kernel as _};
use core::ffi::CStr;
use core::sync::atomic::Ordering::{Relaxed, SeqCst};
use core::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, fence};
use libc::c_int;
use shmring::word::Code;

/// A thread in a blocking call on a connection, for those who close its descriptor meanwhile. A thread that left
/// the call by cancellation or longjmp is still named: see [`slept_on`].
struct Sleeper {
    /// The thread that had this place last, and the connection that it sleeps on: see [`Who`].
    who: AtomicU64,
    /// Address of the word that it dozes on, 0 if it does not.
    word: AtomicUsize,
}

/// What [`Sleeper::who`] says. One word, so that a place whose thread is awake can be taken by another.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Who {
    tid: u32,
    /// None: it is awake.
    ep: Option<Ep>,
}

impl Who {
    fn from_word(w: u64) -> Who {
        Who { tid: (w >> 32) as u32, ep: Option::of(w as u32) }
    }

    fn word(self) -> u64 {
        u64::from(self.tid) << 32 | u64::from(self.ep.code())
    }
}

static SLEEPERS: [Sleeper; 4096] = [const { Sleeper { who: AtomicU64::new(0), word: AtomicUsize::new(0) } }; 4096];
/// Places that were ever used are below this one: as many as threads slept at the same time.
static HIGH: AtomicUsize = AtomicUsize::new(0);

/// The places in use, among others.
fn known() -> &'static [Sleeper] {
    &SLEEPERS[..HIGH.load(SeqCst).min(SLEEPERS.len())]
}

/// The threads that slept are those of the process that this one was forked from.
pub fn after_fork_child() {
    known().iter().for_each(|s| s.who.store(0, Relaxed));
}

/// The place that this thread had last.
fn habitual() -> Option<&'static Sleeper> {
    known().get(crate::tls::tls().habits.place.load(Relaxed)? as usize)
}

/// Notes that this thread is about to sleep on `ep` as `fd`, until [`wake_up`]. Returns the number to sleep on. Who closes that
/// from now on sees the sleeper and wakes it.
pub fn lie_down(ep: Ep, fd: c_int) -> c_int {
    take_place(ep);
    fence(SeqCst);
    number(ep, fd)
}

fn take_place(ep: Ep) {
    let t = crate::tls::tls();
    let me = Who { tid: t.tid(), ep: Some(ep) };
    let take = |s: &Sleeper, from: Who| {
        let taken = s.who.compare_exchange(from.word(), me.word(), SeqCst, Relaxed).is_ok();
        if taken {
            s.word.store(0, SeqCst);
        }
        taken
    };
    let own = |s: &Sleeper| {
        let from = Who::from_word(s.who.load(Relaxed));
        // A sleep of ours that a handler has left by longjmp, or runs inside, counts as this one.
        from.tid == me.tid && take(s, from)
    };
    if habitual().is_some_and(own) {
        return;
    }
    let awake = |s: &Sleeper| {
        let from = Who::from_word(s.who.load(Relaxed));
        from.ep.is_none() && take(s, from)
    };
    let fresh = || {
        let n = HIGH.fetch_update(SeqCst, SeqCst, |n| (n < SLEEPERS.len()).then_some(n + 1)).ok()?;
        awake(&SLEEPERS[n]).then_some(n)
    };
    // The thread is gone, or has left its call by cancellation or longjmp.
    let left = |s: &Sleeper| {
        let from = Who::from_word(s.who.load(Relaxed));
        !s.asleep() && take(s, from)
    };
    // More threads than places: this one's sleep is not known to others.
    let place = known().iter().position(awake).or_else(fresh).or_else(|| known().iter().position(left));
    t.habits.place.store(place.map(|i| i as u32), Relaxed);
}

/// This thread's place among those who sleep, and what it says.
fn place() -> Option<(&'static Sleeper, Who)> {
    let t = crate::tls::tls();
    let s = habitual()?;
    let who = Who::from_word(s.who.load(Relaxed));
    (who.tid == t.tid()).then_some((s, who))
}

/// Notes the word on which this thread is about to doze.
pub fn lie_on(word: Option<&AtomicU32>) {
    if let Some((s, _)) = place() {
        s.word.store(word.map_or(0, |w| core::ptr::from_ref(w) as usize), SeqCst);
    }
}

/// This thread's blocking call is over.
pub fn wake_up() {
    if let Some((s, who)) = place() {
        let _ = s.who.compare_exchange(who.word(), Who { ep: None, ..who }.word(), SeqCst, Relaxed);
    }
}

/// Whether another thread of this process is in a blocking call on `ep`.
pub fn slept_on(ep: Ep) -> bool {
    let me = crate::tls::tid();
    known().iter().any(|s| {
        let who = Who::from_word(s.who.load(SeqCst));
        who.ep == Some(ep) && who.tid != me && s.asleep()
    })
}

/// The number under which a thread that slept on `ep` as `fd` finds its file now.
pub fn number(ep: Ep, fd: c_int) -> c_int {
    match ep.local().kept.load(SeqCst) {
        Some(kept) => kept,
        None if fds::endpoint(fd) == Some(ep) => fd,
        // Another thread has closed this number; the connection has others.
        None => match ep.local().fd.load(Relaxed) {
            -1 => fd,
            other => other,
        },
    }
}

impl Sleeper {
    /// Whether the thread sleeps in `ppoll`, or on its word, as our waits do, or runs.
    fn asleep(&self) -> bool {
        let mut path = *b"/proc/self/task/0000000000/syscall\0";
        let mut v = Who::from_word(self.who.load(Relaxed)).tid;
        for d in path[16..26].iter_mut().rev() {
            *d = b'0' + (v % 10) as u8;
            v /= 10;
        }
        // The kernel knows no leading zeros (name_to_int).
        let zeros = path[16..25].iter().take_while(|d| **d == b'0').count();
        path.copy_within(16 + zeros.., 16);
        let Ok(path) = CStr::from_bytes_until_nul(&path) else { return false };
        let f = K::open(path, libc::O_RDONLY);
        if f < 0 {
            return false;
        }
        let mut b = [0u8; 32];
        K::read(f, &mut b);
        K::close(f);
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

/// What each process has for itself, as far as tests go.
#[cfg(test)]
pub fn words(each: &mut dyn FnMut(crate::sim::process::Word)) {
    SLEEPERS[..16].iter().for_each(|s| each((&s.who).into()));
}
