//! A worker: one thread that moves packets and bytes between its queue of the wire, its queue of the tun and the inner sockets of its
//! connections, and sleeps when there are none.

mod asker;
mod claims;
mod ends;
mod gate;
mod mail;
mod pace;
mod passing;
mod told;

pub(crate) use mail::{Letter, Mail};
pub(crate) use told::{accept, open};

use crate::common::Common;
use crate::config::Config;
use crate::conn::{Conn, Stage};
use crate::counters::{Counter, Counters};
use crate::flow::Flow;
use crate::front::Lane;
use crate::memory;
use crate::policy::Policy;
use crate::poller::{Event, Poller};
use crate::relay;
use crate::sysctl;
use crate::wire::{BELL, PORT, Wire};
use claims::Claims;
use pace::Pace;
use rendezvous::registry::Kind;
use slab::Slab;
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::net::TcpStream;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};
use told::Askers;
use zstack::endpoint::Endpoint;
use zstack::net::Route;
use zstack::port::Medium;
use zstack::sockets::{self, Receive};
use zstack::stack::{self, Listen, ListenerId};
use zstack::tcp::Options;
use zstack::time::Time;
use zstack_port::Clock;

/// Tokens of what is watched beside inner sockets, whose tokens are smaller. Two more are a port's.
const TUN: u64 = 1 << 63;
const LISTENERS: u64 = TUN + 2;
const MAIL: u64 = TUN + 3;
/// No descriptor: sockets that were parted with are looked at.
const PARTED: u64 = TUN + 4;
/// The first of those who ask for all connections.
const ASKER: u64 = TUN + 16;

/// So many bytes that were brought to programs are told of before others are brought anything.
const MUCH: u64 = 64 << 10;

/// While there is always something to do, descriptors are looked at once in so many rounds.
const LOOK: u32 = 4;

/// What has happened, by name.
pub(crate) type Counted = Vec<(&'static str, u64)>;

/// For people: what has not happened is left out.
pub(crate) fn list(counted: &Counted) -> String {
    let some = counted.iter().filter(|(_, n)| *n > 0);
    some.map(|(name, n)| format!("{name} {n}")).collect::<Vec<_>>().join(", ")
}

/// What all workers begin with.
pub(crate) struct Beginning {
    pub config: Config,
    /// The engines' secret, the same for all: what one answers, another one may have to recognise.
    pub key: [u8; 16],
    pub clock: Clock,
    pub routes: Vec<Route>,
    pub intends: fn(u32, u64, Kind) -> bool,
    pub common: Arc<Common>,
    pub mail: Mail,
}

/// A worker.
pub(crate) struct Worker<P: Wire> {
    number: u16,
    endpoint: Endpoint<P>,
    poller: Poller,
    /// What this and all other workers have begun with.
    with: Arc<Beginning>,
    askers: Askers,
    common: Arc<Common>,
    policy: Arc<Mutex<Policy>>,
    claims: Arc<Mutex<Claims>>,
    clock: Clock,
    /// The engine's listener for all ports.
    listener: ListenerId,
    conns: Slab<Conn>,
    /// How often each place in `conns` was given: an event may come for the one that had it before.
    generations: Vec<u32>,
    flows: HashMap<Flow, usize>,
    /// By the index of an engine's socket: its connection.
    by_socket: Vec<usize>,
    /// Connections in the stage [`Stage::Released`].
    released: u32,
    /// Those that were given up in this stage: what is accepted may be one of them. Where the handshake was not completed they stay in this
    /// number, which costs a look at the listeners.
    strays: u64,
    /// Connections whose server is to be sent an ACK ([`Ack::Due`](crate::conn::Ack)), by their tokens, and since when, in the order in which it
    /// accepts them: that of their remote hosts' last ACKs.
    acks: VecDeque<(Time, u64)>,
    /// Connections that may have something to move.
    work: VecDeque<usize>,
    /// When to look at which connections, by their tokens, or at [`LISTENERS`]: see `ends.rs`. What is not a connection's next look
    /// ([`Conn::look`]) is passed over.
    looks: BinaryHeap<Reverse<(Time, u64)>>,
    /// Inner sockets that are to be reset when no frame points at their rings any more, or by then.
    parted: Vec<(Time, Arc<TcpStream>)>,
    /// When it is looked at them next, where they are many.
    parting: Time,
    counters: Counters,
    packet: Vec<u8>,
    /// What outer connections begin with.
    options: Options,
    deadline: Option<Time>,
    spin: Duration,
    pace: Pace,
    stop: bool,
    /// The last: with it may go the addresses, without which the resets of the connections above do not reach the programs.
    lane: Arc<Lane>,
}

impl<P: Wire> Worker<P> {
    /// Begins, on the calling thread.
    ///
    /// # Errors
    /// A line for the user.
    pub fn new(number: u16, with: &Arc<Beginning>, port: P, lane: Arc<Lane>) -> Result<Worker<P>, String> {
        let io = |what: &'static str| move |e: std::io::Error| format!("{what}: {e}");
        let Beginning { config, key, clock, .. } = &**with;
        let can = port.capabilities();
        let mut stack = stack::Config::new(config.addresses[0].address(), *key);
        stack.addresses = config.addresses.iter().map(|prefix| prefix.address()).collect();
        stack.routes = with.routes.clone();
        stack.bridge = true;
        // The inner sockets hold back what their programs want held back.
        stack.tcp.nodelay = true;
        stack.tcp = sysctl::with_keep_alive(stack.tcp);
        stack.tcp.window = config.buffer;
        let options = stack.tcp;
        stack.limits.connections = config.connections.saturating_add(config.pending);
        if can.medium == Medium::Ethernet {
            // A local, unicast address, if the device has none.
            stack.mac = Some(port.mac().unwrap_or([2, key[0], key[1], key[2], key[3], key[4]]));
        }
        let sockets = buffers(config, config.mtu.unwrap_or(can.mtu));
        let mut endpoint = Endpoint::new(stack, sockets, port, clock.now()).map_err(|e| e.to_string())?;
        let policy = Arc::new(Mutex::new(Policy::new(config, with.common.clone(), with.intends)?));
        let claims = Arc::new(Mutex::new(Claims::new(number, with.common.clone())));
        endpoint.set_takes(gate::takes(policy.clone(), claims.clone(), *clock));
        let room = endpoint.room();
        let listen = Listen {
            address: None,
            port: None,
            backlog: config.pending,
            deferred: true,
            // Under a flood who answers is known before a server hears of it.
            deferred_cookies: true,
            ..Listen::new(1, room)
        };
        let listener = endpoint.listen(listen, Receive::Keep).map_err(|e| e.to_string())?;

        let poller = Poller::new().map_err(io("epoll"))?;
        poller.watch(with.mail.bell(number), MAIL).map_err(io("epoll_ctl"))?;
        poller.watch(lane.tun(), TUN).map_err(io("epoll_ctl"))?;
        for listener in lane.listeners() {
            // By edges: while no descriptor is left for what waits there, nothing would be gained by being told again.
            poller.watch_edges(listener, LISTENERS).map_err(io("epoll_ctl"))?;
        }
        endpoint.port().watch(&poller).map_err(io("epoll_ctl"))?;
        Ok(Worker {
            number,
            endpoint,
            lane,
            poller,
            with: with.clone(),
            askers: Askers::default(),
            common: with.common.clone(),
            policy,
            claims,
            clock: *clock,
            listener,
            conns: Slab::new(),
            generations: Vec::new(),
            flows: HashMap::new(),
            by_socket: Vec::new(),
            released: 0,
            strays: 0,
            acks: VecDeque::new(),
            work: VecDeque::new(),
            looks: BinaryHeap::new(),
            parted: Vec::new(),
            parting: Time(0),
            counters: Counters::default(),
            packet: vec![0; 65_536],
            options,
            deadline: None,
            spin: Duration::from_micros(config.spin.into()),
            pace: Pace::default(),
            stop: false,
        })
    }

    /// Works until it is told to stop.
    ///
    /// # Errors
    /// A line for the user: the port or the tun is gone, or the kernel fails a call that it should not.
    pub fn run(&mut self) -> Result<(), String> {
        let mut events = Vec::new();
        let mut tun = true;
        let mut round = 0u32;
        let mut last_work = Instant::now();
        while !self.stop {
            let turn = self.endpoint.turn(self.clock.now());
            if turn.gone {
                return Err("the port is gone: its device was removed, or went down for good".into());
            }
            self.deadline = turn.deadline;
            if turn.full && self.deadline.is_none() {
                self.deadline = Some(Time(self.clock.now().0 + 1000));
            }
            let mut busy = turn.more || turn.received > 0 || turn.sent > 0;
            busy |= self.pass_inward();
            busy |= self.take_incoming();
            self.settle_claims();
            busy |= self.take_ready();
            if tun {
                // What was read has work for the next turn, whether there is more or not.
                (tun, busy) = self.read_tun().map(|(more, any)| (more, busy | any))?;
            }
            busy |= self.work();
            busy |= self.look();
            if !busy || self.are_acks_late() {
                self.send_acks();
            }

            round = round.wrapping_add(1);
            if busy {
                last_work = Instant::now();
                if !round.is_multiple_of(LOOK) {
                    continue;
                }
            }
            let spinning = !busy && !self.spin.is_zero() && last_work.elapsed() < self.spin;
            let limit = if busy || spinning || self.nap() { Some(Duration::ZERO) } else { self.sleep() };
            events.clear();
            let port = self.endpoint.port_mut();
            port.sleep(&mut self.poller, limit, &mut events).map_err(|e| format!("epoll_wait: {e}"))?;
            if !busy {
                // Until now: what has come since, however long ago, is what there is to do.
                let now = self.clock.now();
                self.policy().has_slept(now);
            }
            for event in &events {
                match event.token {
                    TUN => tun = true,
                    PORT | BELL => {}
                    LISTENERS => {
                        let _ = self.accept();
                    }
                    MAIL => self.read_mail(),
                    asker if asker >= ASKER => self.asker_ready((asker - ASKER) as usize),
                    _ => self.told(event),
                }
            }
        }
        Ok(())
    }

    /// What other threads have to say.
    fn read_mail(&mut self) {
        for letter in self.with.mail.receive(self.number) {
            match letter {
                Letter::FromProgram(packet) => self.sent_by_program(&packet),
                Letter::Routes(routes) => {
                    if let Err(e) = self.endpoint.set_routes(&routes) {
                        log::warn!("follow-routes: the routes of before are kept: {e}");
                    }
                }
                Letter::Asker(asker) => self.asked_by(asker),
                Letter::Stop => self.stop = true,
            }
        }
    }

    /// How long nothing is due.
    fn sleep(&self) -> Option<Duration> {
        let looks = self.looks.peek().map(|Reverse((at, _))| *at);
        let deadline = match (self.deadline, looks) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        self.clock.until(deadline)
    }

    /// Naps instead of a sleep, if that is better: see `pace.rs`.
    fn nap(&mut self) -> bool {
        let Some(nap) = self.pace.nap(self.clock.now()) else { return false };
        self.counters.count(Counter::Naps);
        std::thread::sleep(self.sleep().map_or(nap, |limit| limit.min(nap)));
        true
    }

    /// An inner socket has something.
    fn told(&mut self, event: &Event) {
        let Some(index) = self.at(event.token) else { return };
        let conn = &mut self.conns[index];
        conn.readable |= event.readable;
        conn.writable |= event.writable;
        conn.ending |= event.ended;
        conn.urgent |= event.urgent;
        conn.failed |= event.error;
        self.queue(index);
    }

    fn policy(&self) -> MutexGuard<'_, Policy> {
        lock(&self.policy)
    }

    /// The token of a connection.
    fn token(&self, index: usize) -> u64 {
        u64::from(self.generations[index] & 0x7fff_ffff) << 32 | index as u64
    }

    /// The connection with a token, if it is still that one.
    fn at(&self, token: u64) -> Option<usize> {
        let index = (token & 0xffff_ffff) as usize;
        (self.conns.contains(index) && self.token(index) == token).then_some(index)
    }

    fn queue(&mut self, index: usize) {
        let conn = &mut self.conns[index];
        if !conn.queued {
            conn.queued = true;
            self.work.push_back(index);
        }
    }

    /// What the last turn has brought on outer connections.
    fn take_ready(&mut self) -> bool {
        let before = self.released;
        let mut any = false;
        while let Some((socket, ready)) = self.endpoint.next_ready() {
            any = true;
            if let Some(&index) = self.by_socket.get(socket.index as usize)
                && self.conns.get(index).is_some_and(|conn| conn.outer == socket)
            {
                self.outer_ready(index, ready);
            }
        }
        if self.released > before {
            // The kernel has completed the handshakes while their SYNs were written, and need not be waited for.
            let _ = self.accept();
        }
        any
    }

    /// Moves what there is to move, one round for each connection that is queued now.
    fn work(&mut self) -> bool {
        let n = self.work.len();
        if n == 0 {
            return false;
        }
        let now = self.clock.now();
        let mut brought = 0;
        for _ in 0..n {
            let Some(index) = self.work.pop_front() else { break };
            let Some(conn) = self.conns.get_mut(index) else { continue };
            conn.queued = false;
            let before = (conn.received, conn.sent);
            self.advance(index);
            if let Some(conn) = self.conns.get_mut(index).filter(|conn| (conn.received, conn.sent) != before) {
                // Another one may have its place by now.
                let received = conn.received.saturating_sub(before.0);
                self.pace.moved(now, conn.brought, received, conn.sent.saturating_sub(before.1));
                if received > 0 {
                    conn.brought = now;
                }
                brought += received;
            }
            if brought >= MUCH {
                culvert::settle();
                brought = 0;
            }
        }
        // Before anything else is done, or the next round: a program may be on a processor of its own, and has all of this round.
        culvert::settle();
        true
    }

    /// Takes what can be done next for a connection.
    fn advance(&mut self, index: usize) {
        match self.conns[index].stage {
            Stage::Inward => self.inward_ready(index),
            Stage::Open => {
                self.send_acks_before(index);
                let said = |conn: &Conn| (conn.sent, conn.program_ended);
                let segments = |conn: &Conn| (conn.waits, conn.corked);
                let wanted = segments(&self.conns[index]);
                let before = said(&self.conns[index]);
                let outcome = relay::pump(&mut self.conns[index], &mut self.endpoint);
                if said(&self.conns[index]) != before {
                    self.has_sent(index);
                }
                if segments(&self.conns[index]) != wanted {
                    self.set_options(index);
                }
                self.hold_ack(index);
                self.after(index, outcome);
            }
            Stage::Asked { .. } | Stage::Released { .. } => {}
        }
    }

    /// What has happened, here and in the engine, by name.
    pub fn counted(&self) -> Counted {
        let engine = self.endpoint.stack().counters().iter().map(|(counter, n)| (counter.name(), n));
        // Connections that are the kernel's, which the first worker that is asked tells of for all, and buffers that stayed small, since
        // the bound of memory was reached.
        let lacked = std::mem::take(&mut self.policy().lacked);
        let memory = [("no_memory", lacked), ("small_buffers", self.endpoint.sockets().budget().denied())];
        self.counters.iter().chain(memory).chain(engine).collect()
    }
}

/// A connection's buffers in each direction are at least so long, and hold two segments.
const ASSURED: u32 = 16 << 10;

/// What connections' buffers may take: each worker has the same part of the memory.
fn buffers(config: &Config, mtu: u16) -> sockets::Config {
    let (buffer, both) = (config.buffer, 2 * u64::from(config.buffer));
    let workers = u64::from(config.workers);
    let memory = config.memory.map_or_else(|| (memory::share() / workers).max(4 * both), |memory| memory / workers);
    let defaults = sockets::Config::default();
    sockets::Config {
        send_ring: buffer,
        receive_ring: buffer,
        // What is lent is bounded by the ring; a piece counts until all of it is released.
        references: both,
        quota: 2 * buffer as usize,
        waiting: config.pending as usize,
        spare: defaults.spare.min((memory / 16 / both) as usize),
        memory,
        assured: ASSURED.max((2 * u32::from(mtu)).next_power_of_two()).min(buffer),
        ..defaults
    }
}

/// One thread uses it; the engine wants what it calls to be fit for another.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
