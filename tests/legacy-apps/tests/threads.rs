//! Threads that are cancelled, jump away, or lose their descriptor while they sleep in a receive.

use legacy_apps::{Lab, Side, compare_one, on_ring};

/// Runs one scenario of `c/threads.c`, built with the compiler that Rust links with.
fn scenario(name: &str) {
    let program = |lab: &Lab| {
        let mut command = lab.command(Side::Client, lab.compile("threads.c", &["-pthread"]));
        command.arg(name);
        command
    };
    compare_one(&format!("threads-{name}"), program, |_, log| on_ring(log) > 0);
}

#[test]
fn cancelled_between_messages() {
    scenario("cancel");
}

#[test]
fn jumped_away() {
    scenario("jump");
}

#[test]
fn number_reused() {
    scenario("reuse");
}

/// More threads than there are pollers, each asleep on a connection of its own.
#[test]
fn many_that_sleep() {
    let program = |lab: &Lab| {
        let mut command = lab.command(Side::Client, lab.compile("threads.c", &["-pthread"]));
        command.arg("many");
        command
    };
    compare_one("threads-many", program, |_, log| on_ring(log) > 200);
}

/// One who passes a connection on waits for its peer, whose bytes nobody can bring; handlers of signals run meanwhile.
#[test]
fn a_signal_while_a_connection_leaves() {
    let program = |lab: &Lab| lab.command(Side::Client, lab.compile("leaving.c", &[]));
    compare_one("leaving", program, |_, log| on_ring(log) > 0 && log.contains("left culvert"));
}
