//! The tools over two engines, with a wire in memory between them.

use super::engine::{Engine, Sleep};
use super::*;
use crate::pattern::Pattern;
use crate::run::App;
use crate::stream::{Role, Streams, Work};
use std::time::Instant;
use zstack::net::Address;
use zstack::port::{Capabilities, Medium};
use zstack::sockets;
use zstack::stack::Config;
use zstack_port::{Settings, Wire, pair};

impl Sleep for Wire {
    /// Both ends are one thread's: there is nothing to sleep for.
    fn sleep(&mut self, _: &[RawFd], _: Option<Duration>, _: &mut Vec<RawFd>) -> io::Result<()> {
        Ok(())
    }
}

fn engines(capabilities: Capabilities) -> [Engine<Wire>; 2] {
    let (a, b) = pair(Settings { capabilities, buffers: 256 });
    let engine = |wire, ip: &str, key| {
        let config = Config::new(Address { ip: ip.parse().unwrap(), prefix: 24 }, [key; 16]);
        Engine::new(config, wire, sockets::Config::default()).unwrap()
    };
    [engine(a, "10.0.0.1", 1), engine(b, "10.0.0.2", 2)]
}

fn plain() -> Capabilities {
    Capabilities { medium: Medium::Ip, mtu: 1500, checksum: false, tso: 0, late: false }
}

/// Runs a server and a client, until the client has finished.
fn run(engines: &mut [Engine<Wire>; 2], server: &mut dyn App, client: &mut dyn App) {
    let until = Instant::now() + Duration::from_secs(60);
    let [a, b] = engines;
    server.start(a).unwrap();
    client.start(b).unwrap();
    let mut events = Vec::new();
    while !client.finished() {
        assert!(Instant::now() < until, "{:?} {:?}", a.report(), b.report());
        step(a, server, &mut events);
        step(b, client, &mut events);
    }
    client.end(b, false).unwrap();
}

fn step(engine: &mut Engine<Wire>, app: &mut dyn App, events: &mut Vec<Event>) {
    engine.poll(events, Some(Duration::ZERO)).unwrap();
    events.drain(..).for_each(|event| app.event(engine, event));
    if app.deadline().is_some_and(|d| d <= Instant::now()) {
        app.tick(engine);
    }
}

fn streams(role: Role, work: Work, connections: u32, bytes: u64) -> Streams {
    Streams::new(role, work, connections, Some(bytes), Some(Pattern::new(3)))
}

#[test]
fn a_source_and_a_checking_sink_in_every_role_copy_nothing_but_small_payloads() {
    let at: SocketAddr = "10.0.0.1:9".parse().unwrap();
    for tso in [0, 60_000] {
        let mut engines = engines(Capabilities { checksum: tso > 0, tso, ..plain() });
        let mut sink = streams(Role::Listen(at), Work::Sink, 0, 2_000_000);
        run(&mut engines, &mut sink, &mut streams(Role::Connect(at), Work::Source, 5, 2_000_000));
        sink.end(&mut engines[0], true).unwrap();
        assert_eq!(engines[1].copied(), Some(0), "nothing that was sent");
        let at = "10.0.0.1:10".parse().unwrap();
        let mut source = streams(Role::Listen(at), Work::Source, 0, 2_000_000);
        run(&mut engines, &mut source, &mut streams(Role::Connect(at), Work::Sink, 3, 2_000_000));
    }
}

#[test]
fn an_echo_sends_the_buffers_back_that_it_received() {
    let at: SocketAddr = "10.0.0.1:9".parse().unwrap();
    for deferred in [false, true] {
        let mut engines = engines(plain());
        if deferred {
            engines[0].defer();
        }
        let mut echo = streams(Role::Listen(at), Work::Echo, 0, 0);
        echo.start(&mut engines[0]).unwrap();
        let [a, b] = &mut engines;
        let conn = b.connect(at).unwrap();
        let sent: Vec<u8> = (0..300_000u32).map(|i| (i % 253) as u8).collect();
        let (mut from, mut back, mut events) = (0, Vec::new(), Vec::new());
        let until = Instant::now() + Duration::from_secs(60);
        while back.len() < sent.len() {
            assert!(Instant::now() < until, "{:?} {:?}", a.report(), b.report());
            step(a, &mut echo, &mut events);
            b.poll(&mut events, Some(Duration::ZERO)).unwrap();
            events.clear();
            from += b.write(conn, &sent[from..], false).unwrap_or(0);
            while b.take(conn, 1 << 20, &mut |bytes| back.extend_from_slice(bytes)).is_ok_and(|n| n > 0) {}
        }
        assert!(back == sent);
        assert!(a.copied().unwrap() < 3000, "{:?}", a.report());
    }
}

/// Who has something to do at each poll does not keep what has arrived waiting.
#[test]
fn a_connection_that_is_always_ready_lets_others_arrive() {
    let at: SocketAddr = "10.0.0.1:9".parse().unwrap();
    let [mut a, mut b] = engines(plain());
    a.listen(at).unwrap();
    let conn = b.connect(at).unwrap();
    let (mut events, mut server, mut taken) = (Vec::new(), None, 0);
    for round in 0..100 {
        b.write(conn, b"x", false).unwrap_or(0);
        b.poll(&mut events, Some(Duration::ZERO)).unwrap();
        events.clear();
        a.poll(&mut events, Some(Duration::ZERO)).unwrap();
        for event in events.drain(..) {
            if let Event::Accepted(conn) = event {
                server = Some(conn);
            }
        }
        let Some(server) = server else { continue };
        while a.take(server, 100, &mut |bytes| taken += bytes.len()).is_ok_and(|n| n > 0) {}
        if round > 10 {
            a.again(server);
        }
    }
    assert!(taken > 60, "{taken}");
}

#[test]
fn perf_in_every_mode() {
    use crate::perf::{Client, Mode, Plan, Server};
    let at: SocketAddr = "10.0.0.1:9".parse().unwrap();
    for mode in [Mode::Upload, Mode::Download, Mode::Exchange, Mode::Connect, Mode::Wake] {
        let mut engines = engines(plain());
        let plan = Plan {
            to: at,
            mode,
            time: Duration::from_millis(200),
            size: 3000,
            connections: 3,
            pause: Duration::from_millis(1),
            copy: false,
            json: true,
            transport: "engine",
        };
        run(&mut engines, &mut Server::new(at, false), &mut Client::new(plan));
    }
}

#[test]
fn nobody_listens() {
    let at: SocketAddr = "10.0.0.1:9".parse().unwrap();
    let [mut a, mut b] = engines(plain());
    let conn = b.connect(at).unwrap();
    let mut events = Vec::new();
    while events.is_empty() {
        a.poll(&mut events, Some(Duration::ZERO)).unwrap();
        b.poll(&mut events, Some(Duration::ZERO)).unwrap();
    }
    assert_eq!(events, [Event::Failed(conn, libc::ECONNREFUSED)]);
}
