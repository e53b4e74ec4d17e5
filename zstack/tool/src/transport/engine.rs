//! The engine, over any port that can be slept on.

use super::{Conn, Connection, Event, Named, Report, Transport};
use crate::ping::{Answer, Pinger};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{OwnedFd, RawFd};
use std::time::Duration;
use zstack::endpoint::Endpoint;
use zstack::net::{Address, Route, Unsent};
use zstack::payload::Pinned;
use zstack::port::{Medium, Port};
use zstack::sockets::{self, Error, Receive, Socket, Still, errno};
use zstack::stack::{Config, Connect, ConnectError, Listen, ListenerId};
use zstack::tcp::{Options, Phase};
use zstack::time::Time;
use zstack_port::{Captured, Clock, Device, Interest, Spec};

/// While there is always something to do, the caller's descriptors are looked at once in so many polls.
const LOOK: u32 = 64;

/// A port that a thread can sleep on.
pub trait Sleep: Port<Buffer: Pinned> {
    /// Sleeps until a packet can be received, one of the descriptors can be read, or the limit is over. Which can be read is
    /// appended.
    ///
    /// # Errors
    /// Those of ppoll(2).
    fn sleep(&mut self, watched: &[RawFd], limit: Option<Duration>, ready: &mut Vec<RawFd>) -> io::Result<()>;

    /// Why what crosses the port is not written to a file any more.
    fn capture_failure(&self) -> Option<&io::Error> {
        None
    }

    /// Counters of its own, by name.
    fn counters(&self) -> Vec<(&'static str, u64)> {
        Vec::new()
    }

    /// What it is and what it can do, by name.
    fn about(&self) -> Vec<(&'static str, String)> {
        Vec::new()
    }
}

/// Sleeps by `wait`, which is told what else can be read; what can is appended to `ready`.
pub fn watch(
    watched: &[RawFd],
    ready: &mut Vec<RawFd>,
    wait: impl FnOnce(&mut [Interest<'_>]) -> io::Result<()>,
) -> io::Result<()> {
    let mut interests: Vec<_> = watched.iter().map(|fd| Interest::read(crate::sys::borrowed(*fd))).collect();
    wait(&mut interests)?;
    ready.extend(watched.iter().zip(&interests).filter(|(_, i)| i.ready).map(|(fd, _)| *fd));
    Ok(())
}

impl Sleep for Captured<Device> {
    fn sleep(&mut self, watched: &[RawFd], limit: Option<Duration>, ready: &mut Vec<RawFd>) -> io::Result<()> {
        watch(watched, ready, |interests| self.port().wait(interests, limit))
    }

    fn capture_failure(&self) -> Option<&io::Error> {
        self.failure()
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        let c = self.port().counters();
        vec![
            ("device_received", c.received),
            ("device_joined", c.joined),
            ("device_oversized", c.oversized),
            ("device_sent", c.sent),
            ("device_cut", c.cut),
            ("device_down", c.down),
            ("device_unfit", c.unfit),
            ("device_starved", c.starved),
        ]
    }

    fn about(&self) -> Vec<(&'static str, String)> {
        let (device, c) = (self.port(), self.capabilities());
        let kind = if c.medium == Medium::Ip { "tun" } else { "tap" };
        vec![
            ("device", device.name().to_owned()),
            ("driver", format!("{kind} of the kernel's")),
            ("mtu", c.mtu.to_string()),
            ("payload", "read where it is, by writev".to_owned()),
            ("late", "no".to_owned()),
            ("checksum", if c.checksum { "yes" } else { "no" }.to_owned()),
            ("tso", c.tso.to_string()),
            ("sleep", "the device's descriptor".to_owned()),
        ]
    }
}

/// What a user says of the engine at a port.
pub struct Here<'a> {
    pub addresses: &'a [zstack_port::Address],
    pub gateways: &'a [IpAddr],
    /// `None`: any.
    pub mac: Option<[u8; 6]>,
    pub vlan: Option<u16>,
    pub pcap: Option<&'a std::path::Path>,
    /// The port's name in the capture.
    pub name: &'a str,
}

/// The engine as a transport.
pub struct Engine<P: Sleep> {
    endpoint: Endpoint<P>,
    clock: Clock,
    listeners: Vec<ListenerId>,
    watched: Vec<RawFd>,
    /// Connections that were wanted and are not there yet, by the socket's index.
    connecting: Vec<bool>,
    /// When the next turn is due.
    deadline: Option<Time>,
    busy: u32,
    /// The last turn that received found one packet at most: hardly another one comes before the next sleep.
    calm: bool,
    /// Whether calls were made that the next turn has to see.
    called: bool,
    ready: Vec<RawFd>,
    options: Options,
    receive: Receive,
    /// Whether SYNs are told before they are answered, and answered by a call.
    deferred: bool,
    /// The file that packets are written to, as long as they are.
    capture: Option<String>,
}

impl Engine<Captured<Device>> {
    /// Opens the device.
    ///
    /// # Errors
    /// A line for the user.
    pub fn open(spec: &Spec, pcap: Option<&std::path::Path>) -> Result<Engine<Captured<Device>>, String> {
        if spec.addresses.is_empty() {
            return Err(format!(
                "--port {}:{}: the engine needs an address: add addr=ADDRESS/PREFIX",
                spec.kind, spec.name
            ));
        }
        let device = Device::open(spec).map_err(|e| e.to_string())?;
        let name = device.name().to_owned();
        let (addresses, gateways) = (&spec.addresses[..], &spec.gateways[..]);
        Engine::over(device, &Here { addresses, gateways, mac: spec.mac, vlan: spec.vlan, pcap, name: &name })
    }
}

impl<P: Port> Engine<Captured<P>>
where
    Captured<P>: Sleep,
{
    /// The engine over an open port.
    ///
    /// # Errors
    /// A line for the user.
    pub fn over(port: P, here: &Here<'_>) -> Result<Engine<Captured<P>>, String> {
        let port = match here.pcap {
            Some(path) => {
                let wrong = |e| format!("--pcap {}: {e}: choose a file that can be written", path.display());
                Captured::to_file(port, path, here.name).map_err(wrong)?
            }
            None => Captured::off(port),
        };
        let key = crate::sys::random().map_err(|e| format!("getrandom: {e}"))?;
        let address = |a: &zstack_port::Address| Address { ip: a.address, prefix: a.prefix };
        let mut config = Config::new(address(&here.addresses[0]), key);
        config.addresses = here.addresses.iter().map(address).collect();
        let default = |gateway: &IpAddr| {
            let any: IpAddr = if gateway.is_ipv4() { [0; 4].into() } else { [0u8; 16].into() };
            Route { network: Address { ip: any, prefix: 0 }, gateway: Some(*gateway) }
        };
        config.routes = here.gateways.iter().map(default).collect();
        if port.capabilities().medium == Medium::Ethernet {
            // A local, unicast address.
            let chosen = [2, key[0], key[1], key[2], key[3], key[4]];
            config.mac = Some(here.mac.unwrap_or(chosen));
            config.vlan = here.vlan;
        }
        let mut engine = Engine::new(config, port, sockets::Config::default())?;
        engine.capture = here.pcap.map(|path| path.display().to_string());
        Ok(engine)
    }
}

impl<P: Sleep> Engine<P> {
    /// An engine without sockets.
    ///
    /// # Errors
    /// A line for the user.
    pub fn new(config: Config, port: P, sockets: sockets::Config) -> Result<Engine<P>, String> {
        let clock = Clock::start();
        // As the kernel's sockets of these tools: they send whole messages.
        let options = Options { nodelay: true, ..config.tcp };
        let endpoint = Endpoint::new(config, sockets, port, clock.now()).map_err(|e| e.to_string())?;
        Ok(Engine {
            endpoint,
            clock,
            listeners: Vec::new(),
            watched: Vec::new(),
            connecting: Vec::new(),
            deadline: None,
            busy: 0,
            calm: false,
            called: true,
            ready: Vec::new(),
            options,
            receive: Receive::Keep,
            deferred: false,
            capture: None,
        })
    }

    /// Copies what is received to the socket's ring at once, instead of keeping the port's buffers until it was read.
    pub fn copy_received(&mut self) {
        self.receive = Receive::Copy;
    }

    /// Listeners are deferred from now on: each SYN is answered because the tool accepts it.
    pub fn defer(&mut self) {
        self.deferred = true;
    }

    fn connecting(&mut self, socket: Socket) -> &mut bool {
        let index = socket.index as usize;
        if self.connecting.len() <= index {
            self.connecting.resize(index + 1, false);
        }
        &mut self.connecting[index]
    }

    /// Tells once that the capture has ended before the tool.
    fn look_at_capture(&mut self) {
        if let Some(path) = &self.capture
            && let Some(error) = self.endpoint.port().capture_failure()
        {
            let text = format!("--pcap {path}: {error}: the capture ends here, and the tool goes on");
            crate::out::complain(&text);
            self.capture = None;
        }
    }

    /// What the last turn has brought.
    fn gather(&mut self, events: &mut Vec<Event>) {
        for i in 0..self.listeners.len() {
            while let Some(socket) = self.endpoint.accept(self.listeners[i]) {
                *self.connecting(socket) = false;
                if self.deferred {
                    self.endpoint.answer(socket);
                    self.called = true;
                }
                events.push(Event::Accepted(name(socket)));
            }
        }
        while let Some((socket, ready)) = self.endpoint.next_ready() {
            if !*self.connecting(socket) {
                events.push(Event::Ready(name(socket)));
                continue;
            }
            if self.endpoint.sockets().established(socket) {
                *self.connecting(socket) = false;
                events.push(Event::Connected(name(socket)));
            } else if ready.hang_up {
                *self.connecting(socket) = false;
                events.push(Event::Failed(name(socket), ready.error.map_or(libc::ECONNABORTED, errno)));
            }
        }
    }

    /// Sleeps until something may be done.
    fn sleep(&mut self, limit: Option<Duration>, events: &mut Vec<Event>) -> Result<(), String> {
        self.ready.clear();
        let until = self.clock.until(self.deadline);
        let limit = match (limit, until) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        let result = self.endpoint.port_mut().sleep(&self.watched, limit, &mut self.ready);
        result.map_err(|e| format!("poll: {e}"))?;
        events.extend(self.ready.iter().map(|fd| Event::Watched(*fd)));
        Ok(())
    }
}

fn name(socket: Socket) -> Conn {
    Conn { index: socket.index, generation: socket.generation }
}

fn socket(conn: Conn) -> Socket {
    Socket { index: conn.index, generation: conn.generation }
}

fn failure(error: Error) -> io::Error {
    match error {
        Error::WouldBlock | Error::Connecting => io::ErrorKind::WouldBlock.into(),
        other => other.into(),
    }
}

impl<P: Sleep> Transport for Engine<P> {
    fn listen(&mut self, at: SocketAddr) -> Result<(), String> {
        let address = if at.ip().is_unspecified() { None } else { Some(at.ip()) };
        let (deferred, options) = (self.deferred, Some(self.options));
        let listen = Listen { address, options, deferred, ..Listen::new(at.port(), self.endpoint.room()) };
        let listener = self.endpoint.listen(listen, self.receive).map_err(|e| format!("listen at {at}: {e}"))?;
        self.listeners.push(listener);
        Ok(())
    }

    fn connect(&mut self, to: SocketAddr) -> io::Result<Conn> {
        let connect = Connect { options: Some(self.options), ..Connect::new(to, self.endpoint.room()) };
        let now = self.clock.now();
        let socket = self.endpoint.connect(now, connect, self.receive).map_err(|e| {
            let kind = match e {
                ConnectError::NoRoute(_) => io::ErrorKind::NetworkUnreachable,
                ConnectError::InUse(..) => io::ErrorKind::AddrInUse,
                ConnectError::NoPort(_) | ConnectError::NotOurs(_) => io::ErrorKind::AddrNotAvailable,
                ConnectError::PortGone => io::ErrorKind::NetworkDown,
                _ => io::ErrorKind::InvalidInput,
            };
            io::Error::new(kind, e.to_string())
        })?;
        *self.connecting(socket) = true;
        self.called = true;
        Ok(name(socket))
    }

    fn watch(&mut self, fd: RawFd) -> Result<(), String> {
        self.watched.push(fd);
        Ok(())
    }

    fn poll(&mut self, events: &mut Vec<Event>, limit: Option<Duration>) -> Result<(), String> {
        let before = events.len();
        // First what the caller has asked for since the last time; then, if nothing came of it, sleep and look once.
        for slept in [false, true] {
            let now = self.clock.now();
            // Once only: a caller who has always something to do would else never sleep, nor hear of what has arrived.
            let turn = if std::mem::take(&mut self.calm) && !slept {
                self.endpoint.flush(now)
            } else {
                let turn = self.endpoint.turn(now);
                self.calm = turn.received <= 1;
                turn
            };
            self.deadline = turn.deadline;
            if turn.full && self.deadline.is_none() {
                self.deadline = Some(Time(self.clock.now().0 + 1000));
            }
            self.called = false;
            self.look_at_capture();
            self.gather(events);
            if turn.gone {
                return Err("the port is gone: its device was removed, or went down for good".into());
            }
            self.busy += 1;
            if events.len() > before || turn.more {
                if self.busy.is_multiple_of(LOOK) {
                    self.sleep(Some(Duration::ZERO), events)?;
                }
                return Ok(());
            }
            if !slept {
                self.sleep(limit, events)?;
            }
        }
        Ok(())
    }

    fn again(&mut self, conn: Conn) {
        self.endpoint.again(socket(conn));
    }

    fn take(&mut self, conn: Conn, most: usize, with: &mut dyn FnMut(&[u8])) -> io::Result<usize> {
        let socket = socket(conn);
        let piece = self.endpoint.peek(socket).map_err(failure)?;
        let n = piece.len().min(most);
        if n > 0 {
            with(&piece[..n]);
            self.endpoint.consume(socket, n).map_err(failure)?;
            self.called = true;
        }
        Ok(n)
    }

    fn send_back(&mut self, conn: Conn) -> Option<io::Result<usize>> {
        if self.receive == Receive::Copy {
            return None;
        }
        self.called = true;
        Some(self.endpoint.forward(socket(conn), socket(conn), false).map_err(failure))
    }

    fn write(&mut self, conn: Conn, bytes: &[u8], more: bool) -> io::Result<usize> {
        self.called = true;
        self.endpoint.write(socket(conn), bytes, more).map_err(failure)
    }

    fn send(&mut self, conn: Conn, piece: &Still, more: bool) -> io::Result<usize> {
        self.called = true;
        let n = piece.len();
        self.endpoint.send(socket(conn), piece.clone(), more).map_err(|(error, _)| failure(error))?;
        Ok(n)
    }

    fn shutdown(&mut self, conn: Conn) {
        self.called = true;
        self.endpoint.shutdown(socket(conn));
    }

    fn close(&mut self, conn: Conn) {
        self.called = true;
        self.endpoint.close(socket(conn));
    }

    fn abort(&mut self, conn: Conn) {
        self.called = true;
        self.endpoint.abort(socket(conn));
    }

    fn idle(&self) -> bool {
        let waits = |phase| !matches!(phase, Phase::TimeWait | Phase::Closed | Phase::FinWait2);
        !self.called && !self.endpoint.stack().connections().any(|(_, info)| waits(info.tcp.phase))
    }

    fn report(&mut self) -> Report {
        let stack = self.endpoint.stack();
        let mut report = Report::default();
        report.counters.extend(stack.counters().iter().map(|(counter, n)| (counter.name().to_owned(), n)));
        let copies = self.endpoint.sockets().copies();
        for (name, n) in [
            ("payload_written_copied", copies.written),
            ("payload_committed_in_place", copies.committed),
            ("payload_sent_by_reference", copies.referenced),
            ("payload_received_copied", copies.received),
            ("payload_received_kept", copies.kept),
            ("payload_spilled", copies.spilled),
            ("payload_read_copied", copies.read),
            ("time_wait", u64::from(stack.time_wait())),
        ] {
            report.counters.insert(name.to_owned(), n);
        }
        report.counters.extend(self.endpoint.port().counters().into_iter().map(|(name, n)| (name.to_owned(), n)));
        let about = self.endpoint.port().about();
        report.port = about.into_iter().map(|(name, value)| Named { name: name.to_owned(), value }).collect();
        report.connections = stack
            .connections()
            .map(|(_, info)| Connection {
                local: info.local.to_string(),
                remote: info.remote.to_string(),
                state: info.tcp.phase.name().to_owned(),
                cwnd: u64::from(info.tcp.cwnd),
                ssthresh: (info.tcp.ssthresh < u32::MAX / 2).then_some(u64::from(info.tcp.ssthresh)),
                srtt_us: u64::from(info.tcp.srtt.0),
                retransmits: u64::from(info.tcp.retransmits),
                in_flight: u64::from(info.tcp.in_flight),
            })
            .collect();
        report
    }

    fn copied(&self) -> Option<u64> {
        Some(self.endpoint.sockets().copies().copied())
    }
}

impl<P: Sleep> Pinger for Engine<P> {
    fn send(&mut self, to: IpAddr, sequence: u16, payload: &[u8]) -> Result<(), String> {
        let number = (std::process::id() as u16, sequence);
        // A neighbour's answer takes a moment: half a second at most.
        for _ in 0..50 {
            match self.endpoint.echo(self.clock.now(), to, number, payload) {
                Ok(()) => return Ok(()),
                Err(Unsent::Unresolved(_)) => {
                    self.endpoint.turn(self.clock.now());
                    let limit = Some(Duration::from_millis(10));
                    self.endpoint.port_mut().sleep(&[], limit, &mut self.ready).map_err(|e| e.to_string())?;
                    self.endpoint.turn(self.clock.now());
                }
                Err(Unsent::NoRoute) => return Err("network is unreachable".into()),
                Err(Unsent::Unreachable) => return Err("no route to host: the neighbour does not answer".into()),
                Err(Unsent::Long) => {
                    let (size, mtu) = (payload.len(), self.endpoint.port().capabilities().mtu);
                    return Err(format!(
                        "{size} bytes of payload make a packet longer than the MTU of {mtu}: give a smaller --size or a larger --mtu"
                    ));
                }
            }
        }
        Err("no route to host: the neighbour does not answer".into())
    }

    fn wait(
        &mut self,
        limit: Duration,
        signals: &OwnedFd,
        payload: &[u8],
        answers: &mut Vec<Answer>,
    ) -> Result<bool, String> {
        use std::os::fd::AsRawFd;
        let signal = signals.as_raw_fd();
        self.watched = vec![signal];
        let mut events = Vec::new();
        // An answer may have come already: nobody sleeps before he has looked.
        for slept in [false, true] {
            let turn = self.endpoint.turn(self.clock.now());
            self.deadline = turn.deadline;
            self.look_at_capture();
            if turn.gone {
                return Err("the port is gone: its device was removed".into());
            }
            while let Some(echo) = self.endpoint.next_echo() {
                answers.push(Answer {
                    sequence: echo.sequence,
                    from: echo.from,
                    len: echo.data.len(),
                    same: echo.data == payload,
                    hops: Some(echo.hops),
                });
            }
            if slept || !answers.is_empty() {
                break;
            }
            self.sleep(Some(limit), &mut events)?;
        }
        Ok(events.contains(&Event::Watched(signal)))
    }
}
