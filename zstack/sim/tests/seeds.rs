//! A few hundred seeds; `cargo run --profile sim -p zstack-sim -- run --count 10000` runs many more.

use zstack_sim::scenario::Scenario;
use zstack_sim::world;

#[test]
fn seeds_run_without_a_fault() {
    let (mut done, mut conns, mut bytes) = (0, 0, 0);
    for seed in 0..300 {
        let outcome = world::run(&Scenario::new(seed), false);
        assert!(outcome.faults.is_empty(), "seed {seed}: {:#?}", outcome.faults);
        done += outcome.done;
        conns += outcome.conns;
        bytes += outcome.bytes;
    }
    assert!(done * 2 > conns, "of {conns} connections only {done} ended in order: the seeds try little");
    assert!(bytes > 1_000_000);
}

#[test]
fn a_seed_is_the_same_run_again() {
    for seed in 1_000..1_040 {
        let scenario = Scenario::new(seed);
        let (first, second) = (world::run(&scenario, false), world::run(&scenario, false));
        assert_eq!(first, second, "seed {seed}");
    }
}
