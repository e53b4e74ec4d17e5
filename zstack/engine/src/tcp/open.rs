//! How a connection comes to be: by our SYN, by the peer's, from a cookie, or taken over from somebody else.

use super::recovery::{Recovery, Transmission};
use super::tcb::mark;
use super::{Context, Contradiction, Cookie, Options, Phase, Start, State, Tcb};
use crate::time::Time;
use zstack_wire::Seq;
use zstack_wire::tcp::{Header, Range};

/// What a peer takes that names no MSS (RFC 9293, section 3.7.1; Linux too has 536 for both versions of IP).
pub(crate) const MSS_DEFAULT: u16 = 536;

/// No peer makes our segments smaller, options not counted: tiny ones cost both sides more than they carry (CVE-2019-11479). Linux has
/// the same, `tcp_min_snd_mss`: all options, and eight bytes.
pub(crate) const MSS_LEAST: u16 = 48;

/// What the timestamps option takes, padded (RFC 7323, appendix A).
pub(super) const STAMPS_LEN: u16 = 12;

/// The largest window scale (RFC 7323, section 2.3).
pub(super) const SCALE_MOST: u8 = 14;

/// ACKs that are sent at once at the start of a connection, so that the peer's slow start is not held up; Linux
/// (`TCP_MAX_QUICKACKS`) has as many.
pub(super) const QUICK: u8 = 16;

/// What became of our FIN.
struct Fin {
    sent: bool,
    acknowledged: bool,
}

/// Whether a connection can have these numbers.
fn consistent(state: &State) -> Result<Fin, Contradiction> {
    if !(Phase::Established..=Phase::LastAck).contains(&state.phase) {
        return Err(Contradiction::Phase(state.phase));
    }
    let unacked = state.nxt.since(state.una);
    if unacked >= 1 << 30 {
        return Err(Contradiction::Flight(unacked));
    }
    let uncommitted = Contradiction::Uncommitted(unacked, state.una_position, state.end);
    let nxt = state.una_position.checked_add(u64::from(unacked)).ok_or(uncommitted)?;
    let behind = state.end.checked_add(1).ok_or(uncommitted)?;
    let sent = state.fin && unacked > 0 && nxt == behind;
    let acknowledged = state.phase == Phase::FinWait2 && unacked == 0 && state.una_position == behind;
    if nxt - u64::from(sent) > state.end && !acknowledged {
        return Err(uncommitted);
    }
    let closing = matches!(state.phase, Phase::FinWait1 | Phase::FinWait2 | Phase::Closing | Phase::LastAck);
    if state.fin != closing || state.phase == Phase::FinWait2 && !acknowledged {
        return Err(Contradiction::Fin(state.phase));
    }
    if state.closed && !state.fin {
        return Err(Contradiction::Closed(state.phase));
    }
    let room = state.room.checked_sub(state.rcv_position);
    let room = room.ok_or(Contradiction::Room(state.rcv_position, state.room))?;
    let unsaid = state.rcv_nxt.since(state.acked);
    if unsaid > 1 << 30 {
        return Err(Contradiction::Unsaid(unsaid));
    }
    let offered = state.rcv_edge.since(state.rcv_nxt);
    if u64::from(offered) > room.min(1 << 30) {
        return Err(Contradiction::Offered(offered, room));
    }
    let (theirs, ours) = state.scales.unwrap_or((0, 0));
    if theirs.max(ours) > SCALE_MOST {
        return Err(Contradiction::Scale(theirs.max(ours)));
    }
    // A unit is kept back for rounding: see Tcb::window. A ring that is full for the moment had more room before.
    let most = room.max(u64::from(state.rcv_max));
    if ours > 0 && most < (2 << ours) - 1 {
        return Err(Contradiction::Unit(ours, most));
    }
    Ok(Fin { sent, acknowledged })
}

impl Tcb {
    /// A connection to be opened by us: the next [`output`](Tcb::output) sends the SYN.
    pub fn open(now: Time, options: &Options, start: &Start) -> Tcb {
        let mut tcb = Tcb::new(now, options, start);
        tcb.phase = Phase::SynSent;
        tcb.marks |= mark::SYN;
        tcb
    }

    /// A connection from a peer's SYN (no ACK, no RST; the holder has checked this). The next [`output`](Tcb::output) sends the
    /// SYN-ACK; if `deferred`, it tells [`Event::Asked`](super::Event::Asked) instead, and the SYN-ACK waits for
    /// [`accept`](Tcb::accept). What payload the SYN has is not taken: the peer sends it again.
    pub fn incoming(now: Time, options: &Options, start: &Start, syn: &Header, deferred: bool) -> Tcb {
        let mut tcb = Tcb::new(now, options, start);
        tcb.marks |= mark::PASSIVE;
        tcb.synchronise(now, syn);
        if deferred {
            tcb.phase = Phase::Listen;
            tcb.marks |= mark::ASK;
        } else {
            tcb.phase = Phase::SynReceived;
            tcb.marks |= mark::SYN;
        }
        tcb
    }

    /// The connection whose SYN-ACK carried a cookie that `ack` brings back: `start.iss` is the cookie. It is in SYN-RECEIVED;
    /// `ack` is then given to [`segment`](Tcb::segment), which establishes it.
    pub fn from_cookie(now: Time, options: &Options, start: &Start, ack: &Header, cookie: &Cookie) -> Tcb {
        let mut tcb = Tcb::new(now, options, start);
        let syn = Header {
            seq: ack.seq - 1,
            // The SYN's window was not kept; the ACK's counts as soon as it is taken.
            window: 0,
            mss: Some(cookie.mss),
            scale: cookie.scales.map(|(theirs, _)| theirs),
            sack_permitted: cookie.sack,
            timestamps: if cookie.stamps { ack.timestamps } else { None },
            ..Header::default()
        };
        tcb.marks |= mark::PASSIVE;
        tcb.synchronise(now, &syn);
        if let Some((_, ours)) = cookie.scales {
            tcb.rcv_scale = ours.min(SCALE_MOST);
        }
        tcb.phase = Phase::SynReceived;
        tcb.nxt = start.iss + 1;
        tcb
    }

    /// A synchronised connection from its numbers. What lies between `una` and `nxt` counts as sent just now, so that it is sent
    /// again if the peer does not acknowledge it.
    ///
    /// # Errors
    /// `state` contradicts itself.
    pub fn adopt<C: Context>(cx: &mut C, options: &Options, mss: u16, state: &State) -> Result<Tcb, Contradiction> {
        let now = cx.now();
        let unacked = state.nxt.since(state.una);
        let Fin { sent: fin_sent, acknowledged: fin_acknowledged } = consistent(state)?;
        let stamp_offset = state.stamps.map_or(0, |s| s.offset);
        let start = Start { iss: state.una, stamp_offset, mss, port_mss: mss, room: state.room };
        let mut tcb = Tcb::new(now, options, &start);
        tcb.phase = state.phase;
        (tcb.una, tcb.nxt, tcb.una_at, tcb.end, tcb.push) =
            (state.una, state.nxt, state.una_position, state.end, state.end);
        tcb.released = state.una_position.min(state.end);
        (tcb.wnd, tcb.max_wnd, tcb.wl1, tcb.wl2) = (state.wnd, state.max_wnd.max(state.wnd), state.wl1, state.wl2);
        (tcb.rcv_nxt, tcb.rcv_at, tcb.rcv_edge, tcb.acked) =
            (state.rcv_nxt, state.rcv_position, state.rcv_edge, state.acked);
        // The room is what lies behind what was published, not the whole stream.
        let room = u32::try_from(state.room - state.rcv_position).unwrap_or(u32::MAX).min(0xffff);
        tcb.rcv_max = room.max(state.rcv_edge.since(state.rcv_nxt)).max(state.rcv_max);
        tcb.peer_mss = state.mss.max(MSS_LEAST);
        tcb.marks &= !(mark::STAMPS | mark::SACK | mark::SCALING);
        (tcb.snd_scale, tcb.rcv_scale) = state.scales.unwrap_or((0, 0));
        if state.scales.is_some() {
            tcb.marks |= mark::SCALING;
        }
        if state.sack {
            tcb.marks |= mark::SACK;
        }
        if let Some(stamps) = state.stamps {
            tcb.marks |= mark::STAMPS;
            tcb.recent = stamps.recent;
            tcb.recent_at = seconds(now);
        }
        if state.fin {
            tcb.marks |= mark::FIN;
        }
        if state.closed {
            tcb.marks |= mark::CLOSED;
        }
        if fin_sent || fin_acknowledged {
            tcb.marks |= mark::FIN_SENT;
        }
        if matches!(state.phase, Phase::CloseWait | Phase::Closing | Phase::LastAck) {
            tcb.marks |= mark::PEER_FIN;
            tcb.peer_fin = state.rcv_nxt - 1;
        }
        tcb.negotiated();
        if unacked > 0 {
            let what =
                Transmission { seq: state.una, len: unacked, cut: tcb.mss, syn: false, fin: fin_sent, number: 0 };
            tcb.recovery.sent(now, cx.flights(), &what);
            tcb.recovery.watch_tail(now);
            tcb.stalled = now;
        }
        tcb.quick = 0;
        tcb.marks |= mark::SEND;
        if state.acked != state.rcv_nxt {
            tcb.marks |= mark::ACK;
        }
        tcb.tell_room();
        Ok(tcb)
    }

    /// What all have in common: numbers of our side, and what our options offer.
    fn new(now: Time, options: &Options, start: &Start) -> Tcb {
        let mss_limit = if options.mss > 0 { options.mss.max(MSS_LEAST) } else { u16::MAX };
        let path_mss = start.mss.max(MSS_LEAST).min(mss_limit);
        let mut tcb = Tcb {
            una_at: u64::MAX,
            end: 0,
            push: 0,
            released: 0,
            rcv_at: u64::MAX,
            room: start.room,
            ack_at: Time::NEVER,
            probe_at: Time::NEVER,
            life_at: Time::NEVER,
            heard: now,
            stalled: now,
            kept: now,
            frames: 0,
            gaps: None,
            recovery: Recovery::new(path_mss, options.congestion),
            una: start.iss,
            nxt: start.iss,
            wnd: 0,
            max_wnd: 0,
            wl1: Seq(0),
            wl2: start.iss,
            small: start.iss,
            rcv_nxt: Seq(0),
            rcv_edge: Seq(0),
            acked: Seq(0),
            rcv_max: u32::try_from(start.room).unwrap_or(u32::MAX).min(0xffff),
            peer_fin: Seq(0),
            dsack: Range::default(),
            marks: mark::ROOM,
            recent: 0,
            recent_at: 0,
            stamp_offset: start.stamp_offset,
            // A second ago: the first challenge is not too early.
            challenged: ((now.0 / 1000) as u32).wrapping_sub(1000),
            keepalive_idle: 0,
            keepalive_interval: 0,
            user_timeout: 0,
            linger: 0,
            fin_wait: 0,
            retransmits: 0,
            path_mss,
            mss_limit,
            our_mss: start.port_mss.max(MSS_LEAST).min(mss_limit),
            peer_mss: MSS_DEFAULT,
            mss: MSS_DEFAULT.min(path_mss),
            rcv_mss: MSS_DEFAULT.min(path_mss),
            snd_scale: 0,
            rcv_scale: 0,
            phase: Phase::Closed,
            cause: None,
            soft: None,
            quick: QUICK,
            tries: 0,
            backoff: 0,
            keepalives: 0,
            keepalive_count: 0,
        };
        tcb.set_options(options);
        if options.timestamps {
            tcb.marks |= mark::STAMPS;
        }
        if options.sack {
            tcb.marks |= mark::SACK;
        }
        if options.scaling {
            tcb.marks |= mark::SCALING;
            tcb.rcv_scale = scale_for(options.most_room(start.room));
        }
        tcb
    }

    /// Takes the numbers and options of the peer's SYN or SYN-ACK.
    pub(super) fn synchronise(&mut self, now: Time, syn: &Header) {
        self.rcv_nxt = syn.seq + 1;
        self.rcv_at = 0;
        self.acked = self.rcv_nxt;
        self.rcv_edge = self.rcv_nxt + self.rcv_max;
        // The window of a SYN is never scaled (RFC 7323, section 2.2).
        self.wnd = u32::from(syn.window);
        self.max_wnd = self.wnd;
        self.wl1 = syn.seq;
        self.peer_mss = syn.mss.unwrap_or(MSS_DEFAULT).max(MSS_LEAST);
        match syn.scale {
            Some(scale) if self.marks & mark::SCALING != 0 => self.snd_scale = scale.min(SCALE_MOST),
            _ => {
                self.marks &= !mark::SCALING;
                self.rcv_scale = 0;
            }
        }
        if !syn.sack_permitted {
            self.marks &= !mark::SACK;
        }
        match syn.timestamps {
            Some(stamps) if self.marks & mark::STAMPS != 0 => {
                self.recent = stamps.value;
                self.recent_at = seconds(now);
            }
            _ => self.marks &= !mark::STAMPS,
        }
        self.negotiated();
    }

    /// The sizes that follow from what was agreed upon.
    fn negotiated(&mut self) {
        self.mss = self.effective_mss();
        self.rcv_mss = self.rcv_mss.min(self.path_mss);
        self.recovery.negotiated(self.mss, self.marks & mark::SACK != 0);
    }

    /// The largest payload of a segment (RFC 9293, section 3.7.1; RFC 6691).
    pub(super) fn effective_mss(&self) -> u16 {
        let options = if self.marks & mark::STAMPS != 0 { STAMPS_LEN } else { 0 };
        self.peer_mss.min(self.path_mss) - options
    }
}

/// The smallest scale with which the whole room can be offered (RFC 7323, section 2.3).
pub fn scale_for(room: u64) -> u8 {
    let mut scale = 0;
    while scale < SCALE_MOST && room >> scale > 0xffff {
        scale += 1;
    }
    scale
}

/// The clock of TS.Recent's age.
pub(super) fn seconds(now: Time) -> u32 {
    (now.0 / 1_000_000) as u32
}
