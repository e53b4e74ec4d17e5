//! Where a connecting process publishes "this end of this connection is mine, and here is my mailbox".
//!
//! One file per user (and network namespace), a table of fixed size, written by that user alone and
//! readable by all: `<directory>/culvert-<uid>-<inode of the network namespace>`, or without the last part
//! in a directory that the operator named so that namespaces can share it. It is never mapped: whoever
//! owns it could truncate it under a reader.
//!
//! ```text
//! bucket = hash of the tuple % BUCKETS, 4 entries of 64 bytes each
//! entry:  0 src  16 dst  32 sport  34 dport  36 scope  40 cookie  48 mailbox  56 version  60 checksum
//! ```
//! Behind them is room for what is said of sockets whose tuple is not known yet ([`intent`](crate::intent)). Beside the files
//! stands who serves a network namespace ([`serving`](crate::serving)).
//!
//! Entries are hints, and are proved elsewhere (see the crate's documentation). So writers do not lock: a
//! torn entry fails its checksum, a lost one costs an acceleration, a stale one is overwritten in time.

use crate::Place;
use crate::intent;
use crate::keep::Keep;
use crate::os::{self, Stat};
use crate::serving;
use crate::tuple::{Tuple, mix};
use crate::uid;
use core::ffi::CStr;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use shmring::lnx;

pub use crate::intent::{End, Kind, Timeout};
pub use crate::serving::{CannotServe, Notice, Served, Serving, Unserved, serve};

/// Where the files are unless the operator names a directory.
pub const DEFAULT_DIRECTORY: &CStr = c"/dev/shm";

/// What those who publish speak. The entry itself stays as it is in every version: it tells two versions that they do not
/// understand each other.
pub const VERSION: u32 = crate::message::VERSION;

const ENTRY: usize = 64;
const WAYS: usize = 4;
const BUCKET: usize = ENTRY * WAYS;
/// Files of other users' that root looks at ([`Registry::tidy`]).
const OTHERS: u32 = 8;
/// Room for 16384 connections on their way to a channel; the file is sparse, these 1 MiB when full.
const BUCKETS: u64 = 4096;
const LEN: u64 = BUCKETS * BUCKET as u64;
/// What lies behind: see `intent`.
const WHOLE: u64 = intent::END;

const _: () = assert!(LEN == intent::AT && WHOLE.is_multiple_of(ENTRY as u64));

/// Why the registry could not be used. Always harmless: the connection stays on the kernel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Error {
    /// The directory is missing, or [`Registry::configure`] was not called.
    NoDirectory,
    /// The file system is full, or the user's quota.
    Full,
    /// The file belongs to this uid, not to the one it is named after.
    WrongOwner(u32),
    /// There is something else by that name: a link, a directory, a device, a file of odd size.
    NotATable,
    /// `RLIMIT_FSIZE` forbids files of this size (writing would raise SIGXFSZ).
    SizeLimit,
    /// No descriptor left.
    NoDescriptor,
    /// Not permitted.
    Denied,
    /// The connection's other end speaks another version of culvert's messages.
    OtherVersion,
    /// The user has no number of its own in this user namespace: see [`uid::proves`](crate::uid::proves).
    NoUser,
    /// Another `errno` value.
    Other(i32),
}

impl Error {
    fn from(errno: i32) -> Error {
        match errno {
            libc::ENOENT | libc::ENOTDIR => Error::NoDirectory,
            libc::ENOSPC | libc::EDQUOT => Error::Full,
            // O_NOFOLLOW on a link; writing to a directory; a socket; a device without a driver.
            libc::ELOOP | libc::EISDIR | libc::ENXIO | libc::ENODEV => Error::NotATable,
            libc::EFBIG => Error::SizeLimit,
            libc::EMFILE | libc::ENFILE => Error::NoDescriptor,
            libc::EACCES | libc::EPERM | libc::EROFS => Error::Denied,
            other => Error::Other(other),
        }
    }

    /// One phrase for people.
    pub fn text(self) -> &'static str {
        match self {
            Error::NoDirectory => "the registry's directory is missing",
            Error::Full => "no space for the registry",
            Error::WrongOwner(_) => "the registry file belongs to another user",
            Error::NotATable => "something else has the registry's name",
            Error::SizeLimit => "the file size limit forbids a registry",
            Error::NoDescriptor => "no descriptor left for the registry",
            Error::Denied => "no permission for the registry",
            Error::OtherVersion => "the peer's culvert is of another version",
            Error::NoUser => "the user is unknown in this user namespace",
            Error::Other(_) => "the registry could not be used",
        }
    }
}

/// The registry; meant to be a `static`. Keeps at most three descriptors: the directory (so that it works
/// on after `chroot`, see [`shut_in`](Registry::shut_in)), our own file, and the last file of others that was read.
pub struct Registry {
    directory: Keep,
    own: Keep,
    seen: Keep,
    /// Inode of the network namespace; 0 if unknown.
    namespace: AtomicU64,
    /// The namespace is not part of the name.
    shared: AtomicBool,
    /// What others left has been removed.
    tidied: AtomicBool,
    place: Place,
}

impl Registry {
    /// A registry that refuses everything until [`configure`](Registry::configure) is called.
    pub const fn new(place: Place) -> Registry {
        Registry {
            directory: Keep::new(),
            own: Keep::new(),
            seen: Keep::new(),
            namespace: AtomicU64::new(0),
            shared: AtomicBool::new(false),
            tidied: AtomicBool::new(false),
            place,
        }
    }

    /// Sets the directory. `shared`: the operator named it, so that network namespaces share its files.
    /// Call once, before other threads use the registry.
    ///
    /// # Errors
    /// The directory cannot be opened; every later call then says [`Error::NoDirectory`].
    pub fn configure(&self, directory: &CStr, shared: bool) -> Result<(), Error> {
        self.forget();
        self.directory.drop_kept();
        self.shared.store(shared, Ordering::Relaxed);
        self.read_namespace();
        intent::prepare();
        let fd = os::openat(libc::AT_FDCWD, directory, libc::O_PATH | libc::O_DIRECTORY, 0).map_err(Error::from)?;
        self.stash(&self.directory, fd).map(drop)
    }

    /// The program has changed its root directory. A directory that was open before leads out of the new root, to whoever takes the
    /// program over: a mount of it alone takes its place, which leads nowhere else. Without the right to make one it is
    /// closed, and every later call that would open a file says [`Error::NoDirectory`].
    pub fn shut_in(&self) {
        let Some((open, st)) = self.directory.take() else { return };
        if let Ok(fd) = os::detached(open) {
            self.directory.put((self.place)(fd), &st);
        }
        os::close(open);
    }

    /// Reads the network namespace: the calling thread's. Without /proc everybody who has none meets at 0, or at what was read
    /// before.
    fn read_namespace(&self) {
        let paths = [c"/proc/thread-self/ns/net", c"/proc/self/ns/net"];
        if let Some(st) = paths.iter().find_map(|p| os::stat(p).ok())
            && self.namespace.swap(st.ino, Ordering::Relaxed) != st.ino
            && !self.shared.load(Ordering::Relaxed)
        {
            self.forget();
        }
    }

    /// To be called by a thread that is at home ([`Home`](crate::home::Home)), once that is known: the one that called
    /// [`configure`](Registry::configure) may have been elsewhere.
    pub fn come_home(&self) {
        self.read_namespace();
    }

    /// Closes the files (not the directory). They are opened again when needed. In the child of a fork, so that it counts as
    /// another user of the file than its parent.
    pub fn forget(&self) {
        self.own.drop_kept();
        self.seen.drop_kept();
    }

    /// Says that the socket with this tuple (own end first) and cookie can be reached at `mailbox`.
    ///
    /// # Errors
    /// [`Error`].
    pub fn publish(&self, tuple: &Tuple, cookie: u64, mailbox: u64) -> Result<(), Error> {
        // Beyond the limit the kernel does not only fail the call, it raises SIGXFSZ (setrlimit(2)).
        if os::file_size_limit() < LEN {
            return Err(Error::SizeLimit);
        }
        let (fd, st) = self.own(true)?;
        let done = publish_in(fd, tuple, cookie, mailbox);
        self.own.put(fd, &st);
        done
    }

    /// Takes back what [`publish`](Registry::publish) said. Not finding it is fine.
    ///
    /// # Errors
    /// [`Error`].
    pub fn withdraw(&self, tuple: &Tuple, cookie: u64) -> Result<(), Error> {
        if os::file_size_limit() < LEN {
            return Err(Error::SizeLimit);
        }
        let (fd, st) = match self.own(false) {
            Err(Error::NoDirectory) => return Ok(()),
            other => other?,
        };
        let done = withdraw_in(fd, tuple, cookie);
        self.own.put(fd, &st);
        done
    }

    /// The mailbox that user `uid` published for this tuple (publisher's end first) and cookie.
    ///
    /// # Errors
    /// [`Error`]; that the user has no registry is not an error but `None`.
    pub fn lookup(&self, uid: u32, tuple: &Tuple, cookie: u64) -> Result<Option<u64>, Error> {
        if !uid::proves(uid) {
            return Err(Error::NoUser);
        }
        let Some((fd, st, home)) = self.file_of(uid)? else { return Ok(None) };
        let bucket = read_bucket(fd, tuple);
        home.put(fd, &st);
        let entries = bucket?;
        match entries.iter().filter_map(decode).find(|e| e.tuple == *tuple && e.cookie == cookie) {
            Some(e) if e.version != VERSION => Err(Error::OtherVersion),
            hit => Ok(hit.map(|e| e.mailbox)),
        }
    }

    /// Says this of the socket with this cookie, which is this user's. Six system calls at most, if the file is open; fewer if it has
    /// been said before.
    ///
    /// # Errors
    /// [`Error`].
    pub fn publish_intent(&self, cookie: u64, kind: Kind) -> Result<(), Error> {
        if os::file_size_limit() < WHOLE {
            return Err(Error::SizeLimit);
        }
        let (fd, st) = self.own(true)?;
        let done = intent::publish(fd, cookie, kind).map_err(Error::from);
        self.own.put(fd, &st);
        done
    }

    /// Takes back what [`publish_intent`](Registry::publish_intent) said. Not finding it is fine.
    ///
    /// # Errors
    /// [`Error`].
    pub fn withdraw_intent(&self, cookie: u64, kind: Kind) -> Result<(), Error> {
        if os::file_size_limit() < WHOLE {
            return Err(Error::SizeLimit);
        }
        let (fd, st) = match self.own(false) {
            Err(Error::NoDirectory) => return Ok(()),
            other => other?,
        };
        let done = intent::withdraw(fd, cookie, kind).map_err(Error::from);
        self.own.put(fd, &st);
        done
    }

    /// Whether user `uid` says this of the socket with this cookie. `uid` is the socket's owner, as the kernel tells
    /// ([`diag`](crate::diag)): what anybody else says of it counts for nothing.
    ///
    /// # Errors
    /// [`Error`]; that the user has no registry is not an error but `false`.
    pub fn has_intent(&self, uid: u32, cookie: u64, kind: Kind) -> Result<bool, Error> {
        if !uid::proves(uid) {
            return Err(Error::NoUser);
        }
        let Some((fd, st, home)) = self.file_of(uid)? else { return Ok(false) };
        let has = intent::has(fd, cookie, kind).map_err(Error::from);
        home.put(fd, &st);
        has
    }

    /// How the connection of the socket with this cookie has ended on the wire, as user `uid` says, who is the one that serves the
    /// network namespace ([`server`](Registry::server)): what anybody else says of it counts for nothing.
    ///
    /// # Errors
    /// [`Error`].
    pub fn end(&self, uid: u32, cookie: u64) -> Result<Option<End>, Error> {
        self.read_of(uid, |fd| intent::end(fd, cookie))
    }

    /// How long what the socket with this cookie sends may stay unacknowledged, as user `uid` says, who owns the socket. `None`: nothing is
    /// said, or not any more, since others' entries have taken the place.
    ///
    /// # Errors
    /// [`Error`].
    pub fn timeout(&self, uid: u32, cookie: u64) -> Result<Option<Timeout>, Error> {
        self.read_of(uid, |fd| intent::timeout(fd, cookie))
    }

    /// Reads in the file of user `uid`; nothing is found where there is none.
    fn read_of<T>(&self, uid: u32, read: impl FnOnce(i32) -> Result<Option<T>, i32>) -> Result<Option<T>, Error> {
        if !uid::proves(uid) {
            return Err(Error::NoUser);
        }
        let Some((fd, st, home)) = self.file_of(uid)? else { return Ok(None) };
        let found = read(fd).map_err(Error::from);
        home.put(fd, &st);
        found
    }

    /// Who serves our network namespace: the user whose process it is, root or our own. One to two system calls where nobody does.
    ///
    /// # Errors
    /// [`Unserved`]: nobody is taken to.
    pub fn server(&self) -> Result<u32, Unserved> {
        let directory = self.directory.share().ok_or(Unserved::Unknown)?;
        serving::owner(directory, self.namespace.load(Ordering::Relaxed))
    }

    /// Who serves our network namespace, and what it says of itself. As [`server`](Registry::server).
    ///
    /// # Errors
    /// [`Unserved`]: nobody is taken to.
    pub fn served(&self) -> Result<Served, Unserved> {
        let directory = self.directory.share().ok_or(Unserved::Unknown)?;
        serving::served(directory, self.namespace.load(Ordering::Relaxed))
    }

    /// Our own file, taken out of its slot, opened if need be; `create` it if there is none.
    fn own(&self, create: bool) -> Result<(i32, Stat), Error> {
        let uid = os::geteuid();
        if !uid::proves(uid) {
            return Err(Error::NoUser);
        }
        if let Some(kept) = taken(&self.own, uid) {
            return Ok(kept);
        }
        let flags = libc::O_RDWR | if create { libc::O_CREAT } else { 0 };
        for tries in 1..=TRIES {
            let fd = self.open(uid, flags)?;
            // Not kept if the slot has filled meanwhile: then `put` will close it.
            let fd = if self.own.is_empty() { (self.place)(fd) } else { fd };
            let has_name = || os::fstat(fd).is_ok_and(|st| st.nlink > 0);
            match prepare(fd, uid) {
                Ok(st) => {
                    let told = in_use(fd);
                    // Removed by one who saw it unused, before we said that it is not? One who is about to is waited for: what we write
                    // would be gone with the file.
                    if has_name() && (told || tries == TRIES) {
                        if !self.tidied.swap(true, Ordering::Relaxed) {
                            self.tidy(uid, st.ino);
                        }
                        return Ok((fd, st));
                    }
                }
                Err(e) if has_name() => {
                    os::close(fd);
                    return Err(e);
                }
                // Removed before we had looked at it.
                Err(_) => {}
            }
            os::close(fd);
            lnx::yield_cpu();
        }
        Err(Error::NoDirectory)
    }

    /// This process publishes nothing any more, as before it ends: removes our own file, unless others use it.
    pub fn retire(&self) {
        let uid = os::geteuid();
        if let Some((fd, st)) = taken(&self.own, uid) {
            // In this order: of two processes that end at the same time, the second one sees that the first one does not use the
            // file any more.
            if !is_unused(fd) {
                out_of_use(fd);
            }
            if is_unused(fd) {
                self.remove(&self.name(uid), &st);
            }
            os::close(fd);
        }
        self.seen.drop_kept();
    }

    /// Removes a file, if the name still is that file's.
    fn remove(&self, name: &Name, st: &Stat) {
        let Some(directory) = self.directory.share() else { return };
        if os::lstat_at(directory, name.as_cstr()).is_ok_and(|now| (now.dev, now.ino) == (st.dev, st.ino)) {
            os::unlinkat(directory, name.as_cstr());
        }
    }

    /// Removes what those left who did not come to [`retire`](Registry::retire): the files that nobody uses, of this user, for
    /// root of all users; but not the one with this inode. Another user may have made thousands of files, and locks that the
    /// kernel goes through when one of them is closed: root looks at [`OTHERS`] of other users' at most.
    fn tidy(&self, uid: u32, ours: u64) {
        let Some(directory) = self.directory.share() else { return };
        let Ok(list) = os::openat(directory, c".", libc::O_RDONLY | libc::O_DIRECTORY, 0) else { return };
        let mut entries = [0u8; 1024];
        let mut others = 0;
        for _ in 0..256 {
            let n = os::getdents(list, &mut entries);
            let mut rest = entries.get(..n).unwrap_or(&[]);
            // struct linux_dirent64: inode, offset, length of the entry at 16, type, name from 19 on.
            while rest.len() > 19 {
                let len = (os::u16_at(rest, 16) as usize).clamp(20, rest.len());
                let name = rest[19..len].split(|b| *b == 0).next().unwrap_or(&[]);
                if os::u64_at(rest, 0) != ours
                    && let Some((whose, name)) = Name::parse(name)
                    && (whose == uid || uid == 0 && others < OTHERS)
                {
                    others += u32::from(whose != uid);
                    self.tidy_one(directory, whose, &name);
                }
                rest = &rest[len..];
            }
            if n == 0 {
                break;
            }
        }
        os::close(list);
    }

    fn tidy_one(&self, directory: i32, whose: u32, name: &Name) {
        let flags = libc::O_RDWR | libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY;
        let Ok(fd) = os::openat(directory, name.as_cstr(), flags, 0) else { return };
        if let Ok(st) = accept(fd, whose)
            && is_unused(fd)
        {
            self.remove(name, &st);
        }
        os::close(fd);
    }

    fn name(&self, uid: u32) -> Name {
        let shared = self.shared.load(Ordering::Relaxed);
        Name::new(uid, (!shared).then(|| self.namespace.load(Ordering::Relaxed)))
    }

    /// `uid`'s file for reading, and the slot it goes back to.
    fn file_of(&self, uid: u32) -> Result<Option<(i32, Stat, &Keep)>, Error> {
        // Who has published nothing need not ask who it is.
        if !self.own.is_empty()
            && uid == os::geteuid()
            && let Some((fd, st)) = taken(&self.own, uid)
        {
            return Ok(Some((fd, st, &self.own)));
        }
        if let Some((fd, st)) = taken(&self.seen, uid) {
            return Ok(Some((fd, st, &self.seen)));
        }
        if self.directory.share().is_none() {
            return Err(Error::NoDirectory);
        }
        let fd = match self.open(uid, libc::O_RDONLY) {
            Err(Error::NoDirectory) => return Ok(None),
            other => other?,
        };
        let fd = if self.seen.is_empty() { (self.place)(fd) } else { fd };
        accept(fd, uid).inspect_err(|_| os::close(fd)).map(|st| Some((fd, st, &self.seen)))
    }

    fn open(&self, uid: u32, flags: i32) -> Result<i32, Error> {
        let directory = self.directory.share().ok_or(Error::NoDirectory)?;
        let name = self.name(uid);
        // Anybody may have put anything there: a link, or a FIFO or a leased file on which open would wait.
        let flags = flags | libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY;
        os::openat(directory, name.as_cstr(), flags, 0o644).map_err(Error::from)
    }

    fn stash(&self, slot: &Keep, fd: i32) -> Result<(), Error> {
        let fd = (self.place)(fd);
        let st = os::fstat(fd).map_err(Error::from)?;
        slot.put(fd, &st);
        Ok(())
    }
}

/// What is kept, if it is still the file of `uid` that its name leads to.
fn taken(slot: &Keep, uid: u32) -> Option<(i32, Stat)> {
    let (fd, st) = slot.take()?;
    if st.uid == uid && st.nlink > 0 {
        return Some((fd, st));
    }
    // Our uid has changed, another user is asked for, or somebody tidied up the directory.
    os::close(fd);
    None
}

/// Accepts `fd` as the table of `uid`, or refuses it.
fn accept(fd: i32, uid: u32) -> Result<Stat, Error> {
    let st = os::fstat(fd).map_err(Error::from)?;
    if !st.is_regular() {
        return Err(Error::NotATable);
    }
    if st.uid != uid {
        return Err(Error::WrongOwner(st.uid));
    }
    // A second name means that somebody linked another file of this user here.
    if st.nlink != 1 || st.size > WHOLE || st.size % intent::ENTRY as u64 != 0 {
        return Err(Error::NotATable);
    }
    Ok(st)
}

/// Accepts our own file and gives it its size and mode.
fn prepare(fd: i32, uid: u32) -> Result<Stat, Error> {
    let st = accept(fd, uid)?;
    // Those who may not write the rest do without it.
    let len = if os::file_size_limit() < WHOLE { LEN } else { WHOLE };
    if st.size < len {
        os::ftruncate(fd, len).map_err(Error::from)?;
    }
    // The umask may have taken away what others need, or left what they must not have.
    if st.mode & 0o777 != 0o644 {
        os::fchmod(fd, 0o644).map_err(Error::from)?;
    }
    Ok(st)
}

// --- who uses a file
//
// Whoever publishes in a file has a lock on a byte of its own far behind the end (an open file description lock, fcntl(2):
// gone with the process, however that ends). It is a lock for writing, which only the file's owner can have. Whoever removes the
// file asks for one for reading on all those bytes: he gets it if nobody has one for writing, whatever others, who may read
// the file, have locked for reading.

/// Where those bytes begin.
const USERS: u64 = 1 << 40;

/// Says that this process uses `fd`. False: somebody has a lock in the way. That is one who looks whether the file is used, and removes it
/// then; or another user, for as long as he likes: then the file may be removed while it is used, and is made anew.
fn in_use(fd: i32) -> bool {
    let byte = os::random().unwrap_or(1) >> 24;
    os::lock(fd, libc::F_WRLCK, USERS + byte, 1).is_ok()
}

/// How often a file is opened that somebody may be about to remove.
const TRIES: u32 = 32;

fn out_of_use(fd: i32) {
    let _ = os::lock(fd, libc::F_UNLCK, USERS, 0);
}

/// Whether nobody uses `fd` but through this very open file.
fn is_unused(fd: i32) -> bool {
    os::lock(fd, libc::F_RDLCK, USERS, 0).is_ok()
}

// --- entries

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Entry {
    tuple: Tuple,
    cookie: u64,
    mailbox: u64,
    version: u32,
}

fn checksum(bytes: &[u8; ENTRY]) -> u32 {
    let last = os::u32_at(bytes, 56) as u64;
    let sum = (0..7).map(|i| os::u64_at(bytes, 8 * i)).fold(0x7265_6769, |h, w| mix(h ^ w));
    mix(sum ^ last) as u32
}

pub(crate) fn encode(e: &Entry) -> [u8; ENTRY] {
    let mut b = [0; ENTRY];
    os::put(&mut b, 0, &e.tuple.src);
    os::put(&mut b, 16, &e.tuple.dst);
    os::put(&mut b, 32, &e.tuple.sport.to_ne_bytes());
    os::put(&mut b, 34, &e.tuple.dport.to_ne_bytes());
    os::put(&mut b, 36, &e.tuple.scope.to_ne_bytes());
    os::put(&mut b, 40, &e.cookie.to_ne_bytes());
    os::put(&mut b, 48, &e.mailbox.to_ne_bytes());
    os::put(&mut b, 56, &e.version.to_ne_bytes());
    let sum = checksum(&b);
    os::put(&mut b, 60, &sum.to_ne_bytes());
    b
}

/// The entry in `b`, of whatever version; `None` if it is empty, torn or garbage.
pub(crate) fn decode(b: &[u8; ENTRY]) -> Option<Entry> {
    if os::u32_at(b, 56) == 0 || os::u32_at(b, 60) != checksum(b) {
        return None;
    }
    let tuple = Tuple {
        src: os::array(b, 0),
        dst: os::array(b, 16),
        sport: os::u16_at(b, 32),
        dport: os::u16_at(b, 34),
        scope: os::u32_at(b, 36),
    };
    Some(Entry { tuple, cookie: os::u64_at(b, 40), mailbox: os::u64_at(b, 48), version: os::u32_at(b, 56) })
}

fn bucket_at(tuple: &Tuple) -> u64 {
    tuple.hash() % BUCKETS * BUCKET as u64
}

/// One read; what lies beyond the end of the file reads as empty.
fn read_bucket(fd: i32, tuple: &Tuple) -> Result<[[u8; ENTRY]; WAYS], Error> {
    let mut entries = [[0; ENTRY]; WAYS];
    os::pread(fd, entries.as_flattened_mut(), bucket_at(tuple)).map_err(Error::from)?;
    Ok(entries)
}

fn write_entry(fd: i32, tuple: &Tuple, way: usize, entry: &[u8; ENTRY]) -> Result<(), Error> {
    match os::pwrite(fd, entry, bucket_at(tuple) + (way * ENTRY) as u64) {
        Ok(ENTRY) => Ok(()),
        Ok(_) => Err(Error::Full),
        Err(errno) => Err(Error::from(errno)),
    }
}

fn publish_in(fd: i32, tuple: &Tuple, cookie: u64, mailbox: u64) -> Result<(), Error> {
    let bucket = read_bucket(fd, tuple)?;
    let entries = || bucket.iter().map(decode).enumerate();
    let same = |e: &Option<Entry>| e.as_ref().is_some_and(|e| e.tuple == *tuple);
    let way = entries()
        .find(|(_, e)| same(e))
        .or_else(|| entries().find(|(_, e)| e.is_none()))
        // Cookies are handed out in about rising order: the lowest is the most likely to be stale.
        .or_else(|| entries().min_by_key(|(_, e)| e.as_ref().map(|e| e.cookie)))
        .map_or(0, |(way, _)| way);
    write_entry(fd, tuple, way, &encode(&Entry { tuple: *tuple, cookie, mailbox, version: VERSION }))
}

fn withdraw_in(fd: i32, tuple: &Tuple, cookie: u64) -> Result<(), Error> {
    for (way, bytes) in read_bucket(fd, tuple)?.iter().enumerate() {
        if decode(bytes).is_some_and(|e| e.tuple == *tuple && e.cookie == cookie) {
            write_entry(fd, tuple, way, &[0; ENTRY])?;
        }
    }
    Ok(())
}

// --- names

/// `culvert-<uid>[-<namespace>]`, NUL-terminated, without allocating.
struct Name {
    buf: [u8; 48],
    len: usize,
}

impl Name {
    fn new(uid: u32, namespace: Option<u64>) -> Name {
        let mut name = Name { buf: [0; 48], len: 0 };
        name.push(b"culvert-");
        name.push_number(uid as u64);
        if let Some(inode) = namespace {
            name.push(b"-");
            name.push_number(inode);
        }
        name
    }

    /// `name` of a file of ours, and its user.
    fn parse(name: &[u8]) -> Option<(u32, Name)> {
        let mut numbers = name.strip_prefix(b"culvert-")?.split(|b| *b == b'-');
        let number = |digits: &[u8]| {
            let digit =
                |n: u64, b: &u8| n.checked_mul(10)?.checked_add(u64::from(b.checked_sub(b'0').filter(|d| *d < 10)?));
            digits.iter().try_fold(0u64, digit).filter(|_| !digits.is_empty())
        };
        let uid = u32::try_from(number(numbers.next()?)?).ok()?;
        let parsed = match numbers.next() {
            Some(namespace) => Name::new(uid, Some(number(namespace)?)),
            None => Name::new(uid, None),
        };
        // The same number written otherwise is no name of ours.
        (parsed.as_cstr().to_bytes() == name).then_some((uid, parsed))
    }

    fn push(&mut self, text: &[u8]) {
        os::put(&mut self.buf, self.len, text);
        self.len += text.len();
    }

    fn push_number(&mut self, n: u64) {
        // The longest name, 8 + 10 + 1 + 20 characters, leaves room for the NUL.
        let mut digits = [0; 20];
        let mut at = digits.len();
        let mut rest = n;
        loop {
            at -= 1;
            digits[at] = b'0' + (rest % 10) as u8;
            rest /= 10;
            if rest == 0 {
                break;
            }
        }
        self.push(&digits[at..]);
    }

    fn as_cstr(&self) -> &CStr {
        CStr::from_bytes_until_nul(&self.buf).unwrap_or(c"culvert-")
    }
}

#[cfg(test)]
#[path = "registry_tests.rs"]
mod tests;
