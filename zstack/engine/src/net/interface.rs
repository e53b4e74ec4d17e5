//! One port's link and network layer.

use super::address::{Address, unicast};
use super::neighbour::{Cache, LINK, Mac};
use super::own::Own;
use super::pmtu::{self, Pmtu};
use super::quick::Quick;
use super::report::Report;
use super::route::{Route, Table, fitness};
use super::segment::Segment;
use super::unsent::Event;
use crate::counters::Counter;
use crate::port::{Capabilities, Medium};
use crate::rate::Bucket;
use crate::time::Time;
use crate::tuple::{Mapped, unmap};
use std::collections::HashSet;
use std::net::IpAddr;
use std::ops::Range;

/// What an interface is told once.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// Our addresses; the networks of their prefixes are reached directly.
    pub addresses: Vec<Address>,
    /// Where other networks are reached. What no route and no prefix of ours covers cannot be answered either.
    pub routes: Vec<Route>,
    /// Our station address: needed on Ethernet.
    pub mac: Option<[u8; 6]>,
    /// The VLAN whose tag is put on every frame sent; frames of others are not taken. `None`: no tags.
    pub vlan: Option<u16>,
    /// Every unicast address is ours, as far as arriving packets are concerned, and on Ethernet as far as others ask for its
    /// station; gateways' are not.
    pub any_address: bool,
    /// What is of no use here is [passed on](Verdict::Pass), to whoever else has our addresses.
    pub bridge: bool,
    /// A secret that keys hashes.
    pub key: [u8; 16],
}

/// Why an interface cannot be as it was asked for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ConfigError(pub(super) String);

impl std::fmt::Display for ConfigError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for ConfigError {}

/// A connection's way to its peer, remembered so that not every segment looks for it. A copy of it may be out of date, which
/// [`Interface::head`] notices.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Path {
    pub(super) slot: u16,
    /// The path MTU lies below what we will reduce to: routers may fragment (Linux: `ip_rt_min_pmtu`).
    pub(super) fragment: bool,
    /// The [state](pmtu::Cache::state) of what was told of path MTUs when this was looked at.
    pub(super) told: u8,
    /// 0: not looked for yet.
    pub(super) generation: u32,
}

impl Path {
    /// The way is looked for anew.
    pub fn forget(&mut self) {
        self.generation = 0;
    }
}

/// What became of a frame.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// It is a segment for TCP.
    Tcp(Segment),
    /// It is answered: the first so many bytes of the reply buffer are a frame to be sent.
    Reply(usize),
    /// It is an error about a packet of ours.
    Report(Report),
    /// It answers an echo request ([`Interface::echo`]).
    Echo {
        /// Who answers.
        from: IpAddr,
        /// The request's identifier.
        id: u16,
        /// The request's sequence number.
        sequence: u16,
        /// The hop limit that the answer came with.
        hops: u8,
        /// Where its data lie in the frame.
        range: Range<usize>,
    },
    /// It is of no use here, and may be to somebody else who has our addresses: only of a [bridge](Config::bridge).
    Pass,
    /// It told us something of a neighbour; nothing follows but perhaps [events](Interface::event).
    Done,
    /// It was dropped, and counted.
    Dropped(Counter),
}

/// The link and network layer of one port.
#[derive(Debug)]
pub struct Interface {
    pub(super) addresses: Vec<Address>,
    pub(super) any_address: bool,
    pub(super) bridge: bool,
    pub(super) vlan: Option<u16>,
    pub(super) mac: Option<Mac>,
    pub(super) mtu: u16,
    pub(super) own: Own,
    pub(super) quick: Quick,
    pub(super) routes: Table,
    /// Sorted.
    pub(super) gateways: Vec<IpAddr>,
    pub(super) neighbours: Cache,
    pub(super) paths: pmtu::Cache,
    /// Answers to echo requests.
    pub(super) echoes: Bucket,
    /// ICMP errors.
    pub(super) errors: Bucket,
    /// The identification of the next IPv4 packet that routers may fragment.
    pub(super) id: u16,
}

/// Answers to echo requests a second, and at once. A flood of them costs us and whoever is named as its source.
const ECHOES: (u64, u64) = (10_000, 1000);
/// ICMP errors a second, and at once (Linux: `icmp_msgs_per_sec`, `icmp_msgs_burst`).
const ERRORS: (u64, u64) = (1000, 50);

impl Interface {
    /// The longest link and IP header: Ethernet, a VLAN tag, IPv6.
    pub const HEAD: usize = LINK + 40;

    /// An interface for a port with these capabilities.
    ///
    /// # Errors
    /// The configuration contradicts itself or the port.
    pub fn new(config: Config, port: Capabilities, now: Time) -> Result<Interface, ConfigError> {
        check(&config, port).map_err(ConfigError)?;
        let Config { addresses, routes, mac, vlan, any_address, bridge, key } = config;
        let (routes, gateways) = table(&routes, &addresses);
        // What is hashed, and with which key, differs from cache to cache.
        let key_for = |use_: u8| {
            let mut key = key;
            key[15] ^= use_;
            key
        };
        let mac = mac.filter(|_| port.medium == Medium::Ethernet);
        let neighbours = Cache::new(mac, vlan, key_for(1), now);
        Ok(Interface {
            own: Own::new(&addresses),
            quick: Quick::new(mac, vlan, neighbours.link_len()),
            routes,
            addresses,
            any_address,
            bridge,
            vlan,
            mac,
            mtu: port.mtu,
            gateways,
            neighbours,
            paths: pmtu::Cache::new(key_for(2)),
            echoes: Bucket::new(ECHOES.0, ECHOES.1),
            errors: Bucket::new(ERRORS.0, ERRORS.1),
            id: u16::from_be_bytes([key[0], key[1]]),
        })
    }

    /// These routes, in the place of those from before. Every [`Path`] is to be forgotten.
    ///
    /// # Errors
    /// They contradict the addresses, and nothing has changed.
    pub fn set_routes(&mut self, routes: &[Route]) -> Result<(), ConfigError> {
        let medium = if self.mac.is_some() { Medium::Ethernet } else { Medium::Ip };
        check_routes(routes, &self.addresses, medium).map_err(ConfigError)?;
        (self.routes, self.gateways) = table(routes, &self.addresses);
        Ok(())
    }

    /// The address that a packet to `destination` should have as its source (RFC 6724), if there is a route and an address of
    /// the family. It looks at each of our addresses.
    pub fn source(&self, destination: IpAddr) -> Option<IpAddr> {
        let hop = self.routes.next_hop(destination)?;
        let fit = self.addresses.iter().filter_map(|own| Some((fitness(own, destination, hop)?, own.ip)));
        // Of equals the first.
        fit.rev().max_by_key(|&(fit, _)| fit).map(|(_, ip)| ip)
    }

    /// Whether a packet to this address is for us.
    pub fn is_ours(&self, ip: IpAddr) -> bool {
        self.own.has(ip) || self.any_address && unicast(ip) && !self.is_broadcast(ip)
    }

    fn is_broadcast(&self, ip: IpAddr) -> bool {
        matches!(ip, IpAddr::V4(ip) if self.own.broadcast(ip))
    }

    /// Whether packets can be sent to this address: it is a single host's, not our own, and a route leads there.
    pub fn reaches(&self, destination: IpAddr) -> bool {
        self.next_hop(destination).is_some()
    }

    pub(super) fn next_hop(&self, destination: IpAddr) -> Option<IpAddr> {
        let single = unicast(destination) && !self.own.has(destination) && !self.is_broadcast(destination);
        if single { self.routes.next_hop(destination) } else { None }
    }

    /// The largest IP packet, in bytes, that reaches `destination` whole, as far as is known.
    pub fn mtu(&self, now: Time, destination: IpAddr) -> u16 {
        self.paths.get(now, destination).map_or(self.mtu, |path| path.mtu.min(self.mtu))
    }

    /// The path MTU, if it may have changed since this was asked for the connection's path last: another connection was told of it, or
    /// what was told has aged. To be asked before a connection sends; a comparison, nearly always.
    #[inline]
    pub fn news(&mut self, now: Time, path: &mut Path, destination: &Mapped) -> Option<u16> {
        if path.told == self.paths.state() { None } else { Some(self.look(now, path, unmap(destination))) }
    }

    #[cold]
    fn look(&mut self, now: Time, path: &mut Path, destination: IpAddr) -> u16 {
        path.told = self.paths.state();
        path.fragment = self.paths.get(now, destination).is_some_and(|pmtu| pmtu.fragment);
        self.mtu(now, destination)
    }

    /// Path MTUs that were told ten minutes ago are forgotten: to be called now and then, before connections send.
    #[inline]
    pub fn age(&mut self, now: Time) {
        self.paths.age(now);
    }

    /// A report of [`super::Kind::TooBig`] about a segment of this connection is believed. Returns the path MTU to use from
    /// now on if it is lower than before. It is forgotten after ten minutes (RFC 8201, section 4), of which
    /// [`Interface::news`] tells.
    ///
    /// Below 552 bytes of IPv4 none is believed, and routers may then fragment (Linux: `min_pmtu`); of IPv6 none below 1280
    /// (RFC 8201, section 4).
    pub fn too_big(&mut self, now: Time, path: &mut Path, destination: IpAddr, mtu: u16) -> Option<u16> {
        let current = self.paths.get(now, destination).unwrap_or(Pmtu { mtu: self.mtu, fragment: false });
        let new = self.paths.told(now, destination, mtu, current);
        path.fragment = new.unwrap_or(current).fragment;
        new.map(|new| new.mtu)
    }

    /// The peer has acknowledged something new: the neighbour on the way to it is alive (RFC 4861, section 7.3.1). Saves
    /// probes; need not be called.
    #[inline]
    pub fn confirm(&mut self, now: Time, path: Path) {
        self.neighbours.confirm(now, path.slot, path.generation);
    }

    /// Whether [`Interface::event`] has something to tell.
    #[inline]
    pub fn has_events(&self) -> bool {
        self.neighbours.has_events()
    }

    /// What happened to neighbours that somebody waits for; to be asked until there is nothing, after frames were received and
    /// after [`Interface::due`].
    #[inline]
    pub fn event(&mut self) -> Option<Event> {
        self.neighbours.event()
    }

    /// When [`Interface::due`] has something to do at the latest; [`Time::NEVER`]: nothing until something else happens.
    #[inline]
    pub fn deadline(&self) -> Time {
        self.neighbours.deadline()
    }
}

fn check(config: &Config, port: Capabilities) -> Result<(), String> {
    let bits = |ip: IpAddr| if ip.is_ipv4() { 32 } else { 128 };
    if config.addresses.is_empty() {
        return Err("no address: name one, with its prefix (10.0.0.2/24)".into());
    }
    let mut seen = HashSet::new();
    for &Address { ip, prefix } in &config.addresses {
        if !unicast(ip) {
            return Err(format!("address {ip}: no host can have it; name a unicast address"));
        }
        if prefix > bits(ip) {
            return Err(format!(
                "address {ip}/{prefix}: the prefix is longer than the address; at most {} bits",
                bits(ip)
            ));
        }
        if !seen.insert(ip) {
            return Err(format!("address {ip} is there twice: name it once"));
        }
    }
    check_routes(&config.routes, &config.addresses, port.medium)?;
    let least = if config.addresses.iter().any(|own| own.ip.is_ipv6()) { pmtu::LEAST_V6 } else { pmtu::LEAST_PORT };
    if port.mtu < least {
        return Err(format!("MTU {}: too small for TCP; set the device's to {least} or more", port.mtu));
    }
    match (port.medium, config.mac) {
        (Medium::Ethernet, None) => {
            return Err("Ethernet without a station address: name one (02:00:00:00:00:01)".into());
        }
        (Medium::Ethernet, Some(mac)) if mac[0] & 1 != 0 || mac == [0; 6] => {
            return Err(format!("station address {mac:02x?}: a group's, or none; name a single station's"));
        }
        (Medium::Ip, _) if config.vlan.is_some() => {
            return Err("a VLAN needs Ethernet: use a tap device, or leave it out".into());
        }
        _ => {}
    }
    match config.vlan {
        Some(vlan @ (0 | 4095..)) => Err(format!("VLAN {vlan}: there are 1 to 4094")),
        _ => Ok(()),
    }
}

/// Whether routes are fit for an interface with these addresses.
///
/// # Errors
/// What contradicts what, for a user.
pub fn check_routes(routes: &[Route], addresses: &[Address], medium: Medium) -> Result<(), String> {
    for &Route { network: Address { ip, prefix }, gateway } in routes {
        let bits = if ip.is_ipv4() { 32 } else { 128 };
        if prefix > bits {
            return Err(format!("route to {ip}/{prefix}: the prefix is longer than the address; at most {bits} bits"));
        }
        let Some(gateway) = gateway else { continue };
        if gateway.is_ipv4() != ip.is_ipv4() {
            return Err(format!(
                "route to {ip}/{prefix}: gateway {gateway} is of another family; name one of the same"
            ));
        }
        if !unicast(gateway) || addresses.iter().any(|own| own.ip == gateway) {
            return Err(format!("gateway {gateway}: it has to be another host's address"));
        }
        let direct = routes.iter().any(|route| route.gateway.is_none() && route.network.covers(gateway));
        if medium == Medium::Ethernet && !direct && !addresses.iter().any(|own| own.covers(gateway)) {
            return Err(format!(
                "gateway {gateway} is in no network of ours: name an address whose prefix covers it, or a direct route"
            ));
        }
    }
    Ok(())
}

/// The routes, with those to our own networks; and the gateways, sorted.
fn table(routes: &[Route], addresses: &[Address]) -> (Table, Vec<IpAddr>) {
    let direct = addresses.iter().map(|&network| Route { network, gateway: None });
    let mut gateways: Vec<_> = routes.iter().filter_map(|route| route.gateway).collect();
    gateways.sort_unstable();
    (Table::new(routes.iter().copied().chain(direct)), gateways)
}

#[cfg(test)]
mod tests;
