//! The port to the wire: opened in its network namespace, and slept on.

use nix::sched::{CloneFlags, setns};
use std::fs::File;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::time::Duration;
use zstack::payload::Pinned;
use zstack::port::Port;
use zstack_port::Device;

/// A port that can be slept on.
pub trait Wire: Port<Buffer: Pinned> {
    /// Readable when a packet can be received; `None`: the port has no such descriptor.
    fn fd(&self) -> Option<BorrowedFd<'_>>;

    /// The longest sleep between two looks at a port without a descriptor.
    fn nap(&self) -> Duration {
        Duration::from_micros(100)
    }

    /// What it can do, for people.
    fn describe(&self) -> String;
}

impl Wire for Device {
    fn fd(&self) -> Option<BorrowedFd<'_>> {
        Some(std::os::fd::AsFd::as_fd(self))
    }

    fn describe(&self) -> String {
        let can = self.capabilities();
        format!("{}: MTU {}, checksums {}, TSO {}", self.name(), can.mtu, yes(can.checksum), yes(can.tso > 0))
    }
}

/// For people.
pub fn yes(does: bool) -> &'static str {
    if does { "by the port" } else { "here" }
}

/// Does something in another network namespace: a name as of ip-netns(8), or a path. The calling thread is back in its own afterwards.
///
/// # Errors
/// A line for the user: there is no such namespace, or one may not enter it.
///
/// # Panics
/// If the thread cannot return to the namespace that it came from.
pub fn within<T>(namespace: Option<&str>, what: impl FnOnce() -> T) -> Result<T, String> {
    let Some(name) = namespace else { return Ok(what()) };
    let path = if name.contains('/') { PathBuf::from(name) } else { PathBuf::from("/run/netns").join(name) };
    let open = |path: &std::path::Path| File::open(path).map_err(|e| (path.to_owned(), e));
    let told = |(path, e): (PathBuf, std::io::Error)| {
        format!("port-namespace: {}: {e}: make it with `ip netns add`, or name one that is there", path.display())
    };
    let there = open(&path).map_err(told)?;
    let home = open("/proc/thread-self/ns/net".as_ref()).map_err(told)?;
    setns(&there, CloneFlags::CLONE_NEWNET)
        .map_err(|e| format!("port-namespace: {name}: {e}: zstackd needs CAP_SYS_ADMIN to enter it"))?;
    let done = what();
    setns(&home, CloneFlags::CLONE_NEWNET).expect("back to where this thread came from");
    Ok(done)
}
