//! How the tests run programs that use `culvert.h` or the crate: with the library preloaded, linked, or without it.
//!
//! - `CULVERT_LIB`: the library under test, else `target/release/libculvert.so` of this workspace.
//! - `CULVERT_API_CALLS`: how many calls each thread of the mixed test makes, else 2,000.

pub mod messages;
pub mod stream;

use std::io::{BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc;
use std::time::Duration;

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(600);

/// This workspace's directory.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The library under test.
pub fn library() -> PathBuf {
    std::env::var_os("CULVERT_LIB").map_or_else(
        || {
            let target = std::env::var_os("CARGO_TARGET_DIR").map_or(root().join("target"), PathBuf::from);
            target.join("release/libculvert.so")
        },
        PathBuf::from,
    )
}

/// How a program gets the library.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum With {
    /// Not at all, or by being linked.
    Nothing,
    /// LD_PRELOAD.
    Preload,
}

/// A directory of its own for a test, removed with it: programs, and the registry.
pub struct Lab(PathBuf);

impl Lab {
    /// For the test of this name.
    pub fn new(name: &str) -> Lab {
        let dir = std::env::temp_dir().join(format!("culvert-api-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("a directory");
        Lab(dir)
    }

    /// Its path.
    pub fn dir(&self) -> &Path {
        &self.0
    }

    /// `program`, to be run.
    pub fn command(&self, program: impl AsRef<Path>, with: With) -> Command {
        let mut c = Command::new(program.as_ref());
        c.env("CULVERT_DIR", &self.0).env("LD_LIBRARY_PATH", library().parent().expect("a directory"));
        match with {
            With::Preload => c.env("LD_PRELOAD", library()),
            With::Nothing => c.env_remove("LD_PRELOAD"),
        };
        c
    }

    /// Compiles an example of `culvert.h`, or a test.
    pub fn compile(&self, source: &Path, name: &str, flags: &[&str]) -> PathBuf {
        let out = self.0.join(name);
        let lib = library();
        let mut c = Command::new("cc");
        c.args(["-std=gnu11", "-O1", "-g", "-Wall", "-Wextra", "-Wpedantic", "-Wno-overlength-strings", "-Werror"]);
        c.arg("-I").arg(root().join("api/include")).arg("-o").arg(&out).arg(source).args(flags);
        c.arg("-L").arg(lib.parent().expect("a directory")).args(["-lculvert", "-pthread"]);
        let output = c.output().expect("cc");
        assert!(output.status.success(), "{source:?}: {}", String::from_utf8_lossy(&output.stderr));
        out
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A server that prints its port first. It is ended with the test.
pub struct Server {
    child: Child,
    out: BufReader<ChildStdout>,
    /// Its port.
    pub port: u16,
}

impl Server {
    /// Starts it.
    pub fn start(command: Command) -> Server {
        let name = format!("{command:?}");
        let mut port = 0;
        let mut server = Server::start_with(command, |line| {
            port = line.trim().parse().unwrap_or_else(|_| panic!("{name}: {line:?}"));
        });
        server.port = port;
        server
    }

    /// Starts a program that is told what to do by its standard input.
    pub fn start_told(mut command: Command) -> (Server, ChildStdin) {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("a program");
        let (told, out) = (child.stdin.take().expect("its input"), child.stdout.take().expect("its output"));
        (Server { child, out: BufReader::new(out), port: 0 }, told)
    }

    /// Starts a program that has no port, and prints something else first.
    pub fn start_with(mut command: Command, first: impl FnOnce(&str)) -> Server {
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("a server");
        let out = BufReader::new(child.stdout.take().expect("its output"));
        let mut server = Server { child, out, port: 0 };
        first(&server.line());
        server
    }

    /// Kills it.
    pub fn kill(&mut self) {
        self.child.kill().expect("SIGKILL");
    }

    /// Starts a program that is to be killed; what it prints first.
    pub fn kill_once_it_speaks(mut command: Command) -> String {
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("a program");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("its output")).read_line(&mut line).expect("a line");
        child.kill().expect("SIGKILL");
        child.wait().expect("its end");
        line
    }

    /// How many descriptors it has, and mappings of memory that it shares by a channel.
    pub fn holds(&self) -> (usize, usize) {
        let proc = PathBuf::from(format!("/proc/{}", self.child.id()));
        let maps = std::fs::read_to_string(proc.join("maps")).expect("its mappings");
        let fds = std::fs::read_dir(proc.join("fd")).expect("its descriptors").count();
        (fds, maps.lines().filter(|l| l.contains("memfd:")).count())
    }

    /// What it prints next.
    pub fn line(&mut self) -> String {
        let mut line = String::new();
        self.out.read_line(&mut line).expect("a line");
        line
    }

    /// Waits for its end, whatever it is.
    pub fn ends(mut self) -> ExitStatus {
        self.child.wait().expect("its end")
    }

    /// Waits for its end, and what it has printed.
    pub fn wait(mut self) -> String {
        let mut text = String::new();
        self.out.read_to_string(&mut text).expect("its output");
        assert!(self.child.wait().expect("its end").success());
        text
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs a program to its end, which comes in time.
pub fn run(mut command: Command) -> Output {
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("a program");
    let pid = child.id();
    let (tell, told) = mpsc::channel();
    std::thread::spawn(move || tell.send(child.wait_with_output()));
    let Ok(output) = told.recv_timeout(PATIENCE) else {
        // SAFETY: a child of this process that nobody has waited for.
        unsafe { libc::kill(pid as i32, libc::SIGKILL) };
        panic!("{command:?} does not end");
    };
    output.expect("its output")
}

/// The same of one that succeeds; what it has printed.
pub fn succeeds(command: Command) -> String {
    let name = format!("{command:?}");
    let output = run(command);
    assert!(
        output.status.success(),
        "{name}: {} {}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).expect("text")
}

/// A server of files, run by `command` and told a directory, answers a client with what is in them.
pub fn files_are_served(lab: &Lab, command: &Command) {
    let files = lab.dir().join("files");
    std::fs::create_dir_all(&files).expect("a directory");
    let content = |n: usize| (0..n).map(|i| (i ^ i >> 8 ^ i >> 16) as u8).collect::<Vec<u8>>();
    for (name, n) in [("empty", 0), ("small", 1000), ("large", 9_000_000)] {
        std::fs::write(files.join(name), content(n)).expect("a file");
    }
    let mut server = Command::new(command.get_program());
    for (key, value) in command.get_envs() {
        match value {
            Some(value) => server.env(key, value),
            None => server.env_remove(key),
        };
    }
    server.arg(&files);
    let server = Server::start(server);
    let preloaded = command.get_envs().any(|(k, v)| k == "LD_PRELOAD" && v.is_some());
    let with = if preloaded { With::Preload } else { With::Nothing };
    let url = |name: &str| format!("http://127.0.0.1:{}/{name}", server.port);
    // One connection for all of them, which comes to a ring meanwhile.
    let names = ["small", "small", "empty", "large", "small", "large", "empty", "small", "large", "large"];
    let mut curl = lab.command("curl", with);
    curl.args(["-s", "-S", "--fail"]);
    for (i, name) in names.iter().enumerate() {
        curl.arg("-o").arg(lab.dir().join(format!("got{i}"))).arg(url(name));
    }
    succeeds(curl);
    for (i, name) in names.iter().enumerate() {
        let got = std::fs::read(lab.dir().join(format!("got{i}"))).expect("an answer");
        assert!(got == std::fs::read(files.join(name)).expect("a file"), "{i} {name}: {} bytes", got.len());
    }
    for (name, status) in [("none", "404"), ("%00", "404"), ("large", "200")] {
        let mut curl = lab.command("curl", with);
        curl.args(["-s", "-I", "-o", "/dev/null", "-w", "%{http_code}"]).arg(url(name));
        assert_eq!(succeeds(curl), status);
    }
}
