//! What the engine tells of a connection, and by which name.

use serde::{Deserialize, Serialize};

/// A connection's name in its stack. The generation tells it from others that had its index before.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct ConnId {
    /// Dense: connections that are open have the lowest indexes that were free.
    pub index: u32,
    /// How many connections had the index before.
    pub generation: u32,
}

/// A listener's name in its stack.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct ListenerId(pub u32);

/// Why a connection ended, in the terms of errno(3).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Cause {
    /// Both directions ended in order.
    Done,
    /// The peer refused the connection: RST to our SYN (ECONNREFUSED).
    Refused,
    /// The peer reset it (ECONNRESET).
    Reset,
    /// The peer reset it after its FIN, while we could still send, in CLOSE-WAIT (EPIPE, as `tcp_reset` of Linux says): what was received
    /// is whole, what was sent may not be.
    Broken,
    /// The peer did not answer in time: retransmissions, keep-alive or the user timeout (ETIMEDOUT).
    TimedOut,
    /// ICMP says that the host cannot be reached (EHOSTUNREACH), before there was a connection or as the reason of a time-out.
    HostUnreachable,
    /// ICMP says that the network cannot be reached (ENETUNREACH).
    NetUnreachable,
    /// We aborted it (ECONNABORTED).
    Aborted,
    /// The port is gone (ENETDOWN).
    PortGone,
}

/// What has happened to a connection, apart from bytes and room.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Event {
    /// The connection is a listener's: the first event of such a connection, told right before [`Event::Asked`] (deferred
    /// listeners) or [`Event::Established`] (the others). The stack tells it, not the connection.
    Incoming(ListenerId),
    /// A listener's new connection waits for `Stack::accept` or `Stack::refuse`: its SYN is not answered yet (deferred
    /// listeners only).
    Asked,
    /// The handshake is complete.
    Established,
    /// The peer sends no more: the incoming stream ends at what was published.
    PeerClosed,
    /// No byte goes or comes any more; the name stays valid until [`Event::Free`].
    Ended(Cause),
    /// The port reads none of its memory any more and the name is given up. The last event of a connection.
    Free,
}
