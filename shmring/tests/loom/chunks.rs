//! Chunks that come back by their last holder's word: nobody writes one that somebody reads.

use super::check;
use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicBool, Ordering::*};
use loom::thread;
use shmring::chunks::borrower::Borrower;
use shmring::chunks::ledger::{EdgeName, Entry, Ledger};
use shmring::chunks::name::Name;
use shmring::chunks::pool::{Note, Party, Pool};
use shmring::sync::AtomicU32;
use shmring::word::Coded;

const POOL: u64 = 1;
const CHUNK: u32 = 8;

/// A pool of one chunk, and two edges: from the owner to B, from B to C.
struct Shared {
    generations: [AtomicU32; 1],
    /// The chunk's bytes: loom fails where one is written while another reads it.
    bytes: UnsafeCell<u64>,
    has_ended: [AtomicU32; 2],
    entries: [[Coded<Entry>; 1]; 2],
    is_gone: [AtomicBool; 2],
}

impl Shared {
    fn new() -> Arc<Shared> {
        Arc::new(Shared {
            generations: [AtomicU32::new(0)],
            bytes: UnsafeCell::new(0),
            has_ended: Default::default(),
            entries: Default::default(),
            is_gone: Default::default(),
        })
    }
    fn ledger(&self, edge: usize) -> Ledger<'_> {
        Ledger::new(&self.has_ended[edge], &self.entries[edge])
    }
    fn borrower(&self, edge: usize) -> Borrower<'_> {
        Borrower::new(POOL, CHUNK, &self.generations, self.ledger(edge)).expect("a ledger for this pool")
    }
    fn write(&self, value: u64) {
        // SAFETY: loom checks that nobody has it meanwhile.
        self.bytes.with_mut(|at| unsafe { *at = value });
    }
    fn read(&self) -> u64 {
        // SAFETY: loom checks that nobody writes it meanwhile.
        self.bytes.with(|at| unsafe { *at })
    }
}

/// The owner lends its chunk, and writes it again as soon as it has it back, while `borrow` runs.
fn lends(borrow: impl FnOnce(Arc<Shared>, Name, [EdgeName; 2]) + Send + 'static) {
    let shared = Shared::new();
    let mut notes = [Note::default()];
    let mut pool = Pool::new(POOL, CHUNK, &shared.generations, &mut notes);
    let ends = [(0, Party::OWNER, Party(1)), (1, Party(1), Party(2))];
    let edges = ends.map(|(edge, from, to)| pool.join(shared.ledger(edge), 1, from, to).expect("an edge"));
    let index = pool.take().expect("a chunk");
    shared.write(7);
    let name = pool.lend(index, edges[0], 0, CHUNK).expect("it is lent");
    pool.give_up(index);
    let theirs = shared.clone();
    let other = thread::spawn(move || borrow(theirs, name, edges));
    while pool.take().is_none() {
        for edge in [0, 1] {
            if shared.is_gone[edge].load(Acquire) {
                pool.has_gone(edges[edge]);
            }
        }
        thread::yield_now();
    }
    shared.write(8);
    other.join().expect("it ends");
}

#[test]
fn a_chunk_is_read_by_its_borrower_alone() {
    check(|| {
        lends(|shared, name, _| {
            let borrower = shared.borrower(0);
            borrower.take(&name).expect("what was lent");
            assert_eq!(shared.read(), 7);
            assert!(borrower.done(&name));
        });
    });
}

#[test]
fn one_that_is_passed_on_is_its_last_holders_though_the_one_between_has_ended() {
    check(|| {
        lends(|shared, name, edges| {
            let b = shared.borrower(0);
            b.take(&name).expect("what was lent");
            let passed = b.pass(&name, edges[1]).expect("it is held");
            // As if it was killed, and the owner has noticed.
            shared.is_gone[0].store(true, Release);
            let theirs = shared.clone();
            thread::spawn(move || {
                let c = theirs.borrower(1);
                c.take(&passed).expect("what was passed");
                assert_eq!(theirs.read(), 7);
                assert!(c.done(&passed));
            })
            .join()
            .expect("it ends");
        });
    });
}

#[test]
fn one_that_is_taken_while_the_stream_ends_is_kept() {
    check(|| {
        lends(|shared, name, _| {
            let borrower = shared.borrower(0);
            borrower.take(&name).expect("what was lent");
            borrower.end();
            assert_eq!(shared.read(), 7);
            assert!(borrower.done(&name));
        });
    });
}
