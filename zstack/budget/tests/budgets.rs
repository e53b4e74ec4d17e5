//! What a segment may cost. `RUSTFLAGS="-C target-cpu=x86-64-v2" cargo test --profile budget -p zstack-budget`; needs valgrind.

use std::path::Path;
use zstack_budget::count;

/// Instructions a segment, at most. Both figures with which a scenario is made, the compiler's and ours, may change a little:
/// a limit is 10 to 30 % above what was measured.
const LIMITS: &[(&str, f64)] = &[("parse", 100.0), ("parse-plain", 90.0), ("parse-v6", 105.0), ("emit", 80.0)];

#[test]
#[cfg_attr(debug_assertions, ignore = "counts what the profile `budget` makes: cargo test --profile budget")]
fn no_scenario_costs_more_than_it_may() {
    for (name, limit) in LIMITS {
        let instructions = count(Path::new(env!("CARGO_BIN_EXE_zstack-budget")), name).unwrap();
        assert!(instructions <= *limit, "{name}: {instructions:.1} instructions a segment, {limit} at most");
        assert!(instructions > limit / 2.0, "{name}: {instructions:.1} instructions a segment: has it done its work?");
    }
}
