//! `soak`: checksummed streams both ways over many connections, while processes fork, exec, hand
//! connections over, half-close and die.
//!
//! A director starts pairs of *workers*: one listens, one connects, and each serves its connections with
//! threads. Every connection's first 16 bytes name the stream in each direction (seed, length); every later
//! byte must be the pattern's at that position, and the end of the stream must come exactly after the last
//! byte. Only a worker that was killed may end a stream early, and then nothing wrong may have been read.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use differ::rng::{Rng, pattern};
use differ::task;

const USAGE: &str = "\
usage: soak [--seconds T] [--seed S] [--lib PATH] [--pairs N] [--connections N] [--largest BYTES]
            [--without dup,fork,exec,scm,kill]
  --seconds T       how long (default 60)
  --lib PATH        library to preload into all workers but every fourth (default: none, the kernel alone)
  --pairs N         pairs of worker processes at once (default 3)
  --connections N   connections that a pair has open at once (default 24)
  --largest BYTES   longest stream (default 3000000)
  --without LIST    no hand-overs of these kinds in mid-stream, no kills
exit status: 0 clean, 1 a wrong byte, a wrong end or a stall, 2 wrong usage";

/// Longest time without progress on a connection before it counts as stalled.
const STALL: Duration = Duration::from_secs(20);

macro_rules! call {
    ($f:ident ( $($arg:expr),* $(,)? )) => {
        // SAFETY: buffers passed are live and of the stated length; descriptors are this program's own.
        unsafe { libc::$f($($arg),*) }
    };
}

fn errno() -> i32 {
    std::io::Error::last_os_error().raw_os_error().unwrap_or(0)
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let code = match args.first().map(String::as_str) {
        Some("listen") => listener(&args[1..]),
        Some("connect") => connector(&args[1..]),
        Some("go-on") => go_on(&args[1..]),
        _ => match Cli::parse(&args) {
            Ok(cli) => direct(&cli),
            Err(e) => {
                eprintln!("soak: {e}\n{USAGE}");
                2
            }
        },
    };
    std::process::exit(code);
}

// ---- one end of one connection ------------------------------------------------------------------

/// A stream's name and how much of it has passed: all that a successor needs to go on.
#[derive(Clone, Copy, Debug)]
struct End {
    fd: i32,
    /// Seeds of what is sent and received.
    tx: u64,
    rx: u64,
    /// Lengths of both.
    tx_len: u64,
    rx_len: u64,
    sent: u64,
    got: u64,
    /// Choices: chunk sizes and ways of waiting.
    choice: u64,
}

#[derive(Debug)]
enum Outcome {
    /// The connection broke: right only if somebody was killed.
    Broken(String),
    /// Never right.
    Wrong(String),
}

impl End {
    /// The two ends of connection `seed`; both derive everything from it.
    fn new(fd: i32, seed: u64, client: bool, largest: u64) -> End {
        let mut rng = Rng::new(seed);
        let mut len = || match rng.below(4) {
            0 => rng.range(0, 300) as u64,
            1 => rng.range(0, 60_000) as u64,
            _ => rng.next() % (largest + 1),
        };
        let (a, b) = (len(), len());
        let (tx, rx, tx_len, rx_len) =
            if client { (seed * 2, seed * 2 + 1, a, b) } else { (seed * 2 + 1, seed * 2, b, a) };
        End { fd, tx, rx, tx_len, rx_len, sent: 0, got: 0, choice: seed ^ u64::from(client) }
    }

    fn arguments(&self) -> String {
        let End { fd, tx, rx, tx_len, rx_len, sent, got, choice } = self;
        format!("{fd},{tx},{rx},{tx_len},{rx_len},{sent},{got},{choice}")
    }

    fn from_arguments(text: &str) -> Option<End> {
        let n: Vec<u64> = text.split(',').map_while(|x| x.parse().ok()).collect();
        let [fd, tx, rx, tx_len, rx_len, sent, got, choice] = n[..] else { return None };
        Some(End { fd: fd as i32, tx, rx, tx_len, rx_len, sent, got, choice })
    }

    /// Moves bytes until both streams have ended, or until a random point when `handover` is given.
    fn run(&mut self, stop_at: Option<u64>) -> Result<bool, Outcome> {
        let mut rng = Rng::new(self.choice ^ self.sent << 20 ^ self.got);
        let mut buf = vec![0u8; 1 << 20];
        let mut largest = *rng.pick(&[1usize, 300, 5000, 70_000, 1 << 20]);
        let mut turns = 0;
        let blocking = rng.chance(30);
        let how = rng.below(4);
        let epoll = if how == 3 { call!(epoll_create1(libc::EPOLL_CLOEXEC)) } else { -1 };
        let edge = if rng.chance(50) { libc::EPOLLET as u32 } else { 0 };
        if epoll >= 0 {
            let events = (libc::EPOLLIN | libc::EPOLLOUT | libc::EPOLLRDHUP) as u32 | edge;
            let mut e = libc::epoll_event { events, u64: 1 };
            call!(epoll_ctl(epoll, libc::EPOLL_CTL_ADD, self.fd, &raw mut e));
        }
        let old = call!(fcntl(self.fd, libc::F_GETFL));
        call!(fcntl(self.fd, libc::F_SETFL, old | libc::O_NONBLOCK));
        let mut ended = false;
        let mut closed_write = false;
        let result = loop {
            if stop_at.is_some_and(|s| self.sent + self.got >= s) && !closed_write && !ended {
                break Ok(false);
            }
            let mut moved = false;
            turns += 1;
            if turns == 2000 {
                // Long streams do not end byte by byte in reasonable time.
                largest = 1 << 20;
            }
            if self.sent < self.tx_len {
                match self.send_some(&mut buf, rng.length(largest)) {
                    Ok(m) => moved |= m,
                    Err(o) => break Err(o),
                }
            }
            if self.sent == self.tx_len && !closed_write {
                closed_write = true;
                call!(shutdown(self.fd, libc::SHUT_WR));
                moved = true;
            }
            if !ended {
                match self.receive_some(&mut buf, rng.length(largest), &mut ended, blocking && closed_write) {
                    Ok(m) => moved |= m,
                    Err(o) => break Err(o),
                }
            }
            if ended && closed_write {
                break Ok(true);
            }
            let waited = if moved { Ok(()) } else { self.wait(epoll, how, edge, ended) };
            if let Err(o) = waited {
                break Err(o);
            }
        };
        if epoll >= 0 {
            call!(close(epoll));
        }
        result
    }

    fn send_some(&mut self, buf: &mut [u8], n: usize) -> Result<bool, Outcome> {
        let n = n.min((self.tx_len - self.sent) as usize);
        for (i, b) in buf[..n].iter_mut().enumerate() {
            *b = pattern(self.tx, self.sent + i as u64);
        }
        match call!(send(self.fd, buf.as_ptr().cast(), n, libc::MSG_NOSIGNAL)) {
            r if r > 0 => {
                self.sent += r as u64;
                Ok(true)
            }
            _ if matches!(errno(), libc::EAGAIN | libc::EINTR) => Ok(false),
            _ => Err(Outcome::Broken(format!("send errno {} after {} of {}", errno(), self.sent, self.tx_len))),
        }
    }

    fn receive_some(&mut self, buf: &mut [u8], n: usize, ended: &mut bool, block: bool) -> Result<bool, Outcome> {
        if block {
            // Nothing is left to send: the ordinary blocking read, with a time-out to notice stalls.
            let old = call!(fcntl(self.fd, libc::F_GETFL));
            call!(fcntl(self.fd, libc::F_SETFL, old & !libc::O_NONBLOCK));
            let time = libc::timeval { tv_sec: STALL.as_secs() as i64, tv_usec: 0 };
            let (p, len) = ((&raw const time).cast(), size_of_val(&time) as u32);
            call!(setsockopt(self.fd, libc::SOL_SOCKET, libc::SO_RCVTIMEO, p, len));
        }
        match call!(recv(self.fd, buf.as_mut_ptr().cast(), n, 0)) {
            0 if self.got == self.rx_len => {
                *ended = true;
                Ok(true)
            }
            0 => Err(Outcome::Broken(format!("end after {} of {}", self.got, self.rx_len))),
            r if r > 0 => {
                for (i, b) in buf[..r as usize].iter().enumerate() {
                    let at = self.got + i as u64;
                    if at >= self.rx_len || *b != pattern(self.rx, at) {
                        return Err(Outcome::Wrong(self.misplaced(&buf[i..r as usize], at)));
                    }
                }
                self.got += r as u64;
                Ok(true)
            }
            _ if block && errno() == libc::EAGAIN => Err(self.stalled("recv")),
            _ if matches!(errno(), libc::EAGAIN | libc::EINTR) => Ok(false),
            _ => Err(Outcome::Broken(format!("recv errno {} after {} of {}", errno(), self.got, self.rx_len))),
        }
    }

    /// Says whether the wrong bytes belong elsewhere in the stream: lost, repeated or garbled.
    fn misplaced(&self, found: &[u8], at: u64) -> String {
        let probe = &found[..found.len().min(12)];
        let from = at.saturating_sub(2 << 20);
        let fits = |p: &u64| probe.iter().enumerate().all(|(i, b)| *b == pattern(self.rx, p + i as u64));
        let place = if probe.len() >= 4 { (from..at + (2 << 20)).find(fits) } else { None };
        match place {
            Some(p) if p > at => format!("LOST {} bytes at {at} of {}", p - at, self.rx_len),
            Some(p) => format!("REPEATED {} bytes at {at} of {}", at - p, self.rx_len),
            None => format!("GARBLED at {at} of {} ({} bytes left in the read)", self.rx_len, found.len()),
        }
    }

    fn stalled(&self, place: &str) -> Outcome {
        Outcome::Wrong(format!("STALLED in {place}: {self:?}"))
    }

    fn wait(&self, epoll: i32, how: usize, edge: u32, ended: bool) -> Result<(), Outcome> {
        let mut want = if ended { 0 } else { libc::POLLIN };
        if self.sent < self.tx_len {
            want |= libc::POLLOUT;
        }
        let ms = STALL.as_millis() as i32;
        let (r, place) = match how {
            3 => {
                let mut e = libc::epoll_event { events: want as u32 | edge, u64: 1 };
                if edge == 0 {
                    call!(epoll_ctl(epoll, libc::EPOLL_CTL_MOD, self.fd, &raw mut e));
                }
                (call!(epoll_wait(epoll, &raw mut e, 1, ms)), "epoll_wait")
            }
            2 if self.fd < 1024 => (self.select(want), "select"),
            _ => {
                let mut p = libc::pollfd { fd: self.fd, events: want, revents: 0 };
                (call!(poll(&raw mut p, 1, ms)), "poll")
            }
        };
        if r == 0 { Err(self.stalled(place)) } else { Ok(()) }
    }

    fn select(&self, want: i16) -> i32 {
        // SAFETY: zero is the empty set; the descriptor is below FD_SETSIZE.
        let (mut rd, mut wr): (libc::fd_set, libc::fd_set) = unsafe {
            let mut sets = (std::mem::zeroed(), std::mem::zeroed());
            if want & libc::POLLIN != 0 {
                libc::FD_SET(self.fd, &raw mut sets.0);
            }
            if want & libc::POLLOUT != 0 {
                libc::FD_SET(self.fd, &raw mut sets.1);
            }
            sets
        };
        let mut time = libc::timeval { tv_sec: STALL.as_secs() as i64, tv_usec: 0 };
        call!(select(self.fd + 1, &raw mut rd, &raw mut wr, std::ptr::null_mut(), &raw mut time))
    }
}

// ---- workers ------------------------------------------------------------------------------------

fn report(text: &str) {
    // One write per line, so that lines of several threads do not mix, and no lock that a forked child
    // could find held for ever.
    let line = format!("{text}\n");
    call!(write(1, line.as_ptr().cast(), line.len()));
}

/// The kernel's name of a socket, as culvert's log and `culvert stat` have it.
fn cookie(fd: i32) -> u64 {
    let mut v = 0u64;
    let mut len = 8u32;
    call!(getsockopt(fd, libc::SOL_SOCKET, libc::SO_COOKIE, (&raw mut v).cast(), &raw mut len));
    v
}

fn finish(end: &mut End, stop_at: Option<u64>) -> bool {
    match end.run(stop_at) {
        Ok(true) => report(&format!("done {}", end.sent + end.got)),
        Ok(false) => return false,
        Err(Outcome::Broken(why)) => report(&format!("broken {} {why}", std::process::id())),
        Err(Outcome::Wrong(why)) => report(&format!("WRONG {} socket {} {why}", std::process::id(), cookie(end.fd))),
    }
    call!(close(end.fd));
    true
}

/// Serves one end; at a random point it may go on through a dup, a fork or a new image.
fn serve(mut end: End, without: &str) {
    let mut rng = Rng::new(end.choice ^ 0x50a4);
    let total = end.tx_len + end.rx_len;
    let stop = rng.chance(45).then(|| rng.next() % (total + 1));
    if finish(&mut end, stop) {
        return;
    }
    match rng.below(4) {
        0 if !without.contains("dup") => {
            let copy = call!(dup(end.fd));
            if copy >= 0 {
                call!(close(end.fd));
                end.fd = copy;
            }
        }
        1 if !without.contains("fork") => {
            let pid = call!(fork());
            if pid == 0 {
                // The other connections are the parent's: holding them would hide its death.
                call!(close_range(3, end.fd as u32 - 1, 0));
                call!(close_range(end.fd as u32 + 1, u32::MAX, 0));
                finish(&mut end, None);
                call!(_exit(0));
            }
            if pid > 0 {
                call!(close(end.fd));
                call!(waitpid(pid, std::ptr::null_mut(), 0));
                return;
            }
        }
        2 if !without.contains("exec") => {
            let me = std::env::current_exe().expect("this program has a path");
            let mut command = Command::new(me);
            let flags = call!(fcntl(end.fd, libc::F_GETFD));
            call!(fcntl(end.fd, libc::F_SETFD, flags & !libc::FD_CLOEXEC));
            if let Ok(mut child) = command.arg("go-on").arg(end.arguments()).spawn() {
                call!(close(end.fd));
                let _ = child.wait();
                return;
            }
        }
        3 if !without.contains("scm") => {
            if let Some(fd) = through_a_socket(end.fd) {
                call!(close(end.fd));
                end.fd = fd;
            }
        }
        _ => {}
    }
    finish(&mut end, None);
}

fn go_on(args: &[String]) -> i32 {
    let Some(mut end) = args.first().and_then(|a| End::from_arguments(a)) else { return 2 };
    finish(&mut end, None);
    0
}

/// Sends the descriptor to ourselves over a Unix socket.
fn through_a_socket(fd: i32) -> Option<i32> {
    let mut pair = [-1; 2];
    if call!(socketpair(libc::AF_UNIX, libc::SOCK_STREAM, 0, pair.as_mut_ptr())) != 0 {
        return None;
    }
    let mut byte = [1u8];
    let mut control = [0u64; 3];
    let mut iov = libc::iovec { iov_base: byte.as_mut_ptr().cast(), iov_len: 1 };
    // SAFETY: zero is a valid msghdr; the control buffer is aligned and large enough for one descriptor,
    // and the kernel fills it before it is read.
    let got = unsafe {
        let mut m: libc::msghdr = std::mem::zeroed();
        m.msg_iov = &raw mut iov;
        m.msg_iovlen = 1;
        m.msg_control = control.as_mut_ptr().cast();
        m.msg_controllen = 24;
        let c = libc::CMSG_FIRSTHDR(&raw const m);
        (*c).cmsg_level = libc::SOL_SOCKET;
        (*c).cmsg_type = libc::SCM_RIGHTS;
        (*c).cmsg_len = libc::CMSG_LEN(4) as usize;
        libc::CMSG_DATA(c).cast::<i32>().write_unaligned(fd);
        if libc::sendmsg(pair[0], &raw const m, 0) != 1 || libc::recvmsg(pair[1], &raw mut m, 0) != 1 {
            None
        } else {
            let c = libc::CMSG_FIRSTHDR(&raw const m);
            if c.is_null() { None } else { Some(libc::CMSG_DATA(c).cast::<i32>().read_unaligned()) }
        }
    };
    call!(close(pair[0]));
    call!(close(pair[1]));
    got
}

/// Reads or writes the 8 bytes that name a connection.
fn name_exchange(fd: i32, seed: Option<u64>) -> Option<u64> {
    let mut b = seed.unwrap_or(0).to_le_bytes();
    let n = match seed {
        Some(_) => call!(send(fd, b.as_ptr().cast(), 8, libc::MSG_NOSIGNAL)),
        None => call!(recv(fd, b.as_mut_ptr().cast(), 8, libc::MSG_WAITALL)),
    };
    // A few exchanges first, as programs have: only connections that are used are worth a ring.
    let seed = (n == 8).then(|| u64::from_le_bytes(b))?;
    let client = n == 8 && b != [0; 8];
    client.then_some(seed)
}

/// `largest without`: accepts for ever, a thread per connection.
fn listener(args: &[String]) -> i32 {
    let largest: u64 = args[0].parse().unwrap_or(100_000);
    let without: &'static str = args[1].clone().leak();
    let fd = call!(socket(libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0));
    let mut sin = loopback(0);
    let mut len = size_of::<libc::sockaddr_in>() as u32;
    let p = (&raw mut sin).cast::<libc::sockaddr>();
    if call!(bind(fd, p, len)) != 0 || call!(listen(fd, 512)) != 0 || call!(getsockname(fd, p, &raw mut len)) != 0 {
        return 1;
    }
    report(&format!("port {}", u16::from_be(sin.sin_port)));
    loop {
        let c = call!(accept4(fd, std::ptr::null_mut(), std::ptr::null_mut(), libc::SOCK_CLOEXEC));
        if c < 0 {
            continue;
        }
        std::thread::spawn(move || match name_exchange(c, None) {
            Some(seed) => {
                warm_up(c, seed, false);
                serve(End::new(c, seed, false, largest), without);
            }
            None => {
                call!(close(c));
            }
        });
    }
}

/// `port connections seed largest without`: keeps `connections` open until its standard input ends.
fn connector(args: &[String]) -> i32 {
    let number = |i: usize| args[i].parse::<u64>().unwrap_or(1);
    let (port, connections, seed, largest) = (number(0) as u16, number(1), number(2), number(3));
    let stop = Arc::new(AtomicBool::new(false));
    let next = Arc::new(AtomicU64::new(1));
    let threads: Vec<_> = (0..connections)
        .map(|_| {
            let (stop, next, without) = (stop.clone(), next.clone(), args[4].clone());
            std::thread::spawn(move || {
                while !stop.load(SeqCst) {
                    let id = seed * 1_000_000 + next.fetch_add(1, SeqCst);
                    let fd = call!(socket(libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0));
                    let sin = loopback(port);
                    let len = size_of::<libc::sockaddr_in>() as u32;
                    if call!(connect(fd, (&raw const sin).cast(), len)) != 0 || name_exchange(fd, Some(id)).is_none() {
                        call!(close(fd));
                        report(&format!("broken {} connect errno {}", std::process::id(), errno()));
                        return;
                    }
                    report("open");
                    warm_up(fd, id, true);
                    serve(End::new(fd, id, true, largest), &without);
                }
            })
        })
        .collect();
    let mut line = String::new();
    let _ = std::io::stdin().read_line(&mut line);
    stop.store(true, SeqCst);
    for t in threads {
        let _ = t.join();
    }
    0
}

/// Some requests and responses, a number that follows from the seed. Errors are left to what follows.
fn warm_up(fd: i32, seed: u64, client: bool) {
    let mut rng = Rng::new(seed ^ 0x3a3a);
    let on = 1i32;
    call!(setsockopt(fd, libc::IPPROTO_TCP, libc::TCP_NODELAY, (&raw const on).cast(), 4));
    for _ in 0..*rng.pick(&[0, 5, 30, 60, 100]) {
        let mut b = [7u8; 40];
        for turn in [client, !client] {
            let n = if turn {
                call!(send(fd, b.as_ptr().cast(), 40, libc::MSG_NOSIGNAL))
            } else {
                call!(recv(fd, b.as_mut_ptr().cast(), 40, libc::MSG_WAITALL))
            };
            if n != 40 {
                return;
            }
        }
    }
}

fn loopback(port: u16) -> libc::sockaddr_in {
    libc::sockaddr_in {
        sin_family: libc::AF_INET as u16,
        sin_port: port.to_be(),
        sin_addr: libc::in_addr { s_addr: 0x7f00_0001u32.to_be() },
        sin_zero: [0; 8],
    }
}

// ---- the director -------------------------------------------------------------------------------

struct Cli {
    time: Duration,
    seed: u64,
    lib: Option<PathBuf>,
    pairs: usize,
    connections: u64,
    largest: u64,
    without: String,
}

impl Cli {
    fn parse(args: &[String]) -> Result<Cli, String> {
        let mut cli = Cli {
            time: Duration::from_secs(60),
            seed: 1,
            lib: None,
            pairs: 3,
            connections: 24,
            largest: 3_000_000,
            without: "-".to_owned(),
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
                "--without" => cli.without = value.clone(),
                "--largest" => cli.largest = number()?,
                _ => return Err(format!("unknown option {flag}")),
            }
        }
        Ok(cli)
    }
}

/// A line from a worker of pair `pair`.
struct Said {
    pair: usize,
    line: String,
}

struct Worker {
    child: Child,
    /// Closing it asks the connector to stop.
    input: Option<ChildStdin>,
}

struct Pair {
    listener: Worker,
    connector: Worker,
    /// A worker of it was killed: its connections may break.
    killed: bool,
    ends_at: Instant,
    stopping: Option<Instant>,
}

#[derive(Default)]
struct Totals {
    opened: u64,
    done: u64,
    broken: u64,
    bytes: u64,
    kills: u64,
    failures: u64,
    with_channel: u64,
}

fn start(cli: &Cli, args: &[String], preload: bool, pair: usize, said: &mpsc::Sender<Said>) -> Worker {
    let mut command = Command::new(std::env::current_exe().expect("this program has a path"));
    command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).env_remove("LD_PRELOAD");
    if let (Some(lib), true) = (&cli.lib, preload) {
        command.env("LD_PRELOAD", lib);
    }
    let mut child = command.spawn().expect("a worker starts");
    let out = child.stdout.take().expect("standard output is a pipe");
    let said = said.clone();
    std::thread::spawn(move || {
        for line in BufReader::new(out).lines().map_while(Result::ok) {
            if said.send(Said { pair, line }).is_err() {
                return;
            }
        }
    });
    let input = child.stdin.take();
    Worker { child, input }
}

fn direct(cli: &Cli) -> i32 {
    let mut rng = Rng::new(cli.seed);
    let (tx, rx) = mpsc::channel();
    let begin = Instant::now();
    let mut totals = Totals::default();
    let mut pairs: BTreeMap<usize, Pair> = BTreeMap::new();
    let mut opening: BTreeMap<usize, Worker> = BTreeMap::new();
    let (mut next, mut shown) = (0, Instant::now());
    loop {
        let over = begin.elapsed() > cli.time || totals.failures > 20;
        while !over && pairs.len() + opening.len() < cli.pairs {
            let worker =
                start(cli, &["listen".into(), cli.largest.to_string(), cli.without.clone()], next % 4 != 3, next, &tx);
            opening.insert(next, worker);
            next += 1;
        }
        if let Ok(said) = rx.recv_timeout(Duration::from_millis(50)) {
            hear(cli, said, &mut opening, &mut pairs, &mut totals, &mut rng, &tx);
        }
        tend(cli, &mut pairs, &mut totals, &mut rng, over);
        if over && pairs.is_empty() {
            break;
        }
        if shown.elapsed() > Duration::from_secs(10) {
            shown = Instant::now();
            summary(&totals, begin);
        }
    }
    for (_, mut w) in opening {
        let _ = w.child.kill();
        let _ = w.child.wait();
    }
    summary(&totals, begin);
    i32::from(totals.failures > 0 || totals.done == 0)
}

fn summary(t: &Totals, begin: Instant) {
    println!(
        "{:.0} s: {} connections opened, {} ends complete, {} broken by kills, {} bytes checked, {} kills, {} pairs seen \
         with a channel, {} failures",
        begin.elapsed().as_secs_f64(),
        t.opened,
        t.done,
        t.broken,
        t.bytes,
        t.kills,
        t.with_channel,
        t.failures
    );
}

fn hear(
    cli: &Cli,
    said: Said,
    opening: &mut BTreeMap<usize, Worker>,
    pairs: &mut BTreeMap<usize, Pair>,
    totals: &mut Totals,
    rng: &mut Rng,
    tx: &mpsc::Sender<Said>,
) {
    let (word, rest) = said.line.split_once(' ').unwrap_or((&said.line, ""));
    match word {
        "port" => {
            let Some(listener) = opening.remove(&said.pair) else { return };
            let seed = cli.seed * 1000 + said.pair as u64;
            let (connections, largest) = (cli.connections.to_string(), cli.largest.to_string());
            let args = ["connect", rest, &connections, &seed.to_string(), &largest, &cli.without];
            let connector = start(cli, &args.map(str::to_owned), said.pair % 4 != 2, said.pair, tx);
            let ends_at = Instant::now() + Duration::from_millis(rng.range(3000, 12_000) as u64);
            pairs.insert(said.pair, Pair { listener, connector, killed: false, ends_at, stopping: None });
        }
        "open" => totals.opened += 1,
        "done" => {
            totals.done += 1;
            totals.bytes += rest.parse::<u64>().unwrap_or(0);
        }
        "broken" if pairs.get(&said.pair).is_none_or(|p| p.killed) => totals.broken += 1,
        _ => {
            totals.failures += 1;
            println!("FAILURE in pair {}: {}", said.pair, said.line);
            if let Some(p) = pairs.get(&said.pair).filter(|_| totals.failures <= 3 && said.line.contains("STALLED")) {
                dump(p);
            }
        }
    }
}

/// Ends pairs whose time is over: by death of one worker, or by letting the connector finish.
fn tend(cli: &Cli, pairs: &mut BTreeMap<usize, Pair>, totals: &mut Totals, rng: &mut Rng, over: bool) {
    let mut finished = Vec::new();
    for (n, p) in pairs.iter_mut() {
        if p.stopping.is_none() && (over || Instant::now() > p.ends_at) {
            p.stopping = Some(Instant::now());
            let both = [&p.listener, &p.connector].iter().all(|w| task::has_channel(w.child.id() as i32));
            totals.with_channel += u64::from(both);
            if !cli.without.contains("kill") && rng.chance(40) {
                p.killed = true;
                totals.kills += 1;
                let victim = if rng.chance(50) { &mut p.listener } else { &mut p.connector };
                let _ = victim.child.kill();
            }
            p.connector.input = None;
        }
        let Some(since) = p.stopping else { continue };
        if matches!(p.connector.child.try_wait(), Ok(Some(_))) {
            finished.push(*n);
        } else if since.elapsed() > STALL * 3 {
            totals.failures += 1;
            println!("FAILURE in pair {n}: the connector does not finish");
            dump(p);
            let _ = p.connector.child.kill();
            finished.push(*n);
        }
    }
    for n in finished {
        if let Some(mut p) = pairs.remove(&n) {
            let _ = p.connector.child.wait();
            let _ = p.listener.child.kill();
            let _ = p.listener.child.wait();
        }
    }
}

fn dump(p: &Pair) {
    for w in [&p.listener, &p.connector] {
        println!("{}", task::whereabouts(w.child.id() as i32));
    }
    if let Ok(culvert) = std::env::var("CULVERT_BIN") {
        match Command::new(culvert).args(["stat", "--json"]).output() {
            Ok(o) => println!("{}", String::from_utf8_lossy(&o.stdout)),
            Err(e) => println!("culvert stat: {e}"),
        }
    }
}
