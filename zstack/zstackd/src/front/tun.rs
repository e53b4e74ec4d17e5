//! The tun by which packets leave the programs' network namespace and come in.

use super::error::Error;
use super::raw;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::thread;
use std::time::{Duration, Instant};

const IFF_TUN: i32 = 1;
const IFF_NO_PI: i32 = 0x1000;
/// Refuses a tun that exists already.
const IFF_TUN_EXCL: i32 = 0x8000;

/// How long the kernel may take to remove the tun of a process that is dead.
const REMOVAL: Duration = Duration::from_secs(2);

/// The tun. The interface, with its addresses, routes and filters, vanishes when this is dropped, or the process dies.
pub(crate) struct Tun(File);

impl Tun {
    /// Makes the tun in the network namespace of the calling thread. It is also the lock: of two processes one succeeds.
    pub(crate) fn make(name: &str) -> Result<Tun, Error> {
        let mut options = File::options();
        let file = options.read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun").map_err(|e| {
            match e.raw_os_error() {
                // ENODEV, ENXIO: there is the node, but no driver.
                Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => Error::NoTun,
                Some(libc::EACCES | libc::EPERM) => Error::NoAccess,
                _ => Error::refused("/dev/net/tun cannot be opened", &e),
            }
        })?;
        let end = Instant::now() + REMOVAL;
        loop {
            match raw::make_tun(file.as_fd(), name, IFF_TUN | IFF_NO_PI | IFF_TUN_EXCL) {
                Ok(()) => return Ok(Tun(file)),
                Err(e) if e.raw_os_error() == Some(libc::EBUSY) => {
                    let holder = holder(name, true);
                    if holder.is_some() || !is_tun(name) {
                        return Err(Error::Exists { name: name.to_string(), holder });
                    }
                    if Instant::now() >= end {
                        return Err(Error::Exists { name: name.to_string(), holder: self::holder(name, false) });
                    }
                }
                Err(e) if e.raw_os_error() == Some(libc::EPERM) => {
                    return Err(Error::NoRights { missing: "CAP_NET_ADMIN".to_string() });
                }
                Err(e) => return Err(Error::refused(format!("the tun {name} cannot be made"), &e)),
            }
            thread::sleep(Duration::from_millis(5));
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

/// Whether an interface is a tun that vanishes with its process.
fn is_tun(name: &str) -> bool {
    // linux/if_tun.h: IFF_PERSIST 0x0800.
    let flags = std::fs::read_to_string(format!("/sys/class/net/{name}/tun_flags"));
    let flags = flags.ok().and_then(|f| u32::from_str_radix(f.trim().trim_start_matches("0x"), 16).ok());
    // /sys may show another network namespace, or nothing: then it may be one.
    flags.is_none_or(|f| f & 0x0800 == 0)
}

/// The process that has a tun of this name open, as proc(5)'s fdinfo tells. With `here`, only one whose network namespace is the
/// caller's: the process may also have opened it in a namespace that it has left since.
fn holder(name: &str, here: bool) -> Option<String> {
    let line = format!("iff:\t{name}");
    let namespace = std::fs::read_link("/proc/thread-self/ns/net").ok()?;
    for process in std::fs::read_dir("/proc").ok()?.flatten() {
        let path = process.path();
        let Some(pid) = process.file_name().to_str().and_then(|n| n.parse::<u32>().ok()) else { continue };
        if here && std::fs::read_link(path.join("ns/net")).is_ok_and(|n| n != namespace) {
            continue;
        }
        let Ok(infos) = std::fs::read_dir(path.join("fdinfo")) else { continue };
        let has = |info: &std::fs::DirEntry| {
            std::fs::read_to_string(info.path()).is_ok_and(|text| text.lines().any(|l| l == line))
        };
        if infos.flatten().any(|info| has(&info)) {
            let command = std::fs::read_to_string(path.join("comm")).unwrap_or_default();
            return Some(format!("{} (pid {pid})", command.trim()));
        }
    }
    None
}
