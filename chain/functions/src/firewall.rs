//! A stateless firewall: the first rule that a packet is under decides. Later fragments have no ports, and are under no rule that asks for
//! some; what is not IP (ARP) has a verdict of its own, and so has what contradicts itself.
//!
//! ```toml
//! default = "drop"
//! [[rule]]
//! name = "web"
//! action = "pass"
//! destination = "192.0.2.0/24"
//! protocol = "tcp"
//! destination-ports = "80-443"
//! ```

use crate::intervals::Intervals;
use crate::net::{Ports, Prefix, Protocol, Unusable, bits};
use culvert_nf::{Batch, Function, Network, Packet, Parsed, Time, Transport, Verdict};
use serde::Deserialize;

/// How many rules there can be: each takes a bit in each piece of each table.
pub const RULES: usize = 1024;

/// What becomes of packets.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// The next function has them.
    Pass,
    /// They are dropped.
    Drop,
    /// The kernel has them.
    Kernel,
}

impl From<Action> for Verdict {
    fn from(action: Action) -> Verdict {
        match action {
            Action::Pass => Verdict::Next,
            Action::Drop => Verdict::Drop,
            Action::Kernel => Verdict::Kernel,
        }
    }
}

/// A rule: what it does not say may be anything.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Rule {
    /// Under which name its packets are counted; without one, its number.
    pub name: Option<String>,
    /// What becomes of its packets.
    pub action: Action,
    /// The sender.
    pub source: Option<Prefix>,
    /// The receiver.
    pub destination: Option<Prefix>,
    /// What the packet carries.
    pub protocol: Option<Protocol>,
    /// The sender's port, of TCP and UDP.
    pub source_ports: Option<Ports>,
    /// The receiver's port, of TCP and UDP.
    pub destination_ports: Option<Ports>,
    /// The port that received the packet.
    pub in_port: Option<u16>,
}

/// The configuration.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Config {
    /// What becomes of packets under no rule.
    pub default: Action,
    /// What becomes of what is not IP; without it, it passes.
    #[serde(default = "pass")]
    pub not_ip: Action,
    /// What becomes of packets that contradict themselves; without it, they are dropped.
    #[serde(default = "drop")]
    pub malformed: Action,
    /// The rules, the first before the others.
    #[serde(default, rename = "rule")]
    pub rules: Vec<Rule>,
}

fn pass() -> Action {
    Action::Pass
}

fn drop() -> Action {
    Action::Drop
}

/// Packets and bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Count {
    packets: u64,
    bytes: u64,
}

impl Count {
    #[inline]
    fn add(&mut self, len: usize) {
        self.packets += 1;
        self.bytes += len as u64;
    }
}

/// Addresses of both families as one kind of number: IPv4 before IPv6.
type Address = (bool, u128);

/// The function.
pub struct Firewall {
    default: Verdict,
    not_ip: Verdict,
    malformed: Verdict,
    verdicts: Vec<Verdict>,
    names: Vec<[String; 2]>,
    sources: Intervals<Address>,
    destinations: Intervals<Address>,
    /// By protocol, a bit for each rule.
    protocols: Vec<u64>,
    in_ports: Intervals<u16>,
    /// Of packets with ports.
    source_ports: Intervals<u16>,
    /// Of packets with ports.
    destination_ports: Intervals<u16>,
    /// Rules that packets without ports can be under.
    portless: Vec<u64>,
    counts: Vec<Count>,
    by_default: Count,
    other: Count,
    contradicting: Count,
}

fn range(prefix: Option<Prefix>) -> Option<(Address, Address)> {
    prefix.map(|p| {
        let width = if p.address.is_ipv4() { 32 } else { 128 };
        let behind = width - u32::from(p.len);
        let span = u128::MAX.checked_shl(behind).map_or(u128::MAX, |m| !m);
        let first = p.bits() >> (128 - width);
        ((p.address.is_ipv6(), first), (p.address.is_ipv6(), first | span))
    })
}

fn address(of: std::net::IpAddr) -> Address {
    (of.is_ipv6(), if of.is_ipv4() { bits(of) >> 96 } else { bits(of) })
}

/// IPv4's last address is before IPv6's first.
fn behind((six, number): Address) -> Option<Address> {
    match number.checked_add(1) {
        Some(next) if six || next >> 32 == 0 => Some((six, next)),
        Some(_) => Some((true, 0)),
        None => None,
    }
}

impl Firewall {
    /// By its configuration.
    ///
    /// # Errors
    /// A rule could not be meant: it is under another's name, asks for ports of what has none, or mixes families; or there are too many.
    pub fn new(config: &Config) -> Result<Firewall, Unusable> {
        let rules = &config.rules;
        if rules.len() > RULES {
            return Err(Unusable::new("rule", format!("{} of them", rules.len()), format!("there can be {RULES}")));
        }
        let mut names: Vec<[String; 2]> = Vec::new();
        for (n, rule) in rules.iter().enumerate() {
            let name = rule.name.clone().unwrap_or_else(|| n.to_string());
            let counted = ["packets", "bytes"].map(|what| format!("rule.{name}.{what}"));
            if names.contains(&counted) {
                return Err(Unusable::new(
                    "rule.name",
                    format!("{name:?}"),
                    "another rule has it: name this one otherwise",
                ));
            }
            names.push(counted);
            let ports = rule.source_ports.or(rule.destination_ports).is_some();
            if ports && !rule.protocol.is_some_and(|p| p.is(6) || p.is(17)) {
                let remedy = format!("the rule {name:?} asks for ports, which TCP and UDP have: say tcp or udp");
                return Err(Unusable::new(
                    "rule.protocol",
                    rule.protocol.map_or("any".into(), |p| format!("{p:?}")),
                    remedy,
                ));
            }
            if let (Some(source), Some(destination)) = (rule.source, rule.destination)
                && source.address.is_ipv4() != destination.address.is_ipv4()
            {
                let remedy =
                    format!("the rule {name:?} has a source of the other family, {source}: no packet has both");
                return Err(Unusable::new("rule.destination", destination, remedy));
            }
        }
        let ports = |of: fn(&Rule) -> Option<Ports>| {
            let ranges: Vec<_> = rules.iter().map(|r| of(r).map(|p| (p.first, p.last))).collect();
            Intervals::new(&ranges, |p| p.checked_add(1))
        };
        let prefixes = |of: fn(&Rule) -> Option<Prefix>| {
            Intervals::new(&rules.iter().map(|r| range(of(r))).collect::<Vec<_>>(), behind)
        };
        let words = rules.len().div_ceil(64);
        let mut portless = vec![0; words];
        for (n, rule) in rules.iter().enumerate() {
            let free = rule.source_ports.is_none() && rule.destination_ports.is_none();
            portless[n / 64] |= u64::from(free) << (n % 64);
        }
        let mut protocols = vec![0; 256 * words];
        for (n, rule) in rules.iter().enumerate() {
            for number in (0..=255u8).filter(|number| rule.protocol.is_none_or(|p| p.is(*number))) {
                protocols[usize::from(number) * words + n / 64] |= 1 << (n % 64);
            }
        }
        Ok(Firewall {
            default: config.default.into(),
            not_ip: config.not_ip.into(),
            malformed: config.malformed.into(),
            verdicts: rules.iter().map(|r| r.action.into()).collect(),
            sources: prefixes(|r| r.source),
            destinations: prefixes(|r| r.destination),
            protocols,
            in_ports: Intervals::new(&rules.iter().map(|r| r.in_port.map(|p| (p, p))).collect::<Vec<_>>(), |p| {
                p.checked_add(1)
            }),
            source_ports: ports(|r| r.source_ports),
            destination_ports: ports(|r| r.destination_ports),
            portless,
            counts: vec![Count::default(); rules.len()],
            names,
            by_default: Count::default(),
            other: Count::default(),
            contradicting: Count::default(),
        })
    }

    /// The first rule that the packet is under.
    #[inline]
    fn first(&self, parsed: &Parsed, in_port: u16) -> Option<usize> {
        let sources = self.sources.of(address(parsed.source));
        let destinations = self.destinations.of(address(parsed.destination));
        let protocols = &self.protocols[usize::from(parsed.protocol) * self.portless.len()..];
        let in_ports = self.in_ports.of(in_port);
        let (from, to) = if parsed.has_ports() {
            (self.source_ports.of(parsed.source_port), self.destination_ports.of(parsed.destination_port))
        } else {
            (&self.portless[..], &self.portless[..])
        };
        let all = sources.iter().zip(destinations).zip(protocols).zip(in_ports).zip(from).zip(to);
        for (word, (((((a, b), c), d), e), f)) in all.enumerate() {
            let under = a & b & c & d & e & f;
            if under != 0 {
                return Some(word * 64 + under.trailing_zeros() as usize);
            }
        }
        None
    }

    #[inline]
    fn decide(&mut self, packet: &Packet<'_>) -> Verdict {
        let parsed = Parsed::of(&packet.head());
        let len = packet.len();
        match (parsed.network, parsed.transport) {
            (Network::Other, _) => {
                self.other.add(len);
                self.not_ip
            }
            (Network::Malformed, _) | (_, Transport::Malformed) => {
                self.contradicting.add(len);
                self.malformed
            }
            _ => match self.first(&parsed, packet.port()) {
                Some(rule) => {
                    self.counts[rule].add(len);
                    self.verdicts[rule]
                }
                None => {
                    self.by_default.add(len);
                    self.default
                }
            },
        }
    }
}

impl Function for Firewall {
    fn process(&mut self, batch: &mut Batch<'_>, _now: Time) {
        for packet in batch.undecided() {
            packet.verdict = self.decide(packet);
        }
    }

    fn count(&self, tell: &mut dyn FnMut(&str, u64)) {
        for ([packets, bytes], count) in self.names.iter().zip(&self.counts) {
            tell(packets, count.packets);
            tell(bytes, count.bytes);
        }
        for (packets, bytes, count) in [
            ("default.packets", "default.bytes", self.by_default),
            ("not-ip.packets", "not-ip.bytes", self.other),
            ("malformed.packets", "malformed.bytes", self.contradicting),
        ] {
            tell(packets, count.packets);
            tell(bytes, count.bytes);
        }
    }
}
