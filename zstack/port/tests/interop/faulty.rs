//! Loss, reordering, and a path MTU that falls.

use crate::impair::{Faults, Impairer};
use crate::*;

/// Bytes that a long test moves: a gigabyte, more by hand (ZSTACK_LAB_BYTES).
fn long(default: u64) -> u64 {
    by_hand().unwrap_or(default)
}

fn by_hand() -> Option<u64> {
    std::env::var("ZSTACK_LAB_BYTES").ok().and_then(|v| v.parse().ok())
}

/// When a long test must be over, however busy the machine is. A quiet one takes a tenth of it.
fn long_limit() -> Duration {
    if by_hand().is_some() { NO_LIMIT } else { Duration::from_secs(400) }
}

/// So many of a thousand packets are lost in a long test. One: a gigabyte meets some 700 losses, each with a window of its own to
/// mend it in, and the window stays at some 40 segments, so that what is measured is the stacks. With ten times as many it is 12
/// segments, and both ends sleep most of the time, for each other's wake-up.
fn loss() -> u32 {
    std::env::var("ZSTACK_LAB_LOSS").ok().and_then(|v| v.parse().ok()).unwrap_or(1)
}

/// A gigabyte in four transfers, each of whose bytes is compared, while packets are lost each way.
#[test]
fn a_gigabyte_with_loss() {
    need_root!();
    with_kernel(long_limit(), |kernel| {
        let mut lab = Routed::new(kernel, "off");
        lab.lose(loss());
        let bytes = long(1 << 30) / 4;
        for (version, address) in FAR.into_iter().enumerate() {
            let began = Instant::now();
            let sent = kernel::send(&mut kernel::connect(at(ENGINE[version], SINK)), bytes, NO_LIMIT);
            println!("kernel to engine, IPv{}: {sent} bytes in {:?}", 4 + 2 * version, began.elapsed());
            let listener = kernel::listen(ip(address));
            let job = Job::Send(bytes, NO_LIMIT);
            lab.engine.connect(listener.local_addr().unwrap(), job);
            let received = kernel::sink(&mut kernel::accept(&listener));
            let outcome = lab.engine.outcome(LIMIT, |o| o.job == job);
            println!("engine to kernel, IPv{}: {received} bytes in {:?}", 4 + 2 * version, outcome.took);
            assert_eq!((outcome.cause, outcome.answer), (Cause::Done, Some((received, u64::MAX))));
            assert_eq!((sent, received), (bytes, bytes));
        }
        println!("{} packets were lost; the engine says {}", lab.lost(), told(&lab.engine.look()));
        assert!(lab.lost() > 100 || by_hand().is_some());
    });
}

/// One packet of ten is lost each way: slow, and right all the same. With one of five a kernel's sender sits in timeouts of ten seconds
/// and more at times: when an ACK is lost the next one may echo an old timestamp (RFC 7323, section 4.3), which it takes for a round
/// trip. `heavy.rs` measures it beside the engine. Packets of several segments are lost whole.
#[test]
fn heavy_loss() {
    need_root!();
    for offload in ["off", "on"] {
        with_kernel_beside(Duration::from_secs(150), move |kernel| {
            let mut lab = Routed::new(kernel, offload);
            lab.lose(100);
            transfers(&mut lab.engine, ENGINE[0], FAR[0], 100_000, NO_LIMIT);
        });
    }
}

/// A link between the kernel, at 10.9.1.1, and the router, at 10.9.1.254, that lets packets overtake each other, doubles some and
/// loses a few.
fn bad_link(kernel: &Namespace, router: &Namespace) -> Impairer {
    let faults = Faults {
        delay: Duration::from_micros(200),
        reordered: 20,
        late: Duration::from_millis(2),
        doubled: 5,
        lost: 1,
        seed: 11,
    };
    link(kernel, router, faults)
}

/// The same link with other faults.
pub fn link(kernel: &Namespace, router: &Namespace, faults: Faults) -> Impairer {
    let device = |text: &str| text.parse::<Spec>().expect("a spec");
    let far = device("tun:far,addr=10.9.1.254/24,peer=10.9.1.1,offload=off,buffers=1024");
    let near = device("tun:near,addr=10.9.1.1/24,peer=10.9.1.254,offload=off,buffers=1024");
    let link = Impairer::start((kernel, far), (router, near), faults);
    kernel.run("ip route add 10.9.0.0/24 via 10.9.1.254");
    link
}

/// The kernel with itself over the link: what the link does, and what can be expected of it.
#[test]
fn the_bad_link_itself() {
    need_root!();
    with_kernel(LIMIT, |kernel| {
        let router = router();
        let link = bad_link(kernel, &router);
        let listener = router.within(|| kernel::listen(ip("10.9.1.254")));
        let to = listener.local_addr().unwrap();
        let sink = std::thread::spawn(move || kernel::sink(&mut kernel::accept(&listener)));
        let began = Instant::now();
        let sent = kernel::send(&mut kernel::connect(to), 50 * MB, Duration::from_secs(2));
        println!("{sent} bytes in {:?}; {:?}", began.elapsed(), link.done());
        assert_eq!(sink.join().unwrap(), sent);
        assert!(link.done().reordered > 10 && link.done().doubled > 0 && link.done().lost > 0);
        assert!(kernel.counters()["TcpRetransSegs"] > 0);
    });
}

/// Two hundred megabytes over the bad link.
#[test]
fn reordering() {
    need_root!();
    with_kernel(long_limit(), |kernel| {
        let router = router();
        let link = bad_link(kernel, &router);
        let mut engine = router.within(|| Engine::start(&routed_spec(1500, "off")));
        let began = Instant::now();
        transfers(&mut engine, ENGINE[0], FAR[0], long(200 * MB) / 4, NO_LIMIT);
        println!("{:?}; {:?}; the engine says {}", began.elapsed(), link.done(), told(&engine.look()));
        assert!(link.done().reordered > 100 && link.done().doubled > 10 && link.done().lost > 5);
    });
}

/// The MTU of a link behind the router falls while both stream: the senders learn it by ICMP.
#[test]
fn the_path_mtu_falls_in_the_middle() {
    need_root!();
    for offload in ["off", "on"] {
        with_kernel(Duration::from_secs(120), move |kernel| {
            let mut lab = Routed::new(kernel, offload);
            for (version, mtu) in [(1, 1400), (1, 1280), (0, 1100), (0, 600)] {
                let listener = kernel::listen(ip(FAR[version]));
                let job = Job::Send(30 * MB, NO_LIMIT);
                lab.engine.connect(listener.local_addr().unwrap(), job);
                let mut stream = kernel::accept(&listener);
                // A part comes through with the old MTU.
                let mut some = vec![0; MB as usize];
                stream.read_exact(&mut some).unwrap();
                assert_eq!(pattern::wrong(0, &some), None);
                lab.router.run(&format!("ip link set near mtu {mtu}"));
                let mut received = MB;
                loop {
                    let n = stream.read(&mut some).unwrap();
                    if n == 0 {
                        break;
                    }
                    assert_eq!(pattern::wrong(received, &some[..n]), None);
                    received += n as u64;
                }
                assert_eq!(received, 30 * MB);
                stream.write_all(&[received.to_le_bytes(), u64::MAX.to_le_bytes()].concat()).unwrap();
                drop(stream);
                let outcome = lab.engine.outcome(LIMIT, |o| o.job == job);
                assert_eq!(outcome.cause, Cause::Done);
            }
            let counters = lab.router.counters();
            assert!(counters["IcmpOutDestUnreachs"] >= 2 && counters["Icmp6OutPktTooBigs"] >= 2, "{counters:?}");
        });
    }
}
