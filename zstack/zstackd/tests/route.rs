//! Programs whose connections go through zstackd, with the kernel of another namespace at the other end of the wire; the same is
//! done over a veth pair between two kernels, and must come to the same.

#[path = "../../port/tests/lab/mod.rs"]
mod lab;

mod world;

use lab::{bounded, soon};
use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::SocketAddr as UnixAddress;
use std::thread;
use std::time::{Duration, Instant};
use world::{HERE, LIMIT, THERE, World, at, connect, listen};

/// Does the same in both worlds, and compares what came of it.
fn same<T: PartialEq + std::fmt::Debug + 'static>(work: impl Fn(&World) -> T + Send + 'static) {
    bounded(LIMIT, move || {
        let native = work(&World::native());
        let split = work(&World::split());
        assert_eq!(native, split, "native, and through zstackd");
    });
}

/// Bytes that tell their place.
fn pattern(at: usize, into: &mut [u8]) {
    for (i, byte) in into.iter_mut().enumerate() {
        let n = at + i;
        *byte = (n ^ n >> 8 ^ n >> 16) as u8;
    }
}

fn send(stream: &mut TcpStream, len: usize) -> std::io::Result<()> {
    let mut buffer = vec![0; 60_000];
    let mut done = 0;
    while done < len {
        let n = buffer.len().min(len - done);
        pattern(done, &mut buffer[..n]);
        stream.write_all(&buffer[..n])?;
        done += n;
    }
    Ok(())
}

/// Reads to the end, and compares. How many bytes came.
fn receive(stream: &mut TcpStream) -> std::io::Result<usize> {
    let (mut got, mut expected) = (vec![0; 70_000], vec![0; 70_000]);
    let mut done = 0;
    loop {
        match stream.read(&mut got)? {
            0 => return Ok(done),
            n => {
                pattern(done, &mut expected[..n]);
                assert!(got[..n] == expected[..n], "wrong bytes behind {done}");
                done += n;
            }
        }
    }
}

fn errno(result: &std::io::Result<TcpStream>) -> i32 {
    result.as_ref().err().map_or(0, |e| e.raw_os_error().unwrap_or(-1))
}

#[test]
fn connect_tells_what_the_remote_host_says() {
    need_root!();
    same(|world| {
        let mut told = BTreeMap::new();
        for (i, ip) in THERE.iter().enumerate() {
            let listener = listen(&world.there, at(ip, 80));
            told.insert(format!("{ip} listens"), errno(&connect(&world.here, at(ip, 80))));
            told.insert(format!("{ip} refuses"), errno(&connect(&world.here, at(ip, 81))));
            drop(listener);
            told.insert(format!("{ip} does not listen any more"), errno(&connect(&world.here, at(ip, 80))));
            // A neighbour that is not there.
            let nobody = if i == 0 { "10.1.0.77" } else { "fd00:1::77" };
            told.insert(format!("{nobody} is not there"), errno(&connect(&world.here, at(nobody, 80))));
        }
        world.there.nft(
            "table inet t {\n chain c {\n type filter hook input priority 0;\n\
             tcp dport 90 reject with icmpx type host-unreachable\n tcp dport 91 reject with icmpx type admin-prohibited\n\
             tcp dport 92 reject with icmpx type port-unreachable\n tcp dport 93 reject with icmpx type no-route\n\
             tcp dport 94 reject with tcp reset\n}\n}\n",
        );
        for ip in THERE {
            for port in 90..95 {
                told.insert(format!("{ip} port {port}"), errno(&connect(&world.here, at(ip, port))));
            }
        }
        told
    });
}

#[test]
fn a_silent_host_is_not_connected_to() {
    need_root!();
    bounded(LIMIT, || {
        let world = World::split();
        world.there.nft("table inet t {\n chain c {\n type filter hook input priority 0;\n tcp dport 80 drop\n}\n}\n");
        let start = Instant::now();
        let result = world.here.within(|| TcpStream::connect_timeout(&at(THERE[0], 80), Duration::from_millis(1500)));
        assert_eq!(result.expect_err("nobody answers").kind(), ErrorKind::TimedOut);
        assert!(start.elapsed() >= Duration::from_millis(1500));
        // Once it answers, the SYN that the program's kernel sends again brings it about.
        let waiting = thread::scope(|s| {
            let waiting = s.spawn(|| connect(&world.here, at(THERE[0], 80)));
            soon("a socket that waits", LIMIT, || {
                let sockets = world.here.run("ss -Htn state syn-sent");
                (!sockets.is_empty()).then_some(())
            });
            let _listener = listen(&world.there, at(THERE[0], 80));
            world.there.run("nft delete table inet t");
            waiting.join().expect("the thread")
        });
        waiting.expect("a connection");
    });
}

#[test]
fn bytes_arrive_whole_both_ways() {
    need_root!();
    same(|world| {
        let mut counts = vec![];
        for ip in THERE {
            const LEN: usize = 30 << 20;
            let listener = listen(&world.there, at(ip, 80));
            let mut client = connect(&world.here, at(ip, 80)).expect("a connection");
            let (mut server, from) = listener.accept().expect("a connection");
            assert_eq!(from, client.local_addr().expect("an address"));
            assert_eq!(client.peer_addr().expect("an address"), at(ip, 80));
            counts.push(thread::scope(|s| {
                let mut writer = client.try_clone().expect("a descriptor");
                let mut other = server.try_clone().expect("a descriptor");
                let up = s.spawn(move || {
                    send(&mut writer, LEN).expect("sent");
                    writer.shutdown(Shutdown::Write).expect("shut");
                });
                let down = s.spawn(move || {
                    send(&mut other, LEN).expect("sent");
                    other.shutdown(Shutdown::Write).expect("shut");
                });
                let far = s.spawn(move || receive(&mut server).expect("received"));
                let near = receive(&mut client).expect("received");
                up.join().expect("up");
                down.join().expect("down");
                (near, far.join().expect("far"))
            }));
        }
        counts
    });
}

#[test]
fn ends_are_told_as_on_the_wire() {
    need_root!();
    same(|world| {
        let mut told = BTreeMap::new();
        for ip in THERE {
            let listener = listen(&world.there, at(ip, 80));
            let pair = || {
                let client = connect(&world.here, at(ip, 80)).expect("a connection");
                (client, listener.accept().expect("a connection").0)
            };
            // The remote host shuts its end; the other direction goes on.
            let (mut client, mut server) = pair();
            server.write_all(b"last").expect("written");
            server.shutdown(Shutdown::Write).expect("shut");
            let mut text = String::new();
            client.read_to_string(&mut text).expect("read");
            client.write_all(b"after").expect("written");
            drop(client);
            let mut back = String::new();
            server.read_to_string(&mut back).expect("read");
            told.insert(format!("{ip} half closed"), format!("{text} {back}"));
            // It resets: what arrived before can be read.
            let (mut client, mut server) = pair();
            server.write_all(b"before").expect("written");
            let mut first = [0; 1];
            client.read_exact(&mut first).expect("read");
            linger(&server);
            drop(server);
            let mut text = String::new();
            let end = client.read_to_string(&mut text).map_err(|e| e.kind());
            told.insert(format!("{ip} reset"), format!("{text} {end:?}"));
            // The program resets.
            let (mut client, mut server) = pair();
            client.write_all(b"last words").expect("written");
            linger(&client);
            drop(client);
            let end = server.read_to_string(&mut text).map_err(|e| e.kind());
            told.insert(format!("{ip} reset by the program"), format!("{text} {end:?}"));
            // It closes with bytes unread.
            let (mut client, mut server) = pair();
            server.write_all(b"unread").expect("written");
            soon("bytes", LIMIT, || (client.peek(&mut [0; 8]).is_ok_and(|n| n == 6)).then_some(()));
            client.write_all(b"an answer").expect("written");
            drop(client);
            let end = server.read_to_string(&mut text).map_err(|e| e.kind());
            told.insert(format!("{ip} closed with bytes unread"), format!("{text} {end:?}"));
            // Urgent bytes, for who wants them in their place.
            let (mut client, mut server) = pair();
            in_line(&server);
            client.write_all(b"ab").expect("written");
            assert_eq!(send_urgent(&client, b"c"), 1);
            client.write_all(b"de").expect("written");
            drop(client);
            let mut text = String::new();
            server.read_to_string(&mut text).expect("read");
            told.insert(format!("{ip} urgent"), text);
            // It closes, and the remote host writes once.
            let (client, mut server) = pair();
            drop(client);
            assert_eq!(server.read(&mut [0; 1]).expect("the end"), 0);
            server.write_all(b"for nobody").expect("written");
            let error = soon("a reset", LIMIT, || server.take_error().expect("an option"));
            told.insert(format!("{ip} closed, and written to once"), format!("{:?}", error.kind()));
            // It closes, and the remote host goes on to write.
            let (client, mut server) = pair();
            drop(client);
            assert_eq!(server.read(&mut [0; 1]).expect("the end"), 0);
            let error = loop {
                if let Err(e) = server.write(&[7; 1000]) {
                    break e.kind();
                }
            };
            told.insert(format!("{ip} closed, and written to"), format!("{error:?}"));
        }
        told
    });
}

/// Urgent bytes come among the others.
fn in_line(stream: &TcpStream) {
    socket2::SockRef::from(stream).set_out_of_band_inline(true).expect("an option");
}

/// Sends a last byte that is urgent.
fn send_urgent(stream: &TcpStream, bytes: &[u8]) -> usize {
    socket2::SockRef::from(stream).send_out_of_band(bytes).expect("sent")
}

/// Closing the socket resets the connection.
fn linger(stream: &TcpStream) {
    let value = libc::linger { l_onoff: 1, l_linger: 0 };
    // SAFETY: the pointer and the length are those of the value.
    let done = unsafe {
        libc::setsockopt(
            stream.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_LINGER,
            (&raw const value).cast(),
            size_of_val(&value) as u32,
        )
    };
    assert_eq!(done, 0);
}

#[test]
fn servers_here_are_reached_from_the_wire() {
    need_root!();
    same(|world| {
        let mut told = BTreeMap::new();
        for ip in HERE {
            let any = if ip.contains(':') { "::" } else { "0.0.0.0" };
            for address in [at(ip, 80), at(any, 8080)] {
                let listener = listen(&world.here, address);
                let to = at(ip, address.port());
                let mut client = connect(&world.there, to).expect("a connection");
                let (mut server, from) = listener.accept().expect("a connection");
                told.insert(
                    format!("{to} names"),
                    format!("{} {}", from == client.local_addr().unwrap(), server.local_addr().unwrap() == to),
                );
                let count = thread::scope(|s| {
                    s.spawn(move || send(&mut client, 5 << 20).expect("sent"));
                    receive(&mut server).expect("received")
                });
                told.insert(format!("{to} bytes"), count.to_string());
            }
            told.insert(format!("{ip} refused"), errno(&connect(&world.there, at(ip, 81))).to_string());
        }
        told
    });
}

/// As a health check does that has seen enough when it is connected.
#[test]
fn a_server_accepts_clients_that_reset_or_end_at_once() {
    need_root!();
    same(|world| {
        let server = listen(&world.here, at(HERE[0], 80));
        let told = |resets: bool| {
            let client = connect(&world.there, at(HERE[0], 80)).expect("a connection");
            if resets {
                linger(&client);
            }
            drop(client);
            let (mut accepted, _) = server.accept().expect("a connection");
            accepted.read(&mut [0]).map_err(|e| e.kind())
        };
        (0..40).map(|i| told(i % 2 == 0)).collect::<Vec<_>>()
    });
}

/// A program that answers nothing acknowledges late: what comes next does not wait for that (Nagle's rule), and not behind what was sent later
/// to others.
#[test]
fn nothing_is_held_back_on_the_way_to_a_program() {
    need_root!();
    if world::workers() > 1 {
        return eprintln!("skipped: connections of several workers have no order among each other");
    }
    same(|world| {
        let server = listen(&world.here, at(HERE[0], 80));
        let pair = || {
            let client = connect(&world.there, at(HERE[0], 80)).expect("a connection");
            client.set_nodelay(true).expect("an option");
            (client, server.accept().expect("a connection").0)
        };
        let ((mut one, mut first), (mut other, mut second)) = (pair(), pair());
        let mut arrived = || {
            for _ in 0..3 {
                one.write_all(b"?").expect("written");
                first.read_exact(&mut [0]).expect("read");
                first.write_all(b"!").expect("written");
                one.read_exact(&mut [0]).expect("read");
            }
            one.write_all(b"1").expect("written");
            first.read_exact(&mut [0]).expect("read");
            one.write_all(b"2").expect("written");
            other.write_all(b"x").expect("written");
            second.read_exact(&mut [0]).expect("read");
            first.set_nonblocking(true).expect("a mode");
            let there = first.peek(&mut [0]).map_err(|e| e.kind());
            first.set_nonblocking(false).expect("a mode");
            first.read_exact(&mut [0]).expect("read");
            there
        };
        // Of two packets the later one overtakes where their sender is moved to another processor in between: it is tried once more.
        (0..20).map(|_| arrived().or_else(|_| arrived())).collect::<Vec<_>>()
    });
}

/// Also if bytes come of some of them at once, others reset their connections at once, and zstackd has other things to do.
#[test]
fn a_server_accepts_clients_in_the_order_in_which_they_connect() {
    need_root!();
    if world::workers() > 1 {
        return eprintln!("skipped: connections of several workers have no order among each other");
    }
    same(|world| {
        let server = listen(&world.here, at(HERE[0], 80));
        let busy = listen(&world.here, at(HERE[0], 8080));
        let beside = connect(&world.there, at(HERE[0], 8080)).expect("a connection");
        let (mut reader, _) = busy.accept().expect("a connection");
        thread::scope(|s| {
            s.spawn(move || while reader.read(&mut [0; 4096]).is_ok_and(|n| n > 0) {});
            let sends = s.spawn({
                let mut beside = beside.try_clone().expect("a descriptor");
                move || while beside.write_all(&[0; 1000]).is_ok() {}
            });
            let in_order = |round: usize| {
                let mut clients: Vec<TcpStream> = Vec::new();
                let mut names = Vec::new();
                for i in 0..20 {
                    let mut client = connect(&world.there, at(HERE[0], 80)).expect("a connection");
                    names.push(client.local_addr().expect("a name"));
                    match (i + round) % 3 {
                        0 => client.write_all(b"x").expect("written"),
                        // The one before, which has sent nothing.
                        2 => clients.pop().iter().for_each(linger),
                        _ => {}
                    }
                    clients.push(client);
                }
                let accepted: Vec<_> = names.iter().map(|_| server.accept().expect("a connection").1).collect();
                names == accepted
            };
            let all: Vec<_> = (0..20).map(in_order).collect();
            beside.shutdown(Shutdown::Both).expect("an end");
            sends.join().expect("no panic");
            all
        })
    });
}

/// A program that closes with bytes unread, while more come, resets the connection: that is never an end in order, which would say that all
/// it has sent is there.
#[test]
fn a_reset_is_no_end_in_order() {
    need_root!();
    same(|world| {
        let server = listen(&world.here, at(HERE[0], 80));
        let told = |_| {
            let mut client = connect(&world.there, at(HERE[0], 80)).expect("a connection");
            let (mut accepted, _) = server.accept().expect("a connection");
            accepted.write_all(b"some").expect("written");
            client.write_all(b"unread").expect("written");
            accepted.peek(&mut [0]).expect("a byte");
            client.set_nonblocking(true).expect("a mode");
            // Half of what it would do is done by another thread: so the reset comes at any moment of what zstackd does.
            let closes = thread::spawn(move || drop(accepted));
            let told = loop {
                match client.read(&mut [0; 100]) {
                    Ok(0) => break Ok(()),
                    Err(e) if e.kind() != ErrorKind::WouldBlock => break Err(e.kind()),
                    _ => {}
                }
                match client.write(&[0; 100]) {
                    // An end was told before.
                    Err(e) if e.kind() == ErrorKind::BrokenPipe => break Ok(()),
                    Err(e) if e.kind() != ErrorKind::WouldBlock => break Err(e.kind()),
                    _ => {}
                }
            };
            closes.join().expect("no panic");
            told
        };
        (0..300).map(told).collect::<Vec<_>>()
    });
}

#[test]
fn what_is_not_tcp_goes_through_as_it_is() {
    need_root!();
    bounded(LIMIT, || {
        let world = World::split();
        for (here, there) in HERE.iter().zip(THERE) {
            assert!(world.reach(&world.here, there, 5), "an echo request from here to {there}");
            assert!(world.reach(&world.there, here, 5), "an echo request from there to {here}");
            let server = world.there.within(|| UdpSocket::bind(at(there, 53)).expect("a socket"));
            let client = world.here.within(|| UdpSocket::bind(at(here, 5353)).expect("a socket"));
            client.set_read_timeout(Some(LIMIT)).expect("a timeout");
            server.set_read_timeout(Some(LIMIT)).expect("a timeout");
            let mut buffer = [0; 2000];
            for len in [1, 1000, 1400] {
                client.send_to(&buffer[..len], at(there, 53)).expect("sent");
                let (n, from) = server.recv_from(&mut buffer).expect("received");
                assert_eq!((n, from), (len, at(here, 5353)));
                server.send_to(&buffer[..len], from).expect("sent");
                assert_eq!(client.recv_from(&mut buffer).expect("received"), (len, at(there, 53)));
            }
            // Nobody is at that port: the remote host's ICMP error reaches the program.
            let nobody = world.here.within(|| UdpSocket::bind(at(here, 0)).expect("a socket"));
            nobody.set_read_timeout(Some(LIMIT)).expect("a timeout");
            world.here.within(|| nobody.connect(at(there, 54))).expect("connected");
            nobody.send(b"?").expect("sent");
            assert_eq!(nobody.recv(&mut buffer).expect_err("nobody").kind(), ErrorKind::ConnectionRefused);
        }
    });
}

#[test]
fn a_killed_daemon_never_ends_a_stream_in_order() {
    need_root!();
    bounded(LIMIT, || {
        let mut world = World::split();
        for round in 0..5 {
            let listener = listen(&world.there, at(THERE[0], 80));
            let inward = listen(&world.here, at(HERE[0], 8080));
            let mut outer = connect(&world.here, at(THERE[0], 80)).expect("a connection");
            let (mut far, _) = listener.accept().expect("a connection");
            let client = connect(&world.there, at(HERE[0], 8080)).expect("a connection");
            let (mut served, _) = inward.accept().expect("a connection");
            // The far end sends for as long as anybody takes it.
            let sender = thread::spawn(move || while far.write(&[round; 4096]).is_ok() {});
            let mut first = [0; 100_000];
            outer.read_exact(&mut first).expect("bytes");
            let zstackd = world.zstackd.as_mut().expect("zstackd");
            let start = Instant::now();
            zstackd.kill();
            let mut rest = vec![];
            let end = outer.read_to_end(&mut rest).expect_err("a stream that was cut").kind();
            assert_eq!(end, ErrorKind::ConnectionReset);
            let end = served.read_to_end(&mut rest).expect_err("a stream that was cut").kind();
            assert_eq!(end, ErrorKind::ConnectionReset);
            println!("told after {:?}", start.elapsed());
            // Without it there is no way to the wire; the kernel says so.
            let error = connect(&world.here, at(THERE[0], 80)).expect_err("no way");
            assert_eq!(error.kind(), ErrorKind::NetworkUnreachable);
            drop((listener, client));
            world.start();
            sender.join().expect("the sender");
        }
    });
}

#[test]
fn many_connections_one_after_the_other_and_at_once() {
    need_root!();
    bounded(LIMIT, || {
        let world = World::split();
        let listener = listen(&world.there, at(THERE[0], 80));
        thread::scope(|s| {
            s.spawn(|| {
                // Answers each request with itself.
                let echo = |mut stream: TcpStream| {
                    let mut buffer = [0; 64];
                    while let Ok(n @ 1..) = stream.read(&mut buffer) {
                        stream.write_all(&buffer[..n]).expect("written");
                    }
                };
                for _ in 0..500 + 200 {
                    let (stream, _) = listener.accept().expect("a connection");
                    if s.spawn(move || echo(stream)).is_finished() {}
                }
            });
            let exchange = |stream: &mut TcpStream, n: u32| {
                stream.write_all(&n.to_le_bytes()).expect("written");
                let mut back = [0; 4];
                stream.read_exact(&mut back).expect("read");
                assert_eq!(u32::from_le_bytes(back), n);
            };
            for n in 0..500 {
                exchange(&mut connect(&world.here, at(THERE[0], 80)).expect("a connection"), n);
            }
            let mut all: Vec<_> =
                (0..200).map(|_| connect(&world.here, at(THERE[0], 80)).expect("a connection")).collect();
            for round in 0..3 {
                for (n, stream) in (0..).zip(&mut all) {
                    exchange(stream, round * 1000 + n);
                }
            }
        });
    });
}

/// A program's socket, bound to one port.
fn on_one_port(world: &World) -> socket2::Socket {
    world.here.within(|| {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
        socket.set_reuse_address(true).expect("an option");
        socket.bind(&at(HERE[0], 44_444).into()).expect("bound");
        socket
    })
}

/// A program that connects again from the same port.
#[test]
fn a_port_is_used_again() {
    need_root!();
    bounded(LIMIT, || {
        let world = World::split();
        let listener = listen(&world.there, at(THERE[0], 80));
        for n in 0..4u8 {
            let socket = on_one_port(&world);
            soon("a connection", LIMIT, || socket.connect(&at(THERE[0], 80).into()).ok());
            let mut client = TcpStream::from(socket);
            let (mut server, from) = listener.accept().expect("a connection");
            assert_eq!(from, at(HERE[0], 44_444));
            client.write_all(&[n]).expect("written");
            let mut byte = [9];
            server.read_exact(&mut byte).expect("read");
            assert_eq!(byte, [n]);
            // The side that closes first keeps the addresses for a while, as TIME_WAIT.
            if n % 2 == 0 {
                drop(server);
                assert_eq!(client.read(&mut byte).expect("the end"), 0);
                drop(client);
            } else {
                linger(&client);
                drop(client);
                assert!(server.read(&mut byte).is_err());
            }
        }
    });
}

/// A connection of the kernel's whose addresses the last one had, in zstackd, where zstackd's end closed first: its packets reach the wire.
#[test]
fn a_port_is_used_again_beside_zstackd() {
    need_root!();
    bounded(LIMIT, || {
        let world = World::split_with("connections = 1");
        let listener = listen(&world.there, at(THERE[0], 80));
        let from_same_port = || {
            let socket = on_one_port(&world);
            socket.connect(&at(THERE[0], 80).into()).expect("a connection");
            TcpStream::from(socket)
        };
        let mut first = from_same_port();
        drop(listener.accept().expect("a connection"));
        assert_eq!(first.read(&mut [0]).expect("the end"), 0);
        drop(first);
        let ours = format!("ss -Htn state time-wait src {}", THERE[0]);
        soon("zstackd's end in TIME_WAIT", LIMIT, || (!world.here.run(&ours).is_empty()).then_some(()));
        // The only one that zstackd may have.
        let _other = soon("a connection", LIMIT, || connect(&world.here, at(THERE[0], 80)).ok());
        let _its = listener.accept().expect("a connection");
        let mut again = from_same_port();
        let (mut server, from) = listener.accept().expect("a connection");
        assert_eq!(from, at(HERE[0], 44_444));
        // Less than TIME_WAIT lasts.
        server.set_read_timeout(Some(Duration::from_secs(30))).expect("a timeout");
        again.write_all(b"again").expect("written");
        let mut got = [0; 5];
        server.read_exact(&mut got).expect("read");
        assert_eq!(&got, b"again");
    });
}

/// While as many connections are being made as may be, others are the kernel's, through the same wire.
#[test]
fn connections_beyond_a_limit_are_the_kernels() {
    need_root!();
    bounded(LIMIT, || {
        let world = World::split_with("pending = 1");
        world.there.nft("table inet t {\n chain c {\n type filter hook input priority 0;\n tcp dport 90 drop\n}\n}\n");
        let listener = listen(&world.there, at(THERE[0], 80));
        thread::scope(|s| {
            let waits =
                s.spawn(|| world.here.within(|| TcpStream::connect_timeout(&at(THERE[0], 90), Duration::from_secs(4))));
            soon("a socket that waits", LIMIT, || (!world.here.run("ss -Htn state syn-sent").is_empty()).then_some(()));
            for n in 0..3u8 {
                let mut client = connect(&world.here, at(THERE[0], 80)).expect("a connection");
                let (mut server, from) = listener.accept().expect("a connection");
                assert_eq!(from, client.local_addr().expect("an address"));
                client.write_all(&[n]).expect("written");
                let mut byte = [9];
                server.read_exact(&mut byte).expect("read");
                assert_eq!(byte, [n]);
                // No socket of zstackd's stands in.
                let inner = format!("ss -Htn src {} dport = :{}", THERE[0], from.port());
                assert_eq!(world.here.run(&inner), "");
            }
            waits.join().expect("the thread").expect_err("nobody answers");
        });
        // The program has given that up, and so does zstackd: there is room again.
        soon("a connection of zstackd's", LIMIT, || {
            let client = connect(&world.here, at(THERE[0], 80)).expect("a connection");
            // Its queue is not to be full by then.
            let _server = listener.accept().expect("a connection");
            let port = client.local_addr().expect("an address").port();
            let inner = world.here.run(&format!("ss -Htn src {} dport = :{port}", THERE[0]));
            (!inner.is_empty()).then_some(())
        });
    });
}

/// Those who connect to the control socket and ask nothing keep nobody from asking.
#[test]
fn silent_askers_keep_nobody_away() {
    need_root!();
    bounded(LIMIT, || {
        let world = World::split();
        let name = format!("@culvert-zstackd-{}", world.zstackd.as_ref().expect("zstackd").0.id());
        let listener = listen(&world.there, at(THERE[0], 80));
        let client = connect(&world.here, at(THERE[0], 80)).expect("a connection");
        let (_server, _) = listener.accept().expect("a connection");
        world.here.within(|| {
            let address = UnixAddress::from_abstract_name(&name[1..]).expect("a name");
            let silent: Vec<_> = (0..20)
                .map(|_| std::os::unix::net::UnixStream::connect_addr(&address).expect("a connection"))
                .collect();
            let told = zstack_control::ask(&name, 0).expect("an answer");
            let known = |c: &zstack_control::Connection| Some(c.local) == client.local_addr().ok();
            assert!(told.iter().any(known), "{told:?}");
            drop(silent);
        });
    });
}

/// zstackd has no descriptor left: programs wait in its listener's queue, and are served when there is one.
#[test]
fn without_descriptors_programs_wait() {
    need_root!();
    bounded(LIMIT, || {
        let world = World::split();
        world.leave_descriptors(3);
        let listener = listen(&world.there, at(THERE[0], 80));
        let mut all: Vec<_> = (0..8)
            .map(|_| {
                let client = connect(&world.here, at(THERE[0], 80)).expect("a connection");
                (client, listener.accept().expect("a connection").0)
            })
            .collect();
        // Each pair is served in turn, as those before it end.
        while !all.is_empty() {
            let served = soon("a connection that is served", LIMIT, || {
                all.iter_mut().position(|(client, server)| {
                    let _ = client.write_all(b"x");
                    server.set_nonblocking(true).expect("nonblocking");
                    server.read(&mut [0; 64]).is_ok_and(|n| n > 0)
                })
            });
            all.remove(served);
        }
    });
}

/// A program that has connected, sent something and ended before zstackd has accepted its connection: the remote host gets all of it.
#[test]
fn what_was_sent_before_zstackd_accepted_arrives() {
    need_root!();
    bounded(LIMIT, || {
        let world = World::split();
        let listener = listen(&world.there, at(THERE[0], 80));
        world.leave_descriptors(3);
        // More than are accepted.
        let first: Vec<_> = (0..8)
            .map(|_| {
                let client = connect(&world.here, at(THERE[0], 80)).expect("a connection");
                (client, listener.accept().expect("a connection").0)
            })
            .collect();
        let mut second = connect(&world.here, at(THERE[0], 80)).expect("a connection");
        let (mut far, _) = listener.accept().expect("a connection");
        second.write_all(b"all of it").expect("written");
        drop(second);
        // There is no descriptor for it, and zstackd has looked after it more than once.
        far.set_read_timeout(Some(Duration::from_millis(700))).expect("a timeout");
        let error = far.read(&mut [0; 64]).expect_err("nothing so far");
        assert_eq!(error.kind(), ErrorKind::WouldBlock);
        drop(first);
        far.set_read_timeout(Some(LIMIT)).expect("a timeout");
        let mut text = String::new();
        far.read_to_string(&mut text).expect("all that was sent, and its end");
        assert_eq!(text, "all of it");
    });
}

/// A program that only writes learns that the connection broke off, though it has not read what came before.
#[test]
fn who_does_not_read_learns_of_a_reset_too() {
    need_root!();
    bounded(LIMIT, || {
        let world = World::split();
        let listener = listen(&world.there, at(THERE[0], 80));
        let mut client = connect(&world.here, at(THERE[0], 80)).expect("a connection");
        let (mut server, _) = listener.accept().expect("a connection");
        // More than the program's kernel and zstackd take.
        server.set_nonblocking(true).expect("nonblocking");
        let mut last = Instant::now();
        while last.elapsed() < Duration::from_millis(300) {
            match server.write(&[7; 65_536]) {
                Ok(n) if n > 0 => last = Instant::now(),
                Ok(_) => panic!("nothing was written"),
                Err(e) => assert_eq!(e.kind(), ErrorKind::WouldBlock),
            }
        }
        linger(&server);
        drop(server);
        let error = loop {
            if let Err(e) = client.write(&[1; 65_536]) {
                break e.kind();
            }
        };
        assert!(matches!(error, ErrorKind::ConnectionReset | ErrorKind::BrokenPipe), "{error:?}");
    });
}

/// A remote host that is silent altogether is found out as soon as the program's own options and the namespace's settings say.
#[test]
fn keep_alive_goes_to_the_wire() {
    need_root!();
    bounded(LIMIT, || {
        let mut world = World::split();
        world.zstackd = None;
        world.here.sysctl("ipv4/tcp_keepalive_intvl", "1");
        world.here.sysctl("ipv4/tcp_keepalive_probes", "2");
        world.start();
        let listener = listen(&world.there, at(THERE[0], 80));
        let mut probed = connect(&world.here, at(THERE[0], 80)).expect("a connection");
        let mut plain = connect(&world.here, at(THERE[0], 80)).expect("a connection");
        let (_server, _other) = (listener.accept().expect("a connection"), listener.accept().expect("a connection"));
        let idle = socket2::TcpKeepalive::new().with_time(Duration::from_secs(1));
        socket2::SockRef::from(&probed).set_tcp_keepalive(&idle).expect("keep-alive");
        world.there.nft("table inet t {\n chain c {\n type filter hook input priority 0;\n tcp dport 80 drop\n}\n}\n");
        assert_eq!(probed.read(&mut [0; 8]).expect_err("nobody is there").kind(), ErrorKind::ConnectionReset);
        plain.set_nonblocking(true).expect("nonblocking");
        assert_eq!(plain.read(&mut [0; 8]).expect_err("it was not asked for").kind(), ErrorKind::WouldBlock);
    });
}
