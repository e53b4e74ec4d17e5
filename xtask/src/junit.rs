//! The results of CPython's test runner: its JUnit-style report, or, when a run did not get as far as
//! writing one, its verbose output.

use std::collections::BTreeMap;

/// How a test ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// As it should.
    Passed,
    /// Did not run on this machine.
    Skipped,
    /// Failed, or raised an error.
    Failed,
}

/// Results by test name (`test.test_socket.Class.method`).
pub type Results = BTreeMap<String, Verdict>;

/// Reads a report. A test that occurs twice keeps its worse result.
pub fn report(xml: &str) -> Results {
    let mut results = Results::new();
    for case in xml.split("<testcase ").skip(1) {
        let Some(name) = case.strip_prefix("name=\"").and_then(|c| c.split('"').next()) else { continue };
        let head = case.split('>').next().unwrap_or("");
        let body = if head.ends_with('/') { "" } else { case.split("</testcase>").next().unwrap_or("") };
        let verdict = if body.contains("<failure") || body.contains("<error") {
            Verdict::Failed
        } else if body.contains("<skipped") {
            Verdict::Skipped
        } else {
            Verdict::Passed
        };
        note(&mut results, name, verdict);
    }
    results
}

/// Reads verbose output: "method (test.module.Class.method)", perhaps more lines, "... ok". The test that
/// was running at the end is returned too.
pub fn verbose(text: &str) -> (Results, Option<String>) {
    let mut results = Results::new();
    let mut running: Option<String> = None;
    for line in text.lines() {
        if let Some(name) = named(line) {
            running = Some(name.to_owned());
        }
        let verdict = match line {
            l if l == "ok" || l.ends_with("... ok") => Verdict::Passed,
            l if l.contains("... skipped ") || l.starts_with("skipped ") => Verdict::Skipped,
            l if ["FAIL", "ERROR"].iter().any(|w| l == *w || l.ends_with(&format!("... {w}"))) => Verdict::Failed,
            _ => continue,
        };
        if let Some(name) = running.take() {
            note(&mut results, &name, verdict);
        }
    }
    (results, running)
}

fn named(line: &str) -> Option<&str> {
    let (method, rest) = line.split_once(" (")?;
    let name = rest.split(')').next()?;
    // The name in parentheses ends with the method: other parentheses do not.
    (name.starts_with("test.") && name.ends_with(method) && !method.contains(' ')).then_some(name)
}

fn note(results: &mut Results, name: &str, verdict: Verdict) {
    let kept = results.entry(name.to_owned()).or_insert(verdict);
    if verdict == Verdict::Failed {
        *kept = verdict;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_a_report() {
        let xml = r#"<testsuites><testsuite><testcase name="test.a.B.one" status="run" time="0.1" /><testcase name="test.a.B.two" time="1"><skipped>no</skipped></testcase><testcase name="test.a.B.three"><failure message="x">y</failure></testcase><testcase name="test.a.B.four"><error/></testcase></testsuite></testsuites>"#;
        let all: Vec<_> = report(xml).into_iter().collect();
        let expected = [
            ("test.a.B.four", Verdict::Failed),
            ("test.a.B.one", Verdict::Passed),
            ("test.a.B.three", Verdict::Failed),
            ("test.a.B.two", Verdict::Skipped),
        ];
        assert_eq!(all, expected.map(|(n, v)| (n.to_owned(), v)));
    }

    #[test]
    fn reads_verbose_output_up_to_a_hang() {
        let text = "one (test.a.B.one) ... ok\ntwo (test.a.B.two)\nDocuments itself. ... skipped 'no'\n\
                    three (test.a.B.three) ... warning: noise\nok\nfour (test.a.B.four) ... FAIL\nfive (test.a.B.five) ... ";
        let (results, running) = verbose(text);
        assert_eq!(running.as_deref(), Some("test.a.B.five"));
        assert_eq!(results["test.a.B.one"], Verdict::Passed);
        assert_eq!(results["test.a.B.two"], Verdict::Skipped);
        assert_eq!(results["test.a.B.three"], Verdict::Passed);
        assert_eq!(results["test.a.B.four"], Verdict::Failed);
    }
}
