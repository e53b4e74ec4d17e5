//! What a user writes to name a port: `tun:zs0,addr=10.9.0.2/24,peer=10.9.0.1,mtu=1500,offload=off`.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

/// A tun or a tap device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Packets begin with the IP header.
    Tun,
    /// Packets begin with the Ethernet header.
    Tap,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if *self == Kind::Tun { "tun" } else { "tap" })
    }
}

/// How much work on packets is left to the other side, both ways.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Offload {
    /// None: every packet is on the device as it would be on a wire.
    Off,
    /// Checksums of transport headers.
    Checksum,
    /// Checksums, and TCP packets of up to 64 KiB that stand for several segments.
    #[default]
    Full,
}

/// An address of ours, and the kernel's at the other end of the device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Address {
    /// Ours: the engine answers to it.
    pub address: IpAddr,
    /// How many bits of it name the network.
    pub prefix: u8,
    /// What the kernel's end is given when the device is opened; `None`: it is set up by somebody else.
    pub peer: Option<IpAddr>,
}

/// A device and its settings.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Spec {
    /// Tun or tap.
    pub kind: Kind,
    /// The interface's name.
    pub name: String,
    /// Our addresses.
    pub addresses: Vec<Address>,
    /// Where packets for other networks go, at most one for each family. On a tun device all packets go to the kernel anyway.
    pub gateways: Vec<IpAddr>,
    /// The MTU that the device is given; `None`: it keeps its own.
    pub mtu: Option<u16>,
    /// What is left to the other side.
    pub offload: Offload,
    /// How many received packets may be held at once.
    pub buffers: u32,
    /// How many packets wait in the device before the kernel drops more; `None`: [`Spec::QUEUE`] if the device is set up here
    /// (some address has a peer), else it is left as it is.
    pub queue: Option<u32>,
    /// Our Ethernet address (tap); `None`: the caller's choice.
    pub mac: Option<[u8; 6]>,
    /// The VLAN that our packets are tagged with (tap).
    pub vlan: Option<u16>,
}

impl Spec {
    /// The queue of a device that is set up here, in packets; each takes the kernel 8 bytes. The kernel's 500 are fewer than a
    /// receive window holds, and the kernel's TCP does not notice a full queue here: a tun device takes packets from their socket at
    /// once (tun_net_xmit, skb_orphan), and drops what is too many. Five thousand connections that all begin with ten segments
    /// overrun 10,000, and spend a minute in retransmission timeouts.
    pub const QUEUE: u32 = 65_536;
    /// The received packets that are held at once if nothing else is said.
    pub const BUFFERS: u32 = 512;

    /// A device without addresses.
    pub fn new(kind: Kind, name: &str) -> Spec {
        Spec {
            kind,
            name: name.into(),
            addresses: Vec::new(),
            gateways: Vec::new(),
            mtu: None,
            offload: Offload::default(),
            buffers: Spec::BUFFERS,
            queue: None,
            mac: None,
            vlan: None,
        }
    }
}

/// What is wrong with a spec, and what would be right.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SpecError(String);

impl SpecError {
    /// With one line for the user.
    pub fn new(text: impl Into<String>) -> SpecError {
        SpecError(text.into())
    }
}

impl fmt::Display for SpecError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for SpecError {}

fn wrong<T>(text: impl Into<String>) -> Result<T, SpecError> {
    Err(SpecError::new(text))
}

impl FromStr for Spec {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Spec, SpecError> {
        let Some((kind, rest)) = text.split_once(':') else {
            return wrong(format!("`{text}` names no port: write tun:NAME or tap:NAME"));
        };
        let kind = match kind {
            "tun" => Kind::Tun,
            "tap" => Kind::Tap,
            _ => return wrong(format!("there is no port of the kind `{kind}`: write tun:NAME or tap:NAME")),
        };
        let mut parts = rest.split(',');
        let mut spec = Spec::new(kind, name(parts.next().unwrap_or(""))?);
        let mut set = Vec::new();
        for part in parts {
            let (key, value) = part.split_once('=').unwrap_or((part, ""));
            spec.set(key, value)?;
            if !matches!(key, "addr" | "peer" | "gateway") && set.contains(&key) {
                return wrong(format!("{key}={value}: {key} is there twice; name it once"));
            }
            set.push(key);
        }
        spec.check()?;
        Ok(spec)
    }
}

impl Spec {
    fn set(&mut self, key: &str, value: &str) -> Result<(), SpecError> {
        match key {
            "addr" => self.addresses.push(address(value)?),
            "peer" => {
                let peer = ip("peer", value)?;
                match self.addresses.last_mut() {
                    Some(last) if last.peer.is_none() => last.peer = Some(peer),
                    _ => return wrong(format!("peer={value} must follow the addr that it is the other end of")),
                }
            }
            "gateway" => {
                let gateway = ip("gateway", value)?;
                if self.gateways.iter().any(|g| g.is_ipv4() == gateway.is_ipv4()) {
                    return wrong(format!(
                        "gateway={value}: there is one already, and one is enough for each of IPv4 and IPv6"
                    ));
                }
                self.gateways.push(gateway);
            }
            "mtu" => self.mtu = Some(number(key, value, 88, 65_521)? as u16),
            "offload" => {
                self.offload = match value {
                    "on" | "full" => Offload::Full,
                    "checksum" => Offload::Checksum,
                    "off" => Offload::Off,
                    _ => return wrong(format!("offload={value}: it is on, checksum (no large packets) or off")),
                }
            }
            "buffers" => self.buffers = number(key, value, 4, 1 << 16)?,
            "queue" => self.queue = Some(number(key, value, 1, 1 << 20)?),
            "mac" => self.mac = Some(mac(value)?),
            "vlan" => self.vlan = Some(number(key, value, 1, 4094)? as u16),
            _ => {
                return wrong(format!(
                    "`{key}` is no setting of a port: there are addr, peer, gateway, mtu, offload, buffers, queue, mac and vlan"
                ));
            }
        }
        Ok(())
    }

    fn check(&self) -> Result<(), SpecError> {
        if self.kind == Kind::Tun && (self.mac.is_some() || self.vlan.is_some()) {
            return wrong(format!("a tun device has no Ethernet header for mac or vlan: write tap:{}", self.name));
        }
        for a in &self.addresses {
            let address = a.address;
            if address.is_ipv6() && self.mtu.is_some_and(|mtu| mtu < 1280) {
                return wrong(format!("addr={address}: IPv6 needs an mtu of at least 1280 (RFC 8200, section 5)"));
            }
            let Some(peer) = a.peer else { continue };
            if self.addresses.iter().any(|own| own.address == peer) {
                return wrong(format!("peer={peer}: it is our own address; the kernel's end needs another one"));
            }
            if peer.is_ipv4() != address.is_ipv4() || network(peer, a.prefix) != network(address, a.prefix) {
                return wrong(format!("peer={peer}: it is not in the network of addr={address}/{}", a.prefix));
            }
        }
        Ok(())
    }
}

/// A name that the kernel takes for an interface (dev_valid_name; `%` would make it a pattern).
fn name(name: &str) -> Result<&str, SpecError> {
    if name.is_empty() {
        return wrong("the device has no name: write tun:NAME, for example tun:zs0");
    }
    if name.len() > 15 {
        return wrong(format!("the device name `{name}` has {} bytes: at most 15 are possible", name.len()));
    }
    let fine = |c: char| c.is_ascii_graphic() && !matches!(c, '/' | ':' | '%' | '=');
    if !name.chars().all(fine) || name == "." || name == ".." {
        return wrong(format!("`{name}` cannot be the name of a device: use letters, digits, - and _"));
    }
    Ok(name)
}

fn ip(key: &str, value: &str) -> Result<IpAddr, SpecError> {
    value.parse().or_else(|_| wrong(format!("{key}={value}: that is no IP address")))
}

fn address(value: &str) -> Result<Address, SpecError> {
    let Some((address, prefix)) = value.split_once('/') else {
        return wrong(format!("addr={value}: the length of the prefix is missing, as in 10.9.0.2/24"));
    };
    let address = ip("addr", address)?;
    if address.is_unspecified() || address.is_multicast() {
        return wrong(format!("addr={value}: no host can have that address"));
    }
    let most = if address.is_ipv4() { 32 } else { 128 };
    match prefix.parse() {
        Ok(prefix) if prefix <= most => Ok(Address { address, prefix, peer: None }),
        _ => wrong(format!("addr={value}: the length of the prefix is a number up to {most}")),
    }
}

/// The bits of the network, in the high bits.
fn network(address: IpAddr, prefix: u8) -> u128 {
    let bits = match address {
        IpAddr::V4(a) => u128::from(a.to_bits()) << 96,
        IpAddr::V6(a) => a.to_bits(),
    };
    bits.checked_shr(128 - u32::from(prefix)).unwrap_or(0)
}

fn number(key: &str, value: &str, least: u32, most: u32) -> Result<u32, SpecError> {
    match value.parse() {
        Ok(n) if (least..=most).contains(&n) => Ok(n),
        _ => wrong(format!("{key}={value}: it is a number from {least} to {most}")),
    }
}

fn mac(value: &str) -> Result<[u8; 6], SpecError> {
    let mut mac = [0; 6];
    let mut parts = value.split(':');
    for byte in &mut mac {
        let part = parts.next().unwrap_or("");
        match u8::from_str_radix(part, 16) {
            Ok(b) if part.len() == 2 => *byte = b,
            _ => return wrong(format!("mac={value}: it is written as 02:00:00:00:00:01")),
        }
    }
    if parts.next().is_some() || mac[0] & 1 != 0 {
        return wrong(format!("mac={value}: that is no address of one station; write, for example, 02:00:00:00:00:01"));
    }
    Ok(mac)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        text.parse::<Spec>().expect_err(text).to_string()
    }

    #[test]
    fn a_name_alone() {
        assert_eq!("tun:zs0".parse(), Ok(Spec::new(Kind::Tun, "zs0")));
        assert_eq!("tap:zs-1".parse(), Ok(Spec::new(Kind::Tap, "zs-1")));
    }

    #[test]
    fn every_setting() {
        let text = "tap:x,addr=10.9.0.2/24,peer=10.9.0.1,addr=fd00::2/64,gateway=10.9.0.1,gateway=fd00::1,mtu=9000,offload=off,\
                    buffers=64,queue=5000,mac=02:00:00:00:00:0A,vlan=7";
        let got: Spec = text.parse().unwrap();
        let v4 = Address { address: "10.9.0.2".parse().unwrap(), prefix: 24, peer: "10.9.0.1".parse().ok() };
        let v6 = Address { address: "fd00::2".parse().unwrap(), prefix: 64, peer: None };
        let expected = Spec {
            addresses: vec![v4, v6],
            gateways: vec!["10.9.0.1".parse().unwrap(), "fd00::1".parse().unwrap()],
            mtu: Some(9000),
            offload: Offload::Off,
            buffers: 64,
            queue: Some(5000),
            mac: Some([2, 0, 0, 0, 0, 10]),
            vlan: Some(7),
            ..Spec::new(Kind::Tap, "x")
        };
        assert_eq!(got, expected);
        assert_eq!("tun:x,offload=checksum".parse::<Spec>().unwrap().offload, Offload::Checksum);
    }

    #[test]
    fn what_is_wrong_names_the_value_and_the_remedy() {
        let cases = [
            ("zs0", "`zs0` names no port: write tun:NAME"),
            ("veth:a", "no port of the kind `veth`: write tun:NAME"),
            ("tun:", "no name: write tun:NAME"),
            ("tun:sixteen-letters-", "`sixteen-letters-` has 16 bytes: at most 15"),
            ("tun:a/b", "`a/b` cannot be the name"),
            ("tun:zs%d", "`zs%d` cannot be the name"),
            ("tun:..", "`..` cannot be the name"),
            ("tun:x,colour=red", "`colour` is no setting of a port: there are addr"),
            ("tun:x,addr=10.9.0.2", "addr=10.9.0.2: the length of the prefix is missing, as in 10.9.0.2/24"),
            ("tun:x,addr=10.9.0.2/33", "addr=10.9.0.2/33: the length of the prefix is a number up to 32"),
            ("tun:x,addr=10.9.0.256/24", "addr=10.9.0.256: that is no IP address"),
            ("tun:x,addr=0.0.0.0/0", "no host can have that address"),
            ("tun:x,peer=10.9.0.1", "peer=10.9.0.1 must follow the addr"),
            ("tun:x,addr=10.9.0.2/24,peer=10.8.0.1", "peer=10.8.0.1: it is not in the network of addr=10.9.0.2/24"),
            ("tun:x,addr=10.9.0.2/24,peer=fd00::1", "peer=fd00::1: it is not in the network"),
            ("tun:x,addr=10.9.0.2/24,peer=10.9.0.2", "peer=10.9.0.2: it is our own address"),
            ("tun:x,addr=10.9.0.2/24,peer=10.9.0.1,addr=10.9.0.1/24", "peer=10.9.0.1: it is our own address"),
            ("tun:x,gateway=10.9.0.1,gateway=10.9.0.3", "gateway=10.9.0.3: there is one already"),
            ("tun:x,mtu=87", "mtu=87: it is a number from 88 to"),
            ("tun:x,mtu=big", "mtu=big: it is a number from 88 to"),
            ("tun:x,addr=fd00::2/64,mtu=1279", "addr=fd00::2: IPv6 needs an mtu of at least 1280"),
            ("tun:x,mtu=1400,mtu=1500", "mtu=1500: mtu is there twice; name it once"),
            ("tun:x,offload=on,offload=on", "offload=on: offload is there twice"),
            ("tun:x,buffers=8,queue=9,buffers=10", "buffers=10: buffers is there twice"),
            ("tun:x,queue=9,queue=9", "queue=9: queue is there twice"),
            ("tap:x,mac=02:00:00:00:00:01,mac=02:00:00:00:00:02", "mac=02:00:00:00:00:02: mac is there twice"),
            ("tap:x,vlan=4,vlan=5", "vlan=5: vlan is there twice"),
            ("tun:x,offload=maybe", "offload=maybe: it is on, checksum"),
            ("tun:x,mac=02:00:00:00:00:01", "a tun device has no Ethernet header for mac or vlan: write tap:x"),
            ("tap:x,mac=2:0:0:0:0:1", "mac=2:0:0:0:0:1: it is written as 02:00:00:00:00:01"),
            ("tap:x,mac=01:00:5e:00:00:01", "no address of one station"),
            ("tap:x,vlan=4095", "vlan=4095: it is a number from 1 to 4094"),
            ("tun:x,buffers=3", "buffers=3: it is a number from 4"),
        ];
        for (text, expected) in cases {
            let got = error(text);
            assert!(got.contains(expected), "{text}: {got}");
        }
    }

    #[test]
    fn networks() {
        let net = |a: &str, p| network(a.parse().unwrap(), p);
        assert_eq!(net("10.9.0.2", 24), net("10.9.0.1", 24));
        assert_ne!(net("10.9.0.2", 31), net("10.9.0.1", 31));
        assert_eq!(net("10.9.0.2", 0), net("1.2.3.4", 0));
        assert_ne!(net("fd00::1", 128), net("fd00::2", 128));
        assert_eq!(net("fd00::1", 64), net("fd00::2", 64));
    }
}
