//! epoll on connections in shared memory says what it says on the kernel: levels, edges, oneshots, ends.
//!
//! Each scenario of `py/epolls.py` has both ends in one process; `CULVERT_EAGER=1` takes them into shared
//! memory before their first bytes, so that every event in it is culvert's. Without rings in it, a scenario is about
//! connections that stay on the kernel.

use legacy_apps::{Lab, Mode, Side, compare_one, on_ring, shm_expected};

/// Runs one scenario; under culvert at least `rings` directions must have gone through shared memory.
fn scenario(name: &str, rings: usize) {
    let program = |lab: &Lab| {
        let mut command = lab.python(Side::Client, "epolls.py");
        command.arg(name);
        if rings > 0 {
            command.env("CULVERT_EAGER", "1");
        }
        command
    };
    compare_one(&format!("epoll-{name}"), program, |_, log| on_ring(log) >= rings);
}

macro_rules! scenarios {
    ($($name:ident: $rings:literal,)*) => {$(
        #[test]
        fn $name() {
            scenario(stringify!($name), $rings);
        }
    )*};
}

scenarios! {
    level: 2,
    edge: 2,
    edge_out: 2,
    oneshot: 2,
    oneshot_before_attach: 2,
    threads: 16,
    sleepers: 8,
    two_sets: 2,
    nested: 2,
    duplicates: 4,
    ends: 12,
    killed: 2,
    left_asleep: 10,
    single: 6,
    fairness: 24,
    small_buffers: 1,
    masks: 2,
    timeouts: 2,
    faults: 2,
    exclusive: 2,
    exclusive_before_attach: 1,
    forked: 2,
    shared: 4,
    kept: 2,
    kept_closed: 2,
    closed_by_exec: 2,
    twice: 2,
    passed: 2,
    owed: 0,
    owed_changes: 0,
    unseen: 0,
    number_back: 4,
    first_wait: 2,
    hidden: 20,
    no_second_edge: 2,
    end_behind_bytes: 80,
    number_moved: 2,
    repeated: 2,
    in_flight: 2,
    order: 10,
    order_kept: 12,
    idle: 6,
}

/// The ring is small enough for what lies on it to fit into the kernel's buffers.
#[test]
fn room_behind_a_leaver() {
    let program = |lab: &Lab| {
        let mut command = lab.python(Side::Client, "epolls.py");
        command.arg("room_behind_a_leaver").env("CULVERT_RING", (128 << 10).to_string());
        command
    };
    compare_one("epoll-room_behind_a_leaver", program, |_, log| {
        on_ring(log) >= 3 && log.matches("receiving on the lifeline again").count() >= 3
    });
}

/// Runs one case of `py/heirs.py`: a connection with bytes unread and a set that come by exec, or
/// become the kernel's.
fn heir(case: &str) {
    let program = |lab: &Lab| {
        let mut command = lab.python(Side::Client, "heirs.py");
        command.arg(case);
        command
    };
    compare_one(&format!("heir-{case}"), program, |_, log| on_ring(log) >= 2);
}

macro_rules! heirs {
    ($($test:ident: $case:literal,)*) => {$(
        #[test]
        fn $test() {
            heir($case);
        }
    )*};
}

heirs! {
    heirs_level: "level",
    heirs_other_events: "other_events",
    heirs_edge: "edge",
    heirs_oneshot: "oneshot",
    heirs_oneshot_of_a_killed_process: "killed",
    heirs_oneshot_read_before: "read_before",
    heirs_removed: "removed",
    heirs_duplicates: "duplicates",
    heirs_sleeper: "sleeper",
    heirs_set_around_it: "around",
    heirs_own_set: "own_set",
    heirs_two_sets: "two_sets",
    heirs_second_exec: "further",
    heirs_same_data: "same_data",
    heirs_closed_number: "closed",
    heirs_crowded: "crowded",
    heirs_kept: "kept",
    heirs_kept_oneshot: "kept_oneshot",
    heirs_kept_oneshot_fired: "kept_fired",
    fired_in_a_set_that_a_child_has: "fired",
    fired_in_a_set_that_is_kept: "fired_exec",
    another_image_is_told: "told_elsewhere",
    another_image_is_told_no_marks: "strangers",
    heirs_kept_by_a_closed_number: "kept_closed",
    heirs_kept_for_room: "kept_for_room",
    heirs_second_exec_behind_a_spawn: "further_spawned",
    heirs_read_elsewhere: "read_elsewhere",
    busy_peer_of_a_set_that_is_watched: "watched",
    busy_peer_and_a_watched_set: "watched_before",
    busy_peer_and_a_watched_set_for_room: "watched_for_room",
    busy_peer_and_a_set_that_a_child_has: "spawned",
}

/// What a client did first, on whatever connection and medium, is told first (`c/order.c`).
fn order_of_acts(trigger: &str, variable: Option<(&str, &str)>) {
    order_of_acts_in(trigger, 200, variable);
}

/// The same with room for so many events in a call.
fn order_of_acts_in(trigger: &str, room: u32, variable: Option<(&str, &str)>) {
    order_of_acts_from(trigger, room, "1", variable);
}

/// The same with the acts that follow from `seed`.
fn order_of_acts_from(trigger: &str, room: u32, seed: &str, variable: Option<(&str, &str)>) {
    let rounds = legacy_apps::rounds("LEGACY_ORDER_ROUNDS", 300).to_string();
    let program = |lab: &Lab| {
        let mut command = lab.command(Side::Client, lab.compile("order.c", &[]));
        command.args([trigger, &room.to_string(), &rounds, seed]).envs(variable);
        command
    };
    let name = format!("order-{trigger}-{room}-{seed}-{}", variable.map_or("default", |(name, _)| name));
    compare_one(&name, program, |said, log| said.contains("inversions 0") && on_ring(log) > 8);
}

#[test]
fn order_of_acts_level() {
    order_of_acts("level", None);
    order_of_acts("level", Some(("CULVERT_SPIN", "off")));
    order_of_acts("level", Some(("CULVERT_EAGER", "1")));
}

#[test]
fn order_of_acts_edge() {
    order_of_acts("edge", None);
    order_of_acts("edge", Some(("CULVERT_SPIN", "off")));
    order_of_acts("edge", Some(("CULVERT_EAGER", "1")));
}

#[test]
fn order_of_acts_oneshot() {
    order_of_acts("oneshot", None);
    order_of_acts("oneshot", Some(("CULVERT_SPIN", "off")));
    order_of_acts("oneshot", Some(("CULVERT_EAGER", "1")));
}

/// Half of an array is left for news on rings.
#[test]
fn order_of_acts_in_small_arrays() {
    for trigger in ["level", "edge", "oneshot"] {
        order_of_acts_in(trigger, 8, None);
    }
}

/// In a smaller array what the kernel has told finds no room beside older news on rings, and it tells that again: also what it has of the
/// lifeline of a connection on a ring, in its place among the rest. A waiter that sleeps finds several acts at once; with
/// these seeds a connection on a ring ends right behind an act on the kernel that it has to tell again.
#[test]
fn order_of_acts_in_smaller_arrays() {
    for (room, seed) in [(2, "9103"), (3, "24001"), (5, "1")] {
        for trigger in ["level", "edge", "oneshot"] {
            order_of_acts_from(trigger, room, seed, Some(("CULVERT_SPIN", "off")));
        }
    }
}

/// Poll and select tell all at once: what was done first is never missing where what was done later is told. The kernel, which
/// looks at one descriptor after another, does not keep to that, so that there is nothing to compare with.
fn order_of_acts_told_at_once(call: &str) {
    for variable in [None, Some(("CULVERT_SPIN", "off")), Some(("CULVERT_EAGER", "1"))] {
        let rounds = legacy_apps::rounds("LEGACY_ORDER_ROUNDS", 300).to_string();
        no_inversion("order.c", &[call, "200", &rounds, "1"], variable);
    }
}

fn no_inversion(source: &str, arguments: &[&str], variable: Option<(&str, &str)>) {
    let name = format!("{source}-{}-{}", arguments[0], variable.map_or("default", |(name, _)| name));
    let lab = Lab::new(&name, Mode::Both);
    let log = lab.path("culvert.txt");
    let mut command = lab.command(Side::Client, lab.compile(source, &[]));
    command.args(arguments).envs(variable).env("CULVERT_LOG", "debug").env("CULVERT_LOG_FILE", &log);
    let said = lab.run(&name, &mut command).success().text();
    if lab.accelerated(Side::Client) && shm_expected() {
        let log = std::fs::read_to_string(&log).expect("culvert's log");
        assert!(on_ring(&log) > 8, "{name}: not on the ring:\n{log}");
        assert_eq!(said.lines().last(), Some("inversions 0"), "{name}: {said}\n{log}");
    }
    lab.finish();
}

#[test]
fn order_of_acts_polled() {
    order_of_acts_told_at_once("poll");
    order_of_acts_told_at_once("ppoll");
}

#[test]
fn order_of_acts_selected() {
    order_of_acts_told_at_once("select");
    order_of_acts_told_at_once("pselect");
}

/// Between the first look at the first of many connections and that at the last, a client has time for both.
#[test]
fn order_of_acts_in_a_long_list() {
    no_inversion("scans.c", &["300", "20000"], None);
    no_inversion("scans.c", &["100", "20000"], None);
}

/// A connection goes to a ring after the kernel has told a thread of it, and before that has come back from its wait: it is told once.
#[test]
fn told_while_it_goes_to_a_ring() {
    let program = |lab: &Lab| lab.command(Side::Client, lab.compile("comeback.c", &["-pthread"]));
    compare_one("comeback", program, |_, log| on_ring(log) > 20);
}

/// What the kernel has told, and gave way to older news on rings, does not give way to all that come later.
#[test]
fn busy_connections_keep_nothing_else_from_a_small_array() {
    let program = |lab: &Lab| lab.command(Side::Client, lab.compile("patience.c", &[]));
    compare_one("patience", program, |_, log| on_ring(log) > 20);
}
