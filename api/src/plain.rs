//! The calls in a program without the library: by memory of their own, and the kernel's calls.

use crate::LOOK_MOST;
use crate::library::{Memory, Spans};
use libc::{MSG_DONTWAIT, MSG_PEEK, MSG_TRUNC, MSG_WAITALL, c_int};
use std::io;
use std::sync::{Arc, Condvar, Mutex, PoisonError};

/// Bytes of memory that a call works with.
const OWN: usize = 64 << 10;

fn errno(e: c_int) -> io::Error {
    io::Error::from_raw_os_error(e)
}

fn receive(fd: c_int, to: &mut [u8], flags: c_int) -> io::Result<usize> {
    // SAFETY: the slice.
    let r = unsafe { libc::recv(fd, to.as_mut_ptr().cast(), to.len(), flags) };
    usize::try_from(r).map_err(|_| io::Error::last_os_error())
}

fn is_stream(fd: c_int) -> io::Result<()> {
    let (mut kind, mut len) = (0 as c_int, size_of::<c_int>() as libc::socklen_t);
    // SAFETY: a local int, and its length.
    let r = unsafe { libc::getsockopt(fd, libc::SOL_SOCKET, libc::SO_TYPE, (&raw mut kind).cast(), &raw mut len) };
    match (r, kind) {
        (0, libc::SOCK_STREAM) => Ok(()),
        (0, _) => Err(errno(libc::EOPNOTSUPP)),
        _ => Err(io::Error::last_os_error()),
    }
}

pub fn reserve(fd: c_int, n: usize) -> io::Result<Spans> {
    if n == 0 {
        return Err(errno(libc::EINVAL));
    }
    is_stream(fd)?;
    Ok(Spans::plain(vec![0; n.min(OWN)]))
}

pub fn commit(fd: c_int, room: &mut Spans, n: usize, flags: c_int) -> io::Result<usize> {
    if room.is_none() || n > room.len {
        return Err(errno(libc::EINVAL));
    }
    if n == 0 {
        room.end_plain();
        return Ok(0);
    }
    // SAFETY: `n` bytes of the room's one piece.
    let r = unsafe { libc::send(fd, room.span[0].iov_base, n, flags) };
    let sent = usize::try_from(r).map_err(|_| io::Error::last_os_error())?;
    if sent == n {
        room.end_plain();
    } else {
        room.advance(sent);
    }
    Ok(sent)
}

pub fn look(fd: c_int, min: usize, flags: c_int) -> io::Result<Spans> {
    if min > LOOK_MOST {
        return Err(errno(libc::EMSGSIZE));
    }
    is_stream(fd)?;
    let mut bytes = vec![0; OWN];
    let mut n = if min > 1 && flags == 0 {
        let n = receive(fd, &mut bytes[..min], MSG_PEEK | MSG_WAITALL)?;
        match n {
            0 => 0,
            // Another thread may have received them meanwhile.
            n => receive(fd, &mut bytes, MSG_PEEK | MSG_DONTWAIT).ok().filter(|n| *n > 0).unwrap_or(n),
        }
    } else {
        receive(fd, &mut bytes, MSG_PEEK | flags)?
    };
    if n == 0 {
        return Ok(Spans::none());
    }
    n = n.min(bytes.len());
    bytes.truncate(n);
    Ok(Spans::plain(bytes))
}

pub fn release(fd: c_int, view: &mut Spans, n: usize) -> io::Result<()> {
    if view.is_none() || n > view.len {
        return Err(errno(libc::EINVAL));
    }
    view.end_plain();
    // On a TCP socket nothing is written there.
    let mut nowhere = [0; 4096];
    let mut left = n;
    while left > 0 {
        let part = left.min(nowhere.len());
        match receive(fd, &mut nowhere[..part], MSG_TRUNC | MSG_DONTWAIT) {
            // The end: it was reset, or another thread has received them.
            Ok(0) => break,
            Ok(n) => left -= n.min(left),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => break,
        }
    }
    Ok(())
}

/// A pool in a program without the library: a number of chunks that may be used at a time.
#[derive(Debug)]
pub struct Pool {
    len: usize,
    free: Arc<(Mutex<usize>, Condvar)>,
}

/// A place in it, for one chunk.
#[derive(Debug)]
pub struct Place(Arc<(Mutex<usize>, Condvar)>);

impl Drop for Place {
    fn drop(&mut self) {
        *self.0.0.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        self.0.1.notify_one();
    }
}

impl Pool {
    pub fn new(len: usize, count: usize) -> io::Result<Pool> {
        // As the library has it.
        let fits = (1..=4096).contains(&count) && len > 0 && len <= (1 << 30) / count;
        if !fits {
            return Err(errno(libc::EINVAL));
        }
        Ok(Pool { len, free: Arc::new((Mutex::new(count), Condvar::new())) })
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn take(&self, flags: c_int) -> io::Result<Place> {
        let (free, freed) = &*self.free;
        let mut free = free.lock().unwrap_or_else(PoisonError::into_inner);
        while *free == 0 {
            if flags & MSG_DONTWAIT != 0 {
                return Err(errno(libc::EAGAIN));
            }
            free = freed.wait(free).unwrap_or_else(PoisonError::into_inner);
        }
        *free -= 1;
        Ok(Place(self.free.clone()))
    }
}

pub fn send_chunk(fd: c_int, chunk: &mut Memory, n: usize, flags: c_int) -> io::Result<usize> {
    if chunk.is_none() || n == 0 || n > chunk.len {
        return Err(errno(libc::EINVAL));
    }
    is_stream(fd)?;
    // SAFETY: `n` bytes of the chunk.
    let r = unsafe { libc::send(fd, chunk.at, n, flags) };
    let sent = usize::try_from(r).map_err(|_| io::Error::last_os_error())?;
    if sent == n {
        chunk.end_plain();
    } else {
        chunk.advance(sent);
    }
    Ok(sent)
}
