//! What names a connection on the wire: two addresses and two ports.

use crate::sip::Key;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// An address of either family in 16 bytes; IPv4 as IPv6 maps it (RFC 4291, section 2.5.5.2).
pub type Mapped = [u8; 16];

/// An address in 16 bytes.
#[inline]
pub fn map(address: IpAddr) -> Mapped {
    match address {
        IpAddr::V4(v4) => map_v4(v4.octets()),
        IpAddr::V6(v6) => v6.octets(),
    }
}

/// An IPv4 address in 16 bytes.
#[inline]
pub fn map_v4(v4: [u8; 4]) -> Mapped {
    let [a, b, c, d] = v4;
    [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d]
}

/// An address as two words, to be hashed.
#[inline]
pub fn words(mapped: &Mapped) -> [u64; 2] {
    let bits = u128::from_le_bytes(*mapped);
    [bits as u64, (bits >> 64) as u64]
}

/// The address that was mapped. An IPv6 packet with a mapped address never gets this far: such addresses do not appear on the
/// wire (RFC 4291, section 2.5.5.2), and the input checks drop them.
#[inline]
pub fn unmap(mapped: &Mapped) -> IpAddr {
    match mapped {
        [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d] => IpAddr::V4(Ipv4Addr::new(*a, *b, *c, *d)),
        other => IpAddr::V6(Ipv6Addr::from(*other)),
    }
}

/// Both ends of a connection.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Tuple {
    /// Our address.
    pub local: Mapped,
    /// The peer's.
    pub remote: Mapped,
    /// Our port.
    pub local_port: u16,
    /// The peer's.
    pub remote_port: u16,
}

impl Tuple {
    /// From our end and the peer's.
    pub fn new(local: SocketAddr, remote: SocketAddr) -> Tuple {
        Tuple { local: map(local.ip()), remote: map(remote.ip()), local_port: local.port(), remote_port: remote.port() }
    }

    /// Our end.
    pub fn local(&self) -> SocketAddr {
        SocketAddr::new(unmap(&self.local), self.local_port)
    }

    /// The peer's end.
    pub fn remote(&self) -> SocketAddr {
        SocketAddr::new(unmap(&self.remote), self.remote_port)
    }

    /// Whether the addresses are IPv4.
    #[inline]
    pub fn is_v4(&self) -> bool {
        self.local[..12] == [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff]
    }

    /// The two ports in one number.
    #[inline]
    fn ports(&self) -> u64 {
        u64::from(self.local_port) << 16 | u64::from(self.remote_port)
    }

    /// A keyed hash; tuples of the two families are never the same words.
    #[inline]
    pub fn hash(&self, key: &Key) -> u64 {
        if self.is_v4() {
            let four =
                |mapped: &Mapped| u64::from(u32::from_le_bytes([mapped[12], mapped[13], mapped[14], mapped[15]]));
            return key.hash(&[four(&self.local) << 32 | four(&self.remote), self.ports()]);
        }
        let ([a, b], [c, d]) = (words(&self.local), words(&self.remote));
        key.hash(&[a, b, c, d, self.ports()])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_families_keep_their_form() {
        for (local, remote) in [("10.0.0.1:80", "192.0.2.7:4711"), ("[2001:db8::1]:80", "[fe80::2]:65535")] {
            let tuple = Tuple::new(local.parse().unwrap(), remote.parse().unwrap());
            assert_eq!((tuple.local(), tuple.remote()), (local.parse().unwrap(), remote.parse().unwrap()));
            assert_eq!(tuple.is_v4(), local.starts_with('1'));
        }
        assert_eq!(std::mem::size_of::<Tuple>(), 36);
    }

    #[test]
    fn every_part_counts() {
        let key = Key::new(b"0123456789abcdef");
        let hash = |local: &str, remote: &str| Tuple::new(local.parse().unwrap(), remote.parse().unwrap()).hash(&key);
        let all = [
            hash("10.0.0.1:80", "10.0.0.2:81"),
            hash("10.0.0.2:81", "10.0.0.1:80"),
            hash("10.0.0.1:81", "10.0.0.2:80"),
            hash("10.0.0.2:80", "10.0.0.1:81"),
            hash("[2001:db8::1]:80", "[2001:db8::2]:81"),
            hash("[2001:db8::2]:80", "[2001:db8::1]:81"),
            hash("[2001:db8:1::1]:80", "[2001:db8::2]:81"),
        ];
        let unique: std::collections::HashSet<_> = all.iter().collect();
        assert_eq!(unique.len(), all.len());
    }
}
