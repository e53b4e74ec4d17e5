//! Waiting on a set.

use super::bell::{arm, bounded, disarm, stay_armed, told_of_news};
use super::chains::settle;
use super::desk::{NO_EVENT, SLEEPS_FOR};
use super::handover::follow;
use super::report::{Out, TRIES, report_now, report_told, share, sift};
use super::set::{Set, TABLE};
use super::standin::merged;
use core::sync::atomic::Ordering::{Acquire, Relaxed, SeqCst};
use engine::fds::{self, Kind};
use engine::restless::{self, Restless};
use engine::spin::{self, Spun};
use engine::{notify, poller, tx};
use host::{clock, real, signals};
use libc::{c_int, epoll_event, sigset_t};
use shmring::sys;

/// The kernel's part of a busy set is looked at no less often than this.
const KERNEL_EVERY_US: u64 = 20;

/// `epoll_wait` and its kin. `timeout` in nanoseconds, `None` = for ever.
///
/// # Safety
/// As libc's; a cancellation point.
pub unsafe fn wait(
    epfd: c_int,
    ev: *mut epoll_event,
    max: c_int,
    timeout: Option<u64>,
    mask: *const sigset_t,
    mut real: impl FnMut() -> c_int,
) -> c_int {
    notify::settle();
    let Kind::Epoll(i) = fds::get(epfd) else { return real() };
    let s = &TABLE[i];
    // From here on no change is owed (`Set::defer` sees the waiter): the kernel is told of each at once.
    s.waiters.fetch_add(1, SeqCst);
    if s.owes() {
        let held = s.lock();
        settle(s, epfd);
        held.release();
    }
    follow(s);
    // SAFETY: the caller's obligation.
    let r = unsafe { serve(s, epfd, ev, max, timeout, mask, real) };
    s.waiters.fetch_sub(1, Relaxed);
    // SAFETY: as for `serve`, which has filled this many.
    unsafe { merged(epfd, ev, r) }
}

/// Waits as [`wait`] does, counted as a waiter.
///
/// # Safety
/// As [`wait`]'s.
unsafe fn serve(
    s: &Set,
    epfd: c_int,
    ev: *mut epoll_event,
    max: c_int,
    timeout: Option<u64>,
    mask: *const sigset_t,
    mut real: impl FnMut() -> c_int,
) -> c_int {
    if max <= 0 {
        return real();
    }
    let since = signals::runs();
    let start = match timeout {
        Some(t) if t > 0 => Some(clock::now().saturating_add(t)),
        _ => None,
    };
    // The waiter is counted before it looks at the set: a thread that attaches a connection meanwhile sees the count,
    // and wakes it by `rouse`. Otherwise the kernel would report our own mark to the program.
    s.sleepers.fetch_add(1, SeqCst);
    let r = (s.attached.load(SeqCst) == 0).then(&mut real);
    s.sleepers.fetch_sub(1, Relaxed);
    if let Some(r) = r {
        if r <= 0 {
            return r;
        }
        // SAFETY: the kernel has just filled this many.
        let n = sift(s, unsafe { core::slice::from_raw_parts_mut(ev, r as usize) });
        if n > 0 {
            return done_waiting(s, n);
        }
    }
    let max = max as usize;
    let mut restless = Restless::new();
    let mut tries = 0;
    // Where nobody spins, and nothing is on the rings, the first look at the kernel is the one that the sleep begins with.
    let mut at_once = timeout != Some(0) && max > 1 && !spin::is_likely();
    loop {
        follow(s);
        let mut out = Out { at: ev, max, n: 0, fault: false, tries, moved: false };
        // Who does not wait wants to know what holds now.
        let asked = timeout == Some(0)
            || sys::cycles().wrapping_sub(s.kernel_at.load(Relaxed)) > KERNEL_EVERY_US * clock::cycles_per_us();
        at_once &= !has_news(s) && s.must_look.load(Relaxed) == 0 && !bounded(s);
        if !at_once && let Err(e) = report_now(s, epfd, &mut out, asked) {
            return real::ret(-e as isize) as c_int;
        }
        if out.n == 0 && out.fault {
            done_waiting(s, 0);
            return real::ret(-libc::EFAULT as isize) as c_int;
        }
        if out.n > 0 {
            return done_waiting(s, out.n);
        }
        if s.must_look.load(Relaxed) != 0 && tries <= TRIES {
            tries += 1;
            continue;
        }
        tx::look_after();
        if timeout == Some(0) {
            return done_waiting(s, 0);
        }
        let rest = restless.round(clock::now);
        if rest.is_none() && !bounded(s) {
            let mut looks = 0u32;
            let spun = spin::spin(|| {
                looks += 1;
                told_of_news(s) || looks.is_multiple_of(64) && signals::interrupted(since, false)
            });
            if spun == Spun::Won && told_of_news(s) {
                continue;
            }
        }
        let mut left = None;
        if let Some(d) = start {
            left = Some(d.saturating_sub(clock::now()));
            if left == Some(0) && !at_once {
                // One last look at the kernel's part happened above.
                return done_waiting(s, 0);
            }
        }
        at_once = false;
        if let Some(time) = rest {
            // SAFETY: no lock is held; the mask is the caller's.
            if let Err(libc::EINTR) = unsafe { restless::rest(time, start, mask, since) } {
                done_waiting(s, 0);
                return real::ret(-libc::EINTR as isize) as c_int;
            }
            continue;
        }
        s.sleepers.fetch_add(1, Relaxed);
        arm(s);
        if bounded(s) {
            left = Some(left.unwrap_or(poller::STEP).min(poller::STEP));
        }
        let left = tx::until_due(left);
        let mut told = [NO_EVENT; SLEEPS_FOR];
        let room = share(max).min(SLEEPS_FOR);
        let taken_over = s.taken_over.load(Acquire);
        let (before, begun) = (s.looked.load(Relaxed), sys::cycles_in_order());
        let r = if has_news(s) {
            0
        } else {
            // SAFETY: no lock is held; the array is valid for its length.
            unsafe { signals::epoll_pwait(epfd, told.as_mut_ptr(), room as c_int, left, mask, since) }
        };
        s.sleepers.fetch_sub(1, Relaxed);
        disarm(s);
        s.kernel_at.store(sys::cycles(), Relaxed);
        if r < 0 {
            done_waiting(s, 0);
            return real::ret(r) as c_int;
        }
        if r == 0 {
            continue;
        }
        let mut out = Out { at: ev, max, n: 0, fault: false, tries, moved: false };
        report_told(s, epfd, &told[..r as usize], room, [before, begun], taken_over, &mut out);
        if out.n == 0 && out.fault {
            done_waiting(s, 0);
            return real::ret(-libc::EFAULT as isize) as c_int;
        }
        if out.n > 0 {
            return done_waiting(s, out.n);
        }
    }
}

/// Whether the rings have something, or had when it was looked last.
fn has_news(s: &Set) -> bool {
    told_of_news(s) || s.first.load(Relaxed).is_some()
}

/// Before returning to the program: others who wait on this set must still be woken.
fn done_waiting(s: &Set, n: usize) -> c_int {
    if s.nested() || s.sleepers.load(Relaxed) > 0 {
        stay_armed(s);
    }
    n as c_int
}
