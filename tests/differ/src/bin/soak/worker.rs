//! A worker: a process that listens or connects, and serves its ends in many ways.

use crate::end::{End, Log, Outcome};
use crate::errno;
use differ::rng::Rng;
use differ::spaces::{self, Spaces};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::time::Duration;

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

/// The port that `get` tells of a socket.
fn port(fd: i32, get: unsafe extern "C" fn(i32, *mut libc::sockaddr, *mut u32) -> i32) -> u16 {
    let mut sin = loopback(0);
    let mut len = size_of::<libc::sockaddr_in>() as u32;
    // SAFETY: the address and its length are ours.
    unsafe { get(fd, (&raw mut sin).cast(), &raw mut len) };
    u16::from_be(sin.sin_port)
}

/// How long a connection that has stalled is left as it is, for the director to look at.
const LOOK: Duration = Duration::from_secs(3);

thread_local! {
    /// How the connection goes on that this thread serves.
    static WAY: std::cell::Cell<&'static str> = const { std::cell::Cell::new("") };
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
        Err(Outcome::Wrong(why)) => {
            let way = WAY.with(|w| w.get());
            let (own, peer) = (port(end.fd, libc::getsockname), port(end.fd, libc::getpeername));
            report(&format!("WRONG {} {pid} socket {} ports {own} {peer} ({way}) {why}", end.seed(), cookie(end.fd)));
            if why.starts_with("STALLED") {
                // The director looks at both ends while they are as they are.
                std::thread::sleep(LOOK);
            }
        }
    }
    call!(close(end.fd));
}

/// Serves one end; at a random point it may go on in one of many other ways.
fn serve(mut end: End, without: &str) {
    let mut rng = Rng::new(end.choice ^ 0x50a4);
    WAY.with(|w| w.set("plainly"));
    let total = end.tx_len + end.rx_len;
    let stop = rng.chance(60).then(|| rng.next() % (total + 1));
    if finish(&mut end, stop) {
        return;
    }
    let way = *rng.pick(&["dup", "fork", "exec", "scm", "hold", "turns", "dies", "split"]);
    if !without.split(',').any(|w| w == way) {
        report(&format!("did {way}"));
        WAY.with(|w| w.set(way));
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
pub fn within(args: &[String]) -> i32 {
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

pub fn go_on(args: &[String]) -> i32 {
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
pub fn listener(args: &[String]) -> i32 {
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
pub fn connector(args: &[String]) -> i32 {
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
