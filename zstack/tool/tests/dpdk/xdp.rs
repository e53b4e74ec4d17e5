//! net_af_xdp on a veth.

use crate::need_root;
use crate::place::{Hugepages, LIMIT, in_place};

const XDP: &str = "dpdk:net_af_xdp0,iface=v0,addr=10.9.0.2/24,addr=fd00:9::2/64";

#[test]
fn streams_to_and_from_the_kernel() {
    need_root!();
    in_place("xdp-streams", 1500, |place| {
        let port = format!("{XDP},memory=none");
        place.streams(&port, "10.9.0.2", "10.9.0.1");
        place.streams(&port, "[fd00:9::2]", "[fd00:9::1]");
        let _pages = Hugepages::new(128);
        place.streams(&format!("{XDP},memory=huge"), "10.9.0.2", "10.9.0.1");
        place.streams(&format!("{XDP},memory=huge,pool=dpdk"), "10.9.0.2", "10.9.0.1");
    });
}

#[test]
fn the_largest_frames() {
    need_root!();
    in_place("xdp-large", 3400, |place| {
        let port = format!("{XDP},memory=none");
        place.well(&port, "ping -c 3 -i 0.01 -s 3372 10.9.0.1");
        place.streams(&port, "10.9.0.2", "10.9.0.1");
    });
}

#[test]
fn idle_and_the_end_of_its_interface() {
    need_root!();
    in_place("xdp-idle", 1500, |place| {
        let echo = place.start(&format!("{XDP},memory=none"), "echo --listen 7");
        assert_eq!(
            (echo.port("sleep").as_str(), echo.port("memory").as_str(), echo.port("pool").as_str()),
            ("the driver's own socket", "ordinary pages", "the pool itself in memory of ours (a sealed memfd)")
        );
        assert!(echo.port("payload").contains("receive pool"), "it sends no chains");
        place.well("kernel", "ping -c 3 -i 0.1 10.9.0.2");
        echo.sleeps(0.01);
        place.ours.run("ip link del v0");
        let (status, _) = echo.process.finish(LIMIT);
        assert_eq!(status.code(), Some(1), "it ends, as its interface is gone");
    });
}

#[test]
fn with_hugepages_they_are_used_and_without_it_is_refused_what_needs_them() {
    need_root!();
    in_place("xdp-pages", 1500, |place| {
        let pages = Hugepages::new(64);
        let echo = place.start(XDP, "echo --listen 7");
        assert_eq!(
            (echo.port("memory").as_str(), echo.port("pool").as_str()),
            ("hugepages", "the pool itself in memory of ours (a sealed memfd of hugepages)")
        );
        echo.interrupted();
        drop(pages);
        let _none = Hugepages::new(0);
        place.refused(&format!("{XDP},pool=dpdk"), "ping 10.9.0.1", "nr_hugepages");
        place.refused(&format!("{XDP},memory=none,pool=dpdk"), "ping 10.9.0.1", "leave pool= out");
        place.refused(&format!("{XDP},memory=huge"), "ping 10.9.0.1", "nr_hugepages");
        place.refused(&format!("{XDP},mtu=3401"), "ping 10.9.0.1", "take net_af_packet");
    });
}
