//! Two containers: sets of namespaces as container runtimes make them. Each has its own processes, mounts, /dev/shm, System V
//! objects and host name; what the two share differs from test to test.

use legacy_apps::lab::free_port;
use legacy_apps::procs::{listening, working_in};
use legacy_apps::{BOTH, Lab, Mode, PATIENCE, Seen, Side, compare, is_root, shm_expected, stat, wait_for};
use std::process::{Command, Stdio};

fn may_make_namespaces() -> bool {
    let may = is_root();
    if !may {
        eprintln!("skipped: namespaces need root");
    }
    may
}

/// `boxed.py` as `side` in a container. `environment` is set inside; `network` is a command that enters a network
/// namespace, empty to stay in this one.
fn boxed(lab: &Lab, side: Side, network: &[&str], environment: &[(&str, &str)], address: &str, port: u16) -> Command {
    let what = if side == Side::Server { "server" } else { "client" };
    let mut words: Vec<&str> = network.to_vec();
    words.extend([
        "unshare",
        "--mount",
        "--pid",
        "--ipc",
        "--uts",
        "--fork",
        "--kill-child",
        "--mount-proc",
        "sh",
        "-ec",
    ]);
    // A container's /dev/shm is its own. What belongs to culvert is set for the program alone.
    let script = "mount -t tmpfs none /dev/shm; cd \"$LAB\"; exec env $INSIDE /usr/bin/python3.11 -u \"$@\"";
    words.extend([script, "sh"]);
    let mut c = lab.command(side, words[0]);
    let mut inside: Vec<String> = environment.iter().map(|(k, v)| format!("{k}={v}")).collect();
    for key in ["LD_PRELOAD", "CULVERT_LOG", "CULVERT_LOG_FILE"] {
        let set = c.get_envs().find(|(k, v)| *k == key && v.is_some());
        if let Some((k, Some(v))) = set {
            inside.push(format!("{}={}", k.to_string_lossy(), v.to_string_lossy()));
        }
    }
    for key in ["LD_PRELOAD", "CULVERT_LOG", "CULVERT_LOG_FILE"] {
        c.env_remove(key);
    }
    c.args(&words[1..]).arg(legacy_apps::file("py/boxed.py")).args([what, address, &port.to_string()]);
    c.env("INSIDE", inside.join(" ")).env("LAB", lab.dir()).stdin(Stdio::piped());
    c
}

/// A server and a client, each in a container. Both ends of the connection have to come to `path`.
fn two(lab: &Lab, networks: [&[&str]; 2], environment: &[(&str, &str)], address: &str, path: &str) -> Seen {
    let port = free_port();
    let server = lab.start("server", &mut boxed(lab, Side::Server, networks[0], environment, address, port));
    if networks[0].is_empty() {
        wait_for("the server listens", PATIENCE, || listening(port));
    } else {
        let in_there = || {
            let mut c = Command::new(networks[0][0]);
            c.args(&networks[0][1..]).args(["ss", "-Hltn", &format!("sport = :{port}")]);
            c.output().is_ok_and(|o| !o.stdout.is_empty())
        };
        wait_for("the server listens", PATIENCE, in_there);
    }
    let mut client = lab.start("client", &mut boxed(lab, Side::Client, networks[1], environment, address, port));
    let input = client.stdin();
    wait_for("500 exchanges", PATIENCE, || client.stdout().contains("500 exchanges"));
    if lab.mode == Mode::Both && shm_expected() {
        let seen = || {
            let ours = working_in(lab.dir());
            let all = stat::connections().expect("culvert stat");
            all.into_iter().filter(|c| ours.contains(&c.pid)).collect::<Vec<_>>()
        };
        wait_for(&format!("both ends on path {path}"), PATIENCE, || {
            let all = seen();
            all.len() == 2 && all.iter().all(|c| c.path == path)
        });
    }
    drop(input);
    let mut seen = Seen::default();
    let out = client.wait(PATIENCE).success();
    seen.note("client", out.text());
    seen.note("server", server.wait(PATIENCE).status);
    seen
}

/// The containers of a pod: one network, and a directory that the operator shares between them.
#[test]
fn one_network_and_a_shared_directory() {
    if may_make_namespaces() {
        compare("pod", BOTH, |lab| {
            let dir = lab.path("shared");
            std::fs::create_dir_all(&dir).expect("a directory");
            let dir = dir.to_string_lossy();
            two(lab, [&[], &[]], &[("CULVERT_DIR", &dir)], "127.0.0.1", "shm")
        });
    }
}

/// Without that directory the two cannot find each other.
#[test]
fn one_network_alone() {
    if may_make_namespaces() {
        compare("pod-alone", BOTH, |lab| two(lab, [&[], &[]], &[], "127.0.0.1", "kernel"));
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
            two(lab, [&enter[0], &enter[1]], &[("CULVERT_DIR", &dir)], "192.0.2.1", "kernel")
        });
    }
}
