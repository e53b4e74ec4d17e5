//! What is other than on a tap when zstackd's port is one of DPDK's: two zstackds whose wire is memory, a death of the process, and a
//! device that is taken away. The tests of the other files run over such a port where the environment says so: see `World::split`.

#[path = "../../port/tests/lab/mod.rs"]
mod lab;
mod world;

use lab::{Namespace, Process, bounded, soon};
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::Stdio;
use world::{HERE, LIMIT, THERE, World, at, config, connect, listen, run, serves, stat, zstackd};

/// Sends bytes and has them back.
fn exchange(client: &mut TcpStream, server: &mut TcpStream) {
    let mut back = [0; 5];
    client.write_all(b"there").expect("written");
    server.read_exact(&mut back).expect("bytes");
    server.write_all(&back).expect("written");
    client.read_exact(&mut back).expect("bytes");
    assert_eq!(&back, b"there");
}

/// A connection from a namespace to a listener in another, over which bytes have gone.
fn connection(from: &Namespace, to: &Namespace, ip: &str) -> (TcpStream, TcpStream) {
    let listener = listen(to, at(ip, 80));
    let mut client = soon("a connection", LIMIT, || connect(from, at(ip, 80)).ok());
    let (mut server, _) = listener.accept().expect("a connection");
    server.set_read_timeout(Some(LIMIT)).expect("a timeout");
    exchange(&mut client, &mut server);
    (client, server)
}

/// It broke off, and did not end in order.
fn is_reset(stream: &mut TcpStream) {
    let error = stream.read(&mut [0; 5]).expect_err("no end in order");
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

/// Packet sockets of a namespace, and what DPDK makes of files for processes.
fn traces(wire: &Namespace) -> (usize, Vec<PathBuf>) {
    let packet = wire.within(|| std::fs::read_to_string("/proc/thread-self/net/packet").expect("packet sockets"));
    let list = |dir: &str| std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
    let files = ["/var/run/dpdk", "/tmp/dpdk", "/dev/hugepages"].into_iter().flat_map(list).collect();
    (packet.lines().count() - 1, files)
}

#[test]
fn killed_it_leaves_nothing_and_can_begin_again() {
    need_root!();
    bounded(LIMIT, || {
        let mut world = World::over("af_packet", "");
        let rules = |world: &World| world.here.run("ip rule") + &world.here.run("ip -6 rule");
        let before = rules(&world);
        for _ in 0..2 {
            let (mut client, mut server) = connection(&world.here, &world.there, THERE[0]);
            let (_, wire) = world.wire.as_ref().expect("a wire");
            assert_eq!(traces(wire).0, 1);
            world.zstackd.as_mut().expect("zstackd").kill();
            is_reset(&mut client);
            assert_eq!(traces(wire), (0, vec![]));
            assert!(!world.here.run("ip link").contains("cv0"));
            world.start();
            assert_eq!(rules(&world), before);
            // It knows nothing of the connection, and neither does the program's kernel, which says so.
            server.write_all(b"more").expect("written");
            is_reset(&mut server);
        }
        connection(&world.there, &world.here, HERE[1]);
    });
}

#[test]
fn with_the_device_it_ends_and_says_so() {
    need_root!();
    bounded(LIMIT, || {
        let mut world = World::over("af_packet", "");
        world.zstackd = None;
        world.start_with(Stdio::piped());
        let (mut client, _server) = connection(&world.here, &world.there, THERE[0]);
        let (mut inward, _program) = connection(&world.there, &world.here, HERE[0]);
        let told = world.details();
        let port = told.lines().next().expect("a line");
        assert!(
            port.starts_with("port: DPDK") && port.contains("pool pinned external buffers in memory of ours"),
            "{port}"
        );
        let (_, wire) = world.wire.as_ref().expect("a wire");
        wire.run("ip link del p0");
        is_reset(&mut client);
        let mut zstackd = world.zstackd.take().expect("zstackd");
        let mut told = zstackd.0.stderr.take().expect("a pipe");
        let (status, _) = zstackd.finish(LIMIT);
        let mut text = String::new();
        told.read_to_string(&mut text).expect("text");
        assert_eq!(status.code(), Some(1), "{text}");
        assert_eq!(text.trim_end(), "zstackd: the port is gone: its device was removed, or went down for good");
        // The remote host hears nothing more, as from a host whose card was taken out.
        inward.set_nonblocking(true).expect("a flag");
        assert_eq!(inward.read(&mut [0]).expect_err("nothing").kind(), ErrorKind::WouldBlock);
        assert!(!world.here.run("ip link").contains("cv0") && !world.here.run("ip rule").contains("cv0"));
    });
}

/// The kernel of the port's namespace uses the interface as well, and its routes change.
#[test]
fn routes_are_the_kernels() {
    need_root!();
    bounded(LIMIT, || {
        let world = World::over("af_packet", "follow-routes = true");
        let (_, wire) = world.wire.as_ref().expect("a wire");
        let errno = |ip| connect(&world.here, at(ip, 80)).err().and_then(|e| e.raw_os_error());
        world.there.run("ip addr add 10.5.0.1/32 dev lo");
        world.there.run("ip addr add 10.1.0.4/24 dev w0");
        world.there.run("ip -6 addr add fd00:5::1/128 dev lo nodad");
        assert_eq!(errno("10.5.0.1"), Some(libc::ENETUNREACH), "no route leads there yet");
        wire.run("ip addr add 10.1.0.3/24 dev p0");
        wire.run("ip route add 10.5.0.0/16 via 10.1.0.2");
        let (mut client, mut server) = connection(&world.here, &world.there, "10.5.0.1");
        // A router of IPv6 has an address of its link.
        let links = world.there.run("ip -6 -o addr show dev w0 scope link");
        let router = links.split_whitespace().nth(3).and_then(|ip| ip.split_once('/')).expect("an address").0;
        wire.run(&format!("ip -6 route add fd00:5::/64 via {router} dev p0"));
        connection(&world.here, &world.there, "fd00:5::1");
        wire.run("ip route del 10.5.0.0/16");
        soon("no route any more", LIMIT, || (errno("10.5.0.1") == Some(libc::ENETUNREACH)).then_some(()));
        // What was there goes on by another router.
        server.write_all(b"late").expect("written");
        wire.run("ip route add default via 10.1.0.4 metric 7");
        client.read_exact(&mut [0; 4]).expect("bytes");
        exchange(&mut client, &mut server);
        connection(&world.here, &world.there, "10.5.0.1");
    });
}

/// A program under culvert at either end, and no kernel between them.
#[test]
fn two_zstackds_over_memif() {
    need_root!();
    bounded(LIMIT, || {
        let place = std::env::temp_dir().join(format!("zstackd-memif-{}", std::process::id()));
        std::fs::create_dir_all(&place).expect("a directory");
        let (here, there) = (Namespace::new(), Namespace::new());
        let port = |role: &str, n: u32| {
            let socket = place.join("socket");
            let socket = socket.display();
            format!(
                "dpdk:net_memif0,role={role},id=0,socket={socket},socket-abstract=no,mac=02:00:00:00:00:0{n},memory=none"
            )
        };
        let start = |namespace: &Namespace, role: &str, n: u32, addresses| {
            let process = Process::spawn(&mut zstackd(namespace, true, &config(&port(role, n), addresses, true, "")));
            serves(namespace);
            process
        };
        let mut far = start(&there, "server", 2, THERE);
        let near = start(&here, "client", 1, HERE);

        let bytes: Vec<u8> = (0..8u32 << 20).map(|i| (i ^ i >> 8 ^ i >> 16) as u8).collect();
        std::fs::write(place.join("file"), &bytes).expect("a file");
        let serve = || {
            let mut server = run(&there, "python3.11");
            server.args(["-m", "http.server", "80", "--bind", "::", "--directory"]).arg(&place);
            Process::spawn(server.stdout(Stdio::null()).stderr(Stdio::null()))
        };
        let fetch = |ip: &str| {
            let mut curl = run(&here, "curl");
            let out = curl.args(["-sf", "--max-time", "20", &format!("http://{ip}/file")]).output().expect("curl");
            (out.status.success(), out.stdout)
        };
        let _server = serve();
        for ip in ["10.1.0.2", "[fd00:1::2]"] {
            soon("a server", LIMIT, || fetch(ip).0.then_some(()));
            assert!(fetch(ip) == (true, bytes.clone()), "the file comes whole from {ip}");
        }
        // One that goes on and on is seen while it does.
        let python = |namespace: &Namespace, line: &str| {
            let mut python = run(namespace, "python3.11");
            Process::spawn(python.args(["-c", line]).stdout(Stdio::piped()))
        };
        let line =
            "import socket\nc=socket.create_server(('10.1.0.2',90)).accept()[0]\nwhile True: c.sendall(c.recv(9))";
        let _echo = python(&there, line);
        soon("a server", LIMIT, || (!there.run("ss -Hltn sport = :90").is_empty()).then_some(()));
        let line = "import socket\ns=socket.create_connection(('10.1.0.2',90))\ntry:\n while s.send(b'x'): s.recv(9)\n\
                    except ConnectionResetError: print('reset')";
        let client = python(&here, line);
        let seen = |namespace: &Namespace| {
            let is = |l: &&str| l.contains("on the wire (net_memif): established");
            stat(namespace).lines().find(is).map(str::to_owned)
        };
        for namespace in [&here, &there] {
            soon("the connection in culvert stat", LIMIT, || seen(namespace));
        }
        // The other end of the wire is killed, and with it goes this one's device.
        far.kill();
        let (status, told) = client.finish(LIMIT);
        assert_eq!((status.success(), told.as_str()), (true, "reset\n"));
        let (status, _) = near.finish(LIMIT);
        assert_eq!(status.code(), Some(1), "it ends, as its device is gone");
        // Both begin again, at the same socket.
        let _far = start(&there, "server", 2, THERE);
        let _near = start(&here, "client", 1, HERE);
        soon("the way through both", LIMIT, || fetch("10.1.0.2").0.then_some(()));
        std::fs::remove_dir_all(&place).expect("the directory");
    });
}
