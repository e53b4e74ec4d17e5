//! The command line of `differ`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::conductor::{Mode, Setup};
use crate::generate::{BUDGET, Options};
use crate::rng::Rng;
use crate::script::{Record, SKIPPED, first_difference, parse};
use crate::shrink::{self, Run};
use crate::spaces;

const USAGE: &str = "\
usage: differ run [--seed S] [--count N] [--seconds T] [options]   compare scenarios S, S+1, ...
       differ replay (--seed S | --script FILE) [options]          show one scenario's two traces
options:
  --lib PATH        the library to preload (default: libculvert.so beside this program, or $CULVERT_LIB)
  --mode M          all | first | others | mix (default) | native (the kernel against itself)
  --steps N         most random steps per scenario (default 70)
  --ring BYTES      CULVERT_RING (default: mixed)
  --spin V          CULVERT_SPIN (default: mixed)
  --eager V         CULVERT_EAGER, 0 or 1 (default: mixed)
  --without A,B     leave out kinds of steps: fork exec pspawn scm kill stop spaces nested exclusive lowat trunc
                    sendfile sendmore negative usertimeout inq, or any operation's name
  --keep DIR        where scripts of failing scenarios go (default: the system's temporary directory)
  --shrink SECONDS  time to spend on making a failing scenario smaller (default 20)
  --stop N          stop after N failing scenarios (default 10)
  --verbose         a line per scenario
exit status: 0 no difference, 1 differences or a kind of step that never happened in a long run, 2 wrong usage";

struct Cli {
    seed: u64,
    count: Option<u64>,
    time: Option<Duration>,
    lib: PathBuf,
    mode: Option<Mode>,
    steps: usize,
    ring: Option<String>,
    spin: Option<String>,
    eager: Option<String>,
    without: Vec<String>,
    keep: PathBuf,
    shrink: Duration,
    stop: usize,
    script: Option<PathBuf>,
    verbose: bool,
}

impl Cli {
    fn parse(args: &[String]) -> Result<Cli, String> {
        let beside = std::env::current_exe().ok().and_then(|e| Some(e.parent()?.join("libculvert.so")));
        let mut cli = Cli {
            seed: 1,
            count: None,
            time: None,
            lib: std::env::var_os("CULVERT_LIB").map(PathBuf::from).or(beside).unwrap_or_default(),
            mode: None,
            steps: 70,
            ring: None,
            spin: None,
            eager: None,
            without: Vec::new(),
            keep: std::env::temp_dir(),
            shrink: Duration::from_secs(20),
            stop: 10,
            script: None,
            verbose: false,
        };
        let mut it = args.iter();
        while let Some(flag) = it.next() {
            if flag == "--verbose" {
                cli.verbose = true;
                continue;
            }
            let value = it.next().ok_or_else(|| format!("{flag} needs a value"))?;
            let number = || value.parse::<u64>().map_err(|_| format!("{flag}: {value:?} is not a number"));
            match flag.as_str() {
                "--seed" => cli.seed = number()?,
                "--count" => cli.count = Some(number()?),
                "--seconds" => cli.time = Some(Duration::from_secs(number()?)),
                "--lib" => cli.lib = value.into(),
                "--mode" => {
                    cli.mode = match value.as_str() {
                        "all" => Some(Mode::All),
                        "first" => Some(Mode::First),
                        "others" => Some(Mode::Others),
                        "native" => Some(Mode::Native),
                        "mix" => None,
                        _ => return Err(format!("unknown mode {value:?}")),
                    }
                }
                "--steps" => cli.steps = number()? as usize,
                "--ring" => cli.ring = Some(value.clone()),
                "--eager" => cli.eager = Some(value.clone()),
                "--spin" => cli.spin = Some(value.clone()),
                "--without" => cli.without = value.split(',').map(str::to_owned).collect(),
                "--keep" => cli.keep = value.into(),
                "--shrink" => cli.shrink = Duration::from_secs(number()?),
                "--stop" => cli.stop = number()? as usize,
                "--script" => cli.script = Some(value.into()),
                _ => return Err(format!("unknown option {flag}")),
            }
        }
        if cli.mode != Some(Mode::Native) {
            // Preloading a path that does not exist is only a warning to the dynamic linker.
            let there = cli.lib.canonicalize();
            cli.lib = there.map_err(|e| format!("--lib {}: {e}", cli.lib.display()))?;
        }
        Ok(cli)
    }

    /// Everything about scenario `seed` besides its steps follows from the seed, too.
    fn plan(&self, seed: u64) -> (Setup, Setup, Options) {
        let mut rng = Rng::new(seed ^ 0xd1ff);
        let mode = self.mode.unwrap_or(*rng.pick(&[Mode::All, Mode::All, Mode::All, Mode::First, Mode::Others]));
        let ring = self.ring.clone().or_else(|| rng.chance(25).then(|| "4096".to_owned()));
        let spin = self.spin.clone().unwrap_or_else(|| (*rng.pick(&["off", "auto", "50"])).to_owned());
        let eager = self.eager.clone().unwrap_or_else(|| (*rng.pick(&["0", "0", "1"])).to_owned());
        let mut env = vec![("CULVERT_SPIN".to_owned(), spin), ("CULVERT_EAGER".to_owned(), eager)];
        let mut budget = BUDGET;
        if let Some(ring) = ring {
            // Less under way than the ring holds, or a send that the kernel takes would block.
            budget = budget.min(ring.parse::<i64>().unwrap_or(BUDGET) * 5 / 8);
            env.push(("CULVERT_RING".to_owned(), ring));
        }
        let exe = std::env::current_exe().expect("this program has a path");
        let native = Setup { exe, lib: PathBuf::new(), mode: Mode::Native, env: Vec::new() };
        let other = Setup { lib: self.lib.clone(), mode, env, ..native.clone() };
        (native, other, Options { budget, steps: self.steps, without: self.without.clone() })
    }
}

/// Runs the command; the process's exit status.
pub fn main(args: &[String]) -> i32 {
    let command = args.first().map_or("", String::as_str);
    if command == "actor" && args.len() == 4 {
        crate::actor::main(&args[1], &args[2], &args[3]);
    }
    let cli = match Cli::parse(args.get(1..).unwrap_or(&[])) {
        Ok(cli) if matches!(command, "run" | "replay") => cli,
        result => {
            if let Err(e) = result {
                eprintln!("differ: {e}");
            }
            eprintln!("{USAGE}");
            return 2;
        }
    };
    if command == "run" { run(&cli) } else { replay(&cli) }
}

#[derive(Default)]
struct Counts {
    scenarios: u64,
    steps: usize,
    blocked: usize,
    with_channel: u64,
    failing: Vec<u64>,
    native_hangs: u64,
    unstable: u64,
    /// What was done under the library, and how often.
    actions: BTreeMap<String, u64>,
}

/// Kinds of steps that a long run must contain, unless it is to leave them out.
const KINDS: &[&str] = &[
    "fork",
    "forkin",
    "exec",
    "pspawn",
    "usend",
    "urecv",
    "thread",
    "kill",
    "stop",
    "cont",
    "spaces",
    "pid",
    "user",
    "root",
    "mnt",
    "edge",
    "oneshot",
    "exclusive",
    "eager",
    "lazy",
    "spinning",
    "not spinning",
    "duplex",
    "alarm",
    "signal",
];

/// A run of so many scenarios is long.
const LONG: u64 = 400;

impl Counts {
    /// Counts what happened in a run under the library.
    fn note(&mut self, setup: &Setup, run: &Run) {
        let mut add = |kind: &str| *self.actions.entry(kind.to_owned()).or_default() += 1;
        for (key, value) in &setup.env {
            match (key.as_str(), value.as_str()) {
                ("CULVERT_EAGER", "1") => add("eager"),
                ("CULVERT_EAGER", _) => add("lazy"),
                ("CULVERT_SPIN", "off") => add("not spinning"),
                ("CULVERT_SPIN", _) => add("spinning"),
                _ => {}
            }
        }
        for record in &run.trace {
            for op in parse(&record.line).iter().filter(|op| record.of(op.who).is_some_and(|r| r != SKIPPED)) {
                let words: Vec<&str> = op.text.split(' ').collect();
                add(words[0]);
                let spaces = match words[0] {
                    "start" | "forkin" => words.get(2).copied().unwrap_or("-"),
                    _ => "-",
                };
                if spaces != "-" {
                    add("spaces");
                    spaces.split(',').for_each(&mut add);
                }
                let flags = if words[0] == "epctl" { words[4].parse().unwrap_or(0) } else { 0 };
                for (flag, name) in
                    [(libc::EPOLLET, "edge"), (libc::EPOLLONESHOT, "oneshot"), (libc::EPOLLEXCLUSIVE, "exclusive")]
                {
                    if flags & flag as u32 != 0 {
                        add(name);
                    }
                }
            }
        }
    }

    /// Kinds of steps that should have happened by now, and did not.
    fn missing(&self, cli: &Cli) -> Vec<&'static str> {
        let off = |kind: &str| {
            let also = match kind {
                "usend" | "urecv" => "scm",
                "cont" => "stop",
                "forkin" | "pid" | "user" | "root" | "mnt" => "spaces",
                _ => kind,
            };
            cli.without.iter().any(|w| w == kind || w == also)
                || also == "spaces" && !spaces::allowed()
                || matches!(kind, "eager" | "lazy") && (cli.eager.is_some() || cli.mode == Some(Mode::Native))
                || kind.ends_with("spinning") && (cli.spin.is_some() || cli.mode == Some(Mode::Native))
        };
        KINDS.iter().copied().filter(|k| !self.actions.contains_key(*k) && !off(k)).collect()
    }
}

fn run(cli: &Cli) -> i32 {
    let start = Instant::now();
    let mut counts = Counts::default();
    let count = cli.count.unwrap_or(if cli.time.is_some() { u64::MAX } else { 200 });
    for seed in cli.seed..cli.seed.saturating_add(count) {
        if cli.time.is_some_and(|t| start.elapsed() > t) || counts.failing.len() >= cli.stop {
            break;
        }
        one(cli, seed, &mut counts);
    }
    println!(
        "{} scenarios, {} steps ({} left blocked), {} with a channel, in {:.0} s: {} differ, {} unstable on the kernel, \
         {} hang on the kernel",
        counts.scenarios,
        counts.steps,
        counts.blocked,
        counts.with_channel,
        start.elapsed().as_secs_f64(),
        counts.failing.len(),
        counts.unstable,
        counts.native_hangs,
    );
    let list: Vec<String> = counts.actions.iter().map(|(kind, n)| format!("{kind} {n}")).collect();
    println!("steps: {}", list.join(", "));
    if !spaces::allowed() {
        println!("no namespaces: they need root");
    }
    if !counts.failing.is_empty() {
        println!("failing seeds: {:?}", counts.failing);
    }
    let missing = if counts.scenarios >= LONG { counts.missing(cli) } else { Vec::new() };
    if !missing.is_empty() {
        println!("never happened: {}", missing.join(", "));
    }
    i32::from(!counts.failing.is_empty() || counts.scenarios == 0 || !missing.is_empty())
}

fn one(cli: &Cli, seed: u64, counts: &mut Counts) {
    let (native, other, options) = cli.plan(seed);
    let expected = shrink::generate(&native, seed, &options).trace;
    counts.scenarios += 1;
    counts.steps += expected.len();
    counts.blocked += expected.iter().filter(|r| r.shown().contains("BLOCKED")).count();
    if shrink::hangs(&expected) {
        counts.native_hangs += 1;
        if cli.verbose {
            println!("seed {seed}: hangs on the kernel: {}", expected.last().map_or(String::new(), |r| r.line.clone()));
        }
        return;
    }
    let lines: Vec<String> = expected.iter().map(|r| r.line.clone()).collect();
    let got = shrink::play(&other, &lines, Some(&expected));
    counts.with_channel += u64::from(got.with_channel > 0);
    counts.note(&other, &got);
    let Some(at) = first_difference(&expected, &got.trace) else {
        if cli.verbose {
            println!("seed {seed}: equal, {} steps, {} with a channel", lines.len(), got.with_channel);
        }
        return;
    };
    if !native_agrees(&native, &lines, &expected, at) {
        counts.unstable += 1;
        if cli.verbose || other.mode == Mode::Native {
            println!("seed {seed}: the kernel disagrees with itself:");
            report(&expected, &got, at);
        }
        return;
    }
    counts.failing.push(seed);
    println!("seed {seed}: DIFFERS, mode {:?}, environment {:?}", other.mode, other.env);
    report(&expected, &got, at);
    save(cli, seed, "full", &lines);
    if !cli.shrink.is_zero() {
        let small = shrink::shrink(&native, &other, lines, cli.shrink);
        let file = save(cli, seed, "small", &small);
        println!("  smaller ({} steps) in {}:", small.len(), file.display());
        for line in &small {
            println!("    {line}");
        }
        let again = shrink::play(&native, &small, None).trace;
        let got = shrink::play(&other, &small, Some(&again));
        if let Some(at) = first_difference(&again, &got.trace) {
            report(&again, &got, at);
        } else {
            println!("  (equal in this last run: it does not always differ)");
        }
    }
}

/// The kernel gives the expected trace again, twice, up to where the other run differed.
fn native_agrees(native: &Setup, lines: &[String], expected: &[Record], at: usize) -> bool {
    (0..2).all(|_| {
        let again = shrink::play(native, &lines[..=at.min(lines.len() - 1)], None).trace;
        first_difference(&expected[..again.len()], &again).is_none()
    })
}

fn report(expected: &[Record], got: &Run, at: usize) {
    println!("  step {at}: {}", expected.get(at).map_or("(end)", |r| r.line.as_str()));
    println!("    kernel: {}", expected.get(at).map_or_else(String::new, Record::shown));
    println!("    other:  {}", got.trace.get(at).map_or_else(|| "(missing)".into(), Record::shown));
    if got.trace.get(at).is_some_and(Record::hangs) {
        // Threads that wait for the conductor are of no interest.
        for line in got.whereabouts.lines().filter(|l| !l.is_empty() && !l.contains("__unix_dgram_recvmsg")) {
            println!("    {line}");
        }
    }
}

fn save(cli: &Cli, seed: u64, kind: &str, lines: &[String]) -> PathBuf {
    let file = cli.keep.join(format!("differ-{seed}-{kind}.script"));
    if let Err(e) = std::fs::write(&file, lines.join("\n")) {
        eprintln!("differ: {}: {e}", file.display());
    }
    file
}

fn read_script(path: &Path) -> Result<Vec<String>, std::io::Error> {
    Ok(std::fs::read_to_string(path)?.lines().filter(|l| !l.is_empty()).map(str::to_owned).collect())
}

fn replay(cli: &Cli) -> i32 {
    let (native, other, options) = cli.plan(cli.seed);
    let expected = match &cli.script {
        Some(path) => match read_script(path) {
            Ok(lines) => shrink::play(&native, &lines, None).trace,
            Err(e) => {
                eprintln!("differ: {}: {e}", path.display());
                return 2;
            }
        },
        None => shrink::generate(&native, cli.seed, &options).trace,
    };
    let lines: Vec<String> = expected.iter().map(|r| r.line.clone()).collect();
    let got = shrink::play(&other, &lines, Some(&expected));
    println!("mode {:?}, environment {:?}", other.mode, other.env);
    for (i, e) in expected.iter().enumerate() {
        println!("{i:3} {}", e.line);
        match got.trace.get(i) {
            Some(g) if g == e => println!("      = {}", e.shown()),
            Some(g) => println!("      kernel: {}\n      other:  {}", e.shown(), g.shown()),
            None => println!("      kernel: {}", e.shown()),
        }
    }
    match first_difference(&expected, &got.trace) {
        None => {
            println!("equal; {} processes had a channel", got.with_channel);
            0
        }
        Some(at) => {
            println!("first difference at step {at}");
            report(&expected, &got, at);
            println!("{}", got.whereabouts);
            1
        }
    }
}
