//! Mistakes in the engine are noticed. It takes a build of its own, and so is asked for: `ZSTACK_MUTANTS` seeds are tried where
//! traces do not tell.
//! `cargo xtask test` tries 500; `cargo run --profile sim -p zstack-sim -- mutants` prints the table as it grows.

use std::path::Path;
use zstack_sim::mutants::{Bench, run};

#[test]
fn seeds_or_traces_notice_every_mistake() {
    let Ok(count) = std::env::var("ZSTACK_MUTANTS") else {
        println!("not asked for: ZSTACK_MUTANTS is not set");
        return;
    };
    let count = count.parse().expect("ZSTACK_MUTANTS is a number");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    // Cargo's target folder: what this test lies in is `debug/deps` there.
    let test = std::env::current_exe().expect("a program knows where it lies");
    let target = test.ancestors().nth(3).expect("the target folder");
    let bench = Bench { source: &source, target, count, every: false, shrink: false };
    assert!(run(&bench, ""), "the table says which");
}
