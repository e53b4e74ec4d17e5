//! The program on a veth: which packets come to the queue, and what becomes of connections when the rules change. As root.

mod wire;

use culvert_split::{Split, rules};
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::time::Duration;
use wire::{HERE4, HERE6, Socket, THERE4, THERE6, Wire, is_root, try_packet};

fn parsed(text: &str) -> rules::One {
    let words: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
    rules::parse(&words).unwrap_or_else(|e| panic!("{text}: {e}"))
}

fn rules(texts: &[String]) -> rules::Rules {
    (0..).zip(texts).map(|(at, text)| (at, parsed(text))).collect()
}

/// A bound UDP socket; small, as hundreds of them are open at a time.
fn udp(ip: &str) -> UdpSocket {
    UdpSocket::bind((ip.parse::<IpAddr>().expect("an address"), 0)).expect("a socket")
}

/// Of 200 flows to the same port, half IPv6's, each second one is chosen by its whole 5-tuple: these come to the queue, each, and the
/// others to the kernel.
#[test]
fn chosen_tuples_come_to_the_queue_and_the_others_to_the_kernel() {
    if !is_root() {
        return;
    }
    let wire = Wire::new();
    let split = Split::attach("here").expect("attached");
    let socket = Socket::new("here", 0, &split);
    let server = udp("::");
    server.set_read_timeout(Some(Duration::from_secs(10))).expect("a time-out");
    let port = server.local_addr().expect("an address").port();
    // In the other namespace: a socket for each flow, whose port is in the tuple.
    let flows = wire.there(|| (0..200).map(|n| udp(if n % 4 < 2 { THERE4 } else { THERE6 })).collect::<Vec<_>>());
    let addresses: Vec<SocketAddr> = flows.iter().map(|f| f.local_addr().expect("an address")).collect();
    let chosen: Vec<String> = addresses
        .iter()
        .step_by(2)
        .map(|from| {
            let to = if from.is_ipv4() { HERE4 } else { HERE6 };
            let (ip, number) = (from.ip(), from.port());
            format!(
                "protocol udp source {ip} destination {to} source-ports {number} destination-ports {port} to queue 0"
            )
        })
        .collect();
    split.change(&rules(&chosen)).expect("changed");
    let flows = Arc::new(flows);
    let (mut buffer, mut to_kernel) = ([0; 16], Vec::new());
    // A socket's buffer has room for some fifty.
    for begin in (0..200_u16).step_by(20) {
        let flows = flows.clone();
        wire.there(move || {
            for n in begin..begin + 20 {
                let flow = &flows[usize::from(n)];
                let to = if flow.local_addr().expect("an address").is_ipv4() { HERE4 } else { HERE6 };
                flow.send_to(&n.to_be_bytes(), (to, port)).expect("sent");
            }
        });
        to_kernel.extend((0..10).map(|_| {
            server.recv(&mut buffer).expect("a datagram");
            u16::from_be_bytes([buffer[0], buffer[1]])
        }));
    }
    let frames = socket.take(100);
    let mut to_queue: Vec<u16> = frames
        .iter()
        .map(|f| {
            let payload = if f[12..14] == [8, 0] { 14 + 20 + 8 } else { 14 + 40 + 8 };
            u16::from_be_bytes([f[payload], f[payload + 1]])
        })
        .collect();
    to_kernel.sort_unstable();
    to_queue.sort_unstable();
    assert_eq!(to_queue, (0..200).step_by(2).collect::<Vec<_>>());
    assert_eq!(to_kernel, (1..200).step_by(2).collect::<Vec<_>>());
    let split = Split::on("here").expect("asked").expect("there");
    let (counts, _) = split.counts().expect("counted");
    assert!(counts[..100].iter().all(|c| c.packets == 1), "{counts:?}");
    assert!(counts[100..].iter().all(|c| c.packets == 0), "{counts:?}");
    // What it was told is in the kernel, for whoever comes later.
    assert_eq!(split.rules().expect("its rules"), rules(&chosen));
    // A queue whose socket is gone is the kernel's; a process that another test has just forked may still have it.
    drop(socket);
    server.set_read_timeout(Some(Duration::from_millis(100))).expect("a time-out");
    let comes = (0..100).any(|_| {
        let flows = flows.clone();
        wire.there(move || flows[0].send_to(&[0, 0], (HERE4, port)).expect("sent"));
        server.recv(&mut buffer).is_ok()
    });
    assert!(comes, "nothing comes to the kernel");
    split.detach().expect("detached");
    assert!(Split::on("here").expect("asked").is_none());
}

/// 1,000 connections that the kernel has when a rule sends theirs to the queue go on, each of them; the next one is the queue's. And the
/// other way round: what was begun under a rule stays where it was when the rule goes.
#[test]
fn connections_stay_where_they_began() {
    if !is_root() {
        return;
    }
    const CONNECTIONS: usize = 1000;
    let wire = Wire::new();
    let split = Split::attach("here").expect("attached");
    let socket = Socket::new("here", 0, &split);
    let listener = TcpListener::bind("[::]:0").expect("a listener");
    let port = listener.local_addr().expect("an address").port();
    let connect =
        move |n: usize| TcpStream::connect((if n.is_multiple_of(2) { HERE4 } else { HERE6 }, port)).expect("connected");
    let (mut clients, mut servers) = (Vec::new(), Vec::new());
    for begin in (0..CONNECTIONS).step_by(100) {
        clients.extend(wire.there(move || (begin..begin + 100).map(connect).collect::<Vec<_>>()));
        servers.extend((0..100).map(|_| listener.accept().expect("accepted").0));
    }
    let exchange = |mut clients: Vec<TcpStream>, servers: &mut Vec<TcpStream>, byte: u8| {
        let clients = wire.there(move || {
            clients.iter_mut().for_each(|c| c.write_all(&[byte; 100]).expect("sent"));
            clients
        });
        for server in servers.iter_mut() {
            let mut bytes = [0; 100];
            server.set_read_timeout(Some(Duration::from_secs(20))).expect("a time-out");
            server.read_exact(&mut bytes).expect("received");
            assert_eq!(bytes, [byte; 100]);
            server.write_all(&bytes).expect("answered");
        }
        wire.there(move || {
            let mut clients = clients;
            for client in &mut clients {
                let mut bytes = [0; 100];
                client.set_read_timeout(Some(Duration::from_secs(20))).expect("a time-out");
                client.read_exact(&mut bytes).expect("an answer");
            }
            clients
        })
    };
    let clients = exchange(clients, &mut servers, 1);
    split.change(&rules(&[format!("protocol tcp destination-ports {port} to queue 0")])).expect("changed");
    let clients = exchange(clients, &mut servers, 2);
    assert_eq!(socket.take(0).len(), 0, "a packet of the kernel's connections came to the queue");
    // New ones are the queue's: there is nobody, so nobody answers.
    let refused = wire.there(move || {
        TcpStream::connect_timeout(
            &SocketAddr::new(HERE4.parse().expect("an address"), port),
            Duration::from_millis(300),
        )
    });
    assert_eq!(refused.expect_err("nobody answers").kind(), ErrorKind::TimedOut);
    let frames = socket.take(1);
    assert!(!frames.is_empty() && frames.iter().all(|f| f[14 + 9] == 6 && f[14 + 20 + 13] == 2), "SYNs: {frames:?}");
    // The rule goes: the queue's connection stays the queue's, though its next packet is under no rule.
    let split = Split::on("here").expect("asked").expect("there");
    split.change(&rules::Rules::new()).expect("changed");
    let split = Split::on("here").expect("asked").expect("there");
    let mut ack = frames[0].clone();
    ack[14 + 20 + 13] = 0x10;
    const REDIRECT: u32 = 4;
    assert_eq!(try_packet(&split, &ack, 1).0, REDIRECT);
    // A new SYN with the same names is a new connection.
    const PASS: u32 = 2;
    assert_eq!(try_packet(&split, &frames[0], 1).0, PASS);
    assert_eq!(try_packet(&split, &ack, 1).0, PASS);
    // Under a stateless rule even a packet of the queue's connection goes where the rule says, and is no longer the queue's when it goes.
    let redirected = |split: &Split| try_packet(split, &ack, 1).0 == REDIRECT;
    let change = |texts: &[String]| {
        Split::on("here").expect("asked").expect("there").change(&rules(texts)).expect("changed");
        Split::on("here").expect("asked").expect("there")
    };
    let to = |place: &str| format!("protocol tcp destination-ports {port} to {place}");
    let split = change(&[to("queue 0")]);
    assert_eq!(try_packet(&split, &frames[0], 1).0, REDIRECT);
    assert!(redirected(&change(&[])) && !redirected(&change(&[to("kernel stateless")])) && !redirected(&change(&[])));
    assert!(redirected(&change(&[to("queue 0 stateless")])));
    // Where another rule is stateless, a pin counts as before.
    let split = change(&[to("queue 0")]);
    assert_eq!(try_packet(&split, &frames[0], 1).0, REDIRECT);
    let other = "protocol udp to drop stateless".to_owned();
    assert!(redirected(&change(std::slice::from_ref(&other))) && redirected(&change(&[other, to("kernel")])));
    let split = change(&[]);
    let clients = exchange(clients, &mut servers, 3);
    assert_eq!(clients.len(), CONNECTIONS);
    split.detach().expect("detached");
}

/// It leaves another's program alone.
#[test]
fn another_program_stays() {
    if !is_root() {
        return;
    }
    let _wire = Wire::new();
    let split = Split::attach("here").expect("attached");
    let error = Split::attach("here").err().expect("there is one");
    assert!(error.contains("another XDP program"), "{error}");
    // Who has an old view of it changes nothing.
    let old = Split::on("here").expect("asked").expect("there");
    split.change(&rules(&["protocol udp to drop".into()])).expect("changed");
    let error = old.change(&rules(&["protocol tcp to drop".into()])).expect_err("an old view");
    assert!(error.contains("meanwhile"), "{error}");
    let error = old.detach().expect_err("an old view");
    assert!(error.contains("meanwhile"), "{error}");
    let now = Split::on("here").expect("asked").expect("there");
    assert_eq!(now.rules().expect("its rules"), rules(&["protocol udp to drop".into()]));
    now.detach().expect("detached");
}
