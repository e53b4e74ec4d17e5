//! All of this module that is unsafe: system calls that std has no safe form of.

#![allow(unsafe_code)]

use std::io;
use std::mem::{MaybeUninit, size_of};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

const TUNSETIFF: libc::c_ulong = 0x4004_54ca;
const TUNGETDEVNETNS: libc::c_ulong = 0x54e3;
/// ioctl_ns(2).
const NS_GET_USERNS: libc::c_ulong = 0xb701;
/// socket(7): since Linux 5.14.
const SO_NETNS_COOKIE: i32 = 71;

fn check(result: i32) -> io::Result<i32> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn owned(result: i32) -> io::Result<OwnedFd> {
    let fd = check(result)?;
    // SAFETY: the kernel has just given us this descriptor; nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Makes the tun `name`, of at most 15 bytes (netdevice's TUNSETIFF).
pub(crate) fn make_tun(tun: BorrowedFd<'_>, name: &str, flags: i32) -> io::Result<()> {
    // SAFETY: ifreq consists of integers, arrays and pointers, for all of which zero bytes are a value.
    let mut request: libc::ifreq = unsafe { MaybeUninit::zeroed().assume_init() };
    // The last byte stays 0 whatever the length.
    for (to, from) in request.ifr_name[..libc::IFNAMSIZ - 1].iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: the descriptor is open; TUNSETIFF reads and writes one ifreq, which lives through the call.
    check(unsafe { libc::ioctl(tun.as_raw_fd(), TUNSETIFF, &raw mut request) }).map(drop)
}

/// The network namespace of a tun.
pub(crate) fn tun_namespace(tun: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    // SAFETY: the descriptor is open; TUNGETDEVNETNS takes no argument.
    owned(unsafe { libc::ioctl(tun.as_raw_fd(), TUNGETDEVNETNS) })
}

/// The user namespace that a namespace belongs to.
pub(crate) fn user_namespace(namespace: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    // SAFETY: the descriptor is open; NS_GET_USERNS takes no argument.
    owned(unsafe { libc::ioctl(namespace.as_raw_fd(), NS_GET_USERNS) })
}

/// A descriptor of another process, which ptrace(2) would have to be allowed for (pidfd_getfd(2)).
pub(crate) fn descriptor_of(process: u32, fd: i32) -> io::Result<OwnedFd> {
    // SAFETY: pidfd_open(2) takes numbers only.
    let process = owned(unsafe { libc::syscall(libc::SYS_pidfd_open, process, 0) } as i32)?;
    // SAFETY: pidfd_getfd(2) takes numbers only.
    owned(unsafe { libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), fd, 0) } as i32)
}

/// A number that names a socket's network namespace as long as the machine runs.
pub(crate) fn namespace(socket: BorrowedFd<'_>) -> io::Result<u64> {
    let (mut cookie, mut len) = (0u64, size_of::<u64>() as libc::socklen_t);
    let (fd, to) = (socket.as_raw_fd(), (&raw mut cookie).cast());
    // SAFETY: getsockopt(2) writes at most `len` bytes of the number; both live through the call.
    check(unsafe { libc::getsockopt(fd, libc::SOL_SOCKET, SO_NETNS_COOKIE, to, &raw mut len) })?;
    Ok(cookie)
}

/// A nonblocking TCP socket that closes on exec.
pub(crate) fn tcp(family: i32) -> io::Result<OwnedFd> {
    let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: socket(2) touches no memory of ours.
    owned(unsafe { libc::socket(family, kind, libc::IPPROTO_TCP) })
}

/// Sets a socket option to a value that is an integer or a struct of integers.
fn set<T>(socket: BorrowedFd<'_>, level: i32, option: i32, value: &T) -> io::Result<()> {
    // SAFETY: setsockopt reads size_of::<T>() bytes of `value`, which lives through the call.
    check(unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            (&raw const *value).cast(),
            size_of::<T>() as libc::socklen_t,
        )
    })
    .map(drop)
}

/// Sets an option that is a number.
pub(crate) fn set_number(socket: BorrowedFd<'_>, level: i32, option: i32, value: i32) -> io::Result<()> {
    set(socket, level, option, &value)
}

/// Closing the socket resets the connection (SO_LINGER with time 0), or, without `reset`, ends it in order.
pub(crate) fn set_reset_on_close(socket: BorrowedFd<'_>, reset: bool) -> io::Result<()> {
    set(socket, libc::SOL_SOCKET, libc::SO_LINGER, &libc::linger { l_onoff: i32::from(reset), l_linger: 0 })
}

/// Ends the connection, with a RST (tcp_disconnect).
pub(crate) fn disconnect(socket: BorrowedFd<'_>) -> io::Result<()> {
    let nobody = libc::sockaddr { sa_family: libc::AF_UNSPEC as libc::sa_family_t, sa_data: [0; 14] };
    // SAFETY: the descriptor is open; connect reads the address, which lives through the call.
    check(unsafe { libc::connect(socket.as_raw_fd(), &raw const nobody, size_of_val(&nobody) as libc::socklen_t) })?;
    Ok(())
}

/// Bytes that were sent, and that the other end has not taken yet (tcp(7), SIOCOUTQ); on a ring: that it has not read.
pub(crate) fn untaken(socket: BorrowedFd<'_>) -> io::Result<u32> {
    let mut count = 0i32;
    // SAFETY: the descriptor is open; TIOCOUTQ writes one int, which lives through the call.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::TIOCOUTQ, &raw mut count) })?;
    Ok(count.max(0) as u32)
}

/// Whether there is room to send now. If not, whoever watches for edges is told when there is.
pub(crate) fn has_room(socket: BorrowedFd<'_>) -> bool {
    let mut asked = libc::pollfd { fd: socket.as_raw_fd(), events: libc::POLLOUT, revents: 0 };
    // SAFETY: one pollfd, which lives through the call; it does not wait.
    unsafe { libc::poll(&raw mut asked, 1, 0) != 0 }
}

pub(crate) fn listen(socket: BorrowedFd<'_>, backlog: i32) -> io::Result<()> {
    // SAFETY: listen(2) touches no memory of ours.
    check(unsafe { libc::listen(socket.as_raw_fd(), backlog) }).map(drop)
}

pub(crate) fn bind(socket: BorrowedFd<'_>, address: SocketAddr) -> io::Result<()> {
    let (address, len) = encode(address);
    // SAFETY: bind(2) reads `len` bytes of the address, which lives through the call.
    check(unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), len) }).map(drop)
}

/// EINPROGRESS is success.
pub(crate) fn connect(socket: BorrowedFd<'_>, address: SocketAddr) -> io::Result<()> {
    let (address, len) = encode(address);
    // SAFETY: connect(2) reads `len` bytes of the address, which lives through the call.
    match check(unsafe { libc::connect(socket.as_raw_fd(), (&raw const address).cast(), len) }) {
        Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => Err(error),
        _ => Ok(()),
    }
}

/// A nonblocking connection, with the address of its other end.
pub(crate) fn accept(listener: BorrowedFd<'_>) -> io::Result<(OwnedFd, SocketAddr)> {
    let mut address = MaybeUninit::<libc::sockaddr_storage>::zeroed();
    let mut len = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
    let flags = libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: accept4(2) writes at most `len` bytes of the address; both live through the call.
    let fd = owned(unsafe { libc::accept4(listener.as_raw_fd(), address.as_mut_ptr().cast(), &raw mut len, flags) })?;
    // SAFETY: zero bytes are a sockaddr_storage, whatever part of it the kernel has written.
    Ok((fd, decode(unsafe { address.assume_init_ref() })?))
}

/// The socket's own end.
pub(crate) fn own_end(socket: BorrowedFd<'_>) -> io::Result<SocketAddr> {
    let mut address = MaybeUninit::<libc::sockaddr_storage>::zeroed();
    let mut len = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
    // SAFETY: getsockname(2) writes at most `len` bytes of the address; both live through the call.
    check(unsafe { libc::getsockname(socket.as_raw_fd(), address.as_mut_ptr().cast(), &raw mut len) })?;
    // SAFETY: zero bytes are a sockaddr_storage, whatever part of it the kernel has written.
    decode(unsafe { address.assume_init_ref() })
}

/// The same descriptor under a number of at least `least`.
pub(crate) fn above(fd: BorrowedFd<'_>, least: i32) -> io::Result<OwnedFd> {
    // SAFETY: fcntl(F_DUPFD_CLOEXEC) touches no memory of ours.
    owned(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, least) })
}

fn encode(address: SocketAddr) -> (libc::sockaddr_storage, libc::socklen_t) {
    // SAFETY: zero bytes are a sockaddr_storage.
    let mut storage: libc::sockaddr_storage = unsafe { MaybeUninit::zeroed().assume_init() };
    let len = match address {
        SocketAddr::V4(a) => {
            let to = (&raw mut storage).cast::<libc::sockaddr_in>();
            let value = libc::sockaddr_in {
                sin_family: libc::AF_INET as libc::sa_family_t,
                sin_port: a.port().to_be(),
                sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(a.ip().octets()) },
                sin_zero: [0; 8],
            };
            // SAFETY: a sockaddr_storage is as large and aligned as any sockaddr.
            unsafe { to.write(value) };
            size_of::<libc::sockaddr_in>()
        }
        SocketAddr::V6(a) => {
            let to = (&raw mut storage).cast::<libc::sockaddr_in6>();
            let value = libc::sockaddr_in6 {
                sin6_family: libc::AF_INET6 as libc::sa_family_t,
                sin6_port: a.port().to_be(),
                sin6_flowinfo: a.flowinfo(),
                sin6_addr: libc::in6_addr { s6_addr: a.ip().octets() },
                sin6_scope_id: a.scope_id(),
            };
            // SAFETY: a sockaddr_storage is as large and aligned as any sockaddr.
            unsafe { to.write(value) };
            size_of::<libc::sockaddr_in6>()
        }
    };
    (storage, len as libc::socklen_t)
}

fn decode(storage: &libc::sockaddr_storage) -> io::Result<SocketAddr> {
    match i32::from(storage.ss_family) {
        libc::AF_INET => {
            // SAFETY: a sockaddr_storage is as large and aligned as any sockaddr, whose fields are integers.
            let a = unsafe { &*(&raw const *storage).cast::<libc::sockaddr_in>() };
            let ip = Ipv4Addr::from(a.sin_addr.s_addr.to_ne_bytes());
            Ok(SocketAddr::new(IpAddr::V4(ip), u16::from_be(a.sin_port)))
        }
        libc::AF_INET6 => {
            // SAFETY: as above.
            let a = unsafe { &*(&raw const *storage).cast::<libc::sockaddr_in6>() };
            let ip = Ipv6Addr::from(a.sin6_addr.s6_addr);
            let port = u16::from_be(a.sin6_port);
            Ok(std::net::SocketAddrV6::new(ip, port, a.sin6_flowinfo, a.sin6_scope_id).into())
        }
        family => Err(io::Error::new(io::ErrorKind::InvalidData, format!("an address of family {family}"))),
    }
}

/// Forbids that an exec of this thread, or of a child, gains rights (prctl's PR_SET_NO_NEW_PRIVS).
pub(crate) fn no_new_privileges() -> io::Result<()> {
    // SAFETY: this prctl(2) takes numbers only.
    check(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_written_and_read() {
        for text in ["192.0.2.7:80", "[2001:db8::7]:65535", "[fe80::1%3]:1"] {
            let address: SocketAddr = text.parse().expect("an address");
            assert_eq!(decode(&encode(address).0).expect("an address"), address);
        }
    }
}
