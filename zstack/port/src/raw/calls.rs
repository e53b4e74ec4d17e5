//! System calls that std has no safe form of.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::Duration;
use zstack::payload::Spans;

const TUNSETIFF: libc::c_ulong = 0x4004_54ca;
const TUNSETOFFLOAD: libc::c_ulong = 0x4004_54d0;

fn check(result: i32) -> io::Result<i32> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// An ifreq that names `name`, which has at most 15 bytes.
fn ifreq(name: &str) -> libc::ifreq {
    // SAFETY: ifreq consists of integers, arrays and pointers, for all of which zero bytes are a value.
    let mut request: libc::ifreq = unsafe { MaybeUninit::zeroed().assume_init() };
    // The last byte stays 0 whatever the length.
    for (to, from) in request.ifr_name[..libc::IFNAMSIZ - 1].iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request
}

/// Makes or attaches to the interface `name` (netdevice's TUNSETIFF) and answers with its real name.
pub(crate) fn attach(tun: BorrowedFd<'_>, name: &str, flags: i32) -> io::Result<String> {
    let mut request = ifreq(name);
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: the descriptor is open; TUNSETIFF reads and writes one ifreq, which lives through the call.
    check(unsafe { libc::ioctl(tun.as_raw_fd(), TUNSETIFF, &raw mut request) })?;
    let name = request.ifr_name.iter().take_while(|c| **c != 0).map(|c| *c as u8 as char);
    Ok(name.collect())
}

/// What the kernel may leave to us in packets that it hands over (TUNSETOFFLOAD).
pub(crate) fn set_offload(tun: BorrowedFd<'_>, flags: u32) -> io::Result<()> {
    // SAFETY: the descriptor is open; TUNSETOFFLOAD takes its argument by value.
    check(unsafe { libc::ioctl(tun.as_raw_fd(), TUNSETOFFLOAD, libc::c_ulong::from(flags)) }).map(drop)
}

/// A socket that closes on exec.
pub(crate) fn socket(family: i32, kind: i32, protocol: i32) -> io::Result<OwnedFd> {
    // SAFETY: socket(2) touches no memory of ours.
    let fd = check(unsafe { libc::socket(family, kind | libc::SOCK_CLOEXEC, protocol) })?;
    // SAFETY: the kernel has just given us this descriptor; nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The MTU of an interface (SIOCGIFMTU on any socket of its network namespace).
pub(crate) fn mtu(socket: BorrowedFd<'_>, name: &str) -> io::Result<u32> {
    let mut request = ifreq(name);
    // SAFETY: the descriptor is open; SIOCGIFMTU reads and writes one ifreq, which lives through the call.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFMTU, &raw mut request) })?;
    // SAFETY: the call has succeeded and has filled in this member of the union.
    Ok(unsafe { request.ifr_ifru.ifru_mtu } as u32)
}

/// The index of an interface.
pub(crate) fn index(name: &str) -> io::Result<u32> {
    let name = std::ffi::CString::new(name).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    // SAFETY: the string ends in a zero byte and lives through the call.
    match unsafe { libc::if_nametoindex(name.as_ptr()) } {
        0 => Err(io::Error::last_os_error()),
        index => Ok(index),
    }
}

/// Sends one datagram to the socket's peer.
pub(crate) fn send(socket: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<()> {
    // SAFETY: the descriptor is open and the bytes live through the call.
    let sent = unsafe { libc::send(socket.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), 0) };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Receives one datagram.
pub(crate) fn receive(socket: BorrowedFd<'_>, bytes: &mut [u8]) -> io::Result<usize> {
    // SAFETY: the descriptor is open; the kernel writes at most `len` bytes at this address, which are ours through the call.
    let got = unsafe { libc::recv(socket.as_raw_fd(), bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    usize::try_from(got).map_err(|_| io::Error::last_os_error())
}

/// Writes one packet: `first`, `second`, and the payload, which the kernel reads where it lies.
///
/// # Safety
/// The payload's spans must be readable through the call.
pub(crate) unsafe fn write_packet(
    fd: BorrowedFd<'_>,
    first: &[u8],
    second: &[u8],
    payload: &Spans,
) -> io::Result<usize> {
    let piece = |start: *const u8, len: usize| libc::iovec { iov_base: start.cast_mut().cast(), iov_len: len };
    let [a, b] = payload.0;
    let pieces = [
        piece(first.as_ptr(), first.len()),
        piece(second.as_ptr(), second.len()),
        piece(a.start, a.len as usize),
        piece(b.start, b.len as usize),
    ];
    // Empty pieces at either end are left out; one between is harmless.
    let begin = usize::from(first.is_empty());
    let end = if b.len > 0 { 4 } else { 2 + usize::from(a.len > 0) };
    let pieces = &pieces[begin..end];
    // SAFETY: the descriptor is open; writev only reads. The first two pieces are borrowed slices, the others are readable by
    // this function's contract.
    let written = unsafe { libc::writev(fd.as_raw_fd(), pieces.as_ptr(), pieces.len() as i32) };
    usize::try_from(written).map_err(|_| io::Error::last_os_error())
}

/// ppoll(2) without a signal mask: the number of descriptors with something to tell.
pub(crate) fn poll(fds: &mut [libc::pollfd], limit: Option<Duration>) -> io::Result<usize> {
    let limit = limit.map(|d| libc::timespec {
        tv_sec: libc::time_t::try_from(d.as_secs()).unwrap_or(libc::time_t::MAX),
        tv_nsec: libc::c_long::from(d.subsec_nanos() as i32),
    });
    let limit = limit.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: `fds` is a borrowed slice of pollfd, `limit` null or a timespec of this frame, and no mask is given.
    let ready = unsafe { libc::ppoll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, limit, std::ptr::null()) };
    usize::try_from(ready).map_err(|_| io::Error::last_os_error())
}

/// A descriptor that another thread makes readable with [`ring`].
pub(crate) fn bell() -> io::Result<OwnedFd> {
    // SAFETY: eventfd(2) touches no memory of ours.
    let fd = check(unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) })?;
    // SAFETY: the kernel has just given us this descriptor; nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Makes a [`bell`] readable.
pub(crate) fn ring(bell: BorrowedFd<'_>) {
    let one = 1u64.to_ne_bytes();
    // SAFETY: the kernel reads 8 bytes of this frame.
    unsafe { libc::write(bell.as_raw_fd(), one.as_ptr().cast(), 8) };
}

/// Makes a [`bell`] unreadable.
pub(crate) fn drain(bell: BorrowedFd<'_>) {
    let mut count = [0u8; 8];
    // SAFETY: the kernel writes at most 8 bytes to memory of this frame. The descriptor does not block.
    unsafe { libc::read(bell.as_raw_fd(), count.as_mut_ptr().cast(), 8) };
}
