//! The states of a connection, and a connection as plain data.

use super::Cause;
use super::open::SCALE_MOST;
use crate::time::Micros;
use serde::{Deserialize, Serialize};
use zstack_wire::Seq;

/// The state of a connection (RFC 9293, section 3.3.2).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[repr(u8)]
pub enum Phase {
    /// A SYN has come and its answer is withheld (deferred listeners): for the peer we are still in LISTEN.
    Listen,
    /// SYN-SENT.
    SynSent,
    /// SYN-RECEIVED.
    SynReceived,
    /// ESTABLISHED.
    Established,
    /// CLOSE-WAIT.
    CloseWait,
    /// FIN-WAIT-1.
    FinWait1,
    /// FIN-WAIT-2.
    FinWait2,
    /// CLOSING.
    Closing,
    /// LAST-ACK.
    LastAck,
    /// TIME-WAIT.
    TimeWait,
    /// CLOSED.
    Closed,
}

impl Phase {
    /// Its name, as of ss(8) and in RFC 9293, in small letters.
    pub fn name(self) -> &'static str {
        match self {
            Phase::Listen => "listen",
            Phase::SynSent => "syn-sent",
            Phase::SynReceived => "syn-received",
            Phase::Established => "established",
            Phase::CloseWait => "close-wait",
            Phase::FinWait1 => "fin-wait-1",
            Phase::FinWait2 => "fin-wait-2",
            Phase::Closing => "closing",
            Phase::LastAck => "last-ack",
            Phase::TimeWait => "time-wait",
            Phase::Closed => "closed",
        }
    }
}

/// Both ends' timestamps, where they were agreed upon (RFC 7323).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Stamps {
    /// TS.Recent.
    pub recent: u32,
    /// What our clock, in milliseconds, is added to for TSval.
    pub offset: u32,
}

/// A synchronised connection as plain data: what [`Tcb::adopt`](super::Tcb::adopt) builds one from. Bytes between `una` and
/// `nxt` count as sent, by somebody else.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct State {
    /// From ESTABLISHED to LAST-ACK.
    pub phase: Phase,
    /// SND.UNA.
    pub una: Seq,
    /// SND.NXT.
    pub nxt: Seq,
    /// The position in the outgoing stream of the byte with number `una`.
    pub una_position: u64,
    /// The position up to which the outgoing stream is committed.
    pub end: u64,
    /// Whether a FIN follows there.
    pub fin: bool,
    /// Whether the holder has closed it: nobody reads what still comes, and payload that does is answered with RST. The times of
    /// [`Options::linger`](super::Options::linger) and [`Options::fin_wait`](super::Options::fin_wait) begin anew with the adoption.
    #[serde(default)]
    pub closed: bool,
    /// SND.WND, in bytes.
    pub wnd: u32,
    /// The largest window that the peer ever offered, in bytes.
    pub max_wnd: u32,
    /// SND.WL1.
    pub wl1: Seq,
    /// SND.WL2.
    pub wl2: Seq,
    /// RCV.NXT.
    pub rcv_nxt: Seq,
    /// The position in the incoming stream of the byte with number `rcv_nxt`: so much was published.
    pub rcv_position: u64,
    /// The last ACK number that the peer was sent: where it is behind `rcv_nxt`, an ACK is due.
    pub acked: Seq,
    /// RCV.NXT + RCV.WND, as the peer was last told.
    pub rcv_edge: Seq,
    /// The position up to which there is room for the incoming stream.
    pub room: u64,
    /// The largest window that we ever offered, in bytes.
    pub rcv_max: u32,
    /// The largest segment to send, in bytes of payload, not counting what options take.
    pub mss: u16,
    /// Both window scales: the peer's, then ours.
    pub scales: Option<(u8, u8)>,
    /// Whether selective acknowledgements were agreed upon.
    pub sack: bool,
    /// Whether timestamps were.
    pub stamps: Option<Stamps>,
}

/// Why a [`State`] is none that a connection can be in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Contradiction {
    /// The connection is not synchronised, or over.
    Phase(Phase),
    /// More sequence numbers are in flight than a window holds.
    Flight(u32),
    /// So many sequence numbers are in flight, from this position on, and the stream is committed up to that one.
    Uncommitted(u32, u64, u64),
    /// A FIN has to follow in this state, or must not, or has to be acknowledged.
    Fin(Phase),
    /// Its holder has closed it, and no FIN follows in this state.
    Closed(Phase),
    /// This was published, and there is room up to that only.
    Room(u64, u64),
    /// The last ACK is so far behind what was received.
    Unsaid(u32),
    /// So many bytes were offered, and there is room for fewer.
    Offered(u32, u64),
    /// No window is scaled so much (RFC 7323, section 2.3).
    Scale(u8),
    /// No window that there is room for, or that was ever offered, can be named with our scale: the peer would never be told of any.
    Unit(u8, u64),
}

impl std::fmt::Display for Contradiction {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Contradiction::Phase(phase) => {
                write!(
                    f,
                    "phase {phase:?}: nothing goes on from there; adopt a connection from ESTABLISHED to LAST-ACK"
                )
            }
            Contradiction::Flight(len) => {
                write!(f, "nxt is {len} behind una: no window is so large; give una and nxt of one moment")
            }
            Contradiction::Uncommitted(len, from, end) => write!(
                f,
                "{len} sequence numbers are in flight from position {from} on, and end is {end}: commit what was sent"
            ),
            Contradiction::Fin(phase) => {
                write!(f, "phase {phase:?}: fin, una, nxt and una_position do not say what became of our FIN in it")
            }
            Contradiction::Closed(phase) => {
                write!(
                    f,
                    "phase {phase:?}: closed by its holder, and no FIN follows: that would wait for ever; give the state after the close"
                )
            }
            Contradiction::Room(position, room) => {
                write!(f, "room is {room}, and {position} bytes were published: give the position where room ends")
            }
            Contradiction::Unsaid(len) => {
                write!(
                    f,
                    "rcv_nxt is {len} ahead of acked: no window is so large; give acked and rcv_nxt of one moment"
                )
            }
            Contradiction::Offered(offered, room) => write!(
                f,
                "the peer was offered {offered} bytes, and there is room for {room}: give it the room that it was promised"
            ),
            Contradiction::Scale(scale) => write!(f, "window scale {scale}: at most {SCALE_MOST}, as was agreed upon"),
            Contradiction::Unit(scale, room) => write!(
                f,
                "our window scale {scale} names multiples of {} bytes, and there was never room for more than {room}: give the stream twice as much room",
                1u64 << scale
            ),
        }
    }
}

impl std::error::Error for Contradiction {}

/// A connection for whoever looks at it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Info {
    /// Its state.
    pub phase: Phase,
    /// Why it ended, if it has.
    pub cause: Option<Cause>,
    /// Bytes that the peer has acknowledged.
    pub acknowledged: u64,
    /// Bytes that were sent and not acknowledged.
    pub in_flight: u32,
    /// Bytes that are committed and not sent.
    pub unsent: u64,
    /// Bytes that were received in order.
    pub received: u64,
    /// Ranges that were received ahead of order.
    pub gaps: u8,
    /// Of what is in flight, known to have arrived (SACK).
    #[serde(default)]
    pub sacked: u32,
    /// The window that the peer offers, in bytes.
    pub window: u32,
    /// The window that we last offered, in bytes.
    pub offered: u32,
    /// The largest segment to send, in bytes of payload.
    pub mss: u16,
    /// Congestion window, in bytes.
    pub cwnd: u32,
    /// Slow start threshold, in bytes.
    pub ssthresh: u32,
    /// Smoothed round-trip time.
    pub srtt: Micros,
    /// Its variation.
    pub rttvar: Micros,
    /// Retransmission timeout.
    pub rto: Micros,
    /// Segments that were sent again.
    pub retransmits: u32,
    /// Both window scales: the peer's, then ours.
    pub scales: Option<(u8, u8)>,
    /// Whether selective acknowledgements were agreed upon.
    pub sack: bool,
    /// Whether timestamps were.
    pub timestamps: bool,
}
