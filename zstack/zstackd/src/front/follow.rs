//! The routes that the kernel has by the port's interface: read once, and again whenever it says that some have changed (rtnetlink(7)).

use super::Network;
use super::error::Error;
use super::netlink::{Netlink, Refusal};
use super::routes::link;
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteType};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::Socket;
use netlink_sys::protocols::NETLINK_ROUTE;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, BorrowedFd};

/// linux/rtnetlink.h: RTNLGRP_IPV4_ROUTE, IPV6_ROUTE.
const ROUTES: [u32; 2] = [7, 11];

/// A route.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Way {
    /// To where.
    pub network: Network,
    /// Through whom; `None`: directly.
    pub gateway: Option<IpAddr>,
}

/// Follows the main table's routes by one interface, in the network namespace of the thread that makes this.
pub struct Follow {
    events: Socket,
    netlink: Netlink,
    name: String,
    index: u32,
}

impl Follow {
    /// Those by the interface `name`.
    ///
    /// # Errors
    /// Those of netlink, if there is no such interface; the text says what to do.
    pub fn new(name: &str) -> Result<Follow, Error> {
        let refused = |e| Error::refused(format!("the routes by {name} cannot be followed"), &e);
        let mut events = Socket::new(NETLINK_ROUTE).map_err(refused)?;
        events.bind_auto().map_err(refused)?;
        events.set_non_blocking(true).map_err(refused)?;
        for group in ROUTES {
            match events.add_membership(group) {
                // A kernel without IPv6 has not both.
                Err(e) if group == ROUTES[0] => return Err(refused(e)),
                _ => {}
            }
        }
        // After the subscription, so that nothing between is missed.
        let mut netlink = Netlink::strict().map_err(refused)?;
        let index = link(&mut netlink, name)
            .map_err(|e| Error::netlink(format!("the routes by {name} cannot be followed"), &e))?
            .header
            .index;
        Ok(Follow { events, netlink, name: name.to_string(), index })
    }

    /// The routes as they are now; of those to the same network the kernel's first choice. A gateway that is in no network of theirs is
    /// reached directly (`onlink`).
    ///
    /// # Errors
    /// Those of netlink; the text says what to do.
    pub fn ways(&mut self) -> Result<Vec<Way>, Error> {
        let mut all = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut request = RouteMessage::default();
            request.header.address_family = family;
            request.header.table = RouteHeader::RT_TABLE_MAIN;
            request.attributes.push(RouteAttribute::Oif(self.index));
            match self.netlink.dump(&RouteNetlinkMessage::GetRoute(request)) {
                Ok(routes) => all.extend(routes.iter().filter_map(|message| match message {
                    RouteNetlinkMessage::NewRoute(route) => way(route, self.index),
                    _ => None,
                })),
                // The kernel has no IPv6.
                Err(e) if e.is(libc::EAFNOSUPPORT) || e.is(libc::EOPNOTSUPP) => {}
                Err(e) => return Err(self.unreadable(&e)),
            }
        }
        Ok(chosen(all))
    }

    fn unreadable(&self, e: &Refusal) -> Error {
        Error::netlink(format!("the routes by {} cannot be read", self.name), e)
    }

    /// Whether routes may have changed since this was last asked. Never blocks: the descriptor of [`AsFd`] can be slept on.
    ///
    /// # Errors
    /// Those of netlink(7).
    pub fn changed(&mut self) -> io::Result<bool> {
        let mut any = false;
        loop {
            match self.events.recv_from_full() {
                Ok((_, from)) => any |= from.port_number() == 0,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(any),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                // There was more to tell than there was room for.
                Err(e) if e.raw_os_error() == Some(libc::ENOBUFS) => any = true,
                Err(e) => return Err(e),
            }
        }
    }
}

impl AsFd for Follow {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.events.as_fd()
    }
}

/// A route of the main table's by the interface, with its metric, if packets of hosts can take it.
fn way(route: &RouteMessage, index: u32) -> Option<(u32, Way)> {
    let v6 = match route.header.address_family {
        AddressFamily::Inet => false,
        AddressFamily::Inet6 => true,
        _ => return None,
    };
    // Those by type of service, or by source, are not for all packets.
    if route.header.kind != RouteType::Unicast || route.header.tos != 0 || route.header.source_prefix_length != 0 {
        return None;
    }
    let any = if v6 { IpAddr::V6(Ipv6Addr::UNSPECIFIED) } else { IpAddr::V4(Ipv4Addr::UNSPECIFIED) };
    let (mut to, mut metric) = (any, 0);
    let mut table = u32::from(route.header.table);
    // The route's own way, or the first of several by this interface.
    let (mut by, mut gateway) = (None, None);
    let address = |address: &RouteAddress| match address {
        RouteAddress::Inet(ip) => Some(IpAddr::V4(*ip)),
        RouteAddress::Inet6(ip) => Some(IpAddr::V6(*ip)),
        _ => None,
    };
    let gateway_of = |attribute: &RouteAttribute| match attribute {
        RouteAttribute::Gateway(to) => address(to),
        _ => None,
    };
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Destination(destination) => to = address(destination)?,
            RouteAttribute::Priority(priority) => metric = *priority,
            RouteAttribute::Table(number) => table = *number,
            RouteAttribute::Oif(interface) => by = Some(*interface),
            RouteAttribute::Gateway(_) => gateway = gateway_of(attribute),
            // IPv4 by a gateway of IPv6: the engine has no such thing.
            RouteAttribute::Via(_) => return None,
            RouteAttribute::MultiPath(hops) => {
                let hop = hops.iter().find(|hop| hop.interface_index == index)?;
                by = Some(index);
                gateway = hop.attributes.iter().find_map(gateway_of);
            }
            _ => {}
        }
    }
    let network = Network { address: to, prefix: route.header.destination_prefix_length };
    let is_it = by == Some(index) && table == u32::from(RouteHeader::RT_TABLE_MAIN) && !to.is_multicast();
    is_it.then_some((metric, Way { network, gateway }))
}

/// Of ways to the same network the one with the lowest metric; and ways to gateways that none leads to.
fn chosen(mut all: Vec<(u32, Way)>) -> Vec<Way> {
    all.sort_by_key(|(metric, _)| *metric);
    let mut ways: Vec<Way> = Vec::with_capacity(all.len());
    for (_, way) in all {
        if !ways.iter().any(|other| other.network == way.network) {
            ways.push(way);
        }
    }
    let direct = |ways: &[Way], ip| ways.iter().any(|way| way.gateway.is_none() && way.network.covers(ip));
    let gateways: Vec<IpAddr> = ways.iter().filter_map(|way| way.gateway).collect();
    for gateway in gateways {
        if !direct(&ways, gateway) {
            let network = Network { address: gateway, prefix: Network::longest(gateway.is_ipv6()) };
            ways.push(Way { network, gateway: None });
        }
    }
    ways
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_metric_counts_and_gateways_are_reached() {
        let network = |text: &str| {
            let (ip, prefix) = text.split_once('/').unwrap();
            Network { address: ip.parse().unwrap(), prefix: prefix.parse().unwrap() }
        };
        let way = |to: &str, by: Option<&str>| Way { network: network(to), gateway: by.map(|ip| ip.parse().unwrap()) };
        let ways = chosen(vec![
            (200, way("0.0.0.0/0", Some("10.0.0.2"))),
            (100, way("0.0.0.0/0", Some("10.0.0.1"))),
            (0, way("10.0.0.0/24", None)),
            (0, way("10.9.0.0/16", Some("192.0.2.1"))),
            (1024, way("::/0", Some("fe80::1"))),
        ]);
        let expected = [
            way("10.0.0.0/24", None),
            way("10.9.0.0/16", Some("192.0.2.1")),
            way("0.0.0.0/0", Some("10.0.0.1")),
            way("::/0", Some("fe80::1")),
            way("192.0.2.1/32", None),
            way("fe80::1/128", None),
        ];
        assert_eq!(ways, expected);
    }
}
