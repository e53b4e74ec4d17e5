//! Tests whose peers are remote: those of this machine, run by `tests/remote`.

use crate::step::{Step, Tally};
use crate::suite::Extent;
use crate::{cargo, conformance, culvert, debian, differ_command, library, target};
use std::process::Command;
use std::time::Duration;

/// The tests of legacy-apps, in the order of their files, that have remote peers. The others are about what two programs on one machine
/// have between them, or look at an end before what was sent to it can have come.
const LEGACY: &[&str] = &["nginx", "redis", "servers", "tools", "grpc", "kill9"];

/// Of those, what CI has time for.
const QUICK: &[&str] = &["binary_upgrade_under_load_fails_no_request", "replica_follows", "postgresql_with_a_replica"];

const LIMIT: Duration = Duration::from_secs(15 * 60);

/// `cargo xtask remote [--kernel] COMMAND...`, or without a command all that is tested so.
pub fn chore(words: &[&str]) -> bool {
    let mut tally = Tally::default();
    if !crate::build(&mut tally) || !build(&mut tally) {
        return false;
    }
    if words.iter().any(|w| *w != "--kernel") {
        let mut c = command();
        return crate::status({
            c.args(words);
            c
        });
    }
    tests(Extent::Nightly, &mut tally);
    for failure in &tally.failures {
        println!("failed: {failure}");
    }
    println!("{tally}");
    tally.failed == 0
}

/// Builds the runner and zstackd.
pub fn build(tally: &mut Tally) -> bool {
    if !debian::install(&[debian::BUILD, debian::NETWORK].concat()) {
        tally.fail("remote: packages".into());
        return false;
    }
    let mut c = cargo();
    c.args(["build", "--quiet", "-p", "remote", "-p", "zstackd"]);
    Step::new("build, for remote peers", c, LIMIT).run(tally)
}

/// The runner; the command that it is to run follows.
pub fn command() -> Command {
    let mut c = Command::new(target().join("debug/remote"));
    c.env("CULVERT_LIB", library()).env("CULVERT_BIN", culvert()).env("RUST_BACKTRACE", "1");
    c
}

/// `command` with remote peers: what it is told by its environment, the runner and zstackd are not.
pub fn with(command: &Command) -> Command {
    let mut c = self::command();
    c.arg("env");
    // env(1) takes what is to be unset first.
    for (name, _) in command.get_envs().filter(|(_, value)| value.is_none()) {
        c.arg("-u").arg(name);
    }
    for (name, value) in command.get_envs().filter_map(|(name, value)| Some((name, value?))) {
        let mut word = name.to_owned();
        word.push("=");
        word.push(value);
        c.arg(word);
    }
    c.arg(command.get_program()).args(command.get_args());
    if let Some(dir) = command.get_current_dir() {
        c.current_dir(dir);
    }
    c
}

/// What CI runs, or all of it.
pub fn tests(extent: Extent, tally: &mut Tally) {
    let mut c = command();
    c.args(["cargo", "test", "--quiet", "-p", "legacy-apps", "--no-fail-fast"]);
    for test in LEGACY {
        c.args(["--test", test]);
    }
    c.args(["--", "--test-threads=2"]);
    if extent != Extent::Nightly {
        c.args(QUICK);
    }
    Step::tests("legacy-apps, remote peers", c, if extent == Extent::Nightly { 8 * LIMIT } else { LIMIT }).run(tally);

    let seconds = if extent == Extent::Nightly { "600" } else { "5" };
    let lib = library();
    let lib = lib.to_str().expect("a path");
    let soak = differ_command("soak", &["--seed", "9000", "--seconds", seconds, "--lib", lib]);
    let mut c = command();
    c.arg(soak.get_program()).args(soak.get_args());
    if Step::new("soak, remote peers", c, LIMIT).run(tally) {
        tally.passed += 1;
    }

    let all = extent == Extent::Nightly;
    let modules = if all { conformance::chosen(&[], false) } else { conformance::REMOTE.to_vec() };
    if extent != Extent::Quick {
        conformance::run(&modules, conformance::Extent { quick: !all, remote: true }, tally);
    }
}
