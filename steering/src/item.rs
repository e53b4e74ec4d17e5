//! What can be changed, one thing at a time: read, written, and told in words and as a command.

use crate::address::{Device, Name};
use crate::filter::Ntuple;
use crate::flow::{Backend, Target};
use crate::redirect::Group;
use crate::rule::{self, Likeness, Rule};
use crate::system::{self, System, Vf, device, function, interfaces};
use crate::trouble::Trouble;
use serde::{Deserialize, Serialize};
use std::io;

/// One thing that can be changed. Its value is a text.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Item {
    /// Whether a port's interface is `up` or `down`.
    Up(Device),
    /// Whether drivers start by themselves on new virtual functions: `1` or `0`.
    Autoprobe(Device),
    /// How many virtual functions a port has.
    Count(Device),
    /// The MAC address of one.
    Mac(Device, u16),
    /// Its VLAN and the VLAN's priority: `100/0`.
    Vlan(Device, u16),
    /// `on` or `off`.
    Trust(Device, u16),
    /// `on` or `off`.
    SpoofCheck(Device, u16),
    /// Mbit/s, least and most: `0-1000`.
    Rate(Device, u16),
    /// The only driver that may have the function, or nothing.
    Override(Device, u16),
    /// The driver that has it, or `none`; `kernel`: any.
    Driver(Device, u16),
    /// Nothing that would have a value: what a function's last user has left in it is wiped out (a reset of the function alone).
    Reset(Device, u16),
    /// Whether n-tuple filters are `on` or `off`.
    Ntuple(Device),
    /// Whether tc's hook for filters is `present` or `absent`.
    Hook(Device),
    /// Whether culvert-split's XDP program is `present` or `absent`.
    Split(Device),
    /// Whether a rule is at a place: `present`, `absent`, or what is there instead.
    Rule(Device, u32, Rule),
    /// Whether culvert-redirect's programs are `present`, `absent`, or a `part` of them in a control group, and in the middlebox's.
    Redirect(Group, Option<Group>),
    /// Which connections of a control group go to a middlebox: culvert-redirect's rules, all at once.
    Diversions(Group),
    /// Whether culvert-redirect's table and routing rules for connections that come by an interface and are forwarded are `present`, `absent`, there in `part`, or of
    /// `another` process.
    Forward(Name),
    /// Which of these connections go to a middlebox, as for a control group.
    Forwarded(Name),
    /// Whether culvert-redirect's programs for connections that come by an interface for this host are `present`, `absent`, there in `part`, or `another`'s: in the
    /// middlebox's control group, and pinned.
    Receive(Name, Group),
    /// Which of these connections go to a middlebox, as for a control group.
    Received(Name),
}

/// A port's only interface.
pub(crate) fn interface(system: &dyn System, port: Device) -> Result<String, Trouble> {
    match &interfaces(system, port)[..] {
        [name] => Ok(name.clone()),
        [] => Err(Trouble::new(
            format!("{port} has no interface here"),
            "its driver has not started, or the interface is in another network namespace: run this there",
        )),
        several => Err(Trouble::new(
            format!("{port} has several interfaces: {}", several.join(", ")),
            "such a card is not supported: use its own tool (devlink, mlxconfig) to give each port a function",
        )),
    }
}

/// The last part of a path, or nothing.
fn existing(result: io::Result<String>) -> String {
    result.unwrap_or_else(|_| "none".into())
}

fn on(yes: bool) -> String {
    if yes { "on" } else { "off" }.into()
}

pub(crate) fn words(text: &str) -> Vec<String> {
    text.split(' ').map(str::to_owned).collect()
}

/// The name of the interface that stands for a virtual function in a card's switch.
fn representor(system: &dyn System, port: Device, vf: u16) -> Option<String> {
    let own = interface(system, port).ok()?;
    let text = |name: &str, file: &str| system.read(&format!("class/net/{name}/{file}")).ok().filter(|t| !t.is_empty());
    let switch = text(&own, "phys_switch_id")?;
    let function = port.pci()?.number();
    let names = [format!("pf{function}vf{vf}"), format!("vf{vf}")];
    system.names("class/net").ok()?.into_iter().find(|name| {
        text(name, "phys_switch_id").as_ref() == Some(&switch)
            && text(name, "phys_port_name").is_some_and(|port_name| names.contains(&port_name))
    })
}

impl Item {
    /// The port that it is at; a control group's is at none.
    pub fn port(&self) -> Option<Device> {
        Some(match self {
            Item::Up(p) | Item::Autoprobe(p) | Item::Count(p) | Item::Ntuple(p) | Item::Hook(p) | Item::Split(p) => *p,
            Item::Mac(p, _) | Item::Vlan(p, _) | Item::Trust(p, _) | Item::SpoofCheck(p, _) | Item::Rate(p, _) => *p,
            Item::Override(p, _) | Item::Driver(p, _) | Item::Reset(p, _) | Item::Rule(p, ..) => *p,
            Item::Redirect(..) | Item::Diversions(_) | Item::Forward(_) | Item::Forwarded(_) => return None,
            Item::Receive(..) | Item::Received(_) => return None,
        })
    }

    /// The virtual function that it is of.
    pub fn function(&self) -> Option<u16> {
        match self {
            Item::Mac(_, v) | Item::Vlan(_, v) | Item::Trust(_, v) | Item::SpoofCheck(_, v) | Item::Rate(_, v) => {
                Some(*v)
            }
            Item::Override(_, v) | Item::Driver(_, v) | Item::Reset(_, v) => Some(*v),
            _ => None,
        }
    }

    /// What it is, in words.
    pub fn words(&self) -> String {
        let of = |what: &str| match (self.port(), self.function()) {
            (Some(port), Some(vf)) => format!("{port} VF {vf}: {what}"),
            (Some(port), None) => format!("{port}: {what}"),
            (None, _) => format!("control group {what}"),
        };
        match self {
            Item::Up(_) => of("interface"),
            Item::Autoprobe(_) => of("drivers start on new VFs by themselves"),
            Item::Count(_) => of("VFs"),
            Item::Mac(..) => of("MAC address"),
            Item::Vlan(..) => of("VLAN and its priority"),
            Item::Trust(..) => of("trust"),
            Item::SpoofCheck(..) => of("check of its source address"),
            Item::Rate(..) => of("Mbit/s, least and most"),
            Item::Override(..) => of("the only driver it may have"),
            Item::Driver(..) => of("driver"),
            Item::Reset(..) => of("reset, so that nothing of its last user remains"),
            Item::Ntuple(_) => of("n-tuple filters"),
            Item::Hook(_) => of("tc's hook for filters"),
            Item::Split(_) => of("XDP program"),
            Item::Rule(_, place, rule) => {
                let by = match rule.by {
                    Backend::Ntuple => "n-tuple filter",
                    Backend::Flower => "filter of the card's switch, preference",
                    Backend::Xdp => "rule of the XDP program",
                };
                let ports = |name: &str, ports: Option<(u16, u16)>| match ports {
                    Some((value, u16::MAX)) => format!(" {name} {value}"),
                    Some((value, mask)) => format!(" {name} {value}-{}", value | !mask),
                    None => String::new(),
                };
                let (source, destination) = (ports("source port", rule.source), ports("port", rule.destination));
                let each = if rule.stateless { ", packet by packet" } else { "" };
                of(&format!("{by} {place}: {}{source}{destination} -> {}{each}", rule.packets, rule.to))
            }
            Item::Redirect(clients, None) => of(&format!("{clients}: programs for redirects")),
            Item::Redirect(clients, Some(told)) => {
                of(&format!("{clients}: programs for redirects, and in {told} those that tell of them"))
            }
            Item::Diversions(clients) => of(&format!("{clients}: redirects")),
            Item::Forward(name) => format!("forwarded from {name}: table and routing rules for redirects"),
            Item::Forwarded(name) => format!("forwarded from {name}: redirects"),
            Item::Receive(name, group) => {
                format!("received by {name}: programs for redirects, and in {group} that of its listeners")
            }
            Item::Received(name) => format!("received by {name}: redirects"),
        }
    }

    fn vf(&self, system: &dyn System, port: Device, vf: u16) -> Result<Vf, Trouble> {
        let interface = interface(system, port)?;
        let all = system.vfs(&interface).map_err(|e| Trouble::file(format!("the VFs of {interface}"), &e))?;
        all.get(usize::from(vf)).copied().ok_or_else(|| {
            Trouble::new(
                format!("{port} has no VF {vf}"),
                "its driver says so: see dmesg(1), and whether `vfs` is large enough",
            )
        })
    }

    /// Its value now.
    pub fn read(&self, system: &dyn System) -> Result<String, Trouble> {
        let file = |path: String| system.read(&path).map_err(|e| Trouble::file(self.words(), &e));
        let at = |port, vf| function(system, port, vf).map_err(|e| Trouble::file(self.words(), &e));
        Ok(match *self {
            Item::Up(port) => {
                let name = interface(system, port)?;
                let up = system::is_up(system, &name).map_err(|e| Trouble::file(self.words(), &e))?;
                if up { "up" } else { "down" }.into()
            }
            Item::Autoprobe(port) => file(format!("{}/sriov_drivers_autoprobe", device(port)))?,
            Item::Count(port) => file(format!("{}/sriov_numvfs", device(port)))?,
            Item::Mac(port, vf) => self.vf(system, port, vf)?.mac.to_string(),
            Item::Vlan(port, vf) => {
                let vf = self.vf(system, port, vf)?;
                format!("{}/{}", vf.vlan, vf.qos)
            }
            Item::Trust(port, vf) => on(self.vf(system, port, vf)?.trust),
            Item::SpoofCheck(port, vf) => on(self.vf(system, port, vf)?.spoof_check),
            Item::Rate(port, vf) => {
                let vf = self.vf(system, port, vf)?;
                format!("{}-{}", vf.min_rate, vf.max_rate)
            }
            Item::Override(port, vf) => match file(format!("{}/driver_override", device(at(port, vf)?)))? {
                none if none == "(null)" => String::new(),
                name => name,
            },
            Item::Driver(port, vf) => existing(system.link(&format!("{}/driver", device(at(port, vf)?)))),
            Item::Reset(..) => String::new(),
            Item::Ntuple(port) => {
                match system.ntuple(&interface(system, port)?).map_err(|e| Trouble::file(self.words(), &e))? {
                    Ntuple::On => "on",
                    Ntuple::Off => "off",
                    Ntuple::AlwaysOn => "on [fixed]",
                    Ntuple::None => "off [fixed]",
                }
                .into()
            }
            Item::Hook(port) => {
                let ran = self.look(system, &format!("tc qdisc show dev {}", interface(system, port)?))?;
                if ran.lines().any(|l| l.starts_with("qdisc clsact ")) { "present" } else { "absent" }.into()
            }
            Item::Split(port) => {
                let name = interface(system, port)?;
                let ran = system
                    .look(&words(&format!("culvert-split status {name}")))
                    .map_err(|e| no_tool("culvert-split", &e))?;
                if ran.success { "present" } else { "absent" }.into()
            }
            Item::Rule(port, place, ref rule) => self.read_rule(system, &interface(system, port)?, place, rule)?,
            Item::Redirect(ref clients, ref told) => {
                self.look(system, &redirect_command("status", clients, told.as_ref()))?.trim().to_owned()
            }
            Item::Diversions(ref clients) => {
                self.look(system, &redirect_command("show", clients, None))?.trim().to_owned()
            }
            Item::Forward(name) => self.look(system, &forward_command("status", name))?.trim().to_owned(),
            Item::Forwarded(name) => self.look(system, &forward_command("show", name))?.trim().to_owned(),
            Item::Receive(name, ref group) => {
                self.look(system, &receive_command("status", name, Some(group)))?.trim().to_owned()
            }
            Item::Received(name) => self.look(system, &receive_command("show", name, None))?.trim().to_owned(),
        })
    }

    fn look(&self, system: &dyn System, command: &str) -> Result<String, Trouble> {
        let command = words(command);
        let ran = system.look(&command).map_err(|e| no_tool(&command[0], &e))?;
        match ran.success {
            true => Ok(ran.out),
            false => {
                let remedy = match self.port() {
                    Some(_) => "is the interface there?",
                    None => "what does the command say when run by hand?",
                };
                Err(Trouble::new(format!("`{}`: {}", command.join(" "), ran.err.trim()), remedy))
            }
        }
    }

    fn read_rule(&self, system: &dyn System, name: &str, place: u32, rule: &Rule) -> Result<String, Trouble> {
        let verdict = |found: bool| if found { "present" } else { "another" }.to_string();
        match rule.by {
            Backend::Ntuple => {
                let filters = system.filters(name).map_err(|e| Trouble::file(self.words(), &e))?;
                Ok(filters.get(&place).map_or("absent".into(), |shown| verdict(rule.filter().is(shown))))
            }
            Backend::Flower => {
                let shown = self.look(system, &format!("tc -j filter show dev {name} ingress")).unwrap_or_default();
                let filters = rule::flower_filters(&shown);
                let Some(filter) = filters.get(&place) else { return Ok("absent".into()) };
                let out = self.out(system, rule).unwrap_or_default();
                Ok(match rule.flower_likeness(filter, &out) {
                    Likeness::Same => "present",
                    Likeness::NotInTheCard => "not in the card",
                    Likeness::Another => "another",
                }
                .into())
            }
            Backend::Xdp => {
                let shown = self.look(system, &format!("culvert-split show {name}")).unwrap_or_default();
                let text = split_words(rule).join(" ");
                let at = shown.lines().find_map(|l| l.strip_prefix(&format!("{place} ")));
                Ok(at.map_or("absent".into(), |shown| verdict(shown == text)))
            }
        }
    }

    /// The interface behind which a rule's target is.
    pub(crate) fn out(&self, system: &dyn System, rule: &Rule) -> Result<String, Trouble> {
        match rule.to {
            Target::Interface(ref name) => Ok(name.clone()),
            Target::Vf(vf) => self.port().and_then(|port| representor(system, port, vf)).ok_or_else(|| {
                let port = self.port().map(|port| port.to_string()).unwrap_or_default();
                Trouble::new(
                    format!("{port}: no interface stands for VF {vf} in the card's switch"),
                    format!("switch it on, before the VFs are made: devlink dev eswitch set pci/{port} mode switchdev"),
                )
            }),
            _ => Ok(String::new()),
        }
    }

    /// What gives it a value, as a command for a shell.
    pub fn command(&self, system: &dyn System, value: &str) -> String {
        let sys = |path: String| format!("/sys/{path}");
        let name = |port| interface(system, port).unwrap_or_else(|_| format!("INTERFACE-OF-{port}"));
        let at = |port, vf| match function(system, port, vf) {
            Ok(pci) => pci.to_string(),
            Err(_) => format!("VF-{vf}-OF-{port}"),
        };
        let vf = |port, vf: u16, what: String| format!("ip link set dev {} vf {vf} {what}", name(port));
        match *self {
            Item::Up(port) => format!("ip link set dev {} {value}", name(port)),
            Item::Autoprobe(port) => format!("echo {value} > {}/sriov_drivers_autoprobe", sys(device(port))),
            Item::Count(port) => format!("echo {value} > {}/sriov_numvfs", sys(device(port))),
            Item::Mac(port, n) => vf(port, n, format!("mac {value}")),
            Item::Vlan(port, n) => {
                let (vlan, qos) = value.split_once('/').unwrap_or((value, "0"));
                vf(port, n, format!("vlan {vlan} qos {qos}"))
            }
            Item::Trust(port, n) => vf(port, n, format!("trust {value}")),
            Item::SpoofCheck(port, n) => vf(port, n, format!("spoofchk {value}")),
            Item::Rate(port, n) => {
                let (least, most) = value.split_once('-').unwrap_or(("0", value));
                vf(port, n, format!("max_tx_rate {most} min_tx_rate {least}"))
            }
            Item::Override(port, n) => format!("echo {value} > {}/driver_override", sys(device_at(&at(port, n)))),
            Item::Driver(port, n) if value == "none" => {
                format!("echo {} > {}/driver/unbind", at(port, n), sys(device_at(&at(port, n))))
            }
            Item::Driver(port, n) => format!("echo {} > /sys/bus/pci/drivers_probe", at(port, n)),
            Item::Reset(port, n) => format!("echo 1 > {}/reset", sys(device_at(&at(port, n)))),
            Item::Ntuple(port) => format!("ethtool -K {} ntuple {value}", name(port)),
            Item::Hook(port) => {
                format!("tc qdisc {} dev {} clsact", if value == "present" { "add" } else { "del" }, name(port))
            }
            Item::Split(port) => {
                format!("culvert-split {} {}", if value == "present" { "attach" } else { "detach" }, name(port))
            }
            Item::Rule(port, place, ref rule) => {
                let out =
                    self.out(system, rule).unwrap_or_else(|_| format!("REPRESENTOR-OF-{}", rule.to).replace(' ', "-"));
                rule_command(&name(port), place, rule, &out, value == "present").join(" ")
            }
            Item::Redirect(ref clients, ref told) => {
                redirect_command(if value == "present" { "attach" } else { "detach" }, clients, told.as_ref())
            }
            Item::Diversions(ref clients) => {
                format!("{} {value}", redirect_command("set", clients, None)).trim_end().into()
            }
            Item::Forward(name) => forward_command(if value == "present" { "attach" } else { "detach" }, name),
            Item::Forwarded(name) => format!("{} {value}", forward_command("set", name)).trim_end().into(),
            Item::Receive(name, ref group) => {
                receive_command(if value == "present" { "attach" } else { "detach" }, name, Some(group))
            }
            Item::Received(name) => format!("{} {value}", receive_command("set", name, None)).trim_end().into(),
        }
    }

    /// Whether a value that was read is the wanted one.
    pub fn is(&self, wanted: &str, now: &str) -> bool {
        match self {
            Item::Driver(..) if wanted == "kernel" => now != "none" && !is_for_users(now),
            Item::Driver(..) if wanted == "any" => true,
            Item::Ntuple(_) => now.split(' ').next() == wanted.split(' ').next(),
            Item::Reset(..) => true,
            // A group that has ended has no programs, and nobody wants a part of them back.
            Item::Redirect(..) | Item::Forward(_) | Item::Receive(..) => {
                wanted == now || matches!((wanted, now), ("absent", "gone") | ("part", "absent" | "gone"))
            }
            _ => wanted == now,
        }
    }
}

/// Drivers that hand a device to a process.
pub(crate) fn is_for_users(driver: &str) -> bool {
    ["vfio-pci", "uio_pci_generic", "igb_uio"].contains(&driver)
}

fn redirect_command(what: &str, clients: &Group, told: Option<&Group>) -> String {
    let told = told.map(|group| format!(" --middlebox {group}")).unwrap_or_default();
    format!("culvert-redirect {what} {clients}{told}")
}

fn forward_command(what: &str, interface: Name) -> String {
    format!("culvert-redirect forward {what} {interface}")
}

fn receive_command(what: &str, interface: Name, group: Option<&Group>) -> String {
    let group = group.map(|group| format!(" --middlebox {group}")).unwrap_or_default();
    format!("culvert-redirect received {what} {interface}{group}")
}

fn device_at(address: &str) -> String {
    format!("bus/pci/devices/{address}")
}

fn rule_command(name: &str, place: u32, rule: &Rule, out: &str, add: bool) -> Vec<String> {
    match (rule.by, add) {
        (Backend::Ntuple, true) => rule.ntuple_add(name, place),
        (Backend::Ntuple, false) => words(&format!("ethtool -N {name} delete {place}")),
        (Backend::Flower, true) => rule.flower_add(name, place, out),
        (Backend::Flower, false) => rule.flower_delete(name, place),
        (Backend::Xdp, true) => [words(&format!("culvert-split add {name} {place}")), split_words(rule)].concat(),
        (Backend::Xdp, false) => words(&format!("culvert-split delete {name} {place}")),
    }
}

/// A rule as culvert-split takes and shows it.
pub fn split_words(rule: &Rule) -> Vec<String> {
    let mut all = Vec::new();
    let mut add = |name: &str, value: Option<String>| all.extend(value.into_iter().flat_map(|v| [name.to_owned(), v]));
    let packets = &rule.packets;
    add("family", packets.family.map(|f| if f == crate::flow::Family::Ipv4 { "ipv4" } else { "ipv6" }.into()));
    add("protocol", packets.protocol.map(|p| p.to_string()));
    add("source", packets.source.map(|p| p.to_string()));
    add("destination", packets.destination.map(|p| p.to_string()));
    add("source-ports", packets.source_ports.map(|p| p.to_string()));
    add("destination-ports", packets.destination_ports.map(|p| p.to_string()));
    add("vlan", packets.vlan.map(|v| v.to_string()));
    all.push("to".into());
    all.extend(words(&rule.to.to_string()));
    all.extend(rule.stateless.then(|| "stateless".to_owned()));
    all
}

pub(crate) fn no_tool(name: &str, error: &io::Error) -> Trouble {
    let package = match name {
        "tc" => "apt-get install iproute2",
        "culvert-split" => {
            "build it: cargo build --release -p culvert-split (it needs clang and libelf-dev), and put it on PATH"
        }
        "culvert-redirect" => {
            "build it: cargo build --release -p culvert-redirect (it needs clang and libelf-dev), and put it on PATH"
        }
        _ => "install it",
    };
    Trouble::new(format!("{name}: {error}"), package)
}
