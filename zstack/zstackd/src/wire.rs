//! The port to the wire: opened in its network namespace, and slept on.

use crate::poller::{Event, Poller};
use nix::sched::{CloneFlags, setns};
use std::fs::File;
use std::io;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::time::Duration;
use zstack::payload::Pinned;
use zstack::port::{Medium, Port};
use zstack_port::Device;

/// A port that can be slept on.
pub trait Wire: Port<Buffer: Pinned> {
    /// Readable when a packet can be received; `None`: [`Wire::sleep`] knows how to wait for one.
    fn fd(&self) -> Option<BorrowedFd<'_>>;

    /// Sleeps until a packet can be received, `poller` has something, or the limit is over (never, without one). What the poller has
    /// goes behind `events`.
    ///
    /// # Errors
    /// Those of epoll_wait(2) and ppoll(2), apart from EINTR.
    fn sleep(&mut self, poller: &mut Poller, limit: Option<Duration>, events: &mut Vec<Event>) -> io::Result<()> {
        poller.wait(limit, events)
    }

    /// Its Ethernet address; `None`: whoever uses it chooses one.
    fn mac(&self) -> Option<[u8; 6]> {
        None
    }

    /// The kind of device, in a word.
    fn kind(&self) -> &str;

    /// What it can do, for people.
    fn describe(&self) -> String;
}

impl Wire for Device {
    fn fd(&self) -> Option<BorrowedFd<'_>> {
        Some(std::os::fd::AsFd::as_fd(self))
    }

    fn kind(&self) -> &str {
        if self.capabilities().medium == Medium::Ip { "tun" } else { "tap" }
    }

    fn describe(&self) -> String {
        let can = self.capabilities();
        format!("{}: MTU {}, checksums {}, TSO {}", self.name(), can.mtu, yes(can.checksum), yes(can.tso > 0))
    }
}

#[cfg(feature = "dpdk")]
impl Wire for zstack_dpdk::Queue {
    fn fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn sleep(&mut self, poller: &mut Poller, limit: Option<Duration>, events: &mut Vec<Event>) -> io::Result<()> {
        // With nothing to wait for, the driver's way to sleep need not be prepared.
        if limit != Some(Duration::ZERO) {
            self.wait(&mut [zstack_port::Interest::read(poller.fd())], limit)?;
        }
        poller.wait(Some(Duration::ZERO), events)
    }

    fn mac(&self) -> Option<[u8; 6]> {
        zstack_dpdk::Queue::mac(self)
    }

    fn kind(&self) -> &str {
        self.driver()
    }

    fn describe(&self) -> String {
        let about: Vec<_> = self.about().iter().map(|(name, value)| format!("{name} {value}")).collect();
        format!("DPDK: {}", about.join(", "))
    }
}

/// For people.
fn yes(does: bool) -> &'static str {
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
