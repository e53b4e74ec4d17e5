//! From what is there to what is wanted, in steps that can be undone.

use crate::address::Device;
use crate::config::{Config, Flow, Function, Port, WantedDriver};
use crate::diverting;
use crate::flow::Backend;
use crate::item::{Item, interface};
use crate::macs::Macs;
use crate::places;
use crate::possible;
use crate::rule::Rule;
use crate::step::{State, Step};
use crate::system::{System, device, function, number};
use crate::trouble::Trouble;
use crate::usage;
use std::collections::BTreeMap;
use std::fmt;

/// An item that is not as wanted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Difference {
    /// What.
    pub item: Item,
    /// Its wanted value.
    pub wanted: String,
    /// Its value; or why it has none.
    pub now: Result<String, Trouble>,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.now {
            Ok(now) => {
                let now = if now.is_empty() { "nothing" } else { now };
                write!(f, "{}: wanted {}, is {now}", self.item.words(), self.wanted)
            }
            Err(trouble) => write!(f, "{}: wanted {}, {trouble}", self.item.words(), self.wanted),
        }
    }
}

/// The steps; or all that stands against them. `made`: items that an earlier run has made.
pub fn plan(config: &Config, system: &dyn System, made: &[Item]) -> Result<Vec<Step>, Vec<Trouble>> {
    let (mut steps, mut troubles) = (Vec::new(), Vec::new());
    let mut macs = Macs::new(system);
    for port in &config.ports {
        let planned = Planner::new(port, system, &mut macs).and_then(|mut planner| planner.made(made).plan(made));
        match planned {
            Ok(mut of_port) => steps.append(&mut of_port),
            Err(mut of_port) => troubles.append(&mut of_port),
        }
    }
    match diverting::plan(config, system, made) {
        Ok(mut of_groups) => steps.append(&mut of_groups),
        Err(mut of_groups) => troubles.append(&mut of_groups),
    }
    if troubles.is_empty() { Ok(steps) } else { Err(troubles) }
}

/// Everything that is not as wanted.
pub fn verify(config: &Config, system: &dyn System) -> Result<Vec<Difference>, Vec<Trouble>> {
    let (mut differences, mut troubles) = (Vec::new(), Vec::new());
    let mut macs = Macs::new(system);
    for port in &config.ports {
        let wanted = Planner::new(port, system, &mut macs).and_then(|mut planner| planner.wanted());
        match wanted {
            Ok(wanted) => differences.extend(wanted.into_iter().filter_map(|wanted| difference(wanted, system))),
            Err(mut of_port) => troubles.append(&mut of_port),
        }
    }
    differences.extend(diverting::wanted(config).into_iter().filter_map(|wanted| difference(wanted, system)));
    if troubles.is_empty() { Ok(differences) } else { Err(troubles) }
}

/// Rules that a middlebox is to hold (`held = true`) and that are not there: it does not run, or was started with others.
pub fn verify_held(config: &Config, system: &dyn System) -> Vec<Difference> {
    diverting::held(config).into_iter().filter_map(|wanted| difference(wanted, system)).collect()
}

fn difference((item, wanted): (Item, String), system: &dyn System) -> Option<Difference> {
    let now = item.read(system);
    let good = now.as_ref().is_ok_and(|now| item.is(&wanted, now));
    (!good).then_some(Difference { item, wanted, now })
}

/// The plan for one port.
struct Planner<'a> {
    wanted: &'a Port,
    system: &'a dyn System,
    macs: &'a mut Macs,
    port: Device,
    /// An earlier run holds back the drivers of new functions: it was broken off before it let them start.
    held: bool,
    steps: Vec<Step>,
    troubles: Vec<Trouble>,
}

impl<'a> Planner<'a> {
    fn new(wanted: &'a Port, system: &'a dyn System, macs: &'a mut Macs) -> Result<Planner<'a>, Vec<Trouble>> {
        let port = possible::locate(wanted, system).map_err(|t| vec![t])?;
        Ok(Planner { wanted, system, macs, port, held: false, steps: Vec::new(), troubles: Vec::new() })
    }

    /// What an earlier run has made.
    fn made(&mut self, made: &[Item]) -> &mut Self {
        self.held = made.contains(&Item::Autoprobe(self.port)) && self.autoprobe() == "0";
        self
    }

    /// Whether drivers start on new functions by themselves.
    fn autoprobe(&self) -> String {
        match self.file("sriov_drivers_autoprobe") {
            // As it was, and will be when this is done.
            Some(_) if self.held => "1".into(),
            now => now.unwrap_or_else(|| "1".into()),
        }
    }

    fn read(&mut self, item: &Item) -> Option<String> {
        item.read(self.system).map_err(|t| self.troubles.push(t)).ok()
    }

    /// A step to this value, if it is another now.
    fn to(&mut self, item: Item, value: &str) {
        if let Some(now) = self.read(&item)
            && !item.is(value, &now)
        {
            self.steps.push(Step::new(item, now, value));
        }
    }

    fn file(&self, name: &str) -> Option<String> {
        self.system.read(&format!("{}/{name}", device(self.port))).ok()
    }

    fn count(&self) -> u16 {
        number(self.system, &format!("{}/sriov_numvfs", device(self.port))).unwrap_or(0)
    }

    fn plan(&mut self, made: &[Item]) -> Result<Vec<Step>, Vec<Trouble>> {
        self.troubles = possible::troubles(self.wanted, self.system, self.port);
        let rules = self.rules();
        let remade = self.wanted.vfs.is_some_and(|vfs| vfs != self.count());
        if remade {
            self.supersede(made, &rules);
        }
        if let Some(up) = self.wanted.up {
            self.to(Item::Up(self.port), if up { "up" } else { "down" });
        }
        if self.held {
            // What is noted from here on is undone while drivers start.
            self.steps.push(Step::new(Item::Autoprobe(self.port), "0", "1"));
        }
        match self.wanted.vfs {
            Some(vfs) if vfs != self.count() => self.make(vfs),
            _ => {
                self.change();
                if self.held {
                    self.let_start();
                }
            }
        }
        self.flows(&rules);
        if !remade {
            // Behind the new ones, which count once these are gone: no packet is under none meanwhile.
            self.supersede(made, &rules);
        }
        if self.troubles.is_empty() {
            Ok(std::mem::take(&mut self.steps))
        } else {
            Err(std::mem::take(&mut self.troubles))
        }
    }

    /// Takes away the rules that an earlier file wanted and this one does not.
    fn supersede(&mut self, made: &[Item], rules: &[(u32, Rule)]) {
        for item in made.iter().filter(|i| i.port() == Some(self.port)) {
            let Item::Rule(_, place, rule) = item else { continue };
            if !rules.iter().any(|(p, r)| p == place && r == rule)
                && let Ok(now) = item.read(self.system)
                && now == "present"
            {
                self.steps.push(Step::new(item.clone(), now, "absent"));
            }
        }
    }

    /// Makes the virtual functions anew: their number can only be changed by way of 0.
    fn make(&mut self, vfs: u16) {
        let (port, now) = (self.port, self.count());
        let autoprobe = self.autoprobe();
        for vf in 0..now {
            if let Some(user) = usage::user(self.system, port, vf) {
                let what = format!(
                    "{port} has {now} VFs and is to have {vfs}; for that all must end, and VF {vf} is used by {user}"
                );
                self.troubles.push(Trouble::new(what, "stop its user first, or leave `vfs` as it is"));
            }
            self.note(port, vf, &autoprobe);
        }
        // No driver starts before its function has its address.
        let hold = vfs > 0 && autoprobe == "1";
        if hold {
            self.steps.push(Step::new(Item::Autoprobe(port), "1", "0"));
        }
        if now > 0 {
            self.steps.push(Step::new(Item::Count(port), now.to_string(), "0"));
        }
        if vfs > 0 {
            self.steps.push(Step::new(Item::Count(port), "0", vfs.to_string()));
        }
        let fresh = |item, to: String| Step { item, from: State::Fresh, to: State::Is(to) };
        let functions: BTreeMap<u16, &Function> = self.wanted.functions.iter().map(|f| (f.number, f)).collect();
        for function in functions.values() {
            for (item, value) in self.settings(function) {
                self.steps.push(fresh(item, value));
            }
        }
        if hold {
            self.steps.push(Step::new(Item::Autoprobe(port), "0", "1"));
        }
        for vf in 0..vfs {
            match functions.get(&vf).and_then(|f| f.driver.as_ref()) {
                Some(WantedDriver::None) => {}
                Some(WantedDriver::Kernel) if !hold => self.troubles.push(no_autoprobe(port, vf)),
                Some(WantedDriver::Kernel) => self.steps.push(fresh(Item::Driver(port, vf), "kernel".into())),
                Some(WantedDriver::Is(name)) => {
                    self.steps.push(fresh(Item::Override(port, vf), name.clone()));
                    self.steps.push(fresh(Item::Driver(port, vf), name.clone()));
                }
                None if hold => self.steps.push(fresh(Item::Driver(port, vf), "any".into())),
                None => {}
            }
        }
    }

    /// Notes what a function has that will end.
    fn note(&mut self, port: Device, vf: u16, autoprobe: &str) {
        let driver = self.read(&Item::Driver(port, vf)).unwrap_or_default();
        let only = self.read(&Item::Override(port, vf)).unwrap_or_default();
        self.keep_way_back(vf, &driver, &only, autoprobe);
        let all = [Item::Driver, Item::Override, Item::Rate, Item::SpoofCheck, Item::Trust, Item::Vlan, Item::Mac];
        for item in all.map(|item| item(port, vf)) {
            let value = match &item {
                Item::Override(..) if autoprobe == "0" && only.is_empty() && driver != "none" => Some(driver.clone()),
                _ => self.read(&item),
            };
            self.steps.extend(value.map(|from| Step { item, from: State::Is(from), to: State::Gone }));
        }
    }

    /// Where drivers do not start by themselves, one comes back only by an override: entered now, taken away at the end of undoing.
    fn keep_way_back(&mut self, vf: u16, driver: &str, only: &str, autoprobe: &str) {
        if autoprobe == "0" && driver != "none" && only.is_empty() {
            self.steps.push(Step::new(Item::Override(self.port, vf), "", driver));
        }
    }

    /// Changes functions that stay.
    fn change(&mut self) {
        let port = self.port;
        let autoprobe = self.autoprobe();
        for function in &self.wanted.functions {
            let vf = function.number;
            let (Some(now), Some(only)) = (self.read(&Item::Driver(port, vf)), self.read(&Item::Override(port, vf)))
            else {
                continue;
            };
            let settings: Vec<(Item, String, String)> = self
                .settings(function)
                .into_iter()
                .filter_map(|(item, value)| self.read(&item).map(|now| (item, now, value)))
                .filter(|(item, now, value)| !item.is(value, now))
                .collect();
            // A driver asks for them when it starts.
            let restart =
                settings.iter().any(|(item, ..)| matches!(item, Item::Mac(..) | Item::Vlan(..))) && now != "none";
            let wanted = match &function.driver {
                None => now.clone(),
                Some(WantedDriver::None) => "none".into(),
                Some(WantedDriver::Kernel) => "kernel".into(),
                Some(WantedDriver::Is(name)) => name.clone(),
            };
            let same = Item::Driver(port, vf).is(&wanted, &now);
            if same && !restart {
                self.steps.extend(settings.into_iter().map(|(item, now, value)| Step::new(item, now, value)));
                continue;
            }
            if let Some(user) = usage::user(self.system, port, vf) {
                let what = format!("VF {vf} of {port} is used by {user}");
                self.troubles
                    .push(Trouble::new(what, "stop its user first, or leave its driver and addresses as they are"));
            }
            let mut override_now = only.clone();
            if autoprobe == "0" && now != "none" && only.is_empty() {
                self.keep_way_back(vf, &now, &only, &autoprobe);
                override_now = now.clone();
            }
            if now != "none" {
                self.steps.push(Step::new(Item::Driver(port, vf), &now, "none"));
            }
            self.steps.extend(settings.into_iter().map(|(item, now, value)| Step::new(item, now, value)));
            if wanted == "none" {
                continue;
            }
            // The kernel's own choice must not be held up by an override.
            let wants = match (&wanted[..], same) {
                (_, true) => override_now.clone(),
                ("kernel", _) if autoprobe == "0" => {
                    self.troubles.push(no_autoprobe(port, vf));
                    continue;
                }
                ("kernel", _) => String::new(),
                (name, _) => name.into(),
            };
            if wants != override_now {
                self.steps.push(Step::new(Item::Override(port, vf), override_now, wants));
            }
            let at = crate::system::function(self.system, port, vf).map(device).unwrap_or_default();
            if !same
                && now != "none"
                && self.system.read(&format!("{at}/reset_method")).is_ok_and(|m| m.contains("flr"))
            {
                self.steps.push(Step::new(Item::Reset(port, vf), "", ""));
            }
            let to = if same { now.clone() } else { wanted };
            self.steps.push(Step::new(Item::Driver(port, vf), "none", to));
        }
    }

    /// Lets those drivers start that were held back, and of which the file says nothing.
    fn let_start(&mut self) {
        let said = |vf: u16| self.wanted.functions.iter().any(|f| f.number == vf && f.driver.is_some());
        let silent: Vec<_> = (0..self.count()).filter(|vf| !said(*vf)).map(|vf| Item::Driver(self.port, vf)).collect();
        for item in silent {
            if self.read(&item).is_some_and(|now| now == "none") {
                self.steps.push(Step::new(item, "none", "any"));
            }
        }
    }

    /// What a function is to have before its driver starts.
    fn settings(&mut self, wanted: &Function) -> Vec<(Item, String)> {
        let (port, vf) = (self.port, wanted.number);
        let on = |yes: bool| if yes { "on" } else { "off" }.to_string();
        let mut all = Vec::new();
        if let Some(mac) = wanted.mac {
            match function(self.system, port, vf)
                .map_err(|e| Trouble::file(port, &e))
                .and_then(|at| self.macs.choose(mac, at))
            {
                Ok(mac) => all.push((Item::Mac(port, vf), mac.to_string())),
                Err(trouble) => self.troubles.push(trouble),
            }
        }
        all.extend(wanted.vlan.map(|vlan| (Item::Vlan(port, vf), format!("{vlan}/{}", wanted.qos))));
        all.extend(wanted.trust.map(|yes| (Item::Trust(port, vf), on(yes))));
        all.extend(wanted.spoof_check.map(|yes| (Item::SpoofCheck(port, vf), on(yes))));
        all.extend(wanted.max_rate.map(|most| (Item::Rate(port, vf), format!("{}-{most}", wanted.min_rate))));
        all
    }

    /// The rules, each with its place: where it is, or a free one behind the one before it.
    fn rules(&mut self) -> Vec<(u32, Rule)> {
        let wanted = self.wanted;
        let all = |by: Backend| {
            let of = move |flow: &&Flow| flow.backend() == by;
            wanted.flows.iter().filter(of).flat_map(rules_of).collect::<Vec<_>>()
        };
        if wanted.flows.is_empty() {
            return Vec::new();
        }
        let name = match interface(self.system, self.port) {
            Ok(name) => name,
            Err(trouble) => {
                self.troubles.push(trouble);
                return Vec::new();
            }
        };
        let mut placed = Vec::new();
        for by in [Backend::Ntuple, Backend::Flower, Backend::Xdp] {
            let rules = all(by);
            if rules.len() > MOST_RULES {
                let what = format!("{}: its flows come to {} rules of one kind", wanted.who(), rules.len());
                let remedy = "a card matches ranges of ports by masks, each a rule: choose ranges like 8192-16383, or by = \"xdp\"";
                self.troubles.push(Trouble::new(what, remedy));
            } else if !rules.is_empty() {
                placed.extend(places::place(self.system, self.port, &name, by, rules));
            }
        }
        placed
    }

    fn flows(&mut self, rules: &[(u32, Rule)]) {
        let has = |by: Backend| rules.iter().any(|(_, rule)| rule.by == by);
        if has(Backend::Ntuple)
            && let Some(now) = self.read(&Item::Ntuple(self.port))
            && !now.starts_with("on")
        {
            match now.contains("[fixed]") {
                true => self.troubles.push(Trouble::new(
                    format!("{}: the card or its driver has no n-tuple filters", self.wanted.who()),
                    "use by = \"xdp\" for its flows (ethtool -N of version 6.1 would say that it succeeded, and do nothing)",
                )),
                false => self.steps.push(Step::new(Item::Ntuple(self.port), now, "on")),
            }
        }
        if has(Backend::Flower) {
            self.to(Item::Hook(self.port), "present");
        }
        if has(Backend::Xdp) {
            self.to(Item::Split(self.port), "present");
        }
        for (place, rule) in rules {
            self.to(Item::Rule(self.port, *place, rule.clone()), "present");
        }
    }

    /// All that is wanted, each with its value.
    fn wanted(&mut self) -> Result<Vec<(Item, String)>, Vec<Trouble>> {
        let port = self.port;
        let mut all = Vec::new();
        all.extend(self.wanted.up.map(|up| (Item::Up(port), if up { "up" } else { "down" }.to_string())));
        all.extend(self.wanted.vfs.map(|vfs| (Item::Count(port), vfs.to_string())));
        for function in &self.wanted.functions {
            all.extend(self.settings(function));
            let driver = match &function.driver {
                None => continue,
                Some(WantedDriver::Kernel) => "kernel".into(),
                Some(WantedDriver::None) => "none".into(),
                Some(WantedDriver::Is(name)) => name.clone(),
            };
            all.push((Item::Driver(port, function.number), driver));
        }
        let rules = self.rules();
        let has = |by: Backend| rules.iter().any(|(_, rule)| rule.by == by);
        let parts = [(Backend::Ntuple, Item::Ntuple(port), "on"), (Backend::Flower, Item::Hook(port), "present")];
        let parts = parts.into_iter().chain([(Backend::Xdp, Item::Split(port), "present")]);
        all.extend(parts.filter(|(by, ..)| has(*by)).map(|(_, item, value)| (item, value.into())));
        all.extend(rules.into_iter().map(|(place, rule)| (Item::Rule(port, place, rule), "present".into())));
        if self.troubles.is_empty() { Ok(all) } else { Err(std::mem::take(&mut self.troubles)) }
    }
}

/// The rules that make up a flow.
fn rules_of(flow: &Flow) -> Vec<Rule> {
    let mut rules = Rule::of(&flow.packets, &flow.to, flow.backend());
    rules.iter_mut().for_each(|rule| rule.stateless = flow.stateless);
    rules
}

/// More rules of one kind hardly any card has for one port.
const MOST_RULES: usize = 1024;

fn no_autoprobe(port: Device, vf: u16) -> Trouble {
    let what =
        format!("VF {vf} of {port} is to have the kernel's driver, and drivers do not start there by themselves");
    Trouble::new(what, format!("name the driver, or: echo 1 > /sys/{}/sriov_drivers_autoprobe", device(port)))
}
