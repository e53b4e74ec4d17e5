//! What configurations are made of: networks, ranges of ports, protocols, link addresses; and why one cannot be used.

use serde::Deserialize;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// Why a configuration cannot be used.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Unusable {
    /// The key.
    pub key: String,
    /// Its value.
    pub value: String,
    /// What is wrong, and what to do about it.
    pub remedy: String,
}

impl Unusable {
    pub(crate) fn new(key: impl Into<String>, value: impl fmt::Display, remedy: impl Into<String>) -> Unusable {
        Unusable { key: key.into(), value: value.to_string(), remedy: remedy.into() }
    }
}

impl fmt::Display for Unusable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} = {}: {}", self.key, self.value, self.remedy)
    }
}

impl std::error::Error for Unusable {}

/// A type that is written as a string in configurations.
macro_rules! written {
    ($name:ident) => {
        impl TryFrom<String> for $name {
            type Error = String;

            fn try_from(text: String) -> Result<Self, String> {
                text.parse()
            }
        }
    };
}

/// A network: all addresses that begin with the same bits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Deserialize)]
#[serde(try_from = "String")]
pub struct Prefix {
    /// Its first address.
    pub address: IpAddr,
    /// How many bits are the same.
    pub len: u8,
}

written!(Prefix);

impl Prefix {
    /// Whether the address is in it.
    pub fn contains(&self, address: IpAddr) -> bool {
        let same = |a: u128, b: u128, bits: u8| self.len == 0 || (a ^ b) >> (bits - self.len) == 0;
        match (self.address, address) {
            (IpAddr::V4(a), IpAddr::V4(b)) => same(u32::from(a).into(), u32::from(b).into(), 32),
            (IpAddr::V6(a), IpAddr::V6(b)) => same(a.into(), b.into(), 128),
            _ => false,
        }
    }

    /// Its first address as a number whose highest bit is the first one.
    pub(crate) fn bits(&self) -> u128 {
        bits(self.address)
    }
}

/// The address as a number whose highest bit is the first one.
pub(crate) fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(a) => u128::from(u32::from(a)) << 96,
        IpAddr::V6(a) => a.into(),
    }
}

impl FromStr for Prefix {
    type Err = String;

    fn from_str(text: &str) -> Result<Prefix, String> {
        let (address, len) = text.split_once('/').map_or((text, None), |(a, l)| (a, Some(l)));
        let address: IpAddr =
            address.parse().map_err(|_| format!("{text:?} is no network: write 10.0.0.0/8 or 2001:db8::/32"))?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        let len = len.map_or(Ok(most), str::parse).ok().filter(|l| *l <= most);
        let Some(len) = len else { return Err(format!("{text:?} is no network: its length is 0 to {most}")) };
        let mask = if len == 0 { 0 } else { u128::MAX << (128 - len) };
        let first = bits(address) & mask;
        if first != bits(address) {
            let first = match address {
                IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::from((first >> 96) as u32)),
                IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::from(first)),
            };
            return Err(format!("{text:?} has bits behind its length: write {first}/{len}"));
        }
        Ok(Prefix { address, len })
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.len)
    }
}

/// Ports from one to another, both included: "80", "1024-65535".
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(try_from = "String")]
pub struct Ports {
    /// The first.
    pub first: u16,
    /// The last.
    pub last: u16,
}

written!(Ports);

impl Ports {
    /// Whether the port is one of them.
    pub fn contains(&self, port: u16) -> bool {
        (self.first..=self.last).contains(&port)
    }
}

impl FromStr for Ports {
    type Err = String;

    fn from_str(text: &str) -> Result<Ports, String> {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        match (first.parse(), last.parse()) {
            (Ok(first), Ok(last)) if first <= last => Ok(Ports { first, last }),
            _ => Err(format!("{text:?} are no ports: write 80 or 1024-65535")),
        }
    }
}

/// A protocol above IP: "tcp", "udp", "icmp" (IPv4's and IPv6's), or a number: "47".
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(try_from = "String")]
pub enum Protocol {
    /// ICMP, of either version.
    Icmp,
    /// By its number.
    Number(u8),
}

written!(Protocol);

impl Protocol {
    /// Whether a number is this protocol's.
    pub fn is(self, number: u8) -> bool {
        match self {
            Protocol::Icmp => matches!(number, 1 | 58),
            Protocol::Number(n) => n == number,
        }
    }
}

impl FromStr for Protocol {
    type Err = String;

    fn from_str(text: &str) -> Result<Protocol, String> {
        match text {
            "icmp" => Ok(Protocol::Icmp),
            "tcp" => Ok(Protocol::Number(6)),
            "udp" => Ok(Protocol::Number(17)),
            _ => {
                let number =
                    text.parse().map_err(|_| format!("{text:?} is no protocol: write tcp, udp, icmp or a number"));
                number.map(Protocol::Number)
            }
        }
    }
}

/// An Ethernet address: "02:00:00:00:00:01".
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Deserialize)]
#[serde(try_from = "String")]
pub struct Mac(pub [u8; 6]);

written!(Mac);

impl FromStr for Mac {
    type Err = String;

    fn from_str(text: &str) -> Result<Mac, String> {
        let wrong = || format!("{text:?} is no Ethernet address: write 02:00:00:00:00:01");
        let parts: Vec<_> = text.split(':').collect();
        let parts: [&str; 6] = parts.try_into().map_err(|_| wrong())?;
        let mut mac = [0; 6];
        for (byte, part) in mac.iter_mut().zip(parts) {
            let digits = part.len() == 2 && part.bytes().all(|b| b.is_ascii_hexdigit());
            *byte = u8::from_str_radix(part, 16).ok().filter(|_| digits).ok_or_else(wrong)?;
        }
        Ok(Mac(mac))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let prefix: Prefix = "10.1.0.0/16".parse().unwrap();
        assert!(prefix.contains("10.1.255.255".parse().unwrap()) && !prefix.contains("10.2.0.0".parse().unwrap()));
        assert!(!prefix.contains("::a01:0".parse().unwrap()));
        assert!("::/0".parse::<Prefix>().unwrap().contains("ff02::1".parse().unwrap()));
        assert_eq!("192.0.2.1".parse::<Prefix>().unwrap().to_string(), "192.0.2.1/32");
        assert_eq!(
            "10.1.2.3/16".parse::<Prefix>().unwrap_err(),
            "\"10.1.2.3/16\" has bits behind its length: write 10.1.0.0/16"
        );
        assert!("10.0.0.0/33".parse::<Prefix>().unwrap_err().contains("0 to 32"));
        assert!("ten/8".parse::<Prefix>().is_err());
        assert_eq!("7".parse::<Ports>(), Ok(Ports { first: 7, last: 7 }));
        assert!("9-7".parse::<Ports>().is_err() && "65536".parse::<Ports>().is_err());
        assert!("icmp".parse::<Protocol>().unwrap().is(58) && !"tcp".parse::<Protocol>().unwrap().is(17));
        assert!("sctp".parse::<Protocol>().unwrap_err().contains("write tcp"));
        assert_eq!("02:00:00:00:00:0a".parse(), Ok(Mac([2, 0, 0, 0, 0, 10])));
        for text in ["02:00:00:00:00", "02:00:00:00:00:0g", "2:0:0:0:0:1", "02:00:00:00:00:+1"] {
            assert!(text.parse::<Mac>().is_err(), "{text}");
        }
    }
}
