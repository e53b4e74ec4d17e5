//! net_tap: the kernel's end is in the same namespace.

use crate::need_root;
use crate::place::{LIMIT, in_place};

const TAP: &str = "dpdk:net_tap0,iface=zt0,addr=10.8.0.2/24,peer=10.8.0.1,addr=fd00:8::2/64,peer=fd00:8::1,memory=none";

#[test]
fn streams_to_and_from_the_kernel() {
    need_root!();
    in_place("tap-streams", 1500, |place| {
        place.kernel_with_us();
        place.streams(TAP, "10.8.0.2", "10.8.0.1");
        place.streams(TAP, "[fd00:8::2]", "[fd00:8::1]");
    });
}

#[test]
fn it_sleeps_without_a_signal_and_ends_with_its_device() {
    need_root!();
    in_place("tap-idle", 1500, |place| {
        place.kernel_with_us();
        let echo = place.start(TAP, "echo --listen 7");
        assert_eq!(echo.port("sleep"), "the driver's interrupt");
        // net_tap would have a real-time signal interrupt us for every packet.
        let text = std::fs::read_to_string(format!("/proc/{}/status", echo.process.0.id())).expect("status");
        let caught = text.lines().find_map(|l| l.strip_prefix("SigCgt:")).expect("SigCgt").trim();
        let caught = u64::from_str_radix(caught, 16).expect("a mask");
        assert_eq!(caught >> 33, 0, "real-time signals that are handled: {caught:x}");
        place.well("kernel", "ping -c 3 -i 0.1 10.8.0.2");
        echo.sleeps(0.01);
        place.ours.run("ip link del zt0");
        let (status, _) = echo.process.finish(LIMIT);
        assert_eq!(status.code(), Some(1), "it ends, as its device is gone");
    });
}

#[test]
fn a_larger_mtu_is_refused() {
    need_root!();
    in_place("tap-mtu", 1500, |place| place.refused(&format!("{TAP},mtu=9000"), "ping 10.8.0.1", "take a tap of ours"));
}

/// What a driver counts as sent has arrived, by strace's word: one writev for each packet, from header and payload.
#[test]
fn a_packet_is_one_writev_of_header_and_payload() {
    need_root!();
    in_place("tap-strace", 1500, |place| {
        place.kernel_with_us();
        let trace = place.directory.join("trace");
        let mut command = place.ours.command("strace");
        command
            .args(["-f", "-e", "trace=writev", "-e", "abbrev=none", "-s", "1", "-o"])
            .arg(&trace)
            .arg(env!("CARGO_BIN_EXE_zstack"));
        command.args(["--port", TAP, "source", "--listen", "19", "--bytes", "100k", "--connections", "1"]);
        let source = place.start_command(command);
        place.well("kernel", "sink --connect 10.8.0.2:19 --seed 1 --bytes 100k");
        source.done();
        let text = std::fs::read_to_string(&trace).expect("a trace");
        // struct tun_pi, the headers, and the payload in a piece of its own (two where it wraps).
        let full =
            text.lines().filter(|l| l.contains("iov_len=4") && l.contains("iov_len=66") && l.contains("iov_len=1448"));
        assert!(full.count() >= 50, "{text}");
    });
}
