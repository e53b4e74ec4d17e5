//! Libraries whose calls find libc's functions before culvert's.

use legacy_apps::{BOTH, Seen, Side, compare};

/// Runs `c/loader.c`, which loads `c/asker.c` in the named way.
fn scenario(how: &str) {
    compare(&format!("loader-{how}"), BOTH, |lab| {
        let program = lab.compile("loader.c", &[]);
        let library = lab.compile("asker.c", &["-shared", "-fPIC"]);
        let log = lab.path("culvert.txt");
        let mut command = lab.command(Side::Client, &program);
        command.arg(how).arg(&library).env("CULVERT_LOG", "debug").env("CULVERT_LOG_FILE", &log);
        let mut seen = Seen::default();
        seen.note("said", lab.run(how, &mut command).success().text());
        lab.expect_ring(&log);
        seen
    });
}

#[test]
fn deepbind() {
    scenario("deepbind");
}

#[test]
fn namespace() {
    scenario("namespace");
}
