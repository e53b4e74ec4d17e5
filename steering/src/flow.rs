//! Flows: which packets are meant, and where they are to go.

use crate::address::{Name, as_text};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// A network: an address and how many of its bits count.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Prefix {
    /// The address; the bits that do not count are 0.
    pub ip: IpAddr,
    /// How many bits count.
    pub len: u8,
}

impl Prefix {
    /// A mask whose bits are set where the address counts, in the address's notation.
    pub fn mask(self) -> IpAddr {
        match self.ip {
            IpAddr::V4(_) => Ipv4Addr::from(u32::MAX.checked_shl(32 - u32::from(self.len)).unwrap_or(0)).into(),
            IpAddr::V6(_) => Ipv6Addr::from(u128::MAX.checked_shl(128 - u32::from(self.len)).unwrap_or(0)).into(),
        }
    }

    /// The mask's opposite.
    pub fn host_mask(self) -> IpAddr {
        match self.mask() {
            IpAddr::V4(mask) => Ipv4Addr::from(!u32::from(mask)).into(),
            IpAddr::V6(mask) => Ipv6Addr::from(!u128::from(mask)).into(),
        }
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.ip, self.len)
    }
}

impl FromStr for Prefix {
    type Err = String;

    fn from_str(text: &str) -> Result<Prefix, String> {
        let wrong = || format!("{text:?} is no network; one looks like 10.0.0.0/8 or 2001:db8::/32");
        let (ip, len) = text.split_once('/').map_or((text, None), |(ip, len)| (ip, Some(len)));
        let ip: IpAddr = ip.parse().map_err(|_| wrong())?;
        let bits = if ip.is_ipv4() { 32 } else { 128 };
        let len = match len {
            None => bits,
            Some(len) => len.parse().ok().filter(|len| *len <= bits).ok_or_else(wrong)?,
        };
        let prefix = Prefix { ip, len };
        let masked = match (ip, prefix.mask()) {
            (IpAddr::V4(ip), IpAddr::V4(mask)) => (ip & mask).into(),
            (IpAddr::V6(ip), IpAddr::V6(mask)) => (ip & mask).into(),
            _ => ip,
        };
        match masked == ip {
            true => Ok(prefix),
            false => Err(format!("{text:?} has bits behind its prefix; {masked}/{len} is the network")),
        }
    }
}

/// A range of ports, both ends in it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Ports {
    /// The first.
    pub first: u16,
    /// The last.
    pub last: u16,
}

impl Ports {
    /// The range as values under masks (set bits count): what a card that knows no ranges can match, in the least rules.
    pub fn masked(self) -> Vec<(u16, u16)> {
        let (mut at, last) = (u32::from(self.first), u32::from(self.last));
        let mut parts = Vec::new();
        while at <= last {
            let aligned = if at == 0 { 16 } else { at.trailing_zeros().min(16) };
            let fits = (last - at + 1).ilog2();
            let bits = aligned.min(fits);
            parts.push((at as u16, (0xffff_u32 << bits) as u16));
            at += 1 << bits;
        }
        parts
    }
}

impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.first == self.last {
            true => write!(f, "{}", self.first),
            false => write!(f, "{}-{}", self.first, self.last),
        }
    }
}

impl FromStr for Ports {
    type Err = String;

    fn from_str(text: &str) -> Result<Ports, String> {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let ports = first.parse().ok().zip(last.parse().ok()).map(|(first, last)| Ports { first, last });
        ports
            .filter(|p| p.first <= p.last)
            .ok_or_else(|| format!("{text:?} is no range of ports; one looks like 80 or 8000-8999"))
    }
}

/// What is above IP.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
        })
    }
}

/// The version of IP.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    /// Version 4.
    Ipv4,
    /// Version 6.
    Ipv6,
}

/// Where packets are to go.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Target {
    /// `vf N`: a virtual function of the port.
    Vf(u16),
    /// `queue N`: a queue of the port, as one that AF_XDP reads.
    Queue(u32),
    /// `queues`: that queue by which they come.
    Queues,
    /// `kernel`: where they would go without any rule.
    Kernel,
    /// `drop`: nowhere.
    Drop,
    /// `interface NAME`: out by another interface, behind which a middlebox is.
    Interface(String),
    /// `back`: out of the port that they came in by, with the Ethernet addresses exchanged.
    Back,
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::Vf(vf) => write!(f, "vf {vf}"),
            Target::Queue(queue) => write!(f, "queue {queue}"),
            Target::Queues => f.write_str("queues"),
            Target::Kernel => f.write_str("kernel"),
            Target::Drop => f.write_str("drop"),
            Target::Interface(name) => write!(f, "interface {name}"),
            Target::Back => f.write_str("back"),
        }
    }
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Target, String> {
        let wrong = || {
            format!(
                "{text:?} is no target; there are \"vf N\", \"queue N\", \"queues\", \"kernel\", \"drop\", \"interface NAME\" and \"back\""
            )
        };
        let words: Vec<&str> = text.split_whitespace().collect();
        match words[..] {
            ["vf", vf] => vf.parse().map(Target::Vf).map_err(|_| wrong()),
            ["queue", queue] => queue.parse().map(Target::Queue).map_err(|_| wrong()),
            ["queues"] => Ok(Target::Queues),
            ["kernel"] => Ok(Target::Kernel),
            ["drop"] => Ok(Target::Drop),
            ["back"] => Ok(Target::Back),
            ["interface", name] if Name::new(name).is_some() => Ok(Target::Interface(name.into())),
            _ => Err(wrong()),
        }
    }
}

/// What does it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Backend {
    /// The card, by ethtool(8)'s n-tuple filters.
    Ntuple,
    /// The card's switch, by tc-flower(8).
    Flower,
    /// The XDP program of culvert-split.
    Xdp,
}

/// Some packets.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Match {
    /// The version of IP. Without it, that of the addresses; without them, both.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub family: Option<Family>,
    /// The protocol above IP. Without it, all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub protocol: Option<Protocol>,
    /// Where they come from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<Prefix>,
    /// Where they go to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub destination: Option<Prefix>,
    /// From which ports.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source_ports: Option<Ports>,
    /// To which ports.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub destination_ports: Option<Ports>,
    /// In which VLAN. Without it, in any and in none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vlan: Option<u16>,
}

impl Match {
    /// What is wrong with it.
    pub fn fault(&self) -> Option<String> {
        let families: Vec<Family> = [self.source, self.destination].into_iter().flatten().map(family_of).collect();
        if families.iter().chain(&self.family).any(|f| Some(f) != families.first().or(self.family.as_ref())) {
            return Some("its addresses are of both versions of IP".into());
        }
        if self.protocol.is_none() && (self.source_ports.is_some() || self.destination_ports.is_some()) {
            return Some("ports need a protocol: say protocol = \"tcp\" or \"udp\"".into());
        }
        if self.vlan.is_some_and(|v| v == 0 || v > 4094) {
            return Some("a VLAN is 1 to 4094".into());
        }
        (*self == Match::default()).then(|| "it matches all packets: name some".into())
    }

    /// The same packets by one version of IP each.
    pub fn families(&self) -> Vec<Match> {
        let stated = self.family.or([self.source, self.destination].into_iter().flatten().map(family_of).next());
        let each = stated.map_or(vec![Family::Ipv4, Family::Ipv6], |family| vec![family]);
        each.into_iter().map(|family| Match { family: Some(family), ..self.clone() }).collect()
    }
}

fn family_of(prefix: Prefix) -> Family {
    if prefix.ip.is_ipv4() { Family::Ipv4 } else { Family::Ipv6 }
}

impl fmt::Display for Match {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut words = Vec::new();
        match (self.family, self.protocol) {
            (Some(Family::Ipv6), Some(protocol)) => words.push(format!("{protocol} over IPv6")),
            (_, Some(protocol)) => words.push(protocol.to_string()),
            (Some(Family::Ipv4), None) => words.push("IPv4".into()),
            (Some(Family::Ipv6), None) => words.push("IPv6".into()),
            (None, None) => words.push("IP".into()),
        }
        words.extend(self.source.map(|p| format!("from {p}")));
        words.extend(self.source_ports.map(|p| format!("source port {p}")));
        words.extend(self.destination.map(|p| format!("to {p}")));
        words.extend(self.destination_ports.map(|p| format!("port {p}")));
        words.extend(self.vlan.map(|v| format!("in VLAN {v}")));
        f.write_str(&words.join(" "))
    }
}

as_text!(Prefix Ports Target);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn networks_have_no_bits_behind_their_prefix() {
        for text in ["10.0.0.0/8", "0.0.0.0/0", "::/0", "2001:db8::/32", "10.1.2.3/32"] {
            assert_eq!(text.parse::<Prefix>().expect(text).to_string(), text);
        }
        assert!("10.0.0.1/8".parse::<Prefix>().expect_err("bits").contains("10.0.0.0/8"));
        assert!("10.0.0.0/33".parse::<Prefix>().is_err());
        let prefix: Prefix = "10.0.0.0/8".parse().expect("a network");
        assert_eq!(
            (prefix.mask().to_string(), prefix.host_mask().to_string()),
            ("255.0.0.0".into(), "0.255.255.255".into())
        );
    }

    #[test]
    fn what_a_flow_must_not_say() {
        let fault = |text: &str| toml::from_str::<Match>(text).expect("a flow").fault();
        assert_eq!(fault("protocol = 'tcp'\ndestination-ports = '80'"), None);
        for text in [
            "",
            "source = '10.0.0.0/8'\ndestination = '::1'",
            "destination-ports = '80'",
            "vlan = 4095",
            "vlan = 0",
            "family = 'ipv6'\nsource = '10.0.0.0/8'",
        ] {
            assert!(fault(text).is_some(), "{text}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn masks_cover_a_range_of_ports_exactly(a: u16, b: u16) {
            let ports = Ports { first: a.min(b), last: a.max(b) };
            let parts = ports.masked();
            prop_assert!(parts.len() <= 30);
            for port in 0..=u16::MAX {
                let hits = parts.iter().filter(|(value, mask)| port & mask == *value).count();
                prop_assert_eq!(hits, usize::from(port >= ports.first && port <= ports.last));
            }
        }
    }
}
