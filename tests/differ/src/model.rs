//! What the generator knows about a scenario: who holds which end of which connection, how many bytes are
//! under way, who is blocked in what. Brought up to date from the results seen on the kernel.

use std::collections::{BTreeMap, BTreeSet};

use crate::script::{BLOCKED, Record, SKIPPED, parse};
use crate::spaces::Spaces;

/// What a script name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// An end of a connection: its index.
    End(usize),
    /// An epoll set: its index.
    Epoll(usize),
    /// A listening socket.
    Listener,
}

/// One end of a connection. End `2c` and end `2c + 1` belong to connection `c`.
#[derive(Clone, Debug)]
pub struct End {
    /// Bytes and messages that this end has sent.
    pub sent: i64,
    /// Bytes that this end has received.
    pub got: i64,
    /// Sends since nothing was under way.
    pub messages: usize,
    /// `O_NONBLOCK` is set.
    pub nonblock: bool,
    /// `SO_RCVTIMEO` is set.
    pub limited: bool,
    /// `SO_RCVTIMEO` is set and short.
    pub timed: bool,
    /// `SO_RCVLOWAT`.
    pub lowat: usize,
    /// Shut down for writing.
    pub wr_shut: bool,
    /// Shut down for reading.
    pub rd_shut: bool,
    /// Its buffers are tiny: only transfers that both ends take part in are predictable.
    pub tiny: bool,
    /// Somebody reset the connection, or an error was seen.
    pub broken: bool,
    /// Bytes up to here were handed on by an exec: nobody but the library has them.
    pub kept: i64,
}

/// An actor process.
#[derive(Clone, Debug)]
pub struct Process {
    /// Script names in use.
    pub slots: BTreeMap<usize, What>,
    /// Those of them that an exec closes.
    pub closed_on_exec: BTreeSet<usize>,
    /// Next unused script name.
    pub next: usize,
    /// Next thread number.
    pub threads: usize,
    /// It has namespaces of its own.
    pub inside: bool,
    /// It was forked, and an epoll set with it: through an exec that keeps its parent's doorbell (ARCHITECTURE.md, "Known
    /// weaknesses").
    pub has_parents_set: bool,
    /// The first process of its pid namespace, with which it dies.
    pub init: Option<String>,
}

/// What a blocked thread waits in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Waiting {
    /// A read of an end.
    Read(usize),
    /// poll or select on ends.
    Poll(Vec<usize>),
    /// epoll_wait on a set.
    Epoll(usize),
    /// Something else.
    Other,
}

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct Model {
    /// All ends ever made.
    pub ends: Vec<End>,
    /// Living processes.
    pub processes: BTreeMap<String, Process>,
    /// Living threads that can be given work.
    pub idle: Vec<String>,
    /// Blocked threads.
    pub blocked: BTreeMap<String, Waiting>,
    /// Members of each epoll set: the ends in it, by data.
    pub epolls: Vec<BTreeMap<u64, usize>>,
    /// The call that armed each edge-triggered watch: set and data; who can make it.
    pub edges: BTreeMap<(usize, u64), (String, String)>,
    /// Descriptors under way to a process: `(process, end)`.
    pub mail: Vec<(String, usize)>,
    /// Stopped processes.
    pub stopped: BTreeSet<String>,
    /// Number of listeners so far.
    pub listeners: usize,
}

/// The process part of a thread's name.
pub fn process_of(thread: &str) -> &str {
    thread.split('.').next().unwrap_or(thread)
}

impl Model {
    /// The other end.
    pub fn peer(end: usize) -> usize {
        end ^ 1
    }

    /// Bytes on their way to `end`.
    pub fn under_way(&self, end: usize) -> i64 {
        self.ends[Self::peer(end)].sent - self.ends[end].got
    }

    /// What lies unread at `end` can follow it out of the library's reach: the peer can still send it again. Where it
    /// cannot, the connection is reset, as ARCHITECTURE.md says.
    pub fn can_leave(&self, end: usize) -> bool {
        let (x, peer) = (&self.ends[end], &self.ends[Self::peer(end)]);
        let deaf = peer.rd_shut && peer.wr_shut || x.rd_shut && x.wr_shut || x.broken || peer.broken;
        x.got >= x.kept && !(deaf && self.under_way(end) > 0)
    }

    /// Whether another process has the same epoll set.
    pub fn set_is_shared(&self, who: &str, slot: &str) -> bool {
        let Some(what @ What::Epoll(_)) = self.what(who, slot) else { return false };
        self.holders(what).iter().any(|(p, _)| p != process_of(who))
    }

    /// Whether somebody waits for two connections at a time that end with `process`. The kernel closes descriptor by descriptor
    /// (close_files in kernel/file.c): who waits is woken by the first, and may have looked before the second.
    pub fn ends_piecemeal(&self, process: &str) -> bool {
        let alone = |e: &&usize| {
            let holders = self.holders(What::End(Self::peer(**e)));
            !holders.is_empty() && holders.iter().all(|(p, _)| p == process)
        };
        self.blocked.values().any(|w| {
            let waited: BTreeSet<usize> = match w {
                Waiting::Poll(ends) => ends.iter().copied().collect(),
                Waiting::Epoll(set) => self.epolls[*set].values().copied().collect(),
                Waiting::Read(_) | Waiting::Other => return false,
            };
            waited.iter().filter(alone).count() > 1
        })
    }

    /// The ends that a process holds.
    pub fn ends_of(&self, process: &str) -> Vec<usize> {
        let Some(p) = self.processes.get(process) else { return Vec::new() };
        p.slots.values().filter_map(|w| if let What::End(e) = w { Some(*e) } else { None }).collect()
    }

    /// Names under which living processes hold `what`.
    pub fn holders(&self, what: What) -> Vec<(String, usize)> {
        let slots = |(p, x): (&String, &Process)| {
            x.slots.iter().filter(|(_, w)| **w == what).map(|(s, _)| (p.clone(), *s)).collect::<Vec<_>>()
        };
        self.processes.iter().flat_map(slots).collect()
    }

    /// A thread that is free and in a process that holds `end`, and its name for it; not `but`.
    pub fn free_holder(&self, end: usize, but: &str) -> Option<(String, usize)> {
        self.holders(What::End(end)).into_iter().find_map(|(p, s)| {
            let t = self.idle.iter().find(|t| process_of(t) == p && *t != but)?;
            Some((t.clone(), s))
        })
    }

    /// Some thread is blocked reading `end`.
    pub fn has_reader(&self, end: usize) -> bool {
        self.blocked.values().any(|w| *w == Waiting::Read(end))
    }

    /// Some thread is blocked waiting for readiness of `end`.
    pub fn has_poller(&self, end: usize) -> bool {
        self.blocked.values().any(|w| match w {
            Waiting::Poll(ends) => ends.contains(&end),
            Waiting::Epoll(e) => self.epolls[*e].values().any(|x| *x == end),
            _ => false,
        })
    }

    /// Somebody waits in epoll set `e`.
    pub fn has_waiter(&self, e: usize) -> bool {
        self.blocked.values().any(|w| *w == Waiting::Epoll(e))
    }

    /// Both ends are held, neither is shut, broken or used by a blocked thread: a transfer can be made.
    pub fn quiet(&self, end: usize) -> bool {
        [end, Self::peer(end)].iter().all(|e| {
            let x = &self.ends[*e];
            !x.wr_shut
                && !x.rd_shut
                && !x.broken
                && !x.timed
                && x.lowat <= 1
                && !self.has_reader(*e)
                && !self.has_poller(*e)
        })
    }

    /// A fresh name in `process`.
    pub fn fresh(&mut self, process: &str) -> usize {
        let p = self.processes.get_mut(process).expect("a living process");
        p.next += 1;
        p.next - 1
    }

    /// A new end.
    pub fn add_end(&mut self) -> usize {
        self.ends.push(End {
            sent: 0,
            got: 0,
            messages: 0,
            nonblock: false,
            limited: false,
            timed: false,
            lowat: 1,
            wr_shut: false,
            rd_shut: false,
            tiny: false,
            broken: false,
            kept: 0,
        });
        self.ends.len() - 1
    }

    fn what(&self, who: &str, slot: &str) -> Option<What> {
        let n: usize = slot.trim_start_matches('v').parse().ok()?;
        self.processes.get(process_of(who))?.slots.get(&n).copied()
    }

    /// Learns from a step and its results. `blocked_in` is remembered operation text of blocked threads.
    pub fn learn(&mut self, record: &Record, blocked_in: &mut BTreeMap<String, String>) {
        let mut texts: BTreeMap<String, String> = std::mem::take(blocked_in);
        for op in parse(&record.line) {
            if op.who == "@" {
                self.learn_directive(op.text);
            } else if record.of(op.who) != Some(SKIPPED) {
                texts.insert(op.who.to_owned(), op.text.to_owned());
            }
        }
        for (who, result) in &record.results {
            let Some(text) = texts.remove(who) else { continue };
            if result == BLOCKED {
                let waiting = self.waiting(who, &text);
                self.blocked.insert(who.clone(), waiting);
                texts.insert(who.clone(), text);
                continue;
            }
            self.blocked.remove(who);
            if result == "DIED" {
                self.bury(process_of(who), false);
            } else {
                self.learn_result(who, &text, result);
            }
        }
        let live = &self.processes;
        self.blocked.retain(|t, _| live.contains_key(process_of(t)));
        *blocked_in = texts.into_iter().filter(|(t, _)| self.blocked.contains_key(t)).collect();
    }

    fn waiting(&self, who: &str, text: &str) -> Waiting {
        let words: Vec<&str> = text.split(' ').collect();
        let end = |slot: &str| match self.what(who, slot) {
            Some(What::End(e)) => Some(e),
            _ => None,
        };
        match words[0] {
            "poll" | "select" => {
                Waiting::Poll(words[3].split(',').filter_map(|x| end(x.split(':').next().unwrap_or(""))).collect())
            }
            "epwait" => match self.what(who, words[1]) {
                Some(What::Epoll(e)) => Waiting::Epoll(e),
                _ => Waiting::Other,
            },
            "alarm" => end(words[2]).map_or(Waiting::Other, Waiting::Read),
            _ => end(words.get(1).copied().unwrap_or("")).map_or(Waiting::Other, Waiting::Read),
        }
    }

    fn learn_directive(&mut self, text: &str) {
        let words: Vec<&str> = text.split(' ').collect();
        match words[0] {
            "start" => {
                let fresh = Process {
                    slots: BTreeMap::new(),
                    closed_on_exec: BTreeSet::new(),
                    next: 1,
                    threads: 1,
                    inside: false,
                    has_parents_set: false,
                    init: None,
                };
                self.processes.entry(words[1].to_owned()).or_insert(fresh);
            }
            "kill" => {
                self.bury(words[1], true);
            }
            "stop" => {
                self.stopped.insert(words[1].to_owned());
            }
            "cont" => {
                self.stopped.remove(words[1]);
            }
            _ => {}
        }
    }

    /// Forgets a process that has ended, and those that die with it.
    fn bury(&mut self, process: &str, breaks: bool) {
        let dies = |(n, p): (&String, &Process)| *n == process || p.init.as_deref() == Some(process);
        let dead: Vec<String> = self.processes.iter().filter(|e| dies(*e)).map(|(n, _)| n.clone()).collect();
        for p in dead {
            for end in self.ends_of(&p) {
                if breaks || p != process {
                    self.break_if_unread(end);
                }
            }
            self.processes.remove(&p);
            self.stopped.remove(&p);
        }
    }

    fn break_if_unread(&mut self, end: usize) {
        if self.holders(What::End(end)).len() <= 1 {
            self.ends[end].broken = true;
            self.ends[Self::peer(end)].broken = true;
        }
    }

    fn learn_result(&mut self, who: &str, text: &str, result: &str) {
        let words: Vec<&str> = text.split(' ').collect();
        let process = process_of(who).to_owned();
        let slot = |i: usize| words[i].trim_start_matches('v').parse::<usize>().unwrap_or(0);
        let r = first_number(result, "r=");
        let named = if words[0] == "pspawn" { 2 } else { 1 };
        let what = words.get(named).and_then(|w| self.what(who, w));
        let end = if let Some(What::End(e)) = what { Some(e) } else { None };
        match words[0] {
            "read" | "recv" | "readv" | "recvfrom" | "recvmsg" | "recvmmsg" | "trunc" => {
                let Some(e) = end else { return };
                let flags: i32 = words.get(3).and_then(|f| f.parse().ok()).unwrap_or(0);
                let n = if words[0] == "recvmmsg" { first_number(result, "len=") } else { r };
                if n > 0 && (words[0] == "trunc" || flags & libc::MSG_PEEK == 0) {
                    self.received(e, n);
                }
                self.ends[e].broken |= result.contains("ECONNRESET");
            }
            "drain" => {
                let Some(e) = end else { return };
                self.received(e, first_number(result, "total="));
                self.ends[e].broken |= result.contains("ECONNRESET");
            }
            "write" | "send" | "sendto" | "writev" | "sendmsg" | "sendfile" | "sendmmsg" => {
                let Some(e) = end else { return };
                self.transmitted(e, if words[0] == "sendmmsg" { first_number(result, "len=") } else { r });
                self.ends[e].broken |= result.contains("EPIPE") && !self.ends[e].wr_shut;
            }
            "sendmore" => {
                let Some(e) = end else { return };
                let second = result.split(" then ").nth(1).map_or(0, |t| first_number(t, "r="));
                self.transmitted(e, r.max(0) + second.max(0));
            }
            "duplex" => {
                let Some(e) = end else { return };
                self.ends[e].sent += first_number(result, "sent=").max(0);
                self.ends[e].got += first_number(result, "got=").max(0);
            }
            "setopt" => {
                let Some(e) = end else { return };
                let value: i64 = words[3].parse().unwrap_or(0);
                let x = &mut self.ends[e];
                match words[2] {
                    "rcvtimeo" => {
                        x.limited = value != 0;
                        x.timed = (1..10_000).contains(&value);
                    }
                    "lowat" => x.lowat = value.max(1) as usize,
                    "sndbuf" | "rcvbuf" => x.tiny = true,
                    _ => {}
                }
            }
            "nonblock" => {
                if let Some(e) = end {
                    self.ends[e].nonblock = words[2] == "1";
                }
            }
            "shutdown" => {
                let Some(e) = end else { return };
                let how = words[2];
                self.ends[e].wr_shut |= how != "0" && r == 0;
                self.ends[e].rd_shut |= how != "1" && r == 0;
            }
            "close" => {
                if let Some(e) = end {
                    self.break_if_unread(e);
                }
                self.unslot(&process, slot(1));
            }
            "accept" if words[3] != "0" => self.closes_on_exec(&process, slot(2)),
            "dup" | "dup2" | "dup3" | "dupfd" if r >= 0 => {
                if words[0].ends_with(['2', '3']) && words[3].starts_with('v') {
                    if let Some(What::End(e)) = self.what(who, words[3]) {
                        self.break_if_unread(e);
                    }
                    self.unslot(&process, slot(3));
                }
                if let (Some(w), Some(p)) = (what, self.processes.get_mut(&process)) {
                    p.slots.insert(slot(2), w);
                }
                // The actor passes O_CLOEXEC to dup3.
                if words[0] == "dup3" || words[0] == "dupfd" && words[4] == "1" {
                    self.closes_on_exec(&process, slot(2));
                }
            }
            "epctl" => self.learn_epctl(who, &words, r),
            "epcreate" => {
                self.epolls.push(BTreeMap::new());
                let n = self.epolls.len() - 1;
                if let Some(p) = self.processes.get_mut(&process) {
                    p.slots.insert(slot(1), What::Epoll(n));
                }
            }
            "exec" => {
                if result != "exec ok" {
                    return;
                }
                let closed = self.processes.get_mut(&process).map(|p| std::mem::take(&mut p.closed_on_exec));
                for s in closed.into_iter().flatten() {
                    if let Some(What::End(e)) = self.processes.get(&process).and_then(|p| p.slots.get(&s).copied()) {
                        self.break_if_unread(e);
                    }
                    self.unslot(&process, s);
                }
                if words[2] != "1" {
                    return;
                }
                for e in self.ends_of(&process) {
                    self.ends[e].kept = self.ends[e].got + self.under_way(e).max(0);
                }
            }
            "thread" => {
                if let Some(p) = self.processes.get_mut(&process) {
                    p.threads += 1;
                }
            }
            "fork" | "forkin" => {
                if let Some(p) = self.processes.get(&process).cloned() {
                    let mut child = Process { threads: 1, ..p };
                    let name = process_of(words[1]).to_owned();
                    child.has_parents_set |= child.slots.values().any(|w| matches!(w, What::Epoll(_)));
                    if words[0] == "forkin" {
                        child.inside = true;
                        if Spaces::new(words[2]).has("pid") {
                            child.init = Some(name.clone());
                        }
                    }
                    self.processes.insert(name, child);
                }
            }
            "pspawn" if r == 0 => {
                let slots = what.map(|w| (slot(2), w)).into_iter().collect();
                let parent = self.processes.get(&process).cloned();
                let (inside, init) = parent.map_or((false, None), |p| (p.inside, p.init));
                let closed_on_exec = BTreeSet::new();
                let child =
                    Process { slots, closed_on_exec, next: 40, threads: 1, inside, has_parents_set: false, init };
                self.processes.insert(process_of(words[1]).to_owned(), child);
            }
            "usend" if r == 1 => {
                if let Some(e) = end {
                    self.mail.push((words[2].to_owned(), e));
                }
            }
            "urecv" if result.contains("fd=") => {
                let Some(at) = self.mail.iter().position(|(to, _)| *to == process) else { return };
                let (_, e) = self.mail.remove(at);
                if let Some(p) = self.processes.get_mut(&process) {
                    p.slots.insert(slot(1), What::End(e));
                }
                if words[2] != "0" {
                    self.closes_on_exec(&process, slot(1));
                }
            }
            _ => {}
        }
    }

    fn learn_epctl(&mut self, who: &str, words: &[&str], r: i64) {
        let (Some(What::Epoll(ep)), Some(target), 0) = (self.what(who, words[1]), self.what(who, words[3]), r) else {
            return;
        };
        let data: u64 = words[5].parse().unwrap_or(0);
        let flags: i64 = words[4].parse().unwrap_or(0);
        if words[2] != "del" && flags & i64::from(libc::EPOLLET as u32) != 0 {
            let call = format!("epctl {} mod {} {} {}", words[1], words[3], words[4], words[5]);
            self.edges.insert((ep, data), (process_of(who).to_owned(), call));
        } else {
            self.edges.remove(&(ep, data));
        }
        match (words[2], target) {
            ("add" | "mod", What::End(e)) => {
                self.epolls[ep].insert(data, e);
            }
            ("add", What::Epoll(inner)) => {
                let members = self.epolls[inner].clone();
                self.epolls[ep].extend(members.into_iter().map(|(d, e)| (d + 1000, e)));
            }
            _ => {}
        }
    }

    fn closes_on_exec(&mut self, process: &str, slot: usize) {
        if let Some(p) = self.processes.get_mut(process) {
            p.closed_on_exec.insert(slot);
        }
    }

    fn unslot(&mut self, process: &str, slot: usize) {
        if let Some(p) = self.processes.get_mut(process) {
            p.slots.remove(&slot);
            p.closed_on_exec.remove(&slot);
        }
    }

    fn received(&mut self, end: usize, n: i64) {
        self.ends[end].got += n.max(0);
        if self.under_way(end) <= 0 {
            self.ends[Self::peer(end)].messages = 0;
        }
    }

    fn transmitted(&mut self, end: usize, n: i64) {
        self.ends[end].sent += n.max(0);
        self.ends[end].messages += 1;
    }
}

/// The number behind the first occurrence of `key`; 0 when there is none.
fn first_number(text: &str, key: &str) -> i64 {
    let Some(at) = text.find(key) else { return 0 };
    let rest = &text[at + key.len()..];
    let len = rest.find(|c: char| !(c.is_ascii_digit() || c == '-')).unwrap_or(rest.len());
    rest[..len].parse().unwrap_or(0)
}
