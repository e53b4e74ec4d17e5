//! Addresses with their prefixes, and what kind of address one is.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// An address of ours and the length of its network's prefix.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Address {
    /// The address.
    pub ip: IpAddr,
    /// How many leading bits name the network that it is in: at most 32 or 128.
    pub prefix: u8,
}

impl Address {
    /// Whether `other` is in the same network.
    pub fn covers(&self, other: IpAddr) -> bool {
        covers(self.ip, self.prefix, other)
    }

    /// The network's broadcast address: IPv4 only, and only with a prefix of at most 30 bits (RFC 3021).
    pub fn broadcast(&self) -> Option<Ipv4Addr> {
        match self.ip {
            IpAddr::V4(ip) if self.prefix <= 30 => Some(Ipv4Addr::from_bits(ip.to_bits() | u32::MAX >> self.prefix)),
            _ => None,
        }
    }
}

/// Whether the first `prefix` bits of both are the same.
pub(super) fn covers(network: IpAddr, prefix: u8, other: IpAddr) -> bool {
    match (network, other) {
        (IpAddr::V4(a), IpAddr::V4(b)) => match 32 - u32::from(prefix) {
            32 => true,
            host => (a.to_bits() ^ b.to_bits()) >> host == 0,
        },
        (IpAddr::V6(a), IpAddr::V6(b)) => match 128 - u32::from(prefix) {
            128 => true,
            host => (a.to_bits() ^ b.to_bits()) >> host == 0,
        },
        _ => false,
    }
}

/// Whether a single host may have this address: not "this network", loopback, multicast or reserved (RFC 1122, 3.2.1.3;
/// RFC 4291, 2.7).
#[inline]
pub(super) fn unicast(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => unicast_v4(ip),
        IpAddr::V6(ip) => unicast_v6(ip),
    }
}

#[inline]
pub(super) fn unicast_v4(ip: Ipv4Addr) -> bool {
    let first = ip.octets()[0];
    first != 0 && first != 127 && first < 224
}

#[inline]
pub(super) fn unicast_v6(ip: Ipv6Addr) -> bool {
    // A v4-mapped address means IPv4 to a host's own sockets and is never on the wire (RFC 4942, 2.2).
    let bits = ip.to_bits();
    bits > 1 && bits >> 120 != 0xff && bits >> 32 != 0xffff
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn prefixes_cover_their_networks() {
        let cases = [
            ("10.1.2.3", 24, "10.1.2.200", true),
            ("10.1.2.3", 24, "10.1.3.3", false),
            ("10.1.2.3", 0, "200.0.0.1", true),
            ("10.1.2.3", 32, "10.1.2.3", true),
            ("10.1.2.3", 32, "10.1.2.2", false),
            ("fd00::1", 64, "fd00::ffff:2", true),
            ("fd00::1", 64, "fd00:0:0:1::1", false),
            ("fd00::1", 0, "2001::1", true),
            ("fd00::1", 128, "fd00::1", true),
            ("10.1.2.3", 0, "fd00::1", false),
        ];
        for (network, prefix, other, expected) in cases {
            assert_eq!(Address { ip: ip(network), prefix }.covers(ip(other)), expected, "{network}/{prefix} {other}");
        }
    }

    #[test]
    fn broadcast_ends_in_ones() {
        assert_eq!(Address { ip: ip("10.1.2.3"), prefix: 24 }.broadcast(), Some(Ipv4Addr::new(10, 1, 2, 255)));
        assert_eq!(Address { ip: ip("10.1.2.3"), prefix: 0 }.broadcast(), Some(Ipv4Addr::BROADCAST));
        assert_eq!(Address { ip: ip("10.1.2.3"), prefix: 31 }.broadcast(), None);
        assert_eq!(Address { ip: ip("fd00::1"), prefix: 64 }.broadcast(), None);
    }

    #[test]
    fn hosts_have_unicast_addresses() {
        for no in [
            "0.0.0.0",
            "0.1.2.3",
            "127.0.0.1",
            "224.0.0.1",
            "255.255.255.255",
            "240.0.0.1",
            "::",
            "::1",
            "ff02::1",
            "::ffff:1.2.3.4",
        ] {
            assert!(!unicast(ip(no)), "{no}");
        }
        for yes in ["1.0.0.1", "10.0.0.1", "223.255.255.255", "fe80::1", "2001:db8::1", "::2"] {
            assert!(unicast(ip(yes)), "{yes}");
        }
    }
}
