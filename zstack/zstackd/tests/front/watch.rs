//! What others do to the front's interface and the port's.

use crate::gate::{Gate, Verdict, echo, wait, wanted};
use crate::lab::{Namespace, bounded};
use crate::need_root;
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;
use zstackd::front::{Event, Front, Watch};

/// All that has happened.
fn events(watch: &mut Watch) -> Vec<Event> {
    let mut all = Vec::new();
    // The kernel tells before the command has ended, but the reader may have been quicker than its other messages.
    while wait(&[watch.as_fd()], Duration::from_millis(50)) {
        while let Some(event) = watch.next_event().expect("netlink") {
            all.push(event);
        }
    }
    all
}

fn front(ns: &Namespace) -> (Front, Watch) {
    ns.within(|| {
        let front = Front::make(&wanted()).unwrap_or_else(|e| panic!("{e}"));
        let mut watch = front.watch().unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(events(&mut watch), []);
        (front, watch)
    })
}

#[test]
fn altered_and_restored() {
    need_root!();
    bounded(Duration::from_secs(60), || {
        let ns = Namespace::new();
        let gate = Gate::new(&ns, |_| Verdict::Hold(Duration::ZERO), echo);
        let mut watch = ns.within(|| gate.front.watch()).unwrap_or_else(|e| panic!("{e}"));
        let (front, state) = (gate.front.clone(), || {
            ["ip address", "ip rule", "ip -6 rule", "ip route show table all", "ip -6 route show table all"]
                .map(|c| ns.run(c).lines().filter(|l| !l.contains("multicast")).map(str::to_string).collect::<Vec<_>>())
        });
        // Others' changes are nothing to us, nor are additions.
        for line in [
            "ip route add unreachable 192.0.2.0/24",
            "ip route del unreachable 192.0.2.0/24",
            "ip rule add from 192.0.2.1 lookup 99",
            "ip rule del from 192.0.2.1 lookup 99",
            "ip addr add 192.0.2.1/32 dev lo",
            "ip addr del 192.0.2.1/32 dev lo",
        ] {
            ns.run(line);
        }
        assert_eq!(events(&mut watch), []);
        drop(gate);
        let mut front = Arc::into_inner(front).expect("nobody else has it");
        let whole = state();
        for line in [
            "ip rule del priority 11800",
            "ip -6 rule del priority 11801",
            "ip rule flush",
            "ip route del 10.9.0.0/16",
            "ip -6 route flush dev cv0",
            "ip route flush table 11800",
            "ip addr del 10.1.0.1/24 dev cv0",
            "ip addr flush dev cv0",
        ] {
            ns.run(line);
            // `ip rule flush` leaves only the local table's.
            if line == "ip rule flush" {
                ns.run("ip rule add lookup main priority 32766");
                ns.run("ip rule add lookup default priority 32767");
            }
            let all = events(&mut watch);
            assert!(all.contains(&Event::Altered), "{line}: {all:?}");
            assert_ne!(state(), whole, "{line}");
            front.restore().unwrap_or_else(|e| panic!("{line}: {e}"));
            assert_eq!(state(), whole, "{line}");
            assert_eq!(events(&mut watch), [], "{line}");
        }
    });
}

#[test]
fn down_up_and_removed() {
    need_root!();
    bounded(Duration::from_secs(60), || {
        let ns = Namespace::new();
        let (mut front, mut watch) = front(&ns);
        let up = watch.link().expect("the tun");
        assert!(up.up && up.mtu == 1500 && up.mac.is_none(), "{up:?}");
        ns.run("ip link set cv0 down");
        let down = Event::Link(zstackd::front::Link { up: false, ..up });
        assert!(events(&mut watch).contains(&down));
        let error = front.lane(0).write(&crate::packets::ping(
            "10.9.0.1".parse().expect("a"),
            "10.1.0.1".parse().expect("b"),
            1,
        ));
        assert_eq!(error.expect_err("it is down").raw_os_error(), Some(libc::EIO));
        front.restore().unwrap_or_else(|e| panic!("{e}"));
        let all = events(&mut watch);
        assert!(all.contains(&Event::Link(up)) && all.contains(&Event::Altered), "{all:?}");
        front.restore().unwrap_or_else(|e| panic!("{e}"));
        assert!(ns.run("ip route get 10.9.0.1").contains("cv0"));
        assert!(ns.run("ip route get fd09::1").contains("cv0"));
        ns.run("ip link set cv0 mtu 1400");
        assert_eq!(events(&mut watch), [Event::Link(zstackd::front::Link { mtu: 1400, ..up })]);
        ns.run("ip link del cv0");
        let all = events(&mut watch);
        assert_eq!(all.last(), Some(&Event::Removed), "{all:?}");
        let error = front.lane(0).read(&mut [0; 100]).expect_err("it is gone");
        assert_eq!(error.raw_os_error(), Some(libc::EBADFD), "{error}");
        // Another of the name is not the front's.
        ns.run("ip tuntap add cv0 mode tun");
        assert_eq!(events(&mut watch), []);
        front.restore().expect_err("it is gone");
        drop(front);
        assert!(!ns.run("ip rule").contains("cv0"), "rules were left");
        assert!(ns.run("ip link").contains("cv0"), "another's interface was removed");
    });
}

/// More changes than the kernel has room to tell of.
#[test]
fn more_than_is_told() {
    need_root!();
    bounded(Duration::from_secs(60), || {
        let ns = Namespace::new();
        let (mut front, mut watch) = front(&ns);
        let batch: String =
            (0..3000).map(|i| format!("address add 192.168.{}.{}/32 dev lo\n", i / 250, i % 250 + 1)).collect();
        let file = std::env::temp_dir().join(format!("zstackd-watch-{}", std::process::id()));
        std::fs::write(&file, batch).expect("a batch");
        ns.run(&format!("ip -batch {}", file.display()));
        ns.run("ip link set cv0 mtu 1300");
        ns.run("ip rule del priority 11800");
        std::fs::remove_file(&file).expect("the batch");
        let all = events(&mut watch);
        assert!(all.contains(&Event::Altered), "{all:?}");
        assert_eq!(watch.link().map(|l| l.mtu), Some(1300));
        front.restore().unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(watch.link().map(|l| l.mtu), Some(1300));
        assert!(ns.run("ip rule").contains("iif cv0"));
    });
}

#[test]
fn the_ports_link() {
    need_root!();
    bounded(Duration::from_secs(60), || {
        let ns = Namespace::new();
        ns.run("ip link add port0 address 02:00:00:00:00:01 type veth peer name other");
        let mut watch = ns.within(|| Watch::port("port0")).unwrap_or_else(|e| panic!("{e}"));
        let link = watch.link().expect("the port");
        assert_eq!((link.up, link.mtu, link.mac), (false, 1500, Some([2, 0, 0, 0, 0, 1])));
        ns.run("ip link set port0 mtu 9000");
        ns.run("ip link set port0 address 02:00:00:00:00:02");
        ns.run("ip link set other up");
        let all = events(&mut watch);
        let now = zstackd::front::Link { mtu: 9000, mac: Some([2, 0, 0, 0, 0, 2]), ..link };
        assert_eq!(all.last(), Some(&Event::Link(now)), "{all:?}");
        ns.run("ip link del port0");
        assert_eq!(events(&mut watch).last(), Some(&Event::Removed));
        ns.run("ip link add port0 type veth peer name other");
        assert!(matches!(events(&mut watch).last(), Some(Event::Link(_))));
        let error = ns.within(|| Watch::port("nothing")).err().expect("there is none").to_string();
        assert!(error.contains("nothing") && !error.contains('\n'), "{error}");
        // Of a front connections still work: it watches no more than it should.
        let gate = Gate::new(&ns, |_| Verdict::Hold(Duration::ZERO), echo);
        ns.within(|| TcpStream::connect("10.9.0.1:80")).expect("connect");
        assert_eq!(events(&mut watch), []);
        drop(gate);
    });
}
