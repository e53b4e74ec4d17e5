//! What is sent, and when: retransmissions, then payload and FIN as far as the peer's window, the congestion window, Nagle and
//! the holder allow, then an ACK if no segment carried it.

use super::recovery::{Retransmit, Transmission};
use super::tcb::{Marks, mark};
use super::{Context, Event, Phase, Sent, Tcb};
use crate::counters::Counter;
use crate::port::Refused;
use crate::time::{Micros, Time};
use zstack_wire::tcp::{Flags, Header};

/// Zero-window probes are at least as far apart as the shortest RTO, and at most as the longest (RFC 9293, section 3.8.6.1).
const PROBE_MOST: Micros = Micros::from_millis(120_000);

/// What can be sent of the stream now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Piece {
    len: u32,
    fin: bool,
    /// Nothing more, because the congestion window is used up.
    congested: bool,
}

impl Piece {
    #[inline]
    fn is_nothing(&self) -> bool {
        self.len == 0 && !self.fin
    }
}

impl Tcb {
    /// Sends all that is due and allowed, and tells what is to be told. The connection stays [due](Tcb::due) where the port had no
    /// room.
    #[inline(always)]
    pub fn output<C: Context>(&mut self, cx: &mut C) {
        /// What asks for more than a plain ACK.
        const MORE: Marks = mark::DUE & !mark::ACK | mark::CLOSED | mark::ENDED | mark::DSACK;
        let plain = self.marks & (MORE | mark::ACK) == mark::ACK && self.gaps.is_none();
        if plain && self.phase >= Phase::Established { self.send_ack(cx) } else { self.send_all(cx) }
    }

    /// An ACK and nothing else, as a receiver sends it.
    #[inline(never)]
    fn send_ack<C: Context>(&mut self, cx: &mut C) {
        let header = self.header(cx.now(), self.acceptable_seq(), Flags::ACK);
        let result = cx.transmit(&header, 0, 0, 0);
        self.ack_sent(cx, &header, result);
    }

    /// What the port said to an ACK.
    #[inline(always)]
    fn ack_sent<C: Context>(&mut self, cx: &mut C, header: &Header, result: Result<Sent, Refused>) {
        match result {
            Ok(_) => {
                self.marks &= !(mark::ACK | mark::DSACK);
                self.acknowledged(header);
            }
            Err(Refused::Unfit) => self.marks &= !(mark::ACK | mark::DSACK),
            Err(refused) => self.refused(cx, refused),
        }
    }

    #[inline(never)]
    fn send_all<C: Context>(&mut self, cx: &mut C) {
        let marks = self.marks;
        self.marks &= !(mark::BLOCKED | mark::SEND);
        if marks & mark::ABORT != 0 && marks & (mark::SEND | mark::BLOCKED) != 0 && !self.send_before_reset(cx) {
            return;
        }
        if marks & (mark::ABORT | mark::ASK | mark::SYN | mark::CLOSED | mark::ENDED) != 0 && !self.unusual(cx) {
            return;
        }
        if self.phase >= Phase::Established && marks & (mark::SEND | mark::BLOCKED) != 0 && self.phase < Phase::TimeWait
        {
            self.send(cx);
        }
        if self.marks & (mark::ACK | mark::PROBE) != 0 && self.marks & mark::BLOCKED == 0 {
            if self.phase >= Phase::SynReceived {
                self.send_bare(cx);
            } else {
                self.marks &= !(mark::ACK | mark::PROBE);
            }
        }
        if self.marks & mark::ENDED != 0 {
            self.free(cx);
        }
    }

    /// What the holder had committed before it aborted goes first, as far as it may: Linux sends it by the call that commits it. Returns whether
    /// it went, and the reset is next.
    #[cold]
    fn send_before_reset<C: Context>(&mut self, cx: &mut C) -> bool {
        // After a close the reset is ours, and says that what the peer sends now is read by nobody.
        if self.marks & mark::CLOSED == 0 && (Phase::Established..=Phase::LastAck).contains(&self.phase) {
            self.send(cx);
            if self.marks & mark::ENDED != 0 {
                self.free(cx);
                return false;
            }
        }
        self.marks & mark::BLOCKED == 0
    }

    /// What happens at the ends of a connection's life. Returns whether output goes on.
    #[cold]
    fn unusual<C: Context>(&mut self, cx: &mut C) -> bool {
        if self.marks & mark::ABORT != 0 {
            self.aborted(cx);
            return false;
        }
        if self.marks & mark::ASK != 0 {
            self.marks &= !mark::ASK;
            cx.event(Event::Asked);
        }
        if self.marks & mark::SYN != 0 {
            self.send_syn(cx);
        }
        if self.marks & mark::CLOSED != 0 && self.life_at == Time::NEVER {
            let wait = if self.phase == Phase::FinWait2 { self.fin_wait } else { self.linger };
            if self.phase < Phase::TimeWait && wait != u32::MAX {
                self.life_at = cx.now().after_millis(u64::from(wait));
            }
        }
        true
    }

    /// The SYN, or SYN-ACK, for the first time or again.
    fn send_syn<C: Context>(&mut self, cx: &mut C) {
        let now = cx.now();
        let answers = match self.phase {
            Phase::SynSent => false,
            Phase::SynReceived => true,
            _ => {
                self.marks &= !mark::SYN;
                return;
            }
        };
        let header = self.syn_header(now, answers);
        let sent = match cx.transmit_bare(&header) {
            Ok(sent) => sent,
            Err(refused) => return self.refused(cx, refused),
        };
        self.marks &= !mark::SYN;
        // There may be more room than when the connection began.
        self.marks |= mark::ROOM;
        self.rcv_max = self.rcv_max.max(u32::from(header.window));
        if answers {
            self.rcv_edge = self.rcv_edge.later(self.rcv_nxt + u32::from(header.window));
        }
        let what = Transmission { seq: self.una, len: 1, cut: self.mss, syn: true, fin: false, number: sent.number };
        if self.recovery.outstanding() == 0 {
            self.nxt = self.una + 1;
            self.small = self.nxt;
            self.recovery.sent(now, cx.flights(), &what);
        } else {
            self.retransmits += 1;
            cx.count(Counter::TcpRetransmit);
            self.recovery.retransmitted(now, &what);
        }
    }

    /// What the port says no to. "Full" is no loss: the segment is built again when output is called again.
    #[cold]
    fn refused<C: Context>(&mut self, cx: &mut C, refused: Refused) {
        match refused {
            Refused::Full => self.marks |= mark::BLOCKED | mark::SEND,
            // It will never go: the timers end the connection unless the path's MTU is corrected before.
            Refused::Unfit => self.marks &= !(mark::SYN | mark::PROBE),
            Refused::Gone => self.port_gone(cx),
        }
    }

    /// Retransmissions, payload and FIN.
    #[inline]
    fn send<C: Context>(&mut self, cx: &mut C) {
        let now = cx.now();
        if (self.marks & mark::TAIL_PROBE != 0 || self.recovery.has_lost()) && !self.send_again(cx, now) {
            return;
        }
        // Through a shut window nothing goes, and what waits for it to open is no idleness: the congestion window stays as it is.
        let (unsent, open) = (self.unsent(), self.wnd > 0 || self.nxt != self.una);
        let congested = if open && self.marks & mark::CROWDED == 0 && (unsent > 0 || self.fin_waits()) {
            match self.send_new(cx, now, unsent) {
                Ok(congested) => congested,
                Err(refused) => {
                    self.refused(cx, refused);
                    if self.phase > Phase::LastAck || self.marks & mark::BLOCKED != 0 {
                        return;
                    }
                    false
                }
            }
        } else {
            false
        };
        self.recovery.limited(congested);
        self.marks &= !mark::PUSH_OUT;
        self.arm_probe(now);
    }

    /// A tail loss probe, and retransmissions. Returns whether the port has taken all of it, and the connection goes on.
    #[inline(never)]
    fn send_again<C: Context>(&mut self, cx: &mut C, now: Time) -> bool {
        if self.marks & mark::TAIL_PROBE != 0 && !self.tail_probe(cx, now) {
            return false;
        }
        if self.recovery.has_lost() {
            self.send_lost(cx, now);
        }
        self.phase <= Phase::LastAck && self.marks & mark::BLOCKED == 0
    }

    /// Retransmissions, as many as may go now.
    #[inline(never)]
    fn send_lost<C: Context>(&mut self, cx: &mut C, now: Time) {
        while let Some(lost) = self.recovery.next_lost() {
            let allowance = self.recovery.allowance(now);
            if !self.retransmit(cx, now, &lost, allowance) {
                break;
            }
        }
    }

    /// Payload and FIN, as much as may go now, of `unsent` bytes. Returns whether the congestion window is what stopped it.
    #[inline(always)]
    fn send_new<C: Context>(&mut self, cx: &mut C, now: Time, mut unsent: u64) -> Result<bool, Refused> {
        let most = self.most(cx.tso());
        let allowance = self.recovery.allowance(now);
        let mut piece = self.piece(unsent, most, allowance);
        if piece.is_nothing() {
            return Ok(piece.congested);
        }
        let first = self.nxt;
        // From piece to piece only its number and flags change.
        let mut header = self.header(now, first, Flags::ACK);
        let refused = loop {
            match self.send_piece(cx, now, &mut header, piece) {
                Ok(len) => unsent -= u64::from(len),
                Err(refused) => break Err(refused),
            }
            // What is sent is whole, or there are too many small segments for one more.
            if unsent == 0 && !self.fin_waits() || self.marks & mark::CROWDED != 0 {
                break Ok(piece.congested);
            }
            let allowance = self.recovery.allowance(now);
            piece = self.piece(unsent, most, allowance);
            if piece.is_nothing() {
                break Ok(piece.congested);
            }
        };
        if refused.is_ok() || self.nxt != first {
            self.recovery.watch_tail(now);
            self.carried(&header);
        }
        refused
    }

    /// Whether payload or a FIN was never sent.
    #[inline]
    pub(super) fn waits(&self) -> bool {
        self.unsent() > 0 || self.fin_waits()
    }

    /// Whether a FIN is to follow the stream, and was never sent.
    #[inline]
    fn fin_waits(&self) -> bool {
        self.marks & (mark::FIN | mark::FIN_SENT) == mark::FIN
    }

    /// Bytes that are committed and were never sent.
    #[inline]
    pub(super) fn unsent(&self) -> u64 {
        if self.marks & mark::FIN_SENT != 0 { 0 } else { self.end - self.at(self.nxt) }
    }

    /// While nothing is in flight and something waits, only this timer brings the connection on: the window is probed, or a held
    /// segment goes out (RFC 9293, section 3.8.6.1; Linux's TCP_CORK holds as long).
    #[inline]
    fn arm_probe(&mut self, now: Time) {
        if self.nxt != self.una || !self.waits() {
            self.probe_at = Time::NEVER;
        } else if self.probe_at == Time::NEVER {
            if self.backoff == 0 {
                self.stalled = now;
            }
            let base = self.recovery.rto().0;
            let wait = base.checked_shl(u32::from(self.backoff)).filter(|wait| wait >> self.backoff == base);
            self.probe_at = now + Micros(wait.unwrap_or(u32::MAX)).min(PROBE_MOST);
        }
    }

    /// The most payload of one frame, whole segments: what the port cuts at once, but not more than half of the congestion window,
    /// so that two frames at least are on their way and the ACKs of the first let the next go (Linux `tcp_cwnd_test`).
    #[inline(always)]
    fn most(&self, tso: u32) -> u32 {
        let mss = u32::from(self.mss);
        let most = tso.min(self.recovery.cwnd() / 2);
        if most > mss { most - most % mss } else { mss }
    }

    /// How much may be sent now of `unsent` bytes, `most` at once: whole segments, or a smaller one if nothing speaks against it.
    #[inline(always)]
    fn piece(&self, unsent: u64, most: u32, allowance: u32) -> Piece {
        let mss = u32::from(self.mss);
        let end = self.una + self.wnd;
        let window = if end.before(self.nxt) { 0 } else { end.since(self.nxt) };
        let wanted = unsent.min(u64::from(most)) as u32;
        let len = wanted.min(window).min(allowance);
        let more = u64::from(len) < unsent;
        // Whole segments, behind which more follows, or nothing at all.
        if len >= mss && (more || len == mss && self.marks & mark::FIN == 0) {
            return Piece { len: if len == mss { mss } else { len - len % mss }, fin: false, congested: false };
        }
        self.last_piece(len, window, allowance, more)
    }

    /// The same where less than a segment is left, or allowed, or the stream ends.
    fn last_piece(&self, len: u32, window: u32, allowance: u32, more: bool) -> Piece {
        let mss = u32::from(self.mss);
        let tail = len % mss;
        let whole = Piece { len: len - tail, fin: false, congested: false };
        let idle = self.nxt == self.una;
        if more && allowance <= window {
            // A part of a segment now would only make two of one.
            return if idle && whole.len == 0 && len > 0 {
                Piece { len, fin: false, congested: true }
            } else {
                Piece { congested: true, ..whole }
            };
        }
        let pushed = self.marks & mark::PUSH_OUT != 0;
        if more {
            // The sender's side of silly window avoidance (RFC 9293, section 3.8.6.2.1, (3)).
            let worth = tail > 0 && (pushed || tail >= self.max_wnd / 2);
            return if worth { Piece { len, ..whole } } else { whole };
        }
        if self.marks & (mark::FIN | mark::FIN_SENT) == mark::FIN {
            // The FIN has a number of its own, for which the window needs room. It never waits for company.
            return Piece { len, fin: window > len, congested: false };
        }
        if tail == 0 {
            return whole;
        }
        // All that is committed would go out. What lies behind the last push boundary may wait for more.
        let at = self.at(self.nxt);
        let mut tail_len = tail;
        if !pushed {
            if self.marks & mark::CORK != 0 {
                return whole;
            }
            if self.push < self.end && self.marks & mark::MORE != 0 {
                tail_len = self.push.saturating_sub(at + u64::from(whole.len)) as u32;
                if tail_len == 0 {
                    return whole;
                }
            }
            // Nagle, as Minshall has it and Linux does: only while a small segment is not acknowledged, another one waits.
            if self.marks & mark::NODELAY == 0 && self.una.before(self.small) && self.small.up_to(self.nxt) {
                return whole;
            }
        }
        Piece { len: whole.len + tail_len, ..whole }
    }

    /// The bits of a segment with `len` bytes from position `at` on. Where the last byte of a send call lies in it, it is pushed. So
    /// is what the port cuts: no segment of the next frame can be joined to its last, and the peer need not wait for one (Linux
    /// `__tcp_transmit_skb`).
    #[inline(always)]
    fn flags(&self, at: u64, len: u32) -> Flags {
        let pushed = self.push > at && self.push <= at + u64::from(len) || len > u32::from(self.mss);
        if pushed { Flags::ACK.with(Flags::PSH) } else { Flags::ACK }
    }

    /// Sends a piece of what was never sent, by a header that says the rest. Returns how many bytes of it the port took; what follows
    /// from that for our ACK is the caller's ([`Tcb::carried`]), and what follows if it took nothing ([`Tcb::refused`]).
    #[inline(always)]
    fn send_piece<C: Context>(
        &mut self,
        cx: &mut C,
        now: Time,
        header: &mut Header,
        piece: Piece,
    ) -> Result<u32, Refused> {
        let at = self.at(self.nxt);
        let mss = u32::from(self.mss);
        header.seq = self.nxt;
        header.flags = self.flags(at, piece.len);
        if piece.fin {
            header.flags = header.flags.with(Flags::FIN);
        }
        let cut = if piece.len > mss { self.mss } else { 0 };
        let sent = cx.transmit(header, at, piece.len, cut)?;
        let fin = piece.fin && sent.len == piece.len;
        if self.nxt == self.una {
            self.stalled = now;
        }
        let what = Transmission {
            seq: self.nxt,
            len: sent.len + u32::from(fin),
            cut: self.mss,
            syn: false,
            fin,
            number: sent.number,
        };
        self.recovery.sent(now, cx.flights(), &what);
        self.nxt += what.len;
        let small = sent.len < mss || piece.len > mss && sent.len % mss != 0;
        if fin {
            self.marks |= mark::FIN_SENT;
        }
        if sent.len > 0 {
            self.frames = sent.number + 1;
        }
        if small {
            self.small = self.nxt;
            if self.recovery.crowded() {
                self.marks |= mark::CROWDED;
            }
        }
        Ok(sent.len)
    }

    /// Sends again what is lost, as far as `allowance` goes. Returns whether something was sent.
    #[inline(never)]
    fn retransmit<C: Context>(&mut self, cx: &mut C, now: Time, lost: &Retransmit, allowance: u32) -> bool {
        let mss = u32::from(self.mss);
        let tso = cx.tso();
        let most = if tso > mss { tso - tso % mss } else { mss };
        let payload = lost.len - u32::from(lost.fin) - u32::from(lost.syn);
        let mut len = payload.min(most);
        if len > allowance {
            // Whole segments, as many as are allowed; less than one waits.
            len = if len > mss { allowance - allowance % mss } else { 0 };
            if len == 0 {
                return false;
            }
        }
        // A window that the peer has shrunk is respected, but for the oldest byte: it is the probe (tcp_retransmit_skb).
        let end = self.una + self.wnd;
        if lost.seq != self.una {
            if !lost.seq.before(end) {
                return false;
            }
            len = len.min(end.since(lost.seq));
        } else {
            len = len.min(self.wnd.max(mss));
        }
        let fin = lost.fin && len == payload;
        let at = self.at(lost.seq);
        let mut flags = self.flags(at, len);
        if fin {
            flags = flags.with(Flags::FIN);
        }
        let header = self.header(now, lost.seq, flags);
        let sent = match cx.transmit(&header, at, len, if len > mss { self.mss } else { 0 }) {
            Ok(sent) => sent,
            Err(refused) => {
                self.refused(cx, refused);
                return false;
            }
        };
        let fin = fin && sent.len == len;
        let what = Transmission {
            seq: lost.seq,
            len: sent.len + u32::from(fin),
            cut: self.mss,
            syn: false,
            fin,
            number: sent.number,
        };
        cx.count(Counter::TcpRetransmit);
        self.retransmits += 1;
        self.recovery.retransmitted(now, &what);
        if sent.len > 0 {
            self.frames = sent.number + 1;
        }
        self.carried(&header);
        true
    }

    /// A tail loss probe (RFC 8985, section 7.3): new payload if there is any, else the last segment again. Returns whether the
    /// port took it, or there was nothing to probe with.
    #[cold]
    fn tail_probe<C: Context>(&mut self, cx: &mut C, now: Time) -> bool {
        self.marks |= mark::PUSH_OUT;
        let piece = self.piece(self.unsent(), u32::from(self.mss), u32::from(self.mss));
        self.marks &= !mark::PUSH_OUT;
        let again = piece.is_nothing();
        let sent = if again {
            match self.recovery.probe() {
                Some(last) => self.retransmit(cx, now, &last, u32::from(self.mss)),
                None => {
                    self.marks &= !mark::TAIL_PROBE;
                    return true;
                }
            }
        } else {
            let mut header = self.header(now, self.nxt, Flags::ACK);
            match self.send_piece(cx, now, &mut header, piece) {
                Ok(_) => {
                    self.carried(&header);
                    true
                }
                Err(refused) => {
                    self.refused(cx, refused);
                    false
                }
            }
        };
        if sent {
            cx.count(Counter::TcpTailProbe);
            self.recovery.probed(now, again);
        }
        if self.marks & mark::BLOCKED == 0 {
            self.marks &= !mark::TAIL_PROBE;
        }
        self.phase < Phase::TimeWait && self.marks & mark::BLOCKED == 0
    }

    /// A segment with payload carried our ACK. Ranges that came ahead or twice it could not name: an ACK of its own does.
    #[inline]
    fn carried(&mut self, header: &Header) {
        self.ack_at = Time::NEVER;
        if self.has_news() {
            // Who answers with payload talks by turns: its ACKs need not hurry (Linux's "pingpong").
            if self.acked != self.rcv_nxt {
                self.quick = 0;
            }
            self.acknowledged(header);
        }
        if self.gaps.is_none() && self.marks & mark::DSACK == 0 {
            self.marks &= !mark::ACK;
        }
    }

    /// An ACK, or a probe: a segment from before the window, which the peer answers (RFC 9293, sections 3.8.4 and 3.8.6.1).
    #[inline]
    fn send_bare<C: Context>(&mut self, cx: &mut C) {
        let now = cx.now();
        if self.marks & mark::PROBE != 0 {
            let header = self.header(now, self.una - 1, Flags::ACK);
            match cx.transmit_bare(&header) {
                Ok(_) => {
                    self.marks &= !mark::PROBE;
                    self.acknowledged(&header);
                    if self.gaps.is_none() && self.marks & mark::DSACK == 0 {
                        self.marks &= !mark::ACK;
                    }
                }
                Err(refused) => return self.refused(cx, refused),
            }
            if self.marks & mark::ACK == 0 {
                return;
            }
        }
        let mut header = self.header(now, self.acceptable_seq(), Flags::ACK);
        self.add_blocks(&mut header);
        let result = cx.transmit_bare(&header);
        self.ack_sent(cx, &header, result);
    }

    /// The path takes segments with `mss` bytes of payload, TCP options not counted: an ICMP message (RFC 1191, RFC 8201) or the
    /// route says so.
    pub fn mtu(&mut self, mss: u16) {
        self.path_mss = mss.max(super::open::MSS_LEAST).min(self.mss_limit);
        // It is what a larger window must be worth.
        self.marks |= mark::ROOM;
        let mss = self.effective_mss();
        if mss != self.mss {
            self.mss = mss;
            self.recovery.mtu(mss);
            self.marks |= mark::SEND;
        }
    }
}
