//! Removing a socket from TIME_WAIT, and the ports that somebody listens on, by sock_diag(7).

use super::netlink::Messages;
use netlink_sys::protocols::NETLINK_SOCK_DIAG;
use netlink_sys::{Socket, SocketAddr as Kernel};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP: u16 = 0x300;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
const TCP_TIME_WAIT: u8 = 6;
const TCP_LISTEN: u8 = 10;

/// struct nlmsghdr; and where in struct inet_diag_msg, behind it, the state and the cookie are.
const HEADER: usize = 16;
const STATE: usize = HEADER + 1;
const PORT: std::ops::Range<usize> = HEADER + 4..HEADER + 6;
const COOKIE: std::ops::Range<usize> = HEADER + 44..HEADER + 52;

/// Any socket (INET_DIAG_NOCOOKIE).
const ANY: [u8; 8] = [0xff; 8];

/// Frees the ends `own` and `peer` of a connection if it is in TIME_WAIT here, and tells whether it was. Needs CAP_NET_ADMIN.
///
/// # Errors
/// Those of netlink(7); EOPNOTSUPP if the kernel has no CONFIG_INET_DIAG_DESTROY.
pub(crate) fn destroy_time_wait(own: SocketAddr, peer: SocketAddr) -> io::Result<bool> {
    let mut socket = Socket::new(NETLINK_SOCK_DIAG)?;
    socket.bind_auto()?;
    socket.connect(&Kernel::new(0, 0))?;
    socket.send(&request(SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST, u32::MAX, own, peer, ANY), 0)?;
    let (answer, _) = socket.recv_from_full()?;
    let found = Messages(&answer).find(|m| m[4..6] == SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    let Some(cookie) = found.filter(|m| m.get(STATE) == Some(&TCP_TIME_WAIT)).and_then(|m| m.get(COOKIE)) else {
        return Ok(false);
    };
    let cookie = cookie.try_into().unwrap_or(ANY);
    // The cookie: not another socket that has got the ports since.
    socket.send(&request(SOCK_DESTROY, NLM_F_REQUEST | NLM_F_ACK, u32::MAX, own, peer, cookie), 0)?;
    let (answer, _) = socket.recv_from_full()?;
    let error = Messages(&answer).find(|m| m[4..6] == NLMSG_ERROR.to_ne_bytes()).and_then(|m| m.get(16..20));
    match error.and_then(|e| e.try_into().ok()).map_or(0, i32::from_ne_bytes) {
        0 => Ok(true),
        // It is gone by itself.
        error if -error == libc::ENOENT => Ok(true),
        error => Err(io::Error::from_raw_os_error(-error)),
    }
}

/// A set of ports.
#[derive(Clone)]
pub struct Ports(Box<[u64]>);

impl Ports {
    /// None.
    pub fn new() -> Ports {
        Ports(vec![0; (u16::MAX as usize + 1) / 64].into())
    }

    /// Whether this one is in it.
    pub fn has(&self, port: u16) -> bool {
        self.0[usize::from(port) / 64] & 1 << (port % 64) != 0
    }

    fn add(&mut self, port: u16) {
        self.0[usize::from(port) / 64] |= 1 << (port % 64);
    }
}

impl Default for Ports {
    fn default() -> Ports {
        Ports::new()
    }
}

/// The ports on which somebody listens in the network namespace of the calling thread, on whatever address.
///
/// # Errors
/// Those of netlink(7).
pub fn listening() -> io::Result<Ports> {
    let mut ports = Ports::new();
    let mut socket = Socket::new(NETLINK_SOCK_DIAG)?;
    socket.bind_auto()?;
    socket.connect(&Kernel::new(0, 0))?;
    for any in [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)] {
        let any = SocketAddr::new(any, 0);
        socket.send(&request(SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST | NLM_F_DUMP, 1 << TCP_LISTEN, any, any, ANY), 0)?;
        let mut done = false;
        while !done {
            let (answer, _) = socket.recv_from_full()?;
            for message in Messages(&answer) {
                match u16::from_ne_bytes([message[4], message[5]]) {
                    NLMSG_DONE => done = true,
                    NLMSG_ERROR => {
                        let error = message.get(16..20).and_then(|e| e.try_into().ok()).map_or(0, i32::from_ne_bytes);
                        return Err(io::Error::from_raw_os_error(-error));
                    }
                    _ => {
                        if let Some([high, low]) = message.get(PORT) {
                            ports.add(u16::from_be_bytes([*high, *low]));
                        }
                    }
                }
            }
        }
    }
    Ok(ports)
}

/// struct nlmsghdr and struct inet_diag_req_v2 (linux/inet_diag.h).
fn request(kind: u16, flags: u16, states: u32, own: SocketAddr, peer: SocketAddr, cookie: [u8; 8]) -> Vec<u8> {
    let family = if own.is_ipv6() { libc::AF_INET6 } else { libc::AF_INET };
    let mut bytes = 72u32.to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    bytes.extend([0; 8]);
    bytes.extend([family as u8, libc::IPPROTO_TCP as u8, 0, 0]);
    bytes.extend(states.to_ne_bytes());
    bytes.extend(own.port().to_be_bytes());
    bytes.extend(peer.port().to_be_bytes());
    for address in [own.ip(), peer.ip()] {
        let mut field = [0; 16];
        match address {
            IpAddr::V4(a) => field[..4].copy_from_slice(&a.octets()),
            IpAddr::V6(a) => field = a.octets(),
        }
        bytes.extend(field);
    }
    bytes.extend([0; 4]);
    bytes.extend(cookie);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn who_listens_is_listed_until_he_does_not() {
        let of = |address: &str| TcpListener::bind(address).unwrap();
        let listeners = [of("127.0.0.1:0"), of("[::1]:0"), of("0.0.0.0:0"), of("[::]:0")];
        let ports = listeners.each_ref().map(|l| l.local_addr().unwrap().port());
        let listed = listening().unwrap();
        assert!(ports.iter().all(|port| listed.has(*port)));
        let many: Vec<_> = (0..300).map(|_| of("127.0.0.1:0")).collect();
        let listed = listening().unwrap();
        assert!(many.iter().all(|l| listed.has(l.local_addr().unwrap().port())));
        assert!((0..=u16::MAX).filter(|port| listed.has(*port)).count() < 30_000);
        drop(listeners);
        // Another process may have got one of them since.
        let listed = listening().unwrap();
        assert!(!ports.iter().all(|port| listed.has(*port)));
    }
}
