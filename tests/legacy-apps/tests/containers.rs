//! Two containers: sets of namespaces as container runtimes make them. Each has its own processes, mounts, /dev/shm, System V
//! objects and host name; what the two share differs from test to test.

use legacy_apps::lab::free_port;
use legacy_apps::procs::{listening, working_in};
use legacy_apps::{
    BOTH, Lab, Mode, PATIENCE, Seen, Side, compare, is_root, poll_until, remote, shm_expected, stat, wait_for,
};
use std::process::{Command, Stdio};

fn may_make_namespaces() -> bool {
    let may = is_root();
    if !may {
        eprintln!("skipped: namespaces need root");
    }
    may
}

/// What containers are made of.
#[derive(Clone, Copy, Default)]
struct Container<'a> {
    /// A command that enters a network namespace; empty: this one.
    network: &'a [&'a str],
    /// More flags for `unshare`.
    spaces: &'a [&'a str],
    /// Shell commands that are run inside first.
    setup: &'a str,
    /// A program of the tests that runs the container's, and its first words.
    wrapper: &'a str,
    /// Set for the program.
    environment: &'a [(&'a str, &'a str)],
}

/// `boxed.py` as `side` in a container.
fn boxed(lab: &Lab, side: Side, like: Container, address: &str, port: u16) -> Command {
    let what = if side == Side::Server { "server" } else { "client" };
    let mut words: Vec<&str> = like.network.to_vec();
    words.extend(["unshare", "--mount", "--pid", "--ipc", "--uts", "--fork", "--kill-child", "--mount-proc"]);
    words.extend(like.spaces);
    words.extend(["sh", "-ec"]);
    // A container's /dev/shm is its own. What belongs to culvert is set for the program alone.
    let script = format!(
        "mount -t tmpfs none /dev/shm; {}\ncd \"$LAB\"; exec {} env $INSIDE /usr/bin/python3.11 -u \"$@\"",
        like.setup, like.wrapper
    );
    words.extend([&script, "sh"]);
    let mut c = lab.command(side, words[0]);
    let mut inside: Vec<String> = like.environment.iter().map(|(k, v)| format!("{k}={v}")).collect();
    if let Some((k, Some(v))) = c.get_envs().find(|(k, v)| *k == "LD_PRELOAD" && v.is_some()) {
        inside.push(format!("{}={}", k.to_string_lossy(), v.to_string_lossy()));
    }
    // The log lies where a container may not write.
    for key in ["LD_PRELOAD", "CULVERT_LOG", "CULVERT_LOG_FILE"] {
        c.env_remove(key);
    }
    c.args(&words[1..]).arg(legacy_apps::file("py/boxed.py")).args([what, address, &port.to_string()]);
    c.env("INSIDE", inside.join(" ")).env("LAB", lab.dir()).stdin(Stdio::piped());
    c
}

/// A server and a client, each in a container. Both ends of the connection have to come to shared memory, or to stay on the
/// kernel for one of these reasons.
fn two(lab: &Lab, containers: [Container; 2], address: &str, reasons: &[&str]) -> Seen {
    let port = free_port();
    let server = lab.start("server", &mut boxed(lab, Side::Server, containers[0], address, port));
    let network = containers[0].network;
    if network.is_empty() {
        wait_for("the server listens", PATIENCE, || listening(port));
    } else {
        let in_there = || {
            let mut c = Command::new(network[0]);
            c.args(&network[1..]).args(["ss", "-Hltn", &format!("sport = :{port}")]);
            c.output().is_ok_and(|o| !o.stdout.is_empty())
        };
        wait_for("the server listens", PATIENCE, in_there);
    }
    let mut client = lab.start("client", &mut boxed(lab, Side::Client, containers[1], address, port));
    let input = client.stdin();
    wait_for("500 exchanges", PATIENCE, || client.stdout().contains("500 exchanges"));
    // Over a wire their rings are with zstackd, which does not have the containers' directory.
    if lab.mode == Mode::Both && shm_expected() && !remote() {
        let mut last = Vec::new();
        let seen = poll_until(PATIENCE, || {
            let ours = working_in(lab.dir());
            last = stat::connections().expect("culvert stat");
            last.retain(|c| ours.contains(&c.pid));
            let as_told = |c: &stat::Connection| match reasons {
                [] => c.path == "shm",
                _ => c.path == "kernel" && reasons.contains(&c.reason.as_str()),
            };
            last.len() == 2 && last.iter().all(as_told)
        });
        assert!(seen, "{last:?}");
    }
    drop(input);
    let mut seen = Seen::default();
    let out = client.wait(PATIENCE).success();
    seen.note("client", out.text());
    seen.note("server", server.wait(PATIENCE).status);
    seen
}

/// Two containers alike, with one network and a directory that they share.
fn alike(name: &str, reasons: &[&str], like: Container) {
    if !may_make_namespaces() {
        return;
    }
    compare(name, BOTH, |lab| {
        let dir = lab.path("shared");
        std::fs::create_dir_all(&dir).expect("a directory");
        let dir = dir.to_string_lossy();
        let (program, words) = like.wrapper.split_once(' ').unwrap_or((like.wrapper, ""));
        let wrapper =
            if program.is_empty() { String::new() } else { format!("{} {words}", lab.compile(program, &[]).display()) };
        let setup = like.setup.replace("SHARED", &dir);
        let environment = [("CULVERT_DIR", &*dir)];
        let c = Container { setup: &setup, wrapper: &wrapper, environment: &environment, ..like };
        two(lab, [c, c], "127.0.0.1", reasons)
    });
}

/// The containers of a pod.
#[test]
fn one_network_and_a_shared_directory() {
    alike("pod", &[], Container::default());
}

/// Under the filter that engines have by default.
#[test]
fn an_engines_filter() {
    alike("engine", &[], Container { wrapper: "contained.c", ..Default::default() });
}

/// Under one that also refuses a call by which culvert waits, or hears of news.
#[test]
fn a_filter_against_waiting() {
    for call in [libc::SYS_recvmmsg, libc::SYS_ppoll] {
        let wrapper = format!("contained.c {call}");
        alike("deaf", &["seccomp"], Container { wrapper: &wrapper, ..Default::default() });
    }
}

/// On a kernel that does not tell in which network namespace a socket lives.
#[test]
fn an_older_kernel() {
    alike("older", &[], Container { wrapper: "older.c", ..Default::default() });
}

/// Each has its own users as well, all of which have a number outside.
#[test]
fn own_users() {
    let spaces = &["--user", "--map-root-user"];
    alike("users", &[], Container { spaces, ..Default::default() });
}

/// Nothing can be written, not even in the directory that they share.
#[test]
fn read_only() {
    let setup =
        "mount --bind / /mnt; mount --bind SHARED SHARED; mount -o remount,ro,bind SHARED; mount -o remount,ro,bind /";
    alike("read-only", &["no-registry", "peer-without-culvert"], Container { setup, ..Default::default() });
}

/// A directory as small as it can be, and full. What is on rings is not in it.
#[test]
fn a_full_directory() {
    let setup = "mount -t tmpfs -o size=16k none SHARED; head -c 20000 /dev/zero > SHARED/full || true";
    alike("full", &["no-registry", "peer-without-culvert"], Container { setup, ..Default::default() });
}

#[test]
fn no_directory() {
    let setup =
        "umount /dev/shm; mount -t tmpfs none /dev; mknod -m 666 /dev/null c 1 3; mknod -m 666 /dev/urandom c 1 9";
    if may_make_namespaces() {
        compare("no-shm", BOTH, |lab| {
            let c = Container { setup, ..Default::default() };
            two(lab, [c, c], "127.0.0.1", &["no-registry"])
        });
    }
}

/// Without /proc nobody can tell what the program was started under.
#[test]
fn no_proc() {
    alike("no-proc", &["no-proc"], Container { setup: "mount -t tmpfs none /proc", ..Default::default() });
}

/// Without that directory the two cannot find each other.
#[test]
fn one_network_alone() {
    if may_make_namespaces() {
        compare("pod-alone", BOTH, |lab| two(lab, [Container::default(); 2], "127.0.0.1", &["peer-without-culvert"]));
    }
}

/// Two network namespaces, which these commands make and remove.
struct Networks {
    names: [String; 2],
}

impl Networks {
    fn new() -> Networks {
        let names = ["a", "b"].map(|n| format!("cv-{}-{n}", std::process::id()));
        let [a, b] = &names;
        // Interface names have 15 letters at most.
        let link = |n: &str| format!("cv{n}{}", std::process::id());
        let made = Networks { names: names.clone() };
        for words in [
            format!("netns add {a}"),
            format!("netns add {b}"),
            format!("link add {} netns {a} type veth peer name {} netns {b}", link("a"), link("b")),
            format!("-n {a} addr add 192.0.2.1/24 dev {}", link("a")),
            format!("-n {b} addr add 192.0.2.2/24 dev {}", link("b")),
            format!("-n {a} link set {} up", link("a")),
            format!("-n {b} link set {} up", link("b")),
        ] {
            assert!(ip(&words), "ip {words}");
        }
        made
    }
}

impl Drop for Networks {
    fn drop(&mut self) {
        for name in &self.names {
            ip(&format!("netns del {name}"));
        }
    }
}

fn ip(words: &str) -> bool {
    Command::new("ip").args(words.split(' ')).status().is_ok_and(|s| s.success())
}

/// Containers with a network each, as by default: the kernel's bridge carries their bytes, whatever else they share.
#[test]
fn two_networks() {
    if may_make_namespaces() {
        compare("two-networks", BOTH, |lab| {
            let nets = Networks::new();
            let dir = lab.path("shared");
            std::fs::create_dir_all(&dir).expect("a directory");
            let dir = dir.to_string_lossy();
            let [a, b] = &nets.names;
            let enter = [["ip", "netns", "exec", a.as_str()], ["ip", "netns", "exec", b.as_str()]];
            let environment = [("CULVERT_DIR", &*dir)];
            let [a, b] =
                [0, 1].map(|i| Container { network: &enter[i], environment: &environment, ..Default::default() });
            two(lab, [a, b], "192.0.2.1", &["remote-peer", "peer-without-culvert"])
        });
    }
}
