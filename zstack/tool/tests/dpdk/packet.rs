//! net_af_packet on a veth.

use crate::need_root;
use crate::place::{AF_PACKET, LIMIT, in_place};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};

#[test]
fn streams_to_and_from_the_kernel() {
    need_root!();
    in_place("packet-streams", 1500, |place| {
        place.streams(AF_PACKET, "10.9.0.2", "10.9.0.1");
        place.streams(AF_PACKET, "[fd00:9::2]", "[fd00:9::1]");
    });
}

#[test]
fn jumbo_frames() {
    need_root!();
    in_place("packet-jumbo", 9000, |place| {
        let echo = place.start(AF_PACKET, "echo --listen 7");
        assert_eq!(echo.port("mtu"), "9000", "the interface's own");
        echo.interrupted();
        let text = place.well(&format!("{AF_PACKET},gateway=10.9.0.1"), "bare --size 1500 --seconds 0.2");
        assert!(text.contains("a packet of 1500 bytes on net_af_packet0"), "{text}");
        place.streams(AF_PACKET, "10.9.0.2", "10.9.0.1");
        let port = format!("{AF_PACKET},mtu=9001");
        place.refused(&port, "ping 10.9.0.1", "ip link set dev v0 mtu 9001");
        let port = format!("{AF_PACKET},mtu=9000,framesz=2048");
        place.refused(&port, "ping 10.9.0.1", "leave framesz= out");
    });
}

#[test]
fn echo_idle_and_a_port_that_vanishes() {
    need_root!();
    in_place("packet-echo", 1500, |place| {
        let echo = place.start(AF_PACKET, "echo --listen 7");
        assert_eq!(echo.port("sleep"), "the driver's own socket");
        assert_eq!(echo.port("memory"), "ordinary pages");
        assert!(echo.port("payload").contains("where it is"));
        let mut stream = TcpStream::connect("10.9.0.2:7").expect("a connection");
        stream.set_read_timeout(Some(LIMIT)).expect("a time limit");
        let sent: Vec<u8> = (0..200_000u32).map(|i| (i % 251) as u8).collect();
        let mut writer = stream.try_clone().expect("a clone");
        let bytes = sent.clone();
        let writing = std::thread::spawn(move || {
            writer.write_all(&bytes).expect("a write");
            writer.shutdown(Shutdown::Write).expect("shutdown");
        });
        let mut back = Vec::new();
        stream.read_to_end(&mut back).expect("a read");
        writing.join().expect("the writer");
        assert!(back == sent, "what comes back is what was sent");
        // Sent from the buffers that it came in, which the driver read there.
        assert!(echo.counter("device_sent_bytes_in_place") >= 200_000);
        assert_eq!(echo.counter("device_sent_bytes_copied"), 0);
        assert_eq!((echo.counter("tcp_bad_checksum"), echo.counter("device_unfit")), (0, 0));

        echo.sleeps(0.01);
        place.ours.run("ip link del v0");
        let (status, _) = echo.process.finish(LIMIT);
        assert_eq!(status.code(), Some(1), "it ends, as its port is gone");
    });
}

#[test]
fn what_is_wrong_is_one_line_with_the_remedy() {
    need_root!();
    in_place("packet-wrong", 1500, |place| {
        let ping = "ping 10.9.0.1";
        let base = "addr=10.9.0.2/24,memory=none";
        place.refused(&format!("dpdk:net_af_packet0,iface=nowhere,{base}"), ping, "is there an interface `nowhere`");
        place.refused(&format!("dpdk:net_unheard0,{base}"), ping, "no driver of DPDK's has that name");
        place.refused(&format!("dpdk:net_af_packet0,iface=v0,colour=red,{base}"), ping, "driver's keys");
        place.refused(&format!("dpdk:net_af_packet0,{base}"), ping, "add iface=NAME");
        place.refused("dpdk:net_af_packet0,iface=v0", ping, "add addr=");
        place.refused(&format!("dpdk:net_af_packet0,iface=v0,mtu=1501,{base}"), ping, "ip link set dev v0 mtu 1501");
        place.refused(&format!("dpdk:0000:ff:1f.7,{base}"), ping, "vfio-pci");
        place.refused(
            "dpdk:net_af_packet0,iface=v0,addr=10.9.0.2/24,memory=huge,mbufs=1000000",
            ping,
            "write memory=none",
        );
    });
}

/// DPDK leaves the process as it found it.
#[test]
fn a_guest_that_nobody_notices() {
    need_root!();
    in_place("packet-guest", 1500, |place| {
        let kernel = place.start("kernel", "echo --listen 7");
        let echo = place.start(AF_PACKET, "echo --listen 7");
        let status = |tool: &crate::place::Tool, field: &str| {
            let text = std::fs::read_to_string(format!("/proc/{}/status", tool.process.0.id())).expect("status");
            text.lines().find_map(|l| l.strip_prefix(field)).expect("the field").trim().to_owned()
        };
        assert_eq!(status(&echo, "Cpus_allowed:"), status(&kernel, "Cpus_allowed:"));
        // 33 is the C library's own, of setxid in processes with threads.
        let caught = |tool| u64::from_str_radix(&status(tool, "SigCgt:"), 16).expect("a mask") & !(1 << 32);
        assert_eq!(caught(&echo), caught(&kernel), "signals that are handled");
        let id = echo.process.0.id();
        for path in ["/var/run/dpdk", "/tmp/dpdk"] {
            let left = std::path::Path::new(path).join(format!("zstack-{id}"));
            assert!(!left.exists(), "{} was left behind", left.display());
        }
        // Two processes with DPDK at once do not disturb each other.
        let other =
            AF_PACKET.replace("10.9.0.2", "10.9.0.3").replace("fd00:9::2", "fd00:9::3") + ",mac=02:00:00:00:00:07";
        place.well(&other, "ping -c 2 -i 0.1 10.9.0.1");
        assert!(TcpStream::connect("10.9.0.2:7").is_ok());
        // A signal ends it in order.
        echo.interrupted();
    });
}
