//! `cargo xtask test`: everything that can be tested on one machine in bounded time; `cargo xtask nightly`: the same
//! without the bounds that keep it short.

use crate::step::{self, Step, Tally};
use crate::{
    again, build, cargo, conformance, culvert, debian, differ_command, executables, fuzzing, library, model_checking,
    remote, target,
};
use std::process::Command;
use std::time::{Duration, Instant};

const MINUTE: Duration = Duration::from_secs(60);
/// A step is ended after this long. It is there for what hangs: a machine with thirty neighbours is some ten times slower
/// than an idle one.
const LIMIT: Duration = Duration::from_secs(15 * 60);

/// Steps that took so long are listed at the end.
const WORTH_TELLING: Duration = Duration::from_secs(10);

/// The tests of legacy-apps, in the order of their files, that have remote peers. The others are about what two programs on one machine
/// have between them, or look at an end before what was sent to it can have come.
const LEGACY_REMOTE: &[&str] = &[
    "nginx",
    "redis",
    "servers",
    "tools",
    "grpc",
    "kill9",
    "handover",
    "bypass",
    "alive",
    "stacks",
    "spawn",
    "threads",
    "containers",
    "users",
    "privileges",
    "reasons",
    "intents",
    "loading",
    "networks",
];

/// Of those, what CI has time for.
const QUICK_REMOTE: &[&str] = &[
    "binary_upgrade_under_load_fails_no_request",
    "replica_follows",
    "postgresql_with_a_replica",
    "node_cluster_hands_its_listener",
    "the_first_sockets_on_the_shortest_stack",
];

/// How much is run.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// Less than what CI runs.
    Quick,
    /// What CI runs.
    Ci,
    /// Hours: the models in full, every module of the conformance tests, long random runs.
    Nightly,
}

/// Packages whose tests have a step of their own, or that have none: `culvert-shim` and `culvert-signals-probe` are
/// libraries to be preloaded, which a test program cannot contain.
const OWN_STEP: &[&str] =
    &["culvert-shim", "culvert-signals-probe", "fuzz", "zstack-budget", "zstack-dpdk-sys", "zstack-dpdk"];

/// The test programs that take longest, and begin first.
const LONG: &[&str] = &["shmring switch_model", "sim mutants"];

/// What is built in addition where DPDK is installed.
const WITH_DPDK: &str = "zstack-tool/dpdk,zstackd/dpdk";

/// Builds and runs all tests; true if none failed.
pub fn test(extent: Extent) -> bool {
    let begin = Instant::now();
    let mut tally = Tally::default();
    if !debian::install(&[debian::PROGRAMS, debian::BUILD, debian::NETWORK].concat()) {
        tally.fail("packages".into());
    }
    text(&mut tally);
    if build(&mut tally) {
        let fuzzing = Duration::from_secs(if extent == Extent::Nightly { 600 } else { 4 });
        let mut programs = executables::build(tests(extent), 2 * limit(extent), &mut tally);
        programs.sort_by_key(|program| LONG.iter().position(|name| *name == program.name).unwrap_or(LONG.len()));
        let programs = std::sync::Arc::new(programs);
        let parts: Vec<_> = (0..programs.len())
            .map(|i| -> step::Part {
                let programs = std::sync::Arc::clone(&programs);
                Box::new(move |tally| {
                    let mut c = programs[i].command();
                    environment(&mut c, extent);
                    Step::new(&programs[i].name, c, limit(extent)).run(tally);
                })
            })
            .collect();
        // Each keeps a core busy; in the order of how long they take. The programs wait for most of their time.
        let busy: Vec<step::Part> = vec![
            Box::new(dpdk),
            Box::new(budgets),
            Box::new(move |tally| {
                fuzzing::run(fuzzing, &[], tally);
            }),
            Box::new(move |tally| {
                model_checking::miri(extent == Extent::Nightly, tally);
            }),
            Box::new(|tally| {
                model_checking::loom(tally);
            }),
            Box::new(move |tally| documentation(extent, tally)),
        ];
        let both: Vec<step::Part> = vec![
            Box::new(|tally| step::side_by_side(2, tally, busy)),
            Box::new(|tally| step::side_by_side(3, tally, parts)),
        ];
        step::side_by_side(2, &mut tally, both);
        let last: Vec<step::Part> = vec![
            Box::new(move |tally| {
                if extent != Extent::Quick {
                    let quick = extent == Extent::Ci;
                    let chosen = conformance::chosen(&[], quick);
                    conformance::run(&chosen, conformance::Extent { quick, remote: false }, tally);
                }
            }),
            Box::new(move |tally| {
                random(extent, tally);
                if remote::build(tally) {
                    with_remote_peers(extent, tally);
                }
            }),
        ];
        step::side_by_side(2, &mut tally, last);
        again::unsteady(&programs, |c| environment(c, extent), limit(extent), &mut tally);
    }
    println!("\n{:>5.0} s in all", begin.elapsed().as_secs_f32());
    for (name, time) in tally.times.iter().filter(|(_, time)| *time >= WORTH_TELLING) {
        println!("{:>5.0} s {name}", time.as_secs_f32());
    }
    for test in &tally.unsteady {
        println!("unsteady, find out why: {test}");
    }
    for failure in &tally.failures {
        println!("failed: {failure}");
    }
    println!("{tally}");
    tally.failed == 0
}

fn limit(extent: Extent) -> Duration {
    if extent == Extent::Nightly { 16 * LIMIT } else { LIMIT }
}

/// What needs no program to run: formatting and lints.
fn text(tally: &mut Tally) {
    let step = |name: &str, words: &[&str], tally: &mut Tally| {
        let mut c = cargo();
        c.args(words);
        if Step::new(name, c, LIMIT).run(tally) {
            tally.passed += 1;
        }
    };
    step("fmt", &["fmt", "--check"], tally);
    let lints = ["clippy", "--quiet", "--workspace", "--features", WITH_DPDK, "--all-targets", "--", "-D", "warnings"];
    step("clippy", &lints, tally);
}

/// The tests of all packages that have no step of their own, by one command: cargo would build what they depend on again for each, with
/// the features that this one wants.
fn tests(extent: Extent) -> Command {
    let mut c = cargo();
    c.args(["test", "--workspace"]);
    c.args(OWN_STEP.iter().flat_map(|package| ["--exclude", package]));
    if extent == Extent::Nightly {
        c.arg("--release");
    }
    c
}

/// The examples in the documentation.
fn documentation(extent: Extent, tally: &mut Tally) {
    let mut c = tests(extent);
    c.args(["--quiet", "--doc"]);
    Step::tests("documentation", c, LIMIT).run(tally);
}

/// What the test programs are told.
fn environment(c: &mut Command, extent: Extent) {
    c.env("CULVERT_LIB", library()).env("CULVERT_BIN", culvert());
    // A failed assertion says where it was called from.
    c.env("RUST_BACKTRACE", "1");
    // Many wait for others. Of those that need the cores some wait for each other.
    c.env("RUST_TEST_THREADS", "3");
    if extent == Extent::Nightly {
        c.env("CULVERT_MODEL", "full");
    }
    // The random networks of the Z-stack's simulator, the same ones each time.
    c.env(
        "ZSTACK_SEEDS",
        match extent {
            Extent::Quick => "1000",
            Extent::Ci => "10000",
            Extent::Nightly => "1000000",
        },
    );
    // Mistakes in the engine, which they and the traces must notice.
    match extent {
        Extent::Quick => {}
        Extent::Ci => drop(c.env("ZSTACK_MUTANTS", "500")),
        Extent::Nightly => drop(c.env("ZSTACK_MUTANTS", "20000")),
    }
    // zstackd attacked: programs and zstackd killed, stopped for a minute, flooded; many connections.
    if extent == Extent::Nightly {
        for (what, number) in [
            ("NATIVE", 1000),
            ("KILLS", 5000),
            ("DAEMON_KILLS", 200),
            ("STOPPED", 60),
            ("STOPS", 500),
            ("SCRIBBLES", 200),
            ("LIES", 5000),
            ("BRIEF", 1000),
            ("THREADS", 300),
            ("FLOOD_MS", 1000),
            ("FLOOD_ROUNDS", 5),
            ("PROGRAMS", 200),
            ("CONNECTIONS_EACH", 50),
            ("IDLE_MS", 20_000),
        ] {
            c.env(format!("STORM_{what}"), number.to_string());
        }
    }
    if extent == Extent::Nightly {
        // Programs of two hosts: with one end alone under culvert, too, and with a copy of a gigabyte.
        c.env("ZSTACKD_ENDS", "all").env("ZSTACKD_COPY_MB", "1024");
        // Ten million mixed calls on the simulated kernel, and as many on the real one; a thousand receivers that are killed with chunks in hand.
        c.env("ENGINE_CALLS", "10000000").env("CULVERT_API_CALLS", "2500000");
        c.env("CULVERT_API_KILLS", "1500").env("CULVERT_API_BACK_MS", "100");
    }
}

/// Instructions a segment, counted by valgrind, which knows x86-64-v2 but no newer machine.
fn budgets(tally: &mut Tally) {
    let mut c = cargo();
    c.args(["test", "--quiet", "--profile", "budget", "-p", "zstack-budget"]);
    c.env("RUSTFLAGS", "-C target-cpu=x86-64-v2").env("CARGO_TARGET_DIR", target().join("budgets"));
    Step::tests("zstack-budget", c, LIMIT).run(tally);
}

/// The engine on DPDK's virtual devices, which needs DPDK from Debian. Built apart: the other tests' `zstack` has no DPDK in it.
fn dpdk(tally: &mut Tally) {
    let mut step = |name: &str, words: &[&str]| {
        let mut c = cargo();
        c.args(["test", "--quiet", "--no-fail-fast"]).args(words).env("CARGO_TARGET_DIR", target().join("dpdk"));
        // Tests of zstackd that have another port else.
        c.env("ZSTACKD_PORT", "af_packet");
        Step::tests(name, c, LIMIT).run(tally);
    };
    // With the same packages each time: cargo would build what they depend on again for others, with the features that these want.
    let all =
        ["-p", "zstack-dpdk-sys", "-p", "zstack-dpdk", "-p", "zstack-tool", "-p", "zstackd", "--features", WITH_DPDK];
    step("DPDK", &[&all[..], &["--lib", "--test", "tap", "--test", "queues", "--test", "dpdk"]].concat());
    // Of the tests of programs one goes through all layers; of the others, which do the same on two kernels, one is about errors and one
    // about bytes.
    let some = ["--test", "programs", "--test", "route", "--test", "workers", "--"];
    let some = [&some[..], &["redis", "ends_are_told", "bytes_arrive", "every_byte_arrives", "wrong_worker", "check_"]]
        .concat();
    step("programs over DPDK", &[&all[..], &some].concat());
}

/// The tests that have remote peers: what CI runs of them, or all.
fn with_remote_peers(extent: Extent, tally: &mut Tally) {
    let mut c = remote::command();
    c.args(["cargo", "test", "--quiet", "-p", "legacy-apps", "--no-fail-fast"]);
    for test in LEGACY_REMOTE {
        c.args(["--test", test]);
    }
    c.args(["--", "--test-threads=2"]);
    if extent != Extent::Nightly {
        c.args(QUICK_REMOTE);
    }
    Step::tests("legacy-apps, remote peers", c, if extent == Extent::Nightly { 8 * LIMIT } else { LIMIT }).run(tally);

    let seconds = if extent == Extent::Nightly { "600" } else { "5" };
    let lib = library();
    let lib = lib.to_str().expect("a path");
    let soak = differ_command("soak", &["--seed", "9000", "--seconds", seconds, "--lib", lib]);
    let mut c = remote::command();
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

/// `cargo xtask remote` without a command: all that has remote peers.
pub fn remote() -> bool {
    let mut tally = Tally::default();
    if !build(&mut tally) || !remote::build(&mut tally) {
        return false;
    }
    with_remote_peers(Extent::Nightly, &mut tally);
    for failure in &tally.failures {
        println!("failed: {failure}");
    }
    println!("{tally}");
    tally.failed == 0
}

/// Random call sequences and random streams.
fn random(extent: Extent, tally: &mut Tally) {
    // CI runs the same scenarios each time: what holds must not break. New ones are for open-ended runs.
    let seed = match extent {
        Extent::Nightly => {
            std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(1, |d| d.as_secs())
        }
        _ => 9000,
    }
    .to_string();
    let amount: &[&str] = match extent {
        Extent::Quick => &["--count", "20", "--shrink", "0"],
        Extent::Ci => &["--count", "60", "--shrink", "0"],
        Extent::Nightly => &["--seconds", "3600"],
    };
    let mut step = |name: &str, words: &[&str]| {
        let mut c = differ_command(name, words);
        c.stderr(std::process::Stdio::inherit());
        if Step::new(name, c, 70 * MINUTE).run(tally) {
            tally.passed += 1;
        }
    };
    step("differ", &[&["run", "--seed", &seed], amount].concat());
    if extent == Extent::Nightly {
        step("soak", &["--seed", &seed, "--seconds", "1800"]);
    }
}
