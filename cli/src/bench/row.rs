//! What a row is, and what rows have in common.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use super::procs::{Job, Side, find_program};

/// What must hold for a row.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Floor {
    /// Culvert is at least this many times better than the kernel.
    Times(f64),
    /// The same, and it needs no more CPU per operation.
    TimesAndCpu(f64),
    /// Culvert needs less than the kernel.
    Less,
    /// Culvert's value exceeds the kernel's by at most this, and its CPU by next to nothing.
    Extra(f64),
    /// Culvert's value, and its CPU, are at most these, whatever the kernel's are.
    AtMost(f64, f64),
    /// Culvert's value is at most the first, or so many times the kernel's where that is more: on a machine that is so slow itself.
    AtMostOrTimes(f64, f64),
    /// All details are the kernel's: those called `..._ms` within so many milliseconds and a twentieth, the others exactly.
    Same(f64),
    /// There is none: it is measured to be known.
    Reported,
}

/// What a row needs beside programs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Equipment {
    /// Root: it makes network namespaces.
    Root,
    /// The command `zstack`, built with DPDK.
    Zstack,
    /// zstackd, built with DPDK.
    Zstackd,
    /// The other side of rows beside iceoryx2.
    Iceoryx2,
    /// The command `culvert-split`.
    Split,
}

/// One line of the table.
pub struct Row {
    /// Name on the command line.
    pub id: &'static str,
    /// What it is.
    pub title: &'static str,
    /// What culvert is measured beside, if that is not the kernel.
    pub beside: Option<&'static str>,
    /// Unit of its value.
    pub unit: &'static str,
    /// More is better; otherwise less is.
    pub higher_is_better: bool,
    /// See [`Floor`].
    pub floor: Floor,
    /// What one operation is, for the CPU columns.
    pub operation: &'static str,
    /// Rounds are multiplied by this: small differences need more of them.
    pub rounds: u32,
    /// Its details are for people, too.
    pub detailed: bool,
    /// At most so many rounds: it takes long.
    pub most: u32,
    /// Programs that it runs.
    pub needs: &'static [&'static str],
    /// What this machine must offer, or must have been built, beside them.
    pub equipment: &'static [Equipment],
    /// Measures one side once.
    pub run: fn(&Setup, Side) -> io::Result<Sample>,
}

/// One measurement of one side.
#[derive(Clone, Debug, Default)]
pub struct Sample {
    /// In the row's unit.
    pub value: f64,
    /// CPU time of both ends per operation, microseconds.
    pub cpu: f64,
    /// More figures, by name.
    pub details: BTreeMap<&'static str, f64>,
}

/// What the rows need to know.
pub struct Setup<'a> {
    /// libculvert.so.
    pub library: &'a Path,
    /// For files.
    pub scratch: &'a Path,
    /// Length of a measurement.
    pub seconds: u32,
}

/// What a row is made from.
pub const BLANK: Row = Row {
    id: "",
    title: "",
    beside: None,
    unit: "",
    higher_is_better: true,
    floor: Floor::Less,
    operation: "",
    rounds: 1,
    detailed: false,
    most: u32::MAX,
    needs: &[],
    equipment: &[],
    run: |_, _| Ok(Sample::default()),
};

impl Setup<'_> {
    /// Starts a program of one side.
    pub fn start(&self, command: Command, side: Side) -> io::Result<Job> {
        Job::start(command, (side == Side::Culvert).then_some(self.library), self.scratch)
    }

    /// Length of a measurement.
    pub fn length(&self) -> Duration {
        Duration::from_secs(self.seconds.into())
    }
}

/// A program of the system's.
pub fn program(name: &str) -> io::Result<Command> {
    find_program(name).map(Command::new).ok_or_else(|| io::Error::other(format!("{name} is not installed")))
}

/// One of our own ends.
pub fn workload(args: &[&str]) -> Command {
    // Not /proc/self/exe: the name of a program is what its error messages begin with.
    let mut c = Command::new(std::env::current_exe().unwrap_or_else(|_| PathBuf::from("/proc/self/exe")));
    c.arg("workload").args(args);
    c
}

/// What a program has said.
pub fn json(text: &str) -> io::Result<Value> {
    serde_json::from_str(text).map_err(|e| io::Error::other(format!("output not understood ({e}): {text}")))
}

/// A figure of it.
pub fn number(v: &Value) -> io::Result<f64> {
    v.as_f64().ok_or_else(|| io::Error::other("output lacks a figure"))
}

/// Microseconds of CPU per operation.
pub fn per_op(cpu: Duration, operations: f64) -> f64 {
    cpu.as_secs_f64() * 1e6 / operations.max(1.0)
}
