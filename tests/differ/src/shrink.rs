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

/// What kind of difference it is: the operation, and what came of it here and there. Shrinking must not wander off to another.
#[derive(Debug, PartialEq, Eq)]
struct Fault {
    op: String,
    /// For each operation that ended otherwise, what is otherwise in its result, as on the kernel and as with the library.
    results: Vec<[Vec<String>; 2]>,
}

fn fault(expected: &[Record], got: &[Record]) -> Option<Fault> {
    let at = first_difference(expected, got)?;
    let expected = expected.get(at)?;
    let op = parse(&expected.line).first()?.text.split(' ').next()?.to_owned();
    let nothing = Record { line: String::new(), results: Vec::new() };
    let got = got.get(at).unwrap_or(&nothing);
    let mut who: Vec<&str> = expected.results.iter().chain(&got.results).map(|(who, _)| who.as_str()).collect();
    who.sort_unstable();
    who.dedup();
    let of = |record: &Record, who| record.of(who).unwrap_or("(nothing)").to_owned();
    let pairs = who.into_iter().map(|who| (of(expected, who), of(got, who)));
    let results = pairs.filter(|(e, g)| e != g).map(|(e, g)| otherwise(&e, &g)).collect();
    Some(Fault { op, results })
}

/// What is otherwise in two results, word by word. How many bytes there were, and which, depends on what came before, which
/// shrinking leaves out; errors, events and hangs are the fault itself.
fn otherwise(expected: &str, got: &str) -> [Vec<String>; 2] {
    let (e, g): (Vec<&str>, Vec<&str>) = (words(expected), words(got));
    let mut both = [Vec::new(), Vec::new()];
    for i in 0..e.len().max(g.len()) {
        match (e.get(i), g.get(i)) {
            (e, g) if e == g => {}
            (Some(e), Some(g)) if sign(e) == sign(g) && key(e) == key(g) => {
                let less = number(e) < number(g);
                both[usize::from(less)].push(format!("{}: more", key(e)));
            }
            (e, g) => {
                both[0].extend(e.map(|word| sign(word)));
                both[1].extend(g.map(|word| sign(word)));
            }
        }
    }
    both
}

/// The words of a result; of events (`[402:14,403:5]`), which come with the name of what they are of, those alone.
fn words(result: &str) -> Vec<&str> {
    let part = |word: &'_ str| -> usize { word.rfind(':').map_or(0, |at| at + 1) };
    result.split([' ', ',', '[', ']', '\t']).filter(|word| !word.is_empty()).map(|word| &word[part(word)..]).collect()
}

fn key(word: &str) -> &str {
    word.split_once('=').map_or("", |(key, _)| key)
}

/// A hash is as good as any other.
fn number(word: &str) -> i64 {
    word.split_once('=').and_then(|(_, value)| value.parse().ok()).unwrap_or(0)
}

/// A word without the number that it tells, where that is one of bytes or the like: but not whether there were any.
fn sign(word: &str) -> String {
    match word.split_once('=') {
        Some((key @ "h", _)) => key.to_owned(),
        Some((key, value)) => match value.parse::<i64>() {
            Ok(n) => format!(
                "{key}{}0",
                if n < 0 {
                    '<'
                } else if n > 0 {
                    '>'
                } else {
                    '='
                }
            ),
            Err(_) => word.to_owned(),
        },
        None => word.to_owned(),
    }
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
    let original = fault(&expected, &got.trace);
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
            if fault(&expected, &got.trace) != original {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn found(line: &str, expected: &str, got: &str) -> Option<Fault> {
        let trace = |result: &str| {
            let results = result.split("; ").filter_map(|r| r.split_once(": "));
            let results = results.map(|(who, r)| (who.to_owned(), r.to_owned())).collect();
            vec![Record { line: line.to_owned(), results }]
        };
        fault(&trace(expected), &trace(got))
    }

    #[test]
    fn the_same_fault_on_fewer_bytes_is_the_same() {
        let original = found("B.0 recv v1 900 0", "B.0: r=788 h=b9304fd9", "B.0: r=-1 ECONNRESET");
        assert_eq!(original, found("B.0 recv v1 9 0", "B.0: r=5 h=11111111", "B.0: r=-1 ECONNRESET"));
        let less = found("B.0 recv v1 900 0", "B.0: r=788 h=b9304fd9", "B.0: r=700 h=c9304fd9");
        assert_eq!(less, found("B.0 recv v1 900 0", "B.0: r=7 h=19304fd9", "B.0: r=1 h=19304fd0"));
        assert!(original.is_some() && less.is_some() && original != less);
        // What others did is not the fault; nor is how a descriptor is called.
        assert_eq!(original, found("B.0 recv v1 9 0", "A.1: r=9; B.0: r=5 h=11", "A.1: r=9; B.0: r=-1 ECONNRESET"));
        let events = found("A.0 epwait v4 0", "A.0: r=1 [402:14]", "A.0: r=0 []");
        assert_eq!(events, found("A.0 epwait v4 0", "A.0: r=1 [301:14]", "A.0: r=0 []"));
    }

    #[test]
    fn another_error_is_another_fault() {
        let original = found("B.0 recv v1 900 0", "B.0: r=788 h=b9304fd9", "B.0: r=-1 ECONNRESET");
        for (expected, got) in [
            ("B.0: r=788 h=b9304fd9", "B.0: r=-1 EPIPE"),
            ("B.0: r=788 h=b9304fd9", "B.0: r=0"),
            ("B.0: r=788 h=b9304fd9", "B.0: HANG"),
            ("B.0: r=788 h=b9304fd9", "B.0: r=700 h=c9304fd9"),
            ("B.0: r=0", "B.0: r=-1 ECONNRESET"),
            ("B.0: r=-1 EAGAIN", "B.0: r=-1 ECONNRESET"),
            ("B.0: r=788 h=b9304fd9; A.0: r=1", "B.0: r=-1 ECONNRESET; A.0: r=0"),
        ] {
            assert_ne!(original, found("B.0 recv v1 9 0", expected, got), "{expected} {got}");
        }
        assert_ne!(original, found("B.0 read v1 900", "B.0: r=788 h=b9304fd9", "B.0: r=-1 ECONNRESET"));
        let more = found("B.0 recv v1 9 0", "B.0: r=7 h=1", "B.0: r=9 h=2");
        assert_ne!(more, found("B.0 recv v1 9 0", "B.0: r=9 h=2", "B.0: r=7 h=1"));
        let poll = found("A.0 poll poll 0 v1:0", "A.0: r=0 [0]", "A.0: r=1 [18]");
        assert_ne!(poll, found("A.0 poll poll 0 v1:0", "A.0: r=0 [0]", "A.0: r=1 [10]"));
        assert_ne!(poll, found("A.0 poll poll 0 v1:0", "A.0: r=1 [18]", "A.0: r=0 [0]"));
    }

    #[test]
    fn traces_that_agree_have_no_fault() {
        assert_eq!(found("A.0 recv v1 9 0", "A.0: r=1 h=1", "A.0: r=1 h=1"), None);
    }
}
