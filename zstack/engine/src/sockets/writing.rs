//! The outgoing stream of a socket: bytes copied to its ring, filled in place, queued by reference, or sent on as they came.

use super::memory::Still;
use super::state::*;
use super::{Entry, Error, Socket, Sockets};
use crate::event::Cause;
use crate::payload::{Buffer, Pinned};

impl<B: Buffer> Sockets<B> {
    /// Copies as much as there is room for; tell the stack ([`Sockets::end`]) afterwards.
    ///
    /// # Errors
    /// [`Error::WouldBlock`], [`Error::Connecting`]: there is no room, or no connection, now. Others: there never will be.
    pub fn write(&mut self, socket: Socket, bytes: &[u8]) -> Result<usize, Error> {
        if bytes.is_empty() {
            return self.writable(socket).map(|_| 0);
        }
        let index = self.writable(socket)?;
        self.ring_to_send(index);
        if self.drains(&self.entries[index]) {
            return Err(Error::WouldBlock);
        }
        let entry = &mut self.entries[index];
        let n = entry.streams.as_mut().map_or(0, |s| s.outgoing.write(entry.end, bytes));
        entry.end += n as u64;
        if n < bytes.len() {
            entry.state |= STARVED;
        }
        self.copies.written += n as u64;
        if n == 0 { Err(Error::WouldBlock) } else { Ok(n) }
    }

    /// The ring's free bytes in one or two stretches, `most` at most, to be filled in place; [`Sockets::commit`] sends them.
    ///
    /// # Errors
    /// As of [`Sockets::write`].
    pub fn reserve(&mut self, socket: Socket, most: usize) -> Result<(&mut [u8], &mut [u8]), Error> {
        let index = self.writable(socket)?;
        self.ring_to_send(index);
        if self.drains(&self.entries[index]) {
            return Err(Error::WouldBlock);
        }
        let Entry { streams, state, .. } = &mut self.entries[index];
        let (first, second) = streams.as_mut().expect("just given").outgoing.free(most);
        if first.is_empty() && most > 0 {
            *state |= STARVED;
            return Err(Error::WouldBlock);
        }
        Ok((first, second))
    }

    /// The first `n` of the reserved bytes were filled, and follow in the stream. Tell the stack ([`Sockets::end`]) afterwards.
    ///
    /// # Errors
    /// As of [`Sockets::write`].
    ///
    /// # Panics
    /// If fewer are free.
    pub fn commit(&mut self, socket: Socket, n: usize) -> Result<(), Error> {
        let index = self.writable(socket)?;
        let entry = &mut self.entries[index];
        match &mut entry.streams {
            Some(streams) => streams.outgoing.commit(entry.end, n),
            None => assert!(n == 0, "nothing was reserved"),
        }
        entry.end += n as u64;
        self.copies.committed += n as u64;
        self.settle(index);
        Ok(())
    }

    /// Queues memory of somebody else: it is sent from where it is, and kept until it is released. Tell the stack ([`Sockets::end`]) afterwards.
    ///
    /// Two pieces of memory at most go into one segment. So that many tiny ones in a row do not make tiny segments, a piece of at most
    /// [`Config::small`] bytes is copied to the ring where it follows another such piece or bytes in the ring (and counted as
    /// [`Copies::written`]): a segment is full, or has more than that.
    ///
    /// A piece is taken whole or not at all: the memory is there already, and one entry stands for it however long it is. Who wants to
    /// queue less sends a [slice](Still::slice).
    ///
    /// # Errors
    /// The piece comes back, with the reason as of [`Sockets::write`]; [`Error::WouldBlock`]: so much is queued already
    /// ([`Config::references`]).
    pub fn send(&mut self, socket: Socket, piece: Still) -> Result<(), (Error, Still)> {
        let index = match self.writable(socket) {
            Ok(index) => index,
            Err(error) => return Err((error, piece)),
        };
        if piece.is_empty() {
            return Ok(());
        }
        let most = self.config.references;
        self.streams(index);
        let entry = &mut self.entries[index];
        let outgoing = &mut entry.streams.as_mut().expect("just given").outgoing;
        let queued = outgoing.referenced();
        if queued > 0 && queued + piece.len() as u64 > most {
            entry.state |= STARVED;
            return Err((Error::WouldBlock, piece));
        }
        let len = piece.len() as u64;
        let small = self.config.small.min(self.config.send_ring as usize);
        if piece.len() <= small && outgoing.joins(small) && piece.bytes().is_some() {
            self.ring_to_send(index);
            let entry = &mut self.entries[index];
            let outgoing = &mut entry.streams.as_mut().expect("just given").outgoing;
            if outgoing.used() + piece.len() <= outgoing.ring_len().unwrap_or(0)
                && let Some(bytes) = piece.bytes()
            {
                outgoing.write(entry.end, bytes);
                entry.end += len;
                self.copies.written += len;
                return Ok(());
            }
        }
        let entry = &mut self.entries[index];
        let outgoing = &mut entry.streams.as_mut().expect("just given").outgoing;
        self.copies.referenced += len;
        outgoing.push(entry.end, piece);
        entry.end += len;
        Ok(())
    }

    /// How many bytes may be queued by reference ([`Sockets::send`]), in pieces of any length, none of which is refused: so many that all which
    /// is not released yet would fit the ring; at least `least`. Who shares his memory with others asks, and sends no more.
    ///
    /// A piece whose first bytes are released counts as what is left of it: the next may follow while it is still on its way.
    ///
    /// # Errors
    /// As of [`Sockets::write`].
    pub fn lendable(&mut self, socket: Socket, least: usize) -> Result<usize, Error> {
        let index = self.writable(socket)?;
        self.ring_to_send(index);
        let (drains, references) = (self.drains(&self.entries[index]), self.config.references);
        let Entry { streams, state, end, released, .. } = &mut self.entries[index];
        let outgoing = &streams.as_ref().expect("just given").outgoing;
        let ring = outgoing.ring_len().unwrap_or(0) as u64;
        let room = ring.saturating_sub(*end - *released).min(references.saturating_sub(outgoing.referenced())) as usize;
        if drains || room < least {
            // Nobody may have been waiting for room in a ring that nothing is in.
            *state |= STARVED | LENDS;
            return Err(Error::WouldBlock);
        }
        Ok(room)
    }

    /// What was queued of memory that others may write is copied, and sent from there on. The memory comes back: packets that were sent before
    /// may point at it.
    pub fn take_over(&mut self, socket: Socket) -> Vec<Still> {
        let streams = self.entry_mut(socket).and_then(|entry| entry.streams.as_mut());
        let taken = streams.map_or_else(Vec::new, |streams| streams.outgoing.take_over());
        self.copies.written += taken.iter().map(|still| still.len() as u64).sum::<u64>();
        taken
    }

    /// Up to where the outgoing stream was released.
    pub fn released(&self, socket: Socket) -> u64 {
        self.entry(socket).map_or(0, |entry| entry.released)
    }

    /// Tells of the socket once when its outgoing stream is released up to `position`, which is not beyond its end.
    pub fn tell_released(&mut self, socket: Socket, position: u64) {
        let Some(entry) = self.entry_mut(socket) else { return };
        if entry.released >= position {
            return self.queue(socket.index as usize);
        }
        if let Some(streams) = &mut entry.streams {
            streams.outgoing.watched = position;
        }
    }

    /// Sends on, on `to`, the next bytes that have arrived on `from` (which may be the same socket), and consumes them; how many, 0: the
    /// stream has ended. A buffer that was kept goes on as it is, and back to its port when it is released; it counts in
    /// [`Config::references`]. What lies in the ring, or in a buffer that the port needs back, is copied. Tell the stack the new
    /// [edge](Sockets::take_edge) and [end](Sockets::end) afterwards.
    ///
    /// # Errors
    /// As of [`Sockets::read`] on `from`, then of [`Sockets::write`] on `to`.
    pub fn forward(&mut self, from: Socket, to: Socket) -> Result<usize, Error>
    where
        B: Pinned,
    {
        if self.peek(from)?.is_empty() {
            return Ok(0);
        }
        let (source, target) = (from.index as usize, self.writable(to)?);
        let (at, published) = (self.entries[source].consumed, self.entries[source].published);
        if self.streams(target).outgoing.referenced() >= self.config.references {
            self.entries[target].state |= STARVED;
            return Err(Error::WouldBlock);
        }
        let taken = self.streams(source).incoming.take(at, published);
        if taken.is_none() {
            self.ring_to_send(target);
        }
        // One socket may be both.
        let mut outgoing = std::mem::take(&mut self.streams(target).outgoing);
        let end = self.entries[target].end;
        let n = if let Some((buffer, range, cost)) = taken {
            let n = range.len();
            outgoing.forward(end, buffer, range, cost);
            self.copies.referenced += n as u64;
            n
        } else {
            let n = outgoing.write(end, self.streams(source).incoming.piece(at, published));
            self.copies.written += n as u64;
            n
        };
        self.streams(target).outgoing = outgoing;
        if n == 0 {
            self.entries[target].state |= STARVED;
            return Err(Error::WouldBlock);
        }
        self.entries[target].end += n as u64;
        self.consume(from, n)?;
        Ok(n)
    }

    /// The socket's index, if something could be written to it.
    fn writable(&self, socket: Socket) -> Result<usize, Error> {
        let entry = self.entry(socket).ok_or(Error::Stale)?;
        match entry.state {
            state if state & ENDED != 0 && entry.cause != Cause::Done => Err(Error::Ended(entry.cause)),
            state if state & (ENDED | SHUT) != 0 => Err(Error::Shut),
            state if state & ESTABLISHED == 0 => Err(Error::Connecting),
            _ => Ok(socket.index as usize),
        }
    }
}
