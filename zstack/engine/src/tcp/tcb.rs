//! The block of one connection, and how it comes to be.

use super::assembler::Assembler;
use super::recovery::Recovery;
use super::{Cause, Phase};
use crate::time::Time;
use serde::{Deserialize, Serialize};
use zstack_wire::Seq;
use zstack_wire::tcp::Range;

/// What a new connection is given beside its options.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Start {
    /// The number of our SYN (RFC 6528).
    pub iss: Seq,
    /// What TSval begins from: the connection's own secret (RFC 7323, section 7.1).
    pub stamp_offset: u32,
    /// The largest payload of a segment that the path's MTU allows, without TCP options: the MTU less IP and TCP headers.
    pub mss: u16,
    /// The same of the port's MTU: what the peer is told.
    pub port_mss: u16,
    /// The position up to which there is room for the incoming stream.
    pub room: u64,
}

/// What a SYN cookie kept of the SYN (RFC 4987, section 3.6).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Cookie {
    /// The peer's MSS.
    pub mss: u16,
    /// The peer's window scale and the one that our SYN-ACK named.
    pub scales: Option<(u8, u8)>,
    /// Whether the peer understands SACK.
    pub sack: bool,
    /// Whether it sends timestamps.
    pub stamps: bool,
}

/// An ICMP error about a segment of ours, apart from "too big" ([`Tcb::mtu`]).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Unreachable {
    /// Network unreachable, no route: soft (RFC 5461).
    Net,
    /// Host unreachable, time exceeded: soft.
    Host,
    /// Port unreachable: hard for a connection that does not stand yet, as are those below unless they say otherwise.
    Port,
    /// Protocol unreachable.
    Protocol,
    /// The host, or communication with it, is administratively prohibited.
    Prohibited,
    /// The network is.
    NetProhibited,
    /// The same of IPv6, whatever is.
    Denied,
    /// The host is unknown: soft.
    HostUnknown,
    /// We are isolated: soft.
    Isolated,
    /// A source route failed: soft.
    SourceRoute,
    /// A header was wrong: soft.
    Malformed,
}

impl Unreachable {
    /// What it makes of a connection that it ends (`icmp_err_convert`, `tab_unreach` of Linux).
    pub(super) fn cause(self) -> Cause {
        match self {
            Unreachable::Net | Unreachable::NetProhibited => Cause::NetUnreachable,
            Unreachable::Host | Unreachable::Prohibited => Cause::HostUnreachable,
            Unreachable::Port => Cause::Refused,
            Unreachable::Protocol => Cause::NoProtocol,
            Unreachable::Denied => Cause::Prohibited,
            Unreachable::HostUnknown => Cause::HostUnknown,
            Unreachable::Isolated => Cause::Isolated,
            Unreachable::SourceRoute => Cause::SourceRoute,
            Unreachable::Malformed => Cause::Malformed,
        }
    }

    /// Whether it ends a connection that a peer has begun to open.
    pub(super) fn hard(self) -> bool {
        matches!(
            self,
            Unreachable::Port
                | Unreachable::Protocol
                | Unreachable::Prohibited
                | Unreachable::NetProhibited
                | Unreachable::Denied
        )
    }
}

/// A set of [`Tcb::marks`].
pub(super) type Marks = u32;

/// What a connection is, has agreed upon, and has to do: bits of [`Tcb::marks`].
pub(super) mod mark {
    use super::Marks;

    /// An ACK is to be sent at once.
    pub const ACK: Marks = 1 << 0;
    /// The SYN or SYN-ACK is to be sent.
    pub const SYN: Marks = 1 << 1;
    /// Payload, a FIN or a retransmission may be sendable.
    pub const SEND: Marks = 1 << 2;
    /// A zero-window probe or keep-alive is to be sent.
    pub const PROBE: Marks = 1 << 3;
    /// The holder has aborted, or refused: RST and end.
    pub const ABORT: Marks = 1 << 4;
    /// The port had no room for something.
    pub const BLOCKED: Marks = 1 << 5;
    /// `Event::Asked` is to be told.
    pub const ASK: Marks = 1 << 6;
    /// With [`ABORT`]: without a word to the peer.
    pub const SILENT: Marks = 1 << 24;
    /// A tail loss probe is to be sent (RFC 8985, section 7.3).
    pub const TAIL_PROBE: Marks = 1 << 7;
    /// All for which the next call of output has something to do.
    pub const DUE: Marks = ACK | SYN | SEND | PROBE | ABORT | BLOCKED | ASK;

    /// The connection was opened by the peer.
    pub const PASSIVE: Marks = 1 << 8;
    /// Timestamps are agreed upon (in SYN-SENT: offered).
    pub const STAMPS: Marks = 1 << 9;
    /// SACK is.
    pub const SACK: Marks = 1 << 10;
    /// Window scaling is.
    pub const SCALING: Marks = 1 << 11;
    /// Our stream ends at `end`: a FIN follows it.
    pub const FIN: Marks = 1 << 12;
    /// The FIN was handed to the port: `nxt` lies behind it.
    pub const FIN_SENT: Marks = 1 << 13;
    /// The peer's FIN was seen: `peer_fin` holds.
    pub const PEER_FIN: Marks = 1 << 14;
    /// The holder has closed: nobody reads what arrives.
    pub const CLOSED: Marks = 1 << 15;
    /// `Event::Ended` was told.
    pub const ENDED: Marks = 1 << 16;
    /// `Event::Free` was told.
    pub const FREED: Marks = 1 << 17;
    /// [`super::Options::nodelay`].
    pub const NODELAY: Marks = 1 << 18;
    /// [`super::Options::cork`].
    pub const CORK: Marks = 1 << 19;
    /// [`super::Options::keepalive`].
    pub const KEEPALIVE: Marks = 1 << 20;
    /// A duplicate is to be reported: `dsack` holds (RFC 2883).
    pub const DSACK: Marks = 1 << 21;
    /// A partial segment goes out although Nagle, a cork or a small window forbade it: it has waited long enough.
    pub const PUSH_OUT: Marks = 1 << 22;
    /// What lies behind the last push boundary waits for more: no ACK has come since it was committed.
    pub const MORE: Marks = 1 << 23;
    /// So many small segments are in flight that nothing new follows before the next ACK.
    pub const CROWDED: Marks = 1 << 24;
    /// There may be room of which our last header did not tell.
    pub const ROOM: Marks = 1 << 25;
}

/// One connection. It does nothing by itself: its holder hands it segments, calls and time, and calls [`Tcb::output`] whenever
/// it is [due](Tcb::due) and [`Tcb::timer`] when its [deadline](Tcb::deadline) has come.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Tcb {
    /// The position of number `una` in the outgoing stream. The SYN lies at -1: it wraps there.
    pub(super) una_at: u64,
    /// The outgoing stream is committed up to here.
    pub(super) end: u64,
    /// The last position up to which the holder wanted it sent without waiting for more.
    pub(super) push: u64,
    /// Everything below was released.
    pub(super) released: u64,
    /// The position of number `rcv_nxt` in the incoming stream; the SYN lies at -1.
    pub(super) rcv_at: u64,
    /// The incoming stream has room up to here.
    pub(super) room: u64,
    /// When the delayed ACK goes out.
    pub(super) ack_at: Time,
    /// When the SYN goes out again; in synchronised states, when the window is probed or a held segment goes out.
    pub(super) probe_at: Time,
    /// When a linger, FIN-WAIT-2 or TIME-WAIT is over.
    pub(super) life_at: Time,
    /// When the last segment came from the peer.
    pub(super) heard: Time,
    /// When the last keep-alive probe was sent, with `keepalives`.
    pub(super) kept: Time,
    /// Since when no progress was made with what is in flight.
    pub(super) stalled: Time,
    /// One more than the number of the last frame of this connection that the port took with payload.
    pub(super) frames: u64,
    /// Ranges that arrived ahead of order.
    pub(super) gaps: Option<Box<Assembler>>,
    /// What is in flight.
    pub(super) recovery: Recovery,

    /// SND.UNA.
    pub(super) una: Seq,
    /// SND.NXT: the first number that was not handed to the port.
    pub(super) nxt: Seq,
    /// SND.WND, scaled.
    pub(super) wnd: u32,
    /// The largest of all `wnd`.
    pub(super) max_wnd: u32,
    /// SND.WL1.
    pub(super) wl1: Seq,
    /// SND.WL2.
    pub(super) wl2: Seq,
    /// The number behind the last segment that was sent and not full (Minshall's addition to Nagle).
    pub(super) small: Seq,
    /// RCV.NXT.
    pub(super) rcv_nxt: Seq,
    /// RCV.NXT + RCV.WND, as the peer was told.
    pub(super) rcv_edge: Seq,
    /// Last.ACK.sent (RFC 7323, section 4.3).
    pub(super) acked: Seq,
    /// The largest window that was offered.
    pub(super) rcv_max: u32,
    /// The number of the peer's FIN, with [`mark::PEER_FIN`].
    pub(super) peer_fin: Seq,
    /// The duplicate to be reported, with [`mark::DSACK`].
    pub(super) dsack: Range,
    pub(super) marks: Marks,
    /// TS.Recent.
    pub(super) recent: u32,
    /// When it was taken, in seconds: PAWS trusts it for 24 days (RFC 7323, section 5.5).
    pub(super) recent_at: u32,
    pub(super) stamp_offset: u32,
    /// When a segment out of window was last answered, in milliseconds (RFC 5961, section 7).
    pub(super) challenged: u32,
    pub(super) keepalive_idle: u32,
    pub(super) keepalive_interval: u32,
    pub(super) user_timeout: u32,
    pub(super) linger: u32,
    pub(super) fin_wait: u32,
    pub(super) retransmits: u32,
    /// What the route allows, without options.
    pub(super) path_mss: u16,
    /// The most that `path_mss` may become.
    pub(super) mss_limit: u16,
    /// What our SYN tells the peer: what the port takes, whatever the path to the peer does (RFC 9293, section 3.7.1).
    pub(super) our_mss: u16,
    /// What the peer's SYN allows.
    pub(super) peer_mss: u16,
    /// The largest payload of a segment: the smaller of both, less what options take.
    pub(super) mss: u16,
    /// The largest payload that came so far, at most our MSS: what "a full segment" is for the delayed ACK.
    pub(super) rcv_mss: u16,
    /// The peer's window scale.
    pub(super) snd_scale: u8,
    /// Ours.
    pub(super) rcv_scale: u8,
    pub(super) phase: Phase,
    pub(super) cause: Option<Cause>,
    /// An ICMP error that will be the cause if the peer does not answer in time.
    pub(super) soft: Option<Cause>,
    /// So many ACKs more are sent at once (the start, and after trouble).
    pub(super) quick: u8,
    /// Probes of the window without an answer.
    pub(super) tries: u8,
    /// How often the time between them was doubled.
    pub(super) backoff: u8,
    /// Keep-alive probes without an answer.
    pub(super) keepalives: u8,
    pub(super) keepalive_count: u8,
}

const _: () = assert!(size_of::<Tcb>() <= 400);
