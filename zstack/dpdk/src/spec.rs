//! What a user writes to name a port: `dpdk:net_af_packet0,iface=v0,addr=10.9.0.2/24,memory=none`.
//!
//! Behind `dpdk:` stands what DPDK's `--vdev` or `--allow` takes (a device's name and its driver's keys), and, anywhere behind the name, keys
//! of ours.

use crate::driver::{Driver, Takes};
use crate::memory::{Buffers, Memory};
use crate::sleep::Sleep;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use zstack_port::{Address, SpecError};

/// A device of DPDK's, and its settings.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Spec {
    /// The device's name: `net_tap0`, or the address of a PCI device.
    pub device: String,
    /// What its driver is told: keys and values, in order.
    pub arguments: Vec<(String, String)>,
    /// Our addresses; a peer is the kernel's end of a tap.
    pub addresses: Vec<Address>,
    /// Where packets for other networks go, at most one for each family.
    pub gateways: Vec<IpAddr>,
    /// The largest IP packet; `None`: the interface's own, or 1500.
    pub mtu: Option<u16>,
    /// Our Ethernet address; `None`: the device's, or one of our choice where the kernel's end has the device's.
    pub mac: Option<[u8; 6]>,
    /// The VLAN that our packets are tagged with.
    pub vlan: Option<u16>,
    /// Where DPDK's memory comes from.
    pub memory: Memory,
    /// Where the buffers of packets that arrive lie.
    pub pool: Buffers,
    /// How many received packets may be held at once, for each queue.
    pub mbufs: u32,
    /// How many queues.
    pub queues: u16,
    /// How a thread without work waits.
    pub sleep: Sleep,
    /// Whether checksums and segmentation are left to the device where it offers that.
    pub offload: bool,
    /// Whether what DPDK says goes to standard error too.
    pub log: bool,
}

fn wrong<T>(text: impl Into<String>) -> Result<T, SpecError> {
    Err(SpecError::new(text))
}

/// Keys that mean here what they mean for a tap device of [`zstack_port`].
const SHARED: &[&str] = &["addr", "peer", "gateway", "mtu", "mac", "vlan"];

impl Spec {
    /// The received packets that each queue holds at once if nothing else is said.
    pub const MBUFS: u32 = 2048;

    /// The device and its driver's keys, as DPDK wants them.
    pub(crate) fn devargs(&self) -> String {
        let mut text = self.device.clone();
        for (key, value) in &self.arguments {
            text += &if value.is_empty() { format!(",{key}") } else { format!(",{key}={value}") };
        }
        text
    }

    /// What the driver is told under this key.
    pub(crate) fn argument(&self, key: &str) -> Option<&str> {
        self.arguments.iter().find(|(k, _)| k == key).map(|(_, value)| value.as_str())
    }

    /// Tells the driver this unless the user has said something else.
    pub(crate) fn suggest(&mut self, key: &str, value: impl fmt::Display) {
        if self.argument(key).is_none() {
            self.arguments.push((key.into(), value.to_string()));
        }
    }

    /// How many queues the user asks for, and the key by which he does; `None`: he says nothing of it.
    pub fn asked_queues(&self) -> Option<(&'static str, u16)> {
        match self.driver().queues_key() {
            Some(key) if self.argument(key).is_some() => Some((key, self.queues)),
            _ => (self.queues > 1).then_some(("queues", self.queues)),
        }
    }

    /// The interface on which the kernel hears all that the port hears, and answers it if it has the address.
    pub fn heard_by_the_kernel(&self) -> Option<&str> {
        let wraps = |(key, _): &(String, String)| {
            key.split_once('(').is_some_and(|(_, device)| Driver::of(device).leaves_to_the_kernel())
        };
        // A driver that wraps another one (net_failsafe) has that one's name and keys among its own: `dev(net_af_packet0,iface=eth0)`.
        let own = self.driver().leaves_to_the_kernel().then_some(0);
        let keys = &self.arguments[own.or_else(|| self.arguments.iter().position(wraps))?..];
        // What net_pcap reads from files nobody else hears.
        let interface = keys.iter().find(|(key, _)| ["iface", "rx_iface", "rx_iface_in"].contains(&&**key));
        interface.map(|(_, name)| name.trim_end_matches(')'))
    }

    /// Whether the other end of a net_memif is to reach into DPDK's memory. Its driver looks for a "yes" in each of the values.
    pub(crate) fn shares(&self) -> bool {
        let says_so = |(key, value): &(String, String)| key == "zero-copy" && value.contains("yes");
        self.driver() == Driver::Memif && self.arguments.iter().any(says_so)
    }

    pub(crate) fn driver(&self) -> Driver {
        Driver::of(&self.device)
    }
}

impl FromStr for Spec {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Spec, SpecError> {
        let Some(rest) = text.strip_prefix("dpdk:") else {
            return wrong(format!(
                "`{text}` names no device of DPDK's: write dpdk:DEVICE, for example dpdk:net_af_packet0,iface=eth0"
            ));
        };
        let mut parts = rest.split(',');
        let device = parts.next().unwrap_or("").to_owned();
        if device.is_empty() || device.contains('=') {
            return wrong(
                "the device has no name: write dpdk:DEVICE,..., for example dpdk:net_af_packet0,iface=eth0 or dpdk:0000:01:00.0",
            );
        }
        let mut spec = Spec {
            device,
            arguments: Vec::new(),
            addresses: Vec::new(),
            gateways: Vec::new(),
            mtu: None,
            mac: None,
            vlan: None,
            memory: Memory::Auto,
            pool: Buffers::Auto,
            mbufs: Spec::MBUFS,
            queues: 1,
            sleep: Sleep::Auto,
            offload: true,
            log: false,
        };
        let mut shared = String::from("tap:x");
        for part in parts {
            let (key, value) = part.split_once('=').unwrap_or((part, ""));
            if SHARED.contains(&key) {
                shared += &format!(",{part}");
            } else {
                spec.set(key, value)?;
            }
        }
        let shared: zstack_port::Spec = shared.parse()?;
        spec.addresses = shared.addresses;
        spec.gateways = shared.gateways;
        spec.mtu = shared.mtu;
        spec.mac = shared.mac;
        spec.vlan = shared.vlan;
        spec.check()?;
        Ok(spec)
    }
}

impl Spec {
    fn set(&mut self, key: &str, value: &str) -> Result<(), SpecError> {
        match key {
            "memory" => {
                self.memory = match value {
                    "auto" => Memory::Auto,
                    "huge" => Memory::Huge,
                    "none" => Memory::None,
                    _ => {
                        return wrong(format!("memory={value}: it is auto, huge (hugepages) or none (ordinary pages)"));
                    }
                }
            }
            "pool" => {
                self.pool = match value {
                    "auto" => Buffers::Auto,
                    "pinned" => Buffers::Pinned,
                    "dpdk" => Buffers::Dpdk,
                    _ => {
                        return wrong(format!(
                            "pool={value}: it is auto, pinned (buffers in memory of our own) or dpdk (in DPDK's)"
                        ));
                    }
                }
            }
            "sleep" => {
                self.sleep = match value {
                    "auto" => Sleep::Auto,
                    "nap" => Sleep::Nap,
                    "busy" => Sleep::Busy,
                    _ => {
                        return wrong(format!(
                            "sleep={value}: it is auto, nap (naps of 0.25 ms at most) or busy (it never sleeps)"
                        ));
                    }
                }
            }
            "offload" => {
                self.offload = match value {
                    "on" | "full" => true,
                    "off" => false,
                    _ => return wrong(format!("offload={value}: it is full or off")),
                }
            }
            "log" => {
                self.log = match value {
                    "" | "on" => true,
                    "off" => false,
                    _ => return wrong(format!("log={value}: it is on or off")),
                }
            }
            "mbufs" => self.mbufs = number(key, value, 64, 1 << 20)?,
            "queues" => self.queues = number(key, value, 1, 64)? as u16,
            "" => return wrong("there is nothing between two commas"),
            _ => self.arguments.push((key.into(), value.into())),
        }
        Ok(())
    }

    fn check(&mut self) -> Result<(), SpecError> {
        let driver = self.driver();
        // The driver's own word for it counts as ours.
        if let Some(key) = driver.queues_key()
            && let Some(value) = self.argument(key)
        {
            self.queues = number(key, value, 1, 64)? as u16;
        }
        if driver.has_interface() && driver != Driver::Tap && self.argument("iface").is_none() {
            return wrong(format!("{}: it needs an interface of the kernel's: add iface=NAME", self.device));
        }
        if driver != Driver::Tap
            && let Some(peer) = self.addresses.iter().find_map(|a| a.peer)
        {
            return wrong(format!(
                "peer={peer}: only a tap has an end of the kernel's that is set up here: leave it out"
            ));
        }
        if driver == Driver::AfXdp && self.memory == Memory::None && self.pool == Buffers::Dpdk {
            return wrong(
                "pool=dpdk with memory=none: net_af_xdp loses packets in a pool of DPDK's without hugepages: leave pool= out, or write memory=huge",
            );
        }
        if self.pool == Buffers::Pinned
            && let Takes::Dpdks(why) = driver.takes(self.shares())
        {
            return wrong(format!("pool=pinned: {}: {why}: leave pool= out", self.device));
        }
        Ok(())
    }
}

fn number(key: &str, value: &str, least: u32, most: u32) -> Result<u32, SpecError> {
    match value.parse() {
        Ok(n) if (least..=most).contains(&n) => Ok(n),
        _ => wrong(format!("{key}={value}: it is a number from {least} to {most}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ours_and_the_drivers_keys() {
        let text = "dpdk:net_af_packet0,iface=v0,addr=10.9.0.2/24,qpairs=2,memory=none,gateway=10.9.0.1,mbufs=512,framesz=4096,\
                    mac=02:00:00:00:00:01,vlan=7,mtu=1400,sleep=busy,offload=off,log";
        let spec: Spec = text.parse().unwrap();
        assert_eq!(spec.devargs(), "net_af_packet0,iface=v0,qpairs=2,framesz=4096");
        assert_eq!((spec.queues, spec.mbufs, spec.memory, spec.sleep), (2, 512, Memory::None, Sleep::Busy));
        assert_eq!((spec.mtu, spec.vlan, spec.offload, spec.log), (Some(1400), Some(7), false, true));
        assert_eq!((spec.addresses.len(), spec.gateways.len(), spec.mac), (1, 1, Some([2, 0, 0, 0, 0, 1])));
    }

    #[test]
    fn suggestions_give_way() {
        let mut spec: Spec = "dpdk:net_tap0,iface=x".parse().unwrap();
        spec.suggest("iface", "y");
        spec.suggest("remote", "z");
        assert_eq!(spec.devargs(), "net_tap0,iface=x,remote=z");
        assert_eq!("dpdk:0000:01:00.0".parse::<Spec>().unwrap().driver(), Driver::Pci);
    }

    #[test]
    fn what_the_kernel_hears_too() {
        for (text, interface) in [
            ("dpdk:net_af_packet0,iface=x", Some("x")),
            ("dpdk:net_pcap0,iface=x", Some("x")),
            ("dpdk:net_pcap0,rx_iface=x,tx_iface=y", Some("x")),
            ("dpdk:net_pcap0,tx_iface=y,rx_iface_in=x", Some("x")),
            ("dpdk:net_pcap0,rx_pcap=a,tx_pcap=b", None),
            ("dpdk:net_pcap0,rx_pcap=a,tx_iface=y", None),
            ("dpdk:net_failsafe0,mac=02:00:00:00:00:01,dev(net_af_packet0,iface=x)", Some("x")),
            ("dpdk:net_failsafe0,dev(vdev:net_pcap0,rx_iface=x,tx_iface=y)", Some("x")),
            ("dpdk:net_failsafe0,dev(net_tap0,iface=y),dev(net_af_packet0,iface=x)", Some("x")),
            ("dpdk:net_failsafe0,dev(net_tap0,iface=x)", None),
            ("dpdk:net_tap0,iface=net_pcap0", None),
            ("dpdk:net_af_xdp0,iface=x", None),
            ("dpdk:net_tap0,iface=x", None),
        ] {
            assert_eq!(text.parse::<Spec>().unwrap().heard_by_the_kernel(), interface, "{text}");
        }
    }

    #[test]
    fn whose_memory_the_other_end_reaches() {
        for (text, shares) in [
            ("dpdk:net_memif0,zero-copy=yes", true),
            ("dpdk:net_memif0,zero-copy=no,zero-copy=yes", true),
            ("dpdk:net_memif0,zero-copy=[yes]", true),
            ("dpdk:net_memif0,zero-copy=no", false),
            ("dpdk:net_memif0", false),
            ("dpdk:net_null0,zero-copy=yes", false),
        ] {
            assert_eq!(text.parse::<Spec>().unwrap().shares(), shares, "{text}");
        }
    }

    #[test]
    fn what_is_wrong_names_the_value_and_the_remedy() {
        for (text, expected) in [
            ("net_tap0", "write dpdk:DEVICE"),
            ("dpdk:", "no name: write dpdk:DEVICE"),
            ("dpdk:iface=v0", "no name: write dpdk:DEVICE"),
            ("dpdk:net_af_packet0", "add iface=NAME"),
            ("dpdk:net_af_xdp0", "add iface=NAME"),
            (
                "dpdk:net_af_xdp0,iface=v0,memory=none,pool=dpdk",
                "without hugepages: leave pool= out, or write memory=huge",
            ),
            ("dpdk:net_tap0,pool=mine", "pool=mine: it is auto, pinned"),
            ("dpdk:net_virtio_user0,path=x,pool=pinned", "DPDK's memory alone: leave pool= out"),
            ("dpdk:net_memif0,zero-copy=yes,pool=pinned", "DPDK's memory alone: leave pool= out"),
            ("dpdk:net_tap0,memory=some", "memory=some: it is auto, huge"),
            ("dpdk:net_tap0,sleep=well", "sleep=well: it is auto, nap"),
            ("dpdk:net_tap0,queues=0", "queues=0: it is a number from 1"),
            ("dpdk:net_af_packet0,iface=v0,qpairs=x", "qpairs=x: it is a number from 1"),
            ("dpdk:net_tap0,mbufs=1", "mbufs=1: it is a number from 64"),
            ("dpdk:net_tap0,mtu=67", "mtu=67: it is a number from"),
            ("dpdk:net_tap0,addr=10.9.0.2", "the length of the prefix is missing"),
            ("dpdk:net_tap0,,addr=10.9.0.2/24", "nothing between two commas"),
            ("dpdk:net_memif0,addr=10.9.0.2/24,peer=10.9.0.1", "peer=10.9.0.1: only a tap"),
        ] {
            let got = text.parse::<Spec>().expect_err(text).to_string();
            assert!(got.contains(expected), "{text}: {got}");
        }
    }
}
