//! CPython's own network tests, natively and under culvert, by default and with every connection going up at once:
//! nothing that passes natively may fail.
//!
//! The test runner's network resource stays off but where nothing beyond loopback is used: the tests stay
//! on this machine. A test that
//! fails on one side runs once more on both; only what then still differs counts.

use crate::junit::{self, Results, Verdict};
use crate::step::{self, Tally};
use crate::{build, debian, library};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

const PYTHON: &str = "/usr/bin/python3.11";

/// Debian's package of the tests, module by module.
const MODULES: &[&str] = &[
    "test_select",
    "test_epoll",
    "test_poll",
    "test_selectors",
    "test_socketserver",
    "test_httplib",
    "test_httpservers",
    "test_ftplib",
    "test_socket",
    "test_ssl",
    "test_signal",
    "test_subprocess",
    "test_asyncio",
];

/// What fits in the time of `xtask test`: a module, and patterns of its tests if not all.
const QUICK: &[(&str, &[&str])] = &[
    ("test_select", &[]),
    ("test_epoll", &[]),
    ("test_selectors", &[]),
    ("test_socketserver", &[]),
    ("test_httplib", &[]),
    ("test_httpservers", &[]),
    ("test_socket", &[]),
    ("test_ssl", &["test.test_ssl.ThreadedTests.test_[a-rt-z]*", "test.test_ssl.NetworkedBIOTests.*"]),
    (
        "test_asyncio",
        &[
            "test.test_asyncio.test_streams.*",
            "test.test_asyncio.test_sock_lowlevel.*",
            "test.test_asyncio.test_server.*",
        ],
    ),
];

/// Not TCP, and hangs on machines whose hypervisor has a vsock device but no peer.
const IGNORED: &[&str] = &["*VSOCK*"];

/// Says that it needs the network, and uses the loopback interface alone.
const NEEDS_NETWORK: &[&str] = &["test_socketserver"];

/// What CI has time for with remote peers. More: `xtask conformance --remote`.
pub const REMOTE: &[(&str, &[&str])] =
    &[("test_socketserver", &[]), ("test_httplib", &[]), ("test_ftplib", &["test.test_ftplib.TestFTPClass.*"])];

/// `cargo xtask conformance [--quick] [--remote] [MODULE...]`.
pub fn chore(args: &[&str]) -> bool {
    let (quick, remote) = (args.contains(&"--quick"), args.contains(&"--remote"));
    let modules: Vec<&str> = args.iter().copied().filter(|a| !["--quick", "--remote"].contains(a)).collect();
    if let Some(unknown) = modules.iter().find(|m| !MODULES.contains(m)) {
        eprintln!("{unknown}: not one of {}", MODULES.join(" "));
        return false;
    }
    let mut tally = Tally::default();
    if build(&mut tally) && (!remote || crate::remote::build(&mut tally)) {
        run(&chosen(&modules, quick), Extent { quick, remote }, &mut tally);
    }
    println!("{tally}");
    tally.failed == 0
}

/// A module, and patterns of its tests if not all.
type Chosen<'a> = (&'a str, &'a [&'a str]);

/// `modules`, or the quick selection, or all.
pub fn chosen<'a>(modules: &[&'a str], quick: bool) -> Vec<Chosen<'a>> {
    match (modules, quick) {
        ([], true) => QUICK.to_vec(),
        ([], false) => MODULES.iter().map(|m| (*m, [].as_slice())).collect(),
        (named, _) => named.iter().map(|m| (*m, [].as_slice())).collect(),
    }
}

/// How modules are run.
#[derive(Clone, Copy)]
pub struct Extent {
    /// In less time: two sides at once.
    pub quick: bool,
    /// With what they connect to on this machine on the far side of a wire (`remote`).
    pub remote: bool,
}

/// Runs modules on all sides.
pub fn run(chosen: &[Chosen], Extent { quick, remote }: Extent, tally: &mut Tally) {
    let begin = Instant::now();
    let peers = if remote { ", with remote peers" } else { "" };
    println!("\n== conformance: CPython's network tests, native and under culvert, default and eager{peers}");
    if !debian::install(debian::CPYTHON_TESTS) {
        return tally.fail("conformance: packages".into());
    }
    // For what hangs: no module takes half of it on a loaded machine.
    let limit = Duration::from_secs(if quick { 300 } else { 1200 });
    for (module, patterns) in chosen {
        Compared { module, limit, remote }.sides(patterns, quick, tally);
    }
    println!("== conformance{peers}: {:.0} s", begin.elapsed().as_secs_f32());
    tally.times.push((format!("conformance{peers}"), begin.elapsed()));
}

/// How the tests are run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Side {
    /// Without culvert.
    Native,
    /// Under culvert, as a user runs it: most of these connections are too short to leave the kernel.
    Default,
    /// Under culvert with connections that go up at once (`CULVERT_EAGER`).
    Eager,
}

impl Side {
    fn name(self) -> &'static str {
        match self {
            Side::Native => "native",
            Side::Default => "culvert",
            Side::Eager => "eager",
        }
    }
}

/// One module.
#[derive(Clone, Copy)]
struct Compared<'a> {
    module: &'a str,
    limit: Duration,
    remote: bool,
}

impl Compared<'_> {
    /// Natively and in both modes of culvert.
    fn sides(self, patterns: &[&str], at_once: bool, tally: &mut Tally) {
        let run = |side: Side| Run::new(self, side, patterns);
        // Most of these tests wait rather than compute: the quick run does two sides at the same time.
        let (native, default) = if at_once {
            std::thread::scope(|s| {
                let native = s.spawn(|| run(Side::Native));
                let ours = run(Side::Default);
                (native.join().expect("the native run"), ours)
            })
        } else {
            (run(Side::Native), run(Side::Default))
        };
        if native.results.is_empty() {
            tally.fail(format!("conformance {}: no test ran natively", self.module));
        }
        for ours in [default, run(Side::Eager)] {
            judge(self, &native, ours, tally);
        }
    }
}

/// Nothing that passes natively may fail under culvert.
fn judge(compared: Compared, native: &Run, ours: Run, tally: &mut Tally) {
    let module = compared.module;
    let again = doubtful(native, &ours);
    let side = ours.side;
    let at_first = at_first(native, &ours);
    let mut native_results = native.results.clone();
    let mut our_results = ours.results;
    if !again.is_empty() {
        let names: Vec<&str> = again.iter().map(String::as_str).collect();
        println!("{module}, {}: once more: {}", side.name(), names.join(" "));
        // The better of two: a test that passed once can pass.
        better(&mut native_results, Run::new(compared, Side::Native, &names));
        better(&mut our_results, Run::new(compared, side, &names));
    }
    let (mut same, mut native_failures, mut worse) = (0, Vec::new(), Vec::new());
    for (name, verdict) in &native_results {
        let mine = our_results.get(name);
        match (verdict, mine) {
            (Verdict::Failed, _) => native_failures.push(name.as_str()),
            (Verdict::Passed, Some(Verdict::Passed)) | (Verdict::Skipped, Some(Verdict::Skipped | Verdict::Passed)) => {
                same += 1
            }
            _ => worse.push(format!(
                "{name}: {verdict:?} native, {} under culvert ({})",
                mine.map_or("no result".into(), |v| format!("{v:?}")),
                side.name()
            )),
        }
    }
    println!(
        "{module}, {}: {same} the same, {} fail natively, {} worse under culvert ({:.0} s, {:.0} s)",
        side.name(),
        native_failures.len(),
        worse.len(),
        native.time.as_secs_f32(),
        ours.time.as_secs_f32()
    );
    for name in native_failures {
        println!("  fails natively: {name}");
    }
    tally.passed += same;
    if let Some(stuck) = &ours.stuck {
        println!(
            "  under culvert it did not finish; the test running at the end: {stuck}; output in {}",
            ours.output.display()
        );
    }
    // A hang or a failure that the second run did not show has a reason, too.
    let passed_since = |name: &String| our_results.get(name) == Some(&Verdict::Passed);
    tally.unsteady.extend(
        at_first
            .into_iter()
            .filter(|(name, _)| passed_since(name))
            .map(|(name, what)| format!("conformance {name} ({}): {what}, and passed when run once more", side.name())),
    );
    for w in worse {
        println!("  WORSE {w}");
        tally.fail(format!("conformance {w}"));
    }
}

/// Tests that passed natively and did not pass under culvert in the first run, apart from those behind a hang: what they did instead.
fn at_first(native: &Run, ours: &Run) -> Vec<(String, &'static str)> {
    let passed = native.results.iter().filter(|(_, verdict)| **verdict == Verdict::Passed).map(|(name, _)| name);
    passed
        .filter_map(|name| match ours.results.get(name) {
            Some(Verdict::Failed) => Some((name.clone(), "failed")),
            _ if ours.stuck.as_ref() == Some(name) => Some((name.clone(), "did not end")),
            _ => None,
        })
        .collect()
}

/// Tests worth a second run: those that failed or have no result on either side.
fn doubtful(native: &Run, ours: &Run) -> Vec<String> {
    let failed = |r: &Results, name: &str| matches!(r.get(name), None | Some(Verdict::Failed));
    let names: std::collections::BTreeSet<&String> = native.results.keys().chain(ours.results.keys()).collect();
    names.into_iter().filter(|n| failed(&native.results, n) || failed(&ours.results, n)).cloned().collect()
}

fn better(results: &mut Results, second: Run) {
    for (name, verdict) in second.results {
        let kept = results.entry(name).or_insert(verdict);
        if *kept == Verdict::Failed {
            *kept = verdict;
        }
    }
}

/// One run of one module.
struct Run {
    side: Side,
    results: Results,
    /// The test that was running when the run ended without a report.
    stuck: Option<String>,
    output: PathBuf,
    time: Duration,
}

impl Run {
    fn new(Compared { module, limit, remote }: Compared, side: Side, patterns: &[&str]) -> Run {
        let name = side.name();
        // With remote peers it may run beside one without.
        let place = if remote { format!("{name}-remote") } else { name.to_owned() };
        let dir = crate::target().join("conformance").join(&place);
        std::fs::create_dir_all(&dir).expect("a directory for the results");
        let (xml, output) = (dir.join(format!("{module}.xml")), dir.join(format!("{module}.txt")));
        let _ = std::fs::remove_file(&xml);
        // The tests' own temporary directory holds Unix sockets: its path must stay short.
        let temp = std::env::temp_dir().join(format!("conf-{place}-{}", std::process::id()));
        std::fs::create_dir_all(&temp).expect("a temporary directory");
        let mut c = command(module, patterns, &xml, &temp);
        if side != Side::Native {
            c.env("LD_PRELOAD", library());
        }
        if side == Side::Eager {
            c.env("CULVERT_EAGER", "1");
        }
        if remote {
            c = crate::remote::with(&c);
        }
        let log = std::fs::File::create(&output).expect("a file for the output");
        c.stderr(log.try_clone().expect("the same file"));
        let mut text = String::new();
        let begin = Instant::now();
        let ended = step::capture(&mut c, limit, |line| {
            text.push_str(line);
            text.push('\n');
        });
        let time = begin.elapsed();
        // Verbose results go to standard error or output by version: keep both in one file.
        let errors = std::fs::read(&output).unwrap_or_default();
        text.push_str(&String::from_utf8_lossy(&errors));
        let _ = std::fs::write(&output, &text);
        let _ = std::fs::remove_dir_all(&temp);
        if let Err(why) = &ended {
            println!("{module}, {name}: {why}");
        }
        match std::fs::read(&xml) {
            Ok(report) => {
                Run { side, results: junit::report(&String::from_utf8_lossy(&report)), stuck: None, output, time }
            }
            Err(_) => {
                let (results, running) = junit::verbose(&text);
                Run { side, results, stuck: Some(running.unwrap_or_else(|| "(none)".into())), output, time }
            }
        }
    }
}

fn command(module: &str, patterns: &[&str], xml: &Path, temp: &Path) -> Command {
    let mut c = Command::new(PYTHON);
    c.args(["-m", "test", "-v", module]).arg("--junit-xml").arg(xml).arg("--tempdir").arg(temp);
    if NEEDS_NETWORK.contains(&module) {
        c.args(["-u", "network"]);
    }
    for p in patterns {
        c.args(["-m", p]);
    }
    for p in IGNORED {
        c.args(["-i", p]);
    }
    c.current_dir(temp)
        .env_remove("LD_PRELOAD")
        .env("PATH", "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin")
        .env("LC_ALL", "C.UTF-8");
    for key in ["PYTHONHOME", "PYTHONPATH", "PYTHONDONTWRITEBYTECODE", "PYTHONUNBUFFERED", "CULVERT_LOG"] {
        c.env_remove(key);
    }
    c
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(side: Side, results: &[(&str, Verdict)], stuck: Option<&str>) -> Run {
        let results = results.iter().map(|(name, verdict)| ((*name).to_owned(), *verdict)).collect();
        Run { side, results, stuck: stuck.map(str::to_owned), output: PathBuf::new(), time: Duration::ZERO }
    }

    #[test]
    fn a_hang_and_a_failure_under_culvert_are_known_and_what_stands_behind_the_hang_is_not_blamed() {
        use Verdict::{Failed, Passed, Skipped};
        let all = [("a", Passed), ("b", Passed), ("c", Passed), ("d", Failed), ("e", Skipped), ("f", Passed)];
        let native = run(Side::Native, &all, None);
        let ours = run(Side::Eager, &[("a", Passed), ("b", Failed), ("d", Failed)], Some("c"));
        let known = [("b".to_owned(), "failed"), ("c".to_owned(), "did not end")];
        assert_eq!(at_first(&native, &ours), known);
        assert_eq!(at_first(&native, &run(Side::Default, &all, None)), []);
    }
}
