//! What the tools run over: the engine, or the kernel's sockets. The same program on either is a fair comparison.

#[cfg(feature = "dpdk")]
pub mod dpdk;
pub mod engine;
pub mod kernel;
#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::os::fd::RawFd;
use std::time::Duration;
use zstack::sockets::Still;

/// A connection's name. The generation tells it from others that had its index before.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Conn {
    /// Small numbers, used again: fit for a table's index.
    pub index: u32,
    pub generation: u32,
}

/// What has happened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Event {
    /// A listener has a new connection.
    Accepted(Conn),
    /// A connection that was wanted is there.
    Connected(Conn),
    /// A connection that was wanted will not be, for this errno; it is to be closed.
    Failed(Conn, i32),
    /// Reads or writes may do something that they could not do before. Told once: whoever stops before
    /// [`io::ErrorKind::WouldBlock`] asks for another with [`Transport::again`].
    Ready(Conn),
    /// A descriptor that is watched can be read.
    Watched(RawFd),
}

/// A connection, as `zstack stat` shows it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Connection {
    pub local: String,
    pub remote: String,
    pub state: String,
    /// Congestion window, in bytes.
    pub cwnd: u64,
    /// Slow start threshold, in bytes; `None`: none yet.
    pub ssthresh: Option<u64>,
    /// Smoothed round-trip time, in microseconds.
    pub srtt_us: u64,
    pub retransmits: u64,
    /// Bytes sent and not acknowledged.
    pub in_flight: u64,
}

/// All that a transport tells of itself.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Report {
    /// By name: what was counted, and dropped packets by reason.
    pub counters: BTreeMap<String, u64>,
    pub connections: Vec<Connection>,
    /// What the port is and can do; empty over the kernel.
    #[serde(default)]
    pub port: Vec<Named>,
}

/// Something that a port says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Named {
    pub name: String,
    pub value: String,
}

/// Streams of bytes. No call but `poll` blocks.
pub trait Transport {
    /// Accepts connections.
    ///
    /// # Errors
    /// A line for the user.
    fn listen(&mut self, at: SocketAddr) -> Result<(), String>;

    /// Begins to connect; [`Event::Connected`] or [`Event::Failed`] follows.
    ///
    /// # Errors
    /// It could not even begin.
    fn connect(&mut self, to: SocketAddr) -> io::Result<Conn>;

    /// Adds a descriptor of the caller's to those that `poll` waits for.
    ///
    /// # Errors
    /// A line for the user.
    fn watch(&mut self, fd: RawFd) -> Result<(), String>;

    /// Does what is due, waits until something has happened, at most `limit`, and appends it.
    ///
    /// # Errors
    /// Nothing will ever happen again (the port is gone), as a line for the user.
    fn poll(&mut self, events: &mut Vec<Event>, limit: Option<Duration>) -> Result<(), String>;

    /// Asks for an [`Event::Ready`].
    fn again(&mut self, conn: Conn);

    /// Hands the next bytes, `most` at most, to `with`, where they are, and consumes them. How many; 0: the stream has ended.
    ///
    /// # Errors
    /// Those of recv(2).
    fn take(&mut self, conn: Conn, most: usize, with: &mut dyn FnMut(&[u8])) -> io::Result<usize>;

    /// Sends back the next bytes that have arrived, from where they are, and consumes them: how many; 0: the stream has ended. `None`: this
    /// transport cannot.
    ///
    /// # Errors
    /// Those of recv(2) and send(2).
    fn send_back(&mut self, _conn: Conn) -> Option<io::Result<usize>> {
        None
    }

    /// Copies what there is room for. `more`: other bytes follow at once, with which these may share a packet.
    ///
    /// # Errors
    /// Those of send(2).
    fn write(&mut self, conn: Conn, bytes: &[u8], more: bool) -> io::Result<usize>;

    /// Sends a piece, or its beginning, where it is, and says how much of it; the engine does not copy it.
    ///
    /// # Errors
    /// Those of send(2).
    fn send(&mut self, conn: Conn, piece: &Still, more: bool) -> io::Result<usize>;

    /// Sends no more.
    fn shutdown(&mut self, conn: Conn);

    /// Gives a connection up; what was written is still sent.
    fn close(&mut self, conn: Conn);

    /// Resets a connection.
    fn abort(&mut self, conn: Conn);

    /// Whether nothing is left to be sent that needs this process.
    fn idle(&self) -> bool;

    /// What `zstack stat` shows.
    fn report(&mut self) -> Report;

    /// Payload bytes that were copied between the caller and the transport or within it, as far as the transport can tell.
    fn copied(&self) -> Option<u64>;
}
