//! Chunks that are lent, passed on and given back, by processes that end anywhere: against a list of who has what, and beside
//! borrowers that write anything.
#![cfg(not(loom))]

use proptest::prelude::*;
use shmring::chunks::borrower::{Borrower, Refused};
use shmring::chunks::ledger::{EdgeName, Entry, HOPS, Ledger, Loan};
use shmring::chunks::name::Name;
use shmring::chunks::pool::{NotLent, Note, Party, Pool};
use shmring::sync::{AtomicU32, Ordering};
use shmring::word::{Code, Coded};
use std::collections::VecDeque;

const POOL: u64 = 0x0070_006f_006f_006c;
const CHUNK: u32 = 256;

/// What is shared by an edge's ends and the owner.
struct Memory {
    has_ended: AtomicU32,
    entries: Vec<Coded<Entry>>,
}

impl Memory {
    fn new(count: usize) -> &'static Memory {
        let entries = (0..count).map(|_| Coded::default()).collect();
        Box::leak(Box::new(Memory { has_ended: AtomicU32::new(0), entries }))
    }
    fn ledger(&'static self) -> Ledger<'static> {
        Ledger::new(&self.has_ended, &self.entries)
    }
}

fn generations(count: usize) -> &'static [AtomicU32] {
    Box::leak((0..count).map(|_| AtomicU32::new(0)).collect())
}

fn pool(generations: &'static [AtomicU32]) -> Pool<'static> {
    Pool::new(POOL, CHUNK, generations, Box::leak(vec![Note::default(); generations.len()].into_boxed_slice()))
}

/// An edge, and its borrower's side.
struct Edge {
    name: EdgeName,
    memory: &'static Memory,
    borrower: Borrower<'static>,
}

const OWNER: Party = Party::OWNER;
const OTHER: Party = Party(1);
const THIRD: Party = Party(2);
/// Whom the owner lends to.
const NEXT: Party = Party(3);

/// An edge from the owner.
fn join(pool: &mut Pool<'static>, generations: &'static [AtomicU32], quota: u32) -> Edge {
    join_between(pool, generations, quota, (OWNER, NEXT))
}

fn join_between(
    pool: &mut Pool<'static>,
    generations: &'static [AtomicU32],
    quota: u32,
    (lender, borrower): (Party, Party),
) -> Edge {
    let memory = Memory::new(generations.len());
    let name = pool.join(memory.ledger(), quota, lender, borrower).expect("an edge");
    let borrower = Borrower::new(POOL, CHUNK, generations, memory.ledger()).expect("a ledger for this pool");
    Edge { name, memory, borrower }
}

#[test]
fn a_chunk_comes_back_from_its_last_holder_whoever_passed_it() {
    let generations = generations(2);
    let mut pool = pool(generations);
    let [b, c] = [(OWNER, NEXT), (NEXT, OTHER)].map(|ends| join_between(&mut pool, generations, 2, ends));
    let index = pool.take().unwrap();
    let name = pool.lend(index, b.name, 16, 100).unwrap();
    pool.give_up(index);
    b.borrower.take(&name).unwrap();
    let passed = b.borrower.pass(&name, c.name).unwrap();
    assert_eq!((passed.offset, passed.len, passed.loan.hop), (16, 100, 2));
    c.borrower.take(&passed).unwrap();
    assert_eq!(b.borrower.passed_and_out(c.name, &c.memory.ledger()), 1);
    // The one in the middle is dead; the last one still reads.
    pool.has_gone(b.name);
    for _ in 0..3 {
        pool.collect();
        assert_eq!((pool.out(b.name), pool.free_count()), (1, 1));
    }
    assert!(c.borrower.done(&passed) && !c.borrower.done(&passed), "once");
    pool.collect();
    assert_eq!(pool.free_count(), 2);
    assert_eq!(b.borrower.passed_and_out(c.name, &c.memory.ledger()), 0);
    assert_eq!(c.borrower.take(&passed), Err(Refused::Stale));
}

#[test]
fn a_quota_is_one_edges_alone() {
    let generations = generations(8);
    let mut pool = pool(generations);
    let [hoarder, other] = [(); 2].map(|()| join(&mut pool, generations, 3));
    let lend = |pool: &mut Pool, edge: &Edge| {
        let index = pool.take().expect("a chunk");
        let lent = pool.lend(index, edge.name, 0, CHUNK);
        pool.give_up(index);
        lent.inspect(|name| edge.borrower.take(name).unwrap())
    };
    for _ in 0..3 {
        lend(&mut pool, &hoarder).unwrap();
    }
    for _ in 0..100 {
        assert_eq!(lend(&mut pool, &hoarder), Err(NotLent::Quota));
        let name = lend(&mut pool, &other).unwrap();
        assert!(other.borrower.done(&name));
    }
    pool.has_gone(hoarder.name);
    pool.collect();
    assert_eq!((pool.free_count(), pool.out(hoarder.name)), (8, 0));
    assert_eq!(lend(&mut pool, &hoarder), Err(NotLent::Edge));
}

#[test]
fn what_is_said_to_have_gone_by_an_edge_of_others_is_back() {
    let generations = generations(3);
    let mut pool = pool(generations);
    let liar = join(&mut pool, generations, 3);
    let [owners, others] = [(OWNER, OTHER), (OTHER, THIRD)].map(|ends| join_between(&mut pool, generations, 3, ends));
    for edge in [owners.name, others.name, liar.name] {
        let index = pool.take().unwrap();
        let name = pool.lend(index, liar.name, 0, 1).unwrap();
        pool.give_up(index);
        liar.borrower.take(&name).unwrap();
        liar.borrower.pass(&name, edge).unwrap();
        pool.collect();
        assert_eq!((pool.free_count(), pool.out(liar.name)), (3, 0), "{edge:?}");
    }
    // Nor does the owner lend by them.
    let index = pool.take().unwrap();
    assert_eq!(pool.lend(index, others.name, 0, 1), Err(NotLent::Edge));
}

#[test]
fn what_was_on_its_way_is_kept_until_its_borrower_takes_nothing_more() {
    let generations = generations(1);
    let mut pool = pool(generations);
    let edge = join(&mut pool, generations, 1);
    let index = pool.take().unwrap();
    pool.lend(index, edge.name, 0, 1).unwrap();
    pool.give_up(index);
    assert_eq!(pool.take(), None);
    edge.borrower.end();
    assert_eq!(pool.take(), Some(index));
    assert_eq!(pool.lend(index, edge.name, 0, 1), Err(NotLent::Edge));
}

#[test]
fn a_name_that_could_not_be_sent_is_taken_back() {
    let generations = generations(1);
    let mut pool = pool(generations);
    let [b, c] = [(OWNER, NEXT), (NEXT, OTHER)].map(|ends| join_between(&mut pool, generations, 1, ends));
    let index = pool.take().unwrap();
    let unsent = pool.lend(index, b.name, 0, 1).unwrap();
    assert_eq!(pool.lend(index, b.name, 0, 1), Err(NotLent::Quota));
    pool.take_back(&unsent);
    let name = pool.lend(index, b.name, 0, 1).unwrap();
    pool.give_up(index);
    b.borrower.take(&name).unwrap();
    // Once, and not what was lent since, nor another pool's.
    pool.take_back(&unsent);
    pool.take_back(&Name { pool: POOL + 1, ..name });
    assert_eq!((pool.out(b.name), pool.free_count()), (1, 0));
    assert_eq!(b.borrower.take(&name), Err(Refused::Held));
    let unsent = b.borrower.pass(&name, c.name).unwrap();
    assert_eq!(unsent.loan.hop, 2);
    assert!(!b.borrower.done(&name), "passed");
    assert!(b.borrower.keep(&name, c.name));
    assert!(b.borrower.done(&name));
    assert_eq!(pool.take(), Some(index));
}

#[test]
fn it_goes_round_in_a_circle_and_no_further_than_it_may() {
    let generations = generations(1);
    let mut pool = pool(generations);
    let [first, to, fro] =
        [(OWNER, NEXT), (NEXT, OTHER), (OTHER, NEXT)].map(|ends| join_between(&mut pool, generations, 1, ends));
    let index = pool.take().unwrap();
    let mut name = pool.lend(index, first.name, 0, 1).unwrap();
    pool.give_up(index);
    let mut from = &first;
    from.borrower.take(&name).unwrap();
    for hop in 1..HOPS {
        let next = if hop % 2 == 1 { &to } else { &fro };
        name = from.borrower.pass(&name, next.name).unwrap();
        pool.collect();
        assert_eq!(pool.free_count(), 0, "on its way {hop}");
        next.borrower.take(&name).unwrap();
        from = next;
    }
    assert_eq!(from.borrower.pass(&name, to.name), None);
    pool.collect();
    assert_eq!(pool.free_count(), 0);
    assert!(from.borrower.done(&name));
    pool.collect();
    assert_eq!(pool.free_count(), 1);
}

#[test]
fn places_of_edges_are_used_again_and_old_names_of_them_are_none() {
    let generations = generations(1);
    let mut pool = pool(generations);
    let first = join(&mut pool, generations, 1);
    let old = join_between(&mut pool, generations, 1, (NEXT, OTHER));
    pool.has_gone(old.name);
    pool.collect();
    let new = join_between(&mut pool, generations, 1, (NEXT, OTHER));
    assert_ne!(old.name, new.name);
    let index = pool.take().unwrap();
    let name = pool.lend(index, first.name, 0, 1).unwrap();
    pool.give_up(index);
    first.borrower.take(&name).unwrap();
    // Its sender did not know that the other end had gone.
    first.borrower.pass(&name, old.name).unwrap();
    assert_eq!(pool.take(), Some(index), "the new edge has nothing of it");
    for _ in 0..1000 {
        let edge = join(&mut pool, generations, 1);
        pool.has_gone(edge.name);
        pool.collect();
    }
}

/// Processes: 0 is the owner.
const PROCESSES: usize = 4;
const CHUNKS: usize = 3;

/// What the processes do, by their numbers; what cannot be done is left out.
#[derive(Clone, Debug)]
enum Act {
    Take,
    Lend { chunk: usize, edge: usize },
    GiveUp { chunk: usize },
    Arrive { edge: usize },
    Done { held: usize },
    Pass { held: usize, edge: usize },
    Kill { process: usize },
    Connect { from: usize, to: usize },
}

fn act() -> impl Strategy<Value = Act> {
    let n = any::<usize>();
    prop_oneof![
        3 => Just(Act::Take),
        4 => (n, n).prop_map(|(chunk, edge)| Act::Lend { chunk, edge }),
        2 => n.prop_map(|chunk| Act::GiveUp { chunk }),
        6 => n.prop_map(|edge| Act::Arrive { edge }),
        4 => n.prop_map(|held| Act::Done { held }),
        4 => (n, n).prop_map(|(held, edge)| Act::Pass { held, edge }),
        1 => n.prop_map(|process| Act::Kill { process }),
        3 => (n, n).prop_map(|(from, to)| Act::Connect { from, to }),
    ]
}

/// An edge in the list of who has what.
struct Listed {
    edge: Edge,
    from: usize,
    to: usize,
    on_the_way: VecDeque<Name>,
}

/// Runs acts, and compares which chunks are free with the list of who has what.
fn compare(acts: &[Act]) {
    let generations = generations(CHUNKS);
    let mut pool = pool(generations);
    let mut edges: Vec<Listed> = Vec::new();
    let mut alive = [true; PROCESSES];
    let mut used = [false; CHUNKS];
    // By which edge, and what.
    let mut held: Vec<(usize, Name)> = Vec::new();
    for act in acts {
        let mut is_changed = true;
        match *act {
            Act::Take => {
                if let Some(index) = pool.take() {
                    assert!(!used[index as usize]);
                    assert!(held.iter().all(|(_, name)| name.index != index), "{act:?}: it is held");
                    let on_the_way = |l: &Listed| l.on_the_way.iter().any(|name| name.index == index);
                    assert!(!edges.iter().any(on_the_way), "{act:?}: it is on its way");
                    used[index as usize] = true;
                }
            }
            Act::Lend { chunk, edge } if !edges.is_empty() => {
                let count = edges.len();
                let listed = &mut edges[edge % count];
                if listed.from == 0
                    && let Ok(name) = pool.lend((chunk % CHUNKS) as u32, listed.edge.name, 0, CHUNK)
                {
                    assert!(used[chunk % CHUNKS] && alive[listed.to]);
                    listed.on_the_way.push_back(name);
                }
            }
            Act::GiveUp { chunk } => {
                pool.give_up((chunk % CHUNKS) as u32);
                used[chunk % CHUNKS] = false;
            }
            Act::Arrive { edge } if !edges.is_empty() => {
                let at = edge % edges.len();
                if let Some(name) = edges[at].on_the_way.pop_front() {
                    edges[at].edge.borrower.take(&name).expect("what was lent can be taken");
                    held.push((at, name));
                }
            }
            Act::Done { held: which } if !held.is_empty() => {
                let (at, name) = held.swap_remove(which % held.len());
                assert!(edges[at].edge.borrower.done(&name));
            }
            Act::Pass { held: which, edge } if !held.is_empty() => {
                let which = which % held.len();
                let (at, name) = held[which];
                let to = edge % edges.len();
                if edges[to].from == edges[at].to && alive[edges[to].to] {
                    let name = edges[at].edge.borrower.pass(&name, edges[to].edge.name).expect("it is held");
                    edges[to].on_the_way.push_back(name);
                    held.swap_remove(which);
                }
            }
            Act::Kill { process } => {
                let process = 1 + process % (PROCESSES - 1);
                alive[process] = false;
                held.retain(|(at, _)| edges[*at].to != process);
                for listed in edges.iter_mut().filter(|l| l.to == process) {
                    listed.on_the_way.clear();
                    pool.has_gone(listed.edge.name);
                }
                // Another one comes for it later.
                alive[process] = !edges.iter().any(|l| l.to == process);
            }
            Act::Connect { from, to } if edges.len() < 12 => {
                let (from, to) = (from % PROCESSES, 1 + to % (PROCESSES - 1));
                if alive[from] && alive[to] && from != to && !edges.iter().any(|l| l.from == from && l.to == to) {
                    let edge = join_between(&mut pool, generations, 2, (Party(from as u64), Party(to as u64)));
                    edges.push(Listed { edge, from, to, on_the_way: VecDeque::new() });
                }
            }
            _ => is_changed = false,
        }
        if !is_changed {
            continue;
        }
        pool.collect();
        let has = |index: usize| {
            let named = |name: &Name| name.index as usize == index;
            used[index] || held.iter().any(|(_, n)| named(n)) || edges.iter().any(|l| l.on_the_way.iter().any(named))
        };
        let expected = (0..CHUNKS).filter(|index| !has(*index)).count();
        assert_eq!(pool.free_count(), expected, "behind {act:?} of {acts:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: if cfg!(miri) { 4 } else { 1000 }, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn a_chunk_is_free_exactly_when_nobody_has_it(acts in prop::collection::vec(act(), 1..80)) {
        compare(&acts);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: if cfg!(miri) { 16 } else { 2000 }, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever the words of a name are: what is taken lies in the pool.
    #[test]
    fn any_name_is_taken_inside_of_the_pool_or_not_at_all(words: [u64; 4], near in any::<bool>(), small in prop::collection::vec(0u64..4, 6)) {
        let generations = generations(4);
        let mut pool = pool(generations);
        let edge = join(&mut pool, generations, 4);
        let mut name = Name::of(words);
        if near {
            let loan = Loan { generation: small[1] as u32, hop: small[2] as u8 };
            name = Name { pool: POOL, index: small[0] as u32, loan, offset: (small[3] as u32).wrapping_mul(85), len: small[4] as u32 * 86 };
        }
        if edge.borrower.take(&name).is_ok() {
            prop_assert!(name.index < 4 && u64::from(name.offset) + u64::from(name.len) <= u64::from(CHUNK));
            prop_assert_eq!(name.pool, POOL);
        }
    }

    /// A borrower writes anything into its ledgers, of an edge from the owner and of one that chunks are passed on by. The others' chunks
    /// stay theirs, and come back; its own come back when it ends.
    #[test]
    fn a_borrower_that_writes_anything_harms_itself_alone(lies in prop::collection::vec((any::<bool>(), 0usize..4, any::<u64>(), any::<bool>()), 1..40)) {
        let generations = generations(4);
        let mut pool = pool(generations);
        let [liar, passed, honest] =
            [(OWNER, NEXT), (NEXT, OTHER), (OWNER, THIRD)].map(|ends| join_between(&mut pool, generations, 2, ends));
        let kept = pool.take().unwrap();
        let name = pool.lend(kept, honest.name, 0, 1).unwrap();
        pool.give_up(kept);
        honest.borrower.take(&name).unwrap();
        for (first, index, word, near) in lies {
            if let Some(chunk) = pool.take() {
                prop_assert_ne!(chunk, kept);
                let _ = pool.lend(chunk, liar.name, 0, 1);
                pool.give_up(chunk);
            }
            let memory = if first { liar.memory } else { passed.memory };
            // Near the truth: of this generation, by an edge that there is.
            let low = u64::from(generations[index].load(Ordering::Relaxed)) | (word & 3) << 32;
            let word = if near { low | (word >> 8 & 3) << 38 | (word >> 16 & 3) << 40 } else { word };
            memory.entries[index].set(Entry::of(word));
            pool.collect();
            prop_assert!(pool.free_count() <= 3);
        }
        pool.has_gone(liar.name);
        pool.has_gone(passed.name);
        // It cannot have passed anything on by the honest one's edge, which is the owner's, whatever it said.
        pool.collect();
        prop_assert_eq!(pool.free_count(), 3);
        prop_assert!(honest.borrower.done(&name));
        pool.collect();
        prop_assert_eq!(pool.free_count(), 4);
    }
}
