//! The configuration: a TOML file. Every key is described at its field; `zstackd.toml` beside the crate shows them all.

use serde::Deserialize;
use std::fmt;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::str::FromStr;
use zstack::net::{Address, Route};

/// What the file says.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Config {
    /// The port to the wire: `tap:NAME[,KEY=VALUE...]`, `tun:NAME...` or, where zstackd was built with it, `dpdk:DEVICE...`, as the
    /// tool `zstack` takes them, without addresses.
    pub port: String,
    /// The network namespace in which the port's device is: a name (as of ip-netns(8)) or a path. Without it, zstackd's own.
    /// Programs are served in zstackd's own namespace.
    #[serde(default)]
    pub port_namespace: Option<String>,
    /// zstackd's addresses on the wire, each with the length of its network's prefix: those that programs here connect from and
    /// listen at. No interface of the kernel's may have them.
    pub addresses: Vec<Prefix>,
    /// The routers that lead to other networks, at most one for each family.
    #[serde(default)]
    pub gateways: Vec<IpAddr>,
    /// The kernel uses the port's interface, too, and knows the ways: those by this interface in the main table of its namespace are
    /// zstackd's, as they are and as they change, instead of `gateways`. Without `remotes`, it is reached through zstackd what they
    /// lead to; then the port needs a namespace of its own. The interface has addresses of its own, and its kernel forwards nothing
    /// (`ip_forward`): packets to zstackd's addresses are none of its business.
    #[serde(default)]
    pub follow_routes: bool,
    /// The largest IP packet on the wire, in bytes. Without it, the port's.
    #[serde(default)]
    pub mtu: Option<u16>,
    /// The remote networks that are reached through zstackd. Without it: the networks of its addresses and, with a gateway, all.
    #[serde(default)]
    pub remotes: Option<Vec<Prefix>>,
    /// The name of the tun interface that leads programs' packets to zstackd.
    #[serde(default = "default_tun")]
    pub tun: String,
    /// Whose connections end in zstackd: those of programs under culvert, or of all. The packets of the others are handed on
    /// unchanged.
    #[serde(default)]
    pub programs: Programs,
    /// The users whose connections end in zstackd, as `1000` or `1000-1999`. Without it, all.
    #[serde(default)]
    pub users: Option<Vec<Range<u32>>>,
    /// The control groups (cgroups(7), version 2) whose processes' connections end in zstackd, with all groups in them, as
    /// `/system.slice/nginx.service`: what stands behind `0::` in /proc/PID/cgroup. A socket belongs to the group in which its process
    /// was when it made it, or the listener that it comes from. Groups may be made later. Without it, all.
    #[serde(default)]
    pub cgroups: Option<Vec<String>>,
    /// The ports for which connections end in zstackd, as `80` or `8000-8999`: of remote servers, and of servers here. Without it, all.
    #[serde(default)]
    pub ports: Option<Vec<Range<u16>>>,
    /// Connections at most, of all programs together. Beyond them connections are the kernel's.
    #[serde(default = "default_connections")]
    pub connections: u32,
    /// Connections at most, of one user. Beyond them his connections are the kernel's.
    #[serde(default = "default_connections")]
    pub connections_per_user: u32,
    /// Connections at most that programs have asked for and remote hosts have not answered yet, or the other way round. A user may
    /// have half of them, and less where others have some, so that there is room for one who comes later.
    #[serde(default = "default_pending")]
    pub pending: u32,
    /// Bytes that a connection may receive ahead of its program, and send ahead of its peer: a power of two.
    #[serde(default = "default_buffer")]
    pub buffer: u32,
    /// Bytes that the connections' buffers may take, all together. Of that a user may have half, and less where others have some. Beyond
    /// it, buffers stay small, and connections that are begun are the kernel's. Without it, a quarter of the machine's memory, or of what
    /// zstackd's control group may have.
    #[serde(default)]
    pub memory: Option<u64>,
    /// How many threads do the work, each with a queue of the port.
    #[serde(default = "default_workers")]
    pub workers: u16,
    /// How long to look for work after the last one before sleeping, in microseconds; it costs a core.
    #[serde(default)]
    pub spin: u32,
}

/// Whose connections end in zstackd.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Programs {
    /// Those of programs that run under culvert.
    #[default]
    Culvert,
    /// Those of all programs.
    All,
}

fn default_tun() -> String {
    "cv0".into()
}

fn default_connections() -> u32 {
    100_000
}

fn default_pending() -> u32 {
    4096
}

fn default_buffer() -> u32 {
    256 << 10
}

fn default_workers() -> u16 {
    1
}

/// An address and the length of a prefix.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(try_from = "String")]
pub struct Prefix {
    /// The address.
    pub ip: IpAddr,
    /// How many of its bits name the network.
    pub len: u8,
}

impl Prefix {
    /// Whether an address is in the network.
    pub fn covers(&self, ip: IpAddr) -> bool {
        let (own, other, bits) = match (self.ip, ip) {
            (IpAddr::V4(a), IpAddr::V4(b)) => (u128::from(a.to_bits()), u128::from(b.to_bits()), 32),
            (IpAddr::V6(a), IpAddr::V6(b)) => (a.to_bits(), b.to_bits(), 128),
            _ => return false,
        };
        (own ^ other).checked_shr(bits - u32::from(self.len)).unwrap_or(0) == 0
    }

    /// For the engine.
    pub fn address(&self) -> Address {
        Address { ip: self.ip, prefix: self.len }
    }
}

impl FromStr for Prefix {
    type Err = String;

    fn from_str(text: &str) -> Result<Prefix, String> {
        let wrong = || format!("`{text}` is no address with a prefix: write 10.1.0.1/24 or fd00::1/64");
        let (ip, len) = text.split_once('/').ok_or_else(wrong)?;
        let (ip, len): (IpAddr, u8) = (ip.parse().map_err(|_| wrong())?, len.parse().map_err(|_| wrong())?);
        if len > if ip.is_ipv4() { 32 } else { 128 } {
            return Err(wrong());
        }
        Ok(Prefix { ip, len })
    }
}

impl TryFrom<String> for Prefix {
    type Error = String;

    fn try_from(text: String) -> Result<Prefix, String> {
        text.parse()
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.ip, self.len)
    }
}

/// Numbers from the first to the last.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(try_from = "Numbers", bound = "T: FromStr + TryFrom<i64> + PartialOrd + Copy")]
pub struct Range<T>(pub RangeInclusive<T>);

/// As it is written: `80` or `"8000-8999"`.
#[derive(Deserialize)]
#[serde(untagged)]
enum Numbers {
    One(i64),
    Some(String),
}

impl<T: FromStr + TryFrom<i64> + PartialOrd + Copy> TryFrom<Numbers> for Range<T> {
    type Error = String;

    fn try_from(numbers: Numbers) -> Result<Range<T>, String> {
        match numbers {
            Numbers::One(n) => {
                let n = T::try_from(n).map_err(|_| format!("{n} is out of range"))?;
                Ok(Range(n..=n))
            }
            Numbers::Some(text) => {
                let wrong = || format!("`{text}` is no range of numbers: write 80 or \"8000-8999\"");
                let (first, last) = text.split_once('-').unwrap_or((&text, &text));
                let number = |text: &str| text.trim().parse().map_err(|_| wrong());
                let (first, last): (T, T) = (number(first)?, number(last)?);
                if first > last {
                    return Err(wrong());
                }
                Ok(Range(first..=last))
            }
        }
    }
}

/// What is wrong with a configuration, and what would be right: one line.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ConfigError(String);

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for ConfigError {}

fn wrong<T>(text: String) -> Result<T, ConfigError> {
    Err(ConfigError(text))
}

impl FromStr for Config {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Config, ConfigError> {
        let config: Config = toml::from_str(text).map_err(|e| {
            let line = e.span().map_or(0, |span| text[..span.start].matches('\n').count() + 1);
            ConfigError(format!("line {line}: {}", e.message().replace('\n', " ")))
        })?;
        config.check()?;
        Ok(config)
    }
}

impl Config {
    /// As many queues as devices have, and more than a host needs.
    const MOST_WORKERS: u16 = 64;

    fn check(&self) -> Result<(), ConfigError> {
        if self.addresses.is_empty() {
            return wrong(
                "addresses: there is none: give zstackd at least one, as addresses = [\"10.1.0.1/24\"]".into(),
            );
        }
        for (i, address) in self.addresses.iter().enumerate() {
            let ip = address.ip;
            if ip.is_unspecified() || ip.is_multicast() || ip.is_loopback() {
                return wrong(format!("addresses: {ip} is no address that a host can have on a wire"));
            }
            if self.addresses[..i].iter().any(|other| other.ip == ip) {
                return wrong(format!("addresses: {ip} is there twice"));
            }
        }
        for (i, gateway) in self.gateways.iter().enumerate() {
            if !self.addresses.iter().any(|a| a.covers(*gateway)) {
                return wrong(format!("gateways: {gateway} is in the network of none of the addresses"));
            }
            if self.addresses.iter().any(|a| a.ip == *gateway) {
                return wrong(format!("gateways: {gateway} is zstackd's own address"));
            }
            if self.gateways[..i].iter().any(|other| other.is_ipv4() == gateway.is_ipv4()) {
                return wrong(format!("gateways: {gateway} is the second one of its family"));
            }
        }
        if self.follow_routes && !self.gateways.is_empty() {
            return wrong("follow-routes: the kernel knows the gateways: leave `gateways` out".into());
        }
        if self.follow_routes && self.remotes.is_none() && self.port_namespace.is_none() {
            return wrong(
                "follow-routes: in zstackd's own namespace the kernel's routes are the programs': give `remotes`, or the port a `port-namespace`".into(),
            );
        }
        for remote in self.remotes.iter().flatten() {
            if !self.addresses.iter().any(|a| a.ip.is_ipv4() == remote.ip.is_ipv4()) {
                return wrong(format!("remotes: {remote}: zstackd has no address of that family"));
            }
        }
        if self.tun.is_empty() || self.tun.len() > 15 || self.tun.contains(['/', ':', ' ', '%']) {
            return wrong(format!("tun: `{}` is no name of an interface: give up to 15 letters and digits", self.tun));
        }
        for path in self.cgroups.iter().flatten() {
            if !path.starts_with('/') || path.split('/').any(|part| part == "..") {
                return wrong(format!(
                    "cgroups: `{path}` is no path of a control group: write it as in /proc/PID/cgroup behind `0::`, as /system.slice/nginx.service"
                ));
            }
        }
        let v6 = self.addresses.iter().any(|a| a.ip.is_ipv6());
        let least = if v6 { 1280 } else { 576 };
        if let Some(mtu) = self.mtu
            && mtu < least
        {
            return wrong(format!("mtu: {mtu} is too small: give at least {least}"));
        }
        for (name, n) in [
            ("connections", self.connections),
            ("connections-per-user", self.connections_per_user),
            ("pending", self.pending),
        ] {
            if n == 0 {
                return wrong(format!("{name}: 0 would serve nobody: give at least 1"));
            }
        }
        if !self.buffer.is_power_of_two() || !(16 << 10..=16 << 20).contains(&self.buffer) {
            return wrong(format!("buffer: {}: give a power of two from 16384 to 16777216", self.buffer));
        }
        let least = u64::from(self.buffer) * 8 * u64::from(self.workers.max(1));
        if let Some(memory) = self.memory
            && memory < least
        {
            return wrong(format!(
                "memory: {memory} is too little for buffers of {} bytes: give at least {least}, or a smaller `buffer`",
                self.buffer
            ));
        }
        if !(1..=Config::MOST_WORKERS).contains(&self.workers) {
            return wrong(format!("workers: {}: give 1 to {}", self.workers, Config::MOST_WORKERS));
        }
        if self.spin > 1_000_000 {
            return wrong(format!("spin: {}: give at most 1000000 microseconds", self.spin));
        }
        Ok(())
    }

    /// The remote networks that are reached through zstackd; with `follow_routes` more may be.
    pub fn served(&self) -> Vec<Prefix> {
        if let Some(remotes) = &self.remotes {
            return remotes.clone();
        }
        let any = |v4: bool| Prefix { ip: if v4 { [0u8; 4].into() } else { [0u8; 16].into() }, len: 0 };
        let all = self.gateways.iter().map(|gateway| any(gateway.is_ipv4()));
        self.addresses.iter().copied().chain(all).collect()
    }

    /// The engine's routes: the gateways.
    pub fn routes(&self) -> Vec<Route> {
        let default = |gateway: &IpAddr| {
            let any: IpAddr = if gateway.is_ipv4() { [0; 4].into() } else { [0u8; 16].into() };
            Route { network: Address { ip: any, prefix: 0 }, gateway: Some(*gateway) }
        };
        self.gateways.iter().map(default).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEAST: &str = "port = \"tap:w0\"\naddresses = [\"10.1.0.1/24\"]\n";

    fn error(more: &str) -> String {
        format!("{LEAST}{more}").parse::<Config>().unwrap_err().to_string()
    }

    #[test]
    fn two_keys_are_enough() {
        let config: Config = LEAST.parse().unwrap();
        assert_eq!((config.tun.as_str(), config.programs, config.mtu), ("cv0", Programs::Culvert, None));
        assert_eq!(config.served(), [config.addresses[0]]);
        assert!(config.routes().is_empty());
    }

    #[test]
    fn the_file_that_shows_all_keys_is_right() {
        let text = include_str!("../zstackd.toml");
        let config: Config = text.parse().unwrap();
        // Each key of the type is in the file, commented out or not.
        let keys = "port port-namespace addresses gateways follow-routes mtu remotes tun programs users cgroups ports connections connections-per-user pending buffer memory workers spin";
        for key in keys.split(' ') {
            let there = |line: &str| line.trim_start_matches("# ").starts_with(&format!("{key} ="));
            assert!(text.lines().any(there), "{key}");
        }
        assert!(!config.served().is_empty());
        // With all comments of keys taken away it is right as well, apart from one that excludes another.
        let whole: String = text
            .lines()
            .map(|line| line.strip_prefix("# ").filter(|rest| rest.contains(" = ")).unwrap_or(line))
            .filter(|line| !line.starts_with("follow-routes"))
            .map(|line| format!("{line}\n"))
            .collect();
        whole.parse::<Config>().unwrap();
    }

    #[test]
    fn what_is_wrong_is_named_with_its_remedy() {
        for (more, parts) in [
            ("prot = 3", &["line 3", "prot", "port"][..]),
            ("mtu = 100", &["mtu", "100", "576"]),
            ("mtu = -1", &["line 3", "-1"]),
            ("gateways = [\"10.2.0.1\"]", &["gateways", "10.2.0.1", "network"]),
            ("gateways = [\"10.1.0.1\"]", &["10.1.0.1", "own"]),
            ("gateways = [\"10.1.0.2\", \"10.1.0.3\"]", &["10.1.0.3", "second"]),
            ("follow-routes = true", &["follow-routes", "remotes", "port-namespace"]),
            ("follow-routes = true\ngateways = [\"10.1.0.2\"]", &["follow-routes", "gateways"]),
            ("remotes = [\"fd00::/8\"]", &["fd00::/8", "family"]),
            ("remotes = [\"10.0.0.0/33\"]", &["10.0.0.0/33"]),
            ("tun = \"a name that is too long\"", &["a name", "15"]),
            ("programs = \"some\"", &["some", "culvert", "all"]),
            ("users = [\"9-3\"]", &["9-3"]),
            ("cgroups = [\"nginx.service\"]", &["`nginx.service`", "/proc/PID/cgroup"]),
            ("cgroups = [\"/a/../b\"]", &["/a/../b"]),
            ("ports = [70000]", &["70000"]),
            ("connections = 0", &["connections", "at least 1"]),
            ("buffer = 100000", &["100000", "power of two"]),
            ("memory = 1000000", &["1000000", "2097152", "buffer"]),
            ("workers = 0", &["workers: 0", "1 to 64"]),
            ("workers = 65", &["workers: 65", "1 to 64"]),
            ("memory = 2097152\nworkers = 2", &["2097152", "4194304"]),
        ] {
            let text = error(more);
            assert!(parts.iter().all(|part| text.contains(part)), "{more}: {text}");
            assert!(!text.contains('\n'), "{text}");
        }
        let none = "port = \"tap:w0\"\naddresses = []".parse::<Config>().unwrap_err().to_string();
        assert!(none.contains("at least one"), "{none}");
        let twice = "port = \"tap:w0\"\naddresses = [\"10.1.0.1/24\", \"10.1.0.1/16\"]".parse::<Config>().unwrap_err();
        assert!(twice.to_string().contains("twice"));
    }

    #[test]
    fn prefixes_cover_their_networks() {
        let covers = |prefix: &str, ip: &str| prefix.parse::<Prefix>().unwrap().covers(ip.parse().unwrap());
        assert!(covers("10.1.0.1/24", "10.1.0.200") && !covers("10.1.0.1/24", "10.1.1.0"));
        assert!(covers("0.0.0.0/0", "8.8.8.8") && !covers("0.0.0.0/0", "::1") && covers("::/0", "::1"));
        assert!(covers("10.1.0.1/32", "10.1.0.1") && !covers("10.1.0.1/32", "10.1.0.0"));
        assert!(covers("fd00::/64", "fd00::ffff") && !covers("fd00::/64", "fd00:0:0:1::"));
    }
}
