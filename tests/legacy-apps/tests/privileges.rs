//! Processes that give up their user: what they share with those that have it still, and what they are accelerated for.

use legacy_apps::{Lab, Side, compare_one, is_root, on_ring};

/// Runs one scenario of `c/privileges.c`; `directions` of its connections come on a ring. `parts`: a process leaves its family.
fn scenario(name: &str, how: &str, directions: usize, parts: bool) {
    if !is_root() {
        eprintln!("privileges-{name}-{how}: skipped, needs root");
        return;
    }
    let program = |lab: &Lab| {
        let mut command = lab.command(Side::Client, lab.compile("privileges.c", &["-pthread"]));
        command.args([name, how]);
        command
    };
    compare_one(&format!("privileges-{name}-{how}"), program, |_, log| {
        on_ring(log) >= directions && log.contains("it has a family of its own") == parts
    });
}

#[test]
fn a_child_that_is_taken_over_reaches_nothing_of_its_parents() {
    scenario("taken-over", "setuid", 4, true);
    scenario("taken-over", "setresuid", 4, true);
}

/// A directory that was open before the jail would lead out of it, whoever takes the program over.
#[test]
fn a_jail_has_no_way_out() {
    if !is_root() {
        return eprintln!("skipped: a jail needs root");
    }
    // After a mount namespace of its own it cannot see the registry any more.
    for (how, directions) in [("chroot", 4), ("syscall", 4), ("pivot", 2)] {
        let program = |lab: &Lab| {
            let empty = lab.path("empty");
            std::fs::create_dir_all(&empty).expect("a directory");
            let mut command = lab.command(Side::Client, lab.compile("jail.c", &[]));
            command.arg(how).arg(empty);
            command
        };
        compare_one(&format!("jail-{how}"), program, |said, log| {
            said.contains("ways out: 0") && on_ring(log) >= directions
        });
    }
}

#[test]
fn what_it_shares_with_a_process_of_its_former_user_is_left() {
    scenario("former", "setuid", 2, true);
    scenario("former", "setresuid", 2, true);
}

#[test]
fn both_go_on_with_what_they_share() {
    for how in ["setuid", "setreuid", "setresuid", "seteuid", "syscall"] {
        scenario("both", how, 2, true);
    }
    scenario("unread", "setuid", 2, true);
    scenario("threads", "setuid", 2, true);
}

#[test]
fn a_worker_without_privileges_is_accelerated() {
    scenario("worker", "setuid", 20, true);
}

#[test]
fn a_server_that_takes_on_another_user_for_a_moment_stays_in_its_family() {
    scenario("for-a-moment", "setuid", 2, false);
}
