//! A veth between two network namespaces of threads, an AF_XDP socket, and the program run on single packets.
#![allow(dead_code)]
// Unsafe here: AF_XDP's rings are memory that the kernel shares, and the program is run by a bare call.
#![allow(unsafe_code)]

use culvert_split::Split;
use libbpf_rs::libbpf_sys::{bpf_prog_test_run_opts, bpf_test_run_opts};
use libbpf_rs::{MapCore, MapFlags};
use nix::sched::{CloneFlags, unshare};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::process::{Command, Stdio};
use std::ptr::null_mut;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::thread;
use std::time::Duration;

pub const HERE4: &str = "10.9.0.1";
pub const THERE4: &str = "10.9.0.2";
pub const HERE6: &str = "fd09::1";
pub const THERE6: &str = "fd09::2";

pub fn is_root() -> bool {
    // SAFETY: it takes nothing and cannot fail.
    let root = unsafe { libc::geteuid() } == 0;
    if !root {
        eprintln!("skipped: it takes root");
    }
    root
}

pub fn run(text: &str) {
    let mut words = text.split_whitespace();
    let out = Command::new(words.next().expect("a command")).args(words).stdin(Stdio::null()).output().expect(text);
    assert!(out.status.success(), "{text}: {}", String::from_utf8_lossy(&out.stderr));
}

/// /sys shows the network namespace of who mounted it: here the calling thread's, to it and its children.
pub fn own_sys() {
    use nix::mount::{MsFlags, mount};
    unshare(CloneFlags::CLONE_NEWNS).expect("a mount namespace");
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).expect("private mounts");
    mount(Some("sysfs"), "/sys", Some("sysfs"), MsFlags::empty(), none).expect("/sys");
}

type Job = Box<dyn FnOnce() + Send>;

/// The calling thread is in a namespace of its own with `here`; another thread is in one with `there`, and does what it is given.
pub struct Wire {
    jobs: Sender<Job>,
}

impl Wire {
    pub fn new() -> Wire {
        unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace");
        run("ip link set lo up");
        Wire::between("here", [HERE4, HERE6], "there", [THERE4, THERE6])
    }

    /// One more: from the calling thread's namespace to another new one.
    pub fn between(here: &str, [here4, here6]: [&str; 2], there: &'static str, addresses: [&'static str; 2]) -> Wire {
        let (jobs, todo) = channel::<Job>();
        let (tell, told) = channel();
        thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace");
            tell.send(nix::unistd::gettid()).expect("told");
            todo.iter().for_each(|job| job());
        });
        let thread = told.recv().expect("a thread");
        run(&format!("ip link add {here} type veth peer name {there}"));
        run(&format!("ip link set {there} netns {thread}"));
        run(&format!("ip addr add {here4}/24 dev {here}"));
        run(&format!("ip addr add {here6}/64 dev {here} nodad"));
        run(&format!("ip link set {here} up"));
        let wire = Wire { jobs };
        wire.there(move || {
            let [there4, there6] = addresses;
            run("ip link set lo up");
            run(&format!("ip addr add {there4}/24 dev {there}"));
            run(&format!("ip addr add {there6}/64 dev {there} nodad"));
            run(&format!("ip link set {there} up"));
        });
        wire
    }

    /// Runs this in the other namespace, and waits for it.
    pub fn there<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        let (tell, told) = channel();
        self.jobs.send(Box::new(move || drop(tell.send(job())))).expect("the other thread");
        told.recv_timeout(Duration::from_secs(60)).expect("done within a minute")
    }
}

/// How many frames a socket has room for.
const FRAMES: u32 = 2048;
const FRAME: usize = 2048;

/// An AF_XDP socket that only receives.
pub struct Socket {
    socket: OwnedFd,
    frames: *mut u8,
    producer: *const AtomicU32,
    consumer: *const AtomicU32,
    descriptors: *const libc::xdp_desc,
    /// The ring of frames that the kernel may fill: its end, and its entries.
    free: (*const AtomicU32, *mut u64),
    /// The mappings: they hold the socket as its descriptor does.
    rings: [(*mut u8, usize); 2],
}

impl Drop for Socket {
    fn drop(&mut self) {
        for (at, length) in self.rings {
            // SAFETY: mapped by us, and nobody has a reference into it.
            unsafe { libc::munmap(at.cast(), length) };
        }
    }
}

fn checked(result: i32) -> i32 {
    assert!(result >= 0, "{}", std::io::Error::last_os_error());
    result
}

impl Socket {
    /// On a queue of an interface, entered into the program's map.
    pub fn new(interface: &str, queue: u32, split: &Split) -> Socket {
        // SAFETY: each call gets values or pointers to locals of the right size; the mappings are the kernel's rings at the offsets that it
        // has told, and live as long as the value that has them.
        unsafe {
            let fd = checked(libc::socket(libc::AF_XDP, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0));
            let socket = OwnedFd::from_raw_fd(fd);
            let length = FRAMES as usize * FRAME;
            let map = |fd: i32, length: usize, offset: i64| {
                let (protection, flags) = (
                    libc::PROT_READ | libc::PROT_WRITE,
                    if fd < 0 { libc::MAP_PRIVATE | libc::MAP_ANONYMOUS } else { libc::MAP_SHARED },
                );
                let at = libc::mmap(null_mut(), length, protection, flags, fd, offset);
                assert_ne!(at, libc::MAP_FAILED, "{}", std::io::Error::last_os_error());
                at.cast::<u8>()
            };
            let frames = map(-1, length, 0);
            let memory = libc::xdp_umem_reg {
                addr: frames as u64,
                len: length as u64,
                chunk_size: FRAME as u32,
                headroom: 0,
                flags: 0,
                tx_metadata_len: 0,
            };
            let set = |option, value: *const libc::c_void, size: usize| {
                checked(libc::setsockopt(fd, libc::SOL_XDP, option, value, size as u32));
            };
            set(libc::XDP_UMEM_REG, (&raw const memory).cast(), size_of_val(&memory));
            let count = FRAMES;
            for ring in [libc::XDP_UMEM_FILL_RING, libc::XDP_UMEM_COMPLETION_RING, libc::XDP_RX_RING] {
                set(ring, (&raw const count).cast(), 4);
            }
            let mut offsets: libc::xdp_mmap_offsets = std::mem::zeroed();
            let mut size = size_of_val(&offsets) as u32;
            checked(libc::getsockopt(
                fd,
                libc::SOL_XDP,
                libc::XDP_MMAP_OFFSETS,
                (&raw mut offsets).cast(),
                &raw mut size,
            ));
            let length = offsets.fr.desc as usize + FRAMES as usize * 8;
            let fill = map(fd, length, libc::XDP_UMEM_PGOFF_FILL_RING as i64);
            let filling = (fill, length);
            for n in 0..FRAMES as usize {
                fill.add(offsets.fr.desc as usize).cast::<u64>().add(n).write((n * FRAME) as u64);
            }
            (*fill.add(offsets.fr.producer as usize).cast::<AtomicU32>()).store(FRAMES, Ordering::Release);
            let length = offsets.rx.desc as usize + FRAMES as usize * size_of::<libc::xdp_desc>();
            let received = map(fd, length, libc::XDP_PGOFF_RX_RING);
            let index = nix::net::if_::if_nametoindex(interface).expect("an interface");
            let address = libc::sockaddr_xdp {
                sxdp_family: libc::AF_XDP as u16,
                sxdp_flags: libc::XDP_COPY,
                sxdp_ifindex: index,
                sxdp_queue_id: queue,
                sxdp_shared_umem_fd: 0,
            };
            checked(libc::bind(fd, (&raw const address).cast(), size_of_val(&address) as u32));
            split
                .sockets()
                .expect("the map")
                .update(&queue.to_ne_bytes(), &fd.to_ne_bytes(), MapFlags::ANY)
                .expect("entered");
            Socket {
                socket,
                frames,
                producer: received.add(offsets.rx.producer as usize).cast(),
                consumer: received.add(offsets.rx.consumer as usize).cast(),
                descriptors: received.add(offsets.rx.desc as usize).cast(),
                free: (fill.add(offsets.fr.producer as usize).cast(), fill.add(offsets.fr.desc as usize).cast()),
                rings: [filling, (received, length)],
            }
        }
    }

    /// Hands each frame that has come to `to`, and its place back to the kernel.
    pub fn each(&self, mut to: impl FnMut(&mut [u8])) {
        // SAFETY: the rings are mapped for good; what lies between consumer and producer is ours until its place is in the other ring,
        // which has one for each frame.
        unsafe {
            let (from, end) = ((*self.consumer).load(Ordering::Relaxed), (*self.producer).load(Ordering::Acquire));
            let (filled, entries) = self.free;
            let mut free = (*filled).load(Ordering::Relaxed);
            for n in (0..end.wrapping_sub(from)).map(|n| from.wrapping_add(n)) {
                let descriptor = *self.descriptors.add((n % FRAMES) as usize);
                let at = self.frames.add(descriptor.addr as usize);
                to(std::slice::from_raw_parts_mut(at, descriptor.len as usize));
                entries.add((free % FRAMES) as usize).write(descriptor.addr / FRAME as u64 * FRAME as u64);
                free = free.wrapping_add(1);
            }
            (*self.consumer).store(end, Ordering::Release);
            (*filled).store(free, Ordering::Release);
        }
    }

    /// The frames that have come and not been taken; waits until there are so many, for ten seconds at most.
    pub fn take(&self, expected: usize) -> Vec<Vec<u8>> {
        let mut taken = Vec::new();
        for _ in 0..1000 {
            self.each(|frame| taken.push(frame.to_vec()));
            if taken.len() >= expected {
                break;
            }
            wait_for([&self.socket]);
        }
        taken
    }

    /// Its descriptor, to wait for.
    pub fn descriptor(&self) -> &OwnedFd {
        &self.socket
    }
}

/// Waits until one of them has something, for 10 ms at most.
pub fn wait_for<const N: usize>(sockets: [&OwnedFd; N]) {
    let mut all = sockets.map(|s| libc::pollfd { fd: s.as_raw_fd(), events: libc::POLLIN, revents: 0 });
    // SAFETY: so many entries, a local.
    unsafe { libc::poll(all.as_mut_ptr(), N as libc::nfds_t, 10) };
}

/// A socket for whole frames of an interface.
pub struct Frames(OwnedFd);

impl Frames {
    /// That only sends, or that also receives.
    pub fn of(interface: &str, receives: bool) -> Frames {
        let protocol = if receives { (libc::ETH_P_ALL as u16).to_be() } else { 0 };
        let index = nix::net::if_::if_nametoindex(interface).expect("an interface");
        // SAFETY: an address of all zeros is one; its size is told.
        unsafe {
            let fd = checked(libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0));
            let socket = OwnedFd::from_raw_fd(fd);
            let mut address: libc::sockaddr_ll = std::mem::zeroed();
            (address.sll_family, address.sll_protocol) = (libc::AF_PACKET as u16, protocol);
            address.sll_ifindex = index as i32;
            checked(libc::bind(fd, (&raw const address).cast(), size_of_val(&address) as u32));
            Frames(socket)
        }
    }

    /// Sends one; where there is no room, it is lost.
    pub fn send(&self, frame: &[u8]) {
        // SAFETY: the frame and its length.
        unsafe { libc::send(self.0.as_raw_fd(), frame.as_ptr().cast(), frame.len(), libc::MSG_DONTWAIT) };
    }

    /// The beginning of one that has come, its length, and when it came; `None`: nothing has within 10 ms.
    pub fn receive(&self, buffer: &mut [u8]) -> Option<(usize, Duration)> {
        wait_for([&self.0]);
        let mut at = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: the buffer and its length; the kernel writes the time of the frame that was received last.
        unsafe {
            let flags = libc::MSG_TRUNC | libc::MSG_DONTWAIT;
            let length = libc::recv(self.0.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), flags);
            let length = usize::try_from(length).ok()?;
            const SIOCGSTAMPNS: libc::c_ulong = 0x8907;
            checked(libc::ioctl(self.0.as_raw_fd(), SIOCGSTAMPNS, &raw mut at));
            Some((length, Duration::new(at.tv_sec as u64, at.tv_nsec as u32)))
        }
    }
}

/// Runs the program on a packet so many times: what it answers, the packet afterwards, and what one run takes.
pub fn try_packet(split: &Split, packet: &[u8], repeat: u32) -> (u32, Vec<u8>, Duration) {
    let mut out = vec![0_u8; packet.len() + 256];
    let mut options = bpf_test_run_opts {
        sz: size_of::<bpf_test_run_opts>() as _,
        data_in: packet.as_ptr().cast(),
        data_size_in: packet.len() as u32,
        data_out: out.as_mut_ptr().cast(),
        data_size_out: out.len() as u32,
        repeat: repeat as i32,
        ..Default::default()
    };
    // SAFETY: the options name two buffers with their lengths, and their own size; all outlive the call.
    let result = unsafe { bpf_prog_test_run_opts(split.program().as_raw_fd(), &raw mut options) };
    assert_eq!(result, 0, "{}", std::io::Error::from_raw_os_error(-result));
    out.truncate(options.data_size_out as usize);
    (options.retval, out, Duration::from_nanos(options.duration.into()))
}
