//! Payload leaves from its owner's memory: net_tap's writev(2) is called with the address of a mapping of the test's.

#[path = "../../port/tests/lab/mod.rs"]
mod lab;

use lab::{Namespace, bounded};
use std::net::UdpSocket;
use std::sync::Mutex;
use std::time::Duration;
use zstack::payload::{Region, Span, Spans};
use zstack::port::{Checksum, Frame, Port};
use zstack_dpdk::{Device, Spec};

/// Pieces of each packet: address and length.
static WRITTEN: Mutex<Vec<Vec<(usize, usize)>>> = Mutex::new(Vec::new());

/// Called in place of the C library's, by everybody in this process.
///
/// # Safety
/// As writev(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn writev(fd: i32, pieces: *const libc::iovec, count: i32) -> isize {
    // SAFETY: the caller hands over `count` entries.
    let all = unsafe { std::slice::from_raw_parts(pieces, count as usize) };
    // struct tun_pi comes first.
    if all.len() >= 3 && all[0].iov_len == 4 {
        WRITTEN.lock().unwrap().push(all.iter().map(|p| (p.iov_base as usize, p.iov_len)).collect());
    }
    // SAFETY: the caller's arguments, handed on.
    unsafe { libc::syscall(libc::SYS_writev, fd, pieces, count) as isize }
}

#[used]
static KEPT: unsafe extern "C" fn(i32, *const libc::iovec, i32) -> isize = writev;

/// A mapping that is shared by a descriptor, as a program's ring is.
fn mapping(len: usize) -> *mut u8 {
    // SAFETY: the name is a string of C; the descriptor is the kernel's answer; a mapping of that size is made at an address of the kernel's choice.
    unsafe {
        let fd = libc::memfd_create(c"owner".as_ptr(), libc::MFD_CLOEXEC);
        assert!(fd >= 0 && libc::ftruncate(fd, len as i64) == 0);
        let at = libc::mmap(std::ptr::null_mut(), len, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED, fd, 0);
        assert_ne!(at, libc::MAP_FAILED);
        at.cast()
    }
}

fn sum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = bytes.chunks(2).map(|c| u32::from(c[0]) << 8 | u32::from(*c.get(1).unwrap_or(&0))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// Ethernet, IPv4 and UDP (without a checksum) before so many bytes.
fn head(to: [u8; 6], payload: u16) -> Vec<u8> {
    let mut ip =
        [&[0x45, 0][..], &(28 + payload).to_be_bytes(), &[0, 0, 0x40, 0, 64, 17, 0, 0, 10, 8, 0, 2, 10, 8, 0, 1]]
            .concat();
    let check = sum(&ip).to_be_bytes();
    ip[10..12].copy_from_slice(&check);
    let udp = [&[0, 7, 0, 9][..], &(8 + payload).to_be_bytes(), &[0, 0]].concat();
    [&to[..], &[2, 0, 0, 0, 0, 2], &[8, 0], &ip, &udp].concat()
}

#[test]
fn writev_reads_the_owners_memory() {
    need_root!();
    bounded(Duration::from_secs(60), || {
        let namespace = Namespace::new();
        namespace.within(|| {
            let spec: Spec =
                "dpdk:net_tap0,iface=zt0,addr=10.8.0.2/24,peer=10.8.0.1,memory=none".parse().expect("a spec");
            let mut queue = Device::open(&spec).unwrap_or_else(|e| panic!("{e}")).first();
            assert!(queue.capabilities().late, "frames go by the dozen");
            let link = std::process::Command::new("ip").args(["link", "show", "zt0"]).output().expect("ip");
            let link = String::from_utf8_lossy(&link.stdout).into_owned();
            let text = &link.split("link/ether ").nth(1).expect("an address")[..17];
            let to: Vec<u8> = text.split(':').map(|b| u8::from_str_radix(b, 16).expect("hexadecimal")).collect();
            let socket = UdpSocket::bind("10.8.0.1:9").expect("the kernel's socket");
            socket.set_read_timeout(Some(Duration::from_secs(10))).expect("a time limit");

            let len = 1 << 16;
            let memory = mapping(len);
            for i in 0..len {
                // SAFETY: within the mapping.
                unsafe { memory.add(i).write((i % 251) as u8) };
            }
            // In one piece, and where a ring wraps: an odd number of bytes at its end, the others at its beginning.
            for (first, second) in [((100, 1400), (0, 0)), ((len - 333, 333), (0, 667))] {
                let span = |(at, n): (usize, usize)| {
                    // SAFETY: within the mapping.
                    let start = unsafe { memory.add(at) };
                    Span { start, len: n as u32, region: Region(0) }
                };
                let payload = Spans([span(first), span(second)]);
                let head = head(to.clone().try_into().expect("six bytes"), payload.len() as u16);
                let frame = Frame { head: &head, payload, checksum: Checksum::Complete, cut: 0 };
                let before = queue.completed();
                WRITTEN.lock().unwrap().clear();
                // SAFETY: the mapping stays.
                unsafe { queue.send(&frame) }.expect("room");
                queue.flush();
                assert_eq!(queue.completed(), before + 1, "the driver has let it go");
                let written = WRITTEN.lock().unwrap().clone();
                let mut expected = vec![(memory as usize + first.0, first.1)];
                expected.extend((second.1 > 0).then_some((memory as usize + second.0, second.1)));
                assert!(
                    written.iter().any(|pieces| pieces.ends_with(&expected)),
                    "{expected:x?} is not in {written:x?}"
                );
                let mut got = vec![0; 2000];
                let n = socket.recv(&mut got).expect("the datagram");
                let byte = |at: usize| (at % 251) as u8;
                let sent: Vec<u8> =
                    (first.0..first.0 + first.1).chain(second.0..second.0 + second.1).map(byte).collect();
                assert!(got[..n] == sent[..], "every byte, in order");
            }
            assert_eq!(queue.counters().copied_bytes, 0);
        });
    });
}
