//! Wrong configuration is one line with the remedy, and exit status 2. Nothing here needs a device or root.

use std::process::{Command, Output};

fn zstack(words: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_zstack"));
    command.args(words.split_whitespace()).env_remove("ZSTACK_PORT").output().unwrap()
}

fn refused(words: &str, remedy: &str) {
    let out = zstack(words);
    let text = String::from_utf8_lossy(&out.stderr).into_owned();
    assert_eq!(out.status.code(), Some(2), "{words}: {text}");
    assert_eq!(text.lines().count(), 1, "{words}: {text}");
    assert!(text.starts_with("zstack: ") && text.contains(remedy), "{words}: {text}");
}

#[test]
fn devices_that_cannot_be() {
    refused("--port tun:averyveryverylongname,addr=10.1.0.2/24 ping 10.1.0.1", "at most 15");
    refused("--port tun:zsx,addr=10.1.0.2/24 --mtu 20 ping 10.1.0.1", "from 88");
    refused("--port tun:zsx,addr=fd01::2/64 --mtu 600 ping fd01::1", "at least 1280");
    refused("--port tun:zsx,addr=10.1.0.2/24 --mtu 70000 ping 10.1.0.1", "mtu=70000: it is a number from 88");
    refused(
        "--port tun:zsx,mtu=1400,mtu=1500,addr=10.1.0.2/24 ping 10.1.0.1",
        "mtu=1500: mtu is there twice; name it once",
    );
    refused("--port tun:zsx,mtu=1400,addr=10.1.0.2/24 --mtu 87 ping 10.1.0.1", "mtu=87: it is a number from 88");
    refused("--port tun:zsx ping 10.1.0.1", "add addr=");
    refused("--port net:zsx,addr=10.1.0.2/24 ping 10.1.0.1", "write tun:NAME");
    refused("--port tun:zsx,addr=10.1.0.2/24 bare", "peer=");
}

#[test]
fn dpdk_is_named_whether_it_was_built_in_or_not() {
    if cfg!(feature = "dpdk") {
        refused("--port dpdk: ping 10.1.0.1", "write dpdk:DEVICE");
        refused("--port dpdk:net_tap0 ping 10.1.0.1", "add addr=");
        refused("--port dpdk:net_tap0,addr=10.1.0.2/24,queues=2 ping 10.1.0.1", "leave queues= out");
    } else {
        refused("--port dpdk:net_tap0,addr=10.1.0.2/24 ping 10.1.0.1", "--features dpdk");
    }
}

#[test]
fn ports_and_options_that_do_not_go_together() {
    refused("ping 10.1.0.1", "--port kernel");
    refused("--port kernel --pcap /nonexistent/x ping 127.0.0.1", "--port tun:NAME");
    refused("--port kernel echo --listen 7 --deferred", "--port tun:NAME");
    refused("--port kernel bare", "--port tun:NAME");
    refused("--port kernel http --listen 8080 /nonexistent", "give the directory");
    refused("--port kernel perf --connect 127.0.0.1:1 --size 2G", "--size 2147483648: give 1 byte to 1 GiB");
    refused("stat", "--control PATH");
}

#[test]
fn an_address_that_is_in_use() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let at = taken.local_addr().unwrap();
    refused(&format!("--port kernel echo --listen {at}"), "choose another port");
}

/// Without the right to make a device. Root gives it up for the child.
#[test]
fn no_rights() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_zstack"));
    command.args(["--port", "tun:zsx,addr=10.1.0.2/24", "ping", "10.1.0.1"]);
    // The user of the child may not see the directory that the program lies in.
    let binary = std::env::temp_dir().join(format!("zstack-setup-{}", std::process::id()));
    let root = std::fs::metadata("/proc/self").is_ok_and(|m| std::os::unix::fs::MetadataExt::uid(&m) == 0);
    if root {
        // By a process of its own: a child that another test starts meanwhile would have the file open to be written, which cannot be run then.
        let copied = Command::new("cp").arg(env!("CARGO_BIN_EXE_zstack")).arg(&binary).status().unwrap();
        assert!(copied.success());
        let args: Vec<_> = command.get_args().map(ToOwned::to_owned).collect();
        command = Command::new(&binary);
        std::os::unix::process::CommandExt::uid(command.args(args), 65_534);
    }
    let out = command.output().unwrap();
    let _ = std::fs::remove_file(&binary);
    let text = String::from_utf8_lossy(&out.stderr).into_owned();
    assert_eq!((out.status.code(), text.lines().count()), (Some(2), 1), "{text}");
    assert!(text.contains("/dev/net/tun") || text.contains("CAP_NET_ADMIN"), "{text}");
}
