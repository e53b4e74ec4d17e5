//! Static routes: the longest prefix wins.

use super::address::{Address, covers};
use crate::fold::Fold;
use std::collections::HashMap;
use std::hash::BuildHasherDefault;
use std::net::IpAddr;

/// A static route.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Route {
    /// The network: an address in it, and the length of its prefix (0: the default route).
    pub network: Address,
    /// Who forwards to it; `None`: it is reached directly.
    pub gateway: Option<IpAddr>,
}

/// Those of one length: by their network.
type Networks = HashMap<u128, Option<IpAddr>, BuildHasherDefault<Fold>>;

/// Routes by the length of their prefix: a look-up costs one hash for each length that occurs, however many routes there are.
#[derive(Debug, Default)]
pub(super) struct Table {
    v4: Vec<(u8, Networks)>,
    v6: Vec<(u8, Networks)>,
}

impl Table {
    /// Of routes to the same network the first one counts.
    pub fn new(routes: impl Iterator<Item = Route>) -> Table {
        let mut table = Table::default();
        for Route { network: Address { ip, prefix }, gateway } in routes {
            let lengths = if ip.is_ipv4() { &mut table.v4 } else { &mut table.v6 };
            let place = lengths.partition_point(|&(longer, _)| longer > prefix);
            if lengths.get(place).is_none_or(|&(same, _)| same != prefix) {
                lengths.insert(place, (prefix, Networks::default()));
            }
            lengths[place].1.entry(masked(ip, prefix)).or_insert(gateway);
        }
        table
    }

    /// The neighbour through whom `destination` is reached: it itself, or a gateway.
    pub fn next_hop(&self, destination: IpAddr) -> Option<IpAddr> {
        let lengths = if destination.is_ipv4() { &self.v4 } else { &self.v6 };
        let gateway = lengths.iter().find_map(|(prefix, routes)| routes.get(&masked(destination, *prefix)))?;
        Some(gateway.unwrap_or(destination))
    }
}

fn masked(ip: IpAddr, prefix: u8) -> u128 {
    let (bits, host) = match ip {
        IpAddr::V4(ip) => (u128::from(ip.to_bits()), 32 - u32::from(prefix)),
        IpAddr::V6(ip) => (ip.to_bits(), 128 - u32::from(prefix)),
    };
    bits.checked_shr(host).unwrap_or(0)
}

/// How well an address of ours suits as the source towards `destination`: the larger the better (RFC 6724, section 5: rules 1,
/// 2 and 8; all our addresses belong to one interface, and none is deprecated). `hop`: the neighbour on the way.
pub(super) fn fitness(own: &Address, destination: IpAddr, hop: IpAddr) -> Option<(bool, bool, bool, u32)> {
    let (local, common) = match (own.ip, destination) {
        (IpAddr::V4(a), IpAddr::V4(b)) => {
            (a.is_link_local() == b.is_link_local(), (a.to_bits() ^ b.to_bits()).leading_zeros())
        }
        (IpAddr::V6(a), IpAddr::V6(b)) => {
            (a.is_unicast_link_local() == b.is_unicast_link_local(), (a.to_bits() ^ b.to_bits()).leading_zeros())
        }
        _ => return None,
    };
    // Bits beyond our own prefix say nothing of closeness (rule 8 counts only those of the prefix).
    Some((own.ip == destination, local, covers(own.ip, own.prefix, hop), common.min(u32::from(own.prefix))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn route(network: &str, prefix: u8, gateway: Option<&str>) -> Route {
        Route { network: Address { ip: ip(network), prefix }, gateway: gateway.map(ip) }
    }

    #[test]
    fn the_longest_prefix_wins() {
        let table = Table::new(
            [
                route("0.0.0.0", 0, Some("10.0.0.254")),
                route("10.0.0.1", 24, None),
                route("10.0.0.128", 25, Some("10.0.0.2")),
                route("10.0.0.200", 32, None),
                route("10.0.0.200", 32, Some("10.0.0.9")),
                route("fd00::", 64, None),
            ]
            .into_iter(),
        );
        let cases = [
            ("8.8.8.8", Some("10.0.0.254")),
            ("10.0.0.7", Some("10.0.0.7")),
            ("10.0.0.129", Some("10.0.0.2")),
            ("10.0.0.200", Some("10.0.0.200")),
            ("10.0.1.1", Some("10.0.0.254")),
            ("fd00::5", Some("fd00::5")),
            ("fd00:0:0:1::5", None),
        ];
        for (to, hop) in cases {
            assert_eq!(table.next_hop(ip(to)), hop.map(ip), "{to}");
        }
    }

    #[test]
    fn routes_are_as_a_scan_of_all() {
        let mut state = 7u32;
        let mut random = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state >> 8
        };
        let v4 = |n: u32| IpAddr::V4(std::net::Ipv4Addr::from_bits(n));
        let routes: Vec<_> = (0..200)
            .map(|n| Route {
                network: Address { ip: v4(random() << 16), prefix: (random() % 17) as u8 },
                gateway: Some(v4(n)),
            })
            .collect();
        let table = Table::new(routes.iter().copied());
        for _ in 0..2000 {
            let to = v4(random() << 16);
            let covering = routes.iter().filter(|route| route.network.covers(to));
            // Of equals the first.
            let best = covering.rev().max_by_key(|route| route.network.prefix);
            assert_eq!(table.next_hop(to), best.and_then(|route| route.gateway));
        }
    }

    #[test]
    fn sources() {
        let own = [
            ("10.0.0.1", 24),
            ("10.0.1.1", 24),
            ("169.254.1.1", 16),
            ("fe80::1", 64),
            ("fd00::1", 64),
            ("2001:db8::1", 64),
        ]
        .map(|(text, prefix)| Address { ip: ip(text), prefix });
        let cases = [
            ("10.0.1.9", "10.0.1.9", "10.0.1.1"),
            ("10.0.0.9", "10.0.0.9", "10.0.0.1"),
            ("8.8.8.8", "10.0.1.254", "10.0.1.1"),
            ("169.254.9.9", "169.254.9.9", "169.254.1.1"),
            ("fe80::9", "fe80::9", "fe80::1"),
            ("fd00::9", "fd00::9", "fd00::1"),
            ("2001:db9::1", "fe80::2", "2001:db8::1"),
            ("10.0.1.1", "10.0.1.1", "10.0.1.1"),
        ];
        for (destination, hop, source) in cases {
            let best = own
                .iter()
                .filter_map(|own| Some((fitness(own, ip(destination), ip(hop))?, own.ip)))
                .max_by_key(|&(fit, _)| fit);
            assert_eq!(best.map(|(_, ip)| ip), Some(ip(source)), "{destination}");
        }
    }
}
