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
use world::{Config, End, RULES, Rules};

const ONE: Config = Config {
    name: "one sender, one receiver",
    senders: &[(0, 4)],
    receivers: &[2],
    chunk: 1,
    want: 2,
    ring: 2,
    cap: 3,
    wire: true,
    kill: 0,
    end: End::Close,
    leave: false,
    retire: false,
    blocked: false,
    rules: RULES,
};
const BOTH: Config = Config { leave: true, retire: true, ..ONE };
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
    proves(Config { name: "receiver retires", retire: true, ..ONE }, 70_000);
    proves(Config { name: "native receiver in flight, sender leaves", leave: true, blocked: true, ..ONE }, 20_000);
    proves(Config { name: "ring of four, both leave", leave: true, retire: true, ..RING4 }, 20_000);
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
    large(Config { name: "two threads a side, receiver retires", retire: true, ..THREADS }, 700_000);
    large(Config { name: "two senders, both leave, either end killed", receivers: &[2], leave: true, retire: true, kill: 5, ..THREADS }, 250_000);
    large(Config { name: "two receivers, both leave, either end killed", senders: &[(0, 3)], leave: true, retire: true, kill: 5, ..THREADS }, 500_000);
    proves(Config { name: "two senders", receivers: &[2], ..THREADS }, 20_000);
    proves(Config { name: "two receivers, one retires", senders: &[(0, 2)], retire: true, ..THREADS }, 20_000);
}

#[test]
fn several_processes_one_of_them_killed() {
    large(Config { name: "two sending processes", ..SENDERS }, 200_000);
    large(Config { name: "two sending processes, one leaves", leave: true, ..SENDERS }, 400_000);
    large(Config { name: "two sending processes, receiver retires", retire: true, ..SENDERS }, 400_000);
    proves(Config { name: "two receiving processes", ..READERS }, 100_000);
    large(Config { name: "two receiving processes, the other retires", retire: true, ..READERS }, 200_000);
    large(Config { name: "two receiving processes, the retiring one is killed", retire: true, kill: 8, ..READERS }, 250_000);
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
    let retire = Config { retire: true, ..ONE };
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
    caught("reset_first", Rules { reset_first: false, ..RULES }, Config { senders: &[(0, 2)], retire: true, ..THREADS });
    caught("reader_clears_want", Rules { reader_clears_want: false, ..RULES }, Config { senders: &[(0, 2), (0, 2)], receivers: &[2], ..THREADS });
    caught("stir_on_rewind", Rules { stir_on_rewind: false, ..RULES }, Config { senders: &[(0, 2), (0, 2)], receivers: &[2], retire: true, ..THREADS });
    caught("ready_by_cas", Rules { ready_by_cas: false, ..RULES }, Config { senders: &[(0, 2)], retire: true, ..THREADS });
}
