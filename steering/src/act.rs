//! Doing a plan, and undoing it.

use crate::address::Device;
use crate::item::{Item, interface};
use crate::journal::Journal;
use crate::step::{State, Step};
use crate::system::{System, carrier, device, number, wait_for_link};
use crate::trouble::Trouble;
use crate::usage;
use std::collections::BTreeMap;

/// Does the steps, each noted before. Told of each before it is done. Returns what else is to be said.
pub fn apply(
    system: &mut dyn System,
    journal: &mut Journal,
    steps: &[Step],
    tell: &mut dyn FnMut(&Step),
) -> Result<Vec<String>, Trouble> {
    let mut carriers = BTreeMap::new();
    for port in steps.iter().filter_map(|step| step.item.port()) {
        carriers.entry(port).or_insert_with_key(|port| has_link(system, *port));
    }
    for step in steps {
        tell(step);
        if let State::Is(before) = &step.from
            && step.to != State::Gone
        {
            let now = step.item.read(system)?;
            if now != *before {
                let what = format!("{}: it was {before:?} when this was planned, and is {now:?}", step.item.words());
                return Err(Trouble::new(what, "somebody changes it, too: plan again"));
            }
        }
        if let State::Is(after) = &step.to
            && let Some(hindrance) = usage::hindrance(system, &step.item, after)
        {
            return Err(Trouble::new(format!("{}: {hindrance}", step.item.words()), "stop its user, then plan again"));
        }
        journal.begin(step.clone())?;
        if let State::Is(value) = &step.to {
            step.item.write(system, value)?;
        }
    }
    if !journal.is_complete() {
        journal.complete()?;
    }
    Ok(carriers.into_iter().filter(|(_, had)| *had).filter_map(|(port, _)| lost_link(system, port)).collect())
}

fn has_link(system: &dyn System, port: Device) -> bool {
    interface(system, port).is_ok_and(|name| carrier(system, &name))
}

/// A card's link pauses for seconds when its virtual functions change.
fn lost_link(system: &dyn System, port: Device) -> Option<String> {
    let name = interface(system, port).ok()?;
    let lost = !wait_for_link(system, &name);
    lost.then(|| format!("{port} had a link before, and has none yet: see ip link"))
}

/// What undoing has come to.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Undone {
    /// What was given its value before again.
    pub restored: Vec<String>,
    /// What was left as it is, and why.
    pub left: Vec<String>,
}

/// Undoes all that the journal tells of, the last first; where it stops, another call goes on.
pub fn undo(system: &mut dyn System, journal: &mut Journal, tell: &mut dyn FnMut(&Step)) -> Result<Undone, Trouble> {
    let mut undone = Undone::default();
    while let Some(step) = journal.steps().last().cloned() {
        tell(&step);
        match undo_step(system, &step)? {
            Outcome::Nothing => {}
            Outcome::Restored(text) => undone.restored.push(text),
            Outcome::Left(text) => undone.left.push(text),
        }
        journal.pop()?;
    }
    Ok(undone)
}

enum Outcome {
    /// It is as it was before.
    Nothing,
    Restored(String),
    Left(String),
}

fn undo_step(system: &mut dyn System, step: &Step) -> Result<Outcome, Trouble> {
    let item = &step.item;
    let State::Is(before) = &step.from else { return Ok(Outcome::Nothing) };
    if matches!(item, Item::Reset(..)) {
        return Ok(Outcome::Nothing);
    }
    if let Some(port) = item.port().map(device) {
        if system.names(&port).is_err() {
            return Ok(Outcome::Left(format!("{}: the device is gone", item.words())));
        }
        if let Some(vf) = item.function()
            && number::<u16>(system, &format!("{port}/sriov_numvfs")).unwrap_or(0) <= vf
        {
            return Ok(Outcome::Left(format!("{}: the VF is gone", item.words())));
        }
    }
    let now = item.read(system)?;
    if let (Item::Redirect(..) | Item::Forward(_) | Item::Receive(..), "absent", "part" | "gone") =
        (item, &before[..], &now[..])
    {
        // They are several programs: a process that was killed, or a group that has ended, may have left some of them.
        item.write(system, before)?;
        return Ok(Outcome::Restored(format!("{}: {before}", item.words())));
    }
    if item.is(before, &now) {
        return Ok(Outcome::Nothing);
    }
    if let State::Is(after) = &step.to
        && !item.is(after, &now)
    {
        let text =
            format!("{}: it was {before:?}, became {after:?}, and somebody has made it {now:?} since", item.words());
        return Ok(Outcome::Left(text));
    }
    if let Some(hindrance) = usage::hindrance(system, item, before) {
        return match item {
            Item::Hook(_) | Item::Split(_) | Item::Redirect(..) | Item::Forward(_) | Item::Receive(..) => {
                Ok(Outcome::Left(format!("{}: {hindrance}", item.words())))
            }
            _ => Err(Trouble::new(
                format!("{}: {hindrance}", item.words()),
                "stop its user, then undo again: it goes on from here",
            )),
        };
    }
    if let (Item::Driver(port, vf), State::Gone) = (item, &step.to)
        && before != "none"
        && now != "none"
    {
        // Another driver has started on the new function.
        Item::Driver(*port, *vf).write(system, "none")?;
    }
    item.write(system, before)?;
    Ok(Outcome::Restored(format!("{}: {before}", item.words())))
}
