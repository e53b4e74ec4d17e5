//! IP packets that begin here.

use std::net::IpAddr;
use zstack_wire::{ipv4, ipv6};

/// The hops of packets that begin here.
const HOPS: u8 = 64;

/// An IP packet around a payload whose checksum is its own matter.
///
/// # Panics
/// If the addresses are of two families, or the payload is longer than a packet can be.
pub fn around(source: IpAddr, destination: IpAddr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let len = u16::try_from(payload.len()).expect("a short payload");
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let dont_fragment = true;
            let header =
                ipv4::Header { source, destination, protocol, ttl: HOPS, tos: 0, id: 0, dont_fragment, payload: len };
            let mut out = vec![0; ipv4::HEADER];
            header.emit(&mut out);
            out.extend_from_slice(payload);
            out
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let (hop_limit, traffic_class, flow_label) = (HOPS, 0, 0);
            let header =
                ipv6::Header { source, destination, protocol, hop_limit, traffic_class, flow_label, payload: len };
            let mut out = vec![0; ipv6::HEADER];
            header.emit(&mut out);
            out.extend_from_slice(payload);
            out
        }
        _ => panic!("a packet from {source} to {destination}"),
    }
}
