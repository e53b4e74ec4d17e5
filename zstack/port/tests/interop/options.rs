//! The kernel without one option or another, cookies of both, and the same addresses and ports once more.

use crate::*;

#[test]
fn without_timestamps_sack_or_scaling() {
    need_root!();
    const SWITCHES: [&str; 3] = ["tcp_timestamps", "tcp_sack", "tcp_window_scaling"];
    for off in [&SWITCHES[..1], &SWITCHES[1..2], &SWITCHES[2..], &SWITCHES] {
        with_kernel_beside(LIMIT, move |kernel| {
            for switch in off {
                kernel.sysctl(&format!("ipv4/{switch}"), "0");
            }
            let mut lab = Routed::new(kernel, "off");
            for version in 0..2 {
                transfers(&mut lab.engine, ENGINE[version], FAR[version], 2 * MB, NO_LIMIT);
            }
            lab.lose(20);
            transfers(&mut lab.engine, ENGINE[0], FAR[0], MB / 3, NO_LIMIT);
            assert!(lab.lost() > 5, "{off:?}");
        });
    }
}

/// Every SYN-ACK of the kernel carries a cookie (tcp_syncookies in tcp(7)); with and without timestamps, which hold the options.
#[test]
fn cookies_of_the_kernel() {
    need_root!();
    for stamps in ["1", "0"] {
        with_kernel(LIMIT, move |namespace| {
            namespace.sysctl("ipv4/tcp_syncookies", "2");
            namespace.sysctl("ipv4/tcp_timestamps", stamps);
            let mut engine = Engine::start(&spec(1500, "on"));
            for address in KERNEL {
                engine_connects(&mut engine, address, 10 * MB, NO_LIMIT);
            }
            let counters = namespace.counters();
            assert!(counters["TcpExtSyncookiesRecv"] >= 4 && counters["TcpExtSyncookiesFailed"] == 0, "{counters:?}");
        });
    }
}

#[test]
fn cookies_of_the_engine() {
    need_root!();
    for stamps in ["1", "0"] {
        with_kernel_beside(LIMIT, move |namespace| {
            namespace.sysctl("ipv4/tcp_timestamps", stamps);
            // One handshake is never completed: the listener takes no other.
            namespace.sysctl("ipv4/tcp_syn_retries", "1");
            namespace
                .nft("table inet half {\nchain i {\ntype filter hook input priority 0;\ntcp dport 40001 drop\n}\n}\n");
            let mut engine = Engine::start(&spec(1500, "on"));
            let half = std::thread::spawn(|| kernel::connect_from(40_001, at(ENGINE[0], COOKIE)));
            soon("half a connection", LIMIT, || (engine.look().connections.len() == 1).then_some(()));
            for address in ENGINE {
                for _ in 0..5 {
                    kernel::send(&mut kernel::connect(at(address, COOKIE)), 4 * MB, NO_LIMIT);
                    let outcome = engine.outcome(LIMIT, |o| o.job == Job::Sink);
                    assert_eq!((outcome.cause, outcome.received, outcome.wrong), (Cause::Done, 4 * MB, None));
                }
            }
            let counters = engine.look().counters;
            let told = [Counter::CookieSent, Counter::CookieAccepted, Counter::CookieInvalid].map(|c| counters[c]);
            assert_eq!(told, [10, 10, 0]);
            let error = half.join().unwrap().expect_err("its SYN-ACKs were dropped");
            assert_eq!(error.kind(), ErrorKind::TimedOut);
        });
    }
}

/// The kernel's client comes again from the same port while the engine is in TIME_WAIT (RFC 6191): at once, with and without
/// timestamps.
#[test]
fn the_same_ports_again_while_the_engine_waits() {
    need_root!();
    for stamps in ["1", "0"] {
        with_kernel(LIMIT, move |namespace| {
            namespace.sysctl("ipv4/tcp_timestamps", stamps);
            let mut engine = Engine::start(&spec(1500, "on"));
            const TIMES: u64 = 50;
            for i in 0..TIMES {
                // Without timestamps the engine asks for a later sequence number: the kernel's grows by one every 64 ns.
                let mut stream =
                    kernel::connect_from(40_000, at(ENGINE[0], SOURCE)).unwrap_or_else(|e| panic!("{i}: {e}"));
                stream.set_nodelay(true).unwrap();
                kernel::fetch(&mut stream, 1000 + i);
                // The engine has ended first: it is the one that waits.
                drop(stream);
                engine.outcome(LIMIT, |o| o.job == Job::Source);
                if stamps == "1" {
                    // Later timestamps: the kernel's count milliseconds.
                    std::thread::sleep(Duration::from_millis(2));
                }
            }
            let counters = engine.look().counters;
            assert_eq!(counters[Counter::TimeWaitReused], TIMES - 1, "{counters:?}");
            assert_eq!(namespace.counters()["TcpRetransSegs"], 0, "no SYN had to be sent twice");
        });
    }
}

/// The engine comes again from the same port while the kernel is in TIME_WAIT.
#[test]
fn the_same_ports_again_while_the_kernel_waits() {
    need_root!();
    with_kernel(LIMIT, |namespace| {
        let mut engine = Engine::start(&spec(1500, "on"));
        let listener = kernel::listen(ip(KERNEL[0]));
        for i in 0..20 {
            engine.connect_from(40_000, listener.local_addr().unwrap(), Job::Hold);
            let mut stream = kernel::accept(&listener);
            kernel::feed(&mut stream, 1000 + i, NO_LIMIT).unwrap();
            stream.shutdown(std::net::Shutdown::Write).unwrap();
            let outcome = engine.outcome(LIMIT, |o| o.job == Job::Hold);
            assert_eq!((outcome.cause, outcome.received), (Cause::Done, 1000 + i));
            assert_eq!(stream.read(&mut [0]).unwrap(), 0);
            soon("the end", LIMIT, || engine.look().connections.is_empty().then_some(()));
            std::thread::sleep(Duration::from_millis(2));
        }
        assert_eq!(namespace.counters()["TcpOutRsts"], 0);
    });
}
