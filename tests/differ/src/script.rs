//! Scripts and traces as text: what is generated, saved, sent to actors, compared and shrunk.
//!
//! A line is one step: `A.0 recv v1 100 0`, or several at once: `A.0 sendall .. || B.0 recvall ..`. A name
//! is process dot thread; `@` is the conductor itself. An operation that starts with `~` ends by itself
//! after a time-out, so being asleep does not mean that it is left blocked.

/// One operation of a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Op<'a> {
    /// Who does it.
    pub who: &'a str,
    /// Ends by itself: never taken for blocked.
    pub timed: bool,
    /// Name and arguments.
    pub text: &'a str,
}

/// Splits a line into its operations.
pub fn parse(line: &str) -> Vec<Op<'_>> {
    line.split(" || ")
        .map(|part| {
            let (who, text) = part.trim().split_once(' ').expect("a step names its actor");
            let timed = text.starts_with('~');
            Op { who, timed, text: text.trim_start_matches('~') }
        })
        .collect()
}

/// What came of one step: who finished what, in name order; `BLOCKED` for an operation left waiting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The step.
    pub line: String,
    /// Actor and result, of this step's operations and of earlier ones that it set free.
    pub results: Vec<(String, String)>,
}

impl Record {
    /// The result of `who` in this step.
    pub fn of(&self, who: &str) -> Option<&str> {
        self.results.iter().find(|(w, _)| w == who).map(|(_, r)| r.as_str())
    }

    /// Somebody neither finished nor slept where he should have.
    pub fn hangs(&self) -> bool {
        self.results.iter().any(|(_, r)| [HANG, SPINS, "STALLED"].iter().any(|word| r.contains(word)))
    }

    /// All results on one line.
    pub fn shown(&self) -> String {
        self.results.iter().map(|(w, r)| format!("{w}: {r}")).collect::<Vec<_>>().join("; ")
    }
}

/// Left waiting at the end of a step.
pub const BLOCKED: &str = "BLOCKED";
/// Did not finish although the same operation finishes on the kernel.
pub const HANG: &str = "HANG";
/// Neither finished nor asleep: it burns CPU where the kernel would let it sleep.
pub const SPINS: &str = "SPINS";
/// The actor could not be asked: it is dead, or still waiting in an earlier operation.
pub const SKIPPED: &str = "SKIPPED";

/// Index of the first step at which the traces differ.
pub fn first_difference(a: &[Record], b: &[Record]) -> Option<usize> {
    if let Some(i) = a.iter().zip(b).position(|(x, y)| x != y) {
        return Some(i);
    }
    (a.len() != b.len()).then(|| a.len().min(b.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_split_into_operations() {
        let ops = parse("A.0 ~recv v1 10 0 || B.1 send v2 10 3 0");
        assert_eq!(ops[0], Op { who: "A.0", timed: true, text: "recv v1 10 0" });
        assert_eq!(ops[1], Op { who: "B.1", timed: false, text: "send v2 10 3 0" });
    }

    #[test]
    fn a_missing_step_is_a_difference() {
        let r = |s: &str| Record { line: "A.0 x".into(), results: vec![("A.0".into(), s.into())] };
        assert_eq!(first_difference(&[r("1")], &[r("1")]), None);
        assert_eq!(first_difference(&[r("1")], &[r("2")]), Some(0));
        assert_eq!(first_difference(&[r("1"), r("1")], &[r("1")]), Some(1));
    }
}
