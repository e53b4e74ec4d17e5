//! A receiver closes the connection while its sender opens a hole: one of the two gives the chunk back.

use super::check;
use loom::sync::Arc;
use loom::thread;
use shmring::hole::{self, Entry, Hole};
use shmring::position::RingPos;
use shmring::sync::AtomicU32;

#[derive(Default)]
struct Shared {
    entry: Entry,
    closed: AtomicU32,
}

#[test]
fn a_hole_that_is_opened_while_the_receiver_closes_is_closed_once() {
    check(|| {
        let shared = Arc::new(Shared::default());
        let sender = shared.clone();
        let sender = thread::spawn(move || {
            let at = RingPos::new(4096);
            sender.entry.open(&Hole { at, len: 4096, offset: 0, index: 3, generation: 7, hop: 1, pool: 0 });
            hole::is_closed(&sender.closed) && sender.entry.close(at)
        });
        hole::closes(&shared.closed);
        let found = shared.entry.get();
        if let Some(hole) = found {
            // Nothing else is taken for it.
            assert_eq!((hole.index, hole.generation, hole.len), (3, 7, 4096));
        }
        let receiver = found.is_some_and(|hole| shared.entry.close(hole.at));
        assert!(sender.join().unwrap() != receiver, "closed by both, or by nobody");
    });
}
