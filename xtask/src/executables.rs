//! Test programs, built by one command and run one by one: cargo runs them in a row, and most of them wait for most of their time.

use crate::step::{self, Tally};
use serde_json::Value;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

/// A test program.
pub struct Executable {
    /// Its package, and its name there.
    pub name: String,
    /// The program.
    pub path: PathBuf,
    /// Where it runs, as under cargo: its package's directory.
    pub directory: PathBuf,
}

impl Executable {
    /// The command that runs its tests.
    pub fn command(&self) -> Command {
        let mut c = Command::new(&self.path);
        c.current_dir(&self.directory);
        c
    }

    /// What cargo says of something that it has built (the Cargo book, "External tools", "JSON messages"), if that is a test program.
    fn of(line: &str) -> Option<Executable> {
        let built: Value = serde_json::from_str(line).ok()?;
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let is_test = built["reason"] == "compiler-artifact" && built["profile"]["test"] == true;
        let path = PathBuf::from(text(&built["executable"]).filter(|_| is_test)?);
        let directory = PathBuf::from(text(&built["manifest_path"])?).parent()?.to_owned();
        let package = directory.file_name()?.to_string_lossy().into_owned();
        Some(Executable { name: format!("{package} {}", text(&built["target"]["name"])?), path, directory })
    }
}

/// Builds the test programs that `cargo`, a `cargo test` with its options, would run. None if that fails.
pub fn build(mut cargo: Command, limit: Duration, tally: &mut Tally) -> Vec<Executable> {
    cargo.args(["--no-run", "--message-format", "json-render-diagnostics"]);
    println!("\n== build of the tests: {}", step::show(&cargo));
    let begin = Instant::now();
    let mut all = Vec::new();
    let out = step::capture(&mut cargo, limit, |line| all.extend(Executable::of(line)));
    tally.times.push(("build of the tests".into(), begin.elapsed()));
    if out != Ok(true) || all.is_empty() {
        tally.fail(format!("build of the tests: {}", out.map_or_else(|e| e, |_| "failed".into())));
        return Vec::new();
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_test_program_is_known_by_what_cargo_says() {
        let line = r#"{"reason":"compiler-artifact","manifest_path":"/x/zstack/tool/Cargo.toml","target":{"name":"dpdk"},
            "profile":{"test":true},"executable":"/x/target/debug/deps/dpdk-1"}"#;
        let known = Executable::of(line).unwrap();
        assert_eq!(
            (known.name.as_str(), known.command().get_program()),
            ("tool dpdk", "/x/target/debug/deps/dpdk-1".as_ref())
        );
        assert_eq!(known.command().get_current_dir(), Some("/x/zstack/tool".as_ref()));
        let others =
            [line.replace("true", "false"), line.replace("artifact", "message"), line.replace('"', ""), "{}".into()];
        assert!(others.iter().all(|line| Executable::of(line).is_none()));
    }
}
