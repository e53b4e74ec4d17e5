//! Debian's Python: blocking sockets, asyncio, socketserver, http.server, multiprocessing, inheritance.

use legacy_apps::lab::free_ports;
use legacy_apps::procs::listening;
use legacy_apps::{ALL, Lab, PATIENCE, Seen, Side, compare, compare_one, on_ring, wait_for};
use std::process::Stdio;

/// Runs `script` as a server on `port` and the ports after it, then as its client.
fn pair(lab: &Lab, script: &str, ports: u16) -> Seen {
    let mut seen = Seen::default();
    // One more that nobody listens on.
    let port = free_ports(ports + 1);
    let text = port.to_string();
    // A server with several processes ends them all when its standard input ends.
    let mut server =
        lab.serve(script, port, lab.python(Side::Server, script).args(["server", &text]).stdin(Stdio::piped()));
    let input = server.stdin();
    for p in port..port + ports {
        wait_for("every port", PATIENCE, || listening(p));
    }
    let out = lab.run("client", lab.python(Side::Client, script).args(["client", &text])).success();
    seen.note("client", out.text());
    // The client's normal warnings are none; culvert's own log lines are not part of the comparison.
    let errors: Vec<_> = out.stderr.lines().filter(|l| l.contains("Error") || l.contains("Traceback")).collect();
    seen.note("client's errors", errors.join("\n"));
    let complaints = server.stderr().lines().filter(|l| l.starts_with("Traceback")).count();
    seen.note("server's errors", complaints);
    server.stop(libc::SIGTERM);
    drop(input);
    seen
}

#[test]
fn blocking() {
    compare("python-blocking", ALL, |lab| pair(lab, "blocking.py", 1));
}

#[test]
fn asyncio() {
    compare("python-asyncio", ALL, |lab| pair(lab, "aio.py", 1));
}

#[test]
fn socketserver_and_http() {
    compare("python-servers", ALL, |lab| pair(lab, "servers.py", 3));
}

#[test]
fn multiprocessing_over_tcp() {
    compare("python-manager", ALL, |lab| pair(lab, "manager.py", 2));
}

#[test]
fn addresses_options_and_endings() {
    compare("python-addresses", ALL, |lab| pair(lab, "addresses.py", 3));
}

#[test]
fn inherited_sockets() {
    compare("python-inherit", ALL, |lab| pair(lab, "inherit.py", 1));
}

/// A sender that goes up behind a full lifeline and is gone before the receiver has read that.
#[test]
fn polling_in_transit() {
    let program = |lab: &Lab| lab.python(Side::Client, "transit.py");
    compare_one("python-transit", program, |_, log| on_ring(log) == 3);
}

/// A number is given to another file under a thread that waits in a call on it.
#[test]
fn replaced_under_a_call() {
    let program = |lab: &Lab| {
        let mut c = lab.python(Side::Client, "replaced.py");
        c.env("CULVERT_EAGER", "1");
        c
    };
    compare_one("python-replaced", program, |_, log| on_ring(log) >= 20);
}

/// The answer is on the ring when a FIN and a RST come on the lifeline.
#[test]
fn answered_and_reset() {
    let program = |lab: &Lab| {
        let mut c = lab.python(Side::Client, "answered.py");
        c.env("CULVERT_EAGER", "1");
        c
    };
    compare_one("python-answered", program, |_, log| log.contains("as Acceptor"));
}

/// What was sent lies on the ring, and perhaps half of it on the lifeline, when a RST comes.
#[test]
fn reset() {
    let program = |lab: &Lab| lab.python(Side::Client, "reset.py");
    compare_one("python-reset", program, |_, log| on_ring(log) > 0);
}

/// The kernel does not know how a connection ended, since this library had to take its error, or has it not seen at all; and is
/// called by the program all the same.
#[test]
fn reset_by_splice() {
    let program = |lab: &Lab| lab.python(Side::Client, "reset_splice.py");
    compare_one("python-reset-splice", program, |_, log| on_ring(log) >= 300);
}

/// A program gets a connection that was reset, and whose error this library had to take: it is told.
#[test]
fn reset_handed_on() {
    let program = |lab: &Lab| lab.python(Side::Client, "reset_on.py");
    compare_one("python-reset-on", program, |_, log| on_ring(log) > 0);
}

/// What was sent lies on the ring when the peer is killed, and what it was sent, too.
#[test]
fn killed() {
    let program = |lab: &Lab| lab.python(Side::Client, "killed.py");
    compare_one("python-killed", program, |_, log| on_ring(log) > 0);
}

/// A RST has dropped what the lifeline still had ahead of the ring, and the connection becomes a program's standard input.
#[test]
fn handed_on_behind_a_gap() {
    let program = |lab: &Lab| lab.python(Side::Client, "dropped.py");
    compare_one("python-dropped", program, |_, log| log.contains("with bytes that only culvert holds"));
}

/// The end of a peer whose FIN cannot get through, because what it sent is not read.
#[test]
fn killed_behind_a_flood() {
    let program = |lab: &Lab| lab.python(Side::Client, "flood.py");
    compare_one("python-flood", program, |_, log| log.contains("as Acceptor"));
}
