//! The daemon: one thread that moves packets and bytes between the wire, the tun and the inner sockets, and sleeps when there are
//! none.

mod ends;
mod gate;
mod told;
mod ways;

use crate::config::{Config, Prefix};
use crate::conn::{Conn, Stage};
use crate::counters::{Counter, Counters};
use crate::flow::Flow;
use crate::front::{self, Front, Network, Wanted, Watch};
use crate::memory;
use crate::policy::Policy;
use crate::poller::{Event, Poller};
use crate::relay;
use crate::sysctl;
use crate::wire::{PORT, Wire};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rendezvous::registry::Kind;
use slab::Slab;
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};
use zstack::endpoint::Endpoint;
use zstack::port::Medium;
use zstack::sockets::{self, Receive};
use zstack::stack::{self, Listen, ListenerId};
use zstack::tcp::Options;
use zstack::time::Time;
use zstack_port::Clock;

/// Tokens of what is watched beside inner sockets, whose tokens are smaller.
const TUN: u64 = 1 << 63;
const LISTENERS: u64 = TUN + 2;
const SIGNALS: u64 = TUN + 3;
const WATCH: u64 = TUN + 4;
const WAYS: u64 = TUN + 5;
/// The control socket; the next ones are those of who asks there.
const CONTROL: u64 = TUN + 16;

/// Packets of programs that are read before others have their turn.
const TUN_ROUND: usize = 64;

/// While there is always something to do, descriptors are looked at once in so many rounds.
const LOOK: u32 = 4;

/// A daemon that serves.
pub struct Daemon<P: Wire> {
    endpoint: Endpoint<P>,
    poller: Poller,
    signals: SignalFd,
    /// What others do to the front.
    watch: Watch,
    /// The routes, where the kernel knows them.
    followed: Option<ways::Followed>,
    control: told::Control,
    policy: Arc<Mutex<Policy>>,
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
    /// Connections whose server is to be sent an ACK ([`Ack::Due`](crate::conn::Ack)), by their tokens.
    acks: Vec<u64>,
    /// Connections that may have something to move.
    work: VecDeque<usize>,
    /// When to look at which connections, by their tokens, or at [`LISTENERS`]: see `ends.rs`. What is not a connection's next look
    /// ([`Conn::look`]) is passed over.
    looks: BinaryHeap<Reverse<(Time, u64)>>,
    counters: Counters,
    packet: Vec<u8>,
    /// What outer connections begin with.
    options: Options,
    deadline: Option<Time>,
    spin: Duration,
    stop: bool,
    /// The last: with it go the addresses, without which the resets of the connections above do not reach the programs.
    front: Front,
}

impl<P: Wire> Daemon<P> {
    /// Makes what a daemon needs in the kernel of this namespace, and begins to serve. [`hold_signals`] comes first.
    ///
    /// # Errors
    /// A line for the user.
    pub fn new(
        config: &Config,
        port: P,
        control: &str,
        intends: fn(u32, u64, Kind) -> bool,
    ) -> Result<Daemon<P>, String> {
        let io = |what: &'static str| move |e: std::io::Error| format!("{what}: {e}");
        let key = random().map_err(io("/dev/urandom"))?;
        let can = port.capabilities();
        let mtu = config.mtu.unwrap_or(can.mtu);
        if mtu > can.mtu {
            return Err(format!("mtu: {mtu} is more than the port takes: give at most {}", can.mtu));
        }
        let clock = Clock::start();
        let mut stack = stack::Config::new(config.addresses[0].address(), key);
        stack.addresses = config.addresses.iter().map(|prefix| prefix.address()).collect();
        let followed = ways::Followed::new(config, port.interface())?;
        stack.routes = followed.as_ref().map_or_else(|| config.routes(), ways::Followed::routes);
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
        let sockets = buffers(config, mtu);
        let mut endpoint = Endpoint::new(stack, sockets, port, clock.now()).map_err(|e| e.to_string())?;
        let policy = Arc::new(Mutex::new(Policy::new(config, intends)?));
        endpoint.set_takes(gate::takes(policy.clone(), clock));
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

        let network = |prefix: &Prefix| Network { address: prefix.ip, prefix: prefix.len };
        let configured = || config.served().iter().map(network).collect();
        let wanted = Wanted {
            name: config.tun.clone(),
            mtu: mtu.into(),
            addresses: config.addresses.iter().map(network).collect(),
            served: followed.as_ref().map_or_else(configured, ways::Followed::served),
            ..Wanted::default()
        };
        let front = Front::make(&wanted).map_err(|e| e.to_string())?;
        let poller = Poller::new().map_err(io("epoll"))?;
        let signals = SignalFd::with_flags(&signals(), SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
            .map_err(|e| format!("signalfd: {e}"))?;
        let control = told::Control::open(control).map_err(|e| format!("the control socket {control}: {e}"))?;
        poller.watch_edges(control.listener(), CONTROL).map_err(io("epoll_ctl"))?;
        poller.watch(&signals, SIGNALS).map_err(io("epoll_ctl"))?;
        let watch = front.watch().map_err(|e| e.to_string())?;
        poller.watch(&watch, WATCH).map_err(io("epoll_ctl"))?;
        if let Some(followed) = &followed {
            poller.watch(followed.fd(), WAYS).map_err(io("epoll_ctl"))?;
        }
        poller.watch(front.tun(), TUN).map_err(io("epoll_ctl"))?;
        for listener in front.listeners() {
            // By edges: while no descriptor is left for what waits there, nothing would be gained by being told again.
            poller.watch_edges(listener, LISTENERS).map_err(io("epoll_ctl"))?;
        }
        endpoint.port().watch(&poller).map_err(io("epoll_ctl"))?;
        Ok(Daemon {
            endpoint,
            front,
            poller,
            signals,
            watch,
            followed,
            control,
            policy,
            clock,
            listener,
            conns: Slab::new(),
            generations: Vec::new(),
            flows: HashMap::new(),
            by_socket: Vec::new(),
            released: 0,
            strays: 0,
            acks: Vec::new(),
            work: VecDeque::new(),
            looks: BinaryHeap::new(),
            counters: Counters::default(),
            packet: vec![0; 65_536],
            options,
            deadline: None,
            spin: Duration::from_micros(config.spin.into()),
            stop: false,
        })
    }

    /// Serves until SIGTERM or SIGINT comes.
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
            busy |= self.take_ready();
            if tun {
                // What was read has work for the next turn, whether there is more or not.
                (tun, busy) = self.read_tun().map(|(more, any)| (more, busy | any))?;
            }
            busy |= self.work();
            busy |= self.look();

            round = round.wrapping_add(1);
            if busy {
                last_work = Instant::now();
                if !round.is_multiple_of(LOOK) {
                    continue;
                }
            } else {
                self.send_acks();
            }
            let spinning = !busy && !self.spin.is_zero() && last_work.elapsed() < self.spin;
            let limit = if busy || spinning { Some(Duration::ZERO) } else { self.sleep() };
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
                    PORT => {}
                    LISTENERS => {
                        let _ = self.accept();
                    }
                    SIGNALS => self.stop = matches!(self.signals.read_signal(), Ok(Some(_))),
                    WATCH => self.front_changed()?,
                    WAYS => self.routes_changed()?,
                    CONTROL => self.control_ready(),
                    asker if asker > CONTROL => self.asker_ready((asker - CONTROL - 1) as usize),
                    _ => self.told(event),
                }
            }
        }
        Ok(())
    }

    /// Somebody has done something to the interface, or to what belongs to it: a network manager that is restarted, for example.
    fn front_changed(&mut self) -> Result<(), String> {
        let name = self.front.name().to_string();
        while let Some(event) = self.watch.next_event().map_err(|e| format!("netlink: {e}"))? {
            match event {
                front::Event::Removed => return Err(format!("the interface {name} was removed by somebody")),
                front::Event::Link(link) if link.up => {}
                front::Event::Link(_) | front::Event::Altered => {
                    log::warn!(
                        "{name}: somebody has set it down, or removed addresses, routes or rules: they are made again"
                    );
                    self.front.restore().map_err(|e| e.to_string())?;
                }
            }
        }
        Ok(())
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
        for _ in 0..n {
            let Some(index) = self.work.pop_front() else { break };
            let Some(conn) = self.conns.get_mut(index) else { continue };
            conn.queued = false;
            self.advance(index);
        }
        n > 0
    }

    /// Takes what can be done next for a connection.
    fn advance(&mut self, index: usize) {
        match self.conns[index].stage {
            Stage::Inward => self.inward_ready(index),
            Stage::Open => {
                let outcome = relay::pump(&mut self.conns[index], &mut self.endpoint);
                self.hold_ack(index);
                self.after(index, outcome);
            }
            Stage::Asked { .. } | Stage::Released { .. } => {}
        }
    }

    /// Packets from the wire that are nobody's here go to the programs' kernel.
    fn pass_inward(&mut self) -> bool {
        let mut any = false;
        while let Some((buffer, range)) = self.endpoint.next_passed() {
            any = true;
            let packet = &zstack::payload::Buffer::bytes(&buffer)[range];
            self.counters.count(match self.front.write(packet) {
                Ok(()) => Counter::RawIn,
                Err(_) => Counter::RawInLost,
            });
        }
        while let Some(packet) = self.endpoint.next_undelivered() {
            any = true;
            self.undelivered(&packet);
        }
        any
    }

    /// What has happened, here and in the engine, by name; what has not is left out.
    pub fn counted(&self) -> String {
        let engine = self.endpoint.stack().counters().iter().map(|(counter, n)| (counter.name(), n));
        // Connections that are the kernel's, and buffers that stayed small, since the bound of memory was reached.
        let memory =
            [("no_memory", self.policy().lacked), ("small_buffers", self.endpoint.sockets().budget().denied())];
        let all = self.counters.iter().chain(memory).chain(engine).filter(|(_, n)| *n > 0);
        all.map(|(name, n)| format!("{name} {n}")).collect::<Vec<_>>().join(", ")
    }
}

/// A connection's buffers in each direction are at least so long, and hold two segments.
const ASSURED: u32 = 16 << 10;

/// What connections' buffers may take.
fn buffers(config: &Config, mtu: u16) -> sockets::Config {
    let (buffer, both) = (config.buffer, 2 * u64::from(config.buffer));
    let memory = config.memory.unwrap_or_else(|| memory::share().max(4 * both));
    let defaults = sockets::Config::default();
    sockets::Config {
        send_ring: buffer,
        receive_ring: buffer,
        quota: 2 * buffer as usize,
        waiting: config.pending as usize,
        spare: defaults.spare.min((memory / 16 / both) as usize),
        memory,
        assured: ASSURED.max((2 * u32::from(mtu)).next_power_of_two()).min(buffer),
        ..defaults
    }
}

/// Those that end it in order.
fn signals() -> SigSet {
    SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT])
}

/// From now on the signals that end a daemon in order wait for it, in the calling thread and those that it makes: to be called before
/// DPDK makes its own, which would take them.
///
/// # Errors
/// A line for the user.
pub fn hold_signals() -> Result<(), String> {
    signals().thread_block().map_err(|e| format!("pthread_sigmask: {e}"))
}

/// One thread uses it; the engine wants what it calls to be fit for another.
fn lock(policy: &Mutex<Policy>) -> MutexGuard<'_, Policy> {
    policy.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn random() -> std::io::Result<[u8; 16]> {
    let mut key = [0; 16];
    std::io::Read::read_exact(&mut std::fs::File::open("/dev/urandom")?, &mut key)?;
    Ok(key)
}
