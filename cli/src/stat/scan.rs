//! Finds the processes under culvert, and the sockets behind their endpoints.
// Unsafe here: libc's calls.
#![allow(unsafe_code)]

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};

use shmring::family::{FEW_DESCRIPTORS, MEMFD_NAME, Reason, State};

use super::family::Direction;
use super::family::{self, Family, Record};
use super::outer::{self, Carriers};
use super::{Connection, Process, Report};
use crate::netdiag::{self, Socket};
use crate::settings;
use crate::visible::visible;

/// The TCP sockets of one network namespace, by inode.
type Sockets = HashMap<u64, Socket>;

/// Those of the namespaces that were looked at.
#[derive(Default)]
struct Networks {
    known: HashMap<PathBuf, Sockets>,
    /// They are all in which some process lives.
    all: bool,
}

impl Networks {
    /// The sockets of the namespace in which a process or thread is.
    fn of(&mut self, task: &Path) -> &Sockets {
        let namespace = fs::read_link(task.join("ns/net")).unwrap_or_default();
        self.known.entry(namespace.clone()).or_insert_with(|| sockets(task, &namespace))
    }

    /// A socket of a process that does not live where its process does.
    fn elsewhere(&mut self, proc: &Path, inode: u64) -> Option<&Socket> {
        let tasks = |of: &Path| {
            let number = |name: &str| name.bytes().all(|b| b.is_ascii_digit());
            let entries = fs::read_dir(of).into_iter().flatten().flatten();
            entries.filter(move |e| e.file_name().to_str().is_some_and(number)).map(|e| e.path()).collect::<Vec<_>>()
        };
        for thread in tasks(&proc.join("task")) {
            self.of(&thread);
        }
        if !self.all {
            self.all = true;
            for process in tasks(Path::new("/proc")) {
                self.of(&process);
            }
        }
        self.known.values().find_map(|sockets| sockets.get(&inode))
    }
}

/// See [`super::collect`].
pub fn collect(only: Option<u32>) -> std::io::Result<Report> {
    let pids: Vec<u32> = match only {
        Some(pid) => vec![pid],
        None => fs::read_dir("/proc")?.filter_map(|e| e.ok()?.file_name().to_str()?.parse().ok()).collect(),
    };
    let (mut networks, mut carriers) = (Networks::default(), Carriers::default());
    let mut processes: Vec<_> = pids.into_iter().filter_map(|pid| process(pid, &mut networks, &mut carriers)).collect();
    processes.sort_by_key(|p| p.pid);
    Ok(Report { processes })
}

/// What `/proc/PID/fd` shows.
#[derive(Default)]
struct Descriptors {
    families: Vec<PathBuf>,
    /// Lowest descriptor of each socket.
    sockets: BTreeMap<u64, i32>,
}

fn descriptors(proc: &Path) -> Option<Descriptors> {
    let family = format!("/memfd:{MEMFD_NAME} (deleted)");
    let mut found = Descriptors::default();
    // Both may fail because the process has just ended, or because it is another user's: no error of ours.
    for entry in fs::read_dir(proc.join("fd")).ok()?.flatten() {
        let Ok(target) = fs::read_link(entry.path()) else { continue };
        let (Some(target), Some(fd)) =
            (target.to_str(), entry.file_name().to_str().and_then(|n| n.parse::<i32>().ok()))
        else {
            continue;
        };
        if target == family {
            found.families.push(entry.path());
        } else if let Some(inode) =
            target.strip_prefix("socket:[").and_then(|t| t.strip_suffix(']')).and_then(|t| t.parse().ok())
        {
            found.sockets.entry(inode).and_modify(|lowest: &mut i32| *lowest = fd.min(*lowest)).or_insert(fd);
        }
    }
    Some(found)
}

fn process(pid: u32, networks: &mut Networks, carriers: &mut Carriers) -> Option<Process> {
    let proc = PathBuf::from(format!("/proc/{pid}"));
    let descriptors = descriptors(&proc)?;
    let mut process = Process {
        pid,
        command: command(&proc),
        path: "unknown",
        disabled: None,
        disabled_text: None,
        error: None,
        channels: 0,
        connections: Vec::new(),
    };
    // More than one is odd (a program that received another's descriptor); the first that reads well counts.
    let mut families = descriptors.families.iter().map(|path| family::read(path));
    let Some(family) = families.next() else {
        // Without a family there is nothing to say, but why, to somebody who has connections.
        let (key, text) = off(&proc)?;
        process.disabled_text = Some(text);
        let family = Family { path: "kernel", disabled: Some((key.clone(), text)), channels: 0, endpoints: Vec::new() };
        process.path = family.path;
        process.disabled = Some(key);
        process.connections = connections(&HashSet::new(), &family, &descriptors.sockets, &proc, networks);
        return (!process.connections.is_empty()).then_some(process);
    };
    match families.fold(family, |best, next| best.or(next)) {
        Err(e) => process.error = Some(e),
        Ok(family) => {
            process.path = family.path;
            process.channels = family.channels;
            process.connections = connections(&own_pids(&proc, pid), &family, &descriptors.sockets, &proc, networks);
            // A program may have cleared its environment, as nginx does for its workers: then it has what we have, most likely.
            let directory = setting(&proc, "CULVERT_DIR").or_else(|| std::env::var("CULVERT_DIR").ok());
            carry(&mut process.connections, &proc, directory.as_deref(), carriers);
            if let Some((key, text)) = family.disabled {
                process.disabled = Some(key);
                process.disabled_text = Some(text);
            }
        }
    }
    Some(process)
}

/// A variable of a process's environment, as that was when it began.
fn setting(proc: &Path, name: &str) -> Option<String> {
    let environment = String::from_utf8_lossy(&fs::read(proc.join("environ")).unwrap_or_default()).into_owned();
    environment.split('\0').find_map(|v| v.strip_prefix(name)?.strip_prefix('=')).map(str::to_owned)
}

/// Adds what is known of the connections on the wire. `directory`: the process's CULVERT_DIR.
fn carry(connections: &mut [Connection], proc: &Path, directory: Option<&str>, carriers: &mut Carriers) {
    if connections.is_empty() {
        return;
    }
    let all = carriers.of(proc, directory);
    for c in connections {
        // Not an address, but a question mark, where the socket lives elsewhere.
        let (Ok(local), Ok(peer)) = (c.local.parse(), c.peer.parse()) else { continue };
        c.outer = all.get(&outer::ends(local, peer)).cloned();
    }
}

/// See [`super::recall`].
pub fn recall(pid: u32) -> Result<(), String> {
    let proc = PathBuf::from(format!("/proc/{pid}"));
    let descriptors = descriptors(&proc).ok_or("no such process, or another user's, which only root may ask")?;
    if descriptors.families.is_empty() {
        return Err("not under culvert, or without a TCP socket so far; `culvert stat` names those that are".into());
    }
    descriptors.families.iter().try_for_each(|path| family::recall(path))
}

/// Why a process that was to run under culvert, and has TCP connections, has no memory for others to read. `None`: it was not.
fn off(proc: &Path) -> Option<(String, &'static str)> {
    let read = |name: &str| String::from_utf8_lossy(&fs::read(proc.join(name)).unwrap_or_default()).into_owned();
    let (maps, environment) = (read("maps"), read("environ"));
    let setting = |name: &str| environment.split('\0').find_map(|v| v.strip_prefix(name)?.strip_prefix('='));
    let reason = |r: Reason| Some((r.key().to_string(), r.text()));
    if !maps.contains("libculvert") {
        return setting("LD_PRELOAD").filter(|v| v.contains("libculvert")).map(|_| {
            let text = "libculvert.so is not loaded: the program is static, or has more rights than its caller";
            ("not-loaded".to_string(), text)
        });
    }
    if maps.contains("/ld-musl-") {
        return Some(("other-libc".to_string(), "the program's libc is not glibc"));
    }
    if !proc.join("root/proc/1/status").exists() {
        return Some(("no-proc".to_string(), "the process sees no /proc, which tells of system-call filters"));
    }
    if read("status").lines().any(|l| l.strip_prefix("Seccomp:").is_some_and(|mode| mode.trim() != "0")) {
        return reason(Reason::Seccomp);
    }
    let soft = |l: &str| l.strip_prefix("Max open files")?.split_ascii_whitespace().next()?.parse::<u64>().ok();
    if read("limits").lines().find_map(soft).is_some_and(|limit| limit < FEW_DESCRIPTORS) {
        return reason(Reason::NoFd);
    }
    let wrong = |name: &str| setting(name).is_some_and(|value| settings::complaint(name, value).is_some());
    let log = setting("CULVERT_LOG_FILE").is_some_and(|path| !has_open(proc, path));
    if log || setting("CULVERT_PATH") == Some("kernel") || settings::VARIABLES.iter().any(|name| wrong(name)) {
        return reason(Reason::Config);
    }
    Some(untracked())
}

/// Whether a process has a file open that this path names.
fn has_open(proc: &Path, path: &str) -> bool {
    let all = fs::read_dir(proc.join("fd")).into_iter().flatten().flatten();
    all.filter_map(|e| fs::read_link(e.path()).ok()).any(|target| target.file_name() == Path::new(path).file_name())
}

fn untracked() -> (String, &'static str) {
    let text = "the library did not see this socket begin: it was inherited or received, or not made by libc";
    ("untracked".to_string(), text)
}

fn command(proc: &Path) -> String {
    let line = fs::read(proc.join("cmdline")).unwrap_or_default();
    let mut words: Vec<_> = line.split(|b| *b == 0).filter(|w| !w.is_empty()).map(String::from_utf8_lossy).collect();
    if words.is_empty() {
        words.push(
            String::from_utf8_lossy(&fs::read(proc.join("comm")).unwrap_or_default()).trim_end().to_owned().into(),
        );
    }
    // A process chooses its own command line: keep it from writing to the terminal.
    visible(&words.join(" "))
}

/// The process's id, and its id in its own pid namespace, which is what the library recorded.
fn own_pids(proc: &Path, pid: u32) -> HashSet<u32> {
    let status = fs::read_to_string(proc.join("status")).unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("NSpid:")).unwrap_or_default();
    line.split_ascii_whitespace().filter_map(|p| p.parse().ok()).chain([pid]).collect()
}

/// With cookies if it is our own namespace, else what /proc shows.
fn sockets(proc: &Path, namespace: &Path) -> Sockets {
    let own = fs::read_link("/proc/self/ns/net").is_ok_and(|own| own == namespace);
    let all = match own.then(netdiag::dump) {
        Some(Ok(all)) => all,
        _ => ["net/tcp", "net/tcp6"]
            .iter()
            .flat_map(|name| netdiag::parse_proc(&fs::read_to_string(proc.join(name)).unwrap_or_default()))
            .collect(),
    };
    all.into_iter().filter(|s| s.inode != 0).map(|s| (s.inode, s)).collect()
}

/// One entry per connected TCP socket that the process holds.
fn connections(
    pids: &HashSet<u32>,
    family: &Family,
    held: &BTreeMap<u64, i32>,
    proc: &Path,
    networks: &mut Networks,
) -> Vec<Connection> {
    // A socket that one process of the family has sent another is two records to it. This process's own says more.
    let mut known: Vec<&Record> = family.endpoints.iter().filter(|e| e.cookie != 0).collect();
    known.sort_by_key(|e| (pids.contains(&e.pid), e.state != State::Pinned));
    let by_cookie: HashMap<u64, &Record> = known.into_iter().map(|e| (e.cookie, e)).collect();
    let by_fd: HashMap<u32, &Record> =
        family.endpoints.iter().filter(|e| e.cookie == 0 && pids.contains(&e.pid)).map(|e| (e.fd, e)).collect();
    // For namespaces whose cookies we cannot see, the descriptor at creation is the best there is.
    let by_old_fd: HashMap<u32, &Record> =
        family.endpoints.iter().filter(|e| pids.contains(&e.pid)).map(|e| (e.fd, e)).collect();
    let sockets = networks.of(proc);
    let mut found: Vec<_> = held
        .iter()
        .filter_map(|(inode, fd)| {
            let socket = sockets.get(inode).filter(|s| s.connected())?;
            let record = match socket.cookie {
                Some(cookie) => by_cookie.get(&cookie).or_else(|| by_fd.get(&(*fd as u32))),
                None => by_old_fd.get(&(*fd as u32)),
            };
            Some(connection(*fd, Some(socket), record.copied(), family))
        })
        .collect();
    let strays = held.iter().filter(|(inode, _)| !sockets.contains_key(inode));
    let strays = strays.filter_map(|(inode, fd)| Some((*inode, *fd, *by_old_fd.get(&(*fd as u32))?)));
    let strays: Vec<_> = strays.filter(|(_, _, record)| record.is_elsewhere()).collect();
    for (inode, fd, record) in strays {
        // If no process lives in the socket's network namespace, there is nobody there to ask for its addresses.
        let socket = networks.elsewhere(proc, inode);
        if socket.is_none_or(Socket::connected) {
            found.push(connection(fd, socket, Some(record), family));
        }
    }
    found.sort_by_key(|c| c.fd);
    found
}

fn connection(fd: i32, socket: Option<&Socket>, record: Option<&Record>, family: &Family) -> Connection {
    let none = || Direction { path: "kernel", phase: "native", bytes: 0, messages: 0, switched_up_at: None };
    let state = tcp_state(socket.map_or(0, |s| s.state));
    let address =
        |of: fn(&Socket) -> std::net::SocketAddr| socket.map_or_else(|| "?".to_string(), |s| of(s).to_string());
    let reason = match record {
        Some(r) if r.state == State::Eligible && family.disabled.is_some() => family.disabled.clone(),
        Some(r) => r.reason(socket.is_some() && state != "established"),
        None => Some(family.disabled.clone().unwrap_or_else(untracked)),
    };
    let (reason, reason_text) = reason.unzip();
    Connection {
        fd: Some(fd),
        local: address(|s| s.local),
        peer: address(|s| s.peer),
        peer_pid: record.and_then(|r| r.peer_pid),
        tcp_state: state,
        state: match record.map(|r| r.state) {
            Some(State::Attached) => "attached",
            Some(State::Pinned) => "pinned",
            Some(_) => "eligible",
            None => "untracked",
        },
        role: record.and_then(|r| r.role),
        path: record.map_or("kernel", Record::path),
        reason,
        reason_text,
        rx: record.map_or_else(none, |r| r.rx.clone()),
        tx: record.map_or_else(none, |r| r.tx.clone()),
        doorbells: record.map_or(0, |r| r.doorbells),
        spins_won: record.map_or(0, |r| r.spins_won),
        spins_lost: record.map_or(0, |r| r.spins_lost),
        outer: None,
    }
}

/// include/net/tcp_states.h.
fn tcp_state(state: u8) -> &'static str {
    const NAMES: [&str; 13] = [
        "unknown",
        "established",
        "syn-sent",
        "syn-recv",
        "fin-wait-1",
        "fin-wait-2",
        "time-wait",
        "close",
        "close-wait",
        "last-ack",
        "listen",
        "closing",
        "syn-recv",
    ];
    NAMES.get(usize::from(state)).copied().unwrap_or("unknown")
}

#[cfg(test)]
mod tests {
    use super::super::family::tests::Synthetic;
    use super::*;
    use std::io::Write;
    use std::mem::offset_of;
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::{AsRawFd, FromRawFd};

    use shmring::family::Endpoint;

    fn cookie(s: &TcpStream) -> u64 {
        netdiag::exact(s.local_addr().unwrap(), s.peer_addr().unwrap()).unwrap().unwrap().cookie.unwrap()
    }

    /// This process, holding a hand-made family memfd and two real connections, is found by the real scan.
    #[test]
    fn endpoints_are_joined_with_sockets_by_cookie() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (server, _) = listener.accept().unwrap();
        let mut s = Synthetic::new(2);
        s.put32(0, offset_of!(Endpoint, state), State::Attached as u32);
        s.put32(0, offset_of!(Endpoint, tx_phase), 1);
        s.put64(0, offset_of!(Endpoint, cookie), cookie(&client));
        // Stale: its socket is gone, and its descriptor number now names another one.
        s.put32(1, offset_of!(Endpoint, state), State::Pinned as u32);
        s.put64(1, offset_of!(Endpoint, cookie), u64::MAX - 1);
        s.put32(1, offset_of!(Endpoint, pid), std::process::id());
        s.put32(1, offset_of!(Endpoint, fd), server.as_raw_fd() as u32);
        // SAFETY: the name is a terminated string.
        let fd = unsafe { libc::memfd_create(c"culvert-family".as_ptr(), libc::MFD_CLOEXEC) };
        assert!(fd >= 0);
        // SAFETY: a new descriptor, owned by nobody else.
        let mut memfd = unsafe { fs::File::from_raw_fd(fd) };
        memfd.write_all(&s.0).unwrap();

        let report = collect(Some(std::process::id())).unwrap();
        let process = &report.processes[0];
        assert_eq!((process.error.as_deref(), process.path), (None, "auto"));
        let of = |s: &TcpStream| process.connections.iter().find(|c| c.fd == Some(s.as_raw_fd())).unwrap();
        assert_eq!((of(&client).path, of(&client).state), ("shm", "attached"));
        assert_eq!(of(&client).peer, server.local_addr().unwrap().to_string());
        assert_eq!((of(&server).path, of(&server).reason.as_deref()), ("kernel", Some("untracked")));
        assert!(!process.connections.iter().any(|c| c.fd == Some(listener.as_raw_fd())));
    }

    #[test]
    fn a_connection_that_is_carried_shows_the_one_on_the_wire() {
        use super::super::outer::tests::{Fake, carried};
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let own = (client.local_addr().unwrap(), client.peer_addr().unwrap());
        let fake = Fake::new("carry", zstack_control::line(&carried(own.0, own.1)));
        let socket = netdiag::exact(own.0, own.1).unwrap();
        let family = Family { path: "auto", disabled: None, channels: 0, endpoints: Vec::new() };
        let connection = || connection(3, socket.as_ref(), None, &family);
        let mut all = [connection(), Connection { peer: "?".into(), ..connection() }];
        carry(&mut all, Path::new("/proc/self"), fake.dir.to_str(), &mut Carriers::default());
        let o = all[0].outer.as_ref().unwrap();
        assert_eq!((o.state.as_str(), o.cwnd, o.retransmits, o.copied_out), ("fin-wait-1", 14_600, 3, 2000));
        assert_eq!(all[1].outer, None);
        let json = serde_json::to_value(&all[0]).unwrap();
        assert_eq!((json["outer"]["port"].as_str(), json["outer"]["srtt_us"].as_u64()), (Some("af_packet"), Some(250)));
    }

    #[test]
    fn a_process_without_culvert_is_not_listed() {
        assert!(collect(Some(1)).unwrap().processes.is_empty());
        assert!(collect(Some(u32::MAX)).unwrap().processes.is_empty());
    }
}
