//! Every flag, option value and bad pointer, in the calls that culvert takes: results, errors and what is left are the kernel's.

use legacy_apps::{Lab, Side, compare_one, is_root, on_ring};
use std::process::Command;

/// Runs a table of `c/calls.c` on a kind of descriptor.
fn program(lab: &Lab, kind: &str, table: &str) -> Command {
    let mut command = lab.command(Side::Client, lab.compile("calls.c", &["-w"]));
    command.arg(kind).arg(table);
    command
}

/// On a connection whose bytes are on rings from the first exchange on, on one that is too young for that at first, and on one that only
/// the kernel can have.
fn connections(table: &str) {
    connections_on(table, 1);
}

/// The same; of the first more than `rings` directions are on rings.
fn connections_on(table: &str, rings: usize) {
    each_new(table, rings);
    // It goes over on its way through the table.
    compare_one(&format!("calls-{table}-young"), |lab| program(lab, "tcp", table), |_, log| on_ring(log) > 0);
}

/// The same for a table that makes a connection for each line, each of them too young to come to a ring but at once.
fn each_new(table: &str, rings: usize) {
    let eager = |lab: &Lab| {
        let mut command = program(lab, "tcp", table);
        command.env("CULVERT_EAGER", "1");
        command
    };
    compare_one(&format!("calls-{table}"), eager, |_, log| on_ring(log) > rings);
    compare_one(&format!("calls-{table}-pinned"), |lab| program(lab, "pinned", table), |_, log| on_ring(log) == 0);
}

/// On what is no connection, in a process with sockets of culvert's and in one without.
fn others(table: &str) {
    for kind in ["pipe", "udp", "listen", "none", "idle"] {
        compare_one(&format!("calls-{table}-{kind}"), |lab| program(lab, kind, table), |_, log| on_ring(log) == 0);
    }
}

#[test]
fn flags_of_receives() {
    connections("recv");
}

#[test]
fn flags_of_sends() {
    connections("send");
}

#[test]
fn bad_pointers() {
    connections("pointers");
    others("pointers");
}

#[test]
fn bad_pointers_of_waits() {
    connections("waits");
    others("waits");
}

/// Of calls that execute a program, or make descriptors. The first of them takes the connection to the kernel.
#[test]
fn bad_pointers_of_programs_and_new_descriptors() {
    each_new("programs", 1);
    others("programs");
}

#[test]
fn lengths() {
    connections("lengths");
}

#[test]
fn options() {
    connections("options");
}

#[test]
fn commands_and_requests() {
    connections("commands");
    others("commands");
}

#[test]
fn every_event_in_every_state() {
    // The last one has been reset when it is looked at.
    each_new("events", 2 * 5);
}

#[test]
fn errors_behind_messages_are_kept() {
    each_new("kept", 2 * 150);
    each_new("interrupted", 2 * 11);
}

#[test]
fn what_is_left_is_said_with_each_message() {
    // The last of the connections has the option from its listener, before it comes to a ring.
    connections_on("inq", 2 * 19);
}

/// The names that fortified programs and large files have for calls, and ways to a socket's bytes beside the usual ones.
#[test]
fn other_names_and_other_ways() {
    for (kind, rings) in [("tcp", 200), ("pinned", 0)] {
        let program = |lab: &Lab| {
            let mut command = lab.command(Side::Client, lab.compile("names.c", &["-w", "-pthread"]));
            command.arg(kind).env("CULVERT_EAGER", "1");
            command
        };
        compare_one(&format!("names-{kind}"), program, |_, log| {
            on_ring(log) >= rings && (rings > 0) == (on_ring(log) > 0)
        });
    }
}

/// Runs a case of `py/buffers.py`, on rings from the first exchange on where that can be.
fn buffers(case: &str, rings: usize) {
    let program = |lab: &Lab| {
        let mut command = lab.python(Side::Client, "buffers.py");
        command.arg(case).env("CULVERT_EAGER", "1");
        command
    };
    compare_one(&format!("buffers-{case}"), program, |_, log| on_ring(log) >= rings);
}

#[test]
fn senders_go_on_with_a_larger_buffer() {
    buffers("sndbuf", 2);
    buffers("ring", 2);
    buffers("edge", 2);
}

#[test]
fn senders_are_told_of_room_in_a_smaller_buffer() {
    buffers("less", 2);
}

#[test]
fn unsent_bytes_are_bounded() {
    buffers("notsent", 8);
}

#[test]
fn negative_and_endless_times() {
    buffers("negative", 10);
}

#[test]
fn receives_of_no_bytes_end_with_none() {
    let program = |lab: &Lab| lab.command(Side::Client, lab.compile("nothing.c", &["-pthread"]));
    compare_one("nothing", program, |_, log| on_ring(log) > 0);
}

/// Runs a case of `py/waking.py`, on rings from the first exchange on.
fn woken(case: &str) {
    let program = |lab: &Lab| {
        let mut command = lab.python(Side::Client, "waking.py");
        command.arg(case).env("CULVERT_EAGER", "1");
        command
    };
    compare_one(&format!("waking-{case}"), program, |_, log| on_ring(log) >= 32);
}

#[test]
fn who_waits_is_told_of_a_lower_mark() {
    woken("lowered");
}

#[test]
fn who_waits_for_room_is_told_of_a_shutdown() {
    woken("shut");
}

#[test]
fn what_is_unread_when_a_socket_is_disconnected() {
    let program = |lab: &Lab| {
        let mut command = lab.python(Side::Client, "disconnected.py");
        command.env("CULVERT_EAGER", "1");
        command
    };
    compare_one("disconnected", program, |_, log| on_ring(log) >= 80);
}

/// Runs a case of `py/urgent.py`, on rings from the first exchange on, and on rings that come on the way.
fn urgent(case: &str, rings: usize) {
    let program = |lab: &Lab| {
        let mut command = lab.python(Side::Client, "urgent.py");
        command.arg(case);
        command
    };
    let eager = |lab: &Lab| {
        let mut command = program(lab);
        command.env("CULVERT_EAGER", "1");
        command
    };
    compare_one(&format!("urgent-{case}"), program, |_, log| on_ring(log) >= rings);
    compare_one(&format!("urgent-{case}-eager"), eager, |_, log| on_ring(log) >= rings);
}

#[test]
fn receives_end_at_an_urgent_mark() {
    urgent("marks", 192);
}

#[test]
fn who_sleeps_is_woken_by_urgent_data() {
    urgent("asleep", 26);
}

#[test]
fn a_set_tells_of_urgent_data_behind_any_number_of_answers() {
    urgent("watched", 24);
}

#[test]
fn urgent_data_among_other_steps() {
    urgent("chance", 800);
}

/// Runs cases of `py/unread.py`, on rings from the first exchange on.
fn unread(cases: &[&str]) {
    for case in cases {
        let program = |lab: &Lab| {
            let mut command = lab.python(Side::Client, "unread.py");
            command.arg(case).env("CULVERT_EAGER", "1");
            command
        };
        // What the peer's kernel would take stays on the ring, and all that comes behind.
        let stays =
            |log: &str| *case != "little" || log.contains("sending on the lifeline again from ring byte 60081\n");
        compare_one(&format!("unread-{case}"), program, |_, log| on_ring(log) >= 2 && stays(log));
    }
}

#[test]
fn a_user_timeout_ends_a_connection_that_is_not_read() {
    unread(&["set", "blocking", "away", "request"]);
}

#[test]
fn who_waits_hears_of_a_user_timeout() {
    unread(&["epolled", "polled", "selected", "receiving"]);
}

#[test]
fn a_user_timeout_ends_no_connection_that_is_read() {
    unread(&["little", "slowly", "lifted", "then_stops"]);
}

#[test]
fn silent_connections_are_ended_by_their_probes() {
    if !is_root() {
        return eprintln!("skipped: network namespaces need root");
    }
    let program = |lab: &Lab| {
        let mut command = lab.command(Side::Client, "unshare");
        command.args(["-n", "sh", "-c", "ip link set lo up; exec \"$@\"", "sh", "/usr/bin/python3.11", "-u"]);
        command.arg(legacy_apps::file("py").join("endings.py")).arg("keepalive").env("CULVERT_EAGER", "1");
        command
    };
    compare_one("endings-keepalive", program, |_, log| on_ring(log) >= 18);
}

#[test]
fn closes_that_linger() {
    let program = |lab: &Lab| {
        let mut command = lab.python(Side::Client, "endings.py");
        command.arg("linger").env("CULVERT_EAGER", "1");
        command
    };
    compare_one("endings-linger", program, |_, log| on_ring(log) >= 54);
}

#[test]
fn what_is_left_by_a_peer_that_was_killed() {
    let program = |lab: &Lab| {
        let mut command = lab.python(Side::Client, "endings.py");
        command.arg("killed");
        command
    };
    compare_one("endings-killed", program, |_, log| on_ring(log) >= 4);
}

#[test]
fn what_an_heir_is_told_of_a_peer_that_was_killed() {
    let program = |lab: &Lab| lab.python(Side::Client, "told.py");
    compare_one("told", program, |_, log| on_ring(log) >= 24);
}

/// One system call for all connections that only the kernel knows about, as natively, and not one for each.
#[test]
fn half_closed_connections_are_asked_for_at_once() {
    let program = |lab: &Lab| {
        let mut command = lab.command(Side::Client, lab.compile("halfclosed.c", &[]));
        command.env("CULVERT_EAGER", "1");
        command
    };
    compare_one("half-closed", program, |_, log| on_ring(log) >= 120);
}
