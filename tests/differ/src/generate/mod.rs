//! The generator: the next step of a scenario, given what the kernel answered so far.
//!
//! Steps are kept predictable: no more bytes under way than every kernel takes without blocking, one
//! reader per end, Nagle's delay off, no choice left to scheduling.

mod steps;

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
            70..=75 => self.ask(&t, slot),
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
