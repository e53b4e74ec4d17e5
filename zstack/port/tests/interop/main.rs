//! The engine and the kernel's TCP, in namespaces: both roles, both versions of IP, every fault that a network has.

mod clean;
mod closing;
mod ends;
mod engine;
mod ethernet;
mod faulty;
mod flood;
mod heavy;
mod impair;
mod kernel;
#[path = "../lab/mod.rs"]
mod lab;
mod many;
mod options;
mod pattern;

use engine::{CLOSER, COOKIE, ECHO, Engine, Job, Look, SINK, SOURCE};
use lab::{Namespace, beside, bounded, soon};
use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::process::Stdio;
use std::time::{Duration, Instant};
use zstack::counters::Counter;
use zstack::tcp::Cause;
use zstack_port::Spec;

const MB: u64 = 1 << 20;
const LIMIT: Duration = Duration::from_secs(60);
const NO_LIMIT: Duration = Duration::from_secs(3600);

/// The engine's addresses, and the kernel's.
const ENGINE: [&str; 2] = ["10.9.0.2", "fd00:9::2"];
const KERNEL: [&str; 2] = ["10.9.0.1", "fd00:9::1"];

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn at(address: &str, port: u16) -> SocketAddr {
    (ip(address), port).into()
}

fn spec(mtu: u16, offload: &str) -> Spec {
    let v6 = if mtu < 1280 { "" } else { ",addr=fd00:9::2/64,peer=fd00:9::1" };
    let text = format!("tun:zs0,addr=10.9.0.2/24,peer=10.9.0.1{v6},mtu={mtu},offload={offload}");
    text.parse().expect("a spec")
}

/// Runs a test in a namespace whose kernel is the peer, within `limit`, and no other of its kind at the same time.
fn with_kernel(limit: Duration, work: impl FnOnce(&Namespace) + Send + 'static) {
    bounded(limit, || in_namespace(work));
}

/// The same for a test that mostly sleeps: it runs beside others.
fn with_kernel_beside(limit: Duration, work: impl FnOnce(&Namespace) + Send + 'static) {
    beside(limit, || in_namespace(work));
}

fn in_namespace(work: impl FnOnce(&Namespace)) {
    let namespace = Namespace::new();
    namespace.enter();
    work(&namespace);
}

/// `bytes` each way in both roles: each transfer takes at most `time`, and is shorter then. The kernel's address is that of its
/// end of the link, and the engine's must be reachable.
fn transfers(engine: &mut Engine, own: &str, peer: &str, bytes: u64, time: Duration) {
    // The engine is passive.
    kernel::send(&mut kernel::connect(at(own, SINK)), bytes, time);
    kernel::fetch(&mut kernel::connect(at(own, SOURCE)), bytes);
    engine_connects(engine, peer, bytes, time);
}

/// `bytes` each way with the engine as the active end.
fn engine_connects(engine: &mut Engine, peer: &str, bytes: u64, time: Duration) {
    let listener = kernel::listen(ip(peer));
    let to = listener.local_addr().expect("an address");
    let job = Job::Send(bytes, time);
    engine.connect(to, job);
    let received = kernel::sink(&mut kernel::accept(&listener));
    let outcome = engine.outcome(LIMIT, |o| o.job == job);
    assert_eq!((outcome.cause, outcome.answer), (Cause::Done, Some((received, u64::MAX))));
    assert_eq!(outcome.sent, received);
    engine.connect(to, Job::Sink);
    let sent = kernel::send(&mut kernel::accept(&listener), bytes, time);
    let outcome = engine.outcome(LIMIT, |o| o.job == Job::Sink);
    assert_eq!((outcome.cause, outcome.received, outcome.wrong), (Cause::Done, sent, None));
}

/// What the engine says: all counters that are not 0, and its device's.
fn told(look: &Look) -> String {
    let counters: Vec<_> = look.counters.iter().filter(|(_, n)| *n > 0).map(|(c, n)| (c.name(), n)).collect();
    format!("{counters:?}, {:?}", look.device)
}

/// A router between both: the kernel's end at 10.9.1.1 and fd00:91::1, the engine's device in the router. What it forwards is not
/// joined.
struct Routed {
    router: Namespace,
    engine: Engine,
}

const FAR: [&str; 2] = ["10.9.1.1", "fd00:91::1"];

fn router() -> Namespace {
    let router = Namespace::new();
    router.sysctl("ipv4/ip_forward", "1");
    router.sysctl("ipv6/conf/all/forwarding", "1");
    router
}

fn routed_spec(mtu: u16, offload: &str) -> Spec {
    let addresses =
        "addr=10.9.0.2/24,peer=10.9.0.1,gateway=10.9.0.1,addr=fd00:9::2/64,peer=fd00:9::1,gateway=fd00:9::1";
    format!("tun:zs0,{addresses},mtu={mtu},offload={offload}").parse().expect("a spec")
}

impl Routed {
    fn new(kernel: &Namespace, offload: &str) -> Routed {
        let router = router();
        kernel.run(&format!("ip link add far gso_max_segs 1 type veth peer name near netns {}", router.path()));
        kernel.run("ip address add 10.9.1.1/24 dev far");
        kernel.run("ip address add fd00:91::1/64 dev far nodad");
        kernel.run("ip link set far up txqueuelen 10000");
        router.run("ip address add 10.9.1.254/24 dev near");
        router.run("ip address add fd00:91::254/64 dev near nodad");
        router.run("ip link set near up");
        kernel.run("ip route add 10.9.0.0/24 via 10.9.1.254");
        kernel.run("ip route add fd00:9::/64 via fd00:91::254");
        let engine = router.within(|| Engine::start(&routed_spec(1500, offload)));
        // IPv6 forwards when the link is seen to be up.
        soon("a way to the engine", LIMIT, || TcpStream::connect(at(ENGINE[1], ECHO)).ok());
        Routed { router, engine }
    }

    /// Loses so many of a thousand packets, both ways.
    fn lose(&self, per_mille: u32) {
        let rule = format!("numgen random mod 1000 < {per_mille} counter drop");
        self.router
            .nft(&format!("table inet imp {{\nchain c {{\ntype filter hook forward priority 0;\n{rule}\n}}\n}}\n"));
    }

    fn lost(&self) -> u64 {
        let text = self.router.run("nft list table inet imp");
        let words: Vec<_> = text.split_whitespace().collect();
        let place = words.iter().position(|w| *w == "packets").expect("a counter");
        words[place + 1].parse().expect("a number")
    }
}
