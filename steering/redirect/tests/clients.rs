//! Clients of all kinds, and the middlebox that gets their connections: by plans of `culvert steer`. As root.

mod host;

use culvert_redirect::Set;
use host::steer::{Steer, beside, kill};
use host::{BOX, Host, Middlebox, SERVER4, SERVER6, Server, compiled, is_root, middlebox, original, server};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use steering::Journal;

fn static_client() -> &'static str {
    static PATH: OnceLock<String> = OnceLock::new();
    PATH.get_or_init(|| compiled("client.c").to_str().expect("a path").to_owned())
}

fn wanted(host: &Host, rules: &str) -> String {
    format!("[[redirect]]\nclients = '{}'\nmiddlebox = '{}'\n{rules}", host.clients(), host.middlebox())
}

fn rule(text: &str) -> String {
    format!("[[redirect.rule]]\nto = ['127.0.0.1:{BOX}', '[::1]:{BOX}']\n{text}\n")
}

const PYTHON: &str = "import socket, sys
s = socket.socket(socket.AF_INET6)
for attempt in (('::ffff:10.66.0.9', 81), ('::ffff:10.66.0.9', 80)):
    error = s.connect_ex(attempt)
print(error, s.getpeername()[:2], s.getsockname()[0])
s.settimeout(20)
s.sendall(b'x' * 300000)
s.shutdown(socket.SHUT_WR)
data = b''
while (part := s.recv(65536)): data += part
print(data.split(b'\\n')[0].decode(), data.split(b'\\n')[1] == b'x' * 300000)
";

/// What clients see of whom they are connected to is whom they have asked for; the middlebox hears of it, too; and all data comes.
#[test]
fn clients_of_all_kinds_come_to_the_middlebox() {
    if !is_root() {
        return;
    }
    let host = Host::new();
    let mut steer = Steer::new();
    let (_server, _middlebox) = (server(), middlebox());
    let client = static_client();
    let curl4 = ["curl", "-sS", "--noproxy", "*", "-w", "%{remote_ip} %{remote_port}", "http://10.66.0.9/"];
    let curl6 = ["curl", "-sS", "--noproxy", "*", "-w", "%{remote_ip} %{remote_port}", "http://[fd66::9]/"];
    let direct = "server\n10.66.0.9 80";
    assert_eq!(host.says(&curl4), direct);
    assert_eq!(steer.apply(&wanted(&host, &rule("destination-ports = '80'"))), 2);
    assert_eq!(host.says(&curl4), "box asked 10.66.0.9:80\n10.66.0.9 80");
    assert_eq!(host.says(&curl6), "box asked [fd66::9]:80\nfd66::9 80");
    for (address, name) in [(SERVER4, "10.66.0.9:80"), (SERVER6, "[fd66::9]:80")] {
        // A megabyte by a static program.
        assert_eq!(host.says(&[client, address, "80", "1000000"]), format!("peer {name}\nbox asked {name}"));
    }
    // IPv4 by a socket of IPv6, whose first attempt is refused, and is under no rule.
    assert_eq!(
        host.says(&["python3.11", "-c", PYTHON]),
        "0 ('::ffff:10.66.0.9', 80) ::ffff:127.0.0.1\nbox asked 10.66.0.9:80 True"
    );
    // Who asks for the middlebox gets it, and it hears of nothing else; so does who is not in the group.
    let own = BOX.to_string();
    assert_eq!(host.says(&[client, "127.0.0.1", &own, "10"]), format!("peer 127.0.0.1:{BOX}\nbox asked nothing"));
    let stream = std::net::TcpStream::connect((SERVER4, 80)).expect("connected");
    assert_eq!((stream.peer_addr().expect("a name").to_string(), original(&stream)), ("10.66.0.9:80".into(), None));
    // Another file: the first rule that matches decides, and one step changes all of them.
    let rules = "[[redirect.rule]]\ndestination = '10.66.0.0/16'\nto = []\n".to_owned() + &rule("");
    assert_eq!(steer.apply(&wanted(&host, &rules)), 1);
    assert_eq!(host.says(&curl4), direct);
    assert_eq!(host.says(&curl6), "box asked [fd66::9]:80\nfd66::9 80");
    // A file without them takes them away again.
    assert_eq!(steer.apply(""), 2);
    assert_eq!((host.says(&curl4), host.says(&curl6)), (direct.into(), "server\nfd66::9 80".into()));
    assert_eq!(steer.apply(&wanted(&host, &rules)), 2);
    steer.undo();
    assert_eq!((host.says(&curl4), host.says(&curl6)), (direct.into(), "server\nfd66::9 80".into()));
    assert!(
        steer.differences(&wanted(&host, &rules)).iter().all(|d| d.contains("is absent") || d.ends_with("is nothing"))
    );
}

/// A middlebox that does not listen is passed by, or what is meant for it is refused, from that moment on and until it listens again.
#[test]
fn a_dead_middlebox_is_passed_by_or_not() {
    if !is_root() {
        return;
    }
    let host = Host::new();
    let mut steer = Steer::new();
    let _server = server();
    let client = static_client();
    let asks = |address: &str| host.says(&[client, address, "80", "1000"]);
    let (box4, box6) = ("peer 10.66.0.9:80\nbox asked 10.66.0.9:80", "peer [fd66::9]:80\nbox asked [fd66::9]:80");
    let (direct4, direct6) = ("peer 10.66.0.9:80\nserver", "peer [fd66::9]:80\nserver");
    let refused = "connect: Connection refused";
    for (dead, without4, without6) in [("open", direct4, direct6), ("closed", refused, refused)] {
        assert_eq!(steer.apply(&wanted(&host, &rule(&format!("dead = '{dead}'")))), if dead == "open" { 2 } else { 1 });
        for _ in 0..2 {
            assert_eq!((asks(SERVER4), asks(SERVER6)), (without4.into(), without6.into()), "{dead}");
            let alive: Server = middlebox();
            assert_eq!((asks(SERVER4), asks(SERVER6)), (box4.into(), box6.into()), "{dead}");
            drop(alive);
        }
    }
    steer.undo();
    assert_eq!((asks(SERVER4), asks(SERVER6)), (direct4.into(), direct6.into()));
}

/// The relay is a middlebox for static programs: what they send comes to the server, byte for byte, and what it answers to them. A server that
/// refuses is a reset, and not the end of a stream. A proxy hears of both addresses by the PROXY protocol.
#[test]
fn the_relay_passes_on() {
    if !is_root() {
        return;
    }
    let host = Host::new();
    let mut steer = Steer::new();
    let _server = server();
    let client = static_client();
    steer.apply(&wanted(&host, &rule("dead = 'closed'")));
    let (box4, box6) = (format!("127.0.0.1:{BOX}"), format!("[::1]:{BOX}"));
    let relay = env!("CARGO_BIN_EXE_culvert-redirect");
    let alive = Middlebox::new(&[relay, "relay", "--listen", &box4, "--listen", &box6]);
    for (address, name) in [(SERVER4, "10.66.0.9:80"), (SERVER6, "[fd66::9]:80")] {
        assert_eq!(host.says(&[client, address, "80", "5000000"]), format!("peer {name}\nserver"));
    }
    let refused = host.says(&[client, SERVER4, "81", "10"]);
    // It may hear of it before it asks for its peer's name.
    assert!(refused == "peer 10.66.0.9:81\nread: Connection reset by peer" || refused.is_empty(), "{refused}");
    // Who asks for the relay itself is not passed on to it.
    let itself = host.says(&[client, "127.0.0.1", &BOX.to_string(), "10"]);
    assert!(itself.ends_with("read: Connection reset by peer") || itself.is_empty(), "{itself}");
    drop(alive);
    assert_eq!(host.says(&[client, SERVER4, "80", "10"]), "connect: Connection refused");
    // HAProxy, which knows nothing of redirects.
    let file = steer.directory.with_extension("cfg");
    let text = "defaults\n mode http\n timeout connect 9s\n timeout client 9s\n timeout server 9s\nfrontend f\n bind 127.0.0.1:15009 accept-proxy\n \
        http-request return status 200 content-type text/plain lf-string \"%[src] asked %[dst] %[dst_port]\"\n";
    std::fs::write(&file, text).expect("a file");
    let _haproxy = Middlebox::listening(&["haproxy", "-q", "-db", "-f", file.to_str().expect("a path")], 15009);
    let _relay = Middlebox::new(&[
        relay,
        "relay",
        "--listen",
        &box4,
        "--listen",
        &box6,
        "--to",
        "127.0.0.1:15009",
        "--proxy-protocol",
    ]);
    let curl = |url: &str| host.says(&["curl", "-sS", "--noproxy", "*", url]);
    assert_eq!(curl("http://10.66.0.9:8080/"), "127.0.0.1 asked 10.66.0.9 8080");
    assert_eq!(curl("http://[fd66::9]:8080/"), "::1 asked fd66::9 8080");
    steer.undo();
    let _ = std::fs::remove_file(&file);
}

/// Rules that a middlebox holds go with it, killed at any time; while it has them nobody else takes them away.
#[test]
fn no_rule_outlives_its_owner() {
    if !is_root() {
        return;
    }
    let host = Host::new();
    let (_server, client) = (server(), static_client());
    let (clients, own) = (host.clients(), host.middlebox());
    let group = clients.parse().expect("a group");
    let tool = env!("CARGO_BIN_EXE_culvert-redirect");
    let box4 = format!("127.0.0.1:{BOX}");
    let rules = format!("family ipv4 to 127.0.0.1 {BOX} dead closed");
    let hold = [tool, "hold", &clients, "--middlebox", &own, "--rules", &rules, "--"];
    let asks = || host.says(&[client, SERVER4, "80", "1000"]);
    for _ in 0..3 {
        let held = Middlebox::new(&[&hold[..], &[tool, "relay", "--listen", &box4]].concat());
        assert_eq!(asks(), "peer 10.66.0.9:80\nserver");
        let seen = host.says(&[
            "python3.11",
            "-c",
            "import socket; s = socket.create_connection(('10.66.0.9', 80)); print(s.getsockname()[0])",
        ]);
        assert_eq!(seen, "127.0.0.1", "it is not redirected");
        let refused = Set::detach(&group, None).expect_err("they are held");
        assert!(refused.contains("a process holds"), "{refused}");
        drop(held);
        // Reaped, it has no descriptors any more.
        assert_eq!(Set::left(&group, Some(&own.parse().expect("a group"))), Ok(0));
        assert_eq!(asks(), "peer 10.66.0.9:80\nserver");
    }
    let failed = Command::new(tool).args(&hold[1..]).arg("/nowhere").stdin(Stdio::null()).output().expect("a command");
    assert!(String::from_utf8_lossy(&failed.stderr).contains("/nowhere"), "{failed:?}");
    assert_eq!(Set::left(&group, None), Ok(0));
}

/// Killed before each program that it attaches or takes away, and before its rules, the command leaves what `undo` takes away, also
/// where that is killed.
#[test]
fn it_is_killed_at_each_step() {
    if !is_root() {
        return;
    }
    let host = Host::new();
    let mut steer = Steer::new();
    let text = wanted(&host, &rule(""));
    let (clients, middlebox) = (host.clients().parse().expect("a group"), host.middlebox().parse().expect("a group"));
    let left = || Set::left(&clients, Some(&middlebox)).expect("asked");
    let calls = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("calls-{}", std::process::id()));
    // Which call it is may differ by some from one time to the next, where others load and free programs.
    let (mut killed, mut partial) = (0, 0);
    for (action, does) in [("attach", "BPF_PROG_ATTACH"), ("set", "BPF_MAP_UPDATE_ELEM"), ("detach", "BPF_PROG_DETACH")]
    {
        kill("bpf", action, None, &calls);
        steer.apply(&text);
        let read = || std::fs::read_to_string(&calls).expect("strace (apt-get install strace)");
        let applied = if action == "detach" { String::new() } else { read() };
        steer.undo();
        let told = if action == "detach" { read() } else { applied };
        let points: Vec<usize> =
            (1..).zip(told.lines()).filter(|(_, line)| line.contains(does)).map(|(at, _)| at).collect();
        assert!(points.len() >= if action == "set" { 2 } else { 7 }, "{action}: {told}");
        for at in points {
            kill("bpf", action, Some(at), &calls);
            let steps = steer.plan(&text);
            let mut journal = Journal::open(&steer.directory).expect("a journal");
            let applied = steering::apply(&mut steer.system, &mut journal, &steps, &mut |_| {});
            killed += u32::from(applied.is_err());
            partial += u32::from((1..7).contains(&left()));
            let undone = steering::undo(&mut steer.system, &mut journal, &mut |_| {});
            killed += u32::from(undone.is_err());
            partial += u32::from((1..7).contains(&left()));
            drop(journal);
            beside();
            steer.undo();
            assert_eq!(left(), 0, "{action} {at}");
        }
    }
    assert!(killed > 8 && partial > 5, "{killed} {partial}");
    let _ = std::fs::remove_file(&calls);
}

/// Who is not root gets the plan, and a word when more is asked for.
#[test]
fn others_than_root_get_the_plan() {
    beside();
    let tool = std::env::current_exe().expect("a path").with_file_name("culvert-redirect");
    let run = |action: &str| {
        let mut command = Command::new("setpriv");
        command.args(["--reuid", "65534", "--clear-groups", "--"]).arg(&tool).args([action, "/"]).stdin(Stdio::null());
        let out = if is_root() { command.output() } else { Command::new(&tool).args([action, "/"]).output() };
        out.expect("a command")
    };
    // As far as anybody may see.
    let out = run("status");
    assert_eq!(String::from_utf8_lossy(&out.stdout), "absent\n");
    assert!(out.status.success());
    for action in ["attach", "detach"] {
        let out = run(action);
        assert!(!out.status.success() && String::from_utf8_lossy(&out.stderr).contains("takes root"), "{out:?}");
    }
}
