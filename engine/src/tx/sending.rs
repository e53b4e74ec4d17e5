//! The sending direction, owned: who has a [`Sending`] has its token.
// Unsafe here: ring memory is given to the kernel.
#![allow(unsafe_code)]

use super::bounce::{self, Chunk};
use super::look::{LOOK_EVERY_US, due, look, untold};
use super::{Unsent, go_home, tell_cork};
use crate::channel::Chan;
use crate::chunks::stretch;
use crate::conn::{Taken, back, conn, lend, notify, openly, port};
use crate::endpoint::{Ep, latch, take_living};
use crate::kernel::{K, Kernel as _};
use crate::lifeline::{self, ENDED};
use crate::lock::{self, Held};
use crate::{acts, family, peer, ruin};
use core::sync::atomic::Ordering::Relaxed;
use shmring::driver::{self, Aim, Conn, Failure, Given, Moved, Next, Outgoing, Put};
use shmring::family::{Reason, SHARED};
use shmring::layout::{Arbiter, Role};
use shmring::owner;
use shmring::position::{Corrupt, RingPos, StreamPos};
use shmring::ring;
use shmring::switch::RxPhase;

/// What the steps of the protocol reach of a connection.
pub(super) struct Out<'a> {
    ep: Ep,
    chan: &'a Chan,
    c: Conn<'a>,
    fd: i32,
    /// What was found cannot be, or cannot be told: the connection is lost.
    lost: bool,
    /// Another process has taken the direction.
    taken: bool,
    /// Bytes were published.
    published: bool,
    /// The token is lent already, for a look that changes nothing.
    glances: bool,
    /// What lies unread is repeated on the lifeline, whether that takes it at once or not: nothing comes behind it but a FIN, or the
    /// kernel's timer is to count for it.
    repeating: bool,
}

port!(Out, tell, tell_last, Taken);

impl Outgoing for Out<'_> {
    fn natively_sent(&mut self) -> Result<Option<StreamPos>, Taken> {
        Ok(lifeline::sent(self.fd, self.ep.role() == Some(Role::Connector)))
    }

    #[inline(always)]
    fn ended(&mut self) -> Result<bool, Taken> {
        let (ep, peer) = (self.c.ep, self.c.peer());
        if ep.rx_fin.load(Relaxed) != 0 || ep.rd_shut.load(Relaxed) != 0 {
            return Ok(true);
        }
        if peer.gone.load(Relaxed) == 0 && peer.wr_shut.load(Relaxed) == 0 {
            // Looking at the lifeline is a system call. If something was received since our last send, this is an answer,
            // and ten times the interval will do: the kernel, too, takes the first send after the peer's death, since the
            // RST only comes back later. There is still a limit, because what was received may have lain there for long.
            let heard = ep.rx_head.load(Relaxed);
            let answer = ep.tx_heard.load(Relaxed) != heard;
            if answer {
                // The direction is owned: nobody else writes it.
                ep.tx_heard.store(heard, Relaxed);
            }
            if !due(ep, self.chan, if answer { 10 * LOOK_EVERY_US } else { LOOK_EVERY_US }) {
                return Ok(false);
            }
        }
        // Of a peer that has closed the connection the FIN may stand behind what was repeated on the lifeline, and nobody gives room on the ring
        // any more: the rest goes to the kernel, whose answer to it is the RST that a closed socket sends (tcp_rcv_state_process).
        Ok(self.look_for_end()? || peer.gone.load(Relaxed) != 0)
    }

    /// The peer's FIN stands behind what the receive window did not take (tcp_send_fin). A peer that is killed with our
    /// bytes unread on the kernel sends a RST, which no window holds back; we would hear nothing of its end.
    fn backlog(&mut self) -> Result<bool, Taken> {
        Ok(self.ep.rx_phase.get() != RxPhase::Ring
            && lifeline::option(self.fd, libc::SOL_SOCKET, libc::SO_RCVBUF)
                .is_ok_and(|size| lifeline::unread(self.fd) > size as u64 / 8))
    }

    fn reset(&mut self) -> Result<bool, Taken> {
        Ok(lifeline::look(self.fd, 0) != 0)
    }

    fn killed(&mut self) -> Result<bool, Taken> {
        Ok(peer::gone(self.ep, self.fd))
    }

    fn give(&mut self, base: RingPos, from: RingPos, len: u64) -> Result<Given, Taken> {
        let dir = self.chan.role().tx();
        let all = len;
        let mut len = len;
        if self.c.sent().may_have_holes(from, self.c.size) {
            match bounce::give(&self.c, self.ep, self.chan, self.fd, from, len) {
                Chunk::Gave(given) => return Ok(given),
                Chunk::OnRing(n) => len = n,
                Chunk::Lost => {
                    self.lost = true;
                    return Ok(Given::Failed(libc::ECONNRESET));
                }
            }
        }
        let (off, len) = self.chan.geometry().spans(base, from, len)[0];
        // For what is not mapped, which is rare; whoever calls may have a short stack.
        let mut small = [0u8; 512];
        let Some((p, len)) = self.chan.read_at(self.ep.slot.load(Relaxed) as usize, dir, off, len, &mut small, true)
        else {
            self.lost = true;
            return Ok(Given::Failed(libc::ECONNRESET));
        };
        // Nagle's rule would keep the rest until the peer has acknowledged this piece, which its kernel delays.
        let more = if (len as u64) < all { libc::MSG_MORE } else { 0 };
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL | more;
        let begun = acts::begin();
        // SAFETY: the span is inside the ring, or in the buffer.
        let r = unsafe { K::send(self.fd, p, len, flags) };
        acts::sent(self.ep, self.fd, begun, r, r);
        Ok(match r {
            n if n > 0 => Given::Took(n as u64),
            0 => Given::Full,
            e if e == -libc::EAGAIN as isize => Given::Full,
            e => Given::Failed(-e as i32),
        })
    }

    #[inline(always)]
    fn limit(&mut self) -> u64 {
        ring::limit(self.c.me(), self.c.peer(), self.c.size)
    }

    #[inline]
    fn drained(&mut self, tail: RingPos, base: RingPos) {
        go_home(self.ep, self.chan, tail, base);
    }

    #[cold]
    fn repeats(&mut self, unread: u64) -> bool {
        /// What any socket takes.
        const LITTLE: u64 = 64 << 10;
        self.repeating || unread <= LITTLE || unread <= lifeline::takes(self.fd)
    }

    #[cold]
    fn fills(&mut self, owner: u64) -> bool {
        // Not one that was killed, or has closed the connection.
        family::uses(owner::member(owner), self.ep)
    }

    fn tell_cork(&mut self) {
        tell_cork(self.ep, self.fd);
    }

    fn latch(&mut self, failure: Failure) {
        latch(self.ep, errno(failure));
    }

    fn because(&mut self, why: Reason) {
        self.ep.because(why);
    }

    fn moved(&mut self, to: Moved) {
        match to {
            Moved::Up(at) => crate::log!(Debug, "endpoint {}: sending on the ring from byte {at}", self.ep.index()),
            Moved::Down(at) => {
                crate::log!(Debug, "endpoint {}: sending on the lifeline again from ring byte {at}", self.ep.index());
            }
        }
    }
}

impl Out<'_> {
    /// Whoever takes the direction meanwhile tells the peer once more, which does no harm.
    #[inline(always)]
    fn tell(&mut self) -> Result<(), Taken> {
        let lent = lend(self.c.ep, &self.c.ep.tx_token)?;
        notify(&self.c, self.chan);
        back(lent)
    }

    /// The bytes are published by now, and are this thread's, whoever has the direction.
    #[inline(always)]
    fn tell_last(&mut self) {
        self.taken |= self.tell().is_err();
    }

    #[cold]
    fn look_for_end(&self) -> Result<bool, Taken> {
        let look = || look(self.ep, self.chan, self.fd, ENDED) & ENDED != 0;
        if self.glances { Ok(look()) } else { openly(self.c.ep, &self.c.ep.tx_token, look) }
    }
}

fn errno(failure: Failure) -> i32 {
    match failure {
        Failure::Pipe => libc::EPIPE,
        Failure::Reset | Failure::Corrupt => libc::ECONNRESET,
        Failure::Os(e) => e,
    }
}

/// What a sender has to do, after the switch protocol has been served.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    /// Use the kernel.
    Lifeline,
    /// Use the ring.
    Ring,
    /// The rewind is not finished: nothing can be sent now.
    Blocked,
    /// Another process has taken the direction.
    Taken,
    /// Report the latched error ([`latched`]).
    Latched,
    /// Report this, which the kernel will not tell again.
    Error(i32),
}

/// The sending direction of a connection, in this thread's hands. While it is, the record, the channel and the slot stay.
#[must_use]
pub(super) struct Sending<'a> {
    port: Out<'a>,
    held: Held<'a>,
}

impl<'a> Sending<'a> {
    /// Takes it; not if the record belongs to another connection by now, or another process keeps the direction.
    #[inline(always)]
    pub fn take(ep: Ep, chan: &'a Chan, fd: i32, life: u32) -> Option<Sending<'a>> {
        let record = ep.record();
        Some(Sending::new(ep, chan, fd, take_living(ep, &record.tx_token, Some(&record.tx_taken), life)?))
    }

    /// Takes it where the caller knows that the connection lives. `None`: another process keeps the direction.
    pub fn take_now(ep: Ep, chan: &'a Chan, fd: i32) -> Option<Sending<'a>> {
        let record = ep.record();
        Some(Sending::new(ep, chan, fd, lock::take(&record.tx_token, Some(&record.tx_taken))?))
    }

    #[inline(always)]
    fn new(ep: Ep, chan: &'a Chan, fd: i32, held: Held<'a>) -> Sending<'a> {
        let c = conn(ep, chan);
        if c.sent().may_have_holes(c.ep.tx_tail.load(Relaxed), c.size) {
            stretch::forget_unpublished(&c, chan);
        }
        Sending {
            port: Out {
                ep,
                chan,
                c,
                fd,
                lost: false,
                taken: false,
                published: false,
                glances: false,
                repeating: false,
            },
            held,
        }
    }

    /// Gives it back. If the connection was found to be lost, it is the kernel's when this returns.
    #[inline(always)]
    pub fn release(mut self) {
        // A receiver that has left while these bytes were published may have no other way to get them: this thread may not come back, and
        // a receiver under Landlock may ring nobody. In this order: published, told with a fence (`ring::notify`), looked.
        if self.port.published && self.port.c.peer().rewind.load(Relaxed) != Arbiter::Open {
            self.serve();
        }
        if self.port.lost | self.port.taken {
            return self.end();
        }
        self.held.release();
    }

    /// Does what the receiver asks.
    #[cold]
    pub fn serve(&mut self) {
        if let Turn::Error(e) = self.turn() {
            untold(self.port.ep, e);
        }
    }

    #[cold]
    fn end(self) {
        if self.port.taken {
            return self.held.is_taken();
        }
        let Out { ep, chan, fd, .. } = self.port;
        let life = ep.life();
        self.held.release();
        ruin::ruin(ep, chan, fd, life);
    }

    /// Serves the protocol until it is clear where the next byte goes.
    #[inline(always)]
    pub fn turn(&mut self) -> Turn {
        if self.port.taken {
            return Turn::Taken;
        }
        let c = self.port.c;
        if c.ep.handed.load(Relaxed) & SHARED != 0
            && let Some(turn) = self.glance()
        {
            return turn;
        }
        let Ok(turn) = driver::turn(&mut self.port, &c, Aim::Send) else {
            self.port.taken = true;
            return Turn::Taken;
        };
        match turn {
            driver::Turn::Lifeline => Turn::Lifeline,
            driver::Turn::Ring => Turn::Ring,
            driver::Turn::Blocked => Turn::Blocked,
            driver::Turn::Latched => Turn::Latched,
            driver::Turn::Failed(Failure::Corrupt | Failure::Reset) => {
                self.corrupt();
                Turn::Lifeline
            }
            // The kernel says so.
            driver::Turn::Failed(_) if self.port.lost => Turn::Lifeline,
            driver::Turn::Failed(failure) => Turn::Error(errno(failure)),
        }
    }

    /// Whether it is plainly the ring's turn. On a connection that other processes hold, too, the token is lent meanwhile, as in
    /// a copy: a process that is stopped here keeps it from nobody.
    #[cold]
    fn glance(&mut self) -> Option<Turn> {
        let (c, port) = (self.port.c, &mut self.port);
        port.glances = true;
        let next = openly(c.ep, &c.ep.tx_token, || driver::look(port, &c, Aim::Send));
        self.port.glances = false;
        match next {
            Ok(Ok(Next::Done(driver::Turn::Ring))) => Some(Turn::Ring),
            Ok(_) => None,
            Err(Taken) => {
                self.port.taken = true;
                Some(Turn::Taken)
            }
        }
    }

    /// The same; what lies unread is repeated on the lifeline, whether that takes it at once or not.
    pub fn leave_repeating(&mut self) {
        self.port.repeating = true;
        self.leave();
    }

    /// Takes the direction down for good, for a reason of this side's. An error that it comes to is for the program's own
    /// calls to report.
    pub fn leave(&mut self) {
        let c = self.port.c;
        let Ok(turn) = driver::turn(&mut self.port, &c, Aim::Leave) else {
            // Whoever has taken it takes it down.
            self.port.taken = true;
            return;
        };
        match turn {
            driver::Turn::Failed(Failure::Corrupt | Failure::Reset) => self.corrupt(),
            driver::Turn::Failed(_) if self.port.lost => {}
            driver::Turn::Failed(failure) => untold(self.port.ep, errno(failure)),
            _ => {}
        }
    }

    #[cold]
    fn corrupt(&mut self) {
        let ep = self.port.ep;
        if ep.is_corrupt() {
            crate::log!(
                Error,
                "endpoint {}: what its receiver says of the ring contradicts what was sent; connection reset",
                ep.index()
            );
        }
        self.port.lost = true;
    }

    /// Its handle.
    #[inline(always)]
    pub fn ep(&self) -> Ep {
        self.port.ep
    }

    /// The connection.
    #[inline(always)]
    pub fn conn(&self) -> Conn<'a> {
        self.port.c
    }

    /// Sends up to `want` bytes on the ring. `fill` gets the position at home, the tail and the room behind it.
    #[inline(always)]
    pub fn put(
        &mut self,
        want: u64,
        fill: impl FnOnce(RingPos, RingPos, u64) -> Result<u64, Unsent>,
    ) -> Result<usize, Unsent> {
        let chan = self.port.chan;
        let c = self.port.c;
        if self.is_reserved() {
            return Err(Unsent::Reserved);
        }
        let put = driver::put(&mut self.port, &c, want, |_, base, tail, room| {
            // Until they are published nothing depends on these bytes. Who takes the direction meanwhile does not write there.
            let lent = lend(c.ep, &c.ep.tx_token)?;
            let filled = fill(base, tail, room);
            // Whoever sees these bytes must know what was done before them.
            acts::pass_on(chan);
            back(lent)?;
            Ok(filled)
        });
        let Ok(put) = put else {
            self.port.taken = true;
            return Err(Unsent::Taken);
        };
        match put {
            Put::Took(n) => {
                self.port.published = true;
                Ok(n as usize)
            }
            Put::Full | Put::Nothing => Ok(0),
            Put::Fault(why) => Err(why),
            Put::Corrupt => {
                self.corrupt();
                Err(Unsent::Lost)
            }
        }
    }

    /// Room for up to `want` bytes, which the program fills: the position at home, and how many. 0: the ring is full.
    #[inline(always)]
    pub fn room(&mut self, want: u64) -> Result<(RingPos, u64), Unsent> {
        let c = self.port.c;
        match driver::room(&mut self.port, &c, want) {
            Ok(Ok(room)) => Ok(room),
            Ok(Err(Corrupt)) => {
                self.corrupt();
                Err(Unsent::Lost)
            }
            Err(Taken) => {
                self.port.taken = true;
                Err(Unsent::Taken)
            }
        }
    }

    /// Whether somebody's program fills the room behind the tail.
    #[inline(always)]
    pub fn is_reserved(&mut self) -> bool {
        let c = self.port.c;
        driver::is_reserved(&mut self.port, &c).unwrap_or_else(|Taken| {
            self.port.taken = true;
            true
        })
    }

    /// The room that was found is this thread's, and its program fills it.
    #[inline(always)]
    pub fn reserve(&mut self) {
        let c = self.port.c;
        self.port.taken |= driver::reserve(&mut self.port, &c, lock::myself()).is_err();
    }

    /// The first `n` bytes that the program has laid into its room are the receiver's, and the rest is nobody's.
    #[inline(always)]
    pub fn commit(&mut self, n: u64) -> Result<usize, Unsent> {
        let c = self.port.c;
        // Whoever sees these bytes must know what was done before them.
        acts::pass_on(self.port.chan);
        match driver::commit(&mut self.port, &c, n) {
            Ok(()) => {
                self.port.published = true;
                Ok(n as usize)
            }
            Err(Taken) => {
                self.port.taken = true;
                Err(Unsent::Taken)
            }
        }
    }

    /// After the FIN: what is left of an echo stays unsent.
    pub fn finished(&mut self) {
        let c = self.port.c;
        let _ = driver::finished(&mut self.port, &c);
    }
}
