//! The engine as sender, as receiver, and the kernel as both, side by side over a router that loses as many packets of each.

use crate::*;
use std::sync::mpsc::{Receiver, channel};

/// The other kernel's end, where the engine's place is in the other roles.
const OTHER: &str = "10.9.2.1";

fn by_hand<T: std::str::FromStr>(name: &str, default: T) -> T {
    std::env::var(name).ok().and_then(|v| v.parse().ok()).unwrap_or(default)
}

/// Its calls may block for as long as they like.
fn patient(stream: TcpStream) -> TcpStream {
    stream.set_read_timeout(None).expect("no time limit");
    stream.set_write_timeout(None).expect("no time limit");
    stream
}

/// Starts `count` clients at once, each in a thread in the namespace; how long each took.
fn together(namespace: &Namespace, count: usize, work: impl Fn() + Clone + Send + 'static) -> Receiver<Duration> {
    let (sender, receiver) = channel();
    for _ in 0..count {
        let (sender, work, namespace) = (sender.clone(), work.clone(), namespace.again());
        std::thread::spawn(move || {
            namespace.enter();
            let began = Instant::now();
            work();
            let _ = sender.send(began.elapsed());
        });
    }
    receiver
}

/// Takes connections for ever, and receives what comes.
fn sinks(listener: std::net::TcpListener) {
    std::thread::spawn(move || {
        while let Ok((stream, _)) = listener.accept() {
            std::thread::spawn(move || kernel::sink(&mut patient(stream)));
        }
    });
}

/// What came within the time, of `count`.
fn tell(role: &str, count: usize, mut times: Vec<Duration>) {
    times.sort();
    let quantile = |part: usize| match times.get(count * part / 100) {
        Some(time) => format!("{time:.1?}"),
        None => "longer".into(),
    };
    println!("{role}: {} of {count}; {}, {}, {}", times.len(), quantile(25), quantile(50), quantile(75));
}

/// By hand: how long ZSTACK_LAB_BYTES (100,000) on each of ZSTACK_LAB_COUNT (24) connections at once take in each role, while
/// ZSTACK_LAB_LOSS of a thousand packets (200) are lost each way; over after ZSTACK_LAB_SECONDS (120).
#[test]
#[ignore = "a measurement, which takes minutes"]
fn the_engine_beside_the_kernel() {
    need_root!();
    with_kernel(NO_LIMIT, |kernel| {
        let mut lab = Routed::new(kernel, "off");
        let other = Namespace::new();
        other.run(&format!("ip link add far gso_max_segs 1 type veth peer name other netns {}", lab.router.path()));
        other.run(&format!("ip address add {OTHER}/24 dev far"));
        other.run("ip link set far up txqueuelen 10000");
        lab.router.run("ip address add 10.9.2.254/24 dev other");
        lab.router.run("ip link set other up");
        other.run("ip route add default via 10.9.2.254");
        kernel.run("ip route add 10.9.2.0/24 via 10.9.1.254");
        lab.lose(by_hand("ZSTACK_LAB_LOSS", 200));
        let (bytes, count) = (by_hand("ZSTACK_LAB_BYTES", 100_000), by_hand("ZSTACK_LAB_COUNT", 24));
        let end = Instant::now() + Duration::from_secs(by_hand("ZSTACK_LAB_SECONDS", 120));

        let listener = other.within(|| kernel::listen(ip(OTHER)));
        let to = listener.local_addr().expect("an address");
        sinks(listener);
        let send = move |to| {
            kernel::send(&mut patient(kernel::connect(to)), bytes, NO_LIMIT);
        };
        let kernels = together(kernel, count, move || send(to));
        let mixed = together(kernel, count, move || send(at(ENGINE[0], SINK)));
        let listener = kernel::listen(ip(FAR[0]));
        let to = listener.local_addr().expect("an address");
        sinks(listener);
        for _ in 0..count {
            lab.engine.connect(to, Job::Send(bytes, NO_LIMIT));
        }
        let mut own = Vec::new();
        while let Ok(outcome) = lab.engine.outcomes.recv_timeout(end.saturating_duration_since(Instant::now())) {
            if matches!(outcome.job, Job::Send(..)) {
                assert_eq!((outcome.cause, outcome.answer), (Cause::Done, Some((bytes, u64::MAX))));
                own.push(outcome.took);
            }
        }
        tell("engine to kernel", count, own);
        tell("kernel to engine", count, mixed.try_iter().collect());
        tell("kernel to kernel", count, kernels.try_iter().collect());
        println!("the engine says {}", told(&lab.engine.look()));
        for info in lab.engine.look().connections {
            println!("{info:?}");
        }
        println!("{}", kernel.run("ss -tino"));
        // Whoever is not done ends with the process.
        std::process::exit(0);
    });
}
