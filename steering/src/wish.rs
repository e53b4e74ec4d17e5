//! Redirects, as the file has them.

use crate::address::Name;
use crate::flow::{Family, Ports, Prefix};
use crate::redirect::{Dead, Diversion, Group, MOST_DIVERSIONS, Onward, diversions_text, is_of};
use serde::Deserialize;
use std::collections::BTreeSet;
use std::fmt;
use std::net::SocketAddr;

/// TCP connections, and the middlebox on this host that gets them: those that programs of a control group begin (`clients`), those that come by an interface
/// for this host (`received`), or those that come by one and that this host passes on to others (`forwarded`).
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Redirect {
    /// Whose: a control group of version 2, and those in it.
    #[serde(default)]
    pub clients: Option<Group>,
    /// By which interface: what comes by it and is for another host. The middlebox's listener has to be transparent (IP_TRANSPARENT).
    #[serde(default)]
    pub forwarded: Option<Name>,
    /// By which interface: what comes by it and is for this host, whatever address and port. The middlebox begins to listen after it is applied.
    #[serde(default)]
    pub received: Option<Name>,
    /// Whether the rules are there only while the middlebox lives: `culvert steer hold` starts it with them, and `apply` leaves them to it.
    #[serde(default)]
    pub held: bool,
    /// The middlebox's own group. It is told where its clients wanted to go (SO_ORIGINAL_DST), and its own connections stay as they are.
    #[serde(default)]
    pub middlebox: Option<Group>,
    /// Which connections; where several match, the first.
    #[serde(rename = "rule")]
    pub ways: Vec<Way>,
}

/// Some connections, and where they go.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Way {
    /// To which network. Without it: to all.
    #[serde(default)]
    pub destination: Option<Prefix>,
    /// To which ports. Without it: to all.
    #[serde(default)]
    pub destination_ports: Option<Ports>,
    /// The middlebox's addresses, one for each version of IP; connections of a version without one stay as they are. None: all do.
    pub to: Vec<SocketAddr>,
    /// What becomes of them while the middlebox does not listen.
    #[serde(default)]
    pub dead: Dead,
}

impl Way {
    fn diversions(&self) -> Vec<Diversion> {
        let of = |family: Family| {
            let at = self.to.iter().find(|at| is_of(at.ip(), family));
            let to = match at {
                Some(at) => Onward::Middlebox(*at, self.dead),
                None if self.to.is_empty() => Onward::Kernel,
                None => return None,
            };
            let fits = self.destination.is_none_or(|network| is_of(network.ip, family));
            fits.then_some(Diversion { family, destination: self.destination, ports: self.destination_ports, to })
        };
        [Family::Ipv4, Family::Ipv6].into_iter().filter_map(of).collect()
    }

    fn fault(&self) -> Option<String> {
        let families = self.to.iter().map(|at| at.is_ipv4()).collect::<BTreeSet<_>>();
        if families.len() < self.to.len() {
            return Some("`to` has two addresses of the same version of IP".into());
        }
        let diversions = self.diversions();
        if diversions.is_empty() {
            return Some("`to` has no address of the destination's version of IP".into());
        }
        if self.dead == Dead::Closed && self.destination.is_none() && families.len() < 2 {
            // What is to be refused must not pass by the other version.
            return Some("dead = \"closed\" needs an address of each version of IP in `to`, or a destination".into());
        }
        diversions.iter().find_map(Diversion::fault)
    }
}

/// Whose connections a redirect is for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Whose {
    /// Those of a control group's programs, and the middlebox's own group.
    Clients(Group, Option<Group>),
    /// Those that come by this interface for other hosts.
    Forwarded(Name),
    /// Those that come by this interface for this host, and the middlebox's group.
    Received(Name, Group),
}

impl fmt::Display for Whose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Whose::Clients(clients, _) => write!(f, "redirect of {clients}"),
            Whose::Forwarded(name) => write!(f, "redirect of what {name} brings for others"),
            Whose::Received(name, _) => write!(f, "redirect of what {name} brings for this host"),
        }
    }
}

impl Redirect {
    /// Whose connections.
    pub fn whose(&self) -> Result<Whose, String> {
        match (&self.clients, self.forwarded, self.received) {
            (Some(clients), None, None) => Ok(Whose::Clients(clients.clone(), self.middlebox.clone())),
            (None, Some(name), None) if self.middlebox.is_some() => Err(format!(
                "of what comes by {name} nobody is told by groups: leave `middlebox` out; its getsockname says all"
            )),
            (None, Some(name), None) if !name.is_plain() => {
                Err(format!("nft takes no name like {name}: give the interface one of letters, digits, - _ ."))
            }
            (None, Some(name), None) => Ok(Whose::Forwarded(name)),
            (None, None, Some(name)) => match &self.middlebox {
                Some(group) => Ok(Whose::Received(name, group.clone())),
                None => {
                    Err("`received` needs the `middlebox`'s control group, by which its listeners are known".into())
                }
            },
            _ => Err("it has one of `clients` (a control group), `received` and `forwarded` (an interface)".into()),
        }
    }

    /// What starts its middlebox with its rules, as `culvert-redirect` takes it; its command comes behind.
    pub fn hold_command(&self) -> Result<Vec<String>, String> {
        let words = match self.whose()? {
            Whose::Clients(clients, None) => vec!["hold".into(), clients.to_string()],
            Whose::Clients(clients, Some(own)) => {
                vec!["hold".into(), clients.to_string(), "--middlebox".into(), own.to_string()]
            }
            Whose::Forwarded(name) => vec!["forward".into(), "hold".into(), name.to_string()],
            Whose::Received(name, own) => {
                vec!["receive".into(), name.to_string(), "--middlebox".into(), own.to_string()]
            }
        };
        let rules = diversions_text(&self.diversions());
        Ok([vec!["culvert-redirect".into()], words, vec!["--rules".into(), rules, "--".into()]].concat())
    }

    /// Its rules, as culvert-redirect takes them.
    pub fn diversions(&self) -> Vec<Diversion> {
        self.ways.iter().flat_map(Way::diversions).collect()
    }

    pub(crate) fn fault(&self, whose: &Whose, others: &[Redirect]) -> Option<String> {
        for other in others.iter().filter_map(|other| other.whose().ok()) {
            match (whose, &other) {
                // Two sets of programs would each change what the other has decided.
                (Whose::Clients(own, _), Whose::Clients(clients, _))
                    if own.is_within(clients) || clients.is_within(own) =>
                {
                    return Some(format!("it is the group {clients}, or one lies in the other: make it one"));
                }
                (Whose::Forwarded(own), Whose::Forwarded(name))
                | (Whose::Received(own, _), Whose::Received(name, _))
                    if own == name =>
                {
                    return Some("it is there twice: make it one".into());
                }
                _ => {}
            }
        }
        if let Whose::Clients(clients, Some(own)) = whose
            && clients.is_within(own)
        {
            return Some("its clients lie in the middlebox's own group, whose connections stay as they are".into());
        }
        let count = self.diversions().len();
        if count > MOST_DIVERSIONS {
            return Some(format!(
                "its rules come to {count}, one for each version of IP, and there is room for {MOST_DIVERSIONS}"
            ));
        }
        if self.ways.is_empty() {
            return Some("it has no rule".into());
        }
        self.ways.iter().enumerate().find_map(|(at, way)| Some(format!("rule {}: {}", at + 1, way.fault()?)))
    }
}
