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


fn scenarios() -> Vec<Config> {
    let two = Config { senders: &[(0, 2), (0, 1)], receivers: &[2, 2], want: 1, cap: 4, wire: false, ..ONE };
    let family = Config { senders: &[(0, 2), (1, 2)], receivers: &[2], kill: 1, want: 1, cap: 4, wire: false, ..ONE };
    let readers = Config { senders: &[(0, 3)], receivers: &[2, 3], kill: 4, want: 1, cap: 4, wire: false, ..ONE };
    vec![
        ONE,
        Config { name: "sender leaves", leave: true, ..ONE },
        Config { name: "receiver retires", retire: true, ..ONE },
        Config { name: "both leave", retire: true, leave: true, ..ONE },
        Config { name: "both leave, messages of two", retire: true, leave: true, chunk: 2, senders: &[(0, 5)], ring: 4, ..ONE },
        Config { name: "both leave, shutdown", retire: true, leave: true, end: End::Shutdown, ..ONE },
        Config { name: "both leave, exit", retire: true, leave: true, end: End::Exit, ..ONE },
        Config { name: "both leave, either end killed", retire: true, leave: true, kill: 5, ..ONE },
        Config { name: "native receiver in flight", leave: true, blocked: true, ..ONE },
        Config { name: "ring of four", leave: true, retire: true, senders: &[(0, 6)], ring: 4, chunk: 2, wire: false, ..ONE },
        Config { name: "two threads a side", ..two },
        Config { name: "two threads a side, sender leaves", leave: true, ..two },
        Config { name: "two threads a side, receiver retires", retire: true, ..two },
        Config { name: "two senders, both leave, either end killed", receivers: &[2], retire: true, leave: true, kill: 5, ..two },
        Config { name: "two receivers, both leave, either end killed", senders: &[(0, 3)], retire: true, leave: true, kill: 5, ..two },
        Config { name: "family of senders, one killed", ..family },
        Config { name: "family of senders, one killed, leave", leave: true, ..family },
        Config { name: "family of senders, one killed, retire", retire: true, ..family },
        Config { name: "family of receivers, one killed", ..readers },
        Config { name: "family of receivers, one killed, retire by the other", retire: true, ..readers },
        Config { name: "family of receivers, retirer killed", retire: true, kill: 8, ..readers },
    ]
}

#[test]
fn all() {
    for c in scenarios() {
        let t = std::time::Instant::now();
        let o = explore(&c);
        println!("{}: {} states, {} transitions {:?}", c.name, o.states, o.transitions, t.elapsed());
        if let Some((what, trace)) = o.fault {
            println!("  FAULT {what}\n{}", trace.join("\n"));
        }
    }
}

#[test]
fn mutants() {
    let m: [(&str, Rules); 14] = [
        ("bounded_native", Rules { bounded_native: false, ..RULES }),
        ("down_before_fin", Rules { down_before_fin: false, ..RULES }),
        ("space_after_consume", Rules { space_after_consume: false, ..RULES }),
        ("arbiter", Rules { arbiter: false, ..RULES }),
        ("look_after_up", Rules { look_after_up: false, ..RULES }),
        ("heal", Rules { heal: false, ..RULES }),
        ("look_after_end", Rules { look_after_end: false, ..RULES }),
        ("count_receivers", Rules { count_receivers: false, ..RULES }),
        ("count_senders", Rules { count_senders: false, ..RULES }),
        ("look_after_rewind", Rules { look_after_rewind: false, ..RULES }),
        ("reset_first", Rules { reset_first: false, ..RULES }),
        ("reader_clears_want", Rules { reader_clears_want: false, ..RULES }),
        ("stir_on_rewind", Rules { stir_on_rewind: false, ..RULES }),
        ("ready_by_cas", Rules { ready_by_cas: false, ..RULES }),
    ];
    for (name, rules) in m {
        for c in scenarios() {
            if let Some((what, t)) = explore(&Config { rules, ..c }).fault {
                println!("{name}: {}: {what} in {} steps", c.name, t.len());
            }
        }
    }
}
