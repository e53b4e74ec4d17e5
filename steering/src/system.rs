//! What is asked of the kernel: Linux ([`crate::Linux`]), or one that is imagined in a directory ([`crate::Imagined`]).

use crate::address::{Device, Mac, Pci};
use crate::filter::{Filter, Ntuple};
use std::collections::BTreeMap;
use std::io;
use std::str::FromStr;

/// What a port says of one of its virtual functions (ip-link(8), `vf`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Vf {
    /// Zero: the port has set none.
    pub mac: Mac,
    /// 0: none.
    pub vlan: u16,
    /// The VLAN's priority.
    pub qos: u8,
    /// Whether it may do what concerns others, as changing its MAC.
    pub trust: bool,
    /// Whether the card checks the source of what it sends.
    pub spoof_check: bool,
    /// Mbit/s that it has for sure.
    pub min_rate: u32,
    /// Mbit/s that it has at most; 0: as many as there are.
    pub max_rate: u32,
}

/// One property of a virtual function.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum VfChange {
    /// Its MAC address.
    Mac(Mac),
    /// Its VLAN and the VLAN's priority.
    Vlan(u16, u8),
    /// See [`Vf::trust`].
    Trust(bool),
    /// See [`Vf::spoof_check`].
    SpoofCheck(bool),
    /// Least and most.
    Rate(u32, u32),
}

/// How a command ended.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Ran {
    /// It says that it succeeded.
    pub success: bool,
    /// What it wrote to standard output.
    pub out: String,
    /// What it wrote to standard error.
    pub err: String,
}

/// A kernel. Paths are relative to /sys.
pub trait System {
    /// A file's text, without the line's end.
    fn read(&self, path: &str) -> io::Result<String>;
    /// The last name of what a symbolic link leads to.
    fn link(&self, path: &str) -> io::Result<String>;
    /// The names in a directory, sorted.
    fn names(&self, path: &str) -> io::Result<Vec<String>>;
    /// Writes to a file that is there.
    fn write(&mut self, path: &str, text: &str) -> io::Result<()>;
    /// What the interface's device says of its virtual functions.
    fn vfs(&self, interface: &str) -> io::Result<Vec<Vf>>;
    /// Changes one.
    fn change_vf(&mut self, interface: &str, vf: u16, change: VfChange) -> io::Result<()>;
    /// Takes the interface up or down.
    fn set_up(&mut self, interface: &str, up: bool) -> io::Result<()>;
    /// Whether the interface's card has n-tuple filters.
    fn ntuple(&self, interface: &str) -> io::Result<Ntuple>;
    /// Switches them on or off.
    fn set_ntuple(&mut self, interface: &str, on: bool) -> io::Result<()>;
    /// The filters, by their places.
    fn filters(&self, interface: &str) -> io::Result<BTreeMap<u32, Filter>>;
    /// Enters a filter at a place, or takes away the one there.
    fn set_filter(&mut self, interface: &str, place: u32, filter: Option<&Filter>) -> io::Result<()>;
    /// Runs a command that only looks.
    fn look(&self, command: &[String]) -> io::Result<Ran>;
    /// Runs a command.
    fn run(&mut self, command: &[String]) -> io::Result<Ran>;
    /// Lets some time pass before another look; false: it has been waited long enough.
    fn wait(&self, looks: u32) -> bool;
    /// Something that only this machine has, so that addresses derived from it are its own.
    fn machine(&self) -> String;
}

/// The directory of a device; of an interface without a PCI device, its own.
pub(crate) fn device(device: impl Into<Device>) -> String {
    match device.into() {
        Device::Pci(pci) => format!("bus/pci/devices/{pci}"),
        Device::Interface(name) => format!("class/net/{name}"),
    }
}

/// A number in a file.
pub(crate) fn number<T: FromStr>(system: &dyn System, path: &str) -> io::Result<T> {
    let text = system.read(path)?;
    text.trim().parse().map_err(|_| io::Error::other(format!("{text:?} is no number")))
}

/// Where a port's virtual function is, or will be.
pub(crate) fn function(system: &dyn System, port: Device, vf: u16) -> io::Result<Pci> {
    let Device::Pci(pci) = port else { return Err(io::ErrorKind::NotFound.into()) };
    let device = device(port);
    if let Ok(link) = system.link(&format!("{device}/virtfn{vf}")) {
        return link.parse().map_err(io::Error::other);
    }
    let offset: u32 = number(system, &format!("{device}/sriov_offset"))?;
    let stride: u32 = number(system, &format!("{device}/sriov_stride"))?;
    let distance = u32::from(vf).checked_mul(stride).and_then(|d| d.checked_add(offset));
    distance.and_then(|d| pci.after(d)).ok_or_else(|| io::Error::other("its virtual functions have no addresses"))
}

/// The interfaces of a device.
pub(crate) fn interfaces(system: &dyn System, of: impl Into<Device>) -> Vec<String> {
    match of.into() {
        Device::Pci(pci) => system.names(&format!("{}/net", device(pci))).unwrap_or_default(),
        Device::Interface(name) => {
            let there = system.names(&device(Device::Interface(name))).is_ok();
            if there { vec![name.to_string()] } else { Vec::new() }
        }
    }
}

/// Whether an interface is up, as its administrator wants it (IFF_UP).
pub(crate) fn is_up(system: &dyn System, interface: &str) -> io::Result<bool> {
    let flags = system.read(&format!("class/net/{interface}/flags"))?;
    let flags = u32::from_str_radix(flags.trim().trim_start_matches("0x"), 16).map_err(io::Error::other)?;
    Ok(flags & 1 != 0)
}

/// Whether an interface has a link.
pub(crate) fn carrier(system: &dyn System, interface: &str) -> bool {
    system.read(&format!("class/net/{interface}/carrier")).is_ok_and(|carrier| carrier == "1")
}

/// How many times as long as for a driver it is waited for a link that a change has interrupted.
const CARRIER_WAITS: u32 = 5;

/// A card's link pauses for seconds when its virtual functions change: waits for it. False: it has not come back. An interface that was taken
/// down has none to wait for.
pub(crate) fn wait_for_link(system: &dyn System, interface: &str) -> bool {
    if !is_up(system, interface).unwrap_or(false) {
        return true;
    }
    for _ in 0..CARRIER_WAITS {
        let mut looks = 0;
        loop {
            if carrier(system, interface) {
                return true;
            }
            looks += 1;
            if !system.wait(looks) {
                break;
            }
        }
    }
    false
}

/// The driver of a PCI device.
pub(crate) fn driver(system: &dyn System, pci: impl Into<Device>) -> Option<String> {
    system.link(&format!("{}/driver", device(pci))).ok()
}
