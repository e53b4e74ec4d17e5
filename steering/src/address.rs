//! Addresses of devices and of interfaces.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// Where a PCI function is: `0000:01:00.0`. A device keeps it, while names of interfaces may swap.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Pci {
    domain: u32,
    /// Bus, device and function as the bus carries them.
    routing: u16,
}

impl Pci {
    /// The function's number in its device.
    pub(crate) fn number(self) -> u16 {
        self.routing & 7
    }

    /// The function that is `distance` after this one on its bus or a later one: so a card numbers its virtual functions.
    pub fn after(self, distance: u32) -> Option<Pci> {
        let routing = u16::try_from(u32::from(self.routing).checked_add(distance)?).ok()?;
        Some(Pci { routing, ..self })
    }
}

impl fmt::Display for Pci {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (bus, device, function) = (self.routing >> 8, self.routing >> 3 & 31, self.routing & 7);
        write!(f, "{:04x}:{bus:02x}:{device:02x}.{function}", self.domain)
    }
}

impl FromStr for Pci {
    type Err = String;

    fn from_str(text: &str) -> Result<Pci, String> {
        let wrong = || format!("{text:?} is no PCI address; one looks like 0000:01:00.0");
        let hexadecimal = |part: &str, digits: usize, most: u32| {
            let good =
                part.len() >= digits && part.len() <= digits.max(8) && part.bytes().all(|b| b.is_ascii_hexdigit());
            good.then(|| u32::from_str_radix(part, 16).ok()).flatten().filter(|n| *n <= most)
        };
        let parse = || {
            let (rest, function) = text.rsplit_once('.')?;
            let (rest, device) = rest.rsplit_once(':')?;
            // The domain may be left out, as lspci(8) does.
            let (domain, bus) = rest.split_once(':').unwrap_or(("0000", rest));
            let domain = hexadecimal(domain, 4, u32::MAX)?;
            let bus = hexadecimal(bus, 2, 255)?;
            let (device, function) = (hexadecimal(device, 2, 31)?, hexadecimal(function, 1, 7)?);
            Some(Pci { domain, routing: (bus << 8 | device << 3 | function) as u16 })
        };
        parse().ok_or_else(wrong)
    }
}

/// The name of an interface.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name {
    bytes: [u8; 16],
    len: u8,
}

impl Name {
    /// A name as the kernel takes one. It becomes part of paths and of commands.
    pub fn new(text: &str) -> Option<Name> {
        let good = |c: char| c.is_ascii_graphic() && c != '/' && c != ':';
        if text.is_empty() || text.len() > 15 || text.starts_with(['-', '.']) || !text.chars().all(good) {
            return None;
        }
        let mut bytes = [0; 16];
        bytes[..text.len()].copy_from_slice(text.as_bytes());
        Some(Name { bytes, len: text.len() as u8 })
    }

    /// Whether nft(8) takes it as part of a table's name.
    pub fn is_plain(&self) -> bool {
        self.to_string().chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
    }
}

impl FromStr for Name {
    type Err = String;

    fn from_str(text: &str) -> Result<Name, String> {
        Name::new(text).ok_or_else(|| format!("{text:?} is no interface's name"))
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from_utf8_lossy(&self.bytes[..self.len.into()]))
    }
}

/// A port: a PCI function, or an interface that has none.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Device {
    /// By its address.
    Pci(Pci),
    /// By its name.
    Interface(Name),
}

impl Device {
    /// Its PCI address.
    pub(crate) fn pci(self) -> Option<Pci> {
        match self {
            Device::Pci(pci) => Some(pci),
            Device::Interface(_) => None,
        }
    }
}

impl From<Pci> for Device {
    fn from(pci: Pci) -> Device {
        Device::Pci(pci)
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Device::Pci(pci) => pci.fmt(f),
            Device::Interface(name) => name.fmt(f),
        }
    }
}

impl FromStr for Device {
    type Err = String;

    fn from_str(text: &str) -> Result<Device, String> {
        // A name has no colon.
        match text.parse() {
            Ok(pci) => Ok(Device::Pci(pci)),
            Err(error) => Name::new(text).map(Device::Interface).ok_or(error),
        }
    }
}

/// An Ethernet address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// No interface can have it: it is a group's, or nobody's.
    pub fn is_no_interfaces(self) -> bool {
        self.0[0] & 1 != 0 || self == Mac::default()
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl FromStr for Mac {
    type Err = String;

    fn from_str(text: &str) -> Result<Mac, String> {
        let wrong = || format!("{text:?} is no Ethernet address; one looks like 02:00:00:00:00:01");
        let bytes = text.split(':').map(|part| match part.len() {
            2 if part.bytes().all(|b| b.is_ascii_hexdigit()) => u8::from_str_radix(part, 16).ok(),
            _ => None,
        });
        let bytes: Option<Vec<u8>> = bytes.collect();
        Ok(Mac(bytes.and_then(|b| b.try_into().ok()).ok_or_else(wrong)?))
    }
}

/// Types that are read from a text, and written as one, wherever they stand in a file.
macro_rules! as_text {
    ($($type:ident)*) => {$(
        impl TryFrom<String> for $type {
            type Error = String;

            fn try_from(text: String) -> Result<$type, String> {
                text.parse()
            }
        }

        impl From<$type> for String {
            fn from(value: $type) -> String {
                value.to_string()
            }
        }
    )*};
}
pub(crate) use as_text;

as_text!(Pci Name Device Mac);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_they_are_written() {
        for text in ["0000:01:00.0", "0001:ff:1f.7", "10000:01:00.0"] {
            assert_eq!(text.parse::<Pci>().expect(text).to_string(), text);
        }
        assert_eq!("01:00.1".parse::<Pci>().expect("short").to_string(), "0000:01:00.1");
        for text in ["", "0000:01:00", "0000:01:20.0", "0000:01:00.8", "0000:1:00.0", "eth0", "0000:01:00.+1"] {
            assert!(text.parse::<Pci>().is_err(), "{text}");
        }
        assert_eq!("02:ab:00:00:00:01".parse::<Mac>().expect("a MAC").to_string(), "02:ab:00:00:00:01");
        for text in ["", "02:ab:00:00:00", "02:ab:00:00:00:1", "02:ab:00:00:00:+1", "02:ab:00:00:00:01:02"] {
            assert!(text.parse::<Mac>().is_err(), "{text}");
        }
    }

    #[test]
    fn virtual_functions_follow_on_the_bus() {
        let port: Pci = "0000:01:00.0".parse().expect("an address");
        assert_eq!(port.after(128).expect("igb's first").to_string(), "0000:01:10.0");
        assert_eq!(port.after(256).expect("the next bus").to_string(), "0000:02:00.0");
        assert_eq!(port.after(u32::MAX), None);
    }
}
