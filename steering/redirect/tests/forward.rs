//! Connections that this host passes on from one host to another, brought to a middlebox. As root.

mod host;

use culvert_redirect::{Forward, Presence};
use host::remote::Remote;
use host::steer::{Steer, beside, kill};
use host::{BOX, Host, Middlebox, Server, compiled, is_root};
use std::collections::BTreeMap;
use std::io::Read;
use std::net::{Shutdown, TcpStream};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use steering::Journal;

const TOOL: &str = env!("CARGO_BIN_EXE_culvert-redirect");

/// A router (this thread's namespace), a host with clients, and one with a server.
struct World {
    clients: Remote,
    client: PathBuf,
    _server: Server,
    servers: Remote,
    _host: Host,
}

impl World {
    fn new() -> World {
        let host = Host::new();
        let (clients, servers) = (Remote::new("c0", 71), Remote::new("s0", 72));
        for file in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
            std::fs::write(format!("/proc/sys/net/{file}"), "1").expect(file);
        }
        let server = servers.does(|| Server::new(&[("10.72.0.2", 80), ("fd72::2", 80)], |_| "server".into()));
        World { clients, client: compiled("client.c"), _server: server, servers, _host: host }
    }

    fn asks(&self, address: &str, port: &str, size: &str) -> String {
        self.clients.says(&[self.client.to_str().expect("a path"), address, port, size])
    }

    /// Of both versions of IP.
    fn both(&self) -> (String, String) {
        (self.asks("10.72.0.2", "80", "100000"), self.asks("fd72::2", "80", "100000"))
    }

    fn begin(&self) -> TcpStream {
        self.clients.does(|| TcpStream::connect(("10.72.0.2", 80)).expect("connected"))
    }
}

/// What a connection that has begun says when it is used.
fn ends(mut stream: TcpStream) -> String {
    let mut text = String::new();
    stream.set_read_timeout(Some(std::time::Duration::from_secs(20))).expect("a time");
    stream.shutdown(Shutdown::Write).expect("its end");
    stream.read_to_string(&mut text).expect("an answer");
    text.trim_end().to_owned()
}

fn middlebox() -> Server {
    Server::transparent(&[("127.0.0.1", BOX), ("::1", BOX)], |stream| {
        let own = stream.local_addr().expect("an address");
        assert_eq!(culvert::asked(stream).expect("an address"), own);
        format!("box asked {own} by {}", stream.peer_addr().expect("an address").ip())
    })
}

fn wanted(rule: &str) -> String {
    format!(
        "[[redirect]]\nforwarded = 'c0'\n[[redirect.rule]]\nto = ['127.0.0.1:{BOX}', '[::1]:{BOX}']\ndestination-ports = '80-89'\n{rule}\n"
    )
}

fn direct() -> (String, String) {
    ("peer 10.72.0.2:80\nserver".into(), "peer [fd72::2]:80\nserver".into())
}

fn boxed() -> (String, String) {
    (
        "peer 10.72.0.2:80\nbox asked 10.72.0.2:80 by 10.71.0.2".into(),
        "peer [fd72::2]:80\nbox asked [fd72::2]:80 by fd71::2".into(),
    )
}

const REFUSED: &str = "connect: Connection refused";

/// Names are right at both ends, data comes, what is for the router itself stays, and connections that have begun stay where they are.
#[test]
fn forwarded_connections_come_to_the_middlebox() {
    if !is_root() {
        return;
    }
    let world = World::new();
    let mut steer = Steer::new();
    let _own = Server::new(&[("10.71.0.1", 80)], |_| "router".into());
    assert_eq!(world.both(), direct());
    let before = world.begin();
    assert_eq!(steer.apply(&wanted("")), 2);
    assert_eq!(world.both(), direct(), "nobody listens");
    let alive = middlebox();
    assert_eq!(world.both(), boxed());
    let far = "peer 10.9.9.9:85\nbox asked 10.9.9.9:85 by 10.71.0.2";
    assert_eq!(world.asks("10.9.9.9", "85", "3000000"), far, "who is nowhere, by a port of the range");
    assert_eq!(world.asks("10.72.0.2", "90", "10"), REFUSED, "under no rule, and nobody listens at the server");
    assert_eq!(world.asks("10.71.0.1", "80", "10"), "peer 10.71.0.1:80\nrouter");
    assert_eq!(ends(before), "server");
    // Other rules, from one SYN to the next: the first that matches decides.
    let during = world.begin();
    let rules = "[[redirect]]\nforwarded = 'c0'\n[[redirect.rule]]\ndestination = '10.72.0.0/16'\nto = []\n".to_owned()
        + wanted("").split_once("'c0'\n").expect("rules").1;
    assert_eq!(steer.apply(&rules), 1);
    assert_eq!(world.both(), (direct().0, boxed().1));
    assert_eq!(ends(during), "box asked 10.72.0.2:80 by 10.71.0.2");
    steer.apply(&wanted("dead = 'closed'"));
    assert_eq!(world.both(), boxed());
    drop(alive);
    assert_eq!(world.both(), (REFUSED.into(), REFUSED.into()));
    // One that listens and is not transparent is none.
    let opaque = Server::new(&[("127.0.0.1", BOX), ("::1", BOX)], |_| "opaque".into());
    assert_eq!(world.both(), (REFUSED.into(), REFUSED.into()));
    steer.apply(&wanted("dead = 'open'"));
    assert_eq!(world.both(), direct());
    drop(opaque);
    for _ in 0..2 {
        let _alive = middlebox();
        assert_eq!(world.both(), boxed());
    }
    assert_eq!(world.both(), direct());
    steer.undo();
    assert_eq!(Forward::new("c0".parse().expect("a name")).expect("plain").presence(), Ok(Presence::Absent));
    assert_eq!(world.both(), direct());
    assert!(steer.differences(&wanted("")).iter().all(|d| d.contains("is absent") || d.ends_with("is nothing")));
}

/// An unmodified proxy that knows transparent listeners, and the relay: alone, and before a proxy that is told by the PROXY protocol.
#[test]
fn proxies_and_the_relay() {
    if !is_root() {
        return;
    }
    let world = World::new();
    let mut steer = Steer::new();
    steer.apply(&wanted("dead = 'closed'"));
    let file = steer.directory.with_extension("cfg");
    let haproxy = |bind: &str, port: u16| {
        let text = format!(
            "defaults\n mode http\n timeout connect 9s\n timeout client 9s\n timeout server 9s\nfrontend f\n bind {bind}\n \
            http-request return status 200 content-type text/plain lf-string \"%[src] asked %[dst] %[dst_port]\"\n"
        );
        std::fs::write(&file, text).expect("a file");
        Middlebox::listening(&["haproxy", "-q", "-db", "-f", file.to_str().expect("a path")], port)
    };
    let curl = |url: &str| world.clients.says(&["curl", "-sS", "-g", "--noproxy", "*", url]);
    let proxy = haproxy(&format!("127.0.0.1:{BOX} transparent\n bind ::1:{BOX} transparent"), BOX);
    assert_eq!(curl("http://10.72.0.2/"), "10.71.0.2 asked 10.72.0.2 80");
    assert_eq!(curl("http://[fd72::2]:81/"), "fd71::2 asked fd72::2 81");
    drop(proxy);
    assert_eq!(world.both(), (REFUSED.into(), REFUSED.into()));
    // One that asks with its client's address: the answers are brought to it by a redirect of the server's interface.
    let seen = world.servers.does(|| {
        Server::new(&[("10.72.0.2", 82)], |stream| format!("server sees {}", stream.peer_addr().expect("a name").ip()))
    });
    let text = format!(
        "defaults\n timeout connect 9s\n timeout client 9s\n timeout server 9s\nlisten l\n bind 127.0.0.1:{BOX} transparent\n source 0.0.0.0 usesrc clientip\n server s *\n"
    );
    std::fs::write(&file, text).expect("a file");
    steer.apply(&(wanted("dead = 'closed'") + "[[redirect]]\nforwarded = 's0'\n[[redirect.rule]]\nto = []\n"));
    let proxy = Middlebox::listening(&["haproxy", "-q", "-db", "-f", file.to_str().expect("a path")], BOX);
    let sees = world.asks("10.72.0.2", "82", "1000000");
    assert_eq!(sees, "peer 10.72.0.2:82\nserver sees 10.71.0.2");
    drop((proxy, seen));
    let (box4, box6) = (format!("127.0.0.1:{BOX}"), format!("[::1]:{BOX}"));
    let relay = [TOOL, "relay", "--transparent", "--listen", &box4, "--listen", &box6];
    let alone = Middlebox::new(&relay);
    assert_eq!(world.asks("10.72.0.2", "80", "5000000"), direct().0);
    assert_eq!(world.asks("fd72::2", "80", "5000000"), direct().1);
    drop(alone);
    let _proxy = haproxy("127.0.0.1:15009 accept-proxy", 15009);
    let _relay = Middlebox::new(&[&relay[..], &["--to", "127.0.0.1:15009", "--proxy-protocol"]].concat());
    assert_eq!(curl("http://10.72.0.2/"), "10.71.0.2 asked 10.72.0.2 80");
    assert_eq!(curl("http://[fd72::2]/"), "fd71::2 asked fd72::2 80");
    steer.undo();
    let _ = std::fs::remove_file(&file);
}

/// Rules that a middlebox holds go with it, killed at any time, and while it lives nobody else changes them.
#[test]
fn no_rule_outlives_its_owner() {
    if !is_root() {
        return;
    }
    let world = World::new();
    let own = Forward::new("c0".parse().expect("a name")).expect("plain");
    let rules = format!("family ipv4 destination-ports 80 to 127.0.0.1 {BOX} dead closed");
    let hold = [TOOL, "forward", "hold", "c0", "--rules", &rules, "--"];
    let tables = || {
        let out = Command::new("nft").args(["list", "ruleset"]).stdin(Stdio::null()).output().expect("nft");
        String::from_utf8_lossy(&out.stdout).into_owned()
    };
    for _ in 0..3 {
        let asleep = Middlebox::new(&[&hold[..], &["sh", "-c", "echo up; sleep 1000 & wait"]].concat());
        assert_eq!(world.both(), (REFUSED.into(), direct().1));
        assert_eq!(own.presence(), Ok(Presence::Another));
        assert!(own.detach().expect_err("it is held").contains("a process holds"));
        assert!(own.attach().expect_err("it is held").contains("a process holds"));
        assert!(own.change(&[]).is_err());
        // What it has begun has the rules, too.
        asleep.kill_with_children();
        assert_eq!(tables(), "");
        assert_eq!(world.both(), direct());
        assert_eq!(own.presence(), Ok(Presence::Part), "rules for packets with a mark that nobody gives them");
    }
    let box4 = format!("127.0.0.1:{BOX}");
    let relay = Middlebox::new(&[&hold[..], &[TOOL, "relay", "--transparent", "--listen", &box4]].concat());
    assert_eq!(world.both(), direct());
    drop(relay);
    assert_eq!(tables(), "");
    own.detach().expect("taken away");
    assert_eq!(own.presence(), Ok(Presence::Absent));
    let failed = Command::new(TOOL).args(&hold[1..]).arg("/nowhere").stdin(Stdio::null()).output().expect("a command");
    assert!(String::from_utf8_lossy(&failed.stderr).contains("/nowhere"), "{failed:?}");
    assert_eq!(tables(), "");
}

/// Killed before each command that it runs and each message to the kernel, it leaves what `undo` takes away; also where that is killed.
#[test]
fn it_is_killed_at_each_step() {
    if !is_root() {
        return;
    }
    let _world = World::new();
    let mut steer = Steer::new();
    let own = Forward::new("c0".parse().expect("a name")).expect("plain");
    let calls = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("forward-calls-{}", std::process::id()));
    let (mut killed, mut partial) = (0, 0);
    for action in ["forward attach", "forward set", "forward detach"] {
        kill("clone,clone3,vfork,sendmsg", action, None, &calls);
        steer.apply(&wanted(""));
        let read = || std::fs::read_to_string(&calls).expect("strace (apt-get install strace)");
        let applied = if action.ends_with("detach") { String::new() } else { read() };
        steer.undo();
        let told = if action.ends_with("detach") { read() } else { applied };
        let mut counts = BTreeMap::<String, usize>::new();
        for name in told.lines().filter_map(|line| Some(line.split_once('(')?.0)) {
            *counts.entry(name.to_owned()).or_default() += 1;
        }
        let least = if action.ends_with("set") { 1 } else { 2 };
        assert!(
            counts.len() >= least && counts.values().sum::<usize>() >= if least == 1 { 1 } else { 4 },
            "{action}: {told}"
        );
        for (name, count) in counts {
            for at in 1..=count {
                kill(&name, action, Some(at), &calls);
                let text = wanted("");
                let steps = steer.plan(&text);
                let mut journal = Journal::open(&steer.directory).expect("a journal");
                let applied = steering::apply(&mut steer.system, &mut journal, &steps, &mut |_| {});
                killed += u32::from(applied.is_err());
                partial += u32::from(own.presence() == Ok(Presence::Part));
                let undone = steering::undo(&mut steer.system, &mut journal, &mut |_| {});
                killed += u32::from(undone.is_err());
                partial += u32::from(own.presence() == Ok(Presence::Part));
                drop(journal);
                beside();
                steer.undo();
                assert_eq!(own.presence(), Ok(Presence::Absent), "{action} {name} {at}");
            }
        }
    }
    assert!(killed > 12 && partial > 8, "{killed} {partial}");
    let _ = std::fs::remove_file(&calls);
}

/// Names that a table cannot have, interfaces that there are not, and what somebody has changed by hand.
#[test]
fn what_is_wrong_is_said() {
    if !is_root() {
        return;
    }
    let world = World::new();
    assert!(Forward::new("a+b".parse().expect("a name")).err().expect("no table").contains("a+b"));
    let none = Forward::new("c9".parse().expect("a name")).expect("plain");
    assert_eq!(none.presence(), Ok(Presence::Gone));
    assert!(none.attach().expect_err("no interface").contains("no interface c9"));
    let own = Forward::new("c0".parse().expect("a name")).expect("plain");
    assert!(own.change(&[]).expect_err("no table").contains("attach"));
    own.attach().expect("attached");
    let rules = steering::parse_diversions(&format!(
        "family ipv6 destination fd72::/16 destination-ports 80 to ::1 {BOX} dead closed , family ipv4 to kernel"
    ));
    let rules = rules.expect("rules");
    own.change(&rules).expect("changed");
    assert_eq!(own.rules(), Ok(rules));
    host::run("nft add rule inet culvert-c0 redirected counter accept");
    assert!(own.rules().expect_err("changed").contains("somebody has changed"));
    // Another interface has its own, and the routes are shared.
    let other = Forward::new("s0".parse().expect("a name")).expect("plain");
    other.attach().expect("attached");
    own.detach().expect("taken away");
    assert_eq!((own.presence(), other.presence()), (Ok(Presence::Absent), Ok(Presence::Present)));
    host::run("ip -6 rule del pref 11810");
    assert_eq!(other.presence(), Ok(Presence::Part));
    other.detach().expect("taken away");
    assert_eq!(other.presence(), Ok(Presence::Absent));
    // Where IPv6 is off, or is switched off meanwhile.
    let six = |off: &str| std::fs::write("/proc/sys/net/ipv6/conf/lo/disable_ipv6", off).expect("a setting");
    for before in ["1", "0"] {
        six(before);
        own.attach().expect("attached");
        assert_eq!(own.presence(), Ok(Presence::Present));
        six("1");
        assert_eq!(own.presence(), Ok(Presence::Present));
        own.detach().expect("taken away");
        assert_eq!(own.presence(), Ok(Presence::Absent));
        let out = Command::new("ip").args(["-6", "rule", "show", "pref", "11810"]).stdin(Stdio::null()).output();
        assert_eq!(out.expect("ip").stdout, b"");
    }
    drop(world);
}
