//! How a connection ends: in order, by RST, by ICMP, for want of an answer, or with its port.

use super::tcb::mark;
use super::time_wait::TIME_WAIT;
use super::{Cause, Context, Event, Phase, Tcb, Unreachable};
use crate::counters::Counter;
use crate::port::Refused;
use crate::time::Time;
use zstack_wire::Seq;
use zstack_wire::tcp::{Flags, Header};

/// The RST that answers a segment with `len` bytes of payload that belongs to no connection (RFC 9293, section 3.10.7.1); `None`:
/// an RST has no answer.
pub fn reset(header: &Header, len: u32) -> Option<Header> {
    if header.flags.has(Flags::RST) {
        return None;
    }
    if header.flags.has(Flags::ACK) {
        return Some(Header { seq: header.ack, flags: Flags::RST, ..Header::default() });
    }
    let numbers = len + u32::from(header.flags.has(Flags::SYN)) + u32::from(header.flags.has(Flags::FIN));
    Some(Header { seq: Seq(0), ack: header.seq + numbers, flags: Flags::RST.with(Flags::ACK), ..Header::default() })
}

impl Tcb {
    /// The answer to a segment that belongs to no connection. If the port has no room it is lost: the peer sends the segment again.
    pub(super) fn answer_with_reset<C: Context>(&mut self, cx: &mut C, header: &Header, len: u32) {
        if let Some(reset) = reset(header, len) {
            cx.count(Counter::TcpResetSent);
            let _ = cx.transmit_bare(&reset);
        }
    }

    /// Nothing more goes or comes. The holder is told at once; the name is given up when the port has read everything.
    pub(super) fn end_with<C: Context>(&mut self, cx: &mut C, cause: Cause) {
        self.phase = Phase::Closed;
        self.life_at = Time::NEVER;
        self.ended(cx, cause);
        self.marks &= !mark::DUE;
        self.free(cx);
    }

    fn ended<C: Context>(&mut self, cx: &mut C, cause: Cause) {
        self.ack_at = Time::NEVER;
        self.probe_at = Time::NEVER;
        if self.marks & mark::ENDED != 0 {
            return;
        }
        self.marks |= mark::ENDED;
        self.cause = Some(cause);
        self.recovery.abandon();
        if let Some(gaps) = self.gaps.take() {
            cx.gaps().give(gaps);
        }
        cx.count(Counter::Ended);
        cx.event(Event::Ended(cause));
    }

    /// Both FINs are acknowledged, ours last.
    pub(super) fn end_in_order<C: Context>(&mut self, cx: &mut C) {
        self.end_with(cx, Cause::Done);
    }

    /// Both FINs are acknowledged, but the peer may not know that its own is: the ACK that tells it goes out first, unless it did
    /// before (CLOSING).
    pub(super) fn enter_time_wait<C: Context>(&mut self, cx: &mut C) {
        self.phase = Phase::TimeWait;
        self.life_at = cx.now() + TIME_WAIT;
        cx.count(Counter::TimeWait);
        self.ended(cx, Cause::Done);
        self.marks &= !mark::DUE;
        if self.acked == self.rcv_nxt {
            self.free(cx);
        } else {
            self.marks |= mark::ACK;
        }
    }

    /// The peer has not answered in time.
    pub(super) fn time_out<C: Context>(&mut self, cx: &mut C) {
        cx.count(Counter::TcpTimedOut);
        let cause = self.soft.unwrap_or(Cause::TimedOut);
        self.end_with(cx, cause);
    }

    /// The holder has aborted: an RST goes out where the peer could think that there is a connection (RFC 9293, section 3.10.5;
    /// tcp_need_reset), then it is over.
    pub(super) fn aborted<C: Context>(&mut self, cx: &mut C) {
        let reset = match self.phase {
            _ if self.marks & mark::SILENT != 0 => None,
            // Refused: the RST that a SYN gets where nobody listens.
            Phase::Listen => {
                Some(Header { seq: Seq(0), ack: self.rcv_nxt, flags: Flags::RST.with(Flags::ACK), ..Header::default() })
            }
            Phase::SynReceived | Phase::Established | Phase::CloseWait | Phase::FinWait1 | Phase::FinWait2 => {
                Some(self.reset_header(cx.now()))
            }
            Phase::SynSent | Phase::Closing | Phase::LastAck | Phase::TimeWait | Phase::Closed => None,
        };
        if let Some(reset) = reset {
            match cx.transmit_bare(&reset) {
                Ok(_) => cx.count(Counter::TcpResetSent),
                Err(Refused::Full) => {
                    self.marks |= mark::BLOCKED;
                    return;
                }
                Err(Refused::Unfit | Refused::Gone) => {}
            }
        }
        self.end_with(cx, Cause::Aborted);
    }

    /// RST at SND.NXT, or where the peer's window ends if it has shrunk; with timestamps where they are agreed upon (RFC 7323,
    /// section 3.2, says SHOULD).
    pub(super) fn reset_header(&self, now: Time) -> Header {
        Header {
            seq: self.acceptable_seq(),
            ack: self.rcv_nxt,
            flags: Flags::RST.with(Flags::ACK),
            timestamps: self.stamps(now),
            ..Header::default()
        }
    }

    /// An ICMP error has come that quotes a segment of ours with number `seq`. What is not in flight is not believed (RFC 5927,
    /// section 4.1).
    pub fn icmp<C: Context>(&mut self, cx: &mut C, error: Unreachable, seq: Seq) {
        if self.marks & mark::ENDED != 0 || !seq.within(self.una, self.nxt.since(self.una)) {
            cx.count(Counter::IcmpOutside);
            return;
        }
        let cause = error.cause();
        match self.phase {
            // tcp_v4_err: whatever it is, connect(2) fails with it.
            Phase::SynSent => self.end_with(cx, cause),
            // A peer that sent a SYN and cannot be reached; soft errors may pass (RFC 5461).
            Phase::SynReceived if error.hard() => self.end_with(cx, cause),
            // RFC 5927, section 5.2: hard errors are soft once the connection stands.
            _ => self.soft = Some(cause),
        }
    }

    /// The port is gone: it reads nothing any more.
    pub fn port_gone<C: Context>(&mut self, cx: &mut C) {
        self.frames = 0;
        self.end_with(cx, Cause::PortGone);
    }

    /// The port has completed frames ([`Context::completed`]): memory may be released, or the name given up.
    #[inline]
    pub fn port_progress<C: Context>(&mut self, cx: &mut C) {
        if self.recovery.busy() {
            let completed = cx.completed();
            let head = self.recovery.progress(completed, cx.flights());
            self.release(cx, head);
        }
        self.free(cx);
    }

    /// Gives the name up, if the connection has ended, has nothing to send and the port reads none of its memory.
    #[inline]
    pub(super) fn free<C: Context>(&mut self, cx: &mut C) {
        if self.marks & (mark::ENDED | mark::FREED | mark::DUE) == mark::ENDED && cx.completed() >= self.frames {
            self.marks |= mark::FREED;
            self.recovery.forget(cx.flights());
            cx.event(Event::Free);
        }
    }
}
