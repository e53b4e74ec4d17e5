//! What stands against a plan, as far as it can be seen beforehand; and where a port is.

use crate::address::{Device, Name, Pci};
use crate::config::{Port, WantedDriver};
use crate::flow::Target;
use crate::item::{Item, is_for_users};
use crate::system::{System, device, driver, interfaces, number};
use crate::trouble::Trouble;
use std::collections::BTreeSet;

/// What can be seen to be impossible.
pub(crate) fn troubles(wanted: &Port, system: &dyn System, port: Device) -> Vec<Trouble> {
    let who = wanted.who();
    let mut troubles = Vec::new();
    let mut trouble = |what: String, remedy: &str| troubles.push(Trouble::new(what, remedy));
    let total = system.read(&format!("{}/sriov_totalvfs", device(port))).ok().and_then(|t| t.parse::<u16>().ok());
    let wants = wanted.vfs.unwrap_or(0);
    match total {
        None if wants > 0 || !wanted.functions.is_empty() => trouble(
            format!("{who} makes no VFs: the card or its driver has no SR-IOV"),
            "is it switched on in the BIOS and in the card (mlxconfig)? Without it flows can be divided by = \"xdp\"",
        ),
        Some(total) if wants > total => trouble(
            format!("{who}: {wants} VFs are wanted, and the card has at most {total}"),
            "lower `vfs`, or raise the card's own limit (mlxconfig, devlink, the BIOS)",
        ),
        _ => {}
    }
    let count: u16 = number(system, &format!("{}/sriov_numvfs", device(port))).unwrap_or(0);
    let there = wanted.vfs.unwrap_or(count);
    for function in &wanted.functions {
        if function.number >= there {
            trouble(format!("{who} has {there} VFs, numbered from 0, and no VF {}", function.number), "raise `vfs`");
        }
    }
    for flow in &wanted.flows {
        if let Target::Vf(vf) = flow.to
            && vf >= there
        {
            trouble(
                format!("{who} flow {:?}: {who} has {there} VFs, numbered from 0, and no VF {vf}", flow.name),
                "raise `vfs`, or name one that is there",
            );
        }
    }
    let drivers = wanted.functions.iter().filter_map(|f| f.driver.as_ref()).filter(|d| **d != WantedDriver::None);
    let (mut named, mut any) = (BTreeSet::new(), false);
    for driver in drivers {
        any = true;
        if let WantedDriver::Is(name) = driver {
            named.insert(name);
        }
    }
    for name in &named {
        if system.names(&format!("bus/pci/drivers/{name}")).is_err() {
            trouble(format!("{who}: there is no driver {name}"), &format!("load it: modprobe {name}"));
        }
    }
    let users: Vec<_> = named.into_iter().filter(|name| *name == "vfio-pci").collect();
    if !users.is_empty() && system.names(&format!("{}/iommu_group", device(port))).is_err() {
        trouble(
            format!("{who}: vfio-pci needs an IOMMU, and there is none"),
            "start Linux with intel_iommu=on (AMD: it is on), and switch VT-d on in the BIOS",
        );
    }
    if any && wanted.up != Some(true) && Item::Up(port).read(system).is_ok_and(|up| up == "down") {
        trouble(format!("{who} is down: its VFs' drivers do not start then"), "say up = true, or take it up");
    }
    troubles
}

const NO_INTERFACE: &str = "see ip link; in another network namespace run this by `ip netns exec`, which shows that one's /sys (nsenter does not)";

/// Where the port is: its address counts, whatever its interface is called today.
pub(crate) fn locate(wanted: &Port, system: &dyn System) -> Result<Device, Trouble> {
    let by_name = |name: &String| {
        let link = system.link(&format!("class/net/{name}/device"));
        if let Some(pci) = link.ok().and_then(|at| at.parse::<Pci>().ok()) {
            return Ok(Device::Pci(pci));
        }
        // One of software, or on another bus: its name is all there is.
        let there = system.names(&format!("class/net/{name}")).ok().and_then(|_| Name::new(name));
        let missing = || Trouble::new(format!("there is no interface {name} here"), NO_INTERFACE);
        there.map(Device::Interface).ok_or_else(missing)
    };
    let port = match (wanted.device, &wanted.interface) {
        (Some(device), None) => device.into(),
        (None, Some(name)) => by_name(name)?,
        (Some(device), Some(name)) => {
            let names = interfaces(system, device);
            if !names.is_empty() && !names.contains(name) {
                let elsewhere = by_name(name).map(|at| format!(", and {name} is at {at}")).unwrap_or_default();
                let what = format!("the interface of {device} is {}, not {name}{elsewhere}", names.join(", "));
                return Err(Trouble::new(
                    what,
                    "names may swap with each start: see which of the two is meant, and mend the file",
                ));
            }
            device.into()
        }
        (None, None) => return Err(Trouble::new("a port without a name", "mend the file")),
    };
    if system.names(&device(port)).is_err() {
        return Err(Trouble::new(format!("there is no device {port}"), "see lspci -D"));
    }
    let wants_vfs = wanted.vfs.is_some() || !wanted.functions.is_empty();
    if wants_vfs && system.link(&format!("{}/physfn", device(port))).is_ok() {
        return Err(Trouble::new(format!("{port} is a VF itself"), "name the port that has made it"));
    }
    if driver(system, port).is_some_and(|d| is_for_users(&d)) {
        return Err(Trouble::new(
            format!("{port} itself belongs to a process (by its driver)"),
            "give it its own driver back",
        ));
    }
    Ok(port)
}
