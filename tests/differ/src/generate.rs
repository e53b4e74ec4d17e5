//! The generator: the next step of a scenario, given what the kernel answered so far.
//!
//! Steps are kept predictable: no more bytes under way than every kernel takes without blocking, one
//! reader per end, Nagle's delay off, no choice left to scheduling.

use std::collections::{BTreeMap, BTreeSet};

use crate::model::{Model, Waiting, What, process_of};
use crate::rng::Rng;
use crate::script::{Record, SKIPPED, parse};
use crate::spaces::{self, Spaces};

/// What may be under way in one direction, bytes, unless said otherwise.
pub const BUDGET: i64 = 24_000;

/// Where processes are started, as [`crate::spaces::Spaces`] has it.
const SPACES: &[&str] = &["user", "root", "mnt", "ipc,uts", "pid", "user,mnt", "root,pid,mnt,ipc,uts", "user,pid"];

/// Shape of the scenarios.
#[derive(Clone, Debug)]
pub struct Options {
    /// Most bytes under way in one direction.
    pub budget: i64,
    /// Random steps after the warm-up.
    pub steps: usize,
    /// Leave out operations whose name or kind is in this list.
    pub without: Vec<String>,
}

/// Makes the steps of one scenario.
pub struct Generator {
    rng: Rng,
    options: Options,
    model: Model,
    blocked_in: BTreeMap<String, String>,
    opening: Vec<String>,
    closing: Option<Vec<String>>,
    /// What must be done before the next random step.
    due: Vec<String>,
    left: usize,
    seed: u64,
    children: usize,
}

impl Generator {
    /// The scenario named `seed`.
    pub fn new(seed: u64, options: Options) -> Generator {
        let mut rng = Rng::new(seed);
        let left = rng.range(options.steps / 4, options.steps);
        let mut g = Generator {
            rng,
            options,
            model: Model::default(),
            blocked_in: BTreeMap::new(),
            opening: Vec::new(),
            closing: None,
            due: Vec::new(),
            left,
            seed: 1,
            children: 0,
        };
        g.open();
        g.opening.reverse();
        g
    }

    /// Learns what came of a step, and which threads are free.
    pub fn learn(&mut self, record: &Record, idle: Vec<String>) {
        self.model.idle = idle;
        // Before it is learnt that a descriptor is closed.
        for op in parse(&record.line) {
            if record.of(op.who).is_some_and(|r| r != SKIPPED) {
                self.handed_over(op.who, op.text);
            }
        }
        self.model.learn(record, &mut self.blocked_in);
    }

    /// The bytes that lie unread when a connection leaves the library's reach come when the peer next runs in the
    /// library (ARCHITECTURE.md, "Known weaknesses"). Our actors wait outside of it, so each peer gets a call to make:
    /// this delay is accepted, and nothing else. To an edge-triggered watch they come anew, so it is armed anew.
    fn handed_over(&mut self, who: &str, text: &str) {
        let Some(ends) = self.leaving(who, text) else { return };
        let shared = text.starts_with("epctl");
        // In a set that several processes have it is the other end, too, that hears of them from the kernel.
        let heard = |e: &usize| ends.contains(e) || shared && ends.contains(&Model::peer(*e));
        for ((ep, data), (process, call)) in &self.model.edges {
            let theirs = self.model.epolls[*ep].get(data).is_some_and(heard) && !self.model.has_waiter(*ep);
            if let Some(t) = self.model.idle.iter().find(|t| theirs && process_of(t) == process) {
                self.due.push(format!("{t} {call}"));
            }
        }
        for end in ends {
            if let Some((t, v)) = self.model.free_holder(Model::peer(end), "") {
                self.due.push(format!("{t} poll poll 0 v{v}:0"));
            }
        }
    }

    /// Whether being stopped shows in no blocked call of `process`. On the kernel, one that has received less than it waits for,
    /// or waits for nothing, returns that when its process goes on, and one with a time-out fails with EINTR (signal(7), "Interruption of system
    /// calls and library functions by stop signals"); under the library both go on waiting.
    fn may_stop(&self, process: &str) -> bool {
        let hidden = |w: &Waiting| match w {
            Waiting::Read(e) => self.model.under_way(*e) <= 0 && !self.model.ends[*e].limited,
            _ => true,
        };
        // The third word is the length, or the lengths.
        let none = |t: &String| {
            let text = self.blocked_in.get(t).map_or("", String::as_str);
            text.split(' ').nth(2).is_some_and(|n| n.split(',').all(|n| n == "0"))
        };
        self.model.blocked.iter().all(|(t, w)| process_of(t) != process || hidden(w) && !none(t))
    }

    /// No thread of `process` is in a receive that has taken bytes and waits for more: they would go with it.
    fn loses_nothing(&self, process: &str) -> bool {
        let whole = |w: &Waiting| !matches!(w, Waiting::Read(e) if self.model.under_way(*e) > 0);
        self.model.blocked.iter().all(|(t, w)| process_of(t) != process || whole(w))
    }

    /// The ends that an operation may take out of the library's reach.
    fn leaving(&self, who: &str, text: &str) -> Option<BTreeSet<usize>> {
        let words: Vec<&str> = text.split(' ').collect();
        let named = match words[0] {
            "usend" => Some(words[1]),
            "pspawn" | "exec" => None,
            // Into a set that a fork has shared, or out of the process that added it.
            "epctl" if words[2] == "add" && self.model.set_is_shared(who, words[1]) => Some(words[3]),
            "close" if self.model.processes.len() > 1 => Some(words[1]),
            "dup2" | "dup3" if self.model.processes.len() > 1 && words[3].starts_with('v') => Some(words[3]),
            _ => return None,
        };
        let process = self.model.processes.get(process_of(who))?;
        let named = named.and_then(|v| v.trim_start_matches('v').parse::<usize>().ok());
        let left = process.slots.iter().filter(|(s, _)| named.is_none_or(|n| n == **s));
        Some(left.filter_map(|(_, w)| if let What::End(e) = w { Some(*e) } else { None }).collect())
    }

    /// Whether the peers that an operation asks for a turn can take it: none is stopped, and where bytes lie unread one has a
    /// thread that is not blocked in something else.
    fn may_leave(&self, who: &str, text: &str) -> bool {
        let Some(ends) = self.leaving(who, text) else { return true };
        let answers =
            |e: &usize| self.model.under_way(*e) <= 0 || self.model.free_holder(Model::peer(*e), "").is_some();
        // Nobody waits for an edge that would come anew, see `handed_over`.
        let calm = |((ep, data), _): (&(usize, u64), &_)| {
            let watched = self.model.epolls[*ep].get(data);
            !watched.is_some_and(|e| ends.contains(e) || ends.contains(&Model::peer(*e))) || !self.model.has_waiter(*ep)
        };
        self.model.stopped.is_empty() && ends.iter().all(answers) && self.model.edges.iter().all(calm)
    }

    /// The next step; `None` at the end.
    pub fn next_step(&mut self) -> Option<String> {
        if let Some(line) = self.opening.pop() {
            return Some(line);
        }
        if let Some(line) = self.due.pop() {
            return Some(line);
        }
        while self.left > 0 {
            self.left -= 1;
            for _ in 0..40 {
                let line = self.random().filter(|l| {
                    parse(l).iter().all(|op| {
                        let kind = op.text.split(' ').next().unwrap_or("");
                        self.has(kind) && self.may_leave(op.who, op.text)
                    })
                });
                if line.is_some() {
                    return line;
                }
            }
        }
        if let Some(p) = self.model.stopped.first().filter(|_| self.closing.is_none()) {
            return Some(format!("@ cont {p}"));
        }
        if self.closing.is_none() {
            let mut lines = self.close();
            lines.reverse();
            self.closing = Some(lines);
        }
        self.closing.as_mut().and_then(Vec::pop)
    }

    fn seed(&mut self) -> u64 {
        self.seed += 10;
        self.seed
    }

    fn has(&self, kind: &str) -> bool {
        !self.options.without.iter().any(|w| w == kind)
    }

    /// Processes, threads, connections, warm-up. Written blind: nothing here can fail.
    fn open(&mut self) {
        let mut lines = Vec::new();
        let alone = self.rng.chance(20);
        let servers = if alone { "A" } else { "B" };
        let spaces = ["A", "B"].map(|_| if self.rng.chance(20) { self.spaces() } else { "-" });
        lines.push(format!("@ start A {}", spaces[0]));
        if !alone {
            lines.push(format!("@ start B {}", spaces[1]));
        }
        let mut slots = BTreeMap::from([("A", 1), ("B", 1)]);
        let mut fresh = |p: &'static str| {
            let n = slots.get_mut(p).expect("A or B");
            *n += 1;
            *n - 1
        };
        let threads = self.rng.range(2, 3);
        for n in 1..threads {
            lines.push(format!("A.0 thread A.{n}"));
            if !alone {
                lines.push(format!("B.0 thread B.{n}"));
            }
        }
        let mut taken = Vec::new();
        for c in 0..*self.rng.pick(&[1, 1, 1, 2, 2, 3]) {
            let (server, client) = if self.rng.chance(50) { ("A", servers) } else { (servers, "A") };
            let family = *self.rng.pick(&["4", "4", "6", "m"]);
            let (l, e) = (fresh(server), fresh(client));
            // In one process the two ends are served by different threads.
            let (st, ct) = if server == client { (1, 0) } else { (0, 0) };
            lines.push(format!("{server}.{st} listen v{l} {family}"));
            let mode = if self.rng.chance(25) { "nb" } else { "block" };
            lines.push(format!("{client}.{ct} connect v{e} {family} $P{c} {mode}"));
            let a = fresh(server);
            lines.push(format!(
                "{server}.{st} accept v{l} v{a} {}",
                if self.rng.chance(20) { libc::SOCK_CLOEXEC } else { 0 }
            ));
            lines.push(format!("{client}.{ct} setopt v{e} nodelay 1"));
            lines.push(format!("{server}.{st} setopt v{a} nodelay 1"));
            if self.rng.chance(30) {
                lines.push(format!("{server}.{st} close v{l}"));
            }
            let (ce, se) = (self.model.add_end(), self.model.add_end());
            if self.rng.chance(6) {
                let which = *self.rng.pick(&["sndbuf", "rcvbuf"]);
                lines.push(format!("{client}.{ct} setopt v{e} {which} 4608"));
                lines.push(format!("{server}.{st} setopt v{a} {which} 4608"));
                self.model.ends[ce].tiny = true;
                self.model.ends[se].tiny = true;
            }
            if self.rng.chance(93) {
                let how = *self.rng.pick(&["read", "recv", "waitall", "poll"]);
                let (rounds, seed) = (self.rng.range(40, 100), self.seed());
                lines.push(format!(
                    "{client}.{ct} pingpong v{e} {rounds} {seed} c {how} || {server}.{st} pingpong v{a} {rounds} {seed} s {how}"
                ));
            }
            taken.push((client, e, ce));
            taken.push((server, a, se));
        }
        lines.push("@ channels".into());
        self.opening = lines;
        // Processes come into the model with their `start` steps; the slots are entered now.
        for (name, spaces) in ["A", "B"].into_iter().zip(spaces) {
            if name == "B" && alone {
                continue;
            }
            let of = taken.iter().filter(|(p, ..)| *p == name);
            let ends = of.map(|(_, s, e)| (*s, What::End(*e))).collect();
            let init = Spaces::new(spaces).has("pid").then(|| name.to_owned());
            let inside = spaces != "-";
            let process = crate::model::Process {
                slots: ends,
                closed_on_exec: BTreeSet::new(),
                next: slots[name],
                threads: 3,
                inside,
                has_parents_set: false,
                init,
            };
            self.model.processes.insert(name.into(), process);
        }
    }

    /// New namespaces, if this user may make any.
    fn spaces(&mut self) -> &'static str {
        if self.has("spaces") && spaces::allowed() { SPACES[self.rng.below(SPACES.len())] } else { "-" }
    }

    /// One random step, or `None` if the dice chose what cannot be done now.
    fn random(&mut self) -> Option<String> {
        if let Some(p) = self.model.stopped.first().cloned()
            && (self.model.idle.is_empty() || self.rng.chance(12))
        {
            return Some(format!("@ cont {p}"));
        }
        if self.model.idle.is_empty() {
            return self.disturb();
        }
        let idle = self.model.idle.clone();
        let t = self.rng.pick(&idle).clone();
        let process = process_of(&t).to_owned();
        let ends: Vec<(usize, usize)> = self
            .model
            .processes
            .get(&process)?
            .slots
            .iter()
            .filter_map(|(s, w)| if let What::End(e) = w { Some((*s, *e)) } else { None })
            .collect();
        if ends.is_empty() {
            return if self.rng.chance(50) { self.mail(&t, &process) } else { self.disturb() };
        }
        let (slot, end) = *self.rng.pick(&ends);
        match self.rng.below(100) {
            0..=24 => self.transmit(&t, slot, end),
            25..=47 => self.receive(&t, slot, end),
            48..=57 => self.poll(&t, &ends),
            58..=69 => self.epoll(&t, &process, slot, end),
            70..=75 => self.ask(&t, slot, end),
            76..=79 => self.configure(&t, slot, end),
            80..=82 => self.copy(&t, &process, slot),
            83..=84 => self.finish(&t, slot, end),
            85..=90 => self.transfer(&t, slot, end),
            91..=94 => self.process(&t, &process, slot, end),
            95..=96 => self.mail(&t, &process),
            97 => self.faults(&t, slot, end),
            _ => self.disturb(),
        }
    }

    /// Room for more bytes from `end`.
    fn room(&self, end: usize) -> i64 {
        let x = &self.model.ends[end];
        if x.tiny || x.messages > 50 {
            return 0;
        }
        self.options.budget - self.model.under_way(Model::peer(end))
    }

    fn transmit(&mut self, t: &str, v: usize, end: usize) -> Option<String> {
        let room = self.room(end);
        let max = room.min(if self.rng.chance(15) { 20_000 } else { 4000 });
        if max < 1 {
            return None;
        }
        let n = if self.rng.chance(3) { 0 } else { self.rng.length(max as usize) };
        let seed = self.seed();
        let flags = [0, libc::MSG_NOSIGNAL, libc::MSG_DONTWAIT, libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT];
        let flags = *self.rng.pick(&flags);
        let parts = format!("{},{},{}", n / 3, n / 3, n - n / 3 * 2);
        Some(match self.rng.below(12) {
            0..=1 => format!("{t} write v{v} {n} {seed} 0"),
            2..=4 => format!("{t} send v{v} {n} {seed} {flags}"),
            5 => format!("{t} sendto v{v} {n} {seed} {flags}"),
            6..=7 => format!("{t} writev v{v} {parts} {seed} 0"),
            8 => format!("{t} sendmsg v{v} {parts} {seed} {flags}"),
            9 => format!("{t} sendmmsg v{v} {parts} {seed} {flags}"),
            // Whether MSG_MORE holds bytes back from somebody who already waits is not promised.
            10 if !self.model.has_reader(Model::peer(end)) && !self.model.has_poller(Model::peer(end)) => {
                format!("{t} sendmore v{v} {} {} {seed}", n / 2, n - n / 2)
            }
            _ if self.has("sendfile") => format!("{t} sendfile v{v} {n} {}", self.rng.below(5000)),
            _ => return None,
        })
    }

    /// True if a read of `end` that blocks can be set free again by somebody else.
    fn may_block(&mut self, t: &str, end: usize) -> bool {
        let free = self.model.free_holder(Model::peer(end), t).is_some() || self.model.free_holder(end, t).is_some();
        free && !self.model.has_poller(end) && self.rng.chance(70)
    }

    fn receive(&mut self, t: &str, v: usize, end: usize) -> Option<String> {
        if self.model.has_reader(end) {
            return None;
        }
        let x = self.model.ends[end].clone();
        let under_way = self.model.under_way(end);
        let n = if self.rng.chance(3) { 0 } else { self.rng.length(20_000) };
        let mut flags = 0;
        for (flag, percent) in [(libc::MSG_PEEK, 15), (libc::MSG_WAITALL, 15), (libc::MSG_DONTWAIT, 30)] {
            if self.rng.chance(percent) {
                flags |= flag;
            }
        }
        let over = x.rd_shut
            || x.broken
            || self.model.ends[Model::peer(end)].wr_shut
            || self.model.holders(What::End(Model::peer(end))).is_empty();
        let name = *self.rng.pick(&["read", "recv", "recv", "recvfrom", "readv", "recvmsg", "recvmmsg"]);
        // read and readv have no flags.
        let plain = name.starts_with("read");
        let flags = if plain { 0 } else { flags };
        let need = if flags & libc::MSG_WAITALL != 0 { n as i64 } else { x.lowat.min(n) as i64 };
        let may_wait = flags & libc::MSG_DONTWAIT == 0 && !x.nonblock && under_way < need.max(1) && !over;
        if may_wait && !x.timed && !self.may_block(t, end) {
            return None;
        }
        // A peek that waits for more than there is would be woken by every arrival: fine, but it shares
        // the end with nobody.
        let timed = if may_wait && x.timed { "~" } else { "" };
        let parts = if name == "readv" || name == "recvmsg" || name == "recvmmsg" {
            format!("{},{}", n / 2, n - n / 2)
        } else {
            n.to_string()
        };
        if self.rng.chance(6) {
            return Some(format!("{t} drain v{v}"));
        }
        if self.rng.chance(4) && self.has("trunc") {
            return Some(format!("{t} trunc v{v} {n}"));
        }
        Some(format!("{t} {timed}{name} v{v} {parts} {flags}"))
    }

    fn poll(&mut self, t: &str, ends: &[(usize, usize)]) -> Option<String> {
        let mut chosen: Vec<(usize, usize)> = Vec::new();
        for _ in 0..self.rng.range(1, 3) {
            chosen.push(*self.rng.pick(ends));
        }
        let reader = chosen.iter().any(|(_, e)| self.model.has_reader(*e));
        let other = chosen.iter().all(|(_, e)| {
            self.model.free_holder(Model::peer(*e), t).is_some() || self.model.free_holder(*e, t).is_some()
        });
        let timeout = match self.rng.below(10) {
            0..=4 => 0,
            5 => 15,
            _ if reader || !other => 0,
            7 => 60_000,
            _ => -1,
        };
        let timed = if timeout == 15 { "~" } else { "" };
        if self.rng.chance(35) {
            let kind = *self.rng.pick(&["select", "pselect"]);
            let list: Vec<String> = chosen
                .iter()
                .map(|(s, _)| format!("v{s}:{}", self.rng.pick(&["r", "rw", "r", "re", "w", "rwe"])))
                .collect();
            return Some(format!("{t} {timed}select {kind} {timeout} {}", list.join(",")));
        }
        let kind = *self.rng.pick(&["poll", "poll", "ppoll", "ppollmask"]);
        let events = [1, 1, 4, 5, 0x2001, 0x2000, 0, 3, 0x45, 0x141];
        let mut list: Vec<String> = chosen.iter().map(|(s, _)| format!("v{s}:{}", self.rng.pick(&events))).collect();
        if self.rng.chance(10) && self.has("negative") {
            list.push("-:1".into());
        }
        Some(format!("{t} {timed}poll {kind} {timeout} {}", list.join(",")))
    }

    fn epoll(&mut self, t: &str, process: &str, v: usize, end: usize) -> Option<String> {
        let sets: Vec<(usize, usize)> = self
            .model
            .processes
            .get(process)?
            .slots
            .iter()
            .filter_map(|(s, w)| if let What::Epoll(e) = w { Some((*s, *e)) } else { None })
            .collect();
        if sets.is_empty() || self.rng.chance(5) {
            let s = self.model.fresh(process);
            return (s < 60).then(|| format!("{t} epcreate v{s}"));
        }
        let (es, ep) = *self.rng.pick(&sets);
        match self.rng.below(10) {
            0..=3 => {
                let base = *self.rng.pick(&[1u32, 1, 5, 4, 0x2001, 0x2005, 0]);
                let extra = match self.rng.below(8) {
                    0..=2 => 0,
                    3..=4 => libc::EPOLLET as u32,
                    5..=6 => libc::EPOLLONESHOT as u32,
                    _ => (libc::EPOLLET | libc::EPOLLONESHOT) as u32,
                };
                let command = *self.rng.pick(&["add", "add", "mod", "mod", "del"]);
                let events = if command == "add" && self.rng.chance(12) && self.has("exclusive") {
                    base & 5 | libc::EPOLLEXCLUSIVE as u32
                } else {
                    base | extra
                };
                // A change while somebody waits may or may not wake him in time: only when none does.
                if self.model.has_waiter(ep) || (command != "del" && self.model.has_reader(end)) {
                    return None;
                }
                Some(format!("{t} epctl v{es} {command} v{v} {events} {}", es * 100 + v))
            }
            4 if sets.len() > 1 && self.rng.chance(40) && self.has("nested") => {
                let (inner, i) = *self.rng.pick(&sets);
                if self.model.has_waiter(ep) || self.model.has_waiter(i) || i <= ep {
                    return None;
                }
                let command = *self.rng.pick(&["add", "add", "del"]);
                Some(format!("{t} epctl v{es} {command} v{inner} {} {}", 1, 5000 + inner))
            }
            _ => {
                if self.model.has_waiter(ep) {
                    return None;
                }
                let members: Vec<usize> = self.model.epolls[ep].values().copied().collect();
                let reader = members.iter().any(|e| self.model.has_reader(*e));
                let other =
                    !members.is_empty() && members.iter().any(|e| self.model.free_holder(Model::peer(*e), t).is_some());
                let timeout = match self.rng.below(10) {
                    0..=4 => 0,
                    5 => 15,
                    _ if reader || !other => 0,
                    6..=7 => 60_000,
                    _ => -1,
                };
                let timed = if timeout == 15 { "~" } else { "" };
                let kind = *self.rng.pick(&["wait", "wait", "pwait", "pwait2"]);
                Some(format!("{t} {timed}epwait v{es} {timeout} {kind} 32"))
            }
        }
    }

    fn ask(&mut self, t: &str, v: usize, end: usize) -> Option<String> {
        Some(match self.rng.below(10) {
            0..=4 => format!("{t} fionread v{v}"),
            5 => format!("{t} outq v{v}"),
            // getpeername still names a peer that was killed before it had read everything ("Known weaknesses").
            6 if !self.model.ends[end].broken => format!("{t} names v{v}"),
            7 => format!("{t} getfl v{v}"),
            8 => format!("{t} stat v{v}"),
            _ => format!(
                "{t} getopt v{v} {}",
                self.rng.pick(&[
                    "error",
                    "error",
                    "nodelay",
                    "lowat",
                    "type",
                    "acceptconn",
                    "domain",
                    "usertimeout",
                    "inq"
                ])
            ),
        })
    }

    fn configure(&mut self, t: &str, v: usize, end: usize) -> Option<String> {
        if self.model.has_reader(end) || self.model.has_poller(end) {
            return None;
        }
        Some(match self.rng.below(10) {
            0..=2 => {
                let on = i32::from(!self.model.ends[end].nonblock);
                format!("{t} nonblock v{v} {on} {}", self.rng.pick(&["fcntl", "ioctl"]))
            }
            3 => format!("{t} setopt v{v} rcvtimeo {}", self.rng.pick(&[20, 60_000, 0, 0])),
            4 => format!("{t} setopt v{v} sndtimeo {}", self.rng.pick(&[20, 0])),
            5 if self.has("lowat") => format!("{t} setopt v{v} lowat {}", self.rng.pick(&[1, 1, 10, 500])),
            6 => format!("{t} setopt v{v} keepalive 1"),
            // Longer than any scenario: what it changes is how much a ring may hold.
            7 if self.has("usertimeout") => {
                format!("{t} setopt v{v} usertimeout {}", self.rng.pick(&[60_000, 60_000, 0]))
            }
            8 if self.has("inq") => format!("{t} setopt v{v} inq {}", self.rng.pick(&[1, 1, 0])),
            _ => format!("{t} setopt v{v} quickack 1"),
        })
    }

    fn copy(&mut self, t: &str, process: &str, v: usize) -> Option<String> {
        let w = self.model.fresh(process);
        if w >= 60 {
            return None;
        }
        Some(match self.rng.below(6) {
            0..=1 => format!("{t} dup v{v} v{w}"),
            2 => format!("{t} dupfd v{v} v{w} {} {}", self.rng.pick(&[0, 3, 100, 500]), self.rng.below(2)),
            3 => format!("{t} dup2 v{v} v{w} {}", self.rng.range(200, 260)),
            4 => format!("{t} dup3 v{v} v{w} {}", self.rng.range(300, 360)),
            _ => {
                // A descriptor that is closed under a poll or select: "the result is unspecified" (select(2)).
                let ends: Vec<usize> = self
                    .model
                    .processes
                    .get(process)?
                    .slots
                    .iter()
                    .filter(|(s, w)| matches!(w, What::End(e) if !self.model.has_poller(*e)) && **s != v)
                    .map(|(s, _)| *s)
                    .collect();
                if ends.is_empty() || self.rng.chance(50) {
                    return None;
                }
                let onto = *self.rng.pick(&ends);
                format!("{t} {} v{v} v{w} v{onto}", self.rng.pick(&["dup2", "dup3"]))
            }
        })
    }

    fn finish(&mut self, t: &str, v: usize, end: usize) -> Option<String> {
        let several = self.model.holders(What::End(end)).len() > 1;
        let polled = self.model.has_poller(end);
        Some(match self.rng.below(10) {
            0..=3 if self.rng.chance(60) => format!("{t} shutdown v{v} {}", self.rng.pick(&[0, 1, 1, 1, 2])),
            4..=6 if polled => return None,
            4..=5 if several => format!("{t} close v{v}"),
            6 if self.rng.chance(30) => format!("{t} close v{v}"),
            7 if self.rng.chance(20) => format!("{t} setopt v{v} linger 0"),
            _ => return None,
        })
    }

    /// Both ends at once: more bytes than any buffer holds, or another warm-up.
    fn transfer(&mut self, t: &str, v: usize, end: usize) -> Option<String> {
        if !self.model.quiet(end) {
            return None;
        }
        let peer = Model::peer(end);
        let (other, w) = self.model.free_holder(peer, t)?;
        let seed = self.seed();
        let (here, there) = (self.model.under_way(end), self.model.under_way(peer));
        if here == 0 && there == 0 && self.rng.chance(40) {
            let how = *self.rng.pick(&["read", "recv", "waitall", "poll"]);
            let rounds = self.rng.range(3, 80);
            return Some(format!(
                "{t} pingpong v{v} {rounds} {seed} c {how} || {other} pingpong v{w} {rounds} {seed} s {how}"
            ));
        }
        let size = |rng: &mut Rng| if rng.chance(30) { 0 } else { rng.length(300_000) as i64 };
        let (forth, back) = (size(&mut self.rng), size(&mut self.rng));
        let hows = ["poll", "eplt", "epet", "epone", "select"];
        let (how, other_how) = (*self.rng.pick(&hows), *self.rng.pick(&hows));
        // What was under way before comes first.
        let (rx, rx_other) = (back + here, forth + there);
        Some(format!(
            "{t} duplex v{v} {forth} {rx} {seed} {how} || {other} duplex v{w} {back} {rx_other} {} {other_how}",
            seed + 1
        ))
    }

    fn process(&mut self, t: &str, process: &str, v: usize, end: usize) -> Option<String> {
        let child = format!("C{}", self.children);
        match self.rng.below(12) {
            0..=3 if self.children < 4 && self.has("fork") => {
                self.children += 1;
                let inside = self.model.processes.get(process)?.inside;
                let spaces = if !inside && self.rng.chance(30) { self.spaces() } else { "-" };
                Some(match spaces {
                    "-" => format!("{t} fork {child}.0"),
                    spaces => format!("{t} forkin {child}.0 {spaces}"),
                })
            }
            4..=5
                if self.has("exec")
                    && self.loses_nothing(process)
                    && !self.model.processes.get(process)?.has_parents_set =>
            {
                let preload = i32::from(self.rng.chance(75));
                let alone = |e: &usize| self.model.holders(What::End(*e)).iter().all(|(p, _)| p == process);
                // To an image with the library unread bytes are handed on, as a copy where others hold the connection; an
                // error is not ("Known weaknesses").
                let leaves = self
                    .model
                    .ends_of(process)
                    .iter()
                    .all(|e| !self.model.ends[*e].broken && (self.model.can_leave(*e) || preload == 1 && alone(e)));
                leaves.then(|| format!("{t} exec {process}.0 {preload}"))
            }
            6..=7 if self.children < 4 && self.has("pspawn") => {
                if !self.model.ends_of(process).iter().all(|e| self.model.can_leave(*e)) {
                    return None;
                }
                self.children += 1;
                let preload = i32::from(self.rng.chance(75));
                Some(format!("{t} pspawn {child}.0 v{v} {} {preload}", self.rng.pick(&[0, 1, 7])))
            }
            8..=10 => {
                let p = self.model.processes.get(process)?;
                let n = p.threads;
                (n < 6).then(|| format!("{t} thread {process}.{}", n + 10))
            }
            _ if self.model.processes.len() > 2
                && self.model.processes.get(process)?.init.as_deref() != Some(process)
                && self.model.holders(What::End(end)).len() > 1
                && !self.model.ends_piecemeal(process) =>
            {
                Some(format!("{t} exit {}", self.rng.pick(&["exit", "_exit"])))
            }
            _ => None,
        }
    }

    /// Passes a connection to another process, or takes one that was passed.
    fn mail(&mut self, t: &str, process: &str) -> Option<String> {
        if !self.has("scm") {
            return None;
        }
        if self.model.mail.iter().any(|(to, _)| to == process) {
            let s = self.model.fresh(process);
            let flags = if self.rng.chance(30) { libc::MSG_CMSG_CLOEXEC } else { 0 };
            return (s < 60).then(|| format!("{t} urecv v{s} {flags}"));
        }
        let ends: Vec<usize> = self
            .model
            .processes
            .get(process)?
            .slots
            .iter()
            .filter(|(_, w)| matches!(w, What::End(e) if self.model.can_leave(*e)))
            .map(|(s, _)| *s)
            .collect();
        let others: Vec<String> = self.model.processes.keys().filter(|p| *p != process).cloned().collect();
        if ends.is_empty() || others.is_empty() {
            return None;
        }
        let v = *self.rng.pick(&ends);
        Some(format!("{t} usend v{v} {}", self.rng.pick(&others)))
    }

    fn faults(&mut self, t: &str, v: usize, end: usize) -> Option<String> {
        if self.model.has_reader(end) {
            return None;
        }
        if self.rng.chance(40) {
            let calls = ["read", "recv", "send", "close", "dup", "shutdown", "poll"];
            return Some(format!("{t} badfd {} {}", self.rng.pick(&[-1, 777, 100_000]), self.rng.pick(&calls)));
        }
        if self.rng.chance(15) {
            return Some(format!("{t} closeunknown"));
        }
        // EFAULT halfway through queued data may or may not consume what was copied: only plain cases.
        let kinds = [
            "recv",
            "peek",
            "send",
            "recvmsg",
            "sendmsg",
            "recviov",
            "sendiov",
            "writev",
            "iovcount",
            "fionread",
            "poll",
            "getsockopt",
        ];
        Some(format!("{t} fault v{v} {}", self.rng.pick(&kinds)))
    }

    /// Signals, alarms, sudden death.
    fn disturb(&mut self) -> Option<String> {
        let blocked: Vec<String> = self.model.blocked.keys().cloned().collect();
        match self.rng.below(10) {
            0..=4 if !blocked.is_empty() => {
                let t = self.rng.pick(&blocked).clone();
                // A stop ends the kernel's sleep, and if a handler has run by the time that the process goes on, the call fails with
                // EINTR, although bytes have come meanwhile; under the library it returns them, as the kernel does to one that was
                // not stopped.
                let reads = matches!(self.model.blocked.get(&t), Some(Waiting::Read(_)));
                if reads && self.model.stopped.contains(process_of(&t)) {
                    return None;
                }
                // A handler with SA_RESTART or without decides whether the call goes on.
                Some(format!("@ signal {t} {}", self.rng.pick(&[libc::SIGUSR1, libc::SIGALRM])))
            }
            5 if !self.model.idle.is_empty() => {
                let idle = self.model.idle.clone();
                let t = self.rng.pick(&idle).clone();
                let mode = self.rng.pick(&["restart", "plain", "ignore"]);
                Some(format!("{t} sigact {} {mode}", libc::SIGUSR1))
            }
            6 if !self.model.idle.is_empty() => {
                let idle = self.model.idle.clone();
                Some(format!("{} handled", self.rng.pick(&idle)))
            }
            7 => {
                let idle = self.model.idle.clone();
                let t = self
                    .rng
                    .pick(&idle.iter().collect::<Vec<_>>().iter().map(|s| s.as_str()).chain([""]).collect::<Vec<_>>())
                    .to_string();
                let p = self.model.processes.get(process_of(&t))?;
                let ends: Vec<(usize, usize)> = p
                    .slots
                    .iter()
                    .filter_map(|(s, w)| if let What::End(e) = w { Some((*s, *e)) } else { None })
                    .collect();
                let (v, e) = *ends.get(self.rng.below(ends.len()))?;
                // The timer's signal goes to any thread that does not block it: only safe when there is one.
                let alone = self
                    .model
                    .idle
                    .iter()
                    .chain(self.model.blocked.keys())
                    .filter(|x| process_of(x) == process_of(&t))
                    .count()
                    == 1;
                let x = &self.model.ends[e];
                let ready = x.nonblock || x.timed || self.model.has_reader(e) || self.model.under_way(e) > 0;
                (alone && !ready).then(|| format!("{t} ~alarm 15 v{v}"))
            }
            8 if self.model.processes.len() > 1 && self.has("kill") => {
                let names: Vec<String> = self.model.processes.keys().cloned().collect();
                let name = self.rng.pick(&names).clone();
                if self.model.ends_piecemeal(&name) {
                    return None;
                }
                // One that shares all that it has is killed more often.
                let shared = |e: &usize| self.model.holders(What::End(*e)).len() > 1;
                let shares = self.model.ends_of(&name).iter().all(shared);
                self.rng.chance(if shares { 60 } else { 15 }).then(|| format!("@ kill {name}"))
            }
            9 if self.has("stop") => {
                let running =
                    self.model.processes.keys().filter(|p| !self.model.stopped.contains(*p) && self.may_stop(p));
                let names: Vec<String> = running.cloned().collect();
                (names.len() > 1).then(|| format!("@ stop {}", self.rng.pick(&names)))
            }
            _ => None,
        }
    }

    /// The end: everything that is still under way must arrive, then the end of stream.
    fn close(&mut self) -> Vec<String> {
        let mut lines = vec!["@ channels".to_owned()];
        for round in 0..2 {
            for end in 0..self.model.ends.len() {
                if self.model.has_reader(end) {
                    continue;
                }
                let Some((t, v)) = self.model.free_holder(end, "") else { continue };
                lines.push(format!("{t} fionread v{v}"));
                lines.push(format!("{t} drain v{v}"));
                lines.push(format!("{t} poll poll 0 v{v}:{}", 0x2005));
                lines.push(format!("{t} getopt v{v} error"));
                if round == 0 && end % 2 == 0 && !matches!(self.model.blocked.get(&t), Some(Waiting::Read(_))) {
                    lines.push(format!("{t} shutdown v{v} 1"));
                }
            }
        }
        lines
    }
}
