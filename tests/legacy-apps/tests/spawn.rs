//! Starting programs: what becomes of connections that they would inherit, whatever their peers do.

use legacy_apps::{Lab, Side, compare_one, on_ring};

/// Runs one scenario of `c/spawn.c`; `directions` of its connections come on a ring.
fn scenario(name: &str, how: &str, directions: usize) {
    let program = |lab: &Lab| {
        let mut command = lab.command(Side::Client, lab.compile("spawn.c", &[]));
        command.args([name, how]);
        command
    };
    compare_one(&format!("spawn-{name}-{how}"), program, |_, log| on_ring(log) >= directions);
}

/// A peer that is stopped is waited for once, not for each of its connections.
#[test]
fn unread_on_many_connections_with_a_stopped_peer() {
    for how in ["system", "popen", "fork", "vfork"] {
        scenario("unread", how, 400);
    }
}

/// What a killed peer has said is read by the program that inherits the connection, also if there are many.
#[test]
fn a_program_reads_what_a_killed_peer_has_said() {
    for how in ["read-system", "read-popen", "read-posix", "read-fork", "read-vfork"] {
        scenario("killed", how, 20);
    }
    scenario("killed-many", "read-fork", 150);
    scenario("killed-many", "read-vfork", 150);
    scenario("killed-many", "read-posix", 150);
}

/// A program that inherits such a connection by oversight takes nothing from it, whether it runs under culvert or not.
#[test]
fn a_program_does_not_read_what_a_killed_peer_has_said() {
    for how in ["system", "popen", "posix", "posix-bare", "fork", "vfork"] {
        scenario("killed", how, 20);
    }
    scenario("killed-many", "fork", 150);
    scenario("killed-many", "vfork", 150);
}

/// More lies on a ring, unread, than the kernel's buffers hold.
#[test]
fn much_that_a_stopped_peer_has_not_read() {
    let program = |lab: &Lab| {
        let mut command = lab.python(Side::Client, "spawning.py");
        command.env("CULVERT_EAGER", "1").env("CULVERT_RING", (16 << 20).to_string());
        command
    };
    compare_one("spawn-much", program, |_, log| on_ring(log) >= 2);
}

/// What lies unread when a program becomes a shell is read by whom the shell hands the connection on to, once, while the peer
/// is as `how`.
fn chains(how: &str, chains: &[&str]) {
    let program = |lab: &Lab| {
        let mut command = lab.python(Side::Client, "chained.py");
        command.arg(how).args(chains);
        command
    };
    compare_one(&format!("spawn-chained-{how}"), program, |_, log| on_ring(log) >= 2 * chains.len());
}

#[test]
fn a_chain_of_programs_reads_what_a_peer_that_waits_has_said() {
    let all =
        ["zero", "zero-bash", "zero-stdio", "nine", "child", "children", "turns", "python", "python-child", "unread"];
    chains("recv", &all);
}

/// A program whose connections are attached before their first bytes: under culvert at least `rings` directions are.
fn attached_at_once(name: &str, source: &str, flags: &[&str], rings: usize) {
    let program = |lab: &Lab| {
        let mut command = lab.command(Side::Client, lab.compile(source, flags));
        command.env("CULVERT_EAGER", "1");
        command
    };
    compare_one(name, program, |_, log| on_ring(log) >= rings);
}

/// Another thread reads a connection that a program would inherit, and of which what is unread is copied.
#[test]
fn another_thread_reads_meanwhile() {
    attached_at_once("spawn-overlook", "overlook.c", &["-pthread"], 100);
}

/// What is handed on by exec, since its peer does not answer, is handed on again, and shared by those who have it.
#[test]
fn a_chain_of_programs_reads_what_a_busy_peer_has_said() {
    let all = ["zero", "zero-sh", "nine", "child", "children", "turns", "python", "python-child", "together", "unread"];
    chains("busy", &all);
}

/// An image that is killed, or ends, before it has read what was handed on has reset the connection; one that has read all of it
/// has not. SO_LINGER is the program's meanwhile.
#[test]
fn what_a_peer_sees_when_an_image_ends() {
    let cases = [
        "killed",
        "killed_behind_some",
        "killed_behind_all",
        "killed_in_the_next",
        "killed_in_the_next_behind_all",
        "read_from_2",
        "ends",
        "ends_behind_all",
        "ends_with_more",
        "closes",
        "closes_behind_all",
        "child_reads",
        "lingers",
        "resets",
        "aborts_no_more",
        "disconnects",
        "fails",
    ];
    let program = |lab: &Lab| {
        let mut command = lab.python(Side::Client, "bequests.py");
        command.args(cases);
        command
    };
    compare_one("spawn-bequests", program, |_, log| on_ring(log) >= 2 * cases.len());
}

/// A program reads what its parent has left of a connection, and nothing of what another program that runs meanwhile was handed.
#[test]
fn a_program_that_runs_has_inherited_the_connection_before() {
    attached_at_once("spawn-beside", "beside.c", &["-pthread"], 2);
}

/// A program reads on what its parent has closed: the connection ends well when it has read all.
#[test]
fn a_program_reads_on_what_its_parent_has_closed() {
    let program = |lab: &Lab| {
        let mut command = lab.command(Side::Client, lab.compile("copied.c", &[]));
        command.env("CULVERT_EAGER", "1").env("CULVERT_RING", (16 << 20).to_string());
        command
    };
    compare_one("spawn-copied", program, |_, log| on_ring(log) >= 2);
}

/// A program has a connection by oversight, and a copy of what is unread there, which the kernel gets as well: it ends, and the
/// connection goes on.
#[test]
fn a_connection_becomes_inheritable_while_a_program_is_started() {
    attached_at_once("spawn-late", "late.c", &["-pthread"], 8);
}

/// What programs inherit, whether they are meant to read it or not, is read once, by whoever comes first.
#[test]
fn what_several_programs_inherit_is_read_once() {
    for how in ["sibling", "sibling-thread", "parent", "turns", "late"] {
        let program = |lab: &Lab| {
            let mut command = lab.command(Side::Client, lab.compile("shares.c", &["-pthread"]));
            command.arg(how).env("CULVERT_EAGER", "1").env("CULVERT_RING", (16 << 20).to_string());
            command
        };
        compare_one(&format!("spawn-shares-{how}"), program, |_, log| on_ring(log) >= 2);
    }
}

/// What a program has handed on, and goes on to read itself, its forks read with it.
#[test]
fn a_fork_reads_on_what_programs_were_handed() {
    compare_one("spawn-shared", |lab| lab.python(Side::Client, "shared.py"), |_, log| on_ring(log) >= 2);
}
