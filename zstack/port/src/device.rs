//! Tun and tap devices of Linux.

use crate::error::OpenError;
use crate::link::Link;
use crate::post::Post;
use crate::raw::calls;
use crate::raw::pool::{Packet, Pool};
use crate::spec::{Address, Kind, Offload, Spec};
use crate::virtio;
use crate::wait::{Interest, wait_any};
use std::fs::File;
use std::io::{self, Read};
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;
use std::time::Duration;
use zstack::port::{Capabilities, Checksum, Frame, Medium, Port, Received, Refused};

const TUN_F_CSUM: u32 = 1;
const TUN_F_TSO4: u32 = 2;
const TUN_F_TSO6: u32 = 4;

/// The most payload of a packet that the kernel cuts: with the longest headers (IPv6 40, TCP 60) the packet's length still fits in
/// the 16 bits of IPv4's.
const TSO: u32 = 65_535 - 100;

/// The link header, with a VLAN tag.
const LINK: usize = 18;

/// Empty bytes at the head of a buffer: behind them and the virtio header, an IP header begins at a multiple of four.
const PAD: usize = 2;

/// How long the kernel may take until it uses an IPv6 address.
const ROUTE: Duration = Duration::from_secs(30);

/// What has happened at a device, in packets.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counters {
    /// Received.
    pub received: u64,
    /// Of those: several segments in one.
    pub joined: u64,
    /// Received and dropped: longer than a buffer.
    pub oversized: u64,
    /// Sent.
    pub sent: u64,
    /// Of those: left to the kernel to cut.
    pub cut: u64,
    /// Sent while the interface was down: lost, as on a wire that is unplugged.
    pub down: u64,
    /// Frames that were refused as unfit.
    pub unfit: u64,
    /// How often a packet may have waited in the device because all buffers were in use.
    pub starved: u64,
}

/// A tun or tap device, from the side of the program. The interface goes away when this is dropped, unless somebody has made it
/// persistent.
///
/// It belongs to the network namespace of the thread that opened it. A child of fork(2) would share the device: packets would go to
/// one of both.
pub struct Device {
    file: File,
    name: String,
    capabilities: Capabilities,
    /// Whether each packet has a virtio header.
    virtio: bool,
    pool: Pool,
    post: Arc<Post>,
    /// Of several queues of the same interface, this one's number.
    queue: u16,
    counters: Counters,
    /// The last `receive` has found no free buffer.
    starved: bool,
}

/// A queue of a device that no thread uses yet.
pub struct Unbound {
    file: File,
    name: String,
    capabilities: Capabilities,
    virtio: bool,
    /// How many buffers, of so many bytes.
    buffers: (u32, usize),
    post: Arc<Post>,
    queue: u16,
}

impl Unbound {
    /// The queue as a port of the calling thread.
    pub fn bind(self) -> Device {
        let Unbound { file, name, capabilities, virtio, buffers: (count, size), post, queue } = self;
        let (pool, counters) = (Pool::new(count, size), Counters::default());
        Device { file, name, capabilities, virtio, pool, post, queue, counters, starved: false }
    }

    /// The interface's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What the queue can do.
    pub fn capabilities(&self) -> Capabilities {
        self.capabilities
    }
}

impl Device {
    /// Opens the device, and makes it if there is none of that name. Where the spec asks for it, its MTU, its queue, the kernel's
    /// addresses and its link are set. With an IPv6 address it waits until the kernel delivers packets to it: milliseconds, and up to
    /// half a minute on a machine that makes and removes network namespaces all the time.
    ///
    /// # Errors
    /// The text of the error says what to do.
    pub fn open(spec: &Spec) -> Result<Device, OpenError> {
        Ok(Device::open_queues(spec, 1)?.remove(0).bind())
    }

    /// Opens the device with so many queues, each a port of a thread of its own. The kernel brings a packet to the queue by which packets of
    /// the same addresses and ports have gone last; without one, to one that it chooses by a hash, which is the same in both directions.
    /// What is for all of them ([`Post`]) comes to each.
    ///
    /// # Errors
    /// As [`Device::open`].
    pub fn open_queues(spec: &Spec, queues: u16) -> Result<Vec<Unbound>, OpenError> {
        let virtio = spec.offload != Offload::Off;
        let mut name = spec.name.clone();
        let mut files = Vec::new();
        for _ in 0..queues.max(1) {
            let file = open_tun()?;
            name = attach(&file, &name, spec.kind, virtio, queues > 1)?;
            files.push(file);
        }
        // A persistent device keeps what its last user has set.
        let offload = match spec.offload {
            Offload::Off => 0,
            Offload::Checksum => TUN_F_CSUM,
            Offload::Full => TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6,
        };
        calls::set_offload(files[0].as_fd(), offload)
            .map_err(|error| OpenError::System { call: "ioctl TUNSETOFFLOAD", error })?;
        let mtu = set_up(spec, &name)?;
        let full = spec.offload == Offload::Full;
        let capabilities = Capabilities {
            medium: if spec.kind == Kind::Tun { Medium::Ip } else { Medium::Ethernet },
            mtu,
            checksum: virtio,
            tso: if full { TSO } else { 0 },
            late: false,
        };
        // One byte more than the longest packet has: a buffer that is full holds a part of one that is longer.
        let longest = if full { 65_535 } else { usize::from(mtu) };
        let buffers = (spec.buffers, PAD + virtio::LEN + LINK + longest + 1);
        let post = Post::new(queues, capabilities.medium);
        let post = Arc::new(post.map_err(|error| OpenError::System { call: "eventfd", error })?);
        let unbound = |(queue, file)| {
            let (name, post) = (name.clone(), post.clone());
            Unbound { file, name, capabilities, virtio, buffers, post, queue }
        };
        Ok((0..).zip(files).map(unbound).collect())
    }

    /// Hands a packet that has come here over to the queue whose it is: its buffer, up to the packet's end. False: it is lost.
    pub fn hand_over(&self, to: u16, buffer: &[u8]) -> bool {
        let start = PAD + if self.virtio { virtio::LEN } else { 0 };
        buffer.get(start..).is_some_and(|packet| self.post.hand_over(to, packet))
    }

    /// Readable when something has come by way of another queue, where there is one.
    pub fn bell(&self) -> Option<BorrowedFd<'_>> {
        self.post.bell(self.queue)
    }

    /// The interface's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What has happened.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// The buffers of received packets.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// Sleeps until a packet can be received, the device is gone, one of `others` is ready, or `limit` is over (never, if there
    /// is none). While all buffers are in use, a packet does not wake: whatever frees buffers has to.
    ///
    /// # Errors
    /// Those of ppoll(2), apart from EINTR.
    pub fn wait(&self, others: &mut [Interest<'_>], limit: Option<Duration>) -> io::Result<()> {
        let own = [Some(self.interest()), self.bell().map(Interest::read)];
        let mut all: Vec<Interest<'_>> = own.into_iter().flatten().chain(others.iter().copied()).collect();
        wait_any(&mut all, limit)?;
        let first = all.len() - others.len();
        for (other, answer) in others.iter_mut().zip(&all[first..]) {
            other.ready = answer.ready;
        }
        Ok(())
    }

    /// What to sleep on for this device.
    pub fn interest(&self) -> Interest<'_> {
        let starved = self.starved && self.pool.free() == 0;
        Interest { read: !starved, ..Interest::read(self.file.as_fd()) }
    }

    fn refusal(&mut self, error: &io::Error) -> Result<(), Refused> {
        match error.raw_os_error() {
            Some(libc::EAGAIN | libc::ENOBUFS | libc::ENOMEM) => Err(Refused::Full),
            Some(libc::EBADFD | libc::EBADF | libc::ENODEV) => Err(Refused::Gone),
            // The interface is down (tun_get_user): the frame is lost, and the next may not be.
            Some(libc::EIO) => {
                self.counters.down += 1;
                Ok(())
            }
            _ => {
                self.counters.unfit += 1;
                Err(Refused::Unfit)
            }
        }
    }
}

impl AsFd for Device {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Port for Device {
    type Buffer = Packet;

    fn capabilities(&self) -> Capabilities {
        self.capabilities
    }

    fn receive(&mut self) -> Result<Option<Received<Packet>>, Refused> {
        loop {
            let Some(mut vacant) = self.pool.take() else {
                self.counters.starved += u64::from(!self.starved);
                self.starved = true;
                return Ok(None);
            };
            self.starved = false;
            let bytes = &mut vacant.bytes()[PAD..];
            let room = bytes.len();
            let len = match self.file.read(bytes) {
                Ok(len) => len,
                Err(error) => match error.raw_os_error() {
                    Some(libc::EINTR) => continue,
                    Some(libc::EAGAIN | libc::ENOMEM | libc::ENOBUFS) => {
                        let Some(letter) = self.post.receive(self.queue) else { return Ok(None) };
                        let start = PAD + if self.virtio { virtio::LEN } else { 0 };
                        let range = start..start + letter.len();
                        // It was in a buffer of the same size.
                        let Some(to) = vacant.bytes().get_mut(range.clone()) else { continue };
                        to.copy_from_slice(&letter);
                        return Ok(Some(Received { buffer: vacant.filled(range.end), range, verified: false }));
                    }
                    _ => return Err(Refused::Gone),
                },
            };
            let header = if self.virtio { virtio::LEN } else { 0 };
            if len == room {
                self.counters.oversized += 1;
                continue;
            }
            if len <= header {
                continue;
            }
            self.counters.received += 1;
            let mut verified = false;
            if self.virtio {
                verified = virtio::verified(&bytes[..header]);
                self.counters.joined += u64::from(virtio::joined(&bytes[..header]));
            }
            let range = PAD + header..PAD + len;
            self.post.pass_on(self.queue, &bytes[header..len]);
            return Ok(Some(Received { buffer: vacant.filled(range.end), range, verified }));
        }
    }

    #[allow(unsafe_code)] // The trait's contract is handed on to the one function that needs it.
    unsafe fn send(&mut self, frame: &Frame<'_>) -> Result<(), Refused> {
        let header = if self.virtio {
            virtio::header(frame, self.capabilities.medium)
        } else {
            (frame.checksum == Checksum::Complete && frame.cut == 0).then_some([0; virtio::LEN])
        };
        let Some(header) = header else {
            self.counters.unfit += 1;
            return Err(Refused::Unfit);
        };
        let header = if self.virtio { &header[..] } else { &[] };
        let all = header.len() + frame.head.len() + frame.payload.len() as usize;
        loop {
            // SAFETY: the payload is readable until the frame is completed, which it is not before this call returns.
            match unsafe { calls::write_packet(self.file.as_fd(), header, frame.head, &frame.payload) } {
                Ok(len) => {
                    debug_assert_eq!(len, all, "a tun device takes a packet whole");
                    self.counters.sent += 1;
                    self.counters.cut += u64::from(self.virtio && virtio::joined(header));
                    return Ok(());
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return self.refusal(&error),
            }
        }
    }

    /// The kernel has copied a frame when writev(2) returns.
    fn completed(&mut self) -> u64 {
        self.counters.sent + self.counters.down
    }
}

fn open_tun() -> Result<File, OpenError> {
    let mut options = File::options();
    options.read(true).write(true).custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC);
    options.open("/dev/net/tun").map_err(|error| match error.raw_os_error() {
        Some(libc::ENOENT | libc::ENODEV | libc::ENXIO | libc::ENOTDIR) => OpenError::NoTun,
        Some(libc::EACCES | libc::EPERM) => OpenError::NoAccess,
        _ => OpenError::System { call: "open /dev/net/tun", error },
    })
}

fn attach(file: &File, name: &str, kind: Kind, virtio: bool, several: bool) -> Result<String, OpenError> {
    let mut flags = libc::IFF_NO_PI | if kind == Kind::Tun { libc::IFF_TUN } else { libc::IFF_TAP };
    if virtio {
        flags |= libc::IFF_VNET_HDR;
    }
    if several {
        flags |= libc::IFF_MULTI_QUEUE;
    }
    let name = name.to_owned();
    calls::attach(file.as_fd(), &name, flags).map_err(|error| match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => OpenError::NoRights { name, kind },
        Some(libc::EBUSY) => OpenError::Busy { name },
        // EINVAL: not a tun or tap device, the other one of both, or one with several queues.
        Some(libc::EINVAL | libc::EEXIST) => OpenError::OtherKind { name, kind },
        _ => OpenError::System { call: "ioctl TUNSETIFF", error },
    })
}

/// Sets what the spec asks for, and tells the device's MTU.
fn set_up(spec: &Spec, name: &str) -> Result<u16, OpenError> {
    let refused = |setting: String, remedy| {
        move |error: io::Error| OpenError::Setting { name: name.into(), setting, error, remedy }
    };
    let system = |call| move |error| OpenError::System { call, error };
    let link = Link::new(name).map_err(system("netlink socket"))?;
    let socket = calls::socket(libc::AF_INET, libc::SOCK_DGRAM, 0)
        .or_else(|_| calls::socket(libc::AF_INET6, libc::SOCK_DGRAM, 0))
        .map_err(system("socket"))?;
    let mtu = || calls::mtu(socket.as_fd(), name).map_err(system("ioctl SIOCGIFMTU"));
    if let Some(wanted) = spec.mtu
        && mtu()? != u32::from(wanted)
    {
        let remedy = "choose one that the device takes, or have root set it (ip link set DEVICE mtu MTU)";
        link.set_mtu(wanted).map_err(refused(format!("mtu={wanted}"), remedy))?;
    }
    let ours = spec.addresses.iter().any(|a| a.peer.is_some());
    if let Some(queue) = spec.queue.or(ours.then_some(Spec::QUEUE)) {
        let remedy = "choose a shorter one, or have root set it (ip link set DEVICE txqueuelen N)";
        link.set_queue(queue).map_err(refused(format!("queue={queue}"), remedy))?;
    }
    give_addresses(&link, name, &spec.addresses)?;
    Ok(u16::try_from(mtu()?).unwrap_or(u16::MAX))
}

/// Sets up the kernel's end of a device that somebody else has made: a long queue, link up and the peers' addresses, as [`Device::open`]
/// does. Without a peer nothing is done.
///
/// # Errors
/// The text of the error says what to do.
pub fn set_up_peer(name: &str, addresses: &[Address]) -> Result<(), OpenError> {
    if addresses.iter().all(|a| a.peer.is_none()) {
        return Ok(());
    }
    let link = Link::new(name).map_err(|error| OpenError::System { call: "netlink socket", error })?;
    link.set_queue(Spec::QUEUE)
        .map_err(|error| OpenError::System { call: "netlink: the length of the queue", error })?;
    give_addresses(&link, name, addresses)
}

/// Gives the kernel's end its addresses, and has it up.
fn give_addresses(link: &Link, name: &str, addresses: &[Address]) -> Result<(), OpenError> {
    let refused = |setting: String, remedy| {
        move |error: io::Error| OpenError::Setting { name: name.into(), setting, error, remedy }
    };
    if addresses.iter().any(|a| a.peer.is_some()) {
        let remedy = "have root set it up (ip link set DEVICE up)";
        link.up().map_err(refused("up".into(), remedy))?;
    }
    for a in addresses {
        let Some(peer) = a.peer else { continue };
        let remedy = if peer.is_ipv6() {
            "IPv6 may be switched off (sysctl net.ipv6.conf.DEVICE.disable_ipv6=0), or the MTU is below 1280"
        } else {
            "choose an address that a host can have, or have root set it (ip address add PEER/PREFIX dev DEVICE)"
        };
        link.add_address(peer, a.prefix).map_err(refused(format!("peer={peer}/{}", a.prefix), remedy))?;
    }
    for peer in addresses.iter().filter_map(|a| a.peer) {
        if let IpAddr::V6(address) = peer {
            let remedy = "the kernel has the address and does not use it yet: try again when the machine is less busy";
            Link::await_route(name, address, ROUTE).map_err(refused(format!("peer={peer}"), remedy))?;
        }
    }
    Ok(())
}
