//! Network namespaces that a test makes and that vanish with it, and processes in them. Used by several test programs, of which
//! none uses all.

#![allow(dead_code)]

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// Whether the tests that need root and /dev/net/tun can run. Without root it says so, and the test is left; root without the
/// device is a failure.
pub fn able() -> bool {
    // SAFETY: geteuid touches no memory.
    if unsafe { libc::geteuid() } != 0 {
        eprintln!("SKIPPED: this test makes network namespaces and devices, which needs root");
        return false;
    }
    assert!(std::path::Path::new("/dev/net/tun").exists(), "there is no /dev/net/tun");
    true
}

/// Leaves the test if it cannot run here.
#[macro_export]
macro_rules! need_root {
    () => {
        if !$crate::lab::able() {
            return;
        }
    };
}

fn check(result: i32) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Two namespaces and a veth between them: v0 in the first, v1 with the address 10.9.0.1 in the other. Nothing is offloaded.
pub fn veth() -> (Namespace, Namespace) {
    let (ours, theirs) = (Namespace::new(), Namespace::new());
    ours.run(&format!("ip link add v0 type veth peer name v1 netns {}", theirs.path()));
    for (namespace, device) in [(&ours, "v0"), (&theirs, "v1")] {
        namespace.run(&format!("ethtool -K {device} tx off tso off gso off gro off"));
        namespace.run(&format!("ip link set {device} up"));
    }
    theirs.run("ip address add 10.9.0.1/24 dev v1");
    (ours, theirs)
}

/// A network namespace. It has a loopback device that is up, and lives as long as this, a thread or a process in it, or a socket
/// of it.
pub struct Namespace(File);

impl Namespace {
    pub fn new() -> Namespace {
        let make = || {
            // SAFETY: unshare touches no memory; only this thread changes its namespace.
            check(unsafe { libc::unshare(libc::CLONE_NEWNET) }).expect("a network namespace");
            File::open("/proc/thread-self/ns/net").expect("the namespace of this thread")
        };
        let namespace = Namespace(thread::spawn(make).join().expect("the thread that makes a namespace"));
        namespace.run("ip link set lo up");
        namespace
    }

    /// The same namespace.
    pub fn again(&self) -> Namespace {
        Namespace(self.0.try_clone().expect("a descriptor"))
    }

    /// A path that names it to ip(8) as long as this lives.
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }

    /// Moves the calling thread into the namespace.
    pub fn enter(&self) {
        // SAFETY: the descriptor is open; setns touches no memory.
        check(unsafe { libc::setns(self.0.as_raw_fd(), libc::CLONE_NEWNET) }).expect("setns");
    }

    /// Runs `work` in the namespace: sockets and devices that it makes are the namespace's, wherever they are used later.
    pub fn within<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        let run = || {
            self.enter();
            work()
        };
        thread::scope(|s| s.spawn(run).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    }

    /// A program that will run in the namespace.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        let fd = self.0.as_raw_fd();
        // SAFETY: setns and prctl are system calls without memory of ours, and may be called between fork and exec. The descriptor
        // is open there, as `self` outlives the spawn of every caller.
        unsafe {
            command.pre_exec(move || check(libc::setns(fd, libc::CLONE_NEWNET)));
        }
        command
    }

    /// Runs a command line, whose words are parted by spaces, to its successful end, and tells its output.
    pub fn run(&self, line: &str) -> String {
        let mut words = line.split_whitespace();
        let mut command = self.command(words.next().expect("a command"));
        let output = command.args(words).stdin(Stdio::null()).output().unwrap_or_else(|e| panic!("{line}: {e}"));
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{line}: {}{text}", String::from_utf8_lossy(&output.stderr));
        text
    }

    /// Feeds nft(8) its rules.
    pub fn nft(&self, rules: &str) {
        use std::io::Write;
        let mut nft =
            self.command("nft").args(["-f", "-"]).stdin(Stdio::piped()).spawn().expect("nft (package nftables)");
        nft.stdin.take().expect("a pipe").write_all(rules.as_bytes()).expect("rules to nft");
        assert!(nft.wait().expect("nft").success(), "nft takes\n{rules}");
    }

    /// Writes a setting below /proc/sys/net.
    pub fn sysctl(&self, path: &str, value: &str) {
        self.within(|| {
            std::fs::write(format!("/proc/sys/net/{path}"), value).unwrap_or_else(|e| panic!("{path}: {e}"))
        });
    }

    /// A counter of the kernel's (`TcpExtTCPLostRetransmit`), as nstat(8) names it, since the namespace began.
    pub fn counters(&self) -> std::collections::HashMap<String, u64> {
        let text = self.run("nstat -azs");
        let line = |l: &str| {
            let mut words = l.split_whitespace();
            Some((words.next()?.to_string(), words.next()?.parse().ok()?))
        };
        text.lines().filter_map(line).collect()
    }
}

/// A process that does not outlive the test.
pub struct Process(pub Child);

impl Process {
    pub fn spawn(command: &mut Command) -> Process {
        Process(command.spawn().unwrap_or_else(|e| panic!("{command:?}: {e}")))
    }

    /// Kills it as `kill -9` does.
    pub fn kill(&mut self) {
        self.0.kill().expect("kill");
        self.0.wait().expect("wait");
    }

    /// Its exit, within `limit`; its standard output is read to the end meanwhile.
    pub fn finish(mut self, limit: Duration) -> (std::process::ExitStatus, String) {
        let mut output = self.0.stdout.take();
        let reader = thread::spawn(move || {
            let mut text = String::new();
            if let Some(o) = &mut output {
                let _ = o.read_to_string(&mut text);
            }
            text
        });
        let status = soon("the end of a process", limit, || self.0.try_wait().expect("wait"));
        (status, reader.join().expect("the reader of its output"))
    }

    /// CPU time that it has used.
    pub fn cpu(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.0.id())).expect("stat");
        let fields: Vec<&str> = stat[stat.rfind(')').expect("comm") + 2..].split(' ').collect();
        let ticks: u64 = fields[11].parse::<u64>().expect("utime") + fields[12].parse::<u64>().expect("stime");
        Duration::from_millis(ticks * 10)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs a test in a thread of its own, one at a time (there are two cores), and fails if it takes longer than `limit`.
pub fn bounded(limit: Duration, work: impl FnOnce() + Send + 'static) {
    static ONE: std::sync::Mutex<()> = std::sync::Mutex::new(());
    let _one = ONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    beside(limit, work);
}

/// Runs a test that mostly sleeps in a thread of its own, beside others, and fails if it takes longer than `limit`.
pub fn beside(limit: Duration, work: impl FnOnce() + Send + 'static) {
    let began = Instant::now();
    let (sender, receiver) = std::sync::mpsc::channel();
    let thread = thread::spawn(move || {
        work();
        let _ = sender.send(());
    });
    match receiver.recv_timeout(limit) {
        Err(std::sync::mpsc::RecvTimeoutError::Timeout) => panic!("the test is not over within {limit:?}"),
        _ => thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
    }
    println!("{}: {:.1} s", thread::current().name().unwrap_or(""), began.elapsed().as_secs_f32());
}

/// Bytes that no part of is like another.
pub fn noise(mut state: u64, len: usize) -> Vec<u8> {
    let mut word = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    (0..len.div_ceil(8)).flat_map(|_| word()).take(len).collect()
}

/// Asks until there is an answer.
pub fn soon<T>(what: &str, limit: Duration, mut ask: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + limit;
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < end, "{what}: not within {limit:?}");
        thread::sleep(Duration::from_millis(2));
    }
}

/// Takes a capability from the calling thread for good.
pub fn without_capability(number: u32) {
    // struct __user_cap_header_struct and two of __user_cap_data_struct: effective, permitted, inheritable.
    let header = [0x2008_0522u32, 0];
    let mut data = [[0u32; 3]; 2];
    // SAFETY: capget and capset get the structures of the version in the header, which live through the calls.
    unsafe {
        assert_eq!(libc::syscall(libc::SYS_capget, header.as_ptr(), data.as_mut_ptr()), 0, "capget");
        for set in &mut data[number as usize / 32] {
            *set &= !(1 << (number % 32));
        }
        assert_eq!(libc::syscall(libc::SYS_capset, header.as_ptr(), data.as_ptr()), 0, "capset");
    }
}

/// Runs `work` in a thread with mounts of its own.
pub fn with_own_mounts<R: Send>(work: impl FnOnce() -> R + Send) -> R {
    let run = || {
        // SAFETY: both calls get constant strings or null, and change this thread's namespace only.
        unsafe {
            check(libc::unshare(libc::CLONE_NEWNS)).expect("a mount namespace");
            let private = libc::MS_REC | libc::MS_PRIVATE;
            let root = c"/".as_ptr();
            check(libc::mount(std::ptr::null(), root, std::ptr::null(), private, std::ptr::null()))
                .expect("private mounts");
        }
        work()
    };
    thread::scope(|s| s.spawn(run).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
}

/// Mounts an empty tmpfs; see [`with_own_mounts`].
pub fn mount_tmpfs(at: &str, options: &str) {
    let (at, options) = (std::ffi::CString::new(at).expect("path"), std::ffi::CString::new(options).expect("options"));
    // SAFETY: all strings end in a zero byte and live through the call.
    let result = unsafe { libc::mount(c"none".as_ptr(), at.as_ptr(), c"tmpfs".as_ptr(), 0, options.as_ptr().cast()) };
    check(result).expect("a tmpfs");
}
