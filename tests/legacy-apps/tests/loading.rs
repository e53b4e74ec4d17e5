//! What the library is loaded into: programs and other libraries that put functions in front of libc's as well, and
//! programs of another libc.

use legacy_apps::{BOTH, Lab, Mode, PATIENCE, Seen, Side, compare, compare_one, on_ring, procs, stat, wait_for};
use std::os::unix::fs::PermissionsExt;
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
            command.env("LD_PRELOAD", preload(lab, &culvert, &clock, order));
            command
        };
        compare_one(&format!("frozen-clock-{order}"), program, |_, log| on_ring(log) > 0);
    }
}

/// An auditing library leaves little room for thread-local storage of those that are preloaded.
#[test]
fn audited_programs() {
    let program = |lab: &Lab| {
        let mut command = lab.command(Side::Client, lab.compile("plain.c", &[]));
        command.env("LD_AUDIT", lab.compile("auditor.c", &["-shared", "-fPIC"]));
        command
    };
    compare_one("audited", program, |_, _| true);
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

/// What a program writes while it ends arrives, whatever it has left unread or reads then, in the named order of ending.
fn ending(how: &str, unread: &[&str]) {
    for unread in unread {
        let program = |lab: &Lab| {
            let dir = lab.dir().display().to_string();
            lab.compile("lastwords.c", &["-shared", "-fPIC"]);
            std::fs::rename(lab.path("lastwords"), lab.path("liblastwords.so")).expect("the library just made");
            let options =
                [&format!("-L{dir}"), "-Wl,--no-as-needed", "-llastwords", "-pthread", &format!("-Wl,-rpath,{dir}")];
            let mut command = lab.command(Side::Client, lab.compile("farewell.c", &options));
            command.args([how, unread]);
            command
        };
        compare_one(&format!("end-{how}"), program, |_, log| on_ring(log) > 0);
    }
}

macro_rules! endings {
    ($($name:ident: $how:literal, $unread:expr;)*) => {$(
        #[test]
        fn $name() {
            ending($how, &$unread);
        }
    )*};
}

endings! {
    end_of_destructors: "exit", ["0", "1000", "300000"];
    end_of_quick_exit: "quick_exit", ["0", "1000"];
    end_of_handlers: "atexit", ["0", "1000"];
    end_of_a_thread: "key", ["0", "1000"];
    end_by_another_thread: "other-thread", ["0", "1000"];
    end_of_a_threads_words: "thread", ["0", "1000"];
    end_without_handlers: "_exit", ["0", "1000"];
    end_by_a_system_call: "raw", ["0", "1000"];
    end_by_a_kill: "killed", ["0", "1000"];
    end_by_an_abort: "abort", ["0", "1000"];
    end_of_the_first_thread_alone: "first-thread", ["0"];
    end_of_streams: "stdio", ["0"];
    end_of_a_child_first: "shared", ["0"];
}

/// Runs `c/handles.c`, in which `who` looks functions up; `between`: beside `c/between.c`, built with that.
fn lookup(how: &str, who: &str, between: Option<(&str, &str)>) {
    let program = |lab: &Lab| {
        let library = lab.compile("finder.c", &["-shared", "-fPIC"]).display().to_string();
        let options = match who {
            // Behind culvert, too, where libc is looked for.
            "needed" => vec!["-Wl,--no-as-needed", &library],
            _ => vec![],
        };
        let finder = legacy_apps::file("c/finder.c").display().to_string();
        let built_in = [options.as_slice(), &[finder.as_str()]].concat();
        let options = if who == "needed" { &options } else { &built_in };
        let mut command = lab.command(Side::Client, lab.compile("handles.c", options));
        command.arg(how).arg(if who == "library" { &library } else { "program" });
        if let Some((next, order)) = between {
            let between = lab.compile("between.c", &["-shared", "-fPIC", next]).display().to_string();
            let culvert = legacy_apps::library().display().to_string();
            command.env("LD_PRELOAD", preload(lab, &culvert, &between, order));
        }
        command
    };
    compare_one(&format!("lookup-{who}"), program, |_, log| on_ring(log) > 0);
}

/// Both libraries in the named order; natively the other one alone.
fn preload(lab: &Lab, culvert: &str, other: &str, order: &str) -> String {
    match (lab.accelerated(Side::Client), order) {
        (false, _) => other.to_owned(),
        (true, "first") => format!("{culvert}:{other}"),
        (true, _) => format!("{other}:{culvert}"),
    }
}

#[test]
fn functions_looked_up_by_the_program() {
    for how in ["handle", "version", "next", "next-version", "default", "again"] {
        lookup(how, "program", None);
    }
}

#[test]
fn functions_looked_up_by_a_library() {
    for who in ["library", "needed"] {
        for how in ["handle", "next", "next-version"] {
            lookup(how, who, None);
        }
    }
}

/// A library that is called by us, and asks for what is next, must not be sent back to us.
#[test]
fn functions_looked_up_between() {
    for next in ["-DHOW=RTLD_NEXT", "-DHOW=dlopen(\"libc.so.6\",RTLD_NOW)"] {
        for order in ORDERS {
            lookup("handle", "program", Some((next, order)));
            lookup("next", "needed", Some((next, order)));
        }
    }
}

/// Under a filter that came with the image culvert makes no call that the program does not make anyhow.
#[test]
fn filters_that_were_there_before() {
    for how in ["errno", "kill", "stall"] {
        let program = |lab: &Lab| {
            let mut command = lab.command(Side::Client, lab.compile("jailed.c", &[]));
            command.arg(how);
            command
        };
        compare_one(&format!("jailed-{how}"), program, |said, log| said == "status 0" && on_ring(log) == 0);
    }
}

/// A filter that the program installs itself: from then on culvert makes no call of its own, for no connection.
#[test]
fn filters_that_come_later() {
    let program = |lab: &Lab| lab.command(Side::Client, lab.compile("sandboxed.c", &[]));
    compare_one("sandboxed", program, |said, log| said == "status 0" && on_ring(log) > 0);
}

/// It cannot ring its peer's doorbell any more, or make no call of culvert's own. Where the kernel does not know how to forbid that, both say so.
#[test]
fn programs_that_confine_themselves() {
    let sends = ["sends 70000 8192", "sends 150000 65536", "sends 4190000 0", "sends 8000000 0", "file 8000000 0"];
    for how in ["scoped", "dispatched", "flooded", "polled"].into_iter().chain(sends) {
        let program = |lab: &Lab| {
            let mut command = lab.command(Side::Client, lab.compile("confined.c", &[]));
            command.args(how.split(' ')).env("CULVERT_SPIN", "off");
            command
        };
        compare_one(&format!("confined-{}", how.replace(' ', "-")), program, |_, log| on_ring(log) > 0);
    }
}

/// Several at once, on rings from the first byte: they leave the ring while the peer is about to answer, or to sleep.
#[test]
fn programs_that_confine_themselves_beside_each_other() {
    let lab = Lab::new("confined-five", Mode::Both);
    let program = lab.compile("confined.c", &[]);
    let start = |i| {
        let mut command = lab.command(Side::Client, &program);
        command.arg("scoped").env("CULVERT_SPIN", "off").env("CULVERT_EAGER", "1");
        lab.start(&format!("confined-{i}"), &mut command)
    };
    for _ in 0..2 {
        let five: Vec<_> = (0..5).map(start).collect();
        five.into_iter().for_each(|p| assert!(p.wait(PATIENCE).text().starts_with("scoped")));
    }
    lab.finish();
}

#[test]
fn filters_are_a_reason() {
    let lab = Lab::new("jailed-reason", Mode::Both);
    let mut command = lab.command(Side::Client, lab.compile("jailed.c", &[]));
    let mut p = lab.start("jailed", command.arg("errno").stdin(Stdio::piped()));
    wait_for("connections with their reason", PATIENCE, || {
        let ours = procs::working_in(lab.dir());
        let all = stat::connections().unwrap_or_default();
        all.iter().filter(|c| ours.contains(&c.pid)).filter(|c| c.reason == "seccomp").count() == 2
    });
    drop(p.stdin());
    assert_eq!(p.wait(PATIENCE).text(), "status 0");
    lab.finish();
}

/// An exec that fails changes nothing; the one after it that does not hands on what is left.
#[test]
fn execs_that_fail() {
    for fd in ["0", "7"] {
        let program = |lab: &Lab| {
            let text = lab.write("no-program", "neither a program\n");
            std::fs::set_permissions(&text, std::fs::Permissions::from_mode(0o755)).expect("permissions");
            let mut command = lab.command(Side::Client, lab.compile("failedexec.c", &[]));
            command.arg(fd).arg(text);
            command
        };
        compare_one(&format!("failed-exec-{fd}"), program, |_, log| on_ring(log) > 0);
    }
}

#[test]
fn sanitized_programs() {
    for kind in ["address", "undefined", "thread"] {
        let flag = format!("-fsanitize={kind}");
        let empty = std::env::temp_dir();
        let mut cc = Command::new("cc");
        cc.args([&flag, "-xc", "-", "-shared", "-o", "/dev/null"]).current_dir(empty).stdin(Stdio::null());
        if !cc.stderr(Stdio::null()).status().is_ok_and(|s| s.success()) {
            eprintln!("skipped: the compiler has no {flag}");
            continue;
        }
        for own in [None, Some("-DOWN")] {
            let program = |lab: &Lab| {
                let options: Vec<&str> = [flag.as_str()].into_iter().chain(own).collect();
                let made = lab.compile("sanitized.c", &options);
                if own.is_none() || !lab.accelerated(Side::Client) {
                    return lab.command(Side::Client, made);
                }
                // It has options of its own, which only the command can add to.
                let mut command = lab.command(Side::Client, legacy_apps::culvert());
                command.env_remove("LD_PRELOAD").args(["run", "--library"]).arg(legacy_apps::library());
                command.arg("--").arg(made);
                command
            };
            compare_one(&format!("sanitized-{kind}"), program, |_, log| on_ring(log) > 0);
        }
    }
    // And they find what they are for.
    compare("sanitized-fault", BOTH, |lab| {
        let mut seen = Seen::default();
        let mut command = lab.command(Side::Client, lab.compile("sanitized.c", &["-fsanitize=address"]));
        let out = lab.run("sanitized", command.arg("fault").env_remove("CULVERT_LOG"));
        seen.note("found", format!("{} {}", out.status, out.stderr.contains("heap-use-after-free")));
        seen
    });
}
