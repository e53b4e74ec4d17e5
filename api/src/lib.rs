//! Send what you write where the peer will read it, and read what you receive where the peer has written it: on any connected
//! stream socket, beside `read`, `write` and their kin, at any byte, by any thread.
//!
//! Under culvert (`culvert run`, or linked with `libculvert.so`) a connection between two processes of
//! one host goes by shared memory, and there these calls copy nothing. Everywhere else, on a connection that is the kernel's or in a program
//! that runs without the library, each works by memory of its own and a copy, with the same results. The library's functions are
//! looked for when the first call is made.
//!
//! ```no_run
//! # fn main() -> std::io::Result<()> {
//! let socket = std::net::TcpStream::connect("127.0.0.1:4000")?;
//! let mut room = culvert::reserve(&socket, 5)?;   // may be less than was asked for
//! let n = room.write(0, b"hello");
//! room.commit(n)?;                                // sent; what is left of the room is given back
//!
//! let view = culvert::look(&socket, 1)?;          // nothing in it: the stream has ended
//! let mut answer = vec![0; view.len()];
//! view.copy_to(0, &mut answer);
//! view.release(answer.len())?;                    // read; what is not released comes again
//! # Ok(())
//! # }
//! ```
//!
//! Bytes can also travel by reference: a [`Chunk`] of a [`Pool`] is written once, sent, looked at where it was written, kept beyond the stream
//! that brought it ([`View::keep`]), and sent on to a third process, without a copy anywhere.
//!
//! ```no_run
//! # fn main() -> std::io::Result<()> {
//! # let (inside, outside) = std::os::unix::net::UnixStream::pair()?;
//! let pool = culvert::Pool::new(65_536, 16)?;
//! let mut chunk = pool.take()?;                   // waits for a free one
//! let n = chunk.write(0, b"a message");
//! chunk.send(&outside, n)?;                       // its receiver's; free again when that is done with it
//!
//! let mut message = culvert::look(&inside, 1)?.keep()?;
//! let n = message.len();
//! message.send(&outside, n)?;                     // the same memory, if it came by reference
//! # Ok(())
//! # }
//! ```
//!
//! # Memory that another process may write
//! A [`View`] is never `&[u8]`: its peer may write there at any time, if it wants to. It is copied out ([`View::copy_to`]), or, by
//! who trusts the peer, borrowed through an `unsafe` door ([`View::as_slices`]). A [`Room`] is written by copies, too, and so is a
//! [`Chunk`]: those to whom it was sent before might read there still, if they are not honest.
//!
//! # Of every call
//! **Ownership.** A room or a view borrows its socket, which is not closed meanwhile. Dropped, a room sends nothing and a view reads
//! nothing. One that is leaked (`mem::forget`) keeps its part of the ring: the peer, or this program, will run out of room. A chunk is this
//! program's until it is sent or dropped, and needs no socket. When all who got it, one after the other, are done with it or have
//! ended, it is free again.
//!
//! **Blocking.** As the socket says (`set_nonblocking`, timeouts), or never (`try_...`): [`WouldBlock`](std::io::ErrorKind::WouldBlock).
//! A reservation waits for room on a ring; elsewhere it is had at once, and the commit waits, or is partial. Readiness is that of
//! `poll`, `epoll` and tokio's `AsyncFd`. A chunk that goes by reference never waits; one that is copied is sent as by `send`.
//! [`Pool::take`] waits for a free chunk, and nothing tells a program that waits in `poll` that one has come back.
//!
//! **Signals.** [`Interrupted`](std::io::ErrorKind::Interrupted) as from `send` and `recv`. No SIGPIPE. Not to be called in a signal handler.
//!
//! **Threads.** Rooms and views may be sent to other threads. What is committed comes into the stream at its commit. One room of a
//! connection at a time is on its ring. A `write` while another thread has a room on the ring waits for its commit, for 10 ms at
//! most; after that, and at once in the thread that reserved it, the sending direction goes to the kernel for good. A view on the ring sees
//! what others read meanwhile, too, and its release reads none of it twice; one by a copy is like `peek`.
//!
//! **Fork, exec.** A forked child has none of its parent's rooms and views on rings: [`InvalidInput`](std::io::ErrorKind::InvalidInput).
//! An exec ends them: what was not released is unread. Pools and chunks are the process's that made or kept them, and a forked child
//! has none; the connections that were there at a fork carry chunks by copies from then on.
#![deny(unsafe_op_in_unsafe_fn)]

mod asked;
mod chunk;
mod keep;
mod library;
mod plain;

pub use asked::asked;
pub use chunk::{Chunk, Pool};
pub use culvert_spans::{Spans, SpansMut};
pub use keep::{Keeper, Kept};
use library::library;
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

/// What [`look`] can be asked to wait for, bytes.
pub const LOOK_MOST: usize = 64 << 10;

/// Whether the library is there. Without it, everything is copied.
pub fn is_present() -> bool {
    library().is_some()
}

/// Which directions of a connection are on a ring now. Changes at any time.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Path {
    /// What is sent is not copied.
    pub sending: bool,
    /// What is received is not copied.
    pub receiving: bool,
}

/// Which way a connection's bytes go.
pub fn path(socket: &impl AsFd) -> Path {
    let bits = library().map_or(0, |l| l.path(socket.as_fd().as_raw_fd()));
    Path { sending: bits & 1 != 0, receiving: bits & 2 != 0 }
}

/// How the program at the other end of a ring wants its bytes in segments, for who stands in for other hosts.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Manner {
    /// A small segment waits while another one is not acknowledged: TCP_NODELAY is not set.
    pub waits: bool,
    /// The last bytes were sent with MSG_MORE.
    pub more: bool,
    /// Segments that are not full wait: TCP_CORK is set. When it is taken out, an epoll set says once that there is something to read.
    pub corked: bool,
}

/// The same of what is received on a ring; elsewhere neither.
pub fn manner(socket: &impl AsFd) -> Manner {
    let bits = library().map_or(0, |l| l.path(socket.as_fd().as_raw_fd()));
    Manner { waits: bits & 4 != 0, more: bits & 8 != 0, corked: bits & 16 != 0 }
}

/// Wakes whom this thread has sent something, if it puts that off: one that stands in for other hosts does, from the first such call on, until the
/// next one or until it waits for events.
pub fn settle() {
    if let Some(l) = library() {
        l.settle();
    }
}

/// Reserves room for up to `n` bytes behind what was sent: at least one byte. Errors: those of `send`;
/// [`InvalidInput`](io::ErrorKind::InvalidInput) if `n` is 0.
pub fn reserve<S: AsFd + ?Sized>(socket: &S, n: usize) -> io::Result<Room<'_>> {
    reserve_with(socket.as_fd(), n, 0)
}

/// The same; never waits.
pub fn try_reserve<S: AsFd + ?Sized>(socket: &S, n: usize) -> io::Result<Room<'_>> {
    reserve_with(socket.as_fd(), n, libc::MSG_DONTWAIT)
}

fn reserve_with(socket: BorrowedFd<'_>, n: usize, flags: i32) -> io::Result<Room<'_>> {
    let memory = match library() {
        Some(l) => l.reserve(socket.as_raw_fd(), n, flags | libc::MSG_NOSIGNAL)?,
        None => plain::reserve(socket.as_raw_fd(), n)?,
    };
    Ok(Room { socket, memory, _not_shared: PhantomData })
}

/// Room that was reserved. Dropped, it is given back, and what was written there is not sent.
#[derive(Debug)]
pub struct Room<'a> {
    socket: BorrowedFd<'a>,
    memory: library::Spans,
    _not_shared: PhantomData<*mut u8>,
}

// SAFETY: the memory is its own, whichever thread has it; the socket is any thread's.
unsafe impl Send for Room<'_> {}

impl Room<'_> {
    /// Bytes that there is room for.
    pub fn len(&self) -> usize {
        self.memory.len
    }

    /// Whether all of it has been committed.
    pub fn is_empty(&self) -> bool {
        self.memory.len == 0
    }

    /// Whether its bytes are copied once more when they are sent.
    pub fn copies(&self) -> bool {
        !self.memory.is_on_ring()
    }

    /// The room, for code that fills room of whatever connection: also of the crate `zstack`'s.
    pub fn memory(&mut self) -> SpansMut<'_> {
        let [first, second] = self.spans();
        // SAFETY: the room's memory, which is this program's to write as long as it has the room.
        unsafe { SpansMut::new(first, second) }
    }

    /// Writes to it from byte `at` on, as many as there is room for. How many.
    pub fn write(&mut self, at: usize, bytes: &[u8]) -> usize {
        self.memory().write(at, bytes)
    }

    /// Copies from a view, from its byte `from` on, to byte `at` of the room: at most `n` bytes, as many as both have. How many.
    pub fn write_from(&mut self, at: usize, view: &View, from: usize, n: usize) -> usize {
        self.memory().write_from(at, view.memory(), from, n)
    }

    /// Where it is: one piece, or two.
    pub fn spans(&self) -> [(*mut u8, usize); 2] {
        self.memory.span.map(|v| (v.iov_base.cast(), v.iov_len))
    }

    /// The room itself.
    ///
    /// # Safety
    /// The peer, who can write there too, must not do so: it is trusted. What is read there before it is written is any bytes.
    pub unsafe fn as_mut_slices(&mut self) -> (&mut [u8], &mut [u8]) {
        // SAFETY: the caller's obligation.
        unsafe { self.memory().into_mut_slices() }
    }

    /// Sends the first `n` bytes. How many were sent: all, and what is left of the room is given back; or fewer, if a socket that does not
    /// wait, a timeout or a signal lets it take no more, and the rest is the room's now. After an error the room is as it was.
    pub fn commit(&mut self, n: usize) -> io::Result<usize> {
        self.commit_with(n, 0)
    }

    /// The same; never waits.
    pub fn try_commit(&mut self, n: usize) -> io::Result<usize> {
        self.commit_with(n, libc::MSG_DONTWAIT)
    }

    fn commit_with(&mut self, n: usize, flags: i32) -> io::Result<usize> {
        let (fd, flags) = (self.socket.as_raw_fd(), flags | libc::MSG_NOSIGNAL);
        match library() {
            Some(l) => l.commit(fd, &mut self.memory, n, flags),
            None => plain::commit(fd, &mut self.memory, n, flags),
        }
    }
}

impl Drop for Room<'_> {
    fn drop(&mut self) {
        if !self.memory.is_none() {
            let _ = self.commit_with(0, 0);
        }
    }
}

/// Looks at what was received and not read: waits until `min` bytes are there (0 is 1), and shows all that are there. None: the stream has ended.
///
/// Fewer come if the stream ends behind them, if the socket does not wait, or the wait is over by a timeout or a signal. Errors: those of
/// `recv`; EMSGSIZE if `min` is more than [`LOOK_MOST`].
///
/// On the kernel, bytes that stay unread while more is waited for can keep the room of a whole segment from the sender, which then
/// sends at its timer: there it is faster to read what has come of a message, and to keep it.
pub fn look<S: AsFd + ?Sized>(socket: &S, min: usize) -> io::Result<View<'_>> {
    look_with(socket.as_fd(), min, 0)
}

/// The same; never waits.
pub fn try_look<S: AsFd + ?Sized>(socket: &S, min: usize) -> io::Result<View<'_>> {
    look_with(socket.as_fd(), min, libc::MSG_DONTWAIT)
}

fn look_with(socket: BorrowedFd<'_>, min: usize, flags: i32) -> io::Result<View<'_>> {
    let memory = match library() {
        Some(l) => l.look(socket.as_raw_fd(), min, flags)?,
        None => plain::look(socket.as_raw_fd(), min, flags)?,
    };
    Ok(View { socket, memory, _not_shared: PhantomData })
}

/// Bytes that were received and not read. Dropped, they stay so.
#[derive(Debug)]
pub struct View<'a> {
    socket: BorrowedFd<'a>,
    memory: library::Spans,
    _not_shared: PhantomData<*mut u8>,
}

// SAFETY: as for a room.
unsafe impl Send for View<'_> {}

impl View<'_> {
    /// Bytes that are there.
    pub fn len(&self) -> usize {
        self.memory.len
    }

    /// Whether there are none: the stream has ended.
    pub fn is_empty(&self) -> bool {
        self.memory.len == 0
    }

    /// Whether it is a copy.
    pub fn copies(&self) -> bool {
        !self.memory.is_on_ring()
    }

    /// The bytes, for code that looks at those of whatever connection: also of the crate `zstack`'s.
    pub fn memory(&self) -> Spans<'_> {
        let [first, second] = self.spans();
        // SAFETY: the view's memory, which stays as long as the view does.
        unsafe { Spans::new(first, second) }
    }

    /// Copies from its byte `at` on, as many as there are and fit. How many.
    pub fn copy_to(&self, at: usize, bytes: &mut [u8]) -> usize {
        self.memory().copy_to(at, bytes)
    }

    /// Where it is: one piece, or two.
    pub fn spans(&self) -> [(*const u8, usize); 2] {
        self.memory.span.map(|v| (v.iov_base.cast_const().cast(), v.iov_len))
    }

    /// The bytes themselves.
    ///
    /// # Safety
    /// The peer, who can write there at any time, must not do so before this borrow is over: it is trusted.
    pub unsafe fn as_slices(&self) -> (&[u8], &[u8]) {
        // SAFETY: the caller's obligation.
        unsafe { self.memory().as_slices() }
    }

    /// Reads its first `n` bytes, at most all: the next look or `read` begins behind them.
    pub fn release(mut self, n: usize) -> io::Result<()> {
        let n = n.min(self.memory.len);
        self.end(n)
    }

    fn end(&mut self, n: usize) -> io::Result<()> {
        if self.memory.is_none() {
            return Ok(());
        }
        let fd = self.socket.as_raw_fd();
        match library() {
            Some(l) => l.release(fd, &mut self.memory, n),
            None => plain::release(fd, &mut self.memory, n),
        }
    }
}

impl Drop for View<'_> {
    fn drop(&mut self) {
        let _ = self.end(0);
    }
}
