//! Payload and FIN: what is in order is published, what is ahead is remembered, what came twice is reported.

use super::open::QUICK;
use super::tcb::mark;
use super::{Context, Event, Phase, Tcb};
use crate::counters::Counter;
use crate::time::{Micros, Time};
use std::ops;
use zstack_wire::Seq;
use zstack_wire::tcp::{Flags, Header, Range};

/// How long an ACK may wait for company: Linux's TCP_DELACK_MIN (RFC 9293, section 3.8.6.3 allows half a second).
const DELAY: Micros = Micros::from_millis(40);

impl Tcb {
    /// Takes payload that begins at RCV.NXT and fits the window, while there is no FIN to be met.
    #[inline(always)]
    pub(super) fn in_order<C: Context>(&mut self, cx: &mut C, buffer: C::Buffer, range: ops::Range<usize>) {
        let len = range.len() as u32;
        if !cx.place(self.rcv_at, buffer, range) {
            cx.count(Counter::TcpNotPlaced);
            return;
        }
        self.rcv_nxt += len;
        self.rcv_at += u64::from(len);
        if self.gaps.is_some() {
            self.close_gaps(cx);
        }
        cx.publish(self.rcv_at);
        if len > u32::from(self.rcv_mss) {
            self.rcv_mss = (len as u16).min(self.path_mss);
        }
        if self.rcv_nxt.since(self.acked) > u32::from(self.rcv_mss) || self.gaps.is_some() {
            self.marks |= mark::ACK;
        } else if self.quick > 0 {
            self.quick -= 1;
            self.marks |= mark::ACK;
        } else {
            self.delay_ack(cx);
        }
    }

    /// An ACK may wait for company.
    #[inline(always)]
    fn delay_ack<C: Context>(&mut self, cx: &C) {
        if self.ack_at == Time::NEVER {
            self.ack_at = cx.now() + DELAY;
        }
    }

    /// RCV.NXT has advanced, to ranges that came ahead, perhaps.
    #[cold]
    fn close_gaps<C: Context>(&mut self, cx: &mut C) {
        let Some(mut gaps) = self.gaps.take() else { return };
        let (nxt, duplicate) = gaps.advance(self.rcv_nxt);
        if let Some(duplicate) = duplicate {
            self.duplicate(duplicate);
        }
        self.rcv_at += u64::from(nxt.since(self.rcv_nxt));
        self.rcv_nxt = nxt;
        // The peer waits for this ACK: it ends its recovery (RFC 5681, section 4.2).
        self.marks |= mark::ACK;
        if gaps.is_empty() {
            cx.gaps().give(gaps);
        } else {
            self.gaps = Some(gaps);
        }
    }

    /// Payload, or a FIN, wherever it lies.
    pub(super) fn payload<C: Context>(
        &mut self,
        cx: &mut C,
        header: &Header,
        buffer: C::Buffer,
        range: ops::Range<usize>,
    ) {
        if !matches!(self.phase, Phase::Established | Phase::FinWait1 | Phase::FinWait2) {
            // The peer's FIN was taken: this is from before it, once more, or what no peer may send.
            self.marks |= mark::ACK;
            return;
        }
        let mut range = range;
        let mut seq = header.seq;
        let fin_at = seq + range.len() as u32;
        if self.marks & mark::CLOSED != 0 && !range.is_empty() && self.rcv_nxt.before(fin_at) {
            // Nobody reads it: the peer is told so (RFC 2525, section 2.17; RFC 9293, section 3.6.1).
            cx.count(Counter::TcpAfterClose);
            self.marks |= mark::ABORT;
            return;
        }
        let mut fin = header.flags.has(Flags::FIN);

        // What comes a second time.
        if seq.before(self.rcv_nxt) {
            let twice = self.rcv_nxt.since(seq).min(range.len() as u32);
            if twice > 0 {
                cx.count(Counter::TcpDuplicate);
                self.duplicate(Range { left: seq, right: seq + twice });
                self.quick = QUICK;
            }
            self.marks |= mark::ACK;
            if self.rcv_nxt.since(seq) > twice {
                // Whole, FIN and all.
                return;
            }
            range.start += twice as usize;
            seq = self.rcv_nxt;
        }

        // What there is no room for.
        let edge = if self.marks & mark::PEER_FIN != 0 { self.rcv_edge.earlier(self.peer_fin) } else { self.rcv_edge };
        let room = if edge.before(seq) { 0 } else { edge.since(seq) };
        if range.len() as u32 > room {
            cx.count(Counter::TcpNoRoom);
            range.end = range.start + room as usize;
            fin = false;
            self.marks |= mark::ACK;
        }

        let nxt = self.rcv_nxt;
        if seq != nxt {
            self.ahead(cx, seq, buffer, range, fin);
            return;
        }
        if !range.is_empty() {
            self.in_order(cx, buffer, range);
            if self.rcv_nxt == nxt {
                // It was not placed: its FIN has not come either.
                return;
            }
        }
        if fin && self.marks & mark::PEER_FIN == 0 {
            self.marks |= mark::PEER_FIN;
            self.peer_fin = fin_at;
        }
        if self.marks & mark::PEER_FIN != 0 && self.rcv_nxt == self.peer_fin {
            self.peer_closes(cx);
        }
    }

    /// Payload, or a FIN, behind a gap. The answer is an ACK at once (RFC 5681, section 4.2).
    fn ahead<C: Context>(&mut self, cx: &mut C, seq: Seq, buffer: C::Buffer, range: ops::Range<usize>, fin: bool) {
        cx.count(Counter::TcpAhead);
        self.marks |= mark::ACK;
        self.quick = QUICK;
        let len = range.len() as u32;
        let new = Range { left: seq, right: seq + len };
        if len > 0 {
            let gaps = self.gaps.get_or_insert_with(|| cx.gaps().take());
            if !gaps.takes(new) {
                cx.count(Counter::TcpGapsFull);
                return;
            }
            let at = self.rcv_at + u64::from(seq.since(self.rcv_nxt));
            if !cx.place(at, buffer, range) {
                cx.count(Counter::TcpNotPlaced);
                if gaps.is_empty()
                    && let Some(gaps) = self.gaps.take()
                {
                    cx.gaps().give(gaps);
                }
                return;
            }
            if let Some(duplicate) = gaps.add(new).duplicate {
                cx.count(Counter::TcpDuplicate);
                self.duplicate(duplicate);
            }
        }
        if fin
            && self.marks & mark::PEER_FIN == 0
            && self.gaps.as_ref().and_then(|gaps| gaps.last()).is_none_or(|last| last.up_to(new.right))
        {
            self.marks |= mark::PEER_FIN;
            self.peer_fin = new.right;
        }
    }

    /// What came twice is the first block of the next ACK (RFC 2883).
    pub(super) fn duplicate(&mut self, range: Range) {
        if self.marks & mark::SACK != 0 {
            self.dsack = range;
            self.marks |= mark::DSACK;
        }
    }

    /// All before the peer's FIN has come (RFC 9293, section 3.10.7.4, eighth).
    fn peer_closes<C: Context>(&mut self, cx: &mut C) {
        self.rcv_nxt += 1;
        let shut = self.rcv_edge.before(self.rcv_nxt);
        self.rcv_edge = self.rcv_edge.later(self.rcv_nxt);
        // Who has read to the end closes soon: the ACK of a FIN that comes alone, behind payload, waits for our own FIN to carry it
        // (Linux `tcp_fin`). Where our side is closed, nothing follows that could; through a shut window it is answered at once.
        let alone = self.rcv_nxt.since(self.acked) == 1 && self.rcv_at > 0;
        if self.phase != Phase::Established || !alone || shut || self.gaps.is_some() {
            self.marks |= mark::ACK;
        } else {
            self.delay_ack(cx);
        }
        if let Some(gaps) = self.gaps.take() {
            cx.gaps().give(gaps);
        }
        if self.marks & mark::CLOSED == 0 {
            cx.event(Event::PeerClosed);
        }
        match self.phase {
            Phase::Established => self.phase = Phase::CloseWait,
            Phase::FinWait1 => self.phase = Phase::Closing,
            Phase::FinWait2 => self.enter_time_wait(cx),
            _ => {}
        }
    }
}
