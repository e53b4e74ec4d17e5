//! A wire that loses nothing: streams at every MTU, exchanges, and the kernel's counters.

use crate::engine::SLOW;
use crate::*;

#[test]
fn streams_both_ways_in_both_roles_at_every_mtu() {
    need_root!();
    // 88 is the least that a port takes.
    for mtu in [88, 576, 1280, 1500, 9000] {
        let bytes = if mtu < 576 { MB / 4 } else { 4 * MB };
        for offload in ["off", "checksum", "on"] {
            with_kernel(LIMIT, move |_| {
                let mut engine = Engine::start(&spec(mtu, offload));
                for version in if mtu < 1280 { 0..1 } else { 0..2 } {
                    transfers(&mut engine, ENGINE[version], KERNEL[version], bytes, NO_LIMIT);
                }
            });
        }
    }
}

#[test]
fn exchanges_of_small_messages() {
    need_root!();
    with_kernel(LIMIT, |_| {
        let _engine = Engine::start(&spec(1500, "on"));
        for address in ENGINE {
            let mut stream = kernel::connect(at(address, ECHO));
            stream.set_nodelay(true).unwrap();
            for i in 0..2000u32 {
                let message = [i.to_le_bytes(); 16].concat();
                stream.write_all(&message).unwrap();
                let mut back = [0; 64];
                stream.read_exact(&mut back).unwrap();
                assert_eq!(back[..], message);
            }
        }
    });
}

#[test]
fn a_large_echo() {
    need_root!();
    with_kernel(LIMIT, |_| {
        let mut engine = Engine::start(&spec(1500, "on"));
        let mut stream = kernel::connect(at(ENGINE[0], ECHO));
        let mut writer = stream.try_clone().unwrap();
        let sender = std::thread::spawn(move || {
            kernel::feed(&mut writer, 20 * MB, NO_LIMIT).expect("a write");
            writer.shutdown(std::net::Shutdown::Write).unwrap();
        });
        assert_eq!(kernel::receive(&mut stream), 20 * MB);
        sender.join().unwrap();
        // The other way round: the kernel's end sends back.
        let listener = kernel::listen(ip(KERNEL[1]));
        engine.connect(listener.local_addr().unwrap(), Job::Exchange(20 * MB));
        let mut stream = kernel::accept(&listener);
        let mut back = stream.try_clone().unwrap();
        let _ = std::io::copy(&mut stream, &mut back);
        let outcome = engine.outcome(LIMIT, |o| matches!(o.job, Job::Exchange(_)));
        assert_eq!((outcome.received, outcome.wrong, outcome.cause), (20 * MB, None, Cause::Done));
    });
}

/// What would show that something is wrong on a wire that loses nothing. TCPWantZeroWindowAdv does while the kernel has room for all that
/// is sent: else its reader is late on a busy machine, and the kernel counts it whoever sends (tcp_select_window; between two sockets of its
/// own it counts one for some 700 kB that meet a slow reader).
fn faults(before: &HashMap<String, u64>, after: &HashMap<String, u64>) -> Vec<(String, u64)> {
    let names = [
        "IpInHdrErrors",
        "IpInAddrErrors",
        "IpInDiscards",
        "IpExtInCsumErrors",
        "Ip6InHdrErrors",
        "Ip6InAddrErrors",
        "Ip6InDiscards",
        "IcmpOutDestUnreachs",
        "Icmp6OutDestUnreachs",
        "TcpAttemptFails",
        "TcpEstabResets",
        "TcpInErrs",
        "TcpInCsumErrors",
        "TcpOutRsts",
        "TcpExtPAWSEstab",
        "TcpExtTCPAbortOnData",
        "TcpExtTCPAbortOnTimeout",
        "TcpExtTCPACKSkippedSeq",
        "TcpExtTCPChallengeACK",
        "TcpExtTCPSYNChallenge",
        "TcpExtTCPWantZeroWindowAdv",
        "TcpExtTCPZeroWindowDrop",
        "TcpExtTCPRcvCollapsed",
        "TcpExtTCPRcvQDrop",
        "TcpExtTCPBacklogDrop",
        "TcpExtTCPOFOQueue",
        "TcpExtTCPDSACKRecv",
        "TcpRetransSegs",
    ];
    let changed = |name: &str| {
        let delta = after.get(name)? - before.get(name).copied().unwrap_or(0);
        (delta > 0).then(|| (name.to_string(), delta))
    };
    names.iter().filter_map(|name| changed(name)).collect()
}

/// Nothing is retransmitted, nothing is reset, nothing is malformed. An engine that did not run for 200 ms beside busy neighbours
/// looks to the kernel like a lost packet: so its timeout is set to a minute (since Linux 6.11), or one clean run of three is asked
/// for.
#[test]
fn on_a_clean_wire_nothing_goes_wrong() {
    need_root!();
    for offload in ["on", "off"] {
        with_kernel(Duration::from_secs(120), move |namespace| {
            // A probe for lost tails after a few milliseconds says something about the machine only.
            namespace.sysctl("ipv4/tcp_early_retrans", "0");
            let patient = std::path::Path::new("/proc/sys/net/ipv4/tcp_rto_min_us").exists();
            if patient {
                namespace.sysctl("ipv4/tcp_rto_min_us", "60000000");
            }
            // However late the reader is: our packets take no more of the kernel's memory than a stream of them may.
            namespace.sysctl("ipv4/tcp_rmem", "4096 167772160 167772160");
            let mut engine = Engine::start(&spec(1500, offload));
            let mut tries = Vec::new();
            for _ in 0..if patient { 1 } else { 3 } {
                let before = namespace.counters();
                for version in 0..2 {
                    transfers(&mut engine, ENGINE[version], KERNEL[version], 50 * MB, NO_LIMIT);
                }
                let bad = faults(&before, &namespace.counters());
                if bad.is_empty() {
                    return;
                }
                // Never an accident.
                let accidents = ["TcpRetransSegs", "TcpExtTCPDSACKRecv", "TcpExtTCPOFOQueue"];
                let wrong: Vec<_> = bad.iter().filter(|(n, _)| !accidents.contains(&n.as_str())).collect();
                assert!(wrong.is_empty(), "offload={offload}: {wrong:?}; the engine says {}", told(&engine.look()));
                tries.push(bad);
            }
            panic!("offload={offload}: {tries:?}; the engine says {}", told(&engine.look()));
        });
    }
}

fn zero_window_time() -> Duration {
    let seconds = std::env::var("ZSTACK_LAB_ZERO_WINDOW").ok().and_then(|v| v.parse().ok());
    Duration::from_secs(seconds.unwrap_or(10))
}

/// A reader that stops for ten seconds (a minute and more by ZSTACK_LAB_ZERO_WINDOW): the window is shut, probes keep the
/// connection, and nothing is lost.
#[test]
fn a_window_that_is_shut_for_long() {
    need_root!();
    let time = zero_window_time();
    with_kernel_beside(time + LIMIT, move |namespace| {
        let mut engine = Engine::start(&spec(1500, "on"));
        let bytes = 20 * MB;
        // The engine does not read.
        let slow = std::thread::spawn(move || {
            let mut stream = kernel::connect(at(ENGINE[0], SLOW));
            stream.set_write_timeout(Some(time + LIMIT)).unwrap();
            stream.set_read_timeout(Some(time + LIMIT)).unwrap();
            stream.write_all(&(time.as_millis() as u64).to_le_bytes()).unwrap();
            kernel::send(&mut stream, bytes, NO_LIMIT);
        });
        // The kernel does not read.
        let listener = kernel::listen(ip(KERNEL[1]));
        let job = Job::Send(bytes, NO_LIMIT);
        let began = Instant::now();
        engine.connect(listener.local_addr().unwrap(), job);
        let mut stream = kernel::accept(&listener);
        std::thread::sleep(time);
        assert!(kernel::unread(&stream) > 0);
        assert_eq!(kernel::sink(&mut stream), bytes);
        drop(stream);
        let outcome = engine.outcome(LIMIT, |o| o.job == job);
        assert_eq!(outcome.answer, Some((bytes, u64::MAX)));
        assert!(began.elapsed() >= time);
        slow.join().unwrap();
        let counters = namespace.counters();
        assert!(counters["TcpExtTCPToZeroWindowAdv"] > 0, "the kernel's window was shut");
        assert!(counters["TcpExtTCPWinProbe"] > 0, "the engine's window was shut");
        assert_eq!(counters["TcpEstabResets"], 0);
        // On a busy machine the kernel may send its last FIN again before the engine's answer comes. Then two come, and the second finds
        // a socket that is closed.
        assert!(counters["TcpOutRsts"] <= counters["TcpRetransSegs"], "{counters:?}");
    });
}
