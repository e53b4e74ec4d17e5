//! Programs connect to remote hosts.

use crate::gate::{Gate, Verdict, echo};
use crate::lab::{Namespace, beside};
use crate::need_root;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

const HOLD: Duration = Duration::from_millis(60);

/// A nonblocking socket whose connect(2) has begun, with its error.
fn begin(to: SocketAddr) -> (TcpStream, i32) {
    let family = if to.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    let socket = socket2::Socket::new(family.into(), socket2::Type::STREAM, None).expect("a socket");
    socket.set_nonblocking(true).expect("nonblocking");
    let error = socket.connect(&to.into()).map_or_else(|e| e.raw_os_error().expect("errno"), |()| 0);
    (socket.into(), error)
}

fn writable(socket: &TcpStream, limit: Duration) -> bool {
    let mut one = libc::pollfd { fd: socket.as_raw_fd(), events: libc::POLLOUT, revents: 0 };
    // SAFETY: poll(2) reads and writes the struct, which lives through the call.
    unsafe { libc::poll(&raw mut one, 1, limit.as_millis() as i32) > 0 }
}

#[test]
fn many_remote_ends() {
    need_root!();
    beside(Duration::from_secs(60), || {
        let ns = Namespace::new();
        let gate = Gate::new(&ns, |_| Verdict::Hold(HOLD), echo);
        let remotes: Vec<SocketAddr> = (0..50u16)
            .map(|i| match i % 2 {
                0 => format!("10.9.{i}.{}:{}", i + 1, 1 + 1300 * i).parse().expect("IPv4"),
                _ => format!("[fd09::{i}:1]:{}", 65_535 - 1300 * i).parse().expect("IPv6"),
            })
            .collect();
        ns.within(|| {
            let began = Instant::now();
            let mut sockets: Vec<TcpStream> = Vec::new();
            for remote in &remotes {
                let (socket, error) = begin(*remote);
                assert_eq!(error, libc::EINPROGRESS, "{remote}");
                sockets.push(socket);
            }
            assert!(!writable(&sockets[49], Duration::ZERO), "connected before the remote host has answered");
            for (socket, remote) in sockets.iter_mut().zip(&remotes) {
                assert!(writable(socket, Duration::from_secs(5)), "{remote} is not connected");
                assert!(began.elapsed() >= HOLD, "{remote} is connected too early");
                assert_eq!(socket.take_error().expect("SO_ERROR").map(|e| e.to_string()), None, "{remote}");
                assert_eq!(socket.peer_addr().expect("getpeername"), *remote);
                let own = if remote.is_ipv4() { "10.1.0.1" } else { "fd01::1" };
                assert_eq!(socket.local_addr().expect("getsockname").ip().to_string(), own);
                socket.set_nonblocking(false).expect("blocking");
                for i in 0..10u8 {
                    socket.write_all(&[i; 1000]).expect("write");
                    let mut back = [0; 1000];
                    socket.read_exact(&mut back).expect("read");
                    assert_eq!(back, [i; 1000]);
                }
            }
            for (socket, remote) in sockets.iter_mut().zip(&remotes) {
                socket.shutdown(std::net::Shutdown::Write).expect("shutdown");
                assert_eq!(socket.read(&mut [0]).expect("the end"), 0, "{remote}");
                let own = socket.local_addr().expect("getsockname");
                assert_eq!(gate.count(own, *remote), 1, "only the SYN is seen of {own} -> {remote}");
                assert!(gate.seen.lock().expect("seen").accepted.contains(&(own, *remote)), "{own} -> {remote}");
            }
        });
        assert_eq!(gate.front.turns().out, 50);
        assert!(gate.front.turns().turned >= 50 * 12, "{:?}", gate.front.turns());
    });
}
