//! Tests that failed once, while others ran: tried again, alone.
//!
//! The tests run real programs against real time-outs, three test programs at a time beside builds, on machines with neighbours. One that fails then
//! and passes several times in a row alone is most often a test that wants too much of a busy machine. It is not a success: it is
//! named at the end as unsteady, with its output above, so that somebody looks for the reason. Where more than a few fail, none is tried again.

use crate::executables::Executable;
use crate::step::{Step, Tally};
use std::process::Command;
use std::time::Duration;

/// More failures than these are no matter of chance.
const FEW: usize = 3;
/// How often a test has to pass.
const TIMES: usize = 5;

/// Tries the tests again that are among the failures of `programs`; those that pass are unsteady. `prepare`: what the programs are told.
pub fn unsteady(programs: &[Executable], prepare: impl Fn(&mut Command), limit: Duration, tally: &mut Tally) {
    let known = |failure: &str| {
        let (name, test) = failure.split_once(": ")?;
        Some((programs.iter().find(|program| program.name == name)?, test.to_owned()))
    };
    // A program that was killed or did not end says of no test that it failed.
    let tests: Vec<_> = tally.failures.iter().filter_map(|failure| known(failure)).collect();
    if tests.len() != tally.failures.len() || tests.len() as u64 != tally.failed || tests.len() > FEW {
        return;
    }
    let failures = std::mem::take(&mut tally.failures);
    for ((program, test), failure) in tests.into_iter().zip(failures) {
        let passes = |_| {
            let mut c = program.command();
            prepare(&mut c);
            c.args(["--exact", &test]);
            let mut alone = Tally::default();
            Step::tests(format!("{failure}, alone"), c, limit).run(&mut alone) && alone.passed == 1
        };
        match (0..TIMES).all(passes) {
            true => {
                tally.failed -= 1;
                tally.passed += 1;
                tally.unsteady.push(format!("{failure}: failed among others, and passed {TIMES} times alone"));
            }
            false => tally.failures.push(failure),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A test program that is a script: `body` is run with the name of the test as `$2`.
    fn program(name: &str, body: &str) -> Executable {
        use std::os::unix::fs::PermissionsExt;
        let dir = std::env::temp_dir().join(format!("xtask-again-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let path = dir.join("program");
        std::fs::write(&path, format!("#!/bin/sh\n{body}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        Executable { name: name.into(), path, directory: dir }
    }

    #[test]
    fn what_passes_alone_is_unsteady_and_what_fails_again_has_failed() {
        let ok = "echo 'test result: ok. 1 passed; 0 failed; 0 ignored'";
        let steady = program("steady", &format!("[ $1 = --exact ] && [ $2 = a ] && {ok}"));
        // The third time it fails.
        let rare = program("rare", &format!("echo x >> times; [ $(wc -l < times) != 3 ] && {ok}"));
        let none = program("none", "echo 'test result: ok. 0 passed; 0 failed; 0 ignored'");
        let all = [steady, rare, none];
        let tried = |failures: &[&str], failed| {
            let failures = failures.iter().map(|f| (*f).to_owned()).collect();
            let mut tally = Tally { failures, failed, ..Tally::default() };
            unsteady(&all, |_| (), Duration::from_secs(20), &mut tally);
            (tally.failed, tally.failures.join(" "), tally.unsteady.join(" "))
        };
        let expected = |failed, failures: &str, unsteady: &str| (failed, failures.to_owned(), unsteady.to_owned());
        let named = "steady: a: failed among others, and passed 5 times alone";
        assert_eq!(tried(&["steady: a", "rare: b"], 2), expected(1, "rare: b", named));
        assert_eq!(tried(&["steady: b"], 1), expected(1, "steady: b", ""));
        assert_eq!(tried(&["none: a"], 1), expected(1, "none: a", ""), "nothing ran");
        assert_eq!(tried(&["steady: a", "elsewhere: a"], 2), expected(2, "steady: a elsewhere: a", ""));
        assert_eq!(tried(&["steady: a"], 2), expected(2, "steady: a", ""), "more has failed than is named");
        assert_eq!(tried(&["steady: a"; 4], 4).0, 4, "too many");
        assert_eq!(tried(&[], 0), expected(0, "", ""));
        for program in all {
            std::fs::remove_dir_all(program.directory).unwrap();
        }
    }
}
