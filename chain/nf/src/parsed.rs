//! One parse of the copy of a packet's head: where each header is, and what functions ask for most.

use crate::packet::{HEAD, Head};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use zstack_wire::ethernet::{Mac, ethertype};
use zstack_wire::protocol;

/// The ethertype of an outer tag (802.1ad).
const SERVICE_VLAN: u16 = 0x88a8;

/// What the frame carries.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Network {
    /// Neither IPv4 nor IPv6: the ethertype says what. With less than an Ethernet header, too.
    Other,
    /// It says it is IPv4 or IPv6, and its header or its lengths are not those of one.
    Malformed,
    /// IPv4.
    Ipv4,
    /// IPv6.
    Ipv6,
}

/// What the IP packet carries.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Transport {
    /// Another protocol, or none. A fragment that is not the first has no transport header.
    Other,
    /// TCP, UDP or ICMP whose header is not whole, or whose header or lengths contradict themselves, or which lies beyond the head.
    Malformed,
    /// TCP; the header with its options may reach beyond the head.
    Tcp,
    /// UDP.
    Udp,
    /// ICMP, of either version: its first 8 bytes are there.
    Icmp,
}

/// What a packet's head says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Parsed {
    /// Ethernet's receiver.
    pub to: Mac,
    /// Ethernet's sender.
    pub from: Mac,
    /// The tags' control information, the outer one first.
    pub tags: [u16; 2],
    /// How many tags there are: with more than two, the third is the payload.
    pub tagged: u8,
    /// What the frame carries, by the number behind the tags. 0: there is no whole Ethernet header.
    pub ethertype: u16,
    /// What the frame carries.
    pub network: Network,
    /// What the IP packet carries.
    pub transport: Transport,
    /// Whether it is a part of an IP packet: of the first part the transport header may be there.
    pub fragment: bool,
    /// Whether it is a part that is not the first.
    pub later_fragment: bool,
    /// Protocol of the payload, behind IPv6's extensions; of a fragment, what the whole packet's fragmentable part begins with.
    pub protocol: u8,
    /// TTL or hop limit.
    pub hops: u8,
    /// DSCP and ECN.
    pub traffic_class: u8,
    /// TCP's control bits.
    pub flags: u8,
    /// Where the network header begins.
    pub network_at: u16,
    /// Where the IP packet ends, by its own length: the link's padding may follow.
    pub network_end: u32,
    /// Where the transport header, or what stands in its place, begins. For what is not IP: where the payload begins.
    pub transport_at: u16,
    /// The sender; unspecified for what is not IP.
    pub source: IpAddr,
    /// The receiver; unspecified for what is not IP.
    pub destination: IpAddr,
    /// TCP's or UDP's; the type and code of an ICMP message.
    pub source_port: u16,
    /// TCP's or UDP's; the identifier of an ICMP echo, 0 in other messages.
    pub destination_port: u16,
}

/// ICMP's types that carry an identifier, of IPv4.
const ECHO: [u8; 2] = [0, 8];
/// The same of IPv6.
const ECHO6: [u8; 2] = [128, 129];

impl Parsed {
    const NOTHING: Parsed = Parsed {
        to: [0; 6],
        from: [0; 6],
        tags: [0; 2],
        tagged: 0,
        ethertype: 0,
        network: Network::Other,
        transport: Transport::Other,
        fragment: false,
        later_fragment: false,
        protocol: 0,
        hops: 0,
        traffic_class: 0,
        flags: 0,
        network_at: 0,
        network_end: 0,
        transport_at: 0,
        source: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        destination: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        source_port: 0,
        destination_port: 0,
    };

    /// What the head says.
    #[inline]
    pub fn of(head: &Head) -> Parsed {
        let mut parsed = Parsed::NOTHING;
        let (Some(to), Some(from), Some(kind)) = (head.get(0), head.get(6), head.get(12)) else { return parsed };
        (parsed.to, parsed.from, parsed.ethertype) = (to, from, u16::from_be_bytes(kind));
        let mut at = 14;
        while matches!(parsed.ethertype, ethertype::VLAN | SERVICE_VLAN) && parsed.tagged < 2 {
            let Some([a, b, c, d]) = head.get(at) else { return Parsed { ethertype: 0, ..parsed } };
            parsed.tags[usize::from(parsed.tagged)] = u16::from_be_bytes([a, b]);
            parsed.ethertype = u16::from_be_bytes([c, d]);
            parsed.tagged += 1;
            at += 4;
        }
        (parsed.network_at, parsed.transport_at) = (at as u16, at as u16);
        let network = match parsed.ethertype {
            ethertype::IPV4 => parsed.ipv4(head, at),
            ethertype::IPV6 => parsed.ipv6(head, at),
            _ => return parsed,
        };
        match network {
            Some(network) => {
                parsed.network = network;
                if !parsed.later_fragment {
                    parsed.transport(head);
                }
            }
            None => parsed.network = Network::Malformed,
        }
        parsed
    }

    #[inline]
    fn ipv4(&mut self, head: &Head, at: usize) -> Option<Network> {
        let raw: [u8; 20] = head.get(at)?;
        let header = usize::from(raw[0] & 15) * 4;
        let total = usize::from(u16::from_be_bytes([raw[2], raw[3]]));
        if raw[0] >> 4 != 4 || header < 20 || total < header || total > head.packet() - at {
            return None;
        }
        let fragment = u16::from_be_bytes([raw[6], raw[7]]);
        (self.fragment, self.later_fragment) = (fragment & 0x3fff != 0, fragment & 0x1fff != 0);
        (self.traffic_class, self.hops, self.protocol) = (raw[1], raw[8], raw[9]);
        self.source = IpAddr::V4(Ipv4Addr::new(raw[12], raw[13], raw[14], raw[15]));
        self.destination = IpAddr::V4(Ipv4Addr::new(raw[16], raw[17], raw[18], raw[19]));
        self.network_end = (at + total) as u32;
        self.transport_at = (at + header) as u16;
        Some(Network::Ipv4)
    }

    #[inline]
    fn ipv6(&mut self, head: &Head, at: usize) -> Option<Network> {
        let raw: [u8; 40] = head.get(at)?;
        let payload = usize::from(u16::from_be_bytes([raw[4], raw[5]]));
        if raw[0] >> 4 != 6 || payload > head.packet() - at - 40 {
            return None;
        }
        let address = |at: usize| raw[at..].first_chunk().map(|a: &[u8; 16]| IpAddr::V6(Ipv6Addr::from(*a)));
        (self.source, self.destination) = (address(8)?, address(24)?);
        self.traffic_class = raw[0] << 4 | raw[1] >> 4;
        (self.protocol, self.hops) = (raw[6], raw[7]);
        self.network_end = (at + 40 + payload) as u32;
        self.transport_at = (at + 40) as u16;
        match self.protocol {
            protocol::TCP | protocol::UDP | protocol::ICMPV6 => Some(Network::Ipv6),
            _ => self.extensions(head),
        }
    }

    /// Goes on behind extension headers. Each takes 8 bytes at least: the work is bounded by the head's length.
    #[inline(never)]
    fn extensions(&mut self, head: &Head) -> Option<Network> {
        loop {
            let at = usize::from(self.transport_at);
            let kind = self.protocol;
            match kind {
                protocol::HOP_BY_HOP | protocol::ROUTING | protocol::FRAGMENT | protocol::DESTINATION_OPTIONS => {}
                _ => return Some(Network::Ipv6),
            }
            let end = self.network_end as usize;
            if at + 8 > end {
                return None;
            }
            // What begins beyond the head is not known: the protocol stays the extension's.
            let Some([next, words, a, b]) = head.get(at) else { return Some(Network::Ipv6) };
            let len = if kind == protocol::FRAGMENT { 8 } else { usize::from(words) * 8 + 8 };
            if at + len > end {
                return None;
            }
            (self.protocol, self.transport_at) = (next, (at + len) as u16);
            if kind == protocol::FRAGMENT {
                let fragment = u16::from_be_bytes([a, b]);
                (self.fragment, self.later_fragment) = (fragment & 0xfff9 != 0, fragment & 0xfff8 != 0);
                if self.fragment {
                    return Some(Network::Ipv6);
                }
            }
        }
    }

    #[inline]
    fn transport(&mut self, head: &Head) {
        let at = usize::from(self.transport_at);
        let left = (self.network_end as usize).saturating_sub(at);
        let found = match (self.protocol, self.network) {
            (protocol::TCP, _) => self.tcp(head, at, left).map(|()| Transport::Tcp),
            (protocol::UDP, _) => self.udp(head, at, left).map(|()| Transport::Udp),
            (protocol::ICMP, Network::Ipv4) => self.icmp(head, at, left, ECHO),
            (protocol::ICMPV6, Network::Ipv6) => self.icmp(head, at, left, ECHO6),
            _ => return,
        };
        self.transport = found.unwrap_or(Transport::Malformed);
    }

    #[inline]
    fn ports(&mut self, a: [u8; 2], b: [u8; 2]) {
        (self.source_port, self.destination_port) = (u16::from_be_bytes(a), u16::from_be_bytes(b));
    }

    #[inline]
    fn tcp(&mut self, head: &Head, at: usize, left: usize) -> Option<()> {
        let raw: [u8; 20] = head.get(at)?;
        let header = usize::from(raw[12] >> 4) * 4;
        // The first fragment has the header whole, or nobody can say what it is (RFC 1858).
        if header < 20 || header > left {
            return None;
        }
        self.ports([raw[0], raw[1]], [raw[2], raw[3]]);
        self.flags = raw[13];
        Some(())
    }

    #[inline]
    fn udp(&mut self, head: &Head, at: usize, left: usize) -> Option<()> {
        let raw: [u8; 8] = head.get(at)?;
        let len = usize::from(u16::from_be_bytes([raw[4], raw[5]]));
        // Of a fragmented datagram the length is that of the whole.
        if left < 8 || len < 8 || (len > left && !self.fragment) {
            return None;
        }
        self.ports([raw[0], raw[1]], [raw[2], raw[3]]);
        Some(())
    }

    #[inline]
    fn icmp(&mut self, head: &Head, at: usize, left: usize, echo: [u8; 2]) -> Option<Transport> {
        let raw: [u8; 8] = head.get(at)?;
        if left < 8 {
            return None;
        }
        self.ports([raw[0], raw[1]], if echo.contains(&raw[0]) { [raw[4], raw[5]] } else { [0; 2] });
        Some(Transport::Icmp)
    }

    /// The VLAN, 0: none, or one that says only a priority.
    #[inline]
    pub fn vlan(&self) -> u16 {
        if self.tagged == 0 { 0 } else { self.tags[0] & 0xfff }
    }

    /// Whether TCP's or UDP's ports are known.
    #[inline]
    pub fn has_ports(&self) -> bool {
        matches!(self.transport, Transport::Tcp | Transport::Udp)
    }

    /// Where in the transport header its checksum stands.
    #[inline]
    pub fn checksum_at(&self) -> Option<usize> {
        let within = match self.transport {
            Transport::Tcp => zstack_wire::tcp::CHECKSUM,
            Transport::Udp => zstack_wire::udp::CHECKSUM,
            Transport::Icmp => zstack_wire::icmpv4::CHECKSUM,
            Transport::Other | Transport::Malformed => return None,
        };
        Some(usize::from(self.transport_at) + within)
    }
}

const _: () = assert!(HEAD >= 18 + 40 + 40 + 20);
