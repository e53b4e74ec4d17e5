//! The fuzzer in `tests/fuzz`, target by target. What it learned is kept in `target/fuzz/corpus` and used again; what it begins
//! with, where random bytes would not lead it far, is in `tests/fuzz/seeds`.

use crate::step::{Step, Tally};
use crate::{cargo, target};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// What LLVM has to add to the parsers for libFuzzer to see which way they go. Stable rustc knows these passes as well as
/// a nightly one; only cargo-fuzz does not ask for them there.
const INSTRUMENT: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares -Cdebug-assertions -Ccodegen-units=1";

const TARGETS: &[&str] = &[
    "message",
    "registry",
    "diag",
    "family",
    "elf",
    "proc-net",
    "wire-ethernet",
    "wire-arp",
    "wire-ipv4",
    "wire-ipv6",
    "wire-tcp",
    "wire-udp",
    "wire-icmpv4",
    "wire-icmpv6",
    "wire-frame",
    "wire-checksum",
    "net-receive",
    "engine-frames",
    "engine-segments",
    "engine-bridge",
];

/// Fuzzes `targets`, or all, for `time` each. A target that found nothing counts as one test passed.
pub fn run(time: Duration, targets: &[&str], tally: &mut Tally) -> bool {
    if let Some(unknown) = targets.iter().find(|t| !TARGETS.contains(t)) {
        eprintln!("{unknown}: not one of {}", TARGETS.join(" "));
        return false;
    }
    let dir = target().join("fuzz");
    let mut build = cargo();
    build.args(["build", "--release", "-p", "fuzz", "--target", "x86_64-unknown-linux-gnu"]);
    // With a target named, the flags are not for build scripts and macros.
    build.env("RUSTFLAGS", INSTRUMENT).env("CARGO_TARGET_DIR", &dir);
    // Built in half the time, and as fast.
    build.env("CARGO_PROFILE_RELEASE_LTO", "off");
    if !Step::new("fuzz: build", build, Duration::from_secs(900)).run(tally) {
        return false;
    }
    let chosen = if targets.is_empty() { TARGETS } else { targets };
    let mut ok = true;
    for name in chosen {
        let (corpus, failures) = (dir.join("corpus").join(name), dir.join(name));
        for made in [&corpus, &failures] {
            std::fs::create_dir_all(made).expect("a directory of the fuzzer's");
        }
        let mut c = Command::new("env");
        c.arg(format!("FUZZ_TARGET={name}")).arg(dir.join("x86_64-unknown-linux-gnu/release/fuzz")).arg(&corpus);
        let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fuzz/seeds").join(name);
        if seeds.is_dir() {
            c.arg(seeds);
        }
        c.arg(format!("-max_total_time={}", time.as_secs())).args(["-timeout=10", "-max_len=8192"]);
        // The input that fails is kept here; given as the only argument, it is run again.
        c.arg(format!("-artifact_prefix={}/", failures.display()));
        let log = failures.join("log");
        c.stderr(std::fs::File::create(&log).expect("a file for the fuzzer's output"));
        if Step::new(format!("fuzz: {name}"), c, 2 * time + Duration::from_secs(120)).run(tally) {
            tally.passed += 1;
        } else {
            let text = String::from_utf8_lossy(&std::fs::read(&log).unwrap_or_default()).into_owned();
            let lines: Vec<&str> = text.lines().collect();
            println!("{}", lines[lines.len().saturating_sub(40)..].join("\n"));
            ok = false;
        }
    }
    ok
}
