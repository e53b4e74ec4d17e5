//! Either end killed with -9 at random moments under load: the other end sees what the kernel would have
//! shown it, what it received is a prefix of what was sent, it goes on, and nothing is left behind.
//!
//! `KILL_ROUNDS` sets the number of rounds of each kind (200 by hand); `KILL_SEED` repeats a run's
//! moments.

use legacy_apps::lab::free_port;
use legacy_apps::procs::{culvert_mappings, descriptor_kinds, descriptors, registries, working_in};
use legacy_apps::{Lab, Mode, PATIENCE, Proc, Side, on_ring, poll_until, rounds, wait_for};
use std::process::Stdio;
use std::time::Duration;

/// Connections between the two peers of a round.
const CONNECTIONS: usize = 4;

/// Small pseudo-random numbers for the moments of death.
struct Moments(u64);

impl Moments {
    fn new() -> Moments {
        let seed = std::env::var("KILL_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or_else(|| {
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("a clock");
            now.as_micros() as u64
        });
        eprintln!("KILL_SEED={seed}");
        Moments(seed | 1)
    }

    /// Waits for up to `most` microseconds: not to let something happen, but to strike anywhere.
    fn pass(&mut self, most: u64) {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        std::thread::sleep(Duration::from_micros(self.0 % most));
    }
}

/// Checks the lines about connections that ended: every one a prefix, every end one that the kernel shows.
#[track_caller]
fn check_ends(lines: &[String], context: &str) {
    for line in lines {
        let words: Vec<&str> = line.split(' ').collect();
        let [_, _, _, verdict, read, write] = words.as_slice() else { panic!("{context}: {line}") };
        assert_eq!(*verdict, "prefix", "{context}: received what was not sent: {line}");
        assert!(["read=eof", "read=reset"].contains(read), "{context}: {line}");
        assert!(["write=pipe", "write=reset", "write=none"].contains(write), "{context}: {line}");
    }
}

fn ends(p: &Proc) -> Vec<String> {
    // The last line may not be complete yet.
    let text = p.stdout();
    let whole = text.rfind('\n').map_or("", |at| &text[..at]);
    whole.lines().filter(|l| l.starts_with("end ")).map(str::to_owned).collect()
}

fn client(lab: &Lab, port: u16, seed: u64) -> Proc {
    let c = lab.start(
        "client",
        lab.peer(Side::Client).args(["stream-client", &port.to_string(), &CONNECTIONS.to_string(), &seed.to_string()]),
    );
    wait_for("streams under way", PATIENCE, || c.stdout().contains("under way"));
    c
}

fn server(lab: &Lab, port: u16) -> Proc {
    lab.serve("server", port, lab.peer(Side::Server).args(["stream-server", &port.to_string()]))
}

/// One server outlives many clients.
fn kill_clients(mode: Mode, n: usize) {
    let lab = Lab::new("kill-clients", mode);
    let mut moments = Moments::new();
    let port = free_port();
    let server = server(&lab, port);
    let mut early = (0, 0);
    for round in 0..n {
        let c = client(&lab, port, round as u64);
        if round == 0 {
            lab.assert_shm(server.pid());
        }
        moments.pass(60_000);
        c.signal(libc::SIGKILL);
        c.wait(PATIENCE);
        let wanted = (round + 1) * CONNECTIONS;
        let all = poll_until(PATIENCE, || ends(&server).len() >= wanted);
        assert!(all, "{mode:?}, round {round}: the server hangs on dead connections: {:?}", ends(&server));
        if round == 2 {
            early = (culvert_mappings(server.pid()), descriptors(server.pid()));
        }
    }
    check_ends(&ends(&server), &format!("{mode:?}, the server"));
    // A survivor tidies up as it goes on: after one more client it holds no more than after the first few.
    let last = client(&lab, port, 999_999);
    last.signal(libc::SIGKILL);
    last.wait(PATIENCE);
    let held = || (culvert_mappings(server.pid()), descriptors(server.pid()));
    // Four more of each is the room for what is tidied up lazily; the rounds are many more.
    let bounded = || n < 8 || (held().0 <= early.0 + 4 && held().1 <= early.1 + 8);
    assert!(
        poll_until(PATIENCE, bounded),
        "{mode:?}: mappings and descriptors grew from {early:?} to {:?} in {n} rounds: {:?}",
        held(),
        descriptor_kinds(server.pid())
    );
    server.signal(libc::SIGKILL);
    server.wait(PATIENCE);
    lab.finish();
}

/// A client outlives its server: every connection ends, in time and properly.
fn kill_servers(mode: Mode, n: usize) {
    let lab = Lab::new("kill-servers", mode);
    let mut moments = Moments::new();
    for round in 0..n {
        let port = free_port();
        let server = server(&lab, port);
        let client = client(&lab, port, round as u64);
        moments.pass(60_000);
        server.signal(libc::SIGKILL);
        server.wait(PATIENCE);
        let out = client.wait(PATIENCE);
        let lines: Vec<String> = out.text().lines().filter(|l| l.starts_with("end ")).map(str::to_owned).collect();
        assert_eq!(lines.len(), CONNECTIONS, "{mode:?}, round {round}: {}", out.stderr);
        check_ends(&lines, &format!("{mode:?}, round {round}, the client"));
        assert!(out.status.success(), "{mode:?}, round {round}: {} {}", out.status, out.stderr);
    }
    lab.finish();
}

/// redis outlives benchmarks, and a benchmark outlives redis.
fn kill_redis(mode: Mode, n: usize) {
    let lab = Lab::new("kill-redis", mode);
    let mut moments = Moments::new();
    let ping = |port: u16| {
        lab.run("ping", lab.command(Side::Client, "redis-cli").args(["-p", &port.to_string(), "PING"])).text()
    };
    let start = |port: u16| {
        let args = [
            "--port",
            &port.to_string(),
            "--save",
            "",
            "--bind",
            "127.0.0.1",
            "--protected-mode",
            "no",
            "--dir",
            &lab.dir().display().to_string(),
        ];
        lab.serve("redis", port, lab.command(Side::Server, "redis-server").args(args))
    };
    let load = |port: u16| {
        let mut c = lab.command(Side::Client, "redis-benchmark");
        c.args([
            "-p",
            &port.to_string(),
            "-c",
            "20",
            "-n",
            "100000000",
            "-d",
            "3000",
            "-r",
            "1000",
            "-t",
            "set",
            "-P",
            "4",
            "-q",
        ]);
        lab.start("benchmark", c.stdin(Stdio::null()))
    };
    let keys = |port: u16| {
        lab.run("keys", lab.command(Side::Client, "redis-cli").args(["-p", &port.to_string(), "DBSIZE"])).text()
    };
    let port = free_port();
    let redis = start(port);
    for round in 0..n {
        lab.run("flush", lab.command(Side::Client, "redis-cli").args(["-p", &port.to_string(), "FLUSHALL"]));
        let benchmark = load(port);
        wait_for("writes", PATIENCE, || keys(port).parse::<u32>().is_ok_and(|k| k > 100));
        moments.pass(30_000);
        benchmark.signal(libc::SIGKILL);
        benchmark.wait(PATIENCE);
        assert_eq!(ping(port), "PONG", "{mode:?}, round {round}");
        // redis answers to one client only: the dead ones' connections are gone.
        wait_for("redis to drop the dead clients", PATIENCE, || {
            let list = lab
                .run("list", lab.command(Side::Client, "redis-cli").args(["-p", &port.to_string(), "CLIENT", "LIST"]));
            list.text().lines().count() == 1
        });
    }
    redis.stop(libc::SIGTERM);
    for round in 0..n.div_ceil(2) {
        let port = free_port();
        let redis = start(port);
        let mut benchmark = load(port);
        wait_for("writes", PATIENCE, || keys(port).parse::<u32>().is_ok_and(|k| k > 100));
        moments.pass(30_000);
        redis.signal(libc::SIGKILL);
        redis.wait(PATIENCE);
        let ended = poll_until(PATIENCE, || benchmark.ended().is_some());
        assert!(ended, "{mode:?}, round {round}: redis-benchmark hangs after its server died");
        let out = benchmark.wait(PATIENCE);
        assert!(!out.status.success(), "{mode:?}, round {round}: {}", out.text());
    }
    lab.finish();
}

/// Bytes of a registry in which there is something at the end of its last table (`rendezvous/src/intent.rs`).
const ALL_TABLES: u64 = 7 << 19;

/// Runs `test` with both ends under culvert and mixed, and looks at what is left afterwards.
fn in_every_mode(n: usize, test: fn(Mode, usize)) {
    test(Mode::Native, n.min(3));
    test(Mode::Both, n);
    for mode in [Mode::ServerOnly, Mode::ClientOnly] {
        test(mode, n.div_ceil(4));
    }
    // One registry for a user and a network namespace, with a place for each entry: whoever dies leaves at most some of them filled. Those of
    // other users and namespaces, of tests beside this one, come and go.
    for (name, size) in registries() {
        assert!(size <= ALL_TABLES, "{name} has {size} bytes");
        let mut numbers = name.trim_start_matches("culvert-").split('-').map(str::parse::<u64>);
        let whose = [numbers.next(), numbers.next(), numbers.next()];
        assert!(matches!(whose, [Some(Ok(_)), Some(Ok(_)), None]), "{name} is no registry");
    }
}

#[test]
fn clients_die() {
    in_every_mode(rounds("KILL_ROUNDS", 20), kill_clients);
}

#[test]
fn servers_die() {
    in_every_mode(rounds("KILL_ROUNDS", 20), kill_servers);
}

#[test]
fn redis_and_its_clients_die() {
    in_every_mode(rounds("KILL_ROUNDS", 20).div_ceil(2), kill_redis);
}

#[test]
fn both_ends_die_at_once() {
    let mut moments = Moments::new();
    let lab = Lab::new("kill-both", Mode::Both);
    for round in 0..rounds("KILL_ROUNDS", 20).div_ceil(2) {
        let port = free_port();
        let server = server(&lab, port);
        let client = client(&lab, port, round as u64);
        moments.pass(30_000);
        client.signal(libc::SIGKILL);
        server.signal(libc::SIGKILL);
        client.wait(PATIENCE);
        server.wait(PATIENCE);
        wait_for("nothing of the round to be left", PATIENCE, || working_in(lab.dir()).is_empty());
    }
    lab.finish();
}

/// The connector's children are killed, each with a connection that it alone has by then: their slots are the next connections', in the
/// channel that is there.
#[test]
fn connections_of_killed_children_need_no_channels_of_their_own() {
    const CHILDREN: usize = 150;
    let lab = Lab::new("killed-children", Mode::Both);
    let program = lab.compile("killed.c", &[]);
    let server = lab.start("server", lab.command(Side::Server, &program).arg("server"));
    wait_for("the listener", PATIENCE, || server.stdout().contains('\n'));
    let port = server.stdout().trim().to_owned();
    let client = lab.command(Side::Client, &program).args(["children", &port, &CHILDREN.to_string()]).status();
    assert!(client.expect("the client").success());
    let lines =
        || server.stdout().lines().filter(|line| line.starts_with("had")).map(str::to_owned).collect::<Vec<_>>();
    wait_for("the ends", PATIENCE, || lines().len() == CHILDREN + 1);
    let log = std::fs::read_to_string(lab.path("culvert.log")).expect("culvert's log");
    assert!(on_ring(&log) >= CHILDREN, "{log}");
    // Both sides speak of each.
    let channels = log.lines().filter(|line| line.ends_with(" bytes a ring")).count();
    assert!((2..=6).contains(&channels), "{channels}: {log}");
}
