//! zstackd and the tool `zstack` with DPDK in them, built apart from the others: what is built by default has none.

use crate::step::{Step, Tally};
use crate::{cargo, debian, target};
use std::path::PathBuf;
use std::time::Duration;

/// The environment variable that names a program, and the program.
pub const ZSTACK: (&str, &str) = ("ZSTACK_BIN", "zstack");
/// The same.
pub const ZSTACKD: (&str, &str) = ("CULVERT_ZSTACKD", "zstackd");

/// Installs DPDK and what builds with it, after saying so, and builds both, unless the environment names others. False if that failed.
pub fn ready() -> bool {
    if [ZSTACK, ZSTACKD].iter().all(|(variable, _)| std::env::var_os(variable).is_some()) {
        println!("== using {} and {}", zstack().display(), zstackd().display());
        return true;
    }
    if !debian::install(debian::BUILD) {
        return false;
    }
    let mut c = cargo();
    c.args(["build", "--release", "-p", "zstackd", "-p", "zstack-tool", "--features", "zstackd/dpdk,zstack-tool/dpdk"]);
    c.env("CARGO_TARGET_DIR", target().join("dpdk"));
    Step::new("build with DPDK", c, Duration::from_secs(1800)).run(&mut Tally::default())
}

fn built(what: (&str, &str)) -> PathBuf {
    std::env::var_os(what.0).map_or_else(|| target().join("dpdk/release").join(what.1), PathBuf::from)
}

/// The tool.
pub fn zstack() -> PathBuf {
    built(ZSTACK)
}

/// The daemon.
pub fn zstackd() -> PathBuf {
    built(ZSTACKD)
}
