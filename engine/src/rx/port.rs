//! What the steps of the switch protocol reach of a connection, as a receiver.
// Unsafe here: bytes are copied from a ring into the program's memory.
#![allow(unsafe_code)]

use super::arrived::received;
use super::common;
use crate::buffers::Buffers;
use crate::channel::Chan;
use crate::chunks::stretch;
use crate::conn::{Taken, conn, notify_aside, openly, port};
use crate::endpoint::{Ep, Latched};
use crate::kernel::{K, Kernel as _};
use crate::lifeline::{self, ENDED};
use crate::{acts, family, lock, members, tx, watchers};
use core::sync::atomic::Ordering::Relaxed;
use libc::iovec;
use shmring::driver::{self, Conn, Incoming, Native, Sees, Wait};
use shmring::family::{Reason, SHARED};
use shmring::position::{RingPos, StreamPos};
use shmring::ring;

/// Which memory it is that bytes could not be copied from or to.
pub(super) enum Fault {
    /// The program's.
    Program,
    /// The ring's, which is lost.
    Ring,
}

/// Bytes that are copied whole or not at all, as the kernel does a segment of its receive queue (skb_copy_datagram_iter): with
/// a bad pointer among the first of them the call fails and nothing is taken; behind them, they count.
const SEGMENT: usize = 65_536;

/// Flags of a receive that a native one gets, too.
const KEEP: i32 = libc::MSG_PEEK | libc::MSG_TRUNC;

/// What the steps of the protocol reach of a connection.
pub(super) struct In<'a> {
    ep: Ep,
    chan: &'a Chan,
    c: Conn<'a>,
    fd: i32,
    /// Where bytes go, if they are asked for, and how.
    to: Option<&'a mut Buffers>,
    flags: i32,
    /// Why the connection leaves, if it does.
    pub why: Reason,
    /// Another process has taken the direction, behind what this step was about.
    pub taken: bool,
    /// The call has bytes: it ends at an urgent mark.
    pub some: bool,
    /// The ring has ended, and all that was on it has been read.
    pub drained: bool,
}

port!(In, tell, tell_last, Taken);

impl Incoming for In<'_> {
    type Fault = Fault;
    type Ending = Latched;

    fn received(&mut self) -> Result<Option<(StreamPos, u64)>, Taken> {
        Ok(received(self.ep, self.fd))
    }

    fn lying(&mut self) -> Result<(bool, u64), Taken> {
        let ep = self.c.ep;
        let (seen, n) = openly(ep, &ep.rx_token, || {
            let seen = lifeline::look(self.fd, ENDED | libc::POLLPRI);
            (seen, lifeline::unread(self.fd))
        })?;
        let urgent = seen & libc::POLLPRI != 0 || ep.urgent.load(Relaxed) != 0;
        // Not with the token lent: this may change the socket for a moment.
        let n = if urgent { lifeline::queued_all(self.fd, &ep.urgent) } else { n };
        Ok((seen & ENDED != 0, n))
    }

    fn shows(&mut self) -> Result<bool, Taken> {
        let seen = openly(self.c.ep, &self.c.ep.rx_token, || lifeline::look(self.fd, libc::POLLIN | ENDED))?;
        self.ep.note_end(seen);
        Ok(seen != 0)
    }

    fn broken(&mut self) -> Result<bool, Taken> {
        Ok(lifeline::look(self.fd, ENDED) & (libc::POLLERR | libc::POLLHUP) != 0)
    }

    fn peer_ended(&mut self) -> Result<bool, Taken> {
        Ok(lifeline::peer_ended(self.fd))
    }

    fn native(&mut self, max: u64) -> Result<Native, Taken> {
        let max = self.up_to_mark(max);
        if max == 0 {
            return Ok(Native::Nothing);
        }
        let Some(b) = &mut self.to else { return Ok(Native::Nothing) };
        let mut v = [iovec { iov_base: core::ptr::null_mut(), iov_len: 0 }; 16];
        let n = b.pieces(max.min(usize::MAX as u64) as usize, &mut v);
        // SAFETY: the kernel checks the program's buffers, which `v` names.
        let r = unsafe { K::receive(self.fd, &mut v[..n], (self.flags & KEEP) | libc::MSG_DONTWAIT) };
        Ok(match r {
            0 => Native::End,
            n if n > 0 => {
                if self.flags & libc::MSG_PEEK == 0 {
                    acts::heard(self.ep, n);
                }
                b.skip(n as usize);
                Native::Bytes(n as u64)
            }
            e if e == -libc::EAGAIN as isize => Native::Nothing,
            e => {
                self.ep.note_error(-e as i32);
                Native::Failed(-e as i32)
            }
        })
    }

    /// The kernel has no offset for a peek (but `SO_PEEK_OFF`, which is the program's), so it copies the `before` bytes once more
    /// to the beginning of the program's buffers, where they are.
    fn peek_behind(&mut self, before: u64, max: u64) -> Result<Native, Taken> {
        let max = if before == 0 { self.up_to_mark(max) } else { max };
        if max == 0 {
            return Ok(Native::Nothing);
        }
        let Some(b) = &mut self.to else { return Ok(Native::Nothing) };
        let mut v = [iovec { iov_base: core::ptr::null_mut(), iov_len: 0 }; 32];
        let place = b.place();
        b.rewind();
        let again = b.pieces(before as usize, &mut v[..16]);
        b.go_to(place);
        if v[..again].iter().map(|p| p.iov_len as u64).sum::<u64>() != before {
            return Ok(Native::Nothing);
        }
        let n = again + b.pieces(max as usize, &mut v[again..]);
        // SAFETY: the kernel checks the program's buffers, which `v` names.
        let r = unsafe { K::receive(self.fd, &mut v[..n], (self.flags & KEEP) | libc::MSG_DONTWAIT) };
        Ok(match r - before as isize {
            n if r > 0 && n > 0 => {
                b.skip(n as usize);
                Native::Bytes(n as u64)
            }
            _ if r >= 0 || r == -libc::EAGAIN as isize => Native::Nothing,
            _ => {
                self.ep.note_error(-r as i32);
                Native::Failed(-r as i32)
            }
        })
    }

    fn discard(&mut self, n: u64) -> Result<u64, Taken> {
        let r = K::discard(self.fd, n);
        acts::heard(self.ep, r);
        Ok(r.max(0) as u64)
    }

    #[inline(always)]
    fn copy(&mut self, at: RingPos, n: u64) -> Result<Result<u64, Fault>, Taken> {
        if self.c.published().may_have_holes(at, self.c.size) {
            return self.copy_with_holes(at, n);
        }
        if common::is_common(self.ep, self.chan) { self.copy_common(at, n) } else { self.copy_held(at, n) }
    }

    fn end_sending(&mut self) -> Result<Option<Latched>, Taken> {
        Ok(tx::settle(self.ep, self.chan, self.fd))
    }

    #[inline(always)]
    fn peeks(&self) -> bool {
        self.flags & libc::MSG_PEEK != 0
    }

    #[inline(always)]
    fn limit(&mut self) -> u64 {
        ring::limit(self.c.peer(), self.c.me(), self.c.size)
    }

    #[cold]
    fn leaves(&mut self, leaver: u64) -> bool {
        // Our own: a handler has left our wait by longjmp, or runs inside it.
        leaver != lock::myself()
            && milliseconds() <= self.ep.rx_leaving_until.load(Relaxed)
            && !members::owner_is_dead(leaver)
    }

    #[cold]
    fn views(&mut self, viewer: u64) -> bool {
        family::uses(viewer, self.ep)
    }

    fn handed_on(&self) -> bool {
        common::is_common(self.ep, self.chan)
    }

    fn break_off(&mut self) -> Result<(), Taken> {
        lifeline::reset(self.fd, self.why);
        Ok(())
    }

    #[cold]
    fn contradicts(&mut self, of: &'static str, read: u64, claimed: u64) {
        if self.ep.is_corrupt() {
            crate::log!(
                Error,
                "endpoint {}: the {of} of the ring ({claimed}) contradicts what was read ({read}); connection reset",
                self.ep.index()
            );
        }
    }

    fn moved(&mut self, up: Option<StreamPos>) {
        if up.is_none() && stretch::fill_all(&self.c, self.chan, self.c.ep.rx_head.load(Relaxed)).is_err() {
            // What the sender takes back it has still.
            crate::log!(Debug, "endpoint {}: chunks were left behind on the ring", self.ep.index());
        }
        match up {
            Some(x) => crate::log!(Debug, "endpoint {}: receiving on the ring from byte {x}", self.ep.index()),
            None => {
                crate::log!(Debug, "endpoint {}: receiving on the lifeline again", self.ep.index());
                self.drained();
            }
        }
    }

    #[cold]
    fn drained(&mut self) {
        self.drained = true;
        watchers::drained(self.ep);
    }
}

impl<'a> In<'a> {
    #[inline(always)]
    pub fn new(ep: Ep, chan: &'a Chan, c: Conn<'a>, fd: i32, to: Option<&'a mut Buffers>, flags: i32) -> In<'a> {
        In { ep, chan, c, fd, to, flags, why: Reason::None, taken: false, some: false, drained: false }
    }

    /// How many of `max` bytes a native receive may ask for. If the call has bytes: what has come, or any number if the lifeline has
    /// ended, and nothing where that stands at an urgent mark: a native receive, which does not know of those bytes, would go over the
    /// mark (tcp_recvmsg_locked). Nor may one be made in the hope that something has come: it may be a mark. A mark that comes from now
    /// on lies behind all that has come (tcp_check_urg).
    fn up_to_mark(&self, max: u64) -> u64 {
        if !self.some {
            return max;
        }
        let n = lifeline::unread(self.fd);
        // Or the number has been closed, which the receive says.
        let ended = n == 0 && lifeline::look(self.fd, ENDED) != 0;
        if n == 0 && !ended || lifeline::at_mark(self.fd) {
            return 0;
        }
        if ended { max } else { max.min(n) }
    }

    fn tell(&mut self) -> Result<(), Taken> {
        notify_aside(&self.c, self.chan);
        Ok(())
    }

    /// The bytes are counted by now, and to tell the peer once more would do no harm.
    #[inline(always)]
    fn tell_last(&mut self) {
        let ep = self.c.ep;
        self.taken |= openly(ep, &ep.rx_token, || notify_aside(&self.c, self.chan)).is_err();
    }

    /// [`Incoming::copy`] of a connection that other processes hold, too. Until the bytes are counted nothing depends on them.
    #[cold]
    fn copy_openly(&mut self, at: RingPos, n: u64) -> Result<Result<u64, Fault>, Taken> {
        let before = self.to.as_ref().map(|b| b.place());
        let ep = self.c.ep;
        let copied = openly(ep, &ep.rx_token, || self.copy_now(at, n));
        if let (Err(Taken), Some(b), Some(before)) = (&copied, &mut self.to, before) {
            b.go_to(before);
        }
        copied
    }

    /// [`Incoming::copy`] where bytes may lie in chunks.
    #[cold]
    fn copy_with_holes(&mut self, at: RingPos, n: u64) -> Result<Result<u64, Fault>, Taken> {
        let copies = self.flags & libc::MSG_TRUNC == 0;
        // If another process takes the direction meanwhile, what is read here comes again.
        let comes_again = self.c.ep.handed.load(Relaxed) & SHARED != 0;
        if (copies || comes_again) && stretch::fill(&self.c, self.chan, at, n).is_err() {
            return Ok(Err(Fault::Ring));
        }
        let copied =
            if common::is_common(self.ep, self.chan) { self.copy_common(at, n) } else { self.copy_held(at, n) };
        if let Ok(Ok(n)) = copied
            && !copies
            && !comes_again
            && !self.peeks()
        {
            stretch::pass(&self.c, self.chan, at, n);
        }
        copied
    }

    #[inline(always)]
    fn copy_held(&mut self, at: RingPos, n: u64) -> Result<Result<u64, Fault>, Taken> {
        if self.c.ep.handed.load(Relaxed) & SHARED == 0 { Ok(self.copy_now(at, n)) } else { self.copy_openly(at, n) }
    }

    /// [`Incoming::copy`] of what other images have, too. No bytes: others have read from there meanwhile.
    #[cold]
    fn copy_common(&mut self, at: RingPos, n: u64) -> Result<Result<u64, Fault>, Taken> {
        let Some(common) = common::common(self.ep, self.chan).filter(|_| !self.peeks()) else {
            return self.copy_held(at, n);
        };
        let before = self.to.as_ref().map(|b| b.place());
        let mut stopped = None;
        let copied = common.receive(at, || {
            self.copy_held(at, n).unwrap_or_else(|Taken| {
                stopped = Some(Taken);
                Ok(0)
            })
        });
        match copied {
            _ if stopped.is_some() => return Err(Taken),
            Ok(Some(_)) => common::read_on(self.ep, self.chan, self.fd),
            Ok(None) => {
                if let (Some(b), Some(before)) = (&mut self.to, before) {
                    b.go_to(before);
                }
            }
            Err(_) => {}
        }
        Ok(copied.map(|n| n.unwrap_or(0)))
    }

    #[inline(always)]
    fn copy_now(&mut self, at: RingPos, n: u64) -> Result<u64, Fault> {
        let Some(b) = &mut self.to else { return Err(Fault::Program) };
        if self.flags & libc::MSG_TRUNC != 0
            && let Some((_, room)) = b.piece(n as usize)
            && room == n as usize
        {
            // Nothing is copied.
            b.advance(room);
            return Ok(n);
        }
        if n <= SEGMENT as u64
            && self.flags & libc::MSG_TRUNC == 0
            && let Some(off) = self.chan.geometry().at_home(ring::base(self.c.published()), at, n)
            && let Some((dst, room)) = b.piece(n as usize)
            && room == n as usize
        {
            let src = self.chan.home(self.c.ep.slot.load(Relaxed) as usize, self.c.role.rx()).wrapping_add(off);
            // SAFETY: as below.
            return match unsafe { K::copy(dst, src, room) } {
                Ok(()) => {
                    b.advance(room);
                    Ok(n)
                }
                Err(_) => Err(Fault::Program),
            };
        }
        self.copy_pieces(at, n)
    }

    /// [`Incoming::copy`] where it may be more than one piece.
    #[inline(never)]
    fn copy_pieces(&mut self, at: RingPos, n: u64) -> Result<u64, Fault> {
        let Some(b) = &mut self.to else { return Err(Fault::Program) };
        let discard = self.flags & libc::MSG_TRUNC != 0;
        let dir = self.chan.role().rx();
        let geo = self.chan.geometry();
        let slot = self.ep.slot.load(Relaxed) as usize;
        let base = ring::base(&self.chan.slot(slot).producer[dir]);
        let n = n as usize;
        let mut done = 0;
        let mut whole = b.place();
        while done < n {
            if done % SEGMENT == 0 {
                whole = b.place();
            }
            let Some((mut dst, room)) = b.piece((n - done).min(SEGMENT - done % SEGMENT)) else { break };
            for (off, len) in geo.spans(base, at.plus(done as u64), room as u64) {
                if discard || len == 0 {
                    continue;
                }
                let copied = match self.chan.at(slot, dir, off, len) {
                    // SAFETY: the source is inside the ring; the destination is the program's, and may fault,
                    // which `copy` reports. The peer may write the source meanwhile: bytes, whatever they are.
                    Some(src) => unsafe { K::copy(dst, src, len) }.map_err(|_| Fault::Program),
                    // SAFETY: the program's buffer, which the kernel checks.
                    None => unsafe { self.chan.read_into(slot, dir, off, len, dst) }
                        .map_err(|e| if e == libc::EFAULT { Fault::Program } else { Fault::Ring }),
                };
                if let Err(e) = copied {
                    b.go_to(whole);
                    let taken = done - done % SEGMENT;
                    return if taken > 0 { Ok(taken as u64) } else { Err(e) };
                }
                dst = dst.wrapping_add(len);
            }
            b.advance(room);
            done += room;
        }
        // Nothing: the program's vector has become shorter since its bytes were counted.
        if done > 0 { Ok(done as u64) } else { Err(Fault::Program) }
    }
}

/// The monotonic clock.
pub(super) fn milliseconds() -> u64 {
    K::now() / 1_000_000
}

/// What the sender has done of what a receiver that leaves waits for. Needs no token: nobody receives meanwhile.
pub(super) fn see(ep: Ep, chan: &Chan, fd: i32, wait: Wait) -> Sees {
    let c = conn(ep, chan);
    driver::see(&mut In::new(ep, chan, c, fd, None, 0), &c, wait).unwrap_or(Sees::NotYet)
}
