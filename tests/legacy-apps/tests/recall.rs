//! `culvert kernel`: connections of a running process go back to the kernel.

use legacy_apps::lab::free_port;
use legacy_apps::{BOTH, Lab, PATIENCE, Seen, Side, compare, wait_for};
use std::io::Write;
use std::process::{Command, Stdio};

/// Runs `c/recalled.c`. When its connection has been in use for some time, the end named by `whose` is brought back.
fn recalled(waits: &str, whose: Side) {
    compare(&format!("recall-{waits}"), BOTH, |lab: &Lab| {
        let port = free_port();
        let server = lab.serve("echo", port, lab.peer(Side::Server).args(["echo", &port.to_string()]));
        let mut command = lab.command(Side::Client, lab.compile("recalled.c", &[]));
        let mut p = lab.start("recalled", command.args([waits, &port.to_string()]).stdin(Stdio::piped()));
        let mut input = p.stdin().expect("its standard input");
        wait_for("a busy connection", PATIENCE, || p.stdout().contains("ready"));
        if lab.accelerated(Side::Client) {
            lab.assert_shm(p.pid());
            let pid = if whose == Side::Client { p.pid() } else { server.pid() };
            let out =
                Command::new(legacy_apps::culvert()).args(["kernel", &pid.to_string()]).output().expect("culvert");
            assert!(out.status.success(), "{out:?}");
        }
        input.write_all(b"\n").expect("a line");
        let out = p.wait(PATIENCE);
        let mut seen = Seen::default();
        seen.note("said", format!("{} {}", out.text(), out.status));
        server.stop(libc::SIGTERM);
        seen
    });
}

#[test]
fn by_one_end_or_the_other() {
    for waits in ["recv", "epoll", "poll"] {
        recalled(waits, Side::Client);
        recalled(waits, Side::Server);
    }
}

#[test]
fn of_what_is_not_under_culvert() {
    let lab = Lab::new("recall-none", legacy_apps::Mode::Native);
    let mut p = lab.start("cat", lab.command(Side::Client, "cat").stdin(Stdio::piped()));
    let out = Command::new(legacy_apps::culvert()).args(["kernel", &p.pid().to_string()]).output().expect("culvert");
    assert_eq!(out.status.code(), Some(1), "{out:?}");
    assert!(String::from_utf8_lossy(&out.stderr).contains("not under culvert"), "{out:?}");
    drop(p.stdin());
    p.wait(PATIENCE);
}
