//! Whether an address is this network namespace's own, by the kernel's routes (rtnetlink(7)).

use crate::home::Home;
use crate::netlink::{self, HEADER};
use crate::os;
use crate::tuple::{Tuple, unmapped};

/// Whether what is sent to `tuple`'s destination stays in this network namespace. Five system calls; waits for nothing.
///
/// If not, the other end is somewhere else, even if the kernel knows a socket here with its addresses: a proxy that speaks to a
/// server with the address and port of its client (IP_TRANSPARENT, IPV6_FREEBIND) has two sockets of which each has the
/// addresses of the other one's peer.
///
/// # Errors
/// `errno`: nobody can tell now.
pub fn leads_here(home: &Home, tuple: &Tuple) -> Result<bool, i32> {
    let fd = netlink::socket(home, libc::NETLINK_ROUTE)?;
    let seq = shmring::sys::cycles() as u32;
    let (question, len) = question(tuple, seq);
    let mut b = [0u8; 1024];
    let got = netlink::send(fd, &question[..len]).and_then(|()| netlink::receive(fd, &mut b));
    os::close(fd);
    parse(got?.ok_or(libc::EPROTO)?, seq)
}

/// `struct rtmsg`.
const RTMSG: usize = 12;
/// A header, `rtmsg`, an address and an interface's index, each with its `rtattr`.
const LONGEST: usize = HEADER + RTMSG + 20 + 8;

/// Asks which way leads to `tuple`'s destination; how long that is.
fn question(tuple: &Tuple, seq: u32) -> ([u8; LONGEST], usize) {
    let v4 = unmapped(&tuple.dst);
    let (family, address) = match &v4 {
        Some(v4) => (libc::AF_INET, &v4[..]),
        None => (libc::AF_INET6, &tuple.dst[..]),
    };
    let mut b = [0u8; LONGEST];
    let mut len = HEADER + RTMSG;
    let mut attribute = |kind: u16, value: &[u8]| {
        os::put(&mut b, len, &(4 + value.len() as u16).to_ne_bytes());
        os::put(&mut b, len + 2, &kind.to_ne_bytes());
        os::put(&mut b, len + 4, value);
        len += 4 + value.len();
    };
    attribute(libc::RTA_DST, address);
    if tuple.scope != 0 {
        attribute(libc::RTA_OIF, &tuple.scope.to_ne_bytes());
    }
    netlink::begin(&mut b, len, libc::RTM_GETROUTE, 0, seq);
    // Family, and bits of the address.
    os::put(&mut b, HEADER, &[family as u8, 8 * address.len() as u8]);
    (b, len)
}

/// Whether the answer to [`question`] is that the way ends here.
pub(crate) fn parse(b: &[u8], seq: u32) -> Result<bool, i32> {
    /// `rtm_type`.
    const TYPE: usize = HEADER + 7;
    if b.len() <= TYPE || netlink::sequence(b) != seq {
        return Err(libc::EPROTO);
    }
    match netlink::kind(b) {
        libc::RTM_NEWROUTE => Ok(b[TYPE] == libc::RTN_LOCAL),
        // There is no way, or none that is allowed.
        netlink::ERROR => match netlink::errno(b) {
            libc::ENETUNREACH | libc::EHOSTUNREACH | libc::EACCES | libc::EINVAL => Ok(false),
            errno => Err(errno),
        },
        _ => Err(libc::EPROTO),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{HOME, v6_loopback};
    use crate::tuple::mapped;

    #[test]
    fn only_the_addresses_of_this_network_lead_here() {
        let to = |dst| Tuple { src: mapped([127, 0, 0, 1]), dst, sport: 1, dport: 2, scope: 0 };
        for dst in [[127, 0, 0, 1], [127, 3, 2, 1]] {
            assert_eq!(leads_here(&HOME, &to(mapped(dst))), Ok(true));
        }
        let six = std::net::Ipv6Addr::LOCALHOST.octets();
        assert_eq!(leads_here(&HOME, &Tuple { src: six, ..to(six) }), Ok(v6_loopback()));
        // TEST-NET-3 and the prefix for documentation (RFC 5737, RFC 3849): whether there is a way or not, they are nobody's.
        assert_eq!(leads_here(&HOME, &to(mapped([203, 0, 113, 1]))), Ok(false));
        let mut doc = [0; 16];
        doc[..4].copy_from_slice(&[0x20, 0x01, 0x0d, 0xb8]);
        assert_eq!(leads_here(&HOME, &Tuple { src: six, ..to(doc) }), Ok(false));
        assert_eq!(leads_here(&HOME, &to(mapped([255; 4]))), Ok(false), "broadcast");
        let link = std::net::Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0x77).octets();
        assert_eq!(leads_here(&HOME, &Tuple { scope: 1, ..to(link) }), Ok(false));
    }
}
