//! Receiving on an attached endpoint: lifeline, ring, lifeline, as one stream.

mod advance;
mod depart;
mod look;

pub use advance::{READY, advance, come_down, doubled, make_ready, received};
pub use depart::{TakenBack, closed, dropped, echoed, taken_back};
pub use look::{at_end, ending, left, low, news, on_ring, stirred, tail};

use crate::buffers::Buffers;
use crate::channel::Chan;
use crate::endpoint::{Ep, latch, put_back, take_latched, take_living, unreported};
use crate::lifeline::{self, ENDED};
use crate::signals::{self, Runs};
use crate::spin::{self, Spun};
use crate::{clock, fds, lock, poller, sleep, sleepers, tx, usercopy};
use advance::{all_echoed, go_up, skip};
use core::sync::atomic::Ordering::{Acquire, Relaxed};
use libc::iovec;
use look::{end, me, peer};
use shmring::family::RCVTIMEO;
use shmring::layout::ECHOED;
use shmring::ring::{self, Corrupt};
use shmring::switch::{self, RxPhase, RxStep, RxView, Transit};
use shmring::syscall;

/// What one look brought.
pub enum Got {
    /// Bytes, at least one.
    Bytes(usize),
    /// End of the stream.
    Eof,
    /// An error to report.
    Error(i32),
    /// Nothing yet.
    Nothing,
}

/// `O_NONBLOCK`, as the kernel says now. The answer is kept as a hint, on which nothing but a glance depends.
fn nonblocking(ep: Ep, fd: i32) -> bool {
    let n = lifeline::nonblocking(fd) || ep.never_waits(RCVTIMEO);
    ep.local().blocking.store(u32::from(!n), Relaxed);
    n
}

/// Native non-blocking receive of at most `max` bytes.
unsafe fn native(ep: Ep, fd: i32, b: &mut Buffers, max: usize, flags: i32) -> Got {
    let keep = libc::MSG_PEEK | libc::MSG_TRUNC;
    let mut v = [iovec { iov_base: core::ptr::null_mut(), iov_len: 0 }; 16];
    let n = b.pieces(max, &mut v);
    // SAFETY: all-zero bytes are a valid msghdr.
    let mut m: libc::msghdr = unsafe { core::mem::zeroed() };
    m.msg_iov = v.as_mut_ptr();
    m.msg_iovlen = n;
    // SAFETY: the kernel checks the program's buffers.
    let r = unsafe { syscall!(libc::SYS_recvmsg, fd, &raw mut m, (flags & keep) | libc::MSG_DONTWAIT) };
    match r {
        0 => Got::Eof,
        n if n > 0 => {
            b.skip(n as usize);
            Got::Bytes(n as usize)
        }
        e if e == -libc::EAGAIN as isize => Got::Nothing,
        e => {
            ep.note_error(-e as i32);
            Got::Error(-e as i32)
        }
    }
}

/// Bytes that are copied whole or not at all, as the kernel does a segment of its receive queue (skb_copy_datagram_iter): with
/// a bad pointer among the first of them the call fails and nothing is taken; behind them, they count.
const SEGMENT: usize = 65_536;

/// Copies up to `n` bytes from ring position `pos`; returns how many reached the program.
unsafe fn copy_out(chan: &Chan, slot: usize, pos: u64, n: usize, b: &mut Buffers, discard: bool) -> Result<usize, ()> {
    let dir = chan.role().rx();
    let h = chan.slot(slot);
    let geo = chan.geometry(dir);
    let base = ring::base(&h.producer[dir]);
    let mem = chan.bytes(slot, dir);
    let mut done = 0;
    let mut whole = b.place();
    while done < n {
        if done % SEGMENT == 0 {
            whole = b.place();
        }
        let Some((mut dst, room)) = b.piece((n - done).min(SEGMENT - done % SEGMENT)) else { break };
        for (off, len) in geo.spans(base, pos.wrapping_add(done as u64), room as u64) {
            // SAFETY: the source is inside the ring; the destination is the program's, and may fault,
            // which `copy` reports. The peer may write the source meanwhile: bytes, whatever they are.
            if !discard && len > 0 && unsafe { usercopy::copy(dst, mem.add(off), len) }.is_err() {
                b.go_to(whole);
                let taken = done - done % SEGMENT;
                return if taken > 0 { Ok(taken) } else { Err(()) };
            }
            dst = dst.wrapping_add(len);
        }
        b.advance(room);
        done += room;
    }
    // Nothing: the program's vector has become shorter since its bytes were counted.
    if done > 0 { Ok(done) } else { Err(()) }
}

/// One attempt, with the receiving direction owned. Never blocks.
///
/// It goes on across switch points: less than `want` means that nothing more was there. Programs that use
/// edge-triggered events rely on that.
unsafe fn attempt(ep: Ep, chan: &Chan, fd: i32, b: &mut Buffers, want: usize, flags: i32) -> Got {
    let slot = ep.slot.load(Relaxed) as usize;
    let h = chan.slot(slot);
    let dir = chan.role().rx();
    let p = peer(chan, h);
    let size = chan.ring() as u64;
    let peek = flags & libc::MSG_PEEK != 0;
    let discard = flags & libc::MSG_TRUNC != 0;
    // A peek goes forward without consuming: its own phase and place.
    if peek && all_echoed(ep, chan, fd) {
        come_down(ep, chan);
    }
    let mut phase = RxPhase::from_u32(ep.rx_phase.load(Relaxed));
    let mut head = ep.rx_head.load(Relaxed);
    let mut seen_end = false;
    let mut total = 0usize;
    let some = |total: usize, g: Got| match g {
        Got::Bytes(n) => Got::Bytes(total + n),
        g if total == 0 => g,
        // Ends and errors are told by the next call, which finds them again.
        Got::Error(e) if e != libc::EFAULT => {
            put_back(ep, e);
            Got::Bytes(total)
        }
        _ => Got::Bytes(total),
    };
    while total < want {
        let down = end(ep, me(chan, h), p);
        let step = match ring::available(&h.producer[dir], head, size) {
            Ok(available) => switch::rx(RxView { phase, up: p.up.load(Acquire), down, head, available }),
            Err(Corrupt) if phase == RxPhase::Down => RxStep::Lifeline,
            Err(Corrupt) => RxStep::Corrupt,
        };
        match step {
            RxStep::Lifeline => {
                if phase == RxPhase::Down && !skip(ep, fd) {
                    return some(total, Got::Nothing);
                }
                let mut bound = want - total;
                if phase == RxPhase::Native {
                    // What lies there while the sender is still native is before X. Had we received without
                    // bound, it could have gone up, come down and sent natively in between, and one call
                    // would return bytes from both sides of the ring.
                    let ended = lifeline::look(fd, ENDED) != 0;
                    let queued = lifeline::unread(fd) as usize;
                    if p.up.load(Acquire) != 0 {
                        continue;
                    }
                    if !ended {
                        bound = bound.min(queued);
                    }
                    if bound == 0 {
                        return some(total, Got::Nothing);
                    }
                }
                // SAFETY: as ours.
                let g = unsafe { native(ep, fd, b, bound, flags) };
                match g {
                    // More buffers than one call took.
                    Got::Bytes(n) if !peek => total += n,
                    // An error kept from before comes after the bytes, ahead of the end.
                    Got::Nothing | Got::Eof if total == 0 && unreported(ep) => {
                        return Got::Error(take_latched(ep).unwrap_or(0));
                    }
                    g => return some(total, g),
                }
            }
            RxStep::Transit { x } => {
                phase = RxPhase::Transit;
                ep.rx_phase.store(phase as u32, Relaxed);
                let Some((consumed, queued)) = received(ep, fd) else { return some(total, Got::Error(libc::EIO)) };
                match switch::transit(x, consumed, queued) {
                    Transit::Lifeline => {
                        let left = (x - consumed).min(usize::MAX as u64) as usize;
                        // SAFETY: as ours.
                        match unsafe { native(ep, fd, b, left.min(want - total), flags) } {
                            Got::Bytes(n) => {
                                total += n;
                                if n == left {
                                    phase = RxPhase::Ring;
                                    if !peek {
                                        go_up(ep, chan, x);
                                    }
                                } else if peek {
                                    // What follows lies on the ring only if this was all before it.
                                    break;
                                }
                            }
                            g => return some(total, g),
                        }
                    }
                    Transit::Wait => {
                        let ended = lifeline::look(fd, ENDED | libc::POLLIN);
                        if ended & (libc::POLLERR | libc::POLLHUP) != 0 {
                            // SAFETY: as ours.
                            return some(total, unsafe { native(ep, fd, b, want - total, flags) });
                        }
                        return some(total, Got::Nothing);
                    }
                    Transit::Ring => {
                        phase = RxPhase::Ring;
                        go_up(ep, chan, x);
                    }
                    Transit::Corrupt => return some(total, corrupt(ep, "start", consumed, x)),
                }
            }
            RxStep::Ring(n) => {
                let n = n.min((want - total) as u64) as usize;
                // SAFETY: the direction is ours.
                let Ok(n) = (unsafe { copy_out(chan, slot, head, n, b, discard) }) else {
                    return some(total, Got::Error(libc::EFAULT));
                };
                total += n;
                head = head.wrapping_add(n as u64);
                if !peek {
                    ep.rx_head.store(head, Relaxed);
                    ring::consume(&h.consumer[dir], head);
                    ep.rx_bytes.store(ep.rx_bytes.load(Relaxed) + n as u64, Relaxed);
                    ep.rx_msgs.store(ep.rx_msgs.load(Relaxed) + 1, Relaxed);
                    space_freed(ep, chan, slot, head);
                }
            }
            RxStep::Empty if total > 0 => break,
            RxStep::Empty => {
                if !seen_end {
                    if h.consumer[dir].head.load(Relaxed) != head {
                        // A holder died between its note of the head and the sender's.
                        ring::consume(&h.consumer[dir], head);
                        space_freed(ep, chan, slot, head);
                    }
                    let seen = lifeline::look(fd, libc::POLLIN | ENDED);
                    if seen == 0 {
                        return Got::Nothing;
                    }
                    // What was published before the end is visible after it: look at the ring again.
                    seen_end = true;
                    ep.note_end(seen);
                    continue;
                }
                if ep.rx_fin.load(Relaxed) != 0
                    && let Some(e) = tx::settle(ep, chan, fd)
                {
                    return if e == 0 { Got::Eof } else { Got::Error(e) };
                }
                // SAFETY: as ours.
                return unsafe { native(ep, fd, b, want, flags) };
            }
            RxStep::Ended if head == ep.rx_head.load(Relaxed) => {
                phase = RxPhase::Down;
                come_down(ep, chan);
            }
            // A peek does not see past an echo that is not complete.
            RxStep::Ended if p.echo.load(Relaxed) != 0 => break,
            RxStep::Ended => phase = RxPhase::Down,
            RxStep::Corrupt => return some(total, corrupt(ep, "end", head, down)),
        }
    }
    Got::Bytes(total)
}

/// A receive of no bytes: says what one of a byte would come to.
unsafe fn nothing(ep: Ep, chan: &Chan, fd: i32, flags: i32) -> Got {
    if on_ring(ep, chan) > 0 {
        return Got::Eof;
    }
    let mut byte = 0u8;
    let v = iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
    // SAFETY: one local iovec.
    let Some(mut probe) = (unsafe { Buffers::new(&raw const v, 1) }) else { return Got::Nothing };
    // SAFETY: the direction is ours; a peek consumes nothing.
    match unsafe { attempt(ep, chan, fd, &mut probe, 1, flags | libc::MSG_PEEK) } {
        Got::Bytes(_) => Got::Eof,
        g => g,
    }
}

fn corrupt(ep: Ep, of: &str, here: u64, there: u64) -> Got {
    if ep.is_corrupt() {
        crate::log!(
            Error,
            "endpoint {}: the {of} of the ring ({there}) contradicts what was read ({here}); connection reset",
            ep.index()
        );
    }
    latch(ep, libc::ECONNRESET);
    match take_latched(ep) {
        Some(e) if e != 0 => Got::Error(e),
        _ => Got::Eof,
    }
}

/// Wakes a writer that waits for space, once there is enough of it. `head` was just given back.
///
/// A writer waits only while more than two thirds of the ring are in use. So the fence that finds its wish
/// is needed only when the tail is that far from a head that an earlier fence has shown to it: with less,
/// the writer either saw that head and does not wait, or waited already when that fence looked.
fn space_freed(ep: Ep, chan: &Chan, slot: usize, head: u64) {
    let h = chan.slot(slot);
    let dir = chan.role().rx();
    let p = peer(chan, h);
    let tail = h.producer[dir].tail.load(Acquire);
    let size = ring::limit(p, &h.side[chan.role() as usize], chan.ring() as u64);
    if tail.wrapping_sub(ep.rx_shown.load(Relaxed)) <= size / 2 {
        return;
    }
    ep.rx_shown.store(head, Relaxed);
    if let Some(wish) = ring::wish(p, &h.producer[dir], head, size) {
        let n = chan.notify(slot);
        ring::served(p, wish);
        ep.bells.store(ep.bells.load(Relaxed) + u64::from(n), Relaxed);
    }
}

/// The program has set `SO_RCVBUF`, or may have before the connection was attached.
pub fn buffer_set(ep: Ep, chan: &Chan, fd: i32) {
    let Some(bytes) = lifeline::locked_buffer(fd, libc::SO_RCVBUF) else { return };
    let h = chan.slot(ep.slot.load(Relaxed) as usize);
    let held = lock::take(&ep.rx_token);
    // As for the sender's: a sender that waits has judged by the limit that was.
    if tail(ep, chan) == ep.rx_head.load(Relaxed) {
        me(chan, h).rcvbuf.store(bytes, Relaxed);
        // It may have filled the ring since we looked, and sleep until there is more room than by the new limit there will be.
        chan.notify(ep.slot.load(Relaxed) as usize);
    }
    held.release();
}

/// What [`recv`] returns if the call must be made anew: the descriptor has become something else.
pub const RESTART: isize = isize::MIN;

/// `recv` and its kin on an attached, ready endpoint: the kernel's convention (bytes or `-errno`).
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
) -> isize {
    // SAFETY: the caller's iovecs.
    let Some(mut b) = (unsafe { Buffers::new(iov, n) }) else { return -libc::EINVAL as isize };
    let waitall = flags & libc::MSG_WAITALL != 0;
    let lowat = ep.rcvlowat.load(Relaxed) as usize;
    // tcp_recvmsg: target = sock_rcvlowat(sk, flags & MSG_WAITALL, len).
    let target = if waitall { b.len } else { lowat.max(1).min(b.len) };
    let peek = flags & libc::MSG_PEEK != 0;
    let mut total = 0usize;
    let mut deadline: Option<Option<u64>> = None;
    // `since` decides EINTR for the whole call; `slept` is the part of it that no sleep has heard of yet.
    let mut slept = since;
    let life = ep.life();
    let number = fd;
    let mut ended = false;
    // Who sleeps is not woken for less than the low-water mark, whatever it wants (tcp_data_ready). Who asks anew is
    // answered.
    let mut dozing = false;
    // What ended the last sleep, if not news. What there is by then is taken before it counts.
    let mut woke = None;
    let shut = ep.wr_shut.load(Relaxed);
    if flags & libc::MSG_DONTWAIT == 0 && ep.local().blocking.load(Relaxed) != 0 && !stirred(ep, chan) {
        // The answer is often on its way: a moment's patience before the kernel is asked anything.
        spin::glance(|| stirred(ep, chan));
    }
    loop {
        let want = if peek { b.len } else { b.len - total };
        let Some(held) = take_living(ep, &ep.rx_token, life) else { return -libc::EBADF as isize };
        let got = if dozing && !stirred(ep, chan) && lifeline::look(fd, libc::POLLIN | ENDED) == 0 {
            Got::Nothing
        } else if b.len == 0 {
            // The kernel waits for data to receive nothing of (tcp_recvmsg).
            // SAFETY: as ours.
            unsafe { nothing(ep, chan, fd, flags) }
        } else {
            // SAFETY: the direction is ours.
            unsafe { attempt(ep, chan, fd, &mut b, want, flags) }
        };
        held.release();
        match got {
            Got::Bytes(n) => {
                total = if peek { n } else { total + n };
                if total >= target || woke.is_some() {
                    return total as isize;
                }
                if peek {
                    // Behind the end, seen before the last look, there is no more.
                    if ended {
                        return total as isize;
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
            Got::Eof => return total as isize,
            Got::Error(e) if total > 0 => {
                // Reported by the next call: errors come after the bytes.
                if e != libc::EFAULT {
                    put_back(ep, e);
                }
                return total as isize;
            }
            Got::Error(e) => return -e as isize,
            Got::Nothing => {}
        }
        if total > 0 && (ep.rd_shut.load(Relaxed) != 0 || woke.is_some()) {
            return total as isize;
        }
        match woke.take() {
            // A call that is restarted finds what the number means now; else the wait goes on.
            #[allow(clippy::collapsible_match)]
            Some(libc::EINTR) if !signals::interrupted(since, lifeline::timeout(fd, libc::SO_RCVTIMEO).is_none()) => {
                if fds::endpoint(number) != Some(ep) {
                    return RESTART;
                }
            }
            Some(e) => return -e as isize,
            None => {}
        }
        if flags & libc::MSG_DONTWAIT != 0 || (deadline.is_none() && nonblocking(ep, fd)) {
            return if total > 0 { total as isize } else { -libc::EAGAIN as isize };
        }
        let d = *deadline.get_or_insert_with(|| lifeline::deadline(fd, libc::SO_RCVTIMEO));
        // A peek that wants more than it sees: the lifeline would be readable all the time for what was seen there.
        let partly = peek && total > 0;
        let mixed = partly && (ep.rx_phase.load(Relaxed) != RxPhase::Ring as u32 || at_end(ep, chan));
        let ready = || match partly {
            true => !mixed && (on_ring(ep, chan) >= low(ep, chan).max(total as u64 + 1) || at_end(ep, chan)),
            false => stirred(ep, chan),
        };
        let spun = spin::spin(ready);
        spin::count(ep, spun);
        if spun == Spun::Won {
            tx::service(ep, chan, fd);
            continue;
        }
        let restartable = d.is_none();
        // Whatever wakes a receive of no bytes ends it (tcp_recvmsg_locked: `while (len > 0)`), also a shutdown of the
        // other direction, by whomever (inet_shutdown), which is looked for.
        if b.len == 0 && (signals::runs() != since || ep.wr_shut.load(Relaxed) != shut) {
            return 0;
        }
        // A call that has received something is never restarted.
        if signals::interrupted(since, restartable) || total > 0 && signals::runs() != slept {
            return if total > 0 { total as isize } else { -libc::EINTR as isize };
        }
        let events = if partly { libc::POLLRDHUP } else { libc::POLLIN | libc::POLLRDHUP };
        let step = (mixed || b.len == 0).then(|| clock::now() + poller::STEP).filter(|s| d.is_none_or(|d| *s < d));
        *asleep = true;
        sleepers::lie_down(ep);
        // SAFETY: no lock is held.
        let woken = unsafe { sleep::sleep(ep, fd, events, step.or(d), slept, ready) };
        if !ep.lives(life) {
            return -libc::EBADF as isize;
        }
        fd = sleepers::number(ep, fd);
        match woken {
            Err(libc::EAGAIN) if step.is_some() => {}
            Err(_) if b.len == 0 => return 0,
            Err(e) => {
                slept = signals::runs();
                woke = Some(e);
            }
            Ok(()) => {}
        }
        dozing = lowat > 1 && woken.is_ok();
        tx::service(ep, chan, fd);
    }
}

/// Bytes that can be read now, as FIONREAD counts them: lifeline and ring as one stream, an echo once.
pub fn unread(ep: Ep, chan: &Chan, fd: i32) -> u64 {
    let slot = ep.slot.load(Relaxed) as usize;
    let h = chan.slot(slot);
    let p = peer(chan, h);
    let phase = RxPhase::from_u32(ep.rx_phase.load(Relaxed));
    let consumed = || received(ep, fd).map_or(0, |(consumed, _)| consumed);
    let queued = lifeline::unread(fd);
    if phase == RxPhase::Down {
        let left = match ep.rx_skip.load(Relaxed) {
            0 => 0,
            to => to.saturating_sub(consumed()),
        };
        return queued - queued.min(left);
    }
    let up = p.up.load(Acquire);
    if up == 0 {
        return queued;
    }
    let on_ring = left(ep, chan, h);
    let before = if phase == RxPhase::Ring { 0 } else { (up - 1).saturating_sub(consumed()) };
    let echo = match p.echo.load(Acquire) & !ECHOED {
        0 => 0,
        at => p.down.load(Acquire).saturating_sub(at),
    };
    switch::unread(queued, before, echo, on_ring)
}
