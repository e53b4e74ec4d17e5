//! A process's datagram socket, through which descriptors are passed.
//!
//! Its name is abstract (unix(7)): it has no inode, dies with its last descriptor, and belongs to a network
//! namespace. Anybody may write to it; so nothing is installed in our descriptor table before the message
//! has been looked at, the kernel states the sender's uid, and its bound name, which nobody else can have
//! while it lives, must be the mailbox that the message claims to come from.
//!
//! A forked child inherits the descriptor, and would share the queue with its parent: it opens its own.
//! Nothing here blocks.

use crate::Place;
use crate::message::{Bad, LEN, MAX_FDS, Message};
use crate::os;

/// An open mailbox. Plain numbers: whoever holds it closes `fd`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mailbox {
    /// The socket.
    pub fd: i32,
    /// What others send to; never 0.
    pub name: u64,
}

/// Why a message was not sent. The kernel tells at once; nothing is queued anywhere else.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SendError {
    /// The receiver has not read what is there: try again later.
    Full,
    /// There is no such mailbox any more.
    Gone,
    /// Another `errno` value (ETOOMANYREFS: too many descriptors of this user are in flight).
    Other(i32),
}

/// A message and what the kernel says about its sender.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Received {
    /// The message. Its `from` is the name of the socket that sent it.
    pub message: Message,
    /// Effective uid of the sender when it sent (or one that it was entitled to claim). Users without a
    /// number in our user namespace all appear as the overflow uid, 65534: no proof of anything there.
    pub uid: u32,
    /// Process id of the sender, 0 if it has none in our pid namespace. For display only.
    pub pid: u32,
    /// Descriptors received, all close-on-exec: exactly [`Message::fds`].
    pub nfds: usize,
}

/// What [`recv`] found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Incoming {
    /// A message of our version.
    Message(Received),
    /// A sender that speaks another version; its descriptors, if any, were dropped.
    VersionMismatch {
        /// Its mailbox.
        from: u64,
        /// Its nonce.
        nonce: u64,
        /// Its version.
        version: u32,
        /// It refused one of ours: do not answer.
        refusal: bool,
    },
}

#[cfg(not(test))]
const PREFIX: &[u8; 9] = b"\0culvert-";
/// Unit tests keep out of reach of whoever floods or watches real mailboxes on the machine: the tests of
/// hostile neighbours do.
#[cfg(test)]
const PREFIX: &[u8; 9] = b"\0cv-test-";
/// Address family, prefix, 16 hexadecimal digits. Abstract names count by length, without a final NUL.
const ADDRESS: usize = 2 + PREFIX.len() + 16;
/// Junk that one call of [`recv`] clears away before it returns.
const BATCH: usize = 16;

fn address(name: u64) -> [u8; ADDRESS] {
    let mut a = [0; ADDRESS];
    os::put(&mut a, 0, &(libc::AF_UNIX as u16).to_ne_bytes());
    os::put(&mut a, 2, PREFIX);
    for i in 0..16 {
        a[2 + PREFIX.len() + i] = b"0123456789abcdef"[(name >> (60 - 4 * i)) as usize & 15];
    }
    a
}

/// Opens a mailbox under a random name and has `place` move its descriptor.
///
/// # Errors
/// `errno` of socket, setsockopt, bind or getrandom.
pub fn open(place: Place) -> Result<Mailbox, i32> {
    let fd = os::socket(libc::AF_UNIX, libc::SOCK_DGRAM, 0)?;
    match name_it(fd) {
        Ok(name) => Ok(Mailbox { fd: place(fd), name }),
        Err(errno) => {
            os::close(fd);
            Err(errno)
        }
    }
}

fn name_it(fd: i32) -> Result<u64, i32> {
    os::set_option(fd, libc::SOL_SOCKET, libc::SO_PASSCRED, 1)?;
    let name = os::random()?.max(1);
    os::bind(fd, &address(name))?;
    Ok(name)
}

// --- control messages (cmsg(3)), by hand: they are read from bytes that a peer had a part in

/// `struct cmsghdr`: length, level, type.
const CMSG_HEADER: usize = 16;
/// `struct ucred`: pid, uid, gid.
const UCRED: usize = 12;
const CREDENTIALS_SPACE: usize = CMSG_HEADER + UCRED + 4;
/// Padding makes room for one descriptor more than `MAX_FDS`, which [`ancillary`] deals with.
const RIGHTS_SPACE: usize = CMSG_HEADER + (4 * MAX_FDS).next_multiple_of(8);

#[repr(C, align(8))]
struct Control([u8; CREDENTIALS_SPACE + RIGHTS_SPACE]);

/// Writes a control message at `at`; returns where the next one begins.
fn put_cmsg(b: &mut [u8], at: usize, kind: i32, len: usize) -> usize {
    os::put(b, at, &(CMSG_HEADER + len).to_ne_bytes());
    os::put(b, at + 8, &libc::SOL_SOCKET.to_ne_bytes());
    os::put(b, at + 12, &kind.to_ne_bytes());
    at + (CMSG_HEADER + len).next_multiple_of(8)
}

/// Sends `message` and `fds` (as many as [`Message::fds`]) from the mailbox `from_fd` to the mailbox `to`.
///
/// # Errors
/// [`SendError`]; `Other(EINVAL)` if the number of descriptors is wrong.
pub fn send(from_fd: i32, to: u64, message: &Message, fds: &[i32]) -> Result<(), SendError> {
    if fds.len() != message.fds() {
        return Err(SendError::Other(libc::EINVAL));
    }
    let mut control = Control([0; _]);
    let b = &mut control.0;
    // Left to itself the kernel fills in the *real* uid (scm_send), but a program that called seteuid
    // owns its sockets and its registry by the effective one.
    for (i, id) in [os::getpid(), os::geteuid(), os::getegid()].iter().enumerate() {
        os::put(b, CMSG_HEADER + 4 * i, &id.to_ne_bytes());
    }
    let mut len = put_cmsg(b, 0, libc::SCM_CREDENTIALS, UCRED);
    if !fds.is_empty() {
        for (i, fd) in fds.iter().enumerate() {
            os::put(b, len + CMSG_HEADER + 4 * i, &fd.to_ne_bytes());
        }
        len = put_cmsg(b, len, libc::SCM_RIGHTS, 4 * fds.len());
    }
    match os::sendmsg(from_fd, &message.encode(), &address(to), &control.0[..len]) {
        Ok(_) => Ok(()),
        Err(libc::EAGAIN) => Err(SendError::Full),
        Err(libc::ECONNREFUSED | libc::ENOENT) => Err(SendError::Gone),
        Err(errno) => Err(SendError::Other(errno)),
    }
}

/// What came in control messages.
struct Ancillary {
    /// uid, pid
    sender: Option<(u32, u32)>,
    /// Descriptors stored.
    nfds: usize,
    /// There were more than fit, and they were closed.
    surplus: bool,
}

/// Reads the control messages the kernel wrote. Descriptors go to `fds`, those beyond its end are closed.
fn ancillary(b: &[u8], fds: &mut [i32; MAX_FDS]) -> Ancillary {
    let mut found = Ancillary { sender: None, nfds: 0, surplus: false };
    let mut rest = b;
    while rest.len() >= CMSG_HEADER {
        // The last one may lack its padding.
        let len = (os::u64_at(rest, 0) as usize).clamp(CMSG_HEADER, rest.len());
        let data = &rest[CMSG_HEADER..len];
        match (os::u32_at(rest, 8) as i32, os::u32_at(rest, 12) as i32) {
            (libc::SOL_SOCKET, libc::SCM_CREDENTIALS) if data.len() >= UCRED => {
                found.sender = Some((os::u32_at(data, 4), os::u32_at(data, 0)));
            }
            (libc::SOL_SOCKET, libc::SCM_RIGHTS) => {
                for fd in data.chunks_exact(4).map(|c| os::u32_at(c, 0) as i32) {
                    match fds.get_mut(found.nfds) {
                        Some(place) => {
                            *place = fd;
                            found.nfds += 1;
                        }
                        None => {
                            os::close(fd);
                            found.surplus = true;
                        }
                    }
                }
            }
            _ => {}
        }
        rest = rest.get(len.next_multiple_of(8)..).unwrap_or(&[]);
    }
    found
}

/// The verdict on one datagram.
fn judge(data: &[u8], got: &os::Datagram, sender: Option<(u32, u32)>) -> Result<Message, Bad> {
    // A datagram that did not fit is not ours, unless it is of a version with longer messages.
    let result = Message::decode(&data[..got.len.min(data.len())]);
    let from = match result {
        Ok(message) if got.len == LEN => message.from(),
        Ok(_) => return Err(Bad::Malformed),
        Err(Bad::Version { from, .. }) => from,
        Err(bad) => return Err(bad),
    };
    // Credentials of a sender that the kernel could not name, or a name that is not the sender's.
    if sender.is_none() || got.address.bytes() != address(from) {
        return Err(Bad::Foreign);
    }
    result
}

/// Takes the next message out of the mailbox; `None` if there is none. Never blocks. Descriptors of a
/// message are in `fds[..nfds]` and then the caller's; those that come with anything but a sound message
/// never enter our descriptor table.
///
/// At most a few junk datagrams are cleared per call, so a flood costs the flooded process little; call
/// again when the program calls again. For one thread at a time: two might drop each other's messages.
pub fn recv(fd: i32, fds: &mut [i32; MAX_FDS]) -> Option<Incoming> {
    let mut control = Control([0; _]);
    // One byte more than a message, to notice longer ones.
    let mut data = [0u8; LEN + 1];
    for _ in 0..BATCH {
        // Look first, with room for the credentials alone.
        let looked = os::recvmsg(fd, &mut data, &mut control.0[..CREDENTIALS_SPACE], libc::MSG_PEEK).ok()?;
        let sender = ancillary(&control.0[..looked.control], fds).sender;
        let expected = judge(&data, &looked, sender).map_or(0, |m| m.fds());
        let room = if expected > 0 { control.0.len() } else { CREDENTIALS_SPACE };

        let got = os::recvmsg(fd, &mut data, &mut control.0[..room], 0).ok()?;
        let came = ancillary(&control.0[..got.control], fds);
        let verdict = judge(&data, &got, came.sender);
        // MSG_CTRUNC: there were descriptors for which we left no room, or our table is full.
        let whole = got.flags & libc::MSG_CTRUNC == 0 && !came.surplus;
        if let (Ok(message), Some((uid, pid)), true) = (verdict, came.sender, whole)
            && came.nfds == message.fds()
        {
            return Some(Incoming::Message(Received { message, uid, pid, nfds: came.nfds }));
        }
        fds[..came.nfds].iter().for_each(|fd| os::close(*fd));
        if let Err(Bad::Version { from, nonce, version, refusal }) = verdict {
            return Some(Incoming::VersionMismatch { from, nonce, version, refusal });
        }
    }
    None
}

#[cfg(test)]
#[path = "mailbox_tests.rs"]
mod tests;
