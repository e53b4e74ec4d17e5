//! Receiving on an attached endpoint: lifeline, ring, lifeline, as one stream.
// Unsafe here: the program's iovecs; a receive is a cancellation point.
#![allow(unsafe_code)]

mod advance;
mod arrived;
mod common;
mod depart;
mod look;
mod port;
mod receiving;
mod view;

pub use advance::{advance, comes_again, doubled, leaving, only_repeats};
pub use arrived::{note_failure, received};
pub use common::{carrier, closing, expect_closing, follow, forget, is_common, share, take_rest, with_own_linger};
pub use depart::{Patience, ask, departed, look_after};
pub use look::{
    at_end, ending, is_last, is_pushed, is_quiet, left, low, manner, news, on_ring, push_is_told, stirred, tail,
};
pub use view::{
    Keep, Released, View, before_fork, drop_chunks, fill, give_back, is_kernels, is_looked_at, keep, others_look,
    pass_over, release, release_natively, view,
};

use crate::buffers::Buffers;
use crate::channel::Chan;
use crate::endpoint::{self, AFTER_RESET, Ep, REPORTED, put_back};
use crate::kernel::{K, Kernel as _};
use crate::lifeline::{self, ENDED};
use crate::restless::{self, Restless};
use crate::signals::{self, Runs};
use crate::spin::{self, Spun};
use crate::{conn, family, fds, poller, sleep, sleepers, tx, watchers};
use arrived::fin_on_closed;
use core::sync::atomic::Ordering::{Acquire, Relaxed, SeqCst};
use libc::iovec;
use look::{me, peer};
use receiving::{Got, Receiving};
use shmring::family::RCVTIMEO;
use shmring::position::StreamPos;
use shmring::switch::{self, RxPhase};

/// `O_NONBLOCK`, as the kernel says now. The answer is kept as a hint, on which nothing but a glance depends.
fn nonblocking(ep: Ep, fd: i32) -> bool {
    let n = lifeline::nonblocking(fd) || ep.never_waits(RCVTIMEO);
    ep.local().blocking.store(u32::from(!n), Relaxed);
    n
}

/// A receive of no bytes: says what one of a byte would come to. One that `waited` ends with 0 whatever there is, and leaves
/// an error to the next call (tcp_recvmsg_locked: behind sk_wait_data comes `while (len > 0)`).
fn nothing(ep: Ep, chan: &Chan, receiving: &mut Receiving, flags: i32, waited: bool) -> Got {
    if on_ring(ep, chan) > 0 {
        return Got::Eof;
    }
    let mut byte = 0u8;
    let v = iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
    // SAFETY: one local iovec.
    let Some(mut probe) = (unsafe { Buffers::new(&raw const v, 1) }) else { return Got::Nothing };
    // A peek consumes nothing.
    match receiving.attempt(&mut probe, 1, flags | libc::MSG_PEEK, false) {
        Got::Bytes(_) => Got::Eof,
        Got::Error(e) if waited => {
            put_back(ep, e);
            Got::Eof
        }
        g => g,
    }
}

/// For a side that has shut down reading, the stream ends as soon as nothing can be read (tcp_recvmsg_locked), even if bytes are
/// still on their way, or an echo is still to be skipped.
#[inline(always)]
fn or_end(ep: Ep, got: Got) -> Got {
    match got {
        Got::Nothing if ep.rd_shut.load(Relaxed) != 0 && !leaving(ep) => Got::Eof,
        got => got,
    }
}

/// Whether what this side receives next comes from the ring.
fn on_ring_yet(ep: Ep, chan: &Chan) -> bool {
    ep.rx_phase.get() == RxPhase::Ring && !at_end(ep, chan)
}

/// Whether a call that has received something is over, whatever it waits for: what comes next is urgent (tcp_recvmsg_locked). One
/// that only looks has seen what lies before the mark.
fn marked(ep: Ep, chan: &Chan, fd: i32, peek: bool) -> bool {
    !on_ring_yet(ep, chan)
        && if peek { lifeline::look(fd, libc::POLLPRI) & libc::POLLPRI != 0 } else { lifeline::at_mark(fd) }
}

/// The program has set `SO_RCVBUF`, or may have before the connection was attached.
pub fn buffer_set(ep: Ep, chan: &Chan, fd: i32) {
    let Some(bytes) = lifeline::locked_buffer(fd, libc::SO_RCVBUF) else { return };
    let h = chan.slot(ep.slot.load(Relaxed) as usize);
    me(chan, h).rcvbuf.store(bytes, Relaxed);
    // A sender that waits for room has decided by the limit that was set before.
    chan.notify_aside(ep.slot.load(Relaxed) as usize);
}

/// The program has set `SO_RCVLOWAT`. Whoever waits, and has enough by the new mark, is told (tcp_set_rcvlowat); of the lifeline the
/// kernel tells.
pub fn low_set(ep: Ep, chan: &Chan) {
    if on_ring(ep, chan) >= low(ep, chan) {
        // In this order: who is woken finds an edge.
        ep.renewed.fetch_add(1, Relaxed);
        watchers::touched(ep);
        chan.tell_holders(ep.slot.load(Relaxed) as usize);
    }
}

/// A flag for [`recv`], see `io::BREAKS`.
pub const BREAKS: i32 = libc::c_int::MIN;

/// `recv` and its kin on an attached, ready endpoint: the kernel's convention (bytes or `-errno`); `None`: the
/// call must be made anew, since the descriptor has become something else.
/// `asleep` becomes true if it slept: then the caller must say that it is `awake`.
///
/// # Safety
/// `iov` points to `n` iovecs; a cancellation point; no lock held.
#[allow(clippy::too_many_arguments)]
pub unsafe fn recv(
    ep: Ep,
    chan: &Chan,
    mut fd: i32,
    iov: *const iovec,
    n: usize,
    flags: i32,
    since: Runs,
    asleep: &mut bool,
) -> Option<isize> {
    // SAFETY: the caller's iovecs.
    let Some(mut b) = (unsafe { Buffers::new(iov, n) }) else { return Some(-libc::EINVAL as isize) };
    let waitall = flags & libc::MSG_WAITALL != 0;
    let restarts = flags & BREAKS == 0;
    let record = ep.record();
    let lowat = record.rcvlowat.load(Relaxed) as usize;
    // tcp_recvmsg: target = sock_rcvlowat(sk, flags & MSG_WAITALL, len).
    let target = if waitall { b.len } else { lowat.max(1).min(b.len) };
    let peek = flags & libc::MSG_PEEK != 0;
    let mut total = 0usize;
    let mut disconnects: Option<u32> = None;
    let mut deadline: Option<Option<u64>> = None;
    // `since` decides EINTR for the whole call; `slept` is the part of it that no sleep has heard of yet.
    let mut slept = since;
    let life = ep.life();
    let number = fd;
    let mut ended = false;
    let mut restless = Restless::new();
    // Whether this call has slept. A call that has slept returns only once SO_RCVLOWAT bytes are there (tcp_data_ready does not
    // wake it for less); a call that has not slept returns whatever is there.
    let mut dozing = false;
    // What ended the last sleep, if not news. What there is by then is taken before it counts.
    let mut woke = None;
    let shut = b.len == 0 && lifeline::is_shut(fd);
    // What the kernel alone brings nobody sees come.
    let shows = || ep.rx_phase.get() != RxPhase::Down;
    if flags & libc::MSG_DONTWAIT == 0 && ep.local().blocking.load(Relaxed) != 0 && shows() && !stirred(ep, chan) {
        // The answer is often on its way: a moment's patience before the kernel is asked anything.
        spin::glance(|| stirred(ep, chan));
    }
    loop {
        let want = if peek { b.len } else { b.len - total };
        if dozing && total == 0 && family::is_recalled() && family::is_due(ep, shmring::family::Reason::Recalled) {
            return None;
        }
        let Some(mut receiving) = Receiving::take(ep, chan, fd, life) else {
            return match total {
                0 if ep.lives(life) => None,
                0 => Some(-libc::EBADF as isize),
                n => Some(n as isize),
            };
        };
        if ep.local().refs.load(Relaxed) == 0 {
            // See `tx::with_turn`.
            receiving.release();
            return Some(-libc::EBADF as isize);
        }
        let is_idle = || !stirred(ep, chan) && !conn::is_left_undone(ep, chan);
        let got = if dozing && is_idle() && lifeline::look(fd, libc::POLLIN | ENDED) == 0 {
            Got::Nothing
        } else if b.len == 0 {
            // A receive of 0 bytes waits for data, too, of which it takes nothing (tcp_recvmsg).
            nothing(ep, chan, &mut receiving, flags, deadline.is_some())
        } else {
            receiving.attempt(&mut b, want, flags, total > 0 && !peek)
        };
        receiving.release();
        match or_end(ep, got) {
            Got::Bytes(n) => {
                total = if peek { n } else { total + n };
                if total >= target || woke.is_some() || marked(ep, chan, fd, peek) {
                    return Some(total as isize);
                }
                if !peek {
                    restless = Restless::new();
                }
                if peek {
                    // Behind the end, seen before the last look, there is no more.
                    if ended {
                        return Some(total as isize);
                    }
                    ended = lifeline::look(fd, ENDED) != 0;
                    b.rewind();
                    if ended {
                        continue;
                    }
                } else {
                    continue;
                }
            }
            // Shut down on this side only: an error of the socket comes first.
            Got::Eof
                if total == 0
                    && record.kept.load(Relaxed) != 0
                    && !lifeline::peer_ended(fd)
                    && unread(ep, chan, fd) == 0 =>
            {
                return Some(endpoint::take_kept(ep).map_or(0, |e| -e as isize));
            }
            Got::Eof => return Some(total as isize),
            Got::Error(e) if total > 0 => {
                // Reported by the next call: errors come after the bytes.
                if e != libc::EFAULT {
                    put_back(ep, e);
                }
                return Some(total as isize);
            }
            Got::Error(e) => return Some(-e as isize),
            Got::Lost if total > 0 => return Some(total as isize),
            Got::Lost => return None,
            // What was taken before counts; a peek begins again.
            Got::Taken if total > 0 && !peek => continue,
            Got::Taken => return None,
            Got::Nothing => {}
        }
        // Behind all bytes (tcp_recvmsg_locked), as an error of the socket.
        if record.kept.load(Relaxed) != 0 {
            match total {
                0 if let Some(e) = endpoint::take_kept(ep) => return Some(-e as isize),
                0 => {}
                n => return Some(n as isize),
            }
        }
        if total > 0 && (ep.rd_shut.load(Relaxed) != 0 || woke.is_some() || marked(ep, chan, fd, peek)) {
            return Some(total as isize);
        }
        match woke.take() {
            // A call that is restarted finds what the number means now; else the wait goes on.
            #[allow(clippy::collapsible_match)]
            Some(libc::EINTR)
                if !signals::interrupted(since, restarts && lifeline::timeout(fd, libc::SO_RCVTIMEO).is_none()) =>
            {
                if fds::endpoint(number) != Some(ep) {
                    return None;
                }
            }
            Some(e) => return Some(-e as isize),
            None => {}
        }
        if flags & libc::MSG_DONTWAIT != 0 || (deadline.is_none() && nonblocking(ep, fd)) {
            if total == 0 && leaving(ep) {
                ep.local().turned_away.store(1, SeqCst);
                if !leaving(ep) {
                    continue;
                }
            }
            return Some(if total > 0 { total as isize } else { -libc::EAGAIN as isize });
        }
        let d = *deadline.get_or_insert_with(|| lifeline::deadline(fd, libc::SO_RCVTIMEO));
        // A peek that wants more than it sees: the lifeline would be readable all the time for what was seen there.
        let partly = peek && total > 0;
        let mixed = partly && (ep.rx_phase.get() != RxPhase::Ring || at_end(ep, chan));
        let ready = || match partly {
            true => !mixed && (on_ring(ep, chan) >= low(ep, chan).max(total as u64 + 1) || at_end(ep, chan)),
            false => stirred(ep, chan),
        };
        let rest = restless.round(K::now);
        if rest.is_none() && shows() {
            let spun = spin::spin(ready);
            spin::count(ep, spun);
            if spun == Spun::Won {
                tx::service(ep, chan, fd);
                continue;
            }
        }
        let restartable = restarts && d.is_none();
        // Whatever wakes a receive of no bytes ends it (tcp_recvmsg_locked: `while (len > 0)`), also a shutdown of the
        // other direction, by whomever (inet_shutdown), perhaps a program outside the family: the kernel is asked.
        if b.len == 0 && (signals::runs() != since || lifeline::is_shut(fd) != shut) {
            return Some(0);
        }
        // A call that has received something is never restarted.
        if signals::interrupted(since, restartable) || total > 0 && signals::runs() != slept {
            return Some(if total > 0 { total as isize } else { -libc::EINTR as isize });
        }
        let mut events = if partly { libc::POLLRDHUP } else { libc::POLLIN | libc::POLLRDHUP };
        if total > 0 && !on_ring_yet(ep, chan) {
            // A mark ends this call.
            events |= libc::POLLPRI;
        }
        let step = (mixed || b.len == 0).then(|| K::now() + poller::STEP).filter(|s| d.is_none_or(|d| *s < d));
        *asleep = true;
        let before = *disconnects.get_or_insert_with(|| record.disconnects.load(Relaxed));
        fd = sleepers::lie_down(ep, fd);
        // SAFETY: no lock is held.
        let woken = unsafe {
            match rest {
                Some(time) => restless::rest(time, step.or(d), core::ptr::null(), slept),
                None => sleep::sleep(ep, fd, events, step.or(d), slept, ready),
            }
        };
        if !ep.lives(life) {
            // This process has left its family, and the connection is the kernel's: as the kernel is told of a new user by a
            // signal (nptl's setxid), which may end the call early.
            return match (ep.life() == life, total) {
                (true, 0) => None,
                (true, n) => Some(n as isize),
                _ => Some(-libc::EBADF as isize),
            };
        }
        fd = sleepers::number(ep, fd);
        if record.disconnects.load(Relaxed) != before {
            // The error is left to the next call (sk_wait_event).
            return Some(if total > 0 { total as isize } else { -libc::EPIPE as isize });
        }
        match woken {
            Err(libc::EAGAIN) if step.is_some() => {}
            Err(_) if b.len == 0 => return Some(0),
            Err(e) => {
                slept = signals::runs();
                woke = Some(e);
            }
            Ok(()) => {}
        }
        dozing = lowat > 1 && woken.is_ok();
        is_looked_at(ep, chan);
        tx::service(ep, chan, fd);
    }
}

/// Bytes that can be read now, as FIONREAD counts them: lifeline and ring as one stream, an echo once.
pub fn unread(ep: Ep, chan: &Chan, fd: i32) -> u64 {
    let slot = ep.slot.load(Relaxed) as usize;
    let h = chan.slot(slot);
    let p = peer(chan, h);
    let phase = ep.rx_phase.get();
    let consumed = || received(ep, fd).map_or(StreamPos::START, |(consumed, _)| consumed);
    let queued = lifeline::unread(fd);
    if phase == RxPhase::Down {
        let left = ep.rx_skip.load(Relaxed).map_or(0, |to| to.since(consumed()));
        return queued - queued.min(left);
    }
    let Some(up) = p.up.load(Acquire) else { return queued };
    let on_ring = left(ep, chan, h);
    let before = if phase == RxPhase::Ring { 0 } else { up.behind(consumed()) };
    let echo = match (p.echo.load(Acquire), p.down.load(Acquire)) {
        (Some(echo), Some(down)) => down.behind_claim(echo.from),
        _ => 0,
    };
    switch::unread(queued, before, echo, on_ring)
}

/// The program has set `TCP_INQ`, or may have before the connection was attached.
pub fn inq_set(ep: Ep, fd: i32) {
    /// Two threads may do this at the same time. Each asks again after it has stored: so whoever stores last has asked after
    /// that, too.
    const TRIES: u32 = 8;
    let asked = || u32::from(lifeline::option(fd, libc::IPPROTO_TCP, lifeline::TCP_INQ) == Ok(1));
    for _ in 0..TRIES {
        let on = asked();
        ep.inq.store(on, Relaxed);
        if asked() == on {
            return;
        }
    }
}

/// What a `recvmsg` that has received from the ring says of what is left, with `TCP_INQ` (tcp_inq_hint): the bytes that can
/// be read, and one more once a FIN has come, whether the reader has come to it or not.
pub fn inq(ep: Ep, chan: &Chan, fd: i32) -> i32 {
    let slot = ep.slot.load(Relaxed) as usize;
    let h = chan.slot(slot);
    // On a ring that goes on, that is all there is.
    let going_on = ep.rx_phase.get() == RxPhase::Ring && !at_end(ep, chan) && !leaving(ep);
    let bytes = if going_on { left(ep, chan, h) } else { unread(ep, chan, fd) };
    bytes.min(i32::MAX as u64 - 1) as i32 + i32::from(finished(ep, chan, fd))
}

/// Whether the peer has finished. One that was killed does not say so in memory, so the kernel is asked.
fn finished(ep: Ep, chan: &Chan, fd: i32) -> bool {
    if ep.rx_fin.load(Relaxed) == 0 && tx::look(ep, chan, fd, ENDED) & ENDED == 0 {
        return false;
    }
    // A peer that was killed before it had read what was sent to it has reset the connection, for the kernel: no FIN came.
    tx::sink(ep, chan, fd);
    let shut = ep.wr_shut.load(Relaxed);
    let early = shut == 0 || shut & AFTER_RESET != 0;
    let reset = ep.latched.load(Relaxed) & !REPORTED == libc::ECONNRESET as u32 && early;
    !reset && lifeline::fin_came(fd, || fin_on_closed(ep).unwrap_or_else(|| lifeline::look(fd, 0) & libc::POLLERR == 0))
}
