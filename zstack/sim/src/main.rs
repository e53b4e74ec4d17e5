//! `zstack-sim`: runs seeds, replays one, makes a failing one smaller, runs traces, and shows that mutants are caught.

use clap::{Parser, Subcommand};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;
use zstack_sim::scenario::Scenario;
use zstack_sim::{mutants, shrink, trace, world};

#[derive(Parser)]
#[command(about = "The engine in virtual time, over networks that lose, reorder, corrupt and die")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run many seeds; a seed that fails is made smaller, and can be replayed
    Run {
        /// The first seed
        #[arg(long, default_value_t = 0)]
        seed: u64,
        /// How many
        #[arg(long, default_value_t = 1000)]
        count: u64,
        /// Stop behind so many seeds that fail
        #[arg(long, default_value_t = 1)]
        failures: u64,
        /// Runs that may be spent on making one smaller; 0: it stays as it is
        #[arg(long, default_value_t = 1500)]
        shrink: usize,
        /// Write a failing scenario into this folder
        #[arg(long, default_value = ".")]
        out: PathBuf,
        /// Run every seed twice, and see that both runs are the same
        #[arg(long)]
        twice: bool,
    },
    /// Run one seed, or one scenario from a file, and say what happened
    Replay {
        /// The seed
        #[arg(long, required_unless_present = "file")]
        seed: Option<u64>,
        /// The file
        #[arg(long)]
        file: Option<PathBuf>,
        /// Every packet, and what the programs are told
        #[arg(long)]
        verbose: bool,
        /// The scenario itself
        #[arg(long)]
        show: bool,
    },
    /// Run packet traces
    Trace {
        /// The files
        #[arg(required = true)]
        files: Vec<PathBuf>,
        /// What was sent and received
        #[arg(long)]
        verbose: bool,
    },
    /// Break the engine in ways that somebody might, one at a time, and see that seeds or traces notice
    Mutants {
        /// Only those whose name has this in it
        #[arg(default_value = "")]
        name: String,
        /// The sources of the repository
        #[arg(long, default_value = ".")]
        source: PathBuf,
        /// Cargo's target folder, where a copy of the sources is built
        #[arg(long, default_value = "target")]
        target: PathBuf,
        /// Seeds for each
        #[arg(long, default_value_t = 2000)]
        count: u64,
        /// Make what fails smaller, and see that it fails alike when it is replayed
        #[arg(long)]
        shrink: bool,
    },
}

fn main() -> ExitCode {
    let good = match Arguments::parse().command {
        Command::Run { seed, count, failures, shrink, out, twice } => {
            seeds(seed..seed + count, failures, shrink, &out, twice)
        }
        Command::Replay { seed, file, verbose, show } => replay(seed, file.as_deref(), verbose, show),
        Command::Trace { files, verbose } => traces(&files, verbose),
        Command::Mutants { name, source, target, count, shrink } => {
            let bench = mutants::Bench { source: &source, target: &target, count, every: true, shrink };
            mutants::run(&bench, &name)
        }
    };
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn seeds(seeds: std::ops::Range<u64>, failures: u64, runs: usize, out: &Path, twice: bool) -> bool {
    let (start, mut failed) = (Instant::now(), 0);
    let (mut frames, mut bytes, mut done, mut conns, mut time) = (0, 0, 0, 0, 0);
    // A panic is a fault like others, and told like others.
    std::panic::set_hook(Box::new(|_| {}));
    let mut ran = 0;
    for seed in seeds.clone() {
        ran += 1;
        let scenario = Scenario::new(seed);
        let run = || std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| world::run(&scenario, false)));
        let (fault, digest) = match run() {
            Ok(outcome) => {
                frames += outcome.frames;
                bytes += outcome.bytes;
                done += outcome.done;
                conns += outcome.conns;
                time += outcome.time / 1_000_000;
                (outcome.faults.into_iter().next(), outcome.digest)
            }
            Err(panic) => (Some(format!("panic: {}", shrink::text(&*panic))), 0),
        };
        let fault = fault.or_else(|| match twice.then(run) {
            Some(Ok(second)) if second.digest != digest => Some("a second run of the seed was different".to_owned()),
            _ => None,
        });
        let Some(fault) = fault else { continue };
        failed += 1;
        println!("seed {seed}: {fault}");
        if runs > 0 {
            let (small, fault) = shrink::shrink(&scenario, runs);
            let file = out.join(format!("seed-{seed}.json"));
            let text = serde_json::to_string_pretty(&small).expect("a scenario is plain data");
            println!("smaller: {fault}\n{}", serde_json::to_string(&small).expect("a scenario is plain data"));
            match std::fs::write(&file, text) {
                Ok(()) => println!("replay it with: zstack-sim replay --verbose --file {}", file.display()),
                Err(e) => println!("{}: {e}", file.display()),
            }
        }
        if failed >= failures {
            break;
        }
    }
    let seconds = start.elapsed().as_secs_f64();
    println!(
        "{ran} seeds, {failed} failed, {seconds:.1} s: {conns} connections, {done} of them ended in order at both ends; {frames} frames, \
         {bytes} bytes, {time} s of virtual time"
    );
    failed == 0
}

fn replay(seed: Option<u64>, file: Option<&Path>, verbose: bool, show: bool) -> bool {
    let scenario = match (seed, file) {
        (Some(seed), _) => Scenario::new(seed),
        (None, Some(file)) => {
            let text = std::fs::read_to_string(file).map_err(|e| e.to_string());
            match text.and_then(|t| serde_json::from_str(&t).map_err(|e| e.to_string())) {
                Ok(scenario) => scenario,
                Err(e) => {
                    eprintln!("{}: {e}", file.display());
                    return false;
                }
            }
        }
        (None, None) => return false,
    };
    if show {
        println!("{}", serde_json::to_string_pretty(&scenario).expect("a scenario is plain data"));
    }
    let outcome = world::run_with(&scenario, move |line| {
        if verbose {
            println!("{line}");
        }
    });
    for fault in &outcome.faults {
        println!("FAULT: {fault}");
    }
    println!(
        "{} frames, {} turns, {} bytes, {:.3} s; {} of {} connections ended in order at both ends; digest {:016x}",
        outcome.frames,
        outcome.turns,
        outcome.bytes,
        outcome.time as f64 / 1e6,
        outcome.done,
        outcome.conns,
        outcome.digest
    );
    outcome.faults.is_empty()
}

fn traces(files: &[PathBuf], verbose: bool) -> bool {
    let mut good = true;
    for file in files {
        let run = |text: String| {
            let run = std::panic::catch_unwind(|| trace::run(&text));
            run.unwrap_or_else(|panic| Err(format!("panic: {}", shrink::text(&*panic))))
        };
        let result = std::fs::read_to_string(file).map_err(|e| e.to_string()).and_then(run);
        match result {
            Ok(log) => {
                println!("{}: ok", file.display());
                if verbose {
                    println!("  {}", log.join("\n  "));
                }
            }
            Err(e) => {
                println!("{}: FAILED: {e}", file.display());
                good = false;
            }
        }
    }
    good
}
