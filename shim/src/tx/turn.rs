//! The sending side's way between lifeline and ring: up, down, rewind, and the end.

use super::tell_cork;
use crate::channel::Chan;
use crate::endpoint::Ep;
use crate::lifeline::{self, ENDED};
use crate::{clock, endpoint, lock, peer};
use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release, SeqCst};
use core::sync::atomic::fence;
use shmring::family::Reason;
use shmring::layout::{ALL_SHUT, CLOSED, ECHOED, Side, SlotHeader};
use shmring::switch::{self, Again, RxPhase, TxPhase, TxStep, TxView};
use shmring::{ring, sys, syscall};

/// `tx_word`: bytes go to the ring; threads of the family no longer send natively.
pub const UP: u32 = 1 << 31;

/// A sender that never reads looks at its lifeline this often, so that it learns of a peer's death no
/// later than a network would tell it. The lifeline of any connection with the same process will do.
pub const LOOK_EVERY_US: u64 = 20;

/// It looks at its own this often: a connection can end, unseen by culvert, while its process lives on (`ss -K`,
/// keep-alive, a system call made without libc).
const LOOK_SELDOM_US: u64 = 2_000;

pub(super) fn sides<'a>(chan: &Chan, h: &'a SlotHeader) -> (&'a Side, &'a Side) {
    let r = chan.role();
    (&h.side[r as usize], &h.side[r.peer() as usize])
}

/// What a sender has to do, after the switch protocol has been served.
pub(super) enum Turn {
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
pub(super) fn turn(ep: Ep, chan: &Chan, fd: i32) -> Turn {
    let slot = ep.slot.load(Relaxed) as usize;
    let h = chan.slot(slot);
    let (me, peer) = sides(chan, h);
    match ep.latched.load(Relaxed) {
        0 => {}
        v if v & endpoint::REPORTED != 0 => return Turn::Error(libc::EPIPE),
        _ => return Turn::Error(endpoint::take_latched(ep).unwrap_or(libc::EPIPE)),
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
                ep.tx_again.store(Again::Rewind(from).to_word(), Relaxed);
                ep.tx_head.store(from, Relaxed);
                ep.tx_phase.store(TxPhase::Rewind as u32, Relaxed);
            }
            TxStep::Corrupt => {
                if ep.is_corrupt() {
                    crate::log!(
                        Error,
                        "endpoint {}: what its receiver says of the ring contradicts what was sent; connection reset",
                        ep.index()
                    );
                }
                endpoint::latch(ep, libc::ECONNRESET);
                return Turn::Error(endpoint::take_latched(ep).unwrap_or(libc::EPIPE));
            }
        }
        match ep.latched.load(Relaxed) {
            0 => {}
            _ => {
                return Turn::Error(match endpoint::take_latched(ep) {
                    Some(0) | None => libc::EPIPE,
                    Some(e) => e,
                });
            }
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
    let rate = clock::cycles_per_us();
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
        && lifeline::option(fd, libc::SOL_SOCKET, libc::SO_RCVBUF)
            .is_ok_and(|size| lifeline::unread(fd) > size as u64 / 8)
}

fn go_up(ep: Ep, chan: &Chan, fd: i32, me: &Side) -> bool {
    // UP without the phase: a holder died on its way up. Nobody has sent natively since.
    let word = ep.tx_word.load(Relaxed);
    if ep.wr_shut.load(Relaxed) != 0
        || (word != UP && (backlog(ep, fd) || ep.tx_word.compare_exchange(0, UP, AcqRel, Relaxed).is_err()))
    {
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
    let unread =
        ring::refresh(&h.consumer[chan.role().tx()], ep.tx_head.load(Relaxed), tail).ok().filter(|&head| head != tail);
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
    } else if peer.wr_shut.load(Acquire) == 0 && peer::gone(ep, fd) {
        Some(libc::ECONNRESET)
    } else {
        None
    };
    let mut again = Again::from_word(ep.tx_again.load(Relaxed));
    // The decision of a holder that died on its way down stands: it may have published it.
    if !matches!(again, Again::Nothing | Again::Echo(_)) {
        again = unread
            .filter(|_| lost.is_none() && !reset && peer.wr_shut.load(Acquire) & ALL_SHUT == 0)
            .map_or(Again::Nothing, Again::Echo);
        ep.tx_again.store(again.to_word(), Relaxed);
    }
    me.echo.store(again.from().map_or(0, |from| from + 1), Relaxed);
    me.down.store(tail + 1, Release);
    ep.tx_phase.store(if again == Again::Nothing { TxPhase::Down } else { TxPhase::Rewind } as u32, Release);
    ep.because(Reason::Down);
    chan.notify(slot);
    crate::log!(Debug, "endpoint {}: sending on the lifeline again from ring byte {tail}", ep.index());
    if let Some(e) = lost {
        endpoint::latch(ep, e);
    }
}

/// Sends what the departed receiver left unread, or the echo, over the lifeline, as far as it takes it now.
/// True when done.
fn resend(ep: Ep, chan: &Chan, fd: i32) -> Result<bool, i32> {
    let slot = ep.slot.load(Relaxed) as usize;
    let h = chan.slot(slot);
    let dir = chan.role().tx();
    let (me, _) = sides(chan, h);
    let tail = ep.tx_tail.load(Relaxed);
    let again = Again::from_word(ep.tx_again.load(Relaxed));
    // The kernel knows how much has been sent since the direction went up, also by a holder that died.
    let done = lifeline::sent(fd, ep.role.load(Relaxed) == 1).map_or(0, |n| n.saturating_sub(ep.tx_up.load(Relaxed)));
    let Ok(at) = again.resume(tail, done) else { return Err(libc::ECONNRESET) };
    ep.tx_head.store(at, Relaxed);
    loop {
        let from = ep.tx_head.load(Relaxed);
        let spans = chan.geometry(dir).spans(ep.tx_base.load(Relaxed), from, tail.wrapping_sub(from));
        let mem = chan.bytes(slot, dir);
        let (off, len) = spans[0];
        if len == 0 {
            match again {
                Again::Echo(from) => me.echo.store((from + 1) | ECHOED, Release),
                Again::Rewind(from) => {
                    me.down.store(from + 1, Release);
                    ep.because(Reason::Passed);
                }
                Again::Undecided | Again::Nothing => {}
            }
            ep.tx_phase.store(TxPhase::Down as u32, Release);
            chan.notify(slot);
            return Ok(true);
        }
        // SAFETY: the span is inside the ring.
        let r =
            unsafe { syscall!(libc::SYS_sendto, fd, mem.add(off), len, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL, 0, 0) };
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
pub(super) fn untold(ep: Ep, e: i32) {
    ep.note_error(e);
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
        let Some(held) = endpoint::take_living(ep, &ep.tx_token, life) else { return };
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
    // See `endpoint::unreported`.
    if ep.latched.load(Relaxed) == libc::EPIPE as u32 { Some(0) } else { endpoint::take_latched(ep) }
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
    if last && matches!(Again::from_word(ep.tx_again.load(Relaxed)), Again::Echo(_)) {
        // Not down yet: what another thread or process sent before the FIN would be taken for the rest of the echo.
        return;
    }
    let until = clock::now() + FINISH_NS;
    while rewinding() && ep.latched.load(Relaxed) == 0 && clock::now() < until {
        let mut p = libc::pollfd { fd, events: libc::POLLOUT, revents: 0 };
        let t = libc::timespec { tv_sec: 0, tv_nsec: 50_000_000 };
        // SAFETY: one pollfd and a timeout, both locals.
        unsafe { syscall!(libc::SYS_ppoll, &raw mut p, 1, &raw const t, 0, 8) };
        service(ep, chan, fd);
    }
    if rewinding() {
        lifeline::reset(fd, Reason::Down);
    }
}

/// How long [`flush`] tries, nanoseconds.
const FINISH_NS: u64 = 5_000_000_000;
