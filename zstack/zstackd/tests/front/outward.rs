//! Programs connect to remote hosts.

use crate::gate::{Gate, Verdict, connect_from, echo, wait, wanted};
use crate::lab::{Namespace, bounded, soon};
use crate::need_root;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd};
use std::thread;
use std::time::{Duration, Instant};
use zstackd::front::{self, Front};

const HOLD: Duration = Duration::from_millis(60);

/// A nonblocking socket whose connect(2) has begun, with its error.
fn begin(to: SocketAddr) -> (TcpStream, i32) {
    let family = if to.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    let socket = socket2::Socket::new(family.into(), socket2::Type::STREAM, None).expect("a socket");
    socket.set_nonblocking(true).expect("nonblocking");
    let error = socket.connect(&to.into()).map_or_else(|e| e.raw_os_error().expect("errno"), |()| 0);
    (socket.into(), error)
}

fn writable(socket: &TcpStream, limit: Duration) -> bool {
    let mut one = libc::pollfd { fd: socket.as_raw_fd(), events: libc::POLLOUT, revents: 0 };
    // SAFETY: poll(2) reads and writes the struct, which lives through the call.
    unsafe { libc::poll(&raw mut one, 1, limit.as_millis() as i32) > 0 }
}

#[test]
fn many_remote_ends() {
    need_root!();
    bounded(Duration::from_secs(60), || {
        let ns = Namespace::new();
        let gate = Gate::new(&ns, |_| Verdict::Hold(HOLD), echo);
        let remotes: Vec<SocketAddr> = (0..50u16)
            .map(|i| match i % 2 {
                0 => format!("10.9.{i}.{}:{}", i + 1, 1 + 1300 * i).parse().expect("IPv4"),
                _ => format!("[fd09::{i}:1]:{}", 65_535 - 1300 * i).parse().expect("IPv6"),
            })
            .collect();
        ns.within(|| {
            let began = Instant::now();
            let mut sockets: Vec<TcpStream> = Vec::new();
            for remote in &remotes {
                let (socket, error) = begin(*remote);
                assert_eq!(error, libc::EINPROGRESS, "{remote}");
                sockets.push(socket);
            }
            assert!(!writable(&sockets[49], Duration::ZERO), "connected before the remote host has answered");
            for (socket, remote) in sockets.iter_mut().zip(&remotes) {
                assert!(writable(socket, Duration::from_secs(5)), "{remote} is not connected");
                assert!(began.elapsed() >= HOLD, "{remote} is connected too early");
                assert_eq!(socket.take_error().expect("SO_ERROR").map(|e| e.to_string()), None, "{remote}");
                assert_eq!(socket.peer_addr().expect("getpeername"), *remote);
                let own = if remote.is_ipv4() { "10.1.0.1" } else { "fd01::1" };
                assert_eq!(socket.local_addr().expect("getsockname").ip().to_string(), own);
                socket.set_nonblocking(false).expect("blocking");
                for i in 0..10u8 {
                    socket.write_all(&[i; 1000]).expect("write");
                    let mut back = [0; 1000];
                    socket.read_exact(&mut back).expect("read");
                    assert_eq!(back, [i; 1000]);
                }
            }
            for (socket, remote) in sockets.iter_mut().zip(&remotes) {
                socket.shutdown(std::net::Shutdown::Write).expect("shutdown");
                assert_eq!(socket.read(&mut [0]).expect("the end"), 0, "{remote}");
                let own = socket.local_addr().expect("getsockname");
                assert_eq!(gate.count(own, *remote), 1, "only the SYN is seen of {own} -> {remote}");
                assert!(gate.seen.lock().expect("seen").accepted.contains(&(own, *remote)), "{own} -> {remote}");
            }
        });
        assert_eq!(gate.front.turns().out, 50);
        assert!(gate.front.turns().turned >= 50 * 12, "{:?}", gate.front.turns());
    });
}

/// Bytes that repeat after a number of them that no length of a segment or a buffer divides.
fn pattern() -> Vec<u8> {
    (0..1_000_003u64).map(|at| (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect()
}

fn send_pattern(mut to: impl Write, len: usize) {
    let pattern = pattern();
    let mut sent = 0;
    while sent < len {
        let all = &pattern[sent % pattern.len()..];
        sent += to.write(&all[..all.len().min(len - sent)]).expect("write");
    }
}

fn check_pattern(mut from: impl Read, len: usize) {
    let (pattern, mut chunk) = (pattern(), vec![0; 256 << 10]);
    let mut at = 0;
    loop {
        let n = from.read(&mut chunk).expect("read");
        if n == 0 {
            break;
        }
        let mut got = &chunk[..n];
        while !got.is_empty() {
            let right = &pattern[at % pattern.len()..];
            let part = right.len().min(got.len());
            assert!(got[..part] == right[..part], "other bytes after {at}");
            got = &got[part..];
            at += part;
        }
    }
    assert_eq!(at, len);
}

#[test]
fn bulk_both_ways() {
    need_root!();
    const LEN: usize = 100_000_000;
    bounded(Duration::from_secs(120), || {
        let ns = Namespace::new();
        let gate = Gate::new(
            &ns,
            |_| Verdict::Hold(Duration::ZERO),
            |accepted| {
                let socket = accepted.socket;
                socket.set_nonblocking(false).expect("blocking");
                thread::scope(|s| {
                    s.spawn(|| check_pattern(&socket, LEN));
                    send_pattern(&socket, LEN);
                    socket.shutdown(Shutdown::Write).expect("shutdown");
                });
                front::end_in_order(socket.as_fd()).expect("linger");
            },
        );
        for remote in ["10.9.0.1:5201", "[fd09::1]:5201"] {
            let remote: SocketAddr = remote.parse().expect("an address");
            let began = Instant::now();
            let before = gate.front.turns();
            ns.within(|| {
                let socket = TcpStream::connect(remote).expect("connect");
                thread::scope(|s| {
                    s.spawn(|| {
                        send_pattern(&socket, LEN);
                        socket.shutdown(Shutdown::Write).expect("shutdown");
                    });
                    check_pattern(&socket, LEN);
                });
                assert_eq!(gate.count(socket.local_addr().expect("getsockname"), remote), 1);
            });
            let turned = gate.front.turns().turned - before.turned;
            println!("{remote}: 2 x 100 MB in {:?}, {turned} packets turned", began.elapsed());
            // 100 MB in MTU-sized packets would be 69,000 of data, and as many ACKs as half of that.
            assert!(turned < 40_000, "packets are cut before they are turned round: {turned}");
        }
    });
}

#[test]
fn refused_and_unreachable() {
    need_root!();
    bounded(Duration::from_secs(60), || {
        let ns = Namespace::new();
        let cases = [
            ("10.9.0.1:1", Verdict::Refuse, libc::ECONNREFUSED),
            ("10.9.0.1:2", Verdict::Unreachable(3, 0), libc::ENETUNREACH),
            ("10.9.0.1:3", Verdict::Unreachable(3, 1), libc::EHOSTUNREACH),
            ("10.9.0.1:4", Verdict::Unreachable(3, 3), libc::ECONNREFUSED),
            ("10.9.0.1:5", Verdict::Unreachable(3, 9), libc::ENETUNREACH),
            ("10.9.0.1:6", Verdict::Unreachable(3, 13), libc::EHOSTUNREACH),
            ("[fd09::1]:7", Verdict::Refuse, libc::ECONNREFUSED),
            ("[fd09::1]:8", Verdict::Unreachable(1, 0), libc::ENETUNREACH),
            ("[fd09::1]:9", Verdict::Unreachable(1, 1), libc::EACCES),
            ("[fd09::1]:10", Verdict::Unreachable(1, 3), libc::EHOSTUNREACH),
            ("[fd09::1]:11", Verdict::Unreachable(1, 4), libc::ECONNREFUSED),
        ];
        let verdicts = cases.map(|c| c.1);
        let gate = Gate::new(&ns, move |syn| verdicts[usize::from(syn.to.port()) - 1], echo);
        ns.within(|| {
            for (remote, verdict, errno) in cases {
                let began = Instant::now();
                let error = TcpStream::connect(remote).expect_err(remote);
                assert_eq!(error.raw_os_error(), Some(errno), "{remote} {verdict:?}: {error}");
                assert!(began.elapsed() < Duration::from_millis(500), "{remote}: {:?}", began.elapsed());
            }
        });
        assert_eq!(gate.seen.lock().expect("seen").accepted, []);
        assert_eq!(gate.front.turns().turned, 0);
    });
}

/// A host that does not answer: the kernel asks again, and the gate sees it.
#[test]
fn silence() {
    need_root!();
    bounded(Duration::from_secs(60), || {
        let ns = Namespace::new();
        let gate = Gate::new(&ns, |_| Verdict::Silence, echo);
        let remote = "10.9.0.1:80".parse().expect("an address");
        let (socket, error) = ns.within(|| begin(remote));
        assert_eq!(error, libc::EINPROGRESS);
        let own = socket.local_addr().expect("getsockname");
        soon("the SYN again", Duration::from_secs(5), || (gate.count(own, remote) == 2).then_some(()));
        assert!(!writable(&socket, Duration::ZERO));
        drop(socket);
        assert_eq!(gate.front.turns().turned, 0);
    });
}

/// A port that is used again while zstackd's end of the last connection is in TIME_WAIT.
#[test]
fn port_again_after_our_time_wait() {
    need_root!();
    bounded(Duration::from_secs(60), || {
        let ns = Namespace::new();
        // A repeated last ACK would be answered with a reset, which would end TIME_WAIT early.
        ns.sysctl("ipv4/tcp_rfc1337", "1");
        // It ends the connections first.
        let gate = Gate::new(
            &ns,
            |_| Verdict::Hold(Duration::from_millis(5)),
            |accepted| {
                accepted.socket.set_nonblocking(false).expect("blocking");
                front::end_in_order(accepted.socket.as_fd()).expect("linger");
                accepted.socket.shutdown(Shutdown::Write).expect("shutdown");
                assert_eq!((&accepted.socket).read(&mut [0]).expect("the program's end"), 0);
            },
        );
        for (own, remote) in [("10.1.0.1:40000", "10.9.0.1:80"), ("[fd01::1]:40000", "[fd09::1]:80")] {
            let (own, remote) = (own.parse().expect("an address"), remote.parse().expect("an address"));
            for round in 1..=3 {
                let mut socket = ns.within(|| connect_from(own, remote)).expect("connect");
                assert_eq!(socket.read(&mut [0]).expect("the end"), 0);
                drop(socket);
                assert_eq!(gate.count(own, remote), round, "SYNs of {own} -> {remote}");
                let end = Instant::now() + Duration::from_secs(10);
                while !ns.run("ss -tanH state time-wait").contains(&format!("{remote} ")) {
                    assert!(Instant::now() < end, "no TIME_WAIT at the remote end: {}", ns.run("ss -tanoe"));
                    thread::sleep(Duration::from_millis(10));
                }
            }
        }
    });
}

/// A port that is used again while the program's end of the last connection is in TIME_WAIT, which the kernel does if it is told to.
#[test]
fn port_again_after_the_programs_time_wait() {
    need_root!();
    bounded(Duration::from_secs(60), || {
        let ns = Namespace::new();
        ns.sysctl("ipv4/tcp_tw_reuse", "1");
        let gate = Gate::new(&ns, |_| Verdict::Hold(Duration::from_millis(5)), echo);
        let (own, remote) = ("10.1.0.1:40000".parse().expect("own"), "10.9.0.1:80".parse().expect("remote"));
        for round in 1..=2 {
            let socket = ns.within(|| connect_from(own, remote)).expect("connect");
            socket.shutdown(Shutdown::Write).expect("shutdown");
            assert_eq!((&socket).read(&mut [0]).expect("the end"), 0);
            drop(socket);
            assert_eq!(gate.count(own, remote), round);
            // The kernel takes a port again when a second has gone by (tcp_twsk_unique).
            thread::sleep(Duration::from_millis(1100));
        }
    });
}

/// Packets with options of IPv4 are turned round too.
#[test]
fn ip_options() {
    need_root!();
    bounded(Duration::from_secs(60), || {
        let ns = Namespace::new();
        let gate = Gate::new(&ns, |_| Verdict::Hold(Duration::ZERO), echo);
        let remote: SocketAddr = "10.9.0.1:80".parse().expect("an address");
        let socket =
            ns.within(|| socket2::Socket::new(libc::AF_INET.into(), socket2::Type::STREAM, None)).expect("a socket");
        // IPOPT_NOOP.
        let options = [1u8; 8];
        // SAFETY: setsockopt(2) reads the array, which lives through the call.
        let set = unsafe {
            libc::setsockopt(socket.as_raw_fd(), libc::IPPROTO_IP, libc::IP_OPTIONS, options.as_ptr().cast(), 8)
        };
        assert_eq!(set, 0);
        socket.connect(&remote.into()).expect("connect");
        let mut socket = TcpStream::from(socket);
        socket.write_all(b"hello").expect("write");
        let mut back = [0; 5];
        socket.read_exact(&mut back).expect("read");
        assert_eq!(&back, b"hello");
        assert_eq!(gate.count(socket.local_addr().expect("getsockname"), remote), 1);
    });
}

/// Where the kernel answers every SYN with a cookie, the handshake's end comes to the gate too, which writes it back.
#[test]
fn syn_cookies() {
    need_root!();
    bounded(Duration::from_secs(60), || {
        let ns = Namespace::new();
        ns.sysctl("ipv4/tcp_syncookies", "2");
        let gate = Gate::new(&ns, |_| Verdict::Hold(Duration::ZERO), echo);
        for remote in ["10.9.0.1:80", "[fd09::1]:80"] {
            let remote: SocketAddr = remote.parse().expect("an address");
            let mut socket = ns.within(|| TcpStream::connect(remote)).expect("connect");
            socket.write_all(b"hello").expect("write");
            let mut back = [0; 5];
            socket.read_exact(&mut back).expect("read");
            assert_eq!(&back, b"hello");
            assert!(gate.count(socket.local_addr().expect("getsockname"), remote) >= 2);
        }
    });
}

/// Nothing is on the tun but what programs send, and no address but zstackd's.
#[test]
fn the_tun_is_quiet() {
    need_root!();
    bounded(Duration::from_secs(60), || {
        for family in [None, Some(true), Some(false)] {
            let ns = Namespace::new();
            let mut wanted = wanted();
            wanted.addresses.retain(|a| family.is_none_or(|v4| a.address.is_ipv4() == v4));
            wanted.served.retain(|a| family.is_none_or(|v4| a.address.is_ipv4() == v4));
            let front = ns.within(|| Front::make(&wanted)).unwrap_or_else(|e| panic!("{e}"));
            // The kernel would report groups and look for routers in the first second (RFC 3810, RFC 4861).
            assert!(
                !wait(&[front.lane(0).tun()], Duration::from_millis(1500)),
                "a packet of the kernel's own, {family:?}"
            );
            assert_eq!(ns.run("ip -o address show dev cv0").lines().count(), wanted.addresses.len());
        }
    });
}

/// Addresses that are not zstackd's, other interfaces and the loopback are left alone.
#[test]
fn local_traffic_is_not_touched() {
    need_root!();
    bounded(Duration::from_secs(60), || {
        let ns = Namespace::new();
        let gate = Gate::new(&ns, |_| Verdict::Hold(Duration::ZERO), echo);
        ns.within(|| {
            for address in ["127.0.0.1:0", "10.1.0.1:0", "[::1]:0", "[fd01::1]:0"] {
                let listener = TcpListener::bind(address).expect("bind");
                let to = listener.local_addr().expect("getsockname");
                let mut client = TcpStream::connect(to).expect("connect");
                let (mut server, from) = listener.accept().expect("accept");
                assert_eq!(from, client.local_addr().expect("getsockname"));
                client.write_all(b"x").expect("write");
                server.read_exact(&mut [0]).expect("read");
            }
            let refused = TcpStream::connect("10.1.0.1:9").expect_err("nobody listens");
            assert_eq!(refused.raw_os_error(), Some(libc::ECONNREFUSED));
            // A network that is not served.
            let unreachable = TcpStream::connect("192.0.2.1:80").expect_err("no route");
            assert_eq!(unreachable.raw_os_error(), Some(libc::ENETUNREACH));
        });
        assert_eq!(gate.front.turns(), front::Turns::default());
    });
}

/// What a connection costs, bounded one on the loopback: run by hand.
#[test]
#[ignore = "a measurement"]
fn cost_of_a_connection() {
    need_root!();
    bounded(Duration::from_secs(120), || {
        const COUNT: usize = 5000;
        let cpu = || {
            // SAFETY: zero bytes are a value of rusage, which getrusage(2) fills in.
            let usage = unsafe {
                let mut usage: libc::rusage = std::mem::zeroed();
                libc::getrusage(libc::RUSAGE_SELF, &raw mut usage);
                usage
            };
            let time = |t: libc::timeval| Duration::new(t.tv_sec as u64, t.tv_usec as u32 * 1000);
            time(usage.ru_utime) + time(usage.ru_stime)
        };
        let measure = |what: &str, work: &dyn Fn()| {
            let (began, before) = (Instant::now(), cpu());
            (0..COUNT).for_each(|_| work());
            let each = |d: Duration| d.as_secs_f64() * 1e6 / COUNT as f64;
            println!("{what}: {:.1} us, CPU {:.1} us", each(began.elapsed()), each(cpu() - before));
        };
        let ns = Namespace::new();
        ns.sysctl("ipv4/ip_local_port_range", "10000 65000");
        let front = ns.within(|| Front::make(&wanted())).unwrap_or_else(|e| panic!("{e}"));
        let mut buffer = vec![0; 2000];
        ns.within(|| {
            let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
            let to = listener.local_addr().expect("address");
            measure("loopback", &|| {
                let (client, error) = begin(to);
                assert_eq!(error, libc::EINPROGRESS);
                let server = listener.accept().expect("accept");
                drop(server);
                drop(client);
            });
        });
        let buffer = std::cell::RefCell::new(&mut buffer);
        let remote: SocketAddr = "10.9.0.1:80".parse().expect("an address");
        let connect = || {
            let (client, error) = begin(remote);
            assert_eq!(error, libc::EINPROGRESS);
            let mut buffer = buffer.borrow_mut();
            let len = front.lane(0).read(&mut buffer).expect("the SYN");
            front.lane(0).write(&buffer[..len]).expect("written back");
            let accepted = front.lane(0).accept().expect("accept").expect("a connection");
            drop(accepted);
            drop(client);
        };
        // RefCell and sockets belong to one thread.
        let namespace = std::fs::File::open("/proc/thread-self/ns/net").expect("ours");
        ns.enter();
        measure("gate", &connect);
        let listener = TcpListener::bind("10.1.0.1:80").expect("bind");
        let to = listener.local_addr().expect("address");
        let next = std::cell::Cell::new(0u32);
        measure("inward", &|| {
            next.set(next.get() + 1);
            let client = SocketAddr::new(std::net::Ipv4Addr::from(0xcb00_7100 + next.get()).into(), 40_000);
            let inner = front.lane(0).connect_inward(client, to).expect("connect");
            let server = listener.accept().expect("accept");
            drop(inner);
            drop(server);
        });
        drop(namespace);
    });
}
