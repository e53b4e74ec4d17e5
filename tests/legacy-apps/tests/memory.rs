//! What connections and peers leave behind, and what memory of culvert's counts as the program's. See `c/memory.c`.

use legacy_apps::{Lab, Side, compare_one, on_ring};
use std::fs;
use std::path::{Path, PathBuf};

fn scenario(args: &[&str]) {
    let program = |lab: &Lab| {
        let mut command = lab.command(Side::Client, lab.compile("memory.c", &["-pthread"]));
        command.args(args);
        command
    };
    compare_one(&format!("memory-{}", args[0]), program, |_, log| on_ring(log) > 0);
}

#[test]
fn channels_come_and_go_under_pollers() {
    scenario(&["pollers", "700"]);
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

#[test]
fn address_space_dumps_and_locks_are_the_programs() {
    scenario(&["counted"]);
}

/// A control group of 48 MiB, gone with this.
struct Group(PathBuf);

impl Group {
    fn make() -> Option<Group> {
        let (v1, v2) = ("/sys/fs/cgroup/memory", "/sys/fs/cgroup");
        let (root, limit) = if Path::new(v1).exists() { (v1, "memory.limit_in_bytes") } else { (v2, "memory.max") };
        let dir = Path::new(root).join(format!("culvert-test-{}", std::process::id()));
        fs::create_dir(&dir).ok()?;
        let group = Group(dir);
        fs::write(group.0.join(limit), (48 << 20).to_string()).ok()?;
        Some(group)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

#[test]
fn slow_readers_of_a_sender_with_little_memory() {
    let Some(group) = Group::make() else {
        eprintln!("skipped: no control group can be made (needs root, and memory control)");
        return;
    };
    scenario(&["limited", &group.0.to_string_lossy()]);
}
