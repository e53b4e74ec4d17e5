//! zstackd's ends of the programs' connections: sockets whose own address is a remote host's (IP_TRANSPARENT, ip(7)).
//!
//! Every one of them resets its connection when it is closed (SO_LINGER with time 0), until [`end_in_order`] takes that back: a
//! death of the process must not look like the end of the stream. The kernel closes a dead process' files from the highest number
//! down (task_work_run), so all of these have higher numbers than the tun: with the tun goes the address to which the resets are
//! sent.

use super::raw;
use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;

/// ip(7): since Linux 6.3; the range is the low port in the low half.
const IP_LOCAL_PORT_RANGE: i32 = 51;

/// linux/tcp.h.
const TCP_REPAIR_ON: i32 = 1;
const TCP_REPAIR_OFF: i32 = 0;

/// What the listeners of the first lane are bound to; those of the others have the next addresses. No host has them (RFC 1112 section 4:
/// class E; RFC 6666: discard), so that nobody reaches the listeners but by `assign`.
const UNREACHED: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(240, 0, 0, 1)), IpAddr::V6(Ipv6Addr::new(0x100, 0, 0, 0, 0, 0, 0, 1))];

/// Their port, which no program can listen on meanwhile on all addresses: tcpmux, which is historic (RFC 7805), and none that the
/// kernel chooses for connections.
const UNWANTED: u16 = 1;

/// A connection of a program to a remote host.
#[derive(Debug)]
pub struct Accepted {
    /// zstackd's end: nonblocking, reset on close.
    pub socket: TcpStream,
    /// The program's end.
    pub program: SocketAddr,
    /// The remote end that the program has asked for, which is the socket's own.
    pub remote: SocketAddr,
}

/// A transparent listener for all addresses and ports of a family, which `assign` gives their connections.
/// Each lane has one of its own.
pub(crate) fn listener(v6: bool, lane: usize, place: &Place) -> io::Result<OwnedFd> {
    let socket = place.transparent(v6)?;
    let fd = socket.as_fd();
    if v6 {
        raw::set_number(fd, libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, 1)?;
    }
    let ip = match UNREACHED[usize::from(v6)] {
        IpAddr::V4(first) => IpAddr::V4((first.to_bits() + lane as u32).into()),
        IpAddr::V6(first) => IpAddr::V6((first.to_bits() + lane as u128).into()),
    };
    let address = |port| SocketAddr::new(ip, port);
    match raw::bind(fd, address(UNWANTED)) {
        Err(e) if e.raw_os_error() == Some(libc::EADDRINUSE) => raw::bind(fd, address(0))?,
        result => result?,
    }
    // The kernel cuts it down to net.core.somaxconn.
    raw::listen(fd, i32::MAX)?;
    Ok(socket)
}

/// The next connection of a listener, or none.
pub(crate) fn accept(listener: BorrowedFd<'_>, least: i32) -> io::Result<Option<Accepted>> {
    let (socket, program) = loop {
        match raw::accept(listener) {
            Ok(accepted) => break accepted,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            // The program has closed it already (do_accept); another may be behind it.
            Err(e) if matches!(e.raw_os_error(), Some(libc::ECONNABORTED | libc::EINTR)) => {}
            Err(e) => return Err(e),
        }
    };
    let socket = raised(socket, least)?;
    let remote = raw::own_end(socket.as_fd())?;
    Ok(Some(Accepted { socket: socket.into(), program, remote }))
}

/// The network namespace of a front, in which its sockets have to be made.
pub(crate) struct Place {
    namespace: u64,
    /// The least number of a socket's descriptor.
    pub(crate) least: i32,
    ports: Ports,
}

impl Place {
    /// The network namespace of the calling thread.
    pub(crate) fn new(least: i32) -> io::Result<Place> {
        let namespace = raw::namespace(raw::tcp(libc::AF_INET)?.as_fd())?;
        Ok(Place { namespace, least, ports: Ports::new() })
    }

    fn transparent(&self, v6: bool) -> io::Result<OwnedFd> {
        let socket = raised(raw::tcp(if v6 { libc::AF_INET6 } else { libc::AF_INET })?, self.least)?;
        let fd = socket.as_fd();
        if raw::namespace(fd)? != self.namespace {
            return Err(io::Error::other("this thread is not in the network namespace of the front"));
        }
        let (level, option) =
            if v6 { (libc::IPPROTO_IPV6, libc::IPV6_TRANSPARENT) } else { (libc::IPPROTO_IP, libc::IP_TRANSPARENT) };
        raw::set_number(fd, level, option, 1)?;
        // A listener's connections inherit these. The first lets programs that set it too listen on the port of such a connection
        // (inet_csk_bind_conflict).
        raw::set_number(fd, libc::SOL_SOCKET, libc::SO_REUSEADDR, 1)?;
        raw::set_reset_on_close(fd, true)?;
        // The remote host has held back by then what it wanted to (Nagle's rule).
        raw::set_number(fd, libc::IPPROTO_TCP, libc::TCP_NODELAY, 1)?;
        // What a program sends as urgent goes to the wire in its place, and is no byte less.
        raw::set_number(fd, libc::SOL_SOCKET, libc::SO_OOBINLINE, 1)?;
        Ok(socket)
    }
}

/// The ports that the kernel chooses from in the network namespace (ip_local_port_range), as they are now.
struct Ports(Option<File>);

impl Ports {
    /// Those of the network namespace of the calling thread.
    fn new() -> Ports {
        Ports(File::open("/proc/sys/net/ipv4/ip_local_port_range").ok())
    }

    fn contain(&self, port: u16) -> bool {
        let mut text = [0; 32];
        let len = self.0.as_ref().and_then(|f| f.read_at(&mut text, 0).ok()).unwrap_or(0);
        let mut numbers = text[..len].split(u8::is_ascii_whitespace).filter_map(|n| std::str::from_utf8(n).ok());
        let mut number = || numbers.next().and_then(|n| n.parse().ok());
        number().zip(number()).is_some_and(|(low, high): (u16, u16)| (low..=high).contains(&port))
    }
}

/// Connects to a program's listener `to` as the remote host's `client`. Nonblocking: the connection may stand already, or be
/// under way.
pub(crate) fn connect(client: SocketAddr, to: SocketAddr, place: &Place) -> io::Result<OwnedFd> {
    if client.is_ipv6() != to.is_ipv6() {
        return Err(io::Error::from_raw_os_error(libc::EAFNOSUPPORT));
    }
    if place.ports.contain(client.port())
        && let Some(socket) = without_bind(client, to, place)
    {
        return Ok(socket);
    }
    match with_bind(client, to, place) {
        // The last connection of this client and port, which zstackd has ended first, is in TIME_WAIT here. The engine has found
        // that the remote host may open it again.
        Err(e) if e.raw_os_error() == Some(libc::EADDRNOTAVAIL) && super::diag::destroy_time_wait(client, to)? => {
            with_bind(client, to, place)
        }
        result => result,
    }
}

/// Lets connect(2) choose the port, out of one: a port that is bound by number would be left out when the kernel chooses one for
/// a program's connection (__inet_hash_connect), and there may be thousands of clients. Only for ports that the kernel chooses from:
/// of others the socket's range says nothing (inet_sk_get_local_port_range). None if it does not succeed.
fn without_bind(client: SocketAddr, to: SocketAddr, place: &Place) -> Option<OwnedFd> {
    let socket = place.transparent(client.is_ipv6()).ok()?;
    let fd = socket.as_fd();
    let port = u32::from(client.port());
    raw::set_number(fd, libc::IPPROTO_IP, IP_LOCAL_PORT_RANGE, (port << 16 | port) as i32).ok()?;
    raw::set_number(fd, libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT, 1).ok()?;
    let mut address = client;
    address.set_port(0);
    raw::bind(fd, address).ok()?;
    hold_ack(fd).ok()?;
    raw::connect(fd, to).ok()?;
    Some(socket)
}

/// Binds the port by number, and so even if a program listens on it on all addresses: the client's port 8080 has nothing to do with
/// a server's. The kernel sees a conflict there, but not for a socket under repair (inet_csk_get_port).
fn with_bind(client: SocketAddr, to: SocketAddr, place: &Place) -> io::Result<OwnedFd> {
    let socket = place.transparent(client.is_ipv6())?;
    let fd = socket.as_fd();
    raw::set_number(fd, libc::IPPROTO_TCP, libc::TCP_REPAIR, TCP_REPAIR_ON)?;
    raw::bind(fd, client)?;
    raw::set_number(fd, libc::IPPROTO_TCP, libc::TCP_REPAIR, TCP_REPAIR_OFF)?;
    // Which the end of the repair has taken away.
    raw::set_number(fd, libc::SOL_SOCKET, libc::SO_REUSEADDR, 1)?;
    hold_ack(fd)?;
    raw::connect(fd, to)?;
    Ok(socket)
}

/// The last ACK of the handshake waits for the first bytes, 0.2 seconds at most (tcp_rcv_synsent_state_process, which leaves the mode
/// that this sets).
fn hold_ack(socket: BorrowedFd<'_>) -> io::Result<()> {
    raw::set_number(socket, libc::IPPROTO_TCP, libc::TCP_QUICKACK, 0)
}

/// Sends an ACK that waits, as the last one of the handshake does.
///
/// # Errors
/// Those of setsockopt(2).
pub fn acknowledge(socket: BorrowedFd<'_>) -> io::Result<()> {
    raw::set_number(socket, libc::IPPROTO_TCP, libc::TCP_QUICKACK, 1)
}

/// Takes back that closing the socket resets the connection.
///
/// # Errors
/// Those of setsockopt(2).
pub fn end_in_order(socket: BorrowedFd<'_>) -> io::Result<()> {
    raw::set_reset_on_close(socket, false)
}

/// Resets the connection now, with the socket open (connect(2), AF_UNSPEC).
///
/// # Errors
/// Those of connect(2).
pub fn break_off(socket: BorrowedFd<'_>) -> io::Result<()> {
    raw::disconnect(socket)
}

/// So many bytes any socket takes that nobody reads from.
pub const LITTLE: u32 = 64 << 10;

/// Whether the program has read all that was sent to it, but for a little. If not, whoever watches its socket for edges is told that it can be
/// written when it has; nothing more is sent on it.
pub fn is_nearly_read(socket: BorrowedFd<'_>) -> bool {
    if raw::untaken(socket).is_ok_and(|bytes| bytes <= LITTLE) {
        return true;
    }
    // From now on there is room while less than that lies there.
    raw::set_number(socket, libc::IPPROTO_TCP, libc::TCP_NOTSENT_LOWAT, LITTLE as i32).is_err() || raw::has_room(socket)
}

/// The descriptor, with a number of at least `least`.
fn raised(fd: OwnedFd, least: i32) -> io::Result<OwnedFd> {
    if fd.as_raw_fd() >= least { Ok(fd) } else { raw::above(fd.as_fd(), least) }
}
