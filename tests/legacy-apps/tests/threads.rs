//! Threads that are cancelled, jump away, or lose their descriptor while they sleep in a receive.

use legacy_apps::{BOTH, Seen, Side, compare};

/// Runs one scenario of `c/threads.c`, built with the compiler that Rust links with.
fn scenario(name: &str) {
    compare(&format!("threads-{name}"), BOTH, |lab| {
        let program = lab.compile("threads.c", &["-pthread"]);
        let log = lab.path("culvert.txt");
        let mut command = lab.command(Side::Client, &program);
        command.arg(name).env("CULVERT_LOG", "debug").env("CULVERT_LOG_FILE", &log);
        let mut seen = Seen::default();
        seen.note("said", lab.run(name, &mut command).success().text());
        lab.expect_ring(&log);
        seen
    });
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
