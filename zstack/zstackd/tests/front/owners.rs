//! Whose SYN it is: what the filter notes of the sockets, and of which it notes nothing.

use crate::gate::{wait, wanted};
use crate::lab::{Namespace, bounded};
use crate::need_root;
use crate::packets::{self, ACK, SYN};
use socket2::{Domain, Protocol, Socket, Type};
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::os::unix::fs::fchown;
use std::time::{Duration, Instant};
use zstack_wire::Seq;
use zstackd::flow::Flow;
use zstackd::front::{Front, Owner};

const LIMIT: Duration = Duration::from_secs(10);
/// Nobody on this machine.
const USER: u32 = 12_345;

/// A program's socket, which another user owns.
fn socket(v6: bool) -> Socket {
    let socket = Socket::new(if v6 { Domain::IPV6 } else { Domain::IPV4 }, Type::STREAM, None).expect("a socket");
    socket.set_nonblocking(true).expect("nonblocking");
    fchown(&socket, Some(USER), None).expect("fchown");
    socket
}

fn connect(socket: &Socket, to: SocketAddr) {
    let error = socket.connect(&to.into()).expect_err("nobody has answered");
    assert_eq!(error.raw_os_error(), Some(libc::EINPROGRESS), "{to}");
}

/// The next SYN that comes to the tun for this host.
fn syn(front: &Front, to: SocketAddr) -> (Flow, Seq) {
    let (end, mut buffer) = (Instant::now() + LIMIT, [0; 2000]);
    loop {
        let len = match front.lane(0).read(&mut buffer) {
            Ok(len) => len,
            Err(e) if e.kind() == ErrorKind::WouldBlock => {
                assert!(Instant::now() < end, "no SYN for {to}");
                wait(&[front.lane(0).tun()], LIMIT);
                continue;
            }
            Err(e) => panic!("the tun: {e}"),
        };
        if let Some(segment) = packets::parse(&buffer[..len]).tcp()
            && segment.flags & (SYN | ACK) == SYN
            && segment.to == to
        {
            return (Flow { local: segment.from, remote: segment.to }, Seq(segment.seq));
        }
    }
}

#[test]
fn whose_a_syn_is_was_noted_once_for_each() {
    need_root!();
    bounded(LIMIT * 3, || {
        let ns = Namespace::new();
        ns.within(|| {
            let front = Front::make(&wanted()).unwrap_or_else(|e| panic!("{e}"));
            // The third: a socket of IPv6 to a host of IPv4.
            for (v6, asked, to) in [
                (false, "10.9.0.2:80", "10.9.0.2:80"),
                (true, "[fd09::2]:443", "[fd09::2]:443"),
                (true, "[::ffff:10.9.0.3]:25", "10.9.0.3:25"),
            ] {
                let to = to.parse().expect("an address");
                let socket = socket(v6);
                connect(&socket, asked.parse().expect("an address"));
                let (flow, isn) = syn(&front, to);
                let other = Flow { remote: SocketAddr::new(to.ip(), 1), ..flow };
                assert_eq!(
                    (front.lane(0).owner(&other, isn), front.lane(0).owner(&flow, Seq(isn.0 ^ 1))),
                    (None, None)
                );
                let owner = Owner { user: USER, cookie: socket.cookie().expect("SO_COOKIE") };
                assert_eq!(
                    (front.lane(0).owner(&flow, isn), front.lane(0).owner(&flow, isn)),
                    (Some(owner), None),
                    "{asked}"
                );
            }
        });
    });
}

#[test]
fn nothing_is_noted_where_the_kernel_would_not_find_the_socket() {
    need_root!();
    bounded(LIMIT * 3, || {
        let ns = Namespace::new();
        ns.within(|| {
            let front = Front::make(&wanted()).unwrap_or_else(|e| panic!("{e}"));
            // Bound to the device: what comes over lo does not reach it.
            let bound = socket(false);
            bound.bind_device(Some(front.name().as_bytes())).expect("SO_BINDTODEVICE");
            let to = "10.9.0.2:80".parse().expect("an address");
            connect(&bound, to);
            let (flow, isn) = syn(&front, to);
            assert_eq!(front.lane(0).owner(&flow, isn), None);
            // No socket of TCP's has made it, though one has these addresses.
            let honest = socket(false);
            let to: SocketAddr = "10.9.0.3:80".parse().expect("an address");
            connect(&honest, to);
            let (flow, isn) = syn(&front, to);
            assert!(front.lane(0).owner(&flow, isn).is_some());
            let raw = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(libc::IPPROTO_RAW))).expect("a socket");
            let forged = packets::segment(flow.local, flow.remote, isn.0 ^ 0x5555, 0, SYN, &[]);
            raw.send_to(&forged, &to.into()).expect("sent");
            let (again, number) = loop {
                let (again, number) = syn(&front, to);
                // The socket asks again after a second.
                if number != isn {
                    break (again, number);
                }
            };
            assert_eq!((again, front.lane(0).owner(&again, number)), (flow, None));
        });
    });
}

/// Who reads no notes, because there are too many SYNs, loses notes and nothing else.
#[test]
fn a_full_ring_costs_questions_alone() {
    need_root!();
    bounded(LIMIT * 3, || {
        let ns = Namespace::new();
        ns.within(|| {
            let front = Front::make(&wanted()).unwrap_or_else(|e| panic!("{e}"));
            let mut buffer = [0; 2000];
            // More than the ring has room for.
            for port in 1..=1100 {
                let socket = socket(false);
                connect(&socket, SocketAddr::from(([10, 9, 0, 2], port)));
                while front.lane(0).read(&mut buffer).is_ok() {}
            }
            let to = "10.9.0.3:80".parse().expect("an address");
            let lost = socket(false);
            connect(&lost, to);
            let (flow, isn) = syn(&front, to);
            assert_eq!(front.lane(0).owner(&flow, isn), None);
            // That has read them.
            let to = "10.9.0.4:80".parse().expect("an address");
            let noted = socket(false);
            connect(&noted, to);
            let (flow, isn) = syn(&front, to);
            assert!(front.lane(0).owner(&flow, isn).is_some());
        });
    });
}
