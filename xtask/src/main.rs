//! The repository's chores: `cargo xtask CHORE`.

mod again;
mod conformance;
mod debian;
mod executables;
mod fuzzing;
mod junit;
mod lab;
mod model_checking;
mod remote;
mod steer_demo;
mod step;
mod suite;
mod with_dpdk;
mod zstack_demo;

use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::Duration;
use step::{Step, Tally};
use suite::Extent;

const USAGE: &str = "\
cargo xtask CHORE
  test [--quick]            build, then every test; ends with the line 'N passed, N failed'
                            (--quick: without CPython's tests and with a shorter differential run)
  nightly                   the same in hours: models in full, all of CPython's tests, long random runs
  demo [--full | ROW...]    redis, nginx and iperf3, native beside culvert, in two minutes
                            (--full: every row of the benchmark, in ten)
  demo zstack               nginx and redis behind zstackd on a DPDK port, and the engine's HTTP server and perf, beside
                            the kernel's TCP, with clients in another network namespace, in three minutes
  demo steer                `culvert steer`: a plan for an imagined card, an interface that zstackd and the kernel share, a middlebox
                            that is inserted in front of a server and removed again, in under two minutes
  bench [ARGS...]           culvert bench ARGS
  loom                      model-check the shared memory (loom)
  miri                      run the tests of the shared memory and of the engine under Miri
  fuzz [SECONDS [TARGET...]]
                            every parser of bytes that others wrote, each for so long (libFuzzer)
  conformance [--quick] [--remote] [MODULE...]
                            CPython's own network tests, native and under culvert (--remote: with remote peers)
  differ [ARGS...]          the differential tester
  soak [ARGS...]            the soak test
  lab [CASE...]             `culvert steer` on cards with SR-IOV, in a virtual machine that has some, in minutes (divided, killed, refused)
  remote [[--kernel] COMMAND...]
                            a command whose connections to this machine go over a wire, through zstackd (or the kernel):
                            `cargo xtask remote cargo test -p legacy-apps`; without one, all that is tested so
What a chore needs of Debian's packages it installs, after saying so (as root, with apt-get).";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    std::env::set_current_dir(root()).expect("the repository's root");
    let ok = match words.as_slice() {
        ["test"] => suite::test(Extent::Ci),
        ["test", "--quick"] => suite::test(Extent::Quick),
        ["nightly"] => suite::test(Extent::Nightly),
        ["demo", "zstack"] => zstack_demo::demo(),
        ["demo", "steer"] => steer_demo::demo(),
        ["demo", rows @ ..] => demo(rows),
        ["bench", rest @ ..] => bench(rest),
        ["loom"] => loom(),
        ["miri"] => miri(),
        ["fuzz", rest @ ..] => fuzz(rest),
        ["conformance", rest @ ..] => conformance::chore(rest),
        ["differ", rest @ ..] => differ("differ", rest),
        ["lab", rest @ ..] => lab::lab(rest),
        [lab::inside::CHORE, rest @ ..] => lab::inside::chore(rest),
        ["soak", rest @ ..] => differ("soak", rest),
        ["remote"] | ["remote", "--kernel"] => suite::remote(),
        ["remote", rest @ ..] => remote::chore(rest),
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    if ok { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The repository's root.
fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().expect("the repository's root")
}

/// Where cargo puts what it builds.
fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), |t| root().join(t))
}

/// Something in the release directory, unless environment variable `variable` names another.
fn artefact(variable: &str, name: &str) -> PathBuf {
    std::env::var_os(variable).map_or_else(|| target().join("release").join(name), PathBuf::from)
}

fn library() -> PathBuf {
    artefact("CULVERT_LIB", "libculvert.so")
}

fn culvert() -> PathBuf {
    artefact("CULVERT_BIN", "culvert")
}

/// `cargo` as the one that runs this program.
fn cargo() -> Command {
    let mut c = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    // Set by `cargo run` for this program; it must not decide what the nested cargo builds.
    for key in ["CARGO_MANIFEST_DIR", "CARGO_PKG_NAME", "CARGO_PKG_VERSION"] {
        c.env_remove(key);
    }
    c
}

/// Builds the library and the command, unless the environment names others.
fn build(tally: &mut Tally) -> bool {
    if ["CULVERT_LIB", "CULVERT_BIN"].iter().all(|k| std::env::var_os(k).is_some()) {
        println!("== using {} and {}", library().display(), culvert().display());
        return true;
    }
    let mut c = cargo();
    c.args(["build", "--release", "-p", "culvert-shim", "-p", "culvert-cli"]);
    Step::new("build", c, Duration::from_secs(600)).run(tally)
}

fn status(mut command: Command) -> bool {
    match command.status() {
        Ok(status) => status.success(),
        Err(e) => {
            eprintln!("{command:?}: {e}");
            false
        }
    }
}

/// The rows that show what culvert is for, in two minutes.
const DEMO: &[&str] = &["rtt", "rtt-nospin", "redis-p1", "redis-p16", "nginx", "iperf"];

/// `cargo xtask demo [--full | ROW...]`. False if a floor was missed, or nothing came to shared memory.
fn demo(words: &[&str]) -> bool {
    let args: Vec<&str> = match words {
        [] => [DEMO, &["--rounds", "3", "--seconds", "1"]].concat(),
        ["--full"] => vec!["local"],
        rows => rows.to_vec(),
    };
    bench(&[&args[..], &["--check"]].concat()) & (installed(&["redis-p1"]) && show_stat())
}

/// `culvert stat` while redis and its benchmark run under culvert.
fn show_stat() -> bool {
    let port = match std::net::TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()) {
        Ok(addr) => addr.port().to_string(),
        Err(e) => {
            eprintln!("no port for the demonstration: {e}");
            return false;
        }
    };
    let under = |program: &str, args: &[&str]| {
        let mut c = Command::new(culvert());
        c.args(["run", "--", program]).args(args).stdout(std::process::Stdio::null());
        println!("# {}", step::show(&c));
        c.spawn().map(step::Guard)
    };
    let server = under("redis-server", &["--port", &port, "--bind", "127.0.0.1", "--save", ""]);
    let listens = || std::net::TcpStream::connect(("127.0.0.1", port.parse().expect("a port"))).is_ok();
    if !step::poll_until(Duration::from_secs(20), listens) {
        eprintln!("redis-server does not listen");
        return false;
    }
    let load = under("redis-benchmark", &["-p", &port, "-c", "3", "-n", "100000000", "-t", "get", "-q"]);
    let on_shm = || {
        let out = Command::new(culvert()).args(["stat", "--json"]).output();
        out.is_ok_and(|o| String::from_utf8_lossy(&o.stdout).replace(' ', "").contains("\"path\":\"shm\""))
    };
    let seen = step::poll_until(Duration::from_secs(20), on_shm);
    let mut c = Command::new(culvert());
    c.arg("stat");
    println!("# {}\n", step::show(&c));
    let shown = status(c);
    if !seen {
        eprintln!("no connection came to path shm");
    }
    server.is_ok() && load.is_ok() && seen && shown
}

/// Builds, installs what the rows in `args` need, and measures them.
fn bench(args: &[&str]) -> bool {
    // All rows, or some of those with another host.
    let all = args.iter().all(|arg| arg.starts_with("--") || arg.parse::<u32>().is_ok());
    let dpdk = (all || args.iter().any(|arg| arg.starts_with("zstack"))) && !args.contains(&"--list");
    let split = (all || args.iter().any(|arg| arg.starts_with("split"))) && !args.contains(&"--list");
    if !build(&mut Tally::default()) || !installed(args) || dpdk && !with_dpdk::ready() || split && !build_split() {
        return false;
    }
    let mut c = Command::new(culvert());
    c.arg("bench").args(args);
    if dpdk {
        c.env(with_dpdk::ZSTACK.0, with_dpdk::zstack()).env(with_dpdk::ZSTACKD.0, with_dpdk::zstackd());
    }
    println!("\n# {}\n", step::show(&c));
    status(c)
}

/// Builds `culvert-split`, which the rows of its own run.
fn build_split() -> bool {
    let mut c = cargo();
    c.args(["build", "--release", "-p", "culvert-split"]);
    debian::install(debian::BUILD)
        && Step::new("build culvert-split", c, Duration::from_secs(600)).run(&mut Tally::default())
}

/// Installs the programs that `culvert bench ARGS` runs.
fn installed(args: &[&str]) -> bool {
    let mut c = Command::new(culvert());
    c.arg("bench").args(args).args(["--list", "--json"]).stderr(std::process::Stdio::inherit());
    match c.output() {
        Ok(out) if out.status.success() => {
            debian::install(&debian::packages_of(&programs(&String::from_utf8_lossy(&out.stdout))))
        }
        Ok(_) => false,
        Err(e) => {
            eprintln!("{}: {e}", step::show(&c));
            false
        }
    }
}

/// The names in the arrays `"programs": [...]`.
fn programs(json: &str) -> Vec<String> {
    let arrays = json.split("\"programs\": [").skip(1).map(|rest| rest.split(']').next().unwrap_or(""));
    arrays.flat_map(|a| a.split('"').skip(1).step_by(2)).map(str::to_owned).collect()
}

fn loom() -> bool {
    let mut tally = Tally::default();
    let ok = model_checking::loom(&mut tally);
    println!("{tally}");
    ok
}

/// Installs Miri first, if it is missing.
fn miri() -> bool {
    if !model_checking::miri_is_there() {
        println!("Miri is missing: rustup component add --toolchain nightly miri rust-src");
        let mut add = Command::new("rustup");
        add.args(["component", "add", "--toolchain", "nightly", "miri", "rust-src"]);
        if !status(add) || !model_checking::miri_is_there() {
            eprintln!("miri: cannot be installed on this machine; nothing was checked");
            return false;
        }
    }
    let mut tally = Tally::default();
    let ok = model_checking::miri(true, &mut tally);
    println!("{tally}");
    ok
}

fn fuzz(words: &[&str]) -> bool {
    let (seconds, targets) = match words {
        [] => (60, &[][..]),
        [seconds, targets @ ..] => match seconds.parse() {
            Ok(n) => (n, targets),
            Err(_) => {
                eprintln!("{seconds}: not a number of seconds");
                return false;
            }
        },
    };
    let mut tally = Tally::default();
    let ok = fuzzing::run(Duration::from_secs(seconds), targets, &mut tally);
    println!("{tally}");
    ok
}

/// The tester in tests/differ; `soak` is a binary or subcommand of the same package.
fn differ(what: &str, args: &[&str]) -> bool {
    build(&mut Tally::default()) && status(differ_command(what, args))
}

fn differ_command(what: &str, args: &[&str]) -> Command {
    let mut c = cargo();
    c.args(["run", "--quiet", "--release", "-p", "differ", "--bin", what, "--"]).args(args);
    c.env("CULVERT_LIB", library());
    c
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rows_programs_are_found_in_the_list() {
        let list = r#"[{ "id": "rtt", "programs": [], "title": "x" },
            { "id": "redis", "programs": [ "redis-server",
              "redis-benchmark" ], "title": "y" }, { "id": "nginx", "programs": ["nginx"] }]"#;
        assert_eq!(programs(list), ["redis-server", "redis-benchmark", "nginx"]);
        assert_eq!(debian::packages_of(&programs(list)), ["nginx", "redis-server", "redis-tools"]);
    }
}
