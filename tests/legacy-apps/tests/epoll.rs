//! epoll on connections in shared memory says what it says on the kernel: levels, edges, oneshots, ends.
//!
//! Each scenario of `py/epolls.py` has both ends in one process; `CULVERT_EAGER=1` takes them into shared
//! memory before their first bytes, so that every event in it is culvert's. Without rings in it, a scenario is about
//! connections that stay on the kernel.

use legacy_apps::{Lab, Side, compare_one, on_ring};

/// Runs one scenario; under culvert at least `rings` directions must have gone through shared memory.
fn scenario(name: &str, rings: usize) {
    let program = |lab: &Lab| {
        let mut command = lab.python(Side::Client, "epolls.py");
        command.arg(name);
        if rings > 0 {
            command.env("CULVERT_EAGER", "1");
        }
        command
    };
    compare_one(&format!("epoll-{name}"), program, |_, log| on_ring(log) >= rings);
}

macro_rules! scenarios {
    ($($name:ident: $rings:literal,)*) => {$(
        #[test]
        fn $name() {
            scenario(stringify!($name), $rings);
        }
    )*};
}

scenarios! {
    level: 2,
    edge: 2,
    edge_out: 2,
    oneshot: 2,
    oneshot_before_attach: 2,
    threads: 16,
    sleepers: 8,
    two_sets: 2,
    nested: 2,
    duplicates: 4,
    ends: 12,
    killed: 2,
    single: 6,
    fairness: 24,
    small_buffers: 1,
    masks: 2,
    timeouts: 2,
    faults: 2,
    exclusive: 2,
    forked: 2,
    shared: 4,
    kept: 2,
    twice: 2,
    passed: 2,
    owed: 0,
    owed_changes: 0,
    unseen: 0,
    number_back: 4,
    first_wait: 2,
    hidden: 20,
    order: 10,
    order_kept: 12,
    idle: 6,
}
