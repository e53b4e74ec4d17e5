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
#[cfg(feature = "dpdk")]
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
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

/// Connections carry all bytes both ways and end. What each worker has counted.
fn carried(mut world: World) -> Vec<BTreeMap<String, u64>> {
    let pairs = pairs(&world, CONNECTIONS);
    let control = format!("@culvert-zstackd-{}", world.zstackd.as_ref().expect("zstackd").0.id());
    let told = world.here.within(|| zstack_control::ask(&control, 0).expect("an answer"));
    let mut flows: Vec<_> = told.iter().map(|c| (c.local, c.remote)).collect();
    flows.sort();
    flows.dedup();
    assert_eq!((told.len(), flows.len()), (CONNECTIONS, CONNECTIONS), "each connection is told of once");
    thread::scope(|s| {
        for (connection, pair) in pairs.iter().enumerate() {
            pair.iter().enumerate().for_each(|(end, stream)| _ = s.spawn(move || exchange(stream, connection, end)));
        }
    });
    drop(pairs);
    let ended = || world.here.within(|| zstack_control::ask(&control, 0).expect("an answer").is_empty());
    soon("the end of all connections", LIMIT, || ended().then_some(()));
    counted(&mut world)
}

fn sum(workers: &[BTreeMap<String, u64>], name: &str) -> u64 {
    workers.iter().map(|worker| worker.get(name).copied().unwrap_or(0)).sum()
}

#[test]
fn both_workers_carry_connections_and_every_byte_arrives() {
    need_root!();
    bounded(LIMIT, || {
        let workers = carried(told(World::split_with(TWO)));
        let sum = |name| sum(&workers, name);
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

/// A packet socket that joins those of zstackd's port in their fanout, and reads nothing: what it has no room for rolls over to the others,
/// whose connection it may be or not.
#[cfg(feature = "dpdk")]
fn crowd(world: &World) -> std::os::fd::OwnedFd {
    use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
    const ROLLS_OVER: i32 =
        (libc::PACKET_FANOUT_HASH | libc::PACKET_FANOUT_FLAG_DEFRAG | libc::PACKET_FANOUT_FLAG_ROLLOVER) as i32;
    let (_, wire) = world.wire.as_ref().expect("a wire");
    let pid = world.zstackd.as_ref().expect("zstackd").0.id();
    wire.within(|| {
        let all = (libc::ETH_P_ALL as u16).to_be();
        // SAFETY: the name ends in a zero byte.
        let index = unsafe { libc::if_nametoindex(c"p0".as_ptr()) };
        // SAFETY: no memory is involved; the descriptor is new.
        let socket = unsafe { OwnedFd::from_raw_fd(libc::socket(libc::AF_PACKET, libc::SOCK_RAW, all.into())) };
        let set = |level, option, value: i32| {
            let value = (&raw const value).cast();
            // SAFETY: the kernel reads a number of this frame.
            let set = unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, value, 4) };
            assert_eq!(set, 0, "{}", std::io::Error::last_os_error());
        };
        set(libc::SOL_SOCKET, libc::SO_RCVBUF, 1);
        // SAFETY: zeroes are an address.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        (address.sll_family, address.sll_protocol, address.sll_ifindex) = (libc::AF_PACKET as u16, all, index as i32);
        let len = size_of_val(&address) as u32;
        // SAFETY: the kernel reads an address of this frame.
        let bound = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), len) };
        assert_eq!(bound, 0, "{}", std::io::Error::last_os_error());
        // As the driver names the group.
        set(libc::SOL_PACKET, libc::PACKET_FANOUT, ((pid ^ index) & 0xffff) as i32 | ROLLS_OVER << 16);
        socket
    })
}

/// A third of what arrives comes to a queue that is full, and from there to either of the two, and a sixth to the other one than what
/// programs send: all of it reaches its connection.
#[cfg(feature = "dpdk")]
#[test]
fn packets_that_come_to_the_wrong_worker_reach_their_connections() {
    need_root!();
    bounded(LIMIT, || {
        let world = told(World::over("af_packet", TWO));
        let _crowd = crowd(&world);
        // Until it is full.
        let sender = world.there.within(|| std::net::UdpSocket::bind(at(THERE[0], 9)).expect("a socket"));
        (1000..1200).for_each(|port| _ = sender.send_to(&[0; 1000], at(HERE[0], port)).expect("sent"));
        let workers = carried(world);
        assert_eq!(sum(&workers, "ended_in_order"), CONNECTIONS as u64, "{workers:?}");
        assert!(workers.iter().all(|worker| worker.get("handed_over").is_some_and(|n| *n > 0)), "{workers:?}");
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

/// What `zstackd check` says of a configuration: its exit status, and its standard error.
#[cfg(feature = "dpdk")]
fn check(port: &str, more: &str) -> (Option<i32>, String) {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Relaxed);
    let file = std::env::temp_dir().join(format!("zstackd-workers-{}-{count}.toml", std::process::id()));
    std::fs::write(&file, world::config(port, HERE, false, more)).expect("a configuration");
    let mut zstackd = std::process::Command::new(env!("CARGO_BIN_EXE_zstackd"));
    let out = zstackd.arg("check").arg("--config").arg(&file).output().expect("zstackd check");
    std::fs::remove_file(&file).expect("the configuration");
    (out.status.code(), String::from_utf8_lossy(&out.stderr).into_owned())
}

/// A port with fewer queues is told of, with what to write; one that says nothing of its queues has as many as there are workers.
#[cfg(feature = "dpdk")]
#[test]
fn check_compares_workers_and_queues() {
    let check = |port: &str| check(port, "workers = 3\nport-namespace = \"wire\"");
    for right in ["tap:w0", "dpdk:net_af_packet0,iface=p0", "dpdk:net_af_packet0,iface=p0,qpairs=3"] {
        assert_eq!(check(right), (Some(0), String::new()), "{right}");
    }
    for (wrong, remedy) in [
        ("dpdk:net_af_packet0,iface=p0,qpairs=1", "write qpairs=3"),
        ("dpdk:net_af_packet0,iface=p0,qpairs=2", "write qpairs=3"),
        ("dpdk:net_memif0,queues=2", "write queues=3"),
    ] {
        let (code, text) = check(wrong);
        assert!(code == Some(2) && text.contains("`workers` is 3") && text.contains(remedy), "{wrong}: {text}");
    }
}

/// With af_packet the kernel hears the same packets. In the programs' namespace it would answer them, beside zstackd.
#[cfg(feature = "dpdk")]
#[test]
fn check_tells_of_an_interface_on_which_the_programs_kernel_hears_the_same() {
    let (code, text) = check("dpdk:net_af_packet0,iface=eth7", "");
    assert_eq!(code, Some(2), "{text}");
    assert!(text.contains("ip link set eth7 netns wire") && text.contains("port-namespace"), "{text}");
    for right in ["dpdk:net_memif0", "dpdk:net_af_xdp0,iface=eth7", "dpdk:0000:01:00.0", "tap:w0"] {
        assert_eq!(check(right, ""), (Some(0), String::new()), "{right}");
    }
}
