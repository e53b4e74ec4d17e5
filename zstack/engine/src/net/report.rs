//! What ICMP errors say of packets that we sent.

use std::net::{IpAddr, SocketAddr};
use zstack_wire::Seq;

/// An ICMP error about a packet of ours. Anybody can send one: only the quotation speaks for it, and who owns the connection
/// checks the sequence number before he believes it (RFC 5927, section 4).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Report {
    /// What is wrong.
    pub kind: Kind,
    /// Who says so: a router, or the destination itself.
    pub from: IpAddr,
    /// The packet that it is about.
    pub quoted: Quoted,
}

/// What an ICMP error says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// No route to the network.
    Network,
    /// The host does not answer there.
    Host,
    /// The host does not speak the protocol.
    Protocol,
    /// Nobody listens at the port.
    Port,
    /// The host is not known there.
    HostUnknown,
    /// We are isolated.
    Isolated,
    /// A source route failed.
    SourceRoute,
    /// Administratively prohibited.
    Prohibited,
    /// The network is (IPv4).
    NetworkProhibited,
    /// The packet is too big for a link on the way: its MTU in bytes, as it was told or, if it was not (0), as RFC 1191's
    /// plateaus have it. To be told to [`super::Interface::too_big`] once it is believed.
    TooBig(u16),
    /// Its hops were used up on the way.
    TimeExceeded,
    /// A header of it is wrong (parameter problem).
    Malformed,
}

/// The packet that an ICMP error quotes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Quoted {
    /// A TCP segment.
    Tcp {
        /// Its source: ours.
        local: SocketAddr,
        /// Its destination.
        remote: SocketAddr,
        /// Its sequence number.
        seq: Seq,
    },
    /// An echo request.
    Echo {
        /// Whom it was sent to.
        destination: IpAddr,
        /// Its identifier.
        id: u16,
        /// Its sequence number.
        sequence: u16,
    },
}
