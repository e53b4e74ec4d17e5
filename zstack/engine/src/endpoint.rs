//! Sockets over a port: a [`Stack`], its [`Sockets`] and a [`Port`] as one thing. This is the Rust API for programs.
//!
//! A program calls [`Endpoint::turn`] when something has arrived at the port, when the deadline of the turn before has come, and
//! after calls of its own; then it takes new connections ([`Endpoint::accept`]) and readiness ([`Endpoint::next_ready`]).
//! No call blocks: a call that finds nothing to do says [`Error::WouldBlock`]. Copying calls ([`Endpoint::read`], [`Endpoint::write`]) and
//! those that copy nothing ([`Endpoint::peek`], [`Endpoint::send`], [`Endpoint::reserve`]) mix in any order on one connection.
//!
//! An endpoint belongs to one thread. After fork(2) only one of both processes may go on with it.
//!
//! An echo server, and a client that sends a piece by reference:
//!
//! ```
//! use zstack::endpoint::Endpoint;
//! use zstack::net::Address;
//! use zstack::sockets::{self, Receive};
//! use zstack::stack::{Config, Connect, Listen};
//! use zstack::time::Time;
//! use zstack_port::{Settings, pair};
//!
//! let (left, right) = pair(Settings::default());
//! let address = |ip: &str| Address { ip: ip.parse().unwrap(), prefix: 24 };
//! // A real program takes 16 random bytes, other ones at each start.
//! let (here, there) = (Config::new(address("10.0.0.1"), [1; 16]), Config::new(address("10.0.0.2"), [2; 16]));
//! let mut now = Time(0);
//! let mut server = Endpoint::new(here, sockets::Config::default(), left, now)?;
//! let mut client = Endpoint::new(there, sockets::Config::default(), right, now)?;
//!
//! let listener = server.listen(Listen::new(7, server.room()), Receive::Keep)?;
//! let connect = Connect::new("10.0.0.1:7".parse()?, client.room());
//! let socket = client.connect(now, connect, Receive::Copy)?;
//!
//! let mut answer = [0; 5];
//! let mut got = 0;
//! let mut sent = false;
//! while got < answer.len() {
//!     now = Time(now.0 + 100);
//!     server.turn(now);
//!     client.turn(now);
//!     while server.accept(listener).is_some() {}
//!     while let Some((peer, ready)) = server.next_ready() {
//!         // What has arrived is looked at where it is, in the port's buffer.
//!         if ready.readable && let Ok(bytes) = server.peek(peer).map(<[u8]>::to_vec) {
//!             server.consume(peer, bytes.len())?;
//!             server.write(peer, &bytes, false)?;
//!         }
//!     }
//!     while let Some((socket, ready)) = client.next_ready() {
//!         if ready.writable && !sent {
//!             client.send(socket, b"hello"[..].into(), false).map_err(|(error, _)| error)?;
//!             sent = true;
//!         }
//!         if ready.readable {
//!             got += client.read(socket, &mut answer[got..])?;
//!         }
//!     }
//! }
//! assert_eq!(&answer, b"hello");
//! // The client's own bytes were not copied; what it read was, to the ring and to `answer`.
//! assert_eq!((client.sockets().copies().written, client.sockets().copies().referenced), (0, 5));
//! client.close(socket);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use crate::net::{Route, Unsent};
use crate::payload::Pinned;
use crate::port::Port;
use crate::sockets::{self, Error, Ready, Receive, Socket, Sockets, Still, Takes};
use crate::stack::{self, Connect, ConnectError, Info, Listen, ListenError, ListenerId, Stack, Turn, Unforwarded};
use crate::tcp::Options;
use crate::time::Time;
use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;

/// Why there is no endpoint.
#[derive(Debug)]
pub enum ConfigError {
    /// The stack's configuration is wrong.
    Stack(stack::ConfigError),
    /// That of the sockets is.
    Sockets(sockets::ConfigError),
}

impl std::fmt::Display for ConfigError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            ConfigError::Stack(error) => error.fmt(f),
            ConfigError::Sockets(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for ConfigError {}

/// Sockets over a port.
pub struct Endpoint<P: Port> {
    stack: Stack,
    /// Dropped before the sockets: it may read their memory until it is gone.
    port: P,
    sockets: Sockets<P::Buffer>,
    /// Memory that is sent from no more, and at which frames below a number may point.
    left: VecDeque<(u64, Vec<Still>)>,
}

impl<P: Port> Endpoint<P> {
    /// An endpoint without sockets. `now`: the moment by the clock whose moments every later call names.
    ///
    /// # Errors
    /// A configuration contradicts itself, or the port.
    pub fn new(
        config: stack::Config,
        sockets: sockets::Config,
        port: P,
        now: Time,
    ) -> Result<Endpoint<P>, ConfigError> {
        let stack = Stack::new(config, port.capabilities(), now).map_err(ConfigError::Stack)?;
        Ok(Endpoint {
            stack,
            sockets: Sockets::new(sockets).map_err(ConfigError::Sockets)?,
            port,
            left: VecDeque::new(),
        })
    }

    /// Receives, fires timers and sends: see [`Stack::turn`].
    pub fn turn(&mut self, now: Time) -> Turn {
        let turn = self.stack.turn(now, &mut self.port, &mut self.sockets);
        self.leave();
        turn
    }

    /// A turn that receives nothing: see [`Stack::flush`].
    pub fn flush(&mut self, now: Time) -> Turn {
        let turn = self.stack.flush(now, &mut self.port, &mut self.sockets);
        self.leave();
        turn
    }

    /// Drops memory at which no frame points any more.
    fn leave(&mut self) {
        while self.left.front().is_some_and(|(frame, _)| *frame <= self.stack.frames().completed) {
            self.left.pop_front();
        }
    }

    /// The room that [`Listen`] and [`Connect`] are to name.
    pub fn room(&self) -> u64 {
        self.sockets.room()
    }

    /// The port, to sleep on.
    pub fn port(&self) -> &P {
        &self.port
    }

    /// The port.
    pub fn port_mut(&mut self) -> &mut P {
        &mut self.port
    }

    /// The stack: counters and connections.
    pub fn stack(&self) -> &Stack {
        &self.stack
    }

    /// The sockets: what was copied, and what is held.
    pub fn sockets(&self) -> &Sockets<P::Buffer> {
        &self.sockets
    }

    /// Takes connections that peers open. `receive`: what happens to their buffers.
    ///
    /// # Errors
    /// As of [`Stack::listen`].
    pub fn listen(&mut self, wanted: Listen, receive: Receive) -> Result<ListenerId, ListenError> {
        let wanted = Listen { room: self.sockets.room(), ..wanted };
        let listener = self.stack.listen(wanted)?;
        self.sockets.set_listener_receive(listener, receive);
        Ok(listener)
    }

    /// Takes no more; connections that nobody has accepted are reset.
    pub fn unlisten(&mut self, listener: ListenerId) {
        self.stack.unlisten(listener);
        for socket in self.sockets.forget_listener(listener) {
            self.abort(socket);
        }
    }

    /// The next connection that came to a listener: to be asked for after each turn. Of a deferred listener its SYN is not
    /// answered yet, unless it came by a cookie and is [established](Sockets::established): [`Endpoint::answer`], [`Endpoint::refuse`] or
    /// [`Endpoint::ignore`] follows. If its peer gives up before, it is ready and has ended.
    pub fn accept(&mut self, listener: ListenerId) -> Option<Socket> {
        self.sockets.accept(listener)
    }

    /// Answers the SYN of a deferred listener's connection.
    pub fn answer(&mut self, socket: Socket) {
        if let Some(conn) = self.sockets.connection(socket) {
            self.stack.accept(conn);
        }
    }

    /// Refuses a deferred listener's connection, with RST, and gives the socket up; one that is answered or came by a cookie is reset.
    pub fn refuse(&mut self, socket: Socket) {
        if let Some(conn) = self.sockets.connection(socket) {
            self.stack.refuse(conn);
            self.stack.abort(conn);
        }
        self.sockets.close(socket);
    }

    /// Drops a deferred listener's connection without a word, as a full backlog does, and gives the socket up: the peer tries again. One
    /// that is answered or came by a cookie is reset.
    pub fn ignore(&mut self, socket: Socket) {
        if let Some(conn) = self.sockets.connection(socket) {
            self.stack.ignore(conn);
            self.stack.abort(conn);
        }
        self.sockets.close(socket);
    }

    /// Opens a connection: it becomes writable, or ends with an error.
    ///
    /// # Errors
    /// As of [`Stack::connect`].
    pub fn connect(&mut self, now: Time, wanted: Connect, receive: Receive) -> Result<Socket, ConnectError> {
        let wanted = Connect { room: self.sockets.room(), ..wanted };
        let conn = self.stack.connect(now, wanted)?;
        Ok(self.sockets.open(conn, receive))
    }

    /// The next socket of which something has changed, and what it is ready for now.
    pub fn next_ready(&mut self) -> Option<(Socket, Ready)> {
        self.sockets.next_ready()
    }

    /// Tells of the socket once more, though nothing may have changed.
    pub fn again(&mut self, socket: Socket) {
        self.sockets.again(socket);
    }

    /// Whose memory the socket takes: see [`Sockets::set_account`].
    pub fn set_account(&mut self, socket: Socket, account: u32) {
        self.sockets.set_account(socket, account);
    }

    /// What a socket is ready for.
    pub fn ready(&self, socket: Socket) -> Ready {
        self.sockets.ready(socket)
    }

    /// Copies bytes that have arrived; 0: the stream has ended.
    ///
    /// # Errors
    /// [`Error::WouldBlock`]: there are none now; others: there never will be.
    pub fn read(&mut self, socket: Socket, into: &mut [u8]) -> Result<usize, Error> {
        let n = self.sockets.read(socket, into)?;
        self.tell_room(socket);
        Ok(n)
    }

    /// Bytes that have arrived, where they are, as many as lie in one piece; none: the stream has ended.
    ///
    /// # Errors
    /// As of [`Endpoint::read`].
    pub fn peek(&self, socket: Socket) -> Result<&[u8], Error> {
        self.sockets.peek(socket)
    }

    /// All bytes that have arrived, where they are.
    pub fn pieces(&self, socket: Socket) -> impl Iterator<Item = &[u8]> {
        self.sockets.pieces(socket)
    }

    /// The first `n` bytes that have arrived are done with.
    ///
    /// # Errors
    /// [`Error::Stale`].
    ///
    /// # Panics
    /// If fewer have arrived.
    pub fn consume(&mut self, socket: Socket, n: usize) -> Result<(), Error> {
        self.sockets.consume(socket, n)?;
        self.tell_room(socket);
        Ok(())
    }

    /// Copies as much as there is room for. `more`: other bytes follow at once, and may share a segment with these.
    ///
    /// # Errors
    /// [`Error::WouldBlock`], [`Error::Connecting`]: not now; others: never.
    pub fn write(&mut self, socket: Socket, bytes: &[u8], more: bool) -> Result<usize, Error> {
        let n = self.sockets.write(socket, bytes)?;
        // What did not fit follows, and says itself whether it is the last.
        self.tell_end(socket, !more);
        Ok(n)
    }

    /// Free memory of the socket's ring, `most` bytes at most, to be filled in place.
    ///
    /// # Errors
    /// As of [`Endpoint::write`].
    pub fn reserve(&mut self, socket: Socket, most: usize) -> Result<(&mut [u8], &mut [u8]), Error> {
        self.sockets.reserve(socket, most)
    }

    /// Sends the first `n` bytes of what was reserved.
    ///
    /// # Errors
    /// As of [`Endpoint::write`].
    ///
    /// # Panics
    /// If fewer were reserved.
    pub fn commit(&mut self, socket: Socket, n: usize, more: bool) -> Result<(), Error> {
        self.sockets.commit(socket, n)?;
        self.tell_end(socket, !more);
        Ok(())
    }

    /// Sends memory of somebody else by reference: it is kept until the peer has acknowledged it and no packet points at it.
    ///
    /// # Errors
    /// As of [`Endpoint::write`]; the piece comes back.
    pub fn send(&mut self, socket: Socket, piece: Still, more: bool) -> Result<(), (Error, Still)> {
        self.sockets.send(socket, piece)?;
        self.tell_end(socket, !more);
        Ok(())
    }

    /// How many bytes may be queued by reference, and taken back to the ring: see [`Sockets::lendable`].
    ///
    /// # Errors
    /// As of [`Endpoint::write`].
    pub fn lendable(&mut self, socket: Socket, least: usize) -> Result<usize, Error> {
        self.sockets.lendable(socket, least)
    }

    /// What was queued of memory that others may write ([`sockets::Stable`]) is copied, and sent from there on; its owners are dropped
    /// when no frame points at it. How many bytes.
    pub fn take_over(&mut self, socket: Socket) -> u64 {
        let taken = self.sockets.take_over(socket);
        let bytes = taken.iter().map(|still| still.len() as u64).sum();
        if bytes > 0 {
            self.left.push_back((self.stack.frames().next, taken));
            self.leave();
        }
        bytes
    }

    /// Up to where the outgoing stream was released: its memory is its owner's again.
    pub fn released(&self, socket: Socket) -> u64 {
        self.sockets.released(socket)
    }

    /// Tells of the socket once when its outgoing stream is released up to `position`.
    pub fn tell_released(&mut self, socket: Socket, position: u64) {
        self.sockets.tell_released(socket, position);
    }

    /// Sends on, on `to`, the next bytes that have arrived on `from` (which may be the same socket); how many, 0: the stream has ended. A buffer that was
    /// [kept](Receive::Keep) is sent from where it is: its payload is not copied.
    ///
    /// # Errors
    /// As of [`Endpoint::read`] on `from`, then of [`Endpoint::write`] on `to`.
    pub fn forward(&mut self, from: Socket, to: Socket, more: bool) -> Result<usize, Error>
    where
        P::Buffer: Pinned,
    {
        let n = self.sockets.forward(from, to)?;
        if n > 0 {
            self.tell_room(from);
            self.tell_end(to, !more);
        }
        Ok(n)
    }

    /// Sends no more: the outgoing stream ends after what was written. The incoming one goes on.
    pub fn shutdown(&mut self, socket: Socket) {
        self.sockets.shut(socket);
        if let Some(conn) = self.sockets.connection(socket) {
            self.stack.shutdown(conn);
        }
    }

    /// Gives the socket up. What was written is still sent; if bytes were not read, the peer is told so by a reset, as Linux does;
    /// so it is where [`Options::linger`] is 0.
    pub fn close(&mut self, socket: Socket) {
        let conn = self.sockets.connection(socket);
        let unread = self.sockets.close(socket);
        if let Some(conn) = conn {
            self.stack.close(conn, unread);
        }
    }

    /// Resets the connection and gives the socket up.
    pub fn abort(&mut self, socket: Socket) {
        let conn = self.sockets.connection(socket);
        self.sockets.close(socket);
        if let Some(conn) = conn {
            self.stack.abort(conn);
        }
    }

    /// Changes a connection's options.
    pub fn set_options(&mut self, socket: Socket, options: Options) {
        if let Some(conn) = self.sockets.connection(socket) {
            self.stack.set_options(conn, options);
        }
    }

    /// Addresses, state and figures of a connection; `None`: the stack has given it up.
    pub fn info(&self, socket: Socket) -> Option<Info> {
        self.stack.info(self.sockets.connection(socket)?)
    }

    /// Sends an ICMP echo request: see [`Stack::echo`].
    ///
    /// # Errors
    /// As of [`Stack::echo`].
    pub fn echo(&mut self, now: Time, to: IpAddr, number: (u16, u16), data: &[u8]) -> Result<(), Unsent> {
        self.stack.echo(now, &mut self.port, to, number, data)
    }

    /// The next answer to an echo request.
    pub fn next_echo(&mut self) -> Option<stack::Echoed> {
        self.stack.next_echo()
    }

    /// Whether there is a connection between these ends, or one that waits in TIME-WAIT; whoever opened it.
    pub fn knows(&mut self, now: Time, local: SocketAddr, remote: SocketAddr) -> bool {
        self.stack.knows(now, local, remote)
    }

    /// These routes, in the place of those from before: see [`Stack::set_routes`].
    ///
    /// # Errors
    /// As of [`Stack::set_routes`].
    pub fn set_routes(&mut self, routes: &[Route]) -> Result<(), stack::ConfigError> {
        self.stack.set_routes(routes)
    }

    /// Sends an IP packet of somebody else's as it is: see [`Stack::forward`]. A turn has to follow one or several.
    ///
    /// # Errors
    /// As of [`Stack::forward`].
    pub fn forward_packet(&mut self, now: Time, packet: &[u8]) -> Result<(), Unforwarded> {
        self.stack.forward(now, &mut self.port, packet)
    }

    /// The next packet that a bridge ([`stack::Config::bridge`]) has no use for, and where in the buffer it lies: to be asked for after
    /// each turn until there is none. The buffer is the port's own: dropping it gives it back.
    pub fn next_passed(&mut self) -> Option<(P::Buffer, Range<usize>)> {
        self.sockets.next_passed()
    }

    /// The next packet that [`Endpoint::forward_packet`] had taken and that was dropped after all, for the neighbour on its way does not
    /// answer: its sender is to be told "host unreachable". To be asked for after each turn.
    pub fn next_undelivered(&mut self) -> Option<Box<[u8]>> {
        self.sockets.next_undelivered()
    }

    /// Who decides whether a bridge takes a connection that a peer opens ([`crate::payload::Host::takes`]): local address, remote address, the
    /// TCP header with its options and what follows. Without it all are taken.
    pub fn set_takes(&mut self, takes: Takes) {
        self.sockets.set_takes(takes);
    }

    fn tell_room(&mut self, socket: Socket) {
        if let Some((conn, edge)) = self.sockets.take_edge(socket) {
            self.stack.room(conn, edge);
        }
    }

    fn tell_end(&mut self, socket: Socket, push: bool) {
        if let Some((conn, end)) = self.sockets.end(socket) {
            self.stack.commit(conn, end, push);
        }
    }
}
