use super::*;
use zstack_wire::fuzzing::{Near, near_seeds};

/// See [`near_seeds`]; `ENGINE_FUZZ`: so many variants of each seed.
#[test]
fn seeds_and_what_is_near_them() {
    let tries = std::env::var("ENGINE_FUZZ").ok().and_then(|n| n.parse().ok()).unwrap_or(60);
    near_seeds(
        &[("engine-frames", frames), ("engine-segments", segments), ("engine-bridge", bridge)],
        &Near { tries, changes: 8, least: 20 },
    );
}
