//! Linux, as it is: sysfs, rtnetlink(7), ethtool's ioctls, and the tools of iproute2.

use crate::address::Mac;
use crate::ethtool::Ethtool;
use crate::filter::{Filter, Ntuple};
use crate::netlink::Netlink;
use crate::system::{Ran, System, Vf, VfChange};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    LinkAttribute, LinkExtentMask, LinkFlags, LinkMessage, LinkVfInfo, VfInfo, VfInfoMac, VfInfoRate, VfInfoSpoofCheck,
    VfInfoTrust, VfInfoVlan,
};
use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

/// How long to wait between two looks, and how many there are: drivers start within a second or two.
const LOOK: (Duration, u32) = (Duration::from_millis(100), 30);

/// This machine.
#[derive(Default)]
pub struct Linux(());

impl Linux {
    /// This machine, as its network namespace sees it.
    pub fn new() -> Linux {
        Linux(())
    }
}

fn sys(path: &str) -> PathBuf {
    PathBuf::from("/sys").join(path)
}

fn named(interface: &str) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(interface.to_owned()));
    message
}

/// culvert-split and culvert-redirect are built beside `culvert`; the others are the system's.
pub fn program(name: &str) -> PathBuf {
    let beside = std::env::current_exe().ok().and_then(|own| Some(own.parent()?.join(name)));
    match beside.filter(|path| name.starts_with("culvert-") && path.is_file()) {
        Some(path) => path,
        None => name.into(),
    }
}

fn run(command: &[String]) -> io::Result<Ran> {
    let Some((name, args)) = command.split_first() else { return Err(io::ErrorKind::InvalidInput.into()) };
    // Its texts are read.
    let out = Command::new(program(name)).args(args).env("LC_ALL", "C").stdin(Stdio::null()).output()?;
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Ok(Ran { success: out.status.success(), out: text(out.stdout), err: text(out.stderr) })
}

fn of(info: &LinkVfInfo) -> (u32, Vf) {
    let (mut number, mut vf) = (0, Vf::default());
    for info in &info.0 {
        match info {
            VfInfo::Mac(mac) => {
                number = mac.vf_id;
                vf.mac = Mac([mac.mac[0], mac.mac[1], mac.mac[2], mac.mac[3], mac.mac[4], mac.mac[5]]);
            }
            VfInfo::Vlan(vlan) => (vf.vlan, vf.qos) = (vlan.vlan_id as u16, vlan.qos as u8),
            VfInfo::Trust(trust) => vf.trust = trust.enabled,
            VfInfo::SpoofCheck(check) => vf.spoof_check = check.enabled,
            VfInfo::Rate(rate) => (vf.min_rate, vf.max_rate) = (rate.min_tx_rate, rate.max_tx_rate),
            _ => {}
        }
    }
    (number, vf)
}

impl System for Linux {
    fn read(&self, path: &str) -> io::Result<String> {
        Ok(fs::read_to_string(sys(path))?.trim_end_matches('\n').to_owned())
    }

    fn link(&self, path: &str) -> io::Result<String> {
        let target = fs::read_link(sys(path))?;
        Ok(target.file_name().unwrap_or_default().to_string_lossy().into_owned())
    }

    fn names(&self, path: &str) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(sys(path))? {
            names.push(entry?.file_name().to_string_lossy().into_owned());
        }
        names.sort();
        Ok(names)
    }

    fn write(&mut self, path: &str, text: &str) -> io::Result<()> {
        // Without O_CREAT, and in a single write: so sysfs is told.
        fs::OpenOptions::new().write(true).open(sys(path))?.write_all(text.as_bytes())
    }

    fn vfs(&self, interface: &str) -> io::Result<Vec<Vf>> {
        let mut message = named(interface);
        message.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::Vf]));
        let answer = Netlink::new()?.ask(RouteNetlinkMessage::GetLink(message))?;
        let Some(RouteNetlinkMessage::NewLink(link)) = answer else { return Ok(Vec::new()) };
        let lists = link.attributes.iter().filter_map(|a| match a {
            LinkAttribute::VfInfoList(list) => Some(list),
            _ => None,
        });
        let mut all: Vec<(u32, Vf)> = lists.flatten().map(of).collect();
        all.sort_by_key(|(number, _)| *number);
        Ok(all.into_iter().map(|(_, vf)| vf).collect())
    }

    fn change_vf(&mut self, interface: &str, vf: u16, change: VfChange) -> io::Result<()> {
        let vf = u32::from(vf);
        let info = match change {
            VfChange::Mac(mac) => VfInfo::Mac(VfInfoMac::new(vf, &mac.0)),
            VfChange::Vlan(vlan, qos) => VfInfo::Vlan(VfInfoVlan::new(vf, vlan.into(), qos.into())),
            VfChange::Trust(yes) => VfInfo::Trust(VfInfoTrust::new(vf, yes)),
            VfChange::SpoofCheck(yes) => VfInfo::SpoofCheck(VfInfoSpoofCheck::new(vf, yes)),
            VfChange::Rate(least, most) => VfInfo::Rate(VfInfoRate::new(vf, least, most)),
        };
        let mut message = named(interface);
        message.attributes.push(LinkAttribute::VfInfoList(vec![LinkVfInfo(vec![info])]));
        Netlink::new()?.ask(RouteNetlinkMessage::SetLink(message)).map(drop)
    }

    fn set_up(&mut self, interface: &str, up: bool) -> io::Result<()> {
        let mut message = named(interface);
        message.header.change_mask = LinkFlags::Up;
        message.header.flags = if up { LinkFlags::Up } else { LinkFlags::empty() };
        Netlink::new()?.ask(RouteNetlinkMessage::SetLink(message)).map(drop)
    }

    fn ntuple(&self, interface: &str) -> io::Result<Ntuple> {
        Ethtool::of(interface)?.ntuple()
    }

    fn set_ntuple(&mut self, interface: &str, on: bool) -> io::Result<()> {
        Ethtool::of(interface)?.set_ntuple(on)
    }

    fn filters(&self, interface: &str) -> io::Result<BTreeMap<u32, Filter>> {
        Ethtool::of(interface)?.filters()
    }

    fn set_filter(&mut self, interface: &str, place: u32, filter: Option<&Filter>) -> io::Result<()> {
        Ethtool::of(interface)?.set_filter(place, filter)
    }

    fn look(&self, command: &[String]) -> io::Result<Ran> {
        run(command)
    }

    fn run(&mut self, command: &[String]) -> io::Result<Ran> {
        run(command)
    }

    fn wait(&self, looks: u32) -> bool {
        sleep(LOOK.0);
        looks < LOOK.1
    }

    fn machine(&self) -> String {
        fs::read_to_string("/etc/machine-id")
            .or_else(|_| fs::read_to_string("/proc/sys/kernel/hostname"))
            .unwrap_or_default()
    }
}
