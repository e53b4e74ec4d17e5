//! How connections end in order, and what else happens beside the stream: keep-alives, urgent data, resets.

use crate::impair::{Faults, Impairer};
use crate::*;

/// Each end goes on after the other has ended its stream.
#[test]
fn half_closed_connections() {
    need_root!();
    with_kernel(LIMIT, |_| {
        let mut engine = Engine::start(&spec(1500, "on"));
        for version in 0..2 {
            // The kernel's stream is over before the engine's begins.
            let mut stream = kernel::connect(at(ENGINE[version], SOURCE));
            stream.write_all(&(5 * MB).to_le_bytes()).unwrap();
            stream.shutdown(std::net::Shutdown::Write).unwrap();
            assert_eq!(kernel::receive(&mut stream), 5 * MB);
            // The engine's is over before the kernel's begins.
            let listener = kernel::listen(ip(KERNEL[version]));
            engine.connect(listener.local_addr().unwrap(), Job::Fetch);
            let mut stream = kernel::accept(&listener);
            assert_eq!(stream.read(&mut [0]).unwrap(), 0);
            kernel::feed(&mut stream, 5 * MB, NO_LIMIT).unwrap();
            drop(stream);
            let outcome = engine.outcome(LIMIT, |o| o.job == Job::Fetch);
            assert_eq!((outcome.cause, outcome.received, outcome.wrong), (Cause::Done, 5 * MB, None));
        }
    });
}

/// A tenth of a second between both: what both send within that time crosses.
fn long_link(kernel: &Namespace, router: &Namespace) -> Impairer {
    let faults =
        Faults { delay: Duration::from_millis(100), reordered: 0, late: Duration::ZERO, doubled: 0, lost: 0, seed: 1 };
    faulty::link(kernel, router, faults)
}

/// Both FINs are under way at once: both ends go through CLOSING into TIME_WAIT (RFC 9293, figure 13).
#[test]
fn both_close_at_once() {
    need_root!();
    with_kernel_beside(LIMIT, |kernel| {
        let router = router();
        let _link = long_link(kernel, &router);
        let mut engine = router.within(|| Engine::start(&routed_spec(1500, "off")));
        // On a busy machine the moments may lie too far apart: then the connection ends one after the other.
        let crossed = (1..=5).any(|n| {
            let mut stream = kernel::connect(at(ENGINE[0], CLOSER));
            stream.write_all(&100u64.to_le_bytes()).unwrap();
            std::thread::sleep(Duration::from_millis(200));
            stream.shutdown(std::net::Shutdown::Write).unwrap();
            assert_eq!(stream.read(&mut [0]).unwrap(), 0, "a FIN and no RST");
            drop(stream);
            let outcome = engine.outcome(LIMIT, |o| o.job == Job::Closer);
            assert_eq!((outcome.cause, outcome.received), (Cause::Done, 0));
            soon("the end", LIMIT, || engine.look().connections.is_empty().then_some(()));
            let ours = engine.look().counters[Counter::TimeWait];
            let theirs = kernel.run("ss -Htan state time-wait").lines().count() as u64;
            ours == n && theirs == n
        });
        assert!(crossed, "both ends were never in TIME_WAIT");
        assert_eq!((kernel.counters()["TcpOutRsts"], kernel.counters()["TcpEstabResets"]), (0, 0));
    });
}

#[test]
fn a_reset_from_the_kernel() {
    need_root!();
    with_kernel(LIMIT, |_| {
        let mut engine = Engine::start(&spec(1500, "on"));
        for address in ENGINE {
            // Idle, and with bytes under way in both directions.
            let mut stream = kernel::connect(at(address, SINK));
            stream.write_all(pattern::piece(0, 1000)).unwrap();
            kernel::reset(stream);
            let outcome = engine.outcome(LIMIT, |o| o.job == Job::Sink);
            assert_eq!((outcome.cause, outcome.wrong), (Cause::Reset, None));
            let mut stream = kernel::connect(at(address, SOURCE));
            stream.write_all(&(100 * MB).to_le_bytes()).unwrap();
            stream.read_exact(&mut vec![0; MB as usize]).unwrap();
            kernel::reset(stream);
            let outcome = engine.outcome(LIMIT, |o| o.job == Job::Source);
            assert_eq!(outcome.cause, Cause::Reset);
        }
        soon("the end of all", LIMIT, || engine.look().connections.is_empty().then_some(()));
    });
}

/// Urgent bytes stay in line (RFC 6093, section 6).
#[test]
fn urgent_data_from_the_kernel() {
    need_root!();
    with_kernel(LIMIT, |_| {
        let mut engine = Engine::start(&spec(1500, "on"));
        let mut stream = kernel::connect(at(ENGINE[0], SINK));
        let mut at = 0;
        for len in [1, 500, 100_000, 1, 3] {
            let bytes = pattern::piece(at, len);
            stream.write_all(bytes).unwrap();
            at += bytes.len() as u64;
            kernel::send_urgent(&stream, pattern::piece(at, 3));
            at += 3;
        }
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let outcome = engine.outcome(LIMIT, |o| o.job == Job::Sink);
        assert_eq!((outcome.cause, outcome.received, outcome.wrong), (Cause::Done, at, None));
        assert!(engine.look().counters[Counter::TcpUrgent] > 0);
    });
}

/// An idle connection is probed by both, which answer each other. Then the link loses everything, and both give up.
#[test]
fn keep_alives_both_ways() {
    need_root!();
    with_kernel_beside(LIMIT, |namespace| {
        let mut engine = Engine::start_with(&spec(1500, "on"), |config| {
            config.tcp.keepalive = true;
            config.tcp.keepalive_idle = 700;
            config.tcp.keepalive_interval = 500;
            config.tcp.keepalive_count = 3;
        });
        // Only the engine probes this one, and the kernel this one first.
        let listener = kernel::listen(ip(KERNEL[0]));
        engine.connect(listener.local_addr().unwrap(), Job::Hold);
        let _probed = kernel::accept(&listener);
        let mut probing = kernel::connect(at(ENGINE[1], ECHO));
        kernel::keep_alive(&probing);
        probing.set_nodelay(true).unwrap();
        std::thread::sleep(Duration::from_millis(3500));
        let look = engine.look();
        assert!(look.counters[Counter::TcpKeepalive] >= 3, "{}", told(&look));
        assert_eq!(look.connections.len(), 2, "both live");
        probing.write_all(b"alive").unwrap();
        probing.read_exact(&mut [0; 5]).unwrap();
        assert_eq!(namespace.counters()["TcpEstabResets"], 0);
        // The kernel's packets do not arrive any more, nor ours there.
        namespace.nft(
            "table inet silence {\nchain i {\ntype filter hook input priority 0;\niifname zs0 drop\n}\n\
             chain o {\ntype filter hook output priority 0;\noifname zs0 drop\n}\n}\n",
        );
        let error = probing.read(&mut [0; 5]).expect_err("the kernel gives up");
        assert_eq!(error.raw_os_error(), Some(libc::ETIMEDOUT), "{error}");
        let outcome = engine.outcome(LIMIT, |o| o.job == Job::Hold);
        assert_eq!(outcome.cause, Cause::TimedOut);
    });
}

/// The kernel's keep-alives to an engine that sends none: they are answered, and counted as what they are.
#[test]
fn keep_alives_of_the_kernel() {
    need_root!();
    with_kernel_beside(LIMIT, |namespace| {
        let mut engine = Engine::start(&spec(1500, "on"));
        let mut stream = kernel::connect(at(ENGINE[0], ECHO));
        kernel::keep_alive(&stream);
        std::thread::sleep(Duration::from_millis(4500));
        stream.write_all(b"alive").unwrap();
        stream.read_exact(&mut [0; 5]).unwrap();
        assert!(namespace.counters()["TcpExtTCPKeepAlive"] >= 2);
        let look = engine.look();
        let (old, outside) = (look.counters[Counter::TcpOld], look.counters[Counter::TcpOutside]);
        assert!(old >= 2 && outside == 0, "{}", told(&look));
    });
}
