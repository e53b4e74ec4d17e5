//! zstackd runs short: of descriptors, or of room for what it and programs tell each other. Who comes then waits, or is the kernel's.

use crate::board::{Board, End, GOES, Word};
use crate::census::Census;
use crate::far::Far;
use crate::lab::{Process, beside, bounded, mount_tmpfs, soon, with_own_mounts};
use crate::need_root;
use crate::program::Task;
use crate::talk::{Hello, Mode};
use crate::world::{HERE, LIMIT, THERE, World, at, registry};
use std::collections::HashSet;
use std::io::Write;
use std::path::PathBuf;

fn place(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("storm-{name}-{}", std::process::id()))
}

/// Remote hosts whose connections there is no descriptor for ask again, and are served when there is one.
#[test]
fn without_descriptors_remote_hosts_wait() {
    need_root!();
    beside(LIMIT, || {
        const N: u64 = 5;
        let world = World::culvert();
        let far = Far::listen(&world.there, 8600);
        let path = place("descriptors");
        let board = Board::make(&path);
        let to = at(HERE[0], 9600);
        let task = Task { role: "server", at: to, board: &path, first: 0, connections: 0, user: 0 };
        let mut server = Process::spawn(&mut task.command(&world));
        soon("a program that listens", LIMIT, || (board.row(0).get(Word::Stage) == GOES).then_some(()));
        let before = Census::settled(&world);
        world.leave_descriptors(3);
        for id in 0..N {
            let hello = Hello { id, mode: Mode::Turns };
            far.seen.connect(&world.there, to, hello, |e| panic!("connect: {e:?}"));
        }
        let is_served = |id: u64| board.row(id as usize + 1).get(Word::Got) > 1000;
        soon("connections that are served", LIMIT, || (0..N).any(is_served).then_some(()));
        assert!(!(0..N).all(is_served), "there are descriptors for all");
        let mut served = HashSet::new();
        while (served.len() as u64) < N {
            let next =
                soon("a connection that is served", LIMIT, || (0..N).find(|id| !served.contains(id) && is_served(*id)));
            assert_eq!(board.row(next as usize + 1).get(Word::Wrong), 0, "wrong bytes");
            far.seen.end(next);
            served.insert(next);
        }
        far.seen.quiet();
        server.kill();
        let after = Census::settled(&world);
        assert_eq!(after.inner, before.inner);
        let _ = std::fs::remove_file(&path);
    });
}

/// The file system of the registry is full: programs cannot say whose their sockets are, and their connections are the kernel's.
#[test]
fn without_room_for_the_registry_connections_are_the_kernels() {
    need_root!();
    bounded(LIMIT, || {
        with_own_mounts(|| {
            mount_tmpfs(registry().to_str().expect("a path"), "size=256k");
            let world = World::culvert();
            let far = Far::listen(&world.there, 8610);
            let junk = registry().join("junk");
            let mut file = std::fs::File::create(&junk).expect("a file");
            while file.write_all(&[1; 4096]).is_ok() {}
            drop(file);
            let control = format!("@culvert-zstackd-{}", world.zstackd.as_ref().expect("zstackd").0.id());
            let told = || world.here.within(|| zstack_control::ask(&control, 0).expect("an answer").len());
            for (round, expected) in [(0, 0), (1, 4)] {
                let path = place("full");
                let board = Board::make(&path);
                let first = 100 * round;
                let task =
                    Task { role: "client", at: at(THERE[0], 8610), board: &path, first, connections: 4, user: 0 };
                let process = Process::spawn(&mut task.command(&world));
                soon("connections", LIMIT, || {
                    let rows: Vec<_> = (0..4).map(|i| board.row(i)).collect();
                    for row in &rows {
                        let ends = (row.end(Word::ReadEnd), row.end(Word::WriteEnd), row.get(Word::Wrong));
                        assert_eq!(ends, (End::Not, End::Not, 0));
                    }
                    rows.iter().all(|row| row.get(Word::Sent) + row.get(Word::Got) > 200_000).then_some(())
                });
                assert_eq!(told(), expected);
                drop(process);
                for id in first..first + 4 {
                    far.seen.end_of(id);
                }
                // There is room again.
                let _ = std::fs::remove_file(&junk);
                let _ = std::fs::remove_file(&path);
            }
        });
    });
}

/// There is no memory: zstackd ends, and programs are told so as when it is killed.
#[test]
fn without_memory_programs_are_told() {
    need_root!();
    bounded(LIMIT, || {
        const OLD: u64 = 16;
        const NEW: u64 = 128;
        let mut world = World::culvert();
        let far = Far::listen(&world.there, 8620);
        let files = [place("old"), place("new")];
        let boards = [0, 1].map(|n| Board::make(&files[n]));
        let task = |n: usize, connections| {
            let first = n as u64 * OLD;
            Task { role: "client", at: at(THERE[0], 8620), board: &files[n], first, connections, user: 0 }
        };
        let old = Process::spawn(&mut task(0, OLD).command(&world));
        let rows = || (0..OLD as usize).map(|i| boards[0].row(i));
        soon("connections", LIMIT, || rows().all(|r| r.get(Word::Sent) + r.get(Word::Got) > 10_000).then_some(()));
        let pid = world.zstackd.as_ref().expect("zstackd").0.id();
        let control = format!("@culvert-zstackd-{pid}");
        let told = world.here.within(|| zstack_control::ask(&control, 0).expect("an answer"));
        let split: HashSet<u64> = told.iter().map(|c| c.local.port().into()).collect();
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("status");
        // What can be written, not what is reserved: a worker's heap has addresses for 64 MB at once.
        let size = status.lines().find_map(|l| l.strip_prefix("VmData:")).expect("its size");
        let size: u64 = size.trim().trim_end_matches(" kB").parse().expect("a number");
        world.here.run(&format!("prlimit --pid {pid} --data={}", (size + (4 << 10)) << 10));
        let new = Process::spawn(&mut task(1, NEW).command(&world));
        let zstackd = world.zstackd.as_mut().expect("zstackd");
        let status = soon("the end of zstackd", LIMIT, || zstackd.0.try_wait().expect("zstackd"));
        assert!(!status.success());
        let mut judged = 0;
        for (i, _) in rows().enumerate().filter(|(_, row)| split.contains(&row.get(Word::Port))) {
            soon("the end of a connection", LIMIT, || (boards[0].row(i).get(Word::When) != 0).then_some(()));
            // Its second direction.
            soon("the other end of a connection", LIMIT, || {
                let row = boards[0].row(i);
                let ends = [row.end(Word::ReadEnd), row.end(Word::WriteEnd)];
                (i % 4 != 2 || !ends.contains(&End::Not)).then_some(())
            });
            let row = boards[0].row(i);
            let ends = [row.end(Word::ReadEnd), row.end(Word::WriteEnd)];
            assert_eq!(row.get(Word::Wrong), 0, "wrong bytes: {row:?}");
            assert!(ends.iter().any(|end| end.is_reset()), "{row:?}");
            assert!(!ends.contains(&End::Eof) || i % 4 == 2, "an end in order: {row:?}");
            judged += 1;
        }
        assert!(judged > 0);
        drop((old, new));
        far.seen.cut();
        files.iter().for_each(|f| drop(std::fs::remove_file(f)));
    });
}
