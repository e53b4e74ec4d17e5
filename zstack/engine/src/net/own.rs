//! The set of our addresses: whether one is ours costs a few instructions on the hot path, and a logarithm at most.

use super::address::{Address, unicast_v4, unicast_v6};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use zstack_wire::ndp::is_solicited_node;

/// Our addresses and our networks' broadcast addresses.
#[derive(Debug, Default)]
pub(super) struct Own {
    /// Sorted.
    v4: Vec<u32>,
    v6: Vec<u128>,
    broadcasts: Vec<u32>,
    /// A bit for each that is in `v4` or `broadcasts`, and for each in `v6`: where it is clear, the address is none of them.
    bits_v4: u64,
    bits_v6: u64,
}

impl Own {
    pub fn new(addresses: &[Address]) -> Own {
        let mut own = Own::default();
        for address in addresses {
            match address.ip {
                IpAddr::V4(ip) => own.v4.push(ip.to_bits()),
                IpAddr::V6(ip) => own.v6.push(ip.to_bits()),
            }
            // The address of the network itself is an old broadcast address (RFC 1122, 3.2.1.3; RFC 1812, 5.3.5.2).
            if let (Some(broadcast), IpAddr::V4(ip)) = (address.broadcast(), address.ip) {
                let network = ip.to_bits() & !u32::MAX.checked_shr(u32::from(address.prefix)).unwrap_or(0);
                own.broadcasts.extend([broadcast.to_bits(), network]);
            }
        }
        for list in [&mut own.v4, &mut own.broadcasts] {
            list.sort_unstable();
            list.dedup();
        }
        own.v6.sort_unstable();
        own.v6.dedup();
        own.bits_v4 = own.v4.iter().chain(&own.broadcasts).fold(0, |bits, &ip| bits | bit_v4(ip));
        own.bits_v6 = own.v6.iter().fold(0, |bits, &ip| bits | bit_v6(ip));
        own
    }

    #[inline]
    pub fn has_v4(&self, ip: Ipv4Addr) -> bool {
        let ip = ip.to_bits();
        match self.v4[..] {
            [only] => only == ip,
            _ => self.bits_v4 & bit_v4(ip) != 0 && self.v4.binary_search(&ip).is_ok(),
        }
    }

    #[inline]
    pub fn has_v6(&self, ip: Ipv6Addr) -> bool {
        let ip = ip.to_bits();
        match self.v6[..] {
            [only] => only == ip,
            _ => self.bits_v6 & bit_v6(ip) != 0 && self.v6.binary_search(&ip).is_ok(),
        }
    }

    pub fn has(&self, ip: IpAddr) -> bool {
        match ip {
            IpAddr::V4(ip) => self.has_v4(ip),
            IpAddr::V6(ip) => self.has_v6(ip),
        }
    }

    /// Whether it is a broadcast address of one of our networks, or the one of all.
    #[inline]
    pub fn broadcast(&self, ip: Ipv4Addr) -> bool {
        ip.is_broadcast()
            || self.bits_v4 & bit_v4(ip.to_bits()) != 0 && self.broadcasts.binary_search(&ip.to_bits()).is_ok()
    }

    /// Whether somebody else may have sent from this address.
    #[inline]
    pub fn foreign_v4(&self, ip: Ipv4Addr) -> bool {
        unicast_v4(ip) && (self.bits_v4 & bit_v4(ip.to_bits()) == 0 || !self.has_v4(ip) && !self.broadcast(ip))
    }

    /// Whether somebody else may have sent from this address.
    #[inline]
    pub fn foreign_v6(&self, ip: Ipv6Addr) -> bool {
        unicast_v6(ip) && (self.bits_v6 & bit_v6(ip.to_bits()) == 0 || !self.has_v6(ip))
    }

    /// Whether a solicited-node group (RFC 4291, section 2.7.1) is that of an address of ours.
    pub fn solicited(&self, group: Ipv6Addr) -> bool {
        let low = group.to_bits() & 0xff_ffff;
        is_solicited_node(&group) && self.v6.iter().any(|ip| ip & 0xff_ffff == low)
    }
}

#[inline]
fn bit_v4(ip: u32) -> u64 {
    1 << (ip.wrapping_mul(0x9e37_79b1) >> 26)
}

#[inline]
fn bit_v6(ip: u128) -> u64 {
    let folded = (ip as u64 ^ (ip >> 64) as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    1 << (folded >> 58)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own(list: &[(&str, u8)]) -> Own {
        Own::new(&list.iter().map(|&(text, prefix)| Address { ip: text.parse().unwrap(), prefix }).collect::<Vec<_>>())
    }

    #[test]
    fn ours_and_theirs() {
        let own = own(&[("10.0.0.1", 24), ("10.0.0.2", 24), ("192.168.1.1", 30), ("fd00::1", 64)]);
        for ours in ["10.0.0.1", "10.0.0.2", "192.168.1.1", "fd00::1"] {
            assert!(own.has(ours.parse().unwrap()), "{ours}");
        }
        for not in ["10.0.0.3", "10.0.0.255", "fd00::2"] {
            assert!(!own.has(not.parse().unwrap()), "{not}");
        }
        for (ip, foreign) in [
            ("10.0.0.3", true),
            ("10.0.0.1", false),
            ("10.0.0.255", false),
            ("10.0.0.0", false),
            ("192.168.1.2", true),
            ("192.168.1.3", false),
            ("255.255.255.255", false),
            ("224.0.0.1", false),
            ("8.8.8.8", true),
        ] {
            assert_eq!(own.foreign_v4(ip.parse().unwrap()), foreign, "{ip}");
        }
        assert!(own.foreign_v6("fd00::2".parse().unwrap()));
        assert!(!own.foreign_v6("fd00::1".parse().unwrap()));
        assert!(!own.foreign_v6("ff02::1".parse().unwrap()));
    }

    #[test]
    fn many_addresses_are_found_and_no_others() {
        let list: Vec<_> = (0..2000u32)
            .map(|n| Address { ip: IpAddr::V4(Ipv4Addr::from_bits(0x0a00_0001 + 3 * n)), prefix: 32 })
            .collect();
        let own = Own::new(&list);
        for n in 0..6000u32 {
            let ip = Ipv4Addr::from_bits(0x0a00_0001 + n);
            assert_eq!(own.has_v4(ip), n % 3 == 0);
            assert_eq!(own.foreign_v4(ip), n % 3 != 0);
        }
    }

    #[test]
    fn solicited_node_groups() {
        let own = own(&[("2001:db8::1:800:200e:8c6c", 64)]);
        // RFC 4291, section 2.7.1 has this example.
        assert!(own.solicited("ff02::1:ff0e:8c6c".parse().unwrap()));
        assert!(!own.solicited("ff02::1:ff0e:8c6d".parse().unwrap()));
        assert!(!own.solicited("ff02::1".parse().unwrap()));
    }
}
