//! Whom a client has asked for.
// Unsafe here: two calls of libc that write an address.
#![allow(unsafe_code)]

use libc::{c_int, sockaddr_in, sockaddr_in6, sockaddr_storage, socklen_t};
use std::io;
use std::mem::zeroed;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd};

/// linux/netfilter_ipv4.h, and its like of IPv6.
const SO_ORIGINAL_DST: c_int = 80;

/// The address that the client of an accepted TCP connection has asked for, in a middlebox to which the connection was brought: by
/// `culvert steer` (`[[redirect]]`, where the middlebox's control group is named), by netfilter's REDIRECT or DNAT, or by TPROXY or an `sk_lookup` program,
/// which leave the address as it is. Where nobody has brought it, that is the socket's own address: a middlebox that
/// connects to what it is told must not do so then. An IPv4 address is one, also of an IPv6 socket. Never waits.
///
/// # Errors
/// Those of `getsockname`; [`Unsupported`](io::ErrorKind::Unsupported): the socket is not one of IP.
pub fn asked(socket: &impl AsFd) -> io::Result<SocketAddr> {
    let fd = socket.as_fd().as_raw_fd();
    // SAFETY: zeros are an address, of no family.
    let mut name: sockaddr_storage = unsafe { zeroed() };
    let mut len = size_of::<sockaddr_storage>() as socklen_t;
    // SAFETY: `name` has room for `len` bytes.
    if unsafe { libc::getsockname(fd, (&raw mut name).cast(), &raw mut len) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let own = address(&name).ok_or(io::ErrorKind::Unsupported)?;
    let level = if own.is_ipv4() { libc::IPPROTO_IP } else { libc::IPPROTO_IPV6 };
    let mut len = size_of::<sockaddr_storage>() as socklen_t;
    // SAFETY: `name` has room for `len` bytes.
    let told = unsafe { libc::getsockopt(fd, level, SO_ORIGINAL_DST, (&raw mut name).cast(), &raw mut len) } == 0;
    Ok(if told { address(&name).unwrap_or(own) } else { own })
}

fn address(name: &sockaddr_storage) -> Option<SocketAddr> {
    match c_int::from(name.ss_family) {
        libc::AF_INET => {
            // SAFETY: its family says what it is, and there is room for the largest.
            let four = unsafe { &*(&raw const *name).cast::<sockaddr_in>() };
            let ip = Ipv4Addr::from(four.sin_addr.s_addr.to_ne_bytes());
            Some(SocketAddr::new(ip.into(), u16::from_be(four.sin_port)))
        }
        libc::AF_INET6 => {
            // SAFETY: as above.
            let six = unsafe { &*(&raw const *name).cast::<sockaddr_in6>() };
            let ip = IpAddr::from(Ipv6Addr::from(six.sin6_addr.s6_addr)).to_canonical();
            Some(SocketAddr::new(ip, u16::from_be(six.sin6_port)))
        }
        _ => None,
    }
}
