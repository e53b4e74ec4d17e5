//! A transfer from the kernel, and a flood beside it through the same device: what is left of the transfer's speed.

use crate::*;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use zstack_wire::Seq;
use zstack_wire::checksum::Sum;
use zstack_wire::tcp::{Flags, Header};

/// A socket that sends whole IPv4 packets (raw(7), IPPROTO_RAW).
struct Raw(OwnedFd);

impl Raw {
    fn open() -> Raw {
        // SAFETY: socket touches no memory; the descriptor that it gives is nobody else's.
        let fd = unsafe { libc::socket(libc::AF_INET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, libc::IPPROTO_RAW) };
        assert!(fd >= 0, "a raw socket: {}", std::io::Error::last_os_error());
        // SAFETY: see above.
        Raw(unsafe { OwnedFd::from_raw_fd(fd) })
    }

    /// Sends a segment in `from`'s name to the engine. What the device has no room for is lost.
    fn send(&self, from: (Ipv4Addr, u16), port: u16, header: Header) {
        let header = Header { source: from.1, destination: port, ..header };
        let to: Ipv4Addr = ENGINE[0].parse().expect("an address");
        let mut packet = [0; 20 + zstack_wire::tcp::MAX_HEADER];
        let len = header.emit(&mut packet[20..]);
        let sum = Sum::pseudo_v4(from.0, to, 6, len as u16).bytes(&packet[20..20 + len]).field();
        packet[36..38].copy_from_slice(&sum.to_be_bytes());
        // The kernel fills in the length, the identification and the checksum.
        packet[0] = 0x45;
        (packet[8], packet[9]) = (64, 6);
        packet[12..16].copy_from_slice(&from.0.octets());
        packet[16..20].copy_from_slice(&to.octets());
        let name = libc::sockaddr_in {
            sin_family: libc::AF_INET as u16,
            sin_port: 0,
            sin_addr: libc::in_addr { s_addr: u32::from(to).to_be() },
            sin_zero: [0; 8],
        };
        // SAFETY: the descriptor is open; packet and address live through the call.
        unsafe {
            let size = size_of::<libc::sockaddr_in>() as u32;
            libc::sendto(self.0.as_raw_fd(), packet.as_ptr().cast(), 20 + len, 0, (&raw const name).cast(), size);
        }
    }
}

/// What the flood is made of; `n`: the how-manieth.
type Packet = fn(SocketAddr, u32) -> ((Ipv4Addr, u16), u16, Header);

fn stranger(n: u32) -> (Ipv4Addr, u16) {
    (Ipv4Addr::from(0x0a0a_0000 | n.wrapping_mul(0x9e37_79b9) >> 16), 1024 + (n % 60_000) as u16)
}

fn guess(peer: SocketAddr, n: u32, flags: Flags) -> ((Ipv4Addr, u16), u16, Header) {
    let IpAddr::V4(ip) = peer.ip() else { panic!("{peer}: IPv4 is enough here") };
    let random = n.wrapping_mul(0x9e37_79b9);
    let header = Header { seq: Seq(random), ack: Seq(random.rotate_left(13)), flags, window: 999, ..Header::default() };
    ((ip, peer.port()), SINK, header)
}

const FLOODS: [(&str, Packet); 4] = [
    ("SYNs of strangers", |_, n| {
        (stranger(n), SINK, Header { seq: Seq(n), flags: Flags::SYN, window: 999, ..Header::default() })
    }),
    ("ACKs of strangers", |_, n| {
        (stranger(n), SINK, Header { seq: Seq(n), ack: Seq(!n), flags: Flags::ACK, ..Header::default() })
    }),
    ("guessed RSTs", |peer, n| guess(peer, n, Flags::RST)),
    ("guessed SYNs", |peer, n| guess(peer, n, Flags::SYN)),
];

/// By hand: beside a transfer from the kernel one packet of a flood goes for each ZSTACK_LAB_SEGMENTS (8) of its segments, in turn
/// with as much time without. All that was sent arrives, and is right.
#[test]
#[ignore = "a measurement, which takes half a minute"]
fn a_flood_beside_a_transfer() {
    need_root!();
    with_kernel(NO_LIMIT, |namespace| {
        let engine = Engine::start(&spec(1500, "off"));
        let every: u64 = std::env::var("ZSTACK_LAB_SEGMENTS").ok().and_then(|v| v.parse().ok()).unwrap_or(8);
        for (name, packet) in FLOODS {
            let mut stream = kernel::connect(at(ENGINE[0], SINK));
            let peer = stream.local_addr().expect("an address");
            let (sent, flooding, over) = (AtomicU64::new(0), AtomicBool::new(false), AtomicBool::new(false));
            let (sent, flooding, over) = (Arc::new(sent), Arc::new(flooding), Arc::new(over));
            let count = Arc::new(AtomicU32::new(0));
            let sender = {
                let (sent, over) = (Arc::clone(&sent), Arc::clone(&over));
                std::thread::spawn(move || {
                    while !over.load(Ordering::Relaxed) {
                        let piece = pattern::piece(sent.load(Ordering::Relaxed), 64 << 10);
                        let n = stream.write(piece).expect("a write");
                        sent.fetch_add(n as u64, Ordering::Relaxed);
                    }
                    kernel::finish(&mut stream, sent.load(Ordering::Relaxed));
                })
            };
            let flood = {
                let (sent, over, flooding) = (Arc::clone(&sent), Arc::clone(&over), Arc::clone(&flooding));
                let (namespace, count) = (namespace.again(), Arc::clone(&count));
                std::thread::spawn(move || {
                    namespace.enter();
                    let raw = Raw::open();
                    let mut told = 0;
                    while !over.load(Ordering::Relaxed) {
                        let segments = sent.load(Ordering::Relaxed) / 1448;
                        if !flooding.load(Ordering::Relaxed) || segments < told + every {
                            told = if flooding.load(Ordering::Relaxed) { told } else { segments };
                            std::thread::sleep(Duration::from_micros(100));
                            continue;
                        }
                        while told + every <= segments {
                            told += every;
                            let (from, port, header) = packet(peer, count.fetch_add(1, Ordering::Relaxed));
                            raw.send(from, port, header);
                        }
                    }
                })
            };
            let mut moved = [vec![], vec![]];
            for slice in 0..24 {
                flooding.store(slice % 2 == 1, Ordering::Relaxed);
                let before = sent.load(Ordering::Relaxed);
                let began = Instant::now();
                std::thread::sleep(Duration::from_millis(250));
                let bytes = sent.load(Ordering::Relaxed) - before;
                moved[slice % 2].push(bytes as f64 / began.elapsed().as_secs_f64() / f64::from(1 << 20));
            }
            over.store(true, Ordering::Relaxed);
            flood.join().expect("the flood");
            sender.join().expect("the sender");
            let outcome = engine.outcome(LIMIT, |o| o.job == Job::Sink);
            assert_eq!((outcome.received, outcome.wrong), (sent.load(Ordering::Relaxed), None));
            let [clean, flooded] = moved.map(|mut rates| {
                rates.sort_by(f64::total_cmp);
                rates[rates.len() / 2]
            });
            let packets = count.load(Ordering::Relaxed);
            println!("{name}, {packets}: {flooded:.0} MiB/s, {clean:.0} alone: {:.0} %", flooded / clean * 100.0);
        }
    });
}
