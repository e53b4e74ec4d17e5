//! A router for IPv4 and IPv6: the longest network that the receiver is in says where a packet goes. What a router has to answer
//! (no hops left, no route, too large for the next link), and what is addressed to itself, is the kernel's, which answers as
//! it does for its own traffic: nothing here makes packets. Who is behind a route is configured: no neighbour is asked for.
//!
//! ```toml
//! macs = ["02:00:00:00:00:01"]      # frames to these are to be routed
//! [[route]]
//! to = "10.0.0.0/8"
//! port = 1
//! from = "02:00:00:00:00:11"
//! next-hop = "02:00:00:00:00:99"
//! mtu = 1500
//! [[route]]
//! to = "10.0.0.1/32"
//! action = "kernel"
//! ```

use crate::net::{Mac, Prefix, Unusable};
use crate::trie::Trie;
use culvert_nf::checksum::Delta;
use culvert_nf::{Batch, Function, Head, Network, Packet, Parsed, Time, Verdict};
use serde::Deserialize;
use std::collections::HashSet;
use std::net::IpAddr;

/// What becomes of the packets of a route that goes nowhere.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// They are dropped.
    Drop,
    /// The kernel has them.
    Kernel,
}

/// A route.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Route {
    /// The receivers.
    pub to: Prefix,
    /// Out of this port.
    pub port: Option<u16>,
    /// To this neighbour.
    pub next_hop: Option<Mac>,
    /// From this address of the port's.
    pub from: Option<Mac>,
    /// The largest IP packet that the link takes; without it 1500.
    pub mtu: Option<u16>,
    /// Instead of a port.
    pub action: Option<Action>,
}

/// The configuration.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Config {
    /// The addresses of the router's ports: frames to these are routed, those to groups are the kernel's, all others are dropped.
    pub macs: Vec<Mac>,
    /// The routes.
    #[serde(default, rename = "route")]
    pub routes: Vec<Route>,
}

#[derive(Clone, Copy)]
enum Way {
    Out { port: u16, next_hop: [u8; 6], from: [u8; 6], mtu: u32 },
    Ends(Verdict),
}

/// What was done, by counter.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Done {
    Forwarded,
    Kernel,
    Dropped,
    NotOurs,
    Malformed,
}

/// The function.
pub struct Router {
    macs: Vec<[u8; 6]>,
    trie: Trie,
    ways: Vec<Way>,
    counts: [u64; 5],
}

const NAMES: [&str; 5] = ["forwarded", "kernel", "dropped", "not-ours", "malformed"];

impl Router {
    /// By its configuration.
    ///
    /// # Errors
    /// A route is not whole, or there twice, or there are too many.
    pub fn new(config: &Config) -> Result<Router, Unusable> {
        if config.macs.is_empty() {
            return Err(Unusable::new(
                "macs",
                "[]",
                "no frame would be routed: list the addresses of the router's ports",
            ));
        }
        if let Some(mac) = config.macs.iter().find(|mac| mac.0[0] & 1 != 0) {
            return Err(Unusable::new("macs", format!("{:02x?}", mac.0), "it is a group's: list those of ports"));
        }
        let mut seen = HashSet::new();
        let mut ways = Vec::new();
        for route in &config.routes {
            if !seen.insert(route.to) {
                return Err(Unusable::new("route.to", route.to, "another route is to the same network: leave one out"));
            }
            ways.push(match (route.action, route.port, route.next_hop, route.from) {
                (Some(action), None, None, None) => {
                    Way::Ends(if action == Action::Drop { Verdict::Drop } else { Verdict::Kernel })
                }
                (None, Some(port), Some(Mac(next_hop)), Some(Mac(from))) => {
                    let mtu = route.mtu.unwrap_or(1500);
                    let least = if route.to.address.is_ipv4() { 68 } else { 1280 };
                    if mtu < least {
                        return Err(Unusable::new(
                            "route.mtu",
                            mtu,
                            format!("every link takes {least} bytes: write that or more"),
                        ));
                    }
                    Way::Out { port, next_hop, from, mtu: mtu.into() }
                }
                _ => {
                    let remedy =
                        "it needs port, next-hop and from, or action = \"drop\" or \"kernel\" and none of these";
                    return Err(Unusable::new("route.to", route.to, remedy));
                }
            });
        }
        let numbered: Vec<_> = config.routes.iter().zip(0..).map(|(route, n)| (route.to, n)).collect();
        let trie = Trie::new(&numbered);
        let many =
            || Unusable::new("route", numbered.len(), "the tables would take more than 64 MiB: use fewer routes");
        Ok(Router {
            macs: config.macs.iter().map(|m| m.0).collect(),
            trie: trie.ok_or_else(many)?,
            ways,
            counts: [0; 5],
        })
    }

    #[inline]
    fn route(&self, packet: &mut Packet<'_>) -> (Done, Verdict) {
        let mut head = packet.head();
        let parsed = Parsed::of(&head);
        if parsed.to[0] & 1 != 0 {
            return (Done::Kernel, Verdict::Kernel);
        }
        if !self.macs.contains(&parsed.to) {
            return (Done::NotOurs, Verdict::Drop);
        }
        match parsed.network {
            Network::Other => return (Done::Kernel, Verdict::Kernel),
            Network::Malformed => return (Done::Malformed, Verdict::Drop),
            Network::Ipv4 if !header_valid(&head, &parsed) => return (Done::Malformed, Verdict::Drop),
            Network::Ipv4 | Network::Ipv6 => {}
        }
        if never_forwarded(parsed.source) {
            return (Done::Dropped, Verdict::Drop);
        }
        let at = usize::from(parsed.network_at);
        // Options ask routers for something; the kernel knows what.
        let options = match parsed.network {
            Network::Ipv4 => usize::from(parsed.transport_at) != at + 20,
            _ => head.get(at + 6) == Some([0]),
        };
        if options || stays_on_link(parsed.source) || stays_on_link(parsed.destination) {
            return (Done::Kernel, Verdict::Kernel);
        }
        let Some(way) = self.trie.longest(parsed.destination) else { return (Done::Kernel, Verdict::Kernel) };
        let (port, next_hop, from, mtu) = match self.ways[way as usize] {
            Way::Ends(Verdict::Drop) => return (Done::Dropped, Verdict::Drop),
            Way::Ends(verdict) => return (Done::Kernel, verdict),
            Way::Out { port, next_hop, from, mtu } => (port, next_hop, from, mtu),
        };
        if parsed.hops <= 1 || parsed.network_end - u32::from(parsed.network_at) > mtu {
            return (Done::Kernel, Verdict::Kernel);
        }
        head.set(0, next_hop);
        head.set(6, from);
        match parsed.network {
            Network::Ipv4 => {
                let word = |hops: u8| u16::from_be_bytes([hops, parsed.protocol]);
                let field = head.get(at + 10).map_or(0, u16::from_be_bytes);
                let field = Delta::NONE.word(word(parsed.hops), word(parsed.hops - 1)).apply(field);
                head.set(at + 8, [parsed.hops - 1]);
                head.set(at + 10, field.to_be_bytes());
            }
            _ => head.set(at + 7, [parsed.hops - 1]),
        }
        if packet.write_back(&head, 0, at + 12) {
            (Done::Forwarded, Verdict::Out(port))
        } else {
            (Done::Malformed, Verdict::Drop)
        }
    }
}

/// Whether the checksum of IPv4's header is right (RFC 1812, section 5.2.2).
#[inline]
fn header_valid(head: &Head, parsed: &Parsed) -> bool {
    let header = head.bytes().get(parsed.network_at.into()..parsed.transport_at.into()).unwrap_or(&[]);
    let words = header.chunks_exact(2).map(|w| u32::from(u16::from_be_bytes([w[0], w[1]])));
    let sum: u32 = words.sum();
    (sum & 0xffff) + (sum >> 16) == 0xffff
}

/// Whether no router passes on what comes from there (RFC 1812, section 5.3.7; RFC 4291).
#[inline]
fn never_forwarded(source: IpAddr) -> bool {
    source.is_multicast() || source.is_loopback() || source == IpAddr::from([255; 4])
}

/// Whether what comes from or goes there stays on its link, or is for the router itself to look at.
#[inline]
fn stays_on_link(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(a) => a.octets()[0] == 0 || a.is_loopback() || a.is_link_local() || a.octets()[0] >= 224,
        IpAddr::V6(a) => a.is_unspecified() || a.is_loopback() || a.is_multicast() || a.is_unicast_link_local(),
    }
}

impl Function for Router {
    fn process(&mut self, batch: &mut Batch<'_>, _now: Time) {
        for packet in batch.undecided() {
            let (done, verdict) = self.route(packet);
            packet.verdict = verdict;
            self.counts[done as usize] += 1;
        }
    }

    fn count(&self, tell: &mut dyn FnMut(&str, u64)) {
        NAMES.iter().zip(self.counts).for_each(|(name, count)| tell(name, count));
    }
}
