//! A card with two ports that is imagined in a directory: a plan for it, done, verified, undone.

use super::{Seen, steer};
use crate::zstack_demo::lab::Files;
use crate::{culvert, root};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use steering::{Card, Imagined};

pub fn show(files: &Files, seen: &mut Seen) -> Result<(), String> {
    let machine = files.at("machine");
    let system = Imagined::new(&machine);
    for (at, interface) in [("0000:01:00.0", "eth2"), ("0000:01:00.1", "eth3")] {
        let card = Card { at, interface, most: 7, iommu: true, up: true, ntuple: true };
        system.plug(&card).map_err(|e| format!("{}: {e}", machine.display()))?;
    }
    println!("# a card with two ports that is imagined in a directory (steering/steer.toml says what is wanted)");
    let (machine, state) = (machine.display().to_string(), files.name("machine-state"));
    let file = root().join("steering/steer.toml").display().to_string();
    let run = |action: &str| {
        let words = ["steer", "--imagined", &machine, "--state", &state, action, &file];
        let words = if action == "undo" { &words[..6] } else { &words[..] };
        steer(Command::new(culvert()), words)
    };
    let found = tree(Path::new(&machine));
    let plan = run("plan")?;
    // A step is a line of words, and its command.
    let steps = plan.lines().filter(|line| line.starts_with("    ")).count();
    seen.note("imagined card: the plan's steps, each with its command", steps.to_string(), steps > 20);
    run("apply")?;
    let changed = tree(Path::new(&machine));
    let count = |path: &str| changed.get(&Path::new(&machine).join("sys/bus/pci/devices").join(path)).cloned();
    seen.is("imagined card: VFs afterwards", count("0000:01:00.0/sriov_numvfs").unwrap_or_default().trim(), "3");
    let verified = Command::new(culvert())
        .args(["steer", "--imagined", &machine, "--state", &state, "verify", &file])
        .output()
        .map_err(|e| e.to_string())?;
    // What a middlebox is to hold is not there while none runs.
    let text = String::from_utf8_lossy(&verified.stdout).into_owned();
    let others = text.lines().filter(|line| !line.contains("/jobs.slice")).count();
    seen.note("imagined card: all that verify names (no middlebox runs)", text, others == 0);
    run("undo")?;
    let undone = tree(Path::new(&machine)) == found;
    seen.note("imagined card: undone, each file is as it was found", format!("{} files", found.len()), undone);
    Ok(())
}

/// Every file with its text, and every link; but not whether there is a link to the wire, which comes and goes by itself.
fn tree(at: &Path) -> BTreeMap<PathBuf, String> {
    let mut all = BTreeMap::new();
    let mut todo = vec![at.to_owned()];
    while let Some(at) = todo.pop() {
        for path in std::fs::read_dir(&at).into_iter().flatten().flatten().map(|entry| entry.path()) {
            if let Ok(to) = std::fs::read_link(&path) {
                all.insert(path, to.display().to_string());
            } else if path.is_dir() {
                todo.push(path);
            } else if !path.ends_with("carrier") {
                let text = std::fs::read_to_string(&path).unwrap_or_default();
                all.insert(path, text);
            }
        }
    }
    all
}
