//! The tun by which packets leave the programs' network namespace and come in.

use super::error::Error;
use super::raw;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

const IFF_TUN: i32 = 1;
const IFF_MULTI_QUEUE: i32 = 0x0100;
const IFF_NO_PI: i32 = 0x1000;
/// Refuses a tun that exists already.
const IFF_TUN_EXCL: i32 = 0x8000;

/// How long the kernel may take to remove the tun of a process that is dead.
const REMOVAL: Duration = Duration::from_secs(2);

/// A queue of the tun. The interface, with its addresses, routes and filters, vanishes when all of them are dropped, or the process dies.
pub(crate) struct Tun(File);

impl Tun {
    /// Makes the tun in the network namespace of the calling thread, with so many queues. It is also the lock: of two processes one
    /// succeeds.
    pub(crate) fn make(name: &str, queues: usize) -> Result<Vec<Tun>, Error> {
        let flags = IFF_TUN | IFF_NO_PI | if queues > 1 { IFF_MULTI_QUEUE } else { 0 };
        let mut tuns = vec![Tun::first(name, flags | IFF_TUN_EXCL)?];
        for _ in 1..queues {
            let file = open()?;
            raw::make_tun(file.as_fd(), name, flags)
                .map_err(|e| Error::refused(format!("the tun {name} cannot have {queues} queues"), &e))?;
            tuns.push(Tun(file));
        }
        Ok(tuns)
    }

    fn first(name: &str, flags: i32) -> Result<Tun, Error> {
        let file = open()?;
        let end = Instant::now() + REMOVAL;
        loop {
            match raw::make_tun(file.as_fd(), name, flags) {
                Ok(()) => return Ok(Tun(file)),
                Err(e) if e.raw_os_error() == Some(libc::EBUSY) => {
                    let holder = holder(name);
                    if holder.is_some() || !is_tun(name) || Instant::now() >= end {
                        return Err(Error::Exists { name: name.to_string(), holder });
                    }
                }
                Err(e) if e.raw_os_error() == Some(libc::EPERM) => {
                    return Err(Error::NoRights { missing: "CAP_NET_ADMIN".to_string() });
                }
                Err(e) => return Err(Error::refused(format!("the tun {name} cannot be made"), &e)),
            }
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Takes a packet that leaves, whole.
    pub(crate) fn read(&self, packet: &mut [u8]) -> io::Result<usize> {
        loop {
            match (&self.0).read(packet) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                result => return result,
            }
        }
    }

    /// Lets a packet come in.
    pub(crate) fn write(&self, packet: &[u8]) -> io::Result<()> {
        loop {
            match (&self.0).write(packet) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                result => return result.map(drop),
            }
        }
    }
}

impl AsFd for Tun {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn open() -> Result<File, Error> {
    let mut options = File::options();
    options.read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun").map_err(|e| {
        match e.raw_os_error() {
            // ENODEV, ENXIO: there is the node, but no driver.
            Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => Error::NoTun,
            Some(libc::EACCES | libc::EPERM) => Error::NoAccess,
            _ => Error::refused("/dev/net/tun cannot be opened", &e),
        }
    })
}

/// Whether an interface is a tun that vanishes with its process.
fn is_tun(name: &str) -> bool {
    // linux/if_tun.h: IFF_PERSIST 0x0800.
    let flags = std::fs::read_to_string(format!("/sys/class/net/{name}/tun_flags"));
    let flags = flags.ok().and_then(|f| u32::from_str_radix(f.trim().trim_start_matches("0x"), 16).ok());
    // /sys may show another network namespace, or nothing: then it may be one.
    flags.is_none_or(|f| f & 0x0800 == 0)
}

/// The process that has the tun of this name and of this network namespace open, as proc(5)'s fdinfo tells.
fn holder(name: &str) -> Option<String> {
    let line = format!("iff:\t{name}");
    let numbers = |path: PathBuf| {
        let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
        entries.filter_map(|e| e.file_name().to_str()?.parse::<u32>().ok())
    };
    for process in numbers(PathBuf::from("/proc")) {
        let path = PathBuf::from(format!("/proc/{process}"));
        for fd in numbers(path.join("fdinfo")) {
            let info = std::fs::read_to_string(path.join(format!("fdinfo/{fd}"))).unwrap_or_default();
            if info.lines().any(|l| l == line) && is_here(process, fd) {
                let command = std::fs::read_to_string(path.join("comm")).unwrap_or_default();
                return Some(format!("{} (pid {process})", command.trim()));
            }
        }
    }
    None
}

/// Whether a tun that another process has open is in the network namespace of the calling thread.
fn is_here(process: u32, fd: u32) -> bool {
    let here = std::fs::metadata("/proc/thread-self/ns/net").map(|m| m.ino()).ok();
    let tun = raw::descriptor_of(process, fd as i32).and_then(|fd| raw::tun_namespace(fd.as_fd()));
    match tun.and_then(|namespace| File::from(namespace).metadata()) {
        Ok(namespace) => Some(namespace.ino()) == here,
        // That is not ours to know: most processes have one namespace, in which their tuns are.
        Err(_) => std::fs::metadata(format!("/proc/{process}/ns/net")).map(|m| m.ino()).ok() == here,
    }
}
