//! Rules, and what each dimension of a packet leaves of them: the tables of bpf/split.bpf.c.

use std::collections::BTreeMap;
use std::net::IpAddr;
use steering::{Backend, Family, Match, Ports, Prefix, Protocol, Rule, Target, split_words};

/// How many rules there can be: RULES in bpf/split.bpf.c.
pub const RULES: usize = 256;

/// A bit for each rule.
pub type Bits = [u64; RULES / 64];

/// In a verdict: STATELESS there.
const STATELESS: u32 = 1 << 31;

/// Whatever the queue: ANY_QUEUE there.
const ANY_QUEUE: u32 = 0xffff;

/// The rules by their places; the lowest that a packet is under decides.
pub type Rules = BTreeMap<u32, One>;

/// A rule.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct One {
    /// Which packets.
    pub packets: Match,
    /// Where they go.
    pub to: Target,
    /// It decides each packet, wherever the packet's connection began.
    pub stateless: bool,
}

/// Reads a rule as it is told and shown: names and values, and at the end where the packets go.
pub fn parse(words: &[String]) -> Result<One, String> {
    let (words, stateless) = match words {
        [rest @ .., last] if last == "stateless" => (rest, true),
        all => (all, false),
    };
    let at = words
        .iter()
        .position(|w| w == "to")
        .ok_or("where the packets go is missing: to queue 0, to kernel, to drop, to back")?;
    let to: Target = words[at + 1..].join(" ").parse()?;
    if !matches!(to, Target::Queue(..ANY_QUEUE) | Target::Queues | Target::Kernel | Target::Drop | Target::Back) {
        return Err(format!("the program cannot send packets to {:?}", to.to_string()));
    }
    let mut packets = Match::default();
    let (pairs, rest) = words[..at].as_chunks::<2>();
    if let [alone] = rest {
        return Err(format!("{alone:?} has no value"));
    }
    for [name, value] in pairs {
        let unknown = || format!("{name} {value:?}: there is no such thing");
        match &name[..] {
            "family" => {
                packets.family = Some(if value == "ipv4" {
                    Family::Ipv4
                } else if value == "ipv6" {
                    Family::Ipv6
                } else {
                    return Err(unknown());
                })
            }
            "protocol" => {
                packets.protocol = Some(if value == "tcp" {
                    Protocol::Tcp
                } else if value == "udp" {
                    Protocol::Udp
                } else {
                    return Err(unknown());
                })
            }
            "source" => packets.source = Some(value.parse()?),
            "destination" => packets.destination = Some(value.parse()?),
            "source-ports" => packets.source_ports = Some(value.parse()?),
            "destination-ports" => packets.destination_ports = Some(value.parse()?),
            "vlan" => packets.vlan = Some(value.parse().map_err(|_| unknown())?),
            _ => return Err(unknown()),
        }
    }
    match packets.fault() {
        Some(fault) => Err(fault),
        None => Ok(One { packets, to, stateless }),
    }
}

/// A rule as it is told and shown.
pub fn text(rule: &One) -> String {
    let plain = Rule::plain(rule.packets.clone(), rule.to.clone(), Backend::Xdp);
    split_words(&Rule { stateless: rule.stateless, ..plain }).join(" ")
}

/// What the program looks up.
#[derive(Default)]
pub struct Tables {
    /// Of IPv4's TCP, UDP and other protocols, then of IPv6's.
    pub kinds: [Bits; 6],
    /// Rules that say nothing of the source.
    pub any_source: Bits,
    /// Rules that say nothing of the destination.
    pub any_destination: Bits,
    /// Networks of sources: the length and the address as IPv6's.
    pub sources: BTreeMap<(u32, [u8; 16]), Bits>,
    /// Networks of destinations.
    pub destinations: BTreeMap<(u32, [u8; 16]), Bits>,
    /// By port; empty: no rule asks for it.
    pub source_ports: Vec<Bits>,
    /// By port; empty: no rule asks for it.
    pub destination_ports: Vec<Bits>,
    /// By VLAN, 0: none; empty: no rule asks for it.
    pub vlans: Vec<Bits>,
    /// What becomes of the packets of each rule.
    pub verdicts: Vec<u32>,
}

fn set(bits: &mut Bits, rule: u32) {
    bits[rule as usize / 64] |= 1 << (rule % 64);
}

fn verdict(to: &Target) -> u32 {
    match to {
        Target::Queue(queue) => 2 << 16 | queue,
        Target::Queues => 2 << 16 | ANY_QUEUE,
        Target::Drop => 3 << 16,
        Target::Back => 4 << 16,
        _ => 1 << 16,
    }
}

/// How an IPv4 address as one of IPv6's begins.
pub const MAPPED: [u8; 12] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff];

/// A network of IPv4 as one of mapped addresses.
fn mapped(prefix: Prefix) -> (u32, [u8; 16]) {
    match prefix.ip {
        IpAddr::V4(ip) => (96 + u32::from(prefix.len), ip.to_ipv6_mapped().octets()),
        IpAddr::V6(ip) => (prefix.len.into(), ip.octets()),
    }
}

fn covers((len, ip): (u32, [u8; 16]), (inner_len, inner): (u32, [u8; 16])) -> bool {
    let (ip, inner) = (u128::from_be_bytes(ip), u128::from_be_bytes(inner));
    len <= inner_len && (ip ^ inner).checked_shr(128 - len).unwrap_or(0) == 0
}

/// Those that say nothing of the address, and for each network those of it and of all around it.
fn networks(rules: &Rules, of: impl Fn(&Match) -> Option<Prefix>) -> (Bits, BTreeMap<(u32, [u8; 16]), Bits>) {
    let mut any = Bits::default();
    let stated: Vec<_> = rules.iter().map(|(at, rule)| (*at, of(&rule.packets).map(mapped))).collect();
    stated.iter().filter(|(_, network)| network.is_none()).for_each(|(at, _)| set(&mut any, *at));
    let mut table: BTreeMap<_, _> = stated.iter().filter_map(|(_, network)| Some(((*network)?, any))).collect();
    for (inner, bits) in &mut table {
        stated.iter().filter(|(_, n)| n.is_some_and(|n| covers(n, *inner))).for_each(|(at, _)| set(bits, *at));
    }
    (any, table)
}

fn numbers(rules: &Rules, size: usize, of: impl Fn(&Match) -> Option<Ports>) -> Vec<Bits> {
    if rules.values().all(|rule| of(&rule.packets).is_none()) {
        return Vec::new();
    }
    let mut table = vec![Bits::default(); size];
    for (at, rule) in rules {
        let range = of(&rule.packets).map_or(0..=size - 1, |ports| ports.first.into()..=ports.last.into());
        table[range].iter_mut().for_each(|bits| set(bits, *at));
    }
    table
}

impl Tables {
    /// Of these rules, whose places are below [`RULES`].
    pub fn of(rules: &Rules) -> Tables {
        let mut tables = Tables { verdicts: vec![0; RULES], ..Tables::default() };
        for (at, One { packets, to, stateless }) in rules {
            tables.verdicts[*at as usize] = verdict(to) | if *stateless { STATELESS } else { 0 };
            let families = packets.families().into_iter().filter_map(|m| m.family);
            for first in families.map(|f| if f == Family::Ipv4 { 0 } else { 3 }) {
                let protocols = match packets.protocol {
                    Some(Protocol::Tcp) => 0..1,
                    Some(Protocol::Udp) => 1..2,
                    None => 0..3,
                };
                protocols.for_each(|protocol| set(&mut tables.kinds[first + protocol], *at));
            }
        }
        (tables.any_source, tables.sources) = networks(rules, |m| m.source);
        (tables.any_destination, tables.destinations) = networks(rules, |m| m.destination);
        tables.source_ports = numbers(rules, 1 << 16, |m| m.source_ports);
        tables.destination_ports = numbers(rules, 1 << 16, |m| m.destination_ports);
        tables.vlans = numbers(rules, 4096, |m| m.vlan.map(|v| Ports { first: v, last: v }));
        tables
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn rules_are_read_as_they_are_shown() {
        for shown in [
            "family ipv4 protocol udp destination-ports 53 to queue 0",
            "protocol tcp source 10.0.0.0/8 destination 192.0.2.1/32 source-ports 1-9 vlan 5 to queues",
            "destination 2001:db8::/32 to drop",
            "vlan 7 to back",
            "protocol tcp to kernel",
            "protocol tcp to queue 3 stateless",
        ] {
            assert_eq!(text(&parse(&words(shown)).expect(shown)), shown);
        }
        for wrong in [
            "to drop",
            "protocol tcp",
            "protocol tcp to mars",
            "protocol tcp to vf 1",
            "protocol icmp to drop",
            "tcp to drop",
            "colour red to drop",
            "destination-ports 80 to drop",
            "protocol tcp to queue 65535",
            "vlan 5 to interface x",
            "protocol tcp stateless to drop",
            "protocol tcp to drop stateless stateless",
        ] {
            assert!(parse(&words(wrong)).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_network_has_the_rules_of_those_around_it() {
        let rules: Rules =
            ["source 10.0.0.0/8 to drop", "source 10.1.0.0/16 to kernel", "source ::/0 to drop", "vlan 1 to drop"]
                .iter()
                .zip(0..)
                .map(|(text, at)| (at, parse(&words(text)).expect(text)))
                .collect();
        let tables = Tables::of(&rules);
        assert_eq!(tables.any_source, [0b1000, 0, 0, 0]);
        let of = |text: &str| tables.sources[&mapped(text.parse().expect(text))][0];
        // IPv6's network of all is around those of IPv4, too: their kind rules it out.
        assert_eq!((of("10.0.0.0/8"), of("10.1.0.0/16"), of("::/0")), (0b1101, 0b1111, 0b1100));
        assert_eq!((tables.kinds[0][0], tables.kinds[3][0]), (0b1011, 0b1100));
        assert_eq!((tables.vlans[0][0], tables.vlans[1][0]), (0b0111, 0b1111));
        assert!(tables.source_ports.is_empty());
    }
}
