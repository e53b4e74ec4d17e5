//! Plays scenarios, compares them, and makes failing ones smaller.

use std::time::{Duration, Instant};

use crate::conductor::{Conductor, Setup};
use crate::generate::{Generator, Options};
use crate::script::{HANG, Record, first_difference};

/// What one run of a scenario gave.
pub struct Run {
    /// The trace.
    pub trace: Vec<Record>,
    /// Most processes seen with a channel mapped.
    pub with_channel: usize,
    /// Where threads slept, if the run ended in a hang or a difference.
    pub whereabouts: String,
}

/// Generates the scenario `seed` while running it on the kernel.
pub fn generate(setup: &Setup, seed: u64, options: &Options) -> Run {
    let mut generator = Generator::new(seed, options.clone());
    let mut conductor = Conductor::new(setup);
    let mut trace = Vec::new();
    while let Some(line) = generator.next_step() {
        let record = conductor.step(&line, None);
        let hang = record.results.iter().any(|(_, r)| r.contains(HANG));
        generator.learn(&record, conductor.idle());
        trace.push(record);
        if hang {
            break;
        }
    }
    Run { trace, with_channel: 0, whereabouts: String::new() }
}

/// Runs given lines. With an expected trace it stops at the first difference.
pub fn play(setup: &Setup, lines: &[String], expected: Option<&[Record]>) -> Run {
    let mut conductor = Conductor::new(setup);
    let mut run = Run { trace: Vec::new(), with_channel: 0, whereabouts: String::new() };
    for (i, line) in lines.iter().enumerate() {
        let hint = expected.map(|e| &e[i]);
        let record = conductor.step(line, hint);
        run.with_channel = run.with_channel.max(conductor.with_channel);
        let hang = record.results.iter().any(|(_, r)| r.contains(HANG));
        let differs = hint.is_some_and(|h| *h != record);
        run.trace.push(record);
        if hang || differs {
            run.whereabouts = conductor.whereabouts();
            break;
        }
    }
    run
}

/// True when the trace contains a hang.
pub fn hangs(trace: &[Record]) -> bool {
    trace.iter().any(|r| r.results.iter().any(|(_, x)| x.contains(HANG)))
}

/// Runs `lines` on the kernel, then with the library: the two traces, if they differ.
pub fn differs(native: &Setup, other: &Setup, lines: &[String]) -> Option<(Vec<Record>, Run)> {
    let expected = play(native, lines, None).trace;
    if hangs(&expected) || expected.len() != lines.len() {
        return None;
    }
    let got = play(other, lines, Some(&expected));
    let at = first_difference(&expected, &got.trace)?;
    // The kernel must agree with itself, or the difference is the script's own.
    for _ in 0..2 {
        let again = play(native, lines, None).trace;
        if first_difference(&expected[..=at], &again[..again.len().min(at + 1)]).is_some() {
            return None;
        }
    }
    Some((expected, got))
}

/// Drops steps from `lines` as long as the traces still differ, for at most `budget`.
pub fn shrink(native: &Setup, other: &Setup, lines: Vec<String>, budget: Duration) -> Vec<String> {
    let until = Instant::now() + budget;
    let mut best = lines;
    if let Some((expected, got)) = differs(native, other, &best) {
        if let Some(at) = first_difference(&expected, &got.trace) {
            best.truncate(at + 1);
        }
    }
    let mut chunk = best.len() / 2;
    while chunk > 0 {
        let mut at = best.len().saturating_sub(1);
        while at > 0 && Instant::now() < until {
            let from = at.saturating_sub(chunk);
            let mut fewer = best.clone();
            fewer.drain(from..at);
            if let Some((expected, got)) = differs(native, other, &fewer) {
                if let Some(end) = first_difference(&expected, &got.trace) {
                    fewer.truncate(end + 1);
                }
                best = fewer;
                at = from.min(best.len().saturating_sub(1));
            } else {
                at = from;
            }
        }
        chunk /= 2;
    }
    best
}
