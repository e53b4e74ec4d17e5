//! The production code of shared memory under loom: every interleaving, and every value a weak memory model lets a load return.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p shmring --release --test loom`
#![cfg(loom)]

mod chunks;
mod handed_on;
mod holders;
mod holes;
mod in_place;
mod rings;

fn check(f: impl Fn() + Sync + Send + 'static) {
    let mut b = loom::model::Builder::new();
    // Three preemptions find every known lost wake-up and stale read in two-thread protocols; without a
    // bound the larger models here do not end. LOOM_MAX_PREEMPTIONS overrides it.
    b.preemption_bound = b.preemption_bound.or(Some(3));
    b.max_branches = 20_000;
    b.check(f);
}
