//! How many instructions a segment costs, counted by callgrind: the same on every machine that runs the same code, so that a
//! test may fail by it.
//!
//! A [`Scenario`] is built and warmed up outside the count; only its [`work`](Scenario::work) is counted, round by round. The
//! binary runs one scenario, under valgrind or not:
//!
//! ```text
//! export RUSTFLAGS="-C target-cpu=x86-64-v2"   # what valgrind knows, and every server has
//! cargo build --profile budget -p zstack-budget
//! target/budget/zstack-budget count            # every scenario
//! target/budget/zstack-budget count parse      # one
//! target/budget/zstack-budget flood            # the speed of a transfer beside floods, by the clock
//! ```
//!
//! Figures of other profiles say nothing: the tests that compare them with a budget (`tests/budgets.rs`) are left out there.
//! A scenario of its own is a file that implements [`Scenario`], and a line in [`SCENARIOS`].

use std::path::Path;
use std::process::Command;

mod checksum;
mod engine;
pub mod flood;
mod hostile;
mod net;
mod parse;
mod peer;
mod smol;
mod tcp;

use peer::PAYLOAD;

/// Something that is done again and again.
pub trait Scenario {
    /// How many segments a round of work is about.
    fn segments(&self) -> u32;

    /// How many rounds are run before the first that is counted, and how many are counted.
    fn rounds(&self) -> (u32, u32) {
        (WARM_UP, ROUNDS)
    }

    /// What a round needs and is not counted: packets built, acknowledgements brought.
    fn prepare(&mut self) {}

    /// A round.
    fn work(&mut self);
}

/// How a scenario is built.
pub type Build = fn() -> Box<dyn Scenario>;

/// Every scenario by its name.
pub const SCENARIOS: &[(&str, Build)] = &[
    ("parse", parse::timestamps),
    ("parse-plain", parse::plain),
    ("parse-v6", parse::v6),
    ("emit", parse::emit),
    ("net-receive", net::receive_ip),
    ("net-receive-v6", net::receive_ip_v6),
    ("net-receive-ethernet", net::receive_ethernet),
    ("net-head", net::head_ip),
    ("net-head-ethernet", net::head_ethernet),
    ("net-head-ethernet-v6", net::head_ethernet_v6),
    ("tcp-receive", tcp::receive),
    ("tcp-send", tcp::send),
    ("tcp-acknowledged", tcp::acknowledged),
    ("checksum", checksum::aligned),
    ("checksum-odd", checksum::odd),
    ("receive-1", engine::receive::<1, 1>),
    ("receive-1-pair", engine::receive::<1, 2>),
    ("receive-1-batch", engine::receive::<1, 16>),
    ("receive-1000", engine::receive::<1000, 1>),
    ("receive-1000-pair", engine::receive::<1000, 2>),
    ("receive-100000-pair", engine::receive::<100_000, 2>),
    ("receive-100000-pair-random", engine::receive_random::<100_000>),
    ("ack-1", engine::acknowledged::<1>),
    ("ack-1-batch", engine::acknowledged::<16>),
    ("send-1", engine::send::<1, 1>),
    ("send-1-batch", engine::send::<1, 16>),
    ("send-1-apart", engine::send_apart::<1>),
    ("send-32-apart", engine::send_apart::<32>),
    ("send-1000", engine::send::<1000, 1>),
    ("send-100000", engine::send::<100_000, 1>),
    ("send-100000-random", engine::send_random::<100_000>),
    ("hostile-syns", hostile::syns),
    ("hostile-acks", hostile::acks),
    ("hostile-resets", hostile::resets),
    ("hostile-guesses", hostile::guesses),
    ("hostile-holes", hostile::holes),
    ("hostile-sacks", hostile::sacks),
    ("hostile-undone", hostile::undone),
    ("hostile-divided", hostile::divided),
    ("beside-nothing", hostile::clean),
    ("beside-syns", hostile::beside::<0>),
    ("beside-acks", hostile::beside::<1>),
    ("beside-rst-guesses", hostile::beside::<2>),
    ("beside-syn-guesses", hostile::beside::<3>),
    ("beside-data-guesses", hostile::beside::<4>),
    ("smoltcp-receive-1", smol::receive::<1, 1>),
    ("smoltcp-receive-1-pair", smol::receive::<1, 2>),
    ("smoltcp-receive-1-batch", smol::receive::<1, 16>),
    ("smoltcp-receive-1000", smol::receive::<1000, 1>),
    ("smoltcp-receive-1000-pair", smol::receive::<1000, 2>),
    ("smoltcp-receive-1000-batch", smol::receive::<1000, 16>),
    ("smoltcp-send-1", smol::send::<1, 1>),
    ("smoltcp-send-1-batch", smol::send::<1, 16>),
    ("smoltcp-send-1000", smol::send::<1000, 1>),
    ("smoltcp-send-1000-batch", smol::send::<1000, 16>),
];

/// Rounds before the first that is counted.
const WARM_UP: u32 = 20;

/// Rounds that are counted.
const ROUNDS: u32 = 50;

/// Runs a scenario, and says how many segments were counted; `None`: there is none of this name.
pub fn run(name: &str) -> Option<u32> {
    let (_, build) = SCENARIOS.iter().find(|s| s.0 == name)?;
    let mut scenario = build();
    let (warm_up, rounds) = scenario.rounds();
    for _ in 0..warm_up {
        scenario.prepare();
        scenario.work();
    }
    for _ in 0..rounds {
        scenario.prepare();
        zstack_budget_counted(&mut *scenario);
    }
    Some(rounds * scenario.segments())
}

/// What callgrind counts: it knows the function by its name.
#[inline(never)]
fn zstack_budget_counted(scenario: &mut dyn Scenario) {
    scenario.work();
    // A call in the last place would be a jump, and the function's end not seen.
    std::hint::black_box(());
}

/// The instructions of one segment, counted by valgrind over `binary`, which is this crate's.
///
/// # Errors
/// The text says what failed.
pub fn count(binary: &Path, name: &str) -> Result<f64, String> {
    if !SCENARIOS.iter().any(|s| s.0 == name) {
        return Err(format!("{name}: no such scenario; `list` names them"));
    }
    let out = std::env::temp_dir().join(format!("zstack-budget.{}.{name}", std::process::id()));
    let run = Command::new("valgrind")
        .args(["--tool=callgrind", "--toggle-collect=*zstack_budget_counted*"])
        .arg(format!("--callgrind-out-file={}", out.display()))
        .arg(binary)
        .args(["run", name])
        .output()
        .map_err(|e| format!("valgrind cannot be run: {e}; install the package valgrind"))?;
    let text = std::fs::read_to_string(&out);
    let _ = std::fs::remove_file(&out);
    let said = String::from_utf8_lossy(&run.stderr).into_owned();
    if !run.status.success() {
        return Err(format!("valgrind over {}: {}\n{said}", binary.display(), run.status));
    }
    let text = text.map_err(|e| format!("{}: {e}\n{said}", out.display()))?;
    let total = text.lines().find_map(|line| line.strip_prefix("totals: ")?.trim().parse::<u64>().ok());
    // The program says how many segments those were.
    let segments = String::from_utf8_lossy(&run.stdout).trim().parse::<f64>();
    match (total, segments) {
        (Some(total), Ok(segments)) if total > 0 => Ok(total as f64 / segments),
        _ => Err(format!("callgrind counted nothing\n{said}")),
    }
}
