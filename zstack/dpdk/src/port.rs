//! One queue of a device as the engine's port.

use crate::driver::Payload;
use crate::raw::calls;
use crate::raw::memif::{self, Armed, Bells};
use crate::raw::queue::{Building, Counters, Packet, Raw};
use crate::sleep::Means;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};
use zstack::payload::Buffer;
use zstack::port::{Capabilities, Frame, Medium, Port, Received, Refused};
use zstack_port::{Interest, Post, wait_any};

/// The longest nap while nothing tells of a packet.
const NAP: Duration = Duration::from_micros(100);
/// The longest one when no packet has come or gone for [`QUIET`]: each nap costs the same, however long it is.
const NAP_QUIET: Duration = Duration::from_micros(250);
/// A pause that is longer than those between packets of a connection in use.
const QUIET: Duration = Duration::from_millis(50);
/// The longest nap while the other end is not there.
const NAP_ALONE: Duration = Duration::from_millis(10);
/// How long a device that has begun to connect to its other end may take for it.
const CONNECTING: Duration = Duration::from_secs(5);
/// The longest sleep until it is looked whether the device is still there.
const DOZE: Duration = Duration::from_secs(1);
/// How often that is looked at without a sleep.
const WATCH: Duration = Duration::from_millis(100);
/// After so many looks that found nothing the clock is asked.
const IDLE: u32 = 1024;

/// What all queues of a device have in common.
pub(crate) struct Common {
    pub name: String,
    pub driver: String,
    pub interface: Option<String>,
    pub mac: Option<[u8; 6]>,
    pub mtu: u16,
    pub building: Building,
    pub queues: u16,
    /// The driver connects to its other end when it is started, and not again when that goes and comes.
    pub connects: bool,
    pub huge: bool,
    /// Where the buffers of packets that arrive lie.
    pub pool: String,
    /// A socket of the interface's network namespace, and the interface's index.
    pub watch: Option<(OwnedFd, u32)>,
    pub post: Post,
}

impl Common {
    fn capabilities(&self) -> Capabilities {
        let building = &self.building;
        Capabilities {
            medium: Medium::Ethernet,
            mtu: self.mtu,
            checksum: building.checksum,
            tso: building.tso,
            // Frames go to the driver by the dozen; one that is copied is done with before.
            late: building.payload == Payload::Attached,
        }
    }

    /// Of a queue that is slept on so: names and values for people to read.
    pub fn about(&self, queue: u16, means: Means) -> Vec<(&'static str, String)> {
        let yes = |b: bool| if b { "yes" } else { "no" }.to_owned();
        let payload = match self.building.payload {
            Payload::Attached => "read where it is, in segments of its own",
            Payload::Copied => "copied behind its header",
            Payload::CopiedToReceivePool => "copied into a buffer of the receive pool",
        };
        vec![
            ("device", self.name.clone()),
            ("driver", self.driver.clone()),
            ("queue", format!("{queue} of {}", self.queues)),
            ("mtu", self.mtu.to_string()),
            ("payload", payload.to_owned()),
            ("late", yes(self.capabilities().late)),
            ("checksum", yes(self.building.checksum)),
            ("tso", self.building.tso.to_string()),
            ("sleep", means.to_string()),
            ("memory", if self.huge { "hugepages" } else { "ordinary pages" }.to_owned()),
            ("pool", self.pool.clone()),
        ]
    }
}

/// What has to be read so that the descriptor is not readable any more.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Counting {
    /// Nothing: the driver reads it.
    Not,
    /// The descriptor itself.
    Itself,
    /// Those that it watches.
    Watched,
    /// Nothing: it tells of edges.
    Edges,
}

/// One queue of a device, as a port of one thread. Dropping it ends the use of everything that its frames point at: on a device whose driver
/// reads late, other queues end with it.
pub struct Queue {
    common: Arc<Common>,
    raw: Raw,
    number: u16,
    means: Means,
    fd: Option<OwnedFd>,
    counting: Counting,
    /// The descriptor was readable, and what it has counted was not taken yet: that is done before the next sleep, not before what has come is looked
    /// at.
    counted: bool,
    /// The interrupt is on: it was asked for by [`Queue::lie_down`].
    armed: bool,
    /// Net_memif's other end, which wakes us.
    bells: Bells,
    gone: bool,
    idle: u32,
    watched: Instant,
    /// Since when; and whether its other end was seen to be there.
    began: Instant,
    connected: bool,
    /// How many packets had come and gone when it last napped, and since when these are all.
    moved: (u64, Instant),
}

impl Queue {
    pub(crate) fn new(common: Arc<Common>, raw: Raw, number: u16, means: Means, fd: Option<OwnedFd>) -> Queue {
        let counting = match &fd {
            Some(fd) if means == Means::Interrupt => counting(fd),
            Some(_) if means == Means::Peer => Counting::Edges,
            _ => Counting::Not,
        };
        let bells = Bells::new(common.connects);
        let now = Instant::now();
        Queue {
            common,
            raw,
            number,
            means,
            fd,
            counting,
            counted: false,
            armed: false,
            bells,
            gone: false,
            idle: 0,
            watched: now,
            began: now,
            connected: false,
            moved: (0, now),
        }
    }

    /// The device's name.
    pub fn name(&self) -> &str {
        &self.common.name
    }

    /// The driver's name, as DPDK has it.
    pub fn driver(&self) -> &str {
        &self.common.driver
    }

    /// The kernel's interface that the device is, or is made of.
    pub fn interface(&self) -> Option<&str> {
        self.common.interface.as_deref()
    }

    /// The device's Ethernet address, or the one that the spec has chosen; `None`: the caller's choice.
    pub fn mac(&self) -> Option<[u8; 6]> {
        self.common.mac
    }

    /// What the device and its driver can do, found out when it was opened: names and values for people to read.
    pub fn about(&self) -> Vec<(&'static str, String)> {
        self.common.about(self.number, self.means)
    }

    /// The memory that received packets lie in, and its address here, where it is ours: who maps the file, too, sees the packets. With net_af_xdp what
    /// DPDK keeps of each lies beside it.
    pub fn memory(&self) -> Option<(BorrowedFd<'_>, std::ops::Range<usize>)> {
        self.raw.memory()
    }

    /// Hands a packet that has come here over to the queue whose it is. False: it is lost.
    pub fn hand_over(&self, to: u16, packet: &[u8]) -> bool {
        self.common.post.hand_over(to, packet)
    }

    /// Readable when something has come by way of another queue, where there is one: to be watched beside [`Queue::fd`].
    pub fn bell(&self) -> Option<BorrowedFd<'_>> {
        self.common.post.bell(self.number)
    }

    /// What has happened.
    pub fn counters(&self) -> Counters {
        let device = self.raw.ethdev().stats();
        Counters {
            missed: device.imissed + device.rx_nombuf + device.ierrors,
            unsent: device.oerrors,
            ..self.raw.counts
        }
    }

    /// Readable when a packet can be received, if that can be told: what to watch between [`Queue::lie_down`] and [`Queue::get_up`]. Watched
    /// for edges it is enough, since `lie_down` looks for packets.
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.fd
            .as_ref()
            .filter(|_| matches!(self.means, Means::Interrupt | Means::Socket | Means::Peer))
            .map(AsFd::as_fd)
    }

    /// Sleeps until a packet can be received, the device is gone, one of `others` is ready, or `limit` is over (never, if there is none). A
    /// signal that the process handles may end it earlier.
    ///
    /// # Errors
    /// Those of ppoll(2), apart from EINTR.
    pub fn wait(&mut self, others: &mut [Interest<'_>], limit: Option<Duration>) -> io::Result<()> {
        let end = limit.map(|l| Instant::now() + l);
        loop {
            let most = self.lie_down();
            let left = end.map_or(most, |end| end.saturating_duration_since(Instant::now()).min(most));
            let (any, ready) = self.wait_once(others, left)?;
            if self.get_up(ready) || any || most.is_zero() || end.is_some_and(|end| Instant::now() >= end) {
                return Ok(());
            }
        }
    }

    /// Whether any descriptor, and whether the queue's own, is ready.
    fn wait_once(&self, others: &mut [Interest<'_>], limit: Duration) -> io::Result<(bool, bool)> {
        let (held, most) = self.raw.held();
        let Some(fd) = self.fd() else { return Ok((wait_any(others, Some(limit))? > 0, false)) };
        // While all buffers are in use a packet does not wake: whatever frees buffers has to.
        let own = Interest { read: held < most, ..Interest::read(fd) };
        let bell = self.common.post.bell(self.number).map(Interest::read);
        let first = 1 + usize::from(bell.is_some());
        let mut all: Vec<Interest<'_>> = std::iter::once(own).chain(bell).chain(others.iter().copied()).collect();
        let any = wait_any(&mut all, Some(limit))? > 0;
        for (other, answer) in others.iter_mut().zip(&all[first..]) {
            other.ready = answer.ready;
        }
        Ok((any, all[0].ready))
    }

    /// Hands over what waits to be sent, and makes ready for a sleep on [`Queue::fd`] and on others' descriptors: how long it may be until
    /// the next look, at most. Zero: something has come.
    pub fn lie_down(&mut self) -> Duration {
        self.raw.burst();
        // Before the look: who comes behind it makes the descriptor readable again.
        if std::mem::take(&mut self.counted)
            && let Some(fd) = &self.fd
        {
            match self.counting {
                Counting::Not => {}
                Counting::Itself => calls::drain(fd.as_fd()),
                Counting::Watched => calls::drain_watched(fd.as_fd()),
                Counting::Edges => memif::drain(fd.as_fd()),
            }
        }
        if self.gone || self.has_something() {
            return Duration::ZERO;
        }
        match self.means {
            Means::Busy => Duration::ZERO,
            Means::Nap => self.nap(),
            Means::Socket if self.raw.waiting() > 0 => NAP,
            Means::Socket => DOZE,
            Means::Peer => self.lie_down_beside_the_peer(),
            Means::Interrupt => {
                self.armed = self.raw.ethdev().arm(self.number);
                // Something may have come before the interrupt was armed.
                match self.armed {
                    true if self.raw.look() => Duration::ZERO,
                    true if self.raw.waiting() == 0 => DOZE,
                    _ => NAP,
                }
            }
        }
    }

    /// Has the other end of a net_memif wake us.
    fn lie_down_beside_the_peer(&mut self) -> Duration {
        if !self.raw.ethdev().is_up() {
            self.bells.leave();
            return NAP_ALONE;
        }
        let armed = self.fd.as_ref().map_or(Armed::Not, |set| self.bells.arm(set.as_fd()));
        let (held, most) = self.raw.held();
        match armed {
            Armed::Not => self.nap(),
            // Something may have come before.
            _ if self.raw.look() => Duration::ZERO,
            // While all buffers are in use a packet that is there already does not wake: whatever frees buffers has to.
            _ if self.raw.waiting() > 0 || held >= most => NAP,
            // The other end may have sent something, and not have seen that it is to ring.
            Armed::Now => NAP,
            // Until it is noticed that it has gone and come again, whose ring is another one.
            Armed::Before => WATCH,
        }
    }

    /// How long a nap may be.
    fn nap(&mut self) -> Duration {
        if !self.raw.ethdev().is_up() {
            // The other end may come meanwhile.
            return NAP_ALONE;
        }
        let (moved, now) = (self.raw.counts.received + self.raw.counts.sent, Instant::now());
        if moved != self.moved.0 {
            self.moved = (moved, now);
        }
        if now - self.moved.1 < QUIET { NAP } else { NAP_QUIET }
    }

    /// What follows a sleep; `ready`: the queue's descriptor was. Whether something has come, or the device is gone.
    pub fn get_up(&mut self, ready: bool) -> bool {
        if self.means == Means::Nap {
            return self.has_something() || self.is_gone();
        }
        self.counted |= ready;
        if self.means == Means::Peer {
            return self.has_something() || self.is_gone();
        }
        if std::mem::take(&mut self.armed) {
            self.raw.ethdev().disarm(self.number);
        }
        let (held, most) = self.raw.held();
        if ready && held < most && !self.raw.look() {
            // An error of a socket, which is gone when it was read; the device is, or is not.
            if let Some(fd) = self.fd.as_ref().filter(|_| self.means == Means::Socket) {
                calls::take_error(fd.as_fd());
            }
            self.look_for_the_device();
        }
        // An XDP socket says nothing when its interface goes.
        ready || self.is_gone()
    }

    /// Whether a packet has come, to this queue or by way of another.
    fn has_something(&mut self) -> bool {
        self.common.post.waits(self.number) || self.raw.look()
    }

    /// Looks now and then.
    fn is_gone(&mut self) -> bool {
        if !self.gone && self.watched.elapsed() >= WATCH {
            self.look_for_the_device();
        }
        self.gone
    }

    #[cold]
    fn look_for_the_device(&mut self) {
        self.watched = Instant::now();
        let interface = self.common.watch.as_ref();
        let missing = interface.is_some_and(|(socket, index)| !calls::exists(socket.as_fd(), *index));
        self.gone |= missing || self.raw.ethdev().is_removed();
        if self.common.connects {
            let up = self.raw.ethdev().is_up();
            self.gone |= !up && (self.connected || self.began.elapsed() >= CONNECTING);
            self.connected |= up;
        }
    }
}

/// What kind of descriptor a driver's interrupt is.
fn counting(fd: &OwnedFd) -> Counting {
    use std::os::fd::AsRawFd;
    let link = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).unwrap_or_default();
    let link = link.to_string_lossy();
    if link.contains("[eventfd]") {
        Counting::Itself
    } else if link.contains("[eventpoll]") {
        Counting::Watched
    } else {
        Counting::Not
    }
}

impl Port for Queue {
    type Buffer = Packet;

    fn capabilities(&self) -> Capabilities {
        self.common.capabilities()
    }

    #[inline]
    fn receive(&mut self) -> Result<Option<Received<Packet>>, Refused> {
        if self.bells.is_armed() {
            self.bells.disarm();
        }
        match self.raw.receive() {
            Some((buffer, verified)) => {
                self.idle = 0;
                self.common.post.pass_on(self.number, buffer.bytes());
                let range = 0..buffer.bytes().len();
                Ok(Some(Received { buffer, range, verified }))
            }
            None => {
                if let Some(letter) = self.common.post.receive(self.number)
                    && let Some(buffer) = self.raw.copy_of(&letter)
                {
                    let range = 0..letter.len();
                    return Ok(Some(Received { buffer, range, verified: false }));
                }
                self.idle += 1;
                if self.gone || self.idle.is_multiple_of(IDLE) && self.is_gone() {
                    return Err(Refused::Gone);
                }
                Ok(None)
            }
        }
    }

    #[allow(unsafe_code)] // The trait's contract is handed on.
    unsafe fn send(&mut self, frame: &Frame<'_>) -> Result<(), Refused> {
        if self.gone {
            return Err(Refused::Gone);
        }
        // SAFETY: the payload is readable until the frame is completed, which `Raw::completed` says.
        unsafe { self.raw.send(frame) }
    }

    fn completed(&mut self) -> u64 {
        self.raw.completed()
    }

    fn flush(&mut self) {
        self.raw.burst();
    }
}
