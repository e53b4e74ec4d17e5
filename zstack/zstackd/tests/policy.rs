//! Whose connections end in zstackd.

#[path = "../../port/tests/lab/mod.rs"]
mod lab;
mod world;

use lab::{Process, bounded, soon};
use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Barrier;
use std::thread;
use world::{HERE, LIMIT, THERE, World, at, connect, listen};

/// A control group that goes with the test.
struct Group(PathBuf);

impl Group {
    /// `None`: it says so where no groups can be made.
    fn new(name: &str) -> Option<Group> {
        let mounts = fs::read_to_string("/proc/self/mounts").expect("the mounts");
        let is = |line: &&str| line.split(' ').nth(2) == Some("cgroup2");
        let root = mounts.lines().rfind(is).and_then(|line| line.split(' ').nth(1));
        let path = root.map(|root| Path::new(root).join(name)).filter(|path| fs::create_dir(path).is_ok());
        if path.is_none() {
            eprintln!("SKIPPED: this test makes control groups of version 2, which cannot be done here");
        }
        path.map(Group)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // Not before the last process in it is gone.
        soon("the end of a control group", LIMIT, || fs::remove_dir(&self.0).ok());
    }
}

/// Runs a line of python in a group, or where the test is.
fn python(world: &World, group: Option<&Group>, line: &str) -> Process {
    let join = group.map(|group| format!("echo $$ > {}/cgroup.procs && ", group.0.display())).unwrap_or_default();
    let mut sh = world.here.command("sh");
    sh.args(["-c", &format!("{join}exec python3.11 -c \"import socket; {line}\"")]);
    Process::spawn(sh.stdin(Stdio::piped()).stdout(Stdio::piped()))
}

/// Whether zstackd stands in for the remote host in a connection, over which bytes have gone.
fn stands_in(world: &World, remote: u16, local: u16) -> bool {
    !world.here.run(&format!("ss -Htn src {} sport = :{remote} dport = :{local}", THERE[0])).is_empty()
}

/// Whether a connection that a program in this group opens ends in zstackd.
fn opens(world: &World, group: Option<&Group>) -> bool {
    let listener = listen(&world.there, at(THERE[0], 80));
    let line = format!("s=socket.create_connection(('{}',80)); s.send(s.recv(1)); s.recv(1)", THERE[0]);
    let _program = python(world, group, &line);
    let (mut server, from) = listener.accept().expect("a connection");
    server.write_all(b"x").expect("written");
    server.read_exact(&mut [0]).expect("read");
    stands_in(world, 80, from.port())
}

/// Whether a connection that a program in this group takes ends in zstackd. `port`: one that nobody was asked about just now, as answers
/// are believed for a while.
fn takes(world: &World, group: Option<&Group>, port: u16) -> bool {
    let line = format!("s=socket.create_server(('{}',{port})).accept()[0]; s.send(b'x'); s.recv(1)", HERE[0]);
    let _program = python(world, group, &line);
    let listens = || !world.here.run(&format!("ss -Hltn sport = :{port}")).is_empty();
    soon("a server", LIMIT, || listens().then_some(()));
    let mut client = connect(&world.there, at(HERE[0], port)).expect("a connection");
    client.read_exact(&mut [0]).expect("read");
    stands_in(world, client.local_addr().expect("an address").port(), port)
}

#[test]
fn control_groups_are_told_apart() {
    need_root!();
    bounded(LIMIT, || {
        let name = format!("zstackd-{}", std::process::id());
        let Some(group) = Group::new(&name) else { return };
        let within = Group::new(&format!("{name}/within")).expect("a group in a group");
        let other = Group::new(&format!("{name}-other")).expect("another group");
        let lines = format!("cgroups = [\"/{name}\", \"/{name}-later\"]");
        let world = World::split_with(lines.leak());
        let later = Group::new(&format!("{name}-later")).expect("a group that was not there when zstackd began");
        let all =
            [(None, false), (Some(&other), false), (Some(&group), true), (Some(&within), true), (Some(&later), true)];
        for (port, (group, ends)) in (90..).zip(all) {
            let name = group.map(|group| group.0.display());
            assert_eq!((opens(&world, group), takes(&world, group, port)), (ends, ends), "{name:?}");
        }
    });
}

/// Bytes that go each way on a connection: more than its buffers hold.
const BYTES: usize = 700 << 10;

/// What one end of a connection sends.
fn bytes_of(connection: usize, end: usize) -> impl Iterator<Item = u8> {
    (0..BYTES).map(move |at| (at.wrapping_mul(0x9e37_79b9) >> 13) as u8 ^ (2 * connection + end) as u8)
}

/// All connections carry all bytes both ways. Nobody reads before all write.
fn all_arrives(pairs: &[[TcpStream; 2]]) {
    let begin = Barrier::new(4 * pairs.len());
    thread::scope(|s| {
        for (connection, pair) in pairs.iter().enumerate() {
            for end in [0, 1] {
                let begin = &begin;
                let [mut own, mut other] = [&pair[end], &pair[1 - end]];
                s.spawn(move || {
                    let all: Vec<u8> = bytes_of(connection, end).collect();
                    begin.wait();
                    own.write_all(&all).expect("written");
                    own.shutdown(Shutdown::Write).expect("shut");
                });
                s.spawn(move || {
                    begin.wait();
                    let mut all = Vec::new();
                    other.read_to_end(&mut all).expect("read");
                    assert!(
                        all.len() == BYTES && bytes_of(connection, end).eq(all),
                        "connection {connection}, end {end}"
                    );
                });
            }
        }
    });
}

#[test]
fn connections_for_which_there_is_no_memory_are_the_kernels() {
    need_root!();
    bounded(LIMIT, || {
        // A connection has 16 KiB each way in any case, and a user half of the memory: that is sixteen.
        let world = World::split_with("buffer = 65536\nmemory = 1048576");
        let control = format!("@culvert-zstackd-{}", world.zstackd.as_ref().expect("zstackd").0.id());
        let split = || world.here.within(|| zstack_control::ask(&control, 0).expect("an answer").len());
        let out = || {
            let listener = listen(&world.there, at(THERE[0], 80));
            let client = connect(&world.here, at(THERE[0], 80)).expect("a connection");
            [client, listener.accept().expect("a connection").0]
        };
        let inward = || {
            let listener = listen(&world.here, at(HERE[1], 80));
            let client = connect(&world.there, at(HERE[1], 80)).expect("a connection");
            [client, listener.accept().expect("a connection").0]
        };
        let mut pairs: Vec<_> = (0..8).flat_map(|_| [out(), inward()]).collect();
        assert_eq!(split(), 16);
        pairs.extend((0..3).flat_map(|_| [out(), inward()]));
        assert_eq!(split(), 16);
        all_arrives(&pairs);
        drop(pairs);
        soon("the end of all connections", LIMIT, || (split() == 0).then_some(()));
        let _again = [out(), inward()];
        assert_eq!(split(), 2);
    });
}
