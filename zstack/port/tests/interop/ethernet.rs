//! A tap device: ARP and neighbour discovery with the kernel, and a VLAN.

use crate::*;

const ADDRESSES: &str = "addr=10.9.0.2/24,peer=10.9.0.1,addr=fd00:9::2/64,peer=fd00:9::1";

fn tap(rest: &str) -> Spec {
    format!("tap:zs0,{rest}").parse().expect("a spec")
}

#[test]
fn streams_over_a_tap_device() {
    need_root!();
    for offload in ["off", "checksum", "on"] {
        with_kernel(LIMIT, move |namespace| {
            let mut engine = Engine::start(&tap(&format!("{ADDRESSES},mac=02:00:00:00:00:07,offload={offload}")));
            for version in 0..2 {
                transfers(&mut engine, ENGINE[version], KERNEL[version], 10 * MB, NO_LIMIT);
            }
            let neighbours = namespace.run("ip neigh show dev zs0");
            for address in ENGINE {
                let line = neighbours.lines().find(|l| l.split(' ').next() == Some(address));
                assert!(line.is_some_and(|l| l.contains("02:00:00:00:00:07")), "{neighbours}");
            }
            // The kernel forgets us, and asks again.
            namespace.run("ip neigh flush dev zs0");
            transfers(&mut engine, ENGINE[0], KERNEL[0], MB, NO_LIMIT);
            transfers(&mut engine, ENGINE[1], KERNEL[1], MB, NO_LIMIT);
        });
    }
}

/// The kernel's Ethernet address changes, as a router's does when another takes its place: it says so, and connections go on.
#[test]
fn the_neighbours_address_changes() {
    need_root!();
    with_kernel(LIMIT, |namespace| {
        let mut engine = Engine::start(&tap(ADDRESSES));
        namespace.sysctl("ipv4/conf/zs0/arp_notify", "1");
        namespace.sysctl("ipv6/conf/zs0/ndisc_notify", "1");
        let mut streams = ENGINE.map(|address| kernel::connect(at(address, ECHO)));
        let say = |streams: &mut [TcpStream; 2]| {
            for stream in streams {
                stream.write_all(b"hello").unwrap();
                let mut back = [0; 5];
                stream.read_exact(&mut back).unwrap();
                assert_eq!(&back, b"hello");
            }
        };
        say(&mut streams);
        namespace.run("ip link set zs0 address 02:00:00:00:00:55");
        say(&mut streams);
        transfers(&mut engine, ENGINE[0], KERNEL[0], MB, NO_LIMIT);
    });
}

#[test]
fn a_neighbour_that_is_not_there() {
    need_root!();
    with_kernel_beside(LIMIT, |_| {
        let mut engine = Engine::start(&tap(ADDRESSES));
        let jobs = [0, 1].map(|i| Job::Send(i, NO_LIMIT));
        for (job, address) in jobs.into_iter().zip(["10.9.0.77", "fd00:9::77"]) {
            engine.connect(at(address, 80), job);
        }
        for job in jobs {
            let Ok(outcome) = engine.outcomes.recv_timeout(LIMIT) else { panic!("no outcome of {job:?}") };
            assert!(jobs.contains(&outcome.job) && outcome.cause == Cause::HostUnreachable, "{outcome:?}");
        }
    });
}

#[test]
fn a_vlan() {
    need_root!();
    for offload in ["off", "on"] {
        with_kernel(LIMIT, move |namespace| {
            let add = ["link", "add", "link", "lo", "name", "try", "type", "vlan", "id", "5"];
            let output = namespace.command("ip").args(add).output().expect("ip");
            if String::from_utf8_lossy(&output.stderr).contains("Unknown device type") {
                eprintln!("SKIPPED: this kernel has no VLANs (CONFIG_VLAN_8021Q)");
                return;
            }
            let spec = tap(&format!("addr=10.9.0.2/24,addr=fd00:9::2/64,vlan=5,queue=10000,offload={offload}"));
            let mut engine = Engine::start(&spec);
            namespace.run("ip link add link zs0 name tagged type vlan id 5");
            namespace.run("ip address add 10.9.0.1/24 dev tagged");
            namespace.run("ip address add fd00:9::1/64 dev tagged nodad");
            namespace.run("ip link set zs0 up");
            namespace.run("ip link set tagged up");
            soon("IPv6 on the VLAN", LIMIT, || TcpStream::connect(at(ENGINE[1], ECHO)).ok());
            for version in 0..2 {
                transfers(&mut engine, ENGINE[version], KERNEL[version], 10 * MB, NO_LIMIT);
            }
            // What comes without the tag, or with another one, is not for us.
            namespace.run("ip link add link zs0 name other type vlan id 6");
            namespace.run("ip address del 10.9.0.1/24 dev tagged");
            for device in ["other", "zs0"] {
                namespace.run(&format!("ip address add 10.9.0.1/24 dev {device}"));
                namespace.run(&format!("ip link set {device} up"));
                let error = TcpStream::connect_timeout(&at(ENGINE[0], ECHO), Duration::from_millis(300));
                assert_eq!(error.expect_err(device).kind(), ErrorKind::TimedOut);
                namespace.run(&format!("ip address del 10.9.0.1/24 dev {device}"));
            }
        });
    }
}
