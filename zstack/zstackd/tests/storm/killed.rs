//! Programs that are killed at any moment, with connections of which bytes are on their way.

use crate::board::{Board, End, GOES, Row, TRIES, Word};
use crate::census::Census;
use crate::far::{Far, judge};
use crate::lab::{Process, bounded, soon};
use crate::program::Task;
use crate::talk::{Hello, Mode, Random};
use crate::world::{HERE, LIMIT, THERE, World, at, open_to_all};
use crate::{need_root, number};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// Connections of a program.
const EACH: u64 = 6;
/// Programs at the same time.
const WORKERS: u64 = 3;
/// A program is killed within so many microseconds.
const MOMENT: u64 = 80_000;

/// What has happened, for who reads it.
#[derive(Default, Debug)]
struct Tally {
    kills: AtomicUsize,
    /// Connections that were judged from both ends.
    judged: AtomicUsize,
    in_order: AtomicUsize,
    reset: AtomicUsize,
    bytes: AtomicU64,
}

impl Tally {
    fn count(&self, remote: &Row) {
        self.judged.fetch_add(1, Ordering::Relaxed);
        let end = if remote.end(Word::ReadEnd) == End::Eof { &self.in_order } else { &self.reset };
        end.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(remote.get(Word::Got) + remote.get(Word::Sent), Ordering::Relaxed);
    }
}

struct Worker<'a> {
    world: &'a World,
    far: Far,
    random: Random,
    board: PathBuf,
    tally: &'a Tally,
}

impl Worker<'_> {
    fn pause(&mut self) {
        thread::sleep(Duration::from_micros(self.random.below(MOMENT)));
    }

    /// Whose the next program is: root's, as zstackd is, or another user's.
    fn user(&mut self) -> u32 {
        [0, 65534][self.random.below(2) as usize]
    }

    /// A client of the remote host's.
    fn client(&mut self, first: u64) {
        let board = Board::make(&self.board);
        let user = self.user();
        let ip = THERE[self.random.below(2) as usize];
        let task =
            Task { role: "client", at: at(ip, self.far.at.port()), board: &self.board, first, connections: EACH, user };
        let mut process = Process::spawn(&mut task.command(self.world));
        if self.random.below(8) > 0 {
            soon("a program that connects", LIMIT, || (board.row(0).get(Word::Stage) >= TRIES).then_some(()));
        }
        self.pause();
        process.kill();
        for i in 0..EACH {
            let (id, row, mode) = (first + i, board.row(i as usize), Mode::ALL[i as usize % 4]);
            assert_eq!(row.get(Word::Wrong), 0, "wrong bytes: connection {id}: {row:?}");
            if row.get(Word::Stage) < GOES {
                assert_eq!(row.end(Word::WriteEnd), End::Not, "connect: {row:?}");
                continue;
            }
            let remote = self.far.seen.end_of(id);
            judge(id, mode, &row, &remote);
            self.tally.count(&remote);
        }
    }

    /// A server, to which the remote host connects.
    fn server(&mut self, first: u64) {
        let board = Board::make(&self.board);
        let user = self.user();
        let to = at(HERE[self.random.below(2) as usize], self.far.at.port() + 1000);
        let task = Task { role: "server", at: to, board: &self.board, first, connections: EACH, user };
        let mut process = Process::spawn(&mut task.command(self.world));
        soon("a program that listens", LIMIT, || (board.row(0).get(Word::Stage) == GOES).then_some(()));
        let alive = Arc::new(AtomicBool::new(true));
        let refused = Arc::new(AtomicUsize::new(0));
        for i in 0..EACH {
            let hello = Hello { id: first + i, mode: Mode::ALL[i as usize % 4] };
            let (alive, refused) = (alive.clone(), refused.clone());
            self.far.seen.connect(&self.world.there, to, hello, move |_| {
                if alive.load(Ordering::SeqCst) {
                    refused.fetch_add(1, Ordering::SeqCst);
                }
            });
            if self.random.below(2) == 0 {
                thread::sleep(Duration::from_micros(self.random.below(2000)));
            }
        }
        self.pause();
        alive.store(false, Ordering::SeqCst);
        process.kill();
        assert_eq!(refused.load(Ordering::SeqCst), 0, "connections that failed while their server lived");
        self.far.seen.quiet();
        for i in 0..EACH {
            let (id, row, mode) = (first + i, board.row(i as usize + 1), Mode::ALL[i as usize % 4]);
            let Some(remote) = self.far.seen.known(id) else { continue };
            if row.get(Word::Stage) < GOES {
                assert_eq!(remote.get(Word::Got), 0, "of a program that has not begun: {remote:?}");
                continue;
            }
            judge(id, mode, &row, &remote);
            self.tally.count(&remote);
        }
    }
}

/// So many programs are killed.
fn storm(world: &World, kills: u64, seed: u64) -> Tally {
    let tally = Tally::default();
    let left = AtomicU64::new(0);
    let began = Instant::now();
    thread::scope(|s| {
        for w in 0..WORKERS {
            let (tally, left) = (&tally, &left);
            s.spawn(move || {
                let mut worker = Worker {
                    world,
                    far: Far::listen(&world.there, 8000 + w as u16),
                    random: Random((seed << 8 | w).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1),
                    board: std::env::temp_dir().join(format!("storm-{}-{w}", std::process::id())),
                    tally,
                };
                loop {
                    let n = left.fetch_add(1, Ordering::Relaxed);
                    if n >= kills {
                        break;
                    }
                    let first = (seed * 1_000_000 + n) * 64;
                    if n % 2 == 0 {
                        worker.client(first)
                    } else {
                        worker.server(first)
                    }
                    tally.kills.fetch_add(1, Ordering::Relaxed);
                    worker.far.seen.forget();
                }
                worker.far.seen.quiet();
                let _ = std::fs::remove_file(&worker.board);
            });
        }
    });
    println!("{:.1} s: {tally:?}", began.elapsed().as_secs_f32());
    tally
}

/// What is expected below holds on the kernel.
#[test]
fn as_on_the_kernel() {
    need_root!();
    bounded(LIMIT * 10, || {
        let tally = storm(&World::native(), number("STORM_NATIVE", 6) as u64, 1);
        assert!(tally.judged.into_inner() > 0);
    });
}

#[test]
fn programs_are_killed() {
    need_root!();
    bounded(LIMIT * 10, || {
        let world = World::culvert();
        open_to_all();
        let kills = number("STORM_KILLS", 24) as u64;
        // What is made once, and stays, is there.
        storm(&world, (kills / 4).clamp(6, 50), 2);
        let before = Census::settled(&world);
        println!("before {before:?}");
        let tally = storm(&world, kills, 3);
        assert!(tally.judged.into_inner() > 0);
        let mut after = Census::settled(&world);
        // The channel of a program that was killed may be found free only when the next connection ends.
        for n in 0..5 {
            if after.more(&before).is_some() {
                storm(&world, 6, 4 + n);
                after = Census::settled(&world);
            }
        }
        println!("after  {after:?}");
        assert_eq!(after.more(&before), None);
    });
}
