//! What goes by: packets to our addresses that others here may have a use for, and packets that those others send.

use super::input::Link;
use super::interface::{Interface, Path, Verdict};
use super::neighbour::{LINK, Mac};
use super::unsent::{NeighbourId, Unsent};
use crate::counters::Counter;
use crate::time::Time;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::Range;
use zstack_wire::ethernet::{self, ethertype};
use zstack_wire::{ipv4, ipv6};

/// Why a packet of somebody else's was not sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Unforwarded {
    /// It is no IPv4 or IPv6 packet, or not as long as it says.
    Malformed,
    /// It is longer than the port's MTU, which is this, in bytes: "fragmentation needed", or "packet too big".
    TooBig(u16),
    /// Its destination is one of our own addresses.
    Ours,
    /// No route leads to its destination (ENETUNREACH).
    NoRoute,
    /// The neighbour on the way to it has not answered, and was asked only just now (EHOSTUNREACH).
    Unreachable,
    /// The port has no room now: the same packet may be taken later.
    Full,
    /// The port can never send it.
    Unfit,
    /// The port is gone.
    Gone,
}

impl std::fmt::Display for Unforwarded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Unforwarded::Malformed => f.write_str("no IP packet, or not as long as it says"),
            Unforwarded::TooBig(mtu) => write!(f, "longer than the MTU of {mtu} bytes: fragment it"),
            Unforwarded::Ours => f.write_str("its destination is an address of this stack"),
            Unforwarded::NoRoute => f.write_str("no route leads to its destination: add one, or a gateway"),
            Unforwarded::Unreachable => f.write_str("the neighbour on its way does not answer"),
            Unforwarded::Full => f.write_str("the port has no room now"),
            Unforwarded::Unfit => f.write_str("the port cannot send it"),
            Unforwarded::Gone => f.write_str("the port is gone"),
        }
    }
}

impl std::error::Error for Unforwarded {}

/// What is to be done with a packet of somebody else's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Onward {
    /// The first so many bytes of the buffer are the frame.
    Send(usize),
    /// It waits for this neighbour: an event will follow.
    Wait(NeighbourId),
}

impl Interface {
    /// What is of no use here: passed on, or dropped for this reason.
    pub(super) fn useless(&self, reason: Counter) -> Result<Verdict, Counter> {
        if self.bridge { Ok(Verdict::Pass) } else { Err(reason) }
    }

    /// A part of a packet.
    #[cold]
    pub(super) fn fragment_v4(&self, packet: &ipv4::Packet<'_>, link: Link) -> Result<Verdict, Counter> {
        let verdict = self.useless(Counter::IpFragment)?;
        let (source, destination) = (packet.source(), packet.destination());
        if !self.own.foreign_v4(source) {
            return Err(self.bad_source_v4(source));
        }
        if !self.own.has_v4(destination) || link.group {
            self.destination_v4(destination, link)?;
        }
        Ok(verdict)
    }

    /// A packet with a good fixed header whose extensions are of no use here, for this reason.
    #[cold]
    pub(super) fn odd_v6(&self, frame: &[u8], link: Link, reason: Counter) -> Result<Verdict, Counter> {
        let verdict = self.useless(reason)?;
        let address = |at: usize| {
            let bytes = frame.get(link.start + at..)?.first_chunk::<16>()?;
            Some(Ipv6Addr::from(*bytes))
        };
        let (Some(source), Some(destination)) = (address(8), address(24)) else { return Err(Counter::IpMalformed) };
        if !self.own.foreign_v6(source) {
            return Err(self.bad_source_v6(source));
        }
        if !self.own.has_v6(destination) || link.group {
            self.destination_v6(destination, link, false)?;
        }
        Ok(verdict)
    }

    /// Where in a frame that was received its packet lies, without link header and padding.
    pub fn packet(&self, frame: &[u8]) -> Option<Range<usize>> {
        let start = if self.mac.is_some() { ethernet::Header::parse(frame).ok()?.len() } else { 0 };
        let len = len(&frame[start..])?;
        Some(start..start + len)
    }

    /// Builds the frame of a packet of somebody else's in `out`, which should have room for the MTU and 18 bytes more. The packet stays
    /// as it is; only whether it is one is looked at, and where it goes.
    ///
    /// # Errors
    /// It is not sent, and no event will follow.
    pub fn forward(&mut self, now: Time, out: &mut [u8], packet: &[u8]) -> Result<Onward, Unforwarded> {
        let destination = destination(packet).ok_or(Unforwarded::Malformed)?;
        if packet.len() > usize::from(self.mtu) {
            return Err(Unforwarded::TooBig(self.mtu));
        }
        if self.own.has(destination) {
            return Err(Unforwarded::Ours);
        }
        let ethertype = if destination.is_ipv4() { ethertype::IPV4 } else { ethertype::IPV6 };
        let start = match self.group(destination) {
            Some(group) => self.frame_link(out, group, ethertype).ok_or(Unforwarded::Unfit)?,
            None => match self.find(now, &mut Path::default(), destination) {
                Ok(link) => {
                    let link = *link;
                    let len = self.neighbours.link_len();
                    out.get_mut(..len).ok_or(Unforwarded::Unfit)?.copy_from_slice(&link[LINK - len..]);
                    len
                }
                Err(Unsent::Unresolved(neighbour)) => return Ok(Onward::Wait(neighbour)),
                Err(Unsent::NoRoute) => return Err(Unforwarded::NoRoute),
                Err(Unsent::Unreachable | Unsent::Long) => return Err(Unforwarded::Unreachable),
            },
        };
        let end = start + packet.len();
        out.get_mut(start..end).ok_or(Unforwarded::Unfit)?.copy_from_slice(packet);
        Ok(Onward::Send(end))
    }

    /// The stations that a packet to this address is sent to, if they are several.
    fn group(&self, destination: IpAddr) -> Option<Mac> {
        match destination {
            IpAddr::V4(ip) if ip.is_multicast() => Some(ethernet::group_v4(ip)),
            IpAddr::V4(ip) if self.own.broadcast(ip) => Some(ethernet::BROADCAST),
            IpAddr::V6(ip) if ip.is_multicast() => Some(ethernet::group_v6(&ip)),
            _ => None,
        }
    }
}

/// The length of the packet that these bytes begin with; `None`: they are fewer, or none.
fn len(bytes: &[u8]) -> Option<usize> {
    let word = |at: usize| Some(usize::from(u16::from_be_bytes(*bytes.get(at..)?.first_chunk()?)));
    let (least, len) = match bytes.first()? >> 4 {
        4 => (usize::from(bytes[0] & 0xf) * 4, word(2)?),
        6 => (ipv6::HEADER, ipv6::HEADER + word(4)?),
        _ => return None,
    };
    (least >= ipv4::HEADER && least <= len && len <= bytes.len()).then_some(len)
}

/// Where a packet goes; `None`: it is none.
fn destination(packet: &[u8]) -> Option<IpAddr> {
    if len(packet)? != packet.len() {
        return None;
    }
    Some(match packet[0] >> 4 {
        4 => Ipv4Addr::from(*packet[16..].first_chunk::<4>()?).into(),
        _ => Ipv6Addr::from(*packet[24..].first_chunk::<16>()?).into(),
    })
}
