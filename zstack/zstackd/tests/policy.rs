//! Whose connections end in zstackd.

#[path = "../../port/tests/lab/mod.rs"]
mod lab;
mod world;

use lab::{Process, bounded, soon};
use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::Stdio;
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
