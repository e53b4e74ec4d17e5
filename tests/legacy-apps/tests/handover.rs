//! Sockets that one process accepts and another serves: they go there in messages, as Node's cluster does it. They are
//! accelerated where nobody else holds them, and only there.

use legacy_apps::lab::free_port;
use legacy_apps::procs::{children, listening};
use legacy_apps::{
    ALL, Lab, Mode, PATIENCE, Seen, Side, compare, compare_one, is_root, on_ring, shm_expected, stat, wait_for,
};
use std::process::Stdio;

/// Runs `c/handover.c` with the named holders of the socket.
fn handover(holders: &str, alone: bool) {
    let program = |lab: &Lab| {
        let wrapper = lab.path("wrapper");
        if holders == "wrapped" {
            std::fs::rename(lab.compile("handover.c", &["-static", "-pthread"]), &wrapper).expect("a file just made");
        }
        let mut command = lab.command(Side::Client, lab.compile("handover.c", &["-pthread"]));
        command.arg(holders).env("STATIC", wrapper);
        command
    };
    compare_one(&format!("handover-{holders}"), program, |_, log| (on_ring(log) > 0) == alone);
}

#[test]
fn sole_receivers_are_accelerated() {
    // A program of its own, a child, who gets a socket that was connected, or whose sender got it in a message, too.
    for receiver in ["image", "child", "connector", "onward"] {
        handover(receiver, true);
    }
}

#[test]
fn a_receiver_that_forks_afterwards() {
    handover("receiver-forks", true);
}

#[test]
fn senders_that_are_not_through_with_it() {
    for sender in ["keeps", "forked", "killed", "inside", "onward-kept"] {
        handover(sender, false);
    }
}

/// The socket is its maker's, to the peer: another user proves nothing by it.
#[test]
fn a_receiver_of_another_user() {
    if is_root() {
        handover("user", false);
    } else {
        eprintln!("skipped: needs a second user");
    }
}

#[test]
fn two_references() {
    for way in ["twice", "message"] {
        handover(way, false);
    }
}

#[test]
fn who_else_can_peek_into_the_message() {
    for peeker in ["peeked", "peeked-plain", "spawned", "wrapped"] {
        handover(peeker, false);
    }
}

/// Processes that send each other sockets, look into messages, fork, become other programs and are killed, and serve their
/// connections in turns, as drawn by lot.
#[test]
fn holders_by_lot() {
    for (seed, eager) in [("1", true), ("2", true), ("4", true), ("5", false)] {
        let program = |lab: &Lab| {
            let mut command = lab.python(Side::Client, "holders.py");
            command.args([seed, "300"]);
            if eager {
                command.env("CULVERT_EAGER", "1");
            }
            command
        };
        // Without haste few come so far.
        compare_one(&format!("holders-{seed}"), program, |_, log| on_ring(log) > 0 || !eager);
    }
}

/// Runs `py/handed.py`.
fn handed(how: &str, alone: bool) {
    let program = |lab: &Lab| {
        let mut command = lab.python(Side::Client, "handed.py");
        command.arg(how);
        command
    };
    compare_one(&format!("handed-{how}"), program, |_, log| (on_ring(log) > 0) == alone);
}

#[test]
fn sockets_that_python_sends() {
    handed("handle", true);
    // Through a Unix socket with a name; and its sender keeps it.
    handed("queue", false);
}

/// What comes from a listener that another program made is nobody else's.
#[test]
fn listeners_that_are_inherited() {
    handed("first-descriptor", true);
    handed("third-descriptor", true);
}

/// Node's cluster, whose primary hands on what `policy` says.
fn cluster(policy: &str) {
    const WORKERS: usize = 2;
    compare(&format!("node-cluster-{policy}"), ALL, |lab| {
        let mut seen = Seen::default();
        let port = free_port();
        let text = port.to_string();
        let mut command = lab.command(Side::Server, "node");
        command.arg(legacy_apps::file("js").join("cluster.js")).args([&text, &WORKERS.to_string()]);
        let server = lab.serve("node", port, command.env("NODE_CLUSTER_SCHED_POLICY", policy));
        wait_for("the workers", PATIENCE, || children(server.pid()).len() == WORKERS && listening(port));
        for connections in ["1", "8"] {
            let mut command = lab.python(Side::Client, "keepalive.py");
            let mut client = lab.start("client", command.args([&text, connections, "80"]).stdin(Stdio::piped()));
            let input = client.stdin();
            wait_for("the answers", PATIENCE, || client.stdout().contains("answers") || client.ended().is_some());
            if lab.mode == Mode::Both && shm_expected() {
                // A mark that its sender set late is looked for at every fourth operation at least.
                let workers = children(server.pid());
                let all: Vec<_> = stat::connections().expect("culvert stat");
                let theirs: Vec<_> = all.iter().filter(|c| workers.contains(&c.pid)).collect();
                assert_eq!(theirs.len().to_string(), connections, "{all:?}");
                assert!(theirs.iter().all(|c| c.path == legacy_apps::path_expected()), "{theirs:?}");
            }
            drop(input);
            seen.note(format!("{connections} connections"), client.wait(PATIENCE).success().text());
        }
        seen.note("node, SIGTERM", server.stop(libc::SIGTERM).status);
        seen
    });
}

#[test]
fn node_cluster_hands_connections_to_its_workers() {
    cluster("rr");
}

#[test]
fn node_cluster_hands_its_listener_to_its_workers() {
    cluster("none");
}
