//! Ends whose other end is on another host, or in another network namespace.
// Unsafe here: an option of sockets, and a tun device, by libc.
#![allow(unsafe_code)]

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Subcommand;
use serde_json::json;

use super::{MESSAGE, announce, connect_to, epoll_server, idle_client};

/// The ends.
#[derive(Subcommand, Debug, Clone)]
pub enum Role {
    /// Returns when a server takes a connection
    Knock {
        /// The server
        to: SocketAddr,
    },
    /// Takes connections, and closes each when its client has
    AcceptServer {
        /// Where; with port 0 a free one, which is printed
        at: SocketAddr,
    },
    /// Connects and closes, one connection after the other
    ConnectClient {
        /// The server
        to: SocketAddr,
        /// Length of the measurement, seconds
        #[arg(long)]
        seconds: u32,
        /// Connections at most. Each leaves one of the kernel's 28,232 ports in TIME_WAIT, half of which it looks at first; when few are
        /// left, to look for one is what would be measured
        #[arg(long, default_value_t = 10_000)]
        most: u64,
    },
    /// Echo server on one epoll set
    EchoServer {
        /// Where; with port 0 a free one, which is printed
        at: SocketAddrV4,
    },
    /// One connection, request and response in turn
    RttClient {
        /// The server
        to: SocketAddr,
        /// Length of the measurement, seconds
        #[arg(long)]
        seconds: u32,
    },
    /// Opens connections, exchanges a few messages on each, then keeps them open and waits
    IdleClient {
        /// The server
        to: SocketAddr,
        /// Connections
        #[arg(long)]
        connections: usize,
        /// Exchanges on each connection before it idles
        #[arg(long)]
        exchanges: u32,
    },
    /// Tries to connect to all at the same time, and says what came of it, and when
    Attempts {
        /// How often a SYN is sent again (TCP_SYNCNT)
        #[arg(long)]
        again: u32,
        /// The servers
        to: Vec<SocketAddrV4>,
    },
    /// Hosts behind a tun device that answer a SYN as the last two bytes of their addresses say: see `answer`
    Hosts {
        /// Name of the device
        tun: String,
    },
}

/// Runs one end.
pub fn main(role: Role) -> io::Result<()> {
    match role {
        Role::Knock { to } => knock(to),
        Role::AcceptServer { at } => accept_server(at),
        Role::ConnectClient { to, seconds, most } => connect_client(to, Duration::from_secs(seconds.into()), most),
        Role::EchoServer { at } => epoll_server(at),
        Role::RttClient { to, seconds } => super::rtt_client(connect_to(to)?, MESSAGE, seconds),
        Role::IdleClient { to, connections, exchanges } => idle_client(to, connections, exchanges),
        Role::Attempts { again, to } => attempts(again, &to),
        Role::Hosts { tun } => hosts(&tun),
    }
}

fn knock(to: SocketAddr) -> io::Result<()> {
    const LIMIT: Duration = Duration::from_secs(20);
    let begin = Instant::now();
    loop {
        match TcpStream::connect_timeout(&to, LIMIT) {
            Ok(_) => return Ok(()),
            Err(e) if begin.elapsed() > LIMIT => return Err(e),
            // The server is not there yet: nothing tells when it is.
            Err(_) => std::thread::sleep(Duration::from_millis(10)),
        }
    }
}

fn accept_server(at: SocketAddr) -> io::Result<()> {
    let listener = TcpListener::bind(at)?;
    announce(listener.local_addr()?.port())?;
    loop {
        let (mut s, _) = listener.accept()?;
        let _ = s.read(&mut [0]);
    }
}

fn connect_client(to: SocketAddr, length: Duration, most: u64) -> io::Result<()> {
    let begin = Instant::now();
    let mut done = 0u64;
    while begin.elapsed() < length && done < most {
        drop(TcpStream::connect(to)?);
        done += 1;
    }
    announce(json!({ "operations": done, "rate": done as f64 / begin.elapsed().as_secs_f64() }))
}

/// For each server `[errno, milliseconds]`; 0: it was connected to.
fn attempts(again: u32, to: &[SocketAddrV4]) -> io::Result<()> {
    // Threads that stand ready: none waits for another to be made.
    let start = Arc::new(std::sync::Barrier::new(to.len()));
    let threads: Vec<_> = to
        .iter()
        .map(|&to| {
            let start = start.clone();
            std::thread::spawn(move || {
                let socket = socket(again);
                start.wait();
                let begin = Instant::now();
                let errno =
                    socket.and_then(|s| connect_by(&s, to)).map_or_else(|e| e.raw_os_error().unwrap_or(-1), |()| 0);
                (errno, begin.elapsed().as_secs_f64() * 1e3)
            })
        })
        .collect();
    let all = threads.into_iter().map(|t| t.join().map_err(|_| io::Error::other("a thread failed")));
    announce(json!(all.collect::<io::Result<Vec<_>>>()?))
}

/// A blocking socket that sends a SYN again so often.
fn socket(again: u32) -> io::Result<OwnedFd> {
    // SAFETY: creates a descriptor; no memory is involved.
    let fd = unsafe { libc::socket(libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a new descriptor, owned by nobody else.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: `again` outlives the call, which is told its size.
    let set = unsafe {
        let value = (&raw const again).cast();
        libc::setsockopt(fd.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_SYNCNT, value, size_of::<u32>() as u32)
    };
    if set == 0 { Ok(fd) } else { Err(io::Error::last_os_error()) }
}

fn connect_by(socket: &OwnedFd, to: SocketAddrV4) -> io::Result<()> {
    let address = libc::sockaddr_in {
        sin_family: libc::AF_INET as libc::sa_family_t,
        sin_port: to.port().to_be(),
        sin_addr: libc::in_addr { s_addr: u32::from(*to.ip()).to_be() },
        sin_zero: [0; 8],
    };
    // SAFETY: `address` outlives the call, which is told its size.
    let done = unsafe {
        let name = (&raw const address).cast();
        libc::connect(socket.as_raw_fd(), name, size_of::<libc::sockaddr_in>() as u32)
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

const FIN: u8 = 1;
const SYN: u8 = 2;
const RST: u8 = 4;
const ACK: u8 = 16;

/// Serves until it is killed.
fn hosts(tun: &str) -> io::Result<()> {
    let mut device = open_tun(tun)?;
    announce("ready")?;
    let replies = device.try_clone()?;
    let mut packet = [0; 2048];
    loop {
        let n = device.read(&mut packet)?;
        let Some((after, reply)) = answer(&packet[..n]) else { continue };
        let mut replies = replies.try_clone()?;
        std::thread::spawn(move || {
            // The measurement itself: the host answers so late.
            std::thread::sleep(after);
            let _ = replies.write_all(&reply);
        });
    }
}

fn open_tun(name: &str) -> io::Result<File> {
    const TUNSETIFF: libc::c_ulong = 0x4004_54ca;
    let file = OpenOptions::new().read(true).write(true).open("/dev/net/tun")?;
    // SAFETY: plain data, and all zeros is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().take(libc::IFNAMSIZ - 1).zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI) as i16;
    // SAFETY: `request` outlives the call, which reads and writes an ifreq (netdevice(7)).
    match unsafe { libc::ioctl(file.as_raw_fd(), TUNSETIFF, &mut request) } {
        0 => Ok(file),
        _ => Err(io::Error::last_os_error()),
    }
}

/// What a host whose address ends in `.A.B` says to a SYN, and after how long: with A = 1 a SYN-ACK after B * 10 ms, with 2 a RST, with
/// 4 an ICMP error "destination unreachable" of code B; another one says nothing. The end of a connection is answered with a RST.
fn answer(packet: &[u8]) -> Option<(Duration, Vec<u8>)> {
    let header = usize::from(packet.first()? & 15) * 4;
    if packet[0] >> 4 != 4 || packet.get(9) != Some(&6) || packet.len() < header + 20 {
        return None;
    }
    let address = |at: usize| Ipv4Addr::from(u32::from_be_bytes(packet[at..at + 4].try_into().expect("four bytes")));
    let (client, host) = (address(12), address(16));
    let [_, _, kind, detail] = host.octets();
    let tcp = &packet[header..];
    let word = |at: usize| u32::from_be_bytes(tcp[at..at + 4].try_into().expect("four bytes"));
    let flags = tcp[13];
    if flags & RST != 0 {
        return None;
    }
    let segment = |seq: u32, ack: u32, flags: u8| {
        let mut s = [&tcp[2..4], &tcp[..2], &seq.to_be_bytes(), &ack.to_be_bytes(), &[5 << 4, flags]].concat();
        // The window, no checksum yet, no urgent data.
        s.extend([0xff, 0xff, 0, 0, 0, 0]);
        let mut pseudo = [host.octets(), client.octets(), [0, 6, 0, s.len() as u8]].concat();
        pseudo.extend(&s);
        s[16..18].copy_from_slice(&checksum(&pseudo).to_be_bytes());
        ip(host, client, 6, &s)
    };
    if flags & (SYN | ACK) != SYN {
        return (flags & FIN != 0).then(|| (Duration::ZERO, segment(word(8), 0, RST)));
    }
    let next = word(4).wrapping_add(1);
    match kind {
        1 => Some((Duration::from_millis(10 * u64::from(detail)), segment(1, next, SYN | ACK))),
        2 => Some((Duration::ZERO, segment(0, next, RST | ACK))),
        4 => {
            let mut error = vec![3, detail, 0, 0, 0, 0, 0, 0];
            error.extend(&packet[..header + 8]);
            let sum = checksum(&error);
            error[2..4].copy_from_slice(&sum.to_be_bytes());
            Some((Duration::ZERO, ip(host, client, 1, &error)))
        }
        _ => None,
    }
}

fn ip(from: Ipv4Addr, to: Ipv4Addr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let length = (20 + payload.len()) as u16;
    let mut packet = vec![0x45, 0];
    packet.extend(length.to_be_bytes());
    packet.extend([0, 0, 0x40, 0, 64, protocol, 0, 0]);
    packet.extend(from.octets());
    packet.extend(to.octets());
    let sum = checksum(&packet);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet.extend(payload);
    packet
}

/// The Internet checksum (RFC 1071).
fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = bytes.chunks(2).map(|c| u32::from(c[0]) << 8 | u32::from(*c.get(1).unwrap_or(&0))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn syn(to: [u8; 4]) -> Vec<u8> {
        let mut s = vec![0x30, 0x39, 0, 80, 0, 0, 0, 7, 0, 0, 0, 0, 5 << 4, SYN];
        s.extend([1, 0, 0, 0, 0, 0]);
        ip([10, 0, 0, 1].into(), to.into(), 6, &s)
    }

    #[test]
    fn hosts_answer_as_their_addresses_say() {
        let (after, reply) = answer(&syn([10, 9, 1, 5])).unwrap();
        assert_eq!(after, Duration::from_millis(50));
        assert_eq!(&reply[12..20], [10, 9, 1, 5, 10, 0, 0, 1]);
        assert_eq!(
            (&reply[20..24], &reply[28..32], reply[33]),
            (&[0, 80, 0x30, 0x39][..], &[0, 0, 0, 8][..], SYN | ACK)
        );
        // With the sum in its place, all add up.
        let pseudo = [&reply[12..20], &[0, 6, 0, 20], &reply[20..]].concat();
        assert_eq!((checksum(&reply[..20]), checksum(&pseudo)), (0, 0));
        assert_eq!(answer(&syn([10, 9, 2, 0])).unwrap().1[33], RST | ACK);
        assert_eq!(answer(&syn([10, 9, 3, 0])), None);
        let error = answer(&syn([10, 9, 4, 13])).unwrap().1;
        assert_eq!((error[9], &error[20..22], checksum(&error[20..])), (1, &[3, 13][..], 0));
        let mut other = syn([10, 9, 1, 5]);
        other[33] = ACK;
        assert_eq!(answer(&other), None);
        other[33] = FIN | ACK;
        assert_eq!(answer(&other).unwrap().1[33], RST);
        assert_eq!(answer(&[]), None);
        assert_eq!(answer(&syn([10, 9, 1, 5])[..30]), None);
    }
}
