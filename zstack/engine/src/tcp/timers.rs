//! Time passes.

use super::recovery::Fire;
use super::tcb::mark;
use super::{Context, Phase, Tcb};
use crate::counters::Counter;
use crate::time::{Micros, Time};

/// SYNs that are sent again before connect fails: tcp_syn_retries of Linux, two minutes.
const SYN_AGAIN: u8 = 6;

/// The same of SYN-ACKs: tcp_synack_retries, one minute.
const SYN_ACK_AGAIN: u8 = 5;

/// Retransmissions of the same before a connection ends: tcp_retries2, some fifteen minutes (RFC 9293, section 3.8.3, R2).
const AGAIN: u8 = 15;

/// The same when the holder has closed it: tcp_orphan_retries.
const AGAIN_CLOSED: u8 = 8;

/// A peer that has not been heard of for so long is silent, also where its window is shut: twice the longest RTO.
const SILENCE: Micros = Micros::from_millis(240_000);

impl Tcb {
    /// When [`timer`](Tcb::timer) is to be called; [`Time::NEVER`]: not at all.
    #[inline(always)]
    pub fn deadline(&self) -> Time {
        let at = self.ack_at.min(self.probe_at).min(self.life_at);
        if self.marks & mark::ENDED != 0 {
            return at;
        }
        let at = at.min(self.recovery.deadline());
        if self.marks & mark::KEEPALIVE == 0 && self.user_timeout == 0 {
            return at;
        }
        at.min(self.keepalive_at()).min(self.user_timeout_at())
    }

    /// When the keep-alive is due: only while nothing is in flight or waits, for the other timers watch over that
    /// (tcp_keepalive_timer).
    fn keepalive_at(&self) -> Time {
        let on = self.marks & mark::KEEPALIVE != 0
            && matches!(
                self.phase,
                Phase::Established | Phase::CloseWait | Phase::FinWait1 | Phase::FinWait2 | Phase::Closing
            )
            && self.nxt == self.una
            && self.probe_at == Time::NEVER;
        if !on {
            return Time::NEVER;
        }
        if self.keepalives > 0 {
            return self.kept.after_millis(u64::from(self.keepalive_interval));
        }
        self.heard.after_millis(u64::from(self.keepalive_idle))
    }

    /// When bytes, a FIN or a probe of the window have waited for too long. What we hold back while the window is open waits for
    /// nobody's answer.
    fn user_timeout_at(&self) -> Time {
        if self.user_timeout == 0 || self.nxt == self.una && (self.probe_at == Time::NEVER || self.wnd > 0) {
            return Time::NEVER;
        }
        self.stalled.after_millis(u64::from(self.user_timeout))
    }

    /// The deadline may have come. Afterwards the connection may be [due](Tcb::due).
    pub fn timer<C: Context>(&mut self, cx: &mut C) {
        let now = cx.now();
        if self.ack_at <= now {
            self.ack_at = Time::NEVER;
            self.marks |= mark::ACK;
        }
        if self.life_at <= now && self.life_ends(cx) {
            return;
        }
        if self.marks & mark::ENDED != 0 {
            return;
        }
        if self.user_timeout_at() <= now {
            return self.time_out(cx);
        }
        if self.recovery.deadline() <= now && self.recovery_fires(cx) {
            return;
        }
        if self.probe_at <= now && self.probe_fires(cx) {
            return;
        }
        if self.keepalive_at() <= now {
            self.keepalive_fires(cx);
        }
    }

    /// TIME-WAIT, FIN-WAIT-2 or the linger is over. Returns whether the connection has ended.
    fn life_ends<C: Context>(&mut self, cx: &mut C) -> bool {
        self.life_at = Time::NEVER;
        match self.phase {
            Phase::TimeWait => {
                self.phase = Phase::Closed;
                true
            }
            // As Linux does with a connection that nobody holds: what still comes gets an RST.
            Phase::FinWait2 => {
                self.time_out(cx);
                true
            }
            Phase::Closed => true,
            _ => {
                self.marks |= mark::ABORT;
                true
            }
        }
    }

    /// Returns whether the connection has ended.
    fn recovery_fires<C: Context>(&mut self, cx: &mut C) -> bool {
        match self.recovery.fire(cx.now()) {
            Fire::Nothing => {}
            Fire::Lost => self.marks |= mark::SEND,
            // A SYN has no tail.
            Fire::Probe if self.phase < Phase::Established => {}
            Fire::Probe => self.marks |= mark::SEND | mark::TAIL_PROBE,
            Fire::Timeout(times) => {
                cx.count(Counter::TcpTimeout);
                let (limit, again) = match self.phase {
                    Phase::SynSent => (SYN_AGAIN, mark::SYN),
                    Phase::SynReceived if self.marks & mark::PASSIVE != 0 => (SYN_ACK_AGAIN, mark::SYN),
                    Phase::SynReceived => (SYN_AGAIN, mark::SYN),
                    _ if self.marks & mark::CLOSED != 0 => (AGAIN_CLOSED, mark::SEND),
                    _ => (AGAIN, mark::SEND),
                };
                let stands = self.phase >= Phase::Established;
                let limited = self.user_timeout == 0 || !stands;
                // A peer that has shrunk its window to nothing drops what is sent again, and says so: it is alive, and may stay
                // so for as long as it likes (RFC 9293, section 3.8.6.1; tcp_retransmit_timer).
                let shut =
                    stands && self.wnd == 0 && self.marks & mark::CLOSED == 0 && cx.now().since(self.heard) < SILENCE;
                if limited && times > limit && !shut {
                    self.time_out(cx);
                    return true;
                }
                self.marks |= again;
                self.marks &= !mark::TAIL_PROBE;
            }
        }
        false
    }

    /// The window is probed, or a held segment goes out. Returns whether the connection has ended.
    fn probe_fires<C: Context>(&mut self, cx: &mut C) -> bool {
        self.probe_at = Time::NEVER;
        if self.wnd > 0 && self.unsent() > 0 {
            // Nothing is held back any more: the last segment says so (RFC 9293, section 3.9.1.2, MUST-61).
            self.push = self.end;
            self.marks |= mark::SEND | mark::PUSH_OUT;
            return false;
        }
        // While the peer answers, it is asked for as long as it likes; one that answers nobody is given up, and one that keeps
        // its window shut on a connection that nobody holds (CVE-2008-4609).
        let limit = if self.marks & mark::CLOSED != 0 { AGAIN_CLOSED } else { AGAIN };
        let hopeless = self.marks & mark::CLOSED != 0 && self.backoff >= AGAIN_CLOSED;
        if (self.tries >= limit || hopeless) && self.user_timeout == 0 {
            self.time_out(cx);
            return true;
        }
        cx.count(Counter::TcpWindowProbe);
        self.tries = self.tries.saturating_add(1);
        self.backoff = (self.backoff + 1).min(16);
        self.marks |= mark::PROBE | mark::SEND;
        false
    }

    fn keepalive_fires<C: Context>(&mut self, cx: &mut C) {
        // Who says how long he waits counts no probes (tcp_keepalive_timer).
        let over = match self.user_timeout {
            0 => self.keepalives >= self.keepalive_count,
            limit => self.keepalives > 0 && self.heard.after_millis(limit.into()) <= cx.now(),
        };
        if over {
            // The peer, should it come back, learns that the connection is no more (tcp_keepalive_timer).
            let reset = self.reset_header(cx.now());
            cx.count(Counter::TcpResetSent);
            let _ = cx.transmit_bare(&reset);
            self.time_out(cx);
            return;
        }
        cx.count(Counter::TcpKeepalive);
        self.keepalives = self.keepalives.saturating_add(1);
        self.kept = cx.now();
        self.marks |= mark::PROBE;
    }
}
