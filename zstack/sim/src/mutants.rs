//! Mutants of the engine: small mistakes that somebody might make, which seeds and traces must notice.
//!
//! All are built into one copy of the sources, each behind a question whether it is the chosen one; so one build tries them all,
//! and the sources themselves know nothing of them. `ZSTACK_MUTANT` chooses, by the number in the list from 1 on.

use crate::scenario::Scenario;
use crate::{shrink, trace};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

/// A mistake: an expression or a statement of a file becomes another.
#[derive(Debug)]
pub struct Mutant {
    /// Its name.
    pub name: String,
    /// The file, from the root of the repository.
    pub file: String,
    /// What stands there, with enough around it that it stands there once.
    place: String,
    /// What of `place` is replaced.
    from: std::ops::Range<usize>,
    /// By what.
    to: String,
}

/// The list: blocks of `name: file`, a line `- ` with what stands there, in which «» holds what is replaced, and a line `+ ` with what
/// comes instead; then an empty line. A line that begins with `#` is for the reader.
const LIST: &str = include_str!("../mutants.txt");

/// The crates of the copy.
const CRATES: [&str; 5] = ["zstack/wire", "zstack/engine", "zstack/port", "zstack/sim", "api/spans"];

/// What the copy of the formats' crate, which all use, ends with.
const QUESTION: &str = "
/// Whether this mistake is made.
#[allow(missing_docs)]
#[inline]
pub fn mutant(number: u32) -> bool {
    static CHOSEN: std::sync::LazyLock<u32> =
        std::sync::LazyLock::new(|| std::env::var(\"ZSTACK_MUTANT\").ok().and_then(|n| n.parse().ok()).unwrap_or(0));
    *CHOSEN == number
}
";

/// The mutants.
pub fn list() -> Vec<Mutant> {
    let blocks = LIST.split("\n\n").map(|block| block.lines().filter(|l| !l.starts_with('#')).collect::<Vec<_>>());
    blocks.filter(|lines| !lines.is_empty()).map(|lines| parse(&lines)).collect()
}

fn parse(lines: &[&str]) -> Mutant {
    let &[head, place, to] = lines else { panic!("a mutant has three lines: {lines:#?}") };
    let (name, file) = head.split_once(": ").unwrap_or_else(|| panic!("`name: file` begins a mutant: {head}"));
    let place = place.strip_prefix("- ").unwrap_or_else(|| panic!("{name}: `- ` begins what stands there"));
    let to = to.strip_prefix('+').unwrap_or_else(|| panic!("{name}: `+` begins what comes instead"));
    let marked = place.split_once('«').and_then(|(a, rest)| Some((a, rest.split_once('»')?)));
    let (before, (from, behind)) = marked.unwrap_or_else(|| panic!("{name}: «» holds what is replaced"));
    Mutant {
        name: name.to_owned(),
        file: file.to_owned(),
        place: [before, from, behind].concat(),
        from: before.len()..before.len() + from.len(),
        to: to.trim().to_owned(),
    }
}

/// The text of a file with the mistakes that it can make; `question` asks for one of them by its number.
fn apply(text: &str, mutants: &[(usize, &Mutant)], question: &str) -> Result<String, String> {
    let (flat, places) = flat(text);
    let mut parts: BTreeMap<(usize, usize), String> = BTreeMap::new();
    for &(number, mutant) in mutants {
        let found: Vec<usize> = flat.match_indices(&mutant.place).map(|(at, _)| at).collect();
        let &[at] = found.as_slice() else {
            return Err(format!(
                "{}: {:?} is there {} times in {}",
                mutant.name,
                mutant.place,
                found.len(),
                mutant.file
            ));
        };
        let (start, end) = (places[at + mutant.from.start], places[at + mutant.from.end - 1] + 1);
        // Several may replace the same in different ways.
        let other = parts.entry((start, end)).or_insert_with(|| text[start..end].to_owned());
        *other = format!("if {question}({number}) {{ {} }} else {{ {other} }}", mutant.to);
    }
    let mut out = String::new();
    let mut done = 0;
    for ((start, end), choice) in parts {
        if start < done {
            return Err(format!("{:?}: two mistakes overlap", &text[start..end]));
        }
        out += &text[done..start];
        // A statement stays one; an expression may stand among others.
        out += &if text[start..end].ends_with(';') { choice } else { format!("({choice})") };
        done = end;
    }
    Ok(out + &text[done..])
}

/// A text with one space wherever it has white space, so that line breaks do not matter; and where each of its bytes was.
fn flat(text: &str) -> (String, Vec<usize>) {
    let (mut flat, mut places) = (String::new(), Vec::new());
    for (at, c) in text.char_indices() {
        let c = if c.is_whitespace() { ' ' } else { c };
        if c != ' ' || !flat.ends_with(' ') {
            flat.push(c);
            places.extend(at..at + c.len_utf8());
        }
    }
    (flat, places)
}

/// What seeds, not only traces, must notice: the rules that hold the streams together.
const BY_SEEDS: &[&str] = &["release-before-completed", "window-check", "paws-check", "sack-right-edge"];

/// Where a run of mutants finds and puts things.
#[derive(Debug)]
pub struct Bench<'a> {
    /// The root of the repository.
    pub source: &'a Path,
    /// Where cargo builds, so that crates of others are there already; the copy lies there, too.
    pub target: &'a Path,
    /// Seeds for each.
    pub count: u64,
    /// Seeds are tried for every mutant: to see how well they do. If not, only where no trace notices it, or seeds must.
    pub every: bool,
    /// What fails is made smaller, which must fail alike.
    pub shrink: bool,
}

/// Builds all mutants, tries those whose name has `name` in it, and prints a table. True: all are noticed, and without a mistake
/// nothing is.
pub fn run(bench: &Bench<'_>, name: &str) -> bool {
    let start = Instant::now();
    let program = match bench.build() {
        Ok(program) => program,
        Err(fault) => {
            println!("{fault}");
            return false;
        }
    };
    println!("{:<34} {:>8.1} s", "one build of all", start.elapsed().as_secs_f64());
    if let [by, ..] = bench.notice(&program, 0, true).1.as_slice() {
        println!("without a mistake: {by}");
        return false;
    }
    let all = list();
    let wanted: Vec<_> = (1..).zip(&all).filter(|(_, mutant)| mutant.name.contains(name)).collect();
    let (mut escaped, mut seeds) = (0, 0);
    for (number, mutant) in &wanted {
        let start = Instant::now();
        let must = BY_SEEDS.contains(&mutant.name.as_str());
        let (by_seed, by) = bench.notice(&program, *number, must || bench.every);
        let enough = if must { by_seed } else { !by.is_empty() };
        escaped += usize::from(!enough);
        seeds += usize::from(by_seed);
        let what = if enough { by.join("; ") } else { format!("NOT NOTICED {}", by.join("; ")) };
        println!("{:<34} {:>8.1} s  {what}", mutant.name, start.elapsed().as_secs_f64());
        if by_seed && bench.shrink {
            let (good, what) = bench.shrink(&program, *number, &by[0]);
            escaped += usize::from(!good);
            println!("{:<34} {:>8.1} s  {what}", "", start.elapsed().as_secs_f64());
        }
    }
    println!(
        "{} mutants, {escaped} not noticed, {seeds} by seeds, {:.1} s",
        wanted.len(),
        start.elapsed().as_secs_f64()
    );
    escaped == 0 && !wanted.is_empty()
}

impl Bench<'_> {
    /// Copies what is needed to build the simulator, with all mistakes, and builds it.
    fn build(&self) -> Result<PathBuf, String> {
        let tree = self.target.join("mutants");
        let io = |path: &Path, e: std::io::Error| format!("{}: {e}", path.display());
        let _ = std::fs::remove_dir_all(&tree);
        for within in CRATES.map(Path::new) {
            copy(&self.source.join(within), &tree.join(within)).map_err(|e| io(within, e))?;
        }
        let read = |path: PathBuf| std::fs::read_to_string(&path).map_err(|e| io(&path, e));
        let write = |file: &str, text: &str| std::fs::write(tree.join(file), text).map_err(|e| io(&tree.join(file), e));
        write("Cargo.lock", &read(self.source.join("Cargo.lock"))?)?;
        write("Cargo.toml", &manifest(&read(self.source.join("Cargo.toml"))?))?;
        let own = "zstack/sim/Cargo.toml";
        let text = read(tree.join(own))?.replace("name = \"zstack-sim\"\npath", "name = \"zstack-mutants\"\npath");
        let text: Vec<&str> = text.lines().filter(|line| !line.starts_with("clap ")).collect();
        write(own, &text.join("\n"))?;
        write("zstack/sim/src/main.rs", "fn main() {\n    zstack_sim::mutants::tried()\n}\n")?;
        let all = list();
        let mut files: BTreeMap<&str, Vec<(usize, &Mutant)>> = BTreeMap::new();
        for (number, mutant) in (1..).zip(&all) {
            files.entry(&mutant.file).or_default().push((number, mutant));
        }
        for (file, mutants) in files {
            write(file, &apply(&read(self.source.join(file))?, &mutants, question(file))?)?;
        }
        let wire = "zstack/wire/src/lib.rs";
        write(wire, &(read(tree.join(wire))? + QUESTION))?;
        let build = Command::new("cargo")
            .args(["build", "--quiet", "-p", "zstack-sim", "--target-dir"])
            .arg(std::path::absolute(self.target).map_err(|e| io(self.target, e))?)
            .current_dir(&tree)
            .output()
            .map_err(|e| format!("cargo: {e}"))?;
        if build.status.success() {
            return Ok(self.target.join("debug/zstack-mutants"));
        }
        Err(format!("the mutants do not build:\n{}", String::from_utf8_lossy(&build.stderr)))
    }

    /// Runs the program with a mistake. `Err`: the line that says what is wrong.
    fn tried(&self, program: &Path, number: usize, words: &[&str]) -> Result<String, String> {
        let mut c = Command::new("timeout");
        c.arg("100").arg(program).args(words).env("ZSTACK_MUTANT", number.to_string());
        let output = c.stdin(Stdio::null()).stderr(Stdio::null()).output().map_err(|e| e.to_string())?;
        let line = String::from_utf8_lossy(&output.stdout).lines().next().map(str::to_owned);
        let line = line.unwrap_or_else(|| format!("{}: no end", words.join(" ")));
        if output.status.success() { Ok(line) } else { Err(line) }
    }

    /// Whether seeds notice a mistake, if they are tried; and what does: the first seed, and traces.
    fn notice(&self, program: &Path, number: usize, seeds: bool) -> (bool, Vec<String>) {
        let traces = self.source.join("zstack/sim/traces");
        let trace = self.tried(program, number, &["traces", &traces.to_string_lossy()]).err();
        let seeds = seeds || trace.is_none();
        let seed = if seeds { self.tried(program, number, &["seeds", &self.count.to_string()]).err() } else { None };
        let seed = seed.map(|line| line.chars().take(100).collect());
        (seed.is_some(), seed.into_iter().chain(trace).collect())
    }

    /// Makes a scenario smaller, `by` which a mistake was noticed. Returns whether what came of it fails alike, and what that is.
    fn shrink(&self, program: &Path, number: usize, by: &str) -> (bool, String) {
        let seed = by.split_once(':').and_then(|(seed, _)| seed.strip_prefix("seed ")).unwrap_or("?");
        match self.tried(program, number, &["shrink", seed]) {
            Ok(line) => (true, line),
            Err(line) => (false, format!("NOT SMALLER: {line}")),
        }
    }
}

/// What the copy's program does, with the chosen mistake: `seeds COUNT`, `traces FOLDER`, or `shrink SEED`. It ends with a status of 1,
/// and a line, if something is wrong.
pub fn tried() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    std::panic::set_hook(Box::new(|_| {}));
    let found = match words.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["seeds", count] => {
            let count = count.parse().expect("seeds are counted");
            (0..count).find_map(|seed| Some(format!("seed {seed}: {}", shrink::fails(&Scenario::new(seed))?)))
        }
        ["traces", folder] => {
            let fails = |file: &PathBuf| {
                let text = std::fs::read_to_string(file).expect("a readable file");
                !std::panic::catch_unwind(|| trace::run(&text)).is_ok_and(|result| result.is_ok())
            };
            let failing: Vec<PathBuf> = traces(Path::new(folder)).into_iter().filter(fails).collect();
            let name = |file: &PathBuf| file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            failing.first().map(|first| format!("{} traces, {}", failing.len(), name(first)))
        }
        ["shrink", seed] => smaller(seed.parse().expect("a seed is a number")),
        _ => Some("`seeds COUNT`, `traces FOLDER` or `shrink SEED`".to_owned()),
    };
    if let Some(found) = found {
        println!("{found}");
        std::process::exit(1);
    }
}

/// Makes a seed that fails smaller, and says so. `Some`: it could not be, or fails in another way when it is replayed from its text.
fn smaller(seed: u64) -> Option<String> {
    let scenario = Scenario::new(seed);
    let (small, fault) = shrink::shrink(&scenario, 1500);
    let text = serde_json::to_string(&small).expect("a scenario is plain data");
    let again = serde_json::from_str(&text).ok().and_then(|small| shrink::fails(&small));
    let (before, after) = (shrink::events(&scenario), shrink::events(&small));
    if again.as_ref() != Some(&fault) {
        return Some(format!("{fault:?} becomes {again:?}"));
    }
    let conns = (scenario.conns.len(), small.conns.len());
    let all = format!("{before} events of {} connections become {after} of {}", conns.0, conns.1);
    println!("{all}; {}", fault.chars().take(60).collect::<String>());
    (after > before).then_some(all)
}

/// How a file's crate calls the question.
fn question(file: &str) -> &'static str {
    if file.starts_with("zstack/wire/") { "crate::mutant" } else { "zstack_wire::mutant" }
}

/// The workspace's manifest for the copy. Crates of others are as the tests of the repository have them; our own are built more
/// often than they are run for long.
fn manifest(text: &str) -> String {
    let members = format!("members = {CRATES:?}");
    let mut out = String::new();
    let mut section = "";
    for line in text.lines() {
        section = if line.starts_with('[') { line } else { section };
        out += match (section, line.split_once(" = ").map(|(key, _)| key)) {
            ("[workspace]", Some("members")) => &members,
            ("[workspace]", Some("default-members")) => "",
            // Cargo tells crates of one name apart by this, not by where they lie.
            ("[workspace.package]", Some("version")) => "version = \"0.0.0\"",
            // A mistake may panic, and others are tried after it; tests unwind, too.
            ("[profile.dev]", Some("panic")) => "",
            _ if section.starts_with("[profile.dev.package") => "",
            _ => line,
        };
        out.push('\n');
    }
    for crate_name in ["zstack-wire", "zstack", "zstack-sim"] {
        out += &format!("[profile.dev.package.{crate_name}]\nopt-level = 1\ndebug = false\n");
    }
    out
}

fn copy(from: &Path, to: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let into = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &into)?;
        } else {
            std::fs::copy(entry.path(), into)?;
        }
    }
    Ok(())
}

/// The files of traces, in the order of their names.
fn traces(folder: &Path) -> Vec<PathBuf> {
    let mut files: Vec<_> = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|f| f.path()).collect();
    files.sort();
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_mutant_finds_its_place() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let all = list();
        for (number, mutant) in (1..).zip(&all) {
            let text = std::fs::read_to_string(root.join(&mutant.file)).unwrap();
            let changed = apply(&text, &[(number, mutant)], question(&mutant.file)).unwrap();
            assert!(changed.contains(&format!("mutant({number})")), "{}", mutant.name);
        }
        let names: std::collections::HashSet<_> = all.iter().map(|m| &m.name).collect();
        assert_eq!(names.len(), all.len());
    }

    #[test]
    fn mistakes_of_one_file_stand_beside_each_other() {
        let one = parse(&["a: f", "- if «x < y» ||", "+ true"]);
        let other = parse(&["b: f", "- || «z()»", "+ !z()"]);
        let third = parse(&["c: f", "- «w();»", "+"]);
        let text = "if x < y ||\n    z() { w(); }";
        assert_eq!(
            apply(text, &[(1, &one), (2, &other), (3, &third)], "m").unwrap(),
            "if (if m(1) { true } else { x < y }) ||\n    (if m(2) { !z() } else { z() }) { if m(3) {  } else { w(); } }"
        );
        assert!(apply(text, &[(1, &one), (2, &one)], "m").unwrap().contains("(if m(2) { true } else { if m(1)"));
        assert!(apply(text, &[(1, &one), (2, &parse(&["d: f", "- if x < «y» ||", "+ x"]))], "m").is_err());
        assert!(apply("if x < y || if x < y ||", &[(1, &one)], "m").is_err());
    }
}
