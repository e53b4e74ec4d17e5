//! The plan for control groups whose connections go to a middlebox.

use crate::config::Config;
use crate::item::Item;
use crate::redirect::{Group, diversions_text};
use crate::step::Step;
use crate::system::System;
use crate::trouble::Trouble;
use std::collections::BTreeSet;

/// All that is wanted, each with its value.
pub(crate) fn wanted(config: &Config) -> Vec<(Item, String)> {
    let of = |redirect: &crate::config::Redirect| {
        let programs = Item::Redirect(redirect.clients.clone(), redirect.middlebox.clone());
        let text = diversions_text(&redirect.diversions());
        [(programs, "present".to_string()), (Item::Diversions(redirect.clients.clone()), text)]
    };
    config.redirects.iter().flat_map(of).collect()
}

/// The steps; or all that stands against them.
pub(crate) fn plan(config: &Config, system: &dyn System, made: &[Item]) -> Result<Vec<Step>, Vec<Trouble>> {
    let wanted = wanted(config);
    let (mut steps, mut troubles) = (Vec::new(), Vec::new());
    // The groups whose programs these steps take away.
    let mut emptied = BTreeSet::<Group>::new();
    for item in made.iter().filter(|item| !wanted.iter().any(|(wanted, _)| wanted == *item)) {
        let Item::Redirect(clients, _) = item else { continue };
        if let Ok(now) = item.read(system)
            && (now == "present" || now == "part")
        {
            let own = Item::Diversions(clients.clone());
            match own.read(system) {
                Ok(rules) if rules.is_empty() => {}
                Ok(rules) => steps.push(Step::new(own, rules, "")),
                Err(trouble) => troubles.push(trouble),
            }
            steps.push(Step::new(item.clone(), now, "absent"));
            emptied.insert(clients.clone());
        }
    }
    for (item, value) in wanted {
        let now = match &item {
            Item::Diversions(clients) if emptied.contains(clients) => Ok(String::new()),
            Item::Redirect(clients, _) if emptied.contains(clients) => Ok("absent".into()),
            _ => item.read(system),
        };
        match now {
            Err(trouble) => troubles.push(trouble),
            Ok(now) if now == value => {}
            Ok(now) if now == "another" || now == "gone" => troubles.push(in_the_way(&item, &now)),
            Ok(now) if now == "part" => {
                steps.push(Step::new(item.clone(), now, "absent"));
                steps.push(Step::new(item, "absent", value));
            }
            Ok(now) => steps.push(Step::new(item, now, value)),
        }
    }
    if troubles.is_empty() { Ok(steps) } else { Err(troubles) }
}

fn in_the_way(item: &Item, now: &str) -> Trouble {
    let clients = match item {
        Item::Redirect(clients, _) => clients.to_string(),
        _ => String::new(),
    };
    match now {
        "gone" => Trouble::new(
            format!("there is no control group {clients} here, or none for its middlebox"),
            "cat /proc/PID/cgroup shows a process's own (behind 0::); make it first, or start its service",
        ),
        _ => Trouble::new(
            format!("the control group {clients} has redirects with another middlebox's group"),
            format!("see `culvert-redirect show {clients}`; culvert-redirect detach {clients} takes them away"),
        ),
    }
}
