//! `soak`: checksummed streams both ways over many connections, while processes fork, exec, hand connections over, share
//! them, half-close, are stopped and die, some of them in namespaces of their own.
//!
//! A director starts pairs of *workers*: one listens, one connects, and each serves its connections with
//! threads. Every connection's first 16 bytes name the stream in each direction (seed, length); every later
//! byte must be the pattern's at that position, and the end of the stream must come exactly after the last
//! byte. Only a worker that was killed may end a stream early, and then nothing wrong may have been read.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use differ::rng::{Rng, pattern};
use differ::spaces::{self, Spaces};
use differ::task;

const USAGE: &str = "\
usage: soak [--seconds T] [--seed S] [--lib PATH] [--pairs N] [--connections N] [--largest BYTES]
            [--eager 0|1] [--spin V] [--without dup,fork,exec,scm,hold,turns,dies,split,kill,stop,spaces]
  --seconds T       how long (default 60)
  --lib PATH        library to preload into all workers but every fourth (default: none, the kernel alone)
  --pairs N         pairs of worker processes at once (default 3)
  --connections N   connections that a pair has open at once (default 24)
  --largest BYTES   longest stream (default 3000000)
  --eager V         CULVERT_EAGER (default: mixed)
  --spin V          CULVERT_SPIN (default: mixed)
  --without LIST    nothing of these kinds. In mid-stream a connection may go on in a duplicate (dup), in a child (fork), in a
                    new image (exec), after a way through a Unix socket (scm), beside a child that holds it and does
                    nothing (hold), in a child and here by turns (turns), here when the child that used it was killed
                    in the act (dies), in two threads (split). Children that share a connection are stopped and go on at
                    random. Workers are killed (kill), stopped for a moment (stop), and in namespaces (spaces; root only)
exit status: 0 clean, 1 a wrong byte, a wrong end or a stall, or something of the list that never happened in two
minutes or more, 2 wrong usage";

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
        Some("within") => within(&args[1..]),
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
    /// Where to say how far it is, for somebody who goes on if this process is killed.
    log: Option<&'static Log>,
    /// How many more bytes than `got` may have been received, by somebody who was killed meanwhile.
    doubt: u64,
}

/// What a process says of its part in a connection, in memory that it shares with its parent.
#[derive(Debug, Default)]
struct Log {
    sent: AtomicU64,
    got: AtomicU64,
    /// Bytes that a call under way may send, and receive.
    sending: AtomicU64,
    receiving: AtomicU64,
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
        let choice = seed ^ u64::from(client);
        End { fd, tx, rx, tx_len, rx_len, sent: 0, got: 0, choice, log: None, doubt: 0 }
    }

    fn arguments(&self) -> String {
        let End { fd, tx, rx, tx_len, rx_len, sent, got, choice, .. } = self;
        format!("{fd},{tx},{rx},{tx_len},{rx_len},{sent},{got},{choice}")
    }

    /// The number of the connection.
    fn seed(&self) -> u64 {
        self.tx / 2
    }

    fn from_arguments(text: &str) -> Option<End> {
        let n: Vec<u64> = text.split(',').map_while(|x| x.parse().ok()).collect();
        let [fd, tx, rx, tx_len, rx_len, sent, got, choice] = n[..] else { return None };
        Some(End { fd: fd as i32, tx, rx, tx_len, rx_len, sent, got, choice, log: None, doubt: 0 })
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
        let edge =
            *rng.pick(&[0, libc::EPOLLET, libc::EPOLLET, libc::EPOLLET | libc::EPOLLEXCLUSIVE, libc::EPOLLONESHOT]);
        let edge = edge as u32;
        if epoll >= 0 {
            // epoll_ctl(2): EPOLLRDHUP does not go with EPOLLEXCLUSIVE.
            let hup = if edge & libc::EPOLLEXCLUSIVE as u32 == 0 { libc::EPOLLRDHUP } else { 0 };
            let events = (libc::EPOLLIN | libc::EPOLLOUT | hup) as u32 | edge;
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
        if let Some(log) = self.log {
            log.sending.store(n as u64, SeqCst);
        }
        match call!(send(self.fd, buf.as_ptr().cast(), n, libc::MSG_NOSIGNAL)) {
            r if r > 0 => {
                self.sent += r as u64;
                if let Some(log) = self.log {
                    log.sent.store(self.sent, SeqCst);
                    log.sending.store(0, SeqCst);
                }
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
        if let Some(log) = self.log {
            log.receiving.store(n as u64, SeqCst);
        }
        if self.doubt > 0 && !self.find_place()? {
            return Ok(false);
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
                if let Some(log) = self.log {
                    log.got.store(self.got, SeqCst);
                    log.receiving.store(0, SeqCst);
                }
                Ok(true)
            }
            _ if block && errno() == libc::EAGAIN => Err(self.stalled("recv")),
            _ if matches!(errno(), libc::EAGAIN | libc::EINTR) => Ok(false),
            _ => Err(Outcome::Broken(format!("recv errno {} after {} of {}", errno(), self.got, self.rx_len))),
        }
    }

    /// After somebody was killed who received: what comes next says how far he was. False if nothing is there yet.
    fn find_place(&mut self) -> Result<bool, Outcome> {
        // Few bytes may fit in several places: more are awaited, or they are the last ones.
        let mut hup = libc::pollfd { fd: self.fd, events: libc::POLLRDHUP, revents: 0 };
        let ended = call!(poll(&raw mut hup, 1, 0)) > 0;
        let mut probe = [0u8; 16];
        let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT;
        let n = match call!(recv(self.fd, probe.as_mut_ptr().cast(), probe.len(), flags)) {
            -1 if matches!(errno(), libc::EAGAIN | libc::EINTR) => return Ok(false),
            -1 => return Err(Outcome::Broken(format!("recv errno {} in search of the place", errno()))),
            n => n as usize,
        };
        let fits = |p: &u64| (0..n).all(|i| probe[i] == pattern(self.rx, p + i as u64)) && p + n as u64 <= self.rx_len;
        let mut places = (self.got..=self.got + self.doubt).filter(fits);
        let place = match (places.next(), n) {
            (_, 0) if self.got + self.doubt >= self.rx_len => Some(self.rx_len),
            (_, 0) => return Err(Outcome::Broken(format!("end after {} of {}", self.got, self.rx_len))),
            (first, 16) => first,
            (first, _) => match places.next() {
                None => first,
                Some(_) if ended && fits(&(self.rx_len - n as u64)) => Some(self.rx_len - n as u64),
                Some(_) => {
                    call!(usleep(1000));
                    return Ok(false);
                }
            },
        };
        match place {
            Some(p) => {
                (self.got, self.doubt) = (p, 0);
                Ok(true)
            }
            None => Err(Outcome::Wrong(self.misplaced(&probe[..n], self.got))),
        }
    }

    /// Sends in this thread and receives in another, both in blocking calls, to the end of both streams.
    fn split(&mut self) -> Result<bool, Outcome> {
        let old = call!(fcntl(self.fd, libc::F_GETFL));
        call!(fcntl(self.fd, libc::F_SETFL, old & !libc::O_NONBLOCK));
        let time = libc::timeval { tv_sec: STALL.as_secs() as i64, tv_usec: 0 };
        for name in [libc::SO_RCVTIMEO, libc::SO_SNDTIMEO] {
            let (p, len) = ((&raw const time).cast(), size_of_val(&time) as u32);
            call!(setsockopt(self.fd, libc::SOL_SOCKET, name, p, len));
        }
        let (mut out, mut into) = (*self, *self);
        let (a, b) = std::thread::scope(|s| {
            let receiver = s.spawn(move || into.receive_all().map(|()| into.got));
            (out.send_all(), receiver.join().expect("the receiving thread"))
        });
        a?;
        (self.sent, self.got) = (out.sent, b?);
        Ok(true)
    }

    fn send_all(&mut self) -> Result<(), Outcome> {
        let mut rng = Rng::new(self.choice ^ self.sent << 20 ^ 1);
        let mut buf = vec![0u8; 1 << 20];
        let largest = *rng.pick(&[5000, 70_000, 1 << 20]);
        let mut since = Instant::now();
        while self.sent < self.tx_len {
            if self.send_some(&mut buf, rng.length(largest))? {
                since = Instant::now();
            } else if since.elapsed() > STALL / 2 {
                return Err(self.stalled("a blocking send"));
            }
        }
        call!(shutdown(self.fd, libc::SHUT_WR));
        Ok(())
    }

    fn receive_all(&mut self) -> Result<(), Outcome> {
        let mut rng = Rng::new(self.choice ^ self.got << 20 ^ 2);
        let mut buf = vec![0u8; 1 << 20];
        let largest = *rng.pick(&[5000, 70_000, 1 << 20]);
        let (mut ended, mut since) = (false, Instant::now());
        while !ended {
            if self.receive_some(&mut buf, rng.length(largest), &mut ended, false)? {
                since = Instant::now();
            } else if since.elapsed() > STALL / 2 {
                return Err(self.stalled("a blocking recv"));
            }
        }
        Ok(())
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
                if edge & (libc::EPOLLET as u32) == 0 {
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
        Ok(false) => false,
        result => {
            conclude(end, result);
            true
        }
    }
}

/// Reports how an end ended, and closes it.
fn conclude(end: &End, result: Result<bool, Outcome>) {
    let pid = std::process::id();
    match result {
        Ok(_) => report(&format!("done {}", end.sent + end.got)),
        Err(Outcome::Broken(why)) => report(&format!("broken {} {pid} {why}", end.seed())),
        Err(Outcome::Wrong(why)) => report(&format!("WRONG {} {pid} socket {} {why}", end.seed(), cookie(end.fd))),
    }
    call!(close(end.fd));
}

/// Serves one end; at a random point it may go on in one of many other ways.
fn serve(mut end: End, without: &str) {
    let mut rng = Rng::new(end.choice ^ 0x50a4);
    let total = end.tx_len + end.rx_len;
    let stop = rng.chance(60).then(|| rng.next() % (total + 1));
    if finish(&mut end, stop) {
        return;
    }
    let way = *rng.pick(&["dup", "fork", "exec", "scm", "hold", "turns", "dies", "split"]);
    if !without.split(',').any(|w| w == way) {
        report(&format!("did {way}"));
        if go_another_way(way, &mut end, &mut rng) {
            return;
        }
    }
    finish(&mut end, None);
}

/// True if the end has been served.
fn go_another_way(way: &str, end: &mut End, rng: &mut Rng) -> bool {
    match way {
        "dup" => {
            let copy = call!(dup(end.fd));
            if copy >= 0 {
                call!(close(end.fd));
                end.fd = copy;
            }
        }
        "fork" => {
            let pid = call!(fork());
            if pid == 0 {
                alone(&[end.fd]);
                finish(end, None);
                call!(_exit(0));
            }
            if pid > 0 {
                call!(close(end.fd));
                call!(waitpid(pid, std::ptr::null_mut(), 0));
                return true;
            }
        }
        "exec" => {
            let me = std::env::current_exe().expect("this program has a path");
            let mut command = Command::new(me);
            let flags = call!(fcntl(end.fd, libc::F_GETFD));
            call!(fcntl(end.fd, libc::F_SETFD, flags & !libc::FD_CLOEXEC));
            if let Ok(mut child) = command.arg("go-on").arg(end.arguments()).spawn() {
                call!(close(end.fd));
                let _ = child.wait();
                return true;
            }
        }
        "scm" => {
            if let Some(fd) = through_a_socket(end.fd) {
                call!(close(end.fd));
                end.fd = fd;
            }
        }
        "hold" => return hold(end, rng),
        "turns" => return take_turns(end, rng),
        "dies" => return outlive(end, rng),
        _ => {
            let result = end.split();
            conclude(end, result);
            return true;
        }
    }
    false
}

/// In a child: closes all but `keep` (whose numbers rise). The other connections are the parent's: holding them would hide
/// its death.
fn alone(keep: &[i32]) {
    let mut from = 3;
    for fd in keep {
        if *fd > from {
            call!(close_range(from as u32, *fd as u32 - 1, 0));
        }
        from = from.max(fd + 1);
    }
    call!(close_range(from as u32, u32::MAX, 0));
}

/// fork(2), whose child dies with this process: a stopped one that outlived it would hold all its connections.
fn fork_that_dies_with_us() -> i32 {
    let mut pipe = [-1; 2];
    call!(pipe2(pipe.as_mut_ptr(), libc::O_CLOEXEC));
    let parent = std::process::id() as i32;
    let pid = call!(fork());
    if pid == 0 {
        call!(prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL));
        if call!(getppid()) != parent {
            call!(_exit(0));
        }
        call!(write(pipe[1], c"r".as_ptr().cast(), 1));
    }
    call!(close(pipe[1]));
    if pid > 0 {
        let mut b = [0u8; 1];
        while call!(read(pipe[0], b.as_mut_ptr().cast(), 1)) < 0 && errno() == libc::EINTR {}
    }
    call!(close(pipe[0]));
    pid
}

/// Stops `pid` at random moments and lets it go on, while `f` runs.
fn stopping<T>(pid: i32, seed: u64, f: impl FnOnce() -> T) -> T {
    let over = AtomicBool::new(false);
    std::thread::scope(|s| {
        s.spawn(|| {
            let mut rng = Rng::new(seed);
            while !over.load(SeqCst) {
                call!(usleep(rng.range(100, 40_000) as u32));
                call!(kill(pid, libc::SIGSTOP));
                call!(usleep(rng.range(100, 150_000) as u32));
                call!(kill(pid, libc::SIGCONT));
            }
        });
        let result = f();
        over.store(true, SeqCst);
        result
    })
}

/// Goes on beside a child that has the connection, too, and does nothing but being stopped; perhaps it is killed.
fn hold(end: &mut End, rng: &mut Rng) -> bool {
    let pid = fork_that_dies_with_us();
    if pid == 0 {
        alone(&[end.fd]);
        loop {
            call!(pause());
        }
    }
    if pid < 0 {
        return false;
    }
    let total = end.tx_len + end.rx_len;
    let dies_at = rng.chance(50).then(|| end.sent + end.got + rng.next() % (total + 1 - end.sent - end.got));
    let over = stopping(pid, rng.next(), || finish(end, dies_at));
    call!(kill(pid, libc::SIGKILL));
    call!(waitpid(pid, std::ptr::null_mut(), 0));
    over
}

/// The next words of whoever has the other end of a pair of sockets; empty when it is gone.
fn hear_from(fd: i32) -> String {
    let mut buf = [0u8; 300];
    loop {
        match call!(recv(fd, buf.as_mut_ptr().cast(), buf.len(), 0)) {
            -1 if errno() == libc::EINTR => {}
            n => return String::from_utf8_lossy(&buf[..n.max(0) as usize]).into_owned(),
        }
    }
}

fn tell(fd: i32, text: &str) {
    call!(send(fd, text.as_ptr().cast(), text.len(), libc::MSG_NOSIGNAL));
}

/// A child and this process use the connection by turns; the child is stopped at random, also in the middle of its turn.
fn take_turns(end: &mut End, rng: &mut Rng) -> bool {
    let mut pair = [-1; 2];
    if call!(socketpair(libc::AF_UNIX, libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC, 0, pair.as_mut_ptr())) != 0 {
        return false;
    }
    let turns = rng.range(2, 10);
    let total = end.tx_len + end.rx_len;
    let stop = move |end: &End, rng: &mut Rng| {
        let left = total - (end.sent + end.got).min(total);
        Some(end.sent + end.got + rng.next() % (left / 4 + 2))
    };
    let pid = fork_that_dies_with_us();
    if pid == 0 {
        let mut keep = [end.fd, pair[1]];
        keep.sort_unstable();
        alone(&keep);
        while let Some(mut end) = End::from_arguments(&hear_from(pair[1])) {
            let until = stop(&end, rng);
            let over = finish(&mut end, until);
            tell(pair[1], &if over { "over".into() } else { end.arguments() });
        }
        call!(_exit(0));
    }
    call!(close(pair[1]));
    let over = pid > 0
        && stopping(pid, rng.next(), || {
            (0..turns).any(|turn| {
                if turn % 2 == 1 {
                    let until = stop(end, rng);
                    return finish(end, until);
                }
                tell(pair[0], &end.arguments());
                match End::from_arguments(&hear_from(pair[0])) {
                    Some(e) => *end = e,
                    None => {
                        call!(close(end.fd));
                        return true;
                    }
                }
                false
            })
        });
    call!(close(pair[0]));
    if pid > 0 {
        // Not always of its own accord.
        if rng.chance(50) {
            call!(kill(pid, libc::SIGKILL));
        }
        call!(waitpid(pid, std::ptr::null_mut(), 0));
    }
    over
}

/// A child uses the connection, and is killed in the act; what it was about to do is known but for one call.
fn outlive(end: &mut End, rng: &mut Rng) -> bool {
    let (prot, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_ANONYMOUS);
    let map = call!(mmap(std::ptr::null_mut(), 4096, prot, flags, -1, 0));
    if map == libc::MAP_FAILED {
        return false;
    }
    // SAFETY: a page of zeros of our own, which is unmapped when nobody has the reference any more (below).
    let log: &'static Log = unsafe { &*map.cast::<Log>() };
    log.sent.store(end.sent, SeqCst);
    log.got.store(end.got, SeqCst);
    let pid = fork_that_dies_with_us();
    if pid == 0 {
        alone(&[end.fd]);
        end.log = Some(log);
        finish(end, None);
        call!(_exit(0));
    }
    let mut over = false;
    if pid > 0 {
        call!(usleep(rng.range(0, 20_000) as u32));
        call!(kill(pid, libc::SIGKILL));
        let mut status = 0;
        call!(waitpid(pid, &raw mut status, 0));
        (end.sent, end.got) = (log.sent.load(SeqCst), log.got.load(SeqCst));
        if libc::WIFEXITED(status) {
            call!(close(end.fd));
            over = true;
        } else if log.sending.load(SeqCst) > 0 || end.sent == end.tx_len && end.got == end.rx_len {
            // How much it has sent only the peer knows; and who has seen both ends may have reported them.
            report(&format!("cut {}", end.seed()));
            call!(close(end.fd));
            over = true;
        } else {
            report("did survive");
            end.doubt = log.receiving.load(SeqCst);
        }
    }
    call!(munmap(map, 4096));
    over
}

/// `spaces pid arguments...`: a worker in namespaces of its own, and in the network namespace of process `pid` (if not 0).
fn within(args: &[String]) -> i32 {
    let [words, join, arguments @ ..] = args else { return 2 };
    let join = join.parse().unwrap_or(0);
    if let Err(e) = if join == 0 { Ok(()) } else { spaces::join_net(join) } {
        report(&format!("SETUP joining the network namespace of {join}: {e}"));
        return 1;
    }
    let spaces = Spaces::new(words);
    let mut command = Command::new(std::env::current_exe().expect("this program has a path"));
    command.args(arguments);
    if let Some(lib) = std::env::var_os("SOAK_PRELOAD") {
        command.env("LD_PRELOAD", lib);
    }
    let inner = spaces.clone();
    let enter = move || {
        call!(prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL));
        inner.enter()?;
        if inner.has("net") { spaces::loopback_up() } else { Ok(()) }
    };
    // SAFETY: this process has one thread, so the child may do what it likes before it executes.
    unsafe { command.pre_exec(enter) };
    match spaces.around_fork(|| command.spawn()) {
        Ok(Ok(mut child)) => {
            report(&format!("worker {} {}", arguments[0], child.id()));
            let _ = child.wait();
            0
        }
        Ok(Err(e)) | Err(e) => {
            report(&format!("SETUP namespaces {words}: {e}"));
            1
        }
    }
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
                        report(&format!("broken {id} {} connect errno {}", std::process::id(), errno()));
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
    eager: Option<String>,
    spin: Option<String>,
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
            eager: None,
            spin: None,
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
                "--eager" => cli.eager = Some(value.clone()),
                "--spin" => cli.spin = Some(value.clone()),
                "--without" => cli.without = value.clone(),
                "--largest" => cli.largest = number()?,
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

fn direct(cli: &Cli) -> i32 {
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
