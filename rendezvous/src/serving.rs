//! Who serves a network namespace: a process that stands in for hosts that are not in it (`zstackd`), so that programs here come
//! to shared memory with it as with any other process.
//!
//! It says so by a file in the registry's directory, `zstackd-<inode of the network namespace>`, which it owns, and in which it
//! has a byte locked for as long as it lives (an open file description lock, fcntl(2): gone with the process, however that ends).
//! A file without the lock says nothing, and neither does one of a user who is neither root nor the one who asks: whoever serves
//! gets to see the bytes. In the file stands what programs need not know, and people want to:
//!
//! ```text
//! zstackd 1
//! control @culvert-zstackd-4026531840
//! serves 10.0.0.0/8
//! ready
//! ```
//!
//! It says so before there is a way to other hosts, so that a program that connects as soon as there is one has found it; the last line comes
//! when its addresses and routes are there.

use crate::os::{self, Stat};
use core::ffi::CStr;
use core::fmt::Write;
use core::net::IpAddr;

/// Longest text, bytes.
pub const TEXT: usize = 4096;
/// Longest name of a control socket: what fits into `sockaddr_un`, with a zero before or behind it.
const NAME: usize = 107;
const FIRST_LINE: &str = "zstackd 1";
const READY: &str = "ready";

/// Locked by who is about to serve, while it makes sure that it is alone.
const MAKING: u64 = 0;
/// Locked by who serves.
const SERVING: u64 = 1;

/// Why nobody is taken to serve a namespace.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unserved {
    /// Nobody says so.
    Nobody,
    /// Whoever said so has ended without taking it back.
    Gone,
    /// This user says so, who is neither root nor the one who asks.
    Stranger(u32),
    /// There is something else by that name.
    NotAFile,
    /// Somebody is about to: its addresses and routes are not there yet.
    Begins,
    /// The registry has no directory, or the network namespace is not known (no /proc).
    Unknown,
    /// `errno`: the file could not be looked at.
    Other(i32),
}

impl Unserved {
    fn from(errno: i32) -> Unserved {
        match errno {
            libc::ENOENT => Unserved::Nobody,
            libc::ELOOP | libc::EISDIR | libc::ENXIO | libc::ENODEV => Unserved::NotAFile,
            other => Unserved::Other(other),
        }
    }

    /// One phrase for people.
    pub fn text(self) -> &'static str {
        match self {
            Unserved::Nobody => "no zstackd serves this network namespace",
            Unserved::Gone => "the zstackd that served this network namespace has ended",
            Unserved::Stranger(_) => "another user, who is not root, says that it serves this network namespace",
            Unserved::NotAFile => "something else has the name by which a zstackd says that it serves",
            Unserved::Begins => "the zstackd of this network namespace has begun, and is not ready",
            Unserved::Unknown => "the registry's directory or the network namespace is not known",
            Unserved::Other(_) => "it could not be found out whether a zstackd serves",
        }
    }
}

/// Why a process cannot serve.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CannotServe {
    /// Another process does.
    Taken,
    /// Something of this user's has the name, and may not be removed.
    Stranger(u32),
    /// What it has to say is too long, or its control socket has no name that can be written here.
    Notice,
    /// `errno`, as of opening the directory or of making the file.
    Other(i32),
}

impl CannotServe {
    /// One phrase for people, with the remedy.
    pub fn text(self) -> &'static str {
        match self {
            CannotServe::Taken => "another zstackd serves this network namespace: stop it first",
            CannotServe::Stranger(_) => "another user's file has the name: remove it, as root",
            CannotServe::Notice => {
                "the control socket's name must be printable, without blanks, and at most 107 bytes long, and the prefixes must \
                 fit into 4096 bytes: serve fewer"
            }
            CannotServe::Other(_) => "the registry's directory cannot be written to",
        }
    }
}

/// What the one who serves says of itself.
#[derive(Clone, Copy, Debug)]
pub struct Notice<'a> {
    /// The Unix socket at which it answers questions: a path that begins with `/`, or an abstract name (unix(7)) behind `@`.
    pub control: &'a str,
    /// Which hosts it stands in for: addresses and the bits of their prefixes.
    pub serves: &'a [(IpAddr, u8)],
}

struct Text<const N: usize> {
    bytes: [u8; N],
    len: usize,
}

impl<const N: usize> Write for Text<N> {
    fn write_str(&mut self, s: &str) -> core::fmt::Result {
        let place = self.bytes.get_mut(self.len..self.len + s.len()).ok_or(core::fmt::Error)?;
        place.copy_from_slice(s.as_bytes());
        self.len += s.len();
        Ok(())
    }
}

fn is_name(name: &str) -> bool {
    (2..=NAME).contains(&name.len()) && name.starts_with(['@', '/']) && name.bytes().all(|b| b.is_ascii_graphic())
}

fn write(notice: &Notice<'_>) -> Option<Text<TEXT>> {
    let mut text = Text { bytes: [0; TEXT], len: 0 };
    if !is_name(notice.control) {
        return None;
    }
    writeln!(text, "{FIRST_LINE}\ncontrol {}", notice.control).ok()?;
    for (address, bits) in notice.serves {
        writeln!(text, "serves {address}/{bits}").ok()?;
    }
    Some(text)
}

/// What somebody who serves says of itself.
#[derive(Clone, Copy)]
pub struct Served {
    /// The user whose process it is: root, or the one who asks.
    pub owner: u32,
    text: [u8; TEXT],
    len: usize,
}

impl Served {
    /// A text as it may stand in a file, for tests and fuzzers.
    #[doc(hidden)]
    pub fn read(owner: u32, bytes: &[u8]) -> Served {
        let mut served = Served { owner, text: [0; TEXT], len: bytes.len().min(TEXT) };
        served.text[..served.len].copy_from_slice(&bytes[..served.len]);
        served
    }

    /// The values of the lines that begin with this word, if the text is of a version that we know.
    fn lines<'a>(&'a self, word: &'a str) -> impl Iterator<Item = &'a str> {
        self.all().filter_map(move |l| l.strip_prefix(word)?.strip_prefix(' '))
    }

    fn all(&self) -> impl Iterator<Item = &str> {
        let text = core::str::from_utf8(&self.text[..self.len]).unwrap_or("");
        let mut lines = text.lines();
        let known = lines.next() == Some(FIRST_LINE);
        lines.filter(move |_| known)
    }

    /// Its addresses are there, and the ways to those for whom it stands in.
    pub fn is_ready(&self) -> bool {
        self.all().any(|line| line == READY)
    }

    /// The name of its control socket: a path that begins with `/`, or an abstract name behind `@`. Printable.
    pub fn control(&self) -> Option<&str> {
        self.lines("control").next().filter(|name| is_name(name))
    }

    /// Which hosts it stands in for: addresses and the bits of their prefixes. What is no such thing is left out.
    pub fn serves(&self) -> impl Iterator<Item = (IpAddr, u8)> {
        self.lines("serves").filter_map(|value| {
            let (address, bits) = value.split_once('/')?;
            let (address, bits) = (address.parse::<IpAddr>().ok()?, bits.parse::<u8>().ok()?);
            let longest = if address.is_ipv4() { 32 } else { 128 };
            (bits <= longest).then_some((address, bits))
        })
    }
}

impl core::fmt::Debug for Served {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "Served {{ owner: {}, control: {:?} }}", self.owner, self.control())
    }
}

/// The file's name, NUL-terminated.
struct Name([u8; 32]);

impl Name {
    fn new(namespace: u64) -> Name {
        // 8 characters, 20 digits at most, and the end. A program's stack may be short, and is where this is made.
        let mut text = Text { bytes: [0; 32], len: 0 };
        let _ = write!(text, "zstackd-{namespace}");
        Name(text.bytes)
    }

    fn as_cstr(&self) -> &CStr {
        CStr::from_bytes_until_nul(&self.0).unwrap_or(c"zstackd-")
    }
}

const OPEN: i32 = libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY;

/// Who serves the namespace: opens the file, which the caller closes. Where nobody does that is one system call.
fn look(directory: i32, namespace: u64) -> Result<(i32, Stat), Unserved> {
    if namespace == 0 {
        return Err(Unserved::Unknown);
    }
    let fd = os::openat(directory, Name::new(namespace).as_cstr(), libc::O_RDONLY | OPEN, 0).map_err(Unserved::from)?;
    let judged = os::fstat(fd).map_err(Unserved::from).and_then(|st| {
        if !st.is_regular() {
            return Err(Unserved::NotAFile);
        }
        if st.uid != 0 && st.uid != os::geteuid() || !crate::uid::proves(st.uid) {
            return Err(Unserved::Stranger(st.uid));
        }
        if os::is_locked(fd, SERVING).map_err(Unserved::from)? { Ok((fd, st)) } else { Err(Unserved::Gone) }
    });
    if judged.is_err() {
        os::close(fd);
    }
    judged
}

/// Who serves the namespace of this inode: the user whose process it is.
pub(crate) fn owner(directory: i32, namespace: u64) -> Result<u32, Unserved> {
    look(directory, namespace).map(|(fd, st)| {
        os::close(fd);
        st.uid
    })
}

/// The same, and what that process says of itself.
pub(crate) fn served(directory: i32, namespace: u64) -> Result<Served, Unserved> {
    let (fd, st) = look(directory, namespace)?;
    let mut served = Served::read(st.uid, &[]);
    let read = os::pread(fd, &mut served.text, 0);
    os::close(fd);
    served.len = read.map_err(Unserved::from)?;
    Ok(served)
}

/// Who serves the network namespace of this inode, by a registry in `directory`: for those who look at other processes. Waits for nobody.
///
/// # Errors
/// [`Unserved`]: nobody is taken to.
pub fn look_at(directory: &CStr, namespace: u64) -> Result<Served, Unserved> {
    let flags = libc::O_PATH | libc::O_DIRECTORY;
    let directory = os::openat(libc::AT_FDCWD, directory, flags, 0).map_err(|_| Unserved::Unknown)?;
    let seen = served(directory, namespace);
    os::close(directory);
    seen
}

/// This process serves its network namespace, until this is dropped.
#[derive(Debug)]
pub struct Serving {
    directory: i32,
    file: i32,
    namespace: u64,
}

/// Says in `directory`, which is the registry's, that this process serves the network namespace of the calling thread. What
/// somebody left there who was killed is taken over. Waits for nobody.
///
/// In the child of a fork the namespace is served for as long as that has the descriptor (close-on-exec): let none live on.
///
/// # Errors
/// [`CannotServe`].
pub fn serve(directory: &CStr, notice: &Notice<'_>) -> Result<Serving, CannotServe> {
    let text = write(notice).ok_or(CannotServe::Notice)?;
    let namespace = os::stat(c"/proc/thread-self/ns/net").map_err(CannotServe::Other)?.ino;
    let flags = libc::O_PATH | libc::O_DIRECTORY;
    let directory = os::openat(libc::AT_FDCWD, directory, flags, 0).map_err(CannotServe::Other)?;
    let name = Name::new(namespace);
    match take(directory, name.as_cstr(), &text.bytes[..text.len]) {
        Ok(file) => Ok(Serving { directory, file, namespace }),
        Err(e) => {
            os::close(directory);
            Err(e)
        }
    }
}

fn take(directory: i32, name: &CStr, text: &[u8]) -> Result<i32, CannotServe> {
    // Nobody else can read it, and have a lock in it, before we have ours.
    let create = libc::O_RDWR | libc::O_CREAT | libc::O_EXCL | OPEN;
    let mut last = CannotServe::Taken;
    // Another one may come and go between any two steps.
    for _ in 0..8 {
        let fd = match os::openat(directory, name, create, 0o600) {
            Err(libc::EEXIST) => match os::openat(directory, name, libc::O_RDWR | OPEN, 0) {
                Ok(fd) => fd,
                Err(libc::ENOENT) => continue,
                // A link, a directory, or what we may not write to.
                Err(_) => {
                    last = remove(directory, name, None);
                    continue;
                }
            },
            other => other.map_err(CannotServe::Other)?,
        };
        match settle(directory, name, fd, text) {
            Ok(()) => return Ok(fd),
            Err(Obstacle::Unusable) => {
                last = remove(directory, name, os::fstat(fd).ok());
                os::close(fd);
            }
            Err(Obstacle::Renamed) => os::close(fd),
            Err(Obstacle::Final(e)) => {
                os::close(fd);
                return Err(e);
            }
        }
    }
    Err(last)
}

enum Obstacle {
    /// What has the name is not ours, or somebody who may read it has locked what we need to lock.
    Unusable,
    /// The name has become another file's.
    Renamed,
    Final(CannotServe),
}

/// Makes the file that we have open the one that says that we serve.
fn settle(directory: i32, name: &CStr, fd: i32, text: &[u8]) -> Result<(), Obstacle> {
    let failed = |errno| Obstacle::Final(CannotServe::Other(errno));
    let st = os::fstat(fd).map_err(failed)?;
    if !st.is_regular() || st.uid != os::geteuid() || st.nlink != 1 {
        return Err(Obstacle::Unusable);
    }
    for byte in [MAKING, SERVING] {
        if os::lock(fd, libc::F_WRLCK, byte, 1).is_err() {
            // Only who may write the file can have locked it for writing.
            let taken = os::is_locked(fd, byte).map_err(failed)?;
            return Err(if taken { Obstacle::Final(CannotServe::Taken) } else { Obstacle::Unusable });
        }
        if byte == MAKING {
            // Whoever serves has both, so he is not there; whoever comes now stops here. Before anybody believes it:
            os::ftruncate(fd, 0).map_err(failed)?;
            if os::pwrite(fd, text, 0).map_err(failed)? != text.len() {
                return Err(failed(libc::ENOSPC));
            }
        }
    }
    // Removed by one who saw it unused, before we had locked it?
    if !os::lstat_at(directory, name).is_ok_and(|now| (now.dev, now.ino) == (st.dev, st.ino)) {
        return Err(Obstacle::Renamed);
    }
    // Others are to read it.
    os::fchmod(fd, 0o644).map_err(failed)
}

/// Removes what cannot be used, if that is known only while the name is still its; what is to be said if something is there again.
fn remove(directory: i32, name: &CStr, known: Option<Stat>) -> CannotServe {
    let Ok(now) = os::lstat_at(directory, name) else { return CannotServe::Taken };
    if known.is_none_or(|st| (st.dev, st.ino) == (now.dev, now.ino)) {
        os::unlinkat(directory, name);
    }
    CannotServe::Stranger(now.uid)
}

impl Serving {
    /// The inode of the network namespace that is served.
    pub fn namespace(&self) -> u64 {
        self.namespace
    }

    /// Says that the addresses and routes are there.
    ///
    /// # Errors
    /// [`CannotServe`].
    pub fn ready(&self) -> Result<(), CannotServe> {
        // Behind what stands there, which everybody can read meanwhile.
        let end = os::fstat(self.file).map_err(CannotServe::Other)?.size;
        let line = b"ready\n";
        match os::pwrite(self.file, line, end) {
            Ok(n) if n == line.len() => Ok(()),
            other => Err(CannotServe::Other(other.err().unwrap_or(libc::ENOSPC))),
        }
    }

    /// Says something else of itself from now on, and not that it is ready.
    ///
    /// # Errors
    /// [`CannotServe`]; it then may say nothing any more, but still serves.
    pub fn say(&self, notice: &Notice<'_>) -> Result<(), CannotServe> {
        let text = write(notice).ok_or(CannotServe::Notice)?;
        os::ftruncate(self.file, 0).map_err(CannotServe::Other)?;
        match os::pwrite(self.file, &text.bytes[..text.len], 0) {
            Ok(n) if n == text.len => Ok(()),
            other => Err(CannotServe::Other(other.err().unwrap_or(libc::ENOSPC))),
        }
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let name = Name::new(self.namespace);
        let same = os::fstat(self.file).is_ok_and(|st| {
            os::lstat_at(self.directory, name.as_cstr()).is_ok_and(|now| (now.dev, now.ino) == (st.dev, st.ino))
        });
        if same {
            os::unlinkat(self.directory, name.as_cstr());
        }
        os::close(self.file);
        os::close(self.directory);
    }
}

#[cfg(test)]
#[path = "serving_tests.rs"]
mod tests;
