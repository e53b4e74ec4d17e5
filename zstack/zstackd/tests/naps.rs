//! zstackd naps while many connections have something for it all the time, and is killed in such a nap: nobody waits for what it would have
//! looked at next.

// kill(2).
#![allow(unsafe_code)]

#[path = "../../port/tests/lab/mod.rs"]
mod lab;
mod world;

use lab::{Process, bounded, soon};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::process::Stdio;
use std::thread;
use world::{HERE, LIMIT, World, at};

/// Answers on each connection what it is sent, and says how a connection has ended.
const SERVER: &str = "
import errno, selectors, socket
listener = socket.create_server(('', 80), backlog=100)
ready = selectors.DefaultSelector()
ready.register(listener, selectors.EVENT_READ)
print('listens', flush=True)
while True:
    for key, _ in ready.select():
        s = key.fileobj
        if s is listener:
            ready.register(s.accept()[0], selectors.EVENT_READ)
            continue
        try:
            data = s.recv(64)
            s.sendall(data)
            end = '' if data else 'FIN'
        except OSError as e:
            end = errno.errorcode[e.errno]
        if end:
            ready.unregister(s)
            s.close()
            print(end, flush=True)
";

const CONNECTIONS: usize = 50;

/// How often zstackd has napped.
fn naps(world: &World) -> u64 {
    let details = world.details();
    let mut words = details.split_ascii_whitespace();
    words.find(|word| *word == "naps").and_then(|_| words.next()?.trim_end_matches(',').parse().ok()).unwrap_or(0)
}

/// Asks on all connections, and reads all answers, until one has none.
fn ask(mut connections: Vec<TcpStream>) {
    let mut answer = [0; 64];
    loop {
        for stream in &mut connections {
            if stream.write_all(&[7; 64]).is_err() {
                return;
            }
        }
        for stream in &mut connections {
            if stream.read_exact(&mut answer).is_err() {
                return;
            }
        }
    }
}

/// Stops the process in a nap of one of its threads. False: none was in one.
fn stopped_in_a_nap(pid: u32) -> bool {
    // SAFETY: a child of this process that nobody has waited for.
    let signal = |signal| assert_eq!(unsafe { libc::kill(pid as i32, signal) }, 0);
    signal(libc::SIGSTOP);
    let threads = || std::fs::read_dir(format!("/proc/{pid}/task")).expect("threads").flatten();
    let read = |path: std::path::PathBuf, name| std::fs::read_to_string(path.join(name)).unwrap_or_default();
    soon("all are stopped", LIMIT, || {
        threads().all(|t| read(t.path(), "stat").rsplit(')').next().is_some_and(|s| s.starts_with(" T"))).then_some(())
    });
    let call = format!("{} ", libc::SYS_clock_nanosleep);
    let naps = threads().any(|t| read(t.path(), "syscall").starts_with(&call));
    if !naps {
        signal(libc::SIGCONT);
    }
    naps
}

#[test]
fn killed_in_a_nap_it_leaves_nobody_waiting() {
    need_root!();
    bounded(LIMIT, || {
        let mut world = World::culvert();
        let mut server = Process::spawn(world.run_here("python3.11").args(["-c", SERVER]).stdout(Stdio::piped()));
        let mut lines = BufReader::new(server.0.stdout.take().expect("a pipe")).lines();
        let mut says = move || lines.next().expect("a line").expect("a line");
        assert_eq!(says(), "listens");
        for _ in 0..2 {
            let connections: Vec<_> = (0..CONNECTIONS)
                .map(|_| world::connect(&world.there, at(HERE[0], 80)).expect("a connection"))
                .collect();
            let kept: Vec<_> = connections.iter().map(|stream| stream.try_clone().expect("a descriptor")).collect();
            let before = naps(&world);
            let asker = thread::spawn(move || ask(connections));
            soon("naps", LIMIT, || (naps(&world) > before + 20).then_some(()));
            let zstackd = world.zstackd.as_mut().expect("zstackd");
            soon("a nap", LIMIT, || stopped_in_a_nap(zstackd.0.id()).then_some(()));
            zstackd.kill();
            for _ in 0..CONNECTIONS {
                assert_eq!(says(), "ECONNRESET");
            }
            // Of the remote host's end nobody is left who could tell it.
            kept.iter().for_each(|stream| drop(stream.shutdown(Shutdown::Both)));
            asker.join().expect("who asks");
            drop(world.zstackd.take());
            world.start();
        }
        server.kill();
    });
}
