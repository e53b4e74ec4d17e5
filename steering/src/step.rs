//! A single change, as planned and noted.

use crate::item::Item;
use crate::system::System;
use serde::{Deserialize, Serialize};
use std::fmt;

/// A value before or after a step.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// This one.
    Is(String),
    /// Whatever a virtual function has when it is made: with it, it ends.
    Fresh,
    /// None any more: it ends with its virtual function. The step changes nothing; it notes what is to be restored.
    Gone,
}

/// One step: a single change. Undone by giving the item its value before.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Step {
    /// What is changed.
    pub item: Item,
    /// Its value before.
    pub from: State,
    /// Its value after.
    pub to: State,
}

impl Step {
    pub(crate) fn new(item: Item, from: impl Into<String>, to: impl Into<String>) -> Step {
        Step { item, from: State::Is(from.into()), to: State::Is(to.into()) }
    }

    /// It in words, and its command on a line below; what is only noted has none.
    pub fn text(&self, system: &dyn System) -> String {
        match &self.to {
            State::Is(value) => format!("{self}\n    {}\n", self.item.command(system, value)),
            _ => format!("{self}\n"),
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            State::Is(value) if value.is_empty() => f.write_str("nothing"),
            State::Is(value) => f.write_str(value),
            State::Fresh => f.write_str("new"),
            State::Gone => f.write_str("gone"),
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.item, &self.to) {
            (Item::Reset(..), _) => f.write_str(&self.item.words()),
            (_, State::Gone) => write!(f, "{}: {} is noted; it ends with the VF", self.item.words(), self.from),
            _ => write!(f, "{}: {} -> {}", self.item.words(), self.from, self.to),
        }
    }
}
