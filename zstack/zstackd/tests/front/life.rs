//! Making and removing fronts: what is there before and after, who is in the way, what a killed process leaves.

use crate::gate::{Gate, Verdict, echo, network, wanted};
use crate::lab::{Namespace, Process, bounded, mount_tmpfs, soon, with_own_mounts, without_capability};
use crate::need_root;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};
use zstackd::front::{self, Error, Front, Numbers, Wanted};

/// Everything in the namespace that a front could have to do with, by subject.
fn everything(ns: &Namespace) -> Vec<(String, String)> {
    let commands = [
        "ip -d link",
        "ip -d address",
        "ip -4 -d rule",
        "ip -6 -d rule",
        "ip -4 -d route show table all",
        "ip -6 -d route show table all",
        "ip netconf",
        "tc qdisc",
        "ss -tanH",
        "sysctl -a --pattern ^net\\.",
    ];
    commands.iter().map(|c| (c.to_string(), steady(&ns.run(c)))).collect()
}

/// Without what changes by itself: lifetimes, statistics, keys made at random.
fn steady(text: &str) -> String {
    let changes = ["netfilter.nf_conntrack_count", "nf_conntrack", "rt_cache", "fs.", "stable_secret"];
    text.lines().filter(|l| !changes.iter().any(|c| l.contains(c))).collect::<Vec<_>>().join("\n")
}

fn made(ns: &Namespace, wanted: &Wanted) -> Front {
    ns.within(|| Front::make(wanted)).unwrap_or_else(|e| panic!("{e}"))
}

fn refused(ns: &Namespace, wanted: &Wanted) -> Error {
    match ns.within(|| Front::make(wanted)) {
        Ok(_) => panic!("a front was made"),
        Err(error) => {
            let text = error.to_string();
            println!("{text}");
            assert!(!text.contains('\n'), "more than a line: {text}");
            error
        }
    }
}

#[test]
fn nothing_else_changes() {
    need_root!();
    bounded(Duration::from_secs(60), || {
        let ns = Namespace::new();
        ns.run("ip route add unreachable 192.0.2.0/24");
        ns.run("ip rule add from 192.0.2.1 lookup 77 priority 500");
        let before = everything(&ns);
        for _ in 0..2 {
            let front = made(&ns, &wanted());
            // While it stands, nothing is different but what is the tun's, the rules and the listeners.
            for ((what, before), (_, now)) in before.iter().zip(everything(&ns)) {
                for line in before.lines() {
                    assert!(now.lines().any(|l| l == line), "{what}: gone: {line}");
                }
                let ours = |l: &str| {
                    ["cv0", "proto 118", "240.0.0.1", "[100::1]"].iter().any(|o| l.contains(o))
                        || (what == "ip -d link" || what == "ip -d address")
                };
                let mut new = now.lines().filter(|l| !before.lines().any(|b| b == *l) && !ours(l));
                assert_eq!(new.next(), None, "{what}");
            }
            drop(front);
            soon("what was there before", Duration::from_secs(5), || (everything(&ns) == before).then_some(()));
        }
        // Nor by one that fails at its last step.
        ns.run("ip route add unreachable 10.9.0.0/16");
        let before = everything(&ns);
        let error = refused(&ns, &wanted());
        assert!(error.to_string().contains("no route to 10.9.0.0/16 by cv0"), "{error}");
        soon("what was there before", Duration::from_secs(5), || (everything(&ns) == before).then_some(()));
        // With a metric of its own it stands beside.
        drop(made(&ns, &Wanted { metric: 50, ..wanted() }));
    });
}

#[test]
fn served_by_default_routes() {
    need_root!();
    bounded(Duration::from_secs(60), || {
        let ns = Namespace::new();
        // Before the tun there is no way; with it, its default route is the better one.
        let wanted = Wanted { served: vec![network("0.0.0.0/0"), network("::/0")], metric: 10, ..wanted() };
        let front = made(&ns, &wanted);
        for (to, own) in [("8.8.8.8", "10.1.0.1"), ("2001:4860::8", "fd01::1")] {
            let route = ns.run(&format!("ip route get {to}"));
            assert!(route.contains("dev cv0") && route.contains(&format!("src {own}")), "{route}");
        }
        drop(front);
    });
}

#[test]
fn one_of_a_name_and_of_a_table() {
    need_root!();
    bounded(Duration::from_secs(60), || {
        let ns = Namespace::new();
        let first = made(&ns, &wanted());
        let began = Instant::now();
        let error = refused(&ns, &wanted());
        assert!(matches!(&error, Error::Exists { holder: Some(_), .. }), "{error}");
        assert!(error.to_string().contains(&format!("pid {}", std::process::id())), "{error}");
        assert!(began.elapsed() < Duration::from_secs(5));
        // Another name does not help while the tables are the same, and the first stands as it was.
        let addresses = vec![network("10.2.0.1/24")];
        let second = Wanted { name: "cv1".to_string(), addresses, served: vec![network("10.8.0.0/16")], ..wanted() };
        let rules = ns.run("ip rule");
        let error = refused(&ns, &second);
        assert!(matches!(error, Error::Taken { .. }), "{error}");
        assert!(error.to_string().contains("the zstackd of interface cv0"), "{error}");
        assert_eq!(ns.run("ip rule"), rules);
        assert_eq!(ns.within(front::clear).expect("clear"), 0);
        assert_eq!(ns.run("ip rule"), rules);
        // With numbers of its own the second stands beside the first, and goes without it.
        let second = made(&ns, &Wanted { numbers: Numbers { priority: 12_000, table: 12_000 }, ..second });
        assert_eq!(ns.within(front::clear).expect("clear"), 0);
        drop(second);
        assert_eq!(ns.run("ip rule"), rules);
        drop(first);
    });
}

#[test]
fn what_is_in_the_way() {
    need_root!();
    bounded(Duration::from_secs(60), || {
        let ns = Namespace::new();
        // Other interfaces of the name.
        ns.run("ip link add cv0 type veth peer name other");
        let error = refused(&ns, &wanted());
        assert!(matches!(&error, Error::Exists { holder: None, .. }), "{error}");
        ns.run("ip link del cv0");
        ns.run("ip tuntap add cv0 mode tun");
        let before = everything(&ns);
        let error = refused(&ns, &wanted());
        assert!(matches!(&error, Error::Exists { holder: None, .. }), "{error}");
        assert_eq!(everything(&ns), before);
        ns.run("ip tuntap del cv0 mode tun");
        // The tables: another's rule, another's route.
        ns.run("ip rule add to 192.0.2.0/24 lookup 11801");
        let error = refused(&ns, &wanted());
        assert!(error.to_string().contains("a rule that is not zstackd's uses the routing table 11801"), "{error}");
        ns.run("ip rule del to 192.0.2.0/24 lookup 11801");
        ns.run("ip -6 route add unreachable 2001:db8::/32 table 11800");
        let error = refused(&ns, &wanted());
        assert!(error.to_string().contains("there are routes in the routing table 11800"), "{error}");
        ns.run("ip -6 route del unreachable 2001:db8::/32 table 11800");
        // IPv6 switched off.
        ns.sysctl("ipv6/conf/default/disable_ipv6", "1");
        let error = refused(&ns, &wanted());
        assert!(error.to_string().contains("disable_ipv6"), "{error}");
        let only4 =
            Wanted { addresses: vec![network("10.1.0.1/24")], served: vec![network("10.9.0.0/16")], ..wanted() };
        drop(made(&ns, &only4));
        let only6 = Wanted { addresses: vec![network("fd01::1/64")], served: vec![network("fd09::/16")], ..wanted() };
        ns.sysctl("ipv6/conf/default/disable_ipv6", "0");
        drop(made(&ns, &only6));
    });
}

#[test]
fn without_rights_and_without_tun() {
    need_root!();
    bounded(Duration::from_secs(60), || {
        let ns = Namespace::new();
        for (number, name) in [(12, "CAP_NET_ADMIN"), (39, "CAP_BPF")] {
            let error = ns.within(|| {
                without_capability(number);
                Front::make(&wanted()).err().expect("no rights")
            });
            assert!(matches!(&error, Error::NoRights { missing } if missing == name), "{error}");
            println!("{error}");
        }
        let error = ns.within(|| {
            with_own_mounts(|| {
                mount_tmpfs("/dev/net", "size=64k");
                Front::make(&wanted()).err().expect("no device")
            })
        });
        assert!(matches!(error, Error::NoTun), "{error}");
        // In a user namespace (a container without root) no eBPF can be loaded.
        let mut program = Command::new(std::env::current_exe().expect("this program"));
        program.args(["--exact", "life::in_a_user_namespace", "--ignored", "--nocapture"]);
        let program = Command::new("unshare")
            .args(["-r", "-n"])
            .arg(program.get_program())
            .args(program.get_args())
            .stdout(Stdio::piped())
            .spawn();
        let (status, text) = Process(program.expect("unshare")).finish(Duration::from_secs(30));
        assert!(status.success() && text.contains("no right to load eBPF programs"), "{text}");
    });
}

/// Run by `without_rights_and_without_tun`.
#[test]
#[ignore = "needs a user namespace"]
fn in_a_user_namespace() {
    let error = Front::make(&wanted()).err().expect("no eBPF");
    println!("{error}");
}

#[test]
fn settings_that_cannot_be() {
    let ok = wanted();
    ok.check().expect("these can");
    let wrong = [
        (Wanted { name: "a/b".to_string(), ..ok.clone() }, "interface name"),
        (Wanted { name: "sixteen-letters-".to_string(), ..ok.clone() }, "interface name"),
        (Wanted { mtu: 1279, ..ok.clone() }, "MTU 1279"),
        (Wanted { addresses: Vec::new(), served: Vec::new(), ..ok.clone() }, "no address"),
        (Wanted { addresses: vec![network("10.1.0.1/24")], ..ok.clone() }, "no IPv6 address"),
        (
            Wanted { addresses: vec![network("10.1.0.1/24"), network("10.1.0.1/32")], served: vec![], ..ok.clone() },
            "twice",
        ),
        (Wanted { addresses: vec![network("127.0.0.1/8")], served: vec![], ..ok.clone() }, "127.0.0.1/8"),
        (Wanted { served: vec![network("10.0.0.0/33")], ..ok.clone() }, "10.0.0.0/33"),
        (Wanted { numbers: Numbers { priority: 0, table: 1000 }, ..ok.clone() }, "priority 0"),
        (Wanted { numbers: Numbers { priority: 32_765, table: 1000 }, ..ok.clone() }, "priority 32765"),
        (Wanted { numbers: Numbers { priority: 1, table: 254 }, ..ok.clone() }, "table 254"),
    ];
    for (wanted, part) in wrong {
        let error = wanted.check().expect_err(part).to_string();
        assert!(error.contains(part) && !error.contains('\n'), "{error}");
    }
}

/// The process that `killed` kills: a gate that echoes, on descriptors below the tun's too.
#[test]
#[ignore = "run by `killed`"]
fn hold() {
    let low: Vec<_> = (0..20).map(|_| std::fs::File::open("/dev/null").expect("a descriptor")).collect();
    let front = Front::make(&wanted()).unwrap_or_else(|e| panic!("{e}"));
    let _gate = Gate::serve(front, |_| Verdict::Hold(Duration::from_millis(1)), echo);
    // Sockets would get these numbers.
    drop(low);
    println!("ready");
    loop {
        thread::sleep(Duration::from_secs(1));
    }
}

fn holder(ns: &Namespace) -> Process {
    let mut command = ns.command(std::env::current_exe().expect("this program").to_str().expect("its name"));
    command.args(["--exact", "life::hold", "--ignored", "--nocapture"]).stdout(Stdio::piped());
    let mut process = Process::spawn(&mut command);
    // Until it says so.
    let mut output = process.0.stdout.take().expect("its output");
    let mut text = String::new();
    while !text.contains("ready") {
        let mut some = [0; 256];
        let len = output.read(&mut some).expect("its output");
        assert!(len > 0, "it has ended: {text}");
        text.push_str(&String::from_utf8_lossy(&some[..len]));
    }
    process
}

/// A process that is killed: programs are told at once, and the next start finds nothing in its way.
#[test]
fn killed() {
    need_root!();
    bounded(Duration::from_secs(120), || {
        let ns = Namespace::new();
        let before = everything(&ns);
        for round in 0..5 {
            let mut process = holder(&ns);
            let sockets: Vec<TcpStream> = ns.within(|| {
                let remote = |i: u16| -> SocketAddr {
                    let text = if i.is_multiple_of(2) { format!("10.9.0.{i}:80") } else { format!("[fd09::{i}]:80") };
                    text.parse().expect("an address")
                };
                (0..40).map(|i| TcpStream::connect(remote(i)).expect("connect")).collect()
            });
            for mut socket in &sockets {
                socket.write_all(b"x").expect("write");
                socket.read_exact(&mut [0]).expect("read");
            }
            process.kill();
            // It is dead, and so have its sockets been closed.
            let began = Instant::now();
            for mut socket in sockets {
                socket.set_read_timeout(Some(Duration::from_secs(5))).expect("a timeout");
                let error = socket.read(&mut [0]).expect_err("no end of the stream");
                assert_eq!(error.raw_os_error(), Some(libc::ECONNRESET), "{error}");
                let error = socket.write(&[0]).expect_err("no connection");
                assert_eq!(error.raw_os_error(), Some(libc::EPIPE), "{error}");
            }
            println!("the last of 40 programs was told after {:?}", began.elapsed());
            assert!(began.elapsed() < Duration::from_millis(100), "{:?}", began.elapsed());
            let error = ns.within(|| TcpStream::connect("10.9.0.1:80")).expect_err("nobody serves it");
            assert!(
                matches!(error.raw_os_error(), Some(libc::ENETUNREACH | libc::ECONNREFUSED)),
                "{error}: no route, now or soon"
            );
            if round % 2 == 0 {
                // What stays are rules, which `clear` finds.
                let gone = || (!ns.run("ip link").contains("cv0")).then_some(());
                soon("the tun is gone", Duration::from_secs(5), gone);
                assert_eq!(ns.within(front::clear).unwrap_or_else(|e| panic!("{e}")), 4);
                assert_eq!(ns.within(front::clear).unwrap_or_else(|e| panic!("{e}")), 0);
            }
            // At once, without a wait.
            drop(made(&ns, &wanted()));
        }
        let after = || {
            let after = everything(&ns);
            let differ = before.iter().zip(&after).find(|(b, a)| b != a && b.0 != "ss -tanH");
            differ.is_none().then_some(())
        };
        soon("what was there before", Duration::from_secs(5), after);
    });
}

/// Rules of a killed process with other numbers and another name are cleared too; those of others stay.
#[test]
fn leftovers_of_other_settings() {
    need_root!();
    bounded(Duration::from_secs(60), || {
        let ns = Namespace::new();
        for line in [
            "ip rule add iif old0 lookup 9000 priority 9000 protocol 118",
            "ip rule add from 10.7.0.1 lookup 9001 priority 9001 protocol 118",
            "ip -6 rule add iif old0 lookup 9000 priority 9000 protocol 118",
            "ip rule add from 10.7.0.2 lookup 9001 priority 9002",
            "ip rule add from 10.7.0.3 lookup 500 priority 9002 protocol 4",
        ] {
            ns.run(line);
        }
        let front = made(&ns, &wanted());
        let rules = ns.run("ip rule");
        assert!(!rules.contains("old0") && !rules.contains("10.7.0.1"), "{rules}");
        assert!(rules.contains("10.7.0.2") && rules.contains("10.7.0.3"), "{rules}");
        assert!(!ns.run("ip -6 rule").contains("old0"));
        drop(front);
        let listener = ns.within(|| TcpListener::bind("127.0.0.1:0").expect("bind"));
        drop(listener);
    });
}
