//! Runs unmodified programs natively and under culvert and compares what they did.
//!
//! A test is a *scenario*: a function that starts servers and clients in a [`Lab`] and returns what it
//! [`Seen`]. [`compare`] runs it once natively and once per [`Mode`] asked for, and fails on any
//! difference. What a scenario records must therefore be the same in every native run: contents,
//! checksums, exit codes, counts; never times or rates.
//!
//! Environment:
//! - `CULVERT_LIB`, `CULVERT_BIN`: the library and the command, else those of `target/release`;
//! - `LEGACY_NATIVE_ONLY=1`: nothing is preloaded (checks the tests themselves);
//! - `CULVERT_PATH`, `CULVERT_SPIN`, `CULVERT_RING`, `CULVERT_LOG`: handed on to what runs under culvert (without `CULVERT_LOG`,
//!   the debug log goes to `culvert.log` in the lab's directory);
//! - `CULVERT_REMOTE`: the connections go over a wire, as `tests/remote` says, which runs the tests then;
//! - `LEGACY_KEEP=1`: the labs' directories are kept;
//! - `KILL_ROUNDS`, `RELOAD_ROUNDS`: how often the kill and reload tests repeat.

pub mod evidence;
pub mod json;
pub mod lab;
pub mod procs;
pub mod stat;

pub use lab::{Lab, Outcome, Proc, Side};

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

/// Which ends of the connections run under culvert.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// Neither: the reference.
    Native,
    /// Both: the bytes go through shared memory.
    Both,
    /// Servers only: everything stays on the kernel.
    ServerOnly,
    /// Clients only: everything stays on the kernel.
    ClientOnly,
}

/// Every way to run a scenario other than natively.
pub const ALL: &[Mode] = &[Mode::Both, Mode::ServerOnly, Mode::ClientOnly];
/// Both ends under culvert.
pub const BOTH: &[Mode] = &[Mode::Both];

/// What a scenario observed, by name.
#[derive(Default, PartialEq, Eq, Debug)]
pub struct Seen(BTreeMap<String, String>);

impl Seen {
    /// Records `value` under `key`. A key is recorded once.
    pub fn note(&mut self, key: impl Into<String>, value: impl ToString) {
        let key = key.into();
        let old = self.0.insert(key.clone(), value.to_string());
        assert!(old.is_none(), "{key} is recorded twice");
    }

    /// Records a hash and the length of `bytes` under `key`.
    pub fn note_bytes(&mut self, key: impl Into<String>, bytes: &[u8]) {
        self.note(key, format!("{} bytes, {:016x}", bytes.len(), fnv(bytes)));
    }
}

/// FNV-1a: tells different byte strings apart; no protection against intent.
pub fn fnv(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x100_0000_01b3))
}

/// Bytes of a reproducible stream; each `seed` gives another one.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut out = Vec::with_capacity(len + 8);
    while out.len() < len {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        out.extend_from_slice(&x.to_le_bytes());
    }
    out.truncate(len);
    out
}

/// Runs `scenario` natively and in each of `modes`, and fails where it saw anything else than natively.
pub fn compare(name: &str, modes: &[Mode], scenario: impl Fn(&Lab) -> Seen) {
    let run = |mode: Mode| {
        let lab = Lab::new(name, mode);
        let begin = Instant::now();
        let seen = scenario(&lab);
        lab.finish();
        eprintln!("{name} {mode:?}: {:.1} s", begin.elapsed().as_secs_f32());
        seen
    };
    let native = run(Mode::Native);
    assert!(!native.0.is_empty(), "{name}: the scenario records nothing");
    for mode in modes {
        let seen = run(*mode);
        let keys: std::collections::BTreeSet<_> = native.0.keys().chain(seen.0.keys()).collect();
        let differences: Vec<_> = keys
            .into_iter()
            .filter(|k| native.0.get(*k) != seen.0.get(*k))
            .map(|k| format!("  {k}:\n    native  {:?}\n    {mode:?} {:?}", native.0.get(k), seen.0.get(k)))
            .collect();
        assert!(differences.is_empty(), "{name}: {mode:?} differs from native\n{}", differences.join("\n"));
    }
}

/// Compares what one program says that has both ends of its connections. Under culvert, `proof` is given that and culvert's
/// log, and tells whether what is to be tested took place; see [`on_ring`].
pub fn compare_one(name: &str, program: impl Fn(&Lab) -> Command, proof: impl Fn(&str, &str) -> bool) {
    compare(name, BOTH, |lab| {
        let log = lab.path("culvert.txt");
        let mut command = program(lab);
        command.env("CULVERT_LOG", "debug").env("CULVERT_LOG_FILE", &log);
        let said = lab.run(name, &mut command).success().text();
        // Over a wire it is zstackd that such a program has its rings with, and they come and go at other times.
        if lab.accelerated(Side::Client) && shm_expected() && !remote() {
            let log = std::fs::read_to_string(&log).expect("culvert's log");
            assert!(proof(&said, &log), "{name}: not what this is to test:\n{said}\n{log}");
        }
        let mut seen = Seen::default();
        seen.note("said", said);
        seen
    });
}

/// In how many directions bytes came on a ring, by culvert's log.
pub fn on_ring(log: &str) -> usize {
    log.matches("receiving on the ring from").count()
}

/// Polls `done` until it is true; false if it was not within `limit`.
pub fn poll_until(limit: Duration, mut done: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + limit;
    loop {
        if done() {
            return true;
        }
        if Instant::now() >= end {
            return false;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The same, and fails the test, saying `what` did not happen.
#[track_caller]
pub fn wait_for(what: &str, limit: Duration, done: impl FnMut() -> bool) {
    assert!(poll_until(limit, done), "not within {limit:?}: {what}");
}

/// How long anything that ends by itself may take on a busy machine before it counts as hung.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// `n` from environment variable `key`, or `default`.
pub fn rounds(key: &str, default: usize) -> usize {
    match std::env::var(key) {
        Ok(v) => v.parse().unwrap_or_else(|_| panic!("{key}={v}: not a number")),
        Err(_) => default,
    }
}

/// Is nothing to be preloaded?
pub fn native_only() -> bool {
    std::env::var_os("LEGACY_NATIVE_ONLY").is_some_and(|v| v == "1")
}

/// Are connections expected in shared memory when both ends run under culvert?
pub fn shm_expected() -> bool {
    !native_only() && std::env::var("CULVERT_PATH").as_deref() != Ok("kernel")
}

/// Do the labs' connections go over a wire, as to another host (`tests/remote`)?
pub fn remote() -> bool {
    std::env::var_os("CULVERT_REMOTE").is_some()
}

/// The path that those connections have which are expected in shared memory.
pub fn path_expected() -> &'static str {
    if remote() { "zstack" } else { "shm" }
}

/// Runs the tests as root? Some need several users.
pub fn is_root() -> bool {
    // SAFETY: geteuid takes no arguments, touches no memory and cannot fail.
    unsafe { libc::geteuid() == 0 }
}

/// The repository's root.
pub fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().expect("the repository's root")
}

fn artefact(variable: &str, name: &str) -> PathBuf {
    if let Some(path) = std::env::var_os(variable) {
        return path.into();
    }
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from);
    let (ours, default) = (target.join("release").join(name), root().join("target/release").join(name));
    if ours.exists() { ours } else { default }
}

/// libculvert.so
pub fn library() -> PathBuf {
    artefact("CULVERT_LIB", "libculvert.so")
}

/// The `culvert` command.
pub fn culvert() -> PathBuf {
    artefact("CULVERT_BIN", "culvert")
}

/// A file of this package.
pub fn file(relative: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(relative)
}

/// Exchanges of three sizes through an echo server; `server` and `client` start what runs them.
pub fn echo(
    lab: &Lab,
    server: impl Fn(&[&str]) -> std::process::Command,
    client: impl Fn(&[&str]) -> std::process::Command,
) -> Seen {
    let mut seen = Seen::default();
    let port = lab::free_port();
    let text = port.to_string();
    let running = lab.serve("echo", port, &mut server(&["echo", &text]));
    for (connections, count, size) in [("4", "300", "64"), ("2", "20", "100000"), ("1", "3", "3000000")] {
        let out = lab.run("ping", &mut client(&["ping", &text, connections, count, size]));
        seen.note(format!("{connections} x {count} x {size}"), format!("{} {}", out.text(), out.status));
    }
    running.signal(libc::SIGTERM);
    drop(running);
    seen
}
