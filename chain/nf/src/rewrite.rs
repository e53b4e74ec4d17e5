//! Other addresses and ports for a packet, with the checksums that count them.

use crate::checksum::Delta;
use crate::packet::{Head, Packet};
use crate::parsed::{Network, Parsed, Transport};
use std::net::IpAddr;

/// An end of a packet's way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct End {
    /// Its address.
    pub address: IpAddr,
    /// Its port; of an ICMP echo, the identifier.
    pub port: u16,
}

/// Gives the packet another sender, another receiver, or both: IP's header, TCP's or UDP's ports or an echo's identifier, and the
/// checksums. `parsed` is what `head`, the copy of its head, says; both are kept true. An echo has one identifier, which is the source's if
/// both are given.
///
/// False, and nothing was changed: it is not IP, an address is of the other family, or its ports are not known while ports are to change (of a later fragment the
/// address alone changes: it has no ports).
#[must_use = "what cannot be changed must not go on as if it had been"]
pub fn readdress(
    packet: &mut Packet<'_>,
    head: &mut Head,
    parsed: &mut Parsed,
    source: Option<End>,
    destination: Option<End>,
) -> bool {
    let fits = |end: Option<End>| end.is_none_or(|e| e.address.is_ipv4() == (parsed.network == Network::Ipv4));
    let known = parsed.later_fragment || !matches!(parsed.transport, Transport::Malformed | Transport::Other);
    let is_ip = matches!(parsed.network, Network::Ipv4 | Network::Ipv6);
    if !is_ip || !known || !fits(source) || !fits(destination) {
        return false;
    }
    let (network, transport) = (usize::from(parsed.network_at), usize::from(parsed.transport_at));
    let end = parsed.checksum_at().map_or(transport, |at| (at + 2).max(transport + 6));
    if end > head.bytes().len() && !parsed.later_fragment {
        return false;
    }
    let (mut addresses, mut ports) = (Delta::NONE, Delta::NONE);
    for (new, old, v4, v6) in [(source, &mut parsed.source, 12, 8), (destination, &mut parsed.destination, 16, 24)] {
        let Some(End { address, .. }) = new else { continue };
        addresses = addresses.address(*old, address);
        match address {
            IpAddr::V4(a) => head.set(network + v4, a.octets()),
            IpAddr::V6(a) => head.set(network + v6, a.octets()),
        }
        *old = address;
    }
    if let (Network::Ipv4, Some(field)) = (parsed.network, head.get(network + 10)) {
        head.set(network + 10, addresses.apply(u16::from_be_bytes(field)).to_be_bytes());
    }
    match parsed.transport {
        _ if parsed.later_fragment => {}
        Transport::Icmp => {
            let new = source.or(destination).filter(|_| is_echo(parsed));
            if let Some(End { port, .. }) = new {
                ports = ports.word(parsed.destination_port, port);
                head.set(transport + 4, port.to_be_bytes());
                parsed.destination_port = port;
            }
        }
        _ => {
            let both = [(source, &mut parsed.source_port, 0), (destination, &mut parsed.destination_port, 2)];
            for (new, old, at) in both {
                let Some(End { port, .. }) = new else { continue };
                ports = ports.word(*old, port);
                head.set(transport + at, port.to_be_bytes());
                *old = port;
            }
        }
    }
    if let Some(at) = parsed.checksum_at()
        && let Some(field) = head.get(at)
    {
        let field = u16::from_be_bytes(field);
        let new = match (parsed.transport, parsed.network) {
            (Transport::Udp, _) => addresses.with(ports).apply_udp(field),
            // ICMP of IPv4 has no pseudo header.
            (Transport::Icmp, Network::Ipv4) => ports.apply(field),
            _ => addresses.with(ports).apply(field),
        };
        head.set(at, new.to_be_bytes());
    }
    // A later fragment's header of IPv6 with its extensions may be longer than the head: what changed is in the first 40 bytes.
    packet.write_back(head, network, end.min(head.bytes().len()))
}

/// Whether it is an ICMP message with an identifier.
fn is_echo(parsed: &Parsed) -> bool {
    let kind = parsed.source_port >> 8;
    match parsed.network {
        Network::Ipv4 => matches!(kind, 0 | 8),
        _ => matches!(kind, 128 | 129),
    }
}
