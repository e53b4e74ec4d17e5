//! Starting, measuring and ending the programs of a benchmark.
//!
//! Everything started here dies with the benchmark: a [`Job`] kills its process tree when it is dropped, the
//! signal thread kills all descendants on SIGINT, SIGTERM and SIGHUP, and each direct child asks the
//! kernel to be killed should the benchmark itself be killed. All by process id.
// Unsafe here: processes and their resources, by libc.
#![allow(unsafe_code)]

use std::collections::{BTreeSet, HashMap};
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use crate::{exit, netdiag};

/// How long a program may take to start, or to end after its measurement should be over.
const PATIENCE: Duration = Duration::from_secs(20);

/// Which side of the comparison.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Side {
    /// Without the library.
    Kernel,
    /// With it.
    Culvert,
}

/// A directory for configuration files and output, removed at the end.
pub struct Scratch(PathBuf);

impl Scratch {
    /// Makes one that other users may look into: nginx's workers are not root.
    pub fn new(name: &str) -> io::Result<Scratch> {
        use std::os::unix::fs::PermissionsExt;
        let path = std::env::temp_dir().join(format!("culvert-{name}-{}", std::process::id()));
        fs::create_dir(&path)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        Ok(Scratch(path))
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Makes this process the keeper of all that it starts; call once, before anything is started. The scratch
/// directory is removed on a signal as well.
pub fn guard(scratch: &Path) {
    let signals = ending_signals();
    // SAFETY: `signals` is an initialised set. Threads started from here on inherit the mask.
    unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &signals, std::ptr::null_mut()) };
    let scratch = scratch.to_owned();
    std::thread::spawn(move || {
        let mut signal = 0;
        // SAFETY: both outlive the call; the signals are blocked in every thread.
        unsafe { libc::sigwait(&signals, &mut signal) };
        ENDING.store(true, Ordering::SeqCst);
        kill_tree(std::process::id());
        let _ = fs::remove_dir_all(&scratch);
        // SAFETY: ends the process at once; nothing of ours needs to be unwound.
        unsafe { libc::_exit(if signal == libc::SIGINT { exit::INTERRUPTED.into() } else { 128 + signal }) }
    });
}

/// Set when a signal has asked for the end.
static ENDING: AtomicBool = AtomicBool::new(false);

/// Once the signal thread is ending this process, this does not return: a row that fails then fails because its programs were
/// killed, and the exit code is the one that the signal thread gives.
pub fn leave_to_signal() {
    while ENDING.load(Ordering::SeqCst) {
        std::thread::park();
    }
}

fn ending_signals() -> libc::sigset_t {
    // SAFETY: plain data; sigemptyset initialises it.
    let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: `set` is valid, and so are the signal numbers.
    unsafe {
        libc::sigemptyset(&mut set);
        for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
            libc::sigaddset(&mut set, signal);
        }
    }
    set
}

/// A started program.
pub struct Job {
    child: Child,
    name: String,
    output: PathBuf,
    reaped: bool,
}

/// What a program that ended by itself has said and used.
pub struct Finished {
    /// Standard output.
    pub output: String,
    /// CPU time of it and of all its children.
    pub cpu: Duration,
}

impl Job {
    /// Starts `command`. Standard output and error go to a file in `scratch`, standard input is a pipe.
    pub fn start(mut command: Command, library: Option<&Path>, scratch: &Path) -> io::Result<Job> {
        let name = Path::new(command.get_program()).file_name().unwrap_or_default().to_string_lossy().into_owned();
        let output = scratch.join(format!("{name}.{}", COUNTER.fetch_add(1, Ordering::Relaxed)));
        let file = File::create(&output)?;
        for (key, _) in std::env::vars_os().filter(|(k, _)| k.to_string_lossy().starts_with("CULVERT_")) {
            if command.get_envs().all(|(k, _)| k != key) {
                command.env_remove(key);
            }
        }
        match library {
            Some(path) => command.env("LD_PRELOAD", path),
            None => command.env_remove("LD_PRELOAD"),
        };
        let signals = ending_signals();
        // SAFETY: the closure makes async-signal-safe system calls only.
        unsafe {
            command.pre_exec(move || {
                libc::pthread_sigmask(libc::SIG_UNBLOCK, &signals, std::ptr::null_mut());
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                Ok(())
            })
        };
        adopt_orphans();
        leave_to_signal();
        let child = command.stdin(Stdio::piped()).stdout(file.try_clone()?).stderr(file).spawn();
        let child = child.map_err(|e| io::Error::other(format!("{name}: {e}")))?;
        Ok(Job { child, name, output, reaped: false })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has written so far.
    pub fn output(&self) -> String {
        fs::read_to_string(&self.output).unwrap_or_default()
    }

    /// Error text with the end of its output.
    pub fn complain(&self, what: impl std::fmt::Display) -> io::Error {
        let output = self.output();
        let tail: Vec<_> = output.lines().rev().take(3).collect();
        io::Error::other(format!("{} {what}: {}", self.name, tail.into_iter().rev().collect::<Vec<_>>().join(" | ")))
    }

    /// Waits until `ready` says so, as long as the program lives and patience lasts.
    pub fn wait_until<T>(&mut self, ready: impl FnMut(&Job) -> Option<T>) -> io::Result<T> {
        self.wait_longer(PATIENCE, ready)
    }

    /// The same with another patience.
    pub fn wait_longer<T>(&mut self, patience: Duration, mut ready: impl FnMut(&Job) -> Option<T>) -> io::Result<T> {
        let begin = Instant::now();
        loop {
            if let Some(value) = ready(self) {
                return Ok(value);
            }
            // Foreign programs announce nothing: looking now and then is all that is left.
            if self.ended(Duration::from_millis(10))? {
                return Err(self.complain("ended early"));
            }
            if begin.elapsed() > patience {
                return Err(self.complain("did not get ready"));
            }
        }
    }

    /// Waits until a process listens on `port`, without connecting to it.
    pub fn wait_listening(&mut self, port: u16) -> io::Result<()> {
        const LISTEN: u8 = 10;
        self.wait_until(|_| {
            netdiag::dump().ok()?.iter().any(|s| s.state == LISTEN && s.local.port() == port).then_some(())
        })
    }

    /// The first line of its output, once it is complete.
    pub fn first_line(&mut self) -> io::Result<String> {
        self.wait_until(|job| job.output().split_once('\n').map(|(line, _)| line.to_owned()))
    }

    fn ended(&self, timeout: Duration) -> io::Result<bool> {
        // SAFETY: the child has not been reaped, so its id is its own.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, self.pid(), 0) } as i32;
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: a new descriptor, owned by nobody else.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let mut poll = libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one valid pollfd.
        Ok(unsafe { libc::poll(&mut poll, 1, timeout.as_millis() as i32) } == 1)
    }

    /// Waits for it to end by itself, at most `expected` and some patience, however it ends.
    pub fn end(&mut self, expected: Duration) -> io::Result<()> {
        if self.ended(expected + PATIENCE)? { Ok(()) } else { Err(self.complain("did not end")) }
    }

    /// The same for one that is to end with status 0.
    pub fn finish(mut self, expected: Duration) -> io::Result<Finished> {
        self.end(expected)?;
        let (mut status, mut usage) = (0, zero_usage());
        // SAFETY: both outlive the call; the child is ours and not reaped yet.
        if unsafe { libc::wait4(self.pid() as i32, &mut status, 0, &mut usage) } < 0 {
            return Err(io::Error::last_os_error());
        }
        self.reaped = true;
        if status != 0 {
            return Err(self.complain(format_args!("failed (wait status {status:#x})")));
        }
        Ok(Finished { output: self.output(), cpu: time(usage.ru_utime) + time(usage.ru_stime) })
    }

    /// CPU time so far of it and its living descendants.
    pub fn cpu(&self) -> Duration {
        self.tree().into_iter().map(cpu_of).sum()
    }

    /// Proportional set size of it and its living descendants, bytes.
    pub fn pss(&self) -> u64 {
        let of = |pid| {
            let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
            let line = text.lines().find_map(|l| l.strip_prefix("Pss:"));
            line.and_then(|l| l.trim().trim_end_matches(" kB").parse::<u64>().ok()).unwrap_or(0) << 10
        };
        self.tree().into_iter().map(of).sum()
    }

    /// Its id and those of its living descendants.
    pub fn tree(&self) -> BTreeSet<u32> {
        let mut all = descendants(self.pid());
        all.insert(self.pid());
        all
    }
}

static COUNTER: AtomicU32 = AtomicU32::new(0);

impl Drop for Job {
    fn drop(&mut self) {
        if self.reaped {
            return;
        }
        // Not reaped before this: until then the id cannot be anybody else's.
        stop(self.pid());
        let orphans = kill_tree(self.pid());
        let _ = self.child.kill();
        let _ = self.child.wait();
        orphans.into_iter().for_each(reap);
    }
}

fn zero_usage() -> libc::rusage {
    // SAFETY: plain data, and all zeros is a valid value.
    unsafe { std::mem::zeroed() }
}

fn time(t: libc::timeval) -> Duration {
    Duration::from_secs(t.tv_sec as u64) + Duration::from_micros(t.tv_usec as u64)
}

/// CPU time of a process with all its threads, ended ones included.
fn cpu_of(pid: u32) -> Duration {
    // What clock_getcpuclockid(3) computes: ~pid in the upper bits, CPUCLOCK_SCHED (2) in the lower.
    let clock = (!(pid as i32) << 3) | 2;
    let mut t = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `t` outlives the call. Fails if the process is gone, and leaves zero.
    unsafe { libc::clock_gettime(clock, &mut t) };
    Duration::new(t.tv_sec as u64, t.tv_nsec as u32)
}

/// All living processes below `root`.
fn descendants(root: u32) -> BTreeSet<u32> {
    let mut children: HashMap<u32, Vec<u32>> = HashMap::new();
    for pid in fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|e| e.file_name().to_str()?.parse::<u32>().ok())
    {
        if let Some(parent) = parent(pid) {
            children.entry(parent).or_default().push(pid);
        }
    }
    let (mut found, mut open) = (BTreeSet::new(), vec![root]);
    while let Some(pid) = open.pop() {
        for child in children.get(&pid).into_iter().flatten() {
            if found.insert(*child) {
                open.push(*child);
            }
        }
    }
    found
}

/// Parent of `pid`, unless it is a zombie.
fn parent(pid: u32) -> Option<u32> {
    state(pid).filter(|(state, _)| *state != 'Z').map(|(_, parent)| parent)
}

/// State letter and parent of `pid`, if it exists (proc(5)).
fn state(pid: u32) -> Option<(char, u32)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command, in parentheses, may contain anything.
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    Some((state, fields.next()?.parse().ok()?))
}

/// Kills everything below `root`, not `root` itself, and returns what it killed. `root` must be stopped, or
/// be ourselves: a server whose worker is killed starts another one.
fn kill_tree(root: u32) -> BTreeSet<u32> {
    // Stop from the top down first: what is stopped starts nothing, and keeps its children's ids from
    // being reaped and reused.
    let mut found = BTreeSet::new();
    loop {
        let new: Vec<_> = descendants(root).difference(&found).copied().collect();
        if new.is_empty() {
            break;
        }
        for pid in new {
            stop(pid);
            found.insert(pid);
        }
    }
    for pid in &found {
        signal(*pid, libc::SIGKILL);
    }
    found
}

/// Stops `pid`, and returns when it has stopped or ended: a fork in flight is then complete and visible.
fn stop(pid: u32) {
    signal(pid, libc::SIGSTOP);
    let begin = Instant::now();
    // A process in an uninterruptible call stops only after it; it starts nothing meanwhile.
    while state(pid).is_some_and(|(state, _)| !"TtZX".contains(state)) && begin.elapsed() < PATIENCE {
        std::thread::yield_now();
    }
}

/// Kills whatever is left below this process; for the end of a run.
pub fn sweep() {
    kill_tree(std::process::id()).into_iter().for_each(reap);
}

/// Returns when `pid`, which was killed, is gone. It is our child, or becomes it when its parent is gone.
fn reap(pid: u32) {
    let begin = Instant::now();
    while state(pid).is_some() && begin.elapsed() < PATIENCE {
        // SAFETY: a null status is allowed; fails if `pid` is not our child yet.
        unsafe { libc::waitpid(pid as i32, std::ptr::null_mut(), libc::WNOHANG) };
        std::thread::yield_now();
    }
}

/// Makes the orphans of our children our children (prctl(2)), so that none of them gets lost.
fn adopt_orphans() {
    // SAFETY: PR_SET_CHILD_SUBREAPER takes integers and cannot fail.
    unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) };
}

/// Sends `signal`; a process that has ended in the meantime does not mind.
fn signal(pid: u32, signal: i32) {
    // SAFETY: no memory is involved. The callers name processes that they have started.
    unsafe { libc::kill(pid as i32, signal) };
}

/// A port that was free a moment ago.
pub fn free_port() -> io::Result<u16> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// Full path of a program in PATH, or in the system directories that PATH may lack.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/bin", "/usr/sbin", "/bin", "/sbin", "/usr/local/bin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(system).map(|d| d.join(name)).find(|p| p.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, scratch: &Scratch) -> Job {
        let mut c = Command::new("/bin/sh");
        c.args(["-c", script]);
        Job::start(c, None, scratch.path()).unwrap()
    }

    #[test]
    fn jobs_are_measured_killed_with_their_children_and_cleaned_up() {
        let scratch = Scratch::new("jobs").unwrap();
        let done = shell("echo one; echo two", &scratch).finish(Duration::ZERO).unwrap();
        assert_eq!(done.output, "one\ntwo\n");
        assert!(shell("exit 3", &scratch).finish(Duration::ZERO).is_err());

        let mut parent = shell("sleep 1000 & echo $!; wait", &scratch);
        let child: u32 = parent.first_line().unwrap().parse().unwrap();
        assert!(parent.tree().contains(&child));
        assert!(parent.pss() > 0);
        drop(parent);
        assert_eq!(state(child), None);

        let mut early = shell("exit 0", &scratch);
        assert!(early.wait_listening(1).unwrap_err().to_string().contains("ended early"));
        let path = scratch.path().to_owned();
        drop(early);
        drop(scratch);
        assert!(!path.exists());
    }

    #[test]
    fn what_was_stopped_is_stopped_on_return_and_starts_nothing() {
        let scratch = Scratch::new("stop").unwrap();
        // Replaces its child whenever that ends, as nginx's master does.
        let mut supervisor = shell("while :; do sleep 1000 & echo $!; wait; done", &scratch);
        let worker: u32 = supervisor.first_line().unwrap().parse().unwrap();
        stop(supervisor.pid());
        assert_eq!(state(supervisor.pid()).unwrap().0, 'T');
        assert_eq!(kill_tree(supervisor.pid()), BTreeSet::from([worker]));
        assert_eq!(state(supervisor.pid()).unwrap().0, 'T');
        assert_eq!(supervisor.output().lines().count(), 1);
        drop(supervisor);
        reap(worker);
        assert_eq!(state(worker), None);
    }

    #[test]
    fn cpu_time_is_counted() {
        let before = cpu_of(std::process::id());
        assert!(before > Duration::ZERO);
        assert_eq!(cpu_of(u32::MAX >> 4), Duration::ZERO);
    }
}
