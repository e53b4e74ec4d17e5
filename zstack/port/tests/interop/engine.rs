//! The engine on a tun device, in a thread of its own, with small servers and clients on it.

use crate::pattern;
use std::collections::HashMap;
use std::io::{PipeReader, PipeWriter, Read, Write};
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use zstack::counters::Counters;
use zstack::net::{Address, Route};
use zstack::port::Port;
use zstack::sockets::{Error, Receive, Socket, Sockets, Still};
use zstack::stack::{Config, Connect, Info, Listen, ListenerId, Stack};
use zstack::tcp::Cause;
use zstack_port::{Captured, Clock, Device, Interest, Kind, Packet, Spec};

/// The ports of the servers.
pub const ECHO: u16 = 7;
pub const SINK: u16 = 9;
pub const SOURCE: u16 = 19;
pub const SLOW: u16 = 21;
/// A sink that has one half-open connection at most: while there is one, its SYN-ACKs carry cookies.
pub const COOKIE: u16 = 22;
pub const CLOSER: u16 = 23;

/// What is done on a connection. Integers go over it in little-endian order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Job {
    /// Sends back what comes.
    Echo,
    /// Checks what comes, and at its end sends its length and the first wrong position, or `u64::MAX` if all is right; 16 bytes.
    Sink,
    /// As `Sink`, but reads nothing at first for as many milliseconds as the first 8 bytes say.
    Slow,
    /// Reads 8 bytes, sends as many bytes of the pattern as they say, and ends its stream.
    Source,
    /// Sends so many bytes of the pattern (fewer, if the time is over before), ends its stream, and expects a sink's answer.
    Send(u64, Duration),
    /// Sends so many bytes of the pattern and expects them back.
    Exchange(u64),
    /// Holds the connection, and reads to its end.
    Hold,
    /// Reads 8 bytes, ends its stream after as many milliseconds as they say, and reads to the end.
    Closer,
    /// Ends its stream at once, and checks what comes.
    Fetch,
}

/// How a job ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Outcome {
    pub job: Job,
    pub sent: u64,
    pub received: u64,
    /// The first wrong position of what was received.
    pub wrong: Option<u64>,
    /// A sink's answer.
    pub answer: Option<(u64, u64)>,
    /// Why the connection ended; `Done` if in order.
    pub cause: Cause,
    /// How long it took, from the call or the handshake on.
    pub took: Duration,
}

enum Command {
    /// From a port, if it is not 0.
    Connect(u16, SocketAddr, Job),
    Look,
}

/// What `Engine::look` tells.
pub struct Look {
    pub counters: Counters,
    pub device: zstack_port::Counters,
    pub connections: Vec<Info>,
}

/// A running engine. It ends when this is dropped.
pub struct Engine {
    commands: Option<Sender<Command>>,
    wake: PipeWriter,
    pub outcomes: Receiver<Outcome>,
    looks: Receiver<Look>,
    thread: Option<JoinHandle<()>>,
}

impl Engine {
    /// Opens the device in the network namespace of the calling thread; the engine runs in another one.
    pub fn start(spec: &Spec) -> Engine {
        Engine::start_with(spec, |_| {})
    }

    /// The same with another configuration of the stack.
    pub fn start_with(spec: &Spec, change: impl FnOnce(&mut Config) + Send + 'static) -> Engine {
        let (commands, command_receiver) = channel();
        let (outcome_sender, outcomes) = channel();
        let (look_sender, looks) = channel();
        let (woken, wake) = std::io::pipe().expect("a pipe");
        let (ready, is_ready) = channel();
        let spec = spec.clone();
        let thread = std::thread::spawn(move || {
            let mut runner = Runner::new(&spec, change, woken, command_receiver, outcome_sender, look_sender);
            ready.send(()).expect("the starter waits");
            runner.run();
        });
        if is_ready.recv().is_err() {
            std::panic::resume_unwind(thread.join().expect_err("it did not say that it is ready"));
        }
        Engine { commands: Some(commands), wake, outcomes, looks, thread: Some(thread) }
    }

    fn command(&mut self, command: Command) {
        self.commands.as_ref().expect("it runs").send(command).expect("the engine runs");
        self.wake.write_all(&[1]).expect("the engine runs");
    }

    /// Connects, and does a job; its outcome comes later.
    pub fn connect(&mut self, to: SocketAddr, job: Job) {
        self.connect_from(0, to, job);
    }

    /// The same from a port of its choice.
    pub fn connect_from(&mut self, port: u16, to: SocketAddr, job: Job) {
        self.command(Command::Connect(port, to, job));
    }

    /// The next outcome of a job that satisfies `wanted`; others are dropped.
    pub fn outcome(&self, limit: Duration, wanted: impl Fn(&Outcome) -> bool) -> Outcome {
        let end = Instant::now() + limit;
        loop {
            let rest = end.saturating_duration_since(Instant::now());
            match self.outcomes.recv_timeout(rest) {
                Ok(outcome) if wanted(&outcome) => return outcome,
                Ok(_) => {}
                Err(error) => panic!("no outcome within {limit:?}: {error}"),
            }
        }
    }

    /// Its counters and connections.
    pub fn look(&mut self) -> Look {
        self.command(Command::Look);
        self.looks.recv_timeout(Duration::from_secs(10)).expect("the engine answers within 10 s")
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.commands = None;
        let _ = self.wake.write_all(&[1]);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
            && !std::thread::panicking()
        {
            panic!("the engine has panicked");
        }
    }
}

/// A connection and how far its job is.
struct Task {
    job: Job,
    began: Instant,
    sent: u64,
    received: u64,
    wrong: Option<u64>,
    /// The first bytes, where they are numbers.
    number: Vec<u8>,
    /// `Source`: how much to send. `Slow`: until when nothing is read.
    wanted: u64,
    until: Option<Instant>,
    shut: bool,
}

struct Runner {
    clock: Clock,
    port: Captured<Device>,
    stack: Stack,
    sockets: Sockets<Packet>,
    listeners: Vec<(ListenerId, Job)>,
    tasks: HashMap<u32, (Socket, Task)>,
    /// Tasks that wait for a moment.
    sleepers: Vec<(Instant, Socket)>,
    woken: PipeReader,
    commands: Receiver<Command>,
    outcomes: Sender<Outcome>,
    looks: Sender<Look>,
}

impl Runner {
    fn new(
        spec: &Spec,
        change: impl FnOnce(&mut Config),
        woken: PipeReader,
        commands: Receiver<Command>,
        outcomes: Sender<Outcome>,
        looks: Sender<Look>,
    ) -> Runner {
        let device = Device::open(spec).unwrap_or_else(|e| panic!("{e}"));
        let port = match std::env::var_os("ZSTACK_LAB_PCAP") {
            // A file for each engine: PATH.0, PATH.1, ...
            Some(path) => {
                static NUMBER: AtomicU32 = AtomicU32::new(0);
                let path = format!("{}.{}", path.display(), NUMBER.fetch_add(1, Ordering::Relaxed));
                Captured::to_file(device, path.as_ref(), &spec.name).expect("a capture")
            }
            None => Captured::off(device),
        };
        let mut key = [0; 16];
        std::fs::File::open("/dev/urandom").and_then(|mut f| f.read_exact(&mut key)).expect("a key");
        let own = |a: &zstack_port::Address| Address { ip: a.address, prefix: a.prefix };
        let mut config = Config::new(own(&spec.addresses[0]), key);
        config.addresses = spec.addresses.iter().map(own).collect();
        let default = |gateway: &std::net::IpAddr| {
            let any = if gateway.is_ipv4() { [0; 4].into() } else { [0; 16].into() };
            Route { network: Address { ip: any, prefix: 0 }, gateway: Some(*gateway) }
        };
        config.routes = spec.gateways.iter().map(default).collect();
        if spec.kind == Kind::Tap {
            config.mac = Some(spec.mac.unwrap_or([2, 0, 0, 0, 0, 9]));
            config.vlan = spec.vlan;
        }
        change(&mut config);
        let clock = Clock::start();
        let mut stack = Stack::new(config, port.capabilities(), clock.now()).expect("a stack");
        let receive_ring = 1 << 20;
        let sizes = zstack::sockets::Config { receive_ring, send_ring: 1 << 20, ..Default::default() };
        let mut sockets = Sockets::new(sizes).expect("sockets");
        let mut listeners = Vec::new();
        for (number, job) in [
            (ECHO, Job::Echo),
            (SINK, Job::Sink),
            (SOURCE, Job::Source),
            (SLOW, Job::Slow),
            (COOKIE, Job::Sink),
            (CLOSER, Job::Closer),
        ] {
            let backlog = if number == COOKIE { 1 } else { 16_384 };
            let listen = Listen { backlog, ..Listen::new(number, sockets.room()) };
            let listener = stack.listen(listen).expect("a listener");
            sockets.set_listener_receive(listener, if job == Job::Sink { Receive::Keep } else { Receive::Copy });
            listeners.push((listener, job));
        }
        let (tasks, sleepers) = (HashMap::new(), Vec::new());
        Runner { clock, port, stack, sockets, listeners, tasks, sleepers, woken, commands, outcomes, looks }
    }

    fn run(&mut self) {
        loop {
            let turn = self.stack.turn(self.clock.now(), &mut self.port, &mut self.sockets);
            let served = self.serve();
            let Some(obeyed) = self.obey() else { return };
            if turn.gone {
                // What is to be told was told: all connections have ended.
                while self.serve() {}
                return;
            }
            if turn.more || served || obeyed {
                continue;
            }
            let mut limit = self.clock.until(turn.deadline);
            if let Some((first, _)) = self.sleepers.iter().min_by_key(|s| s.0) {
                let rest = first.saturating_duration_since(Instant::now());
                limit = Some(limit.map_or(rest, |l| l.min(rest)));
            }
            if turn.full {
                limit = Some(limit.map_or(Duration::from_millis(1), |l| l.min(Duration::from_millis(1))));
            }
            let mut others = [Interest::read(self.woken.as_fd())];
            self.port.port().wait(&mut others, limit).expect("ppoll");
            if others[0].ready {
                let mut bytes = [0; 4096];
                let _ = self.woken.read(&mut bytes).expect("the pipe");
            }
        }
    }

    /// Does what commands say. Whether there were any; `None`: the engine is to end.
    fn obey(&mut self) -> Option<bool> {
        let mut any = false;
        loop {
            let command = self.commands.try_recv();
            any |= command.is_ok();
            match command {
                Ok(Command::Connect(port, to, job)) => {
                    let local_port = (port > 0).then_some(port);
                    let connect = Connect { local_port, ..Connect::new(to, self.sockets.room()) };
                    match self.stack.connect(self.clock.now(), connect) {
                        Ok(conn) => {
                            let keep = matches!(job, Job::Sink | Job::Hold);
                            let socket = self.sockets.open(conn, if keep { Receive::Keep } else { Receive::Copy });
                            self.begin(socket, job);
                        }
                        Err(error) => panic!("connect to {to}: {error}"),
                    }
                }
                Ok(Command::Look) => {
                    let look = Look {
                        counters: self.stack.counters().clone(),
                        device: self.port.port().counters(),
                        connections: self.stack.connections().map(|(_, info)| info).collect(),
                    };
                    let _ = self.looks.send(look);
                }
                Err(std::sync::mpsc::TryRecvError::Empty) => return Some(any),
                Err(std::sync::mpsc::TryRecvError::Disconnected) => return None,
            }
        }
    }

    fn begin(&mut self, socket: Socket, job: Job) {
        let until = if let Job::Send(_, time) = job { Some(Instant::now() + time) } else { None };
        let wanted = match job {
            Job::Send(bytes, _) | Job::Exchange(bytes) => bytes,
            _ => 0,
        };
        let task = Task {
            job,
            began: Instant::now(),
            sent: 0,
            received: 0,
            wrong: None,
            number: Vec::new(),
            wanted,
            until,
            shut: false,
        };
        self.tasks.insert(socket.index, (socket, task));
    }

    /// Serves sockets that are ready. Whether there was anything to do.
    fn serve(&mut self) -> bool {
        let mut any = false;
        for (listener, job) in self.listeners.clone() {
            while let Some(socket) = self.sockets.accept(listener) {
                self.begin(socket, job);
                self.step(socket);
                any = true;
            }
        }
        let now = Instant::now();
        let due: Vec<Socket> = self.sleepers.iter().filter(|s| s.0 <= now).map(|s| s.1).collect();
        self.sleepers.retain(|s| s.0 > now);
        for socket in due {
            self.step(socket);
            any = true;
        }
        // A bounded number, so that the stack gets its turn.
        for _ in 0..256 {
            let Some((socket, _)) = self.sockets.next_ready() else { break };
            self.step(socket);
            any = true;
        }
        any
    }

    fn step(&mut self, socket: Socket) {
        let Some((owner, mut task)) = self.tasks.remove(&socket.index) else { return };
        if owner != socket {
            self.tasks.insert(socket.index, (owner, task));
            return;
        }
        match self.advance(socket, &mut task) {
            Ok(()) => {
                self.tasks.insert(socket.index, (socket, task));
            }
            Err(cause) => self.end(socket, &task, cause),
        }
        if let Some((conn, end)) = self.sockets.end(socket) {
            self.stack.commit(conn, end, true);
        }
        if let Some((conn, edge)) = self.sockets.take_edge(socket) {
            self.stack.room(conn, edge);
        }
    }

    fn end(&mut self, socket: Socket, task: &Task, cause: Cause) {
        let answer = (task.number.len() == 16).then(|| (number(&task.number), number(&task.number[8..])));
        let outcome = Outcome {
            job: task.job,
            sent: task.sent,
            received: task.received,
            wrong: task.wrong,
            answer,
            cause,
            took: task.began.elapsed(),
        };
        let _ = self.outcomes.send(outcome);
        if let Some((conn, end)) = self.sockets.end(socket) {
            self.stack.commit(conn, end, true);
            let unread = self.sockets.close(socket);
            self.stack.close(conn, unread)
        } else {
            self.sockets.close(socket);
        }
    }

    /// Goes on with the job as far as possible; an error is its end.
    fn advance(&mut self, socket: Socket, task: &mut Task) -> Result<(), Cause> {
        match task.job {
            Job::Echo => self.echo(socket, task),
            Job::Sink | Job::Slow => self.sink(socket, task),
            Job::Source => {
                self.read_number(socket, task, 8)?;
                if task.number.len() == 8 {
                    task.wanted = number(&task.number);
                    self.feed(socket, task)?;
                    if task.shut {
                        return self.drain(socket, task);
                    }
                }
                Ok(())
            }
            Job::Send(..) => {
                self.feed(socket, task)?;
                self.read_number(socket, task, 16)?;
                if task.shut && task.number.len() == 16 { self.drain(socket, task) } else { Ok(()) }
            }
            Job::Exchange(bytes) => {
                self.feed(socket, task)?;
                self.check(socket, task)?;
                if task.received == bytes { Err(Cause::Done) } else { Ok(()) }
            }
            Job::Hold => self.drain(socket, task),
            Job::Closer => {
                self.read_number(socket, task, 8)?;
                if task.number.len() < 8 || !self.waited(socket, task) {
                    return Ok(());
                }
                self.feed(socket, task)?;
                self.drain(socket, task)
            }
            Job::Fetch => {
                self.feed(socket, task)?;
                self.check(socket, task)
            }
        }
    }

    /// The next bytes that can be read: `None` now, and empty at the end.
    fn peek(&self, socket: Socket) -> Result<Option<&[u8]>, Cause> {
        match self.sockets.peek(socket) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(Error::WouldBlock | Error::Connecting) => Ok(None),
            Err(Error::Ended(cause)) => Err(cause),
            Err(Error::Shut | Error::Stale) => Err(Cause::Done),
        }
    }

    fn consume(&mut self, socket: Socket, n: usize) {
        self.sockets.consume(socket, n).expect("peeked");
    }

    /// Reads on to the end, which is the job's.
    fn drain(&mut self, socket: Socket, task: &mut Task) -> Result<(), Cause> {
        while let Some(bytes) = self.peek(socket)? {
            let n = bytes.len();
            if n == 0 {
                return Err(Cause::Done);
            }
            task.received += n as u64;
            self.consume(socket, n);
        }
        Ok(())
    }

    fn check(&mut self, socket: Socket, task: &mut Task) -> Result<(), Cause> {
        while let Some(bytes) = self.peek(socket)? {
            let n = bytes.len();
            if n == 0 {
                return Err(Cause::Done);
            }
            task.wrong = task.wrong.or_else(|| pattern::wrong(task.received, bytes));
            task.received += n as u64;
            self.consume(socket, n);
        }
        Ok(())
    }

    fn read_number(&mut self, socket: Socket, task: &mut Task, len: usize) -> Result<(), Cause> {
        while task.number.len() < len {
            let Some(bytes) = self.peek(socket)? else { break };
            let n = bytes.len().min(len - task.number.len());
            if n == 0 {
                return Err(Cause::Done);
            }
            task.number.extend_from_slice(&bytes[..n]);
            self.consume(socket, n);
        }
        Ok(())
    }

    fn echo(&mut self, socket: Socket, task: &mut Task) -> Result<(), Cause> {
        loop {
            let bytes = match self.peek(socket)? {
                None => return Ok(()),
                Some([]) => return Err(Cause::Done),
                // The borrow ends before the write begins.
                Some(bytes) => bytes[..bytes.len().min(16 << 10)].to_vec(),
            };
            match self.sockets.write(socket, &bytes) {
                Ok(n) => {
                    task.received += n as u64;
                    task.sent += n as u64;
                    self.consume(socket, n);
                }
                Err(Error::WouldBlock | Error::Connecting) => return Ok(()),
                Err(Error::Ended(cause)) => return Err(cause),
                Err(Error::Shut | Error::Stale) => return Err(Cause::Done),
            }
        }
    }

    /// Whether as many milliseconds have passed as the peer has said.
    fn waited(&mut self, socket: Socket, task: &mut Task) -> bool {
        let until = *task.until.get_or_insert_with(|| {
            let until = Instant::now() + Duration::from_millis(number(&task.number));
            self.sleepers.push((until, socket));
            until
        });
        Instant::now() >= until
    }

    fn sink(&mut self, socket: Socket, task: &mut Task) -> Result<(), Cause> {
        if task.job == Job::Slow {
            self.read_number(socket, task, 8)?;
            if task.number.len() < 8 {
                return Ok(());
            }
            if !self.waited(socket, task) {
                return Ok(());
            }
        }
        match self.check(socket, task) {
            Err(Cause::Done) => {}
            other => return other,
        }
        let answer = [task.received.to_le_bytes(), task.wrong.unwrap_or(u64::MAX).to_le_bytes()].concat();
        match self.sockets.write(socket, &answer) {
            Ok(n) => assert_eq!(n, 16, "the ring is empty"),
            Err(Error::Ended(cause)) => return Err(cause),
            Err(error) => panic!("a sink's answer: {error}"),
        }
        Err(Cause::Done)
    }

    /// Sends the pattern: by reference, and every fourth piece by copying. Ends the stream behind it, unless the job is an
    /// exchange.
    fn feed(&mut self, socket: Socket, task: &mut Task) -> Result<(), Cause> {
        let over = matches!(task.job, Job::Send(..)) && task.until.is_some_and(|u| Instant::now() >= u);
        if over && !task.shut {
            task.wanted = task.sent;
        }
        while task.sent < task.wanted {
            let piece = pattern::piece(task.sent, (task.wanted - task.sent).min(50_000));
            let result = if (task.sent / 50_000) % 4 == 3 {
                self.sockets.write(socket, piece)
            } else {
                self.sockets.send(socket, Still::from(piece)).map(|()| piece.len()).map_err(|(error, _)| error)
            };
            match result {
                Ok(n) => task.sent += n as u64,
                Err(Error::WouldBlock | Error::Connecting) => return Ok(()),
                Err(Error::Ended(cause)) => return Err(cause),
                Err(Error::Shut | Error::Stale) => return Err(Cause::Done),
            }
        }
        if !task.shut && !matches!(task.job, Job::Exchange(_)) && self.sockets.established(socket) {
            task.shut = true;
            if let Some((conn, end)) = self.sockets.end(socket) {
                self.stack.commit(conn, end, true);
                self.sockets.shut(socket);
                self.stack.shutdown(conn);
            }
        }
        Ok(())
    }
}

fn number(bytes: &[u8]) -> u64 {
    u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes"))
}
