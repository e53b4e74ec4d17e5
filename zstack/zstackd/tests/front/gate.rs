//! A gate in miniature: it holds SYNs for a time, writes them back or answers them, and echoes what the connections bring.

use crate::lab::Namespace;
use crate::packets::{self, ACK, RST, SYN, Segment};
use std::collections::{HashMap, HashSet};
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use zstackd::front::{self, Accepted, Front, Network, Wanted};

pub fn network(text: &str) -> Network {
    let (address, prefix) = text.split_once('/').expect("a prefix");
    Network { address: address.parse().expect("an address"), prefix: prefix.parse().expect("a number") }
}

/// A front for 10.1.0.1 and fd01::1, with two remote networks.
pub fn wanted() -> Wanted {
    Wanted {
        addresses: vec![network("10.1.0.1/24"), network("fd01::1/64")],
        served: vec![network("10.9.0.0/16"), network("fd09::/16")],
        ..Wanted::default()
    }
}

/// What the gate does with a SYN.
#[derive(Clone, Copy, Debug)]
pub enum Verdict {
    Hold(Duration),
    Refuse,
    /// An ICMP error of this type and code.
    Unreachable(u8, u8),
    /// Nothing.
    Silence,
}

/// What the gate has seen.
#[derive(Default)]
pub struct Seen {
    /// TCP segments on the tun, by their ends.
    pub segments: HashMap<(SocketAddr, SocketAddr), Vec<u8>>,
    /// The names of accepted connections: program, remote.
    pub accepted: Vec<(SocketAddr, SocketAddr)>,
    /// Other packets.
    pub others: Vec<Vec<u8>>,
}

/// A front, and a thread that serves it.
pub struct Gate {
    pub front: Arc<Front>,
    pub seen: Arc<Mutex<Seen>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Gate {
    /// `judge` decides about SYNs, `serve` gets the connections.
    pub fn new(
        namespace: &Namespace,
        judge: impl Fn(&Segment) -> Verdict + Send + 'static,
        serve: impl Fn(Accepted) + Send + Sync + 'static,
    ) -> Gate {
        Gate::serve(namespace.within(|| Front::make(&wanted())).unwrap_or_else(|e| panic!("{e}")), judge, serve)
    }

    /// With a front that stands.
    pub fn serve(
        front: Front,
        judge: impl Fn(&Segment) -> Verdict + Send + 'static,
        serve: impl Fn(Accepted) + Send + Sync + 'static,
    ) -> Gate {
        let front = Arc::new(front);
        let (seen, stop) = (Arc::<Mutex<Seen>>::default(), Arc::<AtomicBool>::default());
        let thread = thread::spawn({
            let (front, seen, stop) = (front.clone(), seen.clone(), stop.clone());
            move || run(&front, &seen, &stop, &judge, &Arc::new(serve))
        });
        Gate { front, seen, stop, thread: Some(thread) }
    }

    /// Connects inward in the namespace.
    pub fn inward(&self, ns: &Namespace, client: SocketAddr, to: SocketAddr) -> std::io::Result<TcpStream> {
        let socket = ns.within(|| self.front.lane(0).connect_inward(client, to))?;
        // Nothing has to come from a wire first.
        front::acknowledge(socket.as_fd())?;
        Ok(socket)
    }

    /// How many segments with these ends have been read.
    pub fn count(&self, from: SocketAddr, to: SocketAddr) -> usize {
        self.seen.lock().expect("seen").segments.get(&(from, to)).map_or(0, Vec::len)
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        }
    }
}

fn run(
    front: &Front,
    seen: &Mutex<Seen>,
    stop: &AtomicBool,
    judge: &dyn Fn(&Segment) -> Verdict,
    serve: &Arc<impl Fn(Accepted) + Send + Sync + 'static>,
) {
    let mut held: Vec<(Instant, SocketAddr, SocketAddr, Vec<u8>)> = Vec::new();
    // Written back, and not accepted yet.
    let mut released: HashSet<(SocketAddr, SocketAddr)> = HashSet::new();
    let mut buffer = vec![0; 65_536];
    while !stop.load(Ordering::SeqCst) {
        let fds: Vec<BorrowedFd<'_>> = std::iter::once(front.lane(0).tun()).chain(front.lane(0).listeners()).collect();
        let due = held.iter().map(|h| h.0).min();
        let limit = due.map_or(Duration::from_millis(20), |d| d.saturating_duration_since(Instant::now()));
        wait(&fds, limit.min(Duration::from_millis(20)));
        let now = Instant::now();
        for (_, from, to, packet) in held.extract_if(.., |h| h.0 <= now) {
            released.insert((from, to));
            front.lane(0).write(&packet).expect("a SYN is written back");
        }
        loop {
            let len = match front.lane(0).read(&mut buffer) {
                Ok(len) => len,
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                Err(e) => panic!("the tun: {e}"),
            };
            let bytes = &buffer[..len];
            let packet = packets::parse(bytes);
            let Some(segment) = packet.tcp() else {
                if let Some(pong) = packet.pong() {
                    front.lane(0).write(&pong).expect("a pong");
                }
                seen.lock().expect("seen").others.push(bytes.to_vec());
                continue;
            };
            let (from, to) = (segment.from, segment.to);
            seen.lock().expect("seen").segments.entry((from, to)).or_default().push(segment.flags);
            // The last ACK of a handshake that the listener has answered with a cookie (tcp_syncookies): there is no socket for it
            // yet.
            if released.contains(&(from, to)) {
                front.lane(0).write(bytes).expect("written back");
                continue;
            }
            if segment.flags & (SYN | ACK) != SYN || held.iter().any(|h| (h.1, h.2) == (from, to)) {
                continue;
            }
            match judge(&segment) {
                Verdict::Hold(time) => held.push((now + time, from, to, bytes.to_vec())),
                Verdict::Refuse => {
                    let rst = packets::segment(to, from, 0, segment.seq.wrapping_add(1), RST | ACK, &[]);
                    front.lane(0).write(&rst).expect("a reset");
                }
                Verdict::Unreachable(kind, code) => {
                    front.lane(0).write(&packets::unreachable(kind, code, bytes)).expect("an ICMP error");
                }
                Verdict::Silence => {}
            }
        }
        while let Some(accepted) = front.lane(0).accept().expect("accept") {
            released.remove(&(accepted.program, accepted.remote));
            seen.lock().expect("seen").accepted.push((accepted.program, accepted.remote));
            let serve = serve.clone();
            thread::spawn(move || serve(accepted));
        }
    }
}

/// Sleeps until one of the descriptors can be read, or the time is over.
pub fn wait(fds: &[BorrowedFd<'_>], limit: Duration) -> bool {
    let one = |fd: &BorrowedFd<'_>| libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    let mut all: Vec<libc::pollfd> = fds.iter().map(one).collect();
    // SAFETY: poll(2) reads and writes the array, which lives through the call.
    unsafe { libc::poll(all.as_mut_ptr(), all.len() as libc::nfds_t, limit.as_millis() as i32 + 1) > 0 }
}

/// Sends back what comes, and ends in order when the program does.
pub fn echo(accepted: Accepted) {
    let mut socket = accepted.socket;
    socket.set_nonblocking(false).expect("a blocking socket");
    let mut buffer = vec![0; 65_536];
    loop {
        match socket.read(&mut buffer) {
            Ok(0) => break,
            Ok(len) => {
                if socket.write_all(&buffer[..len]).is_err() {
                    return;
                }
            }
            Err(_) => return,
        }
    }
    front::end_in_order(socket.as_fd()).expect("linger");
}

/// A program's connection from an address and port that it chooses.
pub fn connect_from(own: SocketAddr, to: SocketAddr) -> std::io::Result<TcpStream> {
    let family = if own.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    let socket = socket2::Socket::new(family.into(), socket2::Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.bind(&own.into())?;
    socket.connect(&to.into())?;
    Ok(socket.into())
}
