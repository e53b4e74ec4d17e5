//! loom, and Miri where the toolchain has it.

use crate::step::{Step, Tally};
use crate::{cargo, target};
use std::process::{Command, Stdio};
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(3 * 3600);

/// The tests of `shmring` and `culvert-pool` that run under loom. True if they ran and passed.
pub fn loom(tally: &mut Tally) -> bool {
    let ring = under_loom("loom", &["-p", "shmring", "--test", "loom*"], tally);
    under_loom("loom pool", &["-p", "culvert-pool", "--lib"], tally) & ring
}

fn under_loom(name: &str, what: &[&str], tally: &mut Tally) -> bool {
    let mut c = cargo();
    c.args(["test", "--release"]).args(what);
    let flags = std::env::var("RUSTFLAGS").unwrap_or_default();
    c.env("RUSTFLAGS", format!("{flags} --cfg loom")).env("CARGO_TARGET_DIR", target().join("loom"));
    // Enough to find what these algorithms can get wrong (the loom manual advises 2 or 3).
    if std::env::var_os("LOOM_MAX_PREEMPTIONS").is_none() {
        c.env("LOOM_MAX_PREEMPTIONS", "3");
    }
    Step::tests(name, c, LIMIT).run(tally)
}

/// Whether a toolchain with Miri is installed.
pub fn miri_is_there() -> bool {
    miri_command().arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|s| s.success())
}

/// Tests of the engine, by parts of their names, that take minutes each under Miri.
const SLOW: [&str; 11] = [
    "many::",
    "shortage::",
    "signals::",
    "readiness::",
    "forks::",
    "shared::",
    "reference::",
    "waiting::",
    "leaving::",
    "killed",
    "before_it_reset",
];

/// The tests of `shmring` and of `culvert-engine` under Miri; `all`: also those that take minutes. Where no toolchain has it, says
/// so: that is no failure.
pub fn miri(all: bool, tally: &mut Tally) -> bool {
    if !miri_is_there() {
        println!("\n== miri: NOT RUN: no nightly toolchain with the component miri is installed");
        return true;
    }
    let mut step = |name: &str, what: &[&str]| {
        let mut c = miri_command();
        c.arg("test").args(what).env("CARGO_TARGET_DIR", target().join("miri"));
        if std::env::var_os("MIRIFLAGS").is_none() {
            c.env("MIRIFLAGS", "-Zmiri-disable-isolation");
        }
        Step::tests(name, c, LIMIT).run(tally)
    };
    let ring = step("miri", &["-p", "shmring", "--lib", "--test", "hostile"]);
    let mut words = vec!["-p", "culvert-engine", "--lib"];
    if !all {
        words.push("--");
        words.extend(SLOW.iter().flat_map(|part| ["--skip", part]));
    }
    let engine = step("miri engine", &words);
    ring && engine
}

/// `cargo +nightly` is rustup's; the cargo that runs this program may be the toolchain's own.
fn miri_command() -> Command {
    let mut c = Command::new("rustup");
    c.args(["run", "nightly", "cargo", "miri"]);
    c
}
