//! The repository's chores: `cargo xtask CHORE`.

mod conformance;
mod debian;
mod junit;
mod step;
mod suite;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;
use step::{Step, Tally};

const USAGE: &str = "\
cargo xtask CHORE
  test [--quick]            build, then every test; ends with the line 'N passed, N failed'
                            (--quick: without CPython's tests and with a shorter differential run)
  demo [ROW...]             redis, nginx, iperf3 and others, native beside culvert
  bench [ARGS...]           culvert bench ARGS
  loom                      model-check the shared memory (loom)
  miri                      run the shared memory's tests under Miri
  conformance [--quick] [MODULE...]
                            CPython's own network tests, native and under culvert
  differ [ARGS...]          the differential tester
  soak [ARGS...]            the soak test
What a chore needs of Debian's packages it installs, after saying so (as root, with apt-get).";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    std::env::set_current_dir(root()).expect("the repository's root");
    let ok = match words.as_slice() {
        ["test"] => suite::test(false),
        ["test", "--quick"] => suite::test(true),
        ["demo", rows @ ..] => demo(rows),
        ["bench", rest @ ..] => bench(rest),
        ["loom"] => loom(),
        ["miri"] => miri(),
        ["conformance", rest @ ..] => conformance::chore(rest),
        ["differ", rest @ ..] => differ("differ", rest),
        ["soak", rest @ ..] => differ("soak", rest),
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
    c.args(["build", "--release", "-p", "culvert-shim", "-p", "culvert"]);
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

fn demo(rows: &[&str]) -> bool {
    if !debian::install(debian::PROGRAMS) || !build(&mut Tally::default()) {
        return false;
    }
    let mut c = Command::new(culvert());
    c.arg("bench").args(rows);
    println!("\n# {}\n", step::show(&c));
    status(c) & show_stat()
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

fn bench(args: &[&str]) -> bool {
    if !debian::install(debian::PROGRAMS) || !build(&mut Tally::default()) {
        return false;
    }
    let mut c = Command::new(culvert());
    c.arg("bench").args(args);
    status(c)
}

/// The model-checked tests are integration tests of `shmring` whose names begin with `loom`.
fn loom() -> bool {
    let mut tally = Tally::default();
    let mut c = cargo();
    c.args(["test", "-p", "shmring", "--release", "--test", "loom*"]);
    let flags = std::env::var("RUSTFLAGS").unwrap_or_default();
    c.env("RUSTFLAGS", format!("{flags} --cfg loom")).env("CARGO_TARGET_DIR", target().join("loom"));
    // Enough to find what these algorithms can get wrong (the loom manual advises 2 or 3).
    if std::env::var_os("LOOM_MAX_PREEMPTIONS").is_none() {
        c.env("LOOM_MAX_PREEMPTIONS", "3");
    }
    let ok = Step::new("loom", c, Duration::from_secs(3 * 3600)).run(&mut tally);
    if tally.passed == 0 {
        eprintln!("loom: no test ran");
    }
    println!("{tally}");
    ok && tally.passed > 0
}

fn miri() -> bool {
    let probe = |c: &mut Command| c.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()).status();
    // `cargo +nightly` is rustup's; the cargo that runs this program may be the toolchain's own.
    let miri = || {
        let mut c = Command::new("rustup");
        c.args(["run", "nightly", "cargo", "miri"]);
        c
    };
    let there = |mut c: Command| probe(c.arg("--version")).is_ok_and(|s| s.success());
    if !there(miri()) {
        println!("Miri is missing: rustup component add --toolchain nightly miri rust-src");
        let mut add = Command::new("rustup");
        add.args(["component", "add", "--toolchain", "nightly", "miri", "rust-src"]);
        if !status(add) || !there(miri()) {
            eprintln!("miri: cannot be installed on this machine; nothing was checked");
            return false;
        }
    }
    let mut tally = Tally::default();
    let mut c = miri();
    c.args(["test", "-p", "shmring"]).env("CARGO_TARGET_DIR", target().join("miri"));
    if std::env::var_os("MIRIFLAGS").is_none() {
        c.env("MIRIFLAGS", "-Zmiri-disable-isolation");
    }
    let ok = Step::new("miri", c, Duration::from_secs(3 * 3600)).run(&mut tally);
    println!("{tally}");
    ok && tally.passed > 0
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

/// Does the repository have this file?
fn has(path: impl AsRef<Path>) -> bool {
    root().join(path).exists()
}
