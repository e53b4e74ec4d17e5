//! Runs scripts: starts actors, gives them one step at a time, and decides what is finished and what is
//! left blocked.
//!
//! On the kernel a step has settled when its threads have answered or are asleep, since a wake-up happens
//! inside the call that causes it. When an expected trace is given, what is expected to finish is waited
//! for, so that a slow machine is no difference, and what is expected to block must be asleep. Between hosts it has
//! settled when nothing is on its way between them either (`wire`).

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::{Duration, Instant};

use crate::model::process_of;
use crate::raw;
use crate::script::{BLOCKED, HANG, Record, SKIPPED, SPINS, parse};
use crate::spaces::Spaces;
use crate::{task, wire};

/// Longest a step may take before it counts as a hang.
pub const WATCHDOG: Duration = Duration::from_secs(8);

/// Into which processes the library is preloaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// None.
    Native,
    /// All.
    All,
    /// Those whose names come first (`A`) in a pair; its forks follow it.
    First,
    /// All but the first.
    Others,
}

/// How actors are started.
#[derive(Clone, Debug)]
pub struct Setup {
    /// The program that has the `actor` subcommand.
    pub exe: PathBuf,
    /// The library to preload.
    pub lib: PathBuf,
    /// Into which processes.
    pub mode: Mode,
    /// Further environment of preloaded processes.
    pub env: Vec<(String, String)>,
}

struct Actor {
    pid: i32,
    tid: i32,
    /// What it takes for its children's ids is another process here: it is in a pid namespace.
    elsewhere: bool,
    control: OwnedFd,
    /// The operation that it was left blocked in.
    pending: Option<String>,
}

enum Settled {
    Reply(String),
    Asleep,
    Busy,
}

/// A running scenario. Dropping it kills every process that it started.
pub struct Conductor<'a> {
    setup: &'a Setup,
    address: String,
    listener: OwnedFd,
    actors: BTreeMap<String, Actor>,
    pids: BTreeSet<i32>,
    ports: Vec<String>,
    /// Processes that are stopped.
    stopped: BTreeSet<i32>,
    /// Processes that had a channel mapped when last looked at.
    pub with_channel: usize,
}

impl<'a> Conductor<'a> {
    /// Listens for actors; starts none yet.
    pub fn new(setup: &'a Setup) -> Conductor<'a> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let address = format!("differ-{}-{}", raw::getpid(), NEXT.fetch_add(1, Relaxed));
        // SAFETY: plain calls on a fresh descriptor, which OwnedFd then owns.
        let listener = unsafe {
            libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1);
            let fd = libc::socket(libc::AF_UNIX, libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC, 0);
            let (sa, len) = raw::address(&address);
            assert_eq!(libc::bind(fd, (&raw const sa).cast(), len), 0);
            assert_eq!(libc::listen(fd, 64), 0);
            OwnedFd::from_raw_fd(fd)
        };
        let (actors, pids) = (BTreeMap::new(), BTreeSet::new());
        Conductor {
            setup,
            address,
            listener,
            actors,
            pids,
            ports: Vec::new(),
            stopped: BTreeSet::new(),
            with_channel: 0,
        }
    }

    /// Performs one step.
    pub fn step(&mut self, line: &str, expected: Option<&Record>) -> Record {
        let mut results = Vec::new();
        let mut asked = Vec::new();
        for op in parse(line) {
            if op.who == "@" {
                let result = self.direct(op.text);
                results.push(("@".to_owned(), result));
                continue;
            }
            let text = self.substitute(op.text);
            match self.actors.get_mut(op.who) {
                Some(a) if a.pending.is_none() && !self.stopped.contains(&a.pid) => {
                    a.pending = Some(op.text.to_owned());
                    raw_send(&a.control, &text);
                    asked.push((op.who.to_owned(), op.timed));
                }
                _ => results.push((op.who.to_owned(), SKIPPED.to_owned())),
            }
        }
        // Operations of one step may depend on each other: none is taken for blocked while another moves.
        let joint = asked.len() > 1;
        for (who, timed) in &asked {
            let hint = expected.and_then(|e| e.of(who));
            let sure = *timed || joint || hint.is_some_and(|h| h != BLOCKED && h != HANG);
            let result = self.finish(who, sure);
            results.push((who.clone(), result));
        }
        wire::quiet();
        self.collect_freed(expected, &mut results);
        results.sort();
        Record { line: line.to_owned(), results }
    }

    /// Waits for the end of the operation that `who` was just given.
    fn finish(&mut self, who: &str, sure: bool) -> String {
        let text = self.actors[who].pending.clone().unwrap_or_default();
        let mut words = text.split(' ');
        let (op, name) = (words.next().unwrap_or(""), words.next().unwrap_or("").to_owned());
        if op == "exec" {
            return self.finish_exec(who, &name);
        }
        let settled = if sure { self.await_reply(who) } else { self.settle(who) };
        let busy = if sure { HANG } else { SPINS };
        let result = match settled {
            Settled::Reply(r) => r,
            Settled::Asleep => return BLOCKED.to_owned(),
            Settled::Busy => return busy.to_owned(),
        };
        let (shown, hidden) = result.split_once('\t').unwrap_or((&result, ""));
        match op {
            "listen" => self.ports.push(hidden.to_owned()),
            "fork" | "forkin" | "pspawn" | "thread" => {
                if !self.actors[who].elsewhere {
                    self.pids.extend(hidden.parse::<i32>().ok().filter(|p| *p > 0));
                }
                if !shown.contains("fail") && !self.welcome(&name) {
                    return format!("{shown} but {HANG}");
                }
            }
            _ => {}
        }
        shown.to_owned()
    }

    /// An exec'd image says hello anew; the threads of the old one are gone.
    fn finish_exec(&mut self, who: &str, successor: &str) -> String {
        let pid = self.actors[who].pid;
        // Their control descriptors stay open until the exec is over: a thread that sees the end of its
        // own would end the process.
        let names: Vec<String> = self.actors.iter().filter(|(_, a)| a.pid == pid).map(|(n, _)| n.clone()).collect();
        let mut old: BTreeMap<String, Actor> = names.into_iter().filter_map(|n| self.actors.remove_entry(&n)).collect();
        let until = Instant::now() + WATCHDOG;
        while Instant::now() < until {
            if readable(&self.listener, 1) {
                return if self.welcome(successor) { "exec ok".into() } else { HANG.into() };
            }
            let Some(actor) = old.get_mut(who) else { break };
            match receive(&actor.control) {
                // The control descriptor is closed by the exec, or because the process is dead: its parent
                // is this process or a dying one, so a dead process stays visible as a zombie.
                Some(text) if text.is_empty() => {
                    let dead = task::state(pid, pid).is_none_or(|s| s == 'Z') && !readable(&self.listener, 300);
                    if dead {
                        return "DIED".into();
                    }
                }
                Some(text) => {
                    actor.pending = None;
                    self.actors.append(&mut old);
                    return text;
                }
                None => {}
            }
        }
        HANG.into()
    }

    /// What earlier, blocked operations this step has set free.
    fn collect_freed(&mut self, expected: Option<&Record>, results: &mut Vec<(String, String)>) {
        loop {
            let waiting: Vec<String> = self
                .actors
                .iter()
                .filter(|(n, a)| a.pending.is_some() && !results.iter().any(|(who, _)| who == *n))
                .map(|(n, _)| n.clone())
                .collect();
            let before = results.len();
            for who in waiting {
                let (settled, busy) = match expected.and_then(|e| e.of(&who)) {
                    Some(_) => (self.await_reply(&who), HANG),
                    None => (self.settle(&who), SPINS),
                };
                match settled {
                    Settled::Reply(r) => {
                        let shown = r.split('\t').next().unwrap_or("").to_owned();
                        results.push((who, shown));
                    }
                    Settled::Asleep => {}
                    Settled::Busy => results.push((who, busy.to_owned())),
                }
            }
            if results.len() == before {
                return;
            }
        }
    }

    fn reply(&mut self, who: &str) -> Option<String> {
        let actor = self.actors.get_mut(who)?;
        let text = receive(&actor.control)?;
        actor.pending = None;
        if !text.is_empty() {
            return Some(text);
        }
        let pid = actor.pid;
        self.actors.remove(who);
        self.bury(pid);
        Some("DIED".into())
    }

    /// Waits for a reply only.
    fn await_reply(&mut self, who: &str) -> Settled {
        let until = Instant::now() + WATCHDOG;
        while Instant::now() < until {
            if let Some(a) = self.actors.get(who) {
                readable(&a.control, 1000);
            }
            if let Some(r) = self.reply(who) {
                return Settled::Reply(r);
            }
        }
        Settled::Busy
    }

    /// Waits until `who` has replied or sleeps. A thread that a wake-up is on its way to is not asleep.
    fn settle(&mut self, who: &str) -> Settled {
        let until = Instant::now() + WATCHDOG;
        let mut asleep = 0;
        while Instant::now() < until {
            let Some(a) = self.actors.get(who) else { return Settled::Reply("DIED".into()) };
            let state = task::state(a.pid, a.tid);
            if let Some(r) = self.reply(who) {
                return Settled::Reply(r);
            }
            asleep = if matches!(state, Some('S' | 'T')) { asleep + 1 } else { 0 };
            // What is on its way to it comes while it sleeps.
            if asleep == 3 && wire::quiet() {
                asleep = 0;
            }
            if asleep == 3 {
                return Settled::Asleep;
            }
            if let Some(a) = self.actors.get(who) {
                readable(&a.control, 1);
            }
        }
        Settled::Busy
    }

    /// Takes hellos until the one of `name`.
    fn welcome(&mut self, name: &str) -> bool {
        let until = Instant::now() + WATCHDOG;
        while Instant::now() < until {
            if !readable(&self.listener, 500) {
                continue;
            }
            // SAFETY: accept on our listener; OwnedFd owns the result.
            let control = unsafe {
                let fd = libc::accept4(
                    self.listener.as_raw_fd(),
                    std::ptr::null_mut(),
                    std::ptr::null_mut(),
                    libc::SOCK_CLOEXEC,
                );
                if fd < 0 {
                    continue;
                }
                OwnedFd::from_raw_fd(fd)
            };
            if !readable(&control, 5000) {
                return false;
            }
            let mut buf = [0u8; 256];
            // SAFETY: the buffer is live and of the stated length.
            let n = unsafe { libc::recv(control.as_raw_fd(), buf.as_mut_ptr().cast(), buf.len(), 0) };
            let text = String::from_utf8_lossy(&buf[..n.max(0) as usize]).into_owned();
            let mut words = text.split(' ');
            let (Some(who), Some(pid), Some(tid)) = (words.next(), words.next(), words.next()) else { return false };
            let number = |s: &str| s.parse().unwrap_or(0);
            // It says what it is called in its own namespace.
            let (its_pid, its_tid, pid) = (number(pid), number(tid), raw::peer(&control));
            let tid = task::named(pid, its_tid).unwrap_or(its_tid);
            let actor = Actor { pid, tid, elsewhere: pid != its_pid, control, pending: None };
            self.pids.insert(actor.pid);
            self.actors.insert(who.to_owned(), actor);
            if who == name {
                return true;
            }
        }
        false
    }

    /// The process called `name`.
    fn pid_of(&self, name: &str) -> Option<i32> {
        self.actors.iter().find(|(n, _)| process_of(n) == name).map(|(_, a)| a.pid)
    }

    /// What the conductor does itself: `start A [SPACES]`, `kill A`, `stop A`, `cont A`, `signal A.0 10`.
    fn direct(&mut self, text: &str) -> String {
        let words: Vec<&str> = text.split(' ').collect();
        match words[0] {
            "start" => self.start(words[1], words.get(2).copied().unwrap_or("-")),
            "kill" => {
                let Some(pid) = self.pid_of(words[1]) else { return SKIPPED.into() };
                // SAFETY: the process is ours and not yet reaped, so the pid is still its own.
                unsafe { libc::kill(pid, libc::SIGKILL) };
                self.actors.retain(|_, a| a.pid != pid);
                self.stopped.remove(&pid);
                if self.bury(pid) { "dead".into() } else { HANG.into() }
            }
            "stop" => {
                let Some(pid) = self.pid_of(words[1]).filter(|p| self.stopped.insert(*p)) else {
                    return SKIPPED.into();
                };
                // SAFETY: as above.
                unsafe { libc::kill(pid, libc::SIGSTOP) };
                if self.until(|| task::stopped(pid)) { "stopped".into() } else { HANG.into() }
            }
            "cont" => {
                let Some(pid) = self.pid_of(words[1]).filter(|p| self.stopped.remove(p)) else { return SKIPPED.into() };
                // SAFETY: as above.
                unsafe { libc::kill(pid, libc::SIGCONT) };
                "goes on".into()
            }
            "signal" => {
                let Some(a) = self.actors.get(words[1]).filter(|a| a.pending.is_some()) else {
                    return SKIPPED.into();
                };
                // SAFETY: as above.
                unsafe { libc::tgkill(a.pid, a.tid, words[2].parse().expect("a signal")) };
                "sent".into()
            }
            "channels" => {
                self.with_channel = self.pids.iter().filter(|p| task::has_channel(**p)).count();
                "looked".into()
            }
            other => panic!("unknown directive {other}"),
        }
    }

    fn start(&mut self, process: &str, spaces: &str) -> String {
        let name = format!("{process}.0");
        let spaces = Spaces::new(spaces);
        let mut command = Command::new(&self.setup.exe);
        command.args(["actor", &name, &self.address, ""]).stdin(Stdio::null()).env_remove("LD_PRELOAD");
        let preload = match self.setup.mode {
            Mode::Native => false,
            Mode::All => true,
            Mode::First => process == "A",
            Mode::Others => process != "A",
        };
        if preload {
            command.env("LD_PRELOAD", &self.setup.lib);
            command.envs(self.setup.env.iter().map(|(k, v)| (k, v)));
        }
        let inner = spaces.clone();
        // SAFETY: between fork and exec this makes system calls, and writes files; no other thread of ours holds a lock.
        unsafe { command.pre_exec(move || inner.enter()) };
        match spaces.around_fork(|| command.spawn()) {
            // The child is reaped through `pids`.
            Ok(Ok(child)) => self.pids.insert(child.id() as i32),
            Ok(Err(e)) | Err(e) => return format!("cannot start: {e}"),
        };
        if self.welcome(&name) { "started".into() } else { HANG.into() }
    }

    /// Waits until a dying process has released its files.
    fn bury(&mut self, pid: i32) -> bool {
        let buried = self.until(|| task::dead(pid));
        // The first process of a pid namespace takes the others with it.
        self.actors.retain(|_, a| !a.elsewhere || !task::dead(a.pid));
        buried
    }

    fn until(&self, so: impl Fn() -> bool) -> bool {
        let until = Instant::now() + WATCHDOG;
        while !so() {
            if Instant::now() > until {
                return false;
            }
            std::thread::yield_now();
        }
        true
    }

    fn substitute(&self, text: &str) -> String {
        let mut out = text.to_owned();
        for (i, port) in self.ports.iter().enumerate().rev() {
            out = out.replace(&format!("$P{i}"), port);
        }
        // A port that was never opened (a shrunk script): one that refuses.
        match out.find("$P") {
            Some(at) => {
                let end = out[at..].find(' ').map_or(out.len(), |n| at + n);
                out.replace_range(at..end, "1");
                out
            }
            None => out,
        }
    }

    /// Where every living process of the scenario sleeps.
    pub fn whereabouts(&self) -> String {
        self.pids.iter().map(|p| task::whereabouts(*p)).collect()
    }

    /// Names of the threads that can be given an operation.
    pub fn idle(&self) -> Vec<String> {
        let free = |a: &Actor| a.pending.is_none() && !self.stopped.contains(&a.pid);
        self.actors.iter().filter(|(_, a)| free(a)).map(|(n, _)| n.clone()).collect()
    }
}

impl Drop for Conductor<'_> {
    fn drop(&mut self) {
        for pid in &self.pids {
            // SAFETY: every one is ours (child, or orphan adopted as subreaper) and not yet reaped.
            unsafe { libc::kill(*pid, libc::SIGKILL) };
        }
        let until = Instant::now() + WATCHDOG;
        while !self.pids.is_empty() && Instant::now() < until {
            let mut status = 0;
            self.pids.retain(|pid| {
                // SAFETY: waits for a process of ours without blocking.
                let r = unsafe { libc::waitpid(*pid, &raw mut status, libc::WNOHANG) };
                // ECHILD: its own parent is a dying actor; the orphan arrives here when that is dead.
                r == 0 || (r < 0 && !task::dead(*pid))
            });
            std::thread::yield_now();
        }
    }
}

fn raw_send(fd: &OwnedFd, text: &str) {
    // SAFETY: the text is live and of the stated length. A dead actor is noticed when its reply is read.
    unsafe { libc::send(fd.as_raw_fd(), text.as_ptr().cast(), text.len(), libc::MSG_NOSIGNAL) };
}

/// One message if there is one; empty at the end.
fn receive(fd: &OwnedFd) -> Option<String> {
    let mut buf = vec![0u8; 8192];
    // SAFETY: the buffer is live and of the stated length.
    let n = unsafe { libc::recv(fd.as_raw_fd(), buf.as_mut_ptr().cast(), buf.len(), libc::MSG_DONTWAIT) };
    if n < 0 && std::io::Error::last_os_error().kind() == std::io::ErrorKind::WouldBlock {
        return None;
    }
    Some(String::from_utf8_lossy(&buf[..n.max(0) as usize]).into_owned())
}

fn readable(fd: &OwnedFd, ms: i32) -> bool {
    let mut p = libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one live pollfd.
    unsafe { libc::poll(&raw mut p, 1, ms) > 0 }
}
