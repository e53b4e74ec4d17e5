//! Receiving on an attached endpoint: lifeline, ring, lifeline, as one stream.

use crate::channel::Chan;
use crate::family::Ep;
use crate::lifeline::{self, ENDED};
use crate::signals::{self, Runs};
use crate::wait::{self, Spun};
use crate::{fds, lifecycle, lock, sleep, tx, usercopy};
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use libc::iovec;
use shmring::family::{FIN, RST};
use shmring::layout::{self, CLOSED, ECHOED, SlotHeader};
use shmring::ring::{self, Corrupt};
use shmring::switch::{self, RxPhase, RxStep, RxView, Transit};
use shmring::syscall;

/// `rx_word`: the ring may be used; threads of the family no longer block natively.
pub const READY: u32 = 1 << 31;

/// Error latched in an endpoint that was already reported.
pub const REPORTED: u32 = 1 << 31;

/// A program's buffers, and how far they are filled.
pub struct Buffers {
    iov: *const iovec,
    n: usize,
    /// Bytes in all of them.
    pub len: usize,
    at: usize,
    off: usize,
}

impl Buffers {
    /// Reads a program's iovec array. `None` if the lengths overflow `ssize_t` or there are too many.
    ///
    /// # Safety
    /// `iov` points to `n` iovecs (their targets may be bad).
    pub unsafe fn new(iov: *const iovec, n: usize) -> Option<Buffers> {
        let mut len = 0usize;
        for i in 0..n {
            // SAFETY: i < n.
            len = len.checked_add(unsafe { (*iov.add(i)).iov_len })?;
        }
        // The kernel cuts a transfer at MAX_RW_COUNT (include/linux/fs.h).
        (len <= isize::MAX as usize).then_some(Buffers { iov, n, len: len.min(0x7fff_f000), at: 0, off: 0 })
    }

    /// The next piece of at most `max` bytes.
    pub fn piece(&mut self, max: usize) -> Option<(*mut u8, usize)> {
        while self.at < self.n {
            // SAFETY: at < n.
            let v = unsafe { *self.iov.add(self.at) };
            let n = (v.iov_len - self.off).min(max);
            if v.iov_len == self.off {
                self.at += 1;
                self.off = 0;
                continue;
            }
            return (n > 0).then_some((v.iov_base.cast::<u8>().wrapping_add(self.off), n));
        }
        None
    }

    /// The next pieces, together at most `max` bytes, without passing over them.
    fn pieces(&self, max: usize, out: &mut [iovec]) -> usize {
        let (mut at, mut off, mut left, mut n) = (self.at, self.off, max, 0);
        while at < self.n && n < out.len() && left > 0 {
            // SAFETY: at < n.
            let v = unsafe { *self.iov.add(at) };
            let len = (v.iov_len - off).min(left);
            if len > 0 {
                out[n] = iovec { iov_base: v.iov_base.wrapping_byte_add(off), iov_len: len };
                n += 1;
                left -= len;
            }
            at += 1;
            off = 0;
        }
        n
    }

    /// Marks the next `n` bytes, in however many pieces, as done.
    fn skip(&mut self, mut n: usize) {
        while n > 0 {
            let Some((_, len)) = self.piece(n) else { return };
            self.advance(len);
            n -= len;
        }
    }

    /// Marks `n` bytes of the current piece as done.
    pub fn advance(&mut self, n: usize) {
        self.off += n;
    }
}

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

fn peer<'a>(chan: &Chan, h: &'a SlotHeader) -> &'a layout::Side {
    &h.side[chan.role().peer() as usize]
}

fn me<'a>(chan: &Chan, h: &'a SlotHeader) -> &'a layout::Side {
    &h.side[chan.role() as usize]
}

/// Declares this side ready to receive on the ring, if no thread of the family waits natively.
pub fn make_ready(ep: Ep, chan: &Chan) -> bool {
    let w = ep.rx_word.load(Relaxed);
    if w == READY {
        return true;
    }
    if w == 0 && ep.rx_word.compare_exchange(0, READY, Acquire, Relaxed).is_ok() {
        let slot = ep.slot.load(Relaxed) as usize;
        let me = &chan.slot(slot).side[chan.role() as usize];
        // A refusal by another holder stands.
        if me.rx.compare_exchange(0, layout::READY, Release, Relaxed).is_ok() {
            chan.notify(slot);
        }
        return true;
    }
    false
}

/// `O_NONBLOCK`, as the kernel says now. The answer is kept as a hint, on which nothing but a glance depends.
fn nonblocking(ep: Ep, fd: i32) -> bool {
    let n = lifeline::nonblocking(fd);
    ep.local().blocking.store(u32::from(!n), Relaxed);
    n
}

/// Bytes on the ring that may be read now.
pub fn on_ring(ep: Ep, chan: &Chan) -> u64 {
    if RxPhase::from_u32(ep.rx_phase.load(Relaxed)) != RxPhase::Ring {
        return 0;
    }
    let h = chan.slot(ep.slot.load(Relaxed) as usize);
    left(ep, chan, h)
}

/// Bytes that this side has to read on the ring, as far as they are published, whatever comes before them.
pub fn left(ep: Ep, chan: &Chan, h: &SlotHeader) -> u64 {
    let head = ep.rx_head.load(Relaxed);
    let there = ring::available(&h.producer[chan.role().rx()], head, chan.ring() as u64).unwrap_or(0);
    switch::left(there, head, end(ep, me(chan, h), peer(chan, h)))
}

/// From how many bytes on readers and pollers are told: the low-water mark, unless the ring cannot hold as many.
pub fn low(ep: Ep, chan: &Chan) -> u64 {
    let low = ep.rcvlowat.load(Relaxed);
    if low <= 1 {
        return 1;
    }
    let h = chan.slot(ep.slot.load(Relaxed) as usize);
    if peer(chan, h).want_space.load(Relaxed) != 0 { 1 } else { u64::from(low).min(chan.ring() as u64 / 3) }
}

/// Whether a poller that asked for POLLIN, or did not, should look again. Memory only.
pub fn news(ep: Ep, chan: &Chan, wants_in: bool) -> bool {
    changed(ep, chan, |_| wants_in && on_ring(ep, chan) >= low(ep, chan))
}

/// Whether something has changed that a receiver should look at. Memory only; may say yes too often.
pub fn stirred(ep: Ep, chan: &Chan) -> bool {
    changed(ep, chan, |h| {
        let tail = h.producer[chan.role().rx()].tail.load(Relaxed);
        tail.wrapping_sub(ep.rx_head.load(Relaxed)) >= low(ep, chan)
    })
}

/// `readable`: whether the ring, if that is where this side receives, holds enough.
#[inline(always)]
fn changed(ep: Ep, chan: &Chan, readable: impl FnOnce(&SlotHeader) -> bool) -> bool {
    let h = chan.slot(ep.slot.load(Relaxed) as usize);
    let p = peer(chan, h);
    if ep.tx_phase.load(Relaxed) == switch::TxPhase::Ring as u32 && p.rewind.load(Relaxed) != 0 {
        return true;
    }
    match RxPhase::from_u32(ep.rx_phase.load(Relaxed)) {
        RxPhase::Native => p.up.load(Relaxed) != 0,
        RxPhase::Ring => readable(h) || end(ep, me(chan, h), p) == ep.rx_head.load(Relaxed) + 1,
        RxPhase::Transit | RxPhase::Down => false,
    }
}

/// Native non-blocking receive of at most `max` bytes.
unsafe fn native(fd: i32, b: &mut Buffers, max: usize, flags: i32) -> Got {
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
        e => Got::Error(-e as i32),
    }
}

/// Copies up to `n` bytes from ring position `pos`; returns how many reached the program.
unsafe fn copy_out(chan: &Chan, slot: usize, pos: u64, n: usize, b: &mut Buffers, discard: bool) -> Result<usize, ()> {
    let dir = chan.role().rx();
    let h = chan.slot(slot);
    let geo = chan.geometry(dir);
    let base = ring::base(&h.producer[dir]);
    let mem = chan.bytes(slot, dir);
    let mut done = 0;
    while done < n {
        let Some((mut dst, room)) = b.piece(n - done) else { break };
        for (off, len) in geo.spans(base, pos.wrapping_add(done as u64), room as u64) {
            // SAFETY: the source is inside the ring; the destination is the program's, and may fault,
            // which `copy` reports. The peer may write the source meanwhile: bytes, whatever they are.
            if !discard && len > 0 && unsafe { usercopy::copy(dst, mem.add(off), len) }.is_err() {
                return if done > 0 { Ok(done) } else { Err(()) };
            }
            dst = dst.wrapping_add(len);
        }
        b.advance(room);
        done += room;
    }
    Ok(done)
}

/// Latches an error that the kernel would have queued.
pub fn latch(ep: Ep, errno: i32) {
    let _ = ep.latched.compare_exchange(0, errno as u32, Relaxed, Relaxed);
}

/// Puts back an error that was taken but not reported after all.
pub fn keep(ep: Ep, errno: i32) {
    ep.latched.store(errno as u32, Relaxed);
}

/// The error of those who send after the peer has closed.
const PIPE: u32 = libc::EPIPE as u32;

/// Whether a latched error waits to be reported.
fn unreported(ep: Ep) -> bool {
    // EPIPE came after the FIN, which a receiver sees first (tcp_recvmsg_locked: SOCK_DONE).
    !matches!(ep.latched.load(Relaxed), 0 | REPORTED.. | PIPE)
}

/// Takes the latched error: `Some(errno)` the first time, `Some(0)` afterwards, `None` if there is none.
pub fn take_latched(ep: Ep) -> Option<i32> {
    let v = ep.latched.load(Relaxed);
    if v == 0 {
        return None;
    }
    if v & REPORTED != 0 {
        return Some(0);
    }
    ep.latched.store(v | REPORTED, Relaxed);
    Some(v as i32)
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
    if peek && all_echoed(ep, chan) {
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
            keep(ep, e);
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
                let g = unsafe { native(fd, b, bound, flags) };
                match g {
                    // More buffers than one call took.
                    Got::Bytes(n) if !peek => total += n,
                    // An error kept from before comes after the bytes, ahead of the end.
                    Got::Nothing | Got::Eof if total == 0 && unreported(ep) => return Got::Error(take_latched(ep).unwrap_or(0)),
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
                        match unsafe { native(fd, b, left.min(want - total), flags) } {
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
                            return some(total, unsafe { native(fd, b, want - total, flags) });
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
                return unsafe { native(fd, b, want, flags) };
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
    crate::log!(Error, "endpoint {}: the {of} of the ring ({there}) contradicts what was read ({here}); connection reset", ep.index());
    ep.because(shmring::family::Reason::Corrupt);
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

/// What [`recv`] returns if the call must be made anew: the descriptor has become something else.
pub const RESTART: isize = isize::MIN;

/// `recv` and its kin on an attached, ready endpoint: the kernel's convention (bytes or `-errno`).
///
/// # Safety
/// `iov` points to `n` iovecs; a cancellation point; no lock held.
pub unsafe fn recv(ep: Ep, chan: &Chan, fd: i32, iov: *const iovec, n: usize, flags: i32, since: Runs) -> isize {
    let mut asleep = false;
    // SAFETY: the caller's obligation.
    let r = unsafe { receive(ep, chan, fd, iov, n, flags, since, &mut asleep) };
    if asleep {
        lifecycle::awake(ep);
    }
    r
}

#[allow(clippy::too_many_arguments)]
unsafe fn receive(ep: Ep, chan: &Chan, mut fd: i32, iov: *const iovec, n: usize, flags: i32, since: Runs, asleep: &mut bool) -> isize {
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
        wait::glance(|| stirred(ep, chan));
    }
    loop {
        let want = if peek { b.len } else { b.len - total };
        let Some(held) = lock::take_living(ep, &ep.rx_token, life) else { return -libc::EBADF as isize };
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
                    // Start over in the same buffer.
                    // SAFETY: as above.
                    b = match unsafe { Buffers::new(iov, b.n) } {
                        Some(b) => b,
                        None => return total as isize,
                    };
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
                    keep(ep, e);
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
        let d = *deadline.get_or_insert_with(|| lifeline::timeout(fd, libc::SO_RCVTIMEO).map(|t| wait::now() + t));
        // A peek that wants more than it sees: the lifeline would be readable all the time for what was seen there.
        let partly = peek && total > 0;
        let mixed = partly && (ep.rx_phase.load(Relaxed) != RxPhase::Ring as u32 || at_end(ep, chan));
        let ready = || match partly {
            true => !mixed && (on_ring(ep, chan) >= low(ep, chan).max(total as u64 + 1) || at_end(ep, chan)),
            false => stirred(ep, chan),
        };
        let spun = wait::spin(ready);
        count(ep, spun);
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
        let step = (mixed || b.len == 0).then(|| wait::now() + wait::STEP).filter(|s| d.is_none_or(|d| *s < d));
        *asleep = true;
        wait::lie_down(ep);
        // SAFETY: no lock is held.
        let woken = unsafe { sleep::sleep(ep, fd, events, step.or(d), slept, ready) };
        if !ep.lives(life) {
            return -libc::EBADF as isize;
        }
        fd = lifecycle::number(ep, fd);
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

/// Bytes of the lifeline consumed so far, and bytes lying there. The direction is owned.
pub fn received(ep: Ep, fd: i32) -> Option<(u64, u64)> {
    if ep.rx_fin.load(Relaxed) < FIN && lifeline::look(fd, 0) & libc::POLLERR != 0 {
        // Only its error tells whether a RST came behind a FIN: EPIPE (tcp_reset in CLOSE_WAIT). To ask takes it.
        if let Ok(e) = lifeline::option(fd, libc::SOL_SOCKET, libc::SO_ERROR)
            && e != 0
        {
            latch(ep, e);
            ep.rx_fin.store(if e == libc::EPIPE { FIN } else { RST }, Relaxed);
        }
    }
    if let Some(at) = ep.rx_at.load(Relaxed).checked_sub(1) {
        // A FIN is what the kernel has counted and we have not. An error does not tell: a RST behind a FIN is
        // ECONNRESET as well, in LAST_ACK.
        let counted = lifeline::received(fd, Some(false));
        return counted.map(|(consumed, queued)| (consumed - u64::from(consumed == at + 1), queued));
    }
    let fin = match ep.rx_fin.load(Relaxed) {
        FIN => Some(true),
        RST => Some(false),
        // A connection that this side has not shut down is closed by a RST only, whoever has had its error.
        _ if ep.wr_shut.load(Relaxed) == 0 => Some(false),
        // A peer that has finished says so, unless another program image of its did.
        _ => ep.chan().and_then(|chan| {
            let p = peer(chan, chan.slot(ep.slot.load(Relaxed) as usize));
            (p.wr_shut.load(Relaxed) | p.gone.load(Relaxed) != 0).then_some(true)
        }),
    };
    lifeline::received(fd, fin)
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
    queued - queued.saturating_sub(before).min(echo) + on_ring
}

/// Moves a receiver on towards the ring as far as the lifeline allows, without reading. Returns its phase.
pub fn advance(ep: Ep, chan: &Chan, fd: i32) -> RxPhase {
    let life = ep.life();
    let h = chan.slot(ep.slot.load(Relaxed) as usize);
    let p = peer(chan, h);
    let up = p.up.load(Acquire);
    // A low-water mark is for the kernel to judge, once it has all.
    let drained = || end(ep, me(chan, h), p) == ep.rx_head.load(Relaxed) + 1 || ep.rcvlowat.load(Relaxed) > 1 && all_echoed(ep, chan);
    if RxPhase::from_u32(ep.rx_phase.load(Relaxed)) == RxPhase::Ring {
        if drained() {
            let Some(held) = lock::take_living(ep, &ep.rx_token, life) else { return RxPhase::Down };
            if drained() {
                come_down(ep, chan);
            }
            held.release();
        }
    } else if up != 0 {
        let Some(held) = lock::take_living(ep, &ep.rx_token, life) else { return RxPhase::Down };
        let phase = RxPhase::from_u32(ep.rx_phase.load(Relaxed));
        if matches!(phase, RxPhase::Native | RxPhase::Transit)
            && let Some((consumed, _)) = received(ep, fd)
        {
            if consumed == up - 1 {
                go_up(ep, chan, up - 1);
            } else {
                ep.rx_phase.store(RxPhase::Transit as u32, Relaxed);
            }
        }
        held.release();
    }
    if ep.rx_skip.load(Relaxed) != 0 {
        let Some(held) = lock::take_living(ep, &ep.rx_token, life) else { return RxPhase::Down };
        skip(ep, fd);
        held.release();
    }
    RxPhase::from_u32(ep.rx_phase.load(Relaxed))
}

/// Moves the receiver to the ring. The direction is owned.
fn go_up(ep: Ep, chan: &Chan, x: u64) {
    ep.rx_up.store(x, Relaxed);
    ep.rx_phase.store(RxPhase::Ring as u32, Release);
    // The sender has told of what lies there when it came; others have gone to sleep since, on the lifeline.
    chan.tell_own(ep.slot.load(Relaxed) as usize);
    crate::log!(Debug, "endpoint {}: receiving on the ring from byte {x}", ep.index());
}

/// Moves the receiver to the lifeline for good, from where it has read the ring to. The direction is owned.
pub fn come_down(ep: Ep, chan: &Chan) {
    let h = chan.slot(ep.slot.load(Relaxed) as usize);
    let (rewind, echo) = (me(chan, h).rewind.load(Acquire), peer(chan, h).echo.load(Acquire));
    if !matches!(rewind, 0 | CLOSED) {
        // A holder that died when it had moved the arbiter may have told nobody.
        chan.notify(ep.slot.load(Relaxed) as usize);
    }
    let to = switch::skip(rewind, echo, ep.rx_up.load(Relaxed), ep.rx_head.load(Relaxed), chan.ring() as u64);
    if to != 0 {
        // Nothing was read there since the ring began; of what an image before this one has read, only the kernel knows.
        ep.rx_at.store(if chan.id.load(Relaxed) == 0 { 0 } else { ep.rx_up.load(Relaxed).wrapping_add(1) }, Relaxed);
        ep.rx_skip.store(to, Relaxed);
    }
    ep.rx_phase.store(RxPhase::Down as u32, Release);
    crate::log!(Debug, "endpoint {}: receiving on the lifeline again", ep.index());
}

/// Whether the sender has gone up and this side has not followed. Another process may read the last bytes before X and
/// leave the ring's; it cannot tell those who sleep, so they sleep in steps.
pub fn in_transit(ep: Ep, chan: &Chan) -> bool {
    let p = peer(chan, chan.slot(ep.slot.load(Relaxed) as usize));
    ep.rx_phase.load(Relaxed) < RxPhase::Ring as u32 && p.up.load(Relaxed) != 0
}

/// Phase, arbiter and echo.
fn echoing(ep: Ep, chan: &Chan) -> (RxPhase, u64, u64) {
    let h = chan.slot(ep.slot.load(Relaxed) as usize);
    let phase = RxPhase::from_u32(ep.rx_phase.load(Relaxed));
    (phase, me(chan, h).rewind.load(Acquire), peer(chan, h).echo.load(Acquire))
}

/// See [`switch::doubled`].
pub fn doubled(ep: Ep, chan: &Chan) -> bool {
    let (phase, rewind, echo) = echoing(ep, chan);
    switch::doubled(phase, rewind, echo)
}

/// See [`switch::all_echoed`].
fn all_echoed(ep: Ep, chan: &Chan) -> bool {
    let (phase, rewind, echo) = echoing(ep, chan);
    switch::all_echoed(phase, rewind, echo)
}

/// Drops what the lifeline repeats of bytes that were read from the ring, as far as it has come. True if all
/// of it has. The direction is owned.
fn skip(ep: Ep, fd: i32) -> bool {
    let to = ep.rx_skip.load(Relaxed);
    if to == 0 {
        return true;
    }
    loop {
        let ended = lifeline::peer_ended(fd);
        let (left, queued) = match received(ep, fd) {
            Some((consumed, queued)) => (to.saturating_sub(consumed), queued),
            // Not a connection any more: the kernel says what it is.
            None => (0, 0),
        };
        // A sender that finished, or was killed, may not have repeated all of it.
        if left == 0 || (queued == 0 && ended) {
            ep.rx_at.store(0, Relaxed);
            ep.rx_skip.store(0, Relaxed);
            return true;
        }
        if queued == 0 {
            return false;
        }
        // tcp(7): MSG_TRUNC discards.
        // SAFETY: nothing is written.
        let r = unsafe { syscall!(libc::SYS_recvfrom, fd, 0, left.min(queued), libc::MSG_TRUNC | libc::MSG_DONTWAIT, 0, 0) };
        if r <= 0 {
            return false;
        }
        if ep.rx_at.load(Relaxed) != 0 {
            ep.rx_at.fetch_add(r as u64, Relaxed);
        }
    }
}

/// How long one who leaves waits for the peer to do its part. Usually it is awake in our library, or is
/// woken there; then this takes microseconds. Otherwise it does it at its next call.
const PATIENCE_NS: u64 = 50_000_000;

/// The same where the peer is at it already: inside our library, or its bytes are on their way.
const LONG_PATIENCE_NS: u64 = 2_000_000_000;

/// Looks until `done`, for `ns` at most.
fn patiently(ns: u64, mut done: impl FnMut() -> bool) -> bool {
    let until = wait::now() + ns;
    loop {
        if done() {
            return true;
        }
        if wait::now() > until {
            return false;
        }
        let t = libc::timespec { tv_sec: 0, tv_nsec: 50_000 };
        // SAFETY: a valid timespec.
        unsafe { syscall!(libc::SYS_nanosleep, &raw const t, 0) };
    }
}

/// Drops all that is left of an echo, so that the next reader of the descriptor does not see it. False if it
/// does not come. The direction is owned.
pub fn dropped(ep: Ep, fd: i32) -> bool {
    ep.rx_skip.load(Relaxed) == 0 || patiently(LONG_PATIENCE_NS, || skip(ep, fd))
}

/// Before the last descriptor is closed: an echo that lies unread would make the kernel send RST.
pub fn drop_echo(ep: Ep, chan: &Chan, fd: i32) {
    advance(ep, chan, fd);
}

/// The sender has gone down: waits until it has said where, and with that what it echoes, or has ended. False if it
/// does neither: what it is about to echo cannot be known, not even that it is nothing.
pub fn closed(ep: Ep, chan: &Chan, fd: i32) -> bool {
    let h = chan.slot(ep.slot.load(Relaxed) as usize);
    let p = peer(chan, h);
    patiently(LONG_PATIENCE_NS, || {
        if p.down.load(Acquire) != 0 || lifeline::peer_ended(fd) {
            return true;
        }
        serve_other(ep);
        false
    })
}

/// The sender has finished: whether all that lies unread on the ring has been repeated on the lifeline.
pub fn echoed(ep: Ep, chan: &Chan, fd: i32) -> bool {
    let h = chan.slot(ep.slot.load(Relaxed) as usize);
    let p = peer(chan, h);
    let mut ended = false;
    patiently(LONG_PATIENCE_NS, || {
        let complete = p.echo.load(Acquire) & ECHOED != 0;
        if complete || ended {
            return true;
        }
        ended = lifeline::peer_ended(fd);
        serve_other(ep);
        false
    });
    p.echo.load(Acquire) & ECHOED != 0
}

/// Whether a peer took back what lay unread on the ring.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum TakenBack {
    /// It did, or will at its next call.
    Yes,
    /// It was killed before.
    No,
    /// It was killed over it.
    Partly,
}

/// After the arbiter was moved to ring position `at`: waits a little for the peer to take back what is unread.
pub fn taken_back(ep: Ep, chan: &Chan, fd: i32, at: u64) -> TakenBack {
    let slot = ep.slot.load(Relaxed) as usize;
    let p = peer(chan, chan.slot(slot));
    chan.notify(slot);
    let mut ended = false;
    patiently(PATIENCE_NS, || {
        // In this order: a peer that finishes serves the rewind before its FIN.
        if ended || p.down.load(Acquire) == at + 1 {
            return true;
        }
        ended = lifeline::peer_ended(fd);
        serve_other(ep);
        false
    });
    if !ended || p.down.load(Acquire) == at + 1 {
        return TakenBack::Yes;
    }
    match received(ep, fd) {
        Some((consumed, queued)) if !switch::killed_over_it(p.up.load(Relaxed), consumed + queued) => TakenBack::No,
        _ => TakenBack::Partly,
    }
}

/// If this process holds the other end too, perhaps this very thread uses it: does its part.
fn serve_other(ep: Ep) {
    let cookie = ep.local().peer_cookie.load(Relaxed);
    let other = crate::family::held().find(|e| cookie != 0 && e.cookie.load(Relaxed) == cookie);
    if let Some(e) = other
        && e.state() == shmring::family::State::Attached
        && let Some(chan) = e.chan()
    {
        tx::service(e, chan, e.local().fd.load(Relaxed));
    }
}

/// Ring position + 1 at which the ring ends: where the sender went down, or where this side cut it.
fn end(ep: Ep, me: &layout::Side, peer: &layout::Side) -> u64 {
    let (cut, rewind) = (ep.rx_cut.load(Acquire), me.rewind.load(Acquire));
    switch::end(cut, rewind, peer.down.load(Acquire))
}

/// Whether the ring, empty now, has also ended.
pub fn at_end(ep: Ep, chan: &Chan) -> bool {
    let h = chan.slot(ep.slot.load(Relaxed) as usize);
    end(ep, me(chan, h), peer(chan, h)) != 0
}

/// Whether the peer has said that it sends no more, or no more on the ring.
pub fn ending(ep: Ep, chan: &Chan) -> bool {
    let h = chan.slot(ep.slot.load(Relaxed) as usize);
    let p = peer(chan, h);
    p.wr_shut.load(Relaxed) | p.gone.load(Relaxed) != 0 || p.down.load(Relaxed) != 0
}

/// Position published by the sender, as it claims.
pub fn tail(ep: Ep, chan: &Chan) -> u64 {
    chan.slot(ep.slot.load(Relaxed) as usize).producer[chan.role().rx()].tail.load(Relaxed)
}

/// Notes how a wait went.
pub fn count(ep: Ep, spun: Spun) {
    match spun {
        Spun::Won => ep.spins_won.store(ep.spins_won.load(Relaxed) + 1, Relaxed),
        Spun::Lost => ep.spins_lost.store(ep.spins_lost.load(Relaxed) + 1, Relaxed),
        Spun::Not => {}
    }
}
