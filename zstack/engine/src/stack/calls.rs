//! What a host wants of its stack: listeners, connections, and what is to become of them. None of these calls the host or the
//! port: the next turn does what follows.

use super::entry::{Waits, look_up};
use super::names::{NAMED, TOLD};
use super::{Adopt, AdoptError, ConnId, Connect, ConnectError, Listen, ListenError, ListenerId, Stack};
use crate::counters::Counter;
use crate::payload::Buffer;
use crate::port::Refused;
use crate::tcp::recovery::{Flight, Spare};
use crate::tcp::{Assembler, Context, Event, Options, Phase, Sent, Tcb};
use crate::time::Time;
use crate::tuple::{Tuple, map};
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use zstack_wire::tcp::Header;

impl Stack {
    /// Takes connections that peers open.
    ///
    /// # Errors
    /// The address is not ours, or another listener has the same address and port.
    pub fn listen(&mut self, wanted: Listen) -> Result<ListenerId, ListenError> {
        if let Some(address) = wanted.address
            && !self.core.net.is_ours(address)
        {
            return Err(ListenError::NotOurs(address));
        }
        self.core.listeners.add(wanted)
    }

    /// No more connections come to a listener. Those that the host knows of stay. Those that are half open end as Linux's do
    /// (inet_csk_listen_stop): without a word when their SYN-ACK would be sent again, with RST if the peer's ACK comes before.
    pub fn unlisten(&mut self, listener: ListenerId) {
        self.core.listeners.remove(listener);
    }

    /// Opens a connection: `Event::Established` or `Event::Ended` will tell what came of it.
    ///
    /// # Errors
    /// There is no way to the peer, no port, or no room for a connection.
    pub fn connect(&mut self, now: Time, wanted: Connect) -> Result<ConnId, ConnectError> {
        let Connect { local, local_port, remote, options, room } = wanted;
        if self.core.gone {
            return Err(ConnectError::PortGone);
        }
        if !is_peer(remote) {
            return Err(ConnectError::Remote(remote));
        }
        // Nothing that we send comes back to us.
        let route = self.core.net.source(remote.ip()).ok_or(ConnectError::NoRoute(remote.ip()));
        let local = match local {
            Some(ip) if ip.is_ipv4() != remote.is_ipv4() => return Err(ConnectError::Family(ip, remote.ip())),
            Some(ip) if !self.core.net.is_ours(ip) => return Err(ConnectError::NotOurs(ip)),
            Some(ip) => ip,
            None => route?,
        };
        self.admits(local, remote)?;
        // Whoever names the port of a connection that a bridge splits has it from a kernel that took it for free; to refuse it would leave
        // a program waiting.
        let stamped = !self.core.bridge;
        let tuple =
            |port| Tuple { local: map(local), remote: map(remote.ip()), local_port: port, remote_port: remote.port() };
        let tuple = match local_port {
            Some(0) | None => {
                let range = (self.core.limits.first_port, self.core.limits.last_port);
                let Stack { secrets, table, conns, waiting, key, .. } = self;
                let free = |port| {
                    let tuple = tuple(port);
                    look_up(conns, table, key, &tuple).is_none() && waiting.get(now, &tuple).is_none()
                };
                let free = secrets.ephemeral(&tuple(0), range, free);
                // Only when no port is left one is taken from TIME-WAIT: some peer may not keep to the rule that makes it safe.
                let over = |port| {
                    let tuple = tuple(port);
                    waiting.behind(now, &tuple, true).is_some() && look_up(conns, table, key, &tuple).is_none()
                };
                let port = free.or_else(|| secrets.ephemeral(&tuple(0), range, over));
                tuple(port.ok_or(ConnectError::NoPort(remote))?)
            }
            Some(port) if self.waiting.behind(now, &tuple(port), stamped).is_some() => tuple(port),
            Some(port) => self.free(now, tuple(port))?,
        };
        let mut iss = self.secrets.isn(now, &tuple);
        if let Some(behind) = self.waiting.behind(now, &tuple, stamped) {
            self.waiting.remove(&tuple);
            self.core.counters.count(Counter::TimeWaitReused);
            iss = iss.later(behind);
        }
        let start = self.start(now, &tuple, iss, room);
        let tcb = Tcb::open(now, &options.unwrap_or(self.core.options), &start);
        self.core.counters.count(Counter::Opened);
        let index = self.add(now, tcb, &tuple, 0, TOLD);
        Ok(self.name(index))
    }

    /// Whether one more connection can be, between an address of ours and this peer.
    fn admits(&self, local: IpAddr, remote: SocketAddr) -> Result<(), ConnectError> {
        if !is_peer(remote) || local == remote.ip() {
            return Err(ConnectError::Remote(remote));
        }
        // What comes from the peer is not asked again whether it may come from there.
        if !self.core.net.reaches(remote.ip()) {
            return Err(ConnectError::NoRoute(remote.ip()));
        }
        let limit = self.core.limits.connections;
        if self.conns.len() >= limit { Err(ConnectError::Full(limit)) } else { Ok(()) }
    }

    /// The tuple, if no connection has it.
    fn free(&mut self, now: Time, tuple: Tuple) -> Result<Tuple, ConnectError> {
        let taken = look_up(&self.conns, &self.table, &self.key, &tuple).is_some();
        if taken || self.waiting.get(now, &tuple).is_some() {
            return Err(ConnectError::InUse(tuple.local(), tuple.remote()));
        }
        Ok(tuple)
    }

    fn name(&self, index: u32) -> ConnId {
        ConnId { index, generation: self.conns.generation(index).unwrap_or(0) }
    }

    /// Goes on with a connection that somebody else began. `Event::Established` is not told for it.
    ///
    /// # Errors
    /// The numbers contradict each other, the tuple is taken, or there is no room for a connection.
    pub fn adopt(&mut self, now: Time, wanted: Adopt) -> Result<ConnId, AdoptError> {
        let Adopt { local, remote, options, state } = wanted;
        if self.core.gone {
            return Err(ConnectError::PortGone.into());
        }
        if local.is_ipv4() != remote.is_ipv4() {
            return Err(ConnectError::Family(local.ip(), remote.ip()).into());
        }
        if local.port() == 0 {
            return Err(ConnectError::PortZero.into());
        }
        if !self.core.net.is_ours(local.ip()) {
            return Err(ConnectError::NotOurs(local.ip()).into());
        }
        self.admits(local.ip(), remote)?;
        let tuple = self.free(now, Tuple::new(local, remote))?;
        let start = self.start(now, &tuple, state.una, 0);
        let mut cx = Adopting { now, core: &mut self.core };
        let options = options.unwrap_or(cx.core.options);
        let tcb = Tcb::adopt(&mut cx, &options, start.mss, &state).map_err(AdoptError::State)?;
        let index = self.add(now, tcb, &tuple, 0, TOLD);
        Ok(self.name(index))
    }

    /// Gives a connection away, as what [`Stack::adopt`] takes, and forgets it without a word to the peer: the name is stale
    /// from now on, and no event tells of it. What was placed ahead of order is lost. `None`: it is not synchronised, has been
    /// aborted (also by a close that loses bytes, or lingers for no time) and ends with the next turn, or the port may read its memory yet.
    pub fn surrender(&mut self, conn: ConnId) -> Option<Adopt> {
        let entry = self.conns.get(conn.index, conn.generation)?;
        let state = entry.tcb.state()?;
        if entry.tcb.unread(self.core.completed) {
            return None;
        }
        let (local, remote): (SocketAddr, SocketAddr) = (entry.names.tuple.local(), entry.names.tuple.remote());
        self.forget(conn.index);
        Some(Adopt { local, remote, options: None, state })
    }

    /// Calls a connection that is there, and sees to it that the next turn does what follows.
    #[inline]
    fn call(&mut self, conn: ConnId, call: impl FnOnce(&mut Tcb)) {
        let Some(entry) = self.conns.get_mut(conn.index, conn.generation) else { return };
        call(&mut entry.tcb);
        if self.core.full || entry.waits == Waits::Neighbour || !entry.tcb.due() {
            self.place(conn.index);
        } else if entry.waits == Waits::Not {
            // Its turn to send files its timer. (Entry::places says the same, and costs each call 20 instructions here.)
            entry.waits = Waits::Due;
            self.due.push(&mut self.conns, conn.index);
        }
    }

    /// Answers the SYN of a deferred listener's connection (`Event::Asked`).
    pub fn accept(&mut self, conn: ConnId) {
        self.call(conn, Tcb::accept);
    }

    /// Answers it with RST: the peer sees its connection refused.
    pub fn refuse(&mut self, conn: ConnId) {
        if self.conns.get(conn.index, conn.generation).is_some() {
            self.core.counters.count(Counter::DeferredRefused);
        }
        self.call(conn, Tcb::refuse);
    }

    /// Gives it up without a word, as Linux does where a backlog is full: the peer sends its SYN again, a second later, and that one is
    /// asked for anew.
    pub fn ignore(&mut self, conn: ConnId) {
        if self.conns.get(conn.index, conn.generation).is_some_and(|entry| entry.tcb.phase() == Phase::Listen) {
            self.core.counters.count(Counter::DeferredIgnored);
        }
        self.call(conn, Tcb::ignore);
    }

    /// The outgoing stream reaches to `end` now. `push`: nothing more follows at once, and the last segment need not wait for
    /// it. An `end` that is not behind the last one changes nothing.
    #[inline]
    pub fn commit(&mut self, conn: ConnId, end: u64, push: bool) {
        self.call(conn, |tcb| tcb.commit(end, push));
    }

    /// The incoming stream has room up to `edge`. An edge that is not behind the last one changes nothing: room is never
    /// taken back. What is read may be told late, while it is no more than an eighth of the whole room: a peer is not kept waiting by that.
    #[inline]
    pub fn room(&mut self, conn: ConnId, edge: u64) {
        self.call(conn, |tcb| tcb.room(edge));
    }

    /// The outgoing stream ends at what was committed. The incoming one goes on.
    pub fn shutdown(&mut self, conn: ConnId) {
        self.call(conn, Tcb::shutdown);
    }

    /// The outgoing stream ends at what was committed, and nobody reads what still comes. `unread`: the host holds bytes that were
    /// published and that nobody has read: the connection ends with RST at once, so that the peer learns that they were lost (RFC
    /// 2525, section 2.17; tcp_close of Linux). So it does where [`Options::linger`] is 0.
    pub fn close(&mut self, conn: ConnId, unread: bool) {
        self.call(conn, |tcb| tcb.close(unread));
    }

    /// The connection ends now, with RST.
    pub fn abort(&mut self, conn: ConnId) {
        self.call(conn, Tcb::abort);
    }

    /// Changes what can be changed while a connection stands.
    pub fn set_options(&mut self, conn: ConnId, options: Options) {
        self.call(conn, |tcb| tcb.set_options(&options));
    }

    /// Whether segments of this connection's addresses and ports are its own: it has not ended.
    pub fn is_open(&self, conn: ConnId) -> bool {
        self.conns.get(conn.index, conn.generation).is_some_and(|entry| entry.names.marks & NAMED != 0)
    }
}

/// Whether it names a host, and a port of it.
fn is_peer(remote: SocketAddr) -> bool {
    remote.port() != 0 && !remote.ip().is_multicast() && !remote.ip().is_unspecified()
}

/// A stack, as a connection sees it that is being adopted: without a port and a host, since nothing is sent or received.
struct Adopting<'a> {
    now: Time,
    core: &'a mut super::transmit::Core,
}

/// No buffer of any port.
enum Nothing {}

impl Buffer for Nothing {
    fn bytes(&self) -> &[u8] {
        match *self {}
    }

    fn scarce(&self) -> bool {
        match *self {}
    }
}

impl Context for Adopting<'_> {
    type Buffer = Nothing;

    fn now(&self) -> Time {
        self.now
    }

    fn transmit(&mut self, _: &Header, _: u64, _: u32, _: u16) -> Result<Sent, Refused> {
        Err(Refused::Full)
    }

    fn tso(&self) -> u32 {
        self.core.tso()
    }

    fn completed(&self) -> u64 {
        self.core.completed
    }

    fn late(&self) -> bool {
        self.core.port.late
    }

    fn release(&mut self, _: u64) {}

    fn place(&mut self, _: u64, buffer: Nothing, _: Range<usize>) -> bool {
        match buffer {}
    }

    fn publish(&mut self, _: u64) {}

    fn event(&mut self, _: Event) {}

    fn flights(&mut self) -> &mut Spare<Flight> {
        &mut self.core.flights
    }

    fn gaps(&mut self) -> &mut Spare<Assembler> {
        &mut self.core.gaps
    }

    fn count(&mut self, counter: Counter) {
        self.core.counters.count(counter);
    }
}
