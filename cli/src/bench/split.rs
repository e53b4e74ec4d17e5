//! What the XDP program of `culvert-split` costs a packet: rounds of BPF_PROG_TEST_RUN, which `culvert-split cost` makes.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use super::procs::{Side, find_program};
use super::row::{BLANK, Equipment, Floor, Row, Sample, Setup};

/// What must hold, in nanoseconds; its CPU is what is measured.
const MOST: Floor = Floor::AtMost(100.0, f64::INFINITY);

/// In the order of the table.
pub const ROWS: &[Row] = &[
    Row {
        id: "split-tcp",
        title: "XDP split: a TCP packet under 256 rules",
        run: |s, side| cost(s, side, &[]),
        ..COST
    },
    Row {
        id: "split-vlan",
        title: "XDP split: a TCP packet in a VLAN under 256 rules",
        run: |s, side| cost(s, side, &["--tagged"]),
        ..COST
    },
    Row {
        id: "split-udp",
        title: "XDP split: a UDP packet under 256 rules",
        run: |s, side| cost(s, side, &["--udp"]),
        ..COST
    },
];

const COST: Row = Row {
    beside: Some("no rules"),
    unit: "ns",
    higher_is_better: false,
    floor: MOST,
    operation: "packet",
    equipment: &[Equipment::Root, Equipment::Split],
    ..BLANK
};

/// The program, beside this one or on PATH.
pub fn program() -> io::Result<Command> {
    let beside = || Some(std::env::current_exe().ok()?.parent()?.join("culvert-split"));
    let path: Option<PathBuf> = beside().filter(|p| p.is_file()).or_else(|| find_program("culvert-split"));
    path.map(Command::new).ok_or_else(|| {
        io::Error::other(
            "culvert-split was not found: `cargo build --release -p culvert-split`, and put it beside culvert",
        )
    })
}

fn cost(s: &Setup, side: Side, more: &[&str]) -> io::Result<Sample> {
    let mut command = program()?;
    command.args(["cost", if side == Side::Kernel { "0" } else { "256" }]).args(more);
    // Under no library: it makes no connection.
    let done = s.start(command, Side::Kernel)?.finish(Duration::ZERO)?;
    let text = done.output.trim();
    let value = text.parse().map_err(|e| io::Error::other(format!("culvert-split cost: {e}: {text}")))?;
    Ok(Sample { value, cpu: value / 1000.0, details: BTreeMap::new() })
}
