//! `select` and `pselect`: their sets become a list for [`poll`], and its answers become theirs.
// Unsafe here: fd_sets are the program's memory.
#![allow(unsafe_code)]

use crate::arrays::Array;
use crate::poll::{Counted, NOBODY, SMALL, concerns, leave_native, serve};
use engine::config;
use host::usercopy::{self, Fault};
use host::{clock, real};
use libc::{POLLERR, POLLHUP, POLLIN, POLLNVAL, POLLOUT, POLLPRI, POLLRDBAND, POLLRDNORM, POLLWRBAND, POLLWRNORM};
use libc::{c_int, fd_set, pollfd, sigset_t};

/// POLLNVAL: closed by another thread while the call waited (fs/select.c).
const IN_SET: i16 = POLLRDNORM | POLLRDBAND | POLLIN | POLLHUP | POLLERR | POLLNVAL;
const OUT_SET: i16 = POLLWRBAND | POLLWRNORM | POLLOUT | POLLERR | POLLNVAL;

/// The three sets of `select`, in memory of ours: arrays of longs, as many as `n` bits need. A program's set may be longer
/// than FD_SETSIZE, or shorter: programs allocate their own.
struct Sets<'a> {
    bits: [&'a mut [u64]; 3],
    /// Whether the program passed it.
    given: [bool; 3],
    n: usize,
}

/// What stands for readable, writable and exceptional (fs/select.c).
const WANTED: [i16; 3] = [POLLRDNORM | POLLRDBAND | POLLIN, POLLWRBAND | POLLWRNORM | POLLOUT, POLLPRI];
const SHOWN: [i16; 3] = [IN_SET, OUT_SET, POLLPRI | POLLNVAL];

impl Sets<'_> {
    /// The events that are asked of a descriptor.
    fn wanted(&self, fd: usize) -> i16 {
        let mut events = 0;
        for (set, wanted) in self.bits.iter().zip(WANTED) {
            if set[fd / 64] & 1 << (fd % 64) != 0 {
                events |= wanted;
            }
        }
        events
    }

    /// Replaces the sets by what `polled` has found. Returns how many bits are set.
    fn put(&mut self, polled: &[pollfd]) -> isize {
        let mut hits = 0;
        for (set, (wanted, shown)) in self.bits.iter_mut().zip(WANTED.into_iter().zip(SHOWN)) {
            set.fill(0);
            for p in polled {
                if p.events & wanted & !(POLLRDNORM | POLLRDBAND | POLLWRNORM | POLLWRBAND) != 0
                    && p.revents & shown != 0
                {
                    set[p.fd as usize / 64] |= 1 << (p.fd % 64);
                    hits += 1;
                }
            }
        }
        hits
    }
}

/// `select` and `pselect`. `left` receives the time that was not slept, if the program wants it.
///
/// # Safety
/// As libc's; a cancellation point. Faults are armed.
#[allow(clippy::too_many_arguments)]
pub unsafe fn select(
    n: c_int,
    r: *mut fd_set,
    w: *mut fd_set,
    e: *mut fd_set,
    timeout: Option<u64>,
    mask: *const sigset_t,
    left: Option<&mut u64>,
    mut real: impl FnMut() -> c_int,
) -> c_int {
    if n <= 0 || !config::enabled() {
        return real();
    }
    let theirs = [r, w, e].map(|s| s.cast::<u64>());
    let n = n as usize;
    let longs = n.div_ceil(64);
    let mut small = [0u64; 3 * SET];
    let big = if longs > SET { Array::take(longs * 24) } else { None };
    if longs > SET && big.is_none() {
        return real();
    }
    let all: &mut [u64] = match &big {
        // SAFETY: any bits are a number; used up to `release`.
        Some(array) => unsafe { &mut array.of()[..3 * longs] },
        None => &mut small[..3 * longs],
    };
    let (a, rest) = all.split_at_mut(longs);
    let (b, c) = rest.split_at_mut(longs);
    let mut sets = Sets { bits: [a, b, c], given: theirs.map(|s| !s.is_null()), n };
    // SAFETY: the program's sets, or a fault.
    let result = match unsafe { load(&theirs, &mut sets) } {
        // SAFETY: the caller's obligation.
        Ok(()) => unsafe { select_in(&theirs, &mut sets, timeout, mask, left, &mut real) },
        // The kernel says what is wrong.
        Err(Fault) => real(),
    };
    if let Some(array) = big {
        array.release();
    }
    result
}

/// Longs of a set of FD_SETSIZE.
const SET: usize = libc::FD_SETSIZE / 64;

/// Copies the program's sets.
///
/// # Safety
/// They are what the program passed in.
unsafe fn load(theirs: &[*mut u64; 3], sets: &mut Sets) -> Result<(), Fault> {
    for ((set, at), given) in sets.bits.iter_mut().zip(theirs).zip(sets.given) {
        if given {
            // SAFETY: no longer than the destination; the program's set, or a fault.
            unsafe { usercopy::copy(set.as_mut_ptr().cast(), at.cast_const().cast(), size_of_val(&**set))? };
        }
    }
    Ok(())
}

/// Writes the answers to the program's sets.
///
/// # Safety
/// They are what the program passed in.
unsafe fn store(theirs: &[*mut u64; 3], sets: &Sets) -> Result<(), Fault> {
    for ((set, at), given) in sets.bits.iter().zip(theirs).zip(sets.given) {
        if given {
            // SAFETY: no longer than the source; the program's set, or a fault.
            unsafe { usercopy::copy(at.cast(), set.as_ptr().cast(), size_of_val(&**set))? };
        }
    }
    Ok(())
}

/// # Safety
/// As for [`select`].
unsafe fn select_in(
    theirs: &[*mut u64; 3],
    sets: &mut Sets,
    timeout: Option<u64>,
    mask: *const sigset_t,
    left: Option<&mut u64>,
    real: &mut impl FnMut() -> c_int,
) -> c_int {
    let mut count = 0;
    let mut ours = false;
    for fd in 0..sets.n {
        if sets.wanted(fd) != 0 {
            count += 1;
            ours |= concerns(fd as i32);
        }
    }
    if !ours {
        return real();
    }
    let mut small = [NOBODY; SMALL];
    let big = if count > SMALL { Array::take(count * size_of::<pollfd>()) } else { None };
    if count > SMALL && big.is_none() {
        real::set_errno(libc::ENOMEM);
        return -1;
    }
    let set: &mut [pollfd] = match &big {
        // SAFETY: zeros are a pollfd; used up to `release`.
        Some(array) => unsafe { &mut array.of()[..count] },
        None => &mut small[..count],
    };
    let watched = (0..sets.n).map(|fd| (fd, sets.wanted(fd))).filter(|(_, events)| *events != 0);
    for (p, (fd, events)) in set.iter_mut().zip(watched) {
        *p = pollfd { fd: fd as i32, events, revents: 0 };
    }
    let started = clock::now();
    let mut counted = Counted::NONE;
    let native = set.iter().all(|p| counted.enter(p.fd));
    let result = if native {
        let r = real();
        leave_native(&counted);
        r
    } else {
        leave_native(&counted);
        // SAFETY: the caller's obligation.
        let mut r = unsafe { serve(set, timeout, mask, true) };
        if let (Some(left), Some(t)) = (left, timeout) {
            *left = t.saturating_sub(clock::now() - started);
        }
        if r >= 0 {
            r = sets.put(set);
            // SAFETY: the program's sets, or a fault.
            if unsafe { store(theirs, sets) }.is_err() {
                r = -libc::EFAULT as isize;
            }
        }
        real::ret(r) as c_int
    };
    if let Some(array) = big {
        array.release();
    }
    result
}
