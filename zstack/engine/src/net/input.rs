//! What arrives: the checks of link and IP headers in their order, and what is for whom.

use super::address::{unicast_v4, unicast_v6};
use super::interface::{Interface, Verdict};
use super::neighbour::Mac;
use super::quick::Packet;
use super::segment::Segment;
use crate::counters::{Counter, Counters};
use crate::time::Time;
use crate::tuple::map;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use zstack_wire::ethernet::{self, ethertype};
use zstack_wire::{ipv4, ipv6, ndp, protocol};

/// What the link header said.
#[derive(Clone, Copy)]
pub(super) struct Link {
    /// Where what follows begins.
    pub start: usize,
    /// The sender's station: where an answer goes. Nothing without link headers.
    pub from: Mac,
    /// It was sent to a group of stations.
    pub group: bool,
}

/// What the IP header said.
#[derive(Clone, Copy)]
pub(super) struct Ip {
    pub source: IpAddr,
    pub destination: IpAddr,
    pub hops: u8,
    /// Where in the frame the payload begins, and where it ends.
    pub payload: usize,
    pub end: usize,
}

/// A frame on its way through the checks, and where the answer may be built.
pub(super) struct Arrival<'a> {
    pub now: Time,
    pub frame: &'a [u8],
    pub verified: bool,
    pub reply: &'a mut [u8],
    pub counters: &'a mut Counters,
}

impl Interface {
    /// Looks at a frame that arrived. `verified`: its transport checksum is known to be right. An answer, if one is due, is
    /// built in `reply`, which should have room for the MTU and 18 bytes more: a longer answer is not given. What is dropped or
    /// answered is counted in `counters`.
    ///
    /// An answer goes to the station that the question came from, whatever the neighbour cache says.
    pub fn receive(
        &mut self,
        now: Time,
        frame: &[u8],
        verified: bool,
        reply: &mut [u8],
        counters: &mut Counters,
    ) -> Verdict {
        match self.input(Arrival { now, frame, verified, reply, counters: &mut *counters }) {
            Ok(verdict) => verdict,
            Err(reason) => {
                counters.count(reason);
                Verdict::Dropped(reason)
            }
        }
    }

    /// The packet of a frame of the common case. The segment that it says it carries is the one that [`Interface::receive`] would find
    /// in the frame, but its addresses are not looked at: for whoever knows that they are those of a connection, and were found
    /// good before.
    #[inline(always)]
    pub fn quick_packet<'a>(&self, frame: &'a [u8]) -> Option<Packet<'a>> {
        self.quick.packet(frame)
    }

    fn input(&mut self, arrival: Arrival<'_>) -> Result<Verdict, Counter> {
        let Some(mac) = self.mac else {
            let link = Link { start: 0, from: [0; 6], group: false };
            return match arrival.frame.first().map(|first| first >> 4) {
                Some(4) => self.input_v4(arrival, link),
                Some(6) => self.input_v6(arrival, link),
                _ => Err(Counter::IpMalformed),
            };
        };
        let header = ethernet::Header::parse(arrival.frame).map_err(|_| Counter::LinkShort)?;
        let group = ethernet::is_group(&header.destination);
        if !group && header.destination != mac || ethernet::is_group(&header.source) || header.source == mac {
            return Err(Counter::LinkOtherStation);
        }
        match (self.vlan, header.tag) {
            (None, None) => {}
            // A tag that carries a priority only (IEEE 802.1Q, 6.9.1).
            (None, Some(tag)) if tag.vlan() == 0 => {}
            (Some(ours), Some(tag)) if tag.vlan() == ours => {}
            _ => return Err(Counter::LinkOtherVlan),
        }
        let link = Link { start: header.len(), from: header.source, group };
        match header.ethertype {
            ethertype::IPV4 => self.input_v4(arrival, link),
            ethertype::IPV6 => self.input_v6(arrival, link),
            ethertype::ARP => self.arp(arrival, link, mac),
            _ => Err(Counter::LinkUnknownType),
        }
    }

    #[inline]
    fn input_v4(&mut self, arrival: Arrival<'_>, link: Link) -> Result<Verdict, Counter> {
        let packet = ipv4::Packet::parse(&arrival.frame[link.start..]).map_err(|_| Counter::IpMalformed)?;
        if !packet.checksum_valid() {
            return Err(Counter::IpChecksum);
        }
        if packet.is_fragment() {
            return self.fragment_v4(&packet, link);
        }
        // A TTL of 0 is no reason to drop a packet that has arrived (RFC 1122, 3.2.1.7).
        let (source, destination) = (packet.source(), packet.destination());
        if !self.own.foreign_v4(source) {
            return Err(self.bad_source_v4(source));
        }
        // Unicast in a link broadcast is none of TCP's, and nothing to be answered (RFC 1122, 3.3.6).
        if !self.own.has_v4(destination) || link.group {
            self.destination_v4(destination, link)?;
        }
        let payload = link.start + packet.header_len();
        let ip = Ip {
            source: source.into(),
            destination: destination.into(),
            hops: packet.ttl(),
            payload,
            end: payload + packet.payload().len(),
        };
        match packet.protocol() {
            protocol::TCP => Ok(tcp(ip)),
            protocol::ICMP => self.icmp_v4(arrival, link, ip),
            protocol::UDP => self.udp(arrival, link, ip),
            _ => self.useless(Counter::IpUnknownProtocol),
        }
    }

    #[cold]
    pub(super) fn bad_source_v4(&self, source: Ipv4Addr) -> Counter {
        if self.own.has_v4(source) {
            Counter::IpSourceOurs
        } else if self.own.broadcast(source) && !source.is_unspecified() {
            Counter::IpSourceBroadcast
        } else if source.is_multicast() {
            Counter::IpSourceMulticast
        } else {
            Counter::IpSourceInvalid
        }
    }

    #[cold]
    pub(super) fn destination_v4(&self, destination: Ipv4Addr, link: Link) -> Result<(), Counter> {
        if destination.is_multicast() || self.own.broadcast(destination) || link.group {
            return Err(Counter::IpDestinationMany);
        }
        if self.any_address && unicast_v4(destination) { Ok(()) } else { Err(Counter::IpNotOurs) }
    }

    #[inline]
    fn input_v6(&mut self, arrival: Arrival<'_>, link: Link) -> Result<Verdict, Counter> {
        let packet = match ipv6::Packet::parse(&arrival.frame[link.start..]) {
            Ok(packet) if packet.is_fragment() => return self.odd_v6(arrival.frame, link, Counter::IpFragment),
            Ok(packet) => packet,
            Err(ipv6::Malformed::Truncated | ipv6::Malformed::Version | ipv6::Malformed::PayloadLength) => {
                return Err(Counter::IpMalformed);
            }
            Err(_) => return self.odd_v6(arrival.frame, link, Counter::IpExtension),
        };
        let (source, destination) = (packet.source(), packet.destination());
        let icmp = packet.protocol() == protocol::ICMPV6;
        // Who looks for an address of his own has none yet (RFC 4861, section 4.3).
        let nobody = icmp && source.is_unspecified();
        if !nobody && !self.own.foreign_v6(source) {
            return Err(self.bad_source_v6(source));
        }
        if !self.own.has_v6(destination) || link.group {
            self.destination_v6(destination, link, icmp)?;
        }
        let payload = link.start + packet.header_len();
        let ip = Ip {
            source: source.into(),
            destination: destination.into(),
            hops: packet.hop_limit(),
            payload,
            end: payload + packet.payload().len(),
        };
        match packet.protocol() {
            protocol::TCP => Ok(tcp(ip)),
            protocol::ICMPV6 => self.icmp_v6(arrival, link, ip, (source, destination)),
            protocol::UDP => self.udp(arrival, link, ip),
            _ => self.useless(Counter::IpUnknownProtocol),
        }
    }

    #[cold]
    pub(super) fn bad_source_v6(&self, source: Ipv6Addr) -> Counter {
        if self.own.has_v6(source) {
            Counter::IpSourceOurs
        } else if source.is_multicast() {
            Counter::IpSourceMulticast
        } else {
            Counter::IpSourceInvalid
        }
    }

    #[cold]
    pub(super) fn destination_v6(&self, destination: Ipv6Addr, link: Link, icmp: bool) -> Result<(), Counter> {
        if destination.is_multicast() {
            let all_nodes = destination == ALL_NODES;
            let solicited = self.own.solicited(destination) || self.any_address && ndp::is_solicited_node(&destination);
            return if icmp && (all_nodes || solicited) { Ok(()) } else { Err(Counter::IpDestinationMany) };
        }
        if link.group {
            return Err(Counter::IpDestinationMany);
        }
        if self.any_address && unicast_v6(destination) { Ok(()) } else { Err(Counter::IpNotOurs) }
    }
}

/// RFC 4291, section 2.7.1.
pub(super) const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

fn tcp(ip: Ip) -> Verdict {
    Verdict::Tcp(Segment { source: map(ip.source), destination: map(ip.destination), range: ip.payload..ip.end })
}

#[cfg(test)]
mod tests;
