//! zstackd that is killed, or told to end, with programs that go on: they are told at once, and connect again when there is a zstackd.

use crate::board::{Board, End, GOES, Row, Word, now};
use crate::far::Far;
use crate::lab::{Process, bounded, soon};
use crate::program::Task;
use crate::talk::{Hello, Mode, Random};
use crate::world::{HERE, LIMIT, THERE, World, at};
use crate::{need_root, number};
use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

const EACH: u64 = 8;
/// Whose the second client is.
const NOBODY: u32 = 65534;

/// A line of a program's log: how a connection has ended, or that there was none.
#[derive(Clone, Debug)]
struct Line {
    mode: String,
    talked: bool,
    port: u64,
    ends: String,
    when: u64,
    wrong: u64,
}

fn lines(path: &Path) -> Vec<Line> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let line = |l: &str| {
        let words: Vec<_> = l.split(' ').collect();
        let last = words.len() - 1;
        let number = |i: usize| words[i].parse().expect("a number");
        Line {
            mode: words[1].into(),
            talked: words[2] == "true",
            port: number(3),
            ends: words[4..last - 1].join(" "),
            when: number(last - 1),
            wrong: number(last),
        }
    };
    // The program may be writing the last one.
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    whole.lines().map(line).collect()
}

/// What a zstackd that is gone may leave behind: nothing but rules without effect, which the next one removes.
fn residue(world: &World) {
    soon("the tun is gone", LIMIT, || (!world.here.run("ip -o link").contains("cv0")).then_some(()));
    for family in ["-4", "-6"] {
        let routes = world.here.run(&format!("ip {family} route show table all"));
        assert!(!routes.contains("cv0"), "{routes}");
    }
    let links = sk_lookups(world);
    assert_eq!(links, 0, "sk_lookup links in the namespace");
}

/// The inode of the programs' namespace.
fn inode(world: &World) -> u64 {
    use std::os::unix::fs::MetadataExt;
    world.here.within(|| std::fs::metadata("/proc/thread-self/ns/net").expect("the namespace").ino())
}

/// Links of eBPF to the programs' namespace (bpftool(8) would tell, where it is installed).
fn sk_lookups(world: &World) -> usize {
    let inode = inode(world);
    let is_here = |info: &libbpf_rs::query::LinkInfo| match &info.info {
        libbpf_rs::query::LinkTypeInfo::NetNs(ns) => u64::from(ns.ino) == inode,
        _ => false,
    };
    libbpf_rs::query::LinkInfoIter::default().filter(is_here).count()
}

#[test]
fn zstackd_is_killed() {
    need_root!();
    bounded(LIMIT * 20, || {
        let rounds = number("STORM_DAEMON_KILLS", 2);
        let mut world = World::culvert();
        crate::world::open_to_all();
        let far = Far::listen(&world.there, 8100);
        let boards: Vec<PathBuf> =
            (0..3).map(|n| std::env::temp_dir().join(format!("storm-daemon-{}-{n}", std::process::id()))).collect();
        let logs: Vec<PathBuf> = boards.iter().map(|b| b.with_extension("log")).collect();
        let files: Vec<Board> = boards.iter().map(|b| Board::make(b)).collect();
        for log in &logs {
            let _ = Board::make(log);
        }
        let task = |role, at, n: usize| Task {
            role,
            at,
            board: &boards[n],
            first: 1000 * n as u64,
            connections: EACH,
            user: if n == 1 { NOBODY } else { 0 },
        };
        let mut own = Process::spawn(&mut task("again", at(THERE[0], 8100), 0).command(&world));
        let mut other = Process::spawn(&mut task("again", at(THERE[1], 8100), 1).command(&world));
        let mut server = Process::spawn(&mut task("server", at(HERE[0], 9100), 2).command(&world));
        soon("a program that listens", LIMIT, || (files[2].row(0).get(Word::Stage) == GOES).then_some(()));

        let mut random = Random(0x5eed);
        let (mut after, mut errors) = (vec![], BTreeMap::<String, usize>::new());
        let mut seen = [0, 0];
        let (mut raw, mut kernels) = ([HashSet::new(), HashSet::new()], 0);
        for round in 0..rounds as u64 {
            // The remote host connects to the server, which has not been started again either.
            let first = 2000 + (round % 2_000_000) * EACH;
            for i in 0..EACH {
                let hello = Hello { id: first + i, mode: Mode::ALL[i as usize % 4] };
                far.seen.connect(&world.there, at(HERE[0], 9100), hello, move |end| panic!("the server: {end:?}"));
            }
            let row = |n: usize, i: u64| match n {
                2 => files[2].row((first + i - 2000) as usize + 1),
                n => files[n].row(i as usize),
            };
            let moves = |r: &Row| r.get(Word::Stage) == GOES && r.get(Word::Sent) + r.get(Word::Got) > 20_000;
            soon("programs whose connections go", LIMIT, || {
                (0..3).all(|n| (0..EACH).all(|i| moves(&row(n, i)))).then_some(())
            });
            thread::sleep(Duration::from_micros(random.below(60_000)));
            // Those that end in zstackd. One that a program has opened before it knew that there is a zstackd again is the kernel's.
            let control = format!("@culvert-zstackd-{}", world.zstackd.as_ref().expect("zstackd").0.id());
            let told = world.here.within(|| zstack_control::ask(&control, 0).expect("an answer"));
            let split: HashSet<u64> = told.iter().map(|c| c.local.port().into()).collect();
            let mut cut = [HashSet::new(), HashSet::new()];
            for (n, log) in logs.iter().enumerate().take(2) {
                let lines = lines(log);
                for line in &lines[seen[n]..] {
                    // Nothing else has ended since they have come back.
                    assert!(!line.talked || raw[n].remove(&line.port), "ended before zstackd was killed: {line:?}");
                    if !line.talked {
                        *errors.entry(line.ends.clone()).or_default() += 1;
                    }
                }
                seen[n] = lines.len();
                for i in 0..EACH {
                    let port = row(n, i).get(Word::Port);
                    if split.contains(&port) {
                        cut[n].insert(port);
                    } else if raw[n].insert(port) {
                        kernels += 1;
                    }
                }
            }
            let began = now();
            let mut zstackd = world.zstackd.take().expect("zstackd");
            if round % 4 == 1 {
                // Told to end, it cuts what goes on, too.
                world.here.run(&format!("kill {}", zstackd.0.id()));
                assert!(zstackd.finish(LIMIT).0.success());
            } else {
                zstackd.kill();
            }
            for n in 0..2 {
                let ended = soon("the ends of the programs' connections", LIMIT, || {
                    let mut ended = lines(&logs[n]).split_off(seen[n]);
                    ended.retain(|line| line.talked && cut[n].contains(&line.port));
                    (ended.len() == cut[n].len()).then_some(ended)
                });
                // What was the kernel's may end now, too: without its remote host.
                let lines = lines(&logs[n]);
                lines[seen[n]..].iter().filter(|l| l.talked).for_each(|l| {
                    raw[n].remove(&l.port);
                });
                seen[n] = lines.len();
                for line in ended {
                    assert_eq!(line.wrong, 0, "wrong bytes: {line:?}");
                    let reset = line.ends.contains("Error(104)") || line.ends.contains("Error(32)");
                    let eof = line.ends.contains("Eof");
                    // Of two threads one takes the error, and the other one then reads an end, as on the kernel.
                    assert!(
                        reset && (!eof || line.mode == "Both"),
                        "an end in order of a stream that was cut: {line:?}"
                    );
                    after.push(line.when.saturating_sub(began));
                }
            }
            for i in 0..EACH {
                let ended = soon("the ends of the server's connections", LIMIT, || {
                    let row = row(2, i);
                    (row.get(Word::When) != 0).then_some(row)
                });
                let ends = [ended.end(Word::ReadEnd), ended.end(Word::WriteEnd)];
                assert!(ends.iter().any(|e| e.is_reset()), "connection {i} of the server: {ended:?}");
                assert!(!ends.contains(&End::Eof) || i % 4 == 2, "an end in order: {ended:?}");
                assert_eq!(ended.get(Word::Wrong), 0, "wrong bytes");
                after.push(ended.get(Word::When).saturating_sub(began));
            }
            residue(&world);
            far.seen.cut();
            world.start();
            for process in [&mut own, &mut other, &mut server] {
                assert!(process.0.try_wait().expect("a program").is_none(), "a program has ended");
            }
            far.seen.forget();
        }
        after.sort_unstable();
        let at = |part: usize| Duration::from_nanos(after[(after.len() - 1) * part / 100]);
        println!(
            "{rounds} kills, {} connections told: median {:?}, 99 of 100 {:?}, the last {:?}",
            after.len(),
            at(50),
            at(99),
            at(100)
        );
        println!("connects meanwhile: {errors:?}; {kernels} connections were the kernel's");
        drop((own, other, server));
        // Told to end, it leaves nothing at all.
        let zstackd = world.zstackd.take().expect("zstackd");
        world.here.run(&format!("kill {}", zstackd.0.id()));
        assert!(zstackd.finish(LIMIT).0.success());
        residue(&world);
        assert_eq!(world.here.run("ip rule show").lines().count(), 3, "rules");
        let notice = crate::world::registry().join(format!("zstackd-{}", inode(&world)));
        assert!(!notice.exists(), "{}", notice.display());
        for file in boards.iter().chain(&logs) {
            let _ = std::fs::remove_file(file);
        }
    });
}
