//! One command of a chore: run with a time limit, its output passed on, its tests counted.

use std::cell::RefCell;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Tests counted so far.
#[derive(Default, Debug, PartialEq, Eq)]
pub struct Tally {
    /// Tests that passed.
    pub passed: u64,
    /// Tests, and steps outside of tests, that failed.
    pub failed: u64,
    /// What failed, for the summary.
    pub failures: Vec<String>,
    /// What failed and passed when it was run once more, and how it failed.
    pub unsteady: Vec<String>,
    /// Each step and how long it took, for the summary.
    pub times: Vec<(String, Duration)>,
}

impl std::fmt::Display for Tally {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} passed, {} failed", self.passed, self.failed)
    }
}

impl Tally {
    /// Counts a failure that no test reported.
    pub fn fail(&mut self, what: String) {
        self.failed += 1;
        self.failures.push(what);
    }

    /// Takes over what another one counted.
    pub fn add(&mut self, other: Tally) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.failures.extend(other.failures);
        self.unsteady.extend(other.unsteady);
        self.times.extend(other.times);
    }

    /// Reads one line of cargo's or a test program's output.
    pub fn read(&mut self, step: &str, line: &str) {
        // "test result: ok. 6 passed; 0 failed; 0 ignored; ..."
        if let Some(counts) = line.strip_prefix("test result: ") {
            let mut words = counts.split([' ', ';', '.']).filter(|w| !w.is_empty()).skip(1);
            let mut count = |word: &str| {
                let n: u64 = words.next().and_then(|n| n.parse().ok()).unwrap_or(0);
                if words.next() == Some(word) { n } else { 0 }
            };
            self.passed += count("passed");
            self.failed += count("failed");
        } else if let Some(name) = failed(line) {
            self.failures.push(format!("{step}: {name}"));
        }
    }
}

/// The test that a line says has failed: of the usual output, or of the short one (`--quiet`).
fn failed(line: &str) -> Option<&str> {
    let usual = line.strip_prefix("test ").and_then(|l| l.strip_suffix(" ... FAILED"));
    usual.or_else(|| line.strip_suffix(" --- FAILED"))
}

thread_local! {
    /// What the steps of this thread have said; `None`: it is printed at once.
    static HELD_BACK: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Prints a line of a step's output, or holds it back.
fn say(line: &str) {
    HELD_BACK.with_borrow_mut(|held| match held {
        Some(text) => {
            text.push_str(line);
            text.push('\n');
        }
        None => println!("{line}"),
    });
}

/// Some steps, one after the other.
pub type Part = Box<dyn FnOnce(&mut Tally) + Send>;

/// Runs parts, `threads` at a time: whichever thread is free takes the next one, so those that take long come first. What a part
/// prints appears as a whole when it is done.
pub fn side_by_side(threads: usize, tally: &mut Tally, parts: Vec<Part>) {
    let parts = Mutex::new(parts.into_iter());
    let next = || parts.lock().expect("nobody panics who holds it").next();
    std::thread::scope(|scope| {
        let worker = || {
            let mut tally = Tally::default();
            while let Some(part) = next() {
                HELD_BACK.set(Some(String::new()));
                part(&mut tally);
                print!("{}", HELD_BACK.take().unwrap_or_default());
            }
            tally
        };
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(worker)).collect();
        workers.into_iter().for_each(|w| tally.add(w.join().expect("its parts")));
    });
}

/// A command to run.
pub struct Step {
    name: String,
    command: Command,
    limit: Duration,
    tests: bool,
}

impl Step {
    /// `command`, killed with all it started when it takes longer than `limit`.
    pub fn new(name: impl Into<String>, command: Command, limit: Duration) -> Step {
        Step { name: name.into(), command, limit, tests: false }
    }

    /// The same for a command that runs tests: it fails if it ends without having run one.
    pub fn tests(name: impl Into<String>, command: Command, limit: Duration) -> Step {
        Step { tests: true, ..Step::new(name, command, limit) }
    }

    /// Runs it; true if it ended with status 0. Counts the tests it reports into `tally`; a failure that
    /// is not a failed test counts as one.
    pub fn run(mut self, tally: &mut Tally) -> bool {
        say(&format!("\n== {}: {}", self.name, show(&self.command)));
        let begin = Instant::now();
        let (before, passed) = (tally.failed, tally.passed);
        let out = capture(&mut self.command, self.limit, |line| {
            say(line);
            tally.read(&self.name, line);
        });
        let none_ran = self.tests && tally.passed == passed && tally.failed == before;
        let ok = matches!(out, Ok(true)) && !none_ran;
        if !ok && tally.failed == before {
            let why = match out {
                Ok(true) => "no test ran".to_owned(),
                Ok(false) => "failed".to_owned(),
                Err(e) => e,
            };
            tally.fail(format!("{}: {why}", self.name));
        }
        let time = begin.elapsed();
        say(&format!("== {}: {} after {:.0} s", self.name, if ok { "ok" } else { "FAILED" }, time.as_secs_f32()));
        tally.times.push((self.name, time));
        ok
    }
}

/// A command line, for people.
pub fn show(c: &Command) -> String {
    let words = std::iter::once(c.get_program()).chain(c.get_args());
    words.map(|w| w.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
}

/// Runs `command` in a process group of its own; hands each line of its standard output to `line`.
/// `Ok(status is 0)`, or why there is no status.
pub fn capture(command: &mut Command, limit: Duration, line: impl FnMut(&str)) -> Result<bool, String> {
    status_of(command, limit, line).map(|status| status.success())
}

/// The same, with the status as it is.
pub fn status_of(command: &mut Command, limit: Duration, mut line: impl FnMut(&str)) -> Result<ExitStatus, String> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).process_group(0);
    let mut child = command.spawn().map_err(|e| format!("{}: {e}", show(command)))?;
    let group = child.id();
    let out = child.stdout.take().expect("a pipe");
    let (tx, rx) = std::sync::mpsc::channel();
    let reader = std::thread::spawn(move || {
        let mut lines = BufReader::new(out);
        let mut raw = Vec::new();
        // Lines need not be UTF-8.
        while matches!(lines.read_until(b'\n', &mut raw), Ok(n) if n > 0) {
            let text = String::from_utf8_lossy(&raw).trim_end_matches('\n').to_owned();
            if tx.send(text).is_err() {
                let _ = lines.read_to_end(&mut Vec::new());
                return;
            }
            raw.clear();
        }
    });
    let end = Instant::now() + limit;
    loop {
        match rx.recv_timeout(end.saturating_duration_since(Instant::now())) {
            Ok(text) => line(&text),
            Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => break,
            Err(std::sync::mpsc::RecvTimeoutError::Timeout) => {
                kill_group(group);
                let _ = child.wait();
                // Nobody of the group holds the pipe any more; a daemon outside of it may, so do not join.
                drop(reader);
                return Err(format!("not done within {} s", limit.as_secs()));
            }
        }
    }
    // The pipe is closed; the program itself may still be on its way out.
    if !poll_until(end.saturating_duration_since(Instant::now()).max(Duration::from_secs(5)), || {
        matches!(child.try_wait(), Ok(Some(_)) | Err(_))
    }) {
        kill_group(group);
    }
    let _ = reader.join();
    child.wait().map_err(|e| e.to_string())
}

/// Sends a signal to a process that this one has started.
pub fn signal(pid: u32, signal: i32) {
    // SAFETY: kill touches no memory; the caller has not reaped the process, or its parent has not.
    unsafe { libc::kill(pid as i32, signal) };
}

/// Waits until what was printed has left the terminal.
pub fn drain() {
    let _ = std::io::stdout().flush();
    // SAFETY: tcdrain takes a descriptor and touches no memory.
    unsafe { libc::tcdrain(libc::STDOUT_FILENO) };
}

fn kill_group(group: u32) {
    // SAFETY: kill touches no memory; the group was made for the child, which has not been reaped.
    unsafe { libc::kill(-(group as i32), libc::SIGKILL) };
}

/// Polls `done` until it is true; false if it was not within `limit`.
pub fn poll_until(limit: Duration, mut done: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + limit;
    while !done() {
        if Instant::now() >= end {
            return false;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    true
}

/// A program that is killed when this is dropped.
pub struct Guard(pub Child);

impl Drop for Guard {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_what_test_programs_report() {
        let mut t = Tally::default();
        t.read("s", "test result: ok. 6 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.1s");
        t.read("s", "test result: FAILED. 3 passed; 2 failed; 0 ignored");
        t.read("s", "test a::b ... FAILED");
        t.read("s", "test a::c ... ok");
        t.read("s", "a::d --- FAILED");
        let failures = vec!["s: a::b".into(), "s: a::d".into()];
        assert_eq!(t, Tally { passed: 9, failed: 2, failures, ..Tally::default() });
    }

    #[test]
    fn a_step_of_tests_that_runs_none_has_failed() {
        let step = |script: &str| {
            let mut c = Command::new("sh");
            c.args(["-c", script]);
            let mut t = Tally::default();
            (Step::tests("s", c, Duration::from_secs(20)).run(&mut t), t.failed)
        };
        assert_eq!(step("echo 'test result: ok. 0 passed; 0 failed; 0 ignored'"), (false, 1));
        assert_eq!(step("echo 'test result: ok. 1 passed; 0 failed; 0 ignored'"), (true, 0));
        assert_eq!(step("echo 'test result: FAILED. 1 passed; 1 failed; 0 ignored'; exit 101"), (false, 1));
    }

    #[test]
    fn what_runs_at_the_same_time_is_counted_together() {
        let step = |name: &str, script: &str, tally: &mut Tally| {
            let mut c = Command::new("sh");
            c.args(["-c", script]);
            Step::tests(name, c, Duration::from_secs(20)).run(tally);
        };
        // Each waits for the other: one after the other they would not end in time.
        let dir = std::env::temp_dir().join(format!("xtask-steps-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let meet = |mine: &str, other: &str| {
            format!(
                "cd {} && touch {mine} && until [ -e {other} ]; do sleep 0.01; done; \
                 echo 'test result: ok. 1 passed; 0 failed; 0 ignored'",
                dir.display()
            )
        };
        let mut tally = Tally::default();
        let (one, other) = (meet("a", "b"), meet("b", "a"));
        side_by_side(
            2,
            &mut tally,
            vec![
                Box::new(move |t| step("one", &one, t)),
                Box::new(move |t| step("other", &other, t)),
                Box::new(move |t| step("fails", "exit 1", t)),
            ],
        );
        std::fs::remove_dir_all(&dir).unwrap();
        assert_eq!((tally.passed, tally.failed, tally.times.len()), (2, 1, 3), "{tally:?}");
    }

    #[test]
    fn a_program_over_its_limit_is_killed_with_its_children() {
        let mut c = Command::new("sh");
        c.args(["-c", "echo begun; sleep 1000 & sleep 1000"]);
        let mut lines = Vec::new();
        let out = capture(&mut c, Duration::from_millis(300), |l| lines.push(l.to_owned()));
        assert!(out.is_err(), "{out:?}");
        assert_eq!(lines, ["begun"]);
    }

    #[test]
    fn the_status_is_the_programs() {
        for (script, expected) in [("exit 0", true), ("exit 3", false), ("kill -9 $$", false)] {
            assert_eq!(capture(Command::new("sh").args(["-c", script]), Duration::from_secs(20), |_| ()), Ok(expected));
        }
    }
}
