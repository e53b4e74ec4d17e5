//! Programs and zstackd that are stopped for a while, with traffic: nothing ends, nothing is lost.

use crate::board::{Board, End, GOES, Row, STANDS, TRIES, Word};
use crate::far::{Far, judge};
use crate::lab::{Process, beside, soon};
use crate::program::Task;
use crate::talk::Mode;
use crate::world::{LIMIT, THERE, World, at};
use crate::{need_root, number};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

const EACH: u64 = 4;

fn place(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("storm-{name}-{}", std::process::id()))
}

fn rows(board: &Board) -> Vec<Row> {
    (0..EACH as usize).map(|i| board.row(i)).collect()
}

fn moved(row: &Row) -> u64 {
    row.get(Word::Sent) + row.get(Word::Got)
}

/// Waits until each connection has moved more than it had.
fn go_on(what: &str, board: &Board, than: &[Row]) {
    soon(what, LIMIT, || {
        let now = rows(board);
        whole(&now);
        now.iter().zip(than).all(|(now, then)| moved(now) > moved(then) + 20_000).then_some(())
    });
}

/// Nothing has ended.
fn whole(rows: &[Row]) {
    for row in rows {
        assert_eq!((row.end(Word::ReadEnd), row.end(Word::WriteEnd), row.get(Word::Wrong)), (End::Not, End::Not, 0));
    }
}

fn signal(process: &Process, name: &str) {
    let status = std::process::Command::new("kill").args([name, &process.0.id().to_string()]).status();
    assert!(status.expect("kill").success());
}

fn client<'a>(board: &'a Path, far: &Far, first: u64) -> Task<'a> {
    Task { role: "client", at: at(THERE[0], far.at.port()), board, first, connections: EACH, user: 0 }
}

/// Kills the program, and compares what both ends have.
fn end(mut process: Process, board: &Board, far: &Far, first: u64) {
    process.kill();
    for (i, row) in (0..).zip(rows(board)) {
        judge(first + i, Mode::ALL[i as usize % 4], &row, &far.seen.end_of(first + i));
    }
}

/// One program is stopped; another one is served meanwhile, and zstackd sleeps when that is gone.
#[test]
fn a_program_is_stopped() {
    need_root!();
    beside(LIMIT * 3, || {
        let pause = Duration::from_secs(number("STORM_STOPPED", 1) as u64);
        let world = World::culvert();
        let far = Far::listen(&world.there, 8200);
        let files = [place("stopped"), place("served")];
        let boards = [0, 1].map(|n| Board::make(&files[n]));
        let zero = vec![Row::default(); EACH as usize];
        let stopped = Process::spawn(&mut client(&files[0], &far, 100).command(&world));
        go_on("a program", &boards[0], &zero);
        signal(&stopped, "-STOP");
        let beside = Process::spawn(&mut client(&files[1], &far, 200).command(&world));
        go_on("a program beside one that is stopped", &boards[1], &zero);
        end(beside, &boards[1], &far, 200);
        let zstackd = world.zstackd.as_ref().expect("zstackd");
        // What the stopped one has still room for is on its way.
        let settled = soon("zstackd has nothing to do", LIMIT, || {
            let before = zstackd.cpu();
            thread::sleep(Duration::from_millis(200));
            (zstackd.cpu() == before).then_some(before)
        });
        thread::sleep(pause);
        let used = zstackd.cpu() - settled;
        println!("stopped for {pause:?}: zstackd took {used:?}");
        assert!(
            used * 10 <= pause + Duration::from_secs(1),
            "zstackd is busy with a program that is stopped: {used:?}"
        );
        let then = rows(&boards[0]);
        whole(&then);
        signal(&stopped, "-CONT");
        go_on("a program that goes on", &boards[0], &then);
        end(stopped, &boards[0], &far, 100);
        far.seen.quiet();
    });
}

/// zstackd is stopped: what there is waits, and so does who connects.
#[test]
fn zstackd_is_stopped() {
    need_root!();
    beside(LIMIT * 4, || {
        let pause = Duration::from_secs(number("STORM_STOPPED", 1) as u64);
        let world = World::culvert();
        let far = Far::listen(&world.there, 8200);
        let files = [place("waits"), place("connects")];
        let boards = [0, 1].map(|n| Board::make(&files[n]));
        let zero = vec![Row::default(); EACH as usize];
        let old = Process::spawn(&mut client(&files[0], &far, 100).command(&world));
        go_on("a program", &boards[0], &zero);
        let zstackd = world.zstackd.as_ref().expect("zstackd");
        signal(zstackd, "-STOP");
        let new = Process::spawn(&mut client(&files[1], &far, 200).command(&world));
        soon("a program that connects", LIMIT, || (boards[1].row(0).get(Word::Stage) == TRIES).then_some(()));
        thread::sleep(pause);
        let then = rows(&boards[0]);
        whole(&then);
        whole(&rows(&boards[1]));
        assert!(
            rows(&boards[1]).iter().all(|row| row.get(Word::Stage) < STANDS),
            "connected by a zstackd that is stopped"
        );
        let packets = || -> u64 {
            let text = world.there.run("ip -s link show dev w0");
            let lines: Vec<_> = text.lines().collect();
            let rx = lines.iter().position(|l| l.trim_start().starts_with("RX")).expect("a line");
            lines[rx + 1].split_whitespace().nth(1).expect("a number").parse().expect("a number")
        };
        let (cpu, sent, moved_then) = (zstackd.cpu(), packets(), then.iter().map(moved).sum::<u64>());
        signal(zstackd, "-CONT");
        go_on("a program that waited", &boards[0], &then);
        let now = rows(&boards[0]).iter().map(moved).sum::<u64>();
        println!(
            "stopped for {pause:?}; then {} bytes with {} packets from zstackd and {:?} of its time",
            now - moved_then,
            packets() - sent,
            zstackd.cpu() - cpu
        );
        go_on("a program that has waited to connect", &boards[1], &zero);
        assert!(rows(&boards[1]).iter().all(|row| row.get(Word::Stage) == GOES));
        end(old, &boards[0], &far, 100);
        end(new, &boards[1], &far, 200);
        far.seen.quiet();
    });
}
