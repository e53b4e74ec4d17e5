//! A machine that is imagined in a directory: plain files, and what a kernel would do when they are written. For plans of cards that
//! are not there, and for tests: any change can be made to fail as the kernel's, to be forgotten, or to be the last thing that its
//! process does.

mod tools;

use crate::address::{Mac, Pci};
use crate::filter::{Filter, Ntuple};
use crate::system::{Ran, System, Vf, VfChange, carrier, device, driver, function, interfaces, is_up, number};
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

/// What becomes of one change.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// It is refused, with this errno.
    Refuse(i32),
    /// It is accepted and not done.
    Forget,
    /// The process ends before it.
    DieBefore,
    /// The process ends after it.
    DieAfter,
}

/// The machine. Beside `sys/`, as /sys, there is `vf/`: what ports say of their functions, and `tools/`: what cards have been told.
pub struct Imagined {
    root: PathBuf,
    /// The changes so far.
    pub changes: u32,
    /// What becomes of the change with this number.
    pub fault: Option<(u32, Fault)>,
}

/// A card's port to imagine.
#[derive(Clone, Debug)]
pub struct Card<'a> {
    /// Where it is.
    pub at: &'a str,
    /// Its interface.
    pub interface: &'a str,
    /// How many virtual functions it can have; 0: no SR-IOV.
    pub most: u16,
    /// Whether there is an IOMMU.
    pub iommu: bool,
    /// Whether it is up.
    pub up: bool,
    /// Whether it has n-tuple filters.
    pub ntuple: bool,
}

/// The driver that Linux finds for a virtual function.
const VF_DRIVER: &str = "igbvf";

fn errno(number: i32) -> io::Error {
    io::Error::from_raw_os_error(number)
}

impl Imagined {
    /// The machine in this directory.
    pub fn new(root: impl Into<PathBuf>) -> Imagined {
        Imagined { root: root.into(), changes: 0, fault: None }
    }

    /// Puts a card into it.
    pub fn plug(&self, card: &Card<'_>) -> io::Result<()> {
        let pci: Pci = card.at.parse().map_err(io::Error::other)?;
        let at = device(pci);
        for name in ["igb", VF_DRIVER, "vfio-pci"] {
            fs::create_dir_all(self.sys(&format!("bus/pci/drivers/{name}")))?;
        }
        self.make("bus/pci/drivers_probe", "")?;
        if card.most > 0 {
            for (file, text) in [
                ("sriov_numvfs", "0"),
                ("sriov_drivers_autoprobe", "1"),
                ("sriov_offset", "128"),
                ("sriov_stride", "2"),
            ] {
                self.make(&format!("{at}/{file}"), text)?;
            }
            self.make(&format!("{at}/sriov_totalvfs"), &card.most.to_string())?;
        }
        if card.iommu {
            fs::create_dir_all(self.sys(&format!("{at}/iommu_group")))?;
        }
        fs::create_dir_all(self.sys(&at))?;
        symlink("../../drivers/igb", self.sys(&format!("{at}/driver")))?;
        let [.., a, b] = card.at.as_bytes() else { return Err(errno(libc_einval())) };
        self.appear(pci, card.interface, card.up, &format!("00:1b:21:00:{a:02x}:{b:02x}"))?;
        fs::create_dir_all(self.root.join("vf").join(card.interface))?;
        fs::create_dir_all(self.root.join("tools").join(card.interface))?;
        fs::write(
            self.root.join("tools").join(card.interface).join("ntuple"),
            if card.ntuple { "off" } else { "off [fixed]" },
        )
    }

    fn sys(&self, path: &str) -> PathBuf {
        self.root.join("sys").join(path)
    }

    fn make(&self, path: &str, text: &str) -> io::Result<()> {
        let path = self.sys(path);
        fs::create_dir_all(path.parent().unwrap_or(Path::new("/")))?;
        fs::write(path, format!("{text}\n"))
    }

    /// A driver makes an interface.
    fn appear(&self, pci: Pci, name: &str, up: bool, mac: &str) -> io::Result<()> {
        let class = format!("class/net/{name}");
        self.make(&format!("{class}/flags"), if up { "0x1003" } else { "0x1002" })?;
        self.make(&format!("{class}/carrier"), if up { "1" } else { "0" })?;
        self.make(&format!("{class}/address"), mac)?;
        symlink(format!("../../../bus/pci/devices/{pci}"), self.sys(&format!("{class}/device")))?;
        fs::create_dir_all(self.sys(&format!("{}/net/{name}", device(pci))))
    }

    /// The port of a virtual function, and which one it is.
    fn port_of(&self, pci: Pci) -> Option<(Pci, u16)> {
        let port: Pci = self.link(&format!("{}/physfn", device(pci))).ok()?.parse().ok()?;
        let count: u16 = number(self, &format!("{}/sriov_numvfs", device(port))).ok()?;
        (0..count).find(|vf| function(self, port.into(), *vf).is_ok_and(|at| at == pci)).map(|vf| (port, vf))
    }

    /// Counts a change; whether it is done.
    fn before(&mut self) -> io::Result<bool> {
        self.changes += 1;
        match self.fault.filter(|(at, _)| *at == self.changes) {
            Some((_, Fault::Refuse(number))) => Err(errno(number)),
            Some((_, Fault::Forget)) => Ok(false),
            Some((_, Fault::DieBefore)) => panic!("killed"),
            _ => Ok(true),
        }
    }

    fn after<T>(&self, result: T) -> T {
        assert_ne!(self.fault, Some((self.changes, Fault::DieAfter)), "killed");
        result
    }

    fn set_count(&self, port: Pci, text: &str) -> io::Result<()> {
        let at = device(port);
        let (now, most): (u16, u16) =
            (number(self, &format!("{at}/sriov_numvfs"))?, number(self, &format!("{at}/sriov_totalvfs"))?);
        let wanted: u16 = text.parse().map_err(|_| errno(libc_einval()))?;
        if wanted == now {
            return Ok(());
        }
        if wanted > most {
            return Err(errno(nix::errno::Errno::ERANGE as i32));
        }
        if now != 0 && wanted != 0 {
            return Err(errno(nix::errno::Errno::EBUSY as i32));
        }
        let name = interfaces(self, port).pop().ok_or_else(|| errno(nix::errno::Errno::ENOENT as i32))?;
        for vf in 0..now {
            let pci = function(self, port.into(), vf)?;
            self.unbind(pci)?;
            fs::remove_dir_all(self.sys(&device(pci)))?;
            fs::remove_file(self.sys(&format!("{at}/virtfn{vf}")))?;
            fs::remove_file(self.root.join("vf").join(&name).join(vf.to_string()))?;
        }
        for vf in 0..wanted {
            let pci = function(self, port.into(), vf)?;
            let own = device(pci);
            for (file, text) in [("driver_override", "(null)"), ("enable", "0"), ("reset_method", "flr"), ("reset", "")]
            {
                self.make(&format!("{own}/{file}"), text)?;
            }
            if self.sys(&format!("{at}/iommu_group")).exists() {
                fs::create_dir_all(self.sys(&format!("{own}/iommu_group")))?;
            }
            symlink(format!("../{port}"), self.sys(&format!("{own}/physfn")))?;
            symlink(format!("../{pci}"), self.sys(&format!("{at}/virtfn{vf}")))?;
            self.save(&name, vf, &Vf { spoof_check: true, ..Vf::default() })?;
        }
        self.make(&format!("{at}/sriov_numvfs"), text)?;
        // The card's link pauses (igb).
        self.make(&format!("class/net/{name}/carrier"), "0")?;
        for vf in 0..wanted {
            self.probe(function(self, port.into(), vf)?)?;
        }
        Ok(())
    }

    fn unbind(&self, pci: Pci) -> io::Result<()> {
        for name in interfaces(self, pci) {
            fs::remove_dir_all(self.sys(&format!("class/net/{name}")))?;
        }
        let own = device(pci);
        for gone in
            [fs::remove_dir_all(self.sys(&format!("{own}/net"))), fs::remove_file(self.sys(&format!("{own}/driver")))]
        {
            match gone {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                _ => {}
            }
        }
        Ok(())
    }

    /// As the kernel does: whoever asks is not told that a driver has not started.
    fn probe(&self, pci: Pci) -> io::Result<()> {
        let own = device(pci);
        let Some((port, vf)) = self.port_of(pci) else { return Ok(()) };
        let only = self.read(&format!("{own}/driver_override"))?;
        let autoprobe = self.read(&format!("{}/sriov_drivers_autoprobe", device(port)))? == "1";
        let name = if only == "(null)" { VF_DRIVER } else { &only };
        let port_name = interfaces(self, port).pop().unwrap_or_default();
        let starts = match name {
            "vfio-pci" => self.sys(&format!("{own}/iommu_group")).exists(),
            VF_DRIVER => is_up(self, &port_name)?,
            _ => false,
        };
        if driver(self, pci).is_some() || !starts || !(autoprobe || only != "(null)") {
            return Ok(());
        }
        symlink(format!("../../drivers/{name}"), self.sys(&format!("{own}/driver")))?;
        if name == VF_DRIVER {
            let mac = self.load(&port_name, vf)?.mac;
            self.appear(pci, &format!("{port_name}v{vf}"), false, &mac.to_string())?;
        }
        Ok(())
    }

    fn save(&self, interface: &str, vf: u16, of: &Vf) -> io::Result<()> {
        let text = format!(
            "{} {} {} {} {} {} {}\n",
            of.mac, of.vlan, of.qos, of.trust, of.spoof_check, of.min_rate, of.max_rate
        );
        fs::write(self.root.join("vf").join(interface).join(vf.to_string()), text)
    }

    fn load(&self, interface: &str, vf: u16) -> io::Result<Vf> {
        let text = fs::read_to_string(self.root.join("vf").join(interface).join(vf.to_string()))?;
        let mut words = text.split_whitespace();
        let mut next = || words.next().unwrap_or_default();
        let mac: Mac = next().parse().map_err(io::Error::other)?;
        let number = |text: &str| text.parse::<u32>().map_err(io::Error::other);
        let (vlan, qos) = (number(next())? as u16, number(next())? as u8);
        let (trust, spoof_check) = (next() == "true", next() == "true");
        Ok(Vf { mac, vlan, qos, trust, spoof_check, min_rate: number(next())?, max_rate: number(next())? })
    }

    fn changed(&self, interface: &str, vf: u16, change: VfChange) -> io::Result<()> {
        let mut of = self.load(interface, vf).map_err(|_| errno(libc_einval()))?;
        match change {
            VfChange::Mac(mac) if mac.0[0] & 1 != 0 => return Err(errno(libc_einval())),
            VfChange::Mac(mac) => of.mac = mac,
            VfChange::Vlan(vlan, qos) => (of.vlan, of.qos) = (vlan, qos),
            VfChange::Trust(yes) => of.trust = yes,
            VfChange::SpoofCheck(yes) => of.spoof_check = yes,
            // igb's, as long as the link pauses.
            VfChange::Rate(..) if !carrier(self, interface) => return Err(errno(libc_einval())),
            VfChange::Rate(least, most) => (of.min_rate, of.max_rate) = (least, most),
        }
        self.save(interface, vf, &of)
    }

    fn written(&self, path: &str, text: &str) -> io::Result<()> {
        let file = self.sys(path);
        if !file.exists() && !path.ends_with("/driver/unbind") {
            return Err(errno(nix::errno::Errno::ENOENT as i32));
        }
        let at =
            |path: &str| path.split('/').nth(3).and_then(|a| a.parse::<Pci>().ok()).ok_or_else(|| errno(libc_einval()));
        match path.rsplit('/').next().unwrap_or_default() {
            "sriov_numvfs" => self.set_count(at(path)?, text),
            "unbind" => {
                let pci = at(path)?;
                driver(self, pci).ok_or_else(|| errno(nix::errno::Errno::ENOENT as i32))?;
                self.unbind(pci)
            }
            "drivers_probe" => self.probe(text.parse().map_err(|_| errno(libc_einval()))?),
            "driver_override" => fs::write(file, if text == "\n" { "(null)\n".into() } else { format!("{text}\n") }),
            "reset" => Ok(()),
            _ => fs::write(file, format!("{text}\n")),
        }
    }
}

fn libc_einval() -> i32 {
    nix::errno::Errno::EINVAL as i32
}

impl System for Imagined {
    fn read(&self, path: &str) -> io::Result<String> {
        Ok(fs::read_to_string(self.sys(path))?.trim_end_matches('\n').to_owned())
    }

    fn link(&self, path: &str) -> io::Result<String> {
        let target = fs::read_link(self.sys(path))?;
        Ok(target.file_name().unwrap_or_default().to_string_lossy().into_owned())
    }

    fn names(&self, path: &str) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(self.sys(path))? {
            names.push(entry?.file_name().to_string_lossy().into_owned());
        }
        names.sort();
        Ok(names)
    }

    fn write(&mut self, path: &str, text: &str) -> io::Result<()> {
        let result = if self.before()? { self.written(path, text) } else { Ok(()) };
        self.after(result)
    }

    fn vfs(&self, interface: &str) -> io::Result<Vec<Vf>> {
        let there = fs::read_dir(self.root.join("vf").join(interface)).map_or(0, Iterator::count);
        (0..there as u16).map(|vf| self.load(interface, vf)).collect()
    }

    fn change_vf(&mut self, interface: &str, vf: u16, change: VfChange) -> io::Result<()> {
        let result = if self.before()? { self.changed(interface, vf, change) } else { Ok(()) };
        self.after(result)
    }

    fn set_up(&mut self, interface: &str, up: bool) -> io::Result<()> {
        if self.before()? {
            self.make(&format!("class/net/{interface}/flags"), if up { "0x1003" } else { "0x1002" })?;
            self.make(&format!("class/net/{interface}/carrier"), if up { "1" } else { "0" })?;
        }
        self.after(Ok(()))
    }

    fn ntuple(&self, interface: &str) -> io::Result<Ntuple> {
        let text = fs::read_to_string(self.root.join("tools").join(interface).join("ntuple"))?;
        Ok(match &text[..] {
            "on" => Ntuple::On,
            "off" => Ntuple::Off,
            _ => Ntuple::None,
        })
    }

    fn set_ntuple(&mut self, interface: &str, on: bool) -> io::Result<()> {
        let file = self.root.join("tools").join(interface).join("ntuple");
        if self.before()? {
            if self.ntuple(interface)? == Ntuple::None {
                return Err(errno(nix::errno::Errno::EOPNOTSUPP as i32));
            }
            fs::write(file, if on { "on" } else { "off" })?;
        }
        self.after(Ok(()))
    }

    fn filters(&self, interface: &str) -> io::Result<BTreeMap<u32, Filter>> {
        tools::filters(&self.root.join("tools").join(interface))
    }

    fn set_filter(&mut self, interface: &str, place: u32, filter: Option<&Filter>) -> io::Result<()> {
        if self.before()? {
            if self.ntuple(interface)? != Ntuple::On {
                return Err(errno(nix::errno::Errno::EOPNOTSUPP as i32));
            }
            tools::set_filter(&self.root.join("tools").join(interface), place, filter)?;
        }
        self.after(Ok(()))
    }

    fn look(&self, command: &[String]) -> io::Result<Ran> {
        tools::look(&self.root.join("tools"), command)
    }

    fn run(&mut self, command: &[String]) -> io::Result<Ran> {
        let result = if self.before()? { tools::run(&self.root.join("tools"), command) } else { Ok(Ran::default()) };
        self.after(result)
    }

    fn wait(&self, looks: u32) -> bool {
        for name in self.names("class/net").unwrap_or_default() {
            if is_up(self, &name).unwrap_or(false) && !carrier(self, &name) {
                let _ = self.make(&format!("class/net/{name}/carrier"), "1");
            }
        }
        looks < 2
    }

    fn machine(&self) -> String {
        "imagined".into()
    }
}
