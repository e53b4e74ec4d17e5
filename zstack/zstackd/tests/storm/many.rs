//! Many connections of many programs of two users, and what they cost when nothing happens on them.

use crate::board::{Board, GOES, Word};
use crate::lab::{Namespace, Process, bounded, soon};
use crate::program::Task;
use crate::world::{LIMIT, THERE, World, at, open_to_all};
use crate::{need_root, number};
use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;
use zstackd::poller::Poller;

/// Whose programs these are.
const USERS: [u32; 2] = [65534, 1];

/// The remote host: gives back what it gets.
struct Echo {
    stop: Arc<AtomicBool>,
    open: Arc<AtomicUsize>,
}

impl Echo {
    fn listen(there: &Namespace, port: u16) -> Echo {
        let address: SocketAddr = at("0.0.0.0", port);
        let listener = there.within(|| {
            let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
            socket.bind(&address.into()).expect("a port");
            socket.listen(4096).expect("it listens");
            socket.set_nonblocking(true).expect("nonblocking");
            TcpListener::from(socket)
        });
        let (stop, open) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (over, count) = (stop.clone(), open.clone());
        thread::spawn(move || serve(&listener, &over, &count));
        Echo { stop, open }
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn serve(listener: &TcpListener, over: &AtomicBool, open: &AtomicUsize) {
    let mut poller = Poller::new().expect("epoll");
    poller.watch(listener, 0).expect("epoll_ctl");
    let mut streams = HashMap::<u64, TcpStream>::new();
    let (mut next, mut events, mut buffer) = (1, vec![], vec![0; 65_536]);
    while !over.load(Ordering::Relaxed) {
        events.clear();
        poller.wait(Some(Duration::from_millis(100)), &mut events).expect("epoll_wait");
        for event in &events {
            if event.token == 0 {
                while let Ok((stream, _)) = listener.accept() {
                    poller.watch(&stream, next).expect("epoll_ctl");
                    streams.insert(next, stream);
                    next += 1;
                }
            } else if let Some(stream) = streams.get_mut(&event.token) {
                match stream.read(&mut buffer) {
                    Ok(n @ 1..) => stream.write_all(&buffer[..n]).expect("it takes what it has sent"),
                    Err(e) if e.kind() == ErrorKind::WouldBlock => {}
                    _ => drop(streams.remove(&event.token)),
                }
            }
            open.store(streams.len(), Ordering::Relaxed);
        }
    }
}

/// What a program does: it opens all connections; then, each time that it is told to, it exchanges something on each of them.
pub fn program(to: SocketAddr, board: &Board, first: u64, connections: u64) {
    let mut streams: Vec<_> = (0..connections)
        .map(|i| {
            let stream = TcpStream::connect(to).unwrap_or_else(|e| panic!("connection {i}: {e}"));
            board.set(0, Word::Sent, i + 1);
            stream
        })
        .collect();
    let mut rounds = 0;
    while std::io::stdin().read(&mut [0]).is_ok_and(|n| n > 0) {
        for (i, stream) in (0..).zip(&mut streams) {
            let what = crate::talk::Stream::new(first + i, true)
                .bytes(rounds * 1000, 1 + (i as usize * 37 + rounds as usize) % 1400);
            stream.write_all(what).expect("written");
            let mut back = vec![0; what.len()];
            stream.read_exact(&mut back).expect("read");
            assert!(back == what, "other bytes came back on connection {i}");
        }
        rounds += 1;
        board.set(0, Word::Got, rounds);
    }
    drop(streams);
    std::process::exit(0);
}

/// What a program does that ends soon: so many exchanges on one connection, and it is gone; or it stays, and does nothing more.
pub fn brief(to: SocketAddr, board: &Board, exchanges: u64, stays: bool) {
    let mut stream = TcpStream::connect(to).expect("a connection");
    for n in 0..exchanges {
        stream.write_all(&[n as u8; 100]).expect("written");
        let mut back = [0; 100];
        stream.read_exact(&mut back).expect("read");
        assert_eq!(back, [n as u8; 100]);
    }
    board.set(0, Word::Got, exchanges);
    if stays {
        loop {
            thread::park();
        }
    }
    std::process::exit(0);
}

/// Programs that end before their connection comes to shared memory leave nothing in zstackd, though another one stays.
#[test]
fn brief_programs_leave_nothing() {
    need_root!();
    bounded(LIMIT, || {
        let rounds = number("STORM_BRIEF", 30) as u64;
        let world = World::culvert();
        open_to_all();
        let _echo = Echo::listen(&world.there, 8310);
        let path = std::env::temp_dir().join(format!("storm-brief-{}", std::process::id()));
        let board = Board::make(&path);
        let task = |role, exchanges, user| Task {
            role,
            at: at(THERE[0], 8310),
            board: &path,
            first: exchanges,
            connections: 1,
            user,
        };
        let stays: Vec<_> = (6..14)
            .map(|exchanges| {
                let process = Process::spawn(&mut task("stays", exchanges, 1).command(&world));
                soon("an exchange", LIMIT, || (board.row(0).get(Word::Got) == exchanges).then_some(()));
                process
            })
            .collect();
        let before = crate::census::Census::take(&world);
        for n in 0..rounds {
            let process = Process::spawn(&mut task("brief", 4 + n % 12, USERS[n as usize % 2]).command(&world));
            assert!(process.finish(LIMIT).0.success());
        }
        let after = crate::census::Census::take(&world);
        println!("{} mappings of channels before, {} after", before.memfds, after.memfds);
        // A channel that was made for one of the last is given up when the next connections end.
        assert!(after.memfds <= before.memfds + 16 && after.inner <= before.inner + 1, "{before:?} {after:?}");
        drop(stays);
        let _ = std::fs::remove_file(&path);
    });
}

/// KiB, or as many of something, by name: what this machine's kernel has, and zstackd.
fn held(world: &World) -> Vec<(&'static str, u64)> {
    let pid = world.zstackd.as_ref().expect("zstackd").0.id();
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("status");
    let line = |name: &str| -> u64 {
        let line = status.lines().find(|l| l.starts_with(name)).expect("a line");
        line.split_whitespace().nth(1).expect("a number").parse().expect("a number")
    };
    let slabs = std::fs::read_to_string("/proc/slabinfo").unwrap_or_default();
    let slab = |names: &[&str]| -> u64 {
        let of = |l: &str| {
            let words: Vec<_> = l.split_whitespace().collect();
            let number = |i: usize| words.get(i).and_then(|w| w.parse::<u64>().ok()).unwrap_or(0);
            if words.first().is_some_and(|w| names.contains(w)) { number(1) * number(3) / 1024 } else { 0 }
        };
        slabs.lines().map(of).sum()
    };
    let stat = world.here.run("cat /proc/net/sockstat");
    let pages = stat.lines().find(|l| l.starts_with("TCP:")).expect("a line").split_whitespace().last();
    vec![
        ("zstackd: private", line("RssAnon:")),
        ("zstackd: shared", line("RssShmem:")),
        ("zstackd: mapped files", line("RssFile:")),
        ("kernel: TCP sockets, slab", slab(&["TCP", "TCPv6"])),
        (
            "kernel: inodes, files, dentries, epoll, slab",
            slab(&["sock_inode_cache", "filp", "dentry", "eventpoll_epi", "ep_epi", "eventpoll_pwq", "ep_pwq"]),
        ),
        ("kernel: buffers of sockets", pages.and_then(|p| p.parse::<u64>().ok()).unwrap_or(0) * 4),
    ]
}

#[test]
fn many_connections_of_many_programs() {
    need_root!();
    bounded(LIMIT * 5, || {
        let (programs, each) = (number("STORM_PROGRAMS", 6), number("STORM_CONNECTIONS_EACH", 10));
        let idle = Duration::from_millis(number("STORM_IDLE_MS", 300) as u64);
        let world = World::culvert();
        open_to_all();
        let zstackd = world.zstackd.as_ref().expect("zstackd");
        let echo = Echo::listen(&world.there, 8300);
        let boards: Vec<PathBuf> = (0..programs)
            .map(|n| std::env::temp_dir().join(format!("storm-many-{}-{n}", std::process::id())))
            .collect();
        let files: Vec<_> = boards.iter().map(|b| Board::make(b)).collect();
        let before = held(&world);
        let cpu = zstackd.cpu();
        let mut all: Vec<_> = (0..programs)
            .map(|n| {
                let task = Task {
                    role: "many",
                    at: at(THERE[0], 8300),
                    board: &boards[n],
                    first: (n * each) as u64,
                    connections: each as u64,
                    user: USERS[n % 2],
                };
                let mut process = Process::spawn(task.command(&world).stdin(Stdio::piped()));
                let tells = process.0.stdin.take().expect("a pipe");
                (process, tells)
            })
            .collect();
        soon("all connections", LIMIT * 3, || {
            files.iter().all(|f| f.row(0).get(Word::Sent) == each as u64).then_some(())
        });
        println!("{} connections: {:?} of zstackd's time", programs * each, zstackd.cpu() - cpu);
        let exchange = |all: &mut Vec<(Process, std::process::ChildStdin)>, round: u64| {
            all.iter_mut().for_each(|(_, tells)| tells.write_all(b"x").expect("told"));
            soon("an exchange on each", LIMIT * 3, || {
                all.iter_mut()
                    .for_each(|(p, _)| assert!(p.0.try_wait().expect("a program").is_none(), "a program has ended"));
                files.iter().all(|f| f.row(0).get(Word::Got) == round).then_some(())
            });
        };
        // As many as it takes until they are on shared memory.
        for round in 1..=20 {
            exchange(&mut all, round);
        }
        let control = format!("@culvert-zstackd-{}", zstackd.0.id());
        let told = world.here.within(|| zstack_control::ask(&control, 0).expect("an answer").len());
        assert_eq!((told, echo.open.load(Ordering::Relaxed)), (programs * each, programs * each));
        soon("zstackd has nothing to do", LIMIT, || {
            let before = zstackd.cpu();
            thread::sleep(Duration::from_millis(100));
            (zstackd.cpu() == before).then_some(())
        });
        let cpu = zstackd.cpu();
        thread::sleep(idle);
        println!("idle for {idle:?}: {:?} of zstackd's time", zstackd.cpu() - cpu);
        for ((what, before), (_, now)) in before.iter().zip(held(&world)) {
            let more = now as f64 - *before as f64;
            println!("{what}: {before} -> {now} KiB, {:.2} KiB a connection", more / (programs * each) as f64);
        }
        exchange(&mut all, 21);
        // All end.
        for (process, tells) in all {
            drop(tells);
            assert!(process.finish(LIMIT).0.success());
        }
        soon("no connection is left", LIMIT, || {
            let told = world.here.within(|| zstack_control::ask(&control, 0).expect("an answer").len());
            (told == 0 && echo.open.load(Ordering::Relaxed) == 0).then_some(())
        });
        println!("afterwards: {:?}", held(&world));
        boards.iter().for_each(|b| drop(std::fs::remove_file(b)));
    });
}

/// A program whose threads all connect at once, before it has talked to anybody: all its connections end in zstackd.
#[test]
fn all_threads_of_a_program_are_served() {
    need_root!();
    bounded(LIMIT * 5, || {
        const N: usize = 64;
        let rounds = number("STORM_THREADS", 3);
        let world = World::culvert();
        let far = crate::far::Far::listen(&world.there, 8320);
        let path = std::env::temp_dir().join(format!("storm-threads-{}", std::process::id()));
        let control = format!("@culvert-zstackd-{}", world.zstackd.as_ref().expect("zstackd").0.id());
        for round in 0..rounds {
            let board = Board::make(&path);
            let (first, connections) = ((round * N) as u64, N as u64);
            let task = Task { role: "client", at: at(THERE[0], 8320), board: &path, first, connections, user: 0 };
            let process = Process::spawn(&mut task.command(&world));
            soon("connections", LIMIT, || (0..N).all(|i| board.row(i).get(Word::Stage) == GOES).then_some(()));
            let ports: Vec<_> = (0..N).map(|i| board.row(i).get(Word::Port)).collect();
            // Of two threads that write to the same place of the registry at the same time one may have done so in vain.
            soon("connections that end in zstackd", LIMIT, || {
                let told = world.here.within(|| zstack_control::ask(&control, 0).expect("an answer"));
                let served = told.iter().filter(|c| ports.contains(&c.local.port().into())).count();
                (served + 2 >= N).then_some(())
            });
            drop(process);
            for id in first..first + connections {
                far.seen.end_of(id);
            }
        }
        let _ = std::fs::remove_file(&path);
    });
}
