//! Random networks, and the same ones each time: `ZSTACK_SEEDS` seeds, or a few hundred. `cargo xtask test` runs 10,000.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use zstack_sim::scenario::Scenario;
use zstack_sim::{shrink, world};

#[test]
fn seeds_run_without_a_fault() {
    let count: u64 = std::env::var("ZSTACK_SEEDS").map_or(300, |n| n.parse().expect("ZSTACK_SEEDS is a number"));
    let next = AtomicU64::new(0);
    let [done, conns, bytes] = [0; 3].map(AtomicU64::new);
    let faults = Mutex::new(vec![]);
    let work = || {
        loop {
            let seed = next.fetch_add(1, Relaxed);
            if seed >= count {
                return;
            }
            match catch_unwind(AssertUnwindSafe(|| world::run(&Scenario::new(seed), false))) {
                Ok(outcome) => {
                    for (total, n) in [(&done, outcome.done), (&conns, outcome.conns), (&bytes, outcome.bytes)] {
                        total.fetch_add(n, Relaxed);
                    }
                    faults.lock().unwrap().extend(outcome.faults.first().map(|fault| format!("seed {seed}: {fault}")));
                }
                Err(panic) => faults.lock().unwrap().push(format!("seed {seed}: panic: {}", shrink::text(&*panic))),
            }
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(work);
        work();
    });
    let faults = faults.into_inner().unwrap();
    assert!(
        faults.is_empty(),
        "{}\nto make one smaller: cargo run --profile sim -p zstack-sim -- run --seed SEED --count 1",
        faults.join("\n")
    );
    let [done, conns, bytes] = [done, conns, bytes].map(AtomicU64::into_inner);
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
