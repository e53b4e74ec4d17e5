//! The benchmarks' own clients and servers: ordinary socket programs that know nothing of culvert.
//!
//! Each prints one line of JSON (a server: its port) when it is ready or done, and a server runs until
//! it is killed or its parent dies.
// Unsafe here: sockets and signals, by libc.
#![allow(unsafe_code)]

mod bare;
mod crowd;
mod forward;
mod messages;
mod remote;
mod span;

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use clap::{Args, Subcommand};
use serde_json::json;

use crate::{exit, stat};

/// Bytes of the small messages.
pub const MESSAGE: usize = 64;
/// Exchanges before a measurement begins: enough for a connection to settle on its path.
const WARM_UP: u32 = 5000;

/// What a server under fixed load speaks.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum Protocol {
    /// 64 bytes there and back
    Echo,
    /// SET and GET of 64 bytes
    Redis,
    /// GET of /600.bin
    Http,
}

/// `culvert workload`: the benchmarks' own clients and servers. Not a stable interface.
#[derive(Args, Debug)]
pub struct WorkloadArgs {
    /// Which end of which workload
    #[command(subcommand)]
    pub role: Role,
}

/// The ends of the workloads. Servers bind a free loopback port and print it.
#[derive(Subcommand, Debug, Clone)]
pub enum Role {
    /// Blocking echo server, one thread per connection
    EchoServer,
    /// Echo server on one epoll set, for many connections
    EpollServer,
    /// One connection, request and response in turn
    RttClient {
        /// Server's port
        #[arg(long)]
        port: u16,
        /// Bytes of a request and of its response
        #[arg(long, default_value_t = 64)]
        size: usize,
        /// Length of the measurement, seconds
        #[arg(long)]
        seconds: u32,
    },
    /// Echo server on one `select` call, for some hundred connections
    SelectServer,
    /// Wants a CPU until it is killed
    Hog,
    /// Threads that exchange messages as fast as they are answered
    RateClient {
        /// Server's port
        #[arg(long)]
        port: u16,
        /// Threads
        #[arg(long, default_value_t = 1)]
        threads: u32,
        /// Connections of each thread, used in turn
        #[arg(long, default_value_t = 1)]
        connections: u32,
        /// Length of the measurement, seconds
        #[arg(long)]
        seconds: u32,
    },
    /// Requests at a fixed rate over several connections
    LoadClient {
        /// Server's port
        #[arg(long)]
        port: u16,
        /// What the server speaks
        #[arg(long)]
        protocol: Protocol,
        /// Requests per second, all connections together
        #[arg(long)]
        rate: u32,
        /// Connections
        #[arg(long, default_value_t = 32)]
        connections: usize,
        /// Length of the measurement, seconds
        #[arg(long)]
        seconds: u32,
    },
    /// Opens connections, exchanges a few messages on each, then keeps them open and waits
    IdleClient {
        /// Server's port
        #[arg(long)]
        port: u16,
        /// Connections
        #[arg(long)]
        connections: usize,
        /// Exchanges on each connection before it idles
        #[arg(long)]
        exchanges: u32,
    },
    /// Takes messages of one size
    MessageServer {
        /// By which calls
        #[arg(long)]
        calls: messages::Calls,
        /// Whether they are answered
        #[arg(long)]
        pattern: messages::Pattern,
        /// Bytes of a message
        #[arg(long)]
        size: usize,
    },
    /// Sends messages of one size
    MessageClient {
        /// Server's port
        #[arg(long)]
        port: u16,
        /// By which calls
        #[arg(long)]
        calls: messages::Calls,
        /// Whether they are answered
        #[arg(long)]
        pattern: messages::Pattern,
        /// Bytes of a message
        #[arg(long)]
        size: usize,
        /// Length of the measurement, seconds
        #[arg(long)]
        seconds: u32,
    },
    /// Takes words, and messages, by memory that it shares, and nothing else
    BareServer {
        /// Bytes of a message; 0: there are words alone
        #[arg(long, default_value_t = 0)]
        size: usize,
    },
    /// Sends them
    BareClient {
        /// Server's memory
        #[arg(long)]
        path: String,
        /// Who waits for whom
        #[arg(long)]
        pattern: messages::Pattern,
        /// Bytes of a message; 0: there are words alone
        #[arg(long, default_value_t = 0)]
        size: usize,
        /// Length of the measurement, seconds
        #[arg(long)]
        seconds: u32,
    },
    /// The last of three processes that messages go through
    ForwardSink {
        /// By which calls
        #[arg(long)]
        calls: messages::Calls,
        /// Reads all of each message, not its first line alone
        #[arg(long)]
        all: bool,
    },
    /// The one in the middle
    ForwardMiddle {
        /// The last one's port
        #[arg(long)]
        port: u16,
        /// By which calls
        #[arg(long)]
        calls: messages::Calls,
    },
    /// The first one
    ForwardSource {
        /// The port of the one in the middle
        #[arg(long)]
        port: u16,
        /// By which calls
        #[arg(long)]
        calls: messages::Calls,
        /// Writes all of each message, not its first line alone
        #[arg(long)]
        all: bool,
        /// Length of the measurement, seconds
        #[arg(long)]
        seconds: u32,
    },
    /// An end whose other end is on another host
    #[command(subcommand)]
    Remote(remote::Role),
    /// Both ends in one process: does a connection reach shared memory?
    SelfTest,
}

/// Runs one end; returns the exit code.
pub fn main(args: &WorkloadArgs) -> u8 {
    let result = match args.role.clone() {
        Role::EchoServer => echo_server(),
        Role::EpollServer => epoll_server(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0)),
        Role::SelectServer => crowd::select_server(),
        Role::Hog => crowd::hog(),
        Role::RateClient { port, threads, connections, seconds } => {
            crowd::rate_client(port, threads, connections, Duration::from_secs(seconds.into()))
        }
        Role::RttClient { port, size, seconds } => connect(port).and_then(|s| rtt_client(s, size, seconds)),
        Role::LoadClient { port, protocol, rate, connections, seconds } => {
            load_client(port, protocol, rate, connections, Duration::from_secs(seconds.into()))
        }
        Role::IdleClient { port, connections, exchanges } => {
            idle_client((Ipv4Addr::LOCALHOST, port).into(), connections, exchanges)
        }
        Role::MessageServer { calls, pattern, size } => messages::server(calls, pattern, size),
        Role::MessageClient { port, calls, pattern, size, seconds } => {
            messages::client(port, calls, pattern, size, Duration::from_secs(seconds.into()))
        }
        Role::BareServer { size } => bare::server(size),
        Role::BareClient { path, pattern, size, seconds } => {
            bare::client(&path, pattern, size, Duration::from_secs(seconds.into()))
        }
        Role::ForwardSink { calls, all } => forward::sink(calls, all),
        Role::ForwardMiddle { port, calls } => forward::middle(port, calls),
        Role::ForwardSource { port, calls, all, seconds } => {
            forward::source(port, calls, all, Duration::from_secs(seconds.into()))
        }
        Role::Remote(role) => remote::main(role),
        Role::SelfTest => self_test(),
    };
    match result {
        Ok(()) => exit::OK,
        Err(e) => {
            eprintln!("culvert workload: {}", crate::visible::visible(&e.to_string()));
            exit::FAILED
        }
    }
}

fn announce(line: impl std::fmt::Display) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{line}")?;
    out.flush()
}

fn connect(port: u16) -> io::Result<TcpStream> {
    connect_to((Ipv4Addr::LOCALHOST, port).into())
}

fn connect_to(to: SocketAddr) -> io::Result<TcpStream> {
    let s = TcpStream::connect(to)?;
    s.set_nodelay(true)?;
    Ok(s)
}

fn echo_server() -> io::Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    announce(listener.local_addr()?.port())?;
    loop {
        let (s, _) = listener.accept()?;
        std::thread::spawn(move || echo(s));
    }
}

fn echo(mut s: TcpStream) -> io::Result<()> {
    s.set_nodelay(true)?;
    let mut buffer = vec![0; 64 << 10];
    loop {
        match s.read(&mut buffer)? {
            0 => return Ok(()),
            n => s.write_all(&buffer[..n])?,
        }
    }
}

fn exchange(s: &mut TcpStream, buffer: &mut [u8]) -> io::Result<()> {
    s.write_all(buffer)?;
    s.read_exact(buffer)
}

fn rtt_client(mut s: TcpStream, size: usize, seconds: u32) -> io::Result<()> {
    let mut buffer = vec![b'x'; size];
    for _ in 0..WARM_UP {
        exchange(&mut s, &mut buffer)?;
    }
    let mut times = Histogram::default();
    let begin = Instant::now();
    let length = Duration::from_secs(seconds.into());
    let mut last = begin;
    while last - begin < length {
        exchange(&mut s, &mut buffer)?;
        let now = Instant::now();
        times.add((now - last).as_nanos() as u64);
        last = now;
    }
    announce(json!({
        "operations": times.count, "all_operations": times.count + u64::from(WARM_UP),
        "mean_ns": (last - begin).as_nanos() as f64 / times.count as f64,
        "p50_ns": times.quantile(0.5), "p99_ns": times.quantile(0.99),
    }))
}

/// Counts durations in buckets of 1/64 relative width.
struct Histogram {
    buckets: Vec<u64>,
    count: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Histogram { buckets: vec![0; 64 * 64], count: 0 }
    }
}

impl Histogram {
    fn add(&mut self, ns: u64) {
        self.buckets[Self::bucket(ns)] += 1;
        self.count += 1;
    }

    fn bucket(ns: u64) -> usize {
        match ns {
            0..64 => ns as usize,
            _ => {
                let shift = ns.ilog2() - 6;
                (shift as usize + 1) * 64 + ((ns >> shift) as usize - 64)
            }
        }
    }

    /// Lowest duration of the bucket in which the quantile lies.
    fn quantile(&self, q: f64) -> u64 {
        let rank = (q * self.count as f64) as u64;
        let mut seen = 0;
        let bucket = self.buckets.iter().position(|n| {
            seen += n;
            seen > rank
        });
        match bucket.unwrap_or(0) {
            b @ 0..64 => b as u64,
            b => ((b % 64) as u64 + 64) << (b / 64 - 1),
        }
    }
}

/// A level-triggered epoll set.
struct Epoll(OwnedFd);

impl Epoll {
    fn new() -> io::Result<Epoll> {
        // SAFETY: creates a descriptor; no memory is involved.
        match unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) } {
            -1 => Err(io::Error::last_os_error()),
            // SAFETY: a new descriptor, owned by nobody else.
            fd => Ok(Epoll(unsafe { OwnedFd::from_raw_fd(fd) })),
        }
    }

    fn add(&self, fd: RawFd, token: u64) -> io::Result<()> {
        let mut event = libc::epoll_event { events: libc::EPOLLIN as u32, u64: token };
        // SAFETY: `event` outlives the call.
        match unsafe { libc::epoll_ctl(self.0.as_raw_fd(), libc::EPOLL_CTL_ADD, fd, &mut event) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Tokens of what is readable; waits without limit.
    fn wait(&self, events: &mut [libc::epoll_event]) -> io::Result<usize> {
        // SAFETY: the array is valid for the length given.
        let n = unsafe { libc::epoll_wait(self.0.as_raw_fd(), events.as_mut_ptr(), events.len() as i32, -1) };
        match n {
            0.. => Ok(n as usize),
            _ if io::Error::last_os_error().kind() == io::ErrorKind::Interrupted => Ok(0),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

const NO_EVENT: libc::epoll_event = libc::epoll_event { events: 0, u64: 0 };

fn epoll_server(at: SocketAddrV4) -> io::Result<()> {
    raise_descriptor_limit();
    let listener = TcpListener::bind(at)?;
    listener.set_nonblocking(true)?;
    let epoll = Epoll::new()?;
    epoll.add(listener.as_raw_fd(), u64::MAX)?;
    announce(listener.local_addr()?.port())?;
    let mut connections: Vec<Option<TcpStream>> = Vec::new();
    let mut events = [NO_EVENT; 64];
    let mut buffer = vec![0; 64 << 10];
    loop {
        let ready = epoll.wait(&mut events)?;
        for event in &events[..ready] {
            if event.u64 == u64::MAX {
                while let Ok((s, _)) = listener.accept() {
                    s.set_nonblocking(true)?;
                    s.set_nodelay(true)?;
                    epoll.add(s.as_raw_fd(), connections.len() as u64)?;
                    connections.push(Some(s));
                }
                continue;
            }
            let slot = &mut connections[event.u64 as usize];
            let Some(s) = slot else { continue };
            match s.read(&mut buffer) {
                Ok(n @ 1..) => s.write_all(&buffer[..n])?,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Ok(0) | Err(_) => *slot = None,
            }
        }
    }
}

/// One connection of [`load_client`].
struct Load {
    stream: TcpStream,
    /// Bytes of the reply still to come.
    missing: usize,
    sent: u64,
}

/// Request number `n` of a connection, and the length of its reply (HTTP's is measured).
fn request(protocol: Protocol, n: u64, http_reply: usize) -> (Vec<u8>, usize) {
    match protocol {
        Protocol::Echo => (vec![b'x'; MESSAGE], MESSAGE),
        Protocol::Redis if n.is_multiple_of(2) => {
            let mut m = format!("*3\r\n$3\r\nSET\r\n$3\r\nkey\r\n${MESSAGE}\r\n").into_bytes();
            m.extend([b'v'; MESSAGE]);
            m.extend(b"\r\n");
            (m, "+OK\r\n".len())
        }
        Protocol::Redis => (b"*2\r\n$3\r\nGET\r\n$3\r\nkey\r\n".to_vec(), "$64\r\n\r\n".len() + MESSAGE),
        Protocol::Http => (b"GET /600.bin HTTP/1.1\r\nHost: bench\r\n\r\n".to_vec(), http_reply),
    }
}

/// Length of one reply to our HTTP request; leaves the connection between two requests.
fn http_reply(s: &mut TcpStream) -> io::Result<usize> {
    s.write_all(&request(Protocol::Http, 0, 0).0)?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        s.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    let text = String::from_utf8_lossy(&head).to_ascii_lowercase();
    let length = text.lines().find_map(|l| l.strip_prefix("content-length:")?.trim().parse().ok());
    let length: usize = length.ok_or_else(|| io::Error::other("HTTP reply without Content-Length"))?;
    s.read_exact(&mut vec![0; length])?;
    Ok(head.len() + length)
}

/// A tick sends its share of requests on connections that owe no reply; a server that cannot keep up is
/// offered less, and the result says so.
fn load_client(port: u16, protocol: Protocol, rate: u32, n: usize, length: Duration) -> io::Result<()> {
    const TICKS_PER_SECOND: u32 = 1000;
    let mut http = 0;
    let mut connections = Vec::new();
    let epoll = Epoll::new()?;
    for i in 0..n {
        let mut stream = connect(port)?;
        if protocol == Protocol::Http {
            http = http_reply(&mut stream)?;
        }
        stream.set_nonblocking(true)?;
        epoll.add(stream.as_raw_fd(), i as u64)?;
        connections.push(Load { stream, missing: 0, sent: 0 });
    }
    let timer = timer(Duration::from_secs(1) / TICKS_PER_SECOND)?;
    epoll.add(timer.as_raw_fd(), u64::MAX)?;
    let share = (rate / TICKS_PER_SECOND).max(1) as usize;
    let mut events = [NO_EVENT; 64];
    let mut buffer = [0; 4096];
    let (mut done, mut next) = (0u64, 0);
    let begin = Instant::now();
    while begin.elapsed() < length {
        let ready = epoll.wait(&mut events)?;
        for event in &events[..ready] {
            if event.u64 == u64::MAX {
                let mut ticks = [0; 8];
                // SAFETY: the buffer has the 8 bytes that a timerfd fills.
                unsafe { libc::read(timer.as_raw_fd(), ticks.as_mut_ptr().cast(), 8) };
                // A client that was not scheduled in time catches up, but does not flood.
                let due = share * u64::from_ne_bytes(ticks).min(4) as usize;
                for _ in 0..due.min(n) {
                    let c = &mut connections[next];
                    next = (next + 1) % n;
                    if c.missing == 0 {
                        let (message, reply) = request(protocol, c.sent, http);
                        c.stream.write_all(&message)?;
                        c.sent += 1;
                        c.missing = reply;
                    }
                }
                continue;
            }
            let c = &mut connections[event.u64 as usize];
            match c.stream.read(&mut buffer) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(got) if got > c.missing => return Err(io::Error::other("reply longer than expected")),
                Ok(got) => {
                    c.missing -= got;
                    done += u64::from(c.missing == 0);
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) => return Err(e),
            }
        }
    }
    announce(json!({ "operations": done, "rate": done as f64 / begin.elapsed().as_secs_f64(), "offered": rate }))
}

fn timer(interval: Duration) -> io::Result<OwnedFd> {
    let spec = libc::timespec { tv_sec: interval.as_secs() as _, tv_nsec: interval.subsec_nanos().into() };
    let both = libc::itimerspec { it_interval: spec, it_value: spec };
    // SAFETY: creates a descriptor; no memory is involved.
    let fd = unsafe { libc::timerfd_create(libc::CLOCK_MONOTONIC, libc::TFD_CLOEXEC | libc::TFD_NONBLOCK) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a new descriptor, owned by nobody else.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: `both` outlives the call; the old value is not asked for.
    match unsafe { libc::timerfd_settime(fd.as_raw_fd(), 0, &both, std::ptr::null_mut()) } {
        0 => Ok(fd),
        _ => Err(io::Error::last_os_error()),
    }
}

fn idle_client(to: SocketAddr, n: usize, exchanges: u32) -> io::Result<()> {
    raise_descriptor_limit();
    let mut connections = (0..n).map(|_| connect_to(to)).collect::<io::Result<Vec<_>>>()?;
    let mut buffer = [b'x'; MESSAGE];
    for _ in 0..exchanges {
        for s in &mut connections {
            exchange(s, &mut buffer)?;
        }
    }
    announce("ready")?;
    // Until the parent closes its end.
    io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}

fn raise_descriptor_limit() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` outlives both calls. Failure leaves the limit as it is, and accept or connect will tell.
    unsafe {
        libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit);
        limit.rlim_cur = limit.rlim_max;
        libc::setrlimit(libc::RLIMIT_NOFILE, &limit);
    }
}

/// Speaks to itself over loopback until both ends are on shared memory, or for long enough to be sure
/// that they never will be; then prints what `culvert stat` says about this process.
fn self_test() -> io::Result<()> {
    const ROUNDS: u32 = 20;
    const EXCHANGES: u32 = 250;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let port = listener.local_addr()?.port();
    let server = std::thread::spawn(move || echo(listener.accept()?.0));
    let mut s = connect(port)?;
    let mut buffer = [b'x'; MESSAGE];
    let mut process = None;
    for _ in 0..ROUNDS {
        for _ in 0..EXCHANGES {
            exchange(&mut s, &mut buffer)?;
        }
        process = stat::collect(Some(std::process::id()))?.processes.pop();
        if process.as_ref().is_some_and(|p| p.connections.iter().all(|c| c.path == "shm") && p.connections.len() == 2) {
            break;
        }
    }
    announce(json!({ "process": process }))?;
    drop(s);
    server.join().map_err(|_| io::Error::other("the server thread failed"))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_within_a_bucket() {
        let mut h = Histogram::default();
        for ns in 1..=10_000 {
            h.add(ns);
        }
        for (q, exact) in [(0.5, 5_000.0), (0.99, 9_900.0)] {
            let got = h.quantile(q) as f64;
            assert!((got - exact).abs() / exact < 1.0 / 60.0, "{q}: {got}");
        }
        h.add(u64::MAX);
        assert_eq!(h.quantile(0.0), 1);
    }

    #[test]
    fn redis_requests_are_well_formed() {
        let (set, reply) = request(Protocol::Redis, 0, 0);
        assert_eq!((set.len(), reply), (b"*3\r\n$3\r\nSET\r\n$3\r\nkey\r\n$64\r\n\r\n".len() + 64, 5));
        assert_eq!(request(Protocol::Redis, 1, 0).1, 71);
    }
}
