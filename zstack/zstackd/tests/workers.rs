//! zstackd with two workers: connections are divided between them, what comes to the wrong one reaches its connection, and all of them are
//! one daemon to who asks, ends or kills it. Over a tap with two queues; over a port of DPDK's where the environment says so.

#[path = "../../port/tests/lab/mod.rs"]
mod lab;
mod world;

use lab::{Namespace, bounded, soon};
use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::Stdio;
use std::thread;
use world::{HERE, LIMIT, THERE, World, at, connect, listen};

const TWO: &str = "workers = 2";
/// Connections at the same time: that all of them have one worker is as likely as 2^-63.
const CONNECTIONS: usize = 64;
/// Bytes each way on each: more than a window.
const BYTES: usize = 400_000;

/// What one end of a connection sends.
fn bytes_of(connection: usize, end: usize) -> Vec<u8> {
    (0..BYTES).map(|at| (at.wrapping_mul(0x9e37_79b9) >> 13) as u8 ^ (2 * connection + end) as u8).collect()
}

/// Sends what this end sends, and compares what the other one has sent.
fn exchange(mut stream: &TcpStream, connection: usize, end: usize) {
    thread::scope(|s| {
        s.spawn(move || {
            let mut stream = stream;
            stream.write_all(&bytes_of(connection, end)).expect("written");
            stream.shutdown(Shutdown::Write).expect("shut");
        });
        let mut all = Vec::new();
        stream.read_to_end(&mut all).expect("read");
        assert!(all == bytes_of(connection, 1 - end), "connection {connection}, end {end}: {} bytes", all.len());
    });
}

fn pair(listener: &TcpListener, from: &Namespace) -> [TcpStream; 2] {
    let client = connect(from, listener.local_addr().expect("an address")).expect("a connection");
    let (server, peer) = listener.accept().expect("a connection");
    assert_eq!(peer, client.local_addr().expect("an address"));
    server.set_read_timeout(Some(LIMIT)).expect("a timeout");
    [client, server]
}

/// Connections in both directions, of both families.
fn pairs(world: &World, count: usize) -> Vec<[TcpStream; 2]> {
    let (here, there) = (&world.here, &world.there);
    let ways = [(here, there, THERE[0]), (here, there, THERE[1]), (there, here, HERE[0]), (there, here, HERE[1])];
    let listeners = ways.map(|(from, to, ip)| (listen(to, at(ip, 80)), from));
    (0..count).map(|n| pair(&listeners[n % 4].0, listeners[n % 4].1)).collect()
}

/// Ends zstackd in order, and returns what each worker has counted.
fn counted(world: &mut World) -> Vec<BTreeMap<String, u64>> {
    let mut zstackd = world.zstackd.take().expect("zstackd");
    let mut told = zstackd.0.stderr.take().expect("a pipe");
    let reader = thread::spawn(move || {
        let mut text = String::new();
        told.read_to_string(&mut text).map(|_| text).expect("text")
    });
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(zstackd.0.id() as i32), nix::sys::signal::Signal::SIGTERM)
        .expect("SIGTERM");
    let (status, _) = zstackd.finish(LIMIT);
    let text = reader.join().expect("text");
    assert!(status.success(), "{text}");
    let numbers = |line: &str| -> BTreeMap<String, u64> {
        let pairs = line.split(", ").filter_map(|pair| pair.split_once(' '));
        pairs.map(|(name, n)| (name.to_string(), n.parse().expect("a number"))).collect()
    };
    let lines = (0..2).filter_map(|n| text.lines().find_map(|l| Some(l.split_once(&format!("worker {n}: "))?.1)));
    let workers: Vec<_> = lines.map(numbers).collect();
    assert_eq!(workers.len(), 2, "{text}");
    workers
}

/// zstackd again, which tells more.
fn told(mut world: World) -> World {
    world.zstackd = None;
    world.start_telling(Stdio::piped(), Some("info"));
    world
}

#[test]
fn both_workers_carry_connections_and_every_byte_arrives() {
    need_root!();
    bounded(LIMIT, || {
        let mut world = told(World::split_with(TWO));
        let pairs = pairs(&world, CONNECTIONS);
        let control = format!("@culvert-zstackd-{}", world.zstackd.as_ref().expect("zstackd").0.id());
        let told = world.here.within(|| zstack_control::ask(&control, 0).expect("an answer"));
        let mut flows: Vec<_> = told.iter().map(|c| (c.local, c.remote)).collect();
        flows.sort();
        flows.dedup();
        assert_eq!((told.len(), flows.len()), (CONNECTIONS, CONNECTIONS), "each connection is told of once");
        thread::scope(|s| {
            for (connection, pair) in pairs.iter().enumerate() {
                pair.iter()
                    .enumerate()
                    .for_each(|(end, stream)| _ = s.spawn(move || exchange(stream, connection, end)));
            }
        });
        drop(pairs);
        let ended = || world.here.within(|| zstack_control::ask(&control, 0).expect("an answer").is_empty());
        soon("the end of all connections", LIMIT, || ended().then_some(()));
        let workers = counted(&mut world);
        let sum = |name: &str| workers.iter().map(|worker| worker.get(name).copied().unwrap_or(0)).sum::<u64>();
        for worker in &workers {
            for name in ["opened_outward", "opened_inward"] {
                assert!(worker.get(name).is_some_and(|n| *n > 0), "{name}: {workers:?}");
            }
        }
        assert_eq!((sum("opened_outward"), sum("opened_inward")), (CONNECTIONS as u64 / 2, CONNECTIONS as u64 / 2));
        assert_eq!(sum("ended_in_order"), CONNECTIONS as u64);
        assert_eq!((sum("stray"), sum("calls_failed"), sum("handed_over_lost")), (0, 0, 0), "{workers:?}");
    });
}

/// Neither a clean end nor silence.
#[test]
fn killed_it_resets_the_connections_of_both() {
    need_root!();
    bounded(LIMIT, || {
        let mut world = World::split_with(TWO);
        for _ in 0..2 {
            let pairs = pairs(&world, CONNECTIONS);
            world.zstackd.as_mut().expect("zstackd").kill();
            // The ends here: the remote host's hear nothing yet.
            for (n, [client, server]) in pairs.into_iter().enumerate() {
                let mut here = if n % 4 < 2 { client } else { server };
                let error = here.read(&mut [0]).expect_err("no end in order");
                assert_eq!(error.kind(), ErrorKind::ConnectionReset, "connection {n}");
            }
            assert!(!world.here.run("ip link").contains("cv0"));
            world.start();
        }
    });
}

/// A port is used again before its last connection is quite over, and refused connections are refused, whichever worker they come to.
#[test]
fn ports_are_used_again() {
    need_root!();
    bounded(LIMIT, || {
        let world = World::split_with(TWO);
        let listener = listen(&world.there, at(THERE[0], 80));
        for round in 0..200 {
            let from = at(HERE[0], 40_000 + round % 20);
            let client = world.here.within(|| {
                let socket =
                    socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
                socket.set_reuse_address(true).expect("SO_REUSEADDR");
                socket.bind(&from.into()).unwrap_or_else(|e| panic!("round {round}: {e}"));
                socket.connect(&at(THERE[0], 80).into()).unwrap_or_else(|e| panic!("round {round}: {e}"));
                TcpStream::from(socket)
            });
            let (mut server, peer) = listener.accept().expect("a connection");
            assert_eq!(peer, from);
            (&client).write_all(b"x").expect("written");
            server.read_exact(&mut [0]).expect("a byte");
            // The remote host ends first, so that TIME-WAIT is there.
            drop(server);
            assert_eq!((&client).read(&mut [0]).expect("the end"), 0);
            drop(client);
            let refused = connect(&world.here, at(THERE[1], 81)).expect_err("nobody listens");
            assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
        }
    });
}
