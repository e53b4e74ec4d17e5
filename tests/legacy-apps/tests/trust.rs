//! Who may talk to a process, and what it says to whom.

use legacy_apps::lab::free_port;
use legacy_apps::lab::{line, open_to_all, strangers_stay_away};
use legacy_apps::procs::culvert_mappings;
use legacy_apps::{Lab, Mode, PATIENCE, Side, is_root, library, poll_until, wait_for};
use shmring::layout;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Users of the tests: nobody else has these ids on an ordinary machine.
const MALLORY: u32 = 61_013;

fn is_several_users() -> bool {
    if !is_root() {
        eprintln!("skipped: only root can be several users");
    }
    is_root()
}

fn as_user(uid: u32) -> Command {
    let mut c = Command::new("setpriv");
    c.arg(format!("--reuid={uid}")).arg(format!("--regid={uid}")).args(["--clear-groups", "--"]);
    c
}

/// A setuid program that has the library loaded: the caller's variables are the caller's, not the program's.
#[test]
fn a_privileged_program_obeys_no_variable_and_says_nothing() {
    if !is_several_users() {
        return;
    }
    let lab = Lab::new("secure", Mode::Both);
    open_to_all(lab.dir());
    let directory = lab.dir().to_str().expect("a path of ASCII").to_owned();
    std::fs::copy(library(), lab.path("libculvert.so")).expect("the library");
    let options =
        ["-Wl,--no-as-needed", &format!("-L{directory}"), "-l:libculvert.so", &format!("-Wl,-rpath,{directory}")];
    // The source comes last on the command line: the library is named after it.
    let program = lab.compile("secure.c", &options);
    let mode = |mode| std::fs::set_permissions(&program, std::fs::Permissions::from_mode(mode)).expect("permissions");
    let run = || {
        let log = lab.path("said");
        let mut c = as_user(MALLORY);
        c.arg(&program).current_dir(lab.dir());
        c.env("CULVERT_LOG_FILE", &log).env("CULVERT_LOG", "trace").env("CULVERT_PATH", "x\n* * * * * root\x1b[2J");
        let out = c.output().expect("setpriv");
        assert!(out.status.success(), "{out:?}");
        (String::from_utf8_lossy(&out.stdout).into_owned(), out.stderr, std::fs::read(log).ok())
    };
    mode(0o755);
    let (said, _, log) = run();
    assert_eq!(said, format!("uid {MALLORY} euid {MALLORY} secure 0 socket 1\n"));
    let log = String::from_utf8(log.expect("without privilege the library is loaded, and obeys")).expect("text");
    assert!(log.contains("CULVERT_PATH=x?* * * * * root?[2J is not one of"), "{log:?}");
    std::fs::remove_file(lab.path("said")).expect("the log");
    mode(0o4755);
    let (said, error, log) = run();
    assert_eq!(said, format!("uid {MALLORY} euid 0 secure 1 socket 1\n"));
    assert_eq!((String::from_utf8_lossy(&error).as_ref(), log), ("", None));
}

/// What comes from outside makes no line of its own in the log, and does not reach the terminal as it is.
#[test]
fn no_control_character_is_echoed() {
    let lab = Lab::new("control", Mode::Both);
    let hostile = "x\nculvert[1]: y\r\x1b[2J\x07\x7f\u{9b}2J\u{202e}";
    for key in ["PATH", "SPIN", "LOG", "RING", "EAGER", "DIR", "LOG_FILE"] {
        let mut c = lab.command(Side::Client, "true");
        for k in ["CULVERT_LOG", "CULVERT_LOG_FILE"] {
            c.env_remove(k);
        }
        // Any text without a slash is the name of a file.
        let value = if key == "LOG_FILE" { format!("/nowhere/{hostile}") } else { hostile.to_owned() };
        let out = lab.run("true", c.env(format!("CULVERT_{key}"), value));
        let said = out.stderr.strip_suffix('\n').unwrap_or(&out.stderr).to_owned();
        assert!(said.contains(key) && said.contains("x?culvert[1]: y??[2J???2J?"), "{key}: {said:?}");
        assert!(!said.chars().any(char::is_control), "{key}: {said:?}");
    }
    let culvert = |words: &[&str]| {
        let out = Command::new(legacy_apps::culvert()).args(words).output().expect("culvert");
        String::from_utf8(out.stderr).expect("text") + &String::from_utf8(out.stdout).expect("text")
    };
    for words in [
        &["run", "--", hostile][..],
        &["run", "--path", hostile, "p"],
        &[hostile],
        &["bench", hostile],
        &["doctor", hostile],
    ] {
        let said = culvert(words);
        assert!(said.contains("x?culvert[1]: y??[2J???2J?"), "{words:?}: {said:?}");
        assert!(!said.chars().any(|c| c != '\n' && c.is_control()), "{words:?}: {said:?}");
        assert!(!said.contains("\nculvert[1]"), "{words:?}: {said:?}");
    }
}

/// Bytes of the rings that `py/hostile.py` makes or is given.
const RING: usize = 4 << 20;
/// Bytes of a ring between two users.
const SMALL: usize = 128 << 10;

/// What `py/hostile.py` knows of the shared memory.
fn known() -> String {
    use std::mem::offset_of;
    strangers_stay_away();
    let headers: Vec<String> = (0..layout::SLOTS).map(|i| layout::header_at(i).to_string()).collect();
    let lines = [
        ("side", offset_of!(layout::SlotHeader, side)),
        ("producer", offset_of!(layout::SlotHeader, producer)),
        ("consumer", offset_of!(layout::SlotHeader, consumer)),
    ];
    let fields = [
        ("pollers", offset_of!(layout::Side, pollers)),
        ("up", offset_of!(layout::Side, up)),
        ("down", offset_of!(layout::Side, down)),
        ("rewind", offset_of!(layout::Side, rewind)),
        ("gone", offset_of!(layout::Side, gone)),
        ("sndbuf", offset_of!(layout::Side, sndbuf)),
        ("rcvbuf", offset_of!(layout::Side, rcvbuf)),
        ("tail", offset_of!(layout::Producer, tail)),
        ("head", offset_of!(layout::Consumer, head)),
    ];
    let map = |of: &[(&str, usize)]| of.iter().map(|(n, at)| format!(r#""{n}":{at}"#)).collect::<Vec<_>>().join(",");
    format!(
        r#"{{"journal":{},"version":{},"offers":{},"queues":{},"fixed":{},"headers":[{}],"rx":{},"ring":{RING},"length":{},"small":{SMALL},"small length":{},"lines":{{{}}},"fields":{{{}}}}}"#,
        layout::JOURNALS_AT,
        rendezvous::message::VERSION,
        layout::OFFERS_AT,
        layout::QUEUES_AT,
        layout::FIXED_LEN,
        headers.join(","),
        offset_of!(layout::Side, rx),
        layout::channel_len(RING),
        layout::channel_len(SMALL),
        map(&lines),
        map(&fields),
    )
}

/// A hostile user of a test's own: what it leaves in /dev/shm is removed when this is dropped.
struct Hostile(u32);

impl Drop for Hostile {
    fn drop(&mut self) {
        for entry in std::fs::read_dir("/dev/shm").into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().starts_with(&format!("culvert-{}-", self.0)) {
                let _ = std::fs::remove_file(entry.path());
            }
        }
    }
}

impl Hostile {
    /// The `n`th user. Tests that run at the same time would remove each other's registry.
    fn user(n: u32) -> Hostile {
        Hostile(MALLORY + n)
    }

    /// `py/hostile.py` as this user's, who may read a copy of it.
    fn peer(&self, lab: &Lab, words: &[&str]) -> Command {
        open_to_all(lab.dir());
        let script = lab.write("hostile.py", std::fs::read(legacy_apps::file("py/hostile.py")).expect("the script"));
        let mut c = lab.command(Side::Client, "setpriv");
        c.env_remove("LD_PRELOAD").arg(format!("--reuid={}", self.0)).arg(format!("--regid={}", self.0));
        c.args(["--clear-groups", "--", "/usr/bin/python3.11", "-u"]).arg(script).arg(known()).args(words);
        c
    }
}

/// A peer of another user says that it has filled its ring, and has not: whoever reads that gets zeros, and no more memory is
/// charged to it than that ring, which is small.
#[test]
fn a_peer_that_has_others_pay_for_its_ring() {
    if !is_several_users() {
        return;
    }
    let user = Hostile::user(1);
    let lab = Lab::new("charge", Mode::Both);
    let port = free_port().to_string();
    let bytes = (SMALL - 64).to_string();
    let victim = lab.start("victim", lab.python(Side::Server, "victim.py").args(["acceptor", &port, "charge", &bytes]));
    wait_for("the listener", PATIENCE, || victim.stdout().contains("listening"));
    let hostile = lab.run("hostile", &mut user.peer(&lab, &["connector", "charge", &port])).success();
    let out = victim.wait(PATIENCE);
    assert_eq!(out.text(), "listening\nzeros True", "{}", out.stderr);
    let bytes = hostile.text();
    let bytes: usize = bytes.strip_prefix("at work\nread True bytes ").and_then(|n| n.parse().ok()).expect("a number");
    assert!(bytes <= SMALL, "{bytes}");
}

/// A process uses a connection that lives in another network namespace. A stranger has one with the same addresses in the
/// process's own: he is not its other end, whatever he says. `older`: as on a kernel that does not tell where a socket lives.
fn a_twin(victim: &str, role: &str, n: u32, older: bool) {
    if !is_several_users() {
        return;
    }
    let user = Hostile::user(n);
    let lab = Lab::new(&format!("twin-{victim}-{older}"), Mode::Both);
    let mut command = lab.command(Side::Client, "unshare");
    // The first process there is under the filter, too, so culvert is on.
    command.args(["-n", "--pid", "--fork", "--kill-child", "--mount-proc"]);
    command.args(["sh", "-c", "ip link set lo up; exec \"$@\"", "sh"]);
    if older {
        command.arg(lab.compile("older.c", &[]));
    }
    command
        .args(["/usr/bin/python3.11", "-u"])
        .arg(legacy_apps::file("py/networks.py"))
        .arg(victim)
        .stdin(Stdio::piped());
    let mut p = lab.start("victim", &mut command);
    let mut input = p.stdin().expect("its standard input");
    wait_for("the victim's addresses", PATIENCE, || p.stdout().contains("addresses") && p.stdout().ends_with('\n'));
    let said = p.stdout();
    let [_, sport, dport, cookie] = said.split_whitespace().collect::<Vec<_>>()[..] else { panic!("{said}") };
    let peer = user.peer(&lab, &[role, "twin", dport, sport, cookie]);
    let mut inside = lab.command(Side::Client, "nsenter");
    inside.env_remove("LD_PRELOAD").arg(format!("--net=/proc/{}/ns/net", p.pid()));
    inside.arg(peer.get_program()).args(peer.get_args());
    let hostile = lab.start("hostile", &mut inside);
    wait_for("the stranger's connection", PATIENCE, || hostile.stdout().contains("at work"));
    line(&mut input, "");
    let out = p.wait(PATIENCE).success();
    assert!(out.text().contains("the victim has all answers"), "{} {}", out.text(), out.stderr);
    let heard = hostile.stdout();
    hostile.stop(libc::SIGKILL);
    assert_eq!(heard, "at work\n", "the victim took a stranger for its peer");
}

#[test]
fn a_stranger_with_the_addresses_of_an_acceptor_elsewhere() {
    a_twin("connects", "acceptor", 31, false);
    a_twin("connects", "acceptor", 31, true);
}

#[test]
fn a_stranger_with_the_addresses_of_a_connector_elsewhere() {
    a_twin("accepts", "connector", 32, false);
    a_twin("accepts", "connector", 32, true);
}

/// A peer that sets all ready bits all the time, and clears what is armed, does not keep anybody from timing out, from
/// hearing signals or others, or from sleeping.
#[test]
fn a_peer_that_has_news_for_ever() {
    let lab = Lab::new("news", Mode::Both);
    let port = free_port().to_string();
    let victim = lab.start("victim", lab.python(Side::Server, "victim.py").args(["acceptor", &port]));
    wait_for("the listener", PATIENCE, || victim.stdout().contains("listening"));
    let mut hostile = lab.python(Side::Client, "hostile.py");
    hostile.env_remove("LD_PRELOAD").arg(known()).args(["connector", "bits", &port]);
    let hostile = lab.start("hostile", &mut hostile);
    wait_for("a slot for the hostile peer", PATIENCE, || hostile.stdout().contains("at work"));
    let out = victim.wait(PATIENCE);
    let each = "timed out True\nidle True\ninterrupted\n";
    assert_eq!(out.text(), format!("listening\n{}another's news True", each.repeat(3)), "{}", out.stderr);
    drop(hostile);
}

/// A peer of another user notes acts that nobody has done. Whoever waits does not look through all it watches for each of them.
#[test]
fn a_peer_that_notes_what_it_has_not_done() {
    if !is_several_users() {
        return;
    }
    let user = Hostile::user(2);
    let lab = Lab::new("journal", Mode::Both);
    let port = free_port().to_string();
    let victim = lab.start("victim", lab.python(Side::Server, "victim.py").args(["acceptor", &port, "journal"]));
    wait_for("the listener", PATIENCE, || victim.stdout().contains("listening"));
    let hostile = lab.run("hostile", &mut user.peer(&lab, &["connector", "journal", &port])).success();
    let out = victim.wait(PATIENCE);
    assert_eq!(out.text(), "listening\nsame True", "{}", out.stderr);
    assert_eq!(hostile.text(), "told 400");
}

/// A peer says of both ends' buffers that they have no room. Nobody is told to write who cannot.
#[test]
fn a_peer_that_leaves_no_room() {
    let lab = Lab::new("narrow", Mode::Both);
    let port = free_port().to_string();
    let victim = lab.start("victim", lab.python(Side::Server, "victim.py").args(["acceptor", &port, "narrow"]));
    wait_for("the listener", PATIENCE, || victim.stdout().contains("listening"));
    let mut hostile = lab.python(Side::Client, "hostile.py");
    hostile.env_remove("LD_PRELOAD").arg(known()).args(["connector", "narrow", &port]);
    assert_eq!(lab.run("hostile", &mut hostile).success().text(), "narrow");
    assert_eq!(victim.wait(PATIENCE).success().text(), "listening\nin vain 0");
}

/// A control group with a limit, gone with this.
struct Group(PathBuf);

impl Group {
    fn make(megabytes: u64) -> Option<Group> {
        let (v1, v2) = ("/sys/fs/cgroup/memory", "/sys/fs/cgroup");
        let (root, limit) = if Path::new(v1).exists() { (v1, "memory.limit_in_bytes") } else { (v2, "memory.max") };
        let dir = Path::new(root).join(format!("culvert-trust-{}-{megabytes}", std::process::id()));
        std::fs::create_dir(&dir).ok()?;
        let group = Group(dir);
        std::fs::write(group.0.join(limit), (megabytes << 20).to_string()).ok()?;
        Some(group)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir(&self.0);
    }
}

/// A peer of another user does not read what it was sent, and does not say that it has closed its end either. Connections that
/// were closed leave it a bounded part of this process's memory; the next ones end with a reset.
#[test]
fn a_peer_that_keeps_what_it_does_not_read() {
    let Some(group) = Group::make(96).filter(|_| is_several_users()) else {
        eprintln!("skipped: no control group can be made (needs root, and memory control)");
        return;
    };
    let user = Hostile::user(3);
    let lab = Lab::new("retain", Mode::Both);
    let port = free_port().to_string();
    let path = group.0.to_string_lossy();
    let victim = lab.start("victim", lab.python(Side::Server, "victim.py").args(["acceptor", &port, "retain", &path]));
    wait_for("the listener", PATIENCE, || victim.stdout().contains("listening"));
    let said = lab.run("hostile", &mut user.peer(&lab, &["connector", "retain", &port])).success().text();
    drop(victim);
    let (bytes, ends) = said.strip_prefix("megabytes ").and_then(|s| s.split_once(' ')).expect("what was kept");
    let megabytes: u32 = bytes.parse().expect("a number");
    // A quarter of three quarters of the group, less what the victim has, and what one connection may have.
    assert!((4..=22).contains(&megabytes), "{said}");
    assert_eq!(ends, "first False last True");
}

/// A peer of another user says that its connections are closed, so that their channels are given up, and keeps the memory, which counts
/// against the victim's limit. Before that is reached there are no channels for it any more.
#[test]
fn a_peer_that_hoards_channels() {
    const LIMIT: u64 = 40;
    let Some(group) = Group::make(LIMIT).filter(|_| is_several_users()) else {
        eprintln!("skipped: no control group can be made (needs root, and memory control)");
        return;
    };
    let user = Hostile::user(9);
    let lab = Lab::new("hoard", Mode::Both);
    let port = free_port().to_string();
    let path = group.0.to_string_lossy();
    let victim = lab.start("victim", lab.python(Side::Server, "victim.py").args(["acceptor", &port, "retain", &path]));
    wait_for("the listener", PATIENCE, || victim.stdout().contains("listening"));
    let most = (LIMIT * 3 / 4 + 2).to_string();
    let said = lab.run("hostile", &mut user.peer(&lab, &["connector", "hoard", &port, &most])).success().text();
    drop(victim);
    let kept = said.strip_prefix("megabytes ").and_then(|s| s.strip_suffix(" refused")).expect("what was kept");
    let (megabytes, channels) = kept.split_once(" of ").expect("two numbers");
    assert!(channels.parse::<u32>().is_ok_and(|n| n > 9), "{said}");
    // Channels that it has given up count as long as they are there: rings take no more than half of what they might.
    assert!(megabytes.parse::<u64>().is_ok_and(|n| n <= LIMIT / 2), "{said}");
}

/// No part of a channel's memory that another user has, too, can be given up, nor can the file be written or mapped anew. What
/// gives it up before that is sure is waited for by nobody: the memory is not touched, nor has a child it.
#[test]
fn a_peer_that_gives_up_memory() {
    if !is_several_users() {
        return;
    }
    let user = Hostile::user(4);
    for way in ["punch", "unsealed"] {
        let lab = Lab::new(way, Mode::Both);
        let port = free_port().to_string();
        let victim = lab.start("victim", lab.python(Side::Server, "victim.py").args(["acceptor", &port]));
        wait_for("the listener", PATIENCE, || victim.stdout().contains("listening"));
        let hostile = lab.start("hostile", &mut user.peer(&lab, &["connector", way, &port]));
        if way == "unsealed" {
            wait_for("the memory", PATIENCE, || hostile.stdout().contains("has the memory"));
            let maps = std::fs::read_to_string(format!("/proc/{}/smaps", victim.pid())).expect("smaps");
            let of_channel = maps.split("culvert-channel").nth(1).expect("a mapping");
            let line = |name: &str| of_channel.lines().find(|l| l.starts_with(name)).expect("a line").to_owned();
            assert_eq!(line("Rss:").split_whitespace().nth(1), Some("0"), "{of_channel}");
            // Not copied by a fork (proc_pid_smaps(5)).
            assert!(line("VmFlags:").split_whitespace().any(|flag| flag == "dc"), "{of_channel}");
        }
        let said = hostile.wait(PATIENCE).success().text();
        match way {
            "punch" => assert_eq!(said, "EPERM EPERM EPERM EPERM EPERM 77"),
            _ => assert_eq!(said, "has the memory\nnot offered a slot"),
        }
    }
}

/// A peer of another user has whoever tells it of news pay for the filters of many doorbells. It goes to the kernel, and gets no
/// connections any more.
#[test]
fn a_peer_whose_doorbells_are_dear() {
    if !is_several_users() {
        return;
    }
    let user = Hostile::user(6);
    let lab = Lab::new("bells", Mode::Both);
    let port = free_port().to_string();
    let victim = lab.start("victim", lab.python(Side::Server, "victim.py").args(["acceptor", &port]));
    wait_for("the listener", PATIENCE, || victim.stdout().contains("listening"));
    let hostile = lab.run("hostile", &mut user.peer(&lab, &["connector", "bells", &port])).success();
    drop(victim);
    let log = std::fs::read_to_string(lab.path("culvert.log")).expect("culvert's log");
    assert_eq!(hostile.text(), "on the kernel", "{log}");
    assert!(log.contains("holds up this process"), "{log}");
}

/// A peer of another user holds the lock of the memory that it passes on, so that whoever seals it waits. It is noticed, and gets no
/// connections any more.
#[test]
fn a_peer_that_holds_up_who_connects_to_it() {
    if !is_several_users() {
        return;
    }
    let user = Hostile::user(5);
    let lab = Lab::new("hold", Mode::Both);
    let hostile = lab.start("hostile", &mut user.peer(&lab, &["acceptor", "hold", "0"]));
    wait_for("the listener", PATIENCE, || hostile.stdout().contains('\n'));
    let port = hostile.stdout().trim().to_owned();
    let victim = lab.start("victim", lab.python(Side::Client, "victim.py").args(["connector", &port]));
    let said = victim.wait(PATIENCE).success();
    assert_eq!(said.text(), "exchanged");
    let welcomed = hostile.wait(PATIENCE).text();
    let log = std::fs::read_to_string(lab.path("culvert.log")).expect("culvert's log");
    assert!(log.contains("holds up this process"), "{welcomed}: {log}");
    let welcomed: u32 =
        welcomed.lines().last().and_then(|l| l.strip_prefix("welcomed ")?.parse().ok()).expect("a number");
    assert!((3..24).contains(&welcomed), "{welcomed}");
}

/// A peer says what cannot be, of either direction, by any of its words or the victim's own: the connection is then, for each
/// call, what a RST makes of it natively.
#[test]
fn a_peer_that_contradicts_itself() {
    const ROUNDS: usize = 8;
    let run = |mode: Mode, how: &str, sends: &[&str], log: &[(&str, &str)]| {
        let lab = Lab::new(how, mode);
        let port = free_port().to_string();
        let mut victim = lab.python(Side::Server, "victim.py");
        victim.env_remove("CULVERT_LOG_FILE").env_remove("CULVERT_LOG").envs(log.iter().copied());
        let victim = lab.start("victim", victim.args(["acceptor", &port, "lost"]).args(sends));
        wait_for("the listener", PATIENCE, || victim.stdout().contains("listening"));
        let mut hostile = lab.python(Side::Client, "hostile.py");
        hostile.env_remove("LD_PRELOAD").arg(known()).args(["connector", how, &port, &ROUNDS.to_string()]);
        let said = lab.run("hostile", &mut hostile).success().text();
        let out = victim.wait(PATIENCE).success();
        let text = out.text();
        (text.strip_prefix("listening\n").expect("the first line").to_owned(), said, out.stderr)
    };
    let native = |sends: &str| run(Mode::Native, "reset", &[sends], &[]).0;
    let (receiving, sending) = (native("0"), native("65536"));
    // In the order of `CLAIMS`: what is read of the victim's ring concerns who sends.
    let sends = ["0", "0", "0", "0", "0", "65536", "0"];
    // Each of them can be said; who wants to hear less is not told without end.
    let sends = sends.repeat(ROUNDS);
    let (_, _, stderr) = run(Mode::Both, "contradict", &sends, &[("CULVERT_LOG", "off")]);
    assert_eq!(stderr, "");
    let begin = std::time::Instant::now();
    let (lost, said, stderr) = run(Mode::Both, "contradict", &sends, &[]);
    // 20 in ten seconds, and how many were left out.
    let most = 21 * (begin.elapsed().as_secs() as usize / 10 + 2);
    let lines = stderr.lines().count();
    assert!((20..=most).contains(&lines), "{lines} lines: {stderr}");
    let expected: Vec<&str> = sends.iter().map(|s| if *s == "0" { &*receiving } else { &*sending }).collect();
    let claims: Vec<&str> = said.lines().collect();
    assert_eq!(claims.len(), sends.len(), "{said}");
    // What a peer publishes may be told of before what contradicts it is seen, by the call that reads: seldom, on a busy machine.
    let early = "(True, False, False)";
    assert!(lost.matches(early).count() <= sends.len() / 4, "{lost}");
    let lost = lost.replace(early, "(True, True, True)");
    for ((lost, expected), claim) in lost.lines().zip(expected).zip(claims) {
        assert_eq!(lost, expected, "{claim}: {stderr}");
        assert!(claim.ends_with(": ConnectionResetError"), "{claim}");
    }
    assert_eq!(lost.lines().count(), sends.len());
}

/// Whoever is welcomed and answers with something else than a channel's memory gets nowhere, and holds up nobody.
#[test]
fn what_is_no_channel() {
    for way in ["pipe", "reader", "file", "eventfd", "lingering", "unsealed", "short", "flood"] {
        let lab = Lab::new(way, Mode::Both);
        let mut hostile = lab.python(Side::Server, "hostile.py");
        hostile.env_remove("LD_PRELOAD").arg(known()).args(["acceptor", way, "0"]);
        let hostile = lab.start("hostile", &mut hostile);
        wait_for("the listener", PATIENCE, || hostile.stdout().contains('\n'));
        let port = hostile.stdout().trim().to_owned();
        let victim = lab.start("victim", lab.python(Side::Client, "victim.py").args(["connector", &port]));
        let mut most = 0;
        let pid = victim.pid();
        assert!(
            poll_until(PATIENCE, || {
                most = most.max(culvert_mappings(pid));
                victim.stdout().contains("exchanged")
            }),
            "{way}: {}",
            victim.describe()
        );
        let out = victim.wait(PATIENCE).success();
        assert_eq!(out.text(), "exchanged", "{way}");
        // Its family's memory, and what a flood of knocks may bring: one channel.
        assert!(most <= 2, "{way}: {most}");
        let said = hostile.wait(PATIENCE).text();
        assert!(
            said.contains("welcomed ") && !said.ends_with("welcomed 0"),
            "{way}: it was welcomed, or nothing was tested: {said}"
        );
    }
}
