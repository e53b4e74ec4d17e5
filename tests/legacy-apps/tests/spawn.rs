//! Starting programs: what becomes of connections that they would inherit, whatever their peers do.

use legacy_apps::{Lab, Side, compare_one, on_ring};

/// Runs one scenario of `c/spawn.c`; `directions` of its connections come on a ring.
fn scenario(name: &str, how: &str, directions: usize) {
    let program = |lab: &Lab| {
        let mut command = lab.command(Side::Client, lab.compile("spawn.c", &[]));
        command.args([name, how]);
        command
    };
    compare_one(&format!("spawn-{name}-{how}"), program, |_, log| on_ring(log) >= directions);
}

/// A peer that is stopped is waited for once, not for each of its connections.
#[test]
fn unread_on_many_connections_with_a_stopped_peer() {
    for how in ["system", "popen", "fork"] {
        scenario("unread", how, 400);
    }
}
