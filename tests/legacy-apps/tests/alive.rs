//! Who is alive: processes that share a connection, of which one is dead, or stopped, or seems to be, or is not born.

use legacy_apps::{Lab, Side, compare_one, is_root, on_ring};

/// Runs one scenario of `c/alive.c`; `directions` of its connections come on a ring.
fn scenario(name: &str, directions: usize) {
    let program = |lab: &Lab| {
        let mut command = lab.command(Side::Client, lab.compile("alive.c", &["-pthread"]));
        command.arg(name);
        command
    };
    compare_one(&format!("alive-{name}"), program, |_, log| on_ring(log) >= directions);
}

/// The same for what only root may do.
fn scenario_of_root(name: &str, directions: usize) {
    if is_root() {
        scenario(name, directions);
    } else {
        eprintln!("alive-{name}: skipped, needs root");
    }
}

#[test]
fn a_killed_holder_that_is_a_zombie() {
    scenario("zombie", 100);
}

#[test]
fn a_killed_holder_whose_id_another_process_has() {
    scenario_of_root("reused", 100);
}

#[test]
fn a_holder_in_another_pid_namespace() {
    scenario_of_root("foreign", 2);
}

#[test]
fn children_that_are_not_born() {
    scenario("unborn", 4);
}

#[test]
fn processes_that_are_killed_while_they_fork() {
    scenario("killed-in-fork", 6);
}

#[test]
fn children_that_share_memory_or_descriptors() {
    scenario("share", 2);
}

#[test]
fn a_thread_with_a_table_of_its_own_closes() {
    scenario("table-thread", 2);
}

#[test]
fn a_thread_with_a_table_of_its_own_goes_on() {
    scenario("table-main", 2);
}

#[test]
fn children_of_two_threads_that_fork_at_once() {
    scenario("abreast", 160);
}

#[test]
fn a_stopped_holder_that_takes_turns() {
    scenario("stopped", 60);
}

#[test]
fn a_stopped_holder_that_was_alone() {
    scenario("stopped-first", 40);
}

#[test]
fn a_stopped_process_that_has_the_same_epoll_set() {
    scenario("stopped-set", 2);
}

#[test]
fn a_stopped_holder_that_receives_much() {
    scenario("stopped-copying", 40);
}

#[test]
fn a_stopped_holder_that_sends() {
    scenario("stopped-sending", 40);
}
