//! A hostile wire: floods of forged packets beside a transfer, which goes on, and new connections, which come about.

use crate::board::{Board, End, GOES, Word};
use crate::census::Census;
use crate::far::{Far, patience};
use crate::lab::{Namespace, Process, bounded, soon};
use crate::program::Task;
use crate::talk::{Hello, Mode};
use crate::world::{HERE, LIMIT, THERE, World, at};
use crate::{need_root, number};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use zstack_wire::checksum::Sum;
use zstack_wire::tcp::{Flags, Header};
use zstack_wire::{Seq, protocol};
use zstackd::packet;

/// Where the program listens, and where nobody does.
const SERVED: u16 = 9300;
const UNSERVED: u16 = 9999;

fn here() -> IpAddr {
    HERE[0].parse().expect("an address")
}

fn random(n: u32) -> u32 {
    n.wrapping_mul(0x9e37_79b9).rotate_left(11).wrapping_mul(0x85eb_ca6b)
}

fn stranger(n: u32) -> SocketAddr {
    SocketAddr::new(Ipv4Addr::from(0x0a0a_0000 | random(n) >> 16).into(), 1024 + (n % 60_000) as u16)
}

fn segment(from: SocketAddr, port: u16, header: Header, payload: &[u8]) -> Vec<u8> {
    let header = Header { source: from.port(), destination: port, window: 999, ..header };
    let mut segment = vec![0; header.len()];
    header.emit(&mut segment);
    segment.extend_from_slice(payload);
    let sum = Sum::pseudo(from.ip(), here(), protocol::TCP, segment.len() as u16).bytes(&segment).field();
    segment[16..18].copy_from_slice(&sum.to_be_bytes());
    packet::around(from.ip(), here(), protocol::TCP, &segment)
}

fn flags(flags: Flags, n: u32) -> Header {
    Header { seq: Seq(random(n)), ack: Seq(random(!n)), flags, ..Header::default() }
}

/// An ICMP error in the remote host's name about a segment that was sent to `to`, with a number that is guessed.
fn error(to: SocketAddr, port: u16, n: u32) -> Vec<u8> {
    let quoted = Header { source: port, destination: to.port(), ..flags(Flags::ACK, n) };
    let mut bytes = vec![0; quoted.len()];
    quoted.emit(&mut bytes);
    let quote = packet::around(here(), to.ip(), protocol::TCP, &bytes);
    // Unreachable, by all reasons; the fourth says that the path takes 68 bytes.
    let mut message = vec![3, (n % 16) as u8, 0, 0, 0, 0, 0, 68];
    message.extend_from_slice(&quote);
    let sum = Sum::default().bytes(&message).field();
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    packet::around(THERE[0].parse().expect("an address"), here(), protocol::ICMP, &message)
}

/// The `n`th packet of a flood; `peer`: the remote end of the transfer.
type Flood = fn(peer: SocketAddr, n: u32) -> Vec<u8>;

const FLOODS: &[(&str, Flood)] = &[
    ("SYNs to a port that is served", |_, n| {
        segment(stranger(n), SERVED, Header { mss: Some(1460), ..flags(Flags::SYN, n) }, &[])
    }),
    ("SYNs to a port that is not", |_, n| segment(stranger(n), UNSERVED, flags(Flags::SYN, n), &[])),
    ("SYNs to all ports", |_, n| segment(stranger(n), (random(n) >> 7) as u16 | 1, flags(Flags::SYN, n), &[])),
    ("ACKs of strangers", |_, n| segment(stranger(n), SERVED, flags(Flags::ACK, n), &[])),
    ("RSTs of strangers", |_, n| segment(stranger(n), SERVED, flags(Flags::RST, n), &[])),
    ("guessed RSTs", |peer, n| segment(peer, SERVED, flags(Flags::RST, n), &[])),
    ("guessed SYNs", |peer, n| segment(peer, SERVED, flags(Flags::SYN, n), &[])),
    ("guessed bytes", |peer, n| segment(peer, SERVED, flags(Flags::ACK, n), b"not what was sent")),
    ("guessed ICMP errors", |peer, n| error(peer, SERVED, n)),
    ("ICMP errors about strangers", |_, n| error(stranger(n), SERVED, n)),
    ("garbage", |_, n| {
        let noise: Vec<u8> = (0..1 + n % 100).flat_map(|i| random(n ^ i << 16).to_le_bytes()).collect();
        packet::around(
            stranger(n).ip(),
            here(),
            [protocol::TCP, protocol::ICMP, protocol::UDP, 99][n as usize % 4],
            &noise,
        )
    }),
];

struct Sender {
    what: Arc<AtomicU32>,
    over: Arc<AtomicBool>,
    sent: Arc<AtomicU32>,
    thread: Option<thread::JoinHandle<()>>,
}

const NONE: u32 = u32::MAX;

impl Sender {
    /// Sends so many packets a second, as far as it comes to that, of the flood that is set.
    fn start(there: &Namespace, peer: SocketAddr, rate: u32) -> Sender {
        let (what, over, sent) =
            (Arc::new(AtomicU32::new(NONE)), Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
        let (w, o, s) = (what.clone(), over.clone(), sent.clone());
        let socket = there.within(|| {
            // raw(7): whole packets.
            Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(255))).expect("a raw socket")
        });
        let thread = thread::spawn(move || {
            let to = SockAddr::from(SocketAddr::new(here(), 0));
            let mut n = 0;
            while !o.load(Ordering::Relaxed) {
                let began = Instant::now();
                thread::sleep(Duration::from_millis(1));
                let Some((_, flood)) = FLOODS.get(w.load(Ordering::Relaxed) as usize) else { continue };
                let count = (began.elapsed().as_micros() as u32).min(20_000) * (rate / 1000) / 1000;
                for _ in 0..count {
                    // What the device has no room for is lost.
                    let _ = socket.send_to(&flood(peer, n), &to);
                    n += 1;
                }
                s.store(n, Ordering::Relaxed);
            }
        });
        Sender { what, over, sent, thread: Some(thread) }
    }

    fn set(&self, what: u32) {
        self.what.store(what, Ordering::Relaxed);
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[test]
fn floods_leave_others_alone() {
    need_root!();
    bounded(LIMIT * 3, || {
        let slice = Duration::from_millis(number("STORM_FLOOD_MS", 60) as u64);
        let (rounds, rate) = (number("STORM_FLOOD_ROUNDS", 1), number("STORM_FLOOD_RATE", 20_000) as u32);
        let mut world = World::culvert();
        let path = std::env::temp_dir().join(format!("storm-flood-{}", std::process::id()));
        let board = Board::make(&path);
        let far = Far::listen(&world.there, 8400);
        let to = at(HERE[0], SERVED);
        let task = Task { role: "server", at: to, board: &path, first: 0, connections: 0, user: 0 };
        let mut server = Process::spawn(&mut task.command(&world));
        soon("a program that listens", LIMIT, || (board.row(0).get(Word::Stage) == GOES).then_some(()));
        far.seen.connect(&world.there, to, Hello { id: 0, mode: Mode::Down }, |e| panic!("the server: {e:?}"));
        let got = || board.row(1).get(Word::Got);
        soon("a transfer", LIMIT, || (got() > 1_000_000).then_some(()));
        let control = format!("@culvert-zstackd-{}", world.zstackd.as_ref().expect("zstackd").0.id());
        let told = world.here.within(|| zstack_control::ask(&control, 0).expect("an answer"));
        assert_eq!(told.len(), 1);
        let peer = told[0].remote;
        let sender = Sender::start(&world.there, peer, rate);
        let before = Census::take(&world);
        let speed = || {
            let (then, began) = (got(), Instant::now());
            thread::sleep(slice);
            (got() - then) as f64 / began.elapsed().as_secs_f64() / f64::from(1 << 20)
        };
        let mut next = 1;
        for (i, (name, _)) in FLOODS.iter().enumerate() {
            let (mut clean, mut flooded, mut took) = (vec![], vec![], Duration::ZERO);
            let sent = sender.sent.load(Ordering::Relaxed);
            for _ in 0..rounds {
                sender.set(NONE);
                clean.push(speed());
                sender.set(i as u32);
                flooded.push(speed());
                // Somebody else connects meanwhile, and is served.
                let began = Instant::now();
                let hello = Hello { id: next, mode: Mode::Turns };
                far.seen.connect(&world.there, to, hello, |e| panic!("connect: {e:?}"));
                let row = next as usize + 1;
                soon("a connection beside a flood", patience(), || {
                    (board.row(row).get(Word::Got) > 1000).then_some(())
                });
                took = took.max(began.elapsed());
                next += 1;
                let mut state = got();
                soon("the transfer goes on", patience(), || {
                    (got() > std::mem::replace(&mut state, got())).then_some(())
                });
            }
            let median = |mut of: Vec<f64>| {
                of.sort_by(f64::total_cmp);
                of[of.len() / 2]
            };
            let (clean, flooded) = (median(clean), median(flooded));
            let now = Census::take(&world);
            println!(
                "{name}: {} packets, {flooded:.0} of {clean:.0} MiB/s ({:.0} %), a connection within {took:?}; {} KiB, {} inner sockets",
                sender.sent.load(Ordering::Relaxed) - sent,
                flooded / clean * 100.0,
                now.resident,
                now.inner,
            );
            for row in 1..next as usize + 1 {
                let row = board.row(row);
                let ends = (row.end(Word::ReadEnd), row.end(Word::WriteEnd), row.get(Word::Wrong));
                assert_eq!(ends, (End::Not, End::Not, 0), "{name}");
            }
        }
        drop(sender);
        let after = Census::take(&world);
        assert!(after.resident < before.resident + (64 << 10), "memory: {before:?} {after:?}");
        server.kill();
        far.seen.quiet();
        // It ends in order, and says what has happened.
        let zstackd = world.zstackd.take().expect("zstackd");
        world.here.run(&format!("kill {}", zstackd.0.id()));
        assert!(zstackd.finish(LIMIT).0.success());
        let _ = std::fs::remove_file(&path);
    });
}
