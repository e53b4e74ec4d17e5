//! The kernel's sockets, with epoll, edge-triggered.

use super::{Conn, Connection, Event, Report, Transport};
use crate::sys::{self, Epoll};
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};
use zstack::sockets::Still;

/// Names in epoll, beside connections' indexes: generation and index are one number; these have an index that no connection has.
const LISTENER: u32 = u32::MAX;
const WATCHED: u32 = u32::MAX - 1;

/// Connections that are accepted in a row, so that the others are served too.
const ACCEPTS: usize = 64;

/// Without a free descriptor no connection is accepted until one of ours is closed; or so much later, should others have been.
const CROWDED: Duration = Duration::from_secs(1);

struct Entry {
    generation: u32,
    fd: Option<OwnedFd>,
    connecting: bool,
    /// As far as is known, a call would not find EAGAIN: saves the call.
    readable: bool,
    writable: bool,
    /// The peer has ended or an error is there: a short read is no sign that there is nothing more to be read.
    ended: bool,
    /// Told already.
    queued: bool,
}

/// The kernel as a transport.
pub struct Kernel {
    epoll: Epoll,
    listeners: Vec<OwnedFd>,
    /// No descriptor is free: until then the listeners are not waited for.
    crowded: Option<Instant>,
    /// That this happens was told.
    complained: bool,
    entries: Vec<Entry>,
    unused: Vec<u32>,
    again: VecDeque<Conn>,
    scratch: Vec<u8>,
    told: Vec<sys::epoll_event>,
    counters: Counters,
}

#[derive(Default)]
struct Counters {
    accepted: u64,
    connected: u64,
    failed: u64,
    received: u64,
    sent: u64,
}

impl Kernel {
    /// No socket yet.
    ///
    /// # Errors
    /// A line for the user.
    pub fn new() -> Result<Kernel, String> {
        sys::raise_file_limit();
        Ok(Kernel {
            epoll: Epoll::new().map_err(|e| format!("epoll: {e}"))?,
            listeners: Vec::new(),
            crowded: None,
            complained: false,
            entries: Vec::new(),
            unused: Vec::new(),
            again: VecDeque::new(),
            scratch: vec![0; 128 << 10],
            told: vec![sys::epoll_event { events: 0, u64: 0 }; 256],
            counters: Counters::default(),
        })
    }

    fn add(&mut self, fd: OwnedFd, connecting: bool) -> io::Result<Conn> {
        // The tools send whole messages: none should wait for an acknowledgement. The engine's connections are set the same.
        sys::set_option(&fd, libc::IPPROTO_TCP, libc::TCP_NODELAY, 1)?;
        let index = self.unused.pop().unwrap_or_else(|| {
            self.entries.push(Entry {
                generation: 0,
                fd: None,
                connecting: false,
                readable: false,
                writable: false,
                ended: false,
                queued: false,
            });
            self.entries.len() as u32 - 1
        });
        let generation = self.entries[index as usize].generation;
        let name = u64::from(generation) << 32 | u64::from(index);
        let events = libc::EPOLLIN | libc::EPOLLOUT | libc::EPOLLRDHUP | libc::EPOLLET;
        if let Err(e) = self.epoll.add(fd.as_raw_fd(), events, name) {
            self.unused.push(index);
            return Err(e);
        }
        self.entries[index as usize] = Entry {
            generation,
            fd: Some(fd),
            connecting,
            readable: false,
            writable: !connecting,
            ended: false,
            queued: false,
        };
        Ok(Conn { index, generation })
    }

    fn entry(&mut self, conn: Conn) -> io::Result<&mut Entry> {
        let entry = self.entries.get_mut(conn.index as usize).filter(|e| e.generation == conn.generation);
        entry.filter(|e| e.fd.is_some()).ok_or_else(|| io::Error::from_raw_os_error(libc::EBADF))
    }

    fn accept(&mut self, events: &mut Vec<Event>) -> Result<(), String> {
        for i in 0..self.listeners.len() {
            for _ in 0..ACCEPTS {
                match sys::accept(&self.listeners[i]) {
                    Ok(fd) => {
                        if let Ok(conn) = self.add(fd, false) {
                            self.counters.accepted += 1;
                            events.push(Event::Accepted(conn));
                        }
                    }
                    Err(e) => match e.raw_os_error() {
                        Some(libc::EAGAIN) => break,
                        // The connection is gone already (accept(2), "Error handling").
                        Some(libc::ECONNABORTED | libc::EINTR | libc::EPROTO) => {}
                        Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM) => return self.crowd(&e),
                        _ => return Err(format!("accept: {e}")),
                    },
                }
            }
        }
        Ok(())
    }

    /// There is no descriptor for another connection. Those that wait to be accepted would wake at once each time.
    fn crowd(&mut self, error: &io::Error) -> Result<(), String> {
        if !self.complained {
            self.complained = true;
            eprintln!("accept: {error}: connections wait until others end; raise the limit of open files (ulimit -n)");
        }
        self.crowded = Some(Instant::now() + CROWDED);
        self.heed_listeners(0)
    }

    /// There may be one again.
    fn admit(&mut self) -> Result<(), String> {
        self.crowded = None;
        self.heed_listeners(libc::EPOLLIN)
    }

    fn heed_listeners(&self, events: i32) -> Result<(), String> {
        for fd in &self.listeners {
            self.epoll.change(fd.as_raw_fd(), events, u64::from(LISTENER)).map_err(|e| format!("epoll: {e}"))?;
        }
        Ok(())
    }

    fn write_with(
        &mut self,
        conn: Conn,
        len: usize,
        call: impl FnOnce(&OwnedFd) -> io::Result<usize>,
    ) -> io::Result<usize> {
        let entry = self.entry(conn)?;
        if !entry.writable {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let result = call(entry.fd.as_ref().expect("looked for"));
        match &result {
            Ok(n) if *n < len => entry.writable = false,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => entry.writable = false,
            _ => {}
        }
        if let Ok(n) = result {
            self.counters.sent += n as u64;
        }
        result
    }

    fn drop_entry(&mut self, conn: Conn, reset: bool) {
        if let Ok(entry) = self.entry(conn) {
            let fd = entry.fd.take().expect("looked for");
            entry.generation = entry.generation.wrapping_add(1);
            if reset {
                sys::reset_on_close(&fd);
            }
            self.unused.push(conn.index);
            drop(fd);
            if self.crowded.is_some() {
                // The next poll ends the wait.
                self.crowded = Some(Instant::now());
            }
        }
    }
}

impl Transport for Kernel {
    fn listen(&mut self, at: SocketAddr) -> Result<(), String> {
        let fd = sys::listen(at, 4096).map_err(|e| {
            let remedy = match e.raw_os_error() {
                Some(libc::EADDRINUSE) => ": choose another port, or end whoever listens there (ss -tlnp)",
                Some(libc::EADDRNOTAVAIL) => ": no interface has this address (ip addr)",
                Some(libc::EACCES) => ": ports below 1024 need CAP_NET_BIND_SERVICE",
                _ => "",
            };
            format!("listen at {at}: {e}{remedy}")
        })?;
        let name = u64::from(LISTENER);
        self.epoll.add(fd.as_raw_fd(), libc::EPOLLIN, name).map_err(|e| format!("epoll: {e}"))?;
        self.listeners.push(fd);
        Ok(())
    }

    fn connect(&mut self, to: SocketAddr) -> io::Result<Conn> {
        let fd = sys::socket(to.ip(), libc::SOCK_STREAM, 0)?;
        sys::connect(&fd, to)?;
        self.add(fd, true)
    }

    fn watch(&mut self, fd: RawFd) -> Result<(), String> {
        let name = (fd as u64) << 32 | u64::from(WATCHED);
        self.epoll.add(fd, libc::EPOLLIN, name).map_err(|e| format!("epoll: {e}"))
    }

    fn poll(&mut self, events: &mut Vec<Event>, limit: Option<Duration>) -> Result<(), String> {
        let mut limit = if self.again.is_empty() { limit } else { Some(Duration::ZERO) };
        if let Some(until) = self.crowded {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                self.admit()?;
            } else {
                limit = Some(limit.map_or(left, |limit| limit.min(left)));
            }
        }
        let mut told = std::mem::take(&mut self.told);
        let n = self.epoll.wait(&mut told, limit).map(|t| t.len()).map_err(|e| format!("epoll: {e}"));
        let mut result = n.as_ref().map(drop).map_err(Clone::clone);
        for event in &told[..n.unwrap_or(0)] {
            let (name, bits) = (event.u64, event.events as i32);
            let (index, generation) = (name as u32, (name >> 32) as u32);
            match index {
                LISTENER => result = result.and(self.accept(events)),
                WATCHED => events.push(Event::Watched(generation as RawFd)),
                _ => {
                    let conn = Conn { index, generation };
                    let Ok(entry) = self.entry(conn) else { continue };
                    let over = bits & (libc::EPOLLERR | libc::EPOLLHUP) != 0;
                    let ended = over || bits & libc::EPOLLRDHUP != 0;
                    entry.ended |= ended;
                    entry.readable |= ended || bits & libc::EPOLLIN != 0;
                    entry.writable |= over || bits & libc::EPOLLOUT != 0;
                    if entry.connecting {
                        if !entry.writable {
                            continue;
                        }
                        entry.connecting = false;
                        match sys::take_error(entry.fd.as_ref().expect("looked for")) {
                            0 => {
                                self.counters.connected += 1;
                                events.push(Event::Connected(conn));
                            }
                            errno => {
                                self.counters.failed += 1;
                                events.push(Event::Failed(conn, errno));
                            }
                        }
                    } else if !entry.queued {
                        events.push(Event::Ready(conn));
                    }
                }
            }
        }
        self.told = told;
        for conn in std::mem::take(&mut self.again) {
            if let Ok(entry) = self.entry(conn) {
                entry.queued = false;
                events.push(Event::Ready(conn));
            }
        }
        result
    }

    fn again(&mut self, conn: Conn) {
        if let Ok(entry) = self.entry(conn)
            && !entry.queued
        {
            entry.queued = true;
            self.again.push_back(conn);
        }
    }

    fn take(&mut self, conn: Conn, most: usize, with: &mut dyn FnMut(&[u8])) -> io::Result<usize> {
        let mut scratch = std::mem::take(&mut self.scratch);
        let most = most.min(scratch.len());
        let result = self.entry(conn).and_then(|entry| {
            if !entry.readable {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            let result = sys::receive(entry.fd.as_ref().expect("looked for"), &mut scratch[..most]);
            match &result {
                // Fewer than asked for: there were no more, and what comes is told (epoll(7), question 9).
                Ok(n) if *n < most && !entry.ended => entry.readable = false,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => entry.readable = false,
                _ => {}
            }
            result
        });
        if let Ok(n) = result {
            self.counters.received += n as u64;
            if n > 0 {
                with(&scratch[..n]);
            }
        }
        self.scratch = scratch;
        result
    }

    fn write(&mut self, conn: Conn, bytes: &[u8], more: bool) -> io::Result<usize> {
        self.write_with(conn, bytes.len(), |fd| sys::send(fd, bytes, more))
    }

    fn send(&mut self, conn: Conn, piece: &Still, more: bool) -> io::Result<usize> {
        self.write_with(conn, piece.len(), |fd| sys::send_still(fd, piece, more))
    }

    fn shutdown(&mut self, conn: Conn) {
        if let Ok(entry) = self.entry(conn) {
            sys::shutdown(entry.fd.as_ref().expect("looked for"));
        }
    }

    fn close(&mut self, conn: Conn) {
        self.drop_entry(conn, false);
    }

    fn abort(&mut self, conn: Conn) {
        self.drop_entry(conn, true);
    }

    fn idle(&self) -> bool {
        true
    }

    fn report(&mut self) -> Report {
        let Counters { accepted, connected, failed, received, sent } = self.counters;
        let counters = [
            ("accepted", accepted),
            ("connected", connected),
            ("connect_failed", failed),
            ("received_bytes", received),
            ("sent_bytes", sent),
        ];
        let counters: BTreeMap<_, _> = counters.into_iter().map(|(name, n)| (name.to_owned(), n)).collect();
        let connections = self.entries.iter().filter_map(|e| e.fd.as_ref()).map(connection).collect();
        Report { counters, connections, port: Vec::new() }
    }

    fn copied(&self) -> Option<u64> {
        None
    }
}

fn connection(fd: &OwnedFd) -> Connection {
    const STATES: [&str; 12] = [
        "none",
        "established",
        "syn-sent",
        "syn-received",
        "fin-wait-1",
        "fin-wait-2",
        "time-wait",
        "closed",
        "close-wait",
        "last-ack",
        "listen",
        "closing",
    ];
    let (local, remote) = match fd.try_clone().map(std::net::TcpStream::from) {
        Ok(stream) => (stream.local_addr().ok(), stream.peer_addr().ok()),
        Err(_) => (None, None),
    };
    let show = |address: Option<SocketAddr>| {
        address.map_or_else(|| "-".to_owned(), |a| SocketAddr::new(a.ip().to_canonical(), a.port()).to_string())
    };
    let mut shown = Connection { local: show(local), remote: show(remote), ..Connection::default() };
    if let Some(info) = sys::tcp_info(fd) {
        let mss = u64::from(info.tcpi_snd_mss);
        shown.state = STATES.get(usize::from(info.tcpi_state)).map_or("unknown", |s| s).to_owned();
        shown.cwnd = u64::from(info.tcpi_snd_cwnd) * mss;
        // TCP_INFINITE_SSTHRESH of the kernel.
        shown.ssthresh = (info.tcpi_snd_ssthresh < 0x7fff_ffff).then(|| u64::from(info.tcpi_snd_ssthresh) * mss);
        shown.srtt_us = u64::from(info.tcpi_rtt);
        shown.retransmits = u64::from(info.tcpi_total_retrans);
        shown.in_flight = u64::from(info.tcpi_unacked) * mss;
    }
    shown
}
