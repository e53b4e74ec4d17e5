//! A peer that does not read, on a ring that holds less than the kernel's buffers would.
//!
//! Two cases. A ring that is shared with another user is small (`sealed`): two programs that write much to each other before they
//! read would wait for each other for ever, where the kernel takes some megabytes of each. And under `TCP_USER_TIMEOUT` the kernel
//! ends a connection whose bytes the peer has not taken for that long (tcp_probe_timer). What the peer's receive window takes
//! counts as taken, whether its program reads or not. So while the option is set no more than that lies on the ring
//! (`buffer_set`): it would never time out.
//!
//! Where one end stands in for another host the first case is none: behind it are the buffers of a connection on the wire, and a host
//! that reads slowly must not bring the connection to the kernel for good. Nor the second: what counts is what that host acknowledges, and who
//! stands in for it ends the connection (`intents::timed`). The kernel would hear of nothing but of the one who stands in, who takes more in
//! large pieces, and would end a connection whose host acknowledges all the time.
//!
//! A sender that has more to send, or waits for room, and whose peer reads nothing meanwhile goes down to the kernel, which
//! has more room, and its timer.

use super::sending::Sending;
use super::{read_up_to, stirred, turn, want_space, writable};
use crate::channel::Chan;
use crate::conn::conn;
use crate::endpoint::Ep;
use crate::kernel::{K, Kernel as _};
use crate::signals::Runs;
use crate::{family, lifeline, sleep, sleepers, watchers};
use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed};
use shmring::family::{Reason, State};
use shmring::switch::TxPhase;

/// How long a sender that waits for room lets its peer read nothing before it goes down to the kernel, nanoseconds. The
/// kernel's timer begins that much later.
const PATIENCE_NS: u64 = 100_000_000;

/// The same of a send that does not wait.
const GLANCE_NS: u64 = 5_000_000;

/// The least time between two glances of this process that were in vain, so that a program with many peers that do not read
/// gets on.
const GLANCE_EVERY_NS: u64 = 100_000_000;

/// When some thread must look again at connections whose peers do not read, for those that sleep: milliseconds of the
/// monotonic clock, above a number that changes with each connection noted; 0 = never.
static NEXT: AtomicU64 = AtomicU64::new(0);
const COUNT_BITS: u32 = 20;

/// When the last glance was in vain.
static IN_VAIN: AtomicU64 = AtomicU64::new(0);

/// Whether the option is set, and the kernel's timer is the one that counts: not where somebody stands in for the remote host.
#[inline(always)]
fn is_timed(ep: Ep) -> bool {
    ep.timed.load(Relaxed) != 0 && ep.stands_in.load(Relaxed) == 0
}

/// Whether a sender goes down if its peer does not read.
#[inline(always)]
fn minds(ep: Ep, chan: &Chan) -> bool {
    is_timed(ep) || chan.is_sealed() && ep.stands_in.load(Relaxed) == 0
}

/// Until when the peer has time to read, if the sender minds and there is not enough room on the ring. The time begins when
/// that is first seen since the peer last read. `None` also if there is room.
fn due(ep: Ep, chan: &Chan) -> Option<u64> {
    if !minds(ep, chan) || ep.tx_phase.get() != TxPhase::Ring || writable(ep, chan) {
        return None;
    }
    full_since(ep, chan).map(|since| since + PATIENCE_NS)
}

/// When it was first seen, since the peer last read, that there is not enough room. There is not.
fn full_since(ep: Ep, chan: &Chan) -> Option<u64> {
    let head = read_up_to(ep, chan)?;
    let since = ep.tx_full_since.load(Relaxed);
    if since != 0 && ep.tx_full_at.load(Relaxed) == head {
        return Some(since);
    }
    let since = K::now();
    ep.tx_full_at.store(head, Relaxed);
    ep.tx_full_since.store(since, Relaxed);
    Some(since)
}

/// Until when a sender that finds no room waits for the peer to read. Notes the time, so that threads that sleep on other
/// things look at the connection by then.
pub(super) fn patience(ep: Ep, chan: &Chan) -> Option<u64> {
    let due = due(ep, chan)?;
    note(due);
    Some(due)
}

/// When a sender on a small ring goes down whose call ends (SO_SNDTIMEO) before the peer has had its time: after a quarter of
/// what is left. The kernel may have had room for all at once. `None`: the call does not end before `due`.
pub(super) fn before_deadline(chan: &Chan, due: u64, deadline: u64) -> Option<u64> {
    let now = K::now();
    (chan.is_sealed() && deadline <= due).then(|| now + deadline.saturating_sub(now) / 4)
}

/// A send that does not wait has found no room: whether the connection goes down, so that the kernel has what it sends.
///
/// On a small ring it does once the peer has had time to read: a program that tries again and again, and asks nobody when to,
/// gets on. Under the option it does at once, unless the peer reads: has done so since a sender found no room last, or does within
/// [`GLANCE_NS`]. The program may be away for as long as it likes from here on, and nobody else look at the connection.
///
/// # Safety
/// Must be called without locks; a cancellation point.
pub(super) unsafe fn gives_way_now(ep: Ep, chan: &Chan, fd: &mut i32, slept: &mut Runs, asleep: &mut bool) -> bool {
    let (since, at) = (ep.tx_full_since.load(Relaxed), ep.tx_full_at.load(Relaxed));
    let Some(due) = patience(ep, chan) else {
        watch(ep, chan);
        return false;
    };
    let reads = since != 0 && ep.tx_full_at.load(Relaxed) != at;
    if since == 0 || reads {
        // A thread that watches the connection may sleep without an end: it is to look by then.
        chan.tell_own(ep.slot.load(Relaxed) as usize);
    }
    if reads {
        return false;
    }
    let now = K::now();
    if !is_timed(ep) {
        if due <= now {
            go(ep, chan, *fd);
        }
        return due <= now;
    }
    if due > now && now.saturating_sub(IN_VAIN.load(Relaxed)) > GLANCE_EVERY_NS {
        let life = ep.life();
        *asleep = true;
        *fd = sleepers::lie_down(ep, *fd);
        // SAFETY: the caller's obligation.
        let woken = unsafe {
            sleep::sleep(ep, *fd, libc::POLLRDHUP, Some(now + GLANCE_NS), *slept, || {
                want_space(ep, chan);
                stirred(ep, chan)
            })
        };
        if !ep.lives(life) {
            return false;
        }
        *fd = sleepers::number(ep, *fd);
        if woken != Err(libc::EAGAIN) {
            // The wait has ended since there is room, or since a signal came, whose handler must run before this call goes on.
            return woken.is_ok();
        }
        if read_up_to(ep, chan) != Some(ep.tx_full_at.load(Relaxed)) {
            return false;
        }
        IN_VAIN.store(K::now(), Relaxed);
    }
    go(ep, chan, *fd);
    true
}

/// Somebody waits for room on the ring.
#[inline]
pub fn note_waiting(ep: Ep, chan: &Chan) {
    if patience(ep, chan).is_none() {
        watch(ep, chan);
    }
}

/// Who waits for room looks after this time whether the peer has left the ring: the peer tells of room, and of leaving, unless it may ring no doorbell
/// any more (Landlock). Each further look waits twice as long as the one before, up to [`LOOK_MAX_NS`].
pub(super) const LOOK_NS: u64 = PATIENCE_NS;
pub(super) const LOOK_MAX_NS: u64 = 5_000_000_000;

/// How long threads that sleep wait for the next look.
static LOOKS_AFTER: AtomicU64 = AtomicU64::new(LOOK_NS);

/// If there is no room, threads that sleep look now and then whether the peer has left the ring.
#[inline]
fn watch(ep: Ep, chan: &Chan) {
    if ep.tx_phase.get() == TxPhase::Ring && !writable(ep, chan) {
        watch_full(ep, chan);
    }
}

#[cold]
fn watch_full(ep: Ep, chan: &Chan) {
    let before = ep.tx_full_since.load(Relaxed);
    let Some(since) = full_since(ep, chan).filter(|since| *since != before) else { return };
    LOOKS_AFTER.store(LOOK_NS, Relaxed);
    if note(since + LOOK_NS) {
        // A thread that watches the connection may sleep without an end.
        chan.tell_own(ep.slot.load(Relaxed) as usize);
    }
}

/// Whether somebody waits for room.
fn waits(ep: Ep, chan: &Chan) -> bool {
    ep.tx_phase.get() == TxPhase::Ring && conn(ep, chan).me().want_space.load(Relaxed) != 0 && !writable(ep, chan)
}

/// The option may have been set. Whether it is, and counts here.
pub(super) fn set(ep: Ep, fd: i32) -> bool {
    /// Another thread that sets it at the same time asks, too: whoever stores last has asked after that.
    const TRIES: u32 = 8;
    let asked = || !matches!(lifeline::option(fd, libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT), Ok(0) | Err(_));
    for _ in 0..TRIES {
        let timed = asked();
        ep.timed.store(u32::from(timed), Relaxed);
        if asked() == timed {
            break;
        }
    }
    is_timed(ep)
}

/// Goes down to the kernel if the peer had time enough to read. True if it did.
pub fn give_way(ep: Ep, chan: &Chan, fd: i32) -> bool {
    match due(ep, chan) {
        Some(due) if due <= K::now() => {
            go(ep, chan, fd);
            true
        }
        Some(due) => {
            note(due);
            false
        }
        None => false,
    }
}

/// Goes down to the kernel. Whoever waits for room on the ring waits for the kernel's room from now on.
#[cold]
pub(super) fn go(ep: Ep, chan: &Chan, fd: i32) {
    go_because(ep, chan, fd, if is_timed(ep) { Reason::Option } else { Reason::Unread });
}

/// The same, for a reason of the caller's. Under the option what lies unread is sent over the lifeline as well, whether that
/// takes it at once or not: the kernel's timer counts for what the kernel has. So it is where only the lifeline can wake the peer.
pub(super) fn go_because(ep: Ep, chan: &Chan, fd: i32, why: Reason) {
    let Some(mut sending) = Sending::take(ep, chan, fd, ep.life()) else { return };
    if is_timed(ep) || chan.is_shunned() {
        sending.leave_repeating()
    } else {
        sending.leave()
    }
    sending.release();
    ep.because(why);
    chan.tell_own(ep.slot.load(Relaxed) as usize);
    watchers::gave_way(ep);
}

/// Somebody must look at `due`. True if nobody would have, by then.
fn note(due: u64) -> bool {
    let before = NEXT.fetch_update(AcqRel, Relaxed, |w| {
        let first = if next(w) == 0 { due } else { due.min(next(w)) };
        Some(successor(w, first))
    });
    before.is_ok_and(|w| next(w) == 0 || due < next(w))
}

/// What [`NEXT`] is after `word`, if somebody must look at `at`.
fn successor(word: u64, at: u64) -> u64 {
    (at / 1_000_000) << COUNT_BITS | word.wrapping_add(1) & ((1 << COUNT_BITS) - 1)
}

/// When somebody must look, nanoseconds; 0 = never.
fn next(word: u64) -> u64 {
    (word >> COUNT_BITS) * 1_000_000
}

/// How long a thread may sleep that would sleep for `left`: connections whose peers do not read must be looked at.
#[inline]
pub fn until_due(left: Option<u64>) -> Option<u64> {
    match next(NEXT.load(Acquire)) {
        0 => left,
        // Not at once, if it is another thread that looks.
        due => Some(due.saturating_sub(K::now()).max(1_000_000).min(left.unwrap_or(u64::MAX))),
    }
}

/// Looks at the connections whose peers do not read, or have left, if it is time.
#[inline]
pub fn look_after() {
    let word = NEXT.load(Acquire);
    if next(word) != 0 && next(word) <= K::now() {
        look_at_all(word);
    }
}

#[cold]
fn look_at_all(word: u64) {
    let now = K::now();
    let again = successor(word, now + PATIENCE_NS);
    if NEXT.compare_exchange(word, again, AcqRel, Relaxed).is_err() {
        // Another thread does, or has noted one.
        return;
    }
    let (mut any, mut waiting) = (false, false);
    for ep in family::held().filter(|ep| ep.state() == State::Attached) {
        let fd = ep.local().fd.load(Relaxed);
        let Some(chan) = ep.chan().filter(|_| fd >= 0) else { continue };
        if minds(ep, chan) {
            any |= !give_way(ep, chan, fd) && due(ep, chan).is_some();
        } else if waits(ep, chan) {
            waiting = true;
            if turn::is_asked(ep, chan) {
                turn::service(ep, chan, fd);
                chan.tell_own(ep.slot.load(Relaxed) as usize);
                watchers::gave_way(ep);
            }
        }
    }
    if !any {
        let after = (2 * LOOKS_AFTER.load(Relaxed)).min(LOOK_MAX_NS);
        LOOKS_AFTER.store(after, Relaxed);
        // Unless one was noted meanwhile.
        let then = if waiting { successor(again, now + after) } else { 0 };
        let _ = NEXT.compare_exchange(again, then, AcqRel, Relaxed);
    }
}
