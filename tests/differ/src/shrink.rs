//! Plays scenarios, compares them, and makes failing ones smaller.

use std::time::{Duration, Instant};

use crate::conductor::{Conductor, Setup};
use crate::generate::{Generator, Options};
use crate::script::{Record, first_difference, parse};

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
        let hang = record.hangs();
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
        let hang = record.hangs();
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
    trace.iter().any(Record::hangs)
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

/// What kind of difference it is: the operation, and whether it hangs. Shrinking must not wander off to another.
fn kind(expected: &[Record], got: &[Record]) -> Option<(String, bool)> {
    let at = first_difference(expected, got)?;
    let op = parse(&expected.get(at)?.line).first()?.text.split(' ').next()?.to_owned();
    Some((op, got.get(at).is_some_and(Record::hangs)))
}

/// Without these the kernel's own timing (Nagle's algorithm) would show.
fn must_stay(line: &str) -> bool {
    line.contains("nodelay") || line.starts_with("@ start")
}

/// Drops steps from `lines` as long as the traces still differ in the same way, for at most `budget`.
pub fn shrink(native: &Setup, other: &Setup, lines: Vec<String>, budget: Duration) -> Vec<String> {
    let until = Instant::now() + budget;
    let mut best = lines;
    let Some((expected, got)) = differs(native, other, &best) else { return best };
    let original = kind(&expected, &got.trace);
    if let Some(at) = first_difference(&expected, &got.trace) {
        best.truncate(at + 1);
    }
    let mut chunk = best.len() / 2;
    while chunk > 0 {
        let mut at = best.len().saturating_sub(1);
        while at > 0 && Instant::now() < until {
            let from = at.saturating_sub(chunk);
            let keep = |i: usize, l: &str| i < from || i >= at || must_stay(l);
            let fewer: Vec<String> =
                best.iter().enumerate().filter(|(i, l)| keep(*i, l)).map(|(_, l)| l.clone()).collect();
            at = from;
            if fewer.len() == best.len() {
                continue;
            }
            let Some((expected, got)) = differs(native, other, &fewer) else { continue };
            if kind(&expected, &got.trace) != original {
                continue;
            }
            best = fewer;
            if let Some(end) = first_difference(&expected, &got.trace) {
                best.truncate(end + 1);
            }
            at = at.min(best.len() - 1);
        }
        chunk /= 2;
    }
    best
}
