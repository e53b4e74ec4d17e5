//! `culvert steer` itself: killed for good at each step, used without rights, told what it does not know.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use steering::{Card, Imagined, System, VfChange};
use tempfile::TempDir;

const CULVERT: &str = env!("CARGO_BIN_EXE_culvert");
/// A plan with steps of most kinds.
const WANTED: &str = include_str!("../../steering/steer.toml");
const PORT: &str = "0000:01:00.0";
const NOBODY: u32 = 65534;

struct World {
    dir: TempDir,
}

impl World {
    /// A machine with a card of two ports; one has two VFs that somebody else has made.
    fn new() -> World {
        let memory = Path::new("/dev/shm");
        let dir = if memory.is_dir() { TempDir::new_in(memory) } else { TempDir::new() }.expect("a directory");
        let world = World { dir };
        let mut system = Imagined::new(world.at("root"));
        for (at, interface) in [(PORT, "eth2"), ("0000:01:00.1", "eth3")] {
            system.plug(&Card { at, interface, most: 7, iommu: true, up: true, ntuple: true }).expect("a card");
        }
        system.write(&format!("bus/pci/devices/{PORT}/sriov_numvfs"), "2").expect("VFs");
        system.change_vf("eth2", 1, VfChange::Vlan(7, 2)).expect("a VLAN");
        fs::write(world.at("wanted.toml"), WANTED).expect("a file");
        world
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// `culvert steer`, on the imagined machine; killed at the `at`th of those system calls by which the journal is kept.
    fn steer(&self, words: &[&str], kill: Option<(&str, u32)>) -> Output {
        let mut c = match kill {
            None => Command::new(CULVERT),
            Some((calls, at)) => {
                let mut c = Command::new("strace");
                c.args(["-qq", "-o", "/dev/null", "-e", &format!("trace={calls}")]);
                c.args(["-e", &format!("inject={calls}:signal=SIGKILL:when={at}"), CULVERT]);
                c
            }
        };
        c.arg("steer").arg("--imagined").arg(self.at("root")).arg("--state").arg(self.at("state")).args(words);
        c.stdin(Stdio::null()).output().expect("culvert, or strace (apt-get install strace)")
    }

    fn apply(&self, kill: Option<(&str, u32)>) -> Output {
        let file = self.at("wanted.toml");
        self.steer(&["apply", file.to_str().expect("a path")], kill)
    }

    /// All that the machine has, but for links, which come and go by themselves.
    fn tree(&self) -> BTreeMap<PathBuf, String> {
        let mut tree = BTreeMap::new();
        walk(&self.at("root"), &mut tree);
        tree.retain(|path, _| !path.ends_with("carrier"));
        tree
    }
}

fn walk(at: &Path, tree: &mut BTreeMap<PathBuf, String>) {
    let kind = fs::symlink_metadata(at).expect("metadata").file_type();
    if kind.is_dir() {
        fs::read_dir(at).expect("a directory").for_each(|entry| walk(&entry.expect("an entry").path(), tree));
    }
    let what = match (kind.is_symlink(), kind.is_dir()) {
        (true, _) => format!("-> {}", fs::read_link(at).expect("a link").display()),
        (_, true) => "directory".into(),
        _ => fs::read_to_string(at).expect("a file"),
    };
    tree.insert(at.to_owned(), what);
}

fn text(out: &Output) -> String {
    [&out.stdout[..], &out.stderr].iter().map(|bytes| String::from_utf8_lossy(bytes)).collect()
}

fn succeeds(out: &Output) {
    assert!(out.status.success(), "{}", text(out));
}

fn was_killed(out: &Output) -> bool {
    // strace ends as the program that it has watched.
    out.status.signal() == Some(9) || out.status.code() == Some(128 + 9)
}

/// By them the journal gets on disk, three for a step: before the second one it is not noted, behind the third it is done.
const CALLS: &str = "fsync,rename";

/// `apply` is killed at each of them, and what was there is there again; as well if the journal was just written, or the change just done.
#[test]
fn apply_is_killed_at_each_step() {
    // Where each world lies is its own.
    let own = |world: &World, tree: BTreeMap<PathBuf, String>| -> BTreeMap<PathBuf, String> {
        let root = world.at("root");
        tree.into_iter().map(|(path, what)| (path.strip_prefix(&root).expect("inside").to_owned(), what)).collect()
    };
    let wanted = {
        let world = World::new();
        succeeds(&world.apply(None));
        own(&world, world.tree())
    };
    let mut killed = 0;
    for at in 1.. {
        let world = World::new();
        let found = world.tree();
        let applied = world.apply(Some((CALLS, at)));
        let ended = !was_killed(&applied);
        if ended {
            succeeds(&applied);
            assert_eq!(own(&world, world.tree()), wanted);
        }
        killed += u32::from(!ended);
        if at % 2 == 0 {
            // Before it is undone it goes on.
            succeeds(&world.apply(None));
            assert_eq!(own(&world, world.tree()), wanted, "killed at {at}");
        }
        succeeds(&world.steer(&["undo"], None));
        assert_eq!(world.tree(), found, "killed at {at}");
        let status = text(&world.steer(&["status"], None));
        assert!(status.contains("Nothing is applied"), "{status}");
        if ended {
            break;
        }
    }
    // Three a step.
    assert!(killed > 60, "{killed}");
}

/// So is `undo`, before each step is taken out of the journal; the next one goes on.
#[test]
fn undo_is_killed_at_each_step() {
    let mut killed = 0;
    for at in 1.. {
        let world = World::new();
        let found = world.tree();
        succeeds(&world.apply(None));
        let undone = world.steer(&["undo"], Some(("rename,unlink", at)));
        let ended = !was_killed(&undone);
        killed += u32::from(!ended);
        if !ended {
            let status = text(&world.steer(&["status"], None));
            assert!(status.contains("was broken off") || at == 1, "{status}");
            succeeds(&world.steer(&["undo"], None));
        }
        assert_eq!(world.tree(), found, "killed at {at}");
        if ended {
            break;
        }
    }
    assert!(killed > 20, "{killed}");
}

/// A network namespace with a veth, whose /sys shows it, for a script.
fn in_a_namespace(script: &str, dir: &Path) -> Output {
    let mut c = Command::new("unshare");
    c.args(["--net", "--mount", "sh", "-ec"]);
    c.arg(format!("mount -t sysfs sys /sys\nip link add here type veth peer name there\n{script}"));
    c.env("CULVERT", CULVERT).env("CULVERT_STEER", dir.join("state")).env("DIR", dir).stdin(Stdio::null());
    c.output().expect("unshare")
}

fn is_root() -> bool {
    let own = fs::metadata("/proc/self").expect("/proc");
    let root = std::os::unix::fs::MetadataExt::uid(&own) == 0;
    if !root {
        eprintln!("skipped: it takes root");
    }
    root
}

/// `tc` as it is asked for its hook, and slow: it says that it has begun, and waits for a word.
const SLOW_TC: &str = "#!/bin/sh\ncase \"$*\" in\n\
    'qdisc show dev here') [ ! -e $DIR/hook ] || echo 'qdisc clsact ffff: parent ffff:fff1' ;;\n\
    'qdisc add dev here clsact') echo begun > $DIR/begun; read go < $DIR/go; : > $DIR/hook ;;\n\
    'qdisc del dev here clsact') rm $DIR/hook ;;\n\
    *) echo '[]' ;;\nesac\n";

/// What a killed `apply` has started goes on; until it has ended nobody undoes, or its change would come behind that and stay.
#[test]
fn a_tool_outlives_a_killed_apply() {
    if !is_root() {
        return;
    }
    let dir = TempDir::new().expect("a directory");
    let tc = dir.path().join("tc");
    fs::write(&tc, SLOW_TC).expect("a script");
    fs::set_permissions(&tc, fs::Permissions::from_mode(0o755)).expect("a program");
    let wanted = "[[port]]\ninterface = 'here'\n[[port.flow]]\nname = 'f'\nmatch = { protocol = 'udp' }\nto = 'drop'\nby = 'flower'\n";
    fs::write(dir.path().join("wanted.toml"), wanted).expect("a file");
    let script = "PATH=$DIR:$PATH\nmkfifo $DIR/begun $DIR/go\n\
        $CULVERT steer apply $DIR/wanted.toml > /dev/null & apply=$!\nread word < $DIR/begun\n\
        kill -9 $apply\nwait $apply || true\n\
        if $CULVERT steer undo; then echo undone too early; exit 1; fi\n\
        echo go > $DIR/go\n\
        tries=0; until $CULVERT steer undo; do tries=$((tries + 1)); [ $tries -lt 200 ]; sleep 0.1; done\n\
        [ ! -e $DIR/hook ]\necho restored\n";
    let out = in_a_namespace(script, dir.path());
    let said = text(&out);
    succeeds(&out);
    assert!(said.contains("or a tool that one has begun") && said.contains("wait until it has ended"), "{said}");
    assert!(said.contains("tc's hook for filters: absent\n") && said.contains("restored\n"), "{said}");
}

/// On the kernel: a port is taken up and down again.
#[test]
fn an_interface_is_taken_up_and_down_again() {
    if !is_root() {
        return;
    }
    let dir = TempDir::new().expect("a directory");
    fs::write(dir.path().join("wanted.toml"), "[[port]]\ninterface = 'here'\nup = true\n").expect("a file");
    let script = "up() { ip -o link show up dev here | grep -c here || true; }\n\
        echo before $(up)\n$CULVERT steer plan $DIR/wanted.toml\n$CULVERT steer apply $DIR/wanted.toml\necho then $(up)\n\
        $CULVERT steer verify $DIR/wanted.toml\n$CULVERT steer undo\necho after $(up)\n\
        if $CULVERT steer verify $DIR/wanted.toml; then exit 1; fi\n";
    let out = in_a_namespace(script, dir.path());
    let said = text(&out);
    succeeds(&out);
    for line in [
        "before 0",
        "ip link set dev here up",
        "here: interface: down -> up",
        "then 1",
        "after 0",
        "wanted up, is down",
    ] {
        assert!(said.contains(line), "{line}: {said}");
    }
}

/// Who has no rights sees plans and differences, and is told at once what takes more.
#[test]
fn without_rights() {
    if !is_root() {
        return;
    }
    let dir = TempDir::new().expect("a directory");
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("open");
    let own = dir.path().join("culvert");
    fs::copy(CULVERT, &own).expect("a copy");
    let file = dir.path().join("wanted.toml");
    fs::write(&file, "[[port]]\ninterface = 'lo'\nup = true\n").expect("a file");
    // Something is applied, and only root may read what.
    let state = dir.path().join("state");
    fs::create_dir(&state).expect("a directory");
    fs::write(state.join("journal.json"), "{\"version\":1,\"complete\":true,\"steps\":[]}").expect("a journal");
    chown(&state, Some(0), Some(0)).expect("root's");
    fs::set_permissions(&state, fs::Permissions::from_mode(0o700)).expect("closed");
    let file = file.to_str().expect("a path");
    let run = |words: &[&str]| {
        let mut c = Command::new(&own);
        c.arg("steer").arg("--state").arg(&state).args(words).uid(NOBODY).gid(NOBODY).stdin(Stdio::null());
        c.output().expect("culvert")
    };
    for words in [&["apply", file][..], &["undo"]] {
        let out = run(words);
        assert_eq!(out.status.code(), Some(1));
        assert!(
            text(&out).contains("takes root") && text(&out).contains("`culvert steer plan` needs no rights"),
            "{}",
            text(&out)
        );
    }
    let status = run(&["status"]);
    assert_eq!(status.status.code(), Some(1));
    assert!(text(&status).contains("journal.json") && text(&status).contains("run this as root"), "{}", text(&status));
    for words in [["plan", file], ["verify", file]] {
        let out = run(&words);
        succeeds(&out);
        assert_eq!(text(&out), "Everything is as wanted.\n");
    }
}

/// What a file must not say: each is told with the value, and with what helps, before anything is done.
#[test]
fn what_a_file_must_not_say() {
    let world = World::new();
    let found = world.tree();
    let port = format!("[[port]]\ndevice = '{PORT}'\n");
    let vf = |text: &str| format!("{port}[[port.vf]]\nnumber = 0\n{text}\n");
    let flow =
        |packets: &str, to: &str| format!("{port}[[port.flow]]\nname = 'f'\nmatch = {{ {packets} }}\nto = '{to}'\n");
    for (wanted, said) in [
        ("[[ports]]\n".to_owned(), &["ports"][..]),
        (format!("{port}colour = 'red'\n"), &["colour"]),
        (vf("speed = 1"), &["speed"]),
        (flow("tos = 1", "drop"), &["tos"]),
        (format!("{}queue = 1\n", flow("protocol = 'tcp'", "drop")), &["queue"]),
        (vf("mac = '02:00:00:00:00'"), &["02:00:00:00:00"]),
        (vf("mac = '01:00:5e:00:00:01'"), &["01:00:5e:00:00:01", "mac = \"auto\""]),
        (vf("vlan = 5000"), &["VF 0", "1 to 4094"]),
        (vf("vlan = 'red'"), &["red"]),
        (vf("number = 1"), &["number"]),
        (flow("protocol = 'sctp'", "drop"), &["sctp"]),
        (flow("source = '10.0.0.1/8'", "drop"), &["10.0.0.1/8", "10.0.0.0/8"]),
        (flow("destination-ports = '80'", "drop"), &["\"tcp\" or \"udp\""]),
        (flow("protocol = 'tcp'", "mars"), &["mars", "queue N"]),
        (flow("protocol = 'tcp'", "vf 9"), &["no VF 9"]),
        ("[[port]]\ndevice = 'eth2'\n".into(), &["eth2", "PCI address"]),
        ("[[port]]\ndevice = '0000:09:00.0'\n".into(), &["0000:09:00.0", "lspci"]),
        ("[[port]]\ninterface = 'eth9'\n".into(), &["eth9", "ip link"]),
        (format!("{port}interface = 'eth3'\n"), &["eth2", "eth3"]),
        (format!("{port}vfs = 8\n"), &["8", "at most 7"]),
        (format!("{port}vfs = -1\n"), &["-1"]),
        ("port = ".into(), &["line 1"]),
    ] {
        let file = world.at("wrong.toml");
        fs::write(&file, &wanted).expect("a file");
        for action in ["plan", "apply", "verify"] {
            if action == "verify" && (wanted.contains("vf 9") || wanted.contains("vfs = 8")) {
                // What is there is not as wanted, and could not be: the first is said here, the second by the plan.
                continue;
            }
            let out = world.steer(&[action, file.to_str().expect("a path")], None);
            let text = text(&out);
            assert_eq!(out.status.code(), Some(1), "{action}\n{wanted}\n{text}");
            assert!(
                out.stdout.is_empty() && text.starts_with("culvert: ") && text.contains("\n      -> "),
                "{action}\n{wanted}\n{text}"
            );
            assert!(said.iter().all(|part| text.contains(part)), "{action}\n{wanted}\n{text}");
            assert!(!text.contains("\\n") && !text.contains("\\u"), "{text}");
        }
    }
    let missing = world.steer(&["apply", "/nowhere.toml"], None);
    assert_eq!(missing.status.code(), Some(1));
    assert!(text(&missing).contains("/nowhere.toml") && text(&missing).contains("-> "), "{}", text(&missing));
    assert_eq!(world.tree(), found);
    assert!(!world.at("state").join("journal.json").exists());
}

/// What a middlebox holds is no step: `plan` shows what starts it, `verify` misses it, and `hold` becomes it, with the rules of the file.
#[test]
fn what_a_middlebox_holds() {
    let world = World::new();
    let file = world.at("held.toml");
    let rule = "[[redirect.rule]]\ndestination-ports = '80'\nto = ['127.0.0.1:15001']\n";
    let held = |whose: &str| format!("[[redirect]]\n{whose}\nheld = true\n{rule}");
    let all = ["clients = '/jobs'", "clients = '/apps'\nmiddlebox = '/box'", "forwarded = 'eth2'"];
    fs::write(&file, all.map(held).concat()).expect("a file");
    let path = file.to_str().expect("a path");
    let rules = "family ipv4 destination-ports 80 to 127.0.0.1 15001 dead open";
    let planned = world.steer(&["plan", path], None);
    succeeds(&planned);
    let command = format!("culvert-redirect hold /apps --middlebox /box --rules '{rules}' -- COMMAND");
    assert!(text(&planned).starts_with("Everything is as wanted.") && text(&planned).contains(&command), "{planned:?}");
    let applied = world.steer(&["apply", path], None);
    succeeds(&applied);
    assert!(!world.at("state/journal.json").exists(), "{applied:?}");
    let verified = world.steer(&["verify", path], None);
    assert_eq!(verified.status.code(), Some(1));
    assert_eq!(
        text(&verified).lines().filter(|line| line.ends_with(&format!("wanted {rules}, is nothing"))).count(),
        3
    );
    // It is found beside the command. Another process writes both: a child of another test's could have them open when they are run.
    let script = world.at("script");
    fs::write(&script, "#!/bin/sh\nfor word; do echo \"[$word]\"; done\n").expect("a script");
    let own = world.at("culvert");
    for (from, to) in [(Path::new(CULVERT), &own), (&script, &world.at("culvert-redirect"))] {
        let mut c = Command::new("install");
        succeeds(&c.args(["-m", "755"]).arg(from).arg(to).stdin(Stdio::null()).output().expect("install"));
    }
    let hold = |whose: &str| {
        Command::new(&own).args(["steer", "hold", path, whose, "--", "proxy", "-x"]).stdin(Stdio::null()).output()
    };
    for (whose, words) in [
        ("/jobs", "[hold]\n[/jobs]\n"),
        ("/apps", "[hold]\n[/apps]\n[--middlebox]\n[/box]\n"),
        ("eth2", "[forward]\n[hold]\n[eth2]\n"),
    ] {
        let out = hold(whose).expect("culvert");
        assert_eq!(text(&out), format!("{words}[--rules]\n[{rules}]\n[--]\n[proxy]\n[-x]\n"));
    }
    let none = hold("eth3").expect("culvert");
    assert!(!none.status.success() && text(&none).contains("0 redirects of eth3"), "{none:?}");
}
