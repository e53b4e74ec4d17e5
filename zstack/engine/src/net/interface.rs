//! One port's link and network layer.

use super::address::unicast;
use super::{Address, Report};
use crate::counters::{Counter, Counters};
use crate::port::{Capabilities, Medium};
use crate::time::Time;
use std::net::IpAddr;
use std::ops::Range;

/// What an interface is told once.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// Our addresses; the networks of their prefixes are reached directly.
    pub addresses: Vec<Address>,
    /// Where other networks are reached.
    pub routes: Vec<Route>,
    /// Our station address: needed on Ethernet.
    pub mac: Option<[u8; 6]>,
    /// The VLAN whose tag is put on every frame sent; frames of others are not taken. `None`: no tags.
    pub vlan: Option<u16>,
    /// Every unicast address is ours, as far as arriving packets are concerned.
    pub any_address: bool,
    /// A secret that keys hashes.
    pub key: [u8; 16],
}

/// A static route.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Route {
    /// The network: an address in it, and the length of its prefix (0: the default route).
    pub network: Address,
    /// Who forwards to it; `None`: it is reached directly.
    pub gateway: Option<IpAddr>,
}

/// Why an interface cannot be as it was asked for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ConfigError(pub(super) String);

impl std::fmt::Display for ConfigError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for ConfigError {}

/// A connection's way to its peer, remembered so that not every segment looks for it. A copy of it may be out of date, which
/// [`Interface::head`] notices.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Path {
    pub(super) slot: u16,
    /// The path MTU lies below what we will reduce to: routers may fragment (Linux: `ip_rt_min_pmtu`).
    pub(super) fragment: bool,
    /// 0: not looked for yet.
    pub(super) generation: u32,
}

/// A neighbour's name in the cache, while it is there.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct NeighbourId {
    pub(super) slot: u16,
    pub(super) generation: u32,
}

/// Something that those who wait for neighbours want to know.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Event {
    /// Who waits for this neighbour asks again: its address is known now, or it is no longer looked for under this name.
    Ask(NeighbourId),
    /// The neighbour does not answer: who waits for it has no way to his peer for now (EHOSTUNREACH).
    Unreachable(NeighbourId),
    /// Everybody who waits for any neighbour asks again.
    AskAll,
}

/// Why a packet cannot be sent now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unsent {
    /// The neighbour's station address is being asked for: an event will follow.
    Unresolved(NeighbourId),
    /// No route leads there (ENETUNREACH).
    NoRoute,
    /// The neighbour has not answered and was asked only just now (EHOSTUNREACH).
    Unreachable,
    /// The buffer is too small, or the packet too long.
    Long,
}

/// A TCP segment that passed all the checks below TCP.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Segment {
    /// Who sent it: an address that a host may have, and not ours.
    pub source: IpAddr,
    /// Whom it is for: us.
    pub destination: IpAddr,
    /// Where the TCP header and what follows lie in the frame. The header is not looked at yet, nor its checksum.
    pub range: Range<usize>,
    /// The two ECN bits (RFC 3168, section 5): 3 is "congestion experienced".
    pub ecn: u8,
}

/// What became of a frame.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// It is a segment for TCP.
    Tcp(Segment),
    /// It is answered: the first so many bytes of the reply buffer are a frame to be sent.
    Reply(usize),
    /// It is an error about a packet of ours.
    Report(Report),
    /// It answers an echo request ([`Interface::echo`]).
    Echo {
        /// Who answers.
        from: IpAddr,
        /// The request's identifier.
        id: u16,
        /// The request's sequence number.
        sequence: u16,
        /// The hop limit that the answer came with.
        hops: u8,
        /// Where its data lie in the frame.
        range: Range<usize>,
    },
    /// It told us something of a neighbour; nothing follows but perhaps [events](Interface::event).
    Done,
    /// It was dropped, and counted.
    Dropped(Counter),
}

/// The link and network layer of one port.
#[derive(Debug)]
pub struct Interface {
    pub(super) config: Config,
    pub(super) medium: Medium,
    pub(super) mtu: u16,
}

impl Interface {
    /// An interface for a port with these capabilities.
    ///
    /// # Errors
    /// The configuration contradicts itself or the port.
    pub fn new(config: Config, port: Capabilities, now: Time) -> Result<Interface, ConfigError> {
        let _ = now;
        if let Some(bad) = config.addresses.iter().find(|address| !unicast(address.ip)) {
            return Err(ConfigError(format!("{}: no host can have this address", bad.ip)));
        }
        Ok(Interface { config, medium: port.medium, mtu: port.mtu })
    }

    /// Looks at a frame that arrived. `verified`: its transport checksum is known to be right. An answer, if one is due, is
    /// built in `reply`, which should have room for the MTU and 18 bytes more. What is dropped or
    /// answered is counted in `counters`.
    pub fn receive(
        &mut self,
        now: Time,
        frame: &[u8],
        verified: bool,
        reply: &mut [u8],
        counters: &mut Counters,
    ) -> Verdict {
        let _ = (now, frame, verified, reply, self.medium);
        counters.count(Counter::IpUnknownProtocol);
        Verdict::Dropped(Counter::IpUnknownProtocol)
    }

    /// Writes the link and IP header of a TCP segment of `len` bytes, TCP header included, to the start of `out`, and says how
    /// many bytes they are: at most [`Interface::HEAD`], which `out` must hold. `path` is the connection's own: default at
    /// first, and kept for the next call. `ecn`: the traffic class byte.
    ///
    /// # Errors
    /// It cannot be sent now. After `Unresolved` an [event](Interface::event) will follow.
    #[allow(clippy::too_many_arguments)]
    pub fn head(
        &mut self,
        now: Time,
        out: &mut [u8],
        path: &mut Path,
        source: IpAddr,
        destination: IpAddr,
        len: u16,
        ecn: u8,
    ) -> Result<usize, Unsent> {
        let _ = (now, out, path, source, destination, len, ecn);
        Err(Unsent::NoRoute)
    }

    /// The longest link and IP header: Ethernet, a VLAN tag, IPv6.
    pub const HEAD: usize = 14 + 4 + 40;

    /// The address that a packet to `destination` should have as its source, if there is a route and an address of the family.
    pub fn source(&self, destination: IpAddr) -> Option<IpAddr> {
        self.config.addresses.iter().map(|address| address.ip).find(|ip| ip.is_ipv4() == destination.is_ipv4())
    }

    /// Whether a packet to this address is for us.
    pub fn is_ours(&self, ip: IpAddr) -> bool {
        self.config.any_address || self.config.addresses.iter().any(|address| address.ip == ip)
    }

    /// The largest IP packet, in bytes, that reaches `destination` whole, as far as is known.
    pub fn mtu(&self, now: Time, destination: IpAddr) -> u16 {
        let _ = (now, destination);
        self.mtu
    }

    /// A report of [`super::Kind::TooBig`] about a segment of this connection is believed. Returns the path MTU to use from
    /// now on if it is lower than before. It is forgotten after ten minutes (RFC 8201, section 4).
    pub fn too_big(&mut self, now: Time, path: &mut Path, destination: IpAddr, mtu: u16) -> Option<u16> {
        let _ = (now, path, destination, mtu);
        None
    }

    /// The peer has acknowledged something new: the neighbour on the way to it is alive (RFC 4861, section 7.3.1). Saves
    /// probes; need not be called.
    pub fn confirm(&mut self, now: Time, path: Path) {
        let _ = (now, path);
    }

    /// Builds an echo request in `out`; the answer is a [`Verdict::Echo`], an error a [`Verdict::Report`]. `source`: one of our
    /// addresses, or `None` for the one that [`Interface::source`] chooses.
    ///
    /// # Errors
    /// It cannot be sent now: ask again after the event, if one is promised.
    #[allow(clippy::too_many_arguments)]
    pub fn echo(
        &mut self,
        now: Time,
        out: &mut [u8],
        source: Option<IpAddr>,
        destination: IpAddr,
        id: u16,
        sequence: u16,
        data: &[u8],
    ) -> Result<usize, Unsent> {
        let _ = (now, out, source, destination, id, sequence, data);
        Err(Unsent::NoRoute)
    }

    /// What happened to neighbours that somebody waits for; to be asked until there is nothing, after frames were received and
    /// after [`Interface::due`].
    pub fn event(&mut self) -> Option<Event> {
        None
    }

    /// When [`Interface::due`] has something to do at the latest; [`Time::NEVER`]: nothing until something else happens.
    pub fn deadline(&self) -> Time {
        Time::NEVER
    }

    /// Builds the next frame that is due (a request for a neighbour's address) in `out`, which must hold 128 bytes; to be called
    /// until there is none.
    pub fn due(&mut self, now: Time, out: &mut [u8]) -> Option<usize> {
        let _ = (now, out);
        None
    }
}
