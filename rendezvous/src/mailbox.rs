//! A process's datagram sockets, through which it is asked to share memory.
//!
//! Their names are abstract (unix(7)): they have no inode, die with their last descriptor, and belong to a network
//! namespace. Anybody may write to them, and read their names in `/proc/net/unix`. So:
//!
//! * A filter of the socket's drops, before it takes a place in the queue and wakes anybody, what is no message of our
//!   version. A *mailbox* takes questions and answers, and no descriptor. A descriptor is taken only by an *answer box*, a
//!   mailbox made for one answer: its filter wants the key that was told to the one who is to answer.
//! * A descriptor is nothing to receive lightly: whoever drops the last reference to an open file runs its `release` and
//!   waits for it, as for a socket with SO_LINGER. Linux 6.16 lets a socket refuse them (SO_PASSRIGHTS); a mailbox of an
//!   older kernel that finds one waiting is *spoilt*: it is never read again, and another takes its place.
//! * The kernel states the sender's uid. That the sender is who was asked, is proved by the nonce, sent through a *line*: a
//!   socket connected to the mailbox itself, not to its name, which somebody else may have by now.
//!
//! A forked child inherits the descriptor, and would share the queue with its parent: it opens its own.
//! Nothing here blocks.

use crate::Place;
use crate::home::Home;
use crate::message::{self, LEN, Message, VERSION};
use crate::os::{self, Filter};

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

impl SendError {
    pub(crate) fn from(errno: i32) -> SendError {
        match errno {
            libc::EAGAIN => SendError::Full,
            libc::ECONNREFUSED | libc::ENOENT | libc::ECONNRESET => SendError::Gone,
            errno => SendError::Other(errno),
        }
    }
}

/// A message and what the kernel says about its sender.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Received {
    /// The message.
    pub message: Message,
    /// Effective uid of the sender when it sent (or one that it was entitled to claim), in the numbers of our user
    /// namespace: see [`uid::proves`](crate::uid::proves).
    pub uid: u32,
    /// Process id of the sender, 0 if it has none in our pid namespace. For display only.
    pub pid: u32,
}

/// What [`recv`] found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Incoming {
    /// A message.
    Message(Received),
    /// Nothing that counts; there may be more.
    Junk,
    /// There is nothing.
    Empty,
    /// A descriptor lies in the queue, and whoever drops it may have to wait for its owner: the mailbox is to be left open and
    /// unread, and another one opened.
    Spoilt,
}

/// What [`recv_answer`] found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Answer {
    /// A [`Message::Channel`] and its memfd, close-on-exec, which is the caller's.
    Channel(Received, i32),
    /// There is nothing.
    Empty,
    /// The sender broke the rules: the answer box, and the descriptor if there is one (not -1), stay open, for to close them
    /// could wait for their owner.
    Spoilt(i32),
}

#[cfg(not(test))]
pub(crate) const PREFIX: &[u8; 9] = b"\0culvert-";
/// Unit tests keep out of reach of whoever floods or watches real mailboxes on the machine: the tests of
/// hostile neighbours do.
#[cfg(test)]
pub(crate) const PREFIX: &[u8; 9] = b"\0cv-test-";
/// Address family, prefix, 16 hexadecimal digits. Abstract names count by length, without a final NUL.
pub(crate) const ADDRESS: usize = 2 + PREFIX.len() + 16;

pub(crate) fn address(name: u64) -> [u8; ADDRESS] {
    let mut a = [0; ADDRESS];
    os::put(&mut a, 0, &(libc::AF_UNIX as u16).to_ne_bytes());
    os::put(&mut a, 2, PREFIX);
    for i in 0..16 {
        a[2 + PREFIX.len() + i] = b"0123456789abcdef"[(name >> (60 - 4 * i)) as usize & 15];
    }
    a
}

/// Opens a mailbox, at home, under a random name and has `place` move its descriptor. With a `key`: an answer box.
///
/// # Errors
/// `errno` of socket, setsockopt, bind or getrandom; those of [`Home`].
pub fn open(place: Place, key: Option<u64>, home: &Home) -> Result<Mailbox, i32> {
    let fd = home.socket(libc::AF_UNIX, libc::SOCK_DGRAM, 0)?;
    match name_it(fd, key) {
        Ok(name) => Ok(Mailbox { fd: place(fd), name }),
        Err(errno) => {
            os::close(fd);
            Err(errno)
        }
    }
}

fn name_it(fd: i32, key: Option<u64>) -> Result<u64, i32> {
    os::set_option(fd, libc::SOL_SOCKET, libc::SO_PASSCRED, 1)?;
    if key.is_none() {
        // Where the kernel cannot, `recv` finds out.
        os::refuse_descriptors(fd);
    }
    // Before it has a name, and anybody can write to it.
    let mut f = Filter::new();
    f.length(LEN as u32);
    f.word(0, &message::MAGIC.to_ne_bytes()[..4]);
    f.word(4, &message::MAGIC.to_ne_bytes()[4..]);
    f.word(8, &VERSION.to_ne_bytes());
    match key {
        Some(key) => {
            f.word(12, &message::CHANNEL.to_ne_bytes());
            f.word(24, &key.to_ne_bytes()[..4]);
            f.word(28, &key.to_ne_bytes()[4..]);
        }
        None => f.either(12, &message::KNOCK.to_ne_bytes(), &message::WELCOME.to_ne_bytes()),
    }
    f.attach(fd)?;
    let name = os::random()?.max(1);
    os::bind(fd, &address(name))?;
    Ok(name)
}

/// A socket, at home, that is connected to the mailbox `to`: to this very mailbox, whoever has its name later. Whoever holds it closes
/// it.
///
/// # Errors
/// [`SendError`].
pub fn line(to: u64, home: &Home) -> Result<i32, SendError> {
    let fd = home.socket(libc::AF_UNIX, libc::SOCK_DGRAM, 0).map_err(SendError::Other)?;
    os::connect(fd, &address(to)).map(|()| fd).map_err(|errno| {
        os::close(fd);
        SendError::from(errno)
    })
}

/// Whether there is a mailbox `name`. Nothing is put into it: its filter drops what this sends.
pub fn exists(from_fd: i32, name: u64) -> bool {
    !matches!(os::sendto(from_fd, &[], &address(name)).map_err(SendError::from), Err(SendError::Gone))
}

// --- control messages (cmsg(3)), by hand: they are read from bytes that a peer had a part in

/// `struct cmsghdr`: length, level, type.
const CMSG_HEADER: usize = 16;
/// `struct ucred`: pid, uid, gid.
const UCRED: usize = 12;
const CREDENTIALS_SPACE: usize = CMSG_HEADER + UCRED + 4;
/// One descriptor, and not one more: the kernel has no room for it then, and drops it.
const RIGHTS_SPACE: usize = CMSG_HEADER + 4;

#[repr(C, align(8))]
struct Control([u8; (CREDENTIALS_SPACE + RIGHTS_SPACE).next_multiple_of(8)]);

/// Writes a control message at `at`; returns where the next one begins.
fn put_cmsg(b: &mut [u8], at: usize, kind: i32, len: usize) -> usize {
    os::put(b, at, &(CMSG_HEADER + len).to_ne_bytes());
    os::put(b, at + 8, &libc::SOL_SOCKET.to_ne_bytes());
    os::put(b, at + 12, &kind.to_ne_bytes());
    at + (CMSG_HEADER + len).next_multiple_of(8)
}

/// Sends `message`, and `fd` with a [`Message::Channel`], from the socket `from_fd` to the mailbox `to`; `None`: to the
/// mailbox that it is connected to.
///
/// # Errors
/// [`SendError`]; `Other(EINVAL)` if there is a descriptor too many or too few.
pub fn send(from_fd: i32, to: Option<u64>, message: &Message, fd: Option<i32>) -> Result<(), SendError> {
    if usize::from(fd.is_some()) != message.fds() {
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
    if let Some(fd) = fd {
        os::put(b, len + CMSG_HEADER, &fd.to_ne_bytes());
        len = put_cmsg(b, len, libc::SCM_RIGHTS, 4);
    }
    let name = to.map(address);
    let address = name.as_ref().map_or(&[][..], |a| &a[..]);
    os::sendmsg(from_fd, &message.encode(), address, &control.0[..len]).map(drop).map_err(SendError::from)
}

/// What came in control messages.
struct Ancillary {
    /// uid, pid
    sender: Option<(u32, u32)>,
    /// A descriptor, or -1.
    fd: i32,
}

/// Reads the control messages the kernel wrote.
fn ancillary(b: &[u8]) -> Ancillary {
    let mut found = Ancillary { sender: None, fd: -1 };
    let mut rest = b;
    while rest.len() >= CMSG_HEADER {
        // The last one may lack its padding.
        let len = (os::u64_at(rest, 0) as usize).clamp(CMSG_HEADER, rest.len());
        let data = &rest[CMSG_HEADER..len];
        match (os::u32_at(rest, 8) as i32, os::u32_at(rest, 12) as i32) {
            (libc::SOL_SOCKET, libc::SCM_CREDENTIALS) if data.len() >= UCRED => {
                found.sender = Some((os::u32_at(data, 4), os::u32_at(data, 0)));
            }
            (libc::SOL_SOCKET, libc::SCM_RIGHTS) if data.len() >= 4 => found.fd = os::u32_at(data, 0) as i32,
            _ => {}
        }
        rest = rest.get(len.next_multiple_of(8)..).unwrap_or(&[]);
    }
    found
}

/// One datagram, its message if it is one, and what came with it.
struct Seen {
    message: Option<Received>,
    fd: i32,
    /// Descriptors lie beside it for which there was no room.
    more: bool,
}

fn receive(fd: i32, room: usize, flags: i32) -> Option<Seen> {
    let mut control = Control([0; _]);
    // One byte more than a message, to notice longer ones.
    let mut data = [0u8; LEN + 1];
    let got = os::recvmsg(fd, &mut data, &mut control.0[..room], flags).ok()?;
    let came = ancillary(&control.0[..got.control]);
    let message = if got.len == LEN { Message::decode(&data[..LEN]).ok() } else { None };
    Some(Seen {
        message: message.zip(came.sender).map(|(message, (uid, pid))| Received { message, uid, pid }),
        fd: came.fd,
        more: got.flags & libc::MSG_CTRUNC != 0,
    })
}

/// Takes the next message out of a mailbox. Never blocks. For one thread at a time: two might drop each other's messages.
pub fn recv(fd: i32) -> Incoming {
    // Look first: what is taken out is dropped, with all that lies beside it.
    match receive(fd, CREDENTIALS_SPACE, libc::MSG_PEEK) {
        None => return Incoming::Empty,
        Some(looked) if looked.more => return Incoming::Spoilt,
        Some(_) => {}
    }
    match receive(fd, CREDENTIALS_SPACE, 0) {
        None => Incoming::Empty,
        Some(Seen { message: Some(m), .. }) => Incoming::Message(m),
        Some(_) => Incoming::Junk,
    }
}

/// Takes what came to an answer box. Never blocks. The box has served then, unless it is empty; if it is not spoilt its
/// descriptor can be closed.
pub fn recv_answer(fd: i32) -> Answer {
    let Some(seen) = receive(fd, CREDENTIALS_SPACE + RIGHTS_SPACE, libc::MSG_PEEK) else { return Answer::Empty };
    // Anything else may be a file whose `flush` or attributes are another user's to answer for (FUSE), which are asked for
    // when it is closed or looked at.
    let is_memory = seen.fd >= 0 && os::is_memfd(seen.fd);
    match seen.message {
        Some(m) if is_memory && !seen.more => {
            // The descriptor is another one of the same file: the last is ours.
            let _ = receive(fd, CREDENTIALS_SPACE, 0);
            Answer::Channel(m, seen.fd)
        }
        _ => Answer::Spoilt(seen.fd),
    }
}

#[cfg(test)]
#[path = "mailbox_tests.rs"]
mod tests;
