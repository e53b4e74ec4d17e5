//! Connections that come from another host, brought to a middlebox. As root.

mod host;

use culvert_redirect::Set;
use host::remote::Remote;
use host::steer::{Steer, beside, kill};
use host::{BOX, Host, Middlebox, Server, compiled, is_root, run};
use nix::sched::{CloneFlags, unshare};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use steering::Journal;

/// A middlebox that says who its client is to it, and whom that has asked for; it knows nothing of culvert.
const PYTHON: &str = "import socket, selectors
listeners = selectors.DefaultSelector()
for family, address in ((socket.AF_INET, '127.0.0.1'), (socket.AF_INET6, '::')):
    listener = socket.socket(family)
    if family == socket.AF_INET6: listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((address, 15001))
    listener.listen()
    listeners.register(listener, selectors.EVENT_READ)
print('up', flush=True)
while True:
    for key, _ in listeners.select():
        client, peer = key.fileobj.accept()
        data = b''
        while (part := client.recv(65536)): data += part
        client.sendall(('box %s %s %s\\n' % (client.getsockname()[:2] + peer[:1])).encode() + data)
        client.close()
";

#[test]
fn connections_from_other_hosts_come_to_the_middlebox() {
    if !is_root() {
        return;
    }
    let host = Host::new();
    let remote = Remote::new("here", 67);
    let _server = Server::new(&[("10.67.0.1", 80), ("fd67::1", 80)], |_| "server".into());
    let client = compiled("client.c");
    let asks =
        |address: &str, port: &str, size: &str| remote.says(&[client.to_str().expect("a path"), address, port, size]);
    let (direct4, direct6) = ("peer 10.67.0.1:80\nserver", "peer [fd67::1]:80\nserver");
    let refused = "connect: Connection refused";
    let (tool, own) = (env!("CARGO_BIN_EXE_culvert-redirect"), host.middlebox());
    let rules = format!(
        "family ipv4 destination-ports 80-89 to 127.0.0.1 {BOX} dead closed , family ipv6 destination fd67::/64 to ::1 {BOX} dead open"
    );
    let receive = [tool, "receive", "here", "--middlebox", &own, "--rules", &rules, "--"];
    for _ in 0..2 {
        assert_eq!((asks("10.67.0.1", "80", "10"), asks("fd67::1", "80", "10")), (direct4.into(), direct6.into()));
        assert_eq!(asks("10.67.0.1", "85", "10"), refused);
        // One listener has all of these ports, and the names are those of who has asked and was asked.
        let python = Middlebox::new(&[&receive[..], &["python3.11", "-c", PYTHON]].concat());
        for port in ["80", "85", "89"] {
            let said = format!("peer 10.67.0.1:{port}\nbox 10.67.0.1 {port} 10.67.0.2");
            assert_eq!(asks("10.67.0.1", port, "1000000"), said);
        }
        assert_eq!(asks("10.67.0.1", "90", "10"), refused);
        assert_eq!(asks("fd67::1", "1234", "1000"), "peer [fd67::1]:1234\nbox fd67::1 1234 fd67::2");
        drop(python);
    }
    // The relay goes on to the server, whose connection from this host is not brought to it.
    let (box4, box6) = (format!("127.0.0.1:{BOX}"), format!("[::1]:{BOX}"));
    let relay = Middlebox::new(&[&receive[..], &[tool, "relay", "--listen", &box4, "--listen", &box6]].concat());
    assert_eq!(
        (asks("10.67.0.1", "80", "3000000"), asks("fd67::1", "80", "3000000")),
        (direct4.into(), direct6.into())
    );
    let cut = asks("10.67.0.1", "85", "10");
    assert!(cut == "peer 10.67.0.1:85\nread: Connection reset by peer" || cut.is_empty(), "{cut}");
    drop(relay);
    assert_eq!(asks("10.67.0.1", "85", "10"), refused);
    // One that lives and does not listen: what is for it is refused, or goes on.
    let asleep = Middlebox::new(&[&receive[..], &["sh", "-c", "echo up; exec sleep 1000"]].concat());
    assert_eq!((asks("10.67.0.1", "80", "10"), asks("fd67::1", "80", "10")), (refused.into(), direct6.into()));
    drop(asleep);
    assert_eq!(Set::left(&own.parse().expect("a group"), None), Ok(0));
}

/// Mounts of this thread alone, with a bpf file system. The commands that it runs see them.
fn mount() {
    unshare(CloneFlags::CLONE_NEWNS).expect("mounts");
    run("mount --make-rprivate /");
    run("mount -t bpf none /sys/fs/bpf");
}

fn wanted(host: &Host, rule: &str) -> String {
    format!(
        "[[redirect]]\nreceived = 'here'\nmiddlebox = '{}'\n[[redirect.rule]]\nto = ['127.0.0.1:{BOX}', '[::1]:{BOX}']\ndestination-ports = '80-89'\n{rule}\n",
        host.middlebox()
    )
}

/// By a file: it stays until it is undone, and nothing of it is left then.
#[test]
fn connections_are_received_until_undone() {
    if !is_root() {
        return;
    }
    mount();
    let host = Host::new();
    let remote = Remote::new("here", 67);
    let mut steer = Steer::new();
    let _server = Server::new(&[("10.67.0.1", 80), ("fd67::1", 80)], |_| "server".into());
    let client = compiled("client.c");
    let asks = |port: &str| remote.says(&[client.to_str().expect("a path"), "10.67.0.1", port, "1000"]);
    let (direct, refused) = ("peer 10.67.0.1:80\nserver", "connect: Connection refused");
    assert_eq!((asks("80"), asks("85")), (direct.into(), refused.into()));
    assert_eq!(steer.apply(&wanted(&host, "")), 2);
    assert_eq!(asks("80"), direct, "nobody listens");
    for _ in 0..2 {
        let python = Middlebox::new(&["python3.11", "-c", PYTHON]);
        for port in ["80", "85", "89"] {
            assert_eq!(asks(port), format!("peer 10.67.0.1:{port}\nbox 10.67.0.1 {port} 10.67.0.2"));
        }
        assert_eq!(asks("90"), refused);
        drop(python);
        assert_eq!((asks("80"), asks("85")), (direct.into(), refused.into()));
    }
    assert_eq!(steer.apply(&wanted(&host, "dead = 'closed'")), 1);
    assert_eq!(asks("80"), refused);
    let none =
        format!("[[redirect]]\nreceived = 'here'\nmiddlebox = '{}'\n[[redirect.rule]]\nto = []\n", host.middlebox());
    assert_eq!(steer.apply(&none), 1);
    assert_eq!(asks("80"), direct);
    // A file without it takes it away, and so does undoing.
    assert_eq!(steer.apply(""), 2);
    assert_eq!(steer.apply(&wanted(&host, "dead = 'closed'")), 2);
    assert_eq!(asks("80"), refused);
    steer.undo();
    assert_eq!(asks("80"), direct);
    // The middlebox's group is removed and made anew: what told of its listeners went with it, and undoing takes the rest away.
    assert_eq!(steer.apply(&wanted(&host, "dead = 'closed'")), 2);
    let group = culvert_redirect::root().expect("the groups").join(&host.middlebox()[1..]);
    let enter = |group: &std::path::Path| std::fs::write(group.join("cgroup.procs"), "0").expect("a group");
    enter(group.parent().expect("the host's group"));
    std::fs::remove_dir(&group).expect("nobody in it");
    std::fs::create_dir(&group).expect("a group");
    enter(&group);
    assert_eq!(asks("80"), refused);
    // Nor is it taken for another's where the pin cannot be seen: undoing waits until it can.
    run("mount -t tmpfs none /sys/fs/bpf");
    let mut journal = Journal::open(&steer.directory).expect("a journal");
    let unseen = steering::undo(&mut steer.system, &mut journal, &mut |_| {});
    drop(journal);
    run("umount /sys/fs/bpf");
    assert!(unseen.is_err(), "{unseen:?}");
    steer.undo();
    assert_eq!(asks("80"), direct);
    let pins = std::fs::read_dir("/sys/fs/bpf").expect("the pins").flatten();
    assert_eq!(pins.filter(|pin| pin.file_name().to_string_lossy().contains("culvert")).count(), 0);
    // Another's that is held is in the way, and is named.
    let (tool, own) = (env!("CARGO_BIN_EXE_culvert-redirect"), host.middlebox());
    let rules = format!("family ipv4 to 127.0.0.1 {BOX} dead open");
    let held = Middlebox::new(&[
        tool,
        "receive",
        "here",
        "--middlebox",
        &own,
        "--rules",
        &rules,
        "--",
        "sh",
        "-c",
        "echo up; exec sleep 1000",
    ]);
    let config = steering::Config::parse(&wanted(&host, "")).expect("a file");
    let trouble = steering::plan(&config, &steer.system, &[]).expect_err("it is held");
    assert!(trouble[0].what.contains("held by a process"), "{trouble:?}");
    // A wish that it is held is one that it fulfils.
    let text = format!(
        "[[redirect]]\nreceived = 'here'\nheld = true\nmiddlebox = '{own}'\n[[redirect.rule]]\nto = ['127.0.0.1:{BOX}']\n"
    );
    let config = steering::Config::parse(&text).expect("a file");
    assert_eq!(
        config.redirects[0].hold_command().expect("a command").join(" "),
        format!("culvert-redirect receive here --middlebox {own} --rules {rules} --")
    );
    assert_eq!(steering::plan(&config, &steer.system, &[]), Ok(Vec::new()));
    assert_eq!(steering::verify_held(&config, &steer.system), []);
    drop(held);
    let left = steering::verify_held(&config, &steer.system);
    assert!(
        left.len() == 1 && left[0].to_string().starts_with("received by here: redirects: wanted family ipv4"),
        "{left:?}"
    );
}

/// Killed before each program that it attaches, pins or takes away, it leaves what `undo` takes away.
#[test]
fn receiving_is_killed_at_each_step() {
    if !is_root() {
        return;
    }
    mount();
    let host = Host::new();
    let _remote = Remote::new("here", 67);
    let mut steer = Steer::new();
    let (text, own) = (wanted(&host, ""), host.middlebox());
    let status = || {
        let out = Command::new(env!("CARGO_BIN_EXE_culvert-redirect"))
            .args(["received", "status", "here", "--middlebox", &own])
            .stdin(Stdio::null())
            .output();
        String::from_utf8_lossy(&out.expect("a command").stdout).trim().to_owned()
    };
    let calls = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("receive-calls-{}", std::process::id()));
    let (mut killed, mut partial) = (0, 0);
    for (action, call, does, least) in [
        ("received attach", "bpf", &["BPF_PROG_ATTACH", "BPF_LINK_CREATE", "BPF_OBJ_PIN"][..], 3),
        ("received set", "bpf", &["BPF_MAP_UPDATE_ELEM"][..], 2),
        ("received detach", "bpf", &["BPF_PROG_DETACH"][..], 1),
        ("received detach", "unlink", &["culvert-received"][..], 1),
    ] {
        kill(call, action, None, &calls);
        steer.apply(&text);
        let read = || std::fs::read_to_string(&calls).expect("strace (apt-get install strace)");
        let applied = if action.ends_with("detach") { String::new() } else { read() };
        steer.undo();
        let told = if action.ends_with("detach") { read() } else { applied };
        let is_it = |line: &str| does.iter().any(|does| line.contains(does));
        let points: Vec<usize> = (1..).zip(told.lines()).filter(|(_, line)| is_it(line)).map(|(at, _)| at).collect();
        assert!(points.len() >= least, "{action}: {told}");
        for at in points {
            kill(call, action, Some(at), &calls);
            let steps = steer.plan(&text);
            let mut journal = Journal::open(&steer.directory).expect("a journal");
            let applied = steering::apply(&mut steer.system, &mut journal, &steps, &mut |_| {});
            killed += u32::from(applied.is_err());
            partial += u32::from(status() == "part");
            let undone = steering::undo(&mut steer.system, &mut journal, &mut |_| {});
            killed += u32::from(undone.is_err());
            partial += u32::from(status() == "part");
            drop(journal);
            beside();
            steer.undo();
            assert_eq!(status(), "absent", "{action} {at}");
        }
    }
    // Fewer where other programs come and go on this machine meanwhile: the command looks at each, and its calls have other numbers then.
    assert!(killed > 2 && partial > 0, "{killed} {partial}");
    let _ = std::fs::remove_file(&calls);
}
