//! net_af_xdp on a veth, which needs hugepages.

use crate::need_root;
use crate::place::{Hugepages, LIMIT, in_place};

const XDP: &str = "dpdk:net_af_xdp0,iface=v0,addr=10.9.0.2/24,addr=fd00:9::2/64";

#[test]
fn streams_to_and_from_the_kernel() {
    need_root!();
    in_place("xdp-streams", 1500, |place| {
        let _pages = Hugepages::new(128);
        place.streams(XDP, "10.9.0.2", "10.9.0.1");
        place.streams(XDP, "[fd00:9::2]", "[fd00:9::1]");
    });
}

#[test]
fn idle_and_the_end_of_its_interface() {
    need_root!();
    in_place("xdp-idle", 1500, |place| {
        let _pages = Hugepages::new(64);
        let echo = place.start(XDP, "echo --listen 7");
        assert_eq!(
            (echo.port("sleep").as_str(), echo.port("memory").as_str()),
            ("the driver's own socket", "hugepages")
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
fn without_hugepages_it_is_refused() {
    need_root!();
    in_place("xdp-refused", 1500, |place| {
        let _none = Hugepages::new(0);
        place.refused(XDP, "ping 10.9.0.1", "nr_hugepages");
        place.refused(&format!("{XDP},memory=none"), "ping 10.9.0.1", "memory=huge");
        place.refused(&format!("{XDP},memory=huge"), "ping 10.9.0.1", "nr_hugepages");
        place.refused(&format!("{XDP},mtu=3401"), "ping 10.9.0.1", "take net_af_packet");
    });
}
