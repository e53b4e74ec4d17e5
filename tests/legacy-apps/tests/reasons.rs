//! Why a connection is not accelerated: `culvert stat` says it for each, and README.md explains every key.

use legacy_apps::procs::working_in;
use legacy_apps::{Lab, Mode, PATIENCE, Side, is_root, native_only, remote, shm_expected, stat, wait_for};
use shmring::family::Reason;
use std::process::{Command, Stdio};

/// Waits until a connection of `lab`'s programs has this reason.
fn expect(lab: &Lab, key: &str) {
    let mut last = Vec::new();
    let found = legacy_apps::poll_until(PATIENCE, || {
        let ours = working_in(lab.dir());
        last = stat::connections().unwrap_or_default();
        last.retain(|c| ours.contains(&c.pid));
        last.iter().any(|c| c.reason == key && c.path == "kernel")
    });
    assert!(found, "{key}: {last:?}");
}

/// What only two ends on one machine have: over a wire the peer is zstackd, which takes part with its own version and registry, whatever the program
/// at the other end does.
const LOCAL: &[&str] =
    &["no-registry", "peer-version", "peer-without-culvert", "pending", "returned", "self-connect", "unproved"];

/// Runs the scenario of `py/reasons.py` with this name, as `change` wants it to be run.
fn scenario(key: &str, change: impl Fn(&Lab, Command) -> Command) {
    if native_only() || !shm_expected() {
        return eprintln!("skipped: nothing runs under culvert");
    }
    if remote() && LOCAL.contains(&key) {
        return eprintln!("skipped: its peer is zstackd");
    }
    let lab = Lab::new(&format!("reason-{key}"), Mode::Both);
    let mut command = lab.python(Side::Client, "reasons.py");
    command.arg(key);
    let mut p = lab.start(key, change(&lab, command).stdin(Stdio::piped()));
    let input = p.stdin();
    wait_for(key, PATIENCE, || p.stdout().contains("ready") || p.ended().is_some());
    expect(&lab, key);
    drop(input);
    p.wait(PATIENCE).success();
    lab.finish();
}

macro_rules! as_it_is {
    ($($name:ident $key:literal;)*) => {$(
        #[test]
        fn $name() {
            scenario($key, |_, c| c);
        }
    )*};
}

as_it_is! {
    young "young";
    shared_by_processes "shared-by-processes";
    received "received";
    inherited "inherited";
    fdopen "fdopen";
    passed_on "passed-on";
    exec "exec";
    socket_option "socket-option";
    out_of_band "out-of-band";
    signal_driven "async";
    splice "splice";
    epoll_exclusive "epoll-exclusive";
    ktls "ktls";
    self_connect "self-connect";
    returned "returned";
    pending "pending";
    peer_gone "peer-gone";
    shut_down "shut-down";
    namespace "namespace";
    descriptor_tables "descriptor-tables";
}

/// Also by those that would go up at once: waiting for such a peer costs them most.
#[test]
fn peer_without_culvert() {
    for eager in ["0", "1"] {
        scenario("peer-without-culvert", |_, mut c| {
            c.env("CULVERT_EAGER", eager);
            c
        });
    }
}

/// Two connections of one namespace may have the same addresses, if they are bound to devices.
#[test]
fn bound_to_a_device() {
    if remote() {
        return eprintln!("skipped: it is bound to the loopback device");
    }
    scenario("socket-option", |_, mut c| {
        c.arg("device");
        c
    });
}

#[test]
fn configured() {
    scenario("configured", |_, mut c| {
        c.env("CULVERT_PATH", "kernel");
        c
    });
    scenario("configured", |_, mut c| {
        c.env("CULVERT_LOG_FILE", "/nowhere/at/all");
        c
    });
}

#[test]
fn peer_version() {
    scenario("peer-version", |lab, mut c| {
        let dir = lab.path("registry");
        std::fs::create_dir(&dir).expect("a directory");
        c.env("CULVERT_DIR", dir);
        c
    });
}

#[test]
fn no_registry() {
    scenario("no-registry", |lab, mut c| {
        // Something else has its name.
        // SAFETY: takes no arguments and cannot fail.
        let uid = unsafe { libc::geteuid() };
        std::fs::create_dir_all(lab.path("registry").join(format!("culvert-{uid}"))).expect("a directory");
        c.env("CULVERT_DIR", lab.path("registry"));
        c
    });
}

/// The same command under a shell that has run `prefix`.
fn under(lab: &Lab, prefix: &str, c: &Command) -> Command {
    let mut sh = lab.command(Side::Client, "sh");
    sh.args(["-c", &format!("{prefix}; exec \"$@\""), "sh"]).arg(c.get_program()).args(c.get_args());
    sh
}

#[test]
fn no_memory() {
    // Files may be as large as a family's memory, not as a channel.
    scenario("no-memory", |lab, c| under(lab, "ulimit -f 131072", &c));
}

#[test]
fn no_descriptor() {
    scenario("no-descriptor", |lab, c| under(lab, "ulimit -n 16", &c));
}

/// A program of root's that acts for a user shares no memory with anybody: that user's processes would pass for its own.
#[test]
fn user_ids() {
    if is_root() {
        scenario("user-ids", |_, c| c);
    } else {
        eprintln!("skipped: another user's id needs root");
    }
}

/// A rule leads it elsewhere: another connection may have the addresses that its ends have.
#[test]
fn translated() {
    let rule = "iptables -t nat -A OUTPUT -p tcp -m addrtype --dst-type LOCAL --dport 8000 -j REDIRECT --to-ports 8080";
    let works = |what: &str| {
        let status = Command::new("unshare").args(["-n", "sh", "-c", what]).stderr(Stdio::null()).status();
        status.is_ok_and(|s| s.success())
    };
    if !is_root() || !works(rule) {
        return eprintln!("skipped: no rules of a packet filter here");
    }
    for host in ["127.0.0.1", "::1"] {
        let six = if host == "::1" { "6" } else { "" };
        let rule = rule.replacen("tables", &format!("{six}tables"), 1);
        scenario("translated", |lab, c| {
            let mut inside = lab.command(Side::Client, "unshare");
            inside.args(["-n", "sh", "-c", &format!("ip link set lo up; {rule}; exec \"$@\""), "sh"]);
            inside.arg(c.get_program()).args(c.get_args()).arg(host);
            inside
        });
    }
}

/// Sockets that were made in another network namespace than this process's own ones, and threads that have gone there.
#[test]
fn other_network() {
    if !is_root() {
        return eprintln!("skipped: network namespaces need root");
    }
    for how in ["made", "received", "child"] {
        scenario("other-network", |_, mut c| {
            c.arg(how);
            c
        });
    }
}

/// In a user namespace that knows no user, nobody's answers prove anything.
#[test]
fn unproved() {
    if is_root() {
        scenario("unproved", |lab, c| {
            let mut inside = lab.command(Side::Client, "unshare");
            inside.arg("--user").arg(c.get_program()).args(c.get_args());
            inside
        });
    } else {
        eprintln!("skipped: user namespaces need root");
    }
}

#[test]
fn not_loaded() {
    if native_only() {
        return eprintln!("skipped: nothing runs under culvert");
    }
    let lab = Lab::new("reason-static", Mode::Both);
    let mut p =
        lab.start("plain", lab.command(Side::Client, lab.compile("uring.c", &["-static"])).stdin(Stdio::piped()));
    let input = p.stdin();
    wait_for("exchanges", PATIENCE, || p.stdout().contains('\n') || p.ended().is_some());
    if p.stdout().starts_with("none") {
        eprintln!("skipped: no io_uring here");
    } else {
        expect(&lab, "not-loaded");
    }
    drop(input);
    p.wait(PATIENCE).success();
    lab.finish();
}

/// A program that uses its connection by an io_uring: it works, on the kernel, and that is said.
#[test]
fn io_uring() {
    let run = |mode| {
        let lab = Lab::new("reason-uring", mode);
        let mut p = lab.start("uring", lab.command(Side::Client, lab.compile("uring.c", &[])).stdin(Stdio::piped()));
        let input = p.stdin();
        wait_for("exchanges", PATIENCE, || p.stdout().contains('\n') || p.ended().is_some());
        if p.stdout().starts_with("none") {
            eprintln!("skipped: no io_uring here");
        } else if lab.accelerated(Side::Client) && shm_expected() {
            expect(&lab, "io_uring");
        }
        drop(input);
        let said = p.wait(PATIENCE).success().text();
        lab.finish();
        said
    };
    assert_eq!(run(Mode::Both), run(Mode::Native));
}

#[test]
fn readme_explains_every_key() {
    let readme = std::fs::read_to_string(legacy_apps::file("../../README.md")).expect("README.md");
    let keys = Reason::ALL.iter().map(|r| r.key()).filter(|k| !k.is_empty());
    let of_stat = ["untracked", "not-loaded", "other-libc", "no-proc"];
    let missing: Vec<_> = keys.chain(of_stat).filter(|k| !readme.contains(&format!("`{k}`"))).collect();
    assert!(missing.is_empty(), "README.md does not explain {missing:?}");
}
