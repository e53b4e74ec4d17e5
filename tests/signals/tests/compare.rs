//! Runs every case of `sigcase`: the semantic ones native and under each library, which must agree; the probe ones
//! under the probe library.
//!
//! Libraries: the probe, built here; and libculvert.so as `CULVERT_LIB` names it, or from `target/release` if it is there.

use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Command;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

/// Builds the probe with `profile`'s flags and says where it is. Not a dependency: `cargo test` would build it to
/// unwind, which a library without the standard library cannot.
fn probe(profile: &str) -> PathBuf {
    let target =
        std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from).join("signals-probe");
    let mut c = Command::new(env!("CARGO"));
    c.args(["build", "--quiet", "-p", "culvert-signals-probe", "--profile", profile, "--target-dir"]).arg(&target);
    assert!(c.current_dir(root()).status().unwrap().success());
    target.join(if profile == "dev" { "debug" } else { profile }).join("libculvert_signals_probe.so")
}

fn culvert() -> Option<PathBuf> {
    if let Some(p) = std::env::var_os("CULVERT_LIB") {
        return Some(PathBuf::from(p).canonicalize().expect("CULVERT_LIB"));
    }
    root().join("target/release/libculvert.so").canonicalize().ok()
}

/// Standard output, exit status without the core flag.
fn run(args: &[&str], lib: Option<&Path>) -> (String, i32, String) {
    // A case that hangs has lost a signal: timeout(1) ends it with status 124.
    let mut c = Command::new("timeout");
    c.args(["--signal=KILL", "60", "env"]);
    if let Some(lib) = lib {
        c.arg(format!("LD_PRELOAD={}", lib.display()));
    }
    let o = c.arg(env!("CARGO_BIN_EXE_sigcase")).args(args).output().unwrap();
    let status = o.status.into_raw() & !0x80;
    (String::from_utf8_lossy(&o.stdout).into(), status, String::from_utf8_lossy(&o.stderr).into())
}

fn cases(kind: &str) -> Vec<String> {
    let names: Vec<String> =
        run(&[], None).0.lines().filter_map(|l| l.strip_prefix(&format!("{kind} ")).map(str::to_owned)).collect();
    assert!(names.len() > 10);
    names
}

fn compare(lib: &Path, wrong: &mut Vec<String>) {
    for case in cases("semantic") {
        let native = run(&[&case], None);
        for args in [vec![case.as_str()], vec![case.as_str(), "armed"]] {
            let ours = run(&args, Some(lib));
            if (&native.0, native.1) != (&ours.0, ours.1) {
                let line = native.0.lines().zip(ours.0.lines()).find(|(a, b)| a != b);
                wrong.push(format!(
                    "{args:?} under {}: status {:#x} native {:#x}; {line:?}; {}",
                    lib.display(),
                    ours.1,
                    native.1,
                    ours.2
                ));
            }
        }
    }
}

fn all_pass(lib: &Path, wrong: &mut Vec<String>) {
    for case in cases("probe") {
        let r = run(&[&case], Some(lib));
        if r.1 != 0 {
            wrong.push(format!("{case} under {}: status {:#x} {}", lib.display(), r.1, r.2));
        }
    }
}

#[test]
fn semantics_are_the_kernels() {
    let mut wrong = vec![];
    for profile in ["dev", "release"] {
        compare(&probe(profile), &mut wrong);
    }
    match culvert() {
        Some(lib) => compare(&lib, &mut wrong),
        None => println!("libculvert.so is not built: compared the probe only"),
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn deferral_waits_and_copies() {
    let mut wrong = vec![];
    for profile in ["dev", "release"] {
        all_pass(&probe(profile), &mut wrong);
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
