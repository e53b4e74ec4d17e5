//! What an acceptable ACK does: the window, what is in flight, the memory of the outgoing stream, and the ends of our side.

use super::recovery::{Arrival, Told};
use super::tcb::mark;
use super::{Context, Phase, Tcb};
use crate::counters::Counter;
use crate::time::Time;
use zstack_wire::Seq;
use zstack_wire::tcp::{Flags, Header, Plain, Range, Timestamps};

/// What a segment acknowledges, and beside which numbers.
#[derive(Clone, Copy)]
pub(super) struct Acknowledgment<'a> {
    pub seq: Seq,
    /// How many sequence numbers the segment has.
    pub len: u32,
    pub ack: Seq,
    /// The window, scaled.
    pub wnd: u32,
    pub sack: &'a [Range],
    pub timestamps: Option<Timestamps>,
}

impl Tcb {
    /// SND.WND (RFC 9293, section 3.10.7.4): only a segment that is no older than the one that gave it last changes it. One that
    /// acknowledges something new is not, whatever its number: the peer has sent it again, or another number was ahead of the peer's
    /// (`tcp_may_update_window`). Returns whether it changed.
    #[inline]
    pub(super) fn update_window(&mut self, seq: Seq, ack: Seq, wnd: u32) -> bool {
        if self.wl1.before(seq) || self.wl1 == seq && self.wl2.up_to(ack) || self.is_new(ack) {
            (self.wl1, self.wl2) = (seq, ack);
            if wnd != self.wnd {
                self.wnd = wnd;
                self.max_wnd = self.max_wnd.max(wnd);
                self.marks |= mark::SEND;
                return true;
            }
        }
        false
    }

    /// Whether an ACK acknowledges something new: asked only of segments that were overtaken.
    #[cold]
    fn is_new(&self, ack: Seq) -> bool {
        self.una.before(ack)
    }

    /// What a header with so many sequence numbers acknowledges.
    pub(super) fn acknowledgment<'a>(&self, header: &'a Header, len: u32) -> Acknowledgment<'a> {
        let Header { seq, ack, window, timestamps, .. } = *header;
        // That of a SYN is not scaled.
        let wnd = if header.flags.has(Flags::SYN) { u32::from(window) } else { self.scaled(window) };
        Acknowledgment { seq, len, ack, wnd, sack: header.sack.blocks(), timestamps }
    }

    /// The peer's window as its headers name it, in bytes.
    #[inline(always)]
    pub(super) fn scaled(&self, window: u16) -> u32 {
        u32::from(window) << self.snd_scale
    }

    /// The same of a plain segment.
    #[inline]
    pub(super) fn plain_acknowledgment(&self, plain: &Plain, len: u32) -> Acknowledgment<'static> {
        let Plain { seq, ack, window, timestamps } = *plain;
        Acknowledgment { seq, len, ack, wnd: self.scaled(window), sack: &[], timestamps }
    }

    /// An ACK between SND.UNA and SND.NXT has come.
    #[inline]
    pub(super) fn acknowledge<C: Context>(&mut self, cx: &mut C, what: &Acknowledgment<'_>) {
        let now = cx.now();
        let changed = self.update_window(what.seq, what.ack, what.wnd);
        let completed = cx.completed();
        let unsent = self.at(self.nxt) < self.end;
        let arrival = Arrival {
            ack: what.ack,
            sack: if self.marks & mark::SACK != 0 { what.sack } else { &[] },
            echo: what
                .timestamps
                .filter(|_| self.marks & mark::STAMPS != 0)
                .map(|stamps| stamps.echo.wrapping_sub(self.stamp_offset)),
            bare: what.len == 0 && !changed,
            fresh: unsent && self.nxt.before(self.una + self.wnd),
        };
        let acked = self.recovery.ack(now, &arrival, completed, cx.flights());
        // The peer answers: whatever it was asked, it need not be given up.
        self.tries = 0;
        let covered = what.ack.since(self.una);
        if covered > 0 {
            self.una_at = self.una_at.wrapping_add(u64::from(covered));
            self.una = what.ack;
            self.stalled = now;
            self.soft = None;
        }
        if self.wnd > 0 {
            self.backoff = 0;
            if self.probe_at != Time::NEVER {
                // What waits no longer waits for the peer (tcp_ack_probe).
                self.stalled = now;
            }
        }
        self.release(cx, acked.head);
        self.marks &= !(mark::MORE | mark::CROWDED);
        if unsent || !self.rests() {
            self.marks |= mark::SEND;
        }
        if acked.told != Told::Nothing {
            cx.count(match acked.told {
                Told::Nothing | Told::Entered => Counter::TcpRecovery,
                Told::Duplicate => Counter::TcpDuplicateTold,
                Told::Recovered => Counter::TcpRecovered,
                Told::Undone => Counter::TcpUndone,
                Told::ProbeMended => Counter::TcpProbeMended,
            });
        }
        if self.marks & mark::FIN_SENT != 0 && self.una == self.nxt {
            self.fin_acknowledged(cx);
        }
    }

    /// Whether an ACK leaves nothing to be done of a connection that has nothing unsent: it stands, and nothing is lost.
    #[inline]
    fn rests(&self) -> bool {
        self.phase == Phase::Established
            && self.marks & (mark::FIN | mark::CLOSED) == 0
            && self.probe_at == Time::NEVER
            && self.recovery.lost() == 0
    }

    /// The peer has our FIN.
    fn fin_acknowledged<C: Context>(&mut self, cx: &mut C) {
        match self.phase {
            Phase::FinWait1 => {
                self.phase = Phase::FinWait2;
                self.life_at = if self.marks & mark::CLOSED != 0 {
                    cx.now().after_millis(u64::from(self.fin_wait))
                } else {
                    Time::NEVER
                };
            }
            Phase::Closing => self.enter_time_wait(cx),
            Phase::LastAck => self.end_in_order(cx),
            _ => {}
        }
    }

    /// The position of a number in the outgoing stream, at or behind SND.UNA.
    #[inline]
    pub(super) fn at(&self, seq: Seq) -> u64 {
        self.una_at.wrapping_add(u64::from(seq.since(self.una)))
    }

    /// Tells the host what of the outgoing stream's memory nobody reads any more: what lies before `head`, or before SND.UNA.
    #[inline]
    pub(super) fn release<C: Context>(&mut self, cx: &mut C, head: Option<Seq>) {
        let behind = head.map_or(0, |head| self.una.since(head));
        let to = self.una_at.wrapping_sub(u64::from(behind));
        // The SYN lies at -1, and the FIN behind the end.
        if (to as i64) > self.released as i64 {
            let to = to.min(self.end);
            if to > self.released {
                self.released = to;
                cx.release(to);
            }
        }
    }
}
