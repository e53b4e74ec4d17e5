//! A segment has arrived: the checks of RFC 9293, section 3.10.7, in their order, with those of RFC 5961 and RFC 7323. What
//! passes goes to the [acknowledgment](super::ack) and then to the [payload](super::receive).

use super::open::seconds;
use super::recovery::tick;
use super::tcb::mark;
use super::time_wait::{CHALLENGE, PAWS_IDLE, Verdict};
use super::{Cause, Context, Phase, Tcb};
use crate::counters::Counter;
use std::ops::Range;
use zstack_wire::tcp::{Flags, Header, Plain};

/// A keep-alive, or a probe of the window, has the very number before RCV.NXT, which nobody guesses: it is answered so often at most,
/// in milliseconds. The limit for guesses would leave a live peer's questions without an answer where they follow each other sooner
/// (it may ask twice, and give up).
const PROBED: u32 = 50;

impl Tcb {
    /// Takes a segment: `range` of `buffer` is its payload. Sends nothing but an RST that answers the segment itself; all else
    /// makes the connection [due](Tcb::due).
    pub fn segment<C: Context>(&mut self, cx: &mut C, header: &Header, buffer: C::Buffer, range: Range<usize>) {
        match header.plain() {
            Some(plain) if self.expects(&plain, range.len() as u32) => self.expected(cx, &plain, buffer, range),
            _ => self.checked(cx, header, buffer, range),
        }
    }

    /// Header prediction: whether this is the next segment in order, or a plain ACK, of an established connection. The checks of other
    /// segments would pass it in the same way. `len`: the length of its payload.
    #[inline(always)]
    pub fn expects(&self, plain: &Plain, len: u32) -> bool {
        let stamped = self.marks & mark::STAMPS != 0;
        let fresh = match plain.timestamps {
            Some(stamps) => stamped & (stamps.value.wrapping_sub(self.recent) as i32 >= 0),
            None => !stamped,
        };
        self.phase == Phase::Established
            && plain.seq == self.rcv_nxt
            && plain.ack.since(self.una) <= self.nxt.since(self.una)
            && len <= self.offered()
            && fresh
            && self.marks & (mark::PEER_FIN | mark::ABORT) == 0
    }

    /// Takes a segment that it [expects](Tcb::expects).
    #[inline(always)]
    pub fn expected<C: Context>(&mut self, cx: &mut C, plain: &Plain, buffer: C::Buffer, range: Range<usize>) {
        let now = cx.now();
        self.heard = now;
        self.keepalives = 0;
        if plain.seq == self.acked
            && let Some(stamps) = plain.timestamps
        {
            self.recent = stamps.value;
            self.recent_at = seconds(now);
        }
        if plain.ack != self.una || range.is_empty() {
            self.acknowledge(cx, &self.plain_acknowledgment(plain, range.len() as u32));
        } else {
            self.update_window(plain.seq, plain.ack, self.scaled(plain.window));
        }
        if !range.is_empty() {
            self.in_order(cx, buffer, range);
        }
    }

    /// All other segments.
    #[cold]
    fn checked<C: Context>(&mut self, cx: &mut C, header: &Header, buffer: C::Buffer, range: Range<usize>) {
        match self.phase {
            Phase::Closed => self.answer_with_reset(cx, header, range.len() as u32),
            Phase::TimeWait => self.in_time_wait(cx, header, range.len() as u32),
            _ if self.marks & mark::ABORT != 0 => {}
            Phase::Listen => self.in_listen(cx, header, range.len() as u32),
            Phase::SynSent => self.in_syn_sent(cx, header, range.len() as u32),
            _ => self.synchronised(cx, header, buffer, range),
        }
    }

    fn synchronised<C: Context>(&mut self, cx: &mut C, header: &Header, buffer: C::Buffer, range: Range<usize>) {
        let now = cx.now();
        let flags = header.flags;
        let len = range.len() as u32;
        let end = header.seq + len + u32::from(flags.has(Flags::SYN)) + u32::from(flags.has(Flags::FIN));

        // PAWS comes before the numbers (RFC 7323, section 5.3, R1). A segment without the option is taken though the RFC says
        // SHOULD NOT: Linux and FreeBSD take it, since middleboxes strip it.
        let stamps = header.timestamps.filter(|_| self.marks & mark::STAMPS != 0);
        if let Some(stamps) = stamps
            && !flags.has(Flags::RST)
            && (stamps.value.wrapping_sub(self.recent) as i32) < 0
            && seconds(now).wrapping_sub(self.recent_at) < PAWS_IDLE
        {
            cx.count(Counter::TcpPaws);
            self.answer_old(cx, header, len);
            return;
        }

        // First, the sequence number. The left edge is the last ACK we sent, not RCV.NXT: a segment that another one, which our
        // ACK does not cover yet, has overtaken carries an ACK number worth having (tcp_sequence).
        if end.before(self.acked) || self.rcv_edge.before(header.seq) {
            if flags.has(Flags::RST) {
                cx.count(Counter::TcpResetOutside);
            } else if self.again_syn(header, len) {
                self.marks |= mark::SYN;
            } else if flags.has(Flags::SYN) {
                self.challenge(cx);
            } else {
                cx.count(match (end.before(self.acked), len) {
                    (false, _) => Counter::TcpOutside,
                    (true, 0) => Counter::TcpOld,
                    (true, _) => Counter::TcpDuplicate,
                });
                if let Some(stamps) = stamps
                    && len > 0
                    && self.repeats(header)
                {
                    // What the ACK that was lost did not tell: RFC 7323, section 4.3, (2), asks for no more than SEG.SEQ <=
                    // Last.ACK.sent. Linux does not look at such a segment's option any more; the next ACK echoes what came before
                    // it then, and a peer that takes the whole time for a round trip waits for minutes after the next loss.
                    self.recent = stamps.value;
                    self.recent_at = seconds(now);
                }
                self.answer_old(cx, header, len);
            }
            return;
        }

        // Second, RST: only the exact number resets (RFC 5961, section 3.2).
        if flags.has(Flags::RST) {
            if header.seq == self.rcv_nxt {
                cx.count(Counter::TcpReset);
                // As tcp_reset tells them apart, but for a simultaneous open, of which Linux says ECONNRESET: RFC 9293, section
                // 3.10.7.4, second, wants "connection refused" where we came from SYN-SENT.
                let cause = match self.phase {
                    Phase::SynReceived if self.marks & mark::PASSIVE == 0 => Cause::Refused,
                    Phase::CloseWait => Cause::Broken,
                    _ => Cause::Reset,
                };
                self.end_with(cx, cause);
            } else {
                cx.count(Counter::TcpResetInside);
                self.challenge(cx);
                if self.marks & mark::ACK == 0 {
                    // A peer that is gone says so once, and again only if it is answered: the limit puts the answer off.
                    let passed = tick(now).wrapping_sub(self.challenged);
                    self.ack_at = self.ack_at.min(now.after_millis(u64::from(CHALLENGE.saturating_sub(passed))));
                }
            }
            return;
        }

        // Fourth, SYN: a peer that has restarted answers the challenge with an RST that fits (RFC 5961, section 4.2). The SYN-ACK
        // of a simultaneous open is the exception: both sides sent theirs, and it acknowledges ours.
        if flags.has(Flags::SYN) {
            let crossing = self.phase == Phase::SynReceived
                && flags.has(Flags::ACK)
                && header.seq + 1 == self.rcv_nxt
                && header.ack == self.nxt
                && end == self.rcv_nxt;
            if self.again_syn(header, len) {
                self.marks |= mark::SYN;
                return;
            }
            if !crossing {
                cx.count(Counter::TcpSynInside);
                self.challenge(cx);
                return;
            }
        }

        // Fifth, ACK.
        if !flags.has(Flags::ACK) {
            cx.count(Counter::TcpNoAck);
            return;
        }
        let (ack, unacked) = (header.ack, self.nxt.since(self.una));
        let ahead = ack.since(self.una);
        if self.phase == Phase::SynReceived {
            if ahead == 0 || ahead > unacked {
                cx.count(Counter::TcpAckInvalid);
                self.answer_with_reset(cx, header, len);
                return;
            }
        } else if ahead > unacked {
            // RFC 5961, section 5.2: an ACK older than the largest window ever offered, or of what was never sent, is a guess.
            let behind = self.una.since(ack);
            if behind > self.max_wnd {
                cx.count(Counter::TcpAckInvalid);
                self.challenge(cx);
                return;
            }
        }
        if let Some(stamps) = stamps
            && header.seq.up_to(self.acked)
        {
            // RFC 7323, section 4.3, (2).
            self.recent = stamps.value;
            self.recent_at = seconds(now);
        }
        self.heard = now;
        self.keepalives = 0;
        if self.phase == Phase::SynReceived {
            self.establish(cx);
        }
        if ahead <= unacked {
            self.acknowledge(cx, &self.acknowledgment(header, len + u32::from(flags.has(Flags::FIN))));
        }
        if self.phase >= Phase::TimeWait {
            // The ACK of our FIN ended the connection, or all but; a FIN that comes with it was seen before.
            return;
        }

        // Sixth, URG: the bytes stay in line (RFC 6093); it is counted.
        if flags.has(Flags::URG) {
            cx.count(Counter::TcpUrgent);
        }

        // Seventh and eighth, payload and FIN.
        if len > 0 || flags.has(Flags::FIN) {
            self.payload(cx, header, buffer, range);
        }
    }

    /// Whether this is the peer's SYN once more, to a SYN-ACK that it did not get: it is sent again.
    fn again_syn(&self, header: &Header, len: u32) -> bool {
        self.phase == Phase::SynReceived
            && header.flags.has(Flags::SYN)
            && !header.flags.has(Flags::ACK)
            && header.seq + 1 == self.rcv_nxt
            && len == 0
    }

    /// Answers an unacceptable segment with an ACK, and reports payload that came twice (RFC 2883). Segments without payload are
    /// answered no more often than challenges are: two ends that disagree would answer each other for ever. So are those that
    /// the peer cannot have sent, since they lie beyond every window that it was offered, or further back than the largest one
    /// reaches: guesses would have us send it duplicate ACKs, and tell it of duplicates that it never sent.
    fn answer_old<C: Context>(&mut self, cx: &mut C, header: &Header, len: u32) {
        if len == 0 || self.beyond(header) {
            let probe = len == 0 && header.seq + 1 == self.rcv_nxt;
            if !self.limit(cx, if probe { PROBED } else { CHALLENGE }) {
                self.marks |= mark::ACK;
            }
            return;
        }
        if header.seq.before(self.rcv_nxt) {
            self.duplicate(zstack_wire::tcp::Range {
                left: header.seq,
                right: (header.seq + len).earlier(self.rcv_nxt),
            });
        }
        self.marks |= mark::ACK;
    }

    /// Whether a segment that is not in order lies where the peer has never sent: in no window that it was offered, nor as far behind as
    /// one reaches.
    fn beyond(&self, header: &Header) -> bool {
        self.rcv_nxt.since(header.seq) > self.rcv_max.max(0xffff).saturating_add(0xffff)
    }

    /// Whether a segment that came before, or claims to have, is the peer's: both its numbers must be near ours, as those of segments
    /// in order must (RFC 5961, section 5.2).
    fn repeats(&self, header: &Header) -> bool {
        let plausible =
            header.ack.since(self.una) <= self.nxt.since(self.una) || self.una.since(header.ack) <= self.max_wnd;
        header.flags.has(Flags::ACK) && plausible && !self.beyond(header)
    }

    /// A challenge ACK (RFC 5961), unless one was sent just before.
    pub(super) fn challenge<C: Context>(&mut self, cx: &mut C) {
        if self.limit(cx, CHALLENGE) {
            cx.count(Counter::TcpChallengeLimited);
        } else {
            cx.count(Counter::TcpChallenge);
            self.marks |= mark::ACK;
        }
    }

    /// Whether the limit forbids another answer so soon. It is the connection's own: a common one tells others how busy it is
    /// (CVE-2016-5696).
    fn limit<C: Context>(&mut self, cx: &mut C, interval: u32) -> bool {
        let now = tick(cx.now());
        if now.wrapping_sub(self.challenged) < interval {
            return true;
        }
        self.challenged = now;
        false
    }

    /// A connection that is in TIME-WAIT, and still has its name because the port has not read all of its memory.
    fn in_time_wait<C: Context>(&mut self, cx: &mut C, header: &Header, len: u32) {
        let Some(mut rest) = self.time_wait() else { return };
        cx.count(Counter::TimeWaitSegment);
        match rest.segment(cx.now(), header, len) {
            Verdict::Answer(_) | Verdict::Only(_) => {
                self.marks |= mark::ACK;
                self.challenged = tick(cx.now());
            }
            Verdict::Drop | Verdict::Restart | Verdict::Reuse(_) => {}
            Verdict::Forget => self.phase = Phase::Closed,
        }
    }
}
