//! A run: two hosts, the network between them, and virtual time.

mod look;
mod noise;
#[cfg(test)]
mod tests;

use crate::card::Card;
use crate::clock;
use crate::endpoint::options;
use crate::facts::{Sent, Side, View};
use crate::network::{self, Delivery, Network, service};
use crate::packet::{Opt, flag};
use crate::programs::Programs;
use crate::rng::{Rng, mix};
use crate::scenario::Scenario;
use crate::verdict;
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::net::SocketAddr;
use std::rc::Rc;
use zstack::counters::Counter;
use zstack::net::{Address, Route};
use zstack::stack::{Config, Connect, Limits, Listen, Stack};
use zstack::time::Time;

enum What {
    Arrive(usize, Vec<u8>),
    Wake(usize),
    Card(usize),
    Act(usize, usize),
    Start(usize),
    Noise(usize),
    Vanish(usize),
    Adopt(usize),
}

struct Due {
    at: u64,
    turn: u64,
    what: What,
}

impl PartialEq for Due {
    fn eq(&self, other: &Due) -> bool {
        self.turn == other.turn
    }
}
impl Eq for Due {}
impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Due) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Due {
    fn cmp(&self, other: &Due) -> std::cmp::Ordering {
        (self.at, self.turn).cmp(&(other.at, other.turn))
    }
}

/// What a run came to.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Outcome {
    /// What must not have been; empty: it went well.
    pub faults: Vec<String>,
    /// A fingerprint of every packet and event and its time.
    pub digest: u64,
    /// How many frames were sent.
    pub frames: u64,
    /// How many turns the engines had.
    pub turns: u64,
    /// How much virtual time passed, in microseconds.
    pub time: u64,
    /// Bytes that arrived, in all streams.
    pub bytes: u64,
    /// Connections that ended in order at both ends.
    pub done: u64,
    /// All connections.
    pub conns: u64,
    /// What happened, if it was asked for.
    pub log: Vec<String>,
}

/// Who is told what happens.
type Say = Box<dyn FnMut(&str)>;

/// A run in progress.
pub struct World {
    /// What it is made from.
    pub scenario: Rc<Scenario>,
    /// The hosts.
    pub sides: [Side; 2],
    /// The way between them.
    pub network: Network,
    /// Virtual time, in microseconds.
    pub now: u64,
    heap: BinaryHeap<Reverse<Due>>,
    count: u64,
    rng: Rng,
    ports: Vec<Option<u16>>,
    /// What each host has sent of each connection.
    pub(crate) sent: Vec<[Sent; 2]>,
    /// What the hosts' clocks showed at the beginning.
    origins: [u64; 2],
    started: usize,
    deliveries: Vec<Delivery>,
    outcome: Outcome,
    verbose: bool,
    say: Option<Say>,
    budget: u64,
}

/// Runs a scenario. `verbose`: what happened is written down ([`Outcome::log`]).
pub fn run(scenario: &Scenario, verbose: bool) -> Outcome {
    let mut world = World::new(scenario, verbose);
    world.run();
    world.outcome
}

/// Runs a scenario and says what happens while it happens, so that a panic does not hide it.
pub fn run_with(scenario: &Scenario, mut say: impl FnMut(&str) + 'static) -> Outcome {
    let mut world = World::new(scenario, true);
    world.say = Some(Box::new(move |line: &str| say(line)));
    world.run();
    world.outcome
}

fn stack(scenario: &Scenario, side: usize, card: &Card) -> Stack {
    let plan = &scenario.sides[side];
    let prefix = |v6: bool| if v6 { 64 } else { 24 };
    let of = |v6: bool| Address { ip: network::address(side, v6, scenario.routed), prefix: prefix(v6) };
    let mut config = Config::new(of(false), clock::key(scenario, side));
    if plan.card.mtu >= 1280 {
        config.addresses.push(of(true));
    }
    if scenario.routed {
        let versions: &[bool] = if plan.card.mtu >= 1280 { &[false, true] } else { &[false] };
        let route = |&v6: &bool| {
            let any = if v6 { std::net::Ipv6Addr::UNSPECIFIED.into() } else { std::net::Ipv4Addr::UNSPECIFIED.into() };
            Route { network: Address { ip: any, prefix: 0 }, gateway: Some(network::gateway(side, v6)) }
        };
        config.routes = versions.iter().map(route).collect();
    }
    if plan.card.ethernet {
        config.mac = Some(network::mac(side));
        config.vlan = scenario.vlan;
    }
    config.limits = Limits { connections: 64, half_open: plan.half_open, time_wait: 64, ..Limits::default() };
    let now = Time(clock::origin(scenario, side));
    Stack::new(config, zstack::port::Port::capabilities(card), now).expect("a configuration of the simulator's")
}

impl World {
    /// A run that has not begun.
    pub fn new(scenario: &Scenario, verbose: bool) -> World {
        let scenario = Rc::new(scenario.clone());
        let side = |i: usize| {
            let card = Card::new(scenario.sides[i].card.clone(), scenario.seed ^ (i as u64 + 77));
            let stack = stack(&scenario, i, &card);
            Side {
                stack,
                card,
                programs: Programs::new(scenario.clone(), verbose),
                deadline: None,
                gone: false,
                syns: Vec::new(),
            }
        };
        let ethernet = [scenario.sides[0].card.ethernet, scenario.sides[1].card.ethernet];
        let network = Network::new(&scenario.links, ethernet, scenario.routed, scenario.vlan, scenario.seed ^ 99);
        let mut world = World {
            sides: [side(0), side(1)],
            network,
            now: 0,
            heap: BinaryHeap::new(),
            count: 0,
            rng: Rng::new(scenario.seed ^ 1234),
            ports: vec![None; scenario.conns.len()],
            sent: vec![[Sent::default(); 2]; scenario.conns.len()],
            origins: [clock::origin(&scenario, 0), clock::origin(&scenario, 1)],
            started: 0,
            deliveries: Vec::new(),
            outcome: Outcome { conns: scenario.conns.len() as u64, ..Outcome::default() },
            verbose,
            say: None,
            budget: verdict::frames(&scenario),
            scenario,
        };
        world.prepare();
        world
    }

    fn schedule(&mut self, at: u64, what: What) {
        self.count += 1;
        self.heap.push(Reverse(Due { at: at.max(self.now), turn: self.count, what }));
    }

    fn prepare(&mut self) {
        let scenario = self.scenario.clone();
        for side in 0..2 {
            if let Some(frame) = self.network.greeting(side) {
                self.schedule(0, What::Arrive(side, frame));
            }
            if let Some(at) = scenario.sides[side].vanishes {
                self.schedule(at, What::Vanish(side));
            }
            for &(from, length) in &scenario.sides[side].stops {
                self.schedule(from + length, What::Wake(side));
            }
        }
        for (i, conn) in scenario.conns.iter().enumerate() {
            if !conn.both {
                let side = &mut self.sides[1 - conn.opener];
                let listener = side.stack.listen(Listen {
                    address: None,
                    port: Some(service(i)),
                    backlog: 16,
                    deferred: conn.decision.is_some(),
                    deferred_cookies: false,
                    options: Some(options(&conn.apps[1].options)),
                    room: u64::from(conn.apps[1].rings.1),
                });
                side.programs.listeners.insert(listener.expect("nobody has the port"), i);
            }
            self.schedule(conn.start, What::Start(i));
            if let Some(at) = conn.adopt {
                self.schedule(at, What::Adopt(i));
            }
        }
        for (i, noise) in scenario.noise.iter().enumerate() {
            self.schedule(noise.at, What::Noise(i));
        }
    }

    fn note(&mut self, text: impl FnOnce() -> String) {
        if self.verbose {
            let line = format!("{:>12.6} {}", self.now as f64 / 1e6, text());
            match &mut self.say {
                Some(say) => say(&line),
                None => self.outcome.log.push(line),
            }
        }
    }

    fn fault(&mut self, fault: String) {
        if self.outcome.faults.len() < 20 {
            self.note(|| format!("FAULT: {fault}"));
            self.outcome.faults.push(fault);
        }
    }

    /// What a host's clock shows.
    fn clock(&self, side: usize) -> Time {
        Time(self.origins[side] + self.now)
    }

    fn stopped(&self, side: usize) -> bool {
        self.scenario.sides[side].stops.iter().any(|s| (s.0..s.0 + s.1).contains(&self.now))
    }

    fn view(&self) -> View<'_> {
        let (scenario, fates) = (&*self.scenario, &self.network.fates);
        let lost = fates.lost + fates.corrupt + fates.too_long;
        View { scenario, sides: &self.sides, sent: &self.sent, lost, started: self.started, now: self.now }
    }

    /// The run.
    pub(crate) fn run(&mut self) {
        loop {
            if !self.outcome.faults.is_empty() {
                break;
            }
            if self.over() {
                self.drain();
                if self.over() {
                    break;
                }
            }
            if self.now > verdict::LIMIT && !(verdict::only_deceived(&self.view()) && self.give_up()) {
                let open = verdict::unfinished(&self.view());
                self.fault(format!("three hours have passed, and it is not over: {open}"));
                break;
            }
            if !self.step() {
                let stuck = verdict::stuck(&self.view());
                if let Some(fault) = stuck {
                    self.fault(fault);
                    break;
                }
                if !self.give_up() {
                    let open = verdict::unfinished(&self.view());
                    self.fault(format!("nobody has anything to do, and it is not over: {open}"));
                    break;
                }
            }
        }
        if self.outcome.faults.is_empty() {
            for fault in verdict::at_the_end(&self.view()) {
                self.fault(fault);
            }
        }
        self.outcome.time = self.now;
        self.outcome.frames = self.network.fates.sent;
        for side in &self.sides {
            self.outcome.digest = mix(self.outcome.digest ^ side.programs.digest);
            self.outcome.bytes += side.programs.ends.iter().map(|e| e.published).sum::<u64>();
        }
        self.outcome.done = verdict::done(&self.view());
    }

    /// All connections have begun and ended.
    fn over(&self) -> bool {
        self.started == self.scenario.conns.len()
            && self.sides.iter().all(|s| s.gone || s.programs.ends.iter().all(|e| e.freed))
    }

    /// Nothing happens, and what is open waits for a peer that is gone: whoever holds it closes it.
    fn give_up(&mut self) -> bool {
        let mut any = false;
        for s in 0..2 {
            let side = &mut self.sides[s];
            for end in side.programs.ends.iter_mut().filter(|e| !e.freed && !e.aborted) {
                end.give_up(&mut side.stack);
                any = true;
            }
            if any {
                self.turn(s);
            }
        }
        any
    }

    /// TIME_WAIT passes; then nothing may be left.
    fn drain(&mut self) {
        let until = self.now + 600_000_000;
        while self.heap.peek().is_some_and(|d| d.0.at <= until) && self.outcome.faults.is_empty() {
            self.step();
        }
        self.now = self.now.max(until);
        for s in 0..2 {
            if self.outcome.faults.is_empty() && !self.stopped(s) {
                self.turn(s);
            }
        }
    }

    /// The next thing happens. False: there is none.
    fn step(&mut self) -> bool {
        let Some(Reverse(due)) = self.heap.pop() else { return false };
        self.now = due.at;
        match due.what {
            What::Arrive(side, frame) => {
                if self.verbose {
                    let line = self.line(&frame, side, 1 - side);
                    self.note(|| format!("{side} <  {line}"));
                }
                if let Some((conn, tcp)) = self.segment(&frame, side)
                    && tcp.flags & (flag::SYN | flag::ACK) == flag::SYN
                {
                    self.sides[side].syns.push(conn);
                }
                let told =
                    self.segment(&frame, side).filter(|(_, tcp)| tcp.options.iter().any(|o| matches!(o, Opt::Sack(_))));
                self.stamped(side, &frame);
                self.sides[side].card.arrive(frame);
                self.turn(side);
                if let Some((conn, _)) = told {
                    self.sacked(side, conn);
                }
            }
            What::Wake(side) => {
                if self.sides[side].deadline.is_some_and(|d| d <= self.now)
                    || !self.scenario.sides[side].stops.is_empty()
                {
                    self.turn(side);
                }
            }
            What::Card(side) => {
                let before = self.sides[side].card.out.len();
                self.sides[side].card.advance(self.now);
                if self.sides[side].card.out.len() > before {
                    self.turn(side);
                }
            }
            What::Act(side, end) => {
                self.sides[side].programs.news.push(end);
                if !self.stopped(side) && self.act(side) {
                    self.turn(side);
                }
            }
            What::Start(conn) => self.start(conn),
            What::Noise(i) => self.noise(i),
            What::Vanish(side) => {
                self.note(|| format!("{side}: the device vanishes"));
                self.sides[side].card.vanish();
                self.turn(side);
            }
            What::Adopt(conn) => self.adopt(conn),
        }
        true
    }

    fn start(&mut self, conn: usize) {
        let scenario = self.scenario.clone();
        let plan = &scenario.conns[conn];
        if let Some(until) = [0, 1].iter().filter_map(|&s| self.stop_end(s)).max() {
            self.schedule(until, What::Start(conn));
            return;
        }
        self.started += 1;
        let ends: &[usize] = if plan.both { &[0, 1] } else { &[0] };
        for &app in ends {
            let s = if app == 0 { plan.opener } else { 1 - plan.opener };
            let opener = clock::opener_port(&scenario, conn);
            let (local, remote) =
                if app == 0 { (opener, service(conn)) } else { (Some(service(conn)), opener.unwrap_or(0)) };
            let connect = Connect {
                local: None,
                local_port: local,
                remote: SocketAddr::new(network::address(1 - s, plan.v6, scenario.routed), remote),
                options: Some(options(&plan.apps[app].options)),
                room: u64::from(plan.apps[app].rings.1),
            };
            let now = self.clock(s);
            let side = &mut self.sides[s];
            match side.stack.connect(now, connect) {
                Ok(id) => {
                    side.programs.add(id, Some(conn), app);
                }
                Err(_) if side.gone => {}
                Err(error) => self.fault(format!("connection {conn} was refused by its own stack: {error:?}")),
            }
        }
        for s in 0..2 {
            self.act(s);
            self.turn(s);
        }
    }

    fn stop_end(&self, side: usize) -> Option<u64> {
        self.scenario.sides[side].stops.iter().filter(|s| (s.0..s.0 + s.1).contains(&self.now)).map(|s| s.0 + s.1).max()
    }

    /// Takes a connection out of its stack as numbers, and lets the stack build it again from them.
    fn adopt(&mut self, conn: usize) {
        let s = self.scenario.conns[conn].opener;
        if self.stopped(s) {
            return;
        }
        let (now, shift) = (self.clock(s), self.scenario.conns[conn].shift);
        let side = &mut self.sides[s];
        let Some(index) = side.programs.ends.iter().position(|e| e.conn == Some(conn) && e.app == 0) else { return };
        match side.programs.ends[index].adopt(&mut side.stack, now, shift) {
            Ok(None) => {}
            Ok(Some(id)) => {
                side.programs.rename(index, id);
                self.note(|| format!("{s}: connection {conn} was taken out and adopted"));
                self.act(s);
                self.turn(s);
            }
            Err(fault) => self.fault(fault),
        }
    }

    /// Programs of a host act. True: one of them called the engine.
    fn act(&mut self, s: usize) -> bool {
        let mut called = false;
        let side = &mut self.sides[s];
        let mut news = std::mem::take(&mut side.programs.news);
        news.sort_unstable();
        news.dedup();
        for index in news.drain(..) {
            let (wake, did) = side.programs.ends[index].act(self.now, &mut side.stack);
            called |= did;
            if let Some(at) = wake {
                self.count += 1;
                self.heap.push(Reverse(Due { at: at.max(self.now + 1), turn: self.count, what: What::Act(s, index) }));
            }
        }
        if side.programs.news.is_empty() {
            side.programs.news = news;
        }
        called
    }

    /// A host's engine works until it has nothing to do at this moment.
    fn turn(&mut self, s: usize) {
        if self.stopped(s) {
            return;
        }
        let mut rounds = 0;
        let cookies = self.sides[s].stack.counters()[Counter::CookieSent];
        let last = loop {
            let side = &mut self.sides[s];
            side.card.advance(self.now);
            side.programs.now = self.now;
            let now = Time(self.origins[s] + self.now);
            let turn = side.stack.turn(now, &mut side.card, &mut side.programs);
            side.stack.check();
            self.outcome.turns += 1;
            side.gone |= turn.gone;
            self.ship(s);
            let called = self.act(s);
            rounds += 1;
            if rounds > 3_000 {
                self.fault(format!("host {s} had {rounds} turns at one moment: {turn:?}"));
                break turn;
            }
            if !(called || turn.more && !turn.full) || !self.outcome.faults.is_empty() {
                break turn;
            }
        };
        let syns = std::mem::take(&mut self.sides[s].syns);
        if self.sides[s].stack.counters()[Counter::CookieSent] > cookies {
            for conn in syns {
                self.sent[conn][1 - s].cookie = true;
            }
        }
        let side = &mut self.sides[s];
        let deadline = last.deadline.map(|t| t.0.saturating_sub(self.origins[s]));
        let card = side.card.next();
        if deadline != side.deadline {
            side.deadline = deadline;
            if let Some(at) = deadline {
                // A timer in the past fires in the next turn: a microsecond later, so that time goes on.
                self.schedule(at.max(self.now + 1), What::Wake(s));
            }
        } else if deadline.is_some_and(|d| d <= self.now) {
            self.schedule(self.now + 1, What::Wake(s));
        }
        if let Some(at) = card {
            self.schedule(at, What::Card(s));
        }
        if last.full && card.is_none() {
            self.sides[s].deadline = Some(self.now + 100);
            self.schedule(self.now + 100, What::Wake(s));
        }
    }

    /// Frames that left a card go on their way; and what cards and programs saw is noted.
    fn ship(&mut self, s: usize) {
        let frames = std::mem::take(&mut self.sides[s].card.out);
        for frame in frames {
            self.look(s, &frame);
            let mut deliveries = std::mem::take(&mut self.deliveries);
            let (conn, fates) = (self.segment(&frame, s), self.network.fates);
            self.network.send(self.now, s, frame, &mut deliveries);
            if let Some((conn, tcp)) = conn {
                let sent = &mut self.sent[conn][s];
                sent.resets += u32::from(tcp.flags & flag::RST != 0);
                if deliveries.iter().all(|d| d.to == s) || self.network.fates.corrupt > fates.corrupt {
                    sent.lost += 1;
                    sent.lost_at = self.now;
                }
            }
            for d in deliveries.drain(..) {
                self.schedule(d.at, What::Arrive(d.to, d.frame));
            }
            self.deliveries = deliveries;
        }
        if self.network.fates.sent > self.budget && self.outcome.faults.is_empty() {
            self.fault(format!("{} frames were sent: a storm", self.network.fates.sent));
        }
        for s in [s] {
            let told = self.sides[s].programs.told.as_mut().map(std::mem::take).unwrap_or_default();
            for text in told {
                self.note(|| format!("{s}    {text}"));
            }
            let side = &mut self.sides[s];
            let faults: Vec<String> = side.card.faults.drain(..).chain(side.programs.faults.drain(..)).collect();
            for fault in faults {
                self.fault(format!("host {s}: {fault}"));
            }
        }
    }
}
