//! Bad input and limits: wrong settings, few descriptors, programs that close what they do not know,
//! daemons, stopped peers, no shared memory, many connections.

use legacy_apps::lab::{free_port, wait_gone};
use legacy_apps::procs::{signal, status, working_in};
use legacy_apps::{
    BOTH, Lab, Mode, PATIENCE, Seen, Side, compare, compare_one, echo, is_root, on_ring, stat, wait_for,
};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

/// `prefix... legacy-peer words...` as `side`.
fn peer(lab: &Lab, side: Side, prefix: &[&str], words: &[&str]) -> Command {
    let program = legacy_apps::lab::peer_program();
    let Some((first, rest)) = prefix.split_first() else {
        let mut c = lab.command(side, program);
        c.args(words);
        return c;
    };
    let mut c = lab.command(side, first);
    c.args(rest).arg(program).args(words);
    c
}

#[test]
fn wrong_settings_give_one_line_each_and_a_working_program() {
    let settings = [
        ("CULVERT_PATH", "sideways"),
        ("CULVERT_PATH", "zstackd"),
        ("CULVERT_PATH", ""),
        ("CULVERT_SPIN", "-3"),
        ("CULVERT_SPIN", "forever"),
        ("CULVERT_LOG", "loud"),
        ("CULVERT_LOG_FILE", "/nowhere/at/all"),
        ("CULVERT_RING", "17 apples"),
        ("CULVERT_RING", "99999999999999999999999"),
        ("CULVERT_DIR", "/nowhere/at/all"),
    ];
    for (key, value) in settings {
        compare("wrong-setting", BOTH, |lab| {
            let set = |mut c: Command| {
                // What is wrong is to be said on standard error.
                c.env_remove("CULVERT_LOG").env_remove("CULVERT_LOG_FILE").env(key, value);
                c
            };
            let seen = echo(lab, |w| set(peer(lab, Side::Server, &[], w)), |w| set(peer(lab, Side::Client, &[], w)));
            if lab.accelerated(Side::Client) {
                let out = lab.run("true", &mut set(lab.command(Side::Client, "true")));
                let lines = out.stderr.lines().count();
                assert!(lines <= 1, "{key}={value}: more than one line: {}", out.stderr);
                // An empty value is an unset one, and a directory is looked for when it is needed.
                if !value.is_empty() && key != "CULVERT_DIR" {
                    assert!(lines == 1 && out.stderr.contains(key), "{key}={value}: not said: {:?}", out.stderr);
                }
            }
            seen
        });
    }
}

#[test]
fn rings_of_silly_sizes() {
    for ring in ["0", "1", "4096", "5000", "67108864", "1099511627776"] {
        compare("ring", BOTH, |lab| {
            let set = |mut c: Command| {
                c.env("CULVERT_RING", ring);
                c
            };
            echo(lab, |w| set(peer(lab, Side::Server, &[], w)), |w| set(peer(lab, Side::Client, &[], w)))
        });
    }
}

#[test]
fn few_descriptors() {
    for limit in ["--nofile=300:300", "--nofile=64:64", "--nofile=12:12"] {
        compare("nofile", BOTH, |lab| {
            let prefix = ["prlimit", limit, "--"];
            echo(lab, |w| peer(lab, Side::Server, &prefix, w), |w| peer(lab, Side::Client, &prefix, w))
        });
    }
}

/// Also where the limit is lowered later: then no more of them are culvert's.
#[test]
fn descriptors_that_become_few() {
    let program = |lab: &Lab| {
        let mut command = lab.python(Side::Client, "lowered.py");
        command.arg("server").env("CULVERT_EAGER", "1");
        command
    };
    compare_one("lowered", program, |_, log| on_ring(log) >= 2);
}

#[test]
fn little_memory() {
    // Locked memory, file sizes and address space: what mapping shared memory may run into.
    for limit in ["--fsize=4096", "--as=400000000", "--memlock=0"] {
        compare("memory", BOTH, |lab| {
            let prefix = ["prlimit", limit, "--"];
            let server = |w: &[&str]| peer(lab, Side::Server, &prefix, w);
            echo(lab, server, |w| peer(lab, Side::Client, &prefix, w))
        });
    }
}

#[test]
fn programs_that_close_every_descriptor() {
    compare("close-all", BOTH, |lab| {
        fn close<'a>(words: &[&'a str]) -> Vec<&'a str> {
            [&["close-all"], words].concat()
        }
        echo(lab, |w| peer(lab, Side::Server, &[], &close(w)), |w| peer(lab, Side::Client, &[], &close(w)))
    });
}

#[test]
fn programs_that_duplicate_over_every_descriptor() {
    compare("dup-over", BOTH, |lab| {
        fn over<'a>(words: &[&'a str]) -> Vec<&'a str> {
            [&["dup-over"], words].concat()
        }
        echo(lab, |w| peer(lab, Side::Server, &[], &over(w)), |w| peer(lab, Side::Client, &[], &over(w)))
    });
}

/// The same once a connection is on a ring, when there is something of culvert's to close.
#[test]
fn programs_that_tidy_up_later() {
    for how in ["close", "close_range", "closefrom", "dup2", "dup3"] {
        let program = |lab: &Lab| {
            let mut command = lab.command(Side::Client, lab.compile("tidy.c", &["-w"]));
            command.arg(how);
            command
        };
        // In both directions; both connections, unless the registry is gone.
        let wanted = if how.starts_with("dup") { 2 } else { 4 };
        compare_one(&format!("tidy-{how}"), program, |_, log| on_ring(log) >= wanted);
    }
}

#[test]
fn forbidden_system_calls() {
    // What culvert needs and most programs do not; each is refused with EPERM by a seccomp filter.
    for calls in ["memfd_create", "eventfd2", "netlink", "memfd_create,eventfd2,netlink,ppoll,recvmsg,sendmsg"] {
        compare("seccomp", BOTH, |lab| {
            let program = legacy_apps::lab::peer_program().display().to_string();
            let prefix = [program.as_str(), "forbid", calls];
            echo(lab, |w| peer(lab, Side::Server, &prefix, w), |w| peer(lab, Side::Client, &prefix, w))
        });
    }
}

/// Children that may make hardly any call from some point on: a call of culvert's own would kill them.
#[test]
fn children_that_lock_themselves_up() {
    compare("jail", BOTH, |lab| {
        let mut seen = Seen::default();
        for (reads, parent) in [("0", "keep"), ("40", "keep"), ("0", "drop"), ("120", "drop")] {
            let port = free_port();
            let server =
                lab.serve("jail", port, &mut peer(lab, Side::Server, &[], &["jail", &port.to_string(), reads, parent]));
            for size in ["64", "20000"] {
                let out =
                    lab.run("ping", &mut peer(lab, Side::Client, &[], &["ping", &port.to_string(), "1", "200", size]));
                seen.note(format!("{reads} {parent} {size}"), format!("{} {}", out.text(), out.status));
            }
            wait_for("the last child's end", PATIENCE, || server.stdout().lines().count() == 2);
            seen.note(format!("{reads} {parent} children"), server.stdout());
        }
        seen
    });
}

/// A question about filters is none.
#[test]
fn programs_that_ask_for_filters() {
    compare("ask-for-filters", BOTH, |lab| {
        let mut seen = Seen::default();
        let port = free_port().to_string();
        let number = port.parse().expect("a port");
        let server = lab.serve("echo", number, &mut peer(lab, Side::Server, &[], &["ask-for-filters", "echo", &port]));
        let mut c = peer(lab, Side::Client, &[], &["ask-for-filters", "ping-on", &port, "64"]);
        let mut on = lab.start("ping-on", c.stdin(Stdio::piped()));
        lab.assert_shm(server.pid());
        drop(on.stdin());
        seen.note("ping-on", on.wait(PATIENCE).status);
        server.stop(libc::SIGTERM);
        seen
    });
}

#[test]
fn daemons_that_fork_twice() {
    compare("daemon", BOTH, |lab| {
        let mut seen = Seen::default();
        let port = free_port();
        let text = port.to_string();
        lab.run("daemon", &mut peer(lab, Side::Server, &[], &["close-all", "daemon", "echo", &text])).success();
        wait_for("the daemon to listen", PATIENCE, || legacy_apps::procs::listening(port));
        let daemon = *working_in(lab.dir()).first().expect("the daemon");
        let out = lab.run("ping", &mut peer(lab, Side::Client, &[], &["ping", &text, "3", "500", "64"]));
        seen.note("ping", format!("{} {}", out.text(), out.status));
        let mut on =
            lab.start("ping-on", peer(lab, Side::Client, &[], &["ping-on", &text, "64"]).stdin(Stdio::piped()));
        lab.assert_shm(daemon);
        drop(on.stdin());
        seen.note("ping-on", on.wait(PATIENCE).status);
        signal(daemon, libc::SIGTERM);
        wait_gone(daemon);
        seen
    });
}

#[test]
fn a_stopped_peer_delays_only_itself() {
    let lab = Lab::new("stopped", Mode::Both);
    let port = free_port();
    // One thread and one epoll set serve both clients; a thread of it that waited for one would show.
    let server = lab.serve("server", port, lab.python(Side::Server, "lines.py").arg(port.to_string()));
    let start = || {
        lab.start(
            "ping-on",
            peer(&lab, Side::Client, &[], &["ping-on", &port.to_string(), "3000"]).stdin(Stdio::piped()),
        )
    };
    let (mut one, mut two) = (start(), start());
    let (first_input, second_input) = (one.stdin(), two.stdin());
    one.must_progress("exchanges of the first client");
    two.must_progress("exchanges of the second client");
    for _ in 0..5 {
        one.signal(libc::SIGSTOP);
        wait_for("the first client to stop", PATIENCE, || status(one.pid()).is_some_and(|s| s.state == 'T'));
        two.must_progress("exchanges beside a stopped client");
        // Somebody new comes meanwhile: the stopped one does not answer any handshake.
        let out = lab.run("ping", &mut peer(&lab, Side::Client, &[], &["ping", &port.to_string(), "2", "100", "64"]));
        assert!(out.status.success(), "{}", out.stderr);
        one.signal(libc::SIGCONT);
        one.must_progress("exchanges after SIGCONT");
    }
    // A server that is stopped delays its clients, and they go on when it does.
    server.signal(libc::SIGSTOP);
    wait_for("the server to stop", PATIENCE, || status(server.pid()).is_some_and(|s| s.state == 'T'));
    server.signal(libc::SIGCONT);
    one.must_progress("exchanges of the first client");
    two.must_progress("exchanges of the second client");
    drop((first_input, second_input));
    for p in [one, two] {
        assert!(p.wait(PATIENCE).status.success());
    }
    server.stop(libc::SIGTERM);
    lab.finish();
}

/// The library, built as another version of itself.
fn other_version() -> PathBuf {
    let target = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("other-version");
    let mut c = Command::new(env!("CARGO"));
    c.args(["build", "--release", "--quiet", "-p", "culvert-shim", "--target-dir"]).arg(&target);
    let built = c.env("CULVERT_OTHER_VERSION", "1").current_dir(legacy_apps::root()).status();
    assert!(built.as_ref().is_ok_and(|s| s.success()), "cargo build: {built:?}");
    target.join("release/libculvert.so")
}

#[test]
fn a_peer_of_another_version() {
    let other = other_version();
    for side in [Side::Server, Side::Client] {
        compare("other-version", &[Mode::Both], |lab| {
            let start = |s, words: &[&str]| {
                let mut c = peer(lab, s, &[], words);
                if s == side && lab.accelerated(s) {
                    c.env("LD_PRELOAD", &other);
                }
                c
            };
            let mut seen = echo(lab, |w| start(Side::Server, w), |w| start(Side::Client, w));
            let port = free_port().to_string();
            let server = lab.serve("echo", port.parse().unwrap(), &mut start(Side::Server, &["echo", &port]));
            let mut client = lab.start("ping-on", start(Side::Client, &["ping-on", &port, "64"]).stdin(Stdio::piped()));
            let input = client.stdin();
            wait_for("exchanges", PATIENCE, || client.stdout().lines().count() > 100);
            if lab.accelerated(side) {
                // The command is of the server's version, or of the client's: it sees its like.
                let here = if side == Side::Server { client.pid() } else { server.pid() };
                let all = stat::connections().unwrap();
                let mine: Vec<_> = all.iter().filter(|c| c.pid == here).collect();
                let why = if side == Side::Server { "peer-without-culvert" } else { "peer-version" };
                assert!(!mine.is_empty() && mine.iter().all(|c| c.path == "kernel" && c.reason == why), "{mine:?}");
            }
            drop(input);
            seen.note("ping-on", client.wait(PATIENCE).status);
            server.stop(libc::SIGTERM);
            seen
        });
    }
}

#[test]
fn no_shared_memory_directory() {
    if !is_root() {
        eprintln!("skipped: mount namespaces need root");
        return;
    }
    // /dev/shm absent, full, and not writable: unshare -m keeps it to the program under test.
    for hide in [
        "umount -l /dev/shm",
        "mount -t tmpfs -o size=4k none /dev/shm && head -c 4096 /dev/zero > /dev/shm/full",
        "mount -t tmpfs -o ro none /dev/shm",
    ] {
        compare("no-dev-shm", BOTH, |lab| {
            let script = format!("{hide}; exec \"$@\"");
            let prefix = ["unshare", "-m", "sh", "-c", script.as_str(), "sh"];
            echo(lab, |w| peer(lab, Side::Server, &prefix, w), |w| peer(lab, Side::Client, &prefix, w))
        });
    }
}

#[test]
fn a_thousand_connections_at_once() {
    compare("thousand", BOTH, |lab| {
        let prefix = ["prlimit", "--nofile=4096:4096", "--"];
        let mut seen = Seen::default();
        let port = free_port();
        let text = port.to_string();
        let server = lab.serve(
            "lines",
            port,
            lab.command(Side::Server, "prlimit")
                .args(["--nofile=4096:4096", "--", "/usr/bin/python3.11"])
                .arg(legacy_apps::file("py/lines.py"))
                .arg(&text),
        );
        let out = lab
            .start("ping", &mut peer(lab, Side::Client, &prefix, &["ping", &text, "1000", "12", "64"]))
            .wait(2 * PATIENCE);
        seen.note(
            "ping",
            format!(
                "{} {} {}",
                out.text(),
                out.status,
                out.stderr.lines().filter(|l| l.contains("legacy-peer")).count()
            ),
        );
        server.signal(libc::SIGTERM);
        drop(server);
        seen
    });
}

#[test]
fn idle_connections_cost_no_cpu() {
    let lab = Lab::new("idle", Mode::Both);
    let port = free_port();
    let text = port.to_string();
    let server = lab.serve("lines", port, lab.python(Side::Server, "lines.py").arg(&text));
    let mut on = lab.start("ping-on", peer(&lab, Side::Client, &[], &["ping-on", &text, "64"]).stdin(Stdio::piped()));
    let input = on.stdin();
    on.must_progress("exchanges");
    lab.assert_shm(server.pid());
    // The client stops in the middle; what the server then does is wait.
    on.signal(libc::SIGSTOP);
    wait_for("the client to stop", PATIENCE, || status(on.pid()).is_some_and(|s| s.state == 'T'));
    let ticks = || status(server.pid()).expect("the server").ticks;
    let quiet = || {
        let before = ticks();
        std::thread::sleep(Duration::from_millis(500));
        ticks() - before <= 1
    };
    wait_for("half a second without CPU time", PATIENCE, quiet);
    on.signal(libc::SIGCONT);
    on.must_progress("exchanges afterwards");
    drop(input);
    assert!(on.wait(PATIENCE).status.success());
    server.stop(libc::SIGTERM);
    lab.finish();
}
