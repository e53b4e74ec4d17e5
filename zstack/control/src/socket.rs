//! A Unix stream socket that waits for nobody while it connects. Unsafe here: libc's calls.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;

fn checked(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Connects to what has this name: a path, or an abstract name behind `@`. Does not wait where too many wait before us.
/// `None`: it is no name.
pub fn connect(name: &str) -> Option<io::Result<UnixStream>> {
    // SAFETY: plain integers, for which all zeros is a value.
    let mut address: libc::sockaddr_un = unsafe { std::mem::zeroed() };
    address.sun_family = libc::AF_UNIX as libc::sa_family_t;
    let bytes = name.as_bytes();
    let is_abstract = bytes.first() == Some(&b'@');
    if !is_abstract && bytes.first() != Some(&b'/')
        || bytes.len() < 2
        || bytes.len() >= address.sun_path.len()
        || bytes.contains(&0)
    {
        return None;
    }
    for (to, from) in address.sun_path.iter_mut().zip(bytes) {
        *to = *from as libc::c_char;
    }
    if is_abstract {
        address.sun_path[0] = 0;
    }
    // A path ends with a zero, an abstract name with the address.
    let len = std::mem::offset_of!(libc::sockaddr_un, sun_path) + bytes.len() + usize::from(!is_abstract);
    Some(open(&address, len as libc::socklen_t))
}

fn open(address: &libc::sockaddr_un, len: libc::socklen_t) -> io::Result<UnixStream> {
    let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: no memory is involved.
    let fd = checked(unsafe { libc::socket(libc::AF_UNIX, kind, 0) })?;
    // SAFETY: a new descriptor, which nobody else owns.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: the kernel reads `len` bytes of the address, which is longer.
    checked(unsafe { libc::connect(fd.as_raw_fd(), std::ptr::from_ref(address).cast(), len) })?;
    Ok(UnixStream::from(fd))
}

/// The user whose process listened at the other end (SO_PEERCRED, unix(7)).
pub fn owner(socket: &UnixStream) -> io::Result<u32> {
    let mut who = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let mut len = size_of_val(&who) as libc::socklen_t;
    // SAFETY: `len` says how much room there is in `who`; the kernel writes no more than that, and then `len`.
    checked(unsafe {
        libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_PEERCRED, (&raw mut who).cast(), &raw mut len)
    })?;
    Ok(who.uid)
}

/// Whether the process at the other end is root's, or one of this process's user: who may know what connections would have to be
/// guessed by others.
pub fn is_trusted(socket: &UnixStream) -> bool {
    // SAFETY: no memory is involved.
    let own = unsafe { libc::geteuid() };
    owner(socket).is_ok_and(|user| user == 0 || user == own)
}
