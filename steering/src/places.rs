//! Where rules are, and where new ones can be.

use crate::address::Device;
use crate::filter::Filter;
use crate::flow::Backend;
use crate::item::{Item, split_words};
use crate::rule::{self, Rule};
use crate::system::System;
use std::collections::BTreeMap;

/// tc's first preference for them: before it there is room for others' filters.
const FIRST_PREFERENCE: u32 = 100;

/// What is at a place.
enum Shown {
    Ntuple(Filter),
    Flower,
    Split(String),
}

/// Gives each rule of one kind the place where it is, or a free one behind that of the rule before it: where several match, the
/// lowest place counts.
pub(crate) fn place(system: &dyn System, port: Device, name: &str, by: Backend, rules: Vec<Rule>) -> Vec<(u32, Rule)> {
    let there = shown(system, name, by);
    let is = |at: u32, shown: &Shown, rule: &Rule| match shown {
        Shown::Ntuple(shown) => rule.filter().is(shown),
        Shown::Flower => Item::Rule(port, at, rule.clone()).read(system).is_ok_and(|now| now != "another"),
        Shown::Split(text) => split_words(rule).join(" ") == *text,
    };
    let mut next = if by == Backend::Flower { FIRST_PREFERENCE } else { 0 };
    let mut placed = Vec::new();
    for rule in rules {
        let found = there.range(next..).find(|(at, shown)| is(**at, shown, &rule)).map(|(at, _)| *at);
        let at = found.unwrap_or_else(|| (next..).find(|at| !there.contains_key(at)).unwrap_or(next));
        next = at + 1;
        placed.push((at, rule));
    }
    placed
}

fn shown(system: &dyn System, name: &str, by: Backend) -> BTreeMap<u32, Shown> {
    let look = |text: String| {
        let words: Vec<String> = text.split(' ').map(str::to_owned).collect();
        system.look(&words).map(|ran| ran.out).unwrap_or_default()
    };
    match by {
        Backend::Ntuple => {
            // Where they cannot be read, reading the place says so.
            let filters = system.filters(name).unwrap_or_default();
            filters.into_iter().map(|(at, shown)| (at, Shown::Ntuple(shown))).collect()
        }
        Backend::Flower => {
            let filters = rule::flower_filters(&look(format!("tc -j filter show dev {name} ingress")));
            filters.into_keys().map(|at| (at, Shown::Flower)).collect()
        }
        Backend::Xdp => {
            let text = look(format!("culvert-split show {name}"));
            let parse = |line: &str| {
                line.split_once(' ').and_then(|(at, text)| Some((at.parse().ok()?, Shown::Split(text.into()))))
            };
            text.lines().filter_map(parse).collect()
        }
    }
}
