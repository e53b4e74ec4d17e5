//! An imagined machine in a directory of its own, and what tests do with it.
#![allow(dead_code)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use steering::{
    Backend, Card, Config, Family, Filter, Imagined, Journal, Match, Protocol, Rule, Step, Target, Trouble, Undone,
};
use tempfile::TempDir;

pub const ONE: &str = "0000:01:00.0";
pub const TWO: &str = "0000:01:00.1";

pub struct Machine {
    dir: TempDir,
    pub system: Imagined,
}

/// A card's port that can do everything.
pub fn card<'a>(at: &'a str, interface: &'a str) -> Card<'a> {
    Card { at, interface, most: 7, iommu: true, up: true, ntuple: true }
}

/// A filter of somebody else's: UDP to port 53 goes nowhere.
pub fn dns() -> Filter {
    let packets = Match {
        family: Some(Family::Ipv4),
        protocol: Some(Protocol::Udp),
        destination_ports: Some("53".parse().expect("a port")),
        ..Match::default()
    };
    Rule::of(&packets, &Target::Drop, Backend::Ntuple)[0].filter()
}

pub fn config(text: &str) -> Config {
    Config::parse(text).unwrap_or_else(|e| panic!("{e}\n{text}"))
}

impl Machine {
    pub fn new(cards: &[Card<'_>]) -> Machine {
        // In memory: thousands of journals are synced.
        let memory = Path::new("/dev/shm");
        let dir = if memory.is_dir() { TempDir::new_in(memory) } else { TempDir::new() }.expect("a directory");
        let system = Imagined::new(dir.path().join("root"));
        for card in cards {
            system.plug(card).expect("a card");
        }
        Machine { dir, system }
    }

    pub fn two_ports() -> Machine {
        Machine::new(&[card(ONE, "eth2"), card(TWO, "eth3")])
    }

    pub fn journal(&self) -> Journal {
        Journal::open(&self.state()).expect("the journal")
    }

    pub fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    pub fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    /// Every file, link and directory; but not whether there is a link, which comes and goes by itself.
    pub fn tree(&self) -> BTreeMap<PathBuf, String> {
        let mut tree = BTreeMap::new();
        walk(&self.root(), &mut tree);
        tree.retain(|path, _| !path.ends_with("carrier"));
        tree
    }

    pub fn plan(&self, text: &str) -> Result<Vec<Step>, Vec<Trouble>> {
        steering::plan(&config(text), &self.system, &Journal::look(&self.state()).expect("the journal").made())
    }

    /// What stands against it.
    pub fn troubles(&self, text: &str) -> String {
        let troubles = self.plan(text).expect_err("it cannot be done");
        troubles.iter().map(|t| format!("{t}\n")).collect()
    }

    pub fn apply(&mut self, text: &str) -> Result<Vec<String>, Trouble> {
        let steps = self.plan(text).unwrap_or_else(|e| panic!("{e:?}\n{text}"));
        let mut journal = self.journal();
        steering::apply(&mut self.system, &mut journal, &steps, &mut |_| {})
    }

    pub fn undo(&mut self) -> Result<Undone, Trouble> {
        let mut journal = self.journal();
        steering::undo(&mut self.system, &mut journal, &mut |_| {})
    }

    pub fn differences(&self, text: &str) -> Vec<String> {
        let found = steering::verify(&config(text), &self.system).unwrap_or_else(|e| panic!("{e:?}\n{text}"));
        found.iter().map(ToString::to_string).collect()
    }

    /// The plan as it is printed.
    pub fn text(&self, text: &str) -> String {
        let steps = self.plan(text).unwrap_or_else(|e| panic!("{e:?}\n{text}"));
        steps.iter().map(|step| step.text(&self.system)).collect()
    }
}

fn walk(at: &Path, tree: &mut BTreeMap<PathBuf, String>) {
    let kind = fs::symlink_metadata(at).expect("metadata").file_type();
    let what = match (kind.is_symlink(), kind.is_dir()) {
        (true, _) => format!("-> {}", fs::read_link(at).expect("a link").display()),
        (_, true) => "directory".into(),
        _ => fs::read_to_string(at).expect("a file"),
    };
    tree.insert(at.to_owned(), what);
    if kind.is_dir() {
        for entry in fs::read_dir(at).expect("a directory") {
            walk(&entry.expect("an entry").path(), tree);
        }
    }
}
