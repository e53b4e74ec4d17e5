//! Programs that mean harm, of another user than zstackd's and beside programs that do not: they harm themselves.

use crate::board::{Board, End, GOES, Row, Word};
use crate::census::Census;
use crate::far::Far;
use crate::lab::{Process, bounded, soon};
use crate::program::Task;
use crate::talk::{Hello, Mode, Random, talk};
use crate::world::{HERE, LIMIT, THERE, World, at, open_to_all};
use crate::{need_root, number};
use std::fs::File;
use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::FileExt;
use std::os::unix::net::{SocketAddr as UnixAddress, UnixStream};
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

const HOSTILE: u32 = 65534;
const EACH: u64 = 4;

fn place(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("storm-{name}-{}", std::process::id()))
}

/// A program that is not hostile, of a third user.
struct Bystander {
    process: Process,
    board: Board,
    path: PathBuf,
}

impl Bystander {
    fn start(world: &World, far: &Far, name: &str, first: u64) -> Bystander {
        let path = place(name);
        let board = Board::make(&path);
        let task =
            Task { role: "client", at: at(THERE[0], far.at.port()), board: &path, first, connections: EACH, user: 1 };
        let process = Process::spawn(&mut task.command(world));
        let bystander = Bystander { process, board, path };
        bystander.goes_on("a program beside");
        bystander
    }

    fn rows(&self) -> Vec<Row> {
        (0..EACH as usize).map(|i| self.board.row(i)).collect()
    }

    /// All its connections move, and none has ended.
    fn goes_on(&self, what: &str) {
        let then = self.rows();
        let moved = |row: &Row| row.get(Word::Sent) + row.get(Word::Got);
        soon(what, LIMIT, || {
            let now = self.rows();
            for row in &now {
                let ends = (row.end(Word::ReadEnd), row.end(Word::WriteEnd), row.get(Word::Wrong));
                assert_eq!(ends, (End::Not, End::Not, 0), "{what}");
            }
            now.iter().zip(&then).all(|(now, then)| moved(now) > moved(then) + 50_000).then_some(())
        });
    }
}

impl Drop for Bystander {
    fn drop(&mut self) {
        self.process.kill();
        let _ = std::fs::remove_file(&self.path);
    }
}

/// zstackd holds what it held before. The channel of a program that was killed may be found free only when the next connection ends.
fn nothing_stays(world: &World, far: &Far, before: &Census) {
    let mut more = None;
    for n in 0..5 {
        more = Census::settled(world).more(before);
        if more.is_none() {
            return;
        }
        drop(Bystander::start(world, far, "after", 9_000_000 + n * 64));
    }
    panic!("{}", more.expect("something"));
}

/// What the scribbling program does: its connections come to shared memory, and then it writes all over what it shares.
pub fn scribble(to: SocketAddr, board: &'static Board, first: u64, connections: u64) {
    for i in 0..connections {
        let hello = Hello { id: first + i, mode: Mode::ALL[i as usize % 4] };
        thread::spawn(move || {
            let Ok(mut stream) = TcpStream::connect(to) else { return };
            if stream.write_all(&hello.bytes()).is_ok() {
                board.set(i as usize, Word::Stage, GOES);
                // Whatever comes of it: its own memory is wrong.
                talk(stream, hello, true, &Nothing);
            }
        });
    }
    let memory = File::options().read(true).write(true).open("/proc/self/mem").expect("memory");
    let mut random = Random(first.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let mut written = 0;
    loop {
        thread::sleep(Duration::from_millis(1 + random.below(3)));
        for (start, len) in channels() {
            for _ in 0..random.below(50) {
                // Words of headers rather than bytes of streams, mostly.
                let page = random.below(len / 4096) * 4096;
                let at = start
                    + page
                    + if random.below(4) == 0 { random.below(512) * 8 } else { 1536 + random.below(128) * 8 };
                let mut word = [0; 8];
                if memory.read_at(&mut word, at).is_err() {
                    continue;
                }
                let old = u64::from_ne_bytes(word);
                let new = match random.below(8) {
                    0 => 0,
                    1 => u64::MAX,
                    2 => random.next(),
                    3 => 1 << random.below(64),
                    4 => old ^ 1 << random.below(64),
                    5 => old.wrapping_add(random.below(100_000)),
                    6 => old.wrapping_sub(random.below(100_000)),
                    _ => random.below(5),
                };
                written += u64::from(memory.write_at(&new.to_ne_bytes(), at).is_ok());
            }
        }
        board.set(connections as usize, Word::Sent, written);
    }
}

struct Nothing;

impl crate::talk::Note for Nothing {
    fn note(&self, _: Word, _: u64) {}
}

/// The parts of channels that are mapped all the time.
fn channels() -> Vec<(u64, u64)> {
    let maps = std::fs::read_to_string("/proc/self/maps").expect("mappings");
    let range = |l: &str| {
        let (start, end) = l.split_once(' ')?.0.split_once('-')?;
        let (start, end) = (u64::from_str_radix(start, 16).ok()?, u64::from_str_radix(end, 16).ok()?);
        (l.contains("culvert-channel") && l.contains("rw-s")).then_some((start, end - start))
    };
    maps.lines().filter_map(range).collect()
}

#[test]
fn who_scribbles_over_its_rings_harms_itself() {
    need_root!();
    bounded(LIMIT * 10, || {
        let rounds = number("STORM_SCRIBBLES", 2) as u64;
        let world = World::culvert();
        open_to_all();
        let (far, spoilt) = (Far::listen(&world.there, 8500), Far::listen(&world.there, 8501));
        drop(Bystander::start(&world, &far, "before", 1));
        let before = Census::settled(&world);
        let bystander = Bystander::start(&world, &far, "beside", 1000);
        let path = place("scribbles");
        let mut written = 0;
        for round in 0..rounds {
            let board = Board::make(&path);
            let first = 1_000_000 + round * 64;
            let connections = 8;
            let task =
                Task { role: "scribble", at: at(THERE[0], 8501), board: &path, first, connections, user: HOSTILE };
            let mut process = Process::spawn(task.command(&world).stderr(Stdio::null()));
            let row = connections as usize;
            // Some of them crash by what they have done.
            soon("a program that scribbles", LIMIT, || {
                let gone = process.0.try_wait().expect("a program").is_some();
                (gone || board.row(row).get(Word::Sent) > 2000).then_some(())
            });
            bystander.goes_on("beside a program that scribbles");
            process.kill();
            written += board.row(row).get(Word::Sent);
            spoilt.seen.cut();
        }
        println!("{written} words were written over");
        assert!(written > 0);
        drop(bystander);
        spoilt.seen.cut();
        nothing_stays(&world, &far, &before);
        let _ = std::fs::remove_file(&path);
    });
}

/// Programs that are stopped at any moment, while their connections are made and come to shared memory: zstackd waits for none.
#[test]
fn who_is_stopped_again_and_again_holds_nobody_up() {
    need_root!();
    bounded(LIMIT * 4, || {
        let rounds = number("STORM_STOPS", 6) as u64;
        let world = World::culvert();
        open_to_all();
        let (far, others) = (Far::listen(&world.there, 8530), Far::listen(&world.there, 8531));
        drop(Bystander::start(&world, &far, "before", 1));
        let before = Census::settled(&world);
        let bystander = Bystander::start(&world, &far, "held", 1000);
        let path = place("stops");
        let board = Board::make(&path);
        let mut random = Random(0x570b);
        let over = AtomicBool::new(false);
        let worst = thread::scope(|s| {
            let watch = s.spawn(|| {
                // The longest time in which nothing moved.
                let moved = || bystander.rows().iter().map(|r| r.get(Word::Sent) + r.get(Word::Got)).sum::<u64>();
                let (mut last, mut at, mut worst) = (moved(), Instant::now(), Duration::ZERO);
                while !over.load(Ordering::Relaxed) {
                    thread::sleep(Duration::from_micros(500));
                    let now = moved();
                    if now != last {
                        worst = worst.max(at.elapsed());
                        (last, at) = (now, Instant::now());
                    }
                }
                worst.max(at.elapsed())
            });
            for round in 0..rounds {
                let server = round % 2 == 1;
                let to = if server { at(HERE[0], 9531) } else { at(THERE[0], 8531) };
                let first = 1_000_000 + round * 64;
                let role = if server { "server" } else { "client" };
                let task = Task { role, at: to, board: &path, first, connections: 8, user: HOSTILE };
                board.clear(0);
                let mut process = Process::spawn(&mut task.command(&world));
                if server {
                    soon("a program that listens", LIMIT, || (board.row(0).get(Word::Stage) == GOES).then_some(()));
                    for i in 0..8 {
                        let hello = Hello { id: first + i, mode: Mode::ALL[i as usize % 4] };
                        others.seen.connect(&world.there, to, hello, |_| {});
                    }
                } else {
                    soon("a program that connects", LIMIT, || (board.row(0).get(Word::Stage) > 0).then_some(()));
                }
                let pid = process.0.id();
                for _ in 0..6 {
                    thread::sleep(Duration::from_micros(random.below(4000)));
                    world.here.run(&format!("kill -STOP {pid}"));
                    thread::sleep(Duration::from_millis(random.below(40)));
                    world.here.run(&format!("kill -CONT {pid}"));
                }
                process.kill();
                others.seen.cut();
            }
            over.store(true, Ordering::Relaxed);
            watch.join().expect("who watches")
        });
        println!("the longest time in which nothing of another user's moved: {worst:?}");
        bystander.goes_on("beside programs that are stopped");
        drop(bystander);
        others.seen.cut();
        nothing_stays(&world, &far, &before);
        let _ = std::fs::remove_file(&path);
    });
}

/// What the flooding program does: it begins connections as fast as it can, and forgets them.
pub fn flood(to: SocketAddr, board: &Board) {
    let mut n = 0;
    loop {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None);
        let Ok(socket) = socket else {
            thread::sleep(Duration::from_millis(1));
            continue;
        };
        socket.set_nonblocking(true).expect("nonblocking");
        let _ = socket.connect(&to.into());
        // It waits for an answer that does not come.
        std::mem::forget(socket);
        n += 1;
        board.set(0, Word::Sent, n);
    }
}

/// One user begins more connections than zstackd makes at a time, to a host that is silent; another one is served as before.
#[test]
fn who_floods_connects_leaves_room_to_others() {
    need_root!();
    bounded(LIMIT * 2, || {
        let world = World::culvert_with("pending = 64\nconnections-per-user = 200");
        open_to_all();
        world.there.nft("table inet t {\n chain c {\n type filter hook input priority 0;\n tcp dport 90 drop\n}\n}\n");
        let far = Far::listen(&world.there, 8510);
        drop(Bystander::start(&world, &far, "before", 1));
        let before = Census::settled(&world);
        let path = place("floods");
        let board = Board::make(&path);
        let task = Task { role: "flood", at: at(THERE[0], 90), board: &path, first: 0, connections: 0, user: HOSTILE };
        let mut process = Process::spawn(&mut task.command(&world));
        soon("a program that floods", LIMIT, || (board.row(0).get(Word::Sent) > 500).then_some(()));
        let bystander = Bystander::start(&world, &far, "room", 1000);
        let control = format!("@culvert-zstackd-{}", world.zstackd.as_ref().expect("zstackd").0.id());
        let told = world.here.within(|| zstack_control::ask(&control, 0).expect("an answer"));
        assert_eq!(told.len() as u64, EACH, "the other user's connections end in zstackd: {told:?}");
        process.kill();
        drop(bystander);
        nothing_stays(&world, &far, &before);
        let _ = std::fs::remove_file(&path);
    });
}

/// Lies at the control socket: nobody else is kept waiting by them, and nothing of them stays.
#[test]
fn who_lies_at_the_control_socket_is_dropped() {
    need_root!();
    bounded(LIMIT, || {
        let world = World::culvert();
        let far = Far::listen(&world.there, 8520);
        open_to_all();
        drop(Bystander::start(&world, &far, "before", 1));
        let before = Census::settled(&world);
        let bystander = Bystander::start(&world, &far, "asked", 1000);
        let name = format!("@culvert-zstackd-{}", world.zstackd.as_ref().expect("zstackd").0.id());
        world.here.within(|| {
            let address = UnixAddress::from_abstract_name(&name[1..]).expect("a name");
            let mut random = Random(77);
            let mut kept = vec![];
            for n in 0..number("STORM_LIES", 300) as u64 {
                let Ok(mut stream) = UnixStream::connect_addr(&address) else { continue };
                stream.set_write_timeout(Some(Duration::from_secs(10))).expect("a timeout");
                let lie: Vec<u8> = match n % 4 {
                    0 => (0..random.below(3000)).map(|_| random.next() as u8).collect(),
                    1 => b"connections".repeat(50),
                    2 => b"connections\n".to_vec(),
                    _ => b"conn".to_vec(),
                };
                let _ = stream.write_all(&lie);
                // Some ask for all, and read nothing; some end at once.
                if n % 3 > 0 {
                    kept.push(stream);
                }
                if kept.len() > 30 {
                    kept.remove(0);
                }
                if n % 50 == 0 {
                    let told = zstack_control::ask(&name, 0).expect("an answer beside those who lie");
                    assert_eq!(told.len() as u64, EACH);
                }
            }
        });
        bystander.goes_on("beside those who lie");
        let asks = |user: u32| {
            let mut asker = world.here.command("setpriv");
            asker.args([&format!("--reuid={user}"), "--clear-groups", "socat", "-t", "60", "-"]);
            asker.arg(format!("ABSTRACT-CONNECT:{}", &name[1..])).stdin(Stdio::piped()).stdout(Stdio::piped());
            let mut asker = Process::spawn(&mut asker);
            asker.0.stdin.take().expect("a pipe").write_all(b"details\n").expect("a question");
            asker.finish(LIMIT).1
        };
        let told = asks(0);
        assert!(told.contains("opened_outward"), "{told}");
        let about = |line: &&str| line.contains(" <-> ") && line.contains("Tcb {") && line.contains("readable: ");
        // Of the port, of each worker, of each connection.
        let lines = 1 + crate::world::workers() + EACH;
        assert!(told.lines().count() as u64 == lines && told.lines().filter(about).count() as u64 == EACH, "{told}");
        assert_eq!(asks(HOSTILE), "", "numbers that have to be guessed are told to nobody else");
        drop(bystander);
        nothing_stays(&world, &far, &before);
    });
}
