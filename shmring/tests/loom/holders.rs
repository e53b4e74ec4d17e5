//! Who holds a connection, and who ends it.

use super::check;
use loom::sync::Arc;
use loom::thread;
use shmring::holders::{Holders, Life};
use shmring::sync::Ordering;
use shmring::word::Coded;

/// How far a member came in giving a connection up before it was killed.
#[derive(Clone, Copy)]
enum Killed {
    Before,
    Between,
    Behind,
}

struct Record {
    holders: Holders,
    life: Coded<Life>,
    ended: loom::sync::atomic::AtomicU32,
}

impl Record {
    /// The connection has ended: the record is free, and at once another member's. As `begin`, which stores: loom does not
    /// put plain stores and exchanges of the same word in one order, and would show the last reader what was overwritten.
    fn end(&self, members: [usize; 2], next: usize) {
        self.ended.fetch_add(1, Ordering::Relaxed);
        members.into_iter().for_each(|m| self.holders.forget(m));
        self.holders.add(next);
        self.life.store(self.life.load(Ordering::Relaxed).next(), Ordering::Release);
    }
}

/// Members give a connection up at the same time. One of them is killed at any step of that, and another process clears up after
/// it: the connection is ended once, and a process that comes late does not touch the record's next connection.
#[test]
fn the_last_holder_ends_a_connection_once_also_if_it_is_killed() {
    const NEXT: usize = 2;
    for killed in [Killed::Before, Killed::Between, Killed::Behind] {
        // In one word, and in two.
        for [a, b] in [[0, 1], [0, 33]] {
            check(move || {
                let r = Arc::new(Record {
                    holders: Holders::default(),
                    life: Coded::default(),
                    ended: loom::sync::atomic::AtomicU32::new(0),
                });
                r.holders.begin(a);
                r.holders.add(b);
                let dies = {
                    let r = r.clone();
                    thread::spawn(move || {
                        match killed {
                            Killed::Before => {}
                            Killed::Between => _ = r.holders.leave(a),
                            Killed::Behind => _ = r.holders.give_up(&r.life, a),
                        }
                        // It is dead; another member clears up.
                        match r.holders.give_up(&r.life, a) {
                            true => r.end([a, b], NEXT),
                            false => r.holders.forget(a),
                        }
                    })
                };
                if r.holders.give_up(&r.life, b) {
                    r.end([a, b], NEXT);
                }
                dies.join().unwrap();
                assert_eq!(r.ended.load(Ordering::Relaxed), 1);
                assert!(r.holders.has(NEXT) && r.holders.count() == 1);
                assert!(r.holders.give_up(&r.life, NEXT) && !r.holders.give_up(&r.life, b));
            });
        }
    }
}
