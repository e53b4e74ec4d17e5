//! The states before ESTABLISHED (RFC 9293, sections 3.10.7.2 and 3.10.7.3).

use super::tcb::mark;
use super::{Cause, Context, Event, Phase, Tcb};
use crate::counters::Counter;
use crate::time::Time;
use zstack_wire::tcp::{Flags, Header};

impl Tcb {
    /// A segment while the answer to the peer's SYN is withheld: the SYN again is ignored, its sender waits. Another SYN says that the
    /// peer has given this one up; it is dropped, and asks when it comes again.
    pub(super) fn in_listen<C: Context>(&mut self, cx: &mut C, header: &Header, len: u32) {
        if header.flags.has(Flags::RST) {
            // The peer has given up: its RST has the number behind its SYN.
            if header.seq == self.rcv_nxt {
                cx.count(Counter::TcpReset);
                self.end_with(cx, Cause::Reset);
            }
        } else if header.flags.has(Flags::ACK) {
            cx.count(Counter::TcpAckInvalid);
            self.answer_with_reset(cx, header, len);
        } else if header.flags.has(Flags::SYN) && !header.flags.has(Flags::FIN) && header.seq + 1 != self.rcv_nxt {
            cx.count(Counter::DeferredOverrun);
            self.end_with(cx, Cause::Reset);
        }
    }

    /// SYN-SENT.
    pub(super) fn in_syn_sent<C: Context>(&mut self, cx: &mut C, header: &Header, len: u32) {
        let flags = header.flags;
        let acks = flags.has(Flags::ACK);
        let ahead = header.ack.since(self.una);
        if acks && (ahead == 0 || ahead > self.nxt.since(self.una)) {
            cx.count(Counter::TcpAckInvalid);
            self.answer_with_reset(cx, header, len);
            return;
        }
        if flags.has(Flags::RST) {
            // Without an ACK of our SYN it could be anybody's.
            if acks {
                cx.count(Counter::TcpReset);
                self.end_with(cx, Cause::Refused);
            } else {
                cx.count(Counter::TcpResetOutside);
            }
            return;
        }
        if !flags.has(Flags::SYN) {
            cx.count(Counter::TcpNoAck);
            return;
        }
        let now = cx.now();
        self.heard = now;
        self.synchronise(now, header);
        if acks {
            self.wl2 = header.ack;
            self.establish(cx);
            self.acknowledge(cx, &self.acknowledgment(header, 1));
            // Payload beside the SYN is not taken: the peer sends it again.
            self.marks |= mark::ACK;
        } else {
            // Simultaneous open: our SYN again, with an ACK (RFC 9293, section 3.5, figure 8).
            self.phase = Phase::SynReceived;
            self.marks |= mark::SYN;
        }
    }

    /// ESTABLISHED, or what our CLOSE before it makes of it.
    pub(super) fn establish<C: Context>(&mut self, cx: &mut C) {
        self.phase = Phase::Established;
        self.marks &= !mark::SYN;
        self.marks |= mark::SEND;
        self.tries = 0;
        self.soft = None;
        self.life_at = Time::NEVER;
        cx.count(Counter::Established);
        cx.event(Event::Established);
        if self.marks & mark::FIN != 0 {
            self.closing();
        }
    }
}
