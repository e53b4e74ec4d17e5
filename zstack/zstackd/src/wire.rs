//! The port to the wire: opened in its network namespace, and slept on.

use crate::poller::{Event, Poller};
use nix::sched::{CloneFlags, setns};
use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::time::Duration;
#[cfg(feature = "dpdk")]
use std::time::Instant;
use zstack::payload::Pinned;
use zstack::port::{Capabilities, Medium, Port};
use zstack_port::Device;

/// The token of the port's descriptor.
pub const PORT: u64 = (1 << 63) + 1;

/// The token of what tells of packets that another worker has handed over; the port's alone.
pub const BELL: u64 = (1 << 63) + 6;

/// A port that no thread uses yet: one of the queues of a device, each of which becomes a worker's.
pub trait Unbound: Send {
    /// The port.
    type Wire: Wire;

    /// The port of the calling thread.
    fn bind(self) -> Self::Wire;

    /// The largest IP packet.
    fn mtu(&self) -> u16;

    /// The kernel's interface on the same wire, which the device shares with the kernel.
    fn interface(&self) -> Option<&str> {
        None
    }

    /// What it can do, for people.
    fn describe(&self) -> String;
}

/// A port that can be slept on.
pub trait Wire: Port<Buffer: Pinned> {
    /// Has the poller tell, with the tokens [`PORT`] and [`BELL`], when a packet can be received, if that can be told.
    ///
    /// # Errors
    /// Those of epoll_ctl(2).
    fn watch(&self, poller: &Poller) -> io::Result<()>;

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

    /// Hands a packet over to the port of another worker, whose it is. `buffer`: what it came in, up to its end. False: it is lost, as on a
    /// wire that is full.
    fn hand_over(&self, to: u16, buffer: &[u8]) -> bool;

    /// Whether what is sent is copied once more before its driver has it: one that takes no chain of segments, or memory of its own alone.
    fn copies(&self) -> bool {
        false
    }

    /// The kind of device, in a word.
    fn kind(&self) -> &str;

    /// What it can do, for people.
    fn describe(&self) -> String;
}

impl Unbound for zstack_port::Unbound {
    type Wire = Device;

    fn bind(self) -> Device {
        zstack_port::Unbound::bind(self)
    }

    fn mtu(&self) -> u16 {
        self.capabilities().mtu
    }

    fn describe(&self) -> String {
        of_kernel(self.name(), self.capabilities())
    }
}

impl Wire for Device {
    fn watch(&self, poller: &Poller) -> io::Result<()> {
        self.bell().map_or(Ok(()), |bell| poller.watch(bell, BELL))?;
        poller.watch(self, PORT)
    }

    fn hand_over(&self, to: u16, buffer: &[u8]) -> bool {
        Device::hand_over(self, to, buffer)
    }

    fn kind(&self) -> &str {
        if self.capabilities().medium == Medium::Ip { "tun" } else { "tap" }
    }

    fn describe(&self) -> String {
        of_kernel(self.name(), self.capabilities())
    }
}

#[cfg(feature = "dpdk")]
impl Unbound for zstack_dpdk::Unbound {
    type Wire = zstack_dpdk::Queue;

    fn bind(self) -> zstack_dpdk::Queue {
        zstack_dpdk::Unbound::bind(self)
    }

    fn mtu(&self) -> u16 {
        zstack_dpdk::Unbound::mtu(self)
    }

    fn interface(&self) -> Option<&str> {
        // The kernel is at the other end of a tap.
        zstack_dpdk::Unbound::interface(self).filter(|_| self.driver() != "net_tap")
    }

    fn describe(&self) -> String {
        of_dpdk(&self.about())
    }
}

#[cfg(feature = "dpdk")]
impl Wire for zstack_dpdk::Queue {
    fn watch(&self, poller: &Poller) -> io::Result<()> {
        self.bell().map_or(Ok(()), |bell| poller.watch(bell, BELL))?;
        self.fd().map_or(Ok(()), |fd| poller.watch_arrivals(fd, PORT))
    }

    /// In epoll_wait, as for all other ports: a set that is itself waited for by poll(2) is one that the library, which hears of rings by it,
    /// leaves to the kernel, with all that it watches.
    fn sleep(&mut self, poller: &mut Poller, limit: Option<Duration>, events: &mut Vec<Event>) -> io::Result<()> {
        // With nothing to wait for, the driver's way to sleep need not be prepared.
        if limit == Some(Duration::ZERO) {
            return poller.wait(limit, events);
        }
        let end = limit.map(|l| Instant::now() + l);
        let before = events.len();
        loop {
            let most = self.lie_down();
            let left = end.map_or(most, |end| end.saturating_duration_since(Instant::now()).min(most));
            let waited = poller.wait(Some(left), events);
            let come = self.get_up(events[before..].iter().any(|event| event.token == PORT));
            waited?;
            let over = most.is_zero() || end.is_some_and(|end| Instant::now() >= end);
            if come || over || events.len() > before {
                return Ok(());
            }
        }
    }

    fn mac(&self) -> Option<[u8; 6]> {
        zstack_dpdk::Queue::mac(self)
    }

    fn hand_over(&self, to: u16, buffer: &[u8]) -> bool {
        zstack_dpdk::Queue::hand_over(self, to, buffer)
    }

    fn copies(&self) -> bool {
        // Where payload is attached, the driver reads it later.
        !self.capabilities().late
    }

    fn kind(&self) -> &str {
        self.driver()
    }

    fn describe(&self) -> String {
        of_dpdk(&self.about())
    }
}

#[cfg(feature = "dpdk")]
fn of_dpdk(about: &[(&str, String)]) -> String {
    let about: Vec<_> = about.iter().map(|(name, value)| format!("{name} {value}")).collect();
    format!("DPDK: {}", about.join(", "))
}

fn of_kernel(name: &str, can: Capabilities) -> String {
    format!("{name}: MTU {}, checksums {}, TSO {}", can.mtu, yes(can.checksum), yes(can.tso > 0))
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
