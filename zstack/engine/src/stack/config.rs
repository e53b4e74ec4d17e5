//! What a stack, a listener and a connection are asked for with, what they answer, and why they refuse.

use super::ListenerId;
use crate::net::{Address, Route};
use crate::tcp::{Contradiction, Info as TcpInfo, Options};
use crate::time::Time;
use serde::Serialize;
use std::fmt;
use std::net::{IpAddr, SocketAddr};

/// What a stack is built from.
#[derive(Clone, Debug)]
pub struct Config {
    /// Our addresses, each with the length of its network's prefix. Neighbours within it are reached without a gateway.
    pub addresses: Vec<Address>,
    /// Routes to other networks; the most specific one that matches is taken.
    pub routes: Vec<Route>,
    /// Our Ethernet address; needed on a port whose packets begin with an Ethernet header.
    pub mac: Option<[u8; 6]>,
    /// The VLAN that we are in (802.1Q): frames are sent with its tag, and those without it are dropped.
    pub vlan: Option<u16>,
    /// Whether listeners and connections may use addresses that are not ours: packets to any unicast address are taken.
    pub any_address: bool,
    /// Whether the stack stands between the wire and others here who have the same addresses: it takes what it has a connection for, or
    /// shall open one for ([`Host::takes`](crate::payload::Host::takes)); all else that is sent to our addresses goes on to
    /// [`Host::pass`](crate::payload::Host::pass), unchanged, and is answered by whoever gets it: neither echo requests nor UDP nor
    /// segments of no connection are answered here. What others send goes to the wire by [`Stack::forward`](super::Stack::forward).
    pub bridge: bool,
    /// The secret under which tuples are hashed, initial sequence numbers, cookies, timestamps and ephemeral ports chosen. It
    /// must be unpredictable, and another one at each start.
    pub key: [u8; 16],
    /// What listeners and connections get if they ask for nothing else.
    pub tcp: Options,
    /// How much there may be of everything.
    pub limits: Limits,
}

impl Listen {
    /// At a port of all our addresses, with the stack's options.
    pub fn new(port: u16, room: u64) -> Listen {
        Listen {
            address: None,
            port: Some(port),
            backlog: 1024,
            deferred: false,
            deferred_cookies: false,
            options: None,
            room,
        }
    }
}

impl Connect {
    /// To a peer, from whatever address and port, with the stack's options.
    pub fn new(remote: SocketAddr, room: u64) -> Connect {
        Connect { local: None, local_port: None, remote, options: None, room }
    }
}

impl Config {
    /// One address, no gateway, and defaults.
    pub fn new(address: Address, key: [u8; 16]) -> Config {
        Config {
            addresses: vec![address],
            routes: Vec::new(),
            mac: None,
            vlan: None,
            any_address: false,
            bridge: false,
            key,
            tcp: Options::default(),
            limits: Limits::default(),
        }
    }
}

/// How much there may be of everything; the memory that a stack uses is bounded by these. In bytes, at most: 512 for each of
/// [`Limits::connections`] and 64 for each of [`Limits::time_wait`]; 24 for each segment that a connection has in flight, of 52
/// bytes or more each, so that less than half of what a host commits and nobody has acknowledged comes on top; 1 KiB for a
/// connection that got bytes ahead of order, whose ranges are 128 at most. Strangers get no more than half-open connections, of
/// 512 bytes; the caches of neighbours and path MTUs have 1024 entries each; 256 packets of others wait for neighbours, of a bridge alone.
/// What is received is never kept here.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Connections in all states but TIME_WAIT.
    pub connections: u32,
    /// Connections whose handshake a peer has begun and not completed. Beyond them SYNs are answered with cookies, but for the first
    /// few of each listener, a sixteenth of this: who floods one does not shut the others.
    pub half_open: u32,
    /// Connections in TIME_WAIT; the oldest is given up for a new one.
    pub time_wait: u32,
    /// Packets that one turn receives at most.
    pub receive: u32,
    /// Frames that one turn sends at most, acknowledgements not counted.
    pub send: u32,
    /// Timers that one turn fires at most.
    pub timers: u32,
    /// RSTs a second to segments of no connection, in the mean: how many there are in a second is drawn from half of it to one and a
    /// half. One address gets an eighth of them at most.
    pub resets: u32,
    /// The first port that connect chooses from (RFC 6056).
    pub first_port: u16,
    /// The last one.
    pub last_port: u16,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            connections: 1 << 20,
            half_open: 1024,
            time_wait: 32_768,
            receive: 64,
            send: 256,
            timers: 256,
            resets: 1000,
            first_port: 32_768,
            last_port: 60_999,
        }
    }
}

/// A listener that is wanted.
#[derive(Clone, Copy, Debug)]
pub struct Listen {
    /// The address that SYNs must be sent to; `None`: any of ours, or any at all with [`Config::any_address`].
    pub address: Option<IpAddr>,
    /// The port; `None`: any. Of several listeners that match, the most specific one gets the SYN: address and port before
    /// port alone before address alone before neither.
    pub port: Option<u16>,
    /// How many of its connections may be half open or wait for a decision. Beyond them SYNs are answered with cookies, or, by
    /// a deferred listener, dropped.
    pub backlog: u32,
    /// Whether SYNs wait for `Stack::accept`, `Stack::refuse` or `Stack::ignore` before they are answered (`Event::Asked`).
    pub deferred: bool,
    /// Of a deferred listener: whether SYNs beyond its bounds are answered with cookies all the same. A connection that is made of one is
    /// not asked for: its first events are `Event::Incoming` and `Event::Established`, and who does not want it aborts it.
    pub deferred_cookies: bool,
    /// The options of its connections; `None`: those of the stack.
    pub options: Option<Options>,
    /// The room for the incoming stream that a new connection begins with, in bytes: the first edge.
    pub room: u64,
}

/// A connection that is wanted.
#[derive(Clone, Copy, Debug)]
pub struct Connect {
    /// Our address; `None`: the one of ours that is in the network of the next hop.
    pub local: Option<IpAddr>,
    /// Our port; `None`: an ephemeral one (RFC 6056).
    pub local_port: Option<u16>,
    /// The peer.
    pub remote: SocketAddr,
    /// Its options; `None`: those of the stack.
    pub options: Option<Options>,
    /// The room for the incoming stream that it begins with, in bytes: the first edge.
    pub room: u64,
}

/// What a turn did.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Turn {
    /// Packets received.
    pub received: u32,
    /// Frames sent.
    pub sent: u32,
    /// Whether there is more to do at once: a bound of the turn was reached.
    pub more: bool,
    /// Whether something waits for the port's room ([`crate::port::Refused::Full`]): the next turn tries again.
    pub full: bool,
    /// When the next turn is due at the latest, if nothing arrives before; `None`: never.
    pub deadline: Option<Time>,
    /// Whether the port is gone. All connections have ended.
    pub gone: bool,
}

/// A connection, as `zstack stat` shows it.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Info {
    /// Our address and port.
    pub local: SocketAddr,
    /// The peer's.
    pub remote: SocketAddr,
    /// The listener that it came to.
    pub listener: Option<ListenerId>,
    /// What TCP knows of it.
    pub tcp: TcpInfo,
}

/// Why there is no stack.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum ConfigError {
    /// The network part is wrong.
    Net(crate::net::ConfigError),
    /// A limit of zero connections, of no packets a turn, or the like.
    Limit(&'static str),
    /// The first ephemeral port is 0, or comes behind the last one.
    Ports(u16, u16),
}

/// Why there is no listener.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum ListenError {
    /// Another listener has the same address and port.
    InUse(Option<IpAddr>, Option<u16>),
    /// The address is not ours.
    NotOurs(IpAddr),
    /// Port 0 is no port.
    PortZero,
    /// A backlog of nothing, of the listener at this address and port.
    NoBacklog(Option<IpAddr>, Option<u16>),
}

/// Why there is no connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum ConnectError {
    /// No route leads to the peer (ENETUNREACH).
    NoRoute(IpAddr),
    /// The local address is not ours (EADDRNOTAVAIL).
    NotOurs(IpAddr),
    /// The local address and the peer's are of different families (EINVAL).
    Family(IpAddr, IpAddr),
    /// The peer's address or port is none that can be connected to: port 0, multicast, broadcast, unspecified (EINVAL).
    Remote(SocketAddr),
    /// The same addresses and ports have a connection already (EADDRINUSE).
    InUse(SocketAddr, SocketAddr),
    /// Port 0 is no port of ours that a connection could have (EINVAL).
    PortZero,
    /// Every ephemeral port is taken for this peer (EADDRNOTAVAIL).
    NoPort(SocketAddr),
    /// The stack has as many connections as its limit says (ENOBUFS).
    Full(u32),
    /// The port is gone (ENETDOWN).
    PortGone,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ConfigError::Net(error) => error.fmt(f),
            ConfigError::Limit(name) => write!(f, "limit {name} is 0: nothing could be done; give at least 1"),
            ConfigError::Ports(first, last) => {
                write!(
                    f,
                    "ephemeral ports from {first} to {last} are none: the first must be at least 1, and not behind the last"
                )
            }
        }
    }
}

impl std::error::Error for ConfigError {}

impl fmt::Display for ListenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let any = |what: Option<String>| what.unwrap_or_else(|| "any".to_owned());
        match self {
            ListenError::InUse(address, port) => write!(
                f,
                "address {}, port {}: another listener has them; take another port, or end that one first",
                any(address.map(|a| a.to_string())),
                any(port.map(|p| p.to_string()))
            ),
            ListenError::NotOurs(address) => {
                write!(
                    f,
                    "{address} is not an address of this stack: listen at one that is, or let it take all (any_address)"
                )
            }
            ListenError::PortZero => f.write_str("port 0 is no port: name one, or none for all"),
            ListenError::NoBacklog(address, port) => write!(
                f,
                "address {}, port {}: a backlog of 0 admits nobody; give at least 1",
                any(address.map(|a| a.to_string())),
                any(port.map(|p| p.to_string()))
            ),
        }
    }
}

impl std::error::Error for ListenError {}

impl fmt::Display for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ConnectError::NoRoute(ip) => {
                write!(f, "no route to {ip}: give the stack a gateway, or an address in its network")
            }
            ConnectError::NotOurs(ip) => {
                write!(
                    f,
                    "{ip} is not an address of this stack: connect from one that is, or let it take all (any_address)"
                )
            }
            ConnectError::Family(local, remote) => {
                write!(f, "{local} cannot reach {remote}: both must be IPv4, or IPv6")
            }
            ConnectError::Remote(remote) => {
                write!(f, "{remote} cannot be connected to: it must be a host's address and a port")
            }
            ConnectError::InUse(local, remote) => {
                write!(f, "{local} has a connection to {remote} already: take another port, or wait until it is over")
            }
            ConnectError::PortZero => {
                f.write_str("port 0 is no port of a connection: name the one that it has, from 1 to 65535")
            }
            ConnectError::NoPort(remote) => {
                write!(f, "every ephemeral port has a connection to {remote}: widen the range, or use another address")
            }
            ConnectError::Full(limit) => {
                write!(f, "the stack has {limit} connections, its limit: raise it, or end some")
            }
            ConnectError::PortGone => f.write_str("the port is gone: open another one, with a new stack"),
        }
    }
}

impl std::error::Error for ConnectError {}

/// Why there is no connection from given numbers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum AdoptError {
    /// The addresses and ports allow none.
    Connect(ConnectError),
    /// The numbers contradict each other, or the connection is not synchronised.
    State(Contradiction),
}

impl fmt::Display for AdoptError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AdoptError::Connect(error) => error.fmt(f),
            AdoptError::State(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for AdoptError {}

impl From<ConnectError> for AdoptError {
    fn from(error: ConnectError) -> AdoptError {
        AdoptError::Connect(error)
    }
}

/// A connection that is to be built from numbers.
#[derive(Clone, Debug)]
pub struct Adopt {
    /// Our address and port.
    pub local: SocketAddr,
    /// The peer's.
    pub remote: SocketAddr,
    /// Its options; `None`: those of the stack.
    pub options: Option<Options>,
    /// The numbers.
    pub state: crate::tcp::State,
}

/// The smallest segment that a connection sends when more waits fits the smallest port.
const _: () = assert!(mss(crate::net::LEAST_PORT, true) == crate::tcp::MSS_LEAST);

/// The payload of a segment that an IP packet of `mtu` bytes holds, without options.
pub(super) const fn mss(mtu: u16, v4: bool) -> u16 {
    mtu.saturating_sub(if v4 { 40 } else { 60 })
}
