//! The plan for connections that go to a middlebox: those of control groups, and those that are forwarded.

use crate::config::Config;
use crate::item::Item;
use crate::redirect::diversions_text;
use crate::step::Step;
use crate::system::System;
use crate::trouble::Trouble;
use crate::wish::{Redirect, Whose};

/// All that is wanted, each with its value: what it takes, then its rules.
pub(crate) fn wanted(config: &Config) -> Vec<(Item, String)> {
    let of = |redirect: &Redirect| {
        let means = match redirect.whose().ok()? {
            Whose::Clients(clients, told) => Item::Redirect(clients, told),
            Whose::Forwarded(name) => Item::Forward(name),
            Whose::Received(name, group) => Item::Receive(name, group),
        };
        let rules = rules_of(&means)?;
        Some([(means, "present".to_string()), (rules, diversions_text(&redirect.diversions()))])
    };
    config.redirects.iter().filter(|redirect| !redirect.held).filter_map(of).flatten().collect()
}

/// Rules that a middlebox is to hold: they are there while it lives.
pub(crate) fn held(config: &Config) -> Vec<(Item, String)> {
    let of = |redirect: &Redirect| {
        let rules = match redirect.whose().ok()? {
            Whose::Clients(clients, _) => Item::Diversions(clients),
            Whose::Forwarded(name) => Item::Forwarded(name),
            Whose::Received(name, _) => Item::Received(name),
        };
        Some((rules, diversions_text(&redirect.diversions())))
    };
    config.redirects.iter().filter(|redirect| redirect.held).filter_map(of).collect()
}

/// The rules by what they take; `None`: it is nothing that rules take.
fn rules_of(means: &Item) -> Option<Item> {
    match means {
        Item::Redirect(clients, _) => Some(Item::Diversions(clients.clone())),
        Item::Forward(name) => Some(Item::Forwarded(*name)),
        Item::Receive(name, _) => Some(Item::Received(*name)),
        _ => None,
    }
}

/// The steps; or all that stands against them.
pub(crate) fn plan(config: &Config, system: &dyn System, made: &[Item]) -> Result<Vec<Step>, Vec<Trouble>> {
    let wanted = wanted(config);
    let (mut steps, mut troubles) = (Vec::new(), Vec::new());
    // The rules that go with what these steps take away.
    let mut emptied = Vec::new();
    for item in made.iter().filter(|item| !wanted.iter().any(|(wanted, _)| wanted == *item)) {
        let Some(own) = rules_of(item) else { continue };
        if let Ok(now) = item.read(system)
            && (now == "present" || now == "part")
        {
            match own.read(system) {
                Ok(rules) if rules.is_empty() => {}
                Ok(rules) => steps.push(Step::new(own.clone(), rules, "")),
                Err(trouble) => troubles.push(trouble),
            }
            steps.push(Step::new(item.clone(), now, "absent"));
            emptied.push(own);
        }
    }
    for (item, value) in wanted {
        let now = match rules_of(&item) {
            None if emptied.contains(&item) => Ok(String::new()),
            Some(rules) if emptied.contains(&rules) => Ok("absent".into()),
            _ => item.read(system),
        };
        match now {
            Err(trouble) => troubles.push(trouble),
            Ok(now) if now == value => {}
            Ok(now) if now == "another" || now == "gone" => troubles.push(in_the_way(&item, &now)),
            Ok(now) if now == "part" && has_rules(&item, system) => troubles.push(Trouble::new(
                format!("{}: somebody has taken a part of it away, and its rules are there", item.words()),
                format!("take the rest away, then plan again: {}", item.command(system, "absent")),
            )),
            Ok(now) if now == "part" => {
                steps.push(Step::new(item.clone(), now, "absent"));
                steps.push(Step::new(item, "absent", value));
            }
            Ok(now) => steps.push(Step::new(item, now, value)),
        }
    }
    if troubles.is_empty() { Ok(steps) } else { Err(troubles) }
}

fn has_rules(item: &Item, system: &dyn System) -> bool {
    rules_of(item).is_some_and(|rules| rules.read(system).is_ok_and(|rules| !rules.is_empty()))
}

fn in_the_way(item: &Item, now: &str) -> Trouble {
    match (item, now) {
        (Item::Redirect(clients, _), "gone") => Trouble::new(
            format!("there is no control group {clients} here, or none for its middlebox"),
            "cat /proc/PID/cgroup shows a process's own (behind 0::); make it first, or start its service",
        ),
        (Item::Redirect(clients, _), _) => Trouble::new(
            format!("the control group {clients} has redirects with another middlebox's group"),
            format!("see `culvert-redirect show {clients}`; culvert-redirect detach {clients} takes them away"),
        ),
        (Item::Forward(name), "gone") => Trouble::new(
            format!("there is no interface {name} here"),
            "see ip link; it is looked for in this network namespace",
        ),
        (Item::Receive(name, group), "gone") => Trouble::new(
            format!("there is no interface {name} here, or no control group {group}"),
            "see ip link, in this network namespace; /proc/PID/cgroup shows a process's group (behind 0::)",
        ),
        _ => Trouble::new(
            format!("{}: there are others, of another group or held by a process", item.words()),
            "those that are held go with their middlebox; others `culvert-redirect received detach` takes away",
        ),
    }
}
