//! Mutants of the engine: small mistakes that somebody might make. Each is built in a copy of the sources, and seeds and traces
//! must notice it.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

/// A mistake: in a file, a text (it must be there exactly once) is replaced by another.
#[derive(Debug)]
pub struct Mutant {
    /// Its name.
    pub name: String,
    /// The file, from the root of the repository.
    pub file: String,
    /// What is there.
    pub from: String,
    /// What is put in its place.
    pub to: String,
}

/// The list: blocks of `name: file`, lines that begin with `- ` (what is there) and with `+ ` (what is put there), an empty line.
const LIST: &str = include_str!("../mutants.txt");

/// The mutants.
pub fn list() -> Vec<Mutant> {
    let mut all = Vec::new();
    for block in LIST.split("\n\n").map(str::trim).filter(|b| !b.is_empty()) {
        let mut mutant = Mutant { name: String::new(), file: String::new(), from: String::new(), to: String::new() };
        for line in block.lines().filter(|l| !l.starts_with('#')) {
            let to = if let Some(text) = line.strip_prefix("- ") {
                mutant.from += if mutant.from.is_empty() { "" } else { "\n" };
                mutant.from += text;
                continue;
            } else if let Some(text) = line.strip_prefix("+ ") {
                text
            } else {
                let (name, file) = line.split_once(": ").expect("`name: file` begins a mutant");
                (mutant.name, mutant.file) = (name.to_owned(), file.to_owned());
                continue;
            };
            mutant.to += if mutant.to.is_empty() { "" } else { "\n" };
            mutant.to += to;
        }
        if !mutant.name.is_empty() {
            all.push(mutant);
        }
    }
    all
}

/// The text with the mistake, whatever its lines are indented by.
fn apply(mutant: &Mutant, text: &str) -> Result<String, String> {
    let found = text.matches(mutant.from.as_str()).count();
    match found {
        1 => Ok(text.replacen(&mutant.from, &mutant.to, 1)),
        n => Err(format!("{}: {:?} is there {n} times", mutant.file, mutant.from)),
    }
}

/// Builds and tries the mutants whose name has `name` in it, and prints a table. True: all are caught.
pub fn run(source: &Path, work: &Path, name: &str, count: u64) -> bool {
    let tree = work.join("tree");
    let mutants: Vec<Mutant> = list().into_iter().filter(|m| m.name.contains(name)).collect();
    let mut escaped = 0;
    println!("{:<34} {:>8} {:<22} by", "mutant", "seconds", "");
    for mutant in &mutants {
        let start = Instant::now();
        let verdict = copy(source, &tree).and_then(|()| try_one(mutant, source, &tree, work, count));
        let (what, by) = match verdict {
            Ok(Some(by)) => ("caught", by),
            Ok(None) => {
                escaped += 1;
                ("NOT CAUGHT", String::new())
            }
            Err(e) => {
                escaped += 1;
                ("NOT TRIED", e)
            }
        };
        println!("{:<34} {:>8.1} {what:<22} {by}", mutant.name, start.elapsed().as_secs_f64());
    }
    println!("{} mutants, {escaped} not caught", mutants.len());
    escaped == 0 && !mutants.is_empty()
}

/// Copies what is needed to build the simulator; files that are the same stay, so that little is built again.
fn copy(source: &Path, tree: &Path) -> Result<(), String> {
    std::fs::create_dir_all(tree).map_err(|e| format!("{}: {e}", tree.display()))?;
    let status = Command::new("sh")
        .arg("-c")
        .arg(
            "mkdir -p \"$2/zstack\" && cp \"$1/Cargo.lock\" \"$2/\" && rm -rf \"$2\"/zstack/*/src && \
             for c in wire engine port sim; do mkdir -p \"$2/zstack/$c\" && cp -r \"$1/zstack/$c/.\" \"$2/zstack/$c/\" || exit 1; done && \
             sed -e 's/^members = .*/members = [\"zstack\\/wire\", \"zstack\\/engine\", \"zstack\\/port\", \"zstack\\/sim\"]/' \
             -e 's/^default-members = .*//' -e '/^\\[profile.dev.package.shmring\\]/,/^$/d' \"$1/Cargo.toml\" > \"$2/Cargo.toml\"",
        )
        .arg("copy")
        .arg(source)
        .arg(tree)
        .status()
        .map_err(|e| e.to_string())?;
    if status.success() { Ok(()) } else { Err("the sources could not be copied".to_owned()) }
}

fn try_one(mutant: &Mutant, source: &Path, tree: &Path, work: &Path, count: u64) -> Result<Option<String>, String> {
    let text = std::fs::read_to_string(source.join(&mutant.file)).map_err(|e| format!("{}: {e}", mutant.file))?;
    std::fs::write(tree.join(&mutant.file), apply(mutant, &text)?).map_err(|e| e.to_string())?;
    let build = Command::new("cargo")
        .args(["build", "--quiet", "--profile", "sim", "-p", "zstack-sim", "--target-dir"])
        .arg(work.join("target"))
        // Built more often than run: quickly, and what a mistake does not touch only once.
        .envs([
            ("CARGO_PROFILE_SIM_LTO", "off"),
            ("CARGO_PROFILE_SIM_OPT_LEVEL", "1"),
            ("CARGO_PROFILE_SIM_INCREMENTAL", "true"),
            ("CARGO_PROFILE_SIM_CODEGEN_UNITS", "16"),
            ("CARGO_PROFILE_SIM_DEBUG", "0"),
        ])
        .current_dir(tree)
        .output()
        .map_err(|e| format!("cargo: {e}"))?;
    if !build.status.success() {
        let text = String::from_utf8_lossy(&build.stderr);
        return Err(format!("does not build: {}", text.lines().find(|l| l.starts_with("error")).unwrap_or("")));
    }
    let program = work.join("target/sim/zstack-sim");
    let seeds = Command::new("timeout")
        .arg("300")
        .arg(&program)
        .args(["run", "--shrink", "0", "--count", &count.to_string()])
        .stdin(Stdio::null())
        .output()
        .map_err(|e| e.to_string())?;
    let mut by = Vec::new();
    if !seeds.status.success() {
        let text = String::from_utf8_lossy(&seeds.stdout);
        let line = text.lines().next().unwrap_or("time-out");
        by.push(line.chars().take(110).collect::<String>());
    }
    let mut files: Vec<_> =
        std::fs::read_dir(tree.join("zstack/sim/traces")).map_err(|e| e.to_string())?.flatten().collect();
    files.sort_by_key(std::fs::DirEntry::file_name);
    let mut failing = Vec::new();
    for file in files {
        let status = Command::new("timeout").arg("20").arg(&program).arg("trace").arg(file.path()).output();
        if !status.map_err(|e| e.to_string())?.status.success() {
            failing.push(file.file_name().to_string_lossy().trim_end_matches(".trace").to_owned());
        }
    }
    if let Some(first) = failing.first() {
        by.push(format!("{} traces, {first}", failing.len()));
    }
    Ok((!by.is_empty()).then(|| by.join("; ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_mutant_finds_its_place() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        for mutant in list() {
            let text = std::fs::read_to_string(root.join(&mutant.file)).unwrap();
            assert_ne!(apply(&mutant, &text).unwrap(), text, "{}", mutant.name);
        }
    }
}
