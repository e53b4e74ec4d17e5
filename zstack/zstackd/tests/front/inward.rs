//! Remote hosts connect to programs.

use crate::gate::{Gate, Verdict, connect_from, echo, wait, wanted};
use crate::lab::{Namespace, Process, bounded};
use crate::need_root;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::process::Stdio;
use std::time::Duration;
use zstackd::front::{self, Front};

fn idle(ns: &Namespace) -> Gate {
    Gate::new(ns, |_| Verdict::Silence, echo)
}

/// Waits until the connection stands, or has failed.
fn settled(socket: TcpStream) -> std::io::Result<TcpStream> {
    let mut one = libc::pollfd { fd: std::os::fd::AsRawFd::as_raw_fd(&socket), events: libc::POLLOUT, revents: 0 };
    // SAFETY: poll(2) reads and writes the struct, which lives through the call.
    assert_eq!(unsafe { libc::poll(&raw mut one, 1, 5000) }, 1, "the connection is not settled");
    match socket.take_error()? {
        Some(error) => Err(error),
        None => {
            socket.set_nonblocking(false)?;
            Ok(socket)
        }
    }
}

#[test]
fn many_clients() {
    need_root!();
    bounded(Duration::from_secs(60), || {
        let ns = Namespace::new();
        let gate = idle(&ns);
        let listeners = ns.within(|| ["0.0.0.0:80", "[fd01::1]:443"].map(|a| TcpListener::bind(a).expect("bind")));
        // Ports that only root may have, that programs choose, and that the kernel chooses from.
        for i in 0..20u16 {
            let port = [7, 1023, 2000, 33_000, 60_999, 65_535][usize::from(i) % 6];
            let (client, to, listener): (SocketAddr, SocketAddr, _) = if i.is_multiple_of(2) {
                (
                    format!("203.0.{i}.7:{port}").parse().expect("IPv4"),
                    "10.1.0.1:80".parse().expect("own"),
                    &listeners[0],
                )
            } else {
                let client = format!("[2001:db8:{i}::7]:{port}");
                (client.parse().expect("IPv6"), "[fd01::1]:443".parse().expect("own"), &listeners[1])
            };
            let mut inner = settled(gate.inward(&ns, client, to).expect("connect")).expect("connected");
            let (mut server, from) = listener.accept().expect("accept");
            assert_eq!(from, client);
            assert_eq!(server.peer_addr().expect("getpeername"), client);
            assert_eq!(server.local_addr().expect("getsockname"), to);
            assert_eq!((inner.local_addr().expect("own end"), inner.peer_addr().expect("peer")), (client, to));
            inner.write_all(b"request").expect("write");
            let mut request = [0; 7];
            server.read_exact(&mut request).expect("read");
            server.write_all(b"answer").expect("write");
            server.shutdown(Shutdown::Write).expect("shutdown");
            let mut answer = Vec::new();
            inner.read_to_end(&mut answer).expect("read");
            assert_eq!((&request, &*answer), (b"request", &b"answer"[..]));
            front::end_in_order(inner.as_fd()).expect("linger");
            drop(inner);
            assert_eq!(server.read(&mut [0]).expect("the end"), 0);
        }
        assert!(gate.seen.lock().expect("seen").segments.is_empty(), "no segment is seen on the tun");
    });
}

#[test]
fn refused_and_existing() {
    need_root!();
    bounded(Duration::from_secs(60), || {
        let ns = Namespace::new();
        let gate = idle(&ns);
        for (client, own) in [("203.0.113.7:40000", "10.1.0.1"), ("[2001:db8::7]:40000", "[fd01::1]")] {
            let client = client.parse().expect("a client");
            let to: SocketAddr = format!("{own}:81").parse().expect("an address");
            let refused = gate.inward(&ns, client, to).and_then(settled).expect_err("nobody listens");
            assert_eq!(refused.raw_os_error(), Some(libc::ECONNREFUSED), "{refused}");
            // The client may ask again, and ask another server, but not have one connection twice.
            let (first, second) = ns.within(|| {
                let second: SocketAddr = format!("{own}:82").parse().expect("an address");
                (TcpListener::bind(to).expect("bind"), TcpListener::bind(second).expect("bind"))
            });
            let one = gate.inward(&ns, client, to).and_then(settled).expect("connected");
            let two = gate.inward(&ns, client, second.local_addr().expect("address")).and_then(settled);
            let twice = gate.inward(&ns, client, to).expect_err("it exists");
            assert_eq!(twice.raw_os_error(), Some(libc::EADDRNOTAVAIL), "{twice}");
            assert_eq!(first.accept().expect("accept").1, client);
            assert_eq!(second.accept().expect("accept").1, client);
            drop((one, two.expect("connected")));
        }
        let mixed = gate.inward(&ns, "203.0.113.7:1".parse().expect("a"), "[fd01::1]:1".parse().expect("b"));
        assert_eq!(mixed.expect_err("two families").raw_os_error(), Some(libc::EAFNOSUPPORT));
        // From a thread that is elsewhere the connection would be one of another namespace.
        let elsewhere =
            gate.front.lane(0).connect_inward("203.0.113.7:1".parse().expect("a"), "10.1.0.1:81".parse().expect("b"));
        assert_eq!(elsewhere.expect_err("another namespace").kind(), std::io::ErrorKind::Other);
    });
}

/// The client's last connection, which zstackd's end or the program's has ended first, is in TIME_WAIT.
#[test]
fn again_after_time_wait() {
    need_root!();
    bounded(Duration::from_secs(60), || {
        let ns = Namespace::new();
        // A repeated last ACK would be answered with a reset, which would end TIME_WAIT early.
        ns.sysctl("ipv4/tcp_rfc1337", "1");
        let gate = idle(&ns);
        // Bound by connect(2), and by number.
        let ends = [("10.1.0.1", 40_000), ("10.1.0.1", 1_000), ("[fd01::1]", 40_000), ("[fd01::1]", 1_000)];
        // With timestamps the kernel lets a socket that is bound by number have an end in TIME_WAIT (tcp_twsk_unique).
        for (timestamps, own, port) in ["1", "0"].iter().flat_map(|t| ends.map(|(own, port)| (*t, own, port))) {
            ns.sysctl("ipv4/tcp_timestamps", timestamps);
            let to: SocketAddr = format!("{own}:80").parse().expect("an address");
            let client = if to.is_ipv4() { format!("203.0.113.7:{port}") } else { format!("[2001:db8::7]:{port}") };
            let client: SocketAddr = client.parse().expect("a client");
            let listener = ns.within(|| TcpListener::bind(to).expect("bind"));
            for ours_first in [true, false, true, true, false, false] {
                let inner = gate.inward(&ns, client, to).and_then(settled);
                let mut inner = inner.unwrap_or_else(|e| panic!("{client} -> {to}, timestamps {timestamps}: {e}"));
                let (mut server, from) = listener.accept().expect("accept");
                assert_eq!(from, client);
                front::end_in_order(inner.as_fd()).expect("linger");
                if ours_first {
                    inner.shutdown(Shutdown::Write).expect("shutdown");
                    assert_eq!(server.read(&mut [0]).expect("the end"), 0);
                    drop(server);
                    assert_eq!(inner.read(&mut [0]).expect("the end"), 0);
                } else {
                    server.shutdown(Shutdown::Write).expect("shutdown");
                    assert_eq!(inner.read(&mut [0]).expect("the end"), 0);
                    drop(inner);
                    assert_eq!(server.read(&mut [0]).expect("the end"), 0);
                }
                let states = ns.run("ss -tan state time-wait");
                assert!(states.contains(&client.to_string()), "one end is in TIME_WAIT: {states}");
            }
        }
    });
}

/// A program can connect from any port that the kernel chooses while clients have the same.
#[test]
fn ports_of_clients_are_no_ports_of_programs() {
    need_root!();
    bounded(Duration::from_secs(60), || {
        let ns = Namespace::new();
        ns.sysctl("ipv4/ip_local_port_range", "40000 40003");
        let gate = Gate::new(&ns, |_| Verdict::Hold(Duration::ZERO), echo);
        let listener = ns.within(|| TcpListener::bind("10.1.0.1:80").expect("bind"));
        let inner: Vec<TcpStream> = (40_000..40_004)
            .map(|port| {
                let client: SocketAddr = format!("203.0.113.7:{port}").parse().expect("a client");
                gate.inward(&ns, client, "10.1.0.1:80".parse().expect("own")).and_then(settled).expect("inward")
            })
            .collect();
        ns.within(|| {
            for remote in ["10.9.0.1:80", "10.9.0.2:80"] {
                let programs: Vec<TcpStream> =
                    (0..4).map(|_| TcpStream::connect(remote).expect("the kernel finds a port")).collect();
                drop(programs);
            }
            // The range may change.
            drop(inner);
            drop(listener);
        });
        ns.sysctl("ipv4/ip_local_port_range", "50000 50003");
        let listener = ns.within(|| TcpListener::bind("10.1.0.1:81").expect("bind"));
        let client = "203.0.113.7:40001".parse().expect("a client");
        let inner = gate.inward(&ns, client, "10.1.0.1:81".parse().expect("own")).and_then(settled);
        assert_eq!(listener.accept().expect("accept").1, client);
        drop(inner);
    });
}

/// The port of a client is nobody else's, whoever listens on its number here.
#[test]
fn client_ports_on_which_programs_listen() {
    need_root!();
    bounded(Duration::from_secs(60), || {
        let ns = Namespace::new();
        let gate = idle(&ns);
        for (any, own, client) in [("0.0.0.0", "10.1.0.1", "203.0.113.7"), ("[::]", "[fd01::1]", "[2001:db8::7]")] {
            // One that the kernel chooses from, and one that it does not.
            for port in [8080, 50_000] {
                let listener = ns.within(|| TcpListener::bind(format!("{any}:{port}")).expect("bind"));
                let (to, client) = (format!("{own}:{port}"), format!("{client}:{port}"));
                let (to, client): (SocketAddr, SocketAddr) =
                    (to.parse().expect("own"), client.parse().expect("a client"));
                let inner = gate.inward(&ns, client, to).and_then(settled);
                let _inner = inner.unwrap_or_else(|e| panic!("{client} -> {to}: {e}"));
                assert_eq!(listener.accept().expect("accept").1, client);
                // And the server can be started again meanwhile.
                drop(listener);
                ns.within(|| TcpListener::bind(format!("{any}:{port}")).expect("bind again"));
            }
        }
    });
}

/// Servers can be started on ports that connections to remote hosts have: with SO_REUSEADDR on any address, without it on zstackd's.
#[test]
fn servers_on_the_ports_of_remote_hosts() {
    need_root!();
    bounded(Duration::from_secs(60), || {
        let ns = Namespace::new();
        let gate = Gate::new(&ns, |_| Verdict::Hold(Duration::ZERO), echo);
        ns.within(|| {
            let _connection = TcpStream::connect("10.9.0.1:80").expect("connect");
            TcpListener::bind("0.0.0.0:80").expect("with SO_REUSEADDR, as std does");
            let socket = socket2::Socket::new(libc::AF_INET.into(), socket2::Type::STREAM, None).expect("a socket");
            let own: SocketAddr = "10.1.0.1:80".parse().expect("own");
            socket.bind(&own.into()).expect("without it");
            drop(socket);
            let socket = socket2::Socket::new(libc::AF_INET.into(), socket2::Type::STREAM, None).expect("a socket");
            let any: SocketAddr = "0.0.0.0:80".parse().expect("any");
            let error = socket.bind(&any.into()).expect_err("known not to work");
            assert_eq!(error.raw_os_error(), Some(libc::EADDRINUSE));
        });
        drop(gate);
    });
}

/// All as before when the reverse path filter is strict for all interfaces.
#[test]
fn strict_reverse_path_filter() {
    need_root!();
    bounded(Duration::from_secs(60), || {
        let ns = Namespace::new();
        ns.sysctl("ipv4/conf/all/rp_filter", "1");
        ns.sysctl("ipv4/conf/default/rp_filter", "1");
        let gate = Gate::new(&ns, |_| Verdict::Hold(Duration::ZERO), echo);
        ns.within(|| {
            let mut socket = TcpStream::connect("10.9.0.1:80").expect("connect");
            socket.write_all(b"x").expect("write");
            socket.read_exact(&mut [0]).expect("read");
            let listener = TcpListener::bind("0.0.0.0:81").expect("bind");
            // A network that is not served.
            let client = "203.0.113.7:4000".parse().expect("a client");
            let inner = gate.inward(&ns, client, "10.1.0.1:81".parse().expect("own")).and_then(settled);
            assert_eq!(listener.accept().expect("accept").1, client);
            drop(inner);
        });
    });
}

/// With the few capabilities that zstackd keeps all works, and the front can be removed and made again.
#[test]
fn without_other_rights() {
    need_root!();
    bounded(Duration::from_secs(60), || {
        let ns = Namespace::new();
        ns.within(|| {
            let front = Front::make(&wanted()).unwrap_or_else(|e| panic!("{e}"));
            front::drop_rights().unwrap_or_else(|e| panic!("{e}"));
            let caps = std::fs::read_to_string("/proc/thread-self/status").expect("status");
            let set = |name: &str| {
                let line = caps.lines().find(|l| l.starts_with(name)).expect("a set");
                u64::from_str_radix(line.split_whitespace().nth(1).expect("a value"), 16).expect("a number")
            };
            let kept = 1 << 10 | 1 << 12 | 1 << 13 | 1 << 39;
            assert_eq!((set("CapPrm:"), set("CapEff:"), set("CapBnd:")), (kept, kept, kept));
            assert_eq!((set("CapInh:"), set("CapAmb:"), set("NoNewPrivs:")), (0, 0, 1));
            let works = |front: &Front| {
                let listener = TcpListener::bind("10.1.0.1:0").expect("bind");
                let to = listener.local_addr().expect("address");
                for port in [1u16, 40_000] {
                    let client = SocketAddr::new("203.0.113.7".parse().expect("a client"), port);
                    let inner = front.lane(0).connect_inward(client, to).and_then(settled).expect("connected");
                    assert_eq!(listener.accept().expect("accept").1, client);
                    drop(inner);
                }
            };
            works(&front);
            drop(front);
            let front = Front::make(&wanted()).unwrap_or_else(|e| panic!("{e}"));
            works(&front);
            drop(front);
            assert_eq!(front::clear().expect("clear"), 0, "rules were left");
        });
    });
}

/// Packets that zstackd does not split pass: a whole raw connection of TCP either way, UDP and ICMP.
#[test]
fn raw_traffic() {
    use crate::packets::{self, ACK, FIN, SYN};
    need_root!();
    bounded(Duration::from_secs(60), || {
        let ns = Namespace::new();
        let front = ns.within(|| Front::make(&wanted())).unwrap_or_else(|e| panic!("{e}"));
        let mut buffer = vec![0; 2000];
        let mut known = Vec::new();
        // The next packet of the programs', but none that the kernel sends again because we are slow.
        let mut next = |front: &Front| -> Vec<u8> {
            loop {
                assert!(wait(&[front.lane(0).tun()], Duration::from_secs(5)), "no packet is on the tun");
                let len = front.lane(0).read(&mut buffer).expect("a packet");
                let packet = &buffer[..len];
                assert!(packets::sound(packet), "a wrong checksum");
                let name = packets::parse(packet).tcp().map(|s| (s.from, s.to, s.seq, s.flags, len));
                if name.is_none() || !known.contains(&name) {
                    known.push(name);
                    return packet.to_vec();
                }
            }
        };
        for (own, remote) in [("10.1.0.1", "10.9.0.1"), ("fd01::1", "fd09::1")] {
            let (own, remote): (std::net::IpAddr, std::net::IpAddr) =
                (own.parse().expect("own"), remote.parse().expect("remote"));
            let there = SocketAddr::new(remote, 80);
            // Out: SYN, SYN-ACK, ACK, data, FINs.
            let client = ns.within(|| {
                let socket = socket2::Socket::new(
                    if own.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 }.into(),
                    socket2::Type::STREAM,
                    None,
                );
                let socket = socket.expect("a socket");
                socket.set_nonblocking(true).expect("nonblocking");
                assert!(socket.connect(&there.into()).is_err());
                TcpStream::from(socket)
            });
            let syn = next(&front);
            let syn = packets::parse(&syn).tcp().expect("TCP");
            assert_eq!((syn.to, syn.flags & (SYN | ACK)), (there, SYN));
            let here = syn.from;
            front.lane(0).write(&packets::segment(there, here, 1000, syn.seq + 1, SYN | ACK, &[])).expect("SYN-ACK");
            let ack = packets::parse(&next(&front)).tcp().expect("TCP");
            assert_eq!((ack.from, ack.flags), (here, ACK));
            let mut client = settled(client).expect("connected");
            assert_eq!(client.peer_addr().expect("getpeername"), there);
            client.write_all(b"hello").expect("write");
            let data = next(&front);
            assert!(data.ends_with(b"hello"));
            front.lane(0).write(&packets::segment(there, here, 1001, syn.seq + 6, ACK, b"world")).expect("data");
            let mut world = [0; 5];
            client.read_exact(&mut world).expect("read");
            assert_eq!(&world, b"world");
            assert_eq!(packets::parse(&next(&front)).tcp().expect("TCP").flags, ACK);
            drop(client);
            let fin = packets::parse(&next(&front)).tcp().expect("TCP");
            assert_eq!(fin.flags, FIN | ACK);
            front
                .lane(0)
                .write(&packets::segment(there, here, 1006, fin.seq + 1, packets::RST | ACK, &[]))
                .expect("RST");

            // In: the answers leave by the tun, whatever the client's address.
            let far: SocketAddr =
                if own.is_ipv4() { "198.51.100.1:5000" } else { "[2001:db8::1]:5000" }.parse().expect("far");
            let listener = ns.within(|| TcpListener::bind(SocketAddr::new(own, 0)).expect("bind"));
            let to = listener.local_addr().expect("address");
            front.lane(0).write(&packets::segment(far, to, 7, 0, SYN, &[])).expect("SYN");
            let answer = packets::parse(&next(&front)).tcp().expect("TCP");
            assert_eq!((answer.from, answer.to, answer.flags), (to, far, SYN | ACK));
            front.lane(0).write(&packets::segment(far, to, 8, answer.seq + 1, ACK, &[])).expect("ACK");
            let (server, from) = listener.accept().expect("accept");
            assert_eq!(from, far);
            front.lane(0).write(&packets::segment(far, to, 8, answer.seq + 1, packets::RST, &[])).expect("RST");
            drop((server, listener));
            // A port on which nobody listens: the kernel's own reset.
            front.lane(0).write(&packets::segment(far, to, 7, 0, SYN, &[])).expect("SYN");
            let answer = packets::parse(&next(&front)).tcp().expect("TCP");
            assert_eq!((answer.from, answer.to, answer.flags), (to, far, packets::RST | ACK), "{answer:?}");

            // UDP, ping from there, ping from here.
            let socket = ns.within(|| std::net::UdpSocket::bind(SocketAddr::new(own, 53)).expect("bind"));
            let name = socket.local_addr().expect("getsockname");
            socket.send_to(b"question", far).expect("send");
            let packet = next(&front);
            assert_eq!(packets::parse(&packet).udp(), Some((name, far, &b"question"[..])));
            front.lane(0).write(&packets::datagram(far, name, b"answer")).expect("an answer");
            let mut answer = [0; 10];
            assert_eq!(socket.recv_from(&mut answer).expect("receive"), (6, far));
            front.lane(0).write(&packets::ping(far.ip(), own, 77)).expect("a ping");
            let pong = next(&front);
            let pong = packets::parse(&pong);
            assert_eq!((pong.source, pong.destination), (own, far.ip()));
            assert_eq!((pong.payload[0], &pong.payload[4..6]), (if own.is_ipv4() { 0 } else { 129 }, &[0, 77][..]));
            let ping =
                Process::spawn(ns.command("ping").args(["-c1", "-W5", &remote.to_string()]).stdout(Stdio::null()));
            let pong = packets::parse(&next(&front)).pong().expect("an echo request");
            front.lane(0).write(&pong).expect("a pong");
            assert!(ping.finish(Duration::from_secs(6)).0.success(), "ping {remote}");
        }
        assert_eq!(front.turns().turned, 0);
    });
}

/// A connection is reset when zstackd's socket is dropped.
#[test]
fn dropped_without_an_end() {
    need_root!();
    bounded(Duration::from_secs(60), || {
        let ns = Namespace::new();
        let gate = Gate::new(&ns, |_| Verdict::Hold(Duration::ZERO), drop);
        ns.within(|| {
            for (own, to) in [("10.1.0.1:4000", "10.9.0.1:80"), ("[fd01::1]:4000", "[fd09::1]:80")] {
                let socket = connect_from(own.parse().expect("own"), to.parse().expect("remote"));
                let error = match socket {
                    Ok(mut socket) => socket.read(&mut [0]).expect_err("a reset"),
                    Err(error) => error,
                };
                assert_eq!(error.raw_os_error(), Some(libc::ECONNRESET), "{to}: {error}");
            }
        });
        drop(gate);
    });
}
