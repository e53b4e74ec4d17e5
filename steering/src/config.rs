//! What is wanted: a TOML file. Every key is described at its field; `steer.toml` beside the crate shows them all.

use crate::address::{Mac, Name, Pci};
use crate::flow::{Backend, Match, Target};
use crate::trouble::Trouble;
use crate::wish::Redirect;
use serde::Deserialize;
use std::collections::BTreeSet;

/// What is wanted.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The ports. Those that are not named are left alone.
    #[serde(default, rename = "port")]
    pub ports: Vec<Port>,
    /// Control groups whose connections go to a middlebox. Those that are not named are left alone.
    #[serde(default, rename = "redirect")]
    pub redirects: Vec<Redirect>,
}

/// A port of a card. What is not said of it is left as it is.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Port {
    /// Its PCI address. A name may belong to another card after the next start; an address does not.
    #[serde(default)]
    pub device: Option<Pci>,
    /// Its interface's name. Beside `device`: a name that it must have, so that a mix-up is found.
    #[serde(default)]
    pub interface: Option<String>,
    /// Whether the interface is up. A virtual function's driver often does not start while it is down.
    #[serde(default)]
    pub up: Option<bool>,
    /// How many virtual functions there are.
    #[serde(default)]
    pub vfs: Option<u16>,
    /// Single ones of them.
    #[serde(default, rename = "vf")]
    pub functions: Vec<Function>,
    /// Its flows; where several match, the first.
    #[serde(default, rename = "flow")]
    pub flows: Vec<Flow>,
}

/// A virtual function. What is not said of it is left as it is.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Function {
    /// Which one, from 0.
    pub number: u16,
    /// Its MAC address; `auto`: one of this machine's own, the same each time.
    #[serde(default)]
    pub mac: Option<WantedMac>,
    /// Its VLAN, which the card adds and takes away; 0: none.
    #[serde(default)]
    pub vlan: Option<u16>,
    /// The VLAN's priority.
    #[serde(default)]
    pub qos: u8,
    /// Whether it may do what concerns others, as changing its MAC address or hearing all packets.
    #[serde(default)]
    pub trust: Option<bool>,
    /// Whether the card drops what it sends with another's MAC address.
    #[serde(default)]
    pub spoof_check: Option<bool>,
    /// Mbit/s that it may send at most; 0: as many as there are.
    #[serde(default)]
    pub max_rate: Option<u32>,
    /// Mbit/s that it has for sure.
    #[serde(default)]
    pub min_rate: u32,
    /// Its driver: `kernel` (the one that Linux finds for it), `none`, or a name, as `vfio-pci` for DPDK.
    #[serde(default)]
    pub driver: Option<WantedDriver>,
}

/// A wanted MAC address.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(try_from = "String")]
pub enum WantedMac {
    /// One that is derived from the machine and the function.
    Auto,
    /// This one.
    Is(Mac),
}

impl TryFrom<String> for WantedMac {
    type Error = String;

    fn try_from(text: String) -> Result<WantedMac, String> {
        if text == "auto" { Ok(WantedMac::Auto) } else { text.parse().map(WantedMac::Is) }
    }
}

/// A wanted driver.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(try_from = "String")]
pub enum WantedDriver {
    /// The one that Linux finds.
    Kernel,
    /// None.
    None,
    /// This one.
    Is(String),
}

impl TryFrom<String> for WantedDriver {
    type Error = String;

    fn try_from(text: String) -> Result<WantedDriver, String> {
        let good = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        match &text[..] {
            "kernel" => Ok(WantedDriver::Kernel),
            "none" => Ok(WantedDriver::None),
            name if !name.is_empty() && name.chars().all(good) => Ok(WantedDriver::Is(text)),
            _ => Err(format!("{text:?} is no driver's name")),
        }
    }
}

/// Some packets, and where they go.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Flow {
    /// What is said of it.
    pub name: String,
    /// Which packets.
    #[serde(rename = "match")]
    pub packets: Match,
    /// Where they go.
    pub to: Target,
    /// What does it. Without it: the card's n-tuple filters, and for another interface its switch.
    #[serde(default)]
    pub by: Option<Backend>,
    /// Of the XDP program: its packets are only forwarded, so each follows the rule at once. Without it TCP connections stay where they began.
    #[serde(default)]
    pub stateless: bool,
}

impl Flow {
    /// What does it.
    pub fn backend(&self) -> Backend {
        match (self.by, &self.to) {
            (Some(by), _) => by,
            (None, Target::Interface(_)) => Backend::Flower,
            (None, Target::Queues | Target::Kernel | Target::Back) => Backend::Xdp,
            (None, _) => Backend::Ntuple,
        }
    }
}

impl Config {
    /// Reads the file's text.
    pub fn parse(text: &str) -> Result<Config, Trouble> {
        let config: Config =
            toml::from_str(text).map_err(|e| Trouble::new(e.to_string().trim_end(), "mend the file"))?;
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<(), Trouble> {
        let wrong = |what: String| Err(Trouble::new(what, "mend the file"));
        let (mut devices, mut names, mut macs) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        for port in &self.ports {
            let who = port.who();
            if port.device.is_none() && port.interface.is_none() {
                return wrong("a port has neither `device` (its PCI address) nor `interface`".into());
            }
            if port.interface.as_deref().is_some_and(|name| Name::new(name).is_none()) {
                return wrong(format!("{who}: that is no interface's name"));
            }
            if port.device.is_some_and(|d| !devices.insert(d))
                || port.interface.iter().any(|n| !names.insert(n.clone()))
            {
                return wrong(format!("{who} is there twice"));
            }
            let mut numbers = BTreeSet::new();
            for function in &port.functions {
                let who = format!("{who} VF {}", function.number);
                if !numbers.insert(function.number) {
                    return wrong(format!("{who} is there twice"));
                }
                if port.vfs.is_some_and(|n| function.number >= n) {
                    return wrong(format!(
                        "{who}: they are numbered from 0, and `vfs` wants {}",
                        port.vfs.unwrap_or(0)
                    ));
                }
                if function.vlan.is_some_and(|v| v > 4094) || function.qos > 7 {
                    return wrong(format!("{who}: a VLAN is 1 to 4094, or 0 for none, and its priority 0 to 7"));
                }
                if function.max_rate.is_some_and(|max| max != 0 && max < function.min_rate) {
                    return wrong(format!("{who}: it has more Mbit/s for sure than at most"));
                }
                if function.max_rate.is_none() && function.min_rate != 0 {
                    return wrong(format!("{who}: `min-rate` needs `max-rate` (0: as many as there are)"));
                }
                if let Some(WantedMac::Is(mac)) = function.mac {
                    if mac.is_no_interfaces() {
                        let what = format!("{who}: {mac} is a group's address, or nobody's");
                        return Err(Trouble::new(
                            what,
                            "a VF's address has an even first byte: take mac = \"auto\", or 02:...",
                        ));
                    }
                    if !macs.insert(mac) {
                        let what = format!("{who}: another VF has {mac}, too");
                        return Err(Trouble::new(what, "every VF needs an address of its own: take mac = \"auto\""));
                    }
                }
            }
            let mut flows = BTreeSet::new();
            for flow in &port.flows {
                let who = format!("{who} flow {:?}", flow.name);
                if !flows.insert(&flow.name) {
                    return wrong(format!("{who} is there twice"));
                }
                if let Some(fault) = flow.packets.fault() {
                    return wrong(format!("{who}: {fault}"));
                }
                if flow.stateless && flow.backend() != Backend::Xdp {
                    let what = format!("{who}: `stateless` is of by = \"xdp\"");
                    return Err(Trouble::new(what, "leave it out: filters of a card decide each packet in any case"));
                }
                if let (Target::Vf(vf), Some(vfs)) = (&flow.to, port.vfs)
                    && *vf >= vfs
                {
                    return wrong(format!("{who}: there is no VF {vf}, `vfs` wants {vfs}"));
                }
                if matches!(flow.to, Target::Vf(255..)) && flow.backend() == Backend::Ntuple {
                    return wrong(format!("{who}: n-tuple filters know VFs 0 to 254"));
                }
                let can = match flow.backend() {
                    Backend::Ntuple => matches!(flow.to, Target::Vf(_) | Target::Queue(_) | Target::Drop),
                    Backend::Flower => {
                        matches!(flow.to, Target::Vf(_) | Target::Kernel | Target::Drop | Target::Interface(_))
                    }
                    Backend::Xdp => matches!(
                        flow.to,
                        Target::Queue(_) | Target::Queues | Target::Kernel | Target::Drop | Target::Back
                    ),
                };
                if !can {
                    let what = format!("{who}: {:?} cannot send packets to {:?}", flow.backend(), flow.to.to_string());
                    let remedy = "ntuple: vf, queue, drop; flower: vf, kernel, drop, interface; xdp: queue, queues, kernel, drop, back";
                    return Err(Trouble::new(what, remedy));
                }
            }
        }
        for (at, redirect) in self.redirects.iter().enumerate() {
            let whose = match redirect.whose() {
                Ok(whose) => whose,
                Err(fault) => return wrong(format!("redirect {}: {fault}", at + 1)),
            };
            if let Some(fault) = redirect.fault(&whose, &self.redirects[..at]) {
                return wrong(format!("{whose}: {fault}"));
            }
        }
        Ok(())
    }
}

impl Port {
    /// As it is called in the file.
    pub(crate) fn who(&self) -> String {
        match (&self.device, &self.interface) {
            (Some(device), _) => device.to_string(),
            (None, Some(name)) => name.clone(),
            (None, None) => "a port".into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_beside_the_crate_is_one() {
        let text = include_str!("../steer.toml");
        let config = Config::parse(text).expect("the example");
        assert_eq!((config.ports.len(), config.redirects.len()), (2, 4));
        assert_eq!(config.ports[0].functions[1].driver, Some(WantedDriver::Is("vfio-pci".into())));
    }

    #[test]
    fn what_is_wrong_is_said_at_once() {
        let port = "[[port]]\ndevice = '0000:01:00.0'\nvfs = 2\n";
        let vf = |text: &str| format!("{port}[[port.vf]]\nnumber = 0\n{text}");
        let flow = |text: &str| format!("{port}[[port.flow]]\nname = 'f'\nmatch = {{ protocol = 'tcp' }}\n{text}");
        let redirect =
            |group: &str, rule: &str| format!("[[redirect]]\nclients = '{group}'\n[[redirect.rule]]\n{rule}\n");
        for (text, said) in [
            ("[[port]]\nvfs = 1".into(), "neither"),
            ("[[port]]\ndevice = 'eth0'".into(), "PCI address"),
            (format!("{port}{port}"), "twice"),
            (vf("mac = '01:00:5e:00:00:01'"), "a group's address"),
            (vf("mac = '00:00:00:00:00:00'"), "or nobody's"),
            (vf("mac = '02:00:00:00:00:01'\n[[port.vf]]\nnumber = 1\nmac = '02:00:00:00:00:01'"), "another VF has"),
            (vf("[[port.vf]]\nnumber = 0"), "twice"),
            (vf("[[port.vf]]\nnumber = 2"), "numbered from 0"),
            (vf("vlan = 4095"), "VLAN"),
            (vf("max-rate = 5\nmin-rate = 6"), "for sure"),
            (vf("min-rate = 6"), "needs `max-rate`"),
            (vf("driver = '../x'"), "no driver's name"),
            (vf("colour = 'red'"), "colour"),
            (flow("to = 'vf 2'"), "no VF 2"),
            (flow("to = 'mars'"), "no target"),
            (flow("to = 'vf 255'").replace("vfs = 2\n", ""), "0 to 254"),
            (flow("to = 'kernel'\nby = 'ntuple'"), "cannot send"),
            (flow("to = 'drop'\nstateless = true"), "`stateless` is of"),
            (format!("{port}[[port.flow]]\nname = 'f'\nmatch = {{}}\nto = 'drop'"), "matches all"),
            (redirect("/a", "to = ['127.0.0.1:1', '127.0.0.2:1']"), "the same version"),
            (redirect("/a", "to = ['0.0.0.0:1']"), "nobody"),
            (redirect("/a", "to = ['127.0.0.1:1']\ndestination = '::/0'"), "destination's version"),
            (redirect("/a", "to = ['127.0.0.1:1']\ndead = 'closed'"), "each version"),
            (redirect("a", "to = []"), "no control group"),
            (redirect("/a", "to = []\ncolour = 'red'"), "colour"),
            (redirect("/a", "to = []") + &redirect("/a/b", "to = []"), "one lies in the other"),
            ("[[redirect]]\n[[redirect.rule]]\nto = []".into(), "one of `clients`"),
            ("[[redirect]]\nclients = '/a'\nforwarded = 'e'\n[[redirect.rule]]\nto = []".into(), "one of `clients`"),
            ("[[redirect]]\nforwarded = 'e e'\n[[redirect.rule]]\nto = []".into(), "no interface's name"),
            ("[[redirect]]\nforwarded = 'e+'\n[[redirect.rule]]\nto = []".into(), "letters, digits"),
            (
                "[[redirect]]\nforwarded = 'e'\nmiddlebox = '/m'\n[[redirect.rule]]\nto = []".into(),
                "leave `middlebox` out",
            ),
            ("[[redirect]]\nforwarded = 'e'\n[[redirect.rule]]\nto = []\n".repeat(2), "twice"),
            ("[[redirect]]\nclients = '/m/a'\nmiddlebox = '/m'\n[[redirect.rule]]\nto = []".into(), "own group"),
        ] {
            let trouble = Config::parse(&text).expect_err(&text);
            assert!(trouble.what.contains(said), "{text}\n{trouble}");
        }
    }
}
