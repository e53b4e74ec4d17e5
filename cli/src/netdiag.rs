//! What the kernel says about TCP sockets: `NETLINK_SOCK_DIAG` and `/proc/PID/net/tcp`.
// Unsafe here: netlink messages are structures of C.
#![allow(unsafe_code)]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// linux/sock_diag.h.
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NLMSG_HEADER: usize = 16;
const REQUEST: usize = 56;
const MESSAGE: usize = 72;
const NO_COOKIE: u64 = u64::MAX;

/// A TCP socket as the kernel sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Socket {
    /// `SO_COOKIE`; `None` where only /proc could be read.
    pub cookie: Option<u64>,
    /// 0 when no process holds it any more.
    pub inode: u64,
    /// TCP state, as in linux/tcp_states.h (1 ESTABLISHED ... 10 LISTEN).
    pub state: u8,
    /// Owner.
    pub uid: u32,
    /// This end. v4-mapped addresses are shown as IPv4.
    pub local: SocketAddr,
    /// The other end.
    pub peer: SocketAddr,
}

impl Socket {
    /// Has, or had, another end.
    pub fn connected(&self) -> bool {
        // SYN_SENT, CLOSE, LISTEN
        ![2, 7, 10].contains(&self.state) && self.peer.port() != 0
    }
}

/// All TCP sockets of this network namespace.
pub fn dump() -> std::io::Result<Vec<Socket>> {
    let mut all = query(libc::AF_INET, None)?;
    all.extend(query(libc::AF_INET6, None)?);
    Ok(all)
}

/// The one socket with these addresses: the query with which the library asks who is at the other end.
pub fn exact(local: SocketAddr, peer: SocketAddr) -> std::io::Result<Option<Socket>> {
    let family = if local.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    Ok(query(family, Some((local, peer)))?.into_iter().next())
}

fn query(family: i32, one: Option<(SocketAddr, SocketAddr)>) -> std::io::Result<Vec<Socket>> {
    // SAFETY: creates a descriptor; no memory is involved.
    let fd = unsafe { libc::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC, libc::NETLINK_SOCK_DIAG) };
    if fd < 0 {
        return Err(std::io::Error::last_os_error());
    }
    // SAFETY: `fd` is new and owned by nobody else.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    let request = request(family, one);
    // SAFETY: the buffer is valid for its length. An unconnected netlink socket sends to the kernel.
    let sent = unsafe { libc::send(fd.as_raw_fd(), request.as_ptr().cast(), request.len(), 0) };
    if sent < 0 {
        return Err(std::io::Error::last_os_error());
    }
    let mut found = Vec::new();
    let mut buffer = vec![0u8; 64 << 10];
    loop {
        // SAFETY: the buffer is valid for its length.
        let n = unsafe { libc::recv(fd.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), 0) };
        if n < 0 {
            let e = std::io::Error::last_os_error();
            if e.kind() == std::io::ErrorKind::Interrupted {
                continue;
            }
            return Err(e);
        }
        if parse_answer(&buffer[..n as usize], &mut found)? || one.is_some() || n == 0 {
            return Ok(found);
        }
    }
}

fn request(family: i32, one: Option<(SocketAddr, SocketAddr)>) -> Vec<u8> {
    let flags = libc::NLM_F_REQUEST | if one.is_none() { libc::NLM_F_DUMP } else { 0 };
    let mut m = Vec::with_capacity(NLMSG_HEADER + REQUEST);
    m.extend(((NLMSG_HEADER + REQUEST) as u32).to_ne_bytes());
    m.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    m.extend((flags as u16).to_ne_bytes());
    m.extend([0; 8]);
    // struct inet_diag_req_v2
    m.extend([family as u8, libc::IPPROTO_TCP as u8, 0, 0]);
    m.extend(u32::MAX.to_ne_bytes());
    let (mut ports, mut hosts) = ([0; 4], [0; 32]);
    if let Some((local, peer)) = one {
        ports[..2].copy_from_slice(&local.port().to_be_bytes());
        ports[2..].copy_from_slice(&peer.port().to_be_bytes());
        for (i, host) in [local.ip(), peer.ip()].into_iter().enumerate() {
            match host {
                IpAddr::V4(a) => hosts[16 * i..][..4].copy_from_slice(&a.octets()),
                IpAddr::V6(a) => hosts[16 * i..][..16].copy_from_slice(&a.octets()),
            }
        }
    }
    m.extend(ports);
    m.extend(hosts);
    m.extend([0; 4]);
    m.extend(NO_COOKIE.to_ne_bytes());
    m
}

/// Adds the sockets of one datagram to `found`; true when the kernel has said all.
fn parse_answer(mut data: &[u8], found: &mut Vec<Socket>) -> std::io::Result<bool> {
    while data.len() >= NLMSG_HEADER {
        let len = u32::from_ne_bytes([data[0], data[1], data[2], data[3]]) as usize;
        if len < NLMSG_HEADER || len > data.len() {
            return Err(std::io::ErrorKind::InvalidData.into());
        }
        let body = &data[NLMSG_HEADER..len];
        match i32::from(u16::from_ne_bytes([data[4], data[5]])) {
            libc::NLMSG_DONE => return Ok(true),
            libc::NLMSG_ERROR => {
                let code = body.first_chunk().map_or(-libc::EIO, |b| i32::from_ne_bytes(*b));
                return match -code {
                    0 | libc::ENOENT => Ok(true),
                    e => Err(std::io::Error::from_raw_os_error(e)),
                };
            }
            _ => found.extend(parse_socket(body)),
        }
        data = &data[len.next_multiple_of(4).min(data.len())..];
    }
    Ok(false)
}

/// struct inet_diag_msg.
fn parse_socket(m: &[u8]) -> Option<Socket> {
    let m: &[u8; MESSAGE] = m.first_chunk()?;
    let u32_at = |at: usize| u32::from_ne_bytes([m[at], m[at + 1], m[at + 2], m[at + 3]]);
    let address = |port: usize, host: usize| {
        let port = u16::from_be_bytes([m[port], m[port + 1]]);
        let host: [u8; 16] = m[host..host + 16].try_into().unwrap_or_default();
        let host = match i32::from(m[0]) {
            libc::AF_INET => IpAddr::V4(Ipv4Addr::new(host[0], host[1], host[2], host[3])),
            _ => IpAddr::V6(Ipv6Addr::from(host)).to_canonical(),
        };
        SocketAddr::new(host, port)
    };
    Some(Socket {
        state: m[1],
        local: address(4, 8),
        peer: address(6, 24),
        cookie: Some(u64::from(u32_at(44)) | u64::from(u32_at(48)) << 32),
        uid: u32_at(64),
        inode: u64::from(u32_at(68)),
    })
}

/// The lines of a `/proc/PID/net/tcp` or `tcp6`.
pub fn parse_proc(text: &str) -> Vec<Socket> {
    text.lines().skip(1).filter_map(parse_proc_line).collect()
}

fn parse_proc_line(line: &str) -> Option<Socket> {
    let mut fields = line.split_ascii_whitespace().skip(1);
    let local = proc_address(fields.next()?)?;
    let peer = proc_address(fields.next()?)?;
    let state = u8::from_str_radix(fields.next()?, 16).ok()?;
    let mut fields = fields.skip(3);
    let uid = fields.next()?.parse().ok()?;
    let inode = fields.nth(1)?.parse().ok()?;
    Some(Socket { cookie: None, inode, state, uid, local, peer })
}

/// `0100007F:1F90`: 32-bit words in the machine's byte order.
fn proc_address(text: &str) -> Option<SocketAddr> {
    let (host, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let word = |i: usize| Some(u32::from_str_radix(host.get(8 * i..8 * i + 8)?, 16).ok()?.to_ne_bytes());
    let host = match host.len() {
        8 => IpAddr::V4(Ipv4Addr::from(word(0)?)),
        32 => {
            let mut octets = [0; 16];
            for i in 0..4 {
                octets[4 * i..4 * i + 4].copy_from_slice(&word(i)?);
            }
            IpAddr::V6(Ipv6Addr::from(octets)).to_canonical()
        }
        _ => return None,
    };
    Some(SocketAddr::new(host, port))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn the_kernel_knows_both_ends_of_a_connection() {
        for any in ["127.0.0.1:0", "[::1]:0"] {
            let listener = TcpListener::bind(any).unwrap();
            let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (here, there) = (client.local_addr().unwrap(), client.peer_addr().unwrap());
            let one = exact(here, there).unwrap().expect("our own connection");
            assert_eq!((one.local, one.peer, one.state), (here, there, 1));
            assert!(one.connected() && one.inode != 0);
            let all = dump().unwrap();
            assert!(all.contains(&one));
            let listening = all.iter().find(|s| s.local == there && s.state == 10).expect("the listener");
            assert!(!listening.connected());
            assert_eq!(exact(here, here).unwrap(), None);
        }
    }

    #[test]
    fn proc_lines_are_read() {
        let text = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n   \
            0: 0100007F:1F90 0200000A:D431 01 00000000:00000000 00:00000000 00000000  1000        0 4711 1 0000000000000000 20 4 30 10 -1\n   \
            1: garbage\n   \
            2: 0000000000000000FFFF00000100007F:0050 0000000000000000FFFF00000100007F:C350 08 0:0 00:0 0 33 0 12 1 0 0\n";
        let all = parse_proc(text);
        assert_eq!(all.len(), 2);
        assert_eq!(all[0].local, "127.0.0.1:8080".parse().unwrap());
        assert_eq!(all[0].peer, "10.0.0.2:54321".parse().unwrap());
        assert_eq!((all[0].uid, all[0].inode, all[0].state), (1000, 4711, 1));
        assert_eq!(all[1].local, "127.0.0.1:80".parse().unwrap());
        assert_eq!((all[1].uid, all[1].inode, all[1].state), (33, 12, 8));
    }

    #[test]
    fn damaged_answers_are_refused() {
        let mut found = Vec::new();
        let mut message = vec![0; NLMSG_HEADER];
        message[0] = 255;
        assert!(parse_answer(&message, &mut found).is_err());
        message[0] = 4;
        assert!(parse_answer(&message, &mut found).is_err());
        assert!(found.is_empty());
    }
}
