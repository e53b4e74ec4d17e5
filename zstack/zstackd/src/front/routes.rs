//! Addresses, routes and rules of the tun, by rtnetlink(7).
//!
//! What is on the tun vanishes with it: its addresses, the routes of the served networks, and both tables' contents. Routing policy
//! rules do not vanish: they carry zstackd's number as their protocol, by which those of a process that was killed are recognised.

use super::error::Error;
use super::netlink::{Netlink, Refusal};
use super::{Network, Numbers, Wanted};
use netlink_packet_core::{DefaultNla, Emitable, NLA_F_NESTED, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope};
use netlink_packet_route::link::{
    AfSpecInet, AfSpecInet6, AfSpecUnspec, In6AddrGenMode, LinkAttribute, LinkFlags, LinkMessage,
};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteScope, RouteType};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::thread;
use std::time::{Duration, Instant};

/// The protocol number (rtnetlink(7), rtm_protocol) of zstackd's routes and rules: `v`. `ip rule` and `ip route` show it as
/// `proto 118`.
pub const PROTOCOL: u8 = 118;

/// linux/ip.h: IPV4_DEVCONF_RP_FILTER, IPV4_DEVCONF_ACCEPT_LOCAL; linux/if_link.h: IFLA_INET_CONF.
const RP_FILTER: u16 = 8;
const ACCEPT_LOCAL: u16 = 23;
const IFLA_INET_CONF: u16 = 1;

/// How long the kernel may take until it uses an IPv6 address (the port crate's tun has the reason).
const ADDRESS: Duration = Duration::from_secs(30);

/// What to do about something that is there already.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Existing {
    /// It is somebody else's.
    Refuse,
    /// It is the front's own.
    Keep,
}

/// Makes something.
fn make(netlink: &mut Netlink, request: RouteNetlinkMessage, existing: Existing) -> Result<(), Refusal> {
    match netlink.ask(request, NLM_F_CREATE | NLM_F_EXCL) {
        Err(refusal) if existing == Existing::Keep && refusal.is(libc::EEXIST) => Ok(()),
        result => result,
    }
}

/// An interface. ENODEV: there is none of the name.
pub(crate) fn link(netlink: &mut Netlink, name: &str) -> Result<LinkMessage, Refusal> {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(name.to_string()));
    match netlink.look_up(RouteNetlinkMessage::GetLink(message))? {
        Some(RouteNetlinkMessage::NewLink(link)) => Ok(link),
        _ => Err(std::io::Error::from_raw_os_error(libc::ENODEV).into()),
    }
}

/// Sets the tun up, up to the point at which packets can leave by it.
pub(crate) fn set_up(netlink: &mut Netlink, index: u32, wanted: &Wanted, existing: Existing) -> Result<(), Error> {
    let name = &wanted.name;
    let mut link = LinkMessage::default();
    link.header.index = index;
    let number = |option: u16, value: u32| DefaultNla::new(option, value.to_ne_bytes().to_vec());
    // Packets of zstackd's own addresses come in by the tun. The reverse path filter would only cost (see `strict_filter`).
    let options: &[DefaultNla] = &[number(ACCEPT_LOCAL, 1), number(RP_FILTER, 0)];
    let mut bytes = vec![0; options.buffer_len()];
    options.emit(&mut bytes);
    let inet = AfSpecInet::Other(DefaultNla::new(IFLA_INET_CONF | NLA_F_NESTED, bytes));
    // No link-local address, and so no router solicitations and group reports into the tun.
    let inet6 = AfSpecInet6::AddrGenMode(In6AddrGenMode::None);
    link.attributes.extend([LinkAttribute::Mtu(wanted.mtu), LinkAttribute::TxQueueLen(wanted.queue)]);
    let set = RouteNetlinkMessage::SetLink(link.clone());
    netlink.ask(set, 0).map_err(|e| Error::netlink(format!("{name} does not take MTU {}", wanted.mtu), &e))?;
    let mut option = |what: &str, family: AfSpecUnspec| {
        link.attributes = vec![LinkAttribute::AfSpecUnspec(vec![family])];
        let set = RouteNetlinkMessage::SetLink(link.clone());
        netlink.ask(set, 0).map_err(|e| Error::netlink(format!("{name} does not take {what}"), &e))
    };
    option("accept_local", AfSpecUnspec::Inet(vec![inet]))?;
    match option("addrgenmode none", AfSpecUnspec::Inet6(vec![inet6])) {
        // A kernel without IPv6 does not know it.
        Err(_) if !wanted.has(true) => {}
        result => result?,
    }

    for address in &wanted.addresses {
        add_address(netlink, index, address, existing).map_err(|e| {
            let doing = format!("{name} does not take the address {address}");
            match Error::netlink(doing, &e) {
                // addrconf.c has this error for nothing else.
                Error::Refused { doing, error, .. } if e.is(libc::EACCES) => Error::Refused {
                    doing,
                    error,
                    remedy: "allow IPv6 (sysctl -w net.ipv6.conf.default.disable_ipv6=0), or give zstackd IPv4 addresses only",
                },
                error => error,
            }
        })?;
    }
    link.attributes = Vec::new();
    link.header.flags = LinkFlags::Up;
    link.header.change_mask = LinkFlags::Up;
    let up = RouteNetlinkMessage::SetLink(link);
    netlink.ask(up, 0).map_err(|e| Error::netlink(format!("{name} cannot be set up"), &e))?;
    for address in &wanted.addresses {
        if let IpAddr::V6(ip) = address.address {
            await_address(netlink, ip)
                .map_err(|e| Error::netlink(format!("{name} does not use its address {ip}"), &e))?;
        }
    }
    Ok(())
}

fn add_address(netlink: &mut Netlink, index: u32, address: &Network, existing: Existing) -> Result<(), Refusal> {
    let mut message = AddressMessage::default();
    message.header.family = family(address.address);
    message.header.prefix_len = address.prefix;
    message.header.scope = AddressScope::Universe;
    message.header.index = index;
    // Nobody else is on this link who could have the address; and which networks are reached by it, the served ones say.
    let flags = AddressFlags::Nodad | AddressFlags::Noprefixroute;
    message.attributes = vec![
        AddressAttribute::Local(address.address),
        AddressAttribute::Address(address.address),
        AddressAttribute::Flags(flags),
    ];
    make(netlink, RouteNetlinkMessage::NewAddress(message), existing)
}

/// Waits until packets to an IPv6 address are delivered, which a worker of the kernel brings about.
fn await_address(netlink: &mut Netlink, address: Ipv6Addr) -> Result<(), Refusal> {
    let end = Instant::now() + ADDRESS;
    let mut pause = Duration::from_millis(1);
    loop {
        let mut message = RouteMessage::default();
        message.header.address_family = AddressFamily::Inet6;
        message.header.destination_prefix_length = 128;
        message.attributes.push(RouteAttribute::Destination(RouteAddress::Inet6(address)));
        match netlink.look_up(RouteNetlinkMessage::GetRoute(message)) {
            Ok(Some(RouteNetlinkMessage::NewRoute(route))) if route.header.kind == RouteType::Local => return Ok(()),
            Ok(_) => {}
            Err(refusal) if refusal.is(libc::ENETUNREACH) || refusal.is(libc::EHOSTUNREACH) => {}
            Err(refusal) => return Err(refusal),
        }
        if Instant::now() >= end {
            return Err(std::io::Error::from(std::io::ErrorKind::TimedOut).into());
        }
        thread::sleep(pause);
        pause = (2 * pause).min(Duration::from_millis(20));
    }
}

/// Makes the contents of both tables and the routes of the served networks.
pub(crate) fn add_routes(netlink: &mut Netlink, index: u32, wanted: &Wanted, existing: Existing) -> Result<(), Error> {
    let add = |netlink: &mut Netlink, route: RouteMessage, what: &str| {
        let add = RouteNetlinkMessage::NewRoute(route);
        let refused = |e| Error::netlink(format!("no {what} by {}", wanted.name), &e);
        make(netlink, add, existing).map_err(refused)
    };
    for v6 in [false, true].into_iter().filter(|v6| wanted.has(*v6)) {
        let default = Network { address: any(v6), prefix: 0 };
        let mut inward = route(index, &default, wanted.numbers.inward());
        inward.header.kind = RouteType::Local;
        inward.header.scope = RouteScope::Host;
        add(netlink, inward, "local default route")?;
        add(netlink, route(index, &default, wanted.numbers.answers()), "default route for answers")?;
    }
    for network in &wanted.served {
        let served = served(index, wanted, network);
        if existing == Existing::Keep && has_lost_source(netlink, &served)? {
            // Nobody's packets find no route meanwhile, and there is no message of a removal.
            let replace = RouteNetlinkMessage::NewRoute(served);
            netlink
                .ask(replace, NLM_F_CREATE | NLM_F_REPLACE)
                .map_err(|e| Error::netlink(format!("no route to {network} by {}", wanted.name), &e))?;
            continue;
        }
        add(netlink, served, &format!("route to {network}")).map_err(|e| match e {
            Error::Refused { doing, error, .. } => Error::Refused {
                doing,
                error,
                remedy: "another route to this network is there: remove it, or give zstackd's a metric of its own",
            },
            e => e,
        })?;
    }
    Ok(())
}

/// The route to a served network.
fn served(index: u32, wanted: &Wanted, network: &Network) -> RouteMessage {
    let mut served = route(index, network, u32::from(libc::RT_TABLE_MAIN));
    let source = wanted.source(network.address.is_ipv6()).map(RouteAddress::from);
    served.attributes.extend(source.map(RouteAttribute::PrefSource));
    served.attributes.extend((wanted.metric != 0).then_some(RouteAttribute::Priority(wanted.metric)));
    served
}

/// Removes the route to a network that is not served any more. Whether it was there.
pub(crate) fn remove_route(
    netlink: &mut Netlink,
    index: u32,
    wanted: &Wanted,
    network: &Network,
) -> Result<bool, Error> {
    match netlink.ask(RouteNetlinkMessage::DelRoute(served(index, wanted, network)), 0) {
        Ok(()) => Ok(true),
        Err(refusal) if refusal.is(libc::ESRCH) => Ok(false),
        Err(refusal) => {
            Err(Error::netlink(format!("the route to {network} by {} cannot be removed", wanted.name), &refusal))
        }
    }
}

/// Whether a route of the front is there, but without its source: IPv6 takes it away with the address (rt6_remove_prefsrc).
fn has_lost_source(netlink: &mut Netlink, wanted: &RouteMessage) -> Result<bool, Error> {
    if wanted.header.address_family != AddressFamily::Inet6 {
        return Ok(false);
    }
    let mut request = RouteMessage::default();
    request.header.address_family = AddressFamily::Inet6;
    let routes = netlink
        .dump(&RouteNetlinkMessage::GetRoute(request))
        .map_err(|e| Error::netlink("the routes cannot be read", &e))?;
    let is_source = |a: &RouteAttribute| matches!(a, RouteAttribute::PrefSource(_));
    let is_it = |route: &RouteMessage| {
        let all = || wanted.attributes.iter().filter(|a| !is_source(a)).all(|a| route.attributes.contains(a));
        route.header.protocol == wanted.header.protocol
            && route.header.destination_prefix_length == wanted.header.destination_prefix_length
            && all()
            && !route.attributes.iter().any(is_source)
    };
    Ok(routes.iter().any(|m| matches!(m, RouteNetlinkMessage::NewRoute(route) if is_it(route))))
}

fn route(index: u32, network: &Network, table: u32) -> RouteMessage {
    let mut route = RouteMessage::default();
    route.header.address_family = family(network.address);
    route.header.destination_prefix_length = network.prefix;
    route.header.protocol = RouteProtocol::from(PROTOCOL);
    route.header.scope = if network.address.is_ipv6() { RouteScope::Universe } else { RouteScope::Link };
    route.header.kind = RouteType::Unicast;
    if network.prefix != 0 {
        route.attributes.push(RouteAttribute::Destination(RouteAddress::from(network.network())));
    }
    route.attributes.extend([RouteAttribute::Oif(index), RouteAttribute::Table(table)]);
    route
}

/// The rules of a front: packets that come in by the tun are for this host whatever their destination, and packets from zstackd's
/// addresses leave by the tun.
pub(crate) fn rules(wanted: &Wanted) -> Vec<RuleMessage> {
    let Numbers { priority, .. } = wanted.numbers;
    let mut rules = Vec::new();
    for v6 in [false, true].into_iter().filter(|v6| wanted.has(*v6)) {
        let mut inward = rule(v6, priority, wanted.numbers.inward());
        inward.attributes.push(RuleAttribute::Iifname(wanted.name.clone()));
        rules.push(inward);
    }
    for address in &wanted.addresses {
        let v6 = address.address.is_ipv6();
        let mut answers = rule(v6, priority + 1, wanted.numbers.answers());
        answers.header.src_len = Network::longest(v6);
        answers.attributes.push(RuleAttribute::Source(address.address));
        rules.push(answers);
    }
    rules
}

fn rule(v6: bool, priority: u32, table: u32) -> RuleMessage {
    let mut rule = RuleMessage::default();
    rule.header.family = if v6 { AddressFamily::Inet6 } else { AddressFamily::Inet };
    rule.header.action = RuleAction::ToTable;
    rule.attributes = vec![
        RuleAttribute::Priority(priority),
        RuleAttribute::Table(table),
        RuleAttribute::Protocol(RouteProtocol::from(PROTOCOL)),
    ];
    rule
}

pub(crate) fn add_rule(netlink: &mut Netlink, rule: &RuleMessage, existing: Existing) -> Result<(), Error> {
    let add = RouteNetlinkMessage::NewRule(rule.clone());
    make(netlink, add, existing).map_err(|e| Error::netlink("a routing policy rule cannot be made", &e))
}

/// Removes a rule; it may be gone.
pub(crate) fn remove_rule(netlink: &mut Netlink, rule: &RuleMessage) -> Result<(), Error> {
    match netlink.ask(RouteNetlinkMessage::DelRule(rule.clone()), 0) {
        Err(refusal) if !refusal.is(libc::ENOENT) => {
            Err(Error::netlink("a routing policy rule cannot be removed", &refusal))
        }
        _ => Ok(()),
    }
}

/// What is of interest of a rule.
struct Found {
    message: RuleMessage,
    ours: bool,
    table: u32,
    interface: Option<String>,
}

fn all_rules(netlink: &mut Netlink) -> Result<Vec<Found>, Error> {
    let mut all = Vec::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut request = RuleMessage::default();
        request.header.family = family;
        let rules = match netlink.dump(&RouteNetlinkMessage::GetRule(request)) {
            Ok(rules) => rules,
            // The kernel has no IPv6.
            Err(e) if e.is(libc::EAFNOSUPPORT) || e.is(libc::EOPNOTSUPP) => continue,
            Err(e) => return Err(Error::netlink("the routing policy rules cannot be read", &e)),
        };
        all.extend(rules.into_iter().filter_map(|m| match m {
            RouteNetlinkMessage::NewRule(message) => Some(found(message)),
            _ => None,
        }));
    }
    Ok(all)
}

fn found(message: RuleMessage) -> Found {
    let (mut ours, mut table, mut interface) = (false, u32::from(message.header.table), None);
    for attribute in &message.attributes {
        match attribute {
            RuleAttribute::Protocol(protocol) => ours = u8::from(*protocol) == PROTOCOL,
            RuleAttribute::Table(t) => table = *t,
            RuleAttribute::Iifname(name) => interface = Some(name.clone()),
            _ => {}
        }
    }
    Found { message, ours, table, interface }
}

/// Removes the rules of fronts whose process is gone: those with zstackd's protocol number whose tun is gone, or is `own`, which
/// the caller has just made. Tells how many they were.
pub(crate) fn clear(netlink: &mut Netlink, own: Option<&str>) -> Result<usize, Error> {
    let all: Vec<Found> = all_rules(netlink)?.into_iter().filter(|f| f.ours).collect();
    // The tables of fronts that live.
    let mut alive = Vec::new();
    for found in &all {
        let Some(name) = found.interface.as_deref() else { continue };
        if Some(name) != own && !alive.contains(&found.table) {
            match link(netlink, name) {
                Ok(_) => alive.push(found.table),
                Err(e) if e.is(libc::ENODEV) => {}
                Err(e) => return Err(Error::netlink(format!("the interface {name} cannot be looked up"), &e)),
            }
        }
    }
    let living = |f: &Found| match f.interface {
        Some(_) => alive.contains(&f.table),
        None => alive.iter().any(|t| Numbers { table: *t, priority: 0 }.answers() == f.table),
    };
    let mut count = 0;
    for found in all.iter().filter(|f| !living(f)) {
        remove_rule(netlink, &found.message)?;
        count += 1;
    }
    Ok(count)
}

/// Whether the tables are free.
pub(crate) fn check_free(netlink: &mut Netlink, numbers: Numbers) -> Result<(), Error> {
    let tables = [numbers.inward(), numbers.answers()];
    if let Some(found) = all_rules(netlink)?.into_iter().find(|f| tables.contains(&f.table)) {
        let whose = match (found.ours, found.interface) {
            (true, Some(name)) => format!("the zstackd of interface {name} uses"),
            (true, None) => "another zstackd uses".to_string(),
            (false, _) => "a rule that is not zstackd's uses".to_string(),
        };
        return Err(Error::Taken { what: format!("{whose} the routing table {}", found.table) });
    }
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut request = RouteMessage::default();
        request.header.address_family = family;
        let routes = match netlink.dump(&RouteNetlinkMessage::GetRoute(request)) {
            Ok(routes) => routes,
            Err(e) if e.is(libc::EAFNOSUPPORT) || e.is(libc::EOPNOTSUPP) => continue,
            Err(e) => return Err(Error::netlink("the routes cannot be read", &e)),
        };
        let table = routes.iter().find_map(|m| match m {
            RouteNetlinkMessage::NewRoute(route) => {
                let in_table = |a: &RouteAttribute| match a {
                    RouteAttribute::Table(t) if tables.contains(t) => Some(*t),
                    _ => None,
                };
                route.attributes.iter().find_map(in_table)
            }
            _ => None,
        });
        if let Some(table) = table {
            return Err(Error::Taken { what: format!("there are routes in the routing table {table}") });
        }
    }
    Ok(())
}

fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv6() { AddressFamily::Inet6 } else { AddressFamily::Inet }
}

fn any(v6: bool) -> IpAddr {
    if v6 { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() }
}
