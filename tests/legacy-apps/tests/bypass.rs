//! Calls that do not pass culvert: of libraries that find libc's functions first, and of programs that do without libc.

use legacy_apps::{Lab, Side, compare_one, on_ring};

/// Runs `c/loader.c`, which loads `c/asker.c` in the named way.
fn scenario(how: &str) {
    let program = |lab: &Lab| {
        let mut command = lab.command(Side::Client, lab.compile("loader.c", &[]));
        command.arg(how).arg(lab.compile("asker.c", &["-shared", "-fPIC"]));
        command
    };
    compare_one(&format!("bypass-{how}"), program, |_, log| on_ring(log) > 0);
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
    let program = |lab: &Lab| {
        let mut command = lab.command(Side::Client, lab.compile("rawcalls.c", &[]));
        command.arg(means);
        command
    };
    compare_one(&format!("bypass-{means}"), program, |said, log| {
        let had = !said.contains("io_uring:") || said.contains("made");
        log.contains(why) == had && (on_ring(log) == 0) == had
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

/// What is left to do for a connection is not done to another file that has its number by now.
#[test]
fn raw_close() {
    for next in ["accept", "dup", "stream", "file"] {
        let program = |lab: &Lab| {
            let mut command = lab.command(Side::Client, lab.compile("behind.c", &[]));
            command.arg(next);
            command
        };
        compare_one(&format!("raw-close-{next}"), program, |_, log| on_ring(log) > 0);
    }
}

/// Whose numbers of ours have become other files rings its peers all the same, and writes to none of those files.
#[test]
fn numbers_of_ours_that_a_program_has_closed_and_used() {
    let program = |lab: &Lab| lab.command(Side::Client, lab.compile("closeall.c", &[]));
    compare_one("bypass-closeall", program, |_, log| on_ring(log) > 0);
}

/// The kernel answers for a program that has put its connection into a map of sockets. Where it knows none, or does not let this user make
/// one, both say so.
#[test]
fn sockmaps() {
    let program = |lab: &Lab| lab.command(Side::Client, lab.compile("sockmap.c", &[]));
    compare_one("bypass-sockmap", program, |_, log| on_ring(log) > 0);
}
