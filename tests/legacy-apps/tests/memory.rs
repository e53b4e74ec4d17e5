//! What connections and peers leave behind, and what memory of culvert's counts as the program's. See `c/memory.c`.

use legacy_apps::{Lab, Side, compare_one, on_ring};

fn scenario(args: &'static [&'static str]) {
    let program = |lab: &Lab| {
        let mut command = lab.command(Side::Client, lab.compile("memory.c", &["-pthread"]));
        command.args(args);
        command
    };
    compare_one(&format!("memory-{}", args.join("-")), program, |_, log| on_ring(log) > 0);
}

#[test]
fn channels_come_and_go_under_pollers() {
    scenario(&["pollers", "2000"]);
}

#[test]
fn connections_come_and_go() {
    scenario(&["churn", "none", "400"]);
}

#[test]
fn peers_come_and_go() {
    scenario(&["churn", "peers", "400"]);
}

#[test]
fn peers_are_killed_with_megabytes_unread() {
    scenario(&["churn", "killed", "100"]);
}

#[test]
fn programs_are_run_meanwhile() {
    scenario(&["churn", "exec", "400"]);
}

#[test]
fn programs_are_run_that_last() {
    scenario(&["churn", "lasting-exec", "200"]);
}

#[test]
fn children_are_killed_meanwhile() {
    scenario(&["churn", "child", "400"]);
}

#[test]
fn children_end_connections() {
    scenario(&["churn", "closes", "24"]);
}

#[test]
fn what_a_killed_peer_did_not_read() {
    scenario(&["filled"]);
}
