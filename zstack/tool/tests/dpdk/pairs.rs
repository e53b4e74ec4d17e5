//! Two engines, each in a process of its own: net_memif at both ends, and net_virtio_user with net_vhost.

use crate::need_root;
use crate::place::{LIMIT, Place, in_place};
use std::time::Duration;

const PATTERN: &str = "--connections 2 --seed 7 --bytes 10M";

/// 10 MiB on each of two connections, both ways.
fn streams(place: &mut Place, server: &str, client: &str) {
    let sink = place.start(server, &format!("sink --listen 9 {PATTERN}"));
    place.well(client, &format!("source --connect 10.7.0.1:9 {PATTERN}"));
    assert!(sink.done().contains("20971520 bytes"));
    let source = place.start(server, &format!("source --listen 19 {PATTERN}"));
    place.well(client, &format!("sink --connect 10.7.0.1:19 {PATTERN}"));
    source.done();
}

#[test]
fn memif() {
    need_root!();
    in_place("memif", 1500, |place| {
        let socket = place.directory.join("memif").display().to_string();
        let end = |role: &str, n: u32| {
            format!(
                "dpdk:net_memif0,role={role},id=0,socket={socket},socket-abstract=no,mac=02:00:00:00:00:0{n},\
                 addr=10.7.0.{n}/24,memory=none"
            )
        };
        let (server, client) = (end("server", 1), end("client", 2));
        streams(place, &server, &client);
        let echo = place.start(&server, "echo --listen 7");
        assert_eq!(echo.port("sleep"), "the other end's interrupt");
        assert!(echo.port("payload").contains("where it is"));
        place.well(&client, "ping -c 3 -i 0.1 10.7.0.1");
        echo.sleeps(0.03);
        // The other end comes again, as often as it likes.
        place.well(&client, "ping -c 2 -i 0.1 10.7.0.1");
        place.refused(&format!("{server},mtu=9000"), "ping 10.7.0.2", "larger bsize=");
    });
}

#[test]
fn virtio_user_and_vhost() {
    need_root!();
    in_place("virtio", 1500, |place| {
        let socket = place.directory.join("vhost").display().to_string();
        let vhost = format!("dpdk:net_vhost0,iface={socket},mac=02:00:00:00:00:01,addr=10.7.0.1/24,memory=none");
        let virtio = format!("dpdk:net_virtio_user0,path={socket},mac=02:00:00:00:00:02,addr=10.7.0.2/24,memory=none");
        streams(place, &vhost, &virtio);
        let here = place.start(&vhost, "echo --listen 7");
        let there = place.start(&virtio, "echo --listen 7");
        for end in [&here, &there] {
            assert_eq!((end.port("sleep").as_str(), end.port("checksum").as_str()), ("the driver's interrupt", "yes"));
        }
        // Something has crossed.
        std::thread::sleep(Duration::from_millis(200));
        for end in [&here, &there] {
            end.sleeps(0.03);
        }
    });
}

#[test]
fn pcap_null_and_a_card_that_is_not_there() {
    need_root!();
    in_place("others", 1500, |place| {
        let base = "addr=10.9.0.2/24,memory=none";
        let pcap = place.start(&format!("dpdk:net_pcap0,iface=v0,{base}"), "echo --listen 7");
        assert_eq!(pcap.port("sleep"), "the driver's own socket");
        place.well("kernel", "ping -c 3 -i 0.1 10.9.0.2");
        pcap.sleeps(0.03);
        place.ours.run("ip link del v0");
        let (status, _) = pcap.process.finish(LIMIT);
        assert_eq!(status.code(), Some(1), "it ends, as its interface is gone");
        let (status, _, text) = place.run(&format!("dpdk:net_null0,{base}"), "ping -c 1 -W 0.2 10.9.0.1");
        assert_eq!(status.code(), Some(1), "nobody is there: {text}");
        let echo = place.start(&format!("dpdk:net_null0,{base}"), "echo --listen 7");
        assert!(echo.port("payload").contains("where it is"), "it takes chains");
        echo.interrupted();
        place.refused(&format!("dpdk:0000:ff:1f.6,{base}"), "ping 10.9.0.1", "vfio-pci");
    });
}
