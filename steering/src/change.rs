//! Changing an item, and what a refusal means.

use crate::address::Device;
use crate::flow::Backend;
use crate::item::{Item, interface, is_for_users, no_tool, words};
use crate::system::{self, System, VfChange, device, function};
use crate::trouble::Trouble;
use nix::errno::Errno;
use std::io;

impl Item {
    /// Gives it a value, and believes only what it reads back.
    pub fn write(&self, system: &mut dyn System, value: &str) -> Result<(), Trouble> {
        let refused = |system: &dyn System, error: &io::Error| sentence(self, system, value, error);
        let result = match *self {
            Item::Up(port) => {
                let name = interface(system, port)?;
                system.set_up(&name, value == "up")
            }
            Item::Autoprobe(port) => system.write(&format!("{}/sriov_drivers_autoprobe", device(port)), value),
            Item::Count(port) => system.write(&format!("{}/sriov_numvfs", device(port)), value),
            Item::Mac(port, vf) => self.change(system, port, vf, value.parse().ok().map(VfChange::Mac))?,
            Item::Vlan(port, vf) => {
                let parts = value.split_once('/').and_then(|(vlan, qos)| Some((vlan.parse().ok()?, qos.parse().ok()?)));
                self.change(system, port, vf, parts.map(|(vlan, qos)| VfChange::Vlan(vlan, qos)))?
            }
            Item::Trust(port, vf) => self.change(system, port, vf, Some(VfChange::Trust(value == "on")))?,
            Item::SpoofCheck(port, vf) => self.change(system, port, vf, Some(VfChange::SpoofCheck(value == "on")))?,
            Item::Rate(port, vf) => {
                let parts =
                    value.split_once('-').and_then(|(least, most)| Some((least.parse().ok()?, most.parse().ok()?)));
                let change = || parts.map(|(least, most)| VfChange::Rate(least, most));
                match self.change(system, port, vf, change())? {
                    // igb takes a rate only while the port has a link, and that pauses when VFs are made.
                    Err(e) if e.raw_os_error() == Some(Errno::EINVAL as i32) && self.link_returns(system) => {
                        self.change(system, port, vf, change())?
                    }
                    result => result,
                }
            }
            Item::Override(port, vf) => match function(system, port, vf) {
                // A line's end takes the override away; nothing at all would be no write.
                Ok(at) => system
                    .write(&format!("{}/driver_override", device(at)), if value.is_empty() { "\n" } else { value }),
                Err(e) => Err(e),
            },
            Item::Driver(port, vf) => match function(system, port, vf) {
                Ok(at) if value == "none" => system.write(&format!("{}/driver/unbind", device(at)), &at.to_string()),
                Ok(at) => system.write("bus/pci/drivers_probe", &at.to_string()),
                Err(e) => Err(e),
            },
            Item::Reset(port, vf) => match function(system, port, vf) {
                Ok(at) => system.write(&format!("{}/reset", device(at)), "1"),
                Err(e) => Err(e),
            },
            Item::Ntuple(port) => {
                let name = interface(system, port)?;
                system.set_ntuple(&name, value.starts_with("on"))
            }
            Item::Rule(port, place, ref rule) if rule.by == Backend::Ntuple => {
                let (name, filter) = (interface(system, port)?, rule.filter());
                system.set_filter(&name, place, (value == "present").then_some(&filter))
            }
            Item::Hook(_) | Item::Split(_) | Item::Rule(..) => return self.run(system, value),
            Item::Redirect(..)
            | Item::Diversions(_)
            | Item::Forward(_)
            | Item::Forwarded(_)
            | Item::Receive(..)
            | Item::Received(_) => {
                return self.run(system, value);
            }
        };
        result.map_err(|e| refused(system, &e))?;
        self.read_back(system, value)
    }

    fn change(
        &self,
        system: &mut dyn System,
        port: Device,
        vf: u16,
        change: Option<VfChange>,
    ) -> Result<io::Result<()>, Trouble> {
        let name = interface(system, port)?;
        let change = change
            .ok_or_else(|| Trouble::new(format!("{}: what was noted is unreadable", self.words()), "undo by hand"))?;
        Ok(system.change_vf(&name, vf, change))
    }

    /// Whether the port has no link, and has one again after a while.
    fn link_returns(&self, system: &dyn System) -> bool {
        let name = self.port().and_then(|port| interface(system, port).ok());
        name.is_some_and(|name| !system::carrier(system, &name) && system::wait_for_link(system, &name))
    }

    /// Runs the command, and looks what has become of it.
    fn run(&self, system: &mut dyn System, value: &str) -> Result<(), Trouble> {
        if let Item::Rule(_, _, rule) = self
            && rule.by == Backend::Flower
            && value == "present"
        {
            self.out(system, rule)?;
        }
        let command = words(&self.command(system, value));
        let ran = system.run(&command).map_err(|e| no_tool(&command[0], &e))?;
        let now = self.read(system)?;
        if self.is(value, &now) {
            return Ok(());
        }
        let said = [ran.err.trim(), ran.out.trim()]
            .into_iter()
            .find(|t| !t.is_empty())
            .unwrap_or("it said nothing")
            .to_owned();
        let said = said.lines().next().unwrap_or("").to_owned();
        let remedy = match self {
            Item::Rule(_, _, rule) if rule.by == Backend::Flower => {
                "the card's switch takes no such filter: `ethtool -K DEVICE hw-tc-offload on`, or use by = \"xdp\""
            }
            _ => "see what the command says when run by hand",
        };
        Err(Trouble::new(
            format!("{}: wanted {value}, is {now}: `{}`: {said}", self.words(), command.join(" ")),
            remedy,
        ))
    }

    fn read_back(&self, system: &mut dyn System, value: &str) -> Result<(), Trouble> {
        // Drivers may start later than the write returns.
        let mut looks = 0;
        loop {
            let now = self.read(system)?;
            if self.is(value, &now) {
                return Ok(());
            }
            looks += 1;
            if !system.wait(looks) {
                return Err(not_taken(self, system, value, &now));
            }
        }
    }
}

/// What the kernel's refusal means.
fn sentence(item: &Item, system: &dyn System, value: &str, error: &io::Error) -> Trouble {
    let what = format!("{}: {value} was refused: {error}", item.words());
    let errno = error.raw_os_error().map_or(Errno::UnknownErrno, Errno::from_raw);
    let remedy = match (item, errno) {
        (_, Errno::EPERM | Errno::EACCES) => "it takes root: run this as root; a plan needs no rights".into(),
        (Item::Count(_), Errno::EBUSY) => {
            "the number can only be changed by way of 0: plan again, somebody has made VFs meanwhile".into()
        }
        (Item::Count(port), Errno::ERANGE) => {
            let most = system.read(&format!("{}/sriov_totalvfs", device(*port))).unwrap_or_else(|_| "fewer".into());
            format!(
                "the card has at most {most} VFs: lower `vfs`, or raise the card's own limit (mlxconfig, devlink, the BIOS)"
            )
        }
        (Item::Count(_), Errno::ENOMEM | Errno::ENOSPC) => {
            "the bus has no room for so many: switch on SR-IOV and ARI in the BIOS, or start Linux with pci=realloc"
                .into()
        }
        (Item::Count(_), Errno::ENOENT | Errno::ENOSYS) => {
            "the port's driver makes no VFs: is it the card's own?".into()
        }
        (Item::Count(_), Errno::EINVAL | Errno::EIO) => {
            "the driver makes no VFs now: is the card's firmware set for SR-IOV, and XDP off on the port?".into()
        }
        (Item::Override(..), _) => "the kernel takes no override for it: it needs Linux 3.16 or later".into(),
        (Item::Driver(..), Errno::ENODEV) if value == "none" => "it has no driver any more: plan again".into(),
        (Item::Driver(..), Errno::ENODEV) => {
            "drivers do not start on this port's VFs by themselves (sriov_drivers_autoprobe is 0): name the driver"
                .into()
        }
        (Item::Reset(..), _) => {
            "the function cannot be reset alone: take its user away, and make the VFs anew (vfs = 0, then again)".into()
        }
        (Item::Mac(..), Errno::EINVAL | Errno::EADDRNOTAVAIL) => {
            "the driver does not take this address: is it one that the port or another VF has?".into()
        }
        (Item::Rate(..), Errno::EINVAL) => {
            "it is more than the link has, or the driver takes no least rate, or none while the port has no link: see ip link, and ethtool for the link's speed".into()
        }
        (Item::Ntuple(_), Errno::EOPNOTSUPP | Errno::EINVAL) => "the driver has no n-tuple filters: use by = \"xdp\"".into(),
        (Item::Rule(..), Errno::EOPNOTSUPP | Errno::EINVAL) => {
            "the card or its driver takes no such filter, or none at this place: use by = \"xdp\"".into()
        }
        (Item::Rule(..), Errno::ENOSPC | Errno::E2BIG) => "the card has no room for more filters: use by = \"xdp\"".into(),
        (Item::Rule(..), Errno::EEXIST | Errno::EBUSY) => {
            "the card has a filter there, or one like it, that somebody else has made: ethtool -n shows them".into()
        }
        (_, Errno::EINVAL) if item.function().is_some() => {
            format!(
                "the driver knows no VF {}, or not this value: is `vfs` large enough?",
                item.function().unwrap_or(0)
            )
        }
        (_, Errno::EOPNOTSUPP) => "the port's driver cannot do this: leave it out of the file".into(),
        (_, Errno::EBUSY) => "it is in use: stop who uses it".into(),
        (_, Errno::ENOENT | Errno::ENODEV) => {
            "the device or its driver does not have this: plan again; is it still there?".into()
        }
        _ => "see dmesg(1) for what the driver says of it".into(),
    };
    Trouble::new(what, remedy)
}

/// The write succeeded, and the value is another.
fn not_taken(item: &Item, system: &dyn System, value: &str, now: &str) -> Trouble {
    let what = format!("{}: {value} was accepted, but it is {now:?}", item.words());
    let &Item::Driver(port, vf) = item else {
        if let Item::Rule(..) | Item::Ntuple(_) = item {
            return Trouble::new(what, "the driver has taken it and not done it: see dmesg(1), or use by = \"xdp\"");
        }
        return Trouble::new(what, "the driver has taken it and not done it: see dmesg(1), and the driver's manual");
    };
    let at = function(system, port, vf).map(device).unwrap_or_default();
    let only = system.read(&format!("{at}/driver_override")).unwrap_or_default();
    let remedy = match value {
        "none" => "the driver does not let it go: see dmesg(1)".to_string(),
        _ if is_for_users(value) && system.names(&format!("{at}/iommu_group")).is_err() => {
            "the machine has no IOMMU, or it is off: start Linux with intel_iommu=on (AMD: it is on), and VT-d on in the BIOS".into()
        }
        _ if system.read(&format!("{}/sriov_drivers_autoprobe", device(port))).is_ok_and(|a| a == "0") && only.is_empty() => {
            "drivers do not start on this port's VFs by themselves (sriov_drivers_autoprobe is 0): name the driver".into()
        }
        _ if interface(system, port).is_ok_and(|name| system::is_up(system, &name).is_ok_and(|up| !up)) => {
            "the port is down, and its VFs' driver does not start then: up = true".into()
        }
        _ => "probing succeeds also where the driver has failed: see dmesg(1) for why it did".into(),
    };
    Trouble::new(what, remedy)
}
