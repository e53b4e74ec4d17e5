//! Connections that this host passes on to others, brought to a middlebox (TPROXY): a table of nft(8) of its own for each interface by which they come, and
//! routing rules by which marked packets are for this host whatever their destination.
//!
//! The kernel asks its own sockets for each SYN that a rule names: where the middlebox listens it gets it, and where it does not the next line of the
//! table says what becomes of it. All other packets go to the middlebox if one of its sockets has their addresses, and pass on otherwise: so
//! connections that have begun stay where they are.

use crate::nft::Nft;
use crate::set::Presence;
use nix::ifaddrs::getifaddrs;
use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use steering::{Dead, Diversion, Family, Name, Onward, Ports, Prefix};

/// The bit of a packet's mark by which it is for this host. Kubernetes, Tailscale and systemd use others; Cilium and Calico may use any of the upper 16.
const MARK: u32 = 0x2000_0000;
/// The table in which all addresses are this host's, and the priority of the rules that lead to it: before the main table's.
const TABLE: u32 = 11_810;

/// Forwarded connections that come by an interface of the caller's network namespace.
pub struct Forward {
    interface: Name,
}

/// Options of ip(8), one for each version of IP that this network namespace has: containers are often without IPv6.
fn families() -> impl Iterator<Item = &'static str> {
    let six = fs::read_to_string("/proc/sys/net/ipv6/conf/lo/disable_ipv6").is_ok_and(|off| off.trim() == "0");
    ["-4", "-6"].into_iter().filter(move |family| *family == "-4" || six)
}

/// One for each that the kernel has: it may have been switched off meanwhile.
fn all_families() -> impl Iterator<Item = &'static str> {
    ["-4", "-6"].into_iter().filter(|family| *family == "-4" || Path::new("/proc/net/if_inet6").exists())
}

fn ip(family: &str, text: &str) -> Result<String, String> {
    let mut command = Command::new("ip");
    command.arg(family).args(text.split(' ')).env("LC_ALL", "C").stdin(Stdio::null());
    let out = command.output().map_err(|e| format!("ip: {e}: apt-get install iproute2"))?;
    match out.status.success() {
        true => Ok(String::from_utf8_lossy(&out.stdout).into_owned()),
        false => {
            let said = String::from_utf8_lossy(&out.stderr);
            let said = said.lines().next().unwrap_or("it failed").trim_start_matches("RTNETLINK answers: ").to_owned();
            let rights = match &said[..] {
                said if said.contains("not permitted") => ": it takes root (CAP_NET_ADMIN)",
                said if said.contains("not up") => ": ip link set lo up",
                _ => "",
            };
            Err(format!("`ip {family} {text}`: {said}{rights}"))
        }
    }
}

const ROUTE: &str = "local default dev lo";

/// The route by which all is this host's.
fn route(what: &str) -> String {
    format!("route {what} {ROUTE} table {TABLE}")
}

fn has_route(family: &str) -> bool {
    // Without any route there is no table, which is no failure either.
    ip(family, &format!("route show table {TABLE}")).is_ok_and(|out| out.lines().any(|line| line.starts_with(ROUTE)))
}

/// A table as the kernel shows it: its lines.
struct Shown {
    owned: bool,
    rules: Vec<String>,
}

impl Forward {
    /// Those that come by this interface.
    pub fn new(interface: Name) -> Result<Forward, String> {
        match interface.is_plain() {
            true => Ok(Forward { interface }),
            false => {
                Err(format!("{interface}: nft takes no table's name with all of its characters: give it another one"))
            }
        }
    }

    fn table(&self) -> String {
        format!("culvert-{}", self.interface)
    }

    fn rule(&self) -> String {
        format!("iif {} fwmark {MARK:#x}/{MARK:#x} lookup {TABLE} pref {TABLE}", self.interface)
    }

    fn has_rule(&self, family: &str) -> Result<bool, String> {
        // What it selects by is not the same in all versions: the line is compared.
        let mark = format!("fwmark {MARK:#x}/{MARK:#x} ");
        let (by, to) = (format!(" iif {} ", self.interface), format!("lookup {TABLE}"));
        let lines = ip(family, &format!("rule show pref {TABLE}"))?;
        let is_it = |line: &str| line.contains(&mark) && line.contains(&by) && line.trim_end().ends_with(&to);
        Ok(lines.lines().any(|line| is_it(&line.replace("[detached] ", ""))))
    }

    /// The table, if it is there.
    fn shown(&self, nft: &mut Nft) -> Result<Option<Shown>, String> {
        let tables = nft.run("list tables inet").map_err(|why| rights("nft", &why))?;
        let name = format!("table inet {}", self.table());
        if !tables.lines().any(|line| line.trim() == name) {
            return Ok(None);
        }
        let text = nft.run(&format!("list {name}")).map_err(|why| rights(&name, &why))?;
        let lines: Vec<&str> = text.lines().map(str::trim).collect();
        let owned = lines.iter().any(|line| line.starts_with("flags") && line.contains("owner"));
        let rules = lines.iter().skip_while(|line| **line != "chain redirected {").skip(1);
        let rules = rules.take_while(|line| **line != "}").map(|line| (*line).to_owned()).collect();
        Ok(Some(Shown { owned, rules }))
    }

    /// What is there of it; `Another`: a process holds it.
    pub fn presence(&self) -> Result<Presence, String> {
        let shown = self.shown(&mut Nft::new()?)?;
        let mut parts = Vec::new();
        for family in families() {
            parts.push(self.has_rule(family)?);
            // The other interfaces' is the same.
            parts.push(parts.last().is_some_and(|own| *own) && has_route(family));
        }
        Ok(match shown {
            Some(shown) if shown.owned => Presence::Another,
            Some(_) if parts.iter().all(|part| *part) => Presence::Present,
            None if parts.iter().all(|part| !part) => match self.is_there()? {
                true => Presence::Absent,
                false => Presence::Gone,
            },
            _ => Presence::Part,
        })
    }

    /// Makes the table, without rules, until it is taken away.
    pub fn attach(&self) -> Result<(), String> {
        let mut nft = Nft::new()?;
        self.is_free(&mut nft)?;
        self.deliver()?;
        nft.run(&format!("create table inet {}\n{}", self.table(), self.text("", &[])))
            .map(drop)
            .map_err(|why| rights(&self.table(), &why))
    }

    /// The same with rules, for as long as some process has the descriptors that this one has then.
    pub fn hold(&self, rules: &[Diversion]) -> Result<(), String> {
        let mut nft = Nft::new()?;
        self.is_free(&mut nft)?;
        self.deliver()?;
        nft.run(&self.text("flags owner;", rules)).map_err(|why| rights(&self.table(), &why))?;
        nft.hand_on()
    }

    /// Whether there is such an interface.
    fn is_there(&self) -> Result<bool, String> {
        let name = self.interface.to_string();
        Ok(getifaddrs().map_err(|e| format!("the interfaces: {e}"))?.any(|address| address.interface_name == name))
    }

    fn is_free(&self, nft: &mut Nft) -> Result<(), String> {
        let interface = self.interface;
        if !self.is_there()? {
            return Err(format!("there is no interface {interface} here"));
        }
        match self.shown(nft)? {
            None => Ok(()),
            Some(shown) if shown.owned => Err(format!(
                "a process holds redirects of {interface} (culvert-redirect forward hold): they go with it"
            )),
            Some(_) => Err(format!("{interface} has redirects: culvert-redirect forward detach {interface}")),
        }
    }

    /// Marked packets are for this host. Without a table nobody marks them.
    fn deliver(&self) -> Result<(), String> {
        for family in families() {
            ip(family, &route("replace"))?;
            if !self.has_rule(family)? {
                ip(family, &format!("rule add {}", self.rule()))?;
            }
        }
        Ok(())
    }

    /// Takes all of it away, also where it is only a part. Connections that the middlebox has are cut: their next packets go on to where they are for.
    pub fn detach(&self) -> Result<(), String> {
        let mut nft = Nft::new()?;
        match self.shown(&mut nft)? {
            Some(shown) if shown.owned => {
                return Err(format!(
                    "a process holds redirects of {} (culvert-redirect forward hold): they go with it",
                    self.interface
                ));
            }
            Some(_) => drop(
                nft.run(&format!("delete table inet {}", self.table())).map_err(|why| rights(&self.table(), &why))?,
            ),
            None => {}
        }
        for family in all_families() {
            if self.has_rule(family)? {
                ip(family, &format!("rule del {}", self.rule()))?;
            }
            let rules = ip(family, &format!("rule show pref {TABLE}"))?;
            if !rules.lines().any(|line| line.trim_end().ends_with(&format!("lookup {TABLE}"))) {
                match ip(family, &route("del")) {
                    // There is none any more: it goes with lo's addresses, too.
                    Err(why) if !why.contains("No such") => return Err(why),
                    _ => {}
                }
            }
        }
        Ok(())
    }

    /// The rules, in their order, as the kernel has them; or what it has instead.
    pub fn rules(&self) -> Result<Vec<Diversion>, String> {
        let shown = self.shown(&mut Nft::new()?)?.map(|shown| shown.rules).unwrap_or_default();
        let mut all = Vec::new();
        for line in &shown {
            if let Some((_, comment)) = line.split_once(" comment \"") {
                all.push(read(comment.trim_end_matches('"')).ok_or_else(|| self.changed())?);
            }
        }
        let lines: usize = all.iter().map(|rule| lines(rule).len()).sum();
        if lines == shown.len() { Ok(all) } else { Err(self.changed()) }
    }

    fn changed(&self) -> String {
        format!("somebody has changed the table {} (nft list table inet {0})", self.table())
    }

    /// Gives other rules: from one SYN to the next. Connections that have begun stay where they are.
    pub fn change(&self, rules: &[Diversion]) -> Result<(), String> {
        let (mut nft, table) = (Nft::new()?, self.table());
        if self.shown(&mut nft)?.is_none() {
            return Err(format!("{0} has no redirects: culvert-redirect forward attach {0}", self.interface));
        }
        let mut text = format!("flush chain inet {table} redirected\n");
        for line in rules.iter().flat_map(lines) {
            let _ = writeln!(text, "add rule inet {table} redirected {line}");
        }
        nft.run(&text).map(drop).map_err(|why| rights(&table, &why))
    }

    /// The table as nft(8) takes it. A listener on all addresses is no connection's socket (`wildcard`), and what is for this host itself is not touched.
    fn text(&self, flags: &str, rules: &[Diversion]) -> String {
        let (table, by) = (self.table(), self.interface);
        let rules: String = rules.iter().flat_map(lines).fold(String::new(), |text, line| text + &line + "\n");
        format!(
            "table inet {table} {{
                {flags}
                chain begun {{
                    socket wildcard 1 return
                    socket transparent 1 meta mark set meta mark | {MARK:#x} accept
                }}
                chain redirected {{
                    {rules}
                }}
                chain arrive {{
                    type filter hook prerouting priority mangle; policy accept;
                    iifname != \"{by}\" return
                    meta l4proto != tcp return
                    fib daddr type local return
                    tcp flags & (syn | ack) != syn goto begun
                    goto redirected
                }}
            }}\n"
        )
    }
}

fn rights(what: &str, why: &str) -> String {
    let rights = if why.contains("not permitted") { ": it takes root (CAP_NET_ADMIN)" } else { "" };
    format!("{what}: {}{rights}", why.trim_start_matches("Error: "))
}

/// A rule's lines: where the middlebox listens (by a socket that is transparent), the first one takes the connection.
fn lines(rule: &Diversion) -> Vec<String> {
    let family = if rule.family == Family::Ipv4 { "ip" } else { "ip6" };
    let mut what = format!("meta nfproto {} meta l4proto tcp", if family == "ip" { "ipv4" } else { "ipv6" });
    if let Some(destination) = rule.destination {
        let _ = write!(what, " {family} daddr {destination}");
    }
    if let Some(ports) = rule.ports {
        let _ = write!(what, " tcp dport {}-{}", ports.first, ports.last);
    }
    let comment = format!("comment \"{}\"", written(rule));
    match rule.to {
        Onward::Kernel => vec![format!("{what} return {comment}")],
        Onward::Middlebox(at, dead) => {
            let otherwise = if dead == Dead::Open { "return" } else { "reject with tcp reset" };
            let take = format!("tproxy {family} to {at} meta mark set meta mark | {MARK:#x} accept");
            vec![format!("{what} {take} {comment}"), format!("{what} {otherwise}")]
        }
    }
}

/// A rule in few characters: nft takes 128.
fn written(rule: &Diversion) -> String {
    let mut text = if rule.family == Family::Ipv4 { "4" } else { "6" }.to_owned();
    let mut add = |part: Option<String>| text = format!("{text} {}", part.as_deref().unwrap_or("any"));
    add(rule.destination.map(|network| network.to_string()));
    add(rule.ports.map(|ports| ports.to_string()));
    match rule.to {
        Onward::Kernel => add(Some("kernel".into())),
        Onward::Middlebox(at, dead) => {
            add(Some(at.to_string()));
            add(Some(if dead == Dead::Open { "open" } else { "closed" }.into()));
        }
    }
    text
}

fn read(text: &str) -> Option<Diversion> {
    let words: Vec<&str> = text.split(' ').collect();
    let [family, destination, ports, ref to @ ..] = words[..] else { return None };
    let family = match family {
        "4" => Family::Ipv4,
        "6" => Family::Ipv6,
        _ => return None,
    };
    let destination = if destination == "any" { None } else { Some(destination.parse::<Prefix>().ok()?) };
    let ports = if ports == "any" { None } else { Some(ports.parse::<Ports>().ok()?) };
    let to = match *to {
        ["kernel"] => Onward::Kernel,
        [at, "open"] => Onward::Middlebox(at.parse().ok()?, Dead::Open),
        [at, "closed"] => Onward::Middlebox(at.parse().ok()?, Dead::Closed),
        _ => return None,
    };
    Some(Diversion { family, destination, ports, to })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_again() {
        for text in [
            "family ipv4 to kernel",
            "family ipv6 to ::1 15001 dead open",
            "family ipv4 destination 10.0.0.0/8 destination-ports 80-90 to 127.0.0.1 15001 dead closed",
            "family ipv6 destination fd11:1111:1111:1111:1111:1111:1111:1111/128 destination-ports 10000-20000 to fd11:1111:1111:1111:1111:1111:1111:1111 65535 dead closed",
        ] {
            let rule: Diversion = text.parse().expect(text);
            let short = written(&rule);
            assert!(short.len() < 128, "{short}");
            assert_eq!(read(&short).expect(text), rule);
        }
        assert_eq!(read("4 any any mars open"), None);
    }
}
