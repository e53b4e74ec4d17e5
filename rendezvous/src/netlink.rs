//! Questions to the kernel by netlink(7): the header of a message, and what comes back. The kernel answers before `sendto` returns, so
//! nothing here waits.

use crate::home::Home;
use crate::os;

/// `struct nlmsghdr`.
pub(crate) const HEADER: usize = 16;
/// The least that an answer has: a header, and an error or the first word of what was asked for.
pub(crate) const SHORTEST: usize = HEADER + 4;

/// Kinds of messages: an error, and the end of a list.
pub(crate) const ERROR: u16 = 2;
pub(crate) const DONE: u16 = 3;

const REQUEST: u16 = 0x1;
const DUMP_INTR: u16 = 0x10;
/// Flag: all that fits is to be listed.
pub(crate) const DUMP: u16 = 0x300;

/// `struct sockaddr_nl` of the kernel: family, and zeros.
const KERNEL: [u8; 12] = [libc::AF_NETLINK as u8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// A socket at home for questions of a protocol.
pub(crate) fn socket(home: &Home, protocol: i32) -> Result<i32, i32> {
    home.socket(libc::AF_NETLINK, libc::SOCK_RAW, protocol)
}

/// Writes the header of a question that is `len` bytes long.
pub(crate) fn begin(b: &mut [u8], len: usize, kind: u16, flags: u16, seq: u32) {
    os::put(b, 0, &(len as u32).to_ne_bytes());
    os::put(b, 4, &kind.to_ne_bytes());
    os::put(b, 6, &(REQUEST | flags).to_ne_bytes());
    os::put(b, 8, &seq.to_ne_bytes());
}

pub(crate) fn send(fd: i32, question: &[u8]) -> Result<(), i32> {
    os::sendto(fd, question, &KERNEL).map(|_| ())
}

/// What has come. `None`: it is not from the kernel (`nl_pid` 0), as a privileged process can write to our port as well.
///
/// # Errors
/// `errno`; EMSGSIZE: it is longer than `b`.
pub(crate) fn receive(fd: i32, b: &mut [u8]) -> Result<Option<&[u8]>, i32> {
    let got = os::recvmsg(fd, b, &mut [], 0)?;
    let from = got.address.bytes();
    let is_kernels = from.len() == KERNEL.len() && os::u32_at(from, 4) == 0;
    let message = b.get(..got.len).ok_or(libc::EMSGSIZE)?;
    Ok(is_kernels.then_some(message))
}

pub(crate) fn kind(message: &[u8]) -> u16 {
    os::u16_at(message, 4)
}

pub(crate) fn sequence(message: &[u8]) -> u32 {
    os::u32_at(message, 8)
}

/// Whether the list that the message is a part of changed while the kernel made it.
pub(crate) fn was_disturbed(message: &[u8]) -> bool {
    os::u16_at(message, 6) & DUMP_INTR != 0
}

/// What an [`ERROR`] says; 0 confirms what was asked for. The message has [`SHORTEST`] bytes.
pub(crate) fn errno(message: &[u8]) -> i32 {
    (os::u32_at(message, HEADER) as i32).wrapping_neg()
}

/// The first message of `b`, and what follows it.
///
/// # Errors
/// EPROTO: its length contradicts the bytes.
pub(crate) fn split(b: &[u8]) -> Result<(&[u8], &[u8]), i32> {
    if b.len() < HEADER {
        return Err(libc::EPROTO);
    }
    let len = os::u32_at(b, 0) as usize;
    let message = b.get(..len).filter(|m| m.len() >= HEADER).ok_or(libc::EPROTO)?;
    Ok((message, b.get(len.next_multiple_of(4)..).unwrap_or(&[])))
}
