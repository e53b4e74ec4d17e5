//! What a program's processes say of their sockets to the one who serves their network namespace: zstackd asks it for each SYN.

use legacy_apps::lab::line;
use legacy_apps::{Lab, Mode, PATIENCE, Proc, Side, library, shm_expected, wait_for};
use rendezvous::registry::{Kind, Notice, Registry, Serving, Timeout, serve};
use std::ffi::CString;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{ChildStdin, Command, Stdio};
use std::time::Duration;

/// TEST-NET-3 and the prefix for documentation (RFC 5737, RFC 3849): whether there is a way or not, they are nobody's.
const ELSEWHERE: &str = "203.0.113.1";
const ELSEWHERE_6: &str = "2001:db8::1";

struct Case {
    lab: Lab,
    dir: PathBuf,
    registry: Registry,
}

struct Program {
    proc: Proc,
    input: ChildStdin,
    answers: usize,
}

impl Program {
    /// Has it do this; what it says.
    fn ask(&mut self, what: &str) -> String {
        line(&mut self.input, what);
        self.answers += 1;
        wait_for(what, PATIENCE, || self.proc.stdout().matches('\n').count() >= self.answers);
        self.proc.stdout().lines().last().expect("a line").to_owned()
    }

    fn socket(&mut self, what: &str) -> u64 {
        self.ask(what).parse().expect("a cookie")
    }
}

impl Case {
    fn new() -> Case {
        let lab = Lab::new("intents", Mode::Both);
        let dir = lab.path("registry");
        std::fs::create_dir(&dir).expect("a directory");
        std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o1777)).expect("permissions");
        let registry = Registry::new(|fd| fd);
        registry.configure(&CString::new(dir.to_str().unwrap()).unwrap(), true).expect("a registry");
        Case { lab, dir, registry }
    }

    fn program(&self, path: &str) -> Program {
        self.started(path, self.lab.python(Side::Client, "intents.py"))
    }

    fn started(&self, path: &str, mut command: Command) -> Program {
        command.env("CULVERT_DIR", &self.dir).env("CULVERT_PATH", path).stdin(Stdio::piped());
        let mut proc = self.lab.start("intents", &mut command);
        let input = proc.stdin().expect("a pipe");
        Program { proc, input, answers: 0 }
    }

    fn serve(&self) -> Serving {
        serve(&CString::new(self.dir.to_str().unwrap()).unwrap(), &Notice { control: "@none", serves: &[] }).unwrap()
    }

    fn has(&self, cookie: u64, kind: Kind) -> bool {
        // SAFETY: takes no arguments and cannot fail.
        let uid = unsafe { libc::geteuid() };
        self.registry.has_intent(uid, cookie, kind).expect("the registry")
    }

    /// Ends the program, and what it has left behind.
    fn end(self, program: Program) {
        drop(program.input);
        program.proc.wait(PATIENCE).success();
        self.registry.forget();
        self.lab.finish();
        let left: Vec<_> = std::fs::read_dir(&self.dir).unwrap().flatten().map(|e| e.file_name()).collect();
        assert!(left.is_empty(), "left behind: {left:?}");
    }
}

/// Longer than it is believed that nobody serves.
const A_WHILE: Duration = Duration::from_millis(30);

#[test]
fn connections_to_other_hosts_are_said_while_somebody_serves() {
    if !shm_expected() {
        return;
    }
    for path in ["auto", "zstack"] {
        let case = Case::new();
        let mut p = case.program(path);
        let before = p.socket(&format!("connect {ELSEWHERE}"));
        assert!(!case.has(before, Kind::Connect), "nobody serves");
        for _ in 0..2 {
            let serving = case.serve();
            std::thread::sleep(A_WHILE);
            for host in [ELSEWHERE, ELSEWHERE_6, "::ffff:203.0.113.1"] {
                let cookie = p.socket(&format!("connect {host}"));
                assert!(case.has(cookie, Kind::Connect), "{host}");
                assert!(!case.has(cookie, Kind::Listen) && !case.has(cookie, Kind::StandIn));
            }
            for host in ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1", "0.0.0.0", "::"] {
                let cookie = p.socket(&format!("connect {host}"));
                // They may be translated to other hosts' addresses, which is believed of nobody but who asks for zstack by name.
                assert_eq!(case.has(cookie, Kind::Connect), path == "zstack", "{host}");
            }
            drop(serving);
            std::thread::sleep(A_WHILE);
            let after = p.socket(&format!("connect {ELSEWHERE}"));
            assert!(!case.has(after, Kind::Connect), "he serves no more");
        }
        case.end(p);
    }
}

#[test]
fn programs_that_do_not_go_out_say_nothing() {
    if !shm_expected() {
        return;
    }
    for path in ["shm", "kernel"] {
        let case = Case::new();
        let _serving = case.serve();
        let mut p = case.program(path);
        let [c, l] = [format!("connect {ELSEWHERE}"), "listen 0.0.0.0".into()].map(|what| p.socket(&what));
        assert!(!case.has(c, Kind::Connect) && !case.has(l, Kind::Listen), "{path}");
    }
}

#[test]
fn listeners_are_said_until_they_are_closed_whether_somebody_serves_or_not() {
    if !shm_expected() {
        return;
    }
    let case = Case::new();
    let mut p = case.program("auto");
    let hidden = p.socket("listen 127.0.0.1");
    assert!(!case.has(hidden, Kind::Listen), "nobody from outside reaches it");
    let all = ["0.0.0.0", "::"].map(|host| p.socket(&format!("listen {host}")));
    assert!(all.iter().all(|c| case.has(*c, Kind::Listen)));
    p.ask("close");
    assert!(case.has(all[0], Kind::Listen) && !case.has(all[1], Kind::Listen));
    p.ask("close");
    assert!(!case.has(all[0], Kind::Listen));
    case.end(p);
}

/// Whom the kernel lets in first comes to the ring as well: nobody can be there before it is said. If the call fails it is taken back.
#[test]
fn a_listener_is_said_before_it_listens() {
    if !shm_expected() {
        return;
    }
    let case = Case::new();
    let behind = case.lab.compile("listens.c", &["-shared", "-fPIC"]);
    let mut command = case.lab.python(Side::Client, "intents.py");
    command.env("LD_PRELOAD", format!("{} {}", library().display(), behind.display()));
    let mut p = case.started("auto", command);
    for host in ["0.0.0.0", "::"] {
        let cookie = p.socket(&format!("listen {host}"));
        assert!(case.has(cookie, Kind::Listen), "{host}");
        assert_eq!(p.socket("go on"), cookie);
        assert!(case.has(cookie, Kind::Listen), "{host}");
        let cookie = p.socket(&format!("listen {host}"));
        assert_eq!(p.ask("fail"), "Address already in use");
        assert!(!case.has(cookie, Kind::Listen), "{host}");
    }
    case.end(p);
}

/// A timeout is said of connections, when there is one; and what a listener accepts that has one is the kernel's.
#[test]
fn a_timeout_is_said_of_what_is_connected_and_of_no_listener() {
    if !shm_expected() {
        return;
    }
    let case = Case::new();
    let serving = case.serve();
    let timed = |milliseconds| Kind::Timed(Timeout::new(milliseconds));
    let mut p = case.program("auto");
    let socket = p.socket("new");
    p.ask("timed 2000");
    assert!(!case.has(socket, timed(2000)), "nobody knows whether it will go out");
    p.ask(&format!("connected {ELSEWHERE}"));
    assert!(case.has(socket, timed(2000)));
    // As before it is connected again.
    p.ask("disconnected");
    p.ask("timed 0");
    assert!(!case.has(socket, timed(2000)));
    for shared in [false, true] {
        let listener = p.socket("listen 0.0.0.0");
        if shared {
            p.ask("shared");
        }
        assert!(case.has(listener, Kind::Listen));
        p.ask("timed 2000");
        assert!(!case.has(listener, Kind::Listen), "shared: {shared}");
        assert!(!case.has(listener, timed(2000)));
    }
    drop(serving);
    case.end(p);
}

/// As of a daemon whose first process ends, and of a server that becomes its newer version.
#[test]
fn a_listener_outlives_the_process_that_made_it() {
    if !shm_expected() {
        return;
    }
    let case = Case::new();
    let mut p = case.program("auto");
    let listener = p.socket("listen 0.0.0.0");
    for _ in 0..20 {
        p.ask("fork");
        assert!(case.has(listener, Kind::Listen));
    }
    p.ask("exec");
    // It answers once it has begun.
    let another = p.socket("listen 0.0.0.0");
    assert!(case.has(listener, Kind::Listen) && case.has(another, Kind::Listen));
    // What others may have remains, whoever closes it.
    p.ask("close");
    assert!(case.has(listener, Kind::Listen) && !case.has(another, Kind::Listen));
    p.ask("close");
    assert!(case.has(listener, Kind::Listen));
    case.end(p);
}

/// Others may have taken its place: it is said again when something is accepted.
#[test]
fn a_listener_that_was_forgotten_is_said_again() {
    if !shm_expected() {
        return;
    }
    let case = Case::new();
    let mut p = case.program("auto");
    let listener = p.socket("listen 0.0.0.0");
    let forget = || {
        let file = std::fs::read_dir(&case.dir)
            .unwrap()
            .flatten()
            .find(|e| e.file_name().to_str().unwrap().starts_with("culvert-"));
        let file = std::fs::OpenOptions::new().write(true).open(file.expect("a registry").path()).unwrap();
        let len = file.metadata().unwrap().len();
        file.set_len(0).and_then(|()| file.set_len(len)).unwrap();
        assert!(!case.has(listener, Kind::Listen));
    };
    forget();
    p.ask("accept");
    assert!(!case.has(listener, Kind::Listen), "nobody serves, who could ask");
    let serving = case.serve();
    std::thread::sleep(Duration::from_millis(1100));
    p.ask("accept");
    assert!(case.has(listener, Kind::Listen));
    forget();
    p.ask("accept");
    assert!(!case.has(listener, Kind::Listen), "not with each that is accepted");
    std::thread::sleep(Duration::from_millis(1100));
    p.ask("accept");
    assert!(case.has(listener, Kind::Listen));
    drop(serving);
    case.end(p);
}
