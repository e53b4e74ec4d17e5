#![cfg(not(loom))]
//! The switch protocol through every interleaving.

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

fn proves(c: Config, least: usize) {
    let o = explore(&c);
    println!("{}: {} states, {} transitions", c.name, o.states, o.transitions);
    if let Some((what, trace)) = o.fault {
        panic!("{}: {what}\n{}", c.name, trace.join("\n"));
    }
    assert!(o.states >= least, "{}: only {} states", c.name, o.states);
}

#[test]
fn one() {
    proves(ONE, 100);
}
#[test]
fn one_leave() {
    proves(Config { name: "leave", leave: true, ..ONE }, 100);
}
#[test]
fn one_retire() {
    proves(Config { name: "retire", retire: true, ..ONE }, 100);
}
#[test]
fn one_both() {
    proves(Config { name: "both", retire: true, leave: true, ..ONE }, 100);
}
#[test]
fn one_both_kill() {
    proves(Config { name: "both, kill", retire: true, leave: true, kill: 5, ..ONE }, 100);
}
