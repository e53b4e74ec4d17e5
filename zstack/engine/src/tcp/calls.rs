//! What the holder of a connection may call at any time: nothing here sends or tells; it marks the connection due.

use super::tcb::{Marks, mark};
use super::{Info, Options, Phase, Stamps, State, Tcb};
use crate::time::{Micros, Time};
use zstack_wire::Seq;

impl Tcb {
    /// The outgoing stream reaches to `end` now; `push`: it is to be sent without waiting for more. Nothing happens where `end`
    /// was reached before, or after [`shutdown`](Tcb::shutdown). What is not to be sent without more waits until more is committed, an
    /// ACK comes (as Linux has it: MSG_MORE speaks of the call alone), or it has waited for an RTO.
    #[inline]
    pub fn commit(&mut self, end: u64, push: bool) {
        if self.marks & mark::FIN != 0 {
            return;
        }
        self.end = self.end.max(end);
        if push {
            self.push = self.end;
        } else {
            self.marks |= mark::MORE;
        }
        self.marks |= mark::SEND;
    }

    /// The incoming stream has room up to `edge`; a lower edge than before is not taken.
    #[inline]
    pub fn room(&mut self, edge: u64) {
        if edge <= self.room {
            return;
        }
        self.room = edge;
        self.marks |= mark::ROOM;
        self.tell_room();
    }

    /// Tells the peer of more room, if it is so much more that it should know.
    pub(super) fn tell_room(&mut self) {
        // A window that was at least half open lets the peer go on until the next ACK tells the new one. One that was not is told
        // at once when it can be twice as large, not for every byte that is read (tcp_cleanup_rbuf); or sooner, where it may be less
        // than one of the peer's segments, for which it would wait ([`Tcb::window`]).
        let offered = self.offered();
        let more = if offered < u32::from(self.our_mss) { offered.min(self.rcv_max / 4) } else { offered };
        if self.phase >= Phase::Established
            && self.phase < Phase::TimeWait
            && self.marks & mark::PEER_FIN == 0
            && offered < self.rcv_max / 2
            && self.window() >= offered.saturating_add(more.max(1))
        {
            self.marks |= mark::ACK;
        }
    }

    /// The outgoing stream ends at what was committed: a FIN follows it.
    pub fn shutdown(&mut self) {
        if self.marks & mark::FIN != 0 || self.phase >= Phase::TimeWait {
            return;
        }
        self.marks |= mark::FIN | mark::SEND;
        self.push = self.end;
        self.closing();
    }

    /// The state that follows from our CLOSE, where the connection stands: "in any case", before the FIN is sent (RFC 9293, section
    /// 3.10.4).
    pub(super) fn closing(&mut self) {
        match self.phase {
            Phase::Established => self.phase = Phase::FinWait1,
            Phase::CloseWait => self.phase = Phase::LastAck,
            _ => {}
        }
    }

    /// Nobody reads what still arrives, and nothing more is sent than was committed. `unread`: there is payload that was published
    /// and not read; the peer is told by RST that it was lost (RFC 2525, section 2.17), which is what [`abort`](Tcb::abort) does.
    /// So it is where [`Options::linger`] is 0 (SO_LINGER in socket(7)). Before the connection stands, it is given up.
    pub fn close(&mut self, unread: bool) {
        if unread || self.linger == 0 || self.phase == Phase::Listen || self.phase == Phase::SynSent {
            self.abort();
            return;
        }
        self.shutdown();
        self.marks |= mark::CLOSED | mark::SEND;
    }

    /// The connection ends now; the peer gets an RST where it could think that there is a connection.
    pub fn abort(&mut self) {
        if self.marks & mark::ENDED == 0 {
            self.marks |= mark::ABORT;
        }
    }

    /// Answers the SYN of a deferred listener's connection.
    pub fn accept(&mut self) {
        if self.phase == Phase::Listen {
            self.phase = Phase::SynReceived;
            self.marks |= mark::SYN;
        }
    }

    /// Refuses it: the peer gets an RST.
    pub fn refuse(&mut self) {
        if self.phase == Phase::Listen {
            self.abort();
        }
    }

    /// Gives it up without a word: the peer sends its SYN again, as one that came to a full backlog.
    pub fn ignore(&mut self) {
        if self.phase == Phase::Listen {
            self.marks |= mark::SILENT;
            self.abort();
        }
    }

    /// Takes other settings. Those that only a SYN can carry, and the congestion control, stay as they were.
    pub fn set_options(&mut self, options: &Options) {
        self.keepalive_idle = options.keepalive_idle;
        self.keepalive_interval = options.keepalive_interval.max(1);
        self.keepalive_count = options.keepalive_count.max(1);
        self.user_timeout = options.user_timeout;
        self.linger = options.linger;
        self.fin_wait = options.fin_wait;
        let mut set = |on: bool, mark: Marks| if on { self.marks |= mark } else { self.marks &= !mark };
        set(options.nodelay, mark::NODELAY);
        set(options.cork, mark::CORK);
        set(options.keepalive, mark::KEEPALIVE);
        self.marks |= mark::SEND;
        if options.nodelay {
            // What waits goes out, even where it is corked (TCP_NODELAY in tcp(7)).
            self.marks |= mark::PUSH_OUT;
        }
    }

    /// Whether the next call of [`output`](Tcb::output) has something to do.
    #[inline]
    pub fn due(&self) -> bool {
        self.marks & mark::DUE != 0
    }

    /// The state.
    #[inline]
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// Whether the connection was opened by the peer.
    #[inline]
    pub fn passive(&self) -> bool {
        self.marks & mark::PASSIVE != 0
    }

    /// Whether [`Event::Free`](super::Event::Free) was told: nothing more comes of it.
    #[inline]
    pub fn freed(&self) -> bool {
        self.marks & mark::FREED != 0
    }

    /// Whether this number was sent and not acknowledged: what an ICMP error must quote to be believed (RFC 5927, section 4.1).
    #[inline]
    pub fn in_flight(&self, seq: Seq) -> bool {
        self.marks & mark::ENDED == 0 && seq.within(self.una, self.nxt.since(self.una))
    }

    /// Whether the port, which has completed so many frames, may read the connection's memory yet.
    #[inline]
    pub fn unread(&self, completed: u64) -> bool {
        self.frames > completed
    }

    /// The connection as data from which [`Tcb::adopt`] builds another; `None`: it is not synchronised, or an RST is about to end it.
    pub fn state(&self) -> Option<State> {
        let stands = (Phase::Established..=Phase::LastAck).contains(&self.phase) && self.marks & mark::ABORT == 0;
        stands.then(|| State {
            phase: self.phase,
            una: self.una,
            nxt: self.nxt,
            una_position: self.una_at,
            end: self.end,
            fin: self.marks & mark::FIN != 0,
            closed: self.marks & mark::CLOSED != 0,
            wnd: self.wnd,
            max_wnd: self.max_wnd,
            wl1: self.wl1,
            wl2: self.wl2,
            rcv_nxt: self.rcv_nxt,
            rcv_position: self.rcv_at,
            // A challenge that the limit has put off is due, too, and says nothing new.
            acked: if self.acked == self.rcv_nxt && self.ack_at != Time::NEVER { self.rcv_nxt - 1 } else { self.acked },
            rcv_edge: self.rcv_edge,
            room: self.room,
            rcv_max: self.rcv_max,
            mss: self.peer_mss,
            scales: (self.marks & mark::SCALING != 0).then_some((self.snd_scale, self.rcv_scale)),
            sack: self.marks & mark::SACK != 0,
            stamps: (self.marks & mark::STAMPS != 0)
                .then_some(Stamps { recent: self.recent, offset: self.stamp_offset }),
        })
    }

    /// The connection for whoever looks at it.
    pub fn info(&self) -> Info {
        let unacked = self.nxt.since(self.una);
        let sent = self.una_at.wrapping_add(u64::from(unacked)).min(self.end);
        Info {
            phase: self.phase,
            cause: self.cause,
            acknowledged: if self.una_at == u64::MAX { 0 } else { self.una_at.min(self.end) },
            in_flight: unacked,
            unsent: if self.una_at == u64::MAX { self.end } else { self.end - sent },
            received: if self.rcv_at == u64::MAX { 0 } else { self.rcv_at },
            gaps: self.gaps.as_ref().map_or(0, |gaps| gaps.len() as u8),
            sacked: self.recovery.info().sacked,
            window: self.wnd,
            offered: if self.rcv_at == u64::MAX { 0 } else { self.offered() },
            mss: self.mss,
            cwnd: self.recovery.cwnd(),
            ssthresh: self.recovery.ssthresh(),
            srtt: self.recovery.srtt().unwrap_or(Micros(0)),
            rttvar: self.recovery.rttvar(),
            rto: self.recovery.rto(),
            retransmits: self.retransmits,
            scales: (self.marks & mark::SCALING != 0).then_some((self.snd_scale, self.rcv_scale)),
            sack: self.marks & mark::SACK != 0,
            timestamps: self.marks & mark::STAMPS != 0,
        }
    }
}
