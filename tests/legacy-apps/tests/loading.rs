//! What the library is loaded into: programs and other libraries that put functions in front of libc's as well, and
//! programs of another libc.

use legacy_apps::{BOTH, Lab, Seen, Side, compare, compare_one, on_ring};
use std::process::{Command, Stdio};

#[test]
fn functions_of_the_programs_own() {
    let program = |lab: &Lab| lab.command(Side::Client, lab.compile("ownwrite.c", &["-rdynamic"]));
    compare_one("own-write", program, |_, log| on_ring(log) > 0);
}

/// Where the library under test goes among others in front of libc.
const ORDERS: [&str; 2] = ["first", "last"];

#[test]
fn a_clock_that_stands_still() {
    for order in ORDERS {
        let program = |lab: &Lab| {
            let mut command = lab.command(Side::Client, lab.compile("timeouts.c", &[]));
            let clock = lab.compile("frozen.c", &["-shared", "-fPIC"]).display().to_string();
            let culvert = legacy_apps::library().display().to_string();
            let preload = match (lab.accelerated(Side::Client), order) {
                (false, _) => clock,
                (true, "first") => format!("{culvert}:{clock}"),
                (true, _) => format!("{clock}:{culvert}"),
            };
            command.env("LD_PRELOAD", preload);
            command
        };
        compare_one(&format!("frozen-clock-{order}"), program, |_, log| on_ring(log) > 0);
    }
}

/// musl's dynamic linker obeys LD_PRELOAD and refuses to start what it cannot bind completely.
#[test]
fn another_libc() {
    if !Command::new("musl-gcc").arg("--version").stdout(Stdio::null()).status().is_ok_and(|s| s.success()) {
        eprintln!("skipped: no musl-gcc (Debian's musl-tools)");
        return;
    }
    compare("musl", BOTH, |lab| {
        let program = lab.path("plain");
        let source = legacy_apps::file("c/plain.c");
        let mut cc = Command::new("musl-gcc");
        assert!(cc.arg("-O1").arg("-o").arg(&program).arg(source).status().expect("musl-gcc").success());
        let mut seen = Seen::default();
        let out = lab.run("musl", &mut lab.command(Side::Client, &program));
        seen.note("said", format!("{} {} {}", out.text(), out.status, out.stderr));
        // A child of `culvert run`, which itself refuses such a program.
        let mut shell = lab.command(Side::Client, "/bin/sh");
        let out = lab.run("shell", shell.args(["-c", "\"$@\"; echo $?", "sh"]).arg(&program));
        seen.note("child", format!("{} {} {}", out.text(), out.status, out.stderr));
        seen
    });
}
