//! The director: starts workers, hears what they report, stops and kills them.

use crate::end::STALL;
use crate::look;
use differ::rng::Rng;
use differ::spaces::{self, Spaces};
use differ::task;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// What is asked for on the command line.
pub struct Cli {
    time: Duration,
    seed: u64,
    lib: Option<PathBuf>,
    pairs: usize,
    connections: u64,
    largest: u64,
    eager: Option<String>,
    spin: Option<String>,
    without: String,
    /// Where all workers are, if not here and there.
    spaces: Option<&'static str>,
}

impl Cli {
    /// Reads it.
    pub fn parse(args: &[String]) -> Result<Cli, String> {
        let mut cli = Cli {
            time: Duration::from_secs(60),
            seed: 1,
            lib: None,
            pairs: 3,
            connections: 24,
            largest: 3_000_000,
            eager: None,
            spin: None,
            without: "-".to_owned(),
            spaces: None,
        };
        let mut it = args.iter();
        while let Some(flag) = it.next() {
            let value = it.next().ok_or_else(|| format!("{flag} needs a value"))?;
            let number = || value.parse::<u64>().map_err(|_| format!("{flag}: {value:?} is not a number"));
            match flag.as_str() {
                "--seconds" => cli.time = Duration::from_secs(number()?),
                "--seed" => cli.seed = number()?,
                "--lib" => {
                    let path = PathBuf::from(value).canonicalize();
                    cli.lib = Some(path.map_err(|e| format!("--lib {value}: {e}"))?);
                }
                "--pairs" => cli.pairs = number()? as usize,
                "--connections" => cli.connections = number()?,
                "--eager" => cli.eager = Some(value.clone()),
                "--spin" => cli.spin = Some(value.clone()),
                "--without" => cli.without = value.clone(),
                "--largest" => cli.largest = number()?,
                "--spaces" => {
                    let known = SPACES.iter().chain(&["-"]).find(|s| *s == value);
                    cli.spaces =
                        Some(known.ok_or_else(|| format!("--spaces: {value:?} is none of {SPACES:?} and \"-\""))?);
                }
                _ => return Err(format!("unknown option {flag}")),
            }
        }
        Ok(cli)
    }

    fn has(&self, kind: &str) -> bool {
        !self.without.split(',').any(|w| w == kind)
    }
}

/// A line from a worker of pair `pair`.
struct Said {
    pair: usize,
    line: String,
}

struct Worker {
    child: Child,
    /// The worker itself, once known: in namespaces it is a child of `child`.
    pid: Option<i32>,
    spaces: &'static str,
    /// Stopped until then.
    stopped: Option<Instant>,
    /// Closing it asks the connector to stop.
    input: Option<ChildStdin>,
}

impl Worker {
    fn signal(&self, sig: i32) {
        if let Some(pid) = self.pid {
            call!(kill(pid, sig));
        }
    }
}

struct Pair {
    listener: Worker,
    connector: Worker,
    /// A worker of it was killed: its connections may break.
    killed: bool,
    ends_at: Instant,
    next_stop: Instant,
    stopping: Option<Instant>,
}

/// A listener that has not got its connector yet.
struct Opening {
    listener: Worker,
    port: Option<String>,
}

#[derive(Default)]
struct Totals {
    opened: u64,
    done: u64,
    broken: u64,
    bytes: u64,
    failures: u64,
    with_channel: u64,
    /// What was done, and how often.
    actions: BTreeMap<String, u64>,
    /// Connections that were given up on purpose.
    cuts: BTreeSet<u64>,
    /// Ends that broke, and perhaps had to: pair, connection, line, and when to decide.
    doubtful: Vec<(usize, u64, String, Instant)>,
}

impl Totals {
    fn did(&mut self, what: &str) {
        *self.actions.entry(what.to_owned()).or_default() += 1;
    }
}

/// Where workers may be, as [`Spaces`] has it.
const SPACES: &[&str] =
    &["user", "root", "mnt", "pid", "net", "root,net,pid,mnt", "user,pid,mnt", "root,pid,mnt,ipc,uts", "user,net"];

/// What must have happened in a run of two minutes.
const KINDS: &[&str] = &[
    "dup",
    "fork",
    "exec",
    "scm",
    "hold",
    "turns",
    "dies",
    "survive",
    "split",
    "kill",
    "stop",
    "spaces",
    "eager",
    "lazy",
    "spinning",
    "not spinning",
];

/// The director: starts workers, hears what they report, stops and kills them.
struct Director<'a> {
    cli: &'a Cli,
    rng: Rng,
    totals: Totals,
    said: mpsc::Sender<Said>,
    opening: BTreeMap<usize, Opening>,
    pairs: BTreeMap<usize, Pair>,
}

/// Runs it all; the exit status.
pub fn direct(cli: &Cli) -> i32 {
    let (said, heard) = mpsc::channel();
    let (rng, totals) = (Rng::new(cli.seed), Totals::default());
    let mut d = Director { cli, rng, totals, said, opening: BTreeMap::new(), pairs: BTreeMap::new() };
    let begin = Instant::now();
    let (mut next, mut shown) = (0, Instant::now());
    loop {
        let over = begin.elapsed() > cli.time || d.totals.failures > 20;
        while !over && d.pairs.len() + d.opening.len() < cli.pairs {
            d.open(next);
            next += 1;
        }
        if let Ok(said) = heard.recv_timeout(Duration::from_millis(20)) {
            d.hear(said);
        }
        d.tend(over);
        d.decide(over && d.pairs.is_empty());
        if over && d.pairs.is_empty() {
            break;
        }
        if shown.elapsed() > Duration::from_secs(10) {
            shown = Instant::now();
            d.summary(begin);
        }
    }
    for (_, mut o) in std::mem::take(&mut d.opening) {
        o.listener.signal(libc::SIGKILL);
        let _ = o.listener.child.kill();
        let _ = o.listener.child.wait();
    }
    d.summary(begin);
    let list: Vec<String> = d.totals.actions.iter().map(|(kind, n)| format!("{kind} {n}")).collect();
    println!("actions: {}", list.join(", "));
    let missing = if cli.time >= Duration::from_secs(120) { d.missing() } else { Vec::new() };
    if !missing.is_empty() {
        println!("never happened: {}", missing.join(", "));
    }
    i32::from(d.totals.failures > 0 || d.totals.done == 0 || !missing.is_empty())
}

impl Director<'_> {
    fn start(&mut self, args: &[String], preload: bool, pair: usize, spaces: &'static str, join: i32) -> Worker {
        let cli = self.cli;
        let mut command = Command::new(std::env::current_exe().expect("this program has a path"));
        let inside = spaces != "-" || join != 0;
        if inside {
            command.args(["within", spaces, &join.to_string()]);
            self.totals.did("spaces");
            spaces.split(',').filter(|s| *s != "-").for_each(|s| self.totals.did(s));
        }
        command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).env_remove("LD_PRELOAD");
        if let (Some(lib), true) = (&cli.lib, preload) {
            let eager = cli.eager.clone().unwrap_or_else(|| (*self.rng.pick(&["0", "0", "1"])).to_owned());
            let spin = cli.spin.clone().unwrap_or_else(|| (*self.rng.pick(&["off", "auto", "50"])).to_owned());
            self.totals.did(if eager == "1" { "eager" } else { "lazy" });
            self.totals.did(if spin == "off" { "not spinning" } else { "spinning" });
            command.env("CULVERT_EAGER", eager).env("CULVERT_SPIN", spin);
            command.env(if inside { "SOAK_PRELOAD" } else { "LD_PRELOAD" }, lib);
        }
        let mut child = command.spawn().expect("a worker starts");
        let out = child.stdout.take().expect("standard output is a pipe");
        let said = self.said.clone();
        std::thread::spawn(move || {
            for line in BufReader::new(out).lines().map_while(Result::ok) {
                if said.send(Said { pair, line }).is_err() {
                    return;
                }
            }
        });
        let input = child.stdin.take();
        let pid = (!inside).then(|| child.id() as i32);
        Worker { child, pid, spaces, stopped: None, input }
    }

    /// Namespaces for one worker in three.
    fn spaces(&mut self) -> &'static str {
        if let Some(spaces) = self.cli.spaces {
            return spaces;
        }
        let some = self.cli.has("spaces") && spaces::allowed() && self.rng.chance(35);
        if some { SPACES[self.rng.below(SPACES.len())] } else { "-" }
    }

    fn open(&mut self, pair: usize) {
        let spaces = self.spaces();
        let args = ["listen".to_owned(), self.cli.largest.to_string(), self.cli.without.clone()];
        let listener = self.start(&args, pair % 4 != 3, pair, spaces, 0);
        self.opening.insert(pair, Opening { listener, port: None });
    }

    /// Starts the connector of a listener whose port and process are known.
    fn join(&mut self, pair: usize) {
        let known = self.opening.get(&pair).is_some_and(|o| o.port.is_some() && o.listener.pid.is_some());
        let Some(Opening { listener, port: Some(port) }) = known.then(|| self.opening.remove(&pair)).flatten() else {
            return;
        };
        let seed = self.cli.seed * 1000 + pair as u64;
        let args: [String; 6] = [
            "connect".to_owned(),
            port,
            self.cli.connections.to_string(),
            seed.to_string(),
            self.cli.largest.to_string(),
            self.cli.without.clone(),
        ];
        // Both have the listener's network.
        let net = Spaces::new(listener.spaces).has("net");
        let mut spaces = self.spaces();
        if Spaces::new(spaces).has("net") {
            spaces = "mnt";
        }
        let join = if net { listener.pid.unwrap_or(0) } else { 0 };
        let connector = self.start(&args, pair % 4 != 2, pair, spaces, join);
        let ends_at = Instant::now() + Duration::from_millis(self.rng.range(3000, 12_000) as u64);
        let next_stop = Instant::now();
        self.pairs.insert(pair, Pair { listener, connector, killed: false, ends_at, next_stop, stopping: None });
    }

    fn summary(&self, begin: Instant) {
        let t = &self.totals;
        println!(
            "{:.0} s: {} connections opened, {} ends complete, {} broken by kills, {} bytes checked, {} pairs seen with a \
             channel, {} failures",
            begin.elapsed().as_secs_f64(),
            t.opened,
            t.done,
            t.broken,
            t.bytes,
            t.with_channel,
            t.failures
        );
    }

    fn missing(&self) -> Vec<&'static str> {
        let off = |kind: &str| {
            !self.cli.has(kind)
                || kind == "survive" && !self.cli.has("dies")
                || kind == "spaces" && !spaces::allowed()
                || matches!(kind, "eager" | "lazy") && (self.cli.eager.is_some() || self.cli.lib.is_none())
                || kind.ends_with("spinning") && (self.cli.spin.is_some() || self.cli.lib.is_none())
        };
        KINDS.iter().copied().filter(|k| !self.totals.actions.contains_key(*k) && !off(k)).collect()
    }

    fn hear(&mut self, said: Said) {
        let (word, rest) = said.line.split_once(' ').unwrap_or((&said.line, ""));
        let mut words = rest.split(' ');
        let seed = || rest.split(' ').next().and_then(|s| s.parse().ok()).unwrap_or(0);
        match word {
            "worker" => {
                let (role, pid) = (words.next(), words.next().and_then(|p| p.parse().ok()));
                let worker = match (self.opening.get_mut(&said.pair), self.pairs.get_mut(&said.pair)) {
                    (Some(o), _) => &mut o.listener,
                    (_, Some(p)) if role == Some("connect") => &mut p.connector,
                    (_, Some(p)) => &mut p.listener,
                    _ => return,
                };
                worker.pid = pid;
                self.join(said.pair);
            }
            "port" => {
                if let Some(o) = self.opening.get_mut(&said.pair) {
                    o.port = Some(rest.to_owned());
                }
                self.join(said.pair);
            }
            "open" => self.totals.opened += 1,
            "did" => self.totals.did(rest),
            "cut" => {
                self.totals.cuts.insert(seed());
                self.totals.did("cut");
            }
            "done" => {
                self.totals.done += 1;
                self.totals.bytes += rest.parse::<u64>().unwrap_or(0);
            }
            "broken" if self.pairs.get(&said.pair).is_none_or(|p| p.killed) => self.totals.broken += 1,
            // Whoever gave the connection up says so in another pipe.
            "broken" => {
                let until = Instant::now() + Duration::from_secs(3);
                self.totals.doubtful.push((said.pair, seed(), said.line.clone(), until));
            }
            _ => self.fail(said.pair, &said.line),
        }
    }

    fn fail(&mut self, pair: usize, line: &str) {
        self.totals.failures += 1;
        println!("FAILURE in pair {pair}: {line}");
        if let Some(p) = self.pairs.get(&pair) {
            println!("  listener in {}, connector in {}", p.listener.spaces, p.connector.spaces);
            if self.totals.failures <= 3 && line.contains("STALLED") {
                look::connection(line);
                dump(p);
            }
        }
    }

    /// Ends that broke: for a reason that was heard of meanwhile, or for none.
    fn decide(&mut self, at_once: bool) {
        let due = |until: &Instant| at_once || Instant::now() > *until;
        let (now, later): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.totals.doubtful).into_iter().partition(|(.., until)| due(until));
        self.totals.doubtful = later;
        for (pair, seed, line, _) in now {
            if self.totals.cuts.contains(&seed) || self.pairs.get(&pair).is_some_and(|p| p.killed) {
                self.totals.broken += 1;
            } else {
                self.fail(pair, &line);
            }
        }
    }

    /// Ends pairs whose time is over: by death of one worker, or by letting the connector finish. Stops others for a moment.
    fn tend(&mut self, over: bool) {
        let mut finished = Vec::new();
        let mut lost = Vec::new();
        let (cli, rng, totals) = (self.cli, &mut self.rng, &mut self.totals);
        for (n, p) in &mut self.pairs {
            for w in [&mut p.listener, &mut p.connector] {
                if w.stopped.is_some_and(|until| Instant::now() > until) {
                    w.signal(libc::SIGCONT);
                    w.stopped = None;
                }
            }
            if cli.has("stop") && Instant::now() > p.next_stop {
                p.next_stop = Instant::now() + Duration::from_millis(rng.range(100, 3000) as u64);
                let w = if rng.chance(50) { &mut p.listener } else { &mut p.connector };
                w.signal(libc::SIGSTOP);
                w.stopped = Some(Instant::now() + Duration::from_millis(rng.range(1, 400) as u64));
                totals.did("stop");
            }
            if p.stopping.is_none() && (over || Instant::now() > p.ends_at) {
                p.stopping = Some(Instant::now());
                let both = [&p.listener, &p.connector].iter().all(|w| w.pid.is_some_and(task::has_channel));
                totals.with_channel += u64::from(both);
                if cli.has("kill") && rng.chance(40) {
                    p.killed = true;
                    totals.did("kill");
                    let victim = if rng.chance(50) { &p.listener } else { &p.connector };
                    victim.signal(libc::SIGKILL);
                }
                p.connector.input = None;
            }
            let Some(since) = p.stopping else { continue };
            if matches!(p.connector.child.try_wait(), Ok(Some(_))) {
                finished.push(*n);
            } else if since.elapsed() > STALL * 3 {
                lost.push(*n);
                finished.push(*n);
            }
        }
        for n in lost {
            self.fail(n, "the connector does not finish");
            dump(&self.pairs[&n]);
        }
        for n in finished {
            if let Some(p) = self.pairs.remove(&n) {
                for mut w in [p.connector, p.listener] {
                    w.signal(libc::SIGKILL);
                    let _ = w.child.kill();
                    let _ = w.child.wait();
                }
            }
        }
    }
}

fn dump(p: &Pair) {
    for w in [&p.listener, &p.connector] {
        println!("{}", task::whereabouts(w.pid.unwrap_or(w.child.id() as i32)));
    }
    if let Ok(culvert) = std::env::var("CULVERT_BIN") {
        match Command::new(culvert).args(["stat", "--json"]).output() {
            Ok(o) => println!("{}", String::from_utf8_lossy(&o.stdout)),
            Err(e) => println!("culvert stat: {e}"),
        }
    }
}
