//! A ready-made [`Host`](crate::payload::Host): a socket for each connection, with rings, buffers that are sent by reference, and received buffers that are kept.
//!
//! **Out.** [`Sockets::write`] copies into a ring of the socket's own; [`Sockets::reserve`] and [`Sockets::commit`] let the
//! caller fill that ring in place; [`Sockets::send`] queues memory of somebody else ([`Still`]), which is kept until the engine
//! has released it. They mix in any order on one connection.
//!
//! **In.** What arrives is either copied once into a ring, which is the reassembly buffer too (bytes ahead of a gap go to their
//! place at once), or, if the socket [keeps](Receive::Keep) buffers, kept in the port's own memory. A buffer is copied
//! all the same where keeping would cost the port more than it saves: payload of at most [`Config::small`] bytes, bytes that
//! arrive out of order, a connection over its [`Config::quota`], and a port that runs [out of buffers](Buffer::scarce); then
//! all that the connection keeps is copied and given back too. [`Sockets::read`] copies out of both, [`Sockets::peek`] and [`Sockets::consume`] copy nothing.
//!
//! **Readiness** is told once per change ([`Sockets::next_ready`]), with the state as it is when it is told: a socket is
//! queued when bytes can be read that could not before, when a write that found too little room may go on, and when a
//! direction or the connection ends. The queue allocates nothing: it holds each socket at most once.
//!
//! **By.** What a bridge ([`stack::Config::bridge`](crate::stack::Config::bridge)) has no use for waits for [`Sockets::next_passed`].
//!
//! **Memory.** Rings are taken on first use from spare ones, and given back when nothing is in them. An idle socket costs its
//! entry here (80 bytes, and 8 in tables) beside what the stack needs. All rings together may have a bound ([`Config::memory`]). Then a
//! connection begins with a small window ([`Config::assured`]), which grows while its peer fills it and there is memory
//! ([`Budget`]): what was promised to a peer is counted, used or not, and so no segment of a peer's that keeps to its window is ever
//! refused. The ring for what is sent is small if there is no memory for a large one when it is taken; once it was full it
//! drains, and is taken anew if there is.

mod budget;
mod error;
mod host;
mod incoming;
#[allow(unsafe_code)]
mod memory;
mod outgoing;
mod passing;
mod reading;
#[cfg(test)]
mod tests;
mod writing;

pub use budget::Budget;
pub use error::{Error, errno, text};
pub use memory::{Stable, Still};

use crate::event::{Cause, ConnId, ListenerId};
use crate::payload::Buffer;
use incoming::Incoming;
use memory::Block;
use outgoing::Outgoing;
use passing::Passing;
pub use passing::{Takes, Taking};
use std::collections::{HashMap, VecDeque};

/// What the sockets may take.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Config {
    /// Bytes of the ring that writes are copied to; a power of two.
    pub send_ring: u32,
    /// Bytes that a connection may receive ahead of its reader: the largest window, and the size of the receive ring; a power
    /// of two.
    pub receive_ring: u32,
    /// Bytes that a connection may queue by reference and not have released yet. One piece is always taken.
    pub references: u64,
    /// Bytes of the port's pool that a connection may keep.
    pub quota: usize,
    /// What a kept buffer counts at least in the quota: the size of the port's buffers, in bytes.
    pub buffer: usize,
    /// Payload of at most so many bytes is copied, not kept; so are pieces to be sent, behind another such piece or bytes in the ring.
    pub small: usize,
    /// Rings of either kind that are kept for the next socket that needs one, beside what [`Config::memory`] counts.
    pub spare: usize,
    /// Bytes of all rings and of all windows that peers were told of, at most.
    pub memory: u64,
    /// Bytes that each connection may receive, and send, in any case: a power of two. With this or more for rings, they never grow.
    pub assured: u32,
    /// Connections of a listener that may wait to be accepted; beyond them SYNs are dropped ([`Host::admits`]). Those that are half
    /// open by then may still come. Each may fill its receive ring meanwhile.
    pub waiting: usize,
    /// Packets that a bridge has passed on ([`Sockets::next_passed`]) and nobody has taken yet, at most; more are dropped.
    pub passed: usize,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            send_ring: 256 << 10,
            receive_ring: 256 << 10,
            references: 1 << 20,
            quota: 512 << 10,
            buffer: 2048,
            small: 256,
            spare: 64,
            memory: u64::MAX,
            assured: 1 << 30,
            waiting: 1024,
            passed: 512,
        }
    }
}

/// A configuration that cannot be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ConfigError {
    what: &'static str,
    value: u32,
}

impl std::fmt::Display for ConfigError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} of {} bytes: give a power of two from 4096 to {} bytes", self.what, self.value, 1u32 << 30)
    }
}

impl std::error::Error for ConfigError {}

/// A socket's name. The generation tells it from others that had its index before.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Socket {
    /// Dense: small numbers are used again. Fit for an index into a table of the caller's.
    pub index: u32,
    /// How many sockets had the index before.
    pub generation: u32,
}

/// What happens to the buffers that a connection receives.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Receive {
    /// Their payload is copied to the ring at once.
    #[default]
    Copy,
    /// They are kept until they were read, where that is wise (see the [module](self)).
    Keep,
}

/// What a socket is ready for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Ready {
    /// A read would not block: there are bytes, or the stream's end, or an error.
    pub readable: bool,
    /// A write would not block: there is room, or an error.
    pub writable: bool,
    /// The peer sends no more.
    pub peer_closed: bool,
    /// The connection has ended: nothing comes or goes any more. Bytes that had arrived can still be read.
    pub hang_up: bool,
    /// Why it ended, if not in order.
    pub error: Option<Cause>,
}

/// Payload bytes, by what was done with them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct Copies {
    /// Copied from the caller to a ring ([`Sockets::write`]).
    pub written: u64,
    /// Filled in place ([`Sockets::commit`]): not copied here.
    pub committed: u64,
    /// Queued by reference: not copied.
    pub referenced: u64,
    /// Copied from the port's buffers to a ring.
    pub received: u64,
    /// Kept in the port's buffers: not copied.
    pub kept: u64,
    /// Copied from kept buffers to a ring after all, because the port ran short.
    pub spilled: u64,
    /// Copied to the caller ([`Sockets::read`]).
    pub read: u64,
}

impl Copies {
    /// Bytes that were copied, whatever for.
    pub fn copied(&self) -> u64 {
        self.written + self.received + self.spilled + self.read
    }
}

/// What has happened to a socket; bits of [`Entry::state`].
mod state {
    /// The handshake is complete.
    pub const ESTABLISHED: u16 = 1;
    /// The peer sends no more.
    pub const PEER_CLOSED: u16 = 2;
    /// The stack said that it ended.
    pub const ENDED: u16 = 4;
    /// The stack gave the connection's name up.
    pub const FREE: u16 = 8;
    /// The caller sends no more.
    pub const SHUT: u16 = 16;
    /// The caller has closed it.
    pub const CLOSED: u16 = 32;
    /// It is in the queue of ready sockets.
    pub const QUEUED: u16 = 64;
    /// A write found too little room.
    pub const STARVED: u16 = 128;
    /// Buffers are kept.
    pub const KEEP: u16 = 256;
    /// It waits to be accepted.
    pub const WAITING: u16 = 512;
    /// What found too little room was to be lent: what is not released counts, wherever it lies.
    pub const LENDS: u16 = 1024;
}
use state::*;

const NONE: u32 = u32::MAX;

/// What is needed only while bytes are here.
#[derive(Debug)]
struct Streams<B> {
    outgoing: Outgoing<B>,
    incoming: Incoming<B>,
}

/// A socket.
#[derive(Debug)]
struct Entry<B> {
    generation: u32,
    state: u16,
    cause: Cause,
    conn: ConnId,
    /// Of the outgoing stream: behind the last byte that was written.
    end: u64,
    /// Everything below may be used again.
    released: u64,
    /// Of the incoming stream: everything below can be read.
    published: u64,
    /// Everything below was read.
    consumed: u64,
    /// The edge that the stack was told.
    edge: u64,
    /// What was consumed when the window grew last, or when the caller began to answer.
    since: u64,
    /// How far the incoming stream may be ahead of what was consumed.
    room: u32,
    /// Whose memory it takes.
    account: u32,
    streams: Option<Box<Streams<B>>>,
}

/// The sockets of a stack. Used by one thread; no call blocks.
#[derive(Debug)]
pub struct Sockets<B> {
    config: Config,
    entries: Vec<Entry<B>>,
    unused: Vec<u32>,
    /// By the index of a connection: its socket.
    by_connection: Vec<u32>,
    ready: VecDeque<u32>,
    waiting: HashMap<ListenerId, VecDeque<u32>>,
    /// Boxes, and rings, for whoever needs one next.
    #[expect(clippy::vec_box, reason = "the boxes are what is spared")]
    spare: Vec<Box<Streams<B>>>,
    send_rings: Vec<Block>,
    receive_rings: Vec<Block>,
    budget: Budget,
    copies: Copies,
    /// What `listen` said of the buffers of its connections.
    receive: HashMap<ListenerId, Receive>,
    passing: Passing<B>,
}

impl<B: Buffer> Sockets<B> {
    /// No sockets yet.
    ///
    /// # Errors
    /// A ring's size is no power of two, or less than a page or more than 1 GiB.
    pub fn new(config: Config) -> Result<Sockets<B>, ConfigError> {
        let rings = [("a send ring", config.send_ring), ("a receive ring", config.receive_ring)];
        for (what, value) in rings.into_iter().chain([("what is assured", config.assured)]) {
            if !value.is_power_of_two() || !(4096..=1 << 30).contains(&value) {
                return Err(ConfigError { what, value });
            }
        }
        let assured = [config.send_ring, config.receive_ring].map(|ring| u64::from(ring.min(config.assured)));
        Ok(Sockets {
            config,
            budget: Budget::new(config.memory, assured.iter().sum()),
            entries: Vec::new(),
            unused: Vec::new(),
            by_connection: Vec::new(),
            ready: VecDeque::new(),
            waiting: HashMap::new(),
            spare: Vec::new(),
            send_rings: Vec::new(),
            receive_rings: Vec::new(),
            copies: Copies::default(),
            receive: HashMap::new(),
            passing: Passing::default(),
        })
    }

    /// The room that a connection begins with: what `Listen::room` and `Connect::room` should say. It may grow to
    /// [`Config::receive_ring`], which [`Options::window`](crate::tcp::Options::window) should say.
    pub fn room(&self) -> u64 {
        self.least(self.config.receive_ring).into()
    }

    /// What rings have taken.
    pub fn budget(&self) -> &Budget {
        &self.budget
    }

    /// Whose memory the socket takes from now on; at its beginning it is account 0.
    pub fn set_account(&mut self, socket: Socket, account: u32) {
        let Some(entry) = self.entry(socket) else { return };
        let (taken, before) = (self.taken(entry), entry.account);
        let place = self.budget.place(account);
        self.budget.give(before, taken);
        self.budget.charge(place, taken);
        self.entries[socket.index as usize].account = place;
    }

    /// Of such a ring: what a connection is sure of.
    fn least(&self, ring: u32) -> u32 {
        ring.min(self.config.assured)
    }

    /// What a socket counts.
    fn taken(&self, entry: &Entry<B>) -> u64 {
        let small = u64::from(self.least(self.config.send_ring));
        let ring = entry.streams.as_ref().and_then(|s| s.outgoing.ring_len()).map_or(small, |len| len as u64);
        ring + u64::from(entry.room)
    }

    /// Payload bytes copied and not copied, since the beginning.
    pub fn copies(&self) -> Copies {
        self.copies
    }

    /// What happens to the buffers of the connections that a listener accepts from now on.
    pub fn set_listener_receive(&mut self, listener: ListenerId, receive: Receive) {
        self.receive.insert(listener, receive);
    }

    /// A socket for a connection that the caller has opened.
    pub fn open(&mut self, conn: ConnId, receive: Receive) -> Socket {
        let index = self.unused.pop().unwrap_or_else(|| {
            self.entries.push(Entry {
                generation: 0,
                state: 0,
                cause: Cause::Done,
                conn,
                end: 0,
                released: 0,
                published: 0,
                consumed: 0,
                edge: 0,
                since: 0,
                room: 0,
                account: 0,
                streams: None,
            });
            self.entries.len() as u32 - 1
        });
        let room = self.least(self.config.receive_ring);
        self.budget.charge(0, u64::from(self.least(self.config.send_ring)) + u64::from(room));
        let entry = &mut self.entries[index as usize];
        debug_assert!(entry.streams.is_none());
        *entry = Entry {
            generation: entry.generation,
            // The one who had the index before may be in the queue still.
            state: entry.state & QUEUED | if receive == Receive::Keep { KEEP } else { 0 },
            cause: Cause::Done,
            conn,
            end: 0,
            released: 0,
            published: 0,
            consumed: 0,
            edge: room.into(),
            since: 0,
            room,
            account: 0,
            streams: None,
        };
        let place = conn.index as usize;
        if self.by_connection.len() <= place {
            self.by_connection.resize(place + 1, NONE);
        }
        self.by_connection[place] = index;
        Socket { index, generation: entry.generation }
    }

    /// The next connection that came to `listener`.
    pub fn accept(&mut self, listener: ListenerId) -> Option<Socket> {
        let waiting = self.waiting.get_mut(&listener)?;
        let index = waiting.pop_front()?;
        let entry = &mut self.entries[index as usize];
        entry.state &= !WAITING;
        let socket = Socket { index, generation: entry.generation };
        // What came before the caller knew of the socket is told now.
        if entry.state & QUEUED == 0 && (entry.published > entry.consumed || entry.state & (PEER_CLOSED | ENDED) != 0) {
            entry.state |= QUEUED;
            self.ready.push_back(index);
        }
        Some(socket)
    }

    /// Sockets that came to `listener` and wait to be accepted.
    pub fn waiting(&self, listener: ListenerId) -> usize {
        self.waiting.get(&listener).map_or(0, VecDeque::len)
    }

    /// The sockets that wait for nobody any more, because their listener is gone: the caller closes them.
    pub fn forget_listener(&mut self, listener: ListenerId) -> Vec<Socket> {
        self.receive.remove(&listener);
        let waiting = self.waiting.remove(&listener).unwrap_or_default();
        let named = waiting.into_iter().map(|index| {
            let entry = &mut self.entries[index as usize];
            entry.state &= !WAITING;
            Socket { index, generation: entry.generation }
        });
        named.collect()
    }

    /// The connection of a socket; `None` if the stack has given it up, or there is no such socket.
    pub fn connection(&self, socket: Socket) -> Option<ConnId> {
        self.entry(socket).filter(|e| e.state & FREE == 0).map(|e| e.conn)
    }

    /// The socket of a connection, if the caller has not closed it.
    pub fn socket(&self, conn: ConnId) -> Option<Socket> {
        let index = *self.by_connection.get(conn.index as usize)?;
        let entry = self.entries.get(index as usize)?;
        (entry.conn == conn && entry.state & CLOSED == 0).then_some(Socket { index, generation: entry.generation })
    }

    /// The next socket of which something has changed, and what it is ready for now.
    pub fn next_ready(&mut self) -> Option<(Socket, Ready)> {
        while let Some(index) = self.ready.pop_front() {
            let entry = &mut self.entries[index as usize];
            entry.state &= !QUEUED;
            if entry.state & (CLOSED | WAITING) != 0 {
                continue;
            }
            let socket = Socket { index, generation: entry.generation };
            return Some((socket, self.ready(socket)));
        }
        None
    }

    /// Tells of the socket once more, though nothing may have changed: for a caller who wants to serve others first.
    pub fn again(&mut self, socket: Socket) {
        if self.entry(socket).is_some() {
            self.queue(socket.index as usize);
        }
    }

    /// What a socket is ready for.
    pub fn ready(&self, socket: Socket) -> Ready {
        let Some(entry) = self.entry(socket) else {
            return Ready { readable: true, writable: true, peer_closed: true, hang_up: true, error: None };
        };
        let ended = entry.state & ENDED != 0;
        let peer_closed = ended || entry.state & PEER_CLOSED != 0;
        Ready {
            readable: peer_closed || entry.published > entry.consumed,
            writable: ended || entry.state & SHUT != 0 || (entry.state & ESTABLISHED != 0 && self.has_room(entry)),
            peer_closed,
            hang_up: ended,
            error: if ended && entry.cause != Cause::Done { Some(entry.cause) } else { None },
        }
    }

    /// Whether the handshake was completed.
    pub fn established(&self, socket: Socket) -> bool {
        self.entry(socket).is_some_and(|e| e.state & ESTABLISHED != 0)
    }

    /// Bytes that can be read.
    pub fn unread(&self, socket: Socket) -> u64 {
        self.entry(socket).map_or(0, |e| e.published - e.consumed)
    }

    /// Bytes that were written and that the engine has not released: the peer has not acknowledged them, or a port may read them.
    pub fn unreleased(&self, socket: Socket) -> u64 {
        self.entry(socket).map_or(0, |e| e.end - e.released)
    }

    /// Bytes of the port's buffers that the socket keeps.
    pub fn pinned(&self, socket: Socket) -> usize {
        self.entry(socket).and_then(|e| e.streams.as_ref()).map_or(0, |s| s.incoming.pinned())
    }

    /// Whether buffers are kept from now on; what is kept already stays so.
    pub fn set_receive(&mut self, socket: Socket, receive: Receive) {
        if let Some(entry) = self.entry_mut(socket) {
            entry.state = entry.state & !KEEP | if receive == Receive::Keep { KEEP } else { 0 };
        }
    }

    /// The connection, and the end of what was written to it: what [`crate::stack::Stack`]'s `commit` is to be told.
    pub fn end(&self, socket: Socket) -> Option<(ConnId, u64)> {
        self.entry(socket).filter(|e| e.state & FREE == 0).map(|e| (e.conn, e.end))
    }

    /// Nothing can be written any more; tell the stack.
    pub fn shut(&mut self, socket: Socket) {
        if let Some(entry) = self.entry_mut(socket) {
            entry.state |= SHUT;
        }
    }

    /// Gives the name up. Returns whether bytes were unread: then the peer should learn by a reset that they reached nobody
    /// (RFC 2525, section 2.17). What was written stays until the stack has sent it.
    pub fn close(&mut self, socket: Socket) -> bool {
        let Some(entry) = self.entry_mut(socket) else { return false };
        let unread = entry.published > entry.consumed;
        entry.state |= CLOSED | SHUT;
        entry.consumed = entry.published;
        if let Some(streams) = &mut entry.streams {
            streams.incoming.clear();
        }
        entry.generation = entry.generation.wrapping_add(1);
        self.settle(socket.index as usize);
        // Nothing is received any more.
        let least = self.least(self.config.receive_ring);
        let entry = &mut self.entries[socket.index as usize];
        let (room, account) = (std::mem::replace(&mut entry.room, least), entry.account);
        self.budget.give(account, (room - least).into());
        self.retire(socket.index as usize);
        unread
    }

    fn entry(&self, socket: Socket) -> Option<&Entry<B>> {
        self.entries.get(socket.index as usize).filter(|e| e.generation == socket.generation && e.state & CLOSED == 0)
    }

    fn entry_mut(&mut self, socket: Socket) -> Option<&mut Entry<B>> {
        let entry = self.entries.get_mut(socket.index as usize)?;
        (entry.generation == socket.generation && entry.state & CLOSED == 0).then_some(entry)
    }

    /// The index of the socket of a connection, closed or not.
    fn index(&self, conn: ConnId) -> Option<usize> {
        let index = *self.by_connection.get(conn.index as usize)?;
        self.entries.get(index as usize).filter(|e| e.conn == conn && e.state & FREE == 0).map(|_| index as usize)
    }

    fn has_room(&self, entry: &Entry<B>) -> bool {
        entry.streams.as_ref().is_none_or(|s| {
            let ring = s.outgoing.ring_len().unwrap_or(self.config.send_ring as usize);
            s.outgoing.used() < ring && s.outgoing.referenced() < self.config.references && !self.drains(entry)
        })
    }

    fn queue(&mut self, index: usize) {
        let entry = &mut self.entries[index];
        if entry.state & (QUEUED | CLOSED) == 0 {
            entry.state |= QUEUED;
            self.ready.push_back(index as u32);
        }
    }

    /// Sees to it that the socket has streams.
    fn streams(&mut self, index: usize) -> &mut Streams<B> {
        let spare = &mut self.spare;
        self.entries[index].streams.get_or_insert_with(|| {
            let fresh = || Box::new(Streams { outgoing: Outgoing::default(), incoming: Incoming::new() });
            spare.pop().unwrap_or_else(fresh)
        })
    }

    /// Sees to it that there is a ring for what is sent: a small one if there is no memory for another.
    fn ring_to_send(&mut self, index: usize) {
        if self.streams(index).outgoing.has_ring() {
            return;
        }
        let entry = &mut self.entries[index];
        // What comes from now on is not what made the caller write this.
        entry.since = entry.consumed;
        let account = entry.account;
        let (whole, small) = (self.config.send_ring, self.least(self.config.send_ring));
        let granted = whole == small || self.budget.take(account, (whole - small).into());
        let ring = spare_or_new(&mut self.send_rings, if granted { whole } else { small });
        self.streams(index).outgoing.give_ring(ring);
    }

    /// Whether a small ring was full, and has to drain before it is written to again: then there may be memory for a large one.
    fn drains(&self, entry: &Entry<B>) -> bool {
        let ring = entry.streams.as_ref().and_then(|s| s.outgoing.ring_len());
        entry.state & STARVED != 0 && ring.is_some_and(|len| len < self.config.send_ring as usize)
    }

    fn ring_to_receive(&mut self, index: usize) {
        if !self.streams(index).incoming.has_ring() {
            let (room, consumed) = (self.entries[index].room, self.entries[index].consumed);
            let ring = spare_or_new(&mut self.receive_rings, room);
            self.streams(index).incoming.give_ring(ring, consumed);
        }
    }

    /// More may be received ahead of the reader, if there is memory: as much as was promised was filled by half without an answer.
    fn widen(&mut self, index: usize) {
        let Entry { room, account, consumed, .. } = self.entries[index];
        if !self.budget.take(account, room.into()) {
            return;
        }
        let entry = &mut self.entries[index];
        (entry.room, entry.since) = (2 * room, consumed);
        if let Some(streams) = &mut entry.streams
            && streams.incoming.has_ring()
        {
            let old = streams.incoming.enlarge(spare_or_new(&mut self.receive_rings, 2 * room), consumed);
            put_back(&mut self.receive_rings, old, &self.config, self.config.receive_ring);
        }
    }

    /// Gives back what the socket does not need now.
    fn settle(&mut self, index: usize) {
        let (most, small) = (self.config.spare, self.least(self.config.send_ring));
        let entry = &mut self.entries[index];
        let Some(streams) = &mut entry.streams else { return };
        let (sent, received) = (streams.outgoing.is_empty(), streams.incoming.is_empty(entry.consumed));
        if sent && let Some(ring) = streams.outgoing.take_idle_ring() {
            self.budget.give(entry.account, ring.len() as u64 - u64::from(small));
            put_back(&mut self.send_rings, ring, &self.config, self.config.send_ring);
        }
        if received && let Some(ring) = streams.incoming.take_idle_ring(entry.consumed) {
            put_back(&mut self.receive_rings, ring, &self.config, self.config.receive_ring);
        }
        if sent
            && received
            && let Some(mut streams) = entry.streams.take()
            && self.spare.len() < most
        {
            streams.incoming.clear();
            self.spare.push(streams);
        }
    }

    /// Makes the index of a socket that the caller and the stack have both given up free for others.
    fn retire(&mut self, index: usize) {
        let entry = &mut self.entries[index];
        if entry.state & (CLOSED | FREE) != CLOSED | FREE {
            return;
        }
        if let Some(mut streams) = entry.streams.take() {
            streams.outgoing.clear();
            streams.incoming.clear();
            entry.streams = Some(streams);
            self.settle(index);
        }
        let (taken, account) = (self.taken(&self.entries[index]), self.entries[index].account);
        self.budget.give(account, taken);
        let entry = &mut self.entries[index];
        // It stays in the queue if it is there; whoever has the index then is told of once more than needed.
        entry.state = CLOSED | FREE | entry.state & QUEUED;
        self.unused.push(index as u32);
    }
}

/// A ring of this size.
fn spare_or_new(spare: &mut Vec<Block>, len: u32) -> Block {
    let fits = spare.iter().rposition(|ring| ring.len() == len as usize);
    fits.map_or_else(|| Block::new(len as usize), |at| spare.swap_remove(at))
}

/// A ring is kept for the next socket, if it is of one of the sizes that are taken most: the smallest or the largest, `whole`.
fn put_back(spare: &mut Vec<Block>, ring: Block, config: &Config, whole: u32) {
    let common = [whole, whole.min(config.assured)].contains(&(ring.len() as u32));
    if common && spare.len() < config.spare {
        spare.push(ring);
    }
}
