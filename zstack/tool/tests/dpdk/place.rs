//! Two namespaces with a veth between them, and the program in either.

use crate::lab::{Namespace, Process, bounded, soon};
use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

pub const LIMIT: Duration = Duration::from_secs(60);
/// The engine's end of the veth, without hugepages.
pub const AF_PACKET: &str = "dpdk:net_af_packet0,iface=v0,addr=10.9.0.2/24,addr=fd00:9::2/64,memory=none";

/// `ours` has v0, which is the engine's; `theirs` has v1, with the addresses 10.9.0.1 and fd00:9::1, and the kernel's sockets.
pub struct Place {
    pub ours: Namespace,
    pub theirs: Namespace,
    pub directory: PathBuf,
    count: u32,
    /// The kernel's sockets are in `ours` too.
    together: bool,
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

/// A program that runs, with its end of `zstack stat`.
pub struct Tool {
    pub process: Process,
    pub control: PathBuf,
}

/// Runs a test; its thread is in `theirs`.
pub fn in_place(name: &'static str, mtu: u32, work: impl FnOnce(&mut Place) + Send + 'static) {
    bounded(2 * LIMIT, move || {
        let directory = std::env::temp_dir().join(format!("zstack-dpdk-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&directory).expect("a directory");
        let mut place =
            Place { ours: Namespace::new(), theirs: Namespace::new(), directory, count: 0, together: false };
        place
            .ours
            .run(&format!("ip link add v0 mtu {mtu} type veth peer name v1 mtu {mtu} netns {}", place.theirs.path()));
        for (namespace, device) in [(&place.ours, "v0"), (&place.theirs, "v1")] {
            // The packets as they would be on a wire: whole, and with their checksums.
            namespace.run(&format!("ethtool -K {device} tx off tso off gso off gro off"));
            namespace.run(&format!("ip link set {device} up"));
        }
        place.theirs.run("ip address add 10.9.0.1/24 dev v1");
        place.theirs.run("ip address add fd00:9::1/64 dev v1 nodad");
        place.theirs.enter();
        work(&mut place);
    });
}

/// So many free hugepages of 2 MiB for a while, beside those that other programs use. The machine has one number of them: tests of other
/// processes wait for the lock.
pub struct Hugepages {
    /// What is put back.
    before: u64,
    _lock: File,
}

const HUGEPAGES: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB";

/// A number of pages: `nr` (with those beyond what was set, as somebody still uses them), `surplus` (these alone), `free`, `resv`.
fn pages(which: &str) -> u64 {
    let text = std::fs::read_to_string(format!("{HUGEPAGES}/{which}_hugepages")).expect("hugepages of 2 MiB");
    text.trim().parse().expect("a number")
}

fn set_aside(count: u64) -> std::io::Result<()> {
    std::fs::write(format!("{HUGEPAGES}/nr_hugepages"), count.to_string())
}

impl Hugepages {
    pub fn new(count: u64) -> Hugepages {
        let lock = File::open(format!("{HUGEPAGES}/nr_hugepages")).expect("hugepages of 2 MiB");
        // SAFETY: flock(2) touches no memory; the descriptor is open.
        let free = || (unsafe { libc::flock(lock.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } == 0).then_some(());
        soon("the lock of the number of hugepages", LIMIT, free);
        // Put back from here on, whatever happens.
        let before = soon("a number of hugepages that stands still", LIMIT, || {
            let (nr, surplus) = (pages("nr"), pages("surplus"));
            (pages("nr") == nr).then(|| nr.saturating_sub(surplus))
        });
        let hugepages = Hugepages { before, _lock: lock };
        let what = format!("{count} free hugepages (the machine's memory may be in too many pieces)");
        soon(&what, LIMIT / 2, || {
            let used = pages("nr").saturating_sub(pages("free"));
            // Those in use stay, as surplus, until they are not.
            set_aside(if count == 0 { 0 } else { used + count }).expect("the number of hugepages");
            let free = pages("free").saturating_sub(pages("resv"));
            if count == 0 && free == 0 || count > 0 && free >= count {
                return Some(());
            }
            // It moves pages together; where the kernel cannot, waiting is all that is left.
            let _ = std::fs::write("/proc/sys/vm/compact_memory", "1");
            None
        });
        hugepages
    }
}

impl Drop for Hugepages {
    fn drop(&mut self) {
        let _ = set_aside(self.before);
    }
}

impl Place {
    /// The kernel's sockets are in `ours` from now on, where the other end of a tap is.
    pub fn kernel_with_us(&mut self) {
        self.together = true;
    }

    /// The program, over DPDK in `ours`, over the kernel in `theirs`.
    pub fn command(&self, port: &str, words: &str) -> Command {
        let namespace = if port == "kernel" && !self.together { &self.theirs } else { &self.ours };
        self.command_in(namespace, port, words)
    }

    pub fn command_in(&self, namespace: &Namespace, port: &str, words: &str) -> Command {
        let mut command = namespace.command(env!("CARGO_BIN_EXE_zstack"));
        command.args(["--port", port]).args(words.split_whitespace()).env_remove("ZSTACK_PORT");
        command
    }

    /// A program that goes on until it is told to end, or has done its work; it is there when this returns.
    pub fn start(&mut self, port: &str, words: &str) -> Tool {
        let command = self.command(port, words);
        self.start_command(command)
    }

    pub fn start_command(&mut self, mut command: Command) -> Tool {
        self.count += 1;
        let control = self.directory.join(format!("{}.sock", self.count));
        let mut process = Process::spawn(command.arg("--control").arg(&control).stdout(Stdio::piped()));
        soon("a program that answers `stat`", LIMIT, || {
            assert_eq!(process.0.try_wait().expect("wait"), None, "{command:?}: it has ended");
            stat(&control).map(|_| ())
        });
        Tool { process, control }
    }

    /// Runs a program to its end: status, standard output, standard error.
    pub fn run(&self, port: &str, words: &str) -> (ExitStatus, String, String) {
        let output = self.command(port, words).output().expect("the program");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status, text(&output.stdout), text(&output.stderr))
    }

    /// Runs a program to its good end.
    pub fn well(&self, port: &str, words: &str) -> String {
        let (status, out, text) = self.run(port, words);
        assert!(status.success(), "{port} {words}: {status}: {text}{out}");
        out
    }

    /// One line with the remedy, and exit status 2.
    pub fn refused(&self, port: &str, words: &str, remedy: &str) {
        let (status, out, text) = self.run(port, words);
        assert_eq!((status.code(), text.lines().count()), (Some(2), 1), "{port} {words}: {text}");
        assert!(text.starts_with("zstack: ") && text.contains(remedy), "{port} {words}: {text}");
        assert_eq!(out, "", "DPDK writes nothing");
    }

    /// 10 MiB on each of two connections, compared byte by byte, both ways and in both roles, between `port` and the kernel.
    pub fn streams(&mut self, port: &str, ours: &str, theirs: &str) {
        let pattern = "--connections 2 --seed 7 --bytes 10M";
        let sink = self.start(port, &format!("sink --listen 9 {pattern}"));
        self.well("kernel", &format!("source --connect {ours}:9 {pattern}"));
        assert!(sink.done().contains("20971520 bytes"));
        let source = self.start(port, &format!("source --listen 19 {pattern}"));
        self.well("kernel", &format!("sink --connect {ours}:19 {pattern}"));
        source.done();
        let sink = self.start("kernel", &format!("sink --listen 9 {pattern}"));
        self.well(port, &format!("source --connect {theirs}:9 {pattern}"));
        sink.done();
        let source = self.start("kernel", &format!("source --listen 19 {pattern}"));
        self.well(port, &format!("sink --connect {theirs}:19 {pattern}"));
        source.done();
    }
}

pub fn stat(control: &Path) -> Option<serde_json::Value> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_zstack"));
    let output = command.args(["stat", "--json", "--control"]).arg(control).output().expect("the program");
    output.status.success().then(|| serde_json::from_slice(&output.stdout).expect("JSON"))
}

impl Tool {
    pub fn stat(&self) -> serde_json::Value {
        stat(&self.control).expect("it runs")
    }

    /// What the port says of itself under this name.
    pub fn port(&self, name: &str) -> String {
        let stat = self.stat();
        let all = stat["port"].as_array().expect("a list").clone();
        let found = all.iter().find(|n| n["name"] == name).unwrap_or_else(|| panic!("{name} is not in {all:?}"));
        found["value"].as_str().expect("a text").to_owned()
    }

    pub fn counter(&self, name: &str) -> u64 {
        self.stat()["counters"][name].as_u64().unwrap_or(0)
    }

    /// Its end, which comes by itself.
    pub fn done(self) -> String {
        let (status, text) = self.process.finish(LIMIT);
        assert!(status.success(), "{status}: {text}");
        text
    }

    /// Its end, which a signal asks for.
    pub fn interrupted(self) -> String {
        let pid = self.process.0.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().expect("kill").success());
        self.done()
    }

    /// It sleeps: over two seconds it uses less than this share of a core. Who polls or naps too briefly never does; who is stopped by a busy
    /// machine while it runs is charged for that, and gets more tries.
    pub fn sleeps(&self, most: f64) {
        const TIME: Duration = Duration::from_secs(2);
        let mut loads = Vec::new();
        while loads.iter().all(|load| *load >= most) {
            assert!(loads.len() < 5, "{}: these shares of a core, idle: {loads:?}", self.port("device"));
            let before = self.process.cpu();
            std::thread::sleep(TIME);
            loads.push((self.process.cpu() - before).as_secs_f64() / TIME.as_secs_f64());
        }
    }
}
