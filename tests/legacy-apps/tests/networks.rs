//! Processes and threads that go to another network namespace, and use there what is at home in the first one.

use legacy_apps::{Lab, Side, compare_one, is_root, on_ring};
use std::process::Command;

/// Runs `py/networks.py`, all of it in a network namespace of its own.
fn program(lab: &Lab, what: &str) -> Command {
    let dir = lab.path("registry");
    std::fs::create_dir_all(&dir).expect("a directory");
    let mut command = lab.command(Side::Client, "unshare");
    command.args(["-n", "sh", "-c", "ip link set lo up; exec \"$@\"", "sh", "/usr/bin/python3.11", "-u"]);
    // All namespaces share it: those who meet in one find each other.
    command.arg(legacy_apps::file("py/networks.py")).arg(what).env("CULVERT_DIR", dir);
    command
}

fn runs(what: &str) {
    if !is_root() {
        return eprintln!("skipped: network namespaces need root");
    }
    compare_one(&format!("networks-{what}"), |lab| program(lab, what), |_, log| on_ring(log) >= 2);
}

/// The child of a fork rings with its parent's socket.
#[test]
fn a_child_that_goes_to_another_network() {
    runs("enters");
}

#[test]
fn a_connection_that_is_used_from_another_network() {
    runs("moves");
}
