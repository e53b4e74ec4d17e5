//! Programs that have room, a view and chunks in their hands when their connection leaves the ring.
//!
//! ```text
//! leaving writer HOW            prints its port; sends chunks, reserves room, and leaves
//! leaving reader PORT HOW       keeps one chunk, looks at the next one, and leaves
//! leaving rest FD AT            goes on to receive, from byte AT
//! leaving more FD AT            goes on to send, from byte AT
//! leaving taken WHAT            gets the socket, and AT, by its standard input; then as above
//! ```
//! HOW: `stay`, `pass` (in a message), `stdio`, `exec`; `silent`: stays, and says nothing, since the other side leaves. What is sent depends on its place in the stream.

use culvert::Pool;
use culvert_api_tests::messages;
use culvert_api_tests::stream::{bytes, check, rest};
use std::ffi::CStr;
use std::io::{Error, Read, Result, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

const CHUNK: usize = 30_000;
/// Chunks that lie unread when the connection leaves.
const UNREAD: usize = 6;
/// Bytes of the room, and how many of them are committed once the connection has left.
const ROOM: usize = 6_000;
const COMMITTED: usize = 4_000;
/// Bytes of the view that are released then.
const RELEASED: usize = 700;
/// Bytes that are sent after that.
const MORE: usize = 500_000;

fn succeeded(r: isize) -> Result<usize> {
    usize::try_from(r).map_err(|_| Error::last_os_error())
}

fn copy_of(socket: &TcpStream) -> Result<RawFd> {
    // SAFETY: no memory.
    succeeded(unsafe { libc::fcntl(socket.as_raw_fd(), libc::F_DUPFD, 20) } as isize).map(|fd| fd as RawFd)
}

fn exec(mode: &str, socket: &TcpStream, at: u64) -> Error {
    match copy_of(socket) {
        Ok(fd) => Command::new("/proc/self/exe").args([mode, &fd.to_string(), &at.to_string()]).exec(),
        Err(e) => e,
    }
}

/// One control message, with a descriptor in it.
#[repr(C, align(8))]
struct Control([u8; 24]);

// SAFETY: arithmetic.
const _: () = assert!(unsafe { libc::CMSG_SPACE(4) } as usize == size_of::<Control>());

/// Runs `f` with a message of one byte, and the control message.
fn message<R>(control: &mut Control, f: impl FnOnce(&mut libc::msghdr) -> R) -> R {
    let mut byte = [0u8];
    let mut part = libc::iovec { iov_base: byte.as_mut_ptr().cast(), iov_len: 1 };
    // SAFETY: zeros are one.
    let mut m: libc::msghdr = unsafe { core::mem::zeroed() };
    (m.msg_iov, m.msg_iovlen) = (&raw mut part, 1);
    (m.msg_control, m.msg_controllen) = (control.0.as_mut_ptr().cast(), control.0.len());
    f(&mut m)
}

/// Sends the socket to another process.
fn give(to: &UnixStream, socket: &TcpStream) -> Result<()> {
    let sent = message(&mut Control([0; 24]), |m| {
        // SAFETY: there is room for one control message with one descriptor.
        unsafe {
            let c = libc::CMSG_FIRSTHDR(m);
            ((*c).cmsg_level, (*c).cmsg_type) = (libc::SOL_SOCKET, libc::SCM_RIGHTS);
            (*c).cmsg_len = libc::CMSG_LEN(4) as usize;
            libc::CMSG_DATA(c).cast::<RawFd>().write_unaligned(socket.as_raw_fd());
            libc::sendmsg(to.as_raw_fd(), m, libc::MSG_NOSIGNAL)
        }
    });
    succeeded(sent).map(|_| ())
}

/// Gets it there.
fn get(from: &UnixStream) -> Result<TcpStream> {
    let mut control = Control([0; 24]);
    let (got, fd) = message(&mut control, |m| {
        // SAFETY: the memory that the message names; a control message is whole that is there.
        unsafe {
            let got = libc::recvmsg(from.as_raw_fd(), m, 0);
            let c = libc::CMSG_FIRSTHDR(m);
            (got, if c.is_null() { -1 } else { libc::CMSG_DATA(c).cast::<RawFd>().read_unaligned() })
        }
    });
    if succeeded(got)? == 0 || fd < 0 {
        return Err(Error::other("no socket came"));
    }
    // SAFETY: it was sent to this process, and nobody else here has it.
    Ok(unsafe { TcpStream::from_raw_fd(fd) })
}

/// A process that has been given the socket, and waits to be told where the stream goes on.
fn taker(what: &str, socket: &TcpStream) -> Result<(Child, UnixStream)> {
    let (ours, theirs) = UnixStream::pair()?;
    let mut command = Command::new("/proc/self/exe");
    let child = command.args(["taken", what]).stdin(Stdio::from(OwnedFd::from(theirs))).spawn()?;
    give(&ours, socket)?;
    Ok((child, ours))
}

fn goes_on((mut child, mut to): (Child, UnixStream), at: u64) -> Result<()> {
    to.write_all(&at.to_ne_bytes())?;
    let status = child.wait()?;
    if status.success() { Ok(()) } else { Err(Error::other(status.to_string())) }
}

/// A stream of stdio on a copy of the descriptor.
struct Stream(*mut libc::FILE);

impl Stream {
    fn open(socket: &TcpStream, mode: &CStr) -> Result<Stream> {
        // SAFETY: a descriptor that becomes the stream's, and a string.
        let stream = unsafe { libc::fdopen(copy_of(socket)?, mode.as_ptr()) };
        if stream.is_null() { Err(Error::last_os_error()) } else { Ok(Stream(stream)) }
    }
}

impl Read for Stream {
    fn read(&mut self, to: &mut [u8]) -> Result<usize> {
        // SAFETY: the slice; the stream is open.
        let n = unsafe { libc::fread(to.as_mut_ptr().cast(), 1, to.len(), self.0) };
        // SAFETY: as above.
        if n == 0 && unsafe { libc::ferror(self.0) } != 0 { Err(Error::last_os_error()) } else { Ok(n) }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> Result<usize> {
        // SAFETY: the slice; the stream is open.
        match unsafe { libc::fwrite(bytes.as_ptr().cast(), 1, bytes.len(), self.0) } {
            0 if !bytes.is_empty() => Err(Error::last_os_error()),
            n => Ok(n),
        }
    }
    fn flush(&mut self) -> Result<()> {
        // SAFETY: the stream is open.
        succeeded(unsafe { libc::fflush(self.0) } as isize).map(|_| ())
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // SAFETY: it is not used after that.
        unsafe { libc::fclose(self.0) };
    }
}

fn more(mut to: impl Write, at: u64) -> Result<()> {
    to.write_all(&bytes(at, MORE))?;
    to.flush()
}

fn writer(how: &str) -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    println!("{}", listener.local_addr()?.port());
    let mut reader = listener.accept()?.0;
    let pool = Pool::with_quota(CHUNK, 2 * UNREAD, 2 * UNREAD)?;
    let mut at = 0;
    messages::send_until_in_place(&pool, &mut reader, &mut at, CHUNK)?;
    for i in 0..UNREAD {
        messages::send(&pool, &reader, &mut at, CHUNK - i)?;
    }
    let copy = reader.try_clone()?;
    let mut room = culvert::reserve(&copy, ROOM)?;
    if room.copies() || room.len() < COMMITTED {
        return Err(Error::other("no room on the ring"));
    }
    room.write(0, &bytes(at, COMMITTED));
    let mut commit = |mut room: culvert::Room| -> Result<u64> {
        let mut left = COMMITTED;
        while left > 0 {
            left -= room.commit(left)?;
        }
        at += COMMITTED as u64;
        Ok(at)
    };
    match how {
        // The reader leaves, and says when it has.
        "stay" => {
            let at = commit(room)?;
            reader.read_exact(&mut [0])?;
            more(&reader, at)
        }
        "pass" => {
            let taker = taker("more", &reader)?;
            goes_on(taker, commit(room)?)
        }
        "stdio" => {
            let stream = Stream::open(&reader, c"w")?;
            more(stream, commit(room)?)
        }
        // What is in the room is not sent.
        "exec" => Err(exec("more", &reader, at)),
        _ => Err(Error::other("how?")),
    }
}

fn reader(port: u16, how: &str) -> Result<()> {
    let mut sender = TcpStream::connect(("127.0.0.1", port))?;
    let mut at = 0u64;
    let mut memory = vec![0; CHUNK];
    messages::receive_until_in_place(&mut sender, &mut at, CHUNK)?;
    let unread: usize = (0..UNREAD).map(|i| CHUNK - i).sum();
    messages::wait_for(&sender, unread);
    let kept = culvert::look(&sender, 1)?.keep()?;
    let kept_at = at;
    at += kept.len() as u64;
    let copy = sender.try_clone()?;
    let view = culvert::look(&copy, 1)?;
    if !view.is_chunk() {
        return Err(Error::other("the second chunk is none"));
    }
    let release = |view: culvert::View| -> Result<u64> {
        let mut memory = vec![0; CHUNK];
        let seen = view.copy_to(0, &mut memory);
        check(&memory[..seen], at)?;
        view.release(RELEASED)?;
        Ok(at + RELEASED as u64)
    };
    match how {
        "stay" | "silent" => {
            let at = release(view)?;
            if how == "stay" {
                sender.write_all(b"!")?;
            }
            rest(&sender, at)?;
        }
        "pass" => {
            let taker = taker("rest", &sender)?;
            goes_on(taker, release(view)?)?;
        }
        "stdio" => {
            let stream = Stream::open(&sender, c"r")?;
            let at = release(view)?;
            sender.write_all(b"!")?;
            rest(stream, at)?;
        }
        // What was looked at was not read.
        "exec" => return Err(exec("rest", &sender, at)),
        _ => return Err(Error::other("how?")),
    }
    // A kept chunk is there whatever has become of the stream.
    let seen = kept.copy_to(0, &mut memory);
    check(&memory[..seen], kept_at)
}

/// As the arguments say, with a socket that was got somehow.
fn go_on(what: &str, mut socket: TcpStream, at: u64) -> Result<()> {
    match what {
        "rest" => {
            socket.write_all(b"!")?;
            rest(&socket, at)
        }
        "more" => {
            more(&socket, at)?;
            // Other processes may have it still.
            let _ = socket.into_raw_fd();
            Ok(())
        }
        _ => Err(Error::other("what?")),
    }
}

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let number = |text: &str| text.parse::<u64>().map_err(Error::other);
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["writer", how] => writer(how),
        ["reader", port, how] => reader(number(port)? as u16, how),
        ["taken", what] => {
            // SAFETY: what this process was started with; nobody else here reads it.
            let mut told = unsafe { UnixStream::from_raw_fd(0) };
            let socket = get(&told)?;
            let mut at = [0; 8];
            told.read_exact(&mut at)?;
            go_on(what, socket, u64::from_ne_bytes(at))
        }
        // SAFETY: a descriptor that was handed on to this image alone.
        [what, fd, at] => go_on(what, unsafe { TcpStream::from_raw_fd(number(fd)? as i32) }, number(at)?),
        _ => Err(Error::other("usage: see the source")),
    }
}
