//! Sending on an attached endpoint: lifeline, ring, lifeline, as one stream.

use crate::channel::Chan;
use crate::family::Ep;
use crate::lifeline::{self, ENDED};
use crate::rx::{self, Buffers};
use crate::signals::{self, Runs};
use crate::wait::{self, Spun};
use crate::{attach, lifecycle, lock, sleep, usercopy};
use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release, SeqCst};
use core::sync::atomic::fence;
use libc::iovec;
use shmring::family::{CORKED, Reason, UNCORKED};
use shmring::layout::{ALL_SHUT, CLOSED, ECHOED, HOME, Side, SlotHeader};
use shmring::ring;
use shmring::switch::{self, RxPhase, TxPhase, TxStep, TxView};
use shmring::{sys, syscall};

/// `tx_word`: bytes go to the ring; threads of the family no longer send natively.
pub const UP: u32 = 1 << 31;

/// A sender that never reads looks at its lifeline this often, so that it learns of a peer's death no
/// later than a network would tell it. The lifeline of any connection with the same process will do.
pub const LOOK_EVERY_US: u64 = 20;

/// It looks at its own this often: a connection can end, unseen by culvert, while its process lives on (`ss -K`,
/// keep-alive, a system call made without libc).
const LOOK_SELDOM_US: u64 = 2_000;

fn sides<'a>(chan: &Chan, h: &'a SlotHeader) -> (&'a Side, &'a Side) {
    let r = chan.role();
    (&h.side[r as usize], &h.side[r.peer() as usize])
}

/// What a sender has to do, after the switch protocol has been served.
enum Turn {
    /// Use the kernel.
    Lifeline,
    /// Use the ring.
    Ring,
    /// The rewind is not finished: nothing can be sent now.
    Blocked,
    /// Report this.
    Error(i32),
}

/// Serves the protocol until it is clear where the next byte goes. The sending direction is owned.
fn turn(ep: Ep, chan: &Chan, fd: i32) -> Turn {
    let slot = ep.slot.load(Relaxed) as usize;
    let h = chan.slot(slot);
    let (me, peer) = sides(chan, h);
    match ep.latched.load(Relaxed) {
        0 => {}
        v if v & rx::REPORTED != 0 => return Turn::Error(libc::EPIPE),
        _ => return Turn::Error(rx::take_latched(ep).unwrap_or(libc::EPIPE)),
    }
    for _ in 0..8 {
        let phase = TxPhase::from_u32(ep.tx_phase.load(Relaxed));
        match phase {
            TxPhase::Down => return Turn::Lifeline,
            TxPhase::Rewind => match resend(ep, chan, fd) {
                Ok(true) => continue,
                Ok(false) => return Turn::Blocked,
                Err(e) => return Turn::Error(e),
            },
            _ => {}
        }
        let tail = ep.tx_tail.load(Relaxed);
        let view = TxView {
            phase,
            rx: peer.rx.load(Acquire),
            rewind: peer.rewind.load(Acquire),
            head: ep.tx_head.load(Relaxed),
            tail,
            fin: ended(ep, chan, peer, fd),
        };
        match switch::tx(view) {
            TxStep::Lifeline => return Turn::Lifeline,
            TxStep::Ring => return Turn::Ring,
            TxStep::GoUp => {
                if !go_up(ep, chan, fd, me) {
                    return Turn::Lifeline;
                }
            }
            TxStep::GoDown => go_down(ep, chan, fd),
            TxStep::Rewind { from } => {
                tell_cork(ep, fd);
                ep.tx_head.store(from, Relaxed);
                ep.tx_phase.store(TxPhase::Rewind as u32, Relaxed);
            }
            TxStep::Corrupt => {
                ep.because(Reason::Corrupt);
                rx::latch(ep, libc::ECONNRESET);
                return Turn::Error(rx::take_latched(ep).unwrap_or(libc::EPIPE));
            }
        }
        match ep.latched.load(Relaxed) {
            0 => {}
            _ => return Turn::Error(match rx::take_latched(ep) {
                Some(0) | None => libc::EPIPE,
                Some(e) => e,
            }),
        }
    }
    Turn::Lifeline
}

/// Whether the lifeline shows the peer's FIN, RST or death; asked at most every `LOOK_EVERY_US`.
fn ended(ep: Ep, chan: &Chan, peer: &Side, fd: i32) -> bool {
    if ep.rx_fin.load(Relaxed) != 0 || ep.rd_shut.load(Relaxed) != 0 {
        return true;
    }
    if peer.gone.load(Relaxed) == 0 && peer.wr_shut.load(Relaxed) == 0 {
        // An answer to something just received: were the peer dead by now, the kernel would take this one, too. But
        // what was received may have lain there for long.
        let heard = ep.rx_head.load(Relaxed);
        let answer = ep.tx_heard.swap(heard, Relaxed) != heard;
        if !look_due(ep, chan, if answer { 10 * LOOK_EVERY_US } else { LOOK_EVERY_US }) {
            return false;
        }
    }
    look(ep, chan, fd, ENDED) & ENDED != 0
}

/// Whether nobody has looked at a lifeline to this peer for `us` microseconds, or at this one for long. Then the
/// caller does.
pub fn look_due(ep: Ep, chan: &Chan, us: u64) -> bool {
    let t = sys::cycles();
    let rate = wait::cycles_per_us();
    let own = t.wrapping_sub(ep.tx_checked.load(Relaxed));
    match chan.alive() {
        _ if own <= us * rate => false,
        Some(at) => own > LOOK_SELDOM_US * rate || t.wrapping_sub(at) > us * rate,
        None => true,
    }
}

/// Looks at the lifeline, and notes what it shows of the end.
pub fn look(ep: Ep, chan: &Chan, fd: i32, events: i16) -> i16 {
    let t = sys::cycles();
    let seen = lifeline::look(fd, events);
    ep.tx_checked.store(t, Relaxed);
    chan.note_alive(if seen & ENDED == 0 { t } else { 0 });
    ep.note_end(seen);
    seen
}

/// Whether so much lies unread on the lifeline that the peer's FIN may not get through to us: it stands behind
/// what the receive window did not take (tcp_send_fin). A peer that is killed with our bytes unread on the kernel
/// sends a RST, which no window holds back; we would hear nothing of its end.
fn backlog(ep: Ep, fd: i32) -> bool {
    RxPhase::from_u32(ep.rx_phase.load(Relaxed)) != RxPhase::Ring
        && lifeline::option(fd, libc::SOL_SOCKET, libc::SO_RCVBUF).is_ok_and(|size| lifeline::unread(fd) > size as u64 / 8)
}

fn go_up(ep: Ep, chan: &Chan, fd: i32, me: &Side) -> bool {
    // UP without the phase: a holder died on its way up. Nobody has sent natively since.
    let word = ep.tx_word.load(Relaxed);
    if ep.wr_shut.load(Relaxed) != 0 || (word != UP && (backlog(ep, fd) || ep.tx_word.compare_exchange(0, UP, AcqRel, Relaxed).is_err())) {
        return false;
    }
    let Some(x) = lifeline::sent(fd, ep.role.load(Relaxed) == 1) else {
        ep.tx_word.fetch_and(!UP, AcqRel);
        return false;
    };
    let dir = chan.role().tx();
    let slot = ep.slot.load(Relaxed) as usize;
    ring::rebase(&chan.slot(slot).producer[dir], 0);
    ep.tx_up.store(x, Relaxed);
    me.up.store(x + 1, Release);
    ep.tx_phase.store(TxPhase::Ring as u32, Release);
    ep.because(Reason::None);
    // A receiver that refuses meanwhile sees `up`, or we see its refusal: `turn` looks again.
    fence(SeqCst);
    chan.notify(slot);
    crate::log!(Debug, "endpoint {}: sending on the ring from byte {x}", ep.index());
    true
}

/// Returns the sending direction to the lifeline, unless the receiver left first.
///
/// What lies unread is *also* sent over the lifeline, as an echo: the receiver may yet have to leave, and by
/// then we may be gone, having finished. One that stays drops it.
fn go_down(ep: Ep, chan: &Chan, fd: i32) {
    let slot = ep.slot.load(Relaxed) as usize;
    let h = chan.slot(slot);
    let (me, peer) = sides(chan, h);
    tell_cork(ep, fd);
    let tail = ep.tx_tail.load(Relaxed);
    // A holder that died after its note of the tail may not have published it.
    ring::publish(&h.producer[chan.role().tx()], tail);
    // CLOSED already: a holder died on its way down, or the peer moved its own word; down either way.
    if !matches!(peer.rewind.compare_exchange(0, CLOSED, AcqRel, Acquire), Ok(_) | Err(CLOSED)) {
        return;
    }
    let unread = ring::refresh(&h.consumer[chan.role().tx()], ep.tx_head.load(Relaxed), tail).ok().filter(|&head| head != tail);
    // FIN without shutdown while our bytes lie unread. A close that found them there would have sent a RST
    // (tcp_close): they came after it, and the RST in answer makes that EPIPE (tcp_reset in CLOSE_WAIT). A peer
    // that was killed could not say so: had they been in its socket, there would have been a RST. Unless the
    // peer only shut its side by a way that we do not see.
    let fin = ep.rx_fin.load(Relaxed) != 0;
    // The kernel has had its RST.
    let reset = fin && lifeline::look(fd, 0) != 0;
    let lost = if unread.is_none() || !fin || reset {
        None
    } else if peer.gone.load(Relaxed) != 0 {
        Some(libc::EPIPE)
    } else if peer.wr_shut.load(Acquire) == 0 && attach::peer_gone(ep, fd) {
        Some(libc::ECONNRESET)
    } else {
        None
    };
    let mut echo = me.echo.load(Relaxed);
    // Published by a holder that died on its way down: it stands.
    if me.down.load(Relaxed) == 0 {
        echo = unread.filter(|_| lost.is_none() && !reset && peer.wr_shut.load(Acquire) & ALL_SHUT == 0).map_or(0, |head| head + 1);
        me.echo.store(echo, Relaxed);
        me.down.store(tail + 1, Release);
    }
    ep.tx_phase.store(if echo == 0 { TxPhase::Down } else { TxPhase::Rewind } as u32, Release);
    ep.because(Reason::Down);
    chan.notify(slot);
    crate::log!(Debug, "endpoint {}: sending on the lifeline again from ring byte {tail}", ep.index());
    if let Some(e) = lost {
        rx::latch(ep, e);
    }
}

/// Sends what the departed receiver left unread, or the echo, over the lifeline, as far as it takes it now.
/// True when done.
fn resend(ep: Ep, chan: &Chan, fd: i32) -> Result<bool, i32> {
    let slot = ep.slot.load(Relaxed) as usize;
    let h = chan.slot(slot);
    let dir = chan.role().tx();
    let (me, peer) = sides(chan, h);
    let tail = ep.tx_tail.load(Relaxed);
    // The kernel knows how much has been sent since the direction went up, also by a holder that died.
    let (start, echo) = switch::resend(peer.rewind.load(Acquire), me.echo.load(Relaxed));
    let done = lifeline::sent(fd, ep.role.load(Relaxed) == 1).map_or(0, |n| n.saturating_sub(ep.tx_up.load(Relaxed)));
    if done > tail.wrapping_sub(start) {
        return Err(libc::ECONNRESET);
    }
    ep.tx_head.store(start.wrapping_add(done), Relaxed);
    loop {
        let from = ep.tx_head.load(Relaxed);
        let spans = chan.geometry(dir).spans(ep.tx_base.load(Relaxed), from, tail.wrapping_sub(from));
        let mem = chan.bytes(slot, dir);
        let (off, len) = spans[0];
        if len == 0 {
            if echo {
                me.echo.fetch_or(ECHOED, Release);
            } else {
                me.down.store(start + 1, Release);
                ep.because(Reason::Passed);
            }
            ep.tx_phase.store(TxPhase::Down as u32, Release);
            chan.notify(slot);
            return Ok(true);
        }
        // SAFETY: the span is inside the ring.
        let r = unsafe { syscall!(libc::SYS_sendto, fd, mem.add(off), len, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL, 0, 0) };
        if r == -libc::EAGAIN as isize {
            return Ok(false);
        }
        if r < 0 {
            ep.tx_phase.store(TxPhase::Down as u32, Release);
            return Err(-r as i32);
        }
        ep.tx_head.store(from.wrapping_add(r as u64), Relaxed);
    }
}

/// An error of the connection that this call cannot report: it took bytes before, or is none of the
/// program's. The kernel has told it once and would go on with an end of the stream; the next call reports it.
fn untold(ep: Ep, e: i32) {
    if matches!(e, libc::ECONNRESET | libc::ETIMEDOUT | libc::EHOSTUNREACH | libc::ENETUNREACH) {
        ep.latched.store(e as u32, Relaxed);
    }
}

/// Serves what the peer may have asked of our sending direction. Cheap when it asked nothing.
pub fn service(ep: Ep, chan: &Chan, fd: i32) {
    let life = ep.life();
    let phase = ep.tx_phase.load(Relaxed);
    let asked = match TxPhase::from_u32(phase) {
        TxPhase::Ring => {
            let h = chan.slot(ep.slot.load(Relaxed) as usize);
            sides(chan, h).1.rewind.load(Relaxed) != 0
        }
        TxPhase::Rewind => true,
        _ => false,
    };
    // A latched error is for the program's own calls to report.
    if asked && ep.latched.load(Relaxed) == 0 {
        let Some(held) = lock::take_living(ep, &ep.tx_token, life) else { return };
        if let Turn::Error(e) = turn(ep, chan, fd) {
            untold(ep, e);
        }
        held.release();
    }
}

/// The lifeline has ended: takes our sending direction down, and latches the error that the kernel would have, had
/// it had the bytes.
pub fn sink(ep: Ep, chan: &Chan, fd: i32) {
    if ep.tx_phase.load(Relaxed) == TxPhase::Ring as u32 {
        let held = lock::take(&ep.tx_token);
        if ep.tx_phase.load(Relaxed) == TxPhase::Ring as u32 {
            go_down(ep, chan, fd);
            if ep.tx_phase.load(Relaxed) == TxPhase::Rewind as u32
                && let Err(e) = resend(ep, chan, fd)
            {
                untold(ep, e);
            }
        }
        held.release();
    }
}

/// The lifeline has ended and the incoming ring is drained: takes our sending direction down, so that the
/// kernel gives the native sequence of errors, and returns the latched error, if any (`Some(0)`: reported).
pub fn settle(ep: Ep, chan: &Chan, fd: i32) -> Option<i32> {
    sink(ep, chan, fd);
    // See `rx::unreported`.
    if ep.latched.load(Relaxed) == libc::EPIPE as u32 { Some(0) } else { rx::take_latched(ep) }
}

/// Takes the sending direction down for good, for a reason of this side's.
pub fn leave(ep: Ep, chan: &Chan, fd: i32) {
    let held = lock::take(&ep.tx_token);
    match TxPhase::from_u32(ep.tx_phase.load(Relaxed)) {
        TxPhase::Native => {
            // Native senders may be at work; nobody can go up any more.
            ep.tx_phase.store(TxPhase::Down as u32, Release);
        }
        TxPhase::Ring => {
            go_down(ep, chan, fd);
            if ep.latched.load(Relaxed) == 0
                && let Turn::Error(e) = turn(ep, chan, fd)
            {
                untold(ep, e);
            }
        }
        _ => {}
    }
    held.release();
}

/// Goes down so that what this process or another sends natively from now on comes behind it: if the
/// receiver left first, behind what it did not read, else behind the echo. The kernel would take those bytes
/// at once if it had them already; here a receiver that does not read its lifeline makes us wait, but not
/// for ever.
pub fn finish(ep: Ep, chan: &Chan, fd: i32) {
    leave(ep, chan, fd);
    flush(ep, chan, fd, false);
}

/// The same before a FIN. An echo that the lifeline does not take may stay incomplete: nothing comes behind.
pub fn finish_last(ep: Ep, chan: &Chan, fd: i32) {
    leave(ep, chan, fd);
    flush(ep, chan, fd, true);
}

/// After the FIN: what is left of an echo stays unsent.
pub fn finished(ep: Ep) {
    let held = lock::take(&ep.tx_token);
    if ep.tx_phase.load(Relaxed) == TxPhase::Rewind as u32 {
        ep.tx_phase.store(TxPhase::Down as u32, Release);
    }
    held.release();
}

/// Serves a rewind to its end. If the receiver does not read its lifeline for `FINISH_NS`, the connection is
/// reset: what it asked for would be missing from a stream that seems complete.
pub fn flush(ep: Ep, chan: &Chan, fd: i32, last: bool) {
    service(ep, chan, fd);
    let rewinding = || ep.tx_phase.load(Relaxed) == TxPhase::Rewind as u32;
    if !rewinding() {
        return;
    }
    let h = chan.slot(ep.slot.load(Relaxed) as usize);
    if last && sides(chan, h).1.rewind.load(Acquire) == CLOSED {
        // Not down yet: what another thread or process sent before the FIN would be taken for the rest of the echo.
        return;
    }
    let until = wait::now() + FINISH_NS;
    while rewinding() && ep.latched.load(Relaxed) == 0 && wait::now() < until {
        let mut p = libc::pollfd { fd, events: libc::POLLOUT, revents: 0 };
        let t = libc::timespec { tv_sec: 0, tv_nsec: 50_000_000 };
        // SAFETY: one pollfd and a timeout, both locals.
        unsafe { syscall!(libc::SYS_ppoll, &raw mut p, 1, &raw const t, 0, 8) };
        service(ep, chan, fd);
    }
    if rewinding() {
        crate::io::reset(fd, Reason::Down);
    }
}

/// How long [`flush`] tries, nanoseconds.
const FINISH_NS: u64 = 5_000_000_000;

/// Free bytes on our ring.
pub fn space(ep: Ep, chan: &Chan) -> u64 {
    let h = chan.slot(ep.slot.load(Relaxed) as usize);
    let size = limit(ep, chan);
    let tail = ep.tx_tail.load(Relaxed);
    // The token may be elsewhere: the head is only believed within what was sent.
    match ring::refresh(&h.consumer[chan.role().tx()], ep.tx_head.load(Relaxed), tail) {
        Ok(head) => size.saturating_sub(tail.wrapping_sub(head)),
        Err(_) => size,
    }
}

fn limit(ep: Ep, chan: &Chan) -> u64 {
    let h = chan.slot(ep.slot.load(Relaxed) as usize);
    let (me, peer) = sides(chan, h);
    ring::limit(me, peer, chan.ring() as u64)
}

/// The program has set `SO_SNDBUF`, or may have before the connection was attached.
pub fn buffer_set(ep: Ep, chan: &Chan, fd: i32) {
    let Some(bytes) = lifeline::locked_buffer(fd, libc::SO_SNDBUF) else { return };
    let h = chan.slot(ep.slot.load(Relaxed) as usize);
    let held = lock::take(&ep.tx_token);
    // The receiver must not judge by another limit than the one that we wait under: not while bytes are on the way.
    if h.consumer[chan.role().tx()].head.load(Acquire) == ep.tx_tail.load(Relaxed) {
        sides(chan, h).0.sndbuf.store(bytes, Relaxed);
    }
    held.release();
}

/// `TCP_CORK` (tcp(7)). On the ring nothing is held back for want of a full segment, so a program that corks and
/// uncorks around every answer needs no system call for it. `real` tells the kernel.
pub fn cork(ep: Ep, on: bool, real: impl FnOnce() -> i32) -> i32 {
    let held = lock::take(&ep.tx_token);
    let known = ep.tx_phase.load(Relaxed) == TxPhase::Ring as u32 && ep.cork.load(Relaxed) != 0;
    let r = if known { 0 } else { real() };
    // Once the kernel has nothing corked, it need not hear of it any more.
    let now = match on {
        true if known => CORKED,
        false if known || r == 0 => UNCORKED,
        _ => 0,
    };
    ep.cork.store(now, Relaxed);
    held.release();
    r
}

/// Tells the kernel of a cork that it does not know of.
pub fn tell_cork(ep: Ep, fd: i32) {
    if ep.cork.swap(0, Relaxed) == CORKED {
        let on = 1i32;
        // SAFETY: passes a local.
        unsafe { syscall!(libc::SYS_setsockopt, fd, libc::IPPROTO_TCP, libc::TCP_CORK, &raw const on, size_of_val(&on)) };
    }
}

/// Whether `poll` would say POLLOUT for the ring: a third is free (sk_stream_is_writeable).
pub fn writable(ep: Ep, chan: &Chan) -> bool {
    space(ep, chan) >= limit(ep, chan) / 3
}

/// Whether something has changed that a sender who waits for space should look at.
fn stirred(ep: Ep, chan: &Chan) -> bool {
    let h = chan.slot(ep.slot.load(Relaxed) as usize);
    let (_, peer) = sides(chan, h);
    match TxPhase::from_u32(ep.tx_phase.load(Relaxed)) {
        TxPhase::Ring => space(ep, chan) > 0 || peer.rewind.load(Relaxed) != 0,
        TxPhase::Rewind => false,
        _ => true,
    }
}

/// Marks this side as waiting for ring space. Whoever sleeps arms first, calls this, then looks again.
pub fn want_space(ep: Ep, chan: &Chan) {
    let h = chan.slot(ep.slot.load(Relaxed) as usize);
    ep.tx_blocked.fetch_add(1, Relaxed);
    ring::want_space(sides(chan, h).0);
}

/// The ring is empty: goes on from its home. A ring that was filled far gives its memory back now and then, so
/// that a connection that was once busy does not keep megabytes.
fn go_home(ep: Ep, chan: &Chan, slot: usize, tail: u64) -> u64 {
    const KEEP: u64 = 256 << 10;
    const EVERY_US: u64 = 100_000;
    let extent = ep.tx_extent.load(Relaxed).max(tail.wrapping_sub(ep.tx_base.load(Relaxed)));
    ep.tx_extent.store(extent, Relaxed);
    if extent > KEEP {
        let t = sys::cycles();
        if t.wrapping_sub(ep.tx_trimmed.load(Relaxed)) > EVERY_US * wait::cycles_per_us() {
            chan.trim(slot, chan.role().tx());
            ep.tx_trimmed.store(t, Relaxed);
            ep.tx_extent.store(0, Relaxed);
        }
    }
    ep.tx_base.store(tail, Relaxed);
    ring::rebase(&chan.slot(slot).producer[chan.role().tx()], tail);
    tail
}

/// Copies as much as there is room for; the direction is owned. `Ok(0)`: full.
unsafe fn put(ep: Ep, chan: &Chan, b: &mut Buffers, want: usize) -> Result<usize, i32> {
    let slot = ep.slot.load(Relaxed) as usize;
    let h = chan.slot(slot);
    let dir = chan.role().tx();
    let size = limit(ep, chan);
    let tail = ep.tx_tail.load(Relaxed);
    let mut head = ep.tx_head.load(Relaxed);
    let mut base = ep.tx_base.load(Relaxed);
    let wanted = want as u64;
    let in_home = tail.wrapping_sub(base) + wanted <= HOME as u64;
    if size.saturating_sub(tail.wrapping_sub(head)) < wanted || !in_home {
        head = ring::refresh(&h.consumer[dir], head, tail).map_err(|_| libc::ECONNRESET)?;
        ep.tx_head.store(head, Relaxed);
        if head == tail && tail != base {
            // Drained: start again at home, where the cache and the page table are warm.
            base = go_home(ep, chan, slot, tail);
        }
    }
    let room = size.saturating_sub(tail.wrapping_sub(head)).min(wanted) as usize;
    if room == 0 {
        return Ok(0);
    }
    let geo = chan.geometry(dir);
    let mem = chan.bytes(slot, dir);
    let mut done = 0;
    'fill: while done < room {
        let Some((mut src, n)) = b.piece(room - done) else { break };
        for (off, len) in geo.spans(base, tail.wrapping_add(done as u64), n as u64) {
            // SAFETY: the destination is inside the ring and unpublished: nobody reads it. The source is
            // the program's, and may fault, which `copy` reports.
            if len > 0 && unsafe { usercopy::copy(mem.add(off), src, len) }.is_err() {
                if done == 0 {
                    return Err(libc::EFAULT);
                }
                break 'fill;
            }
            src = src.wrapping_add(len);
        }
        b.advance(n);
        done += n;
    }
    commit(ep, chan, tail, done);
    Ok(done)
}

/// Publishes `n` bytes that lie in the ring after `tail`, and tells the receiver.
fn commit(ep: Ep, chan: &Chan, tail: u64, n: usize) {
    let slot = ep.slot.load(Relaxed) as usize;
    let new = tail.wrapping_add(n as u64);
    ep.tx_tail.store(new, Relaxed);
    let p = &chan.slot(slot).producer[chan.role().tx()];
    // The base that goes with this tail, also if a holder died after its note of a new one.
    ring::rebase(p, ep.tx_base.load(Relaxed));
    ring::publish(p, new);
    ep.tx_bytes.store(ep.tx_bytes.load(Relaxed) + n as u64, Relaxed);
    ep.tx_msgs.store(ep.tx_msgs.load(Relaxed) + 1, Relaxed);
    let rung = chan.notify(slot);
    if rung > 0 {
        ep.bells.store(ep.bells.load(Relaxed) + u64::from(rung), Relaxed);
    }
}

/// What became of a send.
pub enum Sent {
    /// Bytes taken (or `-errno`).
    Done(isize),
    /// Nothing was taken: the kernel must do it.
    Native,
}

/// One attempt to fill the ring under the token, by `fill`.
enum Attempt {
    Took(usize),
    Full,
    Native,
    Error(i32),
}

fn with_turn(ep: Ep, chan: &Chan, fd: i32, life: u32, fill: impl FnOnce() -> Result<usize, i32>) -> Attempt {
    let Some(held) = lock::take_living(ep, &ep.tx_token, life) else { return Attempt::Error(libc::EBADF) };
    let a = match turn(ep, chan, fd) {
        Turn::Lifeline => Attempt::Native,
        Turn::Blocked => Attempt::Full,
        Turn::Error(e) => Attempt::Error(e),
        Turn::Ring => match fill() {
            Ok(0) => Attempt::Full,
            Ok(n) => Attempt::Took(n),
            Err(e) => Attempt::Error(e),
        },
    };
    held.release();
    a
}

fn failed(e: i32, flags: i32) -> isize {
    if e == libc::EPIPE && flags & libc::MSG_NOSIGNAL == 0 {
        // The kernel sends SIGPIPE to the thread (sk_stream_error).
        // SAFETY: signals our own thread.
        unsafe { syscall!(libc::SYS_tgkill, sys::getpid(), sys::gettid(), libc::SIGPIPE) };
    }
    -e as isize
}

/// `send` and its kin on an attached endpoint.
///
/// # Safety
/// `iov` points to `n` iovecs; a cancellation point; no lock held.
pub unsafe fn send(ep: Ep, chan: &Chan, fd: i32, iov: *const iovec, n: usize, flags: i32, since: Runs) -> Sent {
    let mut asleep = false;
    // SAFETY: the caller's obligation.
    let r = unsafe { transmit(ep, chan, fd, iov, n, flags, since, &mut asleep) };
    if asleep {
        lifecycle::awake(ep);
    }
    r
}

#[allow(clippy::too_many_arguments)]
unsafe fn transmit(ep: Ep, chan: &Chan, mut fd: i32, iov: *const iovec, n: usize, flags: i32, since: Runs, asleep: &mut bool) -> Sent {
    // SAFETY: the caller's iovecs.
    let Some(mut b) = (unsafe { Buffers::new(iov, n) }) else { return Sent::Done(-libc::EINVAL as isize) };
    let mut total = 0usize;
    let mut deadline: Option<Option<u64>> = None;
    let mut slept = since;
    let life = ep.life();
    loop {
        let want = b.len - total;
        if want == 0 && total > 0 {
            return Sent::Done(total as isize);
        }
        let a = with_turn(ep, chan, fd, life, || {
            if want == 0 {
                return Ok(0);
            }
            // SAFETY: the direction is ours.
            unsafe { put(ep, chan, &mut b, want) }
        });
        match a {
            Attempt::Took(n) => {
                total += n;
                if total == b.len {
                    return Sent::Done(total as isize);
                }
                continue;
            }
            Attempt::Native if total > 0 => {
                // The rest goes to the kernel, with this call's own flags.
                // SAFETY: as above.
                let r = unsafe { rest(fd, &mut b, want, flags) };
                if r < 0 {
                    untold(ep, crate::real::errno());
                }
                return Sent::Done(total as isize + r.max(0));
            }
            Attempt::Native => return Sent::Native,
            Attempt::Full if want == 0 => return Sent::Done(0),
            Attempt::Full => {}
            Attempt::Error(e) if total > 0 => {
                untold(ep, e);
                return Sent::Done(total as isize);
            }
            Attempt::Error(e) => return Sent::Done(failed(e, flags)),
        }
        if flags & libc::MSG_DONTWAIT != 0 || (deadline.is_none() && lifeline::nonblocking(fd)) {
            want_space(ep, chan);
            if stirred(ep, chan) {
                continue;
            }
            return Sent::Done(if total > 0 { total as isize } else { -libc::EAGAIN as isize });
        }
        let d = *deadline.get_or_insert_with(|| lifeline::timeout(fd, libc::SO_SNDTIMEO).map(|t| wait::now() + t));
        *asleep = true;
        // SAFETY: no lock is held.
        if let Err(e) = unsafe { wait_space(ep, chan, &mut fd, d, since, &mut slept, total > 0) } {
            return Sent::Done(if total > 0 { total as isize } else { -e as isize });
        }
    }
}

/// Waits until the ring has room. `Err`: EINTR or EAGAIN (timeout).
unsafe fn wait_space(ep: Ep, chan: &Chan, fd: &mut i32, deadline: Option<u64>, since: Runs, slept: &mut Runs, partial: bool) -> Result<(), i32> {
    let spun = wait::spin(|| stirred(ep, chan));
    rx::count(ep, spun);
    if spun == Spun::Won {
        return Ok(());
    }
    let restartable = deadline.is_none();
    // A call that has sent something is never restarted.
    if signals::interrupted(since, restartable) || partial && signals::runs() != *slept {
        return Err(libc::EINTR);
    }
    let rewinding = ep.tx_phase.load(Relaxed) == TxPhase::Rewind as u32;
    let events = if rewinding { libc::POLLOUT } else { libc::POLLRDHUP };
    let life = ep.life();
    wait::lie_down(ep);
    // SAFETY: the caller's obligation.
    let woken = unsafe {
        sleep::sleep(ep, *fd, events, deadline, *slept, || {
            want_space(ep, chan);
            stirred(ep, chan) || (!rewinding && ep.tx_phase.load(Relaxed) == TxPhase::Rewind as u32)
        })
    };
    if !ep.lives(life) {
        return Err(libc::EBADF);
    }
    match woken {
        Err(libc::EINTR) if !partial && !signals::interrupted(since, restartable) => *slept = signals::runs(),
        Err(e) => return Err(e),
        Ok(()) => {}
    }
    ep.tx_checked.store(0, Relaxed);
    Ok(())
}

unsafe fn rest(fd: i32, b: &mut Buffers, mut want: usize, flags: i32) -> isize {
    let mut sent = 0isize;
    while want > 0 {
        let Some((p, n)) = b.piece(want) else { break };
        // SAFETY: libc's own send: a cancellation point, blocking as the socket says.
        let r = unsafe { crate::real::send(fd, p.cast(), n, flags) };
        if r < 0 {
            return if sent > 0 { sent } else { r };
        }
        b.advance(r as usize);
        sent += r;
        want -= r as usize;
        if (r as usize) < n {
            break;
        }
    }
    sent
}

/// `sendfile` into the ring: the kernel copies the file's pages straight into it.
///
/// # Safety
/// `off` is null or valid; a cancellation point; no lock held.
pub unsafe fn sendfile(ep: Ep, chan: &Chan, out: i32, inp: i32, off: *mut i64, n: usize, since: Runs) -> Sent {
    let mut asleep = false;
    // SAFETY: the caller's obligation.
    let r = unsafe { transmit_file(ep, chan, out, inp, off, n, since, &mut asleep) };
    if asleep {
        lifecycle::awake(ep);
    }
    r
}

#[allow(clippy::too_many_arguments)]
unsafe fn transmit_file(ep: Ep, chan: &Chan, mut out: i32, inp: i32, off: *mut i64, n: usize, since: Runs, asleep: &mut bool) -> Sent {
    let n = n.min(0x7fff_f000);
    let mut total = 0usize;
    let mut deadline: Option<Option<u64>> = None;
    let mut slept = since;
    let life = ep.life();
    loop {
        let want = n - total;
        if want == 0 {
            return Sent::Done(total as isize);
        }
        let mut end = false;
        let a = with_turn(ep, chan, out, life, || {
            // SAFETY: the direction is ours.
            let r = unsafe { put_file(ep, chan, inp, off, want) };
            if r == Ok(None) {
                end = true;
            }
            r.map(|n| n.unwrap_or(0))
        });
        match a {
            Attempt::Took(k) => {
                total += k;
                continue;
            }
            Attempt::Native if total > 0 => return Sent::Done(total as isize),
            Attempt::Native => return Sent::Native,
            Attempt::Full if end => return Sent::Done(total as isize),
            Attempt::Full => {}
            Attempt::Error(e) if total > 0 => {
                untold(ep, e);
                return Sent::Done(total as isize);
            }
            Attempt::Error(e) => return Sent::Done(failed(e, 0)),
        }
        if deadline.is_none() && lifeline::nonblocking(out) {
            want_space(ep, chan);
            if stirred(ep, chan) {
                continue;
            }
            return Sent::Done(if total > 0 { total as isize } else { -libc::EAGAIN as isize });
        }
        let d = *deadline.get_or_insert_with(|| lifeline::timeout(out, libc::SO_SNDTIMEO).map(|t| wait::now() + t));
        *asleep = true;
        // SAFETY: no lock is held.
        if let Err(e) = unsafe { wait_space(ep, chan, &mut out, d, since, &mut slept, total > 0) } {
            return Sent::Done(if total > 0 { total as isize } else { -e as isize });
        }
    }
}

/// Reads from the file into the ring. `Ok(None)`: end of file; `Ok(Some(0))`: the ring is full.
unsafe fn put_file(ep: Ep, chan: &Chan, inp: i32, off: *mut i64, want: usize) -> Result<Option<usize>, i32> {
    let slot = ep.slot.load(Relaxed) as usize;
    let h = chan.slot(slot);
    let dir = chan.role().tx();
    let tail = ep.tx_tail.load(Relaxed);
    let head = ring::refresh(&h.consumer[dir], ep.tx_head.load(Relaxed), tail).map_err(|_| libc::ECONNRESET)?;
    ep.tx_head.store(head, Relaxed);
    let mut base = ep.tx_base.load(Relaxed);
    if head == tail && tail != base {
        base = go_home(ep, chan, slot, tail);
    }
    let room = limit(ep, chan).saturating_sub(tail.wrapping_sub(head)).min(want as u64);
    if room == 0 {
        return Ok(Some(0));
    }
    let mem = chan.bytes(slot, dir);
    let v = chan.geometry(dir).spans(base, tail, room).map(|(o, l)| iovec { iov_base: mem.wrapping_add(o).cast(), iov_len: l });
    // SAFETY: the spans lie inside the ring, unpublished. A program's bad `off` faults here as it does in
    // libc's own callers only if it is not null: it is read through the kernel below.
    let r = unsafe {
        if off.is_null() {
            syscall!(libc::SYS_readv, inp, v.as_ptr(), 2)
        } else {
            let mut at = 0i64;
            usercopy::copy((&raw mut at).cast(), off.cast(), 8).map_err(|_| libc::EFAULT)?;
            let r = syscall!(libc::SYS_preadv, inp, v.as_ptr(), 2, at, 0);
            if r > 0 {
                let new = at + r as i64;
                usercopy::copy(off.cast(), (&raw const new).cast(), 8).map_err(|_| libc::EFAULT)?;
            }
            r
        }
    };
    match r {
        0 => Ok(None),
        n if n > 0 => {
            commit(ep, chan, tail, n as usize);
            Ok(Some(n as usize))
        }
        e => Err(-e as i32),
    }
}

/// Whether somebody who polls for POLLOUT should look again. Memory only.
pub fn may_write(ep: Ep, chan: &Chan) -> bool {
    match TxPhase::from_u32(ep.tx_phase.load(Relaxed)) {
        TxPhase::Ring => writable(ep, chan),
        _ => false,
    }
}
