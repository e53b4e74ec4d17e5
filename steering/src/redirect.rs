//! Connections of the programs of a control group, and the middlebox that gets them: as culvert-redirect takes and shows them.

use crate::address::as_text;
use crate::flow::{Family, Ports, Prefix};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

/// How many there can be in a control group: RULES in redirect/bpf/redirect.bpf.c.
pub const MOST_DIVERSIONS: usize = 64;

/// A control group of version 2: its path as /proc/PID/cgroup shows it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Group(String);

impl Group {
    /// The path below the root, without a slash at either end.
    pub fn below_root(&self) -> &str {
        self.0.trim_start_matches('/')
    }

    /// How deep it lies; the root: 0.
    pub fn level(&self) -> u32 {
        self.below_root().split('/').filter(|part| !part.is_empty()).count() as u32
    }

    /// Whether it is this one, or lies in it.
    pub fn is_within(&self, outer: &Group) -> bool {
        match self.0.strip_prefix(&outer.0) {
            Some(rest) => rest.is_empty() || rest.starts_with('/') || outer.level() == 0,
            None => false,
        }
    }
}

impl fmt::Display for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Group {
    type Err = String;

    fn from_str(text: &str) -> Result<Group, String> {
        // It becomes part of paths and of commands.
        let good = |part: &str| {
            !part.is_empty()
                && part != "."
                && part != ".."
                && part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.:@".contains(c))
        };
        let parts = text.strip_prefix('/').map(|rest| rest.is_empty() || rest.split('/').all(good));
        match parts {
            Some(true) => Ok(Group(text.to_owned())),
            _ => Err(format!("{text:?} is no control group; one looks like /apps.slice, as /proc/PID/cgroup shows it")),
        }
    }
}

/// What becomes of connections while the middlebox does not listen.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dead {
    /// They go where they would without it.
    #[default]
    Open,
    /// They are refused.
    Closed,
}

/// Where connections go.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Onward {
    /// Where they would go without any rule.
    Kernel,
    /// To a middlebox on this host.
    Middlebox(SocketAddr, Dead),
}

/// Some connections of one version of IP, and where they go.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Diversion {
    /// The version.
    pub family: Family,
    /// To which network. Without it: to all.
    pub destination: Option<Prefix>,
    /// To which ports. Without it: to all.
    pub ports: Option<Ports>,
    /// Where they go.
    pub to: Onward,
}

/// Whether an address is of the version.
pub(crate) fn is_of(ip: IpAddr, family: Family) -> bool {
    ip.is_ipv4() == (family == Family::Ipv4)
}

impl Diversion {
    /// What is wrong with it.
    pub fn fault(&self) -> Option<String> {
        if self.destination.is_some_and(|d| !is_of(d.ip, self.family)) {
            return Some("its network is of the other version of IP".into());
        }
        let Onward::Middlebox(at, _) = self.to else { return None };
        if !is_of(at.ip(), self.family) {
            return Some(format!("its middlebox {at} is of the other version of IP"));
        }
        (at.ip().is_unspecified() || at.port() == 0).then(|| format!("its middlebox {at}: nobody can be reached there"))
    }
}

impl fmt::Display for Diversion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.family == Family::Ipv4 { "family ipv4" } else { "family ipv6" })?;
        if let Some(destination) = self.destination {
            write!(f, " destination {destination}")?;
        }
        if let Some(ports) = self.ports {
            write!(f, " destination-ports {ports}")?;
        }
        match self.to {
            Onward::Kernel => f.write_str(" to kernel"),
            Onward::Middlebox(at, dead) => {
                let dead = if dead == Dead::Open { "open" } else { "closed" };
                write!(f, " to {} {} dead {dead}", at.ip(), at.port())
            }
        }
    }
}

impl FromStr for Diversion {
    type Err = String;

    fn from_str(text: &str) -> Result<Diversion, String> {
        let words: Vec<&str> = text.split_whitespace().collect();
        let missing = || format!("{text:?}: where they go is missing: to kernel, or to 127.0.0.1 15001 dead open");
        let at = words.iter().position(|word| *word == "to").ok_or_else(missing)?;
        let to = match words[at + 1..] {
            ["kernel"] => Onward::Kernel,
            [ip, port, "dead", dead] => {
                let ip: IpAddr = ip.parse().map_err(|_| missing())?;
                let port = port.parse().map_err(|_| missing())?;
                let dead = match dead {
                    "open" => Dead::Open,
                    "closed" => Dead::Closed,
                    _ => return Err(missing()),
                };
                Onward::Middlebox(SocketAddr::new(ip, port), dead)
            }
            _ => return Err(missing()),
        };
        let (mut family, mut destination, mut ports) = (None, None, None);
        for pair in words[..at].chunks(2) {
            match *pair {
                ["family", "ipv4"] => family = Some(Family::Ipv4),
                ["family", "ipv6"] => family = Some(Family::Ipv6),
                ["destination", network] => destination = Some(network.parse()?),
                ["destination-ports", range] => ports = Some(range.parse()?),
                _ => return Err(format!("{:?}: there is no such thing", pair.join(" "))),
            }
        }
        let family = family.ok_or_else(|| format!("{text:?}: its family is missing: family ipv4, or family ipv6"))?;
        let diversion = Diversion { family, destination, ports, to };
        diversion.fault().map_or(Ok(diversion), |fault| Err(format!("{text:?}: {fault}")))
    }
}

/// All of a control group, in their order, as one text: the first that a connection is under decides.
pub fn diversions_text(all: &[Diversion]) -> String {
    all.iter().map(ToString::to_string).collect::<Vec<_>>().join(" , ")
}

/// Reads them.
pub fn parse_diversions(text: &str) -> Result<Vec<Diversion>, String> {
    if text.trim().is_empty() {
        return Ok(Vec::new());
    }
    let all: Vec<Diversion> = text.split(',').map(str::parse).collect::<Result<_, _>>()?;
    match all.len() > MOST_DIVERSIONS {
        true => Err(format!("there are {} rules, and room for {MOST_DIVERSIONS}", all.len())),
        false => Ok(all),
    }
}

as_text!(Group);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_read_as_they_are_shown() {
        let text = "family ipv4 destination 10.0.0.0/8 destination-ports 80-90 to 127.0.0.1 15001 dead closed , \
                    family ipv6 to ::1 15001 dead open , family ipv4 to kernel";
        let all = parse_diversions(text).expect("rules");
        assert_eq!((all.len(), diversions_text(&all)), (3, text.to_owned()));
        assert_eq!(parse_diversions(" ").expect("none"), []);
        for (text, said) in [
            ("family ipv4", "where they go"),
            ("to kernel", "family is missing"),
            ("family ipv4 to ::1 1 dead open", "other version"),
            ("family ipv6 destination 10.0.0.0/8 to kernel", "other version"),
            ("family ipv4 to 0.0.0.0 1 dead open", "nobody"),
            ("family ipv4 to 127.0.0.1 0 dead open", "nobody"),
            ("family ipv4 to 127.0.0.1 1 dead or alive", "where they go"),
            ("family ipv4 colour red to kernel", "no such thing"),
            ("family ipv4 destination to kernel", "no such thing"),
        ] {
            let error = parse_diversions(text).expect_err(text);
            assert!(error.contains(said), "{text}: {error}");
        }
        let many = vec!["family ipv4 to kernel"; MOST_DIVERSIONS + 1].join(",");
        assert!(parse_diversions(&many).expect_err("too many").contains("room for 64"));
    }

    #[test]
    fn groups_lie_in_each_other() {
        let group = |text: &str| text.parse::<Group>().unwrap_or_else(|e| panic!("{e}"));
        for (inner, outer, is) in
            [("/a", "/a", true), ("/a/b", "/a", true), ("/ab", "/a", false), ("/a", "/", true), ("/", "/a", false)]
        {
            assert_eq!(group(inner).is_within(&group(outer)), is, "{inner} {outer}");
        }
        assert_eq!(["/", "/a", "/a/b.c"].map(|text| group(text).level()), [0, 1, 2]);
        for text in ["", "a", "/a/", "/a/../b", "/a b", "/a,b", "//"] {
            assert!(text.parse::<Group>().is_err(), "{text}");
        }
    }
}
