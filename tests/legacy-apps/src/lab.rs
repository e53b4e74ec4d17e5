//! A place for one run of a scenario: a directory, free ports, programs with guards.

use crate::{Mode, PATIENCE, poll_until, procs, stat, wait_for};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Write;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

/// Which end of the connections a program is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Side {
    /// Accepts connections.
    Server,
    /// Makes connections.
    Client,
}

/// Culvert's log, of all programs of a lab.
pub const LOG: &str = "culvert.log";

/// One run of a scenario. Whatever it started is gone when it is dropped.
pub struct Lab {
    /// Which sides run under culvert.
    pub mode: Mode,
    name: String,
    dir: PathBuf,
}

/// What a program that ran to its end left.
pub struct Outcome {
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output.
    pub stdout: Vec<u8>,
    /// Its standard error.
    pub stderr: String,
}

impl Outcome {
    /// Standard output as text, without white space at its end.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).trim_end().to_owned()
    }

    /// Fails the test unless the program ended with status 0.
    #[track_caller]
    pub fn success(self) -> Outcome {
        assert!(self.status.success(), "{}\nstdout: {}\nstderr: {}", self.status, self.text(), self.stderr);
        self
    }
}

static LABS: AtomicU32 = AtomicU32::new(0);

impl Lab {
    /// A fresh directory below the system's temporary one, that every user may enter.
    pub fn new(name: &str, mode: Mode) -> Lab {
        if mode != Mode::Native && !crate::native_only() {
            for artefact in [crate::library(), crate::culvert()] {
                assert!(artefact.exists(), "{} is missing: run `cargo build --release`", artefact.display());
            }
        }
        let unique = LABS.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("legacy-{name}-{}-{unique}", std::process::id()));
        fs::create_dir_all(&dir).expect("a directory for the test");
        // Workers and clients of other users write their own files here, and lines into the log.
        open_to_all(&dir);
        open_to_all_file(&dir.join(LOG));
        crate::evidence::allow_cores();
        Lab { mode, name: name.to_owned(), dir: dir.canonicalize().expect("the directory just made") }
    }

    /// Where its programs run and its files lie.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// `name` in the lab's directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Writes a file, readable by all, and returns its path.
    pub fn write(&self, name: &str, contents: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, contents).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        path
    }

    /// Compiles a program or library of `c/`, with the compiler that Rust links with.
    pub fn compile(&self, source: &str, options: &[&str]) -> PathBuf {
        let made = self.path(source.trim_end_matches(".c"));
        let mut cc = Command::new("cc");
        cc.arg("-O1").args(options).arg("-o").arg(&made).arg(crate::file("c").join(source));
        assert!(cc.status().expect("a C compiler").success(), "{source} does not compile");
        made
    }

    /// Does `side` run under culvert?
    pub fn accelerated(&self, side: Side) -> bool {
        let wanted = match self.mode {
            Mode::Native => false,
            Mode::Both => true,
            Mode::ServerOnly => side == Side::Server,
            Mode::ClientOnly => side == Side::Client,
        };
        wanted && !crate::native_only()
    }

    /// A command that will run in the lab's directory, under culvert if `side` is to be.
    pub fn command(&self, side: Side, program: impl AsRef<OsStr>) -> Command {
        let mut c = Command::new(program);
        c.current_dir(&self.dir).stdin(Stdio::null());
        c.env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin").env("LC_ALL", "C");
        c.env_remove("LD_PRELOAD");
        // A pyenv or virtual environment of the caller must not decide which Python the tests run.
        for key in ["PYTHONHOME", "PYTHONPATH", "VIRTUAL_ENV"] {
            c.env_remove(key);
        }
        if self.accelerated(side) {
            c.env("LD_PRELOAD", crate::library());
            if std::env::var_os("CULVERT_LOG").is_none() {
                c.env("CULVERT_LOG", "debug").env("CULVERT_LOG_FILE", self.path(LOG));
            }
        }
        c
    }

    /// The packages' own helper program as `side`.
    pub fn peer(&self, side: Side) -> Command {
        self.command(side, peer_program())
    }

    /// Debian's Python as `side`, running `py/script` of this package.
    pub fn python(&self, side: Side, script: &str) -> Command {
        let mut c = self.command(side, "/usr/bin/python3.11");
        c.arg("-u").arg(crate::file("py").join(script)).env("PYTHONDONTWRITEBYTECODE", "1");
        c
    }

    /// Starts `command`; its output goes to files.
    pub fn start(&self, label: &str, command: &mut Command) -> Proc {
        let unique = LABS.fetch_add(1, Ordering::Relaxed);
        let out = self.path(&format!("{label}.{unique}.out"));
        let err = self.path(&format!("{label}.{unique}.err"));
        command.stdout(File::create(&out).expect("output file")).stderr(File::create(&err).expect("error file"));
        // The process keeps its own descriptions of these files: other users need no right to open them.
        let child = command.spawn().unwrap_or_else(|e| panic!("{label}: {command:?}: {e}"));
        Proc { label: label.to_owned(), child, out, err, status: None }
    }

    /// Starts a server and waits until it listens on `port`.
    #[track_caller]
    pub fn serve(&self, label: &str, port: u16, command: &mut Command) -> Proc {
        let mut p = self.start(label, command);
        let ready = poll_until(PATIENCE, || procs::listening(port) || p.ended().is_some());
        assert!(ready && procs::listening(port), "{label} does not listen on {port}:\n{}", p.stderr());
        p
    }

    /// Runs `command` to its end.
    #[track_caller]
    pub fn run(&self, label: &str, command: &mut Command) -> Outcome {
        self.start(label, command).wait(PATIENCE)
    }

    /// Runs `command` to its end with `input` on its standard input.
    #[track_caller]
    pub fn feed(&self, label: &str, command: &mut Command, input: &[u8]) -> Outcome {
        let file = self.write(&format!("{label}.in"), input);
        command.stdin(File::open(file).expect("input file"));
        self.run(label, command)
    }

    /// Begins to watch for a connection of this lab on path shm.
    pub fn watch(&self) -> Watch {
        let wanted = self.mode == Mode::Both && crate::shm_expected();
        let stop = Arc::new(AtomicBool::new(false));
        let last = Arc::new(Mutex::new(String::from("culvert stat was not asked yet")));
        let thread = wanted.then(|| {
            let (stop, last, dir) = (Arc::clone(&stop), Arc::clone(&last), self.dir.clone());
            std::thread::spawn(move || watch_for_shm(&dir, &stop, &last))
        });
        let log = self.dir.join(LOG);
        let from = fs::metadata(&log).map_or(0, |m| m.len() as usize);
        Watch { thread, stop, last, log, from }
    }

    /// Waits until `pid` has a connection on path shm (both ends under culvert only).
    #[track_caller]
    pub fn assert_shm(&self, pid: u32) {
        if self.mode != Mode::Both || !crate::shm_expected() {
            return;
        }
        let mut last = Ok(Vec::new());
        let seen = poll_until(PATIENCE, || {
            last = stat::connections();
            last.iter().flatten().any(|c| c.pid == pid && c.path == crate::path_expected())
        });
        assert!(seen, "process {pid} has no connection on path shm: {last:?}");
    }

    /// Everything must have ended by now; fails naming what has not.
    #[track_caller]
    pub fn finish(&self) {
        let gone = poll_until(Duration::from_secs(15), || procs::working_in(&self.dir).is_empty());
        let left: Vec<_> =
            procs::working_in(&self.dir).into_iter().map(|p| format!("{p} ({})", procs::command_line(p))).collect();
        assert!(gone, "{} {:?} left processes behind: {}", self.name, self.mode, left.join(", "));
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for pid in procs::working_in(&self.dir) {
            procs::signal(pid, libc::SIGKILL);
        }
        if std::thread::panicking() {
            crate::evidence::show_command();
            crate::evidence::show_cores(&self.dir);
            eprintln!("--- {} {:?}: what the programs said, and culvert's log ({LOG})", self.name, self.mode);
            for e in fs::read_dir(&self.dir).into_iter().flatten().flatten() {
                let path = e.path();
                if path.extension().is_some_and(|x| x == "err" || x == "log") {
                    let text = String::from_utf8_lossy(&fs::read(&path).unwrap_or_default()).into_owned();
                    let lines: Vec<&str> = text.lines().collect();
                    let tail =
                        lines[lines.len().saturating_sub(if path.ends_with(LOG) { 60 } else { 12 })..].join("\n");
                    if !tail.is_empty() {
                        eprintln!("{}:\n{tail}", path.display());
                    }
                }
            }
        }
        if std::env::var_os("LEGACY_KEEP").is_none() {
            let _ = fs::remove_dir_all(&self.dir);
        } else {
            eprintln!("kept: {}", self.dir.display());
        }
    }
}

/// A running program. Killed when dropped.
pub struct Proc {
    label: String,
    child: Child,
    out: PathBuf,
    err: PathBuf,
    status: Option<ExitStatus>,
}

impl Proc {
    /// Process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its standard input, if it was made a pipe.
    pub fn stdin(&mut self) -> Option<ChildStdin> {
        self.child.stdin.take()
    }

    /// What it has written to standard output so far.
    pub fn stdout(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.out).unwrap_or_default()).into_owned()
    }

    /// What it has written to standard error so far.
    pub fn stderr(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.err).unwrap_or_default()).into_owned()
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        if self.status.is_none() {
            self.status = self.child.try_wait().expect("waiting for a child");
        }
        self.status
    }

    /// Sends `signal`.
    pub fn signal(&self, signal: i32) {
        // Not reaped yet (`Child` reaps only in try_wait and wait), so the id is still this process's.
        if self.status.is_none() {
            procs::signal(self.pid(), signal);
        }
    }

    /// Waits until it ends by itself; fails the test if it does not within `limit`.
    #[track_caller]
    pub fn wait(mut self, limit: Duration) -> Outcome {
        // Over a wire each message takes some times as long, on a busy machine above all: several processes are on its way.
        let limit = if crate::remote() { 4 * limit } else { limit };
        let done = poll_until(limit, || self.ended().is_some());
        assert!(done, "{} hangs: {}", self.label, self.describe());
        Outcome {
            status: self.status.expect("it has ended"),
            stdout: fs::read(&self.out).unwrap_or_default(),
            stderr: self.stderr(),
        }
    }

    /// What can be said about it when it does not do what it should.
    pub fn describe(&self) -> String {
        let short = |text: &str| {
            text.chars().filter(|c| c.is_ascii_graphic() || " \n".contains(*c)).take(500).collect::<String>()
        };
        let pid = self.pid();
        // Of all programs of the lab: what hangs is often the peer, or the peer's peer.
        let lab = procs::working_in(self.out.parent().expect("the lab's directory"));
        let all = stat::connections().unwrap_or_default();
        let ours: Vec<_> = all.iter().filter(|c| lab.contains(&c.pid)).map(|c| format!("\n  {c:?}")).collect();
        format!(
            "process {pid} ({})\nstate {:?}\nconnections {}\nstdout {}\nstderr {}\n{}",
            procs::command_line(pid),
            procs::status(pid).map(|s| s.state),
            ours.concat(),
            short(&self.stdout()),
            short(&self.stderr()),
            lab.iter().map(|p| crate::evidence::backtrace(*p)).collect::<String>()
        )
    }

    /// Sends `signal` and waits for the end.
    #[track_caller]
    pub fn stop(self, signal: i32) -> Outcome {
        self.signal(signal);
        self.wait(PATIENCE)
    }

    /// Waits until the program has printed two more lines: for a peer that prints one for each hundred exchanges, proof that
    /// they go on.
    #[track_caller]
    pub fn must_progress(&self, what: &str) {
        let lines = || self.stdout().lines().count();
        let before = lines();
        wait_for(what, PATIENCE, || lines() > before + 1);
    }
}

impl Drop for Proc {
    fn drop(&mut self) {
        if self.ended().is_none() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// Looks for a connection on path shm while a load runs.
pub struct Watch {
    thread: Option<JoinHandle<bool>>,
    stop: Arc<AtomicBool>,
    last: Arc<Mutex<String>>,
    log: PathBuf,
    /// How long the log was when the watch began, in bytes.
    from: usize,
}

impl Watch {
    /// Ends the watch, and fails unless there was a connection on path shm (both ends under culvert only).
    #[track_caller]
    pub fn check(mut self, what: &str) {
        assert!(self.seen(), "{what}: no connection was on path shm; last answer: {}", self.last.lock().unwrap());
    }

    /// Ends the watch. Whether there was one, or need not be. On a busy machine the load may be over before `culvert stat` has answered; then the
    /// programs' log says it.
    pub fn seen(&mut self) -> bool {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().is_none_or(|thread| thread.join().expect("the watching thread")) || self.logged()
    }

    fn logged(&self) -> bool {
        let log = fs::read(&self.log).unwrap_or_default();
        String::from_utf8_lossy(log.get(self.from..).unwrap_or_default()).contains("ing on the ring from byte ")
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn watch_for_shm(dir: &Path, stop: &AtomicBool, last: &Mutex<String>) -> bool {
    while !stop.load(Ordering::Relaxed) {
        let answer = stat::connections();
        if let Ok(all) = &answer {
            let ours = procs::working_in(dir);
            if all.iter().any(|c| c.path == crate::path_expected() && ours.contains(&c.pid)) {
                return true;
            }
        }
        *last.lock().unwrap() = format!("{answer:?}");
        std::thread::sleep(Duration::from_millis(30));
    }
    false
}

/// A TCP port that nothing uses now, below those that the kernel gives to connecting sockets.
pub fn free_port() -> u16 {
    free_ports(1)
}

/// The first of `n` consecutive such ports. No port is given out twice by one test program before all were.
pub fn free_ports(n: u16) -> u16 {
    const FIRST: u32 = 12_000;
    const RANGE: u32 = 18_000;
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let base = std::process::id().wrapping_mul(97);
    loop {
        let at = base.wrapping_add(NEXT.fetch_add(u32::from(n), Ordering::Relaxed)) % RANGE;
        let port = (FIRST + at) as u16;
        let free = |p| TcpListener::bind(("0.0.0.0", p)).is_ok() && TcpListener::bind(("::", p)).is_ok();
        if (port..port + n).all(free) {
            return port;
        }
    }
}

/// The helper program, built by cargo with the tests.
pub fn peer_program() -> PathBuf {
    // The tests run from target/<profile>/deps; the program lies one directory up.
    let exe = std::env::current_exe().expect("the test's own path");
    let dir = exe.parent().and_then(Path::parent).expect("target directory");
    dir.join("legacy-peer")
}

/// Lets every user read, write and enter `dir`.
pub fn open_to_all(dir: &Path) {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(dir, fs::Permissions::from_mode(0o777)).expect("permissions");
}

/// Appends to `input` what a program reads as one line.
pub fn line(input: &mut ChildStdin, text: &str) {
    input.write_all(text.as_bytes()).and_then(|()| input.write_all(b"\n")).expect("the program reads its input");
}

/// Makes an empty file that every user may write.
fn open_to_all_file(path: &Path) {
    use std::os::unix::fs::PermissionsExt;
    fs::write(path, "").expect("a file in the lab");
    fs::set_permissions(path, fs::Permissions::from_mode(0o666)).expect("permissions");
}

/// Waits until `pid` is gone.
#[track_caller]
pub fn wait_gone(pid: u32) {
    wait_for(&format!("end of process {pid}"), PATIENCE, || !procs::alive(pid));
}

/// That nobody writes to the mailboxes of processes that he does not know. Peers which answer whatever comes (`py/hostile.py`) run meanwhile: this
/// holds until the test program ends.
pub fn strangers_stay_away() {
    static HELD: std::sync::OnceLock<fs::File> = std::sync::OnceLock::new();
    HELD.get_or_init(|| mailboxes(libc::LOCK_SH));
}

/// Leave to write to all mailboxes of this machine, for as long as the file is open: no test runs that answers whatever comes.
pub fn stranger() -> fs::File {
    mailboxes(libc::LOCK_EX)
}

fn mailboxes(how: i32) -> fs::File {
    use std::os::fd::AsRawFd;
    let file = fs::File::create(std::env::temp_dir().join("legacy-mailboxes.lock")).expect("a file");
    // SAFETY: flock touches no memory; the descriptor is the file's.
    while unsafe { libc::flock(file.as_raw_fd(), how) } != 0 {
        let e = std::io::Error::last_os_error();
        assert_eq!(e.kind(), std::io::ErrorKind::Interrupted, "{e}");
    }
    file
}
