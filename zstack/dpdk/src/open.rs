//! A device from its spec: what it can do is found out, and it is started.

use crate::driver::{Driver, Payload};
use crate::error::OpenError;
use crate::memory::{self, Buffers};
use crate::pools::{self, LINK, Sizes};
use crate::port::{Common, Queue};
use crate::raw::ethdev::{About, Ethdev, Failed, Setup};
use crate::raw::pool::Pool;
use crate::raw::queue::{Building, Parts, Pools, Raw};
use crate::raw::{calls, eal, log, memif, signals};
use crate::sleep::{Means, Sleep};
use crate::spec::Spec;
use crate::stale;
use std::collections::BTreeSet;
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::sync::Arc;
use zstack::port::Medium;
use zstack_dpdk_sys as sys;
use zstack_port::Post;

/// The most payload of a frame that a device is to cut: with the longest headers its length fits in IPv4's 16 bits.
const TSO: u32 = 65_535 - 120;
/// Drivers of the kernel's whose packets it always copies to XDP sockets (no ndo_xsk_wakeup).
const COPYING: &[&str] = &["veth", "tun"];
/// AF_XDP's address family.
const AF_XDP: i32 = 44;

/// A device that is started. Each of its queues is a port for one thread; the device is given back when all of them, and all packets
/// received through them, are dropped.
pub struct Device {
    common: Arc<Common>,
    queues: Vec<Unbound>,
}

impl std::fmt::Debug for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Device({}, {} queues)", self.common.name, self.queues.len())
    }
}

/// A queue that no thread uses yet.
pub struct Unbound {
    common: Arc<Common>,
    parts: Arc<Parts>,
    building: Building,
    queue: u16,
    fd: Option<OwnedFd>,
    means: Means,
}

impl Unbound {
    /// The driver's name, as DPDK has it.
    pub fn driver(&self) -> &str {
        &self.common.driver
    }

    /// The kernel's interface that the device is, or is made of.
    pub fn interface(&self) -> Option<&str> {
        self.common.interface.as_deref()
    }

    /// The largest IP packet.
    pub fn mtu(&self) -> u16 {
        self.common.mtu
    }

    /// As [`Queue::about`].
    pub fn about(&self) -> Vec<(&'static str, String)> {
        self.common.about(self.queue, self.means)
    }

    /// The queue as a port of the calling thread.
    pub fn bind(self) -> Queue {
        eal::join();
        Queue::new(self.common, Raw::new(self.parts, self.queue, self.building), self.queue, self.means, self.fd)
    }
}

impl Device {
    /// Starts DPDK if this is the process's first device, finds the device and starts it. It belongs to the network namespace that the calling
    /// thread is in.
    ///
    /// # Errors
    /// One line that says what to do.
    pub fn open(spec: &Spec) -> Result<Device, OpenError> {
        let mut spec = spec.clone();
        let driver = spec.driver();
        let socket = calls::socket().map_err(|e| step(&spec, ("socket", e.to_string())))?;
        let mtu = plan(&mut spec, driver, &socket)?;
        stale::remove(&spec, driver);
        let sizes = Sizes::new(&spec, driver, mtu);
        let _one = eal::ONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let eal = start_dpdk(&spec, driver, &sizes)?;
        let before = descriptors();
        let start = || Opened::start(&spec, driver, mtu, &sizes, eal.huge);
        let opened = signals::with_all_blocked(|| signals::with_all_taken(start))?;
        let new: Vec<RawFd> = descriptors().difference(&before).copied().collect();
        finish(spec, driver, mtu, opened, eal, socket, &new)
    }

    /// Its queues, each to be bound by the thread that uses it.
    pub fn queues(self) -> Vec<Unbound> {
        self.queues
    }

    /// Its only queue, or its first, for the calling thread.
    pub fn first(self) -> Queue {
        self.queues.into_iter().next().expect("a device has a queue").bind()
    }
}

fn step(spec: &Spec, (call, cause): Failed) -> OpenError {
    OpenError::Step { name: spec.device.clone(), call, cause }
}

/// What the driver is told where the user says nothing, and the MTU.
fn plan(spec: &mut Spec, driver: Driver, socket: &OwnedFd) -> Result<u16, OpenError> {
    if let Some(key) = driver.queues_key()
        && spec.queues > 1
    {
        spec.suggest(key, spec.queues);
    }
    let interface = spec.argument("iface").filter(|_| driver.has_interface()).map(str::to_owned);
    let own = interface.as_deref().and_then(|name| calls::mtu(socket.as_fd(), name).ok());
    let own = own.filter(|_| driver != Driver::Tap);
    let (most, why) = most_mtu(spec, driver);
    // A loopback device has 65,536.
    let mtu = spec.mtu.unwrap_or_else(|| own.unwrap_or(1500).min(u32::from(most)) as u16);
    let refuse = |most: u16, remedy: String| Err(OpenError::Mtu { name: spec.device.clone(), mtu, most, remedy });
    if mtu > most {
        return refuse(most, why);
    }
    if let (Some(own), Some(name)) = (own, &interface)
        && u32::from(mtu) > own
    {
        return refuse(
            own as u16,
            format!(
                "the interface has no more: have root raise it (ip link set dev {name} mtu {mtu}), at the other end too"
            ),
        );
    }
    match driver {
        Driver::AfPacket => {
            // Past the kernel's queueing discipline, whose end of a full queue would have the driver wait in poll(2).
            spec.suggest("qdisc_bypass", 1);
            // The kernel's header of a frame takes less than 128 bytes (TPACKET2_HDRLEN and alignment).
            let frame = (u32::from(mtu) + LINK + 128).next_power_of_two().max(2048);
            if spec.argument("framesz").is_none() {
                spec.suggest("framesz", frame);
                spec.suggest("blocksz", (16 * frame).clamp(1 << 16, 1 << 17));
                // The driver's own 512 hold 30 ms of 200 Mb/s, and less of small packets.
                spec.suggest("framecnt", 2048);
            }
        }
        Driver::AfXdp => {
            // The driver would have the kernel look for packets, by a system call each time that it finds none. The kernel's own copies of packets come
            // without being asked for; a card's ring may have to be looked after.
            let kind = interface.as_deref().and_then(|name| calls::driver(socket.as_fd(), name).ok());
            if kind.is_some_and(|kind| COPYING.contains(&&*kind)) {
                spec.suggest("busy_budget", 0);
            }
        }
        // It would else make up 64-byte packets, as fast as it is asked.
        Driver::Null => spec.suggest("no-rx", 1),
        Driver::Memif | Driver::VirtioUser => {
            if let Some(m) = spec.mac {
                spec.suggest(
                    "mac",
                    format!("{:02x}:{:02x}:{:02x}:{:02x}:{:02x}:{:02x}", m[0], m[1], m[2], m[3], m[4], m[5]),
                );
            }
        }
        _ => {}
    }
    Ok(mtu)
}

/// The largest MTU, and what to do for a larger one.
fn most_mtu(spec: &Spec, driver: Driver) -> (u16, String) {
    let number = |key: &str, default: u32| spec.argument(key).and_then(|v| v.parse().ok()).unwrap_or(default);
    match driver {
        Driver::AfPacket => {
            let frame = number("framesz", 16_384);
            let most = frame.saturating_sub(LINK + 128).min(16_384 - LINK - 128) as u16;
            (
                most,
                if spec.argument("framesz").is_some() {
                    "leave framesz= out, and blocksz= with it".into()
                } else {
                    "that is what its ring takes".into()
                },
            )
        }
        Driver::AfXdp => (3_400, "a frame is half a page there: take net_af_packet".into()),
        // tap_tx_burst drops longer ones, and rte_eth_dev_set_mtu refuses more (max_rx_pktlen of DPDK 22.11's driver).
        Driver::Tap => {
            (1_500, "DPDK's driver takes no more: take a tap of ours (--port tap:NAME), or net_af_packet".into())
        }
        Driver::Memif => {
            let most = number("bsize", 2048).saturating_sub(LINK).min(9_000) as u16;
            (most, "give both ends a larger bsize=".into())
        }
        Driver::Pci => (9_000, "more was never tried".into()),
        _ => (9_000, "packets have to fit in a buffer".into()),
    }
}

fn start_dpdk(spec: &Spec, driver: Driver, sizes: &Sizes) -> Result<eal::Eal, OpenError> {
    let needed = sizes.cost(spec.queues);
    let eal = eal::start(spec.memory, needed, spec.log);
    if driver != Driver::AfXdp {
        return eal;
    }
    match eal {
        Ok(eal) if !eal.huge && spec.pool == Buffers::Dpdk => {
            let remedy = memory::remedy(needed + memory::BASE);
            Err(OpenError::Memory {
                text: format!(
                    "dpdk:{}: pool=dpdk: net_af_xdp loses packets in a pool of DPDK's without hugepages: {remedy}, or leave pool= out",
                    spec.device
                ),
            })
        }
        other => other,
    }
}

/// A device that runs, and what was found out.
struct Opened {
    parts: Parts,
    about: About,
    setup: Setup,
    payload: Payload,
    /// Where the receive pool's buffers lie, for people.
    pool: String,
}

impl Opened {
    fn start(spec: &Spec, driver: Driver, mtu: u16, sizes: &Sizes, huge: bool) -> Result<Opened, OpenError> {
        let devargs = spec.devargs();
        let ethdev = Ethdev::probe(&spec.device, &devargs).map_err(|cause| refusal(spec, driver, cause))?;
        let about = ethdev.about();
        if spec.queues > about.rx_queues.min(about.tx_queues) {
            let most = about.rx_queues.min(about.tx_queues);
            return Err(OpenError::Device {
                name: spec.device.clone(),
                cause: format!("queues={}: it has {most}", spec.queues),
                remedy: format!("write queues={most}"),
            });
        }
        if mtu > about.most_mtu {
            let remedy = "that is what its driver takes".into();
            return Err(OpenError::Mtu { name: spec.device.clone(), mtu, most: about.most_mtu, remedy });
        }
        let offers = |flags: u64| spec.offload && !driver.sums_in_software() && about.tx_offloads & flags == flags;
        let chains = about.tx_offloads & sys::Z_TX_MULTI_SEGS != 0;
        let payload = driver.payload(chains, spec.shares());
        let mut tx = 0;
        if chains {
            tx |= sys::Z_TX_MULTI_SEGS;
        }
        if offers(sys::Z_TX_TCP_CKSUM) {
            tx |= sys::Z_TX_TCP_CKSUM;
            if offers(sys::Z_TX_TCP_TSO | sys::Z_TX_IPV4_CKSUM) {
                tx |= sys::Z_TX_TCP_TSO | sys::Z_TX_IPV4_CKSUM;
            }
        }
        let mut rx = 0;
        if spec.offload && !driver.sums_in_software() {
            rx = about.rx_offloads & sys::Z_RX_TCP_CKSUM;
        }
        // What DPDK itself believes of drivers that say nothing of MTUs.
        let own = if matches!(driver, Driver::AfPacket | Driver::Tap | Driver::Memif) { mtu.min(1500) } else { mtu };
        let mut setup = Setup {
            queues: spec.queues,
            rx_offloads: rx,
            tx_offloads: tx,
            interrupts: spec.sleep == Sleep::Auto,
            mtu: own,
            rss: about.rss & sys::Z_RSS_HASH,
        };
        let mut pools = Vec::new();
        let mut pool_text = String::new();
        for _ in 0..spec.queues {
            let failed = |text| OpenError::Memory { text: format!("dpdk:{}: {text}", spec.device) };
            let pool = |count, room| Pool::new(count, room).map_err(failed);
            let (rx, text) = pools::receive(spec, driver, sizes, huge).map_err(failed)?;
            pool_text = text;
            let shared = payload == Payload::CopiedToReceivePool;
            pools.push(Pools {
                rx,
                tx: if shared { None } else { Some(pool(sizes.tx, sizes.room)?) },
                segments: if payload == Payload::Attached { Some(pool(sizes.segments, 0)?) } else { None },
                most: spec.mbufs,
            });
        }
        let parts = Parts { ethdev, queues: pools };
        log::clear();
        let mut result = parts.start(&setup, sizes);
        if result.is_err() && setup.interrupts {
            // Not every driver has them, and some say so only now.
            setup.interrupts = false;
            log::clear();
            result = parts.start(&setup, sizes);
        }
        result.map_err(|failed| step(spec, failed))?;
        debug_assert!(sizes.driver + spec.mbufs <= parts.queues[0].rx.count());
        Ok(Opened { parts, about, setup, payload, pool: pool_text })
    }
}

impl Parts {
    fn start(&self, setup: &Setup, sizes: &Sizes) -> Result<(), Failed> {
        self.ethdev.configure(setup)?;
        let (rx, tx) = self.ethdev.descriptors(sizes.descriptors.0, sizes.descriptors.1);
        for (number, pools) in self.queues.iter().enumerate() {
            self.ethdev.queue(number as u16, rx, tx, &pools.rx)?;
        }
        self.ethdev.start()
    }
}

/// Why DPDK has no such device, in its words, and what helps.
fn refusal(spec: &Spec, driver: Driver, cause: String) -> OpenError {
    let said = log::said();
    let interface = spec.argument("iface").unwrap_or("");
    let has = |words: &[&str]| words.iter().any(|w| said.contains(w) || cause.contains(w));
    let remedy = if has(&["not permitted", "Permission denied", "could not open AF_PACKET", "Could not open AF_PACKET"])
    {
        "it needs CAP_NET_RAW and CAP_NET_ADMIN: run it as root, or give it these capabilities".to_owned()
    } else if driver.has_interface()
        && driver != Driver::Tap
        && has(&["SIOCGIFINDEX", "No such device", "if_nametoindex", "no interface", "ifindex"])
    {
        format!("is there an interface `{interface}` in this network namespace? (ip link)")
    } else if driver == Driver::Pci {
        "bind it to vfio-pci first (dpdk-devbind.py --bind=vfio-pci ADDRESS), with the IOMMU on".into()
    } else if has(&[
        "no driver",
        "failed to parse device",
        "failed to find",
        "No driver",
        "Cannot find",
        "unable to find",
        "not find",
    ]) {
        "no driver of DPDK's has that name: is its package installed (apt-get install librte-meta-net)?".into()
    } else if has(&["socket", "bind", "connect"])
        && matches!(driver, Driver::Memif | Driver::Vhost | Driver::VirtioUser)
    {
        "is its path right, and is the other end there?".into()
    } else {
        "see the driver's keys in DPDK's guide, or add log=on to see all that it says".into()
    };
    OpenError::Device { name: spec.devargs(), cause, remedy }
}

/// The numbers of this process's descriptors.
fn descriptors() -> BTreeSet<RawFd> {
    let Ok(all) = std::fs::read_dir("/proc/self/fd") else { return BTreeSet::new() };
    let mut all: BTreeSet<RawFd> = all.filter_map(|e| e.ok()?.file_name().to_str()?.parse().ok()).collect();
    // That of the directory was among them.
    all.retain(|fd| calls::is_open(*fd));
    all
}

/// The driver's own sockets among the descriptors that are new since it began, in the order of its queues.
fn sockets(driver: Driver, index: u32, new: &[RawFd]) -> Vec<RawFd> {
    let is = |fd: &&RawFd| match driver {
        // That of libpcap is one, too.
        Driver::AfPacket | Driver::Pcap => {
            calls::family(**fd) == Some(libc::AF_PACKET) && calls::bound_interface(**fd) == Some(index)
        }
        Driver::AfXdp => calls::family(**fd) == Some(AF_XDP),
        _ => false,
    };
    new.iter().filter(is).copied().collect()
}

fn finish(
    spec: Spec,
    driver: Driver,
    mtu: u16,
    opened: Opened,
    eal: eal::Eal,
    socket: OwnedFd,
    new: &[RawFd],
) -> Result<Device, OpenError> {
    let Opened { parts, about, setup, payload, pool } = opened;
    for fd in new {
        calls::close_on_exec(*fd);
    }
    let mac = parts.ethdev.mac();
    if spec.mac.is_some_and(|wanted| wanted != mac) {
        parts.ethdev.listen(true);
    } else if driver == Driver::Pci {
        parts.ethdev.listen(false);
    }
    if driver == Driver::Pci {
        parts.ethdev.set_mtu(mtu).map_err(|failed| step(&spec, failed))?;
    }
    let interface = match driver {
        Driver::Tap => Some(spec.argument("iface").unwrap_or("dtap0").to_owned()),
        _ if driver.has_interface() || driver == Driver::Pcap => spec.argument("iface").map(str::to_owned),
        _ => None,
    };
    let index = interface.as_deref().and_then(|name| calls::index(socket.as_fd(), name).ok());
    if driver == Driver::Tap
        && let Some(name) = &interface
    {
        zstack_port::set_up_peer(name, &spec.addresses)
            .map_err(|e| step(&spec, ("setting up the kernel's end", e.to_string())))?;
    }
    let own = sockets(driver, index.unwrap_or(0), new);
    let huge = parts.queues.iter().all(|q| q.rx.region().map_or(eal.huge, |region| region.is_huge()));
    if driver == Driver::AfXdp && !huge && own.iter().any(|fd| calls::is_zero_copy(*fd)) {
        let remedy = memory::remedy(Sizes::new(&spec, driver, mtu).cost(spec.queues) + memory::BASE);
        let cause = "the card reaches the buffers itself, of which some would lie on two pages".into();
        let remedy = format!("{remedy}, or write force_copy=1");
        return Err(OpenError::Device { name: spec.device, cause, remedy });
    }
    let building = Building {
        payload,
        longest: u32::from(mtu) + if spec.vlan.is_some() { 18 } else { 14 },
        checksum: setup.tx_offloads & sys::Z_TX_TCP_CKSUM != 0,
        tso: if setup.tx_offloads & sys::Z_TX_TCP_TSO != 0 { TSO } else { 0 },
    };
    let parts = Arc::new(parts);
    let common = Arc::new(Common {
        name: spec.device.clone(),
        driver: about.driver,
        interface,
        // The kernel's end of a tap has the device's address.
        mac: spec.mac.or((driver != Driver::Tap && mac != [0; 6]).then_some(mac)),
        mtu,
        building,
        queues: spec.queues,
        connects: driver == Driver::Memif && stale::connects(&spec),
        huge: eal.huge,
        pool,
        watch: index.map(|index| (socket, index)),
        post: Post::new(spec.queues, Medium::Ethernet).map_err(|e| step(&spec, ("eventfd", e.to_string())))?,
    });
    let mut queues = Vec::new();
    for queue in 0..spec.queues {
        let (means, fd) = means(&spec, &setup, &parts.ethdev, queue, own.get(usize::from(queue)).copied());
        queues.push(Unbound { common: Arc::clone(&common), parts: Arc::clone(&parts), building, queue, fd, means });
    }
    Ok(Device { common, queues })
}

/// How a thread that serves this queue waits, and what it waits for.
fn means(spec: &Spec, setup: &Setup, ethdev: &Ethdev, queue: u16, socket: Option<RawFd>) -> (Means, Option<OwnedFd>) {
    match spec.sleep {
        Sleep::Busy => return (Means::Busy, None),
        Sleep::Nap => return (Means::Nap, None),
        Sleep::Auto => {}
    }
    if let Some(fd) = socket.and_then(|fd| calls::duplicate(fd).ok()) {
        return (Means::Socket, Some(fd));
    }
    if setup.interrupts
        && let Some(fd) = ethdev.interrupt(queue)
        && ethdev.arm(queue)
        && let Ok(fd) = calls::duplicate(fd)
    {
        ethdev.disarm(queue);
        return (Means::Interrupt, Some(fd));
    }
    if Driver::of(&spec.device) == Driver::Memif
        && spec.queues == 1
        && let Ok(set) = memif::set()
    {
        return (Means::Peer, Some(set));
    }
    (Means::Nap, None)
}
