//! Threads that are cancelled, jump away, or lose their descriptor while they sleep in a receive.

use legacy_apps::{BOTH, Seen, Side, compare};
use std::process::Command;

/// Runs one scenario of `c/threads.c`, built with the compiler that Rust links with.
fn scenario(name: &str) {
    compare(&format!("threads-{name}"), BOTH, |lab| {
        let program = lab.path("threads");
        let source = legacy_apps::file("c").join("threads.c");
        let built = Command::new("cc").args(["-O1", "-pthread", "-o"]).arg(&program).arg(source).status().expect("a C compiler");
        assert!(built.success());
        let log = lab.path("culvert.txt");
        let mut command = lab.command(Side::Client, &program);
        command.arg(name).env("CULVERT_LOG", "debug").env("CULVERT_LOG_FILE", &log);
        let mut seen = Seen::default();
        seen.note("said", lab.run(name, &mut command).success().text());
        if lab.accelerated(Side::Client) && legacy_apps::shm_expected() {
            let log = std::fs::read_to_string(&log).expect("culvert's log");
            assert!(log.contains("receiving on the ring from"), "{name}: not what this is to test:\n{log}");
        }
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
