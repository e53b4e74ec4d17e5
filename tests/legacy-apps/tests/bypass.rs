//! Calls that do not pass culvert: of libraries that find libc's functions first, and of programs that do without libc.

use legacy_apps::{BOTH, Seen, Side, compare};

/// Runs `c/loader.c`, which loads `c/asker.c` in the named way.
fn scenario(how: &str) {
    compare(&format!("bypass-{how}"), BOTH, |lab| {
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

/// Runs `c/rawcalls.c` with the named means. Unless it cannot have them, it must stay on the kernel.
fn raw(means: &str, why: &str) {
    compare(&format!("bypass-{means}"), BOTH, |lab| {
        let program = lab.compile("rawcalls.c", &[]);
        let log = lab.path("culvert.txt");
        let mut command = lab.command(Side::Client, &program);
        command.arg(means).env("CULVERT_LOG", "debug").env("CULVERT_LOG_FILE", &log);
        let out = lab.run(means, &mut command).success();
        if lab.accelerated(Side::Client) && legacy_apps::shm_expected() {
            let log = std::fs::read_to_string(&log).expect("culvert's log");
            let had = !out.text().contains("io_uring:") || out.text().contains("made");
            assert_eq!(log.contains(why), had, "{log}");
            assert_eq!(log.contains("receiving on the ring"), !had, "{log}");
        }
        let mut seen = Seen::default();
        seen.note("said", out.text());
        seen
    });
}

#[test]
fn raw_epoll() {
    raw("epoll", "an epoll set that libc did not make");
}

#[test]
fn raw_io_uring() {
    raw("io_uring", "has an io_uring");
}
