//! Room to write in and views of what has arrived, of a program that runs the stack in its own thread: the calls of the crate `culvert`,
//! with the same types beneath ([`Spans`], [`SpansMut`]), on a socket of an [`Endpoint`].
//!
//! Nothing is copied. Room is free memory of the socket's outgoing ring, from where the port sends it; a view is where the port, or the
//! engine, has put what arrived: the incoming ring, or the port's own buffers ([`Receive::Keep`](crate::sockets::Receive::Keep); small packets
//! are copied to the ring all the same).
//!
//! ```
//! # use zstack::{endpoint::Endpoint, net::Address, sockets::{self, Receive}, stack::{Config, Connect, Listen}, time::Time};
//! # use zstack_port::{Settings, pair};
//! use zstack::inplace;
//!
//! # let (left, right) = pair(Settings::default());
//! # let address = |ip: &str| Address { ip: ip.parse().unwrap(), prefix: 24 };
//! # let mut now = Time(0);
//! # let mut server = Endpoint::new(Config::new(address("10.0.0.1"), [1; 16]), sockets::Config::default(), left, now)?;
//! # let mut client = Endpoint::new(Config::new(address("10.0.0.2"), [2; 16]), sockets::Config::default(), right, now)?;
//! # let listener = server.listen(Listen::new(7, server.room()), Receive::Keep)?;
//! # client.connect(now, Connect::new("10.0.0.1:7".parse()?, client.room()), Receive::Copy)?;
//! # let mut done = false;
//! # while !done {
//! #     now = Time(now.0 + 100);
//! #     client.turn(now);
//! #     server.turn(now);
//! #     assert!(now < Time(1_000_000));
//! #     while server.accept(listener).is_some() {}
//! while let Some((socket, ready)) = client.next_ready() {
//!     if ready.writable {
//!         let mut room = inplace::reserve(&mut client, socket, 5)?; // may be less than was asked for
//!         let n = room.write(0, b"hello");
//!         room.commit(n)?;
//!     }
//! }
//! while let Some((socket, ready)) = server.next_ready() {
//!     if ready.readable {
//!         let view = inplace::look(&mut server, socket, 1)?; // nothing in it: the stream has ended
//!         assert_eq!(view.as_slices().0, b"hello");
//!         let n = view.len();
//!         view.release(n)?; // read; what is not released comes again
//! #         done = true;
//!     }
//! }
//! # }
//! # let copies = (client.sockets().copies(), server.sockets().copies());
//! # assert_eq!((copies.0.written, copies.0.committed, copies.1.read), (0, 5, 0));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Of every call
//! **Units.** Lengths and places are bytes of the stream.
//!
//! **Ownership.** A room or a view borrows the endpoint: no turn is made, and no other call, as long as it is there. Dropped, a room sends
//! nothing and a view reads nothing; there is nothing that a leaked one keeps.
//!
//! **Waiting.** None does: [`Error::WouldBlock`] and [`Error::Connecting`] mean that [`Endpoint::next_ready`] will tell of the
//! socket. **Errors.** Those of [`Endpoint::write`] and [`Endpoint::read`]; after one, nothing has changed.
//!
//! **Threads.** An endpoint belongs to one thread, and so do its rooms and views. **Fork.** Only one of both processes may go on with it.

use crate::endpoint::Endpoint;
use crate::port::Port;
use crate::sockets::{Error, Socket};
pub use culvert_spans::{Spans, SpansMut};

/// Reserves room for up to `n` bytes behind what was written: at least one byte, if `n` is not 0.
///
/// # Errors
/// As of [`Endpoint::write`].
pub fn reserve<P: Port>(endpoint: &mut Endpoint<P>, socket: Socket, n: usize) -> Result<Room<'_, P>, Error> {
    let (first, second) = endpoint.reserve(socket, n)?;
    let len = first.len() + second.len();
    Ok(Room { endpoint, socket, len })
}

/// Room that was reserved. Dropped, it is given back, and what was written there is not sent.
pub struct Room<'a, P: Port> {
    endpoint: &'a mut Endpoint<P>,
    socket: Socket,
    len: usize,
}

impl<P: Port> Room<'_, P> {
    /// Bytes that there is room for.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is none: none was asked for.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The room itself. Nobody else writes there.
    pub fn as_mut_slices(&mut self) -> (&mut [u8], &mut [u8]) {
        // It was there when this began, and nothing has been written since.
        self.endpoint.reserve(self.socket, self.len).unwrap_or_default()
    }

    /// The room, for code that fills room of whatever connection.
    pub fn memory(&mut self) -> SpansMut<'_> {
        let (first, second) = self.as_mut_slices();
        SpansMut::of(first, second)
    }

    /// Writes to it from byte `at` on, as many as there is room for. How many.
    pub fn write(&mut self, at: usize, bytes: &[u8]) -> usize {
        self.memory().write(at, bytes)
    }

    /// Sends the first `n` bytes, at most all; what is left of the room is given back. How many.
    ///
    /// # Errors
    /// As of [`Endpoint::write`].
    pub fn commit(self, n: usize) -> Result<usize, Error> {
        self.commit_with(n, false)
    }

    /// The same; other bytes follow at once, and may share a segment with these.
    ///
    /// # Errors
    /// As of [`Endpoint::write`].
    pub fn commit_more(self, n: usize) -> Result<usize, Error> {
        self.commit_with(n, true)
    }

    fn commit_with(self, n: usize, more: bool) -> Result<usize, Error> {
        let n = n.min(self.len);
        self.endpoint.commit(self.socket, n, more)?;
        // It is over.
        core::mem::forget(self);
        Ok(n)
    }
}

impl<P: Port> Drop for Room<'_, P> {
    fn drop(&mut self) {
        // The socket keeps no memory for it.
        let _ = self.endpoint.commit(self.socket, 0, true);
    }
}

/// Looks at what has arrived and was not read, if that is `min` bytes at least (0 is 1), or the stream ends behind it. None: the stream has
/// ended.
///
/// It shows what lies in one piece of memory or two: all that has arrived where the socket's buffers are
/// [copied](crate::sockets::Receive::Copy) to its ring; where they are [kept](crate::sockets::Receive::Keep) the first two, which may
/// be fewer bytes than `min`.
///
/// # Errors
/// [`Error::WouldBlock`]: fewer have arrived; others as of [`Endpoint::read`].
pub fn look<P: Port>(endpoint: &mut Endpoint<P>, socket: Socket, min: usize) -> Result<View<'_, P>, Error> {
    let ready = endpoint.ready(socket);
    endpoint.peek(socket)?;
    let all: usize = endpoint.pieces(socket).map(<[u8]>::len).sum();
    if all < min && !ready.peer_closed && !ready.hang_up {
        return Err(Error::WouldBlock);
    }
    let len = endpoint.pieces(socket).take(2).map(<[u8]>::len).sum();
    Ok(View { endpoint, socket, len })
}

/// Bytes that have arrived and were not read. Dropped, they stay so.
pub struct View<'a, P: Port> {
    endpoint: &'a mut Endpoint<P>,
    socket: Socket,
    len: usize,
}

impl<P: Port> View<'_, P> {
    /// Bytes that are there.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none: the stream has ended.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The bytes themselves. Nobody writes there.
    pub fn as_slices(&self) -> (&[u8], &[u8]) {
        let mut pieces = self.endpoint.pieces(self.socket);
        (pieces.next().unwrap_or(&[]), pieces.next().unwrap_or(&[]))
    }

    /// The bytes, for code that looks at those of whatever connection.
    pub fn memory(&self) -> Spans<'_> {
        let (first, second) = self.as_slices();
        Spans::of(first, second)
    }

    /// Copies from its byte `at` on, as many as there are and fit. How many.
    pub fn copy_to(&self, at: usize, bytes: &mut [u8]) -> usize {
        self.memory().copy_to(at, bytes)
    }

    /// Reads its first `n` bytes, at most all: the next look or read begins behind them.
    ///
    /// # Errors
    /// [`Error::Stale`].
    pub fn release(self, n: usize) -> Result<(), Error> {
        self.endpoint.consume(self.socket, n.min(self.len))
    }
}
