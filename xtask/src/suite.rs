//! `cargo xtask test`: everything that can be tested on one machine in bounded time.

use crate::step::{Step, Tally};
use crate::{build, cargo, conformance, culvert, debian, differ_command, has, library, root};
use std::process::Command;
use std::time::{Duration, Instant};

const MINUTE: Duration = Duration::from_secs(60);

/// Packages whose tests have a step of their own, or that have none.
const OWN_STEP: &[&str] = &["legacy-apps", "differ", "culvert-shim", "culvert-signals-probe"];

/// Builds and runs all tests; true if none failed.
pub fn test(quick: bool) -> bool {
    let begin = Instant::now();
    let mut tally = Tally::default();
    if !debian::install(debian::PROGRAMS) {
        tally.fail("packages".into());
    }
    if build(&mut tally) {
        for package in packages() {
            if !OWN_STEP.contains(&package.as_str()) {
                Step::new(&package, test_of(&package), 4 * MINUTE).run(&mut tally);
            }
        }
        if has("shim/tests") {
            Step::new("shim", test_of("culvert-shim"), 4 * MINUTE).run(&mut tally);
        }
        legacy(&mut tally);
        if has("tests/differ") {
            // The same scenarios each time: what holds must not break. New ones are for open-ended runs by hand.
            let count = if quick { "20" } else { "60" };
            let mut c = differ_command("differ", &["run", "--seed", "9000", "--count", count, "--shrink", "0"]);
            c.stderr(std::process::Stdio::inherit());
            if Step::new("differ", c, 5 * MINUTE).run(&mut tally) {
                tally.passed += 1;
            }
        }
        if !quick {
            conformance::run(&[], true, &mut tally);
        }
    }
    println!("\n{:.0} s", begin.elapsed().as_secs_f32());
    for failure in &tally.failures {
        println!("failed: {failure}");
    }
    println!("{tally}");
    tally.failed == 0
}

/// The unmodified programs: one test program after another, two tests at a time.
fn legacy(tally: &mut Tally) {
    let mut c = test_of("legacy-apps");
    c.args(["--no-fail-fast", "--", "--test-threads=2"]);
    Step::new("legacy-apps", c, 13 * MINUTE).run(tally);
}

fn test_of(package: &str) -> Command {
    let mut c = cargo();
    c.args(["test", "-p", package]).env("CULVERT_LIB", library()).env("CULVERT_BIN", culvert());
    c
}

/// Names of the workspace's packages, in the order of the root manifest.
fn packages() -> Vec<String> {
    let manifest = std::fs::read_to_string(root().join("Cargo.toml")).expect("Cargo.toml");
    let members = manifest.split_once("\nmembers").and_then(|(_, rest)| rest.split(']').next()).expect("members");
    members.split('"').skip(1).step_by(2).map(package_name).collect()
}

fn package_name(member: &str) -> String {
    let path = root().join(member).join("Cargo.toml");
    let manifest = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let line = manifest.lines().find_map(|l| l.strip_prefix("name = \"")).expect("a name");
    line.trim_end_matches('"').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_workspaces_packages() {
        let all = packages();
        for known in ["shmring", "culvert-shim", "culvert", "xtask", "legacy-apps"] {
            assert!(all.iter().any(|p| p == known), "{known} is not in {all:?}");
        }
    }
}
