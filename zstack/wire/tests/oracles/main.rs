//! Three parsers read the same bytes: ours, smoltcp's and etherparse's. They say the same, or the reason why not is listed here,
//! holds for these bytes, and occurs: a reason that none of the inputs has is out of date, and fails too.

mod icmp;
mod ip;
mod link;
mod tcp;

use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::{Config, TestRunner};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt::Debug;

/// What was found so far: how often the others agreed, and how often not for which reason.
#[derive(Default)]
struct Tally {
    agreed: u32,
    reasons: BTreeMap<&'static str, u32>,
    failure: Option<String>,
}

impl Tally {
    /// Ours and another's; if they are not the same, `reason` has to know why.
    fn compare<T: PartialEq + Debug>(&mut self, ours: T, theirs: T, reason: Option<&'static str>) {
        if ours == theirs {
            self.agreed += 1;
        } else if let Some(reason) = reason {
            *self.reasons.entry(reason).or_default() += 1;
        } else {
            self.failure = Some(format!("ours {ours:?}, theirs {theirs:?}, and no reason is known"));
        }
    }
}

/// Compares over many inputs; `reasons` are all that are known. At least half of the comparisons have to agree.
fn check<S>(inputs: S, reasons: &[&'static str], compare: impl Fn(&mut Tally, &[u8]))
where
    S: Strategy<Value = Vec<u8>>,
{
    let tally = RefCell::new(Tally::default());
    let mut runner = TestRunner::new_with_rng(
        Config { cases: 3000, failure_persistence: None, ..Config::default() },
        proptest::test_runner::TestRng::deterministic_rng(proptest::test_runner::RngAlgorithm::ChaCha),
    );
    let run = runner.run(&inputs, |bytes| {
        let mut tally = tally.borrow_mut();
        compare(&mut tally, &bytes);
        tally.failure.take().map_or(Ok(()), |text| Err(TestCaseError::fail(text)))
    });
    if let Err(failure) = run {
        panic!("{failure}");
    }
    let tally = tally.into_inner();
    let differed: u32 = tally.reasons.values().sum();
    assert!(tally.agreed > differed, "agreed {} times only, {:?}", tally.agreed, tally.reasons);
    let seen: Vec<_> = tally.reasons.keys().copied().collect();
    let mut listed = reasons.to_vec();
    listed.sort_unstable();
    assert_eq!(seen, listed, "the reasons that occur, and those that are listed");
}

/// The bytes, with up to three of them changed, the end cut off or something behind it.
fn mutated(valid: impl Strategy<Value = Vec<u8>>) -> impl Strategy<Value = Vec<u8>> {
    let edits = prop::collection::vec((any::<Index>(), any::<u8>()), 0..4);
    let end = prop_oneof![4 => Just(0i32), 1 => 1..8i32, 1 => -60..0i32];
    (valid, edits, end).prop_map(|(mut bytes, edits, end)| {
        for (at, value) in edits {
            // Changes are where headers are.
            let len = bytes.len().min(64);
            if len > 0 {
                bytes[at.index(len)] = value;
            }
        }
        let len = (bytes.len() as i32 + end).max(0) as usize;
        bytes.resize(len, 0x5a);
        bytes
    })
}

fn some_bytes(most: usize) -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>(), 0..=most)
}
