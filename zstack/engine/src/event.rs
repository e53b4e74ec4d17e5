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
    /// ICMP says that the host cannot be reached (EHOSTUNREACH), before there was a connection or as the reason of a time-out; so of the
    /// others that ICMP says.
    HostUnreachable,
    /// ICMP says that the network cannot be reached (ENETUNREACH).
    NetUnreachable,
    /// ICMP says that the host does not speak TCP (ENOPROTOOPT).
    NoProtocol,
    /// ICMPv6 says that it is prohibited (EACCES). ICMP's word for it is [`Cause::HostUnreachable`] or [`Cause::NetUnreachable`].
    Prohibited,
    /// ICMP says that the host is unknown (EHOSTDOWN).
    HostUnknown,
    /// ICMP says that we are isolated (ENONET).
    Isolated,
    /// ICMP says that the source route failed (EOPNOTSUPP).
    SourceRoute,
    /// ICMP says that a header was wrong (EPROTO).
    Malformed,
    /// We aborted it (ECONNABORTED).
    Aborted,
    /// The port is gone (ENETDOWN).
    PortGone,
}

impl Cause {
    /// Type and code of the ICMP (or, if `v6`, ICMPv6) error from which Linux makes the same errno for a program whose SYN it quotes
    /// (`icmp_err_convert`, `tab_unreach` and `icmpv6_err_convert`). `None`: this is not told by an error but by an RST, by silence, or
    /// not at all. [`Cause::Refused`] is told by either.
    pub fn icmp(self, v6: bool) -> Option<(u8, u8)> {
        let four_six = match self {
            Cause::Refused => ((3, 3), (1, 4)),
            Cause::HostUnreachable => ((3, 1), (1, 3)),
            Cause::NetUnreachable => ((3, 0), (1, 0)),
            Cause::NoProtocol => ((3, 2), (4, 1)),
            Cause::Prohibited => ((3, 13), (1, 1)),
            Cause::HostUnknown => ((3, 7), (1, 3)),
            Cause::Isolated => ((3, 8), (1, 0)),
            Cause::SourceRoute => ((3, 5), (1, 3)),
            Cause::Malformed => ((12, 0), (4, 0)),
            Cause::Done | Cause::Reset | Cause::Broken | Cause::TimedOut | Cause::Aborted | Cause::PortGone => {
                return None;
            }
        };
        Some(if v6 { four_six.1 } else { four_six.0 })
    }
}

/// What has happened to a connection, apart from bytes and room.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Event {
    /// The connection is a listener's: the first event of such a connection, told right before [`Event::Asked`] (deferred
    /// listeners) or [`Event::Established`] (the others). The stack tells it, not the connection.
    Incoming(ListenerId),
    /// A listener's new connection waits for `Stack::accept`, `Stack::refuse` or `Stack::ignore`: its SYN is not answered yet (deferred
    /// listeners only). If its peer gives up meanwhile it ends with [`Cause::Reset`]: an RST came, or another SYN of the same addresses
    /// and ports; that one is asked for when it comes again. The same SYN once more changes nothing.
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
