//! Sockets with the numbers and errors of libc, over the engine. No call blocks: one that would says `EAGAIN` (`connect`:
//! `EINPROGRESS`), and whoever called it for a blocking descriptor ([`Face::blocking`]) calls again when the engine has moved.

use crate::options::Settings;
use crate::port::Queues;
use libc::{self as c, c_int};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use zstack::endpoint::Endpoint;
use zstack::net::{Address, Route};
use zstack::sockets::{self, Receive, Socket};
use zstack::stack::{Config, Connect, ConnectError, Info, Listen, ListenError, ListenerId};
use zstack::tcp::Cause;
use zstack::time::Time;

/// What a call returns, or the number of errno(3).
pub type Outcome<T = i64> = Result<T, c_int>;

/// What a descriptor is.
#[derive(Clone, Copy, Debug)]
enum Kind {
    /// socket(2), perhaps bind(2).
    Fresh,
    Listener(ListenerId),
    /// `true`: connect(2) has not told yet what came of it.
    Stream(Socket, bool),
    /// A connection that failed, whose error was told.
    Dead,
}

struct File {
    kind: Kind,
    bound: Option<SocketAddr>,
    v6: bool,
    nonblocking: bool,
    settings: Settings,
    /// What listen(2) was called with.
    backlog: c_int,
    /// SHUT_RD.
    deaf: bool,
    /// SHUT_WR.
    shut: bool,
    /// The error of the connection's end was told.
    told: bool,
}

/// The sockets of a process.
pub struct Face {
    endpoint: Endpoint<Queues>,
    files: BTreeMap<c_int, File>,
    local: (IpAddr, IpAddr),
    defaults: Settings,
}

/// What a face is built from.
#[derive(Clone, Debug)]
pub struct Setup {
    /// The MTU of the port.
    pub mtu: u16,
    /// See [`Queues::new`].
    pub tso: u32,
    /// Our address of each family: what connect(2) takes without bind(2).
    pub local: (IpAddr, IpAddr),
    /// What sockets begin with.
    pub options: zstack::tcp::Options,
    /// The largest room of a connection for what arrives, a power of two: it decides the window scale.
    pub room: u32,
}

impl Default for Setup {
    /// packetdrill's own addresses, and the window scale of 8 that Linux has with its largest receive buffer of 15 MiB.
    fn default() -> Setup {
        let local = (Ipv4Addr::new(192, 168, 0, 1).into(), IpAddr::V6([0xfd3d, 0x0a0b, 0x17d6, 0, 0, 0, 0, 1].into()));
        Setup { mtu: 1500, tso: 65_483, local, options: zstack::tcp::Options::default(), room: 1 << 23 }
    }
}

fn refusal(error: ConnectError) -> c_int {
    match error {
        ConnectError::NoRoute(_) => c::ENETUNREACH,
        ConnectError::NotOurs(_) | ConnectError::NoPort(_) => c::EADDRNOTAVAIL,
        ConnectError::InUse(..) => c::EADDRINUSE,
        ConnectError::Full(_) => c::ENOBUFS,
        ConnectError::PortGone => c::ENETDOWN,
        _ => c::EINVAL,
    }
}

fn errno(error: sockets::Error) -> c_int {
    error.errno()
}

impl Face {
    /// No sockets yet.
    ///
    /// # Errors
    /// The setup contradicts itself.
    pub fn new(setup: Setup, now: Time) -> Result<Face, String> {
        let address = |ip, prefix| Address { ip, prefix };
        let mut config = Config::new(address(setup.local.0, 24), [0x5a; 16]);
        config.addresses.push(address(setup.local.1, 64));
        let route = |ip| Route { network: Address { ip, prefix: 0 }, gateway: None };
        config.routes = vec![route(Ipv4Addr::UNSPECIFIED.into()), route(IpAddr::V6(0u128.into()))];
        config.any_address = true;
        let sockets = sockets::Config { send_ring: 1 << 22, receive_ring: setup.room, ..sockets::Config::default() };
        let endpoint = Endpoint::new(config, sockets, Queues::new(setup.mtu, setup.tso), now);
        let endpoint = endpoint.map_err(|e| e.to_string())?;
        let defaults = Settings::new(setup.options);
        Ok(Face { endpoint, files: BTreeMap::new(), local: setup.local, defaults })
    }

    /// The engine works until it has nothing to do at this moment; when it must be called again at the latest.
    pub fn turn(&mut self, now: Time) -> Option<Time> {
        self.endpoint.port_mut().tick(now);
        loop {
            let turn = self.endpoint.turn(now);
            while self.endpoint.next_ready().is_some() {}
            if !turn.more {
                return turn.deadline;
            }
        }
    }

    /// The port, to inject and sniff.
    pub fn port(&mut self) -> &mut Queues {
        self.endpoint.port_mut()
    }

    /// Whether calls on the descriptor are to wait.
    pub fn blocking(&self, fd: c_int) -> bool {
        self.files.get(&fd).is_some_and(|f| !f.nonblocking)
    }

    fn file(&mut self, fd: c_int) -> Outcome<&mut File> {
        self.files.get_mut(&fd).ok_or(c::EBADF)
    }

    fn stream(&mut self, fd: c_int) -> Outcome<Socket> {
        match self.file(fd)?.kind {
            Kind::Stream(socket, _) => Ok(socket),
            _ => Err(c::ENOTCONN),
        }
    }

    fn open(&mut self, file: File) -> c_int {
        // The lowest number that is free, behind those of a program's standard streams.
        let fd = (3..).find(|fd| !self.files.contains_key(fd)).expect("numbers do not end");
        self.files.insert(fd, file);
        fd
    }

    /// socket(2).
    ///
    /// # Errors
    /// `EAFNOSUPPORT`, `EPROTONOSUPPORT`: it is no TCP socket.
    pub fn socket(&mut self, domain: c_int, kind: c_int, protocol: c_int) -> Outcome {
        let nonblocking = kind & c::SOCK_NONBLOCK != 0;
        if domain != c::AF_INET && domain != c::AF_INET6 {
            return Err(c::EAFNOSUPPORT);
        }
        if kind & 0xf != c::SOCK_STREAM || (protocol != 0 && protocol != c::IPPROTO_TCP) {
            return Err(c::EPROTONOSUPPORT);
        }
        let settings = self.defaults;
        let file = File {
            kind: Kind::Fresh,
            bound: None,
            v6: domain == c::AF_INET6,
            nonblocking,
            settings,
            backlog: 0,
            deaf: false,
            shut: false,
            told: false,
        };
        Ok(i64::from(self.open(file)))
    }

    /// bind(2).
    ///
    /// # Errors
    /// `EINVAL`: it is bound already.
    pub fn bind(&mut self, fd: c_int, address: SocketAddr) -> Outcome {
        let file = self.file(fd)?;
        if file.bound.is_some() || !matches!(file.kind, Kind::Fresh) {
            return Err(c::EINVAL);
        }
        file.bound = Some(address);
        Ok(0)
    }

    /// listen(2).
    ///
    /// # Errors
    /// `EADDRINUSE`, `EINVAL`.
    pub fn listen(&mut self, fd: c_int, backlog: c_int) -> Outcome {
        let room = self.endpoint.room();
        let file = self.file(fd)?;
        file.backlog = backlog;
        let bound = file.bound.ok_or(c::EINVAL)?;
        match file.kind {
            Kind::Listener(_) => return Ok(0),
            Kind::Fresh => {}
            _ => return Err(c::EINVAL),
        }
        let wanted = Listen {
            address: Some(bound.ip()).filter(|ip| !ip.is_unspecified()),
            // Linux admits one more than the backlog says.
            backlog: backlog.clamp(0, 4096) as u32 + 1,
            options: Some(file.settings.options),
            ..Listen::new(bound.port(), room)
        };
        let listener = self.endpoint.listen(wanted, Receive::Copy).map_err(|e| match e {
            ListenError::InUse(..) => c::EADDRINUSE,
            ListenError::NotOurs(_) => c::EADDRNOTAVAIL,
            _ => c::EINVAL,
        })?;
        self.file(fd)?.kind = Kind::Listener(listener);
        Ok(0)
    }

    /// accept4(2): the descriptor, and the peer.
    ///
    /// # Errors
    /// `EAGAIN`: nobody waits.
    pub fn accept(&mut self, fd: c_int, flags: c_int) -> Outcome<(i64, Option<SocketAddr>)> {
        let file = self.file(fd)?;
        let Kind::Listener(listener) = file.kind else { return Err(c::EINVAL) };
        let (v6, bound, settings) = (file.v6, file.bound, file.settings);
        let socket = self.endpoint.accept(listener).ok_or(c::EAGAIN)?;
        let peer = self.endpoint.info(socket).map(|i| i.remote);
        let new = File {
            kind: Kind::Stream(socket, false),
            bound,
            v6,
            nonblocking: flags & c::SOCK_NONBLOCK != 0,
            settings,
            backlog: 0,
            deaf: false,
            shut: false,
            told: false,
        };
        let fd = self.open(new);
        Ok((i64::from(fd), peer))
    }

    /// connect(2).
    ///
    /// # Errors
    /// `EINPROGRESS`: the SYN goes out with the next turn. `EALREADY`: it was not answered yet. Others: it failed.
    pub fn connect(&mut self, now: Time, fd: c_int, remote: SocketAddr) -> Outcome {
        let (local, room) = (self.local, self.endpoint.room());
        let file = self.file(fd)?;
        match file.kind {
            Kind::Fresh => {}
            Kind::Listener(_) => return Err(c::EISCONN),
            Kind::Dead => return Err(c::ECONNABORTED),
            Kind::Stream(socket, told) => {
                if !told {
                    return Err(c::EISCONN);
                }
                if let Some(cause) = self.endpoint.ready(socket).error {
                    self.endpoint.close(socket);
                    self.file(fd)?.kind = Kind::Dead;
                    return Err(sockets::errno(cause));
                }
                if !self.endpoint.sockets().established(socket) {
                    return Err(c::EALREADY);
                }
                self.file(fd)?.kind = Kind::Stream(socket, false);
                return Ok(0);
            }
        }
        let ours = if remote.is_ipv4() { local.0 } else { local.1 };
        let bound = file.bound;
        let wanted = Connect {
            local: Some(bound.map(|b| b.ip()).filter(|ip| !ip.is_unspecified()).unwrap_or(ours)),
            local_port: bound.map(|b| b.port()).filter(|p| *p != 0),
            options: Some(file.settings.options),
            ..Connect::new(remote, room)
        };
        let ports = file.settings.ports.filter(|_| wanted.local_port.is_none());
        let endpoint = &mut self.endpoint;
        let mut connect = |wanted| endpoint.connect(now, wanted, Receive::Copy).map_err(refusal);
        let socket = match ports {
            None => connect(wanted)?,
            Some((low, high)) => (low..=high)
                .map(|port| connect(Connect { local_port: Some(port), ..wanted }))
                .find(|outcome| *outcome != Err(c::EADDRINUSE))
                .unwrap_or(Err(c::EADDRNOTAVAIL))?,
        };
        self.file(fd)?.kind = Kind::Stream(socket, true);
        Err(c::EINPROGRESS)
    }

    /// recv(2): MSG_PEEK, MSG_TRUNC (bytes are thrown away) and MSG_DONTWAIT (of which the caller takes care) are known.
    ///
    /// # Errors
    /// `EAGAIN`: nothing has arrived. Others: the connection's end.
    pub fn recv(&mut self, fd: c_int, into: &mut [u8], flags: c_int) -> Outcome {
        let socket = self.stream(fd)?;
        let file = self.file(fd)?;
        let (deaf, told) = (file.deaf, file.told);
        if flags & c::MSG_PEEK != 0 && self.endpoint.sockets().unread(socket) > 0 {
            let mut n = 0;
            for piece in self.endpoint.pieces(socket) {
                let take = piece.len().min(into.len() - n);
                into[n..n + take].copy_from_slice(&piece[..take]);
                n += take;
            }
            return Ok(n as i64);
        }
        match self.endpoint.read(socket, into) {
            Ok(n) => Ok(n as i64),
            Err(sockets::Error::WouldBlock) if deaf => Ok(0),
            Err(sockets::Error::Ended(_)) if told => Ok(0),
            Err(sockets::Error::Ended(cause)) => {
                self.file(fd)?.told = true;
                Err(sockets::errno(cause))
            }
            Err(error) => Err(errno(error)),
        }
    }

    /// send(2): as much as there is room for. MSG_MORE is known.
    ///
    /// # Errors
    /// `EAGAIN`: there is no room. `EPIPE`: this direction is over. Others: the connection's end, once.
    pub fn send(&mut self, fd: c_int, bytes: &[u8], flags: c_int) -> Outcome {
        let file = self.file(fd)?;
        let (shut, told, most) = (file.shut, file.told, file.settings.send_buffer);
        let Kind::Stream(socket, _) = file.kind else {
            return Err(if matches!(file.kind, Kind::Dead) { c::EPIPE } else { c::ENOTCONN });
        };
        if shut {
            return Err(c::EPIPE);
        }
        let mut bytes = bytes;
        if let Some(most) = most {
            let free = u64::from(most).saturating_sub(self.endpoint.sockets().unreleased(socket));
            bytes = &bytes[..bytes.len().min(free as usize)];
            if bytes.is_empty() && free == 0 && self.endpoint.ready(socket).error.is_none() {
                return Err(c::EAGAIN);
            }
        }
        match self.endpoint.write(socket, bytes, flags & c::MSG_MORE != 0) {
            Ok(n) => Ok(n as i64),
            Err(sockets::Error::Ended(_)) if told => Err(c::EPIPE),
            Err(sockets::Error::Ended(cause)) => {
                self.file(fd)?.told = true;
                // What a reset means to a writer once the peer's FIN was seen (tcp_reset).
                Err(sockets::errno(cause))
            }
            Err(error) => Err(errno(error)),
        }
    }

    /// shutdown(2).
    ///
    /// # Errors
    /// `ENOTCONN`, `EINVAL`.
    pub fn shutdown(&mut self, fd: c_int, how: c_int) -> Outcome {
        if !(c::SHUT_RD..=c::SHUT_RDWR).contains(&how) {
            return Err(c::EINVAL);
        }
        if let Kind::Listener(listener) = self.file(fd)?.kind
            && how != c::SHUT_WR
        {
            self.endpoint.unlisten(listener);
            self.file(fd)?.kind = Kind::Fresh;
            return Ok(0);
        }
        let socket = self.stream(fd)?;
        if self.endpoint.info(socket).is_none() || self.endpoint.ready(socket).hang_up {
            return Err(c::ENOTCONN);
        }
        let file = self.file(fd)?;
        file.deaf |= how != c::SHUT_WR;
        if how != c::SHUT_RD && !file.shut {
            file.shut = true;
            self.endpoint.shutdown(socket);
        }
        Ok(0)
    }

    /// close(2).
    ///
    /// # Errors
    /// `EBADF`.
    pub fn close(&mut self, fd: c_int) -> Outcome {
        let file = self.files.remove(&fd).ok_or(c::EBADF)?;
        match file.kind {
            Kind::Fresh | Kind::Dead => {}
            Kind::Listener(listener) => self.endpoint.unlisten(listener),
            Kind::Stream(socket, _) if file.settings.linger == Some(0) => self.endpoint.abort(socket),
            Kind::Stream(socket, _) => self.endpoint.close(socket),
        }
        Ok(0)
    }

    /// The flags of fcntl(2)'s F_GETFL.
    ///
    /// # Errors
    /// `EBADF`.
    pub fn flags(&mut self, fd: c_int) -> Outcome {
        Ok(i64::from(c::O_RDWR | if self.file(fd)?.nonblocking { c::O_NONBLOCK } else { 0 }))
    }

    /// F_SETFL.
    ///
    /// # Errors
    /// `EBADF`.
    pub fn set_flags(&mut self, fd: c_int, flags: c_int) -> Outcome {
        self.file(fd)?.nonblocking = flags & c::O_NONBLOCK != 0;
        Ok(0)
    }

    /// Bytes that ioctl(2) tells of: `FIONREAD` (SIOCINQ), `TIOCOUTQ` (SIOCOUTQ), `SIOCOUTQNSD`.
    ///
    /// # Errors
    /// `ENOTTY`: it is none of these.
    pub fn queued(&mut self, fd: c_int, request: u64) -> Outcome {
        const SIOCOUTQNSD: u64 = 0x894b;
        let socket = self.stream(fd).map_err(|e| if e == c::ENOTCONN { c::EINVAL } else { e })?;
        let tcp = self.endpoint.info(socket).map(|i| i.tcp);
        match request {
            r if r == c::FIONREAD => Ok(self.endpoint.sockets().unread(socket) as i64),
            r if r == c::TIOCOUTQ => Ok(tcp.map_or(0, |t| t.unsent as i64 + i64::from(t.in_flight))),
            SIOCOUTQNSD => Ok(tcp.map_or(0, |t| t.unsent as i64)),
            _ => Err(c::ENOTTY),
        }
    }

    /// What TCP_CM_INQ tells behind a call that received: the bytes that are left, or 1 for the end, which is to be read, too;
    /// `None`: TCP_INQ was not set.
    pub fn left(&mut self, fd: c_int) -> Option<i64> {
        let socket = self.stream(fd).ok().filter(|_| self.files.get(&fd).is_some_and(|f| f.settings.inq()))?;
        let unread = self.endpoint.sockets().unread(socket) as i64;
        Some(unread.max(i64::from(self.endpoint.ready(socket).peer_closed)))
    }

    /// Whether SO_SNDBUF was set to less than `len`.
    pub fn fills_send_buffer(&self, fd: c_int, len: usize) -> bool {
        self.files.get(&fd).and_then(|f| f.settings.send_buffer).is_some_and(|most| (most as usize) < len)
    }

    /// What poll(2) tells of a descriptor.
    pub fn ready(&mut self, fd: c_int) -> i16 {
        let Some(file) = self.files.get(&fd) else { return c::POLLNVAL };
        match file.kind {
            Kind::Fresh => c::POLLOUT | c::POLLHUP,
            Kind::Dead => c::POLLIN | c::POLLOUT | c::POLLERR | c::POLLHUP | c::POLLRDHUP,
            Kind::Listener(listener) => {
                if self.endpoint.sockets().waiting(listener) > 0 {
                    c::POLLIN | c::POLLRDNORM
                } else {
                    0
                }
            }
            Kind::Stream(socket, _) => {
                let ready = self.endpoint.ready(socket);
                let mut events = 0;
                if ready.readable || file.deaf {
                    events |= c::POLLIN | c::POLLRDNORM;
                }
                let full = file.settings.send_buffer.is_some_and(|most| {
                    // sk_stream_is_writeable: a third of the buffer must be free.
                    self.endpoint.sockets().unreleased(socket) * 3 / 2 >= u64::from(most)
                });
                if ready.writable && (!full || ready.hang_up) {
                    events |= c::POLLOUT | c::POLLWRNORM;
                }
                if ready.peer_closed || file.deaf {
                    events |= c::POLLRDHUP;
                }
                if ready.hang_up || (ready.peer_closed && file.shut) {
                    events |= c::POLLHUP;
                }
                if ready.error.is_some() && !file.told {
                    events |= c::POLLERR;
                }
                events
            }
        }
    }

    /// setsockopt(2), of what `value` holds.
    ///
    /// # Errors
    /// `ENOPROTOOPT`: no such option here. `EINVAL`: no such value.
    pub fn set_option(&mut self, fd: c_int, level: c_int, name: c_int, value: &[u8]) -> Outcome {
        let file = self.file(fd)?;
        file.settings.set(level, name, value)?;
        let options = file.settings.options;
        match file.kind {
            Kind::Stream(socket, _) => self.endpoint.set_options(socket, options),
            // Connections to come are to have it: a listener keeps what it began with.
            Kind::Listener(listener) => {
                self.endpoint.unlisten(listener);
                let file = self.file(fd)?;
                file.kind = Kind::Fresh;
                let backlog = file.backlog;
                return self.listen(fd, backlog);
            }
            Kind::Fresh | Kind::Dead => {}
        }
        Ok(0)
    }

    /// getsockopt(2).
    ///
    /// # Errors
    /// `ENOPROTOOPT`.
    pub fn option(&mut self, fd: c_int, level: c_int, name: c_int) -> Outcome<Vec<u8>> {
        let file = self.file(fd)?;
        let (kind, settings) = (file.kind, file.settings);
        if (level, name) == (c::SOL_SOCKET, c::SO_ERROR) {
            let error = self.error(fd);
            return Ok(error.to_ne_bytes().to_vec());
        }
        let accepting = matches!(kind, Kind::Listener(_));
        let info = match kind {
            Kind::Stream(socket, _) => self.endpoint.info(socket),
            _ => None,
        };
        settings.get(level, name, info.as_ref(), accepting)
    }

    /// SO_ERROR, which is told once.
    fn error(&mut self, fd: c_int) -> c_int {
        let Some(File { kind: Kind::Stream(socket, _), told: false, .. }) = self.files.get(&fd) else { return 0 };
        let error = self.endpoint.ready(*socket).error.map_or(0, sockets::errno);
        if error != 0
            && let Some(file) = self.files.get_mut(&fd)
        {
            file.told = true;
        }
        error
    }

    /// What the engine knows of a descriptor's connection.
    pub fn info(&self, fd: c_int) -> Option<Info> {
        match self.files.get(&fd)?.kind {
            Kind::Stream(socket, _) => self.endpoint.info(socket),
            _ => None,
        }
    }

    /// Why a descriptor's connection has ended.
    pub fn cause(&self, fd: c_int) -> Option<Cause> {
        match self.files.get(&fd)?.kind {
            Kind::Stream(socket, _) => self.endpoint.ready(socket).error,
            _ => None,
        }
    }
}
