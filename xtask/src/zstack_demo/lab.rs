//! Processes, network namespaces and files of demonstrations. None of them outlives this process, however it ends.

use crate::step::{self, Guard};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// No namespace lives longer, in seconds.
const LIFE: &str = "300";
/// How the directory of the files is called, before the number of this process.
const FILES_OF: &str = "zstack-demo-";
/// How long something may take that takes moments.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Makes a directory, the first argument, and removes it when it is told to end or this process ends.
const KEEPER: &str =
    "trap 'kill $!; rm -rf \"$0\"; exit' TERM INT HUP; sleep \"$1\" & mkdir \"$0\"; wait; rm -rf \"$0\"";

/// A program that gets a signal when this process ends, even if this process is killed.
fn bound(signal: &str, program: impl AsRef<OsStr>) -> Command {
    let mut c = Command::new("setpriv");
    c.args(["--pdeathsig", signal]).arg(program).stdin(Stdio::null());
    c
}

/// Runs a command to its end; its output.
pub fn output(mut c: Command) -> Result<String, String> {
    let out = c.output().map_err(|e| format!("{}: {e}", step::show(&c)))?;
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    if out.status.success() {
        return Ok(text);
    }
    Err(format!("{}: {}\n{text}{}", step::show(&c), out.status, String::from_utf8_lossy(&out.stderr)))
}

/// A network namespace without a name: it lasts as long as a process of this one's.
pub struct Namespace(Guard);

impl Namespace {
    /// A new one, in which only `lo` is.
    pub fn new() -> Result<Namespace, String> {
        let mut c = bound("KILL", "unshare");
        let guard = c.args(["-n", "sleep", LIFE]).spawn().map(Guard).map_err(|e| format!("unshare: {e}"))?;
        let own = std::fs::read_link("/proc/self/ns/net").ok();
        let new = Namespace(guard);
        let apart = || std::fs::read_link(new.path()).is_ok_and(|theirs| Some(theirs) != own);
        if !step::poll_until(PATIENCE, apart) {
            return Err("unshare -n made no network namespace: are you root?".into());
        }
        new.ip("link set lo up")?;
        Ok(new)
    }

    /// The process that holds it.
    pub fn pid(&self) -> u32 {
        self.0.0.id()
    }

    /// The file that stands for it.
    pub fn path(&self) -> String {
        format!("/proc/{}/ns/net", self.pid())
    }

    /// A program in it.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        self.bound("KILL", program)
    }

    fn bound(&self, signal: &str, program: impl AsRef<OsStr>) -> Command {
        let mut c = bound(signal, "nsenter");
        c.arg(format!("--net={}", self.path())).arg("--").arg(program);
        c
    }

    /// Runs `ip` in it.
    pub fn ip(&self, words: &str) -> Result<(), String> {
        let mut c = self.command("ip");
        c.args(words.split(' '));
        output(c).map(drop)
    }

    /// A veth pair, `own` here and `theirs` there, without offloads: what it carries are packets of 1500 bytes at most, whoever sends them.
    pub fn join(&self, own: &str, other: &Namespace, theirs: &str) -> Result<(), String> {
        self.ip(&format!("link add {own} type veth peer name {theirs} netns {}", other.pid()))?;
        for (namespace, name) in [(self, own), (other, theirs)] {
            let mut c = namespace.command("ethtool");
            c.args(["-K", name, "tx", "off", "tso", "off", "gso", "off", "gro", "off"]);
            output(c)?;
            namespace.ip(&format!("link set {name} up"))?;
        }
        Ok(())
    }

    /// Starts a server. It is told to end, with SIGTERM, when this process ends: nginx's master takes its worker along.
    pub fn serve(
        &self,
        program: impl AsRef<OsStr>,
        words: &[&str],
        settings: &[(&str, &str)],
    ) -> Result<Server, String> {
        let mut c = self.bound("TERM", program);
        c.args(words).envs(settings.iter().copied()).stdout(Stdio::null());
        c.spawn().map(Server).map_err(|e| format!("{}: {e}", step::show(&c)))
    }
}

/// A server, with the processes that it starts.
pub struct Server(Child);

impl Server {
    /// Its process.
    pub fn pid(&self) -> u32 {
        self.0.id()
    }

    /// Whether it still runs.
    pub fn lives(&mut self) -> bool {
        matches!(self.0.try_wait(), Ok(None))
    }
}

impl Server {
    /// Ends it: who has not done as told so long after SIGTERM is killed, with those that he has started.
    fn end(&mut self, limit: Duration) {
        step::signal(self.pid(), libc::SIGTERM);
        if step::poll_until(limit, || !self.lives()) {
            return;
        }
        // While it is stopped it starts nobody anew, and nobody else gets the numbers of those that it has started.
        step::signal(self.pid(), libc::SIGSTOP);
        descendants(self.pid()).into_iter().for_each(|pid| step::signal(pid, libc::SIGKILL));
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.lives() {
            self.end(Duration::from_secs(5));
        }
    }
}

/// The directory of the demonstration's files. A process of its own removes it if this one is killed.
pub struct Files {
    path: PathBuf,
    _keeper: Server,
}

impl Files {
    /// A new one.
    pub fn new() -> Result<Files, String> {
        let path = std::env::temp_dir().join(format!("{FILES_OF}{}", std::process::id()));
        let mut c = bound("TERM", "sh");
        c.args(["-c", KEEPER]).arg(&path).arg(LIFE);
        let keeper = c.spawn().map(Server).map_err(|e| format!("{}: {e}", step::show(&c)))?;
        if !step::poll_until(PATIENCE, || path.is_dir()) {
            return Err(format!("{}: it was not made", path.display()));
        }
        Ok(Files { path, _keeper: keeper })
    }

    /// A file's path, or a directory's.
    pub fn at(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// The same as text.
    pub fn name(&self, name: &str) -> String {
        self.at(name).display().to_string()
    }

    /// Makes a directory in which every user may make files.
    pub fn directory_for_all(&self, name: &str) -> Result<(), String> {
        let path = self.at(name);
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o1777);
        let made = std::fs::create_dir_all(&path).and_then(|()| std::fs::set_permissions(&path, mode));
        made.map_err(|e| format!("{}: {e}", path.display()))
    }

    /// Writes a file, in a directory that is made.
    pub fn write(&self, name: &str, contents: impl AsRef<[u8]>) -> Result<(), String> {
        let path = self.at(name);
        let made = std::fs::create_dir_all(path.parent().unwrap_or(&self.path));
        made.and_then(|()| std::fs::write(&path, contents)).map_err(|e| format!("{}: {e}", path.display()))
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.path);
    }
}

/// Removes the files of demonstrations of which nothing is left.
pub fn sweep() {
    for entry in std::fs::read_dir(std::env::temp_dir()).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let pid = name.to_str().and_then(|n| n.strip_prefix(FILES_OF)).and_then(|p| p.parse::<u32>().ok());
        if pid.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

/// CPU seconds that a process with its threads, and those that it has started, have had so far, if they still live (proc(5), schedstat: the first
/// number, in nanoseconds).
pub fn cpu_of(pid: u32) -> f64 {
    let of = |pid: u32| -> f64 {
        let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
        let one = |path: PathBuf| {
            let stat = std::fs::read_to_string(path.join("schedstat")).unwrap_or_default();
            stat.split(' ').next().and_then(|n| n.parse::<f64>().ok()).unwrap_or(0.0) / 1e9
        };
        tasks.map(|task| one(task.path())).sum()
    };
    of(pid) + descendants(pid).into_iter().map(of).sum::<f64>()
}

/// CPU seconds of this process' children that have ended, to a hundredth.
pub fn cpu_of_ended() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // Behind the name, which may contain anything: the state is the first field, cutime and cstime are the fourteenth and fifteenth.
    let fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_ascii_whitespace();
    fields.skip(13).take(2).filter_map(|ticks| ticks.parse::<f64>().ok()).sum::<f64>() / 100.0
}

fn parent(pid: u32) -> Option<u32> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(1)?.parse().ok()
}

/// The living processes below one.
pub fn descendants(pid: u32) -> Vec<u32> {
    let all = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let all: Vec<(u32, u32)> =
        all.filter_map(|e| e.file_name().to_str()?.parse().ok()).filter_map(|pid| Some((pid, parent(pid)?))).collect();
    let mut found = vec![pid];
    let mut at = 0;
    while let Some(&above) = found.get(at) {
        found.extend(all.iter().filter(|(_, parent)| *parent == above).map(|(pid, _)| pid));
        at += 1;
    }
    found.split_off(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_time_of_this_process_is_found() {
        assert!(cpu_of(std::process::id()) > 0.0 && cpu_of(u32::MAX) == 0.0);
        let mut c = Command::new("sh");
        c.args(["-c", "i=0; while [ $i -lt 30000 ]; do i=$((i+1)); done"]);
        assert!(c.status().is_ok_and(|s| s.success()));
        assert!(cpu_of_ended() > 0.0);
    }

    #[test]
    fn a_server_goes_with_what_it_has_started() {
        let mut c = Command::new("sh");
        c.args(["-c", "trap '' TERM; sleep 1000 & wait; sleep 1000"]).stdin(Stdio::null()).stdout(Stdio::null());
        let mut server = Server(c.spawn().unwrap());
        let children = || descendants(server.pid());
        assert!(step::poll_until(PATIENCE, || !children().is_empty()));
        let child = children()[0];
        server.end(Duration::from_millis(100));
        assert!(step::poll_until(PATIENCE, || parent(child).is_none()) && !server.lives());
    }

    #[test]
    fn files_go_with_their_keeper_or_with_their_owner() {
        let files = Files::new().unwrap();
        files.write("a/b", "c").unwrap();
        let path = files.path.clone();
        step::signal(files._keeper.pid(), libc::SIGTERM);
        assert!(step::poll_until(PATIENCE, || !path.exists()));
        drop(files);
        let files = Files::new().unwrap();
        files.write("a/b", "c").unwrap();
        drop(files);
        assert!(!path.exists());
    }
}
