//! The incoming stream of a socket: copied out, or looked at in place and consumed.

use super::state::*;
use super::{Error, Socket, Sockets};
use crate::event::{Cause, ConnId};
use crate::payload::Buffer;

impl<B: Buffer> Sockets<B> {
    /// Copies bytes that have arrived; 0: the stream has ended, or `into` is empty. Tell the stack the new [edge](Sockets::take_edge) afterwards.
    ///
    /// # Errors
    /// [`Error::WouldBlock`]: there are none. [`Error::Ended`]: there are none, and the connection did not end in order.
    pub fn read(&mut self, socket: Socket, into: &mut [u8]) -> Result<usize, Error> {
        let mut n = 0;
        while n < into.len() {
            let piece = match self.peek(socket) {
                Ok(piece) if !piece.is_empty() => piece,
                other if n == 0 => return other.map(<[u8]>::len),
                _ => break,
            };
            let take = piece.len().min(into.len() - n);
            into[n..n + take].copy_from_slice(&piece[..take]);
            n += take;
            self.consume(socket, take)?;
        }
        self.copies.read += n as u64;
        Ok(n)
    }

    /// Bytes that have arrived, where they are: those that lie in one piece of memory (a buffer of the port's, or the ring up to its end).
    /// None: the stream has ended.
    ///
    /// # Errors
    /// As of [`Sockets::read`].
    pub fn peek(&self, socket: Socket) -> Result<&[u8], Error> {
        let entry = self.entry(socket).ok_or(Error::Stale)?;
        if entry.published > entry.consumed {
            let streams = entry.streams.as_ref().expect("there are bytes");
            return Ok(streams.incoming.piece(entry.consumed, entry.published));
        }
        match entry.state {
            state if state & PEER_CLOSED != 0 => Ok(&[]),
            state if state & ENDED != 0 && entry.cause == Cause::Done => Ok(&[]),
            state if state & ENDED != 0 => Err(Error::Ended(entry.cause)),
            state if state & ESTABLISHED == 0 => Err(Error::Connecting),
            _ => Err(Error::WouldBlock),
        }
    }

    /// All bytes that have arrived, where they are: a slice for every piece of memory.
    pub fn pieces(&self, socket: Socket) -> impl Iterator<Item = &[u8]> {
        let entry = self.entry(socket);
        let (mut at, end) = entry.map_or((0, 0), |e| (e.consumed, e.published));
        let incoming = entry.and_then(|e| e.streams.as_ref()).map(|s| &s.incoming);
        std::iter::from_fn(move || {
            let piece = incoming?.piece(at, end);
            at += piece.len() as u64;
            if piece.is_empty() { None } else { Some(piece) }
        })
    }

    /// The first `n` bytes that can be read are done with: their memory may be used again. Tell the stack the new
    /// [edge](Sockets::take_edge) afterwards.
    ///
    /// # Errors
    /// [`Error::Stale`].
    ///
    /// # Panics
    /// If fewer can be read.
    pub fn consume(&mut self, socket: Socket, n: usize) -> Result<(), Error> {
        let entry = self.entry_mut(socket).ok_or(Error::Stale)?;
        assert!(n as u64 <= entry.published - entry.consumed, "more was consumed than has arrived");
        entry.consumed += n as u64;
        if let Some(streams) = &mut entry.streams {
            streams.incoming.consume(entry.consumed);
        }
        self.settle(socket.index as usize);
        Ok(())
    }

    /// The edge of the window, if it has moved by so much that the stack should know: by an eighth of the ring. The rest is told later, and leaves the
    /// window larger than seven eighths when all was read.
    pub fn take_edge(&mut self, socket: Socket) -> Option<(ConnId, u64)> {
        let room = self.room();
        let entry = self.entry_mut(socket)?;
        let edge = entry.consumed + room;
        if entry.state & (ENDED | PEER_CLOSED) != 0 || edge - entry.edge < room / 8 {
            return None;
        }
        entry.edge = edge;
        Some((entry.conn, edge))
    }
}
