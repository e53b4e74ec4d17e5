//! The switch protocol through every interleaving: senders, receivers and the kernel take one shared access
//! or one system call at a time, processes are killed, directions left and retired at any step, and the
//! decisions are those of the production functions `switch::rx`, `switch::tx`, `switch::transit`,
//! `ring::available`, `ring::refresh` and `Geometry::spans`.
//!
//! Checked in every state: bytes arrive once and in order; an end of the stream is seen only after the last
//! byte; nobody honest is called corrupt; and from every state some continuation ends well (no deadlock, no
//! livelock). Allowed is one loss, and the model names it (`Ghost::owed`): a sender that *dies* after the
//! receiver retired takes the unread ring bytes with it. Memory is sequentially consistent here; `loom.rs`
//! checks the orderings.
//!
//! A debug build leaves out the large scenarios; `cargo test --release` or `CULVERT_MODEL=full` runs all.
#![cfg(not(any(loom, miri)))]

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
    hasty: false,
    leave: false,
    half: false,
    acts: &[],
    polls: 0,
    epolls: 0,
    takes: 0,
    eager: false,
    blocked: false,
    rules: RULES,
};
const BOTH: Config = Config { leave: true, acts: RETIRES, ..ONE };
/// No delay on the wire: the threads' interleavings are what matters.
const DIRECT: Config = Config { want: 1, cap: 4, wire: false, ..ONE };
const THREADS: Config = Config { senders: &[(0, 2), (0, 1)], receivers: &[2, 2], ..DIRECT };
const SENDERS: Config = Config { senders: &[(0, 2), (1, 2)], kill: 1, ..DIRECT };
const READERS: Config = Config { senders: &[(0, 3)], receivers: &[2, 3], kill: 4, ..DIRECT };
const RING4: Config = Config { senders: &[(0, 6)], ring: 4, chunk: 4, cap: 4, want: 2, ..DIRECT };

fn proves(c: Config, least: usize) {
    let o = explore(&c);
    println!("{}: {} states, {} transitions", c.name, o.states, o.transitions);
    if let Some((what, trace)) = o.fault {
        panic!("{}: {what}\n{}", c.name, trace.join("\n"));
    }
    assert!(o.states >= least, "{}: only {} states", c.name, o.states);
}

fn large(c: Config, least: usize) {
    if cfg!(debug_assertions) && std::env::var("CULVERT_MODEL").as_deref() != Ok("full") {
        println!("{}: left out of a debug build", c.name);
    } else {
        proves(c, least);
    }
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
    large(Config { name: "two senders, both leave, either end killed", receivers: &[2], leave: true, acts: RETIRES, kill: 5, ..THREADS }, 250_000);
    large(Config { name: "two receivers, both leave, either end killed", senders: &[(0, 3)], leave: true, acts: RETIRES, kill: 5, ..THREADS }, 500_000);
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
    large(Config { name: "two receiving processes, the retiring one is killed", acts: RETIRES, kill: 8, ..READERS }, 250_000);
    proves(Config { name: "two sending processes, three bytes", senders: &[(0, 2), (1, 1)], ..SENDERS }, 50_000);
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
    caught("count_receivers", Rules { count_receivers: false, ..RULES }, Config { senders: &[(0, 3)], want: 2, blocked: true, leave: true, ..THREADS });
    caught("count_senders", Rules { count_senders: false, ..RULES }, Config { receivers: &[2], ..THREADS });
    caught("look_after_rewind", Rules { look_after_rewind: false, ..RULES }, Config { kill: 1, ..retire });
    caught("reset_first", Rules { reset_first: false, ..RULES }, Config { senders: &[(0, 2)], acts: RETIRES, ..THREADS });
    caught("reader_clears_want", Rules { reader_clears_want: false, ..RULES }, Config { senders: &[(0, 2), (0, 2)], receivers: &[2], ..THREADS });
    caught("stir_on_rewind", Rules { stir_on_rewind: false, ..RULES }, Config { senders: &[(0, 2), (0, 2)], receivers: &[2], acts: RETIRES, ..THREADS });
    caught("ready_by_cas", Rules { ready_by_cas: false, ..RULES }, Config { senders: &[(0, 2)], acts: RETIRES, ..THREADS });
}

fn try_all(list: &[Config]) {
    let mut bad = 0;
    for c in list {
        let t = std::time::Instant::now();
        let o = explore(c);
        match o.fault {
            None => println!("ok {}: {} states {:?}", c.name, o.states, t.elapsed()),
            Some((what, trace)) => { bad += 1; println!("BAD {}: {what} after {} steps, {} states\n{}", c.name, trace.len(), o.states, trace.join("\n")) }
        }
    }
    assert_eq!(bad, 0);
}
const SMALL: Config = Config { window: 2, ..ONE };
#[test]
fn t_polls() {
    let p = Config { polls: 1, ..SMALL };
    let e = Config { epolls: 1, ..SMALL };
    for base in [p, e] {
    try_all(&[
        Config { name: "polls", ..base },
        Config { name: "polls, polite", polite: true, ..base },
        Config { name: "polls, leave", leave: true, ..base },
        Config { name: "polls, half", half: true, ..base },
        Config { name: "polls, leave, polite", leave: true, polite: true, ..base },
        Config { name: "polls, half, polite", half: true, polite: true, ..base },
        Config { name: "polls, leave, kill", leave: true, kill: 5, ..base },
        Config { name: "polls, leave, cut, kill", leave: true, acts: &[Act::Cut], kill: 5, ..base },
        Config { name: "polls, leave, rewind, kill", leave: true, acts: &[Act::Rewind], kill: 5, ..base },
        Config { name: "polls, retire, polite", leave: true, acts: &[Act::Retire], polite: true, ..base },
        Config { name: "polls, cut, polite", leave: true, acts: &[Act::Cut], polite: true, ..base },
    ]);
    }
}
#[test]
fn t_cut() {
    let b = Config { leave: true, ..SMALL };
    try_all(&[
        Config { name: "cut", acts: &[Act::Cut], ..b },
        Config { name: "cut polite", acts: &[Act::Cut], polite: true, ..b },
        Config { name: "cut kill", acts: &[Act::Cut], kill: 5, ..b },
        Config { name: "cut cut", acts: &[Act::Cut, Act::Cut], ..b },
        Config { name: "cut retire", acts: &[Act::Cut, Act::Retire], ..b },
        Config { name: "cut retire half", acts: &[Act::Cut, Act::Retire], half: true, leave: false, ..b },
        Config { name: "rewind retire kill", acts: &[Act::Rewind, Act::Retire], kill: 5, ..b },
        Config { name: "rewind half", acts: &[Act::Rewind], half: true, leave: false, ..b },
        Config { name: "retire half exit", acts: &[Act::Retire], half: true, leave: false, end: End::Exit, ..b },
        Config { name: "eager", eager: true, ..b },
        Config { name: "eager retire kill", eager: true, acts: &[Act::Retire], kill: 5, ..b },
    ]);
}
#[test]
fn t_exec() {
    let b = Config { leave: true, ..SMALL };
    try_all(&[
        Config { name: "exec", acts: &[Act::Exec], ..b },
        Config { name: "exec polite", acts: &[Act::Exec], polite: true, ..b },
        Config { name: "exec kill", acts: &[Act::Exec], kill: 5, ..b },
        Config { name: "exec exec", acts: &[Act::Exec, Act::Exec], ..b },
        Config { name: "exec retire", acts: &[Act::Exec, Act::Retire], ..b },
        Config { name: "cut exec", acts: &[Act::Cut, Act::Exec], ..b },
        Config { name: "foreign", acts: &[Act::Foreign], ..b },
        Config { name: "foreign kill", acts: &[Act::Foreign], kill: 5, ..b },
        Config { name: "stdin", acts: &[Act::Stdin], ..b },
        Config { name: "stdin kill", acts: &[Act::Stdin], kill: 5, ..b },
        Config { name: "stdin half", acts: &[Act::Stdin], half: true, leave: false, ..b },
        Config { name: "cut stdin", acts: &[Act::Cut, Act::Stdin], ..b },
        Config { name: "exec stdin", acts: &[Act::Exec, Act::Stdin], ..b },
    ]);
}
#[test]
fn t_threads() {
    let b = Config { cap: 2, ..DIRECT };
    let s = Config { senders: &[(0, 2), (0, 2)], ..b };
    let r = Config { senders: &[(0, 3)], receivers: &[2, 3], ..b };
    try_all(&[
        Config { name: "hasty", hasty: true, end: End::Shutdown, ..s },
        Config { name: "hasty leave", hasty: true, end: End::Shutdown, leave: true, ..s },
        Config { name: "hasty retire", hasty: true, end: End::Shutdown, acts: &[Act::Retire], ..s },
        Config { name: "hasty kill", senders: &[(0, 2), (1, 2)], hasty: true, end: End::Shutdown, kill: 1, ..s },
        Config { name: "senders half", half: true, ..s },
        Config { name: "two procs, cut, killed", acts: &[Act::Cut], kill: 8, ..r },
        Config { name: "two procs, cut, killed, leave", acts: &[Act::Cut], kill: 8, leave: true, ..r },
        Config { name: "two procs, rewind, killed, leave", acts: &[Act::Rewind], kill: 8, leave: true, ..r },
        Config { name: "two procs, cut cut, killed", acts: &[Act::Cut, Act::Cut], kill: 8, ..r },
        Config { name: "two procs, 4 killed, exec", acts: &[Act::Exec], kill: 4, ..r },
        Config { name: "two procs, 4 killed, exec, leave", acts: &[Act::Exec], kill: 4, leave: true, ..r },
        Config { name: "takes", receivers: &[2, 2], takes: 1, polite: true, ..r },
        Config { name: "takes poll", receivers: &[2, 2], takes: 1, polls: 2, polite: true, ..r },
        Config { name: "takes poll leave", receivers: &[2, 2], takes: 2, polls: 2, leave: true, polite: true, ..r },
    ]);
}

#[test]
fn t_guards() {
    let b = Config { leave: true, ..SMALL };
    let d = Config { cap: 2, ..DIRECT };
    let two = Config { senders: &[(0, 2), (0, 2)], ..d };
    let r = Config { senders: &[(0, 3)], receivers: &[2, 3], ..d };
    let polls = Config { polls: 1, polite: true, ..b };
    let retire = Config { acts: RETIRES, ..b };
    let list: &[(&str, Rules, Config)] = &[
        ("echo", Rules { echo: false, ..RULES }, retire),
        ("echo_before_down", Rules { echo_before_down: false, ..RULES }, b),
        ("echo_complete", Rules { echo_complete: false, ..RULES }, retire),
        ("skip", Rules { skip: false, ..RULES }, b),
        ("drop_echo", Rules { drop_echo: false, ..RULES }, retire),
        ("down_before_leaving", Rules { down_before_leaving: false, ..RULES }, retire),
        ("doubled_in_ring", Rules { doubled_in_ring: false, ..RULES }, polls),
        ("doubled_in_ring, close", Rules { doubled_in_ring: false, ..RULES }, Config { polls: 1, leave: false, half: true, ..b }),
        ("doubled_in_steps", Rules { doubled_in_steps: false, ..RULES }, Config { receivers: &[2, 2], takes: 2, polls: 2, leave: true, polite: true, ..r }),
        ("fin_before_down", Rules { fin_before_down: false, ..RULES }, Config { hasty: true, end: End::Shutdown, ..two }),
        ("cut_in_transit", Rules { cut_in_transit: false, ..RULES }, Config { acts: &[Act::Cut, Act::Cut], ..ONE }),
        ("heal_cut", Rules { heal_cut: false, ..RULES }, Config { acts: &[Act::Cut], kill: 8, ..r }),
        ("tell_again", Rules { tell_again: false, ..RULES }, Config { acts: &[Act::Cut], kill: 8, ..r }),
        ("tell_again r", Rules { tell_again: false, ..RULES }, Config { acts: &[Act::Retire], kill: 8, ..r }),
        ("take_back", Rules { take_back: false, ..RULES }, Config { kill: 1, ..retire }),
        ("killed_over_it", Rules { killed_over_it: false, ..RULES }, Config { kill: 1, ..retire }),
        ("behind_the_cut", Rules { behind_the_cut: false, ..RULES }, Config { kill: 1, acts: &[Act::Cut], ..b }),
        ("hand_on_behind", Rules { hand_on_behind: false, ..RULES }, Config { acts: &[Act::Exec], ..b }),
        ("file_is_all", Rules { file_is_all: false, ..RULES }, Config { acts: &[Act::Stdin], ..b }),
        ("file_is_all cut", Rules { file_is_all: false, ..RULES }, Config { acts: &[Act::Cut, Act::Stdin], ..b }),
        ("file_to_x", Rules { file_to_x: false, ..RULES }, Config { acts: &[Act::Stdin], ..b }),
        ("tell_on_ring", Rules { tell_on_ring: false, ..RULES }, Config { receivers: &[2, 2], takes: 1, polite: true, ..r }),
        ("tell_on_ring p", Rules { tell_on_ring: false, ..RULES }, Config { receivers: &[2, 2], takes: 1, polls: 2, polite: true, ..r }),
        ("look_after_rewind", Rules { look_after_rewind: false, ..RULES }, Config { ..retire }),
        ("reset_first", Rules { reset_first: false, ..RULES }, Config { senders: &[(0, 3)], acts: RETIRES, kill: 1, receivers: &[2, 2], ..d }),
    ];
    for (name, rules, c) in list {
        let t = std::time::Instant::now();
        let o = explore(&Config { rules: *rules, ..*c });
        match o.fault {
            None => println!("MISSED {name}: {} states {:?}", o.states, t.elapsed()),
            Some((what, trace)) => println!("caught {name}: {what} after {} steps, {} states {:?}\n  {}", trace.len() - 1, o.states, t.elapsed(), trace.join("\n  ")),
        }
    }
}
