//! The switch protocol through every interleaving: senders, receivers and the kernel take one shared access
//! or one system call at a time, processes are killed, directions left and retired at any step, and the
//! decisions are those of the production functions in `switch`, `ring::available`, `ring::refresh` and
//! `Geometry::spans`.
//!
//! Checked in every state: bytes arrive once and in order, whoever reads next; an end of the stream is seen only
//! after the last byte; a reset has a reason (`Ghost::excused`); nobody honest is called corrupt; a poller that was
//! told of something finds it; and from every state some continuation ends well (no deadlock, no livelock, no
//! poller that is never told). Allowed is one loss, and the model names it (`Ghost::owed`): a sender that *dies*
//! after the receiver retired takes the unread ring bytes with it. Memory is sequentially consistent here;
//! `loom/rings.rs` checks the orderings.
//!
//! A debug build leaves out the large scenarios; `cargo test --release` or `CULVERT_MODEL=full` runs all.
#![cfg(not(any(loom, miri)))]

#[path = "model/hands.rs"]
mod hands;
#[path = "model/port.rs"]
mod port;
#[path = "model/receiver.rs"]
mod receiver;
#[path = "model/search.rs"]
mod search;
#[path = "model/sender.rs"]
mod sender;
#[path = "model/world.rs"]
mod world;

use search::explore;
use world::{Act, Config, End, RULES, Rules};

const RETIRES: &[Act] = &[Act::Retire];

const ONE: Config = Config {
    name: "one sender, one receiver",
    senders: &[(0, 4)],
    receivers: &[2],
    chunk: 1,
    want: 2,
    ring: 2,
    cap: 3,
    window: 8,
    wire: true,
    kill: 0,
    end: End::Close,
    polite: false,
    mute: false,
    hasty: false,
    leave: false,
    half: false,
    acts: &[],
    polls: 0,
    epolls: 0,
    takes: 0,
    eager: false,
    blocked: false,
    rooms: 0,
    looks: 0,
    rules: RULES,
};
const BOTH: Config = Config { leave: true, acts: RETIRES, ..ONE };
/// A lifeline that takes little: an echo may stay incomplete.
const NARROW: Config = Config { window: 2, leave: true, ..ONE };
const POLLS: Config = Config { polls: 1, ..NARROW };
const EPOLLS: Config = Config { epolls: 1, ..NARROW };
/// No delay on the wire: the threads' interleavings are what matters.
const DIRECT: Config = Config { want: 1, cap: 4, wire: false, ..ONE };
const THREADS: Config = Config { senders: &[(0, 2), (0, 1)], receivers: &[2, 2], ..DIRECT };
const SENDERS: Config = Config { senders: &[(0, 2), (1, 2)], kill: 1, ..DIRECT };
const READERS: Config = Config { senders: &[(0, 3)], receivers: &[2, 3], kill: 4, ..DIRECT };
const HASTY: Config = Config { senders: &[(0, 2), (0, 2)], cap: 2, hasty: true, end: End::Shutdown, ..DIRECT };
const HOLDERS: Config = Config { senders: &[(0, 3)], receivers: &[2, 3], cap: 2, ..DIRECT };
/// The first receiver stops reading early; the other must be told of the rest.
const TAKES: Config = Config { takes: 1, polite: true, ..HOLDERS };
/// A receiver that may ring nobody's doorbell cuts, and its sender waits for an answer to each message.
const MUTE: Config = Config { senders: &[(0, 3)], polite: true, mute: true, acts: &[Act::Cut], ..ONE };
const RING4: Config = Config { senders: &[(0, 6)], ring: 4, chunk: 4, cap: 4, want: 2, ..DIRECT };
/// Room for two bytes at a time.
const ROOM: Config = Config { senders: &[(0, 2)], rooms: 1, chunk: 2, ..ONE };
const ROOM_OF_TWO: Config = Config { senders: &[(0, 2), (0, 1)], rooms: 1, chunk: 2, ..DIRECT };
const VIEW: Config = Config { senders: &[(0, 2)], looks: 1, ..ONE };
/// The first of two processes looks, and may be killed.
const VIEW_OF_TWO: Config = Config { senders: &[(0, 2)], receivers: &[2, 3], looks: 1, kill: 4, ..DIRECT };
const REWOUND_BESIDE: Config = Config { acts: &[Act::Rewind], ..VIEW_OF_TWO };

fn proves(c: Config, least: usize) {
    let o = explore(&c);
    println!("{}: {} states, {} transitions", c.name, o.states, o.transitions);
    if let Some((what, trace)) = o.fault {
        panic!("{}: {what}\n{}", c.name, trace.join("\n"));
    }
    assert!(o.states >= least, "{}: only {} states", c.name, o.states);
}

fn large(c: Config, least: usize) {
    if full() { proves(c, least) } else { println!("{}: left out of a debug build", c.name) }
}

/// Whether the large scenarios are to be run, too.
fn full() -> bool {
    !cfg!(debug_assertions) || std::env::var("CULVERT_MODEL").as_deref() == Ok("full")
}

#[test]
fn one_sender_and_one_receiver() {
    proves(ONE, 30_000);
    proves(Config { name: "sender leaves", leave: true, ..ONE }, 80_000);
    proves(Config { name: "receiver retires", acts: RETIRES, ..ONE }, 70_000);
    proves(Config { name: "native receiver in flight, sender leaves", leave: true, blocked: true, ..ONE }, 20_000);
    proves(Config { name: "ring of four, both leave", leave: true, acts: RETIRES, ..RING4 }, 20_000);
}

#[test]
fn both_directions_of_leaving() {
    proves(Config { name: "both leave", ..BOTH }, 150_000);
    large(Config { name: "both leave, messages of two", chunk: 2, senders: &[(0, 5)], ring: 4, ..BOTH }, 100_000);
    large(Config { name: "both leave, shutdown", end: End::Shutdown, ..BOTH }, 150_000);
    large(Config { name: "both leave, exit", end: End::Exit, ..BOTH }, 100_000);
}

#[test]
fn either_end_killed_at_any_step() {
    proves(Config { name: "either end killed", kill: 5, ..ONE }, 50_000);
    large(Config { name: "both leave, either end killed", kill: 5, ..BOTH }, 300_000);
}

#[test]
fn several_threads() {
    large(Config { name: "two threads a side", ..THREADS }, 300_000);
    large(Config { name: "two threads a side, sender leaves", leave: true, ..THREADS }, 700_000);
    large(Config { name: "two threads a side, receiver retires", acts: RETIRES, ..THREADS }, 700_000);
    large(
        Config {
            name: "two senders, both leave, either end killed",
            receivers: &[2],
            leave: true,
            acts: RETIRES,
            kill: 5,
            ..THREADS
        },
        250_000,
    );
    large(
        Config {
            name: "two receivers, both leave, either end killed",
            senders: &[(0, 3)],
            leave: true,
            acts: RETIRES,
            kill: 5,
            ..THREADS
        },
        500_000,
    );
    proves(Config { name: "two senders", receivers: &[2], ..THREADS }, 20_000);
    proves(Config { name: "two receivers, one retires", senders: &[(0, 2)], acts: RETIRES, ..THREADS }, 20_000);
}

#[test]
fn several_processes_one_of_them_killed() {
    large(Config { name: "two sending processes", ..SENDERS }, 200_000);
    large(Config { name: "two sending processes, one leaves", leave: true, ..SENDERS }, 400_000);
    large(Config { name: "two sending processes, receiver retires", acts: RETIRES, ..SENDERS }, 400_000);
    proves(Config { name: "two receiving processes", ..READERS }, 100_000);
    large(Config { name: "two receiving processes, the other retires", acts: RETIRES, ..READERS }, 200_000);
    large(
        Config { name: "two receiving processes, the retiring one is killed", acts: RETIRES, kill: 8, ..READERS },
        250_000,
    );
    proves(Config { name: "two sending processes, three bytes", senders: &[(0, 2), (1, 1)], ..SENDERS }, 50_000);
}

#[test]
fn a_receiver_that_polls() {
    proves(Config { name: "poll", leave: false, ..POLLS }, 30_000);
    proves(Config { name: "poll, sender leaves and waits for an answer", polite: true, ..POLLS }, 60_000);
    large(Config { name: "poll, sender leaves", ..POLLS }, 100_000);
    large(Config { name: "poll, half a connection", leave: false, half: true, ..POLLS }, 300_000);
    large(
        Config { name: "poll, receiver cuts, sender waits for an answer", acts: &[Act::Cut], polite: true, ..POLLS },
        300_000,
    );
    large(Config { name: "poll, receiver cuts, either end killed", acts: &[Act::Cut], kill: 5, ..POLLS }, 700_000);
    large(
        Config { name: "poll, receiver rewinds, either end killed", acts: &[Act::Rewind], kill: 5, ..POLLS },
        700_000,
    );
    proves(Config { name: "epoll", leave: false, ..EPOLLS }, 30_000);
    proves(Config { name: "epoll, sender leaves and waits for an answer", polite: true, ..EPOLLS }, 60_000);
    large(
        Config {
            name: "epoll, half a connection, sender waits for an answer",
            leave: false,
            half: true,
            polite: true,
            ..EPOLLS
        },
        200_000,
    );
    large(
        Config { name: "epoll, receiver retires, sender waits for an answer", acts: RETIRES, polite: true, ..EPOLLS },
        200_000,
    );
    large(Config { name: "epoll, receiver cuts, either end killed", acts: &[Act::Cut], kill: 5, ..EPOLLS }, 900_000);
}

#[test]
fn a_receiver_that_cuts() {
    proves(Config { name: "cut", leave: false, acts: &[Act::Cut], ..NARROW }, 100_000);
    large(
        Config { name: "cut, sender leaves and waits for an answer", acts: &[Act::Cut], polite: true, ..NARROW },
        200_000,
    );
    large(Config { name: "cut, either end killed", acts: &[Act::Cut], kill: 5, ..NARROW }, 500_000);
    large(Config { name: "cut twice", acts: &[Act::Cut, Act::Cut], ..NARROW }, 500_000);
    large(Config { name: "cut, then retired", acts: &[Act::Cut, Act::Retire], ..NARROW }, 400_000);
    large(Config { name: "cut, ring of four", acts: &[Act::Cut], leave: true, window: 2, ..RING4 }, 20_000);
    large(Config { name: "two holders, cut, one killed", acts: &[Act::Cut], leave: true, kill: 8, ..HOLDERS }, 900_000);
    large(
        Config { name: "two holders, cut twice, one killed", acts: &[Act::Cut, Act::Cut], kill: 8, ..HOLDERS },
        700_000,
    );
}

#[test]
fn a_sender_that_waits_for_an_answer() {
    let waits = Config { senders: &[(0, 3)], leave: false, polite: true, ..ONE };
    proves(Config { name: "cut, sender waits for an answer", acts: &[Act::Cut], ..waits }, 10_000);
    proves(Config { name: "receiver rewinds, sender waits for an answer", acts: &[Act::Rewind], ..waits }, 10_000);
    proves(Config { name: "receiver retires, sender waits for an answer", acts: RETIRES, ..waits }, 10_000);
    large(Config { name: "mute receiver cuts, ring of one", senders: &[(0, 3)], ring: 1, ..MUTE }, 5_000);
    proves(Config { name: "mute receiver cuts, sender waits for an answer", ..MUTE }, 10_000);
    large(Config { name: "mute receiver cuts, two senders", senders: &[(0, 2), (0, 1)], ..MUTE }, 10_000);
    large(Config { name: "mute receiver polls and cuts", polls: 1, ..MUTE }, 10_000);
    large(Config { name: "mute receiver in epoll cuts", epolls: 1, ..MUTE }, 10_000);
    large(Config { name: "mute receiver cuts, room", senders: &[(0, 2)], rooms: 1, ..MUTE }, 10_000);
    large(
        Config {
            name: "two mute holders, one cuts and is killed",
            senders: &[(0, 2)],
            kill: 8,
            receivers: &[2, 3],
            wire: false,
            ..MUTE
        },
        10_000,
    );
    large(
        Config {
            name: "two mute holders, one polls, the other cuts twice and is killed",
            senders: &[(0, 2)],
            kill: 8,
            receivers: &[2, 3],
            polls: 1,
            acts: &[Act::Cut, Act::Cut],
            wire: false,
            ..MUTE
        },
        10_000,
    );
}

#[test]
fn every_guard_of_who_waits_is_needed() {
    caught("moves_the_cut", Rules { moves_the_cut: false, ..RULES }, MUTE);
    caught("look_after_put", Rules { look_after_put: false, ..RULES }, MUTE);
    caught("room_in_steps", Rules { room_in_steps: false, ..RULES }, MUTE);
    let rewinds = Config { mute: false, acts: &[Act::Rewind], ..MUTE };
    caught("waits_for_both", Rules { waits_for_both: false, ..RULES }, rewinds);
}

#[test]
fn an_echo_on_a_narrow_lifeline() {
    proves(Config { name: "echo, half a connection", senders: &[(0, 3)], leave: false, half: true, ..NARROW }, 50_000);
    proves(Config { name: "echo, all of it ends the ring", eager: true, ..NARROW }, 100_000);
    large(
        Config {
            name: "echo, receiver rewinds, half a connection",
            leave: false,
            half: true,
            acts: &[Act::Rewind],
            ..NARROW
        },
        700_000,
    );
    large(
        Config {
            name: "echo, receiver retires, sender exits",
            leave: false,
            half: true,
            acts: RETIRES,
            end: End::Exit,
            ..NARROW
        },
        400_000,
    );
    large(
        Config {
            name: "echo, all of it ends the ring, receiver retires, either end killed",
            eager: true,
            acts: RETIRES,
            kill: 5,
            ..NARROW
        },
        400_000,
    );
    large(
        Config {
            name: "echo, receiver rewinds and retires, either end killed",
            acts: &[Act::Rewind, Act::Retire],
            kill: 5,
            ..NARROW
        },
        500_000,
    );
    large(Config { name: "shutdown while another thread sends", ..HASTY }, 300_000);
    large(Config { name: "shutdown while another thread sends, receiver retires", acts: RETIRES, ..HASTY }, 600_000);
    large(
        Config {
            name: "shutdown while another process sends, one killed",
            senders: &[(0, 2), (1, 2)],
            kill: 1,
            ..HASTY
        },
        600_000,
    );
}

#[test]
fn a_sender_that_resets() {
    let reset = Config { end: End::Reset, ..NARROW };
    proves(Config { name: "reset", senders: &[(0, 3)], leave: false, ..reset }, 30_000);
    proves(Config { name: "reset, all of an echo ends the ring", eager: true, ..reset }, 100_000);
    proves(Config { name: "reset, receiver retires", acts: RETIRES, ..reset }, 200_000);
    large(Config { name: "reset, receiver cuts", acts: &[Act::Cut], eager: true, ..reset }, 300_000);
    large(Config { name: "reset, receiver rewinds", acts: &[Act::Rewind], eager: true, ..reset }, 200_000);
    large(Config { name: "reset, exec", acts: &[Act::Exec], ..reset }, 300_000);
    large(Config { name: "reset, exec as standard input", acts: &[Act::Stdin], ..reset }, 200_000);
    large(
        Config {
            name: "reset, receiver retires, wide lifeline",
            acts: RETIRES,
            eager: true,
            ..Config { end: End::Reset, ..BOTH }
        },
        200_000,
    );
}

#[test]
fn an_exec_hands_on() {
    let exec = Config { acts: &[Act::Exec], ..NARROW };
    proves(Config { name: "exec", senders: &[(0, 3)], ..exec }, 100_000);
    large(Config { name: "exec, sender waits for an answer", polite: true, ..exec }, 200_000);
    large(Config { name: "exec, either end killed", kill: 5, ..exec }, 600_000);
    large(Config { name: "exec twice", acts: &[Act::Exec, Act::Exec], ..exec }, 500_000);
    large(Config { name: "exec, then retired", acts: &[Act::Exec, Act::Retire], ..exec }, 400_000);
    large(Config { name: "cut, then exec", acts: &[Act::Cut, Act::Exec], ..exec }, 500_000);
    large(
        Config {
            name: "exec of a program without the library, either end killed",
            acts: &[Act::Foreign],
            kill: 5,
            ..exec
        },
        400_000,
    );
    proves(Config { name: "exec as standard input", senders: &[(0, 3)], acts: &[Act::Stdin], ..exec }, 100_000);
    large(Config { name: "exec as standard input, either end killed", acts: &[Act::Stdin], kill: 5, ..exec }, 400_000);
    large(
        Config {
            name: "exec as standard input, half a connection",
            leave: false,
            half: true,
            acts: &[Act::Stdin],
            ..exec
        },
        700_000,
    );
    large(Config { name: "cut, then exec as standard input", acts: &[Act::Cut, Act::Stdin], ..exec }, 500_000);
    large(
        Config { name: "exec by a holder whose fellow is killed", leave: true, acts: &[Act::Exec], kill: 4, ..HOLDERS },
        400_000,
    );
}

#[test]
fn a_receiver_that_stops_leaves_the_rest_to_another() {
    proves(Config { name: "two processes", ..TAKES }, 50_000);
    proves(Config { name: "two processes, one polls", polls: 2, ..TAKES }, 80_000);
    proves(Config { name: "two threads, one in epoll", receivers: &[2, 2], epolls: 2, ..TAKES }, 80_000);
    large(
        Config {
            name: "two threads, one polls, sender leaves",
            receivers: &[2, 2],
            takes: 2,
            polls: 2,
            leave: true,
            ..TAKES
        },
        600_000,
    );
    large(
        Config {
            name: "two threads, one in epoll, sender leaves",
            receivers: &[2, 2],
            takes: 2,
            epolls: 2,
            leave: true,
            ..TAKES
        },
        600_000,
    );
}

#[test]
fn room_in_hand() {
    proves(Config { name: "room", ..ROOM }, 30_000);
    proves(Config { name: "room, both leave", leave: true, acts: &[Act::Rewind], ..ROOM }, 100_000);
    proves(Config { name: "room beside another thread that sends", ..ROOM_OF_TWO }, 30_000);
    large(Config { name: "room, both leave, either end killed", leave: true, acts: RETIRES, kill: 5, ..ROOM }, 100_000);
    large(Config { name: "room of two threads, one leaves", rooms: 3, leave: true, ..ROOM_OF_TWO }, 100_000);
    large(
        Config { name: "room of two threads, receiver cuts, it is killed", acts: &[Act::Cut], kill: 4, ..ROOM_OF_TWO },
        100_000,
    );
    large(
        Config { name: "room of two processes, one killed", rooms: 1, senders: &[(0, 2), (1, 1)], ..SENDERS },
        100_000,
    );
    large(Config { name: "room while another thread shuts down", rooms: 2, ..HASTY }, 100_000);
}

#[test]
fn a_view_in_hand() {
    proves(Config { name: "view", ..VIEW }, 50_000);
    proves(Config { name: "view, sender leaves", leave: true, ..VIEW }, 50_000);
    proves(Config { name: "view, receiver rewinds", acts: &[Act::Rewind], ..VIEW }, 50_000);
    proves(Config { name: "view, viewer is killed beside another process", ..VIEW_OF_TWO }, 50_000);
    large(Config { name: "view, both leave", leave: true, acts: &[Act::Rewind], senders: &[(0, 3)], ..VIEW }, 100_000);
    // Who reads behind the library's back what a view shows, and then releases it, reads it twice: that is the program's affair.
    let rewinds = Config { acts: &[Act::Rewind], ..VIEW };
    large(Config { name: "view, both leave, either end killed", leave: true, kill: 5, ..rewinds }, 100_000);
    large(Config { name: "view, receiver cuts", leave: true, acts: &[Act::Cut], ..VIEW }, 100_000);
    large(Config { name: "view, exec", leave: true, acts: &[Act::Exec], ..VIEW }, 100_000);
    large(Config { name: "view, sender resets", end: End::Reset, ..rewinds }, 100_000);
    large(
        Config { name: "views of two processes, the other rewinds, one is killed", looks: 3, ..REWOUND_BESIDE },
        100_000,
    );
    large(Config { name: "view, the other polls, the viewer is killed", polls: 2, ..VIEW_OF_TWO }, 100_000);
    large(
        Config {
            name: "view, the other is in epoll",
            polite: true,
            kill: 0,
            receivers: &[2, 2],
            epolls: 2,
            ..VIEW_OF_TWO
        },
        100_000,
    );
    large(
        Config { name: "views beside a thread that rewinds", kill: 0, receivers: &[2, 2], ..REWOUND_BESIDE },
        100_000,
    );
}

#[test]
fn every_guard_of_room_and_view_is_needed() {
    caught("keep_reserved", Rules { keep_reserved: false, ..RULES }, ROOM_OF_TWO);
    caught("keep_viewed", Rules { keep_viewed: false, ..RULES }, Config { senders: &[(0, 3)], ..VIEW });
    let rewinds = Config { acts: &[Act::Rewind], ..VIEW };
    caught("count_behind", Rules { count_behind: false, ..RULES }, rewinds);
    let beside = Config { kill: 0, receivers: &[2, 2], ..REWOUND_BESIDE };
    caught("viewed_by_token", Rules { viewed_by_token: false, ..RULES }, beside);
    caught("end_last", Rules { end_last: false, ..RULES }, beside);
    if full() {
        let waits = Config { senders: &[(0, 3)], ..VIEW_OF_TWO };
        caught("viewed_in_steps", Rules { viewed_in_steps: false, ..RULES }, waits);
    }
}

/// Without any one of its guards the protocol is wrong, and the model sees it: the guard is needed, and the
/// model has teeth. The number of states bounds how long a mutant may take to be caught.
fn caught(name: &str, rules: Rules, c: Config) {
    let o = explore(&Config { rules, ..c });
    let (what, trace) = o.fault.unwrap_or_else(|| panic!("{name}: not missed in {} states", o.states));
    println!("without {name}: {what} after {} steps, {} states", trace.len() - 1, o.states);
}

#[test]
fn every_guard_is_needed() {
    let leave = Config { leave: true, ..ONE };
    let retire = Config { acts: RETIRES, ..ONE };
    caught("bounded_native", Rules { bounded_native: false, ..RULES }, leave);
    caught("down_before_fin", Rules { down_before_fin: false, ..RULES }, retire);
    // A receiver that finds the ring empty looks for wishes as well, which hides this one until it does.
    let plain = Rules { heal: false, ..RULES };
    proves(Config { name: "ring of four, nobody dies", rules: plain, chunk: 3, ..RING4 }, 5_000);
    caught("space_after_consume", Rules { space_after_consume: false, ..plain }, Config { chunk: 3, ..RING4 });
    caught("arbiter", Rules { arbiter: false, ..RULES }, BOTH);
    caught("look_after_up", Rules { look_after_up: false, ..RULES }, retire);
    caught("heal", Rules { heal: false, ..RULES }, SENDERS);
    caught("look_after_end", Rules { look_after_end: false, ..RULES }, ONE);
    caught(
        "count_receivers",
        Rules { count_receivers: false, ..RULES },
        Config { senders: &[(0, 3)], want: 2, blocked: true, leave: true, ..THREADS },
    );
    caught("count_senders", Rules { count_senders: false, ..RULES }, Config { receivers: &[2], ..THREADS });
    caught("look_after_rewind", Rules { look_after_rewind: false, ..RULES }, Config { kill: 1, ..retire });
    caught(
        "reader_clears_want",
        Rules { reader_clears_want: false, ..RULES },
        Config { senders: &[(0, 2), (0, 2)], receivers: &[2], ..THREADS },
    );
    caught(
        "stir_on_rewind",
        Rules { stir_on_rewind: false, ..RULES },
        Config { senders: &[(0, 2), (0, 2)], receivers: &[2], acts: RETIRES, ..THREADS },
    );
    // The echo would bring the bytes to a receiver that is down, if the sender did not wait for an answer.
    caught(
        "ready_by_cas",
        Rules { ready_by_cas: false, ..RULES },
        Config { senders: &[(0, 2)], acts: RETIRES, polite: true, ..THREADS },
    );
}

#[test]
fn every_guard_of_cut_and_echo_is_needed() {
    let retire = Config { acts: RETIRES, ..NARROW };
    let cut = Config { acts: &[Act::Cut], ..NARROW };
    let polls = Config { polite: true, ..POLLS };
    caught("echo", Rules { echo: false, ..RULES }, retire);
    caught("echo_before_down", Rules { echo_before_down: false, ..RULES }, NARROW);
    caught("echo_complete", Rules { echo_complete: false, ..RULES }, retire);
    caught("skip", Rules { skip: false, ..RULES }, NARROW);
    caught("drop_echo", Rules { drop_echo: false, ..RULES }, retire);
    caught("down_before_leaving", Rules { down_before_leaving: false, ..RULES }, retire);
    // A poller in transit with an echo behind the bytes before X: never told, whether the sender goes on or closes.
    caught("doubled_in_ring", Rules { doubled_in_ring: false, ..RULES }, polls);
    caught("doubled_in_ring, FIN", Rules { doubled_in_ring: false, ..RULES }, POLLS);
    caught("fin_before_down", Rules { fin_before_down: false, ..RULES }, HASTY);
    caught("cut_in_transit", Rules { cut_in_transit: false, ..RULES }, Config { acts: &[Act::Cut, Act::Cut], ..ONE });
    caught("heal_cut", Rules { heal_cut: false, ..RULES }, Config { acts: &[Act::Cut], kill: 8, ..HOLDERS });
    caught("take_back", Rules { take_back: false, ..RULES }, Config { kill: 1, ..retire });
    caught(
        "killed_over_it",
        Rules { killed_over_it: false, ..RULES },
        Config { kill: 1, acts: &[Act::Rewind], ..NARROW },
    );
    caught("behind_the_cut", Rules { behind_the_cut: false, ..RULES }, Config { kill: 1, ..cut });
    caught("arrived", Rules { arrived: false, ..RULES }, Config { end: End::Reset, eager: true, ..NARROW });
    caught("arrived, retires", Rules { arrived: false, ..RULES }, Config { end: End::Reset, ..retire });
    caught("file_is_all", Rules { file_is_all: false, ..RULES }, Config { acts: &[Act::Stdin], ..NARROW });
    caught("file_to_x", Rules { file_to_x: false, ..RULES }, Config { acts: &[Act::Stdin], ..NARROW });
    caught("tell_on_ring", Rules { tell_on_ring: false, ..RULES }, Config { receivers: &[2, 2], epolls: 2, ..TAKES });
    caught("transit_in_steps", Rules { transit_in_steps: false, ..RULES }, TAKES);
    caught("transit_in_steps, poll", Rules { transit_in_steps: false, ..RULES }, Config { polls: 2, ..TAKES });
    caught("hand_on_behind", Rules { hand_on_behind: false, ..RULES }, Config { acts: &[Act::Exec], ..NARROW });
    let poller = Config { receivers: &[2, 2], takes: 2, polls: 2, leave: true, ..TAKES };
    caught("doubled_in_steps", Rules { doubled_in_steps: false, ..RULES }, poller);
}
