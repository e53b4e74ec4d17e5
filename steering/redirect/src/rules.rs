//! Rules as bpf/redirect.bpf.c has them (`struct rule`).

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use steering::{Dead, Diversion, Family, Onward, Ports, Prefix};

/// The size of a rule.
pub(crate) const SIZE: usize = 20 + 16 + 16 + 4 + 4;

const KERNEL: u32 = 1;
const OPEN: u32 = 2;
const CLOSED: u32 = 3;

fn octets(ip: IpAddr) -> [u8; 16] {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    }
    .octets()
}

/// A rule's bytes.
pub(crate) fn bytes(diversion: &Diversion) -> [u8; SIZE] {
    let any = match diversion.family {
        Family::Ipv4 => Prefix { ip: IpAddr::from([0, 0, 0, 0]), len: 0 },
        Family::Ipv6 => Prefix { ip: Ipv6Addr::UNSPECIFIED.into(), len: 0 },
    };
    let network = diversion.destination.unwrap_or(any);
    let ports = diversion.ports.unwrap_or(Ports { first: 0, last: u16::MAX });
    let mut mask = octets(network.mask());
    if diversion.family == Family::Ipv4 {
        // All mapped addresses are of it.
        mask[..12].fill(0xff);
    }
    let mut out = [0; SIZE];
    let what = match diversion.to {
        Onward::Kernel => KERNEL,
        Onward::Middlebox(at, dead) => {
            out[..16].copy_from_slice(&octets(at.ip()));
            out[16..18].copy_from_slice(&at.port().to_be_bytes());
            if dead == Dead::Open { OPEN } else { CLOSED }
        }
    };
    out[20..36].copy_from_slice(&octets(network.ip));
    out[36..52].copy_from_slice(&mask);
    out[52..54].copy_from_slice(&ports.first.to_ne_bytes());
    out[54..56].copy_from_slice(&ports.last.to_ne_bytes());
    out[56..60].copy_from_slice(&what.to_ne_bytes());
    out
}

/// The rule of these bytes; `None`: there is none.
pub(crate) fn read(bytes: &[u8]) -> Option<Diversion> {
    let bytes: &[u8; SIZE] = bytes.try_into().ok()?;
    let address = |at: usize| {
        let octets: [u8; 16] = bytes[at..at + 16].try_into().unwrap_or_default();
        Ipv6Addr::from(octets)
    };
    let number = |at: usize| u16::from_ne_bytes([bytes[at], bytes[at + 1]]);
    let network = address(20);
    // A network of IPv6 may be wider than the mapped addresses, which are IPv4's.
    let mask = u128::from(address(36));
    let ipv4 = network.to_ipv4_mapped().filter(|_| mask.leading_ones() >= 96);
    let (family, ip, len) = match ipv4 {
        Some(ip) => (Family::Ipv4, IpAddr::V4(ip), mask.leading_ones() - 96),
        None => (Family::Ipv6, IpAddr::V6(network), mask.leading_ones()),
    };
    let to = |dead| {
        Onward::Middlebox(SocketAddr::new(address(0).to_canonical(), u16::from_be_bytes([bytes[16], bytes[17]])), dead)
    };
    let to = match u32::from_ne_bytes([bytes[56], bytes[57], bytes[58], bytes[59]]) {
        KERNEL => Onward::Kernel,
        OPEN => to(Dead::Open),
        CLOSED => to(Dead::Closed),
        _ => return None,
    };
    let ports = Ports { first: number(52), last: number(54) };
    Some(Diversion {
        family,
        destination: (len > 0).then_some(Prefix { ip, len: len as u8 }),
        ports: (ports != Ports { first: 0, last: u16::MAX }).then_some(ports),
        to,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_laid_out_is_read_again() {
        for text in [
            "family ipv4 to kernel",
            "family ipv6 to ::1 15001 dead open",
            "family ipv4 destination 10.0.0.0/8 destination-ports 80-90 to 127.0.0.1 15001 dead closed",
            "family ipv6 destination fd00::/8 destination-ports 443 to fd09::1 1 dead open",
            "family ipv4 destination 10.1.2.3/32 to 127.0.0.1 65535 dead open",
        ] {
            let diversion: Diversion = text.parse().expect(text);
            assert_eq!(read(&bytes(&diversion)).expect(text).to_string(), text);
        }
        assert_eq!(read(&[0; SIZE]), None);
    }
}
