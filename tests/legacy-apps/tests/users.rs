//! Peers who belong to different users, and users who have no part in a connection.

use legacy_apps::lab::{free_port, open_to_all};
use legacy_apps::procs::registries;
use legacy_apps::{
    BOTH, Lab, Mode, PATIENCE, Seen, Side, compare, echo, is_root, on_ring, path_expected, poll_until, remote, stat,
    wait_for,
};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Copies of the programs that every user may execute, wherever the repository lies.
fn for_everybody(lab: &Lab) -> (PathBuf, PathBuf) {
    let copy = |from: PathBuf, name: &str| {
        let to = lab.path(name);
        std::fs::copy(&from, &to).unwrap_or_else(|e| panic!("{}: {e}", from.display()));
        std::fs::set_permissions(&to, std::fs::Permissions::from_mode(0o755)).expect("permissions");
        to
    };
    open_to_all(lab.dir());
    let library =
        if lab.accelerated(Side::Client) { copy(legacy_apps::library(), "libculvert.so") } else { PathBuf::new() };
    (copy(legacy_apps::lab::peer_program(), "legacy-peer"), library)
}

/// `program` as user `uid`, who has no name, no group of others and no capability.
fn as_user(lab: &Lab, side: Side, uid: u32, library: &Path, program: &Path) -> Command {
    let mut c = lab.command(side, "setpriv");
    c.env_remove("LD_PRELOAD")
        .arg(format!("--reuid={uid}"))
        .arg(format!("--regid={uid}"))
        .args(["--clear-groups", "--"]);
    if lab.accelerated(side) {
        c.arg("env").arg(format!("LD_PRELOAD={}", library.display()));
    }
    c.arg(program);
    c
}

/// Users of the tests: nobody else has these ids on an ordinary machine.
const ALICE: u32 = 61_001;
const BOB: u32 = 61_002;
const MALLORY: u32 = 61_003;

/// The tests' users, who are one test's at a time: one of them finds files of others in the places of its registry. Removes what they leave in
/// /dev/shm when it is dropped.
struct Users {
    _theirs: MutexGuard<'static, ()>,
}

impl Users {
    fn take() -> Users {
        static ONE_TEST: Mutex<()> = Mutex::new(());
        Users { _theirs: ONE_TEST.lock().unwrap_or_else(PoisonError::into_inner) }
    }
}

impl Drop for Users {
    fn drop(&mut self) {
        for (name, _) in registries() {
            if [ALICE, BOB, MALLORY].iter().any(|u| name.starts_with(&format!("culvert-{u}-"))) {
                let _ = std::fs::remove_file(PathBuf::from("/dev/shm").join(name));
            }
        }
    }
}

#[test]
fn peers_of_different_users() {
    if !is_root() {
        eprintln!("skipped: only root can be several users");
        return;
    }
    let _users = Users::take();
    for (server_uid, client_uid) in [(ALICE, BOB), (ALICE, ALICE), (0, ALICE), (ALICE, 0)] {
        compare("users", BOTH, |lab| {
            let (program, library) = for_everybody(lab);
            let mut seen = echo(
                lab,
                |w| {
                    let mut c = as_user(lab, Side::Server, server_uid, &library, &program);
                    c.args(w);
                    c
                },
                |w| {
                    let mut c = as_user(lab, Side::Client, client_uid, &library, &program);
                    c.args(w);
                    c
                },
            );
            let port = free_port();
            let text = port.to_string();
            let server = lab.serve(
                "echo",
                port,
                as_user(lab, Side::Server, server_uid, &library, &program).args(["echo", &text]),
            );
            let mut on = lab.start(
                "ping-on",
                as_user(lab, Side::Client, client_uid, &library, &program)
                    .args(["ping-on", &text, "64"])
                    .stdin(Stdio::piped()),
            );
            let input = on.stdin();
            lab.assert_shm(server.pid());
            lab.assert_shm(on.pid());
            drop(input);
            seen.note("ping-on", on.wait(PATIENCE).status);
            drop(server);
            seen
        });
    }
}

/// A ring between two users holds less than the kernel's buffers do. Programs that send much to each other before they read do not
/// wait for each other for ever.
#[test]
fn two_users_that_send_before_they_read() {
    if !is_root() {
        eprintln!("skipped: only root can be several users");
        return;
    }
    if remote() {
        return eprintln!("skipped: over a wire they do natively: windows are small until somebody reads");
    }
    let _users = Users::take();
    for way in ["block", "poll", "waitall", "lowat", "retry", "held"] {
        compare(&format!("crossed-{way}"), BOTH, |lab| {
            let (_, library) = for_everybody(lab);
            let script = std::fs::read(legacy_apps::file("py/crossed.py")).expect("the script");
            let script = lab.write("crossed.py", script);
            let end = |side, uid, port: &str| {
                let mut c = as_user(lab, side, uid, &library, Path::new("/usr/bin/python3.11"));
                c.arg(&script).args([way, port]);
                c
            };
            let server = lab.start("server", &mut end(Side::Server, ALICE, "0"));
            wait_for("the listener", PATIENCE, || server.stdout().contains('\n'));
            let port = server.stdout().trim().to_owned();
            let client = lab.run("client", &mut end(Side::Client, 0, &port));
            let server = server.wait(PATIENCE);
            if lab.accelerated(Side::Client) {
                let log = std::fs::read_to_string(lab.path("culvert.log")).expect("culvert's log");
                assert!(on_ring(&log) >= 2, "{log}");
            }
            let mut seen = Seen::default();
            seen.note("client", format!("{} {}", client.status, client.text()));
            seen.note("server", format!("{} {}", server.status, server.text().replace(&port, "")));
            seen
        });
    }
}

/// Clients of another user are killed with more than a ring unread, which the kernel counts as a reset: their channels are given up
/// with their connections.
#[test]
fn clients_of_another_user_that_are_killed_unread() {
    if !is_root() {
        eprintln!("skipped: only root can be several users");
        return;
    }
    let _users = Users::take();
    let lab = Lab::new("unread-by-dead", Mode::Both);
    let (_, library) = for_everybody(&lab);
    let program = lab.compile("killed.c", &[]);
    let end = |side, uid, words: &[&str]| {
        let mut c = as_user(&lab, side, uid, &library, &program);
        c.args(words);
        c
    };
    let server = lab.start("server", &mut end(Side::Server, 0, &["server"]));
    wait_for("the listener", PATIENCE, || server.stdout().contains('\n'));
    let port = server.stdout().lines().next().expect("a port").to_owned();
    let gone = || server.stdout().lines().filter(|line| line.starts_with("had")).count();
    for n in 1..=5 {
        lab.start("client", &mut end(Side::Client, ALICE, &["client", &port])).wait(PATIENCE);
        wait_for("the end", PATIENCE, || gone() == n);
    }
    let said = server.stdout();
    assert!(said.contains("had 1 "), "no client was attached: {said}");
    // The last may not have been gone altogether when the server closed its end.
    assert!(said.lines().last().is_some_and(|l| l.ends_with("has 0") || l.ends_with("has 1")), "{said}");
}

/// A program under `CULVERT_PEERS=own` shares memory with its own user's processes and root's, whichever end it is; its connections
/// with others' work all the same.
#[test]
fn a_program_may_refuse_other_users_memory() {
    if !is_root() {
        eprintln!("skipped: only root can be several users");
        return;
    }
    let _users = Users::take();
    for (strict, other, admitted) in [(ALICE, ALICE, true), (ALICE, 0, true), (ALICE, BOB, false), (0, BOB, false)] {
        // Over a wire each of the two has its ring with zstackd, which is root's.
        let admitted = admitted || remote();
        for listens in [true, false] {
            compare("own-peers", BOTH, |lab| {
                let (program, library) = for_everybody(lab);
                let port = free_port();
                let text = port.to_string();
                let own = |mut c: Command, does: bool| {
                    if does {
                        c.env("CULVERT_PEERS", "own");
                    }
                    c
                };
                let (server, client) = if listens { (strict, other) } else { (other, strict) };
                let c = as_user(lab, Side::Server, server, &library, &program);
                let server = lab.serve("echo", port, own(c, listens).args(["echo", &text]));
                let c = as_user(lab, Side::Client, client, &library, &program);
                let mut on =
                    lab.start("ping-on", own(c, !listens).args(["ping-on", &text, "64"]).stdin(Stdio::piped()));
                let input = on.stdin();
                if admitted {
                    lab.assert_shm(server.pid());
                } else if lab.accelerated(Side::Client) {
                    let strict = if listens { server.pid() } else { on.pid() };
                    let mut last = Ok(Vec::new());
                    let refused = poll_until(PATIENCE, || {
                        last = stat::connections();
                        let all = last.as_deref().unwrap_or_default();
                        all.iter().any(|c| c.pid == strict && c.path == "kernel" && c.reason == "other-user")
                    });
                    assert!(refused, "{last:?}");
                    let shared = |c: &stat::Connection| [server.pid(), on.pid()].contains(&c.pid) && c.path == "shm";
                    assert!(!last.iter().flatten().any(shared), "{last:?}");
                }
                drop(input);
                let mut seen = Seen::default();
                seen.note("ping-on", on.wait(PATIENCE).status);
                drop(server);
                seen
            });
        }
    }
}

/// A third user speaks culvert's protocol perfectly: she knocks at every mailbox and rings every doorbell, tries to open, write, replace and map what the two
/// others use, and to take descriptors from them: nothing of it works, and the two go on undisturbed.
#[test]
fn a_third_user_cannot_interfere() {
    if !is_root() {
        eprintln!("skipped: only root can be several users");
        return;
    }
    // She writes to every mailbox there is.
    let _leave = legacy_apps::lab::stranger();
    let _users = Users::take();
    let lab = Lab::new("mallory", Mode::Both);
    let (program, library) = for_everybody(&lab);
    let script = lab.write("mallory.py", std::fs::read(legacy_apps::file("py/mallory.py")).expect("the script"));
    let port = free_port();
    let text = port.to_string();
    let mallory = |pids: &[u32], seconds: &str| {
        let pids: Vec<String> = pids.iter().map(u32::to_string).collect();
        let mut c = as_user(&lab, Side::Client, MALLORY, &library, Path::new("/usr/bin/python3.11"));
        let version = rendezvous::message::VERSION.to_string();
        c.env_remove("LD_PRELOAD").arg(&script).arg(version).arg(seconds).arg(pids.join(","));
        c
    };
    // She was there first: files with the names that the others' registries will have.
    let squatted: Vec<_> = [ALICE, BOB].map(|uid| (uid, squat(uid))).into_iter().collect();
    let server = lab.serve("echo", port, as_user(&lab, Side::Server, ALICE, &library, &program).args(["echo", &text]));
    let squat_ping =
        lab.run("ping", as_user(&lab, Side::Client, BOB, &library, &program).args(["ping", &text, "2", "300", "64"]));
    assert!(squat_ping.status.success(), "with foreign files in the registries' place: {}", squat_ping.stderr);
    drop(server);
    for (_, path) in squatted {
        let _ = std::fs::remove_file(path);
    }
    let port = free_port();
    let text = port.to_string();
    let server = lab.serve("echo", port, as_user(&lab, Side::Server, ALICE, &library, &program).args(["echo", &text]));
    // She floods the mailboxes from before the two meet until well after.
    let start = |seconds| lab.start("mallory", &mut mallory(&[server.pid()], seconds));
    let early = start("3");
    let mut on = lab.start(
        "ping-on",
        as_user(&lab, Side::Client, BOB, &library, &program).args(["ping-on", &text, "64"]).stdin(Stdio::piped()),
    );
    let input = on.stdin();
    on.must_progress("exchanges beside a hostile user");
    let out = early.wait(PATIENCE);
    assert!(out.status.success(), "{} {}", out.text(), out.stderr);
    lab.assert_shm(on.pid());
    let out = lab.run("mallory", &mut mallory(&[server.pid(), on.pid()], "1"));
    assert!(out.status.success(), "a third user got through: {} {}", out.text(), out.stderr);
    on.must_progress("exchanges after a hostile user's attempts");
    if legacy_apps::shm_expected() {
        let all = stat::connections().expect("culvert stat");
        assert!(all.iter().any(|c| c.pid == on.pid() && c.path == path_expected()), "moved off shared memory: {all:?}");
    }
    drop(input);
    assert!(on.wait(PATIENCE).status.success());
    server.stop(libc::SIGTERM);
    lab.finish();
}

/// A file of MALLORY's where `uid`'s registry of this network namespace is going to be.
fn squat(uid: u32) -> PathBuf {
    let namespace = std::fs::read_link("/proc/self/ns/net").expect("a network namespace");
    let inode: String = namespace.to_string_lossy().chars().filter(char::is_ascii_digit).collect();
    let path = PathBuf::from(format!("/dev/shm/culvert-{uid}-{inode}"));
    std::fs::write(&path, vec![0xff; 1 << 16]).expect("a file in /dev/shm");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o666)).expect("permissions");
    std::os::unix::fs::chown(&path, Some(MALLORY), Some(MALLORY)).expect("another owner");
    path
}
