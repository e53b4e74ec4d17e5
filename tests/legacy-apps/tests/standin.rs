//! A process that stands in for other hosts (IP_TRANSPARENT, SO_LINGER 0), as zstackd does, and another user's programs that talk to
//! these: they come to shared memory in both directions, and see every end as they do on the kernel.

use legacy_apps::lab::{line, open_to_all};
use legacy_apps::{
    BOTH, Lab, Mode, PATIENCE, Seen, Side, compare, is_root, on_ring, poll_until, rounds, shm_expected, stat,
};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Whether this machine lets us make what is needed; says why not.
fn possible() -> bool {
    let lacks = match (is_root(), Path::new("/dev/net/tun").exists(), Path::new("/sbin/tc").exists()) {
        (false, ..) => "network namespaces need root",
        (_, false, _) => "there is no /dev/net/tun",
        (_, _, false) => "there is no tc",
        _ => return true,
    };
    eprintln!("skipped: {lacks}");
    false
}

/// A copy that every user may read, wherever the repository lies.
fn copy(lab: &Lab, from: PathBuf, name: &str) -> PathBuf {
    let to = lab.path(name);
    std::fs::copy(&from, &to).unwrap_or_else(|e| panic!("{}: {e}", from.display()));
    std::fs::set_permissions(&to, std::fs::Permissions::from_mode(0o755)).expect("permissions");
    to
}

const LOG: &str = "standin.txt";

/// Runs `py/standin.py`, all of it in a network namespace of its own.
fn program(lab: &Lab, what: &[&str]) -> Command {
    open_to_all(lab.dir());
    let mut command = lab.command(Side::Client, "unshare");
    // The first process there is under the filter, too, so culvert is on.
    command.args(["-n", "--pid", "--fork", "--kill-child", "--mount-proc", "/usr/bin/python3.11", "-u"]);
    command.arg(copy(lab, legacy_apps::file("py/standin.py"), "standin.py")).args(what);
    if lab.accelerated(Side::Client) {
        command.env("LD_PRELOAD", copy(lab, legacy_apps::library(), "libculvert.so"));
        let log = lab.write(LOG, "");
        std::fs::set_permissions(&log, std::fs::Permissions::from_mode(0o666)).expect("permissions");
        command.env("CULVERT_LOG", "debug").env("CULVERT_LOG_FILE", log);
    }
    command
}

/// What it says is the same natively and under culvert; `directions` of its connections came to a ring there, and the log satisfies `proof`.
fn scenario(what: &[&str], set: &[(&str, &str)], directions: usize, proof: impl Fn(&str) -> bool) {
    if !possible() {
        return;
    }
    compare(&format!("standin-{}", what[0]), BOTH, |lab| {
        let said = lab.run(what[0], program(lab, what).envs(set.iter().copied())).success().text();
        if lab.accelerated(Side::Client) && shm_expected() {
            let log = std::fs::read_to_string(lab.path(LOG)).expect("culvert's log");
            assert_eq!(on_ring(&log), directions, "{what:?}:\n{said}\n{log}");
            assert!(proof(&log), "{what:?}:\n{said}\n{log}");
        }
        let mut seen = Seen::default();
        seen.note("said", said);
        seen
    });
}

fn is_on_ring(what: &str) {
    scenario(&[what], &[], 2, |_| true);
}

#[test]
fn a_program_that_connects() {
    is_on_ring("outbound");
}

#[test]
fn a_program_that_accepts() {
    is_on_ring("inbound");
}

/// Under CULVERT_PATH=zstack as well. With CULVERT_DIR the socket at the other end is looked for, too.
#[test]
fn a_program_that_is_told_to_use_it() {
    scenario(&["outbound"], &[("CULVERT_PATH", "zstack")], 2, |log| {
        !log.contains("WARN") && !log.contains("no zstackd")
    });
}

/// Between other users a sender whose peer does not read goes to the kernel's buffers, for good.
#[test]
fn a_host_that_reads_late_does_not_bring_it_to_the_kernel() {
    let went_at = |log: &str| {
        let at = log.split("sending on the lifeline again from ring byte ").skip(1);
        at.map(|t| t.split_whitespace().next().unwrap().parse::<u64>().unwrap()).min()
    };
    // Both directions go to the kernel at the end of the connection: when the program has sent everything, up to two rings and a buffer
    // of it are still on their way round. Because of the pause they would have gone within the first few hundred kilobytes.
    scenario(&["slow"], &[], 2, move |log| went_at(log).is_some_and(|at| at > 2_000_000));
}

#[test]
fn a_host_that_resets_with_bytes_on_the_way() {
    is_on_ring("reset");
}

#[test]
fn killed_with_bytes_on_both_rings() {
    is_on_ring("killed");
}

#[test]
fn killed_while_the_program_waits_for_room() {
    is_on_ring("sending");
}

/// Never a clean end of a stream that was cut.
#[test]
fn killed_at_any_moment_while_the_program_receives() {
    let n = rounds("STANDIN_ROUNDS", 10);
    scenario(&["receiving", &n.to_string()], &[], 2 * n, |_| true);
}

/// What is not said to stand in may be a proxy's that takes its client's address: see networks.rs.
#[test]
fn sockets_that_are_not_said_to_stand_in_stay_on_the_kernel() {
    scenario(&["unsaid"], &[], 0, |_| true);
}

#[test]
fn where_nobody_serves_it_stays_on_the_kernel_and_that_is_said_once() {
    scenario(&["alone"], &[], 0, |log| !log.contains("no zstackd"));
    // Or that one has ended: the kernel gives the number of a namespace that is gone to the next one, and a zstackd that was killed there
    // may have left its notice.
    let said = |log: &str| log.matches("CULVERT_PATH=zstack, but ").count() == 1;
    scenario(&["alone"], &[("CULVERT_PATH", "zstack")], 0, said);
}

#[test]
fn programs_that_stay_here_stay_on_the_kernel() {
    scenario(&["outbound"], &[("CULVERT_PATH", "kernel")], 0, |_| true);
}

#[test]
fn stat_shows_the_path_and_the_connection_on_the_wire() {
    if !possible() || !shm_expected() {
        return;
    }
    let lab = Lab::new("standin-shown", Mode::Both);
    let mut p = lab.start("shown", program(&lab, &["shown"]).stdin(Stdio::piped()));
    let mut last = Ok(Vec::new());
    let shown = poll_until(PATIENCE, || {
        last = stat::connections();
        last.iter()
            .flatten()
            .any(|c| c.path == "zstack" && c.ends.ends_with(" 10.9.0.2:80") && c.outer == "established tap")
    });
    // Its own end is no connection to another host.
    let own = last
        .iter()
        .flatten()
        .filter(|c| c.ends.starts_with("10.9.0.2:80 "))
        .map(|c| c.path.clone())
        .collect::<Vec<_>>();
    assert!(shown && own == ["shm"], "{last:?}\n{}", p.describe());
    line(&mut p.stdin().expect("a pipe"), "");
    p.wait(PATIENCE).success();
    lab.finish();
}
