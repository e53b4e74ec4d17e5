//! What our headers say: the window, the timestamps, what came ahead of order.

use super::Tcb;
use super::recovery::tick;
use super::tcb::mark;
use crate::time::Time;
use zstack_wire::Seq;
use zstack_wire::tcp::{Flags, Header, Timestamps};

impl Tcb {
    /// RCV.WND as the peer was told.
    #[inline]
    pub(super) fn offered(&self) -> u32 {
        self.rcv_edge.since(self.rcv_nxt)
    }

    /// The window to offer now, in bytes; one that a header can name, but for the SYN's.
    ///
    /// The right edge does not move back (RFC 9293, section 3.8.6.2.2), and moves on only by as much as is worth a segment:
    /// the smaller of our MSS and a quarter of the largest window. Half of it, as the RFC has it, would be too much: a holder who has
    /// read everything may tell of seven eighths only ([`Sockets::take_edge`](crate::sockets::Sockets::take_edge)), and a peer whose
    /// segments are larger than what it is offered waits while that is less than half. A scaled window can name only every `1 << scale`-th edge from RCV.NXT
    /// on: it is rounded up as far as there is room, for which `1 << scale` bytes are kept back (RFC 7323, section 2.4).
    #[inline]
    pub(super) fn window(&self) -> u32 {
        let scale = u32::from(self.rcv_scale);
        let slack = (1u32 << scale) - 1;
        let most = 0xffffu32 << scale;
        let offered = self.offered();
        let room = u32::try_from(self.room.wrapping_sub(self.rcv_at)).unwrap_or(u32::MAX);
        let usable = room.saturating_sub(slack).min(most) & !slack;
        if usable > offered && usable - offered >= u32::from(self.path_mss).min(self.rcv_max / 4).max(1) {
            return usable;
        }
        let up = (offered + slack) & !slack;
        if up <= room && up <= most { up } else { offered & !slack }
    }

    /// The same as it stands in a header that has no SYN.
    #[inline]
    pub(super) fn window_field(&self) -> u16 {
        let window = if self.has_news() { self.window() } else { self.offered() };
        debug_assert_eq!(window >> self.rcv_scale, self.window() >> self.rcv_scale, "a window that was not told");
        (window >> self.rcv_scale) as u16
    }

    /// Whether our next header may tell the peer more than the last one: something has arrived in order since, or there is more room.
    #[inline]
    pub(super) fn has_news(&self) -> bool {
        self.acked != self.rcv_nxt || self.marks & mark::ROOM != 0
    }

    /// A header of a synchronised connection, without SACK blocks.
    #[inline]
    pub(super) fn header(&self, now: Time, seq: Seq, flags: Flags) -> Header {
        Header {
            seq,
            ack: self.rcv_nxt,
            flags,
            window: self.window_field(),
            timestamps: self.stamps(now),
            ..Header::default()
        }
    }

    /// The timestamps option, where it is agreed upon.
    #[inline]
    pub(super) fn stamps(&self, now: Time) -> Option<Timestamps> {
        (self.marks & mark::STAMPS != 0)
            .then(|| Timestamps { value: tick(now).wrapping_add(self.stamp_offset), echo: self.recent })
    }

    /// The header of our SYN, or SYN-ACK. Its window is not scaled.
    pub(super) fn syn_header(&self, now: Time, answers: bool) -> Header {
        Header {
            seq: self.una,
            ack: if answers { self.rcv_nxt } else { Seq(0) },
            flags: if answers { Flags::SYN.with(Flags::ACK) } else { Flags::SYN },
            window: u16::try_from(self.room).unwrap_or(u16::MAX),
            mss: Some(self.our_mss),
            scale: (self.marks & mark::SCALING != 0).then_some(self.rcv_scale),
            sack_permitted: self.marks & mark::SACK != 0,
            timestamps: self.stamps(now),
            ..Header::default()
        }
    }

    /// Adds the ranges that came twice or ahead of order, as many as there is room for (RFC 2018, section 3; RFC 2883).
    #[inline]
    pub(super) fn add_blocks(&self, header: &mut Header) {
        if self.marks & mark::SACK == 0 {
            return;
        }
        let most = if self.marks & mark::STAMPS != 0 { 3 } else { 4 };
        let mut taken = 0;
        if self.marks & mark::DSACK != 0 {
            header.sack.push(self.dsack);
            taken = 1;
        }
        if let Some(gaps) = &self.gaps {
            gaps.blocks(&mut header.sack, most - taken);
        }
    }

    /// The port took a header with our ACK and window: what follows from it.
    #[inline]
    pub(super) fn acknowledged(&mut self, header: &Header) {
        self.acked = header.ack;
        let window = u32::from(header.window) << self.rcv_scale;
        self.rcv_edge = self.rcv_edge.later(header.ack + window);
        self.rcv_max = self.rcv_max.max(window);
        self.ack_at = Time::NEVER;
        self.marks &= !mark::ROOM;
    }

    /// The sequence number of a segment that carries nothing: SND.NXT, or the window's end where the peer has shrunk it and would
    /// not accept SND.NXT (tcp_acceptable_seq).
    #[inline]
    pub(super) fn acceptable_seq(&self) -> Seq {
        let end = self.una + self.wnd;
        let beyond = self.nxt.since(end);
        // The window's last bytes are lost to scaling: that is no shrinking.
        if end.before(self.nxt) && beyond >= 1 << self.snd_scale { end } else { self.nxt }
    }
}
