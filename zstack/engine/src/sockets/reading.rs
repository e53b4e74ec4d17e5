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
        let entry = &self.entries[socket.index as usize];
        if entry.room < self.config.receive_ring && entry.consumed - entry.since >= u64::from(entry.room / 2) {
            self.widen(socket.index as usize);
        }
        Ok(())
    }

    /// The edge of the window, if it has moved by so much that the stack should know: by an eighth of the ring. The rest is told later, and leaves the
    /// window larger than seven eighths when all was read.
    pub fn take_edge(&mut self, socket: Socket) -> Option<(ConnId, u64)> {
        let least = self.least(self.config.receive_ring);
        let entry = self.entry(socket)?;
        let mut wanted = entry.room;
        if wanted > least && self.budget.is_tight(entry.account) {
            // What was promised stays promised: the window becomes smaller as the peer uses it up.
            wanted /= 2;
            let has_ring = entry.streams.as_ref().is_some_and(|s| s.incoming.has_ring());
            if entry.edge - entry.consumed <= wanted.into() && !has_ring {
                let (account, index) = (entry.account, socket.index as usize);
                self.entries[index].room = wanted;
                self.budget.give(account, wanted.into());
            }
        }
        let entry = &mut self.entries[socket.index as usize];
        let edge = entry.consumed + u64::from(wanted);
        if entry.state & (ENDED | PEER_CLOSED) != 0 || edge < entry.edge + u64::from(wanted / 8) {
            return None;
        }
        entry.edge = edge;
        Some((entry.conn, edge))
    }
}
