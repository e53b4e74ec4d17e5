//! The two addresses of a connection, in one form whatever family the program used.

use crate::os::{self, End};

/// The 4-tuple of a TCP connection as one of its ends sees it: `src` is the end that "owns" the tuple.
///
/// IPv4 addresses are kept v4-mapped (RFC 4291 section 2.5.5.2): an AF_INET client of a dual-stack
/// AF_INET6 server has the same tuple at both ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Tuple {
    /// Source address.
    pub src: [u8; 16],
    /// Destination address.
    pub dst: [u8; 16],
    /// Source port, host order.
    pub sport: u16,
    /// Destination port, host order.
    pub dport: u16,
    /// Interface index that a link-local address belongs to; 0 if neither address is link-local. The
    /// kernel gives both ends of a connection within one host the same index.
    pub scope: u32,
}

const V4_PREFIX: [u8; 12] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff];

/// An IPv4 address in v4-mapped form.
pub fn mapped(v4: [u8; 4]) -> [u8; 16] {
    let mut out = [0; 16];
    out[..12].copy_from_slice(&V4_PREFIX);
    out[12..].copy_from_slice(&v4);
    out
}

/// The IPv4 address in a v4-mapped one.
pub fn unmapped(address: &[u8; 16]) -> Option<[u8; 4]> {
    address.starts_with(&V4_PREFIX).then(|| os::array(address, 12))
}

fn is_any(address: &[u8; 16]) -> bool {
    matches!(unmapped(address), Some([0, 0, 0, 0])) || *address == [0; 16]
}

fn is_loopback(address: &[u8; 16]) -> bool {
    match unmapped(address) {
        Some(v4) => v4[0] == 127,
        None => u128::from_be_bytes(*address) == 1,
    }
}

/// Whether a socket that is connected to `sockaddr` may get a peer on another host. One that is this host's, and no loopback address, counts.
/// An address that is none, or not of IPv4 or IPv6, leads nowhere.
pub fn may_be_elsewhere(sockaddr: &[u8]) -> bool {
    // What is connected to no address is connected to this host (tcp(7), ipv6(7)).
    parse(sockaddr).is_ok_and(|h| !is_loopback(&h.address) && !is_any(&h.address))
}

/// Whether somebody on another host may connect to a socket that is bound to `sockaddr`.
pub fn may_be_reached(sockaddr: &[u8]) -> bool {
    parse(sockaddr).is_ok_and(|h| !is_loopback(&h.address))
}

/// Whether `sockaddr` has a port, as that of a socket has which is bound, or was.
pub fn has_port(sockaddr: &[u8]) -> bool {
    parse(sockaddr).is_ok_and(|h| h.port != 0)
}

/// One end of a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Half {
    address: [u8; 16],
    port: u16,
    scope: u32,
}

/// Reads a `sockaddr_in` or `sockaddr_in6`.
fn parse(sockaddr: &[u8]) -> Result<Half, i32> {
    let port = u16::from_be_bytes(os::array(sockaddr, 2));
    match (os::u16_at(sockaddr, 0) as i32, sockaddr.len()) {
        (libc::AF_INET, 8..) => Ok(Half { address: mapped(os::array(sockaddr, 4)), port, scope: 0 }),
        (libc::AF_INET6, 28..) => {
            let address = os::array(sockaddr, 8);
            // IPv4 has no scopes.
            let scope = if unmapped(&address).is_some() { 0 } else { os::u32_at(sockaddr, 24) };
            Ok(Half { address, port, scope })
        }
        _ => Err(libc::EAFNOSUPPORT),
    }
}

impl Tuple {
    fn join(src: Half, dst: Half) -> Tuple {
        Tuple {
            src: src.address,
            dst: dst.address,
            sport: src.port,
            dport: dst.port,
            // If both have one, it is the same: a connection stays within a scope.
            scope: src.scope.max(dst.scope),
        }
    }

    /// The tuple of the connected socket `fd`: its own, or with `peer_first` that of the socket at the
    /// other end. Two system calls, never blocks.
    ///
    /// # Errors
    /// `errno` of getsockname or getpeername (ENOTCONN: not connected, or no longer), or EAFNOSUPPORT for
    /// a socket that is neither IPv4 nor IPv6.
    pub fn of(fd: i32, peer_first: bool) -> Result<Tuple, i32> {
        let local = parse(os::address_of(fd, End::Local)?.bytes())?;
        let peer = parse(os::address_of(fd, End::Peer)?.bytes())?;
        Ok(if peer_first { Tuple::join(peer, local) } else { Tuple::join(local, peer) })
    }

    /// The same connection seen from the other end.
    pub fn reversed(&self) -> Tuple {
        Tuple { src: self.dst, dst: self.src, sport: self.dport, dport: self.sport, scope: self.scope }
    }

    /// Whether the addresses alone show that the peer is on this host. `false` says nothing: the
    /// destination may still be another address of this host.
    pub fn is_local_hint(&self) -> bool {
        self.src == self.dst || (is_loopback(&self.src) && is_loopback(&self.dst))
    }

    /// Whether `sockaddr`, a `sockaddr_in` or `sockaddr_in6`, is the destination; `None`: it is neither of these.
    pub fn leads_to(&self, sockaddr: &[u8]) -> Option<bool> {
        parse(sockaddr).ok().map(|h| (h.address, h.port) == (self.dst, self.dport))
    }

    /// Whether the socket is connected to itself (TCP simultaneous open with one socket).
    pub fn is_self(&self) -> bool {
        self.src == self.dst && self.sport == self.dport
    }

    /// Whether both addresses are IPv4.
    pub fn is_v4(&self) -> bool {
        unmapped(&self.src).is_some() && unmapped(&self.dst).is_some()
    }

    /// A hash that is the same in every process and every version: the registry's files depend on it.
    /// It is not keyed: whoever writes a registry file can only crowd their own.
    pub fn hash(&self) -> u64 {
        let words = [
            os::u64_at(&self.src, 0),
            os::u64_at(&self.src, 8),
            os::u64_at(&self.dst, 0),
            os::u64_at(&self.dst, 8),
            (self.sport as u64) << 48 | (self.dport as u64) << 32 | self.scope as u64,
        ];
        words.iter().fold(0x6375_6c76_6572_7431, |h, w| mix(h ^ w))
    }
}

/// A bijection of 64-bit words in which each input bit reaches all output bits.
pub(crate) fn mix(mut x: u64) -> u64 {
    // Odd constants, so that the multiplications lose nothing; shifts bring high bits back down.
    x ^= x >> 31;
    x = x.wrapping_mul(0x7fb5_d329_728e_a185);
    x ^= x >> 27;
    x = x.wrapping_mul(0x81da_def4_bc2d_d44d);
    x ^ (x >> 33)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{accepted, v6_loopback};
    use proptest::prelude::*;
    use std::net::{TcpListener, TcpStream, UdpSocket};
    use std::os::fd::AsRawFd;

    fn sockaddr_in(address: [u8; 4], port: u16) -> Vec<u8> {
        let mut b = (libc::AF_INET as u16).to_ne_bytes().to_vec();
        b.extend(port.to_be_bytes());
        b.extend(address);
        b.extend([0; 8]);
        b
    }

    fn sockaddr_in6(address: [u8; 16], port: u16, flow: u32, scope: u32) -> Vec<u8> {
        let mut b = (libc::AF_INET6 as u16).to_ne_bytes().to_vec();
        b.extend(port.to_be_bytes());
        b.extend(flow.to_be_bytes());
        b.extend(address);
        b.extend(scope.to_ne_bytes());
        b
    }

    fn any_tuple() -> impl Strategy<Value = Tuple> {
        (any::<[u8; 16]>(), any::<[u8; 16]>(), any::<u16>(), any::<u16>(), any::<u32>())
            .prop_map(|(src, dst, sport, dport, scope)| Tuple { src, dst, sport, dport, scope })
    }

    proptest! {
        #[test]
        fn a_v4_mapped_address_equals_the_plain_one(v4: [u8; 4], port: u16, flow: u32, scope: u32) {
            let plain = parse(&sockaddr_in(v4, port)).unwrap();
            let six = parse(&sockaddr_in6(mapped(v4), port, flow, scope)).unwrap();
            prop_assert_eq!(plain, six);
            prop_assert_eq!(unmapped(&plain.address), Some(v4));
        }

        #[test]
        fn v6_addresses_keep_every_bit_but_the_flow_label(a: [u8; 16], port: u16, flow: u32, scope: u32) {
            prop_assume!(unmapped(&a).is_none());
            let half = parse(&sockaddr_in6(a, port, flow, scope)).unwrap();
            prop_assert_eq!(half, Half { address: a, port, scope });
        }

        #[test]
        fn reversing_twice_is_the_identity_and_changes_the_hash(t in any_tuple()) {
            prop_assert_eq!(t.reversed().reversed(), t);
            prop_assert_eq!(t.reversed() == t, t.is_self());
            if !t.is_self() {
                prop_assert_ne!(t.reversed().hash(), t.hash());
            }
            prop_assert_eq!(t.reversed().is_local_hint(), t.is_local_hint());
        }

        #[test]
        fn every_field_counts_in_the_hash(t in any_tuple(), bit in 0usize..(40 * 8)) {
            let mut u = t;
            let mask = 1u8 << (bit % 8);
            match bit / 8 {
                i @ 0..16 => u.src[i] ^= mask,
                i @ 16..32 => u.dst[i - 16] ^= mask,
                i @ 32..34 => u.sport ^= (mask as u16) << (8 * (i - 32)),
                i @ 34..36 => u.dport ^= (mask as u16) << (8 * (i - 34)),
                i => u.scope ^= (mask as u32) << (8 * (i - 36)),
            }
            prop_assert_ne!(u.hash(), t.hash());
        }

        #[test]
        fn no_sockaddr_makes_the_parser_panic(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            let known = bytes.len() >= 8 && [libc::AF_INET, libc::AF_INET6].contains(&(os::u16_at(&bytes, 0) as i32));
            prop_assert!(known || parse(&bytes) == Err(libc::EAFNOSUPPORT));
        }
    }

    #[test]
    fn the_hash_is_the_one_that_registry_files_contain() {
        let t = Tuple { src: mapped([127, 0, 0, 1]), dst: mapped([127, 0, 0, 1]), sport: 40000, dport: 80, scope: 0 };
        assert_eq!(t.hash(), 5_529_751_329_488_508_710);
    }

    #[test]
    fn both_ends_of_a_connection_agree() {
        for (listen, connect) in
            [("127.0.0.1", "127.0.0.1"), ("::1", "::1"), ("::", "127.0.0.1"), ("127.0.0.1", "::ffff:127.0.0.1")]
        {
            if listen.contains(':') && !v6_loopback() {
                continue;
            }
            let l = TcpListener::bind((listen, 0)).unwrap();
            let (client, server) = accepted(&l, connect);
            let ours = Tuple::of(client.as_raw_fd(), false).unwrap();
            assert_eq!(ours, Tuple::of(server.as_raw_fd(), true).unwrap());
            assert_eq!(ours.reversed(), Tuple::of(server.as_raw_fd(), false).unwrap());
            assert_eq!(ours.dport, l.local_addr().unwrap().port());
            assert_eq!(ours.is_v4(), connect.contains('.'));
            assert!(ours.is_local_hint() && !ours.is_self());
        }
    }

    #[test]
    fn hints_and_errors() {
        let host = |a, b| Tuple { src: mapped(a), dst: mapped(b), sport: 1, dport: 2, scope: 0 };
        assert!(host([127, 0, 0, 1], [127, 1, 2, 3]).is_local_hint());
        assert!(host([10, 0, 0, 1], [10, 0, 0, 1]).is_local_hint());
        assert!(!host([10, 0, 0, 1], [10, 0, 0, 2]).is_local_hint());
        assert!(!host([127, 0, 0, 1], [10, 0, 0, 2]).is_local_hint());

        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        assert_eq!(Tuple::of(listener.as_raw_fd(), false), Err(libc::ENOTCONN));
        let (unix, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        assert_eq!(Tuple::of(unix.as_raw_fd(), false), Err(libc::EAFNOSUPPORT));
        assert_eq!(Tuple::of(-1, false), Err(libc::EBADF));

        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        udp.connect(udp.local_addr().unwrap()).unwrap();
        assert!(Tuple::of(udp.as_raw_fd(), false).unwrap().is_self());
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        assert!(!Tuple::of(client.as_raw_fd(), false).unwrap().is_self());
    }
}
