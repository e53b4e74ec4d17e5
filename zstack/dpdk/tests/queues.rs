//! Two engines that share nothing, on the two queues of a net_af_packet: the kernel's fanout says which connection is whose.

#[path = "../../port/tests/lab/mod.rs"]
mod lab;

use lab::bounded;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use zstack::endpoint::Endpoint;
use zstack::net::Address;
use zstack::sockets::{self, Receive};
use zstack::stack::{Config, Listen};
use zstack_dpdk::{Device, Queue, Spec, Unbound};
use zstack_port::Clock;

const PORT: &str = "dpdk:net_af_packet0,iface=v0,qpairs=2,addr=10.9.0.2/24,memory=none";

/// Sends back what comes until it is told to end; how many connections it had.
fn echo(unbound: Unbound, spec: &Spec, end: &AtomicBool) -> u32 {
    let queue: Queue = unbound.bind();
    let a = spec.addresses[0];
    let mut config = Config::new(Address { ip: a.address, prefix: a.prefix }, [7; 16]);
    config.mac = queue.mac();
    let clock = Clock::start();
    let mut endpoint = Endpoint::new(config, sockets::Config::default(), queue, clock.now()).expect("an endpoint");
    let listener = endpoint.listen(Listen::new(7, endpoint.room()), Receive::Copy).expect("a listener");
    let mut count = 0;
    while !end.load(Ordering::Relaxed) {
        let turn = endpoint.turn(clock.now());
        while endpoint.accept(listener).is_some() {
            count += 1;
        }
        let mut worked = turn.more;
        while let Some((socket, ready)) = endpoint.next_ready() {
            if !ready.readable {
                continue;
            }
            match endpoint.peek(socket).map(<[u8]>::to_vec) {
                Ok(bytes) if bytes.is_empty() => endpoint.close(socket),
                Ok(bytes) => {
                    worked = true;
                    let n = endpoint.write(socket, &bytes, false).unwrap_or(0);
                    endpoint.consume(socket, n).expect("it was there");
                    endpoint.again(socket);
                }
                Err(_) => {}
            }
        }
        if !worked {
            let most = Duration::from_millis(20);
            let limit = clock.until(turn.deadline).map_or(most, |l| l.min(most));
            endpoint.port_mut().wait(&mut [], Some(limit)).expect("poll");
        }
    }
    count
}

#[test]
fn two_queues_serve_their_own_connections() {
    need_root!();
    bounded(Duration::from_secs(120), || {
        let (ours, theirs) = lab::veth();
        let spec: Spec = PORT.parse().expect("a spec");
        let affinity = || {
            std::fs::read_to_string("/proc/thread-self/status")
                .expect("status")
                .lines()
                .find(|l| l.starts_with("Cpus_allowed:"))
                .map(str::to_owned)
        };
        let before = affinity();
        let queues = ours.within(|| {
            let queues = Device::open(&spec).unwrap_or_else(|e| panic!("{e}")).queues();
            // The mode of the memory is the process's.
            let other: Spec = "dpdk:net_null7,memory=huge".parse().expect("a spec");
            let error = Device::open(&other).expect_err("not both").to_string();
            assert!(error.contains("memory=huge"), "{error}");
            queues
        });
        assert_eq!(affinity(), before);
        assert_eq!(queues.len(), 2);
        let end = AtomicBool::new(false);
        let counts: Vec<u32> = std::thread::scope(|scope| {
            let workers: Vec<_> = queues.into_iter().map(|q| scope.spawn(|| echo(q, &spec, &end))).collect();
            theirs.within(|| {
                let streams: Vec<TcpStream> =
                    (0..32).map(|_| TcpStream::connect("10.9.0.2:7").expect("a connection")).collect();
                for (i, mut stream) in streams.iter().enumerate() {
                    stream.set_read_timeout(Some(Duration::from_secs(30))).expect("a time limit");
                    let sent = vec![i as u8; 10_000];
                    stream.write_all(&sent).expect("a write");
                    let mut back = vec![0; sent.len()];
                    stream.read_exact(&mut back).expect("a read");
                    assert!(back == sent, "what comes back is what was sent");
                }
            });
            end.store(true, Ordering::Relaxed);
            workers.into_iter().map(|w| w.join().expect("a worker")).collect()
        });
        assert_eq!(counts.iter().sum::<u32>(), 32);
        assert!(counts.iter().all(|n| *n > 0), "both have some: {counts:?}");
    });
}
