//! Processes and threads that go to another network namespace, and use there what is at home in the first one.

use legacy_apps::{Lab, Side, compare_one, is_root, on_ring};
use std::process::Command;

/// Runs `py/networks.py`, all of it in a network namespace of its own. `older`: as on a kernel that does not tell in which one a
/// socket lives.
fn program(lab: &Lab, what: &[&str], older: bool) -> Command {
    let dir = lab.path("registry");
    std::fs::create_dir_all(&dir).expect("a directory");
    let mut command = lab.command(Side::Client, "unshare");
    // The first process there is under the filter, too, so culvert is on.
    command.args(["-n", "--pid", "--fork", "--kill-child", "--mount-proc"]);
    command.args(["sh", "-c", "ip link set lo up; exec \"$@\"", "sh"]);
    if older {
        command.arg(lab.compile("older.c", &[]));
    }
    command.args(["/usr/bin/python3.11", "-u"]);
    // All namespaces share it: those who meet in one find each other.
    command.arg(legacy_apps::file("py/networks.py")).args(what).env("CULVERT_DIR", dir);
    command
}

fn runs(what: &str) {
    if !is_root() {
        return eprintln!("skipped: network namespaces need root");
    }
    for (name, older) in [("networks", false), ("older", true)] {
        compare_one(&format!("{name}-{what}"), |lab| program(lab, &[what], older), |_, log| on_ring(log) >= 2);
    }
}

/// Its two sockets, one accepted and one connected, have each other's addresses. They are not each other's ends, which are in other
/// namespaces; those of another connection are both here.
#[test]
fn a_proxy_with_its_client_s_address() {
    if !is_root() {
        return eprintln!("skipped: network namespaces need root");
    }
    for (version, flag) in [("4", "IP_TRANSPARENT"), ("6", "IP_TRANSPARENT"), ("6", "IPV6_FREEBIND")] {
        compare_one(
            &format!("spoofs-{version}-{flag}"),
            |lab| program(lab, &["spoofs", version, flag], false),
            |_, log| on_ring(log) == 2,
        );
    }
}

/// The child of a fork rings with its parent's socket.
#[test]
fn a_child_that_goes_to_another_network() {
    runs("enters");
}

/// It has no socket to ask the kernel with who holds the other end.
#[test]
fn a_child_that_is_elsewhere_when_its_peer_is_killed() {
    runs("survives");
}

#[test]
fn a_connection_that_is_used_from_another_network() {
    runs("moves");
}
