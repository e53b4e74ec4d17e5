//! Packets arrive in memory of ours where the driver takes that: they are there for whoever maps the file, too.

#[path = "../../port/tests/lab/mod.rs"]
mod lab;

use lab::{Namespace, bounded};
use std::net::UdpSocket;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};
use zstack::payload::{Buffer, Spans};
use zstack::port::{Checksum, Frame, Port};
use zstack_dpdk::{Device, Queue, Spec};

const LIMIT: Duration = Duration::from_secs(60);
/// What is looked for in packets.
const MARK: &[u8] = b"a packet that was sent to be found again, of odd length";

/// A second mapping of a queue's memory, as another process would have.
struct Other {
    at: *const u8,
    len: usize,
    /// Where the queue has it.
    start: usize,
}

impl Other {
    fn of(queue: &Queue) -> Other {
        let (file, range) = queue.memory().expect("memory of ours");
        let len = range.len();
        let (null, fd) = (std::ptr::null_mut(), file.as_raw_fd());
        // SAFETY: a new mapping, which the kernel puts where nothing is.
        let at = unsafe { libc::mmap(null, len, libc::PROT_READ, libc::MAP_SHARED, fd, 0) };
        assert_ne!(at, libc::MAP_FAILED);
        Other { at: at.cast(), len, start: range.start }
    }

    /// The same bytes there.
    fn sees(&self, bytes: &[u8]) -> bool {
        let offset = bytes.as_ptr() as usize - self.start;
        assert!(offset + bytes.len() <= self.len, "{offset} and {} bytes of {}", bytes.len(), self.len);
        // SAFETY: within the mapping, which stays; nobody writes there while the packet is held.
        let there = unsafe { std::slice::from_raw_parts(self.at.add(offset), bytes.len()) };
        there == bytes
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's.
        unsafe { libc::munmap(self.at.cast_mut().cast(), self.len) };
    }
}

fn opened(spec: &str) -> Queue {
    let spec: Spec = spec.parse().expect("a spec");
    Device::open(&spec).unwrap_or_else(|e| panic!("{e}")).first()
}

/// What the port says of its pool.
fn said(queue: &Queue) -> String {
    queue.about().into_iter().find(|(name, _)| *name == "pool").expect("it says so").1
}

/// Takes packets, and has others sent, until so many with the mark have come; each lies in our memory, if that is what the port says. Many are
/// held at a time, so that all buffers have their turn.
fn arrive(queue: &mut Queue, count: u32, mut send: impl FnMut(&mut Queue)) {
    let other = queue.memory().is_some().then(|| Other::of(queue));
    let (mut found, mut held) = (0, Vec::new());
    let end = Instant::now() + LIMIT;
    while found < count {
        assert!(Instant::now() < end, "{found} packets have come within {LIMIT:?}");
        for _ in 0..32 {
            send(queue);
        }
        while let Ok(Some(received)) = queue.receive() {
            let bytes = &received.buffer.bytes()[received.range.clone()];
            assert!(other.as_ref().is_none_or(|other| other.sees(bytes)), "the file has other bytes");
            found += u32::from(bytes.windows(MARK.len()).any(|w| w == MARK));
            held.push(received.buffer);
            if held.len() == 1024 {
                held.clear();
            }
        }
    }
}

/// Sends the mark from a queue to whoever has the other end.
fn send(queue: &mut Queue) {
    let mut head = [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x88, 0xb5].to_vec();
    head.extend(MARK);
    let frame = Frame { head: &head, payload: Spans::EMPTY, checksum: Checksum::Complete, cut: 0 };
    // SAFETY: there is no payload. While the queue is full, the packet is lost, and others come.
    let _ = unsafe { queue.send(&frame) };
    queue.flush();
}

/// A veth between two namespaces, of which the calling thread is in the first; and a socket in the other, whose packets all go to v0.
fn veth() -> (Namespace, Namespace, UdpSocket) {
    let (ours, theirs) = lab::veth();
    theirs.run("ip neigh add 10.9.0.2 lladdr 02:00:00:00:00:02 dev v1");
    let socket = theirs.within(|| UdpSocket::bind("10.9.0.1:0").expect("a socket"));
    socket.connect("10.9.0.2:9").expect("an address");
    ours.enter();
    (ours, theirs, socket)
}

/// With net_af_xdp's `busy_budget` the kernel is asked for packets whenever there are none, by a call that costs more than to look for them.
#[test]
fn the_kernel_is_asked_for_no_packets_where_it_copies_them() {
    need_root!();
    bounded(LIMIT, || {
        for (budget, asked) in [("", false), (",busy_budget=64", true)] {
            let (_ours, _theirs, socket) = veth();
            let mut queue = opened(&format!("dpdk:net_af_xdp0,iface=v0,memory=none{budget}"));
            let fd = queue.fd().expect("its socket").as_raw_fd();
            let (mut says, mut len) = (-1i32, size_of::<i32>() as libc::socklen_t);
            let option = libc::SO_PREFER_BUSY_POLL;
            // SAFETY: the kernel writes at most `len` bytes to `says`, both of this frame.
            let result =
                unsafe { libc::getsockopt(fd, libc::SOL_SOCKET, option, (&raw mut says).cast(), &raw mut len) };
            assert_eq!((result, says), (0, i32::from(asked)), "{budget}");
            arrive(&mut queue, 100, |_| _ = socket.send(MARK).expect("sent"));
        }
    });
}

const OURS: &str = "pinned external buffers in memory of ours (a sealed memfd)";

#[test]
fn packets_from_the_kernel_arrive_in_our_memory() {
    need_root!();
    bounded(2 * LIMIT, || {
        let (ours, _theirs, socket) = veth();
        for (device, expected) in [
            ("net_af_packet0,iface=v0", OURS),
            ("net_pcap0,iface=v0", OURS),
            ("net_af_xdp0,iface=v0", "the pool itself in memory of ours (a sealed memfd)"),
        ] {
            let mut queue = opened(&format!("dpdk:{device},memory=none"));
            assert_eq!(said(&queue), expected, "{device}");
            arrive(&mut queue, 100, |_| _ = socket.send(MARK).expect("sent"));
        }
        // Of another driver nothing is known: DPDK is told of the memory, for whoever wants it.
        for round in 0..2 {
            let device = format!("dpdk:net_failsafe{round},dev(net_af_packet7{round},iface=v0),sleep=nap,memory=none");
            let mut queue = opened(&format!("{device},pool=pinned"));
            assert_eq!(said(&queue), format!("{OURS}, of which DPDK was told"));
            arrive(&mut queue, 100, |_| _ = socket.send(MARK).expect("sent"));
        }
        // It is a choice.
        let mut queue = opened("dpdk:net_af_packet1,iface=v0,memory=none,pool=dpdk");
        assert_eq!(
            (said(&queue).as_str(), queue.memory().is_none()),
            ("in DPDK's memory, since pool=dpdk says so", true)
        );
        arrive(&mut queue, 100, |_| _ = socket.send(MARK).expect("sent"));
        drop(queue);
        let mut queue = opened("dpdk:net_tap0,iface=zt0,addr=10.8.0.2/24,peer=10.8.0.1,memory=none,pool=pinned");
        assert_eq!(said(&queue), OURS);
        ours.run("ip neigh add 10.8.0.2 lladdr 02:00:00:00:00:02 dev zt0");
        let socket = UdpSocket::bind("10.8.0.1:0").expect("a socket");
        arrive(&mut queue, 100, |_| _ = socket.send_to(MARK, "10.8.0.2:9").expect("sent"));
    });
}

/// Where no bytes but DPDK's can be reached from the other end, that is said, and refused to who wants ours.
#[test]
fn packets_between_two_ends_arrive_in_our_memory() {
    need_root!();
    bounded(2 * LIMIT, || {
        Namespace::new().enter();
        let place = std::env::temp_dir().join(format!("zstack-pool-{}", std::process::id()));
        std::fs::create_dir_all(&place).expect("a directory");
        let memif = |n: u32, role: &str| {
            let socket = place.join("memif").display().to_string();
            opened(&format!("dpdk:net_memif{n},role={role},id=0,socket={socket},socket-abstract=no,memory=none"))
        };
        let mut ends = [memif(0, "server"), memif(1, "client")];
        for from in [0, 1] {
            let [first, second] = &mut ends;
            let (from, to) = if from == 0 { (first, second) } else { (second, first) };
            assert_eq!(said(to), OURS);
            arrive(to, 100, |_| send(from));
        }
        drop(ends);
        let path = place.join("vhost").display().to_string();
        let mut vhost = opened(&format!("dpdk:net_vhost0,iface={path},memory=none"));
        let mut virtio = opened(&format!("dpdk:net_virtio_user0,path={path},memory=none"));
        assert_eq!(said(&vhost), OURS);
        arrive(&mut vhost, 100, |_| send(&mut virtio));
        assert_eq!(said(&virtio), "in DPDK's memory, since the other end reaches DPDK's memory alone");
        arrive(&mut virtio, 100, |_| send(&mut vhost));
        drop((vhost, virtio));
        // The interrupt that the first one's end is to the second one comes while that ends.
        for _ in 0..2 {
            let vhost = opened(&format!("dpdk:net_vhost0,iface={path},memory=none"));
            let virtio = opened(&format!("dpdk:net_virtio_user0,path={path},memory=none"));
            drop((vhost, virtio));
        }
        // What it makes up has no mark.
        let mut null = opened("dpdk:net_null0,no-rx=0,memory=none");
        assert_eq!(said(&null), OURS);
        let other = Other::of(&null);
        for _ in 0..100 {
            let received = null.receive().expect("it is there").expect("a packet");
            assert!(other.sees(received.buffer.bytes()));
        }
        std::fs::remove_dir_all(&place).expect("removed");
    });
}

/// XDP_STATISTICS of the process's only XDP socket: descriptors, of buffers to be filled and of packets to be sent, that are none.
fn invalid() -> (u64, u64) {
    const AF_XDP: i32 = 44;
    let option = |fd: i32, level: i32, name: i32, to: &mut [u64]| {
        let mut len = size_of_val(to) as libc::socklen_t;
        // SAFETY: the kernel writes at most `len` bytes to `to`; a number that is no socket is an error.
        (unsafe { libc::getsockopt(fd, level, name, to.as_mut_ptr().cast(), &raw mut len) }) == 0
    };
    let fds = std::fs::read_dir("/proc/self/fd").expect("descriptors").flatten();
    let fds = fds.filter_map(|e| e.file_name().to_str()?.parse::<i32>().ok());
    let is_xdp = |fd: &i32| {
        let mut family = [0];
        option(*fd, libc::SOL_SOCKET, libc::SO_DOMAIN, &mut family) && family[0] as i32 == AF_XDP
    };
    let fd = fds.filter(is_xdp).min().expect("an XDP socket");
    let mut statistics = [0; 6];
    assert!(option(fd, libc::SOL_XDP, libc::XDP_STATISTICS, &mut statistics), "XDP_STATISTICS");
    (statistics[1], statistics[2])
}

/// Each buffer of the pool lies wholly in the memory that net_af_xdp shares with the kernel: none is refused when all have been used.
#[test]
fn every_buffer_is_one_of_the_kernels() {
    need_root!();
    bounded(2 * LIMIT, || {
        let (_ours, _theirs, socket) = veth();
        let wanted = std::env::var("ZSTACK_POOL").unwrap_or("pool=auto,memory=none".into());
        let mut queue = opened(&format!("dpdk:net_af_xdp0,iface=v0,{wanted}"));
        // More than there are buffers, in both directions.
        arrive(&mut queue, 20_000, |queue| {
            socket.send(MARK).expect("sent");
            send(queue);
        });
        assert_eq!(invalid(), (0, 0));
    });
}
